//! Tests of the whole: real processes, real kills. The tests are in `tests/`; here is what they share.
//!
//! Clocks, threads and processes are what these tests are about, so the rule that keeps them out of
//! the roles does not hold here.
#![allow(clippy::disallowed_methods)]

pub mod cluster;
pub mod resp;
