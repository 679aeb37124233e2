//! A frame that can be drawn on. Coordinates from outside may be anything: they are cut to the surroundings of the picture before
//! anything is rasterised, so that neither time nor arithmetic depends on how far away they are.

use crate::palette::{Colour, ink, rgb};
use crate::style::Style;
use embedded_graphics::mono_font::MonoTextStyle;
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::*;
use embedded_graphics::primitives::{Circle, Line, PrimitiveStyleBuilder, Rectangle, StrokeAlignment};
use embedded_graphics::text::{Baseline, Text};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::{Point as FramePoint, Rect, Size as FrameSize};
use std::convert::Infallible;

/// The enlarged frame.
pub(crate) struct Canvas {
    frame: Frame,
    pub(crate) style: Style,
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.frame.size.width, self.frame.size.height)
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        let FrameSize { width, height } = self.frame.size;
        for Pixel(Point { x, y }, colour) in pixels {
            let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { continue };
            if x < width && y < height {
                let at = 3 * (y as usize * width as usize + x as usize);
                self.frame.rgb[at..at + 3].copy_from_slice(&[colour.r(), colour.g(), colour.b()]);
            }
        }
        Ok(())
    }
}

/// The canvas with its pixels made larger, for letters.
struct Zoomed<'c> {
    canvas: &'c mut Canvas,
    at: Point,
    zoom: u32,
}

impl OriginDimensions for Zoomed<'_> {
    fn size(&self) -> Size {
        self.canvas.size()
    }
}

impl DrawTarget for Zoomed<'_> {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        let size = Size::new_equal(self.zoom);
        for Pixel(point, colour) in pixels {
            self.canvas.fill_solid(&Rectangle::new(self.at + point * self.zoom as i32, size), colour)?;
        }
        Ok(())
    }
}

/// Drawing on a frame cannot fail.
fn drawn<T>(result: Result<T, Infallible>) {
    let Ok(_) = result;
}

impl Canvas {
    /// `frame`, each pixel as a square of `style.zoom` pixels.
    pub(crate) fn new(frame: &Frame, style: Style) -> Self {
        let zoom = style.zoom as usize;
        let size = FrameSize { width: frame.size.width * style.zoom, height: frame.size.height * style.zoom };
        let mut rgb = Vec::with_capacity(3 * size.width as usize * size.height as usize);
        for row in frame.rgb.chunks_exact((3 * frame.size.width as usize).max(1)) {
            let wide: Vec<u8> = row.chunks_exact(3).flat_map(|pixel| std::iter::repeat_n(pixel, zoom).flatten().copied()).collect();
            (0..zoom).for_each(|_| rgb.extend_from_slice(&wide));
        }
        Self { frame: Frame { size, rgb }, style }
    }

    /// A plain canvas.
    pub(crate) fn plain(size: FrameSize, [r, g, b]: Colour, style: Style) -> Self {
        let rgb = [r, g, b].repeat(size.width as usize * size.height as usize);
        Self { frame: Frame { size, rgb }, style }
    }

    pub(crate) fn into_frame(self) -> Frame {
        self.frame
    }

    /// Puts a frame with its upper left corner at (`x`, `y`); what does not fit is cut off.
    pub(crate) fn paste(&mut self, picture: &Frame, x: u32, y: u32) {
        let (size, columns) = (self.frame.size, picture.size.width.min(self.frame.size.width.saturating_sub(x)) as usize);
        let rows = picture.rgb.chunks_exact((3 * picture.size.width as usize).max(1)).zip(y..size.height);
        for (row, y) in rows {
            let at = 3 * (y as usize * size.width as usize + x as usize);
            self.frame.rgb[at..at + 3 * columns].copy_from_slice(&row[..3 * columns]);
        }
    }

    /// How far outside of the canvas things still matter: more than any stroke is wide.
    fn margin(&self) -> f64 {
        f64::from(4 * self.style.dot())
    }

    /// A place of the frame as a place on the canvas, if it is a number.
    fn place(&self, point: FramePoint) -> Option<[f64; 2]> {
        let zoom = f64::from(self.style.zoom);
        let at = [f64::from(point.x) * zoom, f64::from(point.y) * zoom];
        at.iter().all(|v| v.is_finite()).then_some(at)
    }

    /// Whether a place is on the canvas or so near that something drawn there may reach it.
    fn is_near(&self, [x, y]: [f64; 2]) -> bool {
        let (m, w, h) = (self.margin(), f64::from(self.frame.size.width), f64::from(self.frame.size.height));
        (-m..w + m).contains(&x) && (-m..h + m).contains(&y)
    }

    /// The line between two places of the frame.
    pub(crate) fn line(&mut self, from: FramePoint, to: FramePoint, colour: Colour) {
        let (Some(from), Some(to)) = (self.place(from), self.place(to)) else { return };
        let (m, w, h) = (self.margin(), f64::from(self.frame.size.width), f64::from(self.frame.size.height));
        let Some((from, to)) = clip(from, to, [-m, -m], [w + m, h + m]) else { return };
        let style = PrimitiveStyleBuilder::new().stroke_color(rgb(colour)).stroke_width(self.style.line).build();
        drawn(Line::new(pixel(from), pixel(to)).into_styled(style).draw(self));
    }

    /// A keypoint: filled, or a ring that shows what is below.
    pub(crate) fn dot(&mut self, at: FramePoint, diameter: u32, colour: Colour, filled: bool) {
        let Some(at) = self.place(at).filter(|at| self.is_near(*at)) else { return };
        let circle = |diameter: u32| Circle::with_center(pixel(at), diameter.max(1));
        let ring = PrimitiveStyleBuilder::new().stroke_alignment(StrokeAlignment::Inside);
        if filled {
            // A dark rim keeps keypoints visible on limbs of their own colour, as pycocotools' black edge does.
            drawn(circle(diameter).into_styled(PrimitiveStyleBuilder::new().fill_color(rgb([20, 20, 20])).build()).draw(self));
            let inner = circle(diameter.saturating_sub(2));
            drawn(inner.into_styled(PrimitiveStyleBuilder::new().fill_color(rgb(colour)).build()).draw(self));
        } else {
            let width = (self.style.line / 2).max(1);
            drawn(circle(diameter).into_styled(ring.stroke_color(rgb(colour)).stroke_width(width).build()).draw(self));
        }
    }

    /// A box as the canvas pixels that it touches; `None` when it is not one, or is away from the picture.
    pub(crate) fn pixels_of(&self, rect: Rect) -> Option<Rectangle> {
        let corner = |x, y| self.place(FramePoint { x, y });
        let ([x1, y1], [x2, y2]) = (corner(rect.x1, rect.y1)?, corner(rect.x2, rect.y2)?);
        let (m, w, h) = (self.margin(), f64::from(self.frame.size.width), f64::from(self.frame.size.height));
        if !(x1 <= x2 && y1 <= y2 && x2 >= 0.0 && y2 >= 0.0 && x1 < w && y1 < h) {
            return None;
        }
        let low = [x1.floor().max(-m), y1.floor().max(-m)];
        let high = [x2.ceil().min(w + m), y2.ceil().min(h + m)];
        let side = |axis: usize| (high[axis] - low[axis]).max(1.0) as u32;
        Some(Rectangle::new(pixel(low), Size::new(side(0), side(1))))
    }

    /// The outline of a box, inside of it.
    pub(crate) fn outline(&mut self, rect: Rectangle, colour: Colour, width: u32) {
        let style =
            PrimitiveStyleBuilder::new().stroke_color(rgb(colour)).stroke_width(width).stroke_alignment(StrokeAlignment::Inside).build();
        drawn(rect.into_styled(style).draw(self));
    }

    /// Where the plate of a caption goes: above `rect`, or inside of it at its top or bottom, or below it, whichever is on the picture
    /// and covers none of the plates that are `taken`; always within the picture as far as it fits.
    pub(crate) fn place_of_plate(&self, rect: Rectangle, text: &str, taken: &[Rectangle]) -> Rectangle {
        let (width, height) = (self.style.text_width(text) + 2 * self.style.line, self.style.text_height() + 2);
        let room = |side: u32, needed: u32| i32::try_from(side.saturating_sub(needed)).unwrap_or(i32::MAX);
        let (top, bottom, tall) = (rect.top_left.y, rect.top_left.y + rect.size.height as i32, height as i32);
        let (lowest, rightmost) = (room(self.frame.size.height, height), room(self.frame.size.width, width));
        let plate =
            |top: i32| Rectangle::new(Point::new(rect.top_left.x.clamp(0, rightmost), top.clamp(0, lowest)), Size::new(width, height));
        let places = [top - tall, top, bottom - tall, bottom].into_iter().filter(|top| (0..=lowest).contains(top)).map(plate);
        let free = |place: &Rectangle| taken.iter().all(|other| place.intersection(other).is_zero_sized());
        places.clone().find(free).or_else(|| places.clone().next()).unwrap_or_else(|| plate(top))
    }

    /// Text on a plate of `colour`.
    pub(crate) fn plate(&mut self, place: Rectangle, text: &str, colour: Colour) {
        drawn(self.fill_solid(&place, rgb(colour)));
        self.text(place.top_left + Point::new(self.style.line as i32, 1), text, ink(colour));
    }

    /// Text whose upper left corner is at a canvas pixel.
    pub(crate) fn text(&mut self, at: Point, text: &str, colour: Rgb888) {
        let (font, zoom) = (self.style.font, self.style.font_zoom);
        let letters = Text::with_baseline(text, Point::zero(), MonoTextStyle::new(font, colour), Baseline::Top);
        drawn(letters.draw(&mut Zoomed { canvas: self, at, zoom }));
    }
}

/// The pixel that a place on the canvas lies in (pixel `i` covers `[i, i + 1)`).
fn pixel([x, y]: [f64; 2]) -> Point {
    Point::new(x.floor() as i32, y.floor() as i32)
}

/// The part of a segment within a box (Liang and Barsky 1984).
fn clip(from: [f64; 2], to: [f64; 2], low: [f64; 2], high: [f64; 2]) -> Option<([f64; 2], [f64; 2])> {
    let delta = [to[0] - from[0], to[1] - from[1]];
    let (mut enter, mut leave) = (0.0_f64, 1.0_f64);
    for axis in 0..2 {
        for (p, q) in [(-delta[axis], from[axis] - low[axis]), (delta[axis], high[axis] - from[axis])] {
            if p == 0.0 {
                if q < 0.0 {
                    return None;
                }
            } else if p < 0.0 {
                enter = enter.max(q / p);
            } else {
                leave = leave.min(q / p);
            }
        }
    }
    let at = |t: f64| {
        let along = |axis: usize| (from[axis] + t * delta[axis]).clamp(low[axis], high[axis]);
        [along(0), along(1)]
    };
    (enter <= leave).then(|| (at(enter), at(leave)))
}

#[cfg(test)]
mod tests {
    use super::clip;

    #[test]
    fn segments_are_cut_where_they_leave() {
        let cut = |from, to| clip(from, to, [0.0, 0.0], [10.0, 10.0]);
        assert_eq!(cut([2.0, 2.0], [8.0, 5.0]), Some(([2.0, 2.0], [8.0, 5.0])));
        assert_eq!(cut([-10.0, 5.0], [30.0, 5.0]), Some(([0.0, 5.0], [10.0, 5.0])));
        assert_eq!(cut([-5.0, 3.0], [-1.0, 3.0]), None);
        assert_eq!(cut([-5.0, 5.0], [5.0, -6.0]), None);
        // A delta of 2¹¹: no rounding.
        assert_eq!(cut([5.0, -1022.0], [5.0, 1026.0]), Some(([5.0, 0.0], [5.0, 10.0])));
    }
}
