//! The index grows while it is used: nothing is lost, doubled or seen out of order.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;

use holdfast_format::{KeyHash, LogId, SLOTS, Slot};
use holdfast_log::{Config, Expiry, Log};
use support::{Dice, NS, ms};

fn config() -> Config {
    Config {
        memory_bytes: 24 << 20,
        ..Config::for_testing()
    }
}

#[test]
fn growing_and_shrinking_keeps_every_key() {
    let mut log = Log::new(LogId(1), config()).unwrap();
    let mut model = BTreeMap::new();
    let mut dice = Dice(0x6E0_0D1CE);
    for round in 0..6 {
        // Grow for a while, then delete more than is put.
        for _ in 0..10_000 {
            let key = dice.below(40_000) as u32;
            let bytes = key.to_be_bytes();
            if dice.below(10) < if round % 3 == 2 { 4 } else { 8 } {
                log.put(NS, &bytes, &bytes, Expiry::default(), None, ms(1))
                    .unwrap();
                model.insert(KeyHash::of(NS, &bytes), key);
            } else {
                let deleted = log.delete(NS, &bytes, None, ms(1)).unwrap();
                let known = model.remove(&KeyHash::of(NS, &bytes));
                assert_eq!(deleted.is_some(), known.is_some());
            }
        }
        log.verify();
        for &key in model.values() {
            let bytes = key.to_be_bytes();
            assert_eq!(log.find(NS, &bytes, ms(1)).unwrap().value, bytes);
        }
        assert_eq!(log.count(NS).sessions, model.len() as u64);
    }
    assert!(
        model.len() > 15_000,
        "too few to have grown often: {}",
        model.len()
    );
    // With overflow chains, tombstones not yet swept, and a started chunk of each kind.
    let words = 40_000;
    assert!(
        log.memory().index_bytes < words * 12 + (8 << 10),
        "{} bytes of index",
        log.memory().index_bytes
    );
}

/// SCAN's promise: what is there from beginning to end is seen, however the index grows meanwhile.
#[test]
fn a_scan_across_growth_sees_every_key_that_stays() {
    let mut log = Log::new(LogId(1), config()).unwrap();
    let mut fresh = 0u32;
    let mut put = |log: &mut Log| {
        let key = fresh.to_be_bytes();
        log.put(NS, &key, b"", Expiry::default(), None, ms(1))
            .unwrap();
        fresh += 1;
    };
    for _ in 0..2_000 {
        put(&mut log);
    }
    let odd = |slot: Slot| slot.0 < SLOTS / 2;
    let mut keys = Vec::new();
    let mut cursor = KeyHash(0);
    let mut calls = 0;
    loop {
        let start = keys.len();
        let next = log.scan(NS, cursor, 10, ms(1), &mut keys, &odd);
        for (hash, key) in &keys[start..] {
            assert!(*hash >= cursor && next.is_none_or(|next| *hash < next));
            assert!(odd(Slot::of(key)));
        }
        calls += 1;
        for _ in 0..100 {
            put(&mut log);
        }
        match next {
            Some(next) => cursor = next,
            None => break,
        }
    }
    assert!(calls > 50);
    assert!(keys.is_sorted(), "hash order");
    let seen = keys.len();
    keys.dedup();
    assert_eq!(keys.len(), seen, "no key twice");
    for key in 0..2_000u32 {
        let key = key.to_be_bytes();
        let hash = KeyHash::of(NS, &key);
        let found = keys
            .binary_search_by(|(h, k)| (h, &k[..]).cmp(&(&hash, &key[..])))
            .is_ok();
        assert_eq!(
            found,
            odd(Slot::of(&key)),
            "a key that was there all the time"
        );
    }
}

/// Expired sessions are garbage within one sweep, and the cleaner then makes room of them.
#[test]
fn memory_full_of_expired_sessions_is_usable_again() {
    let mut log = Log::new(LogId(1), Config::for_testing()).unwrap();
    let mut replicas = support::Replicas::default();
    let mut now = 1;
    let mut total = 0u64;
    while total < (20 << 20) {
        let key = total.to_be_bytes();
        let expiry = Expiry::at(ms(now + 50));
        match log.put(NS, &key, &[1; 2000], expiry, None, ms(now)) {
            Ok(_) => total += 2000,
            Err(_) => {
                let before = log.count(NS).sessions;
                now += 200;
                log.sweep(ms(now), u32::MAX);
                assert_eq!((log.count(NS).sessions, before > 100), (0, true));
                // Nothing that is not on replicas yet may be cleaned.
                replicas.ship(&mut log);
                while log.clean(ms(now), 1 << 20) {}
                replicas.ship(&mut log);
                log.verify();
            }
        }
    }
}

/// However little garbage there is, the cleaner ends, and ends soon.
#[test]
fn cleaning_ends_when_there_is_nothing_to_gain() {
    let mut log = Log::new(LogId(1), Config::for_testing()).unwrap();
    let mut replicas = support::Replicas::default();
    let mut n = 0u32;
    while log
        .put(
            NS,
            &n.to_be_bytes(),
            &[1; 300],
            Expiry::default(),
            None,
            ms(1),
        )
        .is_ok()
    {
        n += 1;
    }
    replicas.ship(&mut log);
    for n in (0..n).step_by(3) {
        log.delete(NS, &n.to_be_bytes(), None, ms(1)).unwrap();
        log.clean(ms(1), 1 << 20);
        replicas.ship(&mut log);
    }
    for _ in 0..200 {
        log.clean(ms(1), 1 << 20);
        log.sweep(ms(1), u32::MAX);
        replicas.ship(&mut log);
    }
    log.verify();
    let cleaned = log.memory().cleaned_bytes;
    for _ in 0..100 {
        assert!(!log.clean(ms(1), 1 << 20));
        log.sweep(ms(1), u32::MAX);
        replicas.ship(&mut log);
    }
    assert_eq!(
        log.memory().cleaned_bytes,
        cleaned,
        "the cleaner does not come to rest"
    );
}
