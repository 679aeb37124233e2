//! The box coder (spec §1): `dx = wx · (cx* − cx) / w`, `dw = ww · ln(w* / w)`; dw, dh clamped to ln(1000/16) on decoding.

use omnilabel_keypoints::geometry::Rect;

/// Encodes and decodes boxes against reference boxes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoxCoder {
    /// (wx, wy, ww, wh): (1, 1, 1, 1) for the RPN, (10, 10, 5, 5) for the box head.
    pub weights: [f32; 4],
}

/// The largest logarithmic growth of a side, ln(1000/16).
pub const MAX_LOG_GROWTH: f32 = 4.135_166_6;

impl BoxCoder {
    /// The deltas that carry `reference` to `target`. Both need positive sides for finite deltas. Computed in f64: they are targets,
    /// of gradients that are checked in f64 among others.
    pub fn encode(&self, reference: Rect, target: Rect) -> [f64; 4] {
        let [wx, wy, ww, wh] = self.weights.map(f64::from);
        let sides = |rect: Rect| [rect.x1, rect.y1, rect.x2, rect.y2].map(f64::from);
        let ([rx1, ry1, rx2, ry2], [tx1, ty1, tx2, ty2]) = (sides(reference), sides(target));
        let (rw, rh, tw, th) = (rx2 - rx1, ry2 - ry1, tx2 - tx1, ty2 - ty1);
        let (rx, ry) = (rx1 + 0.5 * rw, ry1 + 0.5 * rh);
        let (tx, ty) = (tx1 + 0.5 * tw, ty1 + 0.5 * th);
        [wx * (tx - rx) / rw, wy * (ty - ry) / rh, ww * (tw / rw).ln(), wh * (th / rh).ln()]
    }

    /// The box that `deltas` make of `reference`.
    pub fn decode(&self, reference: Rect, deltas: [f32; 4]) -> Rect {
        let [wx, wy, ww, wh] = self.weights;
        let (rw, rh) = (reference.width(), reference.height());
        let (rx, ry) = (reference.x1 + 0.5 * rw, reference.y1 + 0.5 * rh);
        let (dx, dy) = (deltas[0] / wx, deltas[1] / wy);
        let (dw, dh) = ((deltas[2] / ww).min(MAX_LOG_GROWTH), (deltas[3] / wh).min(MAX_LOG_GROWTH));
        let (x, y) = (dx * rw + rx, dy * rh + ry);
        let (half_w, half_h) = (0.5 * (dw.exp() * rw), 0.5 * (dh.exp() * rh));
        Rect::new(x - half_w, y - half_h, x + half_w, y + half_h)
    }
}
