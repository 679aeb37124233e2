//! A provisioned site: what `deploy/provision` makes, and who may do what at a mosquitto that runs with it. Needs mosquitto, mosquitto_pub,
//! mosquitto_sub and openssl; skipped without them.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Generous: the machine may be busy. Nothing waits for it when all is well.
const DEADLINE: Duration = Duration::from_secs(60);

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    places.map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn installed() -> bool {
    let missing = ["mosquitto", "mosquitto_pub", "mosquitto_sub", "openssl"].into_iter().find(|name| program(name).is_none());
    if let Some(name) = missing {
        eprintln!("skipped: {name} is not installed");
    }
    missing.is_none()
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../provision")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), output.stderr.as_slice()].concat()).into_owned()
}

/// Asks a process to end, as a service manager does, and waits for it.
fn terminate(process: &mut Child) -> std::process::ExitStatus {
    let id = nix::unistd::Pid::from_raw(i32::try_from(process.id()).unwrap());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).unwrap();
    let deadline = Instant::now() + DEADLINE;
    loop {
        match process.try_wait().unwrap() {
            Some(status) => return status,
            None => assert!(Instant::now() < deadline, "{id} goes on after SIGTERM"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Every file below a folder with its bytes, by path.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

struct Site {
    dir: tempfile::TempDir,
    port: u16,
}

impl Site {
    /// Two devices, the centre, a further collector, a subscriber without and one with frames;
    /// `auditor` and `witness` are the test's, see [`Broker::start`].
    fn new() -> Option<Self> {
        if !installed() {
            return None;
        }
        let site = Self { dir: tempfile::tempdir().unwrap(), port: omnilabel::broker::free_port().unwrap() };
        let port = site.port.to_string();
        let clients = "--device cam-1 --device cam-2 --collector second --subscriber dashboard --subscriber-frames wall";
        let clients = format!("{clients} --subscriber auditor --subscriber witness");
        site.provision(&format!("--site yard --broker localhost --port {port} {clients}"));
        Some(site)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join("site").join(file)
    }

    fn try_provision(&self, arguments: &str) -> Output {
        Command::new(script()).arg("--out").arg(self.path("")).args(arguments.split(' ')).output().unwrap()
    }

    fn provision(&self, arguments: &str) -> String {
        let output = self.try_provision(arguments);
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    }

    /// The folder with the certificate of a name.
    fn folder(&self, name: &str) -> PathBuf {
        let places = ["devices", "collectors", "subscribers", ""].map(|place| self.path(place).join(name));
        places.into_iter().find(|folder| folder.is_dir()).unwrap_or_else(|| panic!("{name} has no folder"))
    }

    /// What a name has now, kept: later certificates do not replace it.
    fn copy(&self, name: &str) -> Identity {
        let to = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        for file in ["client.crt", "client.key"] {
            std::fs::copy(self.folder(name).join(file), to.join(file)).unwrap();
        }
        Identity::of(&to)
    }
}

/// A certificate and its key.
#[derive(Clone, Debug)]
struct Identity {
    certificate: PathBuf,
    key: PathBuf,
}

impl Identity {
    fn of(folder: &Path) -> Self {
        Self { certificate: folder.join("client.crt"), key: folder.join("client.key") }
    }
}

struct Broker {
    process: Child,
    site: Site,
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Broker {
    /// Mosquitto with the site's files, paths adapted. `auditor` and `witness` may do everything: one publishes what others are to read,
    /// the other sees what others published.
    fn start() -> Option<Self> {
        let site = Site::new()?;
        Some(Self { process: Self::spawn(&site), site })
    }

    fn spawn(site: &Site) -> Child {
        let root = site.path("broker").display().to_string();
        let acl = std::fs::read_to_string(site.path("broker/acl")).unwrap();
        let all = ["auditor", "witness"].map(|user| format!("user {user}\ntopic readwrite #\n"));
        std::fs::write(site.dir.path().join("acl"), acl + &all.concat()).unwrap();
        let text = std::fs::read_to_string(site.path("broker/mosquitto.conf")).unwrap();
        let listener = format!("listener {}", site.port);
        assert!(text.contains(&listener), "{text}");
        let text = text.replace(&listener, &format!("{listener} 127.0.0.1"));
        let text = text.replace("/etc/mosquitto/omnilabel/acl", &site.dir.path().join("acl").display().to_string());
        let text = text.replace("/etc/mosquitto/omnilabel", &root);
        let text = text.replace("/var/lib/mosquitto/", &format!("{}/", site.dir.path().display()));
        assert!(!text.contains("/etc/") && !text.contains("/var/"));
        // The certificates belong to whoever runs the test.
        let user = String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
        let config = site.dir.path().join("mosquitto.conf");
        std::fs::write(&config, format!("{text}\nuser {user}")).unwrap();
        let log = site.dir.path().join("log");
        let file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let mut command = Command::new(program("mosquitto").unwrap());
        let mut process = command.arg("-c").arg(config).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        omnilabel::broker::wait_for(site.port, DEADLINE, &log, || match process.try_wait().unwrap() {
            None => Ok(()),
            Some(status) => anyhow::bail!("mosquitto ended with {status}: {}", std::fs::read_to_string(&log).unwrap()),
        })
        .unwrap();
        process
    }

    /// With the site's files as they are now.
    fn restart(&mut self) {
        terminate(&mut self.process);
        self.process = Self::spawn(&self.site);
    }

    fn identity(&self, name: &str) -> Identity {
        Identity::of(&self.site.folder(name))
    }

    fn client(&self, program: &str, identity: Option<&Identity>, id: &str) -> Command {
        let mut command = Command::new(program);
        let port = self.site.port.to_string();
        command.args(["-V", "5", "-h", "localhost", "-p", &port, "-q", "1", "-i", id, "--cafile"]).arg(self.site.path("ca/ca.crt"));
        if let Some(identity) = identity {
            command.arg("--cert").arg(&identity.certificate).arg("--key").arg(&identity.key);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn publish_as(&self, identity: Option<&Identity>, topic: &str, payload: &str) -> Output {
        self.client("mosquitto_pub", identity, "test").args(["-t", topic, "-m", payload]).output().unwrap()
    }

    fn publish(&self, who: &str, topic: &str, payload: &str) {
        let output = self.publish_as(Some(&self.identity(who)), topic, payload);
        assert!(output.status.success(), "{}", said(&output));
    }

    /// `mosquitto_sub` as `who`, printing `topic payload`.
    fn subscribe(&self, who: &str, options: &[&str]) -> Reader {
        let mut command = self.client("mosquitto_sub", Some(&self.identity(who)), who);
        Reader::spawn(command.args(["-F", "%t %p"]).args(options))
    }

    /// Publishes `mark` on a topic that the reader may read until it comes there. Then the subscriptions stand, and what was published
    /// before has come or never will: that is given back.
    fn until(&self, reader: &Reader, topic: &str, mark: &str) -> Vec<String> {
        let deadline = Instant::now() + DEADLINE;
        let mut before = Vec::new();
        loop {
            self.publish("auditor", topic, mark);
            while let Ok(line) = reader.lines.recv_timeout(Duration::from_millis(300)) {
                if line == format!("{topic} {mark}") {
                    return before;
                }
                // A repetition of an earlier mark says nothing.
                if !line.contains(" mark-") {
                    before.push(line);
                }
            }
            assert!(Instant::now() < deadline, "{mark} did not come: {before:?}");
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.site.dir.path().join("log")).unwrap()
    }
}

/// A process whose lines are read as they come.
struct Reader {
    process: Child,
    lines: mpsc::Receiver<String>,
}

impl Reader {
    fn spawn(command: &mut Command) -> Self {
        let mut process = command.stderr(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = std::io::BufRead::lines(std::io::BufReader::new(process.stdout.take().unwrap()));
        // Unbounded: a test's few lines.
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { process, lines: receiver }
    }

    fn next(&self) -> String {
        self.lines.recv_timeout(DEADLINE).expect("a line in time")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn topic(rest: &str) -> String {
    format!("omnilabel/v1/yard/{rest}")
}

/// One of every kind of topic, and what must stay closed: another device's, a subscriber's own name, another site.
const TOPICS: [&str; 14] = [
    "cam-1/status",
    "cam-1/labels",
    "cam-1/frames",
    "cam-1/histogram",
    "cam-1/model",
    "cam-1/blocks/get",
    "cam-1/ack",
    "cam-2/labels",
    "cam-2/ack",
    "release/stable",
    "blocks/00ff",
    "dashboard/labels",
    "dashboard/secret",
    "../other/cam-1/labels",
];

fn full(rest: &str) -> String {
    rest.strip_prefix("../").map_or_else(|| topic(rest), |other| format!("omnilabel/v1/{other}"))
}

#[test]
fn who_writes_where() {
    let Some(broker) = Broker::start() else { return };
    let witness = broker.subscribe("witness", &["-t", "#"]);
    broker.until(&witness, "start", "mark-0");
    for (index, (who, allowed)) in [
        ("cam-1", &["cam-1/status", "cam-1/labels", "cam-1/frames", "cam-1/histogram", "cam-1/model", "cam-1/blocks/get"][..]),
        ("cam-2", &["cam-2/labels"]),
        ("omnilabel-trainer", &["cam-1/ack", "cam-2/ack", "release/stable", "blocks/00ff"]),
        ("second", &["cam-1/ack", "cam-2/ack"]),
        ("dashboard", &[]),
        ("wall", &[]),
        ("auditor", &TOPICS),
    ]
    .into_iter()
    .enumerate()
    {
        let identity = broker.identity(who);
        for rest in TOPICS {
            let output = broker.publish_as(Some(&identity), &full(rest), who);
            let refused = said(&output).contains("Not authorized");
            assert_eq!(refused, !allowed.contains(&rest), "{who} on {rest}: {}", said(&output));
        }
        // What the broker answers is one thing, what it passes on another.
        let seen: BTreeSet<String> = broker.until(&witness, "end", &format!("mark-{}", index + 1)).into_iter().collect();
        let expected: BTreeSet<String> = allowed.iter().map(|rest| format!("{} {who}", full(rest))).collect();
        assert_eq!(seen, expected, "what {who} wrote");
    }
}

#[test]
fn who_reads_what() {
    let Some(broker) = Broker::start() else { return };
    let auditor = broker.identity("auditor");
    for rest in TOPICS {
        let mut command = broker.client("mosquitto_pub", Some(&auditor), "auditor");
        assert!(command.args(["-r", "-t", &full(rest), "-m", "kept"]).output().unwrap().status.success());
    }
    let labels = ["cam-1/labels", "cam-1/status", "cam-2/labels", "dashboard/labels"];
    let of_devices = ["cam-1/blocks/get", "cam-1/frames", "cam-1/histogram", "cam-1/model"];
    let cases = [
        ("cam-1", "cam-1/ack", ["blocks/00ff", "cam-1/ack", "release/stable"].to_vec()),
        ("cam-2", "cam-2/ack", ["blocks/00ff", "cam-2/ack", "release/stable"].to_vec()),
        ("omnilabel-trainer", "cam-1/model", [&labels[..], &of_devices].concat()),
        ("second", "cam-1/labels", ["cam-1/frames", "cam-1/histogram", "cam-1/labels", "cam-2/labels", "dashboard/labels"].to_vec()),
        ("dashboard", "cam-1/labels", labels.to_vec()),
        ("wall", "cam-1/labels", [&labels[..], &["cam-1/frames"]].concat()),
    ];
    // Some filters are wide and some are exactly what is not allowed.
    let filters = ["-t", "#", "-t", "omnilabel/v1/yard/cam-1/ack", "-t", "omnilabel/v1/yard/+/frames"];
    let readers = cases.clone().map(|(who, ..)| broker.subscribe(who, &filters));
    let check = |payload: &str, mark: &str| {
        for ((who, open, allowed), reader) in cases.iter().zip(&readers) {
            let seen: BTreeSet<String> = broker.until(reader, &topic(open), mark).into_iter().collect();
            let expected: BTreeSet<String> = allowed.iter().map(|rest| format!("{} {payload}", full(rest))).collect();
            assert_eq!(seen, expected, "what {who} reads");
        }
    };
    check("kept", "mark-1");
    TOPICS.iter().for_each(|rest| broker.publish("auditor", &full(rest), "live"));
    check("live", "mark-2");
}

#[test]
fn only_tls_1_3_with_a_certificate_of_the_site_enters() {
    let Some(broker) = Broker::start() else { return };
    let device = broker.identity("cam-1");
    let address = format!("localhost:{}", broker.site.port);
    let handshake = |version: &str| {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &address, version, "-CAfile"]).arg(broker.site.path("ca/ca.crt"));
        command.arg("-cert").arg(&device.certificate).arg("-key").arg(&device.key);
        said(&command.stdin(Stdio::null()).output().unwrap())
    };
    let (old, new) = (handshake("-tls1_2"), handshake("-tls1_3"));
    assert!(old.contains("alert protocol version") && old.contains("Cipher is (NONE)"), "{old}");
    assert!(new.contains("New, TLSv1.3") && new.contains("Verify return code: 0"), "{new}");

    let elsewhere = Site::new().unwrap();
    let witness = broker.subscribe("witness", &["-t", "#"]);
    broker.until(&witness, "start", "mark-0");
    let own = Identity { certificate: broker.site.path("broker/broker.crt"), key: broker.site.path("broker/broker.key") };
    let mixed = Identity { key: broker.identity("cam-2").key, ..device.clone() };
    for (what, identity) in [
        ("without a certificate", None),
        ("with another site's certificate of the same name", Some(elsewhere.copy("cam-1"))),
        ("with the broker's certificate", Some(own)),
        ("with a certificate and another's key", Some(mixed)),
    ] {
        let output = broker.publish_as(identity.as_ref(), &topic("cam-1/labels"), what);
        assert!(!output.status.success(), "{what}: {}", said(&output));
    }
    // Nobody who pretends to be the broker is believed either.
    let mut stranger = Command::new("mosquitto_pub");
    stranger.args(["-V", "5", "-h", "localhost", "-p", &broker.site.port.to_string(), "-q", "1", "-t", "x", "-m", "x", "--cafile"]);
    stranger.arg(elsewhere.path("ca/ca.crt")).arg("--cert").arg(&device.certificate).arg("--key").arg(&device.key);
    assert!(!stranger.output().unwrap().status.success(), "a broker of another authority was believed");
    broker.publish("cam-1", &topic("cam-1/labels"), "in");
    assert_eq!(broker.until(&witness, "end", "mark-1"), [format!("{} in", topic("cam-1/labels"))]);
}

#[test]
fn a_renewed_certificate_works_beside_the_old_one_and_revoking_ends_both() {
    let Some(mut broker) = Broker::start() else { return };
    let edge = broker.site.path("devices/cam-1/edge.toml");
    let config = std::fs::read_to_string(&edge).unwrap() + "# mine\n";
    std::fs::write(&edge, &config).unwrap();
    let enters = |broker: &Broker, identity: &Identity| {
        let output = broker.publish_as(Some(identity), &topic("cam-1/labels"), "x");
        // A certificate that is refused makes no connection; one without rights does.
        output.status.success() && (!said(&output).contains("Not authorized") || panic!("{}", said(&output)))
    };
    let first = broker.site.copy("cam-1");
    broker.site.provision("--renew cam-1 --renew broker");
    let second = broker.site.copy("cam-1");
    broker.restart();
    assert!(enters(&broker, &first) && enters(&broker, &second), "{}", broker.log());

    let said_so = broker.site.provision("--revoke cam-1");
    assert!(said_so.contains("revoked cam-1"), "{said_so}");
    broker.restart();
    assert!(!enters(&broker, &first) && !enters(&broker, &second), "a revoked certificate enters");
    assert!(!broker.site.path("devices/cam-1/client.key").exists(), "the key of nobody");
    broker.publish("cam-2", &topic("cam-2/labels"), "others do");

    // The name can be had again, with a new certificate and the old configuration.
    broker.site.provision("--device cam-1");
    broker.restart();
    assert!(enters(&broker, &broker.identity("cam-1")), "{}", broker.log());
    assert!(!enters(&broker, &first) && !enters(&broker, &second), "a revoked certificate enters again");
    assert_eq!(std::fs::read_to_string(&edge).unwrap(), config);
}

#[test]
fn nobody_takes_over_the_session_of_another() {
    let Some(broker) = Broker::start() else { return };
    let mut centre = broker.subscribe("omnilabel-trainer", &["-t", "omnilabel/v1/yard/+/labels"]);
    broker.until(&centre, &topic("cam-1/labels"), "mark-0");
    let mut intruder = broker.client("mosquitto_pub", Some(&broker.identity("cam-2")), "omnilabel-trainer");
    assert!(intruder.args(["-t", &topic("cam-2/labels"), "-m", "x"]).output().unwrap().status.success());
    assert_eq!(broker.until(&centre, &topic("cam-1/labels"), "mark-1"), [format!("{} x", topic("cam-2/labels"))]);
    assert!(centre.process.try_wait().unwrap().is_none(), "the centre was disconnected");
}

/// Labels of a device as one process, a line each, from `first` on.
fn labels(broker: &Broker, numbers: std::ops::Range<u32>) -> Vec<String> {
    let lines: Vec<String> = numbers.map(|number| number.to_string()).collect();
    let path = broker.site.dir.path().join("lines");
    std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    let mut command = broker.client("mosquitto_pub", Some(&broker.identity("cam-1")), "cam-1");
    let output = command.args(["-l", "-t", &topic("cam-1/labels")]).stdin(std::fs::File::open(&path).unwrap()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    lines.iter().map(|line| format!("{} {line}", topic("cam-1/labels"))).collect()
}

#[test]
fn a_subscriber_gets_what_was_published_while_it_was_away() {
    let Some(mut broker) = Broker::start() else { return };
    let open = topic("cam-2/labels");
    let filter = ["-t", "omnilabel/v1/yard/+/labels", "-t", "omnilabel/v1/yard/+/frames"];
    let lasting = [&filter[..], &["-c", "-x", "3600"]].concat();
    let present = broker.subscribe("dashboard", &lasting);
    broker.until(&present, &open, "mark-0");
    // The same without a session that lasts, to tell what it is for.
    let forgetful = broker.subscribe("wall", &filter);
    broker.until(&forgetful, &open, "mark-0");
    drop((present, forgetful));

    // More than mosquitto holds when it is not told how much.
    let mut expected = labels(&broker, 0..1500);
    broker.publish("cam-1", &topic("cam-1/frames"), "not for everyone");
    // The site grows meanwhile, and the broker takes the new files.
    broker.site.provision("--device cam-3");
    broker.restart();
    expected.extend(labels(&broker, 1500..1600));
    broker.publish("cam-3", &topic("cam-3/labels"), "new here");
    expected.push(format!("{} new here", topic("cam-3/labels")));

    let back = broker.subscribe("dashboard", &lasting);
    assert_eq!(broker.until(&back, &open, "mark-1"), expected);
    let back = broker.subscribe("wall", &lasting);
    assert_eq!(broker.until(&back, &open, "mark-2"), Vec::<String>::new());
}

fn python() -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv-test/bin/python");
    let python = std::env::var_os("OMNILABEL_PYTHON").map_or(here, PathBuf::from);
    if !python.exists() {
        eprintln!("skipped: no Python at {} (set OMNILABEL_PYTHON, or run tests/setup)", python.display());
        return None;
    }
    Some(python)
}

#[test]
fn the_example_subscriber_goes_on_where_it_was() {
    let Some(python) = python() else { return };
    let Some(broker) = Broker::start() else { return };
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples");
    let label = std::fs::read_to_string(examples.join("label.json")).unwrap();
    let publish = |sequence: u32| broker.publish("cam-1", &topic("cam-1/labels"), &label.replace("\"q\":42", &format!("\"q\":{sequence}")));
    let run = || Reader::spawn(Command::new(&python).arg(examples.join("subscriber.py")).arg(broker.site.folder("dashboard")));
    let sequence = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["sequence"].as_u64().unwrap();

    let mut first = run();
    let deadline = Instant::now() + DEADLINE;
    let line = loop {
        publish(42);
        match first.lines.recv_timeout(Duration::from_millis(300)) {
            Ok(line) => break line,
            Err(_) => assert!(Instant::now() < deadline && first.process.try_wait().unwrap().is_none(), "{}", broker.log()),
        }
    };
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["device"], &line["sequence"], &line["people"][0]["box"][0]), (&"cam-1".into(), &42.into(), &100.0.into()));
    assert!(terminate(&mut first.process).success());

    [43, 44, 44, 43].into_iter().for_each(publish);
    let binary = examples.join("label.cbor");
    let mut command = broker.client("mosquitto_pub", Some(&broker.identity("cam-2")), "cam-2");
    assert!(command.args(["-t", &topic("cam-2/labels"), "-f"]).arg(binary).output().unwrap().status.success());
    publish(45);
    let second = run();
    let mut seen = Vec::new();
    while seen.last() != Some(&45) {
        seen.push(sequence(&second.next()));
    }
    // 42 came first from cam-1, perhaps more than once, and last from cam-2.
    assert_eq!(seen.split_off(seen.iter().position(|&number| number == 43).unwrap()), [43, 44, 42, 45]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_products_own_link_speaks_tls_1_3_with_the_configurations_as_they_are() {
    use omnilabel_link::{Incoming, Link};
    let Some(broker) = Broker::start() else { return };
    let (device, centre) = (broker.site.path("devices/cam-1/edge.toml"), broker.site.path("omnilabel-trainer/trainer.toml"));
    // What a site has to say itself: its camera, its labels, its model, its key.
    let append = |path: &Path, more: &str| std::fs::write(path, std::fs::read_to_string(path).unwrap() + more).unwrap();
    append(&device, "[camera]\ntype = \"folder\"\npath = \"frames\"\n");
    append(&centre, "[data]\nmanual = \"m\"\nheldout = \"h\"\n[model]\nrunning = \"r\"\n[release]\nkey = \"k\"\n");
    let device = omnilabel_edge::config::EdgeConfig::load(&device).unwrap();
    let centre = omnilabel_trainer::service::config::ServiceConfig::load(&centre).unwrap();
    assert_eq!((device.device.as_str(), device.broker.site.as_str()), ("cam-1", "yard"));

    async fn next(receiver: &mut tokio::sync::mpsc::Receiver<Incoming>) -> Incoming {
        tokio::time::timeout(DEADLINE, receiver.recv()).await.expect("in time").expect("the link is open")
    }
    let (labels, ack) = (topic("cam-1/labels"), topic("cam-1/ack"));
    let (centre, mut collected) = Link::open(&centre.broker, &centre.client_id, None, vec![topic("+/labels")]).unwrap();
    assert_eq!(next(&mut collected).await, Incoming::Connected);
    let (device, mut acknowledged) = Link::open(&device.broker, &device.device, None, vec![ack.clone()]).unwrap();
    assert_eq!(next(&mut acknowledged).await, Incoming::Connected);
    device.publish(&labels, b"a label".to_vec(), false).await.unwrap();
    let payload = b"a label".to_vec();
    assert_eq!(next(&mut collected).await, Incoming::Message { topic: labels, payload, retained: false });
    centre.publish(&ack, b"stored".to_vec(), true).await.unwrap();
    assert_eq!(next(&mut acknowledged).await, Incoming::Message { topic: ack, payload: b"stored".to_vec(), retained: false });
    device.close().await;
    centre.close().await;
}

#[test]
fn a_second_run_extends_the_site_and_touches_nothing_else() {
    let Some(site) = Site::new() else { return };
    for file in ["devices/cam-1/edge.toml", "broker/mosquitto.conf"] {
        std::fs::write(site.path(file), std::fs::read_to_string(site.path(file)).unwrap() + "# mine\n").unwrap();
    }
    // On its way to the device, and no longer here.
    std::fs::remove_dir_all(site.path("devices/cam-2")).unwrap();
    let before = files(&site.path(""));
    site.provision("--site yard --broker localhost --device cam-1 --device cam-2 --subscriber dashboard");
    assert_eq!(files(&site.path("")), before, "nothing was to be made");

    let list = site.dir.path().join("list");
    std::fs::write(&list, "# the north side\n\ncam-3\r\n  -cam_4.x # by the gate\ncam-1\n").unwrap();
    let public = site.dir.path().join("release.pub");
    std::fs::write(&public, "07".repeat(32) + "\n").unwrap();
    let output = site.provision(&format!("--devices {} --root-key {}", list.display(), public.display()));
    assert!(!output.contains("made devices/cam-1"), "{output}");
    let after = files(&site.path(""));
    let of_authority = |path: &Path| path.starts_with(site.path("ca")) && !path.ends_with("ca.key") && !path.ends_with("ca.crt");
    for (path, bytes) in &before {
        let grows = of_authority(path) || ["acl", "revoked.crl"].iter().any(|name| path.ends_with(name));
        assert!(grows || after.get(path) == Some(bytes), "{} changed", path.display());
    }
    for name in ["cam-3", "-cam_4.x"] {
        let config = std::fs::read_to_string(site.path("devices").join(name).join("edge.toml")).unwrap();
        assert!(config.contains(&format!("device = \"{name}\"")) && config.contains("\nroot_key = \"root.pub\""), "{config}");
        assert_eq!(std::fs::read(site.path("devices").join(name).join("root.pub")).unwrap(), std::fs::read(&public).unwrap());
    }
    let acl = std::fs::read_to_string(site.path("broker/acl")).unwrap();
    let users: Vec<&str> = acl.lines().filter_map(|line| line.strip_prefix("user ")).collect();
    assert_eq!(users, ["-cam_4.x", "cam-1", "cam-2", "cam-3", "omnilabel-trainer", "second", "auditor", "dashboard", "witness", "wall"]);
    assert!(!acl.contains('{'), "{acl}");
}

#[test]
fn private_keys_are_for_their_owner_alone_and_never_printed() {
    let Some(broker) = Broker::start() else { return };
    broker.publish("cam-1", &topic("cam-1/labels"), "x");
    broker.publish_as(None, &topic("cam-1/labels"), "x");
    let printed = broker.site.provision("--device cam-3 --renew cam-2 --revoke dashboard") + &broker.log();
    let mut keys = 0;
    for (path, bytes) in files(&broker.site.path("")) {
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
        let text = String::from_utf8_lossy(&bytes);
        if text.contains("PRIVATE KEY") {
            keys += 1;
            assert!(path.extension().is_some_and(|extension| extension == "key"), "{} has a private key", path.display());
            let secret = text.lines().find(|line| !line.starts_with('-')).unwrap();
            assert!(secret.len() == 64 && !printed.contains(secret), "{} was printed", path.display());
        }
    }
    // The authority's, the broker's, the centre's, its second collector's, three devices', three subscribers'; dashboard's went.
    assert_eq!(keys, 10);
}

#[test]
fn what_cannot_be_is_refused_by_name_and_nothing_is_made() {
    let Some(site) = Site::new() else { return };
    let dir = site.dir.path();
    std::fs::write(dir.join("list"), "cam-1\ncam 2\n").unwrap();
    std::fs::write(dir.join("bad.pub"), "07").unwrap();
    std::fs::write(dir.join("release.key"), "07".repeat(32)).unwrap();
    let check = |out: &Path, arguments: &[&str], names: &[&str]| {
        let before = files(&site.path(""));
        let output = Command::new(script()).arg("--out").arg(out).args(arguments).current_dir(dir).output().unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(names.iter().all(|name| said.contains(name)), "{arguments:?} does not name {names:?}: {said}");
        assert_eq!(files(&site.path("")), before, "{arguments:?}");
    };
    let long = "x".repeat(65);
    let new = dir.join("new");
    for (arguments, names) in [
        (&["--device", "a/b"][..], &["--device", "a/b"][..]),
        (&["--device", "cam#1"], &["--device", "cam#1", "1 to 64"]),
        (&["--device", "+"], &["--device", "+"]),
        (&["--device", "kamera-ä"], &["--device", "kamera-"]),
        (&["--device", "a\nb"], &["--device", "1 to 64"]),
        (&["--device", ""], &["--device", "1 to 64"]),
        (&["--device", ".."], &["--device", "..", "folder"]),
        (&["--device", &long], &["--device", &long, "65"]),
        (&["--device", "release"], &["--device", "release", "topic"]),
        (&["--device", "blocks"], &["--device", "blocks", "topic"]),
        (&["--device", "omnilabel-trainer"], &["--device", "omnilabel-trainer", "taken"]),
        (&["--subscriber", "broker"], &["--subscriber", "broker", "taken"]),
        (&["--subscriber-frames", "x y"], &["--subscriber-frames", "x"]),
        (&["--device", "a", "--subscriber", "a"], &["--subscriber", "a", "--device"]),
        (&["--device", "a", "--collector", "a"], &["--collector", "a", "--device"]),
        (&["--devices", "list"], &["list", "line 2", "cam"]),
        (&["--devices", "nowhere"], &["--devices", "nowhere"]),
        (&["--site", "a/b"], &["--site", "a/b"]),
        (&["--broker", "b/c"], &["--broker", "b/c"]),
        (&["--broker", "300.1.1.1"], &["--broker", "300.1.1.1"]),
        (&["--port", "70000"], &["--port", "70000"]),
        (&["--prefix", "a/#"], &["--prefix", "a/"]),
        (&["--root-key", "nowhere"], &["--root-key", "nowhere"]),
        (&["--root-key", "bad.pub"], &["--root-key", "bad.pub", "64 hex"]),
        (&["--root-key", "release.key"], &["--root-key", "release.key", "private"]),
        (&["--renew", "cam-1"], &["--renew", "cam-1"]),
        (&["--revoke", "cam-1"], &["--revoke", "cam-1"]),
        (&["--nonsense"], &["--nonsense"]),
        (&["--device"], &["--device", "value"]),
    ] {
        check(&new, &[&["--site", "yard", "--broker", "b.example"], arguments].concat(), names);
        assert!(!new.exists(), "{arguments:?} made something");
    }
    check(&new, &["--broker", "b.example"], &["--site"]);
    check(&new, &["--site", "yard"], &["--broker"]);
    check(dir, &["--site", "yard", "--broker", "b.example"], &["neither empty"]);
    let here = site.path("");
    check(&here, &["--site", "other"], &["--site other", "belongs to the site yard"]);
    check(&here, &["--broker", "other"], &["--broker other", "localhost"]);
    check(&here, &["--subscriber", "cam-1"], &["--subscriber cam-1", "device"]);
    check(&here, &["--device", "wall"], &["--device wall", "subscriber-frames"]);
    check(&here, &["--revoke", "broker"], &["--revoke broker"]);
    check(&here, &["--renew", "ghost"], &["--renew ghost"]);

    let bash = program("bash").unwrap();
    let without =
        Command::new(bash).arg(script()).args(["--out", "new", "--site", "yard", "--broker", "b"]).env("PATH", "/nowhere").output();
    let without = without.unwrap();
    assert!(without.status.code() == Some(2) && said(&without).contains("openssl"), "{}", said(&without));
}
