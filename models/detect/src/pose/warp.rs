//! The axis-aligned bilinear warp into a network's input.

use crate::frame::Frame;
use omnilabel_bundle::InputSpec;

/// Where an output pixel lies on one axis of the frame: two neighbouring pixels and their weights. What the weights lack of 1 is taken
/// from the colour around the frame.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tap {
    low: usize,
    high: usize,
    weights: [f32; 2],
}

impl Tap {
    /// Outside of the frame.
    pub const OUTSIDE: Self = Self { low: 0, high: 0, weights: [0.0; 2] };

    /// At pixel index `at` of an axis of `pixels` pixels, beyond which the surroundings begin at once (OpenCV's `BORDER_CONSTANT`).
    pub fn constant_border(at: f64, pixels: u32) -> Self {
        let cell = at.floor();
        let fraction = (at - cell) as f32;
        let inside = |i: f64| i >= 0.0 && i < f64::from(pixels);
        let index = |i: f64| if inside(i) { i as usize } else { 0 };
        let weight = |i: f64, weight: f32| if inside(i) { weight } else { 0.0 };
        Self { low: index(cell), high: index(cell + 1.0), weights: [weight(cell, 1.0 - fraction), weight(cell + 1.0, fraction)] }
    }

    /// At pixel index `at`, beyond the frame's edge the edge's own pixel (OpenCV's `resize`).
    pub fn clamped(at: f64, pixels: u32) -> Self {
        Self::constant_border(at.clamp(0.0, f64::from(pixels.max(1) - 1)), pixels)
    }
}

/// The input `[3, rows, columns]`: the frame at `rows` and `columns`, normalised, `fill` around it.
pub fn warp(frame: &Frame, input: &InputSpec, rows: &[Tap], columns: &[Tap], fill: u8) -> Vec<f32> {
    let stride = 3 * frame.size.width as usize;
    let plane = rows.len() * columns.len();
    let mut data = vec![0.0; 3 * plane];
    let fill = f32::from(fill);
    for channel in 0..3 {
        let colour = input.channels.rgb_index(channel);
        let (gain, bias) = (1.0 / (255.0 * input.std[channel]), input.mean[channel] / input.std[channel]);
        let out = data[channel * plane..][..plane].chunks_exact_mut(columns.len().max(1));
        for (out, row) in out.zip(rows) {
            let (above, below) = (&frame.rgb[row.low * stride..][..stride], &frame.rgb[row.high * stride..][..stride]);
            let height = row.weights[0] + row.weights[1];
            for (value, column) in out.iter_mut().zip(columns) {
                let mix = |line: &[u8]| {
                    let at = |x: usize| f32::from(line[3 * x + colour]);
                    at(column.low) * column.weights[0] + at(column.high) * column.weights[1]
                };
                let inside = height * (column.weights[0] + column.weights[1]);
                let seen = mix(above) * row.weights[0] + mix(below) * row.weights[1] + fill * (1.0 - inside);
                *value = seen * gain - bias;
            }
        }
    }
    data
}
