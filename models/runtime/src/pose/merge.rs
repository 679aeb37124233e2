//! One-stage detections of several views become one.

use crate::plan::VOTING_IOU;
use omnilabel_bundle::OneStageSpec;
use omnilabel_detect::nms::{nms, vote};
use omnilabel_detect::pose::Candidate;
use omnilabel_keypoints::ensemble::agreement;
use omnilabel_keypoints::geometry::{Point, Rect};
use omnilabel_keypoints::label::{Detection, Keypoint};
use omnilabel_keypoints::oks::oks;
use omnilabel_keypoints::skeleton::Skeleton;

/// A view's detection is of the same person when boxes overlap, or keypoints resemble, by at least this much.
const SAME: f32 = 0.5;
/// The least weight of a person or keypoint in a mean.
const LEAST: f32 = 1e-6;
/// Bounds of a probability whose logit is taken: nearer to 0 or 1 a logit would hang on the last bits, which differ between CPUs.
const LEAST_SURE: f32 = 1e-3;

/// People of all views, pooled before NMS, with boxes voted (spec §3.1).
pub(super) fn pooled(views: &[Vec<Candidate>], spec: &OneStageSpec) -> Vec<Candidate> {
    let all: Vec<&Candidate> = views.iter().flatten().collect();
    let rects: Vec<Rect> = all.iter().map(|person| person.rect).collect();
    let scores: Vec<f32> = all.iter().map(|person| person.score).collect();
    let kept = nms(&rects, &scores, spec.nms_iou);
    let person = |&i: &usize| Candidate { rect: vote(rects[i], &rects, &scores, VOTING_IOU), ..all[i].clone() };
    kept.iter().take(spec.max_detections as usize).map(person).collect()
}

/// `people` with keypoints averaged over the views in which they were found. A view that missed somebody disagrees about all of that
/// person's keypoints; whom every view missed keeps the keypoints that found them.
pub(super) fn merge(people: &[Candidate], views: &[Vec<Candidate>], skeleton: &Skeleton) -> Vec<Detection> {
    let matched: Vec<Vec<Option<usize>>> = views.iter().map(|view| matches(people, view, skeleton)).collect();
    let person = |(i, person): (usize, &Candidate)| {
        let seen: Vec<&Candidate> =
            matched.iter().zip(views).filter_map(|(matched, view)| matched[i].and_then(|at| view.get(at))).collect();
        let seen = if seen.is_empty() { vec![person] } else { seen };
        let found = matched.iter().filter(|matched| matched[i].is_some()).count();
        let mut detection = Detection { rect: person.rect, score: person.score, ..Detection::default() };
        for k in 0..skeleton.len() {
            let (point, probability) = average(&seen, k);
            let agreement = if views.len() > 1 {
                let own: Vec<Point> = seen.iter().map(|seen| seen.keypoints[k].0).collect();
                let share = found as f32 / views.len() as f32;
                share * agreement(&own, point, skeleton.sigmas()[k], person.rect.area())
            } else {
                1.0
            };
            let sure = probability.clamp(LEAST_SURE, 1.0 - LEAST_SURE);
            let keypoint = Keypoint { point, peak_logit: (sure / (1.0 - sure)).ln(), probability, agreement };
            // A skeleton has at most as many keypoints as the list holds.
            if detection.keypoints.push(keypoint).is_err() {
                break;
            }
        }
        detection
    };
    people.iter().enumerate().map(person).collect()
}

/// Keypoint `k`: its point weighted by score and visibility, its visibility weighted by score.
fn average(seen: &[&Candidate], k: usize) -> (Point, f32) {
    let (mut x, mut y, mut weight, mut visible, mut score) = (0f64, 0f64, 0f64, 0f64, 0f64);
    for person in seen {
        let (point, visibility) = person.keypoints[k];
        let own = f64::from(person.score.max(LEAST));
        // An invisible keypoint has a place, too, where no view sees it better.
        let w = own * f64::from(visibility.max(LEAST));
        x += w * f64::from(point.x);
        y += w * f64::from(point.y);
        weight += w;
        visible += own * f64::from(visibility);
        score += own;
    }
    (Point { x: (x / weight) as f32, y: (y / weight) as f32 }, (visible / score) as f32)
}

/// For each of `people` at most one of `view`, the most similar pairs first.
fn matches(people: &[Candidate], view: &[Candidate], skeleton: &Skeleton) -> Vec<Option<usize>> {
    let visible = vec![true; skeleton.len()];
    let points = |person: &Candidate| person.keypoints.iter().map(|(point, _)| *point).collect::<Vec<Point>>();
    let theirs: Vec<Vec<Point>> = view.iter().map(points).collect();
    let mut pairs = Vec::new();
    for (i, person) in people.iter().enumerate() {
        let own = points(person);
        for (j, other) in view.iter().enumerate() {
            let iou = person.rect.iou(&other.rect);
            let area = f64::from(0.5 * (person.rect.area() + other.rect.area()));
            let oks = oks(&own, &theirs[j], &visible, skeleton.sigmas(), area).unwrap_or(0.0) as f32;
            if iou >= SAME || oks >= SAME {
                pairs.push((iou + oks, i, j));
            }
        }
    }
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let mut matched = vec![None; people.len()];
    let mut taken = vec![false; view.len()];
    for (_, i, j) in pairs {
        if matched[i].is_none() && !taken[j] {
            matched[i] = Some(j);
            taken[j] = true;
        }
    }
    matched
}
