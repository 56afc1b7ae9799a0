//! Who is alive, as a member sees it: the node seam, the view, failure detection, cluster time.
//!
//! Floor 2. Every role is built on this crate; it knows nothing of what the roles do, and it never
//! decides that a member is dead: only the coordinator does.

mod admission;
mod beside;
pub mod clock;
mod membership;
pub mod node;
pub mod prober;
mod view;

pub use admission::{Admission, Arrival};
pub use beside::{Answer, Executed, ShardBeside};
pub use clock::ClusterClock;
pub use membership::{Heard, Membership};
pub use node::*;
pub use view::{ViewChange, ViewExt};
