//! Entries of one key, sent without reading the rest of the replica.

use holdfast_backup::BackupConfig;
use holdfast_cluster::{FRAME_HEADER_BYTES, Input};
use holdfast_format::{Entries, KeyHash, SegmentId};
use holdfast_wire::{Certificate, Message};

use crate::rig::{LOG, Pending, RECOVERER, Rig, Segment, config};

const LOOKUPS_MAX: usize = 40;

fn look_up(segment: &Segment, certificate: Certificate, key: KeyHash) -> Message {
    Message::LookUp {
        log: LOG,
        segment: SegmentId(segment.id),
        attempt: 3,
        certificate,
        key,
    }
}

fn whole(segment: &Segment) -> Certificate {
    segment.certificate(segment.len())
}

/// Keys of the segment, with what it has of each.
fn keys(segment: &Segment) -> Vec<(KeyHash, Vec<u8>)> {
    let located = Entries::new(&segment.bytes).map(|it| it.expect("good bytes"));
    located
        .filter_map(|it| {
            let raw = &segment.bytes[it.offset..it.offset + it.length];
            Some((it.entry.key_hash()?, raw.to_vec()))
        })
        .collect()
}

/// What was answered since the last call: by key.
fn answers(rig: &mut Rig) -> Vec<(KeyHash, Option<Vec<u8>>)> {
    let sent = rig.take_sent().into_iter();
    sent.filter_map(|(to, message)| match message {
        Message::LookedUp {
            log: LOG,
            attempt: 3,
            key,
            entries,
            ..
        } if to == RECOVERER => Some((key, entries.map(|it| it.to_vec()))),
        _ => None,
    })
    .collect()
}

fn ask(rig: &mut Rig, message: Message) -> Option<Vec<u8>> {
    rig.sent.clear();
    rig.deliver(RECOVERER, message);
    rig.settle();
    let mut answers = answers(rig);
    assert_eq!(answers.len(), 1);
    answers.remove(0).1
}

fn bytes_read(rig: &Rig) -> usize {
    let read = rig.pending.iter().map(|it| match it {
        Pending::Read { bytes, .. } => bytes.len(),
        Pending::Sync { .. } => 0,
    });
    read.sum()
}

#[test]
fn a_key_is_answered_with_its_entries_and_a_block_is_read_for_it() {
    for restarted in [false, true] {
        let mut rig = Rig::new(8, true);
        let segment = Segment::head(1, 180);
        rig.acked(segment.whole());
        if restarted {
            rig.restart();
            // Nothing is known of a replica that was not read, and a fence has it read.
            let key = keys(&segment)[0].0;
            assert_eq!(ask(&mut rig, look_up(&segment, whole(&segment), key)), None);
            rig.fence(5);
        }
        for (key, raw) in keys(&segment) {
            rig.sent.clear();
            rig.deliver(RECOVERER, look_up(&segment, whole(&segment), key));
            let read = bytes_read(&rig);
            assert!(
                (raw.len()..segment.bytes.len() / 2).contains(&read),
                "{read}"
            );
            rig.settle();
            assert_eq!(answers(&mut rig), [(key, Some(raw))]);
        }
        let absent = KeyHash(77);
        rig.deliver(RECOVERER, look_up(&segment, whole(&segment), absent));
        assert_eq!(bytes_read(&rig), 0);
        assert_eq!(answers(&mut rig), [(absent, Some(Vec::new()))]);
    }
}

#[test]
fn only_of_the_closed_replica_that_was_named() {
    let mut rig = Rig::new(8, false);
    let (open, closed) = (Segment::head(1, 90), Segment::head(2, 90));
    rig.acked(open.append(0, open.len()));
    rig.acked(closed.whole());
    let key = keys(&open)[5].0;
    assert_eq!(ask(&mut rig, look_up(&open, whole(&open), key)), None);
    let other = Certificate {
        checksum: 1,
        ..whole(&closed)
    };
    let (key, raw) = keys(&closed)[5].clone();
    assert_eq!(ask(&mut rig, look_up(&closed, other, key)), None);
    let unheard_of = Segment::head(3, 90);
    assert_eq!(
        ask(&mut rig, look_up(&unheard_of, whole(&unheard_of), key)),
        None
    );
    assert_eq!(rig.metric("holdfast_backup_lookups_failed_total"), 3.0);
    assert_eq!(
        ask(&mut rig, look_up(&closed, whole(&closed), key)),
        Some(raw)
    );
}

/// The replica is read as a whole then, and judged.
#[test]
fn bytes_that_are_not_what_was_indexed_are_not_sent() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 100);
    rig.acked(segment.whole());
    let frame = rig.disk.find(&segment.bytes).unwrap();
    // Of another entry of the same block.
    let at = segment.ends[10] - 1;
    rig.disk.flip(frame, FRAME_HEADER_BYTES + at);
    let (key, _) = keys(&segment)[12].clone();
    assert_eq!(ask(&mut rig, look_up(&segment, whole(&segment), key)), None);
    rig.settle();
    assert_eq!(rig.metric("holdfast_backup_corrupt_replicas_total"), 1.0);
    let (far, _) = keys(&segment)[90].clone();
    assert_eq!(ask(&mut rig, look_up(&segment, whole(&segment), far)), None);
}

#[test]
fn a_replica_that_goes_while_it_is_read_is_not_answered_from() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 100);
    rig.acked(segment.whole());
    let (key, _) = keys(&segment)[12].clone();
    rig.deliver(RECOVERER, look_up(&segment, whole(&segment), key));
    let free = Message::Free {
        log: LOG,
        segments: vec![SegmentId(1)],
    };
    rig.deliver(LOG.shard(), free);
    rig.sent.clear();
    rig.settle();
    assert_eq!(answers(&mut rig), [(key, None)]);
}

#[test]
fn a_disk_that_fails_is_out_of_service() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 100);
    rig.acked(segment.whole());
    let (key, _) = keys(&segment)[12].clone();
    rig.sent.clear();
    rig.deliver(RECOVERER, look_up(&segment, whole(&segment), key));
    rig.fail(0);
    assert_eq!(answers(&mut rig), [(key, None)]);
    assert_eq!(ask(&mut rig, look_up(&segment, whole(&segment), key)), None);
}

#[test]
fn questions_beyond_the_bound_are_refused_at_once_and_the_rest_answered() {
    let limits = BackupConfig {
        lookups_max: LOOKUPS_MAX as u32,
        ..config(8)
    };
    let mut rig = Rig::with(limits, false);
    let segment = Segment::head(1, 100);
    rig.acked(segment.whole());
    let keys = keys(&segment);
    rig.sent.clear();
    for at in 0..LOOKUPS_MAX + 10 {
        let key = keys[at % keys.len()].0;
        rig.deliver(RECOVERER, look_up(&segment, whole(&segment), key));
    }
    let refused = answers(&mut rig);
    assert_eq!(refused.len(), 10);
    assert!(refused.iter().all(|(_, entries)| entries.is_none()));
    assert!(rig.pending.len() <= 32);
    rig.settle();
    let answered = answers(&mut rig);
    assert_eq!(answered.len(), LOOKUPS_MAX);
    assert!(
        answered
            .iter()
            .all(|it| keys.contains(&(it.0, it.1.clone().unwrap())))
    );
}

#[test]
fn who_is_gone_is_not_read_for() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 100);
    rig.acked(segment.whole());
    let (key, _) = keys(&segment)[12].clone();
    for _ in 0..100 {
        rig.deliver(RECOVERER, look_up(&segment, whole(&segment), key));
    }
    rig.step(Input::PeerLost {
        peer: RECOVERER,
        ended: true,
    });
    rig.sent.clear();
    rig.settle();
    let told = answers(&mut rig).len();
    assert!(told <= 32, "{told}");
}
