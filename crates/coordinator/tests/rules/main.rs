//! The coordinator's rules, each a named test, driven with hand-made inputs.

#![allow(clippy::unwrap_used, reason = "all of it is a test")]

mod abandon;
mod chance;
mod lineage;
mod members;
mod orders;
mod recovery;
mod world;
