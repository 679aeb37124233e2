//! The backbone's tensors (body and FPN) of a weights file, as a file of their own: a pre-trained start whose heads are fresh.
//!
//! ```text
//! cargo run --release -p omnilabel-rcnn --example backbone_of -- WEIGHTS.safetensors OUT.safetensors
//! ```

use omnilabel_rcnn::params::read_tensors;
use std::collections::HashMap;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let [from, to] = &paths[..] else { return Err("usage: backbone_of WEIGHTS.safetensors OUT.safetensors".into()) };
    let backbone: HashMap<_, _> = read_tensors(Path::new(from))?.into_iter().filter(|(name, _)| name.starts_with("backbone.")).collect();
    if backbone.is_empty() {
        return Err(format!("{from}: no tensor is named backbone.…").into());
    }
    println!("{to}: {} tensors", backbone.len());
    Ok(candle_core::safetensors::save(&backbone, to)?)
}
