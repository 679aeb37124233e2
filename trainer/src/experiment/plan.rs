//! The file of an experiment: which arms, on which data, with which seeds.

use super::ExperimentError;
use crate::calibrate::ManualStats;
use crate::evaluate::Views;
use crate::mix::MANUAL_PERCENT;
use figment::Figment;
use figment::providers::{Format, Serialized, Toml};
use omnilabel_rcnn::config::SHORT_SIDES;
use omnilabel_rcnn::train::TrainOptions;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// An experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What it is about, for people.
    pub name: String,
    /// Each draws its own labelled subset, first weights and order of images.
    pub seeds: Vec<u64>,
    /// The arm that others are compared with.
    pub lower: String,
    /// The arm that saw all labels; without it there is no gap.
    #[serde(default)]
    pub upper: Option<String>,
    /// The arm from which ablations differ in one thing: each is told less this one, too, over the seeds that both have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// The images.
    pub data: Data,
    /// Network and schedule, as far as an arm does not say otherwise.
    #[serde(default)]
    pub train: Train,
    /// The teachers' views, as far as an arm does not say otherwise.
    #[serde(default)]
    pub views: Views,
    /// Resamples of the test images.
    #[serde(default = "resamples")]
    pub resamples: usize,
    /// In the order in which they are run and told.
    pub arms: Vec<Arm>,
}

/// Instead of a file: weights by the seed.
const RANDOM: &str = "random";

/// What keeps variants of one seed apart from other seeds.
const VARIANT: u64 = 1 << 32;

const fn resamples() -> usize {
    1000
}

/// Which images keep their labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Drawn {
    /// Others for each seed.
    #[default]
    Random,
    /// The first by ascending id, for every seed.
    First,
}

/// Images and their parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// COCO keypoint folder that is divided into labelled and unlabelled images.
    pub train: PathBuf,
    /// COCO keypoint folder that only evaluations read.
    pub test: PathBuf,
    /// Only the first so many images of `train`, by id.
    #[serde(default)]
    pub images: Option<usize>,
    /// Only the first so many images of `test`, by id.
    #[serde(default)]
    pub test_images: Option<usize>,
    /// The share of `train` that keeps its labels.
    pub labelled: f64,
    /// Which those are.
    #[serde(default)]
    pub draw: Drawn,
    /// The share of the labelled images that nothing is trained on: what is chosen, is chosen on them.
    #[serde(default = "held_out")]
    pub held_out: f64,
}

const fn held_out() -> f64 {
    0.1
}

/// Network and schedule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// `nano` if not given.
    pub preset: Option<String>,
    /// Short side of the input, px; the preset's if not given.
    pub short_side: Option<u32>,
    /// A bundle or checkpoint with the first weights of every arm; random by the seed if not given.
    pub init: Option<PathBuf>,
    /// The schedule; its seed is the experiment's.
    pub options: TrainOptions,
}

/// Whose labels an arm is trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Labels {
    /// The labelled images alone.
    Manual,
    /// The union of the labelled images and those that a teacher labelled.
    Generated,
    /// All images with their true labels.
    All,
}

/// Names of arms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "OneOrMore", into = "OneOrMore")]
pub struct Teachers(Vec<String>);

/// A name, or a list of them.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl From<OneOrMore> for Teachers {
    fn from(names: OneOrMore) -> Self {
        match names {
            OneOrMore::One(name) => Self(vec![name]),
            OneOrMore::More(names) => Self(names),
        }
    }
}

impl From<Teachers> for OneOrMore {
    fn from(Teachers(mut names): Teachers) -> Self {
        if names.len() == 1 { Self::One(names.remove(0)) } else { Self::More(names) }
    }
}

impl Teachers {
    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// Letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// What it learns from.
    pub labels: Labels,
    /// Who labels, for generated labels: an arm further up, or several that label together.
    #[serde(default, skip_serializing_if = "Teachers::is_empty")]
    pub teacher: Teachers,
    /// Another number draws other first weights and another order of images from the seed, for the same labelled images.
    #[serde(default, skip_serializing_if = "is_nought")]
    pub variant: u64,
    /// Whether it begins with its teacher's weights.
    #[serde(default)]
    pub fine_tune: bool,
    /// Numbers of steps that are tried beside the schedule's own, the best on the held-out images being chosen.
    #[serde(default)]
    pub lengths: Vec<u64>,
    /// Other keys of `[train.options]` for this arm.
    #[serde(default)]
    pub options: serde_json::Map<String, serde_json::Value>,
    /// Another network.
    #[serde(default)]
    pub preset: Option<String>,
    /// Other first weights: a bundle or checkpoint, or `random`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// Other views of the teacher.
    #[serde(default)]
    pub views: Option<Views>,
    /// The share of the unlabelled images that is used.
    #[serde(default = "whole")]
    pub unlabelled: f64,
    /// Footage from elsewhere instead of the unlabelled images: a COCO keypoint folder, of which the annotations serve to tell how good
    /// the labels are, or a folder of pictures.
    #[serde(default)]
    pub footage: Option<PathBuf>,
    /// How many people are kept, as a multiple of the manual mean that τ matches.
    #[serde(default = "whole")]
    pub keep: f64,
    /// The share of τ from which instances are ignore regions.
    #[serde(default)]
    pub ignore_from: Option<f32>,
    /// Keypoints on which the teacher's views agree less are left unlabelled.
    #[serde(default)]
    pub min_agreement: Option<f32>,
    /// Of the unlabelled pictures with somebody from τ on, the share that is learnt from: those on whose people the teacher's views agree most.
    #[serde(default = "whole", skip_serializing_if = "is_whole")]
    pub most_agreed: f64,
    /// Whether keypoints are learnt from the teacher's averaged heatmaps (soft labels) instead of the places where they peak.
    #[serde(default)]
    pub soft: bool,
    /// Manual images of every 100 of a minibatch.
    #[serde(default = "paper")]
    pub manual_percent: u8,
    /// The views of the evaluation; one if not given.
    #[serde(default)]
    pub test_views: Option<Views>,
    /// Only these of the experiment's seeds.
    #[serde(default)]
    pub seeds: Option<Vec<u64>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
const fn is_nought(number: &u64) -> bool {
    *number == 0
}

pub(super) const fn whole() -> f64 {
    1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
pub(super) fn is_whole(share: &f64) -> bool {
    *share >= 1.0
}

const fn paper() -> u8 {
    MANUAL_PERCENT
}

impl Plan {
    /// Reads and checks a file. Relative paths in it are from its folder, those of images from `data` where that is given.
    ///
    /// # Errors
    /// [`ExperimentError::Plan`] names the file, the field and what was expected.
    pub fn read(path: &Path, data: Option<&Path>) -> Result<Self, ExperimentError> {
        let named = |message: String| ExperimentError::Plan { path: path.to_owned(), message };
        std::fs::metadata(path).map_err(|error| named(error.to_string()))?;
        let mut plan: Self = Figment::from(Toml::file_exact(path)).extract().map_err(|error| named(error.to_string()))?;
        plan.check().map_err(named)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let footage = plan.arms.iter_mut().filter_map(|arm| arm.footage.as_mut());
        for images in [&mut plan.data.train, &mut plan.data.test].into_iter().chain(footage) {
            *images = data.unwrap_or(folder).join(&*images);
        }
        let inits = plan.train.init.iter_mut().chain(plan.arms.iter_mut().filter_map(|arm| arm.init.as_mut()));
        for init in inits.filter(|init| init.as_os_str() != RANDOM) {
            *init = folder.join(&*init);
        }
        Ok(plan)
    }

    fn check(&self) -> Result<(), String> {
        if self.seeds.is_empty() || self.seeds.iter().collect::<BTreeSet<_>>().len() < self.seeds.len() {
            return Err(format!("`seeds` is {:?}, expected at least one number and none twice", self.seeds));
        }
        let open = |name: &str, value: f64| match value {
            v if v > 0.0 && v < 1.0 => Ok(()),
            v => Err(format!("`{name}` is {v}, expected a number above 0 and below 1")),
        };
        open("data.labelled", self.data.labelled)?;
        open("data.held_out", self.data.held_out)?;
        if let Some(side) = self.train.short_side.filter(|side| !SHORT_SIDES.contains(side)) {
            return Err(format!("`train.short_side` is {side}, expected 16 to 4096 px"));
        }
        views("views", &self.views)?;
        if self.upper.as_ref() == Some(&self.lower) {
            return Err(format!("`upper` is `{}`, the lower bound itself, expected another arm", self.lower));
        }
        if let Some(init) = self.train.init.as_ref().filter(|init| init.to_string_lossy().starts_with("seed:")) {
            return Err(format!(
                "`train.init` is `{}`, expected a file, or none: every seed of the experiment draws its own",
                init.display()
            ));
        }
        if self.resamples < 2 {
            return Err(format!("`resamples` is {}, expected 2 or more", self.resamples));
        }
        let mut before: Vec<&Arm> = Vec::new();
        for arm in &self.arms {
            self.check_arm(arm, &before).map_err(|message| format!("arm `{}`: {message}", arm.name))?;
            before.push(arm);
        }
        let others = [("upper", &self.upper), ("reference", &self.reference)];
        let named = others.into_iter().filter_map(|(field, name)| Some((field, name.as_ref()?)));
        for (field, name) in std::iter::once(("lower", &self.lower)).chain(named) {
            if self.arm(name).is_none() {
                return Err(format!("`{field}` is `{name}`, expected the name of an arm"));
            }
        }
        Ok(())
    }

    fn check_arm(&self, arm: &Arm, before: &[&Arm]) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if !arm.name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !arm.name.chars().all(plain) {
            return Err("expected a name of letters, digits, `-`, `_` and `.`".to_owned());
        }
        if before.iter().any(|other| other.name == arm.name) {
            return Err("there is another one of this name".to_owned());
        }
        let generated = arm.labels == Labels::Generated;
        match (arm.teacher.is_empty(), generated || arm.fine_tune) {
            (true, true) => return Err("`teacher` is missing: generated labels and fine-tuning need one".to_owned()),
            (false, false) => return Err("`teacher` is given, but nothing is generated: expected `labels = \"generated\"`".to_owned()),
            _ => {}
        }
        if let Some(name) = arm.teacher.names().find(|name| !before.iter().any(|other| other.name == *name)) {
            return Err(format!("`teacher` is `{name}`, expected the name of an arm further up"));
        }
        if arm.fine_tune && arm.init.is_some() {
            return Err("`fine_tune` begins with the teacher's weights, and `init` with others".to_owned());
        }
        if arm.fine_tune && arm.teacher.names().count() > 1 {
            return Err("`fine_tune` begins with one teacher's weights, and there are several".to_owned());
        }
        let teachers = || before.iter().filter(|other| arm.teacher.names().any(|name| name == other.name));
        if let Some(teacher) = teachers().find(|teacher| arm.fine_tune && self.preset(teacher) != self.preset(arm)) {
            let (ours, name, theirs) = (self.preset(arm), &teacher.name, self.preset(teacher));
            return Err(format!("`fine_tune` begins with the weights of `{name}`, a `{theirs}`; expected its preset, found `{ours}`"));
        }
        if let Some(field) = arm.of_generated_labels().filter(|_| !generated) {
            return Err(format!("`{field}` is of generated labels alone, expected `labels = \"generated\"`"));
        }
        for (field, share) in [("unlabelled", arm.unlabelled), ("most_agreed", arm.most_agreed)] {
            if !(share > 0.0 && share <= 1.0) {
                return Err(format!("`{field}` is {share}, expected a number above 0 and at most 1"));
            }
        }
        if !(arm.keep.is_finite() && arm.keep > 0.0) {
            return Err(format!("`keep` is {}, expected a number above 0", arm.keep));
        }
        let shares = [("ignore_from", arm.ignore_from), ("min_agreement", arm.min_agreement)];
        if let Some((field, share)) =
            shares.iter().find_map(|(field, share)| Some((field, (*share)?)).filter(|s| !(0.0..=1.0).contains(&s.1)))
        {
            return Err(format!("`{field}` is {share}, expected a number from 0 to 1"));
        }
        if !(1..=100).contains(&arm.manual_percent) {
            return Err(format!("`manual_percent` is {}, expected 1 to 100", arm.manual_percent));
        }
        for (field, given) in [("views", &arm.views), ("test_views", &arm.test_views)] {
            given.iter().try_for_each(|given| views(field, given))?;
        }
        if arm.seeds.as_ref().is_some_and(Vec::is_empty) {
            return Err("`seeds` is empty, expected some of the experiment's".to_owned());
        }
        if let Some(init) = arm.init.as_ref().filter(|init| init.to_string_lossy().starts_with("seed:")) {
            return Err(format!(
                "`init` is `{}`, expected a file, or `random`: every seed of the experiment draws its own",
                init.display()
            ));
        }
        if let Some(seed) = arm.seeds.iter().flatten().find(|seed| !self.seeds.contains(seed)) {
            return Err(format!("`seeds` has {seed}, expected some of the experiment's"));
        }
        let seeds = |arm: &Arm| arm.seeds.clone().unwrap_or_else(|| self.seeds.clone());
        for teacher in teachers() {
            let theirs = seeds(teacher);
            if let Some(seed) = seeds(arm).into_iter().find(|seed| !theirs.contains(seed)) {
                return Err(format!("seed {seed} has no teacher: `{}` has the seeds {theirs:?}, expected it among them", teacher.name));
            }
        }
        let options = self.options(arm, self.seeds[0])?;
        let lengths = std::iter::once(&options.steps).chain(&arm.lengths);
        if arm.lengths.contains(&0) || lengths.collect::<BTreeSet<_>>().len() < arm.lengths.len() + 1 {
            return Err(format!(
                "`lengths` is {:?}, expected numbers of steps above 0, none twice and not the schedule's own",
                arm.lengths
            ));
        }
        if let Some((key, found, expected)) = options.wrong() {
            return Err(format!("`options.{key}` is {found}, expected {expected}"));
        }
        if arm.options.contains_key("seed") {
            return Err("`options.seed` is given by `seeds`; expected `variant` for another training of the same seed".to_owned());
        }
        let members = arm.teacher.names().count();
        let label_views = arm.views.as_ref().unwrap_or(&self.views);
        if members > 1 && label_views.box_voting {
            return Err("`views.box_voting` is of one teacher alone: boxes of several are pooled anyway".to_owned());
        }
        let by_agreement = [("min_agreement", arm.min_agreement.is_some()), ("most_agreed", arm.most_agreed < 1.0)];
        if let Some((field, _)) = by_agreement.into_iter().find(|(_, given)| *given && members == 1 && label_views.count() < 2) {
            return Err(format!("`{field}` needs something that can disagree: expected two views or teachers at least"));
        }
        Ok(())
    }

    /// An arm by name.
    pub fn arm(&self, name: &str) -> Option<&Arm> {
        self.arms.iter().find(|arm| arm.name == name)
    }

    /// The name of an arm's network.
    pub(super) fn preset<'p>(&'p self, arm: &'p Arm) -> &'p str {
        arm.preset.as_deref().or(self.train.preset.as_deref()).unwrap_or("nano")
    }

    /// The file of an arm's first weights, and of fine-tuning that of its teacher's: both have the network that these were made for. Random
    /// ones if none.
    pub(super) fn init<'p>(&'p self, arm: &'p Arm) -> Option<&'p Path> {
        if let Some(teacher) = arm.teacher.names().next().and_then(|name| self.arm(name)).filter(|_| arm.fine_tune) {
            return self.init(teacher);
        }
        arm.init.as_deref().or(self.train.init.as_deref()).filter(|init| init.as_os_str() != RANDOM)
    }

    /// The schedule of an arm.
    ///
    /// # Errors
    /// A key that the options do not have.
    pub(super) fn options(&self, arm: &Arm, seed: u64) -> Result<TrainOptions, String> {
        let merge = |base: &TrainOptions| -> Result<TrainOptions, String> {
            let merged = Figment::from(Serialized::defaults(base)).merge(Serialized::defaults(&arm.options));
            merged.extract().map_err(|error| format!("`options`: {error}"))
        };
        let mut options = merge(&self.train.options)?;
        if arm.options.contains_key("generated_augment") {
            // What an arm does not say of it is as for all other images.
            let augment = options.augment.clone();
            options = merge(&TrainOptions { generated_augment: Some(augment), ..self.train.options.clone() })?;
        }
        Ok(TrainOptions { seed: seed.wrapping_add(VARIANT.wrapping_mul(arm.variant)), ..options })
    }
}

impl Arm {
    /// A field that says something of generated labels.
    fn of_generated_labels(&self) -> Option<&'static str> {
        let other = Self { labels: self.labels, ..serde_json::from_value(serde_json::json!({"name": "", "labels": "manual"})).ok()? };
        [
            ("views", self.views != other.views),
            ("unlabelled", self.unlabelled != other.unlabelled),
            ("footage", self.footage != other.footage),
            ("keep", self.keep != other.keep),
            ("ignore_from", self.ignore_from != other.ignore_from),
            ("min_agreement", self.min_agreement != other.min_agreement),
            ("most_agreed", self.most_agreed != other.most_agreed),
            ("soft", self.soft != other.soft),
            ("manual_percent", self.manual_percent != other.manual_percent),
        ]
        .into_iter()
        .find_map(|(field, given)| given.then_some(field))
    }

    /// What τ and τ_k match: the manual means, of people times [`Arm::keep`].
    pub(super) fn wanted(&self, manual: ManualStats) -> ManualStats {
        let times = |count: u64| (count as f64 * self.keep).round() as u64;
        ManualStats { images: manual.images, people: times(manual.people), keypoints: times(manual.keypoints) }
    }
}

fn views(field: &str, views: &Views) -> Result<(), String> {
    if views.scales.iter().collect::<BTreeSet<_>>().len() < views.scales.len() {
        return Err(format!("`{field}.scales` is {:?}, expected none twice", views.scales));
    }
    match views.scales.iter().find(|scale| !SHORT_SIDES.contains(scale)) {
        Some(scale) => Err(format!("`{field}.scales` has {scale}, expected short sides of 16 to 4096 px")),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::experiment) const TEXT: &str = r#"
        name = "small"
        seeds = [1, 2]
        lower = "lower"
        upper = "upper"
        [data]
        train = "train"
        test = "/data/val"
        labelled = 0.3
        [train]
        short_side = 96
        [train.options]
        steps = 100
        batch = 8
        [[arms]]
        name = "lower"
        labels = "manual"
        lengths = [50]
        [[arms]]
        name = "distilled"
        labels = "generated"
        teacher = "lower"
        options = { lr = 0.001, augment = { cutout = 0.5 } }
        [[arms]]
        name = "upper"
        labels = "all"
    "#;

    fn read(text: &str) -> Result<Plan, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.toml");
        std::fs::write(&path, text).unwrap();
        Plan::read(&path, None).map_err(|error| error.to_string())
    }

    #[test]
    fn fine_tuning_keeps_the_network_that_the_teachers_weights_were_made_for() {
        let tuned = |init: &str, of: &str| {
            let text = TEXT.replace("short_side = 96", &format!("short_side = 96\n{init}"));
            let text = text.replace("labels = \"manual\"", &format!("labels = \"manual\"\n{of}"));
            let plan = read(&text.replace("teacher = \"lower\"", "teacher = \"lower\"\nfine_tune = true")).unwrap();
            plan.init(plan.arm("distilled").unwrap()).and_then(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned())
        };
        assert_eq!(tuned("", "init = \"a.pth\"").as_deref(), Some("a.pth"));
        assert_eq!(tuned("init = \"b.pth\"", "init = \"a.pth\"").as_deref(), Some("a.pth"));
        assert_eq!(tuned("init = \"b.pth\"", "").as_deref(), Some("b.pth"));
        assert_eq!(tuned("init = \"b.pth\"", "init = \"random\""), None);
    }

    #[test]
    fn an_arm_changes_single_options_of_all() {
        let plan = read(TEXT).unwrap();
        let options = plan.options(&plan.arms[1], 7).unwrap();
        assert_eq!((options.lr, options.steps, options.batch, options.seed), (0.001, 100, 8, 7));
        let default = TrainOptions::default();
        let text = TEXT.replace("augment = { cutout = 0.5 }", "augment = { rotation = 3.0 }, generated_augment = { cutout = 0.5 }");
        let generated = read(&text).map(|plan| plan.options(&plan.arms[1], 7).unwrap().generated_augment.unwrap()).unwrap();
        assert_eq!((generated.rotation, generated.cutout, generated.scale), (3.0, 0.5, default.augment.scale));
        assert_eq!((options.augment.cutout, options.augment.rotation), (0.5, default.augment.rotation));
        assert_eq!(plan.options(&plan.arms[0], 7).unwrap().lr, default.lr);
    }

    #[test]
    fn a_plan_that_is_not_there_is_named_once() {
        let error = Plan::read(Path::new("nowhere.toml"), None).unwrap_err().to_string();
        assert!(error.starts_with("nowhere.toml: ") && error.matches("nowhere").count() == 1 && !error.contains('\n'), "{error}");
    }

    #[test]
    fn paths_are_from_the_files_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.toml");
        std::fs::write(&path, TEXT.replace("short_side = 96", "init = \"body.pth\"")).unwrap();
        let moved = Plan::read(&path, Some(Path::new("/images"))).unwrap();
        assert_eq!((moved.data.train.as_path(), moved.train.init), (Path::new("/images/train"), Some(dir.path().join("body.pth"))));
        let plan = read(TEXT).unwrap();
        assert!(plan.data.train.is_absolute() && plan.data.train.ends_with("train"), "{:?}", plan.data.train);
        assert_eq!(plan.data.test, Path::new("/data/val"));
    }

    #[test]
    fn what_is_wrong_is_named_with_the_file_the_arm_and_the_field() {
        for (from, to, parts) in [
            ("seeds = [1, 2]", "seeds = [1, 1]", ["`seeds`", "none twice"]),
            ("labelled = 0.3", "labelled = 1.0", ["`data.labelled`", "below 1"]),
            ("labelled = 0.3", "labelled = 0.3\nheld_out = 0.0", ["`data.held_out`", "above 0"]),
            ("labelled = 0.3", "fraction = 0.3", ["fraction", "unknown field"]),
            ("short_side = 96", "short_side = 2", ["`train.short_side`", "16"]),
            ("upper = \"upper\"", "upper = \"top\"", ["`upper`", "`top`"]),
            ("upper = \"upper\"", "reference = \"top\"", ["`reference`", "`top`"]),
            ("lengths = [50]", "seeds = [1]", ["arm `distilled`", "seed 2 has no teacher: `lower`"]),
            ("steps = 100", "steps = 0", ["arm `lower`", "`options.steps`"]),
            ("labels = \"all\"", "labels = \"all\"\nseeds = []", ["arm `upper`", "`seeds` is empty"]),
            ("labels = \"all\"", "labels = \"all\"\ninit = \"seed:3\"", ["arm `upper`", "`random`"]),
            ("short_side = 96", "init = \"seed:3\"", ["`train.init`", "draws its own"]),
            ("upper = \"upper\"", "upper = \"lower\"", ["`upper`", "expected another arm"]),
            ("teacher = \"lower\"", "teacher = \"lower\"\nviews = { scales = [96, 96] }", ["arm `distilled`", "none twice"]),
            ("teacher = \"lower\"", "teacher = \"lower\"\nseeds = [3]", ["arm `distilled`", "`seeds` has 3"]),
            ("teacher = \"lower\"", "teacher = \"upper\"", ["arm `distilled`", "further up"]),
            ("teacher = \"lower\"", "", ["arm `distilled`", "`teacher` is missing"]),
            ("lr = 0.001", "rate = 0.001", ["arm `distilled`", "rate"]),
            ("lr = 0.001", "batch = 0", ["arm `distilled`", "`options.batch`"]),
            ("lr = 0.001", "average = 1.0", ["arm `distilled`", "`options.average`"]),
            ("lr = 0.001", "milestones = [70.0]", ["arm `distilled`", "`options.milestones`"]),
            ("lr = 0.001", "short_sides = [4]", ["arm `distilled`", "`options.short_sides`"]),
            ("lr = 0.001", "seed = 7", ["arm `distilled`", "`variant`"]),
            ("cutout = 0.5", "cutout = 1.5", ["arm `distilled`", "`options.augment.cutout`"]),
            (
                "teacher = \"lower\"",
                "teacher = \"lower\"\nmin_agreement = 0.5",
                ["arm `distilled`", "`min_agreement` needs something that can disagree"],
            ),
            (
                "teacher = \"lower\"",
                "teacher = \"lower\"\nmost_agreed = 0.5",
                ["arm `distilled`", "`most_agreed` needs something that can disagree"],
            ),
            ("teacher = \"lower\"", "teacher = \"lower\"\nmost_agreed = 0.0", ["arm `distilled`", "`most_agreed` is 0, expected"]),
            ("lengths = [50]", "most_agreed = 0.5", ["arm `lower`", "`most_agreed` is of generated labels"]),
            ("lr = 0.001", "lr = -1.0", ["arm `distilled`", "`options.lr`"]),
            ("lengths = [50]", "lengths = [100]", ["arm `lower`", "`lengths`"]),
            ("lengths = [50]", "keep = 2.0", ["arm `lower`", "`keep`"]),
            ("lengths = [50]", "teacher = \"lower\"", ["arm `lower`", "nothing is generated"]),
            ("teacher = \"lower\"", "teacher = [\"lower\", \"other\"]", ["arm `distilled`", "`other`"]),
            ("teacher = \"lower\"", "teacher = [\"lower\", \"lower\"]\nfine_tune = true", ["arm `distilled`", "`fine_tune`"]),
            ("teacher = \"lower\"", "teacher = \"lower\"\nfine_tune = true\npreset = \"resnet50\"", ["arm `distilled`", "a `nano`"]),
            ("name = \"upper\"", "name = \"lower\"", ["arm `lower`", "another one"]),
            ("name = \"upper\"", "name = \"../up\"", ["arm `../up`", "letters"]),
            ("labels = \"all\"", "labels = \"all\"\nseeds = [3]", ["arm `upper`", "`seeds` has 3"]),
            ("teacher = \"lower\"", "teacher = \"lower\"\nmanual_percent = 0", ["arm `distilled`", "`manual_percent`"]),
            ("teacher = \"lower\"", "teacher = \"lower\"\nignore_from = 2.0", ["arm `distilled`", "`ignore_from`"]),
            ("teacher = \"lower\"", "teacher = \"lower\"\nviews = { scales = [4] }", ["arm `distilled`", "`views.scales`"]),
        ] {
            assert!(TEXT.contains(from), "{from}");
            let error = read(&TEXT.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains("plan.toml") && parts.iter().all(|part| error.contains(part)), "{to}: {error}");
        }
    }

    #[test]
    fn keeping_more_scales_people_but_not_their_keypoints() {
        let plan = read(&TEXT.replace("teacher = \"lower\"", "teacher = \"lower\"\nkeep = 1.5")).unwrap();
        let manual = ManualStats { images: 10, people: 20, keypoints: 60 };
        let wanted = plan.arms[1].wanted(manual);
        assert_eq!((wanted.people_per_image().value(), wanted.keypoints_per_person().value()), (3.0, 3.0));
    }
}
