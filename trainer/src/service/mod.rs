//! The centre as a service, `omnilabel-trainer run --config trainer.toml`.
//!
//! ```text
//! MQTT ─▶ intake (collector) ─▶ store ─▶ rounds: judge, calibrate, export, train, judge, gate ─▶ sign ─▶ rollout ─▶ MQTT
//!                                 └─▶ acknowledgements ─▶ MQTT
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | `trainer.toml` |
//! | [`events`] | what happened, as JSON lines |
//! | [`collector`] | messages become records (pure) |
//! | [`store`] | SQLite or PostgreSQL: labels once, acknowledgements, rounds, releases |
//! | [`hand`] | what people say of labels (pure) |
//! | [`dataset`] | a snapshot of labels as a COCO folder |
//! | [`rounds`] | one round after the other, each step resumable |
//! | [`arm`] | what a round asks of the training code |
//! | [`retention`] | how long it is kept |
//! | [`verify`] | whether what is stored is whole |
//! | [`gate`] | whether a student goes out (pure) |
//! | [`drift`] | whether labels have changed: between two models, of a device over time |
//! | [`sign`] | keys, manifests, signatures |
//! | `acks` | which outboxes wait to be told what is stored (pure) |
//! | `answers` | telling them |
//! | [`rollout`] | the retained release and its blocks |
//! | [`waves`] | to whom it goes, and when to more (pure) |
//! | [`steer`] | what people say about it |
//! | [`backup`] | a copy of all of it, and its way back |
//! | [`web`] | the page, its API, metrics and health |
//! | [`server`] | the loops around all of it |
//! | [`collect`] | a further collector of the same database |

mod acks;
mod answers;
pub mod arm;
pub mod backup;
pub mod collect;
pub mod collector;
pub mod config;
pub mod dataset;
pub mod drift;
pub mod events;
pub mod gate;
pub mod hand;
pub mod retention;
pub mod rollout;
pub mod rounds;
pub mod server;
pub mod sign;
pub mod steer;
pub mod store;
pub mod verify;
pub mod waves;
pub mod web;

#[cfg(test)]
pub(crate) mod testing;

pub use config::ServiceConfig;
pub use events::{Event, EventReader, Stamped};
pub use store::counts::{DeviceCounts, read_counts};
