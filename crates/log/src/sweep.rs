//! The sweep: walks the index and forgets what time has ended.
//!
//! Expiry needs no sweep to be right, since every look-up compares deadlines; the sweep makes the
//! memory of expired sessions visible to the cleaner as garbage, keeps the counts close to the
//! truth, and drops tombstones that have nothing left to hide.

use std::ops::Bound;

use holdfast_format::{ClusterMs, Entry, KeyHash};

use crate::cleaner::Verdict;
use crate::index::{Kind, Word};
use crate::log::{KeyWords, Log};
use crate::segments::{Owner, State};
use crate::space::Class;

/// Buckets whose entries are loaded ahead of the one that is looked at: some 14 entries, as many as the processor
/// waits for at a time.
const AHEAD_BUCKETS: u32 = 2;

impl Log {
    /// How many buckets a pass of the sweep is.
    pub fn index_buckets(&self) -> u64 {
        self.index.buckets()
    }

    /// Looks at the next `budget_buckets` buckets of the index, and at as many completion records.
    pub fn sweep(&mut self, now: ClusterMs, budget_buckets: u32) {
        let oldest = self.needed_since();
        for flush in self.flushes.take(|flush| flush.tombstone.birth < oldest) {
            self.kill(flush.offset);
        }
        self.sweep_completions(now, budget_buckets);
        let mut words = Vec::new();
        // Nearly every entry is cold: without this the sweep would be nothing but waiting for memory.
        let mut ahead = Some(self.swept);
        for _ in 0..AHEAD_BUCKETS {
            ahead = ahead.and_then(|from| self.index.prefetch_bucket(&self.region, from));
        }
        for _ in 0..budget_buckets {
            ahead = ahead.and_then(|from| self.index.prefetch_bucket(&self.region, from));
            let (bucket, next) = self.index.bucket(&self.region, self.swept);
            words.extend(bucket.map(|(_, word)| word));
            self.swept = next.unwrap_or(KeyHash(0));
            if self.profile.counts_next() {
                words.iter().for_each(|word| self.count_load(*word));
            }
            for word in words.drain(..) {
                self.sweep_word(word, now);
            }
            if next.is_none() {
                self.profile.end_pass();
                break;
            }
        }
    }

    pub(crate) fn lease_is_over(&self, lease_until: ClusterMs, now: ClusterMs) -> bool {
        lease_until.plus_ms(u64::from(self.config.expiry_slack_ms)) < now
    }

    pub(crate) fn sweep_word(&mut self, word: Word, now: ClusterMs) {
        let (hash, words) = self.words_at(word.offset());
        // Both words of a key are seen; the first has decided for both.
        if words.main.or(words.touch) != Some(word) || self.is_replaying(words) {
            return;
        }
        match self.verdict(words, now) {
            Verdict::Keep => {}
            Verdict::Drop => {
                self.tally_expired(words);
                self.supersede(hash, words, None);
            }
            Verdict::DropTouch => self.drop_touch(hash, words),
            Verdict::Entomb => {
                let bytes = self.entombed(words).len();
                if self.make_space(bytes, Class::Small).is_err() {
                    return; // It is expired all the same; the next round tries again.
                }
                // Again, because making space may have opened a head.
                let tombstone = self.entombed(words);
                self.tally_expired(words);
                let (entry, _) = Entry::decode_trusted(&tombstone).expect("just encoded");
                let offset = self.append_tombstone(self.head, &entry);
                self.supersede(hash, words, Some(Word::new(Kind::Tombstone, offset)));
            }
        }
    }

    /// True if an unfinished replay may still bring something that belongs to the key.
    fn is_replaying(&self, words: KeyWords) -> bool {
        !self.replays.is_empty()
            && [words.main, words.touch].into_iter().flatten().any(|word| {
                let slot = self.segments.at(&self.region, word.offset());
                matches!(self.segments.get(slot).state, State::Side(Owner::Replay(_)))
            })
    }

    fn sweep_completions(&mut self, now: ClusterMs, budget: u32) {
        for _ in 0..budget {
            let rest = (Bound::Excluded(self.swept_completion), Bound::Unbounded);
            let Some((&key, &recorded)) = self.completions.range(rest).next() else {
                self.swept_completion = Default::default();
                return;
            };
            self.swept_completion = key;
            if self.lease_is_over(recorded.lease_until, now) {
                self.completions.remove(&key);
                self.kill(recorded.offset);
            }
        }
    }
}
