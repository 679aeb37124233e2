//! The three graphs, from and to memory of a device.

use crate::{Graphs, RuntimeError};
use omnilabel_gpu::ops::{Features, MapOn};
use omnilabel_gpu::{Array, Device};

/// The backbone's outputs, as [`crate::BackboneOutput`].
pub struct BackboneOn<D: Device> {
    /// Per level that RoIs are pooled from.
    pub features: Features<D>,
    /// `(values [a, rows, columns], rows, columns)` per level.
    pub objectness: Vec<(Array<D, f32>, usize, usize)>,
    /// `[4a, rows, columns]` per level.
    pub deltas: Vec<Array<D, f32>>,
}

/// The three graphs of a bundle, as [`Graphs`], on a device.
pub trait DeviceGraphs<D: Device>: Send + Sync {
    /// Memory for the input of a graph: a runtime may only take what it has allocated itself.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    fn input(&self, device: &D, values: usize) -> Result<Array<D, f32>, RuntimeError> {
        Ok(Array::zeros(device, values)?)
    }

    /// Body, FPN and RPN head on one image `[3, rows, columns]`.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    fn backbone(&self, device: &D, image: Array<D, f32>, rows: usize, columns: usize) -> Result<BackboneOn<D>, RuntimeError>;

    /// The features of [`DeviceGraphs::backbone`] alone, for views whose boxes are known.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    fn features(&self, device: &D, image: Array<D, f32>, rows: usize, columns: usize) -> Result<Features<D>, RuntimeError> {
        Ok(self.backbone(device, image, rows, columns)?.features)
    }

    /// Class logits `[r, 2]` and box deltas `[r, 8]` of `r` pooled RoIs, the network's `post_nms_top_n`.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    fn box_head(&self, device: &D, rois: Array<D, f32>, r: usize) -> Result<[Array<D, f32>; 2], RuntimeError>;

    /// The numbers of RoIs that the keypoint head takes at once, rising; none where it takes any number.
    fn keypoint_batches(&self) -> &[usize] {
        &[]
    }

    /// Heatmaps `[r, k, m, m]` of `r` pooled RoIs.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    fn keypoint_head(&self, device: &D, rois: Array<D, f32>, r: usize) -> Result<Array<D, f32>, RuntimeError>;
}

/// Graphs that run in the host's memory, for comparisons: everything goes down and up again.
pub struct OnHost<G>(pub G);

impl<D: Device, G: Graphs> DeviceGraphs<D> for OnHost<G> {
    fn backbone(&self, device: &D, image: Array<D, f32>, rows: usize, columns: usize) -> Result<BackboneOn<D>, RuntimeError> {
        let found = self.0.backbone(&image.to_vec(device)?, rows, columns)?;
        let channels = found.features.first().map_or(0, |level| level.1);
        let mut maps = Vec::new();
        for (values, _, rows, columns) in &found.features {
            maps.push(MapOn { data: Array::from_slice(device, values)?, rows: *rows, columns: *columns });
        }
        let objectness = found.objectness.iter().map(|(v, rows, columns)| Ok((Array::from_slice(device, v)?, *rows, *columns)));
        let objectness = objectness.collect::<Result<_, RuntimeError>>()?;
        let deltas = found.deltas.iter().map(|v| Ok(Array::from_slice(device, v)?)).collect::<Result<_, RuntimeError>>()?;
        Ok(BackboneOn { features: Features { maps, channels }, objectness, deltas })
    }

    fn box_head(&self, device: &D, rois: Array<D, f32>, r: usize) -> Result<[Array<D, f32>; 2], RuntimeError> {
        let (logits, deltas) = self.0.box_head(rois.to_vec(device)?, r)?;
        Ok([Array::from_slice(device, &logits)?, Array::from_slice(device, &deltas)?])
    }

    fn keypoint_head(&self, device: &D, rois: Array<D, f32>, r: usize) -> Result<Array<D, f32>, RuntimeError> {
        Ok(Array::from_slice(device, &self.0.keypoint_head(rois.to_vec(device)?, r)?)?)
    }
}
