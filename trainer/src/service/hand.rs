//! What people say of labels: whom a picture shows (pure). A person is told no threshold: a keypoint is visible, hidden or not there.

use omnilabel_coco::from_continuous;
use omnilabel_keypoints::MAX_INSTANCES;
use omnilabel_keypoints::geometry::{Rect, Size};
use omnilabel_keypoints::label::{Detection, HardKeypoint, Visibility, harden};
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_keypoints::wire::{FACES_BLURRED, LabelMsg};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// A word on a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is right as the device made it.
    Accepted,
    /// Somebody put it right.
    Corrected,
    /// Nothing is to be learnt from it.
    Rejected,
}

/// A word that is no verdict.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no verdict, expected accepted, corrected or rejected")]
pub struct NoVerdict(String);

impl Verdict {
    /// As it is stored and told.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Corrected => "corrected",
            Self::Rejected => "rejected",
        }
    }

    /// Whether the label joins the manual set.
    pub const fn is_manual(self) -> bool {
        matches!(self, Self::Accepted | Self::Corrected)
    }
}

impl FromStr for Verdict {
    type Err = NoVerdict;

    fn from_str(text: &str) -> Result<Self, NoVerdict> {
        let all = [Self::Accepted, Self::Corrected, Self::Rejected];
        all.into_iter().find(|verdict| verdict.name() == text).ok_or_else(|| NoVerdict(text.chars().take(40).collect()))
    }
}

/// COCO's flag of a keypoint that is labelled and visible.
const VISIBLE: u8 = 2;

/// One person as a hard label, in pixels of the picture (continuous: pixel `i` covers `i` to `i + 1`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Person {
    /// `x1, y1, x2, y2`.
    #[serde(rename = "box")]
    pub rect: [f32; 4],
    /// `x, y, v` of each keypoint of the skeleton, v as COCO has it: 2 visible, 1 hidden, 0 not labelled (then x and y are 0).
    pub keypoints: Vec<(f32, f32, u8)>,
}

impl Person {
    /// A detection as a hard label (spec §4); `None` when less than a pixel of its box is in the picture. Keypoints outside of it, and
    /// those of faces that were blurred, are not labelled.
    pub fn hard(detection: &Detection, keypoint_threshold: f32, size: Size, skeleton: &Skeleton, faces_blurred: bool) -> Option<Self> {
        let rect = detection.rect.clipped(size);
        if !rect.is_valid() || rect.width() < 1.0 || rect.height() < 1.0 {
            return None;
        }
        let keypoint = |(index, hard): (usize, HardKeypoint)| {
            let blurred = faces_blurred && index < skeleton.len() && skeleton.is_facial(index);
            // A keypoint outside the picture can only come from a broken or hostile device, or from a guess.
            let inside = is_inside(hard.point.x, hard.point.y, size);
            let labelled = hard.visibility != Visibility::Unlabelled && inside && !blurred;
            if labelled { (hard.point.x, hard.point.y, VISIBLE) } else { (0.0, 0.0, 0) }
        };
        let keypoints = harden(detection, keypoint_threshold).into_iter().enumerate().map(keypoint).collect();
        Some(Self { rect: [rect.x1, rect.y1, rect.x2, rect.y2], keypoints })
    }

    /// The box.
    pub const fn rect(&self) -> Rect {
        let [x1, y1, x2, y2] = self.rect;
        Rect::new(x1, y1, x2, y2)
    }

    /// The box as COCO has it: `[x, y, width, height]`, px.
    pub fn bbox(&self) -> [f64; 4] {
        let rect = self.rect();
        [rect.x1, rect.y1, rect.width(), rect.height()].map(f64::from)
    }

    /// The keypoints as COCO has them: `x, y, v` of each, flat, the centre of the first pixel at 0.
    pub fn coco(&self) -> Vec<f64> {
        let place = |&(x, y, v): &(f32, f32, u8)| match v {
            0 => [0.0; 3],
            v => [from_continuous(x), from_continuous(y), f64::from(v)],
        };
        self.keypoints.iter().flat_map(place).collect()
    }

    /// Keypoints that are labelled.
    pub fn labelled(&self) -> u32 {
        self.keypoints.iter().filter(|(_, _, v)| *v > 0).count() as u32
    }
}

fn is_inside(x: f32, y: f32, size: Size) -> bool {
    (0.0..=size.width as f32).contains(&x) && (0.0..=size.height as f32).contains(&y)
}

/// Whom a label shows, as its device decided: the instances above the device's τ, or (`kept` is false) those below it. The former is what
/// somebody sees before the label is accepted or corrected.
pub fn proposed(label: &LabelMsg, skeleton: &Skeleton, keypoint_threshold: f32, kept: bool) -> Vec<Person> {
    let read = label.label();
    let faces_blurred = label.changes & FACES_BLURRED != 0;
    let wanted = read.instances.iter().filter(|instance| instance.kept == kept);
    wanted.filter_map(|instance| Person::hard(&instance.detection, keypoint_threshold, read.size, skeleton, faces_blurred)).collect()
}

/// Checks what somebody drew on a picture of `size`, and takes places away from keypoints that are not labelled.
///
/// # Errors
/// Which instance, what it says, what is expected.
pub fn checked(mut people: Vec<Person>, size: Size, keypoints: usize) -> Result<Vec<Person>, String> {
    if people.len() > MAX_INSTANCES {
        return Err(format!("{} instances, expected at most {MAX_INSTANCES}", people.len()));
    }
    let Size { width, height } = size;
    for (at, person) in people.iter_mut().enumerate() {
        let [x1, y1, x2, y2] = person.rect;
        let whole = person.rect.iter().all(|edge| edge.is_finite());
        if !whole || !is_inside(x1, y1, size) || !is_inside(x2, y2, size) || x2 - x1 < 1.0 || y2 - y1 < 1.0 {
            let expected = "x1, y1, x2, y2 at least a pixel apart within";
            return Err(format!("instance {at} has the box {:?}, expected {expected} {width} × {height}", person.rect));
        }
        if person.keypoints.len() != keypoints {
            return Err(format!("instance {at} has {} keypoints, expected {keypoints}", person.keypoints.len()));
        }
        for (index, keypoint) in person.keypoints.iter_mut().enumerate() {
            let (x, y, v) = *keypoint;
            if v > VISIBLE {
                return Err(format!("keypoint {index} of instance {at} has v = {v}, expected 2 visible, 1 hidden, 0 not labelled"));
            }
            if v == 0 {
                *keypoint = (0.0, 0.0, 0);
            } else if !is_inside(x, y, size) {
                return Err(format!("keypoint {index} of instance {at} is at ({x}, {y}), expected within {width} × {height}"));
            }
        }
    }
    Ok(people)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { width: 96, height: 64 };

    fn person() -> Person {
        Person { rect: [1.0, 2.0, 30.5, 60.0], keypoints: vec![(3.0, 4.0, 2), (0.0, 64.0, 1), (7.0, 8.0, 0)] }
    }

    #[test]
    fn what_was_drawn_is_taken_and_what_is_not_labelled_has_no_place() {
        let taken = checked(vec![person(); MAX_INSTANCES], SIZE, 3).unwrap();
        assert_eq!((taken.len(), taken[0].keypoints[2], taken[0].labelled()), (MAX_INSTANCES, (0.0, 0.0, 0), 2));
        assert_eq!(checked(Vec::new(), SIZE, 3).unwrap(), [], "nobody is there");
        let json = serde_json::to_string(&taken[0]).unwrap();
        assert_eq!(json, r#"{"box":[1.0,2.0,30.5,60.0],"keypoints":[[3.0,4.0,2],[0.0,64.0,1],[0.0,0.0,0]]}"#);
        assert_eq!(serde_json::from_str::<Person>(&json).unwrap(), taken[0]);
    }

    #[test]
    fn what_cannot_be_on_the_picture_is_named() {
        let check = |change: &dyn Fn(&mut Person), expected: &str| {
            let mut wrong = person();
            change(&mut wrong);
            let told = checked(vec![person(), wrong], SIZE, 3).unwrap_err();
            assert!(told.contains("instance 1") && told.contains(expected), "{told}");
        };
        for rect in
            [[1.0, 2.0, 97.0, 60.0], [-1.0, 2.0, 9.0, 60.0], [1.0, 2.0, 1.5, 60.0], [9.0, 2.0, 1.0, 60.0], [f32::NAN, 2.0, 9.0, 60.0]]
        {
            check(&|p| p.rect = rect, "expected x1, y1, x2, y2 at least a pixel apart within 96 × 64");
        }
        check(&|p| p.keypoints.truncate(2), "2 keypoints, expected 3");
        check(&|p| p.keypoints[1].2 = 3, "v = 3, expected 2 visible");
        for (x, y) in [(96.5, 1.0), (1.0, -0.5), (f32::INFINITY, 1.0), (1.0, f32::NAN)] {
            check(&|p| p.keypoints[0] = (x, y, 2), "expected within 96 × 64");
        }
        let told = checked(vec![person(); MAX_INSTANCES + 1], SIZE, 3).unwrap_err();
        assert_eq!(told, format!("{} instances, expected at most {MAX_INSTANCES}", MAX_INSTANCES + 1));
        for text in ["Accepted", "", "undecided"] {
            assert!(text.parse::<Verdict>().unwrap_err().to_string().contains("expected accepted, corrected or rejected"));
        }
        assert_eq!("corrected".parse(), Ok(Verdict::Corrected));
    }
}
