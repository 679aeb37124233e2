//! The same numbers as PyTorch, torchvision and pycocotools (`tests/golden/make.py`).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use omnilabel_keypoints::geometry::{Point, Rect, Size};
use omnilabel_keypoints::heatmap::{MapKind, decode};
use omnilabel_keypoints::oks::oks;
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_keypoints::view::{View, ViewGeometry};
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/values.json")).unwrap()
}

fn number(value: &Value) -> f32 {
    value.as_f64().unwrap() as f32
}

struct Lcg(u32);

impl Lcg {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(1664525).wrapping_add(1013904223);
        f64::from(self.0 >> 16) / 65536.0
    }
}

/// `make_map` of the script.
fn make_map(seed: u64, side: usize, smooth: bool) -> Vec<f32> {
    let mut r = Lcg(seed as u32);
    let (cx, cy) = (r.unit() * side as f64, r.unit() * side as f64);
    let mut map = Vec::new();
    for y in 0..side {
        for x in 0..side {
            let noise = r.unit();
            let d2 = (x as f64 + 0.5 - cx).powi(2) + (y as f64 + 0.5 - cy).powi(2);
            map.push(if smooth { 8.0 / (1.0 + d2 / 6.0) + 0.25 * noise } else { 8.0 * noise - 4.0 } as f32);
        }
    }
    map
}

/// Sixteen products in another order than PyTorch's.
const PEAK_TOLERANCE: f32 = 4e-6;
/// f32 rounding of coordinates up to 1200 px.
const POINT_TOLERANCE_PX: f32 = 2e-4;
/// An f32 sum over 3136 exponentials.
const PROBABILITY_TOLERANCE: f32 = 2e-5;

#[test]
fn decode_equals_torchvision() {
    let golden = golden();
    let cases = golden["maps"].as_array().unwrap();
    assert!(cases.len() >= 40);
    for case in cases {
        let side = case["side"].as_u64().unwrap() as usize;
        let map = make_map(case["seed"].as_u64().unwrap(), side, case["smooth"].as_bool().unwrap());
        let r: Vec<f32> = case["rect"].as_array().unwrap().iter().map(number).collect();
        let got = decode(&map, side, Rect::new(r[0], r[1], r[2], r[3]), MapKind::Logits);
        let (x, y) = (number(&case["x"]), number(&case["y"]));
        assert!((got.peak_logit - number(&case["peak"])).abs() < PEAK_TOLERANCE, "{case} {got:?}");
        assert!((got.point.x - x).abs() < POINT_TOLERANCE_PX && (got.point.y - y).abs() < POINT_TOLERANCE_PX, "{case} {got:?}");
        assert!((got.probability - number(&case["probability"])).abs() < PROBABILITY_TOLERANCE, "{case} {got:?}");
    }
}

#[test]
fn view_sizes_equal_torchvision() {
    let golden = golden();
    let size = |v: &Value| Size { width: v[0].as_u64().unwrap() as u32, height: v[1].as_u64().unwrap() as u32 };
    for case in golden["views"].as_array().unwrap() {
        let view = View { short_side: case["short"].as_u64().unwrap() as u32, flip: false };
        let geometry = ViewGeometry::new(size(&case["frame"]), view, case["long"].as_u64().unwrap() as u32);
        assert_eq!(geometry.net(), size(&case["net"]), "{case}");
    }
}

#[test]
fn oks_equals_pycocotools() {
    // pycocotools keeps sigmas and coordinates in f64; ours are f32: relative 6e-8 on σ, doubled by the square.
    const TOLERANCE: f64 = 1e-6;
    let skeleton = Skeleton::coco17();
    for case in golden()["oks"].as_array().unwrap() {
        let points =
            |v: &Value| -> Vec<Point> { v.as_array().unwrap().iter().map(|p| Point { x: number(&p[0]), y: number(&p[1]) }).collect() };
        let visible: Vec<bool> = case["truth"].as_array().unwrap().iter().map(|p| number(&p[2]) > 0.0).collect();
        let (guess, truth) = (points(&case["guess"]), points(&case["truth"]));
        let got = oks(&guess, &truth, &visible, skeleton.sigmas(), case["area"].as_f64().unwrap()).unwrap();
        assert!((got - case["oks"].as_f64().unwrap()).abs() < TOLERANCE, "{got} {case}");
    }
}

#[test]
fn oks_by_hand() {
    // One wrist (σ 0.062) 5 px off, area 1000 px²: exp(−25 / (2 · (0.124)² · 1000)) = 0.443540…; the other exact: mean 0.72177.
    let truth = [Point { x: 10.0, y: 10.0 }, Point { x: 50.0, y: 50.0 }, Point::default()];
    let guess = [Point { x: 13.0, y: 14.0 }, Point { x: 50.0, y: 50.0 }, Point { x: 9e9, y: f32::NAN }];
    let got = oks(&guess, &truth, &[true, true, false], &[0.062; 3], 1000.0).unwrap();
    let expected = (f64::exp(-25.0 / (2.0 * 0.124 * 0.124 * 1000.0)) + 1.0) / 2.0;
    assert!((got - expected).abs() < 1e-7, "{got} {expected}");
    assert_eq!(oks(&guess, &truth, &[false; 3], &[0.062; 3], 1000.0), None);
}
