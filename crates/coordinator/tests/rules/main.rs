//! The coordinator's rules, each a named test, driven with hand-made inputs.

mod members;
mod recovery;
mod world;
