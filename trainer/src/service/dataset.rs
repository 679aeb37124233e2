//! A snapshot of labels as a COCO folder: hard labels under the centre's own thresholds (spec §4), or what people say of them; pictures as
//! they came. A person can look at it, and `train` can read it.

use crate::service::hand::Person;
use anyhow::Context;
use omnilabel_coco::{Annotation, Dataset, ImageRecord};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Size;
use omnilabel_keypoints::label::{Detection, Instance, Label, Thresholds};
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_keypoints::wire::LabelKey;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Writes a folder, image by image; [`Exporter::finish`] makes it a data set.
pub struct Exporter {
    root: PathBuf,
    dataset: Dataset,
    category_id: u64,
    thresholds: Thresholds,
    ignore_from: f32,
    hash: Hash,
    skipped: u64,
}

/// What came of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Images.
    pub images: u64,
    /// Instances that are trained on.
    pub instances: u64,
    /// Keypoints that they have.
    pub keypoints: u64,
    /// Labels whose picture could not be decoded or has another size than the label says.
    pub skipped: u64,
    /// Over annotations and pictures.
    pub sha256: String,
}

impl Exporter {
    /// Starts in an empty folder: whatever lies there is removed. Skeleton and category are `manual`'s. Instances under τ with a score from
    /// `ignore_from` on become crowds, which are neither positive nor background.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(root: &Path, manual: &Dataset, thresholds: Thresholds, ignore_from: f32) -> anyhow::Result<Self> {
        if root.exists() {
            std::fs::remove_dir_all(root).with_context(|| root.display().to_string())?;
        }
        let images = root.join("images");
        std::fs::create_dir_all(&images).with_context(|| images.display().to_string())?;
        let dataset = Dataset { root: root.to_owned(), skeleton: manual.skeleton.clone(), images: Vec::new(), annotations: Vec::new() };
        let (root, category_id) = (root.to_owned(), manual.category_id());
        Ok(Self { root, dataset, category_id, thresholds, ignore_from, hash: Hash::default(), skipped: 0 })
    }

    /// The same for what people say, which no threshold is put to.
    ///
    /// # Errors
    /// What the system says.
    pub fn by_hand(root: &Path, manual: &Dataset) -> anyhow::Result<Self> {
        Self::new(root, manual, Thresholds { instance: 0.0, keypoint: 0.0, floor: 0.0 }, 0.0)
    }

    /// Adds one label with its picture, and says whether its picture could be used; `name` becomes the file's name without extension. Where
    /// `faces_blurred`, the picture does not show what keypoints of the face and the head look like: they are left unlabelled.
    ///
    /// # Errors
    /// What the system says.
    pub fn add(&mut self, name: &str, label: &Label, faces_blurred: bool, jpeg: &[u8]) -> anyhow::Result<bool> {
        let Some(id) = self.picture(name, label.size, jpeg)? else { return Ok(false) };
        for hard in hard_instances(label, &self.dataset.skeleton, self.thresholds, self.ignore_from, faces_blurred) {
            self.annotate(id, &hard.person, hard.crowd);
        }
        Ok(true)
    }

    /// Adds a picture of `size` with whom somebody sees on it, and says whether it could be used.
    ///
    /// # Errors
    /// What the system says.
    pub fn add_by_hand(&mut self, name: &str, size: Size, people: &[Person], jpeg: &[u8]) -> anyhow::Result<bool> {
        let Some(id) = self.picture(name, size, jpeg)? else { return Ok(false) };
        people.iter().for_each(|person| self.annotate(id, person, false));
        Ok(true)
    }

    /// Writes a picture, and gives its id; `None` when it cannot be used.
    fn picture(&mut self, name: &str, size: Size, jpeg: &[u8]) -> anyhow::Result<Option<u64>> {
        match Frame::decode(name, jpeg) {
            Ok(frame) if frame.size == size => {}
            Ok(frame) => {
                tracing::warn!("{name}: the picture has {:?}, its label {size:?}; skipped", frame.size);
                self.skipped += 1;
                return Ok(None);
            }
            Err(error) => {
                tracing::warn!("{error}; skipped");
                self.skipped += 1;
                return Ok(None);
            }
        }
        let file_name = format!("{name}.jpg");
        let path = self.root.join("images").join(&file_name);
        std::fs::write(&path, jpeg).with_context(|| path.display().to_string())?;
        self.hash.picture(jpeg);
        let id = self.dataset.images.len() as u64 + 1;
        self.dataset.images.push(ImageRecord { id, file_name, width: size.width, height: size.height });
        Ok(Some(id))
    }

    fn annotate(&mut self, image_id: u64, person: &Person, crowd: bool) {
        let bbox = person.bbox();
        self.dataset.annotations.push(Annotation {
            id: self.dataset.annotations.len() as u64 + 1,
            image_id,
            category_id: self.category_id,
            bbox,
            keypoints: person.coco(),
            num_keypoints: person.labelled(),
            area: bbox[2] * bbox[3],
            iscrowd: u8::from(crowd),
        });
    }

    /// Leaves a label out whose picture is lost.
    pub fn skip(&mut self, name: &str, lost: &str) {
        tracing::warn!("{name}: {lost}; skipped");
        self.skipped += 1;
    }

    /// Writes `annotations.json`.
    ///
    /// # Errors
    /// What the system says.
    pub fn finish(self) -> anyhow::Result<Exported> {
        self.dataset.write(&self.root)?;
        Ok(Exported {
            images: self.dataset.images.len() as u64,
            instances: self.dataset.annotations.iter().filter(|a| a.iscrowd == 0).count() as u64,
            keypoints: self.dataset.annotations.iter().map(|a| u64::from(a.num_keypoints)).sum(),
            skipped: self.skipped,
            sha256: self.hash.finish(&self.root)?,
        })
    }
}

/// The name of a label's picture in a snapshot, without extension.
pub fn picture_name(device: &str, key: LabelKey) -> String {
    format!("{device}_{:016x}_{}", key.epoch, key.sequence)
}

/// One person of a label as it is trained on.
#[derive(Clone, Debug, PartialEq)]
pub struct HardInstance<'l> {
    /// What the ensemble saw.
    pub detection: &'l Detection,
    /// Box and keypoints inside of the picture; of a crowd no keypoint is labelled.
    pub person: Person,
    /// Neither positive nor background.
    pub crowd: bool,
}

/// Who is trained on of a label: those from τ on with their keypoints from τ_k on, and those with a score from `ignore_from` on as
/// crowds. Where `faces_blurred`, keypoints of the face and the head are left unlabelled.
pub fn hard_instances<'l>(
    label: &'l Label,
    skeleton: &Skeleton,
    thresholds: Thresholds,
    ignore_from: f32,
    faces_blurred: bool,
) -> Vec<HardInstance<'l>> {
    let hard = |instance: &'l Instance| {
        let detection = &instance.detection;
        let (kept, ignored) = (detection.score >= thresholds.instance, detection.score >= ignore_from);
        if !(kept || ignored) {
            return None;
        }
        let mut person = Person::hard(detection, thresholds.keypoint, label.size, skeleton, faces_blurred)?;
        if !kept {
            person.keypoints.fill((0.0, 0.0, 0));
        }
        Some(HardInstance { detection, person, crowd: !kept })
    };
    label.instances.iter().filter_map(hard).collect()
}

/// Fsyncs a folder, so that a rename in it survives power loss.
pub(crate) fn sync_dir(path: &Path) -> anyhow::Result<()> {
    std::fs::File::open(path).and_then(|d| d.sync_all()).with_context(|| path.display().to_string())
}

/// Fsyncs everything in a folder, and the folder.
pub(crate) fn sync_tree(root: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(root).with_context(|| root.display().to_string())? {
        let path = entry.with_context(|| root.display().to_string())?.path();
        if path.is_dir() { sync_tree(&path)? } else { sync_dir(&path)? }
    }
    sync_dir(root)
}

/// SHA-256 of a data set: over that of every picture, by ascending id, and `annotations.json`.
#[derive(Default)]
struct Hash(Sha256);

impl Hash {
    fn picture(&mut self, jpeg: &[u8]) {
        self.0.update(Sha256::digest(jpeg));
    }

    fn finish(mut self, root: &Path) -> anyhow::Result<String> {
        let path = root.join("annotations.json");
        let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
        self.0.update(&bytes);
        Ok(omnilabel_bundle::hex(&self.0.finalize()))
    }
}

/// What an export says of the folder that it wrote, of any folder. A picture that cannot be read, which an evaluation leaves out, counts as
/// an empty one.
pub(crate) fn folder_sha256(root: &Path) -> anyhow::Result<String> {
    let dataset = Dataset::load(root)?;
    let mut hash = Hash::default();
    for image in &dataset.images {
        let path = dataset.image_path(image);
        hash.picture(&std::fs::read(&path).unwrap_or_else(|error| {
            tracing::warn!("{}: {error}; the hash of its data set does without it", path.display());
            Vec::new()
        }));
    }
    hash.finish(root)
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnilabel_keypoints::geometry::{Point, Rect};
    use omnilabel_keypoints::label::Keypoint;

    #[test]
    fn keypoints_of_blurred_faces_are_not_trained_on() {
        let folder = tempfile::tempdir().unwrap();
        let skeleton = Skeleton::coco17();
        let manual = Dataset { root: folder.path().to_owned(), skeleton: skeleton.clone(), images: Vec::new(), annotations: Vec::new() };
        let thresholds = Thresholds { instance: 0.5, keypoint: 0.2, floor: 0.05 };
        let mut exporter = Exporter::new(&folder.path().join("out"), &manual, thresholds, 0.4).unwrap();
        let keypoint = |index: usize| Keypoint { point: Point { x: 4.0 + index as f32, y: 9.0 }, probability: 0.9, ..Keypoint::default() };
        let rect = Rect::new(2.0, 2.0, 30.0, 28.0);
        let detection = Detection { rect, score: 0.9, keypoints: (0..17).map(keypoint).collect() };
        let label = Label {
            size: Size { width: 32, height: 32 },
            instances: [Instance { detection, kept: true }].into_iter().collect(),
            overflow: 0,
        };
        let jpeg = Frame { size: label.size, rgb: vec![90; 32 * 32 * 3] }.to_jpeg(90);
        for (name, blurred) in [("clear", false), ("blurred", true)] {
            exporter.add(name, &label, blurred, &jpeg).unwrap();
        }
        let labelled = |index: usize| exporter.dataset.annotations[index].keypoints.chunks(3).map(|k| k[2] > 0.0).collect::<Vec<_>>();
        assert_eq!(labelled(0), [true; 17]);
        let body: Vec<bool> = skeleton.names().map(|name| !["nose", "eye", "ear"].iter().any(|part| name.ends_with(part))).collect();
        assert_eq!(labelled(1), body);
        assert_eq!(exporter.dataset.annotations.iter().map(|a| a.num_keypoints).collect::<Vec<_>>(), [17, 12]);

        // What a person says is taken as it is said.
        let mut exporter = Exporter::by_hand(&folder.path().join("hand"), &manual).unwrap();
        let mut keypoints = vec![(0.0, 0.0, 0); 17];
        (keypoints[0], keypoints[5]) = ((4.5, 6.0, 1), (10.0, 11.25, 2));
        let person = Person { rect: [2.0, 3.0, 30.0, 28.0], keypoints };
        assert!(exporter.add_by_hand("one", label.size, std::slice::from_ref(&person), &jpeg).unwrap());
        assert!(!exporter.add_by_hand("other", Size { width: 31, height: 32 }, &[person], &jpeg).unwrap());
        let annotation = exporter.dataset.annotations[0].clone();
        assert_eq!((annotation.bbox, annotation.num_keypoints), ([2.0, 3.0, 28.0, 25.0], 2));
        assert_eq!((&annotation.keypoints[..3], &annotation.keypoints[15..18]), (&[4.0, 5.5, 1.0][..], &[9.5, 10.75, 2.0][..]));
        let exported = exporter.finish().unwrap();
        assert_eq!((exported.images, exported.instances, exported.keypoints, exported.skipped), (1, 1, 2, 1));
        assert_eq!(Dataset::load(&folder.path().join("hand")).unwrap().annotations, [annotation]);
    }
}
