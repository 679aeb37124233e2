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
