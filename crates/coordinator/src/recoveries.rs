//! All recoveries together: messages about them, and who leans on which dead log, which spans several (V5).

use holdfast_cluster::{Level, Now, Outputs};
use holdfast_format::{LogId, ServerId, SlotRange};
use holdfast_wire::{Inventory, Message, Role};

use crate::Coordinator;
use crate::recovery::{Done, Progress, Recovery, Surroundings};

/// Who leans from now on: a recovery master, by which recovery and attempt.
type Leaning = (ServerId, LogId, u64);

impl Coordinator {
    /// From backups and recovery masters.
    pub(crate) fn hear_of_recovery(
        &mut self,
        now: Now,
        from: ServerId,
        message: Message,
        out: &mut Outputs,
    ) {
        match message {
            Message::Inventory(inventory) => self.take_inventory(now, from, inventory),
            Message::RecoveryProgress {
                log,
                attempt,
                entries,
                bytes,
                done_bytes,
                total_bytes,
            } => {
                let progress = Progress {
                    attempt,
                    entries,
                    bytes,
                    done_bytes,
                    total_bytes,
                };
                if let Some(recovery) = self.recoveries.get_mut(&log) {
                    recovery.progress(from, progress, now.mono_us);
                }
            }
            Message::Replayed {
                log,
                attempt,
                entries,
                bytes,
                bytes_left,
                timings,
            } => {
                let done = Done {
                    attempt,
                    entries,
                    bytes,
                    timings,
                };
                self.replayed(now, from, log, done, bytes_left);
            }
            Message::Recovered {
                log,
                attempt,
                entries,
                bytes,
                timings,
            } => {
                let done = Done {
                    attempt,
                    entries,
                    bytes,
                    timings,
                };
                self.recovered(now, from, log, done);
            }
            Message::RecoveryFailed {
                log,
                attempt,
                reason,
            } => {
                if let Some(recovery) = self.recoveries.get_mut(&log) {
                    recovery.failed(from, attempt, reason, now.mono_us, &mut self.journal, out);
                }
            }
            other => unreachable!("it is about no recovery: {other:?}"),
        }
    }

    /// An operator gives a held log up; `Err` says why that cannot be done.
    pub(crate) fn abandon(
        &mut self,
        log: LogId,
        shard: &str,
        out: &mut Outputs,
    ) -> Result<(), String> {
        let Some(recovery) = self.recoveries.get_mut(&log) else {
            return Err(format!("log {log} is not being recovered"));
        };
        let before = recovery.is_abandoned();
        recovery.abandon(shard, &self.tablets, &mut self.journal, out)?;
        self.abandoned += u64::from(!before);
        Ok(())
    }

    fn take_inventory(&mut self, now: Now, from: ServerId, inventory: Inventory) {
        let is_backup = self
            .servers
            .get(from)
            .is_some_and(|s| s.member.role == Role::Backup);
        if is_backup && let Some(recovery) = self.recoveries.get_mut(&inventory.log) {
            recovery.inventory(from, inventory, now.mono_us);
        }
    }

    /// All of a part of `log` is in memory; what is not replicated leans on dead logs.
    fn replayed(&mut self, now: Now, from: ServerId, log: LogId, done: Done, bytes_left: u64) {
        // Its own log must be live: a dead master's takeover is nobody's.
        if !self.live.contains_key(&LogId::of(from)) {
            return;
        }
        let attempt = done.attempt;
        let (tablets, journal) = (&mut self.tablets, &mut self.journal);
        let taken = (self.recoveries.get_mut(&log))
            .and_then(|it| it.replayed(from, done, bytes_left, now.mono_us, tablets, journal));
        if let Some(ranges) = taken {
            self.takeovers_leaning += 1;
            self.taken_over(log, &ranges, Some((from, log, attempt)));
        }
    }

    /// As `replayed`, and it is replicated.
    fn recovered(&mut self, now: Now, from: ServerId, log: LogId, done: Done) {
        if !self.live.contains_key(&LogId::of(from)) {
            return;
        }
        let attempt = done.attempt;
        let (tablets, journal) = (&mut self.tablets, &mut self.journal);
        let taken = (self.recoveries.get_mut(&log))
            .and_then(|it| it.recovered(from, done, now.mono_us, tablets, journal));
        if let Some(ranges) = taken {
            self.taken_over(log, &ranges, None);
        }
        for recovery in self.recoveries.values_mut() {
            recovery.stands_alone(from, log, attempt, &mut self.journal);
        }
        self.owed_recorded.insert((from, log, attempt));
    }

    /// Ranges of a dead log have a new owner, and what they leant on goes with them.
    fn taken_over(&mut self, dead: LogId, ranges: &[SlotRange], to: Option<Leaning>) {
        self.view_stale = true;
        let mut from_several = false;
        for recovery in self.recoveries.values_mut() {
            from_several |= recovery.lend_on(dead.shard(), ranges, to, &mut self.journal);
        }
        self.takeovers_from_several += u64::from(from_several);
    }

    /// Brings every recovery on by what is known now, and ends those of which nothing is needed any more.
    pub(crate) fn advance_recoveries(&mut self, now: Now, out: &mut Outputs) {
        let mut around = Surroundings::at(now, &self.servers, &self.config, self.settle_until_us);
        for recovery in self.recoveries.values_mut() {
            recovery.judge(&around, &self.tablets, &mut self.journal, out);
        }
        let dead: Vec<LogId> = self.recoveries.keys().copied().collect();
        for log in dead {
            let lenders = (self.recoveries.values())
                .filter_map(|it| it.lends_to(log.shard(), now.mono_us))
                .collect();
            let recovery = self.recoveries.get_mut(&log).expect("listed from there");
            recovery.set_lenders(lenders);
        }
        let masters = |recovery: &Recovery| -> Vec<ServerId> {
            let partitions = &recovery.record().partitions;
            partitions.iter().map(|it| it.master).collect()
        };
        for master in self.recoveries.values().flat_map(masters) {
            *around.parts.entry(master).or_default() += 1;
        }
        for recovery in self.recoveries.values_mut() {
            let before = masters(recovery);
            self.view_stale |= recovery.advance(&around, &mut self.tablets, &mut self.journal, out);
            for master in masters(recovery).iter().filter(|it| !before.contains(it)) {
                *around.parts.entry(*master).or_default() += 1;
            }
        }
        let over: Vec<LogId> = (self.recoveries.iter())
            .filter(|(log, it)| !self.tablets.owns_any(**log) && !it.is_leant_on())
            .map(|(log, _)| *log)
            .collect();
        for log in over {
            let recovery = self.recoveries.remove(&log).expect("just listed");
            out.event(
                Level::Info,
                format!(
                    "log {log} ({}) is gone: nothing of it is needed any more",
                    recovery.record().name
                ),
            );
            self.finished.add(log, &recovery, now.mono_us);
            self.journal.remove_log(log);
            self.gone.add(log.shard(), &mut self.journal);
            for backup in self.servers.with_role(Role::Backup) {
                self.gone.announce(log, backup.member.id, now.mono_us);
            }
            self.view_stale = true;
        }
    }

    /// W1: sends what is due of every recovery, while everything decided is durable.
    pub(crate) fn act_on_recoveries(&mut self, now: Now, out: &mut Outputs) {
        let around = Surroundings::at(now, &self.servers, &self.config, self.settle_until_us);
        for recovery in self.recoveries.values_mut() {
            recovery.act(&around, out);
        }
    }
}
