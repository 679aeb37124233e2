//! Two pictures side by side, each under its title.

use crate::canvas::Canvas;
use crate::palette::{Colour, ink};
use crate::style::Style;
use embedded_graphics::geometry::Point;
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Size;

const GROUND: Colour = [24, 26, 30];

/// `left` and `right` beside each other under their titles.
pub fn beside(left: (&str, &Frame), right: (&str, &Frame)) -> Frame {
    let style = Style { zoom: 1, ..Style::for_size(left.1.size) };
    let (gap, strip) = (2 * style.line, style.text_height() + 3 * style.line);
    let size = Size { width: left.1.size.width + gap + right.1.size.width, height: strip + left.1.size.height.max(right.1.size.height) };
    let mut canvas = Canvas::plain(size, GROUND, style);
    let mut x = 0;
    for (title, picture) in [left, right] {
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
    fn both_pictures_are_there_whole() {
        let plain = |width, height, value| Frame { size: Size { width, height }, rgb: vec![value; 3 * (width * height) as usize] };
        let both = beside(("predicted", &plain(300, 200, 10)), ("ground truth", &plain(200, 220, 200)));
        let count = |value: u8| both.rgb.chunks(3).filter(|p| **p == [value; 3]).count();
        assert_eq!((count(10), count(200)), (300 * 200, 200 * 220));
        assert!(count(255) > 50, "titles in white");
    }
}
