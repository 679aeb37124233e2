//! What a supervisor asks: is the centre well. And what the loops count for it, which no store knows.

use super::Site;
use super::guard::Who;
use crate::service::collector::Rejected;
use axum::Extension;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A store that does not answer within this is not well.
const STORE_TIME: Duration = Duration::from_secs(3);

/// How it is with the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Broker {
    Well,
    /// It is there, and refuses what is published or subscribed.
    Refuses(String),
    Away(String),
}

impl Default for Broker {
    fn default() -> Self {
        Self::Away("not connected yet".to_owned())
    }
}

/// What the store does not know; the collector and the sender say it. Numbers are totals since the start.
#[derive(Debug, Default)]
pub struct Health {
    broker: Mutex<Broker>,
    /// Messages that could not be used, by [`Rejected::KINDS`].
    rejected: [AtomicU64; Rejected::KINDS.len()],
    commits: AtomicU64,
    commit_micros: AtomicU64,
    commit_failures: AtomicU64,
    frames_refused: AtomicU64,
    acks: AtomicU64,
    blocks: AtomicU64,
}

/// What [`Health`] counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Totals {
    pub(super) commits: u64,
    pub(super) commit_secs: f64,
    pub(super) commit_failures: u64,
    pub(super) frames_refused: u64,
    pub(super) acks: u64,
    pub(super) blocks: u64,
}

impl Health {
    /// The broker is connected.
    pub fn connected(&self) {
        self.set(Broker::Well);
    }

    /// The broker is connected and refuses something, and what it says.
    pub fn refused(&self, reason: &str) {
        self.set(Broker::Refuses(reason.to_owned()));
    }

    /// The broker is not connected, and why.
    pub fn disconnected(&self, reason: &str) {
        self.set(Broker::Away(reason.to_owned()));
    }

    fn set(&self, broker: Broker) {
        *self.broker.lock().unwrap_or_else(PoisonError::into_inner) = broker;
    }

    /// A message could not be used.
    pub fn rejected(&self, why: &Rejected) {
        let count = Rejected::KINDS.iter().position(|kind| *kind == why.kind()).and_then(|kind| self.rejected.get(kind));
        if let Some(count) = count {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A batch was stored in this time, with so many pictures that came and were not kept.
    pub fn committed(&self, took: Duration, frames_refused: usize) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.commit_micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
        self.frames_refused.fetch_add(frames_refused as u64, Ordering::Relaxed);
    }

    /// A batch could not be stored; it is tried again.
    pub fn commit_failed(&self) {
        self.commit_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// An acknowledgement was published.
    pub fn acknowledged(&self) {
        self.acks.fetch_add(1, Ordering::Relaxed);
    }

    /// A block of a release was published.
    pub fn block_published(&self) {
        self.blocks.fetch_add(1, Ordering::Relaxed);
    }

    fn broker(&self) -> Broker {
        self.broker.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn is_connected(&self) -> bool {
        !matches!(self.broker(), Broker::Away(_))
    }

    /// Messages that could not be used, by the kind of the reason: every kind, those that did not happen, too.
    pub(super) fn rejections(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Rejected::KINDS.into_iter().zip(self.rejected.iter().map(|count| count.load(Ordering::Relaxed)))
    }

    pub(super) fn totals(&self) -> Totals {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Totals {
            commits: count(&self.commits),
            commit_secs: count(&self.commit_micros) as f64 / 1e6,
            commit_failures: count(&self.commit_failures),
            frames_refused: count(&self.frames_refused),
            acks: count(&self.acks),
            blocks: count(&self.blocks),
        }
    }
}

/// `GET /healthz`
pub(super) async fn healthz(who: Option<Extension<Who>>, Shared(site): Shared<Arc<Site>>) -> Response {
    let store = match tokio::time::timeout(STORE_TIME, site.centre.store.ping()).await {
        Ok(answered) => answered.err().map(|error| format!("store: {error}")),
        Err(_) => Some(format!("store: no answer within {} s", STORE_TIME.as_secs())),
    };
    let broker = match site.centre.health.broker() {
        Broker::Well => None,
        Broker::Refuses(reason) | Broker::Away(reason) => Some(format!("broker: {reason}")),
    };
    let ills: Vec<String> = store.into_iter().chain(broker).collect();
    match ills.as_slice() {
        [] => "ok\n".into_response(),
        // Who asks without a token learns that something is wrong, and not what.
        ills if who.is_none() => (StatusCode::SERVICE_UNAVAILABLE, format!("{} things are wrong\n", ills.len())).into_response(),
        ills => (StatusCode::SERVICE_UNAVAILABLE, ills.join("\n") + "\n").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_is_away_until_it_is_there() {
        let health = Health::default();
        assert_eq!(health.broker(), Broker::Away("not connected yet".to_owned()));
        health.connected();
        assert_eq!(health.broker(), Broker::Well);
        health.refused("not authorised");
        assert_eq!(health.broker(), Broker::Refuses("not authorised".to_owned()));
        health.disconnected("connection refused");
        assert_eq!(health.broker(), Broker::Away("connection refused".to_owned()));
    }

    #[test]
    fn what_could_not_be_used_is_counted_by_kind() {
        let health = Health::default();
        health.rejected(&Rejected::Unknown);
        health.rejected(&Rejected::Size { found: 9, limit: 8 });
        health.rejected(&Rejected::Size { found: 7, limit: 6 });
        let counted: Vec<_> = health.rejections().collect();
        assert_eq!(counted, [("topic", 0), ("size", 2), ("wire", 0), ("value", 0), ("devices", 0), ("unknown", 1)]);
    }
}
