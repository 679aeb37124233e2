//! The edge annotation appliance: a camera's frames become hard labels, reach the centre over MQTT, and its signed models come back.
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | `edge.toml` as one typed value |
//! | [`camera`] | frames from folders, video files, network, USB and CSI cameras |
//! | [`policy`] | which frames are labelled |
//! | [`privacy`] | what a frame shows before it leaves the device |
//! | [`annotate`] | a model with its view plan: frame in, label out |
//! | [`outbox`] | labels on disk until the collector has them |
//! | [`slots`] | the two model slots and what is known about them |
//! | [`update`] | a release: verified, fetched, assembled |
//! | [`publish`] | messages as they leave the device |
//! | `web` | the device's own page, metrics and health |
//! | [`discovery`] | what Home Assistant needs to show the device |
//! | [`service`] | the appliance itself: one loop over closed events |
//! | [`cli`] | the command line |

pub mod annotate;
pub mod camera;
pub mod cli;
mod clock;
pub mod config;
pub mod discovery;
mod durable;
pub mod outbox;
pub mod policy;
pub mod privacy;
pub mod publish;
pub mod service;
pub mod slots;
#[cfg(test)]
mod testing;
pub mod update;
mod web;
