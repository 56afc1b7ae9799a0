//! Which fields a message has, in which order, and under which numbers.
//!
//! Numbers are never used again for something else. A structure's fields stand in the order of its
//! declaration.

use bytes::{BufMut, Bytes, BytesMut};
use holdfast_format::{SegmentId, SlotRange};

use super::fields::{DecodeError, Field, Reader};
use crate::command::*;
use crate::message::*;
use crate::namespaces::*;

pub(super) const REQUESTS: u8 = 0x40;
pub(super) const RESPONSES: u8 = 0x41;

/// Messages whose fields all have an encoding: type, variant and how it is put and taken.
macro_rules! messages {
    (
        structs { $($stype:literal $svariant:ident($sname:ident))* }
        inline { $($itype:literal $ivariant:ident { $($field:ident),* })* }
    ) => {
        /// The number of the message.
        pub(super) fn type_of(message: &Message) -> u8 {
            match message {
                $(Message::$svariant(_) => $stype,)*
                $(Message::$ivariant { .. } => $itype,)*
                Message::Append(_) => APPEND,
                Message::FetchPart(_) => FETCH_PART,
            }
        }

        /// Everything but the tail.
        pub(super) fn put_fields(message: &Message, out: &mut BytesMut) {
            match message {
                $(Message::$svariant(fields) => fields.put(out),)*
                $(Message::$ivariant { $($field),* } => { $($field.put(out);)* })*
                Message::Append(append) => put_append(append, out),
                Message::FetchPart(part) => put_fetch_part(part, out),
            }
        }

        /// The message of this type; `None` if the type is unknown.
        pub(super) fn take(
            message_type: u8,
            from: &mut Reader,
            tail: Option<Bytes>,
        ) -> Result<Option<Message>, DecodeError> {
            match (message_type, tail) {
                (APPEND, Some(tail)) => take_append(from, tail).map(Message::Append).map(Some),
                (FETCH_PART, Some(tail)) => {
                    take_fetch_part(from, tail).map(Message::FetchPart).map(Some)
                }
                (APPEND | FETCH_PART, None) | (_, Some(_)) => Err(DecodeError::Tail),
                $(($stype, None) => $sname::take(from).map(Message::$svariant).map(Some),)*
                $(($itype, None) => {
                    Ok(Some(Message::$ivariant { $($field: Field::take(from)?),* }))
                })*
                _ => Ok(None),
            }
        }
    };
}

const APPEND: u8 = 0x10;
const FETCH_PART: u8 = 0x28;

messages! {
    structs {
        0x01 Enlist(Enlist)
        0x02 Enlisted(Enlisted)
        0x03 View(View)
        0x04 Heartbeat(Heartbeat)
        0x05 HeartbeatReply(HeartbeatReply)
        0x11 Appended(Appended)
        0x12 AppendRefused(AppendRefused)
        0x21 Inventory(Inventory)
        0x22 Recover(Recover)
        0x27 Fetch(Fetch)
        0x40 Requests(Requests)
        0x41 Responses(Responses)
    }
    inline {
        0x06 Ping { nonce }
        0x07 Pong { nonce }
        0x08 Suspect { server, ended }
        0x13 Free { log, segments }
        0x14 RaiseEpoch { log, epoch }
        0x15 EpochRecorded { log, epoch }
        0x20 Fence { log, epoch }
        0x23 RecoveryProgress { log, attempt, entries, bytes, done_bytes, total_bytes }
        0x24 Recovered { log, attempt, entries, bytes, timings }
        0x25 RecoveryFailed { log, attempt, reason }
        0x26 RecoveryRecorded { log, attempt }
        0x29 FetchFailed { log, segment, attempt, certificate }
        0x2a LogGone { log }
        0x2b Replayed { log, attempt, entries, bytes, bytes_left, timings }
        0x2c AskOutlines { log, attempt, segments }
        0x2d Outline { log, segment, attempt, outline }
        0x2e LookUp { log, segment, attempt, certificate, key }
        0x2f LookedUp { log, segment, attempt, key, entries }
    }
}

/// The bytes that go after the fields, outside the checksum.
pub(super) fn tail(message: &Message) -> Option<&Bytes> {
    match message {
        Message::Append(append) => Some(&append.bytes),
        Message::FetchPart(part) => Some(&part.entries),
        _ => None,
    }
}

/// The length of the longest list that a receiver would have to take.
pub(super) fn longest_list(message: &Message) -> usize {
    fn view(view: &View) -> usize {
        view.members
            .len()
            .max(view.tablets.len())
            .max(view.recovering.len())
            .max(view.namespaces.len())
    }
    let scanned = |outcome: &Outcome| match outcome {
        Outcome::Scanned { keys, .. } => keys.len(),
        Outcome::Usage(usage) => usage.namespaces.len(),
        _ => 0,
    };
    match message {
        Message::Enlist(enlist) => enlist.logs.len(),
        Message::Enlisted(enlisted) => view(&enlisted.view),
        Message::View(new) => view(new),
        Message::Heartbeat(heartbeat) => heartbeat.namespaces.len(),
        Message::Free { segments, .. } => segments.len(),
        Message::Inventory(Inventory { replicas, .. }) => {
            let digests = replicas
                .iter()
                .map(|r| r.digest.as_ref().map_or(0, Vec::len));
            digests.max().unwrap_or(0).max(replicas.len())
        }
        Message::Recover(recover) => {
            let lists = |ranges: &[SlotRange], segments: &[RecoverSegment]| {
                let holders = segments.iter().map(|s| s.holders.len()).max();
                holders.unwrap_or(0).max(ranges.len()).max(segments.len())
            };
            let leant_on = recover.leant_on.iter();
            let others = leant_on.map(|other| lists(&other.ranges, &other.segments));
            lists(&recover.ranges, &recover.segments)
                .max(recover.leant_on.len())
                .max(others.max().unwrap_or(0))
        }
        Message::Fetch(fetch) => fetch.ranges.len(),
        Message::AskOutlines { segments, .. } => segments.len(),
        // Split into frames by the encoder; only what is inside an item counts.
        Message::Responses(Responses { items, .. }) => items
            .iter()
            .map(|item| scanned(&item.outcome))
            .max()
            .unwrap_or(0),
        _ => 0,
    }
}

/// About how many bytes a command takes in a frame.
pub(super) fn command_weight(command: &Command) -> usize {
    let values = match &command.op {
        Op::Put {
            value,
            condition: Condition::ValueIs(is),
            ..
        } => value.len() + is.len(),
        Op::Put { value, .. } | Op::Append { value } => value.len(),
        Op::Delete {
            condition: Condition::ValueIs(is),
            ..
        } => is.len(),
        Op::Touch {
            condition: TouchCondition::ValueIs(is),
            ..
        } => is.len(),
        _ => 0,
    };
    FIELDS_WEIGHT + command.key.len() + values
}

/// About how many bytes an outcome takes in a frame.
pub(super) fn outcome_weight(outcome: &Outcome) -> usize {
    let values = match outcome {
        Outcome::Value { value, .. } => value.len(),
        Outcome::Done { old: Some(old), .. } | Outcome::Refused { old: Some(old), .. } => old.len(),
        Outcome::Scanned { keys, .. } => keys.iter().map(|(_, key)| key.len() + 12).sum(),
        Outcome::Usage(usage) => FIELDS_WEIGHT * usage.namespaces.len(),
        _ => 0,
    };
    FIELDS_WEIGHT + values
}

/// What everything but keys and values comes to, at most about.
const FIELDS_WEIGHT: usize = 64;

macro_rules! structures {
    ($($name:ident { $($field:ident),* $(,)? })*) => {$(
        impl Field for $name {
            fn put<B: BufMut>(&self, out: &mut B) {
                let $name { $($field),* } = self;
                $($field.put(out);)*
            }
            fn take(from: &mut Reader) -> Result<$name, DecodeError> {
                Ok($name { $($field: Field::take(from)?),* })
            }
        }
    )*};
}

structures! {
    Member { id, role, address, machine, pid, resp_cluster, name, store }
    Enlist { member, logs }
    Enlisted { id, config, view }
    ClusterConfig { cluster, replicas, ack_quorum, lease_ms, heartbeat_ms, probe_ms, ack_disk }
    View { version, members, tablets, recovering, namespaces, slow }
    Tablet { range, owner, epoch, available }
    Heartbeat { from, sent_us, view_version, figures, namespaces, loads, append_waits }
    AppendWait { backup, appends, wait_us }
    SlotLoad { entries, kib }
    Figures {
        sessions, bytes_used, bytes_limit, segments, under_replicated, operations, disk_used,
        disk_limit, clock_error_us, bytes_live, bytes_reclaimable, bytes_reserved, bytes_index,
        bytes_records, bytes_external, bytes_huge, expired, evicted, scrub_permille, scrub_passes,
        scrub_bad,
    }
    HeartbeatReply { sent_us, cluster_us, view_version, known }
    Appended { log, epoch, segment, length, closed, sent_us, lease_ms }
    AppendRefused { log, segment, why }
    Inventory { log, epoch, replicas, lease_remaining_ms, expiry_ceiling }
    ReplicaState { segment, epoch, closed, certificate, version_ceiling, digest }
    Recover {
        log, attempt, ranges, segments, version_ceiling, expiry_floor, lease_remaining_ms, first,
        leant_on,
    }
    LeantOn { log, ranges, segments }
    RecoverSegment { segment, holders }
    Holder { backup, certificate }
    ReplayTimings { first_byte_ms, replayed_ms, replicated_ms }
    Fetch { log, segment, attempt, certificate, ranges }
    Requests { client, stream, first, items }
    Request { token, once, command }
    Responses { client, stream, items }
    Response { token, outcome }
    NamespacePolicy { namespace, limits }
    NamespaceLimits { sessions, bytes, value_bytes, evict }
    NamespaceUse { namespace, sessions, with_deadline, bytes, evicted }
    Usage { used_bytes, limit_bytes, live_bytes, expired, evicted, namespaces }
    Command { namespace, key, op }
    Once { client, sequence, acknowledged, lease_until }
    Meta { version, deadline, idle_ms, absolute, remaining_ms }
}

/// Enums: a tag byte and the variant's fields.
macro_rules! variants {
    ($($name:ident { $($tag:literal $variant:ident $(($($tuple:ident),*))? $({ $($field:ident),* })?),* $(,)? })*) => {$(
        impl Field for $name {
            fn put<B: BufMut>(&self, out: &mut B) {
                match self {
                    $($name::$variant $(($($tuple),*))? $({ $($field),* })? => {
                        out.put_u8($tag);
                        $($($tuple.put(out);)*)?
                        $($($field.put(out);)*)?
                    })*
                }
            }
            fn take(from: &mut Reader) -> Result<$name, DecodeError> {
                match from.byte()? {
                    $($tag => {
                        $($(let $tuple = Field::take(from)?;)*)?
                        $($(let $field = Field::take(from)?;)*)?
                        Ok($name::$variant $(($($tuple),*))? $({ $($field),* })?)
                    })*
                    tag => Err(DecodeError::UnknownVariant { what: stringify!($name), tag }),
                }
            }
        }
    )*};
}

variants! {
    Role { 0 Coordinator, 1 Shard, 2 Backup, 3 Gateway }
    Refusal { 0 Fenced { epoch }, 1 Reopen { length }, 2 Full, 3 Broken }
    RecoveryFailure { 0 OutOfMemory, 1 SegmentMissing(segment) }
    Op {
        0 Get,
        1 Stat,
        2 Put { value, condition, expiry, return_old },
        3 Touch { condition, expiry, return_value },
        4 Delete { condition, return_old },
        5 Scan { from, limit },
        6 Count,
        7 Flush,
        8 Usage,
        9 Add { by },
        10 Append { value },
    }
    Condition { 0 Always, 1 Absent, 2 Present, 3 Version(version), 4 ValueIs(value) }
    TouchCondition {
        0 Always, 1 NoDeadline, 2 HasDeadline, 3 Later, 4 Earlier, 5 Version(version),
        6 ValueIs(value),
    }
    ExpiryChange {
        0 Clear, 1 Keep, 2 In { ms }, 3 At { deadline }, 4 Session { idle_ms, absolute }, 5 Slide,
    }
    AbsoluteDeadline { 0 At(deadline), 1 InMs(ms) }
    Outcome {
        0 Value { value, meta },
        1 Absent { version },
        2 Done { meta, old },
        3 Refused { version, current, old },
        4 Scanned { keys, next },
        5 Counted { sessions, with_deadline },
        6 Flushed,
        7 Failed(failure),
        8 Usage(usage),
    }
    Failure {
        0 NotOwner,
        1 NotReady,
        2 OutOfMemory,
        3 ValueTooLarge { bytes, limit },
        4 KeyTooLarge { bytes, limit },
        5 Busy,
        6 StaleClient,
        7 OutcomeUnknown,
        8 Unreachable,
        9 Invalid(why),
        10 NamespaceFull { namespace, quota, limit },
        11 NamespaceValueTooLarge { namespace, bytes, limit },
        12 TooLate,
    }
    Quota { 0 Sessions, 1 Bytes }
    Eviction { 0 Never, 1 OldestIdle }
}

impl Field for Certificate {
    fn put<B: BufMut>(&self, out: &mut B) {
        self.length.put(out);
        // A checksum is as random as an id.
        out.put_u32_le(self.checksum);
    }
    fn take(from: &mut Reader) -> Result<Certificate, DecodeError> {
        let length = Field::take(from)?;
        Ok(Certificate {
            length,
            checksum: from.u32_le()?,
        })
    }
}

/// The fields of `Append` but for its bytes, which are the tail.
fn put_append(append: &Append, out: &mut BytesMut) {
    let Append {
        log,
        epoch,
        segment,
        offset,
        bytes: _,
        certificate,
        open,
        close,
        sent_us,
        lease_ms,
        expiry_ceiling,
    } = append;
    log.put(out);
    epoch.put(out);
    segment.put(out);
    offset.put(out);
    certificate.put(out);
    open.put(out);
    close.put(out);
    sent_us.put(out);
    lease_ms.put(out);
    expiry_ceiling.put(out);
}

fn take_append(from: &mut Reader, bytes: Bytes) -> Result<Append, DecodeError> {
    Ok(Append {
        log: Field::take(from)?,
        epoch: Field::take(from)?,
        segment: Field::take(from)?,
        offset: Field::take(from)?,
        bytes,
        certificate: Field::take(from)?,
        open: Field::take(from)?,
        close: Field::take(from)?,
        sent_us: Field::take(from)?,
        lease_ms: Field::take(from)?,
        expiry_ceiling: Field::take(from)?,
    })
}

/// The fields of `FetchPart` but for its entries, which are the tail.
fn put_fetch_part(part: &FetchPart, out: &mut BytesMut) {
    let FetchPart {
        log,
        segment,
        attempt,
        certificate,
        part,
        last,
        entries: _,
    } = part;
    log.put(out);
    segment.put(out);
    attempt.put(out);
    certificate.put(out);
    part.put(out);
    last.put(out);
}

fn take_fetch_part(from: &mut Reader, entries: Bytes) -> Result<FetchPart, DecodeError> {
    let (log, segment): (_, SegmentId) = Field::take(from)?;
    Ok(FetchPart {
        log,
        segment,
        attempt: Field::take(from)?,
        certificate: Field::take(from)?,
        part: Field::take(from)?,
        last: Field::take(from)?,
        entries,
    })
}
