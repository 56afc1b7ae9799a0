//! Three backups, of which two acknowledge, and one stands still: nobody who writes notices. And what a cluster was made
//! with is what it starts with.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // real processes, and a test

use std::process::Command;

use holdfast_tests::cluster::{Cluster, binary, signal};
use holdfast_tests::resp::Reply;

/// Nobody is declared dead for standing still: the writes below are acknowledged in spite of it.
const PATIENT: [&str; 4] = ["--confirm-ms", "100000", "--dead-ms", "100000"];

#[test]
fn a_backup_that_stands_still_stops_no_writer() {
    let mut arguments = vec!["--processes", "--masters", "1", "--backups", "3"];
    arguments.extend(["--replicas", "3", "--ack-quorum", "2"]);
    arguments.extend(PATIENT);
    let mut cluster = Cluster::start(&arguments);
    cluster.wait_until_ready();
    let mut resp = cluster.resp();
    let backups = cluster.processes("backup");
    assert_eq!(backups.len(), 3);
    // Every backup has a replica of the head, so each of them would stop writers if all had to acknowledge.
    for (round, backup) in backups.iter().enumerate() {
        signal(backup.pid, "STOP");
        for number in 0..200 {
            let key = format!("stalled:{number}");
            let value = format!("{round}/{number}");
            let set = [&b"SET"[..], key.as_bytes(), value.as_bytes()];
            assert_eq!(resp.call(&set).unwrap(), Reply::Simple("OK".into()));
        }
        let get = [&b"GET"[..], b"stalled:7"];
        let said = resp.call(&get).unwrap();
        assert_eq!(said, Reply::Bulk(Some(format!("{round}/7").into_bytes())));
        signal(backup.pid, "CONT");
        cluster.wait_until_ready();
    }
    drop(resp);
    cluster.kill_everything();

    // Other numbers are refused with the reason, before anything is touched.
    let said = cluster.eventually("end of those killed", || {
        let started = Command::new(binary())
            .args(["dev", "--masters", "1", "--backups", "3", "--replicas", "3"])
            .arg("--dir")
            .arg(cluster.dir.path().join("data"))
            .args(["--resp", "127.0.0.1:0", "--resp-cluster", "127.0.0.1:0"])
            .args(["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&started.stderr).into_owned();
        assert!(!started.status.success(), "{said}");
        (!said.contains("is in use by another process")).then_some(said)
    });
    assert!(said.contains("made with ack_quorum = 2"), "{said}");

    // Everything was lost at once but the machine: all of it comes back.
    cluster.launch();
    cluster.wait_until_ready();
    let mut resp = cluster.resp();
    for number in 0..200 {
        let key = format!("stalled:{number}");
        let get = [&b"GET"[..], key.as_bytes()];
        let said = resp.call(&get).unwrap();
        assert_eq!(said, Reply::Bulk(Some(format!("2/{number}").into_bytes())));
    }
}
