//! Labels as they lie in the store, newest first, and their pictures.

use super::Site;
use super::answer::{Failure, Named, Params, json, numbered, short};
use crate::service::store::look::{LabelNote, MAX_ROWS};
use axum::extract::State as Shared;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use omnilabel_keypoints::label::{Detection, Instance, Keypoint};
use omnilabel_keypoints::wire::{FACES_BLURRED, LabelMsg, Message, ONLY_PEOPLE, topic};
use serde_json::{Value, json};
use std::sync::Arc;

/// Labels of one answer at most …
const MAX_LABELS: usize = 100;
/// … and without another wish.
const LABELS: usize = 24;
/// Labels that one request looks at: scores lie in the messages, which no index knows.
const MAX_LOOKED_AT: usize = 2000;

/// What somebody wants to see.
struct Wanted {
    device: Option<String>,
    min_score: f32,
    min_agreement: f32,
    before: i64,
    limit: usize,
}

impl Wanted {
    fn read(uri: &Uri) -> Result<Self, Failure> {
        let params = Params::read(uri, &["device", "min_score", "min_agreement", "before", "limit"])?;
        let device = params.text("device").filter(|device| !device.is_empty());
        if let Some(device) = device.filter(|device| topic::id(device).is_err()) {
            return Err(Failure::parameter("device", device, "1 to 64 of [A-Za-z0-9._-]"));
        }
        Ok(Self {
            device: device.map(str::to_owned),
            min_score: params.number("min_score", 0.0..=1.0, "0 to 1")?.unwrap_or(0.0),
            min_agreement: params.number("min_agreement", 0.0..=1.0, "0 to 1")?.unwrap_or(0.0),
            before: params.number("before", 1..=i64::MAX, "the `next` of the answer before")?.unwrap_or(i64::MAX),
            limit: params.number("limit", 1..=MAX_LABELS, "1 to 100")?.unwrap_or(LABELS),
        })
    }

    /// Whether all labels are wanted, whatever is in them.
    fn takes_all(&self) -> bool {
        self.min_score <= 0.0 && self.min_agreement <= 0.0
    }

    /// Whether somebody in a label is wanted, both by his score and by his agreement.
    fn takes(&self, instance: &Instance) -> bool {
        instance.detection.score >= self.min_score && instance.detection.agreement() >= self.min_agreement
    }
}

/// `GET /api/v1/labels`
pub(super) async fn labels(Shared(site): Shared<Arc<Site>>, uri: Uri) -> Result<Response, Failure> {
    let wanted = Arc::new(Wanted::read(&uri)?);
    let (mut found, mut before, mut looked_at) = (Vec::new(), wanted.before, 0);
    // What a next request goes on with; none after the oldest label.
    let next = loop {
        let rows = if wanted.takes_all() { wanted.limit as u32 } else { MAX_ROWS };
        let chunk = site.centre.store.labels_before(wanted.device.as_deref(), before, rows).await?;
        let is_last = chunk.len() < rows as usize;
        let room = wanted.limit - found.len();
        let some = Arc::clone(&wanted);
        // Hundreds of messages are read: not on a thread that the collector runs on.
        let described = tokio::task::spawn_blocking(move || described(&chunk, &some, room)).await;
        let described = described.map_err(|_| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the centre failed at it, see its log"))?;
        before = described.last.unwrap_or(before);
        looked_at += described.looked_at;
        found.extend(described.found);
        if found.len() == wanted.limit || looked_at >= MAX_LOOKED_AT {
            break Some(before);
        }
        if is_last {
            break None;
        }
    };
    Ok(json(&json!({ "labels": found, "next": next, "looked_at": looked_at })))
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
        "frame": row.pictured,
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
