//! Real peers of a whole-system test: a mosquitto that can be killed, the product's own programs, a Python interpreter.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything of a test may take: three minutes, times `OMNILABEL_PATIENCE` where the programs are slower than on their own.
///
/// # Panics
/// `OMNILABEL_PATIENCE` is no number from 1 on.
pub fn deadline() -> Duration {
    let patience: u32 = std::env::var_os("OMNILABEL_PATIENCE").map_or(1, |text| {
        let number = text.to_str().and_then(|text| text.parse().ok()).filter(|number| (1..=1000).contains(number));
        number.unwrap_or_else(|| panic!("OMNILABEL_PATIENCE is {text:?}, expected a whole number from 1 to 1000"))
    });
    Duration::from_secs(180) * patience
}

/// The repository.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// The shipped model.
pub fn teacher() -> PathBuf {
    root().join("models/zoo/nano-scenes")
}

/// The folder of real images, or `None` with a message.
pub fn real_images(set: &str) -> Option<PathBuf> {
    let folder = root().join("../shared/data").join(set);
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: no real images at {}", folder.display());
    None
}

/// The interpreter with the test requirements, or `None` with a message.
pub fn python() -> Option<PathBuf> {
    let python = std::env::var_os("OMNILABEL_PYTHON").map_or_else(|| root().join(".venv-test/bin/python"), PathBuf::from);
    if python.exists() {
        return Some(python);
    }
    println!("skipped: no Python at {} (set OMNILABEL_PYTHON, or run tests/setup)", python.display());
    None
}

/// A program of this workspace, built beside the test that asks. `OMNILABEL_EDGE` is what runs as `omnilabel-edge` instead, for instance
/// one of another machine under an emulator (`tests/aarch64`); it has to be one process, which gets the signals.
///
/// # Panics
/// It is not there: the whole workspace has to be built before its system tests run, as `tests/run` does.
pub fn program(name: &str) -> PathBuf {
    if name == "omnilabel-edge"
        && let Some(other) = std::env::var_os("OMNILABEL_EDGE").map(PathBuf::from)
    {
        assert!(other.is_file(), "OMNILABEL_EDGE is {}: there is no such program", other.display());
        return other;
    }
    let test = std::env::current_exe().unwrap_or_default();
    // Tests lie in a folder below the programs', a program lies beside them.
    let folders = test.ancestors().skip(1).take(2);
    let built = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    built.unwrap_or_else(|| panic!("{name} is not built; run `cargo build --release --workspace` first"))
}

/// Runs a program to its end.
///
/// # Panics
/// It cannot be started.
pub fn run<A: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = A>) -> Output {
    let output = Command::new(program(name)).args(args).stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Runs a program to its end and returns what it printed.
///
/// # Panics
/// It fails.
pub fn succeed<A: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = A>) -> String {
    let output = run(name, args);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} ended with {}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// Looks every 50 ms until there is something.
///
/// # Panics
/// There is nothing for as long as [`deadline`] says.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let (start, deadline) = (Instant::now(), deadline());
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < deadline, "{what} did not happen within {} s", deadline.as_secs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A TCP port that nobody uses at this moment.
///
/// # Panics
/// There is none.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its number").port()
}

/// Whether a tool can be started; says so where it cannot. `tests/setup` installs what the tests need.
pub fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        println!("skipped: no {tool} (tests/setup, or tests/setup --long)");
    }
    found
}

/// Runs a command to its end and returns what it printed.
///
/// # Panics
/// It cannot be started, or fails.
pub fn command(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} ended with {}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// Asks a page on this machine, with a token where one is given; the status and the body. `None` while nobody listens.
pub fn http_get(port: u16, path: &str, token: Option<&str>) -> Option<(u16, String)> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let token = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
    write!(socket, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{token}\r\n").ok()?;
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut socket, &mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// A running program; killed when it is dropped.
pub struct Process {
    name: String,
    child: Child,
    /// Where its standard error goes.
    log: PathBuf,
}

impl Process {
    /// Starts a program of this workspace with its standard error appended to `log`.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start<A: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = A>, log: &Path) -> Self {
        Self::spawn(name, Command::new(program(name)).args(args), log)
    }

    /// Starts any command.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Self {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log);
        let file = file.unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file).spawn();
        let child = child.unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { name: name.to_owned(), child, log: log.to_owned() }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: no handler runs, nothing is flushed.
    ///
    /// # Panics
    /// It is gone already.
    pub fn kill(mut self) {
        let ended = self.child.try_wait().ok().flatten();
        assert!(ended.is_none(), "{} ended by itself with {ended:?}: {}", self.name, self.said());
        self.child.kill().expect("a process can be killed");
        self.child.wait().expect("a killed process ends");
    }

    /// SIGTERM, or SIGINT as Ctrl-C sends it.
    ///
    /// # Panics
    /// The signal cannot be sent.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "{} takes no {name}", self.name);
    }

    /// The exit status, once it has ended.
    ///
    /// # Panics
    /// The system cannot say.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for its end and returns the status and what it printed.
    ///
    /// # Panics
    /// It does not end.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let name = self.name.clone();
        let mut out = self.child.stdout.take();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            if let Some(out) = &mut out {
                let _ = std::io::Read::read_to_string(out, &mut text);
            }
            text
        });
        let status = until(&format!("the end of {name}"), || self.ended());
        (status, reader.join().expect("a reader of text does not panic"))
    }

    /// Gives it a line on standard input.
    ///
    /// # Panics
    /// It does not take one.
    pub fn tell(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("standard input is a pipe");
        writeln!(stdin, "{line}").and_then(|()| stdin.flush()).unwrap_or_else(|error| panic!("{}: {error}: {}", self.name, self.said()));
    }

    /// Reads one line of its standard output.
    ///
    /// # Panics
    /// There is none.
    pub fn line(&mut self) -> String {
        let stdout = self.child.stdout.as_mut().expect("standard output is a pipe");
        let mut line = String::new();
        // Byte by byte, so that nothing is buffered that a later reader wants.
        BufReader::with_capacity(1, stdout).read_line(&mut line).expect("text");
        assert!(!line.is_empty(), "{} said nothing: {}", self.name, self.said());
        line.trim_end().to_owned()
    }

    /// What it wrote to standard error.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already is no error here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The broker's program, where it is installed.
pub fn mosquitto() -> Option<&'static str> {
    ["mosquitto", "/usr/sbin/mosquitto"].into_iter().find(|program| Command::new(program).arg("-h").output().is_ok())
}

/// A mosquitto on loopback.
pub struct Mosquitto {
    process: Option<Process>,
    folder: PathBuf,
    /// Its port.
    pub port: u16,
}

impl Mosquitto {
    /// Starts one that keeps its files in `folder`, or says why the test is skipped.
    pub fn start(folder: &Path) -> Option<Self> {
        let mut broker = Self { process: None, folder: folder.join("mosquitto"), port: free_port() };
        if !broker.start_again() {
            println!("skipped: no mosquitto (tests/setup installs it)");
            return None;
        }
        Some(broker)
    }

    /// Starts it again on the same port. Whatever it had only in memory is gone.
    ///
    /// # Panics
    /// Its folder cannot be written, or it does not listen.
    pub fn start_again(&mut self) -> bool {
        std::fs::create_dir_all(&self.folder).expect("a folder for mosquitto");
        let mut config = String::new();
        writeln!(config, "listener {} 127.0.0.1\nallow_anonymous true\npersistence false", self.port).expect("text grows");
        let file = self.folder.join("mosquitto.conf");
        std::fs::write(&file, config).expect("a configuration for mosquitto");
        let Some(command) = mosquitto() else { return false };
        let process = Process::spawn("mosquitto", Command::new(command).arg("-c").arg(&file), &self.folder.join("log"));
        self.process = Some(process);
        until("mosquitto listens", || TcpStream::connect(("127.0.0.1", self.port)).ok());
        true
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }
}

/// A small disk of its own, as far as the tests may make one.
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts one of `size` (as `mount` has it) at `at`, or says why the test is skipped.
    ///
    /// # Panics
    /// The folder cannot be made.
    pub fn mount(at: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(at).expect("a folder");
        let disk = Self { at: at.to_owned() };
        if disk.run(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]) {
            return Some(disk);
        }
        println!("skipped: this user may not mount a disk at {}", at.display());
        std::mem::forget(disk);
        None
    }

    /// Gives it another size.
    ///
    /// # Panics
    /// It keeps the old one.
    pub fn resize(&self, size: &str) {
        assert!(self.run(&["-o", &format!("remount,size={size}")]), "the disk keeps its size");
    }

    fn run(&self, args: &[&str]) -> bool {
        Command::new("mount").args(args).arg(&self.at).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What is left of it is seen when the folder is removed.
        let _ = Command::new("umount").arg(&self.at).status();
    }
}
