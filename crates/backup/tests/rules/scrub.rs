//! Rot that is found in the background.

use holdfast_backup::BackupConfig;
use holdfast_cluster::{FRAME_HEADER_BYTES, Input};
use holdfast_format::{Epoch, ServerId, SlotRange};
use holdfast_wire::{Message, Refusal};

use crate::rig::{LOG, Rig, Segment, config};
use crate::sent_refusals;

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
