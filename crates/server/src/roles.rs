//! Each role of the command line as a `Process`: options to configuration, listeners, threads.

mod dev;

pub use dev::{Dev, greeting};

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_coordinator::CoordinatorConfig;
use holdfast_wire::ClusterConfig;
use holdfast_wire::handshake::ClusterSecret;
use rustix::fs::{FlockOperation, flock};

use crate::error::{Context, Fatal, Outcome};
use crate::grpc::Admin;
use crate::host::{HostPlan, World};
use crate::inbox::Switchboard;
use crate::memory::Held;
use crate::namespace::NamespaceSpec;
use crate::options::{
    Ack, BackupOptions, ByteSize, CoordinatorOptions, DevOptions, GatewayOptions, MasterOptions,
    check_exposure, read_secret, warn_of_clear_text,
};
use crate::process::{Process, address_of, bind};
use crate::ready::ReadyFile;
use crate::resp::ClientLimits;
use crate::seat::{GatewayLimits, Person, SeatPlan};
use crate::store::Store;
use crate::tls::Tls;

pub const RESP_PORT: u16 = 6380;
pub const RESP_CLUSTER_PORT: u16 = 6381;
pub const GRPC_PORT: u16 = 7380;
pub const HTTP_PORT: u16 = 8380;
pub const COORDINATOR_PORT: u16 = 7390;
/// gRPC of a coordinator that runs alone, beside its member port.
pub const COORDINATOR_GRPC_PORT: u16 = 7391;

const MEMORY_DEFAULT: ByteSize = ByteSize(512 << 20);
const SEGMENT_DEFAULT: ByteSize = ByteSize(8 << 20);
const SEGLET_BYTES_MAX: u32 = 64 << 10;
/// An entry says its key's length in 16 bits.
pub const KEY_BYTES_MAX: u32 = u16::MAX as u32;
const VALUE_BYTES_MAX_DEFAULT: ByteSize = ByteSize(1 << 20);
const RETRY_MS_DEFAULT: u32 = 2_000;
/// Recovery masters that ask for the same segments ask for them at about the same time.
const READ_CACHE_DEFAULT: u64 = 32 << 20;

/// Rot that is found within a day is found while the other replicas are most likely good.
const SCRUB_HOURS_DEFAULT: f64 = 24.0;
/// Cluster time may be wrong by so much between two members; memory of expired sessions is reused
/// only after it.
const EXPIRY_SLACK_MS: u32 = 500;

/// The part of a shard's memory that its log leaves to appends under way, answers withheld, tables of
/// clients and connection buffers: 32 MiB of 2 GiB, which a busy shard needs. Beyond it writers are refused
/// earlier; more than 64 MiB are held only by who does not take its answers.
const OUTSIDE_PART: u64 = 64;
const OUTSIDE_BYTES_MAX: u64 = 64 << 20;

/// Twice as many segments on backups as fill the memory: half empty there, they cost combined cleaning a few percent
/// of what is written, where full ones would cost several times as much as is written.
const REPLICA_EXPANSION_PERCENT: u32 = 200;

const HEARTBEAT_MS_DEFAULT: u32 = 100;
const PROBE_MS_DEFAULT: u32 = 100;
const LEASE_MS_DEFAULT: u32 = 500;
const CONFIRM_MS_DEFAULT: u32 = 300;
const DEAD_MS_DEFAULT: u32 = 1_000;

/// An address on this machine only.
pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// `holdfast dev`, one process: the gateway, the first shard and its port on one thread, so that a
/// request crosses no thread on its way; coordinator and backups on another.
pub fn dev(options: DevOptions) -> Outcome<()> {
    let mut dev = Dev::resolve(&options)?;
    let _lock = DirLock::take(&dev.dir)?;
    dev.make_certificates(&options)?;
    let dir = &dev.dir;
    let secret = dev.secret()?;

    let resp = bind("resp", dev.resp)?;
    let shards = dev.masters * dev.shards;
    let cluster_ports = bind_consecutive("resp-cluster", dev.resp_cluster, shards)?;
    let grpc = bind("grpc", dev.grpc)?;
    let http = bind("http", dev.http)?;
    let member_port = bind("listen", dev.listen)?;

    let clients = options.client_limits()?;
    let limits = GatewayLimits {
        password: dev.password.clone(),
        retry_ms: options.retry_ms.unwrap_or(RETRY_MS_DEFAULT),
        value_bytes_max: dev.value_bytes_max,
        clients,
    };
    let addresses = ReadyFile {
        resp: Some(address_of(&resp).to_string()),
        resp_cluster: cluster_ports
            .iter()
            .map(|port| address_of(port).to_string())
            .collect(),
        grpc: Some(address_of(&grpc).to_string()),
        http: Some(address_of(&http).to_string()),
        processes: Vec::new(),
    };

    let mut config = coordinator_config(
        &Times {
            lease_ms: options.lease_ms,
            heartbeat_ms: None,
            probe_ms: None,
            confirm_ms: options.confirm_ms,
            dead_ms: options.dead_ms,
        },
        (dev.replicas, dev.ack_quorum),
        shards,
        options.ack,
        options.namespace.as_deref().unwrap_or_default(),
    )?;
    // We hold the lock of the directory, so nobody of this cluster can be alive.
    config.cold_start = true;
    let coordinator_port = address_of(&member_port).to_string();
    let mut keepers = HostPlan {
        name: "keepers".to_string(),
        seats: vec![SeatPlan::Coordinator {
            name: "coordinator".to_string(),
            config,
            records: records_file(&dir.join("coordinator"))?,
        }],
        listener: Some(member_port),
    };
    for number in 1..=dev.backups {
        let person = Person {
            name: format!("backup-{number}"),
            address: coordinator_port.clone(),
            machine: String::new(),
        };
        keepers.seats.push(backup_seat(
            person,
            &dir.join(format!("backup-{number}")),
            dev.frames,
            dev.segment_bytes,
            READ_CACHE_DEFAULT,
            false,
            dev.scrub_ms,
        )?);
    }

    let mut hosts = vec![keepers];
    for (index, resp_cluster) in cluster_ports.into_iter().enumerate() {
        let index = u32::try_from(index).expect("there are few shards");
        let (master, shard) = (index / dev.shards + 1, index % dev.shards);
        let name = format!("master-{master}.{shard}");
        let listener = bind("listen", loopback(0))?;
        let person = Person {
            name: name.clone(),
            address: address_of(&listener).to_string(),
            machine: String::new(),
        };
        hosts.push(HostPlan {
            name,
            seats: vec![SeatPlan::Shard {
                person,
                log: log_config(
                    dev.memory / u64::from(dev.shards),
                    dev.segment_bytes,
                    dev.value_bytes_max,
                )?,
                touch_memory: dev.touch_memory,
                resp_cluster: Some(resp_cluster),
                limits: limits.clone(),
            }],
            listener: Some(listener),
        });
    }
    hosts[1].seats.insert(
        0,
        SeatPlan::Gateway {
            person: Person {
                name: "gateway-1".to_string(),
                ..Person::default()
            },
            resp: Some(resp),
            limits,
        },
    );

    let greeting = greeting(&addresses, &dev);
    Process {
        name: "dev".to_string(),
        hosts,
        world: World {
            switchboard: Switchboard::default(),
            held: Held::default(),
            secret,
            coordinator: None,
            tls: Tls::load_some(dev.tls.clone())?,
        },
        grpc: Some(grpc),
        http: Some(http),
        admin: Admin::Here,
        password: dev.password.clone(),
        value_bytes_max: dev.value_bytes_max,
        clients_max: clients.clients_max,
        addresses,
        ready_file: options.ready_file.clone(),
        greeting: Some(greeting),
    }
    .run()
}

/// `holdfast coordinator`.
pub fn coordinator(options: CoordinatorOptions) -> Outcome<()> {
    let listen = options.listen.unwrap_or(loopback(COORDINATOR_PORT));
    let grpc = options.grpc.unwrap_or(loopback(COORDINATOR_GRPC_PORT));
    let tls = Tls::load_some(options.tls_files()?)?;
    let credentials = Credentials::read(
        options.cluster_secret_file.as_deref(),
        options.password_file.as_deref(),
    )?;
    credentials.check(
        &[
            ("listen", Some(listen)),
            ("grpc", Some(grpc)),
            ("http", options.http),
        ],
        tls.is_some(),
    )?;
    let dir = options
        .dir
        .clone()
        .unwrap_or("./holdfast-coordinator".into());
    let _lock = DirLock::take(&dir)?;
    let mut config = coordinator_config(
        &Times {
            lease_ms: options.lease_ms,
            heartbeat_ms: options.heartbeat_ms,
            probe_ms: options.probe_ms,
            confirm_ms: options.confirm_ms,
            dead_ms: options.dead_ms,
        },
        (options.replicas.unwrap_or(3), options.ack_quorum),
        options.initial_shards.unwrap_or(1),
        options.ack,
        options.namespace.as_deref().unwrap_or_default(),
    )?;
    config.cold_start = options.cold_start.unwrap_or(false);
    let listener = bind("listen", listen)?;
    let grpc = bind("grpc", grpc)?;
    let http = options
        .http
        .map(|address| bind("http", address))
        .transpose()?;
    let addresses = ReadyFile {
        grpc: Some(address_of(&grpc).to_string()),
        http: http.as_ref().map(|http| address_of(http).to_string()),
        ..ReadyFile::default()
    };
    tracing::info!("coordinator at {}", address_of(&listener));
    Process {
        name: "coordinator".to_string(),
        hosts: vec![HostPlan {
            name: "coordinator".to_string(),
            seats: vec![SeatPlan::Coordinator {
                name: "coordinator".to_string(),
                config,
                records: records_file(&dir)?,
            }],
            listener: Some(listener),
        }],
        world: World {
            switchboard: Switchboard::default(),
            held: Held::default(),
            secret: credentials.secret(),
            coordinator: None,
            tls,
        },
        grpc: Some(grpc),
        http,
        admin: Admin::Here,
        password: credentials.password,
        value_bytes_max: 0,
        clients_max: ClientLimits::default().clients_max,
        addresses,
        ready_file: options.ready_file,
        greeting: None,
    }
    .run()
}

/// `holdfast master`.
pub fn master(options: MasterOptions) -> Outcome<()> {
    let listen = options.listen.unwrap_or(loopback(0));
    let resp_cluster = options.resp_cluster.unwrap_or(loopback(RESP_CLUSTER_PORT));
    let tls = Tls::load_some(options.tls_files()?)?;
    let clients = options.client_limits()?;
    let credentials = Credentials::read(
        options.cluster_secret_file.as_deref(),
        options.password_file.as_deref(),
    )?;
    credentials.check(
        &[
            ("listen", Some(listen)),
            ("resp-cluster", Some(resp_cluster)),
            ("resp", options.resp),
            ("grpc", options.grpc),
            ("http", options.http),
        ],
        tls.is_some(),
    )?;
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    let shards = options.shards.unwrap_or(cores).max(1);
    let memory = options.memory.unwrap_or(MEMORY_DEFAULT).0;
    let segment_bytes = segment_bytes(options.segment_bytes)?;
    let value_bytes_max = value_bytes_max(options.value_bytes_max, segment_bytes)?;
    let name = options.name.clone().unwrap_or("master".to_string());
    let limits = GatewayLimits {
        password: credentials.password.clone(),
        retry_ms: options.retry_ms.unwrap_or(RETRY_MS_DEFAULT),
        value_bytes_max,
        clients,
    };
    let resp = options
        .resp
        .map(|address| bind("resp", address))
        .transpose()?;
    let ports = bind_consecutive("resp-cluster", resp_cluster, shards)?;
    let grpc = options
        .grpc
        .map(|address| bind("grpc", address))
        .transpose()?;
    let http = options
        .http
        .map(|address| bind("http", address))
        .transpose()?;
    let addresses = ReadyFile {
        resp: resp.as_ref().map(|resp| address_of(resp).to_string()),
        resp_cluster: ports
            .iter()
            .map(|port| address_of(port).to_string())
            .collect(),
        grpc: grpc.as_ref().map(|grpc| address_of(grpc).to_string()),
        http: http.as_ref().map(|http| address_of(http).to_string()),
        processes: Vec::new(),
    };
    let mut hosts = Vec::new();
    for (shard, resp_cluster) in ports.into_iter().enumerate() {
        let port = if shard == 0 { listen.port() } else { 0 };
        let listener = bind("listen", SocketAddr::new(listen.ip(), port))?;
        let name = format!("{name}.{shard}");
        let person = Person {
            name: name.clone(),
            address: advertised(options.advertise.as_deref(), address_of(&listener))?,
            machine: options.machine.clone().unwrap_or_default(),
        };
        hosts.push(HostPlan {
            name,
            seats: vec![SeatPlan::Shard {
                person,
                log: log_config(memory / u64::from(shards), segment_bytes, value_bytes_max)?,
                touch_memory: options.touch_memory.unwrap_or(true),
                resp_cluster: Some(resp_cluster),
                limits: limits.clone(),
            }],
            listener: Some(listener),
        });
    }
    if resp.is_some() || grpc.is_some() {
        let person = Person {
            name: format!("gateway-of-{name}"),
            ..Person::default()
        };
        hosts[0].seats.insert(
            0,
            SeatPlan::Gateway {
                person,
                resp,
                limits,
            },
        );
    }
    let coordinator = coordinator_address(options.coordinator);
    Process {
        name,
        hosts,
        admin: Admin::At(admin_address(options.admin, &coordinator)),
        world: World {
            switchboard: Switchboard::default(),
            held: Held::default(),
            secret: credentials.secret(),
            coordinator: Some(coordinator),
            tls,
        },
        grpc,
        http,
        password: credentials.password,
        value_bytes_max,
        clients_max: clients.clients_max,
        addresses,
        ready_file: options.ready_file,
        greeting: None,
    }
    .run()
}

/// `holdfast backup`.
pub fn backup(options: BackupOptions) -> Outcome<()> {
    let listen = options.listen.unwrap_or(loopback(0));
    let tls = Tls::load_some(options.tls_files()?)?;
    // A backup has no clients, so members' credentials are all there is to ask for.
    let credentials = Credentials::read(options.cluster_secret_file.as_deref(), None)?;
    let listeners = [("listen", Some(listen)), ("http", options.http)];
    warn_of_clear_text(&listeners, tls.is_some());
    check_exposure(&listeners, credentials.cluster.is_some(), true)?;
    // The store locks its directory itself.
    let dir = options.dir.clone().unwrap_or("./holdfast-backup".into());
    let segment_bytes = segment_bytes(options.segment_bytes)?;
    let disk = options.disk.unwrap_or(ByteSize(4 << 30)).0;
    let frames = u32::try_from(disk / u64::from(segment_bytes))
        .map_err(|_| Fatal::new("--disk is too large for segments of this size"))?;
    if frames < 4 {
        return Err(Fatal::new(format!(
            "--disk {} has room for {frames} segments of {}; give it at least 4",
            ByteSize(disk),
            ByteSize(segment_bytes.into()),
        )));
    }
    let listener = bind("listen", listen)?;
    let http = options
        .http
        .map(|address| bind("http", address))
        .transpose()?;
    let name = options.name.clone().unwrap_or("backup".to_string());
    let person = Person {
        name: name.clone(),
        address: advertised(options.advertise.as_deref(), address_of(&listener))?,
        machine: options.machine.clone().unwrap_or_default(),
    };
    let read_cache = options.memory.map_or(READ_CACHE_DEFAULT, |memory| memory.0);
    let addresses = ReadyFile {
        http: http.as_ref().map(|http| address_of(http).to_string()),
        ..ReadyFile::default()
    };
    Process {
        name: name.clone(),
        hosts: vec![HostPlan {
            name,
            seats: vec![backup_seat(
                person,
                &dir,
                frames,
                segment_bytes,
                read_cache,
                true,
                scrub_ms(options.scrub_hours)?,
            )?],
            listener: Some(listener),
        }],
        world: World {
            switchboard: Switchboard::default(),
            held: Held::default(),
            secret: credentials.secret(),
            coordinator: Some(coordinator_address(options.coordinator)),
            tls,
        },
        grpc: None,
        http,
        admin: Admin::Nobody,
        password: None,
        value_bytes_max: 0,
        clients_max: ClientLimits::default().clients_max,
        addresses,
        ready_file: options.ready_file,
        greeting: None,
    }
    .run()
}

/// `holdfast gateway`.
pub fn gateway(options: GatewayOptions) -> Outcome<()> {
    let resp = options.resp.unwrap_or(loopback(RESP_PORT));
    let grpc = options.grpc.unwrap_or(loopback(GRPC_PORT));
    let http = options.http.unwrap_or(loopback(HTTP_PORT));
    let tls = Tls::load_some(options.tls_files()?)?;
    let clients = options.client_limits()?;
    let credentials = Credentials::read(
        options.cluster_secret_file.as_deref(),
        options.password_file.as_deref(),
    )?;
    credentials.check(
        &[
            ("resp", Some(resp)),
            ("grpc", Some(grpc)),
            ("http", Some(http)),
        ],
        tls.is_some(),
    )?;
    let value_bytes_max = value_bytes_max(options.value_bytes_max, SEGMENT_DEFAULT.0 as u32)?;
    let resp = bind("resp", resp)?;
    let grpc = bind("grpc", grpc)?;
    let http = bind("http", http)?;
    let name = options.name.clone().unwrap_or("gateway".to_string());
    let addresses = ReadyFile {
        resp: Some(address_of(&resp).to_string()),
        grpc: Some(address_of(&grpc).to_string()),
        http: Some(address_of(&http).to_string()),
        ..ReadyFile::default()
    };
    tracing::info!(
        "Redis protocol at {}, gRPC at {}",
        address_of(&resp),
        address_of(&grpc)
    );
    let coordinator = coordinator_address(options.coordinator);
    Process {
        name: name.clone(),
        hosts: vec![HostPlan {
            name: name.clone(),
            seats: vec![SeatPlan::Gateway {
                person: Person {
                    name,
                    ..Person::default()
                },
                resp: Some(resp),
                limits: GatewayLimits {
                    password: credentials.password.clone(),
                    retry_ms: options.retry_ms.unwrap_or(RETRY_MS_DEFAULT),
                    value_bytes_max,
                    clients,
                },
            }],
            listener: None,
        }],
        admin: Admin::At(admin_address(options.admin, &coordinator)),
        world: World {
            switchboard: Switchboard::default(),
            held: Held::default(),
            secret: credentials.secret(),
            coordinator: Some(coordinator),
            tls,
        },
        grpc: Some(grpc),
        http: Some(http),
        password: credentials.password,
        value_bytes_max,
        clients_max: clients.clients_max,
        addresses,
        ready_file: options.ready_file,
        greeting: None,
    }
    .run()
}

/// What members and clients must prove.
#[derive(Debug)]
struct Credentials {
    cluster: Option<String>,
    password: Option<String>,
}

impl Credentials {
    fn read(secret: Option<&Path>, password: Option<&Path>) -> Outcome<Credentials> {
        Ok(Credentials {
            cluster: secret
                .map(|path| read_secret(path, "cluster secret"))
                .transpose()?,
            password: password
                .map(|path| read_secret(path, "password"))
                .transpose()?,
        })
    }

    fn check(&self, listeners: &[(&str, Option<SocketAddr>)], has_tls: bool) -> Outcome<()> {
        warn_of_clear_text(listeners, has_tls);
        check_exposure(listeners, self.cluster.is_some(), self.password.is_some())
    }

    fn secret(&self) -> ClusterSecret {
        ClusterSecret::new(self.cluster.as_deref().unwrap_or_default())
    }
}

/// Holds a directory for this process: two would destroy each other's files.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    pub fn take(dir: &Path) -> Outcome<DirLock> {
        std::fs::create_dir_all(dir)
            .context(|| format!("cannot make the directory {}", dir.display()))?;
        let path = dir.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .context(|| format!("cannot open {}", path.display()))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            Fatal::new(format!(
                "{} is in use by another holdfast process; stop it, or give another --dir",
                dir.display()
            ))
        })?;
        Ok(DirLock { _file: file })
    }
}

struct Times {
    lease_ms: Option<u32>,
    heartbeat_ms: Option<u32>,
    probe_ms: Option<u32>,
    confirm_ms: Option<u32>,
    dead_ms: Option<u32>,
}

/// How many of the replicas acknowledge.
pub fn quorum_of(replicas: u8, ack_quorum: Option<u8>) -> Outcome<u8> {
    match ack_quorum {
        None => Ok(replicas),
        Some(quorum) if (1..=replicas).contains(&quorum) => Ok(quorum),
        Some(quorum) if replicas == 0 => Err(Fatal::new(format!(
            "--ack-quorum {quorum} needs replicas, and --replicas is 0"
        ))),
        Some(quorum) => Err(Fatal::new(format!(
            "--ack-quorum {quorum} is not between 1 and --replicas {replicas}: so many replicas acknowledge a write"
        ))),
    }
}

fn coordinator_config(
    times: &Times,
    (replicas, ack_quorum): (u8, Option<u8>),
    initial_shards: u32,
    ack: Option<Ack>,
    namespaces: &[NamespaceSpec],
) -> Outcome<CoordinatorConfig> {
    let cluster = ClusterConfig {
        // Decided at the first start; afterwards the records know it.
        cluster: 0,
        replicas,
        ack_quorum: quorum_of(replicas, ack_quorum)?,
        lease_ms: times.lease_ms.unwrap_or(LEASE_MS_DEFAULT),
        heartbeat_ms: times.heartbeat_ms.unwrap_or(HEARTBEAT_MS_DEFAULT),
        probe_ms: times.probe_ms.unwrap_or(PROBE_MS_DEFAULT),
        ack_disk: ack == Some(Ack::Disk),
    };
    let confirm_ms = times.confirm_ms.unwrap_or(CONFIRM_MS_DEFAULT);
    let dead_ms = times.dead_ms.unwrap_or(DEAD_MS_DEFAULT);
    if cluster.lease_ms < 50 {
        return Err(Fatal::new(
            "--lease-ms must be at least 50: shards renew it four times in it",
        ));
    }
    if dead_ms < 3 * cluster.heartbeat_ms {
        return Err(Fatal::new(format!(
            "--dead-ms {dead_ms} is less than three heartbeats of {} ms: one late packet would kill a member",
            cluster.heartbeat_ms
        )));
    }
    if confirm_ms > dead_ms {
        return Err(Fatal::new(format!(
            "--confirm-ms {confirm_ms} is more than --dead-ms {dead_ms}: a suspect would be given more time than anyone"
        )));
    }
    let config = CoordinatorConfig {
        confirm_ms,
        dead_ms,
        namespaces: (namespaces.iter())
            .map(|spec| spec.policy().map_err(Fatal::new))
            .collect::<Outcome<_>>()?,
        ..CoordinatorConfig::new(cluster, initial_shards)
    };
    config
        .validate()
        .context(|| "the coordinator's options".to_string())?;
    Ok(config)
}

fn log_config(
    memory_bytes: u64,
    segment_bytes: u32,
    value_bytes_max: u32,
) -> Outcome<holdfast_log::Config> {
    let config = holdfast_log::Config {
        memory_bytes,
        outside_bytes: (memory_bytes / OUTSIDE_PART).min(OUTSIDE_BYTES_MAX),
        segment_bytes,
        seglet_bytes: SEGLET_BYTES_MAX.min(segment_bytes / 16),
        key_bytes_max: KEY_BYTES_MAX,
        value_bytes_max,
        expiry_slack_ms: EXPIRY_SLACK_MS,
        replica_expansion_percent: REPLICA_EXPANSION_PERCENT,
        cleaner: holdfast_log::CleanerOptions::default(),
    };
    config
        .validate()
        .context(|| "--memory, --segment-bytes, --value-bytes-max".to_string())?;
    Ok(config)
}

fn backup_seat(
    person: Person,
    dir: &Path,
    frames: u32,
    segment_bytes: u32,
    read_cache_bytes: u64,
    prepare: bool,
    scrub_ms: u64,
) -> Outcome<SeatPlan> {
    let store = Store::open(dir, frames, segment_bytes)
        .context(|| format!("cannot open the store in {}", dir.display()))?;
    let frames = store.frames();
    Ok(SeatPlan::Backup {
        person,
        store: Arc::new(store),
        segment_bytes,
        frames,
        read_cache_bytes,
        prepare,
        scrub_ms,
    })
}

/// How long a pass of the scrub takes; 0: there is none.
fn scrub_ms(hours: Option<f64>) -> Outcome<u64> {
    let hours = hours.unwrap_or(SCRUB_HOURS_DEFAULT);
    // A pass of less than a second is a mistake; so is one that takes longer than disks live.
    if hours != 0.0 && !(0.001..=87_600.0).contains(&hours) {
        return Err(Fatal::new(format!(
            "--scrub-hours {hours} is neither 0 nor between 0.001 and 87600"
        )));
    }
    Ok((hours * 3.6e6) as u64)
}

fn segment_bytes(size: Option<ByteSize>) -> Outcome<u32> {
    let ByteSize(bytes) = size.unwrap_or(SEGMENT_DEFAULT);
    if !bytes.is_power_of_two() || !((256 << 10)..=(64 << 20)).contains(&bytes) {
        return Err(Fatal::new(format!(
            "--segment-bytes {} is not a power of two between 256KiB and 64MiB",
            ByteSize(bytes)
        )));
    }
    Ok(bytes as u32)
}

/// Largest value: what was asked for, or 1 MiB, which is an eighth of a segment of the usual size:
/// one atomic append may hold a new value and an old one. Smaller segments get smaller values.
fn value_bytes_max(size: Option<ByteSize>, segment_bytes: u32) -> Outcome<u32> {
    let usual = VALUE_BYTES_MAX_DEFAULT.min(ByteSize(u64::from(segment_bytes) / 8));
    let ByteSize(bytes) = size.unwrap_or(usual);
    match u32::try_from(bytes) {
        Ok(bytes) if (1..=(4 << 20)).contains(&bytes) => Ok(bytes),
        _ => Err(Fatal::new("--value-bytes-max must be between 1 and 4MiB")),
    }
}

fn records_file(dir: &Path) -> Outcome<PathBuf> {
    std::fs::create_dir_all(dir)
        .context(|| format!("cannot make the directory {}", dir.display()))?;
    Ok(dir.join("records.redb"))
}

/// Listens on `count` ports: consecutive ones from `first`, or free ones if its port is 0.
fn bind_consecutive(flag: &str, first: SocketAddr, count: u32) -> Outcome<Vec<TcpListener>> {
    (0..count)
        .map(|index| {
            let port = match first.port() {
                0 => 0,
                port => u16::try_from(u32::from(port) + index).map_err(|_| {
                    Fatal::new(format!(
                        "--{flag}: no port {} exists",
                        u32::from(port) + index
                    ))
                })?,
            };
            bind(flag, SocketAddr::new(first.ip(), port))
        })
        .collect()
}

fn advertised(host: Option<&str>, listening: SocketAddr) -> Outcome<String> {
    match host {
        Some(host) => Ok(format!("{host}:{}", listening.port())),
        None if listening.ip().is_unspecified() => Err(Fatal::new(format!(
            "--listen {listening} is every address of this machine; say with --advertise which one others can reach"
        ))),
        None => Ok(listening.to_string()),
    }
}

fn coordinator_address(given: Option<String>) -> String {
    given.unwrap_or_else(|| loopback(COORDINATOR_PORT).to_string())
}

fn admin_address(given: Option<String>, coordinator: &str) -> String {
    given.unwrap_or_else(|| {
        let host = coordinator
            .rsplit_once(':')
            .map_or(coordinator, |(host, _)| host);
        format!("{host}:{COORDINATOR_GRPC_PORT}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_contradict_each_other_are_refused() {
        let config = |confirm_ms, dead_ms| {
            let times = Times {
                lease_ms: None,
                heartbeat_ms: None,
                probe_ms: None,
                confirm_ms: Some(confirm_ms),
                dead_ms: Some(dead_ms),
            };
            coordinator_config(&times, (3, None), 1, None, &[]).map(drop)
        };
        assert!(config(300, 1_000).is_ok());
        assert!(
            config(300, 200)
                .unwrap_err()
                .to_string()
                .contains("three heartbeats")
        );
        assert!(
            config(2_000, 1_000)
                .unwrap_err()
                .to_string()
                .contains("--confirm-ms")
        );
    }

    #[test]
    fn a_directory_belongs_to_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::take(dir.path()).unwrap();
        let error = DirLock::take(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("in use by another holdfast process"),
            "{error}"
        );
        drop(lock);
        assert!(DirLock::take(dir.path()).is_ok());
    }
}
