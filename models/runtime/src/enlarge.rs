//! The interpolation that ends a keypoint head. It is linear: logits of views are averaged before it, and only their average is enlarged.

use omnilabel_keypoints::geometry::{Point, Rect};
use omnilabel_keypoints::heatmap::{brightest, range, refined};

/// The two sources of an output and their weights; one that is not there has weight 0.
pub(crate) type Taps = [(usize, f32); 2];

/// How maps of `from × from` become heatmaps of `side × side`: along the rows first.
#[derive(Clone, Debug, PartialEq)]
pub struct Enlargement {
    from: usize,
    /// Of each output column.
    columns: Vec<Taps>,
    /// Of each output row.
    rows: Vec<Taps>,
}

/// Rounding may lift an interpolated value above its sources by this share of their magnitude: a product, a sum and the weights' own sum, on
/// either axis, doubled.
const ROUNDING: f32 = 12.0 * f32::EPSILON;

impl Enlargement {
    /// `None` where maps may not be averaged and mirrored before it, nor its values be bounded by their sources': without square maps,
    /// weights of 0 to 1 that sum to 1, and columns that are their own mirror image.
    pub(crate) fn new(from: usize, columns: Vec<Taps>, rows: Vec<Taps>) -> Option<Self> {
        let whole = |taps: &Taps| {
            let [(a, wa), (b, wb)] = *taps;
            a < from && b < from && wa >= 0.0 && wb >= 0.0 && (wa + wb - 1.0).abs() <= f32::EPSILON
        };
        let weight = |taps: &Taps, source: usize| taps.iter().filter(|tap| tap.0 == source).map(|tap| tap.1).sum::<f32>();
        let mirrored = |(taps, mirror): (&Taps, &Taps)| taps.iter().all(|tap| weight(taps, tap.0) == weight(mirror, from - 1 - tap.0));
        let square = columns.len() == rows.len() && !rows.is_empty();
        let fits = square && columns.iter().chain(&rows).all(whole) && columns.iter().zip(columns.iter().rev()).all(mirrored);
        fits.then_some(Self { from, columns, rows })
    }

    /// Rows and columns of the maps before.
    pub fn from(&self) -> usize {
        self.from
    }

    /// Rows and columns of the heatmaps.
    pub fn side(&self) -> usize {
        self.rows.len()
    }

    /// The heatmap of `map` `[from, from]`: `[side, side]`.
    ///
    /// # Panics
    /// When `map` has another length.
    pub fn enlarge(&self, map: &[f32]) -> Vec<f32> {
        assert_eq!(map.len(), self.from * self.from, "a map of {0} x {0}", self.from);
        let side = self.side();
        let mut wide = vec![0.0; self.from * side];
        map.chunks_exact(self.from).zip(wide.chunks_exact_mut(side)).for_each(|(row, wide)| self.along(row, wide));
        let mut out = vec![0.0; side * side];
        for (out, taps) in out.chunks_exact_mut(side).zip(&self.rows) {
            blend(taps.map(|(row, weight)| (&wide[row * side..][..side], weight)), out);
        }
        out
    }

    /// A row of `from` numbers made `side` long.
    fn along(&self, row: &[f32], wide: &mut [f32]) {
        wide.iter_mut().zip(&self.columns).for_each(|(out, [(a, wa), (b, wb)])| *out = wa * row[*a] + wb * row[*b]);
    }

    /// [`brightest`] of the heatmap of `map` `[from, from]`, of which only rows are computed that can hold the maximum.
    ///
    /// # Panics
    /// When `map` has another length.
    pub fn brightest(&self, map: &[f32], rect: Rect) -> Point {
        assert_eq!(map.len(), self.from * self.from, "a map of {0} x {0}", self.from);
        let side = self.side();
        let ranges: Vec<(f32, f32)> = map.chunks_exact(self.from).map(range).collect();
        let highest = ranges.iter().fold(f32::NEG_INFINITY, |highest, range| highest.max(range.1));
        if !ranges.iter().all(|(low, high)| low.is_finite() && high.is_finite()) {
            return brightest(&self.enlarge(map), side, rect);
        }
        let mut lines = vec![0.0; 3 * side];
        let (out, sources) = lines.split_at_mut(side);
        let (mut best, mut place) = (f32::NEG_INFINITY, (0, 0));
        let mut look = |y: usize, best: &mut f32, place: &mut (usize, usize)| {
            let [(a, wa), (b, wb)] = self.rows[y];
            let (one, other) = sources.split_at_mut(side);
            self.along(&map[a * self.from..][..self.from], one);
            self.along(&map[b * self.from..][..self.from], other);
            blend([(one, wa), (other, wb)], out);
            let (_, top) = range(out);
            if top > *best || (top == *best && y < place.1) {
                let x = out.iter().position(|v| *v == top).unwrap_or(0);
                (*best, *place) = (top, (x, y));
            }
        };
        // The rows around the brightest one first: they leave little to look at.
        let near = |taps: &Taps| taps.iter().any(|(row, weight)| *weight > 0.5 && ranges[*row].1 == highest);
        for y in (0..side).filter(|y| near(&self.rows[*y])) {
            look(y, &mut best, &mut place);
        }
        for (y, taps) in self.rows.iter().enumerate() {
            let of = |value: fn(&(f32, f32)) -> f32| taps.iter().map(|(row, weight)| weight * value(&ranges[*row])).sum::<f32>();
            let bound = of(|range| range.1) + ROUNDING * of(|range| range.0.abs().max(range.1.abs()));
            if bound >= best && !near(taps) {
                look(y, &mut best, &mut place);
            }
        }
        let value = |x: usize, y: usize| {
            let across = |row: usize| self.columns[x].iter().map(|(column, weight)| weight * map[row * self.from + column]).sum::<f32>();
            self.rows[y].iter().map(|(row, weight)| weight * across(*row)).sum()
        };
        refined(place, side, value, rect)
    }
}

/// The weighted sum of two rows.
fn blend([(a, wa), (b, wb)]: [(&[f32], f32); 2], out: &mut [f32]) {
    out.iter_mut().zip(a).zip(b).for_each(|((out, a), b)| *out = wa * a + wb * b);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// PyTorch's bilinear interpolation ×2 with half pixels.
    fn doubled(from: usize) -> Vec<Taps> {
        let last = from - 1;
        (0..2 * from).map(|i| [(i / 2, 0.75), (if i % 2 == 0 { (i / 2).saturating_sub(1) } else { (i / 2 + 1).min(last) }, 0.25)]).collect()
    }

    proptest! {
        #[test]
        fn the_brightest_cell_is_that_of_the_whole_heatmap(
            (from, map) in (1usize..20).prop_flat_map(|from| (Just(from), prop::collection::vec(-9.0f32..9.0, from * from))),
            rough in any::<bool>(), peak in 0usize..400,
        ) {
            let enlargement = Enlargement::new(from, doubled(from), doubled(from)).unwrap();
            let mut map = if rough { map.iter().map(|v| v.round()).collect() } else { map };
            // As heatmaps are: one peak, and little beside it.
            if peak % 2 == 0 {
                map.iter_mut().for_each(|v| *v *= 0.2);
                map[peak % (from * from)] = 9.0;
            }
            let rect = Rect::new(3.0, 5.0, 60.0, 33.0);
            let expected = brightest(&enlargement.enlarge(&map), 2 * from, rect);
            prop_assert_eq!(enlargement.brightest(&map, rect), expected);
        }
    }

    #[test]
    fn only_what_commutes_with_averages_and_mirrors_is_taken() {
        assert!(Enlargement::new(4, doubled(4), doubled(4)).is_some());
        let with = |i: usize, taps: Taps| {
            let mut columns = doubled(4);
            columns[i] = taps;
            Enlargement::new(4, columns, doubled(4))
        };
        assert_eq!(with(2, [(1, 0.8), (0, 0.2)]), None, "no mirror image");
        assert_eq!(with(2, [(1, 1.25), (0, -0.25)]), None, "beyond its sources");
        assert_eq!(with(2, [(1, 0.75), (0, 0.75)]), None, "another sum");
        assert_eq!(with(2, [(4, 0.75), (0, 0.25)]), None, "no such source");
        assert_eq!(Enlargement::new(4, doubled(4), doubled(3)), None, "not square");
    }

    #[test]
    fn what_is_not_finite_is_found_as_in_the_whole_heatmap() {
        let enlargement = Enlargement::new(3, doubled(3), doubled(3)).unwrap();
        let rect = Rect::new(0.0, 0.0, 6.0, 6.0);
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let map = [1.0, 2.0, 3.0, 4.0, wrong, 6.0, 7.0, 8.0, 9.0];
            let expected = brightest(&enlargement.enlarge(&map), 6, rect);
            assert_eq!(enlargement.brightest(&map, rect), expected);
            assert!(expected.x.is_finite() && expected.y.is_finite());
        }
    }
}
