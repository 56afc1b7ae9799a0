//! Giving a held log up: each rule of the design notes' section, one test.

use holdfast_cluster::{Input, Node, Order};
use holdfast_coordinator::{Phase, StoreAway};
use holdfast_format::{LogId, Version};
use holdfast_wire::{Message, ReplayTimings, Role};

use crate::recovery::three;
use crate::world::{World, closed, id, member, open};

/// Versions that a head nobody has seen may have given out.
const UNSEEN: u64 = 1 << 44;

/// The answer to giving a log up under this name.
fn abandon(w: &mut World, token: u64, log: u64, shard: &str) -> Result<(), String> {
    let order = Order::AbandonRecovery {
        log: LogId(log),
        shard: shard.to_string(),
    };
    w.step(Input::Order { token, order });
    match w.obeyed.contains(&token) {
        true => Ok(()),
        false => Err(w
            .refused
            .iter()
            .rfind(|(of, _)| *of == token)
            .unwrap()
            .1
            .clone()),
    }
}

/// Shard 3 is dead, and the only backup with its segment 1 too.
fn held() -> World {
    let mut w = three();
    w.hold(3, &[11, 12], &[open(2, 0, 50, &[1, 2])]);
    w.kill(13);
    w.kill(3);
    w.run_ms(1_000);
    assert_eq!(w.status().recoveries[0].phase, Phase::Held);
    w.sent.clear();
    w
}

fn metric(w: &World, name: &str) -> f64 {
    let metrics = w.coordinator.metrics();
    metrics.iter().find(|(it, _)| *it == name).unwrap().1
}

#[test]
fn a_held_log_says_what_it_waits_for() {
    let mut w = held();
    let status = &w.status().recoveries[0];
    let away = StoreAway {
        store: 1013,
        name: Some("Backup-13".to_string()),
    };
    assert_eq!(status.stores_away, [away]);
    assert_eq!((status.slots_left, status.abandoned), (5462, false));
    assert_eq!(
        w.coordinator.not_ready_because(),
        [
            "the recovery of log l3 (Shard-3) is held: 1 segments have no complete replica on a backup that is up: g1; \
          away: Backup-13"
        ]
    );
    assert_eq!(metric(&w, "holdfast_recoveries_held"), 1.0);
    assert_eq!(metric(&w, "holdfast_recovery_segments_missing"), 1.0);
    // Who has died before this coordinator began is known by number only.
    w.restart();
    w.run_ms(3_000);
    let reasons = w.coordinator.not_ready_because();
    assert!(
        reasons[0].ends_with("away: store 00000000000003f5"),
        "{reasons:?}"
    );
}

#[test]
fn a_log_is_given_up_only_by_name_and_only_if_it_is_held() {
    let mut w = held();
    let refused = abandon(&mut w, 1, 3, "Shard-1");
    assert_eq!(
        refused.unwrap_err(),
        "log l3 is that of Shard-3, not of `Shard-1`"
    );
    let refused = abandon(&mut w, 2, 1, "Shard-1");
    assert_eq!(refused.unwrap_err(), "log l1 is not being recovered");
    // The backup comes back, and there is nothing to give up any more.
    let mut back = member(13, Role::Backup);
    back.id = id(23);
    w.hold(3, &[23], &[closed(1, 100)]);
    w.enlist_as(back, vec![LogId(3)]);
    w.run_ms(100);
    let refused = abandon(&mut w, 3, 3, "Shard-3");
    assert_eq!(
        refused.unwrap_err(),
        "log l3 (Shard-3) is not held: its recovery goes on"
    );
    assert!(
        w.take_recovers()
            .iter()
            .all(|(_, it)| it.segments.len() == 2)
    );
    assert_eq!(metric(&w, "holdfast_recoveries_abandoned_total"), 0.0);
}

/// V6: on record before anybody acts on it, and for good.
#[test]
fn slots_of_a_log_that_was_given_up_begin_anew() {
    let mut w = held();
    w.store_works = false;
    let order = Order::AbandonRecovery {
        log: LogId(3),
        shard: "Shard-3".to_string(),
    };
    w.step(Input::Order { token: 1, order });
    w.run_ms(100);
    assert!(w.take_recovers().is_empty() && w.obeyed.is_empty());
    w.store_works = true;
    w.write();
    w.run_ms(20);
    assert_eq!(w.obeyed, [1]);
    assert!(
        w.events
            .iter()
            .any(|text| text.contains("the sessions of 5462 slots"))
    );
    assert_eq!(metric(&w, "holdfast_recoveries_abandoned_total"), 1.0);
    let recovers = w.take_recovers();
    assert_eq!(
        recovers.iter().map(|(_, it)| World::slots(it)).sum::<u32>(),
        5462
    );
    for (_, recover) in &recovers {
        assert!(recover.segments.is_empty() && recover.first.is_none());
        assert_eq!(
            recover.version_ceiling,
            Version(200),
            "the head's, which is in reach"
        );
        assert!(recover.lease_remaining_ms <= 200);
    }
    // Again: nothing changes.
    assert_eq!(abandon(&mut w, 2, 3, "Shard-3"), Ok(()));
    assert_eq!(metric(&w, "holdfast_recoveries_abandoned_total"), 1.0);

    // One part is taken over; then the coordinator dies, and all that was missing comes back too late.
    w.report_recovered(1, &recovers[0].1);
    w.restart();
    w.hold(3, &[24], &[closed(1, 100), open(2, 0, 50, &[1, 2])]);
    w.enlist(24, Role::Backup);
    w.run_ms(1_000);
    assert!(w.status().recoveries[0].abandoned);
    let again = w.take_recovers();
    assert!(
        !again.is_empty()
            && again
                .iter()
                .all(|(to, it)| *to == 2 && it.segments.is_empty())
    );
    w.report_recovered(2, &again[0].1);
    assert!(w.status().recoveries.is_empty());
    assert!(w.status().tablets.iter().all(|it| it.available));
    assert!(
        w.take_gone()
            .iter()
            .any(|(to, log)| (*to, *log) == (24, LogId(3)))
    );
}

/// The ceiling of versions is in the head; without it there is room for all that it can have given out.
#[test]
fn without_a_head_versions_go_on_far_above() {
    let mut w = three();
    w.hold(3, &[11, 12, 13], &[closed(1, 100), closed(2, 80)]);
    w.kill(3);
    w.run_ms(1_000);
    assert_eq!(abandon(&mut w, 1, 3, "Shard-3"), Ok(()));
    w.run_ms(20);
    let recovers = w.take_recovers();
    assert!(!recovers.is_empty());
    for (_, recover) in recovers {
        assert_eq!(recover.version_ceiling, Version(200 + UNSEEN));
    }
}

/// V3: who was told to take a part over before goes on with that; what it then gives back is given up.
#[test]
fn parts_under_way_end_by_their_own_word() {
    let mut w = three();
    w.kill(3);
    w.run_ms(60);
    let before = w.take_recovers();
    assert_eq!(before.len(), 2);
    w.hold(3, &[11, 12], &[open(2, 0, 50, &[1, 2])]);
    for backup in [11, 12, 13] {
        w.kill(backup);
    }
    for backup in [21, 22] {
        w.hold(3, &[backup], &[open(2, 0, 50, &[1, 2])]);
        w.enlist(backup, Role::Backup);
    }
    w.run_ms(1_000);
    assert!(w.take_recovers().is_empty());
    assert_eq!(abandon(&mut w, 1, 3, "Shard-3"), Ok(()));
    w.run_ms(20);
    // Shard 1 has read everything meanwhile, and leans; shard 2 never heard of its part.
    let replayed = Message::Replayed {
        log: LogId(3),
        attempt: before[0].1.attempt,
        entries: 10,
        bytes: 1_000,
        bytes_left: 5,
        timings: ReplayTimings::default(),
    };
    w.tell(1, replayed);
    w.run_ms(600);
    let now = w.take_recovers();
    let (master, recover) = &now[now.len() - 1];
    assert_eq!((*master, recover.attempt), (2, before[1].1.attempt));
    assert!(recover.segments.is_empty() && recover.ranges == before[1].1.ranges);
    w.report_recovered(2, recover);
    assert!(w.status().tablets.iter().all(|it| it.available));
    assert_eq!(
        w.status().recoveries[0].phase,
        Phase::Leaning,
        "shard 1 does"
    );
    w.report_recovered(1, &before[0].1);
    assert!(w.status().recoveries.is_empty());
}

/// N3, N5: who leant on the missing log takes its leaning along.
#[test]
fn what_the_dead_shard_leant_on_is_let_go_of() {
    let mut w = three();
    w.kill(3);
    w.run_ms(60);
    for (master, recover) in w.take_recovers() {
        let replayed = Message::Replayed {
            log: LogId(3),
            attempt: recover.attempt,
            entries: 10,
            bytes: 1_000,
            bytes_left: 500,
            timings: ReplayTimings::default(),
        };
        w.tell(master, replayed);
        if master == 1 {
            w.report_recovered(1, &recover);
        }
    }
    let heads = [closed(1, 100), open(4, 0, 70, &[1, 4])];
    for backup in [11, 12, 13] {
        w.kill(backup);
    }
    for backup in [21, 22, 23] {
        w.hold(2, &[backup], &heads);
        w.enlist(backup, Role::Backup);
    }
    w.kill(2);
    w.run_ms(1_000);
    let reasons = w.coordinator.not_ready_because();
    assert!(
        reasons
            .iter()
            .any(|it| it.contains("of log l3, which it leant on, 1 segments")),
        "{reasons:?}"
    );
    assert!(
        abandon(&mut w, 1, 3, "Shard-3").is_err(),
        "it is leant on, and not held itself"
    );
    assert_eq!(abandon(&mut w, 2, 2, "Shard-2"), Ok(()));
    w.run_ms(20);
    let recovers = w.take_recovers();
    assert!(!recovers.is_empty());
    for (master, recover) in &recovers {
        assert!(recover.segments.is_empty() && recover.leant_on.is_empty());
        assert_eq!(recover.version_ceiling, Version(400));
        w.report_recovered(*master, recover);
    }
    assert!(
        w.status().recoveries.is_empty(),
        "{:?}",
        w.status().recoveries
    );
}
