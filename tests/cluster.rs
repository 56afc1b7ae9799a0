//! A cluster of real processes: `holdfast dev --processes`, each role a child that a test may kill.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::resp::Resp;

/// How long anything may take before the test gives up. Generous: it never decides about speed.
pub const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Cluster {
    child: Option<Child>,
    pub dir: tempfile::TempDir,
    arguments: Vec<String>,
    pub ready: Value,
}

/// A process of the cluster, as `ctl status` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub name: String,
    pub pid: u32,
}

impl Cluster {
    /// Starts `dev` with these arguments on free ports and a directory of its own; waits until ready.
    pub fn start(arguments: &[&str]) -> Cluster {
        let mut cluster = Cluster {
            child: None,
            dir: tempfile::tempdir().expect("a temporary directory"),
            arguments: arguments
                .iter()
                .map(|&argument| argument.to_owned())
                .collect(),
            ready: Value::Null,
        };
        cluster.launch();
        cluster
    }

    /// As `start`, each role a process of its own; `more` arguments besides.
    pub fn of_processes(
        masters: u32,
        backups: u32,
        replicas: u32,
        memory: &str,
        more: &[&str],
    ) -> Cluster {
        let [masters, backups, replicas] = [masters, backups, replicas].map(|it| it.to_string());
        let mut arguments = vec!["--processes", "--masters", &masters, "--backups", &backups];
        arguments.extend(["--replicas", &replicas, "--memory", memory]);
        arguments.extend(more);
        Cluster::start(&arguments)
    }

    /// Starts the cluster (again) on its directory. Ports are chosen anew.
    pub fn launch(&mut self) {
        assert!(self.child.is_none(), "it is running");
        let ready_file = self.dir.path().join("ready.json");
        let _ = std::fs::remove_file(&ready_file);
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("the log file");
        let child = Command::new(binary())
            .arg("dev")
            .args(&self.arguments)
            .arg("--dir")
            .arg(self.dir.path().join("data"))
            .arg("--ready-file")
            .arg(&ready_file)
            .args(["--resp", "127.0.0.1:0", "--resp-cluster", "127.0.0.1:0"])
            .args(["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the holdfast binary starts");
        self.child = Some(child);
        let text = self.eventually("the ready file", || {
            std::fs::read_to_string(&ready_file)
                .ok()
                .filter(|text| !text.is_empty())
        });
        self.ready = serde_json::from_str(&text).expect("the ready file is JSON");
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// The cluster's log so far, for messages of failed tests.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(200)..].join("\n")
    }

    /// True if the cluster has ever logged `text`.
    pub fn has_logged(&self, text: &str) -> bool {
        std::fs::read_to_string(self.log_file()).is_ok_and(|log| log.contains(text))
    }

    /// Tries until `attempt` gives something; panics with the cluster's log after `PATIENCE`.
    pub fn eventually<T>(&self, what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(value) = attempt() {
                return value;
            }
            if began.elapsed() > PATIENCE {
                panic!(
                    "no {what} within {PATIENCE:?}; the log ends with\n{}",
                    self.log()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn address(&self, face: &str) -> String {
        self.ready[face]
            .as_str()
            .unwrap_or_else(|| panic!("no {face} in {}", self.ready))
            .to_owned()
    }

    pub fn resp(&self) -> Resp {
        Resp::connect(&self.address("resp"), Duration::from_secs(20))
            .expect("the flat port answers")
    }

    /// `ctl status --json`; `None` while the coordinator is away.
    pub fn status(&self) -> Option<Value> {
        let output = Command::new(binary())
            .args(["ctl", "--grpc", &self.address("grpc"), "status", "--json"])
            .output()
            .expect("ctl runs");
        output
            .status
            .success()
            .then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    /// What `holdfast ctl` with these arguments prints, if it succeeds, or else complains of.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(binary())
            .args(["ctl", "--grpc", &self.address("grpc")])
            .args(arguments)
            .output()
            .expect("ctl runs");
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Status and body of a GET over HTTP.
    pub fn http(&self, path: &str) -> std::io::Result<(u16, String)> {
        let address = self.address("http");
        let mut stream = std::net::TcpStream::connect(&address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        let status = reply.split(' ').nth(1).and_then(|code| code.parse().ok());
        let body = reply.split_once("\r\n\r\n").map(|(_, body)| body);
        let broken = || std::io::Error::other(format!("not an answer: {reply}"));
        Ok((
            status.ok_or_else(broken)?,
            body.ok_or_else(broken)?.to_owned(),
        ))
    }

    /// The members whose name begins with `role`, with the processes that now play them.
    pub fn processes(&self, role: &str) -> Vec<Process> {
        self.eventually("status", || {
            let status = self.status()?;
            let mut processes: Vec<Process> = status["members"]
                .as_array()?
                .iter()
                .filter_map(|member| {
                    Some(Process {
                        name: member["name"].as_str()?.to_owned(),
                        pid: u32::try_from(member["pid"].as_u64()?).ok()?,
                    })
                })
                .filter(|process| process.name.starts_with(role))
                .collect();
            processes.sort_by(|a, b| a.name.cmp(&b.name));
            Some(processes)
        })
    }

    /// Waits until every slot is served and everything is fully replicated.
    pub fn wait_until_ready(&self) {
        self.eventually("readiness", || {
            let status = self.status()?;
            (status["ready"] == Value::Bool(true)).then_some(())
        });
    }

    /// `kill -9` on the whole cluster at once, `dev` first so that it restarts nobody.
    pub fn kill_everything(&mut self) {
        let mut pids: Vec<u32> = Vec::new();
        for role in ["coordinator", "master", "backup", "gateway"] {
            pids.extend(self.processes(role).iter().map(|process| process.pid));
        }
        let mut child = self.child.take().expect("it is running");
        child.kill().expect("kill");
        for pid in pids {
            kill_9(pid);
        }
        child.wait().expect("wait");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        // SIGTERM, so that `dev` ends its children; SIGKILL if it does not.
        let _ = Command::new("kill").arg(child.id().to_string()).status();
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(10) {
            if let Ok(Some(_)) = child.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// `kill -9`; a process that has already ended is fine.
pub fn kill_9(pid: u32) {
    signal(pid, "KILL");
}

/// Sends a signal; a process that has already ended is fine.
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}

/// The binary under test, built by the same cargo run as this test.
pub fn binary() -> &'static Path {
    static BINARY: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    BINARY.get_or_init(|| {
        let test = std::env::current_exe().expect("the path of this test");
        let profile = test
            .parent()
            .and_then(Path::parent)
            .expect("target/PROFILE/deps/TEST");
        let binary = profile.join("holdfast");
        assert!(
            binary.exists(),
            "{} is not built: run `cargo build -p holdfast-server` with the same profile first",
            binary.display()
        );
        binary
    })
}
