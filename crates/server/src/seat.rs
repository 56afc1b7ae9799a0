//! Seats: what a host thread keeps between the incarnations of a member, and how it makes the next.
//!
//! An incarnation that has been declared dead stops; its port, its store and its place in the
//! process stay, and a new incarnation with a new id takes them. A shard and its Redis Cluster port
//! share a seat, because the port speaks for just that shard.

use std::net::TcpListener;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_backup::{Backup, BackupConfig};
use holdfast_cluster::Now;
use holdfast_coordinator::{Coordinator, CoordinatorConfig};
use holdfast_format::ServerId;
use holdfast_gateway::{Gateway, GatewayConfig, Mode};
use holdfast_master::{Shard, ShardConfig};
use holdfast_wire::{Figures, Member, Role as MemberRole};

use crate::clock;
use crate::disk::Disk;
use crate::error::{Context, Outcome};
use crate::inbox::NodeReport;
use crate::local::Local;
use crate::records::Records;
use crate::resp::{ClientLimits, Resp};
use crate::role::{Role, RoleKind};
use crate::roles::KEY_BYTES_MAX;
use crate::store::Store;
use crate::tls::Tls;
use crate::touching;

/// What is the same for every incarnation of a member.
#[derive(Clone, Debug, Default)]
pub struct Person {
    pub name: String,
    /// Where others dial it; empty for gateways.
    pub address: String,
    pub machine: String,
}

/// What clients of a gateway may ask for.
#[derive(Clone, Debug)]
pub struct GatewayLimits {
    pub password: Option<String>,
    pub retry_ms: u32,
    pub value_bytes_max: u32,
    pub clients: ClientLimits,
}

/// A seat to be taken by a host thread.
#[derive(Debug)]
pub enum SeatPlan {
    Coordinator {
        name: String,
        config: CoordinatorConfig,
        records: PathBuf,
    },
    Shard {
        person: Person,
        log: holdfast_log::Config,
        touch_memory: bool,
        /// Its Redis Cluster port.
        resp_cluster: Option<TcpListener>,
        limits: GatewayLimits,
    },
    Backup {
        person: Person,
        store: Arc<Store>,
        segment_bytes: u32,
        frames: u32,
        read_cache_bytes: u64,
        /// Have memory for a recovery mapped ahead.
        prepare: bool,
        scrub_ms: u64,
    },
    Gateway {
        person: Person,
        resp: Option<TcpListener>,
        limits: GatewayLimits,
    },
}

/// A seat taken by a host thread.
#[derive(Debug)]
pub enum Seat {
    Coordinator {
        name: String,
        config: CoordinatorConfig,
        records: PathBuf,
        local: Rc<Local>,
    },
    Shard {
        person: Person,
        log: holdfast_log::Config,
        touch_memory: bool,
        resp_cluster: String,
        resp: Option<Rc<Resp>>,
        limits: GatewayLimits,
    },
    Backup {
        person: Person,
        disk: Rc<Disk>,
        segment_bytes: u32,
        frames: u32,
        read_cache_bytes: u64,
        scrub_ms: u64,
    },
    Gateway {
        person: Person,
        resp: Rc<Resp>,
        limits: GatewayLimits,
    },
}

/// A new incarnation and the effects it may have.
#[derive(Debug)]
pub struct Occupant {
    pub id: ServerId,
    pub name: String,
    pub role: Role,
    pub effects: Effects,
}

/// What the driver does for a role beyond messages.
#[derive(Debug)]
pub enum Effects {
    None,
    Records(Rc<Records>),
    Disk(Rc<Disk>),
    Resp(Rc<Resp>),
}

impl Seat {
    /// Takes the seat on this thread; call on a `LocalSet`.
    pub fn take(plan: SeatPlan, local: &Rc<Local>, tls: Option<&Arc<Tls>>) -> Outcome<Seat> {
        Ok(match plan {
            SeatPlan::Coordinator {
                name,
                config,
                records,
            } => Seat::Coordinator {
                name,
                config,
                records,
                local: local.clone(),
            },
            SeatPlan::Shard {
                person,
                log,
                touch_memory,
                resp_cluster,
                limits,
            } => {
                let address = match &resp_cluster {
                    Some(listener) => listener
                        .local_addr()
                        .context(|| "the Redis Cluster port".to_string())?
                        .to_string(),
                    None => String::new(),
                };
                let resp = match resp_cluster {
                    Some(listener) => Some(Resp::start(
                        Some(listener),
                        tls.cloned(),
                        limits.clients,
                        local.clone(),
                    )?),
                    None => None,
                };
                Seat::Shard {
                    person,
                    log,
                    touch_memory,
                    resp_cluster: address,
                    resp,
                    limits,
                }
            }
            SeatPlan::Backup {
                person,
                store,
                segment_bytes,
                frames,
                read_cache_bytes,
                prepare,
                scrub_ms,
            } => {
                if prepare {
                    touching::prepare(&person.name, store.clone());
                }
                let disk = Disk::new(store, local.clone());
                Seat::Backup {
                    person,
                    disk,
                    segment_bytes,
                    frames,
                    read_cache_bytes,
                    scrub_ms,
                }
            }
            SeatPlan::Gateway {
                person,
                resp,
                limits,
            } => {
                let resp = Resp::start(resp, tls.cloned(), limits.clients, local.clone())?;
                Seat::Gateway {
                    person,
                    resp,
                    limits,
                }
            }
        })
    }

    /// Whom to report while nobody sits here.
    pub fn vacancy(&self) -> NodeReport {
        let (role, name) = match self {
            Seat::Coordinator { name, .. } => (RoleKind::Coordinator, name),
            Seat::Shard { person, .. } => (RoleKind::Shard, &person.name),
            Seat::Backup { person, .. } => (RoleKind::Backup, &person.name),
            Seat::Gateway { person, .. } => (RoleKind::Gateway, &person.name),
        };
        NodeReport {
            role: role.name(),
            id: ServerId(0),
            name: name.clone(),
            metrics: Vec::new(),
            figures: Figures::default(),
            namespaces: Vec::new(),
            ready: false,
            reasons: Vec::new(),
        }
    }

    /// Makes a new incarnation.
    pub fn occupy(&mut self, now: Now) -> Outcome<Vec<Occupant>> {
        let seed = clock::random();
        match self {
            Seat::Coordinator {
                name,
                config,
                records,
                local,
            } => {
                let (database, records) = Records::open(records, local.clone())?;
                let coordinator = Coordinator::new(config.clone(), records, now, seed)
                    .context(|| "the coordinator cannot start".to_string())?;
                Ok(vec![Occupant {
                    id: ServerId::COORDINATOR,
                    name: name.clone(),
                    role: Role::Coordinator(Box::new(coordinator)),
                    effects: Effects::Records(database),
                }])
            }
            Seat::Shard {
                person,
                log,
                touch_memory,
                resp_cluster,
                resp,
                limits,
            } => {
                let mut member = person.member(MemberRole::Shard);
                member.resp_cluster = resp_cluster.clone();
                let id = member.id;
                let name = member.name.clone();
                let config = ShardConfig {
                    touch_memory: *touch_memory,
                    ..ShardConfig::new(member, log.clone())
                };
                let mut shard =
                    Shard::new(config, seed).context(|| format!("{name} cannot start"))?;
                if let Some(toucher) = shard.toucher() {
                    touching::start(&name, toucher);
                }
                let mut occupants = vec![Occupant {
                    id,
                    name: name.clone(),
                    role: Role::Shard(Box::new(shard)),
                    effects: Effects::None,
                }];
                if let Some(resp) = resp {
                    let port = Person {
                        name: format!("resp-{name}"),
                        address: String::new(),
                        machine: person.machine.clone(),
                    };
                    let gateway = limits.gateway(&port, Mode::Cluster { shard: id }, resp)?;
                    occupants.push(gateway.with(resp, Role::ClusterGateway));
                }
                Ok(occupants)
            }
            Seat::Backup {
                person,
                disk,
                segment_bytes,
                frames,
                read_cache_bytes,
                scrub_ms,
            } => {
                let mut member = person.member(MemberRole::Backup);
                member.store = disk.store().identity();
                let (id, name) = (member.id, member.name.clone());
                let config = BackupConfig {
                    read_cache_bytes: *read_cache_bytes,
                    scrub_period_ms: *scrub_ms,
                    ..BackupConfig::new(member, *segment_bytes, *frames)
                };
                let headers: Vec<(holdfast_cluster::FrameId, Bytes)> = disk
                    .store()
                    .headers()
                    .context(|| format!("{name} cannot read its store"))?;
                let backup = Backup::new(config, headers, seed)
                    .context(|| format!("{name} cannot start"))?;
                Ok(vec![Occupant {
                    id,
                    name,
                    role: Role::Backup(Box::new(backup)),
                    effects: Effects::Disk(disk.clone()),
                }])
            }
            Seat::Gateway {
                person,
                resp,
                limits,
            } => {
                let gateway = limits.gateway(person, Mode::Flat, resp)?;
                Ok(vec![gateway.with(resp, Role::Gateway)])
            }
        }
    }
}

impl Person {
    fn member(&self, role: MemberRole) -> Member {
        Member {
            id: clock::server_id(),
            role,
            address: self.address.clone(),
            machine: self.machine.clone(),
            pid: std::process::id(),
            resp_cluster: String::new(),
            name: self.name.clone(),
            store: 0,
        }
    }
}

struct MadeGateway {
    id: ServerId,
    name: String,
    gateway: Gateway,
}

impl MadeGateway {
    fn with(self, resp: &Rc<Resp>, role: fn(Box<Gateway>) -> Role) -> Occupant {
        Occupant {
            id: self.id,
            name: self.name,
            role: role(Box::new(self.gateway)),
            effects: Effects::Resp(resp.clone()),
        }
    }
}

impl GatewayLimits {
    fn gateway(&self, person: &Person, mode: Mode, resp: &Resp) -> Outcome<MadeGateway> {
        let member = person.member(MemberRole::Gateway);
        let (id, name) = (member.id, member.name.clone());
        let config = GatewayConfig {
            password: self.password.clone(),
            retry_ms: self.retry_ms,
            value_bytes_max: self.value_bytes_max,
            key_bytes_max: KEY_BYTES_MAX,
            connections_max: self.clients.clients_max,
            namespace_connections_max: self.clients.namespace_clients_max,
            queue_wait_ms: self.clients.queue_wait_ms,
            resp_port: resp.port(),
            ..GatewayConfig::new(member, mode)
        };
        let gateway =
            Gateway::new(config, clock::random()).context(|| format!("{name} cannot start"))?;
        Ok(MadeGateway { id, name, gateway })
    }
}
