//! How fast training's arithmetic is: this crate's convolution against candle's own, and whole steps of the `nano` network.
//!
//! ```text
//! cargo run --release -p omnilabel-rcnn --example train_speed            # layers, then the network
//! cargo run --release -p omnilabel-rcnn --example train_speed network    # the network alone
//! ```

use candle_core::{Device, Result, Tensor, Var};
use omnilabel_keypoints::geometry::Rect;
use omnilabel_rcnn::config::Config;
use omnilabel_rcnn::network::Network;
use omnilabel_rcnn::ops::{ConvSpec, conv2d};
use std::time::Instant;

/// The best of several runs, in seconds: other processes can only slow a run down.
fn best(mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    f()?;
    let mut best = f64::INFINITY;
    for _ in 0..7 {
        let start = Instant::now();
        f()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn random(shape: &[usize]) -> Result<Tensor> {
    let len: usize = shape.iter().product();
    let data: Vec<f32> = (0..len).map(|i| ((i % 65_521) as f32 * 12.9898).sin()).collect();
    Tensor::from_vec(data, shape, &Device::Cpu)
}

/// (name, images, input channels, output channels, kernel, input side, stride)
const LAYERS: [(&str, usize, usize, usize, usize, usize, usize); 9] = [
    ("stem", 16, 3, 24, 3, 128, 2),
    ("layer1.conv1", 16, 24, 32, 3, 64, 2),
    ("layer1.conv2", 16, 32, 32, 3, 32, 1),
    ("layer2.conv2", 16, 64, 64, 3, 16, 1),
    ("layer3.conv2", 16, 128, 128, 3, 8, 1),
    ("layer4.conv2", 16, 160, 160, 3, 4, 1),
    ("fpn.inner P2", 16, 32, 48, 1, 32, 1),
    ("fpn.layer P2", 16, 48, 48, 3, 32, 1),
    ("keypoint conv", 128, 48, 48, 3, 14, 1),
];

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    if std::env::args().nth(1).as_deref() != Some("network") {
        layers()?;
    }
    network()
}

/// Convolutions as in the `nano` network, forward and backward.
fn layers() -> Result<()> {
    println!("{:16} {:>9} {:>9} {:>9} {:>9} {:>7}", "layer", "fwd ms", "f+b ms", "GFLOP/s", "candle", "ratio");
    let (mut ours, mut theirs) = (0.0, 0.0);
    for (name, n, c, o, k, side, stride) in LAYERS {
        let (x, w) = (Var::from_tensor(&random(&[n, c, side, side])?)?, Var::from_tensor(&random(&[o, c, k, k])?)?);
        let spec = ConvSpec { stride, ..ConvSpec::padded(k / 2) };
        let forward = best(|| conv2d(&x, &w, None, spec).map(drop))?;
        let both = best(|| conv2d(&x, &w, None, spec)?.sum_all()?.backward().map(drop))?;
        let stock = best(|| x.conv2d(&w, k / 2, stride, 1, 1)?.sum_all()?.backward().map(drop))?;
        let flops = 6.0 * (n * o * c * k * k * (side / stride).pow(2)) as f64;
        println!(
            "{name:16} {:9.2} {:9.2} {:9.1} {:9.1} {:7.1}",
            1e3 * forward,
            1e3 * both,
            flops / both / 1e9,
            flops / stock / 1e9,
            stock / both
        );
        ours += both;
        theirs += stock;
    }
    println!("all layers: {:.1} ms, candle's own {:.1} ms, ratio {:.1}", 1e3 * ours, 1e3 * theirs, theirs / ours);
    Ok(())
}

/// A step's forward and backward passes through the whole network.
fn network() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let network = Network::new(Config::nano(14), 1)?;
    let spec = &network.config().network;
    let images = random(&[16, 3, 128, 128])?;
    network.calibrate(&images)?;
    let rois = |per_image: usize| -> Vec<(usize, Rect)> {
        (0..16 * per_image)
            .map(|i| (i / per_image, Rect::new((i % 7) as f32 * 6.0, 4.0, 60.0 + (i % 5) as f32 * 12.0, 90.0 + (i % 3) as f32 * 12.0)))
            .collect()
    };
    let (boxes, people) = (rois(network.config().roi_batch), rois(network.config().keypoint_rois.unwrap_or(8)));
    let parts = |backward: bool| -> std::result::Result<[f64; 4], omnilabel_rcnn::RcnnError> {
        let start = Instant::now();
        let levels = network.forward_backbone(&images)?;
        let backbone = start.elapsed().as_secs_f64();
        let (classes, deltas) = network.box_head(&network.pool(&levels.features, &boxes, spec.box_roi)?)?;
        let boxes_done = start.elapsed().as_secs_f64();
        let heatmaps = network.keypoint_head(&network.pool(&levels.features, &people, spec.keypoint_roi)?)?;
        let forward = start.elapsed().as_secs_f64();
        if backward {
            let mut loss = (classes.sum_all()? + deltas.sum_all()?)?.add(&heatmaps.sum_all()?)?;
            for level in levels.objectness.iter().chain(&levels.deltas) {
                loss = (loss + level.sum_all()?)?;
            }
            loss.backward()?;
        }
        Ok([backbone, boxes_done - backbone, forward - boxes_done, start.elapsed().as_secs_f64()])
    };
    let mut best = [f64::INFINITY; 4];
    for _ in 0..8 {
        let parts = parts(true)?;
        best.iter_mut().zip(parts).for_each(|(best, part)| *best = best.min(part));
    }
    let [backbone, box_head, keypoint_head, both] = best.map(|s| 1e3 * s);
    println!(
        "nano, 16 images of 128x128, {} parameters, {} box and {} keypoint RoIs per image:",
        network.params().count(),
        boxes.len() / 16,
        people.len() / 16
    );
    println!("  forward: backbone {backbone:.1} ms, box head {box_head:.1} ms, keypoint head {keypoint_head:.1} ms");
    println!("  forward and backward: {both:.1} ms, {:.1} images/s", 16e3 / both);
    Ok(())
}
