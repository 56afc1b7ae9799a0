//! What many seeds showed together, and whether that is enough.

use std::fmt;

use crate::faults::{Fault, FaultCounts};
use crate::run::Report;
use crate::world::{CAUGHT, COMPACTED, REPLICAS_OF_COMPACTED, STARVED};

/// A seed must commit so many operations to have tested anything.
const OPERATIONS_MIN: u64 = 500;
/// In so many of a hundred seeds.
const BUSY_SEEDS_PERCENT: u64 = 95;
/// Each kind of fault must have happened in so many of a hundred seeds.
const FAULT_SEEDS_PERCENT: u64 = 20;
/// Coverage is judged from so many seeds on; a share of fewer says little.
const SEEDS_TO_JUDGE: u64 = 100;
/// Violations of one seed that are printed.
const VIOLATIONS_SHOWN: usize = 5;

/// Corners of the code that a batch of seeds should have been in, as the roles count them.
const CORNERS: [(&str, &str); 29] = [
    ("holdfast_shard_recoveries_total", "a shard recovered"),
    (LEANING, "served while it leant"),
    (CAUGHT, "killed as it leant"),
    (FROM_SEVERAL, "recovered from several logs"),
    (EARLY, "taken over early"),
    (EARLY_READS, "read early"),
    ("holdfast_shard_early_writes_total", "written early"),
    (PULLED, "a segment pulled"),
    (LOOKED_UP, "a key looked up"),
    (WAITED, "waited and answered"),
    (COMPACTED, "bytes compacted"),
    (CLEANED, "bytes cleaned"),
    (REPLICAS_OF_COMPACTED, "a compacted copy closed"),
    (STARVED, "starved as it compacted"),
    (
        "holdfast_shard_copies_begun_again_total",
        "a copy begun again",
    ),
    ("holdfast_shard_epochs_raised_total", "an epoch raised"),
    ("holdfast_shard_replicas_lost_total", "a replica made again"),
    (
        "holdfast_shard_stragglers_replaced_total",
        "a straggler replaced",
    ),
    ("holdfast_backups_found_slow_total", "a backup found slow"),
    ("holdfast_shard_append_resends_total", "an append repeated"),
    (
        "holdfast_shard_leaseless_flushes_total",
        "answers without a lease",
    ),
    (
        "holdfast_shard_reads_in_old_lease_total",
        "read in an old lease",
    ),
    ("holdfast_shard_refused_busy_total", "writers refused"),
    ("holdfast_backup_stale_appends_total", "stale appends"),
    (
        "holdfast_backup_corrupt_replicas_total",
        "a corrupt replica found",
    ),
    (
        "holdfast_backup_damaged_headers_total",
        "a damaged header found",
    ),
    ("holdfast_backup_fetches_failed_total", "a fetch failed"),
    ("holdfast_gateway_given_up_total", "a gateway gave up"),
    (
        "holdfast_gateway_beside_total",
        "executed on the gateway's thread",
    ),
];

const LEANING: &str = "holdfast_takeovers_leaning_total";
const EARLY: &str = "holdfast_shard_takeovers_early_total";
const EARLY_READS: &str = "holdfast_shard_early_reads_total";
const PULLED: &str = "holdfast_shard_segments_pulled_total";
const LOOKED_UP: &str = "holdfast_shard_recovery_lookups_total";
const WAITED: &str = "holdfast_shard_waited_total";
const FROM_SEVERAL: &str = "holdfast_takeovers_from_several_logs_total";
const CLEANED: &str = "holdfast_shard_cleaned_bytes_total";

/// Corners without which a batch has not tested lineage or cleaning, and in how many of a hundred seeds they must
/// have been reached.
const CORNERS_MIN: [(&str, u64); 10] = [
    (LEANING, 50),
    (EARLY, 30),
    (EARLY_READS, 10),
    (PULLED, 10),
    (LOOKED_UP, 10),
    (FROM_SEVERAL, 10),
    (COMPACTED, 30),
    (CLEANED, 30),
    (REPLICAS_OF_COMPACTED, 10),
    (STARVED, 10),
];

/// The sum of many reports.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    seeds: u64,
    busy_seeds: u64,
    /// Seeds with too few operations, and how many they had.
    idle: Vec<(u64, u64)>,
    simulated_us: u64,
    events: u64,
    answered: u64,
    unknown: u64,
    counts: FaultCounts,
    seeds_with: Vec<u64>,
    /// Per corner: seeds that were there, and how often in all.
    corners: [(u64, u64); CORNERS.len()],
    opinion_keys: u64,
    opinion_operations: u64,
    opinion_unknown: u64,
    repeated: u64,
    failed: Vec<(u64, Vec<String>)>,
}

impl Summary {
    /// Adds a seed.
    pub fn add(&mut self, report: Report) {
        self.seeds += 1;
        self.busy_seeds += u64::from(report.answered >= OPERATIONS_MIN);
        if report.answered < OPERATIONS_MIN {
            self.idle.push((report.seed, report.answered));
        }
        self.simulated_us += report.simulated_us;
        self.events += report.events;
        self.answered += report.answered;
        self.unknown += report.unknown;
        self.counts.add(&report.counts);
        self.seeds_with.resize(Fault::ALL.len(), 0);
        for (index, fault) in Fault::ALL.into_iter().enumerate() {
            self.seeds_with[index] += u64::from(report.counts.of(fault) > 0);
        }
        for (corner, (name, _)) in self.corners.iter_mut().zip(CORNERS) {
            let times = report.tallies.get(name).copied().unwrap_or(0);
            corner.0 += u64::from(times > 0);
            corner.1 += times;
        }
        self.opinion_keys += report.second_opinion.keys;
        self.opinion_operations += report.second_opinion.operations;
        self.opinion_unknown += report.second_opinion.unknown;
        if !report.violations.is_empty() {
            self.failed.push((report.seed, report.violations));
        }
    }

    /// Adds a seed that did not come to its end.
    pub fn add_panic(&mut self, seed: u64, message: String) {
        self.seeds += 1;
        self.seeds_with.resize(Fault::ALL.len(), 0);
        self.failed
            .push((seed, vec![format!("panicked: {message}")]));
    }

    /// Notes that a seed was run twice, with this result.
    pub fn add_repeat(&mut self, seed: u64, same: bool) {
        self.repeated += 1;
        if !same {
            self.failed
                .push((seed, vec!["two runs gave two traces".to_owned()]));
        }
    }

    /// Seeds that broke a promise, and how.
    pub fn failed(&self) -> &[(u64, Vec<String>)] {
        &self.failed
    }

    /// What the seeds did not cover; empty if there are too few of them to say.
    pub fn shortcomings(&self) -> Vec<String> {
        let mut short = Vec::new();
        if self.seeds < SEEDS_TO_JUDGE {
            return short;
        }
        if self.busy_seeds * 100 < self.seeds * BUSY_SEEDS_PERCENT {
            let examples = &self.idle[..self.idle.len().min(8)];
            short.push(format!(
                "only {} of {} seeds committed {OPERATIONS_MIN} operations; (seed, operations): \
                 {examples:?} and others",
                self.busy_seeds, self.seeds
            ));
        }
        for (fault, &with) in Fault::ALL.iter().zip(&self.seeds_with) {
            if with * 100 < self.seeds * FAULT_SEEDS_PERCENT {
                let name = fault.name();
                short.push(format!("only {with} of {} seeds had a {name}", self.seeds));
            }
        }
        for (corner, percent) in CORNERS_MIN {
            let reached = CORNERS.iter().zip(&self.corners);
            let found = reached.into_iter().find(|((name, _), _)| *name == corner);
            let ((_, text), (with, _)) = found.expect("these are among the corners");
            if with * 100 < self.seeds * percent {
                short.push(format!("only {with} of {} seeds had {text}", self.seeds));
            }
        }
        if self.opinion_unknown * 1_000 > self.opinion_keys {
            let (unknown, keys) = (self.opinion_unknown, self.opinion_keys);
            short.push(format!(
                "the second opinion gave up on {unknown} of {keys} keys"
            ));
        }
        short
    }

    /// True if no promise was broken and the coverage suffices.
    pub fn passed(&self) -> bool {
        self.failed.is_empty() && self.shortcomings().is_empty()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hours = self.simulated_us as f64 / 3.6e9;
        writeln!(f, "seeds                {}", self.seeds)?;
        writeln!(
            f,
            "simulated            {hours:.2} hours, {} events",
            self.events
        )?;
        writeln!(
            f,
            "operations checked   {} ({} of unknown outcome besides)",
            self.answered, self.unknown
        )?;
        writeln!(
            f,
            "second opinion       {} keys, {} operations, {} unknown",
            self.opinion_keys, self.opinion_operations, self.opinion_unknown
        )?;
        let busy = self.busy_seeds as f64 * 100.0 / self.seeds.max(1) as f64;
        writeln!(f, "committed >= {OPERATIONS_MIN}     {busy:.1} % of seeds")?;
        writeln!(f, "run twice            {} seeds", self.repeated)?;
        writeln!(
            f,
            "faults injected      how often, and in which share of seeds"
        )?;
        for (fault, &with) in Fault::ALL.iter().zip(&self.seeds_with) {
            let share = with as f64 * 100.0 / self.seeds.max(1) as f64;
            let name = fault.name();
            writeln!(
                f,
                "  {name:<24} {:>11} {share:>6.1} %",
                self.counts.of(*fault)
            )?;
        }
        writeln!(
            f,
            "corners reached      how often, and in which share of seeds"
        )?;
        for ((seeds, times), (_, text)) in self.corners.iter().zip(CORNERS) {
            let share = *seeds as f64 * 100.0 / self.seeds.max(1) as f64;
            writeln!(f, "  {text:<24} {times:>11} {share:>6.1} %")?;
        }
        for (seed, violations) in &self.failed {
            writeln!(
                f,
                "\nseed {seed} FAILED; replay: holdfast-sim --seed {seed} --events"
            )?;
            for violation in violations.iter().take(VIOLATIONS_SHOWN) {
                writeln!(f, "  {violation}")?;
            }
            if violations.len() > VIOLATIONS_SHOWN {
                writeln!(f, "  and {} more", violations.len() - VIOLATIONS_SHOWN)?;
            }
        }
        for short in self.shortcomings() {
            writeln!(f, "\nCOVERAGE: {short}")?;
        }
        let failed = self.failed.len() as u64;
        write!(
            f,
            "\n{} passed, {failed} failed",
            self.seeds.saturating_sub(failed)
        )
    }
}
