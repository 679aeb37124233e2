//! Compiles the kernels as C++.

fn main() {
    println!("cargo:rerun-if-changed=src/shim.cpp");
    println!("cargo:rerun-if-changed=../kernels");
    // Without contraction both compilers round alike; a block's shared memory starts undefined by its nature.
    let flags = ["-ffp-contract=off", "-Wno-maybe-uninitialized", "-Wno-uninitialized"];
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).file("src/shim.cpp");
    flags.iter().for_each(|flag| {
        build.flag_if_supported(flag);
    });
    build.compile("omnilabel_gpu_shim");
}
