//! Giving up what a held log still owns, because an operator says so (V6; design notes, "Giving a log up").
//!
//! All of it goes, also what could be read. A segment that is missing may have held the newest state of any key:
//! that a user logged out, that a cart was paid. What older segments say of that key would come back as if it were
//! true, and nothing tells such a session from a good one. A session that is not there makes its user log in
//! again; every application of a session store knows how to do that.
//!
//! The way is that of any recovery, with nothing to read: recovery masters take the slots over, their versions go
//! on above the dead log's, what the old owner may still answer runs out first, and a death on the way is planned
//! around. Nobody leans, because there is nothing to lean on, and what the dead shard leant on itself is let go of.

use holdfast_cluster::{Level, Outputs};
use holdfast_format::Version;
use holdfast_wire::{Message, Recover};

use super::{RECOVER_REPEAT_US, Recovery, State};
use crate::inventory::{expiry_floor, version_ceiling};
use crate::journal::Journal;
use crate::tablets::Tablets;

/// Added to the highest version ceiling in reach when the log's head is not: heads that nobody has seen gave out
/// versions above it. At a million writes a second they would have taken half a year. 56 bits of version have room
/// for this 4096 times.
const VERSIONS_UNSEEN: u64 = 1 << 44;

impl Recovery {
    /// Gives up all that is still to be taken over; `Err` says why not.
    pub(crate) fn abandon(
        &mut self,
        shard: &str,
        tablets: &Tablets,
        journal: &mut Journal,
        out: &mut Outputs,
    ) -> Result<(), String> {
        let (log, name) = (self.log, &self.record.name);
        if shard != name {
            return Err(format!("log {log} is that of {name}, not of `{shard}`"));
        }
        if self.record.abandoned.is_some() {
            return Ok(());
        }
        let Some(hold) = self.hold() else {
            return Err(format!(
                "log {log} ({name}) is not held: its recovery goes on"
            ));
        };
        let seen = version_ceiling(&self.inventories);
        let ceiling = match hold.knows_the_head() {
            true => seen,
            false => Version(seen.0.saturating_add(VERSIONS_UNSEEN)),
        };
        let slots: u32 = (tablets.ranges_of(log).iter())
            .map(holdfast_format::SlotRange::slots)
            .sum();
        let text = format!(
            "log {log} ({name}) is given up by an operator, and with it the sessions of {slots} slots: {hold}"
        );
        out.event(Level::Warn, text);
        self.record.abandoned = Some(ceiling);
        self.dirty = true;
        self.save(journal);
        Ok(())
    }

    /// An operator has given up what is left of it.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.record.abandoned.is_some()
    }

    /// Tells recovery masters to begin without anything. One that began before, with something, goes on with that (V3).
    pub(super) fn send_nothing(&mut self, now_us: u64, out: &mut Outputs) {
        assert_eq!(self.state, State::Abandoned);
        let ceiling = self.record.abandoned.expect("the state says so");
        let lease_remaining_ms = self.lease_remaining_ms(now_us);
        for partition in &self.record.partitions {
            let Some(report) = self.reports.get_mut(&partition.attempt) else {
                continue;
            };
            if now_us < report.due_us {
                continue;
            }
            report.due_us = now_us + RECOVER_REPEAT_US;
            let recover = Recover {
                log: self.log,
                attempt: partition.attempt,
                ranges: partition.ranges.clone(),
                segments: Vec::new(),
                version_ceiling: ceiling,
                expiry_floor: expiry_floor(&self.inventories),
                lease_remaining_ms,
                first: None,
                leant_on: Vec::new(),
            };
            out.send(partition.master, Message::Recover(recover));
        }
    }
}
