//! The loop that counts what the collector stored. It reads each label once, in the order of arrival and a bounded number a minute, and
//! is in the collector's way in two short transactions a minute.

use super::fleet::{FleetDrift, look, period_of};
use super::{Counts, Scale};
use crate::service::config::DriftConfig;
use crate::service::events::{Event, EventLog};
use crate::service::server::stopped;
use crate::service::store::Store;
use crate::service::store::statistics::Looked;
use omnilabel_keypoints::wire::{LabelMsg, Message};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often it is looked for labels.
const EVERY: Duration = Duration::from_secs(60);
/// Labels of one read, 8 MiB of the largest.
const READ: u32 = 256;
/// Labels of one look; of more, the newest. Counting is not to cost a busy centre more than that, and a part of many labels says the same.
const MOST: i64 = 65_536;
/// The same model on both sides: its scores as they are, its keypoints by the default τ_k.
const SCALE: Scale = Scale { instance: 0.0, keypoint: 0.2 };

/// Counts labels.
pub struct Watch {
    /// Where they are.
    pub store: Store,
    /// Where it is told when a device's labels begin to drift.
    pub events: Arc<EventLog>,
    /// What a drift is.
    pub config: DriftConfig,
}

impl Watch {
    /// Until `stop`.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        loop {
            if let Err(error) = self.look().await {
                let message = omnilabel_console::line(&error);
                self.events.emit(Event::Error { what: "label statistics".to_owned(), message });
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = stopped(&mut stop) => return,
            }
        }
    }

    /// Counts the labels that came since the last look, and compares those of the devices that sent some.
    ///
    /// # Errors
    /// What the store says; the next look begins where the last one that succeeded ended.
    pub async fn look(&self) -> anyhow::Result<()> {
        let (counted, last) = (self.store.last_counted().await?, self.store.closed_label().await?);
        let mut cursor = counted.max(last - MOST);
        let mut fresh: BTreeMap<(String, u64, i64), Counts> = BTreeMap::new();
        let mut models: BTreeMap<String, u64> = BTreeMap::new();
        // What comes meanwhile is for the next look.
        while cursor < last {
            let rows = self.store.uncounted(cursor, last, READ).await?;
            // Numbers without a label were drawn by commits that failed.
            cursor = rows.last().map_or(last, |newest| newest.id);
            for row in rows.into_iter().filter(|row| !row.refused) {
                let label = match LabelMsg::decode(&row.payload) {
                    Ok(label) => label,
                    Err(error) => {
                        tracing::warn!("the stored label {} cannot be read and is not counted: {error}", row.id);
                        continue;
                    }
                };
                models.insert(row.device.clone(), label.model);
                let period = period_of(row.received_ms.max(0).cast_unsigned());
                fresh.entry((row.device, label.model, period)).or_default().add(&label.label(), SCALE);
            }
        }
        if cursor > counted {
            self.store.count_labels(&fresh, cursor).await?;
            self.compare(models).await?;
        }
        Ok(())
    }

    async fn compare(&self, models: BTreeMap<String, u64>) -> anyhow::Result<()> {
        let before = self.store.drifts().await?;
        let mut looked = Vec::new();
        for (device, model) in models {
            let (drift, forget) = look(&self.store.periods(&device).await?, model, &self.config);
            if let Some(reason) = drift.trouble()
                && before.get(&device).and_then(FleetDrift::trouble).is_none()
            {
                self.events.emit(Event::Drift { device: device.clone(), model, reason });
            }
            looked.push(Looked { device, drift, forget });
        }
        Ok(self.store.save_drifts(&looked).await?)
    }
}

#[cfg(test)]
mod tests;
