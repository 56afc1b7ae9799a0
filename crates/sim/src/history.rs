//! What applications asked for and what they were told: the only thing the checkers look at.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_format::Namespace;

/// A key of the workload.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct KeyId(pub u32);

/// A value of the workload. Every write writes a value of its own, so that a value names its write.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct ValueId(pub u32);

/// A version, as the answers give it.
pub type Version = u64;

/// An answer that never came, or one that says that nobody knows.
pub const NEVER: u64 = u64::MAX;

/// One operation on one key.
#[derive(Clone, Debug)]
pub struct Operation {
    pub client: u32,
    pub key: KeyId,
    /// The world's time when it was asked for and when it was answered (`NEVER` if it was not).
    pub invoked_us: u64,
    pub returned_us: u64,
    pub asked: Asked,
    pub saw: Saw,
}

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    Read,
    Put {
        value: ValueId,
        when: When,
        expiry: Expiry,
    },
    Touch {
        when: When,
        expiry: Expiry,
    },
    Delete {
        when: When,
    },
    /// FLUSHDB, noted at every key of the namespace.
    Flush,
}

/// The condition of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    Always,
    Absent,
    Present,
    Version(Version),
    Value(ValueId),
}

/// How a write changes expiry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expiry {
    Never,
    InMs(u64),
    /// Whatever it was, or by the session's own idle time: only the answer says.
    Inherited,
}

/// What the answer said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Saw {
    /// Nobody knows; the operation may still happen.
    Unknown,
    /// The key is there. For a touch: and the touch was done.
    Present {
        value: Option<ValueId>,
        version: Option<Version>,
        deadline: Deadline,
    },
    /// Not there, and later versions are greater.
    Absent { version: Option<Version> },
    /// Done; `old` is what was there before, if the answer tells.
    Done {
        version: Option<Version>,
        deadline: Deadline,
        old: Option<Option<ValueId>>,
    },
    /// The condition did not hold, and the key is there.
    Refused { version: Option<Version> },
    /// The condition did not hold; whether the key is there was not said.
    RefusedOrAbsent,
}

/// A deadline in an answer, in milliseconds of cluster time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deadline {
    NotSaid,
    Never,
    At(u64),
}

/// Every operation of a run, with the keys and values it used.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub operations: Vec<Operation>,
    pub keys: Keys,
    pub values: Values,
    /// Promises seen to be broken while recording: bytes that nobody wrote, two answers to one write.
    pub violations: Vec<String>,
}

impl History {
    /// The operations of each key, in the order in which they were asked for.
    pub fn by_key(&self) -> BTreeMap<KeyId, Vec<&Operation>> {
        let mut by_key: BTreeMap<KeyId, Vec<&Operation>> = BTreeMap::new();
        for operation in &self.operations {
            by_key.entry(operation.key).or_default().push(operation);
        }
        for operations in by_key.values_mut() {
            operations.sort_by_key(|operation| operation.invoked_us);
        }
        by_key
    }

    /// Operations whose outcome is known.
    pub fn answered(&self) -> u64 {
        self.operations
            .iter()
            .filter(|operation| operation.returned_us != NEVER)
            .count() as u64
    }

    /// Takes bytes an application was given for `key` back to the write they came from.
    pub fn recognise(&mut self, key: KeyId, bytes: &[u8]) -> Option<ValueId> {
        let found = self.values.recognise(bytes);
        match found {
            Some((value, written_to)) if written_to == key => Some(value),
            Some((value, written_to)) => {
                let (key, written_to) = (self.keys.name(key), self.keys.name(written_to));
                self.violations
                    .push(format!("{key} answered {value:?}, written to {written_to}"));
                None
            }
            None => {
                let key = self.keys.name(key);
                let head = String::from_utf8_lossy(&bytes[..bytes.len().min(24)]).into_owned();
                self.violations
                    .push(format!("{key} answered bytes nobody wrote: {head:?}"));
                None
            }
        }
    }
}

/// What a group of keys is used for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum KeyClass {
    /// Everything happens to it, often.
    Hot,
    /// Everything happens to it, seldom.
    Cold,
    /// Taken with NX and released by its holder only.
    Lock,
    /// Each write names the version it replaces.
    Chain,
    /// RESP only and without expiry: small enough for the general checker.
    Register,
    /// In a namespace that is flushed now and then.
    Flushed,
}

/// The keys of the workload.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    list: Vec<(Bytes, KeyClass)>,
}

impl Keys {
    /// Adds a key.
    pub fn add(&mut self, name: String, class: KeyClass) -> KeyId {
        self.list.push((Bytes::from(name), class));
        KeyId(self.list.len() as u32 - 1)
    }

    /// A key's bytes.
    pub fn bytes(&self, key: KeyId) -> Bytes {
        self.list[key.0 as usize].0.clone()
    }

    /// A key's bytes, for people.
    pub fn name(&self, key: KeyId) -> String {
        String::from_utf8_lossy(&self.list[key.0 as usize].0).into_owned()
    }

    /// A key's class.
    pub fn class(&self, key: KeyId) -> KeyClass {
        self.list[key.0 as usize].1
    }

    /// The namespace a key lives in.
    pub fn namespace(&self, key: KeyId) -> Namespace {
        Namespace(u8::from(self.class(key) == KeyClass::Flushed))
    }

    /// Keys of a class.
    pub fn of(&self, class: KeyClass) -> Vec<KeyId> {
        self.all()
            .into_iter()
            .filter(|&key| self.class(key) == class)
            .collect()
    }

    /// Every key.
    pub fn all(&self) -> Vec<KeyId> {
        (0..self.list.len() as u32).map(KeyId).collect()
    }
}

/// The values of the workload. A value's bytes follow from its number and length, so that nothing
/// has to be remembered to know that every one of them is right.
#[derive(Clone, Debug, Default)]
pub struct Values {
    list: Vec<(KeyId, u32)>,
}

const VALUE_HEAD_BYTES: usize = 9;

impl Values {
    /// A new value of about `bytes` bytes for one write to `key`.
    pub fn make(&mut self, key: KeyId, bytes: u32) -> ValueId {
        self.list.push((key, bytes.max(VALUE_HEAD_BYTES as u32)));
        ValueId(self.list.len() as u32 - 1)
    }

    /// A value's bytes.
    pub fn bytes(&self, value: ValueId) -> Bytes {
        let length = self.list[value.0 as usize].1 as usize;
        let mut bytes = format!("{:08x}:", value.0).into_bytes();
        bytes.resize(length, 0);
        for (at, byte) in bytes.iter_mut().enumerate().skip(VALUE_HEAD_BYTES) {
            *byte = b'a' + ((value.0 as usize).wrapping_mul(31) + at * 7) as u8 % 26;
        }
        Bytes::from(bytes)
    }

    fn recognise(&self, bytes: &[u8]) -> Option<(ValueId, KeyId)> {
        let head = std::str::from_utf8(bytes.get(..8)?).ok()?;
        let value = ValueId(u32::from_str_radix(head, 16).ok()?);
        let &(key, _) = self.list.get(value.0 as usize)?;
        (self.bytes(value) == bytes).then_some((value, key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_recognised_whole_or_not_at_all() {
        let mut history = History::default();
        let key = history.keys.add("a".to_owned(), KeyClass::Hot);
        let other = history.keys.add("b".to_owned(), KeyClass::Hot);
        let value = history.values.make(key, 100);
        let bytes = history.values.bytes(value);
        assert_eq!(history.recognise(key, &bytes), Some(value));
        assert!(history.violations.is_empty());
        assert_eq!(history.recognise(other, &bytes), None);
        assert_eq!(history.recognise(key, &bytes[..99]), None);
        let mut flipped = bytes.to_vec();
        flipped[50] ^= 1;
        assert_eq!(history.recognise(key, &flipped), None);
        assert_eq!(history.violations.len(), 3);
    }
}
