//! Whole-system tests: the rules of the house, and the product's programs against real peers.

pub mod compose;
pub mod fleet;
pub mod house;
pub mod peers;
pub mod postgres;
pub mod promql;
pub mod s3;
