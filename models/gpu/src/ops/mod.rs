//! The kernels as functions: each holds the arrays' lengths against what its kernel reads and writes, then launches it.

mod boxes;
mod heatmap;
mod image;
mod roi;
mod train;

pub use boxes::{Boxes, Level, detections, proposals};
pub use heatmap::{MAX_SIDE, Maps, Mirror, agreement, brightest, decode, scale, unflip};
pub use image::{Checks, FrameOn, max_pool, view_image};
pub use roi::{Features, MapOn, pool};
pub use train::{
    BatchRois, Doubling, Pooling, SQUARES, adamw, add_bias, add_relu, double, double_backward, from_bf16, max_pool_backward, relu_backward,
    row_products, scale_rows, sgd, square_sums, sum_channels, to_bf16,
};

use crate::device::blocks;
use crate::{Arg, Array, Device, Element, GpuError, Kernel};
use omnilabel_bundle::NetworkSpec;

/// Whether the kernels have room for a network, whatever the frame.
///
/// # Errors
/// [`GpuError::Limit`].
pub fn fits(network: &NetworkSpec) -> Result<(), GpuError> {
    boxes::group_fits("RPN candidates per level", network.rpn.pre_nms_top_n as usize)?;
    boxes::group_fits("proposals", network.rpn.post_nms_top_n as usize)?;
    heatmap::side_fits(network.heatmap_side as usize)
}

/// An argument of a kernel.
trait IntoArg<D: Device> {
    fn arg(&self) -> Result<Arg<'_, D::Buffer>, GpuError>;
}

impl<D: Device, T: Element> IntoArg<D> for Array<D, T> {
    fn arg(&self) -> Result<Arg<'_, D::Buffer>, GpuError> {
        Ok(Array::arg(self))
    }
}

impl<D: Device> IntoArg<D> for f32 {
    fn arg(&self) -> Result<Arg<'_, D::Buffer>, GpuError> {
        Ok(Arg::Float(*self))
    }
}

impl<D: Device> IntoArg<D> for usize {
    fn arg(&self) -> Result<Arg<'_, D::Buffer>, GpuError> {
        i32::try_from(*self).map(Arg::Int).map_err(|_| GpuError::Limit { what: "a size", found: *self, most: i32::MAX as usize })
    }
}

impl<D: Device> IntoArg<D> for u32 {
    fn arg(&self) -> Result<Arg<'_, D::Buffer>, GpuError> {
        let most = i32::MAX as usize;
        i32::try_from(*self).map(Arg::Int).map_err(|_| GpuError::Limit { what: "a size", found: *self as usize, most })
    }
}

impl<D: Device> IntoArg<D> for bool {
    fn arg(&self) -> Result<Arg<'_, D::Buffer>, GpuError> {
        Ok(Arg::Int(i32::from(*self)))
    }
}

/// The most blocks on the y axis of a CUDA grid.
const MAX_GRID_Y: usize = 65_535;

/// Launches `kernel` with at least `threads` threads on x and `rows` blocks on y; nothing when either is 0.
#[expect(unsafe_code, reason = "the one place from which kernels are launched")]
fn run<D: Device>(device: &D, kernel: Kernel, threads: usize, rows: usize, args: &[&dyn IntoArg<D>]) -> Result<(), GpuError> {
    if threads == 0 || rows == 0 {
        return Ok(());
    }
    let x = u32::try_from(threads).ok().filter(|_| threads <= i32::MAX as usize);
    let x = x.map(|_| blocks(threads) as u32).ok_or(GpuError::Limit { what: "threads", found: threads, most: i32::MAX as usize })?;
    if rows > MAX_GRID_Y {
        return Err(GpuError::Limit { what: "groups of a launch", found: rows, most: MAX_GRID_Y });
    }
    let args: Vec<_> = args.iter().map(|arg| arg.arg()).collect::<Result<_, _>>()?;
    // SAFETY: only this module's functions come here. Each passes its kernel's arguments in the kernel's order, and has held the
    // arrays' lengths against the sizes among them; the kernels take every index from those sizes.
    unsafe { device.launch(kernel, [x, rows as u32], &args) }
}

/// Whether an array has the length that a kernel needs.
fn sized<D: Device, T: Element>(kernel: Kernel, what: &str, array: &Array<D, T>, expected: usize) -> Result<(), GpuError> {
    if array.len() == expected {
        return Ok(());
    }
    Err(GpuError::Kernel { kernel: kernel.name(), message: format!("{what}: {} elements, expected {expected}", array.len()) })
}
