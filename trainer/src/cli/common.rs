//! What several subcommands share: flags of a network and its schedule, the stop flag, progress bars.

use crate::distill::Event;
use crate::evaluate::Views;
use crate::start::{self, Start};
use anyhow::{Context, bail};
use clap::ValueEnum;
use figment::Figment;
use figment::providers::{Format, Toml};
use indicatif::{ProgressBar, ProgressStyle};
use omnilabel_coco::Dataset;
use omnilabel_keypoints::ensemble::Average;
use omnilabel_rcnn::config::{Config, SHORT_SIDES};
use omnilabel_rcnn::device::{Arithmetic, Compute, TrainDevice};
use omnilabel_rcnn::train::{Init, TrainOptions};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Ctrl-C and SIGTERM set the flag; a second one ends the process at once.
pub(super) fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    ctrlc::set_handler(move || {
        if set.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("stopping after this step; again to stop at once");
    })
    .context("the signal handler could not be installed")?;
    Ok(flag)
}

/// A bar on a terminal, nothing elsewhere.
pub(super) fn bar(len: u64, unit: &str) -> anyhow::Result<ProgressBar> {
    let template = format!("{{prefix:>18}} {{wide_bar}} {{pos}}/{{len}} {unit} {{msg}} {{eta}}");
    Ok(ProgressBar::new(len).with_style(ProgressStyle::with_template(&template)?))
}

/// Shows the stages of something long, each with a bar of its own.
pub(super) struct Stages(Mutex<(String, ProgressBar)>);

impl Default for Stages {
    fn default() -> Self {
        Self(Mutex::new((String::new(), ProgressBar::hidden())))
    }
}

impl Stages {
    pub(super) fn show(&self, event: Event<'_>) {
        let Ok(mut stage) = self.0.lock() else { return };
        match event {
            Event::Stage(name) => {
                stage.1.finish_and_clear();
                *stage = (name.to_owned(), ProgressBar::hidden());
            }
            Event::Step(r) => {
                advance(&mut stage, r.step, r.steps, "steps");
                stage.1.set_message(format!("loss {:.3} {:.1} img/s", r.losses.total(), r.images_per_sec));
            }
            Event::Pictures { done, of } => advance(&mut stage, done as u64, of as u64, "images"),
            Event::LeftOut(reason) => stage.1.suspend(|| eprintln!("left out: {reason}")),
            Event::Warning(warning) => stage.1.suspend(|| eprintln!("warning: {warning}")),
        }
    }
}

/// Moves the stage's bar, or begins it.
fn advance(stage: &mut (String, ProgressBar), position: u64, of: u64, unit: &str) {
    if stage.1.length() != Some(of)
        && let Ok(new) = bar(of, unit)
    {
        stage.1 = new.with_prefix(stage.0.clone());
    }
    stage.1.set_position(position);
}

/// What is averaged over the views.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AverageFlag {
    Logits,
    Probabilities,
}

/// The views of an ensemble.
#[derive(clap::Args)]
pub(super) struct ViewFlags {
    /// Short sides of the ensemble's views, such as 96,128,160; the model's own when not given
    #[arg(long, value_delimiter = ',')]
    scales: Vec<u32>,
    /// Each view also mirrored
    #[arg(long)]
    flip: bool,
    /// What is averaged over the views
    #[arg(long, value_enum, default_value = "logits")]
    average: AverageFlag,
    /// Pool the boxes of all views before NMS, then vote
    #[arg(long)]
    box_voting: bool,
}

impl ViewFlags {
    /// # Errors
    /// A scale out of range.
    pub(super) fn views(self) -> anyhow::Result<Views> {
        if let Some(scale) = self.scales.iter().find(|scale| !SHORT_SIDES.contains(scale)) {
            bail!("--scales has {scale}, expected short sides of 16 to 4096 px");
        }
        let average = match self.average {
            AverageFlag::Logits => Average::Logits,
            AverageFlag::Probabilities => Average::Probabilities,
        };
        Ok(Views { scales: self.scales, flip: self.flip, average, box_voting: self.box_voting })
    }
}

/// Precision of the weights in a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Weights {
    F32,
    F16,
}

/// Network, schedule and first weights. Flags win over `--config`.
#[derive(clap::Args)]
pub(super) struct TrainFlags {
    /// TOML file with `preset`, `short_side`, `init` and a table `[options]`
    #[arg(long)]
    config: Option<PathBuf>,
    /// Network preset: nano, resnet50, resnet101, resnext101_32x4d, resnext101_64x4d, or one of these four with `mini_` before it
    #[arg(long)]
    preset: Option<String>,
    /// Short side of the input, px
    #[arg(long)]
    short_side: Option<u32>,
    /// First weights: `seed:N`, a bundle, or a checkpoint (.safetensors, .pth, .pkl): a detector, or a body trained on ImageNet
    #[arg(long)]
    init: Option<String>,
    /// Images per optimiser step
    #[arg(long)]
    batch: Option<usize>,
    /// Peak learning rate
    #[arg(long)]
    lr: Option<f64>,
    /// Seed of everything random but the first weights
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    device: DeviceFlags,
}

/// What is trained on.
#[derive(Clone, Copy, clap::Args)]
pub(super) struct DeviceFlags {
    /// What is trained on; `auto` is the GPU if it can be used
    #[arg(long, value_enum, default_value = "cpu")]
    device: DeviceArg,
    /// What a GPU computes products in; weights and losses are f32 either way
    #[arg(long, value_enum, default_value = "f32")]
    precision: PrecisionArg,
    /// GPUs that train one network, each on its share of every batch: the first ones that the process sees
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    gpus: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum DeviceArg {
    #[default]
    Cpu,
    Cuda,
    Auto,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum PrecisionArg {
    #[default]
    F32,
    Bf16,
}

/// `--config`.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TrainFile {
    preset: Option<String>,
    short_side: Option<u32>,
    init: Option<String>,
    options: TrainOptions,
}

/// Flags and file, resolved.
pub(super) struct Training {
    pub(super) network: Config,
    options: TrainOptions,
    pub(super) init: Init,
    pub(super) compute: Compute,
}

impl Training {
    /// The options with so many steps, where a flag says so.
    pub(super) fn options(&self, steps: Option<u64>) -> anyhow::Result<TrainOptions> {
        let options = TrainOptions { steps: steps.unwrap_or(self.options.steps), ..self.options.clone() };
        if let Some((key, found, expected)) = options.wrong() {
            bail!("option `{key}` is {found}, expected {expected}");
        }
        if options.batch < self.compute.gpus {
            bail!("--batch is {}, expected --gpus, {}, or more: an image for each", options.batch, self.compute.gpus);
        }
        Ok(options)
    }
}

impl TrainFlags {
    pub(super) fn resolve(&self, keypoints: usize) -> anyhow::Result<Training> {
        let file = match &self.config {
            Some(path) => Figment::from(Toml::file_exact(path))
                .extract::<TrainFile>()
                .with_context(|| format!("{} is not a training configuration", path.display()))?,
            None => TrainFile::default(),
        };
        let compute = self.device.compute();
        let mut options = file.options;
        options.batch = self.batch.unwrap_or(options.batch);
        options.lr = self.lr.unwrap_or(options.lr);
        options.seed = self.seed.unwrap_or(options.seed);
        let preset = self.preset.clone().or(file.preset).unwrap_or_else(|| "nano".to_owned());
        let network = start::preset(&preset, keypoints)?;
        let Start { mut network, init, taken } =
            parse_init(network, self.init.as_deref().or(file.init.as_deref()).unwrap_or("seed:1"), options.seed)?;
        if let Some(side) = self.short_side.or(file.short_side) {
            if !SHORT_SIDES.contains(&side) {
                bail!("--short-side is {side}, expected 16 to 4096 px");
            }
            start::resize(&mut network, side);
        }
        if let Some(taken) = taken {
            eprintln!("{taken}");
        }
        Ok(Training { network, options, init, compute })
    }

    pub(super) fn try_device(&self) -> anyhow::Result<()> {
        self.device.try_device()
    }
}

impl DeviceFlags {
    /// Tries the device before anything is read: a training that cannot begin leaves nothing behind.
    pub(super) fn try_device(self) -> anyhow::Result<()> {
        if let Some(why) = self.compute().open()?.instead {
            eprintln!("trained on the processor: {why}");
        }
        Ok(())
    }

    pub(super) fn compute(self) -> Compute {
        let device = match self.device {
            DeviceArg::Cpu => TrainDevice::Cpu,
            DeviceArg::Cuda => TrainDevice::Cuda,
            DeviceArg::Auto => TrainDevice::Auto,
        };
        let precision = if self.precision == PrecisionArg::Bf16 { Arithmetic::Bf16 } else { Arithmetic::F32 };
        Compute { device, precision, gpus: self.gpus.into() }
    }
}

/// `seed:N` or a file; the heads that a file lacks are drawn from `seed`.
fn parse_init(network: Config, text: &str, seed: u64) -> anyhow::Result<Start> {
    if let Some(number) = text.strip_prefix("seed:") {
        let seed = number.parse().with_context(|| format!("--init {text}: expected a number after `seed:`"))?;
        return Ok(start::from_seed(network, seed));
    }
    start::from_file(network, Path::new(text), seed).context("--init")
}

/// A data set cut to a share or a number of its first images by id.
pub(super) fn load(dir: &Path, fraction: Option<f64>, images: Option<usize>) -> anyhow::Result<Dataset> {
    let dataset = Dataset::load(dir)?;
    if dataset.images.is_empty() {
        bail!("{}: annotations.json lists no images", dir.display());
    }
    let all = dataset.images.len();
    let mut keep = all;
    if let Some(fraction) = fraction {
        if !(fraction > 0.0 && fraction <= 1.0) {
            bail!("a fraction must be above 0 and at most 1, not {fraction}");
        }
        keep = (all as f64 * fraction).round() as usize;
    }
    keep = keep.min(images.unwrap_or(all));
    Ok(if keep == all { dataset } else { dataset.subset(|index, _| index < keep) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(text: &str) -> anyhow::Result<Training> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("train.toml");
        std::fs::write(&path, text)?;
        let flags = TrainFlags {
            config: Some(path),
            preset: None,
            short_side: None,
            init: None,
            batch: Some(3),
            lr: None,
            seed: None,
            device: DeviceFlags { device: DeviceArg::Cpu, precision: PrecisionArg::F32, gpus: 1 },
        };
        flags.resolve(14)
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_the_defaults() {
        let training = flags("short_side = 64\ninit = \"seed:7\"\n[options]\nbatch = 8\nlr = 0.5\n").unwrap();
        assert_eq!((training.options.batch, training.options.lr, training.network.input.short_side), (3, 0.5, 64));
        assert_eq!(training.init, Init::Seed(7));
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        let error = format!("{:#}", flags("[options]\nlearning_rate = 1.0\n").err().unwrap());
        assert!(error.contains("learning_rate") && error.contains("train.toml"), "{error}");
        let error = format!("{:#}", flags("preset = \"giant\"").err().unwrap());
        assert!(error.contains("giant"), "{error}");
        let error = format!("{:#}", flags("init = \"nowhere.safetensors\"").err().unwrap());
        assert!(error.contains("nowhere.safetensors"), "{error}");
    }
}
