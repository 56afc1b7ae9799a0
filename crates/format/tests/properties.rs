//! Round trips, and what untrusted bytes may do: be refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use holdfast_format::{
    ClientId, ClusterMs, CompletionRecord, DEADLINE_MAX, Digest, Entries, Entry, EntryError,
    Expiry, HeaderKind, LogId, Namespace, Object, Opening, RangeTombstone, SegmentHeader,
    SegmentId, Slot, SlotRange, Tombstone, Touch, Version,
};
use proptest::prelude::*;

/// An entry that owns its bytes.
#[derive(Clone, Debug)]
struct Owned {
    bytes: Vec<u8>,
    slots: Option<SlotRange>,
}

fn owned(entry: Entry<'_>) -> Owned {
    let mut bytes = Vec::new();
    entry.append_to(&mut bytes);
    assert_eq!(bytes.len(), entry.encoded_len());
    let (read, length) = Entry::decode(&bytes).unwrap();
    assert_eq!(
        (read, length),
        (entry, bytes.len()),
        "what is written is read"
    );
    assert_eq!(Entry::decode_trusted(&bytes).unwrap(), (entry, length));
    Owned {
        slots: entry.slots(),
        bytes,
    }
}

fn deadline() -> impl Strategy<Value = Option<ClusterMs>> {
    prop_oneof![
        Just(None),
        (1..=DEADLINE_MAX.0).prop_map(|ms| Some(ClusterMs(ms))),
        (1..10u64).prop_map(|ms| Some(ClusterMs(ms))),
    ]
}

fn version() -> impl Strategy<Value = Version> {
    (0..1u64 << 56).prop_map(Version)
}

fn birth() -> impl Strategy<Value = SegmentId> {
    (0..1u64 << 48).prop_map(SegmentId)
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..100)
}

fn range() -> impl Strategy<Value = SlotRange> {
    (0..16384u16, 0..16384u16).prop_map(|(a, b)| SlotRange {
        first: Slot(a.min(b)),
        last: Slot(a.max(b)),
    })
}

fn entry() -> impl Strategy<Value = Owned> {
    let object = (
        (any::<u8>(), bytes(), bytes(), version(), any::<bool>()),
        (deadline(), prop::option::of(any::<u32>()), deadline()),
    );
    prop_oneof![
        object.prop_map(
            |((n, key, value, version, shadowing), (deadline, idle_ms, absolute))| {
                let given = Expiry {
                    deadline,
                    idle_ms,
                    absolute,
                };
                let object = |expiry| Object {
                    namespace: Namespace(n),
                    key: &key,
                    value: &value,
                    version,
                    expiry,
                    shadowing,
                };
                let mut bytes = Vec::new();
                Entry::Object(object(given)).append_to(&mut bytes);
                let (read, _) = Entry::decode(&bytes).unwrap();
                assert_eq!(
                    read,
                    Entry::Object(object(given.stored())),
                    "times are cut as promised"
                );
                let stored = owned(Entry::Object(object(given.stored())));
                assert!(stored.bytes.len() - key.len() - value.len() <= 32);
                stored
            }
        ),
        (
            any::<u8>(),
            bytes(),
            version(),
            any::<u64>(),
            deadline(),
            any::<bool>()
        )
            .prop_map(|(n, key, version, number, deadline, shadowing)| {
                let namespace = Namespace(n);
                let key = &key;
                owned(Entry::Touch(Touch {
                    namespace,
                    key,
                    version,
                    number,
                    deadline,
                    shadowing,
                }))
            }),
        (any::<u8>(), bytes(), version(), birth()).prop_map(|(n, key, version, birth)| {
            let namespace = Namespace(n);
            owned(Entry::Tombstone(Tombstone {
                namespace,
                key: &key,
                version,
                birth,
            }))
        }),
        (
            any::<u64>(),
            any::<u64>(),
            1..1u64 << 48,
            0..16384u16,
            bytes()
        )
            .prop_map(|(client, sequence, lease_until, slot, outcome)| {
                owned(Entry::Completion(CompletionRecord {
                    client: ClientId(client),
                    sequence,
                    lease_until: ClusterMs(lease_until),
                    slot: Slot(slot),
                    outcome: &outcome,
                }))
            }),
        (any::<u8>(), range(), version(), birth()).prop_map(|(n, range, up_to, birth)| {
            let namespace = Namespace(n);
            owned(Entry::RangeTombstone(RangeTombstone {
                namespace,
                range,
                up_to,
                birth,
            }))
        }),
        (any::<u64>(), any::<u64>(), version(), any::<bool>()).prop_map(
            |(log, segment, version_ceiling, head)| {
                owned(Entry::SegmentHeader(SegmentHeader {
                    log: LogId(log),
                    segment: SegmentId(segment),
                    version_ceiling,
                    kind: if head {
                        HeaderKind::Head
                    } else {
                        HeaderKind::Side
                    },
                }))
            }
        ),
        prop::collection::vec(any::<u64>().prop_map(SegmentId), 0..20).prop_map(|ids| {
            let mut bytes = vec![0; Digest::encoded_len(ids.len())];
            assert_eq!(Digest::encode(&ids, &mut bytes), bytes.len());
            let (Entry::Digest(digest), _) = Entry::decode(&bytes).unwrap() else {
                panic!("a digest is read as a digest")
            };
            assert_eq!(digest.segments().collect::<Vec<_>>(), ids);
            owned(Entry::Digest(digest))
        }),
    ]
}

fn segment() -> impl Strategy<Value = Vec<Owned>> {
    prop::collection::vec(entry(), 1..12)
}

fn concatenated(entries: &[Owned]) -> Vec<u8> {
    entries
        .iter()
        .flat_map(|entry| entry.bytes.iter().copied())
        .collect()
}

proptest! {
    #[test]
    fn a_segment_is_walked_entry_by_entry(entries in segment(), ranges in prop::collection::vec(range(), 0..4)) {
        let bytes = concatenated(&entries);
        let mut offset = 0;
        let mut walk = Entries::new(&bytes);
        for entry in &entries {
            let located = walk.next().unwrap().unwrap();
            prop_assert_eq!((located.offset, located.length), (offset, entry.bytes.len()));
            prop_assert_eq!(located.entry.slots(), entry.slots);
            // A recovery of `ranges` must see it just if one of its slots lies in them.
            let wanted = entry.slots.is_some_and(|slots| {
                (slots.first.0..=slots.last.0).any(|slot| ranges.iter().any(|it| it.contains(Slot(slot))))
            });
            prop_assert_eq!(located.entry.concerns(&ranges), wanted);
            offset += located.length;
        }
        prop_assert!(walk.next().is_none());
        prop_assert_eq!(walk.offset(), bytes.len());
    }

    /// A flipped bit is found where it is, whatever it hits; entries before it are still good.
    #[test]
    fn a_flipped_bit_stops_the_walk_at_its_entry(entries in segment(), at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let mut bytes = concatenated(&entries);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let mut good = 0;
        let mut failed = None;
        for entry in Entries::new(&bytes) {
            match entry {
                Ok(located) => good = located.offset + located.length,
                Err(bad) => failed = Some(bad),
            }
        }
        let bad = failed.expect("a checksum covers every bit");
        prop_assert_eq!(bad.offset, good);
        prop_assert!(good <= at, "the entry with the flipped bit was taken as good");
        let mut start = 0;
        for entry in &entries {
            if at < start + entry.bytes.len() { break; }
            start += entry.bytes.len();
        }
        prop_assert_eq!(good, start);
    }

    #[test]
    fn a_cut_segment_ends_in_an_error_or_at_an_entry(entries in segment(), at in any::<prop::sample::Index>()) {
        let bytes = concatenated(&entries);
        let cut = at.index(bytes.len());
        let mut walk = Entries::new(&bytes[..cut]);
        let last = walk.by_ref().last();
        match last {
            Some(Err(bad)) => {
                prop_assert!(matches!(bad.error, EntryError::Truncated { .. }), "{:?}", bad);
                prop_assert!(walk.next().is_none(), "it stops for good");
            }
            _ => prop_assert_eq!(walk.offset(), cut),
        }
    }

    #[test]
    fn noise_is_refused(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Opening::parse(&noise).is_err());
        for result in Entries::new(&noise) {
            prop_assert!(result.is_err(), "a checksum that holds by chance");
        }
        // Without a checksum to protect it, parsing must still keep to the bytes.
        let _ = Entry::decode_trusted(&noise);
    }

    /// Sealed nonsense: the checksum holds, the contents were written by something else.
    #[test]
    fn sealed_noise_never_panics(noise in prop::collection::vec(any::<u8>(), 5..300), kind in 0..10u8) {
        let mut noise = noise;
        noise[4] = noise[4] & 0x70 | kind;
        let crc = holdfast_format::crc32c(&noise[4..]);
        noise[..4].copy_from_slice(&crc.to_le_bytes());
        if let Ok((entry, length)) = Entry::decode(&noise) {
            prop_assert_eq!(length, noise.len());
            let _ = (entry.slots(), entry.key_hash(), format!("{entry:?}"));
        }
        let _ = Opening::parse(&noise);
    }
}

#[test]
fn zeros_are_not_an_entry() {
    assert_eq!(Entry::decode(&[0; 64]), Err(EntryError::UnknownType(0)));
    assert!(Opening::parse(&[0; 4096]).is_err());
    assert!(Opening::parse(&[]).is_err());
}

#[test]
fn an_opening_says_whether_it_has_a_digest() {
    let header = |kind| SegmentHeader {
        log: LogId(1),
        segment: SegmentId(2),
        version_ceiling: Version(3),
        kind,
    };
    let mut bytes = Vec::new();
    Entry::SegmentHeader(header(HeaderKind::Head)).append_to(&mut bytes);
    assert_eq!(
        Opening::parse(&bytes).unwrap().digest,
        None,
        "only the header is there"
    );
    let mut digest = vec![0; Digest::encoded_len(1)];
    Digest::encode(&[SegmentId(2)], &mut digest);
    bytes.extend_from_slice(&digest);
    let opening = Opening::parse(&bytes).unwrap();
    assert_eq!(
        (opening.digest, opening.length),
        (Some(vec![SegmentId(2)]), 40 + 16)
    );

    let mut side = Vec::new();
    Entry::SegmentHeader(header(HeaderKind::Side)).append_to(&mut side);
    side.extend_from_slice(b"whatever comes next");
    let opening = Opening::parse(&side).unwrap();
    assert_eq!((opening.digest, opening.length), (None, 40));
}
