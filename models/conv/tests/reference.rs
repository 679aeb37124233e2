//! Every way of computing a convolution against its definition, in f64, where ways differ by rounding alone.

use omnilabel_conv::{Addend, Finish, Geometry, Kernels, Threads, Wanted, backward, dense, dense_backward, forward, forward_into};
use proptest::prelude::*;

/// Relative to the largest value; f64 rounding through at most some thousand terms and Winograd's transforms.
const TOLERANCE: f64 = 1e-11;

/// The same in f32: sums of up to 5,400 products, and Winograd's transforms; four times the 2.3e-6 that were seen.
const TOLERANCE_F32: f64 = 1e-5;

fn noise(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    };
    (0..len).map(|_| next()).collect()
}

fn assert_close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst <= TOLERANCE * largest, "{what}: off by {worst} of {largest}");
}

/// Calls `visit(output, input, weight)` with the indices of every product of the definition.
fn products(g: &Geometry, mut visit: impl FnMut(usize, usize, usize)) {
    let (inner, channels) = (g.c / g.groups, g.o / g.groups);
    for image in 0..g.n {
        for o in 0..g.o {
            for (oy, ox) in (0..g.oh).flat_map(|oy| (0..g.ow).map(move |ox| (oy, ox))) {
                for c in 0..inner {
                    for (ky, kx) in (0..g.kh).flat_map(|ky| (0..g.kw).map(move |kx| (ky, kx))) {
                        let (y, x) = (oy * g.stride + ky, ox * g.stride + kx);
                        if y >= g.padding && x >= g.padding && y - g.padding < g.h && x - g.padding < g.w {
                            let channel = o / channels * inner + c;
                            visit(
                                ((image * g.o + o) * g.oh + oy) * g.ow + ox,
                                ((image * g.c + channel) * g.h + y - g.padding) * g.w + x - g.padding,
                                ((o * inner + c) * g.kh + ky) * g.kw + kx,
                            );
                        }
                    }
                }
            }
        }
    }
}

fn check(g: Geometry, seed: u64) {
    let x = noise(g.n * g.input_len(), seed);
    let w = noise(g.o * g.c / g.groups * g.kh * g.kw, seed + 1);
    let (bias, add) = (noise(g.o, seed + 2), noise(g.n * g.output_len(), seed + 3));
    let mut sums = vec![0.0; g.n * g.output_len()];
    products(&g, |y, i, k| sums[y] += x[i] * w[k]);
    for threads in [Threads::One, Threads::All] {
        assert_close(&format!("{g:?}"), &forward(&g, &x, &w, Finish::default(), threads), &sums);
    }
    let plane = (g.oh * g.ow).max(1);
    let finished: Vec<f64> = sums.iter().enumerate().map(|(i, s)| (s + bias[i / plane % g.o] + add[i]).max(0.0)).collect();
    let finish = Finish { bias: Some(&bias), add: Addend::Map(&add), relu: true };
    assert_close(&format!("finished {g:?}"), &forward(&g, &x, &w, finish, Threads::All), &finished);
    // With kernels kept, and over what lay in the output before.
    let kernels = Kernels::new(&g, &w);
    let mut y = vec![1e9; finished.len()];
    forward_into(&g, &x, &w, kernels.as_ref(), finish, &mut y, Threads::All);
    assert_close(&format!("kept {g:?}"), &y, &finished);
    // Onto the addend itself, to the bit.
    let mut onto = add.clone();
    forward_into(&g, &x, &w, kernels.as_ref(), Finish { add: Addend::Output, ..finish }, &mut onto, Threads::One);
    assert_eq!(onto, y, "onto the addend: {g:?}");
    let dy = noise(g.n * g.output_len(), seed + 4);
    let (mut dx, mut dw, mut db) = (vec![0.0; x.len()], vec![0.0; w.len()], vec![0.0; g.o]);
    products(&g, |y, i, k| {
        dx[i] += dy[y] * w[k];
        dw[k] += dy[y] * x[i];
    });
    dy.iter().enumerate().for_each(|(i, v)| db[i / plane % g.o] += v);
    let found = backward(&g, &x, &w, &dy, Wanted { input: true, weight: true, bias: true });
    assert_close(&format!("input gradient of {g:?}"), &found.0, &dx);
    assert_close(&format!("weight gradient of {g:?}"), &found.1, &dw);
    assert_close(&format!("bias gradient of {g:?}"), &found.2, &db);
}

/// The same way in f32, whose tiles are others, against f64, with kernels kept and without.
fn check_f32(g: &Geometry, seed: u64) {
    let f32s = |len, seed| noise(len, seed).into_iter().map(|v| v as f32).collect::<Vec<_>>();
    let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
    let (x, w) = (f32s(g.n * g.input_len(), seed), f32s(g.o * g.c / g.groups * g.kh * g.kw, seed + 1));
    let (bias, add) = (f32s(g.o, seed + 2), f32s(g.n * g.output_len(), seed + 3));
    let (wide_bias, wide_add) = (wide(&bias), wide(&add));
    let expected = Finish { bias: Some(&wide_bias), add: Addend::Map(&wide_add), relu: true };
    let expected = forward(g, &wide(&x), &wide(&w), expected, Threads::All);
    let largest = expected.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    for kernels in [None, Kernels::new(g, &w)] {
        let finish = Finish { bias: Some(&bias), add: Addend::Map(&add), relu: true };
        let mut y = vec![1e9; add.len()];
        forward_into(g, &x, &w, kernels.as_ref(), finish, &mut y, Threads::All);
        let worst = y.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);

        assert!(worst <= TOLERANCE_F32 * largest, "f32 {g:?}: off by {worst} of {largest}");
    }
    let dy = f32s(g.n * g.output_len(), seed + 4);
    let wanted = Wanted { input: true, weight: true, bias: true };
    let found = backward(g, &x, &w, &dy, wanted);
    let expected = backward(g, &wide(&x), &wide(&w), &wide(&dy), wanted);
    for (what, found, expected) in [("input", &found.0, &expected.0), ("weight", &found.1, &expected.1), ("bias", &found.2, &expected.2)] {
        let largest = expected.iter().fold(1.0f64, |m, v| m.max(v.abs()));
        let worst = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(worst <= TOLERANCE_F32 * largest, "f32 {what} gradient of {g:?}: off by {worst} of {largest}");
    }
}

fn geometry(x: [usize; 4], o: usize, kernel: usize, stride: usize, padding: usize, groups: usize) -> Geometry {
    Geometry::new(x, [o, x[1] / groups, kernel, kernel], stride, padding, groups).expect("a convolution that fits")
}

#[test]
fn every_way_agrees_with_the_definition() {
    for (x, o, kernel, stride, padding, groups) in [
        // Winograd: whole tiles, cut tiles, several images in a block, other paddings, more than a block.
        ([1, 16, 8, 8], 16, 3, 1, 1, 1),
        ([2, 17, 13, 9], 19, 3, 1, 1, 1),
        ([5, 16, 6, 7], 32, 3, 1, 0, 1),
        ([3, 20, 14, 14], 16, 3, 1, 2, 1),
        ([1, 16, 40, 70], 24, 3, 1, 1, 1),
        ([1, 520, 8, 8], 16, 3, 1, 1, 1),
        // Patches: strides, a large kernel, few channels, whole planes of several images.
        ([2, 3, 21, 18], 16, 7, 2, 3, 1),
        ([2, 8, 10, 12], 5, 3, 2, 1, 1),
        ([9, 12, 4, 4], 20, 3, 2, 1, 1),
        ([6, 600, 4, 4], 18, 3, 2, 1, 1),
        ([2, 6, 9, 9], 7, 3, 1, 1, 1),
        ([1, 4, 5, 6], 3, 2, 2, 0, 1),
        // The input is the patch matrix, with one block and with several.
        ([2, 24, 10, 10], 40, 1, 1, 0, 1),
        ([1, 300, 23, 31], 18, 1, 1, 0, 1),
        ([9, 24, 4, 4], 20, 1, 1, 0, 1),
        ([2, 12, 9, 8], 10, 1, 2, 0, 1),
        // Groups.
        ([2, 16, 9, 11], 16, 3, 1, 1, 4),
        ([1, 24, 12, 10], 36, 3, 2, 1, 6),
        ([2, 8, 9, 40], 24, 5, 3, 2, 2),
        ([1, 128, 6, 6], 160, 3, 1, 1, 2),
        ([2, 6, 7, 7], 6, 1, 1, 0, 3),
        // Of one and two channels: their vectors of positions reach past the last one.
        ([3, 8, 9, 11], 8, 3, 1, 1, 8),
        ([2, 12, 24, 24], 12, 3, 1, 1, 6),
        ([2, 5, 10, 9], 10, 3, 2, 1, 5),
        ([1, 6, 8, 9], 3, 5, 1, 2, 3),
        ([2, 9, 3, 3], 9, 3, 1, 0, 9),
        // More rows than a block holds, and more images.
        ([1, 64, 40, 64], 64, 3, 1, 1, 2),
        ([9, 64, 14, 14], 64, 3, 1, 1, 2),
    ] {
        let g = geometry(x, o, kernel, stride, padding, groups);
        check(g, 7);
        check_f32(&g, 7);
    }
    // A row of a kernel.
    let g = Geometry::new([2, 6, 5, 30], [6, 2, 1, 5], 1, 2, 3).expect("a convolution that fits");
    check(g, 7);
    check_f32(&g, 7);
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let f32s = |len, seed| noise(len, seed).into_iter().map(|v| v as f32).collect::<Vec<_>>();
    let on = |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    for g in [
        geometry([2, 32, 30, 30], 48, 3, 1, 1, 1),
        geometry([2, 32, 30, 30], 48, 3, 2, 1, 1),
        geometry([1, 64, 28, 28], 64, 1, 1, 0, 1),
        geometry([2, 64, 28, 28], 64, 3, 1, 1, 16),
    ] {
        let (x, w) = (f32s(g.n * g.input_len(), 1), f32s(g.o * g.c / g.groups * g.kh * g.kw, 2));
        let dy = f32s(g.n * g.output_len(), 3);
        let wanted = Wanted { input: true, weight: true, bias: true };
        let both = || (forward(&g, &x, &w, Finish::default(), Threads::All), backward(&g, &x, &w, &dy, wanted));
        assert_eq!(on(1).install(both), on(3).install(both), "{g:?}");
    }
    let (r, i, o) = (64, 4096, 1024);
    let wanted = Wanted { input: true, weight: true, bias: true };
    let (x, w, dy) = (f32s(r * i, 4), f32s(o * i, 5), f32s(r * o, 6));
    let layer =
        || (dense((r, i, o), &x, &w, Finish::default(), Threads::All), dense_backward((r, i, o), &x, &w, &dy, wanted, Threads::All));
    assert_eq!(on(1).install(layer), on(3).install(layer));
}

#[test]
fn a_nan_is_seen() {
    let g = geometry([1, 16, 8, 8], 16, 3, 1, 1, 1);
    let mut x = vec![0.0f32; g.input_len()];
    x[17] = f32::NAN;
    let y = forward(&g, &x, &vec![1.0; 9 * 16 * 16], Finish { relu: true, ..Finish::default() }, Threads::All);
    assert!(y.iter().any(|v| v.is_nan()));
}

#[test]
fn a_fully_connected_layer_agrees_with_its_definition() {
    for (r, i, o) in [(1, 5, 3), (17, 40, 33), (64, 31, 2), (0, 4, 4)] {
        let (x, w, b, dy) = (noise(r * i, 1), noise(o * i, 2), noise(o, 3), noise(r * o, 4));
        let (mut y, mut dx, mut dw, mut db) = (vec![0.0; r * o], vec![0.0; r * i], vec![0.0; o * i], vec![0.0; o]);
        for row in 0..r {
            for out in 0..o {
                let sum: f64 = (0..i).map(|k| x[row * i + k] * w[out * i + k]).sum();
                y[row * o + out] = (sum + b[out]).max(0.0);
                db[out] += dy[row * o + out];
                for k in 0..i {
                    dx[row * i + k] += dy[row * o + out] * w[out * i + k];
                    dw[out * i + k] += dy[row * o + out] * x[row * i + k];
                }
            }
        }
        let finish = Finish { bias: Some(&b), relu: true, ..Finish::default() };
        assert_close("dense", &dense((r, i, o), &x, &w, finish, Threads::All), &y);
        let found = dense_backward((r, i, o), &x, &w, &dy, Wanted { input: true, weight: true, bias: true }, Threads::All);
        assert_close("input gradient", &found.0, &dx);
        assert_close("weight gradient", &found.1, &dw);
        assert_close("bias gradient", &found.2, &db);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_agrees_with_the_definition(
        n in 1usize..4, inner in 1usize..20, channels in 1usize..20, groups in 1usize..4, h in 1usize..16, w in 1usize..16,
        kernel in 1usize..5, stride in 1usize..4, padding in 0usize..4, seed in 1u64..1000,
    ) {
        if let Some(g) = Geometry::new([n, inner * groups, h, w], [channels * groups, inner, kernel, kernel], stride, padding, groups) {
            check(g, seed);
        }
    }
}

#[test]
fn kernels_are_kept_where_they_are_used_and_small() {
    let kept = |c: usize, o: usize, kernel: usize, stride: usize, groups: usize| {
        let g = Geometry::new([1, c, 8, 8], [o, c / groups, kernel, kernel], stride, 1, groups).unwrap();
        Kernels::new(&g, &vec![1.0f32; o * c / groups * kernel * kernel]).map(|kernels| kernels.bytes())
    };
    // Transformed, or in panels; output channels that fill panels on every CPU.
    assert_eq!(kept(32, 48, 3, 1, 1), Some(36 * 32 * 48 * 4));
    assert_eq!(
        [kept(32, 48, 1, 1, 1), kept(32, 48, 3, 2, 1), kept(8, 48, 3, 1, 1)],
        [32 * 48, 9 * 32 * 48, 9 * 8 * 48].map(|numbers| Some(4 * numbers))
    );
    assert_eq!([kept(32, 64, 3, 1, 2), kept(384, 384, 3, 1, 1), kept(2048, 2048, 1, 1, 1)], [None; 3]);
}

/// One file may use one weight twice.
#[test]
fn kernels_of_one_group_are_not_used_for_two() {
    let w = noise(40, 1);
    let kernels = Kernels::new(&Geometry::new([1, 4, 3, 3], [10, 4, 1, 1], 1, 0, 1).unwrap(), &w);
    let g = Geometry::new([1, 8, 3, 3], [10, 4, 1, 1], 1, 0, 2).unwrap();
    let x = noise(g.input_len(), 2);
    let mut y = vec![0.0; g.output_len()];
    forward_into(&g, &x, &w, kernels.as_ref(), Finish::default(), &mut y, Threads::One);
    assert_eq!(y, forward(&g, &x, &w, Finish::default(), Threads::One));
}
