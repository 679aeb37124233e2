//! Whatever a wrapped model puts out, the pipelines give people or an error, never a panic, and nothing that is not finite.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use omnilabel_bundle::*;
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::ensemble::Average;
use omnilabel_keypoints::geometry::{Rect, Size};
use omnilabel_keypoints::label::{Detection, Thresholds};
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_keypoints::view::View;
use omnilabel_runtime::{PoseGraph, PoseTensor, RuntimeError, Teacher, ViewPlan};
use proptest::prelude::*;

struct Says(Vec<PoseTensor>);

impl PoseGraph for Says {
    fn run(&self, input: &[f32], rows: usize, columns: usize) -> Result<Vec<PoseTensor>, RuntimeError> {
        assert!(input.len() == 3 * rows * columns && input.iter().all(|v| v.is_finite()));
        Ok(self.0.clone())
    }
    fn is_dynamic(&self) -> bool {
        true
    }
}

fn manifest(output: PoseOutput, (height, width): (u32, u32)) -> Manifest {
    let skeleton = Skeleton::new(&["left_hand", "right_hand"], &[], None, None).unwrap();
    let one_stage = matches!(output, PoseOutput::OneStage(_));
    Manifest {
        format: FORMAT,
        name: "hostile".into(),
        architecture: "none".into(),
        skeleton: SkeletonSpec::from(&skeleton),
        input: InputSpec {
            short_side: height.min(width),
            max_long_side: height.max(width),
            size_divisor: if one_stage { 16 } else { 1 },
            mean: [0.5; 3],
            std: [0.25; 3],
            channels: Channels::Bgr,
        },
        network: PoseSpec { height, width, output }.into(),
        thresholds: Thresholds { instance: 0.5, keypoint: 0.2, floor: 0.05 },
        parent: None,
        dataset_sha256: None,
        ap: None,
        files: Default::default(),
        golden: Vec::new(),
    }
}

fn teacher(says: Vec<PoseTensor>, manifest: &Manifest) -> Teacher {
    let skeleton = manifest.skeleton.skeleton().unwrap();
    Teacher::with_pose_graph(Box::new(Says(says)), manifest.clone(), skeleton).unwrap()
}

fn value() -> impl Strategy<Value = f32> {
    prop_oneof![8 => -2.0f32..2.0, 2 => -1e4f32..1e4, 1 => Just(0.0), 1 => Just(f32::MAX), 1 => Just(f32::MIN), 1 => Just(1e-38)]
}

fn plan() -> impl Strategy<Value = ViewPlan> {
    let view = (1u32..80, any::<bool>()).prop_map(|(short_side, flip)| View { short_side, flip });
    (proptest::collection::vec(view, 1..4), any::<bool>(), any::<bool>(), 1u32..80).prop_map(|(views, box_voting, logits, base)| ViewPlan {
        base_short_side: base,
        views,
        average: if logits { Average::Logits } else { Average::Probabilities },
        box_voting,
        score_floor: 0.0,
    })
}

fn frame() -> impl Strategy<Value = Frame> {
    (1u32..70, 1u32..70).prop_map(|(width, height)| Frame {
        size: Size { width, height },
        rgb: (0..3 * width * height).map(|i| (i * 37 % 251) as u8).collect(),
    })
}

/// Points are numbers, probabilities and agreement from 0 to 1.
fn sound(found: &[Detection]) -> Result<(), TestCaseError> {
    for detection in found {
        prop_assert!(detection.rect.is_valid() && (0.0..=1.0).contains(&detection.score), "{detection:?}");
        prop_assert_eq!(detection.keypoints.len(), 2);
        for keypoint in &detection.keypoints {
            prop_assert!(keypoint.point.x.is_finite() && keypoint.point.y.is_finite(), "{keypoint:?}");
            prop_assert!((0.0..=1.0).contains(&keypoint.probability), "{keypoint:?}");
            prop_assert!((0.0..=1.0).contains(&keypoint.agreement) && keypoint.peak_logit.is_finite(), "{keypoint:?}");
        }
    }
    Ok(())
}

fn values_spec() -> impl Strategy<Value = Values> {
    prop_oneof![Just(Values::Peak), Just(Values::Sigmoid), Just(Values::Softmax)]
}

fn refine() -> impl Strategy<Value = Refine> {
    prop_oneof![Just(Refine::None), Just(Refine::Quarter), (1u32..8).prop_map(|half| Refine::Dark { blur: 2 * half + 1 })]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn heatmaps(
        (rows, columns, maps) in (2usize..9, 2usize..9).prop_flat_map(|(r, c)| (Just(r), Just(c), proptest::collection::vec(value(), 2 * r * c))),
        (values, refine, udp, shift) in (values_spec(), refine(), any::<bool>(), any::<bool>()),
        plan in plan(), frame in frame(),
        (x, y, w, h) in (-20f32..60.0, -20f32..60.0, 0.01f32..90.0, 0.01f32..90.0),
    ) {
        let crop = CropSpec { padding: 1.25, udp };
        let (rows_, columns_) = (rows as u32, columns as u32);
        let spec = HeatmapSpec { crop, output: "y".into(), rows: rows_, columns: columns_, values, refine, shift_flipped: shift };
        let manifest = manifest(PoseOutput::Heatmap(spec), (24, 18));
        let teacher = teacher(vec![PoseTensor { values: maps, shape: vec![1, 2, rows, columns] }], &manifest);
        let rect = Rect::from_xywh(x, y, w, h);
        if let Ok(found) = teacher.detect_in(&frame, &[(rect, 0.5)], &plan) {
            prop_assert_eq!(found.len(), 1);
            sound(&found)?;
        }
    }

    #[test]
    fn simcc(
        bins in proptest::collection::vec(value(), 2 * (36 + 48)),
        (values, udp) in (values_spec(), any::<bool>()), plan in plan(), frame in frame(),
    ) {
        let spec = SimccSpec { crop: CropSpec { padding: 1.0, udp }, x: "x".into(), y: "y".into(), split_ratio: 2.0, values };
        let manifest = manifest(PoseOutput::Simcc(spec), (24, 18));
        let (x, y) = bins.split_at(72);
        let tensor = |values: &[f32], bins| PoseTensor { values: values.to_vec(), shape: vec![1, 2, bins] };
        let teacher = teacher(vec![tensor(x, 36), tensor(y, 48)], &manifest);
        let rect = Rect::new(0.0, 0.0, frame.size.width as f32, frame.size.height as f32);
        sound(&teacher.detect_in(&frame, &[(rect, 0.5)], &plan).unwrap())?;
    }

    #[test]
    fn one_stage(
        (count, values) in (0usize..60).prop_flat_map(|n| (Just(n), proptest::collection::vec(value(), 13 * n))),
        (transposed, objectness, top_left) in (any::<bool>(), any::<bool>(), any::<bool>()), plan in plan(), frame in frame(),
    ) {
        let classes = 3 - u32::from(objectness);
        let letterbox = if top_left { Letterbox::TopLeft } else { Letterbox::Centre };
        let (score_threshold, nms_iou) = (0.1, 0.6);
        let spec = OneStageSpec {
            output: "y".into(), classes, class: 0, objectness, letterbox, fill: 114, score_threshold, nms_iou, max_detections: 20,
        };
        let manifest = manifest(PoseOutput::OneStage(spec), (32, 48));
        let shape = if transposed { vec![1, count, 13] } else { vec![1, 13, count] };
        let teacher = teacher(vec![PoseTensor { values, shape }], &manifest);
        let found = teacher.detect(&frame, &plan).unwrap();
        prop_assert!(found.len() <= 20);
        prop_assert!(found.windows(2).all(|pair| pair[0].score >= pair[1].score));
        for detection in &found {
            prop_assert!(detection.rect.x2 <= frame.size.width as f32 && detection.rect.y2 <= frame.size.height as f32);
        }
        // Keypoints may be anywhere that a float reaches; those that are nowhere are refused before a label is made of them.
        let near: Vec<Detection> = found.into_iter().filter(|d| d.keypoints.iter().all(|k| k.point.x.abs() < 1e9 && k.point.y.abs() < 1e9)).collect();
        sound(&near)?;
    }

    /// Outputs of any shape, number and length.
    #[test]
    fn shapes(
        tensors in proptest::collection::vec((proptest::collection::vec(0usize..5, 0..5), 0usize..200), 0..4),
        kind in 0..3, plan in plan(), frame in frame(),
    ) {
        let crop = CropSpec { padding: 1.25, udp: false };
        let output = match kind {
            0 => PoseOutput::Heatmap(HeatmapSpec {
                crop, output: "y".into(), rows: 3, columns: 2, values: Values::Peak, refine: Refine::Quarter, shift_flipped: false,
            }),
            1 => PoseOutput::Simcc(SimccSpec { crop, x: "x".into(), y: "y".into(), split_ratio: 1.0, values: Values::Peak }),
            _ => PoseOutput::OneStage(OneStageSpec {
                output: "y".into(), classes: 1, class: 0, objectness: false, letterbox: Letterbox::Centre, fill: 0, score_threshold: 0.0,
                nms_iou: 0.5, max_detections: 5,
            }),
        };
        let manifest = manifest(output, (32, 32));
        let tensors = tensors.into_iter().map(|(shape, length)| PoseTensor { values: vec![0.5; length], shape }).collect();
        let teacher = teacher(tensors, &manifest);
        let rect = Rect::new(0.0, 0.0, frame.size.width as f32, frame.size.height as f32);
        let result = if kind == 2 { teacher.detect(&frame, &plan) } else { teacher.detect_in(&frame, &[(rect, 1.0)], &plan) };
        if let Err(error) = result {
            prop_assert!(error.to_string().contains("expected") || error.to_string().contains("values"), "{}", error);
        }
    }
}

#[test]
fn numbers_that_are_none_are_named() {
    let crop = CropSpec { padding: 1.25, udp: false };
    let spec =
        HeatmapSpec { crop, output: "y".into(), rows: 3, columns: 2, values: Values::Peak, refine: Refine::Quarter, shift_flipped: false };
    let manifest = manifest(PoseOutput::Heatmap(spec), (32, 32));
    let frame = Frame { size: Size { width: 4, height: 4 }, rgb: vec![9; 48] };
    for bad in [f32::NAN, f32::INFINITY] {
        let mut values = vec![0.5; 12];
        values[7] = bad;
        let teacher = teacher(vec![PoseTensor { values, shape: vec![1, 2, 3, 2] }], &manifest);
        let plan = ViewPlan::single(&manifest);
        let error = teacher.detect_in(&frame, &[(Rect::new(0.0, 0.0, 4.0, 4.0), 1.0)], &plan).unwrap_err().to_string();
        assert!(error.contains("heatmaps[7]"), "{error}");
    }
}
