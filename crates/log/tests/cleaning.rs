//! The cleaner against steady overwrites: it keeps up, and what its second level saves.
//!
//! Backups are instant and time stands still, so that every figure is the same in every run.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use holdfast_format::LogId;
use holdfast_log::{CleanerOptions, Config, Expiry, Log, MemoryUse};
use support::{Dice, NS, ms};

const SLICE_BYTES: u64 = 16 << 10;

fn settle(log: &mut Log) {
    loop {
        let change = log.change();
        let goals: Vec<_> = log.goals().collect();
        for goal in goals {
            log.set_durable(goal.id, goal.length, goal.closed);
        }
        log.take_freed();
        if log.change() == change {
            return;
        }
    }
}

/// What overwriting came to, after the fill.
#[derive(Debug)]
struct Overwritten {
    memory: MemoryUse,
    appended_bytes: u64,
    /// Times that a put found no memory until the cleaner had been called again.
    refused: u64,
}

/// Fills a log to so many percent and overwrites at random, several times all there is.
fn overwrite(percent: u64, value_bytes: usize, two_level: bool) -> Overwritten {
    // A sixteenth of a real shard in everything: 64 segments of 128 seglets.
    let config = Config {
        memory_bytes: 32 << 20,
        segment_bytes: 512 << 10,
        cleaner: CleanerOptions {
            two_level,
            ..CleanerOptions::default()
        },
        ..Config::for_testing()
    };
    let mut log = Log::new(LogId(1), config).unwrap();
    let put = |log: &mut Log, number: u64, round: u64| {
        let mut value = vec![7; value_bytes];
        value[..8].copy_from_slice(&round.to_le_bytes());
        let mut refused = 0;
        while log
            .put(
                NS,
                &number.to_le_bytes(),
                &value,
                Expiry::default(),
                None,
                ms(1),
            )
            .is_err()
        {
            settle(log);
            log.clean(ms(1), SLICE_BYTES);
            refused += 1;
            assert!(refused < 20_000, "stuck: {:?}", log.memory());
        }
        log.clean(ms(1), SLICE_BYTES);
        if number.is_multiple_of(16) {
            settle(log);
        }
        refused
    };
    let mut sessions = 0;
    while log.memory().live_bytes * 100 < log.memory().limit_bytes * percent {
        put(&mut log, sessions, 0);
        sessions += 1;
    }
    let before = log.memory();
    let mut dice = Dice(0x0C1E_A4E5);
    let rounds = 5 * sessions;
    let mut refused = 0;
    for round in 1..=rounds {
        refused += put(&mut log, dice.below(sessions as usize) as u64, round);
    }
    settle(&mut log);
    log.verify();
    assert_eq!(log.count(NS).sessions, sessions);
    let mut memory = log.memory();
    memory.cleaned_bytes -= before.cleaned_bytes;
    memory.compacted_bytes -= before.compacted_bytes;
    let entry_bytes = (24 + 8 + value_bytes) as u64;
    Overwritten {
        memory,
        appended_bytes: rounds * entry_bytes,
        refused,
    }
}

/// Memory and replicas had one account of work: a combination begun for replicas' sake held the memory that the next
/// compaction needed while nothing was due, and writers were refused although a fifth of the memory held nothing that
/// lives.
#[test]
fn nobody_is_refused_while_there_is_garbage() {
    for two_level in [true, false] {
        let it = overwrite(80, 1000, two_level);
        assert_eq!(it.refused, 0, "two levels: {two_level}, {it:?}");
    }
}

#[test]
fn overwrites_go_on_at_any_utilisation_and_level() {
    for (percent, value_bytes) in [(50, 100), (80, 1000), (80, 100), (85, 300)] {
        for two_level in [true, false] {
            let Overwritten { memory, .. } = overwrite(percent, value_bytes, two_level);
            assert!(memory.cleaned_bytes + memory.compacted_bytes > 0);
            assert!(two_level || memory.compacted_bytes == 0);
            assert!(memory.segments <= memory.replica_segments_max);
        }
    }
}

/// What is shipped to backups because of cleaning falls at least fourfold (FAST '14, fig. 6), at 80 % and 1 KB.
#[test]
fn compaction_saves_replication_traffic() {
    let Overwritten {
        memory: two,
        appended_bytes: appended,
        ..
    } = overwrite(80, 1000, true);
    let one = overwrite(80, 1000, false).memory;
    assert!(two.compacted_bytes > appended / 4, "{two:?}");
    assert!(
        two.cleaned_bytes * 4 <= one.cleaned_bytes,
        "{} bytes to survivors, {} without compaction, {appended} appended",
        two.cleaned_bytes,
        one.cleaned_bytes
    );
}

/// Nine sessions of ten are deleted and others take their place. Segments of the first ones consist of tombstones that
/// nothing needs any more, when the last segments with what they hid are gone; jobs asked for room for all of them, which they
/// give back and do not take, and so these segments stayed as they were.
#[test]
fn segments_full_of_tombstones_that_nothing_needs_are_given_back() {
    give_back_tombstones(false);
}

/// A job had no room for the tombstones that were going to go with it, a recovery began and pinned them all, and the job
/// ran out of memory half-way.
#[test]
fn tombstones_may_be_pinned_in_the_middle_of_a_job() {
    give_back_tombstones(true);
}

fn give_back_tombstones(pinned_in_jobs: bool) {
    let mut log = Log::new(
        LogId(1),
        Config {
            memory_bytes: 32 << 20,
            segment_bytes: 512 << 10,
            ..Config::for_testing()
        },
    )
    .unwrap();
    let mut dice = Dice(0x0DE1_E7E5);
    let (mut live, mut next, mut refused) = (Vec::new(), 0u64, 0);
    let clean = |log: &mut Log| {
        settle(log);
        while log.clean(ms(1), SLICE_BYTES) {
            log.pin(pinned_in_jobs);
            settle(log);
        }
        log.pin(false);
        settle(log);
    };
    let mut put = |log: &mut Log, live: &mut Vec<u64>, value_bytes: usize| {
        let key = next.to_le_bytes();
        let value = vec![7; value_bytes];
        let stored = log.put(NS, &key, &value, Expiry::default(), None, ms(1));
        match stored {
            Ok(_) => live.push(next),
            Err(_) => refused += 1,
        }
        next += 1;
        clean(log);
    };
    let delete = |log: &mut Log, live: &mut Vec<u64>, dice: &mut Dice| {
        let number = live.swap_remove(dice.below(live.len()));
        let deleted = log.delete(NS, &number.to_le_bytes(), None, ms(1));
        assert!(matches!(deleted, Ok(Some(_))), "{deleted:?}");
        clean(log);
    };
    let live_bytes = 25 << 20;
    while live.len() * 132 < live_bytes {
        put(&mut log, &mut live, 100);
    }
    for _ in 0..live.len() * 9 / 10 {
        delete(&mut log, &mut live, &mut dice);
    }
    for _ in 0..live_bytes / 162 {
        if live.len() * 162 > live_bytes {
            delete(&mut log, &mut live, &mut dice);
        }
        put(&mut log, &mut live, 130);
    }
    log.verify();
    assert_eq!(log.count(NS).sessions, live.len() as u64);
    assert_eq!(refused, 0, "of {next}, {:?}", log.memory());
}

/// The head grew by a quarter of what was free to whoever asked, and to a delete that is what is kept for deletes too:
/// one tombstone took up to a quarter of that from writers, at once.
#[test]
fn a_tombstone_takes_no_more_memory_for_the_head_than_a_put() {
    let config = Config {
        memory_bytes: 32 << 20,
        segment_bytes: 512 << 10,
        ..Config::for_testing()
    };
    let seglet_bytes = u64::from(config.seglet_bytes);
    let mut log = Log::new(LogId(1), config).unwrap();
    let free = |log: &Log| {
        let memory = log.memory();
        (memory.limit_bytes - memory.used_bytes).saturating_sub(memory.reserved_bytes)
    };
    let mut number = 0u64;
    while free(&log) > 16 * seglet_bytes {
        let key = number.to_le_bytes();
        (log.put(NS, &key, &[7; 100], Expiry::default(), None, ms(1))).unwrap();
        number += 1;
    }
    for number in 0..12_000u64 {
        let before = log.memory();
        let most = (free(&log) / 4).max(seglet_bytes) + 2 * seglet_bytes;
        log.delete(NS, &number.to_le_bytes(), None, ms(1)).unwrap();
        let taken = log.memory().used_bytes - before.used_bytes;
        assert!(taken <= most, "{taken} bytes at once, {most} are a put's");
    }
}
