//! Views whose boxes are known compute only what RoIAlign reads of the pyramid, and are averaged before their heatmaps are enlarged: the
//! labels must be those of whole feature maps and of whole heatmaps.

mod zoo;

use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Rect;
use omnilabel_keypoints::label::Detection;
use omnilabel_runtime::{BackboneOutput, FeatureLevel, Graphs, Needed, RuntimeError, Teacher, TractGraphs, ViewPlan};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Tiles of the convolution begin elsewhere in a part than in the whole: the last bits of f32 differ.
const LOGIT_TOLERANCE: f32 = 2e-4;
/// Of points whose map has a single peak.
const POINT_TOLERANCE_PX: f32 = 0.51;

/// Of points that differ by hundredths of a pixel.
const AGREEMENT_TOLERANCE: f32 = 1e-3;

/// The same graphs, with the features of a view taken from a whole pass, and every view's heatmaps in full.
struct Whole(TractGraphs, &'static AtomicUsize);

impl Graphs for Whole {
    fn backbone(&self, image: &[f32], rows: usize, columns: usize) -> Result<BackboneOutput, RuntimeError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.backbone(image, rows, columns)
    }

    fn box_head(&self, rois: Vec<f32>, r: usize) -> Result<(Vec<f32>, Vec<f32>), RuntimeError> {
        self.0.box_head(rois, r)
    }

    fn keypoint_head(&self, rois: Vec<f32>, r: usize) -> Result<Vec<f32>, RuntimeError> {
        self.0.keypoint_head(rois, r)
    }
}

fn assert_same(frame: &Frame, found: &[Detection], expected: &[Detection]) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        // Beyond the frame maps are flat, and any of equal cells may win.
        let inside = e.rect.x1 >= 0.0 && e.rect.y1 >= 0.0 && e.rect.x2 <= frame.size.width as f32 && e.rect.y2 <= frame.size.height as f32;
        for (f, e) in f.keypoints.iter().zip(&e.keypoints) {
            assert!((f.peak_logit - e.peak_logit).abs() <= LOGIT_TOLERANCE, "{f:?}, {e:?}");
            let moved = (f.point.x - e.point.x).abs().max((f.point.y - e.point.y).abs());
            assert!(!inside || moved <= POINT_TOLERANCE_PX, "{f:?}, {e:?}");
            assert!(!inside || (f.agreement - e.agreement).abs() <= AGREEMENT_TOLERANCE, "{f:?}, {e:?}");
        }
    }
}

#[test]
fn parts_of_the_pyramid_are_enough() {
    static PASSES: AtomicUsize = AtomicUsize::new(0);
    let bundle = zoo::bundle();
    let frame = zoo::frame(&bundle);
    let (w, h) = (frame.size.width as f32, frame.size.height as f32);
    let graphs = TractGraphs::load(&bundle, 2).expect("graphs");
    assert!(graphs.enlargement().is_some_and(|enlargement| enlargement.side() == 2 * enlargement.from()));
    let graphs = Whole(graphs, &PASSES);
    let whole = Teacher::with_graphs(Box::new(graphs), bundle.manifest().clone(), bundle.skeleton().clone()).expect("a teacher");
    let side = bundle.manifest().input.short_side;
    let plan = ViewPlan::new(bundle.manifest(), &[side / 2, side, side * 3 / 2], true);
    // In the middle, at the edges, beyond them, the whole frame, and less than a cell.
    let boxes = [
        Rect::new(0.3 * w, 0.3 * h, 0.5 * w, 0.8 * h),
        Rect::new(0.0, 0.0, 0.2 * w, 0.3 * h),
        Rect::new(0.9 * w, 0.7 * h, w, h),
        Rect::new(-0.3 * w, 0.5 * h, 0.2 * w, 1.4 * h),
        Rect::new(0.0, 0.0, w, h),
        Rect::new(0.5 * w, 0.5 * h, 0.5 * w + 1.0, 0.5 * h + 1.0),
    ]
    .map(|rect| (rect, 1.0));
    let expected = whole.detect_in(&frame, &boxes, &plan).expect("detections");
    assert_eq!(PASSES.load(Ordering::Relaxed), plan.views.len());
    for threads in [1, 2, 3] {
        let teacher = Teacher::load(&bundle, threads).expect("a teacher");
        assert_same(&frame, &teacher.detect_in(&frame, &boxes, &plan).expect("detections"), &expected);
        for one in &boxes {
            let found = teacher.detect_in(&frame, &[*one], &plan).expect("detections");
            let own = whole.detect_in(&frame, &[*one], &plan).expect("detections");
            assert_same(&frame, &found, &own);
        }
        assert_same(&frame, &teacher.detect(&frame, &plan).expect("detections"), &whole.detect(&frame, &plan).expect("detections"));
    }
}

#[test]
fn what_is_not_needed_is_not_computed() {
    let bundle = zoo::bundle();
    let graphs = TractGraphs::load(&bundle, 1).expect("graphs");
    let image = vec![0.5; 2 * 3 * 64 * 96];
    let needed = |image: usize, level: usize, rows: usize, columns: usize| match (image, level) {
        (0, 0) => (1..rows - 1, 2..5),
        (1, 1) => (0..rows, 0..columns),
        _ => (0..0, 0..0),
    };
    let needed: Needed<'_> = &needed;
    let found = graphs.features(&image, 64, 96, needed).expect("features");
    let whole = graphs.backbone(&image[..3 * 64 * 96], 64, 96).expect("features").features;
    let alive = |(values, channels, rows, columns): &FeatureLevel| -> Vec<(usize, usize)> {
        let cell = |at: usize| (0..*channels).any(|c| values[c * rows * columns + at] != 0.0);
        (0..rows * columns).filter(|at| cell(*at)).map(|at| (at / columns, at % columns)).collect()
    };
    let (rows, columns) = (whole[0].2, whole[0].3);
    let expected: Vec<_> = (1..rows - 1).flat_map(|y| (2..5).map(move |x| (y, x))).collect();
    assert_eq!(alive(&found[0][0]), expected);
    assert_eq!(alive(&found[1][1]).len(), whole[1].2 * whole[1].3);
    assert!(found[0][1].0.iter().chain(&found[1][0].0).all(|v| *v == 0.0));
    for (y, x) in expected {
        for c in 0..whole[0].1 {
            let at = (c * rows + y) * columns + x;
            assert!((found[0][0].0[at] - whole[0].0[at]).abs() < LOGIT_TOLERANCE, "{c} {y} {x}");
        }
    }
}
