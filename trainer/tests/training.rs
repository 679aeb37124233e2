//! Arms and the whole method on a tiny folder: they resume exactly, skip what is done, and refuse what does not belong.
#![allow(clippy::unwrap_used)]

mod common;

use omnilabel_bundle::Bundle;
use omnilabel_coco::Dataset;
use omnilabel_keypoints::geometry::Rect;
use omnilabel_keypoints::label::{Detection, Keypoint, Thresholds};
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_rcnn::config::Config;
use omnilabel_rcnn::train::{Init, TrainOptions};
use omnilabel_runtime::{Teacher, check_golden};
use omnilabel_trainer::arm::{ArmConfig, ArmOutcome, read_progress, train_arm};
use omnilabel_trainer::calibrate::{Kept, Mode};
use omnilabel_trainer::distill::{DistillConfig, Event, Outcome, distill, split_by_id};
use omnilabel_trainer::evaluate::Views;
use omnilabel_trainer::mix::MANUAL_PERCENT;
use omnilabel_trainer::samples::{Item, SampleError, SampleSet, plain_folder};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

fn network() -> Config {
    let mut config = Config::nano(3);
    config.input.short_side = 64;
    config
}

fn options(steps: u64) -> TrainOptions {
    TrainOptions { steps, batch: 3, warmup: 1, ..TrainOptions::default() }
}

fn arm(out: &Path, steps: u64) -> ArmConfig {
    ArmConfig {
        name: "test".to_owned(),
        network: network(),
        options: options(steps),
        init: Init::Seed(3),
        out: out.to_owned(),
        checkpoint_every: 0,
        thresholds: Thresholds { instance: 0.5, keypoint: 0.1, floor: 0.05 },
        parent: None,
        golden: 2,
        manual_percent: MANUAL_PERCENT,
        weights: omnilabel_rcnn::params::Precision::F32,
        compute: omnilabel_rcnn::device::Compute::default(),
    }
}

fn weights(bundle: &Bundle) -> String {
    bundle.manifest().files["weights.safetensors"].sha256.clone()
}

#[test]
fn a_stopped_arm_continues_to_the_same_weights() {
    let dir = tempfile::tempdir().unwrap();
    let samples = SampleSet::load(&common::folder(&dir.path().join("data"), 1, 5)).unwrap();
    let go = AtomicBool::new(false);
    let straight = match train_arm(&arm(&dir.path().join("a"), 4), &samples, Some(&samples), &mut |_| {}, &go).unwrap() {
        ArmOutcome::Finished(bundle) => *bundle,
        ArmOutcome::Stopped { .. } => panic!("nobody asked it to stop"),
    };
    assert_eq!(straight.manifest().golden.len(), 2);
    assert_eq!(check_golden(&straight, &Teacher::load(&straight, 1).unwrap()).unwrap(), Ok(()));

    let stop = AtomicBool::new(false);
    let halting = arm(&dir.path().join("b"), 4);
    let outcome = train_arm(&halting, &samples, Some(&samples), &mut |r| stop.store(r.step == 2, Ordering::Relaxed), &stop).unwrap();
    assert!(matches!(outcome, ArmOutcome::Stopped { step: 2 }), "{outcome:?}");
    assert!(!halting.out.join("bundle").exists());
    let ArmOutcome::Finished(resumed) = train_arm(&halting, &samples, Some(&samples), &mut |_| {}, &go).unwrap() else {
        panic!("nobody asked it to stop")
    };
    assert_eq!(weights(&resumed), weights(&straight));
    let steps: Vec<u64> = read_progress(&halting.out.join("progress.jsonl")).unwrap().iter().map(|r| r.step).collect();
    assert_eq!(steps, [1, 2, 3, 4]);

    // Finished: opened, not trained again. Another arm in the same folder: refused by what differs.
    let again = train_arm(&halting, &samples, Some(&samples), &mut |_| panic!("trained again"), &go).unwrap();
    assert!(matches!(again, ArmOutcome::Finished(_)));
    let error = train_arm(&arm(&halting.out, 5), &samples, Some(&samples), &mut |_| {}, &go).unwrap_err().to_string();
    assert!(error.contains("options.steps: 5, the folder has 4"), "{error}");
    let error = train_arm(&halting, &samples, None, &mut |_| {}, &go).unwrap_err().to_string();
    assert!(error.contains("data set"), "{error}");
}

#[test]
fn bad_pictures_are_named_and_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = common::folder(dir.path(), 1, 3);
    std::fs::write(dir.path().join("images/2.jpg"), b"\xff\xd8 not a picture").unwrap();
    std::fs::remove_file(dir.path().join("images/3.jpg")).unwrap();
    let set = SampleSet::load(&dataset).unwrap();
    assert_eq!(set.items.len(), 1);
    let names: Vec<&str> = set.left_out.iter().map(|l| l.name.as_str()).collect();
    assert!(names[0].ends_with("2.jpg") && names[1].ends_with("3.jpg"), "{names:?}");

    std::fs::write(dir.path().join("images/1.jpg"), b"").unwrap();
    let error = SampleSet::load(&dataset).unwrap_err();
    assert!(matches!(error, SampleError::Empty { listed: 3, bad: 3, .. }), "{error}");
    assert!(error.to_string().contains("1.jpg"), "{error}");
}

#[test]
fn keypoints_on_which_the_views_disagree_are_left_unlabelled_where_that_is_asked() {
    let mut detection = Detection { rect: Rect::new(0.0, 0.0, 10.0, 20.0), score: 0.9, ..Detection::default() };
    // Sure and agreed, sure and not agreed, agreed and not sure.
    for (probability, agreement) in [(0.8, 0.9), (0.8, 0.3), (0.1, 0.9)] {
        detection.keypoints.push(Keypoint { probability, agreement, ..Keypoint::default() }).unwrap();
    }
    let labelled = |least| {
        let kept = Kept { people: vec![&detection], ignored: Vec::new() };
        let item = Item::generated(1, "1.jpg", Vec::new().into(), &kept, 0.5, least)?;
        Some(item.people[0].keypoints.iter().map(Option::is_some).collect::<Vec<_>>())
    };
    assert_eq!(labelled(None), Some(vec![true, true, false]));
    assert_eq!(labelled(Some(0.5)), Some(vec![true, false, false]));
    assert_eq!(labelled(Some(0.95)), None);
}

/// A kill while the first checkpoint is written.
#[test]
fn an_arm_whose_first_checkpoint_was_only_begun_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    let samples = SampleSet::load(&common::folder(&dir.path().join("data"), 1, 5)).unwrap();
    let (go, out) = (AtomicBool::new(false), dir.path().join("a"));
    std::fs::create_dir_all(out.join("checkpoint")).unwrap();
    std::fs::write(out.join("checkpoint/checkpoint.safetensors.tmp"), b"half").unwrap();
    let outcome = train_arm(&arm(&out, 2), &samples, None, &mut |_| {}, &go).unwrap();
    assert!(matches!(outcome, ArmOutcome::Finished(_)));
}

#[test]
fn pictures_of_cameras_are_trained_on_and_go_out_in_no_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let mut samples = SampleSet::load(&common::folder(&dir.path().join("data"), 1, 2)).unwrap();
    samples.join(SampleSet::load(&common::folder(&dir.path().join("cameras"), 1, 5)).unwrap());
    assert_eq!(samples.items.iter().map(|item| item.id).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
    let go = AtomicBool::new(false);
    let ArmOutcome::Finished(bundle) = train_arm(&arm(&dir.path().join("a"), 1), &samples, None, &mut |_| {}, &go).unwrap() else {
        panic!("nobody asked it to stop")
    };
    let golden: Vec<&str> = bundle.manifest().golden.iter().map(|frame| frame.image.as_str()).collect();
    assert!(golden.len() == 2 && golden[0].contains("frame-1") && golden[1].contains("frame-2"), "{golden:?}");
}

#[test]
fn a_folder_of_pictures_is_unlabelled_footage() {
    let dir = tempfile::tempdir().unwrap();
    common::folder(dir.path(), 1, 3);
    std::fs::write(dir.path().join("images/0.png"), b"no picture").unwrap();
    let (footage, left_out) = plain_folder(dir.path(), &common::skeleton()).unwrap();
    assert!(left_out.len() == 1 && left_out[0].name.ends_with("0.png"), "{left_out:?}");
    let ids: Vec<u64> = footage.images.iter().map(|i| i.id).collect();
    assert_eq!((ids, footage.images[0].width, footage.annotations.len()), (vec![1, 2, 3], 64, 0));
    assert!(omnilabel_detect::frame::Frame::open(&footage.image_path(&footage.images[2])).is_ok());
    let empty = tempfile::tempdir().unwrap();
    assert!(plain_folder(empty.path(), &common::skeleton()).is_err());
}

#[test]
fn folders_of_different_skeletons_are_refused_by_the_first_difference() {
    let dir = tempfile::tempdir().unwrap();
    let mut other = common::folder(&dir.path().join("b"), 1, 2);
    other.skeleton = Skeleton::new(&["head", "right_foot", "left_foot"], &[], None, None).unwrap();
    let data = common::folder(&dir.path().join("a"), 1, 2);
    let config = method(data.clone(), data, other, dir.path());
    let error = distill(&config, &|_| {}, &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(error.contains("keypoint 1") && error.contains("left_foot"), "{error}");
}

fn method(labelled: Dataset, unlabelled: Dataset, val: Dataset, out: &Path) -> DistillConfig {
    DistillConfig {
        detector: None,
        labelled,
        unlabelled,
        left_out: Vec::new(),
        val,
        upper: true,
        teacher: None,
        equal_steps: true,
        network: network(),
        teacher_options: options(6),
        student_options: options(3),
        init: Init::Seed(3),
        compute: omnilabel_rcnn::device::Compute::default(),
        views: Views { scales: vec![64], flip: true, ..Views::default() },
        mode: Mode::Paper,
        ignore_from: Some(0.5),
        out: out.join("out"),
        checkpoint_every: 2,
    }
}

#[test]
fn the_whole_method_resumes_stage_by_stage() {
    let dir = tempfile::tempdir().unwrap();
    let (labelled, unlabelled) = split_by_id(&common::folder(&dir.path().join("train"), 1, 10), 0.3);
    assert_eq!((labelled.images.len(), unlabelled.images.len()), (3, 7));
    let val = common::folder(&dir.path().join("val"), 100, 3);
    let config = method(labelled, unlabelled, val, dir.path());
    let stages = Mutex::new(Vec::new());
    let stop = AtomicBool::new(false);
    let record = |event: Event<'_>| match event {
        Event::Step(r) => {
            let mut stages = stages.lock().unwrap();
            let stage: &mut (String, u64) = stages.last_mut().unwrap();
            stage.1 += 1;
            if stage.0 == "student" && r.step == 1 {
                stop.store(true, Ordering::Relaxed);
            }
        }
        Event::Stage(name) => stages.lock().unwrap().push((name.to_owned(), 0)),
        Event::Pictures { .. } | Event::LeftOut(_) | Event::Warning(_) => {}
    };
    assert!(matches!(distill(&config, &record, &stop).unwrap(), Outcome::Stopped));
    let trained = |name: &str| stages.lock().unwrap().iter().filter(|s| s.0 == name).map(|s| s.1).sum::<u64>();
    assert_eq!((trained("teacher"), trained("lower"), trained("student")), (6, 3, 1));

    let go = AtomicBool::new(false);
    let Outcome::Finished(report) = distill(&config, &record, &go).unwrap() else { panic!("nobody asked it to stop") };
    // The finished arms were not trained again, the interrupted one went on.
    assert_eq!((trained("teacher"), trained("lower"), trained("student"), trained("upper")), (6, 3, 3, 3));
    assert_eq!(
        (report.lower.manual_images, report.student.generated_images, report.upper.unwrap().manual_images),
        (3, report.labels.labelled_images, 10)
    );
    assert!(report.teacher.ensemble.is_some());
    let labels = omnilabel_coco::Dataset::load(&config.out.join("labels")).unwrap();
    assert_eq!(labels.annotations.len(), report.labels.people);
    for stage in ["report.json", "evaluation-upper.json", "labels/calibration.json"] {
        assert!(config.out.join(stage).exists(), "{stage}");
    }

    // With a teacher that is there already, in a folder that is not.
    let given = DistillConfig { teacher: Some(config.out.join("teacher/bundle")), upper: false, out: dir.path().join("given"), ..config };
    let Outcome::Finished(with_given) = distill(&given, &record, &go).unwrap() else { panic!("nobody asked it to stop") };
    assert_eq!(with_given.teacher, report.teacher);
    let config = DistillConfig { teacher: None, upper: true, out: dir.path().join("out"), ..given };

    // Everything done: nothing is trained.
    stages.lock().unwrap().clear();
    assert!(matches!(distill(&config, &record, &go).unwrap(), Outcome::Finished(_)));
    assert_eq!(trained("teacher") + trained("student") + trained("upper"), 0);
}

/// Labels and scores are of the pictures that are there now, and a picture that has come back is one of them.
#[test]
fn what_was_found_in_other_pictures_is_not_taken_for_these() {
    let dir = tempfile::tempdir().unwrap();
    let labelled = common::folder(&dir.path().join("train"), 1, 3);
    let val = common::folder(&dir.path().join("val"), 100, 3);
    let footage = dir.path().join("footage");
    common::folder(&footage, 10, 6);
    let images = footage.join("images");
    let aside = |name: &str| dir.path().join(name);
    for name in ["10.jpg", "12.jpg"] {
        std::fs::rename(images.join(name), aside(name)).unwrap();
    }
    let go = AtomicBool::new(false);
    let try_run = |val: &Dataset, out: &str| {
        let (unlabelled, left_out) = plain_folder(&images, &common::skeleton()).unwrap();
        let config = method(labelled.clone(), unlabelled, val.clone(), dir.path());
        let config = DistillConfig { left_out, upper: false, out: dir.path().join(out), ..config };
        let Outcome::Finished(report) = distill(&config, &|_| {}, &go).map_err(|error| error.to_string())? else {
            panic!("nobody asked it to stop")
        };
        let labels = std::fs::read_to_string(config.out.join("labels/annotations.json")).unwrap();
        Ok::<_, String>((*report, labels))
    };
    let run = |val: &Dataset, out: &str| try_run(val, out).unwrap();
    // Its header is whole, the rest is gone.
    let whole = std::fs::read(images.join("13.jpg")).unwrap();
    std::fs::write(images.join("13.jpg"), &whole[..whole.len() - 20]).unwrap();
    let (first, labels) = run(&val, "out");
    assert!(first.labels.unreadable == 1 && first.left_out[0].contains("13.jpg"), "{:?}", first.left_out);

    // While a student is under way, its labels stay as they are.
    std::fs::write(images.join("13.jpg"), &whole).unwrap();
    let (same, unchanged) = run(&val, "out");
    assert_eq!((same.labels.unreadable, &unchanged), (1, &labels));
    let anew = |out: &str| std::fs::remove_dir_all(dir.path().join(out).join("student")).unwrap();
    anew("out");
    let (back, with_it) = run(&val, "out");
    assert_eq!((back.labels.unreadable, back.labels.images), (0, 4));
    assert!(with_it.contains("13.jpg") && !labels.contains("13.jpg"), "{with_it}");

    // One that sorts before all others, and one between them: every id is another picture's.
    for name in ["10.jpg", "12.jpg"] {
        std::fs::rename(aside(name), images.join(name)).unwrap();
    }
    let error = try_run(&val, "out").unwrap_err();
    assert!(error.contains("other pictures or labels"), "{error}");
    anew("out");
    let (more, of_all) = run(&val, "out");
    let (fresh, expected) = run(&val, "fresh");
    assert_eq!((more.labels, of_all), (fresh.labels, expected));

    // Scores are those of the file until the truth is corrected. A network of three steps finds nobody: only a mark tells whose they are.
    let scores = dir.path().join("out/evaluation-student.json");
    let mut marked: serde_json::Value = serde_json::from_slice(&std::fs::read(&scores).unwrap()).unwrap();
    marked["evaluation"]["single"]["AP"] = 0.25.into();
    std::fs::write(&scores, marked.to_string()).unwrap();
    assert_eq!(run(&val, "out").0.student.evaluation.single.ap, 0.25);
    // Two pictures change places.
    let [first, second] = ["100.jpg", "101.jpg"].map(|name| val.root.join("images").join(name));
    let change = || {
        let kept = std::fs::read(&first).unwrap();
        std::fs::copy(&second, &first).unwrap();
        std::fs::write(&second, kept).unwrap();
    };
    change();
    assert_eq!(run(&val, "out").0.student.evaluation.single.ap, more.student.evaluation.single.ap);
    change();
    std::fs::write(&scores, marked.to_string()).unwrap();
    assert_eq!(run(&val, "out").0.student.evaluation.single.ap, 0.25);
    let mut corrected = val.clone();
    corrected.annotations[0].bbox[0] += 1.0;
    corrected.write(&val.root).unwrap();
    assert_eq!(run(&corrected, "out").0.student.evaluation.single.ap, more.student.evaluation.single.ap);
}

#[test]
fn a_picture_in_two_folders_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let labelled = common::folder(&dir.path().join("train"), 1, 3);
    let unlabelled = common::folder(&dir.path().join("footage"), 10, 3);
    let val = common::folder(&dir.path().join("val"), 100, 2);
    let config = method(labelled, unlabelled, val, dir.path());
    let fail = |config: &DistillConfig| {
        let error = distill(config, &|_| {}, &AtomicBool::new(false)).unwrap_err().to_string();
        assert!(!config.out.exists(), "{error}");
        error
    };
    for (picture, seen) in [
        ("val/images/101.jpg", "train/images/2.jpg"),
        ("val/images/101.jpg", "footage/images/11.jpg"),
        ("footage/images/12.jpg", "train/images/1.jpg"),
    ] {
        let kept = std::fs::read(dir.path().join(seen)).unwrap();
        std::fs::copy(dir.path().join(picture), dir.path().join(seen)).unwrap();
        let error = fail(&config);
        assert!(error.contains(picture) && error.contains(seen) && error.contains("expected others"), "{error}");
        std::fs::write(dir.path().join(seen), kept).unwrap();
    }
    let (bare, left_out) = plain_folder(&dir.path().join("footage/images"), &common::skeleton()).unwrap();
    let error = fail(&DistillConfig { unlabelled: bare, left_out, ..config });
    assert!(error.contains("footage/images") && error.contains("--upper"), "{error}");
}

#[test]
fn one_process_at_a_time_trains_in_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let samples = SampleSet::load(&common::folder(&dir.path().join("data"), 1, 3)).unwrap();
    let (go, out) = (AtomicBool::new(false), dir.path().join("a"));
    std::fs::create_dir_all(&out).unwrap();
    let other = std::fs::File::create(out.join("lock")).unwrap();
    other.lock().unwrap();
    let train = || train_arm(&arm(&out, 1), &samples, None, &mut |_| {}, &go);
    let error = train().unwrap_err().to_string();
    assert!(error.contains("another process works in this folder") && !out.join("arm.json").exists(), "{error}");
    drop(other);
    assert!(matches!(train().unwrap(), ArmOutcome::Finished(_)));
}

#[test]
fn there_is_no_gap_between_arms_of_unlike_lengths() {
    let dir = tempfile::tempdir().unwrap();
    let (labelled, unlabelled) = split_by_id(&common::folder(&dir.path().join("train"), 1, 6), 0.5);
    let config = method(labelled, unlabelled, common::folder(&dir.path().join("val"), 100, 2), dir.path());
    let config = DistillConfig { equal_steps: false, ..config };
    let Outcome::Finished(report) = distill(&config, &|_| {}, &AtomicBool::new(false)).unwrap() else { panic!("nobody asked it to stop") };
    assert_eq!((report.lower.steps, report.student.steps, report.gap_recovered), (6, 3, None));
    assert!(report.table().contains("not told") && report.table().contains("--equal-steps"), "{}", report.table());
}
