//! `omnilabel-trainer presets`

use crate::arm::provisional;
use crate::start;
use anyhow::{Context, ensure};
use clap::builder::PossibleValuesParser;
use omnilabel_bundle::Bundle;
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Size;
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_rcnn::config::{Config, PRESETS, SHORT_SIDES};
use omnilabel_rcnn::export::{ExportMeta, write_bundle_as};
use omnilabel_rcnn::network::Network;
use omnilabel_rcnn::params::Precision;
use omnilabel_runtime::{Teacher, ViewPlan};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Export these presets with random weights and label a picture with each, in a process of its own
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(PRESETS))]
    measure: Vec<String>,
    /// Short side of the picture, px; each preset's own without it
    #[arg(long)]
    short_side: Option<u32>,
    /// Worker threads; as many as there are cores without it
    #[arg(long)]
    threads: Option<usize>,
    /// Pictures that are labelled; the fastest counts
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Print one JSON object per preset
    #[arg(long)]
    json: bool,
    /// What the measuring process runs
    #[arg(long, hide = true)]
    run: Option<PathBuf>,
}

/// One preset.
#[derive(Serialize)]
struct Row {
    preset: String,
    /// Frozen batch-norms not counted.
    parameters: usize,
    /// Side of the square input that `macs` is counted at, px.
    side: u32,
    /// Multiply-accumulates of that input with the preset's number of RoIs and one person.
    macs: u64,
    #[serde(flatten)]
    measured: Option<Measured>,
}

#[derive(Serialize)]
struct Measured {
    /// All files of the bundle.
    bundle_bytes_f32: u64,
    bundle_bytes_f16: u64,
    picture: [u32; 2],
    threads: usize,
    #[serde(flatten)]
    run: Run,
}

/// What the measuring process prints.
#[derive(Serialize, Deserialize)]
struct Run {
    /// Wall time of one view of one picture with at most one person, the plans made and warm.
    seconds: f64,
    /// High-water mark of the process's memory; nothing where the system does not tell.
    peak_bytes: Option<u64>,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    ensure!((1..=256).contains(&threads), "--threads is {threads}, expected 1 to 256");
    ensure!((1..=1000).contains(&args.runs), "--runs is {}, expected 1 to 1000", args.runs);
    if let Some(bundle) = &args.run {
        omnilabel_console::say!("{}", serde_json::to_string(&label(bundle, threads, args.runs)?)?);
        return Ok(());
    }
    if let Some(side) = args.short_side {
        ensure!(SHORT_SIDES.contains(&side), "--short-side is {side}, expected 16 to 4096 px");
    }
    if !args.json {
        omnilabel_console::say!("preset                 parameters   GMAC at      bundle f32   bundle f16  s/image  peak memory");
    }
    for name in PRESETS {
        let mut config = start::preset(name, Skeleton::coco17().len())?;
        if let Some(side) = args.short_side {
            start::resize(&mut config, side);
        }
        let side = config.input.short_side;
        let rois = config.network.rpn.post_nms_top_n as usize;
        let row = Row {
            preset: name.to_owned(),
            parameters: config.parameters()?,
            side,
            macs: config.macs(side as usize, side as usize, rois, 1).total(),
            measured: if args.measure.iter().any(|m| m == name) { Some(measure(config, threads, args.runs)?) } else { None },
        };
        if args.json {
            omnilabel_console::say!("{}", serde_json::to_string(&row)?);
        } else {
            print(&row);
        }
    }
    Ok(())
}

fn print(row: &Row) {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let Row { preset, parameters, side, macs, measured } = row;
    let mut line = format!("{preset:<21} {parameters:>11} {:>7.2} {side:>4} px", *macs as f64 / 1e9);
    if let Some(m) = measured {
        let peak = m.run.peak_bytes.map_or("unknown".to_owned(), |bytes| format!("{:.0} MB", mb(bytes)));
        line += &format!("  {:>9.1} MB {:>9.1} MB {:>8.2}  {peak:>11}", mb(m.bundle_bytes_f32), mb(m.bundle_bytes_f16), m.run.seconds);
    }
    omnilabel_console::say!("{line}");
}

/// Exports to a folder that goes with the measurement.
fn measure(mut config: Config, threads: usize, runs: usize) -> anyhow::Result<Measured> {
    // Random weights would see people everywhere; the keypoint head's cost is stated for one.
    config.network.max_detections = 1;
    let picture = [config.input.short_side * 4 / 3, config.input.short_side];
    let network = Network::new(config, 1)?;
    let meta = ExportMeta {
        name: network.config().name.clone(),
        skeleton: Skeleton::coco17(),
        thresholds: provisional(),
        parent: None,
        dataset_sha256: None,
        ap: None,
    };
    let folder = Folder(std::env::temp_dir().join(format!("omnilabel-presets-{}", std::process::id())));
    let export = |precision| -> anyhow::Result<(PathBuf, u64)> {
        let path = folder.0.join(format!("{precision:?}"));
        let bundle = write_bundle_as(&network, &meta, &path, precision)?;
        Ok((path, bundle.manifest().files.values().map(|file| file.bytes).sum()))
    };
    let ((path, bundle_bytes_f32), (_, bundle_bytes_f16)) = (export(Precision::F32)?, export(Precision::F16)?);
    drop(network);
    // The same program under the same role: `omnilabel trainer presets` or `omnilabel-trainer presets`.
    let program = std::env::current_exe().context("the program's own path")?;
    let role = std::env::args_os().skip(1).take_while(|word| word != "presets");
    let output = std::process::Command::new(program)
        .args(role)
        .args(["presets", "--threads", &threads.to_string(), "--runs", &runs.to_string(), "--run"])
        .arg(&path)
        .output()
        .context("the measuring process")?;
    ensure!(output.status.success(), "the measuring process: {}", String::from_utf8_lossy(&output.stderr));
    let run = serde_json::from_slice(&output.stdout).context("what the measuring process printed")?;
    Ok(Measured { bundle_bytes_f32, bundle_bytes_f16, picture, threads, run })
}

/// A folder that is removed at the end, also after an error.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn label(bundle: &Path, threads: usize, runs: usize) -> anyhow::Result<Run> {
    let bundle = Bundle::open(bundle)?;
    let teacher = Teacher::load(&bundle, threads)?;
    let plan = ViewPlan::single(bundle.manifest());
    let side = bundle.manifest().input.short_side;
    let (width, height) = (side * 4 / 3, side);
    let pixel = |i: u32| [(i % width / 3) as u8, (i / width / 2) as u8, (i % 251) as u8];
    let frame = Frame { size: Size { width, height }, rgb: (0..width * height).flat_map(pixel).collect() };
    teacher.detect(&frame, &plan)?;
    let mut seconds = f64::INFINITY;
    for _ in 0..runs {
        let start = Instant::now();
        teacher.detect(&frame, &plan)?;
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    Ok(Run { seconds, peak_bytes: peak_bytes() })
}

/// Linux keeps it in `/proc/self/status`, in kB.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kb| 1024 * kb)
}
