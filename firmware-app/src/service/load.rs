//! How many views a frame gets: all of them, until frames take too long or the device gets too hot.

use crate::config::TeacherConfig;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Frames after which a mean is worth a decision to have fewer views …
const FEW: u32 = 8;
/// … and more views.
const MANY: u32 = 64;
/// More views only when the time that they should take is this share of what is allowed.
const MARGIN: f64 = 0.8;
/// How often the temperature is looked at.
const LOOK: Duration = Duration::from_secs(10);
/// More views only when it is so much cooler, °C.
const COOLER: f32 = 5.0;

/// The controller. It is told times and temperatures.
pub(super) struct Load {
    max_secs: f64,
    max_celsius: f32,
    reduction: usize,
    mean_secs: f64,
    frames: u32,
    looked: Option<Instant>,
    hot: Option<f32>,
    cool: bool,
}

/// A decision for people.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Changed {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) why: String,
}

impl Load {
    pub(super) fn new(config: &TeacherConfig) -> Self {
        let max_secs = if config.max_frame_ms == 0 { f64::INFINITY } else { f64::from(config.max_frame_ms) / 1000.0 };
        let max_celsius = if config.max_celsius > 0.0 { config.max_celsius } else { f32::INFINITY };
        Self { max_secs, max_celsius, reduction: 0, mean_secs: 0.0, frames: 0, looked: None, hot: None, cool: true }
    }

    /// Steps from all views.
    pub(super) fn reduction(&self) -> usize {
        self.reduction
    }

    /// Looks at the sensors when it is time.
    pub(super) fn look(&mut self, now: Instant, sensors: impl FnOnce() -> Option<f32>) {
        let due = self.looked.is_none_or(|at| now.duration_since(at) >= LOOK);
        if self.max_celsius.is_finite() && due {
            self.looked = Some(now);
            let celsius = sensors();
            self.hot = celsius.filter(|&celsius| celsius > self.max_celsius);
            self.cool = celsius.is_none_or(|celsius| celsius < self.max_celsius - COOLER);
        }
    }

    /// A frame took `secs`; `views` are the model's views by steps.
    pub(super) fn took(&mut self, secs: f64, views: &[usize]) -> Option<Changed> {
        self.frames += 1;
        self.mean_secs = if self.frames == 1 { secs } else { 0.8 * self.mean_secs + 0.2 * secs };
        let last = views.len().saturating_sub(1);
        let ms = 1000.0 * self.mean_secs;
        if self.reduction > last {
            return self.go(last, views, "the model has no fewer views".to_owned());
        }
        if self.reduction < last && self.frames >= FEW {
            if self.mean_secs > self.max_secs {
                return self.go(self.reduction + 1, views, format!("a frame takes {ms:.0} ms, {:.0} are allowed", 1000.0 * self.max_secs));
            }
            // Once for each look.
            if let Some(celsius) = self.hot.take() {
                return self.go(self.reduction + 1, views, format!("the device has {celsius:.0} °C, {:.0} are allowed", self.max_celsius));
            }
        }
        if self.reduction > 0 && self.frames >= MANY && self.cool {
            let more = views[self.reduction - 1] as f64 / views[self.reduction] as f64;
            if self.mean_secs * more < MARGIN * self.max_secs {
                return self.go(self.reduction - 1, views, format!("a frame takes {ms:.0} ms"));
            }
        }
        None
    }

    fn go(&mut self, reduction: usize, views: &[usize], why: String) -> Option<Changed> {
        let count = |reduction: usize| views.get(reduction).or(views.last()).copied().unwrap_or(1);
        let changed = Changed { from: count(self.reduction), to: count(reduction), why };
        (self.reduction, self.frames) = (reduction, 0);
        (changed.from != changed.to).then_some(changed)
    }
}

/// The hottest of the kernel's thermal zones, °C.
pub(super) fn hottest() -> Option<f32> {
    hottest_in(Path::new("/sys/class/thermal"))
}

fn hottest_in(folder: &Path) -> Option<f32> {
    let zones = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let zones = zones.filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("thermal_zone")));
    let read = |zone: PathBuf| -> Option<f32> {
        let text = std::fs::read_to_string(zone.join("temp")).ok()?;
        // Thousandths; sensors that are asleep say nonsense.
        Some(text.trim().parse::<f32>().ok()? / 1000.0).filter(|celsius| (-60.0..=200.0).contains(celsius))
    };
    zones.filter_map(read).max_by(f32::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(max_frame_ms: u32, max_celsius: f32) -> Load {
        Load::new(&TeacherConfig { max_frame_ms, max_celsius, ..TeacherConfig::default() })
    }

    /// Frames until something changes, and to how many views.
    fn run(load: &mut Load, secs: impl Fn(usize) -> f64, views: &[usize]) -> Option<(u32, usize)> {
        (1..=200).find_map(|frame| Some((frame, load.took(secs(views[load.reduction().min(views.len() - 1)]), views)?.to)))
    }

    #[test]
    fn slow_frames_cost_views_and_fast_ones_bring_them_back() {
        let (mut load, views) = (load(100, 0.0), [6, 2, 1]);
        let slow = |views: usize| 0.03 * views as f64 + 0.05;
        assert_eq!(run(&mut load, slow, &views), Some((FEW, 2)));
        assert_eq!(run(&mut load, slow, &views), Some((FEW, 1)));
        assert_eq!(run(&mut load, slow, &views), None, "0.16 s would be too long again");
        let fast = |views: usize| 0.01 * views as f64;
        assert_eq!(run(&mut load, fast, &views), Some((4, 2)), "the mean follows, and 64 frames have passed");
        assert_eq!(run(&mut load, fast, &views), Some((MANY, 6)));
        assert_eq!(run(&mut load, fast, &views), None);
        assert_eq!(load.reduction(), 0);
    }

    #[test]
    fn heat_costs_a_step_at_each_look_and_none_without_a_limit() {
        let (mut load, views, start) = (load(0, 80.0), [6, 2, 1], Instant::now());
        let quick = |_| 0.001;
        load.look(start, || Some(85.0));
        assert_eq!(run(&mut load, quick, &views), Some((FEW, 2)));
        load.look(start + LOOK / 2, || panic!("too early"));
        assert_eq!(run(&mut load, quick, &views), None, "it is still hot");
        load.look(start + LOOK, || Some(78.0));
        assert_eq!(run(&mut load, quick, &views), None, "it may get hot again");
        load.look(start + 2 * LOOK, || Some(60.0));
        assert_eq!(run(&mut load, quick, &views), Some((1, 6)));
        let mut unlimited = super::Load::new(&TeacherConfig::default());
        unlimited.look(start, || panic!("nobody asked"));
        assert_eq!(run(&mut unlimited, |_| 100.0, &views), None);
        // A model of one view has nothing to leave out; one that comes while views are left out may have fewer steps.
        load.look(start + 4 * LOOK, || Some(99.0));
        assert_eq!(run(&mut load, quick, &[1]), None);
        assert_eq!(run(&mut load, quick, &views), Some((1, 2)));
        assert_eq!(load.took(1.0, &[1]), None);
        assert_eq!(load.reduction(), 0);
    }

    #[test]
    fn the_hottest_zone_counts_and_nonsense_does_not() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(hottest_in(folder.path()), None);
        for (zone, temp) in
            [("thermal_zone0", "41500\n"), ("thermal_zone1", "63250\n"), ("thermal_zone2", "-274000\n"), ("cooling_device0", "99000")]
        {
            std::fs::create_dir(folder.path().join(zone)).unwrap();
            std::fs::write(folder.path().join(zone).join("temp"), temp).unwrap();
        }
        std::fs::create_dir(folder.path().join("thermal_zone3")).unwrap();
        assert_eq!(hottest_in(folder.path()), Some(63.25));
    }
}
