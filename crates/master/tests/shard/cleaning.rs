//! Writers and the cleaner: memory that is nearly full makes writes slower, not fail.

use holdfast_format::SlotRange;
use holdfast_wire::{Outcome, Request};

use crate::world::{World, put, tablet};

const MEMORY_BYTES: u64 = 128 << 20;
const BATCH: u64 = 128;
/// Of the values on average.
const VALUE_BYTES: usize = 4_096;

fn world() -> World {
    let mut world = World::configured(1, 0, 0, |config| {
        config.log.memory_bytes = MEMORY_BYTES;
        config.log.segment_bytes = 4 << 20;
        config.log.seglet_bytes = 64 << 10;
        config.unreplicated_bytes_max = 16 << 20;
        config.queued_bytes_max = 16 << 20;
    });
    world.view.tablets = vec![tablet(SlotRange::ALL, world.log)];
    world.run(0);
    world.run(300);
    world
}

/// Writes sessions until so much of memory is live, and returns how many there are.
fn fill(world: &mut World, share: f64) -> u64 {
    let mut sessions = 0;
    while world.metric("holdfast_shard_memory_live_bytes") < MEMORY_BYTES as f64 * share {
        let outcomes = write_together(world, BATCH, |sequence| sequence);
        assert!(outcomes.iter().all(|it| matches!(it, Outcome::Done { .. })));
        sessions += BATCH;
    }
    sessions
}

fn uniform(sessions: u64) -> impl Fn(u64) -> u64 {
    move |sequence| 1 + (sequence.wrapping_mul(0xD134_2543_DE82_EF95) >> 33) % sessions
}

/// `count` writes that arrive together, of sessions chosen by `pick`.
fn write_together(world: &mut World, count: u64, pick: impl Fn(u64) -> u64) -> Vec<Outcome> {
    let items: Vec<Request> = (0..count)
        .map(|_| {
            let mut once = world.once();
            once.acknowledged = once.sequence.saturating_sub(count + 1);
            let dice = once.sequence.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            // Half to one and a half times as long as the average.
            let length = VALUE_BYTES / 2 + (dice >> 40) as usize % VALUE_BYTES;
            let value = format!("{:1$}", once.sequence, length);
            let key = format!("key{}", pick(once.sequence));
            world.request(Some(once), put(&key, &value))
        })
        .collect();
    let tokens: Vec<u64> = items.iter().map(|it| it.token).collect();
    let (stream, first) = (world.stream, world.index);
    world.index += count;
    world.send_at(stream, first, items);
    (tokens.iter())
        .map(|token| world.answers.remove(token).expect("no answer"))
        .collect()
}

/// A pipeline brings half a megabyte at once, and at this utilisation each byte needs several to be cleaned: when the
/// cleaner worked only between turns, and so much a turn, most of these writes were refused.
#[test]
fn pipelines_are_slowed_down_by_the_cleaner_and_not_refused() {
    let mut world = world();
    let sessions = fill(&mut world, 0.80);
    let mut refused = 0;
    let batches = 3 * sessions / BATCH;
    for _ in 0..batches {
        let outcomes = write_together(&mut world, BATCH, uniform(sessions));
        refused += (outcomes.iter())
            .filter(|it| !matches!(it, Outcome::Done { .. }))
            .count();
    }
    assert_eq!(refused, 0, "of {}", batches * BATCH);
    world.shard.verify();
}

/// A job at high utilisation takes milliseconds. When each write brought a slice of it, those that came while others
/// waited brought as many again, and all of them waited for the job's end.
#[test]
fn a_turn_answers_first_and_cleans_a_little_afterwards() {
    let mut world = world();
    let sessions = fill(&mut world, 0.85);
    let copied = |world: &World| {
        world.metric("holdfast_shard_compacted_bytes_total")
            + world.metric("holdfast_shard_cleaned_bytes_total")
    };
    let (mut before_answers, mut after_them, mut longest_flush) = (0.0, 0.0, 0.0_f64);
    for _ in 0..4_000 {
        let begun = copied(&world);
        // Less than what has a slice done at once.
        let outcomes = write_together(&mut world, 4, uniform(sessions));
        assert!(outcomes.iter().all(|it| matches!(it, Outcome::Done { .. })));
        let mut at = copied(&world);
        before_answers += at - begun;
        // Until clients send something again there is time for some flushes.
        for _ in 0..16 {
            world.run(0);
            longest_flush = longest_flush.max(copied(&world) - at);
            after_them += copied(&world) - at;
            at = copied(&world);
        }
        world.now_us += 2_000;
    }
    assert_eq!(
        before_answers, 0.0,
        "{after_them} bytes were copied afterwards"
    );
    assert!(after_them > 100e6, "{after_them} bytes were copied");
    let bound = (2 * (128 << 10) + 2 * 6_144) as f64;
    assert!(longest_flush <= bound, "{longest_flush} bytes in one flush");
    world.shard.verify();
}
