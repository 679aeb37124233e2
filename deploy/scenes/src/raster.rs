//! The software rasteriser: painter's shapes for the background, z-buffered tapered capsules for people and what stands before them.
//!
//! Everything is drawn at [`SAMPLES`]× the picture's size and averaged down.

use crate::vec3::{Vec3, vec3};

/// Supersampling per axis.
pub(crate) const SAMPLES: u32 = 2;

/// Linear RGB, nominally 0 to 1.
pub(crate) type Colour = [f32; 3];

pub(crate) fn mix(a: Colour, b: Colour, t: f32) -> Colour {
    std::array::from_fn(|c| a[c] + (b[c] - a[c]) * t)
}

pub(crate) fn scaled(a: Colour, factor: f32) -> Colour {
    a.map(|v| v * factor)
}

/// A capsule whose radius goes linearly from end to end; all in picture pixels, z towards the camera.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capsule {
    pub(crate) ends: [Vec3; 2],
    pub(crate) radii: [f32; 2],
}

/// Where on a capsule a sample lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Surface {
    /// 0 at the first end, 1 at the second.
    pub(crate) along: f32,
    /// Unit normal in camera space, y up.
    pub(crate) normal: Vec3,
}

/// The owner of a sample that shows the background.
pub(crate) const BACKGROUND: u8 = 255;
/// The owner of a sample that shows an object.
pub(crate) const OBJECT: u8 = 254;

pub(crate) struct Raster {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) colour: Vec<Colour>,
    pub(crate) depth: Vec<f32>,
    pub(crate) owner: Vec<u8>,
    /// Bit p: person p covers the sample, seen or not.
    pub(crate) cover: Vec<u8>,
}

impl Raster {
    /// For a picture of `width` × `height` pixels.
    pub(crate) fn new(width: u32, height: u32) -> Self {
        let (width, height) = ((width * SAMPLES) as usize, (height * SAMPLES) as usize);
        let samples = width * height;
        Self {
            width,
            height,
            colour: vec![[0.0; 3]; samples],
            depth: vec![f32::NEG_INFINITY; samples],
            owner: vec![BACKGROUND; samples],
            cover: vec![0; samples],
        }
    }

    /// Columns or rows of samples that the interval `[low, high]` in pixels touches.
    fn span(low: f32, high: f32, count: usize) -> std::ops::Range<usize> {
        let scale = SAMPLES as f32;
        let first = (low * scale).floor().clamp(0.0, count as f32) as usize;
        let last = (high * scale).ceil().clamp(0.0, count as f32) as usize;
        first..last.max(first)
    }

    fn centre(index: usize) -> f32 {
        (index as f32 + 0.5) / SAMPLES as f32
    }

    /// Paints `colour(x, y, below)` over `[x1, x2] × [y1, y2]`; `None` leaves what is there.
    pub(crate) fn paint(&mut self, area: [f32; 4], mut colour: impl FnMut(f32, f32, Colour) -> Option<Colour>) {
        let [x1, y1, x2, y2] = area;
        for row in Self::span(y1, y2, self.height) {
            for column in Self::span(x1, x2, self.width) {
                let at = row * self.width + column;
                if let Some(new) = colour(Self::centre(column), Self::centre(row), self.colour[at]) {
                    self.colour[at] = new;
                }
            }
        }
    }

    /// Like [`Raster::paint`] with a depth: hides what lies behind.
    pub(crate) fn stand(&mut self, area: [f32; 4], depth: f32, mut colour: impl FnMut(f32, f32) -> Option<Colour>) {
        let [x1, y1, x2, y2] = area;
        for row in Self::span(y1, y2, self.height) {
            for column in Self::span(x1, x2, self.width) {
                let at = row * self.width + column;
                if self.depth[at] < depth
                    && let Some(new) = colour(Self::centre(column), Self::centre(row))
                {
                    self.colour[at] = new;
                    self.depth[at] = depth;
                    self.owner[at] = OBJECT;
                }
            }
        }
    }

    /// Draws a capsule of `owner`, a person's index or [`OBJECT`].
    pub(crate) fn capsule(&mut self, capsule: &Capsule, owner: u8, mut shade: impl FnMut(Surface) -> Colour) {
        let [a, b] = capsule.ends;
        let [ra, rb] = capsule.radii;
        let (dx, dy) = (b.x - a.x, b.y - a.y);
        let length2 = dx * dx + dy * dy;
        let reach = ra.max(rb);
        let rows = Self::span(a.y.min(b.y) - reach, a.y.max(b.y) + reach, self.height);
        let columns = Self::span(a.x.min(b.x) - reach, a.x.max(b.x) + reach, self.width);
        for row in rows {
            let y = Self::centre(row);
            for column in columns.clone() {
                let x = Self::centre(column);
                let along = if length2 > 1e-6 {
                    (((x - a.x) * dx + (y - a.y) * dy) / length2).clamp(0.0, 1.0)
                } else if b.z > a.z {
                    1.0
                } else {
                    0.0
                };
                let radius = ra + (rb - ra) * along;
                let (u, v) = ((x - a.x - dx * along) / radius, (y - a.y - dy * along) / radius);
                let away2 = u * u + v * v;
                if away2 >= 1.0 {
                    continue;
                }
                let at = row * self.width + column;
                if owner < 8 {
                    self.cover[at] |= 1 << owner;
                }
                let lift = (1.0 - away2).sqrt();
                let depth = a.z + (b.z - a.z) * along + radius * lift;
                if depth > self.depth[at] {
                    self.depth[at] = depth;
                    self.owner[at] = owner;
                    self.colour[at] = shade(Surface { along, normal: vec3(u, -v, lift) });
                }
            }
        }
    }

    /// The depth that is seen at a point of the picture, `None` outside.
    pub(crate) fn depth_at(&self, x: f32, y: f32) -> Option<f32> {
        let (column, row) = ((x * SAMPLES as f32).floor(), (y * SAMPLES as f32).floor());
        let inside = column >= 0.0 && row >= 0.0 && column < self.width as f32 && row < self.height as f32;
        inside.then(|| self.depth[row as usize * self.width + column as usize])
    }

    /// The mean over each pixel's samples, `[height, width, 3]`.
    pub(crate) fn resolve(&self) -> Vec<f32> {
        let n = SAMPLES as usize;
        let weight = 1.0 / (n * n) as f32;
        let mut picture = Vec::with_capacity(self.colour.len() / (n * n) * 3);
        for row in (0..self.height).step_by(n) {
            for column in (0..self.width).step_by(n) {
                let mut sum = [0.0; 3];
                for offset in 0..n * n {
                    let sample = self.colour[(row + offset / n) * self.width + column + offset % n];
                    for (s, v) in sum.iter_mut().zip(sample) {
                        *s += v;
                    }
                }
                picture.extend(sum.map(|s| s * weight));
            }
        }
        picture
    }
}
