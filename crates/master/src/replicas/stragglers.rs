//! Backups that are behind: when a head does without them, and how long each takes to acknowledge.
//!
//! Where Q of R acknowledge (R8), writers do not notice one that is slow until something needs all R: a new head's
//! opening, or a new epoch. So
//! - a replica is placed elsewhere, if there is elsewhere, than on a backup that has just now let an append wait;
//! - one for which something waits is given up after `PATIENCE_US`, and one for which nothing waits after
//!   `BEHIND_MAX_US`: as a lost one, it is made again on another backup. That is done only if Q of the segment's
//!   replicas are not behind (or it might be we who are slow), and if there is another backup. Without one
//!   it is waited for: what it lacks is at most the end of a head and the opening of the next one.
//!
//! Where all R acknowledge, nobody is given up for being late. In either case (R9) a backup that the coordinator has found
//! slow (`View::slow`) is not chosen while there are others, and leaves the open heads.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_cluster::{Level, Now, Outputs};
use holdfast_format::{SegmentId, ServerId};
use holdfast_log::SegmentKind;
use holdfast_wire::AppendWait;

use super::{AVOID_US, Raise, Replicas, Segment, Surroundings};
use crate::placement::{Choice, choose};
use crate::replica::Replica;

/// A backup with an append unanswered for so long is not chosen for a new replica: ten times what a good one
/// takes, and nothing that choosing another one would cost.
const LATE_US: u64 = 20_000;

/// Writers wait for a backup so long, where they need not. Below the first repetition of an append, so that it is seen
/// then; above what a disk takes to sync on a bad day.
const PATIENCE_US: u64 = 100_000;

/// So long a replica may stay behind when nothing waits for it: about when one that is dead would be found out.
/// It bounds for how long what was acknowledged is on Q backups only.
const BEHIND_MAX_US: u64 = 1_000_000;

/// The waits of one window are told together.
const WINDOW_US: u64 = 1_000_000;

/// How long one backup took to acknowledge appends to heads.
#[derive(Clone, Copy, Debug, Default)]
struct Waited {
    appends: u32,
    sum_us: u64,
    squares_us2: u128,
}

impl Waited {
    fn add(&mut self, wait_us: u64) {
        self.appends = self.appends.saturating_add(1);
        self.sum_us += wait_us;
        self.squares_us2 += u128::from(wait_us) * u128::from(wait_us);
    }

    /// How long the append took that was under way at a moment taken at random. That is what a writer sees, and a
    /// backup that stands still for a fifth of each second shows in it, though all but one of its appends are quick.
    fn at_a_moment_us(&self) -> u64 {
        let mean = self.squares_us2 / u128::from(self.sum_us.max(1));
        u64::try_from(mean).unwrap_or(u64::MAX)
    }
}

/// Waits by backup: of the window that is under way, and as told of the last.
#[derive(Debug, Default)]
pub(super) struct Waits {
    by_backup: BTreeMap<ServerId, Waited>,
    until_us: u64,
    told: Vec<AppendWait>,
}

impl Waits {
    pub fn add(&mut self, backup: ServerId, wait_us: u64) {
        self.by_backup.entry(backup).or_default().add(wait_us);
    }
}

impl Replicas {
    /// What each backup of the heads took to acknowledge, in the last window that is over.
    pub fn append_waits(&mut self, now: Now) -> &[AppendWait] {
        if self.waits.until_us <= now.mono_us {
            self.waits.until_us = now.mono_us + WINDOW_US;
            // What is unanswered counts as far as it has come, or one that answers nothing would look good.
            let open: Vec<(ServerId, u64)> = (self.open_heads.iter())
                .flat_map(|id| &self.segments[id].replicas)
                .filter_map(|it| Some((it.backup, it.waits_us(now)?)))
                .collect();
            let mut waits = std::mem::take(&mut self.waits.by_backup);
            for (backup, wait_us) in open {
                waits.entry(backup).or_default().add(wait_us);
            }
            let wait = |(&backup, waited): (&ServerId, &Waited)| AppendWait {
                backup,
                appends: waited.appends,
                wait_us: u32::try_from(waited.at_a_moment_us()).unwrap_or(u32::MAX),
            };
            self.waits.told = waits.iter().map(wait).collect();
        }
        &self.waits.told
    }

    /// The longest of them, and the least.
    pub fn append_wait_extremes_us(&self) -> (u64, u64) {
        let waits = || self.waits.told.iter().map(|wait| u64::from(wait.wait_us));
        (waits().max().unwrap_or(0), waits().min().unwrap_or(0))
    }

    /// Replicas of heads that lack something which others have acknowledged.
    pub fn behind(&self) -> usize {
        let lacks = |segment: &&Segment, replica: &&Replica| match segment.sealed {
            true => replica.held.certified && !replica.held.closed,
            false => replica.held.length < segment.reported,
        };
        (self.busy.iter())
            .map(|id| &self.segments[id])
            .filter(|segment| segment.goal.kind != SegmentKind::Side)
            .map(|segment| {
                segment
                    .replicas
                    .iter()
                    .filter(|it| lacks(&segment, it))
                    .count()
            })
            .sum()
    }

    /// Backups to be chosen only if there are no others.
    pub(super) fn shunned(&self, now: Now, around: &Surroundings<'_>) -> BTreeSet<ServerId> {
        let mut shunned: BTreeSet<ServerId> = around.view.slow.iter().copied().collect();
        if self.quorum < usize::from(around.config.replicas) {
            let replicas = self.busy.iter().flat_map(|id| &self.segments[id].replicas);
            let late = replicas.filter(|it| it.waits_us(now).is_some_and(|us| us > LATE_US));
            shunned.extend(late.map(|replica| replica.backup));
        }
        shunned
    }

    /// Gives up what is behind for too long, or on a backup that is known to be slow: one backup at a time.
    pub(super) fn give_up_stragglers(
        &mut self,
        now: Now,
        around: &Surroundings<'_>,
        out: &mut Outputs,
    ) {
        let late = (self.busy.iter()).find_map(|id| self.straggler(*id, now, around));
        let slow = || {
            let slow = around.view.slow.iter().copied();
            slow.filter(|_| self.raise == Raise::Settled)
                .find(|&backup| self.can_leave(backup, now, around))
        };
        let (backup, why) = match late {
            Some((backup, waits_us)) => {
                self.avoided.insert(backup, now.mono_us + AVOID_US);
                (
                    backup,
                    format!("it has not answered for {} ms", waits_us / 1_000),
                )
            }
            None => match slow() {
                Some(backup) => (backup, "it is slow".to_owned()),
                None => return,
            },
        };
        let on_it = |segment: &Segment| {
            let mut replicas = segment.replicas.iter();
            replicas.any(|it| it.backup == backup && !it.held.closed)
        };
        let left: Vec<SegmentId> = (self.busy.iter().copied())
            .filter(|id| on_it(&self.segments[id]))
            .collect();
        self.counts.stragglers_replaced += left.len() as u64;
        out.event(
            Level::Warn,
            format!(
                "{backup} is behind with {} segments and given up for them: {why}",
                left.len()
            ),
        );
        for id in left {
            self.lose(id, backup, out);
            let segment = self.segments.get_mut(&id).expect("listed from there");
            if !segment.former.contains(&backup) {
                segment.former.push(backup);
            }
        }
    }

    /// A backup that the segment can do without and that has been silent for too long, and for how long.
    fn straggler(
        &self,
        id: SegmentId,
        now: Now,
        around: &Surroundings<'_>,
    ) -> Option<(ServerId, u64)> {
        let segment = &self.segments[&id];
        if self.quorum >= usize::from(around.config.replicas) {
            return None;
        }
        let is_open_head = !segment.sealed && segment.goal.kind != SegmentKind::Side;
        let awaited = is_open_head && (!segment.established || self.raise == Raise::Telling);
        let bound_us = if awaited { PATIENCE_US } else { BEHIND_MAX_US };
        let behind = |replica: &&Replica| {
            (replica.waits_us(now)).is_some_and(|us| us > bound_us) && !replica.held.closed
        };
        let replicas = || segment.replicas.iter();
        let abreast = replicas().filter(|it| !behind(it)).count();
        if abreast < self.quorum {
            return None;
        }
        let found = replicas().find(behind)?;
        let waits_us = found.waits_us(now).expect("it is behind");
        self.elsewhere(segment, found.backup, now, around)
            .map(|_| (found.backup, waits_us))
    }

    /// True if it holds a replica of an open head that could be on a backup that is not slow.
    fn can_leave(&self, slow: ServerId, now: Now, around: &Surroundings<'_>) -> bool {
        let heads = self.open_heads.iter().map(|id| &self.segments[id]);
        let holds = |segment: &&Segment| {
            let mut replicas = segment.replicas.iter();
            segment.established && replicas.any(|it| it.backup == slow && !it.held.closed)
        };
        let mut held = heads.filter(holds).peekable();
        held.peek().is_some()
            && held.all(|segment| {
                (self.elsewhere(segment, slow, now, around))
                    .is_some_and(|other| !around.view.slow.contains(&other))
            })
    }

    /// Where a replica could go that must leave `backup`.
    fn elsewhere(
        &self,
        segment: &Segment,
        backup: ServerId,
        now: Now,
        around: &Surroundings<'_>,
    ) -> Option<ServerId> {
        let holders: Vec<ServerId> = segment.replicas.iter().map(|it| it.backup).collect();
        assert!(holders.contains(&backup), "it holds a replica now");
        let choice = Choice {
            view: around.view,
            own: around.own,
            holders: &holders,
            avoided: &self.avoided,
            shunned: &self.shunned(now, around),
            load: &self.load,
        };
        // Whether there is one does not depend on the dice.
        choose(&choice, &mut self.dice.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fifth of each second without an answer, and quick otherwise: a writer waits for long, on average.
    #[test]
    fn a_wait_is_what_a_moment_sees() {
        let of = |waits: &[(u64, u32)]| {
            let mut waited = Waited::default();
            for &(wait_us, times) in waits {
                (0..times).for_each(|_| waited.add(wait_us));
            }
            waited.at_a_moment_us()
        };
        assert_eq!(of(&[(300, 2_000)]), 300);
        assert_eq!(of(&[(0, 5)]), 0);
        let pulsed = of(&[(300, 2_000), (200_000, 1)]);
        assert!((45_000..55_000).contains(&pulsed), "{pulsed}");
        let slow = of(&[(9_000, 100)]);
        assert_eq!(slow, 9_000);
    }
}
