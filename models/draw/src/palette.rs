//! Colours: limbs by side, boxes by instance.

use embedded_graphics::pixelcolor::{Rgb888, RgbColor};
use omnilabel_keypoints::skeleton::Skeleton;

/// Red, green, blue.
pub type Colour = [u8; 3];

/// Limbs and keypoints of the left side: the three colours are those of mmpose's COCO pictures.
pub const LEFT: Colour = [0, 255, 0];
/// Of the right side.
pub const RIGHT: Colour = [255, 128, 0];
/// Of neither side: face, trunk.
pub const CENTRE: Colour = [51, 153, 255];
/// The box of a labelled person.
pub const TRUTH: Colour = [240, 240, 240];
/// The box of a labelled person whom nobody found.
pub const MISSED: Colour = [255, 40, 40];

/// Boxes of neighbours in a list are told apart.
const INSTANCES: [Colour; 10] = [
    [255, 221, 51],
    [64, 224, 208],
    [255, 105, 180],
    [186, 140, 255],
    [168, 255, 96],
    [255, 160, 122],
    [120, 190, 255],
    [230, 230, 120],
    [255, 130, 255],
    [130, 240, 170],
];

/// What a box stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// A detection, by its place in the list.
    Instance(usize),
    /// A labelled person.
    Truth,
    /// A labelled person whom nobody found.
    Missed,
}

impl Tone {
    /// The colour of the box.
    pub const fn colour(self) -> Colour {
        match self {
            Self::Instance(index) => INSTANCES[index % INSTANCES.len()],
            Self::Truth => TRUTH,
            Self::Missed => MISSED,
        }
    }
}

pub(crate) const fn rgb([r, g, b]: Colour) -> Rgb888 {
    Rgb888::new(r, g, b)
}

/// Black or white, whichever is read more easily on `colour` (luma of ITU-R BT.601).
pub(crate) fn ink([r, g, b]: Colour) -> Rgb888 {
    let luma = 299 * u32::from(r) + 587 * u32::from(g) + 114 * u32::from(b);
    if luma > 128_000 { Rgb888::BLACK } else { Rgb888::WHITE }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
    Centre,
}

impl Side {
    pub(crate) const fn colour(self) -> Colour {
        match self {
            Self::Left => LEFT,
            Self::Right => RIGHT,
            Self::Centre => CENTRE,
        }
    }

    /// The side of a limb between two keypoints: theirs, if the other is of the same or of none.
    pub(crate) const fn between(self, other: Self) -> Self {
        match (self, other) {
            (Self::Left, Self::Left | Self::Centre) | (Self::Centre, Self::Left) => Self::Left,
            (Self::Right, Self::Right | Self::Centre) | (Self::Centre, Self::Right) => Self::Right,
            _ => Self::Centre,
        }
    }
}

/// The side of each keypoint: of a mirrored pair, by name; where the names do not say, the first is the left one.
pub(crate) fn sides(skeleton: &Skeleton) -> Vec<Side> {
    let says = |index: usize, side: &str| {
        let name = skeleton.name(index).to_ascii_lowercase();
        let mut words = name.split(|c: char| !c.is_ascii_alphanumeric());
        words.any(|word| word.starts_with(side) || word == &side[..1])
    };
    let side = |(index, &mirrored): (usize, &u8)| {
        let mirrored = usize::from(mirrored);
        let left = says(index, "left") || says(mirrored, "right");
        let right = says(index, "right") || says(mirrored, "left");
        match (left, right) {
            _ if mirrored == index => Side::Centre,
            (true, false) => Side::Left,
            (false, true) => Side::Right,
            _ if index < mirrored => Side::Left,
            _ => Side::Right,
        }
    };
    skeleton.flip().iter().enumerate().map(side).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_read_from_names_and_from_the_flip() {
        let coco = sides(&Skeleton::coco17());
        assert_eq!((coco[0], coco[1], coco[2], coco[15], coco[16]), (Side::Centre, Side::Left, Side::Right, Side::Left, Side::Right));
        let names = ["rightPaw", "leftPaw", "tail", "ear_a", "ear_b"];
        let dog = sides(&Skeleton::new(&names, &[], Some(&[1, 0, 2, 4, 3]), None).unwrap());
        assert_eq!(dog, [Side::Right, Side::Left, Side::Centre, Side::Left, Side::Right]);
    }

    #[test]
    fn a_limb_to_the_middle_is_of_its_side_and_one_across_of_none() {
        assert_eq!(Side::Left.between(Side::Centre), Side::Left);
        assert_eq!(Side::Centre.between(Side::Right), Side::Right);
        assert_eq!(Side::Left.between(Side::Right), Side::Centre);
    }
}
