//! Every kind of fault the world knows, which of them a seed uses, and how often they happened.

use std::collections::{BTreeMap, BTreeSet};

use crate::chance::Chance;

/// A kind of fault. Each seed draws a random subset.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// One message vanishes although its stream goes on.
    MessageLost,
    /// A stream breaks: what was under way is gone and both ends are told.
    StreamBroken,
    MessageDoubled,
    MessageReordered,
    /// Two groups of machines cannot reach each other.
    Partition,
    /// One group's messages do not reach the other, the other way round they do.
    OneWayPartition,
    SlowLink,
    ShardCrash,
    BackupCrash,
    CoordinatorCrash,
    GatewayCrash,
    /// A process stands still for a while; its clock does not.
    Pause,
    /// A process computes 2 to 100 times slower for a while.
    SlowProcessor,
    /// Boot-time clocks run fast or slow by up to 2 %.
    ClockDrift,
    /// Wall clocks are off by up to 10 s.
    ClockOffset,
    SlowDisk,
    SyncError,
    ReadError,
    BitFlip,
    /// One machine loses power: unsynced sectors are torn or lost.
    PowerLoss,
    /// A backup's disk is replaced by an empty one.
    DiskReplaced,
    /// Every machine loses power at once (only where writes are acknowledged from disk).
    PowerLossOfAll,
    /// Every process is killed at once.
    KillAll,
    /// The metadata store takes long.
    SlowRecords,
    /// An application's connection to a gateway breaks.
    ClientDisconnect,
    /// An application sends one write twice, through two gateways.
    ClientRepeat,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 26] = [
        Fault::MessageLost,
        Fault::StreamBroken,
        Fault::MessageDoubled,
        Fault::MessageReordered,
        Fault::Partition,
        Fault::OneWayPartition,
        Fault::SlowLink,
        Fault::ShardCrash,
        Fault::BackupCrash,
        Fault::CoordinatorCrash,
        Fault::GatewayCrash,
        Fault::Pause,
        Fault::SlowProcessor,
        Fault::ClockDrift,
        Fault::ClockOffset,
        Fault::SlowDisk,
        Fault::SyncError,
        Fault::ReadError,
        Fault::BitFlip,
        Fault::PowerLoss,
        Fault::DiskReplaced,
        Fault::PowerLossOfAll,
        Fault::KillAll,
        Fault::SlowRecords,
        Fault::ClientDisconnect,
        Fault::ClientRepeat,
    ];

    /// In how many of a hundred seeds it is switched on. Those that need an occasion to happen
    /// (a read to fail, a machine of the right mode) are switched on more often.
    fn percent_of_seeds(self) -> u32 {
        match self {
            Fault::ReadError | Fault::SyncError => 70,
            // Only half of the seeds acknowledge from disk.
            Fault::PowerLossOfAll => 60,
            Fault::KillAll => 35,
            _ => 45,
        }
    }

    /// Name for the summary.
    pub fn name(self) -> String {
        let mut name = String::new();
        for c in format!("{self:?}").chars() {
            if c.is_uppercase() && !name.is_empty() {
                name.push(' ');
            }
            name.push(c.to_ascii_lowercase());
        }
        name
    }
}

/// The faults a seed uses.
#[derive(Clone, Debug, Default)]
pub struct FaultSet(BTreeSet<Fault>);

impl FaultSet {
    /// No faults at all.
    pub fn none() -> FaultSet {
        FaultSet::default()
    }

    /// A random subset.
    pub fn draw(chance: &mut Chance) -> FaultSet {
        FaultSet(
            Fault::ALL
                .into_iter()
                .filter(|fault| chance.percent(fault.percent_of_seeds()))
                .collect(),
        )
    }

    /// True if the seed uses it.
    pub fn has(&self, fault: Fault) -> bool {
        self.0.contains(&fault)
    }

    /// Uses it in any case.
    pub fn add(&mut self, fault: Fault) {
        self.0.insert(fault);
    }

    /// Leaves it out.
    pub fn remove(&mut self, fault: Fault) {
        self.0.remove(&fault);
    }
}

/// How often each kind of fault was injected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts(BTreeMap<Fault, u64>);

impl FaultCounts {
    /// One more of them.
    pub fn count(&mut self, fault: Fault) {
        *self.0.entry(fault).or_default() += 1;
    }

    /// How many there were.
    pub fn of(&self, fault: Fault) -> u64 {
        self.0.get(&fault).copied().unwrap_or(0)
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &FaultCounts) {
        for (&fault, &count) in &other.0 {
            *self.0.entry(fault).or_default() += count;
        }
    }
}
