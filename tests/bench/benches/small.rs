//! What takes microseconds to milliseconds inside of one process: `cargo bench --workspace --bench small`.
//! Beside other libraries: `tests/bench/compare.sh`.
#![allow(missing_docs, clippy::unwrap_used, reason = "criterion's macros, and a bench may end at an error")]

use candle_core::{Device, Tensor, Var};
use criterion::{Criterion, criterion_group, criterion_main};
use omnilabel_bench::fixture::{Fixture, Source, bundle, frames, read_json, root};
use omnilabel_detect::frame::transform;
use omnilabel_detect::nms::nms;
use omnilabel_detect::roi::{FeatureMap, pool};
use omnilabel_keypoints::geometry::Rect;
use omnilabel_keypoints::heatmap::{MapKind, decode};
use omnilabel_keypoints::view::View;
use omnilabel_keypoints::wire::{Encoding, LabelMsg, Message};
use omnilabel_rcnn::config::Config;
use omnilabel_rcnn::ops::{ConvSpec, conv2d, upsample_bilinear2};
use omnilabel_runtime::{Graphs, TractGraphs};
use omnilabel_trainer::score::{GroundTruth, score};
use std::hint::black_box;
use std::path::PathBuf;

fn work() -> PathBuf {
    root().join("target/bench/fixtures")
}

/// Values between −1 and 1 that repeat by themselves.
fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.37).sin()).collect()
}

/// Boxes of 20 to 60 px that overlap in groups.
fn boxes(count: usize) -> Vec<Rect> {
    let corner = |i: usize| ((i % 40) as f32 * 3.1, (i / 40 % 30) as f32 * 3.7, 20.0 + (i % 41) as f32);
    (0..count).map(corner).map(|(x, y, side)| Rect::new(x, y, x + side, y + side * 1.4)).collect()
}

fn wire(c: &mut Criterion) {
    let labels: Vec<LabelMsg> = read_json(&Source::Labels.make(&work(), None).unwrap().join("labels.json")).unwrap();
    let mut buffer = vec![0; LabelMsg::MAX_BYTES];
    for (name, encoding) in [("cbor", Encoding::Cbor), ("json", Encoding::Json)] {
        c.bench_function(&format!("wire/encode/{name}"), |b| b.iter(|| black_box(labels[0].encode(encoding, &mut buffer).unwrap())));
        let length = labels[0].encode(encoding, &mut buffer).unwrap();
        let bytes = buffer[..length].to_vec();
        c.bench_function(&format!("wire/decode/{name}"), |b| b.iter(|| black_box(LabelMsg::decode(&bytes).unwrap())));
    }
}

fn coco(c: &mut Criterion) {
    let folder = Source::Results(200).make(&work(), None).unwrap();
    let truth = GroundTruth::read(&folder.join("annotations.json")).unwrap();
    let results = omnilabel_coco::read_results(&folder.join("results.json")).unwrap();
    c.bench_function("score/200 images", |b| b.iter(|| black_box(score(&truth, &results).unwrap())));
}

fn detect(c: &mut Criterion) {
    let scores = values(1000);
    let candidates = boxes(1000);
    c.bench_function("nms/1000 boxes", |b| b.iter(|| black_box(nms(&candidates, &scores, 0.7))));
    let network = Config::nano(17).network;
    let sides = [(32, 40), (16, 20), (8, 10), (4, 5)];
    let maps: Vec<Vec<f32>> = sides.map(|(rows, columns)| values(32 * rows * columns)).to_vec();
    let levels: Vec<FeatureMap<'_>> = maps
        .iter()
        .zip(sides)
        .zip(&network.levels)
        .map(|((data, (rows, columns)), level)| FeatureMap { data, channels: 32, rows, columns, scale: 1.0 / level.stride as f32 })
        .collect();
    let rois = boxes(100);
    c.bench_function("roi_align/100 RoIs of 7 x 7", |b| b.iter(|| black_box(pool(&network, &levels, &rois, network.box_roi))));
    let map = values(56 * 56);
    for side in [40.0, 200.0] {
        let rect = Rect::new(3.0, 4.0, 3.0 + side, 4.0 + 2.0 * side);
        c.bench_function(&format!("decode/{side} px wide"), |b| b.iter(|| black_box(decode(&map, 56, rect, MapKind::Logits))));
    }
}

fn graphs(c: &mut Criterion) {
    let folder =
        Source::Network(Fixture { preset: "nano", side: 128, pictures: 1, aspect: (5, 4), most: None }).make(&work(), None).unwrap();
    let bundle = bundle(&folder).unwrap();
    let frame = frames(&folder).unwrap().remove(0);
    let input = &bundle.manifest().input;
    let view = View { short_side: 128, flip: false };
    c.bench_function("transform/160 x 128 px", |b| b.iter(|| black_box(transform(&frame, input, view))));
    let image = transform(&frame, input, view);
    for threads in [1, 2] {
        let graphs = TractGraphs::load(&bundle, threads).unwrap();
        let name = |graph: &str| format!("tract/{threads} threads/{graph}");
        c.bench_function(&name("backbone"), |b| b.iter(|| black_box(graphs.backbone(&image.data, image.rows, image.columns).unwrap())));
        let rois = values(100 * 32 * 7 * 7);
        c.bench_function(&name("box head, 100 RoIs"), |b| b.iter(|| black_box(graphs.box_head(rois.clone(), 100).unwrap())));
        let rois = values(4 * 32 * 14 * 14);
        c.bench_function(&name("keypoint head, 4 RoIs"), |b| b.iter(|| black_box(graphs.keypoint_head(rois.clone(), 4).unwrap())));
    }
}

fn ops(c: &mut Criterion) {
    let tensor = |shape: [usize; 4]| Tensor::from_vec(values(shape.iter().product()), &shape[..], &Device::Cpu).unwrap();
    for (name, n, channels, side) in [("nano stage 1, batch 16", 16, 32, 36), ("resnet50 stage 2", 1, 128, 100)] {
        let x = Var::from_tensor(&tensor([n, channels, side, side])).unwrap();
        let weight = Var::from_tensor(&tensor([channels, channels, 3, 3])).unwrap();
        let spec = ConvSpec::padded(1);
        let forward = || conv2d(x.as_tensor(), weight.as_tensor(), None, spec).unwrap();
        c.bench_function(&format!("conv 3x3/forward/{name}"), |b| b.iter(|| black_box(forward())));
        c.bench_function(&format!("conv 3x3/forward and backward/{name}"), |b| {
            b.iter(|| black_box(forward().sum_all().unwrap().backward().unwrap()));
        });
    }
    let maps = tensor([4, 17, 28, 28]);
    c.bench_function("upsample bilinear/4 RoIs of 17 x 28 x 28", |b| b.iter(|| black_box(upsample_bilinear2(&maps).unwrap())));
}

criterion_group!(small, wire, coco, detect, graphs, ops);
criterion_main!(small);
