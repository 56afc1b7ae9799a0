//! The coordinator's metadata store: writes are durable all or none per token, in order, some time
//! after they are asked for.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use holdfast_cluster::RecordWrite;

use crate::chance::Chance;

/// What survives the coordinator, and the writes still on their way there.
#[derive(Debug, Default)]
pub struct Records {
    durable: BTreeMap<String, Bytes>,
    pending: VecDeque<(u64, Vec<RecordWrite>)>,
}

impl Records {
    /// Every record, as the coordinator reads them at start.
    pub fn all(&self) -> Vec<(String, Bytes)> {
        self.durable
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// Takes a write; it is not durable yet.
    pub fn ask(&mut self, token: u64, writes: Vec<RecordWrite>) {
        self.pending.push_back((token, writes));
    }

    /// The oldest pending write becomes durable; its token.
    pub fn complete_next(&mut self) -> Option<u64> {
        let (token, writes) = self.pending.pop_front()?;
        for write in writes {
            match write.value {
                Some(value) => self.durable.insert(write.key, value),
                None => self.durable.remove(&write.key),
            };
        }
        Some(token)
    }

    /// The coordinator died: some of what was pending had reached the disk, in order.
    pub fn crash(&mut self, chance: &mut Chance) {
        for _ in 0..chance.below(self.pending.len() as u64 + 1) {
            self.complete_next();
        }
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_keeps_a_prefix_of_whole_writes() {
        for seed in 0..50 {
            let mut records = Records::default();
            for token in 0..5 {
                let write = |key: &str| RecordWrite {
                    key: format!("{key}{token}"),
                    value: Some(Bytes::from_static(b"x")),
                };
                records.ask(token, vec![write("a"), write("b")]);
            }
            records.crash(&mut Chance::new(seed, 0));
            let kept = records.all();
            assert_eq!(kept.len() % 2, 0);
            for token in 0..kept.len() / 2 {
                assert!(kept.iter().any(|(key, _)| *key == format!("a{token}")));
            }
        }
    }
}
