//! Pictures side by side, each under its title.

use crate::canvas::Canvas;
use crate::palette::{Colour, ink};
use crate::style::Style;
use embedded_graphics::geometry::Point;
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Size;

const GROUND: Colour = [24, 26, 30];

/// Pictures from left to right under their titles.
pub fn beside(pictures: &[(&str, &Frame)]) -> Frame {
    let first = pictures.first().map_or(Size { width: 0, height: 0 }, |picture| picture.1.size);
    let style = Style { zoom: 1, ..Style::for_size(first) };
    let (gap, strip) = (2 * style.line, style.text_height() + 3 * style.line);
    let widths: u32 = pictures.iter().map(|picture| picture.1.size.width).sum();
    let highest = pictures.iter().map(|picture| picture.1.size.height).max().unwrap_or(0);
    let size = Size { width: widths + gap * (pictures.len().max(1) - 1) as u32, height: strip + highest };
    let mut canvas = Canvas::plain(size, GROUND, style);
    let mut x = 0;
    for (title, picture) in pictures.iter().copied() {
        canvas.text(Point::new((x + 2 * style.line) as i32, (3 * style.line / 2) as i32), title, ink(GROUND));
        canvas.paste(picture, x, strip);
        x += picture.size.width + gap;
    }
    canvas.into_frame()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_pictures_are_there_whole() {
        let plain = |width, height, value| Frame { size: Size { width, height }, rgb: vec![value; 3 * (width * height) as usize] };
        let all = beside(&[("predicted", &plain(300, 200, 10)), ("ground truth", &plain(200, 220, 200)), ("third", &plain(50, 20, 90))]);
        let count = |value: u8| all.rgb.chunks(3).filter(|p| **p == [value; 3]).count();
        assert_eq!((count(10), count(200), count(90)), (300 * 200, 200 * 220, 50 * 20));
        assert!(count(255) > 50, "titles in white");
    }
}
