//! What is sent, repeated, or given up as time passes.

use holdfast_cluster::{Now, Outputs};
use holdfast_format::{ClusterMs, ServerId};
use holdfast_wire::{Failure, Message, Once, Outcome, Request, Requests};

use super::Core;
use crate::lane::Lane;
use crate::order::Ticket;
use crate::pending::{Place, Target};

/// Requests in one message; a shard executes a message in one step.
const BATCH_ITEMS_MAX: usize = 512;

impl Core {
    pub(super) fn give_up_overdue(&mut self, now: Now) {
        if now.mono_us < self.deadline_floor_us {
            return;
        }
        let mut overdue: Vec<Ticket> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.deadline_us <= now.mono_us)
            .map(|(ticket, _)| ticket)
            .collect();
        // In order of submission, not in that of a map.
        overdue.sort_unstable();
        for ticket in overdue {
            // Collected above, and only parts end together with something else.
            self.cancel_parts(ticket);
            let pending = &self.pending[&ticket];
            if let Place::Sent(shard) = pending.place
                && let Some(lane) = self.lanes.get_mut(&shard)
            {
                let cut = lane.window.congested(now.mono_us, pending.sent_us);
                self.figures.window_cuts += u64::from(cut);
            }
            let unsure = pending.unsure
                || pending.attempted
                || self.fans.get(&ticket).is_some_and(|fan| fan.unsure);
            let failure = if unsure && pending.command.op.is_write() {
                Failure::OutcomeUnknown
            } else if pending.refused_busy {
                Failure::Busy
            } else {
                Failure::Unreachable
            };
            self.figures.given_up += 1;
            self.finish(now, ticket, Outcome::Failed(failure));
        }
        self.deadline_floor_us = self
            .pending
            .iter()
            .map(|(_, pending)| pending.deadline_us)
            .min()
            .unwrap_or(u64::MAX);
    }

    pub(super) fn end_refusals(&mut self, now: Now) {
        let mut ended = false;
        for refusing in self.refusing.values_mut() {
            if refusing.armed && refusing.until_us <= now.mono_us {
                refusing.armed = false;
                ended = true;
            }
        }
        if ended {
            self.route_parked(now);
        }
    }

    pub(super) fn route_parked(&mut self, now: Now) {
        for ticket in std::mem::take(&mut self.parked) {
            self.route(now, ticket);
        }
    }

    pub(super) fn break_silences(&mut self, now: Now) {
        let silent: Vec<ServerId> = self
            .lanes
            .iter()
            .filter(|(_, lane)| {
                self.oldest_sent_us(lane)
                    .is_some_and(|sent_us| now.mono_us >= sent_us + lane.silence_us(&self.config))
            })
            .map(|(&shard, _)| shard)
            .collect();
        for shard in silent {
            let sent_us = self.oldest_sent_us(&self.lanes[&shard]);
            let lane = self.lanes.get_mut(&shard).expect("listed above");
            lane.note_silence();
            let sent_us = sent_us.expect("silence is that of something sent");
            self.figures.window_cuts += u64::from(lane.window.congested(now.mono_us, sent_us));
            self.restart(now, shard);
        }
    }

    /// Ends what has waited for too long at the head of a queue. How long the queue is says little when commands
    /// come: a burst is longer than its first one has waited.
    pub(super) fn refuse_late(&mut self, now: Now, shard: ServerId) {
        let since_us = now.mono_us.saturating_sub(self.queue_us_max);
        let lane = &self.lanes[&shard];
        if since_us == 0 || !lane.has_answered_lately(now.mono_us) {
            return;
        }
        let late = |ticket: &&Ticket| self.pending[*ticket].submitted_us < since_us;
        // What may have been executed has to be asked about, and a part would leave its command half done.
        let spared = |ticket: &&Ticket| {
            let pending = &self.pending[*ticket];
            pending.attempted || pending.unsure || !matches!(pending.target, Target::Slot(_))
        };
        let late: Vec<Ticket> = (lane.queue.iter().take_while(late))
            .filter(|ticket| !spared(ticket))
            .copied()
            .collect();
        self.refused_late += late.len();
        for ticket in late {
            self.finish(now, ticket, Outcome::Failed(Failure::Busy));
        }
    }

    pub(super) fn oldest_sent_us(&self, lane: &Lane) -> Option<u64> {
        if lane.in_flight == 0 {
            return None;
        }
        lane.sent.iter().find_map(|ticket| {
            let pending = self.pending.get(ticket)?;
            matches!(pending.place, Place::Sent(_)).then_some(pending.sent_us)
        })
    }

    /// Sends one message of what is queued for `shard`; true if there may be more to send.
    pub(super) fn send_batch(
        &mut self,
        now: Now,
        shard: ServerId,
        cluster_time: Option<ClusterMs>,
        out: &mut Outputs,
    ) -> bool {
        let lane = self
            .lanes
            .get_mut(&shard)
            .expect("the caller has just found it");
        let mut items = Vec::with_capacity(lane.queue.len().min(BATCH_ITEMS_MAX));
        let mut bytes = 0;
        let first = lane.next_index;
        while lane.in_flight < lane.window.size() && items.len() < BATCH_ITEMS_MAX {
            let Some(&ticket) = lane.queue.front() else {
                break;
            };
            let pending = self
                .pending
                .get_mut(&ticket)
                .expect("ended commands leave their queue");
            assert_eq!(
                pending.place,
                Place::Queued(shard),
                "a command is queued where it is not"
            );
            let size = pending.command.held_bytes();
            if !items.is_empty() && bytes + size > self.config.batch_bytes_max {
                break;
            }
            if pending.command.op.is_write() && pending.once.is_none() {
                // C2: the identity is made here and lasts.
                let Some(cluster_time) = cluster_time else {
                    break;
                };
                let sequence = self.next_sequence;
                self.next_sequence += 1;
                self.open_sequences.insert(sequence);
                pending.own_sequence = true;
                pending.once = Some(Once {
                    client: self.client,
                    sequence,
                    acknowledged: 0,
                    lease_until: cluster_time.plus_ms(self.config.lease_ms),
                });
            }
            if pending.own_sequence
                && let Some(once) = &mut pending.once
            {
                once.acknowledged = *self.open_sequences.first().expect("its own is among them");
            }
            pending.unsure |= pending.attempted;
            pending.attempted = true;
            assert_ne!(
                pending.stream, lane.stream,
                "L3: an answer would not tell which attempt it is to"
            );
            pending.stream = lane.stream;
            pending.sent_us = now.mono_us;
            pending.place = Place::Sent(shard);
            items.push(Request {
                token: ticket,
                once: pending.once,
                command: pending.command.clone(),
            });
            bytes += size;
            lane.queue.pop_front();
            lane.sent.push_back(ticket);
            lane.in_flight += 1;
            lane.next_index += 1;
        }
        if items.is_empty() {
            return false;
        }
        // Answers out of order leave entries behind the oldest unanswered one; do not let them grow.
        if lane.sent.len() > 4 * self.config.window_max {
            let pending = &self.pending;
            lane.sent.retain(|ticket| {
                pending
                    .get(ticket)
                    .is_some_and(|p| p.place == Place::Sent(shard))
            });
        }
        let stream = lane.stream;
        out.send(
            shard,
            Message::Requests(Requests {
                client: self.client,
                stream,
                first,
                items,
            }),
        );
        true
    }
}
