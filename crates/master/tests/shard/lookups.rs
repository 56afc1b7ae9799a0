//! Keys that are looked up in segments which are still to be replayed (E8).

use holdfast_wire::*;

use crate::early::{KEYS, answer_of, dead, early, keys_in, value};
use crate::lineage::lent;
use crate::takeover::recovered;
use crate::world::*;

/// Of one segment, before it is fetched whole.
const OF_SEGMENT_MAX: usize = 64;

fn key(i: usize) -> String {
    format!("key{i}")
}

/// `early`, with backups that answer.
fn asking() -> (World, Vec<usize>) {
    let dead = dead();
    let (mut world, late) = early(&dead, &lent(&dead));
    world.lookups = LookupsAre::Right;
    let missing = keys_in(&dead, late);
    assert!(missing.len() > 6 && missing.len() < KEYS);
    (world, missing)
}

#[test]
fn a_key_is_told_before_its_segment_has_come() {
    let (mut world, missing) = asking();
    for i in 0..KEYS {
        assert_eq!(world.value(&key(i)), Some(value(i)), "{i}");
    }
    // Each once, and of the others only those that the filter takes for them.
    let asked = world.metric("holdfast_shard_recovery_lookups_total") as usize;
    assert!(
        (missing.len()..missing.len() + 5).contains(&asked),
        "{asked}"
    );
    let segments = world.metric("holdfast_shard_segments_pulled_total");
    assert_eq!(segments, 0.0);
    assert_eq!(world.value("nobody"), None);
    assert_eq!(recovered(&world), None);
    for i in 0..KEYS {
        assert_eq!(world.value(&key(i)), Some(value(i)), "{i}, again");
    }
    let again = world.metric("holdfast_shard_recovery_lookups_total") as usize;
    assert!(again <= asked + 1, "what is known is not asked again");
    world.withheld.clear();
    world.run(1_500);
    assert!(recovered(&world).is_some());
    world.shard.verify();
}

/// The segment brings what was there before once more, and nothing comes of it.
#[test]
fn what_was_done_to_a_key_stays_when_its_segment_comes() {
    let (mut world, missing) = asking();
    let [gone, new, touched, refused, back, unchanged] = missing[..6] else {
        panic!("six keys")
    };
    let expiry = ExpiryChange::In { ms: 60_000 };
    for command in [
        delete(&key(gone)),
        put_with(&key(new), "new", Condition::Present, ExpiryChange::Clear),
        touch(&key(touched), expiry),
        delete(&key(back)),
        put(&key(back), "back"),
    ] {
        let outcome = answer_of(&mut world, command);
        assert!(matches!(outcome, Some(Outcome::Done { .. })), "{outcome:?}");
    }
    let absent = put_with(&key(refused), "x", Condition::Absent, ExpiryChange::Clear);
    let outcome = answer_of(&mut world, absent);
    assert!(matches!(outcome, Some(Outcome::Refused { .. })));
    let check = |world: &mut World| {
        assert_eq!(world.value(&key(gone)), None);
        assert_eq!(world.value(&key(new)).as_deref(), Some("new"));
        assert_eq!(world.value(&key(refused)), Some(value(refused)));
        assert_eq!(world.value(&key(back)).as_deref(), Some("back"));
        assert_eq!(world.value(&key(unchanged)), Some(value(unchanged)));
        assert_eq!(world.value(&key(touched)), Some(value(touched)));
    };
    check(&mut world);
    world.withheld.clear();
    world.run(1_500);
    assert!(recovered(&world).is_some());
    check(&mut world);
    world.run(70_000);
    assert_eq!(world.value(&key(touched)), None, "its new time is over");
    world.shard.verify();
}

/// Whatever waits is executed in the order in which it came.
#[test]
fn commands_on_a_key_keep_their_order() {
    let (mut world, missing) = asking();
    let name = key(missing[0]);
    world.lookups = LookupsAre::Silent;
    let read = world.send(get(&name));
    let write = world.send(put(&name, "newer"));
    let behind = world.send(get(&name));
    world.run(20);
    for token in [read, write, behind] {
        assert_eq!(world.answer(token), None);
    }
    // Silence: the segment itself is asked for.
    world.run(300);
    assert_eq!(world.metric("holdfast_shard_waiting"), 3.0);
    world.withheld.clear();
    world.run(1_500);
    assert_eq!(value_of(world.answer(read).unwrap()), Ok(value(missing[0])));
    assert!(matches!(world.answer(write), Some(Outcome::Done { .. })));
    assert_eq!(value_of(world.answer(behind).unwrap()), Ok("newer".into()));
}

/// The second waits behind the first, which is executed as soon as its key is known, and then nothing else happens.
#[test]
fn who_waited_behind_another_is_not_forgotten() {
    let (mut world, missing) = asking();
    let name = key(missing[0]);
    let tokens = [
        world.send(get(&name)),
        world.send(put(&name, "newer")),
        world.send(get(&name)),
    ];
    world.run(20);
    let answers = tokens.map(|token| world.answer(token).cloned());
    assert_eq!(
        value_of(answers[0].as_ref().unwrap()),
        Ok(value(missing[0]))
    );
    assert!(matches!(answers[1], Some(Outcome::Done { .. })));
    assert_eq!(value_of(answers[2].as_ref().unwrap()), Ok("newer".into()));
}

/// A backup that sends what it was not asked for is not believed, and the segment is read as a whole.
#[test]
fn entries_of_other_keys_are_not_taken() {
    let (mut world, missing) = asking();
    world.lookups = LookupsAre::Others;
    let token = world.send(get(&key(missing[0])));
    world.run(100);
    assert_eq!(world.answer(token), None);
    world.withheld.clear();
    world.run(1_500);
    assert_eq!(
        value_of(world.answer(token).unwrap()),
        Ok(value(missing[0]))
    );
    world.shard.verify();
}

#[test]
fn a_segment_of_which_much_is_wanted_is_fetched_whole() {
    let mut dead = World::new(4, 3);
    for i in 0..1_500 {
        dead.ask(put(&key(i), &format!("{i:100}")));
    }
    let recover = lent(&dead);
    let (mut world, late) = early(&dead, &recover);
    world.lookups = LookupsAre::Right;
    let hashes = |it: &holdfast_format::Located<'_>| it.entry.key_hash();
    let copies = dead.copies(late);
    let entries = holdfast_format::Entries::new(&copies[0].bytes);
    let inside: Vec<_> = entries.filter_map(|it| hashes(&it.unwrap())).collect();
    let hash = |i: usize| holdfast_format::KeyHash::of(N, key(i).as_bytes());
    let missing: Vec<usize> = (0..1_500).filter(|i| inside.contains(&hash(*i))).collect();
    assert!(missing.len() > OF_SEGMENT_MAX + 20, "{}", missing.len());
    for &i in &missing[..OF_SEGMENT_MAX + 20] {
        world.send(get(&key(i)));
    }
    world.run(50);
    let waiting = world.metric("holdfast_shard_waiting") as usize;
    assert!(
        (15..=20).contains(&waiting),
        "{waiting} wait for the segment"
    );
    world.withheld.clear();
    world.run(1_500);
    assert_eq!(world.metric("holdfast_shard_waiting"), 0.0);
}
