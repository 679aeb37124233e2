//! A copy of what the centre knows, made while it runs, and its way back. Copied are the database (labels, frames, rounds, releases), the
//! bundles of rounds and releases, how they were trained, what the gate looked at, the events and the page's audit log; not keys, not data
//! sets, not what a round can make again, not pictures in an object store, which stay where they are.

use crate::service::dataset::{sync_dir, sync_tree};
use crate::service::events;
use crate::service::rounds::copy_bundle;
use crate::service::store::{DATABASE, Place, Store};
use crate::service::web::audit;
use anyhow::{Context, bail, ensure};
use omnilabel_bundle::{Bundle, hex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::{Path, PathBuf};

const ABOUT: &str = "backup.json";
/// How a round's student was trained: network, options and seed; one line for each step.
const TRAINING: [&str; 2] = ["arm.json", "progress.jsonl"];
/// Of a larger one of these the beginning is copied: some 250,000 steps. Who reads the log skips a line that is torn.
const TRAINING_BYTES: u64 = 64 << 20;
/// What is said instead of a backup without its database.
pub const PG_DUMP: &str = "the store is a PostgreSQL database: first `pg_dump --format=custom --file=FILE URL`, then a copy of \
                           `state_dir`; \
                           back by \
                           `pg_restore --dbname=URL FILE` and `run --new-collector-epoch` (docs/CENTRE.md, Backup)";

/// What a backup says of itself, in `backup.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Format, 1.
    pub format: u32,
    /// When it was made, Unix ms.
    pub made_ms: u64,
    /// The state folder it was made of: releases name their bundles by absolute paths.
    pub state_dir: PathBuf,
    /// SHA-256 of the copied database.
    pub database_sha256: String,
    /// Labels in it.
    pub labels: u64,
    /// Bundles in it.
    pub bundles: u64,
    /// Pictures that are not in it: they stay in the object store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<Outside>,
}

/// Pictures that the copied database refers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outside {
    /// Where they lay, `store.pictures`.
    pub place: String,
    /// How many.
    pub pictures: u64,
}

/// Writes a backup of the state folder of `store` to `out`, which must not exist: whole or not at all.
///
/// # Errors
/// Names the file and what is wrong.
pub async fn backup(store: &Store, out: &Path, now_ms: u64) -> anyhow::Result<About> {
    ensure!(!store.is_shared(), "{PG_DUMP}");
    ensure!(!out.exists(), "{}: is there already; a backup gets a folder of its own", out.display());
    let state_dir = std::path::absolute(store.state_dir()).with_context(|| store.state_dir().display().to_string())?;
    let part = beside(out, ".part")?;
    std::fs::create_dir_all(&part).with_context(|| part.display().to_string())?;
    let database = part.join(DATABASE);
    // The database first: every bundle that it names is there by then. One that is made meanwhile is in the copy without being named.
    let labels = store.copy_to(&database).await?;
    let outside = match (store.outside().await?, store.pictures_place()) {
        (0, _) => None,
        (pictures, place) => Some(Outside { place: place.unwrap_or_default(), pictures }),
    };
    let mut bundles = 0;
    for kind in ["releases", "rounds"] {
        for entry in entries(&state_dir.join(kind))? {
            let place = Path::new(kind).join(entry.file_name().unwrap_or_default());
            let (from, to) = if kind == "rounds" { (entry.join("bundle"), place.join("bundle")) } else { (entry.clone(), place.clone()) };
            if from.join("manifest.json").exists() && from.extension().is_none_or(|end| end != "part") {
                let parent = part.join(to.parent().unwrap_or(Path::new("")));
                std::fs::create_dir_all(&parent).with_context(|| parent.display().to_string())?;
                copy_bundle(&Bundle::open(&from)?, &part.join(&to))?;
                bundles += 1;
            }
            for file in entries(&entry)?.into_iter().filter(|file| file.to_string_lossy().ends_with(".results.json")) {
                copy(&file, &part.join(&place).join(file.file_name().unwrap_or_default()))?;
            }
            for name in TRAINING.iter().filter(|name| kind == "rounds" && entry.join(name).is_file()) {
                copy_at_most(&entry.join(name), &part.join(&place).join(name), TRAINING_BYTES)?;
            }
        }
    }
    for log in [events::FILE, events::OLDER, audit::FILE] {
        if state_dir.join(log).exists() {
            copy(&state_dir.join(log), &part.join(log))?;
        }
    }
    let about = About { format: 1, made_ms: now_ms, state_dir, database_sha256: sha256(&database)?, labels, bundles, outside };
    let text = serde_json::to_string_pretty(&about)? + "\n";
    std::fs::write(part.join(ABOUT), text).with_context(|| part.join(ABOUT).display().to_string())?;
    put(&part, out)?;
    Ok(about)
}

/// Makes `state_dir` of a backup, whole or not at all; it must not be there yet, or be empty. At its next start the centre draws a new collector epoch, and the
/// devices send again what they still hold. With it comes how many pictures that the database refers to are not in the object store.
///
/// # Errors
/// Names the file and what is wrong; a database that is not the one that was copied is refused, and one whose pictures lie in an object store
/// when none is configured or it cannot be asked.
pub async fn restore(from: &Path, place: &Place) -> anyhow::Result<(About, u64)> {
    let state_dir = place.state_dir();
    let path = from.join(ABOUT);
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}: a backup has this file", path.display()))?;
    let about: About = serde_json::from_str(&text).with_context(|| format!("{}: expected what `backup` wrote", path.display()))?;
    ensure!(about.format == 1, "{}: format {}, expected 1: a newer version made it", path.display(), about.format);
    let database = from.join(DATABASE);
    let found = sha256(&database)?;
    ensure!(found == about.database_sha256, "{}: SHA-256 {found}, expected {}: it is damaged", database.display(), about.database_sha256);
    if let Some(Outside { place: old, pictures }) = &about.outside {
        ensure!(
            place.has_pictures(),
            "{pictures} pictures of it lie in {old}: expected `store.pictures` with this place where the old database is given up, else with a copy of it"
        );
    }
    if !entries(state_dir)?.is_empty() {
        bail!("{}: something is there already: move the whole folder away first", state_dir.display());
    }
    let part = beside(state_dir, ".restoring")?;
    copy_tree(from, &part)?;
    let new = std::path::absolute(state_dir).with_context(|| state_dir.display().to_string())?;
    let store = Store::renew(place.with_state_dir(&part)).await?;
    let mut lacking = 0;
    if about.outside.is_some() {
        match store.compare_pictures(0, false).await {
            Ok(compared) => lacking = compared.missing,
            // Nothing is left of the attempt.
            Err(error) => {
                store.close().await;
                std::fs::remove_dir_all(&part).with_context(|| part.display().to_string())?;
                return Err(error.into());
            }
        }
    }
    store.move_bundles(&about.state_dir, &new).await?;
    let named = store.latest_release().await?.map(|release| PathBuf::from(release.bundle));
    store.close().await;
    if let Some(inside) = named.as_ref().and_then(|bundle| bundle.strip_prefix(&new).ok()) {
        Bundle::open(&part.join(inside)).context("the bundle of the newest release")?;
    } else if let Some(bundle) = named.filter(|bundle| !bundle.exists()) {
        tracing::warn!("{}: the bundle of the newest release is not in the backup: put it there", bundle.display());
    }
    if state_dir.exists() {
        std::fs::remove_dir(state_dir).with_context(|| state_dir.display().to_string())?;
    }
    put(&part, state_dir)?;
    Ok((about, lacking))
}

fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut found =
        entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>().with_context(|| folder.display().to_string())?;
    found.sort();
    Ok(found)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let folder = to.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    std::fs::copy(from, to).map(drop).with_context(|| format!("{} to {}", from.display(), to.display()))
}

/// Copies the first `limit` bytes of a file, which may grow meanwhile.
fn copy_at_most(from: &Path, to: &Path, limit: u64) -> anyhow::Result<()> {
    let said = || format!("{} to {}", from.display(), to.display());
    let folder = to.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut source = std::fs::File::open(from).with_context(said)?.take(limit);
    let mut target = std::fs::File::create(to).with_context(said)?;
    std::io::copy(&mut source, &mut target).with_context(said)?;
    if source.limit() == 0 {
        tracing::warn!("{}: its first {limit} bytes are in the backup", from.display());
    }
    Ok(())
}

/// Where a folder is made before it gets its name: nobody's else, and not what an interrupted one left.
fn beside(folder: &Path, ending: &str) -> anyhow::Result<PathBuf> {
    let mut name = folder.file_name().with_context(|| format!("{}: a folder with a name is expected", folder.display()))?.to_owned();
    name.push(ending);
    let part = folder.with_file_name(name);
    ensure!(!part.exists(), "{}: is left of one that was interrupted: remove it", part.display());
    Ok(part)
}

/// Gives a finished folder its name, durably.
fn put(part: &Path, folder: &Path) -> anyhow::Result<()> {
    sync_tree(part)?;
    std::fs::rename(part, folder).with_context(|| folder.display().to_string())?;
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    sync_dir(parent.unwrap_or(Path::new(".")))
}

fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    for path in entries(from)? {
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() { copy_tree(&path, &target)? } else { copy(&path, &target)? }
    }
    Ok(())
}

fn sha256(path: &Path) -> anyhow::Result<String> {
    let mut file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).with_context(|| path.display().to_string())? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::rounds::{Publish, release_bundle};
    use crate::service::sign;
    use crate::service::testing::{World, tally};
    use crate::service::waves::Waves;

    #[tokio::test]
    async fn what_was_backed_up_runs_elsewhere_with_a_new_collector_epoch() {
        let world = World::new();
        let store = Store::open(&world.config.state_dir, false).await.unwrap();
        store.commit(&world.labels("cam-1", 1..=4, 0.0, 0), 1).await.unwrap();
        let (running, kept) = (Bundle::open(&world.config.model.running).unwrap(), world.config.state_dir.join("releases/one"));
        let kept = copy_bundle(&running, &kept).unwrap();
        let key = sign::read_key(&world.config.release.key).unwrap();
        let what = Publish { bundle: &kept, name: "one", round: None, waves: Waves::at_once(1) };
        release_bundle(&world.config, &store, &key, what).await.unwrap();
        // One round was trained, one did not come to its end, one is being trained.
        let log = "{\"step\":1}\n".repeat(3);
        for (round, trained, ended) in [(1, true, true), (2, false, true), (3, false, false)] {
            let folder = world.config.state_dir.join(format!("rounds/{round}"));
            std::fs::create_dir_all(folder.join("checkpoint")).unwrap();
            let arm = "{\"arm\":{\"options\":{\"seed\":7}}}";
            for (name, text) in [("arm.json", arm), ("progress.jsonl", log.as_str()), ("checkpoint/weights", "x")] {
                std::fs::write(folder.join(name), text).unwrap();
            }
            let state = serde_json::json!({
                "round": round, "teacher": 0, "running": "/nowhere", "after": 0, "up_to": 4, "trained": trained, "ended": ended,
            });
            store.save_round(&serde_json::from_value(state).unwrap()).await.unwrap();
        }
        // The centre goes on while it is copied.
        let (out, elsewhere) = (world.dir.path().join("backup"), world.dir.path().join("elsewhere/state"));
        let about = backup(&store, &out, 5).await.unwrap();
        assert_eq!((about.labels, about.bundles, about.made_ms), (4, 1, 5));
        assert!(backup(&store, &out, 6).await.unwrap_err().to_string().contains("is there already"));
        // What has a similar name is somebody's.
        let other = world.dir.path().join("backup.part");
        std::fs::create_dir(&other).unwrap();
        assert!(backup(&store, &world.dir.path().join("backup"), 6).await.is_err() && other.exists());
        let refused = backup(&store, &world.dir.path().join("backup.2"), 6).await;
        assert!(refused.is_ok() && other.exists());
        store.commit(&world.labels("cam-1", 5..=6, 0.0, 0), 2).await.unwrap();
        let collector = store.collector();
        store.close().await;

        assert_eq!(restore(&out, &Place::from(&elsewhere)).await.unwrap(), (about, 0));
        assert!(restore(&out, &Place::from(&elsewhere)).await.unwrap_err().to_string().contains("already"));
        std::fs::remove_dir_all(&world.config.state_dir).unwrap();
        let store = Store::open(&elsewhere, false).await.unwrap();
        assert_ne!(store.collector(), collector, "devices are asked for what came after the copy");
        assert_eq!(tally(&store, "cam-1").await.0, 4);
        for round in 1..=3 {
            let folder = elsewhere.join(format!("rounds/{round}"));
            let text = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
            assert!(text("arm.json").is_some_and(|text| text.contains("\"seed\":7")), "round {round}");
            assert_eq!(text("progress.jsonl"), Some(log.clone()), "round {round}");
            assert!(!folder.join("checkpoint").exists());
        }
        let release = store.latest_release().await.unwrap().unwrap();
        assert_eq!(Path::new(&release.bundle), std::path::absolute(elsewhere.join("releases/one")).unwrap());
        crate::service::rollout::Rollout::new(&release, None).unwrap();
        Bundle::open(Path::new(&release.bundle)).unwrap();
    }

    #[test]
    fn a_copy_with_a_limit_has_the_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("progress.jsonl"), folder.path().join("copy/progress.jsonl"));
        std::fs::write(&from, "one\ntwo\n").unwrap();
        for (limit, expected) in [(6, "one\ntw"), (8, "one\ntwo\n"), (100, "one\ntwo\n")] {
            copy_at_most(&from, &to, limit).unwrap();
            assert_eq!(std::fs::read_to_string(&to).unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn a_damaged_backup_is_refused() {
        let world = World::new();
        let store = Store::open(&world.config.state_dir, false).await.unwrap();
        let (out, elsewhere) = (world.dir.path().join("backup"), world.dir.path().join("elsewhere"));
        backup(&store, &out, 5).await.unwrap();
        let mut bytes = std::fs::read(out.join(DATABASE)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(out.join(DATABASE), bytes).unwrap();
        assert!(restore(&out, &Place::from(&elsewhere)).await.unwrap_err().to_string().contains("damaged"));
        assert!(!elsewhere.exists());
        std::fs::write(out.join(ABOUT), "{}").unwrap();
        assert!(restore(&out, &Place::from(&elsewhere)).await.unwrap_err().to_string().contains("backup.json"));
    }
}
