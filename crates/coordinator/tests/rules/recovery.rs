//! Fence, seal, recover: each rule of the design notes' section, one test.

use crate::world::{World, closed, id, member, open};
use holdfast_cluster::Node;
use holdfast_coordinator::{Hold, Phase, Seal};
use holdfast_format::{
    ClusterMs, Epoch, LogId, SLOT_PARTS, SegmentId, ServerId, SlotRange, Version,
};
use holdfast_wire::{
    Figures, Message, RecoverSegment, RecoveryFailure, ReplayTimings, ReplicaState, Role, SlotLoad,
};

/// Shards 1, 2, 3 and backups 11, 12, 13 that all hold log 3: segment 1 closed, 2 open to byte 50.
/// Shards do not recover by themselves.
pub fn three() -> World {
    let mut w = World::with_shards(&[1, 2, 3]);
    w.hold(3, &[11, 12, 13], &[closed(1, 100), open(2, 0, 50, &[1, 2])]);
    for shard in [1, 2, 3] {
        w.plays.remove(&id(shard));
    }
    w
}

/// Who holds a segment.
fn backups(read: &RecoverSegment) -> Vec<ServerId> {
    read.holders.iter().map(|holder| holder.backup).collect()
}

fn done(w: &World) -> bool {
    w.status().recoveries.is_empty() && w.status().tablets.iter().all(|t| t.available)
}

#[test]
fn a_dead_shard_is_fenced_sealed_planned_and_taken_over() {
    let mut w = three();
    for backup in [11, 12, 13] {
        w.plays.remove(&id(backup));
    }
    w.kill(3);
    let view = w.view();
    assert_eq!(view.recovering, [LogId(3)]);
    assert!(
        view.tablets
            .iter()
            .all(|t| t.available == (t.owner != LogId(3)))
    );
    assert!(!w.coordinator.ready());

    // 1. Every backup is fenced above every epoch, again until it answers.
    let fences = w.take_fences();
    assert_eq!(
        fences.iter().map(|(to, _)| *to).collect::<Vec<_>>(),
        [11, 12, 13]
    );
    let (_, (log, fence)) = fences[0];
    assert!(fence > Epoch(1 << 31));
    w.answer_fence(11, log, fence);
    w.answer_fence(12, log, fence);
    w.run_ms(110);
    assert_eq!(w.take_fences(), [(13, (log, fence))]);
    assert!(w.take_recovers().is_empty(), "one backup has not answered");
    w.answer_fence(13, log, fence);

    // 2 to 4. Seal, segments, holders, a part for every shard.
    let recovers = w.take_recovers();
    assert_eq!(
        recovers.iter().map(|(to, _)| *to).collect::<Vec<_>>(),
        [1, 2]
    );
    assert_eq!(
        recovers.iter().map(|(_, r)| World::slots(r)).sum::<u32>(),
        5462
    );
    let (_, first) = &recovers[0];
    assert_eq!(first.segments.len(), 2);
    assert_eq!(
        (first.segments[1].segment, first.segments[1].length()),
        (SegmentId(2), 50)
    );
    assert_eq!(backups(&first.segments[1]), [id(11), id(12), id(13)]);
    assert_eq!(
        (first.version_ceiling, first.expiry_floor),
        (Version(200), ClusterMs(13))
    );
    assert!(
        (85..=200).contains(&first.lease_remaining_ms),
        "{}",
        first.lease_remaining_ms
    );
    let status = &w.status().recoveries[0];
    assert_eq!(status.phase, Phase::Replaying);
    assert_eq!(
        status.seal,
        Some(Seal {
            head: SegmentId(2),
            length: 50,
            checksum: 50
        })
    );

    // 5 and 6. Owners change one by one, epochs rise, and then the log is gone.
    w.report_recovered(1, &recovers[0].1);
    assert_eq!(w.view().recovering, [LogId(3)], "a part is still missing");
    w.report_recovered(2, &recovers[1].1);
    let view = w.view();
    assert!(view.recovering.is_empty());
    assert!(
        view.tablets
            .iter()
            .all(|t| t.available && t.owner != LogId(3))
    );
    assert!(view.tablets.iter().any(|t| t.epoch == Epoch(2)));
    assert_eq!(w.take_gone().len(), 3);
    assert!(!w.store.contains_key("log/0000000000000003"));
    assert!(w.coordinator.ready());

    let finished = &w.status().finished[0];
    assert_eq!((finished.log, finished.phase), (LogId(3), Phase::Done));
    assert!(finished.fenced_ms.unwrap() >= 100 && finished.done_ms >= finished.planned_ms);
    assert!(
        finished
            .partitions
            .iter()
            .all(|p| p.entries == 10 && p.taken_over_ms.is_some())
    );
}

/// P4: what the dead shard told of its slots decides where they are cut, also for a coordinator that starts later.
#[test]
fn a_plan_follows_the_load_that_the_dead_shard_told() {
    for restarts in [false, true] {
        let mut w = three();
        // Shard 3 has slots 10922 to 16383, which are parts 42 to 63; nearly everything is in part 50.
        let load = |part: usize| SlotLoad {
            entries: if part == 50 { 1_000_000 } else { 1_000 },
            kib: 10,
        };
        w.loads.insert(id(3), (0..SLOT_PARTS).map(load).collect());
        w.heartbeat(3);
        if restarts {
            for backup in [11, 12, 13] {
                w.plays.remove(&id(backup));
            }
        }
        w.kill(3);
        if restarts {
            w.run_ms(20);
            w.restart();
            for backup in [11, 12, 13] {
                w.plays.insert(id(backup));
            }
        }
        // A coordinator that has just begun waits a moment for shards that are about to be heard.
        w.run_ms(if restarts { 450 } else { 200 });
        let recovers = w.take_recovers();
        let ranges: Vec<SlotRange> = recovers
            .iter()
            .flat_map(|(_, it)| it.ranges.clone())
            .collect();
        assert_eq!(ranges.len(), 2, "{ranges:?}");
        let cut = ranges[0].last.0;
        // In the middle of part 50: slots 12800 to 13055.
        assert!((12_860..13_000).contains(&cut), "{cut}");
    }
}

/// P5: a small log is one shard's. Those come first that are at no other dead log, and of them the emptiest, whether the
/// logs died together or one after the other.
#[test]
fn small_logs_go_to_the_emptiest_shards_that_recover_nothing_else() {
    for together in [true, false] {
        let mut w = World::new(|c| {
            c.part_bytes_min = 64_000_000;
            c.initial_shards = 3;
        });
        for backup in [11, 12, 13] {
            w.enlist(backup, Role::Backup);
        }
        for (shard, bytes_used) in [(1, 90), (2, 90), (3, 50), (4, 10), (5, 30)] {
            w.enlist(shard, Role::Shard);
            w.plays.remove(&id(shard));
            let figures = Figures {
                bytes_limit: 1_000_000,
                bytes_used,
                ..Figures::default()
            };
            w.alive.insert(id(shard), figures);
            w.heartbeat(shard);
        }
        for log in [1, 2] {
            w.hold(log, &[11, 12, 13], &[open(1, 0, 50, &[1])]);
        }
        if together {
            w.plays.clear();
        }
        w.kill(1);
        w.run_ms(50);
        w.kill(2);
        w.plays.extend([11, 12, 13].map(id));
        w.run_ms(300);
        let recovers = w.take_recovers();
        let mut masters: Vec<_> = recovers.iter().map(|(to, it)| (it.log.0, *to)).collect();
        masters.dedup();
        assert_eq!(masters, [(1, 4), (2, 5)]);
    }
}

/// R4 and rule 2: the recorded minimum epoch decides which open replicas count.
#[test]
fn a_stale_open_replica_below_the_recorded_epoch_is_never_the_head() {
    let mut w = three();
    w.tell(
        3,
        Message::RaiseEpoch {
            log: LogId(3),
            epoch: Epoch(5),
        },
    );
    w.kill(3);
    w.run_ms(100);
    let status = &w.status().recoveries[0];
    assert_eq!(
        (status.phase, &status.hold),
        (Phase::Held, &Some(Hold::NoHead))
    );
    assert!(w.take_recovers().is_empty());
    assert!(w.events.iter().any(|text| text.contains("waits")));

    // The replica of the right epoch comes back with its backup.
    w.enlist(14, Role::Backup);
    w.hold(3, &[14], &[open(3, 5, 60, &[1, 3])]);
    w.run_ms(400);
    let recovers = w.take_recovers();
    assert_eq!(recovers[0].1.segments.last().unwrap().segment, SegmentId(3));
}

/// The only recovery waits, and for this; nobody is told to begin.
#[track_caller]
fn assert_held(w: &mut World, hold: Hold) {
    assert_eq!(w.status().recoveries[0].hold, Some(hold));
    assert!(w.take_recovers().is_empty());
}

/// Where two of three acknowledge, one replica of the head does not tell its end.
#[test]
fn a_head_found_on_too_few_backups_is_waited_for() {
    let mut w = World::new(|c| {
        c.cluster.ack_quorum = 2;
        c.initial_shards = 3;
    });
    for backup in [11, 12, 13] {
        w.enlist(backup, Role::Backup);
    }
    for shard in [1, 2, 3] {
        w.enlist(shard, Role::Shard);
        w.plays.remove(&id(shard));
    }
    w.hold(3, &[11, 12, 13], &[closed(1, 100)]);
    w.hold(3, &[11], &[closed(1, 100), open(2, 0, 50_000, &[1, 2])]);
    w.kill(12);
    w.kill(13);
    w.kill(3);
    w.run_ms(1_000);
    let hold = Hold::TooFew {
        head: SegmentId(2),
        found: 1,
        needed: 2,
    };
    assert_held(&mut w, hold);
    assert!(
        w.events
            .iter()
            .any(|text| text.contains("1 of the 2 replicas"))
    );

    // Whoever comes back may know more, and does.
    let mut back = member(23, Role::Backup);
    back.store = member(13, Role::Backup).store;
    w.hold(3, &[23], &[closed(1, 100), open(2, 0, 60_000, &[1, 2])]);
    w.enlist_as(back, vec![LogId(3)]);
    w.run_ms(400);
    let seal = w.status().recoveries[0].seal.expect("it goes on");
    assert_eq!((seal.head, seal.length), (SegmentId(2), 60_000));
    assert!(!w.take_recovers().is_empty());
}

#[test]
fn a_missing_segment_holds_the_recovery_until_its_backup_returns() {
    let mut w = three();
    w.hold(3, &[11, 12], &[open(2, 0, 50, &[1, 2])]);
    w.kill(13);
    w.kill(3);
    w.run_ms(1_000);
    let hold = Hold::Missing {
        segments: vec![SegmentId(1)],
        count: 1,
    };
    assert_held(&mut w, hold);

    let mut back = member(23, Role::Backup);
    back.store = member(13, Role::Backup).store;
    w.hold(3, &[23], &[closed(1, 100)]);
    w.enlist_as(back, vec![LogId(3)]);
    w.run_ms(100);
    let recovers = w.take_recovers();
    assert_eq!(backups(&recovers[0].1.segments[0]), [id(23)]);
    assert_eq!(w.take_gone(), [], "the log is being recovered");
}

/// Rule 2: the seal is recorded, and later attempts and later coordinators use it.
#[test]
fn later_attempts_use_the_recorded_seal() {
    let mut w = three();
    w.kill(3);
    w.run_ms(50);
    let recovers = w.take_recovers();
    w.report_recovered(1, &recovers[0].1);
    // A longer replica turns up, the other recovery master dies, the coordinator restarts.
    w.enlist(14, Role::Backup);
    w.hold(3, &[14], &[closed(1, 100), open(2, 0, 90, &[1, 2])]);
    w.kill(2);
    w.restart();
    w.run_ms(500);
    let again: Vec<_> = w
        .take_recovers()
        .into_iter()
        .filter(|(_, r)| r.log == LogId(3))
        .collect();
    let (_, recover) = &again[0];
    assert_eq!(recover.segments[1].length(), 50);
    assert!(recover.attempt > recovers[1].1.attempt);
    assert_eq!(recover.ranges, recovers[1].1.ranges);
}

/// S4 (seed 66 of the simulation): one part was taken over as the log was sealed, and then all who had
/// the sealed tail are lost. The other part never was acknowledged that far, so less will do.
#[test]
fn a_seal_is_chosen_again_for_what_nobody_has_taken_over() {
    let mut w = three();
    w.hold(3, &[13], &[closed(1, 100), open(2, 0, 70, &[1, 2])]);
    w.kill(3);
    w.run_ms(50);
    let recovers = w.take_recovers();
    assert_eq!(recovers[0].1.segments[1].length(), 70);
    w.report_recovered(1, &recovers[0].1);
    w.kill(13);
    w.kill(2);
    w.run_ms(1_000);
    let again = w.take_recovers();
    let (to, recover) = again
        .iter()
        .find(|(_, r)| r.log == LogId(3))
        .expect("planned again");
    assert_eq!((*to, recover.segments[1].length()), (1, 50));
    assert_eq!(recover.ranges, recovers[1].1.ranges);
}

/// S4, while somebody is taking a part over: it may have read the tail already.
#[test]
fn a_seal_in_use_is_waited_for() {
    let mut w = three();
    w.hold(3, &[13], &[closed(1, 100), open(2, 0, 70, &[1, 2])]);
    w.kill(3);
    w.run_ms(50);
    w.take_recovers();
    w.kill(13);
    w.run_ms(500);
    let seal = Seal {
        head: SegmentId(2),
        length: 70,
        checksum: 70,
    };
    let status = w.status();
    let of_3 = status.recoveries.iter().find(|r| r.log == LogId(3));
    assert_eq!(of_3.unwrap().hold, Some(Hold::SealNotReached(seal)));
}

/// S4, the other half: before anyone has any of it, a lost tail that nobody acknowledged is let go.
#[test]
fn a_seal_that_nobody_used_is_chosen_again() {
    let mut w = three();
    w.hold(3, &[13], &[closed(1, 100), open(2, 0, 70, &[1, 2])]);
    w.kill(3);
    w.run_ms(50);
    w.take_recovers();
    w.kill(13);
    for master in [1, 2] {
        w.kill(master);
    }
    w.enlist(4, Role::Shard);
    w.plays.remove(&id(4));
    w.run_ms(1_000);
    let recovers = w.take_recovers();
    let recover = &recovers.iter().find(|(_, r)| r.log == LogId(3)).unwrap().1;
    assert_eq!(recover.segments[1].length(), 50);
}

/// S4 and V3: the plan was recorded, and the longest replica lost before anyone heard of it. The
/// masters live, so only their word can end it.
#[test]
fn a_plan_that_nobody_heard_of_does_not_keep_an_unreachable_seal() {
    let mut w = three();
    w.hold(3, &[13], &[closed(1, 100), open(2, 0, 70, &[1, 2])]);
    w.kill(3);
    w.run_ms(50);
    assert_eq!(w.take_recovers()[0].1.segments[1].length(), 70, "all lost");
    w.kill(13);
    w.run_ms(600);
    let unreadable = w.take_recovers();
    assert_eq!(unreadable.len(), 2);
    for (master, recover) in unreadable {
        let head = &recover.segments[0];
        assert_eq!(head.holders.len(), 0);
        let failed = Message::RecoveryFailed {
            log: LogId(3),
            attempt: recover.attempt,
            reason: RecoveryFailure::SegmentMissing(head.segment),
        };
        w.tell(master, failed);
    }
    w.run_ms(1_000);
    assert_eq!(w.take_recovers()[0].1.segments[1].length(), 50);
}

#[test]
fn a_recovery_master_that_dies_has_its_part_planned_again() {
    let mut w = three();
    w.kill(3);
    w.run_ms(50);
    let recovers = w.take_recovers();
    w.report_recovered(1, &recovers[0].1);
    w.kill(2);
    w.run_ms(600);
    let again: Vec<_> = w
        .take_recovers()
        .into_iter()
        .filter(|(_, r)| r.log == LogId(3))
        .collect();
    let (to, recover) = &again[0];
    assert_eq!((*to, &recover.ranges), (1, &recovers[1].1.ranges));
    // What the dead one says now is nobody's.
    w.report_recovered(2, &recovers[1].1);
    assert!(w.status().recoveries.iter().any(|r| r.log == LogId(3)));
    w.report_recovered(1, recover);
    assert!(!w.status().recoveries.iter().any(|r| r.log == LogId(3)));
}

/// V3: a survivor that is still busy with its own part is given the other part afterwards.
#[test]
fn a_shard_takes_over_one_part_at_a_time() {
    let mut w = three();
    w.kill(3);
    w.run_ms(50);
    let recovers = w.take_recovers();
    w.kill(2);
    w.run_ms(300);
    let mine = |w: &mut World| {
        let all = w.take_recovers();
        all.into_iter()
            .map(|(_, r)| r)
            .filter(|r| r.log == LogId(3))
            .collect::<Vec<_>>()
    };
    assert!(
        mine(&mut w)
            .iter()
            .all(|r| r.attempt == recovers[0].1.attempt)
    );
    w.report_recovered(1, &recovers[0].1);
    w.run_ms(50);
    assert_eq!(mine(&mut w)[0].ranges, recovers[1].1.ranges);
}

#[test]
fn a_shard_without_memory_is_passed_over_first() {
    let mut w = World::with_shards(&[1, 2, 3]);
    w.hold(1, &[11, 12, 13], &[open(1, 0, 50, &[1])]);
    for shard in [1, 2, 3] {
        w.plays.remove(&id(shard));
    }
    w.kill(1);
    w.run_ms(50);
    let fail = |w: &mut World, to: u64, attempt: u64| {
        let reason = RecoveryFailure::OutOfMemory;
        w.tell(
            to,
            Message::RecoveryFailed {
                log: LogId(1),
                attempt,
                reason,
            },
        );
    };
    let recovers = w.take_recovers();
    let (to_2, to_3) = (&recovers[0], &recovers[1]);
    fail(&mut w, 2, to_2.1.attempt);
    fail(&mut w, 2, to_2.1.attempt); // doubled
    w.report_recovered(3, &to_3.1);
    w.run_ms(30);
    let again = w.take_recovers();
    assert_eq!(again.len(), 1);
    assert_eq!((again[0].0, &again[0].1.ranges), (3, &to_2.1.ranges));
    // When nobody has memory it is tried again, later and later.
    let mut pauses = Vec::new();
    let mut last = again;
    for _ in 0..4 {
        for (to, recover) in &last {
            fail(&mut w, *to, recover.attempt);
        }
        let mut waited = 0;
        last = loop {
            w.run_ms(10);
            waited += 10;
            let next = w.take_recovers();
            let fresh: Vec<_> = next
                .into_iter()
                .filter(|(_, r)| r.attempt > last[0].1.attempt)
                .collect();
            if !fresh.is_empty() {
                break fresh;
            }
            assert!(waited < 20_000);
        };
        pauses.push(waited);
    }
    assert!(pauses.last() > pauses.first(), "{pauses:?}");
}

#[test]
fn a_segment_that_could_not_be_read_is_looked_for_again() {
    let mut w = three();
    w.kill(3);
    w.run_ms(50);
    let recovers = w.take_recovers();
    // Reading it found it rotten: its backups no longer list it.
    w.hold(3, &[11, 12, 13], &[open(2, 0, 50, &[1, 2])]);
    for (to, recover) in &recovers {
        let reason = RecoveryFailure::SegmentMissing(SegmentId(1));
        let attempt = recover.attempt;
        w.tell(
            *to,
            Message::RecoveryFailed {
                log: LogId(3),
                attempt,
                reason,
            },
        );
    }
    w.run_ms(1_000);
    assert_eq!(w.status().recoveries[0].phase, Phase::Held);
    assert!(
        w.status().recoveries[0]
            .partitions
            .iter()
            .all(|p| p.failure.is_some())
    );
    // Another copy turns up.
    w.enlist(14, Role::Backup);
    w.hold(3, &[14], &[closed(1, 100)]);
    w.run_ms(1_000);
    assert_eq!(backups(&w.take_recovers()[0].1.segments[0]), [id(14)]);
}

#[test]
fn recover_is_repeated_until_answered_and_not_while_progress_is_seen() {
    let mut w = three();
    w.kill(3);
    w.run_ms(50);
    let recovers = w.take_recovers();
    for step in 1..=20 {
        w.run_ms(100);
        let (log, attempt) = (LogId(3), recovers[0].1.attempt);
        w.tell(
            1,
            Message::RecoveryProgress {
                log,
                attempt,
                entries: step,
                bytes: step * 10,
                done_bytes: step * 5,
                total_bytes: 150,
            },
        );
    }
    let repeated = w.take_recovers();
    assert!(repeated.iter().all(|(to, _)| *to == 2), "1 makes progress");
    assert!(repeated.len() >= 3);
    let partitions = &w.status().recoveries[0].partitions;
    assert_eq!((partitions[0].entries, partitions[0].bytes), (20, 200));
    let part = &partitions[0];
    assert_eq!((part.done_bytes, part.total_bytes), (100, 150));
    assert!(part.running_ms >= 2_000 && partitions[1].total_bytes == 0);
    assert_eq!(
        repeated[0].1.lease_remaining_ms, 0,
        "the lease has run out meanwhile"
    );
}

/// A coordinator that starts in the middle finds the plan in its records and goes on with it.
#[test]
fn a_restarted_coordinator_continues_the_same_attempt() {
    let mut w = three();
    w.kill(3);
    w.run_ms(50);
    let before = w.take_recovers();
    w.restart();
    // A report that was under way counts, before anything has been asked again.
    w.report_recovered(1, &before[0].1);
    w.run_ms(400);
    let after = w.take_recovers();
    assert_eq!((after[0].0, after[0].1.attempt), (2, before[1].1.attempt));
    assert_eq!(after[0].1.ranges, before[1].1.ranges);
    w.report_recovered(2, &after[0].1);
    assert!(done(&w));
}

#[test]
fn without_a_live_shard_the_log_waits_and_a_lone_new_one_recovers_all() {
    let mut w = World::with_shards(&[1]);
    w.hold(1, &[11, 12, 13], &[open(1, 0, 50, &[1])]);
    w.kill(1);
    w.run_ms(5_000);
    assert_eq!(w.status().recoveries[0].phase, Phase::Planning);
    w.enlist(2, Role::Shard);
    w.run_ms(200);
    assert!(done(&w));
    assert_eq!(w.owners(), [(2, 16384)]);
}

/// Everything lost power: backups come back one by one, masters as new incarnations.
#[test]
fn a_cold_start_recovers_every_log() {
    let mut w = World::with_shards(&[1, 2]);
    for log in [1, 2] {
        w.hold(
            log,
            &[21, 22, 23],
            &[closed(1, 100), open(2, 0, 50, &[1, 2])],
        );
    }
    w.alive.clear();
    w.config.cold_start = true;
    w.restart();
    for (n, store) in [(21, 1011), (22, 1012), (23, 1013)] {
        let mut backup = member(n, Role::Backup);
        backup.store = store;
        w.enlist_as(backup, vec![LogId(1), LogId(2)]);
        w.run_ms(20);
    }
    w.enlist(5, Role::Shard);
    w.run_ms(20);
    w.enlist(6, Role::Shard);
    w.run_ms(700);
    assert!(done(&w));
    let owners: Vec<u64> = w.owners().iter().map(|(owner, _)| *owner).collect();
    assert!(
        owners.contains(&5) && owners.contains(&6),
        "both take part: {owners:?}"
    );
}

/// Power failed where memory acknowledges: what the first backup to return has on its disk shows a
/// closed segment as the open head that it once was. The others know better.
#[test]
fn a_cold_start_waits_for_stores_before_it_chooses_a_head() {
    for all_return in [true, false] {
        let mut w = World::with_shards(&[1]);
        w.hold(1, &[21], &[closed(1, 100), open(2, 0, 50, &[1, 2])]);
        let newer = [closed(1, 100), closed(2, 90), open(3, 0, 80, &[1, 2, 3])];
        w.hold(1, &[22, 23], &newer);
        w.alive.clear();
        w.config.cold_start = true;
        w.restart();
        let enlist = |w: &mut World, n: u64| {
            let mut backup = member(n, Role::Backup);
            backup.store = member(n - 10, Role::Backup).store;
            w.enlist_as(backup, vec![LogId(1)]);
        };
        enlist(&mut w, 21);
        w.enlist(5, Role::Shard);
        w.plays.remove(&id(5));
        w.run_ms(2_000);
        assert_eq!(w.take_recovers(), [], "two of three stores are away");
        enlist(&mut w, 22);
        if all_return {
            enlist(&mut w, 23);
            w.run_ms(500);
        } else {
            w.run_ms(2_000);
            assert_eq!(w.take_recovers(), [], "one is away");
            w.run_ms(1_500);
        }
        let (_, recover) = &w.take_recovers()[0];
        assert_eq!(recover.segments.last().unwrap().segment, SegmentId(3));
    }
}

/// The wait of a cold start is for cold starts: not when a backup dies together with a master, nor when
/// the coordinator does.
#[test]
fn a_lost_store_delays_no_recovery_while_backups_live() {
    for restarts in [false, true] {
        let mut w = three();
        w.kill(13);
        w.kill(3);
        if restarts {
            w.restart();
        }
        w.run_ms(500);
        let recovers = w.take_recovers();
        assert!(recovers.iter().any(|(_, r)| r.log == LogId(3)));
    }
}

/// Alive, but declared dead: it is told, it costs one recovery, and it never comes back.
#[test]
fn a_false_alarm_costs_one_recovery_and_nothing_else() {
    let mut w = three();
    w.step(holdfast_cluster::Input::PeerLost {
        peer: id(3),
        ended: true,
    });
    w.replies.clear();
    w.heartbeat(3);
    assert!(!w.replies[0].1.known);
    w.plays.extend([id(1), id(2)]);
    w.run_ms(300);
    assert!(done(&w));
    w.tell(
        3,
        Message::RaiseEpoch {
            log: LogId(3),
            epoch: Epoch(9),
        },
    );
    assert!(
        w.take(|m| matches!(m, Message::EpochRecorded { .. }).then_some(()))
            .is_empty()
    );
}

#[test]
fn a_dead_shard_without_slots_is_simply_gone() {
    let mut w = World::with_shards(&[1]);
    w.enlist(2, Role::Shard);
    w.kill(2);
    assert!(done(&w));
    assert_eq!(w.take_gone().len(), 3);
    assert!(w.take_fences().is_empty());
}

#[test]
fn without_replicas_slots_get_a_new_owner_and_sessions_are_lost() {
    let mut w = World::new(|c| {
        (c.cluster.replicas, c.cluster.ack_quorum) = (0, 0);
        c.initial_shards = 2;
    });
    w.enlist(1, Role::Shard);
    w.enlist(2, Role::Shard);
    w.run_ms(500);
    w.kill(2);
    w.run_ms(50);
    assert!(done(&w));
    assert_eq!(w.owners(), [(1, 16384)]);
    assert!(w.events.iter().any(|text| text.contains("lost")));
    // The last one too: its slots wait for the next.
    w.kill(1);
    w.run_ms(500);
    assert!(!done(&w));
    w.enlist(3, Role::Shard);
    w.run_ms(500);
    assert_eq!(w.owners(), [(3, 16384)]);
}

/// A shard may die between being given slots and opening its first head anywhere.
#[test]
fn a_log_that_was_never_written_is_not_waited_for() {
    let mut w = World::with_shards(&[1, 2]);
    w.kill(12);
    w.kill(2);
    w.run_ms(1_000);
    assert_eq!(
        w.status().recoveries[0].hold,
        Some(Hold::NoHead),
        "12 was not asked"
    );
    let mut back = member(22, Role::Backup);
    back.store = member(12, Role::Backup).store;
    w.enlist_as(back, vec![]);
    w.run_ms(500);
    assert!(done(&w));
    assert_eq!(w.owners(), [(1, 16384)]);
}

/// G7: everybody was asked and all that is left of the log is bad. That is a loss to report, not a log
/// that was never written.
#[test]
fn a_log_of_bad_replicas_alone_is_held_and_not_given_away() {
    for closed in [false, true] {
        let mut w = World::with_shards(&[1, 2]);
        w.hold(
            2,
            &[12],
            &[ReplicaState::bad(SegmentId(1), Epoch(0), closed)],
        );
        w.kill(2);
        w.run_ms(1_000);
        let status = &w.status().recoveries[0];
        assert_eq!(
            (status.phase, &status.hold),
            (Phase::Held, &Some(Hold::NoHead))
        );
        assert!(
            w.events
                .iter()
                .any(|text| text.contains("1 replica is known to be bad"))
        );
        assert!(!done(&w) && w.take_gone().is_empty());
        // A good one turns up.
        w.enlist(14, Role::Backup);
        w.hold(2, &[14], &[open(2, 0, 50, &[2])]);
        w.run_ms(1_000);
        assert!(done(&w));
    }
}

/// Nothing that members say twice, late or about the past changes anything.
#[test]
fn duplicates_are_harmless() {
    let run = |double: bool| {
        let mut w = three();
        w.double = double;
        w.plays.extend([id(1), id(2)]);
        w.tell(
            1,
            Message::RaiseEpoch {
                log: LogId(1),
                epoch: Epoch(2),
            },
        );
        w.kill(3);
        w.run_ms(300);
        w.enlist(4, Role::Shard);
        w.tell(
            2,
            Message::Suspect {
                server: id(3),
                ended: true,
            },
        );
        for log in [1, 3] {
            w.tell(
                2,
                Message::Recovered {
                    log: LogId(log),
                    attempt: 1,
                    entries: 1,
                    bytes: 1,
                    timings: ReplayTimings::default(),
                },
            );
            let reason = RecoveryFailure::OutOfMemory;
            w.tell(
                1,
                Message::RecoveryFailed {
                    log: LogId(log),
                    attempt: 2,
                    reason,
                },
            );
            w.answer_fence(11, LogId(log), Epoch(1 << 32));
        }
        w.run_ms(300);
        assert!(done(&w));
        w.owners()
    };
    assert_eq!(run(true), run(false));
}

/// The coordinator may die after any of its writes, and whoever starts next finishes the work.
#[test]
fn a_crash_after_any_write_loses_nothing() {
    let script = |stop_after: Option<usize>| {
        let mut w = World::new(|c| c.initial_shards = 3);
        w.writes_left = stop_after;
        w.hold(3, &[11, 12, 13], &[closed(1, 100), open(2, 0, 50, &[1, 2])]);
        for (n, role) in [
            (11, Role::Backup),
            (1, Role::Shard),
            (12, Role::Backup),
            (2, Role::Shard),
            (13, Role::Backup),
            (3, Role::Shard),
        ] {
            w.enlist(n, role);
        }
        w.run_ms(300);
        w.tell(
            1,
            Message::RaiseEpoch {
                log: LogId(1),
                epoch: Epoch(2),
            },
        );
        w.kill(3);
        w.run_ms(400);
        if stop_after.is_some() {
            w.restart();
            // Members that were never told `Enlisted` go on asking.
            for n in [11, 12, 13, 1, 2] {
                let role = if n > 10 { Role::Backup } else { Role::Shard };
                if !w.is_up(n) {
                    w.enlist(n, role);
                }
            }
            if w.owners().is_empty() {
                w.enlist(4, Role::Shard);
            }
            w.run_ms(2_000);
        }
        w
    };
    let writes = script(None).writes;
    assert!(writes >= 10, "{writes}");
    for stop_after in 0..writes {
        let w = script(Some(stop_after));
        assert!(
            done(&w),
            "after write {stop_after}: {:?}",
            w.status().recoveries
        );
        let owners = w.owners();
        assert_eq!(
            owners.iter().map(|(_, slots)| slots).sum::<u32>(),
            16384,
            "{owners:?}"
        );
        assert!(owners.iter().all(|(owner, _)| *owner != 3), "{owners:?}");
    }
}
