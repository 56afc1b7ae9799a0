//! A world to write scenarios in: a client that asks and waits, and names for who is where.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use holdfast_cluster::Call;
use holdfast_format::{ClientId, ClusterMs, Namespace};
use holdfast_sim::{Happening, PlaceId, Setup, Tells, World};
use holdfast_wire::{Command, Condition, ExpiryChange, Message, Once, Op, Outcome, Role};

/// A settled cluster and a client of it.
pub struct Stage {
    pub world: World,
    answers: BTreeMap<u64, Option<Outcome>>,
}

pub fn put(value: &str) -> Op {
    put_for(value, ExpiryChange::Clear)
}

pub fn put_for(value: &str, expiry: ExpiryChange) -> Op {
    Op::Put {
        value: Bytes::copy_from_slice(value.as_bytes()),
        condition: Condition::Always,
        expiry,
        return_old: false,
    }
}

pub fn delete() -> Op {
    Op::Delete {
        condition: Condition::Always,
        return_old: false,
    }
}

impl Stage {
    /// Starts a cluster and waits until all of it is ready.
    pub fn new(setup: Setup) -> Stage {
        let mut stage = Stage {
            world: World::new(setup, Tells::Nothing),
            answers: BTreeMap::new(),
        };
        stage.until("the cluster is ready", 10_000, |stage| {
            stage.world.is_ready()
        });
        stage
    }

    pub fn small(seed: u64) -> Stage {
        Stage::new(Setup::small(seed))
    }

    /// Lets so much time pass.
    pub fn pass(&mut self, ms: u64) {
        let until_us = self.world.now_us() + ms * 1_000;
        while let Some(happening) = self.world.advance(until_us) {
            match happening {
                Happening::Answer { token, outcome } => {
                    self.answers.insert(token, Some(outcome));
                }
                Happening::CallLost { token } => {
                    self.answers.insert(token, None);
                }
                other => panic!("scenarios only make calls, not {other:?}"),
            }
        }
    }

    /// Lets time pass until it is so, which must be within the limit.
    pub fn until(&mut self, what: &str, limit_ms: u64, so: impl Fn(&Stage) -> bool) {
        for _ in 0..limit_ms {
            if so(self) {
                return;
            }
            self.pass(1);
        }
        panic!(
            "not within {limit_ms} ms: {what}; not ready: {:?}",
            self.world.unready()
        );
    }

    /// Asks through a gateway and goes on; `answer` has the outcome later.
    pub fn begin(&mut self, gateway: usize, key: &str, op: Op, once: Option<Once>) -> u64 {
        let command = Command {
            namespace: Namespace(0),
            key: Bytes::copy_from_slice(key.as_bytes()),
            op,
        };
        let gateway = self.world.places_of(Role::Gateway)[gateway];
        let within_ms = Some(20_000);
        self.world.call(
            gateway,
            Call {
                command,
                once,
                within_ms,
            },
        )
    }

    /// The outcome, once it is there.
    pub fn answer(&self, token: u64) -> Option<&Outcome> {
        self.answers.get(&token).and_then(|answer| answer.as_ref())
    }

    pub fn wait(&mut self, token: u64) -> Outcome {
        self.until("an answer", 25_000, |stage| {
            stage.answers.contains_key(&token)
        });
        self.answer(token).expect("the gateway lives").clone()
    }

    pub fn ask(&mut self, key: &str, op: Op) -> Outcome {
        let token = self.begin(0, key, op, None);
        self.wait(token)
    }

    pub fn set(&mut self, key: &str, value: &str) {
        let outcome = self.ask(key, put(value));
        assert!(
            matches!(outcome, Outcome::Done { .. }),
            "{key}: {outcome:?}"
        );
    }

    pub fn del(&mut self, key: &str) {
        let outcome = self.ask(key, delete());
        assert!(
            matches!(outcome, Outcome::Done { .. }),
            "{key}: {outcome:?}"
        );
    }

    pub fn get(&mut self, key: &str) -> Option<String> {
        value_of(self.ask(key, Op::Get))
    }

    pub fn set_many(&mut self, keys: std::ops::Range<u32>, value: &str) {
        for key in keys {
            self.set(&format!("many:{key}"), &format!("{value}-{key}"));
        }
    }

    pub fn check_many(&mut self, keys: std::ops::Range<u32>, value: &str) {
        for key in keys {
            let expected = Some(format!("{value}-{key}"));
            assert_eq!(self.get(&format!("many:{key}")), expected, "many:{key}");
        }
    }

    pub fn once(&self, sequence: u64) -> Once {
        let now_ms = self
            .world
            .cluster_time
            .at_ms(self.world.now_us())
            .expect("it runs");
        Once {
            client: ClientId(0xC11E),
            sequence,
            acknowledged: 1,
            lease_until: ClusterMs(now_ms + 60_000),
        }
    }

    pub fn backup(&self, index: usize) -> PlaceId {
        self.world.places_of(Role::Backup)[index]
    }

    pub fn shard(&self, index: usize) -> PlaceId {
        self.world.places_of(Role::Shard)[index]
    }

    pub fn coordinator(&self) -> PlaceId {
        self.world.places_of(Role::Coordinator)[0]
    }

    pub fn owner(&self, key: &str) -> PlaceId {
        self.world
            .owner(key.as_bytes())
            .expect("every slot has an owner")
    }

    /// Kills a process and starts the next one after so long.
    pub fn crash_for(&mut self, place: PlaceId, ms: u64) {
        self.world.crash(place);
        self.world.start_in(place, ms * 1_000);
    }

    pub fn settle(&mut self) {
        self.until("all is well again", 30_000, |stage| stage.world.is_ready());
    }

    /// The backups that hold what a shard is appending to, as seen by the bytes it sends.
    pub fn holders_of_head(&mut self, key: &str) -> Vec<PlaceId> {
        let owner = self.owner(key);
        let seen: Rc<RefCell<Vec<PlaceId>>> = Rc::default();
        let sink = Rc::clone(&seen);
        self.world
            .set_filter(Some(Box::new(move |from, to, message| {
                if let (true, Message::Append(append)) = (from == owner, message)
                    && !append.bytes.is_empty()
                    && !sink.borrow().contains(&to)
                {
                    sink.borrow_mut().push(to);
                }
                false
            })));
        self.set(key, "looking for the head");
        self.world.set_filter(None);
        seen.take()
    }

    /// Says when a message of some kind was first sent.
    pub fn watch(&mut self, wanted: impl Fn(&Message) -> bool + 'static) -> Rc<RefCell<bool>> {
        let seen: Rc<RefCell<bool>> = Rc::default();
        let sink = Rc::clone(&seen);
        self.world.set_filter(Some(Box::new(move |_, _, message| {
            *sink.borrow_mut() |= wanted(message);
            false
        })));
        seen
    }
}

pub fn value_of(outcome: Outcome) -> Option<String> {
    match outcome {
        Outcome::Value { value, .. } => {
            Some(String::from_utf8(value.to_vec()).expect("scenarios write text"))
        }
        Outcome::Absent { .. } => None,
        other => panic!("a read was answered {other:?}"),
    }
}

/// An answer to a read that is allowed to fail.
pub fn value_if_any(outcome: Option<&Outcome>) -> Option<String> {
    match outcome {
        Some(Outcome::Value { .. }) => value_of(outcome.cloned().expect("it is some")),
        _ => None,
    }
}
