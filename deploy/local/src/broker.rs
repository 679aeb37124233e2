//! The embedded broker (rumqttd), for one machine: MQTT 5 without TLS, so it listens on loopback only.
//!
//! It keeps retained messages in memory alone and has no access control; a fleet uses mosquitto (`docs/SITE.md`). Its segments are small,
//! because what they hold stays in memory until they are full.

use anyhow::{Context, bail};
use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, SegmentConfig, ServerSettings};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// The largest payload: a block of 1 MiB and its overhead fit.
const MAX_PAYLOAD: usize = 2 << 20;

/// Runs the broker until the process ends.
///
/// # Errors
/// An address that is not loopback or cannot be bound.
pub fn run(listen: SocketAddr) -> anyhow::Result<()> {
    if !listen.ip().is_loopback() {
        bail!(
            "--listen {listen}: the embedded broker has neither TLS nor access control and listens on loopback only; for other addresses see docs/SITE.md"
        );
    }
    // rumqttd reports a port in use only in its log.
    drop(TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?);
    omnilabel_console::log("warn");
    Broker::new(config(listen)).start().map_err(|error| anyhow::anyhow!("the broker on {listen} stopped: {error}"))
}

fn config(listen: SocketAddr) -> Config {
    let connections = ConnectionSettings {
        connection_timeout_ms: 10_000,
        max_payload_size: MAX_PAYLOAD,
        max_inflight_count: 200,
        auth: None,
        external_auth: None,
        dynamic_filters: true,
    };
    let server = ServerSettings { name: "loopback".to_owned(), listen, tls: None, next_connection_delay_ms: 1, connections };
    let frames = SegmentConfig { max_segment_size: 4 << 20, max_segment_count: 4 };
    let router = RouterConfig {
        max_connections: 64,
        max_outgoing_packet_count: 200,
        max_segment_size: 2 << 20,
        max_segment_count: 4,
        custom_segment: Some(HashMap::from([("omnilabel/v1/+/+/frames".to_owned(), frames)])),
        ..RouterConfig::default()
    };
    Config { router, v5: Some(HashMap::from([("1".to_owned(), server)])), ..Config::default() }
}

/// A loopback port that is free now.
///
/// # Errors
/// None is.
pub fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr().context("no free port on 127.0.0.1")?.port())
}

/// Waits until something accepts connections on `port`; `alive` says whether waiting still makes sense.
///
/// # Errors
/// `limit` passed, or what `alive` reports.
pub fn wait_for(port: u16, limit: Duration, log: &Path, mut alive: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    while TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_err() {
        alive()?;
        if Instant::now() > deadline {
            bail!("the broker did not listen on {address} within {} s; see {}", limit.as_secs(), log.display());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
