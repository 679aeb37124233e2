//! Heatmaps over views: un-mirroring and averaging, decoding, agreement.

use super::{run, sized};
use crate::{Array, Device, GpuError, Kernel, THREADS};
use omnilabel_keypoints::ensemble::Average;
use omnilabel_keypoints::skeleton::Skeleton;

/// The largest side of a heatmap, as in `heatmap.cu`.
pub const MAX_SIDE: usize = 64;

/// Shape of a view's maps: `[boxes, keypoints, side, side]`.
#[derive(Clone, Copy, Debug)]
pub struct Maps {
    /// Boxes.
    pub boxes: usize,
    /// Keypoints.
    pub keypoints: usize,
    /// Rows and columns.
    pub side: usize,
}

impl Maps {
    /// Values.
    pub fn len(&self) -> usize {
        self.count() * self.side * self.side
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Maps.
    pub fn count(&self) -> usize {
        self.boxes * self.keypoints
    }
}

/// The mirror images of a skeleton's keypoints, on the device.
pub struct Mirror<D: Device>(Array<D, u32>);

impl<D: Device> Mirror<D> {
    /// Uploads them.
    ///
    /// # Errors
    /// See [`GpuError`].
    pub fn new(device: &D, skeleton: &Skeleton) -> Result<Self, GpuError> {
        // A skeleton's permutation lies within its keypoints: the kernel takes it as indices.
        Ok(Self(Array::from_slice(device, &skeleton.flip().iter().map(|&k| u32::from(k)).collect::<Vec<_>>())?))
    }
}

/// `keypoints::ensemble::accumulate` of a view: its maps un-mirrored, which are added to `sum` too.
///
/// # Errors
/// See [`GpuError`].
pub fn unflip<D: Device>(
    device: &D,
    maps: &Array<D, f32>,
    shape: Maps,
    mirror: &Mirror<D>,
    flip: bool,
    average: Average,
    sum: &Array<D, f32>,
) -> Result<Array<D, f32>, GpuError> {
    sized(Kernel::Unflip, "a view's maps", maps, shape.len())?;
    sized(Kernel::Unflip, "the sum", sum, shape.len())?;
    sized(Kernel::Unflip, "the mirror images", &mirror.0, shape.keypoints)?;
    let own = Array::<D, f32>::zeros(device, shape.len())?;
    let probabilities = average == Average::Probabilities;
    let args: [&dyn super::IntoArg<D>; 8] = [maps, &mirror.0, &own, sum, &shape.keypoints, &shape.side, &flip, &probabilities];
    run(device, Kernel::Unflip, shape.count() * THREADS, 1, &args)?;
    Ok(own)
}

/// Multiplies `values` by `factor`.
///
/// # Errors
/// See [`GpuError`].
pub fn scale<D: Device>(device: &D, values: &Array<D, f32>, factor: f32) -> Result<(), GpuError> {
    run(device, Kernel::Scale, values.len(), 1, &[values, &factor, &values.len()])
}

/// `keypoints::heatmap::decode` of every map, in the coordinates of `rects` `[boxes, 4]`: x, y, peak and probability `[boxes, k, 4]`
/// into `found`.
///
/// # Errors
/// See [`GpuError`].
pub fn decode<D: Device>(
    device: &D,
    maps: &Array<D, f32>,
    shape: Maps,
    rects: &Array<D, f32>,
    average: Average,
    found: &Array<D, f32>,
) -> Result<(), GpuError> {
    sized(Kernel::Decode, "the maps", maps, shape.len())?;
    sized(Kernel::Decode, "the boxes", rects, 4 * shape.boxes)?;
    sized(Kernel::Decode, "the points", found, 4 * shape.count())?;
    side_fits(shape.side)?;
    let probabilities = average == Average::Probabilities;
    run(device, Kernel::Decode, shape.count() * THREADS, 1, &[maps, rects, found, &shape.keypoints, &shape.side, &probabilities])
}

/// `keypoints::heatmap::brightest` of every map, in the coordinates of `rects` `[boxes, 4]`: x and y `[boxes, k, 2]` into `found`.
///
/// # Errors
/// See [`GpuError`].
pub fn brightest<D: Device>(
    device: &D,
    maps: &Array<D, f32>,
    shape: Maps,
    rects: &Array<D, f32>,
    found: &Array<D, f32>,
) -> Result<(), GpuError> {
    sized(Kernel::Brightest, "the maps", maps, shape.len())?;
    sized(Kernel::Brightest, "the boxes", rects, 4 * shape.boxes)?;
    sized(Kernel::Brightest, "the points", found, 2 * shape.count())?;
    run(device, Kernel::Brightest, shape.count() * THREADS, 1, &[maps, rects, found, &shape.keypoints, &shape.side])
}

/// `keypoints::ensemble::agreement` of the views' points `[views, boxes, k, 2]` with `found` `[boxes, k, 2]`: `[boxes, k]`.
///
/// # Errors
/// See [`GpuError`].
pub fn agreement<D: Device>(
    device: &D,
    views: &Array<D, f32>,
    found: &Array<D, f32>,
    rects: &Array<D, f32>,
    sigmas: &Array<D, f32>,
    view_count: usize,
    shape: Maps,
) -> Result<Array<D, f32>, GpuError> {
    let count = shape.count();
    sized(Kernel::Agreement, "the views' points", views, 2 * view_count * count)?;
    sized(Kernel::Agreement, "the points", found, 2 * count)?;
    sized(Kernel::Agreement, "the boxes", rects, 4 * shape.boxes)?;
    sized(Kernel::Agreement, "the sigmas", sigmas, shape.keypoints)?;
    let out = Array::<D, f32>::zeros(device, count)?;
    let args: [&dyn super::IntoArg<D>; 8] = [views, found, rects, sigmas, &out, &view_count, &count, &shape.keypoints];
    run(device, Kernel::Agreement, count, 1, &args)?;
    Ok(out)
}

pub(super) fn side_fits(side: usize) -> Result<(), GpuError> {
    if (1..=MAX_SIDE).contains(&side) {
        Ok(())
    } else {
        Err(GpuError::Limit { what: "the side of a heatmap", found: side, most: MAX_SIDE })
    }
}
