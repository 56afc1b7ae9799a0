//! The stateless front of the cluster: RESP connections and in-process calls, forwarded to the owners
//! of their keys.
//!
//! Floor 4. A `Gateway` is a state machine over bytes: it never owns a session, never answers for
//! a shard, and opens no socket. What it promises a connection (reply order, order of its commands
//! on one slot, one execution of every write) it keeps with `holdfast_client`.

mod calls;
mod cluster;
mod config;
mod connection;
mod executor;
mod gate;
mod gateway;
mod info;

pub use config::{ConfigError, GatewayConfig, Mode};
pub use gateway::Gateway;
