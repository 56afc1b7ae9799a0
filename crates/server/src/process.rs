//! One process of a cluster: host threads, faces, readiness, signals.
//!
//! The main thread serves HTTP and waits for signals; nodes live on host threads. gRPC is served on the gateway's, or
//! where there is none on the main thread.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::error::{Context, Fatal, Outcome};
use crate::grpc;
use crate::host::{Errand, Host, HostPlan, World};
use crate::http::{self, Shown};
use crate::inbox::{Letter, Phase};
use crate::metrics::Families;
use crate::ready::{Readiness, ReadyFile};
use crate::seat::SeatPlan;
use crate::tls::{self, Tls};

/// How long a phase of a clean shutdown may take. What was acknowledged is safe in any case, so a
/// node that cannot finish (its backups may be gone) must not hold up the end.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(1);

/// How often the kernel is asked for the huge pages of the process.
const HUGE_PAGES_EVERY: Duration = Duration::from_secs(10);

/// How often readiness is looked at while starting.
const READY_POLL: Duration = Duration::from_millis(10);

/// A process to be run.
#[derive(Debug)]
pub struct Process {
    /// For metrics and logs.
    pub name: String,
    pub hosts: Vec<HostPlan>,
    pub world: World,
    pub grpc: Option<TcpListener>,
    pub http: Option<TcpListener>,
    /// Who answers `ctl status`.
    pub admin: grpc::Admin,
    /// What gRPC clients must give.
    pub password: Option<String>,
    pub value_bytes_max: u32,
    /// Most gRPC connections.
    pub clients_max: usize,
    /// Addresses for the ready file.
    pub addresses: ReadyFile,
    pub ready_file: Option<PathBuf>,
    /// Told to people once ready.
    pub greeting: Option<String>,
}

/// What HTTP shows of this process.
struct Mine {
    name: String,
    world: Arc<World>,
}

impl Process {
    /// Runs until a signal ends it.
    pub fn run(self) -> Outcome<()> {
        raise_file_limit();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context(|| "cannot start tokio".to_string())?;
        let result = runtime.block_on(self.serve());
        runtime.shutdown_background();
        result
    }

    async fn serve(self) -> Outcome<()> {
        let began = Instant::now();
        let mut stop = Signals::listen()?;
        let world = Arc::new(self.world);
        let (failed, mut failure) = tokio::sync::mpsc::channel::<Fatal>(1);
        let mut grpc = self.grpc.map(|listener| {
            let face = grpc::Face {
                world: world.clone(),
                gateway: None,
                admin: self.admin,
                password: self.password,
                value_bytes_max: self.value_bytes_max,
                connections_max: self.clients_max,
            };
            (listener, face)
        });
        let mut hosts = Vec::new();
        for plan in self.hosts {
            let has_gateway = plan
                .seats
                .iter()
                .any(|seat| matches!(seat, SeatPlan::Gateway { .. }));
            let errand = match has_gateway {
                true => grpc.take().map(|grpc| beside_gateway(grpc, failed.clone())),
                false => None,
            };
            hosts.push(Host::start(plan, errand, world.clone())?);
        }
        let mine = Arc::new(Mine {
            name: self.name.clone(),
            world: world.clone(),
        });
        if let Some(tls) = world.tls.clone() {
            tokio::spawn(keep_certificates(tls, Signals::hangup()?));
        }
        if let Some(listener) = self.http {
            let failed = failed.clone();
            let serving = http::serve(listener, world.tls.clone(), mine.clone());
            tokio::spawn(async move {
                if let Err(fatal) = serving.await {
                    let _ = failed.send(fatal).await;
                }
            });
        }
        // Where there is no gateway it is about administration alone.
        if let Some((listener, face)) = grpc {
            let failed = failed.clone();
            tokio::spawn(async move {
                if let Err(fatal) = face.serve(listener).await {
                    let _ = failed.send(fatal).await;
                }
            });
        }

        tokio::spawn({
            let world = world.clone();
            async move {
                loop {
                    world.held.look();
                    tokio::time::sleep(HUGE_PAGES_EVERY).await;
                }
            }
        });

        let becoming_ready = async {
            let mut readiness = mine.readiness().await;
            while !readiness.ready {
                tokio::time::sleep(READY_POLL).await;
                readiness = mine.readiness().await;
            }
            let mut file = self.addresses;
            file.processes = readiness.members;
            file
        };
        tokio::pin!(becoming_ready);
        let mut is_ready = false;
        let outcome = loop {
            tokio::select! {
                name = stop.received() => {
                    tracing::info!("{name}: shutting down");
                    break Ok(());
                }
                Some(fatal) = failure.recv() => break Err(fatal),
                file = &mut becoming_ready, if !is_ready => {
                    is_ready = true;
                    tracing::info!("ready after {} ms", began.elapsed().as_millis());
                    if let Some(path) = &self.ready_file
                        && let Err(fatal) = file.write(path)
                    {
                        break Err(fatal);
                    }
                    if let Some(greeting) = &self.greeting {
                        println!("{greeting}");
                    }
                }
            }
        };
        for phase in [Phase::Servants, Phase::Keepers] {
            let mut stopping = Vec::new();
            for host in &hosts {
                let (reply, stopped) = oneshot::channel();
                host.inbox.post(Letter::Shutdown { phase, reply });
                stopping.push(stopped);
            }
            let all = async {
                for stopped in stopping {
                    let _ = stopped.await;
                }
            };
            if tokio::time::timeout(SHUTDOWN_PATIENCE, all).await.is_err() {
                tracing::warn!("some members did not stop in time; ending anyway");
            }
        }
        outcome
    }
}

/// Serves gRPC on the gateway's own thread: a call that crossed threads would wake two of them, which costs more
/// than all the rest of it.
fn beside_gateway(
    (listener, face): (TcpListener, grpc::Face),
    failed: tokio::sync::mpsc::Sender<Fatal>,
) -> Errand {
    Box::new(move |inbox| {
        let face = grpc::Face {
            gateway: Some(inbox),
            ..face
        };
        Box::pin(async move {
            if let Err(fatal) = face.serve(listener).await {
                let _ = failed.send(fatal).await;
            }
        })
    })
}

impl Shown for Mine {
    fn readiness(&self) -> std::pin::Pin<Box<dyn Future<Output = Readiness> + Send>> {
        let world = self.world.clone();
        Box::pin(async move { Readiness::of(&world.switchboard.reports().await) })
    }

    fn metrics(&self) -> std::pin::Pin<Box<dyn Future<Output = String> + Send>> {
        let (name, world) = (self.name.clone(), self.world.clone());
        Box::pin(async move {
            let mut families = Families::of_process(&name, &world.switchboard.reports().await);
            if let Some(tls) = &world.tls {
                families.add_tls(&name, tls.reloads());
            }
            families.text()
        })
    }
}

/// Takes new certificates on SIGHUP and when their files change. One that cannot be used is told once.
async fn keep_certificates(tls: Arc<Tls>, mut hangup: tokio::signal::unix::Signal) {
    let mut told = String::new();
    loop {
        let asked = tokio::select! {
            _ = hangup.recv() => true,
            () = tokio::time::sleep(tls::RELOAD_EVERY) => false,
        };
        match tls.reload() {
            Ok(changed) => {
                told.clear();
                if changed {
                    tracing::info!("TLS: new certificates are in use for new connections");
                } else if asked {
                    tracing::info!("TLS: the certificates have not changed");
                }
            }
            Err(fatal) => {
                let why = fatal.to_string();
                if asked || why != told {
                    tracing::error!("TLS: the old certificates stay in use: {why}");
                }
                told = why;
            }
        }
    }
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    pub fn listen() -> Outcome<Signals> {
        let what = || "cannot listen for signals".to_string();
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).context(what)?,
            interrupt: signal(SignalKind::interrupt()).context(what)?,
        })
    }

    /// SIGHUP, which is no reason to end where it means to read certificates again.
    pub fn hangup() -> Outcome<tokio::signal::unix::Signal> {
        signal(SignalKind::hangup()).context(|| "cannot listen for signals".to_string())
    }

    /// Waits for one of them and names it.
    pub async fn received(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Listens on `address`; `flag` tells the user which option to change if it is taken.
pub fn bind(flag: &str, address: SocketAddr) -> Outcome<TcpListener> {
    let listener = TcpListener::bind(address).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                format!(
                    ": another process uses this port; stop it, or choose one with --{flag} \
                     (port 0 takes a free one)"
                )
            }
            _ => format!(": {error}"),
        };
        Fatal::new(format!("cannot listen on {address} for --{flag}{hint}"))
    })?;
    listener
        .set_nonblocking(true)
        .context(|| format!("cannot listen on {address}"))?;
    Ok(listener)
}

/// The address that `listener` has, port 0 resolved.
pub fn address_of(listener: &TcpListener) -> SocketAddr {
    listener
        .local_addr()
        .expect("a bound socket has an address")
}

/// Asks for as many file descriptors as the system allows: each client is one.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum {
        let wanted = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        if let Err(error) = setrlimit(Resource::Nofile, wanted) {
            tracing::debug!("cannot raise the limit of open files: {error}");
        }
    }
}
