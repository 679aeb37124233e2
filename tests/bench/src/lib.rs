//! The product's speed beside what a user would pick instead: PyTorch and torchvision, ONNX Runtime, pycocotools, cbor2, sqlite3.
//!
//! Every side is a process of its own that speaks the protocol of [`side`]; the driver asks one after the other, so that whatever else the
//! machine does slows all of them alike, and forms the ratio of each pair of neighbouring runs. What the sides give is compared before
//! anything is timed.
//!
//! | module | what it holds |
//! |---|---|
//! | [`side`] | the protocol, and a side as a process |
//! | [`cases`] | what is compared |
//! | [`fixture`] | networks, pictures and ground truth that all sides read |
//! | [`ours`] | this product as a side |
//! | [`agree`] | whether the sides give the same, within named tolerances |
//! | [`compare`] | the driver |
//! | [`load`] | how much of the processor others took |
//! | [`stats`] | medians and quartiles |
//! | [`scale`] | how cost grows |
//! | [`fleet`] | many simulated devices, a real broker and centre, faults |
//! | [`startup`] | how long a device takes to its first label |
//! | [`report`] | table, JSON and chart |

pub mod agree;
pub mod cases;
mod chart;
pub mod compare;
pub mod fixture;
pub mod fleet;
pub mod load;
pub mod ours;
pub mod report;
pub mod scale;
pub mod side;
pub mod startup;
pub mod stats;
