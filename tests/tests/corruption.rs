//! A replica file that rots on one backup is noticed, never believed, and made again from another copy.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // threads, clocks: real processes, and a test

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use holdfast_tests::cluster::{Cluster, kill_9};
use holdfast_tests::resp::Reply;

const SESSIONS: u32 = 3_000;
/// Half of the recoveries read something rotten, or more.
const ROUNDS_MAX: u64 = 16;
/// A frame: the backup's header and then room for one segment (docs/format.md).
const HEADER_BYTES: u64 = 4096;
const FRAME_BYTES: u64 = HEADER_BYTES + (8 << 20);

/// Flips one bit in the segment bytes of every frame that holds some, each round another; how many it hurt.
fn rot(frames: &Path, round: u64) -> u32 {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(frames)
        .expect("the frames file");
    let frames = file.metadata().unwrap().len() / FRAME_BYTES;
    let mut hurt = 0;
    for frame in 0..frames {
        // Within the entries of any segment that has some, past its header and digest.
        let at = frame * FRAME_BYTES + HEADER_BYTES + 2_000 + 100 * round;
        let mut bytes = [0; 64];
        file.read_exact_at(&mut bytes, at).unwrap();
        if bytes.iter().any(|&byte| byte != 0) {
            file.write_all_at(&[bytes[0] ^ 0x10], at).unwrap();
            hurt += 1;
        }
    }
    hurt
}

#[test]
fn a_rotten_replica_is_noticed_and_repaired() {
    let cluster = Cluster::of_processes(3, 4, 3, "128MiB", &[]);
    let mut resp = cluster.resp();
    let value = |number: u32| format!("{number}/{}", "v".repeat(500)).into_bytes();
    for number in 0..SESSIONS {
        let key = format!("rot:{number}");
        let reply = resp
            .call(&[b"SET", key.as_bytes(), &value(number), b"EX", b"3600"])
            .unwrap();
        assert_eq!(reply, Reply::Simple("OK".into()));
    }
    let check = |after: &str| {
        let mut resp = cluster.resp();
        for number in 0..SESSIONS {
            let key = format!("rot:{number}");
            let read = cluster.eventually("an answer to GET", || resp.get(&key).ok());
            assert_eq!(read, Some(value(number)), "{key} after {after}");
        }
    };

    // What rotted is read when its log is recovered and the backup is the one of its holders that is asked. So two
    // backups of four rot, one fewer than there are replicas of anything, and masters die until one is.
    let noticed = || cluster.has_logged("is corrupt");
    for round in 0.. {
        assert!(
            round < ROUNDS_MAX,
            "{ROUNDS_MAX} recoveries read no rotten replica; {}",
            cluster.log()
        );
        let hurt = (1..=2).map(|backup| {
            let frames = format!("data/backup-{backup}/frames");
            rot(&cluster.dir.path().join(frames), round)
        });
        assert!(hurt.sum::<u32>() > 0, "two backups of four hold no replica");
        let victim = cluster.processes("master")[round as usize % 3].clone();
        kill_9(victim.pid);
        cluster.eventually("a successor", || {
            let now = cluster.processes("master");
            (now.len() == 3 && now.iter().all(|process| process.pid != victim.pid)).then_some(())
        });
        check(&format!("the death of {}", victim.name));
        cluster.wait_until_ready();
        if noticed() {
            break;
        }
    }
    // Ready means that every segment has R whole replicas again.
    cluster.wait_until_ready();
    check("the repair");
}

/// Nobody dies and nobody reads: the scrub of each backup finds what rots, and masters make it again.
#[test]
fn rot_in_idle_replicas_is_found_by_the_scrub() {
    let seven_seconds = "0.002";
    let cluster = Cluster::of_processes(2, 3, 2, "128MiB", &["--scrub-hours", seven_seconds]);
    let mut resp = cluster.resp();
    // Each master closes four segments: once in six thousand times backup-1 has a replica of none.
    let value = |number: u32| vec![b'a' + (number % 26) as u8; 25_000];
    for number in 0..SESSIONS {
        let key = format!("idle:{number}");
        let reply = resp
            .call(&[b"SET", key.as_bytes(), &value(number)])
            .unwrap();
        assert_eq!(reply, Reply::Simple("OK".into()));
    }
    cluster.wait_until_ready();
    let frames = cluster.dir.path().join("data/backup-1/frames");
    let sum = |name: &str| {
        let (_, metrics) = cluster.http("/metrics").ok()?;
        let lines = metrics.lines().filter(|line| line.starts_with(name));
        let values = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        Some(values.sum::<f64>())
    };
    let mut found = 0.0;
    for round in 0.. {
        assert!(rot(&frames, round) > 0, "the backup holds nothing");
        found = cluster.eventually("bad replica found", || {
            sum("holdfast_backup_corrupt_replicas_total{").filter(|now| *now > found)
        });
        // On a machine so slow that a master is given up a recovery may be faster than the scrub.
        if sum("holdfast_backup_scrub_bad_total{").unwrap() > 0.0 {
            break;
        }
        assert!(
            round < ROUNDS_MAX,
            "the scrub finds nothing; {}",
            cluster.log()
        );
    }
    let passes = sum("holdfast_backup_scrub_passes_total{").unwrap();
    cluster.eventually("another pass of every backup", || {
        (sum("holdfast_backup_scrub_passes_total{")? >= passes + 6.0).then_some(())
    });
    cluster.wait_until_ready();
    for number in 0..SESSIONS {
        let read = cluster.eventually("an answer", || resp.get(&format!("idle:{number}")).ok());
        assert!(read == Some(value(number)), "{number}");
    }
}
