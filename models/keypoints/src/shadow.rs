//! Two models on the same frames: how far one that runs beside the confirmed model agrees with it. Pure; times come from outside.

use crate::geometry::{Point, Rect};
use crate::label::{Detection, Label};
use crate::oks::oks;
use crate::{MAX_INSTANCES, MAX_KEYPOINTS};
use core::fmt;
use heapless::Vec;

/// People match from this similarity on.
pub const MATCH_OKS: f64 = 0.5;
/// With fewer people of both models together nothing is said about how they agree.
pub const ENOUGH_PEOPLE: u32 = 16;

/// What two models made of the same frames.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Agreement {
    /// Frames that both labelled.
    pub frames: u32,
    /// People of the confirmed model …
    pub confirmed: u32,
    /// … and of the candidate, each by its own τ.
    pub candidate: u32,
    /// Of these in pairs with an OKS of [`MATCH_OKS`] or more.
    pub matched: u32,
    oks: f64,
    confirmed_secs: f64,
    candidate_secs: f64,
}

/// How far a candidate may be from the confirmed model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// F1 at [`MATCH_OKS`], at least.
    pub f1: f64,
    /// How many times as many people the one may have as the other.
    pub people: f64,
    /// The mean time of a frame may be at most so many times the confirmed model's …
    pub slowdown: f64,
    /// … but never less than this.
    pub slow_secs: f64,
}

/// Where a candidate is too far from the confirmed model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disagreement {
    /// It finds other people, or other poses.
    F1,
    /// It finds many more, or many fewer.
    People,
    /// It is slow.
    Slow,
}

impl Agreement {
    /// Adds a frame. `sigmas` are the skeleton's; keypoints count from this probability on, by the confirmed model's word, and all where it
    /// has none of that.
    pub fn add(&mut self, confirmed: &Label, candidate: &Label, sigmas: &[f32], keypoint: f32) {
        let mut free: Vec<&Detection, MAX_INSTANCES> = kept(confirmed).collect();
        self.frames = self.frames.saturating_add(1);
        self.confirmed = self.confirmed.saturating_add(free.len() as u32);
        for person in kept(candidate) {
            self.candidate = self.candidate.saturating_add(1);
            let best = free.iter().map(|other| similarity(person, other, sigmas, keypoint)).enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
            if let Some((at, oks)) = best
                && oks >= MATCH_OKS
            {
                free.swap_remove(at);
                self.matched = self.matched.saturating_add(1);
                self.oks += oks;
            }
        }
    }

    /// Adds the times that the frame took.
    pub fn took(&mut self, confirmed_secs: f64, candidate_secs: f64) {
        self.confirmed_secs += confirmed_secs;
        self.candidate_secs += candidate_secs;
    }

    /// 2·matched / (confirmed + candidate): 1 when each finds the other's people; `None` when nobody was found.
    pub fn f1(&self) -> Option<f64> {
        let people = f64::from(self.confirmed) + f64::from(self.candidate);
        (people > 0.0).then(|| 2.0 * f64::from(self.matched) / people)
    }

    /// Mean OKS of the pairs.
    pub fn mean_oks(&self) -> Option<f64> {
        (self.matched > 0).then(|| self.oks / f64::from(self.matched))
    }

    /// Whether the candidate may go on.
    ///
    /// # Errors
    /// Where it is too far from the confirmed model.
    pub fn judge(&self, limits: &Limits) -> Result<(), Disagreement> {
        if self.confirmed.saturating_add(self.candidate) >= ENOUGH_PEOPLE {
            let (a, b) = (f64::from(self.confirmed), f64::from(self.candidate));
            if a.max(b) > limits.people * a.min(b) {
                return Err(Disagreement::People);
            }
            if self.f1().is_some_and(|f1| f1 < limits.f1) {
                return Err(Disagreement::F1);
            }
        }
        let most = (limits.slowdown * self.confirmed_secs).max(limits.slow_secs * f64::from(self.frames));
        if self.candidate_secs > most { Err(Disagreement::Slow) } else { Ok(()) }
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { frames, confirmed, candidate, confirmed_secs, candidate_secs, .. } = self;
        write!(f, "{confirmed} and {candidate} people in {frames} frames")?;
        if let Some(f1) = self.f1() {
            write!(f, ", F1 {f1:.2}")?;
        }
        if let Some(oks) = self.mean_oks() {
            write!(f, ", OKS {oks:.2}")?;
        }
        let per_frame = 1000.0 / f64::from((*frames).max(1));
        write!(f, ", {:.0} and {:.0} ms", confirmed_secs * per_frame, candidate_secs * per_frame)
    }
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F1 => "it finds other people",
            Self::People => "it finds another number of people",
            Self::Slow => "it is too slow",
        })
    }
}

/// The people of a label, by falling score.
fn kept(label: &Label) -> impl Iterator<Item = &Detection> {
    label.instances.iter().filter(|instance| instance.kept).map(|instance| &instance.detection)
}

/// OKS of a person against another's visible keypoints; the area is the mean of the two boxes', as in OKS-NMS. 0 for what is no number.
fn similarity(person: &Detection, other: &Detection, sigmas: &[f32], keypoint: f32) -> f64 {
    let points = |of: &Detection| of.keypoints.iter().map(|k| k.point).collect::<Vec<Point, MAX_KEYPOINTS>>();
    let visible: Vec<bool, MAX_KEYPOINTS> = other.keypoints.iter().map(|k| k.probability >= keypoint).collect();
    let area = |rect: &Rect| f64::from(rect.area());
    let (a, b, area_px2) = (points(person), points(other), 0.5 * (area(&person.rect) + area(&other.rect)));
    let of_visible = oks(&a, &b, &visible, sigmas, area_px2);
    let similar = of_visible.or_else(|| oks(&a, &b, &[true; MAX_KEYPOINTS], sigmas, area_px2));
    similar.filter(|oks| oks.is_finite()).unwrap_or(0.0)
}
