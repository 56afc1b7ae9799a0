//! Requests as they come: each is executed, waits, or is refused (D1 and D4).

use holdfast_cluster::Now;
use holdfast_format::{ClientId, ClusterMs, KeyHash, Position, ServerId, Slot};
use holdfast_wire::{Command, Failure, Once, Op, Outcome, Request, Requests};

use super::{Life, Shard};
use crate::answers::{Answer, Concern};
use crate::commands::{Context, Identity, execute, refuse_once};
use crate::recovery::Standing;
use crate::streams::Admission;

/// Requests of a pipeline whose keys are loaded together before they are executed: so many loads hide nearly
/// all of the waiting for memory, and the processor has no room for many more.
pub(super) const PREFETCH_MAX: usize = 32;

/// What becomes of a command now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It is executed. `unseen`: as a write that knows nothing of what there was.
    Now {
        unseen: bool,
    },
    /// Until more has been replayed, or an old lease has run out.
    Wait,
    Refused(Failure),
}

impl Shard {
    pub(super) fn requests(&mut self, now: Now, from: ServerId, requests: Requests) {
        let Requests {
            client,
            stream,
            first,
            items,
        } = requests;
        if first == 0 {
            self.parked.forget_older(client, stream);
        }
        let admission = self
            .streams
            .admit(now.mono_us, client, stream, first, items.len());
        let (skip, refusal) = match admission {
            Admission::Execute { skip } => (skip, None),
            Admission::Ignore => return,
            Admission::Gap => (0, Some(Failure::NotReady)),
            Admission::Full => (0, Some(Failure::Busy)),
        };
        if refusal.is_some() {
            self.streams.put_off(client, stream);
        }
        let items = &items[skip.min(items.len())..];
        for (at, request) in items.iter().enumerate() {
            if at % PREFETCH_MAX == 0 && items.len() > 1 {
                self.prefetch(&items[at..items.len().min(at + PREFETCH_MAX)]);
            }
            let token = request.token;
            let answer = |outcome| Answer {
                to: from,
                client,
                stream,
                token,
                outcome,
            };
            let mut turn = match &refusal {
                Some(failure) => Turn::Refused(failure.clone()),
                None if self.streams.is_put_off(client, stream) => Turn::Refused(Failure::NotReady),
                None if self.waits_behind(client, stream, request) => Turn::Wait,
                None => self.turn(now, request),
            };
            if turn == Turn::Wait {
                if self.park(from, client, stream, request) {
                    continue;
                }
                turn = Turn::Refused(Failure::NotReady);
            }
            match turn {
                Turn::Now { unseen } => {
                    let (needs, outcome) = self.execute(client, request, unseen);
                    self.answers.hold(needs, answer(outcome));
                }
                Turn::Refused(failure) => {
                    self.count_refusal(&failure);
                    // D4.
                    self.streams.put_off(client, stream);
                    self.refusals.push(answer(Outcome::Failed(failure)));
                }
                Turn::Wait => unreachable!("it waits, or was refused for want of room"),
            }
        }
    }

    /// Has loaded what commands that are about to be executed will look for.
    pub(super) fn prefetch(&self, requests: &[Request]) {
        let mut hashes = [KeyHash(0); PREFETCH_MAX];
        let hashes = &mut hashes[..requests.len()];
        for (hash, request) in hashes.iter_mut().zip(requests) {
            *hash = KeyHash::of(request.command.namespace, &request.command.key);
        }
        self.log.prefetch_batch(hashes);
    }

    /// What becomes of a request now.
    pub(super) fn turn(&self, now: Now, request: &Request) -> Turn {
        let command = &request.command;
        if let Some(failure) = self.unready(now) {
            return Turn::Refused(failure);
        }
        let mut unseen = false;
        if command.op.is_keyspace() {
            if self.owned.is_empty() {
                return Turn::Refused(Failure::NotOwner);
            }
            // An old lease may have run out since the last flush.
            if self.settled != self.owned || self.recoveries.withholds_any(now, &self.owned) {
                return Turn::Wait;
            }
        } else {
            let slot = Slot::of(&command.key);
            if !self.owned.iter().any(|range| range.contains(slot)) {
                return Turn::Refused(Failure::NotOwner);
            }
            match self.standing(now, command, request.once.as_ref()) {
                Standing::Known => {}
                Standing::Unseen => unseen = true,
                Standing::Wait => return Turn::Wait,
                Standing::Withheld => return Turn::Refused(Failure::NotReady),
            }
        }
        match command.op.is_write() && self.is_behind() {
            true => Turn::Refused(Failure::Busy),
            false => Turn::Now { unseen },
        }
    }

    /// What may be said about the key of a command in a slot that this shard owns.
    pub(super) fn standing(&self, now: Now, command: &Command, once: Option<&Once>) -> Standing {
        let adds = command.op.is_write() && !matches!(command.op, Op::Delete { .. });
        let limited = adds && self.limits.has(command.namespace);
        (self.recoveries).standing(now, &self.log, self.clock, command, once, limited)
    }

    /// Why nothing at all is executed now, if so.
    pub(super) fn unready(&self, now: Now) -> Option<Failure> {
        if self.life != Life::Serving {
            return Some(Failure::NotReady);
        }
        // Without a lease nothing could be answered. A short lapse is bridged: what is executed
        // meanwhile waits for the lease to come back.
        let Some(config) = self.membership.config() else {
            return Some(Failure::NotReady);
        };
        let bridged_us = u64::from(config.lease_ms) * 1_000;
        let lapsed = (self.leased_at_us).is_none_or(|at_us| now.mono_us > at_us + bridged_us);
        let without_time = self.membership.cluster_time(now).is_none();
        // D2. A lease may be older than the first estimate of cluster time; until a ceiling above
        // 0 is acknowledged too, the expiry clock stands at 0 and every deadline would be wrong.
        let unset = self.clock == ClusterMs(0);
        if without_time || unset || lapsed || self.clock < self.recoveries.expiry_floor() {
            return Some(Failure::NotReady);
        }
        self.is_full().then_some(Failure::Busy)
    }

    pub(super) fn is_full(&self) -> bool {
        let (count, bytes) = (self.parked.len(), self.parked.bytes());
        self.answers.held() + count >= self.config.queued_requests_max as usize
            || self.answers.held_bytes() + bytes >= self.config.queued_bytes_max
    }

    /// Writers wait for replicas to catch up.
    pub(super) fn is_behind(&self) -> bool {
        self.unreplicated >= self.config.unreplicated_bytes_max
    }

    /// Executes a command; also says what must be durable before its outcome may be heard.
    pub(super) fn execute(
        &mut self,
        client: ClientId,
        request: &Request,
        unseen: bool,
    ) -> (Position, Outcome) {
        let command = &request.command;
        let is_write = command.op.is_write();
        self.count(is_write);
        if let Some(once) = request.once.as_ref().filter(|_| is_write) {
            // Nothing of what will be refused may be remembered (S5).
            if let Some(failure) = refuse_once(self.clock, once) {
                self.counts.failed += 1;
                return (Position::default(), Outcome::Failed(failure));
            }
            let acknowledged = once.acknowledged.min(once.sequence);
            let known = match once.client == client {
                true => self.streams.acknowledge(client, acknowledged),
                false => self.streams.acknowledge_through_others(
                    once.client,
                    acknowledged,
                    once.lease_until,
                    self.clock,
                ),
            };
            // Those sent together acknowledge the same.
            let below = (once.client, acknowledged.min(known));
            if self.acknowledged_last != below {
                self.acknowledged_last = below;
                self.log.acknowledge(below.0, below.1);
            }
            // A client that has an outcome never asks for it again; if it does, the record is gone.
            if once.sequence < known {
                return (Position::default(), Outcome::Failed(Failure::StaleClient));
            }
        }
        let identity = match &request.once {
            Some(once) => Identity::Once(once),
            None => Identity::Missing,
        };
        self.run(command, identity, unseen)
    }

    /// Executes a command and notes what it concerned.
    pub(super) fn run(
        &mut self,
        command: &Command,
        identity: Identity<'_>,
        unseen: bool,
    ) -> (Position, Outcome) {
        if self.settled != self.owned {
            self.count_early(command);
        }
        let before = self.log.end();
        let context = Context {
            now: self.clock,
            owned: &self.settled,
            unseen,
        };

        let mut evicted = Vec::new();
        let outcome = execute(
            &mut self.log,
            &mut self.limits,
            context,
            command,
            identity,
            &mut evicted,
        );
        if let Outcome::Failed(failure) = &outcome {
            self.counts.failed += 1;
            // D4.
            assert!(
                !matches!(
                    failure,
                    Failure::NotOwner | Failure::NotReady | Failure::Busy
                ),
                "an executed command is not refused"
            );
        }
        let (namespace, end) = (command.namespace, self.log.end());
        let hash = KeyHash::of(namespace, &command.key);
        for hash in evicted {
            self.answers.appended(Concern::Key(hash), end);
        }
        if end != before {
            self.note_appended(before, end);
            let concern = match command.op.is_keyspace() {
                true => Concern::Namespace(namespace),
                false => Concern::Key(hash),
            };
            self.answers.appended(concern, end);
        }
        let needs = match command.op.is_keyspace() {
            true => end,
            false => self.answers.needs(namespace, hash),
        };
        self.served = true;
        if command.op.is_write() {
            self.clean_for(&outcome);
        }
        (needs, outcome)
    }
}
