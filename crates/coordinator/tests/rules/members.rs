//! Who may be a member, who is dead, and what members are told.

use crate::world::{World, closed, id, member, open};
use holdfast_cluster::{Input, Node, Now, Output, Outputs};
use holdfast_coordinator::{ConfigError, Coordinator, CoordinatorConfig, RecordFault};
use holdfast_format::{Epoch, LogId};
use holdfast_wire::{AppendWait, Message, Role};

#[test]
fn slots_are_dealt_once_when_enough_members_are_up() {
    let mut w = World::new(|c| c.initial_shards = 2);
    w.enlist(1, Role::Shard);
    w.enlist(2, Role::Shard);
    w.enlist(11, Role::Backup);
    w.enlist(12, Role::Backup);
    w.run_ms(500);
    assert_eq!(w.owners(), []);
    assert_eq!(
        w.status().not_ready_because[0],
        "2 of 2 shards and 2 of 3 backups are up"
    );
    assert!(!w.coordinator.ready());
    w.enlist(13, Role::Backup);
    assert_eq!(w.owners(), [(1, 8192), (2, 8192)]);
    assert!(w.coordinator.ready());
    // A later shard gets nothing: nothing is unassigned.
    w.enlist(3, Role::Shard);
    w.run_ms(500);
    assert_eq!(w.owners(), [(1, 8192), (2, 8192)]);
    assert!(w.is_up(3));
}

/// W1: records first. With a store that does not answer, nobody is told anything that follows.
#[test]
fn nothing_is_said_before_it_is_recorded() {
    let mut w = World::with_shards(&[1]);
    w.store_works = false;
    w.enlist(2, Role::Shard);
    w.enlist(14, Role::Backup);
    w.tell(
        1,
        Message::RaiseEpoch {
            log: LogId(1),
            epoch: Epoch(4),
        },
    );
    w.kill(12);
    w.run_ms(700);
    assert!(w.sent.is_empty(), "{:?}", w.sent);
    // Heartbeats are answered all the same, or a slow store would kill the cluster.
    assert!(
        w.replies
            .iter()
            .any(|(to, reply)| *to == id(1) && reply.known)
    );
    w.store_works = true;
    w.write();
    let enlisted = w.take(|m| matches!(m, Message::Enlisted(_)).then_some(()));
    assert_eq!(enlisted, [(2, ()), (14, ())]);
    let recorded = w.take(|m| match m {
        Message::EpochRecorded { epoch, .. } => Some(epoch.0),
        _ => None,
    });
    assert_eq!(recorded, [(1, 4)]);
    assert!(w.store.contains_key("server/0000000000000002"));
    assert!(!w.store.contains_key("server/000000000000000c"));
}

#[test]
fn everyone_gets_every_view_and_addresses_come_first() {
    let mut w = World::with_shards(&[1]);
    let before = w.status().view_version;
    w.enlist(2, Role::Shard);
    let told: Vec<u64> = w.sent.iter().map(|(to, _)| to.0).collect();
    assert_eq!(told, [1, 11, 12, 13, 2]);
    assert_eq!(w.view().version, before + 1);
    assert_eq!(w.dialled[&id(2)], "10.0.0.2:7");
    w.kill(2);
    assert!(!w.dialled.contains_key(&id(2)));
    assert!(!w.view().members.iter().any(|m| m.id == id(2)));
}

#[test]
fn a_stale_heartbeat_brings_the_view_again() {
    let mut w = World::with_shards(&[1]);
    let version = w.status().view_version;
    let heartbeat = holdfast_wire::Heartbeat {
        from: id(11),
        sent_us: 5,
        view_version: version - 1,
        figures: Default::default(),
        namespaces: Vec::new(),
        loads: Vec::new(),
        append_waits: Vec::new(),
    };
    w.tell(11, Message::Heartbeat(heartbeat.clone()));
    assert_eq!(w.sent.len(), 1);
    assert!(matches!(&w.sent[0], (to, Message::View(v)) if *to == id(11) && v.version == version));
    w.sent.clear();
    w.tell(
        11,
        Message::Heartbeat(holdfast_wire::Heartbeat {
            view_version: version,
            ..heartbeat
        }),
    );
    assert!(w.sent.is_empty());
}

#[test]
fn an_unknown_id_is_told_so() {
    let mut w = World::with_shards(&[1]);
    w.replies.clear();
    w.heartbeat(99);
    assert!(matches!(&w.replies[..], [(to, reply)] if *to == id(99) && !reply.known));
}

#[test]
fn a_suspect_that_answers_lives_and_one_that_does_not_is_dead() {
    let mut w = World::with_shards(&[1]);
    for _ in 0..5 {
        w.tell(
            1,
            Message::Suspect {
                server: id(11),
                ended: false,
            },
        );
        w.run_ms(100);
    }
    assert!(w.is_up(11), "a false alarm");
    assert!(w.pinged.contains(&id(11)));

    w.alive.remove(&id(11));
    w.tell(
        1,
        Message::Suspect {
            server: id(11),
            ended: false,
        },
    );
    w.run_ms(290);
    assert!(w.is_up(11));
    w.run_ms(30);
    assert!(!w.is_up(11), "silent for confirm_ms");
}

#[test]
fn silence_without_suspicion_is_death_after_dead_ms() {
    let mut w = World::with_shards(&[1]);
    w.run_ms(100);
    w.alive.remove(&id(12));
    w.run_ms(800);
    assert!(w.is_up(12));
    w.run_ms(300);
    assert!(!w.is_up(12));
}

#[test]
fn a_process_seen_to_end_is_dead_at_once() {
    let mut w = World::with_shards(&[1, 2]);
    w.tell(
        1,
        Message::Suspect {
            server: id(2),
            ended: true,
        },
    );
    assert!(!w.is_up(2));
    // Strangers are not believed.
    w.tell(
        99,
        Message::Suspect {
            server: id(1),
            ended: true,
        },
    );
    assert!(w.is_up(1));
}

/// D2.
#[test]
fn own_pause_kills_nobody() {
    let mut w = World::with_shards(&[1]);
    w.now.mono_us += 60_000_000;
    w.step(Input::Tick);
    w.run_ms(500);
    for n in [1, 11, 12, 13] {
        assert!(w.is_up(n));
    }
}

/// D1.
#[test]
fn the_dead_do_not_come_back() {
    let mut w = World::with_shards(&[1, 2]);
    for dead in [2, 11] {
        w.kill(dead);
        w.replies.clear();
        let role = if dead == 2 { Role::Shard } else { Role::Backup };
        w.tell(
            dead,
            Message::Enlist(holdfast_wire::Enlist {
                member: member(dead, role),
                logs: vec![],
            }),
        );
        assert!(!w.is_up(dead));
        assert!(matches!(&w.replies[..], [(to, reply)] if to.0 == dead && !reply.known));
    }
    // Nor after a restart, when only records remember them.
    w.restart();
    w.enlist(2, Role::Shard);
    w.enlist(11, Role::Backup);
    assert!(!w.is_up(2) && !w.is_up(11));
}

#[test]
fn a_new_incarnation_proves_the_old_one_dead() {
    let mut w = World::with_shards(&[1, 2]);
    for (old, new, role) in [(11, 21, Role::Backup), (1, 5, Role::Shard)] {
        let mut again = member(new, role);
        again.store = member(old, role).store;
        w.enlist_as(again, vec![]);
        assert!(!w.is_up(old) && w.is_up(new));
    }
    // Without an identity nothing can be concluded.
    let mut nameless = member(6, Role::Shard);
    nameless.store = 0;
    w.enlist_as(nameless.clone(), vec![]);
    w.enlist_as(
        holdfast_wire::Member {
            id: id(7),
            ..nameless
        },
        vec![],
    );
    assert!(w.is_up(6) && w.is_up(7));
}

#[test]
fn impostors_and_nonsense_may_not_enlist() {
    let mut w = World::with_shards(&[1]);
    let mut claims = vec![member(0, Role::Backup), member(70, Role::Coordinator)];
    claims.push(holdfast_wire::Member {
        address: String::new(),
        ..member(71, Role::Shard)
    });
    claims.push(holdfast_wire::Member {
        name: "x".repeat(257),
        ..member(72, Role::Shard)
    });
    let before = w.status().members.len();
    for claim in claims {
        w.enlist_as(claim, vec![]);
    }
    // Somebody else's name.
    let enlist = holdfast_wire::Enlist {
        member: member(73, Role::Shard),
        logs: vec![],
    };
    w.tell(1, Message::Enlist(enlist));
    assert_eq!(w.status().members.len(), before);
}

#[test]
fn members_are_bounded() {
    let mut w = World::new(|c| c.members_max = 2);
    for n in 11..15 {
        w.enlist(n, Role::Backup);
    }
    assert_eq!(w.status().members.len(), 2);
    assert!(
        w.events
            .iter()
            .any(|text| text.contains("as many members as it may"))
    );
}

#[test]
fn a_gateway_is_a_member_without_a_record() {
    let mut w = World::with_shards(&[1]);
    let keys = w.store.len();
    w.enlist(31, Role::Gateway);
    assert!(w.is_up(31));
    assert_eq!(w.store.len(), keys);
    assert!(!w.dialled.contains_key(&id(31)));
    w.alive.remove(&id(31));
    w.run_ms(1_200);
    assert!(!w.is_up(31));
    // It owns nothing, so it may come back as it was.
    w.enlist(31, Role::Gateway);
    assert!(w.is_up(31));
}

#[test]
fn an_epoch_is_recorded_before_it_is_acknowledged_and_never_goes_down() {
    let mut w = World::with_shards(&[1, 2]);
    let answers = |w: &mut World| {
        w.take(|m| match m {
            Message::EpochRecorded { log, epoch } => Some((log.0, epoch.0)),
            _ => None,
        })
    };
    w.tell(
        1,
        Message::RaiseEpoch {
            log: LogId(1),
            epoch: Epoch(3),
        },
    );
    assert_eq!(answers(&mut w), [(1, (1, 3))]);
    w.tell(
        1,
        Message::RaiseEpoch {
            log: LogId(1),
            epoch: Epoch(2),
        },
    ); // delayed
    assert_eq!(answers(&mut w), [(1, (1, 3))]);
    // Another's log, and an epoch that no shard reaches.
    w.tell(
        2,
        Message::RaiseEpoch {
            log: LogId(1),
            epoch: Epoch(9),
        },
    );
    w.tell(
        1,
        Message::RaiseEpoch {
            log: LogId(1),
            epoch: Epoch(u64::MAX),
        },
    );
    assert_eq!(answers(&mut w), []);
    // R4: none for a log declared dead.
    w.kill(1);
    w.tell(
        1,
        Message::RaiseEpoch {
            log: LogId(1),
            epoch: Epoch(4),
        },
    );
    assert_eq!(answers(&mut w), []);
}

/// Members heartbeat again after the coordinator comes back; those that do not are dead.
#[test]
fn a_restarted_coordinator_gives_everyone_dead_ms() {
    let mut w = World::with_shards(&[1, 2]);
    let version = w.status().view_version;
    let owners = w.owners();
    w.alive.remove(&id(2));
    w.restart();
    assert!(w.status().view_version > version);
    assert_eq!(w.owners(), owners);
    assert_eq!(w.dialled.len(), 5);
    w.run_ms(900);
    assert!(w.is_up(1) && w.is_up(2));
    w.run_ms(200);
    assert!(w.is_up(1) && !w.is_up(2));
}

#[test]
fn a_cold_start_waits_for_nobody() {
    let mut w = World::with_shards(&[1]);
    w.alive.clear();
    w.config.cold_start = true;
    w.restart();
    assert!(w.status().members.is_empty());
    assert_eq!(w.status().recoveries.len(), 1);
}

/// K1.
#[test]
fn cluster_time_never_goes_back_across_restarts() {
    let mut w = World::with_shards(&[1]);
    for back_ms in [0, 5_000, 1_000_000] {
        w.run_ms(700);
        let last = w.replies.last().unwrap().1.cluster_us;
        w.now.unix_ms -= back_ms;
        w.restart();
        w.replies.clear();
        w.heartbeat(1);
        let next = w.replies.last().unwrap().1.cluster_us;
        assert!(next >= last, "went back by {} us", last - next);
        assert!(next - last < 4_000_000, "jumped by {} us", next - last);
    }
}

#[test]
fn no_time_is_handed_out_above_the_durable_ceiling() {
    let mut w = World::with_shards(&[1]);
    w.store_works = false;
    w.replies.clear();
    w.run_ms(10_000);
    let last = w.replies.last().unwrap().1.cluster_us;
    w.restart();
    w.now.unix_ms -= 60_000;
    w.heartbeat(1);
    assert!(w.replies.last().unwrap().1.cluster_us >= last);
}

#[test]
fn other_replicas_or_another_cluster_are_refused() {
    let w = World::with_shards(&[1]);
    let start = |change: &dyn Fn(&mut CoordinatorConfig)| {
        let mut config = w.config.clone();
        change(&mut config);
        let records = w
            .store
            .iter()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        Coordinator::new(config, records, w.now, 1)
    };
    assert!(start(&|c| c.cluster.lease_ms = 800).is_ok());
    assert!(start(&|c| c.cluster.cluster = 0).is_ok());
    let fewer = start(&|c| c.cluster.ack_quorum = 2).unwrap_err();
    assert!(
        fewer.to_string().contains("made with ack_quorum = 3"),
        "{fewer}"
    );
    let two = |c: &mut CoordinatorConfig| {
        (c.cluster.replicas, c.cluster.ack_quorum) = (2, 2);
    };
    let error = start(&two).unwrap_err();
    assert!(
        matches!(
            error,
            ConfigError::Mismatch {
                what: "replicas",
                recorded: 3,
                configured: 2
            }
        ),
        "{error}"
    );
    assert!(start(&|c| c.cluster.cluster = 77).is_err());
    assert!(matches!(
        start(&|c| c.initial_shards = 0),
        Err(ConfigError::Invalid(_))
    ));
}

#[test]
fn a_damaged_record_stops_the_start() {
    let mut w = World::with_shards(&[1]);
    let value = w.store.get_mut("tablet/00000").unwrap();
    let mut bytes = value.to_vec();
    bytes[3] ^= 1;
    *value = bytes.into();
    let records = w.store.clone().into_iter().collect();
    let error = Coordinator::new(w.config.clone(), records, w.now, 1).unwrap_err();
    let ConfigError::Record(error) = error else {
        panic!("{error}")
    };
    assert_eq!(
        (error.key.as_str(), error.why),
        ("tablet/00000", RecordFault::Checksum)
    );
}

#[test]
fn a_cluster_without_a_number_chooses_one_and_keeps_it() {
    let w = World::new(|c| c.cluster.cluster = 0);
    let chosen = w.status().config.cluster;
    assert_ne!(chosen, 0);
    let records = w.store.clone().into_iter().collect();
    let again = Coordinator::new(w.config.clone(), records, w.now, 99).unwrap();
    assert_eq!(again.status(w.now).config.cluster, chosen);
}

#[test]
fn nothing_is_heard_or_said_before_the_start_is_recorded() {
    let now = Now {
        mono_us: 5,
        unix_ms: 1_000,
    };
    let config = CoordinatorConfig::for_testing();
    let mut coordinator = Coordinator::new(config, Vec::new(), now, 1).unwrap();
    let mut out = Outputs::default();
    let enlist = holdfast_wire::Enlist {
        member: member(1, Role::Shard),
        logs: vec![],
    };
    let message = Message::Enlist(enlist);
    coordinator.step(
        now,
        Input::Message {
            from: id(1),
            message,
        },
        &mut out,
    );
    assert!(
        matches!(&out.list[..], [Output::Records { token: 1, .. }]),
        "{:?}",
        out.list
    );
    assert!(
        coordinator.wakeup().unwrap() > now.mono_us,
        "no spinning while the store writes"
    );
}

#[test]
fn stores_are_told_which_of_their_logs_are_gone_and_keep_unknown_ones() {
    let mut w = World::with_shards(&[1, 2]);
    w.hold(2, &[11, 12, 13], &[closed(1, 100), open(2, 0, 50, &[1, 2])]);
    w.kill(2);
    w.run_ms(500);
    assert_eq!(w.owners(), [(1, 16384)]);
    let mut told: Vec<u64> = w.take_gone().into_iter().map(|(to, _)| to).collect();
    told.dedup();
    assert_eq!(told, [11, 12, 13]);
    // One that was away lists it, and one that nobody has heard of.
    let mut back = member(24, Role::Backup);
    back.store = 5;
    w.enlist_as(back, vec![LogId(1), LogId(2), LogId(777)]);
    assert_eq!(w.take_gone(), [(24, LogId(2))]);
    assert!(
        w.events
            .iter()
            .any(|text| text.contains("1 logs that no record mentions"))
    );
    // Said again in case it got lost, by the next coordinator too, and not for ever.
    w.restart();
    w.run_ms(100);
    assert!(w.take_gone().contains(&(24, LogId(2))));
    w.run_ms(3_500);
    assert!(!w.take_gone().is_empty());
    w.run_ms(60_000);
    w.take_gone();
    w.run_ms(60_000);
    assert!(w.take_gone().is_empty());
}

#[test]
fn shutdown_stops_and_stays_stopped() {
    let mut w = World::with_shards(&[1]);
    let mut out = Outputs::default();
    w.coordinator.step(w.now, Input::Shutdown, &mut out);
    assert!(matches!(out.list.last(), Some(Output::Stopped { .. })));
    assert_eq!(w.coordinator.wakeup(), None);
}

/// A backup that is out of line is shown to everybody, and by the time it is not, that is too.
#[test]
fn slow_backups_stand_in_the_view() {
    let mut w = World::with_shards(&[1, 2]);
    let waits = |w: &mut World, of_12_us: u32| {
        let wait = |(backup, wait_us): (u64, u32)| AppendWait {
            backup: id(backup),
            appends: 50,
            wait_us,
        };
        let all = [(11, 300), (12, of_12_us), (13, 420)];
        for shard in [1, 2] {
            w.append_waits.insert(id(shard), all.map(wait).to_vec());
        }
    };
    waits(&mut w, 30_000);
    w.run_ms(2_000);
    assert!(w.view().slow.is_empty());
    w.run_ms(2_500);
    assert_eq!(w.view().slow, [id(12)]);
    assert!(w.events.iter().any(|text| text.contains("is slow")));
    let metric = |w: &World, name: &str| {
        let metrics = w.coordinator.metrics();
        metrics.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
    };
    assert_eq!(metric(&w, "holdfast_backups_slow"), Some(1.0));
    // A new coordinator finds out again, and nothing else depends on it.
    w.restart();
    w.run_ms(500);
    assert!(w.view().slow.is_empty() && w.coordinator.ready());
    w.run_ms(4_000);
    assert_eq!(w.view().slow, [id(12)]);
    waits(&mut w, 310);
    w.run_ms(6_500);
    assert!(w.view().slow.is_empty());
}
