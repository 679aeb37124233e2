//! Every operation used in training against central finite differences in f64, alone and with a second consumer of its input
//! (candle 0.11's own nearest upsampling is wrong there), on odd sizes, with strides and groups.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Result, Tensor, Var};
use omnilabel_bundle::{LevelSpec, NetworkSpec, RoiSpec};
use omnilabel_keypoints::geometry::Rect;
use omnilabel_rcnn::config::Config;
use omnilabel_rcnn::ops::*;

/// Central differences in f64 with step `STEP`: truncation and cancellation are both below 1e-9 for values around 1.
const STEP: f64 = 1e-5;
const TOLERANCE: f64 = 1e-7;

fn values(seed: usize, shape: &[usize]) -> Tensor {
    let len: usize = shape.iter().product();
    let data: Vec<f64> = (0..len).map(|i| ((i * 131 + seed * 977 + 7) as f64 * 12.9898).sin() * 1.5).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// A scalar that weighs every output differently.
fn loss(y: &Tensor) -> Result<Tensor> {
    y.mul(&values(99, y.dims()).to_dtype(y.dtype())?)?.sum_all()
}

fn compare(f: &dyn Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor], step: f64, tolerance: f64) {
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let grads = loss(&f(&tensors).unwrap()).unwrap().backward().unwrap();
    for (index, input) in inputs.iter().enumerate() {
        let flat: Vec<f64> = input.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let grad = grads.get(&tensors[index]).unwrap_or_else(|| panic!("no gradient for input {index}"));
        assert_eq!(grad.dims(), input.dims());
        let grad: Vec<f64> = grad.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        for (element, analytic) in grad.iter().enumerate() {
            let at = |delta: f64| -> f64 {
                let mut moved = flat.clone();
                moved[element] += delta;
                let mut inputs = inputs.to_vec();
                inputs[index] = Tensor::from_vec(moved, input.dims(), &Device::Cpu).unwrap().to_dtype(input.dtype()).unwrap();
                loss(&f(&inputs).unwrap()).unwrap().to_dtype(DType::F64).unwrap().to_scalar().unwrap()
            };
            let numeric = (at(step) - at(-step)) / (2.0 * step);
            let scale = analytic.abs().max(1.0);
            assert!((numeric - analytic).abs() <= tolerance * scale, "input {index} element {element}: {analytic}, numerically {numeric}");
        }
    }
}

/// Alone, and with the first input consumed a second time before and after the operation.
fn check(f: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor]) {
    compare(&f, inputs, STEP, TOLERANCE);
    let twice = |t: &[Tensor]| {
        let y = f(t)?;
        let side = t[0].sqr()?.sum_all()?;
        y.broadcast_add(&side)?.add(&f(t)?.affine(0.5, 0.0)?)
    };
    compare(&twice, inputs, STEP, TOLERANCE);
}

fn conv(x: [usize; 4], w: [usize; 4], spec: ConvSpec) {
    let inputs = [values(1, &x), values(2, &w), values(3, &w[..1])];
    check(move |t| conv2d(&t[0], &t[1], Some(&t[2]), spec), &inputs);
}

const PLAIN: ConvSpec = ConvSpec::padded(1);

#[test]
fn conv2d_3x3() {
    conv([2, 3, 5, 7], [4, 3, 3, 3], PLAIN);
}

#[test]
fn conv2d_stride_2_odd_and_even() {
    conv([1, 2, 7, 5], [3, 2, 3, 3], ConvSpec { stride: 2, ..PLAIN });
    conv([2, 2, 6, 4], [3, 2, 3, 3], ConvSpec { stride: 2, ..PLAIN });
}

#[test]
fn conv2d_groups() {
    conv([2, 4, 5, 3], [6, 2, 3, 3], ConvSpec { groups: 2, ..PLAIN });
    conv([1, 4, 4, 4], [4, 1, 3, 3], ConvSpec { groups: 4, stride: 2, ..PLAIN });
}

#[test]
fn conv2d_pointwise_and_downsample() {
    conv([3, 4, 3, 5], [2, 4, 1, 1], ConvSpec { padding: 0, ..PLAIN });
    conv([2, 3, 5, 5], [2, 3, 1, 1], ConvSpec { padding: 0, stride: 2, ..PLAIN });
}

#[test]
fn conv2d_stem_7x7() {
    conv([1, 2, 9, 8], [2, 2, 7, 7], ConvSpec { stride: 2, padding: 3, ..PLAIN });
    conv([1, 2, 4, 3], [2, 2, 5, 5], ConvSpec { padding: 2, ..PLAIN });
    conv([1, 2, 1, 1], [2, 2, 3, 3], PLAIN);
    conv([1, 1, 2, 6], [2, 1, 7, 7], ConvSpec { padding: 3, ..PLAIN });
}

#[test]
fn conv2d_with_relu() {
    conv([2, 3, 5, 4], [3, 3, 3, 3], PLAIN.with_relu());
}

/// Nine images of a small map share blocks, and jobs of the backward pass have a remainder.
#[test]
fn conv2d_many_small_images() {
    conv([9, 2, 2, 3], [3, 2, 3, 3], PLAIN);
    conv([9, 4, 1, 2], [2, 2, 1, 1], ConvSpec { padding: 0, groups: 2, ..PLAIN });
}

#[test]
fn conv2d_without_bias_and_with_a_shared_weight() {
    let inputs = [values(1, &[2, 2, 4, 4]), values(2, &[2, 2, 3, 3])];
    check(|t| conv2d(&conv2d(&t[0], &t[1], None, PLAIN)?, &t[1], None, PLAIN), &inputs);
}

#[test]
fn conv_transpose2d_k4_s2_p1() {
    let spec = ConvSpec { stride: 2, ..PLAIN };
    for x in [[1, 2, 3, 4], [5, 3, 2, 2]] {
        let inputs = [values(1, &x), values(2, &[x[1], 2, 4, 4]), values(3, &[2])];
        check(move |t| conv_transpose2d(&t[0], &t[1], Some(&t[2]), spec), &inputs);
    }
    let inputs = [values(1, &[1, 2, 3, 3]), values(2, &[2, 2, 4, 4]), values(3, &[2])];
    check(move |t| conv_transpose2d(&t[0], &t[1], Some(&t[2]), spec.with_relu()), &inputs);
}

#[test]
fn linear_layers() {
    for relu in [false, true] {
        let inputs = [values(1, &[5, 4]), values(2, &[3, 4]), values(3, &[3])];
        check(move |t| linear(&t[0], &t[1], &t[2], relu), &inputs);
    }
}

#[test]
fn row_scaling_and_residual_sum() {
    check(|t| scale_rows(&t[0], &t[1]), &[values(1, &[4, 2, 3, 3]), values(2, &[4])]);
    check(|t| add_relu(&t[0], &t[1]), &[values(1, &[2, 3, 3]), values(2, &[2, 3, 3])]);
}

#[test]
fn pooling() {
    check(|t| max_pool2d(&t[0], 3, 2, 1), &[values(1, &[2, 2, 7, 6])]);
    check(|t| max_pool2d(&t[0], 2, 2, 0), &[values(1, &[1, 3, 5, 4])]);
    check(|t| subsample2(&t[0]), &[values(1, &[2, 2, 5, 4])]);
}

#[test]
fn upsampling() {
    for dims in [[2, 2, 3, 5], [1, 1, 1, 1], [1, 2, 4, 2]] {
        check(|t| upsample_nearest2(&t[0]), &[values(1, &dims)]);
        check(|t| upsample_bilinear2(&t[0]), &[values(1, &dims)]);
    }
}

/// What the losses are made of, all candle's own.
#[test]
fn the_losses_operations() {
    let x = || values(1, &[3, 5]);
    check(|t| t[0].broadcast_sub(&t[0].log_sum_exp(1)?.unsqueeze(1)?), &[x()]);
    let index = Tensor::from_vec(vec![4u32, 0, 4], (3, 1), &Device::Cpu).unwrap();
    check(|t| t[0].gather(&index, 1), &[x()]);
    let rows = Tensor::from_vec(vec![2u32, 0, 2, 1], 4, &Device::Cpu).unwrap();
    check(|t| t[0].index_select(&rows, 0), &[x()]);
    check(|t| t[0].permute((1, 0))?.contiguous()?.flatten_all(), &[x()]);
    check(|t| Tensor::cat(&[&t[0], &t[1]], 1), &[x(), values(2, &[3, 2])]);
    check(|t| t[0].narrow(1, 1, 3), &[x()]);
}

fn pyramid() -> NetworkSpec {
    let mut network = Config::nano(3).network;
    network.levels = vec![LevelSpec { stride: 4, anchor_size: 12.0 }, LevelSpec { stride: 8, anchor_size: 24.0 }];
    (network.roi_levels, network.canonical_level, network.canonical_size) = (2, 0, 8.0);
    network
}

/// RoIAlign computes in f32 and is linear in the features, so central differences are exact for any step: a step of ½ leaves only
/// f32 rounding, 1e-4.
#[test]
fn roi_align_over_two_levels() {
    let network = pyramid();
    let rois = [
        (1, Rect::new(1.5, 2.0, 9.0, 8.5)),
        (0, Rect::new(0.0, 0.0, 20.0, 19.0)),
        (1, Rect::new(-3.0, 4.0, 18.0, 30.0)),
        (0, Rect::new(6.0, 6.0, 6.2, 6.1)),
        (0, Rect::new(1.5, 2.0, 9.0, 8.5)),
    ];
    let levels = [values(1, &[2, 2, 5, 6]), values(2, &[2, 2, 3, 3])].map(|t| t.to_dtype(DType::F32).unwrap());
    for (resolution, aligned) in [(2, false), (3, true)] {
        let spec = RoiSpec { resolution, sampling_ratio: 2, aligned };
        compare(&|t: &[Tensor]| roi_align(&network, t, &rois, spec), &levels, 0.5, 1e-4);
        let both = |t: &[Tensor]| roi_align(&network, t, &rois, spec)?.broadcast_add(&t[0].sum_all()?);
        compare(&both, &levels, 0.5, 1e-4);
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let x = values(1, &[1, 3, 4, 4]);
    assert!(conv2d(&x, &values(2, &[2, 2, 3, 3]), None, PLAIN).is_err());
    assert!(conv2d(&x, &values(2, &[2, 3, 7, 7]), None, PLAIN).is_err());
    assert!(conv2d(&x, &values(2, &[2, 3, 3, 3]), Some(&values(3, &[3])), PLAIN).is_err());
    assert!(conv_transpose2d(&x, &values(2, &[2, 3, 4, 4]), None, PLAIN).is_err());
    assert!(linear(&values(1, &[2, 3]), &values(2, &[4, 2]), &values(3, &[4]), false).is_err());
    assert!(add_relu(&x, &values(1, &[1, 3, 4, 5])).is_err());
    assert!(scale_rows(&x, &values(1, &[3])).is_err());
    assert!(max_pool2d(&x, 9, 2, 1).is_err());
    let levels = [x.to_dtype(DType::F32).unwrap(), x.to_dtype(DType::F32).unwrap()];
    let spec = RoiSpec { resolution: 2, sampling_ratio: 2, aligned: false };
    assert!(roi_align(&pyramid(), &levels, &[(1, Rect::new(0.0, 0.0, 4.0, 4.0))], spec).is_err());
    assert!(roi_align(&pyramid(), &levels[..1], &[], spec).is_err());
}

/// The forward passes against candle's own, which are right.
#[test]
fn forward_agrees_with_candle() {
    let close = |a: Tensor, b: Tensor| {
        let worst = a.sub(&b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f64>().unwrap();
        assert!(worst < 1e-10, "{worst}");
    };
    let x = values(1, &[3, 8, 33, 31]);
    let w = values(2, &[12, 4, 3, 3]);
    for stride in [1, 2] {
        let spec = ConvSpec { stride, groups: 2, ..PLAIN };
        close(conv2d(&x, &w, None, spec).unwrap(), x.conv2d(&w, 1, stride, 1, 2).unwrap());
    }
    let d = values(2, &[8, 5, 4, 4]);
    let spec = ConvSpec { stride: 2, ..PLAIN };
    close(conv_transpose2d(&x, &d, None, spec).unwrap(), x.conv_transpose2d(&d, 1, 0, 2, 1).unwrap());
    close(upsample_nearest2(&x).unwrap(), x.upsample_nearest2d(66, 62).unwrap());
    close(upsample_bilinear2(&x).unwrap(), x.upsample_bilinear2d(66, 62, false).unwrap());
    close(max_pool2d(&x, 2, 2, 0).unwrap(), x.max_pool2d_with_stride(2, 2).unwrap());
}
