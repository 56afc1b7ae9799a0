//! Lineage: each rule of the design notes' section, one test.

use holdfast_cluster::Node;
use holdfast_coordinator::{Hold, Phase};
use holdfast_format::{LogId, SegmentId};
use holdfast_wire::{Message, Recover, ReplayTimings, Role};

use crate::recovery::three;
use crate::world::{World, closed, id, open};

/// What a recovery master says when its part is served and still leans.
fn report_replayed(w: &mut World, master: u64, log: LogId, attempt: u64, bytes_left: u64) {
    let replayed = Message::Replayed {
        log,
        attempt,
        entries: 10,
        bytes: 1_000,
        bytes_left,
        timings: ReplayTimings::default(),
    };
    w.tell(master, replayed);
}

fn take_recorded(w: &mut World) -> Vec<(u64, (LogId, u64))> {
    w.take(|m| match m {
        Message::RecoveryRecorded { log, attempt } => Some((*log, *attempt)),
        _ => None,
    })
}

/// Shard 3 is dead and both others have taken its parts over, leaning.
fn leaning() -> (World, Vec<(u64, Recover)>) {
    let mut w = three();
    w.kill(3);
    w.run_ms(60);
    let recovers = w.take_recovers();
    for (master, recover) in &recovers {
        assert_eq!(
            recover.first.as_deref(),
            Some(&[SegmentId(2)][..]),
            "the head"
        );
        report_replayed(&mut w, *master, recover.log, recover.attempt, 500);
    }
    (w, recovers)
}

/// V5: the new owner is named at once, the log stays until nobody leans on it.
#[test]
fn a_log_that_is_leant_on_is_kept_until_its_heirs_stand_alone() {
    let (mut w, recovers) = leaning();
    assert!(
        w.view()
            .tablets
            .iter()
            .all(|t| t.available && t.owner != LogId(3))
    );
    let status = &w.status().recoveries[0];
    assert_eq!((status.phase, &status.hold), (Phase::Leaning, &None));
    assert!(status.taken_over_ms.is_some() && status.done_ms.is_none());
    assert_eq!(status.partitions[0].bytes_left, 500);
    assert!(!w.coordinator.ready(), "not everything has its replicas");
    assert!(take_recorded(&mut w).is_empty());

    // It outlives the coordinator, and asks nobody to recover anything.
    w.restart();
    for backup in [11, 12, 13] {
        w.heartbeat(backup);
    }
    for shard in [1, 2] {
        w.heartbeat(shard);
    }
    w.run_ms(200);
    assert!(w.take_recovers().is_empty());
    assert_eq!(w.status().recoveries[0].phase, Phase::Leaning);
    assert!(w.take_gone().is_empty());

    w.report_recovered(1, &recovers[0].1);
    assert_eq!(
        take_recorded(&mut w),
        [(1, (LogId(3), recovers[0].1.attempt))]
    );
    assert_eq!(w.status().recoveries.len(), 1, "the other one still leans");
    assert!(w.take_gone().is_empty());
    // Said again, it is answered again.
    w.report_recovered(1, &recovers[0].1);
    assert_eq!(take_recorded(&mut w).len(), 1);
    w.report_recovered(2, &recovers[1].1);
    assert_eq!(w.take_gone().len(), 3);
    assert!(w.status().recoveries.is_empty());
    assert!(!w.store.contains_key("log/0000000000000003"));
}

/// V5: the dead log's part is read beside the recovery master's own log, whatever became of its head.
#[test]
fn who_dies_leaning_is_recovered_from_both_logs() {
    let (mut w, recovers) = leaning();
    let part = &recovers[1].1;
    w.hold(2, &[11, 12, 13], &[closed(1, 100), open(4, 0, 70, &[1, 4])]);
    w.kill(2);
    w.run_ms(60);
    let again = w.take_recovers();
    assert_eq!(again.len(), 1);
    let (heir, second) = &again[0];
    assert_eq!((*heir, second.log), (1, LogId(2)));
    assert_eq!(second.first.as_deref(), Some(&[SegmentId(4)][..]));
    let [lender] = &second.leant_on[..] else {
        panic!("{second:?}");
    };
    assert_eq!((lender.log, &lender.ranges), (LogId(3), &part.ranges));
    let read: Vec<SegmentId> = lender.segments.iter().map(|it| it.segment).collect();
    assert_eq!(
        read,
        [SegmentId(1)],
        "its head is in the log that leant on it"
    );
    assert!(
        World::slots(second) > World::slots(part),
        "its own slots too"
    );

    // The heir takes the leaning over too, in the same write.
    report_replayed(&mut w, 1, LogId(2), second.attempt, 700);
    w.report_recovered(1, &recovers[0].1);
    assert_eq!(w.status().recoveries.len(), 2, "both logs are kept");
    assert!(w.take_gone().is_empty());
    // A third generation would lean on three logs, and replicates first.
    w.enlist(4, Role::Shard);
    w.plays.remove(&id(4));
    w.run_ms(400);
    w.hold(1, &[11, 12, 13], &[closed(1, 100), open(6, 0, 70, &[1, 6])]);
    w.kill(1);
    w.run_ms(60);
    let third = w.take_recovers();
    let (_, third) = &third[0];
    let lenders: Vec<LogId> = third.leant_on.iter().map(|it| it.log).collect();
    assert_eq!((lenders, &third.first), (vec![LogId(2), LogId(3)], &None));
    w.report_recovered(4, third);
    assert!(w.status().recoveries.is_empty());
    assert_eq!(w.take_gone().len(), 9, "three logs, on three backups");
}

/// V5: what the second recovery needs of the first log is missing, and it says so.
#[test]
fn a_lender_without_a_segment_holds_the_recovery() {
    let (mut w, _) = leaning();
    w.hold(2, &[11, 12, 13], &[closed(1, 100), open(4, 0, 70, &[1, 4])]);
    for backup in [11, 12, 13] {
        w.kill(backup);
    }
    for backup in [21, 22, 23] {
        w.hold(2, &[backup], &[closed(1, 100), open(4, 0, 70, &[1, 4])]);
        w.enlist(backup, Role::Backup);
    }
    w.kill(2);
    w.run_ms(1_000);
    assert!(w.take_recovers().is_empty());
    let missing = Hold::Missing {
        segments: vec![SegmentId(1)],
        count: 1,
    };
    let hold = Hold::Lent {
        log: LogId(3),
        hold: Box::new(missing),
    };
    let status = w.status();
    let of_two = status.recoveries.iter().find(|it| it.log == LogId(2));
    assert_eq!(of_two.unwrap().hold, Some(hold));
    // One that held it comes back.
    w.hold(3, &[24], &[closed(1, 100)]);
    w.enlist(24, Role::Backup);
    w.run_ms(1_000);
    assert!(!w.take_recovers().is_empty());
}

/// R2: after a bare opening the head before may be closed on few replicas: it is not leant on.
#[test]
fn a_segment_that_may_be_closed_on_few_is_not_leant_on() {
    let mut w = three();
    let opening = holdfast_format::SEGMENT_HEADER_BYTES + holdfast_format::Digest::encoded_len(3);
    let bare = open(3, 0, opening as u32, &[1, 2, 3]);
    w.hold(3, &[11], &[closed(1, 100), closed(2, 90), bare]);
    w.hold(3, &[12, 13], &[closed(1, 100), open(2, 0, 80, &[1, 2])]);
    w.kill(3);
    w.run_ms(60);
    let (_, recover) = &w.take_recovers()[0];
    let first = recover.first.as_deref();
    assert_eq!(first, Some(&[SegmentId(2), SegmentId(3)][..]));
}
