//! The page's server over real sockets: who is let in, what is answered, what is refused and how.

mod access;
mod answers;
mod browser;
mod devtools;
mod verdicts;

use super::*;
use crate::service::collector::Rejected;
use crate::service::config::RolloutConfig;
use crate::service::drift::fleet::FleetDrift;
use crate::service::drift::{Compared, Statistic};
use crate::service::events::{Event, EventLog};
use crate::service::gate::Decision;
use crate::service::rounds::{Judged, RoundState};
use crate::service::store::intake::Record;
use crate::service::store::statistics::Looked;
use crate::service::testing::{World, skeleton};
use crate::service::waves::Waves;
use omnilabel_keypoints::wire::{ModelMsg, StatusMsg};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

const VIEWER: &str = "viewer-0123456789abcdef0123456789abcdef";
const OPERATOR: &str = "operator-0123456789abcdef0123456789abcdef";
/// Connections at once.
const PLACES: usize = 8;
/// What a device says, which is no markup here.
const REASON: &str = "<img src=x onerror=alert(1)><script>alert(2)</script>";

/// Remembers what was asked; refuses release 2.
#[derive(Default)]
struct Wishes(Mutex<Vec<String>>);

impl Wishes {
    fn add(&self, wish: String, good: bool) -> Done<'_> {
        self.0.lock().unwrap().push(wish);
        Box::pin(async move { if good { Ok(()) } else { Err("release 2 is halted already, expected one that goes out".to_owned()) } })
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Control for Wishes {
    fn halt(&self, counter: u64) -> Done<'_> {
        self.add(format!("halt {counter}"), counter != 2)
    }
    fn resume(&self, counter: u64) -> Done<'_> {
        self.add(format!("resume {counter}"), true)
    }
    fn promote(&self, counter: u64) -> Done<'_> {
        self.add(format!("promote {counter}"), true)
    }
    fn recall(&self, counter: u64) -> Done<'_> {
        self.add(format!("recall {counter}"), true)
    }
    fn start_round(&self) -> Done<'_> {
        self.add("start".to_owned(), true)
    }
}

/// A page over a world with two devices, eight labels, two releases and two rounds.
struct Page {
    world: World,
    /// When `cam-1` spoke last, Unix ms.
    now: u64,
    address: SocketAddr,
    health: Arc<Health>,
    wishes: Arc<Wishes>,
    stop: watch::Sender<bool>,
    served: JoinHandle<()>,
}

fn token_file(folder: &Path, name: &str, token: &str) -> Option<PathBuf> {
    let path = folder.join(name);
    std::fs::write(&path, format!("{token}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    Some(path)
}

fn round(number: u64, ap: f64, decision: Decision, released: Option<u64>) -> RoundState {
    serde_json::from_value(json!({
        "round": number, "teacher": 0, "running": "/nowhere", "after": 0, "up_to": 8, "running_judged": Judged { ap: 0.5, precise: None, pck: Vec::new() },
        "candidate_judged": Judged { ap, precise: None, pck: Vec::new() }, "decision": decision, "released": released, "ended": true, "trained": true,
    }))
    .unwrap()
}

async fn populate(world: &World, now: u64) -> Store {
    let store = Store::open(&world.config.state_dir, false).await.unwrap();
    store.commit(&world.labels("cam-1", 1..=5, 0.0, 0), 1000).await.unwrap();
    store.commit(&world.labels("cam-2", 1..=3, 0.0, 1), 2000).await.unwrap();
    let status = StatusMsg { version: 1, online: true, epoch: 77, committed: 6, pending: 1, ..StatusMsg::default() };
    let model = ModelMsg { version: 1, confirmed: 1, refused: Some(2), reason: REASON.try_into().unwrap(), ..ModelMsg::default() };
    let said = [("cam-1".to_owned(), Record::Status(status)), ("cam-1".to_owned(), Record::Model(Box::new(model)))];
    store.commit(&said, now).await.unwrap();
    let good = round(1, 0.6, Decision::Release("candidate AP 0.6".to_owned()), Some(1));
    let rollout = RolloutConfig { waves: vec![25.0, 100.0], ..RolloutConfig::default() };
    store.add_release(1, "round-1", world.dir.path(), (b"m", b"s"), Some(&good), &Waves::at_once(4000)).await.unwrap();
    store.add_release(2, "by-hand", world.dir.path(), (b"m", b"s"), None, &Waves::begin(&rollout, 5000)).await.unwrap();
    store.save_round(&round(2, 0.4, Decision::Refuse("candidate AP 0.4".to_owned()), None)).await.unwrap();
    let one = |what, distance, drifted| Compared { what, before: 0.62, after: 0.31, distance, noise: 0.04, drifted };
    let drift = FleetDrift {
        model: 1,
        reference_until_ms: 5000,
        reference: 900,
        newest: 300,
        compared: vec![one(Statistic::People, 0.1, false), one(Statistic::Size, 0.4126, true)],
    };
    store.save_drifts(&[Looked { device: "cam-1".to_owned(), drift, forget: Vec::new() }]).await.unwrap();
    let log = EventLog::open(&world.config.state_dir).unwrap();
    log.emit(Event::Labels { device: "cam-1".to_owned(), stored: 5, duplicates: 0 });
    log.emit(Event::DeviceModel { device: "cam-1".into(), confirmed: 1, trial: None, refused: Some(2), reason: REASON.into() });
    store
}

impl Page {
    /// With tokens for viewers and operators as asked.
    async fn open(viewer: bool, operator: bool) -> Self {
        let mut world = World::new();
        let folder = world.dir.path().to_owned();
        let web = &mut world.config.web;
        web.bind = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        web.connections = PLACES;
        web.header_timeout_secs = 1;
        web.viewer_token_file = viewer.then(|| token_file(&folder, "viewer.token", VIEWER)).flatten();
        web.operator_token_file = operator.then(|| token_file(&folder, "operator.token", OPERATOR)).flatten();
        let now = crate::service::events::now_ms();
        let store = populate(&world, now).await;
        let server = crate::service::web::open(&world.config).await.unwrap().unwrap();
        let address = server.address();
        let (health, wishes) = (Arc::new(Health::default()), Arc::new(Wishes::default()));
        health.connected();
        (0..3).for_each(|_| health.rejected(&Rejected::Topic));
        health.committed(Duration::from_millis(1500), 2);
        health.acknowledged();
        let (stop, stopping) = watch::channel(false);
        let control: Arc<dyn Control> = wishes.clone();
        let (writer, health_of) = (store.clone(), Arc::clone(&health));
        let centre = Centre { store, writer, skeleton: skeleton(), keypoint_threshold: 0.2, health: health_of, control };
        let served = tokio::spawn(server.serve(centre, stopping));
        Self { world, now, address, health, wishes, stop, served }
    }

    async fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        let host = if headers.contains("Host:") { "" } else { "Host: localhost\r\n" };
        let length = if matches!(method, "POST" | "PUT") { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
        let head = format!("{method} {path} HTTP/1.1\r\n{host}Connection: close\r\n{length}{headers}\r\n{body}");
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).await.unwrap();
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        assert!(head.to_lowercase().contains("content-security-policy: default-src 'none'"), "{head}");
        Answer { status: head.split(' ').nth(1).unwrap().parse().unwrap(), head, body: answer[end + 4..].to_vec() }
    }

    async fn get(&self, path: &str, headers: &str) -> Answer {
        self.ask("GET", path, headers, "").await
    }

    /// The JSON of a path that is answered.
    async fn read(&self, path: &str) -> Value {
        let answer = self.get(path, &bearer(VIEWER)).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    async fn login(&self, token: &str) -> Answer {
        self.ask("POST", "/login", "Content-Type: application/json\r\n", &json!({ "token": token }).to_string()).await
    }

    fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.world.config.state_dir.join(audit::FILE)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    async fn close(self) {
        self.stop.send_replace(true);
        self.served.await.unwrap();
        assert!(TcpStream::connect(self.address).await.is_err(), "the page ends with the centre");
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    fn error(&self) -> String {
        self.json()["error"].as_str().unwrap().to_owned()
    }
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().filter_map(|line| line.split_once(": ")).find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
    /// The cookie that a log-in set, as a request sends it.
    fn cookie(&self) -> String {
        format!("Cookie: {}\r\n", self.header("set-cookie").unwrap().split(';').next().unwrap())
    }
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}
