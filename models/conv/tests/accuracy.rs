//! How much accuracy Winograd's filtering costs in f32, against the definition in f64.

use omnilabel_conv::{Finish, Geometry, Threads, forward};

/// Root mean square of the error, relative to that of the outputs, for 256 channels of rectified normal noise. The definition itself,
/// summed in f32, gives 6e-7; the usual interpolation at 0, ±1, ±2 gives 3e-6.
const RMS: f64 = 2e-6;

#[test]
fn filtering_stays_near_the_definition() {
    let g = Geometry::new([1, 256, 16, 16], [16, 256, 3, 3], 1, 1, 1).expect("a convolution that fits");
    let mut state = 1u64;
    let mut normal = move || {
        // The sum of twelve uniform numbers.
        (0..12)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 11) as f64 / (1u64 << 53) as f64
            })
            .sum::<f64>()
            - 6.0
    };
    let x: Vec<f32> = (0..g.input_len()).map(|_| normal().max(0.0) as f32).collect();
    let w: Vec<f32> = (0..g.o * g.c * 9).map(|_| (normal() * (2.0 / (9.0 * 256.0f64)).sqrt()) as f32).collect();
    let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
    let found = forward(&g, &x, &w, Finish::default(), Threads::All);
    let expected = forward(&g, &wide(&x), &wide(&w), Finish::default(), Threads::All);
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let error = square(&mut found.iter().zip(&expected).map(|(f, e)| f64::from(*f) - e));
    let rms = (error / square(&mut expected.iter().copied())).sqrt();
    assert!(rms < RMS && rms > 1e-8, "{rms}");
}
