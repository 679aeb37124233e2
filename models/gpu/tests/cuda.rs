//! What can be tried of CUDA on the machine at hand: the kernels compile where there is NVRTC, and agree with their CPU twins where there
//! is a GPU; without either, the errors say what is missing. `tests/run --cuda` brings NVRTC.

#![cfg(any(feature = "cuda", feature = "cuda-12060"))]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod suite;

use omnilabel_gpu::cuda::{self, CudaDevice};
use omnilabel_gpu::{GpuError, Part};

/// Orin and Hopper.
const ARCHITECTURES: [&str; 2] = ["sm_87", "sm_90"];

#[test]
fn the_kernels_compile() {
    if let Err(missing) = cuda::check_compiler() {
        assert!(std::env::var_os("OMNILABEL_CUDA").is_none(), "NVRTC was promised: {missing}");
        eprintln!("skipped: {missing}");
        return;
    }
    for (arch, part) in ARCHITECTURES.into_iter().flat_map(|arch| Part::ALL.map(|part| (arch, part))) {
        let start = std::time::Instant::now();
        let cubin = cuda::compile(arch, part).unwrap();
        println!("{arch}, {part:?}: {} bytes of machine code in {:.1} s", cubin.len(), start.elapsed().as_secs_f32());
        assert!(cubin.starts_with(b"\x7fELF"), "not a cubin");
        for kernel in part.kernels() {
            let name = kernel.name().as_bytes();
            assert!(cubin.windows(name.len()).any(|window| window == name), "{arch} lacks {}", kernel.name());
        }
    }
    let error = cuda::compile("sm_1", Part::Labelling).unwrap_err();
    assert!(matches!(&error, GpuError::Compile { arch, log } if arch == "sm_1" && log.contains("gpu-architecture")), "{error}");
}

#[test]
fn the_kernels_agree_with_their_twins() {
    match CudaDevice::new(0) {
        Ok(device) => {
            println!("on {}", device.name().unwrap());
            suite::all(&device, suite::Exactness::Own);
        }
        Err(error) => {
            eprintln!("skipped: {error}");
            assert!(std::env::var_os("OMNILABEL_GPU").is_none(), "a GPU was promised: {error}");
            assert!(matches!(error, GpuError::Missing { .. } | GpuError::Driver { .. }), "{error}");
        }
    }
}
