//! The kernels, compiled as C++, against their CPU twins.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod suite;

use omnilabel_gpu::{Arg, Array, Device, GpuError, Kernel};
use omnilabel_gpu_shim::Shim;
use suite::Exactness;

#[test]
fn images_are_transformed_alike() {
    suite::images(&Shim);
}

#[test]
fn maps_are_pooled_alike() {
    suite::max_pools(&Shim);
}

#[test]
fn values_that_are_not_finite_are_found() {
    suite::checks(&Shim);
}

#[test]
fn the_same_regions_are_proposed() {
    suite::proposals(&Shim, Exactness::Same);
}

#[test]
fn the_same_people_are_detected() {
    suite::detections(&Shim, Exactness::Same);
}

#[test]
fn rois_are_aligned_alike() {
    suite::rois(&Shim);
}

#[test]
fn heatmaps_are_read_alike() {
    suite::heatmaps(&Shim);
}

/// A grid of no blocks runs nothing, so that any number of arguments may be tried.
#[test]
#[expect(unsafe_code, reason = "launches as such")]
fn the_shim_has_every_kernel() {
    for &kernel in Kernel::ALL {
        let launch = |args: &[Arg<'_, _>]| {
            // SAFETY: no block runs.
            unsafe { Shim.launch(kernel, [0, 0], args) }
        };
        let takes: Vec<usize> = (0..24).filter(|&n| launch(&(0..n).map(|_| Arg::Int(0)).collect::<Vec<_>>()).is_ok()).collect();
        assert_eq!(takes.len(), 1, "{} takes {takes:?} arguments", kernel.name());
    }
}

#[test]
fn arrays_of_another_length_are_refused() {
    let (short, out) = (Array::from_slice(&Shim, &[0.0f32; 5]).unwrap(), Array::zeros(&Shim, 4).unwrap());
    let error = omnilabel_gpu::ops::max_pool(&Shim, &short, [1, 3, 3], (3, 2, 1), &out, (2, 2)).unwrap_err();
    assert!(matches!(error, GpuError::Kernel { kernel: "max_pool", .. }), "{error}");
    assert_eq!(short.slice(2..4).to_vec(&Shim).unwrap(), [0.0; 2]);
}
