//! `omnilabel-edge model wrap`: a user's own ONNX pose model becomes a bundle.

use crate::cli::boxes;
use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use omnilabel_bundle::{Channels, CropSpec, IMAGENET, Letterbox, OneStageSpec, Refine, Values};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Rect;
use omnilabel_keypoints::label::Thresholds;
use omnilabel_runtime::wrap::{WrapKind, WrapRequest, Wrapped, drawn_person, wrap};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Kernel of DARK for heatmap targets of σ = 2.
const DARK_BLUR: u32 = 11;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A map per keypoint: SimpleBaseline, HRNet, ViTPose (top-down).
    Heatmap,
    /// Bins along x and y per keypoint: RTMPose (top-down).
    Simcc,
    /// Everybody at once: YOLOv8-pose, YOLO11-pose.
    OneStage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RefineArg {
    None,
    Quarter,
    Dark,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ValuesArg {
    Peak,
    Sigmoid,
    Softmax,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Range {
    #[value(name = "1")]
    One,
    #[value(name = "255")]
    Bytes,
}

impl Range {
    const fn value(self) -> f32 {
        match self {
            Self::One => 1.0,
            Self::Bytes => 255.0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ChannelsArg {
    Rgb,
    Bgr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LetterboxArg {
    Centre,
    TopLeft,
}

/// Arguments of `model wrap`.
#[derive(Args)]
pub(super) struct WrapArgs {
    /// The model. Weights in files beside it are taken along.
    #[arg(long)]
    onnx: PathBuf,
    /// What the model's outputs are.
    #[arg(long, value_enum)]
    kind: Kind,
    /// The bundle's folder; must not exist, or be empty.
    #[arg(long)]
    out: PathBuf,
    /// HEIGHTxWIDTH of the input in pixels, such as 256x192; what the model fixes when not given.
    #[arg(long, value_name = "HEIGHTxWIDTH")]
    input: Option<String>,
    /// `coco17`, or a JSON file with COCO's `categories`.
    #[arg(long, default_value = "coco17")]
    skeleton: String,
    /// Name of the model; the file's when not given.
    #[arg(long)]
    name: Option<String>,
    /// Subtracted from the pixels, per channel in the order of --channels: three numbers on the scale of --range. ImageNet's for top-down
    /// models, 0 for one-stage models when not given.
    #[arg(long, value_parser = three, allow_hyphen_values = true)]
    mean: Option<[f32; 3]>,
    /// What is left is divided by these. ImageNet's for top-down models, 1 (of --range 1) for one-stage models when not given.
    #[arg(long, value_parser = three)]
    std: Option<[f32; 3]>,
    /// The scale of pixels that --mean and --std are given on: 1 (pixels from 0 to 1) or 255 (mmpose's 123.675,116.28,103.53).
    #[arg(long, value_enum, default_value = "1")]
    range: Range,
    /// Order of the input's channels.
    #[arg(long, value_enum, default_value = "rgb")]
    channels: ChannelsArg,
    /// The output, where several would do.
    #[arg(long)]
    output: Option<String>,
    /// SimCC's output along x, where names and sizes do not tell.
    #[arg(long, requires = "output_y")]
    output_x: Option<String>,
    /// SimCC's output along y.
    #[arg(long, requires = "output_x")]
    output_y: Option<String>,
    /// A top-down model's boxes grow by this factor before they are cut out; 1.25 when not given.
    #[arg(long)]
    padding: Option<f32>,
    /// Unbiased data processing: the model was trained with corner pixels upon each other (mmpose's UDPHeatmap, ViTPose).
    #[arg(long)]
    udp: bool,
    /// What the values of heatmaps or bins are: confidences, or logits of a sigmoid or softmax; `peak` when not given.
    #[arg(long, value_enum)]
    values: Option<ValuesArg>,
    /// How a heatmap's peak is placed between its cells; `quarter` when not given.
    #[arg(long, value_enum)]
    refine: Option<RefineArg>,
    /// Side of DARK's Gaussian in cells: 11 for targets of σ = 2, 17 for σ = 3; 11 when not given.
    #[arg(long)]
    dark_blur: Option<u32>,
    /// Shift the heatmaps of mirrored crops by a cell (SimpleBaseline's SHIFT_HEATMAP).
    #[arg(long)]
    shift_flipped: bool,
    /// Classes of a one-stage model; 1 when not given.
    #[arg(long)]
    classes: Option<u32>,
    /// The class of people; 0 when not given.
    #[arg(long)]
    class: Option<u32>,
    /// An objectness stands before the class scores (YOLOv7-pose).
    #[arg(long)]
    objectness: bool,
    /// Where a one-stage model's picture lies in its input; `centre` when not given.
    #[arg(long, value_enum)]
    letterbox: Option<LetterboxArg>,
    /// Grey level around the picture; 114 when not given.
    #[arg(long)]
    fill: Option<u8>,
    /// What sides of a one-stage model's dynamic input are multiples of; 32 when not given.
    #[arg(long)]
    stride: Option<u32>,
    /// A one-stage model's people at or below this score are dropped; 0.05 when not given.
    #[arg(long)]
    score_threshold: Option<f32>,
    /// IoU of a one-stage model's NMS; 0.7 when not given.
    #[arg(long)]
    nms_iou: Option<f32>,
    /// The most people of a frame that a one-stage model finds; 100 when not given.
    #[arg(long)]
    max_detections: Option<u32>,
    /// τ: instances from this score on are hard labels.
    #[arg(long, default_value_t = 0.5)]
    instance_threshold: f32,
    /// τ_k: keypoints from this probability on are labelled.
    #[arg(long, default_value_t = 0.2)]
    keypoint_threshold: f32,
    /// Instances below this score are not published.
    #[arg(long, default_value_t = 0.05)]
    floor: f32,
    /// A bundle that finds people for a top-down model; it is copied into the bundle.
    #[arg(long)]
    detector: Option<PathBuf>,
    /// A picture to try the model on, which becomes the golden frame; a drawn person when not given.
    #[arg(long)]
    image: Option<PathBuf>,
    /// Boxes to try a top-down model in: JSON, `[{"image_id": 1, "bbox": [x, y, w, h]}]`; the whole picture when not given.
    #[arg(long, conflicts_with = "detector")]
    boxes: Option<PathBuf>,
    /// Writes what was found as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Summary<'w> {
    bundle: &'w Path,
    sha256: String,
    kind: &'w str,
    input: [u32; 2],
    dynamic: bool,
    graph: &'w omnilabel_runtime::GraphInfo,
    outputs: Vec<Output<'w>>,
    instances: usize,
    warnings: &'w [String],
}

#[derive(Serialize)]
struct Output<'w> {
    name: &'w str,
    shape: &'w [usize],
}

impl WrapArgs {
    fn request(&self) -> anyhow::Result<WrapRequest> {
        let top_down = self.kind != Kind::OneStage;
        let (mean, std) = self.normalisation(top_down)?;
        let name = match (&self.name, self.onnx.file_stem().and_then(|stem| stem.to_str())) {
            (Some(name), _) => name.clone(),
            (None, Some(stem)) => stem.to_owned(),
            (None, None) => bail!("{}: expected an ONNX file", self.onnx.display()),
        };
        let values = match self.values.unwrap_or(ValuesArg::Peak) {
            ValuesArg::Peak => Values::Peak,
            ValuesArg::Sigmoid => Values::Sigmoid,
            ValuesArg::Softmax => Values::Softmax,
        };
        let crop = CropSpec { padding: self.padding.unwrap_or(1.25), udp: self.udp };
        let kind = match self.kind {
            Kind::Heatmap => WrapKind::Heatmap {
                output: self.output.clone(),
                crop,
                values,
                refine: match self.refine.unwrap_or(RefineArg::Quarter) {
                    RefineArg::None => Refine::None,
                    RefineArg::Quarter => Refine::Quarter,
                    RefineArg::Dark => Refine::Dark { blur: self.dark_blur.unwrap_or(DARK_BLUR) },
                },
                shift_flipped: self.shift_flipped,
            },
            Kind::Simcc => WrapKind::Simcc { outputs: self.output_x.clone().zip(self.output_y.clone()), crop, values },
            Kind::OneStage => WrapKind::OneStage {
                spec: OneStageSpec {
                    output: self.output.clone().unwrap_or_default(),
                    classes: self.classes.unwrap_or(1),
                    class: self.class.unwrap_or(0),
                    objectness: self.objectness,
                    letterbox: match self.letterbox.unwrap_or(LetterboxArg::Centre) {
                        LetterboxArg::Centre => Letterbox::Centre,
                        LetterboxArg::TopLeft => Letterbox::TopLeft,
                    },
                    fill: self.fill.unwrap_or(114),
                    score_threshold: self.score_threshold.unwrap_or(0.05),
                    nms_iou: self.nms_iou.unwrap_or(0.7),
                    max_detections: self.max_detections.unwrap_or(100),
                },
                stride: self.stride.unwrap_or(32),
            },
        };
        if !top_down && let Some(detector) = &self.detector {
            bail!("--detector {}: a one-stage model finds people by itself", detector.display());
        }
        self.check()?;
        Ok(WrapRequest {
            onnx: self.onnx.clone(),
            out: self.out.clone(),
            name,
            skeleton: omnilabel_coco::named_skeleton(&self.skeleton).context("--skeleton: expected `coco17` or COCO's `categories`")?,
            input: self.input.as_deref().map(size).transpose()?,
            mean,
            std,
            channels: match self.channels {
                ChannelsArg::Rgb => Channels::Rgb,
                ChannelsArg::Bgr => Channels::Bgr,
            },
            kind,
            thresholds: Thresholds { instance: self.instance_threshold, keypoint: self.keypoint_threshold, floor: self.floor },
            detector: self.detector.clone(),
            frame: match &self.image {
                Some(path) => Frame::open(path)?,
                None => drawn_person(),
            },
            boxes: match &self.boxes {
                Some(path) => Some(given(path)?),
                None => None,
            },
        })
    }

    /// Refuses a flag that the kind has no use for: whoever gave it takes the model for another. And numbers out of range, by their flag.
    fn check(&self) -> anyhow::Result<()> {
        let (heatmap, simcc, one_stage) = (self.kind == Kind::Heatmap, self.kind == Kind::Simcc, self.kind == Kind::OneStage);
        let flags = [
            ("--output", self.output.is_some(), heatmap || one_stage),
            ("--output-x", self.output_x.is_some(), simcc),
            ("--padding", self.padding.is_some(), !one_stage),
            ("--udp", self.udp, !one_stage),
            ("--values", self.values.is_some(), !one_stage),
            ("--refine", self.refine.is_some(), heatmap),
            ("--dark-blur", self.dark_blur.is_some(), heatmap),
            ("--shift-flipped", self.shift_flipped, heatmap),
            ("--boxes", self.boxes.is_some(), !one_stage),
            ("--classes", self.classes.is_some(), one_stage),
            ("--class", self.class.is_some(), one_stage),
            ("--objectness", self.objectness, one_stage),
            ("--letterbox", self.letterbox.is_some(), one_stage),
            ("--fill", self.fill.is_some(), one_stage),
            ("--stride", self.stride.is_some(), one_stage),
            ("--score-threshold", self.score_threshold.is_some(), one_stage),
            ("--nms-iou", self.nms_iou.is_some(), one_stage),
            ("--max-detections", self.max_detections.is_some(), one_stage),
        ];
        if let Some((flag, ..)) = flags.into_iter().find(|&(_, given, fits)| given && !fits) {
            let kind = self.kind.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
            bail!("{flag}: a model of --kind {kind} has no use for it");
        }
        if self.dark_blur.is_some() && self.refine != Some(RefineArg::Dark) {
            bail!("--dark-blur is for --refine dark");
        }
        let shares = [
            ("--instance-threshold", Some(self.instance_threshold)),
            ("--keypoint-threshold", Some(self.keypoint_threshold)),
            ("--floor", Some(self.floor)),
            ("--score-threshold", self.score_threshold),
            ("--nms-iou", self.nms_iou),
        ];
        if let Some((flag, Some(value))) = shares.into_iter().find(|(_, value)| value.is_some_and(|v| !(0.0..=1.0).contains(&v))) {
            bail!("{flag} is {value}, expected 0 to 1");
        }
        if self.instance_threshold < self.floor {
            bail!(
                "--instance-threshold is {}, below --floor {}: what is not published cannot be a label",
                self.instance_threshold,
                self.floor
            );
        }
        if let Some(value) = self.std.iter().flatten().find(|value| value.is_nan() || **value <= 0.0) {
            bail!("--std has {value}, expected numbers above 0");
        }
        Ok(())
    }

    /// Mean and deviation of pixels in `[0, 1]`.
    fn normalisation(&self, top_down: bool) -> anyhow::Result<([f32; 3], [f32; 3])> {
        let (mean, std) = if top_down { IMAGENET } else { ([0.0; 3], [1.0; 3]) };
        let range = self.range.value();
        let given = self.mean.iter().chain(&self.std).flatten();
        if let Some(value) = given.copied().find(|value| *value > 1.0).filter(|_| range == 1.0) {
            bail!("--mean and --std have {value}, which is no number of pixels from 0 to 1: say --range 255");
        }
        // A deviation of 1 on pixels from 0 to 255 is usual, a mean of at most 1 beside it is not.
        let small = |given: Option<[f32; 3]>| given.is_some_and(|given| given.iter().all(|value| *value <= 1.0) && given != [0.0; 3]);
        if range != 1.0 && small(self.mean) && self.std.is_none_or(|std| small(Some(std))) {
            bail!("--mean {:?} is of pixels from 0 to 1: say --range 1", self.mean.unwrap_or_default());
        }
        let of = |given: Option<[f32; 3]>, default: [f32; 3]| given.map_or(default, |given| given.map(|value| value / range));
        Ok((of(self.mean, mean), of(self.std, std)))
    }
}

/// All boxes of the file, whatever their image: there is only one.
fn given(path: &Path) -> anyhow::Result<Vec<(Rect, f32)>> {
    let given = boxes::read(path, |_| true)?;
    match given.left_out.first() {
        Some(reason) => bail!("{reason}"),
        None => Ok(given.boxes.into_values().flatten().map(|(_, rect, score)| (rect, score)).collect()),
    }
}

fn three(text: &str) -> Result<[f32; 3], String> {
    let numbers: Result<Vec<f32>, _> = text.split(',').map(str::parse).collect();
    numbers.ok().and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| "expected three numbers, such as 0.485,0.456,0.406".to_owned())
}

fn size(text: &str) -> anyhow::Result<(u32, u32)> {
    let parsed = text.split_once('x').and_then(|(height, width)| height.parse().ok().zip(width.parse().ok()));
    parsed.with_context(|| format!("--input is {text:?}, expected HEIGHTxWIDTH in pixels, such as 256x192"))
}

pub(super) fn run(args: &WrapArgs) -> anyhow::Result<()> {
    let wrapped = wrap(&args.request()?)?;
    if args.json {
        omnilabel_console::say!("{}", serde_json::to_string(&summary(&wrapped))?);
        return Ok(());
    }
    let summary = summary(&wrapped);
    omnilabel_console::say!("wrapped {} as {} ({})", args.onnx.display(), summary.bundle.display(), summary.kind);
    for input in &summary.graph.inputs {
        omnilabel_console::say!("input   {input}");
    }
    for output in &summary.graph.outputs {
        omnilabel_console::say!("output  {output}");
    }
    let [height, width] = summary.input;
    omnilabel_console::say!("sees    {height} x {width} px (height x width){}", if summary.dynamic { ", other sizes too" } else { "" });
    for Output { name, shape } in &summary.outputs {
        omnilabel_console::say!("reads   {name} {shape:?}");
    }
    let (verb, what) = if wrapped.finds_people { ("found", "people on") } else { ("tried", "boxes on") };
    omnilabel_console::say!("{verb}   {} {what} the picture, which is the golden frame now", summary.instances);
    for warning in summary.warnings {
        omnilabel_console::say!("warning: {warning}");
    }
    Ok(())
}

fn summary(wrapped: &Wrapped) -> Summary<'_> {
    let manifest = wrapped.bundle.manifest();
    let (height, width) = manifest.network.pose().map_or((0, 0), |pose| (pose.height, pose.width));
    Summary {
        bundle: wrapped.bundle.root(),
        sha256: omnilabel_bundle::hex(&wrapped.bundle.sha256()),
        kind: manifest.architecture.strip_prefix("onnx-").unwrap_or(&manifest.architecture),
        input: [height, width],
        dynamic: wrapped.dynamic,
        graph: &wrapped.graph,
        outputs: wrapped.outputs.iter().map(|(name, shape)| Output { name, shape }).collect(),
        instances: wrapped.detections.len(),
        warnings: &wrapped.warnings,
    }
}
