//! A shard as a state machine: commands, replication, recovery of a partition.
//!
//! Floor 3. `Shard` is a `holdfast_cluster::Node`. It owns one log and nothing else; no sockets, no
//! clock, no threads. It speaks with the coordinator, with backups and with clients only by messages, and
//! never decides that anybody is dead, itself included.
//!
//! ```text
//!             Requests                        Append                      Recover, FetchPart
//!                |                              ^ | Appended                      |
//!                v                              | v                               v
//!   streams -> commands -> Log (holdfast-log) -> replicas                      recovery -> Log
//!                |                                 |  durable position, lease
//!                '----> answers (withheld) <-------'
//!                          |
//!                      Responses
//! ```

mod answers;
mod commands;
mod config;
mod frees;
mod limits;
mod placement;
mod recovery;
mod replica;
mod replicas;
mod shard;
mod streams;

pub use config::{ConfigError, ShardConfig};
pub use shard::{ProcessMemory, Shard};
