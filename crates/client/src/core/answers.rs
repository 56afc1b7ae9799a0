//! What becomes of a command that a shard has answered: it is over, or asked again.

use holdfast_cluster::{Dice, Now};
use holdfast_format::ServerId;
use holdfast_wire::{Failure, Outcome};

use super::fan::Part;
use super::{Core, Refusing};
use crate::order::Ticket;
use crate::pending::{Pending, Place, Target};

/// A shard that does not serve a tablet (yet) is asked about it again after pauses that double from
/// here to there; a new view ends them.
const REFUSED_PAUSE_MIN_US: u64 = 5_000;
const REFUSED_PAUSE_MAX_US: u64 = 80_000;

impl Core {
    /// A shard declined a command it has not executed; true if its stream must begin again.
    pub(super) fn refused(
        &mut self,
        now: Now,
        from: ServerId,
        ticket: Ticket,
        why: Failure,
    ) -> bool {
        let Some(pending) = self.pending.get_mut(&ticket) else {
            return false;
        };
        if pending.place != Place::Sent(from) {
            return false;
        }
        pending.attempted = false;
        pending.refused_busy = why == Failure::Busy;
        if why == Failure::Busy {
            let sent_us = pending.sent_us;
            if let Some(lane) = self.lanes.get_mut(&from) {
                self.figures.window_cuts += u64::from(lane.window.congested(now.mono_us, sent_us));
                if lane.not_before_us <= now.mono_us {
                    lane.pause(now.mono_us, self.dice.below(256));
                }
            }
            return true;
        }
        match pending.target {
            Target::Slot(slot) => {
                let first = self
                    .routes
                    .tablet(slot)
                    .map_or(slot, |tablet| tablet.range.first);
                let refusing = self.refusing.entry(first).or_insert(Refusing {
                    until_us: 0,
                    tries: 0,
                    armed: false,
                });
                if refusing.until_us <= now.mono_us {
                    refusing.until_us =
                        now.mono_us + refused_pause_us(refusing.tries, &mut self.dice);
                    refusing.tries = refusing.tries.saturating_add(1);
                    refusing.armed = true;
                }
            }
            Target::Part { fan, .. } => {
                self.cancel_parts(fan);
                let fan = self.fans.get_mut(&fan).expect("a part has its fan");
                fan.retry_us = Some(now.mono_us + refused_pause_us(fan.tries, &mut self.dice));
                fan.tries = fan.tries.saturating_add(1);
            }
            Target::Fan => unreachable!("a key-space command is sent in parts"),
        }
        true
    }

    /// True if what came from a shard by a stream answers the latest attempt at a command (L3), be it that
    /// another one is due already: what has failed is better not tried again behind those that followed it.
    pub(super) fn is_latest_attempt(&self, from: ServerId, stream: u64, ticket: Ticket) -> bool {
        self.pending
            .get(&ticket)
            .is_some_and(|pending| match pending.place {
                Place::Sent(at) => at == from && pending.stream == stream,
                _ => pending.stream == stream,
            })
    }

    /// A shard executed a command, or refused it for good.
    pub(super) fn answered(&mut self, now: Now, from: ServerId, ticket: Ticket, outcome: Outcome) {
        let Some(pending) = self.pending.get(&ticket) else {
            return;
        };
        // Never sent, so not an answer to it: the world's mistake.
        if !pending.attempted && !pending.unsure {
            return;
        }
        let (target, sent_us) = (pending.target, pending.sent_us);
        if pending.place == Place::Sent(from)
            && let Some(lane) = self.lanes.get_mut(&from)
        {
            lane.answered(now.mono_us, sent_us);
            self.budget.earn();
            while lane.sent.front().is_some_and(|front| {
                *front == ticket
                    || self
                        .pending
                        .get(front)
                        .is_none_or(|p| p.place != Place::Sent(from))
            }) {
                lane.sent.pop_front();
            }
        }
        match target {
            Target::Slot(slot) => {
                if !self.refusing.is_empty()
                    && let Some(tablet) = self.routes.tablet(slot)
                {
                    self.refusing.remove(&tablet.range.first);
                    if self.refusing.is_empty() || !self.parked.is_empty() {
                        self.route_parked(now);
                    }
                }
                self.finish(now, ticket, outcome);
            }
            Target::Part { fan, shard } => {
                if let Outcome::Failed(failure) = &outcome {
                    if !self.pending[&fan].command.op.is_write() {
                        return self.finish(now, fan, outcome);
                    }
                    if *failure != Failure::StaleClient {
                        // C5: no earlier attempt was executed either, or the record had answered.
                        let part = self.pending.get_mut(&ticket).expect("found above");
                        part.attempted = false;
                        part.unsure = false;
                    }
                }
                self.drop_part(ticket);
                let parts = &mut self.fans.get_mut(&fan).expect("a part has its fan").parts;
                parts.insert(shard, Part::Answered(outcome));
                if parts.values().all(|part| matches!(part, Part::Answered(_))) {
                    self.merge(now, fan);
                }
            }
            Target::Fan => unreachable!("a key-space command is sent in parts"),
        }
    }

    /// Ends a command: its outcome goes out and whatever waited for it is released.
    pub(super) fn finish(&mut self, now: Now, ticket: Ticket, outcome: Outcome) {
        if !self.fans.is_empty() {
            self.cancel_parts(ticket);
            self.fans.remove(&ticket);
        }
        let was_released = self.pending[&ticket].place != Place::Waiting;
        self.unplace(ticket);
        let pending = self.pending.remove(&ticket).expect("just looked at");
        self.pending_bytes -= pending.command.held_bytes() as u64;
        self.close_sequence(&pending);
        self.done.push((pending.token, outcome));
        if let Some(order) = pending.order {
            let mut released = std::mem::take(&mut self.released);
            self.ordering
                .finished(order, ticket, pending.kind(), was_released, &mut released);
            for ticket in released.drain(..) {
                self.release(now, ticket);
            }
            self.released = released;
        }
    }

    pub(super) fn close_sequence(&mut self, pending: &Pending) {
        if let (true, Some(once)) = (pending.own_sequence, pending.once) {
            self.open_sequences.remove(&once.sequence);
        }
    }
}

fn refused_pause_us(tries: u32, dice: &mut Dice) -> u64 {
    let pause_us = (REFUSED_PAUSE_MIN_US << tries.min(10)).min(REFUSED_PAUSE_MAX_US);
    pause_us / 2 + dice.below(pause_us / 2)
}
