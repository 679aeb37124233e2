//! The centre: collects labels, retrains, proves, signs and releases.
//!
//! ```text
//! data set / collected labels ─▶ samples ─▶ mix (6:4) ─▶ arm (train, export) ─▶ evaluate ─▶ score
//!                                   ▲                                             │
//!                 teacher's detections ─▶ calibrate (τ, τ_k)                      └─▶ gate, sign, rollout
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`samples`] | COCO folders and generated labels as training samples |
//! | [`mix`] | the 60 : 40 quota per optimiser step |
//! | [`calibrate`] | τ and τ_k |
//! | [`arm`] | one training run: data → steps → exported bundle with golden frames |
//! | [`score`] | the ten COCO keypoint numbers |
//! | [`evaluate`] | an exported bundle over a labelled folder |
//! | [`gallery`] | an evaluation in pictures: predictions beside labels, the worst first |
//! | [`distill`] | the whole method on folders, stage by stage |
//! | [`experiment`] | arms, seeds and ablations in one table with its errors |
//! | [`formats`] | labels of people in the formats of other tools, in and out |
//! | [`service`] | the centre as a service: collector, rounds, gate, signature, rollout |
//! | `digest`, `pictures` | of files and values; the same picture in two folders |
//! | [`cli`] | the command line |

pub mod arm;
pub mod calibrate;
pub mod cli;
pub(crate) mod digest;
pub mod distill;
pub mod evaluate;
pub mod experiment;
pub mod formats;
pub mod gallery;
pub mod mix;
pub(crate) mod pictures;
pub mod samples;
pub mod score;
pub mod service;
pub mod start;
