//! A live MJPEG stream. It is opened anew with back-off whenever it ends, stalls or says nonsense; a bad picture costs only itself.

use super::http::{self, Response, Target};
use super::multipart::{Multipart, boundary};
use super::{Camera, CameraEvent, shot};
use crate::clock::now_ms;
use omnilabel_link::Backoff;
use std::io::Read;
use std::time::{Duration, Instant};

/// An MJPEG camera.
pub struct Mjpeg {
    target: Target,
    period: Duration,
    stall: Duration,
    limit: usize,
    stream: Option<Stream>,
    backoff: Backoff,
    wait: Option<Duration>,
    due: Option<Instant>,
    last_id: u64,
}

struct Stream {
    response: Response,
    parts: Multipart,
    /// When the last whole part came.
    fresh: Instant,
}

impl Mjpeg {
    /// A camera at `url`, `fps` frames per second at most; without a frame for `stall` the stream is opened anew.
    ///
    /// # Errors
    /// When the URL is not one.
    pub fn new(url: &str, fps: f64, stall: Duration, max_frame_bytes: usize) -> anyhow::Result<Self> {
        Ok(Self {
            target: Target::parse(url).map_err(|message| anyhow::anyhow!("camera url {message}"))?,
            period: Duration::from_secs_f64(1.0 / fps),
            stall,
            limit: max_frame_bytes,
            stream: None,
            backoff: Backoff::default(),
            wait: None,
            due: None,
            last_id: 0,
        })
    }

    fn connect(&mut self) -> Result<Stream, String> {
        let response = http::get(&self.target, self.stall).map_err(|error| format!("{:?}: {error}", self.target))?;
        let Some(boundary) = boundary(&response.content_type) else {
            return Err(format!(
                "{:?}: Content-Type is {:?}, expected multipart/x-mixed-replace with a boundary",
                self.target, response.content_type
            ));
        };
        let parts = Multipart::new(boundary, self.limit);
        Ok(Stream { response, parts, fresh: Instant::now() })
    }

    fn lost(&mut self, reason: String) -> CameraEvent {
        self.stream = None;
        let retry_in = self.backoff.next_delay();
        self.wait = Some(retry_in);
        CameraEvent::Lost { reason, retry_in }
    }

    /// Milliseconds since 1970, or one more than the last where that is not more.
    fn next_id(&mut self) -> u64 {
        self.last_id = now_ms().max(self.last_id + 1);
        self.last_id
    }
}

impl Stream {
    fn next_part(&mut self, stall: Duration) -> Result<Vec<u8>, Result<String, String>> {
        let mut buffer = [0; 16 * 1024];
        loop {
            if let Some(part) = self.parts.next_part() {
                self.fresh = Instant::now();
                return part.map_err(|error| Ok(error.to_string()));
            }
            if self.parts.is_at_end() {
                return Err(Err("the stream ended".to_owned()));
            }
            if self.fresh.elapsed() >= stall {
                return Err(Err(format!("no frame for {stall:?}")));
            }
            match self.response.read(&mut buffer) {
                Ok(0) => return Err(Err("the stream ended".to_owned())),
                Ok(count) => self.parts.push(&buffer[..count]),
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                    return Err(Err(format!("no byte for {stall:?}")));
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Err(error.to_string())),
            }
        }
    }
}

impl Camera for Mjpeg {
    fn next(&mut self) -> CameraEvent {
        if let Some(wait) = self.wait.take() {
            std::thread::sleep(wait);
        }
        loop {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => match self.connect() {
                    Ok(stream) => self.stream.insert(stream),
                    Err(reason) => return self.lost(reason),
                },
            };
            match stream.next_part(self.stall) {
                Ok(bytes) => {
                    let now = Instant::now();
                    if self.due.is_some_and(|due| now < due) {
                        continue;
                    }
                    let id = self.next_id();
                    let event = shot(id, format!("{:?} at {id}", self.target), bytes, None);
                    if matches!(event, CameraEvent::Shot(_)) {
                        self.due = Some(self.due.unwrap_or(now).max(now - self.period) + self.period);
                        self.backoff.reset();
                    }
                    return event;
                }
                Err(Ok(reason)) => return CameraEvent::Bad { reason: format!("{:?}: {reason}", self.target), position: None },
                Err(Err(reason)) => {
                    let reason = format!("{:?}: {reason}", self.target);
                    return self.lost(reason);
                }
            }
        }
    }

    fn is_live(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnilabel_detect::frame::Frame;
    use omnilabel_keypoints::geometry::Size;
    use std::io::Write;
    use std::net::TcpListener;

    fn picture() -> Vec<u8> {
        Frame { size: Size { width: 8, height: 6 }, rgb: vec![100; 144] }.to_jpeg(90)
    }

    /// Serves one answer after another, each to a new connection; a `None` at its end keeps the connection open in silence.
    fn serve(answers: Vec<(Vec<u8>, bool)>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/stream", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let mut open = Vec::new();
            for (answer, silent) in answers {
                let (mut socket, _) = listener.accept().unwrap();
                let mut request = [0; 1024];
                let _ = socket.read(&mut request).unwrap();
                socket.write_all(&answer).unwrap();
                if silent {
                    open.push(socket);
                }
            }
            // The port stays taken, so that the camera's next attempts wait for an answer.
            std::thread::park();
        });
        url
    }

    fn part(body: &[u8]) -> Vec<u8> {
        [format!("--b\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), body, b"\r\n"].concat()
    }

    const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n";

    #[test]
    fn frames_come_bad_ones_are_told_and_a_stream_that_ends_stalls_or_lies_is_opened_anew() {
        let chunk = [HEAD, &part(&picture())].concat();
        let (head, body) = chunk.split_at(HEAD.len());
        let head = String::from_utf8(head.to_vec()).unwrap().replace("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n");
        let (one, two) = body.split_at(50);
        let chunked = [head.as_bytes(), b"32\r\n", one, format!("\r\n{:x};x=y\r\n", two.len()).as_bytes(), two, b"\r\n0\r\n\r\n"].concat();
        let url = serve(vec![
            ([HEAD, &part(&picture()), &part(b"not a picture"), &part(&picture())].concat(), false),
            (b"HTTP/1.1 401 Unauthorized\r\n\r\n".to_vec(), false),
            (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>".to_vec(), false),
            ([HEAD, &part(&picture())].concat(), true),
            (chunked, false),
            (b"garbage".to_vec(), false),
        ]);
        let mut camera = Mjpeg::new(&url, 1e9, Duration::from_millis(300), 100_000).unwrap();
        let mut last = 0;
        for expect in ["shot", "bad", "shot", "ended", "401", "text/html", "shot", "no byte", "shot", "ended", "HTTP header"] {
            match (camera.next(), expect) {
                (CameraEvent::Shot(shot), "shot") => {
                    assert!(shot.id > last && shot.jpeg.is_some());
                    last = shot.id;
                }
                (CameraEvent::Bad { .. }, "bad") => {}
                (CameraEvent::Lost { reason, .. }, text) if reason.contains(text) => {}
                (event, expect) => panic!("expected {expect}, found {event:?}"),
            }
        }
    }
}
