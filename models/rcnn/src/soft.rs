//! Soft labels: the teacher's averaged heatmaps themselves instead of the places where they peak, for the comparison that the paper leaves
//! aside (its labels are hard ones). A map lives on the teacher's box of a person; the student's RoI, whatever augmentation did to the image,
//! reads it where its own cells lie.

use crate::RcnnError;
use crate::augment::Affine;
use omnilabel_keypoints::geometry::{Point, Rect};
use std::sync::Arc;

/// What a teacher thinks of one person's keypoints.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftLabel {
    rect: Rect,
    side: usize,
    maps: Vec<f32>,
}

impl SoftLabel {
    /// `maps` are `[keypoints, side, side]`, row by row: probabilities on the cells of `rect` (frame pixels), each map with a sum of one.
    ///
    /// # Errors
    /// [`RcnnError::Config`] of a box without an area, and of another number of values.
    pub fn new(rect: Rect, keypoints: usize, side: usize, maps: Vec<f32>) -> Result<Self, RcnnError> {
        if side == 0 || maps.len() != keypoints * side * side {
            let found = maps.len();
            return Err(RcnnError::Config(format!("a soft label of {keypoints} maps of {side}² cells has {found} values")));
        }
        if !(rect.is_valid() && rect.area() > 0.0) {
            return Err(RcnnError::Config(format!("a soft label on a box without an area, {rect:?}")));
        }
        Ok(Self { rect, side, maps })
    }

    /// `[keypoints, side, side]`.
    pub fn maps(&self) -> &[f32] {
        &self.maps
    }
}

/// A [`SoftLabel`] as an augmented image shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftTruth {
    label: Arc<SoftLabel>,
    frame_from_net: Affine,
    /// For each keypoint of the image the one of the label: another one where the image is mirrored.
    source: Vec<usize>,
}

/// A keypoint of which the RoI shows less is not learnt there, as one with a hard label outside of it is not.
const MASS_INSIDE: f64 = 0.5;

impl SoftTruth {
    pub(crate) fn new(label: Arc<SoftLabel>, frame_from_net: Affine, source: Vec<usize>) -> Self {
        Self { label, frame_from_net, source }
    }

    /// The probabilities of a keypoint on the `side`² cells of `roi` (net pixels), with a sum of one: the label's map, interpolated between
    /// the centres of its cells and nought beyond its border. `None` where more than half of it lies outside of the RoI. Read at the middles of
    /// the RoI's cells, which on a larger box than the label's miss some of a narrow peak: what is found inside may be a third too little.
    pub(crate) fn on(&self, keypoint: usize, roi: Rect, side: u32) -> Option<Vec<f32>> {
        let SoftLabel { rect, side: from, maps } = &*self.label;
        let map = maps.chunks_exact(from * from).nth(*self.source.get(keypoint)?)?;
        let at = |x: i64, y: i64| {
            let inside = |i: i64| usize::try_from(i).ok().filter(|i| i < from);
            inside(x).zip(inside(y)).map_or(0.0, |(x, y)| map[y * from + x])
        };
        let across = *from as f32 / rect.width();
        let down = *from as f32 / rect.height();
        let (width, height) = (roi.width() / side as f32, roi.height() / side as f32);
        let mut spread = Vec::with_capacity((side * side) as usize);
        for row in 0..side {
            for column in 0..side {
                let net = Point { x: roi.x1 + (column as f32 + 0.5) * width, y: roi.y1 + (row as f32 + 0.5) * height };
                let frame = self.frame_from_net.point(net);
                let (x, y) = ((frame.x - rect.x1) * across - 0.5, (frame.y - rect.y1) * down - 0.5);
                let (x0, y0) = (x.floor(), y.floor());
                let (fx, fy) = (x - x0, y - y0);
                let (x0, y0) = (x0 as i64, y0 as i64);
                let top = at(x0, y0) * (1.0 - fx) + at(x0 + 1, y0) * fx;
                let bottom = at(x0, y0 + 1) * (1.0 - fx) + at(x0 + 1, y0 + 1) * fx;
                spread.push(top * (1.0 - fy) + bottom * fy);
            }
        }
        let sum: f64 = spread.iter().map(|&q| f64::from(q)).sum();
        // Cells of the label per cell of the RoI.
        let area = f64::from(width * height) * self.frame_from_net.area() * f64::from(across * down);
        let inside = sum * area;
        if inside.is_nan() || inside < MASS_INSIDE {
            return None;
        }
        spread.iter_mut().for_each(|q| *q = (f64::from(*q) / sum) as f32);
        Some(spread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECT: Rect = Rect { x1: 10.0, y1: 20.0, x2: 38.0, y2: 76.0 };

    fn label() -> Arc<SoftLabel> {
        // Two keypoints: one spread over four cells, one in a single cell.
        let mut maps = vec![0.0; 2 * 28 * 28];
        [(5 * 28 + 6, 0.4), (5 * 28 + 7, 0.3), (6 * 28 + 6, 0.2), (6 * 28 + 7, 0.1)].into_iter().for_each(|(at, q)| maps[at] = q);
        maps[28 * 28 + 20 * 28 + 3] = 1.0;
        Arc::new(SoftLabel { rect: RECT, side: 28, maps })
    }

    fn truth(affine: Affine, source: &[usize]) -> SoftTruth {
        SoftTruth::new(label(), affine, source.to_vec())
    }

    #[test]
    fn the_same_box_gives_the_same_map() {
        let truth = truth(Affine::scaling(1.0, 1.0), &[0, 1]);
        for keypoint in 0..2 {
            let spread = truth.on(keypoint, RECT, 28).unwrap();
            for (a, b) in spread.iter().zip(&label().maps[keypoint * 784..]) {
                // The rounding of positions: a few ulp of 76 px in cells of 1 px.
                assert!((a - b).abs() < 1e-5, "{a} {b}");
            }
        }
    }

    #[test]
    fn a_mirrored_image_reads_the_other_keypoint_from_right_to_left() {
        // A canvas of 100 px.
        let truth = truth(Affine::scaling(-1.0, 1.0).then(Affine::translation(100.0, 0.0)), &[1, 0]);
        let mirrored = Rect { x1: 62.0, x2: 90.0, ..RECT };
        let spread = truth.on(0, mirrored, 28).unwrap();
        let brightest = spread.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
        assert_eq!(brightest, 20 * 28 + 27 - 3);
        assert_eq!(truth.on(1, mirrored, 28).unwrap().iter().filter(|q| **q > 0.05).count(), 4);
    }

    #[test]
    fn another_roi_reads_the_same_place_and_none_where_the_keypoint_is_outside() {
        // Twice as large, so that a cell of the RoI is two of the label's; the image is enlarged by three.
        let truth = truth(Affine::scaling(1.0 / 3.0, 1.0 / 3.0), &[0, 1]);
        let roi = Rect::new(3.0 * 10.0, 3.0 * 20.0, 3.0 * 66.0, 3.0 * 132.0);
        let spread = truth.on(0, roi, 28).unwrap();
        let mean =
            |axis: fn(usize) -> usize| -> f64 { spread.iter().enumerate().map(|(at, &q)| (axis(at) as f64 + 0.5) * f64::from(q)).sum() };
        // The map's own mean, (6.5 + 0.4, 5.5 + 0.3), in cells that are twice as large. Of such narrow maps a coarser grid keeps the mean
        // to half a cell.
        assert!((mean(|at| at % 28) - 3.45).abs() < 0.5 && (mean(|at| at / 28) - 2.9).abs() < 0.5);
        assert!((spread.iter().map(|&q| f64::from(q)).sum::<f64>() - 1.0).abs() < 1e-6);
        let below = Rect::new(3.0 * 10.0, 3.0 * 60.0, 3.0 * 66.0, 3.0 * 132.0);
        assert_eq!(truth.on(0, below, 28), None);
        assert!(truth.on(1, below, 28).is_some());
    }

    #[test]
    fn a_map_that_is_no_map_is_no_label() {
        let nan = SoftLabel { maps: vec![f32::NAN; 2 * 784], ..(*label()).clone() };
        assert_eq!(SoftTruth::new(Arc::new(nan), Affine::scaling(1.0, 1.0), vec![0, 1]).on(0, RECT, 28), None);
        assert_eq!(truth(Affine::scaling(1.0, 1.0), &[0]).on(1, RECT, 28), None);
        let refused = |rect, side, values| SoftLabel::new(rect, 2, side, vec![0.0; values]).is_err();
        assert!(refused(RECT, 28, 784) && refused(RECT, 0, 0) && refused(Rect { x2: 10.0, ..RECT }, 28, 1568) && !refused(RECT, 28, 1568));
    }
}
