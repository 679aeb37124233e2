//! From records to rows: means over seeds, differences with their errors, the gap recovered.

use super::ExperimentError;
use super::plan::{Labels, Plan};
use super::record::{Hard, Quality, Record};
use crate::score::CocoScores;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A gap of fewer standard errors is no gap: its ratio would be noise over noise.
pub(super) const GAP_ERRORS: f64 = 3.0;
/// Half a normal 95 % interval, in standard errors.
const NORMAL_95: f64 = 1.96;
/// The same of Student's t with 1, 2, … degrees of freedom: of few seeds the deviation itself is uncertain.
const STUDENT_95: [f64; 10] = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23];

/// `report.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The experiment's name.
    pub name: String,
    /// Every arm with its own schedule's number of steps.
    pub equal: Vec<Row>,
    /// With other numbers of steps, all arms that were tried with them.
    pub lengths: Vec<Equal>,
    /// Every arm with the number of steps that was best on the held-out images; empty where none was tried with another.
    pub best: Vec<Row>,
    /// Cases that have no record.
    pub missing: Vec<String>,
    /// What the rows are made of.
    pub records: Vec<Record>,
}

/// Arms of equally many steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Equal {
    /// The steps.
    pub steps: u64,
    /// The arms.
    pub rows: Vec<Row>,
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The arm.
    pub arm: String,
    /// Optimiser steps.
    pub steps: u64,
    /// Seeds with a record.
    pub seeds: Vec<u64>,
    /// Images with true labels, the mean over the seeds.
    pub manual_images: f64,
    /// Images with generated labels, the mean over the seeds.
    pub generated_images: f64,
    /// Means over the seeds of the ten numbers; −1 where a number counts nobody.
    pub mean: CocoScores,
    /// AP's standard deviation over the seeds; none of one seed.
    pub ap_deviation: Option<f64>,
    /// Mean AP on the held-out labelled images.
    pub held_out_ap: f64,
    /// Mean AP by thirds of the people's areas.
    pub terciles: [f64; 3],
    /// Mean PCK.
    pub pck: Option<f64>,
    /// Against the lower bound, over common seeds.
    pub gain: Option<Gain>,
    /// Against the plan's reference, over common seeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<Gain>,
    /// Of the gap between the bounds, of an arm with generated labels that was tested like the bounds and, but for [`Summary::best`], trained
    /// for as long; none where the gap is less than three standard errors.
    pub gap: Option<Gap>,
    /// The teacher's detections, means over the seeds.
    pub labels: Option<Quality>,
    /// Mean seconds of training.
    pub train_s: f64,
}

/// How much better than the lower bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gain {
    /// Difference of AP, the mean over common seeds.
    pub ap: f64,
    /// Its standard error: of the test images by the paired bootstrap and, with two seeds or more, of the seeds.
    pub standard_error: f64,
    /// Its 95 % interval: the images' part normal, the seeds' part by Student's t; of one seed the images' part alone.
    pub interval: [f64; 2],
    /// Common seeds.
    pub seeds: usize,
}

/// The share of the gap between lower and upper bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// (AP − AP_lower) / (AP_upper − AP_lower).
    pub recovered: f64,
    /// Common seeds.
    pub seeds: usize,
    /// Its 95 % interval as that of a gain, from the errors of (AP − AP_lower) − recovered · (AP_upper − AP_lower), linearised; none of one
    /// seed, as it would leave out what another seed gives.
    pub interval: Option<[f64; 2]>,
}

/// A number for each seed, with its values on resamples.
struct Paired {
    seeds: Vec<f64>,
    resamples: Vec<Vec<f64>>,
}

impl Paired {
    /// A weighted sum of records' APs, a list of the same length for each seed.
    fn of(seeds: &[Vec<(f64, &Record)>]) -> Self {
        let sum = |terms: &[(f64, &Record)], ap: &dyn Fn(&Record) -> f64| terms.iter().map(|(weight, record)| weight * ap(record)).sum();
        let length = seeds.iter().flatten().map(|(_, record)| record.test.resampled.len()).min().unwrap_or(0);
        let at = |terms: &[(f64, &Record)]| (0..length).map(|i| sum(terms, &|record| record.test.resampled[i])).collect();
        Self {
            seeds: seeds.iter().map(|terms| sum(terms, &|record| record.test.scores.ap)).collect(),
            resamples: seeds.iter().map(|terms| at(terms)).collect(),
        }
    }

    fn mean(&self) -> f64 {
        mean(&self.seeds)
    }

    /// Of the mean over the seeds: the images' part by the resamples of that mean, the seeds' by their deviation.
    fn standard_error(&self) -> f64 {
        let [of_images, of_seeds] = self.errors();
        of_images.hypot(of_seeds)
    }

    /// Half the 95 % interval of the mean.
    fn half_interval(&self) -> f64 {
        let [of_images, of_seeds] = self.errors();
        let student = STUDENT_95.get(self.seeds.len().max(2) - 2).copied().unwrap_or(STUDENT_95[9]);
        (NORMAL_95 * of_images).hypot(student * of_seeds)
    }

    fn errors(&self) -> [f64; 2] {
        let length = self.resamples.first().map_or(0, Vec::len);
        let means: Vec<f64> = (0..length).map(|i| mean(&self.resamples.iter().map(|values| values[i]).collect::<Vec<_>>())).collect();
        let of_images = deviation(&means).unwrap_or(0.0);
        let of_seeds = deviation(&self.seeds).map_or(0.0, |deviation| deviation / (self.seeds.len() as f64).sqrt());
        [of_images, of_seeds]
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Standard deviation of a sample; none of fewer than two.
fn deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

impl Summary {
    /// # Errors
    /// An arm whose options cannot be made out.
    pub(super) fn of(plan: &Plan, records: Vec<Record>) -> Result<Self, ExperimentError> {
        let name = |record: &Record| format!("{}-{}-seed{}", record.arm, record.steps, record.seed);
        let known: BTreeSet<String> = records.iter().map(name).collect();
        let missing = super::cases(plan)?.iter().map(super::Case::name).filter(|name| !known.contains(name)).collect();
        let mut steps = BTreeMap::new();
        for arm in &plan.arms {
            steps.insert(arm.name.as_str(), plan.options(arm, plan.seeds[0]).map_err(ExperimentError::Start)?.steps);
        }
        let own = |arm: &str| steps.get(arm).copied().unwrap_or(0);
        let best = |arm: &str| {
            let lengths: BTreeSet<u64> = records.iter().filter(|record| record.arm == arm).map(|record| record.steps).collect();
            let has = |seed: u64| lengths.iter().all(|steps| of(&records, arm, *steps).iter().any(|record| record.seed == seed));
            // While an experiment is under way, only seeds that tried every length tell which is best.
            let held_out = |steps: u64| {
                let aps = of(&records, arm, steps).into_iter().filter(|record| has(record.seed)).map(|record| record.held_out.ap);
                mean(&aps.collect::<Vec<_>>())
            };
            // Of equally good ones the shortest.
            lengths.iter().copied().rev().max_by(|a, b| held_out(*a).total_cmp(&held_out(*b))).unwrap_or(0)
        };
        let lengths: BTreeSet<u64> = plan.arms.iter().flat_map(|arm| &arm.lengths).copied().collect();
        let tried = plan.arms.iter().any(|arm| !arm.lengths.is_empty());
        Ok(Self {
            name: plan.name.clone(),
            equal: rows(plan, &records, own, true),
            lengths: lengths
                .into_iter()
                .map(|steps| Equal { steps, rows: rows(plan, &records, |_| steps, true) })
                .filter(|equal| !equal.rows.is_empty())
                .collect(),
            best: if tried { rows(plan, &records, best, false) } else { Vec::new() },
            missing,
            records,
        })
    }
}

/// The records of an arm and length, by seed.
fn of<'r>(records: &'r [Record], arm: &str, steps: u64) -> Vec<&'r Record> {
    let mut found: Vec<&Record> = records.iter().filter(|record| record.arm == arm && record.steps == steps).collect();
    found.sort_by_key(|record| record.seed);
    found
}

/// A row for each arm with a record of the length that `steps` chooses. If the lengths are to be `equal`, an arm is compared with bounds of its
/// own alone.
fn rows(plan: &Plan, records: &[Record], steps: impl Fn(&str) -> u64, equal: bool) -> Vec<Row> {
    let own = |arm: &str| of(records, arm, steps(arm));
    let lower = own(&plan.lower);
    let upper = plan.upper.as_ref().map(|upper| own(upper)).unwrap_or_default();
    let reference = plan.reference.as_ref().map(|reference| own(reference)).unwrap_or_default();
    let is_student = |arm: &str, found: &[&Record]| {
        let one_test = |bound: &[&Record]| bound.iter().chain(found).all(|record| record.test.views == found[0].test.views);
        let one_length = |bound: &[&Record]| !equal || bound.iter().all(|record| record.steps == found[0].steps);
        let is_bound = arm == plan.lower || plan.upper.as_deref() == Some(arm);
        let generated = plan.arm(arm).is_some_and(|arm| arm.labels == Labels::Generated);
        generated && !is_bound && [&lower, &upper].into_iter().all(|bound| one_test(bound) && one_length(bound))
    };
    let row = |arm: &str| {
        let found = own(arm);
        if found.is_empty() {
            return None;
        }
        let average = |value: &dyn Fn(&Record) -> f64| mean(&found.iter().map(|record| value(record)).collect::<Vec<_>>());
        let some = |value: &dyn Fn(&Record) -> Option<f64>| {
            let values: Vec<f64> = found.iter().filter_map(|record| value(record)).collect();
            (!values.is_empty()).then(|| mean(&values))
        };
        let thirds = |value: &dyn Fn(&Record) -> Option<[f64; 3]>| {
            let third = |third: usize| some(&|record| value(record).map(|thirds| thirds[third]));
            Some([third(0)?, third(1)?, third(2)?])
        };
        let hard = |value: &dyn Fn(&Record) -> Option<Hard>| {
            Some(Hard { ap: some(&|record| Some(value(record)?.ap))?, pck: some(&|record| value(record)?.pck) })
        };
        let quality = |record: &Record| record.labels.as_ref().and_then(|labels| labels.quality);
        let labels = found.iter().any(|record| quality(record).is_some()).then(|| Quality {
            single_ap: some(&|record| Some(quality(record)?.single_ap)).unwrap_or(-1.0),
            ensemble_ap: some(&|record| Some(quality(record)?.ensemble_ap)).unwrap_or(-1.0),
            single_pck: some(&|record| quality(record)?.single_pck),
            ensemble_pck: some(&|record| quality(record)?.ensemble_pck),
            single_terciles: thirds(&|record| quality(record)?.single_terciles),
            ensemble_terciles: thirds(&|record| quality(record)?.ensemble_terciles),
            single_hard: hard(&|record| quality(record)?.single_hard),
            ensemble_hard: hard(&|record| quality(record)?.ensemble_hard),
        });
        let aps: Vec<f64> = found.iter().map(|record| record.test.scores.ap).collect();
        Some(Row {
            arm: arm.to_owned(),
            steps: found[0].steps,
            seeds: found.iter().map(|record| record.seed).collect(),
            manual_images: average(&|record| record.manual_images as f64),
            generated_images: average(&|record| record.generated_images as f64),
            mean: mean_scores(&found),
            ap_deviation: deviation(&aps),
            held_out_ap: average(&|record| record.held_out.ap),
            terciles: [0, 1, 2].map(|third| average(&|record| record.test.terciles[third])),
            pck: some(&|record| record.test.pck),
            gain: (arm != plan.lower).then(|| gain(&found, &lower)).flatten(),
            against: (plan.reference.as_deref() != Some(arm)).then(|| gain(&found, &reference)).flatten(),
            gap: is_student(arm, &found).then(|| gap(&found, &lower, &upper)).flatten(),
            labels,
            train_s: average(&|record| record.train_s),
        })
    };
    plan.arms.iter().filter_map(|arm| row(&arm.name)).collect()
}

/// Every number's mean, where it counts somebody.
fn mean_scores(records: &[&Record]) -> CocoScores {
    let average = |pick: fn(&CocoScores) -> f64| mean(&records.iter().map(|record| pick(&record.test.scores)).collect::<Vec<_>>());
    CocoScores {
        ap: average(|s| s.ap),
        ap50: average(|s| s.ap50),
        ap75: average(|s| s.ap75),
        ap_m: average(|s| s.ap_m),
        ap_l: average(|s| s.ap_l),
        ar: average(|s| s.ar),
        ar50: average(|s| s.ar50),
        ar75: average(|s| s.ar75),
        ar_m: average(|s| s.ar_m),
        ar_l: average(|s| s.ar_l),
    }
}

/// The records of the seeds that all lists have, a list for each seed.
fn common<'r, const N: usize>(lists: [&[&'r Record]; N]) -> Vec<[&'r Record; N]> {
    let of_seed = |list: &[&'r Record], seed: u64| list.iter().copied().find(|record| record.seed == seed);
    let first = lists.first().copied().unwrap_or_default();
    let all = |record: &&'r Record| -> Option<[&'r Record; N]> {
        let found: Vec<&Record> = lists.iter().map(|list| of_seed(list, record.seed)).collect::<Option<_>>()?;
        found.try_into().ok()
    };
    first.iter().filter_map(all).collect()
}

fn gain(arm: &[&Record], lower: &[&Record]) -> Option<Gain> {
    let pairs = common([arm, lower]);
    let paired = Paired::of(&pairs.iter().map(|[arm, lower]| vec![(1.0, *arm), (-1.0, *lower)]).collect::<Vec<_>>());
    let (ap, half) = (paired.mean(), paired.half_interval());
    (!pairs.is_empty()).then(|| Gain { ap, standard_error: paired.standard_error(), interval: [ap - half, ap + half], seeds: pairs.len() })
}

fn gap(arm: &[&Record], lower: &[&Record], upper: &[&Record]) -> Option<Gap> {
    let triples = common([arm, lower, upper]);
    let paired = |weights: [f64; 3]| {
        Paired::of(&triples.iter().map(|records| weights.into_iter().zip(records.iter().copied()).collect()).collect::<Vec<_>>())
    };
    let between = paired([0.0, -1.0, 1.0]);
    if triples.is_empty() || between.mean() < GAP_ERRORS * between.standard_error() || between.mean() <= 0.0 {
        return None;
    }
    let recovered = paired([1.0, -1.0, 0.0]).mean() / between.mean();
    let half = paired([1.0, recovered - 1.0, -recovered]).half_interval() / between.mean();
    let interval = (triples.len() > 1).then_some([recovered - half, recovered + half]);
    Some(Gap { recovered, seeds: triples.len(), interval })
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::plan::tests::TEXT;
    use super::super::recipe::{DataRecipe, FirstWeights, Recipe};
    use super::super::record::{Machine, Test};
    use super::super::{Drawn, Plan};
    use super::*;
    use omnilabel_rcnn::config::Config;
    use omnilabel_rcnn::train::TrainOptions;

    pub(in crate::experiment) fn plan() -> Plan {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.toml");
        std::fs::write(&path, TEXT).unwrap();
        Plan::read(&path, None).unwrap()
    }

    pub(in crate::experiment) fn record(arm: &str, steps: u64, seed: u64, ap: f64, held_out: f64, resampled: &[f64]) -> Record {
        let scores = |ap| CocoScores { ap, ap50: ap, ap75: ap, ap_m: ap, ap_l: -1.0, ar: ap, ar50: ap, ar75: ap, ar_m: ap, ar_l: -1.0 };
        let recipe = Recipe {
            labels: Labels::Manual,
            network: Config::preset("nano", 14).unwrap(),
            options: TrainOptions { steps, seed, ..TrainOptions::default() },
            first_weights: FirstWeights::Random,
            data: DataRecipe { train_sha256: String::new(), images: None, labelled: 0.3, draw: Drawn::Random, held_out: 0.1, seed: None },
            teacher: None,
            labelling: None,
        };
        Record {
            experiment: "small".to_owned(),
            arm: arm.to_owned(),
            steps,
            seed,
            key: String::new(),
            recipe,
            manual_images: 10,
            generated_images: 0,
            left_out: 0,
            labels: None,
            held_out: scores(held_out),
            test: Test {
                sha256: String::new(),
                images: 4,
                views: None,
                scores: scores(ap),
                terciles: [ap; 3],
                pck: None,
                resampled: resampled.iter().map(|d| ap + d).collect(),
            },
            curve: Vec::new(),
            train_s: 1.0,
            machine: Machine {
                device: "cpu".to_owned(),
                precision: omnilabel_rcnn::device::Arithmetic::F32,
                threads: 2,
                arch: "x86_64".to_owned(),
            },
            version: "0".to_owned(),
        }
    }

    /// What the images add to every arm alike: it cancels in differences.
    const SHARED: [f64; 4] = [-0.05, 0.05, -0.03, 0.03];

    fn three(aps: [[f64; 3]; 2]) -> Vec<Record> {
        let arms = ["lower", "distilled", "upper"];
        let one = |seed: usize, arm: usize| record(arms[arm], 100, seed as u64 + 1, aps[seed][arm], 0.1, &SHARED);
        (0..2).flat_map(|seed| (0..3).map(move |arm| (seed, arm))).map(|(seed, arm)| one(seed, arm)).collect()
    }

    #[test]
    fn the_papers_gap_and_its_error_over_seeds() {
        let summary = Summary::of(&plan(), three([[0.549, 0.602, 0.651], [0.559, 0.618, 0.659]])).unwrap();
        let [lower, distilled, upper] = &summary.equal[..] else { panic!("{:?}", summary.equal) };
        assert!((lower.mean.ap - 0.554).abs() < 1e-12 && lower.gain.is_none() && lower.gap.is_none() && upper.gap.is_none());
        let gain = distilled.gain.unwrap();
        // Seeds 0.053 and 0.059: deviation 0.003·√2, error 0.003; the images' part cancels.
        assert!((gain.ap - 0.056).abs() < 1e-12 && (gain.standard_error - 0.003).abs() < 1e-9, "{gain:?}");
        // The error is the seeds' alone: Student's t of two.
        assert!(
            (gain.interval[1] - gain.ap - 12.71 * 0.003).abs() < 1e-9
                && (gain.interval[0] + gain.interval[1] - 2.0 * gain.ap).abs() < 1e-12,
            "{gain:?}"
        );
        let gap = distilled.gap.unwrap();
        let recovered = 0.056 / 0.101;
        // Of 0.053 − r·0.102 and 0.059 − r·0.100.
        let error = ((0.059 - recovered * 0.100) - (0.053 - recovered * 0.102)) / 2.0 / 0.101;
        assert!((gap.recovered - recovered).abs() < 1e-12, "{gap:?}");
        assert!((gap.interval.unwrap()[1] - recovered - 12.71 * error).abs() < 1e-9, "{gap:?}");
        assert_eq!(lower.mean.ap_l, -1.0);
        assert_eq!(summary.missing, ["lower-50-seed1", "lower-50-seed2"]);
    }

    #[test]
    fn a_gap_that_may_be_chance_has_no_ratio() {
        // Upper − lower: 0.01 and 0.03, mean 0.02, standard error 0.01.
        let summary = Summary::of(&plan(), three([[0.50, 0.51, 0.51], [0.50, 0.52, 0.53]])).unwrap();
        assert!(summary.equal[1].gain.is_some() && summary.equal[1].gap.is_none());
        let summary = Summary::of(&plan(), three([[0.50, 0.51, 0.48], [0.50, 0.52, 0.49]])).unwrap();
        assert!(summary.equal[1].gap.is_none());
    }

    #[test]
    fn one_seed_has_the_error_of_the_images_alone() {
        let records = vec![record("lower", 100, 1, 0.5, 0.1, &[0.0, 0.0]), record("distilled", 100, 1, 0.6, 0.1, &[-0.01, 0.01])];
        let row = &Summary::of(&plan(), records).unwrap().equal[1];
        assert_eq!(row.ap_deviation, None);
        let gain = row.gain.unwrap();
        assert!((gain.standard_error - 0.01 * 2_f64.sqrt()).abs() < 1e-9, "{row:?}");
        assert!((gain.interval[1] - gain.ap - 1.96 * gain.standard_error).abs() < 1e-4, "{row:?}");
    }

    #[test]
    fn differences_are_of_common_seeds() {
        let mut records = three([[0.5, 0.6, 0.7], [0.1, 0.3, 0.7]]);
        records.retain(|record| record.arm != "lower" || record.seed == 2);
        let row = &Summary::of(&plan(), records).unwrap().equal[1];
        let gain = row.gain.unwrap();
        assert!((gain.ap - 0.2).abs() < 1e-12 && gain.seeds == 1 && row.seeds == [1, 2], "{row:?}");
    }

    #[test]
    fn a_gap_is_recovered_by_students_alone_who_had_the_bounds_steps_and_test() {
        let mut records = three([[0.5, 0.6, 0.7], [0.5, 0.6, 0.7]]);
        let gap = |plan: &Plan, records: &[Record]| Summary::of(plan, records.to_vec()).unwrap().equal[1].gap;
        let mut plan = plan();
        assert_eq!(gap(&plan, &records).map(|gap| gap.seeds), Some(2));
        plan.arms[1].labels = Labels::All;
        assert_eq!(gap(&plan, &records), None);
        // A bound recovers nothing of its own gap, whatever it learns from.
        plan.arms[0].labels = Labels::Generated;
        plan.arms[2].labels = Labels::Generated;
        assert!(Summary::of(&plan, records.clone()).unwrap().equal.iter().all(|row| row.gap.is_none()));
        plan.arms[1].labels = Labels::Generated;
        let views = |record: &mut Record, views| {
            if record.arm == "distilled" {
                record.test.views = views;
            }
        };
        records.iter_mut().for_each(|record| views(record, Some(crate::evaluate::Views::default())));
        assert_eq!(gap(&plan, &records), None, "tested otherwise");
        records.iter_mut().for_each(|record| views(record, None));
        // Another length has bounds of its own, where they were trained for it.
        plan.arms[1].options.insert("steps".to_owned(), 300.into());
        records.iter_mut().filter(|record| record.arm == "distilled").for_each(|record| record.steps = 300);
        assert_eq!(gap(&plan, &records), None, "trained for longer");
        plan.arms[0].lengths = vec![300];
        plan.arms[2].lengths = vec![300];
        records.extend([1, 2].map(|seed| record("lower", 300, seed, 0.5, 0.1, &SHARED)));
        records.extend([1, 2].map(|seed| record("upper", 300, seed, 0.9, 0.1, &SHARED)));
        let summary = Summary::of(&plan, records).unwrap();
        let [Equal { steps: 300, rows }] = &summary.lengths[..] else { panic!("{:?}", summary.lengths) };
        assert!((rows[1].gap.unwrap().recovered - 0.25).abs() < 1e-9, "{rows:?}");
        assert_eq!(summary.equal[1].gap, None);
        // Each at its own best length, the shorter one where the held-out images do not tell: (0.6 − 0.5) / (0.7 − 0.5).
        assert_eq!(summary.best.iter().map(|row| row.steps).collect::<Vec<_>>(), [100, 300, 100]);
        assert!((summary.best[1].gap.unwrap().recovered - 0.5).abs() < 1e-9, "{:?}", summary.best);
    }

    #[test]
    fn ablations_are_told_less_their_reference_over_common_seeds() {
        let mut plan = plan();
        plan.reference = Some("distilled".to_owned());
        let mut records = three([[0.5, 0.6, 0.7], [0.5, 0.8, 0.7]]);
        records.retain(|record| record.arm != "upper" || record.seed == 1);
        let summary = Summary::of(&plan, records).unwrap();
        let against: Vec<_> = summary.equal.iter().map(|row| row.against.map(|gain| (gain.seeds, (100.0 * gain.ap).round()))).collect();
        assert_eq!(against, [Some((2, -20.0)), None, Some((1, 10.0))]);
    }

    #[test]
    fn the_best_length_is_chosen_on_the_held_out_images() {
        let mut records = three([[0.5, 0.6, 0.7], [0.5, 0.6, 0.7]]);
        // Worse on the test images, better on the held-out ones.
        records.extend([1, 2].map(|seed| record("lower", 50, seed, 0.4, 0.2, &SHARED)));
        let summary = Summary::of(&plan(), records).unwrap();
        assert_eq!((summary.equal[0].steps, summary.best[0].steps), (100, 50));
        assert!((summary.best[1].gain.unwrap().ap - 0.2).abs() < 1e-12);
    }
}
