//! The tail of the event log, a piece at a time.

use super::Site;
use super::answer::{Failure, Params, json};
use crate::service::events::FILE;
use axum::extract::State as Shared;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

/// How much of the log's end is given to who asks for the first time, bytes.
const TAIL: u64 = 64 << 10;
/// The largest piece, bytes.
const PIECE: u64 = 256 << 10;

/// `GET /api/v1/events`
pub(super) async fn events(Shared(site): Shared<Arc<Site>>, uri: Uri) -> Result<Response, Failure> {
    let after = Params::read(&uri, &["after"])?.number("after", 0..=u64::MAX, "the `next` of the answer before")?;
    let path = site.state_dir.join(FILE);
    let read = tokio::task::spawn_blocking(move || piece(&path, after)).await;
    let (events, next) = read.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| {
        tracing::error!("the page: {FILE}: {error}");
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the event log cannot be read, see the centre's log")
    })?;
    Ok(json(&json!({ "events": events, "next": next })))
}

/// The whole lines from the byte `after` on, or of the file's end, and the byte to go on from. A place behind the file's end belongs to
/// another file: its end is given again. What is no event (torn by a crash) is left out.
fn piece(path: &Path, after: Option<u64>) -> io::Result<(Vec<Value>, u64)> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        file => file?,
    };
    let length = file.metadata()?.len();
    let start = after.filter(|after| *after <= length).unwrap_or(length.saturating_sub(TAIL));
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(PIECE).read_to_end(&mut bytes)?;
    let end = match bytes.iter().rposition(|&byte| byte == b'\n') {
        Some(end) => end + 1,
        // Longer than any event: it is stepped over.
        None if bytes.len() as u64 == PIECE => bytes.len(),
        None => 0,
    };
    let event = |line: &[u8]| serde_json::from_slice::<Value>(line).ok().filter(|value| value.get("event").is_some());
    Ok((bytes[..end].split(|&byte| byte == b'\n').filter_map(event).collect(), start + end as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_log_is_read_from_its_end_and_then_piece_by_piece() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        assert_eq!(piece(&path, None).unwrap(), (Vec::new(), 0));
        let line = |n: usize| format!("{{\"at_ms\":{n},\"event\":\"stopped\"}}\n");
        let mut file = File::create(&path).unwrap();
        (0..10_000).for_each(|n| file.write_all(line(n).as_bytes()).unwrap());
        let numbers = |events: &[Value]| events.iter().map(|event| event["at_ms"].as_u64().unwrap()).collect::<Vec<_>>();

        let (events, next) = piece(&path, None).unwrap();
        let tail = numbers(&events);
        assert!(tail.len() > 1000 && tail.len() < 3000 && tail.last() == Some(&9999), "{} events", tail.len());
        assert_eq!(piece(&path, Some(next)).unwrap(), (Vec::new(), next));

        file.write_all(b"torn\n{\"no\":1}\n").unwrap();
        file.write_all(line(10_000).as_bytes()).unwrap();
        file.write_all(b"{\"at_ms\":10001,\"ev").unwrap();
        let (events, next) = piece(&path, Some(next)).unwrap();
        assert_eq!(numbers(&events), [10_000]);
        file.write_all(b"ent\":\"stopped\"}\n").unwrap();
        let (events, end) = piece(&path, Some(next)).unwrap();
        assert_eq!((numbers(&events), end), (vec![10_001], std::fs::metadata(&path).unwrap().len()));

        // From the start on, all of it comes, in pieces; from behind the end, the end comes again.
        let (mut all, mut after) = (Vec::new(), 0);
        while after < end {
            let (events, next) = piece(&path, Some(after)).unwrap();
            assert!(next > after && next - after <= PIECE);
            all.extend(numbers(&events));
            after = next;
        }
        assert_eq!(all, (0..=10_001).collect::<Vec<_>>());
        assert_eq!(numbers(&piece(&path, Some(end + 1)).unwrap().0).last(), Some(&10_001));
        std::fs::write(&path, vec![b'x'; PIECE as usize + 5]).unwrap();
        assert_eq!(piece(&path, Some(0)).unwrap(), (Vec::new(), PIECE));
    }
}
