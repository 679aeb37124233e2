//! A frame with its labels, as inline SVG over the JPEG: sharp at every size.
//!
//! Colours follow the field (MMPose): the person's left green, right orange, the middle blue.

use super::escape;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use omnilabel_coco::to_continuous;
use omnilabel_keypoints::skeleton::{Side, Skeleton};
use std::fmt::Write;

/// One person of a picture, in COCO's coordinates.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// `[x, y, width, height]`.
    pub bbox: [f64; 4],
    /// `x, y, c` for each keypoint, flat: c is a visibility or a probability; 0 is not drawn.
    pub keypoints: Vec<f64>,
    /// The instance's score, `None` for a true label.
    pub score: Option<f64>,
    /// Below the threshold: drawn faintly.
    pub faint: bool,
}

/// A frame and who is on it.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Below the picture.
    pub caption: String,
    /// The frame.
    pub jpeg: Vec<u8>,
    /// Its size in pixels.
    pub size: (u32, u32),
    /// Its labels.
    pub people: Vec<Drawn>,
}

const LEFT: &str = "#00e676";
const RIGHT: &str = "#ff9100";
const MIDDLE: &str = "#40a9ff";

const fn colour(side: Side) -> &'static str {
    match side {
        Side::Left => LEFT,
        Side::Right => RIGHT,
        Side::Centre => MIDDLE,
    }
}

impl Picture {
    /// As a `<figure>`.
    ///
    /// # Errors
    /// Formatting into a string does not fail.
    pub fn html(&self, skeleton: &Skeleton) -> Result<String, std::fmt::Error> {
        let (w, h) = self.size;
        let stroke = f64::from(w.min(h)) / 128.0;
        let mut svg = String::new();
        write!(svg, "<figure><svg viewBox=\"0 0 {w} {h}\" role=\"img\" aria-label=\"{}\">", escape(&self.caption))?;
        write!(
            svg,
            "<image width=\"{w}\" height=\"{h}\" preserveAspectRatio=\"none\" href=\"data:image/jpeg;base64,{}\"/>",
            BASE64.encode(&self.jpeg)
        )?;
        for person in &self.people {
            self.person(&mut svg, person, skeleton, stroke)?;
        }
        write!(svg, "</svg><figcaption>{}</figcaption></figure>", escape(&self.caption))?;
        Ok(svg)
    }

    fn person(&self, svg: &mut String, person: &Drawn, skeleton: &Skeleton, stroke: f64) -> std::fmt::Result {
        let at = |index: usize| -> Option<(f32, f32, f64)> {
            let flat = person.keypoints.get(3 * index..3 * index + 3)?;
            (flat[2] > 0.0).then(|| (to_continuous(flat[0]), to_continuous(flat[1]), flat[2]))
        };
        let [x, y, w, h] = person.bbox;
        let opacity = if person.faint { 0.35 } else { 1.0 };
        let dash = if person.faint { " stroke-dasharray=\"3 2\"" } else { "" };
        write!(svg, "<g opacity=\"{opacity}\" stroke-linecap=\"round\">")?;
        write!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" fill=\"none\" stroke=\"#fff\" stroke-opacity=\".75\" stroke-width=\"{:.2}\"{dash}/>",
            0.7 * stroke
        )?;
        for (from, to) in skeleton.edges() {
            let (Some(a), Some(b)) = (at(usize::from(*from)), at(usize::from(*to))) else { continue };
            let (first, second) = (skeleton.side(usize::from(*from)), skeleton.side(usize::from(*to)));
            let colour = colour(if first == second { first } else { Side::Centre });
            write!(
                svg,
                "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-width=\"{:.2}\"/>",
                a.0,
                a.1,
                b.0,
                b.1,
                1.3 * stroke
            )?;
        }
        for index in 0..skeleton.len() {
            let Some((x, y, value)) = at(index) else { continue };
            let name = skeleton.name(index);
            write!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{:.2}\" fill=\"{}\" stroke=\"#111\" stroke-width=\"{:.2}\"><title>{} {value:.2}</title></circle>",
                1.25 * stroke,
                colour(skeleton.side(index)),
                0.35 * stroke,
                escape(name)
            )?;
        }
        if let Some(score) = person.score {
            let top = (y - 1.5 * stroke).max(6.0 * stroke);
            write!(
                svg,
                "<text x=\"{x:.1}\" y=\"{top:.1}\" font-size=\"{:.1}\" fill=\"#fff\" stroke=\"#000\" stroke-width=\"{:.2}\" paint-order=\"stroke\">{score:.2}</text>",
                6.5 * stroke,
                1.2 * stroke
            )?;
        }
        svg.push_str("</g>");
        Ok(())
    }
}
