//! The services as tonic mounts them.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use futures_util::{Stream, StreamExt};
use holdfast_format::{KeyHash, Namespace};
use prost::Message;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};

use super::convert::Asked;
use super::failure::CallError;
use super::lane::{Bounds, Results, item_of};
use super::v1;
use super::v1::result::Result as Told;
use super::v1::sessions_server::{Sessions, SessionsServer};
use super::{GrpcConfig, SessionCall, SessionsHandler};
use crate::command::{Command, Op, Outcome};
use crate::handshake::secrets_equal;

/// The `holdfast.v1.Sessions` service, answered by `handler`.
pub fn sessions_server<H: SessionsHandler>(
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
    let message_bytes_max = config.message_bytes_max;
    SessionsServer::new(SessionsFace {
        handler,
        config: Arc::new(config),
    })
    .max_decoding_message_size(message_bytes_max)
    // A batch of reads may answer with more than it asked with.
    .max_encoding_message_size(usize::MAX)
}

/// Fails unless the call carries the password, if there is one.
pub(super) fn authorize(config: &GrpcConfig, metadata: &MetadataMap) -> Result<(), Status> {
    let Some(password) = &config.password else {
        return Ok(());
    };
    let given = metadata
        .get("authorization")
        .and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    match given {
        Some(given) if secrets_equal(given.as_bytes(), password.as_bytes()) => Ok(()),
        _ => Err(CallError::unauthenticated().into_status()),
    }
}

/// Sessions in generated clothes.
struct SessionsFace<H> {
    handler: Arc<H>,
    config: Arc<GrpcConfig>,
}

impl<H: SessionsHandler> SessionsFace<H> {
    /// Checks credentials; the message and the time that the caller allows.
    fn open<T>(&self, request: Request<T>) -> Result<(T, Option<u32>), Status> {
        authorize(&self.config, request.metadata())?;
        let within_ms = within_ms(request.metadata());
        Ok((request.into_inner(), within_ms))
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            requests_max: self.config.stream_requests_max,
            bytes_max: self.config.stream_bytes_max,
        }
    }

    async fn one<T>(&self, request: Request<T>) -> Result<Told, Status>
    where
        T: TryInto<Asked, Error = CallError>,
    {
        let (request, within_ms) = self.open(request)?;
        execute(&*self.handler, request.try_into(), within_ms)
            .await
            .map_err(CallError::into_status)
    }

    async fn batch<T>(
        &self,
        items: Vec<T>,
        within_ms: Option<u32>,
    ) -> Result<Response<v1::BatchReply>, Status>
    where
        T: TryInto<Asked, Error = CallError> + Send,
    {
        let limit = self.config.batch_items_max;
        if items.len() > limit {
            let fault = format!("has {} items; the limit is {limit}", items.len());
            return Err(CallError::invalid(vec![("items", fault)]).into_status());
        }
        let mut results = Vec::with_capacity(items.len());
        let mut answers = Results::new(
            stream::iter(items.into_iter().map(Ok)),
            self.handler.open_lane(),
            self.bounds(),
            within_ms,
        );
        let mut bytes = 0;
        while let Some(result) = answers.next().await {
            let result = result?;
            let result_bytes = result.encoded_len() + RESULT_FRAME_BYTES;
            // Clients refuse a reply that is too long as a whole; so they get what fits.
            if bytes + result_bytes > self.config.message_bytes_max {
                let error = CallError::reply_too_long(self.config.message_bytes_max);
                results.push(item_of(Err(error)));
                continue;
            }
            bytes += result_bytes;
            results.push(result);
        }
        Ok(Response::new(v1::BatchReply { results }))
    }
}

/// Tag and length of a result in its batch, at most.
const RESULT_FRAME_BYTES: usize = 6;

/// What a caller's deadline leaves for the answer to travel back, so that it arrives before the
/// caller (or the transport, on its behalf) gives up with less to say.
const ANSWER_TRAVEL_MS: u32 = 20;

/// The caller's deadline from `grpc-timeout`; what is not understood counts as none.
fn within_ms(metadata: &MetadataMap) -> Option<u32> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let unit_at = text.len().checked_sub(1)?;
    let (digits, unit) = text.split_at_checked(unit_at)?;
    let number: u64 = digits.parse().ok()?;
    let ms = match unit {
        "H" => number.saturating_mul(3_600_000),
        "M" => number.saturating_mul(60_000),
        "S" => number.saturating_mul(1_000),
        "m" => number,
        "u" => number / 1_000,
        "n" => number / 1_000_000,
        _ => return None,
    };
    let ms = u32::try_from(ms).unwrap_or(u32::MAX);
    Some(ms.saturating_sub(ANSWER_TRAVEL_MS).max(1))
}

async fn execute<H: SessionsHandler>(
    handler: &H,
    asked: Result<Asked, CallError>,
    within_ms: Option<u32>,
) -> Result<Told, CallError> {
    let asked = asked?;
    let answers = asked.answers();
    let Asked { command, once, .. } = asked;
    let outcome = handler
        .call(SessionCall {
            command,
            once,
            within_ms,
        })
        .await;
    Asked::answer(answers, outcome)
}

/// Keys of a page when the caller does not say, and at most.
const LIST_KEYS: u32 = 1_000;
const LIST_KEYS_MAX: u32 = 10_000;

fn list_command(request: &v1::ListRequest) -> Result<Command, CallError> {
    let Ok(namespace) = u8::try_from(request.namespace) else {
        let fault = "must be at most 255".to_owned();
        return Err(CallError::invalid(vec![("namespace", fault)]));
    };
    let limit = match request.limit.unwrap_or(LIST_KEYS) {
        limit @ 1..=LIST_KEYS_MAX => limit,
        _ => {
            let fault = format!("must be 1 to {LIST_KEYS_MAX}");
            return Err(CallError::invalid(vec![("limit", fault)]));
        }
    };
    Ok(Command {
        namespace: Namespace(namespace),
        key: Bytes::new(),
        op: Op::Scan {
            from: KeyHash(request.cursor.unwrap_or(0)),
            limit,
        },
    })
}

/// The reply of the one kind that the request's kind can have.
macro_rules! reply {
    ($told:expr, $kind:ident) => {
        match $told {
            Told::$kind(reply) => Ok(Response::new(reply)),
            _ => unreachable!("Asked::answer tells every kind of request in its own kind"),
        }
    };
}

#[tonic::async_trait]
impl<H: SessionsHandler> Sessions for SessionsFace<H> {
    async fn open_client(
        &self,
        request: Request<v1::OpenClientRequest>,
    ) -> Result<Response<v1::OpenClientReply>, Status> {
        self.open(request)?;
        let grant = self.handler.open_client().await;
        let grant = grant.map_err(|failure| CallError::from(failure).into_status())?;
        Ok(Response::new(v1::OpenClientReply {
            client_id: grant.client.0,
            lease_until_unix_ms: grant.lease_until.0,
        }))
    }

    async fn create(
        &self,
        request: Request<v1::CreateRequest>,
    ) -> Result<Response<v1::CreateReply>, Status> {
        reply!(self.one(request).await?, Create)
    }

    async fn read(
        &self,
        request: Request<v1::ReadRequest>,
    ) -> Result<Response<v1::ReadReply>, Status> {
        reply!(self.one(request).await?, Read)
    }

    async fn write(
        &self,
        request: Request<v1::WriteRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        reply!(self.one(request).await?, Write)
    }

    async fn touch(
        &self,
        request: Request<v1::TouchRequest>,
    ) -> Result<Response<v1::TouchReply>, Status> {
        reply!(self.one(request).await?, Touch)
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteReply>, Status> {
        reply!(self.one(request).await?, Delete)
    }

    async fn list(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListReply>, Status> {
        let (request, within_ms) = self.open(request)?;
        let command = list_command(&request).map_err(CallError::into_status)?;
        let call = SessionCall {
            command,
            once: None,
            within_ms,
        };
        match self.handler.call(call).await {
            Outcome::Scanned { keys, next } => Ok(Response::new(v1::ListReply {
                keys: keys.into_iter().map(|(_, key)| key).collect(),
                next: next.map(|hash| hash.0),
            })),
            Outcome::Failed(failure) => Err(CallError::from(failure).into_status()),
            _ => Err(CallError::mismatch().into_status()),
        }
    }

    async fn batch_create(
        &self,
        request: Request<v1::BatchCreateRequest>,
    ) -> Result<Response<v1::BatchReply>, Status> {
        let (request, within_ms) = self.open(request)?;
        self.batch(request.items, within_ms).await
    }

    async fn batch_read(
        &self,
        request: Request<v1::BatchReadRequest>,
    ) -> Result<Response<v1::BatchReply>, Status> {
        let (request, within_ms) = self.open(request)?;
        self.batch(request.items, within_ms).await
    }

    async fn batch_write(
        &self,
        request: Request<v1::BatchWriteRequest>,
    ) -> Result<Response<v1::BatchReply>, Status> {
        let (request, within_ms) = self.open(request)?;
        self.batch(request.items, within_ms).await
    }

    async fn batch_touch(
        &self,
        request: Request<v1::BatchTouchRequest>,
    ) -> Result<Response<v1::BatchReply>, Status> {
        let (request, within_ms) = self.open(request)?;
        self.batch(request.items, within_ms).await
    }

    async fn batch_delete(
        &self,
        request: Request<v1::BatchDeleteRequest>,
    ) -> Result<Response<v1::BatchReply>, Status> {
        let (request, within_ms) = self.open(request)?;
        self.batch(request.items, within_ms).await
    }

    type StreamStream = Pin<Box<dyn Stream<Item = Result<v1::Result, Status>> + Send>>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::StreamRequest>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        // A stream's deadline is that of the whole; single requests have the handler's.
        let (requests, _) = self.open(request)?;
        let answers = Results::new(requests, self.handler.open_lane(), self.bounds(), None);
        Ok(Response::new(Box::pin(answers)))
    }
}
