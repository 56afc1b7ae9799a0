//! The bytes: ids, slots, segment layout, entries, digest, checksums, iteration.
//!
//! Floor 0. Nothing here does I/O, reads a clock or allocates more than its output needs. Bytes
//! that come from disk or network are untrusted here: reading them gives errors, never panics.

mod checksum;
mod entry;
mod expiry;
mod hash;
mod ids;
mod keyed;
mod outline;
mod segment;
mod slot;
mod sparse;

pub use checksum::*;
pub use entry::*;
pub use expiry::{DEADLINE_MAX, Expiry};
pub use hash::*;
pub use ids::*;
pub use keyed::Keyed;
pub use outline::{BadOutline, Outline, Outlining};
pub use segment::*;
pub use slot::*;
pub use sparse::{OtherBytes, SparseIndex};
