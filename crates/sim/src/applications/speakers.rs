//! Applications with a RESP connection: what they say, and what they make of the replies.

use bytes::Bytes;

use super::{Applications, COMPARE_AND_DELETE, Expected, ExpectedKind};
use crate::faults::Fault;
use crate::history::{Asked, Deadline, Expiry, KeyClass, KeyId, NEVER, Saw, When};
use crate::reply::{Reply, ReplyReader, command};
use crate::world::World;

impl Applications {
    pub(super) fn speaker_begins(&mut self, world: &mut World, index: usize) {
        if self.resting || !self.speakers[index].waiting.is_empty() {
            return;
        }
        if self.speakers[index].connection.is_none() {
            let gateway = self.gateway();
            let connection = world.connect(gateway);
            self.speakers[index].gateway = Some(gateway);
            self.connections.insert(connection, index);
            let speaker = &mut self.speakers[index];
            speaker.connection = Some(connection);
            speaker.reader = ReplyReader::default();
            speaker.namespace = 0;
            if self.chance.percent(50) {
                self.say(world, index, ExpectedKind::Fine, &[b"HELLO", b"3"]);
            }
        }
        if self.faults.has(Fault::ClientDisconnect) && self.chance.per_million(15_000) {
            world.counts.count(Fault::ClientDisconnect);
            // In the middle of a command, as likely as not.
            self.next_command(world, index);
            let connection = self.speakers[index]
                .connection
                .take()
                .expect("connected above");
            self.connections.remove(&connection);
            world.disconnect(connection);
            self.forget(index);
            return self.think_again(world, self.callers.len() + index, 50_000);
        }
        for _ in 0..*self.chance.pick(&[1, 1, 1, 2, 4]) {
            self.next_command(world, index);
        }
    }

    fn say(&mut self, world: &mut World, index: usize, kind: ExpectedKind, words: &[&[u8]]) {
        let speaker = &mut self.speakers[index];
        let connection = speaker
            .connection
            .expect("a speaker connects before it speaks");
        speaker.waiting.push_back(Expected {
            invoked_us: world.now_us(),
            kind,
        });
        world.send_bytes(connection, command(words));
    }

    fn next_command(&mut self, world: &mut World, index: usize) {
        // Registers belong to the first few speakers, so that the general checker can cope.
        let register = if index < 4 { 25 } else { 0 };
        let classes = [
            (KeyClass::Hot, 25),
            (KeyClass::Cold, 35),
            (KeyClass::Lock, 8),
            (KeyClass::Register, register),
            (KeyClass::Flushed, 8),
        ];
        let mut key = self.pick_key(&classes);
        // Whoever knows the cluster asks where the key is: mostly so does a user of a gateway beside a shard.
        let gateway = self.speakers[index].gateway;
        let home = gateway.and_then(|gateway| world.shard_beside(gateway));
        for _ in 0..if home.is_some() { 4 } else { 0 } {
            if world.owner(&self.history.keys.bytes(key)) == home {
                break;
            }
            key = self.pick_key(&classes);
        }
        let namespace = self.history.keys.namespace(key).0;
        if self.speakers[index].namespace != namespace {
            self.speakers[index].namespace = namespace;
            let number = namespace.to_string();
            self.say(
                world,
                index,
                ExpectedKind::Fine,
                &[b"SELECT", number.as_bytes()],
            );
        }
        let writers = self.speakers.len() - self.habits.onlookers as usize;
        if index >= writers {
            let name = self.history.keys.bytes(key);
            let kind = ExpectedKind::Values(vec![key]);
            return self.say(world, index, kind, &[b"GET", &name]);
        }
        if namespace == 1 && self.chance.percent(3) {
            return self.say(world, index, ExpectedKind::Flushed, &[b"FLUSHDB"]);
        }
        match self.history.keys.class(key) {
            KeyClass::Lock => self.next_lock_command(world, index, key),
            KeyClass::Register => self.next_session_command(world, index, key, false),
            _ => self.next_session_command(world, index, key, true),
        }
    }

    fn next_lock_command(&mut self, world: &mut World, index: usize, key: KeyId) {
        let name = self.history.keys.bytes(key);
        let held = self.versions.get(&key).and_then(|known| known.1);
        match (self.chance.below(3), held) {
            (0, _) | (_, None) => {
                let value = self.history.values.make(key, 20);
                let ms = self.chance.between(500, 4_000);
                let asked = Asked::Put {
                    value,
                    when: When::Absent,
                    expiry: Expiry::InMs(ms),
                };
                // Nobody but the holder knows its token, so remember it for the release.
                let version = self.versions.get(&key).map_or(0, |known| known.0);
                self.versions.insert(key, (version, Some(value)));
                let bytes = self.history.values.bytes(value);
                let ms = ms.to_string();
                let words: [&[u8]; 6] = [b"SET", &name, &bytes, b"NX", b"PX", ms.as_bytes()];
                self.say(
                    world,
                    index,
                    ExpectedKind::Set {
                        key,
                        asked,
                        gives_old: false,
                    },
                    &words,
                );
            }
            (1, Some(value)) => {
                let bytes = self.history.values.bytes(value);
                let words: [&[u8]; 5] = [b"EVAL", COMPARE_AND_DELETE, b"1", &name, &bytes];
                self.say(
                    world,
                    index,
                    ExpectedKind::ComparedAndRemoved { key, value },
                    &words,
                );
            }
            _ => self.say(
                world,
                index,
                ExpectedKind::Values(vec![key]),
                &[b"GET", &name],
            ),
        }
    }

    fn next_session_command(&mut self, world: &mut World, index: usize, key: KeyId, expires: bool) {
        let name = self.history.keys.bytes(key);
        let ms = match self.chance.below(3) {
            0 => self.chance.between(100, 2_000),
            _ => self.chance.between(5_000, 500_000),
        };
        let number = ms.to_string();
        let lasting = Asked::Touch {
            when: When::Always,
            expiry: Expiry::InMs(ms),
        };
        match self.chance.below(100) {
            0..=34 => self.say(
                world,
                index,
                ExpectedKind::Values(vec![key]),
                &[b"GET", &name],
            ),
            35..=39 => self.say(world, index, ExpectedKind::Exists(key), &[b"EXISTS", &name]),
            40..=46 if expires => {
                let class = self.history.keys.class(key);
                let same = self.history.keys.of(class);
                let mut keys = vec![key];
                for _ in 0..self.chance.below(4) {
                    let other = *self.chance.pick(&same);
                    if !keys.contains(&other) {
                        keys.push(other);
                    }
                }
                let names: Vec<Bytes> = keys.iter().map(|&k| self.history.keys.bytes(k)).collect();
                let mut words: Vec<&[u8]> = vec![b"MGET"];
                words.extend(names.iter().map(|name| name.as_ref()));
                self.say(world, index, ExpectedKind::Values(keys), &words);
            }
            47..=76 => {
                let value = self.new_value(key);
                let bytes = self.history.values.bytes(value);
                let mut words: Vec<&[u8]> = vec![b"SET", &name, &bytes];
                let when = match self.chance.below(8) {
                    0 => When::Absent,
                    1 => When::Present,
                    _ => When::Always,
                };
                match when {
                    When::Absent => words.push(b"NX"),
                    When::Present => words.push(b"XX"),
                    _ => {}
                }
                let gives_old = when == When::Always && self.chance.percent(10);
                if gives_old {
                    words.push(b"GET");
                }
                let mut expiry = Expiry::Never;
                match self.chance.below(10) {
                    0..=5 if expires => {
                        words.extend([b"PX".as_slice(), number.as_bytes()]);
                        expiry = Expiry::InMs(ms);
                    }
                    6 if expires => {
                        words.push(b"KEEPTTL");
                        expiry = Expiry::Inherited;
                    }
                    _ => {}
                }
                let asked = Asked::Put {
                    value,
                    when,
                    expiry,
                };
                self.say(
                    world,
                    index,
                    ExpectedKind::Set {
                        key,
                        asked,
                        gives_old,
                    },
                    &words,
                );
            }
            77..=82 if expires => {
                let words: [&[u8]; 3] = [b"PEXPIRE", &name, number.as_bytes()];
                self.say(
                    world,
                    index,
                    ExpectedKind::Touched {
                        key,
                        asked: lasting,
                    },
                    &words,
                );
            }
            83..=86 if expires => {
                let words: [&[u8]; 4] = [b"GETEX", &name, b"PX", number.as_bytes()];
                self.say(
                    world,
                    index,
                    ExpectedKind::TouchedValue {
                        key,
                        asked: lasting,
                    },
                    &words,
                );
            }
            87..=89 => {
                self.say(
                    world,
                    index,
                    ExpectedKind::RemovedValue { key },
                    &[b"GETDEL", &name],
                );
            }
            90..=93 => {
                let Some(value) = self.versions.get(&key).and_then(|known| known.1) else {
                    return;
                };
                let bytes = self.history.values.bytes(value);
                let words: [&[u8]; 5] = [b"EVAL", COMPARE_AND_DELETE, b"1", &name, &bytes];
                self.say(
                    world,
                    index,
                    ExpectedKind::ComparedAndRemoved { key, value },
                    &words,
                );
            }
            94..=97 => {
                self.lately_removed = Some(key);
                self.say(
                    world,
                    index,
                    ExpectedKind::Removed { key },
                    &[b"DEL", &name],
                );
            }
            _ => self.say(
                world,
                index,
                ExpectedKind::Values(vec![key]),
                &[b"GET", &name],
            ),
        }
    }

    pub(super) fn speaker_hears(&mut self, world: &mut World, index: usize, bytes: &[u8]) {
        self.speakers[index].reader.feed(bytes);
        loop {
            match self.speakers[index].reader.next_reply() {
                Ok(Some(reply)) => match self.speakers[index].waiting.pop_front() {
                    Some(expected) => self.reply_came(world.now_us(), index, expected, reply),
                    None => {
                        self.history
                            .violations
                            .push(format!("a reply too many: {reply:?}"));
                    }
                },
                Ok(None) => break,
                Err(error) => {
                    self.history.violations.push(format!("not RESP: {error}"));
                    break;
                }
            }
        }
        if self.speakers[index].waiting.is_empty() {
            let pause_us = self.chance.exponential(self.habits.think_us);
            self.think_again(world, self.callers.len() + index, pause_us);
        }
    }

    fn reply_came(&mut self, now_us: u64, index: usize, expected: Expected, reply: Reply) {
        let invoked_us = expected.invoked_us;
        let client = (self.callers.len() + index) as u32;
        if let Reply::Error(error) = &reply {
            return self.error_came(client, &expected, error);
        }
        let absent = Saw::Absent { version: None };
        let done = Saw::Done {
            version: None,
            deadline: Deadline::NotSaid,
            old: None,
        };
        let present = |value| Saw::Present {
            value,
            version: None,
            deadline: Deadline::NotSaid,
        };
        let (key, asked, saw) = match (expected.kind, reply) {
            (ExpectedKind::Fine, _) => return,
            (ExpectedKind::Values(keys), reply) => {
                let replies = match reply {
                    Reply::Array(replies) => replies,
                    other => vec![other],
                };
                if replies.len() != keys.len() {
                    let text = format!("{} keys were asked for: {replies:?}", keys.len());
                    return self.history.violations.push(text);
                }
                for (key, reply) in keys.into_iter().zip(replies) {
                    let saw = match reply {
                        Reply::Bulk(bytes) => match self.history.recognise(key, &bytes) {
                            Some(value) => present(Some(value)),
                            None => continue,
                        },
                        Reply::Null => absent,
                        other => {
                            self.history.violations.push(format!("no value: {other:?}"));
                            continue;
                        }
                    };
                    self.record(client, key, invoked_us, now_us, Asked::Read, saw);
                }
                return;
            }
            (ExpectedKind::Exists(key), Reply::Integer(count)) => (
                key,
                Asked::Read,
                if count == 1 { present(None) } else { absent },
            ),
            (
                ExpectedKind::Set {
                    key,
                    asked,
                    gives_old: true,
                },
                Reply::Bulk(bytes),
            ) => {
                let Some(old) = self.history.recognise(key, &bytes) else {
                    return;
                };
                let old = Some(Some(old));
                (
                    key,
                    asked,
                    Saw::Done {
                        version: None,
                        deadline: Deadline::NotSaid,
                        old,
                    },
                )
            }
            (
                ExpectedKind::Set {
                    key,
                    asked,
                    gives_old: true,
                },
                Reply::Null,
            ) => {
                let old = Some(None);
                (
                    key,
                    asked,
                    Saw::Done {
                        version: None,
                        deadline: Deadline::NotSaid,
                        old,
                    },
                )
            }
            (ExpectedKind::Set { key, asked, .. }, Reply::Simple(_)) => (key, asked, done),
            (ExpectedKind::Set { key, asked, .. }, Reply::Null) => match asked {
                Asked::Put {
                    when: When::Absent, ..
                } => (key, asked, Saw::Refused { version: None }),
                _ => (key, asked, absent),
            },
            (ExpectedKind::Removed { key }, Reply::Integer(count)) => {
                let saw = if count == 1 { done } else { absent };
                (key, Asked::Delete { when: When::Always }, saw)
            }
            (ExpectedKind::RemovedValue { key }, Reply::Bulk(bytes)) => {
                let Some(old) = self.history.recognise(key, &bytes) else {
                    return;
                };
                let old = Some(Some(old));
                let saw = Saw::Done {
                    version: None,
                    deadline: Deadline::NotSaid,
                    old,
                };
                (key, Asked::Delete { when: When::Always }, saw)
            }
            (ExpectedKind::RemovedValue { key }, Reply::Null) => {
                (key, Asked::Delete { when: When::Always }, absent)
            }
            (ExpectedKind::ComparedAndRemoved { key, value }, Reply::Integer(count)) => {
                let saw = if count == 1 {
                    done
                } else {
                    Saw::RefusedOrAbsent
                };
                (
                    key,
                    Asked::Delete {
                        when: When::Value(value),
                    },
                    saw,
                )
            }
            (ExpectedKind::Touched { key, asked }, Reply::Integer(count)) => {
                (key, asked, if count == 1 { done } else { absent })
            }
            (ExpectedKind::TouchedValue { key, asked }, Reply::Bulk(bytes)) => {
                let Some(value) = self.history.recognise(key, &bytes) else {
                    return;
                };
                (key, asked, present(Some(value)))
            }
            (ExpectedKind::TouchedValue { key, asked }, Reply::Null) => (key, asked, absent),
            (ExpectedKind::Flushed, Reply::Simple(_)) => {
                return self.record_flush(client, invoked_us, now_us, done);
            }
            (kind, reply) => {
                return self
                    .history
                    .violations
                    .push(format!("{kind:?} was answered {reply:?}"));
            }
        };
        self.record(client, key, invoked_us, now_us, asked, saw);
    }

    fn record_flush(&mut self, client: u32, invoked_us: u64, returned_us: u64, saw: Saw) {
        for key in self.history.keys.of(KeyClass::Flushed) {
            self.record(client, key, invoked_us, returned_us, Asked::Flush, saw);
        }
    }

    fn error_came(&mut self, client: u32, expected: &Expected, error: &str) {
        let refused = error.starts_with("OOM")
            || error.starts_with("BUSY")
            || error.contains("nothing was executed")
            || error.contains("retry later");
        if refused {
            return;
        }
        if error.contains("unknown") && error.contains("outcome") {
            return self.outcome_unknown(client, expected);
        }
        let text = format!("{:?} was answered -{error}", expected.kind);
        self.history.violations.push(text);
    }

    fn outcome_unknown(&mut self, client: u32, expected: &Expected) {
        let invoked_us = expected.invoked_us;
        let delete = |when| Asked::Delete { when };
        let (key, asked) = match expected.kind {
            ExpectedKind::Fine | ExpectedKind::Values(_) | ExpectedKind::Exists(_) => return,
            ExpectedKind::Set { key, asked, .. }
            | ExpectedKind::Touched { key, asked }
            | ExpectedKind::TouchedValue { key, asked } => (key, asked),
            ExpectedKind::Removed { key } | ExpectedKind::RemovedValue { key } => {
                (key, delete(When::Always))
            }
            ExpectedKind::ComparedAndRemoved { key, value } => (key, delete(When::Value(value))),
            ExpectedKind::Flushed => {
                return self.record_flush(client, invoked_us, NEVER, Saw::Unknown);
            }
        };
        self.record(client, key, invoked_us, NEVER, asked, Saw::Unknown);
    }

    /// A speaker's connection is gone: what it waited for may or may not happen.
    pub(super) fn forget(&mut self, index: usize) {
        let client = (self.callers.len() + index) as u32;
        for expected in std::mem::take(&mut self.speakers[index].waiting) {
            self.outcome_unknown(client, &expected);
        }
    }
}
