//! Holdfast and its peers as processes of their own, on free ports, without files that outlive them.
//!
//! Redis and Valkey run without persistence, memcached with one thread and without evicting: all keep just
//! what they are given, in memory, as `--replicas 0` does. Peers that are not installed are left out.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::{Client, Dialect};
use crate::process::{Process, START_PATIENCE, Usage, free_address, on_path};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Holdfast,
    Redis,
    RedisDefrag,
    Valkey,
    ValkeyDefrag,
    Memcached,
}

/// A server under load; ends, with everything it kept, when dropped.
#[derive(Debug)]
pub struct Server {
    pub kind: Kind,
    pub address: SocketAddr,
    /// Keeps the sessions.
    main: Process,
    /// Its coordinator and backups.
    others: Vec<Process>,
    http: Option<SocketAddr>,
    _dir: tempfile::TempDir,
}

impl Kind {
    pub const ALL: [Kind; 6] = [
        Kind::Holdfast,
        Kind::Redis,
        Kind::RedisDefrag,
        Kind::Valkey,
        Kind::ValkeyDefrag,
        Kind::Memcached,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Holdfast => "Holdfast",
            Kind::Redis => "Redis",
            Kind::RedisDefrag => "Redis, defrag",
            Kind::Valkey => "Valkey",
            Kind::ValkeyDefrag => "Valkey, defrag",
            Kind::Memcached => "memcached",
        }
    }

    pub fn dialect(self) -> Dialect {
        match self {
            Kind::Memcached => Dialect::Memcache,
            _ => Dialect::Resp,
        }
    }
}

/// How Holdfast is started; peers take of it what applies to them.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Holdfast's hard bound. The peers are not bounded, but memcached wants to know.
    pub memory_bytes: u64,
    pub touch_memory: bool,
    /// Replicas, each on a backup of its own. Peers have none.
    pub replicas: u8,
}

impl Server {
    /// `None` if it is not installed.
    pub fn start(kind: Kind, setup: &Setup) -> Result<Option<Server>, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let address = free_address();
        let port = address.port().to_string();
        let words = |words: &[&str]| -> Vec<String> { words.iter().map(|&it| it.into()).collect() };
        let (program, arguments) = match kind {
            Kind::Holdfast => return Server::holdfast(setup, dir).map(Some),
            Kind::Redis | Kind::RedisDefrag | Kind::Valkey | Kind::ValkeyDefrag => {
                let program = match kind {
                    Kind::Redis | Kind::RedisDefrag => "redis-server",
                    _ => "valkey-server",
                };
                let defrag = matches!(kind, Kind::RedisDefrag | Kind::ValkeyDefrag);
                let mut arguments = words(&["--port", &port, "--bind", "127.0.0.1"]);
                arguments.extend(words(&["--save", "", "--appendonly", "no"]));
                arguments.extend(words(&[
                    "--activedefrag",
                    if defrag { "yes" } else { "no" },
                ]));
                arguments.extend(["--dir".to_string(), dir.path().display().to_string()]);
                (program, arguments)
            }
            Kind::Memcached => {
                let megabytes = ((setup.memory_bytes * 4) >> 20).to_string();
                let arguments = words(&[
                    "-p",
                    &port,
                    "-l",
                    "127.0.0.1",
                    "-m",
                    &megabytes,
                    "-M",
                    "-t",
                    "1",
                    "-u",
                    "root",
                ]);
                ("memcached", arguments)
            }
        };
        let Some(program) = on_path(program) else {
            return Ok(None);
        };
        let log = dir.path().join("log");
        let mut main = Process::start(&program, &arguments, &log).map_err(|it| it.to_string())?;
        main.wait_for(address)?;
        Ok(Some(Server {
            kind,
            address,
            main,
            others: Vec::new(),
            http: None,
            _dir: dir,
        }))
    }

    fn holdfast(setup: &Setup, dir: tempfile::TempDir) -> Result<Server, String> {
        let program = holdfast_program()?;
        let member = free_address();
        let mut others = Vec::new();
        let start = |name: &str, arguments: String| -> Result<Process, String> {
            let home = dir.path().join(name);
            let mut all: Vec<String> = arguments.split(' ').map(str::to_string).collect();
            all.extend(["--ready-file".to_string(), ready_file(dir.path(), name)]);
            if !name.starts_with("master") {
                all.extend(["--dir".to_string(), home.display().to_string()]);
            }
            let log = dir.path().join(format!("{name}.log"));
            Process::start(&program, &all, &log).map_err(|error| error.to_string())
        };
        let replicas = setup.replicas;
        // Benchmarks starve their own servers: none shall be declared dead for it, which without replicas
        // would empty it.
        let arguments = format!(
            "coordinator --listen {member} --grpc 127.0.0.1:0 --replicas {replicas} --initial-shards 1 \
             --dead-ms 60000 --confirm-ms 60000"
        );
        let mut coordinator = start("coordinator", arguments)?;
        coordinator.wait_for(member)?;
        others.push(coordinator);
        for number in 0..replicas {
            let disk = setup.memory_bytes * 4;
            let arguments =
                format!("backup --coordinator {member} --listen 127.0.0.1:0 --disk {disk}");
            others.push(start(&format!("backup-{number}"), arguments)?);
        }
        let (memory, touch) = (setup.memory_bytes, setup.touch_memory);
        let arguments = format!(
            "master --coordinator {member} --listen 127.0.0.1:0 --shards 1 --memory {memory} \
             --touch-memory {touch} --resp 127.0.0.1:0 --resp-cluster 127.0.0.1:0 --http 127.0.0.1:0"
        );
        let mut main = start("master", arguments)?;
        let ready = wait_for_ready_file(&mut main, &ready_file(dir.path(), "master"))?;
        let face = |name: &str| -> Result<SocketAddr, String> {
            let address = ready[name].as_str().and_then(|text| text.parse().ok());
            address.ok_or_else(|| format!("the ready file names no {name}: {ready}"))
        };
        let mut server = Server {
            kind: Kind::Holdfast,
            address: face("resp")?,
            main,
            others,
            http: Some(face("http")?),
            _dir: dir,
        };
        server.wait_until_it_stores()?;
        Ok(server)
    }

    /// Slots are dealt out and enough backups there once a write is taken.
    fn wait_until_it_stores(&mut self) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let mut stored = false;
            let mut said = String::new();
            let mut client = self.client()?;
            client.set(b"ready?", b"yes", Some(1));
            let exchange = client.exchange(|_, reply| {
                stored = reply == crate::client::Reply::Done;
                said = format!("{reply:?}");
            });
            match exchange {
                Ok(()) if stored => return Ok(()),
                _ if began.elapsed() > START_PATIENCE => {
                    return Err(format!("it stores nothing: {said}"));
                }
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
            if let Some(words) = self.main.last_words() {
                return Err(words);
            }
        }
    }

    pub fn client(&self) -> Result<Client, String> {
        Client::connect(self.address, self.kind.dialect()).map_err(|error| error.to_string())
    }

    /// Of the process that keeps the sessions.
    pub fn usage(&self) -> Usage {
        self.main.usage()
    }

    pub fn forget_peak(&self) {
        self.main.forget_peak();
    }

    pub fn pid(&self) -> u32 {
        self.main.pid()
    }

    /// Coordinator and backups together; they need not run on the same machine.
    pub fn resident_bytes_of_others(&self) -> u64 {
        self.others.iter().map(|it| it.usage().resident_bytes).sum()
    }

    /// Sessions that Holdfast has; `None` for peers.
    pub fn sessions(&self) -> Option<u64> {
        Some(self.metric("holdfast_shard_sessions")? as u64)
    }

    /// A figure of Holdfast's `/metrics`, summed over its shards; `None` for peers and unknown names.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let mut stream = TcpStream::connect(self.http?).ok()?;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let samples: Vec<f64> = text
            .lines()
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with('{'))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        (!samples.is_empty()).then(|| samples.iter().sum())
    }
}

/// The release binary, built if it is not up to date. `HOLDFAST_PROGRAM` names another one.
pub fn holdfast_program() -> Result<PathBuf, String> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    PROGRAM.get_or_init(find_program).clone()
}

fn find_program() -> Result<PathBuf, String> {
    if let Some(program) = std::env::var_os("HOLDFAST_PROGRAM") {
        return Ok(program.into());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let built = std::process::Command::new(cargo)
        .args(["build", "--release", "--quiet", "-p", "holdfast-server"])
        .current_dir(workspace)
        .status()
        .map_err(|error| format!("cannot build holdfast: {error}"))?;
    if !built.success() {
        return Err("holdfast could not be built".to_string());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(workspace).join("target"));
    Ok(target.join("release").join("holdfast"))
}

fn ready_file(dir: &Path, name: &str) -> String {
    dir.join(format!("{name}.ready")).display().to_string()
}

fn wait_for_ready_file(process: &mut Process, path: &str) -> Result<Value, String> {
    let began = Instant::now();
    loop {
        if let Ok(text) = std::fs::read_to_string(path)
            && let Ok(ready) = serde_json::from_str(&text)
        {
            return Ok(ready);
        }
        if let Some(words) = process.last_words() {
            return Err(words);
        }
        if began.elapsed() > START_PATIENCE {
            return Err("it did not become ready".to_string());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
