//! Lineage: shards that lean on a dead log die at bad moments, with others.

use holdfast_sim::Setup;
use holdfast_wire::Message;

use crate::stage::{Stage, put};

/// A cluster of which a shard has died and the others lean on its log for ever: that they stand alone is not heard.
fn leaning(seed: u64) -> Stage {
    let mut stage = Stage::new(Setup::small(seed));
    stage.set_many(0..60, "v");
    // Some segments of 64 KiB each: what is in the head does not lean.
    for key in 0..200 {
        stage.set(&format!("filler:{key}"), &"-".repeat(2_000));
    }
    let owner = stage.owner("many:7");
    (stage.world).set_filter(Some(Box::new(|_, _, message| {
        matches!(message, Message::Recovered { .. })
    })));
    stage.crash_for(owner, 1_000);
    // Reads are answered by whoever has taken over.
    stage.check_many(0..60, "v");
    stage
}

/// Changes what only the dead log has, and things that nobody had before.
fn change(stage: &mut Stage) {
    for key in 0..20 {
        stage.set(&format!("many:{key}"), &format!("newer-{key}"));
    }
    for key in 20..40 {
        stage.del(&format!("many:{key}"));
    }
    stage.ask("other", put("new"));
}

fn check(stage: &mut Stage) {
    stage.check_many(0..20, "newer");
    for key in 20..40 {
        assert_eq!(stage.get(&format!("many:{key}")), None, "many:{key}");
    }
    stage.check_many(40..60, "v");
    assert_eq!(stage.get("other").as_deref(), Some("new"));
}

#[test]
fn who_leans_dies_and_the_coordinator_with_it() {
    for coordinator_too in [false, true] {
        let mut stage = leaning(21);
        change(&mut stage);
        let heir = stage.owner("many:7");
        stage.crash_for(heir, 800);
        if coordinator_too {
            let coordinator = stage.coordinator();
            stage.crash_for(coordinator, 500);
        }
        check(&mut stage);
        stage.world.set_filter(None);
        stage.settle();
        check(&mut stage);
    }
}

/// The third owner reads two logs, the fourth three.
#[test]
fn generations_that_lean_die_one_after_another() {
    let mut stage = leaning(22);
    change(&mut stage);
    for owner in 3..=4 {
        let heir = stage.owner("many:7");
        if owner == 4 {
            // It replicates everything before it takes over, and is to be heard.
            stage.world.set_filter(None);
        }
        stage.crash_for(heir, 600);
        check(&mut stage);
    }
    stage.settle();
    check(&mut stage);
}

/// R - 1 backups die with it, and everything dies.
#[test]
fn who_leans_dies_with_backups_and_with_everything() {
    let mut stage = leaning(24);
    change(&mut stage);
    let heir = stage.owner("many:7");
    stage.crash_for(heir, 2_500);
    for index in 0..2 {
        let backup = stage.backup(index);
        stage.crash_for(backup, 2_000);
    }
    check(&mut stage);
    for place in stage.world.all_places() {
        stage.crash_for(place, 300);
    }
    stage.pass(400);
    stage.world.set_filter(None);
    stage.settle();
    check(&mut stage);
}
