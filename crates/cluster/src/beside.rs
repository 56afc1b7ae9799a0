//! The seam between a gateway and the shard that lives on its thread.
//!
//! Messages between the two would be queues, encodings and bookkeeping for retries that nobody needs: neither
//! can lose the other's word without the driver knowing. So the driver lends the shard to the gateway for
//! the length of a step, and the gateway has commands executed at once:
//!
//! ```text
//! step_beside(gateway, shard):   execute ──> what was found, and the position it needs
//! flush(shard):                  replicates, renews its lease
//! flush_beside(gateway, shard):  audible ──> replies up to there may leave
//! ```
//!
//! B1. `execute` declines before it has done anything, or executes once. What is declined goes the ordinary
//!     way, as a message.
//! B2. What was executed is heard only once `audible` reaches the position it needs, by a `now` read
//!     after the work was done: the rules that a shard has for its own answers.
//! B3. A shard that is no longer lent (it has stopped) says nothing more: what waits for it is of unknown outcome.

use holdfast_format::{Namespace, Position, ServerId};
use holdfast_wire::{Command, Meta, Outcome};

use crate::Now;

/// A shard, as a gateway on the same thread sees it.
pub trait ShardBeside {
    /// Which shard this is. Positions mean nothing to another one.
    fn id(&self) -> ServerId;

    /// False if `execute` would decline everything now. True promises nothing.
    fn admits(&self, now: Now) -> bool;

    /// Starts loading what commands on these keys will look for; they come soon. Only a hint, best given for some
    /// dozen keys at a time.
    fn expect(&self, namespace: Namespace, keys: &mut dyn Iterator<Item = &[u8]>);

    /// Executes a command on one key, or declines (B1).
    fn execute(&mut self, now: Now, command: &Command) -> Option<Executed<'_>>;

    /// Everything that needs this position, or less, may be heard; `None`: nothing may.
    fn audible(&self, now: Now) -> Option<Position>;

    /// True if anything was executed since this was last asked: the shard is to be flushed then.
    fn take_used(&mut self) -> bool;
}

/// What became of a command.
#[derive(Debug)]
pub struct Executed<'a> {
    /// What must be audible before it is heard (B2).
    pub needs: Position,
    pub answer: Answer<'a>,
}

/// An outcome; a value that was read is borrowed from the log.
#[derive(Debug)]
pub enum Answer<'a> {
    Value { value: &'a [u8], meta: Meta },
    Outcome(Outcome),
}
