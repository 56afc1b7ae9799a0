//! Tests of the whole: real processes, real kills. The tests are in `tests/`; here is what they share.

pub mod cluster;
pub mod resp;
