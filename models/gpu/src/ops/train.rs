//! What training needs beside convolutions and matrix products.

use super::roi::Taps;
use super::{IntoArg, run, sized};
use crate::{Array, Device, GpuError, Kernel, THREADS};
use omnilabel_bundle::{NetworkSpec, RoiSpec};
use omnilabel_keypoints::geometry::Rect;

/// The gradient before a ReLU whose output was `y`.
///
/// # Errors
/// See [`GpuError`].
pub fn relu_backward<D: Device>(device: &D, y: &Array<D, f32>, grad: &Array<D, f32>, out: &Array<D, f32>) -> Result<(), GpuError> {
    sized(Kernel::ReluBackward, "the gradient", grad, y.len())?;
    sized(Kernel::ReluBackward, "the masked gradient", out, y.len())?;
    run(device, Kernel::ReluBackward, y.len(), 1, &[y, grad, out, &y.len()])
}

/// `max(a + b, 0)`.
///
/// # Errors
/// See [`GpuError`].
pub fn add_relu<D: Device>(device: &D, a: &Array<D, f32>, b: &Array<D, f32>, out: &Array<D, f32>) -> Result<(), GpuError> {
    sized(Kernel::AddRelu, "the second term", b, a.len())?;
    sized(Kernel::AddRelu, "the sum", out, a.len())?;
    run(device, Kernel::AddRelu, a.len(), 1, &[a, b, out, &a.len()])
}

/// Adds `bias` `[channels]` to `y` `[n, channels, plane]` in place, with ReLU behind it where `relu`.
///
/// # Errors
/// See [`GpuError`].
pub fn add_bias<D: Device>(device: &D, y: &Array<D, f32>, bias: &Array<D, f32>, plane: usize, relu: bool) -> Result<(), GpuError> {
    divides(Kernel::AddBias, bias.len() * plane, y.len())?;
    run(device, Kernel::AddBias, y.len(), 1, &[y, bias, &y.len(), &bias.len(), &plane, &relu])
}

/// Row `o` of `x` `[o, …]` times `scale[o]`.
///
/// # Errors
/// See [`GpuError`].
pub fn scale_rows<D: Device>(device: &D, x: &Array<D, f32>, scale: &Array<D, f32>, out: &Array<D, f32>) -> Result<(), GpuError> {
    divides(Kernel::ScaleRows, scale.len(), x.len())?;
    sized(Kernel::ScaleRows, "the scaled rows", out, x.len())?;
    run(device, Kernel::ScaleRows, x.len(), 1, &[x, scale, out, &x.len(), &(x.len() / scale.len().max(1))])
}

/// Sums `grad` `[n, channels, plane]` into `out` `[channels]`.
///
/// # Errors
/// See [`GpuError`].
pub fn sum_channels<D: Device>(device: &D, grad: &Array<D, f32>, plane: usize, out: &Array<D, f32>) -> Result<(), GpuError> {
    let channels = out.len();
    divides(Kernel::SumChannels, channels * plane, grad.len())?;
    let images = grad.len() / (channels * plane).max(1);
    run(device, Kernel::SumChannels, THREADS, channels, &[grad, out, &images, &channels, &plane])
}

/// Of each row of `a` and `b` `[rows, width]` the sum of the products, into `out` `[rows]`.
///
/// # Errors
/// See [`GpuError`].
pub fn row_products<D: Device>(device: &D, a: &Array<D, f32>, b: &Array<D, f32>, out: &Array<D, f32>) -> Result<(), GpuError> {
    divides(Kernel::RowProducts, out.len(), a.len())?;
    sized(Kernel::RowProducts, "the second rows", b, a.len())?;
    run(device, Kernel::RowProducts, THREADS, out.len(), &[a, b, out, &(a.len() / out.len().max(1))])
}

/// Windows of [`super::max_pool`].
#[derive(Clone, Copy, Debug)]
pub struct Pooling {
    /// Side of a window.
    pub kernel: usize,
    /// Step in both directions.
    pub stride: usize,
    /// Cells of −∞ on all four sides.
    pub padding: usize,
}

/// The gradient of [`super::max_pool`] with respect to `map` `[planes, rows, columns]`, given that of its output `[planes, out_rows,
/// out_columns]`. That of a tie goes to the first.
///
/// # Errors
/// See [`GpuError`].
pub fn max_pool_backward<D: Device>(
    device: &D,
    map: &Array<D, f32>,
    [planes, rows, columns]: [usize; 3],
    Pooling { kernel, stride, padding }: Pooling,
    grad: &Array<D, f32>,
    (out_rows, out_columns): (usize, usize),
    out: &Array<D, f32>,
) -> Result<(), GpuError> {
    let name = Kernel::MaxPoolBackward;
    sized(name, "the map", map, planes * rows * columns)?;
    sized(name, "the map's gradient", out, map.len())?;
    sized(name, "the gradient", grad, planes * out_rows * out_columns)?;
    // Every window has a cell of the map in it.
    let inside = |side: usize, out_side: usize| (out_side.max(1) - 1) * stride < side + padding;
    if stride == 0 || kernel <= padding || !inside(rows, out_rows) || !inside(columns, out_columns) {
        let message = format!("windows of {kernel}, {stride}, {padding} on {rows} x {columns} do not make {out_rows} x {out_columns}");
        return Err(GpuError::Kernel { kernel: name.name(), message });
    }
    let (p, r, c) = (&planes, &rows, &columns);
    let args: [&dyn IntoArg<D>; 11] = [map, grad, out, p, r, c, &out_rows, &out_columns, &kernel, &stride, &padding];
    run(device, name, map.len(), 1, &args)
}

/// How the sides of maps are doubled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubling {
    /// Every cell four times.
    Nearest,
    /// Half-pixel centres, the border repeated.
    Bilinear,
}

/// `x` `[planes, rows, columns]` into `out` `[planes, 2·rows, 2·columns]`.
///
/// # Errors
/// See [`GpuError`].
pub fn double<D: Device>(
    device: &D,
    how: Doubling,
    x: &Array<D, f32>,
    [planes, rows, columns]: [usize; 3],
    out: &Array<D, f32>,
) -> Result<(), GpuError> {
    let kernel = if how == Doubling::Nearest { Kernel::DoubleNearest } else { Kernel::DoubleBilinear };
    sized(kernel, "the map", x, planes * rows * columns)?;
    sized(kernel, "the doubled map", out, 4 * x.len())?;
    run(device, kernel, out.len(), 1, &[x, out, &planes, &rows, &columns])
}

/// The gradient of [`double`] with respect to `x` `[planes, rows, columns]`, into `out`.
///
/// # Errors
/// See [`GpuError`].
pub fn double_backward<D: Device>(
    device: &D,
    how: Doubling,
    grad: &Array<D, f32>,
    [planes, rows, columns]: [usize; 3],
    out: &Array<D, f32>,
) -> Result<(), GpuError> {
    let kernel = if how == Doubling::Nearest { Kernel::DoubleNearestBackward } else { Kernel::DoubleBilinearBackward };
    sized(kernel, "the map's gradient", out, planes * rows * columns)?;
    sized(kernel, "the gradient", grad, 4 * out.len())?;
    run(device, kernel, out.len(), 1, &[grad, out, &planes, &rows, &columns])
}

/// The RoIs of a batch, and what each takes from the maps `[images, per_image]`: of each image its levels behind each other, a level
/// `[channels, rows, columns]`.
pub struct BatchRois<D: Device> {
    taps: Taps<D>,
    /// `[rois]`.
    images: Array<D, u32>,
    /// The RoIs by image, `[rois]`, and where each image's begin, `[images + 1]`.
    order: Array<D, u32>,
    firsts: Array<D, u32>,
    /// Where the levels begin.
    starts: Array<D, u32>,
    count: usize,
    image_count: usize,
    per_image: usize,
    channels: usize,
    resolution: usize,
}

impl<D: Device> BatchRois<D> {
    /// `rois` (image, rectangle in net pixels) on maps of `image_count` images; `grids` are rows and columns of the levels.
    ///
    /// # Errors
    /// See [`GpuError`].
    pub fn new(
        device: &D,
        network: &NetworkSpec,
        (image_count, channels, grids): (usize, usize, &[(usize, usize)]),
        rois: &[(usize, Rect)],
        spec: RoiSpec,
    ) -> Result<Self, GpuError> {
        let refuse = |message: String| GpuError::Kernel { kernel: Kernel::BatchAlign.name(), message };
        if grids.is_empty() || grids.len() > network.levels.len() {
            return Err(refuse(format!("{} maps for {} levels", grids.len(), network.levels.len())));
        }
        if let Some((image, _)) = rois.iter().find(|(image, _)| *image >= image_count) {
            return Err(refuse(format!("a RoI of image {image} of {image_count}")));
        }
        let mut order: Vec<u32> = (0..rois.len() as u32).collect();
        order.sort_by_key(|&roi| rois[roi as usize].0);
        let firsts: Vec<u32> = (0..=image_count).map(|image| order.partition_point(|&roi| rois[roi as usize].0 < image) as u32).collect();
        let images: Vec<u32> = rois.iter().map(|(image, _)| *image as u32).collect();
        let mut per_image = 0;
        let mut starts = Vec::with_capacity(grids.len());
        for (rows, columns) in grids {
            starts.push(u32::try_from(per_image).map_err(|_| refuse(format!("{per_image} numbers per image")))?);
            per_image += channels * rows * columns;
        }
        let flat: Vec<f32> = rois.iter().flat_map(|(_, r)| [r.x1, r.y1, r.x2, r.y2]).collect();
        Ok(Self {
            taps: Taps::new(device, network, grids, &Array::from_slice(device, &flat)?, spec)?,
            images: Array::from_slice(device, &images)?,
            order: Array::from_slice(device, &order)?,
            firsts: Array::from_slice(device, &firsts)?,
            starts: Array::from_slice(device, &starts)?,
            count: rois.len(),
            image_count,
            per_image,
            channels,
            resolution: spec.resolution as usize,
        })
    }

    /// RoIAlign of `maps` into `out` `[rois, channels, resolution, resolution]`, in the order of the RoIs.
    ///
    /// # Errors
    /// See [`GpuError`].
    pub fn pool(&self, device: &D, maps: &Array<D, f32>, out: &Array<D, f32>) -> Result<(), GpuError> {
        let kernel = Kernel::BatchAlign;
        let one = self.channels * self.resolution * self.resolution;
        sized(kernel, "the maps", maps, self.image_count * self.per_image)?;
        sized(kernel, "the pooled maps", out, self.count * one)?;
        let Taps { rows, columns, levels, counts, at, weights, capacity } = &self.taps;
        let Self { images, starts, per_image, channels, resolution, .. } = self;
        let arrays: [&dyn IntoArg<D>; 10] = [maps, images, starts, rows, columns, levels, counts, at, weights, out];
        let args: Vec<&dyn IntoArg<D>> =
            arrays.into_iter().chain([per_image as _, channels as _, resolution as _, capacity as _]).collect();
        run(device, kernel, one, self.count, &args)
    }

    /// Adds the gradient of [`BatchRois::pool`] with respect to the maps to `out`, given that of its output.
    ///
    /// # Errors
    /// See [`GpuError`].
    pub fn pool_backward(&self, device: &D, grad: &Array<D, f32>, out: &Array<D, f32>) -> Result<(), GpuError> {
        let kernel = Kernel::BatchAlignBackward;
        sized(kernel, "the gradient", grad, self.count * self.channels * self.resolution * self.resolution)?;
        sized(kernel, "the maps' gradient", out, self.image_count * self.per_image)?;
        let Taps { rows, columns, levels, counts, at, weights, capacity } = &self.taps;
        let Self { order, firsts, starts, per_image, channels, resolution, .. } = self;
        let arrays: [&dyn IntoArg<D>; 11] = [grad, order, firsts, starts, rows, columns, levels, counts, at, weights, out];
        let args: Vec<&dyn IntoArg<D>> =
            arrays.into_iter().chain([per_image as _, channels as _, resolution as _, capacity as _]).collect();
        run(device, kernel, channels * THREADS, self.image_count, &args)
    }
}

/// Numbers per sum of [`square_sums`].
pub const SQUARES: usize = 4096;

/// The squares of each [`SQUARES`] values, summed, into `out`.
///
/// # Errors
/// See [`GpuError`].
pub fn square_sums<D: Device>(device: &D, values: &Array<D, f32>, out: &Array<D, f32>) -> Result<(), GpuError> {
    sized(Kernel::SquareSums, "the sums", out, values.len().div_ceil(SQUARES))?;
    run(device, Kernel::SquareSums, out.len() * THREADS, 1, &[values, out, &values.len(), &SQUARES])
}

/// One step of SGD with momentum 0.9; the gradient counts `scale` times.
///
/// # Errors
/// See [`GpuError`].
pub fn sgd<D: Device>(
    device: &D,
    weights: &Array<D, f32>,
    moments: &Array<D, f32>,
    grad: &Array<D, f32>,
    [rate, decay, scale]: [f32; 3],
) -> Result<(), GpuError> {
    sized(Kernel::Sgd, "the moments", moments, weights.len())?;
    sized(Kernel::Sgd, "the gradient", grad, weights.len())?;
    run(device, Kernel::Sgd, weights.len(), 1, &[weights, moments, grad, &weights.len(), &rate, &decay, &scale])
}

/// One step of AdamW: `w ← w·shrink − rate·m / (√v·root + 1e-8)`, β = (0.9, 0.999); the gradient counts `scale` times.
///
/// # Errors
/// See [`GpuError`].
pub fn adamw<D: Device>(
    device: &D,
    weights: &Array<D, f32>,
    [first, second]: [&Array<D, f32>; 2],
    grad: &Array<D, f32>,
    [scale, shrink, rate, root]: [f32; 4],
) -> Result<(), GpuError> {
    sized(Kernel::Adamw, "the first moments", first, weights.len())?;
    sized(Kernel::Adamw, "the second moments", second, weights.len())?;
    sized(Kernel::Adamw, "the gradient", grad, weights.len())?;
    run(device, Kernel::Adamw, weights.len(), 1, &[weights, first, second, grad, &weights.len(), &scale, &shrink, &rate, &root])
}

/// The nearest bfloat16 of each of `values`.
///
/// # Errors
/// See [`GpuError`].
pub fn to_bf16<D: Device>(device: &D, values: &Array<D, f32>, out: &Array<D, u16>) -> Result<(), GpuError> {
    sized(Kernel::ToBf16, "the rounded values", out, values.len())?;
    run(device, Kernel::ToBf16, values.len(), 1, &[values, out, &values.len()])
}

/// bfloat16 as f32.
///
/// # Errors
/// See [`GpuError`].
pub fn from_bf16<D: Device>(device: &D, values: &Array<D, u16>, out: &Array<D, f32>) -> Result<(), GpuError> {
    sized(Kernel::FromBf16, "the widened values", out, values.len())?;
    run(device, Kernel::FromBf16, values.len(), 1, &[values, out, &values.len()])
}

/// Whether `len` elements are a whole number of `part`s.
fn divides(kernel: Kernel, part: usize, len: usize) -> Result<(), GpuError> {
    if len == 0 || (part > 0 && len.is_multiple_of(part)) {
        return Ok(());
    }
    Err(GpuError::Kernel { kernel: kernel.name(), message: format!("{len} elements are no multiple of {part}") })
}
