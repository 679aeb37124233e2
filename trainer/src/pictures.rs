//! Pictures by what is in them, to find those of one folder in another.

use crate::digest::file_sha256;
use omnilabel_coco::Dataset;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Pictures by what is in them, to find the same ones in another folder whatever they are called there.
pub(crate) struct Pictures {
    /// Only what is of one size is read.
    by_size: BTreeMap<u64, Vec<PathBuf>>,
}

impl Pictures {
    /// Those that can be read: the others are told of by who uses them.
    pub(crate) fn of(dataset: &Dataset) -> Self {
        let mut by_size: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
        for path in dataset.images.iter().map(|image| dataset.image_path(image)) {
            if let Some(about) = std::fs::metadata(&path).ok().filter(|about| about.len() > 0) {
                by_size.entry(about.len()).or_default().push(path);
            }
        }
        Self { by_size }
    }

    /// The first picture of `other` that is here, too, with its name there.
    pub(crate) fn common(&self, other: &Self) -> Option<(PathBuf, PathBuf)> {
        self.by_size.iter().find_map(|(size, ours)| {
            let theirs = other.by_size.get(size)?;
            let read = |paths: &[PathBuf]| -> Vec<(String, PathBuf)> {
                paths.iter().filter_map(|path| Some((file_sha256(path).ok()?, path.clone()))).collect()
            };
            let known: BTreeMap<String, PathBuf> = read(ours).into_iter().collect();
            read(theirs).into_iter().find_map(|(sha256, theirs)| Some((known.get(&sha256)?.clone(), theirs)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnilabel_coco::ImageRecord;
    use omnilabel_keypoints::skeleton::Skeleton;
    use std::path::Path;

    #[test]
    fn a_picture_is_found_again_under_another_name() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let dataset = |root: &Path, files: &[(&str, &str)]| {
            std::fs::create_dir_all(root.join("images")).unwrap();
            files.iter().for_each(|(name, bytes)| std::fs::write(root.join("images").join(name), bytes).unwrap());
            let image =
                |(id, name): (usize, &(&str, &str))| ImageRecord { id: id as u64, file_name: name.0.to_owned(), width: 9, height: 9 };
            let mut images: Vec<_> = files.iter().enumerate().map(image).collect();
            images.push(ImageRecord { id: 99, file_name: "gone.jpg".to_owned(), width: 9, height: 9 });
            Dataset { root: root.to_owned(), skeleton: Skeleton::coco17(), images, annotations: Vec::new() }
        };
        let ours = Pictures::of(&dataset(one.path(), &[("1.jpg", "aa"), ("2.jpg", "bb"), ("3.jpg", "ccc")]));
        let theirs = Pictures::of(&dataset(other.path(), &[("1.jpg", "ab"), ("9.jpg", "bb")]));
        let (here, there) = ours.common(&theirs).unwrap();
        assert!(here.ends_with("2.jpg") && there.ends_with("9.jpg"), "{here:?} {there:?}");
        std::fs::write(other.path().join("images/9.jpg"), "ba").unwrap();
        assert_eq!(ours.common(&theirs), None);
    }
}
