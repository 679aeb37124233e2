//! The pipeline on the CPU.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod pipeline_cases;

use omnilabel_bundle::Manifest;
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_runtime::Teacher;
use pipeline_cases::Painted;

fn teacher_on(graphs: Painted, manifest: Manifest, skeleton: Skeleton) -> Teacher {
    Teacher::with_graphs(Box::new(graphs), manifest, skeleton).unwrap()
}
