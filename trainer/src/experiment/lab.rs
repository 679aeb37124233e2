//! Where cases are run: models and labels by the digest of what they are made of, records of the cases.

use super::footage::Footage;
use super::plan::{Arm, Labels, Plan};
use super::quality::{self, PARTS};
use super::recipe::{Case, FirstWeights, FromData, Parts, Recipe, record_key, share, teacher_key};
use super::record::{LabelRecord, Machine, Quality, Record, Test, curve};
use super::summary::{Row, Summary};
use super::{ExperimentError, Setup, examples};
use crate::arm::{ArmConfig, ArmError, ArmOutcome, Lock, amend, begun, provisional, read_progress, train_arm, write_atomically};
use crate::calibrate::{ManualStats, Mode, calibrate};
use crate::digest::{digest, file_sha256};
use crate::distill::{
    Event, Labelling, Rule, calibrate_on, detect_all, harden_all, identity, keep_noted, note_pictures, soften, split_folder,
};
use crate::evaluate::{self, Bin, Detections, EvaluateError, Views, detect, first_difference, labelled, load, pck};
use crate::mix::MANUAL_PERCENT;
use crate::pictures::Pictures;
use crate::samples::SampleSet;
use crate::score::{CocoScores, GroundTruth, bootstrap, score, terciles};
use crate::start::{self, Start};
use omnilabel_bundle::Bundle;
use omnilabel_coco::Dataset;
use omnilabel_rcnn::device::Arithmetic;
use omnilabel_rcnn::export::WEIGHTS;
use omnilabel_rcnn::params::Precision;
use omnilabel_rcnn::train::Init;
use omnilabel_runtime::{Teacher, ViewPlan};
use serde::{Deserialize, Serialize};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Seed of the resamples of the test images.
const RESAMPLES: u64 = 0;

/// `models/KEY/made.json`: what a finished model's record says of how it was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Made {
    manual_images: usize,
    generated_images: usize,
    #[serde(default)]
    left_out: usize,
    labels: Option<LabelRecord>,
    held_out: CocoScores,
    machine: Machine,
}

/// What has come of a piece of work.
enum Done<T> {
    /// It is there.
    Ready(T),
    /// It was asked to stop.
    Stopped,
    /// Another process is at it.
    Elsewhere,
}

/// How often it is asked whether another process has finished.
const WAIT: Duration = Duration::from_millis(500);

/// The records, and what arms failed of.
type Ran = (Vec<Record>, Vec<ExperimentError>);

pub(super) struct Lab<'l> {
    setup: &'l Setup,
    plan: &'l Plan,
    event: &'l (dyn Fn(Event<'_>) + Sync),
    cancel: &'l AtomicBool,
    train: Dataset,
    train_sha256: String,
    test_folder: PathBuf,
    test_sha256: String,
    /// By preset and file of the first weights, with that file's digest.
    starts: BTreeMap<(String, Option<PathBuf>), (Start, Option<String>)>,
    footage: BTreeMap<PathBuf, Footage>,
    device: String,
    warned: Mutex<BTreeSet<String>>,
}

impl<'l> Lab<'l> {
    /// Reads the lists of images, and of the test images nothing but what tells them from others.
    pub(super) fn open(setup: &'l Setup, event: &'l (dyn Fn(Event<'_>) + Sync), cancel: &'l AtomicBool) -> Result<Self, ExperimentError> {
        let plan = &setup.plan;
        let sha256 = |folder: &Path| {
            let file = folder.join("annotations.json");
            file_sha256(&file).map_err(ArmError::io(&file))
        };
        let folder = |field: &str, path: &Path, split: &str| {
            let folder = split_folder(path, split);
            if folder.join("annotations.json").exists() {
                return Ok(folder);
            }
            let message =
                format!("`data.{field}` has no annotations.json, nor its `{split}/`; expected a folder from the plan's or --data");
            Err(ExperimentError::Data { path: path.to_owned(), message })
        };
        let train_folder = folder("train", &plan.data.train, "train")?;
        let test_folder = folder("test", &plan.data.test, "val")?;
        let mut train = Dataset::load(&train_folder)?;
        if let Some(images) = plan.data.images {
            train = train.subset(|index, _| index < images);
        }
        if train.images.len() < 3 {
            let message = format!("{} images, expected at least 3: manual, held-out and unlabelled ones", train.images.len());
            return Err(ExperimentError::Data { path: train_folder, message });
        }
        let mut starts = BTreeMap::new();
        for arm in &plan.arms {
            if let Entry::Vacant(entry) = starts.entry(place(plan, arm)) {
                let named =
                    |error: anyhow::Error| ExperimentError::Start(format!("arm `{}`: {}", arm.name, omnilabel_console::line(&error)));
                let start = first(plan, arm, train.skeleton.len()).map_err(named)?;
                let sha256 = match &start.init {
                    Init::File(path, _) => Some(file_sha256(path).map_err(ArmError::io(path))?),
                    Init::Seed(_) => None,
                };
                entry.insert((start, sha256));
            }
        }
        let mut footage = BTreeMap::new();
        for path in plan.arms.iter().filter_map(|arm| arm.footage.as_ref()) {
            if let Entry::Vacant(entry) = footage.entry(path.clone()) {
                entry.insert(Footage::open(path, &train)?);
            }
        }
        let computer = setup.compute.open().map_err(ArmError::from)?;
        let lab = Self {
            train_sha256: sha256(&train_folder)?,
            test_sha256: sha256(&test_folder)?,
            device: match (computer.device().is_cpu(), computer.count()) {
                (true, _) => "cpu".to_owned(),
                (false, 1) => "cuda".to_owned(),
                (false, gpus) => format!("cuda, {gpus} GPUs"),
            },
            setup,
            plan,
            event,
            cancel,
            train,
            test_folder,
            starts,
            footage,
            warned: Mutex::default(),
        };
        lab.test_images()?;
        lab.check_committees()?;
        let (train, test) = (Pictures::of(&lab.train), Pictures::of(&Dataset::load(&lab.test_folder)?));
        if let Some((ours, theirs)) = train.common(&test) {
            let message = format!("this test picture is {} of those that the plan trains on; expected others", ours.display());
            return Err(ExperimentError::Data { path: theirs, message });
        }
        for footage in lab.footage.values() {
            let pictures = Pictures::of(&footage.dataset);
            let what = [
                (&test, "the test pictures: a student would have seen it"),
                (&train, "those with labels or held out, or of the unlabelled ones"),
            ];
            if let Some((ours, theirs, what)) =
                what.into_iter().find_map(|(known, what)| known.common(&pictures).map(|(a, b)| (a, b, what)))
            {
                let message = format!("this picture is no footage from elsewhere but {}, of {what}", ours.display());
                return Err(ExperimentError::Data { path: theirs, message });
            }
        }
        for seed in &plan.seeds {
            let held_out = lab.parts(*seed).held_out;
            if !GroundTruth::from_dataset(&held_out)?.counts() {
                let message = format!(
                    "seed {seed}: nobody is labelled in the {} held-out images; expected a larger `data.held_out` or `data.labelled`",
                    held_out.images.len()
                );
                return Err(ExperimentError::Data { path: held_out.root, message });
            }
        }
        Ok(lab)
    }

    /// The records of all cases, in their order; `None` when it was asked to stop. What another process is at is left to it while there is
    /// something else to do.
    /// An arm that fails by itself costs its own cases and its students'.
    pub(super) fn run(&self) -> Result<Option<Ran>, ExperimentError> {
        let cases = super::cases(self.plan)?;
        let needed = needed(self.plan, &cases, &self.setup.only)?;
        let mut records: Vec<Option<Record>> = cases.iter().map(|_| None).collect();
        let mut open: Vec<usize> = (0..cases.len()).collect();
        let (mut failures, mut failed) = (Vec::new(), BTreeSet::new());
        while !open.is_empty() {
            let before = open.len();
            let mut elsewhere = Vec::new();
            for index in open {
                let case = &cases[index];
                let teachers: BTreeSet<String> = case.teachers(self.plan)?.iter().map(Case::name).collect();
                // Its teacher first: it may have failed meanwhile.
                if elsewhere.iter().any(|&waiting: &usize| teachers.contains(&cases[waiting].name())) {
                    elsewhere.push(index);
                    continue;
                }
                let wanted = needed.contains(&case.name());
                if !teachers.is_disjoint(&failed) {
                    failed.insert(case.name());
                    self.warn(&format!("{}: left out, as its teacher failed", case.name()));
                    continue;
                }
                let named = |source| ExperimentError::Case { name: case.name(), source: Box::new(source) };
                match self.record(case, wanted) {
                    Ok(Done::Ready(record)) => records[index] = record,
                    Ok(Done::Stopped) => return Ok(None),
                    Ok(Done::Elsewhere) => elsewhere.push(index),
                    Err(error) if error.is_of_its_arm() => {
                        let error = named(error);
                        self.warn(&format!("{error}; the others go on"));
                        failed.insert(case.name());
                        failures.push(error);
                    }
                    Err(error) => return Err(named(error)),
                }
            }
            if let Some(&first) = elsewhere.first().filter(|_| elsewhere.len() == before) {
                self.warn(&format!("{}: another process is at it or at its teacher, waited for", cases[first].name()));
                if self.is_stopped() {
                    return Ok(None);
                }
                std::thread::sleep(WAIT);
            }
            open = elsewhere;
        }
        // Other arms' records may have come meanwhile.
        for (case, record) in cases.iter().zip(&mut records).filter(|(case, record)| record.is_none() && !failed.contains(&case.name())) {
            if let Done::Ready(found) = self.record(case, false)? {
                *record = found;
            }
        }
        Ok(Some((records.into_iter().flatten().collect(), failures)))
    }

    /// Teachers that label together see a picture at one size, and their maps have one, too.
    fn check_committees(&self) -> Result<(), ExperimentError> {
        let seen = |arm: &Arm| {
            let network = &self.starts[&place(self.plan, arm)].0.network;
            (network.input.short_side, network.input.max_long_side, network.network.heatmap_side)
        };
        for arm in &self.plan.arms {
            let mut teachers = arm.teacher.names().filter_map(|name| self.plan.arm(name));
            let Some(first) = teachers.next() else { continue };
            if let Some(other) = teachers.find(|other| seen(other) != seen(first)) {
                let ((ours, ..), (theirs, ..)) = (seen(first), seen(other));
                return Err(ExperimentError::Start(format!(
                    "arm `{}`: its teachers `{}` and `{}` see pictures of {ours} and {theirs} px or have unlike heatmaps; \
                     expected members of one size (`train.short_side`)",
                    arm.name, first.name, other.name
                )));
            }
        }
        Ok(())
    }

    fn is_stopped(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// The right to make something that is known by `key`, as long as the file is open; `None` while another process has it. Where the file
    /// system knows no locks, everybody has it.
    fn lock(&self, key: &str) -> Result<Option<File>, ExperimentError> {
        let folder = self.setup.out.join("locks");
        std::fs::create_dir_all(&folder).map_err(ArmError::io(&folder))?;
        match Lock::of(&folder.join(key))? {
            Lock::Held(file) => Ok(Some(file)),
            Lock::Elsewhere => Ok(None),
            Lock::Nobody(file, error) => {
                self.warn(&format!("{}: no locks here ({error}); run this in one process only", folder.display()));
                Ok(Some(file))
            }
        }
    }

    /// The right to write the report, waited for.
    pub(super) fn lock_report(&self) -> Result<File, ExperimentError> {
        loop {
            match self.lock("report")? {
                Some(lock) => return Ok(lock),
                None if self.is_stopped() => return Err(EvaluateError::Cancelled.into()),
                None => std::thread::sleep(WAIT),
            }
        }
    }

    fn parts(&self, seed: u64) -> Parts {
        Parts::of(&self.train, &self.plan.data, seed)
    }

    fn stage(&self, case: &Case<'_>, what: &str) {
        (self.event)(Event::Stage(&format!("{} {what}", case.name())));
    }

    /// The same once.
    fn warn(&self, warning: &str) {
        let new = self.warned.lock().map_or(true, |mut warned| warned.insert(warning.to_owned()));
        if new {
            (self.event)(Event::Warning(warning));
        }
    }

    /// Samples of a data set; pictures that cannot be read are told.
    fn samples(&self, dataset: &Dataset) -> Result<SampleSet, ExperimentError> {
        let set = SampleSet::load(dataset)?;
        set.left_out.iter().for_each(|left_out| (self.event)(Event::LeftOut(&left_out.to_string())));
        Ok(set)
    }

    fn recipe(&self, case: &Case<'_>) -> Result<Recipe, ExperimentError> {
        let (start, init_sha256) = &self.starts[&place(self.plan, case.arm)];
        let keys: Vec<String> =
            case.teachers(self.plan)?.iter().map(|teacher| Ok(self.recipe(teacher)?.key())).collect::<Result<_, ExperimentError>>()?;
        let first_weights = match init_sha256 {
            _ if case.arm.fine_tune => FirstWeights::Teacher,
            Some(sha256) => FirstWeights::File { sha256: sha256.clone() },
            None => FirstWeights::Random,
        };
        let found = FromData {
            network: start.network.clone(),
            first_weights,
            train_sha256: self.train_sha256.clone(),
            teacher: teacher_key(keys),
            footage_sha256: case.arm.footage.as_ref().and_then(|path| self.footage.get(path)).map(|footage| footage.sha256.clone()),
        };
        case.recipe(self.plan, found)
    }

    /// The record of a case: the one that is there if it is of this recipe, else a new one where it is `wanted`, else none.
    fn record(&self, case: &Case<'_>, wanted: bool) -> Result<Done<Option<Record>>, ExperimentError> {
        let path = self.setup.records.join(format!("{}.json", case.name()));
        let recipe = self.recipe(case)?;
        let precision = self.setup.compute.precision;
        let key = record_key(&recipe, &self.test_sha256, self.plan, case.arm, precision);
        let lock = if wanted { self.lock(&format!("record-{key}"))? } else { None };
        match Record::read(&path) {
            Ok(Some(known)) if known.key == key => return Ok(Done::Ready(Some(known))),
            _ if wanted && lock.is_none() => return Ok(Done::Elsewhere),
            Ok(None) => {}
            _ if !wanted => {}
            Ok(Some(_)) => self.warn(&format!("{}: of another recipe or other data, done again", path.display())),
            Err(ExperimentError::Arm(ArmError::Json { source, .. })) => {
                self.warn(&format!("{}: no record ({source}), done again", path.display()));
            }
            Err(error) => return Err(error),
        }
        if !wanted {
            return Ok(Done::Ready(None));
        }
        let (bundle, made) = match self.model(case, &recipe)? {
            Done::Ready(model) => model,
            Done::Stopped => return Ok(Done::Stopped),
            Done::Elsewhere => return Ok(Done::Elsewhere),
        };
        let progress = read_progress(&self.folder(&recipe).join("progress.jsonl"))?;
        let record = Record {
            experiment: self.plan.name.clone(),
            arm: case.arm.name.clone(),
            steps: case.steps,
            seed: case.seed,
            key,
            recipe,
            manual_images: made.manual_images,
            generated_images: made.generated_images,
            left_out: made.left_out,
            labels: made.labels,
            held_out: made.held_out,
            test: self.test(case, &bundle)?,
            curve: curve(&progress),
            train_s: progress.last().map_or(0.0, |report| report.elapsed_s),
            machine: made.machine,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        record.write(&path)?;
        // As every later run sees it: a decimal need not come back as the very number that it was written for.
        Ok(Done::Ready(Record::read(&path)?))
    }

    fn folder(&self, recipe: &Recipe) -> PathBuf {
        let key = match self.setup.compute.precision {
            Arithmetic::F32 => recipe.key(),
            Arithmetic::Bf16 => format!("{}-bf16", recipe.key()),
        };
        self.setup.out.join("models").join(key)
    }

    /// The model of a recipe, trained if it is not there.
    fn model(&self, case: &Case<'_>, recipe: &Recipe) -> Result<Done<(Bundle, Made)>, ExperimentError> {
        let folder = self.folder(recipe);
        let (bundle, made) = (folder.join("bundle"), folder.join("made.json"));
        let Some(_lock) = self.lock(&format!("model-{}", recipe.key()))? else { return Ok(Done::Elsewhere) };
        if bundle.exists() && made.exists() {
            let text = std::fs::read(&made).map_err(ArmError::io(&made))?;
            match serde_json::from_slice(&text) {
                Ok(known) => return Ok(Done::Ready((Bundle::open(&bundle)?, known))),
                Err(error) => {
                    self.warn(&format!("{}: not readable ({error}), its labels and held-out scores are made again", made.display()))
                }
            }
        }
        let mut init = self.starts[&place(self.plan, case.arm)].0.init.clone();
        let (Init::Seed(seed) | Init::File(_, seed)) = &mut init;
        *seed = recipe.options.seed;
        let mut teachers = Vec::new();
        for teaching in case.teachers(self.plan)? {
            let bundle = match self.model(&teaching, &self.recipe(&teaching)?)? {
                Done::Ready((bundle, _)) => bundle,
                Done::Stopped => return Ok(Done::Stopped),
                Done::Elsewhere => return Ok(Done::Elsewhere),
            };
            if case.arm.fine_tune {
                let weights = bundle.path(WEIGHTS);
                let weights = std::fs::canonicalize(&weights).map_err(ArmError::io(&weights))?;
                init = Init::File(weights, recipe.options.seed);
            }
            teachers.push(bundle);
        }
        std::fs::create_dir_all(&folder).map_err(ArmError::io(&folder))?;
        let parts = self.parts(case.seed);
        let (mut generated, mut labels) = (None, None);
        if case.arm.labels == Labels::Generated {
            (generated, labels) = match self.labels(case, recipe, &teachers, &parts, &folder)? {
                Done::Ready((samples, record)) => (Some(samples), Some(record)),
                Done::Stopped => return Ok(Done::Stopped),
                Done::Elsewhere => return Ok(Done::Elsewhere),
            };
        }
        let mut manual = self.samples(&parts.manual)?;
        if case.arm.labels == Labels::All {
            let all = self.samples(&parts.unlabelled)?;
            manual.items.extend(all.items);
            manual.left_out.extend(all.left_out);
        }
        self.stage(case, "train");
        let arm = ArmConfig {
            // Whatever arm asks for it first.
            name: recipe.key(),
            network: recipe.network.clone(),
            options: recipe.options.clone(),
            init,
            out: folder.clone(),
            checkpoint_every: self.setup.checkpoint_every,
            thresholds: provisional(),
            parent: None,
            golden: 2,
            manual_percent: recipe.labelling.as_ref().map_or(MANUAL_PERCENT, |labelling| labelling.manual_percent),
            weights: Precision::F32,
            compute: self.setup.compute,
        };
        let mut on_step = |report: &_| (self.event)(Event::Step(report));
        let bundle = match train_arm(&arm, &manual, generated.as_ref(), &mut on_step, self.cancel)? {
            ArmOutcome::Finished(bundle) => *bundle,
            ArmOutcome::Stopped { .. } => return Ok(Done::Stopped),
        };
        self.stage(case, "held-out");
        let detections = self.detect(&bundle, &parts.held_out, None)?;
        let held_out = score(&GroundTruth::from_dataset(&parts.held_out)?, &detections.results(&parts.held_out))?;
        let thresholds = calibrate_on(&parts.held_out, &detections).thresholds;
        let bundle = amend(bundle.root(), |manifest| {
            manifest.ap = Some(held_out.ap);
            manifest.thresholds = thresholds;
        })?;
        let threads = rayon::current_num_threads();
        let known = Made {
            manual_images: manual.items.len(),
            generated_images: generated.map_or(0, |set| set.items.len()),
            left_out: manual.left_out.len() + labels.as_ref().map_or(0, |labels| labels.count.unreadable),
            labels,
            held_out,
            machine: Machine {
                device: self.device.clone(),
                precision: self.setup.compute.precision,
                threads,
                arch: std::env::consts::ARCH.to_owned(),
            },
        };
        let text = serde_json::to_vec_pretty(&known).map_err(|source| ArmError::Json { path: made.clone(), source })?;
        write_atomically(&made, &text)?;
        let known = serde_json::from_slice(&text).map_err(|source| ArmError::Json { path: made, source })?;
        Ok(Done::Ready((bundle, known)))
    }

    fn detect(&self, bundle: &Bundle, dataset: &Dataset, views: Option<&Views>) -> Result<Detections, ExperimentError> {
        let teacher = load(bundle)?;
        let plan = views.map_or_else(|| ViewPlan::single(teacher.manifest()), |views| views.plan(&teacher));
        let of = dataset.images.len();
        let detections = detect(&teacher, dataset, &plan, &|done| (self.event)(Event::Pictures { done, of }), self.cancel)?;
        // Somebody missed because of a broken file would be taken for a model's mistake.
        match detections.unreadable.first() {
            Some(first) => {
                let message =
                    format!("{} of {of} pictures that are scored on cannot be read, the first: {first}", detections.unreadable.len());
                Err(ExperimentError::Data { path: dataset.root.clone(), message })
            }
            None => Ok(detections),
        }
    }

    /// The labels of a case's pictures by its teacher.
    fn labels(
        &self,
        case: &Case<'_>,
        recipe: &Recipe,
        teachers: &[Bundle],
        parts: &Parts,
        folder: &Path,
    ) -> Result<Done<(SampleSet, LabelRecord)>, ExperimentError> {
        let footage = case.arm.footage.as_ref().and_then(|path| self.footage.get(path));
        let (all, left_out, known) = match footage {
            Some(footage) => (&footage.dataset, &footage.left_out[..], footage.known),
            None => (&parts.unlabelled, &[][..], true),
        };
        let views = recipe.labelling.as_ref().map(|labelling| labelling.views.clone()).unwrap_or_default();
        let used = share(all, case.arm.unlabelled, case.seed);
        let members = teachers.iter().map(load).collect::<Result<Vec<_>, _>>()?;
        let teacher = if members.len() > 1 { Teacher::committee(members).map_err(EvaluateError::from)? } else { one(members)? };
        let identities = teachers.iter().map(|teacher| identity(None, teacher)).collect::<Result<Vec<_>, _>>()?;
        let known_as = identities.join("+");
        let is_begun = begun(folder);
        // Detections are shared by all arms of this teacher, views and pictures.
        let found = |views: &Views, what: &str| -> Result<Option<Detections>, ExperimentError> {
            self.stage(case, what);
            let base = teacher.manifest().input.short_side;
            let single = *views == Views { scales: vec![base], ..Views::default() };
            let views = if single { &Views::default() } else { views };
            let of = (&recipe.teacher, views, footage.map(|footage| &footage.sha256));
            let key = digest(&of);
            let folder = self.setup.out.join("labels").join(&key);
            // Another arm's process may be labelling the same pictures for itself.
            let Some(_lock) = self.lock(&format!("labels-{key}"))? else { return Ok(None) };
            let category_id = self.train.category_id();
            let labelling = Labelling { unlabelled: all, left_out, category_id, views, folder: &folder };
            let mut detections = detect_all(&labelling, (&teacher, &known_as), self.event, is_begun, self.cancel)?;
            detections.unreadable.iter().for_each(|reason| (self.event)(Event::LeftOut(reason)));
            detections.images.retain(|image| used.images.binary_search_by_key(&image.image_id, |i| i.id).is_ok());
            Ok(Some(detections))
        };
        let Some(mut detections) = found(&views, "label")? else { return Ok(Done::Elsewhere) };
        let of_arm = folder.join("labels");
        if is_begun {
            keep_noted(&of_arm, &mut detections)?;
        } else {
            note_pictures(&of_arm, &detections)?;
        }
        let manual = case.arm.wanted(ManualStats::of(&self.labelled_images(case.seed)));
        let calibrated = |detections: &Detections| {
            let unlabelled: Vec<_> = detections.images.iter().map(|image| image.detections.clone()).collect();
            calibrate(Mode::Paper, manual, &unlabelled, None, teacher.manifest().thresholds.floor)
        };
        let calibration = calibrated(&detections);
        let mut single = None;
        if known {
            let Some(mut found) = found(&Views::default(), "label with one view")? else { return Ok(Done::Elsewhere) };
            keep_noted(&of_arm, &mut found)?;
            single = Some((calibrated(&found).thresholds, found));
        }
        let mut used = used;
        if case.arm.most_agreed < 1.0 {
            let agreed = quality::most_agreed(&detections, calibration.thresholds.instance, case.arm.most_agreed);
            for detections in std::iter::once(&mut detections).chain(single.iter_mut().map(|(_, found)| found)) {
                detections.images.retain(|image| agreed.contains(&image.image_id));
            }
            used = used.subset(|_, image| agreed.contains(&image.id));
        }
        let mut measured = None;
        if let Some((single_thresholds, single)) = single {
            let truth = GroundTruth::from_dataset(&used)?;
            let ap = |detections: &Detections| score(&truth, &detections.results(&used)).map(|scores| scores.ap);
            let by_size = |detections: &Detections| terciles(&truth, &detections.results(&used)).map(Some);
            measured = Some(Quality {
                single_ap: ap(&single)?,
                ensemble_ap: ap(&detections)?,
                single_pck: pck(&used, &single),
                ensemble_pck: pck(&used, &detections),
                single_terciles: by_size(&single)?,
                ensemble_terciles: by_size(&detections)?,
                single_hard: Some(quality::hard(&used, &single, single_thresholds, None)?),
                ensemble_hard: Some(quality::hard(&used, &detections, calibration.thresholds, case.arm.min_agreement)?),
            });
        }
        let category_id = self.train.category_id();
        let labelling = Labelling { unlabelled: &used, left_out, category_id, views: &views, folder: &of_arm };
        let (ignore_from, min_agreement) = (case.arm.ignore_from, case.arm.min_agreement);
        let rule = Rule { thresholds: calibration.thresholds, ignore_from, min_agreement };
        let (mut samples, count) = harden_all(&labelling, &detections, &rule)?;
        if case.arm.soft {
            self.stage(case, "soft labels");
            let of = samples.items.len();
            let done = |done| (self.event)(Event::Pictures { done, of });
            soften(&mut samples.items, &teacher, &views.plan(&teacher), &done, self.cancel)?;
        }
        let (mut pck_by_agreement, mut oks_by_score, mut ap_by_agreement) = (Vec::new(), Vec::new(), Vec::new());
        if known {
            ap_by_agreement = quality::ap_by_agreement(&used, &detections, calibration.thresholds.instance)?;
            pck_by_agreement = evaluate::pck_by_agreement(&used, &detections, calibration.thresholds, case.arm.min_agreement, PARTS);
            oks_by_score = Bin::of(quality::oks_of_scores(&used, &detections)?, PARTS);
        }
        Ok(Done::Ready((samples, LabelRecord { calibration, count, quality: measured, pck_by_agreement, ap_by_agreement, oks_by_score })))
    }

    /// All images that keep their labels, whether they are trained on or not.
    fn labelled_images(&self, seed: u64) -> Dataset {
        let parts = self.parts(seed);
        let unlabelled = |id: u64| parts.unlabelled.images.binary_search_by_key(&id, |image| image.id).is_ok();
        self.train.subset(|_, image| !unlabelled(image.id))
    }

    /// Pictures of the lower bound and the student of the highest gain, of the first seed, where their models are at hand.
    pub(super) fn examples(&self, summary: &Summary) -> Result<(), ExperimentError> {
        let gain = |row: &&Row| row.gain.map_or(f64::MIN, |gain| gain.ap);
        let student = |row: &&Row| self.plan.arm(&row.arm).is_some_and(|arm| arm.test_views.is_none() && arm.labels == Labels::Generated);
        let others = summary.equal.iter().filter(|row| row.gain.is_some()).filter(student);
        let best = others.max_by(|a, b| gain(a).total_cmp(&gain(b))).map(|row| row.arm.as_str());
        let mut models = Vec::new();
        let seed = summary.records.iter().filter(|record| Some(record.arm.as_str()) == best).map(|record| record.seed).next();
        for name in std::iter::once(self.plan.lower.as_str()).chain(best) {
            let of = |record: &&Record| {
                record.arm == name
                    && seed.is_none_or(|seed| seed == record.seed)
                    && summary.equal.iter().any(|row| row.arm == name && row.steps == record.steps)
            };
            let Some(record) = summary.records.iter().find(of) else { return Ok(()) };
            let bundle = self.folder(&record.recipe).join("bundle");
            if !bundle.exists() {
                return Ok(());
            }
            models.push((name, Bundle::open(&bundle)?));
        }
        let test = self.test_images()?;
        examples::draw(&self.setup.out.join("examples"), &self.plan.name, &test, &models, self.cancel)
    }

    fn test_images(&self) -> Result<Dataset, ExperimentError> {
        let mut test = Dataset::load(&self.test_folder)?;
        if let Some(images) = self.plan.data.test_images {
            test = test.subset(|index, _| index < images);
        }
        same_keypoints(&self.train, &test)?;
        labelled(&test)?;
        Ok(test)
    }

    fn test(&self, case: &Case<'_>, bundle: &Bundle) -> Result<Test, ExperimentError> {
        self.stage(case, "test");
        let test = self.test_images()?;
        let views = case.arm.test_views.clone();
        let detections = self.detect(bundle, &test, views.as_ref())?;
        let truth = GroundTruth::from_dataset(&test)?;
        let results = detections.results(&test);
        let resampled = bootstrap(&truth, &[&results], self.plan.resamples, RESAMPLES, &|_| ())?;
        let rounded = |ap: &f64| (ap * 1e5).round() / 1e5;
        Ok(Test {
            sha256: self.test_sha256.clone(),
            images: test.images.len(),
            views,
            scores: score(&truth, &results)?,
            terciles: terciles(&truth, &results)?,
            pck: pck(&test, &detections),
            resampled: resampled.aps.first().map(|aps| aps.iter().map(rounded).collect()).unwrap_or_default(),
        })
    }
}

/// The cases of the arms that are asked for, all if none, and those that teach them: a student's record counts only beside its teachers'.
fn needed(plan: &Plan, cases: &[Case<'_>], only: &[String]) -> Result<BTreeSet<String>, ExperimentError> {
    let mut needed = BTreeSet::new();
    // Of a seed, teachers come before their students.
    for case in cases.iter().rev() {
        if only.is_empty() || only.contains(&case.arm.name) || needed.contains(&case.name()) {
            needed.insert(case.name());
            needed.extend(case.teachers(plan)?.iter().map(Case::name));
        }
    }
    Ok(needed)
}

/// The only one.
fn one(mut members: Vec<Teacher>) -> Result<Teacher, ExperimentError> {
    members.pop().ok_or_else(|| ExperimentError::Start("generated labels without a teacher".to_owned()))
}

/// Where an arm starts.
fn place(plan: &Plan, arm: &Arm) -> (String, Option<PathBuf>) {
    (plan.preset(arm).to_owned(), plan.init(arm).map(Path::to_owned))
}

/// An arm's network and its first weights; the seed is each case's.
fn first(plan: &Plan, arm: &Arm, keypoints: usize) -> anyhow::Result<Start> {
    let network = start::preset(plan.preset(arm), keypoints)?;
    let mut start = match plan.init(arm) {
        // The same file by the same name, wherever the program is started.
        Some(path) => start::from_file(network, &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()), 0)?,
        None => start::from_seed(network, 0),
    };
    if let Some(side) = plan.train.short_side {
        start::resize(&mut start.network, side);
    }
    Ok(start)
}

pub(super) fn same_keypoints(a: &Dataset, b: &Dataset) -> Result<(), ExperimentError> {
    let (ours, theirs): (Vec<&str>, Vec<&str>) = (a.skeleton.names().collect(), b.skeleton.names().collect());
    match first_difference(&ours, &theirs) {
        Some(first) => Err(crate::distill::DistillError::Skeleton { a: a.root.clone(), b: b.root.clone(), first }.into()),
        None => Ok(()),
    }
}
