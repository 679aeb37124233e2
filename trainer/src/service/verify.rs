//! Whether what is stored is what was sent, adds up, and does not leak into the held-out set.

use crate::service::events::now_ms;
use crate::service::hand::{self, Verdict};
use crate::service::store::Store;
use crate::service::store::audit::{StoredLabel, Which};
use anyhow::Context;
use omnilabel_coco::Dataset;
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Size;
use omnilabel_keypoints::wire::{LabelMsg, Message};
use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::path::Path;

/// Findings of a kind that are listed; all are counted.
const LISTED: usize = 100;
/// Pictures are near-duplicates when at most so many of 64 bits of their difference hashes differ: if bits were drawn by lot, so few would in
/// one pair of 2 · 10¹¹.
const NEAR_BITS: u32 = 6;

/// Between the brightest and the darkest cell of a picture that shows something, thousandths of a grey level: two levels of 255, more than
/// a sensor's noise leaves of a cell of some thousand pixels.
const CONTRAST: u64 = 2_000;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Labels read.
    pub labels: u64,
    /// Pictures read.
    pub pictures: u64,
    /// Labels that people judged.
    pub verdicts: u64,
    /// What is wrong with how many of them.
    pub wrong: u64,
    /// The first of these, and of the accounts that do not add up.
    pub problems: Vec<String>,
    /// Held-out pictures that cannot be read, and so were compared with nothing.
    pub heldout_unread: u64,
    /// Manual pictures that cannot be read: nothing is compared with them.
    pub manual_unread: u64,
    /// Pictures of cameras and of the manual set that nearly show what a held-out one shows: what is judged on them was trained on them.
    pub leaks: u64,
    /// The first of these: picture, held-out picture, bits that differ.
    pub leaked: Vec<(String, String, u32)>,
    /// Objects in the object store that nothing refers to: no harm but their bytes.
    pub orphans: u64,
    /// The first of these, by their SHA-256.
    pub orphaned: Vec<String>,
}

impl Verified {
    /// Whether nothing is wrong, and nothing held out is trained on. Orphans do no harm.
    ///
    /// # Errors
    /// How many problems and leaks there are.
    pub fn whole(&self) -> anyhow::Result<()> {
        let problems = (self.wrong > 0).then(|| format!("problems: {}", self.wrong));
        let what = "pictures that nearly show a held-out one and are trained on (reject their labels, or hold out others)";
        let leaks = (self.leaks > 0).then(|| format!("{what}: {}", self.leaks));
        let said: Vec<String> = problems.into_iter().chain(leaks).collect();
        if said.is_empty() { Ok(()) } else { Err(anyhow::Error::msg(said.join("; "))) }
    }
}

/// An object that nothing refers to is an orphan when it is older: its commit may be under way, or tried again. ms.
pub const ORPHAN_MS: u64 = 3_600_000;

/// Reads all labels and pictures. `done` is told how many labels were read.
///
/// # Errors
/// A store or a held-out set that cannot be read.
pub async fn verify(store: &Store, manual: &Dataset, heldout: &Dataset, done: &dyn Fn(u64)) -> anyhow::Result<Verified> {
    let mut verified = Verified::default();
    let hashes = hashes(heldout);
    verified.heldout_unread = hashes.iter().filter(|(hash, _)| hash.is_none()).count() as u64;
    let held: Vec<(u64, &str)> = hashes.into_iter().filter_map(|(hash, name)| Some((hash??, name))).collect();
    let look = |label: StoredLabel| {
        verified.labels += 1;
        verified.pictures += u64::from(label.jpeg.is_some());
        verified.verdicts += u64::from(label.verdict.is_some());
        let name = format!("{}, outbox {:016x}, label {}", label.device, label.key().epoch, label.key().sequence);
        match check(&label, heldout.skeleton.len()) {
            Ok(frame) => {
                // What is refused, by the centre or by a person, is not trained on.
                let is_used = label.refused.is_none() && label.verdict.as_deref() != Some(Verdict::Rejected.name());
                let hash = frame.filter(|_| is_used).and_then(|frame| difference_hash(&frame));
                if let Some((bits, image)) = hash.and_then(|hash| nearest(&held, hash)) {
                    verified.leaks += 1;
                    if verified.leaked.len() < LISTED {
                        verified.leaked.push((name, image.to_owned(), bits));
                    }
                }
            }
            Err(error) => {
                verified.wrong += 1;
                if verified.problems.len() < LISTED {
                    verified.problems.push(format!("{name}: {}", omnilabel_console::line(&error)));
                }
            }
        }
        done(verified.labels);
        anyhow::Ok(())
    };
    store.each(&Which::default(), look).await?;
    let accounts = store.recount().await?;
    verified.wrong += accounts.len() as u64;
    verified.problems.extend(accounts.into_iter().take(LISTED));
    let pictures = store.compare_pictures(now_ms().saturating_sub(ORPHAN_MS), false).await?;
    (verified.orphans, verified.orphaned) = (pictures.orphans, pictures.orphan_names);
    verify_manual(manual, &held, &mut verified);
    Ok(verified)
}

/// The pictures of a set by their file names: `None` of one that cannot be read, and nothing of one that shows nothing.
fn hashes(dataset: &Dataset) -> Vec<(Option<Option<u64>>, &str)> {
    let hash = |path: &Path| Frame::open(path).ok().map(|frame| difference_hash(&frame));
    dataset.images.par_iter().map(|image| (hash(&dataset.image_path(image)), image.file_name.as_str())).collect()
}

/// Looks for held-out pictures among the manual ones, too.
fn verify_manual(manual: &Dataset, held: &[(u64, &str)], verified: &mut Verified) {
    for (hash, name) in hashes(manual) {
        let Some(hash) = hash else {
            verified.manual_unread += 1;
            continue;
        };
        let Some((bits, of)) = hash.and_then(|hash| nearest(held, hash)) else { continue };
        verified.leaks += 1;
        if verified.leaked.len() < LISTED {
            verified.leaked.push((format!("manual picture {name}"), of.to_owned(), bits));
        }
    }
}

/// The held-out picture with the nearest hash and the bits that differ, if it is near.
fn nearest<'h>(held: &[(u64, &'h str)], hash: u64) -> Option<(u32, &'h str)> {
    let all = held.iter().map(|(of, image)| ((of ^ hash).count_ones(), *image));
    all.min().filter(|(bits, _)| *bits <= NEAR_BITS)
}

/// The label's picture, where it is kept, if everything is as it came, and a verdict such as could be given.
fn check(label: &StoredLabel, keypoints: usize) -> anyhow::Result<Option<Frame>> {
    let message = LabelMsg::decode(&label.payload).context("its message cannot be decoded")?;
    anyhow::ensure!(message.key() == label.key(), "its message has another key: {:?}", message.key());
    anyhow::ensure!(message.model == label.model(), "its message names model {}, its row {}", message.model, label.model());
    let instances = message.instances.len() as i64;
    anyhow::ensure!(instances == label.instances, "its message has {instances} instances, its row {}", label.instances);
    if let Some(lost) = &label.lost {
        anyhow::bail!("its picture: {lost}");
    }
    if let Some(verdict) = &label.verdict {
        let verdict: Verdict = verdict.parse()?;
        anyhow::ensure!(label.jpeg.is_some() && label.refused.is_none(), "it was {}, and has no picture to be judged by", verdict.name());
        anyhow::ensure!(label.people.is_some() == verdict.is_manual(), "it was {}, expected people just where it is right", verdict.name());
        if let Some(people) = &label.people {
            let people = serde_json::from_str(people).context("its people by hand cannot be read")?;
            let size = Size { width: message.width, height: message.height };
            hand::checked(people, size, keypoints).map_err(anyhow::Error::msg).context("its people by hand")?;
        }
    }
    let Some(jpeg) = &label.jpeg else { return Ok(None) };
    if let Some(sha256) = &label.sha256 {
        anyhow::ensure!(Sha256::digest(jpeg).as_slice() == sha256, "its picture is not the one that came: SHA-256 differs");
    }
    Frame::decode("its picture", jpeg).map(Some).map_err(Into::into)
}

/// The difference hash (dHash) of a picture: mean brightness of 9 × 8 cells, one bit for each pair of neighbours in a row. `None` of a picture
/// that shows nothing, such as the dark: all of these are alike.
pub fn difference_hash(frame: &Frame) -> Option<u64> {
    let (width, height) = (frame.size.width as usize, frame.size.height as usize);
    let mut cells = [[0_u64; 9]; 8];
    for (row, cells) in cells.iter_mut().enumerate() {
        for (column, cell) in cells.iter_mut().enumerate() {
            // Of a picture with fewer pixels than cells, neighbours share one.
            let span = |at: usize, of: usize, side: usize| {
                let from = (at * side / of).min(side.saturating_sub(1));
                from..((at + 1) * side / of).max(from + 1).min(side)
            };
            let (rows, columns) = (span(row, 8, height), span(column, 9, width));
            let count = (rows.len() * columns.len()).max(1) as u64;
            let mut sum = 0_u64;
            for y in rows {
                let line = &frame.rgb[3 * (y * width + columns.start)..3 * (y * width + columns.end)];
                // ITU-R BT.601 luma in thousandths.
                sum += line.chunks_exact(3).map(|p| 299 * u64::from(p[0]) + 587 * u64::from(p[1]) + 114 * u64::from(p[2])).sum::<u64>();
            }
            *cell = sum / count;
        }
    }
    let (least, most) = cells.as_flattened().iter().fold((u64::MAX, 0), |(least, most), cell| (least.min(*cell), most.max(*cell)));
    let bits = cells.iter().flat_map(|row| row.windows(2)).fold(0, |hash, pair| hash << 1 | u64::from(pair[0] < pair[1]));
    (most - least >= CONTRAST).then_some(bits)
}

/// Without manual pictures.
#[cfg(test)]
pub(crate) async fn of_store(store: &Store, heldout: &Dataset) -> anyhow::Result<Verified> {
    verify(store, &Dataset { images: Vec::new(), ..heldout.clone() }, heldout, &|_| ()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::store::verdicts::Word;
    use crate::service::testing::{Home, World, on_both};

    on_both! {
        what_is_whole_is_said_to_be_and_what_is_not_is_named,
        a_verdict_that_nobody_could_give_is_named,
    }

    async fn what_is_whole_is_said_to_be_and_what_is_not_is_named(home: Home) {
        let world = home.world();
        let store = Store::open(&world.config, false).await.unwrap();
        store.commit(&world.labels("cam-1", 101..=106, 0.0, 0), 1).await.unwrap();
        let heldout = Dataset::load(&world.config.data.heldout).unwrap();
        let whole = of_store(&store, &heldout).await.unwrap();
        assert_eq!((whole.labels, whole.pictures, whole.wrong, &whole.problems[..]), (6, 6, 0, &[][..]));

        let change = async |sql: &'static str| sqlx::query(sql).execute(store.pool()).await.unwrap();
        let put = async |sql: &'static str, bytes: &[u8]| sqlx::query(sql).bind(bytes).execute(store.pool()).await.unwrap();
        change("UPDATE labels SET instances = 9 WHERE sequence = 102").await;
        put("UPDATE frames SET jpeg = $1 WHERE sequence = 103", &[0]).await;
        put("UPDATE frames SET jpeg = $1 WHERE sequence = 106", &[0]).await;
        put("UPDATE frames SET sha256 = $1 WHERE sequence = 106", &Sha256::digest([0])).await;
        put("UPDATE labels SET payload = $1 WHERE sequence = 104", &[0xa0]).await;
        change("UPDATE labels SET model = 5 WHERE sequence = 105").await;
        change("UPDATE epochs SET stored = stored + 1").await;
        change("UPDATE runs SET last = last + 2").await;
        let found = of_store(&store, &heldout).await.unwrap();
        assert_eq!(found.wrong, 8, "{:?}", found.problems);
        for (said, of) in [
            ("label 102: its message has 1 instances, its row 9", 0),
            ("label 103: its picture is not the one that came", 1),
            ("label 104: its message cannot be decoded", 2),
            ("label 105: its message names model 0, its row 5", 3),
            ("label 106: its picture", 4),
            ("7 labels stored are counted, 6 are there", 5),
            ("bytes of pictures are counted", 6),
            ("8 labels are acknowledged, 6 are there", 7),
        ] {
            assert!(found.problems[of].contains(said), "{:?}", found.problems);
        }
    }

    async fn a_verdict_that_nobody_could_give_is_named(home: Home) {
        let world = home.world();
        let store = Store::open(&world.config, false).await.unwrap();
        store.commit(&world.labels("cam-1", 101..=106, 0.0, 0), 1).await.unwrap();
        let heldout = Dataset::load(&world.config.data.heldout).unwrap();
        let person = hand::Person { rect: [1.0, 2.0, 30.0, 40.0], keypoints: vec![(3.0, 4.0, 1); heldout.skeleton.len()] };
        let short = hand::Person { keypoints: vec![(3.0, 4.0, 1)], ..person.clone() };
        let say = async |label, verdict, people| {
            let word = Word { verdict: Some(verdict), people, role: "operator", peer: String::new() };
            store.say(label, 0, &word, 1).await.unwrap();
        };
        say(1, Verdict::Corrected, Some(vec![person.clone()])).await;
        say(2, Verdict::Rejected, None).await;
        let whole = of_store(&store, &heldout).await.unwrap();
        assert_eq!((whole.verdicts, whole.wrong), (2, 0), "{:?}", whole.problems);
        say(3, Verdict::Accepted, None).await;
        say(4, Verdict::Corrected, Some(vec![person.clone(), short])).await;
        say(5, Verdict::Accepted, Some(vec![person])).await;
        let change = async |sql: &'static str| sqlx::query(sql).execute(store.pool()).await.unwrap();
        change("UPDATE frames SET jpeg = NULL, refused = 'gone' WHERE sequence = 105").await;
        change("UPDATE epochs SET frames = 5, picture_bytes = (SELECT sum(length(f.jpeg)) FROM frames f)").await;
        change("UPDATE verdicts SET verdict = 'maybe' WHERE label = 2").await;
        let found = of_store(&store, &heldout).await.unwrap();
        assert_eq!((found.verdicts, found.wrong), (5, 4), "{:?}", found.problems);
        for (said, of) in [
            ("label 102: `maybe` is no verdict", 0),
            ("label 103: it was accepted, expected people just where it is right", 1),
            ("label 104: its people by hand: instance 1 has 1 keypoints, expected 4", 2),
            ("label 105: it was accepted, and has no picture", 3),
        ] {
            assert!(found.problems[of].contains(said), "{:?}", found.problems);
        }
    }

    #[tokio::test]
    async fn a_held_out_picture_that_a_camera_sent_is_a_leak() {
        let world = World::new();
        let store = Store::open(&world.config.state_dir, false).await.unwrap();
        // The test world's pictures are noise with a phase: those of other numbers are other noise.
        let heldout = Dataset::load(&world.config.data.heldout).unwrap();
        store.commit(&world.labels("cam-1", 3..=3, 0.0, 0), 1).await.unwrap();
        let found = of_store(&store, &heldout).await.unwrap();
        assert_eq!((found.leaks, found.leaked[0].1.as_str(), found.leaked[0].2), (1, "3.jpg", 0));
        let said = found.whole().unwrap_err().to_string();
        assert!(found.wrong == 0 && said.starts_with("pictures that nearly show a held-out one") && said.ends_with(": 1"), "{said}");
        let rejected = Word { verdict: Some(Verdict::Rejected), people: None, role: "operator", peer: String::new() };
        store.say(1, 0, &rejected, 1).await.unwrap();
        assert_eq!(of_store(&store, &heldout).await.unwrap().leaks, 0, "what is rejected is not trained on");
        store.say(1, 1, &Word { verdict: None, ..rejected }, 1).await.unwrap();
        std::fs::write(world.config.data.heldout.join("images/3.jpg"), "no picture").unwrap();
        let found = of_store(&store, &heldout).await.unwrap();
        assert_eq!((found.leaks, found.heldout_unread), (0, 1), "what cannot be read is told");
        let nothing = Dataset { images: Vec::new(), ..heldout };
        let found = of_store(&store, &nothing).await.unwrap();
        assert!(found.leaks == 0 && found.whole().is_ok(), "{found:?}");
        let wrong = Verified { wrong: 2, leaks: 3, orphans: 1, ..Verified::default() };
        assert!(wrong.whole().unwrap_err().to_string().starts_with("problems: 2; pictures that nearly"));
        assert!(Verified { leaks: 0, ..wrong }.whole().unwrap_err().to_string() == "problems: 2", "told from each other");
        assert!(Verified { orphans: 1, heldout_unread: 1, ..Verified::default() }.whole().is_ok());
    }

    #[test]
    fn a_held_out_picture_of_the_manual_set_is_a_leak() {
        // The six manual pictures of the test world are the first six of the eight that are held out.
        let world = World::new();
        let [manual, heldout] = [&world.config.data.manual, &world.config.data.heldout].map(|folder| Dataset::load(folder).unwrap());
        let held: Vec<(u64, &str)> = hashes(&heldout).into_iter().map(|(hash, name)| (hash.unwrap().unwrap(), name)).collect();
        let mut found = Verified { leaks: 1, leaked: vec![("cam-1".to_owned(), "3.jpg".to_owned(), 0)], ..Verified::default() };
        verify_manual(&manual, &held, &mut found);
        assert_eq!((found.leaks, found.leaked.len(), found.wrong), (7, 7, 0), "{:?}", found.leaked);
        assert_eq!(found.leaked[1], ("manual picture 1.jpg".to_owned(), "1.jpg".to_owned(), 0));
        assert!(found.whole().is_err());
        let mut found = Verified::default();
        verify_manual(&manual, &[], &mut found);
        assert_eq!(found, Verified::default());
        // One that cannot be read is counted, and the others are compared.
        std::fs::write(manual.image_path(&manual.images[0]), "no picture").unwrap();
        verify_manual(&manual, &held, &mut found);
        assert_eq!((found.leaks, found.manual_unread, found.wrong), (5, 1, 0), "{:?}", found.leaked);
    }

    #[test]
    fn the_hash_follows_what_is_seen() {
        let frame = |size: Size, at: &dyn Fn(u32, u32) -> u8| {
            let rgb =
                (0..size.height).flat_map(|y| (0..size.width).flat_map(move |x| [at(x * 900 / size.width, y * 800 / size.height); 3]));
            Frame { size, rgb: rgb.collect() }
        };
        let scene = |x: u32, y: u32| ((x / 70 * 37 + y / 90 * 59) % 251) as u8;
        let hash = |width, height, at: &dyn Fn(u32, u32) -> u8| difference_hash(&frame(Size { width, height }, at));
        let [large, small] = [(360, 240), (180, 121)].map(|(width, height)| hash(width, height, &scene).unwrap());
        let darker = hash(360, 240, &|x, y| scene(x, y) / 2).unwrap();
        let other = hash(360, 240, &|x, y| scene(y, x)).unwrap();
        assert_eq!(hash(360, 240, &|x, _| 3 + (x % 2) as u8), None, "the dark is like all dark");
        assert!((large ^ small).count_ones() <= NEAR_BITS && (large ^ darker).count_ones() <= NEAR_BITS);
        assert!((large ^ other).count_ones() > 3 * NEAR_BITS);
        for size in [Size { width: 1, height: 1 }, Size { width: 3, height: 500 }, Size { width: 9, height: 8 }] {
            difference_hash(&frame(size, &scene));
        }
    }
}
