//! A thin client in the domain's own types, for the command line and for tests.

use std::time::Duration;

use futures_util::{Stream, StreamExt};
use holdfast_format::{ClientId, ClusterMs, KeyHash, Namespace, Version};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use super::failure::VERSION;
use super::v1;
use super::v1::result::Result as Told;
use super::v1::sessions_client::SessionsClient as Generated;
use super::v1::stream_request::Request as Asked;
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

/// What a client needs for TLS, as PEM. The server must be certified under the name it is dialled by.
#[derive(Clone, Copy, Debug)]
pub struct ClientTls<'a> {
    pub ca_pem: &'a [u8],
    /// Certificate and key, where the server asks for one.
    pub identity_pem: Option<(&'a [u8], &'a [u8])>,
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
        tls: Option<ClientTls<'_>>,
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
            // The innermost cause is the one that a person can do something about.
            let mut cause: &dyn std::error::Error = &error;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            ClientError::Connect {
                address: address.to_owned(),
                why: cause.to_string(),
            }
        };
        let endpoint = match tls {
            None => Endpoint::from_shared(format!("http://{address}")).map_err(failed)?,
            Some(tls) => {
                let mut config =
                    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(tls.ca_pem));
                if let Some((cert, key)) = tls.identity_pem {
                    config = config.identity(Identity::from_pem(cert, key));
                }
                Endpoint::from_shared(format!("https://{address}"))
                    .and_then(|endpoint| endpoint.tls_config(config))
                    .map_err(failed)?
            }
        };
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

    fn timed<T>(&self, message: T, within_ms: Option<u32>) -> Request<T> {
        let mut request = self.request(message);
        if let Some(ms) = within_ms {
            request.set_timeout(Duration::from_millis(u64::from(ms)));
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
        tls: Option<ClientTls<'_>>,
    ) -> Result<SessionsClient, ClientError> {
        let connection = Connection::open(address, password, tls).await?;
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
    /// expiries that the service knows, or `Scan`; others are `Unsupported`.
    pub async fn call(&mut self, call: SessionCall) -> Result<Outcome, ClientError> {
        let within_ms = call.within_ms;
        if let Op::Scan { from, limit } = call.command.op {
            return self
                .list(call.command.namespace, from, limit, within_ms)
                .await;
        }
        let answer = match asked(call)? {
            Asked::Create(create) => {
                let request = self.connection.timed(create, within_ms);
                self.generated
                    .create(request)
                    .await
                    .map(|reply| Told::Create(reply.into_inner()))
            }
            Asked::Read(read) => {
                let request = self.connection.timed(read, within_ms);
                self.generated
                    .read(request)
                    .await
                    .map(|reply| Told::Read(reply.into_inner()))
            }
            Asked::Write(write) => {
                let request = self.connection.timed(write, within_ms);
                self.generated
                    .write(request)
                    .await
                    .map(|reply| Told::Write(reply.into_inner()))
            }
            Asked::Touch(touch) => {
                let request = self.connection.timed(touch, within_ms);
                self.generated
                    .touch(request)
                    .await
                    .map(|reply| Told::Touch(reply.into_inner()))
            }
            Asked::Delete(delete) => {
                let request = self.connection.timed(delete, within_ms);
                self.generated
                    .delete(request)
                    .await
                    .map(|reply| Told::Delete(reply.into_inner()))
            }
        };
        match answer {
            Ok(told) => outcome(told),
            Err(status) => {
                let details = status.get_error_details();
                let version = details
                    .error_info()
                    .and_then(|info| info.metadata.get(VERSION));
                let version = version.and_then(|version| version.parse().ok());
                absent_or_refused(status.code(), version).map_or_else(|| Err(status.into()), Ok)
            }
        }
    }

    async fn list(
        &mut self,
        namespace: Namespace,
        from: KeyHash,
        limit: u32,
        within_ms: Option<u32>,
    ) -> Result<Outcome, ClientError> {
        let request = v1::ListRequest {
            namespace: u32::from(namespace.0),
            cursor: Some(from.0),
            limit: Some(limit),
        };
        let request = self.connection.timed(request, within_ms);
        let reply = self.generated.list(request).await?.into_inner();
        let keys = reply
            .keys
            .into_iter()
            .map(|key| (KeyHash::of(namespace, &key), key));
        Ok(Outcome::Scanned {
            keys: keys.collect(),
            next: reply.next.map(KeyHash),
        })
    }

    /// Executes several commands of one kind (all reads, all writes, …) in one call; each has an
    /// outcome of its own, in their order. `within_ms` of the calls is not looked at.
    pub async fn batch(
        &mut self,
        calls: Vec<SessionCall>,
    ) -> Result<Vec<Result<Outcome, ClientError>>, ClientError> {
        let asked: Vec<Asked> = calls.into_iter().map(asked).collect::<Result<_, _>>()?;
        macro_rules! send {
            ($kind:ident, $method:ident, $message:ident) => {{
                let items: Option<Vec<_>> = asked
                    .into_iter()
                    .map(|asked| match asked {
                        Asked::$kind(item) => Some(item),
                        _ => None,
                    })
                    .collect();
                let items = items.ok_or(ClientError::Unsupported)?;
                let request = self.connection.request(v1::$message { items });
                self.generated.$method(request).await?.into_inner()
            }};
        }
        let reply = match asked.first() {
            None => return Ok(Vec::new()),
            Some(Asked::Create(_)) => send!(Create, batch_create, BatchCreateRequest),
            Some(Asked::Read(_)) => send!(Read, batch_read, BatchReadRequest),
            Some(Asked::Write(_)) => send!(Write, batch_write, BatchWriteRequest),
            Some(Asked::Touch(_)) => send!(Touch, batch_touch, BatchTouchRequest),
            Some(Asked::Delete(_)) => send!(Delete, batch_delete, BatchDeleteRequest),
        };
        Ok(reply.results.into_iter().map(result).collect())
    }

    /// Executes commands of any kind as they come; outcomes come in the same order. A command that
    /// the service has no way to ask ends the stream.
    pub async fn stream(
        &mut self,
        calls: impl Stream<Item = SessionCall> + Send + 'static,
    ) -> Result<impl Stream<Item = Result<Outcome, ClientError>> + Send, ClientError> {
        let requests = calls
            .map(|call| asked(call).ok())
            .take_while(|asked| std::future::ready(asked.is_some()))
            .map(|request| v1::StreamRequest { request });
        let request = self.connection.request(requests);
        let results = self.generated.stream(request).await?.into_inner();
        Ok(results.map(|told| result(told?)))
    }
}

/// The request that asks for a command.
fn asked(call: SessionCall) -> Result<Asked, ClientError> {
    let SessionCall {
        command,
        once,
        within_ms: _,
    } = call;
    let namespace = u32::from(command.namespace.0);
    let key = command.key;
    let idempotency = once.map(idempotency);
    let (touch, times_only) = match command.op {
        Op::Get => (false, false),
        Op::Stat => (false, true),
        Op::Touch {
            condition: TouchCondition::Always,
            expiry: ExpiryChange::Slide,
            return_value: true,
        } => (true, false),
        Op::Put {
            value,
            condition: Condition::Absent,
            expiry,
            return_old: false,
        } if expiry != ExpiryChange::Keep => {
            let expiry = expiry_given(expiry, ExpiryChange::Clear)?;
            return Ok(Asked::Create(v1::CreateRequest {
                namespace,
                key,
                value,
                expiry,
                idempotency,
            }));
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
            return Ok(Asked::Write(v1::WriteRequest {
                namespace,
                key,
                value,
                condition,
                expiry,
                idempotency,
            }));
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
            return Ok(Asked::Touch(v1::TouchRequest {
                namespace,
                key,
                version,
                expiry,
                idempotency,
            }));
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
                Condition::Absent | Condition::ValueIs(_) => return Err(ClientError::Unsupported),
            };
            return Ok(Asked::Delete(v1::DeleteRequest {
                namespace,
                key,
                condition,
                idempotency,
            }));
        }
        Op::Put { .. }
        | Op::Touch { .. }
        | Op::Delete { .. }
        | Op::Scan { .. }
        | Op::Count
        | Op::Usage
        | Op::Add { .. }
        | Op::Append { .. }
        | Op::Flush => return Err(ClientError::Unsupported),
    };
    Ok(Asked::Read(v1::ReadRequest {
        namespace,
        key,
        touch,
        times_only,
        idempotency,
    }))
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

/// The outcome that an item of a batch or stream stands for.
fn result(result: v1::Result) -> Result<Outcome, ClientError> {
    outcome(
        result
            .result
            .ok_or(ClientError::Malformed("a result is empty"))?,
    )
}

fn outcome(told: Told) -> Result<Outcome, ClientError> {
    Ok(match told {
        Told::Create(reply) => done(reply.version, reply.times),
        Told::Write(reply) => done(reply.version, reply.times),
        Told::Touch(reply) => done(reply.version, reply.times),
        Told::Delete(reply) if reply.existed => done(reply.version, None),
        Told::Delete(reply) => Outcome::Absent {
            version: Version(reply.version),
        },
        Told::Read(reply) => Outcome::Value {
            value: reply.value,
            meta: meta(reply.version, reply.times),
        },
        Told::Error(error) => {
            let code = Code::from_i32(error.code);
            match absent_or_refused(code, error.version) {
                Some(outcome) => outcome,
                None => {
                    return Err(ClientError::Refused {
                        code: format!("{code:?}"),
                        message: error.message,
                        retry_after_ms: error.retry_after_ms,
                    });
                }
            }
        }
    })
}

/// The outcome that a status with a version stands for.
fn absent_or_refused(code: Code, version: Option<u64>) -> Option<Outcome> {
    let version = Version(version?);
    match code {
        Code::NotFound => Some(Outcome::Absent { version }),
        Code::AlreadyExists | Code::Aborted => Some(Outcome::Refused {
            version,
            current: Some(Meta {
                version,
                ..Meta::default()
            }),
            old: None,
        }),
        _ => None,
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
