//! The centre's page: what the fleet does, and the few things that an operator may do about it; the same as an API, for scripts.
//!
//! It is off unless `web.bind` is set, on loopback unless somebody says otherwise, and then for those who know a token. It reads from the
//! store and decides nothing: what changes the centre goes through [`Control`].
//!
//! | file | what it holds |
//! |---|---|
//! | `web.rs` | opening, the loop over connections, the routes |
//! | `connection` | a connection's place and patience |
//! | `guard` | who is let in, log-in and log-out |
//! | `tokens`, `sessions`, `attempts` | who somebody is; who is logged in; who guesses |
//! | `answer` | JSON answers, errors, parameters |
//! | `fleet` | devices, releases, rounds, skeleton |
//! | `labels` | labels and their pictures |
//! | `verdicts` | what people say of labels |
//! | `journal` | the tail of the event log |
//! | `control` | what changes the centre |
//! | `audit` | who changed what, `state_dir/audit.jsonl` |
//! | `health` | is the centre well; what the loops count |
//! | `metrics` | all numbers, for Prometheus |
//! | `page` | the page itself, from `web/page/` |

mod answer;
mod attempts;
pub(crate) mod audit;
mod connection;
mod control;
mod fleet;
mod guard;
mod health;
mod journal;
mod labels;
mod metrics;
mod page;
mod sessions;
mod tokens;
mod verdicts;

pub use control::{Control, Done};
pub use health::Health;

use crate::service::config::{ServiceConfig, WebConfig};
use crate::service::server::stopped;
use crate::service::store::Store;
use answer::Failure;
use anyhow::Context;
use audit::Audit;
use axum::http::StatusCode;
use axum::http::header::HeaderValue;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, delete, get, post, put};
use axum::{Extension, Router};
use connection::Connection;
use fleet::FleetCache;
use guard::{Doors, Peer};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use omnilabel_keypoints::skeleton::Skeleton;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use verdicts::KeypointThresholds;

/// The largest head of a request, bytes.
const MAX_HEAD: usize = 16 << 10;
/// How long a listener waits that gets no connection from the system, which has no descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// What the page shows and steers.
pub struct Centre {
    /// Where everything is read from.
    pub store: Store,
    /// Where what people say of labels is written.
    pub writer: Store,
    /// Of the manual labels, and so of all others.
    pub skeleton: Skeleton,
    /// τ_k of the provisioned model.
    pub keypoint_threshold: f32,
    /// What the store does not know.
    pub health: Arc<Health>,
    /// What an operator may ask for.
    pub control: Arc<dyn Control>,
}

/// What the handlers share.
struct Site {
    centre: Centre,
    doors: Doors,
    audit: Audit,
    fleet: FleetCache,
    thresholds: KeypointThresholds,
    /// The site's name.
    name: String,
    state_dir: PathBuf,
    policy: HeaderValue,
}

/// A page whose address is bound.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    doors: Doors,
    audit: Audit,
    name: String,
    state_dir: PathBuf,
    connections: usize,
    patience: Duration,
}

/// Whether [`open`] would take the token files, as far as they are there.
///
/// # Errors
/// A token file that cannot be used; names the key.
pub fn check(config: &WebConfig) -> anyhow::Result<()> {
    let mut config = config.clone();
    for file in [&mut config.viewer_token_file, &mut config.operator_token_file] {
        if let Some(path) = file.take() {
            let there = path.try_exists().with_context(|| format!("`web`: {}", path.display()))?;
            *file = Some(path).filter(|_| there);
        }
    }
    tokens::Tokens::read(&config).map(drop)
}

/// Binds the page's address; `None` without `web.bind`. The state folder is there already.
///
/// # Errors
/// A token file that cannot be used, an address that cannot be bound, an audit log that cannot be written; names the key.
pub async fn open(config: &ServiceConfig) -> anyhow::Result<Option<Server>> {
    let Some(bind) = config.web.bind else { return Ok(None) };
    let tokens = tokens::Tokens::read(&config.web)?;
    let audit = Audit::open(&config.state_dir).with_context(|| format!("the audit log in {}", config.state_dir.display()))?;
    let listener = TcpListener::bind(bind).await.with_context(|| format!("`web.bind` {bind}"))?;
    let address = listener.local_addr().with_context(|| format!("`web.bind` {bind}"))?;
    let life = Duration::from_secs(60 * config.web.session_minutes);
    Ok(Some(Server {
        listener,
        address,
        doors: Doors::new(tokens, address, life),
        audit,
        name: config.broker.site.clone(),
        state_dir: config.state_dir.clone(),
        connections: config.web.connections,
        patience: Duration::from_secs(config.web.header_timeout_secs),
    }))
}

impl Server {
    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` becomes true. What was asked of [`Control`] by then goes on.
    pub async fn serve(self, centre: Centre, mut stop: watch::Receiver<bool>) {
        let Self { listener, address, doors, audit, name, state_dir, connections, patience } = self;
        tracing::info!("the page is at http://{address}/");
        let policy = page::content_security_policy();
        let (fleet, thresholds) = (FleetCache::default(), KeypointThresholds::default());
        let router = router(Arc::new(Site { centre, doors, audit, fleet, thresholds, name, state_dir, policy }));
        let mut builder = Builder::new(TokioExecutor::new()).http1_only();
        builder.http1().timer(TokioTimer::new()).header_read_timeout(patience).max_buf_size(MAX_HEAD);
        let builder = Arc::new(builder);
        let room = Arc::new(Semaphore::new(connections));
        let mut open = JoinSet::new();
        loop {
            let next = async {
                // Nobody closes the semaphore; without a place the connection would only not be counted.
                let place = Arc::clone(&room).acquire_owned().await.ok();
                (listener.accept().await, place)
            };
            let (accepted, place) = tokio::select! {
                next = next => next,
                () = stopped(&mut stop) => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let io = TokioIo::new(Connection::new(stream, place, patience));
                    let service = TowerToHyperService::new(router.clone().layer(Extension(Peer(peer.ip()))));
                    let builder = Arc::clone(&builder);
                    open.spawn(async move {
                        if let Err(error) = builder.serve_connection(io, service).await {
                            tracing::debug!(%peer, "a connection to the page ended: {error}");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!("the page takes no connection: {error}");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
            while open.try_join_next().is_some() {}
        }
        open.shutdown().await;
    }
}

/// A route: its path, its method in lower case, what answers.
type Route = (&'static str, &'static str, MethodRouter<Arc<Site>>);

/// Every route; `openapi.json` describes the same.
fn routes() -> Vec<Route> {
    vec![
        ("/", "get", get(page::page)),
        ("/healthz", "get", get(health::healthz)),
        ("/metrics", "get", get(metrics::metrics)),
        ("/login", "post", post(guard::login)),
        ("/logout", "post", post(guard::logout)),
        ("/api/v1/openapi.json", "get", get(page::openapi)),
        ("/api/v1/session", "get", get(guard::session)),
        ("/api/v1/skeleton", "get", get(fleet::skeleton)),
        ("/api/v1/fleet", "get", get(fleet::fleet)),
        ("/api/v1/releases", "get", get(fleet::releases)),
        ("/api/v1/releases/{counter}/halt", "post", post(control::halt)),
        ("/api/v1/releases/{counter}/resume", "post", post(control::resume)),
        ("/api/v1/releases/{counter}/promote", "post", post(control::promote)),
        ("/api/v1/releases/{counter}/recall", "post", post(control::recall)),
        ("/api/v1/rounds", "get", get(fleet::rounds)),
        ("/api/v1/rounds/start", "post", post(control::start_round)),
        ("/api/v1/labels", "get", get(labels::labels)),
        ("/api/v1/labels/{id}/frame.jpg", "get", get(labels::picture)),
        ("/api/v1/labels/{id}/verdict", "get", get(verdicts::verdict)),
        ("/api/v1/labels/{id}/verdict", "put", put(verdicts::judge)),
        ("/api/v1/labels/{id}/verdict", "delete", delete(verdicts::take_back)),
        ("/api/v1/events", "get", get(journal::events)),
    ]
}

fn router(site: Arc<Site>) -> Router {
    routes()
        .into_iter()
        .fold(Router::new(), |router, (path, _, answers)| router.route(path, answers))
        .fallback(nowhere)
        .method_not_allowed_fallback(otherwise)
        .layer(from_fn_with_state(Arc::clone(&site), guard::guard))
        .with_state(site)
}

async fn nowhere() -> Failure {
    Failure::new(StatusCode::NOT_FOUND, "nothing is here, expected a path of /api/v1/openapi.json")
}

async fn otherwise() -> Failure {
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, "another method is expected here, see /api/v1/openapi.json")
}

#[cfg(test)]
mod tests;
