//! The bound on memory and the limits of namespaces, as clients and operators see them: a real master filled
//! to the brim, its errors word by word, and its resident memory as the kernel counts it.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // clocks, processes: this is what it is about

use std::process::Command as Process;
use std::time::{Duration, Instant};

use holdfast_format::Namespace;
use holdfast_tests::cluster::{Cluster, PATIENCE, binary, kill_9};
use holdfast_tests::resp::{Reply, Resp};
use holdfast_wire::grpc::{ClientError, SessionCall, SessionsClient};
use holdfast_wire::{Command, Condition, ExpiryChange, Op, Outcome};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// What a master with one shard costs before its first session (`docs/operating.md`, "Memory").
const FIXED_BYTES: u64 = 20 * MIB;

const OOM: &str = "OOM command not allowed when used memory > 'maxmemory'.";

/// Resident bytes of a process.
fn resident_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

/// A field of INFO.
fn info(resp: &mut Resp, field: &str) -> String {
    let Reply::Bulk(Some(text)) = resp.call(&[b"INFO"]).unwrap() else {
        panic!("INFO tells no text")
    };
    let text = String::from_utf8(text).unwrap();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{field}:")));
    value
        .unwrap_or_else(|| panic!("no {field} in\n{text}"))
        .to_owned()
}

fn ctl(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = Process::new(binary())
        .args(["ctl", "--grpc", &cluster.address("grpc")])
        .args(arguments)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ctl {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn key(i: usize) -> Vec<u8> {
    format!("session:{i}").into_bytes()
}

/// Sends SETs in batches until `end` or until one is refused. Returns which were stored: of the last batch perhaps
/// some that came after one that was refused, because the cleaner had found room in between.
fn fill(resp: &mut Resp, value: &[u8], from: usize, end: usize) -> (Vec<usize>, Option<String>) {
    const BATCH: usize = 64;
    let (mut stored, mut refused) = (Vec::new(), None);
    let mut next = from;
    while next < end && refused.is_none() {
        let batch = next..end.min(next + BATCH);
        for i in batch.clone() {
            resp.send(&[b"SET", &key(i), value, b"EX", b"86400"])
                .unwrap();
        }
        for i in batch.clone() {
            match resp.receive().unwrap() {
                Reply::Simple(_) => stored.push(i),
                Reply::Error(error) => refused = refused.or(Some(error)),
                other => panic!("{other:?}"),
            }
        }
        next = batch.end;
    }
    (stored, refused)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// One write over gRPC.
fn put(cluster: &Cluster, namespace: u8, key: &str, value: &[u8]) -> Result<Outcome, ClientError> {
    runtime().block_on(async {
        let address = cluster.address("grpc");
        let mut client = SessionsClient::connect(&address, None, None).await?;
        let op = Op::Put {
            value: value.to_vec().into(),
            condition: Condition::Always,
            expiry: ExpiryChange::Clear,
            return_old: false,
        };
        let command = Command {
            namespace: Namespace(namespace),
            key: key.to_owned().into(),
            op,
        };
        let call = SessionCall {
            command,
            once: None,
            within_ms: Some(10_000),
        };
        client.call(call).await
    })
}

/// `CODE: message` of a refused call.
fn refusal(result: Result<Outcome, ClientError>) -> String {
    match result {
        Err(ClientError::Refused { code, message, .. }) => format!("{code}: {message}"),
        other => panic!("not refused: {other:?}"),
    }
}

/// Filled to the bound and hammered with writes, a master refuses them and does everything else; its memory stays
/// within the bound; and what is deleted is usable again.
#[test]
fn a_full_master_refuses_writes_and_nothing_else() {
    let bound = 256 * MIB;
    let cluster = Cluster::of_processes(1, 1, 1, "256MiB", &["--disk", "2GiB"]);
    let master = cluster.processes("master")[0].pid;
    let mut resp = cluster.resp();
    let value = vec![b'v'; 4_000];
    let (mut stored, refused) = fill(&mut resp, &value, 0, 1_000_000);
    assert_eq!(refused.as_deref(), Some(OOM));
    let sessions = stored.len();
    let filled_bytes = sessions as u64 * 4_000;
    assert!(
        filled_bytes > bound * 8 / 10,
        "only {sessions} sessions fit"
    );

    // Writes against it for a while: each is refused in the same words, or finds what the cleaner has found.
    let began = Instant::now();
    let (mut refusals, mut peak) = (0, 0);
    while began.elapsed() < Duration::from_secs(5) {
        let next = stored.last().map_or(0, |last| last + 1);
        let (more, refused) = fill(&mut resp, &value, next, 1_000_000);
        stored.extend(more);
        refusals += 1;
        assert_eq!(refused.as_deref(), Some(OOM));
        peak = peak.max(resident_bytes(master));
    }
    assert!(refusals > 10);
    let error = refusal(put(&cluster, 0, "by gRPC", &value));
    assert!(error.contains("out of memory"), "{error}");
    let allowed = bound + bound * 3 / 100 + FIXED_BYTES;
    assert!(
        peak <= allowed,
        "{peak} bytes are resident, {allowed} allowed"
    );

    // Everything else works.
    let last = stored[stored.len() - 1];
    assert_eq!(
        resp.call(&[b"GET", &key(last)]).unwrap(),
        Reply::Bulk(Some(value.clone()))
    );
    for &i in &stored[..200] {
        let i = key(i);
        assert_eq!(
            resp.call(&[b"EXPIRE", &i, b"5000"]).unwrap(),
            Reply::Integer(1)
        );
        let touched = resp.call(&[b"GETEX", &i, b"EX", b"6000"]).unwrap();
        assert_eq!(touched, Reply::Bulk(Some(value.clone())));
        let same = resp.call(&[b"SET", &i, &value, b"EX", b"7000"]).unwrap();
        assert_eq!(
            same,
            Reply::Simple("OK".to_owned()),
            "the same value is a touch"
        );
    }

    // What INFO and `ctl memory` tell fits with what was done.
    let number = |text: String| text.parse::<u64>().unwrap();
    assert_eq!(number(info(&mut resp, "maxmemory")), bound);
    assert!(number(info(&mut resp, "used_memory")) > bound * 8 / 10);
    assert_eq!(info(&mut resp, "evicted_keys"), "0");
    assert_eq!(info(&mut resp, "maxmemory_policy"), "noeviction");
    let keys = stored.len();
    cluster.eventually("the number of keys in INFO", || {
        (info(&mut resp, "db0") == format!("keys={keys},expires={keys},avg_ttl=0")).then_some(())
    });
    let memory: Value = cluster.eventually("the heartbeat with this", || {
        let memory: Value = serde_json::from_str(&ctl(&cluster, &["memory", "--json"])).unwrap();
        (memory["total"]["sessions"].as_u64()? == keys as u64).then_some(memory)
    });
    let total = &memory["total"];
    assert_eq!(total["limit_bytes"], bound);
    assert!(total["live_bytes"].as_u64().unwrap() > filled_bytes);
    assert!(total["used_bytes"].as_u64().unwrap() <= bound);
    assert!(ctl(&cluster, &["memory"]).contains("master-1.0"));

    // Half of them deleted, there is room for others, within seconds.
    for &i in &stored[..keys / 2] {
        assert_eq!(resp.call(&[b"DEL", &key(i)]).unwrap(), Reply::Integer(1));
    }
    let began = Instant::now();
    let (mut next, mut written) = (2_000_000, 0);
    while written < keys / 4 {
        let (more, refused) = fill(&mut resp, &value, next, next + keys / 4 - written);
        next = more.last().map_or(next, |last| last + 1);
        written += more.len();
        if refused.is_some() {
            assert!(
                began.elapsed() < PATIENCE,
                "only {written} of {} fit",
                keys / 4
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    // Nobody was lost.
    for &i in stored[keys / 2..].iter().step_by(97) {
        assert_eq!(
            resp.get(std::str::from_utf8(&key(i)).unwrap())
                .unwrap()
                .as_deref(),
            Some(&value[..])
        );
    }
    let resident = resident_bytes(master);
    assert!(
        resident <= allowed,
        "{resident} bytes are resident, {allowed} allowed"
    );
}

/// Limits are set while the cluster runs, told in the words that operators need, and outlive the coordinator.
#[test]
fn namespaces_have_limits_that_outlive_the_coordinator() {
    let cluster = Cluster::of_processes(1, 1, 1, "128MiB", &["--namespace", "2:value-bytes=100"]);
    let told = ctl(&cluster, &["namespace", "set", "3", "--sessions", "100"]);
    assert!(told.contains("100 sessions"), "{told}");
    let mut resp = cluster.resp();
    assert_eq!(
        resp.call(&[b"SELECT", b"3"]).unwrap(),
        Reply::Simple("OK".to_owned())
    );
    // The limit is recorded; the shard has heard of it a moment later.
    let full = "OOM namespace 3 is at its limit of 100 sessions: delete sessions, let some expire, or raise it \
                with `holdfast ctl namespace set 3 --sessions <more>`";
    let error = cluster.eventually("the limit", || {
        let (_, refused) = fill(&mut resp, b"v", 0, 101);
        for i in 100..101 {
            resp.call(&[b"DEL", &key(i)]).unwrap();
        }
        refused
    });
    assert_eq!(error, full);
    assert_eq!(
        resp.call(&[b"SET", &key(5), b"longer"]).unwrap(),
        Reply::Simple("OK".to_owned())
    );
    let error = refusal(put(&cluster, 3, "by gRPC", b"v"));
    assert!(
        error.contains("namespace 3 is at its limit of 100 sessions"),
        "{error}"
    );
    // From the command line of `dev`, through the coordinator's records.
    let error = refusal(put(&cluster, 2, "k", &[7; 101]));
    assert!(
        error.contains("over the limit of 100 of namespace 2"),
        "{error}"
    );

    let coordinator = cluster.processes("coordinator")[0].pid;
    kill_9(coordinator);
    let list: Value = cluster.eventually("the list of a new coordinator", || {
        let pid = cluster.processes("coordinator")[0].pid;
        let list: Value =
            serde_json::from_str(&ctl(&cluster, &["namespace", "list", "--json"])).unwrap();
        let heard = list.as_array()?.iter().any(|it| it["sessions"] == 100);
        (pid != coordinator && heard).then_some(list)
    });
    let third = list
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["namespace"] == 3)
        .unwrap();
    assert_eq!(
        (&third["sessions_limit"], &third["evict"]),
        (&100.into(), &"never".into())
    );
    assert_eq!(
        resp.call(&[b"SET", b"new", b"v"]).unwrap(),
        Reply::Error(full.to_owned())
    );

    // With eviction the same write takes the place of another.
    ctl(
        &cluster,
        &["namespace", "set", "3", "--evict", "oldest-idle"],
    );
    cluster.eventually("eviction", || {
        (resp.call(&[b"SET", b"new", b"v"]).unwrap() == Reply::Simple("OK".to_owned()))
            .then_some(())
    });
    let (_, refused) = fill(&mut resp, b"v", 1_000, 1_300);
    assert_eq!(refused, None);
    assert_eq!(resp.call(&[b"DBSIZE"]).unwrap(), Reply::Integer(100));
    cluster.eventually("evictions in INFO", || {
        (info(&mut resp, "evicted_keys").parse::<u64>().unwrap() >= 300).then_some(())
    });
    cluster.eventually("the limits that this gateway knows", || {
        (info(&mut resp, "maxmemory_policy") == "allkeys-lru").then_some(())
    });
    ctl(&cluster, &["namespace", "unset", "3"]);
    cluster.eventually("the end of the limit", || {
        fill(&mut resp, b"v", 2_000, 2_200);
        matches!(resp.call(&[b"DBSIZE"]).unwrap(), Reply::Integer(150..)).then_some(())
    });
}
