//! What tonic itself costs: a server of `holdfast.v1.Sessions` that knows no session.
//!
//! `holdfast bench grpc --floor` measures it beside a real server: the same generated code, messages of the
//! same sizes, and nothing in between. It answers what that benchmark asks (Read, Write, their batches and
//! Stream); everything else is UNIMPLEMENTED.

use std::convert::Infallible;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};

use super::v1;
use super::v1::result::Result as Told;
use super::v1::sessions_server::{Sessions, SessionsServer};
use super::v1::stream_request::Request as Asked;

/// Answers every read with `value`, and every write with a version.
pub fn echo_server(
    value: Bytes,
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
    SessionsServer::new(Echo { value })
}

#[derive(Clone)]
struct Echo {
    value: Bytes,
}

/// As large as those of a session that expires.
fn times() -> Option<v1::Times> {
    Some(v1::Times {
        deadline_unix_ms: Some(1_800_000_000_000),
        remaining_ms: Some(3_600_000),
        idle_ms: Some(3_600_000),
        absolute_unix_ms: None,
    })
}

const VERSION: u64 = 1_000_000;

impl Echo {
    fn read(&self) -> v1::ReadReply {
        v1::ReadReply {
            version: VERSION,
            times: times(),
            value: self.value.clone(),
        }
    }

    fn write(&self) -> v1::WriteReply {
        v1::WriteReply {
            version: VERSION,
            times: times(),
        }
    }

    fn batch(results: impl Iterator<Item = Told>) -> Response<v1::BatchReply> {
        let results = results.map(|told| v1::Result { result: Some(told) });
        Response::new(v1::BatchReply {
            results: results.collect(),
        })
    }
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("this server only echoes"))
}

#[tonic::async_trait]
impl Sessions for Echo {
    async fn read(&self, _: Request<v1::ReadRequest>) -> Result<Response<v1::ReadReply>, Status> {
        Ok(Response::new(Echo::read(self)))
    }

    async fn write(
        &self,
        _: Request<v1::WriteRequest>,
    ) -> Result<Response<v1::WriteReply>, Status> {
        Ok(Response::new(Echo::write(self)))
    }

    async fn batch_read(
        &self,
        request: Request<v1::BatchReadRequest>,
    ) -> Result<Response<v1::BatchReply>, Status> {
        let items = request.into_inner().items.into_iter();
        Ok(Echo::batch(items.map(|_| Told::Read(Echo::read(self)))))
    }

    async fn batch_write(
        &self,
        request: Request<v1::BatchWriteRequest>,
    ) -> Result<Response<v1::BatchReply>, Status> {
        let items = request.into_inner().items.into_iter();
        Ok(Echo::batch(items.map(|_| Told::Write(Echo::write(self)))))
    }

    type StreamStream = Pin<Box<dyn Stream<Item = Result<v1::Result, Status>> + Send>>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::StreamRequest>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let echo = self.clone();
        let answers = request.into_inner().map(move |request| {
            let told = match request?.request {
                Some(Asked::Read(_)) => Told::Read(Echo::read(&echo)),
                _ => Told::Write(Echo::write(&echo)),
            };
            Ok(v1::Result { result: Some(told) })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn open_client(
        &self,
        _: Request<v1::OpenClientRequest>,
    ) -> Result<Response<v1::OpenClientReply>, Status> {
        not_here()
    }

    async fn create(
        &self,
        _: Request<v1::CreateRequest>,
    ) -> Result<Response<v1::CreateReply>, Status> {
        not_here()
    }

    async fn touch(
        &self,
        _: Request<v1::TouchRequest>,
    ) -> Result<Response<v1::TouchReply>, Status> {
        not_here()
    }

    async fn delete(
        &self,
        _: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteReply>, Status> {
        not_here()
    }

    async fn list(&self, _: Request<v1::ListRequest>) -> Result<Response<v1::ListReply>, Status> {
        not_here()
    }

    async fn batch_create(
        &self,
        _: Request<v1::BatchCreateRequest>,
    ) -> Result<Response<v1::BatchReply>, Status> {
        not_here()
    }

    async fn batch_touch(
        &self,
        _: Request<v1::BatchTouchRequest>,
    ) -> Result<Response<v1::BatchReply>, Status> {
        not_here()
    }

    async fn batch_delete(
        &self,
        _: Request<v1::BatchDeleteRequest>,
    ) -> Result<Response<v1::BatchReply>, Status> {
        not_here()
    }
}
