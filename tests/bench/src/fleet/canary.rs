//! The release by waves: who is bad, so that no wave halts by chance, and how the centre let it out. Pure; times come from outside.

use super::faults::shuffle;
use super::shared::name;
use super::update::Persona;
use crate::fixture::generated::Random;
use anyhow::{Context, Result, ensure};
use omnilabel_keypoints::release::turn;
use omnilabel_trainer::service::waves::Waves;
use serde::Serialize;
use std::collections::BTreeSet;

/// The counter of a new centre's first release, which decides whose turn comes when.
pub(crate) const RELEASE: u64 = 1;
/// The share of devices that may refuse it, the centre's default.
pub(crate) const MAX_REFUSED: f64 = 0.1;
/// The share of the others that has to confirm it, the centre's default.
pub(crate) const CONFIRMED: f64 = 0.9;
/// What the bad ones may use of that in a wave before the last: as many devices again may be away for a moment, or slow.
const EARLY: f64 = 0.5;
/// And in the last, which has them all.
const LAST: f64 = 0.8;
/// A device that began so much before its wave, ms, did not begin by it: its clock is the run's, the wave's is the system's.
const SLACK: u64 = 1_000;

/// Who is what: a share `bad` refuses; a third as many hang and a third as many lie, each at least one where anybody refuses. Drawn, but
/// for this: in no wave there are so many that it would halt, or wait for those that say nothing. `waves`: thousandths, rising.
///
/// # Errors
/// There are too many of them for waves.
pub(crate) fn personas(seed: u64, devices: usize, bad: f64, waves: &[u16]) -> Result<Vec<Persona>> {
    let refuse = ((devices as f64 * bad).round() as usize).min(devices / 2);
    let few = refuse.div_ceil(3);
    let (at_once, beyond) = (few.div_ceil(2), few / 2);
    let most_refuse = LAST * MAX_REFUSED * devices as f64;
    let most_silent = LAST * (1.0 - CONFIRMED) * (devices - refuse) as f64;
    ensure!(
        waves.len() < 2 || (refuse as f64 <= most_refuse && (few + beyond) as f64 <= most_silent),
        "--bad is {bad}: of {devices} devices {refuse} would refuse it and {} say nothing of it, and a release by waves would halt: \
         take less, or --waves 100",
        few + beyond
    );
    let turns: Vec<u16> = (0..devices).map(|index| turn(&name(index), RELEASE)).collect();
    // Of each wave but the last: its share, and how many more of those that refuse and of the others it bears.
    let mut room: Vec<(u16, [usize; 2])> = waves
        .iter()
        .filter(|share| **share < 1000)
        .map(|&share| {
            let inside = turns.iter().filter(|turn| **turn < share).count() as f64;
            (share, [MAX_REFUSED, 1.0 - CONFIRMED].map(|most| (EARLY * most * inside) as usize))
        })
        .collect();
    let mut order: Vec<usize> = (0..devices).collect();
    shuffle(&mut Random(seed ^ 0xBAD), &mut order);
    let mut all = vec![Persona::Good; devices];
    let wanted =
        [vec![Persona::Refuses; refuse], vec![Persona::Hangs; few], vec![Persona::LiesAtOnce; at_once], vec![Persona::LiesBeyond; beyond]]
            .concat();
    for persona in wanted.into_iter().take(devices) {
        let kind = usize::from(persona != Persona::Refuses);
        let place = order
            .iter()
            .position(|&index| room.iter().all(|&(share, left)| turns[index] >= share || left[kind] > 0))
            .with_context(|| format!("--bad is {bad}: the waves before the last bear no more of them: take less, or --waves 100"))?;
        let index = order.remove(place);
        for (share, left) in &mut room {
            if turns[index] < *share {
                left[kind] -= 1;
            }
        }
        all[index] = persona;
    }
    Ok(all)
}

/// What the centre said of the release's waves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Unix ms.
    pub(crate) at_ms: u64,
    /// Thousandths of the fleet.
    pub(crate) share: u16,
    /// Nobody else may begin.
    pub(crate) halted: bool,
    /// The last wave has proved it.
    pub(crate) complete: bool,
    /// Why.
    pub(crate) reason: String,
}

/// All that it said, and what it heard meanwhile, in the order of its log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Story {
    /// Thousandths of the first wave.
    first: u16,
    /// One after the other.
    pub(crate) steps: Vec<Step>,
    /// Devices that said that they have it before the wave was told that they are in.
    pub(crate) early: BTreeSet<String>,
    /// Devices that said that they confirmed it.
    confirmed: BTreeSet<String>,
    /// For each wave that was through: its thousandths, and how many of its devices had said by then that they confirmed it.
    proofs: Vec<(u16, u64)>,
}

impl Story {
    /// Of a release whose first wave has so many thousandths.
    pub(crate) fn new(first: u16) -> Self {
        Self { first, ..Self::default() }
    }

    /// A device said that it has to do with the release.
    pub(crate) fn heard(&mut self, device: &str) {
        let share = self.steps.last().map_or(self.first, |step| step.share);
        if turn(device, RELEASE) >= share {
            self.early.insert(device.to_owned());
        }
    }

    /// A device said that it confirmed the release.
    pub(crate) fn confirmed(&mut self, device: &str) {
        self.confirmed.insert(device.to_owned());
    }

    /// The centre told of a wave.
    pub(crate) fn told(&mut self, step: Step) {
        let (share, was_complete) = self.steps.last().map_or((self.first, false), |before| (before.share, before.complete));
        if !step.halted && (step.share > share || step.complete && !was_complete) {
            let proved = self.confirmed.iter().filter(|device| turn(device, RELEASE) < share).count();
            self.proofs.push((share, proved as u64));
        }
        self.steps.push(step);
    }

    /// Whether it goes to no further device, for now.
    pub(crate) fn is_halted(&self) -> bool {
        self.steps.last().is_some_and(|step| step.halted)
    }

    /// Whether nothing is decided about it any more; of one that went to all at once nothing is.
    pub(crate) fn is_complete(&self) -> bool {
        self.first >= 1000 || self.steps.last().is_some_and(|step| step.complete)
    }
}

/// A wave that was opened.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Opened {
    /// Thousandths of the fleet that it is for, with the waves before it.
    pub(crate) share: u16,
    /// Devices that are these.
    pub(crate) devices: u64,
    /// Seconds from the release on.
    pub(crate) secs: f64,
    /// Why, by the centre.
    pub(crate) reason: String,
}

/// How the release went out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Canary {
    /// Thousandths of the fleet in each wave that was asked for.
    pub(crate) wanted: Vec<u16>,
    /// Those that the centre opened.
    pub(crate) opened: Vec<Opened>,
    /// Seconds from the release until the last one had proved it.
    pub(crate) complete_secs: Option<f64>,
    /// Whether it is complete by the centre's database.
    pub(crate) complete: bool,
    /// Why it is halted, by the centre's database.
    pub(crate) halted: Option<String>,
    /// Devices that began with it.
    pub(crate) began: u64,
    /// Of these the ones whose wave was not open: by the time, or by the order of the centre's log.
    pub(crate) early: Vec<String>,
    /// Waves that were through before half of their devices had confirmed it, thousandths.
    pub(crate) unproved: Vec<u16>,
    /// How often the centre was killed while it went out.
    pub(crate) kills: u64,
}

impl Canary {
    /// `devices` with the moment at which each began (Unix ms), the centre's log and its database; `kills`: Unix ms.
    pub(crate) fn settle(
        wanted: Vec<u16>,
        devices: &[(&str, Option<u64>)],
        released_ms: u64,
        story: &Story,
        books: Option<Waves>,
        kills: &[u64],
    ) -> Self {
        let secs = |at_ms: u64| at_ms.saturating_sub(released_ms) as f64 / 1e3;
        let within = |share: u16| devices.iter().filter(|(name, _)| turn(name, RELEASE) < share).count() as u64;
        let first = wanted.first().map(|&share| (share, released_ms, "released"));
        let later = story.steps.iter().map(|step| (step.share, step.at_ms, step.reason.as_str()));
        let mut opened: Vec<Opened> = Vec::new();
        let mut starts: Vec<(u16, u64)> = Vec::new();
        for (share, at_ms, reason) in first.into_iter().chain(later) {
            // What halts or completes it opens none.
            if opened.last().is_none_or(|before| before.share < share) {
                opened.push(Opened { share, devices: within(share), secs: secs(at_ms), reason: reason.to_owned() });
                starts.push((share, at_ms));
            }
        }
        let early = |name: &str, began_ms: u64| {
            let turn = turn(name, RELEASE);
            let place = starts.iter().position(|(share, _)| turn < *share);
            // The first wave is open as soon as the message is there, which may be before the log tells of it.
            place.is_none_or(|place| place > 0 && began_ms + SLACK < starts[place].1)
        };
        let told =
            devices.iter().filter(|(name, began)| began.is_some_and(|began_ms| early(name, began_ms))).map(|(name, _)| (*name).to_owned());
        let names: BTreeSet<String> = told.chain(story.early.iter().cloned()).collect();
        let complete_ms = story.steps.iter().find(|step| step.complete).map(|step| step.at_ms);
        let until = complete_ms.unwrap_or(u64::MAX);
        Self {
            wanted,
            opened,
            complete_secs: complete_ms.map(secs),
            complete: books.as_ref().is_some_and(|waves| waves.complete),
            halted: books.and_then(|waves| waves.halted),
            began: devices.iter().filter(|(_, began)| began.is_some()).count() as u64,
            early: names.into_iter().collect(),
            unproved: story.proofs.iter().filter(|(share, proved)| 2 * proved < within(*share)).map(|(share, _)| *share).collect(),
            kills: kills.iter().filter(|at| (released_ms..until).contains(*at)).count() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAVES: [u16; 3] = [50, 250, 1000];

    #[test]
    fn a_share_of_a_fleet_is_bad() {
        let count = |devices, bad, persona| {
            let all = personas(1, devices, bad, &[1000]).unwrap();
            all.iter().filter(|found| **found == persona).count()
        };
        let all = [Persona::Refuses, Persona::Hangs, Persona::LiesAtOnce, Persona::LiesBeyond];
        assert_eq!(all.map(|persona| count(1000, 0.03, persona)), [30, 10, 5, 5]);
        assert_eq!(all.map(|persona| count(20, 0.1, persona)), [2, 1, 1, 0]);
        assert_eq!(count(20, 0.0, Persona::Good), 20);
        assert_ne!(personas(1, 100, 0.1, &[1000]).unwrap(), personas(2, 100, 0.1, &[1000]).unwrap());
    }

    #[test]
    fn no_wave_halts_by_chance() {
        for (devices, bad) in [(1000, 0.03), (1000, 0.08), (300, 0.03), (60, 0.06), (50, 0.03), (17, 0.03), (1, 0.03)] {
            for seed in 0..40 {
                let all = personas(seed, devices, bad, &WAVES).unwrap();
                for share in WAVES {
                    let inside: Vec<Persona> = (0..devices).filter(|&i| turn(&name(i), RELEASE) < share).map(|i| all[i]).collect();
                    let of = |wanted: &[Persona]| inside.iter().filter(|persona| wanted.contains(persona)).count() as f64;
                    let (refused, silent) = (of(&[Persona::Refuses]), of(&[Persona::Hangs, Persona::LiesBeyond]));
                    let there = inside.len() as f64;
                    let part = if share < 1000 { EARLY } else { LAST };
                    assert!(refused <= part * MAX_REFUSED * there, "{refused} of {there}, seed {seed}, {devices} devices");
                    assert!(there - refused - silent >= CONFIRMED * (there - refused), "{silent} of {there}, seed {seed}");
                }
            }
        }
        let error = personas(1, 20, 0.2, &WAVES).unwrap_err().to_string();
        assert!(error.contains("--bad is 0.2") && error.contains("--waves 100"), "{error}");
    }

    /// A device of each wave.
    fn one_of_each() -> [String; 3] {
        let of = |from: u16, to: u16| (0..1000).map(name).find(|name| (from..to).contains(&turn(name, RELEASE))).unwrap();
        [of(0, 50), of(50, 250), of(250, 1000)]
    }

    fn step(at_ms: u64, share: u16, complete: bool) -> Step {
        Step { at_ms, share, halted: false, complete, reason: "of 9 devices".to_owned() }
    }

    #[test]
    fn who_begins_before_its_wave_is_found() {
        let [first, second, third] = one_of_each();
        let mut story = Story::new(50);
        story.heard(&first);
        assert!(story.early.is_empty() && !story.is_complete());
        story.steps = vec![step(20_000, 250, false), step(40_000, 1000, false), step(60_000, 1000, true)];
        let books = Waves { complete: true, ..Waves::at_once(0) };
        let settle = |story: &Story, at: [u64; 3]| {
            let [a, b, c] = at.map(Some);
            let devices = [(first.as_str(), a), (second.as_str(), b), (third.as_str(), c)];
            Canary::settle(WAVES.to_vec(), &devices, 10_000, story, Some(books.clone()), &[9_000, 30_000, 70_000])
        };
        let good = [9_900, 20_500, 40_000];
        let canary = settle(&story, good);
        let opened: Vec<(u16, u64, f64)> = canary.opened.iter().map(|wave| (wave.share, wave.devices, wave.secs)).collect();
        assert_eq!(opened, [(50, 1, 0.0), (250, 2, 10.0), (1000, 3, 30.0)]);
        assert_eq!((canary.complete_secs, canary.complete, canary.began, canary.kills), (Some(50.0), true, 3, 1));
        assert_eq!(canary.early, Vec::<String>::new());
        assert_eq!(settle(&story, [good[0], 15_000, good[2]]).early, [second.as_str()], "the centre had not opened it");
        let mut told = Story::new(50);
        told.heard(&second);
        told.steps = story.steps.clone();
        told.heard(&third);
        assert_eq!(settle(&told, good).early, [second.as_str()], "the centre heard of it before");
    }

    #[test]
    fn a_wave_that_nobody_proved_is_found() {
        let [first, second, third] = one_of_each();
        let devices = [(first.as_str(), Some(1)), (second.as_str(), Some(20_000)), (third.as_str(), Some(40_000))];
        let unproved = |confirmed: [Option<&String>; 3]| {
            let mut story = Story::new(50);
            for (device, next) in confirmed.into_iter().zip([step(20_000, 250, false), step(40_000, 1000, false), step(60_000, 1000, true)])
            {
                device.iter().for_each(|device| story.confirmed(device));
                story.told(next.clone());
                // A centre that was started again says where it stands.
                story.told(next);
            }
            Canary::settle(WAVES.to_vec(), &devices, 0, &story, None, &[]).unproved
        };
        assert_eq!(unproved([Some(&first), Some(&second), Some(&third)]), Vec::<u16>::new());
        assert_eq!(unproved([None, Some(&first), Some(&second)]), [50], "at once");
        assert_eq!(unproved([Some(&first), None, None]), [1000], "one of three");
    }

    #[test]
    fn a_story_ends() {
        assert!(Story::new(1000).is_complete(), "to all at once");
        let mut story = Story::new(50);
        story.steps.push(step(1, 1000, false));
        assert!(!story.is_complete() && !story.is_halted());
        story.steps.push(step(2, 1000, true));
        assert!(story.is_complete());
        story.steps.push(Step { halted: true, ..step(3, 50, false) });
        assert!(story.is_halted() && !story.is_complete());
    }
}
