//! What a shard counts, and what it tells of itself: metrics, and the figures that its heartbeats bring the coordinator.

use holdfast_format::{Namespace, Slot, SlotRange};
use holdfast_log::Load;
use holdfast_wire::{Command, Failure, Figures, SlotLoad};

use super::Shard;

/// Commands since start, by what became of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub reads: u64,
    pub writes: u64,
    pub not_owner: u64,
    pub not_ready: u64,
    pub busy: u64,
    pub failed: u64,
    /// Of keys in ranges of which not everything had been replayed.
    pub early_reads: u64,
    pub early_writes: u64,
    /// Of keys of which the former owner may still tell something.
    pub leased_reads: u64,
    pub leaseless_flushes: u64,
}

impl Shard {
    pub(super) fn count(&mut self, is_write: bool) {
        match is_write {
            true => self.counts.writes += 1,
            false => self.counts.reads += 1,
        }
    }

    /// Something is told of a range that has not been settled.
    pub(super) fn count_early(&mut self, command: &Command) {
        let slot = Slot::of(&command.key);
        let holds = |ranges: &[SlotRange]| ranges.iter().any(|range| range.contains(slot));
        let counts = &mut self.counts;
        match (
            holds(&self.settled),
            holds(&self.unreplayed),
            command.op.is_write(),
        ) {
            (true, ..) => {}
            (false, true, true) => counts.early_writes += 1,
            (false, true, false) => counts.early_reads += 1,
            (false, false, _) => counts.leased_reads += 1,
        }
    }

    pub(super) fn count_refusal(&mut self, failure: &Failure) {
        match failure {
            Failure::NotOwner => self.counts.not_owner += 1,
            Failure::Busy => self.counts.busy += 1,
            _ => self.counts.not_ready += 1,
        }
    }

    pub(super) fn gather_metrics(&self) -> Vec<(&'static str, f64)> {
        let memory = self.log.memory();
        let (epoch, recorded) = self.replicas.epoch();
        let replication = self.replicas.counts();
        let (recoveries, recovered_entries, recovered_bytes) = self.recoveries.totals();
        let (leaning, leaning_bytes) = self.recoveries.leaning(&self.log);
        let counts = self.counts;
        let (takeovers_early, segments_pulled, looked_up) = self.recoveries.early_totals();
        vec![
            (
                "holdfast_shard_takeovers_early_total",
                takeovers_early as f64,
            ),
            (
                "holdfast_shard_segments_pulled_total",
                segments_pulled as f64,
            ),
            ("holdfast_shard_recovery_lookups_total", looked_up as f64),
            (
                "holdfast_shard_early_reads_total",
                counts.early_reads as f64,
            ),
            (
                "holdfast_shard_early_writes_total",
                counts.early_writes as f64,
            ),
            (
                "holdfast_shard_reads_in_old_lease_total",
                counts.leased_reads as f64,
            ),
            ("holdfast_shard_waiting", self.parked.len() as f64),
            ("holdfast_shard_waited_total", self.parked.served as f64),
            ("holdfast_shard_sessions", self.sessions() as f64),
            ("holdfast_shard_reads_total", counts.reads as f64),
            ("holdfast_shard_writes_total", counts.writes as f64),
            ("holdfast_shard_failed_total", counts.failed as f64),
            (
                "holdfast_shard_refused_not_owner_total",
                counts.not_owner as f64,
            ),
            (
                "holdfast_shard_refused_not_ready_total",
                counts.not_ready as f64,
            ),
            ("holdfast_shard_refused_busy_total", counts.busy as f64),
            (
                "holdfast_shard_leaseless_flushes_total",
                counts.leaseless_flushes as f64,
            ),
            (
                "holdfast_shard_answers_withheld",
                self.answers.held() as f64,
            ),
            (
                "holdfast_shard_answers_withheld_bytes",
                self.answers.held_bytes() as f64,
            ),
            ("holdfast_shard_clients", self.streams.len() as f64),
            (
                "holdfast_shard_memory_limit_bytes",
                memory.limit_bytes as f64,
            ),
            ("holdfast_shard_memory_used_bytes", memory.used_bytes as f64),
            ("holdfast_shard_memory_live_bytes", memory.live_bytes as f64),
            (
                "holdfast_shard_memory_reclaimable_bytes",
                memory.reclaimable_bytes as f64,
            ),
            (
                "holdfast_shard_memory_reserved_bytes",
                memory.reserved_bytes as f64,
            ),
            (
                "holdfast_shard_memory_index_bytes",
                memory.index_bytes as f64,
            ),
            (
                "holdfast_shard_memory_records_bytes",
                memory.records_bytes as f64,
            ),
            (
                "holdfast_shard_memory_external_bytes",
                memory.external_bytes as f64,
            ),
            (
                "holdfast_shard_expired_total",
                memory.expired_sessions as f64,
            ),
            ("holdfast_shard_evicted_total", self.limits.evicted() as f64),
            ("holdfast_shard_segments", memory.segments as f64),
            (
                "holdfast_shard_cleaned_bytes_total",
                memory.cleaned_bytes as f64,
            ),
            (
                "holdfast_shard_compacted_bytes_total",
                memory.compacted_bytes as f64,
            ),
            (
                "holdfast_shard_unreplicated_bytes",
                self.unreplicated as f64,
            ),
            (
                "holdfast_shard_under_replicated_segments",
                self.replicas.under_replicated() as f64,
            ),
            ("holdfast_shard_appends_total", replication.appends as f64),
            (
                "holdfast_shard_append_bytes_total",
                replication.append_bytes as f64,
            ),
            (
                "holdfast_shard_append_resends_total",
                replication.resends as f64,
            ),
            (
                "holdfast_shard_replicas_lost_total",
                replication.replicas_lost as f64,
            ),
            (
                "holdfast_shard_copies_begun_again_total",
                replication.copies_begun_again as f64,
            ),
            (
                "holdfast_shard_epochs_raised_total",
                replication.epochs_raised as f64,
            ),
            (
                "holdfast_shard_replicas_behind",
                self.replicas.behind() as f64,
            ),
            (
                "holdfast_shard_stragglers_replaced_total",
                replication.stragglers_replaced as f64,
            ),
            (
                "holdfast_shard_append_wait_slowest_us",
                self.replicas.append_wait_extremes_us().0 as f64,
            ),
            (
                "holdfast_shard_append_wait_quickest_us",
                self.replicas.append_wait_extremes_us().1 as f64,
            ),
            ("holdfast_shard_epoch", epoch.0 as f64),
            (
                "holdfast_shard_epoch_recorded",
                f64::from(u8::from(recorded)),
            ),
            (
                "holdfast_shard_recoveries_running",
                self.recoveries.running() as f64,
            ),
            ("holdfast_shard_recoveries_leaning", leaning as f64),
            ("holdfast_shard_leaning_bytes", leaning_bytes as f64),
            ("holdfast_shard_recoveries_total", recoveries as f64),
            (
                "holdfast_shard_recovered_entries_total",
                recovered_entries as f64,
            ),
            (
                "holdfast_shard_recovered_bytes_total",
                recovered_bytes as f64,
            ),
        ]
    }

    pub(super) fn gather_figures(&self) -> Figures {
        let memory = self.log.memory();
        Figures {
            sessions: self.sessions(),
            bytes_used: memory.used_bytes,
            bytes_limit: memory.limit_bytes,
            segments: memory.segments,
            under_replicated: self.replicas.under_replicated() as u64,
            operations: self.counts.reads + self.counts.writes,
            bytes_live: memory.live_bytes,
            bytes_reclaimable: memory.reclaimable_bytes,
            bytes_reserved: memory.reserved_bytes,
            bytes_index: memory.index_bytes,
            bytes_records: memory.records_bytes,
            bytes_external: memory.external_bytes,
            bytes_huge: self.process.huge_bytes,
            expired: memory.expired_sessions,
            evicted: self.limits.evicted(),
            ..Figures::default()
        }
    }

    /// What the coordinator plans our recovery from, should it come to that.
    pub(super) fn loads(&self) -> Vec<SlotLoad> {
        let saturated = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let load = |load: &Load| SlotLoad {
            entries: saturated(load.entries),
            kib: saturated(load.bytes.div_ceil(1 << 10)),
        };
        self.log.loads().iter().map(load).collect()
    }

    fn sessions(&self) -> u64 {
        (0..=u8::MAX)
            .map(|n| self.log.count(Namespace(n)).sessions)
            .sum()
    }
}
