//! Anchors of an FPN level: those of the cell at the origin, one per ratio, shifted to cell `(row, column)`; see [`AnchorRule`].

use omnilabel_bundle::{AnchorRule, NetworkSpec};
use omnilabel_keypoints::geometry::Rect;

/// Rows and columns of a map.
pub type Grid = (usize, usize);

/// The anchors of one level.
#[derive(Clone, Debug)]
pub struct Anchors {
    /// At the origin, one per ratio: area `anchor_size²`.
    base: Vec<Rect>,
    /// Pixels between rows and between columns.
    stride: (usize, usize),
}

impl Anchors {
    /// Of `network.levels[level]`, whose map is `grid`, where the finest level's is `finest`.
    ///
    /// # Panics
    /// When there is no such level.
    pub fn new(network: &NetworkSpec, level: usize, grid: Grid, finest: Grid) -> Self {
        let spec = network.levels[level];
        let base = |ratio: &f32| {
            let h_ratio = ratio.sqrt();
            let w_ratio = 1.0 / h_ratio;
            let (w, h) = (w_ratio * spec.anchor_size, h_ratio * spec.anchor_size);
            let half = |side: f32| match network.anchor_rule {
                AnchorRule::Exact => side / 2.0,
                AnchorRule::Rounded | AnchorRule::Torchvision => (side / 2.0).round_ties_even(),
            };
            Rect::new(half(-w), half(-h), half(w), half(h))
        };
        let padded = |cells: usize| cells * network.levels[0].stride as usize;
        let stride = match network.anchor_rule {
            AnchorRule::Torchvision => (padded(finest.0) / grid.0.max(1), padded(finest.1) / grid.1.max(1)),
            AnchorRule::Rounded | AnchorRule::Exact => (spec.stride as usize, spec.stride as usize),
        };
        Self { base: network.aspect_ratios.iter().map(base).collect(), stride }
    }

    /// Anchors per cell.
    pub fn per_cell(&self) -> usize {
        self.base.len()
    }

    /// Pixels between rows, and between columns.
    pub fn stride(&self) -> (usize, usize) {
        self.stride
    }

    /// The anchor of one cell and ratio.
    pub fn at(&self, row: usize, column: usize, ratio: usize) -> Rect {
        let (x, y) = ((column * self.stride.1) as f32, (row * self.stride.0) as f32);
        let base = self.base[ratio];
        Rect::new(base.x1 + x, base.y1 + y, base.x2 + x, base.y2 + y)
    }
}

/// All anchors of a pyramid whose maps are `grids`, finest first, in the order `[level, row, column, ratio]`.
pub fn anchors(network: &NetworkSpec, grids: &[Grid]) -> Vec<Rect> {
    let mut all = Vec::new();
    for (level, &grid) in grids.iter().enumerate() {
        let anchors = Anchors::new(network, level, grid, grids[0]);
        for row in 0..grid.0 {
            for column in 0..grid.1 {
                all.extend((0..anchors.per_cell()).map(|ratio| anchors.at(row, column, ratio)));
            }
        }
    }
    all
}
