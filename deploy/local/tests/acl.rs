//! The shipped mosquitto configuration: who may write what. Needs mosquitto, mosquitto_pub, mosquitto_sub and openssl; skipped without them.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Broker {
    process: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    places.map(|folder| folder.join(name)).find(|file| file.is_file())
}

impl Broker {
    /// Mosquitto with the shipped files, paths and port adapted.
    fn start() -> Option<Self> {
        for name in ["mosquitto", "mosquitto_pub", "mosquitto_sub", "openssl"] {
            if program(name).is_none() {
                eprintln!("skipped: {name} is not installed");
                return None;
            }
        }
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mosquitto");
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_string_lossy().into_owned();
        let made = Command::new(shipped.join("certificates.sh"))
            .args([&root, "localhost", "cam-1", "cam-2", "omnilabel-trainer"])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let acl = std::fs::read_to_string(shipped.join("acl")).unwrap().replace("SITE", "yard");
        std::fs::write(dir.path().join("acl"), acl).unwrap();
        let port = omnilabel::broker::free_port().unwrap();
        let text = std::fs::read_to_string(shipped.join("mosquitto.conf")).unwrap();
        let text = text.replace("/etc/mosquitto/omnilabel", &root).replace("listener 8883", &format!("listener {port} 127.0.0.1"));
        let text = text.replace("/var/lib/mosquitto/", &format!("{root}/"));
        assert!(!text.contains("/etc/") && !text.contains("/var/"));
        // The certificates belong to whoever runs the test.
        let user = String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
        std::fs::write(dir.path().join("mosquitto.conf"), format!("{text}\nuser {user}")).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let mut command = Command::new(program("mosquitto").unwrap());
        let process =
            command.arg("-c").arg(dir.path().join("mosquitto.conf")).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut broker = Self { process, port, dir };
        let log = broker.dir.path().join("log");
        omnilabel::broker::wait_for(port, Duration::from_secs(20), &log, || match broker.process.try_wait().unwrap() {
            None => Ok(()),
            Some(status) => anyhow::bail!("mosquitto ended with {status}: {}", std::fs::read_to_string(&log).unwrap()),
        })
        .unwrap();
        Some(broker)
    }

    /// A client with a certificate of `who`, that says to be `id`.
    fn client(&self, program: &str, who: Option<&str>, id: Option<&str>) -> Command {
        let file = |name: String| self.dir.path().join(name);
        let mut command = Command::new(program);
        command.args(["-V", "5", "-h", "localhost", "-p", &self.port.to_string(), "-q", "1", "--cafile"]).arg(file("ca.crt".into()));
        if let Some(who) = who {
            command
                .arg("--cert")
                .arg(file(format!("{who}.crt")))
                .arg("--key")
                .arg(file(format!("{who}.key")))
                .args(["-i", id.unwrap_or(who)]);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn publish(&self, who: Option<&str>, topic: &str) -> Output {
        self.client("mosquitto_pub", who, None).args(["-t", topic, "-m", topic, "-r"]).output().unwrap()
    }

    /// The retained topics that `who` may read.
    fn retained(&self, who: &str) -> Vec<String> {
        let out = self
            .client("mosquitto_sub", Some(who), None)
            .args(["-t", "omnilabel/#", "-t", "omnilabel/v1/yard/+/ack", "-F", "%t", "-W", "2"])
            .output()
            .unwrap();
        let mut topics: Vec<String> = String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect();
        topics.sort();
        topics.dedup();
        topics
    }
}

#[test]
fn a_device_writes_below_its_own_name_only_and_nobody_enters_without_a_certificate() {
    let Some(broker) = Broker::start() else { return };
    let topic = |rest: &str| format!("omnilabel/v1/yard/{rest}");
    let start = Instant::now();
    for (who, rest) in [
        ("cam-1", "cam-1/labels"),
        ("cam-1", "cam-2/labels"),
        ("cam-1", "cam-1/ack"),
        ("cam-1", "release/stable"),
        ("cam-1", "blocks/00ff"),
        ("cam-2", "cam-2/blocks/get"),
        ("omnilabel-trainer", "cam-1/ack"),
        ("omnilabel-trainer", "cam-2/model"),
        ("omnilabel-trainer", "release/canary"),
    ] {
        broker.publish(Some(who), &topic(rest));
    }
    let outside = broker.publish(Some("cam-1"), "omnilabel/v1/other/cam-1/labels");
    assert!(!broker.publish(None, &topic("cam-2/labels")).status.success());
    let centre = broker.retained("omnilabel-trainer");
    // Patterns are for every user: the centre, too, reads what is for all devices.
    assert_eq!(centre, [topic("cam-1/labels"), topic("cam-2/blocks/get"), topic("release/canary")], "{outside:?}");
    assert_eq!(broker.retained("cam-1"), [topic("cam-1/ack"), topic("release/canary")]);
    assert_eq!(broker.retained("cam-2"), [topic("release/canary")]);
    eprintln!("took {:?}", start.elapsed());
}

#[test]
fn nobody_takes_over_the_session_of_another() {
    let Some(broker) = Broker::start() else { return };
    let mut sub = broker.client("mosquitto_sub", Some("omnilabel-trainer"), None);
    let mut centre =
        sub.args(["-t", "omnilabel/v1/yard/+/labels", "-t", "omnilabel/v1/yard/+/status", "-W", "20", "-F", "%t"]).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(centre.stdout.take().unwrap()));
    // A retained message says that the subscription stands.
    broker.publish(Some("cam-1"), "omnilabel/v1/yard/cam-1/status");
    assert_eq!(lines.next().unwrap().unwrap(), "omnilabel/v1/yard/cam-1/status");
    let mut intruder = broker.client("mosquitto_pub", Some("cam-2"), Some("omnilabel-trainer"));
    assert!(intruder.args(["-t", "omnilabel/v1/yard/cam-2/labels", "-m", "x"]).output().unwrap().status.success());
    assert_eq!(lines.next().unwrap().unwrap(), "omnilabel/v1/yard/cam-2/labels", "the centre's connection was taken over");
    assert!(centre.try_wait().unwrap().is_none(), "the centre was disconnected");
    centre.kill().unwrap();
    centre.wait().unwrap();
}
