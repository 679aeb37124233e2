//! Trains on a COCO keypoint folder and, with `--val`, writes single-view results of the trained network as COCO JSON.
//!
//! ```text
//! cargo run --release --example train_folder -p omnilabel-rcnn -- TRAIN_DIR --out RUN_DIR --steps 300 [--first 0.3] [--val DIR]
//!     [--init FILE.safetensors] [--only-init]
//! ```
//!
//! Writes to RUN_DIR: `options.json` and `config.json` (what ran), `init.safetensors` (the weights after calibration on the first
//! batch: what a reference implementation starts from), `losses.csv`, `weights.safetensors`, `results.json`. With `--only-init` nothing is
//! trained: a reference implementation then starts as an arm of `omnilabel trainer train` does.

use omnilabel_coco::{Dataset, ResultRecord, from_continuous, to_continuous, write_results};
use omnilabel_detect::frame::{Frame, transform};
use omnilabel_detect::proposals::{LevelOutput, detections, proposals};
use omnilabel_keypoints::geometry::{Point, Rect, Size};
use omnilabel_keypoints::heatmap::{MapKind, decode};
use omnilabel_keypoints::view::View;
use omnilabel_rcnn::augment::{Person, Sample};
use omnilabel_rcnn::config::Config;
use omnilabel_rcnn::network::Network;
use omnilabel_rcnn::train::{Init, Run, TrainOptions};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

type Error = Box<dyn std::error::Error>;

struct Arguments {
    train: PathBuf,
    out: PathBuf,
    val: Option<PathBuf>,
    /// Share of the training images, by ascending id, that is used.
    first: f64,
    short_side: Option<u32>,
    /// A configuration instead of the preset.
    config: Option<PathBuf>,
    /// Take the images in their order instead of shuffled.
    ordered: bool,
    /// First weights; random without it.
    init: Option<PathBuf>,
    /// Stop before the first step.
    only_init: bool,
    options: TrainOptions,
}

fn arguments() -> Result<Arguments, Error> {
    let mut words = std::env::args().skip(1);
    let mut train = None;
    let mut parsed = Arguments {
        train: PathBuf::new(),
        out: PathBuf::from("run"),
        val: None,
        first: 1.0,
        short_side: None,
        config: None,
        ordered: false,
        init: None,
        only_init: false,
        options: TrainOptions::default(),
    };
    while let Some(word) = words.next() {
        if !word.starts_with("--") {
            train = Some(PathBuf::from(word));
            continue;
        }
        let flag = match word.as_str() {
            "--ordered" => Some(&mut parsed.ordered),
            "--only-init" => Some(&mut parsed.only_init),
            _ => None,
        };
        if let Some(flag) = flag {
            *flag = true;
            continue;
        }
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--out" => parsed.out = value.into(),
            "--init" => parsed.init = Some(value.into()),
            "--val" => parsed.val = Some(value.into()),
            "--first" => parsed.first = value.parse()?,
            "--config" => parsed.config = Some(value.into()),
            "--short-side" => parsed.short_side = Some(value.parse()?),
            // A JSON object with any of the options.
            "--options" => parsed.options = serde_json::from_str(&value)?,
            "--steps" => parsed.options.steps = value.parse()?,
            "--batch" => parsed.options.batch = value.parse()?,
            "--lr" => parsed.options.lr = value.parse()?,
            "--warmup" => parsed.options.warmup = value.parse()?,
            "--seed" => parsed.options.seed = value.parse()?,
            _ => return Err(format!("unknown option {word}").into()),
        }
    }
    parsed.train = train.ok_or("the folder to train on is missing")?;
    Ok(parsed)
}

fn load(dataset: &Dataset, first: f64) -> Result<Vec<Sample>, Error> {
    let count = (dataset.images.len() as f64 * first).floor() as usize;
    let mut samples = Vec::new();
    for image in &dataset.images[..count] {
        let mut sample =
            Sample { frame: Frame::open(&dataset.image_path(image))?, people: Vec::new(), ignore: Vec::new(), generated: false };
        for annotation in dataset.annotations_of(image.id) {
            let [x, y, width, height] = annotation.bbox.map(|v| v as f32);
            let rect = Rect::from_xywh(x, y, width, height);
            let point = |p: &[f64]| (p[2] > 0.0).then(|| Point { x: to_continuous(p[0]), y: to_continuous(p[1]) });
            let keypoints: Vec<Option<Point>> = annotation.keypoints.chunks_exact(3).map(point).collect();
            if annotation.iscrowd != 0 || keypoints.iter().all(Option::is_none) {
                sample.ignore.push(rect);
            } else {
                sample.people.push(Person { rect, keypoints, soft: None });
            }
        }
        if !sample.people.is_empty() {
            samples.push(sample);
        }
    }
    Ok(samples)
}

/// Single-view inference at the base scale, by candle.
fn predict(network: &Network, frame: &Frame, image_id: u64) -> Result<Vec<ResultRecord>, Error> {
    let config = network.config();
    let spec = &config.network;
    let net = transform(frame, &config.input, View { short_side: config.input.short_side, flip: false });
    let size: Size = net.geometry.net();
    let image = candle_core::Tensor::from_vec(net.data, (1, 3, net.rows, net.columns), &candle_core::Device::Cpu)?;
    let backbone = network.forward_backbone(&image)?;
    let host = |t: &candle_core::Tensor| t.flatten_all()?.to_vec1::<f32>();
    let mut maps = Vec::new();
    for (objectness, deltas) in backbone.objectness.iter().zip(&backbone.deltas) {
        let (_, _, rows, columns) = objectness.dims4()?;
        maps.push((host(objectness)?, host(deltas)?, rows, columns));
    }
    let levels: Vec<LevelOutput<'_>> =
        maps.iter().map(|(objectness, deltas, rows, columns)| LevelOutput { objectness, deltas, rows: *rows, columns: *columns }).collect();
    let rois: Vec<Rect> = proposals(spec, &spec.rpn, &levels, size).into_iter().map(|(rect, _)| rect).collect();
    if rois.is_empty() {
        return Ok(Vec::new());
    }
    let on_image = |rects: &[Rect]| rects.iter().map(|&rect| (0, rect)).collect::<Vec<(usize, Rect)>>();
    let pooled = network.pool(&backbone.features, &on_image(&rois), spec.box_roi)?;
    let (logits, deltas) = network.box_head(&pooled)?;
    let found = detections(spec, &rois, &host(&logits)?, &host(&deltas)?, size, true);
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let rects: Vec<Rect> = found.iter().map(|&(rect, _)| rect).collect();
    let pooled = network.pool(&backbone.features, &on_image(&rects), spec.keypoint_roi)?;
    let heatmaps = host(&network.keypoint_head(&pooled)?)?;
    let side = spec.heatmap_side as usize;
    let mut records = Vec::new();
    for ((rect, score), maps) in found.into_iter().zip(heatmaps.chunks(config.keypoints * side * side)).take(20) {
        let mut keypoints = Vec::new();
        for map in maps.chunks(side * side) {
            let point = decode(map, side, rect, MapKind::Logits);
            let at = net.geometry.frame_from_net(point.point);
            keypoints.extend([from_continuous(at.x), from_continuous(at.y), f64::from(point.probability)]);
        }
        let r = net.geometry.frame_from_net_rect(rect);
        let bbox = Some([r.x1, r.y1, r.width(), r.height()].map(f64::from));
        records.push(ResultRecord { image_id, category_id: 1, keypoints, score: f64::from(score), bbox });
    }
    Ok(records)
}

fn train(run: &mut Run, samples: &[Sample], ordered: bool, only_init: bool, out: &Path) -> Result<(), Error> {
    let mut log = std::fs::File::create(out.join("losses.csv"))?;
    writeln!(log, "step,objectness,rpn_box,classifier,box_reg,keypoint,total")?;
    let mut rng = ChaCha8Rng::seed_from_u64(run.options.seed);
    let mut order: Vec<usize> = Vec::new();
    let started = Instant::now();
    let mut sums = [0.0f32; 5];
    const EVERY: u64 = 50;
    for step in 0..run.options.steps {
        let mut batch = Vec::new();
        while batch.len() < run.options.batch {
            if order.is_empty() {
                order = (0..samples.len()).collect();
                if ordered {
                    order.reverse();
                } else {
                    order.shuffle(&mut rng);
                }
            }
            batch.extend(order.pop().map(|i| &samples[i]));
        }
        if step == 0 {
            run.calibrate(&batch)?;
            run.network.params().save(&out.join("init.safetensors"))?;
            if only_init {
                return Ok(());
            }
        }
        let losses = run.step(&batch)?;
        let values = losses.named().map(|(_, value)| value);
        writeln!(log, "{step},{},{}", values.map(|v| v.to_string()).join(","), losses.total())?;
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += value / EVERY as f32;
        }
        if (step + 1) % EVERY == 0 {
            let rate = (run.options.batch as u64 * (step + 1)) as f64 / started.elapsed().as_secs_f64();
            let [o, r, c, b, k] = sums;
            println!(
                "step {:5}  objectness {o:.4}  rpn_box {r:.4}  classifier {c:.4}  box {b:.4}  keypoint {k:.4}  {rate:.1} images/s",
                step + 1
            );
            sums = [0.0; 5];
        }
    }
    Ok(())
}

fn main() -> Result<(), Error> {
    let arguments = arguments()?;
    let out = &arguments.out;
    std::fs::create_dir_all(out)?;
    let dataset = Dataset::load(&arguments.train)?;
    let samples = load(&dataset, arguments.first)?;
    let mut config = match &arguments.config {
        Some(path) => serde_json::from_slice(&std::fs::read(path)?)?,
        None => Config::nano(dataset.skeleton.len()),
    };
    if let Some(side) = arguments.short_side {
        config.input.short_side = side;
        config.input.max_long_side = config.input.max_long_side.max(2 * side);
    }
    std::fs::write(out.join("config.json"), serde_json::to_string_pretty(&config)?)?;
    std::fs::write(out.join("options.json"), serde_json::to_string_pretty(&arguments.options)?)?;
    println!("{} images, {} keypoints", samples.len(), dataset.skeleton.len());
    let seed = arguments.options.seed;
    let init = arguments.init.map_or(Init::Seed(seed), |file| Init::File(file, seed));
    let mut run = Run::new(config, arguments.options, dataset.skeleton.flip(), &init)?;
    train(&mut run, &samples, arguments.ordered, arguments.only_init, out)?;
    if arguments.only_init {
        return Ok(());
    }
    run.network.params().save(&out.join("weights.safetensors"))?;
    if let Some(val) = arguments.val {
        let val = Dataset::load(&val)?;
        let started = Instant::now();
        let mut results = Vec::new();
        for image in &val.images {
            results.extend(predict(&run.network, &Frame::open(&val.image_path(image))?, image.id)?);
        }
        println!("{} detections on {} images, {:.1} s", results.len(), val.images.len(), started.elapsed().as_secs_f64());
        write_results(&out.join("results.json"), &results)?;
    }
    Ok(())
}
