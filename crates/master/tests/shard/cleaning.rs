//! Writers and the cleaner: memory that is nearly full makes writes slower, not fail.

use holdfast_format::SlotRange;
use holdfast_wire::{Outcome, Request};

use crate::world::{World, put, tablet};

const MEMORY_BYTES: u64 = 128 << 20;
const BATCH: u64 = 128;

/// `BATCH` writes that arrive together, of sessions chosen by `pick`.
fn write_together(world: &mut World, pick: impl Fn(u64) -> u64) -> Vec<Outcome> {
    let items: Vec<Request> = (0..BATCH)
        .map(|_| {
            let mut once = world.once();
            once.acknowledged = once.sequence.saturating_sub(BATCH + 1);
            let dice = once.sequence.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            // Half to one and a half times 4 KB.
            let length = 2_048 + (dice >> 40) as usize % 4_096;
            let value = format!("{:1$}", once.sequence, length);
            let key = format!("key{}", pick(once.sequence));
            world.request(Some(once), put(&key, &value))
        })
        .collect();
    let tokens: Vec<u64> = items.iter().map(|it| it.token).collect();
    let (stream, first) = (world.stream, world.index);
    world.index += BATCH;
    world.send_at(stream, first, items);
    (tokens.iter())
        .map(|token| world.answers.remove(token).expect("no answer"))
        .collect()
}

/// A pipeline brings half a megabyte at once, and at this utilisation each byte needs several to be cleaned: when the
/// cleaner worked only between turns, and so much a turn, most of these writes were refused.
#[test]
fn pipelines_are_slowed_down_by_the_cleaner_and_not_refused() {
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
    let mut sessions = 0;
    while world.metric("holdfast_shard_memory_live_bytes") < MEMORY_BYTES as f64 * 0.80 {
        let outcomes = write_together(&mut world, |sequence| sequence);
        assert!(outcomes.iter().all(|it| matches!(it, Outcome::Done { .. })));
        sessions += BATCH;
    }
    let mut refused = 0;
    let batches = 3 * sessions / BATCH;
    for _ in 0..batches {
        let pick =
            |sequence: u64| 1 + (sequence.wrapping_mul(0xD134_2543_DE82_EF95) >> 33) % sessions;
        let outcomes = write_together(&mut world, pick);
        refused += (outcomes.iter())
            .filter(|it| !matches!(it, Outcome::Done { .. }))
            .count();
    }
    assert_eq!(refused, 0, "of {}", batches * BATCH);
    world.shard.verify();
}
