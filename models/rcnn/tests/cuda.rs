//! Training on an NVIDIA GPU against the CPU: every operation forward and backward, then whole steps. Runs with `OMNILABEL_GPU=1`
//! (`tests/run --gpu`); without a GPU it checks that what is missing is named.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use candle_core::{Device, Result, Tensor, Var};
use omnilabel_bundle::RoiSpec;
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::{Point, Rect, Size};
use omnilabel_rcnn::augment::{Person, Sample};
use omnilabel_rcnn::config::Config;
use omnilabel_rcnn::device::{Arithmetic, Compute, Place, TrainDevice};
use omnilabel_rcnn::ops::*;
use omnilabel_rcnn::optim::Optimizer;
use omnilabel_rcnn::train::{Init, Run, TrainOptions};

/// f32 sums of up to some thousand terms in another order (`NVIDIA_TF32_OVERRIDE=0`), relative to the largest of the tensor.
const SUM_TOLERANCE: f32 = 1e-4;
/// Losses of the first steps; later ones drift apart where an anchor or a proposal is chosen otherwise.
const LOSS_TOLERANCE: f32 = 2e-2;

fn compute(precision: Arithmetic) -> Compute {
    Compute { device: TrainDevice::Cuda, precision, gpus: 1 }
}

/// The GPU, or `None` where none was promised.
fn gpu() -> Option<Place> {
    match compute(Arithmetic::F32).open() {
        Ok(place) if std::env::var_os("OMNILABEL_GPU").is_some() => Some(place),
        Ok(_) => {
            eprintln!("skipped: OMNILABEL_GPU is not set");
            None
        }
        Err(error) => {
            assert!(std::env::var_os("OMNILABEL_GPU").is_none(), "a GPU was promised: {error}");
            assert!(error.to_string().starts_with("training device: "), "{error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

fn values(seed: usize, shape: &[usize]) -> Tensor {
    let len: usize = shape.iter().product();
    let data: Vec<f32> = (0..len).map(|i| (((i * 131 + seed * 977 + 7) % 65_521) as f32 * 12.9898).sin() * 1.5).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// Output and gradients on a device, brought back.
fn passes(device: &Device, f: &dyn Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor]) -> Vec<Tensor> {
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(&t.to_device(device).unwrap()).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = f(&tensors).unwrap();
    let grads = y.mul(&values(99, y.dims()).to_device(device).unwrap()).unwrap().sum_all().unwrap().backward().unwrap();
    let gradients = tensors.iter().map(|t| grads.get(t).unwrap().clone());
    std::iter::once(y.detach()).chain(gradients).map(|t| t.to_device(&Device::Cpu).unwrap()).collect()
}

fn check(place: &Place, name: &str, f: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor]) {
    let (expected, found) = (passes(&Device::Cpu, &f, inputs), passes(place.device(), &f, inputs));
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found.dims(), expected.dims(), "{name}, {i}");
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (found, expected) = (flat(found), flat(expected));
        let largest = expected.iter().fold(1f32, |most, v| most.max(v.abs()));
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() <= SUM_TOLERANCE * largest, "{name}, output or gradient {i}: {a}, expected {b}");
        }
    }
    println!("{name}: agrees");
}

#[test]
fn operations_agree_with_the_cpus() {
    let Some(place) = gpu() else { return };
    for (x, w, stride, padding, groups) in
        [([2, 3, 33, 21], [8, 3, 7, 7], 2, 3, 1), ([2, 64, 17, 9], [64, 2, 3, 3], 2, 1, 32), ([4, 48, 14, 14], [48, 48, 3, 3], 1, 1, 1)]
    {
        for relu in [false, true] {
            let spec = ConvSpec { stride, groups, relu, ..ConvSpec::padded(padding) };
            let inputs = [values(1, &x), values(2, &w), values(3, &w[..1])];
            check(&place, "conv2d", |t| conv2d(&t[0], &t[1], Some(&t[2]), spec), &inputs);
        }
    }
    let spec = ConvSpec { stride: 2, ..ConvSpec::padded(1) };
    let inputs = [values(4, &[3, 16, 7, 5]), values(5, &[16, 5, 4, 4]), values(6, &[5])];
    check(&place, "conv_transpose2d", |t| conv_transpose2d(&t[0], &t[1], Some(&t[2]), spec), &inputs);
    let inputs = [values(7, &[37, 200]), values(8, &[19, 200]), values(9, &[19])];
    check(&place, "linear", |t| linear(&t[0], &t[1], &t[2], true), &inputs);
    check(&place, "scale_rows", |t| scale_rows(&t[0], &t[1]), &[values(10, &[9, 4, 3, 3]), values(11, &[9])]);
    check(&place, "add_relu", |t| add_relu(&t[0], &t[1]), &[values(12, &[2, 3, 9, 7]), values(13, &[2, 3, 9, 7])]);
    let x = [values(14, &[2, 3, 9, 7])];
    check(&place, "max_pool2d", |t| max_pool2d(&t[0], 3, 2, 1), &x);
    check(&place, "subsample2", |t| subsample2(&t[0]), &x);
    check(&place, "upsample_nearest2", |t| upsample_nearest2(&t[0]), &x);
    check(&place, "upsample_bilinear2", |t| upsample_bilinear2(&t[0]), &x);
    let network = Config::nano(3).network;
    let levels: Vec<Tensor> =
        network.levels.iter().enumerate().map(|(i, l)| values(15 + i, &[2, 5, 128 / l.stride as usize, 96 / l.stride as usize])).collect();
    let rois: Vec<(usize, Rect)> = (0..40)
        .map(|i| {
            (
                i % 2,
                Rect::new((i * 7 % 60) as f32 - 5.0, (i * 11 % 80) as f32 - 5.0, (i * 7 % 60) as f32 + 31.0, (i * 11 % 80) as f32 + 43.5),
            )
        })
        .collect();
    let spec = RoiSpec { resolution: 7, sampling_ratio: 2, aligned: false };
    let used = &levels[..network.roi_levels as usize];
    // Levels that no RoI is pooled from have gradient nought all the same.
    check(&place, "roi_align", |t| roi_align(&network, t, &rois, spec), used);
}

fn sample(seed: usize) -> Sample {
    let size = Size { width: 128, height: 96 };
    let rgb = (0..3 * 128 * 96).map(|i| ((i * 31 + seed * 77) % 251) as u8).collect();
    let at = |x: f32, y: f32| Some(Point { x: x + 4.0 * seed as f32, y });
    let person =
        Person { rect: Rect::new(20.0, 10.0, 80.0, 90.0), keypoints: vec![at(40.0, 20.0), at(30.0, 50.0), at(55.0, 60.0)], soft: None };
    Sample { frame: Frame { size, rgb }, people: vec![person], ignore: Vec::new(), generated: false }
}

/// All weights that are trained, one after the other.
fn weights(run: &Run) -> Vec<f32> {
    run.network.params().trainable().flat_map(|(_, var)| var.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

/// ‖a − b‖ / ‖b‖.
fn apart(a: &[f32], b: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b))) / norm(&mut b.iter().map(|b| f64::from(*b)))
}

/// Two replicas on one GPU, whose gradients go over the host: everything but NCCL.
#[test]
fn replicas_on_a_gpu_are_one_network() {
    let Some(place) = gpu() else { return };
    let samples: Vec<Sample> = (1..4).map(sample).collect();
    let samples: Vec<&Sample> = samples.iter().collect();
    let options = TrainOptions { steps: 2, batch: 3, warmup: 0, optimizer: Optimizer::Sgd, lr: 1e-3, ..TrainOptions::default() };
    let train = |place: &Place| {
        let mut run = Run::new_on(Config::nano(3), options.clone(), &[0, 2, 1], &Init::Seed(3), place).unwrap();
        run.calibrate(&samples).unwrap();
        let before = weights(&run);
        let losses = [0; 2].map(|_| run.step(&samples).unwrap().total());
        let folder = tempfile::tempdir().unwrap();
        run.checkpoint(folder.path()).unwrap();
        (losses, weights(&run).iter().zip(before).map(|(after, before)| after - before).collect::<Vec<f32>>())
    };
    let (expected, update) = train(&place);
    let (found, moved) = train(&place.clone().beside(place.clone()));
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() <= LOSS_TOLERANCE * b.max(1.0), "{found:?}, expected {expected:?}");
    }
    let off = apart(&moved, &update);
    println!("two replicas: two updates differ by {off:.1e} of themselves");
    assert!(off <= 1e-3, "two updates differ by {off} of themselves");
}

#[test]
fn steps_agree_with_the_cpus() {
    let Some(place) = gpu() else { return };
    let samples = [sample(1), sample(2)];
    let samples: Vec<&Sample> = samples.iter().collect();
    let bf16 = compute(Arithmetic::Bf16).open().unwrap();
    // With the update's tolerance: AdamW's first step is the sign of each gradient, also of those that are nought but for rounding; bfloat16
    // keeps eight bits.
    for (name, place, optimizer, lr, update_tolerance) in [
        ("f32, SGD", &place, Optimizer::Sgd, 1e-3, 1e-3),
        ("f32, AdamW", &place, Optimizer::AdamW, 1e-5, 5e-2),
        ("bf16, SGD", &bf16, Optimizer::Sgd, 1e-3, 0.2),
    ] {
        let options = TrainOptions { steps: 3, batch: 2, warmup: 0, optimizer, lr, ..TrainOptions::default() };
        let mut expected = Run::new(Config::nano(3), options.clone(), &[0, 2, 1], &Init::Seed(3)).unwrap();
        let mut found = Run::new_on(Config::nano(3), options.clone(), &[0, 2, 1], &Init::Seed(3), place).unwrap();
        expected.calibrate(&samples).unwrap();
        found.calibrate(&samples).unwrap();
        let before = [weights(&found), weights(&expected)];
        for step in 0..3 {
            let (a, b) = (found.step(&samples).unwrap().total(), expected.step(&samples).unwrap().total());
            println!("{name}, step {step}: {a}, on the CPU {b}");
            let tolerance = if name.starts_with("f32") { LOSS_TOLERANCE } else { 5.0 * LOSS_TOLERANCE };
            assert!((a - b).abs() <= tolerance * b.max(1.0), "{name}, step {step}: {a}, expected {b}");
            if step == 0 {
                let update = |after: Vec<f32>, before: &[f32]| after.iter().zip(before).map(|(a, b)| a - b).collect::<Vec<f32>>();
                let off = apart(&update(weights(&found), &before[0]), &update(weights(&expected), &before[1]));
                println!("{name}: the first update differs by {off:.1e} of itself");
                assert!(off <= update_tolerance, "{name}: the first update differs by {off} of itself");
            }
        }
        // A checkpoint made on the GPU goes on where there is none.
        let folder = tempfile::tempdir().unwrap();
        found.checkpoint(folder.path()).unwrap();
        let resumed = Run::resume(folder.path(), Config::nano(3), options.clone(), &[0, 2, 1]).unwrap();
        assert_eq!(resumed.step_index(), 3);
    }
}
