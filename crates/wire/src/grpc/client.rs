//! A thin client in the domain's own types, for the command line and for tests.

use std::time::Duration;

use bytes::Bytes;
use holdfast_format::{ClientId, ClusterMs, KeyHash, Version};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use super::failure::VERSION;
use super::v1;
use super::v1::sessions_client::SessionsClient as Generated;
use super::{ClientGrant, SessionCall};
use crate::command::{
    AbsoluteDeadline, Condition, ExpiryChange, Meta, Once, Op, Outcome, TouchCondition,
};

/// Why a call has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    #[error("cannot connect to {address}: {why}")]
    Connect { address: String, why: String },
    #[error("a password cannot be sent that is not printable ASCII")]
    Password,
    #[error("gRPC has no way to ask this")]
    Unsupported,
    #[error("{0}")]
    Malformed(&'static str),
    /// The server refused, with the name of the gRPC status.
    #[error("{message} ({code})")]
    Refused {
        code: String,
        message: String,
        retry_after_ms: Option<u32>,
    },
}

impl From<Status> for ClientError {
    fn from(status: Status) -> ClientError {
        let retry = status
            .get_error_details()
            .retry_info()
            .and_then(|info| info.retry_delay);
        ClientError::Refused {
            code: format!("{:?}", status.code()),
            message: status.message().to_owned(),
            retry_after_ms: retry.map(|delay| u32::try_from(delay.as_millis()).unwrap_or(u32::MAX)),
        }
    }
}

/// A channel and the credentials for it.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    channel: Channel,
    authorization: Option<MetadataValue<Ascii>>,
}

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

impl Connection {
    pub(super) async fn open(
        address: &str,
        password: Option<&str>,
    ) -> Result<Connection, ClientError> {
        let authorization = match password {
            Some(password) => {
                let mut value: MetadataValue<Ascii> = format!("Bearer {password}")
                    .parse()
                    .map_err(|_| ClientError::Password)?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let failed = |error: tonic::transport::Error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            ClientError::Connect {
                address: address.to_owned(),
                why: source.unwrap_or_else(|| error.to_string()),
            }
        };
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(failed)?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .connect()
            .await
            .map_err(failed)?;
        Ok(Connection {
            channel,
            authorization,
        })
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(authorization) = &self.authorization {
            request
                .metadata_mut()
                .insert("authorization", authorization.clone());
        }
        request
    }
}

/// Calls `holdfast.v1.Sessions`.
#[derive(Clone, Debug)]
pub struct SessionsClient {
    connection: Connection,
    generated: Generated<Channel>,
}

impl SessionsClient {
    /// Connects to `host:port`.
    pub async fn connect(
        address: &str,
        password: Option<&str>,
    ) -> Result<SessionsClient, ClientError> {
        let connection = Connection::open(address, password).await?;
        let generated = Generated::new(connection.channel()).max_decoding_message_size(usize::MAX);
        Ok(SessionsClient {
            connection,
            generated,
        })
    }

    /// An identity for exactly-once writes.
    pub async fn open_client(&mut self) -> Result<ClientGrant, ClientError> {
        let request = self.connection.request(v1::OpenClientRequest {});
        let reply = self.generated.open_client(request).await?.into_inner();
        Ok(ClientGrant {
            client: ClientId(reply.client_id),
            lease_until: ClusterMs(reply.lease_until_unix_ms),
        })
    }

    /// Executes one command: `Get`, `Stat`, `Put`, `Touch` or `Delete` with the conditions and
    /// expiries that the service knows, and `Scan`; others are `Unsupported`.
    pub async fn call(&mut self, call: SessionCall) -> Result<Outcome, ClientError> {
        let SessionCall {
            command,
            once,
            within_ms,
        } = call;
        let namespace = u32::from(command.namespace.0);
        let key = command.key;
        let idempotency = once.map(idempotency);
        match command.op {
            Op::Get | Op::Stat => {
                let times_only = command.op == Op::Stat;
                let read = v1::ReadRequest {
                    namespace,
                    key,
                    touch: false,
                    times_only,
                    idempotency,
                };
                let result = self.generated.read(self.request(read, within_ms)).await;
                outcome(result, |reply| {
                    value(reply.version, reply.times, reply.value)
                })
            }
            Op::Touch {
                condition: TouchCondition::Always,
                expiry: ExpiryChange::Slide,
                return_value: true,
            } => {
                let read = v1::ReadRequest {
                    namespace,
                    key,
                    touch: true,
                    times_only: false,
                    idempotency,
                };
                let result = self.generated.read(self.request(read, within_ms)).await;
                outcome(result, |reply| {
                    value(reply.version, reply.times, reply.value)
                })
            }
            Op::Put {
                value,
                condition: Condition::Absent,
                expiry,
                return_old: false,
            } if expiry != ExpiryChange::Keep => {
                let expiry = expiry_given(expiry, ExpiryChange::Keep)?;
                let create = v1::CreateRequest {
                    namespace,
                    key,
                    value,
                    expiry,
                    idempotency,
                };
                let result = self.generated.create(self.request(create, within_ms)).await;
                outcome(result, |reply| done(reply.version, reply.times))
            }
            Op::Put {
                value,
                condition,
                expiry,
                return_old: false,
            } => {
                use v1::write_request::Condition as Given;
                let condition = match condition {
                    Condition::Always => None,
                    Condition::Absent => Some(Given::MustNotExist(true)),
                    Condition::Present => Some(Given::MustExist(true)),
                    Condition::Version(version) => Some(Given::Version(version.0)),
                    Condition::ValueIs(_) => return Err(ClientError::Unsupported),
                };
                let expiry = expiry_given(expiry, ExpiryChange::Keep)?;
                let write = v1::WriteRequest {
                    namespace,
                    key,
                    value,
                    condition,
                    expiry,
                    idempotency,
                };
                let result = self.generated.write(self.request(write, within_ms)).await;
                outcome(result, |reply| done(reply.version, reply.times))
            }
            Op::Touch {
                condition,
                expiry,
                return_value: false,
            } => {
                let version = match condition {
                    TouchCondition::Always => None,
                    TouchCondition::Version(version) => Some(version.0),
                    _ => return Err(ClientError::Unsupported),
                };
                let expiry = expiry_given(expiry, ExpiryChange::Slide)?;
                let touch = v1::TouchRequest {
                    namespace,
                    key,
                    version,
                    expiry,
                    idempotency,
                };
                let result = self.generated.touch(self.request(touch, within_ms)).await;
                outcome(result, |reply| done(reply.version, reply.times))
            }
            Op::Delete {
                condition,
                return_old: false,
            } => {
                use v1::delete_request::Condition as Given;
                let condition = match condition {
                    Condition::Always => None,
                    Condition::Present => Some(Given::MustExist(true)),
                    Condition::Version(version) => Some(Given::Version(version.0)),
                    Condition::Absent | Condition::ValueIs(_) => {
                        return Err(ClientError::Unsupported);
                    }
                };
                let delete = v1::DeleteRequest {
                    namespace,
                    key,
                    condition,
                    idempotency,
                };
                let result = self.generated.delete(self.request(delete, within_ms)).await;
                outcome(result, |reply| match reply.existed {
                    true => done(reply.version, None),
                    false => Outcome::Absent {
                        version: Version(reply.version),
                    },
                })
            }
            Op::Scan { from, limit } => {
                let list = v1::ListRequest {
                    namespace,
                    cursor: Some(from.0),
                    limit: Some(limit),
                };
                let result = self.generated.list(self.request(list, within_ms)).await;
                outcome(result, |reply| Outcome::Scanned {
                    keys: reply
                        .keys
                        .into_iter()
                        .map(|key| (KeyHash::of(command.namespace, &key), key))
                        .collect(),
                    next: reply.next.map(KeyHash),
                })
            }
            Op::Put { .. } | Op::Touch { .. } | Op::Delete { .. } | Op::Count | Op::Flush => {
                Err(ClientError::Unsupported)
            }
        }
    }

    fn request<T>(&self, message: T, within_ms: Option<u32>) -> Request<T> {
        let mut request = self.connection.request(message);
        if let Some(ms) = within_ms {
            request.set_timeout(Duration::from_millis(u64::from(ms)));
        }
        request
    }
}

fn idempotency(once: Once) -> v1::Idempotency {
    v1::Idempotency {
        client_id: once.client.0,
        sequence: once.sequence,
        acknowledged_below: once.acknowledged,
        lease_until_unix_ms: once.lease_until.0,
    }
}

/// The expiry as a request gives it; `absent` is what leaving it out means.
fn expiry_given(
    expiry: ExpiryChange,
    absent: ExpiryChange,
) -> Result<Option<v1::Expiry>, ClientError> {
    use v1::expiry::Absolute as Given;
    match expiry {
        expiry if expiry == absent => Ok(None),
        ExpiryChange::Clear => Ok(Some(v1::Expiry::default())),
        ExpiryChange::Session { idle_ms, absolute } => {
            let absolute = absolute.map(|absolute| match absolute {
                AbsoluteDeadline::At(at) => Given::AbsoluteUnixMs(at.0),
                AbsoluteDeadline::InMs(ms) => Given::AbsoluteInMs(ms),
            });
            Ok(Some(v1::Expiry { idle_ms, absolute }))
        }
        _ => Err(ClientError::Unsupported),
    }
}

/// A reply, or the outcome that an error status stands for.
fn outcome<R>(
    result: Result<tonic::Response<R>, Status>,
    reply: impl FnOnce(R) -> Outcome,
) -> Result<Outcome, ClientError> {
    let status = match result {
        Ok(response) => return Ok(reply(response.into_inner())),
        Err(status) => status,
    };
    let details = status.get_error_details();
    let version = details
        .error_info()
        .and_then(|info| info.metadata.get(VERSION)?.parse().ok());
    match (status.code(), version.map(Version)) {
        (Code::NotFound, Some(version)) => Ok(Outcome::Absent { version }),
        (Code::AlreadyExists | Code::Aborted, Some(version)) => Ok(Outcome::Refused {
            version,
            current: Some(Meta {
                version,
                ..Meta::default()
            }),
            old: None,
        }),
        _ => Err(status.into()),
    }
}

fn value(version: u64, times: Option<v1::Times>, value: Bytes) -> Outcome {
    Outcome::Value {
        value,
        meta: meta(version, times),
    }
}

fn done(version: u64, times: Option<v1::Times>) -> Outcome {
    Outcome::Done {
        meta: meta(version, times),
        old: None,
    }
}

fn meta(version: u64, times: Option<v1::Times>) -> Meta {
    let times = times.unwrap_or_default();
    Meta {
        version: Version(version),
        deadline: times.deadline_unix_ms.map(ClusterMs),
        idle_ms: times.idle_ms,
        absolute: times.absolute_unix_ms.map(ClusterMs),
        remaining_ms: times.remaining_ms,
    }
}
