//! What a simulated device sends.

use super::Device;
use crate::fleet::faults::shuffle;
use crate::fleet::labels::encode;
use crate::fleet::outbox::{Outbox, WINDOW};
use anyhow::Result;
use omnilabel_keypoints::wire::{LabelKey, StatusMsg, VERSION};
use omnilabel_link::Link;
use std::time::Duration;

/// How long a device waits for room in the link: while the broker is away there is none.
const PATIENCE: Duration = Duration::from_secs(2);

impl Device {
    /// Labels that are due, a window at a time.
    pub(super) async fn send_labels(&mut self, link: &Link, now: u64) -> Result<()> {
        if self.hits.reorder_ms.is_some_and(|at| now < at) {
            return Ok(());
        }
        let most = if now < self.hits.slow_ms { 1 } else { WINDOW };
        // Only what is sent out of order is chosen ahead: what is chosen and finds no room waits as if it had been sent.
        let mut batch: Vec<u64> = Vec::new();
        if self.hits.reorder_ms.take().is_some() {
            let outbox = &mut self.outbox;
            batch.extend(std::iter::from_fn(|| outbox.next(now)).take(most));
            shuffle(&mut self.random, &mut batch);
        }
        for _ in 0..most {
            let Some(sequence) = batch.pop().or_else(|| self.outbox.next(now)) else { break };
            let Some(entry) = self.outbox.entry(sequence) else { continue };
            let key = LabelKey { epoch: self.outbox.epoch(), sequence };
            let twice = self.hits.twice > 0;
            self.hits.twice = self.hits.twice.saturating_sub(1);
            for _ in 0..=usize::from(twice) {
                let (label, picture) = self.shared.press.messages(self.index, key, entry)?;
                if let Some(picture) = picture
                    && !publish(link, &self.topics.frames, picture, false).await?
                {
                    return Ok(());
                }
                // What is left out comes again after a silence, as everything that is lost on its way.
                if !publish(link, &self.topics.labels, label, false).await? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    pub(super) fn counts(&self) -> (u64, u64, u64) {
        (self.outbox.epoch(), self.outbox.committed(), self.outbox.pending())
    }

    pub(super) async fn send_status(&mut self, link: &Link, now: u64, online: bool) -> Result<()> {
        let (epoch, committed, pending) = self.counts();
        let model = self.update.report().confirmed;
        let message = StatusMsg { version: VERSION, online, model, frames: committed, committed, pending, epoch, ..StatusMsg::default() };
        if publish(link, &self.topics.status, encode(&message)?, true).await? {
            self.status = (epoch, committed, pending);
            self.status_ms = Some(now);
        }
        Ok(())
    }

    pub(super) async fn send_model(&mut self, link: &Link) -> Result<bool> {
        publish(link, &self.topics.model, encode(&self.update.report())?, true).await
    }

    /// The old outbox is told as empty, and a new one begins.
    pub(super) async fn reflash(&mut self, link: &Link, now: u64) -> Result<()> {
        self.send_status(link, now, true).await?;
        self.retire_outbox();
        self.outbox = Outbox::new(self.random.next() | 1);
        self.hits.reflash = false;
        self.status_ms = None;
        Ok(())
    }

    pub(super) fn retire_outbox(&mut self) {
        self.report.epochs.push((self.outbox.epoch(), self.outbox.committed()));
        self.report.again += self.outbox.again();
    }

    /// Asks for blocks, and listens for them only while some are missing.
    pub(super) async fn fetch(&mut self, link: &Link, now: u64) -> Result<()> {
        if self.update.fetches() != self.subscribed {
            self.subscribed = self.update.fetches();
            if self.subscribed {
                link.subscribe(&self.topics.blocks).await?;
            } else {
                link.unsubscribe(&self.topics.blocks).await?;
            }
        }
        if let Some(request) = self.update.request(now) {
            publish(link, &self.topics.blocks_get, encode(&request)?, false).await?;
        }
        Ok(())
    }
}

/// Whether the link took it in time.
async fn publish(link: &Link, topic: &str, payload: Vec<u8>, retain: bool) -> Result<bool> {
    match tokio::time::timeout(PATIENCE, link.publish(topic, payload, retain)).await {
        Ok(sent) => {
            sent?;
            Ok(true)
        }
        Err(_) => Ok(false),
    }
}
