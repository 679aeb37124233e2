//! Weights as the ways of a convolution read them, made once where many calls share them.

use crate::winograd::{self, Taps};
use crate::{Geometry, Scalar, Threads, patches};

/// The most bytes of what is kept of a weight: beyond, a network's memory would grow by more than a few percent of its time are worth.
const KEPT_BYTES: usize = 10 << 20;

/// Weights made ready, for weights that many calls share.
#[derive(Clone, Debug)]
pub struct Kernels<T>(Way<T>);

#[derive(Clone, Debug)]
enum Way<T> {
    /// Transformed for Winograd's filtering: four times the weights' size.
    Filtered(Vec<T>),
    /// In panels: their size.
    Panels(Vec<T>),
}

impl<T: Scalar> Kernels<T> {
    /// Bytes of those of a weight of `g`, whatever the size of its maps; `None` where they would not be used, or are large.
    pub fn bytes_of(g: &Geometry) -> Option<usize> {
        let len = if winograd::fits(g) { winograd::kernels_len::<T>(g) } else { patches::packed_len::<T>(g) };
        let bytes = len * size_of::<T>();
        (g.groups == 1 && bytes <= KEPT_BYTES).then_some(bytes)
    }

    /// Those of the weight `[o, c, kh, kw]` of `g`, where [`Kernels::bytes_of`] says so.
    ///
    /// # Panics
    /// When `w` has not the length that `g` says.
    pub fn new(g: &Geometry, w: &[T]) -> Option<Self> {
        assert_eq!(w.len(), g.o * g.patch(), "weight of {g:?}");
        let mut kernels = vec![T::ZERO; Self::bytes_of(g)? / size_of::<T>()];
        if winograd::fits(g) {
            winograd::transform(g, &Taps::straight(g, w), &mut kernels, Threads::One);
            return Some(Self(Way::Filtered(kernels)));
        }
        patches::pack(g, w, &mut kernels, Threads::One);
        Some(Self(Way::Panels(kernels)))
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let (Way::Filtered(kernels) | Way::Panels(kernels)) = &self.0;
        kernels.len() * size_of::<T>()
    }

    /// The transformed ones.
    pub(crate) fn filtered(&self) -> Option<&[T]> {
        if let Way::Filtered(kernels) = &self.0 { Some(kernels) } else { None }
    }

    /// The panels.
    pub(crate) fn panels(&self) -> Option<&[T]> {
        if let Way::Panels(kernels) = &self.0 { Some(kernels) } else { None }
    }
}
