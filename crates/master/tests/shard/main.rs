//! A whole shard, driven by hand-made messages.

#![allow(
    clippy::unwrap_used,
    reason = "the world of these tests may stop at what it did not expect"
)]

mod answers;
mod chaos;
mod cleaning;
mod commands;
mod compaction;
mod early;
mod limits;
mod lineage;
mod lookups;
mod quorum;
mod replication;
mod takeover;
mod world;
