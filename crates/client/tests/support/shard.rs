//! A shard as simple as can be: a map, streams, and completion records. No log and no durability,
//! but the protocol of `docs/design-notes.md`, "Requests", to the letter.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_format::{
    ClientId, ClusterMs, Epoch, KeyHash, LogId, Namespace, ServerId, Slot, SlotRange, Version,
};
use holdfast_wire::{
    AbsoluteDeadline, Command, Condition, ExpiryChange, Failure, Member, Meta, NamespaceUse, Op,
    Outcome, Request, Requests, Response, Responses, Tablet, TouchCondition, Usage, View, add_uses,
};

#[derive(Clone, Debug)]
struct Session {
    value: Bytes,
    version: Version,
    deadline: Option<ClusterMs>,
    idle_ms: Option<u32>,
    absolute: Option<ClusterMs>,
}

/// What all shards of a test share: where the sessions are, so that an owner can change without a
/// recovery, and what has been executed.
#[derive(Debug, Default)]
pub struct Store {
    pub now: ClusterMs,
    sessions: BTreeMap<(Namespace, Bytes), Session>,
    completions: BTreeMap<(ClientId, u64), Outcome>,
    /// Remembered, because records are shared and an earlier attempt may come to another shard yet.
    acknowledged: BTreeMap<ClientId, u64>,
    version: u64,
    pub executed: Vec<Command>,
    pub failed: Vec<Command>,
}

#[derive(Debug)]
pub struct Shard {
    pub owned: Vec<bool>,
    /// Refuse everything like this.
    pub refuse: Option<Failure>,
    streams: BTreeMap<ClientId, Stream>,
    pub value_bytes_max: u64,
    /// Fail writes that add something like this.
    pub full: Option<Failure>,
}

#[derive(Debug, Default)]
struct Stream {
    number: u64,
    next: u64,
    ended: bool,
}

impl Store {
    pub fn new(now: ClusterMs) -> Store {
        Store {
            now,
            ..Store::default()
        }
    }
}

/// Slots from one to another, whose they are, and whether they are served.
pub type Dealt = (u16, u16, ServerId, bool);

/// Gives the slots out; nobody else has any afterwards.
pub fn give(shards: &mut BTreeMap<ServerId, Shard>, tablets: &[Dealt]) {
    for shard in shards.values_mut() {
        shard.owned.fill(false);
    }
    for &(first, last, owner, _) in tablets {
        if let Some(shard) = shards.get_mut(&owner) {
            shard.owned[first as usize..=last as usize].fill(true);
        }
    }
}

/// The view that tells of them.
pub fn view_of(version: u64, members: Vec<Member>, tablets: &[Dealt]) -> View {
    let tablet = |&(first, last, owner, available): &Dealt| Tablet {
        range: SlotRange {
            first: Slot(first),
            last: Slot(last),
        },
        owner: LogId::of(owner),
        epoch: Epoch(1),
        available,
    };
    View {
        version,
        members,
        tablets: tablets.iter().map(tablet).collect(),
        ..View::default()
    }
}

impl Shard {
    /// Owns nothing yet.
    pub fn new() -> Shard {
        Shard {
            owned: vec![false; 16384],
            refuse: None,
            streams: BTreeMap::new(),
            value_bytes_max: 1 << 20,
            full: None,
        }
    }

    pub fn handle(&mut self, store: &mut Store, requests: Requests) -> Responses {
        let mut items = Vec::new();
        let stream = self.streams.entry(requests.client).or_default();
        if requests.stream > stream.number {
            *stream = Stream {
                number: requests.stream,
                ..Stream::default()
            };
        }
        if requests.stream == stream.number {
            for (index, request) in (requests.first..).zip(requests.items) {
                let stream = self.streams.get_mut(&requests.client).expect("made above");
                if index != stream.next {
                    continue;
                }
                stream.next += 1;
                let outcome = match stream.ended {
                    true => Outcome::Failed(Failure::NotReady),
                    false => self.answer(store, &request),
                };
                if matches!(
                    outcome,
                    Outcome::Failed(Failure::NotOwner | Failure::NotReady | Failure::Busy)
                ) {
                    let stream = self.streams.get_mut(&requests.client);
                    stream.expect("made above").ended = true;
                }
                items.push(Response {
                    token: request.token,
                    outcome,
                });
            }
        }
        Responses {
            client: requests.client,
            stream: requests.stream,
            items,
        }
    }

    fn answer(&mut self, store: &mut Store, request: &Request) -> Outcome {
        let command = &request.command;
        if let Some(failure) = &self.refuse {
            return Outcome::Failed(failure.clone());
        }
        let slot = Slot::of(&command.key);
        if !command.op.is_keyspace() && !self.owned[slot.0 as usize] {
            return Outcome::Failed(Failure::NotOwner);
        }
        let Some(once) = request.once else {
            assert!(!command.op.is_write(), "a write without an identity");
            return self.execute(store, command);
        };
        let known = store.acknowledged.entry(once.client).or_default();
        *known = once.acknowledged.max(*known);
        let known = *known;
        store
            .completions
            .retain(|(client, sequence), _| *client != once.client || *sequence >= known);
        if let Some(outcome) = store.completions.get(&(once.client, once.sequence)) {
            return outcome.clone();
        }
        if once.sequence < known || once.lease_until < store.now {
            return Outcome::Failed(Failure::StaleClient);
        }
        let outcome = self.execute(store, command);
        // Failures are not on record.
        if !matches!(outcome, Outcome::Failed(_)) {
            store
                .completions
                .insert((once.client, once.sequence), outcome.clone());
        }
        outcome
    }

    fn execute(&mut self, store: &mut Store, command: &Command) -> Outcome {
        let outcome = self.try_to_execute(store, command);
        match outcome {
            Outcome::Failed(_) => store.failed.push(command.clone()),
            _ => store.executed.push(command.clone()),
        }
        outcome
    }

    fn try_to_execute(&mut self, store: &mut Store, command: &Command) -> Outcome {
        let now = store.now;
        store
            .sessions
            .retain(|_, s| s.deadline.is_none_or(|d| d > now));
        let at = (command.namespace, command.key.clone());
        let counter = Version(store.version);
        let current = store.sessions.get(&at).cloned();
        let meta = current.as_ref().map(|s| meta_of(s, now));
        let refused = |return_old: bool| Outcome::Refused {
            version: current.as_ref().map_or(counter, |s| s.version),
            current: meta,
            old: current
                .as_ref()
                .filter(|_| return_old)
                .map(|s| s.value.clone()),
        };
        match &command.op {
            Op::Get | Op::Stat => match &current {
                Some(session) => Outcome::Value {
                    value: match command.op {
                        Op::Get => session.value.clone(),
                        _ => Bytes::new(),
                    },
                    meta: meta_of(session, now),
                },
                None => Outcome::Absent { version: counter },
            },
            Op::Put {
                value,
                condition,
                expiry,
                return_old,
            } => {
                if value.len() as u64 > self.value_bytes_max {
                    let limit = self.value_bytes_max;
                    let bytes = value.len() as u64;
                    return Outcome::Failed(Failure::ValueTooLarge { bytes, limit });
                }
                if let Some(failure) = &self.full {
                    return Outcome::Failed(failure.clone());
                }
                if !holds(condition, current.as_ref()) {
                    return refused(*return_old);
                }
                store.version += 1;
                let old = current
                    .as_ref()
                    .filter(|_| *return_old)
                    .map(|s| s.value.clone());
                let mut session = current.unwrap_or(Session {
                    value: Bytes::new(),
                    version: Version(0),
                    deadline: None,
                    idle_ms: None,
                    absolute: None,
                });
                session.value = value.clone();
                session.version = Version(store.version);
                if *expiry == ExpiryChange::Clear {
                    session.absolute = None;
                }
                apply(&mut session, *expiry, now);
                let meta = meta_of(&session, now);
                store.sessions.insert(at, session);
                Outcome::Done { meta, old }
            }
            Op::Add { .. } | Op::Append { .. } => {
                let before = current.as_ref().map(|s| s.value.clone());
                let before = before.unwrap_or_default();
                let (value, told) = match &command.op {
                    Op::Add { by } if before.is_empty() => (by.to_string().into(), by.to_string()),
                    Op::Add { by } => {
                        let number = std::str::from_utf8(&before).ok();
                        let Some(number) = number.and_then(|n| n.parse::<i64>().ok()) else {
                            let text = "value is not an integer or out of range";
                            return Outcome::Failed(Failure::Invalid(text.to_owned()));
                        };
                        let sum = (number + by).to_string();
                        (Bytes::from(sum.clone()), sum)
                    }
                    _ => {
                        let value = [&before, command.op.value()].concat();
                        let told = value.len().to_string();
                        (Bytes::from(value), told)
                    }
                };
                store.version += 1;
                let session = Session {
                    value,
                    version: Version(store.version),
                    ..current.unwrap_or(Session {
                        value: Bytes::new(),
                        version: Version(0),
                        deadline: None,
                        idle_ms: None,
                        absolute: None,
                    })
                };
                let meta = meta_of(&session, now);
                store.sessions.insert(at, session);
                let old = Some(Bytes::from(told));
                Outcome::Done { meta, old }
            }
            Op::Touch {
                condition,
                expiry,
                return_value,
            } => {
                let Some(mut session) = current.clone() else {
                    return Outcome::Absent { version: counter };
                };
                let mut changed = session.clone();
                apply(&mut changed, *expiry, now);
                let far = |d: Option<ClusterMs>| d.map_or(u64::MAX, |d| d.0);
                let allowed = match condition {
                    TouchCondition::Always => true,
                    TouchCondition::NoDeadline => session.deadline.is_none(),
                    TouchCondition::HasDeadline => session.deadline.is_some(),
                    TouchCondition::Later => far(changed.deadline) > far(session.deadline),
                    TouchCondition::Earlier => far(changed.deadline) < far(session.deadline),
                    TouchCondition::Version(version) => session.version == *version,
                    TouchCondition::ValueIs(value) => session.value == *value,
                };
                if !allowed {
                    return refused(false);
                }
                session = changed;
                let (meta, value) = (meta_of(&session, now), session.value.clone());
                store.sessions.insert(at, session);
                if *return_value {
                    Outcome::Value { value, meta }
                } else {
                    Outcome::Done { meta, old: None }
                }
            }
            Op::Delete {
                condition,
                return_old,
            } => {
                let Some(session) = &current else {
                    return Outcome::Absent { version: counter };
                };
                if !holds(condition, Some(session)) {
                    return refused(*return_old);
                }
                store.version += 1;
                store.sessions.remove(&at);
                let meta = Meta {
                    version: Version(store.version),
                    ..Meta::default()
                };
                let old = current
                    .as_ref()
                    .filter(|_| *return_old)
                    .map(|s| s.value.clone());
                Outcome::Done { meta, old }
            }
            Op::Scan { from, limit } => {
                let mut keys: Vec<(KeyHash, Bytes)> = self
                    .mine(store, command.namespace)
                    .map(|key| (KeyHash::of(command.namespace, key), key.clone()))
                    .filter(|(hash, _)| hash >= from)
                    .collect();
                keys.sort();
                let next = keys.get(*limit as usize).map(|(hash, _)| *hash);
                keys.retain(|(hash, _)| next.is_none_or(|next| *hash < next));
                Outcome::Scanned { keys, next }
            }
            Op::Count => {
                let keys: Vec<Bytes> = self.mine(store, command.namespace).cloned().collect();
                let with_deadline = keys
                    .iter()
                    .filter(|key| {
                        store.sessions[&(command.namespace, (*key).clone())]
                            .deadline
                            .is_some()
                    })
                    .count() as u64;
                Outcome::Counted {
                    sessions: keys.len() as u64,
                    with_deadline,
                }
            }
            Op::Usage => {
                let mut usage = Usage {
                    used_bytes: 1_000,
                    limit_bytes: 4_000,
                    live_bytes: 600,
                    expired: 5,
                    evicted: 7,
                    namespaces: Vec::new(),
                };
                for ((namespace, key), session) in &store.sessions {
                    if self.owned[Slot::of(key).0 as usize] {
                        let one = NamespaceUse {
                            namespace: *namespace,
                            sessions: 1,
                            with_deadline: u64::from(session.deadline.is_some()),
                            bytes: key.len() as u64,
                            evicted: 0,
                        };
                        add_uses(&mut usage.namespaces, &[one]);
                    }
                }
                Outcome::Usage(usage)
            }
            Op::Flush => {
                if let Some(failure) = &self.full {
                    return Outcome::Failed(failure.clone());
                }
                store.sessions.retain(|(namespace, key), _| {
                    *namespace != command.namespace || !self.owned[Slot::of(key).0 as usize]
                });
                Outcome::Flushed
            }
        }
    }

    fn mine<'a>(
        &'a self,
        store: &'a Store,
        namespace: Namespace,
    ) -> impl Iterator<Item = &'a Bytes> {
        store
            .sessions
            .keys()
            .filter(move |(n, key)| *n == namespace && self.owned[Slot::of(key).0 as usize])
            .map(|(_, key)| key)
    }
}

fn holds(condition: &Condition, current: Option<&Session>) -> bool {
    match condition {
        Condition::Always => true,
        Condition::Absent => current.is_none(),
        Condition::Present => current.is_some(),
        Condition::Version(version) => current.is_some_and(|s| s.version == *version),
        Condition::ValueIs(value) => current.is_some_and(|s| s.value == *value),
    }
}

fn apply(session: &mut Session, expiry: ExpiryChange, now: ClusterMs) {
    let idle = |session: &Session| session.idle_ms.map(|ms| now.plus_ms(u64::from(ms)));
    match expiry {
        ExpiryChange::Clear => {
            session.deadline = session.absolute;
            session.idle_ms = None;
        }
        ExpiryChange::Keep => {}
        ExpiryChange::In { ms } => {
            session.deadline = Some(ClusterMs(now.0.saturating_add_signed(ms)));
        }
        ExpiryChange::At { deadline } => session.deadline = Some(deadline),
        ExpiryChange::Session { idle_ms, absolute } => {
            session.idle_ms = idle_ms;
            session.absolute = absolute.map(|absolute| match absolute {
                AbsoluteDeadline::At(at) => at,
                AbsoluteDeadline::InMs(ms) => now.plus_ms(ms),
            });
            session.deadline = idle(session).or(session.absolute);
        }
        ExpiryChange::Slide => {
            if session.idle_ms.is_some() {
                session.deadline = idle(session);
            }
        }
    }
}

fn meta_of(session: &Session, now: ClusterMs) -> Meta {
    Meta {
        version: session.version,
        deadline: session.deadline,
        idle_ms: session.idle_ms,
        absolute: session.absolute,
        remaining_ms: session.deadline.map(|d| d.0.saturating_sub(now.0).max(1)),
    }
}
