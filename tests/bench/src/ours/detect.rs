//! Labelling a frame, from the camera's bytes to people in frame pixels.

use crate::agree::Person;
use crate::fixture;
use crate::side::{Device, Task, Work};
use anyhow::{Context, Result};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Rect;
use omnilabel_keypoints::label::Detection;
use omnilabel_runtime::{Teacher, ViewPlan};
use serde_json::{Value, json};

pub(crate) struct Detect {
    teacher: Teacher,
    frame: Frame,
    plan: ViewPlan,
    boxes: Option<Vec<(Rect, f32)>>,
}

impl Detect {
    pub(crate) fn new(task: &Task) -> Result<Self> {
        let bundle = fixture::bundle(&task.folder)?;
        let teacher = match task.device {
            Device::Cpu => Teacher::load(&bundle, task.threads)?,
            Device::Cuda => Teacher::load_cuda(&bundle)?,
        };
        let frame =
            fixture::frames(&task.folder)?.into_iter().next().with_context(|| format!("{} has no frames", task.folder.display()))?;
        let plan = ViewPlan { base_short_side: task.base, ..ViewPlan::new(bundle.manifest(), &task.scales, task.flip) };
        let boxes = task.boxes.as_ref().map(|boxes| boxes.iter().map(|b| (Rect::new(b[0], b[1], b[2], b[3]), b[4])).collect());
        Ok(Self { teacher, frame, plan, boxes })
    }

    fn label(&self) -> Result<Vec<Detection>> {
        Ok(match &self.boxes {
            Some(boxes) => self.teacher.detect_in(&self.frame, boxes, &self.plan)?,
            None => self.teacher.detect(&self.frame, &self.plan)?,
        })
    }
}

impl Work for Detect {
    fn check(&mut self) -> Result<Value> {
        let people: Vec<Person> = self.label()?.iter().map(Person::of).collect();
        Ok(json!({"people": people}))
    }

    fn run(&mut self) -> Result<()> {
        std::hint::black_box(self.label()?);
        Ok(())
    }
}
