//! What people said of labels, each word once: the newest holds, and what held when a round began can still be read.

use super::{Store, StoreError, postgres, sql};
use crate::service::hand::{Person, Verdict};
use omnilabel_keypoints::wire::LabelKey;

/// A word to be written down.
#[derive(Clone, Debug, PartialEq)]
pub struct Word {
    /// `None` takes back what was said before.
    pub verdict: Option<Verdict>,
    /// Whom the picture shows, where the label joins the manual set.
    pub people: Option<Vec<Person>>,
    /// The role of who says it.
    pub role: &'static str,
    /// From where, an address.
    pub peer: String,
}

/// What became of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It holds, under this version.
    Holds(u64),
    /// Another one was said since; nothing was written. Its version.
    Stale(u64),
    /// The label or its picture is not here (any more); nothing was written.
    Gone,
}

/// A label that people know to be right, without its picture.
#[derive(Clone, Debug, PartialEq)]
pub struct ByHand {
    /// Who made it.
    pub device: String,
    /// Its key.
    pub key: LabelKey,
    /// The message as it came.
    pub payload: Vec<u8>,
    /// Whom its picture shows.
    pub people: Vec<Person>,
}

impl ByHand {
    /// Whose it is, and its key.
    pub const fn at(&self) -> (&str, LabelKey) {
        (self.device.as_str(), self.key)
    }
}

impl Store {
    /// Writes down a word on a label, if the version `seen` (0: none) is still the newest, and the label's picture is here.
    ///
    /// Words are said one after the other, and none while retention drops something: a judged label keeps its picture, and a word's number
    /// is seen only when all lower ones are.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn say(&self, label: i64, seen: u64, word: &Word, now_ms: u64) -> Result<Said, StoreError> {
        let people = word.people.as_ref().map(serde_json::to_string).transpose().map_err(|e| self.content(e.to_string()))?;
        let mut tx = self.write().await?;
        if self.is_shared() {
            postgres::lock_rounds(&mut tx).await.map_err(self.sql("lock the rounds"))?;
        }
        let known: Option<i64> = sqlx::query_scalar(
            "SELECT (SELECT coalesce(max(v.version), 0) FROM verdicts v WHERE v.label = l.id) FROM labels l \
             JOIN frames f USING (device, epoch, sequence) WHERE l.id = $1 AND f.jpeg IS NOT NULL",
        )
        .bind(label)
        .fetch_optional(&mut *tx)
        .await
        .map_err(self.sql("read a verdict"))?;
        let Some(newest) = known else { return Ok(Said::Gone) };
        if newest.cast_unsigned() != seen {
            return Ok(Said::Stale(newest.cast_unsigned()));
        }
        sqlx::query("INSERT INTO verdicts (label, version, verdict, people, role, peer, at_ms) VALUES ($1, $2, $3, $4, $5, $6, $7)")
            .bind(label)
            .bind(newest + 1)
            .bind(word.verdict.map(Verdict::name))
            .bind(people)
            .bind(word.role)
            .bind(sql::text(&word.peer).into_owned())
            .bind(now_ms.cast_signed())
            .execute(&mut *tx)
            .await
            .map_err(self.sql("write a verdict"))?;
        tx.commit().await.map_err(self.sql("commit"))?;
        Ok(Said::Holds(seen + 1))
    }

    /// The number of the last word, 0 without any. None with a number up to it comes any more, see [`Store::say`].
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn last_word(&self) -> Result<i64, StoreError> {
        sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM verdicts").fetch_one(&self.pool).await.map_err(self.sql("read verdicts"))
    }

    /// The labels that were accepted or corrected when `up_to` was the number of the last word, in the order of their keys.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn by_hand(&self, up_to: i64) -> Result<Vec<ByHand>, StoreError> {
        let rows: Vec<(String, i64, i64, Vec<u8>, String)> = sqlx::query_as(
            "SELECT l.device, l.epoch, l.sequence, l.payload, v.people FROM verdicts v JOIN labels l ON l.id = v.label \
             WHERE v.people IS NOT NULL AND v.id = (SELECT max(w.id) FROM verdicts w WHERE w.label = v.label AND w.id <= $1) \
             ORDER BY l.device, l.epoch, l.sequence",
        )
        .bind(up_to)
        .fetch_all(&self.pool)
        .await
        .map_err(self.sql("read verdicts"))?;
        rows.into_iter()
            .map(|(device, epoch, sequence, payload, people)| {
                let key = LabelKey { epoch: epoch.cast_unsigned(), sequence: sequence.cast_unsigned() };
                let people = serde_json::from_str(&people)
                    .map_err(|e| self.content(format!("the verdict on label {sequence} of {device}, outbox {epoch:016x}: {e}")))?;
                Ok(ByHand { device, key, payload, people })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::store::ledger::Selection;
    use crate::service::testing::{Home, on_both};

    on_both! { the_newest_word_holds_and_what_held_before_can_be_read, no_judged_label_is_dropped }

    fn word(verdict: Option<Verdict>, people: Option<Vec<Person>>) -> Word {
        Word { verdict, people, role: "operator", peer: "127.0.0.1".to_owned() }
    }

    async fn the_newest_word_holds_and_what_held_before_can_be_read(home: Home) {
        let world = home.world();
        let store = Store::open(&world.config, false).await.unwrap();
        store.commit(&world.labels("cam-1", 1..=4, 0.0, 0), 10).await.unwrap();
        let person = Person { rect: [1.0, 2.0, 30.0, 40.0], keypoints: vec![(3.0, 4.0, 2); 4] };
        let right = word(Some(Verdict::Accepted), Some(vec![person.clone()]));
        let nobody = word(Some(Verdict::Corrected), Some(Vec::new()));
        let wrong = word(Some(Verdict::Rejected), None);
        assert_eq!(store.last_word().await.unwrap(), 0);
        assert_eq!(store.say(2, 0, &right, 20).await.unwrap(), Said::Holds(1));
        assert_eq!(store.say(2, 0, &wrong, 21).await.unwrap(), Said::Stale(1), "somebody was faster");
        assert_eq!(store.say(2, 5, &wrong, 21).await.unwrap(), Said::Stale(1));
        assert_eq!(store.say(3, 0, &wrong, 22).await.unwrap(), Said::Holds(1));
        let before = store.last_word().await.unwrap();
        assert_eq!(store.say(2, 1, &nobody, 23).await.unwrap(), Said::Holds(2));
        assert_eq!(store.say(3, 1, &word(None, None), 24).await.unwrap(), Said::Holds(2));
        assert_eq!(store.say(77, 0, &wrong, 25).await.unwrap(), Said::Gone, "there is no such label");
        let bare = world.labels("cam-2", 1..=1, 0.0, 0);
        store.commit(&bare[..1], 26).await.unwrap();
        assert_eq!(store.say(5, 0, &wrong, 27).await.unwrap(), Said::Gone, "its picture has not come");
        let now = store.last_word().await.unwrap();

        let by_hand = async |up_to| {
            let found = store.by_hand(up_to).await.unwrap();
            found.into_iter().map(|hand| (hand.key.sequence, hand.people)).collect::<Vec<_>>()
        };
        assert_eq!(by_hand(before).await, [(2, vec![person])]);
        assert_eq!(by_hand(now).await, [(2, vec![])]);
        assert_eq!(by_hand(0).await, []);
        let generated = async |verdicts| {
            let which = Selection { teacher: 0, after: 0, up_to: i64::MAX, verdicts };
            let labels: Vec<u64> = store.select(which).await.unwrap().into_iter().map(|label| label.key.sequence).collect();
            assert_eq!(store.selected(which).await.unwrap(), labels.len() as u64);
            labels
        };
        assert_eq!(generated(0).await, [1, 2, 3, 4]);
        assert_eq!(generated(before).await, [1, 4], "a label with a verdict is none of the generated ones");
        assert_eq!(generated(now).await, [1, 3, 4], "what was said of the third was taken back");
    }

    async fn no_judged_label_is_dropped(home: Home) {
        let world = home.world();
        let store = Store::open(&world.config, false).await.unwrap();
        store.commit(&world.labels("cam-1", 1..=3, 0.0, 0), 10).await.unwrap();
        assert!(store.sort_doubts(100).await.unwrap());
        let in_use = store.in_use().await.unwrap();
        let pictures = store.pictures_after(in_use, None).await.unwrap();
        // They are said after retention has looked at them.
        store.say(1, 0, &word(Some(Verdict::Rejected), None), 20).await.unwrap();
        store.say(2, 0, &word(Some(Verdict::Rejected), None), 20).await.unwrap();
        store.say(2, 1, &word(None, None), 21).await.unwrap();
        assert_eq!(store.drop_pictures(&pictures[..2].iter().collect::<Vec<_>>()).await.unwrap().pictures, 0);
        assert_eq!(store.drop_labels(&[1, 2, 3]).await.unwrap().labels, 1);
        let left: Vec<i64> = store.labels_after(in_use, 0).await.unwrap().into_iter().filter(|label| label.judged).map(|l| l.id).collect();
        assert_eq!(left, [1, 2], "what was taken back was judged, too");
        let doubts: i64 = sqlx::query_scalar("SELECT count(*) FROM doubts").fetch_one(store.pool()).await.unwrap();
        assert_eq!(doubts, 2);
        assert_eq!(store.recount().await.unwrap(), Vec::<String>::new());
    }
}
