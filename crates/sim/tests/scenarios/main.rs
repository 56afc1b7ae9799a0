//! Stories of single failures, told with the real roles: each names what must not happen.

mod cleaning;
mod lineage;
mod stage;

use holdfast_cluster::Call;
use holdfast_sim::{Happening, Setup, Tells, World, run};
use holdfast_wire::{ExpiryChange, Message, Op, Outcome, Role};
use stage::{Stage, delete, put, put_for, value_if_any, value_of};

/// A torn last write must neither lose an acknowledged session nor revive a deleted one.
#[test]
fn torn_head_keeps_acknowledged_state() {
    for seed in 0..10 {
        let mut stage = Stage::small(seed);
        let holders = stage.holders_of_head("cart:7");
        assert_eq!(holders.len(), 3);
        stage.set("cart:8", "empty");
        stage.set("cart:7", "three items");
        stage.del("cart:8");
        // Not answered, and so half-written here and there.
        let owner = stage.owner("cart:7");
        stage.begin(0, "cart:7", put("four items"), None);
        stage.world.strike(owner, 1, holdfast_sim::Blow::Crash);
        let torn = stage.world.machine(holders[0]);
        stage.pass(1);
        stage.world.power_loss(torn);
        stage.pass(150);
        stage.world.start_in(holders[0], 0);
        stage.world.start_in(owner, 500_000);
        stage.settle();
        let cart = stage.get("cart:7");
        assert!(
            cart.as_deref() == Some("three items") || cart.as_deref() == Some("four items"),
            "{cart:?}"
        );
        assert_eq!(stage.get("cart:8"), None);
    }
}

/// A master that stands still through its own recovery must not answer from what it remembers, not
/// even to a gateway that has not heard of the new owner.
#[test]
fn a_zombie_master_gives_no_stale_answer() {
    let mut stage = Stage::small(1);
    stage.set("cart:7", "old");
    let token = stage.begin(1, "cart:7", Op::Get, None);
    assert_eq!(value_of(stage.wait(token)), Some("old".to_owned()));
    let owner = stage.owner("cart:7");
    // The second gateway keeps its old view.
    let deaf = stage.world.places_of(Role::Gateway)[1];
    let (from, to) = (
        stage.world.machine(stage.coordinator()),
        stage.world.machine(deaf),
    );
    let until_us = stage.world.now_us() + 8_000_000;
    stage.world.network.block(from, to, until_us, false);
    stage.world.network.block(to, from, until_us, false);
    let before = stage.begin(1, "cart:7", Op::Get, None);
    stage.world.pause(owner, 4_000_000);
    stage.pass(1);
    stage.set("cart:7", "new");
    assert_ne!(stage.owner("cart:7"), owner, "it was taken over");
    let after: Vec<u64> = (0..40)
        .map(|_| {
            stage.pass(100);
            stage.begin(1, "cart:7", Op::Get, None)
        })
        .collect();
    stage.pass(20_000);
    for token in after {
        assert_ne!(value_if_any(stage.answer(token)).as_deref(), Some("old"));
    }
    // Asked before the new value was written: either is right, and it was answered in the end.
    assert!(stage.answer(before).is_some());
}

/// A backup that returns with an open replica of long ago must not be taken for the end of the log.
#[test]
fn a_returning_backups_stale_replica_is_not_used() {
    let mut stage = Stage::small(2);
    let holders = stage.holders_of_head("cart:7");
    stage.set("cart:7", "old");
    let stale = holders[0];
    stage.world.crash(stale);
    stage.until("the head has a new replica", 10_000, |stage| {
        let owner = stage.owner("cart:7");
        stage.world.under_replicated(owner) == 0 && !stage.world.is_up(stale)
    });
    stage.set("cart:7", "new");
    stage.set("cart:8", "also new");
    // Only the stale one is there when the recovery begins.
    let owner = stage.owner("cart:7");
    stage.world.crash(owner);
    let backups = stage.world.places_of(Role::Backup);
    for &backup in backups.iter().filter(|&&backup| backup != stale) {
        stage.world.crash(backup);
    }
    stage.world.start_in(stale, 0);
    stage.world.start_in(owner, 0);
    let early = stage.begin(0, "cart:7", Op::Get, None);
    stage.pass(5_000);
    assert!(stage.answer(early).is_none(), "nobody can know yet");
    for &backup in &backups {
        stage.world.start_in(backup, 0);
    }
    stage.settle();
    assert_eq!(stage.get("cart:7").as_deref(), Some("new"));
    assert_eq!(stage.get("cart:8").as_deref(), Some("also new"));
}

/// A backup dies while its segment is a head, and then the master: what was acknowledged in between
/// is found on the others.
#[test]
fn a_backup_dies_under_the_head_and_then_the_master() {
    let mut stage = Stage::small(3);
    let holders = stage.holders_of_head("cart:7");
    stage.set_many(0..30, "before");
    stage.world.crash(holders[1]);
    stage.set_many(20..40, "between");
    let owner = stage.owner("cart:7");
    stage.crash_for(owner, 300);
    stage.set("cart:7", "after");
    stage.check_many(0..20, "before");
    stage.check_many(20..40, "between");
}

/// The coordinator forgets nothing that matters when it dies in the middle of a recovery.
#[test]
fn the_coordinator_dies_during_a_recovery() {
    let mut stage = Stage::small(4);
    stage.set_many(0..60, "v");
    let owner = stage.owner("many:7");
    let begun = stage.watch(|message| matches!(message, Message::Recover(_)));
    stage.world.crash(owner);
    stage.until("a recovery has begun", 10_000, |_| *begun.borrow());
    let coordinator = stage.coordinator();
    stage.crash_for(coordinator, 1_500);
    stage.world.start_in(owner, 4_000_000);
    stage.settle();
    stage.check_many(0..60, "v");
}

/// A recovery master dies in the middle: its part is planned again.
#[test]
fn a_recovery_master_dies_during_a_recovery() {
    let mut stage = Stage::small(5);
    stage.set_many(0..60, "v");
    let owner = stage.owner("many:7");
    let begun = stage.watch(|message| matches!(message, Message::Fetch(_)));
    stage.world.crash(owner);
    stage.until("segments are fetched", 10_000, |_| *begun.borrow());
    let other = (0..3)
        .map(|index| stage.shard(index))
        .find(|&place| place != owner)
        .expect("there are three");
    stage.world.crash(other);
    stage.pass(3_000);
    stage.check_many(0..60, "v");
    stage.world.start_in(owner, 0);
    stage.world.start_in(other, 0);
    stage.settle();
    stage.check_many(0..60, "v");
}

fn kill_everything(stage: &mut Stage, power: bool) {
    for place in stage.world.all_places() {
        match power {
            true => {
                let machine = stage.world.machine(place);
                stage.world.power_loss(machine);
            }
            false => stage.world.crash(place),
        }
    }
    for place in stage.world.all_places() {
        stage.world.start_in(place, 200_000);
    }
    stage.pass(400);
}

/// Killing every process at once loses nothing, although nothing was synced.
#[test]
fn a_cold_start_after_killing_everything() {
    for cold_start in [false, true] {
        let mut stage = Stage::small(6);
        stage.set_many(0..50, "v");
        stage.ask("gone", put("x"));
        stage.del("gone");
        stage.world.setup.cold_start = cold_start;
        kill_everything(&mut stage, false);
        stage.settle();
        stage.check_many(0..50, "v");
        assert_eq!(stage.get("gone"), None);
    }
}

/// Where writes are acknowledged from disk, not even a power failure of everything loses one.
#[test]
fn a_cold_start_after_losing_power_everywhere() {
    for seed in 0..5 {
        let mut setup = Setup::small(seed);
        setup.config.ack_disk = true;
        let mut stage = Stage::new(setup);
        stage.set_many(0..50, "v");
        for key in 0..20 {
            stage.begin(0, &format!("half:{key}"), put("w"), None);
        }
        kill_everything(&mut stage, true);
        stage.settle();
        stage.check_many(0..50, "v");
    }
}

/// A lone master finds its own log again under a new id.
#[test]
fn a_lone_master_recovers_its_own_log() {
    let setup = Setup {
        masters: 1,
        backups: 3,
        ..Setup::small(7)
    };
    let mut stage = Stage::new(setup);
    stage.set_many(0..50, "v");
    let (master, before) = (stage.shard(0), stage.world.id(stage.shard(0)));
    stage.crash_for(master, 200);
    stage.settle();
    assert_ne!(stage.world.id(master), before);
    stage.check_many(0..50, "v");
}

/// A lone master whose memory was full when it died fits into one just as large.
#[test]
fn a_full_lone_master_recovers_its_own_log() {
    let setup = Setup {
        masters: 1,
        backups: 3,
        memory_bytes: 768 << 10,
        ..Setup::small(8)
    };
    let mut stage = Stage::new(setup);
    let value = "x".repeat(3_000);
    let mut taken = Vec::new();
    for round in 0..3 {
        for key in 0..400 {
            let (key, value) = (format!("fill:{key}"), format!("{round}{value}"));
            match stage.ask(&key, put(&value)) {
                Outcome::Done { .. } => taken.push((key, value)),
                Outcome::Failed(failure) => {
                    assert_eq!(failure, holdfast_wire::Failure::OutOfMemory);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(taken.len() < 1_200, "memory was to run full");
    let master = stage.shard(0);
    stage.crash_for(master, 200);
    stage.settle();
    let newest: std::collections::BTreeMap<_, _> = taken.into_iter().collect();
    for (key, value) in newest {
        assert_eq!(stage.get(&key), Some(value), "{key}");
    }
}

/// A replica that has rotted is found and made again from another, before it is needed.
#[test]
fn a_corrupted_replica_is_made_again_from_another() {
    let setup = Setup {
        masters: 2,
        backups: 3,
        ..Setup::small(9)
    };
    let setup = Setup {
        config: holdfast_wire::ClusterConfig {
            replicas: 2,
            ack_quorum: 2,
            ..setup.config
        },
        ..setup
    };
    let mut stage = Stage::new(setup);
    let value = "v".repeat(4_000);
    stage.set_many(0..80, &value);
    let rotten = stage.backup(0);
    for frame in stage.world.store(rotten).written() {
        stage.world.store(rotten).flip_bit_at(frame, 4096 + 700);
    }
    // Time for the backup to read everything once.
    stage.pass(30_000);
    stage.settle();
    // The scrub found it: nobody has recovered anything.
    let found = stage.world.metrics(rotten)["holdfast_backup_scrub_bad_total"];
    assert!(found > 0.0, "nothing was found");
    // Now every other copy goes.
    for index in 1..3 {
        let backup = stage.backup(index);
        stage.world.crash(backup);
        stage.world.store(backup).wipe();
        stage.world.start_in(backup, 100_000);
        stage.pass(200);
        stage.settle();
    }
    for index in 0..2 {
        let shard = stage.shard(index);
        stage.crash_for(shard, 200);
        stage.settle();
    }
    stage.check_many(0..80, &value);
}

/// A write is executed once, however often it is asked for and whoever owns its key by then.
#[test]
fn a_repeated_write_is_executed_once_across_a_crash() {
    let mut stage = Stage::small(10);
    stage.set("cart:7", "before");
    let once = stage.once(1);
    let token = stage.begin(0, "cart:7", put("mine"), Some(once));
    let first = stage.wait(token);
    stage.set("cart:7", "theirs");
    let owner = stage.owner("cart:7");
    stage.crash_for(owner, 300);
    let token = stage.begin(1, "cart:7", put("mine"), Some(once));
    assert_eq!(stage.wait(token), first);
    assert_eq!(stage.get("cart:7").as_deref(), Some("theirs"));
}

/// What was answered to be gone stays gone when its master dies, expired or deleted.
#[test]
fn nothing_comes_back_from_the_dead() {
    let mut stage = Stage::small(11);
    stage.set("short", "long-lived first");
    stage.ask("short", put_for("v", ExpiryChange::In { ms: 500 }));
    stage.set("deleted", "v");
    stage.pass(1_500);
    assert_eq!(stage.get("short"), None);
    stage.ask("deleted", delete());
    assert_eq!(stage.get("deleted"), None);
    for index in 0..3 {
        let shard = stage.shard(index);
        stage.crash_for(shard, 300);
        stage.settle();
        assert_eq!(stage.get("short"), None);
        assert_eq!(stage.get("deleted"), None);
    }
}

/// W1: one seed, one run.
#[test]
fn a_seed_gives_the_same_trace_twice() {
    for seed in [3, 11] {
        let (first, second) = (run(seed, Tells::Nothing), run(seed, Tells::Nothing));
        assert_eq!(first.trace, second.trace);
        assert_eq!(first.answered, second.answered);
        assert_eq!(first.violations, Vec::<String>::new());
    }
    assert_ne!(run(3, Tells::Nothing).trace, run(4, Tells::Nothing).trace);
}

/// A gateway that dies tells its callers nothing, and says nothing later.
#[test]
fn a_dead_gateways_calls_are_lost() {
    let mut world = World::new(Setup::small(12), Tells::Nothing);
    while world.advance(3_000_000).is_some() {}
    let gateway = world.places_of(Role::Gateway)[0];
    let command = holdfast_wire::Command {
        namespace: holdfast_format::Namespace(0),
        key: bytes::Bytes::from_static(b"k"),
        op: Op::Get,
    };
    let call = Call {
        command,
        once: None,
        within_ms: None,
    };
    let token = world.call(gateway, call);
    world.crash(gateway);
    let lost = world.advance(4_000_000);
    assert!(matches!(lost, Some(Happening::CallLost { token: it }) if it == token));
    assert!(world.advance(6_000_000).is_none());
}
