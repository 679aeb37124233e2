//! The folders that a demo works on, each in COCO's format.
//!
//! ```text
//! data/manual      labelled by hand: the centre has it
//! data/heldout     labelled by hand: thresholds and gate
//! data/val         labelled by hand: the table, seen by no arm
//! data/footage-1   what the first camera sees; its labels are used by the upper bound alone
//! data/footage-2   what the second camera sees
//! ```

use super::plan::{LABELLED_SHARE, Plan};
use anyhow::{Context, bail};
use image::codecs::jpeg::JpegEncoder;
use image::imageops::FilterType;
use omnilabel_coco::{Dataset, ImageRecord};
use omnilabel_scenes::{DEFAULT_SIZE, Look, write_coco};
use std::path::{Path, PathBuf};

/// Seeds of the rendered folders; the shipped teacher was trained on `MANUAL`'s.
const MANUAL_SEED: u64 = 1;
const HELDOUT_SEED: u64 = 2;
const VAL_SEED: u64 = 3;
const FOOTAGE_SEEDS: [u64; 2] = [4, 5];

/// Pictures of a user's folder with a longer short side are made smaller, px.
const SHORT_SIDE: u32 = 160;

/// The folders.
#[derive(Clone, Debug)]
pub(super) struct Folders {
    root: PathBuf,
}

impl Folders {
    /// Below the demo's folder.
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.join("data") }
    }

    /// Manual labels.
    pub(super) fn manual(&self) -> PathBuf {
        self.root.join("manual")
    }

    /// Labels for thresholds and gate.
    pub(super) fn heldout(&self) -> PathBuf {
        self.root.join("heldout")
    }

    /// Labels for the table.
    pub(super) fn val(&self) -> PathBuf {
        self.root.join("val")
    }

    /// What camera 0 or 1 sees.
    pub(super) fn footage(&self, camera: usize) -> PathBuf {
        self.root.join(format!("footage-{}", camera + 1))
    }

    /// Manual labels and the footage's true ones together.
    pub(super) fn upper(&self) -> PathBuf {
        self.root.join("upper")
    }

    /// Writes every folder.
    ///
    /// # Errors
    /// A user's folder that cannot serve, or a disk that refuses.
    pub(super) fn prepare(&self, plan: &Plan, check: &dyn Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
        match &plan.data {
            None => self.render(plan, check)?,
            Some(data) => self.split(data, plan, check)?,
        }
        if plan.upper {
            let parts = [self.manual(), self.footage(0), self.footage(1)];
            union(&parts, &self.upper())?;
        }
        Ok(())
    }

    fn render(&self, plan: &Plan, check: &dyn Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let (studio, both) = ([Look::studio()], [Look::studio(), Look::street()]);
        let jobs: [(PathBuf, &[Look], u64, u64); 5] = [
            (self.manual(), &studio, MANUAL_SEED, plan.manual),
            (self.heldout(), &both, HELDOUT_SEED, plan.heldout),
            (self.val(), &both, VAL_SEED, plan.val),
            (self.footage(0), &studio, FOOTAGE_SEEDS[0], plan.footage),
            (self.footage(1), &[Look::street()], FOOTAGE_SEEDS[1], plan.footage),
        ];
        for (folder, looks, seed, count) in jobs {
            check()?;
            write_coco(&folder, looks, seed, count, DEFAULT_SIZE).context("rendering scenes")?;
        }
        Ok(())
    }

    fn split(&self, data: &Path, plan: &Plan, check: &dyn Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let (train, val) = read(data)?;
        let labelled = labelled_count(train.images.len());
        let manual = thin(&train.subset(|index, _| index < labelled), plan.manual);
        let unlabelled = train.subset(|index, _| index >= labelled);
        let seen = thin(&unlabelled, 2 * plan.footage);
        let third = (val.images.len() / 3).max(1);
        let heldout = thin(&val.subset(|index, _| index % 3 == 0), plan.heldout.max(third.min(100) as u64));
        let rest = thin(&val.subset(|index, _| index % 3 != 0), plan.val);
        let jobs = [
            (manual, self.manual()),
            (heldout, self.heldout()),
            (rest, self.val()),
            (seen.subset(|index, _| index % 2 == 0), self.footage(0)),
            (seen.subset(|index, _| index % 2 == 1), self.footage(1)),
        ];
        for (part, folder) in jobs {
            if part.images.is_empty() {
                bail!("{}: too few pictures for a demo ({} in train, {} in val)", data.display(), train.images.len(), val.images.len());
            }
            check()?;
            copy(&part, &folder)?;
        }
        Ok(())
    }
}

fn labelled_count(images: usize) -> usize {
    ((images as f64 * LABELLED_SHARE) as usize).max(1)
}

/// The two splits of a user's folder.
///
/// # Errors
/// It is not there, a split is missing, empty or without labels, or the two have different skeletons.
pub(super) fn read(data: &Path) -> anyhow::Result<(Dataset, Dataset)> {
    if !data.is_dir() {
        bail!("--data {}: no such folder; expected a COCO keypoint folder with train/ and val/", data.display());
    }
    let split = |name: &str| -> anyhow::Result<Dataset> {
        let folder = data.join(name);
        if !folder.is_dir() {
            bail!("--data {}: has no {name}/ with images/ and annotations.json", data.display());
        }
        let dataset = Dataset::load(&folder)?;
        if dataset.images.is_empty() {
            bail!("{}: no images", folder.display());
        }
        if !dataset.annotations.iter().any(|annotation| annotation.num_keypoints > 0) {
            bail!("{}: no annotation has keypoints", folder.display());
        }
        Ok(dataset)
    };
    let (train, val) = (split("train")?, split("val")?);
    let names = |dataset: &Dataset| dataset.skeleton.names().map(str::to_owned).collect::<Vec<_>>();
    if names(&train) != names(&val) {
        bail!(
            "--data {}: train and val have different skeletons: {} keypoints ({}, …) and {} keypoints ({}, …)",
            data.display(),
            train.skeleton.len(),
            train.skeleton.name(0),
            val.skeleton.len(),
            val.skeleton.name(0)
        );
    }
    Ok((train, val))
}

/// At most `count` images, evenly taken.
fn thin(dataset: &Dataset, count: u64) -> Dataset {
    let (all, count) = (dataset.images.len() as u64, count.max(1));
    if all <= count {
        return dataset.clone();
    }
    dataset.subset(|index, _| {
        let index = index as u64;
        (index + 1) * count / all > index * count / all
    })
}

/// A few pictures of a folder with people on them, as a folder of their own.
pub(super) fn sample(from: &Path, to: &Path, count: u64) -> anyhow::Result<()> {
    let dataset = Dataset::load(from)?;
    let peopled = dataset.subset(|_, image| dataset.annotations_of(image.id).iter().any(|a| a.num_keypoints > 0));
    copy(&thin(&peopled, count), to)
}

/// Copies a data set with its pictures, smaller where they are larger than needed.
fn copy(dataset: &Dataset, folder: &Path) -> anyhow::Result<()> {
    let images = folder.join("images");
    std::fs::create_dir_all(&images).with_context(|| images.display().to_string())?;
    let mut copied = Dataset { root: folder.to_owned(), ..dataset.clone() };
    for record in &mut copied.images {
        let from = dataset.image_path(record);
        let name = format!("{:012}.jpg", record.id);
        let scale = shrink(&from, &images.join(&name), record)?;
        record.file_name = name;
        if scale != 1.0 {
            for annotation in copied.annotations.iter_mut().filter(|a| a.image_id == record.id) {
                annotation.bbox = annotation.bbox.map(|v| v * scale);
                annotation.area *= scale * scale;
                for keypoint in annotation.keypoints.chunks_exact_mut(3).filter(|k| k[2] > 0.0) {
                    // COCO's pixel indices: their centres scale.
                    keypoint[0] = (keypoint[0] + 0.5) * scale - 0.5;
                    keypoint[1] = (keypoint[1] + 0.5) * scale - 0.5;
                }
            }
        }
    }
    copied.write(folder)?;
    Ok(())
}

/// Writes one picture as JPEG, returns the factor on its coordinates and corrects the record's size.
fn shrink(from: &Path, to: &Path, record: &mut ImageRecord) -> anyhow::Result<f64> {
    let short = record.width.min(record.height);
    let is_jpeg = from.extension().is_some_and(|e| e.eq_ignore_ascii_case("jpg") || e.eq_ignore_ascii_case("jpeg"));
    if short <= SHORT_SIDE && is_jpeg {
        std::fs::copy(from, to).with_context(|| from.display().to_string())?;
        return Ok(1.0);
    }
    let picture = image::open(from).with_context(|| from.display().to_string())?.to_rgb8();
    let scale = (f64::from(SHORT_SIDE) / f64::from(short)).min(1.0);
    let side = |length: u32| ((f64::from(length) * scale).round() as u32).max(1);
    let small = image::imageops::resize(&picture, side(record.width), side(record.height), FilterType::Triangle);
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, 92).encode_image(&small).with_context(|| from.display().to_string())?;
    std::fs::write(to, jpeg).with_context(|| to.display().to_string())?;
    (record.width, record.height) = small.dimensions();
    Ok(scale)
}

/// Several folders of one skeleton as one, with new ids.
fn union(parts: &[PathBuf], folder: &Path) -> anyhow::Result<()> {
    let images = folder.join("images");
    std::fs::create_dir_all(&images).with_context(|| images.display().to_string())?;
    let mut all: Option<Dataset> = None;
    let (mut next_image, mut next_annotation) = (1, 1);
    for part in parts {
        let dataset = Dataset::load(part)?;
        let all =
            all.get_or_insert_with(|| Dataset { root: folder.to_owned(), images: Vec::new(), annotations: Vec::new(), ..dataset.clone() });
        for image in &dataset.images {
            let record = ImageRecord { id: next_image, file_name: format!("{next_image:06}.jpg"), ..image.clone() };
            let from = dataset.image_path(image);
            std::fs::copy(&from, images.join(&record.file_name)).with_context(|| from.display().to_string())?;
            for annotation in dataset.annotations_of(image.id) {
                all.annotations.push(omnilabel_coco::Annotation { id: next_annotation, image_id: next_image, ..annotation.clone() });
                next_annotation += 1;
            }
            all.images.push(record);
            next_image += 1;
        }
    }
    if let Some(all) = all {
        all.write(folder)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnilabel_keypoints::geometry::Size;

    fn source(train: u64, val: u64) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let size = Size { width: 400, height: 320 };
        write_coco(&dir.path().join("train"), &[Look::studio()], 1, train, size).unwrap();
        write_coco(&dir.path().join("val"), &[Look::studio()], 2, val, size).unwrap();
        dir
    }

    #[test]
    fn a_folder_is_split_and_made_smaller_with_its_labels() {
        let (from, to) = (source(20, 6), tempfile::tempdir().unwrap());
        let folders = Folders::new(to.path());
        let plan = Plan { manual: 5, heldout: 2, val: 100, footage: 4, upper: true, ..Plan::folder(from.path().to_owned(), 1.0, true) };
        folders.prepare(&plan, &|| Ok(())).unwrap();
        let load = |folder: PathBuf| Dataset::load(&folder).unwrap();
        let (manual, first, second) = (load(folders.manual()), load(folders.footage(0)), load(folders.footage(1)));
        assert_eq!((manual.images.len(), first.images.len(), second.images.len()), (5, 4, 4));
        assert_eq!((load(folders.heldout()).images.len(), load(folders.val()).images.len()), (2, 4));
        assert_eq!(load(folders.upper()).images.len(), 13);
        // The first 30 % is labelled, nothing of it is footage.
        assert!(manual.images.iter().all(|i| i.id <= 6) && first.images.iter().chain(&second.images).all(|i| i.id > 6));
        let original = Dataset::load(&from.path().join("train")).unwrap();
        for image in &first.images {
            assert_eq!((image.width, image.height), (200, 160));
            let picture = image::open(first.image_path(image)).unwrap();
            assert_eq!((picture.width(), picture.height()), (200, 160));
            for (small, large) in first.annotations_of(image.id).iter().zip(original.annotations_of(image.id)) {
                assert!((small.bbox[2] * 2.0 - large.bbox[2]).abs() < 1e-9 && (small.area * 4.0 - large.area).abs() < 1e-6);
                for (a, b) in small.keypoints.chunks(3).zip(large.keypoints.chunks(3)).filter(|(a, _)| a[2] > 0.0) {
                    assert!(((a[0] + 0.5) * 2.0 - b[0] - 0.5).abs() < 1e-9 && a[2] == b[2]);
                }
            }
        }
    }

    #[test]
    fn what_is_wrong_with_a_folder_is_said() {
        let missing = read(Path::new("/nonexistent/folder")).unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/folder") && missing.contains("train/"), "{missing}");
        let dir = tempfile::tempdir().unwrap();
        let empty = read(dir.path()).unwrap_err().to_string();
        assert!(empty.contains("has no train/"), "{empty}");
        let good = source(2, 2);
        let path = good.path().join("val/annotations.json");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"nose\"", "\"snout\"")).unwrap();
        let skeleton = read(good.path()).unwrap_err().to_string();
        assert!(skeleton.contains("different skeletons") && skeleton.contains("snout"), "{skeleton}");
    }

    #[test]
    fn thinning_is_even_and_exact() {
        let dir = source(11, 1);
        let dataset = Dataset::load(&dir.path().join("train")).unwrap();
        for count in [1, 4, 10, 11, 50] {
            assert_eq!(thin(&dataset, count).images.len() as u64, count.min(11));
        }
    }
}
