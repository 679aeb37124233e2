//! Devices that send labels through a mosquitto on loopback to a collector, and wait until it has acknowledged them as stored. The collector
//! is `omnilabel-trainer run`, or `collector.py` for comparison: the broker, the devices and what they send are the same.

use crate::cases::Peer;
use crate::fixture::{generated, root};
use crate::side::{Role, Task, Work};
use anyhow::{Context, Result, bail, ensure};
use omnilabel_keypoints::wire::topic::{self, Kind};
use omnilabel_keypoints::wire::{AckMsg, Encoding, LabelMsg, Message};
use omnilabel_link::{Incoming, Link, LinkConfig};
use omnilabel_tests::fleet::{SITE, Site, Student};
use omnilabel_tests::peers::Process;
use omnilabel_tests::postgres::Postgres;
use serde_json::{Value, json};
use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::Receiver;

/// Connections to the broker at most; the devices share them.
const CONNECTIONS: usize = 8;
/// Labels that are sent ahead of their acknowledgement.
const AHEAD: usize = 1024;
/// Without an acknowledgement for so long, what was sent is sent again, as devices do.
const SILENCE: Duration = Duration::from_secs(2);
/// A batch that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(120);
const EPOCH: u64 = 0x1122_3344_5566_7788;
const PREFIX: &str = "omnilabel/v1";

pub(crate) struct Ingest {
    runtime: Runtime,
    links: Vec<Link>,
    acks: Receiver<(usize, u64)>,
    /// Sent and acknowledged, per device.
    devices: Vec<(u64, u64)>,
    turn: usize,
    labels: usize,
    template: LabelMsg,
    buffer: Vec<u8>,
    bytes: usize,
    store: Database,
    // Dropped in this order: the collector before its broker and its database.
    collector: Process,
    _site: Site,
}

/// The collector's database.
enum Database {
    Sqlite(PathBuf),
    Postgres(Postgres),
}

/// Of the private server.
const DATABASE: &str = "labels";

fn name(device: usize) -> String {
    format!("device-{device}")
}

impl Ingest {
    pub(crate) fn new(task: &Task, role: Role) -> Result<Self> {
        let site = Site::new().context("no mosquitto (tests/setup installs it)")?;
        let store = if task.postgres {
            let postgres = Postgres::durable().context("no PostgreSQL (tests/setup installs it)")?;
            postgres.create(DATABASE);
            Database::Postgres(postgres)
        } else {
            Database::Sqlite(site.path(if role == Role::Paho { "labels.db" } else { "centre/centre.sqlite" }))
        };
        let collector = if role == Role::Paho {
            let python = Peer::Cbor2.program()?.command.swap_remove(0);
            let mut command = Command::new(python);
            command.arg(root().join("tests/bench/python/collector.py")).arg(site.broker.port.to_string()).arg(SITE);
            match &store {
                Database::Sqlite(path) => command.arg(path),
                Database::Postgres(postgres) => command.arg(postgres.url(DATABASE)),
            };
            let mut collector = Process::spawn("collector.py", &mut command, &site.path("collector.log"));
            collector.line();
            collector
        } else {
            // No round is ever due.
            site.configure_centre(1 << 40, 1, Student::Careful);
            let path = site.path("trainer.toml");
            let text = std::fs::read_to_string(&path)? + &format!("[collector]\nmax_devices = {}\n", task.devices.max(1000));
            let text = match &store {
                Database::Sqlite(_) => text,
                Database::Postgres(postgres) => text + &format!("[store]\nurl = {:?}\n", postgres.url(DATABASE)),
            };
            std::fs::write(&path, text)?;
            site.centre()
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let config = LinkConfig {
            host: "127.0.0.1".to_owned(),
            port: site.broker.port,
            tls: None,
            allow_plain: false,
            prefix: PREFIX.to_owned(),
            site: SITE.to_owned(),
        };
        let (sender, acks) = tokio::sync::mpsc::channel(4096);
        let mut links = Vec::new();
        for index in 0..CONNECTIONS.min(task.devices.max(1)) {
            let subscriptions = if index == 0 { vec![topic::device(PREFIX, SITE, "+", Kind::Ack).as_str().to_owned()] } else { Vec::new() };
            let (link, mut incoming) = runtime.block_on(async { Link::open(&config, &format!("devices-{index}"), None, subscriptions) })?;
            links.push(link);
            let sender = sender.clone();
            runtime.spawn(async move {
                while let Some(message) = incoming.recv().await {
                    let Incoming::Message { topic, payload, .. } = message else { continue };
                    let device = topic.split('/').rev().nth(1).and_then(|name| name.strip_prefix("device-")?.parse().ok());
                    let ack = AckMsg::decode(&payload).ok().filter(|ack| ack.epoch == EPOCH);
                    if let (Some(device), Some(ack)) = (device, ack)
                        && sender.send((device, ack.watermark)).await.is_err()
                    {
                        break;
                    }
                }
            });
        }
        let template = generated::labels(1, 2).remove(0);
        let devices = vec![(0, 0); task.devices.max(1)];
        let buffer = vec![0; LabelMsg::MAX_BYTES];
        let mut ingest =
            Self { runtime, links, acks, devices, turn: 0, labels: task.labels, template, buffer, bytes: 0, store, collector, _site: site };
        // Whatever was sent before the collector had subscribed is sent again here and not in a measurement.
        ingest.send(1)?;
        Ok(ingest)
    }

    fn message(&mut self, device: usize, sequence: u64) -> Result<(String, Vec<u8>)> {
        self.template.epoch = EPOCH;
        self.template.sequence = sequence;
        let length = self.template.encode(Encoding::Cbor, &mut self.buffer)?;
        let topic = topic::device(PREFIX, SITE, &name(device), Kind::Labels);
        self.bytes += length;
        Ok((topic.as_str().to_owned(), self.buffer[..length].to_vec()))
    }

    /// Sends so many labels, one device after the other, and returns when all are acknowledged.
    fn send(&mut self, count: usize) -> Result<()> {
        let start = Instant::now();
        let mut open = 0;
        let mut sent = 0;
        let mut last = Instant::now();
        while sent < count || open > 0 {
            while sent < count && open < AHEAD {
                let device = self.turn % self.devices.len();
                self.turn += 1;
                self.devices[device].0 += 1;
                let (topic, payload) = self.message(device, self.devices[device].0)?;
                let link = self.links[device % self.links.len()].clone();
                self.runtime.block_on(link.publish(&topic, payload, false))?;
                sent += 1;
                open += 1;
                while let Ok(ack) = self.acks.try_recv() {
                    open -= self.acknowledge(ack);
                    last = Instant::now();
                }
            }
            if open == 0 {
                continue;
            }
            let wait = SILENCE.saturating_sub(last.elapsed());
            let acks = &mut self.acks;
            match self.runtime.block_on(async { tokio::time::timeout(wait, acks.recv()).await }) {
                Ok(Some(ack)) => {
                    open -= self.acknowledge(ack);
                    last = Instant::now();
                }
                Ok(None) => bail!("the link is closed"),
                Err(_) => {
                    last = Instant::now();
                    self.again()?;
                }
            }
            if start.elapsed() > LIMIT {
                bail!("{open} of {count} labels are not acknowledged after {} s: {}", LIMIT.as_secs(), self.collector.said());
            }
        }
        Ok(())
    }

    /// How many labels of a device are newly acknowledged.
    fn acknowledge(&mut self, (device, watermark): (usize, u64)) -> usize {
        let Some((sent, acknowledged)) = self.devices.get_mut(device) else { return 0 };
        let upto = watermark.min(*sent).max(*acknowledged);
        let fresh = upto - *acknowledged;
        *acknowledged = upto;
        fresh as usize
    }

    fn again(&mut self) -> Result<()> {
        for device in 0..self.devices.len() {
            let (sent, acknowledged) = self.devices[device];
            for sequence in acknowledged + 1..=sent {
                let (topic, payload) = self.message(device, sequence)?;
                let link = self.links[device % self.links.len()].clone();
                self.runtime.block_on(link.publish(&topic, payload, false))?;
            }
        }
        Ok(())
    }
}

/// How many labels a collector's database holds, and of how many devices.
async fn stored(database: &Database) -> Result<(u64, u64)> {
    let database = match database {
        Database::Sqlite(path) => path,
        Database::Postgres(postgres) => {
            let row = postgres.psql(DATABASE, "SELECT count(*), count(DISTINCT device) FROM labels");
            let (labels, devices) = row.split_once('|').context("psql gives no row")?;
            return Ok((labels.parse()?, devices.parse()?));
        }
    };
    let options = SqliteConnectOptions::new().filename(database).read_only(true);
    let mut connection = options.connect().await?;
    let (labels, devices): (i64, i64) =
        sqlx::query_as("SELECT count(*), count(DISTINCT device) FROM labels").fetch_one(&mut connection).await?;
    Ok((labels.try_into()?, devices.try_into()?))
}

impl Work for Ingest {
    fn check(&mut self) -> Result<Value> {
        self.send(self.labels)?;
        let sent: u64 = self.devices.iter().map(|(sent, _)| sent).sum();
        let stored = self.runtime.block_on(stored(&self.store)).context("the collector's database")?;
        ensure!(stored.0 == sent, "{} labels of {sent} that were acknowledged are in the collector's database", stored.0);
        Ok(json!({"labels": stored.0, "sum": stored.1, "bytes": self.bytes}))
    }

    fn run(&mut self) -> Result<()> {
        self.send(self.labels)
    }

    fn process(&self) -> u32 {
        self.collector.id()
    }
}
