//! Whether two sides gave the same. A case whose sides do not is invalid: its times compare different things.

use anyhow::{Context, Result, ensure};
use omnilabel_keypoints::label::Detection;
use omnilabel_rcnn::device::Arithmetic;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Corners, px: boxes of up to 1000 px from deltas that differ by f32 sums in another order.
pub const BOX_TOLERANCE_PX: f32 = 2e-2;
/// Box scores.
pub const SCORE_TOLERANCE: f32 = 5e-4;
/// Keypoint scores, relative to the larger of 1 and the score.
pub const LOGIT_TOLERANCE: f32 = 1e-3;
/// The share of keypoints that may lie elsewhere: where two pixels of a heatmap are equal but for rounding, either is right.
pub const MOVED_SHARE: f32 = 0.05;
/// Keypoint scores of a person on another grid: the same map between other cells.
pub const OTHER_GRID_LOGIT_TOLERANCE: f32 = 0.1;
/// How far the points of such a person may lie apart, as a share of the box's longer side: two cells of 56.
pub const OTHER_GRID_POINT_TOLERANCE: f32 = 2.0 / 56.0;
/// The share of people whose heatmap may be resized to another grid: ⌈w⌉ is another number where w is whole but for rounding.
pub const OTHER_GRID_SHARE: f32 = 0.35;
/// Losses, relative.
pub const LOSS_TOLERANCE: f64 = 1e-3;
/// Gradients of a parameter as ‖ours − theirs‖ / ‖theirs‖: a ReLU whose input is nearly 0 opens on one side alone.
pub const GRADIENT_TOLERANCE: f64 = 1e-2;

/// Losses of a step in bf16 against one in f32, relative: numbers of eight bits through some fifty layers.
pub const BF16_LOSS_TOLERANCE: f64 = 5e-2;
/// Gradients of a parameter of such a step: besides, ReLUs open elsewhere. A gradient that is wrong, or of something else, is 1 or more.
pub const BF16_GRADIENT_TOLERANCE: f64 = 0.5;

/// A person as a side reports it, in frame pixels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Person {
    /// Corners.
    #[serde(rename = "box")]
    pub rect: [f32; 4],
    /// Box score.
    pub score: f32,
    /// One per keypoint.
    pub points: Vec<[f32; 2]>,
    /// The peaks of their maps.
    pub logits: Vec<f32>,
}

impl Person {
    /// Of a detection.
    pub fn of(detection: &Detection) -> Self {
        let r = detection.rect;
        Self {
            rect: [r.x1, r.y1, r.x2, r.y2],
            score: detection.score,
            points: detection.keypoints.iter().map(|k| [k.point.x, k.point.y]).collect(),
            logits: detection.keypoints.iter().map(|k| k.peak_logit).collect(),
        }
    }
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |worst, (a, b)| worst.max((a - b).abs()))
}

/// The people of an answer to `check`.
///
/// # Errors
/// It has none.
pub fn people(answer: &Value) -> Result<Vec<Person>> {
    let people = answer.get("people").context("expected `people`")?;
    Ok(serde_json::from_value(people.clone())?)
}

/// Says how far apart the people of two sides are.
///
/// # Errors
/// Farther than the tolerances.
pub fn same_people(ours: &[Person], theirs: &[Person]) -> Result<String> {
    ensure!(ours.len() == theirs.len(), "{} people, expected {}", ours.len(), theirs.len());
    ensure!(!theirs.is_empty(), "nobody is detected: there is nothing to compare");
    let (mut boxes, mut scores, mut logits, mut moved, mut other) = (0f32, 0f32, 0f32, 0, 0);
    let mut left: Vec<&Person> = ours.iter().collect();
    for expected in theirs {
        let off = |i: &usize| worst(&left[*i].rect, &expected.rect);
        let near = (0..left.len()).min_by(|a, b| off(a).total_cmp(&off(b))).context("nobody")?;
        let found = left.swap_remove(near);
        boxes = boxes.max(worst(&found.rect, &expected.rect));
        scores = scores.max((found.score - expected.score).abs());
        let off = |(a, b): (&f32, &f32)| (a - b).abs() / b.abs().max(1.0);
        let peaks = found.logits.iter().zip(&expected.logits).map(off).fold(0.0, f32::max);
        let mut tolerance = BOX_TOLERANCE_PX;
        if peaks > LOGIT_TOLERANCE {
            ensure!(peaks <= OTHER_GRID_LOGIT_TOLERANCE, "a keypoint's score differs by {peaks} of itself");
            let [x1, y1, x2, y2] = expected.rect;
            tolerance = OTHER_GRID_POINT_TOLERANCE * (x2 - x1).max(y2 - y1);
            other += 1;
        } else {
            logits = logits.max(peaks);
        }
        moved += found.points.iter().zip(&expected.points).filter(|(a, b)| worst(*a, *b) > tolerance).count();
    }
    let points: usize = theirs.iter().map(|person| person.points.len()).sum();
    ensure!(boxes <= BOX_TOLERANCE_PX, "a box differs by {boxes} px, at most {BOX_TOLERANCE_PX} expected");
    ensure!(scores <= SCORE_TOLERANCE, "a score differs by {scores}, at most {SCORE_TOLERANCE} expected");
    ensure!(other as f32 <= OTHER_GRID_SHARE * theirs.len() as f32, "the maps of {other} of {} people differ", theirs.len());
    ensure!(moved as f32 <= MOVED_SHARE * points as f32, "{moved} of {points} keypoints lie elsewhere");
    Ok(format!(
        "{} people; boxes within {boxes:.0e} px, scores {scores:.0e}, keypoint scores {logits:.0e}; {moved} of {points} keypoints moved, {other} people on another grid",
        theirs.len()
    ))
}

/// Says how far apart the losses of two sides are, and their gradients; the reference's are f32.
///
/// # Errors
/// Farther than the tolerances.
pub fn same_step(ours: &Value, theirs: &Value, precision: Arithmetic) -> Result<String> {
    let (loss_tolerance, gradient_tolerance) = match precision {
        Arithmetic::F32 => (LOSS_TOLERANCE, GRADIENT_TOLERANCE),
        Arithmetic::Bf16 => (BF16_LOSS_TOLERANCE, BF16_GRADIENT_TOLERANCE),
    };
    let losses = |answer: &Value| -> Result<BTreeMap<String, f64>> {
        Ok(serde_json::from_value(answer.get("losses").context("expected `losses`")?.clone())?)
    };
    let (found, expected) = (losses(ours)?, losses(theirs)?);
    let mut largest = 0f64;
    for (name, expected) in &expected {
        let found = found.get(name).with_context(|| format!("loss `{name}` is missing"))?;
        let off = (found - expected).abs() / expected.abs().max(1e-3);
        ensure!(*expected > 0.0 && off <= loss_tolerance, "loss {name} is {found}, {expected} expected");
        largest = largest.max(off);
    }
    let gradient = ours.get("gradient").and_then(Value::as_f64).context("expected `gradient`")?;
    ensure!(gradient <= gradient_tolerance, "a gradient differs by {gradient} of its norm, at most {gradient_tolerance} expected");
    let foreground = ours.get("foreground").and_then(Value::as_u64).unwrap_or(0);
    Ok(format!("losses within {largest:.0e}, gradients {gradient:.0e} of their norm; {foreground} foreground RoIs"))
}

/// COCO's numbers: sums in another order, no other difference.
pub const COCO_TOLERANCE: f64 = 1e-9;

/// Says how far apart COCO's ten numbers are.
///
/// # Errors
/// Farther than the tolerance.
pub fn same_scores(ours: &Value, theirs: &Value) -> Result<String> {
    let scores = |answer: &Value| -> Result<BTreeMap<String, f64>> {
        Ok(serde_json::from_value(answer.get("scores").context("expected `scores`")?.clone())?)
    };
    let (found, expected) = (scores(ours)?, scores(theirs)?);
    ensure!(expected.len() == 10, "{} numbers, expected COCO's ten", expected.len());
    let mut largest = 0f64;
    for (name, expected) in &expected {
        let off = (found.get(name).with_context(|| format!("{name} is missing"))? - expected).abs();
        ensure!(off <= COCO_TOLERANCE, "{name} differs by {off}, at most {COCO_TOLERANCE} expected");
        largest = largest.max(off);
    }
    Ok(format!("AP {:.4}; ten numbers within {largest:.0e}", expected.get("AP").copied().unwrap_or_default()))
}

/// Says whether the same labels came through.
///
/// # Errors
/// They are others.
pub fn same_labels(ours: &Value, theirs: &Value) -> Result<String> {
    for name in ["labels", "sum"] {
        let (found, expected) = (ours.get(name), theirs.get(name));
        ensure!(found.is_some() && found == expected, "`{name}` is {found:?}, {expected:?} expected");
    }
    let number = |answer: &Value, name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or(0);
    Ok(format!("{} labels, {} bytes, the reference {}", number(ours, "labels"), number(ours, "bytes"), number(theirs, "bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn person(x: f32) -> Person {
        Person { rect: [x, 0.0, x + 10.0, 20.0], score: 0.9, points: vec![[x, 1.0]; 17], logits: vec![5.0; 17] }
    }

    #[test]
    fn people_agree_in_any_order_and_within_the_tolerances() {
        let (a, b) = (person(1.0), person(40.0));
        same_people(&[a.clone(), b.clone()], &[b.clone(), a.clone()]).unwrap();
        assert!(same_people(std::slice::from_ref(&a), &[a.clone(), b.clone()]).is_err());
        assert!(same_people(&[person(1.5)], std::slice::from_ref(&a)).is_err());
        assert!(same_people(&[], &[]).is_err());
        let mut moved = a.clone();
        moved.points[0][0] += 3.0;
        moved.points[1][0] += 3.0;
        assert!(same_people(&[moved], std::slice::from_ref(&a)).is_err());
        // One of three may lie on another grid, but not anywhere.
        let three = [a.clone(), b.clone(), person(80.0)];
        let grid =
            |logit: f32, x: f32| [Person { logits: vec![logit; 17], points: vec![[x, 1.0]; 17], ..a.clone() }, b.clone(), person(80.0)];
        same_people(&grid(5.2, 1.4), &three).unwrap();
        assert!(same_people(&grid(5.6, 1.4), &three).is_err());
        assert!(same_people(&grid(5.2, 3.0), &three).is_err());
        // Each counts once.
        assert!(same_people(&[a.clone(), a.clone()], &[a.clone(), b.clone()]).is_err());
        let other = Person { logits: vec![6.0; 17], ..a.clone() };
        assert!(same_people(&[other], &[a]).is_err());
    }

    #[test]
    fn a_step_agrees_by_losses_and_gradients() {
        let step = |loss: f64, gradient: f64| json!({"losses": {"rpn_box": loss}, "gradient": gradient, "foreground": 3});
        let same = |ours: &Value, precision| same_step(ours, &step(1.0, 0.0), precision);
        same(&step(1.0, 1e-4), Arithmetic::F32).unwrap();
        same(&step(1.02, 0.1), Arithmetic::Bf16).unwrap();
        for wrong in [step(1.1, 1e-4), step(1.0, 0.6), json!({})] {
            assert!(same(&wrong, Arithmetic::F32).is_err() && same(&wrong, Arithmetic::Bf16).is_err(), "{wrong}");
        }
        assert!(same(&step(1.02, 1e-4), Arithmetic::F32).is_err() && same(&step(1.0, 0.1), Arithmetic::F32).is_err());
    }
}
