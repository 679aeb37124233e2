//! A folder of images as a camera.

use super::{Camera, CameraEvent, Progress, Recording, Shot, shot};
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Plays the images of a folder in the order of their names.
#[derive(Debug)]
pub struct Folder {
    files: Vec<PathBuf>,
    next: usize,
    period: Duration,
    repeat: bool,
    due: Option<Instant>,
    /// Where it is noted how far it is, and what tells it from another folder.
    progress: Option<(PathBuf, Recording)>,
}

/// The JPEG and PNG files directly in `folder`, by name; numbers in names count as numbers (`2.png` before `10.png`).
///
/// # Errors
/// When the folder cannot be read.
pub fn images_of(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("{}: cannot read the folder of images", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("{}: cannot read the folder of images", folder.display()))?.path();
        let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        // Links are followed; a pipe with such a name would never end.
        if matches!(extension.as_deref(), Some("jpg" | "jpeg" | "png")) && path.is_file() {
            files.push(path);
        }
    }
    files.sort_by_cached_key(|path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        (natural(&name), name)
    });
    Ok(files)
}

/// Digits as numbers, the rest as text.
fn natural(name: &str) -> Vec<(u128, String)> {
    let (mut parts, mut rest) = (Vec::new(), name);
    while !rest.is_empty() {
        let text = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let digits = rest[text..].find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len() - text);
        // Text sorts before the number that follows it; longer numbers than u128 do not name frames.
        parts.push((0, rest[..text].to_owned()));
        parts.push((rest[text..text + digits].parse().unwrap_or(u128::MAX), String::new()));
        rest = &rest[text + digits..];
    }
    parts
}

impl Folder {
    /// Opens the folder. With `progress`, a folder that does not repeat goes on where it was, if the files up to there are the same.
    ///
    /// # Errors
    /// When it cannot be read or has no JPEG or PNG.
    pub fn open(folder: &Path, fps: f64, repeat: bool, progress: Option<&Path>) -> anyhow::Result<Self> {
        let files = images_of(folder)?;
        if files.is_empty() {
            bail!("{}: no image in the folder, expected .jpg, .jpeg or .png files", folder.display());
        }
        let progress = progress.filter(|_| !repeat).map(|file| (file.to_owned(), Recording::folder(&files)));
        let noted = progress.as_ref().map(|(file, recording)| Progress::open(file, recording.clone()));
        let next = noted.as_ref().map_or(0, Progress::position);
        if noted.is_some_and(|noted| noted.is_of_another()) {
            tracing::warn!(folder = %folder.display(), count = files.len(), "not the images that were noted: the folder begins anew");
        } else if next > 0 {
            tracing::info!(next, count = files.len(), "the folder goes on where it was");
        }
        Ok(Self { files, next, period: Duration::from_secs_f64(1.0 / fps), repeat, due: None, progress })
    }
}

impl Folder {
    fn load(&self, index: usize) -> CameraEvent {
        let path = &self.files[index];
        let position = Some(index + 1);
        let stem = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        match std::fs::read(path) {
            Ok(bytes) => shot(stem.unwrap_or(index as u64 + 1), path.display().to_string(), bytes, position),
            Err(error) => CameraEvent::Bad { reason: format!("{}: {error}", path.display()), position },
        }
    }
}

impl Camera for Folder {
    fn next(&mut self) -> CameraEvent {
        if self.next >= self.files.len() {
            if !self.repeat {
                return CameraEvent::End;
            }
            self.next = 0;
        }
        let now = Instant::now();
        let due = self.due.unwrap_or(now);
        std::thread::sleep(due.saturating_duration_since(now));
        // A frame that had to wait does not make the next ones come faster than the rate.
        self.due = Some(due.max(now) + self.period);
        self.next += 1;
        self.load(self.next - 1)
    }

    fn is_live(&self) -> bool {
        false
    }

    fn progress(&self) -> Option<Progress> {
        let (file, recording) = self.progress.as_ref()?;
        let mut progress = Progress::open(file, recording.clone());
        // A line of an older version gets its checksum while the images are known.
        progress.settle(0);
        Some(progress)
    }

    fn past(&self, count: usize) -> Vec<Box<Shot>> {
        let shots = (self.next.saturating_sub(count)..self.next).map(|index| self.load(index));
        shots.filter_map(|event| if let CameraEvent::Shot(shot) = event { Some(shot) } else { None }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use omnilabel_detect::frame::Frame;
    use omnilabel_keypoints::geometry::Size;

    fn picture(shade: u8) -> Vec<u8> {
        Frame { size: Size { width: 8, height: 6 }, rgb: vec![shade; 144] }.to_jpeg(90)
    }

    #[test]
    fn images_play_in_natural_order_bad_ones_are_told_and_the_end_comes() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["10.jpg", "2.jpg", "b1.JPG"] {
            std::fs::write(folder.path().join(name), picture(9)).unwrap();
        }
        std::fs::write(folder.path().join("3.jpg"), &picture(9)[..40]).unwrap();
        std::fs::write(folder.path().join("notes.txt"), "no image").unwrap();
        let progress = folder.path().join("progress");
        let play = || {
            let mut camera = Folder::open(folder.path(), 1000.0, false, Some(&progress)).unwrap();
            let mut seen = Vec::new();
            loop {
                match camera.next() {
                    CameraEvent::Shot(shot) => seen.push(shot.id.to_string()),
                    CameraEvent::Bad { reason, .. } => seen.push(if reason.contains("3.jpg") { "bad 3".into() } else { reason }),
                    CameraEvent::End => return seen,
                    event => panic!("{event:?}"),
                }
            }
        };
        assert_eq!(play(), ["2", "bad 3", "10", "4"]);
        assert_eq!(play().len(), 4, "a frame that was played and not labelled is played again");
        let mut done = Folder::open(folder.path(), 1.0, false, Some(&progress)).unwrap().progress().unwrap();
        done.without_label(2);
        done.settle(1);
        assert_eq!(play(), ["10", "4"]);
        done.without_label(4);
        done.settle(1);
        assert!(play().is_empty(), "a folder that is done with is not played again");
        let past = Folder::open(folder.path(), 1.0, false, Some(&progress)).unwrap().past(3);
        assert_eq!(past.iter().map(|shot| shot.id).collect::<Vec<_>>(), [10, 4], "a model can still be tried on it");
    }

    #[test]
    fn a_folder_goes_on_while_what_is_done_with_is_the_same_and_begins_anew_otherwise() {
        let (folder, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let progress = state.path().join("progress");
        let at = |name: &str| folder.path().join(name);
        let open = || Folder::open(folder.path(), 1e6, false, Some(&progress)).unwrap();
        // Plays it to its end, and every frame is done with.
        let play = || {
            let (mut camera, mut frames) = (open(), 0);
            let mut noted = camera.progress().unwrap();
            loop {
                match camera.next() {
                    CameraEvent::Shot(shot) => noted.without_label(shot.position.unwrap()),
                    CameraEvent::End => break,
                    event => panic!("{event:?}"),
                }
                frames += 1;
            }
            noted.settle(1);
            frames
        };
        let stripes = Frame { size: Size { width: 8, height: 6 }, rgb: (0..144_u8).map(|at| at.wrapping_mul(97)).collect() }.to_jpeg(90);
        assert_ne!(stripes.len(), picture(9).len());
        for index in 1..=10 {
            std::fs::write(at(&format!("{index}.jpg")), picture(9)).unwrap();
        }
        assert_eq!((play(), play()), (10, 0));
        std::fs::write(at("11.jpg"), picture(9)).unwrap();
        assert_eq!((play(), play()), (1, 0), "one more at the end");
        for index in 1..=11 {
            std::fs::write(at(&format!("{index}.jpg")), &stripes).unwrap();
        }
        assert_eq!((play(), play()), (11, 0), "others under the same names");
        for index in 1..=11 {
            std::fs::rename(at(&format!("{index}.jpg")), at(&format!("b{index}.jpg"))).unwrap();
        }
        assert_eq!((play(), play()), (11, 0), "others of the same sizes");
        std::fs::write(at("a.jpg"), picture(9)).unwrap();
        assert_eq!((play(), play()), (12, 0), "one more before the others");
        std::fs::remove_file(at("b11.jpg")).unwrap();
        assert_eq!((play(), play()), (11, 0), "one less");

        std::fs::remove_file(&progress).unwrap();
        let mut noted = open().progress().unwrap();
        noted.without_label(4);
        noted.settle(1);
        std::fs::write(at("b8.jpg"), picture(9)).unwrap();
        std::fs::remove_file(at("b9.jpg")).unwrap();
        assert_eq!(play(), 6, "what comes after does not matter");
        std::fs::write(&progress, "7 10\n").unwrap();
        assert_eq!((play(), play()), (3, 0), "an older version noted the number of files alone");
    }

    #[test]
    fn a_folder_without_images_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let error = Folder::open(folder.path(), 1.0, false, None).unwrap_err().to_string();
        assert!(error.contains(&folder.path().display().to_string()) && error.contains(".jpg"), "{error}");
        assert!(Folder::open(&folder.path().join("missing"), 1.0, false, None).is_err());
    }
}
