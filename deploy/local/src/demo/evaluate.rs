//! Every arm on the validation pictures, by `omnilabel trainer evaluate`, and the outcome that is made of it.

use super::data::Folders;
use super::outcome::{Arm, ArmKind, Device, LossCurve, Outcome, TeacherScores};
use super::watch::Standing;
use super::{Demo, arms, check, files};
use crate::child;
use anyhow::{Context, bail};
use omnilabel_bundle::SkeletonSpec;
use omnilabel_coco::Dataset;
use omnilabel_trainer::evaluate::Evaluation;
use omnilabel_trainer::service::{DeviceCounts, EventReader};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

const TEACHER: &str = "teacher";
const STUDENT: &str = "student";

fn file(root: &Path, name: &str) -> PathBuf {
    root.join("evaluation").join(format!("{name}.json"))
}

/// Writes a JSON file below `evaluation/`.
pub(super) fn store(root: &Path, name: &str, value: &impl Serialize) -> anyhow::Result<()> {
    let path = file(root, name);
    let (part, folder) = (path.with_extension("part"), root.join("evaluation"));
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    std::fs::write(&part, serde_json::to_vec_pretty(value)?).with_context(|| part.display().to_string())?;
    std::fs::rename(&part, &path).with_context(|| path.display().to_string())
}

fn load<T: DeserializeOwned>(root: &Path, name: &str) -> anyhow::Result<Option<T>> {
    let path = file(root, name);
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).with_context(|| path.display().to_string()).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Evaluates what there is: teacher (one view and all), arms, student.
pub(super) fn run(demo: &Demo<'_>) -> anyhow::Result<()> {
    let candidates = [
        (TEACHER, demo.teacher()?, true),
        (arms::LOWER, arms::bundle(demo.root, arms::LOWER), false),
        (STUDENT, files::student(demo.root), false),
        (arms::UPPER, arms::bundle(demo.root, arms::UPPER), false),
    ];
    let there: Vec<_> = candidates.into_iter().filter(|(_, bundle, _)| bundle.exists()).collect();
    for (index, (name, bundle, ensemble)) in there.iter().enumerate() {
        check()?;
        demo.show.set("evaluating", index as u64, there.len() as u64, name);
        if load::<Evaluation>(demo.root, name)?.is_none() {
            let (evaluation, _) = evaluate(demo, name, bundle, &demo.folders.val(), *ensemble)?;
            store(demo.root, name, &evaluation)?;
        }
    }
    demo.show.set("evaluating", there.len() as u64, there.len() as u64, "done");
    Ok(())
}

/// Runs a bundle over a labelled folder: the scores, and the file with what it found.
pub(super) fn evaluate(demo: &Demo<'_>, name: &str, bundle: &Path, data: &Path, ensemble: bool) -> anyhow::Result<(Evaluation, PathBuf)> {
    let results = file(demo.root, &format!("{name}-results"));
    std::fs::create_dir_all(demo.root.join("evaluation"))?;
    let mut args: Vec<OsString> = ["trainer", "evaluate", "--json"].map(OsString::from).to_vec();
    for (flag, path) in [("--model", bundle), ("--data", data), ("--results-out", &results)] {
        args.extend([OsString::from(flag), path.into()]);
    }
    if ensemble {
        args.extend(files::views().map(OsString::from));
    }
    let text = child::output(&format!("evaluation of {name}"), &args, &demo.log("evaluate"), check)?;
    let line = text.lines().last().unwrap_or_default();
    let evaluation = serde_json::from_str(line).with_context(|| format!("the output of `trainer evaluate` for {name}: {line}"))?;
    Ok((evaluation, results))
}

/// Everything that was found out.
pub(super) fn outcome(demo: &Demo<'_>) -> anyhow::Result<Outcome> {
    let (plan, root) = (demo.plan, demo.root);
    let mut standing = Standing::default();
    for stamped in EventReader::new(&files::centre(root)).poll()? {
        standing.take(&stamped.event);
    }
    let manual = Dataset::load(&demo.folders.manual())?;
    let images = manual.images.len() as u64;
    let generated = standing.round_labels.unwrap_or(0);
    let scores = |name: &str| load::<Evaluation>(root, name);
    let arm = |kind, evaluation: Option<Evaluation>, generated: u64| Arm {
        kind,
        ap: evaluation.as_ref().map(|e| e.single.ap),
        ap50: evaluation.as_ref().map(|e| e.single.ap50),
        steps: plan.steps,
        images: (images, generated),
        precomputed: false,
        note: String::new(),
    };
    let mut outcome = Outcome {
        source: match &plan.data {
            None => format!("Rendered scenes, two cameras, {} pictures each.", plan.footage),
            Some(data) => format!("{}, its first 30 % labelled, part of the rest played as the footage of two cameras.", data.display()),
        },
        skeleton: Some(SkeletonSpec::from(&manual.skeleton)),
        arms: vec![
            arm(ArmKind::Lower, scores(arms::LOWER)?, 0),
            arm(ArmKind::Distilled, scores(STUDENT)?, generated),
            upper(demo, arm(ArmKind::Upper, scores(arms::UPPER)?, 0))?,
        ],
        teacher: scores(TEACHER)?.and_then(|e| Some(TeacherScores { single: e.single.ap, ensemble: e.ensemble?.scores.ap })),
        thresholds: standing.calibrated,
        release: standing.release(),
        devices: devices(root, demo.folders)?,
        losses: vec![
            curve(root, arms::LOWER, ArmKind::Lower.name())?,
            LossCurve { name: ArmKind::Distilled.name().to_owned(), ..standing.losses },
        ],
        commands: files::commands(demo)?,
        ..Outcome::default()
    };
    if plan.upper {
        outcome.losses.push(curve(root, arms::UPPER, ArmKind::Upper.name())?);
    }
    if let Some(error) = standing.error {
        outcome.notes.push(format!("the centre reported: {error}"));
    }
    outcome.notes.extend(load::<Vec<String>>(root, "notes")?.unwrap_or_default());
    outcome.conclude();
    Ok(outcome)
}

/// The upper bound: trained here, or read from beside the shipped weights when it was made for this schedule.
fn upper(demo: &Demo<'_>, live: Arm) -> anyhow::Result<Arm> {
    if demo.plan.upper {
        let images = live.images.0 + 2 * demo.plan.footage;
        return Ok(Arm { images: (images, 0), ..live });
    }
    let none = |note: &str| Arm { note: note.to_owned(), steps: 0, images: (0, 0), ..live.clone() };
    if demo.plan.data.is_some() {
        return Ok(none("--with-upper-bound trains it"));
    }
    let Some(shipped) = demo.zoo.record()?.upper_bound else { return Ok(none("--with-upper-bound trains it")) };
    if shipped.steps != demo.plan.steps {
        return Ok(none(&format!("the shipped one is for {} steps; --with-upper-bound trains one for this schedule", shipped.steps)));
    }
    Ok(Arm {
        ap: Some(shipped.ap),
        ap50: None,
        steps: shipped.steps,
        images: (shipped.images, 0),
        precomputed: true,
        note: shipped.command,
        ..live
    })
}

/// The loss curve of an arm that was trained here, at most a few hundred points.
fn curve(root: &Path, arm: &str, name: &str) -> anyhow::Result<LossCurve> {
    let reports = arms::progress(root, arm)?;
    let group = reports.len().div_ceil(200).max(1);
    let mean = |values: &mut dyn Iterator<Item = f32>, n: usize| values.sum::<f32>() / n as f32;
    let points = reports.chunks(group).map(|chunk| {
        let total = mean(&mut chunk.iter().map(|r| r.losses.total()), chunk.len());
        let keypoint = mean(&mut chunk.iter().map(|r| r.losses.keypoint), chunk.len());
        (chunk.last().map_or(0, |r| r.step), total, keypoint)
    });
    Ok(LossCurve { name: name.to_owned(), points: points.collect() })
}

/// Name of the file with the devices' accounts.
pub(super) const COUNTS: &str = "devices";

fn devices(root: &Path, folders: &Folders) -> anyhow::Result<Vec<Device>> {
    let Some(counts) = load::<Vec<DeviceCounts>>(root, COUNTS)? else {
        bail!("{}: no accounts of the devices; run again with --fresh", root.display())
    };
    let device = |(index, name): (usize, &&str)| -> anyhow::Result<Device> {
        let Some(count) = counts.iter().find(|count| count.device == **name) else { bail!("the centre has no account of device {name}") };
        let pictures = Dataset::load(&folders.footage(index))?.images.len();
        // The last status may be older than the last acknowledgement.
        let pending = count.pending.min(count.missing());
        let source = if index == 0 { "folder" } else { "MJPEG stream over HTTP" };
        Ok(Device {
            name: (*name).to_owned(),
            camera: format!("{source}, {pictures} pictures"),
            made: count.committed,
            delivered: count.stored,
            lost: count.missing() - pending,
            pending,
            duplicated: count.duplicates,
            evicted: count.evicted,
            running: count.confirmed,
            refused: count.refused_release.map(|counter| (counter, count.reason.clone())),
        })
    };
    files::DEVICES.iter().enumerate().map(device).collect()
}
