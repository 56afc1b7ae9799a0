//! Who is alive, as a member sees it: the node seam, the view, failure detection, cluster time.
//!
//! Floor 2. Every role is built on this crate; it knows nothing of what the roles do.

pub mod node;

pub use node::*;
