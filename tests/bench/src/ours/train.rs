//! An optimiser step of the trainer on pictures of the network's size, without augmentation.

use crate::fixture::{self, Truth};
use crate::side::{Device as Where, Task, Work};
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use omnilabel_keypoints::geometry::{Point, Rect, Size};
use omnilabel_keypoints::skeleton::Skeleton;
use omnilabel_rcnn::augment::{Person, Sample};
use omnilabel_rcnn::device::{Compute, Place, TrainDevice};
use omnilabel_rcnn::targets::{self, RoiSample, Sampled};
use omnilabel_rcnn::train::{Chosen, Init, Run, TrainOptions, objective_on};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

pub(crate) struct Train {
    folder: PathBuf,
    place: Place,
    run: Run,
    samples: Vec<Sample>,
}

fn people(truth: &Truth) -> Vec<Person> {
    let keypoint = |k: &[f32; 3]| (k[2] > 0.0).then_some(Point { x: k[0], y: k[1] });
    let boxes = truth.boxes.iter().map(|b| Rect::new(b[0], b[1], b[2], b[3]));
    boxes.zip(&truth.keypoints).map(|(rect, k)| Person { rect, keypoints: k.iter().map(keypoint).collect(), soft: None }).collect()
}

impl Train {
    pub(crate) fn new(task: &Task) -> Result<Self> {
        let folder = task.folder.clone();
        let options: TrainOptions = fixture::read_json(&folder.join("options.json"))?;
        let truths: Vec<Truth> = fixture::read_json(&folder.join("truth.json"))?;
        let frames = fixture::frames(&folder)?;
        let samples = frames.into_iter().zip(&truths).map(|(frame, truth)| Sample {
            frame,
            people: people(truth),
            ignore: Vec::new(),
            generated: false,
        });
        let samples = samples.collect();
        let init = Init::File(folder.join("weights.safetensors"), 1);
        let device = if task.device == Where::Cuda { TrainDevice::Cuda } else { TrainDevice::Cpu };
        let place = Compute { device, precision: task.precision, ..Compute::default() }.open()?;
        let run = Run::new_on(fixture::read_json(&folder.join("config.json"))?, options, Skeleton::coco17().flip(), &init, &place)?;
        Ok(Self { folder, place, run, samples })
    }
}

/// What the reference sampled and found.
struct Reference(Vec<u8>);

/// Shape and values by name.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

impl Reference {
    fn tensors(&self) -> Result<Tensors> {
        let file = SafeTensors::deserialize(&self.0)?;
        let tensors = file.tensors().into_iter().map(|(name, view)| {
            let word = |b: &[u8]| [b[0], b[1], b[2], b[3]];
            let words = view.data().chunks_exact(4).map(word);
            let values = match view.dtype() {
                safetensors::Dtype::F32 => words.map(f32::from_le_bytes).collect(),
                safetensors::Dtype::I32 => words.map(|w| i32::from_le_bytes(w) as f32).collect(),
                other => anyhow::bail!("{name}: expected F32 or I32, found {other:?}"),
            };
            Ok((name, (view.shape().to_vec(), values)))
        });
        tensors.collect()
    }
}

impl Work for Train {
    /// The losses and gradients on the anchors and RoIs that the reference sampled (`tests/python/parity.py`): `gradient` is the largest
    /// ‖ours − theirs‖ / ‖theirs‖ of a parameter.
    fn check(&mut self) -> Result<Value> {
        let path = self.folder.join("check.safetensors");
        let Ok(bytes) = std::fs::read(&path) else {
            // Nobody to compare with.
            return Ok(json!({}));
        };
        let tensors = Reference(bytes).tensors().with_context(|| path.display().to_string())?;
        let get = |name: &str| tensors.get(name).with_context(|| format!("{}: `{name}` is missing", path.display()));
        let rects = |values: &[f32]| -> Vec<Rect> { values.chunks_exact(4).map(|c| Rect::new(c[0], c[1], c[2], c[3])).collect() };
        let (shape, images) = get("images")?;
        let (_, sizes) = get("sizes")?;
        let images = Tensor::from_slice(images, shape.as_slice(), &Device::Cpu)?.to_device(self.place.device())?;
        let (mut truths, mut chosen) = (Vec::new(), Chosen::default());
        for (image, sample) in self.samples.iter().enumerate() {
            let named = |name: &str| Ok::<_, anyhow::Error>(&get(&format!("{name}_{image}"))?.1);
            truths.push(targets::Truth {
                net: Size { width: sizes[2 * image + 1] as u32, height: sizes[2 * image] as u32 },
                boxes: rects(named("truth_boxes")?),
                keypoints: sample.people.iter().map(|person| person.keypoints.clone()).collect(),
                ignore: Vec::new(),
                soft: Vec::new(),
            });
            chosen.anchors.push(Sampled {
                positive: named("anchors_positive")?.chunks_exact(2).map(|pair| (pair[0] as usize, pair[1] as usize)).collect(),
                negative: named("anchors_negative")?.iter().map(|&index| index as usize).collect(),
            });
            chosen.rois.push(RoiSample {
                rois: rects(named("rois")?),
                matched: named("rois_matched")?.iter().map(|&index| (index >= 0.0).then_some(index as usize)).collect(),
            });
        }
        let (losses, total) = objective_on(&self.run.network, &images, &truths, &chosen)?;
        let grads = total.backward()?;
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let mut largest = 0f64;
        for (name, var) in self.run.network.params().trainable() {
            // A bias that a softmax over the whole map cancels: its gradient is rounding alone.
            if name == "roi_heads.keypoint_predictor.kps_score_lowres.bias" {
                continue;
            }
            let (_, expected) = get(&format!("grad.{name}"))?;
            let found: Vec<f32> = match grads.get(var.as_tensor()) {
                Some(grad) => grad.flatten_all()?.to_vec1()?,
                None => vec![0.0; expected.len()],
            };
            let size = norm(&mut expected.iter().map(|&v| f64::from(v)));
            let off = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(a - b)));
            anyhow::ensure!(off.is_finite() && size.is_finite(), "the gradient of {name} is not finite");
            largest = largest.max(off / size.max(1e-9));
        }
        let foreground = chosen.rois.iter().flat_map(|rois| &rois.matched).filter(|matched| matched.is_some()).count();
        Ok(json!({"losses": losses.named().into_iter().collect::<BTreeMap<_, _>>(), "gradient": largest, "foreground": foreground}))
    }

    fn run(&mut self) -> Result<()> {
        let samples: Vec<&Sample> = self.samples.iter().collect();
        self.run.step(&samples)?;
        Ok(())
    }
}
