//! What changes the centre. The page decides nothing: it checks who asks, writes that down, and hands the wish on.

use super::Site;
use super::answer::{Failure, Named, json, numbered};
use super::guard::{Peer, Who, note};
use axum::Extension;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;
use std::pin::Pin;
use std::sync::Arc;

/// What comes of a wish: nothing to tell, or why it is not done.
pub type Done<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

/// What an operator may ask of the centre. An error is a sentence for the operator: what is wrong, and what is expected. A wish that has
/// begun is not given up when the one who asked goes away.
pub trait Control: Send + Sync {
    /// Offers a release to no further device.
    fn halt(&self, counter: u64) -> Done<'_>;
    /// Offers a halted release again.
    fn resume(&self, counter: u64) -> Done<'_>;
    /// Begins the next wave of a release without proof of this one.
    fn promote(&self, counter: u64) -> Done<'_>;
    /// Puts the release before this one in its place, under a new counter.
    fn recall(&self, counter: u64) -> Done<'_>;
    /// Starts a round with the labels that are there.
    fn start_round(&self) -> Done<'_>;
}

#[derive(Clone, Copy, Debug)]
enum Wish {
    Halt(u64),
    Resume(u64),
    Promote(u64),
    Recall(u64),
    StartRound,
}

impl Wish {
    fn of(self, control: &dyn Control) -> Done<'_> {
        match self {
            Self::Halt(counter) => control.halt(counter),
            Self::Resume(counter) => control.resume(counter),
            Self::Promote(counter) => control.promote(counter),
            Self::Recall(counter) => control.recall(counter),
            Self::StartRound => control.start_round(),
        }
    }

    fn request(self) -> String {
        match self {
            Self::Halt(counter) => format!("POST /api/v1/releases/{counter}/halt"),
            Self::Resume(counter) => format!("POST /api/v1/releases/{counter}/resume"),
            Self::Promote(counter) => format!("POST /api/v1/releases/{counter}/promote"),
            Self::Recall(counter) => format!("POST /api/v1/releases/{counter}/recall"),
            Self::StartRound => "POST /api/v1/rounds/start".to_owned(),
        }
    }
}

/// `POST /api/v1/releases/{counter}/halt`
pub(super) async fn halt(site: Shared<Arc<Site>>, path: Named, peer: Extension<Peer>, who: Extension<Who>) -> Result<Response, Failure> {
    release(site, path, peer, who, Wish::Halt).await
}

/// `POST /api/v1/releases/{counter}/resume`
pub(super) async fn resume(site: Shared<Arc<Site>>, path: Named, peer: Extension<Peer>, who: Extension<Who>) -> Result<Response, Failure> {
    release(site, path, peer, who, Wish::Resume).await
}

/// `POST /api/v1/releases/{counter}/promote`
pub(super) async fn promote(site: Shared<Arc<Site>>, path: Named, peer: Extension<Peer>, who: Extension<Who>) -> Result<Response, Failure> {
    release(site, path, peer, who, Wish::Promote).await
}

/// `POST /api/v1/releases/{counter}/recall`
pub(super) async fn recall(site: Shared<Arc<Site>>, path: Named, peer: Extension<Peer>, who: Extension<Who>) -> Result<Response, Failure> {
    release(site, path, peer, who, Wish::Recall).await
}

/// `POST /api/v1/rounds/start`
pub(super) async fn start_round(
    Shared(site): Shared<Arc<Site>>,
    Extension(peer): Extension<Peer>,
    Extension(who): Extension<Who>,
) -> Result<Response, Failure> {
    fulfil(site, peer, who, Wish::StartRound).await
}

async fn release(
    Shared(site): Shared<Arc<Site>>,
    path: Named,
    Extension(peer): Extension<Peer>,
    Extension(who): Extension<Who>,
    wish: fn(u64) -> Wish,
) -> Result<Response, Failure> {
    let counter = numbered("counter", &path)?;
    if !site.centre.store.has_release(counter).await? {
        let told = format!("release {counter} was not made here, expected a counter of /api/v1/releases");
        return Err(Failure::new(StatusCode::NOT_FOUND, told));
    }
    fulfil(site, peer, who, wish(counter)).await
}

async fn fulfil(site: Arc<Site>, peer: Peer, who: Who, wish: Wish) -> Result<Response, Failure> {
    let request = wish.request();
    let centre = Arc::clone(&site);
    let deed = async move { wish.of(&*centre.centre.control).await.map_err(|reason| Failure::new(StatusCode::CONFLICT, reason)) };
    carry_out(site, peer, who, request.clone(), deed).await?;
    Ok(json(&json!({ "done": request })))
}

/// Does what somebody asked: written down before and after, and done to its end even where nobody waits for the answer any more.
pub(super) async fn carry_out<T, D>(site: Arc<Site>, peer: Peer, who: Who, request: String, deed: D) -> Result<T, Failure>
where
    T: Send + 'static,
    D: Future<Output = Result<T, Failure>> + Send + 'static,
{
    note(&site, peer, Some(&who), &request, "asked").await?;
    let task = tokio::spawn({
        let request = request.clone();
        async move {
            let done = deed.await;
            let outcome = match &done {
                Ok(_) => "done".to_owned(),
                Err(failure) => format!("not done: {}", failure.message()),
            };
            tracing::info!(peer = %peer.0, role = who.role.name(), "{request}: {outcome}");
            // It is done already; that it was asked is in the log.
            if let Err(error) = site.audit.note(peer, Some(&who), &request, &outcome).await {
                tracing::error!("the audit log: {error}");
            }
            done
        }
    });
    task.await.unwrap_or_else(|error| {
        tracing::error!("{request}: {error}");
        Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the centre failed at it, see its log"))
    })
}
