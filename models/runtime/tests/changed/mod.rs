//! The shipped model with other weights.

use omnilabel_bundle::{Bundle, seal};
use std::path::Path;

/// The shipped model with `change` applied to the values of the tensors that `which` names, sealed anew with its old golden frames.
pub(crate) fn changed_weights(which: impl Fn(&str) -> bool, mut change: impl FnMut(f32) -> f32) -> (tempfile::TempDir, Bundle) {
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../zoo/nano-scenes");
    let (dir, shipped) = (tempfile::tempdir().unwrap(), Bundle::open(&zoo).unwrap());
    std::fs::create_dir(dir.path().join("golden")).unwrap();
    for name in shipped.manifest().files.keys() {
        std::fs::copy(zoo.join(name), dir.path().join(name)).unwrap();
    }
    let path = dir.path().join("weights.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let (header, tensors) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    // The same numbers in every run.
    let tensors: std::collections::BTreeMap<_, _> = tensors.tensors().into_iter().filter(|(name, _)| which(name)).collect();
    for (name, tensor) in tensors {
        assert_eq!(tensor.dtype, safetensors::Dtype::F32, "{name}");
        let (from, to) = tensor.data_offsets;
        for value in bytes[8 + header..][from..to].as_chunks_mut::<4>().0 {
            *value = change(f32::from_le_bytes(*value)).to_le_bytes();
        }
    }
    std::fs::write(&path, &bytes).unwrap();
    let bundle = seal(dir.path(), shipped.manifest().clone()).unwrap();
    (dir, bundle)
}

/// Moves each value by at most `percent` of itself, by the same numbers in every run.
pub(crate) fn noise(percent: f64) -> impl FnMut(f32) -> f32 {
    let mut random = 1_u32;
    move |value| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        value * (1.0 + (0.01 * percent * (f64::from(random) / f64::from(u32::MAX) * 2.0 - 1.0)) as f32)
    }
}
