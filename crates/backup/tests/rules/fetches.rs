//! What a recovery fetches.

use holdfast_backup::BackupConfig;
use holdfast_cluster::FRAME_HEADER_BYTES;
use holdfast_format::{SegmentId, SlotRange};
use holdfast_wire::{Certificate, Message};

use crate::rig::{LOG, LOWER_HALF, RECOVERER, Rig, Segment, config};

#[test]
fn fetches_bring_whole_entries_of_the_ranges_up_to_the_sealed_length() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 180);
    rig.acked(segment.append(0, segment.len()));
    rig.fence(5);
    let sealed = segment.ends[150];
    for ranges in [vec![SlotRange::ALL], vec![LOWER_HALF], vec![]] {
        let entries = rig.fetch(1, segment.certificate(sealed), &ranges).unwrap();
        assert_eq!(entries, segment.entries(sealed, &ranges));
    }
    assert!(segment.entries(sealed, &[LOWER_HALF]).len() > 1_000);
    assert!(rig.metric("holdfast_backup_cache_hits_total") >= 2.0);
    let longer = Certificate {
        length: segment.len() + 1,
        ..segment.certificate(segment.len())
    };
    assert_eq!(
        rig.fetch(1, longer, &[SlotRange::ALL]),
        None,
        "not that long"
    );
    assert_eq!(
        rig.fetch(2, longer, &[SlotRange::ALL]),
        None,
        "never heard of"
    );
}

/// A master makes a replica anew from what it has by now, which may be less: each is served by its own
/// certificate, and nothing by one that no replica has.
#[test]
fn replicas_made_before_and_after_a_compaction_are_told_apart() {
    let (old, new) = (Segment::head(1, 90), Segment::head(1, 90).compacted());
    let all = [SlotRange::ALL];
    for ack_disk in [false, true] {
        let mut rig = Rig::new(8, ack_disk);
        rig.append(old.whole());
        rig.settle();
        rig.append(new.whole());
        if !ack_disk {
            // Acknowledged at once: the old one is not needed any more.
            let inventory = rig.fence(5);
            assert_eq!(inventory.replicas.len(), 1, "{inventory:?}");
            assert_eq!(
                inventory.replicas[0].certificate,
                new.certificate(new.len())
            );
            assert_eq!(rig.fetch(1, old.certificate(old.len()), &all), None);
            continue;
        }
        // The fence comes before the new one is on the disk: both are whole, both are listed.
        let inventory = rig.fence(5);
        let listed: Vec<u32> = (inventory.replicas.iter())
            .filter(|replica| replica.closed)
            .map(|replica| replica.certificate.length)
            .collect();
        assert_eq!(listed, [old.len(), new.len()]);
        for segment in [&old, &new] {
            let whole = segment.certificate(segment.len());
            let entries = rig.fetch(1, whole, &all);
            assert_eq!(entries, Some(segment.entries(segment.len(), &all)));
        }
        // As long as the new one, and not it: the beginning of the old one is something else.
        let neither = Certificate {
            checksum: 1,
            ..new.certificate(new.len())
        };
        assert_eq!(rig.fetch(1, neither, &all), None);
    }
}

#[test]
fn a_corrupt_replica_is_never_served() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 100);
    rig.acked(segment.whole());
    let frame = rig.disk.find(&segment.bytes).unwrap();
    rig.disk.flip(frame, FRAME_HEADER_BYTES + 2_000);
    assert_eq!(
        rig.fetch(1, segment.certificate(segment.len()), &[SlotRange::ALL]),
        None
    );
    assert_eq!(rig.metric("holdfast_backup_corrupt_replicas_total"), 1.0);
}

#[test]
fn fetches_beyond_the_bound_are_refused_and_the_rest_served() {
    let limits = BackupConfig {
        fetches_per_requester_max: 3,
        ..config(16)
    };
    let mut rig = Rig::with(limits, false);
    let segments: Vec<Segment> = (1..=6).map(|id| Segment::head(id, 20)).collect();
    for segment in &segments {
        rig.acked(segment.whole());
    }
    rig.sent.clear();
    for segment in &segments {
        let fetch = holdfast_wire::Fetch {
            log: LOG,
            segment: SegmentId(segment.id),
            attempt: 1,
            certificate: segment.certificate(segment.len()),
            ranges: vec![SlotRange::ALL],
        };
        rig.deliver(RECOVERER, Message::Fetch(fetch.clone()));
        rig.deliver(RECOVERER, Message::Fetch(fetch));
    }
    rig.settle();
    let sent = rig.take_sent();
    let failed = sent
        .iter()
        .filter(|(_, message)| matches!(message, Message::FetchFailed { .. }));
    assert_eq!(
        failed.count(),
        6,
        "each of the last three, and its duplicate"
    );
    let lasts = sent
        .iter()
        .filter(|(_, message)| matches!(message, Message::FetchPart(part) if part.last));
    assert_eq!(lasts.count(), 3);
}
