//! The rules of docs/design-notes.md and of the crate's invariants that a backup carries, one test each.

mod rig;

use std::collections::BTreeSet;

use bytes::Bytes;
use holdfast_backup::{Backup, BackupConfig, ConfigError};
use holdfast_cluster::{FRAME_HEADER_BYTES, FrameId, Input, Node};
use holdfast_format::{ClusterMs, Epoch, SegmentId, ServerId, SlotRange, Version};
use holdfast_wire::{
    Append, Appended, Certificate, HeartbeatReply, Message, Refusal, ReplicaState, Role,
};
use rig::{
    LEASE_MS, LOG, LOWER_HALF, RECOVERER, Rig, SEGMENT_BYTES, SHARD, Segment, config, member,
};

fn refusals(messages: &[Message]) -> Vec<Refusal> {
    let refused = messages.iter().filter_map(|message| match message {
        Message::AppendRefused(refused) => Some(refused.why),
        _ => None,
    });
    refused.collect()
}

fn acks(messages: &[Message]) -> Vec<Appended> {
    let acked = messages.iter().filter_map(|message| match message {
        Message::Appended(appended) => Some(*appended),
        _ => None,
    });
    acked.collect()
}

fn sent_refusals(rig: &mut Rig) -> Vec<Refusal> {
    let sent = rig.take_sent();
    refusals(
        &sent
            .into_iter()
            .map(|(_, message)| message)
            .collect::<Vec<_>>(),
    )
}

#[test]
fn memory_mode_acknowledges_at_once_and_survives_a_killed_process() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 10);
    let [first, half] = [segment.ends[0], segment.ends[5]];
    let ack = acks(&rig.append(segment.append(0, first)))[0];
    assert_eq!(
        (ack.length, ack.closed, ack.epoch, ack.sent_us),
        (first, false, Epoch(1), 77)
    );
    assert_eq!(ack.lease_ms, LEASE_MS);
    assert_eq!(
        acks(&rig.append(segment.append(first, half)))[0].length,
        half
    );
    rig.restart();
    let inventory = rig.fence(5);
    assert_eq!(inventory.replicas.len(), 1);
    let replica = &inventory.replicas[0];
    assert_eq!(replica.certificate, segment.certificate(half));
    assert_eq!((replica.closed, replica.epoch), (false, Epoch(1)));
    assert_eq!(replica.version_ceiling, Version(1_000));
    assert_eq!(replica.digest, Some(vec![SegmentId(1)]));
    assert_eq!(inventory.expiry_ceiling, ClusterMs(1_000));
}

/// One sync per frame is under way; the next covers everything that came meanwhile.
#[test]
fn disk_mode_acknowledges_after_the_sync_that_covers_it() {
    let mut rig = Rig::new(8, true);
    let segment = Segment::head(1, 10);
    assert!(rig.append(segment.append(0, segment.ends[0])).is_empty());
    for next in 1..=5 {
        let append = segment.append(segment.ends[next - 1], segment.ends[next]);
        assert!(rig.append(append).is_empty());
    }
    assert_eq!(rig.pending.len(), 1);
    rig.complete(0);
    let sent: Vec<Message> = rig
        .take_sent()
        .into_iter()
        .map(|(_, message)| message)
        .collect();
    assert_eq!(
        acks(&sent)[0].length,
        segment.ends[0],
        "what was there when the sync began"
    );
    assert_eq!(rig.pending.len(), 1);
    rig.complete(0);
    let sent: Vec<Message> = rig
        .take_sent()
        .into_iter()
        .map(|(_, message)| message)
        .collect();
    assert_eq!(acks(&sent)[0].length, segment.ends[5]);
    assert!(rig.pending.is_empty());
    // All of it is durable: a repeated append is acknowledged without another sync.
    let again = segment.append(segment.ends[4], segment.ends[5]);
    assert_eq!(acks(&rig.append(again))[0].length, segment.ends[5]);
    let last = Append {
        close: true,
        ..segment.append(segment.ends[5], segment.len())
    };
    assert!(rig.acked(last).closed);
}

/// B1, R1: the running checksum must be the certificate's.
#[test]
fn wrong_bytes_are_never_acknowledged() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 10);
    rig.acked(segment.append(0, segment.ends[0]));
    let mut wrong = segment.append(segment.ends[0], segment.ends[3]);
    let mut bytes = wrong.bytes.to_vec();
    bytes[9] ^= 1;
    wrong.bytes = Bytes::from(bytes);
    assert_eq!(
        refusals(&rig.append(wrong)),
        [Refusal::Reopen { length: 0 }]
    );
    let gap = segment.append(segment.ends[3], segment.ends[4]);
    let length = segment.ends[0];
    assert_eq!(refusals(&rig.append(gap)), [Refusal::Reopen { length }]);
    let unknown = Segment::head(9, 3);
    let append = unknown.append(unknown.ends[0], unknown.len());
    assert_eq!(
        refusals(&rig.append(append)),
        [Refusal::Reopen { length: 0 }]
    );
    let listed = rig.fence(5).replicas;
    assert_eq!(listed[0].certificate, segment.certificate(segment.ends[0]));
}

/// R1: duplicates are acknowledged again, however late, and cost nothing that was acknowledged.
#[test]
fn a_late_duplicate_of_the_opening_drops_nothing() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 10);
    let opening = segment.append(0, segment.ends[0]);
    rig.acked(opening.clone());
    rig.acked(segment.append(segment.ends[0], segment.ends[7]));
    assert_eq!(rig.acked(opening.clone()).length, segment.ends[7]);
    // Another opening, that never came through: a replica is begun beside the one that counts.
    let other = segment.append(0, segment.ends[2]);
    assert_eq!(rig.acked(other).length, segment.ends[2]);
    rig.acked(Append {
        close: true,
        ..segment.append(segment.ends[7], segment.len())
    });
    rig.acked(opening);
    let listed = rig.fence(5).replicas;
    assert_eq!(
        listed.len(),
        1,
        "R2: no leftover may pass for an open head: {listed:?}"
    );
    assert!(listed[0].closed);
    assert_eq!(listed[0].certificate, segment.certificate(segment.len()));
}

/// B4: the old replica stays until its replacement is as good.
#[test]
fn a_replica_made_again_replaces_the_old_one_only_when_complete() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 10);
    rig.acked(segment.whole());
    rig.restart();
    let piece = |from: usize, to: usize| Append {
        certificate: None,
        ..segment.append(from as u32, to as u32)
    };
    let (half, all) = (segment.len() as usize / 2, segment.len() as usize);
    rig.acked(piece(0, half));
    assert_eq!(rig.metric("holdfast_backup_replicas_closed"), 1.0);
    assert_eq!(rig.metric("holdfast_backup_replicas_open"), 1.0);
    let last = Append {
        close: true,
        ..segment.append(half as u32, all as u32)
    };
    assert!(rig.acked(last).closed);
    assert_eq!(rig.metric("holdfast_backup_replicas_closed"), 1.0);
    assert_eq!(rig.metric("holdfast_backup_replicas_open"), 0.0);
    assert_eq!(rig.fence(5).replicas.len(), 1);
}

#[test]
fn a_copy_without_certificate_does_not_count() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 10);
    let piece = Append {
        certificate: None,
        ..segment.append(0, segment.ends[5])
    };
    assert_eq!(rig.acked(piece).length, segment.ends[5]);
    assert_eq!(rig.fence(5).replicas, []);
    rig.restart();
    assert_eq!(rig.fence(5).replicas, []);
    assert_eq!(rig.metric("holdfast_backup_frames_free"), 8.0);
}

/// A closed replica that is here already is acknowledged after it was read and verified.
#[test]
fn a_closed_replica_of_an_earlier_incarnation_can_be_claimed() {
    for rotten in [false, true] {
        let mut rig = Rig::new(8, false);
        let segment = Segment::head(1, 10);
        rig.acked(segment.whole());
        let frame = rig.disk.find(&segment.bytes).unwrap();
        rig.restart();
        rig.settle();
        if rotten {
            rig.disk.flip(frame, FRAME_HEADER_BYTES + 50);
        }
        let claim = Append {
            close: true,
            ..segment.append(segment.len(), segment.len())
        };
        assert_eq!(rig.append(claim), [], "not before it was read");
        rig.settle();
        let sent: Vec<Message> = rig
            .take_sent()
            .into_iter()
            .map(|(_, message)| message)
            .collect();
        if rotten {
            assert_eq!(acks(&sent), []);
            assert_eq!(refusals(&sent), [Refusal::Reopen { length: 0 }]);
        } else {
            let ack = acks(&sent)[0];
            assert_eq!((ack.length, ack.closed), (segment.len(), true));
        }
    }
}

#[test]
fn an_open_replica_of_an_earlier_incarnation_is_reopened_and_not_appended_to() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 10);
    rig.acked(segment.append(0, segment.ends[5]));
    rig.restart();
    let next = segment.append(segment.ends[5], segment.ends[6]);
    assert_eq!(refusals(&rig.append(next)), [Refusal::Reopen { length: 0 }]);
    // Shorter than before at first: the older one is still listed.
    let raised = Append {
        epoch: Epoch(2),
        ..segment.append(0, segment.ends[2])
    };
    rig.acked(raised);
    let lengths: BTreeSet<u32> = rig
        .fence(5)
        .replicas
        .iter()
        .map(|replica| replica.certificate.length)
        .collect();
    assert_eq!(lengths, BTreeSet::from([segment.ends[2], segment.ends[5]]));
}

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

/// B4: its master dies after it was told that its replica is bad, and before it made another.
#[test]
fn a_bad_replica_stays_until_its_master_has_made_another() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 10);
    rig.acked(segment.whole());
    let frame = rig.disk.find(&segment.bytes).unwrap();
    rig.disk.flip(frame, FRAME_HEADER_BYTES + 100);
    rig.pass_ms(2_500);
    assert_eq!(rig.metric("holdfast_backup_corrupt_replicas_total"), 1.0);
    let piece = Append {
        certificate: None,
        close: false,
        ..segment.append(0, segment.ends[5])
    };
    rig.append(piece);
    assert_eq!(rig.metric("holdfast_backup_frames_free"), 6.0);
    rig.acked(segment.whole());
    assert_eq!(rig.metric("holdfast_backup_frames_free"), 7.0);
    let replicas = rig.fence(5).replicas;
    assert_eq!((replicas.len(), replicas[0].is_bad()), (1, false));
}

/// B4: a full store does not keep a bad replica from being repaired, as long as something else tells
/// of the log.
#[test]
fn in_a_full_store_a_bad_replica_makes_room_for_its_successor() {
    let limits = BackupConfig {
        frames_reserved: 0,
        ..config(2)
    };
    let mut rig = Rig::with(limits, false);
    let segments = [Segment::head(1, 10), Segment::head(2, 10)];
    for segment in &segments {
        rig.acked(segment.whole());
    }
    let frame = rig.disk.find(&segments[0].bytes).unwrap();
    rig.disk.flip(frame, FRAME_HEADER_BYTES + 100);
    rig.pass_ms(5_000);
    assert_eq!(rig.metric("holdfast_backup_corrupt_replicas_total"), 1.0);
    assert_eq!(rig.metric("holdfast_backup_frames_free"), 0.0);
    assert!(rig.acked(segments[0].whole()).closed);
    assert!(
        rig.fence(5)
            .replicas
            .iter()
            .all(|replica| !replica.is_bad())
    );
}

/// Design §8: corruption is found, and repaired by the master that still has the segment.
#[test]
fn rot_is_found_in_the_background_and_the_master_is_told_until_it_repairs() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 10);
    rig.acked(segment.whole());
    rig.pass_ms(20_000);
    assert_eq!(sent_refusals(&mut rig), []);
    let frame = rig.disk.find(&segment.bytes).unwrap();
    rig.disk.flip(frame, FRAME_HEADER_BYTES + 100);
    rig.pass_ms(2_500);
    let told = sent_refusals(&mut rig);
    assert!(told.len() >= 2, "repeated: {told:?}");
    assert!(told.iter().all(|why| *why == Refusal::Reopen { length: 0 }));
    assert!(rig.acked(segment.whole()).closed);
    rig.pass_ms(20_000);
    assert_eq!(sent_refusals(&mut rig), []);
    assert_eq!(
        rig.fence(5).replicas[0].certificate,
        segment.certificate(segment.len())
    );
}

/// C1: every closed replica once in a period, at a steady pace; and without a period, never.
#[test]
fn the_scrub_goes_over_the_store_once_in_its_period() {
    for period_ms in [80_000, 0] {
        let limits = BackupConfig {
            scrub_period_ms: period_ms,
            ..config(8)
        };
        let mut rig = Rig::with(limits, false);
        let segments: Vec<Segment> = (1..=4).map(|id| Segment::head(id, 10)).collect();
        for segment in &segments {
            rig.acked(segment.whole());
        }
        let counts = |rig: &Rig| {
            let count = |name: &str| rig.metric(&format!("holdfast_backup_scrub_{name}")) as u64;
            [
                count("passes_total"),
                count("replicas_total"),
                count("bytes_total"),
                count("bad_total"),
            ]
        };
        rig.pass_ms(30_000);
        let [passes, replicas, bytes, _] = counts(&rig);
        if period_ms == 0 {
            rig.disk.flip(
                rig.disk.find(&segments[0].bytes).unwrap(),
                FRAME_HEADER_BYTES + 100,
            );
            rig.pass_ms(200_000);
            assert_eq!(counts(&rig), [0; 4], "rot stays unseen");
            assert_eq!(sent_refusals(&mut rig), []);
            continue;
        }
        assert!(
            passes == 0 && (1..=4).contains(&replicas),
            "{replicas} after 30 s"
        );
        let (least, most) = (segments[0].len(), segments[3].len());
        assert!((replicas * u64::from(least)..=replicas * u64::from(most)).contains(&bytes));
        assert!((0.1..0.9).contains(&rig.metric("holdfast_backup_scrub_position")));
        rig.pass_ms(60_000);
        let [passes, replicas, ..] = counts(&rig);
        assert!(
            passes == 1 && (4..=6).contains(&replicas),
            "{passes}, {replicas}"
        );
        assert!((30.0..=80.0).contains(&rig.metric("holdfast_backup_scrub_pass_seconds")));
        // Everything that rots in one pass is found by the next.
        for segment in &segments[..2] {
            rig.disk.flip(
                rig.disk.find(&segment.bytes).unwrap(),
                FRAME_HEADER_BYTES + 100,
            );
        }
        rig.pass_ms(160_000);
        assert_eq!(counts(&rig)[3], 2);
        assert_eq!(rig.metric("holdfast_backup_corrupt_replicas_total"), 2.0);
    }
}

/// C2: whoever else reads goes first.
#[test]
fn the_scrub_gives_way_to_recoveries() {
    let mut rig = Rig::new(8, false);
    let segments: Vec<Segment> = (1..=4).map(|id| Segment::head(id, 10)).collect();
    for segment in &segments {
        rig.acked(segment.whole());
    }
    rig.pass_ms(3_000);
    let before = rig.metric("holdfast_backup_scrub_replicas_total");
    assert!(before >= 8.0, "{before}");
    // After a restart a fence has everything read, and here the disk takes its time.
    rig.restart();
    rig.deliver(
        ServerId::COORDINATOR,
        Message::Fence {
            log: LOG,
            epoch: Epoch(5),
        },
    );
    let reads = rig.metric("holdfast_backup_reads_total");
    assert_eq!(reads, 4.0);
    for _ in 0..100 {
        rig.now_us += 50_000;
        rig.step(Input::Tick);
    }
    assert_eq!(rig.metric("holdfast_backup_reads_total"), reads);
    rig.pass_ms(3_000);
    assert!(rig.metric("holdfast_backup_scrub_replicas_total") > 0.0);
}

/// Where nobody waits for syncs they go one by one, or a burst of them would hold up whoever else needs the disk.
#[test]
fn syncs_that_nobody_waits_for_go_one_by_one() {
    for (ack_disk, at_once) in [(false, 1), (true, 4)] {
        let mut rig = Rig::new(8, ack_disk);
        for id in 1..=4 {
            rig.append(Segment::head(id, 10).whole());
        }
        assert_eq!(rig.pending.len(), at_once);
        let mut synced = 0;
        while !rig.pending.is_empty() {
            assert!(rig.pending.len() <= at_once);
            rig.complete(0);
            synced += 1;
        }
        assert!(synced >= 4, "{synced} syncs for four closed replicas");
    }
}

#[test]
fn a_frame_whose_disk_failed_is_never_used_again() {
    for ack_disk in [false, true] {
        let mut rig = Rig::new(2, ack_disk);
        let segment = Segment::head(1, 10);
        rig.append(segment.whole());
        assert_eq!(
            rig.pending.len(),
            1,
            "closed replicas are synced in either mode"
        );
        rig.fail(0);
        assert_eq!(sent_refusals(&mut rig), [Refusal::Broken]);
        assert_eq!(rig.metric("holdfast_backup_frames_broken"), 1.0);
        // B4: what was in it counts no more, and is not forgotten.
        let bad = [ReplicaState::bad(SegmentId(1), Epoch(0), false)];
        assert_eq!(rig.fence(5).replicas, bad);
        rig.restart();
        assert_eq!(rig.metric("holdfast_backup_frames_broken"), 1.0);
        assert_eq!(rig.fence(5).replicas, bad);
    }
}

/// Leases: a new owner waits for what this backup, or its last incarnation, may have granted.
#[test]
fn leases_are_remembered_and_assumed_after_a_restart() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 10);
    rig.acked(segment.append(0, segment.ends[0]));
    rig.pass_ms(300);
    assert_eq!(rig.fence(5).lease_remaining_ms, LEASE_MS - 300);
    rig.pass_ms(300);
    let refused = rig.append(segment.append(segment.ends[0], segment.ends[1]));
    assert_eq!(acks(&refused), [], "no lease for the fenced");
    assert_eq!(rig.fence(5).lease_remaining_ms, LEASE_MS - 600);
    rig.restart();
    assert_eq!(rig.fence(5).lease_remaining_ms, LEASE_MS);
    rig.pass_ms(u64::from(LEASE_MS));
    assert_eq!(rig.fence(5).lease_remaining_ms, 0);
}

#[test]
fn no_lease_is_longer_than_the_clusters() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 10);
    let greedy = Append {
        lease_ms: 3_600_000,
        ..segment.append(0, segment.ends[0])
    };
    assert_eq!(rig.acked(greedy).lease_ms, LEASE_MS);
}

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

/// Pieces of the older bytes that come late, between those of the newer ones, can spoil a copy and never
/// make one that counts.
#[test]
fn late_pieces_of_older_bytes_make_no_replica() {
    let (old, new) = (Segment::head(1, 90), Segment::head(1, 90).compacted());
    let piece = |segment: &Segment, from: u32, to: u32| Append {
        certificate: None,
        ..segment.append(from, to)
    };
    let mut rig = Rig::new(8, false);
    let (a, b) = (old.ends[0], old.ends[0] + 400);
    rig.acked(piece(&old, 0, a));
    // The master has compacted meanwhile and begins again; its opening is the same.
    rig.acked(piece(&new, 0, a));
    rig.acked(piece(&old, a, b));
    rig.acked(piece(&new, a, b));
    let last = Append {
        close: true,
        ..new.append(b, new.len())
    };
    let refused = rig.append(last.clone());
    assert_eq!(refusals(&refused), [Refusal::Reopen { length: 0 }]);
    rig.acked(piece(&new, 0, a));
    rig.acked(piece(&new, a, b));
    assert!(rig.acked(last).closed);
    let listed = rig.fence(5).replicas;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].certificate, new.certificate(new.len()));
}

/// A late close of the older bytes takes the newer replica's place: either is whole.
#[test]
fn one_whole_replica_is_left_whichever_close_comes_last() {
    let (old, new) = (Segment::head(1, 90), Segment::head(1, 90).compacted());
    for (first, last) in [(&old, &new), (&new, &old)] {
        let mut rig = Rig::new(8, false);
        rig.acked(first.whole());
        assert!(rig.acked(last.whole()).closed);
        rig.restart();
        let listed = rig.fence(5).replicas;
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].certificate, last.certificate(last.len()));
        let entries = rig.fetch(1, listed[0].certificate, &[SlotRange::ALL]);
        assert_eq!(entries, Some(last.entries(last.len(), &[SlotRange::ALL])));
    }
}

/// Rot in the newer replica is found by its own certificate, and the master told.
#[test]
fn rot_in_a_replica_made_after_a_compaction_is_found() {
    let mut rig = Rig::new(8, false);
    let (old, new) = (Segment::head(1, 90), Segment::head(1, 90).compacted());
    rig.acked(old.whole());
    rig.acked(new.whole());
    let frame = rig.disk.find(&new.bytes).unwrap();
    rig.disk.flip(frame, FRAME_HEADER_BYTES + new.ends[2]);
    let whole = new.certificate(new.len());
    assert_eq!(rig.fetch(1, whole, &[SlotRange::ALL]), None);
    assert_eq!(rig.metric("holdfast_backup_corrupt_replicas_total"), 1.0);
    // What the master sends is what it has by then, and may be the old bytes as well.
    rig.acked(old.whole());
    let listed = rig.fence(5).replicas;
    assert!(
        listed
            .iter()
            .any(|replica| replica.certificate == old.certificate(old.len()))
    );
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

#[test]
fn a_full_store_says_so_and_frees_what_it_is_told_to() {
    let mut rig = Rig::new(4, false);
    for id in 1..=3 {
        rig.acked(Segment::head(id, 3).whole());
    }
    let more = Segment::head(4, 3);
    assert_eq!(refusals(&rig.append(more.whole())), [Refusal::Full]);
    // The last frame is for a replacement.
    let again = Segment::head(3, 3);
    let piece = Append {
        certificate: None,
        ..again.append(0, again.ends[1])
    };
    assert_eq!(rig.acked(piece).length, again.ends[1]);
    let free = |segments: &[u64]| Message::Free {
        log: LOG,
        segments: segments.iter().copied().map(SegmentId).collect(),
    };
    rig.deliver(RECOVERER, free(&[1, 2]));
    assert_eq!(
        rig.metric("holdfast_backup_frames_free"),
        0.0,
        "not its log"
    );
    rig.deliver(SHARD, free(&[1, 2, 99]));
    assert_eq!(rig.metric("holdfast_backup_frames_free"), 2.0);
    rig.acked(more.whole());
    rig.restart();
    let listed: Vec<u64> = rig.fence(5).replicas.iter().map(|r| r.segment.0).collect();
    assert_eq!(listed, [3, 4], "what was freed stays freed");
}

#[test]
fn the_opening_of_a_segment_just_freed_is_a_late_duplicate() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 5);
    rig.acked(segment.whole());
    rig.deliver(
        SHARD,
        Message::Free {
            log: LOG,
            segments: vec![SegmentId(1)],
        },
    );
    assert_eq!(rig.append(segment.append(0, segment.ends[0])), []);
    rig.pass_ms(6_000);
    rig.acked(segment.append(0, segment.ends[0]));
}

#[test]
fn a_gone_log_leaves_nothing_and_never_comes_back() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 5);
    rig.acked(segment.whole());
    rig.fence(5);
    rig.deliver(
        SHARD,
        Message::Free {
            log: LOG,
            segments: vec![SegmentId(1)],
        },
    );
    assert_eq!(
        rig.fence(5).replicas.len(),
        1,
        "recovery may have planned with it"
    );
    rig.deliver(ServerId::COORDINATOR, Message::LogGone { log: LOG });
    assert_eq!(rig.metric("holdfast_backup_frames_free"), 8.0);
    assert_eq!(acks(&rig.append(segment.whole())), []);
    assert_eq!(rig.fence(6).replicas, []);
}

#[test]
fn only_the_logs_shard_appends_and_only_the_coordinator_fences() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 5);
    rig.deliver(RECOVERER, Message::Append(segment.whole()));
    rig.deliver(
        SHARD,
        Message::Fence {
            log: LOG,
            epoch: Epoch(9),
        },
    );
    assert_eq!(rig.take_sent(), []);
    rig.acked(segment.whole());
}

/// R4: the epoch is told to open replicas by appends without bytes, and survives a crash.
#[test]
fn a_raised_epoch_is_kept_and_older_appends_are_overtaken() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 5);
    rig.acked(segment.append(0, segment.ends[2]));
    let empty = segment.append(segment.ends[2], segment.ends[2]);
    let raise = Append {
        epoch: Epoch(4),
        expiry_ceiling: ClusterMs(9_000),
        ..empty
    };
    let ack = rig.acked(raise);
    assert_eq!((ack.epoch, ack.length), (Epoch(4), segment.ends[2]));
    assert_eq!(
        rig.append(segment.append(segment.ends[2], segment.ends[3])),
        []
    );
    rig.restart();
    let inventory = rig.fence(7);
    assert_eq!(inventory.replicas[0].epoch, Epoch(4));
    assert_eq!(inventory.expiry_ceiling, ClusterMs(9_000));
}

/// A replica that was made again elsewhere while the backup was down must not stay for ever.
#[test]
fn what_an_earlier_incarnation_left_is_offered_to_its_master() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 5);
    rig.acked(segment.whole());
    rig.restart();
    rig.pass_ms(500);
    let length = segment.len();
    assert!(sent_refusals(&mut rig).contains(&Refusal::Reopen { length }));
    let claim = Append {
        close: true,
        ..segment.append(length, length)
    };
    assert!(rig.acked(claim).closed);
    rig.pass_ms(2_000);
    assert_eq!(sent_refusals(&mut rig), []);
}

#[test]
fn the_expelled_stop_at_once() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 5);
    let reply = HeartbeatReply {
        sent_us: 0,
        cluster_us: 0,
        view_version: 1,
        known: false,
    };
    rig.deliver(ServerId::COORDINATOR, Message::HeartbeatReply(reply));
    assert!(rig.stopped);
    assert_eq!(rig.append(segment.whole()), []);
    assert_eq!(rig.backup.wakeup(), None);
}

#[test]
fn a_shutdown_waits_for_the_disk() {
    let mut rig = Rig::new(8, false);
    let segment = Segment::head(1, 5);
    rig.append(segment.append(0, segment.ends[0]));
    rig.step(Input::Shutdown);
    assert!(!rig.stopped && !rig.pending.is_empty());
    assert_eq!(
        rig.append(segment.append(segment.ends[0], segment.ends[1])),
        []
    );
    rig.settle();
    assert!(rig.stopped);
}

#[test]
fn a_store_that_does_not_fit_the_configuration_is_refused() {
    let member = member(ServerId(3), Role::Backup);
    let make = |config: BackupConfig, headers| Backup::new(config, headers, 1).map(|_| ());
    let good = BackupConfig::for_testing(member.clone());
    assert_eq!(make(good.clone(), Vec::new()), Ok(()));
    let zeros = Bytes::from(vec![0; FRAME_HEADER_BYTES as usize]);
    let beyond = vec![(FrameId(32), zeros.clone())];
    assert!(matches!(
        make(good.clone(), beyond),
        Err(ConfigError::Store { frame: 32, .. })
    ));
    let short = vec![(FrameId(0), zeros.slice(1..))];
    assert!(matches!(
        make(good.clone(), short),
        Err(ConfigError::Store { .. })
    ));
    let shard = BackupConfig {
        member: rig::member(ServerId(3), Role::Shard),
        ..good.clone()
    };
    assert_eq!(make(shard, Vec::new()), Err(ConfigError::NotABackup));
    let none = BackupConfig { frames: 0, ..good };
    assert!(matches!(
        make(none, Vec::new()),
        Err(ConfigError::Frames { .. })
    ));
}

/// Segments longer than a frame are a configuration error of the cluster, and no reason to panic.
#[test]
fn a_segment_that_is_too_long_is_refused() {
    let mut rig = Rig::new(4, false);
    let bytes = Bytes::from(vec![7; SEGMENT_BYTES as usize + 1]);
    let certificate = Certificate {
        length: bytes.len() as u32,
        checksum: holdfast_format::crc32c(&bytes),
    };
    let append = Append {
        bytes,
        certificate: Some(certificate),
        ..Segment::head(1, 1).append(0, 10)
    };
    assert_eq!(refusals(&rig.append(append)), [Refusal::Full]);
}
