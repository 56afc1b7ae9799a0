//! When answers may be heard: order, durability, leases, expiry ceilings.

use holdfast_cluster::{Input, Node, ShardBeside};
use holdfast_format::{LogId, ServerId, SlotRange};
use holdfast_wire::*;

use crate::world::*;

fn refused(outcome: Option<&Outcome>) -> Failure {
    match outcome {
        Some(Outcome::Failed(failure)) => failure.clone(),
        other => panic!("not refused: {other:?}"),
    }
}

/// R3: one of three backups that is silent withholds the answer.
#[test]
fn a_write_is_answered_when_all_replicas_have_it() {
    let mut world = World::new(3, 3);
    for silent in world.head_backups() {
        world.mute.insert(silent);
        let token = world.send(put("a", "x"));
        assert_eq!(world.answer(token), None, "{silent} does not have it");
        world.mute.clear();
        world.run(200);
        assert!(matches!(world.answer(token), Some(Outcome::Done { .. })));
    }
}

#[test]
fn an_answer_waits_for_what_it_saw_or_did_not_find() {
    let mut world = World::new(3, 3);
    world.ask(put("gone", "x"));
    world.ask(put("other", "y"));
    let silent = world.head_backups()[0];
    world.mute.insert(silent);
    let waiting = [
        world.send(delete("gone")),
        world.send(get("gone")),
        world.send(put("seen", "z")),
        world.send(get("seen")),
        world.send(put_with(
            "seen",
            "w",
            Condition::Absent,
            ExpiryChange::Clear,
        )),
        world.send(command("", Op::Count)),
        world.send(command(
            "",
            Op::Scan {
                from: Default::default(),
                limit: 10,
            },
        )),
    ];
    let other = world.send(get("other"));
    for token in waiting {
        assert_eq!(world.answer(token), None, "{token}");
    }
    assert!(
        world.answer(other).is_some(),
        "nothing about this key is at stake"
    );
    world.mute.clear();
    world.run(200);
    for token in waiting {
        assert!(world.answer(token).is_some(), "{token}");
    }
    assert!(
        matches!(world.answer(waiting[1]), Some(Outcome::Absent { .. })),
        "nil, but durably"
    );
    assert!(matches!(
        world.answer(waiting[4]),
        Some(Outcome::Refused { .. })
    ));
}

#[test]
fn a_flush_withholds_answers_about_its_namespace() {
    let mut world = World::new(3, 3);
    world.ask(put("a", "x"));
    world.mute.insert(world.head_backups()[0]);
    let flush = world.send(command("", Op::Flush));
    let read = world.send(get("a"));
    assert_eq!((world.answer(flush), world.answer(read)), (None, None));
    world.mute.clear();
    world.run(200);
    assert_eq!(world.answer(flush), Some(&Outcome::Flushed));
    assert!(matches!(world.answer(read), Some(Outcome::Absent { .. })));
}

/// A retry that finds a record must not let out what is not durable yet.
#[test]
fn a_repeated_write_waits_for_durability_as_well() {
    let mut world = World::new(3, 3);
    world.mute.insert(world.head_backups()[0]);
    let once = world.once();
    let first = world.send_as(Some(once), put("a", "x"));
    world.new_stream();
    let second = world.send_as(Some(once), put("a", "x"));
    assert_eq!((world.answer(first), world.answer(second)), (None, None));
    world.mute.clear();
    world.run(200);
    assert!(world.answer(first).is_some());
    assert_eq!(world.answer(first), world.answer(second));
}

/// Nothing is said without a lease from every replica of the head, reads included.
#[test]
fn reads_need_a_lease_from_every_backup_of_the_head() {
    for silent in 0..3 {
        let mut world = World::new(3, 3);
        world.ask(put("a", "x"));
        let backup = world.head_backups()[silent];
        world.mute.insert(backup);
        world.run(u64::from(LEASE_MS) / 2);
        assert_eq!(
            world.value("a").as_deref(),
            Some("x"),
            "the lease still runs"
        );
        world.run(u64::from(LEASE_MS));
        let token = world.send(get("a"));
        assert_eq!(world.answer(token), None, "it has run out");
        world.run(2 * u64::from(LEASE_MS));
        let late = world.send(get("a"));
        assert_eq!(
            refused(world.answer(late)),
            Failure::NotReady,
            "not even executed any more"
        );
        assert!(!world.shard.ready());
        world.mute.clear();
        world.run(1_200);
        assert_eq!(world.answer(token).map(value_of), Some(Ok("x".to_owned())));
        world.new_stream();
        assert_eq!(world.value("a").as_deref(), Some("x"));
        assert!(world.shard.ready());
    }
}

/// A lease is judged by the clock at release, so a pause between work and answer cannot leak.
#[test]
fn a_paused_shard_wakes_without_a_lease() {
    let mut world = World::new(3, 3);
    world.ask(put("a", "x"));
    world.mute = world.head_backups().into_iter().collect();
    let request = world.request(None, get("a"));
    let token = request.token;
    let requests = Requests {
        client: CLIENT,
        stream: 9,
        first: 0,
        items: vec![request],
    };
    let mut out = holdfast_cluster::Outputs::default();
    let input = Input::Message {
        from: GATEWAY,
        message: Message::Requests(requests),
    };
    world.shard.step(world.now(), input, &mut out);
    world.now_us += u64::from(LEASE_MS) * 1_000;
    world.shard.flush(world.now(), &mut out);
    let answered = out.list.iter().any(|output| {
        matches!(
            output,
            holdfast_cluster::Output::Send {
                message: Message::Responses(_),
                ..
            }
        )
    });
    assert!(
        !answered,
        "{token} was executed under a lease and must not be heard without"
    );
}

/// The margin for drift: 5 % before the backup believes the lease over, the shard does.
#[test]
fn a_lease_ends_early_by_the_drift_allowance() {
    let mut world = World::new(3, 3);
    world.ask(put("a", "x"));
    world.mute = world.head_backups().into_iter().collect();
    let sent_us = world.now_us;
    world.run(u64::from(LEASE_MS) * 94 / 100);
    assert!(world.now_us > sent_us);
    assert_eq!(world.value("a").as_deref(), Some("x"));
    world.run(u64::from(LEASE_MS) * 2 / 100);
    let token = world.send(get("a"));
    assert_eq!(world.answer(token), None);
}

#[test]
fn an_idle_shard_renews_its_lease() {
    let mut world = World::new(3, 3);
    world.ask(put("a", "x"));
    for _ in 0..50 {
        world.run(97);
        assert_eq!(world.value("a").as_deref(), Some("x"));
        assert!(world.shard.ready());
    }
}

/// "Gone" is said only by a clock that every backup of the head has been promised.
#[test]
fn expiry_is_judged_under_the_acknowledged_ceiling() {
    let mut world = World::new(3, 3);
    let expiry = ExpiryChange::In { ms: 500 };
    world.ask(put_with("a", "x", Condition::Always, expiry));
    let ceiling = world
        .head_backups()
        .iter()
        .map(|id| world.ceiling(*id))
        .min()
        .unwrap();
    let deadline = world.time().plus_ms(500);
    assert!(
        ceiling < deadline,
        "told {ceiling:?}, no later than the lease"
    );
    world.mute = world.head_backups().into_iter().collect();
    world.run(600);
    let token = world.send(get("a"));
    assert_eq!(world.answer(token), None);
    world.mute.clear();
    world.run(1_000);
    assert_eq!(
        world.answer(token).map(value_of),
        Some(Ok("x".to_owned())),
        "the deadline lies past every ceiling that was acknowledged when it was judged"
    );
    assert_eq!(world.value("a"), None);
    for id in world.head_backups() {
        assert!(world.ceiling(id) >= deadline);
    }
}

/// What was sent again and again brings a lease when it is acknowledged at last, and must bring the ceiling of that same
/// attempt: otherwise what expired long ago was there for the first readers (seed 56 of the simulation, once).
#[test]
fn a_lease_that_comes_back_comes_with_its_ceiling() {
    let mut world = World::new(3, 3);
    let expiry = ExpiryChange::In { ms: 1_500 };
    world.ask(put_with("a", "x", Condition::Always, expiry));
    world.mute = world.head_backups().into_iter().take(1).collect();
    world.run(4_000);
    world.mute.clear();
    let mut answers = 0;
    for _ in 0..200 {
        world.run(5);
        let token = world.send(get("a"));
        world.run(1);
        match world.answer(token) {
            Some(Outcome::Failed(_)) => world.new_stream(),
            None => {}
            Some(answer) => {
                assert!(matches!(answer, Outcome::Absent { .. }), "{answer:?}");
                answers += 1;
            }
        }
    }
    assert!(answers > 10, "{answers} answers");
}

#[test]
fn streams_are_executed_in_order_and_without_gaps() {
    let mut world = World::new(3, 3);
    let items = |world: &mut World, values: &[&str]| -> Vec<Request> {
        (values.iter())
            .map(|value| {
                let once = world.once();
                world.request(Some(once), put("a", value))
            })
            .collect()
    };
    let first = items(&mut world, &["1", "2"]);
    let second = items(&mut world, &["3", "4"]);
    world.send_at(5, 0, first.clone());
    world.send_at(5, 2, second.clone());
    world.send_at(5, 0, first.clone());
    let reads = world.metric("holdfast_shard_writes_total");
    assert_eq!(
        reads, 4.0,
        "the duplicate was not executed, not even from its record"
    );
    // A gap: nothing of it is executed, and the stream is over.
    let late = items(&mut world, &["7"]);
    let missing = items(&mut world, &["6"]);
    world.send_at(5, 5, late.clone());
    assert_eq!(refused(world.answer(late[0].token)), Failure::NotReady);
    world.send_at(5, 4, missing.clone());
    assert_eq!(refused(world.answer(missing[0].token)), Failure::NotReady);
    // A higher stream repeats it all, in order; the older one is ignored from then on.
    world.send_at(6, 0, vec![missing[0].clone(), late[0].clone()]);
    let stale = items(&mut world, &["8"]);
    world.send_at(5, 6, stale);
    world.send_at(6, 2, vec![]);
    assert!(matches!(
        world.answer(late[0].token),
        Some(Outcome::Done { .. })
    ));
    let read = world.request(None, get("a"));
    world.send_at(6, 2, vec![read.clone()]);
    assert_eq!(
        world.answer(read.token).map(value_of),
        Some(Ok("7".to_owned()))
    );
}

/// SET k 1; SET k 2 on one connection: if the first is refused, the second must not go ahead.
#[test]
fn nothing_overtakes_a_refused_command() {
    let mut world = World::new(3, 3);
    let tablets = world.view.tablets.clone();
    world.view.tablets = vec![tablet(SlotRange::ALL, LogId(50))];
    world.publish();
    let first = world.send(put("k", "1"));
    world.view.tablets = tablets;
    world.publish();
    let second = world.send(put("k", "2"));
    assert_eq!(refused(world.answer(first)), Failure::NotOwner);
    assert_eq!(refused(world.answer(second)), Failure::NotReady);
    world.new_stream();
    assert_eq!(world.value("k"), None);
}

/// D1: an older view does not bring ownership back.
#[test]
fn only_the_newest_view_counts() {
    let mut world = World::new(3, 3);
    world.ask(put("a", "x"));
    let old = world.view.clone();
    world.view.tablets[0].owner = LogId(50);
    world.publish();
    world.hear(ServerId::COORDINATOR, Message::View(old));
    assert_eq!(world.ask(get("a")), Outcome::Failed(Failure::NotOwner));
    world.new_stream();
    world.view.tablets[0] = Tablet {
        available: false,
        ..tablet(SlotRange::ALL, world.log)
    };
    world.publish();
    assert_eq!(
        world.ask(get("a")),
        Outcome::Failed(Failure::NotOwner),
        "being recovered"
    );
}

#[test]
fn without_time_or_backups_nothing_is_answered_as_data() {
    let mut world = World::idle(1, 2, 3);
    world.view.tablets = vec![tablet(SlotRange::ALL, world.log)];
    world.run(0);
    world.run(300);
    assert_eq!(world.ask(get("a")), Outcome::Failed(Failure::NotReady));
    assert!(!world.shard.ready());
}

/// R6 and the bounds on waiting work.
#[test]
fn with_too_few_backups_writers_wait_and_are_then_refused() {
    let mut world = World::new(3, 3);
    world.ask(put("a", "x"));
    let lost = world.head_backups()[0];
    world.declare_dead(lost);
    assert!(!world.shard.ready());
    let value = |i: usize| format!("{i:10000}");
    let mut waiting = Vec::new();
    let busy = loop {
        let token = world.send(put("a", &value(waiting.len())));
        match world.answers.remove(&token) {
            None => waiting.push(token),
            Some(outcome) => break outcome,
        }
        assert!(waiting.len() < 100, "nothing bounds what waits");
    };
    assert_eq!(busy, Outcome::Failed(Failure::Busy));
    assert!(waiting.len() >= 12, "128 KiB of them");
    world.new_stream();
    // A new backup comes: everything that was accepted is answered.
    world.view.members.push(member(200, Role::Backup));
    world.backups.insert(ServerId(200), FakeBackup::default());
    world.publish();
    world.run(100);
    for token in &waiting {
        assert!(matches!(world.answer(*token), Some(Outcome::Done { .. })));
    }
    assert_eq!(world.value("a"), Some(value(waiting.len() - 1)));
    assert!(world.shard.ready());
}

#[test]
fn answers_withheld_are_bounded() {
    let mut world = World::new(3, 3);
    world.mute.insert(world.head_backups()[0]);
    world.send(put("a", "x"));
    let mut held = 1;
    loop {
        let token = world.send(get("a"));
        match world.answers.get(&token) {
            None => held += 1,
            Some(outcome) => {
                assert_eq!(*outcome, Outcome::Failed(Failure::Busy));
                break;
            }
        }
        assert!(held <= 200);
    }
    assert_eq!(held, 200);
}

/// A few large values weigh as much as many small ones.
#[test]
fn answers_withheld_are_bounded_in_bytes() {
    let mut world = World::new(3, 3);
    world.ask(put("big", &"x".repeat(8_000)));
    world.mute.insert(world.head_backups()[0]);
    world.send(put("big", &"y".repeat(8_000)));
    let busy = (0..100).find(|_| {
        let token = world.send(get("big"));
        world.answers.get(&token) == Some(&Outcome::Failed(Failure::Busy))
    });
    assert!(
        busy.is_some_and(|reads| (50..70).contains(&reads)),
        "512 KiB of them: {busy:?}"
    );
}

#[test]
fn a_shard_declared_dead_never_speaks_again() {
    let mut world = World::new(3, 3);
    world.mute.insert(world.head_backups()[0]);
    let token = world.send(put("a", "x"));
    let reply = HeartbeatReply {
        sent_us: 0,
        cluster_us: 0,
        view_version: 9,
        known: false,
    };
    world.hear(ServerId::COORDINATOR, Message::HeartbeatReply(reply));
    assert!(world.stopped.is_some());
    world.mute.clear();
    let read = world.send(get("a"));
    world.run(1_000);
    assert_eq!((world.answer(token), world.answer(read)), (None, None));
    assert_eq!(world.shard.wakeup(), None);
}

#[test]
fn a_shard_told_to_stop_answers_what_it_has_taken() {
    let mut world = World::new(3, 3);
    let silent = world.head_backups()[0];
    world.mute.insert(silent);
    let token = world.send(put("a", "x"));
    world.give(Input::Shutdown);
    assert_eq!(world.stopped, None);
    let refused_token = world.send(get("a"));
    assert_eq!(refused(world.answer(refused_token)), Failure::NotReady);
    world.mute.clear();
    world.run(300);
    assert!(matches!(world.answer(token), Some(Outcome::Done { .. })));
    assert!(world.stopped.is_some());
}

/// A gateway beside asks after each flush. It must have asked once when all was durable.
#[test]
fn a_shard_told_to_stop_waits_for_a_gateway_beside() {
    let mut world = World::new(3, 3);
    world.mute.insert(world.head_backups()[0]);
    let now = world.now();
    let shard = world.shard.as_shard().expect("it is one");
    let executed = shard.execute(now, &put("a", "x"));
    let needs = executed.expect("its own key").needs;
    world.give(Input::Shutdown);
    let now = world.now();
    assert!(world.shard.audible(now) < Some(needs));
    assert!(world.shard.execute(now, &get("a")).is_none());
    world.mute.clear();
    let mut heard = false;
    for _ in 0..100 {
        world.run(5);
        if world.stopped.is_some() {
            break;
        }
        heard |= world.shard.audible(world.now()) >= Some(needs);
    }
    assert!(heard, "it stopped before the gateway could hear");
    assert!(world.stopped.is_some());
    assert_eq!(world.shard.audible(world.now()), None, "B3");
}
