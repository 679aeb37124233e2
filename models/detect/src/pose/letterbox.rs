//! The whole frame fitted into a one-stage model's input.

use crate::frame::Frame;
use crate::pose::{Tap, warp};
use omnilabel_bundle::{InputSpec, Letterbox};
use omnilabel_keypoints::geometry::{Point, Rect, Size};

/// Where the frame lies in the input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placement {
    frame: Size,
    /// Size of the picture in the input.
    picture: Size,
    left: u32,
    top: u32,
    rows: u32,
    columns: u32,
    flip: bool,
}

impl Placement {
    /// The frame as large as `height` × `width` allow, in an input of `rows` × `columns` that are no less (Ultralytics' `LetterBox`).
    pub fn new(frame: Size, (height, width): (u32, u32), (rows, columns): (u32, u32), letterbox: Letterbox, flip: bool) -> Self {
        let (w, h) = (f64::from(frame.width.max(1)), f64::from(frame.height.max(1)));
        let gain = (f64::from(width) / w).min(f64::from(height) / h);
        let side = |pixels: f64, most: u32| ((pixels * gain).round() as u32).clamp(1, most.max(1));
        let picture = Size { width: side(w, width), height: side(h, height) };
        let before = |whole: u32, part: u32| match letterbox {
            // Of an odd rest, the smaller half lies before the picture.
            Letterbox::Centre => whole.saturating_sub(part) / 2,
            Letterbox::TopLeft => 0,
        };
        let (left, top) = (before(columns, picture.width), before(rows, picture.height));
        Self { frame, picture, left, top, rows, columns, flip }
    }

    /// The network's input `[3, rows, columns]`, grey of level `fill` around the picture; mirrored as a whole.
    pub fn input(&self, frame: &Frame, input: &InputSpec, fill: u8) -> Vec<f32> {
        let taps = |cells: u32, before: u32, part: u32, pixels: u32| -> Vec<Tap> {
            let ratio = f64::from(pixels) / f64::from(part);
            let tap = |i: u32| match i.checked_sub(before).filter(|&i| i < part) {
                Some(i) => Tap::clamped((f64::from(i) + 0.5) * ratio - 0.5, pixels),
                None => Tap::OUTSIDE,
            };
            (0..cells).map(tap).collect()
        };
        let mut columns = taps(self.columns, self.left, self.picture.width, frame.size.width);
        if self.flip {
            columns.reverse();
        }
        warp(frame, input, &taps(self.rows, self.top, self.picture.height, frame.size.height), &columns, fill)
    }

    /// A point of the input in the frame, both with the same zero: continuous for corners of boxes, pixel indices for keypoints.
    pub fn frame_from_input(&self, point: Point) -> Point {
        let x = if self.flip { f64::from(self.columns) - f64::from(point.x) } else { f64::from(point.x) };
        let axis = |at: f64, before: u32, frame: u32, part: u32| (at - f64::from(before)) * f64::from(frame) / f64::from(part);
        Point {
            x: axis(x, self.left, self.frame.width, self.picture.width) as f32,
            y: axis(f64::from(point.y), self.top, self.frame.height, self.picture.height) as f32,
        }
    }

    /// The part of a box inside the frame.
    pub(super) fn clipped(&self, rect: Rect) -> Rect {
        rect.clipped(self.frame)
    }

    /// Frame pixels per pixel of the input.
    pub fn frame_px_per_input_px(&self) -> f32 {
        (self.frame.width as f32 / self.picture.width as f32).max(self.frame.height as f32 / self.picture.height as f32)
    }
}
