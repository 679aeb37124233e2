//! Points, boxes and sizes in continuous coordinates: pixel `i` covers `[i, i + 1)` and its centre is `i + 0.5`.

use serde::{Deserialize, Serialize};

/// A point in pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Right of the left edge.
    pub x: f32,
    /// Below the upper edge.
    pub y: f32,
}

/// An axis-aligned box in pixels, `x1 <= x2`, `y1 <= y2`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rect {
    /// Left edge.
    pub x1: f32,
    /// Upper edge.
    pub y1: f32,
    /// Right edge.
    pub x2: f32,
    /// Lower edge.
    pub y2: f32,
}

impl Rect {
    /// A box from its corners.
    pub const fn new(x1: f32, y1: f32, x2: f32, y2: f32) -> Self {
        Self { x1, y1, x2, y2 }
    }

    /// A box from COCO's `[x, y, width, height]`.
    pub const fn from_xywh(x: f32, y: f32, width: f32, height: f32) -> Self {
        Self { x1: x, y1: y, x2: x + width, y2: y + height }
    }

    /// Width in pixels.
    pub const fn width(&self) -> f32 {
        self.x2 - self.x1
    }

    /// Height in pixels.
    pub const fn height(&self) -> f32 {
        self.y2 - self.y1
    }

    /// Area in px².
    pub const fn area(&self) -> f32 {
        self.width() * self.height()
    }

    /// Intersection over union with `other`; 0 when both are empty.
    pub fn iou(&self, other: &Rect) -> f32 {
        let width = (self.x2.min(other.x2) - self.x1.max(other.x1)).max(0.0);
        let height = (self.y2.min(other.y2) - self.y1.max(other.y1)).max(0.0);
        let intersection = width * height;
        let union = self.area() + other.area() - intersection;
        if union > 0.0 { intersection / union } else { 0.0 }
    }

    /// The part of the box inside an image of `size`.
    pub fn clipped(&self, size: Size) -> Rect {
        let (w, h) = (size.width as f32, size.height as f32);
        Rect::new(self.x1.clamp(0.0, w), self.y1.clamp(0.0, h), self.x2.clamp(0.0, w), self.y2.clamp(0.0, h))
    }

    /// Whether all four edges are finite and in order.
    pub fn is_valid(&self) -> bool {
        [self.x1, self.y1, self.x2, self.y2].iter().all(|v| v.is_finite()) && self.x1 <= self.x2 && self.y1 <= self.y2
    }
}

/// The size of an image in whole pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Pixels per row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}
