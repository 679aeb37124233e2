//! The MQTT 5 connection that both sides share: configuration, TLS, last will, reconnection with back-off. It knows topics and
//! payloads only as strings and bytes; delivery is its callers' (outbox and collector).

mod backoff;
mod pump;
mod tls;

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

pub use backoff::Backoff;

/// How to reach the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkConfig {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    #[serde(default = "default_port")]
    pub port: u16,
    /// TLS; plain TCP without it (loopback only, unless `allow_plain`).
    #[serde(default)]
    pub tls: Option<TlsConfig>,
    /// Allows plain TCP to another host than loopback.
    #[serde(default)]
    pub allow_plain: bool,
    /// Topic prefix.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// Site name.
    pub site: String,
}

/// Files of a TLS connection, PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Trusted certificate authorities.
    pub ca: PathBuf,
    /// Client certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

const fn default_port() -> u16 {
    1883
}

fn default_prefix() -> String {
    "omnilabel/v1".to_owned()
}

/// Why a connection cannot be set up. A broker that is down is not among them: that is an [`Incoming::Disconnected`].
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A PEM file could not be read or used.
    #[error("{path}: {message}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The configuration cannot be used.
    #[error("broker: {0}")]
    Config(String),
    /// The link was closed.
    #[error("the link is closed")]
    Closed,
    /// A publish was refused by the client library.
    #[error("publish on {topic}: {message}")]
    Publish {
        /// The topic.
        topic: String,
        /// What is wrong.
        message: String,
    },
}

/// The last will.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Will {
    /// Topic.
    pub topic: String,
    /// Retained payload.
    pub payload: Vec<u8>,
}

/// What the link tells its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Connected (again), and the broker has answered the subscriptions.
    Connected,
    /// The connection broke or could not be made; the link tries again after `retry_in`.
    Disconnected {
        /// Why.
        reason: String,
        /// When it tries again.
        retry_in: Duration,
    },
    /// Connected, but the broker refuses what is published or subscribed; told once a connection.
    Refused {
        /// What it says.
        reason: String,
    },
    /// A message.
    Message {
        /// Topic.
        topic: String,
        /// Payload.
        payload: Vec<u8>,
        /// Whether it was retained.
        retained: bool,
    },
}

impl LinkConfig {
    /// Checks what can be known without connecting: a host, topic-safe names, no plain TCP to another machine unless it is allowed.
    ///
    /// # Errors
    /// [`LinkError::Config`] naming the key.
    pub fn check(&self) -> Result<(), LinkError> {
        let refuse = |message: String| Err(LinkError::Config(message));
        if self.host.is_empty() {
            return refuse("`host` is empty, expected a name or address".to_owned());
        }
        if self.port == 0 {
            return refuse("`port` is 0, expected 1 to 65535".to_owned());
        }
        for (key, value) in [("prefix", &self.prefix), ("site", &self.site)] {
            if value.is_empty() || value.contains(['+', '#', '\0']) || value.starts_with('/') || value.ends_with('/') {
                return refuse(format!("`{key}` is {value:?}, expected a topic without wildcards and outer slashes"));
            }
        }
        let loopback = self.host == "localhost" || self.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        if self.tls.is_none() && !self.allow_plain && !loopback {
            return refuse(format!(
                "`host` {:?} is another machine and there is no [tls]: plain TCP needs `allow_plain = true`",
                self.host
            ));
        }
        Ok(())
    }
}

/// Messages of QoS 1 that are sent ahead of the broker's acknowledgement, at most; a broker that takes fewer says so.
const IN_FLIGHT: u16 = 1024;
/// How many messages wait between the socket and the owner. Acknowledgements to the broker are sent when the owner takes a message,
/// and the broker sends no more than this many unacknowledged ones, so that a slow owner holds back the broker and not the polling.
pub const RECEIVE_QUEUE: usize = 64;
/// How many publishes wait between the owner and the socket; [`Link::publish`] waits when it is full.
pub const PUBLISH_QUEUE: usize = 32;

/// How long [`Link::subscribe`] waits for the broker's answer; without a connection it comes with the next one.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest packet in either direction, bytes: a block of weights with room to spare.
pub const MAX_PACKET: usize = 2 * 1024 * 1024;

/// An open connection, polled by its own task; every method may be called from any task, also from the one that reads the receiver.
/// The connection closes (with its last will) when every clone is dropped.
#[derive(Clone)]
pub struct Link {
    inner: Arc<Inner>,
}

struct Inner {
    client: rumqttc::AsyncClient,
    subscriptions: pump::Subscriptions,
    close: watch::Sender<bool>,
    closed: watch::Receiver<bool>,
}

impl Link {
    /// Opens the connection and keeps it open: re-subscribes to `subscriptions` after every connect, backs off from 250 ms to 30 s
    /// with jitter. The receiver is bounded ([`RECEIVE_QUEUE`]); when it is full the broker is held back by MQTT's receive maximum, and a
    /// broker that does not keep to it by an unread socket after 64 MiB. Runs in the current tokio runtime.
    ///
    /// # Errors
    /// [`LinkError::Tls`], [`LinkError::Config`].
    pub fn open(
        config: &LinkConfig,
        client_id: &str,
        will: Option<Will>,
        subscriptions: Vec<String>,
    ) -> Result<(Self, mpsc::Receiver<Incoming>), LinkError> {
        Self::open_ahead(config, client_id, will, subscriptions, RECEIVE_QUEUE)
    }

    /// The same with another number of messages (1 to 4,096) that the broker may send ahead of the owner, for one who takes many small ones
    /// at a time.
    ///
    /// # Errors
    /// [`LinkError::Tls`], [`LinkError::Config`].
    pub fn open_ahead(
        config: &LinkConfig,
        client_id: &str,
        will: Option<Will>,
        subscriptions: Vec<String>,
        ahead: usize,
    ) -> Result<(Self, mpsc::Receiver<Incoming>), LinkError> {
        config.check()?;
        let ahead = ahead.clamp(1, pump::MAX_AHEAD);
        let mut options = rumqttc::MqttOptions::new(client_id, rumqttc::Broker::tcp(config.host.clone(), config.port));
        options
            .set_clean_start(true)
            .set_keep_alive(15)
            .set_connect_timeout(Duration::from_secs(10))
            .set_max_packet_size(Some(MAX_PACKET as u32))
            .set_incoming_packet_size_limit(rumqttc::IncomingPacketSizeLimit::Bytes(MAX_PACKET as u32))
            .set_receive_maximum(Some(ahead as u16))
            // Its table has a place for each from the start, of 250 bytes: 16 MiB for the 65,535 that the protocol allows.
            .set_outgoing_inflight_upper_limit(IN_FLIGHT)
            .set_ack_mode(rumqttc::AckMode::Manual);
        if let Some(tls) = &config.tls {
            options.set_transport(rumqttc::Transport::tls_with_config(tls::configuration(tls)?));
        }
        if let Some(will) = will {
            options.set_last_will(rumqttc::LastWill::new(will.topic, will.payload, rumqttc::QoS::AtLeastOnce, true, None));
        }
        let (client, eventloop) = rumqttc::AsyncClient::builder(options)
            .capacity(PUBLISH_QUEUE)
            .try_build()
            .map_err(|error| LinkError::Config(error.to_string()))?;
        let (subscriptions, receiver, close, closed) = pump::start(client.clone(), eventloop, subscriptions, ahead);
        Ok((Self { inner: Arc::new(Inner { client, subscriptions, close, closed }) }, receiver))
    }

    /// Hands a QoS 1 message to the client. `Ok` means accepted for sending, not delivered. Waits while [`PUBLISH_QUEUE`] messages
    /// wait, which lasts as long as the broker is away: stop publishing on [`Incoming::Disconnected`].
    ///
    /// # Errors
    /// [`LinkError::Closed`], [`LinkError::Publish`].
    pub async fn publish(&self, topic: &str, payload: Vec<u8>, retain: bool) -> Result<(), LinkError> {
        if *self.inner.closed.borrow() {
            return Err(LinkError::Closed);
        }
        // The fixed header, topic, packet id and properties of a PUBLISH.
        let packet = payload.len() + topic.len() + 16;
        if packet > MAX_PACKET {
            let message = format!("a packet of {packet} bytes, at most {MAX_PACKET} are sent");
            return Err(LinkError::Publish { topic: topic.to_owned(), message });
        }
        let options = rumqttc::PublishOptions::at_least_once().retain(retain);
        let mut closed = self.inner.closed.clone();
        tokio::select! {
            biased;
            result = self.inner.client.publish(topic, payload, options) => result.map_err(|error| match error {
                rumqttc::ClientError::RequestChannelDisconnected(_) => LinkError::Closed,
                other => LinkError::Publish { topic: topic.to_owned(), message: other.to_string() },
            }),
            _ = closed.wait_for(|&closed| closed) => Err(LinkError::Closed),
        }
    }

    /// Subscribes to one more filter, now and after every connect; returns when the broker has answered or after [`ANSWER_TIMEOUT`].
    ///
    /// # Errors
    /// [`LinkError::Closed`].
    pub async fn subscribe(&self, filter: &str) -> Result<(), LinkError> {
        if pump::add(&self.inner.subscriptions, filter) {
            let notice = self.inner.client.subscribe_tracked(filter, rumqttc::QoS::AtLeastOnce).await.map_err(|_| LinkError::Closed)?;
            if tokio::time::timeout(ANSWER_TIMEOUT, notice.wait_async()).await.is_err() {
                tracing::warn!(filter, "no answer to the subscription yet");
            }
        }
        Ok(())
    }

    /// Ends a subscription.
    ///
    /// # Errors
    /// [`LinkError::Closed`].
    pub async fn unsubscribe(&self, filter: &str) -> Result<(), LinkError> {
        if pump::remove(&self.inner.subscriptions, filter) {
            self.inner.client.unsubscribe(filter).await.map_err(|_| LinkError::Closed)?;
        }
        Ok(())
    }

    /// Sends what was published, disconnects cleanly (the last will is not sent) and waits until it is done, at most a few seconds.
    pub async fn close(&self) {
        self.inner.close.send_replace(true);
        let mut closed = self.inner.closed.clone();
        // An error means that the polling task is gone already.
        let _ = closed.wait_for(|&closed| closed).await;
    }
}
