//! The gRPC face: sessions answered by the gateway of this process, administration by the
//! coordinator wherever it is.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use holdfast_cluster::Order;
use holdfast_coordinator::Status;
use holdfast_format::{ClientId, ClusterMs, LogId, Namespace};
use holdfast_wire::grpc::{
    AdminClient, AdminHandler, ClientError, ClientGrant, ClusterStatus, DESCRIPTORS, GrpcConfig,
    OrderError, SessionCall, SessionsHandler, admin_server, sessions_server,
};
use holdfast_wire::{Failure, NamespacePolicy, Outcome};
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
use crate::told::told;

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
        let done = self.order(Order::SetNamespace(policy)).await;
        done.map_err(as_failure)
    }

    async fn unset_namespace(&self, namespace: Namespace) -> Result<(), Failure> {
        let done = self.order(Order::UnsetNamespace(namespace)).await;
        done.map_err(as_failure)
    }

    async fn abandon_recovery(&self, log: LogId, shard: String) -> Result<(), OrderError> {
        self.order(Order::AbandonRecovery { log, shard }).await
    }
}

impl Administration {
    /// Has the coordinator do something, here or where it is.
    async fn order(&self, order: Order) -> Result<(), OrderError> {
        let unreachable = Err(OrderError::Failed(Failure::Unreachable));
        let unknown = Err(OrderError::Failed(Failure::OutcomeUnknown));
        match &self.admin {
            Admin::Here => {
                for inbox in self.world.switchboard.inboxes() {
                    let (reply, done) = oneshot::channel();
                    let order = order.clone();
                    inbox.post(Letter::Order { order, reply });
                    match tokio::time::timeout(STATUS_PATIENCE, done).await {
                        Ok(Ok(done)) => return done.map_err(OrderError::Refused),
                        // Not the coordinator's thread.
                        Ok(Err(_)) => {}
                        Err(_) => return unknown,
                    }
                }
                unreachable
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
                        Order::AbandonRecovery { log, shard } => {
                            client.abandon_recovery(log, &shard).await
                        }
                    }
                };
                match tokio::time::timeout(STATUS_PATIENCE, ordering).await {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(ClientError::Refused { code, message, .. }))
                        if code == "FailedPrecondition" =>
                    {
                        Err(OrderError::Refused(message))
                    }
                    Ok(Err(error)) => {
                        tracing::debug!("the coordinator did not take an order: {error}");
                        unreachable
                    }
                    Err(_) => unknown,
                }
            }
            Admin::Nobody => unreachable,
        }
    }
}

/// Of an order that always makes sense.
fn as_failure(error: OrderError) -> Failure {
    match error {
        OrderError::Failed(failure) => failure,
        OrderError::Refused(why) => Failure::Invalid(why),
    }
}
