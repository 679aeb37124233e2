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

/// What no frame could be labelled with is refused when it is loaded, so that `auto` takes the CPU.
#[test]
fn a_network_that_the_kernels_have_no_room_for_is_refused_at_once() {
    let refused = |change: fn(&mut omnilabel_bundle::NetworkSpec)| {
        let (graphs, mut manifest, skeleton) = pipeline_cases::painted();
        change(manifest.network.rcnn_mut().unwrap());
        Teacher::on_device(Shim, OnHost(graphs), manifest, skeleton).err().unwrap().to_string()
    };
    let maps = refused(|network| network.heatmap_side = 65);
    assert_eq!(maps, "the side of a heatmap: 65, the GPU kernels take at most 64");
    let candidates = refused(|network| network.rpn.pre_nms_top_n = 9000);
    assert_eq!(candidates, "RPN candidates per level: 9000, the GPU kernels take at most 8192");
}
