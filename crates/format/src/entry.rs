//! Entries: what a segment is made of. `docs/format.md` shows every byte.
//!
//! One type per entry serves both directions: its fields are what the bytes say, borrowed from
//! them when read. All integers are little-endian; every entry begins with the CRC32C of the rest
//! of it and a byte of type and flags. An entry says by itself how long it is, so that a segment can
//! be walked without an index.
//!
//! E1. `decode` of untrusted bytes never panics and never reads outside them.
//! E2. Whatever `encode` writes, `decode` gives back as it was (times as `Expiry::stored` has them).
//! E3. No entry type is 0, so that zeroed or preallocated bytes are not entries.

use crate::checksum::crc32c;
use crate::expiry::{AbsoluteDelta, clamp};
use crate::{
    ClientId, ClusterMs, Expiry, KeyHash, LogId, Namespace, SegmentId, Slot, SlotRange, Version,
};

/// Bytes of every entry before what belongs to its type.
const PREFIX_BYTES: usize = 5;
/// Header of an object without idle time and absolute deadline, of a tombstone and range tombstone.
pub const HEADER_BYTES: usize = 24;
/// Header of an object with idle time or absolute deadline, and of a touch.
pub const LONG_HEADER_BYTES: usize = 32;
/// Header of a completion record.
pub const COMPLETION_HEADER_BYTES: usize = 40;
/// Length of an encoded `SegmentHeader`.
pub const SEGMENT_HEADER_BYTES: usize = 40;
/// Longest key that can be stored: 64 KiB less one.
pub const KEY_BYTES_MAX: usize = u16::MAX as usize;
/// Longest value or outcome that can be stored: 16 MiB less one.
pub const VALUE_BYTES_MAX: usize = (1 << 24) - 1;
/// The largest version that can be stored: 56 bits last a million writes a second for 2,000 years.
pub const VERSION_MAX: Version = Version((1 << 56) - 1);
/// The largest segment id that a tombstone's birth can name.
pub const BIRTH_MAX: SegmentId = SegmentId((1 << 48) - 1);

/// The version of this format, stated in every segment header.
pub const FORMAT_VERSION: u8 = 1;
const MAGIC: [u8; 8] = *b"HOLDFAST";

pub(crate) const TYPE_MASK: u8 = 0x0F;
pub(crate) const TYPE_OBJECT: u8 = 1;
pub(crate) const TYPE_TOMBSTONE: u8 = 2;
pub(crate) const TYPE_TOUCH: u8 = 3;
const TYPE_COMPLETION: u8 = 4;
const TYPE_RANGE_TOMBSTONE: u8 = 5;
const TYPE_SEGMENT_HEADER: u8 = 6;
const TYPE_DIGEST: u8 = 7;

pub(crate) const FLAG_SHADOWING: u8 = 0x10;
/// The header has 8 more bytes: idle time and absolute deadline.
pub(crate) const FLAG_LONG: u8 = 0x20;
/// The distance to the absolute deadline is in seconds, not milliseconds.
const FLAG_SECONDS: u8 = 0x40;
/// The flags that an object may have.
pub(crate) const OBJECT_FLAGS: u8 = FLAG_SHADOWING | FLAG_LONG | FLAG_SECONDS;

/// Any entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    Object(Object<'a>),
    Tombstone(Tombstone<'a>),
    Touch(Touch<'a>),
    Completion(CompletionRecord<'a>),
    RangeTombstone(RangeTombstone),
    SegmentHeader(SegmentHeader),
    Digest(Digest<'a>),
}

/// A session as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object<'a> {
    pub namespace: Namespace,
    pub key: &'a [u8],
    pub value: &'a [u8],
    pub version: Version,
    pub expiry: Expiry,
    /// Older copies of the key may outlive this one on replicas: when it expires, a tombstone must
    /// take its place (`docs/design-notes.md`, "Expiry and touch").
    pub shadowing: bool,
}

/// A key is gone. Ordered against objects and touches by version; at the same version it wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tombstone<'a> {
    pub namespace: Namespace,
    pub key: &'a [u8],
    /// The delete's own version, or that of the expired object that it replaces.
    pub version: Version,
    /// The highest segment id in use when it was first written: only segments up to that one can
    /// hold older copies of the key.
    pub birth: SegmentId,
}

/// A new deadline for an object, which itself stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch<'a> {
    pub namespace: Namespace,
    pub key: &'a [u8],
    /// The version of the object it belongs to.
    pub version: Version,
    /// 1, 2, 3, … per object; the highest counts.
    pub number: u64,
    /// `None`: never.
    pub deadline: Option<ClusterMs>,
    /// As for objects.
    pub shadowing: bool,
}

/// The outcome of one write of a client that identifies itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompletionRecord<'a> {
    pub client: ClientId,
    pub sequence: u64,
    pub lease_until: ClusterMs,
    /// The slot of the write's key.
    pub slot: Slot,
    pub outcome: &'a [u8],
}

/// Every session of a namespace in a slot range, up to a version, is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeTombstone {
    pub namespace: Namespace,
    pub range: SlotRange,
    /// What was written with a version up to this one is gone; later writes stay.
    pub up_to: Version,
    /// As for tombstones.
    pub birth: SegmentId,
}

/// The first entry of every segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub log: LogId,
    pub segment: SegmentId,
    /// Above every version that the log assigns before it opens its next head.
    pub version_ceiling: Version,
    pub kind: HeaderKind,
}

/// How a segment came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderKind {
    /// Opened as the head of the log; a digest follows.
    Head,
    /// Written by the cleaner or by a replay; no digest.
    Side,
}

/// All segments of the log, itself included: the second entry of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest<'a> {
    ids: &'a [u8],
}

impl<'a> Digest<'a> {
    /// How many segments it names.
    pub fn len(&self) -> usize {
        self.ids.len() / 8
    }
    /// True if it names none, which no log writes.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
    /// The segments, in the order in which they were written.
    pub fn segments(&self) -> impl Iterator<Item = SegmentId> + 'a {
        self.ids.chunks_exact(8).map(|id| SegmentId(u64_at(id, 0)))
    }
    /// Length of the digest of `segments` segments.
    pub fn encoded_len(segments: usize) -> usize {
        8 + 8 * segments
    }
    /// Writes the digest of `segments` and returns its length. Panics if `out` is too short.
    pub fn encode(segments: &[SegmentId], out: &mut [u8]) -> usize {
        assert!(segments.len() < 1 << 24, "a log has far fewer segments");
        let length = Self::encoded_len(segments.len());
        let out = &mut out[..length];
        out[4] = TYPE_DIGEST;
        put_u24(out, 5, segments.len());
        for (i, id) in segments.iter().enumerate() {
            out[8 + 8 * i..16 + 8 * i].copy_from_slice(&id.0.to_le_bytes());
        }
        seal(out);
        length
    }
}

/// Why bytes are not an entry. Whoever reads a replica stops here and asks another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The bytes end before the entry does.
    #[error("the entry needs {needed} bytes and {available} are left")]
    Truncated { needed: usize, available: usize },
    #[error("checksum {found:08x} where the bytes have {computed:08x}")]
    Checksum { found: u32, computed: u32 },
    #[error("no entry has type {0}")]
    UnknownType(u8),
    /// The checksum holds and the contents make no sense: written by something else.
    #[error("the entry makes no sense: {0}")]
    Invalid(&'static str),
}

impl<'a> Entry<'a> {
    /// Reads the entry at the start of `bytes` and how long it is. For untrusted bytes.
    pub fn decode(bytes: &'a [u8]) -> Result<(Entry<'a>, usize), EntryError> {
        let length = Self::length(bytes)?;
        let found = u32_at(bytes, 0);
        let computed = crc32c(&bytes[4..length]);
        if found != computed {
            return Err(EntryError::Checksum { found, computed });
        }
        Ok((Self::parse(&bytes[..length])?, length))
    }

    /// As `decode` without looking at the checksum, for memory whose entries were checked when they
    /// came in. Still memory-safe, still no panic.
    #[inline]
    pub fn decode_trusted(bytes: &'a [u8]) -> Result<(Entry<'a>, usize), EntryError> {
        let length = Self::length(bytes)?;
        Ok((Self::parse(&bytes[..length])?, length))
    }

    /// How long the entry at the start of `bytes` is; all of it is there.
    #[inline]
    fn length(bytes: &[u8]) -> Result<usize, EntryError> {
        let need = |needed: usize| {
            if bytes.len() < needed {
                return Err(EntryError::Truncated {
                    needed,
                    available: bytes.len(),
                });
            }
            Ok(())
        };
        need(PREFIX_BYTES)?;
        let kind = bytes[4] & TYPE_MASK;
        let length = match kind {
            TYPE_OBJECT => {
                need(HEADER_BYTES)?;
                header_bytes(bytes[4]) + key_len(bytes) + u24_at(bytes, 8)
            }
            TYPE_TOMBSTONE => {
                need(HEADER_BYTES)?;
                HEADER_BYTES + key_len(bytes)
            }
            TYPE_TOUCH => {
                need(HEADER_BYTES)?;
                LONG_HEADER_BYTES + key_len(bytes)
            }
            TYPE_COMPLETION => {
                need(HEADER_BYTES)?;
                COMPLETION_HEADER_BYTES + u24_at(bytes, 8)
            }
            TYPE_RANGE_TOMBSTONE => HEADER_BYTES,
            TYPE_SEGMENT_HEADER => SEGMENT_HEADER_BYTES,
            TYPE_DIGEST => {
                need(8)?;
                8 + 8 * u24_at(bytes, 5)
            }
            _ => return Err(EntryError::UnknownType(kind)),
        };
        need(length)?;
        Ok(length)
    }

    /// `bytes` is just the entry, as long as `length` says.
    #[inline]
    fn parse(bytes: &'a [u8]) -> Result<Entry<'a>, EntryError> {
        let flags = bytes[4] & !TYPE_MASK;
        let allowed = match bytes[4] & TYPE_MASK {
            TYPE_OBJECT => OBJECT_FLAGS,
            TYPE_TOUCH => FLAG_SHADOWING,
            _ => 0,
        };
        if flags & !allowed != 0 {
            return Err(EntryError::Invalid("a flag that its type does not have"));
        }
        Ok(match bytes[4] & TYPE_MASK {
            TYPE_OBJECT => Entry::Object(Object::parse(bytes, flags)?),
            TYPE_TOMBSTONE => Entry::Tombstone(Tombstone {
                namespace: Namespace(bytes[5]),
                key: &bytes[HEADER_BYTES..],
                version: Version(u56_at(bytes, 11)),
                birth: SegmentId(u48_at(bytes, 18)),
            }),
            TYPE_TOUCH => Entry::Touch(Touch {
                namespace: Namespace(bytes[5]),
                key: &bytes[LONG_HEADER_BYTES..],
                version: Version(u56_at(bytes, 11)),
                number: u64_at(bytes, 24),
                deadline: deadline_at(bytes),
                shadowing: flags & FLAG_SHADOWING != 0,
            }),
            TYPE_COMPLETION => Entry::Completion(CompletionRecord {
                client: ClientId(u64_at(bytes, 24)),
                sequence: u64_at(bytes, 32),
                lease_until: ClusterMs(u48_at(bytes, 18)),
                slot: slot_at(bytes, 6)?,
                outcome: &bytes[COMPLETION_HEADER_BYTES..],
            }),
            TYPE_RANGE_TOMBSTONE => {
                let range = SlotRange {
                    first: slot_at(bytes, 6)?,
                    last: slot_at(bytes, 8)?,
                };
                if range.first > range.last {
                    return Err(EntryError::Invalid("an empty slot range"));
                }
                Entry::RangeTombstone(RangeTombstone {
                    namespace: Namespace(bytes[5]),
                    range,
                    up_to: Version(u56_at(bytes, 11)),
                    birth: SegmentId(u48_at(bytes, 18)),
                })
            }
            TYPE_SEGMENT_HEADER => Entry::SegmentHeader(SegmentHeader::parse_entry(bytes)?),
            TYPE_DIGEST => Entry::Digest(Digest { ids: &bytes[8..] }),
            kind => return Err(EntryError::UnknownType(kind)),
        })
    }

    /// Length of the encoded entry.
    pub fn encoded_len(&self) -> usize {
        match self {
            Entry::Object(object) => object.encoded_len(),
            Entry::Tombstone(tombstone) => tombstone.encoded_len(),
            Entry::Touch(touch) => touch.encoded_len(),
            Entry::Completion(record) => record.encoded_len(),
            Entry::RangeTombstone(_) => HEADER_BYTES,
            Entry::SegmentHeader(_) => SEGMENT_HEADER_BYTES,
            Entry::Digest(digest) => 8 + digest.ids.len(),
        }
    }

    /// Writes the entry and returns its length. Panics if `out` is too short or a field too large.
    pub fn encode(&self, out: &mut [u8]) -> usize {
        match self {
            Entry::Object(object) => object.encode(out),
            Entry::Tombstone(tombstone) => tombstone.encode(out),
            Entry::Touch(touch) => touch.encode(out),
            Entry::Completion(record) => record.encode(out),
            Entry::RangeTombstone(tombstone) => tombstone.encode(out),
            Entry::SegmentHeader(header) => header.encode(out),
            Entry::Digest(digest) => Digest::encode(&digest.segments().collect::<Vec<_>>(), out),
        }
    }

    /// As `encode`, to the end of a vector.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + self.encoded_len(), 0);
        self.encode(&mut out[start..]);
    }

    /// Namespace and key of entries that have one.
    pub fn key(&self) -> Option<(Namespace, &'a [u8])> {
        match *self {
            Entry::Object(Object { namespace, key, .. })
            | Entry::Tombstone(Tombstone { namespace, key, .. })
            | Entry::Touch(Touch { namespace, key, .. }) => Some((namespace, key)),
            _ => None,
        }
    }

    /// The hash of entries that have a key.
    pub fn key_hash(&self) -> Option<KeyHash> {
        self.key()
            .map(|(namespace, key)| KeyHash::of(namespace, key))
    }

    /// The slot of entries that belong to just one.
    pub fn slot(&self) -> Option<Slot> {
        match self {
            Entry::Completion(record) => Some(record.slot),
            _ => self.key().map(|(_, key)| Slot::of(key)),
        }
    }

    /// The slots that the entry concerns. Segment headers and digests concern none.
    pub fn slots(&self) -> Option<SlotRange> {
        match self {
            Entry::RangeTombstone(tombstone) => Some(tombstone.range),
            _ => self.slot().map(|slot| SlotRange {
                first: slot,
                last: slot,
            }),
        }
    }

    /// True if the entry concerns a slot of `ranges`: what a recovery of these ranges must see.
    pub fn concerns(&self, ranges: &[SlotRange]) -> bool {
        self.slots().is_some_and(|slots| {
            ranges
                .iter()
                .any(|range| slots.first <= range.last && range.first <= slots.last)
        })
    }
}

impl<'a> Object<'a> {
    fn is_long(&self) -> bool {
        self.expiry.idle_ms.is_some_and(|ms| ms > 0) || self.expiry.absolute.is_some()
    }

    /// Length of the encoded object.
    #[inline]
    pub fn encoded_len(&self) -> usize {
        let header = if self.is_long() {
            LONG_HEADER_BYTES
        } else {
            HEADER_BYTES
        };
        header + self.key.len() + self.value.len()
    }

    /// Writes the object and returns its length. Panics if `out` is too short or a field too large.
    #[inline]
    pub fn encode(&self, out: &mut [u8]) -> usize {
        assert!(
            self.value.len() <= VALUE_BYTES_MAX,
            "the value was admitted"
        );
        let length = self.encoded_len();
        let out = &mut out[..length];
        let stored = self.expiry.stored();
        let mut flags = if self.shadowing { FLAG_SHADOWING } else { 0 };
        let mut header = HEADER_BYTES;
        if self.is_long() {
            flags |= FLAG_LONG;
            header = LONG_HEADER_BYTES;
            let delta = match (stored.deadline, stored.absolute) {
                (Some(deadline), Some(absolute)) => AbsoluteDelta::between(deadline, absolute),
                _ => AbsoluteDelta {
                    value: AbsoluteDelta::NONE,
                    seconds: false,
                },
            };
            if delta.seconds {
                flags |= FLAG_SECONDS;
            }
            out[24..28].copy_from_slice(&stored.idle_ms.unwrap_or(0).to_le_bytes());
            out[28..32].copy_from_slice(&delta.value.to_le_bytes());
        }
        put_common(
            out,
            TYPE_OBJECT | flags,
            self.namespace,
            self.key,
            self.version,
        );
        put_u24(out, 8, self.value.len());
        put_u48(out, 18, stored.deadline.map_or(0, |deadline| deadline.0));
        out[header..header + self.key.len()].copy_from_slice(self.key);
        out[header + self.key.len()..].copy_from_slice(self.value);
        seal(out);
        length
    }

    #[inline]
    fn parse(bytes: &'a [u8], flags: u8) -> Result<Object<'a>, EntryError> {
        let header = header_bytes(flags);
        let deadline = deadline_at(bytes);
        let expiry = match flags & FLAG_LONG {
            0 => Expiry {
                deadline,
                ..Expiry::default()
            },
            _ => long_expiry(bytes, flags, deadline)?,
        };
        let (key, value) = bytes[header..].split_at(key_len(bytes));
        Ok(Object {
            namespace: Namespace(bytes[5]),
            key,
            value,
            version: Version(u56_at(bytes, 11)),
            expiry,
            shadowing: flags & FLAG_SHADOWING != 0,
        })
    }
}

impl Tombstone<'_> {
    /// Length of the encoded tombstone.
    pub fn encoded_len(&self) -> usize {
        HEADER_BYTES + self.key.len()
    }

    /// Writes the tombstone and returns its length. Panics if `out` is too short or a field too large.
    pub fn encode(&self, out: &mut [u8]) -> usize {
        assert!(self.birth <= BIRTH_MAX, "segment ids are counted from 1");
        let length = self.encoded_len();
        let out = &mut out[..length];
        put_common(out, TYPE_TOMBSTONE, self.namespace, self.key, self.version);
        put_u24(out, 8, 0);
        put_u48(out, 18, self.birth.0);
        out[HEADER_BYTES..].copy_from_slice(self.key);
        seal(out);
        length
    }
}

impl Touch<'_> {
    /// Length of the encoded touch.
    pub fn encoded_len(&self) -> usize {
        LONG_HEADER_BYTES + self.key.len()
    }

    /// Writes the touch and returns its length. Panics if `out` is too short or a field too large.
    #[inline]
    pub fn encode(&self, out: &mut [u8]) -> usize {
        let length = self.encoded_len();
        let out = &mut out[..length];
        let flags = if self.shadowing { FLAG_SHADOWING } else { 0 };
        put_common(
            out,
            TYPE_TOUCH | flags,
            self.namespace,
            self.key,
            self.version,
        );
        put_u24(out, 8, 0);
        put_u48(
            out,
            18,
            self.deadline.map_or(0, |deadline| clamp(deadline).0),
        );
        out[24..32].copy_from_slice(&self.number.to_le_bytes());
        out[LONG_HEADER_BYTES..].copy_from_slice(self.key);
        seal(out);
        length
    }
}

impl CompletionRecord<'_> {
    /// Length of the encoded record.
    pub fn encoded_len(&self) -> usize {
        COMPLETION_HEADER_BYTES + self.outcome.len()
    }

    /// Writes the record and returns its length. Panics if `out` is too short or a field too large.
    #[inline]
    pub fn encode(&self, out: &mut [u8]) -> usize {
        assert!(self.outcome.len() <= VALUE_BYTES_MAX, "outcomes are small");
        let length = self.encoded_len();
        let out = &mut out[..length];
        out[4] = TYPE_COMPLETION;
        out[5] = 0;
        out[6..8].copy_from_slice(&self.slot.0.to_le_bytes());
        put_u24(out, 8, self.outcome.len());
        put_u56(out, 11, 0);
        put_u48(out, 18, clamp(self.lease_until).0);
        out[24..32].copy_from_slice(&self.client.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        out[COMPLETION_HEADER_BYTES..].copy_from_slice(self.outcome);
        seal(out);
        length
    }
}

impl RangeTombstone {
    /// Writes the tombstone and returns its length. Panics if `out` is too short or a field too large.
    pub fn encode(&self, out: &mut [u8]) -> usize {
        assert!(self.up_to <= VERSION_MAX && self.birth <= BIRTH_MAX);
        let out = &mut out[..HEADER_BYTES];
        out[4] = TYPE_RANGE_TOMBSTONE;
        out[5] = self.namespace.0;
        out[6..8].copy_from_slice(&self.range.first.0.to_le_bytes());
        out[8..10].copy_from_slice(&self.range.last.0.to_le_bytes());
        out[10] = 0;
        put_u56(out, 11, self.up_to.0);
        put_u48(out, 18, self.birth.0);
        seal(out);
        HEADER_BYTES
    }

    /// True if an object or touch of `version` under `key` is gone by this.
    pub fn covers(&self, namespace: Namespace, key: &[u8], version: Version) -> bool {
        self.namespace == namespace
            && version <= self.up_to
            && (self.range == SlotRange::ALL || self.range.contains(Slot::of(key)))
    }
}

impl SegmentHeader {
    /// Writes the header and returns its length. Panics if `out` is too short.
    pub fn encode(&self, out: &mut [u8]) -> usize {
        assert!(self.version_ceiling <= VERSION_MAX);
        let out = &mut out[..SEGMENT_HEADER_BYTES];
        out[4] = TYPE_SEGMENT_HEADER;
        out[5] = FORMAT_VERSION;
        out[6] = match self.kind {
            HeaderKind::Head => 1,
            HeaderKind::Side => 2,
        };
        out[7] = 0;
        out[8..16].copy_from_slice(&MAGIC);
        out[16..24].copy_from_slice(&self.log.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.segment.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.version_ceiling.0.to_le_bytes());
        seal(out);
        SEGMENT_HEADER_BYTES
    }

    /// Reads the header at the start of a segment. For untrusted bytes.
    pub fn parse(bytes: &[u8]) -> Result<SegmentHeader, EntryError> {
        match Entry::decode(bytes)? {
            (Entry::SegmentHeader(header), _) => Ok(header),
            _ => Err(EntryError::Invalid("a segment begins with its header")),
        }
    }

    fn parse_entry(bytes: &[u8]) -> Result<SegmentHeader, EntryError> {
        if bytes[8..16] != MAGIC {
            return Err(EntryError::Invalid("not a segment of this program"));
        }
        if bytes[5] != FORMAT_VERSION {
            return Err(EntryError::Invalid(
                "a version of the format that is not known here",
            ));
        }
        let version_ceiling = Version(u64_at(bytes, 32));
        if version_ceiling > VERSION_MAX {
            return Err(EntryError::Invalid(
                "a version ceiling of more than 56 bits",
            ));
        }
        Ok(SegmentHeader {
            log: LogId(u64_at(bytes, 16)),
            segment: SegmentId(u64_at(bytes, 24)),
            version_ceiling,
            kind: match bytes[6] {
                1 => HeaderKind::Head,
                2 => HeaderKind::Side,
                _ => return Err(EntryError::Invalid("an unknown kind of segment")),
            },
        })
    }
}

/// Deadline, idle time and absolute deadline of an object with a long header.
pub(crate) fn long_expiry(
    bytes: &[u8],
    flags: u8,
    deadline: Option<ClusterMs>,
) -> Result<Expiry, EntryError> {
    let idle_ms = Some(u32_at(bytes, 24)).filter(|&idle_ms| idle_ms > 0);
    let value = u32_at(bytes, 28);
    let absolute = match (value, deadline) {
        (AbsoluteDelta::NONE, _) => None,
        (_, None) => {
            let text = "an absolute deadline without a deadline";
            return Err(EntryError::Invalid(text));
        }
        (_, Some(deadline)) => {
            let seconds = flags & FLAG_SECONDS != 0;
            Some(AbsoluteDelta { value, seconds }.from(deadline))
        }
    };
    Ok(Expiry {
        deadline,
        idle_ms,
        absolute,
    })
}

// ---- fields ----

#[inline]
fn put_common(out: &mut [u8], kind: u8, namespace: Namespace, key: &[u8], version: Version) {
    assert!(key.len() <= KEY_BYTES_MAX, "the key was admitted");
    out[4] = kind;
    out[5] = namespace.0;
    out[6..8].copy_from_slice(&(key.len() as u16).to_le_bytes());
    put_u56(out, 11, version.0);
}

/// Writes the checksum of an entry that is otherwise complete.
#[inline]
fn seal(entry: &mut [u8]) {
    let crc = crc32c(&entry[4..]);
    entry[..4].copy_from_slice(&crc.to_le_bytes());
}

#[inline]
pub(crate) fn header_bytes(flags: u8) -> usize {
    if flags & FLAG_LONG != 0 {
        LONG_HEADER_BYTES
    } else {
        HEADER_BYTES
    }
}

#[inline]
fn put_u24(out: &mut [u8], at: usize, value: usize) {
    assert!(value < 1 << 24);
    out[at..at + 3].copy_from_slice(&(value as u32).to_le_bytes()[..3]);
}

#[inline]
fn put_u48(out: &mut [u8], at: usize, value: u64) {
    assert!(value < 1 << 48);
    out[at..at + 6].copy_from_slice(&value.to_le_bytes()[..6]);
}

#[inline]
fn put_u56(out: &mut [u8], at: usize, value: u64) {
    assert!(value < 1 << 56, "versions have 56 bits");
    out[at..at + 7].copy_from_slice(&value.to_le_bytes()[..7]);
}

#[inline]
fn key_len(bytes: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([bytes[6], bytes[7]]))
}

#[inline]
fn u24_at(bytes: &[u8], at: usize) -> usize {
    let [a, b, c] = bytes[at..at + 3].try_into().expect("three bytes");
    u32::from_le_bytes([a, b, c, 0]) as usize
}

#[inline]
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[inline]
fn u48_at(bytes: &[u8], at: usize) -> u64 {
    let [a, b, c, d, e, f] = bytes[at..at + 6].try_into().expect("six bytes");
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

#[inline]
fn u56_at(bytes: &[u8], at: usize) -> u64 {
    let [a, b, c, d, e, f, g] = bytes[at..at + 7].try_into().expect("seven bytes");
    u64::from_le_bytes([a, b, c, d, e, f, g, 0])
}

#[inline]
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[inline]
fn deadline_at(bytes: &[u8]) -> Option<ClusterMs> {
    Some(u48_at(bytes, 18)).filter(|&ms| ms != 0).map(ClusterMs)
}

#[inline]
fn slot_at(bytes: &[u8], at: usize) -> Result<Slot, EntryError> {
    let slot = u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    if slot >= crate::SLOTS {
        return Err(EntryError::Invalid("a slot that does not exist"));
    }
    Ok(Slot(slot))
}
