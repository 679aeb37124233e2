//! Who is let in. A token as a bearer, for scripts; a session's cookie, for the page; on loopback, where no viewer's token is configured,
//! whoever speaks to this machine by a name that is this machine's: a page of somewhere else, whose name was made to lead here, says its
//! own name.
//!
//! What changes something takes the role operator and, with a cookie, which a browser sends by itself, the session's CSRF token, which it
//! does not.

use super::Site;
use super::answer::{Failure, json};
use super::attempts::Attempts;
use super::sessions::{Session, Sessions};
use super::tokens::{MAX_TOKEN, Role, Tokens, hashed};
use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The header that carries a session's CSRF token.
pub(super) const CSRF: &str = "x-csrf-token";
/// The largest body of a log-in, bytes.
const MAX_LOGIN: usize = MAX_TOKEN + 128;

/// Where a connection comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) IpAddr);

/// How somebody was recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Via {
    /// By a token.
    Token,
    /// By a session's cookie; its CSRF token.
    Session(String),
    /// As somebody on this machine.
    Machine,
}

/// Somebody who was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) role: Role,
    pub(super) via: Via,
}

/// A request that was not let in, of whom where that is known.
#[derive(Debug)]
pub(super) struct Refused {
    failure: Failure,
    who: Option<Who>,
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self { failure, who: None }
    }
}

/// What is known of those who may come in.
pub(super) struct Doors {
    tokens: Tokens,
    sessions: Sessions,
    attempts: Attempts,
    /// Whether this machine looks without a token.
    open: bool,
    /// The name of the cookie: a browser sends a host's cookies to all of its ports.
    cookie: String,
}

impl Doors {
    pub(super) fn new(tokens: Tokens, address: SocketAddr, life: Duration) -> Self {
        let open = address.ip().is_loopback() && !tokens.for_viewers();
        let cookie = format!("omnilabel_centre_{}", address.port());
        Self { tokens, sessions: Sessions::new(life), attempts: Attempts::default(), open, cookie }
    }

    /// Who asks; `None` for what everybody may have. Refuses everybody else, and changes that are not allowed.
    fn admit(&self, method: &Method, path: &str, headers: &HeaderMap, peer: Peer, now: Instant) -> Result<Option<Who>, Refused> {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        if self.open && !is_local(host) {
            let told = "this page is served to localhost alone, expected its name in the request; or set `web.viewer_token_file`";
            return Err(Failure::new(StatusCode::FORBIDDEN, told).into());
        }
        let who = self.recognise(headers, peer, now)?;
        let public = matches!(path, "/" | "/healthz") || (path == "/login" && method == Method::POST);
        let Some(who) = who else {
            let told = "a token is expected, as a bearer or by /login";
            return if public { Ok(None) } else { Err(Failure::new(StatusCode::UNAUTHORIZED, told).into()) };
        };
        if method != Method::GET && method != Method::HEAD && path != "/login" {
            let refuse = |told: &str| Refused { failure: Failure::new(StatusCode::FORBIDDEN, told), who: Some(who.clone()) };
            if let Via::Session(csrf) = &who.via {
                let given = headers.get(CSRF).and_then(|given| given.to_str().ok()).unwrap_or_default();
                if hashed(given) != hashed(csrf) {
                    return Err(refuse("the session's CSRF token is expected in X-CSRF-Token"));
                }
            }
            if who.role < Role::Operator && path != "/logout" {
                return Err(refuse("this takes the role operator"));
            }
        }
        Ok(Some(who))
    }

    fn recognise(&self, headers: &HeaderMap, peer: Peer, now: Instant) -> Result<Option<Who>, Failure> {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        if let Some(given) = given {
            let role = self.check(given.trim(), peer, now)?;
            return Ok(Some(Who { role, via: Via::Token }));
        }
        if let Some(Session { role, csrf, .. }) = self.session(headers, now) {
            return Ok(Some(Who { role, via: Via::Session(csrf) }));
        }
        Ok(self.open.then_some(Who { role: Role::Viewer, via: Via::Machine }))
    }

    /// Whose token it is. A right one is always let in: behind a proxy whoever guesses has everybody's address, and what keeps guesses out
    /// is the length of a token. Waiting keeps them from filling the log and the disk.
    fn check(&self, token: &str, Peer(peer): Peer, now: Instant) -> Result<Role, Failure> {
        if let Some(role) = self.tokens.role(token) {
            return Ok(role);
        }
        if let Some(wait) = self.attempts.wait(peer, now) {
            return Err(Failure::later(wait));
        }
        self.attempts.failed(peer, now);
        tracing::warn!(%peer, "a wrong token was given to the page");
        Err(Failure::new(StatusCode::UNAUTHORIZED, "this token is not known, expected one of the centre's configuration"))
    }

    fn session(&self, headers: &HeaderMap, now: Instant) -> Option<Session> {
        self.sessions.find(cookie(headers, &self.cookie)?, now)
    }
}

/// The value of a cookie.
fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let lines = headers.get_all(header::COOKIE).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(';')).find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='))
}

/// Whether `host`, perhaps with a port, is a loopback address or `localhost`.
fn is_local(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    name == "localhost" || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Before every route: lets in or not, and says what a browser may do with the answer.
pub(super) async fn guard(Shared(site): Shared<Arc<Site>>, Extension(peer): Extension<Peer>, mut request: Request, next: Next) -> Response {
    let admitted = site.doors.admit(request.method(), request.uri().path(), request.headers(), peer, Instant::now());
    let mut response = match admitted {
        Ok(who) => {
            if let Some(who) = who {
                request.extensions_mut().insert(who);
            }
            next.run(request).await
        }
        Err(Refused { failure, who }) => {
            // Somebody known wanted to change something. Who is not known leaves no line: he would fill the disk.
            if let Some(who) = who.filter(|who| who.via != Via::Machine) {
                let asked = format!("{} {}", request.method(), request.uri().path());
                let outcome = format!("refused: {}", failure.message());
                if let Err(error) = site.audit.note(peer, Some(&who), &asked, &outcome).await {
                    tracing::error!("the audit log: {error}");
                }
            }
            failure.into_response()
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, site.policy.clone());
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// `POST /login`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    token: String,
}

/// `POST /login`: a token becomes a session.
pub(super) async fn login(
    Shared(site): Shared<Arc<Site>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let bytes = super::answer::body(&headers, body, MAX_LOGIN).await?;
    let Login { token } = serde_json::from_slice(&bytes)
        .map_err(|_| Failure::new(StatusCode::BAD_REQUEST, "the body is not {\"token\": \"…\"}, as is expected"))?;
    let now = Instant::now();
    let who = match site.doors.check(token.trim(), peer, now) {
        Ok(role) => Who { role, via: Via::Token },
        Err(failure) => {
            // While an address waits, its log-ins are not looked at, and leave no line.
            if !failure.is_later() {
                note(&site, peer, None, "POST /login", "refused: a wrong token").await?;
            }
            return Err(failure);
        }
    };
    note(&site, peer, Some(&who), "POST /login", "done").await?;
    let unlucky = || Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the system gives no random numbers");
    let (id, session) = site.doors.sessions.open(who.role, now).ok_or_else(unlucky)?;
    let life = site.doors.sessions.life().as_secs();
    let cookie = format!("{}={id}; Path=/; Max-Age={life}; HttpOnly; SameSite=Strict", site.doors.cookie);
    let mut response = json(&json!({ "role": who.role.name(), "csrf": session.csrf, "expires_secs": life }));
    response.headers_mut().insert(header::SET_COOKIE, HeaderValue::try_from(cookie).map_err(|_| unlucky())?);
    Ok(response)
}

/// `POST /logout`: the session ends.
pub(super) async fn logout(
    Shared(site): Shared<Arc<Site>>,
    Extension(peer): Extension<Peer>,
    Extension(who): Extension<Who>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    if let Some(id) = cookie(&headers, &site.doors.cookie) {
        note(&site, peer, Some(&who), "POST /logout", "done").await?;
        site.doors.sessions.close(id);
    }
    let mut response = json(&json!({ "done": "logout" }));
    let gone = format!("{}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict", site.doors.cookie);
    if let Ok(gone) = HeaderValue::try_from(gone) {
        response.headers_mut().insert(header::SET_COOKIE, gone);
    }
    Ok(response)
}

/// `GET /api/v1/session`: who asks, for a page that was loaded anew.
pub(super) async fn session(Shared(site): Shared<Arc<Site>>, Extension(who): Extension<Who>) -> Response {
    let csrf = match &who.via {
        Via::Session(csrf) => Some(csrf),
        Via::Token | Via::Machine => None,
    };
    json(&json!({
        "role": who.role.name(), "csrf": csrf, "log_in": site.doors.tokens.any(), "site": site.name, "version": env!("CARGO_PKG_VERSION"),
    }))
}

/// Writes to the audit log, or refuses.
pub(super) async fn note(site: &Site, peer: Peer, who: Option<&Who>, request: &str, outcome: &str) -> Result<(), Failure> {
    site.audit.note(peer, who, request, outcome).await.map_err(|error| {
        tracing::error!("the audit log: {error}");
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the audit log cannot be written, and nothing is done that is not in it")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_local() {
        for host in ["localhost", "localhost:8090", "127.0.0.1", "127.8.9.1:80", "[::1]", "[::1]:8090"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example:8090", "10.0.0.7", "10.0.0.7:80", "[fe80::1]:80", "localhost:x"] {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, HeaderValue::from_static("other=1; omnilabel_centre_80=wrong; omnilabel_centre_8090=right"));
        headers.append(header::COOKIE, HeaderValue::from_static("late=2"));
        let found = ["omnilabel_centre_8090", "late", "omnilabel_centre_809", "centre"].map(|name| cookie(&headers, name));
        assert_eq!(found, [Some("right"), Some("2"), None, None]);
    }
}
