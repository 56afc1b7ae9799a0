//! Sessions: finding, putting, touching, deleting, flushing, scanning them.
//!
//! The rules on what must stay for the sake of replicas are those of `docs/design-notes.md`, "Expiry and
//! touch". The one that is applied here, at every write: an entry is *shadowing* if what it replaces
//! was, if it replaces a tombstone that replicas still need, or if what it replaces would expire
//! later than it. So by induction, if an entry is not shadowing, everything older of its key expires no
//! later than it does, and it may vanish when it expires.

use bytes::Bytes;
use holdfast_format::{
    ClusterMs, Entry, HEADER_BYTES, KeyHash, Namespace, Object, RangeTombstone, Slot, SlotRange,
    Tombstone, Touch, Version,
};

use crate::flushes::{FLUSHES_MAX, Flush, supersedes};
use crate::index::{Kind, Word};
use crate::log::{Current, KeyWords, Log};
use crate::space::Class;
use crate::{AppendError, Completion, Expiry, Found, SessionCount};

/// Buckets that one call of `scan` looks at when it finds little: some 50 microseconds of work.
const SCAN_BUCKETS_MAX: usize = 512;

impl Log {
    /// The session, if it lives by cluster time `now`.
    pub fn find(&self, namespace: Namespace, key: &[u8], now: ClusterMs) -> Option<Found<'_>> {
        self.find_hashed(namespace, key, KeyHash::of(namespace, key), now)
    }

    /// As `find`, for a caller that knows the key's hash.
    pub fn find_hashed(
        &self,
        namespace: Namespace,
        key: &[u8],
        hash: KeyHash,
        now: ClusterMs,
    ) -> Option<Found<'_>> {
        debug_assert_eq!(hash, KeyHash::of(namespace, key));
        let words = self.words(namespace, key, hash);
        let current = self.current(words)?;
        current.is_live(now).then_some(Found {
            version: current.object.version,
            value: current.object.value,
            expiry: Expiry {
                deadline: current.deadline,
                ..current.object.expiry
            },
        })
    }

    /// Starts loading all that looking these keys up will read. Only a hint. With 16 to 32 of them at a time
    /// nearly all of the waiting for memory is hidden; the processor has no room for many more.
    #[inline]
    pub fn prefetch_batch(&self, hashes: &[KeyHash]) {
        for &hash in hashes {
            self.index.prefetch(&self.region, hash);
        }
        // Words in overflow buckets, one in nine, are a step behind.
        for hashes in hashes.chunks(64) {
            let mut behind = 0u64;
            for (i, &hash) in hashes.iter().enumerate() {
                behind |= u64::from(self.index.prefetch_entry(&self.region, hash)) << i;
            }
            while behind != 0 {
                let i = behind.trailing_zeros() as usize;
                self.index.prefetch_behind(&self.region, hashes[i]);
                behind &= behind - 1;
            }
        }
    }

    /// The version that `put` with these arguments would return: an identical value with the same
    /// idle time and absolute deadline is stored as a touch and keeps its version. For the outcome in
    /// the put's own completion record.
    pub fn put_version(
        &self,
        namespace: Namespace,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
        now: ClusterMs,
    ) -> Version {
        let words = self.words(namespace, key, KeyHash::of(namespace, key));
        match self.current(words) {
            Some(current) if is_same(&current, value, expiry, now) => current.object.version,
            _ => self.next_version(),
        }
    }

    /// Stores a value. One that is already there with the same idle time and absolute deadline is only
    /// touched and keeps its version.
    pub fn put(
        &mut self,
        namespace: Namespace,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
        completion: Option<Completion<'_>>,
        now: ClusterMs,
    ) -> Result<Version, AppendError> {
        self.put_over(true, namespace, key, value, expiry, completion, now)
    }

    /// As `put`, of a key of which a replay may still bring something: nothing is concluded from what there is. The
    /// object is new, and taken to be shadowing.
    pub fn put_unseen(
        &mut self,
        namespace: Namespace,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
        completion: Option<Completion<'_>>,
        now: ClusterMs,
    ) -> Result<Version, AppendError> {
        self.put_over(false, namespace, key, value, expiry, completion, now)
    }

    #[allow(clippy::too_many_arguments, reason = "a put has that many sides")]
    #[inline]
    fn put_over(
        &mut self,
        seen: bool,
        namespace: Namespace,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
        completion: Option<Completion<'_>>,
        now: ClusterMs,
    ) -> Result<Version, AppendError> {
        if key.len() > self.config.key_bytes_max as usize {
            return Err(AppendError::KeyTooLarge);
        }
        if value.len() > self.config.value_bytes_max as usize {
            return Err(AppendError::ValueTooLarge);
        }
        self.clock = self.clock.max(now);
        let hash = KeyHash::of(namespace, key);
        let words = self.words(namespace, key, hash);
        let expiry = expiry.stored();
        let mut shadowing = !seen;
        if !seen {
            // Whatever there is, it need not be the newest.
        } else if let Some(current) = self.current(words) {
            if is_same(&current, value, expiry, now) {
                let version = current.object.version;
                let deadline = expiry.deadline;
                self.touch_found(namespace, key, hash, words, deadline, completion)?;
                return Ok(version);
            }
            shadowing = !current.flushed
                && (current.shadowing || is_later(current.deadline, expiry.deadline));
        } else if let Some(word) = words.main {
            shadowing = self.is_needed(&self.tombstone(word));
        }
        let version = self.next_version();
        let object = Object {
            namespace,
            key,
            value,
            version,
            expiry,
            shadowing,
        };
        let bytes = object.encoded_len();
        let completion_bytes = self.admit_completion(completion.as_ref())?;
        self.make_space(bytes + completion_bytes, Class::Put)?;
        let offset = self.append(self.head, bytes, |out| object.encode(out));
        self.append_completion(completion);
        self.last_version = version;
        self.supersede(hash, words, Some(Word::new(Kind::Object, offset)));
        Ok(version)
    }

    /// Gives a session a new deadline, at most its absolute one. False if there is no such session:
    /// then nothing is appended.
    pub fn touch(
        &mut self,
        namespace: Namespace,
        key: &[u8],
        deadline: Option<ClusterMs>,
        completion: Option<Completion<'_>>,
        now: ClusterMs,
    ) -> Result<bool, AppendError> {
        let hash = KeyHash::of(namespace, key);
        let words = self.words(namespace, key, hash);
        let Some(current) = self.current(words).filter(|current| current.is_live(now)) else {
            return Ok(false);
        };
        let absolute = current.object.expiry.absolute;
        let deadline = Expiry {
            deadline,
            idle_ms: None,
            absolute,
        }
        .stored()
        .deadline;
        self.touch_found(namespace, key, hash, words, deadline, completion)?;
        Ok(true)
    }

    /// Removes a session. `None` if there is none: then nothing is appended.
    pub fn delete(
        &mut self,
        namespace: Namespace,
        key: &[u8],
        completion: Option<Completion<'_>>,
        now: ClusterMs,
    ) -> Result<Option<Version>, AppendError> {
        let hash = KeyHash::of(namespace, key);
        let words = self.words(namespace, key, hash);
        if !self
            .current(words)
            .is_some_and(|current| current.is_live(now))
        {
            return Ok(None);
        }
        let completion_bytes = self.admit_completion(completion.as_ref())?;
        self.make_space(HEADER_BYTES + key.len() + completion_bytes, Class::Small)?;
        // Only now: making space may have opened a head.
        let birth = self.segments.last_id();
        let version = self.next_version();
        let tombstone = Tombstone {
            namespace,
            key,
            version,
            birth,
        };
        let offset = self.append_tombstone(self.head, &Entry::Tombstone(tombstone));
        self.append_completion(completion);
        self.last_version = version;
        self.supersede(hash, words, Some(Word::new(Kind::Tombstone, offset)));
        Ok(Some(version))
    }

    /// Removes every session of a namespace whose slot lies in `ranges`, by one range tombstone for
    /// each. Their memory is found by and by.
    pub fn flush(
        &mut self,
        namespace: Namespace,
        ranges: &[SlotRange],
        completion: Option<Completion<'_>>,
        now: ClusterMs,
    ) -> Result<Version, AppendError> {
        let _ = now; // Expired sessions are flushed like any others.
        let completion_bytes = self.admit_completion(completion.as_ref())?;
        if self.flushes.list.len() + ranges.len() > FLUSHES_MAX {
            return Err(AppendError::OutOfMemory);
        }
        self.make_space(HEADER_BYTES * ranges.len() + completion_bytes, Class::Small)?;
        let birth = self.segments.last_id();
        let up_to = self.next_version();
        self.last_version = up_to;

        let all = self.all_seen_in(ranges);
        if all {
            self.counts[usize::from(namespace.0)] = SessionCount::default();
        }
        for &range in ranges {
            let tombstone = RangeTombstone {
                namespace,
                range,
                up_to,
                birth,
            };
            if !all {
                // Other ranges are being recovered into this log and are not flushed: look closely.
                self.count_flushed(&tombstone);
            }
            let offset = self.append_tombstone(self.head, &Entry::RangeTombstone(tombstone));
            self.add_flush(Flush { tombstone, offset });
        }
        self.append_completion(completion);
        Ok(up_to)
    }

    /// Keys of live sessions whose hash is at least `from`, in hash order, whole buckets until there
    /// are `limit` of them or enough has been looked at. Returns where to go on; `None`: that was all.
    #[allow(clippy::too_many_arguments, reason = "a scan has that many sides")]
    pub fn scan(
        &self,
        namespace: Namespace,
        from: KeyHash,
        limit: usize,
        now: ClusterMs,
        keys: &mut Vec<(KeyHash, Bytes)>,
        owned: &dyn Fn(Slot) -> bool,
    ) -> Option<KeyHash> {
        let start = keys.len();
        let mut cursor = from;
        for _ in 0..SCAN_BUCKETS_MAX {
            let (bucket, next) = self.index.bucket(&self.region, cursor);
            let bucket_start = keys.len();
            for (_, word) in bucket.filter(|(_, word)| word.kind() == Kind::Object) {
                let object = self.object(word);
                if object.namespace != namespace || !owned(Slot::of(object.key)) {
                    continue;
                }
                let (hash, words) = self.words_at(word.offset());
                let current = self.current(words).expect("its object was just seen");
                if hash >= from && current.is_live(now) {
                    keys.push((hash, Bytes::copy_from_slice(object.key)));
                }
            }
            keys[bucket_start..].sort();
            cursor = next?;
            if keys.len() - start >= limit {
                break;
            }
        }
        Some(cursor)
    }

    /// How many sessions a namespace has and what they take. Expired ones count until they are swept.
    pub fn count(&self, namespace: Namespace) -> SessionCount {
        self.counts[usize::from(namespace.0)]
    }

    /// What the namespace counts for a key: the bytes of its session, expired or not, until the sweep
    /// has met it.
    pub fn counted_bytes(&self, namespace: Namespace, key: &[u8]) -> Option<u64> {
        let words = self.words(namespace, key, KeyHash::of(namespace, key));
        let current = self.current(words).filter(|current| !current.flushed)?;
        Some(current.object.encoded_len() as u64)
    }

    // ---- private ----

    /// True if replicas may still hold what the tombstone hides.
    pub(crate) fn is_needed(&self, tombstone: &Tombstone<'_>) -> bool {
        tombstone.birth >= self.needed_since()
            && !self
                .flushes
                .cover(tombstone.namespace, tombstone.key, tombstone.version)
    }

    /// Appends a touch of the key's object, unless it has just this deadline already.
    fn touch_found(
        &mut self,
        namespace: Namespace,
        key: &[u8],
        hash: KeyHash,
        words: KeyWords,
        deadline: Option<ClusterMs>,
        completion: Option<Completion<'_>>,
    ) -> Result<(), AppendError> {
        let current = self.current(words).expect("the caller found it");
        let touch = Touch {
            namespace,
            key,
            version: current.object.version,
            number: current.touches + 1,
            deadline,
            shadowing: current.shadowing || is_later(current.deadline, deadline),
        };
        if current.deadline == deadline {
            return completion.map_or(Ok(()), |completion| self.record(completion));
        }
        let bytes = touch.encoded_len();
        let completion_bytes = self.admit_completion(completion.as_ref())?;
        self.make_space(bytes + completion_bytes, Class::Small)?;
        let offset = self.append(self.head, bytes, |out| touch.encode(out));
        self.append_completion(completion);
        self.retouch(hash, words, Word::new(Kind::Touch, offset));
        Ok(())
    }

    /// A range tombstone comes into force and ends those that it makes superfluous.
    pub(crate) fn add_flush(&mut self, flush: Flush) {
        let superseded = self
            .flushes
            .take(|old| supersedes(&flush.tombstone, &old.tombstone));
        for old in superseded {
            self.kill(old.offset);
        }
        self.flushes.add(flush);
    }

    /// Takes the sessions that a range tombstone is about to end out of the count.
    pub(crate) fn count_flushed(&mut self, tombstone: &RangeTombstone) {
        let count = usize::from(tombstone.namespace.0);
        if self.counts[count].sessions == 0 {
            return;
        }
        let mut gone = SessionCount::default();
        self.index.check(&self.region, |word, _, _| {
            if word.kind() != Kind::Object {
                return;
            }
            let object = self.object(word);
            if tombstone.covers(object.namespace, object.key, object.version) {
                let (_, words) = self.words_at(word.offset());
                let current = self.current(words).expect("its object was just seen");
                if !current.flushed {
                    gone.sessions += 1;
                    gone.with_deadline += u64::from(current.deadline.is_some());
                    gone.bytes += current.object.encoded_len() as u64;
                }
            }
        });
        self.counts[count].sessions -= gone.sessions;
        self.counts[count].with_deadline -= gone.with_deadline;
        self.counts[count].bytes -= gone.bytes;
    }

    /// The key of the entry at `offset`, its hash and words.
    pub(crate) fn words_at(&self, offset: u64) -> (KeyHash, KeyWords) {
        let keyed = self.keyed(offset);
        let (namespace, key) = (keyed.namespace(), keyed.key());
        let hash = KeyHash::of(namespace, key);
        (hash, self.words(namespace, key, hash))
    }
}

/// True if storing `value` would change nothing but the deadline.
fn is_same(current: &Current<'_>, value: &[u8], expiry: Expiry, now: ClusterMs) -> bool {
    let object = &current.object;
    let settings = Expiry {
        deadline: object.expiry.deadline,
        ..expiry
    };
    current.is_live(now) && settings.stored() == object.expiry && are_equal(object.value, value)
}

/// Values that differ mostly do so at once, and the rest of the old one need not be loaded then.
fn are_equal(old: &[u8], new: &[u8]) -> bool {
    old.len() == new.len() && old.first_chunk::<8>() == new.first_chunk() && old == new
}

/// True if a deadline of `a` comes after one of `b`.
pub(crate) fn is_later(a: Option<ClusterMs>, b: Option<ClusterMs>) -> bool {
    match (a, b) {
        (None, Some(_)) => true,
        (Some(a), Some(b)) => a > b,
        (_, None) => false,
    }
}
