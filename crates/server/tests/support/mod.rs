//! What tests of the binary share: a running `dev`, and clients of its faces.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Never decides about speed, only about hanging.
pub const PATIENCE: Duration = Duration::from_secs(40);

pub fn holdfast(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    // The options of whoever runs the tests are not ours.
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("HOLDFAST_") {
            command.env_remove(variable);
        }
    }
    command.args(arguments);
    command
}

/// Runs to its end, which must come.
pub fn run(arguments: &[&str]) -> Output {
    let mut child = holdfast(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("holdfast {arguments:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

/// What a command says when it is refused.
pub fn refused(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// A running `dev`.
pub struct Dev {
    pub child: Child,
    pub ready: Value,
    pub log: std::path::PathBuf,
}

impl Dev {
    pub fn start(dir: &Path, more: &[&str]) -> Dev {
        let ready_file = dir.join("ready.json");
        let log = dir.join("log");
        let _ = std::fs::remove_file(&ready_file);
        let child = holdfast(&[
            "dev",
            "--dir",
            dir.join("data").to_str().unwrap(),
            "--ready-file",
            ready_file.to_str().unwrap(),
            "--memory",
            "64MiB",
            "--segment-bytes",
            "1MiB",
        ])
        .args(["--resp", "127.0.0.1:0", "--resp-cluster", "127.0.0.1:0"])
        .args(["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .args(more)
        .stdout(Stdio::null())
        .stderr(
            std::fs::File::options()
                .create(true)
                .append(true)
                .open(&log)
                .unwrap(),
        )
        .spawn()
        .unwrap();
        let mut dev = Dev {
            child,
            ready: Value::Null,
            log,
        };
        let text = dev.eventually("ready file", || std::fs::read_to_string(&ready_file).ok());
        dev.ready = serde_json::from_str(&text).unwrap();
        dev
    }

    pub fn eventually<T>(&mut self, what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(value) = attempt() {
                return value;
            }
            let ended = self.child.try_wait().unwrap();
            if began.elapsed() > PATIENCE || ended.is_some() {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                panic!("no {what} (ended: {ended:?}); the log:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn address(&self, face: &str) -> &str {
        self.ready[face].as_str().unwrap()
    }

    pub fn redis(&self, words: &[&str]) -> String {
        redis(self.address("resp"), words)
    }

    /// `holdfast …` against this cluster; its standard output.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let mut all = arguments.to_vec();
        all.extend(["--grpc", self.address("grpc")]);
        let output = run(&all);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn kill_9(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; how it ended and how long it took.
    pub fn terminate(&mut self) -> (Option<i32>, Duration) {
        let began = Instant::now();
        Command::new("kill")
            .arg(self.child.id().to_string())
            .status()
            .unwrap();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status.code(), began.elapsed());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("SIGTERM does not end it");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One command over RESP2, its raw reply.
pub fn redis(address: &str, words: &[&str]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    // QUIT makes the server close, so that the reply is all there is to read.
    request.push_str("*1\r\n$4\r\nQUIT\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply.strip_suffix("+OK\r\n").unwrap_or(&reply).to_string()
}

/// Status line and body of a GET.
pub fn http(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_string(), body.to_string())
}

pub fn is_running(pid: u64) -> bool {
    // A zombie has ended; only its parent has not looked yet.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
