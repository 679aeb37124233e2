//! The operations of a GPU against those of the CPU, forward and backward, without a GPU: the kernels run as C++, and products are this
//! workspace's own. Shapes are odd, groups and strides too; memory that is given out holds NaN until it is written.

use super::*;
use crate::ops::{self as on_cpu, roi};
use crate::optim::{Optim, Optimizer};
use candle_core::{CustomOp1, Device as CandleDevice, Tensor, Var};
use omnilabel_bundle::{AnchorRule, LevelSpec, NetworkSpec, RoiSpec, RpnSpec};
use omnilabel_conv::{Finish, Threads, backward, forward};
use omnilabel_gpu_shim::Shim;
use omnilabel_keypoints::geometry::Rect;

/// f32 sums of up to some hundred terms around 1 in another order, relative to the larger of 1 and the value.
const SUM_TOLERANCE: f32 = 2e-5;

/// The CPU as a GPU.
struct Cpp;

fn array(values: &[f32]) -> On<Cpp> {
    Array::from_slice(&Shim, values).unwrap()
}

fn host(values: &On<Cpp>) -> Vec<f32> {
    values.to_vec(&Shim).unwrap()
}

impl Engine for Cpp {
    type Device = Shim;

    fn device(&self) -> &Shim {
        &Shim
    }

    fn empty(&self, len: usize) -> Result<On<Self>> {
        Ok(array(&vec![f32::NAN; len]))
    }

    fn zeros(&self, len: usize) -> Result<On<Self>> {
        Ok(array(&vec![0.0; len]))
    }

    fn convolve(&self, g: &Geometry, _: Arithmetic, x: &On<Self>, w: &On<Self>) -> Result<On<Self>> {
        Ok(array(&forward::<f32>(g, &host(x), &host(w), Finish::default(), Threads::All)))
    }

    fn input_gradient(&self, g: &Geometry, _: Arithmetic, w: &On<Self>, dy: &On<Self>) -> Result<On<Self>> {
        let wanted = Wanted { input: true, weight: false, bias: false };
        Ok(array(&backward::<f32>(g, &[], &host(w), &host(dy), wanted).0))
    }

    fn weight_gradient(&self, g: &Geometry, _: Arithmetic, x: &On<Self>, dy: &On<Self>) -> Result<On<Self>> {
        let wanted = Wanted { input: false, weight: true, bias: false };
        Ok(array(&backward::<f32>(g, &host(x), &[], &host(dy), wanted).1))
    }

    fn product(&self, size: Product, _: Arithmetic, a: &On<Self>, b: &On<Self>) -> Result<On<Self>> {
        let (a, b) = (host(a), host(b));
        let at = |row: usize, inner: usize| if size.a_transposed { a[inner * size.m + row] } else { a[row * size.k + inner] };
        let bt = |inner: usize, column: usize| if size.b_transposed { b[column * size.k + inner] } else { b[inner * size.n + column] };
        let cell = |i: usize| (0..size.k).map(|inner| at(i / size.n, inner) * bt(inner, i % size.n)).sum();
        Ok(array(&(0..size.m * size.n).map(cell).collect::<Vec<f32>>()))
    }
}

fn values(seed: usize, shape: &[usize]) -> Tensor {
    let len: usize = shape.iter().product();
    let data: Vec<f32> = (0..len).map(|i| (((i * 131 + seed * 977 + 7) % 65_521) as f32 * 12.9898).sin() * 1.5).collect();
    Tensor::from_vec(data, shape, &CandleDevice::Cpu).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn on(tensor: &Tensor) -> On<Cpp> {
    array(&flat(tensor))
}

fn close(found: &On<Cpp>, expected: &Tensor, what: &str) {
    let (found, expected) = (host(found), flat(expected));
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
        assert!((a - b).abs() <= SUM_TOLERANCE * b.abs().max(1.0), "{what}, element {i}: {a}, expected {b}");
    }
}

/// Output of `f`, a gradient of it, and the gradients of the inputs, on the CPU.
fn reference(f: impl Fn(&[Tensor]) -> Result<Tensor>, inputs: &[Tensor]) -> (Tensor, Tensor, Vec<Tensor>) {
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = f(&tensors).unwrap();
    let grad = values(99, y.dims());
    let grads = y.mul(&grad).unwrap().sum_all().unwrap().backward().unwrap();
    (y.detach(), grad, tensors.iter().map(|t| grads.get(t).unwrap().clone()).collect())
}

const ALL: Wanted = Wanted { input: true, weight: true, bias: true };

fn check_three(
    inputs: &[Tensor; 3],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
    fwd: impl Fn([&On<Cpp>; 3]) -> Result<On<Cpp>>,
    bwd: impl Fn([&On<Cpp>; 4], Wanted) -> Result<Gradients<Cpp>>,
) {
    let (y, grad, expected) = reference(f, inputs);
    let [x, w, b] = [0, 1, 2].map(|i| on(&inputs[i]));
    let found = fwd([&x, &w, &b]).unwrap();
    close(&found, &y, "output");
    let grad = on(&grad);
    let gradients = bwd([&x, &w, &found, &grad], ALL).unwrap();
    for (i, (found, expected)) in gradients.into_iter().zip(&expected).enumerate() {
        close(&found.unwrap(), expected, ["input", "weight", "bias"][i]);
    }
    let none = bwd([&x, &w, &found, &grad], Wanted { input: false, weight: false, bias: true }).unwrap();
    assert!(none[0].is_none() && none[1].is_none() && none[2].is_some());
}

#[test]
fn convolutions() {
    for relu in [false, true] {
        for (x, w, stride, padding, groups) in [
            ([2, 3, 7, 5], [4, 3, 3, 3], 1, 1, 1),
            ([1, 4, 9, 6], [6, 2, 3, 3], 2, 1, 2),
            ([3, 4, 5, 3], [4, 1, 3, 3], 1, 1, 4),
            ([2, 3, 5, 5], [7, 3, 1, 1], 2, 0, 1),
            ([1, 2, 8, 9], [3, 2, 7, 7], 2, 3, 1),
            ([1, 1, 1, 1], [1, 1, 1, 1], 1, 0, 1),
        ] {
            let spec = ConvSpec { stride, groups, relu, ..ConvSpec::padded(padding) };
            let inputs = [values(1, &x), values(2, &w), values(3, &w[..1])];
            let g = crate::ops::conv::geometry(&x, &w, spec).unwrap();
            check_three(
                &inputs,
                |t| on_cpu::conv2d(&t[0], &t[1], Some(&t[2]), spec),
                |operands| conv(&Cpp, spec, &g, operands),
                |operands, wanted| conv_backward(&Cpp, spec, &g, operands, wanted),
            );
        }
    }
}

#[test]
fn transposed_convolutions() {
    for relu in [false, true] {
        for (x, w, stride, padding) in
            [([2, 3, 4, 5], [3, 2, 4, 4], 2, 1), ([1, 2, 3, 1], [2, 5, 3, 3], 1, 1), ([1, 1, 2, 2], [1, 1, 2, 2], 2, 0)]
        {
            let spec = ConvSpec { stride, relu, ..ConvSpec::padded(padding) };
            let inputs = [values(4, &x), values(5, &w), values(6, &w[1..2])];
            let g = crate::ops::conv::transposed(&x, &w, spec).unwrap();
            check_three(
                &inputs,
                |t| on_cpu::conv_transpose2d(&t[0], &t[1], Some(&t[2]), spec),
                |operands| conv_transpose(&Cpp, spec, &g, operands),
                |operands, wanted| conv_transpose_backward(&Cpp, spec, &g, operands, wanted),
            );
        }
    }
}

#[test]
fn fully_connected_layers() {
    for relu in [false, true] {
        for (r, i, o) in [(5, 7, 3), (1, 1, 1), (300, 2, 9), (0, 4, 3)] {
            let d = Dense { r, i, o, relu, arithmetic: Arithmetic::F32 };
            let inputs = [values(7, &[r, i]), values(8, &[o, i]), values(9, &[o])];
            check_three(
                &inputs,
                |t| on_cpu::linear(&t[0], &t[1], &t[2], relu),
                |operands| dense(&Cpp, d, operands),
                |operands, wanted| dense_backward(&Cpp, d, operands, wanted),
            );
        }
    }
}

#[test]
fn sums_and_scaled_rows() {
    let (a, b) = (values(10, &[2, 3, 5, 7]), values(11, &[2, 3, 5, 7]));
    let (y, grad, expected) = reference(|t| on_cpu::add_relu(&t[0], &t[1]), &[a.clone(), b.clone()]);
    let found = add_relu(&Cpp, &on(&a), &on(&b)).unwrap();
    close(&found, &y, "sum");
    let masked = add_relu_backward(&Cpp, &found, &on(&grad)).unwrap();
    expected.iter().for_each(|expected| close(&masked, expected, "gradient of a sum"));
    for shape in [&[5, 2, 3, 3][..], &[300, 1], &[1, 700]] {
        let (x, s) = (values(12, shape), values(13, &shape[..1]));
        let (y, grad, expected) = reference(|t| on_cpu::scale_rows(&t[0], &t[1]), &[x.clone(), s.clone()]);
        let (x, s, grad) = (on(&x), on(&s), on(&grad));
        close(&scale_rows(&Cpp, &x, &s).unwrap(), &y, "scaled rows");
        let [dx, ds] = scale_rows_backward(&Cpp, [&x, &s, &grad], [true, true]).unwrap();
        close(&dx.unwrap(), &expected[0], "gradient of rows");
        close(&ds.unwrap(), &expected[1], "gradient of the scale");
        assert!(scale_rows_backward(&Cpp, [&x, &s, &grad], [false, false]).unwrap().iter().all(Option::is_none));
    }
}

fn check_unary(op: &(impl Unary + CustomOp1), x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) {
    let (y, grad, expected) = reference(|t| f(&t[0]), std::slice::from_ref(x));
    assert_eq!(op.out_dims(x.dims()), y.dims(), "{}", op.name());
    close(&op.forward_on(&Cpp, &on(x), x.dims()).unwrap(), &y, op.name());
    close(&op.backward_on(&Cpp, &on(x), &on(&grad), x.dims()).unwrap(), &expected[0], op.name());
}

#[test]
fn pooling_and_doubling() {
    for shape in [[2, 3, 7, 6], [1, 1, 1, 1], [1, 2, 2, 9], [3, 1, 5, 1]] {
        let x = values(14, &shape);
        // Equal values: a tie's gradient goes to the first.
        for x in [x.clone(), x.round().unwrap()] {
            for (kernel, stride, padding) in [(3, 2, 1), (2, 2, 1), (3, 1, 1), (1, 1, 0)] {
                if shape[2].min(shape[3]) + 2 * padding >= kernel {
                    let op = MaxPool { kernel, stride, padding };
                    check_unary(&op, &x, |x| on_cpu::max_pool2d(x, kernel, stride, padding));
                }
            }
            check_unary(&MaxPool { kernel: 1, stride: 2, padding: 0 }, &x, on_cpu::subsample2);
        }
        check_unary(&Nearest, &x, on_cpu::upsample_nearest2);
        check_unary(&Bilinear, &x, on_cpu::upsample_bilinear2);
    }
}

fn network() -> NetworkSpec {
    let roi = |resolution| RoiSpec { resolution, sampling_ratio: 2, aligned: false };
    NetworkSpec {
        levels: [4, 8, 16].map(|stride| LevelSpec { stride, anchor_size: 4.0 * stride as f32 }).to_vec(),
        roi_levels: 2,
        canonical_size: 40.0,
        canonical_level: 1,
        aspect_ratios: vec![1.0],
        anchor_rule: AnchorRule::Exact,
        stride_in_1x1: false,
        rpn: RpnSpec { pre_nms_top_n: 1, post_nms_top_n: 1, nms_iou: 0.7, min_size: 1.0, score_threshold: 0.0 },
        box_roi: roi(7),
        keypoint_roi: roi(14),
        box_coder: [1.0; 4],
        score_threshold: 0.3,
        nms_iou: 0.5,
        max_detections: 1,
        heatmap_side: 14,
    }
}

#[test]
fn rois_of_a_batch() {
    let network = network();
    let levels = [[3, 2, 9, 13], [3, 2, 5, 7], [3, 2, 3, 4]].map(|shape| values(15 + shape[2], &shape));
    // In no order of images, none of the second; overlapping, out of the picture, without a size.
    let rois: Vec<(usize, Rect)> = (0..23)
        .map(|i| {
            let at = |step: usize, most: usize| ((i * step) % most) as f32 * 1.37 - 6.0;
            let (x, y) = (at(7, 31), at(11, 23));
            (if i % 3 == 0 { 2 } else { 0 }, Rect::new(x, y, x + at(5, 37) + 6.0, y + at(13, 29) + 6.0))
        })
        .chain([(2, Rect::new(-60.0, -40.0, 110.0, 80.0)), (0, Rect::default())])
        .collect();
    for (resolution, sampling_ratio, aligned) in [(3, 2, false), (7, 0, false), (2, 3, true), (5, 1, true)] {
        let spec = RoiSpec { resolution, sampling_ratio, aligned };
        let (maps, op) = roi::prepared(&network, &levels, &rois, spec).unwrap();
        let (y, grad, expected) =
            reference(|t| t[0].apply_op1(roi::prepared(&network, &levels, &rois, spec)?.1), std::slice::from_ref(&maps));
        close(&op.forward_on(&Cpp, &on(&maps)).unwrap(), &y, "pooled");
        close(&op.backward_on(&Cpp, &on(&grad), maps.elem_count()).unwrap(), &expected[0], "maps");
    }
    let (maps, op) = roi::prepared(&network, &levels, &[], network.box_roi).unwrap();
    assert!(op.forward_on(&Cpp, &on(&maps)).unwrap().is_empty());
    assert_eq!(host(&op.backward_on(&Cpp, &array(&[]), maps.elem_count()).unwrap()), vec![0.0; maps.elem_count()]);
}

#[test]
fn optimisers() {
    let count = ops::SQUARES + 777;
    for kind in [Optimizer::Sgd, Optimizer::AdamW] {
        let (rate, decay, clip) = (0.03, 0.1, 5.0);
        let var = Var::from_tensor(&values(20, &[1, count])).unwrap();
        let mut optim = Optim::new(kind, decay, Some(clip), vec![("w".to_owned(), var.clone())]).unwrap();
        let (weights, moments) = (on(&var), [0, 1].map(|_| array(&vec![0.0; count])));
        for step in 0..3 {
            let gradient = values(21 + step as usize, &[1, count]);
            let grads = var.as_tensor().mul(&gradient).unwrap().sum_all().unwrap().backward().unwrap();
            let expected_norm = optim.step(&[grads.get(var.as_tensor()).cloned()], rate, step).unwrap();
            let gradient = on(&gradient);
            let sums = Cpp.empty(count.div_ceil(ops::SQUARES)).unwrap();
            ops::square_sums(&Shim, &gradient, &sums).unwrap();
            let norm = host(&sums).into_iter().map(f64::from).sum::<f64>().sqrt();
            assert!((norm - expected_norm).abs() < 1e-5 * expected_norm, "{norm}, expected {expected_norm}");
            let scale = (clip / norm) as f32;
            match kind {
                Optimizer::Sgd => ops::sgd(&Shim, &weights, &moments[0], &gradient, [rate as f32, decay as f32, scale]).unwrap(),
                Optimizer::AdamW => {
                    let t = step as i32 + 1;
                    let shrink = (1.0 - rate * decay) as f32;
                    let corrected = (rate / (1.0 - 0.9f64.powi(t))) as f32;
                    let root = (1.0 / (1.0 - 0.999f64.powi(t)).sqrt()) as f32;
                    let [first, second] = &moments;
                    ops::adamw(&Shim, &weights, [first, second], &gradient, [scale, shrink, corrected, root]).unwrap();
                }
            }
            close(&weights, &var, "weights");
        }
    }
}

#[test]
fn bfloat16_is_rounded_to_nearest() {
    let values: Vec<f32> = (0..200_003u32).map(|i| f32::from_bits(i.wrapping_mul(21_474_836).wrapping_add(i % 7))).collect();
    let rounded = Array::<Shim, u16>::zeros(&Shim, values.len()).unwrap();
    ops::to_bf16(&Shim, &array(&values), &rounded).unwrap();
    let widened = Cpp.empty(values.len()).unwrap();
    ops::from_bf16(&Shim, &rounded, &widened).unwrap();
    for ((bits, wide), v) in rounded.to_vec(&Shim).unwrap().into_iter().zip(host(&widened)).zip(values) {
        let expected = half::bf16::from_f32(v);
        assert_eq!(bits, expected.to_bits(), "{v}");
        assert_eq!(wide.to_bits(), expected.to_f32().to_bits(), "{v}");
    }
}

#[test]
fn operands_of_another_length_are_refused() {
    let short = array(&[0.0; 5]);
    let refused = |result: Result<()>, kernel: &str| assert!(result.unwrap_err().to_string().contains(kernel));
    refused(add_relu(&Cpp, &short, &array(&[0.0; 4])).map(drop), "add_relu");
    refused(scale_rows(&Cpp, &short, &array(&[0.0; 4])).map(drop), "scale_rows");
    refused(Bilinear.backward_on(&Cpp, &short, &short, &[1, 1, 2, 2]).map(drop), "double_bilinear_backward");
    refused(MaxPool { kernel: 3, stride: 2, padding: 1 }.backward_on(&Cpp, &short, &short, &[1, 1, 2, 2]).map(drop), "max_pool_backward");
}
