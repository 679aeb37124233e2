//! Several models that label together: boxes are pooled, maps averaged, and who does not fit is refused.

mod zoo;

use omnilabel_bundle::Bundle;
use omnilabel_keypoints::ensemble::Average;
use omnilabel_keypoints::geometry::Rect;
use omnilabel_runtime::{BackboneOutput, Graphs, RuntimeError, Teacher, TractGraphs, ViewPlan};

/// Boxes that vote twice, and maps that are added twice and halved, differ by rounding alone.
const SCORE_TOLERANCE: f32 = 1e-6;
const BOX_IOU: f32 = 0.9999;
/// 3,136 probabilities in f32.
const SUM_TOLERANCE: f64 = 1e-4;
/// Of logits in the same boxes: sums of f32 in another order.
const LOGIT_TOLERANCE: f32 = 1e-4;
/// Of logits where the boxes, too, differ by their last bits.
const VOTED_LOGIT_TOLERANCE: f32 = 1e-3;
/// Of points that differ by hundredths of a pixel, as in `known_boxes`.
const AGREEMENT_TOLERANCE: f32 = 1e-3;
/// Half a pixel of the enlarged map: another of two equal cells may win.
const POINT_TOLERANCE_PX: f32 = 0.51;

/// A model's graphs, with every heatmap changed.
struct Changed(TractGraphs, fn(&mut [f32]));

/// A model's graphs that find nobody.
struct Blind(TractGraphs);

impl Graphs for Blind {
    fn backbone(&self, image: &[f32], rows: usize, columns: usize) -> Result<BackboneOutput, RuntimeError> {
        self.0.backbone(image, rows, columns)
    }

    fn box_head(&self, rois: Vec<f32>, r: usize) -> Result<(Vec<f32>, Vec<f32>), RuntimeError> {
        let (mut logits, deltas) = self.0.box_head(rois, r)?;
        logits.chunks_exact_mut(2).for_each(|pair| pair.copy_from_slice(&[20.0, -20.0]));
        Ok((logits, deltas))
    }

    fn keypoint_head(&self, rois: Vec<f32>, r: usize) -> Result<Vec<f32>, RuntimeError> {
        self.0.keypoint_head(rois, r)
    }
}

impl Graphs for Changed {
    fn backbone(&self, image: &[f32], rows: usize, columns: usize) -> Result<BackboneOutput, RuntimeError> {
        self.0.backbone(image, rows, columns)
    }

    fn box_head(&self, rois: Vec<f32>, r: usize) -> Result<(Vec<f32>, Vec<f32>), RuntimeError> {
        self.0.box_head(rois, r)
    }

    fn keypoint_head(&self, rois: Vec<f32>, r: usize) -> Result<Vec<f32>, RuntimeError> {
        let mut maps = self.0.keypoint_head(rois, r)?;
        maps.chunks_exact_mut(56 * 56).for_each(self.1);
        Ok(maps)
    }
}

fn changed(bundle: &Bundle, change: fn(&mut [f32])) -> Teacher {
    let graphs = TractGraphs::load(bundle, 1).expect("graphs");
    Teacher::with_graphs(Box::new(Changed(graphs, change)), bundle.manifest().clone(), bundle.skeleton().clone()).expect("a teacher")
}

/// Soft labels are the maps that the hard ones peak in.
#[test]
fn soft_labels_are_the_maps_of_the_hard_ones() {
    let (bundle, one) = (zoo::bundle(), || Teacher::load_alone(&zoo::bundle()).expect("a teacher"));
    let frame = zoo::frame(&bundle);
    let side = bundle.manifest().input.short_side;
    let logits = ViewPlan::new(bundle.manifest(), &[side, side + 32], true);
    let teacher = one();
    let boxes: Vec<_> = teacher.detect(&frame, &logits).expect("detections").iter().map(|d| (d.rect, d.score)).collect();
    let twins = Teacher::committee(vec![one(), one()]).expect("a committee");
    assert!(!boxes.is_empty());
    for average in [Average::Logits, Average::Probabilities] {
        let plan = ViewPlan { average, ..logits.clone() };
        let found = teacher.detect_in(&frame, &boxes, &plan).expect("labels");
        let soft = teacher.soft_in(&frame, &boxes, &plan).expect("soft labels");
        assert_eq!(soft.len(), found.len());
        for (soft, found) in soft.iter().zip(&found) {
            assert_eq!(soft.len(), bundle.skeleton().len() * 56 * 56);
            for (map, keypoint) in soft.chunks_exact(56 * 56).zip(&found.keypoints) {
                let highest = map.iter().copied().fold(0.0, f32::max);
                assert!((map.iter().map(|&q| f64::from(q)).sum::<f64>() - 1.0).abs() < SUM_TOLERANCE, "{keypoint:?}");
                match average {
                    Average::Probabilities => assert!((highest - keypoint.probability).abs() < SCORE_TOLERANCE, "{highest} {keypoint:?}"),
                    // The hard label is the peak between the cells, which may be another of two that are almost as high: around it
                    // there is a cell with most of the brightest one's probability.
                    Average::Logits => {
                        let (at, r) = (keypoint.point, found.rect);
                        let cell = |at: f32, low: f32, side: f32| (((at - low) / side * 56.0) as usize).min(55);
                        let (x, y) = (cell(at.x, r.x1, r.width()), cell(at.y, r.y1, r.height()));
                        let near = |&at: &usize| (at % 56).abs_diff(x) <= 1 && (at / 56).abs_diff(y) <= 1;
                        let there = (0..56 * 56).filter(near).map(|at| map[at]).fold(0.0, f32::max);
                        assert!(there > 0.5 * highest, "{there} {highest} {keypoint:?}");
                    }
                }
            }
        }
        for (a, b) in soft.iter().flatten().zip(twins.soft_in(&frame, &boxes, &plan).expect("soft labels").iter().flatten()) {
            assert!((a - b).abs() < SCORE_TOLERANCE, "{a} {b}");
        }
    }
    let flat = [(Rect::new(5.0, 5.0, 5.0, 9.0), 1.0)];
    assert!(matches!(teacher.soft_in(&frame, &flat, &logits), Err(RuntimeError::Request(_))));
}

#[test]
fn twins_label_as_one() {
    let (bundle, one) = (zoo::bundle(), || Teacher::load_alone(&zoo::bundle()).expect("a teacher"));
    let frame = zoo::frame(&bundle);
    let side = bundle.manifest().input.short_side;
    let plan = ViewPlan { box_voting: true, ..ViewPlan::new(bundle.manifest(), &[side, side + 32], true) };
    let alone = one().detect(&frame, &ViewPlan { views: plan.views[..1].to_vec(), ..plan.clone() }).expect("detections");
    let twins = Teacher::committee(vec![one(), one()]).expect("a committee");
    let single = ViewPlan::single(bundle.manifest());
    let found = twins.detect(&frame, &single).expect("detections");
    assert!(!found.is_empty() && found.len() == alone.len());
    for (found, alone) in found.iter().zip(&alone) {
        // The same boxes vote twice, and the same maps are added twice: rounding is all that differs.
        assert!(found.rect.iou(&alone.rect) > BOX_IOU && (found.score - alone.score).abs() < SCORE_TOLERANCE, "{found:?}, {alone:?}");
        for (found, alone) in found.keypoints.iter().zip(&alone.keypoints) {
            assert!((found.peak_logit - alone.peak_logit).abs() < VOTED_LOGIT_TOLERANCE, "{found:?}, {alone:?}");
            assert!(found.agreement > 1.0 - AGREEMENT_TOLERANCE, "{found:?}");
        }
    }
    // Views of members are views like any.
    let boxes: Vec<_> = alone.iter().map(|d| (d.rect, d.score)).collect();
    let (found, alone) = (twins.detect_in(&frame, &boxes, &plan).expect("labels"), one().detect_in(&frame, &boxes, &plan).expect("labels"));
    for (found, alone) in found.iter().zip(&alone).flat_map(|(found, alone)| found.keypoints.iter().zip(&alone.keypoints)) {
        assert!(
            (found.peak_logit - alone.peak_logit).abs() < LOGIT_TOLERANCE
                && (found.agreement - alone.agreement).abs() < AGREEMENT_TOLERANCE,
            "{found:?}, {alone:?}"
        );
    }
}

#[test]
fn whom_one_member_finds_all_label() {
    let bundle = zoo::bundle();
    let (frame, plan) = (zoo::frame(&bundle), ViewPlan { box_voting: true, ..ViewPlan::single(bundle.manifest()) });
    let seeing = || changed(&bundle, |_| ());
    let blind = || {
        let graphs = TractGraphs::load(&bundle, 1).expect("graphs");
        Teacher::with_graphs(Box::new(Blind(graphs)), bundle.manifest().clone(), bundle.skeleton().clone()).expect("a teacher")
    };
    assert!(blind().detect(&frame, &plan).expect("nobody").is_empty());
    let alone = seeing().detect(&frame, &plan).expect("detections");
    assert!(!alone.is_empty());
    for members in [vec![blind(), seeing()], vec![seeing(), blind()]] {
        let found = Teacher::committee(members).expect("a committee").detect(&frame, &plan).expect("detections");
        assert_eq!(found.len(), alone.len());
        for (found, alone) in found.iter().zip(&alone) {
            assert!(found.rect.iou(&alone.rect) > BOX_IOU && (found.score - alone.score).abs() < SCORE_TOLERANCE, "{found:?}, {alone:?}");
        }
    }
}

#[test]
fn maps_of_the_members_are_averaged() {
    let bundle = zoo::bundle();
    let frame = zoo::frame(&bundle);
    let plan = ViewPlan::single(bundle.manifest());
    let alone = changed(&bundle, |_| ()).detect(&frame, &plan).expect("detections");
    let boxes: Vec<_> = alone.iter().map(|d| (d.rect, d.score)).collect();
    let with = |change| Teacher::committee(vec![changed(&bundle, |_| ()), changed(&bundle, change)]).expect("a committee");
    // (1 + 3) / 2 of every logit.
    let found = with(|map| map.iter_mut().for_each(|value| *value *= 3.0)).detect_in(&frame, &boxes, &plan).expect("labels");
    assert_eq!(found.len(), alone.len());
    for (found, alone) in found.iter().zip(&alone).flat_map(|(found, alone)| found.keypoints.iter().zip(&alone.keypoints)) {
        assert!(
            (found.peak_logit - 2.0 * alone.peak_logit).abs() <= LOGIT_TOLERANCE * alone.peak_logit.abs().max(1.0),
            "{found:?}, {alone:?}"
        );
        assert!((found.point.x - alone.point.x).hypot(found.point.y - alone.point.y) < POINT_TOLERANCE_PX, "{found:?}, {alone:?}");
    }
    // A member that is sure of one cell carries the others with it, and does not agree with them.
    let found = with(|map| map[20 * 56 + 10] += 200.0).detect_in(&frame, &boxes, &plan).expect("labels");
    for detection in &found {
        let (r, cell) = (detection.rect, |at: f32| (at + 0.5) / 56.0);
        let there = (r.x1 + cell(10.0) * r.width(), r.y1 + cell(20.0) * r.height());
        for keypoint in &detection.keypoints {
            let apart = (keypoint.point.x - there.0).hypot(keypoint.point.y - there.1);
            // A cell of the map and a pixel of the enlarged one.
            assert!(apart <= r.width().max(r.height()) / 56.0 + 1.0, "{keypoint:?}, {there:?}");
        }
        assert!(detection.keypoints.iter().any(|keypoint| keypoint.agreement < 0.9), "{detection:?}");
    }
}

#[test]
fn who_does_not_fit_is_refused() {
    let bundle = zoo::bundle();
    let refused = |members: Vec<Teacher>| Teacher::committee(members).err().expect("a refusal").to_string();
    assert!(refused(Vec::new()).contains("without members"));
    // Enlarged in its graph, and after it.
    let error = refused(vec![Teacher::load_alone(&bundle).expect("a teacher"), changed(&bundle, |_| ())]);
    assert!(error.contains("member 1") && error.contains("heatmap"), "{error}");
    let mut manifest = bundle.manifest().clone();
    manifest.input.short_side += 32;
    let graphs = || Box::new(TractGraphs::load(&bundle, 1).expect("graphs"));
    let larger = Teacher::with_graphs(graphs(), manifest, bundle.skeleton().clone()).expect("a teacher");
    let error = refused(vec![Teacher::load_alone(&bundle).expect("a teacher"), larger]);
    assert!(error.contains("an input"), "{error}");
}
