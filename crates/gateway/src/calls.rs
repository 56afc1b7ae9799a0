//! Calls that the shard on this thread has executed at once, until their outcomes may be heard.
//!
//! What holds for requests of connections (`Executor::here`) holds for calls too, but each call stands for
//! itself: nobody's outcome waits for another's.
//!
//! W1. Calls on one key are executed in the order in which they came: while one is under way as a message, later
//!     ones follow it that way.
//! W2. An outcome is told when the position that it needs is audible. If that does not come in the call's time (and up
//!     to `GIVE_UP_EVERY_US` more), a change is of unknown outcome, and of what changes nothing nobody could be reached.
//! W3. Bounded as messages are: `pending_max` calls, `pending_bytes_max` bytes of values read.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_cluster::{Answer, Call, Executed, Now, Output, Outputs, ShardBeside};
use holdfast_format::{KeyHash, Position};
use holdfast_wire::{Command, Failure, Outcome};

use crate::connection::outcome_bytes;
use crate::executor::Executor;

/// All that is withheld is looked through for what is overdue, at most so often: 65,536 calls whose times end one after
/// another, while their shard has no backups, would otherwise be looked through for each of them.
const GIVE_UP_EVERY_US: u64 = 5_000;

#[derive(Debug)]
pub(crate) struct Calls {
    /// By what they need, then in the order of execution.
    withheld: BTreeMap<(Position, u64), Withheld>,
    withheld_bytes: u64,
    /// Those whose shard is no longer lent: no position of another one says anything about them.
    lost: Vec<Withheld>,
    next: u64,
    /// None of them is overdue before this.
    overdue_us: u64,
    /// Nor are they looked through before this.
    look_again_us: u64,
    /// How many calls on a key are under way as messages (W1).
    messages: BTreeMap<KeyHash, u32>,
}

#[derive(Debug)]
struct Withheld {
    token: u64,
    outcome: Outcome,
    is_write: bool,
    until_us: u64,
}

impl Default for Calls {
    fn default() -> Calls {
        Calls {
            withheld: BTreeMap::new(),
            withheld_bytes: 0,
            lost: Vec::new(),
            next: 0,
            overdue_us: u64::MAX,
            look_again_us: 0,
            messages: BTreeMap::new(),
        }
    }
}

impl Withheld {
    /// W2.
    fn given_up(self) -> Output {
        let failure = match self.is_write {
            true => Failure::OutcomeUnknown,
            false => Failure::Unreachable,
        };
        Output::Answer {
            token: self.token,
            outcome: Outcome::Failed(failure),
        }
    }
}

impl Calls {
    /// Notes that a call goes as a message; gives what `arrived` wants to know.
    pub(crate) fn sent(&mut self, command: &Command) -> KeyHash {
        let hash = KeyHash::of(command.namespace, &command.key);
        *self.messages.entry(hash).or_default() += 1;
        hash
    }

    /// The outcome of a call that went as a message is here.
    pub(crate) fn arrived(&mut self, hash: KeyHash) {
        let count = self.messages.get_mut(&hash).expect("it was sent");
        *count -= 1;
        if *count == 0 {
            self.messages.remove(&hash);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.withheld.is_empty() && self.lost.is_empty()
    }

    /// When to give up what is not audible by then.
    pub(crate) fn wakeup(&self) -> Option<u64> {
        match self.lost.is_empty() {
            true => (!self.withheld.is_empty()).then(|| self.give_up_us()),
            false => Some(0),
        }
    }

    fn give_up_us(&self) -> u64 {
        self.overdue_us.max(self.look_again_us)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.withheld_bytes
    }

    /// Answers what may be heard when everything up to `audible` may.
    pub(crate) fn release(&mut self, audible: Position, out: &mut Outputs) {
        while let Some(first) = self.withheld.first_entry()
            && first.key().0 <= audible
        {
            let Withheld { token, outcome, .. } = first.remove();
            self.withheld_bytes -= outcome_bytes(&outcome) as u64;
            out.push(Output::Answer { token, outcome });
        }
    }

    /// Answers what is overdue at `now_us` or lost (W2); says how many that were.
    pub(crate) fn give_up(&mut self, now_us: u64, out: &mut Outputs) -> u32 {
        let lost = self.lost.len() as u32;
        for call in self.lost.drain(..) {
            out.push(call.given_up());
        }
        if now_us < self.give_up_us() {
            return lost;
        }
        self.look_again_us = now_us + GIVE_UP_EVERY_US;
        let overdue: Vec<(Position, u64)> = (self.withheld.iter())
            .filter(|(_, call)| call.until_us <= now_us)
            .map(|(at, _)| *at)
            .collect();
        for at in &overdue {
            let call = self.withheld.remove(at).expect("just looked at");
            self.withheld_bytes -= outcome_bytes(&call.outcome) as u64;
            out.push(call.given_up());
        }
        let left = self.withheld.values().map(|call| call.until_us);
        self.overdue_us = left.min().unwrap_or(u64::MAX);
        lost + overdue.len() as u32
    }

    /// The shard that executed them is no longer lent, and will make nothing audible any more.
    pub(crate) fn lose_shard(&mut self) {
        let withheld = std::mem::take(&mut self.withheld);
        self.lost.extend(withheld.into_values());
        self.withheld_bytes = 0;
        self.overdue_us = u64::MAX;
    }

    fn withhold(&mut self, needs: Position, call: Withheld) {
        self.overdue_us = self.overdue_us.min(call.until_us);
        self.withheld_bytes += outcome_bytes(&call.outcome) as u64;
        self.withheld.insert((needs, self.next), call);
        self.next += 1;
    }
}

impl Executor {
    /// Has the shard on this thread execute a call, if it may be so; false if it has to go as a message.
    pub(crate) fn call_here(
        &mut self,
        now: Now,
        shard: &mut dyn ShardBeside,
        token: u64,
        (call, shed): (&Call, bool),
    ) -> bool {
        let calls = &self.calls;
        // A shard keeps no record of what it executes without a message.
        if call.once.is_some()
            || calls.withheld.len() >= self.config.pending_max
            || self.withheld_bytes + calls.withheld_bytes >= self.config.pending_bytes_max
        {
            return false;
        }
        let command = &call.command;
        if !calls.messages.is_empty() {
            let hash = KeyHash::of(command.namespace, &command.key);
            if calls.messages.contains_key(&hash) {
                return false;
            }
        }
        let Some(Executed { needs, answer }) = shard.execute(now, command) else {
            return false;
        };
        let outcome = match answer {
            Answer::Value { value, meta } => Outcome::Value {
                value: Bytes::copy_from_slice(value),
                meta,
            },
            Answer::Outcome(outcome) => self.unless_shed(shed, outcome),
        };
        self.counters.beside += 1;
        self.counters.count(&outcome);
        let call = Withheld {
            token,
            outcome,
            is_write: command.op.is_write(),
            until_us: now.mono_us + u64::from(self.call_within_ms(call)) * 1_000,
        };
        self.calls.withhold(needs, call);
        true
    }
}
