//! Experiments on a tiny folder: interrupted ones come to the same, finished arms are not done again, and the test images decide nothing.
#![allow(clippy::unwrap_used)]

mod common;

use omnilabel_rcnn::device::Compute;
use omnilabel_trainer::distill::Event;
use omnilabel_trainer::experiment::{Outcome, Plan, Record, Setup, Summary, experiment};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

const PLAN: &str = r#"
name = "tiny"
seeds = [1, 2]
lower = "lower"
upper = "upper"
resamples = 20
[data]
train = "train"
test = "val"
labelled = 0.5
held_out = 0.3
[train]
short_side = 64
[train.options]
steps = 12
batch = 3
warmup = 1
[views]
scales = [64]
flip = true
[[arms]]
name = "lower"
labels = "manual"
lengths = [2]
[[arms]]
name = "distilled"
labels = "generated"
teacher = "lower"
ignore_from = 0.5
options = { generated_augment = { cutout = 0.5 } }
[[arms]]
name = "distilled.tuned"
labels = "generated"
teacher = "lower"
fine_tune = true
footage = "elsewhere/images"
seeds = [1]
[[arms]]
name = "lower.b"
labels = "manual"
variant = 1
seeds = [1]
[[arms]]
name = "distilled.models"
labels = "generated"
teacher = ["lower", "lower.b"]
views = { scales = [64] }
seeds = [1]
[[arms]]
name = "distilled.soft"
labels = "generated"
teacher = ["lower", "lower.b"]
views = { scales = [64] }
soft = true
seeds = [1]
[[arms]]
name = "ensemble"
labels = "manual"
test_views = { scales = [64], flip = true }
[[arms]]
name = "upper"
labels = "all"
"#;

fn data(dir: &Path) {
    common::folder(&dir.join("train"), 1, 10);
    common::folder(&dir.join("val"), 100, 4);
    common::folder(&dir.join("elsewhere"), 200, 3);
}

fn setup(dir: &Path, out: &str, plan: &str) -> Setup {
    let path = dir.join("plan.toml");
    std::fs::write(&path, plan).unwrap();
    let out = dir.join(out);
    let records = out.join("records");
    let plan = Plan::read(&path, None).unwrap();
    Setup { plan, records, out, only: Vec::new(), report_only: false, compute: Compute::default(), checkpoint_every: 1 }
}

/// Steps that were trained, by stage.
#[derive(Default)]
struct Seen(Mutex<(String, BTreeMap<String, u64>)>);

impl Seen {
    fn event(&self, event: &Event<'_>) {
        let mut seen = self.0.lock().unwrap();
        match event {
            Event::Stage(name) => seen.0 = (*name).to_owned(),
            Event::Step(_) => {
                let stage = seen.0.clone();
                *seen.1.entry(stage).or_default() += 1;
            }
            _ => {}
        }
    }

    fn steps(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut self.0.lock().unwrap().1)
    }
}

fn finished(setup: &Setup, seen: &Seen) -> Summary {
    match experiment(setup, &|event| seen.event(&event), &AtomicBool::new(false)).unwrap() {
        Outcome::Finished(summary) => *summary,
        Outcome::Stopped => panic!("nobody asked it to stop"),
    }
}

/// What does not depend on the clock.
fn timeless(records: &[Record]) -> Vec<Record> {
    records.iter().cloned().map(|record| Record { train_s: 0.0, ..record }).collect()
}

#[test]
fn an_interrupted_experiment_comes_to_the_same_and_nothing_is_done_twice() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path());
    let seen = Seen::default();
    let straight = finished(&setup(dir.path(), "a", PLAN), &seen);
    let steps = seen.steps();
    // `ensemble` is the lower bound's model, evaluated otherwise.
    let expected = [
        ("lower-12-seed1 train", 12),
        ("lower-2-seed1 train", 2),
        ("distilled-12-seed1 train", 12),
        ("distilled.tuned-12-seed1 train", 12),
        ("lower.b-12-seed1 train", 12),
        ("distilled.models-12-seed1 train", 12),
        ("distilled.soft-12-seed1 train", 12),
        ("upper-12-seed1 train", 12),
        ("lower-12-seed2 train", 12),
        ("lower-2-seed2 train", 2),
        ("distilled-12-seed2 train", 12),
        ("upper-12-seed2 train", 12),
    ];
    assert!(dir.path().join("a/examples/index.html").exists());
    assert_eq!(steps, expected.iter().map(|(stage, steps)| ((*stage).to_owned(), *steps)).collect());
    assert_eq!(straight.records.len(), 14);
    assert_eq!(straight.equal.iter().map(|row| row.seeds.len()).collect::<Vec<_>>(), [2, 2, 1, 1, 1, 1, 2, 2]);
    let distilled = straight.records.iter().find(|record| record.arm == "distilled").unwrap();
    let labels = distilled.labels.as_ref().unwrap();
    assert!(labels.quality.is_some() && labels.count.images == 5 && distilled.generated_images <= 5, "{labels:?}");
    let tuned = straight.records.iter().find(|record| record.arm == "distilled.tuned").unwrap();
    assert!(tuned.labels.as_ref().is_some_and(|labels| labels.quality.is_none() && labels.count.images == 3), "{tuned:?}");

    // Soft labels are of the same people and keypoints, and are learnt otherwise.
    let [hard, soft] =
        ["distilled.models", "distilled.soft"].map(|arm| straight.records.iter().find(|record| record.arm == arm).unwrap().clone());
    assert_eq!(hard.labels, soft.labels);
    assert!(hard.curve != soft.curve && soft.recipe.labelling.unwrap().soft);

    // Stopped twice, in the teacher and in the student.
    let halting = setup(dir.path(), "b", PLAN);
    for stage in ["lower-12-seed1 train", "distilled-12-seed2 train"] {
        let (seen, stop) = (Seen::default(), AtomicBool::new(false));
        let event = |event: Event<'_>| {
            seen.event(&event);
            if matches!(event, Event::Step(report) if report.step == 2) && seen.0.lock().unwrap().0 == stage {
                stop.store(true, Ordering::Relaxed);
            }
        };
        assert!(matches!(experiment(&halting, &event, &stop).unwrap(), Outcome::Stopped), "{stage}");
    }
    let resumed = finished(&halting, &seen);
    assert_eq!(seen.steps()["distilled-12-seed2 train"], 10);
    assert_eq!(timeless(&resumed.records), timeless(&straight.records));

    let again = finished(&halting, &seen);
    assert_eq!((seen.steps().len(), &again.records), (0, &resumed.records));

    // Another rule for one arm's labels: that arm alone, and of its pictures those on which the views agree most.
    let changed = PLAN.replace("ignore_from = 0.5\n", "most_agreed = 0.4\n");
    let agreed = finished(&setup(dir.path(), "b", &changed), &seen);
    let agreed = agreed.records.iter().find(|record| record.arm == "distilled").unwrap();
    let pictures = |record: &Record| record.labels.as_ref().map(|labels| labels.count.images);
    assert!(pictures(agreed) < pictures(distilled) && agreed.generated_images < distilled.generated_images, "{agreed:?}");
    assert_eq!(agreed.recipe.labelling.as_ref().map(|labelling| labelling.most_agreed), Some(0.4));
    assert_eq!(agreed.labels.as_ref().unwrap().calibration, labels.calibration, "thresholds are matched on all pictures");
    assert_eq!(seen.steps().into_keys().collect::<Vec<_>>(), ["distilled-12-seed1 train", "distilled-12-seed2 train"]);
}

/// As with two processes in one folder: locks of files do not care.
#[test]
fn two_at_once_share_the_arms() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path());
    let alone = finished(&setup(dir.path(), "a", PLAN), &Seen::default());
    let shared = setup(dir.path(), "b", PLAN);
    let seen = [Seen::default(), Seen::default()];
    let both =
        std::thread::scope(|scope| seen.each_ref().map(|seen| scope.spawn(|| finished(&shared, seen))).map(|one| one.join().unwrap()));
    for summary in &both {
        assert_eq!(timeless(&summary.records), timeless(&alone.records));
    }
    // Every model was trained once, by either.
    let steps = seen.each_ref().map(|seen| seen.steps().values().sum::<u64>());
    assert_eq!(steps[0] + steps[1], 10 * 12 + 2 * 2, "{steps:?}");
}

#[test]
fn what_another_process_is_at_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path());
    let lower = Setup { only: vec!["lower".to_owned()], ..setup(dir.path(), "a", &PLAN.replace("seeds = [1, 2]", "seeds = [1]")) };
    let first = finished(&lower, &Seen::default());
    // Locked are the models, then whatever is found behind them.
    let names = |folder: &str| {
        let listed = std::fs::read_dir(lower.out.join(folder)).unwrap();
        listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let models: Vec<String> = names("models").iter().map(|key| format!("model-{key}")).collect();
    assert_eq!(models.len(), 2);
    let records: Vec<String> = names("locks").into_iter().filter(|name| name.starts_with("record-")).collect();
    for locked in [models, records] {
        ["models", "records"].iter().for_each(|folder| std::fs::remove_dir_all(lower.out.join(folder)).unwrap());
        let lock = |name: &String| {
            let file = std::fs::File::create(lower.out.join("locks").join(name)).unwrap();
            file.lock().unwrap();
            file
        };
        let held: Mutex<Vec<std::fs::File>> = Mutex::new(locked.iter().map(lock).collect());
        let (seen, stop, told) = (Seen::default(), AtomicBool::new(false), Mutex::new(Vec::new()));
        let stopping = |event: Event<'_>| {
            seen.event(&event);
            if let Event::Warning(text) = event {
                told.lock().unwrap().push(text.to_owned());
                stop.store(true, Ordering::Relaxed);
            }
        };
        assert!(matches!(experiment(&lower, &stopping, &stop).unwrap(), Outcome::Stopped));
        assert!(seen.steps().is_empty());
        let told = told.into_inner().unwrap();
        assert!(told.len() == 1 && told[0].contains("lower-12-seed1") && told[0].contains("another process"), "{told:?}");
        let releasing = |event: Event<'_>| {
            seen.event(&event);
            if matches!(event, Event::Warning(_)) {
                held.lock().unwrap().clear();
            }
        };
        let Outcome::Finished(second) = experiment(&lower, &releasing, &AtomicBool::new(false)).unwrap() else { panic!("stopped") };
        assert_eq!(timeless(&second.records), timeless(&first.records));
    }
}

#[test]
fn the_report_needs_only_the_records_and_takes_none_of_another_plan() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path());
    let first = setup(dir.path(), "a", PLAN);
    let summary = finished(&first, &Seen::default());
    ["train", "val", "elsewhere", "a/models"].iter().for_each(|folder| std::fs::remove_dir_all(dir.path().join(folder)).unwrap());
    let report = Setup { report_only: true, out: dir.path().join("c"), ..first };
    let nowhere = Setup { records: dir.path().join("nowhere"), ..report.clone() };
    let error = experiment(&nowhere, &|_| {}, &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(error.contains("nowhere: no record") && !nowhere.records.exists(), "{error}");
    let alone = finished(&report, &Seen::default());
    assert_eq!(alone, summary);
    let tables = std::fs::read_to_string(dir.path().join("c/report.md")).unwrap();
    assert!(tables.contains("| distilled.tuned | 12 | 3 + "), "{tables}");
    std::fs::remove_file(report.records.join("upper-12-seed2.json")).unwrap();
    assert_eq!(finished(&report, &Seen::default()).missing, ["upper-12-seed2"]);
    for (from, to) in [
        ("labelled = 0.5", "labelled = 0.4"),
        ("fine_tune = true\n", ""),
        ("short_side = 64", "short_side = 96"),
        ("short_side = 64\n", ""),
        ("soft = true\n", ""),
        ("teacher = [\"lower\", \"lower.b\"]", "teacher = [\"lower.b\", \"lower\"]"),
        ("resamples = 20", "resamples = 21"),
        ("held_out = 0.3", "held_out = 0.3\ntest_images = 3"),
        ("test_views = { scales = [64], flip = true }", "test_views = { scales = [64] }"),
    ] {
        assert!(PLAN.contains(from), "{from}");
        let other = Setup { plan: setup(dir.path(), "a", &PLAN.replace(from, to)).plan, ..report.clone() };
        let error = experiment(&other, &|_| {}, &AtomicBool::new(false)).unwrap_err().to_string();
        assert!(error.contains("is of another plan") && error.contains(".json"), "{to}: {error}");
    }
}

#[test]
fn arms_that_are_asked_for_are_told_of_with_their_teachers_whatever_they_begin_with() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path());
    let plan = PLAN.replace("steps = 12", "steps = 3");
    let only = |arms: &[&str], setup: Setup| Setup { only: arms.iter().map(|arm| (*arm).to_owned()).collect(), ..setup };
    let seen = Seen::default();
    finished(&only(&["lower"], setup(dir.path(), "a", &plan)), &seen);
    let models: Vec<_> = std::fs::read_dir(dir.path().join("a/models")).unwrap().map(|model| model.unwrap().path()).collect();
    for (model, name) in models.iter().zip(["first.safetensors", "other.safetensors"]) {
        std::fs::copy(model.join("bundle/weights.safetensors"), dir.path().join(name)).unwrap();
    }
    seen.steps();

    // The lower bound begins with one file and the student of one seed with another; it is the student that is asked for.
    let plan = plan
        .replace("short_side = 64", "short_side = 64\ninit = \"first.safetensors\"")
        .replace("ignore_from = 0.5", "init = \"other.safetensors\"\nseeds = [1]");
    let setup = only(&["distilled"], setup(dir.path(), "b", &plan));
    let summary = finished(&setup, &seen);
    let told = |summary: &Summary| summary.equal.iter().map(|row| row.arm.clone()).collect::<Vec<_>>();
    assert_eq!(told(&summary), ["lower", "distilled"]);
    assert_eq!(seen.steps().into_keys().collect::<Vec<_>>(), ["distilled-3-seed1 train", "lower-3-seed1 train"]);
    let report = Setup { report_only: true, only: Vec::new(), ..setup };
    assert_eq!(finished(&report, &seen), summary);

    // Another file of that name is another beginning, which `--report` sees where two arms begin with it.
    let upper = only(&["upper"], Setup { report_only: false, ..report.clone() });
    std::fs::copy(dir.path().join("other.safetensors"), dir.path().join("first.safetensors")).unwrap();
    finished(&upper, &seen);
    let error = experiment(&report, &|_| {}, &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(error.contains("upper-3-seed1.json: began with other first weights"), "{error}");
}

#[test]
fn a_record_counts_only_with_its_teachers_and_of_the_same_images() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path());
    let first = setup(dir.path(), "a", &PLAN.replace("seeds = [1, 2]", "seeds = [1]"));
    finished(&first, &Seen::default());
    let report = Setup { report_only: true, ..first };
    let lower = report.records.join("lower-12-seed1.json");
    let text = std::fs::read_to_string(&lower).unwrap();
    let refused = || experiment(&report, &|_| {}, &AtomicBool::new(false)).unwrap_err().to_string();
    std::fs::remove_file(&lower).unwrap();
    let error = refused();
    assert!(error.contains("distilled-12-seed1.json") && error.contains("`lower-12-seed1.json` is missing"), "{error}");
    // Of other images: the key is made of the digest, and says so.
    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
    let digest = record["test"]["sha256"].as_str().unwrap();
    std::fs::write(&lower, text.replace(digest, &"0".repeat(64))).unwrap();
    let error = refused();
    assert!(error.contains("lower-12-seed1.json") && error.contains("another plan"), "{error}");
}

#[test]
fn a_model_that_one_arm_began_another_arm_finishes() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path());
    let plan = PLAN.replace("seeds = [1, 2]", "seeds = [1]");
    let (seen, stop) = (Seen::default(), AtomicBool::new(false));
    let one = Setup { only: vec!["lower".to_owned()], ..setup(dir.path(), "a", &plan) };
    let event = |event: Event<'_>| {
        seen.event(&event);
        stop.fetch_or(matches!(event, Event::Step(report) if report.step == 5), Ordering::Relaxed);
    };
    assert!(matches!(experiment(&one, &event, &stop).unwrap(), Outcome::Stopped));
    seen.steps();
    let other = Setup { only: vec!["ensemble".to_owned()], ..one };
    finished(&other, &seen);
    assert_eq!(seen.steps(), BTreeMap::from([("ensemble-12-seed1 train".to_owned(), 7)]));
}

/// Detections are shared: what another arm's teacher finds in a picture that has come back is not learnt by an arm that began without it.
#[test]
fn a_picture_that_comes_back_does_not_stop_an_arm_that_began_without_it() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path());
    let plan = PLAN.replace("seeds = [1, 2]", "seeds = [1]").replace("ignore_from = 0.5", "footage = \"elsewhere\"").replace(
        "[[arms]]\nname = \"lower.b\"",
        "[[arms]]\nname = \"distilled.b\"\nlabels = \"generated\"\nteacher = \"lower\"\nfootage = \"elsewhere\"\n\
         manual_percent = 40\n[[arms]]\nname = \"lower.b\"",
    );
    let only = |name: &str| Setup { only: vec![name.to_owned()], ..setup(dir.path(), "a", &plan) };
    let picture = dir.path().join("elsewhere/images/201.jpg");
    let whole = std::fs::read(&picture).unwrap();
    std::fs::write(&picture, vec![0; whole.len()]).unwrap();
    let (seen, stop, steps) = (Seen::default(), AtomicBool::new(false), Mutex::new(0));
    let outcome = experiment(
        &only("distilled"),
        &|event| {
            seen.event(&event);
            if matches!(event, Event::Step(_)) && seen.0.lock().unwrap().0.starts_with("distilled-") {
                *steps.lock().unwrap() += 1;
                stop.store(*steps.lock().unwrap() == 3, Ordering::Relaxed);
            }
        },
        &stop,
    );
    assert!(matches!(outcome.unwrap(), Outcome::Stopped));

    std::fs::write(&picture, &whole).unwrap();
    let of = |summary: &Summary, arm: &str| summary.records.iter().find(|record| record.arm == arm).cloned().unwrap();
    let other = of(&finished(&only("distilled.b"), &seen), "distilled.b");
    let labels = |record: &Record| record.labels.as_ref().unwrap().count.labelled_images;
    assert_eq!((labels(&other), other.left_out), (3, 0));
    seen.steps();
    let began_without = of(&finished(&only("distilled"), &seen), "distilled");
    assert_eq!((labels(&began_without), began_without.left_out), (2, 1));
    assert_eq!(seen.steps().into_iter().collect::<Vec<_>>(), [("distilled-12-seed1 train".to_owned(), 9)]);
}

/// The labels of unlabelled images reach the upper bound and what is told of the generated ones.
#[test]
fn the_truth_of_unlabelled_images_decides_nothing() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path());
    let plan = PLAN.replace("seeds = [1, 2]", "seeds = [1]").replace("labelled = 0.5", "labelled = 0.5\ndraw = \"first\"");
    let first = finished(&setup(dir.path(), "a", &plan), &Seen::default());
    let path = dir.path().join("train/annotations.json");
    let mut file: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for annotation in file["annotations"].as_array_mut().unwrap().iter_mut().filter(|a| a["image_id"].as_u64() > Some(5)) {
        annotation["keypoints"] = serde_json::json!([1, 1, 2, 2, 1, 2, 1, 2, 2]);
        annotation["bbox"] = serde_json::json!([0, 0, 4, 4]);
    }
    std::fs::write(&path, serde_json::to_vec(&file).unwrap()).unwrap();
    let second = finished(&setup(dir.path(), "b", &plan), &Seen::default());
    assert_eq!(first.records.len(), second.records.len());
    for (a, b) in first.records.iter().zip(&second.records) {
        let images = |record: &Record| (record.manual_images, record.generated_images);
        assert_eq!(images(a), images(b));
        let truth = a.arm == "upper";
        assert_eq!(a.manual_images, if truth { 8 } else { 3 }, "{}", a.arm);
        if truth {
            assert_ne!(a.curve, b.curve);
        } else {
            assert_eq!((&a.curve, &a.test, a.held_out), (&b.curve, &b.test, b.held_out), "{}", a.arm);
        }
        if let (Some(a), Some(b)) = (&a.labels, &b.labels) {
            assert_eq!((a.calibration, a.count), (b.calibration, b.count));
        }
    }
    let quality =
        |summary: &Summary| summary.records.iter().filter_map(|record| record.labels.as_ref()?.quality).map(|q| q.single_ap).sum::<f64>();
    assert!(quality(&first) > 0.0 && quality(&second) == 0.0, "{} {}", quality(&first), quality(&second));
    let by_size = first.records.iter().filter_map(|record| record.labels.as_ref()?.quality);
    assert!(by_size.clone().count() > 0 && by_size.into_iter().all(|q| q.single_terciles.is_some() && q.ensemble_terciles.is_some()));
}

#[test]
fn the_test_images_decide_nothing() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path());
    let plan = PLAN.replace("seeds = [1, 2]", "seeds = [1]");
    let first = finished(&setup(dir.path(), "a", &plan), &Seen::default());
    std::fs::remove_dir_all(dir.path().join("val")).unwrap();
    common::folder(&dir.path().join("val"), 300, 6);
    let second = finished(&setup(dir.path(), "b", &plan), &Seen::default());
    for (a, b) in timeless(&first.records).into_iter().zip(timeless(&second.records)) {
        assert_ne!(a.test, b.test);
        assert_eq!(Record { test: b.test.clone(), key: b.key.clone(), ..a }, b);
    }
    let weights = |out: &str| {
        let models = std::fs::read_dir(dir.path().join(out).join("models")).unwrap();
        let mut found: Vec<_> =
            models.map(|model| std::fs::read(model.unwrap().path().join("bundle/weights.safetensors")).unwrap()).collect();
        found.sort();
        found
    };
    assert!(weights("a") == weights("b"));
    // The same models on the new images: evaluated anew, not trained.
    let seen = Seen::default();
    let third = finished(&setup(dir.path(), "a", &plan), &seen);
    assert_eq!((seen.steps().len(), timeless(&third.records)), (0, timeless(&second.records)));
}

#[test]
fn an_arm_that_fails_costs_itself_and_its_students() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path());
    let plan = PLAN.replace("seeds = [1, 2]", "seeds = [1]");
    // The second teacher learns nothing from numbers that are none.
    let plan = plan.replace("variant = 1", "variant = 1\noptions = { lr = 1e30, warmup = 0 }");
    let setup = setup(dir.path(), "a", &plan);
    let told = Mutex::new(Vec::new());
    let event = |event: Event<'_>| {
        if let Event::Warning(text) = event {
            told.lock().unwrap().push(text.to_owned());
        }
    };
    let error = experiment(&setup, &event, &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(error.contains("lower.b-12-seed1") && error.contains("1 failed") && error.contains("report.md"), "{error}");
    let told = told.into_inner().unwrap();
    for arm in ["distilled.models", "distilled.soft"] {
        assert!(told.iter().any(|text| text.contains(arm) && text.contains("its teacher failed")), "{told:?}");
    }
    let report = std::fs::read_to_string(setup.out.join("report.md")).unwrap();
    assert!(report.contains("| upper | 12 |") && report.contains("Not run: lower.b-12-seed1, distilled.models-12-seed1"), "{report}");

    // Run again while another process is at it: its students wait, and are not blamed for it.
    let alone = Setup { only: vec!["lower.b".to_owned()], ..self::setup(dir.path(), "b", &plan) };
    experiment(&alone, &|_| {}, &AtomicBool::new(false)).unwrap_err();
    let locks = std::fs::read_dir(alone.out.join("locks")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let record: Vec<String> = locks.filter(|name| name.starts_with("record-")).collect();
    let lock = std::fs::File::create(setup.out.join("locks").join(&record[0])).unwrap();
    lock.lock().unwrap();
    let held = Mutex::new(Some(lock));
    let releasing = |event: Event<'_>| {
        if matches!(event, Event::Warning(text) if text.contains("lower.b-12-seed1: another process is at it")) {
            held.lock().unwrap().take();
        }
    };
    let error = experiment(&setup, &releasing, &AtomicBool::new(false)).unwrap_err().to_string();
    assert_eq!((record.len(), held.lock().unwrap().is_none()), (1, true), "{error}");
    assert!(error.contains("lower.b-12-seed1") && error.contains("1 failed"), "{error}");

    // Labels of which none passes.
    let plan =
        plan.replace("variant = 1\noptions = { lr = 1e30, warmup = 0 }", "variant = 1").replace("ignore_from = 0.5", "min_agreement = 1.0");
    let setup = Setup { plan: self::setup(dir.path(), "a", &plan).plan, ..setup };
    let error = experiment(&setup, &|_| {}, &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(error.contains("distilled-12-seed1: no unlabelled image got a label") && error.contains("1 failed"), "{error}");
}

#[test]
fn data_that_cannot_carry_a_plan_is_named() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path());
    let fail = |plan: &str| experiment(&setup(dir.path(), "a", plan), &|_| {}, &AtomicBool::new(false)).unwrap_err().to_string();
    let error = fail(&PLAN.replace("train = \"train\"", "train = \"nowhere\""));
    assert!(error.contains("nowhere: `data.train` has no annotations.json") && error.contains("--data"), "{error}");
    let error = fail(&PLAN.replace("labelled = 0.5", "labelled = 0.5\nimages = 2"));
    assert!(error.contains("train") && error.contains("at least 3"), "{error}");
    let error = fail(&PLAN.replace("footage = \"elsewhere/images\"", "footage = \"nothing\""));
    assert!(error.contains("nothing"), "{error}");
    let error = fail(&PLAN.replace("test = \"val\"", "test = \"train\""));
    assert!(error.contains("trains on"), "{error}");
    let error = fail(&PLAN.replace("footage = \"elsewhere/images\"", "footage = \"val/images\""));
    assert!(error.contains("val/images") && error.contains("no footage"), "{error}");
    // A single picture, under another name.
    let copy = |from: &str, to: &str| std::fs::copy(dir.path().join(from), dir.path().join(to)).unwrap();
    copy("val/images/102.jpg", "elsewhere/images/other.jpg");
    let error = fail(PLAN);
    assert!(error.contains("other.jpg") && error.contains("102.jpg") && error.contains("test pictures"), "{error}");
    copy("train/images/3.jpg", "elsewhere/images/other.jpg");
    let error = fail(PLAN);
    assert!(error.contains("other.jpg") && error.contains("train/images/3.jpg") && error.contains("held out"), "{error}");
    std::fs::remove_file(dir.path().join("elsewhere/images/other.jpg")).unwrap();
    let kept = std::fs::read(dir.path().join("val/images/102.jpg")).unwrap();
    copy("train/images/3.jpg", "val/images/102.jpg");
    let error = fail(PLAN);
    assert!(error.contains("102.jpg") && error.contains("train/images/3.jpg") && error.contains("trains on"), "{error}");
    std::fs::write(dir.path().join("val/images/102.jpg"), kept).unwrap();
    std::fs::write(dir.path().join("val/images/101.jpg"), b"no picture").unwrap();
    let error = fail(PLAN);
    assert!(error.contains("lower-12-seed1") && error.contains("101.jpg"), "{error}");
    let error = fail(&PLAN.replace("short_side = 64", "short_side = 64\npreset = \"giant\""));
    assert!(error.contains("giant"), "{error}");
    let error = fail(&PLAN.replace("short_side = 64", "short_side = 64\ninit = \"no.safetensors\""));
    assert!(error.contains("no.safetensors") && error.contains("arm `lower`"), "{error}");
    let unlike = PLAN.replace("name = \"upper\"", "name = \"upper\"\npreset = \"resnet50\"\ninit = \"no.safetensors\"");
    let error = fail(&unlike);
    assert!(error.contains("arm `upper`") && error.contains("no.safetensors"), "{error}");
}

/// What would end an experiment after hours ends it before the first step.
#[test]
fn a_plan_that_cannot_be_tested_or_taught_is_refused_before_anything_is_trained() {
    let dir = tempfile::tempdir().unwrap();
    data(dir.path());
    let seen = Seen::default();
    let fail = |plan: &str| {
        let error = experiment(&setup(dir.path(), "a", plan), &|event| seen.event(&event), &AtomicBool::new(false)).unwrap_err();
        assert_eq!(seen.steps(), BTreeMap::new());
        error.to_string()
    };
    let unlike = PLAN.replace("short_side = 64\n", "").replace("variant = 1", "variant = 1\npreset = \"resnet50\"");
    let error = fail(&unlike);
    assert!(error.contains("arm `distilled.models`") && error.contains("`lower` and `lower.b`") && error.contains("short_side"), "{error}");
    let error = fail(&PLAN.replace("held_out = 0.3", "held_out = 0.3\ntest_images = 0"));
    assert!(error.contains("val"), "{error}");
    let val = dir.path().join("val/annotations.json");
    let text = std::fs::read_to_string(&val).unwrap();
    std::fs::write(&val, text.replace("left_foot", "left_hand")).unwrap();
    let error = fail(PLAN);
    assert!(error.contains("val") && error.contains("left_foot") && error.contains("left_hand"), "{error}");
}
