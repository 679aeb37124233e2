//! One device over time: the labels of its newest day against those of the first days of the model that made them, so that a dirty lens or
//! a turned camera is seen. The model is the same on both sides, and so are the hours of the day, whose light and life differ. Pure.
//!
//! What is counted lies in periods: those of the first days and those of the newest day are kept, those between are forgotten.

use super::{Compared, Counts, compare, told};
use crate::service::config::DriftConfig;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Length of a period.
pub const PERIOD_MS: u64 = 3 * 3_600_000;
/// Periods of a day.
const DAY: i64 = 8;
/// Frames that each side has at least.
const ENOUGH: u64 = 100;
/// Models of a device whose counts are kept: those that labelled last. A release on trial that is given up leaves the first days of the
/// running one alone.
const MODELS: usize = 4;

/// The period of a moment, Unix ms.
pub const fn period_of(at_ms: u64) -> i64 {
    (at_ms / PERIOD_MS).cast_signed()
}

/// Labels of one device by one model in one period.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Period {
    /// Counter of the model's release.
    pub model: u64,
    /// See [`period_of`].
    pub period: i64,
    /// Its labels.
    pub counts: Counts,
}

/// Where a device stands. Kept as JSON in the store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FleetDrift {
    /// Counter of the release whose model labelled last.
    pub model: u64,
    /// Until when its first days last, Unix ms; nothing is compared before.
    pub reference_until_ms: u64,
    /// Frames labelled in its first days.
    pub reference: u64,
    /// Frames labelled in its newest day, after those.
    pub newest: u64,
    /// The first days and the newest day; empty while there is too little of one of them.
    pub compared: Vec<Compared>,
}

impl FleetDrift {
    /// What drifted, in words; none when nothing did.
    pub fn trouble(&self) -> Option<String> {
        let drifted: Vec<Compared> = self.compared.iter().filter(|compared| compared.drifted).copied().collect();
        (!drifted.is_empty()).then(|| told(&drifted))
    }

    /// The largest distance.
    pub fn largest(&self) -> Option<&Compared> {
        self.compared
            .iter()
            .max_by(|a, b| (a.drifted, a.distance).partial_cmp(&(b.drifted, b.distance)).unwrap_or(std::cmp::Ordering::Equal))
    }
}

/// Where a device stands that labels with `model`, and the periods (model, period) that nothing needs any more.
pub fn look(periods: &[Period], model: u64, config: &DriftConfig) -> (FleetDrift, Vec<(u64, i64)>) {
    let mut last: BTreeMap<u64, i64> = BTreeMap::new();
    for period in periods {
        last.entry(period.model).and_modify(|last| *last = period.period.max(*last)).or_insert(period.period);
    }
    let mut models: Vec<(u64, i64)> = last.iter().map(|(model, last)| (*model, *last)).collect();
    models.sort_by_key(|&(of, last)| std::cmp::Reverse((of == model, last, of)));
    models.truncate(MODELS);

    let ours = || periods.iter().filter(|period| period.model == model);
    let first = ours().map(|period| period.period).min().unwrap_or(0);
    let until = first + DAY * i64::from(config.reference_days);
    let day = last.get(&model).copied().unwrap_or(0) - DAY + 1;
    let sum = |is_in: &dyn Fn(i64) -> bool| {
        let mut sum = Counts::default();
        ours().filter(|period| is_in(period.period)).for_each(|period| sum.merge(&period.counts));
        sum
    };
    let (reference, newest) = (sum(&|period| period < until), sum(&|period| period >= until.max(day)));
    let enough = reference.frames().min(newest.frames()) >= ENOUGH;
    let drift = FleetDrift {
        model,
        reference_until_ms: until.max(0).cast_unsigned() * PERIOD_MS,
        reference: reference.frames(),
        newest: newest.frames(),
        compared: if enough { compare(&reference, &newest, config.limit) } else { Vec::new() },
    };
    let is_kept = |one: &Period| {
        let is_between = one.model == model && one.period >= until && one.period < day;
        models.iter().any(|(model, _)| *model == one.model) && !is_between
    };
    (drift, periods.iter().filter(|one| !is_kept(one)).map(|one| (one.model, one.period)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::drift::Statistic;
    use crate::service::drift::tests::{counts, frame};

    const CONFIG: DriftConfig = DriftConfig { reference_days: 2, limit: 0.25 };

    fn period(model: u64, period: i64, frames: usize, side: f32) -> Period {
        Period { model, period, counts: counts(frames, &frame(1, 0.8, side, 12)) }
    }

    #[test]
    fn the_newest_day_is_compared_with_the_first_days() {
        // Two days of reference from period 100 on: to 115. A small box is a turned camera.
        let mut periods: Vec<Period> = (100..116).map(|at| period(3, at, 10, 40.0)).collect();
        let (drift, forget) = look(&periods, 3, &CONFIG);
        assert_eq!((drift.reference, drift.newest, drift.compared.len(), forget.len()), (160, 0, 0, 0));
        assert_eq!(drift.reference_until_ms, 116 * PERIOD_MS);

        periods.extend((116..124).map(|at| period(3, at, 20, 40.0)));
        let (drift, forget) = look(&periods, 3, &CONFIG);
        assert_eq!((drift.newest, drift.trouble(), forget.len()), (160, None, 0));

        // Five of the day's eight periods: more than a quarter of the people are of another size.
        periods.extend((124..129).map(|at| period(3, at, 20, 15.0)));
        let (drift, forget) = look(&periods, 3, &CONFIG);
        assert_eq!((drift.reference, drift.newest), (160, 160));
        let trouble = drift.trouble().unwrap();
        assert!(trouble.starts_with("size 0.6") && !trouble.contains("score"), "{trouble}");
        assert_eq!(drift.largest().unwrap().what, Statistic::Size);
        assert_eq!(forget, (116..121).map(|at| (3, at)).collect::<Vec<_>>(), "what lies between");
    }

    #[test]
    fn few_frames_say_nothing() {
        let periods: Vec<Period> = (100..116).map(|at| period(3, at, 10, 40.0)).chain([period(3, 120, 99, 15.0)]).collect();
        assert_eq!(look(&periods, 3, &CONFIG).0.compared, []);
        let periods: Vec<Period> = (100..116).map(|at| period(3, at, 10, 40.0)).chain([period(3, 120, 100, 15.0)]).collect();
        assert!(look(&periods, 3, &CONFIG).0.trouble().is_some());
    }

    #[test]
    fn models_that_have_not_labelled_for_long_are_forgotten_and_one_on_trial_disturbs_nothing() {
        // Releases 4 to 9 were tried and given up, while 3 runs.
        let mut periods: Vec<Period> = (100..116).map(|at| period(3, at, 10, 40.0)).collect();
        periods.extend((4..=9).map(|model| period(model, 110 + model.cast_signed(), 1, 40.0)));
        periods.extend((120..128).map(|at| period(3, at, 20, 15.0)));
        let (drift, forget) = look(&periods, 3, &CONFIG);
        assert_eq!(drift.reference, 160);
        assert!(drift.trouble().is_some());
        assert_eq!(forget, [(4, 114), (5, 115), (6, 116)]);
        // A release that runs from now on has no first days yet.
        periods.push(period(10, 128, 500, 15.0));
        let (drift, forget) = look(&periods, 10, &CONFIG);
        assert_eq!((drift.model, drift.reference, drift.newest, drift.trouble()), (10, 500, 0, None));
        assert_eq!(forget, [(4, 114), (5, 115), (6, 116), (7, 117)]);
        assert_eq!(look(&[], 3, &CONFIG).0.reference, 0);
    }
}
