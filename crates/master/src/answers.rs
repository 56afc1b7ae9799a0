//! Answers that were computed and must not be heard yet.
//!
//! A command executes at once, but what it saw or did may still be lost with this process. Every
//! answer therefore waits for a position of the log to be durable, and then for a flush that finds
//! the shard with a lease:
//!
//! ```text
//! execute --hold--> waiting (by position) --durable--> durable --release, lease held--> sent
//! ```
//!
//! A1. An answer about a key waits at least for the newest append about that key at execution; `nil`
//!     after a delete that is not durable waits for the tombstone.
//! A2. An answer about the key space, and everything about a namespace that was flushed, waits for the
//!     end of the log at that moment.
//! A3. What is remembered per key is forgotten as acknowledgements pass it, so it never holds more than
//!     the appends not yet durable.

use std::collections::{BTreeMap, VecDeque};

use holdfast_format::{ClientId, FixedMap, KeyHash, Namespace, Position, ServerId};
use holdfast_wire::Outcome;

/// Room for so many keys is cleared faster, by a pass over two KiB, than one key is looked for and taken out.
const CLEARED_MAX: usize = 2_048;

/// One answer and whom it is for.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub to: ServerId,
    pub client: ClientId,
    pub stream: u64,
    pub token: u64,
    pub outcome: Outcome,
}

impl Answer {
    /// Memory that it takes, about.
    fn bytes(&self) -> u64 {
        let payload = match &self.outcome {
            Outcome::Value { value, .. } => value.len(),
            Outcome::Done { old: Some(old), .. } | Outcome::Refused { old: Some(old), .. } => {
                old.len()
            }
            Outcome::Scanned { keys, .. } => keys
                .iter()
                .map(|(_, key)| key.len() + size_of::<(KeyHash, bytes::Bytes)>())
                .sum(),
            _ => 0,
        };
        (size_of::<Answer>() + payload) as u64
    }
}

/// What an append concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Concern {
    Key(KeyHash),
    Namespace(Namespace),
}

#[derive(Debug, Default)]
pub(crate) struct Answers {
    durable: Position,
    keys: FixedMap<KeyHash, Position>,
    namespaces: BTreeMap<Namespace, Position>,
    /// Everything in `keys` and `namespaces`, in log order, older positions of the same included.
    appended: VecDeque<(Position, Concern)>,
    /// By position. An answer about a key that was written just now joins at the end, like nearly all that wait.
    in_order: VecDeque<(Position, Answer)>,
    /// Those that came behind answers which wait for more.
    earlier: BTreeMap<Position, Vec<Answer>>,
    /// Those that waited for nothing, or came from `earlier`.
    released: VecDeque<Answer>,
    held: usize,
    held_bytes: u64,
}

impl Answers {
    /// An append that ends at `position` changed something about `concern`.
    pub fn appended(&mut self, concern: Concern, position: Position) {
        if position <= self.durable {
            return;
        }
        match concern {
            Concern::Key(hash) => self.keys.insert(hash, position),
            Concern::Namespace(namespace) => self.namespaces.insert(namespace, position),
        };
        self.appended.push_back((position, concern));
    }

    /// What an answer about this key has to wait for (A1, A2).
    pub fn needs(&self, namespace: Namespace, hash: KeyHash) -> Position {
        if self.appended.is_empty() {
            return Position::default();
        }
        let key = self.keys.get(&hash).copied().unwrap_or_default();
        let all = self.namespaces.get(&namespace).copied().unwrap_or_default();
        key.max(all)
    }

    /// Keeps an answer until `position` is durable.
    pub fn hold(&mut self, position: Position, answer: Answer) {
        self.held += 1;
        self.held_bytes += answer.bytes();
        if position <= self.durable {
            self.released.push_back(answer);
        } else if self.in_order.back().is_none_or(|(at, _)| *at <= position) {
            self.in_order.push_back((position, answer));
        } else {
            self.earlier.entry(position).or_default().push(answer);
        }
    }

    /// Everything up to `position` is durable.
    pub fn durable(&mut self, position: Position) {
        assert!(self.durable <= position, "what was durable became not so");
        self.durable = position;
        let all = self.appended.back().is_some_and(|&(at, _)| at <= position);
        if all && self.keys.capacity() <= CLEARED_MAX.max(self.appended.len() * 4) {
            // All of it, as is usual: nothing has to be looked for. (Clearing costs time by what there is room for.)
            self.appended.clear();
            self.keys.clear();
            self.namespaces.clear();
        }
        while let Some(&(at, concern)) = self.appended.front() {
            if at > position {
                break;
            }
            self.appended.pop_front();
            // A newer append about the same has moved the entry on; it stays (A3).
            match concern {
                Concern::Key(hash) if self.keys.get(&hash) == Some(&at) => {
                    self.keys.remove(&hash);
                }
                Concern::Namespace(namespace) if self.namespaces.get(&namespace) == Some(&at) => {
                    self.namespaces.remove(&namespace);
                }
                Concern::Key(_) | Concern::Namespace(_) => {}
            }
        }
        while let Some(first) = self.earlier.first_entry()
            && *first.key() <= position
        {
            self.released.extend(first.remove());
        }
    }

    /// Up to where everything is durable.
    pub fn durable_position(&self) -> Position {
        self.durable
    }

    /// Takes every answer that waits for nothing but a lease, in no particular order: each names its command.
    pub fn release(&mut self, mut take: impl FnMut(Answer)) {
        let mut let_go = |answer: Answer| {
            self.held -= 1;
            self.held_bytes -= answer.bytes();
            take(answer);
        };
        self.released.drain(..).for_each(&mut let_go);
        while let Some((at, _)) = self.in_order.front()
            && *at <= self.durable
        {
            let (_, answer) = self.in_order.pop_front().expect("just looked at");
            let_go(answer);
        }
    }

    /// Answers held, durable or not.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Memory that everything here takes, about.
    pub fn memory_bytes(&self) -> u64 {
        let remembered = size_of::<(Position, Concern)>() + size_of::<(KeyHash, Position)>() * 2;
        self.held_bytes + (self.appended.len() * remembered) as u64
    }

    /// Memory that held answers take, about.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Answers that wait for nothing but a lease.
    pub fn releasable(&self) -> usize {
        self.released.len() + (self.in_order).partition_point(|(at, _)| *at <= self.durable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_format::{SegmentId, Version};

    const N: Namespace = Namespace(0);
    const H: KeyHash = KeyHash(7);

    fn at(segment: u64, offset: u32) -> Position {
        Position {
            segment: SegmentId(segment),
            offset,
        }
    }

    fn answer(token: u64) -> Answer {
        Answer {
            to: ServerId(1),
            client: ClientId(1),
            stream: 0,
            token,
            outcome: Outcome::Absent {
                version: Version(0),
            },
        }
    }

    fn released(answers: &mut Answers) -> Vec<u64> {
        let mut tokens = Vec::new();
        answers.release(|answer| tokens.push(answer.token));
        tokens
    }

    #[test]
    fn an_answer_about_a_key_waits_for_the_newest_append_about_it() {
        let mut answers = Answers::default();
        answers.appended(Concern::Key(H), at(1, 100));
        answers.appended(Concern::Key(H), at(1, 200));
        answers.appended(Concern::Key(KeyHash(8)), at(1, 300));
        answers.hold(answers.needs(N, H), answer(1));
        answers.hold(answers.needs(N, KeyHash(9)), answer(2));
        assert_eq!(released(&mut answers), [2]);
        answers.durable(at(1, 100));
        assert_eq!(answers.needs(N, H), at(1, 200));
        assert_eq!(released(&mut answers), [0; 0]);
        answers.durable(at(1, 250));
        assert_eq!(answers.needs(N, H), Position::default());
        assert_eq!(released(&mut answers), [1]);
        assert_eq!((answers.held(), answers.held_bytes()), (0, 0));
    }

    #[test]
    fn everything_about_a_flushed_namespace_waits() {
        let mut answers = Answers::default();
        answers.appended(Concern::Namespace(N), at(2, 40));
        assert_eq!(answers.needs(N, H), at(2, 40));
        assert_eq!(answers.needs(Namespace(1), H), Position::default());
        answers.durable(at(3, 0));
        assert_eq!(answers.needs(N, H), Position::default());
    }

    #[test]
    fn what_is_remembered_goes_as_acknowledgements_come() {
        let mut answers = Answers::default();
        for i in 0..100 {
            answers.appended(Concern::Key(KeyHash(u64::from(i % 10))), at(1, i));
        }
        answers.durable(at(1, 99));
        assert!(answers.keys.is_empty() && answers.appended.is_empty());
        answers.appended(Concern::Key(H), at(1, 50));
        assert!(answers.keys.is_empty(), "already durable");
    }
}
