//! The real roles, configured small: the only place that knows how each is made.

use bytes::Bytes;
use holdfast_backup::{Backup, BackupConfig};
use holdfast_cluster::{FrameId, Input, Node, Now, Outputs};
use holdfast_coordinator::{Coordinator, CoordinatorConfig};
use holdfast_gateway::{Gateway, GatewayConfig, Mode};
use holdfast_master::{Shard, ShardConfig};
use holdfast_wire::{Figures, Member};

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
        part_bytes_min: setup.part_bytes_min,
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
    // A few pieces for each segment, or hundreds.
    config.copy_piece_bytes = [700, 5 << 10, 1 << 20][(seed % 3) as usize];
    config.log.memory_bytes = setup.memory_bytes;
    config.log.segment_bytes = setup.segment_bytes;
    config.log.seglet_bytes = setup.seglet_bytes;
    config.log.value_bytes_max = setup.value_bytes_max;
    config.log.replica_expansion_percent = setup.replica_expansion_percent;
    config.recovery_window_bytes = setup.recovery_window_bytes;
    let shard = Shard::new(config, seed).expect("the setup makes sense for a shard");
    match setup.verify {
        true => Box::new(Verified(shard)),
        false => Box::new(shard),
    }
}

/// A shard whose log is checked from end to end after everything that it does.
#[derive(Debug)]
struct Verified(Shard);

impl Node for Verified {
    fn step(&mut self, now: Now, input: Input, out: &mut Outputs) {
        self.0.step(now, input, out);
        self.0.verify();
    }

    fn flush(&mut self, now: Now, out: &mut Outputs) {
        self.0.flush(now, out);
        self.0.verify();
    }

    fn wakeup(&self) -> Option<u64> {
        self.0.wakeup()
    }

    fn metrics(&self) -> Vec<(&'static str, f64)> {
        self.0.metrics()
    }

    fn ready(&self) -> bool {
        self.0.ready()
    }

    fn figures(&self) -> Figures {
        self.0.figures()
    }
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
        // Some answer no questions for single keys, or few: then segments are pulled.
        lookups_max: [0, 2, 512][(seed % 3) as usize],
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
