//! Executes one `Command` on the log and says what its answer is.
//!
//! Nothing here waits or sends: the outcome returned must still be withheld until what it depends
//! on is durable (`answers`). A write and its completion record are one atomic append, so a retry
//! finds either both or neither. A refused or absent outcome of a write changes nothing and is
//! recorded all the same: the retry must hear what the first attempt was told, not what holds by then.
//! A failure is not recorded, for often there is no room: it speaks for its own attempt alone, and says that no
//! attempt before it was executed either, because the record is looked for before anything that could fail a write.
//!
//! Expiry that lies in the past removes the session at once, as in Redis.

use bytes::Bytes;
use holdfast_format::{ClusterMs, KeyHash, Namespace, Slot, SlotRange, Version};
use holdfast_log::{AppendError, Completion, Expiry, Log};
use holdfast_wire::{
    AbsoluteDeadline, Command, Condition, ExpiryChange, Failure, Meta, NamespaceUse, Once, Op,
    Outcome, TouchCondition, Usage,
};

use holdfast_wire::codec::{decode_outcome, encode_outcome};
use holdfast_wire::resp::parse_integer;

use crate::limits::{Limits, Wish};
use crate::streams::CLIENT_LEASE_MAX_MS;

/// Most keys in one part of a scan, whatever the client asks for.
const SCAN_KEYS_MAX: usize = 1_000;

/// A part of a scan ends early once its keys take so much, so that it fits in a message.
const SCAN_BYTES_MAX: usize = 1 << 20;

/// Whole buckets are scanned, in steps of about so many keys between two looks at the size.
const SCAN_STEP_KEYS: usize = 16;

/// More than an outcome without a value takes on record.
const OUTCOME_BYTES_USUAL: usize = 64;

/// What commands are executed against besides the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    /// Cluster time under the promised ceiling: by it expiry is judged and deadlines are made.
    pub now: ClusterMs,
    /// What this shard owns and knows everything of, for commands on the key space and for eviction.
    pub owned: &'a [SlotRange],
    /// Something newer may still come of the key. The command is a blind put.
    pub unseen: bool,
}

/// Why a write changed nothing.
#[derive(Debug)]
enum Undone {
    Log(AppendError),
    Failed(Failure),
}

impl From<AppendError> for Undone {
    fn from(error: AppendError) -> Undone {
        Undone::Log(error)
    }
}

/// By what a repetition of a write would be known.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Identity<'a> {
    Once(&'a Once),
    /// It should have one: a write is refused.
    Missing,
    /// It cannot be repeated: whoever asks does so once, on this thread.
    Unneeded,
}

/// Executes a command whose slot this shard owns. Work is bounded by one value, or one part of a scan. Sessions
/// that had to make room go to `evicted`, even if the command failed all the same.
pub(crate) fn execute(
    log: &mut Log,
    limits: &mut Limits,
    context: Context<'_>,
    command: &Command,
    identity: Identity<'_>,
    evicted: &mut Vec<KeyHash>,
) -> Outcome {
    if !command.op.is_write() {
        return match over_limit(log, command) {
            Some(failure) => Outcome::Failed(failure),
            None => read(log, limits, context, command),
        };
    }
    let once = match identity {
        Identity::Once(once) => Some(once),
        Identity::Unneeded => None,
        Identity::Missing => {
            let text = "a write must carry a client id and a sequence number";
            return Outcome::Failed(Failure::Invalid(text.to_owned()));
        }
    };
    if let Some(once) = once {
        if let Some(failure) = refuse_once(context.now, once) {
            return Outcome::Failed(failure);
        }
        if let Some(outcome) = replayed(log, once) {
            return outcome;
        }
    }
    // After the record is looked for: another shard, which allowed more, may have executed it.
    if let Some(failure) = over_limit(log, command) {
        return Outcome::Failed(failure);
    }
    let slot = match (once, command.op.is_keyspace(), context.owned.first()) {
        // Only completion records are filed under it.
        (None, ..) => Slot::default(),
        (_, true, Some(range)) => range.first,
        _ => Slot::of(&command.key),
    };
    let write = Write {
        log,
        limits,
        owned: context.owned,
        evicted,
        now: context.now,
        namespace: command.namespace,
        key: &command.key,
        slot,
        once,
        unseen: context.unseen,
    };
    let done = match &command.op {
        Op::Put {
            value,
            condition,
            expiry,
            return_old,
        } => write.put(value, condition, *expiry, *return_old),
        Op::Touch {
            condition,
            expiry,
            return_value,
        } => write.touch(condition, *expiry, *return_value),
        Op::Delete {
            condition,
            return_old,
        } => write.delete(condition, *return_old),
        Op::Add { by } => write.add(*by),
        Op::Append { value } => write.append(value),
        Op::Flush => write.flush(context.owned),
        Op::Get | Op::Stat | Op::Scan { .. } | Op::Count | Op::Usage => {
            unreachable!("reads were answered above")
        }
    };
    match done {
        Ok(outcome) => outcome,
        Err(Undone::Log(error)) => Outcome::Failed(failure(log, command, error)),
        Err(Undone::Failed(failure)) => Outcome::Failed(failure),
    }
}

/// Why no write with this identity is accepted, whatever it asks for.
pub(crate) fn refuse_once(now: ClusterMs, once: &Once) -> Option<Failure> {
    if once.lease_until < now {
        // Checked before the record is looked for: an answer that depends on whether the sweep has
        // come by already would be one that a takeover could change.
        return Some(Failure::StaleClient);
    }
    if once.lease_until > now.plus_ms(CLIENT_LEASE_MAX_MS) {
        let text = format!("lease_until is more than {CLIENT_LEASE_MAX_MS} ms ahead");
        return Some(Failure::Invalid(text));
    }
    if once.sequence == 0 || once.acknowledged > once.sequence {
        let text = "sequence numbers count from 1, and a write cannot acknowledge later ones";
        return Some(Failure::Invalid(text.to_owned()));
    }
    None
}

/// What a repeated write was answered the first time.
fn replayed(log: &Log, once: &Once) -> Option<Outcome> {
    let bytes = log.completion(once.client, once.sequence)?;
    let outcome = decode_outcome(bytes);
    Some(outcome.expect("a completion record holds what `encode_outcome` wrote, under a checksum"))
}

fn over_limit(log: &Log, command: &Command) -> Option<Failure> {
    let limits = log.config();
    if command.key.len() > limits.key_bytes_max as usize {
        return Some(Failure::KeyTooLarge {
            bytes: command.key.len() as u64,
            limit: u64::from(limits.key_bytes_max),
        });
    }
    too_large(log, command.op.value().len())
}

fn too_large(log: &Log, value_bytes: usize) -> Option<Failure> {
    let limit = u64::from(log.config().value_bytes_max);
    let bytes = value_bytes as u64;
    (bytes > limit).then_some(Failure::ValueTooLarge { bytes, limit })
}

fn failure(log: &Log, command: &Command, error: AppendError) -> Failure {
    match error {
        AppendError::OutOfMemory => Failure::OutOfMemory,
        AppendError::KeyTooLarge => Failure::KeyTooLarge {
            bytes: command.key.len() as u64,
            limit: u64::from(log.config().key_bytes_max),
        },
        AppendError::ValueTooLarge => Failure::ValueTooLarge {
            bytes: command.op.value().len() as u64,
            limit: u64::from(log.config().value_bytes_max),
        },
    }
}

fn read(log: &Log, limits: &Limits, context: Context<'_>, command: &Command) -> Outcome {
    let now = context.now;
    match command.op {
        Op::Get | Op::Stat => match log.find(command.namespace, &command.key, now) {
            Some(found) => Outcome::Value {
                value: match command.op {
                    Op::Get => Bytes::copy_from_slice(found.value),
                    _ => Bytes::new(),
                },
                meta: meta(found.version, found.expiry, now),
            },
            None => Outcome::Absent {
                version: log.last_version(),
            },
        },
        Op::Count => {
            let count = log.count(command.namespace);
            Outcome::Counted {
                sessions: count.sessions,
                with_deadline: count.with_deadline,
            }
        }
        Op::Usage => Outcome::Usage(usage(log, limits)),
        Op::Scan { from, limit } => scan(log, context, command.namespace, from, limit as usize),
        _ => unreachable!("writes are executed with their identity"),
    }
}

/// What there is in memory.
fn usage(log: &Log, limits: &Limits) -> Usage {
    let memory = log.memory();
    Usage {
        used_bytes: memory.used_bytes,
        limit_bytes: memory.limit_bytes,
        live_bytes: memory.live_bytes,
        expired: memory.expired_sessions,
        evicted: limits.evicted(),
        namespaces: namespace_uses(log),
    }
}

/// What there is of each namespace that has anything, or has evicted something.
pub(crate) fn namespace_uses(log: &Log) -> Vec<NamespaceUse> {
    (0..=u8::MAX)
        .map(Namespace)
        .map(|namespace| {
            let count = log.count(namespace);
            NamespaceUse {
                namespace,
                sessions: count.sessions,
                with_deadline: count.with_deadline,
                bytes: count.bytes,
                evicted: log.evicted(namespace),
            }
        })
        .filter(|used| used.sessions > 0 || used.evicted > 0)
        .collect()
}

fn scan(
    log: &Log,
    context: Context<'_>,
    namespace: Namespace,
    from: KeyHash,
    limit: usize,
) -> Outcome {
    let owned = |slot: Slot| context.owned.iter().any(|range| range.contains(slot));
    let limit = limit.clamp(1, SCAN_KEYS_MAX);
    let mut keys = Vec::new();
    let (mut next, mut bytes, mut counted) = (Some(from), 0, 0);
    while let Some(at) = next
        && keys.len() < limit
        && bytes < SCAN_BYTES_MAX
    {
        let step = SCAN_STEP_KEYS.min(limit - keys.len());
        next = log.scan(namespace, at, step, context.now, &mut keys, &owned);
        assert!(
            next.is_none_or(|next| next > at),
            "a scan that stands still never ends"
        );
        bytes += keys[counted..]
            .iter()
            .map(|(_, key)| key.len())
            .sum::<usize>();
        counted = keys.len();
    }
    Outcome::Scanned { keys, next }
}

pub(crate) fn meta(version: Version, expiry: Expiry, now: ClusterMs) -> Meta {
    Meta {
        version,
        deadline: expiry.deadline,
        idle_ms: expiry.idle_ms,
        absolute: expiry.absolute,
        remaining_ms: expiry
            .deadline
            .map(|deadline| deadline.0.saturating_sub(now.0).max(1)),
    }
}

/// The meta of something that is no longer there.
fn gone(version: Version) -> Meta {
    Meta {
        version,
        ..Meta::default()
    }
}

/// A session as it was before a write, with its value copied only if somebody needs it.
struct Current {
    version: Version,
    expiry: Expiry,
    value: Option<Bytes>,
    value_matches: bool,
}

/// When a session is to expire.
enum When {
    /// Never, or later.
    Expiry(Expiry),
    /// It is over already.
    Past,
}

/// Turns a change into times. `current` is what there was before, if anything.
fn changed(change: ExpiryChange, current: Option<Expiry>, now: ClusterMs) -> When {
    let at = |deadline: ClusterMs| {
        if deadline <= now {
            When::Past
        } else {
            When::Expiry(Expiry::at(deadline))
        }
    };
    match change {
        ExpiryChange::Clear => When::Expiry(Expiry::default()),
        ExpiryChange::Keep => When::Expiry(current.unwrap_or_default()),
        ExpiryChange::In { ms } => match u64::try_from(ms) {
            Ok(ms) => at(now.plus_ms(ms)),
            Err(_) => When::Past,
        },
        ExpiryChange::At { deadline } => at(deadline),
        ExpiryChange::Session { idle_ms, absolute } => {
            let idle_ms = idle_ms.filter(|&ms| ms > 0);
            let absolute = absolute.map(|absolute| match absolute {
                AbsoluteDeadline::At(deadline) => deadline,
                AbsoluteDeadline::InMs(ms) => now.plus_ms(ms),
            });
            let deadline = idle_ms.map(|ms| now.plus_ms(u64::from(ms)));
            let expiry = Expiry {
                deadline,
                idle_ms,
                absolute,
            }
            .stored();
            match expiry.deadline {
                Some(deadline) if deadline <= now => When::Past,
                _ => When::Expiry(expiry),
            }
        }
        ExpiryChange::Slide => {
            let current = current.unwrap_or_default();
            let deadline = match current.idle_ms {
                Some(ms) => Some(now.plus_ms(u64::from(ms))),
                None => current.deadline,
            };
            When::Expiry(
                Expiry {
                    deadline,
                    ..current
                }
                .stored(),
            )
        }
    }
}

/// The same for a touch, which never loosens the session's own absolute deadline and changes its idle time
/// only when told a whole new `Session`.
fn touched(change: ExpiryChange, current: Expiry, now: ClusterMs) -> When {
    match changed(change, Some(current), now) {
        When::Past => When::Past,
        When::Expiry(expiry) => match change {
            ExpiryChange::Session { .. } => When::Expiry(expiry),
            _ => When::Expiry(
                Expiry {
                    deadline: expiry.deadline,
                    ..current
                }
                .stored(),
            ),
        },
    }
}

/// One write under way.
struct Write<'a> {
    log: &'a mut Log,
    limits: &'a mut Limits,
    owned: &'a [SlotRange],
    evicted: &'a mut Vec<KeyHash>,
    now: ClusterMs,
    namespace: Namespace,
    key: &'a [u8],
    slot: Slot,
    /// `None`: nothing has to be remembered of it.
    once: Option<&'a Once>,
    /// See `Context`.
    unseen: bool,
}

impl Write<'_> {
    fn put(
        self,
        value: &[u8],
        condition: &Condition,
        change: ExpiryChange,
        return_old: bool,
    ) -> Result<Outcome, Undone> {
        // A plain SET asks nothing of what there was.
        let blind = asks_nothing(condition, change, return_old);
        assert!(blind || !self.unseen, "what is not known is not asked for");
        let current = match blind {
            true => None,
            false => self.current(return_old, compared(condition)),
        };
        if !holds(condition, current.as_ref()) {
            return self.refused(current);
        }
        let expiry = match changed(change, current.as_ref().map(|c| c.expiry), self.now) {
            When::Past => return self.remove(current, done),
            When::Expiry(expiry) => expiry.stored(),
        };
        let old = current.and_then(|current| current.value);
        self.store(value, expiry, old)
    }

    fn add(self, by: i64) -> Result<Outcome, Undone> {
        let refuse = |text: &str| Undone::Failed(Failure::Invalid(text.to_owned()));
        let current = self.current(true, None);
        let number = match current.as_ref().and_then(|current| current.value.as_ref()) {
            None => 0,
            Some(value) => parse_integer(value)
                .ok_or_else(|| refuse("value is not an integer or out of range"))?,
        };
        let sum = number
            .checked_add(by)
            .ok_or_else(|| refuse("increment or decrement would overflow"))?;
        let digits = Bytes::from(sum.to_string());
        let expiry = current.map_or(Expiry::default(), |current| current.expiry);
        self.store(&digits, expiry.stored(), Some(digits.clone()))
    }

    fn append(self, more: &[u8]) -> Result<Outcome, Undone> {
        let current = self.current(true, None);
        let before = current.as_ref().and_then(|current| current.value.as_ref());
        let value = [before.map_or(&[][..], |value| value), more].concat();
        if let Some(failure) = too_large(self.log, value.len()) {
            return Err(Undone::Failed(failure));
        }
        let expiry = current.map_or(Expiry::default(), |current| current.expiry);
        let length = Bytes::from(value.len().to_string());
        self.store(&value, expiry.stored(), Some(length))
    }

    /// Stores a value, and answers that this is done.
    fn store(self, value: &[u8], expiry: Expiry, old: Option<Bytes>) -> Result<Outcome, Undone> {
        let wish = Wish {
            namespace: self.namespace,
            key: self.key,
            value,
            expiry,
        };
        let owned = |slot: Slot| self.owned.iter().any(|range| range.contains(slot));
        self.limits
            .admit(self.log, wish, self.now, &owned, self.evicted)
            .map_err(Undone::Failed)?;
        if self.once.is_none() {
            let version = match self.unseen {
                true => (self.log).put_unseen(
                    self.namespace,
                    self.key,
                    value,
                    expiry,
                    None,
                    self.now,
                )?,
                false => self
                    .log
                    .put(self.namespace, self.key, value, expiry, None, self.now)?,
            };
            let meta = meta(version, expiry, self.now);
            return Ok(Outcome::Done { meta, old });
        }
        let version = match self.unseen {
            true => self.log.next_version(),
            false => (self.log).put_version(self.namespace, self.key, value, expiry, self.now),
        };
        let outcome = Outcome::Done {
            meta: meta(version, expiry, self.now),
            old,
        };
        let bytes = self.encoded(&outcome);
        let completion = self.completion(&bytes);
        let (namespace, key, now) = (self.namespace, self.key, self.now);
        let put = match self.unseen {
            true => (self.log).put_unseen(namespace, key, value, expiry, completion, now)?,
            false => (self.log).put(namespace, key, value, expiry, completion, now)?,
        };
        assert_eq!(
            put, version,
            "the answer on record tells another version than was written"
        );
        Ok(outcome)
    }

    fn touch(
        mut self,
        condition: &TouchCondition,
        change: ExpiryChange,
        return_value: bool,
    ) -> Result<Outcome, Undone> {
        let value_is = match condition {
            TouchCondition::ValueIs(bytes) => Some(&bytes[..]),
            _ => None,
        };
        let rewritten = matches!(change, ExpiryChange::Session { .. });
        let Some(mut current) = self.current(return_value || rewritten, value_is) else {
            return self.absent();
        };
        let when = touched(change, current.expiry, self.now);
        // "Later" and "earlier" are about the deadline asked for, past or not.
        let deadline = match &when {
            When::Past => Some(self.now),
            When::Expiry(expiry) => expiry.deadline,
        };
        let of = |deadline: Option<ClusterMs>| deadline.map_or(u64::MAX, |deadline| deadline.0);
        let holds = match condition {
            TouchCondition::Always => true,
            TouchCondition::NoDeadline => current.expiry.deadline.is_none(),
            TouchCondition::HasDeadline => current.expiry.deadline.is_some(),
            TouchCondition::Later => of(deadline) > of(current.expiry.deadline),
            TouchCondition::Earlier => of(deadline) < of(current.expiry.deadline),
            TouchCondition::Version(version) => current.version == *version,
            TouchCondition::ValueIs(_) => current.value_matches,
        };
        if !holds {
            if !return_value {
                current.value = None;
            }
            return self.refused(Some(current));
        }
        let When::Expiry(expiry) = when else {
            return self.remove(Some(current), |meta, old| match (return_value, old) {
                (true, Some(value)) => Outcome::Value { value, meta },
                _ => Outcome::Done { meta, old: None },
            });
        };
        let outcome = |version: Version, value: Option<Bytes>| {
            let meta = meta(version, expiry, self.now);
            match value {
                Some(value) if return_value => Outcome::Value { value, meta },
                _ => Outcome::Done { meta, old: None },
            }
        };
        let same_session =
            (expiry.idle_ms, expiry.absolute) == (current.expiry.idle_ms, current.expiry.absolute);
        if !same_session {
            // Idle time and absolute deadline stand in the object alone: it is written again.
            let value = current.value.expect("kept for this");
            let version = self
                .log
                .put_version(self.namespace, self.key, &value, expiry, self.now);
            let outcome = outcome(version, Some(value.clone()));
            let bytes = self.encoded(&outcome);
            let completion = self.completion(&bytes);
            let put = self.log.put(
                self.namespace,
                self.key,
                &value,
                expiry,
                completion,
                self.now,
            )?;
            assert_eq!(
                put, version,
                "the answer on record tells another version than was written"
            );
            return Ok(outcome);
        }
        let outcome = outcome(current.version, current.value);
        let bytes = self.encoded(&outcome);
        let completion = self.completion(&bytes);
        if expiry.deadline == current.expiry.deadline {
            self.record(&outcome)?;
        } else {
            let found = self.log.touch(
                self.namespace,
                self.key,
                expiry.deadline,
                completion,
                self.now,
            )?;
            assert!(found, "a session found a moment ago");
        }
        Ok(outcome)
    }

    fn delete(self, condition: &Condition, return_old: bool) -> Result<Outcome, Undone> {
        let Some(current) = self.current(return_old, compared(condition)) else {
            return self.absent();
        };
        if !holds(condition, Some(&current)) {
            return self.refused(Some(current));
        }
        self.remove(Some(current), done)
    }

    fn flush(self, ranges: &[SlotRange]) -> Result<Outcome, Undone> {
        let outcome = Outcome::Flushed;
        let bytes = self.encoded(&outcome);
        let completion = self.completion(&bytes);
        self.log
            .flush(self.namespace, ranges, completion, self.now)?;
        Ok(outcome)
    }

    /// Removes what there is, if anything; `answer` makes the outcome of the tombstone's meta and the
    /// old value.
    fn remove(
        mut self,
        current: Option<Current>,
        answer: impl FnOnce(Meta, Option<Bytes>) -> Outcome,
    ) -> Result<Outcome, Undone> {
        let Some(current) = current else {
            let outcome = answer(gone(self.log.last_version()), None);
            self.record(&outcome)?;
            return Ok(outcome);
        };
        let version = self.log.next_version();
        let outcome = answer(gone(version), current.value);
        let bytes = self.encoded(&outcome);
        let completion = self.completion(&bytes);
        let deleted = self
            .log
            .delete(self.namespace, self.key, completion, self.now)?;
        assert_eq!(deleted, Some(version), "a session found a moment ago");
        Ok(outcome)
    }

    fn absent(mut self) -> Result<Outcome, Undone> {
        let outcome = Outcome::Absent {
            version: self.log.last_version(),
        };
        self.record(&outcome)?;
        Ok(outcome)
    }

    fn refused(mut self, current: Option<Current>) -> Result<Outcome, Undone> {
        let outcome = Outcome::Refused {
            version: self.log.last_version(),
            current: current
                .as_ref()
                .map(|c| meta(c.version, c.expiry, self.now)),
            old: current.and_then(|current| current.value),
        };
        self.record(&outcome)?;
        Ok(outcome)
    }

    fn current(&self, keep_value: bool, value_is: Option<&[u8]>) -> Option<Current> {
        let found = self.log.find(self.namespace, self.key, self.now)?;
        Some(Current {
            version: found.version,
            expiry: found.expiry,
            value: keep_value.then(|| Bytes::copy_from_slice(found.value)),
            value_matches: value_is == Some(found.value),
        })
    }

    fn completion<'o>(&self, outcome: &'o [u8]) -> Option<Completion<'o>> {
        self.once.map(|once| Completion {
            client: once.client,
            sequence: once.sequence,
            lease_until: once.lease_until,
            slot: self.slot,
            outcome,
        })
    }

    /// What a completion record is to hold; nothing if there will be none.
    fn encoded(&self, outcome: &Outcome) -> Vec<u8> {
        if self.once.is_none() {
            return Vec::new();
        }
        let mut bytes = Vec::with_capacity(OUTCOME_BYTES_USUAL);
        encode_outcome(outcome, &mut bytes);
        bytes
    }

    /// Remembers the outcome of a write that changed nothing.
    fn record(&mut self, outcome: &Outcome) -> Result<(), AppendError> {
        let bytes = self.encoded(outcome);
        match self.completion(&bytes) {
            Some(completion) => self.log.record(completion),
            None => Ok(()),
        }
    }
}

/// True of a put whose answer does not depend on what there was, and that cannot turn out to be a delete.
pub(crate) fn is_blind(op: &Op) -> bool {
    match op {
        Op::Put {
            condition,
            expiry,
            return_old,
            ..
        } => asks_nothing(condition, *expiry, *return_old),
        _ => false,
    }
}

fn asks_nothing(condition: &Condition, change: ExpiryChange, return_old: bool) -> bool {
    *condition == Condition::Always
        && !return_old
        && matches!(
            change,
            // None of these can be over already, which would make it a delete.
            ExpiryChange::Clear
                | ExpiryChange::In { ms: 1.. }
                | ExpiryChange::Session { absolute: None, .. }
        )
}

fn compared(condition: &Condition) -> Option<&[u8]> {
    match condition {
        Condition::ValueIs(bytes) => Some(bytes),
        _ => None,
    }
}

fn holds(condition: &Condition, current: Option<&Current>) -> bool {
    match (condition, current) {
        (Condition::Always, _) => true,
        (Condition::Absent, current) => current.is_none(),
        (_, None) => false,
        (Condition::Present, Some(_)) => true,
        (Condition::Version(version), Some(current)) => current.version == *version,
        (Condition::ValueIs(_), Some(current)) => current.value_matches,
    }
}

/// The usual answer of a write.
fn done(meta: Meta, old: Option<Bytes>) -> Outcome {
    Outcome::Done { meta, old }
}
