//! A cluster of real processes that a benchmark of its own starts, asks and hurts: `dev --processes` of this program.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_format::Slot;
use serde_json::Value;

use super::keys::Random;
use super::watch;

/// Nothing here may take longer.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Servers map their memory within a few seconds, unless others need the processors.
const MAPPING_MAX: Duration = Duration::from_secs(60);

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How large a cluster is, and what it is to hold.
#[derive(clap::Args, Debug, Clone)]
pub struct Size {
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(100..))]
    pub sessions: u64,
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    pub value_bytes: u32,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..))]
    pub masters: u32,
    #[arg(long, default_value_t = 4)]
    pub backups: u32,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    pub replicas: u8,
}

impl Size {
    pub fn check(&self) -> Result<(), Failure> {
        if u32::from(self.replicas) > self.backups {
            return Err("--replicas needs at least as many --backups".into());
        }
        Ok(())
    }
}

/// The value that a session is filled with: from its number alone, so that checking needs no memory of the fill.
pub fn value(number: u64, bytes: u32) -> Vec<u8> {
    let mut random = Random::new(number ^ 0x5EED);
    let mut value = Vec::with_capacity(bytes as usize + 8);
    while value.len() < bytes as usize {
        value.extend_from_slice(&random.roll().to_le_bytes());
    }
    value.truncate(bytes as usize);
    value
}

/// The master to kill: its process, its log, the slots it owns.
#[derive(Debug, Clone)]
pub struct Victim {
    pub pid: u32,
    pub shard: String,
    /// First and last slot.
    ranges: Vec<(u64, u64)>,
}

impl Victim {
    /// The owner of the first slot.
    pub fn choose(status: &Value) -> Result<Victim, Failure> {
        let members = status["members"]
            .as_array()
            .ok_or("the status lists no members")?;
        let tablets = status["tablets"]
            .as_array()
            .ok_or("the status lists no tablets")?;
        let owner = &tablets.first().ok_or("nobody owns a slot")?["owner"];
        let member = members
            .iter()
            .find(|member| &member["id"] == owner)
            .ok_or("the owner of the first tablet is no member")?;
        let pid = member["pid"]
            .as_u64()
            .and_then(|pid| u32::try_from(pid).ok());
        Ok(Victim {
            pid: pid.ok_or("a member without a process")?,
            shard: owner
                .as_str()
                .ok_or("a tablet without an owner")?
                .to_owned(),
            ranges: tablets
                .iter()
                .filter(|tablet| &tablet["owner"] == owner)
                .filter_map(|tablet| {
                    Some((
                        tablet["first_slot"].as_u64()?,
                        tablet["last_slot"].as_u64()?,
                    ))
                })
                .collect(),
        })
    }

    pub fn owns(&self, slot: Slot) -> bool {
        let slot = u64::from(slot.0);
        self.ranges
            .iter()
            .any(|&(first, last)| (first..=last).contains(&slot))
    }
}

#[derive(Debug)]
pub struct Cluster {
    pub child: Child,
    pub resp: String,
    grpc: String,
}

impl Cluster {
    /// Starts it and waits until it is ready.
    pub async fn start(args: &Size, dir: &Path) -> Result<Cluster, Failure> {
        std::fs::create_dir_all(dir)?;
        let ready_file = dir.join("ready.json");
        // After the death of one master the others hold everything, and a cleaner needs room.
        let per_session = u64::from(args.value_bytes) + 37 + 100;
        let memory =
            args.sessions * per_session * 3 / 2 / u64::from(args.masters - 1) + (128 << 20);
        // What a survivor recovers is replicated again while the dead log is still kept.
        let replicas = args.sessions * per_session * u64::from(args.replicas) * 2;
        let disk = replicas / u64::from(args.backups) + (512 << 20);
        let log = std::fs::File::create(dir.join("log"))?;
        let child = Command::new(std::env::current_exe()?)
            .args(["dev", "--processes", "--masters", &args.masters.to_string()])
            .args(["--backups", &args.backups.to_string()])
            .args(["--replicas", &args.replicas.to_string()])
            .args(["--memory", &memory.to_string()])
            .args(["--disk", &disk.to_string()])
            .args(["--resp", "127.0.0.1:0", "--resp-cluster", "127.0.0.1:0"])
            .args(["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .arg("--dir")
            .arg(dir.join("data"))
            .arg("--ready-file")
            .arg(&ready_file)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let mut cluster = Cluster {
            child,
            resp: String::new(),
            grpc: String::new(),
        };
        let began = Instant::now();
        let ready: Value = loop {
            if let Ok(text) = std::fs::read_to_string(&ready_file)
                && let Ok(ready) = serde_json::from_str(&text)
            {
                break ready;
            }
            if let Some(status) = cluster.child.try_wait()? {
                let log = std::fs::read_to_string(dir.join("log")).unwrap_or_default();
                return Err(format!("the cluster ended with {status}:\n{log}").into());
            }
            if began.elapsed() > PATIENCE {
                return Err("the cluster did not become ready".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        for (field, face) in [(&mut cluster.resp, "resp"), (&mut cluster.grpc, "grpc")] {
            *field = ready[face]
                .as_str()
                .ok_or("the ready file lacks an address")?
                .to_owned();
        }
        Ok(cluster)
    }

    /// What `ctl status --json` says; `None` while nobody answers.
    pub fn status(&self) -> Option<Value> {
        let output = Command::new(std::env::current_exe().ok()?)
            .args(["ctl", "--grpc", &self.grpc, "status", "--json"])
            .stderr(Stdio::null())
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| serde_json::from_slice(&output.stdout).ok())
            .flatten()
    }

    /// Waits until all its memory has been mapped, as that of servers that have been up for a while is.
    pub async fn until_mapped(&self) {
        let began = Instant::now();
        while watch::is_mapping(self.child.id()) {
            if began.elapsed() > MAPPING_MAX {
                eprintln!(
                    "memory is still being mapped after {MAPPING_MAX:?}: what follows pays for it"
                );
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// How long after `since` it was ready: everything recovered, with all its replicas.
    pub async fn ready_after_ms(&self, since: Instant) -> Result<f64, Failure> {
        loop {
            if let Some(status) = self.status()
                && status["ready"] == Value::Bool(true)
            {
                return Ok(since.elapsed().as_secs_f64() * 1e3);
            }
            if since.elapsed() > PATIENCE {
                return Err("the cluster did not become ready again".into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The coordinator's account of the last recovery of a victim; null if it has none.
    pub fn recovery_of(&self, victim: &Victim) -> Value {
        // A log is named after its shard: `l` and `s` before the same number.
        let number = victim.shard.trim_start_matches('s');
        let status = self.status().unwrap_or(Value::Null);
        let recoveries = status["recoveries"].as_array().cloned().unwrap_or_default();
        let of_victim = |one: &Value| {
            let log = one["log"].as_str();
            log.is_some_and(|log| log.trim_start_matches('l') == number)
        };
        let mut recoveries = recoveries.into_iter().rev();
        recoveries.find(of_victim).unwrap_or(Value::Null)
    }
}

impl Drop for Cluster {
    /// SIGTERM, so that `dev` ends its children; they also end when it dies.
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

pub fn kill_9(pid: u32) -> Result<(), Failure> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or("not a process id")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    Ok(())
}

/// A directory for one run, removed at its end unless it was given.
#[derive(Debug)]
pub struct Scratch {
    pub path: PathBuf,
    is_ours: bool,
}

impl Scratch {
    /// The one given, or a new one below the system's temporary one.
    pub fn new(given: Option<&Path>) -> std::io::Result<Scratch> {
        if let Some(path) = given {
            std::fs::create_dir_all(path)?;
            return Ok(Scratch {
                path: path.to_owned(),
                is_ours: false,
            });
        }
        let path = std::env::temp_dir().join(format!("holdfast-bench-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Scratch {
            path,
            is_ours: true,
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.is_ours {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
