//! One coordinator, three masters, four backups, R = 3. `kill -9` one after the other under load, then
//! everything: no acknowledged write is lost, and nothing older than what was acknowledged is read.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // threads, clocks: real processes, and a test

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use holdfast_tests::cluster::{Cluster, kill_9};
use holdfast_tests::resp::{Reply, Resp};

const WRITERS: u64 = 6;
const KEYS_PER_WRITER: u64 = 200;

/// What a writer knows of one key: the last acknowledged value and those sent after it whose
/// outcome it never learned. A read must give one of these.
#[derive(Debug, Clone, Default)]
struct Known {
    acknowledged: Option<Vec<u8>>,
    unknown: Vec<Option<Vec<u8>>>,
}

impl Known {
    fn admits(&self, read: &Option<Vec<u8>>) -> bool {
        *read == self.acknowledged || self.unknown.contains(read)
    }
}

type Ledger = Arc<Mutex<BTreeMap<String, Known>>>;

/// Writers that own disjoint keys, so that each knows what its keys must hold.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    ledger: Ledger,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(address: &str, ledger: &Ledger, round: u64) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let threads = (0..WRITERS)
            .map(|writer| {
                let (stop, acknowledged, ledger, address) = (
                    stop.clone(),
                    acknowledged.clone(),
                    ledger.clone(),
                    address.to_owned(),
                );
                std::thread::spawn(move || {
                    write_until(&stop, &acknowledged, &ledger, &address, writer, round);
                })
            })
            .collect();
        Load {
            stop,
            acknowledged,
            ledger: ledger.clone(),
            threads,
        }
    }

    /// Waits until `more` further writes have been acknowledged.
    fn progress(&self, cluster: &Cluster, more: u64) {
        let goal = self.acknowledged.load(Ordering::SeqCst) + more;
        cluster.eventually("progress of the load", || {
            (self.acknowledged.load(Ordering::SeqCst) >= goal).then_some(())
        });
    }

    fn finish(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread
                .join()
                .expect("a writer panicked: it read something impossible");
        }
        assert!(!self.ledger.lock().unwrap().is_empty());
        self.acknowledged.load(Ordering::SeqCst)
    }
}

fn write_until(
    stop: &AtomicBool,
    acknowledged: &AtomicU64,
    ledger: &Ledger,
    address: &str,
    writer: u64,
    round: u64,
) {
    let mut connection: Option<Resp> = None;
    let mut count = 0u64;
    while !stop.load(Ordering::SeqCst) {
        let Some(resp) = connection.as_mut() else {
            connection = Resp::connect(address, Duration::from_secs(20)).ok();
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        count += 1;
        let key = format!("w{writer}:{}", count * 7 % KEYS_PER_WRITER);
        let mut known = ledger
            .lock()
            .unwrap()
            .get(&key)
            .cloned()
            .unwrap_or_default();
        let step = match count % 10 {
            0 => resp
                .call(&[b"DEL", key.as_bytes()])
                .map(|reply| (reply, Some(None))),
            1..=3 => resp
                .call(&[b"GET", key.as_bytes()])
                .map(|reply| (reply, None)),
            _ => {
                let value = format!("{round}/{writer}/{count}/{}", "x".repeat(300)).into_bytes();
                resp.call(&[b"SET", key.as_bytes(), &value, b"EX", b"3600"])
                    .map(|reply| (reply, Some(Some(value))))
            }
        };
        match step {
            Ok((Reply::Bulk(read), None)) => {
                assert!(known.admits(&read), "{key}: read {read:?}, knew {known:?}");
                continue;
            }
            Ok((Reply::Simple(_) | Reply::Integer(_), Some(written))) => {
                known = Known {
                    acknowledged: written,
                    unknown: Vec::new(),
                };
                acknowledged.fetch_add(1, Ordering::SeqCst);
            }
            // Refused or unknown: it may have happened or not.
            Ok((Reply::Error(_), Some(written))) => known.unknown.push(written),
            Ok((Reply::Error(_), None)) => continue,
            Ok(other) => panic!("{key}: {other:?}"),
            Err(_) => {
                // The connection is gone; which value was in flight is told by the count alone.
                connection = None;
                if count.is_multiple_of(10) {
                    known.unknown.push(None);
                } else if !(1..=3).contains(&(count % 10)) {
                    let value =
                        format!("{round}/{writer}/{count}/{}", "x".repeat(300)).into_bytes();
                    known.unknown.push(Some(value));
                }
            }
        }
        ledger.lock().unwrap().insert(key, known);
    }
}

/// Reads every key that was ever written; what is read becomes what is known.
fn read_everything(cluster: &Cluster, ledger: &Ledger, after: &str) {
    let mut resp = cluster.resp();
    let mut ledger = ledger.lock().unwrap();
    for (key, known) in ledger.iter_mut() {
        let read = cluster.eventually("an answer to GET", || resp.get(key).ok());
        assert!(
            known.admits(&read),
            "after {after}: {key} is {read:?}, knew {known:?}"
        );
        *known = Known {
            acknowledged: read,
            unknown: Vec::new(),
        };
    }
}

#[test]
fn every_acknowledged_session_survives_every_kill() {
    let mut cluster = Cluster::of_processes(3, 4, 3, "128MiB", &[]);
    let ledger = Ledger::default();
    let mut round = 0;
    let mut kill_under_load = |cluster: &Cluster, role: &str| {
        round += 1;
        let load = Load::start(&cluster.address("resp"), &ledger, round);
        load.progress(cluster, 500);
        let victim = cluster.processes(role)[0].clone();
        kill_9(victim.pid);
        load.progress(cluster, 1000);
        cluster.eventually("a successor of the killed process", || {
            let now = cluster.processes(role);
            (!now.is_empty() && now.iter().all(|process| process.pid != victim.pid)).then_some(())
        });
        let acknowledged = load.finish();
        assert!(acknowledged >= 1500);
        read_everything(cluster, &ledger, &format!("the death of {}", victim.name));
        cluster.wait_until_ready();
    };
    kill_under_load(&cluster, "master");
    kill_under_load(&cluster, "backup");
    kill_under_load(&cluster, "coordinator");

    cluster.kill_everything();
    cluster.launch();
    read_everything(&cluster, &ledger, "the death of everything");
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// Any process, also two at once, also while what was killed before is being recovered. How many kills and which is
/// told by `HOLDFAST_KILLS` and `HOLDFAST_SEED`; `scripts/test --long` kills 200 times.
#[test]
fn random_kills_lose_nothing_and_stop_nothing_for_good() {
    let kills = from_environment("HOLDFAST_KILLS", 8);
    let mut dice = Dice(from_environment("HOLDFAST_SEED", 1));
    let cluster = Cluster::of_processes(3, 4, 3, "128MiB", &[]);
    let ledger = Ledger::default();
    let (mut done, mut round) = (0, 0);
    while done < kills {
        round += 1;
        let load = Load::start(&cluster.address("resp"), &ledger, round);
        load.progress(&cluster, 200);
        let mut killed = Vec::new();
        // A few in a row without waiting for anything but some writes, or for nothing at all.
        for _ in 0..1 + dice.below(4) {
            let roles = ["coordinator", "master", "backup", "gateway"];
            for _ in 0..1 + dice.below(2) {
                let role = roles[[1, 1, 1, 2, 2, 2, 0, 3][dice.below(8) as usize]];
                let processes = cluster.processes(role);
                let Some(victim) =
                    processes.get(dice.below(processes.len().max(1) as u64) as usize)
                else {
                    continue;
                };
                kill_9(victim.pid);
                killed.push(victim.name.clone());
                done += 1;
            }
            match dice.below(3) {
                0 => load.progress(&cluster, 100),
                1 => std::thread::sleep(Duration::from_millis(dice.below(800))),
                _ => {}
            }
        }
        load.progress(&cluster, 200);
        load.finish();
        cluster.wait_until_ready();
        read_everything(&cluster, &ledger, &format!("the deaths of {killed:?}"));
    }
}
