//! `omnilabel-trainer import`

use super::common::Weights;
use crate::arm::provisional;
use crate::start;
use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use omnilabel_bundle::{Channels, build, hex, may_become_bundle};
use omnilabel_detect::frame::Frame;
use omnilabel_rcnn::config::{Config, SHORT_SIDES};
use omnilabel_rcnn::export::{ExportMeta, write_bundle_as};
use omnilabel_rcnn::import::{self, Naming, read_checkpoint};
use omnilabel_rcnn::params::Precision;
use omnilabel_runtime::wrap::drawn_person;
use omnilabel_runtime::{golden_detections, write_golden};
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Checkpoint: torchvision's keypoint R-CNN (.pth, .safetensors) or Detectron2's (.pth, .pkl)
    #[arg(long)]
    from: PathBuf,
    /// Architecture of the checkpoint: a preset, such as resnet50, resnet101, resnext101_32x4d, resnext101_64x4d or nano
    #[arg(long)]
    arch: String,
    /// Where the bundle is written; a new or empty folder
    #[arg(long)]
    out: PathBuf,
    /// What the keypoints are: `coco17`, or a JSON file with COCO's `categories`
    #[arg(long, default_value = "coco17")]
    skeleton: String,
    /// Name in the bundle's manifest; the architecture's without it
    #[arg(long)]
    name: Option<String>,
    /// Precision of the weights in the bundle; either way the graphs compute in f32
    #[arg(long, value_enum, default_value = "f32")]
    weights: Weights,
    /// Short side of the input, px; the architecture's without it
    #[arg(long)]
    short_side: Option<u32>,
    /// Detectron2's MODEL.RESNETS.STRIDE_IN_1X1; by default true for ResNets and false for ResNeXts
    #[arg(long)]
    stride_in_1x1: Option<bool>,
    /// Order of the channels that the model was trained with (Detectron2's INPUT.FORMAT); by default `bgr` for Detectron2's names
    #[arg(long, value_enum)]
    channels: Option<ChannelsArg>,
    /// RoIAlign with the half-pixel shift (Detectron2's POOLER_TYPE ROIAlignV2: true); by default true for Detectron2's names
    #[arg(long)]
    roi_aligned: Option<bool>,
    /// Samples per cell and axis of RoIAlign, 0: as many as the RoI needs (Detectron2's POOLER_SAMPLING_RATIO)
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=8))]
    sampling_ratio: Option<u32>,
    /// Mean pixel in the order of the network's channels, of values from 0 to 255 (Detectron2's MODEL.PIXEL_MEAN)
    #[arg(long, value_delimiter = ',')]
    pixel_mean: Vec<f32>,
    /// Standard deviation likewise (MODEL.PIXEL_STD)
    #[arg(long, value_delimiter = ',')]
    pixel_std: Vec<f32>,
    /// Picture for the golden frame, best with people on it; a drawn one without it
    #[arg(long)]
    image: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ChannelsArg {
    Rgb,
    Bgr,
}

impl Args {
    /// The conventions of `config` where flags say otherwise.
    fn change(&self, config: &mut Config) -> anyhow::Result<()> {
        if let Some(side) = self.short_side {
            ensure!(SHORT_SIDES.contains(&side), "--short-side is {side}, expected 16 to 4096 px");
            start::resize(config, side);
        }
        config.network.stride_in_1x1 = self.stride_in_1x1.unwrap_or(config.network.stride_in_1x1);
        for roi in [&mut config.network.box_roi, &mut config.network.keypoint_roi] {
            roi.aligned = self.roi_aligned.unwrap_or(roi.aligned);
            roi.sampling_ratio = self.sampling_ratio.unwrap_or(roi.sampling_ratio);
        }
        let channels = match self.channels {
            Some(ChannelsArg::Rgb) => Channels::Rgb,
            Some(ChannelsArg::Bgr) => Channels::Bgr,
            None => config.input.channels,
        };
        if channels != config.input.channels {
            config.input.channels = channels;
            config.input.mean.reverse();
            config.input.std.reverse();
        }
        pixels("--pixel-mean", &self.pixel_mean, 0.0, &mut config.input.mean)?;
        pixels("--pixel-std", &self.pixel_std, 1e-3, &mut config.input.std)
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let skeleton = omnilabel_coco::named_skeleton(&args.skeleton).context("--skeleton: expected `coco17` or COCO's `categories`")?;
    let config = start::preset(&args.arch, skeleton.len()).context("--arch")?;
    may_become_bundle(&args.out).context("--out")?;
    let picture = match &args.image {
        Some(path) => Frame::open(path)?,
        None => drawn_person(),
    };
    let tensors = read_checkpoint(&args.from)?;
    let naming = Naming::of(tensors.keys().map(String::as_str)).with_context(|| {
        let first = tensors.keys().next().map_or("", String::as_str);
        format!("{}: tensors like `{first}` are neither torchvision's nor Detectron2's", args.from.display())
    })?;
    let mut config = import::conventions(config, naming);
    args.change(&mut config)?;
    if naming == Naming::Detectron2 {
        // What the file says of itself wins over the preset, not over the flags.
        for (flag, name, value) in
            [(&args.pixel_mean, "pixel_mean", &mut config.input.mean), (&args.pixel_std, "pixel_std", &mut config.input.std)]
        {
            if let (true, Some(tensor)) = (flag.is_empty(), tensors.get(name)) {
                pixels(name, &tensor.flatten_all()?.to_vec1()?, 0.0, value).with_context(|| args.from.display().to_string())?;
            }
        }
    }
    let network = import::network(config, &tensors, naming, &args.from)?;
    let macs = network.config().macs(800, 800, 1000, 1).total();
    let meta = ExportMeta {
        name: args.name.clone().unwrap_or_else(|| args.arch.clone()),
        skeleton,
        thresholds: provisional(),
        parent: None,
        dataset_sha256: None,
        ap: None,
    };
    let precision = if args.weights == Weights::F16 { Precision::F16 } else { Precision::F32 };
    let (bundle, ()) = build(&args.out, |part| -> anyhow::Result<()> {
        write_bundle_as(&network, &meta, part, precision)?;
        write_golden(part, &[("import", picture)])?;
        Ok(())
    })?;
    let mut people = 0;
    for golden in &bundle.manifest().golden {
        people += golden_detections(&bundle, golden)?.len();
    }
    let bytes: u64 = bundle.manifest().files.values().map(|file| file.bytes).sum();
    let parameters = network.params().parameters();
    if args.json {
        let report = serde_json::json!({
            "bundle": bundle.root(), "sha256": hex(&bundle.sha256()), "names": naming.describe(), "tensors": tensors.len(),
            "parameters": parameters, "macs": macs, "bytes": bytes, "people": people,
        });
        omnilabel_console::say!("{report}");
        return Ok(());
    }
    omnilabel_console::say!("imported {} ({}) as {}", args.from.display(), naming.describe(), bundle.root().display());
    omnilabel_console::say!("{} tensors, {parameters} parameters, {:.1} GMAC at 800 x 800 px", tensors.len(), macs as f64 / 1e9);
    omnilabel_console::say!("{bytes} bytes, sha256 {}", &hex(&bundle.sha256())[..12]);
    omnilabel_console::say!("found {people} people on the golden frame");
    if people == 0 {
        omnilabel_console::say!("warning: a golden frame without people proves little on a device; --image takes one with people");
    }
    omnilabel_console::say!("thresholds are provisional; `omnilabel-trainer distill` calibrates them");
    Ok(())
}

/// Values from 0 to 255 as values from 0 to 1.
fn pixels(name: &str, given: &[f32], least: f32, target: &mut [f32; 3]) -> anyhow::Result<()> {
    match *given {
        [] => Ok(()),
        [a, b, c] if [a, b, c].iter().all(|value| value.is_finite() && (least..=255.0).contains(value)) => {
            *target = [a, b, c].map(|value| value / 255.0);
            Ok(())
        }
        _ => bail!("{name} is {given:?}, expected three numbers from {least} to 255"),
    }
}
