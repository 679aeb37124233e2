//! What lies between a wrapped pose model's graph and the frame: cutting people out or fitting the frame in, and reading keypoints from
//! what comes out.
//!
//! Published pose code (SimpleBaseline, mmpose, Ultralytics) counts keypoints in pixel indices, COCO's convention: the centre of pixel i
//! is i. Everything here that says "index" means that; continuous coordinates (the centre is i + 0.5) are one half more.

mod candidates;
mod crop;
mod letterbox;
mod maps;
mod refine;
mod warp;

pub use candidates::{Candidate, candidates};
pub use crop::Crop;
pub use letterbox::Placement;
pub use maps::{Axis, Evidence, Peak, Sum};
pub use warp::{Tap, warp};
