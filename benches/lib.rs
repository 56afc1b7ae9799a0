//! Benchmarks. Each is one command, `cargo bench -p holdfast-benches --bench NAME [-- FLAGS]`, prints a
//! table and leaves JSON and a plot under `target/reports/` (`docs/benchmarks.md` has what they showed).
//!
//! `codec` and `log` time the hot path with criterion. The others are built from what is here: `engine`
//! drives one log as a shard with instant backups would, `cleaner` measures it, `report` and `chart` write
//! down what was found. The engine's parts need no other crate than `log`, so that whoever works on the cleaner
//! need not build a server to see what it costs.
//!
//! Their small runs are ordinary tests, so that no benchmark rots unnoticed. No test here looks at a time.

#![allow(
    clippy::disallowed_methods,
    reason = "clocks, threads and processes are what is measured here"
)]

pub mod chart;
pub mod churn;
pub mod cleaner;
pub mod client;
pub mod engine;
pub mod keys;
pub mod process;
pub mod report;
pub mod servers;
pub mod sessions;
pub mod through_resp;
