//! What a gateway tells from what it knows of itself and of the cluster: INFO, and CLUSTER on a cluster port.

use holdfast_cluster::{ConnectionId, Now};
use holdfast_format::{Namespace, Slot};
use holdfast_wire::redis::{Cluster, InfoSections};
use holdfast_wire::{Eviction, NamespacePolicy, Op, Usage};

use super::{Executor, key_space};
use crate::cluster::{self, node_id};
use crate::config::Mode;
use crate::connection::{Connection, Progress};
use crate::info::{self, Facts};

/// INFO may tell figures of the shards this old; each refresh asks every one.
const USAGE_AGE_MAX_US: u64 = 1_000_000;
/// What INFO tells while tablets are recovered: the goal for a recovery.
const LOADING_ETA_S: u64 = 1;

impl Executor {
    pub(super) fn info(
        &mut self,
        now: Now,
        id: ConnectionId,
        connection: &mut Connection,
        sections: InfoSections,
    ) {
        let fresh = self
            .usage_at_us
            .is_some_and(|at| now.mono_us < at + USAGE_AGE_MAX_US);
        // Never waits for a recovery: clients ask INFO to learn that there is one.
        let told = ["memory", "stats", "keyspace"];
        let asks = told.iter().any(|section| sections.wants(section));
        if fresh || self.loading() || !asks {
            let text = info::info_text(&self.facts(now), &sections);
            return connection.write(|reply| reply.verbatim(&text));
        }
        let reply = connection.begin(Progress::Info { sections });
        // In no order: it must not wait for what the connection has asked before.
        let command = key_space(Namespace(0), Op::Usage);
        self.ask_in_order(now, None, (id, reply, 0), command);
    }

    pub(super) fn note_usage(&mut self, now: Now, usage: Usage) {
        self.used_peak_bytes = self.used_peak_bytes.max(usage.used_bytes);
        self.usage = usage;
        self.usage_at_us = Some(now.mono_us);
    }

    fn loading(&self) -> bool {
        match self.config.mode {
            Mode::Flat => !self.core.routes().complete(),
            Mode::Cluster { shard } => {
                let routes = self.core.routes();
                !routes.is_shard(shard) || routes.owners().is_empty()
            }
        }
    }

    /// True if some namespace evicts at its limit or the cluster's.
    pub(super) fn evicts(&self) -> bool {
        let policies = &self.membership.view().namespaces;
        let evicts = |policy: &NamespacePolicy| policy.limits.evict != Eviction::Never;
        policies.iter().any(evicts)
    }

    pub(super) fn facts(&self, now: Now) -> Facts<'_> {
        let (core, counters) = (self.core.figures(), &self.counters);
        let port = match self.config.mode {
            Mode::Cluster { .. } if self.config.resp_port == 0 => {
                cluster::host_and_port(&self.config.member.resp_cluster).1
            }
            _ => self.config.resp_port,
        };
        Facts {
            redis_mode: self.redis_mode(),
            run_id: node_id(self.node()),
            pid: self.config.member.pid,
            port,
            uptime_s: now
                .mono_us
                .saturating_sub(self.started_us.unwrap_or(now.mono_us))
                / 1_000_000,
            connected_clients: self.connections,
            clients_max: self.config.connections_max,
            waiting: core.pending,
            loading: self.loading(),
            loading_eta_s: LOADING_ETA_S,
            usage: &self.usage,
            used_peak_bytes: self.used_peak_bytes,
            evicts: self.evicts(),
            replicas: self.membership.config().map_or(0, |config| config.replicas),
            connections_total: counters.connections_total,
            connections_rejected: counters.connections_rejected,
            commands_total: counters.commands_total,
            commands_per_s: self.rate.per_s,
            errors_total: counters.errors_total,
            hits: counters.hits,
            misses: counters.misses,
            input_bytes: counters.input_bytes,
            output_bytes: counters.output_bytes,
        }
    }

    pub(super) fn cluster(&mut self, connection: &mut Connection, request: &Cluster) {
        if let Cluster::KeySlot { key } = request {
            let slot = Slot::of(key);
            return connection.write(|reply| reply.integer(i64::from(slot.0)));
        }
        let Mode::Cluster { shard } = self.config.mode else {
            return self.refuse(connection, &cluster::DISABLED);
        };
        let view = self.membership.view();
        match request {
            Cluster::Slots => {
                let bytes = self.slots_reply.get(view, connection.protocol);
                connection.write_bytes(&bytes);
            }
            Cluster::Shards => connection.write(|reply| cluster::write_shards(view, reply)),
            Cluster::Nodes => {
                let text = cluster::nodes_text(view, shard);
                connection.write(|reply| reply.verbatim(&text));
            }
            Cluster::Info => {
                let text = cluster::info_text(view);
                connection.write(|reply| reply.verbatim(&text));
            }
            Cluster::MyId => {
                let id = node_id(shard);
                connection.write(|reply| reply.bulk(id.as_bytes()));
            }
            Cluster::KeySlot { .. } => unreachable!("answered above"),
        }
    }
}
