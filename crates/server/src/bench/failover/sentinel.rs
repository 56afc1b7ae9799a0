//! Redis as its users run it for failover: a master, a replica, and three Sentinels that promote it.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::super::clients::Endpoint;
use super::super::local::{Failure, PATIENCE};
use super::super::replies::{Connection, Reply};

const NAME: &str = "sessions";
const SENTINELS: usize = 3;

/// Running servers, ended when dropped.
#[derive(Debug)]
pub struct Pair {
    master: Server,
    /// Ended with the rest.
    _replica: Server,
    _sentinels: Vec<Server>,
    sentinels: Vec<String>,
}

#[derive(Debug)]
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The version, if there is a `redis-server`.
pub fn version() -> Option<String> {
    let output = Command::new("redis-server").arg("--version").output();
    let text = String::from_utf8(output.ok()?.stdout).ok()?;
    let version = text.split_whitespace().find_map(|it| it.strip_prefix("v="));
    version.map(str::to_owned)
}

impl Pair {
    /// Starts everything in `dir` and waits until the replica follows and every Sentinel knows of it and of the others.
    pub async fn start(dir: &Path, down_after_ms: u32) -> Result<Pair, Failure> {
        let ports = free_ports(2 + SENTINELS)?;
        let (master_port, replica_port) = (ports[0], ports[1]);
        let master = start(dir, "master", master_port, &[], None)?;
        let following = format!("127.0.0.1 {master_port}");
        let replica = start(
            dir,
            "replica",
            replica_port,
            &["--replicaof", &following],
            None,
        )?;
        until("the replica follows", || async {
            let info = info(replica_port, "replication").await?;
            Ok(info.contains("master_link_status:up"))
        })
        .await?;
        let rules = format!(
            "sentinel monitor {NAME} 127.0.0.1 {master_port} 2\n\
             sentinel down-after-milliseconds {NAME} {down_after_ms}\n\
             sentinel failover-timeout {NAME} 10000\n\
             sentinel parallel-syncs {NAME} 1\n"
        );
        let mut sentinels = Vec::new();
        for (number, &port) in ports[2..].iter().enumerate() {
            let name = format!("sentinel-{number}");
            sentinels.push(start(dir, &name, port, &["--sentinel"], Some(&rules))?);
        }
        for &port in &ports[2..] {
            let wanted = format!("slaves=1,sentinels={SENTINELS}");
            until("the Sentinels know each other", || async {
                Ok(info(port, "sentinel").await?.contains(&wanted))
            })
            .await?;
        }
        Ok(Pair {
            master,
            _replica: replica,
            _sentinels: sentinels,
            sentinels: ports[2..]
                .iter()
                .map(|port| format!("127.0.0.1:{port}"))
                .collect(),
        })
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Sentinels {
            addresses: self.sentinels.clone(),
            name: NAME,
        }
    }

    pub fn master_pid(&self) -> u32 {
        self.master.0.id()
    }
}

fn start(
    dir: &Path,
    name: &str,
    port: u16,
    more: &[&str],
    rules: Option<&str>,
) -> Result<Server, Failure> {
    let dir = dir.join(name);
    std::fs::create_dir_all(&dir)?;
    let log = std::fs::File::create(dir.join("log"))?;
    let mut command = Command::new("redis-server");
    if let Some(rules) = rules {
        // Sentinels rewrite their configuration, so it must be a file.
        let path = dir.join("sentinel.conf");
        std::fs::write(&path, rules)?;
        command.arg(path);
    }
    let child = command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .arg("--dir")
        .arg(&dir)
        .args(if rules.is_none() {
            &["--save", "", "--appendonly", "no"][..]
        } else {
            &[]
        })
        .args(more)
        .stdout(log)
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("redis-server does not start: {error}"))?;
    Ok(Server(child))
}

async fn info(port: u16, section: &str) -> Result<String, Failure> {
    let mut connection = Connection::open(&format!("127.0.0.1:{port}")).await?;
    match connection.ask(&[b"INFO", section.as_bytes()]).await? {
        Reply::Bulk(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
        other => Err(format!("INFO is answered {other:?}").into()),
    }
}

async fn until<F: Future<Output = Result<bool, Failure>>>(
    what: &str,
    mut is_so: impl FnMut() -> F,
) -> Result<(), Failure> {
    let began = Instant::now();
    while !is_so().await.unwrap_or(false) {
        if began.elapsed() > PATIENCE {
            return Err(format!("it did not come about that {what}").into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// All different, because all are taken until the last is chosen.
fn free_ports(count: usize) -> std::io::Result<Vec<u16>> {
    let taken: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<std::io::Result<_>>()?;
    taken
        .iter()
        .map(|listener| Ok(listener.local_addr()?.port()))
        .collect()
}
