//! What is fenced: nothing more is acknowledged, and the inventory tells what there is.

use holdfast_cluster::FRAME_HEADER_BYTES;
use holdfast_format::{Epoch, SegmentId, ServerId, SlotRange};
use holdfast_wire::{Append, Message, Refusal, ReplicaState};

use crate::rig::{LOG, Rig, Segment};
use crate::{acks, refusals};

/// B2, also across a crash right after the answer.
#[test]
fn a_fenced_epoch_is_refused_for_ever() {
    for ack_disk in [false, true] {
        let mut rig = Rig::new(8, ack_disk);
        let (held, unheld) = (Segment::head(1, 10), Segment::head(2, 3));
        rig.acked(held.append(0, held.ends[1]));
        rig.fence(5);
        let old = held.append(held.ends[1], held.ends[2]);
        let fenced = [Refusal::Fenced { epoch: Epoch(5) }];
        assert_eq!(refusals(&rig.append(old.clone())), fenced);
        assert_eq!(
            refusals(&rig.append(unheld.append(0, unheld.ends[0]))),
            fenced
        );
        rig.restart();
        assert_eq!(refusals(&rig.append(old)), fenced);
        assert_eq!(
            refusals(&rig.append(unheld.append(0, unheld.ends[0]))),
            fenced
        );
    }
}

/// B2: an acknowledgement that waits for the disk when the fence comes is never given.
#[test]
fn a_fence_takes_back_acknowledgements_that_wait() {
    let mut rig = Rig::new(8, true);
    let segment = Segment::head(1, 10);
    assert!(rig.append(segment.append(0, segment.ends[1])).is_empty());
    let fence = Message::Fence {
        log: LOG,
        epoch: Epoch(5),
    };
    rig.deliver(ServerId::COORDINATOR, fence);
    rig.settle();
    let sent: Vec<Message> = rig
        .take_sent()
        .into_iter()
        .map(|(_, message)| message)
        .collect();
    assert_eq!(acks(&sent), []);
    let Some(Message::Inventory(inventory)) = sent.last() else {
        panic!("{sent:?}")
    };
    assert_eq!(inventory.lease_remaining_ms, 0, "no lease was granted");
    // It was durable before the answer, so it may be listed.
    assert_eq!(
        inventory.replicas[0].certificate,
        segment.certificate(segment.ends[1])
    );
}

/// What an inventory says but for the digests of closed segments, which only replicas that were read have.
fn without_closed_digests(replicas: &[ReplicaState]) -> Vec<ReplicaState> {
    let mut replicas = replicas.to_vec();
    for replica in replicas.iter_mut().filter(|replica| replica.closed) {
        replica.digest = None;
    }
    replicas
}

/// A fence reads nothing of what came in this incarnation.
#[test]
fn a_fence_is_answered_from_memory() {
    let mut rig = Rig::new(8, false);
    let [closed, open] = [Segment::head(1, 10), Segment::head(2, 10)];
    rig.acked(closed.whole());
    rig.acked(open.append(0, open.ends[3]));
    let known = rig.fence(5);
    assert_eq!(rig.metric("holdfast_backup_reads_total"), 0.0);
    let [first, second] = &known.replicas[..] else {
        panic!("{known:?}")
    };
    assert_eq!((first.closed, second.closed), (true, false));
    assert_eq!(first.certificate, closed.certificate(closed.len()));
    assert_eq!(second.digest, Some(vec![SegmentId(1), SegmentId(2)]));
    // What the next incarnation finds it has to read, and finds the same.
    rig.restart();
    let read = rig.fence(5);
    assert_eq!(rig.metric("holdfast_backup_reads_total"), 2.0);
    assert_eq!(without_closed_digests(&read.replicas), known.replicas);
    assert_eq!(read.replicas[0].digest, Some(vec![SegmentId(1)]));
}

/// A copy's first piece may end anywhere, also in the middle of the digest: then it has to be read.
#[test]
fn a_copy_that_came_in_small_pieces_is_read() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(2, 10);
    let end = segment.ends[3];
    let piece = Append {
        certificate: None,
        ..segment.append(0, 45)
    };
    rig.append(piece);
    rig.acked(segment.append(45, end));
    let inventory = rig.fence(5);
    assert_eq!(rig.metric("holdfast_backup_reads_total"), 1.0);
    let digest = vec![SegmentId(1), SegmentId(2)];
    assert_eq!(inventory.replicas[0].digest, Some(digest));
}

/// B3 and B4: what is found bad when it is fetched is listed so, also when asked again, and by the next
/// incarnation.
#[test]
fn corrupt_replicas_are_listed_as_bad_and_the_others_are_good() {
    for ack_disk in [false, true] {
        let mut rig = Rig::new(8, ack_disk);
        let segments = [
            Segment::head(1, 10),
            Segment::head(2, 10),
            Segment::head(3, 5),
        ];
        for segment in &segments {
            rig.append(segment.whole());
            rig.settle();
        }
        let frame = rig.disk.find(&segments[1].bytes).unwrap();
        rig.disk
            .flip(frame, FRAME_HEADER_BYTES + segments[1].len() - 1);
        let unread = rig.fence(5).replicas;
        assert!(!unread.iter().any(ReplicaState::is_bad), "nobody knows yet");
        let asked = segments[1].certificate(segments[1].len());
        assert_eq!(rig.fetch(2, asked, &[SlotRange::ALL]), None);
        let inventory = rig.fence(5);
        let (bad, good): (Vec<_>, Vec<_>) =
            (inventory.replicas.iter().cloned()).partition(ReplicaState::is_bad);
        let listed: Vec<u64> = good.iter().map(|replica| replica.segment.0).collect();
        assert_eq!(listed, [1, 3]);
        assert_eq!(
            bad,
            [ReplicaState::bad(SegmentId(2), Epoch(1), true)],
            "nothing of it counts, and it is not forgotten"
        );
        assert_eq!(rig.metric("holdfast_backup_corrupt_replicas_total"), 1.0);
        assert!(
            rig.events
                .iter()
                .any(|event| event.text.contains("corrupt"))
        );
        assert_eq!(rig.fence(5), inventory, "asked again, answered again");
        assert_eq!(
            rig.fetch(
                2,
                segments[1].certificate(segments[1].len()),
                &[SlotRange::ALL]
            ),
            None
        );
        rig.restart();
        assert_eq!(
            without_closed_digests(&rig.fence(5).replicas),
            inventory.replicas
        );
        rig.deliver(ServerId::COORDINATOR, Message::LogGone { log: LOG });
        assert_eq!(rig.metric("holdfast_backup_frames_free"), 8.0);
    }
}

/// B4: the only replica of a log is bad. Its store must never look as if it had held nothing.
#[test]
fn a_log_of_one_bad_replica_is_not_taken_for_one_without() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 10);
    rig.acked(segment.append(0, segment.ends[3]));
    let frame = rig.disk.find(&segment.bytes[..segment.ends[3] as usize]);
    rig.disk.flip(frame.unwrap(), FRAME_HEADER_BYTES + 1);
    assert_eq!(rig.fence(5).replicas.len(), 1);
    let asked = segment.certificate(segment.ends[3]);
    assert_eq!(rig.fetch(1, asked, &[SlotRange::ALL]), None);
    let bad = [ReplicaState::bad(SegmentId(1), Epoch(1), false)];
    assert_eq!(rig.fence(5).replicas, bad);
    rig.restart();
    assert_eq!(rig.fence(5).replicas, bad);
}
