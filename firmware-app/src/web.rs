//! The device's own page, metrics and health: read-only, on loopback unless the configuration says otherwise, and then for those who
//! know the token.

mod limit;

use crate::config::{EdgeConfig, WebConfig};
use crate::service::board::{Board, Seen, State};
use anyhow::{Context, bail};
use axum::Router;
use axum::extract::{Path, Query, Request, State as Shared};
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::http::{StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use omnilabel_keypoints::trial::Phase;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const PAGE: &str = include_str!("web/index.html");
/// The shortest token.
const MIN_TOKEN: usize = 16;
/// How long the head of a request may take to come, the time in which nothing was asked for included, and an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(10);

struct Site {
    board: Arc<Board>,
    config: EdgeConfig,
    /// SHA-256 of the token: the time of a comparison then tells nothing.
    token: Option<[u8; 32]>,
    policy: HeaderValue,
}

/// Binds the page's address.
///
/// # Errors
/// When the token cannot be read or is too short, or the address cannot be bound.
pub(crate) async fn bind(config: &WebConfig) -> anyhow::Result<(tokio::net::TcpListener, Option<[u8; 32]>)> {
    let token = match &config.token_file {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("`web.token_file` {}", path.display()))?;
            let token = text.trim();
            if token.len() < MIN_TOKEN {
                bail!("`web.token_file` {}: the token is shorter than {MIN_TOKEN} characters", path.display());
            }
            Some(Sha256::digest(token).into())
        }
        None => None,
    };
    let listener = tokio::net::TcpListener::bind(config.listen).await.with_context(|| format!("`web.listen` {}", config.listen))?;
    Ok((listener, token))
}

/// Serves until the task is dropped.
pub(crate) async fn serve(listener: tokio::net::TcpListener, token: Option<[u8; 32]>, board: Arc<Board>, config: EdgeConfig) {
    let site = Arc::new(Site { board, config, token, policy: content_security_policy(PAGE) });
    let app = Router::new()
        .route("/", get(page))
        .route("/healthz", get(health))
        .route("/metrics", get(metrics))
        .route("/api/state", get(state))
        .route("/api/cameras/{name}/label", get(label))
        .route("/api/cameras/{name}/frame", get(frame))
        .layer(from_fn_with_state(Arc::clone(&site), guard))
        .with_state(site);
    answer(listener, app, PATIENCE).await;
}

/// Answers until the task is dropped, and with it every connection. Who asks for nothing, or does not take what he asked for, loses his
/// place: it may be a client that is gone.
async fn answer(listener: tokio::net::TcpListener, app: Router, patience: Duration) {
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(patience);
    let builder = Arc::new(builder);
    let mut listener = limit::Limited::new(listener, patience);
    let mut open = JoinSet::new();
    loop {
        let (stream, peer) = listener.accept().await;
        let service = TowerToHyperService::new(app.clone());
        let builder = Arc::clone(&builder);
        open.spawn(async move {
            if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%peer, "a connection to the page ended: {error}");
            }
        });
        while open.try_join_next().is_some() {}
    }
}

/// The page's own script and style, by their hashes, and nothing else.
fn content_security_policy(page: &str) -> HeaderValue {
    let hash = |tag: &str| {
        let text = page.split_once(&format!("<{tag}>")).and_then(|(_, rest)| rest.split_once(&format!("</{tag}>")));
        BASE64.encode(Sha256::digest(text.map_or("", |(text, _)| text)))
    };
    let text = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src 'self' blob: data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style")
    );
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("default-src 'none'"))
}

/// Lets in who knows the token, or who speaks to this machine by a name that is this machine's: a page of somewhere else, whose name
/// was made to lead here, says its own name.
async fn guard(Shared(site): Shared<Arc<Site>>, uri: Uri, headers: HeaderMap, request: Request, next: Next) -> Response {
    let allowed = match &site.token {
        // The page itself is no secret, and asks for the token; a supervisor asks for the health.
        Some(_) if matches!(uri.path(), "/" | "/healthz") => true,
        Some(token) => {
            let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
            given.is_some_and(|given| <[u8; 32]>::from(Sha256::digest(given.trim())) == *token)
        }
        None => {
            let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
            is_local(host)
        }
    };
    let mut response = if allowed {
        next.run(request).await
    } else if site.token.is_some() {
        (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], "a token is needed\n").into_response()
    } else {
        (StatusCode::FORBIDDEN, "without a token only localhost is served\n").into_response()
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, site.policy.clone());
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Whether `host`, perhaps with a port, is a loopback address or `localhost`.
fn is_local(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    name == "localhost" || name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

async fn page() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], PAGE)
}

async fn health(Shared(site): Shared<Arc<Site>>) -> impl IntoResponse {
    let ills = site.board.ills();
    match ills.as_slice() {
        [] => (StatusCode::OK, "ok\n".to_owned()),
        // Who asks without a token learns that something is wrong, and not what.
        ills if site.token.is_some() => (StatusCode::SERVICE_UNAVAILABLE, format!("{} things are wrong\n", ills.len())),
        ills => (StatusCode::SERVICE_UNAVAILABLE, ills.join("\n") + "\n"),
    }
}

async fn metrics(Shared(site): Shared<Arc<Site>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], site.board.metrics())
}

async fn state(Shared(site): Shared<Arc<Site>>) -> Response {
    match site.board.state() {
        Some(state) => json_response(&describe(&site, &state)),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the device starts\n").into_response(),
    }
}

fn json_response(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

fn describe(site: &Site, state: &State) -> Value {
    let (time_ms, uptime_secs) = site.board.clock();
    let age = |at: Instant| at.elapsed().as_secs_f64();
    let cameras = state.cameras.iter().map(|camera| {
        json!({
            "name": camera.title(), "kind": camera.kind, "state": camera.condition.name(), "frames": camera.frames, "bad": camera.bad,
            "age_secs": camera.last.map(age), "reason": camera.reason,
            "width": camera.size.map_or(0, |size| size.width), "height": camera.size.map_or(0, |size| size.height),
        })
    });
    let phase = match state.phase {
        Phase::Idle => "idle",
        Phase::Fetching { .. } => "fetching",
        Phase::Testing { .. } => "testing",
        Phase::Shadow { .. } => "shadow",
        Phase::Probation { .. } => "probation",
    };
    let skeleton = &state.skeleton;
    let (link, status) = (&site.config.broker, &state.status);
    json!({
        "device": site.config.device, "site": link.site, "version": env!("CARGO_PKG_VERSION"),
        "uptime_secs": uptime_secs, "time_ms": time_ms,
        "broker": {
            "address": format!("{}:{}", link.host, link.port), "connected": state.broker.well,
            "since_secs": age(state.broker.since) as u64, "reason": state.broker.reason,
        },
        "frames": status.frames, "bad_frames": status.bad_frames, "dropped": state.dropped, "labels_per_second": site.board.rate(),
        "skipped": site.board.skips(state).into_iter().map(|(why, count)| (why.to_owned(), count.into())).collect::<serde_json::Map<_, _>>(),
        "outbox": {
            "committed": status.committed, "pending": status.pending, "uncommitted": state.uncommitted, "evicted": status.evicted,
            "bytes": state.bytes, "max_bytes": site.config.outbox.max_bytes, "held": state.held,
        },
        "model": {
            "name": state.model, "counter": status.model, "hash": format!("{:016x}", state.hash), "phase": phase, "trial": state.phase.counter(),
            "refused": state.refused, "reason": state.reason, "views": state.views,
            "frame_ms": state.frame_secs.map(|secs| 1000.0 * secs),
        },
        "cameras": cameras.collect::<Vec<_>>(),
        "skeleton": {
            "names": skeleton.names().collect::<Vec<_>>(), "edges": skeleton.edges(),
            "sides": (0..skeleton.len()).map(|index| skeleton.side(index).name()).collect::<Vec<_>>(),
        },
        "thresholds": { "instance": state.thresholds.instance, "keypoint": vec![state.thresholds.keypoint; skeleton.len()] },
        "log": omnilabel_console::recent().iter().map(|line| json!({"ms": line.ms, "level": line.level, "text": line.text})).collect::<Vec<_>>(),
    })
}

/// The last labelled frame of the camera that a path names.
fn seen(site: &Site, name: &str) -> Option<Arc<Seen>> {
    let index = site.board.state()?.cameras.iter().position(|camera| camera.title() == name)?;
    site.board.look(index)
}

async fn label(Shared(site): Shared<Arc<Site>>, Path(name): Path<String>) -> Response {
    let Some(seen) = seen(&site, &name) else { return (StatusCode::NOT_FOUND, "no frame yet\n").into_response() };
    let instances = seen.label.instances.iter().map(|instance| {
        let detection = &instance.detection;
        let keypoints = &detection.keypoints;
        json!({
            "box": [detection.rect.x1, detection.rect.y1, detection.rect.x2, detection.rect.y2],
            "score": detection.score, "agreement": detection.agreement(), "kept": instance.kept,
            "keypoints": keypoints.iter().map(|k| [k.point.x, k.point.y, k.probability]).collect::<Vec<_>>(),
        })
    });
    json_response(&json!({
        "id": seen.id, "captured_ms": seen.captured_ms, "width": seen.label.size.width, "height": seen.label.size.height,
        "took_ms": seen.took.as_secs_f64() * 1000.0, "instances": instances.collect::<Vec<_>>(),
    }))
}

#[derive(Deserialize)]
struct Which {
    id: Option<u64>,
}

async fn frame(Shared(site): Shared<Arc<Site>>, Path(name): Path<String>, Query(which): Query<Which>) -> Response {
    let gone = || (StatusCode::NOT_FOUND, "this frame is not here\n").into_response();
    if !site.config.web.as_ref().is_some_and(|web| web.pictures) {
        return gone();
    }
    let Some(seen) = seen(&site, &name).filter(|seen| which.id.is_none_or(|id| id == seen.id)) else { return gone() };
    // What does not leave the device in clear is not shown in clear.
    let jpeg = tokio::task::spawn_blocking(move || {
        let frame = crate::publish::changed(&seen.frame, &seen.label, &seen.skeleton, &site.config.publish);
        frame.map(|frame| frame.to_jpeg(80))
    });
    match jpeg.await {
        Ok(Some(jpeg)) => ([(header::CONTENT_TYPE, "image/jpeg")], jpeg).into_response(),
        _ => gone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    /// Generous: the machine may be busy.
    const DEADLINE: Duration = Duration::from_secs(60);

    /// What is answered on a connection of its own.
    async fn asked(address: SocketAddr, path: &str) -> String {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = tokio::time::timeout(DEADLINE, socket.read_to_string(&mut answer)).await;
        read.expect("an answer").unwrap();
        answer
    }

    #[tokio::test]
    async fn who_asks_for_nothing_loses_his_place_and_who_waits_for_an_answer_keeps_it() {
        // Longer than a busy machine needs from a connection to its request.
        let patience = Duration::from_secs(2);
        let slow = move || async move {
            tokio::time::sleep(2 * patience).await;
            "slow\n"
        };
        let app = Router::new().route("/healthz", get(|| async { "ok\n" })).route("/slow", get(slow));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut page = JoinSet::new();
        page.spawn(answer(listener, app, patience));
        let slow = tokio::spawn(asked(address, "/slow"));
        // Every place and some more: nothing is said, or a part of a head, or a request and then nothing more.
        let said = ["", "GET /healthz HT", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"];
        let mut idle = Vec::new();
        for said in said.iter().cycle().take(limit::CONNECTIONS + 8) {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(said.as_bytes()).await.unwrap();
            idle.push(socket);
        }
        assert!(asked(address, "/healthz").await.ends_with("ok\n"));
        for mut socket in idle {
            let ended = tokio::time::timeout(DEADLINE, socket.read_to_end(&mut Vec::new())).await;
            assert!(ended.is_ok(), "an idle connection is closed");
        }
        assert!(slow.await.unwrap().ends_with("slow\n"));
    }

    #[test]
    fn only_names_of_this_machine_are_local() {
        for host in ["localhost", "localhost:8088", "127.0.0.1", "127.8.9.1:80", "[::1]", "[::1]:8088"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example:8088", "10.0.0.7", "10.0.0.7:80", "[fe80::1]:80", "localhost:x"] {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn the_page_is_let_in_by_its_hashes() {
        let policy = content_security_policy("<style>a</style><script>b</script>");
        let text = policy.to_str().unwrap();
        // openssl dgst -sha256 -binary | base64 of "b" and "a".
        assert!(text.contains("script-src 'sha256-PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0='"), "{text}");
        assert!(text.contains("style-src 'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs='"), "{text}");
        for tag in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{tag}>")).count(), 1, "the hash is of the only {tag}");
        }
    }
}
