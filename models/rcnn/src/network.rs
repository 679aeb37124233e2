//! The network: body, FPN, RPN head, box head, keypoint head (spec §1), with torchvision's structure and names.
//!
//! ```text
//! image [n,3,h,w] ─▶ body C2…C5 ─▶ FPN P2…P6 ─▶ RPN head: objectness, deltas
//!                                     └─ pool(rois) ─▶ box head: class logits, deltas
//!                                     └─ pool(rois) ─▶ keypoint head: heatmaps [r,k,56,56]
//! ```
//! The network knows nothing of targets, losses, proposals or files other than its weights.

mod body;
mod fpn;
mod heads;
mod layer;

use crate::RcnnError;
use crate::config::Config;
use crate::device::Place;
use crate::import::{self, Naming, read_checkpoint};
use crate::ops::roi_align;
use crate::params::Params;
use candle_core::{DType, Tensor};
use omnilabel_bundle::RoiSpec;
use omnilabel_keypoints::geometry::Rect;
use std::collections::BTreeMap;
use std::path::Path;

pub(crate) use body::{Body, Residual};
pub(crate) use fpn::Fpn;
pub(crate) use heads::{BoxHead, DECONV_KERNEL, KeypointHead, RpnHead};
pub(crate) use layer::{Conv, Linear, NORM_EPS, Pass, STEM_POOL};

/// What the backbone graph gives, one tensor per level, finest first.
#[derive(Clone, Debug)]
pub struct Levels {
    /// P2…P6, `[n, c, h/s, w/s]`.
    pub features: Vec<Tensor>,
    /// Objectness logits `[n, a, h/s, w/s]`.
    pub objectness: Vec<Tensor>,
    /// Box deltas `[n, 4a, h/s, w/s]`, channel `4·anchor + coordinate`.
    pub deltas: Vec<Tensor>,
}

/// A keypoint R-CNN with its parameters.
#[derive(Debug)]
pub struct Network {
    config: Config,
    params: Params,
    pub(crate) body: Body,
    pub(crate) fpn: Fpn,
    pub(crate) rpn: RpnHead,
    pub(crate) box_head: BoxHead,
    pub(crate) keypoint_head: KeypointHead,
}

impl Network {
    /// A network with torchvision's random initialisation, the same for the same seed on any machine.
    ///
    /// # Errors
    /// [`RcnnError::Config`].
    pub fn new(config: Config, seed: u64) -> Result<Self, RcnnError> {
        Self::build(config, Params::new(seed))
    }

    /// As [`Network::new`], on a device.
    ///
    /// # Errors
    /// [`RcnnError::Config`], or the device's.
    pub fn new_on(config: Config, seed: u64, place: &Place) -> Result<Self, RcnnError> {
        Self::build(config, Params::new(seed).on(place.clone()))
    }

    /// A copy on the CPU.
    ///
    /// # Errors
    /// The device's.
    pub fn on_host(&self) -> Result<Self, RcnnError> {
        let copy = Self::zeros(self.config.clone(), self.params.dtype())?;
        let tensors = self.params.all().map(|(name, var)| (name.to_owned(), var.as_detached_tensor())).collect();
        copy.params.assign(&tensors)?;
        Ok(copy)
    }

    /// A network of zeros in `dtype`, f32 or, for gradient checks, f64: for whoever loads every tensor.
    ///
    /// # Errors
    /// [`RcnnError::Config`].
    pub fn zeros(config: Config, dtype: DType) -> Result<Self, RcnnError> {
        Self::build(config, Params::zeros(dtype))
    }

    fn build(config: Config, mut params: Params) -> Result<Self, RcnnError> {
        config.validate()?;
        let body = Body::new(&config, &mut params)?;
        let fpn = Fpn::new(&config, &mut params)?;
        let rpn = RpnHead::new(&config, &mut params)?;
        let box_head = BoxHead::new(&config, &mut params)?;
        let keypoint_head = KeypointHead::new(&config, &mut params)?;
        Ok(Self { config, params, body, fpn, rpn, box_head, keypoint_head })
    }

    /// The structure.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Takes the first weights from a checkpoint (see [`crate::import`]): of a detector, a bundle's weights among them, every tensor
    /// whose name and shape match; of a body trained on ImageNet, all of the body. Returns the names of those that kept their value,
    /// such as the heads of another skeleton.
    ///
    /// # Errors
    /// See [`read_checkpoint`]; [`RcnnError::Weights`] names the tensor of the body that the file has not, or in another shape: part of
    /// a body under random layers is no beginning.
    pub fn init_from(&self, path: &Path) -> Result<Vec<String>, RcnnError> {
        self.init_with(read_checkpoint(path)?, path)
    }

    /// As [`Network::init_from`], from tensors that were read from `path`.
    ///
    /// # Errors
    /// As [`Network::init_from`].
    pub fn init_with(&self, tensors: BTreeMap<String, Tensor>, path: &Path) -> Result<Vec<String>, RcnnError> {
        let naming = Naming::of(tensors.keys().map(String::as_str)).unwrap_or(Naming::Torchvision);
        let tensors = self.unfolded(import::initial(self, tensors, naming, path)?)?;
        let skipped = self.params.assign(&tensors)?;
        if let Some(name) = skipped.iter().find(|name| name.starts_with("backbone.body.")) {
            let message = format!("missing or of another shape: these are not the weights of a `{}` body", self.config.name);
            return Err(RcnnError::Weights { path: path.to_owned(), tensor: name.clone(), message });
        }
        Ok(skipped)
    }

    /// Where `tensors` holds a layer as it is exported, puts the layer's own tensors in its place.
    pub(crate) fn unfolded(&self, mut tensors: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>, RcnnError> {
        self.body.unfold(&mut tensors)?;
        self.keypoint_head.unfold(&mut tensors)?;
        Ok(tensors)
    }

    /// Body, FPN and RPN head on `[n, 3, h, w]`; `h` and `w` are multiples of the input's size divisor.
    ///
    /// # Errors
    /// [`RcnnError::Config`] for another size, else a tensor operation's.
    pub fn forward_backbone(&self, images: &Tensor) -> Result<Levels, RcnnError> {
        self.backbone(images, Pass::Run)
    }

    /// Sets the statistics of the body's frozen batch-norms to those of `images` `[n, 3, h, w]`, layer by layer, so that training
    /// from scratch starts with activations of mean 0 and variance 1 (Krähenbühl et al. 2016, data-dependent initialisation).
    ///
    /// # Errors
    /// As [`Network::forward_backbone`].
    pub fn calibrate(&self, images: &Tensor) -> Result<(), RcnnError> {
        self.stages(images, Pass::Calibrate).map(drop)
    }

    fn stages(&self, images: &Tensor, pass: Pass) -> Result<Vec<Tensor>, RcnnError> {
        let (_, c, h, w) = images.dims4()?;
        let divisor = self.config.input.size_divisor as usize;
        if c != 3 || h == 0 || w == 0 || !h.is_multiple_of(divisor) || !w.is_multiple_of(divisor) {
            let message = format!("images {:?}: three channels and sides that are multiples of {divisor} are expected", images.dims());
            return Err(RcnnError::Config(message));
        }
        self.body.forward(images, pass)
    }

    fn backbone(&self, images: &Tensor, pass: Pass) -> Result<Levels, RcnnError> {
        let stages = self.stages(images, pass)?;
        let features = self.fpn.forward(&stages)?;
        let (objectness, deltas) = self.rpn.forward(&features)?;
        Ok(Levels { features, objectness, deltas })
    }

    /// Pools each RoI (batch index, rectangle in net pixels) from its own level of `features`: `[r, c, q, q]` in the order of `rois`.
    ///
    /// # Errors
    /// See [`roi_align`].
    pub fn pool(&self, features: &[Tensor], rois: &[(usize, Rect)], spec: RoiSpec) -> Result<Tensor, RcnnError> {
        Ok(roi_align(&self.config.network, features, rois, spec)?)
    }

    /// Class logits `[r, 2]` and box deltas `[r, 8]` of pooled RoIs `[r, c, p, p]`.
    ///
    /// # Errors
    /// A tensor operation's.
    pub fn box_head(&self, rois: &Tensor) -> Result<(Tensor, Tensor), RcnnError> {
        self.box_head.forward(rois)
    }

    /// Heatmaps `[r, k, 2q, 2q]` of pooled RoIs `[r, c, q, q]` before they are enlarged ×2.
    pub(crate) fn keypoint_maps(&self, rois: &Tensor) -> Result<Tensor, RcnnError> {
        self.keypoint_head.maps(rois)
    }

    /// Heatmaps `[r, k, m, m]` of pooled RoIs `[r, c, q, q]`, `m = 4q`.
    ///
    /// # Errors
    /// A tensor operation's.
    pub fn keypoint_head(&self, rois: &Tensor) -> Result<Tensor, RcnnError> {
        self.keypoint_head.forward(rois)
    }
}
