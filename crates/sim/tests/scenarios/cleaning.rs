//! The cleaner at work when somebody dies: at every point of a pass, the master or a backup.
//!
//! One tablet is written by a script that repeats itself exactly, so a first run tells when its shard compacts and
//! when it cleans for replicas' sake. Then the script is run again and again, and each time somebody dies one output
//! later than the time before: between two outputs of a process nothing happens that anybody else could see. In the
//! end everything must be as the script left it, also when it is read from the copies that were made last.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use holdfast_format::{LogId, Opening, SegmentId};
use holdfast_sim::{Blow, PlaceId, Setup, closing};
use holdfast_wire::{Failure, Message, Outcome, Role};

use crate::stage::{Stage, delete, put};

/// Writes of the script, and how many are under way at a time.
const WRITES: usize = 640;
const AT_ONCE: usize = 4;
const KEYS: usize = 152;

/// Writes from the first rise of a figure until the pass is surely over.
const PASS_WRITES: usize = 10 * AT_ONCE;

/// Outputs over which a sweep goes at most.
const STEPS_MAX: u32 = 400;

const SEED: u64 = 77;

const COMPACTED: &str = "holdfast_shard_compacted_bytes_total";
const CLEANED: &str = "holdfast_shard_cleaned_bytes_total";

/// What the script has left.
type Left = BTreeMap<String, Option<String>>;

/// Two masters and four backups; so little memory that the tablet fills most of a shard's. Where replicas may be many,
/// compaction comes first, where they are few it is combined cleaning.
fn setup(figure: &str, seed: u64) -> Setup {
    Setup {
        masters: 2,
        gateways: 1,
        memory_bytes: 768 << 10,
        replica_expansion_percent: if figure == COMPACTED { 500 } else { 100 },
        frames: 512,
        ..Setup::small(seed)
    }
}

/// The `step`th write: half of the keys are written often, half never again, one in nine writes deletes. What
/// is under way at the same time has different keys.
fn write_of(step: usize) -> (String, Option<String>) {
    let (batch, lane) = (step / AT_ONCE, step % AT_ONCE);
    let lanes = KEYS / AT_ONCE;
    let often = 2 * ((batch * batch / 3 + batch * 31) % (lanes / 2));
    let key = AT_ONCE * if step < KEYS { batch } else { often } + lane;
    let value = (step < KEYS || step % 9 != 4).then(|| {
        let bytes = 900 + step * 137 % 2_900;
        format!("{step}:{}", "v".repeat(bytes))
    });
    (format!("{{tag}}:{key}"), value)
}

/// Writes `[from, to)` of the script, a few at a time; every one must be answered.
fn write(stage: &mut Stage, left: &mut Left, from: usize, to: usize) {
    for batch in (from..to).step_by(AT_ONCE) {
        let mut waiting = Vec::new();
        for step in batch..(batch + AT_ONCE).min(to) {
            let (key, value) = write_of(step);
            let op = value.as_deref().map_or_else(delete, put);
            let token = stage.begin(0, &key, op, None);
            waiting.push((token, key, value));
        }
        for (token, key, value) in waiting {
            match stage.wait(token) {
                Outcome::Done { .. } => _ = left.insert(key, value),
                Outcome::Absent { .. } => _ = left.insert(key, None),
                // Nothing has changed.
                Outcome::Failed(Failure::OutOfMemory) => {}
                other => panic!("{key}: {other:?}"),
            }
        }
    }
}

fn check(stage: &mut Stage, left: &Left, what: &str) {
    for (key, value) in left {
        let short = |value: &Option<String>| value.as_ref().map(|it| it[..6].to_owned());
        let found = stage.get(key);
        assert!(
            found == *value,
            "{what}: {key} is {:?}, not {:?}",
            short(&found),
            short(value)
        );
    }
}

/// The shard of the tablet that the script writes.
fn shard(stage: &Stage) -> PlaceId {
    stage.owner("{tag}:1")
}

/// Waits until everything that the script has written has all its replicas. Gives the shard.
fn whole(stage: &mut Stage) -> PlaceId {
    // Until then it may not have heard of what was lost last.
    stage.pass(1_000);
    stage.settle();
    let shard = shard(stage);
    stage.until("everything has its replicas", 30_000, |stage| {
        stage.world.under_replicated(shard) == 0
    });
    shard
}

/// The first write at which a figure of the shard rises, in a script that repeats itself.
fn first_rise(figure: &str) -> usize {
    let mut stage = Stage::new(setup(figure, SEED));
    let mut left = Left::new();
    for step in (0..WRITES).step_by(AT_ONCE) {
        write(&mut stage, &mut left, step, step + AT_ONCE);
        let shard = shard(&stage);
        if stage.world.metrics(shard)[figure] > 0.0 {
            return step;
        }
    }
    panic!("{figure} never rises: the script does not clean");
}

/// Runs the script to some writes before `at`, lets `victim` die after so many more outputs, and the script go on.
/// `None`: it did not die before the pass was over.
fn strike(
    figure: &str,
    at: usize,
    steps: u32,
    victim: impl Fn(&Stage) -> PlaceId,
) -> Option<(Stage, Left, PlaceId)> {
    let mut stage = Stage::new(setup(figure, SEED));
    let mut left = Left::new();
    write(&mut stage, &mut left, 0, at - AT_ONCE);
    let victim = victim(&stage);
    let before = stage.world.incarnation(victim);
    stage.world.strike(victim, steps, Blow::Crash);
    // Blows fall by themselves after a tenth of a second, so time may pass only as the script goes on.
    for step in (at - AT_ONCE..at + PASS_WRITES).step_by(AT_ONCE) {
        write(&mut stage, &mut left, step, step + AT_ONCE);
        let fell = !stage.world.is_up(victim) || stage.world.incarnation(victim) != before;
        if fell {
            return Some((stage, left, victim));
        }
    }
    None
}

/// Kills the shard after each of its outputs around the first rise of `figure`.
fn sweep_master(figure: &str) -> u32 {
    let at = first_rise(figure);
    let mut steps = 0;
    while steps < STEPS_MAX {
        let found = strike(figure, at, steps, shard);
        let Some((mut stage, mut left, victim)) = found else {
            break;
        };
        stage.world.start_in(victim, 200_000);
        stage.settle();
        check(&mut stage, &left, &format!("{figure}, {steps} outputs on"));
        // What was recovered is cleaned again, and dies again.
        if steps % 4 == 0 {
            write(&mut stage, &mut left, WRITES, WRITES + 60);
            let heir = shard(&stage);
            stage.crash_for(heir, 200);
            stage.settle();
            check(
                &mut stage,
                &left,
                &format!("{figure}, {steps} outputs on, again"),
            );
        }
        steps += 1;
    }
    steps
}

#[test]
fn a_master_dies_at_every_point_of_a_compaction() {
    let steps = sweep_master(COMPACTED);
    assert!(steps > 40, "only {steps} points");
}

#[test]
fn a_master_dies_at_every_point_of_a_combined_cleaning() {
    let steps = sweep_master(CLEANED);
    assert!(steps > 40, "only {steps} points");
}

/// A backup loses its disk after each of its outputs around the first rise of `figure`; once all is whole again, the
/// master and two of the other disks are lost at once, so that what was copied meanwhile is all there is.
fn sweep_backup(figure: &str) -> (u32, u32) {
    let at = first_rise(figure);
    let (mut steps, mut compacted) = (0, 0);
    while steps < STEPS_MAX {
        let backup = |stage: &Stage| stage.backup(steps as usize % 4);
        // Every output of one of the four would take four sweeps: each step takes the next backup.
        let found = strike(figure, at, steps / 2, backup);
        let Some((mut stage, mut left, victim)) = found else {
            break;
        };
        stage.world.store(victim).wipe();
        write(&mut stage, &mut left, at + 40, at + 100);
        stage.world.start_in(victim, 0);
        let shard = whole(&mut stage);
        let others: Vec<PlaceId> = (stage.world.places_of(Role::Backup).into_iter())
            .filter(|&place| place != victim)
            .take(2)
            .collect();
        stage.world.crash(shard);
        for &other in &others {
            stage.world.crash(other);
            stage.world.store(other).wipe();
        }
        for place in others.into_iter().chain([shard]) {
            stage.world.start_in(place, 200_000);
        }
        stage.settle();
        check(
            &mut stage,
            &left,
            &format!("{figure}, backup, {steps} outputs on"),
        );
        stage.world.tally();
        compacted += u32::from(stage.world.tallies[holdfast_sim::REPLICAS_OF_COMPACTED] > 0);
        steps += 1;
    }
    (steps, compacted)
}

#[test]
fn a_backup_is_lost_at_every_point_of_a_compaction() {
    let (steps, compacted) = sweep_backup(COMPACTED);
    assert!(steps > 20, "only {steps} points");
    assert!(
        compacted > steps / 4,
        "{compacted} of {steps} copied compacted bytes"
    );
}

#[test]
fn a_backup_is_lost_at_every_point_of_a_combined_cleaning() {
    let (steps, _) = sweep_backup(CLEANED);
    assert!(steps > 20, "only {steps} points");
}

/// Closed replicas of other bytes than the first of their segment, by where they were sent.
type Made = Rc<RefCell<Vec<(PlaceId, (LogId, SegmentId))>>>;

fn watch_compacted(stage: &mut Stage) -> Made {
    let made = Made::default();
    let sink = Rc::clone(&made);
    let mut first = BTreeMap::new();
    let watch = move |_, to, message: &Message| {
        if let Some((segment, certificate)) = closing(message)
            && *first.entry(segment).or_insert(certificate) != certificate
        {
            sink.borrow_mut().push((to, segment));
        }
        false
    };
    stage.world.set_filter(Some(Box::new(watch)));
    made
}

/// A bit flips in replicas that were made after their segments had been compacted: they are found bad by their own
/// certificates and made again, while the older replicas of the same segments stay.
#[test]
fn a_replica_made_after_a_compaction_rots_and_is_made_again() {
    let at = first_rise(COMPACTED);
    let found: f64 = (SEED..SEED + 3).map(|seed| rot(at, seed)).sum();
    assert!(found > 2.0, "only {found} were found");
}

/// Returns how many were found to be bad. (Some of those that are hurt were not needed any more.)
fn rot(at: usize, seed: u64) -> f64 {
    let mut stage = Stage::new(setup(COMPACTED, seed));
    let mut left = Left::new();
    let made = watch_compacted(&mut stage);
    write(&mut stage, &mut left, 0, at + 120);
    let victim = stage.backup(1);
    stage.world.crash(victim);
    stage.world.store(victim).wipe();
    stage.world.start_in(victim, 100_000);
    let shard = whole(&mut stage);
    let store_header = holdfast_cluster::FRAME_HEADER_BYTES;
    for place in stage.world.places_of(Role::Backup) {
        for frame in stage.world.store(place).written() {
            let bytes = stage.world.store(place).read(frame, store_header, 4 << 10);
            let Ok(opening) = Opening::parse(&bytes) else {
                continue;
            };
            let segment = (opening.header.log, opening.header.segment);
            if made.borrow().contains(&(place, segment)) {
                let offset = store_header + opening.length as u32 + 20;
                stage.world.store(place).flip_bit_at(frame, offset);
            }
        }
    }
    stage.pass(40_000);
    whole(&mut stage);
    let backups = stage.world.places_of(Role::Backup).into_iter();
    let found = backups
        .map(|it| stage.world.metrics(it)["holdfast_backup_corrupt_replicas_total"])
        .sum();
    check(&mut stage, &left, "rotten");
    // Two of the three replicas of everything are lost together with the master.
    stage.world.crash(shard);
    for index in [0, 2] {
        let backup = stage.backup(index);
        stage.world.crash(backup);
        stage.world.store(backup).wipe();
        stage.world.start_in(backup, 200_000);
    }
    stage.world.start_in(shard, 200_000);
    stage.settle();
    check(&mut stage, &left, "rotten, and the rest lost");
    found
}
