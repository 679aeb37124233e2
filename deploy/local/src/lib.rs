//! Everything by one command: broker, centre and devices on one machine.
//!
//! This crate alone knows both sides. It computes nothing of the method itself: it renders footage, starts the other roles as processes of
//! this same binary, watches what they report, and shows it.
//!
//! | module | what it holds |
//! |---|---|
//! | [`cli`] | the command line |
//! | [`broker`] | the embedded MQTT 5 broker, loopback only |
//! | [`mjpeg`] | a folder of pictures as a live MJPEG stream over HTTP |
//! | [`child`] | processes of this binary: start, watch, stop |
//! | [`zoo`] | the shipped model, inside the binary |
//! | [`demo`] | the loop, stage by stage, resumable |
//! | [`report`] | the HTML report |

pub mod broker;
pub mod child;
pub mod cli;
pub mod demo;
pub mod mjpeg;
pub mod report;
pub mod zoo;
