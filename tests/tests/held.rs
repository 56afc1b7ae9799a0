//! A master dies while all backups with replicas of some of its segments are away: its log is held, everybody says
//! why, and it goes on by itself when they are back; or an operator gives it up, and nothing older than what was
//! lost is ever read.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // threads, clocks: real processes, and a test

use holdfast_tests::cluster::{Cluster, Process, kill_9, signal};
use holdfast_tests::resp::{Reply, Resp};
use serde_json::Value;

/// Each master has about 48 segments, of which one in six has both replicas on the two backups that go away:
/// once in six thousand times none has.
const SESSIONS: u32 = 12_000;
const VALUE_BYTES: usize = 8_000;

/// Written in so many ages; each must be told from those before.
fn value(number: u32, age: u32) -> Vec<u8> {
    let mut value = format!("{number}/{age}/").into_bytes();
    value.resize(VALUE_BYTES, b'v');
    value
}

fn write(resp: &mut Resp, age: u32, every: usize) {
    let numbers: Vec<u32> = (0..SESSIONS).step_by(every).collect();
    for batch in numbers.chunks(64) {
        for &number in batch {
            let key = format!("held:{number}");
            let set = [&b"SET"[..], key.as_bytes(), &value(number, age)];
            resp.send(&set).unwrap();
        }
        for _ in batch {
            assert_eq!(resp.receive().unwrap(), Reply::Simple("OK".into()));
        }
    }
}

/// The recoveries under way, as `ctl recoveries --json` tells.
fn recoveries(cluster: &Cluster) -> Option<Vec<Value>> {
    let all = cluster.ctl(&["recoveries", "--json"]).ok()?;
    let all: Vec<Value> = serde_json::from_str(&all).expect("JSON");
    Some(
        all.into_iter()
            .filter(|it| it["finished"] == false)
            .collect(),
    )
}

/// Stops the first two backups, and kills the first master before it can notice. What is held then.
fn bring_down(cluster: &Cluster) -> (Vec<Process>, Value) {
    let victim = cluster.processes("master-1").remove(0);
    let mut away = cluster.processes("backup");
    away.truncate(2);
    signal(victim.pid, "STOP");
    for backup in &away {
        signal(backup.pid, "STOP");
    }
    kill_9(victim.pid);
    let held = cluster.eventually("held log", || {
        let of_victim = |it: &Value| it["name"].as_str().unwrap().starts_with("master-1");
        let found = recoveries(cluster)?.into_iter().find(of_victim)?;
        (found["stage"] == "held").then_some(found)
    });
    (away, held)
}

fn metric(cluster: &Cluster, name: &str) -> f64 {
    let (_, metrics) = cluster.http("/metrics").unwrap();
    let line = metrics.lines().find(|line| line.starts_with(name));
    let number = line.and_then(|line| line.rsplit_once(' '));
    number
        .unwrap_or_else(|| panic!("no {name} in {metrics}"))
        .1
        .parse()
        .unwrap()
}

#[test]
fn a_held_log_goes_on_when_backups_return_or_is_given_up() {
    let cluster = Cluster::of_processes(
        3,
        4,
        2,
        "256MiB",
        &["--segment-bytes", "1MiB", "--value-bytes-max", "64KiB"],
    );
    let mut resp = cluster.resp();
    write(&mut resp, 1, 1);
    cluster.wait_until_ready();

    // Held, and everybody who looks can see why.
    let (away, held) = bring_down(&cluster);
    let named = held["hold"]["stores_away"].as_array().unwrap();
    let mut named: Vec<&str> = named
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    named.sort_unstable();
    assert_eq!(named, ["backup-1", "backup-2"]);
    let readiness = cluster.eventually("a readiness that says it", || {
        let (status, body) = cluster.http("/readyz").ok()?;
        assert_eq!(status, 503, "{body}");
        body.contains("is held: ").then_some(body)
    });
    assert!(readiness.contains("away: backup-"), "{readiness}");
    assert_eq!(metric(&cluster, "holdfast_recoveries_held{"), 1.0);
    if held["hold"]["segments_missing"].as_u64().unwrap() > 0 {
        assert!(metric(&cluster, "holdfast_recovery_segments_missing{") > 0.0);
        let segment = held["hold"]["segments"][0].as_str().unwrap();
        assert!(
            readiness.contains(segment),
            "{segment} is missing in {readiness}"
        );
    }
    let log = held["log"].as_str().unwrap();
    let look = cluster.ctl(&["recovery", "abandon", log]).unwrap_err();
    assert!(
        look.contains("nothing is given up without --confirm master-1"),
        "{look}"
    );
    let wrong = cluster.ctl(&["recovery", "abandon", log, "--confirm", "master-2.0"]);
    assert!(wrong.unwrap_err().contains("not of `master-2.0`"));
    assert!(
        recoveries(&cluster)
            .unwrap()
            .iter()
            .any(|it| it["stage"] == "held")
    );

    // The backups come back, and nobody has to do anything.
    for backup in &away {
        signal(backup.pid, "CONT");
    }
    cluster.wait_until_ready();
    let mut resp = cluster.resp();
    for number in 0..SESSIONS {
        let read = cluster.eventually("an answer", || resp.get(&format!("held:{number}")).ok());
        assert_eq!(read, Some(value(number, 1)), "{number}");
    }

    // Again, with a part of the sessions written anew; this time somebody gives up.
    write(&mut resp, 2, 3);
    cluster.wait_until_ready();
    let (away, held) = bring_down(&cluster);
    let (log, name) = (
        held["log"].as_str().unwrap(),
        held["name"].as_str().unwrap(),
    );
    let done = cluster.ctl(&["recovery", "abandon", log, "--confirm", name]);
    assert!(
        done.as_ref().is_ok_and(|it| it.contains("begin anew")),
        "{done:?}"
    );
    cluster.eventually("the end of the recovery", || {
        recoveries(&cluster)?.is_empty().then_some(())
    });
    assert_eq!(
        metric(&cluster, "holdfast_recoveries_abandoned_total{"),
        1.0
    );
    for backup in &away {
        signal(backup.pid, "CONT");
    }
    cluster.wait_until_ready();
    let mut resp = cluster.resp();
    let mut lost = 0;
    for number in 0..SESSIONS {
        let newest = value(number, if number % 3 == 0 { 2 } else { 1 });
        match cluster.eventually("an answer", || resp.get(&format!("held:{number}")).ok()) {
            None => lost += 1,
            Some(read) => assert!(
                read == newest,
                "{number} is older than what was acknowledged"
            ),
        }
    }
    let slots = held["slots_left"].as_u64().unwrap() as f64 / 16_384.0;
    let share = f64::from(lost) / f64::from(SESSIONS);
    assert!(
        (share - slots).abs() < 0.05,
        "{share} of the sessions lost, {slots} of the slots"
    );
    // Nothing of what was given up comes back with the backups, and it can be written again.
    write(&mut resp, 3, 1);
    for number in 0..SESSIONS {
        assert_eq!(
            resp.get(&format!("held:{number}")).unwrap(),
            Some(value(number, 3))
        );
    }
}
