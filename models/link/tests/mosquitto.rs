#![allow(clippy::unwrap_used)]
//! The link against mosquitto: round trips, restarts, slow readers, last will, TLS with client certificates.

use omnilabel_link::{Incoming, Link, LinkConfig, LinkError, MAX_PACKET, TlsConfig, Will};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::Receiver;

/// Generous: the machine may be busy. Nothing waits for it when all is well.
const DEADLINE: Duration = Duration::from_secs(30);

struct Broker {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Broker {
    fn start(lines: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self::start_at(folder, port, lines)
    }

    fn start_at(folder: tempfile::TempDir, port: u16, lines: &str) -> Option<Self> {
        let config = folder.path().join("mosquitto.conf");
        std::fs::write(&config, format!("listener {port} 127.0.0.1\n{lines}\n")).unwrap();
        let program = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "mosquitto"]
            .into_iter()
            .find(|name| Command::new(name).arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok());
        let Some(program) = program else {
            eprintln!("skipped: mosquitto is not installed");
            return None;
        };
        let child = Command::new(program).arg("-c").arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < DEADLINE, "mosquitto does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Self { child, port, folder })
    }

    /// Kills the broker and starts it again on the same port.
    fn restart(mut self, lines: &str) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        let port = self.port;
        drop(self);
        Self::start_at(folder, port, lines).unwrap()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config(port: u16) -> LinkConfig {
    LinkConfig { host: "127.0.0.1".into(), port, tls: None, allow_plain: false, prefix: "omnilabel/v1".into(), site: "s".into() }
}

async fn until<T>(receiver: &mut Receiver<Incoming>, mut pick: impl FnMut(Incoming) -> Option<T>) -> T {
    tokio::time::timeout(DEADLINE, async {
        loop {
            let incoming = receiver.recv().await.expect("the link is open");
            if let Some(found) = pick(incoming) {
                return found;
            }
        }
    })
    .await
    .expect("in time")
}

async fn connected(receiver: &mut Receiver<Incoming>) {
    until(receiver, |incoming| (incoming == Incoming::Connected).then_some(())).await;
}

async fn message(receiver: &mut Receiver<Incoming>) -> (String, Vec<u8>, bool) {
    until(receiver, |incoming| match incoming {
        Incoming::Message { topic, payload, retained } => Some((topic, payload, retained)),
        _ => None,
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_all_sizes_go_round_and_survive_a_broker_restart() {
    let Some(broker) = Broker::start("allow_anonymous true") else { return };
    let (link, mut receiver) = Link::open(&config(broker.port), "a", None, vec!["x/#".into()]).unwrap();
    connected(&mut receiver).await;
    for size in [0, 1, 100_000, MAX_PACKET - 64] {
        link.publish("x/y", vec![7; size], false).await.unwrap();
        assert_eq!(message(&mut receiver).await, ("x/y".to_owned(), vec![7; size], false));
    }
    let refused = link.publish("x/y", vec![0; MAX_PACKET], false).await;
    assert!(matches!(refused, Err(LinkError::Publish { .. })), "{refused:?}");

    let broker = broker.restart("allow_anonymous true");
    until(&mut receiver, |incoming| matches!(incoming, Incoming::Disconnected { .. }).then_some(())).await;
    connected(&mut receiver).await;
    link.publish("x/z", b"after".to_vec(), false).await.unwrap();
    assert_eq!(message(&mut receiver).await.1, b"after");
    link.subscribe("other").await.unwrap();
    link.publish("other", b"late filter".to_vec(), false).await.unwrap();
    assert_eq!(message(&mut receiver).await.0, "other");
    link.close().await;
    assert!(matches!(link.publish("x", vec![], false).await, Err(LinkError::Closed)));
    drop(broker);
}

/// After an outage a fleet sends everything at once, and brokers do not keep to the receive maximum when their client publishes, too: what
/// comes meanwhile waits, and the connection stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_waits_for_a_slow_owner_and_does_not_cost_the_connection() {
    let Some(broker) = Broker::start("allow_anonymous true\nmax_queued_messages 100000\nmax_queued_bytes 0") else { return };
    let (owner, mut flood) = Link::open(&config(broker.port), "owner", None, vec!["in".into()]).unwrap();
    connected(&mut flood).await;
    const MESSAGES: u32 = 20_000;
    const SENDERS: u32 = 4;
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let (source, mut events) = Link::open(&config(broker.port), &format!("source-{sender}"), None, vec![]).unwrap();
            tokio::spawn(async move {
                connected(&mut events).await;
                for index in (sender..MESSAGES).step_by(SENDERS as usize) {
                    source.publish("in", index.to_be_bytes().to_vec(), false).await.unwrap();
                }
                source.close().await;
            })
        })
        .collect();
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < MESSAGES as usize {
        let payload = until(&mut flood, |incoming| match incoming {
            Incoming::Message { payload, .. } => Some(payload),
            Incoming::Disconnected { reason, .. } => panic!("{reason}"),
            Incoming::Connected | Incoming::Refused { .. } => None,
        });
        seen.insert(payload.await);
        owner.publish("out", vec![0; 200], true).await.unwrap();
    }
    for sender in senders {
        sender.await.unwrap();
    }
    owner.close().await;
}

/// More than the backlog holds, for an owner who is busy for seconds: the broker is held back.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_large_messages_is_held_back_at_the_socket() {
    let Some(broker) = Broker::start("allow_anonymous true\nmax_queued_messages 100000\nmax_queued_bytes 0") else { return };
    let (owner, mut flood) = Link::open(&config(broker.port), "owner", None, vec!["in".into()]).unwrap();
    let (source, mut events) = Link::open(&config(broker.port), "source", None, vec![]).unwrap();
    connected(&mut flood).await;
    connected(&mut events).await;
    const MESSAGES: u32 = 160;
    for index in 0..MESSAGES {
        let mut payload = vec![0; 1024 * 1024];
        payload[..4].copy_from_slice(&index.to_be_bytes());
        source.publish("in", payload, false).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < MESSAGES as usize {
        let index = until(&mut flood, |incoming| match incoming {
            Incoming::Message { payload, .. } => Some(payload[..4].to_vec()),
            Incoming::Disconnected { reason, .. } => panic!("{reason}"),
            Incoming::Connected | Incoming::Refused { .. } => None,
        });
        seen.insert(index.await);
    }
    source.close().await;
    owner.close().await;
}

/// A large message waits for the room of many small ones, more than acknowledgements have in the client's queue.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_small_and_large_messages_makes_room() {
    let Some(broker) = Broker::start("allow_anonymous true\nmax_queued_messages 100000\nmax_queued_bytes 0") else { return };
    let (owner, mut flood) = Link::open_ahead(&config(broker.port), "owner", None, vec!["in".into()], 4096).unwrap();
    let (source, mut events) = Link::open(&config(broker.port), "source", None, vec![]).unwrap();
    connected(&mut flood).await;
    connected(&mut events).await;
    // 4,096 fill the receiver, and some 2,000 the backlog.
    const MESSAGES: u32 = 9_000;
    let sending = tokio::spawn(async move {
        for index in 0..MESSAGES {
            let mut payload = vec![0; if index % 64 == 0 { 2_000_000 } else { 1000 }];
            payload[..4].copy_from_slice(&index.to_be_bytes());
            source.publish("in", payload, false).await.unwrap();
        }
        source
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < MESSAGES as usize {
        let index = until(&mut flood, |incoming| match incoming {
            Incoming::Message { payload, .. } => Some(payload[..4].to_vec()),
            Incoming::Disconnected { reason, .. } => panic!("{reason} after {} messages", seen.len()),
            Incoming::Connected | Incoming::Refused { .. } => None,
        });
        seen.insert(index.await);
    }
    sending.await.unwrap().close().await;
    owner.close().await;
}

/// The owner has taken more than acknowledgements have room when the connection is given up: none of these reaches the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_given_up_leaves_no_acknowledgement_to_the_next() {
    let Some(broker) = Broker::start("allow_anonymous true\nmax_queued_messages 100000\nmax_queued_bytes 0") else { return };
    let (owner, mut flood) = Link::open_ahead(&config(broker.port), "owner", None, vec!["in".into()], 4096).unwrap();
    let (source, mut events) = Link::open(&config(broker.port), "source", None, vec![]).unwrap();
    connected(&mut flood).await;
    connected(&mut events).await;
    for index in 0..9_000 {
        source.publish("in", vec![0; if index % 64 == 0 { 2_000_000 } else { 1000 }], false).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Small ones take their place in the receiver, and a large one goes on waiting for room.
    for _ in 0..50 {
        message(&mut flood).await;
    }
    tokio::time::sleep(Duration::from_secs(11)).await;
    let again = tokio::spawn({
        let source = source.clone();
        async move {
            while source.publish("in", b"again".to_vec(), false).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    });
    let mut given_up = 0;
    until(&mut flood, |incoming| match incoming {
        // Those of before are among them: what is behind the new connection counts.
        Incoming::Message { payload, .. } => (payload == b"again" && given_up == 1).then_some(()),
        Incoming::Disconnected { reason, .. } => {
            given_up += 1;
            assert!(given_up == 1 && reason.contains("waited for the receiver"), "{reason}");
            None
        }
        Incoming::Connected | Incoming::Refused { .. } => None,
    })
    .await;
    source.close().await;
    owner.close().await;
    again.await.unwrap();
}

/// The owner publishes from the task that reads the receiver, and reads slowly: with a polling task that waits for its owner this
/// stands still for ever.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_publishes_while_its_receiver_is_full_does_not_deadlock() {
    let Some(broker) = Broker::start("allow_anonymous true\nmax_queued_messages 100000\nmax_queued_bytes 0") else { return };
    let (echo, mut heard) = Link::open(&config(broker.port), "echo", None, vec!["in".into()]).unwrap();
    let (source, mut back) = Link::open(&config(broker.port), "source", None, vec!["out".into()]).unwrap();
    connected(&mut heard).await;
    connected(&mut back).await;
    const MESSAGES: u32 = 1000;
    let sender = tokio::spawn({
        let source = source.clone();
        async move {
            for index in 0..MESSAGES {
                source.publish("in", index.to_be_bytes().to_vec(), false).await.unwrap();
            }
        }
    });
    let answers = tokio::spawn(async move {
        for _ in 0..MESSAGES {
            let (_, payload, _) = message(&mut heard).await;
            for _ in 0..2 {
                echo.publish("out", payload.clone(), false).await.unwrap();
            }
        }
        echo
    });
    for _ in 0..2 * MESSAGES {
        message(&mut back).await;
    }
    sender.await.unwrap();
    answers.await.unwrap().close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_will_is_sent_when_the_link_is_dropped_and_not_when_it_is_closed() {
    let Some(broker) = Broker::start("allow_anonymous true") else { return };
    let (watcher, mut seen) = Link::open(&config(broker.port), "watcher", None, vec!["will/#".into()]).unwrap();
    connected(&mut seen).await;
    let will = |topic: &str| Some(Will { topic: topic.into(), payload: b"gone".to_vec() });
    let (clean, mut receiver) = Link::open(&config(broker.port), "clean", will("will/clean"), vec![]).unwrap();
    connected(&mut receiver).await;
    clean.publish("will/clean", b"bye".to_vec(), true).await.unwrap();
    clean.close().await;
    assert_eq!(message(&mut seen).await.1, b"bye");
    let (lost, mut receiver) = Link::open(&config(broker.port), "lost", will("will/lost"), vec![]).unwrap();
    connected(&mut receiver).await;
    drop(lost);
    assert_eq!(message(&mut seen).await, ("will/lost".to_owned(), b"gone".to_vec(), false));
    drop(watcher);
}

#[tokio::test]
async fn a_broker_that_is_down_is_told_and_does_not_stop_a_close() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (link, mut receiver) = Link::open(&config(port), "a", None, vec![]).unwrap();
    let reason = until(&mut receiver, |incoming| match incoming {
        Incoming::Disconnected { reason, .. } => Some(reason),
        _ => None,
    })
    .await;
    assert!(reason.contains("refused"), "{reason}");
    tokio::time::timeout(DEADLINE, link.close()).await.expect("closes without a broker");
}

#[tokio::test]
async fn what_the_broker_refuses_is_told_once_a_connection() {
    let acl = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(acl.path(), "topic readwrite mine/#\n").unwrap();
    let lines = format!("user root\nallow_anonymous true\nacl_file {}", acl.path().display());
    let Some(mut broker) = Broker::start(&lines) else { return };
    let (link, mut receiver) = Link::open(&config(broker.port), "a", None, vec!["mine/in".to_owned()]).unwrap();
    for connection in 1..=2 {
        connected(&mut receiver).await;
        for topic in ["theirs", "theirs", "mine/in"] {
            link.publish(topic, b"x".to_vec(), false).await.unwrap();
        }
        // The broker answers in order: with the message, everything about those before it has been said.
        let mut reasons = Vec::new();
        while until(&mut receiver, |incoming| match incoming {
            Incoming::Message { .. } => Some(false),
            Incoming::Refused { reason } => {
                reasons.push(reason);
                Some(true)
            }
            other => panic!("{other:?}"),
        })
        .await
        {}
        assert!(reasons.len() == 1 && reasons[0].contains("NotAuthorized"), "connection {connection}: {reasons:?}");
        if connection == 1 {
            broker = broker.restart(&lines);
        }
    }
    link.close().await;
}

#[tokio::test]
async fn plain_tcp_to_another_machine_is_refused() {
    let mut elsewhere = LinkConfig { host: "broker.example".into(), ..config(1883) };
    let error = Link::open(&elsewhere, "a", None, vec![]).err().unwrap().to_string();
    assert!(error.contains("allow_plain"), "{error}");
    elsewhere.allow_plain = true;
    assert!(elsewhere.check().is_ok());
    let wild = LinkConfig { site: "a/+".into(), ..config(1883) };
    assert!(wild.check().unwrap_err().to_string().contains("site"));
}

fn openssl(folder: &Path, arguments: &str) -> bool {
    let status =
        Command::new("openssl").args(arguments.split(' ')).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_client_certificates_connects_and_bad_pem_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    std::fs::write(path.join("ext"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    std::fs::write(path.join("ext-client"), "extendedKeyUsage=clientAuth\n").unwrap();
    let ec = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let made = openssl(&path, &format!("req -x509 {ec} -keyout ca.key -out ca.pem -subj /CN=ca -days 2"))
        && openssl(&path, &format!("req {ec} -keyout server.key -out server.csr -subj /CN=server"))
        && openssl(&path, "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 -extfile ext")
        && openssl(&path, &format!("req {ec} -keyout client.key -out client.csr -subj /CN=cam-1"))
        && openssl(&path, "x509 -req -in client.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out client.pem -days 2 -extfile ext-client");
    if !made {
        eprintln!("skipped: openssl is not installed");
        return;
    }
    // mosquitto drops its privileges before it reads them.
    for name in ["ca.pem", "server.pem", "server.key"] {
        std::fs::set_permissions(path.join(name), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    }
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let show = path.display();
    let lines = format!(
        "cafile {show}/ca.pem\ncertfile {show}/server.pem\nkeyfile {show}/server.key\nrequire_certificate true\nuse_identity_as_username true"
    );
    let Some(broker) = Broker::start(&lines) else { return };
    let files = TlsConfig { ca: path.join("ca.pem"), certificate: path.join("client.pem"), key: path.join("client.key") };
    let tls = |files: &TlsConfig| LinkConfig { tls: Some(files.clone()), ..config(broker.port) };
    let (link, mut receiver) = Link::open(&tls(&files), "cam-1", None, vec!["x".into()]).unwrap();
    connected(&mut receiver).await;
    link.publish("x", b"over TLS".to_vec(), false).await.unwrap();
    assert_eq!(message(&mut receiver).await.1, b"over TLS");

    std::fs::write(path.join("empty.pem"), "nothing").unwrap();
    for (broken, name) in [
        (TlsConfig { ca: path.join("empty.pem"), ..files.clone() }, "empty.pem"),
        (TlsConfig { certificate: path.join("missing.pem"), ..files.clone() }, "missing.pem"),
        (TlsConfig { key: path.join("client.pem"), ..files.clone() }, "client.pem"),
        (TlsConfig { key: path.join("server.key"), ..files.clone() }, "server.key"),
    ] {
        let error = Link::open(&tls(&broken), "a", None, vec![]).err().unwrap().to_string();
        assert!(error.contains(name), "{error}");
    }
}
