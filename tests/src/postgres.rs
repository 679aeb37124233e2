//! A private PostgreSQL for one test: made, started and removed by it, on a Unix socket in a folder of its own. The centre's own tests have
//! this file, too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long its start may take.
const START: Duration = Duration::from_secs(60);

/// A running PostgreSQL with an empty database; gone when it is dropped, or when the test is killed.
#[derive(Debug)]
pub struct Postgres {
    folder: tempfile::TempDir,
    programs: PathBuf,
    server: Option<Child>,
    /// Whether a commit is on the disk when it returns; else it is the system's, which a test that kills nothing but processes does not notice.
    durable: bool,
}

impl Postgres {
    /// Makes and starts one, or says why the test is skipped.
    ///
    /// # Panics
    /// The programs are there and do not work.
    pub fn start() -> Option<Self> {
        Self::make(false)
    }

    /// As [`Postgres::start`], one whose commits are on the disk when they return: for measurements.
    ///
    /// # Panics
    /// As [`Postgres::start`].
    #[allow(dead_code, reason = "whoever measures asks for it")]
    pub fn durable() -> Option<Self> {
        Self::make(true)
    }

    fn make(durable: bool) -> Option<Self> {
        let Some(programs) = programs() else {
            println!("skipped: no PostgreSQL in /usr/lib/postgresql (tests/setup installs it)");
            return None;
        };
        let folder = tempfile::tempdir().expect("a folder");
        if is_root() {
            let (user, group) = (number("-u"), number("-g"));
            std::os::unix::fs::chown(folder.path(), Some(user), Some(group)).expect("root can give a folder away");
        }
        let mut postgres = Self { folder, programs, server: None, durable };
        let data = postgres.data();
        let mut make = postgres.command("initdb");
        make.arg("-D").arg(&data).args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]);
        succeed(&mut make);
        postgres.start_again();
        Some(postgres)
    }

    /// Starts it, or starts it again.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_again(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log")).expect("a log");
        let mut command = self.command("postgres");
        let fsync = if self.durable { "fsync=on" } else { "fsync=off" };
        command.arg("-D").arg(self.data()).arg("-k").arg(self.folder.path()).args(["-c", "listen_addresses=", "-c", fsync]);
        command.args(["-c", "shared_buffers=16MB", "-c", "max_connections=60"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.server = Some(command.spawn().expect("postgres starts"));
        let begin = Instant::now();
        // The last line of this file says how it is.
        while !fs::read_to_string(self.data().join("postmaster.pid")).is_ok_and(|text| text.trim_end().ends_with("ready")) {
            assert!(begin.elapsed() < START, "postgres does not start: {}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it at once, with the connections that there are.
    pub fn stop(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        // Immediate shutdown: as after a crash, but for its shared memory. One that is gone already is no error here.
        let _ = Command::new("kill").args(["-QUIT", &server.id().to_string()]).status();
        let _ = server.wait();
        let _ = fs::remove_file(self.data().join("postmaster.pid"));
    }

    /// The URL of one of its databases.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@localhost/{database}?host={}", self.folder.path().display())
    }

    /// Makes an empty database.
    ///
    /// # Panics
    /// There is one of that name.
    pub fn create(&self, database: &str) {
        self.psql("postgres", &format!("CREATE DATABASE {database}"));
    }

    /// Runs SQL and returns what it gives, a row a line.
    ///
    /// # Panics
    /// It fails.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        let mut command = self.command("psql");
        let output = succeed(command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql, &self.url(database)]));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// The folder of its programs.
    #[allow(dead_code, reason = "whoever runs one asks for it")]
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// What it wrote to its log.
    pub fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// One of its programs, none of which runs as root; each ends with the thread that starts it.
    fn command(&self, program: &str) -> Command {
        let program = self.programs.join(program);
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig=QUIT");
        if is_root() {
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
        }
        command.arg("--").arg(program).current_dir(self.folder.path());
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The folder of the newest version's programs.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|entry| entry.path().join("bin"));
    let complete = |bin: &PathBuf| ["initdb", "postgres", "psql"].iter().all(|program| bin.join(program).exists());
    let version = |bin: &PathBuf| bin.parent().and_then(Path::file_name).and_then(|name| name.to_str()?.parse::<u32>().ok());
    versions.filter(complete).max_by_key(version)
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// Number of the user `postgres` (`-u`) or its group (`-g`).
fn number(which: &str) -> u32 {
    let output = succeed(Command::new("id").args([which, "postgres"]));
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}
