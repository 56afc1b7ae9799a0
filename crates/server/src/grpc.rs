//! The gRPC face: sessions answered by the gateway of this process, administration by the
//! coordinator wherever it is.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use holdfast_cluster::Order;
use holdfast_coordinator::{MemberStatus, Phase, Status};
use holdfast_format::{ClientId, ClusterMs, Namespace, ServerId};
use holdfast_wire::grpc::{
    AdminClient, AdminHandler, ClientGrant, ClusterStatus, DESCRIPTORS, GrpcConfig, RecoveryPhase,
    RecoveryStatus, SessionCall, SessionsHandler, admin_server, sessions_server,
};
use holdfast_wire::{Failure, Member, NamespacePolicy, Outcome, Role, View, add_uses};
use tokio::sync::oneshot;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};

use crate::calls::{self, Lane};
use crate::clock;
use crate::door::Door;
use crate::error::{Context, Outcome as Served};
use crate::host::World;
use crate::inbox::{Inbox, Letter};
use crate::role::RoleKind;
use crate::tls::{ClientKeys, Face as DoorFace};

/// Calls of one connection that are answered at a time; more wait in HTTP/2's flow control.
const CALLS_PER_CONNECTION_MAX: usize = 1_024;

/// For how long outcomes of a client's writes are kept that it does not acknowledge: longer than any
/// retry takes (as the gateway does for its own).
const CLIENT_LEASE_MS: u64 = 60_000;

const STATUS_PATIENCE: Duration = Duration::from_secs(2);

/// How often the health service looks at readiness.
const HEALTH_EVERY: Duration = Duration::from_millis(250);

/// Who answers `ctl status`.
#[derive(Clone, Debug)]
pub enum Admin {
    /// The coordinator, which lives in this process.
    Here,
    /// The coordinator's own gRPC face.
    At(String),
    Nobody,
}

/// The gRPC face of a process.
#[derive(Debug)]
pub struct Face {
    pub world: Arc<World>,
    /// The thread of this process's gateway, which is the one to serve on; without a gateway there are no
    /// sessions to serve.
    pub gateway: Option<Arc<Inbox>>,
    pub admin: Admin,
    pub password: Option<String>,
    pub value_bytes_max: u32,
    pub connections_max: usize,
}

impl Face {
    /// Serves until dropped.
    pub async fn serve(self, listener: TcpListener) -> Served<()> {
        let what = || "the gRPC face failed".to_string();
        let door = Door::open(
            listener,
            self.world.tls.clone(),
            DoorFace::Grpc,
            self.connections_max,
        )?;
        let config = GrpcConfig {
            password: self.password.clone(),
            ..GrpcConfig::for_values(self.value_bytes_max)
        };
        let admin = Administration {
            world: self.world.clone(),
            admin: self.admin,
            password: self.password,
        };
        let mut server = server_settings();
        // Balancers ask it without credentials; it says nothing else.
        let (health, health_service) = health_reporter();
        let admin = admin_server(Arc::new(admin), config.clone());
        let mut services = vec!["", name_of(&admin)];
        // For generic clients such as grpcurl. Like the definitions, it is no secret.
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let mut router = server
            .add_service(health_service)
            .add_service(reflection().build_v1().context(what)?)
            // What tools older than 2023 ask for.
            .add_service(reflection().build_v1alpha().context(what)?)
            .add_service(admin);
        if let Some(gateway) = self.gateway {
            let sessions = sessions_server(Arc::new(Sessions { gateway }), config);
            services.push(name_of(&sessions));
            router = router.add_service(sessions);
        }
        tell(&health, &services, ServingStatus::NotServing).await;
        let serving = router.serve_with_incoming(door);
        tokio::select! {
            served = serving => served.context(what),
            () = watch_health(self.world, health, services) => unreachable!("it never ends"),
        }
    }
}

/// How every gRPC server of this program is set up.
pub fn server_settings() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
}

fn name_of<S: NamedService>(_: &S) -> &'static str {
    S::NAME
}

async fn tell(health: &HealthReporter, services: &[&str], status: ServingStatus) {
    for service in services {
        health.set_service_status(service, status).await;
    }
}

/// Keeps `grpc.health.v1` saying whether this process can answer calls: its gateway, or the coordinator
/// if that is alone here. `/readyz` asks for more: a cluster that lacks a replica still serves.
async fn watch_health(world: Arc<World>, health: HealthReporter, services: Vec<&'static str>) {
    let mut was_ready = false;
    loop {
        let reports = world.switchboard.reports().await;
        let gateway = (reports.iter()).find(|report| report.role == RoleKind::Gateway.name());
        let ready = match gateway {
            Some(gateway) => gateway.ready,
            None => reports.iter().all(|report| report.ready),
        };
        if ready != was_ready {
            was_ready = ready;
            let status = if ready {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            tell(&health, &services, status).await;
        }
        tokio::time::sleep(HEALTH_EVERY).await;
    }
}

struct Sessions {
    gateway: Arc<Inbox>,
}

impl SessionsHandler for Sessions {
    type Lane = Lane;

    async fn call(&self, call: SessionCall) -> Outcome {
        calls::call(&self.gateway, call).await
    }

    fn open_lane(&self) -> Lane {
        Lane::new(self.gateway.clone())
    }

    async fn open_client(&self) -> Result<ClientGrant, Failure> {
        // Cluster time equals Unix time but for the clocks' error, which a minute does not notice.
        let now = ClusterMs(clock::now().unix_ms);
        Ok(ClientGrant {
            client: ClientId(clock::random()),
            lease_until: now.plus_ms(CLIENT_LEASE_MS),
        })
    }
}

struct Administration {
    world: Arc<World>,
    admin: Admin,
    password: Option<String>,
}

impl AdminHandler for Administration {
    async fn status(&self) -> Result<ClusterStatus, Failure> {
        match &self.admin {
            Admin::Here => {
                let answers: Vec<oneshot::Receiver<Status>> = self
                    .world
                    .switchboard
                    .inboxes()
                    .iter()
                    .map(|inbox| {
                        let (reply, answer) = oneshot::channel();
                        inbox.post(Letter::Status { reply });
                        answer
                    })
                    .collect();
                for answer in answers {
                    if let Ok(Ok(status)) = tokio::time::timeout(STATUS_PATIENCE, answer).await {
                        return Ok(told(status));
                    }
                }
                Err(Failure::Unreachable)
            }
            Admin::At(address) => {
                let keys = self.world.tls.as_ref().map(|tls| tls.as_client());
                let tls = keys.as_ref().map(ClientKeys::for_grpc);
                let asking = async {
                    let mut client =
                        AdminClient::connect(address, self.password.as_deref(), tls).await?;
                    client.status().await
                };
                match tokio::time::timeout(STATUS_PATIENCE, asking).await {
                    Ok(Ok(status)) => Ok(status),
                    Ok(Err(error)) => {
                        tracing::debug!("the coordinator's status: {error}");
                        Err(Failure::Unreachable)
                    }
                    Err(_) => Err(Failure::Unreachable),
                }
            }
            Admin::Nobody => Err(Failure::Unreachable),
        }
    }

    async fn set_namespace(&self, policy: NamespacePolicy) -> Result<(), Failure> {
        self.order(Order::SetNamespace(policy)).await
    }

    async fn unset_namespace(&self, namespace: Namespace) -> Result<(), Failure> {
        self.order(Order::UnsetNamespace(namespace)).await
    }
}

impl Administration {
    /// Has the coordinator do something, here or where it is.
    async fn order(&self, order: Order) -> Result<(), Failure> {
        match &self.admin {
            Admin::Here => {
                for inbox in self.world.switchboard.inboxes() {
                    let (reply, done) = oneshot::channel();
                    inbox.post(Letter::Order { order, reply });
                    match tokio::time::timeout(STATUS_PATIENCE, done).await {
                        Ok(Ok(())) => return Ok(()),
                        // Not the coordinator's thread.
                        Ok(Err(_)) => {}
                        Err(_) => return Err(Failure::OutcomeUnknown),
                    }
                }
                Err(Failure::Unreachable)
            }
            Admin::At(address) => {
                let keys = self.world.tls.as_ref().map(|tls| tls.as_client());
                let tls = keys.as_ref().map(ClientKeys::for_grpc);
                let ordering = async {
                    let password = self.password.as_deref();
                    let mut client = AdminClient::connect(address, password, tls).await?;
                    match order {
                        Order::SetNamespace(policy) => client.set_namespace(policy).await,
                        Order::UnsetNamespace(namespace) => client.unset_namespace(namespace).await,
                    }
                };
                match tokio::time::timeout(STATUS_PATIENCE, ordering).await {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(error)) => {
                        tracing::debug!("the coordinator did not take an order: {error}");
                        Err(Failure::Unreachable)
                    }
                    Err(_) => Err(Failure::OutcomeUnknown),
                }
            }
            Admin::Nobody => Err(Failure::Unreachable),
        }
    }
}

/// The coordinator's status as the wire tells it. The coordinator is no member of its own view, but
/// an operator looks for it (and its process id) among the others.
fn told(status: Status) -> ClusterStatus {
    let coordinator = Member {
        id: ServerId::COORDINATOR,
        role: Role::Coordinator,
        address: String::new(),
        machine: String::new(),
        pid: std::process::id(),
        resp_cluster: String::new(),
        name: "coordinator".to_string(),
        store: 0,
    };
    let mut not_ready_because = Vec::new();
    not_ready_because.extend(status.waiting_for.clone());
    for recovery in &status.recoveries {
        not_ready_because.push(match recovery.phase {
            Phase::Leaning => format!(
                "what was recovered of {} is not replicated yet",
                recovery.name
            ),
            _ => format!("{} is being recovered", recovery.name),
        });
    }
    for MemberStatus {
        member, figures, ..
    } in &status.members
    {
        if figures.under_replicated > 0 {
            not_ready_because.push(format!(
                "{}: {} segments lack replicas",
                member.name, figures.under_replicated
            ));
        }
    }
    if !status.ready && not_ready_because.is_empty() {
        not_ready_because.push("some slots have no owner that answers".to_string());
    }
    ClusterStatus {
        cluster: status.config.cluster,
        replicas: status.config.replicas,
        view: View {
            version: status.view_version,
            members: std::iter::once(coordinator)
                .chain(status.members.iter().map(|member| member.member.clone()))
                .collect(),
            tablets: status.tablets.clone(),
            recovering: status
                .recoveries
                .iter()
                .map(|recovery| recovery.log)
                .collect(),
            namespaces: status.namespaces.clone(),
        },
        namespaces: {
            let mut all = Vec::new();
            for member in &status.members {
                add_uses(&mut all, &member.namespaces);
            }
            all
        },
        figures: status
            .members
            .iter()
            .map(|member| (member.member.id, member.figures))
            .collect(),
        recoveries: status
            .recoveries
            .iter()
            .map(|recovery| told_recovery(recovery, &status, false))
            .chain(
                status
                    .finished
                    .iter()
                    .map(|recovery| told_recovery(recovery, &status, true)),
            )
            .collect(),
        not_ready_because,
    }
}

fn told_recovery(
    recovery: &holdfast_coordinator::RecoveryStatus,
    status: &Status,
    finished: bool,
) -> RecoveryStatus {
    let since_ms = status.cluster_time.0.saturating_sub(recovery.detected_at.0);
    RecoveryStatus {
        log: recovery.log,
        attempt: recovery
            .partitions
            .iter()
            .map(|part| part.attempt)
            .max()
            .unwrap_or(0),
        state: state_of(recovery),
        entries: recovery.partitions.iter().map(|part| part.entries).sum(),
        bytes: recovery.partitions.iter().map(|part| part.bytes).sum(),
        running_ms: recovery.done_ms.unwrap_or(since_ms),
        detected: recovery.detected_at,
        finished,
        phases: phases_of(recovery, status),
    }
}

/// What the recovery has reached, in order of time. A recovery master's own times count from its order to
/// recover, which goes out when the plan is made.
fn phases_of(
    recovery: &holdfast_coordinator::RecoveryStatus,
    status: &Status,
) -> Vec<RecoveryPhase> {
    let mut phases: Vec<RecoveryPhase> = [
        ("log fenced", recovery.fenced_ms),
        ("log sealed", recovery.sealed_ms),
        ("partitions planned", recovery.planned_ms),
        ("all taken over", recovery.taken_over_ms),
        ("all replicated", recovery.done_ms),
    ]
    .into_iter()
    .filter_map(|(name, at_ms)| {
        Some(RecoveryPhase {
            name: name.to_string(),
            at_ms: at_ms?,
        })
    })
    .collect();
    for part in &recovery.partitions {
        let name = status
            .members
            .iter()
            .find(|one| one.member.id == part.master)
            .map_or_else(|| part.master.to_string(), |one| one.member.name.clone());
        let planned_ms = recovery.planned_ms.unwrap_or(0);
        if let Some(timings) = part.timings {
            for (what, ms) in [
                ("first bytes", timings.first_byte_ms),
                ("replayed", timings.replayed_ms),
                ("replicated", timings.replicated_ms),
            ] {
                phases.push(RecoveryPhase {
                    name: format!("{name} {what}"),
                    at_ms: planned_ms + u64::from(ms),
                });
            }
        }
        if let Some(at_ms) = part.taken_over_ms {
            phases.push(RecoveryPhase {
                name: format!("{name} took over"),
                at_ms,
            });
        }
    }
    phases.sort_by_key(|phase| phase.at_ms);
    phases
}

fn state_of(recovery: &holdfast_coordinator::RecoveryStatus) -> String {
    match recovery.phase {
        Phase::Fencing => "waiting for backups to say what they hold".to_string(),
        Phase::Held => match &recovery.hold {
            Some(hold) => format!("on hold: {hold}"),
            None => "on hold".to_string(),
        },
        Phase::Planning => "waiting for masters with room".to_string(),
        Phase::Replaying => {
            let open = recovery
                .partitions
                .iter()
                .filter(|part| part.taken_over_ms.is_none());
            format!("{} masters replay it", open.count())
        }
        Phase::Leaning => {
            let left: u64 = recovery.partitions.iter().map(|part| part.bytes_left).sum();
            format!(
                "leaning: served, {:.1} MB to be replicated",
                left as f64 / 1e6
            )
        }
        Phase::Done => "done".to_string(),
    }
}
