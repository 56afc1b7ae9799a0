//! Commands on the key space: asked of every shard concerned, their answers put together.
//!
//! C4 lives here: whatever makes a part impossible (a changed view, a refusal) drops all parts, and
//! the command is asked again as a whole.

use std::collections::BTreeMap;

use holdfast_cluster::Now;
use holdfast_format::{KeyHash, ServerId};
use holdfast_wire::{Failure, Op, Outcome, Usage};

use super::{Core, Scope};
use crate::order::Ticket;
use crate::pending::{Pending, Place, Target};

/// Scan positions handed out are multiples of 2^11, so that a cursor divided by it fits the 53 bits
/// that clients keep exactly which read cursors as floating-point numbers.
pub const SCAN_STEP: u64 = 1 << 11;

#[derive(Debug)]
pub(super) struct Fan {
    pub(super) scope: Scope,
    pub(super) parts: BTreeMap<ServerId, Part>,
    /// Begin (again) then; `None` while parts are under way or no view would do.
    pub(super) retry_us: Option<u64>,
    pub(super) tries: u32,
    pub(super) limit: u32,
    /// A part of it may have been executed.
    pub(super) unsure: bool,
}

#[derive(Debug)]
pub(super) enum Part {
    Asked(Ticket),
    Answered(Outcome),
}

impl Core {
    /// Begins every key-space command that is released and has no parts under way.
    pub(super) fn start_fans(&mut self, now: Now) {
        let idle: Vec<Ticket> = self
            .fans
            .iter()
            .filter(|(ticket, fan)| {
                fan.parts.is_empty()
                    && fan.retry_us.is_none_or(|at| at <= now.mono_us)
                    && self.pending[ticket].place == Place::Fanned
            })
            .map(|(&ticket, _)| ticket)
            .collect();
        for ticket in idle {
            self.start_fan(now, ticket);
        }
    }

    /// Asks every shard concerned, if the view names one for all of the key space.
    pub(super) fn start_fan(&mut self, now: Now, ticket: Ticket) {
        let parent = &self.pending[&ticket];
        let mut command = parent.command.clone();
        let fan = self
            .fans
            .get_mut(&ticket)
            .expect("the caller has just found it");
        assert!(fan.parts.is_empty(), "a key-space command was begun twice");
        fan.retry_us = None;
        if let Op::Scan { limit, .. } = &mut command.op {
            *limit = fan.limit;
        }
        let shards: Vec<ServerId> = match fan.scope {
            Scope::All if self.routes.complete() => self.routes.owners().to_vec(),
            // A shard that owns nothing would refuse; there is nothing to ask it about.
            Scope::Shard(shard) if self.routes.owners().contains(&shard) => vec![shard],
            Scope::Shard(shard) if self.routes.is_shard(shard) => Vec::new(),
            Scope::All | Scope::Shard(_) => return,
        };
        if shards.is_empty() {
            return self.merge(now, ticket);
        }
        for shard in shards {
            let part = self.take_ticket();
            let pending = Pending {
                token: 0,
                command: command.clone(),
                once: None,
                own_sequence: false,
                order: None,
                deadline_us: u64::MAX,
                target: Target::Part { fan: ticket, shard },
                place: Place::Parked,
                submitted_us: now.mono_us,
                sent_us: 0,
                stream: 0,
                attempted: false,
                unsure: false,
                refused_busy: false,
            };
            self.pending.insert(part, pending);
            let fan = self.fans.get_mut(&ticket).expect("looked up above");
            fan.parts.insert(shard, Part::Asked(part));
            self.route(now, part);
        }
    }

    /// Forgets the parts of a key-space command, answered or not. An answer that comes yet is to
    /// nobody's question. An unanswered part of a flush may yet be executed, but before whatever is
    /// sent later to its shard, so never after the command's own end.
    pub(super) fn cancel_parts(&mut self, ticket: Ticket) {
        let Some(fan) = self.fans.get_mut(&ticket) else {
            return;
        };
        for (_, part) in std::mem::take(&mut fan.parts) {
            if let Part::Asked(part) = part {
                self.drop_part(part);
            }
        }
    }

    pub(super) fn drop_part(&mut self, part: Ticket) {
        self.unplace(part);
        let pending = self
            .pending
            .remove(&part)
            .expect("a part lives until it is dropped");
        self.close_sequence(&pending);
        if let Target::Part { fan, .. } = pending.target
            && let Some(fan) = self.fans.get_mut(&fan)
        {
            fan.unsure |= pending.attempted || pending.unsure;
        }
    }

    /// Puts the answers of all shards together.
    pub(super) fn merge(&mut self, now: Now, ticket: Ticket) {
        let pending = &self.pending[&ticket];
        let fan = self
            .fans
            .get_mut(&ticket)
            .expect("the caller has just found it");
        let answers = std::mem::take(&mut fan.parts)
            .into_values()
            .filter_map(|part| match part {
                Part::Answered(outcome) => Some(outcome),
                Part::Asked(_) => None,
            });
        let outcome = match pending.command.op {
            Op::Scan { from, .. } => match merge_scans(from, answers) {
                Some(outcome) => outcome,
                None => {
                    // More keys than asked for lie within one step: ask for more at a time.
                    fan.limit = fan.limit.saturating_mul(2);
                    return self.start_fan(now, ticket);
                }
            },
            Op::Count => merge_counts(answers),
            Op::Usage => merge_usage(answers),
            _ => merge_flushes(answers, fan.unsure),
        };
        self.finish(now, ticket, outcome);
    }
}

/// One scan out of every shard's, or `None` if it would not move on. The position is the lowest that
/// any shard reached, rounded down to a whole step; what was seen beyond it will be seen again.
fn merge_scans(from: KeyHash, answers: impl Iterator<Item = Outcome>) -> Option<Outcome> {
    let mut all = Vec::new();
    let mut lowest: Option<KeyHash> = None;
    for answer in answers {
        if let Outcome::Scanned { keys, next } = answer {
            all.extend(keys);
            lowest = match (lowest, next) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
    }
    let next = lowest.map(|hash| KeyHash(hash.0 - hash.0 % SCAN_STEP));
    if let Some(next) = next {
        if next <= from {
            return None;
        }
        all.retain(|(hash, _)| *hash < next);
    }
    all.sort_unstable();
    // After a takeover two shards may have answered for one key.
    all.dedup();
    Some(Outcome::Scanned { keys: all, next })
}

/// A flush that failed at every shard has failed. If it `may_be_done` anywhere, nobody can say so.
fn merge_flushes(mut answers: impl Iterator<Item = Outcome>, may_be_done: bool) -> Outcome {
    match answers.find(|answer| matches!(answer, Outcome::Failed(_))) {
        Some(_) if may_be_done => Outcome::Failed(Failure::OutcomeUnknown),
        Some(failed) => failed,
        None => Outcome::Flushed,
    }
}

fn merge_usage(answers: impl Iterator<Item = Outcome>) -> Outcome {
    let mut total = Usage::default();
    for answer in answers {
        if let Outcome::Usage(usage) = answer {
            total.add(&usage);
        }
    }
    Outcome::Usage(total)
}

fn merge_counts(answers: impl Iterator<Item = Outcome>) -> Outcome {
    let mut total = (0u64, 0u64);
    for answer in answers {
        if let Outcome::Counted {
            sessions,
            with_deadline,
        } = answer
        {
            total = (
                total.0.saturating_add(sessions),
                total.1.saturating_add(with_deadline),
            );
        }
    }
    Outcome::Counted {
        sessions: total.0,
        with_deadline: total.1,
    }
}
