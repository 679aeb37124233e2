//! Detection geometry: what lies between the graphs of a keypoint R-CNN. Plain slices, no tensors, no graphs: training (`rcnn`)
//! and inference (`runtime`) compute anchors, boxes, NMS, RoI levels, RoIAlign and the image transform with this code.

pub mod anchors;
pub mod boxes;
pub mod frame;
pub mod nms;
pub mod pose;
pub mod proposals;
pub mod roi;
