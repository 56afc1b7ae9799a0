//! The administration service and its client.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use holdfast_format::{Epoch, LogId, Namespace, SLOTS, ServerId, Slot, SlotRange};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::{Request, Response, Status};

use super::client::{ClientError, ClientTls, Connection};
use super::failure::CallError;
use super::recoveries::{recovery_from, recovery_to};
use super::server::authorize;
use super::v1;
use super::v1::admin_client::AdminClient as Generated;
use super::v1::admin_server::{Admin, AdminServer};
use super::{AdminHandler, ClusterStatus, GrpcConfig, OrderError};
use crate::message::{Figures, Member, Role, Tablet, View};
use crate::namespaces::{Eviction, NamespaceLimits, NamespacePolicy, NamespaceUse};

/// The `holdfast.v1.Admin` service, answered by `handler`.
pub fn admin_server<H: AdminHandler>(
    handler: Arc<H>,
    config: GrpcConfig,
) -> impl Service<
    http::Request<Body>,
    Response = http::Response<Body>,
    Error = Infallible,
    Future: Send + 'static,
> + NamedService
+ Clone
+ Send
+ Sync
+ 'static {
    AdminServer::new(AdminFace {
        handler,
        config: Arc::new(config),
    })
}

/// Asks a member about its cluster.
#[derive(Clone, Debug)]
pub struct AdminClient {
    connection: Connection,
}

impl AdminClient {
    /// Connects to `host:port`.
    pub async fn connect(
        address: &str,
        password: Option<&str>,
        tls: Option<ClientTls<'_>>,
    ) -> Result<AdminClient, ClientError> {
        Ok(AdminClient {
            connection: Connection::open(address, password, tls).await?,
        })
    }

    /// The cluster as the member knows it.
    pub async fn status(&mut self) -> Result<ClusterStatus, ClientError> {
        let request = self.connection.request(v1::StatusRequest {});
        // A view of many one-slot tablets is longer than tonic's 4 MiB.
        let mut client =
            Generated::new(self.connection.channel()).max_decoding_message_size(usize::MAX);
        status_from(client.status(request).await?.into_inner())
            .ok_or(ClientError::Malformed("the status makes no sense"))
    }

    /// Gives a namespace these limits and no others.
    pub async fn set_namespace(&mut self, policy: NamespacePolicy) -> Result<(), ClientError> {
        let request = self.connection.request(v1::SetNamespaceRequest {
            namespace: policy.namespace.0.into(),
            limits: Some(limits_to(&policy.limits)),
        });
        let mut client = Generated::new(self.connection.channel());
        client.set_namespace(request).await?;
        Ok(())
    }

    /// Takes all limits from a namespace.
    pub async fn unset_namespace(&mut self, namespace: Namespace) -> Result<(), ClientError> {
        let request = self.connection.request(v1::UnsetNamespaceRequest {
            namespace: namespace.0.into(),
        });
        let mut client = Generated::new(self.connection.channel());
        client.unset_namespace(request).await?;
        Ok(())
    }

    /// Gives up a held log by its shard's name.
    pub async fn abandon_recovery(&mut self, log: LogId, shard: &str) -> Result<(), ClientError> {
        let request = self.connection.request(v1::AbandonRecoveryRequest {
            log: log.0,
            shard: shard.to_owned(),
        });
        let mut client = Generated::new(self.connection.channel());
        client.abandon_recovery(request).await?;
        Ok(())
    }
}

struct AdminFace<H> {
    handler: Arc<H>,
    config: Arc<GrpcConfig>,
}

#[tonic::async_trait]
impl<H: AdminHandler> Admin for AdminFace<H> {
    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusReply>, Status> {
        authorize(&self.config, request.metadata())?;
        let status = self.handler.status().await;
        let status = status.map_err(|failure| CallError::from(failure).into_status())?;
        Ok(Response::new(status_to(status)))
    }

    async fn set_namespace(
        &self,
        request: Request<v1::SetNamespaceRequest>,
    ) -> Result<Response<v1::SetNamespaceReply>, Status> {
        authorize(&self.config, request.metadata())?;
        let request = request.into_inner();
        let policy = NamespacePolicy {
            namespace: namespace_from(request.namespace)?,
            limits: limits_from(&request.limits.unwrap_or_default())
                .ok_or_else(|| invalid("limits.evict", "is not known here"))?,
        };
        let done = self.handler.set_namespace(policy).await;
        done.map_err(|failure| CallError::from(failure).into_status())?;
        Ok(Response::new(v1::SetNamespaceReply {}))
    }

    async fn unset_namespace(
        &self,
        request: Request<v1::UnsetNamespaceRequest>,
    ) -> Result<Response<v1::UnsetNamespaceReply>, Status> {
        authorize(&self.config, request.metadata())?;
        let namespace = namespace_from(request.into_inner().namespace)?;
        let done = self.handler.unset_namespace(namespace).await;
        done.map_err(|failure| CallError::from(failure).into_status())?;
        Ok(Response::new(v1::UnsetNamespaceReply {}))
    }

    async fn abandon_recovery(
        &self,
        request: Request<v1::AbandonRecoveryRequest>,
    ) -> Result<Response<v1::AbandonRecoveryReply>, Status> {
        authorize(&self.config, request.metadata())?;
        let v1::AbandonRecoveryRequest { log, shard } = request.into_inner();
        let done = self.handler.abandon_recovery(LogId(log), shard).await;
        done.map_err(|error| match error {
            OrderError::Failed(failure) => CallError::from(failure).into_status(),
            OrderError::Refused(why) => CallError::refused(why).into_status(),
        })?;
        Ok(Response::new(v1::AbandonRecoveryReply {}))
    }
}

fn invalid(field: &'static str, what: &str) -> Status {
    CallError::invalid(vec![(field, what.to_owned())]).into_status()
}

fn namespace_from(number: u32) -> Result<Namespace, Status> {
    u8::try_from(number)
        .map(Namespace)
        .map_err(|_| invalid("namespace", "is at most 255"))
}

fn limits_to(limits: &NamespaceLimits) -> v1::NamespaceLimits {
    let evict = match limits.evict {
        Eviction::Never => v1::Eviction::Never,
        Eviction::OldestIdle => v1::Eviction::OldestIdle,
    };
    v1::NamespaceLimits {
        sessions: limits.sessions,
        bytes: limits.bytes,
        value_bytes: limits.value_bytes,
        evict: evict.into(),
    }
}

/// `None` if they make no sense.
fn limits_from(limits: &v1::NamespaceLimits) -> Option<NamespaceLimits> {
    let evict = match v1::Eviction::try_from(limits.evict).ok()? {
        v1::Eviction::Never => Eviction::Never,
        v1::Eviction::OldestIdle => Eviction::OldestIdle,
    };
    Some(NamespaceLimits {
        sessions: limits.sessions,
        bytes: limits.bytes,
        value_bytes: limits.value_bytes,
        evict,
    })
}

/// Everything that is known of a namespace, in one message each.
fn namespaces_to(status: &ClusterStatus) -> Vec<v1::Namespace> {
    let mut all: BTreeMap<Namespace, v1::Namespace> = BTreeMap::new();
    for policy in &status.view.namespaces {
        let one = all.entry(policy.namespace).or_default();
        one.limits = Some(limits_to(&policy.limits));
    }
    for used in &status.namespaces {
        let one = all.entry(used.namespace).or_default();
        (one.sessions, one.with_deadline) = (used.sessions, used.with_deadline);
        (one.bytes, one.evicted) = (used.bytes, used.evicted);
    }
    all.into_iter()
        .map(|(namespace, one)| v1::Namespace {
            number: namespace.0.into(),
            ..one
        })
        .collect()
}

fn namespaces_from(told: &[v1::Namespace]) -> Option<(Vec<NamespacePolicy>, Vec<NamespaceUse>)> {
    let (mut policies, mut uses) = (Vec::new(), Vec::new());
    for one in told {
        let namespace = Namespace(u8::try_from(one.number).ok()?);
        if let Some(limits) = &one.limits {
            let limits = limits_from(limits)?;
            policies.push(NamespacePolicy { namespace, limits });
        }
        uses.push(NamespaceUse {
            namespace,
            sessions: one.sessions,
            with_deadline: one.with_deadline,
            bytes: one.bytes,
            evicted: one.evicted,
        });
    }
    Some((policies, uses))
}

fn status_to(status: ClusterStatus) -> v1::StatusReply {
    let figures = |id: ServerId| {
        let (_, figures) = status.figures.iter().find(|(of, _)| *of == id)?;
        Some(figures_to(figures))
    };
    // A log without a report of its own is still being recovered, and must not be left out.
    let silent = status.view.recovering.iter().filter(|log| {
        !status
            .recoveries
            .iter()
            .any(|recovery| recovery.log == **log)
    });
    let silent = silent.map(|log| v1::Recovery {
        log: log.0,
        ..Default::default()
    });
    v1::StatusReply {
        cluster: status.cluster,
        view_version: status.view.version,
        replicas: u32::from(status.replicas),
        ack_quorum: u32::from(status.ack_quorum),
        members: status
            .view
            .members
            .iter()
            .map(|m| v1::Member {
                slow: status.view.slow.contains(&m.id),
                ..member_to(m, figures(m.id))
            })
            .collect(),
        tablets: status.view.tablets.iter().map(tablet_to).collect(),
        recoveries: status
            .recoveries
            .iter()
            .map(recovery_to)
            .chain(silent)
            .collect(),
        namespaces: namespaces_to(&status),
        ready: status.not_ready_because.is_empty(),
        not_ready_because: status.not_ready_because,
    }
}

/// `None` if it makes no sense.
fn status_from(reply: v1::StatusReply) -> Option<ClusterStatus> {
    let mut figures = Vec::new();
    let mut members = Vec::new();
    let mut slow = Vec::new();
    for member in reply.members {
        if member.slow {
            slow.push(ServerId(member.id));
        }
        if let Some(told) = &member.figures {
            figures.push((ServerId(member.id), figures_from(told)));
        }
        members.push(member_from(member)?);
    }
    let (policies, uses) = namespaces_from(&reply.namespaces)?;
    let tablets: Option<Vec<Tablet>> = reply.tablets.iter().map(tablet_from).collect();
    Some(ClusterStatus {
        cluster: reply.cluster,
        replicas: u8::try_from(reply.replicas).ok()?,
        ack_quorum: u8::try_from(reply.ack_quorum).ok()?,
        view: View {
            version: reply.view_version,
            members,
            tablets: tablets?,
            recovering: reply
                .recoveries
                .iter()
                .map(|recovery| LogId(recovery.log))
                .collect(),
            namespaces: policies,
            slow,
        },
        namespaces: uses,
        figures,
        recoveries: reply.recoveries.into_iter().map(recovery_from).collect(),
        not_ready_because: reply.not_ready_because,
    })
}

fn member_to(member: &Member, figures: Option<v1::Figures>) -> v1::Member {
    let role = match member.role {
        Role::Coordinator => v1::Role::Coordinator,
        Role::Shard => v1::Role::Shard,
        Role::Backup => v1::Role::Backup,
        Role::Gateway => v1::Role::Gateway,
    };
    v1::Member {
        id: member.id.0,
        role: role.into(),
        name: member.name.clone(),
        address: member.address.clone(),
        machine: member.machine.clone(),
        pid: member.pid,
        resp_cluster: member.resp_cluster.clone(),
        store: member.store,
        figures,
        slow: false,
    }
}

fn member_from(member: v1::Member) -> Option<Member> {
    let role = match member.role() {
        v1::Role::Unspecified => return None,
        v1::Role::Coordinator => Role::Coordinator,
        v1::Role::Shard => Role::Shard,
        v1::Role::Backup => Role::Backup,
        v1::Role::Gateway => Role::Gateway,
    };
    Some(Member {
        id: ServerId(member.id),
        role,
        address: member.address,
        machine: member.machine,
        pid: member.pid,
        resp_cluster: member.resp_cluster,
        name: member.name,
        store: member.store,
    })
}

fn tablet_to(tablet: &Tablet) -> v1::Tablet {
    v1::Tablet {
        first_slot: u32::from(tablet.range.first.0),
        last_slot: u32::from(tablet.range.last.0),
        owner: tablet.owner.0,
        epoch: tablet.epoch.0,
        available: tablet.available,
    }
}

fn tablet_from(tablet: &v1::Tablet) -> Option<Tablet> {
    let slot = |number: u32| u16::try_from(number).ok().filter(|&n| n < SLOTS).map(Slot);
    let range = SlotRange {
        first: slot(tablet.first_slot)?,
        last: slot(tablet.last_slot)?,
    };
    (range.first <= range.last).then_some(Tablet {
        range,
        owner: LogId(tablet.owner),
        epoch: Epoch(tablet.epoch),
        available: tablet.available,
    })
}

/// Figures have the same fields on both sides; naming each once keeps them in step.
macro_rules! figures {
    ($($field:ident)*) => {
        fn figures_to(figures: &Figures) -> v1::Figures {
            let Figures { $($field),* } = *figures;
            v1::Figures { $($field),* }
        }
        fn figures_from(figures: &v1::Figures) -> Figures {
            let v1::Figures { $($field),* } = *figures;
            Figures { $($field),* }
        }
    };
}
figures!(
    sessions bytes_used bytes_limit segments under_replicated operations disk_used disk_limit clock_error_us bytes_live bytes_reclaimable
    bytes_reserved bytes_index bytes_records bytes_external bytes_huge expired evicted scrub_permille scrub_passes scrub_bad);
