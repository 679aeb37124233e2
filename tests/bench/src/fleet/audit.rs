//! What the centre has, from its database and its event log, held against what the devices made.

use super::canary::{Canary, Step, Story};
use super::device::DeviceReport;
use super::outbox::Entry;
use super::shared::Shared;
use super::update::Persona;
use anyhow::{Context, Result};
use omnilabel_keypoints::wire::LabelKey;
use omnilabel_trainer::service::waves::Waves;
use omnilabel_trainer::service::{DeviceCounts, Event, EventReader, read_counts};
use serde::Serialize;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// One outbox in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Rows.
    pub(crate) rows: u64,
    /// Different sequences.
    pub(crate) keys: u64,
    /// The highest sequence.
    pub(crate) high: u64,
}

/// What the database says.
pub(crate) struct Stored {
    /// By device and outbox epoch.
    pub(crate) outboxes: BTreeMap<(String, u64), Kept>,
    /// Labels by the second since 1970 in which they came.
    pub(crate) by_second: BTreeMap<u64, u64>,
    /// Labels whose picture is not there.
    pub(crate) unsettled: u64,
    /// Some labels, to be held against what was made.
    pub(crate) sample: Vec<Sample>,
    /// Every device's account, as the centre gives it.
    pub(crate) counts: Vec<DeviceCounts>,
}

/// One label of every so many is compared byte by byte.
const SAMPLED: i64 = 97;

/// A label as it lies in the database.
#[derive(sqlx::FromRow)]
pub(crate) struct Sample {
    device: String,
    epoch: i64,
    sequence: i64,
    model: i64,
    captured_ms: i64,
    payload: Vec<u8>,
}

/// How many of the labels have other bytes than the devices made; how many were compared.
///
/// # Errors
/// A label that cannot be made.
pub(crate) fn compare(sample: &[Sample], shared: &Shared) -> Result<(u64, u64)> {
    let mut altered = 0;
    for row in sample {
        let index = row.device.strip_prefix("sim-").and_then(|number| number.parse().ok());
        let made = match index {
            Some(index) => {
                let key = LabelKey { epoch: row.epoch.cast_unsigned(), sequence: row.sequence.cast_unsigned() };
                let committed_ms = row.captured_ms.cast_unsigned().saturating_sub(shared.unix(0));
                Some(shared.press.messages(index, key, Entry { committed_ms, model: row.model.cast_unsigned() })?.0)
            }
            None => None,
        };
        altered += u64::from(made.as_ref() != Some(&row.payload));
    }
    Ok((altered, sample.len() as u64))
}

async fn open(database: &Path) -> Result<SqliteConnection> {
    let options = SqliteConnectOptions::new().filename(database).read_only(true).busy_timeout(Duration::from_secs(30));
    options.connect().await.with_context(|| database.display().to_string())
}

/// Labels that devices said to have committed in the outbox that they had in the end, and to have still, by their last status as the centre
/// has it. Of an outbox that was replaced the last status may have gone with a broker that forgot it: nobody says it again.
pub(crate) async fn stated(state: &Path, devices: &[DeviceReport]) -> Result<(u64, u64)> {
    let mut database = open(&state.join("centre.sqlite")).await?;
    let rows: Vec<(String, i64, i64, i64)> =
        sqlx::query_as("SELECT device, epoch, committed, pending FROM epochs").fetch_all(&mut database).await?;
    let said: BTreeMap<(String, u64), (u64, u64)> = rows
        .into_iter()
        .map(|(device, epoch, committed, pending)| ((device, epoch.cast_unsigned()), (committed.cast_unsigned(), pending.cast_unsigned())))
        .collect();
    let last = devices.iter().filter_map(|device| Some((device.name.clone(), device.epochs.last()?.0)));
    Ok(last.fold((0, 0), |sum, outbox| {
        let (committed, pending) = said.get(&outbox).copied().unwrap_or_default();
        (sum.0 + committed, sum.1 + pending)
    }))
}

/// Where the newest release stands by the centre's database; `None` without one.
///
/// # Errors
/// The database cannot be read, or is not the centre's.
pub(crate) async fn waves(state: &Path) -> Result<Option<Waves>> {
    let mut database = open(&state.join("centre.sqlite")).await?;
    let row: Option<(Option<String>,)> =
        sqlx::query_as("SELECT waves FROM releases ORDER BY counter DESC LIMIT 1").fetch_optional(&mut database).await?;
    row.and_then(|(waves,)| waves).map(|text| serde_json::from_str(&text)).transpose().context("the waves of the release")
}

/// Reads everything; the centre may run.
pub(crate) async fn read(state: &Path) -> Result<Stored> {
    let mut database = open(&state.join("centre.sqlite")).await?;
    let rows: Vec<(String, i64, i64, i64, i64)> = sqlx::query_as(
        "SELECT device, epoch, count(*), count(DISTINCT sequence), max(sequence) FROM labels GROUP BY device, epoch ORDER BY device, epoch",
    )
    .fetch_all(&mut database)
    .await?;
    let kept = |(device, epoch, rows, keys, high): (String, i64, i64, i64, i64)| {
        ((device, epoch.cast_unsigned()), Kept { rows: rows.cast_unsigned(), keys: keys.cast_unsigned(), high: high.cast_unsigned() })
    };
    let seconds: Vec<(i64, i64, i64)> =
        sqlx::query_as("SELECT received_ms / 1000, count(*), count(*) - sum(settled) FROM labels GROUP BY 1 ORDER BY 1")
            .fetch_all(&mut database)
            .await?;
    let sample = sqlx::query_as("SELECT device, epoch, sequence, model, captured_ms, payload FROM labels WHERE id % ? = 0")
        .bind(SAMPLED)
        .fetch_all(&mut database)
        .await?;
    Ok(Stored {
        sample,
        outboxes: rows.into_iter().map(kept).collect(),
        by_second: seconds.iter().map(|&(second, labels, _)| (second.cast_unsigned(), labels.cast_unsigned())).collect(),
        unsettled: seconds.iter().map(|&(_, _, unsettled)| unsettled.cast_unsigned()).sum(),
        counts: read_counts(state).await?,
    })
}

/// What became of the labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Labels {
    /// Committed on the devices.
    pub(crate) made: u64,
    /// Different labels in the database.
    pub(crate) stored: u64,
    /// Made and not stored.
    pub(crate) lost: u64,
    /// Stored under a key that another row has, too; the database's schema forbids it.
    pub(crate) twice: u64,
    /// Stored and made by nobody.
    pub(crate) foreign: u64,
    /// Stored without the picture that they announced.
    pub(crate) unsettled: u64,
    /// Still in an outbox.
    pub(crate) pending: u64,
    /// By the centre's own account: committed, neither stored nor evicted.
    pub(crate) missing: u64,
    /// Came again with other bytes.
    pub(crate) conflicts: u64,
    /// Came again.
    pub(crate) repeated: u64,
    /// Of those in the database, compared byte by byte with what was made.
    pub(crate) compared: u64,
    /// Of these other than they were made.
    pub(crate) altered: u64,
    /// Committed in the outboxes that devices had in the end.
    pub(crate) made_last: u64,
    /// What the devices said last of these, by the centre: committed, and still waiting.
    pub(crate) stated: (u64, u64),
    /// Were sent again, as devices do without being told to.
    pub(crate) again: u64,
    /// Outboxes, of all devices.
    pub(crate) outboxes: u64,
}

impl Labels {
    /// Holds the one against the other.
    pub(crate) fn settle(devices: &[DeviceReport], stored: &Stored) -> Self {
        let made: BTreeMap<(String, u64), u64> = devices
            .iter()
            .flat_map(|device| device.epochs.iter().map(|&(epoch, committed)| ((device.name.clone(), epoch), committed)))
            .collect();
        let mut labels = Self {
            made: made.values().sum(),
            made_last: devices.iter().filter_map(|device| device.epochs.last()).map(|(_, committed)| committed).sum(),
            unsettled: stored.unsettled,
            pending: devices.iter().map(|device| device.pending).sum(),
            missing: stored.counts.iter().map(DeviceCounts::missing).sum(),
            conflicts: stored.counts.iter().map(|count| count.conflicts).sum(),
            repeated: stored.counts.iter().map(|count| count.duplicates).sum(),
            again: devices.iter().map(|device| device.again).sum(),
            outboxes: made.len() as u64,
            ..Self::default()
        };
        for (outbox, committed) in &made {
            let keys = stored.outboxes.get(outbox).map_or(0, |kept| kept.keys);
            labels.lost += committed.saturating_sub(keys);
        }
        for (outbox, kept) in &stored.outboxes {
            labels.stored += kept.keys;
            labels.twice += kept.rows - kept.keys;
            let committed = made.get(outbox).copied().unwrap_or(0);
            // Sequences are given without gaps from 1 on.
            let beyond = u64::from(kept.high > committed);
            labels.foreign += kept.keys.saturating_sub(committed).max(beyond);
        }
        labels
    }
}

/// What the centre said, as far as it is counted.
pub(crate) struct Said {
    reader: EventReader,
    /// Counter of the release, and when it was made, Unix ms.
    pub(crate) released: Option<(u64, u64)>,
    /// How it went out.
    pub(crate) story: Story,
    /// When a device first said that it confirmed which release, Unix ms.
    confirmed: BTreeMap<(String, u64), u64>,
    /// How often the centre was connected to the broker.
    pub(crate) connections: u64,
    /// Its errors by what it was doing, and how many messages it refused, by life.
    pub(crate) troubles: BTreeMap<String, u64>,
}

impl Said {
    /// Of the centre with this state folder, whose first wave is so many thousandths of the fleet.
    pub(crate) fn new(state: &Path, first: u16) -> Self {
        let reader = EventReader::new(state);
        Self { reader, released: None, story: Story::new(first), confirmed: BTreeMap::new(), connections: 0, troubles: BTreeMap::new() }
    }

    /// Reads what is new.
    pub(crate) fn poll(&mut self) -> Result<()> {
        for stamped in self.reader.poll().context("events.jsonl")? {
            match stamped.event {
                Event::Released { counter, .. } => self.released = Some((counter, stamped.at_ms)),
                Event::Broker { connected: true, .. } => self.connections += 1,
                Event::Broker { connected: false, reason } => *self.troubles.entry(format!("connection lost: {reason}")).or_default() += 1,
                Event::Wave { share, halted, complete, reason, .. } => {
                    self.story.told(Step { at_ms: stamped.at_ms, share, halted, complete, reason });
                }
                Event::DeviceModel { device, confirmed, trial, refused, .. } => {
                    // There is one release.
                    if confirmed > 0 || trial.is_some() || refused.is_some() {
                        self.story.heard(&device);
                    }
                    if confirmed > 0 {
                        self.story.confirmed(&device);
                        self.confirmed.entry((device, confirmed)).or_insert(stamped.at_ms);
                    }
                }
                Event::Error { what, .. } => *self.troubles.entry(what).or_default() += 1,
                Event::Rejected { .. } => *self.troubles.entry("messages refused".to_owned()).or_default() += 1,
                Event::Conflict { .. } => *self.troubles.entry("other bytes under a key".to_owned()).or_default() += 1,
                Event::FrameRefused { .. } => *self.troubles.entry("pictures refused".to_owned()).or_default() += 1,
                _ => {}
            }
        }
        Ok(())
    }
}

/// What became of the release.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Release {
    /// Its counter.
    pub(crate) counter: u64,
    /// Devices that are to confirm it.
    pub(crate) good: u64,
    /// Of these, what the centre says has confirmed it.
    pub(crate) confirmed: u64,
    /// The first of those that have not.
    pub(crate) unconfirmed: Vec<String>,
    /// Devices that are to refuse it, and of these what the centre says has refused it.
    pub(crate) refused: (u64, u64),
    /// Devices that are to hang, and of these what the centre says is still trying it.
    pub(crate) hung: (u64, u64),
    /// Devices that are to lie, and of these what the centre believes to run another release than it made, or this one.
    pub(crate) lied: (u64, u64),
    /// Of those that are to lie, the ones that name a release which nobody made.
    pub(crate) beyond: u64,
    /// Blocks that devices took.
    pub(crate) blocks: u64,
    /// How it went out.
    pub(crate) canary: Canary,
    /// Seconds from the release until the centre knew so many of all good devices to have confirmed it.
    pub(crate) half_secs: Option<f64>,
    /// Nine tenths.
    pub(crate) most_secs: Option<f64>,
    /// All of them.
    pub(crate) all_secs: Option<f64>,
}

impl Release {
    /// `None` when none was made.
    pub(crate) fn settle(devices: &[DeviceReport], counts: &[DeviceCounts], said: &Said) -> Option<Self> {
        let (counter, released_ms) = said.released?;
        let accounts: BTreeMap<&str, &DeviceCounts> = counts.iter().map(|count| (count.device.as_str(), count)).collect();
        let mut release = Self { counter, blocks: devices.iter().map(|device| device.blocks).sum(), ..Self::default() };
        let mut times = Vec::new();
        for device in devices {
            let account = accounts.get(device.name.as_str());
            let holds = |check: fn(&DeviceCounts, u64) -> bool| account.is_some_and(|account| check(account, counter));
            let count = |(all, seen): (u64, u64), held: bool| (all + 1, seen + u64::from(held));
            match device.persona {
                Persona::Good => {
                    release.good += 1;
                    if holds(|account, counter| account.confirmed == counter) {
                        release.confirmed += 1;
                    } else if release.unconfirmed.len() < 5 {
                        release.unconfirmed.push(device.name.clone());
                    }
                    times.extend(said.confirmed.get(&(device.name.clone(), counter)).copied());
                }
                Persona::Refuses => {
                    release.refused = count(release.refused, holds(|account, counter| account.refused_release == Some(counter)));
                }
                Persona::Hangs => release.hung = count(release.hung, holds(|account, counter| account.trial == Some(counter))),
                Persona::LiesAtOnce | Persona::LiesBeyond => {
                    release.beyond += u64::from(device.persona == Persona::LiesBeyond);
                    release.lied = count(release.lied, holds(|account, counter| account.confirmed >= counter));
                }
            }
        }
        times.sort_unstable();
        let after = |share: f64| {
            let place = (share * release.good as f64).ceil().max(1.0) as usize;
            times.get(place - 1).map(|at| at.saturating_sub(released_ms) as f64 / 1e3)
        };
        let (half, most, all) = (after(0.5), after(0.9), after(1.0));
        Some(Self { half_secs: half, most_secs: most, all_secs: all, ..release })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::latency::Latencies;

    fn device(name: &str, persona: Persona, epochs: &[(u64, u64)]) -> DeviceReport {
        DeviceReport {
            name: name.to_owned(),
            persona,
            epochs: epochs.to_vec(),
            pending: 0,
            calm: Latencies::default(),
            faulty: Latencies::default(),
            faults: Default::default(),
            again: 2,
            began_ms: None,
            blocks: 3,
            wrong: 0,
            failure: None,
        }
    }

    fn stored(outboxes: &[(&str, u64, u64, u64, u64)]) -> Stored {
        let outbox =
            |&(device, epoch, rows, keys, high): &(&str, u64, u64, u64, u64)| ((device.to_owned(), epoch), Kept { rows, keys, high });
        let outboxes = outboxes.iter().map(outbox).collect();
        Stored { outboxes, by_second: BTreeMap::new(), unsettled: 0, sample: Vec::new(), counts: Vec::new() }
    }

    #[test]
    fn labels_are_counted_by_their_keys() {
        let devices = [device("a", Persona::Good, &[(1, 10), (2, 5)]), device("b", Persona::Good, &[(3, 7)])];
        let account = |outboxes: &[(&str, u64, u64, u64, u64)]| {
            let labels = Labels::settle(&devices, &stored(outboxes));
            assert_eq!((labels.made, labels.outboxes, labels.again), (22, 3, 4));
            (labels.stored, labels.lost, labels.twice, labels.foreign)
        };
        let whole = [("a", 1, 10, 10, 10), ("a", 2, 5, 5, 5), ("b", 3, 7, 7, 7)];
        assert_eq!(account(&whole), (22, 0, 0, 0));
        assert_eq!(account(&whole[1..]), (12, 10, 0, 0), "an outbox is not there");
        assert_eq!(account(&[("a", 1, 9, 9, 10), whole[1], whole[2]]), (21, 1, 0, 0));
        assert_eq!(account(&[("a", 1, 12, 10, 10), whole[1], whole[2]]), (22, 0, 2, 0));
        assert_eq!(account(&[("a", 1, 10, 10, 11), whole[1], whole[2]]), (22, 0, 0, 1), "a sequence that was never given");
        assert_eq!(account(&[whole[0], whole[1], whole[2], ("c", 1, 2, 2, 2)]), (24, 0, 0, 2), "nobody's");
    }

    #[test]
    fn a_release_is_judged_by_what_the_centre_says() {
        let good = |name| device(name, Persona::Good, &[]);
        let devices = [good("a"), good("b"), good("c"), device("d", Persona::Refuses, &[]), device("e", Persona::Hangs, &[])];
        let account = |name: &str, confirmed, trial, refused_release| DeviceCounts {
            device: name.to_owned(),
            confirmed,
            trial,
            refused_release,
            ..DeviceCounts::default()
        };
        let counts =
            [account("a", 4, None, None), account("b", 4, None, None), account("d", 0, None, Some(4)), account("e", 0, None, None)];
        let folder = tempfile::tempdir().unwrap();
        let mut said = Said::new(folder.path(), 1000);
        assert_eq!(Release::settle(&devices, &counts, &said), None);
        said.released = Some((4, 1_000));
        said.confirmed = [(("a".to_owned(), 4), 3_000), (("b".to_owned(), 4), 6_000), (("b".to_owned(), 3), 10)].into();
        let release = Release::settle(&devices, &counts, &said).unwrap();
        assert_eq!((release.good, release.confirmed, release.unconfirmed.as_slice()), (3, 2, ["c".to_owned()].as_slice()));
        assert_eq!((release.refused, release.hung, release.lied), ((1, 1), (1, 0), (0, 0)));
        assert_eq!((release.half_secs, release.most_secs, release.all_secs), (Some(5.0), None, None));
    }
}
