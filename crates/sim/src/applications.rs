//! Simulated applications: some speak RESP in fragments, some make calls that return versions.
//!
//! They live the life of session stores (create, read, touch, compare, delete, lock) against a few
//! hot keys and many cold ones, and write down what they asked for and what they were told.
//!
//! A1. Every write writes a value of its own, so a second execution cannot hide.
//! A2. A write whose answer is lost is repeated with the same `Once`, or given up as unknown; it is
//!     never asked for again under a new one.

mod speakers;

use std::collections::{BTreeMap, VecDeque};

use holdfast_cluster::{Call, ConnectionId};
use holdfast_format::{ClientId, ClusterMs};
use holdfast_wire::{
    AbsoluteDeadline, Command, Condition, ExpiryChange, Failure, Meta, Once, Op, Outcome, Role,
    TouchCondition,
};

use crate::chance::Chance;
use crate::faults::{Fault, FaultSet};
use crate::history::{
    Asked, Deadline, Expiry, History, KeyClass, KeyId, NEVER, Operation, Saw, ValueId, Version,
    When,
};
use crate::network::PlaceId;
use crate::reply::ReplyReader;
use crate::world::{Happening, World};

/// Repetitions of one write before it is given up as unknown.
const REPEATS_MAX: u32 = 6;

/// How far an application's idea of cluster time may be from a shard's.
const CLOCK_MARGIN_MS: u64 = 5_000;

/// A script that Redis clients use to release a lock: delete if the value is still ours.
const COMPARE_AND_DELETE: &[u8] =
    b"if redis.call(\"get\",KEYS[1]) == ARGV[1] then return redis.call(\"del\",KEYS[1]) else return 0 end";

/// How the applications behave.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    pub callers: u32,
    pub speakers: u32,
    /// Of the speakers those that never write: they go on where whoever writes has to wait.
    pub onlookers: u32,
    /// Mean time between an application's operations.
    pub think_us: u64,
    pub cold_keys: u32,
    /// In how many of a hundred writes the value is large.
    pub large_percent: u32,
    pub large_bytes_max: u32,
}

/// All applications of a run and the history they write.
#[derive(Debug)]
pub struct Applications {
    pub history: History,
    habits: Habits,
    faults: FaultSet,
    chance: Chance,
    callers: Vec<Caller>,
    speakers: Vec<Speaker>,
    gateways: Vec<PlaceId>,
    /// Calls under way: whose they are.
    calls: BTreeMap<u64, usize>,
    connections: BTreeMap<ConnectionId, usize>,
    /// The newest version anybody has seen of a key, for conditions.
    versions: BTreeMap<KeyId, (Version, Option<ValueId>)>,
    /// A key whose removal was just asked for: somebody else soon looks whether it is gone.
    lately_removed: Option<KeyId>,
    resting: bool,
}

/// An application that makes one call at a time.
#[derive(Debug)]
struct Caller {
    id: ClientId,
    sequence: u64,
    /// Writes of which some attempt was never answered, with their leases: they are not acknowledged
    /// before those have run out, for such an attempt may still arrive.
    unsettled: BTreeMap<u64, ClusterMs>,
    doing: Option<Doing>,
}

#[derive(Debug)]
struct Doing {
    key: KeyId,
    asked: Asked,
    command: Command,
    once: Option<Once>,
    invoked_us: u64,
    repeats: u32,
    attempts: u32,
    /// Answers still expected: two when the write was sent twice.
    tokens: Vec<u64>,
    answer: Option<Saw>,
    /// An attempt was given up without an answer.
    unsettled: bool,
}

/// An application with a RESP connection.
#[derive(Debug, Default)]
struct Speaker {
    connection: Option<ConnectionId>,
    /// Where it is connected to, or was.
    gateway: Option<PlaceId>,
    reader: ReplyReader,
    waiting: VecDeque<Expected>,
    namespace: u8,
}

/// A reply that a speaker waits for.
#[derive(Debug)]
struct Expected {
    invoked_us: u64,
    kind: ExpectedKind,
}

#[derive(Debug)]
enum ExpectedKind {
    /// `SELECT` or `HELLO`: anything but an error.
    Fine,
    /// One value per key.
    Values(Vec<KeyId>),
    Exists(KeyId),
    Set {
        key: KeyId,
        asked: Asked,
        gives_old: bool,
    },
    Removed {
        key: KeyId,
    },
    RemovedValue {
        key: KeyId,
    },
    ComparedAndRemoved {
        key: KeyId,
        value: ValueId,
    },
    Touched {
        key: KeyId,
        asked: Asked,
    },
    TouchedValue {
        key: KeyId,
        asked: Asked,
    },
    Flushed,
}

impl Applications {
    /// Applications that begin at once.
    pub fn new(world: &mut World, habits: Habits, faults: FaultSet) -> Applications {
        let mut history = History::default();
        for (class, name, count) in [
            (KeyClass::Hot, "hot", 8),
            (KeyClass::Cold, "sess", habits.cold_keys),
            (KeyClass::Lock, "lock", 3),
            (KeyClass::Chain, "chain", 3),
            (KeyClass::Register, "reg", 6),
            (KeyClass::Flushed, "tmp", 12),
        ] {
            for number in 0..count {
                history.keys.add(format!("{name}:{number}"), class);
            }
        }
        let mut chance = Chance::new(world.setup.seed, 0x6170);
        let callers = (0..habits.callers)
            .map(|_| Caller {
                id: ClientId(chance.roll() | 1),
                sequence: 0,
                unsettled: BTreeMap::new(),
                doing: None,
            })
            .collect();
        let speakers = (0..habits.speakers).map(|_| Speaker::default()).collect();
        for application in 0..u64::from(habits.callers + habits.speakers) {
            world.alarm(chance.below(500_000), application);
        }
        Applications {
            history,
            habits,
            faults,
            chance,
            callers,
            speakers,
            gateways: world.places_of(Role::Gateway),
            calls: BTreeMap::new(),
            connections: BTreeMap::new(),
            versions: BTreeMap::new(),
            lately_removed: None,
            resting: false,
        }
    }

    /// Alarm names below this are the applications'.
    pub fn alarms(&self) -> u64 {
        u64::from(self.habits.callers + self.habits.speakers)
    }

    /// Begins nothing new; what is under way goes on.
    pub fn rest(&mut self) {
        self.resting = true;
    }

    /// How many applications still wait for an answer.
    pub fn pending(&self) -> usize {
        self.callers
            .iter()
            .filter(|caller| caller.doing.is_some())
            .count()
            + self
                .speakers
                .iter()
                .filter(|speaker| !speaker.waiting.is_empty())
                .count()
    }

    /// Whatever is still unanswered counts as unknown: the end of a history.
    pub fn give_up(&mut self) {
        for index in 0..self.callers.len() {
            if let Some(doing) = self.callers[index].doing.take() {
                self.record(
                    index as u32,
                    doing.key,
                    doing.invoked_us,
                    NEVER,
                    doing.asked,
                    Saw::Unknown,
                );
            }
        }
        for index in 0..self.speakers.len() {
            self.forget(index);
        }
    }

    /// Takes what concerns the applications.
    pub fn take(&mut self, world: &mut World, happening: Happening) {
        match happening {
            Happening::Alarm { name } => {
                let index = name as usize;
                match index.checked_sub(self.callers.len()) {
                    None => self.caller_begins(world, index),
                    Some(speaker) => self.speaker_begins(world, speaker),
                }
            }
            Happening::Answer { token, outcome } => {
                if let Some(index) = self.calls.remove(&token) {
                    self.caller_answered(world, index, token, Some(outcome));
                }
            }
            Happening::CallLost { token } => {
                if let Some(index) = self.calls.remove(&token) {
                    self.caller_answered(world, index, token, None);
                }
            }
            Happening::Bytes { connection, bytes } => {
                if let Some(&index) = self.connections.get(&connection) {
                    self.speaker_hears(world, index, &bytes);
                }
            }
            Happening::Closed { connection } => {
                if let Some(index) = self.connections.remove(&connection) {
                    self.speakers[index].connection = None;
                    self.forget(index);
                    let pause_us = 20_000 + self.chance.exponential(100_000);
                    self.think_again(world, self.callers.len() + index, pause_us);
                }
            }
        }
    }

    fn think_again(&mut self, world: &mut World, application: usize, pause_us: u64) {
        if !self.resting {
            world.alarm(pause_us, application as u64);
        }
    }

    fn record(
        &mut self,
        client: u32,
        key: KeyId,
        invoked_us: u64,
        returned_us: u64,
        asked: Asked,
        saw: Saw,
    ) {
        let (version, value) = match (saw, asked) {
            (Saw::Present { version, value, .. }, _) => (version, value),
            (Saw::Done { version, .. }, Asked::Put { value, .. }) => (version, Some(value)),
            (Saw::Done { version, .. }, _) => (version, None),
            (Saw::Refused { version }, _) => (version, None),
            _ => (None, None),
        };
        if let Some(version) = version {
            let known = self.versions.entry(key).or_insert((version, value));
            if known.0 < version {
                *known = (version, value);
            } else if known.0 == version && value.is_some() {
                known.1 = value;
            }
        }
        let operation = Operation {
            client,
            key,
            invoked_us,
            returned_us,
            asked,
            saw,
        };
        self.history.operations.push(operation);
    }

    fn gateway(&mut self) -> PlaceId {
        *self.chance.pick(&self.gateways)
    }

    fn pick_key(&mut self, classes: &[(KeyClass, u64)]) -> KeyId {
        let total: u64 = classes.iter().map(|(_, weight)| weight).sum();
        let mut drawn = self.chance.below(total);
        for &(class, weight) in classes {
            if drawn < weight {
                let keys = self.history.keys.of(class);
                return *self.chance.pick(&keys);
            }
            drawn -= weight;
        }
        unreachable!("a draw below the sum of the weights ends at one of them")
    }

    fn new_value(&mut self, key: KeyId) -> ValueId {
        let bytes = match self.chance.percent(self.habits.large_percent) {
            true => self
                .chance
                .between(1_000, u64::from(self.habits.large_bytes_max)),
            false => self.chance.between(10, 300),
        };
        self.history.values.make(key, bytes as u32)
    }

    // ---- callers ----

    fn caller_begins(&mut self, world: &mut World, index: usize) {
        if self.resting || self.callers[index].doing.is_some() {
            return;
        }
        let key = self.pick_key(&[
            (KeyClass::Hot, 35),
            (KeyClass::Cold, 45),
            (KeyClass::Lock, 5),
            (KeyClass::Chain, 10),
            (KeyClass::Flushed, 5),
        ]);
        let looks = self.chance.percent(60);
        let (key, (asked, op)) = match self.lately_removed.take().filter(|_| looks) {
            Some(removed) => (removed, (Asked::Read, Op::Get)),
            None if self.history.keys.class(key) == KeyClass::Chain => {
                (key, self.next_in_chain(key))
            }
            None => (key, self.next_deed(key)),
        };
        if matches!(asked, Asked::Delete { .. }) {
            self.lately_removed = Some(key);
        }
        let command = Command {
            namespace: self.history.keys.namespace(key),
            key: self.history.keys.bytes(key),
            op,
        };
        let caller = &mut self.callers[index];
        // Now and then a client does not identify itself, and its gateway does instead.
        let once = (command.op.is_write() && self.chance.percent(85)).then(|| {
            caller.sequence += 1;
            let now_ms = world.cluster_time.at_ms(world.now_us()).unwrap_or(0);
            let settled_ms = now_ms.saturating_sub(CLOCK_MARGIN_MS);
            caller
                .unsettled
                .retain(|_, lease_until| lease_until.0 >= settled_ms);
            Once {
                client: caller.id,
                sequence: caller.sequence,
                acknowledged: *caller.unsettled.keys().next().unwrap_or(&caller.sequence),
                lease_until: ClusterMs(now_ms + self.chance.between(5_000, 30_000)),
            }
        });
        caller.doing = Some(Doing {
            key,
            asked,
            command,
            once,
            invoked_us: world.now_us(),
            repeats: 0,
            attempts: 0,
            tokens: Vec::new(),
            answer: None,
            unsettled: false,
        });
        self.send_call(world, index);
        if once.is_some() && self.faults.has(Fault::ClientRepeat) && self.chance.percent(8) {
            world.counts.count(Fault::ClientRepeat);
            self.send_call(world, index);
        }
    }

    fn send_call(&mut self, world: &mut World, index: usize) {
        let gateway = self.gateway();
        let doing = self.callers[index]
            .doing
            .as_mut()
            .expect("a caller sends what it is doing");
        let call = Call {
            command: doing.command.clone(),
            once: doing.once,
            within_ms: None,
        };
        let token = world.call(gateway, call);
        doing.tokens.push(token);
        doing.attempts += 1;
        self.calls.insert(token, index);
    }

    fn next_deed(&mut self, key: KeyId) -> (Asked, Op) {
        let known = self.versions.get(&key).copied();
        let (when, condition, touch_condition) = match (self.chance.below(10), known) {
            (0, Some((version, _))) => (
                When::Version(version),
                Condition::Version(holdfast_format::Version(version)),
                TouchCondition::Version(holdfast_format::Version(version)),
            ),
            (1, Some((_, Some(value)))) => {
                let bytes = self.history.values.bytes(value);
                let touch = TouchCondition::ValueIs(bytes.clone());
                (When::Value(value), Condition::ValueIs(bytes), touch)
            }
            (2, _) => (When::Absent, Condition::Absent, TouchCondition::Always),
            (3, _) => (When::Present, Condition::Present, TouchCondition::Always),
            _ => (When::Always, Condition::Always, TouchCondition::Always),
        };
        match self.chance.below(100) {
            0..=39 => (Asked::Read, Op::Get),
            40..=44 => (Asked::Read, Op::Stat),
            45..=79 => {
                let value = self.new_value(key);
                let (expiry, change) = self.new_expiry();
                let op = Op::Put {
                    value: self.history.values.bytes(value),
                    condition,
                    expiry: change,
                    return_old: self.chance.percent(15),
                };
                (
                    Asked::Put {
                        value,
                        when,
                        expiry,
                    },
                    op,
                )
            }
            80..=89 => {
                let (expiry, change) = match self.chance.below(3) {
                    0 => (Expiry::Inherited, ExpiryChange::Slide),
                    _ => self.new_touch(),
                };
                let when = match touch_condition {
                    TouchCondition::Always => When::Always,
                    _ => when,
                };
                let op = Op::Touch {
                    condition: touch_condition,
                    expiry: change,
                    return_value: self.chance.percent(30),
                };
                // PERSIST leaves an absolute deadline in force: only the answer says which.
                let expiry = if expiry == Expiry::Never {
                    Expiry::Inherited
                } else {
                    expiry
                };
                (Asked::Touch { when, expiry }, op)
            }
            _ => {
                let (when, condition) = match condition {
                    Condition::Absent => (When::Always, Condition::Always),
                    condition => (when, condition),
                };
                (
                    Asked::Delete { when },
                    Op::Delete {
                        condition,
                        return_old: self.chance.percent(30),
                    },
                )
            }
        }
    }

    fn next_in_chain(&mut self, key: KeyId) -> (Asked, Op) {
        let Some(&(version, _)) = self.versions.get(&key).filter(|_| self.chance.percent(70))
        else {
            if self.chance.percent(60) {
                return (Asked::Read, Op::Get);
            }
            let value = self.new_value(key);
            let op = Op::Put {
                value: self.history.values.bytes(value),
                condition: Condition::Absent,
                expiry: ExpiryChange::Clear,
                return_old: false,
            };
            return (
                Asked::Put {
                    value,
                    when: When::Absent,
                    expiry: Expiry::Never,
                },
                op,
            );
        };
        let value = self.new_value(key);
        let op = Op::Put {
            value: self.history.values.bytes(value),
            condition: Condition::Version(holdfast_format::Version(version)),
            expiry: ExpiryChange::Clear,
            return_old: self.chance.percent(30),
        };
        (
            Asked::Put {
                value,
                when: When::Version(version),
                expiry: Expiry::Never,
            },
            op,
        )
    }

    /// Like `new_expiry`, without whole new sessions: those are written again, under a new version.
    fn new_touch(&mut self) -> (Expiry, ExpiryChange) {
        match self.new_expiry() {
            (Expiry::InMs(ms), _) => (Expiry::InMs(ms), ExpiryChange::In { ms: ms as i64 }),
            other => other,
        }
    }

    fn new_expiry(&mut self) -> (Expiry, ExpiryChange) {
        let ms = match self.chance.below(4) {
            0 => self.chance.between(100, 1_500),
            1 => self.chance.between(1_000, 8_000),
            _ => self.chance.between(60_000, 600_000),
        };
        match self.chance.below(10) {
            0..=3 => (Expiry::Never, ExpiryChange::Clear),
            4..=6 => (Expiry::InMs(ms), ExpiryChange::In { ms: ms as i64 }),
            7 => (Expiry::Inherited, ExpiryChange::Keep),
            _ => {
                let idle_ms = Some(ms as u32);
                let longest_ms = ms + self.chance.between(0, 5_000);
                let absolute = self
                    .chance
                    .percent(50)
                    .then_some(AbsoluteDeadline::InMs(longest_ms));
                (
                    Expiry::InMs(ms),
                    ExpiryChange::Session { idle_ms, absolute },
                )
            }
        }
    }

    fn caller_answered(
        &mut self,
        world: &mut World,
        index: usize,
        token: u64,
        outcome: Option<Outcome>,
    ) {
        let Some(mut doing) = self.callers[index].doing.take() else {
            return;
        };
        doing.tokens.retain(|&other| other != token);
        let is_write = doing.command.op.is_write();
        let mut not_executed = false;
        let saw = match outcome {
            None => {
                doing.unsettled = true;
                None
            }
            Some(Outcome::Failed(failure)) => {
                not_executed = match failure {
                    Failure::OutcomeUnknown => {
                        doing.unsettled = true;
                        false
                    }
                    Failure::StaleClient => false,
                    Failure::Busy | Failure::OutOfMemory | Failure::Unreachable => true,
                    // Not an application's business: gateways retry these.
                    other => {
                        let text = format!("an application was told {other:?}");
                        self.history.violations.push(text);
                        true
                    }
                };
                None
            }
            Some(outcome) => self.understand(&doing, outcome),
        };
        match (saw, doing.answer) {
            (Some(saw), Some(before)) if saw != before => {
                let key = self.history.keys.name(doing.key);
                self.history.violations.push(format!(
                    "{key}: one write was answered twice, differently: {before:?} and {saw:?}"
                ));
            }
            (Some(saw), _) => doing.answer = Some(saw),
            (None, _) => {}
        }
        if !doing.tokens.is_empty() {
            // A refusal to one of two attempts says nothing about the other.
            self.callers[index].doing = Some(doing);
            return;
        }
        if doing.answer.is_none() {
            // A2: with a `Once` the same write may be asked for again.
            let was_sent_twice = doing.attempts > 1;
            let repeats_left = doing.repeats < REPEATS_MAX;
            if is_write && doing.once.is_some() && repeats_left && self.chance.percent(70) {
                doing.repeats += 1;
                self.callers[index].doing = Some(doing);
                return self.send_call(world, index);
            }
            let unknown = !not_executed || was_sent_twice;
            if is_write && unknown {
                self.record(
                    index as u32,
                    doing.key,
                    doing.invoked_us,
                    NEVER,
                    doing.asked,
                    Saw::Unknown,
                );
            }
        }
        if let Some(saw) = doing.answer {
            let now_us = world.now_us();
            self.record(
                index as u32,
                doing.key,
                doing.invoked_us,
                now_us,
                doing.asked,
                saw,
            );
        }
        if let Some(once) = doing.once.filter(|_| doing.unsettled) {
            let caller = &mut self.callers[index];
            caller.unsettled.insert(once.sequence, once.lease_until);
        }
        let pause_us = self.chance.exponential(self.habits.think_us);
        self.think_again(world, index, pause_us);
    }

    fn understand(&mut self, doing: &Doing, outcome: Outcome) -> Option<Saw> {
        let key = doing.key;
        let wants_value = match &doing.command.op {
            Op::Get => true,
            Op::Touch { return_value, .. } => *return_value,
            _ => false,
        };
        Some(match outcome {
            Outcome::Value { value, meta } => {
                let value = match wants_value {
                    true => Some(self.history.recognise(key, &value)?),
                    false => None,
                };
                Saw::Present {
                    value,
                    version: Some(meta.version.0),
                    deadline: deadline(&meta),
                }
            }
            Outcome::Absent { version } => Saw::Absent {
                version: Some(version.0),
            },
            Outcome::Done { meta, old } => {
                let asked_for_old = matches!(
                    doing.command.op,
                    Op::Put {
                        return_old: true,
                        ..
                    } | Op::Delete {
                        return_old: true,
                        ..
                    }
                );
                let old = match (asked_for_old, old) {
                    (false, _) => None,
                    (true, None) => Some(None),
                    (true, Some(bytes)) => Some(Some(self.history.recognise(key, &bytes)?)),
                };
                Saw::Done {
                    version: Some(meta.version.0),
                    deadline: deadline(&meta),
                    old,
                }
            }
            Outcome::Refused {
                version, current, ..
            } => match current {
                Some(meta) => Saw::Refused {
                    version: Some(meta.version.0),
                },
                None => Saw::Absent {
                    version: Some(version.0),
                },
            },
            other => {
                let text = format!("{:?} was answered {other:?}", doing.command);
                self.history.violations.push(text);
                return None;
            }
        })
    }
}

fn deadline(meta: &Meta) -> Deadline {
    meta.deadline
        .map_or(Deadline::Never, |deadline| Deadline::At(deadline.0))
}
