//! Labels as they lie in the store, the newest or the most doubtful first, and their pictures.

use super::Site;
use super::answer::{Failure, Named, Params, json, numbered, short};
use crate::service::hand::Verdict;
use crate::service::store::gallery::{Judged, LabelNote, Look, Order};
use crate::service::store::look::MAX_ROWS;
use axum::extract::State as Shared;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use omnilabel_keypoints::label::{Detection, Instance, Keypoint};
use omnilabel_keypoints::wire::{FACES_BLURRED, LabelMsg, Message, ONLY_PEOPLE, topic};
use serde_json::{Value, json};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Labels of one answer at most …
const MAX_LABELS: usize = 100;
/// … and without another wish.
const LABELS: usize = 24;
/// Labels that one request looks at: scores lie in the messages, which no index knows.
const MAX_LOOKED_AT: usize = 2000;

/// Labels that one request sorts by doubt at most: some seconds' work.
const MAX_SORTED: u32 = 50_000;

/// What somebody wants to see.
struct Wanted {
    look: Look,
    score: RangeInclusive<f32>,
    agreement: RangeInclusive<f32>,
    before: Option<i64>,
    limit: usize,
}

/// The parameters of [`Wanted`].
const PARAMETERS: [&str; 9] = ["device", "min_score", "max_score", "min_agreement", "max_agreement", "verdict", "order", "before", "limit"];

impl Wanted {
    fn read(uri: &Uri) -> Result<Self, Failure> {
        let params = Params::read(uri, &PARAMETERS)?;
        let device = params.text("device").filter(|device| !device.is_empty());
        if let Some(device) = device.filter(|device| topic::id(device).is_err()) {
            return Err(Failure::parameter("device", device, "1 to 64 of [A-Za-z0-9._-]"));
        }
        let judged = match params.text("verdict") {
            None | Some("any") => Judged::Any,
            Some("none") => Judged::Undecided,
            Some(text) => {
                let verdict = text.parse::<Verdict>();
                Judged::Is(verdict.map_err(|_| Failure::parameter("verdict", text, "any, none, accepted, corrected or rejected"))?)
            }
        };
        let order = match params.text("order") {
            None | Some("newest") => Order::Newest,
            Some("doubt") => Order::Doubt,
            Some(text) => return Err(Failure::parameter("order", text, "newest or doubt")),
        };
        // What lies above 1 by a rounding is 1.
        let range = |least: &str, most: &str| {
            let most = params.number(most, 0.0..=1.0_f32, "0 to 1")?.filter(|most| *most < 1.0).unwrap_or(f32::INFINITY);
            Ok::<_, Failure>(params.number(least, 0.0..=1.0, "0 to 1")?.unwrap_or(0.0)..=most)
        };
        Ok(Self {
            look: Look { device: device.map(str::to_owned), judged, order },
            score: range("min_score", "max_score")?,
            agreement: range("min_agreement", "max_agreement")?,
            before: params.number("before", 1..=i64::MAX, "the `next` of the answer before")?,
            limit: params.number("limit", 1..=MAX_LABELS, "1 to 100")?.unwrap_or(LABELS),
        })
    }

    /// Whether all labels are wanted, whatever is in them.
    fn takes_all(&self) -> bool {
        [&self.score, &self.agreement].into_iter().all(|range| *range.start() <= 0.0 && range.end().is_infinite())
    }

    /// Whether somebody in a label is wanted, both by score and by agreement.
    fn takes(&self, instance: &Instance) -> bool {
        self.score.contains(&instance.detection.score) && self.agreement.contains(&instance.detection.agreement())
    }
}

/// `GET /api/v1/labels`
pub(super) async fn labels(Shared(site): Shared<Arc<Site>>, uri: Uri) -> Result<Response, Failure> {
    let wanted = Arc::new(Wanted::read(&uri)?);
    let is_sorted = match wanted.look.order {
        Order::Newest => true,
        Order::Doubt => site.centre.writer.sort_doubts(MAX_SORTED).await?,
    };
    let (mut found, mut before, mut looked_at) = (Vec::new(), wanted.before, 0);
    // What a next request goes on with; none after the oldest label.
    let next = loop {
        let rows = if wanted.takes_all() { wanted.limit as u32 } else { MAX_ROWS };
        let chunk = site.centre.store.labels(&wanted.look, before, rows).await?;
        let is_last = chunk.len() < rows as usize;
        let room = wanted.limit - found.len();
        let some = Arc::clone(&wanted);
        // Hundreds of messages are read: not on a thread that the collector runs on.
        let described = tokio::task::spawn_blocking(move || described(&chunk, &some, room)).await;
        let described = described.map_err(|_| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the centre failed at it, see its log"))?;
        before = described.last.or(before);
        looked_at += described.looked_at;
        found.extend(described.found);
        if found.len() == wanted.limit || looked_at >= MAX_LOOKED_AT {
            break before;
        }
        if is_last {
            break None;
        }
    };
    Ok(json(&json!({ "labels": found, "next": next, "looked_at": looked_at, "sorted": is_sorted })))
}

/// What a chunk of labels gave.
struct Described {
    found: Vec<Value>,
    /// Number of the last label that was looked at.
    last: Option<i64>,
    looked_at: usize,
}

/// Up to `room` of the labels that are wanted.
fn described(chunk: &[LabelNote], wanted: &Wanted, room: usize) -> Described {
    let mut described = Described { found: Vec::new(), last: None, looked_at: 0 };
    for row in chunk {
        described.last = Some(row.id);
        described.looked_at += 1;
        described.found.extend(describe(row, wanted));
        if described.found.len() == room {
            break;
        }
    }
    described
}

/// A label as JSON, if it is wanted: boxes, keypoints in pixels of its frame, scores and agreements from 0 to 1.
fn describe(row: &LabelNote, wanted: &Wanted) -> Option<Value> {
    let mut described = json!({
        "id": row.id, "device": row.device, "received_ms": row.received_ms, "model": row.model(), "refused": row.refused,
        "frame": row.pictured, "version": row.version(), "verdict": verdict(row),
    });
    let Ok(message) = LabelMsg::decode(&row.payload) else {
        // It was decoded when it came: another version of the program wrote it.
        described["unreadable"] = json!(true);
        return wanted.takes_all().then_some(described);
    };
    let label = message.label();
    if !wanted.takes_all() && !label.instances.iter().any(|instance| wanted.takes(instance)) {
        return None;
    }
    let changes = [(FACES_BLURRED, "faces_blurred"), (ONLY_PEOPLE, "only_people")];
    let changes: Vec<&str> = changes.into_iter().filter(|(bit, _)| message.changes & bit != 0).map(|(_, name)| name).collect();
    described["camera"] = json!(message.camera.as_str());
    described["captured_ms"] = json!(message.captured_ms);
    described["width"] = json!(message.width);
    described["height"] = json!(message.height);
    described["overflow"] = json!(message.overflow);
    described["views"] = json!(message.views);
    described["changes"] = json!(changes);
    described["instances"] = label.instances.iter().map(instance).collect();
    Some(described)
}

/// The newest word on a label as JSON, null where there is none or it was taken back.
pub(super) fn verdict(row: &LabelNote) -> Value {
    let Some(verdict) = &row.verdict else { return Value::Null };
    let people: Option<Value> = row.people.as_deref().and_then(|people| serde_json::from_str(people).ok());
    json!({ "verdict": verdict, "role": row.role, "at_ms": row.at_ms, "instances": people })
}

fn instance(instance: &Instance) -> Value {
    let Detection { rect, score, keypoints } = &instance.detection;
    let keypoint = |k: &Keypoint| json!([short(k.point.x), short(k.point.y), short(k.probability), short(k.agreement)]);
    json!({
        "box": [short(rect.x1), short(rect.y1), short(rect.x2), short(rect.y2)], "score": short(*score),
        "agreement": short(instance.detection.agreement()), "kept": instance.kept,
        "keypoints": keypoints.iter().map(keypoint).collect::<Vec<_>>(),
    })
}

/// `GET /api/v1/labels/{id}/frame.jpg`
pub(super) async fn picture(path: Named, Shared(site): Shared<Arc<Site>>) -> Result<Response, Failure> {
    let id = numbered("id", &path)?;
    match site.centre.store.picture(id.cast_signed()).await? {
        Some(jpeg) => Ok(([(header::CONTENT_TYPE, "image/jpeg")], jpeg).into_response()),
        None => Err(Failure::new(StatusCode::NOT_FOUND, format!("label {id} has no picture here, expected one with `frame`: true"))),
    }
}
