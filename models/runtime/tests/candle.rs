//! The exported bundle on tract against candle, which trained it: the same pipeline on both, graph by graph and as detections, on
//! drawn and on real pictures.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "candle_graphs/mod.rs"]
mod candle_graphs;

use candle_graphs::{Candle, drawn};
use omnilabel_bundle::Bundle;
use omnilabel_detect::frame::{Frame, transform};
use omnilabel_keypoints::label::Detection;
use omnilabel_keypoints::view::View;
use omnilabel_rcnn::config::Config;
use omnilabel_rcnn::export::GRAPH_TOLERANCE;
use omnilabel_rcnn::network::Network;
use omnilabel_runtime::{Graphs, Teacher, TractGraphs, ViewPlan};
use std::path::Path;
use std::sync::Arc;

/// Boxes of up to 256 px whose deltas differ by `GRAPH_TOLERANCE`, in frames of up to 4 times the network's size.
const BOX_TOLERANCE_PX: f32 = 0.25;
/// Of softmax scores, whose logits differ by `GRAPH_TOLERANCE` of the largest.
const SCORE_TOLERANCE: f32 = 1e-3;

/// The bundle of a random network.
fn exported() -> (tempfile::TempDir, Bundle, Arc<Network>) {
    candle_graphs::exported(Config::nano(3))
}

/// The first pictures of a data set beside the repository.
fn real(set: &str, count: usize) -> Vec<(String, Frame)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(set).join("val/images");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        eprintln!("no pictures in ../shared/data/{set}/val/images: skipped");
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().take(count).map(|path| (path.display().to_string(), Frame::open(&path).unwrap())).collect()
}

fn frames() -> Vec<(String, Frame)> {
    let mut frames: Vec<_> = [(160, 120), (90, 200), (300, 260)]
        .into_iter()
        .zip(1..)
        .map(|((w, h), seed)| (format!("drawn {w} x {h}"), drawn(w, h, seed)))
        .collect();
    frames.extend(real("lspe", 2));
    frames.extend(real("coco", 2));
    frames
}

fn compare(expected: &[f32], found: &[f32], what: &str) {
    assert_eq!(expected.len(), found.len(), "{what}");
    let scale = expected.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    let worst = expected.iter().zip(found).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(worst <= GRAPH_TOLERANCE * scale, "{what} differs by {worst}, the largest value is {scale}");
}

#[test]
fn graphs_agree() {
    let (_dir, bundle, network) = exported();
    let (candle, tract) = (Candle(network), TractGraphs::load(&bundle, 2).unwrap());
    for (name, frame) in frames() {
        let image = transform(&frame, &bundle.manifest().input, View { short_side: 128, flip: true });
        let a = candle.backbone(&image.data, image.rows, image.columns).unwrap();
        let b = tract.backbone(&image.data, image.rows, image.columns).unwrap();
        for level in 0..5 {
            if let (Some(a), Some(b)) = (a.features.get(level), b.features.get(level)) {
                assert_eq!((a.1, a.2, a.3), (b.1, b.2, b.3));
                compare(&a.0, &b.0, &format!("{name}: features_{level}"));
            }
            assert_eq!((a.objectness[level].1, a.objectness[level].2), (b.objectness[level].1, b.objectness[level].2));
            compare(&a.objectness[level].0, &b.objectness[level].0, &format!("{name}: objectness_{level}"));
            compare(&a.deltas[level], &b.deltas[level], &format!("{name}: deltas_{level}"));
        }
        // Real feature values as RoIs: the first ones of the finest level.
        let channels = a.features[0].1;
        for (side, r) in [(7, 3), (14, 2)] {
            let rois: Vec<f32> = a.features[0].0.iter().copied().cycle().take(r * channels * side * side).collect();
            if side == 7 {
                let ((l, d), (m, e)) = (candle.box_head(rois.clone(), r).unwrap(), tract.box_head(rois, r).unwrap());
                compare(&l, &m, &format!("{name}: class_logits"));
                compare(&d, &e, &format!("{name}: box_deltas"));
            } else {
                let (a, b) = (candle.keypoint_head(rois.clone(), r).unwrap(), tract.keypoint_head(rois, r).unwrap());
                compare(&a, &b, &format!("{name}: heatmaps"));
            }
        }
    }
}

/// Every detection has its twin; the order of equal scores is free.
fn same(expected: &[Detection], found: &[Detection], what: &str) -> (usize, usize) {
    assert_eq!(expected.len(), found.len(), "{what}");
    let (mut points, mut moved) = (0, 0);
    for a in expected {
        let off = |b: &Detection| {
            let (a, b) = (a.rect, b.rect);
            [a.x1 - b.x1, a.y1 - b.y1, a.x2 - b.x2, a.y2 - b.y2].iter().fold(0f32, |m, d| m.max(d.abs()))
        };
        let b = found.iter().min_by(|x, y| off(x).total_cmp(&off(y))).unwrap();
        assert!(off(b) <= BOX_TOLERANCE_PX && (a.score - b.score).abs() <= SCORE_TOLERANCE, "{what}: {a:?} {b:?}");
        for (a, b) in a.keypoints.iter().zip(&b.keypoints) {
            assert!((a.peak_logit - b.peak_logit).abs() <= SCORE_TOLERANCE * a.peak_logit.abs().max(1.0), "{what}: {a:?} {b:?}");
            assert!((a.probability - b.probability).abs() <= SCORE_TOLERANCE, "{what}: {a:?} {b:?}");
            points += 1;
            moved += usize::from((a.point.x - b.point.x).abs().max((a.point.y - b.point.y).abs()) > 3.0 * BOX_TOLERANCE_PX);
        }
    }
    (points, moved)
}

#[test]
fn detections_agree() {
    let (_dir, bundle, network) = exported();
    let tract = Teacher::load(&bundle, 2).unwrap();
    let candle = Teacher::with_graphs(Box::new(Candle(network)), bundle.manifest().clone(), bundle.skeleton().clone()).unwrap();
    let (mut points, mut moved, mut people) = (0, 0, 0);
    for (name, frame) in frames() {
        for plan in [ViewPlan::single(bundle.manifest()), ViewPlan::new(bundle.manifest(), &[96, 128], true)] {
            let (expected, found) = (candle.detect(&frame, &plan).unwrap(), tract.detect(&frame, &plan).unwrap());
            let (p, m) = same(&expected, &found, &format!("{name}, {} views", plan.views.len()));
            (points, moved, people) = (points + p, moved + m, people + expected.len());
        }
    }
    // A random network's heatmaps are flat: equal peaks exchange places now and then, the values at them do not.
    println!("{people} people, {moved} of {points} keypoints moved");
    assert!(people > 20 && moved * 50 <= points, "{people} people, {moved} of {points} keypoints moved");
}
