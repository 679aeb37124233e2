//! Shapes of a convolution, and what follows from them.

use std::ops::Range;

/// The geometry of a convolution: input `[n, c, h, w]`, kernel `[o, c/groups, kh, kw]`, output `[n, o, oh, ow]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Images.
    pub n: usize,
    /// Channels of the input.
    pub c: usize,
    /// Rows of the input.
    pub h: usize,
    /// Columns of the input.
    pub w: usize,
    /// Channels of the output.
    pub o: usize,
    /// Rows of the kernel.
    pub kh: usize,
    /// Columns of the kernel.
    pub kw: usize,
    /// Step in both directions.
    pub stride: usize,
    /// Zeros on all four sides.
    pub padding: usize,
    /// Groups of channels.
    pub groups: usize,
    /// Rows of the output.
    pub oh: usize,
    /// Columns of the output.
    pub ow: usize,
}

impl Geometry {
    /// The convolution of `x` `[n, c, h, w]` with `weight` `[o, c/groups, kh, kw]`; `None` where they do not fit.
    pub fn new(x: [usize; 4], weight: [usize; 4], stride: usize, padding: usize, groups: usize) -> Option<Self> {
        let ([n, c, h, w], [o, inner, kh, kw]) = (x, weight);
        let fits = stride > 0 && groups > 0 && kh > 0 && kw > 0 && c == inner * groups && o.is_multiple_of(groups);
        if !fits || h + 2 * padding < kh || w + 2 * padding < kw {
            return None;
        }
        let (oh, ow) = ((h + 2 * padding - kh) / stride + 1, (w + 2 * padding - kw) / stride + 1);
        Some(Self { n, c, h, w, o, kh, kw, stride, padding, groups, oh, ow })
    }

    /// Numbers of one input image.
    pub fn input_len(&self) -> usize {
        self.c * self.h * self.w
    }

    /// Numbers of one output image.
    pub fn output_len(&self) -> usize {
        self.o * self.plane()
    }

    /// Numbers of one output channel.
    #[inline]
    pub(crate) fn plane(&self) -> usize {
        self.oh * self.ow
    }

    /// Rows of the patch matrix of one group.
    #[inline]
    pub(crate) fn patch(&self) -> usize {
        self.c / self.groups * self.kh * self.kw
    }

    /// Output channels of one group.
    pub(crate) fn channels(&self) -> usize {
        self.o / self.groups
    }

    /// Whether the input itself is the patch matrix.
    pub(crate) fn pointwise(&self) -> bool {
        self.kh == 1 && self.kw == 1 && self.stride == 1 && self.padding == 0
    }

    /// The convolution whose output is this one's input gradient: of stride 1, with the kernel mirrored and each group's channels
    /// exchanged.
    pub(crate) fn adjoint(&self) -> Option<Self> {
        let (square, padding) = (self.kh == self.kw, self.kh.checked_sub(1 + self.padding)?);
        (square && self.stride == 1).then_some(Self {
            c: self.o,
            h: self.oh,
            w: self.ow,
            o: self.c,
            padding,
            oh: self.h,
            ow: self.w,
            ..*self
        })
    }

    /// For kernel column `kx`: the output columns `[lo, hi)` whose input column lies inside the image.
    #[inline]
    pub(crate) fn columns(&self, kx: usize) -> (usize, usize) {
        let lo = self.padding.saturating_sub(kx).div_ceil(self.stride).min(self.ow);
        let hi = (self.w + self.padding).saturating_sub(kx).div_ceil(self.stride).min(self.ow);
        (lo, hi.max(lo))
    }

    /// Whether output and input have one grid: a row of patches is then the image, shifted.
    #[inline]
    pub(crate) fn shifted(&self) -> bool {
        self.stride == 1 && self.ow == self.w && self.padding < self.kw
    }

    /// For kernel tap `(ky, kx)` on one grid: the part of `rows` whose input row lies inside, and within these rows the elements
    /// (counted from the first row of `rows`) that have a source inside the plane, and where in the plane that source starts.
    #[inline]
    pub(crate) fn shift(&self, ky: usize, kx: usize, rows: &Range<usize>) -> (Range<usize>, usize) {
        let first = self.padding.saturating_sub(ky).clamp(rows.start, rows.end);
        let last = (self.h + self.padding).saturating_sub(ky).clamp(first, rows.end);
        // Source of element `i` is `i + ahead − behind`; the few beyond the plane's ends belong to border columns.
        let (ahead, behind) = ((rows.start + ky) * self.w + kx, self.padding * (self.w + 1));
        let start = ((first - rows.start) * self.w).max(behind.saturating_sub(ahead));
        let end = ((last - rows.start) * self.w).min((self.h * self.w + behind).saturating_sub(ahead));
        if start < end { (start..end, start + ahead - behind) } else { (0..0, 0) }
    }

    /// The input row of output row `oy` and kernel row `ky`, when inside.
    #[inline]
    pub(crate) fn row(&self, oy: usize, ky: usize) -> Option<usize> {
        (oy * self.stride + ky).checked_sub(self.padding).filter(|y| *y < self.h)
    }
}
