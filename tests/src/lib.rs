//! Whole-system tests: the rules of the house here, real peers in `tests/`.

pub mod house;
