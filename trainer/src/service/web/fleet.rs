//! Devices, releases, rounds and the skeleton, as JSON.

use super::Site;
use super::answer::{Failure, Params, json, short};
use crate::service::drift::Compared;
use crate::service::drift::fleet::FleetDrift;
use crate::service::events::now_ms;
use crate::service::rounds::RoundState;
use crate::service::store::counts::DeviceCounts;
use crate::service::store::look::{MAX_ROWS, ReleaseNote};
use crate::service::store::{Store, StoreError};
use axum::extract::State as Shared;
use axum::http::Uri;
use axum::response::Response;
use omnilabel_keypoints::label::Thresholds;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// Rounds that are shown at most, the newest ones.
const MAX_ROUNDS: usize = 200;
/// How long a count is good …
const FRESH: Duration = Duration::from_secs(1);
/// … and how many times the time that it took, so that however many pages are open, little of the time is spent on counting.
const SHARE: u32 = 10;

/// The accounts of all devices, by name.
pub(super) struct Fleet {
    pub(super) devices: Vec<DeviceCounts>,
    /// How their labels have changed, by name.
    pub(super) drifts: BTreeMap<String, FleetDrift>,
    /// When they were counted, Unix ms.
    pub(super) at_ms: u64,
}

/// The last count, for all who ask within a moment.
#[derive(Default)]
pub(super) struct FleetCache(Mutex<Option<(Arc<Fleet>, Instant)>>);

impl FleetCache {
    pub(super) async fn get(&self, store: &Store) -> Result<Arc<Fleet>, StoreError> {
        let mut last = self.0.lock().await;
        let now = Instant::now();
        if let Some((fleet, until)) = last.as_ref()
            && *until > now
        {
            return Ok(Arc::clone(fleet));
        }
        let fleet = Arc::new(Fleet { devices: store.counts().await?, drifts: store.drifts().await?, at_ms: now_ms() });
        *last = Some((Arc::clone(&fleet), Instant::now() + FRESH.max(now.elapsed() * SHARE)));
        Ok(fleet)
    }
}

/// `GET /api/v1/fleet`
pub(super) async fn fleet(Shared(site): Shared<Arc<Site>>, uri: Uri) -> Result<Response, Failure> {
    Params::read(&uri, &[])?;
    let fleet = site.fleet.get(&site.centre.store).await?;
    let devices: Vec<Value> = fleet.devices.iter().map(|counts| device(counts, &fleet)).collect();
    Ok(json(&json!({ "at_ms": now_ms(), "devices": devices })))
}

fn device(counts: &DeviceCounts, fleet: &Fleet) -> Value {
    json!({
        "device": counts.device, "online": counts.is_there(fleet.at_ms), "seen_ms": counts.seen_ms,
        "confirmed": counts.confirmed, "trial": counts.trial, "refused": counts.refused_release, "reason": counts.reason,
        "committed": counts.committed, "stored": counts.stored, "settled": counts.settled, "set_aside": counts.refused,
        "pending": counts.pending, "evicted": counts.evicted, "duplicates": counts.duplicates, "conflicts": counts.conflicts,
        "missing": counts.missing(), "frames": counts.frames,
        "drift": fleet.drifts.get(&counts.device).map(drift),
    })
}

fn drift(drift: &FleetDrift) -> Value {
    let thousandths = |value: f64| (1000.0 * value).round() / 1000.0;
    let statistic = |one: &Compared| {
        json!({
            "statistic": one.what.key(), "name": one.what.name(), "distance": thousandths(one.distance), "noise": thousandths(one.noise),
            "before": thousandths(one.before), "after": thousandths(one.after), "drifted": one.drifted,
        })
    };
    json!({
        "model": drift.model, "reference_until_ms": drift.reference_until_ms, "reference": drift.reference, "newest": drift.newest,
        "statistics": drift.compared.iter().map(statistic).collect::<Vec<_>>(),
    })
}

/// How many devices say what of a release.
#[derive(Clone, Copy, Default)]
struct Said {
    confirmed: u64,
    trial: u64,
    refused: u64,
}

impl Said {
    fn json(self, counter: u64) -> Value {
        json!({ "counter": counter, "confirmed": self.confirmed, "trial": self.trial, "refused": self.refused })
    }
}

/// `GET /api/v1/releases`: what was released here, and which releases the devices name, 0 being the model that they were provisioned with.
pub(super) async fn releases(Shared(site): Shared<Arc<Site>>, uri: Uri) -> Result<Response, Failure> {
    Params::read(&uri, &[])?;
    let fleet = site.fleet.get(&site.centre.store).await?;
    let mut said: BTreeMap<u64, Said> = BTreeMap::new();
    for counts in &fleet.devices {
        said.entry(counts.confirmed).or_default().confirmed += 1;
        if let Some(trial) = counts.trial {
            said.entry(trial).or_default().trial += 1;
        }
        if let Some(refused) = counts.refused_release {
            said.entry(refused).or_default().refused += 1;
        }
    }
    let releases: Vec<Value> = site.centre.store.releases(MAX_ROWS).await?.iter().map(release).collect();
    let models: Vec<Value> = said.into_iter().map(|(counter, said)| said.json(counter)).collect();
    Ok(json(&json!({ "devices": fleet.devices.len(), "releases": releases, "models": models })))
}

fn release(release: &ReleaseNote) -> Value {
    let waves = release.waves();
    json!({
        "counter": release.counter, "name": release.name, "created_ms": release.created_ms, "round": release.round,
        "share_percent": f64::from(waves.share()) / 10.0, "wave": waves.wave + 1, "waves": waves.shares.len(),
        "complete": waves.complete, "halted": waves.halted,
    })
}

/// `GET /api/v1/rounds`
pub(super) async fn rounds(Shared(site): Shared<Arc<Site>>, uri: Uri) -> Result<Response, Failure> {
    Params::read(&uri, &[])?;
    let rounds = site.centre.store.rounds().await?;
    let newest: Vec<Value> = rounds[rounds.len().saturating_sub(MAX_ROUNDS)..].iter().map(round).collect();
    Ok(json(&json!({ "rounds": newest })))
}

fn round(round: &RoundState) -> Value {
    let thresholds = |t: &Thresholds| json!({ "instance": short(t.instance), "keypoint": short(t.keypoint), "floor": short(t.floor) });
    let decision = round.decision.as_ref();
    json!({
        "round": round.round, "teacher": round.teacher, "after": round.after, "up_to": round.up_to,
        "running_ap": round.running_judged.as_ref().map(|judged| judged.ap),
        "candidate_ap": round.candidate_judged.as_ref().map(|judged| judged.ap),
        "thresholds": round.thresholds.as_ref().map(thresholds),
        "trained": round.trained,
        "decision": decision.map(|decision| if decision.released() { "release" } else { "refuse" }),
        "difference": round.difference, "reason": decision.map(|decision| decision.reason()),
        "released": round.released, "ended": round.ended, "failures": round.failures, "failed": round.failed,
    })
}

/// `GET /api/v1/skeleton`
pub(super) async fn skeleton(Shared(site): Shared<Arc<Site>>, uri: Uri) -> Result<Response, Failure> {
    Params::read(&uri, &[])?;
    let skeleton = &site.centre.skeleton;
    Ok(json(&json!({
        "names": skeleton.names().collect::<Vec<_>>(), "edges": skeleton.edges(),
        "sides": (0..skeleton.len()).map(|index| skeleton.side(index).name()).collect::<Vec<_>>(),
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_says_how_sure_its_difference_is() {
        let told = |state: &Value| round(&serde_json::from_value(state.clone()).unwrap())["difference"].clone();
        let mut state = json!({ "round": 1, "teacher": 0, "running": "/nowhere", "after": 0, "up_to": 8 });
        assert_eq!(told(&state), Value::Null, "an earlier version wrote it");
        state["difference"] = json!({ "ap": 0.019, "standard_error": 0.01, "interval": [0.004, 0.035], "not_better": 0.01 });
        assert_eq!(told(&state), state["difference"]);
    }
}
