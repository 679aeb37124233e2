//! Whether labels have changed: how many people a frame has, how sure of them the model is, how large they are, how many of their
//! keypoints are visible. Pure.
//!
//! Two sides are compared by the two-sample distance of Kolmogorov and Smirnov: the largest difference of their distribution functions.
//! It reads as a share (0.25: a quarter of the people lie on the other side of some value), asks for no form of the distribution, and does
//! not grow with the number of frames, as the certainty of any difference does. A population stability index would depend on how the bins
//! were chosen, and without any change it is about (bins − 1)·(1/n + 1/m). Here the distance is taken at the edges of fine bins: never more
//! than that of the numbers themselves.
//!
//! | file | what it holds |
//! |---|---|
//! | `drift.rs` | labels as counts, their distance |
//! | [`fleet`] | a device's newest labels against its model's first days |
//! | [`watch`] | the loop that counts what the collector stored |

pub mod fleet;
pub mod watch;

use omnilabel_keypoints::label::Label;
use omnilabel_keypoints::{MAX_INSTANCES, MAX_KEYPOINTS};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Bins of a number between 0 and 1.
const BINS: usize = 32;
/// By chance alone a distance exceeds this · √((n + m) / (n·m)) once in a thousand times (the limit distribution: Smirnov 1948, Annals of
/// Mathematical Statistics 19:279). Neighbouring frames are alike, so that this is a lower bound.
const CHANCE: f64 = 1.949;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// Labelled people in a frame.
    People,
    /// How far above the threshold a person's score is, 0 to 1.
    Score,
    /// √ of the share of the frame that a person's box takes.
    Size,
    /// Visible keypoints of a person.
    Keypoints,
}

impl Statistic {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::People => "people a frame",
            Self::Score => "score",
            Self::Size => "size",
            Self::Keypoints => "keypoints a person",
        }
    }

    /// For programs: as in JSON.
    pub const fn key(self) -> &'static str {
        match self {
            Self::People => "people",
            Self::Score => "score",
            Self::Size => "size",
            Self::Keypoints => "keypoints",
        }
    }
}

/// What a label's numbers are measured by, so that models whose scores differ can be compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// A score here is 0, one of 1 is 1.
    pub instance: f32,
    /// A keypoint is visible from this probability on.
    pub keypoint: f32,
}

/// Labels in counts, which add up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Frames by their people.
    people: Vec<u64>,
    /// People by score.
    score: Vec<u64>,
    /// People by size.
    size: Vec<u64>,
    /// People by visible keypoints.
    keypoints: Vec<u64>,
}

impl Counts {
    /// Adds one frame's label; what its τ did not keep does not count.
    pub fn add(&mut self, label: &Label, scale: Scale) {
        let kept = || label.instances.iter().filter(|instance| instance.kept).map(|instance| &instance.detection);
        one(&mut self.people, kept().count(), MAX_INSTANCES + 1);
        let frame_px2 = f64::from(label.size.width) * f64::from(label.size.height);
        for person in kept() {
            let above = f64::from(person.score - scale.instance) / f64::from(1.0 - scale.instance).max(f64::EPSILON);
            one(&mut self.score, bin(above), BINS);
            let area_px2 = f64::from(person.rect.clipped(label.size).area().max(0.0));
            one(&mut self.size, bin((area_px2 / frame_px2.max(1.0)).sqrt()), BINS);
            let visible = person.keypoints.iter().filter(|keypoint| keypoint.passes(scale.keypoint)).count();
            one(&mut self.keypoints, visible, MAX_KEYPOINTS + 1);
        }
    }

    /// Adds what others counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.people, &other.people),
            (&mut self.score, &other.score),
            (&mut self.size, &other.size),
            (&mut self.keypoints, &other.keypoints),
        ] {
            mine.resize(mine.len().max(theirs.len()), 0);
            mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| *mine = mine.saturating_add(*theirs));
        }
    }

    /// Frames.
    pub fn frames(&self) -> u64 {
        total(&self.people)
    }

    /// People.
    pub fn people(&self) -> u64 {
        total(&self.score)
    }

    /// The counts of a statistic by bin.
    fn bins(&self, what: Statistic) -> &[u64] {
        match what {
            Statistic::People => &self.people,
            Statistic::Score => &self.score,
            Statistic::Size => &self.size,
            Statistic::Keypoints => &self.keypoints,
        }
    }

    /// The mean of a statistic, each bin at its middle.
    fn mean(&self, what: Statistic) -> f64 {
        let bins = self.bins(what);
        let sum: f64 = bins.iter().enumerate().map(|(bin, count)| bin as f64 * *count as f64).sum();
        let mean = sum / total(bins).max(1) as f64;
        match what {
            Statistic::People | Statistic::Keypoints => mean,
            Statistic::Score | Statistic::Size => (mean + 0.5) / BINS as f64,
        }
    }
}

fn one(bins: &mut Vec<u64>, at: usize, most: usize) {
    bins.resize(bins.len().max(most), 0);
    bins[at.min(most - 1)] += 1;
}

/// Of a number from 0 to 1; one that is none is 0.
fn bin(value: f64) -> usize {
    (value.clamp(0.0, 1.0) * BINS as f64) as usize
}

fn total(bins: &[u64]) -> u64 {
    bins.iter().fold(0, |sum, count| sum.saturating_add(*count))
}

/// The largest difference of the distribution functions at the edges of the bins; `None` when there is nothing on a side.
fn distance(a: &[u64], b: &[u64]) -> Option<f64> {
    let (n, m) = (total(a), total(b));
    if n == 0 || m == 0 {
        return None;
    }
    let at = |bins: &[u64], bin: usize| bins.get(bin).copied().unwrap_or(0);
    let (mut below_a, mut below_b, mut largest) = (0, 0, 0.0_f64);
    for bin in 0..a.len().max(b.len()) {
        below_a += at(a, bin);
        below_b += at(b, bin);
        largest = largest.max((below_a as f64 / n as f64 - below_b as f64 / m as f64).abs());
    }
    Some(largest)
}

/// What a distance between `n` and `m` numbers reaches by chance, once in a thousand times.
fn noise(n: f64, m: f64) -> f64 {
    CHANCE * ((n + m) / (n * m)).sqrt()
}

/// One statistic of two sides.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// Which.
    pub what: Statistic,
    /// Its mean before …
    pub before: f64,
    /// … and after.
    pub after: f64,
    /// Of Kolmogorov and Smirnov, 0 to 1.
    pub distance: f64,
    /// What chance reaches, once in a thousand times, if frames were independent of each other; may be above 1.
    pub noise: f64,
    /// Whether the distance is above the limit, and chance does not reach it.
    pub drifted: bool,
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:.2} ({:.2} to {:.2})", self.what.name(), self.distance, self.before, self.after)
    }
}

/// Compares two sides. Where one has people and the other none at all, that is a distance of 1 in people, however many frames are empty.
pub fn compare(before: &Counts, after: &Counts, limit: f64) -> Vec<Compared> {
    let of = |what: Statistic| {
        let (a, b) = (before.bins(what), after.bins(what));
        let (mut distance, mut noise) = (distance(a, b)?, noise(total(a) as f64, total(b) as f64));
        if what == Statistic::People
            && let Some((people, expected)) = gone(before, after)
        {
            (distance, noise) = (1.0, self::noise(people, expected));
        }
        let drifted = distance > limit && distance > noise;
        Some(Compared { what, before: before.mean(what), after: after.mean(what), distance, noise, drifted })
    };
    [Statistic::People, Statistic::Score, Statistic::Size, Statistic::Keypoints].into_iter().filter_map(of).collect()
}

/// The people of the one side that has some, and how many the other, which has none, would have in its frames.
fn gone(before: &Counts, after: &Counts) -> Option<(f64, f64)> {
    let (some, none) = match (before.people(), after.people()) {
        (1.., 0) => (before, after),
        (0, 1..) => (after, before),
        _ => return None,
    };
    let people = some.people() as f64;
    Some((people, people * none.frames() as f64 / some.frames().max(1) as f64)).filter(|(_, expected)| *expected > 0.0)
}

/// In words: every statistic.
pub fn told(compared: &[Compared]) -> String {
    compared.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What both models of a round make of the fleet's newest pictures. Kept as JSON in the round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Relabelled {
    /// Pictures that both labelled.
    pub frames: u64,
    /// Of these without anybody for either of them; they are not compared.
    pub empty: u64,
    /// Of the frames, those that came after the round's snapshot: the student did not train on them.
    pub unseen: u64,
    /// The sample was drawn from the newest pictures up to this label …
    pub newest: i64,
    /// … with this seed; its names are those in `rounds/N/drift`.
    pub seed: u64,
    /// The running model, and the student.
    pub compared: Vec<Compared>,
}

impl Relabelled {
    /// Whether a statistic drifted.
    pub fn has_drifted(&self) -> bool {
        self.compared.iter().any(|compared| compared.drifted)
    }
}

impl fmt::Display for Relabelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { frames, empty, unseen, compared, .. } = self;
        write!(f, "labels of {frames} pictures of the fleet ({unseen} of them after the snapshot, {empty} without anybody)")?;
        if compared.is_empty() { write!(f, ": nothing to compare") } else { write!(f, ", distances: {}", told(compared)) }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use omnilabel_keypoints::geometry::{Rect, Size};
    use omnilabel_keypoints::label::{Detection, Instance, Keypoint};

    const SCALE: Scale = Scale { instance: 0.5, keypoint: 0.2 };

    /// A frame of 100 × 100 px with `people` of this score, box side and number of visible keypoints.
    pub(crate) fn frame(people: usize, score: f32, side: f32, visible: usize) -> Label {
        let keypoint = |index: usize| Keypoint { probability: if index < visible { 0.9 } else { 0.1 }, ..Keypoint::default() };
        let person = || Detection { rect: Rect::new(0.0, 0.0, side, side), score, keypoints: (0..17).map(keypoint).collect() };
        Label {
            size: Size { width: 100, height: 100 },
            instances: (0..people).map(|_| Instance { detection: person(), kept: score >= SCALE.instance }).collect(),
            overflow: 0,
        }
    }

    pub(crate) fn counts(frames: usize, label: &Label) -> Counts {
        let mut counts = Counts::default();
        (0..frames).for_each(|_| counts.add(label, SCALE));
        counts
    }

    fn drifted(compared: &[Compared]) -> Vec<Statistic> {
        compared.iter().filter(|compared| compared.drifted).map(|compared| compared.what).collect()
    }

    /// ```text
    /// rng = np.random.default_rng(7); a, b = rng.binomial(20, 0.2, 400), rng.binomial(20, 0.3, 250)
    /// np.bincount(a, minlength=21), np.bincount(b, minlength=21)
    /// scipy.stats.ks_2samp(a, b).statistic, scipy.stats.kstwobign.isf(0.001)
    /// ```
    #[test]
    fn distances_are_scipys() {
        let a = [3_u64, 27, 59, 75, 84, 70, 46, 25, 7, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let b = [0_u64, 1, 8, 12, 28, 46, 51, 57, 26, 12, 7, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        assert!((distance(&a, &b).unwrap() - 0.424).abs() < 1e-12);
        assert!((CHANCE - 1.949_474_6).abs() < 1e-3);
        assert_eq!(distance(&a, &a), Some(0.0));
        assert_eq!(distance(&[3], &[0, 5]), Some(1.0), "bins that a side does not have are empty");
        assert_eq!((distance(&a, &[0, 0]), distance(&[], &b)), (None, None));
    }

    #[test]
    fn a_label_is_counted_by_what_it_keeps() {
        let counts = counts(1, &frame(2, 0.75, 50.0, 5));
        let place = |bins: &[u64]| bins.iter().position(|count| *count > 0).unwrap();
        assert_eq!((counts.frames(), counts.people()), (1, 2));
        assert_eq!((place(&counts.people), place(&counts.score), place(&counts.size), place(&counts.keypoints)), (2, 16, 16, 5));
        assert_eq!((counts.mean(Statistic::People), counts.mean(Statistic::Keypoints)), (2.0, 5.0));
        assert_eq!(counts.mean(Statistic::Size), 16.5 / 32.0);
        let unkept = self::counts(3, &frame(2, 0.4, 50.0, 5));
        assert_eq!((unkept.frames(), unkept.people()), (3, 0));
        let mut odd = frame(1, f32::NAN, f32::NAN, 17);
        odd.instances[0].kept = true;
        odd.size = Size { width: 0, height: 0 };
        assert_eq!(self::counts(1, &odd).people(), 1, "whatever came is counted somewhere");
    }

    #[test]
    fn what_is_counted_apart_adds_up() {
        let (a, b) = (counts(3, &frame(1, 0.9, 20.0, 4)), counts(2, &frame(0, 0.0, 0.0, 0)));
        let mut sum = Counts::default();
        sum.merge(&a);
        sum.merge(&b);
        assert_eq!((sum.frames(), sum.people(), sum.people[0], sum.people[1]), (5, 3, 2, 3));
        let read: Counts = serde_json::from_str(&serde_json::to_string(&sum).unwrap()).unwrap();
        assert_eq!(read, sum);
    }

    #[test]
    fn each_statistic_drifts_by_itself() {
        let before = counts(200, &frame(1, 0.8, 40.0, 12));
        let check = |after: &Label, expected: &[Statistic]| {
            let compared = compare(&before, &counts(200, after), 0.25);
            assert_eq!(drifted(&compared), expected, "{compared:?}");
            assert_eq!(compared.len(), 4);
        };
        check(&frame(1, 0.8, 40.0, 12), &[]);
        check(&frame(3, 0.8, 40.0, 12), &[Statistic::People]);
        check(&frame(1, 0.55, 40.0, 12), &[Statistic::Score]);
        check(&frame(1, 0.8, 20.0, 12), &[Statistic::Size]);
        check(&frame(1, 0.8, 40.0, 3), &[Statistic::Keypoints]);
        let said = told(&compare(&before, &counts(200, &frame(3, 0.8, 40.0, 12)), 0.25));
        assert!(said.starts_with("people a frame 1.00 (1.00 to 3.00), score 0.00"), "{said}");
    }

    #[test]
    fn neither_few_frames_nor_a_small_difference_is_a_drift() {
        let (one, three) = (frame(1, 0.8, 40.0, 12), frame(3, 0.8, 40.0, 12));
        // With 7 on each side chance reaches every distance: 1.949·√(2/7) = 1.04.
        assert_eq!(drifted(&compare(&counts(7, &one), &counts(7, &three), 0.25)), []);
        assert_eq!(drifted(&compare(&counts(8, &one), &counts(8, &three), 0.25)), [Statistic::People]);
        let mut mixed = counts(800, &one);
        mixed.merge(&counts(200, &three));
        assert_eq!(drifted(&compare(&counts(1000, &one), &mixed, 0.25)), [], "a fifth of the frames");
        assert_eq!(drifted(&compare(&counts(1000, &one), &mixed, 0.15)), [Statistic::People]);
    }

    #[test]
    fn people_that_are_gone_are_missed_among_many_empty_frames() {
        let (empty, person) = (frame(0, 0.0, 0.0, 0), frame(1, 0.8, 40.0, 12));
        let mut yard = counts(980, &empty);
        yard.merge(&counts(20, &person));
        let dark = counts(1000, &empty);
        for compared in [compare(&yard, &dark, 0.25), compare(&dark, &yard, 0.25)] {
            assert_eq!((drifted(&compared), compared.len(), compared[0].distance), (vec![Statistic::People], 1, 1.0));
        }
        assert_eq!(drifted(&compare(&yard, &counts(200, &empty), 0.25)), [], "four people fewer are chance");
        assert_eq!(drifted(&compare(&dark, &dark, 0.25)), []);
    }
}
