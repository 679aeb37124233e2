//! `label --draw`: what was found, over the pictures, and a page of them.

use omnilabel_detect::frame::Frame;
use omnilabel_draw::{Album, AlbumError, Card, Emphasis, Person, picture};
use omnilabel_keypoints::label::{Detection, Thresholds};
use omnilabel_keypoints::skeleton::Skeleton;
use std::path::{Path, PathBuf};

/// Pictures being drawn.
pub(super) struct Drawing<'d> {
    album: Album,
    /// The folder that was labelled: pictures are called by their place in it.
    images: &'d Path,
    skeleton: &'d Skeleton,
    /// The instances and keypoints that are drawn as sure.
    thresholds: Thresholds,
}

impl<'d> Drawing<'d> {
    /// Takes the folder, unless a picture that is read lies in it.
    ///
    /// # Errors
    /// [`AlbumError`].
    pub(super) fn open(
        folder: &Path,
        images: &'d Path,
        inputs: &[(u64, PathBuf)],
        skeleton: &'d Skeleton,
        thresholds: Thresholds,
    ) -> Result<Self, AlbumError> {
        let album = Album::open(folder, &format!("Labels of {}", images.display()), inputs.iter().map(|(_, path)| path.as_path()))?;
        Ok(Self { album, images, skeleton, thresholds })
    }

    /// Draws one picture.
    ///
    /// # Errors
    /// [`AlbumError::Io`].
    pub(super) fn add(&mut self, id: u64, path: &Path, frame: &Frame, detections: &[Detection]) -> Result<(), AlbumError> {
        let Thresholds { instance, keypoint, .. } = self.thresholds;
        let shown: Vec<&Detection> = detections.iter().filter(|d| d.score >= instance).collect();
        let person = |(index, d): (usize, &&Detection)| Person::detected(d, index, keypoint, format!("person {:.2}", d.score));
        let people: Vec<Person> = shown.iter().enumerate().map(person).collect();
        let drawn = picture(frame, self.skeleton, &people);
        let within = path.strip_prefix(self.images).unwrap_or(path);
        let name = self.album.name(within.strip_prefix("images").unwrap_or(within));
        self.album.save(&name, &drawn)?;
        let sure = |d: &Detection| d.keypoints.iter().filter(|k| k.passes(keypoint)).count();
        let told = |d: &&Detection| (Emphasis::Plain, format!("person {:.2}, {} of {} keypoints", d.score, sure(d), self.skeleton.len()));
        let mut lines: Vec<_> = shown.iter().map(told).collect();
        if shown.is_empty() {
            lines.push((Emphasis::Faint, "nobody".to_owned()));
        }
        match detections.len() - shown.len() {
            0 => {}
            below => lines.push((Emphasis::Faint, format!("{below} with a score below {instance:.2}, not drawn"))),
        }
        self.album.push(Card { title: format!("{name} (image {id})"), file: name, size: drawn.size, lines });
        Ok(())
    }

    /// Writes the page, with the pictures that could not be read at its end, and returns its path.
    ///
    /// # Errors
    /// [`AlbumError::Io`].
    pub(super) fn finish(self, bad: &[String]) -> Result<PathBuf, AlbumError> {
        let Thresholds { instance, keypoint, .. } = self.thresholds;
        let who =
            if instance.is_finite() { format!("people with a score of at least {instance:.2}") } else { "all given boxes".to_owned() };
        let summary = format!(
            "{} pictures. Drawn: {who}; keypoints with a probability below {keypoint:.2} are hollow and \
             have no limbs. Left limbs are green, right ones orange, others blue.",
            self.album.len()
        );
        self.album.finish(&[summary], bad)
    }
}
