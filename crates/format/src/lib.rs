//! The bytes: ids, slots, segment layout, entries, digest, checksums, iteration.
//!
//! Floor 0. Nothing here does I/O, reads a clock or allocates more than its output needs. Bytes
//! that come from disk or network are untrusted here: reading them gives errors, never panics.

mod ids;
mod slot;

pub use ids::*;
pub use slot::*;
