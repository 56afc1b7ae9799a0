//! What replicas are to become: from the log's goals to what each may be sent, and from what is held to
//! what is durable.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_cluster::Now;
use holdfast_format::{Position, SegmentId, ServerId};
use holdfast_log::{Log, SegmentKind};

use super::{Raise, Replicas, Segment};
use crate::replica::Wanted;

impl Replicas {
    /// Takes over goals and tells what is durable until neither changes anything. A durable
    /// survivor makes the log open a new head, which makes another goal; it ends there.
    pub(super) fn advance(&mut self, log: &mut Log) {
        for _ in 0..4 {
            self.sync(log);
            self.settle(log);
            if self.seen_change == Some(log.change()) {
                return;
            }
        }
    }

    fn sync(&mut self, log: &Log) {
        if self.seen_change == Some(log.change()) {
            for id in &self.busy {
                let segment = self.segments.get_mut(id).expect("busy segments are known");
                let goal = log.goal(*id).expect("a goal goes only with a change");
                assert_eq!(goal.rewrite, segment.goal.rewrite, "bytes too");
                segment.goal = goal;
            }
            return;
        }
        self.seen_change = Some(log.change());
        let mut gone: BTreeSet<SegmentId> = self.segments.keys().copied().collect();
        let mut rewritten = Vec::new();
        for goal in log.goals() {
            gone.remove(&goal.id);
            if let Some(segment) = self.segments.get_mut(&goal.id) {
                if goal.rewrite != segment.goal.rewrite {
                    rewritten.push(goal.id);
                }
                self.counts.copies_begun_again += segment.take_over(goal);
                continue;
            }
            let segment = Segment {
                goal,
                replicas: Vec::new(),
                former: Vec::new(),
                sealed: false,
                established: false,
                short: false,
                reported: 0,
            };
            self.segments.insert(goal.id, segment);
            self.busy.insert(goal.id);
            if let SegmentKind::Head { .. } = goal.kind {
                self.open_heads.push(goal.id);
            }
        }
        assert!(
            self.open_heads.is_sorted(),
            "heads are opened with rising ids"
        );
        for id in rewritten {
            assert!(!self.is_unsettled(id), "{id} is compacted too early");
        }
        for id in gone {
            let segment = self.segments.remove(&id).expect("listed from there");
            self.busy.remove(&id);
            self.open_heads.retain(|head| *head != id);
            let mut backups: Vec<ServerId> = segment
                .replicas
                .iter()
                .map(|replica| replica.backup)
                .collect();
            for backup in &backups {
                if let Some(load) = self.load.get_mut(backup) {
                    *load -= 1;
                }
            }
            backups.extend(segment.former);
            self.retired.insert(id, backups);
        }
    }

    /// Tells the log what is on all R replicas, or on Q of the heads' (R8), heads in order (R3).
    fn settle(&mut self, log: &mut Log) {
        let wanted = self.wanted.expect("set before anything is shipped");
        if self.raise != Raise::Settled {
            return;
        }
        let quorum = self.quorum;
        let sides: Vec<SegmentId> = (self.busy.iter())
            .filter(|id| !self.open_heads.contains(id))
            .copied()
            .collect();
        for id in sides {
            let segment = self.segments.get_mut(&id).expect("busy segments are known");
            if segment.goal.closed && segment.on_all(wanted, |held| held.closed) {
                let length = segment.goal.length;
                segment.short = false;
                self.busy.remove(&id);
                if !segment.sealed {
                    segment.sealed = true;
                    segment.reported = length;
                    log.set_durable(id, length, true);
                }
            }
        }
        while let Some(&id) = self.open_heads.first() {
            let segment = self.segments.get_mut(&id).expect("busy segments are known");
            segment.establish(wanted);
            let length = match wanted {
                0 => segment.goal.length,
                _ => segment.acknowledged(quorum),
            };
            let closed = segment.is_closed_on(quorum);
            if length > segment.reported || closed {
                // A replica that is copied again does not take back what was durable.
                segment.reported = segment.reported.max(length);
                self.durable = Position {
                    segment: id,
                    offset: segment.reported,
                };
                log.set_durable(id, segment.reported, closed);
            }
            if !closed {
                break;
            }
            segment.sealed = true;
            self.open_heads.remove(0);
            if segment.is_closed_on(wanted) {
                segment.short = false;
                self.busy.remove(&id);
            }
        }
    }

    /// What a replica of `segment` is to become, by R2.
    pub(super) fn wanted_of(&self, segment: &Segment) -> Wanted {
        let goal = segment.goal;
        let SegmentKind::Head { opening, follows } = goal.kind else {
            return Wanted {
                length: goal.length,
                close: goal.closed,
                only_closed: true,
                tell: false,
            };
        };
        let length = match follows.and_then(|id| self.segments.get(&id)) {
            Some(before) if !before.sealed && !before.established => 0,
            Some(before) if !before.sealed => opening.min(goal.length),
            _ => goal.length,
        };
        // In order, so that bytes past an opening prove that all heads before are closed on all R.
        let before = follows.and_then(|id| self.segments.get(&id));
        let close = goal.closed
            && before.is_none_or(|before| before.sealed)
            && length == goal.length
            && (segment.sealed || self.successor_is_open(goal.id));
        Wanted {
            length,
            close,
            only_closed: segment.sealed,
            tell: false,
        }
    }

    /// True if the head after this one could still be found to be nowhere (R7).
    fn is_unsettled(&self, id: SegmentId) -> bool {
        (self.open_heads.iter())
            .map(|head| &self.segments[head])
            .any(|head| match head.goal.kind {
                SegmentKind::Head { opening, follows } => {
                    follows == Some(id) && head.reported < opening
                }
                SegmentKind::Side => false,
            })
    }

    fn successor_is_open(&self, id: SegmentId) -> bool {
        let wanted = self.wanted.expect("set before anything is shipped");
        (self.open_heads.iter())
            .filter_map(|head| self.segments.get(head))
            .any(|head| match head.goal.kind {
                SegmentKind::Head { opening, follows } => {
                    follows == Some(id)
                        && head.on_all(wanted, |held| held.certified && held.length >= opening)
                }
                SegmentKind::Side => false,
            })
    }

    /// Frees the replicas of what the log has let go (R5).
    pub(super) fn retire(&mut self, now: Now, log: &mut Log) {
        // What is freed has left the goals before.
        self.sync(log);
        let mut by_backup: BTreeMap<ServerId, Vec<SegmentId>> = BTreeMap::new();
        for id in log.take_freed() {
            for backup in self.retired.remove(&id).unwrap_or_default() {
                by_backup.entry(backup).or_default().push(id);
            }
        }
        for (backup, segments) in by_backup {
            self.frees.add(now, backup, segments);
        }
    }
}
