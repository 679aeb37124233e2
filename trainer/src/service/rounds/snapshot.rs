//! What a round is trained on: labels of one teacher, and what people said of labels when the round began.

use super::{FETCHED, RoundState, Rounds};
use crate::service::dataset::{Exported, Exporter, picture_name, sync_dir};
use crate::service::events::Event;
use crate::service::store::ledger::{Selected, Selection};
use crate::service::store::verdicts::ByHand;
use anyhow::{Context, ensure};
use omnilabel_keypoints::geometry::Size;
use omnilabel_keypoints::wire::{FACES_BLURRED, LabelMsg, Message};
use std::path::Path;

/// Generated labels, in the round's folder.
pub(super) const GENERATED: &str = "generated";
/// Labels that people accepted or corrected.
pub(super) const HAND: &str = "hand";

impl Rounds {
    pub(super) const fn selection(state: &RoundState) -> Selection {
        Selection { teacher: state.teacher, after: state.after, up_to: state.up_to, verdicts: state.verdicts }
    }

    /// Whether the snapshot is written, and still there.
    pub(super) fn is_exported(&self, state: &RoundState) -> bool {
        let folder = self.folder(state.round);
        let is_there = |what: &str| folder.join(what).join("annotations.json").exists();
        state.dataset_sha256.is_some() && is_there(GENERATED) && (state.hand_sha256.is_none() || is_there(HAND))
    }

    /// Writes the snapshot: generated labels, and those by hand where anything is to be learnt from them.
    pub(super) async fn export(&self, state: &RoundState) -> anyhow::Result<(Exported, Option<Exported>)> {
        let by_hand = self.export_by_hand(state).await?;
        let generated = self.export_generated(state).await?;
        self.events.emit(Event::Exported {
            round: state.round,
            images: generated.images,
            instances: generated.instances,
            skipped: generated.skipped,
            sha256: generated.sha256.clone(),
            by_hand: by_hand.as_ref().map_or(0, |exported| exported.images),
            by_hand_sha256: by_hand.as_ref().map(|exported| exported.sha256.clone()),
        });
        Ok((generated, by_hand))
    }

    async fn export_generated(&self, state: &RoundState) -> anyhow::Result<Exported> {
        let thresholds = state.thresholds.context("the round has no thresholds")?;
        let root = self.folder(state.round).join(GENERATED);
        let ignore_from = thresholds.instance * (1.0 - self.config.calibration.ignore_margin as f32);
        let mut exporter = Exporter::new(&root, &self.manual, thresholds, ignore_from)?;
        for some in self.store.select(Self::selection(state)).await?.chunks(FETCHED) {
            let keys: Vec<_> = some.iter().map(Selected::at).collect();
            for (selected, jpeg) in some.iter().zip(self.store.jpegs(&keys).await?) {
                let message = LabelMsg::decode(&selected.payload).context("a stored label")?;
                let name = picture_name(&selected.device, selected.key);
                let faces_blurred = message.changes & FACES_BLURRED != 0;
                match jpeg {
                    Ok(jpeg) => tokio::task::block_in_place(|| exporter.add(&name, &message.label(), faces_blurred, &jpeg).map(drop))?,
                    Err(lost) => exporter.skip(&name, &lost),
                }
            }
        }
        let exported = finish(exporter, &root)?;
        ensure!(exported.images > 0, "none of the labels that nobody judged has a picture that can be decoded");
        Ok(exported)
    }

    async fn export_by_hand(&self, state: &RoundState) -> anyhow::Result<Option<Exported>> {
        let root = self.folder(state.round).join(HAND);
        let labels = self.store.by_hand(state.verdicts).await?;
        if labels.is_empty() && !root.exists() {
            return Ok(None);
        }
        let mut exporter = Exporter::by_hand(&root, &self.manual)?;
        for some in labels.chunks(FETCHED) {
            let keys: Vec<_> = some.iter().map(ByHand::at).collect();
            for (label, jpeg) in some.iter().zip(self.store.jpegs(&keys).await?) {
                let message = LabelMsg::decode(&label.payload).context("a stored label")?;
                let (name, size) = (picture_name(&label.device, label.key), Size { width: message.width, height: message.height });
                match jpeg {
                    Ok(jpeg) => tokio::task::block_in_place(|| exporter.add_by_hand(&name, size, &label.people, &jpeg).map(drop))?,
                    Err(lost) => exporter.skip(&name, &lost),
                }
            }
        }
        let exported = finish(exporter, &root)?;
        // Pictures without a labelled keypoint are not trained on (spec §2).
        Ok(Some(exported).filter(|exported| exported.keypoints > 0))
    }
}

fn finish(exporter: Exporter, root: &Path) -> anyhow::Result<Exported> {
    let exported = tokio::task::block_in_place(|| exporter.finish())?;
    sync_dir(root)?;
    Ok(exported)
}
