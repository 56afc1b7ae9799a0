//! Frames: what takes one, what frees it, and what an earlier incarnation left in it.

use bytes::Bytes;
use holdfast_backup::{Backup, BackupConfig, ConfigError};
use holdfast_cluster::{FRAME_HEADER_BYTES, FrameId};
use holdfast_format::{Epoch, SegmentId, ServerId};
use holdfast_wire::{Append, Message, Refusal, ReplicaState, Role};

use crate::rig::{self, LOG, RECOVERER, Rig, SHARD, Segment, config};
use crate::{acks, refusals, sent_refusals};

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
fn a_store_that_does_not_fit_the_configuration_is_refused() {
    let member = rig::member(ServerId(3), Role::Backup);
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
