//! Which way a convolution takes, and what follows its sums.

use crate::kernels::Kernels;
use crate::winograd::{self, Taps};
use crate::{Geometry, Scalar, Threads, grouped, patches, positive};

/// What is added to the sums.
#[derive(Clone, Copy, Debug, Default)]
pub enum Addend<'a, T> {
    /// Nothing.
    #[default]
    None,
    /// A map of the output's shape: the other branch of a residual block.
    Map(&'a [T]),
    /// What the output holds before.
    Output,
}

/// What follows the sums, while they are in registers or in the cache: `y = relu(sums + addend + bias)`, each where wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Finish<'a, T> {
    /// `[o]`.
    pub bias: Option<&'a [T]>,
    /// The addend.
    pub add: Addend<'a, T>,
    /// Whether ReLU comes last.
    pub relu: bool,
}

impl<T: Scalar> Finish<'_, T> {
    /// Writes `sums` of output channel `channel` to `y`, which begins at index `at` of the whole output.
    #[inline(always)]
    pub(crate) fn write(&self, channel: usize, at: usize, sums: &[T], y: &mut [T]) {
        let bias = self.bias.map_or(T::ZERO, |bias| bias[channel]);
        let relu = |v: T| if self.relu { positive(v) } else { v };
        match self.add {
            Addend::Output => y.iter_mut().zip(sums).for_each(|(y, s)| *y = relu(*s + *y + bias)),
            Addend::None => y.iter_mut().zip(sums).for_each(|(y, s)| *y = relu(*s + bias)),
            Addend::Map(add) => y.iter_mut().zip(sums).zip(&add[at..]).for_each(|((y, s), a)| *y = relu(*s + *a + bias)),
        }
    }
}

/// Less is done before another thread has woken up.
const SHARED_PRODUCTS: usize = 1 << 20;

/// `y = x ⋆ w`, then `finish`: `[n, c, h, w]`, `[o, c/groups, kh, kw]` → `[n, o, oh, ow]`. The output before is 0.
///
/// # Panics
/// When a slice has not the length that `g` says.
pub fn forward<T: Scalar>(g: &Geometry, x: &[T], w: &[T], finish: Finish<'_, T>, threads: Threads) -> Vec<T> {
    let mut y = vec![T::ZERO; g.n * g.output_len()];
    forward_into(g, x, w, None, finish, &mut y, threads);
    y
}

/// [`forward`] to `y`, whose values before do not matter but to [`Addend::Output`]; `kernels` are those of `w`, where they were kept.
///
/// # Panics
/// When a slice has not the length that `g` says.
pub fn forward_into<T: Scalar>(
    g: &Geometry,
    x: &[T],
    w: &[T],
    kernels: Option<&Kernels<T>>,
    finish: Finish<'_, T>,
    y: &mut [T],
    threads: Threads,
) {
    assert_eq!((x.len(), w.len()), (g.n * g.input_len(), g.o * g.patch()), "input and weight of {g:?}");
    assert!(finish.bias.is_none_or(|bias| bias.len() == g.o), "bias of {g:?}");
    assert!(!matches!(finish.add, Addend::Map(add) if add.len() != g.n * g.output_len()), "addend of {g:?}");
    assert_eq!(y.len(), g.n * g.output_len(), "output of {g:?}");
    let threads = if y.len() * g.patch() < SHARED_PRODUCTS { Threads::One } else { threads };
    if y.is_empty() {
    } else if let Some(kernels) = kernels.and_then(Kernels::filtered).filter(|_| winograd::pays(g, true)) {
        assert_eq!(kernels.len(), winograd::kernels_len::<T>(g), "kernels of {g:?}");
        winograd::forward_transformed(g, x, kernels, finish, y, threads);
    } else if let Some(panels) = kernels.and_then(Kernels::panels).filter(|_| g.groups == 1) {
        assert_eq!(panels.len(), patches::packed_len::<T>(g), "kernels of {g:?}");
        patches::forward_packed(g, x, panels, finish, y, threads);
    } else if winograd::pays(g, false) {
        winograd::forward(g, x, &Taps::straight(g, w), finish, y, threads);
    } else if grouped::pays(g) {
        grouped::forward(g, x, w, finish, y, threads);
    } else {
        patches::forward(g, x, w, finish, y, threads);
    }
}
