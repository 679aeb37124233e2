//! Keypoint R-CNN in candle (spec §1–2): configuration presets, network, losses, samplers, training, export to a bundle.
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | every size of the network, and the presets |
//! | [`device`] | what a network is trained on: the CPU or a GPU |
//! | [`ops`] | convolution, RoIAlign, upsampling, pooling as `CustomOp`s with their own backward |
//! | [`params`] | named parameters, safetensors in and out |
//! | [`network`] | body, FPN, RPN head, box head, keypoint head |
//! | [`targets`] | anchor and RoI matching, samplers, keypoint targets |
//! | [`losses`] | the five losses |
//! | [`augment`] | samples and their augmentation |
//! | [`optim`] | SGD and AdamW, learning-rate schedules |
//! | [`train`] | the training step and loop, checkpoints that resume exactly |
//! | [`import`] | weights of torchvision, Detectron2 and ImageNet bodies |
//! | [`export`] | the bundle: three ONNX graphs, one safetensors file |

pub mod augment;
pub mod config;
pub mod device;
pub mod export;
pub mod import;
pub mod losses;
pub mod network;
pub mod ops;
pub mod optim;
pub mod params;
mod soft;
pub mod targets;
pub mod train;

/// Why building, training or exporting a network failed.
#[derive(Debug, thiserror::Error)]
pub enum RcnnError {
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A weights file lacks a tensor, has one too many, or one of another shape.
    #[error("{}: {}{message}", path.display(), named(tensor))]
    Weights {
        /// The file.
        path: std::path::PathBuf,
        /// The tensor's name; empty where it is the file as a whole.
        tensor: String,
        /// What was expected, what came.
        message: String,
    },
    /// A configuration that cannot be.
    #[error("configuration: {0}")]
    Config(String),
    /// A device that there is not, or that cannot do what is asked of it.
    #[error("training device: {0}")]
    Device(String),
    /// A checkpoint of another run.
    #[error("{path}: {message}")]
    Checkpoint {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A device of several that train one network failed, or the others would have to go on without it.
    #[error("training on several devices: rank {rank}: {message}")]
    Rank {
        /// The device, counted from 0.
        rank: usize,
        /// What happened to it.
        message: String,
    },
    /// A loss, or the norm of the gradient, is not a finite number.
    #[error("step {step}: {name} is {value}: lower the learning rate or the clipping limit")]
    NotFinite {
        /// Which loss.
        name: &'static str,
        /// The optimiser step, from 0.
        step: u64,
        /// Its value.
        value: f32,
    },
    /// The bundle could not be written.
    #[error(transparent)]
    Bundle(#[from] omnilabel_bundle::BundleError),
}

fn named(tensor: &str) -> String {
    if tensor.is_empty() { String::new() } else { format!("tensor `{tensor}`: ") }
}
