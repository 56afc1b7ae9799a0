//! Commands that wait until what a former owner may still answer has run out.
//!
//! P1. While an old lease runs, only sessions that are there are told. The former owner can acknowledge nothing any more and
//!     tells nothing of a key of which it holds something that is not durable, so until then both say the same of them.
//!     What changes something waits here, and so does what would be told as absent: our expiry clock may be
//!     ahead of the former owner's, which could still tell of the session afterwards.
//! P2. What comes later about the same key waits behind it.
//! P3. What waits here is never refused. Commands behind it are executed meanwhile, and a client takes from a refusal that
//!     nothing behind it was. If it cannot be executed after all, it is dropped, and the client's silence makes it ask again.

use std::collections::{BTreeMap, VecDeque};

use holdfast_format::{ClientId, KeyHash, ServerId};
use holdfast_wire::Request;

/// One command and whose it is.
#[derive(Clone, Debug)]
pub(super) struct Parked {
    pub from: ServerId,
    pub client: ClientId,
    pub stream: u64,
    pub request: Request,
}

impl Parked {
    pub fn hash(&self) -> KeyHash {
        let command = &self.request.command;
        KeyHash::of(command.namespace, &command.key)
    }

    /// Memory that it takes, about.
    fn bytes(&self) -> u64 {
        let command = &self.request.command;
        (size_of::<Parked>() + command.key.len() + command.op.value().len()) as u64
    }
}

#[derive(Debug, Default)]
pub(super) struct Park {
    queue: VecDeque<Parked>,
    /// How many wait about each key (P2).
    keys: BTreeMap<KeyHash, u32>,
    bytes: u64,
    /// Before then none can be executed.
    not_before_us: u64,
}

impl Park {
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// P2.
    pub fn concerns(&self, hash: KeyHash) -> bool {
        !self.keys.is_empty() && self.keys.contains_key(&hash)
    }

    /// `until_us`: when the lease that it waits for runs out.
    pub fn add(&mut self, parked: Parked, until_us: u64) {
        self.not_before_us = match self.queue.is_empty() {
            true => until_us,
            false => self.not_before_us.min(until_us),
        };
        self.bytes += parked.bytes();
        *self.keys.entry(parked.hash()).or_default() += 1;
        self.queue.push_back(parked);
    }

    /// All that waits, in order, once some of it may be executed. What still cannot is to be added again, in order.
    pub fn take_due(&mut self, now_us: u64) -> VecDeque<Parked> {
        if self.queue.is_empty() || now_us < self.not_before_us {
            return VecDeque::new();
        }
        self.keys.clear();
        self.bytes = 0;
        std::mem::take(&mut self.queue)
    }

    /// Forgets what nobody waits for any more.
    pub fn retain(&mut self, mut is_wanted: impl FnMut(&Parked) -> bool) {
        let not_before_us = self.not_before_us;
        for parked in std::mem::take(self).queue {
            if is_wanted(&parked) {
                self.add(parked, not_before_us);
            }
        }
    }
}
