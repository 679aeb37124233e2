//! `deploy/compose`: what its file promises, and the site that it describes as processes of this machine: the broker with the files that
//! its container gets, the centre with its `centre.toml` and a PostgreSQL that asks for its password, a device with what was provisioned
//! for it, all over TLS and the broker's rules.

use omnilabel_scenes::{DEFAULT_SIZE, Look, write_coco};
use omnilabel_tests::compose::{Compose, database, folder, prepare};
use omnilabel_tests::peers::{Process, command, free_port, has, http_get, mosquitto, root, succeed, teacher, until};
use omnilabel_tests::postgres::Postgres;
use omnilabel_trainer::service::ServiceConfig;
use omnilabel_trainer::service::sign::{read_key, read_public};
use omnilabel_trainer::service::store::Store;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A site that `prepare` made, with two devices.
struct Prepared {
    dir: tempfile::TempDir,
    compose: Compose,
    port: u16,
}

fn text(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), output.stderr.as_slice()].concat()).into_owned()
}

impl Prepared {
    /// `None`, with a message, where something is missing.
    fn new() -> Option<Self> {
        if !has("openssl") {
            return None;
        }
        let dir = tempfile::tempdir().expect("a folder");
        for (name, seed, count) in [("manual", 1, 6), ("heldout", 2, 4), ("footage", 3, 12)] {
            write_coco(&dir.path().join(name), &[Look::studio()], seed, count, DEFAULT_SIZE).expect("scenes");
        }
        let port = free_port();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let (site, manual, heldout) = (at("site"), at("manual"), at("heldout"));
        let port_text = port.to_string();
        let out = prepare([
            "--out",
            &site,
            "--site",
            "yard",
            "--broker",
            "localhost",
            "--port",
            &port_text,
            "--device",
            "cam-1",
            "--device",
            "cam-2",
            "--manual",
            &manual,
            "--heldout",
            &heldout,
        ]);
        assert!(out.status.success(), "{}", text(&out));
        let compose = Compose::read(&dir.path().join("site"), &dir.path().join("volumes"))?;
        Some(Self { dir, compose, port })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.log"))
    }

    /// A file of a service's container as the same program outside of it needs it: paths are those here.
    fn adapted(&self, service: &str, path: &str) -> String {
        let text = fs::read_to_string(self.compose.here(service, path)).expect("a mounted file");
        self.compose.mounts(service).into_iter().fold(text, |text, (there, here)| text.replace(&there, &here.display().to_string()))
    }

    /// The broker by its container's command.
    fn broker(&self, program: &str) -> Process {
        let command = &self.compose.file()["services"]["broker"]["command"];
        let [Some("-c"), Some(config)] = [0_usize, 1].map(|index| command[index].as_str()) else { panic!("{command}") };
        let text = self.adapted("broker", config);
        let listener = format!("listener {}", self.port);
        assert!(text.contains(&listener) && !text.contains("/etc/") && !text.contains("/var/"), "{text}");
        fs::create_dir_all(self.compose.here("broker", "/var/lib/mosquitto")).expect("a folder");
        // On loopback, and as whoever runs the test.
        let user = omnilabel_tests::peers::command(Command::new("id").arg("-un"));
        let config = self.path("mosquitto.conf");
        fs::write(&config, text.replace(&listener, &format!("{listener} 127.0.0.1")) + "\nuser " + &user).expect("writable");
        let broker = Process::spawn("mosquitto", Command::new(program).arg("-c").arg(config), &self.log("broker"));
        until("mosquitto listens", || TcpStream::connect(("127.0.0.1", self.port)).ok());
        broker
    }

    /// `centre.toml` as it lies in the container, with paths of this machine.
    fn centre_table(&self) -> toml::Table {
        let command = &self.compose.file()["services"]["centre"]["command"];
        let [Some("run"), Some("--config"), Some(config)] = [0_usize, 1, 2].map(|index| command[index].as_str()) else {
            panic!("{command}")
        };
        self.adapted("centre", config).parse().expect("TOML")
    }

    /// `centre.toml`, with the page on a port of loopback, and the database's server reached where it is here.
    fn centre(&self, page: u16, postgres: &Postgres) -> PathBuf {
        let mut table = self.centre_table();
        let given = self.secret("postgres", "postgres_password");
        let (url, store) = (database(postgres, &given), &mut table["store"]);
        assert_eq!(store["url"].as_str(), Some("postgres://omnilabel@postgres/omnilabel"));
        let host = url.strip_prefix("postgres://omnilabel@localhost/omnilabel").expect("the same user and database");
        assert!(host.starts_with("?host="), "{url}");
        store["url"] = url.into();
        let password = store["password_file"].as_str().expect("a file");
        assert_eq!(fs::read_to_string(password).expect("a password").trim(), given);
        // Beside the file in the container lies the folder of the certificates.
        let certificates = self.compose.here("centre", "/etc/omnilabel/tls");
        for file in ["ca", "certificate", "key"] {
            let value = &mut table["broker"]["tls"][file];
            let name = value.as_str().and_then(|path| path.strip_prefix("tls/")).expect("a path below tls/");
            *value = certificates.join(name).display().to_string().into();
        }
        assert_eq!(table["web"]["bind"].as_str(), Some("0.0.0.0:8090"));
        table["web"]["bind"] = format!("127.0.0.1:{page}").into();
        let config = self.path("centre.toml");
        fs::write(&config, toml::to_string(&table).expect("TOML")).expect("writable");
        config
    }

    /// Runs what README.md has a program of the service `postgres` do, with the server here.
    fn in_postgres(&self, program: &str, postgres: &Postgres) {
        let manual = read(&folder().join("README.md"));
        let mut lines = manual.lines().filter_map(|line| line.strip_prefix("$compose exec -T postgres "));
        let line = lines.find(|line| line.starts_with(program)).unwrap_or_else(|| panic!("no {program} in README.md"));
        let url = postgres.url("omnilabel");
        let (_, host) = url.split_once("?host=").expect("a folder");
        // In the container the socket lets in whoever is there; here it asks.
        let mut shell = Command::new("bash");
        shell.args(["-euc", line]).current_dir(self.dir.path()).env("PGHOST", host);
        command(shell.env("PGPASSWORD", self.secret("postgres", "postgres_password")));
    }

    /// A device with what was provisioned for it and a folder of pictures; its first model is installed.
    fn device(&self, name: &str) -> PathBuf {
        let given = self.path("site/devices").join(name);
        let state = self.path("volumes").join(name);
        let key = given.join("root.pub");
        let install: [&std::ffi::OsStr; 8] = [
            "model".as_ref(),
            "install".as_ref(),
            "--bundle".as_ref(),
            &teacher().into_os_string(),
            "--data-dir".as_ref(),
            state.as_os_str(),
            "--root-key".as_ref(),
            key.as_os_str(),
        ];
        succeed("omnilabel-edge", install);
        let config = given.join("edge.toml");
        let text = fs::read_to_string(&config).expect("edge.toml");
        let there = "\"/var/lib/omnilabel-edge\"";
        assert!(text.contains(there), "{text}");
        let camera = format!(
            "\n[camera]\ntype = \"folder\"\npath = {:?}\nfps = 4.0\nloop = true\n\
             [teacher]\nscales = [112, 128, 144]\nthreads = 1\n[publish]\nframes = \"all\"\n\
             [update]\nprobation_frames = 4\nmax_slowdown = 50.0\n",
            self.path("footage/images")
        );
        fs::write(&config, text.replace(there, &format!("{state:?}")) + &camera).expect("writable");
        config
    }

    fn secret(&self, service: &str, name: &str) -> String {
        let file = self.compose.here(service, &format!("/run/secrets/{name}"));
        fs::read_to_string(file).expect("a secret").trim().to_owned()
    }

    /// Publishes as somebody with the certificate of a device.
    fn publish(&self, certificate: &str, client_id: &str, topic: &str, payload: &str) {
        let given = self.path("site/devices").join(certificate);
        let mut client = Command::new("mosquitto_pub");
        client.args(["-V", "5", "-h", "localhost", "-p", &self.port.to_string(), "-q", "1", "-i", client_id, "-t", topic, "-m", payload]);
        client.arg("--cafile").arg(given.join("ca.crt"));
        client.arg("--cert").arg(given.join("client.crt")).arg("--key").arg(given.join("client.key"));
        // What is not allowed may be told or not; what counts is what comes of it.
        drop(client.output().expect("mosquitto_pub"));
    }
}

/// The value of a sample of `/metrics`.
fn sample(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[test]
fn the_site_runs_over_tls_and_the_brokers_rules() {
    let Some(mosquitto) = mosquitto().filter(|_| has("mosquitto_pub")) else { return };
    let Some(postgres) = Postgres::start() else { return };
    let Some(site) = Prepared::new() else { return };
    let page = free_port();
    let (broker, config) = (site.broker(mosquitto), site.centre(page, &postgres));
    let run = |name: &str, log: &str, config: &Path| {
        Process::start(name, ["run".as_ref(), "--config".as_ref(), config.as_os_str()], &site.log(log))
    };
    let centre = run("omnilabel-trainer", "centre", &config);
    until("the centre is well", || http_get(page, "/healthz", None).filter(|answer| *answer == (200, "ok\n".to_owned())));
    let token = site.secret("centre", "viewer_token");
    let get = |path: &str| http_get(page, path, Some(&token)).filter(|(status, _)| *status == 200).map(|(_, body)| body);
    assert_eq!(http_get(page, "/metrics", None).map(|(status, _)| status), Some(401), "the numbers are for who knows a token");
    assert_eq!(token, site.secret("prometheus", "prometheus_token"), "Prometheus knows it");

    // A label, its picture, and the word that they are stored.
    let device = run("omnilabel-edge", "cam-1", &site.device("cam-1"));
    let fleet = || {
        let body = get("/api/v1/fleet")?;
        let fleet: Value = serde_json::from_str(&body).expect("JSON");
        Some(fleet["devices"].as_array()?.clone())
    };
    let number = |value: &Value, key: &str| value[key].as_u64().unwrap_or_else(|| panic!("no {key} in {value}"));
    until("labels that are stored and acknowledged", || {
        let [cam]: [Value; 1] = fleet()?.try_into().ok()?;
        assert_eq!(cam["device"], "cam-1");
        let acknowledged = number(&cam, "committed").saturating_sub(number(&cam, "pending"));
        (number(&cam, "settled") >= 5 && number(&cam, "frames") >= 5 && acknowledged >= 5).then_some(())
    });
    let pictures: u64 = postgres.psql("omnilabel", "SELECT count(jpeg) FROM frames").parse().expect("a number");
    assert!(pictures >= 5, "{pictures} pictures are in the database");

    // A release on its way back: published, proved and confirmed. It is the model that the device has, so that it needs no block.
    let bundle = teacher();
    let release: [&std::ffi::OsStr; 5] =
        ["release".as_ref(), "--config".as_ref(), config.as_os_str(), "--bundle".as_ref(), bundle.as_os_str()];
    succeed("omnilabel-trainer", release);
    until("the release is confirmed", || fleet()?.first().filter(|cam| number(cam, "confirmed") == 1).map(|_| ()));
    let metrics = get("/metrics").expect("metrics");
    for name in ["acks_total", "commits_total", "broker_connected", "release_newest"] {
        assert!(sample(&metrics, &format!("omnilabel_centre_{name}")).is_some_and(|value| value >= 1.0), "{name}: {metrics}");
    }

    // A copy of the database while labels come.
    let labels = || postgres.psql("omnilabel", "SELECT count(*) FROM labels").parse::<u64>().expect("a number");
    let before = labels();
    site.in_postgres("pg_dump", &postgres);
    let copied = before..=labels();

    // Who has the certificate of cam-2 is cam-2, whatever they call themselves, and says nothing for cam-1. What they may say comes: what they
    // may not say would have come before it.
    site.publish("cam-2", "omnilabel-trainer", "omnilabel/v1/yard/cam-1/labels", "not a label");
    site.publish("cam-2", "cam-1", "omnilabel/v1/yard/cam-2/labels", "not a label");
    let rejected = |reason: &str| sample(&get("/metrics")?, &format!("omnilabel_centre_messages_rejected_total{{reason=\"{reason}\"}}"));
    until("what cam-2 may say", || rejected("wire").filter(|count| *count >= 1.0));
    assert_eq!(rejected("wire"), Some(1.0), "cam-2 spoke for cam-1");
    let log = broker.said();
    let connections = |client: &str| log.lines().filter(|line| line.contains("New client connected") && line.contains(client)).count();
    assert_eq!((connections(" as omnilabel-trainer ("), connections(" as cam-1 (")), (1, 1), "nobody took their place: {log}");
    assert_eq!(connections(" as cam-2 ("), 2, "{log}");

    // What the containers are asked.
    let check = |script: &str, variable: &str, port: u16| {
        command(Command::new(root().join("deploy/container").join(script)).env(variable, port.to_string()))
    };
    assert_eq!(check("healthcheck", "OMNILABEL_WEB_PORT", page), "ok\n");
    check("healthcheck.broker", "OMNILABEL_PORT", site.port);
    drop(broker);
    let gone = Command::new(root().join("deploy/container/healthcheck.broker")).env("OMNILABEL_PORT", site.port.to_string()).output();
    assert!(!gone.expect("bash").status.success(), "nobody listens there any more");
    until("the centre says so", || http_get(page, "/healthz", None).filter(|(status, _)| *status == 503));
    for process in [device, centre] {
        process.signal("TERM");
        assert!(process.wait().0.success());
    }

    // And back.
    site.in_postgres("pg_restore", &postgres);
    assert!(copied.contains(&labels()), "{} labels, copied were {copied:?}", labels());
    let config = ServiceConfig::load(&config).expect("centre.toml");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let wrong = runtime.block_on(async { Store::attach(&config).await.expect("the store").recount().await.expect("a recount") });
    assert_eq!(wrong, Vec::<String>::new());
}

/// The user that a service runs as.
fn user(name: &str, service: &Value) -> u32 {
    let user = service["user"].as_str().unwrap_or_else(|| panic!("{name} names no user"));
    user.split(':').next().and_then(|id| id.parse().ok()).unwrap_or_else(|| panic!("{name}: {user} is no number"))
}

#[test]
fn every_service_is_bounded_and_nothing_secret_is_in_the_file() {
    let Some(site) = Prepared::new() else { return };
    let mut published = BTreeSet::new();
    for (name, service) in site.compose.services() {
        assert_ne!(user(name, service), 0, "{name}");
        assert_eq!((&service["restart"], &service["read_only"]), (&"unless-stopped".into(), &true.into()), "{name}");
        assert_eq!((&service["cap_drop"][0], &service["security_opt"][0]), (&"ALL".into(), &"no-new-privileges:true".into()), "{name}");
        assert!(service["healthcheck"]["test"].as_array().is_some_and(|test| test.len() > 1), "{name}");
        let limits = &service["deploy"]["resources"]["limits"];
        assert!(limits["cpus"].is_string() && limits["memory"].is_string() && service["pids_limit"].is_u64(), "{name}: {limits}");
        let image = service["image"].as_str().unwrap_or_default();
        let pinned = image.rsplit_once(':').is_some_and(|(_, tag)| tag.contains(|c: char| c.is_ascii_digit()));
        assert!(service["build"].is_object() || pinned, "{name}: {image} can be another one tomorrow");
        published.extend(service["ports"].as_array().into_iter().flatten().map(ToString::to_string));
        for (variable, value) in service["environment"].as_object().into_iter().flatten() {
            assert!(!variable.contains("PASSWORD") || value.as_str().is_some_and(|value| value.starts_with("/run/secrets/")), "{variable}");
        }
        for mount in service["volumes"].as_array().into_iter().flatten() {
            assert!(mount["type"] == "volume" || mount["read_only"] == true, "{name}: {mount}");
            let volume = mount["source"].as_str().unwrap_or_default();
            assert!(mount["type"] == "bind" || site.compose.file()["volumes"][volume].is_object(), "{name}: {volume} is not declared");
        }
        for (there, here) in site.compose.mounts(name) {
            let volume = here.starts_with(site.path("volumes"));
            let about = fs::metadata(&here);
            assert!(volume || about.is_ok(), "{name}: {} for {there} is not there", here.display());
            if there.starts_with("/run/secrets/") {
                let about = about.expect("a secret");
                assert_eq!(about.mode() & 0o777, 0o600, "{}", here.display());
                // Only root gives files to others; `prepare` says what is to be done else.
                assert!(about.uid() == user(name, service) || !is_root(), "{name} cannot read {}", here.display());
            }
        }
    }
    let ports = [format!("\"{0}:{0}\"", site.port), "\"127.0.0.1:3000:3000\"".to_owned(), "\"127.0.0.1:8090:8090\"".to_owned()];
    assert_eq!(published, BTreeSet::from(ports), "of all ports the broker's alone is open to others");
    let optional: Vec<&str> = site.compose.services().filter(|(_, service)| service["profiles"].is_array()).map(|(name, _)| name).collect();
    assert_eq!(optional, ["grafana", "objects", "prometheus"]);

    let files = [folder().join("compose.yaml"), site.path("site/compose/compose.env"), site.path("site/compose/centre.toml")];
    let open: String = files.iter().map(|file| fs::read_to_string(file).expect("readable")).collect();
    for secret in fs::read_dir(site.path("site/compose/secrets")).expect("secrets").flatten() {
        let secret = fs::read_to_string(secret.path()).expect("readable");
        assert!(secret.len() > 32 && !open.contains(secret.trim()), "a secret is in a file that is none");
    }
}

#[test]
fn the_object_store_is_the_centres_alone() {
    let Some(site) = Prepared::new() else { return };
    // The lines of centre.toml that use it, as README.md has them taken in.
    let line = |line: &str| line.strip_prefix('#').filter(|asked| !asked.starts_with(' ')).unwrap_or(line).to_owned() + "\n";
    let text: String = site.adapted("centre", "/etc/omnilabel/centre.toml").lines().map(line).collect();
    let config = site.path("objects.toml");
    fs::write(&config, &text).expect("writable");
    succeed("omnilabel-trainer", ["check-config".as_ref(), "--config".as_ref(), config.as_os_str()]);
    let table: toml::Table = text.parse().expect("TOML");
    let store = &table["store"];
    assert_eq!(store["pictures"].as_str(), Some("s3://labels/yard"));
    assert_eq!(store["s3"]["endpoint"].as_str(), Some("http://objects:8333"));

    let service = &site.compose.file()["services"]["objects"];
    for option in ["-dir=/data", "-ip.bind=127.0.0.1", "-s3.port=8333", "-s3.config=/run/secrets/objects_config"] {
        assert!(service["command"].as_array().is_some_and(|words| words.iter().any(|word| word == option)), "{option}");
    }
    assert_eq!((&service["networks"], &service["ports"]), (&json!(["objects"]), &Value::Null));
    assert_eq!(site.compose.file()["networks"]["objects"]["internal"], true);
    let is_there = |service: &Value| service["networks"].as_array().is_some_and(|networks| networks.contains(&json!("objects")));
    let there: Vec<&str> = site.compose.services().filter(|(_, service)| is_there(service)).map(|(name, _)| name).collect();
    assert_eq!(there, ["centre", "objects"]);
    // Its volume is a folder that is its user's, and nobody but the centre has keys.
    let folder = site.path("site/objects");
    assert_eq!(site.compose.file()["volumes"]["objects"]["driver_opts"]["device"].as_str(), folder.to_str());
    let about = fs::metadata(&folder).expect("a folder");
    assert!(about.mode() & 0o777 == 0o700 && (about.uid() == user("objects", service) || !is_root()), "{about:?}");
    let keys = site.secret("centre", "object_keys");
    let key = |name: &str| keys.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = ")).expect("a key");
    let known: Value = serde_json::from_str(&site.secret("objects", "objects_config")).expect("JSON");
    let credentials = json!([{ "accessKey": key("aws_access_key_id"), "secretKey": key("aws_secret_access_key") }]);
    let actions = json!(["Read:labels", "Write:labels", "List:labels"]);
    assert_eq!(known, json!({ "identities": [{ "name": "centre", "credentials": credentials, "actions": actions }] }));
}

fn is_root() -> bool {
    command(Command::new("id").arg("-u")).trim() == "0"
}

#[test]
fn docker_compose_takes_the_file() {
    if !has("docker-compose") {
        return;
    }
    let Some(site) = Prepared::new() else { return };
    let mut check = Command::new("docker-compose");
    check.arg("--env-file").arg(site.path("site/compose/compose.env")).arg("--file").arg(folder().join("compose.yaml"));
    let services = command(check.args(["--profile", "monitoring", "--profile", "objects", "config", "--services"]));
    let all = ["broker", "centre", "grafana", "objects", "postgres", "prometheus"];
    assert_eq!(services.lines().collect::<BTreeSet<_>>(), BTreeSet::from(all));
    // Without the site's file it says what to do, and makes no container with nothing in it.
    let out =
        Command::new("docker-compose").arg("--file").arg(folder().join("compose.yaml")).arg("config").output().expect("docker-compose");
    assert!(!out.status.success() && text(&out).contains("run prepare and say --env-file"), "{}", text(&out));
}

#[test]
fn prepare_keeps_what_there_is_and_refuses_what_cannot_be() {
    let Some(site) = Prepared::new() else { return };
    let (out, manual, heldout) = (site.path("site"), site.path("manual"), site.path("heldout"));
    let [out, manual, heldout] = [&out, &manual, &heldout].map(|path| path.display().to_string());
    // The key is one that the centre takes, and its other half went to the devices.
    let secret = site.compose.here("centre", "/run/secrets/release_key");
    let public = read_public(&site.path("site/devices/cam-1/root.pub")).expect("a public key");
    assert_eq!(read_key(&secret).expect("a private key").verifying_key(), public);
    let before: Vec<String> =
        ["secrets/release_key", "secrets/viewer_token", "centre.toml"].map(|file| read(&site.path("site/compose").join(file))).into();
    let more = prepare(["--out", &out, "--device", "cam-3"]);
    assert!(more.status.success(), "{}", text(&more));
    let after: Vec<String> =
        ["secrets/release_key", "secrets/viewer_token", "centre.toml"].map(|file| read(&site.path("site/compose").join(file))).into();
    assert_eq!(before, after);
    assert_eq!(read(&site.path("site/devices/cam-3/root.pub")), read(&site.path("site/devices/cam-1/root.pub")));
    assert!(read(&site.path("site/broker/acl")).contains("user cam-3\n"));

    let new = site.path("new").display().to_string();
    let other = site.path("footage").display().to_string();
    let site_of = ["--out", &new, "--site", "yard", "--broker", "b.example"];
    for (args, expected) in [
        (&["--manual", &manual][..], "--heldout: is missing"),
        (&["--heldout", &heldout], "--manual: is missing"),
        (&["--manual", &manual, "--heldout", &manual], "is the same folder as --manual"),
        (&["--manual", "nowhere", "--heldout", &heldout], "--manual nowhere: expected a folder with annotations.json"),
        (&["--manual", &manual, "--heldout", &heldout, "--model", &other], "expected a folder with manifest.json"),
        (&["--manual", &manual, "--heldout", &heldout, "--keys", &other], "expected a folder with release.key"),
        (&["--manual", &manual, "--heldout", &heldout, "--root-key", "x"], "--root-key: expected --keys"),
        (&["--manual", &manual, "--heldout", &heldout, "--device", "a/b"], "--device a/b"),
        (&["--manual"], "--manual: needs a value"),
    ] {
        let refused = prepare([&site_of[..], args].concat());
        let said = text(&refused);
        assert!(refused.status.code() == Some(2) && said.contains(expected), "{args:?}: {said}");
        assert!(!Path::new(&new).exists(), "{args:?} made something");
    }
    let refused = prepare(["--out", &out, "--manual", &manual]);
    assert!(text(&refused).contains("has one: change"), "{}", text(&refused));
    let refused = prepare(["--out", "a$b", "--site", "yard"]);
    assert!(text(&refused).contains("expected a path without"), "{}", text(&refused));
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
