//! When the log tells how many labels came: of a device, and of the fleet. Pure: the time comes from outside.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A device's labels are told at most so often, and the fleet's.
const TOLD_EVERY: Duration = Duration::from_secs(5);
/// Devices whose labels are told at a tick: of a large fleet each is told more seldom, in turn.
const TOLD_PER_TICK: usize = 25;

/// Whose labels are told when: a device that was quiet at once, one that goes on every [`TOLD_EVERY`], at most [`TOLD_PER_TICK`] at a time.
/// What is not told in time is told in turn, so the last of a device is told, too.
#[derive(Debug, Default)]
pub(super) struct Telling {
    /// Of whom something is not told yet, and from when on it may be.
    waiting: BTreeMap<String, Instant>,
    /// Who was told of less than [`TOLD_EVERY`] ago, and when.
    told: BTreeMap<String, Instant>,
}

impl Telling {
    /// Something of a device was stored.
    pub(super) fn changed(&mut self, device: &str, now: Instant) {
        if !self.waiting.contains_key(device) {
            let from = self.told.get(device).map_or(now, |told| now.max(*told + TOLD_EVERY));
            self.waiting.insert(device.to_owned(), from);
        }
    }

    /// Who is told of at a tick: those that wait longest.
    pub(super) fn due(&mut self, now: Instant) -> Vec<String> {
        self.told.retain(|_, told| now.saturating_duration_since(*told) < TOLD_EVERY);
        let mut due: Vec<(Instant, &String)> =
            self.waiting.iter().filter(|(_, from)| **from <= now).map(|(device, from)| (*from, device)).collect();
        due.sort_unstable();
        due.truncate(TOLD_PER_TICK);
        let due: Vec<String> = due.into_iter().map(|(_, device)| device.clone()).collect();
        for device in &due {
            self.waiting.remove(device);
            self.told.insert(device.clone(), now);
        }
        due
    }

    /// All who wait.
    pub(super) fn rest(&mut self) -> Vec<String> {
        std::mem::take(&mut self.waiting).into_keys().collect()
    }
}

/// What the fleet brought since it was told last.
#[derive(Debug)]
pub(super) struct Brought {
    /// Since when, or where nothing came: since the last tick before something did.
    pub(super) since: Instant,
    /// Labels stored.
    pub(super) new: u64,
}

impl Brought {
    /// At a tick: labels, and the seconds in which they came, where that is due.
    pub(super) fn due(&mut self, now: Instant, is_end: bool) -> Option<(u64, f64)> {
        let passed = now.saturating_duration_since(self.since);
        if self.new > 0 && passed < TOLD_EVERY && !is_end {
            return None;
        }
        let new = std::mem::take(&mut self.new);
        self.since = now;
        (new > 0).then_some((new, passed.as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::server::TICK;

    /// Ticks of [`TICK`], in which the devices that `sends` says send; with it come the devices that were told of, by tick.
    fn told(telling: &mut Telling, begun: Instant, ticks: std::ops::Range<u32>, sends: impl Fn(u32) -> Vec<String>) -> Vec<(u32, String)> {
        let mut told = Vec::new();
        for tick in ticks {
            let now = begun + TICK * tick;
            sends(tick).iter().for_each(|device| telling.changed(device, now));
            told.extend(telling.due(now).into_iter().map(|device| (tick, device)));
        }
        told
    }

    #[test]
    fn a_device_is_told_of_at_once_and_then_seldom_and_its_last_is_told() {
        let every = u32::try_from(TOLD_EVERY.as_millis() / TICK.as_millis()).unwrap();
        let (mut telling, begun) = (Telling::default(), Instant::now());
        let steady = |tick: u32| if (3..=4 * every).contains(&tick) { vec!["cam-1".to_owned()] } else { Vec::new() };
        let ticks: Vec<_> = told(&mut telling, begun, 0..10 * every, steady).into_iter().map(|(tick, _)| tick).collect();
        assert_eq!(ticks, [3, 3 + every, 3 + 2 * every, 3 + 3 * every, 3 + 4 * every], "the last of it, although it is quiet by then");
        assert!(telling.told.is_empty() && telling.waiting.is_empty(), "{telling:?}");
        // Quiet for a while, it is told of at once again; what waits at the end is told then.
        let again = told(&mut telling, begun, 10 * every..10 * every + 2, |_| vec!["cam-1".to_owned()]);
        assert_eq!(again, [(10 * every, "cam-1".to_owned())]);
        assert_eq!(telling.rest(), ["cam-1"]);
    }

    #[test]
    fn of_a_large_fleet_all_are_told_of_in_turn_and_few_at_a_time() {
        const DEVICES: usize = 1000;
        let turn = u32::try_from(DEVICES / TOLD_PER_TICK).unwrap();
        let mut telling = Telling::default();
        let all: Vec<String> = (0..DEVICES).map(|n| format!("cam-{n:04}")).collect();
        let told = told(&mut telling, Instant::now(), 0..5 * turn, |tick| if tick <= 4 * turn { all.clone() } else { Vec::new() });
        for tick in 0..5 * turn {
            assert_eq!(told.iter().filter(|(at, _)| *at == tick).count(), TOLD_PER_TICK, "tick {tick}");
        }
        for device in &all {
            let at: Vec<_> = told.iter().filter(|(_, one)| one == device).map(|(tick, _)| *tick).collect();
            assert!(at.len() == 5 && at.windows(2).all(|two| two[1] - two[0] == turn), "{device}: {at:?}");
        }
        assert!(telling.waiting.is_empty());
    }

    #[test]
    fn the_fleets_labels_are_told_with_the_time_in_which_they_came() {
        let begun = Instant::now();
        let after = |seconds: f64| begun + Duration::from_secs_f64(seconds);
        let mut brought = Brought { since: begun, new: 0 };
        assert_eq!(brought.due(after(60.0), false), None, "nothing came");
        brought.new += 30;
        assert_eq!(brought.due(after(60.5), false), None, "not yet");
        brought.new += 70;
        assert_eq!(brought.due(after(65.0), false), Some((100, 5.0)), "the quiet minute before does not count");
        brought.new += 8;
        assert_eq!(brought.due(after(67.0), false), None);
        assert_eq!(brought.due(after(69.0), true), Some((8, 4.0)), "at the end all is told");
        assert_eq!(brought.due(after(99.0), true), None);
    }
}
