//! http - requests into calls, answers into JSON.

use std::future::Future;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::metrics::render;
use super::socket::AdminSocket;
use super::status::{NodeStatus, PathStatus, Quarantine, Released, SpoolShardStatus};
use crate::limits::{ADMIN_BODY_BYTES_MAX, ADMIN_CALLS_MAX};

/// How long the node has for an answer; a shard that needs longer is stuck, and that is the news.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What a client wants, with the way back. The node answers by sending on `reply`; dropping it
/// says that the node is ending.
#[derive(Debug)]
pub enum Call {
    /// The whole node.
    Status {
        /// The way back.
        reply: oneshot::Sender<NodeStatus>,
    },
    /// Every egress path that has an entry or a connection, or is suspended.
    Paths {
        /// The way back.
        reply: oneshot::Sender<Vec<PathStatus>>,
    },
    /// The spool of every shard.
    Spool {
        /// The way back.
        reply: oneshot::Sender<Vec<SpoolShardStatus>>,
    },
    /// Stop sending on the selected paths; what is in flight ends first. Lasts until a resume or
    /// the end of the process.
    Suspend {
        /// Which paths.
        selector: Selector,
        /// The way back.
        reply: oneshot::Sender<Changed>,
    },
    /// Send on the selected paths again.
    Resume {
        /// Which paths.
        selector: Selector,
        /// The way back.
        reply: oneshot::Sender<Changed>,
    },
    /// What is in quarantine.
    Quarantine {
        /// The way back.
        reply: oneshot::Sender<Quarantine>,
    },
    /// Send a message in quarantine as a new one.
    Release {
        /// Which message.
        id: String,
        /// The way back; an error is a sentence.
        reply: oneshot::Sender<Result<Released, String>>,
    },
    /// Remove a message from quarantine for good.
    Discard {
        /// Which message.
        id: String,
        /// The way back; an error is a sentence.
        reply: oneshot::Sender<Result<Released, String>>,
    },
    /// Try the disk again on every shard that stopped accepting because a write failed.
    ProbeSpool {
        /// The way back.
        reply: oneshot::Sender<Probed>,
    },
}

/// Which egress paths: those of a source, those to a site, or one path. At least one is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selector {
    /// Name of a source; none: all.
    #[serde(default)]
    pub source: Option<String>,
    /// Name of a site; none: all.
    #[serde(default)]
    pub site: Option<String>,
}

impl Selector {
    /// Whether a path is selected.
    #[must_use]
    pub fn matches(&self, source: &str, site: &str) -> bool {
        self.source.as_deref().is_none_or(|wanted| wanted == source)
            && self
                .site
                .as_deref()
                .is_none_or(|wanted| wanted.eq_ignore_ascii_case(site))
    }
}

/// Answer to a suspend or resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// How many paths were changed.
    pub paths: u64,
}

/// Answer to a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    /// How many shards had an alarm and try again.
    pub shards: u64,
}

/// The channel between the socket and the node.
#[must_use]
pub fn calls() -> (mpsc::Sender<Call>, mpsc::Receiver<Call>) {
    mpsc::channel(ADMIN_CALLS_MAX)
}

/// Answers requests until `stop` is done.
///
/// # Errors
/// The listening socket fails. Runs in a tokio runtime.
pub async fn serve(
    socket: AdminSocket,
    calls: mpsc::Sender<Call>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let listener = tokio::net::UnixListener::from_std(socket.listener.try_clone()?)?;
    axum::serve(listener, router(calls))
        .with_graceful_shutdown(stop)
        .await
}

fn router(calls: mpsc::Sender<Call>) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/paths", get(paths))
        .route("/spool", get(spool))
        .route("/metrics", get(metrics))
        .route("/suspend", post(suspend))
        .route("/resume", post(resume))
        .route("/spool/probe", post(probe))
        .route("/quarantine", get(quarantine))
        .route("/quarantine/release", post(release))
        .route("/quarantine/delete", post(discard))
        .fallback(unknown)
        .layer(DefaultBodyLimit::max(ADMIN_BODY_BYTES_MAX))
        .with_state(calls)
}

/// Why a request has no answer.
#[derive(Debug)]
enum Refusal {
    Late,
    Ending,
    Wrong(String),
    Unknown,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (code, text) = match self {
            Self::Late => (
                StatusCode::GATEWAY_TIMEOUT,
                "a shard did not answer in time".to_owned(),
            ),
            Self::Ending => (
                StatusCode::SERVICE_UNAVAILABLE,
                "the node is ending".to_owned(),
            ),
            Self::Wrong(text) => (StatusCode::BAD_REQUEST, text),
            Self::Unknown => (StatusCode::NOT_FOUND, "no such request".to_owned()),
        };
        (code, Json(serde_json::json!({ "error": text }))).into_response()
    }
}

async fn ask<T>(
    calls: &mpsc::Sender<Call>,
    call: impl FnOnce(oneshot::Sender<T>) -> Call,
) -> Result<T, Refusal> {
    let (reply, answer) = oneshot::channel();
    let exchange = async {
        calls.send(call(reply)).await.map_err(|_| Refusal::Ending)?;
        answer.await.map_err(|_| Refusal::Ending)
    };
    tokio::time::timeout(ANSWER_TIMEOUT, exchange)
        .await
        .unwrap_or(Err(Refusal::Late))
}

type Calls = State<mpsc::Sender<Call>>;

async fn status(State(calls): Calls) -> Result<Json<NodeStatus>, Refusal> {
    ask(&calls, |reply| Call::Status { reply }).await.map(Json)
}

async fn paths(State(calls): Calls) -> Result<Json<Vec<PathStatus>>, Refusal> {
    ask(&calls, |reply| Call::Paths { reply }).await.map(Json)
}

async fn spool(State(calls): Calls) -> Result<Json<Vec<SpoolShardStatus>>, Refusal> {
    ask(&calls, |reply| Call::Spool { reply }).await.map(Json)
}

async fn metrics(State(calls): Calls) -> Result<Response, Refusal> {
    let status = ask(&calls, |reply| Call::Status { reply }).await?;
    let spool = ask(&calls, |reply| Call::Spool { reply }).await?;
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    Ok((kind, render(&status, &spool)).into_response())
}

type Body = Result<Json<Selector>, JsonRejection>;

fn selector(body: Body) -> Result<Selector, Refusal> {
    let Json(selector) = body.map_err(|rejection| Refusal::Wrong(rejection.body_text()))?;
    if selector.source.is_none() && selector.site.is_none() {
        return Err(Refusal::Wrong("name a source, a site, or both".to_owned()));
    }
    Ok(selector)
}

async fn suspend(State(calls): Calls, body: Body) -> Result<Json<Changed>, Refusal> {
    let selector = selector(body)?;
    ask(&calls, |reply| Call::Suspend { selector, reply })
        .await
        .map(Json)
}

async fn resume(State(calls): Calls, body: Body) -> Result<Json<Changed>, Refusal> {
    let selector = selector(body)?;
    ask(&calls, |reply| Call::Resume { selector, reply })
        .await
        .map(Json)
}

async fn probe(State(calls): Calls) -> Result<Json<Probed>, Refusal> {
    ask(&calls, |reply| Call::ProbeSpool { reply })
        .await
        .map(Json)
}

/// The body of a release or a delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// The message, sixteen hexadecimal digits.
    pub id: String,
}

type WhichBody = Result<Json<Which>, JsonRejection>;

fn which(body: WhichBody) -> Result<String, Refusal> {
    let Json(which) = body.map_err(|rejection| Refusal::Wrong(rejection.body_text()))?;
    Ok(which.id)
}

async fn quarantine(State(calls): Calls) -> Result<Json<Quarantine>, Refusal> {
    let listed = ask(&calls, |reply| Call::Quarantine { reply }).await?;
    Ok(Json(listed))
}

async fn release(State(calls): Calls, body: WhichBody) -> Result<Json<Released>, Refusal> {
    let id = which(body)?;
    let done = ask(&calls, |reply| Call::Release { id, reply }).await?;
    done.map(Json).map_err(Refusal::Wrong)
}

async fn discard(State(calls): Calls, body: WhichBody) -> Result<Json<Released>, Refusal> {
    let id = which(body)?;
    let done = ask(&calls, |reply| Call::Discard { id, reply }).await?;
    done.map(Json).map_err(Refusal::Wrong)
}

async fn unknown() -> Refusal {
    Refusal::Unknown
}
