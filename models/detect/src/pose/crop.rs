//! A person cut out of the frame for a top-down model.

use crate::frame::Frame;
use crate::pose::{Tap, warp};
use omnilabel_bundle::{CropSpec, InputSpec, PoseSpec};
use omnilabel_keypoints::geometry::{Point, Rect};

/// The part of the frame that a top-down model sees, and the coordinate map between the two (mmpose's `TopdownAffine`).
///
/// The box's corners enter as they are, as pixel indices of its centre: published code does so with COCO's boxes. An axis of n pixels or
/// cells is n units long, with `udp` n − 1: cell i lies at `centre + (i / units − 0.5) · extent`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crop {
    centre: [f64; 2],
    extent: [f64; 2],
    rows: u32,
    columns: u32,
    udp: bool,
}

impl Crop {
    /// The crop of `rect` (frame px, with an area) for `pose`; `zoom` 2 sees half of it, twice as large.
    pub fn new(rect: Rect, spec: CropSpec, pose: &PoseSpec, zoom: f64) -> Self {
        let [x1, y1, x2, y2] = [rect.x1, rect.y1, rect.x2, rect.y2].map(f64::from);
        let padding = f64::from(spec.padding) / zoom;
        let (width, height) = ((x2 - x1) * padding, (y2 - y1) * padding);
        let aspect = f64::from(pose.width) / f64::from(pose.height);
        let extent = if width > height * aspect { [width, width / aspect] } else { [height * aspect, height] };
        Self { centre: [0.5 * (x1 + x2), 0.5 * (y1 + y2)], extent, rows: pose.height, columns: pose.width, udp: spec.udp }
    }

    /// Units of an axis with `cells` cells.
    pub fn units(udp: bool, cells: usize) -> f64 {
        if udp { (cells.max(2) - 1) as f64 } else { cells.max(1) as f64 }
    }

    /// The network's input `[3, rows, columns]`, black beyond the frame.
    pub fn input(&self, frame: &Frame, input: &InputSpec, flip: bool) -> Vec<f32> {
        let taps = |axis: usize, cells: u32, pixels: u32| -> Vec<Tap> {
            let units = Self::units(self.udp, cells as usize);
            (0..cells).map(|i| Tap::constant_border(self.at(axis, f64::from(i) / units), pixels)).collect()
        };
        let mut columns = taps(0, self.columns, frame.size.width);
        if flip {
            columns.reverse();
        }
        warp(frame, input, &taps(1, self.rows, frame.size.height), &columns, 0)
    }

    /// The frame's continuous point at the shares `x` and `y` of the crop's sides.
    pub fn frame_from_share(&self, x: f64, y: f64) -> Point {
        Point { x: (self.at(0, x) + 0.5) as f32, y: (self.at(1, y) + 0.5) as f32 }
    }

    /// Frame pixels per pixel of the input, the larger of the two axes.
    pub fn frame_px_per_input_px(&self) -> f32 {
        (self.extent[0] / f64::from(self.columns)).max(self.extent[1] / f64::from(self.rows)) as f32
    }

    /// The pixel index of the frame at a share of the crop's side.
    fn at(&self, axis: usize, share: f64) -> f64 {
        self.centre[axis] + (share - 0.5) * self.extent[axis]
    }
}
