//! The coordinator's rules, each a named test, driven with hand-made inputs.

mod chance;
mod members;
mod recovery;
mod world;
