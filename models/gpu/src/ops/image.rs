//! From the frame to the network's input, max-pooling, and checks of what graphs give.

use super::{run, sized};
use crate::{Array, Device, GpuError, Kernel};
use omnilabel_bundle::{Channels, InputSpec};
use omnilabel_detect::frame::{Frame, padded};
use omnilabel_keypoints::geometry::Size;
use omnilabel_keypoints::view::ViewGeometry;

/// A frame on the device: uploaded once, however many views are made of it.
pub struct FrameOn<D: Device> {
    rgb: Array<D, u8>,
    size: Size,
}

impl<D: Device> FrameOn<D> {
    /// Uploads a frame.
    ///
    /// # Errors
    /// See [`GpuError`].
    pub fn upload(device: &D, frame: &Frame) -> Result<Self, GpuError> {
        let rgb = Array::from_slice(device, &frame.rgb)?;
        sized(Kernel::ViewImage, "the frame", &rgb, 3 * frame.size.width as usize * frame.size.height as usize)?;
        Ok(Self { rgb, size: frame.size })
    }
}

/// `detect::frame::transform` into `out`, `[3, rows, columns]` of the padded view.
///
/// # Errors
/// See [`GpuError`].
pub fn view_image<D: Device>(
    device: &D,
    frame: &FrameOn<D>,
    input: &InputSpec,
    geometry: &ViewGeometry,
    out: &Array<D, f32>,
) -> Result<(), GpuError> {
    let kernel = Kernel::ViewImage;
    let (net, Size { width, height }) = (geometry.net(), frame.size);
    let (rows, columns) = padded(net, input);
    sized(kernel, "the input", out, 3 * rows * columns)?;
    if geometry.frame() != frame.size || width == 0 || height == 0 {
        return Err(GpuError::Kernel { kernel: kernel.name(), message: format!("a view of another frame than {width} x {height} px") });
    }
    let gain: [f32; 3] = std::array::from_fn(|c| 1.0 / (255.0 * input.std[c]));
    let bias: [f32; 3] = std::array::from_fn(|c| input.mean[c] / input.std[c]);
    let (flip, bgr) = (geometry.flip(), input.channels == Channels::Bgr);
    let ([g0, g1, g2], [b0, b1, b2]) = (&gain, &bias);
    let sizes = (&width, &height, &net.width, &net.height, &rows, &columns);
    let (w, h, nw, nh, r, c) = sizes;
    run(device, kernel, rows * columns, 1, &[&frame.rgb, out, w, h, nw, nh, r, c, &flip, &bgr, g0, g1, g2, b0, b1, b2])
}

/// The highest of each `kernel`² window of `map` (`[channels, rows, columns]`) into `out`, `[channels, out_rows, out_columns]`.
///
/// # Errors
/// See [`GpuError`].
pub fn max_pool<D: Device>(
    device: &D,
    map: &Array<D, f32>,
    [channels, rows, columns]: [usize; 3],
    (kernel, stride, padding): (usize, usize, usize),
    out: &Array<D, f32>,
    (out_rows, out_columns): (usize, usize),
) -> Result<(), GpuError> {
    sized(Kernel::MaxPool, "the map", map, channels * rows * columns)?;
    sized(Kernel::MaxPool, "the pooled map", out, channels * out_rows * out_columns)?;
    let (c, r, w) = (&channels, &rows, &columns);
    let args: [&dyn super::IntoArg<D>; 10] = [map, out, c, r, w, &out_rows, &out_columns, &kernel, &stride, &padding];
    run(device, Kernel::MaxPool, out.len(), 1, &args)
}

/// Looks for values that are not finite, and tells once for all tensors: one download, at the end.
pub struct Checks<D: Device> {
    /// The lowest index of such a value per tensor; `u32::MAX` where there is none.
    flags: Array<D, u32>,
    names: Vec<(&'static str, String)>,
}

impl<D: Device> Checks<D> {
    /// Room for `most` tensors.
    ///
    /// # Errors
    /// See [`GpuError`].
    pub fn new(device: &D, most: usize) -> Result<Self, GpuError> {
        Ok(Self { flags: Array::from_slice(device, &vec![u32::MAX; most])?, names: Vec::new() })
    }

    /// Looks through `values`, `name` of `graph`.
    ///
    /// # Errors
    /// See [`GpuError`].
    pub fn look(&mut self, device: &D, graph: &'static str, name: String, values: &Array<D, f32>) -> Result<(), GpuError> {
        let slot = self.names.len();
        if slot >= self.flags.len() {
            return Err(GpuError::Limit { what: "tensors to check", found: slot + 1, most: self.flags.len() });
        }
        self.names.push((graph, name));
        run(device, Kernel::NotFinite, values.len(), 1, &[values, &self.flags, &values.len(), &slot])
    }

    /// The first tensor with such a value: its graph, its name, the value's index.
    ///
    /// # Errors
    /// See [`GpuError`].
    pub fn first(&self, device: &D) -> Result<Option<(&'static str, &str, usize)>, GpuError> {
        let flags = self.flags.to_vec(device)?;
        let mut found = flags.iter().zip(&self.names).filter(|(flag, _)| **flag != u32::MAX);
        Ok(found.next().map(|(&flag, (graph, name))| (*graph, name.as_str(), flag as usize)))
    }
}
