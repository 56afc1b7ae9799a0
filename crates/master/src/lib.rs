//! A shard as a state machine: commands, replication, recovery of a partition
