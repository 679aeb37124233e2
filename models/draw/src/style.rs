//! How large things are drawn: line, keypoint and letters follow the picture, and a small picture is enlarged first.

use embedded_graphics::mono_font::MonoFont;
use embedded_graphics::mono_font::iso_8859_1::{FONT_6X10, FONT_7X13, FONT_9X15, FONT_10X20};
use omnilabel_keypoints::geometry::Size;

/// Pictures whose short side is at most this are enlarged, px.
const SMALL: u32 = 144;
/// The short side that a small picture is enlarged to, at least, px.
const READABLE: u32 = 384;
/// No picture is enlarged by more.
const MAX_ZOOM: u32 = 16;
/// Nor beyond this long side, px.
const MAX_ENLARGED: u32 = 4096;
/// Letters are this part of the picture's mean side high, and at least the smallest font's 10 px, much as Detectron2 makes them.
const SIDE_PER_LETTER: f64 = 42.0;
/// Lines are this part of a letter's height wide.
const LETTER_PER_LINE: u32 = 5;

const FONTS: [&MonoFont<'static>; 4] = [&FONT_6X10, &FONT_7X13, &FONT_9X15, &FONT_10X20];

/// Sizes for one picture.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Canvas pixels per picture pixel.
    pub zoom: u32,
    /// Width of lines, canvas px.
    pub line: u32,
    /// The letters.
    pub(crate) font: &'static MonoFont<'static>,
    /// Canvas pixels per pixel of a letter.
    pub(crate) font_zoom: u32,
}

impl Style {
    /// The sizes for a picture of `size`.
    pub fn for_size(size: Size) -> Self {
        let (short, long) = (size.width.min(size.height).max(1), size.width.max(size.height).max(1));
        let zoom = if short <= SMALL { READABLE.div_ceil(short).min(MAX_ZOOM).min(MAX_ENLARGED / long).max(1) } else { 1 };
        let side = (f64::from(short) * f64::from(long)).sqrt() * f64::from(zoom);
        let wanted = (side / SIDE_PER_LETTER) as u32;
        let height = |font: &MonoFont<'_>, zoom: u32| font.character_size.height * zoom;
        let sizes = (1..=MAX_ZOOM).flat_map(|zoom| FONTS.map(|font| (font, zoom)));
        // The largest that is not higher than wanted; of equal ones the finer letters.
        let (font, font_zoom) = sizes.fold((FONTS[0], 1), |best, next| {
            let better = height(next.0, next.1) <= wanted && height(next.0, next.1) > height(best.0, best.1);
            if better { next } else { best }
        });
        let line = (height(font, font_zoom) / LETTER_PER_LINE).max(1);
        Self { zoom, line, font, font_zoom }
    }

    /// Diameter of a keypoint, canvas px.
    pub const fn dot(&self) -> u32 {
        2 * self.line + 3
    }

    /// Height of a line of text, canvas px.
    pub const fn text_height(&self) -> u32 {
        self.font.character_size.height * self.font_zoom
    }

    /// Width of `text`, canvas px.
    pub fn text_width(&self, text: &str) -> u32 {
        let letters = u32::try_from(text.chars().count()).unwrap_or(u32::MAX);
        (self.font.character_size.width * self.font_zoom).saturating_mul(letters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(width: u32, height: u32, zoom: u32) -> Style {
        let style = Style::for_size(Size { width, height });
        assert_eq!(style.zoom, zoom, "{width} x {height}");
        style
    }

    #[test]
    fn small_pictures_are_enlarged_and_lines_and_letters_grow() {
        let tiny = check(160, 128, 3);
        check(144, 144, 3);
        check(145, 145, 1);
        check(1, 1, MAX_ZOOM);
        check(8192, 10, 1);
        check(0, 0, MAX_ZOOM);
        let (vga, full, ultra) = (check(640, 480, 1), check(1920, 1080, 1), check(3840, 2160, 1));
        assert!(tiny.text_height() >= 10 && tiny.line >= 2);
        assert!(vga.text_height() < full.text_height() && full.text_height() < ultra.text_height());
        assert!(vga.line < full.line && full.line < ultra.line);
    }
}
