//! What goes wrong when: drawn from the seed alone, so that a run can be had again. Pure; seconds count from the first label on.

use crate::fixture::generated::Random;
use serde::Serialize;
use std::collections::VecDeque;

/// When what happens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Timeline {
    /// Of the whole run, without the time to drain.
    pub(crate) total: f64,
    /// Before it everything is calm.
    pub(crate) begin: f64,
    /// No fault is begun after it.
    pub(crate) end: f64,
    /// The centre is killed only before it: its last life then lasts over half of the run, which tells a leak from noise.
    pub(crate) kills_end: f64,
    /// When the release is made: early enough for the centre to be killed while it goes out.
    pub(crate) release: f64,
}

impl Timeline {
    /// A fifth is calm, then faults to nine tenths; without faults all of it is calm.
    pub(crate) fn new(total: f64, faults: bool) -> Self {
        let (begin, end) = if faults { (0.2 * total, 0.9 * total) } else { (total, total) };
        Self { total, begin, end, kills_end: begin + 0.4 * (end - begin), release: 0.35 * total }
    }
}

/// What happens to the broker or the centre.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// The broker is killed and started again; what it had in memory is gone.
    BrokerRestarted,
    /// SIGKILL, and started again.
    CentreKilled,
    /// SIGSTOP, then SIGCONT.
    CentreStopped,
}

impl Kind {
    /// For people.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::BrokerRestarted => "broker restarted",
            Self::CentreKilled => "centre killed",
            Self::CentreStopped => "centre stopped",
        }
    }

    /// Seconds from and to which it lasts.
    const fn lasts(self) -> (f64, f64) {
        match self {
            Self::BrokerRestarted => (0.5, 5.0),
            Self::CentreKilled => (0.2, 4.0),
            Self::CentreStopped => (2.0, 10.0),
        }
    }
}

/// A fault of the broker or the centre.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Fault {
    /// When it begins.
    pub(crate) at: f64,
    /// What it is.
    pub(crate) kind: Kind,
    /// How long it lasts.
    pub(crate) seconds: f64,
}

/// Seconds between two restarts of the broker: with connections that live for less than their back-off needs to start over, a run would
/// measure back-off.
const BROKER_APART: f64 = 15.0;

/// The share of a run that the release has before the centre is killed once more: it is then in its first waves.
const OUT: f64 = 0.025;

/// Shuffles in place (Fisher and Yates).
pub(crate) fn shuffle<T>(random: &mut Random, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        items.swap(last, random.below(last as u64 + 1) as usize);
    }
}

/// The faults of broker and centre, by time; each is over before the next begins. Every kind comes in turn, in a drawn order, so that a
/// short run tries each, too; and one kill of the centre falls between two waves of the release, or into one.
pub(crate) fn plan(seed: u64, timeline: &Timeline) -> VecDeque<Fault> {
    let mut random = Random(seed ^ 0x5EED_FA17);
    let mut found = VecDeque::new();
    let gap = ((timeline.end - timeline.begin) / 14.0).clamp(1.5, 45.0);
    let (mut at, mut deck, mut restarted) = (timeline.begin, Vec::new(), f64::NEG_INFINITY);
    let mut rolled = false;
    loop {
        if deck.is_empty() {
            deck = vec![Kind::BrokerRestarted, Kind::CentreKilled, Kind::CentreStopped];
            if at >= timeline.kills_end {
                deck.retain(|kind| *kind != Kind::CentreKilled);
            }
            shuffle(&mut random, &mut deck);
        }
        // Before its time is over, the centre is killed first.
        let late = at + gap >= timeline.kills_end;
        let rolls = !rolled && at >= timeline.release + OUT * timeline.total && at < timeline.kills_end;
        rolled |= rolls;
        let killed = deck.iter().position(|kind| *kind == Kind::CentreKilled);
        let mut kind = match killed.filter(|_| late || rolls) {
            Some(place) => deck.remove(place),
            None if rolls => Kind::CentreKilled,
            None => deck.remove(deck.len().saturating_sub(1)),
        };
        if kind == Kind::BrokerRestarted && at < restarted + BROKER_APART {
            kind = Kind::CentreStopped;
        }
        if kind == Kind::BrokerRestarted {
            restarted = at;
        }
        if kind == Kind::CentreKilled && at >= timeline.kills_end {
            continue;
        }
        let (least, most) = kind.lasts();
        let seconds = random.range(least, most).min(0.5 * gap);
        if at + seconds >= timeline.end {
            return found;
        }
        found.push_back(Fault { at, kind, seconds });
        at += gap * random.range(0.7, 1.3);
    }
}

/// What happens to one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DeviceFault {
    /// Its connection is dropped and made again.
    Dropped,
    /// It sends labels twice.
    Repeated,
    /// It sends labels out of order.
    Reordered,
    /// It ignores acknowledgements.
    Deaf,
    /// It is started again, with its outbox.
    Restarted,
    /// It gets a new outbox, once the old one is empty.
    Reflashed,
    /// It reads and sends slowly.
    Slow,
}

impl DeviceFault {
    /// All of them, in the order in which they are counted.
    pub(crate) const ALL: [Self; 7] =
        [Self::Dropped, Self::Repeated, Self::Reordered, Self::Deaf, Self::Restarted, Self::Reflashed, Self::Slow];

    /// For people.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Dropped => "connection dropped",
            Self::Repeated => "labels repeated",
            Self::Reordered => "labels reordered",
            Self::Deaf => "acknowledgements ignored",
            Self::Restarted => "device restarted",
            Self::Reflashed => "outbox replaced",
            Self::Slow => "device slow",
        }
    }
}

/// Mean seconds between two faults of one device, at most.
const MEAN: f64 = 45.0;

/// The faults of one device.
#[derive(Clone, Debug)]
pub(crate) struct DeviceFaults {
    random: Random,
    mean: f64,
    next: f64,
    end: f64,
    deck: Vec<DeviceFault>,
}

impl DeviceFaults {
    /// Of the device with this number.
    pub(crate) fn new(seed: u64, device: usize, timeline: &Timeline) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ device as u64);
        let mean = MEAN.min((timeline.end - timeline.begin) / 3.0).max(0.5);
        let next = timeline.begin + mean * random.range(0.0, 2.0);
        Self { random, mean, next, end: timeline.end, deck: Vec::new() }
    }

    /// The fault that begins by now, if one does. Where none was asked for in time, the time moves on all the same.
    pub(crate) fn due(&mut self, now: f64) -> Option<DeviceFault> {
        if now < self.next || now >= self.end {
            return None;
        }
        self.next = now + self.mean * self.random.range(0.3, 1.7);
        if self.deck.is_empty() {
            self.deck = DeviceFault::ALL.to_vec();
            shuffle(&mut self.random, &mut self.deck);
        }
        self.deck.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_a_site_keep_their_times() {
        for (seed, total) in [(1, 600.0), (2, 600.0), (3, 60.0), (4, 3600.0), (5, 20.0)] {
            let timeline = Timeline::new(total, true);
            let plan = plan(seed, &timeline);
            assert_eq!(plan, super::plan(seed, &timeline), "the seed alone decides");
            for kind in [Kind::BrokerRestarted, Kind::CentreKilled, Kind::CentreStopped] {
                assert!(plan.iter().any(|fault| fault.kind == kind), "{total} s have no {}", kind.name());
            }
            for (fault, next) in plan.iter().zip(plan.iter().skip(1)) {
                assert!(fault.at + fault.seconds <= next.at, "{fault:?} lasts into {next:?}");
            }
            let restarts: Vec<f64> = plan.iter().filter(|fault| fault.kind == Kind::BrokerRestarted).map(|fault| fault.at).collect();
            assert!(restarts.windows(2).all(|pair| pair[1] - pair[0] >= BROKER_APART), "{restarts:?}");
            for fault in &plan {
                assert!(fault.at >= timeline.begin && fault.at + fault.seconds < timeline.end, "{fault:?}");
                assert!(fault.kind != Kind::CentreKilled || fault.at < timeline.kills_end, "{fault:?}");
            }
            let rolls = timeline.release + OUT * total..timeline.kills_end;
            assert!(plan.iter().any(|fault| fault.kind == Kind::CentreKilled && rolls.contains(&fault.at)), "{total} s: {plan:?}");
        }
        assert_ne!(plan(1, &Timeline::new(600.0, true)), plan(2, &Timeline::new(600.0, true)));
        assert!(plan(1, &Timeline::new(600.0, false)).is_empty());
    }

    #[test]
    fn a_device_suffers_everything_and_only_in_its_time() {
        let timeline = Timeline::new(2400.0, true);
        let mut faults = DeviceFaults::new(1, 17, &timeline);
        let mut found = Vec::new();
        for step in 0..4800 {
            let now = f64::from(step) * 0.5;
            if let Some(fault) = faults.due(now) {
                assert!(now >= timeline.begin && now < timeline.end, "{fault:?} at {now}");
                found.push(fault);
            }
        }
        assert!((20..60).contains(&found.len()), "{found:?}");
        assert!(DeviceFault::ALL.iter().all(|kind| found.contains(kind)), "{found:?}");
        let mut calm = DeviceFaults::new(1, 17, &Timeline::new(600.0, false));
        assert!((0..1200).all(|step| calm.due(f64::from(step) * 0.5).is_none()));
    }

    #[test]
    fn a_shuffle_keeps_everything() {
        let mut items: Vec<u32> = (0..50).collect();
        shuffle(&mut Random(3), &mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
