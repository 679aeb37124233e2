//! Properties that hold for any input, and pictures that are not what they say.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use omnilabel_bundle::{AnchorRule, Channels, InputSpec, LevelSpec, NetworkSpec, RoiSpec, RpnSpec};
use omnilabel_detect::frame::{Frame, FrameError, MAX_FRAME_SIDE, transform};
use omnilabel_detect::nms::{nms, vote};
use omnilabel_detect::proposals::{LevelOutput, detections, proposals};
use omnilabel_detect::roi::{FeatureMap, align, align_backward, level, pool};
use omnilabel_keypoints::geometry::{Rect, Size};
use omnilabel_keypoints::view::View;
use proptest::prelude::*;

fn network() -> NetworkSpec {
    let roi = |resolution| RoiSpec { resolution, sampling_ratio: 2, aligned: false };
    NetworkSpec {
        levels: [(4, 32.0), (8, 64.0), (16, 128.0), (32, 256.0), (64, 512.0)]
            .map(|(stride, anchor_size)| LevelSpec { stride, anchor_size })
            .to_vec(),
        roi_levels: 4,
        canonical_size: 224.0,
        canonical_level: 2,
        aspect_ratios: vec![0.5, 1.0, 2.0],
        anchor_rule: AnchorRule::Rounded,
        stride_in_1x1: false,
        rpn: RpnSpec { pre_nms_top_n: 10, post_nms_top_n: 5, nms_iou: 0.7, min_size: 1e-3, score_threshold: 0.0 },
        box_roi: roi(7),
        keypoint_roi: roi(14),
        box_coder: [10.0, 10.0, 5.0, 5.0],
        score_threshold: 0.05,
        nms_iou: 0.5,
        max_detections: 20,
        heatmap_side: 56,
    }
}

/// √area 224 → P4, 112 → P3, 111 → P2, 448 → P5 (spec §1), as indices from P2; anything else is clipped.
#[test]
fn levels_of_the_specification() {
    let side = |s: f32| level(&network(), Rect::new(1.0, 2.0, 1.0 + s, 2.0 + s));
    assert_eq!([224.0, 112.0, 111.0, 448.0, 0.0, 5000.0].map(side), [2, 1, 0, 3, 0, 3]);
    assert_eq!(level(&network(), Rect::new(f32::NAN, 0.0, 1.0, 1.0)), 0);
}

fn roi() -> impl Strategy<Value = Rect> {
    (-30f32..120.0, -30f32..120.0, 0f32..100.0, 0f32..100.0).prop_map(|(x, y, w, h)| Rect::from_xywh(x, y, w, h))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// ⟨y, A x⟩ = ⟨Aᵀ y, x⟩ with random x and y, in f64.
    #[test]
    fn backward_is_the_adjoint(roi in roi(), aligned: bool, samples in 1u32..4, seed: u64) {
        let (channels, rows, columns, side) = (2, 9, 7, 5);
        let mut state = seed | 1;
        let mut random = || { state ^= state << 13; state ^= state >> 7; state ^= state << 17; (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5 };
        let x: Vec<f64> = (0..channels * rows * columns).map(|_| random()).collect();
        let y: Vec<f64> = (0..channels * side * side).map(|_| random()).collect();
        let spec = RoiSpec { resolution: side as u32, sampling_ratio: samples, aligned };
        let mut ax = vec![0.0; y.len()];
        align(FeatureMap { data: &x, channels, rows, columns, scale: 0.1 }, roi, spec, &mut ax);
        let mut aty = vec![0.0; x.len()];
        align_backward(&mut aty, channels, rows, columns, 0.1, roi, spec, &y);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (left, right) = (dot(&y, &ax), dot(&aty, &x));
        prop_assert!((left - right).abs() < 1e-12, "{left} {right}");
    }

    #[test]
    fn what_nms_keeps_does_not_overlap(boxes in prop::collection::vec(roi(), 0..40), iou in 0.05f32..0.95) {
        let scores: Vec<f32> = (0..boxes.len()).map(|i| (i * 7919 % 13) as f32).collect();
        let kept = nms(&boxes, &scores, iou);
        for (n, &a) in kept.iter().enumerate() {
            for &b in &kept[..n] {
                prop_assert!(boxes[a].iou(&boxes[b]) <= iou);
                prop_assert!(scores[b] > scores[a] || (scores[b] == scores[a] && b < a));
            }
        }
        for i in 0..boxes.len() {
            prop_assert!(kept.contains(&i) || kept.iter().any(|&k| scores[k] >= scores[i] && boxes[k].iou(&boxes[i]) > iou));
        }
    }
}

/// Numbers that no network should give are dropped, not returned and not a panic.
#[test]
fn wild_outputs() {
    let network = network();
    for wild in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN] {
        for (o, d) in [(wild, 0.0), (0.0, wild), (wild, wild)] {
            let (objectness, deltas) = (vec![o; 12], vec![d; 48]);
            let level = LevelOutput { objectness: &objectness, deltas: &deltas, rows: 2, columns: 2 };
            for (rect, score) in proposals(&network, &network.rpn, &[level; 5], Size { width: 60, height: 50 }) {
                assert!(rect.is_valid() && rect.x2 <= 60.0 && (0.0..=1.0).contains(&score));
            }
            for (rect, score) in
                detections(&network, &[Rect::new(0.0, 0.0, 9.0, 9.0)], &[o, 0.0], &[d; 8], Size { width: 60, height: 50 }, true)
            {
                assert!(rect.is_valid() && (0.0..=1.0).contains(&score));
            }
        }
        let map = FeatureMap { data: &[1.0; 4], channels: 1, rows: 2, columns: 2, scale: 0.25 };
        let mut out = [0.0; 49];
        align(map, Rect::new(wild, 0.0, wild, 5.0), network.box_roi, &mut out);
        align(map, Rect::new(0.0, 0.0, wild, wild), network.box_roi, &mut out);
    }
    assert!(pool(&network, &[], &[], network.box_roi).is_empty());
}

#[test]
fn voting_is_the_weighted_mean_of_the_close() {
    let pool = [Rect::new(0.0, 0.0, 10.0, 10.0), Rect::new(1.0, 0.0, 11.0, 10.0), Rect::new(50.0, 50.0, 60.0, 60.0)];
    let voted = vote(pool[0], &pool, &[0.75, 0.25, 1.0], 0.8);
    assert_eq!(voted, Rect::new(0.25, 0.0, 10.25, 10.0));
    assert_eq!(vote(pool[0], &pool, &[0.0; 3], 0.8), pool[0]);
    assert_eq!(vote(pool[0], &[], &[], 0.8), pool[0]);
}

fn frame(width: u32, height: u32) -> Frame {
    let rgb = (0..3 * width * height).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    Frame { size: Size { width, height }, rgb }
}

#[test]
fn pictures_round_trip() {
    let picture = frame(37, 21);
    assert_eq!(Frame::decode("a.png", &picture.to_png()).unwrap(), picture);
    let grey = Frame { size: picture.size, rgb: vec![77; picture.rgb.len()] };
    let jpeg = Frame::decode("a.jpg", &grey.to_jpeg(90)).unwrap();
    assert_eq!(jpeg.size, grey.size);
    assert!(jpeg.rgb.iter().all(|&v| v.abs_diff(77) <= 2));
}

#[test]
fn pictures_that_are_refused() {
    let message = |bytes: &[u8]| match Frame::decode("frame 7", bytes) {
        Err(FrameError::Decode { name, message }) => {
            assert_eq!(name, "frame 7");
            message
        }
        other => panic!("{other:?}"),
    };
    assert!(message(b"").contains("JPEG or PNG"));
    assert!(message(b"GIF89a      ").contains("JPEG or PNG"));
    for good in [frame(40, 30).to_png(), frame(40, 30).to_jpeg(80)] {
        message(&good[..30]);
        for percent in [50, 60, 90, 99] {
            let cut = &good[..good.len() * percent / 100];
            message(cut);
            // A file whose end was never written.
            message(&[cut, &[0; 4096]].concat());
        }
        for i in 0..good.len().min(200) {
            let mut bad = good.clone();
            bad[i] ^= 0x55;
            let _: Result<_, _> = Frame::decode("bad", &bad);
        }
    }
    message(&frame(MAX_FRAME_SIDE + 1, 1).to_png());
    assert!(matches!(Frame::open(std::path::Path::new("no such file.png")), Err(FrameError::Io { .. })));
    // A PNG header that promises 8,000 × 8,000 pixels of 16 bits, without the pixels.
    let mut bomb = frame(1, 1).to_png();
    bomb[16..24].copy_from_slice(&[0, 0, 0x1f, 0x40, 0, 0, 0x1f, 0x40]);
    message(&bomb);
}

/// Cameras put padding, or a second picture, behind the end of a JPEG; a thumbnail within its header has an end of its own.
#[test]
fn a_jpeg_ends_where_its_own_data_end() {
    let (jpeg, thumbnail) = (frame(64, 48).to_jpeg(90), frame(8, 8).to_jpeg(50));
    let whole = Frame::decode("whole.jpg", &jpeg).unwrap();
    for tail in [&[0; 100][..], b"\r\n", b"\xff", &thumbnail] {
        assert_eq!(Frame::decode("tail.jpg", &[&jpeg, tail].concat()).unwrap(), whole);
    }
    let length = (thumbnail.len() as u16 + 2).to_be_bytes();
    let with_thumbnail = [&jpeg[..2], &[0xff, 0xe1], &length, &thumbnail, &jpeg[2..]].concat();
    assert_eq!(Frame::decode("thumbnail.jpg", &with_thumbnail).unwrap(), whole);
    for percent in [60, 90] {
        let header = with_thumbnail.len() - jpeg.len();
        let error = Frame::decode("cut.jpg", &with_thumbnail[..header + jpeg.len() * percent / 100]).unwrap_err().to_string();
        assert!(error.contains("cut.jpg") && error.contains("cut off"), "{error}");
    }
}

/// A mirrored view is the view of the mirrored frame; sizes of one pixel and extreme aspects work.
#[test]
fn mirrored_and_extreme_views() {
    let input = InputSpec { short_side: 32, max_long_side: 64, size_divisor: 16, mean: [0.4; 3], std: [0.2; 3], channels: Channels::Rgb };
    for (width, height) in [(50, 33), (1, 1), (1, 300), (300, 1), (2, 3), (4000, 2)] {
        let picture = frame(width, height);
        let mut mirror = picture.clone();
        for y in 0..height {
            for x in 0..width {
                for c in 0..3 {
                    mirror.rgb[(3 * (y * width + x) + c) as usize] = picture.rgb[(3 * (y * width + width - 1 - x) + c) as usize];
                }
            }
        }
        let view = |frame, flip| transform(frame, &input, View { short_side: 32, flip });
        let (a, b) = (view(&picture, true), view(&mirror, false));
        assert_eq!((a.rows % 16, a.columns % 16, a.data.len()), (0, 0, 3 * a.rows * a.columns));
        let twin = view(&picture, false).mirrored();
        assert_eq!((&twin.data, twin.rows, twin.columns, twin.geometry), (&a.data, a.rows, a.columns, a.geometry));
        // Source positions of mirrored pixels are rounded differently, at up to 4000 px · 2⁻²⁴ each.
        for (a, b) in a.data.iter().zip(&b.data) {
            assert!((a - b).abs() < 2e-3, "{width} x {height}: {a} {b}");
        }
    }
}
