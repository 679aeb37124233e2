//! From light to pixels: exposure, cast, a lamp's fall-off, blur and sensor noise.

use crate::look::Look;
use crate::random::Random;

/// `picture` is `[height, width, 3]`; returns 8-bit RGB.
pub(crate) fn expose(mut picture: Vec<f32>, width: usize, height: usize, look: &Look, random: &mut Random) -> Vec<u8> {
    let gain = random.range(look.gain.0, look.gain.1);
    let strength = random.range(0.0, 1.0);
    let warm = random.normal(0.0, 0.04);
    let cast: [f32; 3] = std::array::from_fn(|c| 1.0 + (look.cast[c] - 1.0) * strength + [warm, 0.0, -warm][c]);
    let angle = random.range(0.0, std::f32::consts::TAU);
    let slope = random.range(0.0, 0.35);
    let vignette = random.range(0.0, 0.3);
    let (dx, dy) = (angle.cos() * slope, angle.sin() * slope);
    for (index, pixel) in picture.chunks_exact_mut(3).enumerate() {
        let u = (index % width) as f32 / width as f32 - 0.5;
        let v = (index / width) as f32 / height as f32 - 0.5;
        let light = gain * (1.0 + dx * u + dy * v) * (1.0 - vignette * (u * u + v * v));
        for (value, cast) in pixel.iter_mut().zip(cast) {
            *value *= light * cast;
        }
    }
    blur(&mut picture, width, height, random.range(look.blur.0, look.blur.1));
    let noise = random.range(look.noise.0, look.noise.1);
    let mut state = random.bits() | 1;
    // xorshift32; two uniforms give a triangular density, close enough to a sensor's for a picture.
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / 16_777_216.0
    };
    let spread = noise * 6.0_f32.sqrt();
    picture.iter().map(|value| ((value + (uniform() - uniform()) * spread) * 255.0).round().clamp(0.0, 255.0) as u8).collect()
}

/// A Gaussian of `sigma` px with five taps, along rows and then columns.
fn blur(picture: &mut [f32], width: usize, height: usize, sigma: f32) {
    if sigma < 0.05 {
        return;
    }
    let tap = |d: f32| (-d * d / (2.0 * sigma * sigma)).exp();
    let (one, two) = (tap(1.0), tap(2.0));
    let total = 1.0 + 2.0 * (one + two);
    let kernel = [two / total, one / total, 1.0 / total, one / total, two / total];
    let mut line = vec![0.0; width.max(height)];
    for channel in 0..3 {
        for row in 0..height {
            smooth(picture, (row * width) * 3 + channel, 3, &mut line[..width], kernel);
        }
        for column in 0..width {
            smooth(picture, column * 3 + channel, width * 3, &mut line[..height], kernel);
        }
    }
}

fn smooth(picture: &mut [f32], start: usize, step: usize, line: &mut [f32], kernel: [f32; 5]) {
    for (i, value) in line.iter_mut().enumerate() {
        *value = picture[start + i * step];
    }
    let last = line.len() - 1;
    for i in 0..line.len() {
        let near = |offset: usize| line[(i + offset).saturating_sub(2).min(last)];
        picture[start + i * step] = (0..5).map(|k| kernel[k] * near(k)).sum();
    }
}
