//! Rounds and releases: the state that a restarted service continues from.

use super::counts::is_there;
use super::sql::Flag;
use super::{Store, StoreError, postgres};
use crate::service::rounds::RoundState;
use crate::service::waves::{Standing, Waves};
use omnilabel_keypoints::wire::LabelKey;

/// Which labels a round is made from: those of one teacher, after `after` and up to `up_to` in the order of their arrival, with their
/// pictures, not refused, and not judged by a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Counter of the teacher's release.
    pub teacher: u64,
    /// Exclusive.
    pub after: i64,
    /// Inclusive.
    pub up_to: i64,
    /// Number of the last word of a person that counts, see [`Store::last_word`].
    pub verdicts: i64,
}

/// One label of a selection, without its picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Selected {
    /// Who made it.
    pub device: String,
    /// Its key.
    pub key: LabelKey,
    /// The message as it came.
    pub payload: Vec<u8>,
}

impl Selected {
    /// Whose it is, and its key.
    pub const fn at(&self) -> (&str, LabelKey) {
        (self.device.as_str(), self.key)
    }
}

/// One signed release.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct ReleaseRow {
    counter: i64,
    /// Name for people.
    pub name: String,
    /// Folder of the bundle.
    pub bundle: String,
    /// The signed bytes.
    pub manifest: Vec<u8>,
    /// The signature over them.
    pub signature: Vec<u8>,
    created_ms: i64,
    waves: Option<String>,
}

impl ReleaseRow {
    /// Its counter.
    pub const fn counter(&self) -> u64 {
        self.counter.cast_unsigned()
    }

    /// When it was signed, Unix ms.
    pub const fn created_ms(&self) -> u64 {
        self.created_ms.cast_unsigned()
    }

    /// How it goes out; one of a version of the centre that knew no waves went out to all.
    ///
    /// # Errors
    /// Text in the database that this code did not write.
    pub fn waves(&self) -> Result<Waves, serde_json::Error> {
        self.waves.as_deref().map_or_else(|| Ok(Waves::at_once(self.created_ms())), serde_json::from_str)
    }

    /// First 8 bytes of the SHA-256 of its bundle's manifest, as labels name it.
    pub fn model_hash(&self) -> Option<u64> {
        crate::service::sign::model_hash(&serde_json::from_slice(&self.manifest).ok()?)
    }
}

/// A counter that a device reports is believed only this far above our own: no device can push the counter out of range.
const MAX_COUNTER_LEAD: i64 = 1_000_000;

const SELECT: &str = "FROM labels l JOIN frames f USING (device, epoch, sequence) \
                      WHERE l.model = $1 AND l.id > $2 AND l.id <= $3 AND l.refused IS NULL AND f.jpeg IS NOT NULL \
                      AND NOT EXISTS (SELECT 1 FROM verdicts v WHERE v.label = l.id AND v.verdict IS NOT NULL \
                      AND v.id = (SELECT max(w.id) FROM verdicts w WHERE w.label = l.id AND w.id <= $4))";

macro_rules! selection {
    ($columns:literal, $tail:literal) => {
        sqlx::AssertSqlSafe(format!("SELECT {} {SELECT} {}", $columns, $tail))
    };
}

impl Store {
    /// The number of labels in a selection.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn selected(&self, which: Selection) -> Result<u64, StoreError> {
        let count: i64 = sqlx::query_scalar(selection!("count(*)", ""))
            .bind(which.teacher.cast_signed())
            .bind(which.after)
            .bind(which.up_to)
            .bind(which.verdicts)
            .fetch_one(&self.pool)
            .await
            .map_err(self.sql("count labels"))?;
        Ok(count.cast_unsigned())
    }

    /// When the first label of a selection came, Unix ms.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn oldest(&self, which: Selection) -> Result<Option<u64>, StoreError> {
        let received: Option<i64> = sqlx::query_scalar(selection!("l.received_ms", "ORDER BY l.id LIMIT 1"))
            .bind(which.teacher.cast_signed())
            .bind(which.after)
            .bind(which.up_to)
            .bind(which.verdicts)
            .fetch_optional(&self.pool)
            .await
            .map_err(self.sql("read labels"))?;
        Ok(received.map(i64::cast_unsigned))
    }

    /// Asks for a round with whatever labels there are.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn want_round(&self) -> Result<(), StoreError> {
        self.set_meta("round_wanted", 1).await
    }

    /// Whether somebody asked for a round that has not begun.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn round_is_wanted(&self) -> Result<bool, StoreError> {
        Ok(self.meta("round_wanted").await? == Some(1))
    }

    /// The labels of a selection in the order of their keys, so that the same labels make the same data set.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn select(&self, which: Selection) -> Result<Vec<Selected>, StoreError> {
        let rows: Vec<(String, i64, i64, Vec<u8>)> =
            sqlx::query_as(selection!("l.device, l.epoch, l.sequence, l.payload", "ORDER BY l.device, l.epoch, l.sequence"))
                .bind(which.teacher.cast_signed())
                .bind(which.after)
                .bind(which.up_to)
                .bind(which.verdicts)
                .fetch_all(&self.pool)
                .await
                .map_err(self.sql("read labels"))?;
        Ok(rows
            .into_iter()
            .map(|(device, epoch, sequence, payload)| Selected {
                device,
                key: LabelKey { epoch: epoch.cast_unsigned(), sequence: sequence.cast_unsigned() },
                payload,
            })
            .collect())
    }

    /// The messages of all labels that a selection could be made from, with or without a picture, in the order of their arrival: what
    /// the thresholds are matched to, so that a policy of sending only some pictures does not bend them.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn payloads(&self, which: Selection) -> Result<Vec<Vec<u8>>, StoreError> {
        sqlx::query_scalar("SELECT payload FROM labels WHERE model = $1 AND id > $2 AND id <= $3 AND refused IS NULL ORDER BY id")
            .bind(which.teacher.cast_signed())
            .bind(which.after)
            .bind(which.up_to)
            .fetch_all(&self.pool)
            .await
            .map_err(self.sql("read labels"))
    }

    /// The last label's number in the order of arrival, 0 without any. Where several collect, one with a lower number may still come.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn last_label(&self) -> Result<i64, StoreError> {
        sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM labels").fetch_one(&self.pool).await.map_err(self.sql("read labels"))
    }

    /// The same, and none comes any more with a number up to it: what a round may begin with. Commits wait for it.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn closed_label(&self) -> Result<i64, StoreError> {
        if self.is_shared() { postgres::closed_label(&self.pool).await.map_err(self.sql("read labels")) } else { self.last_label().await }
    }

    /// Sum of the devices' score histograms under one model: frames seen, and instances per bin; empty without any.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn histogram(&self, model: u64) -> Result<(u64, Vec<u64>), StoreError> {
        let rows: Vec<(i64, String)> = sqlx::query_as("SELECT frames, scores FROM histograms WHERE model = $1")
            .bind(model.cast_signed())
            .fetch_all(&self.pool)
            .await
            .map_err(self.sql("read histograms"))?;
        let (mut frames, mut sum) = (0_u64, Vec::new());
        for (seen, scores) in rows {
            let scores: Vec<u32> = serde_json::from_str(&scores).map_err(|e| self.content(format!("histograms: {e}")))?;
            frames = frames.saturating_add(seen.cast_unsigned());
            sum.resize(sum.len().max(scores.len()), 0_u64);
            sum.iter_mut().zip(scores).for_each(|(total, n)| *total += u64::from(n));
        }
        Ok((frames, sum))
    }

    /// All rounds, oldest first.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn rounds(&self) -> Result<Vec<RoundState>, StoreError> {
        let rows: Vec<(i64, String)> = sqlx::query_as("SELECT round, state FROM rounds ORDER BY round")
            .fetch_all(&self.pool)
            .await
            .map_err(self.sql("read rounds"))?;
        rows.into_iter()
            .map(|(round, state)| serde_json::from_str(&state).map_err(|e| self.content(format!("round {round}: {e}"))))
            .collect()
    }

    /// Writes the state of a round, new or not.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn save_round(&self, state: &RoundState) -> Result<(), StoreError> {
        self.write_round(state, false).await
    }

    /// Writes the state of a new round, and takes the wish for one as fulfilled.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn begin_round(&self, state: &RoundState) -> Result<(), StoreError> {
        self.write_round(state, true).await
    }

    async fn write_round(&self, state: &RoundState, is_new: bool) -> Result<(), StoreError> {
        let json = serde_json::to_string(state).map_err(|e| self.content(e.to_string()))?;
        let mut tx = self.write().await?;
        if self.is_shared() {
            postgres::lock_rounds(&mut tx).await.map_err(self.sql("lock the rounds"))?;
        }
        sqlx::query(SAVE_ROUND)
            .bind(state.round.cast_signed())
            .bind(state.up_to)
            .bind(i64::from(state.ended))
            .bind(json)
            .execute(&mut *tx)
            .await
            .map_err(self.sql("write a round"))?;
        if is_new {
            sqlx::query("DELETE FROM meta WHERE key = 'round_wanted'").execute(&mut *tx).await.map_err(self.sql("begin a round"))?;
        }
        tx.commit().await.map_err(self.sql("commit a round"))
    }

    /// The counter that the next release gets: above every one that was signed here and every one that a device knows.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn next_counter(&self) -> Result<u64, StoreError> {
        let (own, theirs): (i64, i64) = sqlx::query_as(
            "SELECT coalesce((SELECT max(counter) FROM releases), 0), coalesce((SELECT max(told.counter) FROM \
             (SELECT confirmed AS counter FROM devices UNION ALL SELECT trial FROM devices UNION ALL SELECT refused FROM devices) told \
             WHERE told.counter <= coalesce((SELECT max(counter) FROM releases), 0) + $1), 0)",
        )
        .bind(MAX_COUNTER_LEAD)
        .fetch_one(&self.pool)
        .await
        .map_err(self.sql("read releases"))?;
        Ok(own.max(theirs).cast_unsigned() + 1)
    }

    /// Records a signed release with the way it goes out, together with the end of the round it comes from.
    ///
    /// # Errors
    /// See [`StoreError`]; a counter that is taken is an error.
    pub async fn add_release(
        &self,
        counter: u64,
        name: &str,
        bundle: &std::path::Path,
        signed: (&[u8], &[u8]),
        round: Option<&RoundState>,
        waves: &Waves,
    ) -> Result<(), StoreError> {
        let bundle = bundle.to_str().ok_or_else(|| self.content(format!("the path {} is not UTF-8", bundle.display())))?;
        let waves_json = serde_json::to_string(waves).map_err(|e| self.content(e.to_string()))?;
        let mut tx = self.write().await?;
        sqlx::query(
            "INSERT INTO releases (counter, name, bundle, manifest, signature, created_ms, round, waves) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(counter.cast_signed())
        .bind(name)
        .bind(bundle)
        .bind(signed.0)
        .bind(signed.1)
        .bind(waves.since_ms.cast_signed())
        .bind(round.map(|r| r.round.cast_signed()))
        .bind(waves_json)
        .execute(&mut *tx)
        .await
        .map_err(self.sql("write a release"))?;
        if let Some(state) = round {
            let json = serde_json::to_string(state).map_err(|e| self.content(e.to_string()))?;
            sqlx::query(SAVE_ROUND)
                .bind(state.round.cast_signed())
                .bind(state.up_to)
                .bind(i64::from(state.ended))
                .bind(json)
                .execute(&mut *tx)
                .await
                .map_err(self.sql("write a round"))?;
        }
        tx.commit().await.map_err(self.sql("commit a release"))
    }

    /// The newest release.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn latest_release(&self) -> Result<Option<ReleaseRow>, StoreError> {
        self.newest_below(i64::MAX).await
    }

    async fn newest_below(&self, counter: i64) -> Result<Option<ReleaseRow>, StoreError> {
        let sql = "SELECT counter, name, bundle, manifest, signature, created_ms, waves FROM releases \
                   WHERE counter < $1 ORDER BY counter DESC LIMIT 1";
        sqlx::query_as(sql).bind(counter).fetch_optional(&self.pool).await.map_err(self.sql("read releases"))
    }

    /// The release that the fleet runs: the newest that all waves have proved; of those that went out to all at once, the newest that no
    /// device refused, or that some device confirmed in spite of it. `None` is the provisioned model.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn running_release(&self) -> Result<Option<ReleaseRow>, StoreError> {
        self.running_before(i64::MAX.cast_unsigned()).await
    }

    /// The release that ran before the one with this counter, see [`Store::running_release`]. `None` is the provisioned model.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn running_before(&self, counter: u64) -> Result<Option<ReleaseRow>, StoreError> {
        let mut below = counter.cast_signed();
        while let Some(release) = self.newest_below(below).await? {
            below = release.counter;
            let waves = release.waves().map_err(|error| self.content(format!("waves of release {below}: {error}")))?;
            if waves.complete && (waves.shares.len() > 1 || self.is_taken(below).await?) {
                return Ok(Some(release));
            }
        }
        Ok(None)
    }

    /// Whether no device refused a release, or some device confirmed it.
    async fn is_taken(&self, counter: i64) -> Result<bool, StoreError> {
        let sql = "SELECT (SELECT count(*) FROM devices WHERE refused = $1), (SELECT count(*) FROM devices WHERE confirmed = $1)";
        let found = sqlx::query_as(sql).bind(counter).fetch_one(&self.pool).await;
        let (refused, confirmed): (i64, i64) = found.map_err(self.sql("read devices"))?;
        Ok(refused == 0 || confirmed > 0)
    }

    /// Writes how a release goes out, unless somebody else did since `release` was read; whether it was written.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn save_waves(&self, release: &ReleaseRow, waves: &Waves) -> Result<bool, StoreError> {
        let json = serde_json::to_string(waves).map_err(|e| self.content(e.to_string()))?;
        let written = sqlx::query("UPDATE releases SET waves = $1 WHERE counter = $2 AND waves IS NOT DISTINCT FROM $3")
            .bind(json)
            .bind(release.counter)
            .bind(release.waves.as_deref())
            .execute(&self.pool)
            .await
            .map_err(self.sql("write the waves of a release"))?;
        Ok(written.rows_affected() > 0)
    }

    /// What every device says of the models that it runs.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn standings(&self, now_ms: u64) -> Result<Vec<Standing>, StoreError> {
        type Row = (String, Flag, i64, i64, Option<i64>, Option<i64>, Option<i64>, Option<i64>);
        let sql = "SELECT device, online, seen_ms, confirmed, trial, refused, label_model, label_hash FROM devices";
        let rows: Vec<Row> = sqlx::query_as(sql).fetch_all(&self.pool).await.map_err(self.sql("read devices"))?;
        Ok(rows
            .into_iter()
            .map(|(device, online, seen_ms, confirmed, trial, refused, model, hash)| Standing {
                device,
                online: is_there(online.into(), seen_ms.cast_unsigned(), now_ms),
                confirmed: confirmed.cast_unsigned(),
                trial: trial.map(i64::cast_unsigned),
                refused: refused.map(i64::cast_unsigned),
                labelled: model.zip(hash).map(|(model, hash)| (model.cast_unsigned(), hash.cast_unsigned())),
            })
            .collect())
    }

    /// Names the bundles of releases and rounds below another state folder.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn move_bundles(&self, from: &std::path::Path, to: &std::path::Path) -> Result<(), StoreError> {
        let text = |path: &std::path::Path| {
            path.to_str().map(str::to_owned).ok_or_else(|| self.content(format!("the path {} is not UTF-8", path.display())))
        };
        let (old, new) = (text(from)?, text(to)?);
        let sql = "UPDATE releases SET bundle = $2 || substr(bundle, length($1) + 1) WHERE substr(bundle, 1, length($1) + 1) = $1 || '/'";
        sqlx::query(sql).bind(&old).bind(&new).execute(&self.pool).await.map_err(self.sql("move bundles"))?;
        for mut round in self.rounds().await? {
            if let Ok(inside) = round.running.strip_prefix(from) {
                round.running = to.join(inside);
                self.save_round(&round).await?;
            }
        }
        Ok(())
    }
}

const SAVE_ROUND: &str = "INSERT INTO rounds (round, last_label, ended, state) VALUES ($1, $2, $3, $4) ON CONFLICT (round) DO UPDATE \
                          SET last_label = excluded.last_label, ended = excluded.ended, state = excluded.state";
