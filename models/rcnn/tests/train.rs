//! Training through the public surface, on stick people drawn here.
#![allow(clippy::unwrap_used)]

use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::{Point, Rect, Size};
use omnilabel_rcnn::augment::{Augment, Person, Sample};
use omnilabel_rcnn::config::Config;
use omnilabel_rcnn::targets::{SoftLabel, keypoint_cell};
use omnilabel_rcnn::train::{Init, Losses, Optimizer, Run, Schedule, TrainOptions};
use std::sync::Arc;

/// Left/right pairs of [`stick`]'s keypoints.
const FLIP: [u8; 5] = [0, 2, 1, 4, 3];
const SIDE: u32 = 96;

/// A stick person (head, hands, feet) at `(x, y)`, `height` px tall, in an arbitrary but fixed pose.
fn stick(frame: &mut Frame, x: f32, y: f32, height: f32, pose: u32) -> Person {
    let h = height;
    let lean = (pose % 3) as f32 * 0.08 - 0.08;
    let head = Point { x, y };
    let hip = Point { x: x + lean * h, y: y + 0.55 * h };
    let neck = Point { x: x + 0.2 * lean * h, y: y + 0.15 * h };
    let raise = (pose % 4) as f32 * 0.12;
    let hands = [Point { x: x - 0.25 * h, y: y + (0.5 - raise) * h }, Point { x: x + 0.25 * h, y: y + (0.2 + raise) * h }];
    let feet = [Point { x: hip.x - 0.14 * h, y: y + h }, Point { x: hip.x + 0.2 * h, y: y + 0.95 * h }];
    line(frame, head, hip, [220, 60, 40]);
    line(frame, neck, hands[0], [40, 200, 60]);
    line(frame, neck, hands[1], [50, 70, 230]);
    line(frame, hip, feet[0], [230, 210, 40]);
    line(frame, hip, feet[1], [210, 60, 220]);
    let keypoints = [head, hands[0], hands[1], feet[0], feet[1]];
    let hull = keypoints.iter().fold(Rect::new(x, y, x, y), |r, p| Rect::new(r.x1.min(p.x), r.y1.min(p.y), r.x2.max(p.x), r.y2.max(p.y)));
    let rect = Rect::new(hull.x1 - 3.0, hull.y1 - 3.0, hull.x2 + 3.0, hull.y2 + 3.0).clipped(frame.size);
    Person { rect, keypoints: keypoints.map(Some).to_vec(), soft: None }
}

fn line(frame: &mut Frame, from: Point, to: Point, colour: [u8; 3]) {
    let length = (to.x - from.x).hypot(to.y - from.y);
    for i in 0..=(2.0 * length) as usize {
        let t = i as f32 / (2.0 * length);
        let (cx, cy) = (from.x + t * (to.x - from.x), from.y + t * (to.y - from.y));
        for dy in -2..=2 {
            for dx in -2..=2 {
                let (px, py) = ((cx as i32 + dx).max(0) as u32, (cy as i32 + dy).max(0) as u32);
                if px < frame.size.width && py < frame.size.height {
                    let at = 3 * (py * frame.size.width + px) as usize;
                    frame.rgb[at..at + 3].copy_from_slice(&colour);
                }
            }
        }
    }
}

fn samples() -> Vec<Sample> {
    (0..4u32)
        .map(|i| {
            let size = Size { width: SIDE, height: SIDE };
            let rgb = (0..3 * SIDE * SIDE).map(|p| (90 + (p * 2_654_435_761u32.wrapping_add(i)) % 17) as u8).collect();
            let mut frame = Frame { size, rgb };
            let people = vec![
                stick(&mut frame, 28.0 + 3.0 * i as f32, 10.0, 60.0, i),
                stick(&mut frame, 70.0 - 2.0 * i as f32, 20.0 + 4.0 * i as f32, 50.0, i + 5),
            ];
            Sample { frame, people, ignore: Vec::new(), generated: false }
        })
        .collect()
}

fn config() -> Config {
    let mut config = Config::nano(5);
    config.input.short_side = SIDE;
    config
}

fn options(steps: u64) -> TrainOptions {
    TrainOptions { steps, batch: 4, warmup: 5, seed: 11, ..TrainOptions::default() }
}

fn weights(run: &Run) -> Vec<(String, Vec<f32>)> {
    run.network.params().all().map(|(name, var)| (name.to_owned(), var.flatten_all().unwrap().to_vec1::<f32>().unwrap())).collect()
}

#[test]
fn four_images_are_learnt_by_heart() {
    let samples = samples();
    let batch: Vec<&Sample> = samples.iter().collect();
    let options = TrainOptions { augment: Augment::none(), schedule: Schedule::Cosine, ..options(30) };
    let mut run = Run::new(config(), options, &FLIP, &Init::Seed(3)).unwrap();
    let losses: Vec<Losses> = (0..30).map(|_| run.step(&batch).unwrap()).collect();
    let mean = |range: &[Losses], f: fn(&Losses) -> f32| range.iter().map(f).sum::<f32>() / range.len() as f32;
    let (first, last) = (&losses[..3], &losses[27..]);
    // A uniform guess over 56² cells costs ln 3136 = 8.05.
    assert!((6.0..12.0).contains(&mean(first, |l| l.keypoint)), "{first:?}");
    for (name, f, factor) in [
        ("objectness", (|l| l.objectness) as fn(&Losses) -> f32, 0.3),
        ("classifier", |l| l.classifier, 0.6),
        ("keypoint", |l| l.keypoint, 0.6),
        ("total", Losses::total, 0.6),
    ] {
        let (before, after) = (mean(first, f), mean(last, f));
        println!("{name}: {before} → {after}");
        assert!(after < factor * before, "{name}: {before} → {after}, expected a factor {factor}");
    }
}

/// Maps that have all of themselves where the keypoints are: what is learnt is where those are.
#[test]
fn soft_labels_are_learnt() {
    let hard = samples();
    let mut soft = samples();
    for person in soft.iter_mut().flat_map(|sample| &mut sample.people) {
        let mut maps = vec![0.0; 5 * 56 * 56];
        for (map, point) in maps.chunks_exact_mut(56 * 56).zip(&person.keypoints) {
            map[keypoint_cell(person.rect, point.unwrap(), 56).unwrap() as usize] = 1.0;
        }
        person.soft = Some(Arc::new(SoftLabel::new(person.rect, 5, 56, maps).unwrap()));
    }
    let train = |samples: &[Sample]| {
        let batch: Vec<&Sample> = samples.iter().collect();
        let options = TrainOptions { augment: Augment::none(), schedule: Schedule::Cosine, ..options(24) };
        let mut run = Run::new(config(), options, &FLIP, &Init::Seed(3)).unwrap();
        (0..24).map(|_| run.step(&batch).unwrap().keypoint).collect::<Vec<f32>>()
    };
    let (hard, soft) = (train(&hard), train(&soft));
    println!("hard {hard:?}, soft {soft:?}");
    // The first step has the same weights; a map that is read between its cells is spread over up to four.
    assert!((soft[0] - hard[0]).abs() < 0.02 * hard[0] && soft != hard);
    assert!(soft[23] < 0.75 * soft[0], "{soft:?}");
}

/// The deepest bodies, from random weights: what their frozen norms are calibrated to lets them learn.
#[test]
fn small_twins_of_the_papers_bodies_learn() {
    let samples = samples();
    let batch: Vec<&Sample> = samples.iter().collect();
    for name in ["mini_resnet101", "mini_resnext101_64x4d"] {
        let mut config = Config::preset(name, 5).unwrap();
        config.input.short_side = SIDE;
        let options = TrainOptions { augment: Augment::none(), schedule: Schedule::Cosine, ..options(12) };
        let mut run = Run::new(config, options, &FLIP, &Init::Seed(3)).unwrap();
        let losses: Vec<Losses> = (0..12).map(|_| run.step(&batch).unwrap()).collect();
        let keypoint = |range: &[Losses]| range.iter().map(|losses| losses.keypoint).sum::<f32>() / range.len() as f32;
        let (before, after) = (keypoint(&losses[..2]), keypoint(&losses[10..]));
        println!("{name}: {before} → {after}");
        assert!(after < 0.9 * before, "{name}: {before} → {after}");
    }
}

#[test]
fn a_resumed_run_is_the_run() {
    let samples = samples();
    let batch: Vec<&Sample> = samples.iter().collect();
    for optimizer in [Optimizer::AdamW, Optimizer::Sgd] {
        let options = TrainOptions { optimizer, short_sides: vec![64, 96], average: Some(0.5), ..options(6) };
        let mut straight = Run::new(config(), options.clone(), &FLIP, &Init::Seed(3)).unwrap();
        let straight_losses: Vec<Losses> = (0..6).map(|_| straight.step(&batch).unwrap()).collect();

        let folder = tempfile::tempdir().unwrap();
        let mut first = Run::new(config(), options.clone(), &FLIP, &Init::Seed(3)).unwrap();
        for _ in 0..3 {
            first.step(&batch).unwrap();
        }
        first.checkpoint(folder.path()).unwrap();
        drop(first);
        let mut second = Run::resume(folder.path(), config(), options, &FLIP).unwrap();
        assert_eq!(second.step_index(), 3);
        let resumed: Vec<Losses> = (0..3).map(|_| second.step(&batch).unwrap()).collect();
        assert_eq!(resumed, straight_losses[3..]);
        assert_eq!(weights(&straight), weights(&second));
        let last = weights(&straight);
        straight.take_average().unwrap();
        second.take_average().unwrap();
        assert_ne!(weights(&straight), last);
        assert_eq!(weights(&straight), weights(&second));
    }
}

#[test]
fn the_average_forgets_by_its_decay() {
    let samples = samples();
    let batch: Vec<&Sample> = samples.iter().collect();
    let mut run = Run::new(config(), TrainOptions { average: Some(0.25), ..options(4) }, &FLIP, &Init::Seed(3)).unwrap();
    let mut expected = weights(&run);
    for step in 1..=4 {
        run.step(&batch).unwrap();
        // 2/11, 3/12, and then the decay itself.
        let decay = [2.0 / 11.0, 0.25, 0.25, 0.25][step - 1] as f32;
        for ((_, expected), (_, found)) in expected.iter_mut().zip(weights(&run)) {
            expected.iter_mut().zip(found).for_each(|(expected, found)| *expected = decay * *expected + (1.0 - decay) * found);
        }
    }
    run.take_average().unwrap();
    let trained: Vec<String> = run.network.params().trainable().map(|(name, _)| name.to_owned()).collect();
    for ((name, expected), (_, found)) in expected.iter().zip(&weights(&run)).filter(|(a, _)| trained.contains(&a.0)) {
        let largest = expected.iter().fold(1e-3_f32, |most, v| most.max(v.abs()));
        let apart = expected.iter().zip(found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // Four sums of two products, rounded to f32.
        assert!(apart <= 4.0 * f32::EPSILON * largest, "{name}: {apart} of {largest}");
    }
    for decay in [1.0, -0.1, f64::NAN] {
        let options = TrainOptions { average: Some(decay), ..options(4) };
        let error = Run::new(config(), options, &FLIP, &Init::Seed(3)).err().unwrap().to_string();
        assert!(error.contains("`average`"), "{error}");
    }
}

#[test]
fn the_seed_decides_and_the_threads_do_not() {
    let samples = samples();
    let batch: Vec<&Sample> = samples.iter().collect();
    let train = |seed| {
        let mut run = Run::new(config(), TrainOptions { seed, ..options(2) }, &FLIP, &Init::Seed(seed)).unwrap();
        for _ in 0..2 {
            run.step(&batch).unwrap();
        }
        weights(&run)
    };
    let first = train(1);
    assert_eq!(first, train(1));
    let single = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(first, single.install(|| train(1)));
    assert_ne!(first, train(2));
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = Run::new(config(), options(6), &FLIP, &Init::Seed(3)).unwrap();
    run.checkpoint(folder.path()).unwrap();
    let refused = |config, options, flip: &[u8]| Run::resume(folder.path(), config, options, flip).err().unwrap().to_string();
    assert!(refused(config(), options(7), &FLIP).contains("options"));
    assert!(refused(Config { rpn_batch: 7, ..config() }, options(6), &FLIP).contains("config"));
    assert!(refused(config(), options(6), &[0, 1, 2, 3, 4]).contains("flip"));
    // Any truncation is an error, never a half-loaded run.
    let path = folder.path().join("checkpoint.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for length in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(Run::resume(folder.path(), config(), options(6), &FLIP).is_err(), "{length} bytes");
    }
}

#[test]
fn an_image_without_people_trains_the_background() {
    let mut empty = samples().remove(0);
    empty.people.clear();
    let mut run = Run::new(config(), options(2), &FLIP, &Init::Seed(3)).unwrap();
    let losses = run.step(&[&empty]).unwrap();
    assert_eq!((losses.rpn_box, losses.box_reg, losses.keypoint), (0.0, 0.0, 0.0));
    assert!(losses.objectness > 0.0 && losses.classifier > 0.0);
}

#[test]
fn a_loss_that_is_not_finite_is_named() {
    let samples = samples();
    let batch: Vec<&Sample> = samples.iter().collect();
    let options = TrainOptions { lr: 1e20, clip: None, optimizer: Optimizer::Sgd, ..options(20) };
    let mut run = Run::new(config(), options, &FLIP, &Init::Seed(3)).unwrap();
    let error = (0..20).find_map(|_| run.step(&batch).err()).expect("such a learning rate cannot stay finite").to_string();
    assert!(error.contains("step ") && (error.contains(" is NaN") || error.contains(" is inf") || error.contains(" is -inf")), "{error}");
}

#[test]
fn a_wrong_flip_permutation_is_refused() {
    assert!(Run::new(config(), options(1), &[0, 1], &Init::Seed(3)).is_err());
}
