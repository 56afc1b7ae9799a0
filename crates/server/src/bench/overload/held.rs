//! The servers that are measured, and how one of them is held to a share of a core.
//!
//! By stopping and continuing its process in turn, a few milliseconds at a time:
//!
//! ```text
//!  share 1/4:  run 1 ms | stopped 3 ms | run 1 ms | stopped 3 ms | …
//! ```
//!
//! This needs no privileges and works everywhere. A quota of the kernel (cgroup) and a rival for the core with a larger weight
//! take effect at the scheduler's tick only, 4 ms on many machines, and so make a server run for 4 ms and pause for 12;
//! and the rival takes a core that the generator has use for. The price: what comes while the process is stopped waits for up to
//! 3 ms, on a quiet server too.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{LoadArgs, Run, Way};

/// One turn of running and standing still.
const PERIOD: Duration = Duration::from_millis(4);

const PATIENCE: Duration = Duration::from_secs(60);

/// Servers of our own, and where they are asked. They end with it.
pub(super) struct Servers {
    /// The last one started comes last.
    children: Vec<Child>,
    /// Which of them has the sessions.
    master: usize,
    pub(super) resp: String,
    dir: PathBuf,
}

impl Servers {
    pub(super) fn start(args: &LoadArgs, way: Way) -> Run<Servers> {
        let dir = std::env::temp_dir().join(format!(
            "holdfast-overload-{}-{}",
            std::process::id(),
            way.name()
        ));
        std::fs::create_dir_all(&dir)?;
        let mut servers = Servers {
            children: Vec::new(),
            master: 0,
            resp: String::new(),
            dir,
        };
        let memory = args.sessions * (u64::from(args.value_bytes) + 200) * 4 + (256 << 20);
        let (memory, replicas) = (memory.to_string(), args.replicas.to_string());
        let any = "127.0.0.1:0";
        // What has waited for a fifth of the deadline still comes in time, on a server that stands still for 3 ms of 4 too.
        let wait = match way {
            Way::Protected | Way::Window => (args.deadline_ms / 5).max(1).to_string(),
            Way::Unprotected => "0".to_owned(),
        };
        // A server that stands still most of the time must not be taken for dead.
        let patient = [
            "--lease-ms",
            "2000",
            "--confirm-ms",
            "3000",
            "--dead-ms",
            "10000",
        ];
        if way != Way::Window {
            let mut dev = vec!["dev", "--shards", "1", "--memory", &memory];
            dev.extend(["--replicas", &replicas]);
            dev.extend([
                "--resp",
                any,
                "--resp-cluster",
                any,
                "--grpc",
                any,
                "--http",
                any,
            ]);
            dev.extend(patient);
            dev.extend(["--queue-wait-ms", &wait]);
            servers.spawn(&dev)?;
            return servers.opened();
        }
        let coordinator = free_address()?;
        let mut keeper = vec!["coordinator", "--listen", &coordinator, "--grpc", any];
        keeper.extend(["--replicas", "0"]);
        keeper.extend(patient);
        servers.spawn(&keeper)?;
        servers.spawn(&[
            "master",
            "--coordinator",
            &coordinator,
            "--shards",
            "1",
            "--memory",
            &memory,
            "--resp-cluster",
            any,
        ])?;
        servers.master = 1;
        servers.spawn(&[
            "gateway",
            "--coordinator",
            &coordinator,
            "--queue-wait-ms",
            &wait,
            "--resp",
            any,
            "--grpc",
            any,
            "--http",
            any,
        ])?;
        servers.opened()
    }

    fn part_dir(&self, number: usize) -> PathBuf {
        self.dir.join(number.to_string())
    }

    fn spawn(&mut self, words: &[&str]) -> Run<()> {
        let dir = self.part_dir(self.children.len());
        std::fs::create_dir_all(&dir)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(words);
        // Gateways and masters keep nothing.
        if matches!(words[0], "dev" | "coordinator") {
            command.arg("--dir").arg(dir.join("data"));
        }
        if words[0] != "coordinator" {
            command.arg("--ready-file").arg(dir.join("ready.json"));
        }
        let log = std::fs::File::create(dir.join("log"))?;
        let command = command.stdout(Stdio::null()).stderr(log);
        self.children.push(command.spawn()?);
        Ok(())
    }

    /// Waits until the one that was started last takes requests.
    fn opened(mut self) -> Run<Servers> {
        let began = Instant::now();
        let last = self.part_dir(self.children.len() - 1);
        loop {
            if let Some(resp) = address(&last.join("ready.json")) {
                self.resp = resp;
                return Ok(self);
            }
            let mut children = self.children.iter_mut().enumerate();
            let ended =
                children.find_map(|(number, child)| Some((number, child.try_wait().ok()??)));
            if let Some((number, status)) = ended {
                let log = self.part_dir(number).join("log");
                let log = std::fs::read_to_string(log).unwrap_or_default();
                return Err(format!("a server ended with {status}:\n{log}").into());
            }
            if began.elapsed() > PATIENCE {
                return Err("the server did not become ready".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The one that has the sessions.
    pub(super) fn pid(&self) -> u32 {
        self.children[self.master].id()
    }

    pub(super) fn hold(&self, share: f64) -> Run<Held> {
        Held::hold(Pid::from_child(&self.children[self.master]), share)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let pid = Pid::from_child(child);
            let _ = kill_process(pid, Signal::CONT);
            let _ = kill_process(pid, Signal::TERM);
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn address(ready_file: &Path) -> Option<String> {
    let text = std::fs::read_to_string(ready_file).ok()?;
    let ready: Value = serde_json::from_str(&text).ok()?;
    Some(ready["resp"].as_str()?.to_owned())
}

/// An address that was free a moment ago.
fn free_address() -> Run<String> {
    let probe = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(probe.local_addr()?.to_string())
}

/// Holds a process to a share of a core, until it is dropped.
pub(super) struct Held {
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Held {
    fn hold(pid: Pid, share: f64) -> Run<Held> {
        // Relaxed: nothing but itself is told by it.
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        let runs = PERIOD.mul_f64(share);
        let stopped = PERIOD - runs;
        let thread = std::thread::Builder::new()
            .name("hold".into())
            .spawn(move || {
                while !told.load(Ordering::Relaxed) && !stopped.is_zero() {
                    let _ = kill_process(pid, Signal::STOP);
                    std::thread::sleep(stopped);
                    let _ = kill_process(pid, Signal::CONT);
                    std::thread::sleep(runs);
                }
            })?;
        Ok(Held {
            over,
            thread: Some(thread),
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
