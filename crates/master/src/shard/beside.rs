//! The shard as a gateway of its own thread has it (`holdfast_cluster::ShardBeside`).
//!
//! The rules are those of `Shard::requests`, without what only messages need: there is no stream, because nothing
//! arrives twice or out of order, and no completion record, because nothing is asked again. D1 to D4 hold as
//! they do there; the gateway withholds the answer instead of `Answers`.

use holdfast_cluster::{Answer, Executed, Now, ShardBeside};
use holdfast_format::{KeyHash, Namespace, Position, ServerId, Slot, SlotRange};
use holdfast_wire::{Command, Op};

use super::requests::PREFETCH_MAX;
use super::{Life, Shard};
use crate::commands::{Identity, meta};
use crate::recovery::Standing;

impl ShardBeside for Shard {
    fn id(&self) -> ServerId {
        self.membership.member().id
    }

    fn admits(&self, now: Now) -> bool {
        !self.owned.is_empty() && self.unready(now).is_none()
    }

    fn expect(&self, namespace: Namespace, keys: &mut dyn Iterator<Item = &[u8]>) {
        let mut hashes = [KeyHash(0); PREFETCH_MAX];
        loop {
            let mut count = 0;
            for (hash, key) in hashes.iter_mut().zip(&mut *keys) {
                *hash = KeyHash::of(namespace, key);
                count += 1;
            }
            self.log.prefetch_batch(&hashes[..count]);
            if count < PREFETCH_MAX {
                return;
            }
        }
    }

    fn execute(&mut self, now: Now, command: &Command) -> Option<Executed<'_>> {
        let is_write = command.op.is_write();
        if (is_write && self.is_behind()) || command.op.is_keyspace() || self.unready(now).is_some()
        {
            return None;
        }
        let unseen = self.serves(now, command)?;
        self.used = true;
        self.lent = true;
        self.count(is_write);
        if command.op != Op::Get {
            let (needs, outcome) = self.run(command, Identity::Unneeded, unseen);
            let answer = Answer::Outcome(outcome);
            return Some(Executed { needs, answer });
        }
        if self.settled != self.owned {
            self.count_early(command);
        }
        let hash = KeyHash::of(command.namespace, &command.key);
        let needs = self.answers.needs(command.namespace, hash);
        let found = self
            .log
            .find_hashed(command.namespace, &command.key, hash, self.clock);
        let answer = match found {
            Some(found) => Answer::Value {
                value: found.value,
                meta: meta(found.version, found.expiry, self.clock),
            },
            None => Answer::Outcome(holdfast_wire::Outcome::Absent {
                version: self.log.last_version(),
            }),
        };
        Some(Executed { needs, answer })
    }

    fn audible(&self, now: Now) -> Option<Position> {
        // Not the lease of the last flush: a replica may have been lost since.
        let leased = now.mono_us < self.replicas.standing().lease_until_us;
        (leased && self.life != Life::Stopped).then(|| self.answers.durable_position())
    }

    fn take_used(&mut self) -> bool {
        std::mem::take(&mut self.used)
    }
}

impl Shard {
    /// `None`: not now (D1). True: only as a write that knows nothing of what there was.
    fn serves(&self, now: Now, command: &Command) -> Option<bool> {
        let withholds = self.recoveries.withholds_some(now);
        if self.owned.as_slice() == [SlotRange::ALL] && !withholds {
            return Some(false);
        }
        let slot = Slot::of(&command.key);
        if !self.owned.iter().any(|range| range.contains(slot)) {
            return None;
        }
        match withholds.then(|| self.standing(now, command, None)) {
            None | Some(Standing::Known) => Some(false),
            Some(Standing::Unseen) => Some(true),
            Some(Standing::Wait | Standing::Withheld) => None,
        }
    }
}
