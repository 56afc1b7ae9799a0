//! What the bound on memory means: who is refused at it, and who is not.

use holdfast_format::{ClusterMs, LogId, Namespace};
use holdfast_log::{AppendError, Config, Expiry, Log, SessionCount};

const NS: Namespace = Namespace(3);
const NOW: ClusterMs = ClusterMs(1_000_000);

fn put(log: &mut Log, key: &str, value: &[u8]) -> Result<(), AppendError> {
    log.put(NS, key.as_bytes(), value, Expiry::default(), None, NOW)
        .map(drop)
}

/// Everything appended is durable at once, and the cleaner does what it can.
fn settle(log: &mut Log) {
    for _ in 0..64 {
        let goals: Vec<_> = log.goals().collect();
        for goal in goals {
            log.set_durable(goal.id, goal.length, goal.closed);
        }
        log.take_freed();
        log.clean(NOW, 1 << 20);
    }
}

/// However much is held outside the log, only puts are refused, and only while it is held.
#[test]
fn what_is_outside_the_log_makes_puts_wait_and_nothing_else() {
    let mut log = Log::new(LogId(1), Config::for_testing()).unwrap();
    for i in 0..1_000 {
        put(&mut log, &format!("session:{i}"), &[7; 500]).unwrap();
        settle_now_and_then(&mut log, i);
    }
    let before = log.memory();
    log.set_external_bytes(u64::MAX / 2);
    assert_eq!(log.memory().external_bytes, u64::MAX / 2);
    assert_eq!(
        put(&mut log, "one more", &[7; 500]),
        Err(AppendError::OutOfMemory)
    );
    assert!(log.find(NS, b"session:3", NOW).is_some());
    let deadline = Some(NOW.plus_ms(60_000));
    assert_eq!(log.touch(NS, b"session:3", deadline, None, NOW), Ok(true));
    for i in 0..900 {
        let key = format!("session:{i}");
        let deleted = log.delete(NS, key.as_bytes(), None, NOW).unwrap();
        assert!(deleted.is_some(), "{key}");
        settle_now_and_then(&mut log, i);
    }
    settle(&mut log);
    log.verify();
    let after = log.memory();
    assert!(
        after.live_bytes < before.live_bytes / 2,
        "{before:?} {after:?}"
    );
    log.set_external_bytes(0);
    put(&mut log, "one more", &[7; 500]).unwrap();
}

/// Room that was left for what is outside is not taken from puts.
#[test]
fn room_left_outside_costs_puts_nothing() {
    let config = Config {
        outside_bytes: 1 << 20,
        ..Config::for_testing()
    };
    let mut log = Log::new(LogId(1), config).unwrap();
    let limit = log.memory().reserved_bytes;
    log.set_external_bytes(1 << 20);
    assert_eq!(log.memory().reserved_bytes, limit);
    log.set_external_bytes((1 << 20) + 1);
    assert!(log.memory().reserved_bytes > limit);
    log.verify();
}

/// Bytes are counted exactly, through overwrites, touches, deletes and flushes.
#[test]
fn a_namespace_knows_its_bytes() {
    let mut log = Log::new(LogId(1), Config::for_testing()).unwrap();
    let of = |key: &str, value: &[u8]| {
        let object = holdfast_format::Object {
            namespace: NS,
            key: key.as_bytes(),
            value,
            version: Default::default(),
            expiry: Expiry::default(),
            shadowing: false,
        };
        object.encoded_len() as u64
    };
    put(&mut log, "a", &[1; 100]).unwrap();
    put(&mut log, "b", &[1; 200]).unwrap();
    assert_eq!(log.count(NS).bytes, of("a", &[1; 100]) + of("b", &[1; 200]));
    put(&mut log, "a", &[1; 10]).unwrap();
    put(&mut log, "b", &[1; 200]).unwrap();
    assert_eq!(log.count(NS).bytes, of("a", &[1; 10]) + of("b", &[1; 200]));
    log.touch(NS, b"a", Some(NOW.plus_ms(5)), None, NOW)
        .unwrap();
    assert_eq!(log.count(NS).bytes, of("a", &[1; 10]) + of("b", &[1; 200]));
    log.delete(NS, b"b", None, NOW).unwrap();
    assert_eq!(log.count(NS).bytes, of("a", &[1; 10]));
    log.verify();
    // Expired, it counts until the sweep has met it.
    let later = NOW.plus_ms(10_000);
    assert_eq!(log.count(NS).sessions, 1);
    while log.count(NS).sessions > 0 {
        log.sweep(later, 64);
    }
    assert_eq!(log.count(NS), SessionCount::default());
    assert_eq!(log.memory().expired_sessions, 1);
    put(&mut log, "c", &[1; 10]).unwrap();
    let all = [holdfast_format::SlotRange::ALL];
    log.flush(NS, &all, None, NOW).unwrap();
    assert_eq!(log.count(NS), SessionCount::default());
    log.verify();
}

fn settle_now_and_then(log: &mut Log, i: u32) {
    if i.is_multiple_of(50) {
        settle(log);
    }
}

/// The sample is a good one: who goes is old, and nobody of another namespace or slot goes.
#[test]
fn those_who_are_evicted_are_old() {
    let mut log = Log::new(LogId(1), Config::for_testing()).unwrap();
    let sessions = 8_000;
    let idle_ms = 1_800_000;
    let session = |age: u32| Expiry {
        deadline: Some(NOW.plus_ms(u64::from(idle_ms - age))),
        idle_ms: Some(idle_ms),
        absolute: None,
    };
    for i in 0..sessions {
        let (key, value) = (format!("session:{i}"), [7; 40]);
        log.put(NS, key.as_bytes(), &value, session(i), None, NOW)
            .unwrap();
        let other = Namespace(4);
        log.put(other, key.as_bytes(), &value, session(i), None, NOW)
            .unwrap();
        settle_now_and_then(&mut log, i);
    }
    let nobody = holdfast_format::KeyHash(0);
    let evict = |log: &mut Log, owned: bool| log.evict(NS, nobody, NOW, &|_| owned).unwrap();
    assert_eq!(evict(&mut log, false), None, "in no slot of ours");
    let mut evicted = 0;
    while evicted < 500 {
        evicted += u32::from(evict(&mut log, true).is_some());
        settle_now_and_then(&mut log, evicted);
    }
    assert_eq!(log.evicted(NS), 500);
    let gone: Vec<u32> = (0..sessions)
        .filter(|i| {
            log.find(NS, format!("session:{i}").as_bytes(), NOW)
                .is_none()
        })
        .collect();
    assert_eq!(gone.len(), 500);
    // `i` is how long a session was idle.
    let oldest = gone.iter().filter(|&&i| i >= sessions * 7 / 8).count();
    assert!(
        oldest > 400,
        "only {oldest} of 500 are of the oldest eighth"
    );
    assert_eq!(log.count(Namespace(4)).sessions, u64::from(sessions));
    log.verify();
}

/// What the sweep says of the slots is about right, follows what is written and removed, and is nothing at first.
#[test]
fn the_sweep_finds_what_lies_in_which_slots() {
    use holdfast_format::{SLOT_PARTS, Slot};
    let mut log = Log::new(LogId(1), Config::for_testing()).unwrap();
    assert!(log.loads().is_empty());
    let pass = |log: &mut Log| {
        for _ in 0..2 * log.index_buckets().div_ceil(16) {
            log.sweep(NOW, 16);
        }
    };
    // All keys with the tag lie in one slot; the others everywhere.
    for i in 0..2_000 {
        let key = match i % 4 {
            0 => format!("{i}"),
            _ => format!("{{heavy}}{i}"),
        };
        put(&mut log, &key, &[7; 100]).unwrap();
        settle_now_and_then(&mut log, i);
    }
    pass(&mut log);
    let heavy = Slot::of(b"heavy").part();
    let loads = log.loads().to_vec();
    assert_eq!(loads.len(), SLOT_PARTS);
    let entries: u64 = loads.iter().map(|load| load.entries).sum();
    assert!((1_500..2_500).contains(&entries), "{entries}");
    let share = loads[heavy].entries as f64 / entries as f64;
    assert!((0.65..0.85).contains(&share), "{share}");
    let each = loads[heavy].bytes / loads[heavy].entries;
    assert!((100..200).contains(&each), "{each} bytes an entry");
    for i in (0..2_000).filter(|i| i % 4 != 0) {
        log.delete(NS, format!("{{heavy}}{i}").as_bytes(), None, NOW)
            .unwrap();
        settle_now_and_then(&mut log, i);
    }
    settle(&mut log);
    pass(&mut log);
    let now = log.loads()[heavy];
    assert!(
        now.bytes < loads[heavy].bytes / 2,
        "{now:?}, before {:?}",
        loads[heavy]
    );
}
