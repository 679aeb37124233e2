//! The pipeline on hand-made graphs that see what was painted: people are blue boxes with a green nose and two red hands. Which hand
//! is the left one follows from its side of the body, so that the graphs are equivariant under mirroring, as a trained network is.
//!
//! The cases are run wherever the file that includes this one puts the graphs (`super::teacher_on`).

use omnilabel_bundle::*;
use omnilabel_detect::boxes::BoxCoder;
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::ensemble::Average;
use omnilabel_keypoints::geometry::{Point, Rect, Size};
use omnilabel_keypoints::label::{Detection, Thresholds};
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_keypoints::view::View;
use omnilabel_runtime::{BackboneOutput, Graphs, RuntimeError, Teacher, ViewPlan};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const STRIDE: usize = 4;
const SIDE: usize = 14;
/// A heatmap cell of a painted body is 72/14 × 96/14 px; a view at another scale rounds its box by a net pixel (2 px) more.
const POINT_TOLERANCE_PX: f32 = 6.0;
/// Net pixels are 4/3 to 2 frame pixels; edges are blurred by one net pixel.
const BOX_TOLERANCE_PX: f32 = 3.0;

fn manifest() -> Manifest {
    let roi = |resolution| RoiSpec { resolution, sampling_ratio: 2, aligned: false };
    Manifest {
        format: FORMAT,
        name: "painted".into(),
        architecture: "hand".into(),
        skeleton: SkeletonSpec::from(&skeleton()),
        input: InputSpec { short_side: 80, max_long_side: 320, size_divisor: 16, mean: [0.0; 3], std: [1.0; 3], channels: Channels::Rgb },
        network: NetworkSpec {
            levels: vec![LevelSpec { stride: STRIDE as u32, anchor_size: 32.0 }],
            roi_levels: 1,
            canonical_size: 224.0,
            canonical_level: 0,
            aspect_ratios: vec![1.0],
            anchor_rule: AnchorRule::Rounded,
            stride_in_1x1: false,
            rpn: RpnSpec { pre_nms_top_n: 100, post_nms_top_n: 50, nms_iou: 0.7, min_size: 1e-3, score_threshold: 0.5 },
            box_roi: roi(7),
            keypoint_roi: roi(SIDE as u32),
            box_coder: [10.0, 10.0, 5.0, 5.0],
            score_threshold: 0.05,
            nms_iou: 0.5,
            max_detections: 20,
            heatmap_side: SIDE as u32,
        }
        .into(),
        thresholds: Thresholds { instance: 0.5, keypoint: 0.1, floor: 0.05 },
        parent: None,
        dataset_sha256: None,
        ap: None,
        files: BTreeMap::new(),
        golden: Vec::new(),
    }
}

fn skeleton() -> Skeleton {
    Skeleton::new(&["nose", "left_hand", "right_hand"], &[], None, None).unwrap()
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    NotFinite,
    Short,
}

pub(crate) struct Painted {
    backbones: Arc<AtomicUsize>,
    fault: Fault,
}

impl Graphs for Painted {
    fn backbone(&self, image: &[f32], rows: usize, columns: usize) -> Result<BackboneOutput, RuntimeError> {
        self.backbones.fetch_add(1, Ordering::Relaxed);
        let plane = rows * columns;
        let (r, c) = (rows / STRIDE, columns / STRIDE);
        let mut features = vec![0.0; 3 * r * c];
        for (channel, feature) in features.chunks_exact_mut(r * c).enumerate() {
            for (i, value) in feature.iter_mut().enumerate() {
                let (y, x) = (i / c * STRIDE, i % c * STRIDE);
                let cells = (0..STRIDE * STRIDE).map(|j| image[channel * plane + (y + j / STRIDE) * columns + x + j % STRIDE]);
                *value = cells.sum::<f32>() / (STRIDE * STRIDE) as f32;
            }
        }
        let mut objectness = vec![-10.0; r * c];
        let mut deltas = vec![0.0; 4 * r * c];
        for person in people(&image[2 * plane..], rows, columns) {
            let (x, y) = ((person.x1 + person.x2) as usize / 2 / STRIDE, (person.y1 + person.y2) as usize / 2 / STRIDE);
            let anchor = Rect::new(-16.0, -16.0, 16.0, 16.0);
            let at = (x * STRIDE) as f32;
            let anchor = Rect::new(anchor.x1 + at, anchor.y1 + (y * STRIDE) as f32, anchor.x2 + at, anchor.y2 + (y * STRIDE) as f32);
            let delta = BoxCoder { weights: [1.0; 4] }.encode(anchor, person);
            objectness[y * c + x] = 10.0;
            for (i, delta) in delta.into_iter().enumerate() {
                deltas[i * r * c + y * c + x] = delta as f32;
            }
        }
        if self.fault == Fault::NotFinite {
            objectness[0] = f32::NAN;
        }
        Ok(BackboneOutput { features: vec![(features, 3, r, c)], objectness: vec![(objectness, r, c)], deltas: vec![deltas] })
    }

    /// The brighter a body's blue, the higher its score.
    fn box_head(&self, rois: Vec<f32>, r: usize) -> Result<(Vec<f32>, Vec<f32>), RuntimeError> {
        let mean = |roi: &[f32]| roi[2 * 49..].iter().sum::<f32>() / 49.0;
        let logits = rois.chunks_exact(3 * 49).flat_map(|roi| [0.0, 6.0 * mean(roi) - 1.0]).collect();
        Ok((logits, vec![0.0; 8 * r]))
    }

    fn keypoint_head(&self, rois: Vec<f32>, _: usize) -> Result<Vec<f32>, RuntimeError> {
        let mut maps = Vec::new();
        for roi in rois.chunks_exact(3 * SIDE * SIDE) {
            let hands = |left: bool| {
                (0..SIDE * SIDE).map(move |i| {
                    let on_the_right = i % SIDE >= SIDE / 2;
                    if on_the_right == left { 10.0 * roi[i] } else { 0.0 }
                })
            };
            maps.extend(roi[SIDE * SIDE..2 * SIDE * SIDE].iter().map(|v| 10.0 * v));
            maps.extend(hands(true));
            maps.extend(hands(false));
        }
        if self.fault == Fault::Short {
            maps.pop();
        }
        Ok(maps)
    }
}

/// Boxes of the blue bodies, which stand side by side: runs of columns with blue, cut to their rows.
fn people(blue: &[f32], rows: usize, columns: usize) -> Vec<Rect> {
    let lit = |y: usize, x: usize| blue[y * columns + x] > 0.15;
    let mut found = Vec::new();
    let mut start = None;
    for x in 0..=columns {
        let any = x < columns && (0..rows).any(|y| lit(y, x));
        match (start, any) {
            (None, true) => start = Some(x),
            (Some(x1), false) => {
                let on = |y: &usize| (x1..x).any(|x| lit(*y, x));
                let (y1, y2) = ((0..rows).find(on).unwrap(), (0..rows).rev().find(on).unwrap());
                found.push(Rect::new(x1 as f32, y1 as f32, x as f32, y2 as f32 + 1.0));
                start = None;
            }
            _ => {}
        }
    }
    found
}

struct Person {
    body: Rect,
    blue: u8,
    nose: Point,
    left: Point,
    right: Point,
}

fn persons() -> [Person; 2] {
    let p = |x, y| Point { x, y };
    [
        Person { body: Rect::new(20.0, 30.0, 92.0, 126.0), blue: 120, nose: p(56.0, 44.0), left: p(78.0, 100.0), right: p(34.0, 70.0) },
        Person { body: Rect::new(140.0, 20.0, 212.0, 116.0), blue: 200, nose: p(170.0, 36.0), left: p(198.0, 60.0), right: p(150.0, 98.0) },
    ]
}

fn paint() -> Frame {
    let size = Size { width: 240, height: 160 };
    let mut rgb = vec![0; 3 * 240 * 160];
    for person in persons() {
        for (i, pixel) in rgb.chunks_exact_mut(3).enumerate() {
            let (x, y) = ((i % 240) as f32 + 0.5, (i / 240) as f32 + 0.5);
            let near = |p: Point| (-((p.x - x).powi(2) + (p.y - y).powi(2)) / 50.0).exp() * 255.0;
            let body = person.body;
            if body.x1 < x && x < body.x2 && body.y1 < y && y < body.y2 {
                *pixel.first_chunk_mut::<3>().unwrap() =
                    [near(person.left).max(near(person.right)) as u8, near(person.nose) as u8, person.blue];
            }
        }
    }
    Frame { size, rgb }
}

fn teacher_with(fault: Fault) -> (Teacher, Arc<AtomicUsize>) {
    let backbones = Arc::new(AtomicUsize::new(0));
    let graphs = Painted { backbones: backbones.clone(), fault };
    (super::teacher_on(graphs, manifest(), skeleton()), backbones)
}

/// Graphs without a fault, and what belongs to them.
pub(crate) fn painted() -> (Painted, Manifest, Skeleton) {
    (Painted { backbones: Arc::default(), fault: Fault::None }, manifest(), skeleton())
}

fn teacher() -> Teacher {
    let (graphs, manifest, skeleton) = painted();
    super::teacher_on(graphs, manifest, skeleton)
}

fn near(a: Point, b: Point, tolerance: f32) -> bool {
    (a.x - b.x).abs() <= tolerance && (a.y - b.y).abs() <= tolerance
}

/// `found` is the two painted people, the brighter first.
fn check(found: &[Detection], what: &str) {
    assert_eq!(found.len(), 2, "{what}");
    assert!(found[0].score > found[1].score, "{what}");
    for (found, person) in found.iter().zip(persons().iter().rev()) {
        let corners = |r: Rect| [Point { x: r.x1, y: r.y1 }, Point { x: r.x2, y: r.y2 }];
        for (a, b) in corners(found.rect).into_iter().zip(corners(person.body)) {
            assert!(near(a, b, BOX_TOLERANCE_PX), "{what}: {:?} is not {:?}", found.rect, person.body);
        }
        for (keypoint, point) in found.keypoints.iter().zip([person.nose, person.left, person.right]) {
            assert!(near(keypoint.point, point, POINT_TOLERANCE_PX), "{what}: {:?} is not {point:?}", keypoint.point);
            // Of averaged probabilities the peak is a share of 1.
            assert!((0.01..=1.0).contains(&keypoint.probability) && keypoint.peak_logit > 0.05, "{what}: {keypoint:?}");
            assert!(keypoint.agreement > 0.5 && keypoint.agreement <= 1.0, "{what}: {keypoint:?}");
        }
    }
}

fn plan(scales: &[u32], flip: bool) -> ViewPlan {
    ViewPlan::new(&manifest(), scales, flip)
}

#[test]
fn one_view_finds_what_was_painted() {
    let found = teacher().detect(&paint(), &ViewPlan::single(&manifest())).unwrap();
    check(&found, "single");
    assert!(found.iter().flat_map(|d| &d.keypoints).all(|k| k.agreement == 1.0));
}

#[test]
fn any_views_find_the_same() {
    let mut plans = vec![plan(&[80, 100, 120], true), plan(&[120], false), plan(&[60, 80], true)];
    plans.push(ViewPlan { views: vec![View { short_side: 80, flip: true }], ..plan(&[80], false) });
    for mut plan in plans {
        for average in [Average::Logits, Average::Probabilities] {
            for box_voting in [false, true] {
                plan.average = average;
                plan.box_voting = box_voting;
                check(&teacher().detect(&paint(), &plan).unwrap(), &format!("{plan:?}"));
            }
        }
    }
}

#[test]
fn a_mirrored_frame_gives_mirrored_people_with_sides_exchanged() {
    let mut mirror = paint();
    for row in mirror.rgb.chunks_exact_mut(3 * 240) {
        let reversed: Vec<u8> = row.chunks_exact(3).rev().flatten().copied().collect();
        row.copy_from_slice(&reversed);
    }
    let plan = plan(&[80, 112], true);
    let (a, b) = (teacher().detect(&paint(), &plan).unwrap(), teacher().detect(&mirror, &plan).unwrap());
    for (a, b) in a.iter().zip(&b) {
        for (k, flipped) in [0, 2, 1].into_iter().enumerate() {
            let (p, q) = (a.keypoints[k].point, b.keypoints[flipped].point);
            // The plan holds both mirror images of each scale: only the box's rounding to a net pixel (2 px) differs.
            assert!(near(Point { x: 240.0 - p.x, y: p.y }, q, 3.0), "{p:?} {q:?}");
        }
    }
}

#[test]
fn the_base_pass_is_run_once() {
    for (plan, passes) in [
        (plan(&[80], false), 1),
        (plan(&[80], true), 2),
        (plan(&[100], false), 2),
        (ViewPlan { box_voting: true, ..plan(&[80, 100], true) }, 4),
    ] {
        let (teacher, backbones) = teacher_with(Fault::None);
        teacher.detect(&paint(), &plan).unwrap();
        assert_eq!(backbones.load(Ordering::Relaxed), passes, "{plan:?}");
    }
}

#[test]
fn the_score_floor_drops_the_dim() {
    let all = teacher().detect(&paint(), &plan(&[80], false)).unwrap();
    let floor = ViewPlan { score_floor: (all[0].score + all[1].score) / 2.0, ..plan(&[80], false) };
    let found = teacher().detect(&paint(), &floor).unwrap();
    assert_eq!(found, all[..1]);
}

#[test]
fn given_boxes_are_used_in_their_order() {
    let boxes = persons().map(|person| (person.body, 0.25));
    let mut found = teacher().detect_in(&paint(), &boxes, &plan(&[80, 100], true)).unwrap();
    assert!(found.iter().all(|d| d.score == 0.25));
    for (found, person) in found.iter().zip(persons()) {
        assert!(near(Point { x: found.rect.x1, y: found.rect.y1 }, Point { x: person.body.x1, y: person.body.y1 }, 1e-3));
    }
    found.reverse();
    found[0].score = 0.5;
    check(&found, "given");
    // A box that reaches out of the frame is a box too, within reason.
    let outside = [(Rect::new(-50.0, 100.0, -10.0, 300.0), 1.0)];
    assert_eq!(teacher().detect_in(&paint(), &outside, &plan(&[80], true)).unwrap().len(), 1);
    let bad = [[5.0, 5.0, 5.0, 9.0], [0.0, f32::NAN, 1.0, 1.0], [9.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1e6, 1e6], [-241.0, 0.0, 9.0, 9.0]];
    for bad in bad.map(|[x1, y1, x2, y2]| Rect::new(x1, y1, x2, y2)) {
        let error = teacher().detect_in(&paint(), &[boxes[0], (bad, 1.0)], &plan(&[80], true)).unwrap_err();
        assert!(error.to_string().contains("box 1"), "{error}");
    }
}

#[test]
fn empty_and_extreme_frames_have_nobody() {
    for (width, height) in [(240, 160), (1, 1), (1, 500), (2000, 1), (3, 700)] {
        let frame = Frame { size: Size { width, height }, rgb: vec![0; (3 * width * height) as usize] };
        for box_voting in [false, true] {
            let plan = ViewPlan { box_voting, ..plan(&[80, 100], true) };
            assert_eq!(teacher().detect(&frame, &plan).unwrap(), []);
            let whole = [(Rect::new(0.0, 0.0, width as f32, height as f32), 0.5)];
            let found = teacher().detect_in(&frame, &whole, &plan).unwrap();
            assert!(found[0].keypoints.iter().all(|k| k.point.x.is_finite() && k.point.y.is_finite()), "{found:?}");
        }
    }
}

#[test]
fn requests_that_are_refused() {
    let refused = |frame: &Frame, plan: &ViewPlan, expected: &str| {
        let error = teacher().detect(frame, plan).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let torn = Frame { rgb: vec![0; 7], ..paint() };
    refused(&torn, &plan(&[80], false), "7 bytes");
    refused(&Frame { size: Size::default(), rgb: Vec::new() }, &plan(&[80], false), "0 x 0");
    refused(&paint(), &plan(&[], false), "without a view");
    refused(&paint(), &plan(&[0], false), "0 px");
}

#[test]
fn graphs_that_misbehave_are_named() {
    for (fault, expected) in [(Fault::NotFinite, "backbone.onnx: objectness[0] is "), (Fault::Short, "keypoint_head.onnx: heatmaps")] {
        let error = teacher_with(fault).0.detect(&paint(), &plan(&[80], false)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
