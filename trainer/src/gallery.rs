//! An evaluation for people: predictions beside the labels, with what AP is made of, the worst pictures first.

use crate::evaluate::{Detected, Detections};
use crate::score::{Found, GroundTruth, Inspection, ScoreError, inspect};
use omnilabel_coco::{Annotation, Dataset, ImageRecord, to_continuous};
use omnilabel_detect::frame::Frame;
use omnilabel_draw::{Album, AlbumError, Card, Emphasis, Mark, Person, Tone, beside, picture};
use omnilabel_keypoints::geometry::{Point, Rect};
use omnilabel_keypoints::label::{Detection, Thresholds};
use rayon::prelude::*;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// From this OKS on somebody counts as found: AP50's.
pub const FOUND_OKS: f64 = 0.5;

/// Why pictures could not be drawn.
#[derive(Debug, thiserror::Error)]
pub enum GalleryError {
    /// A picture or the page could not be written.
    #[error(transparent)]
    Album(#[from] AlbumError),
    /// The detections do not belong to the labels.
    #[error(transparent)]
    Score(#[from] ScoreError),
}

/// A folder for the pictures of an evaluation.
#[derive(Debug)]
pub struct Gallery<'g> {
    album: Album,
    dataset: &'g Dataset,
    thresholds: Thresholds,
}

/// One picture with everything that is drawn of it.
struct Scene<'g> {
    image: &'g ImageRecord,
    /// Those that pass τ.
    shown: Vec<&'g Detection>,
    /// How many do not.
    below: usize,
    inspection: Inspection,
}

impl<'g> Gallery<'g> {
    /// Takes a new or empty folder, or one that was drawn into before, for the model called `name`. What passes `thresholds` is drawn.
    ///
    /// # Errors
    /// [`GalleryError::Album`], also when a picture of `dataset` lies in the folder.
    pub fn open(folder: &Path, name: &str, dataset: &'g Dataset, thresholds: Thresholds) -> Result<Self, GalleryError> {
        let inputs: Vec<PathBuf> = dataset.images.iter().map(|image| dataset.image_path(image)).collect();
        let title = format!("{name} on {}", dataset.root.display());
        Ok(Self { album: Album::open(folder, &title, inputs.iter().map(PathBuf::as_path))?, dataset, thresholds })
    }

    /// Draws the worst pictures, `limit` of them or all, and returns the page's path. `lines` stand under the title.
    ///
    /// # Errors
    /// See [`GalleryError`]. A picture that cannot be read any more is named on the page, as `detections.unreadable` are.
    pub fn draw(mut self, detections: &Detections, limit: Option<NonZeroUsize>, lines: &[String]) -> Result<PathBuf, GalleryError> {
        let dataset = self.dataset;
        let truth = GroundTruth::from_dataset(dataset)?;
        let mut scenes = detections.images.iter().filter_map(|d| self.scene(&truth, d).transpose()).collect::<Result<Vec<_>, _>>()?;
        let mistakes = |s: &Scene<'_>| s.inspection.missed() + s.inspection.wrong();
        scenes.sort_by(|a, b| {
            let quality = a.inspection.quality().total_cmp(&b.inspection.quality());
            quality.then(mistakes(b).cmp(&mistakes(a))).then(a.image.id.cmp(&b.image.id))
        });
        let all = scenes.len();
        scenes.truncate(limit.map_or(all, NonZeroUsize::get));
        let named: Vec<(String, Scene<'_>)> = scenes.into_iter().map(|s| (self.album.name(Path::new(&s.image.file_name)), s)).collect();
        let drawn: Vec<Result<Result<Card, String>, AlbumError>> = named.par_iter().map(|(name, scene)| self.card(name, scene)).collect();
        let mut notes = detections.unreadable.clone();
        for one in drawn {
            match one? {
                Ok(card) => self.album.push(card),
                Err(reason) => notes.push(reason),
            }
        }
        let Thresholds { instance, keypoint, .. } = self.thresholds;
        let mut summary = lines.to_vec();
        summary.push(format!(
            "{} of {all} pictures, the worst first. Quality: Σ OKS of the people found / (people + wrong detections). Predicted: people with a \
             score of at least {instance:.2} (the model's τ), whose keypoints with a probability below {keypoint:.2} are hollow. Found: OKS of \
             at least {FOUND_OKS:.2}; missed people have a red box. Left limbs are green, right ones orange, others blue; keypoints that are \
             labelled as hidden are hollow.",
            self.album.len(),
        ));
        Ok(self.album.finish(&summary, &notes)?)
    }

    fn scene(&self, truth: &GroundTruth, detected: &'g Detected) -> Result<Option<Scene<'g>>, ScoreError> {
        let Ok(index) = self.dataset.images.binary_search_by_key(&detected.image_id, |image| image.id) else { return Ok(None) };
        let shown: Vec<&Detection> = detected.detections.iter().filter(|d| d.score >= self.thresholds.instance).collect();
        let only = Detected { image_id: detected.image_id, detections: shown.iter().map(|d| (*d).clone()).collect() };
        let results = Detections { images: vec![only], unreadable: Vec::new() }.results(self.dataset);
        let inspection = inspect(truth, detected.image_id, &results, FOUND_OKS)?;
        Ok(Some(Scene { image: &self.dataset.images[index], below: detected.detections.len() - shown.len(), shown, inspection }))
    }

    /// Draws and writes one picture; the reason where it cannot be read.
    fn card(&self, name: &str, scene: &Scene<'_>) -> Result<Result<Card, String>, AlbumError> {
        let frame = match Frame::open(&self.dataset.image_path(scene.image)) {
            Ok(frame) => frame,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let (skeleton, people) = (&self.dataset.skeleton, self.labelled(scene));
        let mut predicted = self.predicted(scene);
        let missed = people.iter().filter(|person| person.tone == Tone::Missed);
        predicted.extend(missed.map(|person| Person { marks: Vec::new(), caption: String::new(), ..person.clone() }));
        let predicted = picture(&frame, skeleton, &predicted);
        let both = beside(&[("predicted", &predicted), ("labelled", &picture(&frame, skeleton, &people))]);
        self.album.save(name, &both)?;
        let title = format!("{name} (image {})", scene.image.id);
        Ok(Ok(Card { file: name.to_owned(), size: both.size, title, lines: lines(scene) }))
    }

    fn predicted(&self, scene: &Scene<'_>) -> Vec<Person> {
        let person = |found: &Found| {
            let detection = scene.shown.get(found.index)?;
            let caption = match found.best_oks {
                Some(oks) => format!("person {:.2} OKS {oks:.2}", found.score),
                None => format!("person {:.2}", found.score),
            };
            Some(Person::detected(detection, found.index, self.thresholds.keypoint, caption))
        };
        scene.inspection.detections.iter().filter_map(person).collect()
    }

    fn labelled(&self, scene: &Scene<'_>) -> Vec<Person> {
        let annotations = self.dataset.annotations_of(scene.image.id);
        let person = |annotation: &Annotation| {
            let met = scene.inspection.people.iter().find(|met| met.id == annotation.id)?;
            let (caption, tone) = match met.oks {
                _ if !met.counts => ("not counted".to_owned(), Tone::Truth),
                Some(oks) => (format!("OKS {oks:.2}"), Tone::Truth),
                None => ("missed".to_owned(), Tone::Missed),
            };
            let [x, y, width, height] = annotation.bbox.map(|v| v as f32);
            Some(Person { rect: Some(Rect::from_xywh(x, y, width, height)), marks: marks(annotation), caption, tone })
        };
        annotations.iter().filter_map(person).collect()
    }
}

/// COCO's flags as marks.
pub(crate) fn marks(annotation: &Annotation) -> Vec<Mark> {
    let mark = |k: &[f64]| {
        let point = Point { x: to_continuous(k[0]), y: to_continuous(k[1]) };
        match k[2] {
            v if v > 1.0 => Mark::Sure(point),
            v if v > 0.0 => Mark::Hidden(point),
            _ => Mark::Absent,
        }
    };
    annotation.keypoints.chunks_exact(3).map(mark).collect()
}

/// What is written under a picture.
fn lines(scene: &Scene<'_>) -> Vec<(Emphasis, String)> {
    let found = |d: &Found| {
        let oks = d.best_oks.map_or_else(|| "nobody is labelled".to_owned(), |oks| format!("best OKS {oks:.2}"));
        match d.correct {
            Some(true) => (Emphasis::Good, format!("person {:.2}, {oks}: found", d.score)),
            // A second one on a person who is taken is as wrong as one on nobody.
            Some(false) if d.best_oks >= Some(FOUND_OKS) => (Emphasis::Bad, format!("person {:.2}, {oks}: somebody twice", d.score)),
            Some(false) => (Emphasis::Bad, format!("person {:.2}, {oks}: wrong", d.score)),
            None => (Emphasis::Faint, format!("person {:.2}, {oks}: in a crowd or without labelled keypoints, not counted", d.score)),
        }
    };
    let counts = [(scene.inspection.missed(), "missed"), (scene.inspection.wrong(), "wrong")];
    let counts: String = counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!(", {n} {what}")).collect();
    let mut lines = vec![(Emphasis::Plain, format!("quality {:.2}{counts}", scene.inspection.quality()))];
    lines.extend(scene.inspection.detections.iter().map(found));
    let missed = scene.inspection.people.iter().filter(|met| met.counts && met.oks.is_none());
    lines.extend(missed.map(|met| (Emphasis::Bad, format!("missed: annotation {}", met.id))));
    if scene.below > 0 {
        lines.push((Emphasis::Faint, format!("{} with a score below τ, not drawn", scene.below)));
    }
    lines
}
