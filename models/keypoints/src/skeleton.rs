//! The skeleton: keypoint names, left/right permutation, edges and OKS sigmas in one table.

use crate::MAX_KEYPOINTS;
use heapless::{String, Vec};

/// The longest keypoint name in bytes.
pub const MAX_NAME: usize = 24;
/// The most edges a skeleton may have.
pub const MAX_EDGES: usize = 64;

/// A side of the body, the body's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Left.
    Left,
    /// Right.
    Right,
    /// In the middle.
    Centre,
}

impl Side {
    /// In lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Right => "right",
            Self::Centre => "centre",
        }
    }
}

/// Why a skeleton was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SkeletonError {
    /// More than [`MAX_KEYPOINTS`] keypoints, or none.
    #[error("a skeleton has 1 to {MAX_KEYPOINTS} keypoints, not {0}")]
    Count(usize),
    /// A name is empty or longer than [`MAX_NAME`] bytes.
    #[error("the name of keypoint {0} is empty or longer than {MAX_NAME} bytes")]
    Name(usize),
    /// The flip permutation is not an involution on the keypoints.
    #[error("the flip permutation is not an involution: keypoint {from} goes to {to}, which does not come back")]
    Flip {
        /// The keypoint.
        from: usize,
        /// Where the permutation sends it.
        to: usize,
    },
    /// The flip permutation or the sigmas have another length than the names.
    #[error("{what} has {found} entries, expected one for each of the {expected} keypoints")]
    Length {
        /// Which table.
        what: &'static str,
        /// Keypoints.
        expected: usize,
        /// Entries.
        found: usize,
    },
    /// An edge names a keypoint that does not exist, or there are more than [`MAX_EDGES`].
    #[error("edge {0} is out of range")]
    Edge(usize),
    /// A sigma is not a positive finite number.
    #[error("the sigma of keypoint {0} is not a positive number")]
    Sigma(usize),
}

/// COCO's names with the sigmas of pycocotools (`cocoeval.py`, `kpt_oks_sigmas`).
const COCO: [(&str, f32); 17] = [
    ("nose", 0.026),
    ("left_eye", 0.025),
    ("right_eye", 0.025),
    ("left_ear", 0.035),
    ("right_ear", 0.035),
    ("left_shoulder", 0.079),
    ("right_shoulder", 0.079),
    ("left_elbow", 0.072),
    ("right_elbow", 0.072),
    ("left_wrist", 0.062),
    ("right_wrist", 0.062),
    ("left_hip", 0.107),
    ("right_hip", 0.107),
    ("left_knee", 0.087),
    ("right_knee", 0.087),
    ("left_ankle", 0.089),
    ("right_ankle", 0.089),
];

/// The sigma of a keypoint that neither the file nor COCO knows: about the mean of COCO's limbs.
const OTHER_SIGMA: f32 = 0.08;

/// `categories[0].skeleton` of COCO 2017, made 0-based.
#[rustfmt::skip]
const COCO_EDGES: [(u8, u8); 19] = [
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
    (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
];

/// Whether two names differ only in their side: `left_x`/`right_x`, `l_x`/`r_x`, the same as suffixes, and `leftX`/`rightX`;
/// letter case does not matter.
fn are_mirrored(a: &str, b: &str) -> bool {
    fn tail<'w>(word: &'w str, side: &str) -> Option<&'w str> {
        let (head, tail) = word.split_at_checked(side.len())?;
        head.eq_ignore_ascii_case(side).then_some(tail)
    }
    fn swapped(a: &str, b: &str) -> bool {
        let spelt = |left, right| matches!((tail(a, left), tail(b, right)), (Some(x), Some(y)) if x.eq_ignore_ascii_case(y));
        let letter = |left: &str, right: &str| a.eq_ignore_ascii_case(left) && b.eq_ignore_ascii_case(right);
        spelt("left", "right") || spelt("right", "left") || letter("l", "r") || letter("r", "l")
    }
    let split = |c: char| matches!(c, '_' | '-' | ' ' | '.');
    let (mut words_a, mut words_b) = (a.split(split), b.split(split));
    let mut sides = 0;
    loop {
        match (words_a.next(), words_b.next()) {
            (None, None) => return sides == 1,
            (Some(a), Some(b)) if swapped(a, b) => sides += 1,
            (Some(a), Some(b)) if a.eq_ignore_ascii_case(b) => {}
            _ => return false,
        }
    }
}

/// Words of names of keypoints that lie on a head and show whose it is or where it ends.
const FACIAL: [&str; 14] =
    ["nose", "eye", "ear", "mouth", "lip", "chin", "jaw", "cheek", "brow", "eyebrow", "pupil", "forehead", "face", "head"];

/// One table of what a skeleton is.
#[derive(Clone, Debug, PartialEq)]
pub struct Skeleton {
    names: Vec<String<MAX_NAME>, MAX_KEYPOINTS>,
    flip: Vec<u8, MAX_KEYPOINTS>,
    edges: Vec<(u8, u8), MAX_EDGES>,
    sigmas: Vec<f32, MAX_KEYPOINTS>,
}

impl Skeleton {
    /// A skeleton from its parts.
    ///
    /// `edges` are pairs of 0-based indices. Without `flip`, the permutation pairs `left_x` with `right_x` by name. Without
    /// `sigmas`, COCO's are taken for COCO's names and 0.08 for others.
    ///
    /// # Errors
    /// See [`SkeletonError`].
    pub fn new(names: &[&str], edges: &[(u8, u8)], flip: Option<&[u8]>, sigmas: Option<&[f32]>) -> Result<Self, SkeletonError> {
        if names.is_empty() || names.len() > MAX_KEYPOINTS {
            return Err(SkeletonError::Count(names.len()));
        }
        let count = names.len();
        let mut table = Self { names: Vec::new(), flip: Vec::new(), edges: Vec::new(), sigmas: Vec::new() };
        for (index, name) in names.iter().enumerate() {
            let owned = String::try_from(*name).ok().filter(|n: &String<MAX_NAME>| !n.is_empty()).ok_or(SkeletonError::Name(index))?;
            table.names.push(owned).map_err(|_| SkeletonError::Count(count))?;
        }
        for (what, length) in [("flip", flip.map(<[u8]>::len)), ("sigmas", sigmas.map(<[f32]>::len))] {
            if let Some(found) = length.filter(|&found| found != count) {
                return Err(SkeletonError::Length { what, expected: count, found });
            }
        }
        for (from, name) in names.iter().enumerate() {
            let to = match flip {
                Some(flip) => flip[from],
                None => names.iter().position(|other| are_mirrored(name, other)).unwrap_or(from) as u8,
            };
            table.flip.push(to).map_err(|_| SkeletonError::Count(count))?;
            let sigma = match sigmas {
                Some(sigmas) => sigmas[from],
                None => COCO.iter().find(|(coco, _)| coco == name).map_or(OTHER_SIGMA, |&(_, sigma)| sigma),
            };
            if !(sigma.is_finite() && sigma > 0.0) {
                return Err(SkeletonError::Sigma(from));
            }
            table.sigmas.push(sigma).map_err(|_| SkeletonError::Count(count))?;
        }
        for (from, &to) in table.flip.iter().enumerate() {
            if table.flip.get(usize::from(to)).map(|&back| usize::from(back)) != Some(from) {
                return Err(SkeletonError::Flip { from, to: usize::from(to) });
            }
        }
        for (index, &(a, b)) in edges.iter().enumerate() {
            if usize::from(a.max(b)) >= count {
                return Err(SkeletonError::Edge(index));
            }
            table.edges.push((a, b)).map_err(|_| SkeletonError::Edge(index))?;
        }
        Ok(table)
    }

    /// COCO's 17 keypoints with the sigmas of pycocotools.
    pub fn coco17() -> Self {
        let names = COCO.map(|(name, _)| name);
        match Self::new(&names, &COCO_EDGES, None, None) {
            Ok(skeleton) => skeleton,
            Err(_) => unreachable!("the constant table is valid (tested)"),
        }
    }

    /// The number of keypoints, `k`.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Never true: a skeleton has at least one keypoint.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The name of keypoint `index`.
    pub fn name(&self, index: usize) -> &str {
        &self.names[index]
    }

    /// On which side of the body keypoint `index` lies: one that a mirror leaves in its place in the middle, of the others by their names.
    pub fn side(&self, index: usize) -> Side {
        let name = self.name(index);
        let says_left = name.as_bytes().windows(4).any(|part| part.eq_ignore_ascii_case(b"left")) || name.starts_with("l_");
        match usize::from(self.flip[index]) == index {
            true => Side::Centre,
            false if says_left => Side::Left,
            false => Side::Right,
        }
    }

    /// Whether keypoint `index` lies on the face or the head, by its name.
    pub fn is_facial(&self, index: usize) -> bool {
        let name = self.name(index);
        let plain = |word: &str| {
            let side = |side: &str| word.split_at_checked(side.len()).filter(|(head, _)| head.eq_ignore_ascii_case(side));
            let tail = side("left").or_else(|| side("right")).map_or(word, |(_, tail)| tail);
            FACIAL.iter().any(|facial| facial.eq_ignore_ascii_case(tail))
        };
        name.split(['_', '-', ' ', '.']).any(plain)
    }

    /// All names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// `flip()[i]` is the keypoint that `i` becomes in a mirrored image.
    pub fn flip(&self) -> &[u8] {
        &self.flip
    }

    /// Pairs of 0-based keypoint indices that are drawn as a line.
    pub fn edges(&self) -> &[(u8, u8)] {
        &self.edges
    }

    /// OKS sigma of each keypoint (COCO's convention: the falloff is `2 * sigma`).
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }
}
