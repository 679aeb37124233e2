//! One view of a frame: resized so that its short side has a given length, mirrored or not (spec §3).

use crate::geometry::{Point, Rect, Size};
use serde::{Deserialize, Serialize};

/// What is done to a frame before the network sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Length of the short side in pixels after resizing.
    pub short_side: u32,
    /// Whether the frame is mirrored left to right.
    pub flip: bool,
}

/// The coordinate map of one [`View`] applied to one frame. "frame" is the camera's picture, "net" what the network sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ViewGeometry {
    frame: Size,
    net: Size,
    flip: bool,
}

impl ViewGeometry {
    /// The map for `frame`: scale = short_side / min(w, h), limited so that the long side stays within `max_long_side`
    /// (torchvision's `resize`: sizes are ⌊side · scale⌋ and each axis maps by the ratio of the sizes).
    pub fn new(frame: Size, view: View, max_long_side: u32) -> Self {
        let (short, long) = (frame.width.min(frame.height).max(1), frame.width.max(frame.height).max(1));
        // f64 like torchvision's eager `_resize_image_and_masks`, so that the floors agree.
        let scale = (f64::from(view.short_side) / f64::from(short)).min(f64::from(max_long_side) / f64::from(long));
        let side = |pixels: u32| (libm::floor(f64::from(pixels) * scale) as u32).max(1);
        Self { frame, net: Size { width: side(frame.width), height: side(frame.height) }, flip: view.flip }
    }

    /// The map of the mirror image.
    #[must_use]
    pub fn mirror(self) -> Self {
        Self { flip: !self.flip, ..self }
    }

    /// The frame's size.
    pub fn frame(&self) -> Size {
        self.frame
    }

    /// The size after resizing, before padding.
    pub fn net(&self) -> Size {
        self.net
    }

    /// Whether this view is mirrored.
    pub fn flip(&self) -> bool {
        self.flip
    }

    /// A frame point in net coordinates.
    pub fn net_from_frame(&self, point: Point) -> Point {
        let (sx, sy) = self.ratio();
        let x = (f64::from(point.x) * sx) as f32;
        Point { x: self.mirrored(x), y: (f64::from(point.y) * sy) as f32 }
    }

    /// A net point in frame coordinates.
    pub fn frame_from_net(&self, point: Point) -> Point {
        let (sx, sy) = self.ratio();
        Point { x: (f64::from(self.mirrored(point.x)) / sx) as f32, y: (f64::from(point.y) / sy) as f32 }
    }

    /// A frame box in net coordinates; corners stay in order.
    pub fn net_from_frame_rect(&self, rect: Rect) -> Rect {
        let (a, b) = (Point { x: rect.x1, y: rect.y1 }, Point { x: rect.x2, y: rect.y2 });
        self.ordered(self.net_from_frame(a), self.net_from_frame(b))
    }

    /// A net box in frame coordinates; corners stay in order.
    pub fn frame_from_net_rect(&self, rect: Rect) -> Rect {
        let (a, b) = (Point { x: rect.x1, y: rect.y1 }, Point { x: rect.x2, y: rect.y2 });
        self.ordered(self.frame_from_net(a), self.frame_from_net(b))
    }

    /// Net pixels per frame pixel on each axis.
    fn ratio(&self) -> (f64, f64) {
        let ratio = |net: u32, frame: u32| f64::from(net) / f64::from(frame.max(1));
        (ratio(self.net.width, self.frame.width), ratio(self.net.height, self.frame.height))
    }

    /// `x → W − x` in net coordinates, when this view is mirrored.
    fn mirrored(&self, x: f32) -> f32 {
        if self.flip { (f64::from(self.net.width) - f64::from(x)) as f32 } else { x }
    }

    /// The box between two mapped corners: a mirror exchanges left and right.
    fn ordered(&self, a: Point, b: Point) -> Rect {
        if self.flip { Rect::new(b.x, a.y, a.x, b.y) } else { Rect::new(a.x, a.y, b.x, b.y) }
    }
}
