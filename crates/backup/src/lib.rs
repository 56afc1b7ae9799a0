//! A backup: keeps replicas of other members' segments in frames, and serves them when their master dies.
//!
//! Floor 3. A state machine over messages and disk effects: no socket, clock, thread or file in
//! here. It never interprets what sessions say, never decides that anybody is dead, and never
//! vouches for a byte that its master's certificate does not cover.
//!
//! ```text
//!  Append --> [append] ---------> frames ----> DiskOp::Write, Sync   (flush)
//!  Fence  --> [survey] --reads--> frames ----> Inventory
//!  Fetch  --> [fetch]  --reads--> frames ----> FetchPart
//!  AskOutlines --> [outlines] ---------------> Outline
//!  LookUp --> [lookups] --reads--> frames ---> LookedUp
//! ```
//!
//! Start at `backup.rs`. `header.rs` has the only bytes that are a backup's own; everything past a
//! frame's header is the master's.

mod append;
mod backup;
mod config;
mod contents;
mod fetch;
mod flush;
mod frames;
mod header;
mod lookups;
mod outlines;
mod reads;
mod replica;
mod scrub;
mod survey;
mod upkeep;

pub use backup::Backup;
pub use config::{BackupConfig, ConfigError};
