//! The gate: what a gateway with more to do than it can refuses before it costs much.
//!
//! `holdfast_cluster::Admission` says how much; here is what that means for a request. Whatever concerns no
//! session (PING, INFO, CLIENT, AUTH, …) always passes, so that people and balancers see what goes on.
//!
//! Whether a write creates a session only the shard knows, which looks when it executes it. So a write whose turn is not
//! among those that may create is sent on with the condition that the session exists; the answer that it does not
//! is told as "busy". Nothing needs to be looked up twice, and nothing is executed that was refused.
//!
//! What a refusal costs decides how much can be refused: if it costs r of a served request, then at twice the load that
//! saturates (1 - 2r) / (1 - r) of the peak is left. So late requests are not taken apart: the parser passes over them by their
//! lengths alone (`Connection::skip_late`), and as a busy connection has many of them in one read, their refusals leave
//! in one write.

use holdfast_cluster::{Arrival, Call, Now};
use holdfast_wire::redis::RespRequest;
use holdfast_wire::{Command, Condition, Failure, Op, Outcome};

use crate::connection::Connection;
use crate::executor::Executor;

/// The refusal of what has waited too long. By then overload will have been judged again.
pub(crate) const TURNED_AWAY: &str = "BUSY overloaded, retry after 100 ms; nothing was executed";

/// The same as it is written, for what is not even taken apart.
const TURNED_AWAY_LINE: &[u8] = b"-BUSY overloaded, retry after 100 ms; nothing was executed\r\n";

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// `shed`: it was made to find its session, and not to create it.
    Open {
        shed: bool,
    },
    Closed,
}

/// Makes a write that would create a session do nothing then; true if it has changed the command.
fn only_visits(command: &mut Command) -> bool {
    match &mut command.op {
        Op::Put { condition, .. } if *condition == Condition::Always => {
            *condition = Condition::Present;
            true
        }
        _ => false,
    }
}

/// A write that can do nothing but create.
fn only_creates(command: &Command) -> bool {
    matches!(
        &command.op,
        Op::Put {
            condition: Condition::Absent,
            ..
        }
    )
}

fn may_create(command: &Command) -> bool {
    matches!(
        &command.op,
        Op::Put {
            condition: Condition::Always | Condition::Absent,
            ..
        }
    )
}

impl Executor {
    /// Notes when what has just been received came, and what may be before it in the queue of a shard.
    pub(crate) fn note_wait(&mut self, now: Now, arrival: Arrival, bytes: usize) {
        let queued_us = self.core.queue_wait_us(now);
        self.admission.note(now.mono_us, arrival, queued_us, bytes);
    }

    /// Draws conclusions from what came and what became of it, silence too.
    pub(crate) fn judge(&mut self, now: Now) {
        let refused = self.core.take_refused_late();
        self.counters.refused_late += refused as u64;
        self.admission.decided(refused, 0);
        self.admission.pass(now.mono_us);
        self.core.set_queue_max(self.admission.wait_us_max());
    }

    /// Judges a request, while not everything is admitted.
    pub(crate) fn gate(&mut self, now: Now, mut late: bool, request: &mut RespRequest) -> Gate {
        let creates = match request {
            RespRequest::One { command, .. } => {
                late |= self.would_wait_too_long(now, &command.key);
                may_create(command)
            }
            RespRequest::Many(_)
            | RespRequest::ReadThen { .. }
            | RespRequest::Eval(_)
            | RespRequest::Scan(_)
            | RespRequest::Keys { .. }
            | RespRequest::DbSize
            | RespRequest::FlushDb
            | RespRequest::FlushAll => false,
            _ => return Gate::Open { shed: false },
        };
        self.admission
            .decided(usize::from(late), usize::from(!late));
        if late {
            self.counters.refused_late += 1;
            return Gate::Closed;
        }
        if !creates || self.admission.admits_creation() {
            return Gate::Open { shed: false };
        }
        match request {
            RespRequest::One { command, .. } if only_creates(command) => {
                self.counters.refused_creations += 1;
                Gate::Closed
            }
            RespRequest::One { command, .. } => Gate::Open {
                shed: only_visits(command),
            },
            _ => Gate::Open { shed: false },
        }
    }

    /// The same for a call: `None` if it is refused, else whether it must not create a session.
    ///
    /// A write with an identity of its own stays as it is: its retry would be told what the first attempt, changed
    /// by us, had led to.
    pub(crate) fn gate_call(&mut self, now: Now, posted_us: u64, call: &mut Call) -> Option<bool> {
        // INFO's way of asking; nobody waits for much of it.
        if self.admission.is_open() || call.command.op == Op::Usage {
            return Some(false);
        }
        let waited_us = now.mono_us.saturating_sub(posted_us);
        let late = waited_us > self.admission.wait_us_max()
            || self.would_wait_too_long(now, &call.command.key);
        self.admission
            .decided(usize::from(late), usize::from(!late));
        if late {
            self.counters.refused_late += 1;
            return None;
        }
        if !may_create(&call.command) || self.admission.admits_creation() {
            return Some(false);
        }
        if only_creates(&call.command) {
            self.counters.refused_creations += 1;
            return None;
        }
        Some(call.once.is_none() && only_visits(&mut call.command))
    }

    /// True if the shard of this key has so much before it that a command would wait here until it is late.
    fn would_wait_too_long(&self, now: Now, key: &[u8]) -> bool {
        let wait_us_max = self.admission.wait_us_max();
        wait_us_max != u64::MAX && self.core.queue_wait_of_us(now, key) > wait_us_max
    }

    /// Refuses so many requests that were passed over because they were late.
    pub(crate) fn turn_away(&mut self, connection: &mut Connection, requests: usize) {
        self.admission.decided(requests, 0);
        self.counters.commands_total += requests as u64;
        self.counters.errors_total += requests as u64;
        self.counters.refused_late += requests as u64;
        for _ in 0..requests {
            connection.write_bytes(TURNED_AWAY_LINE);
        }
    }

    /// The outcome of a command that was to find its session: that there is none means that it was refused.
    pub(crate) fn unless_shed(&mut self, shed: bool, outcome: Outcome) -> Outcome {
        match outcome {
            Outcome::Refused { current: None, .. } if shed => {
                self.counters.refused_creations += 1;
                Outcome::Failed(Failure::Busy)
            }
            outcome => outcome,
        }
    }
}
