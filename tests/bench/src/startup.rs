//! How long a device takes from its start to its first label at a broker on the same machine: model verified, graphs optimised, first frame
//! labelled by the plan of the tests' devices, committed to the outbox and published.

use crate::stats::Spread;
use anyhow::{Context, Result};
use omnilabel_keypoints::wire::Encoding;
use omnilabel_keypoints::wire::topic::{self, Kind};
use omnilabel_link::{Incoming, Link, LinkConfig};
use omnilabel_scenes::Look;
use omnilabel_tests::fleet::{Camera, SITE, Site};
use std::time::{Duration, Instant};

/// A device that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(60);

/// Seconds from the start of `omnilabel-edge run` to the first label, over so many starts of devices that never ran before.
///
/// # Errors
/// There is no mosquitto, or no label comes.
pub fn first_label(rounds: usize) -> Result<Spread> {
    let site = Site::new().context("no mosquitto (tests/setup installs it)")?;
    let footage = site.render("footage", &Look::studio(), 3, 40);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let config = LinkConfig {
        host: "127.0.0.1".to_owned(),
        port: site.broker.port,
        tls: None,
        allow_plain: false,
        prefix: "omnilabel/v1".to_owned(),
        site: SITE.to_owned(),
    };
    let labels = topic::device(&config.prefix, SITE, "+", Kind::Labels).as_str().to_owned();
    let (_link, mut incoming) = runtime.block_on(async { Link::open(&config, "startup", None, vec![labels]) })?;
    let mut seconds = Vec::new();
    for round in 0..rounds.max(1) {
        let name = format!("device-{round}");
        site.provision(&name, Camera::Folder(&footage.join("images"), 10.0, false), Encoding::Cbor);
        let start = Instant::now();
        let device = site.device(&name);
        let first = async {
            while let Some(message) = incoming.recv().await {
                if matches!(&message, Incoming::Message { topic, .. } if topic.contains(name.as_str())) {
                    return true;
                }
            }
            false
        };
        let came = runtime.block_on(async { tokio::time::timeout(LIMIT, first).await });
        let elapsed = start.elapsed().as_secs_f64();
        if !came.unwrap_or(false) {
            anyhow::bail!("no label of {name} within {} s: {}", LIMIT.as_secs(), device.said());
        }
        seconds.push(elapsed);
    }
    Spread::of(&seconds).context("no rounds")
}
