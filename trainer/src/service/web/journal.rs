//! The tail of the event log, a piece at a time.

use super::Site;
use super::answer::{Failure, Params, json};
use crate::service::events::{FILE, Part};
use axum::extract::State as Shared;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use serde_json::{Value, json};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// How much of the log's end is given to who asks for the first time, bytes.
const TAIL: u64 = 64 << 10;
/// The largest piece, bytes.
const PIECE: u64 = 256 << 10;
/// Of so much before the end, bytes, the fleet's labels are given, too: ten minutes of them, however many devices there are.
const FAR: u64 = 4 << 20;

/// `GET /api/v1/events`
pub(super) async fn events(Shared(site): Shared<Arc<Site>>, uri: Uri) -> Result<Response, Failure> {
    let after = Params::read(&uri, &["after"])?.number("after", 0..=u64::MAX, "the `next` of the answer before")?;
    let folder = site.state_dir.clone();
    let read = tokio::task::spawn_blocking(move || piece(&folder, after)).await;
    let (events, next) = read.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| {
        tracing::error!("the page: {FILE}: {error}");
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the event log cannot be read, see the centre's log")
    })?;
    Ok(json(&json!({ "events": events, "next": next })))
}

/// The whole lines from the byte `after` on, or of the log's end, and the byte to go on from. A place behind the end belongs to another
/// log: its end is given again. What is no event (torn by a crash) is left out.
fn piece(state_dir: &Path, after: Option<u64>) -> io::Result<(Vec<Value>, u64)> {
    let mut parts = Part::all(state_dir)?;
    let (Some(first), Some(end)) = (parts.first().map(|part| part.first), parts.last().map(|part| part.end)) else {
        return Ok((Vec::new(), 0));
    };
    let follows = after.filter(|after| *after <= end);
    let mut start = follows.unwrap_or(end.saturating_sub(TAIL)).max(first);
    let mut events = Vec::new();
    if follows.is_none() {
        let far = end.saturating_sub(FAR).max(first);
        for part in &mut parts {
            let from = far.max(part.first);
            let bytes = part.read(from, start.saturating_sub(from))?;
            // The line that lies across is read with the tail.
            if let Some(end) = bytes.iter().rposition(|&byte| byte == b'\n').filter(|_| start < part.end) {
                start = from + end as u64 + 1;
            }
            events.extend(lines(&bytes).filter(|line| is_of_the_fleet(line)).filter_map(event));
        }
    }
    let at = parts.iter().rposition(|part| part.first <= start).unwrap_or(0);
    let Some(part) = parts.get_mut(at) else { return Ok((events, start)) };
    let (bytes, next) = part.lines(start, PIECE)?;
    events.extend(lines(&bytes).filter_map(event));
    Ok((events, next))
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|&byte| byte == b'\n')
}

fn event(line: &[u8]) -> Option<Value> {
    serde_json::from_slice::<Value>(line).ok().filter(|value| value.get("event").is_some())
}

/// Told from its bytes, as there are many others.
fn is_of_the_fleet(line: &[u8]) -> bool {
    const NAME: &[u8] = b"\"event\":\"fleet\"";
    line.windows(NAME.len()).any(|bytes| bytes == NAME)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::events::OLDER;
    use std::fs::File;
    use std::io::Write;

    #[test]
    fn the_log_is_read_from_its_end_and_then_piece_by_piece() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        assert_eq!(piece(folder.path(), None).unwrap(), (Vec::new(), 0));
        let line = |n: usize| format!("{{\"at_ms\":{n},\"event\":\"stopped\"}}\n");
        let mut file = File::create(&path).unwrap();
        (0..10_000).for_each(|n| file.write_all(line(n).as_bytes()).unwrap());
        let numbers = |events: &[Value]| events.iter().map(|event| event["at_ms"].as_u64().unwrap()).collect::<Vec<_>>();

        let (events, next) = piece(folder.path(), None).unwrap();
        let tail = numbers(&events);
        assert!(tail.len() > 1000 && tail.len() < 3000 && tail.last() == Some(&9999), "{} events", tail.len());
        assert_eq!(piece(folder.path(), Some(next)).unwrap(), (Vec::new(), next));

        file.write_all(b"torn\n{\"no\":1}\n").unwrap();
        file.write_all(line(10_000).as_bytes()).unwrap();
        file.write_all(b"{\"at_ms\":10001,\"ev").unwrap();
        let (events, next) = piece(folder.path(), Some(next)).unwrap();
        assert_eq!(numbers(&events), [10_000]);
        file.write_all(b"ent\":\"stopped\"}\n").unwrap();
        let (events, end) = piece(folder.path(), Some(next)).unwrap();
        assert_eq!((numbers(&events), end), (vec![10_001], std::fs::metadata(&path).unwrap().len()));

        // From the start on, all of it comes, in pieces; from behind the end, the end comes again.
        let (mut all, mut after) = (Vec::new(), 0);
        while after < end {
            let (events, next) = piece(folder.path(), Some(after)).unwrap();
            assert!(next > after && next - after <= PIECE);
            all.extend(numbers(&events));
            after = next;
        }
        assert_eq!(all, (0..=10_001).collect::<Vec<_>>());
        assert_eq!(numbers(&piece(folder.path(), Some(end + 1)).unwrap().0).last(), Some(&10_001));
        std::fs::write(&path, vec![b'x'; PIECE as usize + 5]).unwrap();
        assert_eq!(piece(folder.path(), Some(0)).unwrap(), (Vec::new(), PIECE));
    }

    #[test]
    fn it_is_read_on_where_the_file_was_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let line = |n: usize| format!("{{\"at_ms\":{n},\"event\":\"stopped\"}}\n");
        let numbers = |events: &[Value]| events.iter().map(|event| event["at_ms"].as_u64().unwrap()).collect::<Vec<_>>();
        let older: String = (0..10_000).map(line).collect();
        std::fs::write(folder.path().join(FILE), &older).unwrap();
        let (_, next) = piece(folder.path(), None).unwrap();
        assert_eq!(next, older.len() as u64);

        // One more, and another that a crash tore; then the file is begun anew.
        let (older, torn) = (older + &line(10_000), "{\"at_ms\":7,\"ev");
        std::fs::write(folder.path().join(OLDER), older.clone() + torn).unwrap();
        std::fs::remove_file(folder.path().join(FILE)).unwrap();
        assert_eq!(numbers(&piece(folder.path(), Some(next)).unwrap().0), [10_000]);
        let before = older.len() + torn.len();
        let begun = format!("{{\"at_ms\":10001,\"event\":\"continued\",\"before\":{before}}}\n");
        std::fs::write(folder.path().join(FILE), begun.clone() + &line(10_002)).unwrap();
        let (events, next) = piece(folder.path(), Some(next)).unwrap();
        assert_eq!((numbers(&events), next), (vec![10_000], before as u64));
        let (events, next) = piece(folder.path(), Some(next)).unwrap();
        assert_eq!((numbers(&events), next), (vec![10_001, 10_002], (before + begun.len() + line(10_002).len()) as u64));
        assert_eq!(piece(folder.path(), Some(next)).unwrap(), (Vec::new(), next));

        // The log's end reaches into the older file; a place before all that is left is its start.
        let (events, next) = piece(folder.path(), None).unwrap();
        assert_eq!((numbers(&events).last(), next), (Some(&10_000), before as u64));
        std::fs::remove_file(folder.path().join(OLDER)).unwrap();
        assert_eq!(numbers(&piece(folder.path(), Some(5)).unwrap().0), [10_001, 10_002]);
    }

    #[test]
    fn the_fleets_labels_are_given_from_farther_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut text = String::new();
        for n in 0..30_000 {
            let event = if n % 1000 == 0 { "\"fleet\",\"stored\":1,\"new\":1,\"seconds\":5.0" } else { "\"labels\",\"device\":\"cam\"" };
            text += &format!("{{\"at_ms\":{n},\"event\":{event}}}\n");
        }
        std::fs::write(folder.path().join(FILE), &text).unwrap();
        let (events, next) = piece(folder.path(), None).unwrap();
        assert_eq!(next, text.len() as u64);
        let fleet: Vec<_> = events.iter().filter(|event| event["event"] == "fleet").filter_map(|event| event["at_ms"].as_u64()).collect();
        assert_eq!(fleet, (0..30_000).step_by(1000).collect::<Vec<_>>());
        assert!(events.len() < 3000, "{} events", events.len());
    }
}
