//! Hostile numbers through views, heatmaps, labels and the trial: no panic, and the promised ranges.
//! `OMNILABEL_FUZZ_RUNS` sets the executions per target, 1,000,000 in the long suite.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::Rng;
use omnilabel_keypoints::geometry::{Point, Rect, Size};
use omnilabel_keypoints::heatmap::{MapKind, decode};
use omnilabel_keypoints::label::{Detection, Keypoint, Label, Thresholds, harden};
use omnilabel_keypoints::oks::oks;
use omnilabel_keypoints::trial::{Action, Event, Phase, Reason, Slot, State, step};
use omnilabel_keypoints::view::{View, ViewGeometry};
use omnilabel_keypoints::wire::{Encoding, LabelKey, LabelMsg, Message};

fn runs() -> usize {
    std::env::var("OMNILABEL_FUZZ_RUNS").map_or(20_000, |n| n.parse().expect("OMNILABEL_FUZZ_RUNS is a number"))
}

/// Any float, the strange ones often.
fn float(r: &mut Rng) -> f32 {
    const STRANGE: [f32; 10] = [0.0, -0.0, 1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, -1.0, 0.5];
    match r.below(4) {
        0 => STRANGE[r.below(STRANGE.len())],
        1 => f32::from_bits(r.next() as u32),
        _ => (r.below(1 << 20) as f32 - (1 << 19) as f32) / 1024.0,
    }
}

fn point(r: &mut Rng) -> Point {
    Point { x: float(r), y: float(r) }
}

#[test]
fn views() {
    let mut r = Rng(1);
    for _ in 0..runs() {
        let frame = Size { width: r.number() as u32, height: r.number() as u32 };
        let view = View { short_side: r.number() as u32, flip: r.bool() };
        let geometry = ViewGeometry::new(frame, view, r.number() as u32);
        assert!(geometry.net().width >= 1 && geometry.net().height >= 1);
        let p = point(&mut r);
        let q = geometry.frame_from_net(geometry.net_from_frame(p));
        if frame.width > 0 && p.x.is_finite() && p.x.abs() <= frame.width as f32 {
            let shrink = (frame.width as f32 / geometry.net().width as f32).max(1.0);
            let tolerance = 4.0 * f32::EPSILON * shrink * (frame.width.max(geometry.net().width)) as f32;
            assert!((p.x - q.x).abs() <= tolerance + 1e-6, "{p:?} {q:?} {geometry:?}");
        }
    }
}

#[test]
fn heatmaps() {
    let mut r = Rng(2);
    for _ in 0..runs() {
        let side = 1 + r.below(6);
        let map: Vec<f32> = (0..side * side).map(|_| float(&mut r)).collect();
        let [x1, y1, mut x2, mut y2]: [f32; 4] = core::array::from_fn(|_| float(&mut r));
        // Boxes of thousands of pixels on both axes are slow, not wrong.
        if (x2 - x1 > 64.0 || y2 - y1 > 64.0) && (r.below(64) > 0 || x2 - x1 > 64.0 && y2 - y1 > 64.0) {
            (x2, y2) = (x1 + 64.0, y1 + 64.0);
        }
        let kind = if r.bool() { MapKind::Logits } else { MapKind::Probabilities };
        let found = decode(&map, side, Rect::new(x1, y1, x2, y2), kind);
        assert!((0.0..=1.0).contains(&found.probability) && !found.peak_logit.is_nan());
    }
}

#[test]
fn labels() {
    let mut r = Rng(3);
    let mut out = vec![0; LabelMsg::MAX_BYTES];
    for _ in 0..runs() {
        let detections: Vec<Detection> = (0..r.below(24))
            .map(|_| Detection {
                rect: Rect::new(float(&mut r), float(&mut r), float(&mut r), float(&mut r)),
                score: float(&mut r),
                keypoints: (0..r.below(4))
                    .map(|_| Keypoint {
                        point: point(&mut r),
                        peak_logit: float(&mut r),
                        probability: float(&mut r),
                        agreement: float(&mut r),
                    })
                    .collect(),
            })
            .collect();
        let thresholds = Thresholds { instance: float(&mut r), keypoint: float(&mut r), floor: float(&mut r) };
        let label = Label::from_detections(Size { width: 640, height: 480 }, &detections, thresholds);
        let passed = detections.iter().filter(|d| d.score >= thresholds.floor).count();
        assert_eq!(label.instances.len() + label.overflow as usize, passed);
        for instance in &label.instances {
            assert!(harden(&instance.detection, thresholds.keypoint).iter().all(|k| k.point.x.is_finite() && k.point.y.is_finite()));
            let (p, sigmas) = (instance.detection.keypoints.iter().map(|k| k.point).collect::<Vec<_>>(), [0.1; 4]);
            let score = oks(&p, &p, &[true; 4], &sigmas, 100.0);
            assert!(score.is_none_or(|s| s.is_nan() || (0.0..=1.0).contains(&s)));
        }
        let message = LabelMsg::quantise(&label, LabelKey { epoch: 1, sequence: 1 }, 1, 1, 1, 1);
        let n = message.encode(Encoding::Cbor, &mut out).unwrap();
        assert_eq!(LabelMsg::decode(&out[..n]).unwrap(), message);
    }
}

#[test]
fn trials_from_any_persisted_state() {
    let mut r = Rng(4);
    for _ in 0..runs() {
        let counter = r.number();
        let phase = match r.below(5) {
            0 => Phase::Idle,
            1 => Phase::Fetching { counter },
            2 => Phase::Testing { counter, attempts: r.below(256) as u8, shadows: r.below(256) as u8 },
            3 => Phase::Shadow { counter, attempts: r.below(256) as u8 },
            _ => Phase::Probation { counter, frames_left: r.number() as u32 },
        };
        let confirmed = if r.bool() { Slot::A } else { Slot::B };
        let mut state = State { confirmed, confirmed_counter: r.number(), phase, highest: r.number(), set: r.number(), beyond: r.bool() };
        for _ in 0..32 {
            let event = match r.below(10) {
                0 => Event::Boot,
                1 => Event::Offer { counter: r.number() },
                2 => Event::Fetched,
                3 => Event::GoldenPassed { shadow: r.bool() },
                8 => Event::Agreed,
                4 | 5 => Event::HealthyFrame,
                6 => Event::Stop,
                7 => {
                    let newest = r.bool().then(|| r.number());
                    Event::Keys { set: r.number(), newest, trusted: r.bool(), confirmed_trusted: r.bool() }
                }
                _ => Event::Failed(Reason::Health),
            };
            let (next, action) = step(state, event);
            if let (Event::Offer { counter }, Action::Fetch(_)) = (event, action) {
                assert!(state.beyond || counter > state.confirmed_counter, "a rollback: {state:?} takes {counter}");
            }
            assert!(next.highest >= state.highest || next.set > state.set);
            assert!(next.confirmed == state.confirmed || matches!(state.phase, Phase::Probation { .. }));
            state = next;
        }
    }
}
