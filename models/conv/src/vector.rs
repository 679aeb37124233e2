//! Loops compiled for the widest vectors that this CPU has.

use pulp::{Arch, Simd, WithSimd};

/// Work whose loops the compiler vectorises. A type and no closure: only what is inlined is compiled for those vectors, and the compiler
/// leaves long closures outside.
pub(crate) trait Fused {
    /// What it returns.
    type Output;
    /// Does it, `#[inline(always)]` with all that it calls; `FMA` says that the fused multiply-add is one instruction here, and not a function.
    fn run<const FMA: bool>(self) -> Self::Output;
}

struct Work<W>(W);

impl<W: Fused> WithSimd for Work<W> {
    type Output = W::Output;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> W::Output {
        // Without vectors there may be no such instruction.
        if S::F32_LANES > 1 { self.0.run::<true>() } else { self.0.run::<false>() }
    }
}

/// Runs `work` compiled for the widest vectors.
pub(crate) fn vectorised<W: Fused>(work: W) -> W::Output {
    Arch::new().dispatch(Work(work))
}

/// Whole vectors of numbers.
pub trait Lanes: Sized {
    /// A vector of them.
    type Vector<S: Simd>: Copy;
    /// Numbers in a vector.
    fn lanes<S: Simd>() -> usize;
    /// `value` in every lane.
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Vector<S>;
    /// `a + b`.
    fn plus<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// `a · b + c`, fused where that is one instruction.
    fn multiply_add<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>, c: Self::Vector<S>) -> Self::Vector<S>;
    /// [`crate::positive`] of every lane.
    fn positive<S: Simd>(simd: S, v: Self::Vector<S>) -> Self::Vector<S>;
    /// The vectors of a slice, and what is left.
    fn vectors<S: Simd>(values: &[Self]) -> (&[Self::Vector<S>], &[Self]);
    /// The same to write.
    fn vectors_mut<S: Simd>(values: &mut [Self]) -> (&mut [Self::Vector<S>], &mut [Self]);
}

macro_rules! lanes {
    (
        $number:ty, $vector:ident, $lanes:ident, $splat:ident, $add:ident, $multiply_add:ident, $less:ident, $select:ident,
        $vectors:ident, $vectors_mut:ident
    ) => {
        impl Lanes for $number {
            type Vector<S: Simd> = S::$vector;

            #[inline(always)]
            fn lanes<S: Simd>() -> usize {
                S::$lanes
            }

            #[inline(always)]
            fn splat<S: Simd>(simd: S, value: Self) -> S::$vector {
                simd.$splat(value)
            }

            #[inline(always)]
            fn plus<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$add(a, b)
            }

            #[inline(always)]
            fn multiply_add<S: Simd>(simd: S, a: S::$vector, b: S::$vector, c: S::$vector) -> S::$vector {
                simd.$multiply_add(a, b, c)
            }

            #[inline(always)]
            fn positive<S: Simd>(simd: S, v: S::$vector) -> S::$vector {
                let zero = simd.$splat(0.0);
                simd.$select(simd.$less(v, zero), zero, v)
            }

            #[inline(always)]
            fn vectors<S: Simd>(values: &[Self]) -> (&[S::$vector], &[Self]) {
                S::$vectors(values)
            }

            #[inline(always)]
            fn vectors_mut<S: Simd>(values: &mut [Self]) -> (&mut [S::$vector], &mut [Self]) {
                S::$vectors_mut(values)
            }
        }
    };
}

lanes!(f32, f32s, F32_LANES, splat_f32s, add_f32s, mul_add_e_f32s, less_than_f32s, select_f32s, as_simd_f32s, as_mut_simd_f32s);
lanes!(f64, f64s, F64_LANES, splat_f64s, add_f64s, mul_add_e_f64s, less_than_f64s, select_f64s, as_simd_f64s, as_mut_simd_f64s);
