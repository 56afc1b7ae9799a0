//! `docs/format.md` and the code say the same, byte by byte.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use holdfast_format::{
    ClientId, ClusterMs, CompletionRecord, Digest, Entries, Entry, Expiry, HeaderKind, LogId,
    Namespace, Object, Opening, RangeTombstone, SegmentHeader, SegmentId, Slot, SlotRange,
    Tombstone, Touch, Version,
};

const DOCUMENT: &str = include_str!("../../../docs/format.md");

/// The bytes of the ```hex block: each line is an offset, bytes, and after `;` what they are.
fn documented() -> Vec<u8> {
    let block = DOCUMENT
        .split("```hex\n")
        .nth(1)
        .expect("docs/format.md has a hex block");
    let block = block.split("```").next().expect("split gives at least one");
    let mut bytes = Vec::new();
    for line in block.lines() {
        let mut words = line
            .split(';')
            .next()
            .expect("as before")
            .split_whitespace();
        let Some(offset) = words.next() else { continue };
        let offset = usize::from_str_radix(offset, 16).expect("a line begins with its offset");
        assert_eq!(offset, bytes.len(), "offsets of the example, at {line:?}");
        bytes.extend(words.map(|word| u8::from_str_radix(word, 16).expect("two hex digits")));
    }
    bytes
}

/// The segment of the example; keep in step with the table above the dump.
fn example() -> Vec<Entry<'static>> {
    let namespace = Namespace(0);
    vec![
        Entry::Object(Object {
            namespace,
            key: b"cart:7",
            value: b"two",
            version: Version(1),
            expiry: Expiry::default(),
            shadowing: false,
        }),
        Entry::Object(Object {
            namespace: Namespace(2),
            key: b"s1",
            value: b"{}",
            version: Version(2),
            expiry: Expiry {
                deadline: Some(ClusterMs(1_700_000_060_000)),
                idle_ms: Some(60_000),
                absolute: Some(ClusterMs(1_700_000_360_000)),
            },
            shadowing: true,
        }),
        Entry::Touch(Touch {
            namespace: Namespace(2),
            key: b"s1",
            version: Version(2),
            number: 1,
            deadline: Some(ClusterMs(1_700_000_090_000)),
            shadowing: true,
        }),
        Entry::Tombstone(Tombstone {
            namespace,
            key: b"cart:7",
            version: Version(3),
            birth: SegmentId(5),
        }),
        Entry::Completion(CompletionRecord {
            client: ClientId(0xC1),
            sequence: 9,
            lease_until: ClusterMs(1_700_000_120_000),
            slot: Slot::of(b"cart:7"),
            outcome: b"ok",
        }),
        Entry::RangeTombstone(RangeTombstone {
            namespace: Namespace(2),
            range: SlotRange::ALL,
            up_to: Version(4),
            birth: SegmentId(5),
        }),
    ]
}

fn header() -> SegmentHeader {
    SegmentHeader {
        log: LogId(0x1122_3344_5566_7788),
        segment: SegmentId(5),
        version_ceiling: Version(0x10_0000),
        kind: HeaderKind::Head,
    }
}

const DIGEST: [SegmentId; 2] = [SegmentId(4), SegmentId(5)];

fn encoded() -> Vec<u8> {
    let mut bytes = Vec::new();
    Entry::SegmentHeader(header()).append_to(&mut bytes);
    let start = bytes.len();
    bytes.resize(start + Digest::encoded_len(DIGEST.len()), 0);
    Digest::encode(&DIGEST, &mut bytes[start..]);
    for entry in example() {
        entry.append_to(&mut bytes);
    }
    bytes
}

#[test]
fn the_documented_segment_is_what_is_written() {
    let (encoded, documented) = (encoded(), documented());
    let dump: Vec<String> = encoded
        .chunks(16)
        .enumerate()
        .map(|(i, line)| {
            format!(
                "{:04x}  {}",
                i * 16,
                line.iter().map(|b| format!("{b:02x} ")).collect::<String>()
            )
        })
        .collect();
    assert!(
        encoded == documented,
        "the code writes\n{}",
        dump.join("\n")
    );
}

#[test]
fn the_documented_segment_is_read_as_what_it_says() {
    let bytes = documented();
    let opening = Opening::parse(&bytes).unwrap();
    assert_eq!(opening.header, header());
    assert_eq!(opening.digest, Some(DIGEST.to_vec()));
    let read: Vec<Entry> = Entries::new(&bytes[opening.length..])
        .map(|it| it.unwrap().entry)
        .collect();
    assert_eq!(read, example());
    assert_eq!(Entries::new(&bytes).count(), 2 + read.len());
}
