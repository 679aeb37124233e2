//! What a demo run found: the table, the JSON and the report are three views of it.

use omnilabel_bundle::SkeletonSpec;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// Everything that is reported.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Where the pictures came from, for people.
    pub source: String,
    /// What the keypoints are; COCO's when it is missing.
    pub skeleton: Option<SkeletonSpec>,
    /// The arms in the order of the table.
    pub arms: Vec<Arm>,
    /// The teacher on the validation pictures with one view and with all.
    pub teacher: Option<TeacherScores>,
    /// (distilled − lower) / (upper − lower); `None` when one is missing or the gap is not positive.
    pub gap_recovered: Option<f64>,
    /// Thresholds that the centre chose.
    pub thresholds: Option<Calibrated>,
    /// What came of the student.
    pub release: Release,
    /// One for each device.
    pub devices: Vec<Device>,
    /// Loss by optimiser step of the arms that were trained in this run.
    pub losses: Vec<LossCurve>,
    /// Seconds since the demo was first started, without pauses between runs.
    pub seconds: f64,
    /// The commands of the other roles, to be repeated by hand.
    pub commands: Vec<String>,
    /// What a reader must know: an aborted confirmation, an arm that was shortened.
    pub notes: Vec<String>,
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// Which of the three.
    pub kind: ArmKind,
    /// AP in `[0, 1]` on the validation pictures, single view.
    pub ap: Option<f64>,
    /// AP at OKS 0.5.
    pub ap50: Option<f64>,
    /// Optimiser steps.
    pub steps: u64,
    /// Pictures with manual labels, and with generated ones.
    pub images: (u64, u64),
    /// Not trained in this run: read from the file beside the shipped weights.
    pub precomputed: bool,
    /// The command that made a precomputed one, or why there is none.
    pub note: String,
}

/// The arms of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArmKind {
    /// Manual labels only.
    Lower,
    /// Manual and generated labels.
    Distilled,
    /// Every frame with its true labels.
    Upper,
}

impl ArmKind {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lower => "lower bound",
            Self::Distilled => "distilled",
            Self::Upper => "upper bound",
        }
    }
}

/// The teacher's AP in `[0, 1]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TeacherScores {
    /// One view.
    pub single: f64,
    /// All views, averaged.
    pub ensemble: f64,
}

/// τ and τ_k.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibrated {
    /// On the instance score.
    pub tau: f32,
    /// On the keypoint probability.
    pub tau_k: f32,
    /// People per manually labelled picture.
    pub manual_mean: f64,
    /// People per generated picture above τ.
    pub realised_mean: f64,
}

/// What came of the student.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Release {
    /// Counter of the release; `None` when the gate refused.
    pub counter: Option<u64>,
    /// The release's name.
    pub name: String,
    /// Why it was released or refused.
    pub reason: String,
    /// The running model's and the student's AP in `[0, 1]` on the gate's pictures.
    pub gate: Option<(f64, f64)>,
}

/// One device's account.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its camera, for people.
    pub camera: String,
    /// Labels made and fsynced there.
    pub made: u64,
    /// Labels stored at the centre, each once.
    pub delivered: u64,
    /// Made − delivered − evicted − still in the outbox.
    pub lost: u64,
    /// Still in the outbox.
    pub pending: u64,
    /// Arrived again and not stored again.
    pub duplicated: u64,
    /// Dropped by the outbox's byte budget.
    pub evicted: u64,
    /// Counter of the release it runs, 0 for the provisioned model.
    pub running: u64,
    /// Counter and reason of a release it refused.
    pub refused: Option<(u64, String)>,
}

/// Loss by step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LossCurve {
    /// The arm.
    pub name: String,
    /// Step, total loss, keypoint loss.
    pub points: Vec<(u64, f32, f32)>,
}

/// Gap recovered of three APs; `None` when the gap is not positive.
pub fn gap_recovered(lower: f64, distilled: f64, upper: f64) -> Option<f64> {
    (upper > lower).then(|| (distilled - lower) / (upper - lower))
}

impl Outcome {
    /// The arm of a kind.
    pub fn arm(&self, kind: ArmKind) -> Option<&Arm> {
        self.arms.iter().find(|arm| arm.kind == kind)
    }

    /// Computes what follows from the arms.
    pub fn conclude(&mut self) {
        let ap = |kind| self.arm(kind).and_then(|arm| arm.ap);
        self.gap_recovered = match (ap(ArmKind::Lower), ap(ArmKind::Distilled), ap(ArmKind::Upper)) {
            (Some(lower), Some(distilled), Some(upper)) => gap_recovered(lower, distilled, upper),
            _ => None,
        };
    }

    /// The table of the terminal.
    ///
    /// # Errors
    /// Formatting into a string does not fail.
    pub fn table(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        let percent = |ap: Option<f64>| ap.map_or_else(|| "–".to_owned(), |ap| format!("{:.1}", 100.0 * ap));
        writeln!(out, "{:<14}{:>6}{:>7}{:>8}{:>9}{:>11}", "arm", "AP", "AP50", "steps", "manual", "generated")?;
        for arm in &self.arms {
            write!(out, "{:<14}{:>6}{:>7}{:>8}", arm.kind.name(), percent(arm.ap), percent(arm.ap50), arm.steps)?;
            write!(out, "{:>9}{:>11}", arm.images.0, arm.images.1)?;
            match (arm.precomputed, arm.note.is_empty()) {
                (true, _) => writeln!(out, "  (precomputed: {})", arm.note)?,
                (false, false) => writeln!(out, "  ({})", arm.note)?,
                (false, true) => writeln!(out)?,
            }
        }
        match self.gap_recovered {
            Some(gap) => writeln!(out, "gap recovered  {:.0} %", 100.0 * gap)?,
            None => writeln!(out, "gap recovered  – (needs a lower and a higher upper bound)")?,
        }
        if let Some(teacher) = self.teacher {
            let (single, all) = (100.0 * teacher.single, 100.0 * teacher.ensemble);
            writeln!(out, "teacher        AP {single:.1} with one view, {all:.1} with all views ({:+.1})", all - single)?;
        }
        if let Some(t) = self.thresholds {
            writeln!(
                out,
                "thresholds     τ {:.3} on people ({:.2} a picture generated, {:.2} manual), τ_k {:.4} on keypoints",
                t.tau, t.realised_mean, t.manual_mean, t.tau_k
            )?;
        }
        writeln!(out)?;
        writeln!(out, "{:<10}{:>8}{:>11}{:>6}{:>12}{:>9}  model", "device", "made", "delivered", "lost", "duplicated", "pending")?;
        for device in &self.devices {
            write!(out, "{:<10}{:>8}{:>11}{:>6}", device.name, device.made, device.delivered, device.lost)?;
            writeln!(out, "{:>12}{:>9}  {}", device.duplicated, device.pending, device.model())?;
        }
        writeln!(out)?;
        match self.release.counter {
            Some(counter) => writeln!(out, "release {counter} ({}): {}", self.release.name, self.release.reason)?,
            None => writeln!(out, "no release: {}", self.release.reason)?,
        }
        for note in &self.notes {
            writeln!(out, "note: {note}")?;
        }
        Ok(out)
    }
}

impl Device {
    /// The model it runs, for people.
    pub fn model(&self) -> String {
        let running = if self.running == 0 { "shipped model".to_owned() } else { format!("release {}", self.running) };
        match &self.refused {
            Some((counter, reason)) if *counter > self.running => format!("{running}; refused release {counter}: {reason}"),
            _ => running,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arm(kind: ArmKind, ap: Option<f64>) -> Arm {
        Arm { kind, ap, ap50: ap, steps: 10, images: (1, 2), precomputed: kind == ArmKind::Upper, note: String::new() }
    }

    #[test]
    fn the_gap_is_that_of_the_paper() {
        // Spec §5: co-35 with co-80 against co-115.
        let gap = gap_recovered(0.549, 0.602, 0.651).unwrap();
        assert!((gap - 0.52).abs() < 0.005, "{gap}");
        assert_eq!(gap_recovered(0.5, 0.6, 0.5), None);
    }

    #[test]
    fn the_table_shows_what_is_missing() {
        let mut outcome = Outcome {
            arms: vec![arm(ArmKind::Lower, Some(0.2)), arm(ArmKind::Distilled, Some(0.3)), arm(ArmKind::Upper, Some(0.4))],
            ..Outcome::default()
        };
        outcome.conclude();
        assert!(outcome.table().unwrap().contains("gap recovered  50 %"));
        outcome.arms[2].ap = None;
        outcome.conclude();
        assert!(outcome.table().unwrap().contains("gap recovered  –"));
        outcome.release.reason = "AP fell".into();
        assert!(outcome.table().unwrap().contains("no release: AP fell"));
    }

    #[test]
    fn a_refusal_is_told_with_its_reason() {
        let device = Device { running: 1, refused: Some((2, "golden frame 3 differs".into())), ..Device::default() };
        assert_eq!(device.model(), "release 1; refused release 2: golden frame 3 differs");
        let later = Device { running: 3, ..device };
        assert_eq!(later.model(), "release 3");
    }
}
