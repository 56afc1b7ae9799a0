//! What an operator decides, and why a coordinator refuses to start.

use holdfast_wire::{ClusterConfig, NamespacePolicy};

use crate::records::RecordError;

/// More would need more kinds of failure domains than anyone has.
const REPLICAS_MAX: u8 = 8;

#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    /// What all members are told. `cluster` 0: whatever is recorded, or a new one.
    pub cluster: ClusterConfig,
    /// Slots are dealt out, once, when so many shards (and enough backups) are up.
    pub initial_shards: u32,
    /// A suspect is dead after so much silence.
    pub confirm_ms: u32,
    /// Anyone is dead after so much silence.
    pub dead_ms: u32,
    /// Nobody recorded can be alive: do not wait `dead_ms` to find out.
    pub cold_start: bool,
    /// After a start that no backup has lived through, a log of which recorded stores are away waits
    /// so long, from the start, before its head is chosen. Where memory acknowledges, what a power
    /// failure left may show an older head as open: those who come back first must not decide alone.
    pub settle_ms: u32,
    /// No more shards take a dead log over than get so much of it each.
    pub part_bytes_min: u64,
    /// Limits that the operator has written down: they replace those that are recorded of the same
    /// namespaces.
    pub namespaces: Vec<NamespacePolicy>,
    /// Enlisting is refused beyond so many members that are up.
    pub members_max: u32,
}

impl CoordinatorConfig {
    /// The defaults for a cluster like this.
    pub fn new(cluster: ClusterConfig, initial_shards: u32) -> CoordinatorConfig {
        CoordinatorConfig {
            cluster,
            initial_shards,
            confirm_ms: 300,
            dead_ms: 1_000,
            cold_start: false,
            settle_ms: 5_000,
            part_bytes_min: 64_000_000,
            namespaces: Vec::new(),
            members_max: 4_096,
        }
    }

    /// Three replicas, one shard, quick heartbeats, everybody takes part in a recovery.
    pub fn for_testing() -> CoordinatorConfig {
        let cluster = ClusterConfig {
            cluster: 1,
            replicas: 3,
            ack_quorum: 3,
            lease_ms: 400,
            heartbeat_ms: 100,
            probe_ms: 100,
            ack_disk: false,
        };
        CoordinatorConfig {
            part_bytes_min: 0,
            ..CoordinatorConfig::new(cluster, 1)
        }
    }

    pub fn validate(&self) -> Result<(), ConfigError> {
        let ClusterConfig {
            replicas,
            ack_quorum,
            lease_ms,
            heartbeat_ms,
            probe_ms,
            ..
        } = self.cluster;
        let rules = [
            (replicas <= REPLICAS_MAX, "replicas is at most 8"),
            (
                ack_quorum <= replicas && (ack_quorum >= 1 || replicas == 0),
                "ack_quorum is at least 1 and at most the number of replicas",
            ),
            (replicas == 0 || lease_ms >= 20, "lease_ms is at least 20"),
            (heartbeat_ms >= 1, "heartbeat_ms is at least 1"),
            (probe_ms >= 1, "probe_ms is at least 1"),
            (self.initial_shards >= 1, "initial_shards is at least 1"),
            (self.confirm_ms >= 1, "confirm_ms is at least 1"),
            (
                u64::from(self.dead_ms) >= 2 * u64::from(heartbeat_ms),
                "dead_ms is at least twice heartbeat_ms, or one lost heartbeat would be a death",
            ),
            (
                self.members_max >= self.initial_shards,
                "members_max is at least initial_shards",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(ConfigError::Invalid(rule)),
            None => Ok(()),
        }
    }
}

/// Why a coordinator does not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("invalid configuration: {0}")]
    Invalid(&'static str),
    /// Other settings may change between starts; this one is part of what is stored.
    #[error(
        "this cluster was made with {what} = {recorded} and is now configured with {configured}; \
         start it as it was, or start a new cluster in another directory"
    )]
    Mismatch {
        what: &'static str,
        recorded: u64,
        configured: u64,
    },
    #[error(transparent)]
    Record(#[from] RecordError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bound_is_checked() {
        assert_eq!(CoordinatorConfig::for_testing().validate(), Ok(()));
        let check = |change: &dyn Fn(&mut CoordinatorConfig), says: &str| {
            let mut config = CoordinatorConfig::for_testing();
            change(&mut config);
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        check(&|c| c.cluster.replicas = 9, "replicas");
        check(&|c| c.cluster.ack_quorum = 4, "ack_quorum");
        check(&|c| c.cluster.ack_quorum = 0, "ack_quorum");
        check(&|c| c.cluster.lease_ms = 5, "lease_ms");
        check(&|c| c.cluster.heartbeat_ms = 0, "heartbeat_ms");
        check(&|c| c.cluster.probe_ms = 0, "probe_ms");
        check(&|c| c.initial_shards = 0, "initial_shards");
        check(&|c| c.confirm_ms = 0, "confirm_ms");
        check(&|c| c.dead_ms = 150, "dead_ms");
        check(&|c| c.members_max = 0, "members_max");
    }
}
