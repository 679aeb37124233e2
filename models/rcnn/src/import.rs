//! Weights that people have, by whichever names: torchvision's keypoint R-CNN of any version, Detectron2's, and bodies trained on
//! ImageNet by torchvision, Detectron2 or Caffe2.
//!
//! ```text
//! file ─▶ read_checkpoint: tensors by their own names ─▶ Naming::of ─▶ every tensor of the network found, none left over ─▶ Network
//! ```

mod checkpoint;
mod naming;
mod pickle;

use crate::RcnnError;
use crate::config::Config;
use crate::network::Network;
use candle_core::{DType, Tensor};
pub use checkpoint::read_checkpoint;
pub use naming::Naming;
use std::collections::BTreeMap;
use std::path::Path;

/// The configuration that a file's weights were trained with: `config` as it is, or with Detectron2's conventions where a whole detector
/// has Detectron2's names or a body has Caffe2's. The original ResNets stride on the first 1×1 and are not divided by a standard deviation;
/// the ResNeXts, which came later, do neither. A body alone in Detectron2's names is what its script makes of torchvision's, which stay as
/// they were.
pub fn conventions(config: Config, naming: Naming) -> Config {
    match naming {
        Naming::Detectron2 | Naming::Caffe2Body => {
            let resnext = config.groups > 1;
            let mut config = config.detectron2(!resnext);
            if resnext {
                config.input.std = CAFFE_STD.map(|std| std / 255.0);
            }
            config
        }
        Naming::Torchvision | Naming::TorchvisionBody | Naming::Detectron2Body | Naming::Bundle => config,
    }
}

/// The standard deviation of Detectron's ResNeXts, blue first, of values in `[0, 255]`.
const CAFFE_STD: [f32; 3] = [57.375, 57.12, 58.395];

/// A network with every tensor taken from `tensors`, which were read from `path`.
///
/// # Errors
/// [`RcnnError::Weights`] names, as the file does, the first tensor that is missing, surplus or of another shape; a file that holds
/// a body alone is refused, for a network needs its heads.
pub fn network(config: Config, tensors: &BTreeMap<String, Tensor>, naming: Naming, path: &Path) -> Result<Network, RcnnError> {
    let network = Network::zeros(config, DType::F32)?;
    let refuse = |message: String| Err(RcnnError::Weights { path: path.to_owned(), tensor: String::new(), message });
    if naming.body_only() {
        return refuse(format!("{} has no heads: it can start a training (--init), not label", naming.describe()));
    }
    if naming == Naming::Bundle {
        return refuse("a bundle's own weights: the bundle that they lie in is what an import would make".to_owned());
    }
    let translated = naming::translate(&network, tensors, naming, path)?;
    network.params().load_tensors(&translated, path)?;
    Ok(network)
}

/// The tensors of `tensors` under the network's own names: all of a body, all that fit of a whole detector.
///
/// # Errors
/// [`RcnnError::Weights`] names the first tensor of a body that is missing, surplus or of another shape.
pub(crate) fn initial(
    network: &Network,
    tensors: BTreeMap<String, Tensor>,
    naming: Naming,
    path: &Path,
) -> Result<BTreeMap<String, Tensor>, RcnnError> {
    match naming {
        Naming::Bundle | Naming::Torchvision => Ok(naming::modernised(tensors)),
        Naming::Detectron2 => naming::fitting(network, &tensors, naming),
        Naming::TorchvisionBody | Naming::Detectron2Body | Naming::Caffe2Body => naming::translate(network, &tensors, naming, path),
    }
}
