//! Which frames are labelled, and how many frames leave the device: schedule, quotas, novelty. It is told the time and knows no file.

use crate::clock;
use crate::config::PolicyConfig;
use omnilabel_detect::frame::Frame;
use serde::{Deserialize, Serialize};

/// Why a frame is not labelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Skip {
    /// The schedule says not now.
    Schedule,
    /// The hour's or the day's labels are made.
    Quota,
    /// Nothing changed since the last one.
    NearDuplicate,
}

impl Skip {
    /// As counters are named.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::Quota => "quota",
            Self::NearDuplicate => "near_duplicate",
        }
    }
}

/// A count of an hour and of a day. Its state is what a restart has to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Quota {
    hour: u64,
    in_hour: u64,
    day: u64,
    in_day: u64,
}

impl Quota {
    /// Whether one more is allowed at `local_ms`. A clock that was set begins another hour.
    pub fn has_room(&mut self, per_hour: u64, per_day: u64, local_ms: u64) -> bool {
        let (hour, day) = (local_ms / 3_600_000, local_ms / 86_400_000);
        if hour != self.hour {
            (self.hour, self.in_hour) = (hour, 0);
        }
        if day != self.day {
            (self.day, self.in_day) = (day, 0);
        }
        (per_hour == 0 || self.in_hour < per_hour) && (per_day == 0 || self.in_day < per_day)
    }

    /// One was used.
    pub fn count(&mut self) {
        self.in_hour += 1;
        self.in_day += 1;
    }
}

/// Milliseconds since 1970 on the clock of the place.
pub fn local_ms(unix_ms: u64, utc_offset_minutes: i32) -> u64 {
    unix_ms.saturating_add_signed(i64::from(utc_offset_minutes) * 60_000)
}

/// The rules for all cameras of a device.
pub struct Policy {
    config: PolicyConfig,
    quota: Quota,
    /// The last labelled frame of each camera.
    last: Vec<Option<Thumbnail>>,
}

impl Policy {
    /// For `cameras` cameras, going on with `quota`.
    pub fn new(config: PolicyConfig, cameras: usize, quota: Quota) -> Self {
        Self { config, quota, last: vec![None; cameras] }
    }

    /// Whether a frame of a camera is to be labelled. One that is counts.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(&mut self, camera: usize, live: bool, frame: &Frame, unix_ms: u64) -> Result<(), Skip> {
        let local = local_ms(unix_ms, self.config.utc_offset_minutes);
        let minute = (local / 60_000 % 1440) as u16;
        // A clock that was never set says nothing about the hour.
        let clock = unix_ms >= clock::SET_MS;
        if live && clock && !self.config.hours.is_empty() && !self.config.hours.iter().any(|hours| hours.contains(minute)) {
            return Err(Skip::Schedule);
        }
        if !self.quota.has_room(self.config.labels_per_hour, self.config.labels_per_day, local) {
            return Err(Skip::Quota);
        }
        if self.config.novelty > 0.0
            && let Some(last) = self.last.get_mut(camera)
        {
            let thumbnail = Thumbnail::new(frame);
            if last.as_ref().is_some_and(|last| last.change(&thumbnail) < self.config.novelty) {
                return Err(Skip::NearDuplicate);
            }
            *last = Some(thumbnail);
        }
        self.quota.count();
        Ok(())
    }

    /// What a restart has to know; none when nothing is limited.
    pub fn quota(&self) -> Option<Quota> {
        (self.config.labels_per_hour > 0 || self.config.labels_per_day > 0).then_some(self.quota)
    }
}

const COLUMNS: usize = 32;
const ROWS: usize = 24;

/// Mean luma of the cells of a grid, `[0, 255]`.
#[derive(Clone, Debug, PartialEq)]
struct Thumbnail([f32; COLUMNS * ROWS]);

impl Thumbnail {
    fn new(frame: &Frame) -> Self {
        let (width, height) = (frame.size.width as usize, frame.size.height as usize);
        let (mut sums, mut counts) = ([0.0_f32; COLUMNS * ROWS], [0.0_f32; COLUMNS * ROWS]);
        // Of a large frame not every pixel is needed: some hundred of each cell average the noise away.
        let step = (width.min(height) / 480).max(1);
        for y in (0..height).step_by(step) {
            let row = &frame.rgb[3 * y * width..3 * (y + 1) * width];
            let first = y * ROWS / height * COLUMNS;
            for x in (0..width).step_by(step) {
                let [r, g, b] = [0, 1, 2].map(|channel| f32::from(row[3 * x + channel]));
                let cell = first + x * COLUMNS / width;
                // ITU-R BT.601.
                sums[cell] += 0.299 * r + 0.587 * g + 0.114 * b;
                counts[cell] += 1.0;
            }
        }
        let mut means = sums;
        means.iter_mut().zip(counts).for_each(|(sum, count)| *sum /= count.max(1.0));
        Self(means)
    }

    /// The largest change of a cell as a share of full scale, less the median change, which is the exposure's.
    fn change(&self, other: &Self) -> f32 {
        let mut changes: Vec<f32> = self.0.iter().zip(&other.0).map(|(a, b)| b - a).collect();
        changes.sort_unstable_by(f32::total_cmp);
        let (least, median, most) = (changes[0], changes[changes.len() / 2], changes[changes.len() - 1]);
        (most - median).max(median - least) / 255.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Hours;
    use omnilabel_keypoints::geometry::Size;

    /// A grey picture with a square of `side` px at `at`, brighter by 80.
    fn picture(grey: u8, at: usize, side: usize) -> Frame {
        let (width, height) = (160, 120);
        let bright = |x: usize, y: usize| (at..at + side).contains(&x) && (at..at + side).contains(&y);
        let rgb = (0..width * height).flat_map(|i| [grey + if bright(i % width, i / width) { 80 } else { 0 }; 3]).collect();
        Frame { size: Size { width: width as u32, height: height as u32 }, rgb }
    }

    #[test]
    fn near_duplicates_are_skipped_and_what_moves_or_comes_is_not() {
        let config = PolicyConfig { novelty: 0.05, ..PolicyConfig::default() };
        let mut policy = Policy::new(config, 2, Quota::default());
        let mut check = |camera, frame: &Frame, expect: Result<(), Skip>| assert_eq!(policy.admit(camera, true, frame, 1), expect);
        check(0, &picture(100, 10, 12), Ok(()));
        check(0, &picture(100, 10, 12), Err(Skip::NearDuplicate));
        // The exposure follows a cloud.
        check(0, &picture(112, 10, 12), Err(Skip::NearDuplicate));
        check(0, &picture(100, 11, 12), Ok(()));
        // Every camera has its own last frame.
        check(1, &picture(100, 11, 12), Ok(()));
        check(0, &picture(100, 0, 0), Ok(()));
        // A single pixel is a twenty-fifth of its cell.
        check(0, &picture(100, 50, 1), Err(Skip::NearDuplicate));
        // Creeping changes add up: it is always compared with what was labelled.
        let mut creeping = picture(100, 0, 0);
        let mut step = || {
            creeping.rgb.iter_mut().take(3 * 20).for_each(|value| *value += 30);
            policy.admit(0, true, &creeping, 1)
        };
        assert_eq!([step(), step(), step()], [Err(Skip::NearDuplicate), Err(Skip::NearDuplicate), Ok(())]);
    }

    #[test]
    fn quotas_and_the_schedule_hold_by_the_clock_of_the_place() {
        let config = PolicyConfig {
            labels_per_hour: 2,
            labels_per_day: 3,
            hours: vec![Hours { from: 60, to: 180 }],
            utc_offset_minutes: 60,
            ..PolicyConfig::default()
        };
        let frame = picture(0, 0, 0);
        let minutes = |minutes: u64| 21_000 * 86_400_000 + minutes * 60_000;
        let mut policy = Policy::new(config.clone(), 1, Quota::default());
        let mut check = |live, minute, expect: Result<(), Skip>| assert_eq!(policy.admit(0, live, &frame, minutes(minute)), expect);
        check(true, 0, Ok(()));
        check(true, 59, Ok(()));
        check(true, 59, Err(Skip::Quota));
        check(true, 60, Ok(()));
        check(true, 61, Err(Skip::Quota));
        check(true, 120, Err(Skip::Schedule));
        // Recordings are labelled at any time, within the quota.
        check(false, 1379, Err(Skip::Quota));
        check(false, 1380, Ok(()));
        let quota = policy.quota().unwrap();
        let text = serde_json::to_string(&quota).unwrap();
        let mut restarted = Policy::new(config, 1, serde_json::from_str(&text).unwrap());
        assert_eq!(restarted.admit(0, false, &frame, minutes(1390)), Ok(()));
        assert_eq!(restarted.admit(0, false, &frame, minutes(1391)), Err(Skip::Quota));
        // A clock that was wrong by years does not stop the device for years.
        assert_eq!(restarted.admit(0, false, &frame, minutes(5_000_000)), Ok(()));
        assert_eq!(restarted.admit(0, false, &frame, minutes(1392)), Ok(()));
        assert_eq!(Policy::new(PolicyConfig::default(), 1, Quota::default()).quota(), None);
    }
}
