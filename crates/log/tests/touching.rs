//! Memory is touched ahead of its use: in bounded steps, to an end, and nothing notices.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use support::{World, sessions};

const STEP_BYTES: u64 = 64 << 10;

#[test]
fn touching_ends_and_changes_nothing_that_is_stored() {
    let mut world = World::small();
    let limit = world.log.memory().limit_bytes;
    let (mut steps, mut more) = (0, true);
    while more {
        // Segments before, at and after the place that is touched; some of them freed again.
        for _ in 0..4 {
            let key = format!("key {}", steps * 7 % 50);
            world.put(&key, &"value".repeat(1 + steps % 300), None, 1);
        }
        if steps % 8 == 0 {
            world.roll(1);
            world.ship();
        }
        let before = sessions(&world.log, 1);
        let segments: Vec<Vec<u8>> = (world.log.goals())
            .map(|goal| {
                world
                    .log
                    .bytes(goal.id, 0, goal.length)
                    .collect::<Vec<_>>()
                    .concat()
            })
            .collect();
        more = world.log.touch_ahead(STEP_BYTES);
        steps += 1;
        assert!(sessions(&world.log, 1) == before, "sessions changed");
        let after: Vec<Vec<u8>> = (world.log.goals())
            .map(|goal| {
                world
                    .log
                    .bytes(goal.id, 0, goal.length)
                    .collect::<Vec<_>>()
                    .concat()
            })
            .collect();
        assert!(after == segments, "bytes of a segment changed");
        assert!(steps as u64 <= limit / STEP_BYTES, "no end after {steps}");
    }
    // A step is as small as it was asked to be: nearly all of the memory is the region.
    assert!(
        steps as u64 > limit / STEP_BYTES * 3 / 4,
        "only {steps} steps"
    );
    world.log.verify();
    assert!(!world.log.touch_ahead(u64::MAX), "it is done");
    world.ship();
    let before = sessions(&world.log, 1);
    world.reopen(1);
    assert!(
        sessions(&world.log, 1) == before,
        "replicas hold other bytes"
    );
}
