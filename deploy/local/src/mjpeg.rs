//! A folder of JPEG pictures as a live MJPEG stream over HTTP: what a network camera sends.
//!
//! `GET /stream.mjpg` answers `multipart/x-mixed-replace`. The footage starts again when it is over, as a camera never ends; pictures follow one
//! another at [`Pace`], which can be changed while the stream runs.

use anyhow::{Context as _, bail};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_core::Stream;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

const BOUNDARY: &str = "omnilabel-frame";

/// Pictures per second, shared with the stream.
#[derive(Clone, Debug)]
pub struct Pace(Arc<AtomicU64>);

impl Pace {
    /// `fps` pictures per second.
    pub fn new(fps: f64) -> Self {
        let pace = Self(Arc::default());
        pace.set(fps);
        pace
    }

    /// Changes the pace from the next picture on.
    pub fn set(&self, fps: f64) {
        self.0.store((1e6 / fps.max(1e-3)) as u64, Ordering::Relaxed);
    }

    fn period(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }
}

#[derive(Clone)]
struct Camera {
    files: Arc<[PathBuf]>,
    /// Position in the footage, the same for every viewer: it goes on where the last connection broke.
    position: Arc<AtomicU64>,
    pace: Pace,
}

/// A running server; it stops when it is dropped.
pub struct MjpegServer {
    port: u16,
    served: Arc<AtomicU64>,
    /// Owns the sockets: dropping it ends every stream.
    _runtime: tokio::runtime::Runtime,
}

impl MjpegServer {
    /// Serves the JPEG files of `folder`, by name, on a free loopback port.
    ///
    /// # Errors
    /// A folder without JPEG files, or no free port.
    pub fn start(folder: &Path, pace: Pace) -> anyhow::Result<Self> {
        let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
        files.retain(|path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jpg") || e.eq_ignore_ascii_case("jpeg")));
        files.sort();
        if files.is_empty() {
            bail!("{}: no JPEG file to stream", folder.display());
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("mjpeg").enable_all().build()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).context("no free port on 127.0.0.1")?;
        let port = listener.local_addr()?.port();
        let served = Arc::new(AtomicU64::new(0));
        let camera = Camera { files: files.into(), position: Arc::clone(&served), pace };
        let app = Router::new().route("/stream.mjpg", get(stream)).with_state(camera);
        runtime.spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                tracing::error!("the MJPEG server on port {port} stopped: {error}");
            }
        });
        Ok(Self { port, served, _runtime: runtime })
    }

    /// Where the stream is.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/stream.mjpg", self.port)
    }

    /// Pictures sent since the start.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

async fn stream(State(camera): State<Camera>) -> Response {
    let sleep = Box::pin(tokio::time::sleep(Duration::ZERO));
    let body = Body::from_stream(Frames { camera, sleep });
    (StatusCode::OK, [(header::CONTENT_TYPE, format!("multipart/x-mixed-replace; boundary={BOUNDARY}"))], body).into_response()
}

struct Frames {
    camera: Camera,
    sleep: Pin<Box<Sleep>>,
}

impl Stream for Frames {
    type Item = std::io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        ready!(self.sleep.as_mut().poll(context));
        let next = Instant::now() + self.camera.pace.period();
        self.sleep.as_mut().reset(next);
        let at = self.camera.position.fetch_add(1, Ordering::Relaxed) as usize % self.camera.files.len();
        // A picture of a few kilobytes: read in place.
        let part = std::fs::read(&self.camera.files[at]).map(|jpeg| {
            let mut part = format!("--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n", jpeg.len()).into_bytes();
            part.extend_from_slice(&jpeg);
            part.extend_from_slice(b"\r\n");
            Bytes::from(part)
        });
        Poll::Ready(Some(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpStream;

    fn folder(pictures: &[&[u8]]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (index, bytes) in pictures.iter().enumerate() {
            std::fs::write(dir.path().join(format!("{index}.jpg")), bytes).unwrap();
        }
        std::fs::write(dir.path().join("notes.txt"), "not a picture").unwrap();
        dir
    }

    /// The next part as an MJPEG client reads it; chunk sizes of HTTP/1.1 are lines of hexadecimal digits, which the test's pictures avoid.
    fn part(reader: &mut impl BufRead) -> Vec<u8> {
        let mut length = None;
        loop {
            let mut line = String::new();
            assert_ne!(reader.read_line(&mut line).unwrap(), 0, "the stream ended");
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = Some(value.trim().parse().unwrap());
            }
            if line == "\r\n"
                && let Some(length) = length
            {
                let mut jpeg = vec![0; length];
                reader.read_exact(&mut jpeg).unwrap();
                return jpeg;
            }
        }
    }

    #[test]
    fn the_stream_repeats_the_pictures_in_order() {
        let dir = folder(&[b"first picture", b"second", b"third one"]);
        let server = MjpegServer::start(dir.path(), Pace::new(500.0)).unwrap();
        let mut socket = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket.write_all(b"GET /stream.mjpg HTTP/1.1\r\nHost: camera\r\n\r\n").unwrap();
        let mut reader = BufReader::new(socket);
        let seen: Vec<Vec<u8>> = (0..4).map(|_| part(&mut reader)).collect();
        assert_eq!(seen, [&b"first picture"[..], b"second", b"third one", b"first picture"]);
        assert!(server.served() >= 4);
        drop(server);
        let mut rest = Vec::new();
        // The stream ends with the server: end of file or reset, but not silence.
        let end = reader.read_to_end(&mut rest);
        assert!(end.is_ok() || end.unwrap_err().kind() != std::io::ErrorKind::WouldBlock);
    }

    #[test]
    fn an_empty_folder_is_an_error_that_names_it() {
        let dir = folder(&[]);
        let error = MjpegServer::start(dir.path(), Pace::new(1.0)).err().unwrap().to_string();
        assert!(error.contains(&dir.path().display().to_string()) && error.contains("JPEG"), "{error}");
    }
}
