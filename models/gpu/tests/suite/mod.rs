//! Every kernel against its CPU twin, on whichever device. What does the same operations in the same order has the same bits; where
//! the order of a sum or the exponential function differs, the tolerance says so.

use omnilabel_bundle::{AnchorRule, Channels, InputSpec, LevelSpec, NetworkSpec, RoiSpec, RpnSpec};
use omnilabel_detect::frame::{Frame, transform};
use omnilabel_detect::proposals::{self as cpu, LevelOutput};
use omnilabel_detect::roi::{self, FeatureMap};
use omnilabel_gpu::ops::{self, Checks, Features, FrameOn, Level, MapOn, Maps, Mirror};
use omnilabel_gpu::{Array, Device};
use omnilabel_keypoints::ensemble::{Average, accumulate, agreement, finish};
use omnilabel_keypoints::geometry::{Point, Rect, Size};
use omnilabel_keypoints::heatmap::{MapKind, brightest, decode};
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_keypoints::view::View;

/// Exponentials of another library (2 ulp in CUDA's) and sums in another order, relative to the larger of 1 and the value.
const EXP_TOLERANCE: f32 = 2e-6;
/// A box of up to 4096 px whose exponential differs by that: an NMS that compares two such boxes with a threshold may then decide
/// otherwise, so the cases keep away from it on a real GPU only as far as their seeds do.
const BOX_TOLERANCE_PX: f32 = 4e-3;

/// How a device may differ from the CPU.
#[derive(Clone, Copy)]
#[allow(dead_code, reason = "each test has its device")]
pub(crate) enum Exactness {
    /// The C++ compiler's exponential is Rust's.
    Same,
    /// The device has its own.
    Own,
}

/// Numbers that look random, the same everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn float(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * ((self.next() >> 40) as f32 / (1u64 << 24) as f32)
    }

    pub(crate) fn floats(&mut self, count: usize, low: f32, high: f32) -> Vec<f32> {
        (0..count).map(|_| self.float(low, high)).collect()
    }

    fn rect(&mut self, net: Size) -> Rect {
        let (w, h) = (net.width as f32, net.height as f32);
        let (x, y) = (self.float(-0.1 * w, 0.9 * w), self.float(-0.1 * h, 0.9 * h));
        Rect::new(x, y, x + self.float(0.0, w), y + self.float(0.0, h))
    }
}

fn close(found: f32, expected: f32, what: &str) {
    assert!((found - expected).abs() <= EXP_TOLERANCE * expected.abs().max(1.0), "{what}: {found}, expected {expected}");
}

/// Runs everything.
#[allow(dead_code, reason = "where each has a test of its own")]
pub(crate) fn all<D: Device>(device: &D, exactness: Exactness) {
    images(device);
    max_pools(device);
    checks(device);
    proposals(device, exactness);
    detections(device, exactness);
    rois(device);
    heatmaps(device);
}

pub(crate) fn images<D: Device>(device: &D) {
    let mut random = Random::new(1);
    for (width, height) in [(64, 48), (1, 1), (1, 90), (333, 7), (190, 240)] {
        let rgb = (0..3 * width * height).map(|_| random.next() as u8).collect();
        let frame = Frame { size: Size { width, height }, rgb };
        let on = FrameOn::upload(device, &frame).unwrap();
        for (short_side, channels) in [(40, Channels::Rgb), (48, Channels::Bgr), (101, Channels::Rgb)] {
            let input = InputSpec {
                short_side,
                max_long_side: 400,
                size_divisor: 32,
                mean: [0.485, 0.456, 0.406],
                std: [0.229, 0.224, 0.225],
                channels,
            };
            for flip in [false, true] {
                let expected = transform(&frame, &input, View { short_side, flip });
                let out = Array::zeros(device, expected.data.len()).unwrap();
                ops::view_image(device, &on, &input, &expected.geometry, &out).unwrap();
                assert_eq!(out.to_vec(device).unwrap(), expected.data, "{width} x {height} at {short_side}, mirrored: {flip}");
            }
        }
    }
}

pub(crate) fn max_pools<D: Device>(device: &D) {
    let mut random = Random::new(2);
    for ([c, h, w], (kernel, stride, padding)) in [([3, 9, 12], (3, 2, 1)), ([2, 8, 7], (2, 2, 0)), ([1, 1, 1], (3, 2, 1))] {
        let map = random.floats(c * h * w, -3.0, 3.0);
        let out_of = |side: usize| (side + 2 * padding - kernel) / stride + 1;
        let (rows, columns) = (out_of(h), out_of(w));
        let mut expected = vec![f32::NEG_INFINITY; c * rows * columns];
        for (i, best) in expected.iter_mut().enumerate() {
            let (channel, y, x) = (i / columns / rows, i / columns % rows, i % columns);
            for (dy, dx) in (0..kernel).flat_map(|dy| (0..kernel).map(move |dx| (dy, dx))) {
                let (row, column) = ((y * stride + dy).wrapping_sub(padding), (x * stride + dx).wrapping_sub(padding));
                if row < h && column < w {
                    *best = best.max(map[(channel * h + row) * w + column]);
                }
            }
        }
        let (map, out) = (Array::from_slice(device, &map).unwrap(), Array::zeros(device, expected.len()).unwrap());
        ops::max_pool(device, &map, [c, h, w], (kernel, stride, padding), &out, (rows, columns)).unwrap();
        assert_eq!(out.to_vec(device).unwrap(), expected);
    }
}

pub(crate) fn checks<D: Device>(device: &D) {
    let mut checks = Checks::new(device, 3).unwrap();
    let mut values = vec![0.5; 1000];
    for (name, bad) in [("good", None), ("nan", Some((700, f32::NAN))), ("infinite", Some((3, f32::NEG_INFINITY)))] {
        if let Some((at, value)) = bad {
            values[at] = value;
        }
        checks.look(device, "graph.onnx", name.to_owned(), &Array::from_slice(device, &values).unwrap()).unwrap();
        let expected = (name != "good").then_some(("graph.onnx", "nan", 700));
        assert_eq!(checks.first(device).unwrap(), expected);
    }
    assert!(checks.look(device, "graph.onnx", "fourth".to_owned(), &Array::from_slice(device, &values).unwrap()).is_err());
}

/// Two levels; the rest varies.
pub(crate) fn network(rpn: RpnSpec, anchor_rule: AnchorRule) -> NetworkSpec {
    let roi = |resolution| RoiSpec { resolution, sampling_ratio: 2, aligned: false };
    NetworkSpec {
        levels: vec![LevelSpec { stride: 4, anchor_size: 16.0 }, LevelSpec { stride: 8, anchor_size: 40.0 }],
        roi_levels: 2,
        canonical_size: 40.0,
        canonical_level: 1,
        aspect_ratios: vec![0.5, 1.0, 2.0],
        anchor_rule,
        stride_in_1x1: false,
        rpn,
        box_roi: roi(7),
        keypoint_roi: roi(14),
        box_coder: [10.0, 10.0, 5.0, 5.0],
        score_threshold: 0.3,
        nms_iou: 0.5,
        max_detections: 20,
        heatmap_side: 14,
    }
}

fn same_boxes(found: &[(Rect, f32)], expected: &[(Rect, f32)], exactness: Exactness, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        match exactness {
            Exactness::Same => assert_eq!(a, b, "{what}, box {i}"),
            Exactness::Own => {
                close(a.1, b.1, what);
                for (a, b) in [(a.0.x1, b.0.x1), (a.0.y1, b.0.y1), (a.0.x2, b.0.x2), (a.0.y2, b.0.y2)] {
                    assert!((a - b).abs() <= BOX_TOLERANCE_PX, "{what}, box {i}: {a}, expected {b}");
                }
            }
        }
    }
}

pub(crate) fn proposals<D: Device>(device: &D, exactness: Exactness) {
    let rpn = RpnSpec { pre_nms_top_n: 100, post_nms_top_n: 60, nms_iou: 0.7, min_size: 1e-3, score_threshold: 0.0 };
    let net = Size { width: 125, height: 93 };
    let grids = [(24usize, 32usize), (12, 16)];
    let cases = [
        ("usual", rpn, AnchorRule::Rounded),
        ("torchvision", RpnSpec { nms_iou: 0.3, ..rpn }, AnchorRule::Torchvision),
        ("fewer than room", RpnSpec { pre_nms_top_n: 8000, post_nms_top_n: 500, nms_iou: 0.2, ..rpn }, AnchorRule::Exact),
        ("one each", RpnSpec { pre_nms_top_n: 1, ..rpn }, AnchorRule::Exact),
        ("none", RpnSpec { pre_nms_top_n: 0, ..rpn }, AnchorRule::Exact),
        ("no room", RpnSpec { post_nms_top_n: 0, ..rpn }, AnchorRule::Exact),
        ("high ones", RpnSpec { min_size: 20.0, score_threshold: 0.6, ..rpn }, AnchorRule::Rounded),
    ];
    let mut some = 0;
    for (seed, (name, rpn, rule)) in cases.into_iter().enumerate() {
        let network = network(rpn, rule);
        let mut random = Random::new(10 + seed as u64);
        for kind in ["spread", "ties", "not finite"] {
            let outputs = grids.map(|(rows, columns)| {
                let mut objectness = random.floats(3 * rows * columns, -4.0, 4.0);
                match kind {
                    // Many equal logits: the lower index goes first.
                    "ties" => objectness.iter_mut().for_each(|v| *v = v.round()),
                    "not finite" => {
                        for (i, v) in objectness.iter_mut().enumerate() {
                            *v = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, *v][i * 7 % 6];
                        }
                    }
                    _ => {}
                }
                (objectness, random.floats(12 * rows * columns, -1.5, 1.5), rows, columns)
            });
            let levels: Vec<LevelOutput<'_>> =
                outputs.iter().map(|(o, d, r, c)| LevelOutput { objectness: o, deltas: d, rows: *r, columns: *c }).collect();
            let expected = cpu::proposals(&network, &network.rpn, &levels, net);
            let on: Vec<_> =
                outputs.iter().map(|(o, d, ..)| (Array::from_slice(device, o).unwrap(), Array::from_slice(device, d).unwrap())).collect();
            let levels: Vec<Level<'_, D>> =
                on.iter().zip(&grids).map(|((o, d), &(rows, columns))| Level { objectness: o, deltas: d, rows, columns }).collect();
            let found = ops::proposals(device, &network, &levels, net).unwrap();
            assert_eq!(found.room(), rpn.post_nms_top_n as usize);
            same_boxes(&found.download(device).unwrap(), &expected, exactness, &format!("{name}, {kind}"));
            some += expected.len();
        }
    }
    assert!(some > 500, "{some} proposals");
}

pub(crate) fn detections<D: Device>(device: &D, exactness: Exactness) {
    let rpn = RpnSpec { pre_nms_top_n: 100, post_nms_top_n: 300, nms_iou: 0.95, min_size: 1.0, score_threshold: 0.0 };
    let net = Size { width: 125, height: 93 };
    let mut some = 0;
    for seed in 0..4 {
        let mut network = network(rpn, AnchorRule::Rounded);
        network.max_detections = [20, 1, 300, 7][seed as usize];
        let mut random = Random::new(40 + seed);
        let grid = (24usize, 32usize);
        let (objectness, deltas) = (random.floats(3 * grid.0 * grid.1, -4.0, 4.0), random.floats(12 * grid.0 * grid.1, -1.0, 1.0));
        let level = LevelOutput { objectness: &objectness, deltas: &deltas, rows: grid.0, columns: grid.1 };
        let expected: Vec<Rect> = cpu::proposals(&network, &network.rpn, &[level], net).into_iter().map(|(rect, _)| rect).collect();
        let (o, d) = (Array::from_slice(device, &objectness).unwrap(), Array::from_slice(device, &deltas).unwrap());
        let rois = ops::proposals(device, &network, &[Level { objectness: &o, deltas: &d, rows: grid.0, columns: grid.1 }], net).unwrap();
        let (mut logits, deltas) = (random.floats(2 * rois.room(), -3.0, 3.0), random.floats(8 * rois.room(), -2.0, 2.0));
        if seed == 1 {
            logits.iter_mut().for_each(|v| *v = v.round());
        }
        let (l, d) = (Array::from_slice(device, &logits).unwrap(), Array::from_slice(device, &deltas).unwrap());
        for nms in [true, false] {
            let expected = cpu::detections(&network, &expected, &logits, &deltas, net, nms);
            let found = ops::detections(device, &network, &rois, &l, &d, net, nms).unwrap();
            same_boxes(&found.download(device).unwrap(), &expected, exactness, &format!("seed {seed}, nms {nms}"));
            some += expected.len();
        }
    }
    assert!(some > 100, "{some} detections");
}

pub(crate) fn rois<D: Device>(device: &D) {
    let rpn = RpnSpec { pre_nms_top_n: 1, post_nms_top_n: 1, nms_iou: 0.7, min_size: 1.0, score_threshold: 0.0 };
    let network = network(rpn, AnchorRule::Rounded);
    let net = Size { width: 128, height: 96 };
    let mut random = Random::new(70);
    let grids = [(24usize, 32usize), (12, 16)];
    let channels = 3;
    let values = grids.map(|(rows, columns)| random.floats(channels * rows * columns, -1.0, 1.0));
    let mut rects: Vec<Rect> = (0..60).map(|_| random.rect(net)).collect();
    // As far out as a box may reach, without a size, and of the whole picture.
    rects.extend([
        Rect::new(-128.0, -96.0, 256.0, 192.0),
        Rect::default(),
        Rect::new(9.0, 9.0, 9.0, 50.0),
        Rect::new(0.0, 0.0, 128.0, 96.0),
    ]);
    let maps: Vec<FeatureMap<'_>> = values
        .iter()
        .zip(grids)
        .zip(&network.levels)
        .map(|((data, (rows, columns)), level)| FeatureMap { data, channels, rows, columns, scale: 1.0 / level.stride as f32 })
        .collect();
    let on = values.iter().zip(grids).map(|(v, (rows, columns))| MapOn { data: Array::from_slice(device, v).unwrap(), rows, columns });
    let features = Features { maps: on.collect(), channels };
    let flat: Vec<f32> = rects.iter().flat_map(|r| [r.x1, r.y1, r.x2, r.y2]).collect();
    let flat = Array::from_slice(device, &flat).unwrap();
    for resolution in [7, 14] {
        for sampling_ratio in [0, 1, 2, 3] {
            for aligned in [false, true] {
                let spec = RoiSpec { resolution, sampling_ratio, aligned };
                let expected = roi::pool(&network, &maps, &rects, spec);
                let out = Array::zeros(device, expected.len()).unwrap();
                ops::pool(device, &network, &features, &flat, spec, &out).unwrap();
                assert_eq!(out.to_vec(device).unwrap(), expected, "{spec:?}");
            }
        }
    }
}

pub(crate) fn heatmaps<D: Device>(device: &D) {
    let skeleton = Skeleton::new(&["nose", "left_hand", "right_hand"], &[], None, None).unwrap();
    let mirror = Mirror::new(device, &skeleton).unwrap();
    let sigmas = Array::from_slice(device, skeleton.sigmas()).unwrap();
    let mut random = Random::new(90);
    let rects = [
        Rect::new(3.0, 4.0, 60.5, 130.25),
        Rect::new(0.0, 0.0, 0.5, 0.5),
        Rect::new(-20.0, 5.0, 700.0, 11.0),
        Rect::new(1.0, 1.0, 57.0, 57.0),
        Rect::new(0.0, 0.0, 5000.0, 40.0),
    ];
    let flat: Vec<f32> = rects.iter().flat_map(|r| [r.x1, r.y1, r.x2, r.y2]).collect();
    let flat = Array::from_slice(device, &flat).unwrap();
    for side in [1usize, 14, 56, 64] {
        let shape = Maps { boxes: rects.len(), keypoints: 3, side };
        let one = 3 * side * side;
        for average in [Average::Logits, Average::Probabilities] {
            let kind = if average == Average::Logits { MapKind::Logits } else { MapKind::Probabilities };
            let (sum, views) = (Array::zeros(device, shape.len()).unwrap(), Array::<D, f32>::zeros(device, 4 * shape.count()).unwrap());
            let mut expected_sum = vec![0.0; shape.len()];
            let mut expected_points: Vec<Vec<Point>> = Vec::new();
            for (view, flip) in [false, true].into_iter().enumerate() {
                let mut maps = random.floats(shape.len(), -6.0, 9.0);
                if view == 0 {
                    // A flat map, whose first cell wins, and equal peaks.
                    maps[..side * side].fill(1.5);
                    maps[side * side..2 * side * side].iter_mut().for_each(|v| *v = v.round());
                }
                let mut unflipped = vec![0.0; maps.len()];
                for (own, map) in unflipped.chunks_exact_mut(one).zip(maps.chunks_exact(one)) {
                    accumulate(own, map, side, &skeleton, flip, average);
                }
                let maps = Array::from_slice(device, &maps).unwrap();
                let own = ops::unflip(device, &maps, shape, &mirror, flip, average, &sum).unwrap();
                for (a, b) in own.to_vec(device).unwrap().iter().zip(&unflipped) {
                    close(*a, *b, "an un-mirrored map");
                }
                // The same maps on both sides from here on: where peaks are equal but for rounding, the choice is free.
                let own = Array::from_slice(device, &unflipped).unwrap();
                let part = Array::<D, f32>::zeros(device, 4 * shape.count()).unwrap();
                ops::decode(device, &own, shape, &flat, average, &part).unwrap();
                let found = part.to_vec(device).unwrap();
                for (i, (map, found)) in unflipped.chunks_exact(side * side).zip(found.chunks_exact(4)).enumerate() {
                    let expected = decode(map, side, rects[i / 3], kind);
                    assert_eq!((found[0], found[1]), (expected.point.x, expected.point.y), "side {side}, map {i}, {average:?}");
                    assert_eq!(found[2], expected.peak_logit, "side {side}, map {i}");
                    close(found[3], expected.probability, "a probability");
                }
                let part = views.slice(view * 2 * shape.count()..(view + 1) * 2 * shape.count());
                ops::brightest(device, &own, shape, &flat, &part).unwrap();
                let mut points = Vec::new();
                for (i, (map, found)) in unflipped.chunks_exact(side * side).zip(part.to_vec(device).unwrap().chunks_exact(2)).enumerate() {
                    let expected = brightest(map, side, rects[i / 3]);
                    assert_eq!((found[0], found[1]), (expected.x, expected.y), "side {side}, map {i}, {average:?}");
                    points.push(expected);
                }
                expected_points.push(points);
                expected_sum.iter_mut().zip(&unflipped).for_each(|(sum, v)| *sum += v);
            }
            ops::scale(device, &sum, 0.5).unwrap();
            finish(&mut expected_sum, 2);
            for (a, b) in sum.to_vec(device).unwrap().iter().zip(&expected_sum) {
                close(*a, *b, "an averaged map");
            }
            let ensemble = views.slice(2 * shape.count()..4 * shape.count());
            for view_count in [0, 2] {
                let own = views.slice(0..view_count * 2 * shape.count());
                let found = ops::agreement(device, &own, &ensemble, &flat, &sigmas, view_count, shape).unwrap().to_vec(device).unwrap();
                for (i, found) in found.iter().enumerate() {
                    let points: Vec<Point> = expected_points[..view_count].iter().map(|points| points[i]).collect();
                    let expected = agreement(&points, expected_points[1][i], skeleton.sigmas()[i % 3], rects[i / 3].area());
                    close(*found, expected, "an agreement");
                }
            }
        }
    }
    // Nothing finite: the middle of the box.
    let shape = Maps { boxes: 1, keypoints: 1, side: 3 };
    let (maps, rect) = (Array::from_slice(device, &[f32::NEG_INFINITY; 9]).unwrap(), flat.slice(0..4));
    let found = Array::zeros(device, 4).unwrap();
    ops::decode(device, &maps, shape, &rect, Average::Logits, &found).unwrap();
    let middle = decode(&[f32::NEG_INFINITY; 9], 3, rects[0], MapKind::Logits).point;
    assert_eq!(found.to_vec(device).unwrap(), [middle.x, middle.y, 0.0, 0.0]);
    let found = found.slice(0..2);
    ops::brightest(device, &maps, shape, &rect, &found).unwrap();
    assert_eq!(found.to_vec(device).unwrap(), [middle.x, middle.y]);
}
