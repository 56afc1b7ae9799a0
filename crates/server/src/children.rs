//! `holdfast dev --processes`: every role a child process of its own, so that one can be killed.
//!
//! P1. All addresses are chosen before the first child starts and stay the same, so a child that
//!     died comes back where it was, with the same directory.
//! P2. Children end when this process does, however it ends: each asks the kernel for SIGKILL on its
//!     parent's death (`end_with_parent`), and a clean end sends SIGTERM first.
//! P3. The coordinator is told that nobody is alive only at its first start; when it comes back
//!     after a crash of its own the others are alive.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::error::{Context, Fatal, Outcome};
use crate::http::{self, Shown};
use crate::metrics::Families;
use crate::options::{Ack, DevOptions, LogFormat};
use crate::process::{Signals, address_of, bind};
use crate::ready::{Readiness, ReadyFile};
use crate::roles::{Dev, DirLock, greeting, loopback};
use crate::stream::Stream;
use crate::tls::Tls;

/// How long a dead child stays dead: long enough to see its absence, short enough to forget it.
const RESTART_AFTER: Duration = Duration::from_millis(300);

/// A child that ends sooner than this after its start has failed to start.
const STARTED_AFTER: Duration = Duration::from_secs(2);

/// Failed starts in a row, of one child, after which `dev` gives up.
const FAILED_STARTS_MAX: u32 = 20;

/// Where children's ports are chosen: below those that systems give to outgoing connections (from 32768 on Linux, from
/// 49152 elsewhere). A child binds its port later, and again whenever it is started anew; a connection that had got it
/// meanwhile would keep the child from starting for as long as it lasts.
const CHILD_PORTS: std::ops::Range<u16> = 20_000..32_000;

const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(3);
const READY_POLL: Duration = Duration::from_millis(50);
const ASK_PATIENCE: Duration = Duration::from_secs(1);
/// The longest answer of a child that is read: metrics of many shards are far below it.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Names the parent's process id to a child; see `end_with_parent`.
const PARENT_VARIABLE: &str = "HOLDFAST_PARENT_PID";

/// One child, as it is started each time.
#[derive(Clone, Debug)]
struct Role {
    name: String,
    arguments: Vec<String>,
    /// Added at the first start only.
    first_arguments: Vec<String>,
    http: SocketAddr,
    /// Ends before the others at a clean end: it serves clients.
    servant: bool,
}

/// The children as HTTP shows them: all of them together.
struct Family {
    roles: Vec<(String, SocketAddr)>,
    tls: Option<Arc<Tls>>,
}

/// Process ids of the running children, by role.
type Pids = Arc<Mutex<Vec<Option<u32>>>>;

/// Runs `dev` with a process per role until a signal ends it.
pub fn run(options: DevOptions) -> Outcome<()> {
    let mut dev = Dev::resolve(&options)?;
    let _lock = DirLock::take(&dev.dir)?;
    dev.make_certificates(&options)?;
    let tls = Tls::load_some(dev.tls.clone())?;
    let http = bind("http", dev.http)?;
    let (roles, mut addresses) = roles(&dev, &options)?;
    addresses.http = Some(address_of(&http).to_string());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context(|| "cannot start tokio".to_string())?;
    let result = runtime.block_on(supervise(roles, addresses, (http, tls), &options, &dev));
    runtime.shutdown_background();
    result
}

/// Called by a process that may be a child of `run`: makes it end with its parent (P2).
pub fn end_with_parent() -> Outcome<()> {
    let Ok(parent) = std::env::var(PARENT_VARIABLE) else {
        return Ok(());
    };
    set_parent_process_death_signal(Some(Signal::KILL))
        .context(|| "cannot ask to end with the parent process".to_string())?;
    // The parent may have ended before the kernel was asked.
    let now = getppid().map(|pid| pid.as_raw_nonzero().to_string());
    if now.as_deref() == Some(parent.as_str()) {
        Ok(())
    } else {
        Err(Fatal::new("the parent process has ended"))
    }
}

async fn supervise(
    roles: Vec<Role>,
    addresses: ReadyFile,
    (http, tls): (TcpListener, Option<Arc<Tls>>),
    options: &DevOptions,
    dev: &Dev,
) -> Outcome<()> {
    let began = Instant::now();
    let mut signals = Signals::listen()?;
    let pids: Pids = Arc::new(Mutex::new(vec![None; roles.len()]));
    let family = Arc::new(Family {
        roles: roles
            .iter()
            .map(|role| (role.name.clone(), role.http))
            .collect(),
        tls: tls.clone(),
    });
    let (failed, mut failure) = tokio::sync::mpsc::channel::<Fatal>(1);
    let mut keepers = Vec::new();
    for (index, role) in roles.iter().cloned().enumerate() {
        let (pids, failed) = (pids.clone(), failed.clone());
        keepers.push(tokio::spawn(async move {
            if let Err(fatal) = keep_alive(role, index, &pids).await {
                let _ = failed.send(fatal).await;
            }
        }));
    }
    let serving = http::serve(http, tls, family.clone());
    tokio::spawn(async move {
        if let Err(fatal) = serving.await {
            let _ = failed.send(fatal).await;
        }
    });

    let mut told: Option<ReadyFile> = None;
    let outcome = loop {
        tokio::select! {
            name = signals.received() => {
                tracing::info!("{name}: shutting down");
                break Ok(());
            }
            Some(fatal) = failure.recv() => break Err(fatal),
            // Looked at for ever: the file follows children that come back under other process ids.
            () = tokio::time::sleep(if told.is_none() { READY_POLL } else { 5 * READY_POLL }) => {
                let readiness = family.readiness().await;
                if !readiness.ready {
                    continue;
                }
                let file = ReadyFile { processes: readiness.members, ..addresses.clone() };
                if told.as_ref() == Some(&file) {
                    continue;
                }
                if let Some(path) = &options.ready_file
                    && let Err(fatal) = file.write(path)
                {
                    break Err(fatal);
                }
                if told.is_none() {
                    tracing::info!("ready after {} ms", began.elapsed().as_millis());
                    println!("{}", greeting(&file, dev));
                }
                told = Some(file);
            }
        }
    };
    for keeper in &keepers {
        keeper.abort();
    }
    end(&roles, &pids).await;
    outcome
}

/// Starts `role`, and again whenever it ends.
async fn keep_alive(role: Role, index: usize, pids: &Pids) -> Outcome<()> {
    let mut failed_starts = 0;
    let mut first = true;
    loop {
        let began = Instant::now();
        let mut child = start(&role, first)?;
        set_pid(pids, index, child.id());
        first = false;
        let status = child
            .wait()
            .await
            .context(|| format!("cannot wait for {}", role.name))?;
        set_pid(pids, index, None);
        failed_starts = if began.elapsed() < STARTED_AFTER {
            failed_starts + 1
        } else {
            0
        };
        if failed_starts > FAILED_STARTS_MAX {
            return Err(Fatal::new(format!(
                "{} does not start: {}",
                role.name,
                how(status)
            )));
        }
        tracing::warn!("{} ended ({}); it is started again", role.name, how(status));
        tokio::time::sleep(RESTART_AFTER).await;
    }
}

fn start(role: &Role, first: bool) -> Outcome<Child> {
    let program = std::env::current_exe().context(|| "cannot find our own program".to_string())?;
    let mut command = Command::new(program);
    command.args(&role.arguments);
    if first {
        command.args(&role.first_arguments);
    }
    // What our environment says was meant for `dev`; the arguments carry what concerns the child.
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("HOLDFAST_") {
            command.env_remove(variable);
        }
    }
    command.env(PARENT_VARIABLE, std::process::id().to_string());
    // A group of its own: Ctrl-C reaches us alone, and we end the children in order.
    command.process_group(0);
    command.stdin(std::process::Stdio::null());
    command.stdout(std::process::Stdio::null());
    command
        .spawn()
        .context(|| format!("cannot start {}", role.name))
}

fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(signal) => format!("killed by signal {signal}"),
        None => format!("exit code {}", status.code().unwrap_or_default()),
    }
}

fn set_pid(pids: &Pids, index: usize, pid: Option<u32>) {
    pids.lock().unwrap_or_else(PoisonError::into_inner)[index] = pid;
}

/// SIGTERM to those who serve clients, then to the others, then SIGKILL to whoever is left. The
/// keepers have been stopped: nobody is started again.
async fn end(roles: &[Role], pids: &Pids) {
    let running: Vec<(bool, Pid)> = {
        let pids = pids.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = |pid: u32| Pid::from_raw(pid.try_into().ok()?);
        roles
            .iter()
            .zip(pids.iter())
            .filter_map(|(role, id)| Some((role.servant, pid((*id)?)?)))
            .collect()
    };
    for servants in [true, false] {
        let these: Vec<Pid> = running
            .iter()
            .filter(|(servant, _)| *servant == servants)
            .map(|(_, pid)| *pid)
            .collect();
        for pid in &these {
            let _ = kill_process(*pid, Signal::TERM);
        }
        let deadline = Instant::now() + SHUTDOWN_PATIENCE;
        for pid in these {
            while is_running(pid) && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if is_running(pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// True until the child has ended (its remains are collected here).
fn is_running(pid: Pid) -> bool {
    use rustix::process::{WaitOptions, waitpid};
    matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None))
}

/// Takes `address`; for port 0 a free one of `CHILD_PORTS`, or any other if there is none.
fn bind_for_child(flag: &str, address: SocketAddr) -> Outcome<TcpListener> {
    if address.port() != 0 {
        return bind(flag, address);
    }
    let ports = CHILD_PORTS.len() as u32;
    // Clusters that start at the same time begin in different places.
    let begin = std::process::id().wrapping_mul(97) % ports;
    (0..ports)
        .map(|i| CHILD_PORTS.start + ((begin + i) % ports) as u16)
        .find_map(|port| bind(flag, SocketAddr::new(address.ip(), port)).ok())
        .map_or_else(|| bind(flag, address), Ok)
}

/// Every role's arguments (P1), and the addresses of the faces.
fn roles(dev: &Dev, options: &DevOptions) -> Outcome<(Vec<Role>, ReadyFile)> {
    // All chosen ports stay taken until the last is chosen, so that no two are the same.
    let mut taken = Vec::new();
    let mut choose = |flag: &str, address: SocketAddr| -> Outcome<SocketAddr> {
        let listener = bind_for_child(flag, address)?;
        let address = address_of(&listener);
        taken.push(listener);
        Ok(address)
    };
    let resp = choose("resp", dev.resp)?;
    let mut cluster_ports = Vec::new();
    for master in 0..dev.masters {
        for shard in 0..dev.shards {
            let port = match dev.resp_cluster.port() {
                0 => 0,
                first => u16::try_from(u32::from(first) + master * dev.shards + shard)
                    .map_err(|_| Fatal::new("--resp-cluster: too high for so many shards"))?,
            };
            cluster_ports.push(choose(
                "resp-cluster",
                SocketAddr::new(dev.resp_cluster.ip(), port),
            )?);
        }
    }
    let grpc = choose("grpc", dev.grpc)?;
    let coordinator = choose("listen", dev.listen)?;
    let admin = choose("grpc", loopback(0))?;
    let mut free = || choose("http", loopback(0));

    let secret = path_argument(dev.secret_path()?)?;
    let mut general = vec!["--cluster-secret-file".to_string(), secret];
    if let Some(tls) = &dev.tls {
        for (flag, path) in [
            ("tls-cert", &tls.cert),
            ("tls-key", &tls.key),
            ("tls-ca", &tls.ca),
        ] {
            general.extend(words(&[(flag, path_argument(path.clone())?)]));
        }
        general.extend(words(&[("tls-clients", tls.clients.name().to_string())]));
    }
    if let Some(level) = &options.log_level {
        general.extend(["--log-level".to_string(), level.clone()]);
    }
    if options.log == Some(LogFormat::Json) {
        general.extend(["--log".to_string(), "json".to_string()]);
    }
    let password = match &options.password_file {
        Some(path) => vec!["--password-file".to_string(), path_argument(path.clone())?],
        None => vec![],
    };
    let segment_bytes = dev.segment_bytes.to_string();
    let dir = |name: &str| path_argument(dev.dir.join(name));

    let mut roles = Vec::new();
    {
        let http = free()?;
        let mut arguments = words(&[
            ("listen", coordinator.to_string()),
            ("dir", dir("coordinator")?),
            ("replicas", dev.replicas.to_string()),
            ("initial-shards", (dev.masters * dev.shards).to_string()),
            ("grpc", admin.to_string()),
            ("http", http.to_string()),
        ]);
        if let Some(quorum) = dev.ack_quorum {
            arguments.extend(words(&[("ack-quorum", quorum.to_string())]));
        }
        if let Some(ack) = options.ack {
            let ack = if ack == Ack::Disk { "disk" } else { "memory" };
            arguments.extend(words(&[("ack", ack.to_string())]));
        }
        for (flag, value) in [
            ("lease-ms", options.lease_ms),
            ("confirm-ms", options.confirm_ms),
            ("dead-ms", options.dead_ms),
        ] {
            if let Some(value) = value {
                arguments.extend(words(&[(flag, value.to_string())]));
            }
        }
        for namespace in options.namespace.iter().flatten() {
            arguments.extend(["--namespace".to_string(), namespace.to_string()]);
        }
        arguments.insert(0, "coordinator".to_string());
        arguments.extend(password.clone());
        roles.push(Role {
            name: "coordinator".to_string(),
            arguments,
            first_arguments: vec!["--cold-start".to_string()],
            http,
            servant: false,
        });
    }
    for number in 1..=dev.backups {
        let name = format!("backup-{number}");
        let http = free()?;
        let disk = u64::from(dev.frames) * u64::from(dev.segment_bytes);
        let mut arguments = words(&[
            ("coordinator", coordinator.to_string()),
            ("listen", free()?.to_string()),
            ("dir", dir(&name)?),
            ("disk", disk.to_string()),
            ("segment-bytes", segment_bytes.clone()),
            ("scrub-hours", (dev.scrub_ms as f64 / 3.6e6).to_string()),
            ("http", http.to_string()),
            ("name", name.clone()),
        ]);
        arguments.insert(0, "backup".to_string());
        roles.push(Role {
            name,
            arguments,
            first_arguments: vec![],
            http,
            servant: false,
        });
    }
    for number in 1..=dev.masters {
        let name = format!("master-{number}");
        let http = free()?;
        let first_port = cluster_ports[((number - 1) * dev.shards) as usize];
        let mut arguments = words(&[
            ("coordinator", coordinator.to_string()),
            ("listen", free()?.to_string()),
            ("shards", dev.shards.to_string()),
            ("memory", dev.memory.to_string()),
            ("touch-memory", dev.touch_memory.to_string()),
            ("segment-bytes", segment_bytes.clone()),
            ("value-bytes-max", dev.value_bytes_max.to_string()),
            ("resp-cluster", first_port.to_string()),
            ("http", http.to_string()),
            ("name", name.clone()),
        ]);
        arguments.insert(0, "master".to_string());
        arguments.extend(password.clone());
        arguments.extend(options.client_flags());
        roles.push(Role {
            name,
            arguments,
            first_arguments: vec![],
            http,
            servant: true,
        });
    }
    {
        let http = free()?;
        let mut arguments = words(&[
            ("coordinator", coordinator.to_string()),
            ("resp", resp.to_string()),
            ("grpc", grpc.to_string()),
            ("http", http.to_string()),
            ("admin", admin.to_string()),
            ("value-bytes-max", dev.value_bytes_max.to_string()),
            ("name", "gateway-1".to_string()),
        ]);
        arguments.insert(0, "gateway".to_string());
        arguments.extend(password.clone());
        if let Some(retry_ms) = options.retry_ms {
            arguments.extend(words(&[("retry-ms", retry_ms.to_string())]));
        }
        arguments.extend(options.client_flags());
        roles.push(Role {
            name: "gateway-1".to_string(),
            arguments,
            first_arguments: vec![],
            http,
            servant: true,
        });
    }
    for role in &mut roles {
        role.arguments.extend(general.clone());
    }
    let addresses = ReadyFile {
        resp: Some(resp.to_string()),
        resp_cluster: cluster_ports.iter().map(SocketAddr::to_string).collect(),
        grpc: Some(grpc.to_string()),
        http: None,
        processes: Vec::new(),
    };
    Ok((roles, addresses))
}

fn words(flags: &[(&str, String)]) -> Vec<String> {
    flags
        .iter()
        .flat_map(|(flag, value)| [format!("--{flag}"), value.clone()])
        .collect()
}

fn path_argument(path: PathBuf) -> Outcome<String> {
    let shown = path.display().to_string();
    path.into_os_string()
        .into_string()
        .map_err(|_| Fatal::new(format!("{shown}: choose a path that is UTF-8")))
}

impl Shown for Family {
    fn readiness(&self) -> std::pin::Pin<Box<dyn Future<Output = Readiness> + Send>> {
        let (roles, tls) = (self.roles.clone(), self.tls.clone());
        Box::pin(async move {
            let mut all = Readiness {
                ready: true,
                ..Readiness::default()
            };
            for (name, http) in roles {
                let answer = get(http, tls.as_deref(), "/readyz").await;
                match answer.and_then(|body| serde_json::from_str(&body).ok()) {
                    Some(one) => all.absorb(one),
                    None => all.absorb(Readiness {
                        ready: false,
                        reasons: vec![format!("{name} does not answer")],
                        members: vec![],
                    }),
                }
            }
            all
        })
    }

    fn metrics(&self) -> std::pin::Pin<Box<dyn Future<Output = String> + Send>> {
        let (roles, tls) = (self.roles.clone(), self.tls.clone());
        Box::pin(async move {
            let mut families = Families::of_process("dev", &[]);
            for (_, http) in roles {
                if let Some(text) = get(http, tls.as_deref(), "/metrics").await {
                    families.absorb(&text);
                }
            }
            families.text()
        })
    }
}

/// The body of a GET to one of our children, whatever its status; `None` if it does not answer.
async fn get(address: SocketAddr, tls: Option<&Tls>, path: &str) -> Option<String> {
    let asking = async {
        // One of our children, whatever name its certificate has.
        let mut stream = Stream::dial_member(&address.to_string(), tls).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: dev\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        stream.flush().await.ok()?;
        let mut answer = String::new();
        stream
            .take(ANSWER_BYTES_MAX)
            .read_to_string(&mut answer)
            .await
            .ok()?;
        // Our own server gives every one of these a length, so the body is what follows the head.
        let (_, body) = answer.split_once("\r\n\r\n")?;
        Some(body.to_string())
    };
    tokio::time::timeout(ASK_PATIENCE, asking)
        .await
        .ok()
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_children_are_none_that_connections_get() {
        let first = bind_for_child("http", loopback(0)).unwrap();
        let second = bind_for_child("http", loopback(0)).unwrap();
        let ports = [first, second].map(|it| address_of(&it).port());
        assert_ne!(ports[0], ports[1]);
        assert!(ports.iter().all(|port| CHILD_PORTS.contains(port)));
        let taken = bind_for_child("http", loopback(ports[0])).unwrap();
        assert_eq!(address_of(&taken).port(), ports[0], "as it was asked for");
    }
}
