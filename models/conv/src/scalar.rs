//! The numbers that the kernels run on.

use crate::vector::Lanes;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul, Sub};

/// f32, or f64 for gradient checks.
pub trait Scalar:
    Lanes + Copy + Default + PartialOrd + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + AddAssign + Sum + Send + Sync + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// The nearest number.
    fn of(value: f64) -> Self;
    /// `self · by + plus`, rounded once.
    fn mul_add(self, by: Self, plus: Self) -> Self;
}

impl Scalar for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;

    #[inline(always)]
    fn of(value: f64) -> f32 {
        value as f32
    }

    #[inline(always)]
    fn mul_add(self, by: f32, plus: f32) -> f32 {
        f32::mul_add(self, by, plus)
    }
}

impl Scalar for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;

    #[inline(always)]
    fn of(value: f64) -> f64 {
        value
    }

    #[inline(always)]
    fn mul_add(self, by: f64, plus: f64) -> f64 {
        f64::mul_add(self, by, plus)
    }
}

/// max(v, 0), letting a NaN through so that a diverging run is seen.
#[inline(always)]
pub fn positive<T: Scalar>(v: T) -> T {
    if v < T::ZERO { T::ZERO } else { v }
}
