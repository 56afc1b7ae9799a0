//! The client side of a cluster: routes commands to shards by the tablet map, repeats them until
//! they are answered, and sees to it that repeating a write never executes it twice.
//!
//! Floor 3. One `Core` serves a gateway or an application's own client. It does no I/O and reads no
//! clock; it never answers for a shard, and it never changes the identity (`Once`) of a write once
//! that has been sent. `docs/design-notes.md`, "Requests", has the protocol.

mod config;
mod core;
mod lane;
mod order;
mod pending;
mod routes;
mod window;

pub use self::config::{Config, ConfigError};
pub use self::core::{Core, Figures, SCAN_STEP, Scope, Submit};
pub use self::order::OrderKey;
pub use self::routes::Routes;
