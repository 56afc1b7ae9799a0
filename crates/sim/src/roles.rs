//! The real roles, configured small: the only place that knows how each is made.

use bytes::Bytes;
use holdfast_backup::{Backup, BackupConfig};
use holdfast_cluster::{FrameId, Node, Now};
use holdfast_coordinator::{Coordinator, CoordinatorConfig};
use holdfast_gateway::{Gateway, GatewayConfig, Mode};
use holdfast_master::{Shard, ShardConfig};
use holdfast_wire::Member;

use crate::setup::Setup;

/// The coordinator, from its records.
pub fn coordinator(
    setup: &Setup,
    records: Vec<(String, Bytes)>,
    now: Now,
    seed: u64,
    cold_start: bool,
) -> Box<dyn Node> {
    let config = CoordinatorConfig {
        cold_start,
        ..CoordinatorConfig::new(setup.config, setup.shards())
    };
    let coordinator = Coordinator::new(config, records, now, seed);
    Box::new(coordinator.expect("its own records are sound"))
}

/// A shard with nothing in its log.
pub fn shard(setup: &Setup, member: Member, seed: u64) -> Box<dyn Node> {
    let mut config = ShardConfig::for_testing(member);
    // So little that a stalled backup makes writers wait, and then be refused.
    config.unreplicated_bytes_max = 24 << 10;
    config.log.memory_bytes = setup.memory_bytes;
    config.log.segment_bytes = setup.segment_bytes;
    config.log.seglet_bytes = setup.seglet_bytes;
    config.log.value_bytes_max = setup.value_bytes_max;
    Box::new(Shard::new(config, seed).expect("the setup makes sense for a shard"))
}

/// A backup with what its store holds.
pub fn backup(
    setup: &Setup,
    member: Member,
    headers: Vec<(FrameId, Bytes)>,
    seed: u64,
) -> Box<dyn Node> {
    let config = BackupConfig {
        segment_bytes: setup.segment_bytes,
        frames: setup.frames,
        ..BackupConfig::for_testing(member)
    };
    Box::new(Backup::new(config, headers, seed).expect("the setup makes sense for a backup"))
}

/// A gateway for the flat port.
pub fn gateway(setup: &Setup, member: Member, seed: u64) -> Box<dyn Node> {
    let config = GatewayConfig {
        value_bytes_max: setup.value_bytes_max,
        ..GatewayConfig::for_testing(member, Mode::Flat)
    };
    Box::new(Gateway::new(config, seed).expect("the setup makes sense for a gateway"))
}
