//! The client core against simple shards, over a network that loses what the test says.

mod anything;
mod failures;
mod key_space;
mod load;
mod requests;
#[path = "../support/shard.rs"]
mod shard;
mod world;
