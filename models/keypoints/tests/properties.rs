//! Properties of views, skeletons, heatmaps, ensembles and labels.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use omnilabel_keypoints::MAX_INSTANCES;
use omnilabel_keypoints::ensemble::{Average, accumulate, agreement, finish, unmirror};
use omnilabel_keypoints::geometry::{Point, Rect, Size};
use omnilabel_keypoints::heatmap::{MapKind, ScoredPoint, brightest, decode};
use omnilabel_keypoints::label::{Detection, Keypoint, Label, Thresholds, Visibility, harden};
use omnilabel_keypoints::oks::oks_nms;
use omnilabel_keypoints::skeleton::{Skeleton, SkeletonError};
use omnilabel_keypoints::view::{View, ViewGeometry};
use proptest::prelude::*;

/// f32 rounding of two maps on coordinates of up to 4000 px: 4 ulp.
fn close(a: f32, b: f32) -> bool {
    (a - b).abs() <= 4.0 * f32::EPSILON * 4000.0
}

proptest! {
    #[test]
    fn a_view_then_its_inverse_is_the_identity(
        w in 1u32..4000, h in 1u32..4000, short_side in 16u32..1300, long in 64u32..2100, flip: bool, u in 0f32..1.0, v in 0f32..1.0,
        s in 0f32..1.0, t in 0f32..1.0,
    ) {
        let geometry = ViewGeometry::new(Size { width: w, height: h }, View { short_side, flip }, long);
        let net = geometry.net();
        prop_assert!(net.width >= 1 && net.height >= 1 && net.width.max(net.height) <= long.max(1));
        let p = Point { x: u * w as f32, y: v * h as f32 };
        let q = geometry.frame_from_net(geometry.net_from_frame(p));
        // A view that shrinks much loses as many bits of x − W.
        let shrink = (w as f32 / net.width as f32).max(1.0);
        prop_assert!((p.x - q.x).abs() <= shrink * 4.0 * f32::EPSILON * net.width.max(w) as f32 && close(p.y, q.y), "{p:?} {q:?}");

        let n = Point { x: s * net.width as f32, y: t * net.height as f32 };
        let m = geometry.net_from_frame(geometry.frame_from_net(n));
        prop_assert!(close(n.x, m.x) && close(n.y, m.y), "{n:?} {m:?}");

        let r = Rect::new(p.x.min(q.x), p.y.min(q.y), p.x.max(q.x) + 1.0, p.y.max(q.y) + 1.0);
        let there = geometry.net_from_frame_rect(r);
        prop_assert!(there.is_valid());
        let back = geometry.frame_from_net_rect(there);
        prop_assert!((r.iou(&back) - 1.0).abs() < 0.01 * shrink, "{r:?} {back:?}");
    }

    #[test]
    fn a_mirrored_view_mirrors_the_plain_one(w in 1u32..4000, h in 1u32..4000, short_side in 16u32..1300, u in 0f32..1.0) {
        let size = Size { width: w, height: h };
        let plain = ViewGeometry::new(size, View { short_side, flip: false }, 2000);
        let mirrored = ViewGeometry::new(size, View { short_side, flip: true }, 2000);
        let p = Point { x: u * w as f32, y: 1.0 };
        let (a, b) = (plain.net_from_frame(p), mirrored.net_from_frame(p));
        prop_assert!(close(a.x + b.x, plain.net().width as f32) && a.y == b.y);
        // Mirrored twice: a mirrored point, taken as one of the mirrored frame, is where it was.
        let twice = mirrored.net_from_frame(Point { x: w as f32 - p.x, y: 1.0 });
        prop_assert!(close(twice.x, a.x), "{twice:?} {a:?}");
    }

    #[test]
    fn flip_permutations_are_involutions_or_refused(flip in prop::collection::vec(0u8..6, 5)) {
        let names = ["a", "b", "c", "d", "e"];
        let involution = (0..5).all(|i| flip.get(usize::from(flip[i])).is_some_and(|&back| usize::from(back) == i));
        match Skeleton::new(&names, &[], Some(&flip), None) {
            Ok(skeleton) => {
                prop_assert!(involution);
                let twice: Vec<usize> = (0..5).map(|i| usize::from(skeleton.flip()[usize::from(skeleton.flip()[i])])).collect();
                prop_assert_eq!(twice, vec![0, 1, 2, 3, 4]);
            }
            Err(SkeletonError::Flip { .. }) => prop_assert!(!involution),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn a_rendered_peak_is_found_within_half_a_cell(
        side in prop::sample::select(vec![14usize, 28, 56]), u in 0f32..1.0, v in 0f32..1.0, w in 8f32..400.0, h in 8f32..400.0, sigma in 0.8f32..3.0,
    ) {
        // The border is clamped, so a peak in the outermost cells is pulled to it: 1.5 cells off, as far as the interpolation sees.
        let (cx, cy) = (1.5 + u * (side as f32 - 3.0), 1.5 + v * (side as f32 - 3.0));
        let map: Vec<f32> = (0..side * side)
            .map(|i| {
                let (dx, dy) = ((i % side) as f32 + 0.5 - cx, (i / side) as f32 + 0.5 - cy);
                (-(dx * dx + dy * dy) / (2.0 * sigma * sigma)).exp()
            })
            .collect();
        let rect = Rect::new(10.0, 20.0, 10.0 + w, 20.0 + h);
        let found = decode(&map, side, rect, MapKind::Probabilities).point;
        // Half a cell of the map, and half a pixel of the grid that the box is resized to.
        let (cell_x, cell_y) = (w / side as f32, h / side as f32);
        prop_assert!((found.x - 10.0 - cx * cell_x).abs() <= 0.5 * cell_x + 0.5, "{found:?}");
        prop_assert!((found.y - 20.0 - cy * cell_y).abs() <= 0.5 * cell_y + 0.5, "{found:?}");
    }

    #[test]
    fn decode_equals_the_plain_search(side in 2usize..20, w in 1f32..90.0, h in 1f32..90.0, seed: u64, levels in 2u64..50) {
        let map: Vec<f32> = (0..side * side)
            .map(|i| (hash(seed.wrapping_add(i as u64)) % levels) as f32 - 3.0)
            .collect();
        let rect = Rect::new(1.5, -2.5, 1.5 + w, -2.5 + h);
        let got = decode(&map, side, rect, MapKind::Logits);
        let expected = plain(&map, side, rect);
        prop_assert_eq!((got.point, got.peak_logit), (expected.point, expected.peak_logit));
        prop_assert!((0.0..=1.0).contains(&got.probability));
    }

    #[test]
    fn decode_bears_anything(bits in prop::collection::vec(any::<u32>(), 16), corners: [i16; 4], wild in 0usize..8, wild_bits: u32, logits: bool) {
        let map: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        let mut corners = corners.map(|c| f32::from(c) / 128.0);
        // NaN and infinity too, but no box of thousands of pixels on both axes: that is slow, not wrong.
        if let Some(corner) = corners.get_mut(wild) {
            *corner = f32::from_bits(wild_bits);
        }
        let [x1, y1, x2, y2] = corners;
        let kind = if logits { MapKind::Logits } else { MapKind::Probabilities };
        let got = decode(&map, 4, Rect::new(x1, y1, x2, y2), kind);
        prop_assert!((0.0..=1.0).contains(&got.probability));
    }

    #[test]
    fn a_mirrored_view_averages_with_the_plain_one(seed: u64, probabilities: bool) {
        let (side, skeleton) = (7, Skeleton::coco17());
        let k = skeleton.len();
        let plain: Vec<f32> = (0..k * side * side).map(|i| (hash(seed.wrapping_add(i as u64)) % 1000) as f32 / 250.0).collect();
        let mut mirrored = vec![0.0; plain.len()];
        for c in 0..k {
            for y in 0..side {
                for x in 0..side {
                    let to = (usize::from(skeleton.flip()[c]) * side + y) * side + side - 1 - x;
                    mirrored[to] = plain[(c * side + y) * side + x];
                }
            }
        }
        let average = if probabilities { Average::Probabilities } else { Average::Logits };
        let mut one = vec![0.0; plain.len()];
        accumulate(&mut one, &plain, side, &skeleton, false, average);
        let mut two = vec![0.0; plain.len()];
        accumulate(&mut two, &plain, side, &skeleton, false, average);
        accumulate(&mut two, &mirrored, side, &skeleton, true, average);
        if average == Average::Logits {
            let mut where_they_lie = mirrored.clone();
            unmirror(&mut where_they_lie, side, &skeleton);
            let mut added = vec![0.0; mirrored.len()];
            accumulate(&mut added, &mirrored, side, &skeleton, true, average);
            prop_assert_eq!(where_they_lie, added);
        }
        finish(&mut two, 2);
        // A softmax sum in another order.
        prop_assert!(one.iter().zip(&two).all(|(a, b)| (a - b).abs() <= 1e-6 * a.abs().max(1e-3)));
        if probabilities {
            let sum: f32 = one[..side * side].iter().sum();
            prop_assert!((sum - 1.0).abs() < 1e-5);
        }
    }

    /// Logits of a Gaussian are a paraboloid: the parabolas find its top, the brightest pixel of the resized map lies next to it.
    #[test]
    fn the_brightest_cell_is_refined_to_the_top(x in 0f32..56.0, y in 0f32..56.0, width in 1f32..8.0, w in 20f32..300.0, h in 20f32..300.0) {
        let (side, rect) = (56usize, Rect::new(-3.0, 7.0, w - 3.0, h + 7.0));
        let at = |i: usize| (((i % side) as f32 + 0.5 - x) / width, ((i / side) as f32 + 0.5 - y) / width);
        let map: Vec<f32> = (0..side * side).map(at).map(|(dx, dy)| 12.0 - 0.5 * (dx * dx + dy * dy)).collect();
        let (cell_x, cell_y) = (w / side as f32, h / side as f32);
        let found = brightest(&map, side, rect);
        let (off_x, off_y) = ((found.x - rect.x1) / cell_x - x, (found.y - rect.y1) / cell_y - y);
        // Rounding of values near 12 against differences of 1/64, and the outermost cells, whose parabolas have no third point.
        let edge = |v: f32| if (1.0..=55.0).contains(&v) { 2e-3 } else { 0.5 + 1e-3 };
        prop_assert!(off_x.abs() <= edge(x) && off_y.abs() <= edge(y), "{off_x} and {off_y} cells off");
        let decoded = decode(&map, side, rect, MapKind::Logits).point;
        let near = |a: f32, b: f32, cell: f32| (a - b).abs() <= 0.5 * cell + 0.5 * cell.max(1.0) + 1e-3;
        prop_assert!(near(found.x, decoded.x, cell_x) && near(found.y, decoded.y, cell_y), "{found:?}, {decoded:?}");
    }

    #[test]
    fn the_label_keeps_the_best_and_counts_the_rest(scores in prop::collection::vec(-0.1f32..1.1, 0..60), tau in 0f32..1.0, floor in 0f32..0.5) {
        let detections: Vec<_> = scores.iter().enumerate().map(|(i, &score)| Detection { score, rect: Rect::new(i as f32, 0.0, 1e3, 1.0), ..Default::default() }).collect();
        let label = Label::from_detections(Size { width: 9, height: 8 }, &detections, Thresholds { instance: tau, keypoint: 0.5, floor });
        let mut expected: Vec<_> = detections.into_iter().filter(|d| d.score >= floor).collect();
        expected.sort_by(|a, b| b.score.total_cmp(&a.score));
        prop_assert_eq!(label.overflow as usize, expected.len().saturating_sub(MAX_INSTANCES));
        expected.truncate(MAX_INSTANCES);
        let got: Vec<_> = label.instances.iter().map(|i| i.detection.clone()).collect();
        prop_assert_eq!(got, expected);
        prop_assert!(label.instances.iter().all(|i| i.kept == (i.detection.score >= tau)));
    }
}

/// A full search of the resized map, from the textbook.
fn plain(map: &[f32], side: usize, rect: Rect) -> ScoredPoint {
    let a = -0.75f32;
    let weights = |t: f32| {
        let near = |x: f32| ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
        let far = |x: f32| ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a;
        [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
    };
    let (w, h) = (rect.width().max(1.0), rect.height().max(1.0));
    let (columns, rows) = (w.ceil() as usize, h.ceil() as usize);
    let at = |i: usize, n: usize| (side as f32 / n as f32) * (i as f32 + 0.5) - 0.5;
    let mut best = (0, 0, f32::NEG_INFINITY);
    for y in 0..rows {
        for x in 0..columns {
            let (sx, sy) = (at(x, columns), at(y, rows));
            let (wx, wy) = (weights(sx - sx.floor()), weights(sy - sy.floor()));
            let tap = |s: f32, i: usize| (s.floor() as isize - 1 + i as isize).clamp(0, side as isize - 1) as usize;
            let row = |j: usize| (0..4).map(|i| wx[i] * map[tap(sy, j) * side + tap(sx, i)]).sum::<f32>();
            let value: f32 = (0..4).map(|j| wy[j] * row(j)).sum();
            if value > best.2 {
                best = (x, y, value);
            }
        }
    }
    let point = Point { x: rect.x1 + (best.0 as f32 + 0.5) * (w / columns as f32), y: rect.y1 + (best.1 as f32 + 0.5) * (h / rows as f32) };
    ScoredPoint { point, peak_logit: best.2, probability: 0.0 }
}

/// SplitMix64.
fn hash(seed: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x1234_5678_9ABC_DEF1);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[test]
fn mirrored_names_are_paired() {
    for (names, expected) in [
        (vec!["nose", "left_eye", "right_eye"], vec![0, 2, 1]),
        (vec!["r_hip", "l_hip", "head"], vec![1, 0, 2]),
        (vec!["eye_left", "eye_right", "left_hand_tip", "right_hand_tip"], vec![1, 0, 3, 2]),
        (vec!["hip_l", "hip_r", "Left Knee", "Right Knee", "leftAnkle", "rightAnkle"], vec![1, 0, 3, 2, 5, 4]),
        (vec!["left_eye", "left_ear", "lead", "read"], vec![0, 1, 2, 3]),
    ] {
        let skeleton = Skeleton::new(&names, &[], None, None).unwrap();
        assert_eq!(skeleton.flip(), expected, "{names:?}");
    }
    let coco = Skeleton::coco17();
    assert_eq!(coco.flip(), [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]);
    assert_eq!((coco.edges().len(), coco.sigmas()[11]), (19, 0.107));
}

#[test]
fn bad_skeletons_are_refused() {
    let check = |names: &[&str], edges: &[(u8, u8)], flip: Option<&[u8]>, sigmas: Option<&[f32]>, expected: SkeletonError| {
        assert_eq!(Skeleton::new(names, edges, flip, sigmas), Err(expected));
    };
    check(&[], &[], None, None, SkeletonError::Count(0));
    check(&["a"; 33], &[], None, None, SkeletonError::Count(33));
    check(&["a", ""], &[], None, None, SkeletonError::Name(1));
    check(&["a", "0123456789012345678901234"], &[], None, None, SkeletonError::Name(1));
    check(&["a", "b"], &[(0, 2)], None, None, SkeletonError::Edge(0));
    check(&["a", "b"], &[], Some(&[0]), None, SkeletonError::Length { what: "flip", expected: 2, found: 1 });
    check(&["a", "b"], &[], None, Some(&[0.1]), SkeletonError::Length { what: "sigmas", expected: 2, found: 1 });
    check(&["a", "b", "c"], &[], Some(&[1, 2, 0]), None, SkeletonError::Flip { from: 0, to: 1 });
    check(&["a", "b"], &[], Some(&[0, 9]), None, SkeletonError::Flip { from: 1, to: 9 });
    for sigma in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        check(&["a"], &[], None, Some(&[sigma]), SkeletonError::Sigma(0));
    }
}

#[test]
fn hard_keypoints_follow_the_threshold() {
    let keypoint = |probability, x| Keypoint { point: Point { x, y: 2.0 }, probability, ..Default::default() };
    let keypoints = [keypoint(0.5, 1.0), keypoint(0.49, 1.0), keypoint(f32::NAN, 1.0), keypoint(1.0, f32::INFINITY)];
    let hard = harden(&Detection { keypoints: keypoints.into_iter().collect(), ..Default::default() }, 0.5);
    assert_eq!((hard[0].visibility, hard[0].point), (Visibility::Visible, Point { x: 1.0, y: 2.0 }));
    assert!(hard[1..].iter().all(|k| k.visibility == Visibility::Unlabelled && k.point == Point::default()));
}

#[test]
fn a_score_that_is_no_number_is_not_published() {
    let detections = [f32::NAN, 0.9, f32::INFINITY].map(|score| Detection { score, ..Default::default() });
    let label = Label::from_detections(Size::default(), &detections, Thresholds { instance: 0.5, keypoint: 0.5, floor: 0.0 });
    assert_eq!(label.instances.iter().map(|i| i.detection.score).collect::<Vec<_>>(), [f32::INFINITY, 0.9]);
}

#[test]
fn nms_on_oks_drops_the_lower_twin() {
    let near: Vec<Point> = (0..3).map(|i| Point { x: i as f32 * 10.0, y: 0.0 }).collect();
    let twin: Vec<Point> = near.iter().map(|p| Point { x: p.x + 0.5, y: 0.0 }).collect();
    let far: Vec<Point> = near.iter().map(|p| Point { x: p.x + 500.0, y: 0.0 }).collect();
    let mut keep = [true; 3];
    oks_nms(&[&near, &twin, &far], &[900.0; 3], &[1, 0, 2], &[0.08; 3], 0.9, &mut keep);
    assert_eq!(keep, [false, true, true]);
}

#[test]
fn agreement_is_the_oks_kernel() {
    let at = |x| Point { x, y: 0.0 };
    // d = 10 px, σ = 0.1, area = 2500 px²: exp(−100 / (2 · 0.04 · 2500)) = exp(−0.5).
    let got = agreement(&[at(0.0), at(10.0)], at(0.0), 0.1, 2500.0);
    assert!((got - (1.0 + (-0.5f32).exp()) / 2.0).abs() < 1e-6, "{got}");
    assert_eq!(agreement(&[], at(0.0), 0.1, 1.0), 1.0);
    assert_eq!(agreement(&[at(f32::NAN)], at(0.0), 0.1, 1.0), 0.0);
    assert_eq!(agreement(&[at(3.0)], at(3.0), 0.1, 0.0), 1.0);
}

#[test]
fn keypoints_of_the_head_are_known_by_their_names() {
    let sides = Skeleton::coco17();
    let side = |name: &str| sides.side(sides.names().position(|known| known == name).unwrap()).name();
    assert_eq!(["nose", "left_eye", "right_ankle"].map(side), ["centre", "left", "right"]);
    let facial = |names: &[&str]| {
        let skeleton = Skeleton::new(names, &[], None, None).unwrap();
        (0..names.len()).map(|index| skeleton.is_facial(index)).collect::<Vec<_>>()
    };
    assert_eq!(facial(&["nose", "left_eye", "RightEar", "Head", "head_top", "l_brow"]), [true; 6]);
    assert_eq!(facial(&["neck", "rear_paw", "left_hip", "forearm", "headlight", "left"]), [false; 6]);
}
