//! Labels for somebody who looks at them: the newest or the most doubtful first, with what was said of them.

use super::look::MAX_ROWS;
use super::sql::Flag;
use super::{Store, StoreError, postgres};
use crate::service::hand::Verdict;
use omnilabel_keypoints::label::{Instance, Label};
use omnilabel_keypoints::wire::{LabelMsg, Message};

/// A label as it lies in the store, without its picture, and the newest word on it.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct LabelNote {
    /// Its number in the order of arrival.
    pub id: i64,
    /// Who made it.
    pub device: String,
    /// When it came, Unix ms.
    pub received_ms: i64,
    model: i64,
    /// Why it is kept but not trained on.
    pub refused: Option<String>,
    /// Whether its picture is here.
    #[sqlx(try_from = "Flag")]
    pub pictured: bool,
    /// The message as it came.
    pub payload: Vec<u8>,
    version: Option<i64>,
    /// What was said of it, unless it was taken back.
    pub verdict: Option<String>,
    /// Whom its picture shows, by who said it, as JSON.
    pub people: Option<String>,
    /// The role of who said it.
    pub role: Option<String>,
    /// When it was said, Unix ms.
    pub at_ms: Option<i64>,
}

impl LabelNote {
    /// Counter of the teacher's release.
    pub const fn model(&self) -> u64 {
        self.model.cast_unsigned()
    }

    /// The version of the newest word, 0 when none was ever said.
    pub const fn version(&self) -> u64 {
        match self.version {
            Some(version) => version.cast_unsigned(),
            None => 0,
        }
    }
}

/// The order in which labels are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// By their arrival.
    #[default]
    Newest,
    /// Those first on which the views agree least; of equals the lower score, then the newer one. Only labels that may be judged: their
    /// picture is here, and they are not refused.
    Doubt,
}

/// What was said of the wanted labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Judged {
    /// Anything or nothing.
    #[default]
    Any,
    /// Nothing, or it was taken back.
    Undecided,
    /// This.
    Is(Verdict),
}

/// Which labels are looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Of this device only.
    pub device: Option<String>,
    /// What was said of them.
    pub judged: Judged,
    /// Which come first.
    pub order: Order,
}

/// Labels that are sorted in one commit: the collector waits for it no longer than for one of its own.
const SORTED_AT_ONCE: u32 = 500;
/// Places of one thousandth of agreement: one for each thousandth of a score.
const SCORES: i64 = 1001;
/// Of labels that show nobody, after all others.
const LAST_PLACE: i64 = SCORES * SCORES;

/// Where a label stands among the doubtful ones: by its least sure person, of those above the device's τ where there are any.
fn place(label: &Label) -> i64 {
    let thousandths = |value: f32| (f64::from(value).clamp(0.0, 1.0) * 1000.0).round() as i64;
    let doubt = |i: &Instance| thousandths(i.detection.agreement()) * SCORES + thousandths(i.detection.score);
    let kept = label.instances.iter().filter(|instance| instance.kept).map(doubt).min();
    kept.or_else(|| label.instances.iter().map(doubt).min()).unwrap_or(LAST_PLACE)
}

/// What is given of label `l`.
const COLUMNS: &str = "l.id, l.device, l.received_ms, l.model, l.refused, l.payload, CAST(EXISTS (SELECT 1 FROM frames f \
                       WHERE f.device = l.device AND f.epoch = l.epoch AND f.sequence = l.sequence AND f.jpeg IS NOT NULL) AS INTEGER) \
                       AS pictured, v.version, v.verdict, v.people, v.role, v.at_ms";
/// The newest word on label `l`.
const NEWEST_WORD: &str =
    "LEFT JOIN verdicts v ON v.label = l.id AND v.version = (SELECT max(w.version) FROM verdicts w WHERE w.label = l.id)";

impl Look {
    /// What label `k` must be; $2 is the device, $3 the verdict.
    fn conditions(&self) -> String {
        let device = if self.device.is_some() { "k.device = $2" } else { "CAST($2 AS TEXT) IS NULL" };
        let newest = "v.label = k.id AND v.version = (SELECT max(w.version) FROM verdicts w WHERE w.label = k.id)";
        let word = match self.judged {
            Judged::Any => "CAST($3 AS TEXT) IS NULL".to_owned(),
            Judged::Undecided => {
                format!("CAST($3 AS TEXT) IS NULL AND NOT EXISTS (SELECT 1 FROM verdicts v WHERE v.verdict IS NOT NULL AND {newest})")
            }
            // The few that were ever judged so are found first.
            Judged::Is(_) => format!(
                "k.id IN (SELECT label FROM verdicts WHERE verdict = $3) \
                 AND EXISTS (SELECT 1 FROM verdicts v WHERE v.verdict = $3 AND {newest})"
            ),
        };
        format!("{device} AND {word}")
    }

    const fn verdict(&self) -> Option<&'static str> {
        match self.judged {
            Judged::Any | Judged::Undecided => None,
            Judged::Is(verdict) => Some(verdict.name()),
        }
    }
}

impl Store {
    /// Labels that come after the one with the number `after` in the order of `look`, from the first on without one; at most `limit` and at
    /// most [`MAX_ROWS`]. In the order of doubt these are of the labels that [`Store::sort_doubts`] has sorted.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn labels(&self, look: &Look, after: Option<i64>, limit: u32) -> Result<Vec<LabelNote>, StoreError> {
        let conditions = look.conditions();
        let (sql, from) = match look.order {
            // The inner query reads indices alone, which every row's number is part of.
            Order::Newest => (
                format!(
                    "SELECT {COLUMNS} FROM labels l {NEWEST_WORD} WHERE l.id IN (SELECT k.id FROM labels k WHERE k.id < $1 \
                     AND {conditions} AND CAST($5 AS BIGINT) IS NULL ORDER BY k.id DESC LIMIT $4) ORDER BY l.id DESC"
                ),
                None,
            ),
            Order::Doubt => (
                format!(
                    "SELECT {COLUMNS} FROM labels l JOIN doubts d ON d.label = l.id {NEWEST_WORD} WHERE l.id IN (SELECT k.id FROM doubts e \
                     JOIN labels k ON k.id = e.label WHERE e.place >= $5 AND (e.place > $5 OR e.label < $1) AND {conditions} \
                     AND k.refused IS NULL AND EXISTS (SELECT 1 FROM frames f WHERE f.device = k.device AND f.epoch = k.epoch \
                     AND f.sequence = k.sequence AND f.jpeg IS NOT NULL) ORDER BY e.place, e.label DESC LIMIT $4) \
                     ORDER BY d.place, l.id DESC"
                ),
                Some(match after {
                    Some(after) => self.place_of(after).await?.unwrap_or(LAST_PLACE + 1),
                    None => 0,
                }),
            ),
        };
        sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(after.unwrap_or(i64::MAX))
            .bind(look.device.as_deref())
            .bind(look.verdict())
            .bind(i64::from(limit.min(MAX_ROWS)))
            .bind(from)
            .fetch_all(&self.pool)
            .await
            .map_err(self.sql("read labels"))
    }

    /// The label with a number.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn label(&self, id: i64) -> Result<Option<LabelNote>, StoreError> {
        sqlx::query_as(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM labels l {NEWEST_WORD} WHERE l.id = $1")))
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .map_err(self.sql("read a label"))
    }

    async fn place_of(&self, label: i64) -> Result<Option<i64>, StoreError> {
        sqlx::query_scalar("SELECT place FROM doubts WHERE label = $1")
            .bind(label)
            .fetch_optional(&self.pool)
            .await
            .map_err(self.sql("read doubts"))
    }

    /// Sorts labels that have come with a picture since the last time, at most about `most`; whether that were all.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn sort_doubts(&self, most: u32) -> Result<bool, StoreError> {
        let mut sorted = 0;
        while sorted < most {
            let from = self.meta("doubts").await?.unwrap_or(0);
            if self.last_label().await? <= from {
                return Ok(true);
            }
            // What is sorted is not looked at again: none may come later with a lower number.
            let newest = self.closed_label().await?;
            let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(
                "SELECT id, payload FROM labels WHERE id > $1 AND id <= $2 AND wants_frame = 1 AND refused IS NULL ORDER BY id LIMIT $3",
            )
            .bind(from)
            .bind(newest)
            .bind(i64::from(SORTED_AT_ONCE))
            .fetch_all(&self.pool)
            .await
            .map_err(self.sql("read labels"))?;
            let is_last = rows.len() < SORTED_AT_ONCE as usize;
            sorted += rows.len() as u32;
            let up_to = if is_last { newest } else { rows.last().map_or(newest, |(id, _)| *id) };
            if up_to > from {
                // Not on a thread that the collector runs on. What cannot be read cannot be judged, and has no place.
                let read = |(id, payload): (i64, Vec<u8>)| Some((id, place(&LabelMsg::decode(&payload).ok()?.label())));
                let places = tokio::task::spawn_blocking(move || rows.into_iter().filter_map(read).collect::<Vec<_>>())
                    .await
                    .map_err(|error| self.content(format!("sorting labels by doubt: {error}")))?;
                self.put_places(&places, up_to).await?;
            }
            if is_last {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes places, and that labels up to `up_to` are sorted. Those that retention has dropped since get none.
    async fn put_places(&self, places: &[(i64, i64)], up_to: i64) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        if self.is_shared() {
            postgres::lock_rounds(&mut tx).await.map_err(self.sql("lock the rounds"))?;
        }
        for (label, place) in places {
            let sql = "INSERT INTO doubts (label, place) SELECT l.id, $2 FROM labels l WHERE l.id = $1 ON CONFLICT (label) DO NOTHING";
            sqlx::query(sql).bind(*label).bind(*place).execute(&mut *tx).await.map_err(self.sql("write doubts"))?;
        }
        super::set_meta(&mut tx, "doubts", up_to).await.map_err(self.sql("write meta"))?;
        tx.commit().await.map_err(self.sql("commit"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::verdicts::{Said, Word};
    use super::*;
    use crate::service::store::intake::Record;
    use crate::service::testing::{Home, World, encode, on_both};

    on_both! {
        labels_come_newest_first_page_by_page,
        the_most_doubtful_come_first_and_judged_ones_are_left_out,
    }

    async fn labels_come_newest_first_page_by_page(home: Home) {
        let world = home.world();
        let store = Store::open(&world.config, false).await.unwrap();
        store.commit(&world.labels("cam-1", 1..=5, 0.0, 0), 10).await.unwrap();
        store.commit(&world.labels("cam-2", 1..=3, 0.0, 4), 20).await.unwrap();
        // A label whose picture has not come.
        store.commit(&world.labels("cam-1", 6..=6, 0.0, 0)[..1], 30).await.unwrap();
        let look = async |device: Option<&str>, after, limit| {
            let which = Look { device: device.map(str::to_owned), ..Look::default() };
            let rows = store.labels(&which, after, limit).await.unwrap();
            rows.into_iter().map(|row| (row.id, row.device.clone(), row.received_ms, row.model(), row.pictured)).collect::<Vec<_>>()
        };
        let row = |id, device: &str, received_ms, model, pictured| (id, device.to_owned(), received_ms, model, pictured);
        assert_eq!(look(None, None, 2).await, [row(9, "cam-1", 30, 0, false), row(8, "cam-2", 20, 4, true)]);
        assert_eq!(look(None, Some(3), 100).await, [row(2, "cam-1", 10, 0, true), row(1, "cam-1", 10, 0, true)]);
        assert_eq!(look(Some("cam-2"), Some(8), 100).await, [row(7, "cam-2", 20, 4, true), row(6, "cam-2", 20, 4, true)]);
        assert_eq!(look(Some("cam-1"), None, 1).await, [row(9, "cam-1", 30, 0, false)]);
        assert_eq!(look(Some("cam-1' OR '1'='1"), None, 9).await, []);
        assert_eq!(look(None, None, 0).await, []);
        assert!(store.picture(1).await.unwrap().unwrap().starts_with(&[0xff, 0xd8]));
        assert_eq!((store.picture(9).await.unwrap(), store.picture(77).await.unwrap()), (None, None));
        assert!(store.label(9).await.unwrap().is_some_and(|label| !label.pictured && label.version() == 0));
        assert_eq!(store.label(77).await.unwrap(), None);
        let seen: Vec<_> = store.counts().await.unwrap().into_iter().map(|counts| (counts.device, counts.seen_ms)).collect();
        assert_eq!(seen, [("cam-1".to_owned(), 30), ("cam-2".to_owned(), 20)]);
        store.ping().await.unwrap();
    }

    /// The label of a sequence with other agreement and scores, and its picture.
    fn doubted(world: &World, sequence: u64, people: &[(u8, u16, bool)]) -> Vec<(String, Record)> {
        let mut records = world.labels("cam-1", sequence..=sequence, 0.0, 0);
        let Record::Label(row) = &mut records[0].1 else { panic!() };
        let mut message = LabelMsg::decode(&row.payload).unwrap();
        let one = message.instances[0].clone();
        message.instances.clear();
        for &(agreement, score, kept) in people {
            let mut instance = one.clone();
            instance.keypoints.iter_mut().for_each(|keypoint| keypoint.3 = agreement);
            (instance.score, instance.kept) = (score, kept);
            message.instances.push(instance).unwrap();
        }
        row.payload = encode(&message);
        records
    }

    async fn the_most_doubtful_come_first_and_judged_ones_are_left_out(home: Home) {
        let world = home.world();
        let store = Store::open(&world.config, false).await.unwrap();
        for (sequence, people) in [
            (1, vec![(200, 60_000, true)]),
            (2, vec![]),
            (3, vec![(250, 60_000, true), (90, 60_000, true)]),
            (4, vec![(200, 50_000, true), (10, 9_000, false)]),
            (5, vec![(200, 60_000, true)]),
            (6, vec![(20, 9_000, false)]),
        ] {
            store.commit(&doubted(&world, sequence, &people), 10).await.unwrap();
        }
        // Its picture has not come.
        store.commit(&doubted(&world, 7, &[(1, 60_000, true)])[..1], 10).await.unwrap();
        let none: [i64; 0] = [];
        let look = async |look: &Look, after, limit| {
            store.labels(look, after, limit).await.unwrap().into_iter().map(|row| row.id).collect::<Vec<_>>()
        };
        let doubt = |judged| Look { order: Order::Doubt, judged, ..Look::default() };
        assert_eq!(look(&doubt(Judged::Any), None, 9).await, none, "nothing is sorted yet");
        assert!(store.sort_doubts(100).await.unwrap());
        assert_eq!(look(&doubt(Judged::Any), None, 9).await, [6, 3, 4, 5, 1, 2]);
        assert_eq!(look(&doubt(Judged::Any), None, 2).await, [6, 3]);
        assert_eq!(look(&doubt(Judged::Any), Some(3), 3).await, [4, 5, 1]);
        assert_eq!(look(&doubt(Judged::Any), Some(5), 9).await, [1, 2], "of equals the newer one came first");
        assert_eq!(look(&doubt(Judged::Any), Some(77), 9).await, none, "after none that there is");

        let said = |verdict| Word { verdict, people: None, role: "operator", peer: String::new() };
        for label in [3, 5] {
            assert_eq!(store.say(label, 0, &said(Some(Verdict::Rejected)), 1).await.unwrap(), Said::Holds(1));
        }
        store.say(6, 0, &said(Some(Verdict::Accepted)), 1).await.unwrap();
        store.say(5, 1, &said(None), 2).await.unwrap();
        assert_eq!(look(&doubt(Judged::Undecided), None, 9).await, [4, 5, 1, 2]);
        assert_eq!(look(&doubt(Judged::Is(Verdict::Rejected)), None, 9).await, [3]);
        let newest = |judged, device: &str| Look { judged, device: Some(device.to_owned()), order: Order::Newest };
        assert_eq!(look(&newest(Judged::Undecided, "cam-1"), None, 3).await, [7, 5, 4]);
        assert_eq!(look(&newest(Judged::Is(Verdict::Accepted), "cam-1"), None, 3).await, [6]);
        assert_eq!(look(&newest(Judged::Is(Verdict::Accepted), "cam-2"), None, 3).await, none);
        let label = store.label(5).await.unwrap().unwrap();
        assert_eq!((label.version(), label.verdict, label.at_ms), (2, None, Some(2)), "taken back, and still counted");

        // What comes later is sorted in, in as many goes as it takes.
        store.commit(&world.labels("cam-2", 1..=1200, 0.0, 0), 10).await.unwrap();
        store.commit(&doubted(&world, 8, &[(15, 60_000, true)]), 10).await.unwrap();
        assert!(!store.sort_doubts(600).await.unwrap());
        assert!(store.sort_doubts(10_000).await.unwrap() && store.sort_doubts(1).await.unwrap());
        assert_eq!(look(&doubt(Judged::Any), None, 2).await[0], 1208);
    }
}
