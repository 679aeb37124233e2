//! What people say of a label: read, given, taken back. Who gives a word says which one they have seen, so that nobody's is lost unseen.

use super::Site;
use super::answer::{Failure, Named, Params, body, json, numbered};
use super::control::carry_out;
use super::guard::{Peer, Who};
use super::labels;
use crate::service::events::now_ms;
use crate::service::hand::{Person, Verdict, checked, proposed};
use crate::service::store::gallery::LabelNote;
use crate::service::store::verdicts::{Said, Word};
use axum::Extension;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::header::HeaderMap;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use omnilabel_bundle::Bundle;
use omnilabel_keypoints::geometry::Size;
use omnilabel_keypoints::wire::{LabelMsg, Message};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The largest body of a verdict, bytes: 20 people of 32 keypoints, with all digits that a number can have.
const MAX_VERDICT: usize = 64 << 10;
const EXPECTED: &str = "expected {\"version\": the one seen, \"verdict\": \"accepted\", \"corrected\" with \"instances\", or \"rejected\"}";

/// τ_k of the releases whose labels somebody looked at.
#[derive(Default)]
pub(super) struct KeypointThresholds(Mutex<HashMap<u64, f32>>);

impl KeypointThresholds {
    /// Of the model with a release's counter; of the provisioned one where its bundle is not there any more.
    async fn of(&self, site: &Site, model: u64) -> Result<f32, Failure> {
        if model == 0 {
            return Ok(site.centre.keypoint_threshold);
        }
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&model) {
            return Ok(*known);
        }
        let Some(bundle) = site.centre.store.bundle_of(model).await? else { return Ok(site.centre.keypoint_threshold) };
        // Its files are hashed: not on a thread that the collector runs on.
        let read = tokio::task::spawn_blocking(move || Bundle::open(Path::new(&bundle)).map(|b| b.manifest().thresholds.keypoint)).await;
        let threshold = match read {
            Ok(Ok(threshold)) => threshold,
            Ok(Err(error)) => {
                tracing::warn!("what labels of release {model} propose goes by the first model's threshold: {error}");
                // Not remembered: it may be readable the next time.
                return Ok(site.centre.keypoint_threshold);
            }
            Err(error) => {
                tracing::error!("reading release {model}: {error}");
                return Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the centre failed at it, see its log"));
            }
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(model, threshold);
        Ok(threshold)
    }
}

/// A label that may be judged.
struct Judgeable {
    note: LabelNote,
    size: Size,
    /// Whom the device kept …
    proposed: Vec<Person>,
    /// … and whom it did not.
    others: Vec<Person>,
}

impl Judgeable {
    async fn find(site: &Site, path: &Named) -> Result<Self, Failure> {
        let id = numbered("id", path)?;
        let conflict = |what: &str| Failure::new(StatusCode::CONFLICT, format!("label {id} {what}, expected one that can be trained on"));
        let Some(note) = site.centre.store.label(id.cast_signed()).await? else {
            return Err(Failure::new(StatusCode::NOT_FOUND, format!("label {id} is not here, expected an `id` of /api/v1/labels")));
        };
        if !note.pictured {
            return Err(conflict("has no picture here"));
        }
        if let Some(reason) = &note.refused {
            return Err(conflict(&format!("is refused ({reason})")));
        }
        let message = LabelMsg::decode(&note.payload).map_err(|_| conflict("cannot be read"))?;
        let threshold = site.thresholds.of(site, note.model()).await?;
        let size = Size { width: message.width, height: message.height };
        let [proposed, others] = [true, false].map(|kept| proposed(&message, &site.centre.skeleton, threshold, kept));
        Ok(Self { note, size, proposed, others })
    }
}

/// `GET /api/v1/labels/{id}/verdict`
pub(super) async fn verdict(path: Named, Shared(site): Shared<Arc<Site>>) -> Result<Response, Failure> {
    let Judgeable { note, size, proposed, others } = Judgeable::find(&site, &path).await?;
    Ok(json(&json!({
        "id": note.id, "width": size.width, "height": size.height, "version": note.version(), "verdict": labels::verdict(&note),
        "proposed": exact(&proposed), "others": exact(&others),
    })))
}

/// People with the digits that their numbers have, as they are stored: not those of the next number of twice the width.
fn exact(people: &[Person]) -> Value {
    serde_json::to_string(people).and_then(|text| serde_json::from_str(&text)).unwrap_or_default()
}

/// The body of a verdict.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    version: u64,
    verdict: Verdict,
    #[serde(default)]
    instances: Option<Vec<Person>>,
}

/// `PUT /api/v1/labels/{id}/verdict`
pub(super) async fn judge(
    path: Named,
    Shared(site): Shared<Arc<Site>>,
    Extension(peer): Extension<Peer>,
    Extension(who): Extension<Who>,
    headers: HeaderMap,
    sent: Body,
) -> Result<Response, Failure> {
    let wrong = |what: String| Failure::new(StatusCode::BAD_REQUEST, what);
    let Judgeable { note, size, proposed, .. } = Judgeable::find(&site, &path).await?;
    let bytes = body(&headers, sent, MAX_VERDICT).await?;
    let given: Given = serde_json::from_slice(&bytes).map_err(|error| {
        let reason: String = error.to_string().chars().take(200).collect();
        wrong(format!("the body cannot be read: {reason}; {EXPECTED}"))
    })?;
    let people = match (given.verdict, given.instances) {
        (Verdict::Accepted, None) => Some(proposed),
        (Verdict::Corrected, Some(people)) => Some(checked(people, size, site.centre.skeleton.len()).map_err(wrong)?),
        (Verdict::Rejected, None) => None,
        (verdict, None) => return Err(wrong(format!("{} comes without `instances`; {EXPECTED}", verdict.name()))),
        (verdict, Some(_)) => return Err(wrong(format!("{} comes with `instances`; {EXPECTED}", verdict.name()))),
    };
    say(site, peer, who, &note, given.version, Some(given.verdict), people).await
}

/// `DELETE /api/v1/labels/{id}/verdict`
pub(super) async fn take_back(
    path: Named,
    Shared(site): Shared<Arc<Site>>,
    Extension(peer): Extension<Peer>,
    Extension(who): Extension<Who>,
    uri: Uri,
) -> Result<Response, Failure> {
    let expected = "the version that was seen";
    let params = Params::read(&uri, &["version"])?;
    let version = params.number("version", 0..=i64::MAX.cast_unsigned(), expected)?;
    let version = version.ok_or_else(|| Failure::parameter("version", "", expected))?;
    let Judgeable { note, .. } = Judgeable::find(&site, &path).await?;
    if note.verdict.is_none() && version == note.version() {
        return Err(Failure::new(StatusCode::CONFLICT, format!("label {} has no verdict, expected one that has", note.id)));
    }
    say(site, peer, who, &note, version, None, None).await
}

async fn say(
    site: Arc<Site>,
    peer: Peer,
    who: Who,
    note: &LabelNote,
    seen: u64,
    verdict: Option<Verdict>,
    people: Option<Vec<Person>>,
) -> Result<Response, Failure> {
    let id = note.id;
    let said = verdict.map_or("undecided", Verdict::name);
    let request = match verdict {
        Some(_) => format!("PUT /api/v1/labels/{id}/verdict"),
        None => format!("DELETE /api/v1/labels/{id}/verdict"),
    };
    let request = format!("{request}: {said}, seen version {seen}, label of {}", note.device);
    let at_ms = now_ms();
    let role = who.role.name();
    let instances = people.as_deref().map(exact);
    let told = verdict.map(|verdict| json!({ "verdict": verdict, "role": role, "at_ms": at_ms, "instances": instances }));
    let word = Word { verdict, people, role, peer: peer.0.to_string() };
    let writer = site.centre.writer.clone();
    let deed = async move {
        match writer.say(id, seen, &word, at_ms).await? {
            Said::Holds(version) => Ok(version),
            Said::Stale(newest) => {
                let told =
                    format!("version {newest} was said of label {id}, expected a verdict on it, this one was given on version {seen}");
                Err(Failure::new(StatusCode::CONFLICT, told))
            }
            Said::Gone => {
                let told = format!("label {id} or its picture is not here any more, expected one that can be trained on");
                Err(Failure::new(StatusCode::CONFLICT, told))
            }
        }
    };
    let version = carry_out(site, peer, who, request, deed).await?;
    Ok(json(&json!({ "id": id, "version": version, "verdict": told.unwrap_or(Value::Null) })))
}
