//! The comparison: lower bound, student, upper bound, gap recovered.

use crate::calibrate::Calibration;
use crate::evaluate::Evaluation;
use crate::score::CocoScores;
use omnilabel_rcnn::train::TrainOptions;
use serde::{Deserialize, Serialize};

/// One arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Optimiser steps.
    pub steps: u64,
    /// Images with true labels it was trained on.
    pub manual_images: usize,
    /// Images with generated labels.
    pub generated_images: usize,
    /// On the validation folder.
    pub evaluation: Evaluation,
}

impl Row {
    pub(super) fn new(options: &TrainOptions, manual_images: usize, generated_images: usize, evaluation: Evaluation) -> Self {
        Self { steps: options.steps, manual_images, generated_images, evaluation }
    }

    /// Single-view scores.
    pub fn scores(&self) -> &CocoScores {
        &self.evaluation.single
    }
}

/// What the labelling gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelCount {
    /// Unlabelled images.
    pub images: usize,
    /// Those that could not be read.
    pub unreadable: usize,
    /// Those that got a label.
    pub labelled_images: usize,
    /// Detections above the score threshold of the model.
    pub detections: usize,
    /// Kept people.
    pub people: usize,
    /// Their labelled keypoints.
    pub keypoints: usize,
    /// Ignore regions.
    pub ignored: usize,
}

/// `report.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Manual labels only.
    pub lower: Row,
    /// Manual and generated labels.
    pub student: Row,
    /// All labelled by hand.
    pub upper: Option<Row>,
    /// The teacher, single view and ensemble.
    pub teacher: Evaluation,
    /// (AP_student − AP_lower) / (AP_upper − AP_lower), where the upper bound is above the lower and all have made as many steps.
    pub gap_recovered: Option<f64>,
    /// τ and τ_k.
    pub calibration: Calibration,
    /// What the labelling gave.
    pub labels: LabelCount,
    /// Labelled and unlabelled pictures that could not be read, with the reason.
    #[serde(default)]
    pub left_out: Vec<String>,
}

impl Report {
    pub(super) fn new(
        lower: Row,
        student: Row,
        upper: Option<Row>,
        teacher: Evaluation,
        calibration: Calibration,
        labels: LabelCount,
    ) -> Self {
        let ap = |row: &Row| row.scores().ap;
        let as_long = |upper: &&Row| [lower.steps, upper.steps] == [student.steps; 2];
        let gap_recovered = upper.as_ref().filter(as_long).and_then(|upper| gap_recovered(ap(&lower), ap(&student), ap(upper)));
        Self { lower, student, upper, teacher, gap_recovered, calibration, labels, left_out: Vec::new() }
    }

    /// The comparison for people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<28}{:>8}{:>8}{:>11}{:>8}{:>8}{:>8}{:>8}{:>8}\n",
            "", "steps", "manual", "generated", "AP", "AP50", "AP75", "AP_M", "AP_L"
        );
        let mut line = |name: &str, row: &Row, s: &CocoScores| {
            let cells: String = [s.ap, s.ap50, s.ap75, s.ap_m, s.ap_l]
                .iter()
                .map(|v| if *v < 0.0 { format!("{:>8}", "–") } else { format!("{:>8.1}", 100.0 * v) })
                .collect();
            text += &format!("{name:<28}{:>8}{:>8}{:>11}{cells}\n", row.steps, row.manual_images, row.generated_images);
        };
        line("lower bound (manual only)", &self.lower, self.lower.scores());
        line("distilled", &self.student, self.student.scores());
        if let Some(upper) = &self.upper {
            line("upper bound (all by hand)", upper, upper.scores());
        }
        text += &format!("\nteacher, single view    AP {:.1}", 100.0 * self.teacher.single.ap);
        if let Some(ensemble) = &self.teacher.ensemble {
            text += &format!("\nteacher, ensemble       AP {:.1}", 100.0 * ensemble.scores.ap);
        }
        let c = &self.calibration;
        text += &format!(
            "\nlabels                  {} people with {} keypoints on {} of {} images; τ {:.3} ({:.3} people per readable image, manual {:.3}), τ_k {:.3}",
            self.labels.people,
            self.labels.keypoints,
            self.labels.labelled_images,
            self.labels.images,
            c.thresholds.instance,
            self.labels.people as f64 / self.labels.images.saturating_sub(self.labels.unreadable).max(1) as f64,
            c.manual.people_per_image().value(),
            c.thresholds.keypoint
        );
        if !self.left_out.is_empty() {
            let (all, unlabelled) = (self.left_out.len(), self.labels.unreadable);
            text += &format!("\nleft out                {all} pictures that could not be read, {unlabelled} of them unlabelled");
            let missed = self.student.evaluation.unreadable.len();
            if missed > 0 {
                text += &format!(", {missed} of validation, whose people count as missed");
            }
        }
        text += &match self.gap_recovered {
            Some(gap) => format!("\ngap recovered           {:.0} %\n", 100.0 * gap),
            None if self.upper.is_some() && self.lower.steps != self.student.steps => {
                "\ngap recovered           not told: the arms have made unlike numbers of steps, expected --equal-steps\n".to_owned()
            }
            None => "\n".to_owned(),
        };
        text
    }
}

/// `None` when there is no gap.
fn gap_recovered(lower: f64, student: f64, upper: f64) -> Option<f64> {
    (upper > lower).then(|| (student - lower) / (upper - lower))
}

#[cfg(test)]
mod tests {
    use super::gap_recovered;

    #[test]
    fn the_papers_gap() {
        assert!((gap_recovered(54.9, 60.2, 65.1).unwrap() - 0.52).abs() < 0.005);
        assert_eq!(gap_recovered(0.3, 0.4, 0.3), None);
    }
}
