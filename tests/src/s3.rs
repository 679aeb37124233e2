//! A private S3 for one test: `moto_server` on loopback, which keeps everything in memory. The centre's own tests have this file, too.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long its start may take.
const START: Duration = Duration::from_secs(120);

/// A running server with an empty bucket; gone when it is dropped.
#[derive(Debug)]
pub struct S3 {
    python: PathBuf,
    port: u16,
    server: Option<Child>,
}

impl S3 {
    /// The bucket.
    pub const BUCKET: &str = "labels";

    /// Starts one, or says why the test is skipped.
    ///
    /// # Panics
    /// The program is there and does not work.
    pub fn start() -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
        let python = std::env::var_os("OMNILABEL_PYTHON").map_or_else(|| root.join(".venv-test/bin/python"), PathBuf::from);
        let installed = Command::new(&python).args(["-c", "import moto.server"]).stderr(Stdio::null()).status();
        if !installed.is_ok_and(|status| status.success()) {
            println!("skipped: no moto_server for {} (set OMNILABEL_PYTHON, or run tests/setup)", python.display());
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port();
        let mut server = Self { python, port, server: None };
        server.start_again();
        server.make_bucket();
        Some(server)
    }

    /// Starts it, or starts it again: without anything that was in it.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_again(&mut self) {
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig=KILL").arg("--").arg(&self.python);
        command.args(["-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", &self.port.to_string()]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.server = Some(child.expect("moto_server starts"));
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(begin.elapsed() < START, "moto_server does not listen on port {}", self.port);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends it at once.
    pub fn stop(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        // One that is gone already is no error here.
        let _ = server.kill();
        let _ = server.wait();
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Makes the bucket.
    ///
    /// # Panics
    /// It does not.
    pub fn make_bucket(&self) {
        self.request("PUT", &format!("/{}", Self::BUCKET), "");
    }

    /// Makes a request without a signature, which this server takes.
    ///
    /// # Panics
    /// It is not answered, or not with success.
    pub fn request(&self, method: &str, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the server listens");
        let head = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + body).as_bytes()).expect("the server reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the server answers");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.split(' ').nth(1).is_some_and(|status| status.starts_with('2')), "{method} {path}: {answer}");
        answer
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.stop();
    }
}
