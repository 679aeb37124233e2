//! One person and how it is drawn: box, limbs, keypoints, caption.

use crate::canvas::Canvas;
use crate::palette::{Side, Tone, sides};
use crate::style::Style;
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::{Point, Rect};
use omnilabel_keypoints::label::Detection;
use omnilabel_keypoints::skeleton::Skeleton;

/// One keypoint, in frame pixels (continuous coordinates).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mark {
    /// Drawn filled, with its limbs.
    Sure(Point),
    /// Labelled though it cannot be seen (COCO's v = 1): hollow, with its limbs.
    Hidden(Point),
    /// Below the threshold: small and hollow, without limbs.
    Unsure(Point),
    /// Not drawn.
    Absent,
}

impl Mark {
    const fn joint(self) -> Option<Point> {
        match self {
            Self::Sure(point) | Self::Hidden(point) => Some(point),
            Self::Unsure(_) | Self::Absent => None,
        }
    }
}

/// What is drawn of one person.
#[derive(Clone, Debug, PartialEq)]
pub struct Person {
    /// The box.
    pub rect: Option<Rect>,
    /// One per keypoint of the skeleton.
    pub marks: Vec<Mark>,
    /// Written at the box; may be empty.
    pub caption: String,
    /// The colour of the box.
    pub tone: Tone,
}

impl Person {
    /// A detection, by its place in the list: keypoints below `keypoint_threshold` are unsure.
    pub fn detected(detection: &Detection, index: usize, keypoint_threshold: f32, caption: String) -> Self {
        let mark = |k: &omnilabel_keypoints::label::Keypoint| {
            if k.passes(keypoint_threshold) { Mark::Sure(k.point) } else { Mark::Unsure(k.point) }
        };
        Self { rect: Some(detection.rect), marks: detection.keypoints.iter().map(mark).collect(), caption, tone: Tone::Instance(index) }
    }
}

/// `frame` with everybody drawn over it; a small frame is enlarged by a whole factor first (see [`Style`]). Coordinates may be outside
/// or no numbers at all: what is not on the picture is not drawn.
pub fn picture(frame: &Frame, skeleton: &Skeleton, people: &[Person]) -> Frame {
    let mut canvas = Canvas::new(frame, Style::for_size(frame.size));
    let sides = sides(skeleton);
    let (line, dot) = (canvas.style.line, canvas.style.dot());
    let boxes: Vec<_> = people.iter().map(|person| person.rect.and_then(|rect| canvas.pixels_of(rect))).collect();
    for (person, rect) in people.iter().zip(&boxes) {
        if let Some(rect) = rect {
            canvas.outline(*rect, person.tone.colour(), line);
        }
    }
    for person in people {
        let joint = |index: u8| person.marks.get(usize::from(index)).and_then(|mark| mark.joint());
        for &(a, b) in skeleton.edges() {
            if let (Some(from), Some(to)) = (joint(a), joint(b)) {
                canvas.line(from, to, sides[usize::from(a)].between(sides[usize::from(b)]).colour());
            }
        }
        for (index, mark) in person.marks.iter().enumerate() {
            let colour = sides.get(index).map_or(Side::Centre.colour(), |side| side.colour());
            match *mark {
                Mark::Sure(point) => canvas.dot(point, dot, colour, true),
                Mark::Hidden(point) => canvas.dot(point, dot, colour, false),
                Mark::Unsure(point) => canvas.dot(point, line + 2, colour, false),
                Mark::Absent => {}
            }
        }
    }
    // Captions last, so that no limb hides a score; the first people choose their places first, and are on top where there is none left.
    let mut plates = Vec::new();
    let named = people.iter().zip(&boxes).filter(|(person, _)| !person.caption.is_empty());
    let captioned: Vec<_> = named.filter_map(|(person, rect)| Some((person, (*rect)?))).collect();
    for (person, rect) in &captioned {
        plates.push(canvas.place_of_plate(*rect, &person.caption, &plates));
    }
    for ((person, _), plate) in captioned.iter().zip(plates).rev() {
        canvas.plate(plate, &person.caption, person.tone.colour());
    }
    canvas.into_frame()
}
