//! One network on several devices: what replicas compute is what one network computes of the whole batch.

use super::*;
use crate::augment::Person;
use candle_core::{DType, Device};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::{Point, Size};

const FLIP: [u8; 3] = [0, 2, 1];

/// Noise of different sizes with none to three people, so that shares differ in everything that a loss is divided by.
fn sample(index: usize) -> Sample {
    let size = Size { width: 96 + 16 * (index as u32 % 3), height: 96 };
    let rgb = (0..3 * size.width as usize * size.height as usize).map(|i| ((i * 31 + index * 77) % 251) as u8).collect();
    let people = (0..[2, 0, 1, 3][index % 4]).map(|person| {
        let x = 10.0 + 25.0 * person as f32;
        let at = |dx: f32, y: f32| Some(Point { x: x + dx, y });
        let keypoints = vec![at(10.0, 15.0), at(4.0, 40.0), if index == 2 { None } else { at(16.0, 60.0) }];
        Person { rect: Rect::new(x, 10.0, x + 22.0, 80.0), keypoints, soft: None }
    });
    Sample { frame: Frame { size, rgb }, people: people.collect(), ignore: Vec::new(), generated: false }
}

fn options() -> TrainOptions {
    TrainOptions { steps: 4, batch: 5, warmup: 0, lr: 1e-3, optimizer: Optimizer::Sgd, ..TrainOptions::default() }
}

fn config() -> Config {
    let mut config = Config::nano(3);
    config.input.short_side = 96;
    // So that the limit is drawn for, too.
    config.keypoint_rois = Some(4);
    config
}

fn cpus(count: usize) -> Place {
    (1..count).fold(Place::cpu(), |place, _| place.beside(Place::cpu()))
}

fn run(count: usize) -> Run {
    Run::new_on(config(), options(), &FLIP, &Init::Seed(3), &cpus(count)).unwrap()
}

fn weights(run: &Run) -> Vec<f32> {
    run.network.params().all().flat_map(|(_, var)| var.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

/// ‖a − b‖ / max(‖b‖, `least`).
fn apart(a: &[f64], b: &[f64], least: f64) -> f64 {
    norm(a.iter().zip(b).map(|(a, b)| a - b)) / norm(b.iter().copied()).max(least)
}

/// f64 sums in another order, relative to the parameter's gradient, or to this share of the whole gradient where that is more: the bias
/// under the keypoints' softmax has gradient nought but for rounding.
const SUMS: f64 = 1e-12;
const LEAST: f64 = 1e-3;

/// One rank's losses and gradients by name.
type Found = (Losses, Vec<(String, Option<Vec<f64>>)>);

/// What ranks with these seats compute of their shares of `batch`, each of them on a copy of `network`.
fn compute(network: &Network, batch: &Batch, seats: Vec<Seat>) -> Vec<Found> {
    let ranks = seats.len();
    let part = |rank: usize, seat: &Seat| {
        let replica = copy(network);
        let vars = replicas::vars(&replica);
        let task = Part { images: share(batch.truths.len(), rank, ranks), seed: 7, step: 3, lr: 0.0 };
        let (losses, gradients) = seat.attend(|| gradients(&replica, &vars, seat, batch, &task)).unwrap();
        let values = |gradient: Tensor| gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let named = vars.into_iter().zip(gradients).map(|((name, _), gradient)| (name, gradient.map(values)));
        (losses, named.collect())
    };
    std::thread::scope(|scope| {
        let part = &part;
        let threads: Vec<_> = seats.into_iter().enumerate().map(|(rank, seat)| scope.spawn(move || part(rank, &seat))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// In f64.
fn copy(network: &Network) -> Network {
    let copy = Network::zeros(config(), DType::F64).unwrap();
    let tensors = network.params().all().map(|(name, var)| (name.to_owned(), var.as_detached_tensor().to_dtype(DType::F64).unwrap()));
    copy.params().assign(&tensors.collect()).unwrap();
    copy
}

/// In f64, in which another order of sums shows in the last digits only, parameter by parameter.
#[test]
fn gradients_of_ranks_are_the_whole_batchs() {
    let samples: Vec<Sample> = (0..5).map(sample).collect();
    let samples: Vec<&Sample> = samples.iter().collect();
    let mut run = run(1);
    run.calibrate(&samples).unwrap();
    let (batch, network) = (run.prepare(&samples).unwrap(), copy(&run.network));

    let together = |ranks: usize| compute(&network, &batch, Seat::around(&vec![Device::Cpu; ranks]).unwrap());
    let whole = together(1).remove(0);
    assert!(whole.0.keypoint > 1.0 && whole.0.rpn_box > 0.0 && whole.0.box_reg > 0.0, "{:?}", whole.0);
    let least = LEAST * norm(whole.1.iter().filter_map(|(_, gradient)| gradient.as_deref()).flatten().copied());
    for ranks in [2, 3, 5] {
        let all = together(ranks);
        assert!(all.iter().all(|rank| rank.0 == whole.0), "losses of {ranks} ranks: {:?}, expected {:?}", all[0].0, whole.0);
        let mut worst = 0.0_f64;
        for (rank, (_, gradients)) in all.iter().enumerate() {
            assert_eq!(*gradients, all[0].1, "rank {rank} of {ranks}");
            for ((name, found), (_, expected)) in gradients.iter().zip(&whole.1) {
                let (Some(found), Some(expected)) = (found, expected) else {
                    assert_eq!(found, expected, "{name}");
                    continue;
                };
                let off = apart(found, expected, least);
                assert!(off <= SUMS, "{ranks} ranks: the gradient of {name} differs by {off:e} of itself");
                worst = worst.max(off);
            }
        }
        println!("{ranks} ranks: gradients differ by {worst:.1e} of themselves at most");
    }

    // What this would notice: ranks that each divide by their own numbers, and the mean of their gradients.
    let alone = compute(&network, &batch, vec![Seat::alone(), Seat::alone()]);
    for name in
        ["rpn.head.cls_logits.weight", "roi_heads.box_predictor.cls_score.weight", "roi_heads.keypoint_predictor.kps_score_lowres.weight"]
    {
        let of = |rank: &Found| rank.1.iter().find_map(|(found, gradient)| if found == name { gradient.clone() } else { None }).unwrap();
        let mean: Vec<f64> = of(&alone[0]).iter().zip(of(&alone[1])).map(|(a, b)| (a + b) / 2.0).collect();
        let off = apart(&mean, &of(&whole), least);
        println!("{name}: a mean of means differs by {off:.1e}");
        assert!(off > 1e-3, "{name}: a mean of means differs by {off:e} only");
    }
}

/// f32 sums in another order, four steps of them.
const STEPS: f64 = 1e-4;
/// AdamW's first steps are the sign of each gradient, also of those that are nought but for rounding.
const SIGNS: f64 = 5e-2;

#[test]
fn a_run_on_several_devices_is_the_run_on_one() {
    let samples: Vec<Sample> = (0..5).map(sample).collect();
    let batch: Vec<&Sample> = samples.iter().collect();
    for (optimizer, lr, tolerance) in [(Optimizer::Sgd, 1e-3, STEPS), (Optimizer::AdamW, 1e-5, SIGNS)] {
        let options = TrainOptions { optimizer, lr, average: Some(0.5), ..options() };
        are_one(&batch, &options, tolerance);
    }
}

fn are_one(batch: &[&Sample], options: &TrainOptions, tolerance: f64) {
    let train = |count: usize| {
        let mut run = Run::new_on(config(), options.clone(), &FLIP, &Init::Seed(3), &cpus(count)).unwrap();
        run.calibrate(batch).unwrap();
        let before = weights(&run);
        let losses: Vec<Losses> = (0..2).map(|_| run.step(batch).unwrap()).collect();
        let folder = tempfile::tempdir().unwrap();
        run.checkpoint(folder.path()).unwrap();
        drop(run);
        // On another number of devices than before, with the moments of before.
        let mut run =
            Run::resume_on(folder.path(), config(), options.clone(), &FLIP, &cpus(if count == 1 { 1 } else { count - 1 })).unwrap();
        let losses: Vec<Losses> = losses.into_iter().chain((0..2).map(|_| run.step(batch).unwrap())).collect();
        run.checkpoint(folder.path()).unwrap();
        run.take_average().unwrap();
        // Of the average alone, which the other ranks do not have.
        run.checkpoint(folder.path()).unwrap();
        let update = weights(&run).iter().zip(before).map(|(after, before)| f64::from(after - before)).collect::<Vec<f64>>();
        (losses, update)
    };
    let (losses, update) = train(1);
    for count in [2, 4] {
        let (found, moved) = train(count);
        for (a, b) in found.iter().zip(&losses) {
            assert!((a.total() - b.total()).abs() <= 1e-4 * b.total(), "{count} devices: {a:?}, expected {b:?}");
        }
        let off = apart(&moved, &update, 0.0);
        println!("{:?}, {count} devices: four updates differ by {off:.1e} of themselves", options.optimizer);
        assert!(off <= tolerance, "{:?}, {count} devices: four updates differ by {off:e} of themselves", options.optimizer);
    }
}

#[test]
fn replicas_that_part_are_noticed_before_they_are_stored() {
    let samples: Vec<Sample> = (0..5).map(sample).collect();
    let batch: Vec<&Sample> = samples.iter().collect();
    let mut run = run(2);
    run.step(&batch).unwrap();
    let folder = tempfile::tempdir().unwrap();
    run.checkpoint(folder.path()).unwrap();
    let kept = std::fs::read(folder.path().join("checkpoint.safetensors")).unwrap();
    run.others[0].spoil();
    let error = run.checkpoint(folder.path()).unwrap_err().to_string();
    assert!(error.contains("rank 1") && error.contains("no longer"), "{error}");
    assert_eq!(std::fs::read(folder.path().join("checkpoint.safetensors")).unwrap(), kept);
}

/// Weights that have grown beyond all bounds: an error at each step, and nobody waits for anybody.
#[test]
fn a_run_on_several_devices_says_that_it_is_lost() {
    let samples: Vec<Sample> = (0..5).map(sample).collect();
    let batch: Vec<&Sample> = samples.iter().collect();
    let mut run = Run::new_on(config(), TrainOptions { lr: 1e30, ..options() }, &FLIP, &Init::Seed(3), &cpus(3)).unwrap();
    let failed = (0..4).find_map(|_| run.step(&batch).err()).unwrap();
    assert!(matches!(failed, RcnnError::NotFinite { .. }), "{failed}");
    assert!(matches!(run.step(&batch), Err(RcnnError::NotFinite { .. })));
}

#[test]
fn a_rank_that_is_gone_is_not_waited_for() {
    let samples: Vec<Sample> = (0..5).map(sample).collect();
    let batch: Vec<&Sample> = samples.iter().collect();
    let mut run = run(2);
    run.step(&batch).unwrap();
    run.others[0].end();
    let error = run.step(&batch).unwrap_err().to_string();
    assert!(error.contains("rank 1"), "{error}");
}

#[test]
fn every_device_has_an_image() {
    let samples: Vec<Sample> = (0..2).map(sample).collect();
    let error = Run::new_on(config(), TrainOptions { batch: 2, ..options() }, &FLIP, &Init::Seed(3), &cpus(3)).err().unwrap().to_string();
    assert!(error.contains("`batch` is 2, expected 3 or more"), "{error}");
    let error = run(3).step(&samples.iter().collect::<Vec<_>>()).unwrap_err().to_string();
    assert!(error.contains("2 samples") && error.contains("3 devices"), "{error}");
    let error = run(1).step(&[]).unwrap_err().to_string();
    assert!(error.contains("0 samples"), "{error}");
}

#[test]
fn options_that_mean_nothing_are_named() {
    assert_eq!(TrainOptions::default().wrong(), None);
    let augment = Augment::default();
    for (options, key) in [
        (TrainOptions { steps: 0, ..options() }, "steps"),
        (TrainOptions { lr: 0.0, ..options() }, "lr"),
        (TrainOptions { lr: f64::INFINITY, ..options() }, "lr"),
        (TrainOptions { batch: 0, ..options() }, "batch"),
        (TrainOptions { weight_decay: -0.1, ..options() }, "weight_decay"),
        (TrainOptions { weight_decay: f64::INFINITY, ..options() }, "weight_decay"),
        (TrainOptions { milestones: vec![70.0, 90.0], ..options() }, "milestones"),
        (TrainOptions { milestones: vec![0.9, 0.7], ..options() }, "milestones"),
        (TrainOptions { clip: Some(0.0), ..options() }, "clip"),
        (TrainOptions { clip: Some(f64::INFINITY), ..options() }, "clip"),
        (TrainOptions { short_sides: vec![96, 4], ..options() }, "short_sides"),
        (TrainOptions { average: Some(1.0), ..options() }, "average"),
        (TrainOptions { augment: Augment { scale: 1.0, ..augment.clone() }, ..options() }, "augment.scale"),
        (TrainOptions { augment: Augment { rotation: f32::INFINITY, ..augment.clone() }, ..options() }, "augment.rotation"),
        (TrainOptions { augment: Augment { shift: -0.1, ..augment.clone() }, ..options() }, "augment.shift"),
        (TrainOptions { augment: Augment { colour: 1.5, ..augment.clone() }, ..options() }, "augment.colour"),
        (TrainOptions { generated_augment: Some(Augment { cutout: 2.0, ..augment }), ..options() }, "generated_augment.cutout"),
    ] {
        assert_eq!(options.wrong().map(|(found, ..)| found).as_deref(), Some(key));
    }
}
