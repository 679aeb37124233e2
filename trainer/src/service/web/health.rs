//! What a supervisor asks: is the centre well, and its numbers in Prometheus' text format (version 0.0.4).

use super::Site;
use super::answer::Failure;
use super::fleet::Fleet;
use super::guard::Who;
use crate::service::store::counts::DeviceCounts;
use axum::Extension;
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::collections::BTreeMap;
use std::fmt::Write;
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

/// What the store does not know; the collector says it.
#[derive(Debug)]
pub struct Health {
    broker: Mutex<Broker>,
    rejected: AtomicU64,
}

impl Default for Health {
    fn default() -> Self {
        Self { broker: Mutex::new(Broker::Away("not connected yet".to_owned())), rejected: AtomicU64::new(0) }
    }
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

    /// Messages that could not be used, total since the start.
    pub fn rejected(&self, messages: u64) {
        self.rejected.store(messages, Ordering::Relaxed);
    }

    fn broker(&self) -> Broker {
        self.broker.lock().unwrap_or_else(PoisonError::into_inner).clone()
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

/// `GET /metrics`
pub(super) async fn metrics(Shared(site): Shared<Arc<Site>>) -> Result<Response, Failure> {
    let fleet = site.fleet.get(&site.centre.store).await?;
    let rounds = site.centre.store.rounds().await?;
    let newest = site.centre.store.releases(1).await?.first().map_or(0, |release| release.counter);
    let mut text = Text::default();
    text.family("omnilabel_centre_labels_stored_total", "counter", "Labels stored, each once.", &by_device(&fleet, |d| d.stored));
    text.family("omnilabel_centre_labels_duplicate_total", "counter", "Labels that came again.", &by_device(&fleet, |d| d.duplicates));
    text.family("omnilabel_centre_labels_missing", "gauge", "Committed, neither stored nor evicted.", &by_device(&fleet, |d| d.missing()));
    text.family("omnilabel_centre_labels_pending", "gauge", "In the device's outbox.", &by_device(&fleet, |d| d.pending));
    text.family("omnilabel_centre_frames_stored_total", "counter", "Frames stored.", &by_device(&fleet, |d| d.frames));
    text.family(
        "omnilabel_centre_device_online",
        "gauge",
        "Whether the device is connected.",
        &by_device(&fleet, |d| u64::from(d.is_there(fleet.at_ms))),
    );
    let mut confirmed: BTreeMap<u64, u64> = BTreeMap::new();
    for device in &fleet.devices {
        *confirmed.entry(device.confirmed).or_default() += 1;
    }
    let counters: Vec<(String, u64)> = confirmed.into_iter().map(|(counter, devices)| (counter.to_string(), devices)).collect();
    let confirmed: Vec<_> = counters.iter().map(|(counter, devices)| (vec![("release", counter.as_str())], *devices)).collect();
    text.family("omnilabel_centre_release_confirmed", "gauge", "Devices that confirmed a release; 0 is the first model.", &confirmed);
    let online = fleet.devices.iter().filter(|device| device.is_there(fleet.at_ms)).count() as u64;
    let connected = u64::from(!matches!(site.centre.health.broker(), Broker::Away(_)));
    let rejected = site.centre.health.rejected.load(Ordering::Relaxed);
    for (name, kind, help, value) in [
        ("omnilabel_centre_devices", "gauge", "Known devices.", fleet.devices.len() as u64),
        ("omnilabel_centre_devices_online", "gauge", "Devices that are connected.", online),
        ("omnilabel_centre_messages_rejected_total", "counter", "Messages that could not be used, since the start.", rejected),
        ("omnilabel_centre_rounds", "gauge", "Rounds that were begun.", rounds.len() as u64),
        ("omnilabel_centre_rounds_ended", "gauge", "Rounds that ended.", rounds.iter().filter(|round| round.ended).count() as u64),
        ("omnilabel_centre_release_newest", "gauge", "Counter of the newest release; 0 is none.", newest.cast_unsigned()),
        ("omnilabel_centre_broker_connected", "gauge", "Whether the broker is connected.", connected),
    ] {
        text.family(name, kind, help, &[(Vec::new(), value)]);
    }
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text.0).into_response())
}

/// A number with its labels.
type Sample<'f> = (Vec<(&'static str, &'f str)>, u64);

/// A number of each device.
fn by_device(fleet: &Fleet, value: impl Fn(&DeviceCounts) -> u64) -> Vec<Sample<'_>> {
    fleet.devices.iter().map(|device| (vec![("device", device.device.as_str())], value(device))).collect()
}

/// Prometheus' text.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str, samples: &[Sample<'_>]) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(self.0, "{name}{labels} {value}");
        }
    }
}

/// A label's value, as the format wants it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_one_head_and_its_samples() {
        let mut text = Text::default();
        text.family("seen_total", "counter", "Seen.", &[(vec![("device", "a\"b\\c\nd")], 3), (Vec::new(), 4)]);
        let expected = "# HELP seen_total Seen.\n# TYPE seen_total counter\nseen_total{device=\"a\\\"b\\\\c\\nd\"} 3\nseen_total 4\n";
        assert_eq!(text.0, expected);
    }

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
}
