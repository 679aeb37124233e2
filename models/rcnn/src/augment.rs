//! Training samples and their augmentation. Everything random comes from a generator seeded by (seed, step, index).
//!
//! Frame to network input is one inverse-affine bilinear warp; without augmentation it equals [`omnilabel_detect::frame::transform`].

use crate::RcnnError;
use crate::targets::{Purpose, SoftLabel, SoftTruth, Truth, generator};
use omnilabel_bundle::InputSpec;
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::{Point, Rect, Size};
use omnilabel_keypoints::view::{View, ViewGeometry};
use rand::Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One person to learn from, in frame pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Person {
    /// The box.
    pub rect: Rect,
    /// One per keypoint; `None` is v = 0.
    pub keypoints: Vec<Option<Point>>,
    /// What the labelled keypoints' heatmaps should say, where it is more than where they are.
    pub soft: Option<Arc<SoftLabel>>,
}

/// One image to learn from.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The picture.
    pub frame: Frame,
    /// The people.
    pub people: Vec<Person>,
    /// Regions that are neither positive nor background (crowds, instances just under τ).
    pub ignore: Vec<Rect>,
    /// Whether its labels are a teacher's.
    pub generated: bool,
}

/// What is done to a sample before a step. The canvas keeps its size; what leaves it is cut, what is uncovered is mean colour.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Mirror with probability ½.
    pub flip: bool,
    /// Scale factor drawn uniformly from `1 ± scale`.
    pub scale: f32,
    /// Rotation in degrees drawn uniformly from `± rotation`.
    pub rotation: f32,
    /// Shift on each axis drawn uniformly from `± shift` of the canvas' side.
    pub shift: f32,
    /// Brightness, contrast and colour gain drawn from `1 ± colour`.
    pub colour: f32,
    /// Joint cut-out (spec §7): the probability that a labelled keypoint is covered by a square of mean colour; it stays labelled.
    #[serde(skip_serializing_if = "is_zero")]
    pub cutout: f32,
}

/// Older files say nothing of it.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(value: &f32) -> bool {
    *value == 0.0
}

/// Side of a cut-out square, in sides of the square that has its person's area.
const CUTOUT_SIDE: f32 = 0.2;

impl Default for Augment {
    fn default() -> Self {
        Self { flip: true, scale: 0.25, rotation: 15.0, shift: 0.05, colour: 0.25, cutout: 0.0 }
    }
}

impl Augment {
    /// Nothing is changed.
    pub fn none() -> Self {
        Self { flip: false, scale: 0.0, rotation: 0.0, shift: 0.0, colour: 0.0, cutout: 0.0 }
    }

    /// The first number that is out of its range, if one is: its key, its value, and what was expected.
    pub(crate) fn wrong(&self) -> Option<(&'static str, String, &'static str)> {
        let unit = |value: f32| (0.0..=1.0).contains(&value);
        let checks = [
            ((0.0..1.0).contains(&self.scale), "scale", self.scale, "0 to below 1"),
            ((0.0..=180.0).contains(&self.rotation), "rotation", self.rotation, "0 to 180 degrees"),
            (unit(self.shift), "shift", self.shift, "0 to 1"),
            (unit(self.colour), "colour", self.colour, "0 to 1"),
            (unit(self.cutout), "cutout", self.cutout, "0 to 1"),
        ];
        checks.into_iter().find(|(good, ..)| !good).map(|(_, key, found, expected)| (key, found.to_string(), expected))
    }
}

/// A person of whom a smaller share stays on the canvas becomes an ignore region.
const VISIBLE_SHARE: f32 = 0.25;

/// Images as the network takes them, with their ground truth.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `[n, 3, rows, columns]`, normalised, zero-padded.
    pub data: Vec<f32>,
    /// Padded rows.
    pub rows: usize,
    /// Padded columns.
    pub columns: usize,
    /// One per image.
    pub truths: Vec<Truth>,
}

/// `x' = a·x + b·y + c`, `y' = d·x + e·y + f`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Affine([f64; 6]);

impl Affine {
    pub(crate) fn scaling(x: f64, y: f64) -> Self {
        Self([x, 0.0, 0.0, 0.0, y, 0.0])
    }

    pub(crate) fn translation(x: f64, y: f64) -> Self {
        Self([1.0, 0.0, x, 0.0, 1.0, y])
    }

    fn rotation(radians: f64) -> Self {
        let (sin, cos) = radians.sin_cos();
        Self([cos, -sin, 0.0, sin, cos, 0.0])
    }

    /// First `self`, then `next`.
    pub(crate) fn then(self, next: Self) -> Self {
        let [a, b, c, d, e, f] = self.0;
        let [p, q, r, s, t, u] = next.0;
        Self([p * a + q * d, p * b + q * e, p * c + q * f + r, s * a + t * d, s * b + t * e, s * c + t * f + u])
    }

    fn inverse(self) -> Self {
        let [a, b, c, d, e, f] = self.0;
        let det = a * e - b * d;
        let (ia, ib, id, ie) = (e / det, -b / det, -d / det, a / det);
        Self([ia, ib, -(ia * c + ib * f), id, ie, -(id * c + ie * f)])
    }

    /// By how much areas grow.
    pub(crate) fn area(self) -> f64 {
        let [a, b, _, d, e, _] = self.0;
        (a * e - b * d).abs()
    }

    pub(crate) fn point(self, point: Point) -> Point {
        let [a, b, c, d, e, f] = self.0;
        let (x, y) = (f64::from(point.x), f64::from(point.y));
        Point { x: (a * x + b * y + c) as f32, y: (d * x + e * y + f) as f32 }
    }

    /// The hull of the ellipse inscribed in `rect`: exact without rotation, and with it a tighter guess of the person's box than the
    /// hull of the corners (Kalra et al., Towards Rotation Invariance in Object Detection, ICCV 2021).
    fn ellipse(self, rect: Rect) -> Rect {
        let [a, b, _, d, e, _] = self.0;
        let centre = self.point(Point { x: (rect.x1 + rect.x2) / 2.0, y: (rect.y1 + rect.y2) / 2.0 });
        let (p, q) = (f64::from(rect.width()) / 2.0, f64::from(rect.height()) / 2.0);
        let (w, h) = ((a * p).hypot(b * q) as f32, (d * p).hypot(e * q) as f32);
        Rect::new(centre.x - w, centre.y - h, centre.x + w, centre.y + h)
    }

    /// The hull of the corners.
    fn hull(self, rect: Rect) -> Rect {
        let corners = [(rect.x1, rect.y1), (rect.x2, rect.y1), (rect.x1, rect.y2), (rect.x2, rect.y2)];
        corners
            .map(|(x, y)| self.point(Point { x, y }))
            .into_iter()
            .fold(Rect::new(f32::INFINITY, f32::INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY), |hull, p| {
                Rect::new(hull.x1.min(p.x), hull.y1.min(p.y), hull.x2.max(p.x), hull.y2.max(p.y))
            })
    }
}

/// What was drawn for one image.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Drawn {
    net_from_frame: Affine,
    flip: bool,
    /// Per channel `(factor, offset)` of values in `[0, 1]`.
    colour: [(f32, f32); 3],
}

impl Drawn {
    fn draw(augment: &Augment, frame: Size, net: Size, rng: &mut impl Rng) -> Self {
        let mut around = |spread: f32| f64::from(spread * rng.random_range(-1.0..=1.0f32));
        let (width, height) = (f64::from(net.width), f64::from(net.height));
        let scale = 1.0 + around(augment.scale);
        let angle = around(augment.rotation).to_radians();
        let shift = (around(augment.shift) * width, around(augment.shift) * height);
        let brightness = (1.0 + around(augment.colour)) as f32;
        let contrast = (1.0 + around(augment.colour)) as f32;
        let gains = [0; 3].map(|_| (1.0 + around(augment.colour) * 0.5) as f32);
        let flip = augment.flip && rng.random_bool(0.5);
        let mut affine = Affine::scaling(width / f64::from(frame.width), height / f64::from(frame.height));
        if scale != 1.0 || angle != 0.0 || shift != (0.0, 0.0) {
            affine = affine
                .then(Affine::translation(-width / 2.0, -height / 2.0))
                .then(Affine::scaling(scale, scale))
                .then(Affine::rotation(angle))
                .then(Affine::translation(width / 2.0 + shift.0, height / 2.0 + shift.1));
        }
        if flip {
            affine = affine.then(Affine([-1.0, 0.0, width, 0.0, 1.0, 0.0]));
        }
        let colour = gains.map(|gain| (contrast * brightness * gain, 0.5 * (1.0 - contrast) * brightness * gain));
        Self { net_from_frame: affine, flip, colour }
    }

    /// Warps into `out` `[3, rows, columns]`, of which the first `net` rows and columns are written.
    fn warp(&self, frame: &Frame, input: &InputSpec, net: Size, out: &mut [f32], rows: usize, columns: usize) {
        let [a, b, c, d, e, f] = self.net_from_frame.inverse().0;
        let (width, height) = (frame.size.width as usize, frame.size.height as usize);
        let (last_x, last_y) = ((width - 1) as f32, (height - 1) as f32);
        let plane = rows * columns;
        // Half a thousandth of a pixel, so that rounding does not blank the border of an unrotated picture.
        const SLACK: f64 = 5e-4;
        for v in 0..net.height as usize {
            let y = v as f64 + 0.5;
            for u in 0..net.width as usize {
                let x = u as f64 + 0.5;
                let (sx, sy) = (a * x + b * y + c, d * x + e * y + f);
                if sx < -SLACK || sy < -SLACK || sx > width as f64 + SLACK || sy > height as f64 + SLACK {
                    continue;
                }
                let px = ((sx - 0.5) as f32).clamp(0.0, last_x);
                let py = ((sy - 0.5) as f32).clamp(0.0, last_y);
                let (x0, y0) = (px as usize, py as usize);
                let (x1, y1) = ((x0 + 1).min(width - 1), (y0 + 1).min(height - 1));
                let (fx, fy) = (px - x0 as f32, py - y0 as f32);
                let at = |x: usize, y: usize| &frame.rgb[3 * (y * width + x)..][..3];
                let (p00, p01, p10, p11) = (at(x0, y0), at(x1, y0), at(x0, y1), at(x1, y1));
                for channel in 0..3 {
                    let colour = input.channels.rgb_index(channel);
                    let value = |p: &[u8]| f32::from(p[colour]);
                    let top = value(p00) + (value(p01) - value(p00)) * fx;
                    let bottom = value(p10) + (value(p11) - value(p10)) * fx;
                    let (factor, offset) = self.colour[colour];
                    let value = ((top + (bottom - top) * fy) / 255.0 * factor + offset).clamp(0.0, 1.0);
                    out[channel * plane + v * columns + u] = (value - input.mean[channel]) / input.std[channel];
                }
            }
        }
    }

    fn truth(&self, sample: &Sample, flip: &[u8], net: Size) -> Truth {
        let mut truth = Truth { net, ..Truth::default() };
        let (width, height) = (net.width as f32, net.height as f32);
        let map = self.net_from_frame;
        let other = |index: usize| if self.flip { flip.get(index).map_or(index, |&i| i as usize) } else { index };
        for person in &sample.people {
            let mut keypoints = vec![None; person.keypoints.len()];
            let mut whole = map.ellipse(person.rect);
            for (index, point) in person.keypoints.iter().enumerate() {
                let Some(point) = *point else { continue };
                let mapped = map.point(point);
                // No labelled keypoint of the box leaves it by the rotation.
                let r = person.rect;
                if (r.x1..=r.x2).contains(&point.x) && (r.y1..=r.y2).contains(&point.y) {
                    whole = Rect::new(whole.x1.min(mapped.x), whole.y1.min(mapped.y), whole.x2.max(mapped.x), whole.y2.max(mapped.y));
                }
                if (0.0..=width).contains(&mapped.x) && (0.0..=height).contains(&mapped.y) {
                    keypoints[other(index)] = Some(mapped);
                }
            }
            let rect = whole.clipped(net);
            if rect.width() < 1.0 || rect.height() < 1.0 || rect.area() < VISIBLE_SHARE * whole.area() {
                truth.ignore.push(rect);
                continue;
            }
            truth.boxes.push(rect);
            // A flip permutation is its own inverse.
            let source = || (0..keypoints.len()).map(other).collect();
            truth.soft.push(person.soft.as_ref().map(|label| SoftTruth::new(Arc::clone(label), map.inverse(), source())));
            truth.keypoints.push(keypoints);
        }
        truth.ignore.extend(sample.ignore.iter().map(|&rect| map.hull(rect).clipped(net)));
        truth.ignore.retain(|rect| rect.width() > 0.0 && rect.height() > 0.0);
        truth
    }
}

/// Covers keypoints of `[3, rows, columns]` with squares of mean colour, each with this probability.
fn cut_out(probability: f32, truth: &Truth, out: &mut [f32], (rows, columns): (usize, usize), rng: &mut impl Rng) {
    if probability <= 0.0 {
        return;
    }
    let net = truth.net;
    for (rect, keypoints) in truth.boxes.iter().zip(&truth.keypoints) {
        let half = 0.5 * CUTOUT_SIDE * rect.area().sqrt();
        for point in keypoints.iter().flatten() {
            if rng.random::<f32>() >= probability {
                continue;
            }
            let span = |at: f32, end: u32| (at - half).max(0.0) as usize..((at + half).ceil().min(end as f32) as usize);
            let (across, down) = (span(point.x, net.width), span(point.y, net.height));
            for plane in out.chunks_exact_mut(rows * columns) {
                down.clone().for_each(|row| plane[row * columns..][across.clone()].fill(0.0));
            }
        }
    }
}

/// How a batch is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// The augmentation.
    pub augment: &'a Augment,
    /// Of samples with generated labels.
    pub generated: &'a Augment,
    /// The network's input.
    pub input: &'a InputSpec,
    /// Short side of the canvas, px.
    pub short_side: u32,
    /// The skeleton's flip permutation.
    pub flip: &'a [u8],
    /// Seed of the run.
    pub seed: u64,
    /// Optimiser step.
    pub step: u64,
}

/// Augments, resizes, normalises and pads all samples to one size. Multi-threaded; the result does not depend on the threads.
///
/// # Errors
/// [`RcnnError::Config`] for an empty frame.
pub fn prepare(samples: &[&Sample], draw: Draw<'_>) -> Result<Batch, RcnnError> {
    let mut nets = Vec::with_capacity(samples.len());
    for (index, sample) in samples.iter().enumerate() {
        let size = sample.frame.size;
        let bytes = 3 * size.width as usize * size.height as usize;
        if bytes == 0 || sample.frame.rgb.len() != bytes {
            return Err(RcnnError::Config(format!(
                "sample {index}: a frame of {}x{} has {} bytes, expected {bytes} and more than none",
                size.width,
                size.height,
                sample.frame.rgb.len()
            )));
        }
        let view = View { short_side: draw.short_side, flip: false };
        nets.push(ViewGeometry::new(size, view, draw.input.max_long_side).net());
    }
    let divisor = draw.input.size_divisor.max(1);
    let padded = |side: fn(&Size) -> u32| nets.iter().map(side).max().unwrap_or(0).div_ceil(divisor) as usize * divisor as usize;
    let (rows, columns) = (padded(|n| n.height), padded(|n| n.width));
    let mut data = vec![0.0; samples.len() * 3 * rows * columns];
    let truths = data
        .par_chunks_mut((3 * rows * columns).max(1))
        .zip(samples)
        .zip(&nets)
        .enumerate()
        .map(|(index, ((out, sample), &net))| {
            let mut rng = generator(draw.seed, draw.step, index, Purpose::Augment);
            let augment = if sample.generated { draw.generated } else { draw.augment };
            let drawn = Drawn::draw(augment, sample.frame.size, net, &mut rng);
            drawn.warp(&sample.frame, draw.input, net, out, rows, columns);
            let truth = drawn.truth(sample, draw.flip, net);
            cut_out(augment.cutout, &truth, out, (rows, columns), &mut rng);
            truth
        })
        .collect();
    Ok(Batch { data, rows, columns, truths })
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnilabel_bundle::Channels;
    use proptest::prelude::*;

    const INPUT: InputSpec = InputSpec {
        short_side: 64,
        max_long_side: 128,
        size_divisor: 32,
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
        channels: Channels::Rgb,
    };

    fn sample(width: u32, height: u32) -> Sample {
        let rgb = (0..3 * width * height).map(|i| (i * 37 % 251) as u8).collect();
        Sample {
            generated: false,
            frame: Frame { size: Size { width, height }, rgb },
            people: vec![Person {
                rect: Rect::new(20.0, 10.0, 60.0, 70.0),
                keypoints: vec![Some(Point { x: 25.0, y: 12.0 }), Some(Point { x: 55.0, y: 66.0 }), None],
                soft: None,
            }],
            ignore: vec![Rect::new(0.0, 0.0, 10.0, 10.0)],
        }
    }

    fn draw(augment: &Augment, step: u64) -> Draw<'_> {
        Draw { augment, generated: augment, input: &INPUT, short_side: 64, flip: &[1, 0, 2], seed: 5, step }
    }

    #[test]
    fn without_augmentation_it_is_the_transform_of_inference() {
        let sample = sample(97, 80);
        let none = Augment::none();
        let batch = prepare(&[&sample], draw(&none, 0)).unwrap();
        let expected = omnilabel_detect::frame::transform(&sample.frame, &INPUT, View { short_side: 64, flip: false });
        assert_eq!((batch.rows, batch.columns), (expected.rows, expected.columns));
        // Rounding of the sampling position (a few ulp of 97 px) times the steepest step of the picture, 251 levels / 58.
        const WARP: f32 = 2e-4;
        for (i, (a, b)) in batch.data.iter().zip(&expected.data).enumerate() {
            assert!((a - b).abs() < WARP, "value {i}: {a} against {b}");
        }
        let rect = expected.geometry.net_from_frame_rect(sample.people[0].rect);
        let found = batch.truths[0].boxes[0];
        for (a, b) in [(rect.x1, found.x1), (rect.y1, found.y1), (rect.x2, found.x2), (rect.y2, found.y2)] {
            assert!((a - b).abs() < 1e-3, "{rect:?} {found:?}");
        }
        assert_eq!(batch.truths[0].ignore.len(), 1);
    }

    #[test]
    fn a_mirrored_image_swaps_left_and_right() {
        let sample = sample(100, 80);
        let augment = Augment { flip: true, ..Augment::none() };
        let mut seen = [false; 2];
        for step in 0..32 {
            let batch = prepare(&[&sample], draw(&augment, step)).unwrap();
            let truth = &batch.truths[0];
            let point = truth.keypoints[0][0].unwrap();
            let mirrored = point.x > 42.0 || point.y > 40.0;
            let expected = if mirrored { Point { x: 80.0 - 55.0 * 0.8, y: 66.0 * 0.8 } } else { Point { x: 20.0, y: 9.6 } };
            assert!((point.x - expected.x).abs() < 1e-3 && (point.y - expected.y).abs() < 1e-3, "{point:?} {expected:?}");
            assert_eq!(truth.keypoints[0][2], None);
            seen[usize::from(mirrored)] = true;
        }
        assert_eq!(seen, [true, true]);
    }

    #[test]
    fn soft_labels_go_with_the_image_they_are_of() {
        // Every map has all of itself in the cell in which the keypoint lies.
        let mut sample = sample(100, 80);
        // No keypoint near the border of the box, where augmentation may cut its cell.
        let person = &mut sample.people[0];
        person.keypoints = vec![Some(Point { x: 35.0, y: 35.0 }), Some(Point { x: 45.0, y: 45.0 }), None];
        let mut maps = vec![0.0; 3 * 56 * 56];
        for (map, point) in maps.chunks_exact_mut(56 * 56).zip(&person.keypoints) {
            map[point.map_or(0, |point| crate::targets::keypoint_cell(person.rect, point, 56).unwrap() as usize)] = 1.0;
        }
        person.soft = Some(Arc::new(SoftLabel::new(person.rect, 3, 56, maps).unwrap()));
        let augment = Augment { rotation: 5.0, scale: 0.1, ..Augment::default() };
        let mut compared = 0;
        for step in 0..32 {
            let batch = prepare(&[&sample], draw(&augment, step)).unwrap();
            let truth = &batch.truths[0];
            let Some(&roi) = truth.boxes.first() else { continue };
            for (keypoint, point) in truth.keypoints[0].iter().enumerate() {
                let Some(point) = *point else { continue };
                let spread = truth.soft[0].as_ref().unwrap().on(keypoint, roi, 56).unwrap();
                let mean = |axis: fn(usize) -> usize| -> f32 { spread.iter().enumerate().map(|(at, q)| (axis(at) as f32 + 0.5) * q).sum() };
                let found =
                    Point { x: roi.x1 + mean(|at| at % 56) * roi.width() / 56.0, y: roi.y1 + mean(|at| at / 56) * roi.height() / 56.0 };
                // A point is up to half a cell from the middle of its own, and the spread's mean as far from that of the cells it lands on.
                let cell = (roi.width() / 56.0).max(roi.height() / 56.0);
                assert!((found.x - point.x).abs() < 1.5 * cell && (found.y - point.y).abs() < 1.5 * cell, "{found:?} {point:?}");
                compared += 1;
            }
        }
        assert_eq!(compared, 64);
    }

    #[test]
    fn it_repeats_by_seed_step_and_index_on_any_number_of_threads() {
        let samples = [sample(90, 80), sample(64, 120), sample(90, 80)];
        let references: Vec<&Sample> = samples.iter().collect();
        let augment = Augment::default();
        let first = prepare(&references, draw(&augment, 3)).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let again = pool.install(|| prepare(&references, draw(&augment, 3)).unwrap());
        assert_eq!(first.data, again.data);
        assert_eq!(first.truths, again.truths);
        assert_ne!(first.truths[0], first.truths[2]);
        assert_ne!(first.truths, prepare(&references, draw(&augment, 4)).unwrap().truths);
        assert_eq!((first.rows, first.columns), (128, 96));
    }

    #[test]
    fn a_keypoint_stays_on_its_pixel() {
        // A white dot on black: after any warp the brightest pixel lies where the keypoint went.
        let (width, height) = (90u32, 80u32);
        let mut sample = sample(width, height);
        sample.frame.rgb.fill(0);
        for y in 39..42 {
            for x in 24..27 {
                let i = 3 * (y * width as usize + x);
                sample.frame.rgb[i..i + 3].fill(255);
            }
        }
        sample.people[0].keypoints = vec![Some(Point { x: 25.5, y: 40.5 }), None, None];
        let augment = Augment { colour: 0.0, rotation: 40.0, ..Augment::default() };
        for step in 0..40 {
            let batch = prepare(&[&sample], draw(&augment, step)).unwrap();
            let Some(point) = batch.truths[0].keypoints.first().and_then(|k| k.iter().flatten().next()) else { continue };
            let (mut sum, mut x, mut y) = (0.0, 0.0, 0.0);
            let black = -INPUT.mean[0] / INPUT.std[0];
            for (i, value) in batch.data[..batch.rows * batch.columns].iter().enumerate() {
                let (v, u) = (i / batch.columns, i % batch.columns);
                // Uncovered canvas is the mean colour, 0: only brighter than that is the dot.
                if *value > 0.1 {
                    let weight = value - black;
                    sum += weight;
                    x += weight * (u as f32 + 0.5);
                    y += weight * (v as f32 + 0.5);
                }
            }
            let apart = (x / sum - point.x).hypot(y / sum - point.y);
            // The dot's centroid on the pixel grid, and its cut-off skirt.
            assert!(apart < 0.5, "step {step}: {apart} px");
        }
    }

    #[test]
    fn generated_samples_are_augmented_their_own_way_and_cut_joints_stay_labelled() {
        let manual = sample(90, 80);
        let generated = Sample { generated: true, ..manual.clone() };
        let (none, cutting) = (Augment::none(), Augment { cutout: 1.0, ..Augment::none() });
        let batch = prepare(&[&manual, &generated], Draw { generated: &cutting, ..draw(&none, 0) }).unwrap();
        assert_eq!(batch.truths[0], batch.truths[1]);
        let (first, second) = batch.data.split_at(batch.data.len() / 2);
        let side = CUTOUT_SIDE * batch.truths[0].boxes[0].area().sqrt();
        for point in batch.truths[0].keypoints[0].iter().flatten() {
            let at = point.y as usize * batch.columns + point.x as usize;
            assert!(second[at] == 0.0 && first[at] != 0.0, "{point:?}");
        }
        let changed = first.iter().zip(second).filter(|(a, b)| a != b).count() as f32;
        // Two squares in three colours, whose borders are rounded outwards.
        assert!(changed > 6.0 * (side - 1.0).powi(2) && changed < 6.0 * (side + 2.0).powi(2), "{changed} values, {side} px");
    }

    #[test]
    fn a_person_who_leaves_the_canvas_becomes_an_ignore_region() {
        let mut sample = sample(100, 80);
        sample.people[0].rect = Rect::new(-80.0, 10.0, 10.0, 70.0);
        let none = Augment::none();
        let truth = prepare(&[&sample], draw(&none, 0)).unwrap().truths.remove(0);
        assert!(truth.boxes.is_empty() && truth.ignore.len() == 2, "{truth:?}");
    }

    #[test]
    fn a_frame_without_pixels_is_refused() {
        let mut sample = sample(8, 8);
        sample.frame.rgb.pop();
        let none = Augment::none();
        assert!(prepare(&[&sample], draw(&none, 0)).unwrap_err().to_string().contains("sample 0"));
    }

    proptest! {
        #[test]
        fn boxes_hold_their_keypoints_and_lie_on_the_canvas(step in 0u64..10_000) {
            let sample = sample(100, 80);
            let augment = Augment { rotation: 180.0, ..Augment::default() };
            let truth = prepare(&[&sample], draw(&augment, step)).unwrap().truths.remove(0);
            for (rect, keypoints) in truth.boxes.iter().zip(&truth.keypoints) {
                prop_assert!(rect.is_valid() && *rect == rect.clipped(truth.net));
                for p in keypoints.iter().flatten() {
                    prop_assert!((rect.x1 - 1e-3..=rect.x2 + 1e-3).contains(&p.x) && (rect.y1 - 1e-3..=rect.y2 + 1e-3).contains(&p.y));
                }
            }
        }

        #[test]
        fn an_affine_followed_by_its_inverse_is_the_identity(angle in -3.0f64..3.0, scale in 0.5f64..2.0, x in -100f32..100.0, y in -100f32..100.0) {
            let map = Affine::rotation(angle).then(Affine::scaling(scale, scale)).then(Affine::translation(13.0, -7.0));
            let back = map.inverse().point(map.point(Point { x, y }));
            prop_assert!((back.x - x).abs() < 1e-3 && (back.y - y).abs() < 1e-3);
        }
    }
}
