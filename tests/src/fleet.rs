//! A site as processes: mosquitto, a centre and devices with the shipped model, on rendered footage.

use crate::peers::{Mosquitto, Process, succeed, teacher, until};
use omnilabel_keypoints::wire::Encoding;
use omnilabel_scenes::{DEFAULT_SIZE, Look, write_coco};
use omnilabel_trainer::service::events::now_ms;
use omnilabel_trainer::service::rounds::{Publish, release_bundle};
use omnilabel_trainer::service::sign::read_key;
use omnilabel_trainer::service::store::Store;
use omnilabel_trainer::service::waves::Waves;
use omnilabel_trainer::service::{DeviceCounts, Event, EventReader, ServiceConfig, read_counts};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The site's name.
pub const SITE: &str = "yard";
/// Short sides of the devices' views, px; each also mirrored.
pub const SCALES: &str = "112, 128, 144";

/// Devices report their counts every two seconds.
const REPORT: Duration = Duration::from_secs(5);

/// What a device looks at.
#[derive(Clone, Copy, Debug)]
pub enum Camera<'a> {
    /// A folder at frames per second; the process ends after the last one when the flag is set.
    Folder(&'a Path, f64, bool),
    /// A live stream.
    Mjpeg(&'a str),
}

/// What becomes of the student of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Student {
    /// Starts as the running model and learns so carefully that it stays as good.
    Careful,
    /// Learns at a rate that ruins it.
    Ruined,
}

/// A site in a folder of its own.
pub struct Site {
    dir: tempfile::TempDir,
    /// Its broker.
    pub broker: Mosquitto,
}

impl Site {
    /// Renders manual and held-out labels, makes the keys, starts the broker; `None` when there is no mosquitto.
    ///
    /// # Panics
    /// The disk refuses, or `keygen` fails.
    pub fn new() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a folder");
        let broker = Mosquitto::start(dir.path())?;
        let site = Self { dir, broker };
        site.render("manual", &Look::studio(), 1, 24);
        site.render("heldout", &Look::studio(), 2, 12);
        succeed("omnilabel-trainer", ["keygen".as_ref(), "--out".as_ref(), site.path("keys").as_os_str()]);
        Some(site)
    }

    /// A path of the site.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Renders a COCO folder.
    ///
    /// # Panics
    /// The disk refuses.
    pub fn render(&self, name: &str, look: &Look, seed: u64, count: u64) -> PathBuf {
        let folder = self.path(name);
        write_coco(&folder, std::slice::from_ref(look), seed, count, DEFAULT_SIZE).expect("scenes");
        folder
    }

    /// Writes the configuration of a device and installs its first model.
    ///
    /// # Panics
    /// The disk refuses, or `model install` fails.
    pub fn provision(&self, name: &str, camera: Camera<'_>, encoding: Encoding) -> PathBuf {
        let folder = self.path(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        let (bundle, state) = (teacher(), folder.join("state"));
        let install: [&std::ffi::OsStr; 8] = [
            "model".as_ref(),
            "install".as_ref(),
            "--bundle".as_ref(),
            bundle.as_os_str(),
            "--data-dir".as_ref(),
            state.as_os_str(),
            "--root-key".as_ref(),
            &self.path("keys/release.pub").into_os_string(),
        ];
        succeed("omnilabel-edge", install);
        let camera = match camera {
            Camera::Folder(path, fps, end) => {
                format!("type = \"folder\"\npath = {path:?}\nfps = {fps:.1}\nstop_at_end = {end}")
            }
            Camera::Mjpeg(url) => format!("type = \"mjpeg\"\nurl = {url:?}\nstall_secs = 2.0"),
        };
        let encoding = match encoding {
            Encoding::Cbor => "cbor",
            Encoding::Json => "json",
        };
        let port = self.broker.port;
        let text = format!(
            "device = {name:?}\nstate_dir = \"state\"\n[broker]\nhost = \"127.0.0.1\"\nport = {port}\nsite = {SITE:?}\n[camera]\n{camera}\n\
             [teacher]\nscales = [{SCALES}]\nthreads = 1\n[publish]\nencoding = {encoding:?}\nframes = \"all\"\n\
             [update]\nprobation_frames = 4\nmax_slowdown = 50.0\n"
        );
        let config = folder.join("edge.toml");
        std::fs::write(&config, text).expect("edge.toml");
        config
    }

    /// Starts a device, or starts it again.
    pub fn device(&self, name: &str) -> Process {
        let config = self.path(name).join("edge.toml");
        Process::start("omnilabel-edge", ["run".as_ref(), "--json".as_ref(), "--config".as_ref(), config.as_os_str()], &self.log(name))
    }

    /// The log of a device or the centre.
    pub fn log(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.log"))
    }

    /// Writes `trainer.toml`: at most `rounds` rounds of a few steps, the first after `labels` labels. The gate has its default margin.
    ///
    /// # Panics
    /// The disk refuses.
    pub fn configure_centre(&self, labels: u64, rounds: u64, student: Student) {
        let (port, running) = (self.broker.port, teacher());
        let (init, rate) = (running.join("weights.safetensors"), if student == Student::Careful { 1e-6 } else { 0.02 });
        let text = format!(
            "state_dir = \"centre\"\n[broker]\nhost = \"127.0.0.1\"\nport = {port}\nsite = {SITE:?}\n\
             [data]\nmanual = \"manual\"\nheldout = \"heldout\"\n[model]\nrunning = {running:?}\ninit = {init:?}\n\
             [round]\nmin_labels = {labels}\nmax_rounds = {rounds}\ncheckpoint_every = 2\n\
             [round.train]\nsteps = 6\nbatch = 5\nlr = {rate}\n[release]\nkey = \"keys/release.key\"\n",
        );
        std::fs::write(self.path("trainer.toml"), text).expect("trainer.toml");
    }

    /// Starts the centre, or starts it again.
    pub fn centre(&self) -> Process {
        let config = self.path("trainer.toml");
        Process::start("omnilabel-trainer", ["run".as_ref(), "--config".as_ref(), config.as_os_str()], &self.log("centre"))
    }

    /// Signs a bundle with the centre's key, whatever its golden frames say, and returns its counter; the running centre publishes it.
    /// `omnilabel-trainer release` and the rounds try them first.
    ///
    /// # Panics
    /// The configuration, the key, the store or the bundle cannot be used.
    pub fn sign(&self, bundle: &Path) -> u64 {
        let config = ServiceConfig::load(&self.path("trainer.toml")).expect("trainer.toml");
        let key = read_key(&config.release.key).expect("the centre's key");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let store = Store::attach(&config.state_dir).await.expect("the centre's store");
            let release = Publish { bundle, name: "untried", round: None, waves: Waves::at_once(now_ms()) };
            release_bundle(&config, &store, &key, release).await.expect("a release")
        })
    }

    /// Waits until the centre reports that a device refused a release and runs none on trial; returns what it has confirmed, and why it
    /// refused.
    ///
    /// # Panics
    /// It is not refused.
    pub fn until_refused(&self, name: &str, counter: u64) -> (u64, String) {
        until(&format!("release {counter} is refused"), || {
            self.events().into_iter().find_map(|event| match event {
                Event::DeviceModel { device, confirmed, trial: None, refused, reason } if device == name && refused == Some(counter) => {
                    Some((confirmed, reason))
                }
                _ => None,
            })
        })
    }

    /// The centre's account of every device; empty while it has no store.
    ///
    /// # Panics
    /// There is no runtime.
    pub fn counts(&self) -> Vec<DeviceCounts> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(read_counts(&self.path("centre"))).unwrap_or_default()
    }

    /// Labels that are stored with everything they announced.
    pub fn settled(&self) -> u64 {
        self.counts().iter().map(|count| count.settled).sum()
    }

    /// Waits until so many more labels are settled.
    ///
    /// # Panics
    /// They do not come.
    pub fn until_more(&self, labels: u64) {
        let before = self.settled();
        until("labels at the centre", || (self.settled() >= before + labels).then_some(()));
    }

    /// Waits until every outbox is empty and stays so for longer than devices take to report a label that is on its way.
    ///
    /// # Panics
    /// They do not empty.
    pub fn until_drained(&self) {
        let mut last: Option<(Vec<u64>, Instant)> = None;
        until("empty outboxes", || {
            let counts = self.counts();
            let made: Vec<u64> = counts.iter().map(|count| count.committed).collect();
            let since = last.take().filter(|(before, _)| *before == made).map_or_else(Instant::now, |(_, since)| since);
            last = Some((made, since));
            let empty = counts.iter().all(|count| count.pending == 0 && count.committed == count.settled);
            (empty && since.elapsed() > REPORT).then_some(())
        });
    }

    /// What the centre reported so far.
    ///
    /// # Panics
    /// Its events cannot be read.
    pub fn events(&self) -> Vec<Event> {
        let mut reader = EventReader::new(&self.path("centre"));
        reader.poll().expect("events.jsonl").into_iter().map(|stamped| stamped.event).collect()
    }
}

impl Drop for Site {
    /// What a failed test leaves to look at.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let last = |text: String| {
            text.lines().rev().take(12).map(|line| format!("  {line}\n")).collect::<Vec<_>>().into_iter().rev().collect::<String>()
        };
        let files = std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten().map(|entry| entry.path());
        let logs = files.filter(|path| path.extension().is_some_and(|e| e == "log")).chain([self.path("centre/events.jsonl")]);
        for log in logs {
            eprintln!("the end of {}:\n{}", log.display(), last(std::fs::read_to_string(&log).unwrap_or_default()));
        }
    }
}
