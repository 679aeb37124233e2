//! The pipeline of the GPU, its kernels compiled as C++.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod pipeline_cases;

use omnilabel_bundle::Manifest;
use omnilabel_gpu_shim::Shim;
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_runtime::Teacher;
use omnilabel_runtime::device::OnHost;
use pipeline_cases::Painted;

fn teacher_on(graphs: Painted, manifest: Manifest, skeleton: Skeleton) -> Teacher {
    Teacher::on_device(Shim, OnHost(graphs), manifest, skeleton).unwrap()
}
