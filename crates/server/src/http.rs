//! The HTTP face: `/healthz`, `/readyz` and `/metrics`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::door::Door;
use crate::error::{Context, Outcome};
use crate::ready::Readiness;
use crate::tls::{Face, Tls};

/// Probes and scrapers of a large site, many times over.
const CONNECTIONS_MAX: usize = 256;

type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What HTTP shows: one process, or a `dev` of several.
pub trait Shown: Send + Sync + 'static {
    fn readiness(&self) -> Later<Readiness>;
    /// Prometheus text.
    fn metrics(&self) -> Later<String>;
}

/// Serves until dropped.
pub async fn serve(
    listener: std::net::TcpListener,
    tls: Option<Arc<Tls>>,
    shown: Arc<dyn Shown>,
) -> Outcome<()> {
    let door = Door::open(listener, tls, Face::Http, CONNECTIONS_MAX)?;
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(shown);
    axum::serve(door, router)
        .await
        .context(|| "the HTTP face failed".to_string())
}

async fn readyz(State(shown): State<Arc<dyn Shown>>) -> Response {
    let readiness = shown.readiness().await;
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut body = serde_json::to_string(&readiness).expect("strings and numbers are JSON");
    body.push('\n');
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn metrics(State(shown): State<Arc<dyn Shown>>) -> Response {
    let text = shown.metrics().await;
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        text,
    )
        .into_response()
}
