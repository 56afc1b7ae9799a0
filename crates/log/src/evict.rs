//! Eviction: for namespaces that asked for it, sessions that were idle for longest make room.
//!
//! ```text
//! index ── a few buckets per eviction, round and round ──> pool of the 16 best per namespace ── best ──> delete
//! ```
//!
//! An evicted session is deleted like any other: a tombstone in the log, replicated, so that it stays gone.
//! Who was idle for longest is known by sample, as in Redis: the hash order of the index is random with
//! respect to age, each eviction looks at `SAMPLE` more sessions, and the best seen stay in the pool
//! until they go or are used. So nearly all that go are of the oldest eighth of their namespace, as one of eight
//! is taken.
//!
//! V1. A namespace is only ever evicted from when the caller names it.
//! V2. What is evicted is just as it was when it was chosen: whoever was touched or written since is not.
//! V3. One call looks at `BUCKETS_MAX` buckets at most, some 50 microseconds of work.

use std::collections::BTreeMap;

use holdfast_format::{ClusterMs, KeyHash, Namespace, Slot};

use crate::index::{Kind, Word};
use crate::log::{Current, KeyWords, Log};
use crate::space::Class;
use crate::{AppendError, Evicted};

/// Sessions looked at for each that is evicted; Redis's default is 5, its advice for precision 10.
const SAMPLE: usize = 8;

/// Candidates kept per namespace; as many as in Redis.
const POOL: usize = 16;

/// Beyond so many buckets a call ends with what it has: the namespace may be a small part of the shard.
const BUCKETS_MAX: usize = 256;

/// Memory for live entries is short above this part of what puts can fill, in percent: a tenth of free space
/// keeps the cleaner's cost per byte written at about ten bytes copied.
const SHORT_PERCENT: u64 = 90;

/// Above this part the cleaner may have trouble to keep up with writers: if it has, sessions go for it.
const BEHIND_PERCENT: u64 = 75;

/// In which order sessions go: first those that say their idle time, by when they were last used; then those
/// with a deadline alone, the nearest first; then the rest, the oldest version first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    LastUsed(ClusterMs),
    Deadline(ClusterMs),
    Version(u64),
}

impl Rank {
    fn of(current: &Current<'_>) -> Rank {
        match (current.deadline, current.object.expiry.idle_ms) {
            (Some(deadline), Some(idle_ms)) => {
                Rank::LastUsed(ClusterMs(deadline.0.saturating_sub(u64::from(idle_ms))))
            }
            (Some(deadline), None) => Rank::Deadline(deadline),
            (None, _) => Rank::Version(current.object.version.0),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: Rank,
    hash: KeyHash,
}

/// What is known of one namespace that evicts.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    /// The next bucket to look at.
    cursor: KeyHash,
    /// Best first.
    best: Vec<Candidate>,
    evicted: u64,
}

impl Pool {
    fn offer(&mut self, candidate: Candidate) {
        if let Err(at) = self.best.binary_search(&candidate)
            && at < POOL
        {
            self.best.insert(at, candidate);
            self.best.truncate(POOL);
        }
    }
}

/// One for each namespace that ever evicted.
pub(crate) type Pools = BTreeMap<Namespace, Pool>;

impl Log {
    /// Deletes the session of the namespace that was idle for longest among those looked at, but never that of
    /// `except`, and only in slots that `owned` says. `None`: none was found within the bound on
    /// work, or all that was found had expired and was swept; the next call looks further.
    pub fn evict(
        &mut self,
        namespace: Namespace,
        except: KeyHash,
        now: ClusterMs,
        owned: &dyn Fn(Slot) -> bool,
    ) -> Result<Option<Evicted>, AppendError> {
        let mut pool = self.pools.remove(&namespace).unwrap_or_default();
        let chosen = self.choose_evicted(&mut pool, namespace, except, now, owned);
        let done = match chosen {
            Some(words) => self.evict_words(namespace, words, now).map(Some),
            None => Ok(None),
        };
        pool.evicted += u64::from(matches!(done, Ok(Some(_))));
        self.pools.insert(namespace, pool);
        done
    }

    /// Sessions of a namespace evicted since start.
    pub fn evicted(&self, namespace: Namespace) -> u64 {
        self.pools.get(&namespace).map_or(0, |pool| pool.evicted)
    }

    /// How many bytes to evict for each byte that a put adds: none while there is room, one when live entries
    /// leave so little that cleaning becomes expensive, two when the cleaner has fallen behind and puts
    /// are about to be refused.
    pub fn shortage(&self) -> u64 {
        let seglet_bytes = u64::from(self.config.seglet_bytes);
        let kept = u64::from(self.limit(Class::Put)) * seglet_bytes;
        let fillable_bytes = (u64::from(self.region.seglets()) * seglet_bytes)
            .saturating_sub(self.index.bytes(&self.region) + self.charged_bytes() + kept);
        let live_percent = 100 * self.segments.live() / fillable_bytes.max(1);
        let left = self.available().saturating_sub(self.limit(Class::Put));
        let behind = left < 2 * self.config.segment_seglets();
        match live_percent {
            BEHIND_PERCENT.. if behind => 2,
            SHORT_PERCENT.. => 1,
            _ => 0,
        }
    }

    /// Looks at more sessions and takes the best that still is what it was (V2).
    fn choose_evicted(
        &mut self,
        pool: &mut Pool,
        namespace: Namespace,
        except: KeyHash,
        now: ClusterMs,
        owned: &dyn Fn(Slot) -> bool,
    ) -> Option<KeyWords> {
        let mut seen = 0;
        for _ in 0..BUCKETS_MAX {
            if seen >= SAMPLE {
                break;
            }
            seen += self.look(pool, namespace, now, owned);
        }
        let mut kept = None;
        let mut chosen = None;
        while chosen.is_none() && !pool.best.is_empty() {
            let candidate = pool.best.remove(0);
            if candidate.hash == except {
                kept = Some(candidate);
                continue;
            }
            chosen = self.still_there(namespace, &candidate, now);
        }
        kept.into_iter().for_each(|kept| pool.offer(kept));
        chosen
    }

    /// Offers the sessions of the next bucket to the pool. Returns how many there were.
    fn look(
        &mut self,
        pool: &mut Pool,
        namespace: Namespace,
        now: ClusterMs,
        owned: &dyn Fn(Slot) -> bool,
    ) -> usize {
        let (bucket, next) = self.index.bucket(&self.region, pool.cursor);
        let words: Vec<Word> = bucket.map(|(_, word)| word).collect();
        pool.cursor = next.unwrap_or(KeyHash(0));
        let mut seen = 0;
        for word in words.into_iter().filter(|word| word.kind() == Kind::Object) {
            let object = self.object(word);
            if object.namespace != namespace || !owned(Slot::of(object.key)) {
                continue;
            }
            let (hash, words) = self.words_at(word.offset());
            let current = self.current(words).expect("its object was just seen");
            if current.is_live(now) {
                let rank = Rank::of(&current);
                pool.offer(Candidate { rank, hash });
                seen += 1;
            } else {
                self.sweep_word(word, now);
            }
        }
        seen
    }

    /// The words of a candidate that is just as it was.
    fn still_there(
        &self,
        namespace: Namespace,
        candidate: &Candidate,
        now: ClusterMs,
    ) -> Option<KeyWords> {
        let objects = (self.index.probe(&self.region, candidate.hash))
            .filter(|(_, word)| word.kind() == Kind::Object);
        for (_, word) in objects {
            let (hash, words) = self.words_at(word.offset());
            let is_it = |current: &Current<'_>| {
                hash == candidate.hash
                    && current.object.namespace == namespace
                    && current.is_live(now)
                    && Rank::of(current) == candidate.rank
            };
            if self.current(words).is_some_and(|current| is_it(&current)) {
                return Some(words);
            }
        }
        None
    }

    fn evict_words(
        &mut self,
        namespace: Namespace,
        words: KeyWords,
        now: ClusterMs,
    ) -> Result<Evicted, AppendError> {
        let current = self.current(words).expect("it was chosen just now");
        let bytes = current.object.encoded_len() as u64;
        let key = current.object.key.to_vec();
        let deleted = self.delete(namespace, &key, None, now)?;
        assert!(deleted.is_some(), "a live session can be deleted");
        Ok(Evicted {
            hash: KeyHash::of(namespace, &key),
            bytes,
        })
    }
}
