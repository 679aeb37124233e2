//! Weights as the ways of a convolution read them, made once where many calls share them.

use crate::winograd::{self, Taps};
use crate::{Geometry, Scalar, Threads, patches};

/// The most bytes of what is kept where each call could make it anew: beyond, many channels' products outweigh that.
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
    /// Those of the weight `[o, c/groups, kh, kw]` of `g`, on maps of any size: transformed ones of more than 10 MiB only where `g`'s maps are so
    /// small that a call would not transform them. `None` where they would not be used, or are large.
    ///
    /// # Panics
    /// When `w` has not the length that `g` says.
    pub fn new(g: &Geometry, w: &[T]) -> Option<Self> {
        assert_eq!(w.len(), g.o * g.patch(), "weight of {g:?}");
        let filtered = winograd::fits(g);
        let len = if filtered { winograd::kernels_len::<T>(g) } else { patches::packed_len::<T>(g) };
        let too_dear = filtered && winograd::pays(g, true) && !winograd::pays(g, false);
        if g.groups > 1 || len * size_of::<T>() > KEPT_BYTES && !too_dear {
            return None;
        }
        let mut kernels = vec![T::ZERO; len];
        if filtered {
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
