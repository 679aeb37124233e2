//! One image: OKS between every detection and person, and the greedy matching per threshold (`COCOeval.computeOks`, `evaluateImg`).

use super::{Predicted, Truth};

/// What became of one detection at one threshold.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    /// It found a person (of an id other than 0, as in pycocotools).
    pub(super) matched: bool,
    /// It counts neither as right nor as wrong.
    pub(super) ignored: bool,
    /// The id of the person it found, whether that counts or not.
    pub(super) found: Option<u64>,
}

/// One image, category and area range.
pub(super) struct ImageMatches {
    /// Of the detections, falling.
    pub(super) scores: Vec<f64>,
    /// `[thresholds, detections]`.
    pub(super) outcomes: Vec<Outcome>,
    /// People who count.
    pub(super) counted: usize,
}

/// numpy's `sum` of up to 128 values: eight running sums for eight values or more.
fn numpy_sum(values: &[f64]) -> f64 {
    if values.len() < 8 {
        return values.iter().sum();
    }
    let mut r = [0.0; 8];
    r.copy_from_slice(&values[..8]);
    let whole = values.len() / 8 * 8;
    for chunk in values[8..whole].chunks_exact(8) {
        for (sum, value) in r.iter_mut().zip(chunk) {
            *sum += value;
        }
    }
    let mut total = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    for value in &values[whole..] {
        total += value;
    }
    total
}

/// OKS of a detection against a person; without labelled keypoints, by the distance outside three times the box.
pub(super) fn oks(truth: &Truth, keypoints: &[f64], sigmas: &[f64]) -> f64 {
    let visible: Vec<bool> = (0..sigmas.len()).map(|k| truth.keypoints.get(3 * k + 2).is_some_and(|v| *v > 0.0)).collect();
    let any = visible.iter().any(|v| *v);
    let [x, y, w, h] = truth.bbox;
    let outside = |value: f64, low: f64, high: f64| (low - value).max(0.0) + (value - high).max(0.0);
    let terms: Vec<f64> = (0..sigmas.len())
        .filter(|k| !any || visible[*k])
        .map(|k| {
            let (xd, yd) = (keypoints[3 * k], keypoints[3 * k + 1]);
            let (dx, dy) = if any {
                (xd - truth.keypoints[3 * k], yd - truth.keypoints[3 * k + 1])
            } else {
                (outside(xd, x - w, x + w * 2.0), outside(yd, y - h, y + h * 2.0))
            };
            let variance = (sigmas[k] * 2.0) * (sigmas[k] * 2.0);
            let e = (dx * dx + dy * dy) / variance / (truth.area + f64::EPSILON) / 2.0;
            (-e).exp()
        })
        .collect();
    numpy_sum(&terms) / terms.len() as f64
}

/// `dts` must be stably sorted by falling score.
pub(super) fn match_image(gts: &[Truth], dts: &[Predicted<'_>], sigmas: &[f64], area: [f64; 2], thresholds: &[f64]) -> ImageMatches {
    let outside = |value: f64| value < area[0] || value > area[1];
    let mut order: Vec<(&Truth, bool)> = gts.iter().map(|g| (g, g.ignored() || outside(g.area))).collect();
    order.sort_by_key(|(_, ignored)| *ignored);
    let similarity: Vec<f64> = dts.iter().flat_map(|d| order.iter().map(move |(g, _)| oks(g, d.keypoints, sigmas))).collect();
    let mut outcomes = vec![Outcome::default(); thresholds.len() * dts.len()];
    for (t, threshold) in thresholds.iter().enumerate() {
        let mut taken = vec![false; order.len()];
        for (d, dt) in dts.iter().enumerate() {
            let mut best = threshold.min(1.0 - 1e-10);
            let mut found: Option<usize> = None;
            for (g, (gt, ignored)) in order.iter().enumerate() {
                if taken[g] && gt.iscrowd == 0 {
                    continue;
                }
                if *ignored && found.is_some_and(|m| !order[m].1) {
                    break;
                }
                let value = similarity[d * order.len() + g];
                if value < best {
                    continue;
                }
                best = value;
                found = Some(g);
            }
            let outcome = &mut outcomes[t * dts.len() + d];
            if let Some(g) = found {
                taken[g] = true;
                outcome.found = Some(order[g].0.id);
                outcome.matched = order[g].0.id != 0;
                outcome.ignored = order[g].1;
            }
            if !outcome.matched && outside(dt.area) {
                outcome.ignored = true;
            }
        }
    }
    ImageMatches { scores: dts.iter().map(|d| d.score).collect(), outcomes, counted: order.iter().filter(|(_, ignored)| !ignored).count() }
}
