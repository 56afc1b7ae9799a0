//! What operators allow namespaces, and what these use.

use std::fmt;

use holdfast_format::Namespace;

/// What a namespace may have, over the whole cluster. `None`: as much as there is memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct NamespaceLimits {
    pub sessions: Option<u64>,
    /// Of keys, values and headers.
    pub bytes: Option<u64>,
    /// Of the largest value.
    pub value_bytes: Option<u32>,
    pub evict: Eviction,
}

/// What happens when a write needs room that its namespace, or memory, does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Eviction {
    /// The write is refused.
    #[default]
    Never,
    /// Sessions that were idle for longest make room.
    OldestIdle,
}

/// The limits of one namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NamespacePolicy {
    pub namespace: Namespace,
    pub limits: NamespaceLimits,
}

/// What one shard, or all of them, have of a namespace. Expired sessions count until they are swept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NamespaceUse {
    pub namespace: Namespace,
    pub sessions: u64,
    pub with_deadline: u64,
    /// Of keys, values and headers.
    pub bytes: u64,
    /// Sessions evicted since the shard started.
    pub evicted: u64,
}

/// What a shard, or all of them, have in memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Usage {
    pub used_bytes: u64,
    pub limit_bytes: u64,
    pub live_bytes: u64,
    /// Sessions since start.
    pub expired: u64,
    pub evicted: u64,
    /// Those that are not empty or have evicted something, by number.
    pub namespaces: Vec<NamespaceUse>,
}

impl Usage {
    /// Adds what another shard has.
    pub fn add(&mut self, other: &Usage) {
        for (mine, its) in [
            (&mut self.used_bytes, other.used_bytes),
            (&mut self.limit_bytes, other.limit_bytes),
            (&mut self.live_bytes, other.live_bytes),
            (&mut self.expired, other.expired),
            (&mut self.evicted, other.evicted),
        ] {
            *mine = mine.saturating_add(its);
        }
        add_uses(&mut self.namespaces, &other.namespaces);
    }
}

/// Adds what another shard has of each namespace; both lists are sorted by number.
pub fn add_uses(uses: &mut Vec<NamespaceUse>, others: &[NamespaceUse]) {
    for other in others {
        match uses.binary_search_by_key(&other.namespace, |it| it.namespace) {
            Ok(at) => {
                let mine = &mut uses[at];
                mine.sessions = mine.sessions.saturating_add(other.sessions);
                mine.with_deadline = mine.with_deadline.saturating_add(other.with_deadline);
                mine.bytes = mine.bytes.saturating_add(other.bytes);
                mine.evicted = mine.evicted.saturating_add(other.evicted);
            }
            Err(at) => uses.insert(at, *other),
        }
    }
}

/// Which of its limits a namespace has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quota {
    Sessions,
    Bytes,
}

impl Quota {
    /// Its name in the configuration and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Quota::Sessions => "sessions",
            Quota::Bytes => "bytes",
        }
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A number as people read it: `1,000,000`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn what_shards_have_adds_up_by_namespace() {
        let of = |namespace, sessions| NamespaceUse {
            namespace: Namespace(namespace),
            sessions,
            with_deadline: 1,
            bytes: 10,
            evicted: 2,
        };
        let mut all = Usage {
            used_bytes: 5,
            namespaces: vec![of(1, 3)],
            ..Usage::default()
        };
        all.add(&Usage {
            used_bytes: u64::MAX,
            limit_bytes: 9,
            namespaces: vec![of(0, 7), of(1, 4), of(9, 1)],
            ..Usage::default()
        });
        assert_eq!((all.used_bytes, all.limit_bytes), (u64::MAX, 9));
        let sessions: Vec<_> = all.namespaces.iter().map(|it| it.sessions).collect();
        assert_eq!(sessions, [7, 7, 1]);
        assert_eq!(all.namespaces[1].evicted, 4);
    }
}
