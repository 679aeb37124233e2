//! Wrapped pose models of every kind on ONNX graphs whose answers are known.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod onnx;

use omnilabel_bundle::*;
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::ensemble::Average;
use omnilabel_keypoints::geometry::{Point, Rect};
use omnilabel_keypoints::label::{Detection, Thresholds};
use omnilabel_runtime::wrap::{WrapKind, WrapRequest, Wrapped, wrap};
use omnilabel_runtime::{RuntimeError, Teacher, ViewPlan, check_golden, write_golden};
use onnx::{D, Eyes, Net, Person, mirrored, paint, persons, picture, skeleton};
use std::path::Path;

/// A person's crop is 75 × 100 frame px on 96 × 128 input px, so a full-size map has 0.78 frame px per cell: the peak is at most half a
/// cell off, and where 5 × 5 cells are averaged and painted dots are rounded to bytes, one cell.
const FINE_PX: f32 = 0.8;
/// A cell of a map of stride 4 is 3.13 frame px: half of it without refinement, an eighth because mirrored maps stay a quarter of a cell
/// off, half a fine cell for the rounding of dots.
const COARSE_PX: f32 = 2.4;
/// The same with a quarter of a cell instead of half, which is left after SimpleBaseline's step.
const QUARTER_PX: f32 = 1.6;
/// DARK on a dot that is nearly Gaussian: a fifth of a cell.
const DARK_PX: f32 = 0.63;
/// One-stage inputs have up to 2.7 frame px per pixel at the smallest scale. Published keypoints are pixel indices of the frame times the
/// scale, which a net that sees only the input cannot tell from its own: (2.7 − 1) / 2 px; as much again for the rounding of dots.
const ONE_STAGE_PX: f32 = 1.7;
/// A body's edge is blurred over a pixel of the one-stage input.
const BOX_PX: f32 = 2.0;

fn crop(udp: bool) -> CropSpec {
    CropSpec { padding: 1.25, udp }
}

fn heatmap(refine: Refine, udp: bool, shift_flipped: bool) -> WrapKind {
    WrapKind::Heatmap { output: None, crop: crop(udp), values: Values::Peak, refine, shift_flipped }
}

fn one_stage() -> WrapKind {
    WrapKind::OneStage { spec: onnx::one_stage_spec(), stride: onnx::STRIDE as u32 }
}

fn request(dir: &Path, kind: WrapKind) -> WrapRequest {
    let input = match kind {
        WrapKind::OneStage { .. } => (onnx::SIDE as u32, onnx::SIDE as u32),
        _ => (onnx::HEIGHT as u32, onnx::WIDTH as u32),
    };
    WrapRequest {
        onnx: dir.join("model.onnx"),
        out: dir.join("bundle"),
        name: "test".into(),
        skeleton: skeleton(),
        input: Some(input),
        mean: [0.0; 3],
        std: [1.0; 3],
        channels: Channels::Rgb,
        kind,
        thresholds: Thresholds { instance: 0.5, keypoint: 0.2, floor: 0.05 },
        detector: None,
        frame: picture(),
        boxes: None,
    }
}

struct Made {
    dir: tempfile::TempDir,
    wrapped: Wrapped,
}

fn make(net: &Net, kind: WrapKind, change: impl FnOnce(&mut WrapRequest)) -> Made {
    let dir = tempfile::tempdir().unwrap();
    let mut request = request(dir.path(), kind);
    net.save(&request.onnx);
    change(&mut request);
    let wrapped = wrap(&request).unwrap();
    Made { dir, wrapped }
}

fn boxes() -> Vec<(Rect, f32)> {
    persons().iter().map(|person| (person.body, 0.9)).collect()
}

fn plan(teacher: &Teacher, scales: &[f32], flip: bool) -> ViewPlan {
    let base = teacher.manifest().input.short_side as f32;
    let sides: Vec<u32> = scales.iter().map(|scale| (scale * base).round() as u32).collect();
    ViewPlan::new(teacher.manifest(), &sides, flip)
}

/// Every view plan that a model is tried under.
const PLANS: [(&[f32], bool); 4] = [(&[1.0], false), (&[1.0], true), (&[0.75, 1.0, 1.25], false), (&[0.75, 1.0, 1.25], true)];

fn off(detection: &Detection, person: &Person) -> f32 {
    let distance = |a: Point, b: Point| (a.x - b.x).abs().max((a.y - b.y).abs());
    detection.keypoints.iter().zip(person.points).map(|(found, truth)| distance(found.point, truth)).fold(0.0, f32::max)
}

/// Each of `found` is the person at its place in `people`, and every view says so.
fn agree(found: &[Detection], people: &[Person], tolerance_px: f32, what: &str) {
    assert_eq!(found.len(), people.len(), "{what}: {:?}", found.iter().map(|d| (d.score, d.rect)).collect::<Vec<_>>());
    for (detection, person) in found.iter().zip(people) {
        assert_eq!(detection.keypoints.len(), 3, "{what}");
        let off = off(detection, person);
        assert!(off <= tolerance_px, "{what}: a keypoint is {off} px off, allowed {tolerance_px}: {:?}", detection.keypoints);
        for (keypoint, sigma) in detection.keypoints.iter().zip(skeleton().sigmas()) {
            assert!((0.0..=1.0).contains(&keypoint.probability) && keypoint.probability > 0.5, "{what}: {keypoint:?}");
            // Every view is off by the tolerance at most, along both axes.
            let reach = 2.0 * (2.0 * sigma).powi(2) * person.body.area();
            let least = (-2.0 * tolerance_px * tolerance_px / reach).exp();
            assert!(keypoint.agreement >= least, "{what}: at least {least}, {keypoint:?}");
        }
    }
}

fn mirror(person: Person) -> Person {
    let w = onnx::FRAME.width as f32;
    let p = |point: Point| Point { x: w - point.x, ..point };
    let [nose, left, right] = person.points;
    // What was the left hand is the right hand of the person in the mirror.
    Person {
        body: Rect::new(w - person.body.x2, person.body.y1, w - person.body.x1, person.body.y2),
        points: [p(nose), p(right), p(left)],
        ..person
    }
}

fn check_top_down(net: &Net, kind: WrapKind, tolerance_px: f32, what: &str) {
    let made = make(net, kind, |_| ());
    let teacher = Teacher::load(&made.wrapped.bundle, 1).unwrap();
    assert!(!teacher.finds_people());
    for (scales, flip) in PLANS {
        let plan = plan(&teacher, scales, flip);
        let what = format!("{what}, scales {scales:?}, flip {flip}");
        agree(&teacher.detect_in(&picture(), &boxes(), &plan).unwrap(), &persons(), tolerance_px, &what);
        let people = persons().map(mirror);
        let boxes: Vec<(Rect, f32)> = people.iter().map(|person| (person.body, 0.9)).collect();
        agree(&teacher.detect_in(&mirrored(&picture()), &boxes, &plan).unwrap(), &people, tolerance_px, &format!("{what}, mirrored frame"));
    }
}

#[test]
fn heatmaps_of_full_size() {
    let net = onnx::heatmap(1, Eyes::default(), D::N(1));
    check_top_down(&net, heatmap(Refine::None, false, false), FINE_PX, "no refinement");
    check_top_down(&net, heatmap(Refine::Quarter, false, false), FINE_PX, "quarter");
    check_top_down(&net, heatmap(Refine::None, true, false), FINE_PX, "udp");
    check_top_down(&net, heatmap(Refine::Dark { blur: 11 }, true, false), FINE_PX, "udp and dark");
}

/// Maps of stride 4 whose cells lie at every fourth pixel: not symmetric in the crop, so mirrored ones are shifted by a cell, which leaves
/// a quarter of one.
#[test]
fn heatmaps_of_stride_4() {
    let net = onnx::heatmap(4, Eyes::default(), D::S("batch"));
    check_top_down(&net, heatmap(Refine::None, false, true), COARSE_PX, "no refinement");
    check_top_down(&net, heatmap(Refine::Quarter, false, true), QUARTER_PX, "quarter");
    check_top_down(&net, heatmap(Refine::Dark { blur: 5 }, false, true), DARK_PX, "dark");
}

#[test]
fn simcc_rows() {
    for udp in [false, true] {
        let kind = WrapKind::Simcc { outputs: None, crop: crop(udp), values: Values::Peak };
        check_top_down(&onnx::simcc(Eyes::default()), kind, FINE_PX, &format!("udp {udp}"));
    }
}

/// Logits come out as probabilities, whichever of the two is averaged; their places are the same.
#[test]
fn logits_of_a_sigmoid_and_of_a_softmax() {
    for (values, gain, offset) in [(Values::Sigmoid, 12.0, -6.0), (Values::Softmax, 60.0, 0.0)] {
        let eyes = Eyes { gain, offset, ..Eyes::default() };
        let kinds = [
            (
                onnx::heatmap(1, eyes, D::N(1)),
                WrapKind::Heatmap { output: None, crop: crop(false), values, refine: Refine::Dark { blur: 7 }, shift_flipped: false },
            ),
            (onnx::simcc(eyes), WrapKind::Simcc { outputs: None, crop: crop(false), values }),
        ];
        for (net, kind) in kinds {
            let made = make(&net, kind, |_| ());
            let teacher = Teacher::load(&made.wrapped.bundle, 1).unwrap();
            for average in [Average::Logits, Average::Probabilities] {
                let plan = ViewPlan { average, ..plan(&teacher, &[0.8, 1.0], true) };
                let found = teacher.detect_in(&picture(), &boxes(), &plan).unwrap();
                for (detection, person) in found.iter().zip(persons()) {
                    assert!(off(detection, &person) <= FINE_PX, "{values:?} {average:?}: {detection:?}");
                    for keypoint in &detection.keypoints {
                        let probability = keypoint.probability;
                        let sensible = if values == Values::Sigmoid { 0.9..=1.0 } else { 0.005..=1.0 };
                        assert!(sensible.contains(&probability), "{values:?} {average:?}: {probability}");
                        let logit = if average == Average::Logits { gain / 2.0 + offset } else { 0.0 };
                        assert!(keypoint.peak_logit >= logit, "{values:?} {average:?}: {keypoint:?}");
                    }
                }
            }
        }
    }
}

/// The net undoes a normalisation of its own; only an input that was normalised so, with its channels in that order, gives the peaks.
#[test]
fn normalisation_and_channel_order() {
    let (mean, std) = ([0.1, 0.4, 0.7], [0.3, 0.2, 0.5]);
    let net = onnx::heatmap(1, Eyes { order: [2, 1, 0], mean, std, ..Eyes::default() }, D::N(1));
    let found = |channels: Channels| {
        let made = make(&net, heatmap(Refine::None, false, false), |request| {
            (request.mean, request.std, request.channels) = (mean, std, channels);
        });
        let teacher = Teacher::load(&made.wrapped.bundle, 1).unwrap();
        teacher.detect_in(&picture(), &boxes(), &plan(&teacher, &[1.0], false)).unwrap()
    };
    agree(&found(Channels::Bgr), &persons(), FINE_PX, "bgr");
    let peak = found(Channels::Bgr)[0].keypoints[0].peak_logit;
    assert!((0.9..=1.0).contains(&peak), "{peak}");
    assert!(off(&found(Channels::Rgb)[0], &persons()[0]) > 5.0 * FINE_PX);
}

/// A model that tells hands by their colour and not by their side is wrong in the mirror: views disagree about hands, not about the nose.
#[test]
fn agreement_falls_when_views_disagree() {
    let net = onnx::heatmap(1, Eyes { sides: false, ..Eyes::default() }, D::N(1));
    let made = make(&net, heatmap(Refine::None, false, false), |_| ());
    let teacher = Teacher::load(&made.wrapped.bundle, 1).unwrap();
    let mut frame = picture();
    // The right hands become blue on a body without blue.
    for (i, pixel) in frame.rgb.chunks_exact_mut(3).enumerate() {
        let x = (i % onnx::FRAME.width as usize) as f32 + 0.5;
        let right = persons().iter().any(|person| person.body.x1 < x && x < 0.5 * (person.body.x1 + person.body.x2));
        pixel[2] = if right { pixel[0] } else { 0 };
        pixel[0] = if right { 0 } else { pixel[0] };
    }
    let single = teacher.detect_in(&frame, &boxes(), &plan(&teacher, &[1.0], false)).unwrap();
    agree(&single, &persons(), FINE_PX, "single view");
    assert!(single.iter().flat_map(|d| &d.keypoints).all(|k| k.agreement == 1.0));
    for detection in teacher.detect_in(&frame, &boxes(), &plan(&teacher, &[1.0], true)).unwrap() {
        assert!(detection.keypoints[0].agreement > 0.95, "{detection:?}");
        assert!(detection.keypoints[1..].iter().all(|hand| hand.agreement < 0.7), "{detection:?}");
    }
}

/// Views that look closer do not see the hands at the edge of the crop: those keep what the others saw.
#[test]
fn a_close_view_does_not_spoil_what_it_does_not_see() {
    let net = onnx::heatmap(1, Eyes::default(), D::N(1));
    let made = make(&net, heatmap(Refine::None, false, false), |_| ());
    let teacher = Teacher::load(&made.wrapped.bundle, 1).unwrap();
    // Twice as close: half of the box's height and width.
    let found = teacher.detect_in(&picture(), &boxes(), &plan(&teacher, &[1.0, 2.0], false)).unwrap();
    for (detection, person) in found.iter().zip(persons()) {
        assert!(off(detection, &person) <= FINE_PX, "{detection:?}");
    }
}

fn people_by_score() -> Vec<Person> {
    persons().into_iter().rev().collect()
}

#[test]
fn one_stage_models() {
    for (dynamic, transposed) in [(false, false), (false, true), (true, false)] {
        let made = make(&onnx::one_stage(dynamic, transposed), one_stage(), |_| ());
        assert_eq!((made.wrapped.dynamic, made.wrapped.detections.len()), (dynamic, 2));
        let teacher = Teacher::load(&made.wrapped.bundle, 1).unwrap();
        for (scales, flip) in PLANS {
            let scales: &[f32] = if dynamic || scales.len() == 1 { scales } else { &[0.75, 1.0] };
            for box_voting in [false, true] {
                let plan = ViewPlan { box_voting, ..plan(&teacher, scales, flip) };
                let what = format!("dynamic {dynamic}, transposed {transposed}, {plan:?}");
                let found = teacher.detect(&picture(), &plan).unwrap();
                agree(&found, &people_by_score(), ONE_STAGE_PX, &what);
                for (detection, person) in found.iter().zip(people_by_score()) {
                    let (a, b) = (detection.rect, person.body);
                    let off = [a.x1 - b.x1, a.y1 - b.y1, a.x2 - b.x2, a.y2 - b.y2].into_iter().fold(0.0f32, |m, d| m.max(d.abs()));
                    assert!(off <= BOX_PX, "{what}: the box is {off} px off: {a:?}, expected {b:?}");
                }
                let people: Vec<Person> = people_by_score().into_iter().map(mirror).collect();
                agree(&teacher.detect(&mirrored(&picture()), &plan).unwrap(), &people, ONE_STAGE_PX, &format!("{what}, mirrored frame"));
                assert_eq!(teacher.boxes(&picture(), &plan).unwrap().len(), 2);
            }
        }
        let floor = ViewPlan { score_floor: found_score(&teacher) + 1e-3, ..plan(&teacher, &[1.0], false) };
        assert_eq!(teacher.detect(&picture(), &floor).unwrap().len(), 0);
        let error = teacher.detect_in(&picture(), &boxes(), &plan(&teacher, &[1.0], false)).unwrap_err().to_string();
        assert!(error.contains("takes no boxes"), "{error}");
        let larger = teacher.detect(&picture(), &plan(&teacher, &[1.5], false));
        match larger {
            Ok(found) => assert!(dynamic && found.len() == 2),
            Err(error) => {
                let error = error.to_string();
                assert!(!dynamic && error.contains("288") && error.contains("192 x 192") && error.contains("scales up to 192"), "{error}");
            }
        }
    }
}

fn found_score(teacher: &Teacher) -> f32 {
    teacher.detect(&picture(), &plan(teacher, &[1.0], false)).unwrap()[0].score
}

/// A view that sees a person of whom the others see nothing, or the other way round, lowers the agreement.
#[test]
fn a_view_that_misses_somebody_disagrees() {
    let made = make(&onnx::one_stage(true, false), one_stage(), |_| ());
    let teacher = Teacher::load(&made.wrapped.bundle, 1).unwrap();
    // At a quarter of the size, two pixels of hand are left and the body is a few cells: the net's window holds both people.
    let found = teacher.detect(&picture(), &plan(&teacher, &[1.0, 0.17], false)).unwrap();
    assert_eq!(found.len(), 2);
    for detection in &found {
        assert!(detection.keypoints.iter().all(|keypoint| keypoint.agreement <= 0.75), "{detection:?}");
    }
}

fn detector(dir: &Path) -> std::path::PathBuf {
    let mut request = request(dir, one_stage());
    (request.onnx, request.out) = (dir.join("detector.onnx"), dir.join("detector"));
    onnx::one_stage(true, false).save(&request.onnx);
    wrap(&request).unwrap();
    request.out
}

#[test]
fn a_detector_inside_or_beside_finds_people_for_a_top_down_model() {
    let net = onnx::heatmap(1, Eyes::default(), D::N(1));
    let other = tempfile::tempdir().unwrap();
    let path = detector(other.path());
    let with = make(&net, heatmap(Refine::None, false, false), |request| request.detector = Some(path.clone()));
    assert!(with.wrapped.bundle.manifest().files.contains_key("detector/pose.onnx"));
    assert_eq!(with.wrapped.detections.len(), 2);
    let inside = Teacher::load(&with.wrapped.bundle, 1).unwrap();

    let without = make(&net, heatmap(Refine::None, false, false), |_| ());
    let alone = Teacher::load(&without.wrapped.bundle, 1).unwrap();
    let error = alone.detect(&picture(), &plan(&alone, &[1.0], false)).unwrap_err();
    assert!(matches!(error, RuntimeError::NeedsBoxes { .. }), "{error}");
    for word in ["--boxes", "--detector", "`[teacher] detector`", "top-down"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    let finder = Teacher::load(&Bundle::open(&path).unwrap(), 1).unwrap();
    let found = finder.boxes(&picture(), &plan(&finder, &[1.0], false)).unwrap();
    let beside = alone.with_detector(finder).unwrap();
    for (scales, flip) in PLANS {
        for box_voting in [false, true] {
            let plan = ViewPlan { box_voting, ..plan(&inside, scales, flip) };
            let detections = inside.detect(&picture(), &plan).unwrap();
            agree(&detections, &people_by_score(), FINE_PX, &format!("{plan:?}"));
            assert_eq!(detections, beside.detect(&picture(), &plan).unwrap());
            if !box_voting {
                assert_eq!(detections, inside.detect_in(&picture(), &found, &plan).unwrap());
            }
        }
    }
    // Golden frames go through the detector where it is in the bundle, else through the golden boxes.
    for (bundle, teacher) in [(&with.wrapped.bundle, &inside), (&without.wrapped.bundle, &beside)] {
        assert_eq!(check_golden(bundle, teacher).unwrap(), Ok(()));
    }
    // The detector of a detector.
    let top_down = Teacher::load(&without.wrapped.bundle, 1).unwrap();
    let error = beside.with_detector(top_down).err().unwrap().to_string();
    assert!(error.contains("needs boxes itself"), "{error}");
    let finder = || Teacher::load(&Bundle::open(&path).unwrap(), 1).unwrap();
    let error = finder().with_detector(finder()).err().unwrap().to_string();
    assert!(error.contains("takes no detector"), "{error}");
}

#[test]
fn the_number_of_workers_changes_nothing() {
    let other = tempfile::tempdir().unwrap();
    let path = detector(other.path());
    let top_down =
        make(&onnx::heatmap(4, Eyes::default(), D::N(1)), heatmap(Refine::Quarter, false, true), |r| r.detector = Some(path.clone()));
    for bundle in [&top_down.wrapped.bundle, &Bundle::open(&path).unwrap()] {
        let alone = Teacher::load_alone(bundle).unwrap();
        let plan = plan(&alone, &[0.75, 1.0, 1.25], true);
        let expected = alone.detect(&picture(), &plan).unwrap();
        for threads in [1, 2, 5] {
            assert_eq!(Teacher::load(bundle, threads).unwrap().detect(&picture(), &plan).unwrap(), expected, "{threads}");
        }
    }
}

#[test]
fn golden_frames_tell_another_model() {
    let kinds: [(Net, Net, WrapKind); 3] = [
        (
            onnx::heatmap(1, Eyes::default(), D::N(1)),
            onnx::heatmap(1, Eyes { gain: 0.9, ..Eyes::default() }, D::N(1)),
            heatmap(Refine::None, false, false),
        ),
        (
            onnx::simcc(Eyes::default()),
            onnx::simcc(Eyes { order: [1, 0, 2], ..Eyes::default() }),
            WrapKind::Simcc { outputs: None, crop: crop(false), values: Values::Peak },
        ),
        (onnx::one_stage(false, false), onnx::heatmap(1, Eyes::default(), D::N(1)), one_stage()),
    ];
    for (net, other, kind) in kinds {
        let is_one_stage = matches!(kind, WrapKind::OneStage { .. });
        let made = make(&net, kind, |_| ());
        let bundle = &made.wrapped.bundle;
        assert_eq!(check_golden(bundle, &Teacher::load(bundle, 2).unwrap()).unwrap(), Ok(()));
        if is_one_stage {
            // A frame with one person less.
            let root = bundle.root().to_owned();
            let bundle = write_golden(&root, &[("one", paint(onnx::FRAME, &persons()[..1]))]).unwrap();
            std::fs::write(root.join("golden/one.png"), picture().to_png()).unwrap();
            let bundle = seal(&root, bundle.manifest().clone()).unwrap();
            let mismatch = check_golden(&bundle, &Teacher::load(&bundle, 1).unwrap()).unwrap().unwrap_err();
            assert!(mismatch.message.contains("not among the 1 expected"), "{mismatch}");
            continue;
        }
        other.save(&bundle.root().join("pose.onnx"));
        let changed = seal(bundle.root(), bundle.manifest().clone()).unwrap();
        let mismatch = check_golden(&changed, &Teacher::load(&changed, 1).unwrap()).unwrap().unwrap_err();
        assert_eq!(mismatch.image, "golden/check.png");
        drop(made.dir);
    }
}

/// A person at the edge of the frame, boxes that reach out of it, and a frame smaller than the input.
#[test]
fn edges() {
    let made = make(&onnx::heatmap(1, Eyes::default(), D::N(1)), heatmap(Refine::None, false, false), |_| ());
    let teacher = Teacher::load(&made.wrapped.bundle, 1).unwrap();
    let p = |x, y| Point { x, y };
    let size = omnilabel_keypoints::geometry::Size { width: 60, height: 84 };
    let person = Person { body: Rect::new(0.0, 0.0, 60.0, 84.0), blue: 90, points: [p(29.0, 10.0), p(50.0, 60.0), p(8.0, 75.0)] };
    let frame: Frame = paint(size, &[person]);
    for (rect, tolerance) in [(person.body, FINE_PX), (Rect::new(-20.0, -20.0, 80.0, 104.0), 2.0 * FINE_PX)] {
        let found = teacher.detect_in(&frame, &[(rect, 0.5)], &plan(&teacher, &[1.0], true)).unwrap();
        assert!(off(&found[0], &person) <= tolerance, "{found:?}");
        assert_eq!((found[0].rect, found[0].score), (rect, 0.5));
    }
    let error = teacher.detect_in(&frame, &[(Rect::new(5.0, 5.0, 5.0, 9.0), 1.0)], &plan(&teacher, &[1.0], false)).unwrap_err();
    assert!(error.to_string().contains("box 0"), "{error}");
    assert_eq!(teacher.detect_in(&frame, &[], &plan(&teacher, &[1.0], false)).unwrap(), []);
}
