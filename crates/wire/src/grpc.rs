//! The native gRPC interface: `holdfast.v1.Sessions` and `holdfast.v1.Admin`.
//!
//! Generated types never leave this module. A server implements `SessionsHandler` and
//! `AdminHandler`, which speak in the domain's own types, and mounts what `sessions_server` and
//! `admin_server` give; a program uses `SessionsClient` and `AdminClient`.
//!
//! What is refused without asking a shard is refused here: bad credentials, arguments that make no
//! sense (INVALID_ARGUMENT with every field at fault), batches that are too long. `failure` says which
//! status each outcome gets.

mod admin;
mod client;
mod convert;
mod echo;
mod failure;
mod lane;
mod recoveries;
mod server;

/// Generated from `proto/`.
#[allow(
    missing_debug_implementations,
    clippy::all,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    clippy::unwrap_used
)]
mod v1 {
    tonic::include_proto!("holdfast.v1");
}

/// The definitions of both services, as a serialized `FileDescriptorSet`: for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/holdfast.v1.bin"));

use std::future::Future;
use std::task::{Context, Poll};

use holdfast_format::{ClientId, ClusterMs, LogId, Namespace, ServerId};

use crate::command::{Command, Failure, Once, Outcome};
use crate::message::{Figures, View};
use crate::namespaces::{NamespacePolicy, NamespaceUse};

pub use admin::{AdminClient, admin_server};
pub use client::{ClientError, ClientTls, SessionsClient};
pub use echo::echo_server;
pub use recoveries::{
    RecoveryHold, RecoveryPart, RecoveryPhase, RecoveryStage, RecoveryStatus, StoreAway,
};
pub use server::sessions_server;

/// One command from a gRPC client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionCall {
    pub command: Command,
    /// The client's own; without it the write is executed once per call.
    pub once: Option<Once>,
    /// Answer by then, in milliseconds from now.
    pub within_ms: Option<u32>,
}

/// A new client for exactly-once writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientGrant {
    pub client: ClientId,
    pub lease_until: ClusterMs,
}

/// Executes session commands; whoever mounts `sessions_server` provides one.
///
/// A call that is dropped (its client went away) may or may not be executed.
pub trait SessionsHandler: Send + Sync + 'static {
    type Lane: SessionLane;
    /// Answers one command.
    fn call(&self, call: SessionCall) -> impl Future<Output = Outcome> + Send;
    /// A way for the requests of one stream or batch.
    fn open_lane(&self) -> Self::Lane;
    /// Makes a client known by which writes are executed exactly once.
    fn open_client(&self) -> impl Future<Output = Result<ClientGrant, Failure>> + Send;
}

/// Commands of one stream or batch. They begin in order, and their outcomes come in the same order.
pub trait SessionLane: Unpin + Send + 'static {
    /// Takes a call on, to be begun with those before it.
    fn push(&mut self, call: SessionCall);
    /// Begins what was pushed.
    fn begin(&mut self);
    /// The outcome of the earliest call that has none yet; if there is no such call, pending for ever.
    fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<Outcome>;
}

/// Tells about the cluster and orders it; whoever mounts `admin_server` provides one.
pub trait AdminHandler: Send + Sync + 'static {
    fn status(&self) -> impl Future<Output = Result<ClusterStatus, Failure>> + Send;
    /// Gives a namespace these limits and no others; returns when that is durable.
    fn set_namespace(
        &self,
        policy: NamespacePolicy,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Takes all limits from a namespace.
    fn unset_namespace(
        &self,
        namespace: Namespace,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Gives up a held log by its shard's name; returns when that is durable.
    fn abandon_recovery(
        &self,
        log: LogId,
        shard: String,
    ) -> impl Future<Output = Result<(), OrderError>> + Send;
}

/// Why an order was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrderError {
    Failed(Failure),
    /// It makes no sense as things are, and has changed nothing.
    Refused(String),
}

/// The cluster as one member knows it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ClusterStatus {
    pub cluster: u64,
    pub replicas: u8,
    /// So many of them acknowledge a write.
    pub ack_quorum: u8,
    pub view: View,
    /// Of the members that have told some.
    pub figures: Vec<(ServerId, Figures)>,
    /// What all shards together have of each namespace, by number.
    pub namespaces: Vec<NamespaceUse>,
    pub recoveries: Vec<RecoveryStatus>,
    /// Why the cluster is not ready, one sentence each; empty: ready.
    pub not_ready_because: Vec<String>,
}

/// Bounds and credentials of the gRPC face.
#[derive(Clone)]
pub struct GrpcConfig {
    /// Longest message; longer ones fail with OUT_OF_RANGE before they are read.
    pub message_bytes_max: usize,
    /// Most items of a batch.
    pub batch_items_max: usize,
    /// Most unanswered requests of one stream; beyond, it is not read until some are answered.
    pub stream_requests_max: usize,
    /// Most bytes that they and their answers take, before one more is read; of a batch's items too.
    pub stream_bytes_max: usize,
    /// If given, every call must carry `authorization: Bearer <password>`.
    pub password: Option<String>,
}

impl GrpcConfig {
    /// For values up to `value_bytes_max`, and 4 MiB of small ones.
    pub fn for_values(value_bytes_max: u32) -> GrpcConfig {
        let message_bytes_max = (value_bytes_max as usize + 128 * 1024).max(4 * 1024 * 1024);
        GrpcConfig {
            message_bytes_max,
            batch_items_max: 1024,
            stream_requests_max: 256,
            // A message has room for them.
            stream_bytes_max: message_bytes_max,
            password: None,
        }
    }
}

impl std::fmt::Debug for GrpcConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrpcConfig")
            .field("message_bytes_max", &self.message_bytes_max)
            .field("batch_items_max", &self.batch_items_max)
            .field("stream_requests_max", &self.stream_requests_max)
            .field("stream_bytes_max", &self.stream_bytes_max)
            .field("password", &self.password.as_ref().map(|_| "…"))
            .finish()
    }
}
