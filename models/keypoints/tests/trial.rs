//! Every event sequence up to length [`DEPTH`], from every kind of state, on a simulated pair of slots.

use omnilabel_keypoints::trial::{Action, Event, PROBATION_FRAMES, Phase, Reason, SHADOW_ATTEMPTS, Slot, State, TEST_ATTEMPTS, step};

const EVENTS: [Event; 15] = [
    Event::Boot,
    Event::Stop,
    Event::Offer { counter: 1 },
    Event::Offer { counter: 2 },
    Event::Offer { counter: 3 },
    Event::Keys { set: 1, newest: None, trusted: true, confirmed_trusted: true },
    Event::Keys { set: 2, newest: Some(1), trusted: false, confirmed_trusted: false },
    Event::Keys { set: 3, newest: Some(1), trusted: true, confirmed_trusted: true },
    Event::Fetched,
    Event::GoldenPassed { shadow: false },
    Event::GoldenPassed { shadow: true },
    Event::Agreed,
    Event::HealthyFrame,
    Event::Failed(Reason::Hash),
    Event::Failed(Reason::Health),
];

const DEPTH: u32 = 6;

/// What lies in a slot.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Content {
    /// Half written, or nothing.
    Torn,
    /// All files with their hashes.
    Whole,
    /// It reproduced the golden frames.
    Golden,
    /// It was confirmed.
    Proven,
}

#[derive(Clone, Copy)]
struct Device {
    state: State,
    slots: [Content; 2],
}

impl Device {
    fn slot(&mut self, slot: Slot) -> &mut Content {
        &mut self.slots[slot as usize]
    }

    /// One event, its action carried out, and every invariant.
    fn step(&mut self, event: Event) {
        let before = self.state;
        let (state, action) = step(before, event);
        match action {
            Action::Fetch(slot) => {
                assert_ne!(slot, state.confirmed, "the confirmed slot is never written");
                assert_ne!(slot, before.running(), "the running slot is never written");
                *self.slot(slot) = Content::Torn;
                assert!(matches!(state.phase, Phase::Fetching { counter } if counter > state.highest));
            }
            Action::Test(slot) => {
                if event == Event::Fetched {
                    *self.slot(slot) = Content::Whole;
                }
                assert_eq!((slot, state.running()), (state.confirmed.other(), state.confirmed));
                assert_ne!(*self.slot(slot), Content::Torn, "only what is whole is tested");
            }
            Action::Shadow(slot) => {
                assert_eq!(
                    (event, slot, state.running()),
                    (Event::GoldenPassed { shadow: true }, state.confirmed.other(), state.confirmed)
                );
                *self.slot(slot) = Content::Golden;
            }
            Action::Swap(slot) => {
                if event == Event::Agreed {
                    assert!(matches!(before.phase, Phase::Shadow { .. }));
                    assert_eq!(*self.slot(slot), Content::Golden, "it ran beside the confirmed one");
                } else {
                    assert_eq!(event, Event::GoldenPassed { shadow: false });
                }
                *self.slot(slot) = Content::Golden;
                assert_eq!(state.phase_frames(), Some(PROBATION_FRAMES));
            }
            Action::Confirm(slot) => {
                assert_eq!(event, Event::HealthyFrame);
                assert_eq!(*self.slot(slot), Content::Golden, "only what reproduced the golden frames is confirmed");
                assert!(before.phase_frames() == Some(1) && state.confirmed == slot && state.confirmed_counter > before.highest);
                *self.slot(slot) = Content::Proven;
            }
            Action::Revert(slot, _) => {
                assert_eq!((slot, state.phase), (before.confirmed, Phase::Idle));
                assert_ne!(before.phase, Phase::Idle);
                let keys = matches!(event, Event::Keys { .. });
                assert!(keys || state.highest > before.highest, "what was reverted is not taken again");
            }
            Action::Refuse => assert_eq!(state, before, "a refusal touches nothing"),
            Action::None => {}
        }
        if !matches!(action, Action::Confirm(_)) {
            assert_eq!((state.confirmed, state.confirmed_counter), (before.confirmed, before.confirmed_counter));
        }
        match event {
            Event::Keys { set, newest, trusted, confirmed_trusted } if set > before.set => {
                assert!(state.set == set && (state.highest <= before.highest || before.beyond && !state.beyond));
                let reverted = matches!(action, Action::Revert(_, Reason::Signature));
                assert_eq!(reverted, before.on_trial().is_some_and(|counter| !trusted || counter <= state.highest));
                assert_eq!(state.phase, if reverted { Phase::Idle } else { before.phase });
                let newest = newest.unwrap_or(u64::MAX);
                assert_eq!(state.beyond, before.confirmed_counter > newest && !confirmed_trusted);
                if state.beyond {
                    assert!(state.highest < newest.max(1), "the newest release takes the place of what was confirmed beyond it");
                } else if before.highest > newest {
                    assert_eq!(state.highest, state.confirmed_counter, "what was refused beyond the newest is forgotten");
                }
            }
            Event::Keys { .. } => assert_eq!((state, action), (before, Action::None), "an older set changes nothing"),
            _ => assert!(state.highest >= before.highest && state.set == before.set),
        }
        assert!(state.beyond || state.highest >= state.confirmed_counter, "no rollback: {state:?} after {event:?}");
        assert!(!matches!(action, Action::Confirm(_)) || !state.beyond);
        self.state = state;
        assert_eq!(*self.slot(state.confirmed), Content::Proven);
        assert!(
            matches!(*self.slot(state.running()), Content::Proven | Content::Golden),
            "a working model runs: {state:?} after {event:?}"
        );
    }
}

trait Frames {
    fn phase_frames(&self) -> Option<u32>;
    fn on_trial(&self) -> Option<u64>;
}

impl Frames for State {
    fn phase_frames(&self) -> Option<u32> {
        if let Phase::Probation { frames_left, .. } = self.phase { Some(frames_left) } else { None }
    }

    fn on_trial(&self) -> Option<u64> {
        self.phase.counter()
    }
}

fn explore(device: Device, depth: u32, paths: &mut u64) {
    *paths += 1;
    // Wherever a path ends, a clean stop costs the release nothing, …
    let mut stopped = device;
    for event in [Event::Stop, Event::Boot] {
        stopped.step(event);
    }
    assert_eq!(stopped.state.highest, device.state.highest);
    assert_eq!(stopped.state.phase == Phase::Idle, device.state.phase == Phase::Idle, "{:?}", device.state);
    // … a device that dies again and again stops trying, …
    let mut dying = device;
    for _ in 0..=TEST_ATTEMPTS {
        dying.step(Event::Boot);
    }
    assert!(matches!(dying.state.phase, Phase::Idle | Phase::Fetching { .. }), "{:?}", dying.state);
    // … and a failure leads back to a proven slot.
    let mut end = device;
    for event in [Event::Boot, Event::Failed(Reason::Load)] {
        end.step(event);
    }
    assert_eq!((end.state.phase, end.state.running()), (Phase::Idle, end.state.confirmed));
    if depth > 0 {
        for event in EVENTS {
            let mut next = device;
            next.step(event);
            explore(next, depth - 1, paths);
        }
    }
}

#[test]
fn every_sequence_keeps_a_working_slot() {
    let mut paths = 0;
    for confirmed in [Slot::A, Slot::B] {
        let idle = State::provisioned(confirmed);
        let counter = 2;
        let starts = [
            (Phase::Idle, Content::Torn),
            (Phase::Fetching { counter }, Content::Torn),
            (Phase::Testing { counter, attempts: 0, shadows: 0 }, Content::Golden),
            (Phase::Testing { counter, attempts: 1, shadows: SHADOW_ATTEMPTS }, Content::Whole),
            (Phase::Testing { counter, attempts: TEST_ATTEMPTS, shadows: 0 }, Content::Whole),
            (Phase::Shadow { counter, attempts: 1 }, Content::Golden),
            (Phase::Shadow { counter, attempts: SHADOW_ATTEMPTS }, Content::Golden),
            (Phase::Probation { counter, frames_left: 0 }, Content::Golden),
            (Phase::Probation { counter, frames_left: 1 }, Content::Golden),
            (Phase::Probation { counter, frames_left: 2 }, Content::Golden),
            (Phase::Probation { counter, frames_left: PROBATION_FRAMES }, Content::Golden),
        ];
        for (phase, content) in starts {
            let mut device = Device { state: State { phase, ..idle }, slots: [Content::Proven; 2] };
            *device.slot(confirmed.other()) = content;
            explore(device, if confirmed == Slot::A { DEPTH } else { 4 }, &mut paths);
        }
    }
    assert!(paths > 11 * (EVENTS.len() as u64).pow(DEPTH));
}

#[test]
fn an_update_goes_through() {
    let mut state = State::provisioned(Slot::A);
    let mut check = |event, expected| {
        let (next, action) = step(state, event);
        assert_eq!(action, expected, "{event:?} in {state:?}");
        state = next;
    };
    check(Event::Boot, Action::None);
    check(Event::Offer { counter: 4 }, Action::Fetch(Slot::B));
    check(Event::Offer { counter: 4 }, Action::None);
    check(Event::Boot, Action::Fetch(Slot::B));
    check(Event::HealthyFrame, Action::None);
    check(Event::Fetched, Action::Test(Slot::B));
    check(Event::Offer { counter: 5 }, Action::Refuse);
    check(Event::Boot, Action::Test(Slot::B));
    check(Event::GoldenPassed { shadow: false }, Action::Swap(Slot::B));
    check(Event::HealthyFrame, Action::None);
    check(Event::Stop, Action::None);
    check(Event::Boot, Action::Test(Slot::B));
    check(Event::GoldenPassed { shadow: false }, Action::Swap(Slot::B));
    for _ in 1..PROBATION_FRAMES {
        check(Event::HealthyFrame, Action::None);
    }
    check(Event::HealthyFrame, Action::Confirm(Slot::B));
    check(Event::Offer { counter: 4 }, Action::Refuse);
    check(Event::Offer { counter: 5 }, Action::Fetch(Slot::A));
    check(Event::Offer { counter: 6 }, Action::Fetch(Slot::A));
    check(Event::Fetched, Action::Test(Slot::A));
    check(Event::Failed(Reason::Golden), Action::Revert(Slot::B, Reason::Golden));
    check(Event::Offer { counter: 6 }, Action::Refuse);
    check(Event::Offer { counter: 7 }, Action::Fetch(Slot::A));
    check(Event::Fetched, Action::Test(Slot::A));
    check(Event::GoldenPassed { shadow: false }, Action::Swap(Slot::A));
    check(Event::Boot, Action::Revert(Slot::B, Reason::Restart));
    check(Event::Offer { counter: 8 }, Action::Fetch(Slot::A));
    check(Event::GoldenPassed { shadow: false }, Action::Revert(Slot::B, Reason::Unexpected));
    check(Event::Offer { counter: 9 }, Action::Fetch(Slot::A));
    check(Event::Fetched, Action::Test(Slot::A));
    for _ in 0..3 {
        check(Event::Stop, Action::None);
        check(Event::Boot, Action::Test(Slot::A));
    }
    check(Event::Boot, Action::Test(Slot::A));
    check(Event::Stop, Action::None);
    check(Event::Boot, Action::Test(Slot::A));
    check(Event::Boot, Action::Revert(Slot::B, Reason::Restart));
}

#[test]
fn an_update_that_runs_beside_the_confirmed_model_first() {
    let mut state = State::provisioned(Slot::A);
    let mut check = |event, expected| {
        let (next, action) = step(state, event);
        assert_eq!(action, expected, "{event:?} in {state:?}");
        assert!(state.running() == Slot::A || matches!(state.phase, Phase::Probation { .. }), "it labels nothing before its probation");
        state = next;
    };
    let passed = Event::GoldenPassed { shadow: true };
    check(Event::Offer { counter: 4 }, Action::Fetch(Slot::B));
    check(Event::Fetched, Action::Test(Slot::B));
    check(passed, Action::Shadow(Slot::B));
    check(Event::HealthyFrame, Action::None);
    check(Event::Offer { counter: 4 }, Action::None);
    check(Event::Offer { counter: 5 }, Action::Refuse);
    // Power is lost, and once more while the golden frames are tried again: it begins anew, …
    for _ in 1..SHADOW_ATTEMPTS {
        check(Event::Boot, Action::Test(Slot::B));
        check(Event::Boot, Action::Test(Slot::B));
        check(passed, Action::Shadow(Slot::B));
    }
    // … clean stops cost nothing, …
    for _ in 0..3 {
        check(Event::Stop, Action::None);
        check(Event::Boot, Action::Test(Slot::B));
        check(passed, Action::Shadow(Slot::B));
    }
    check(Event::Agreed, Action::Swap(Slot::B));
    check(Event::Boot, Action::Revert(Slot::A, Reason::Restart));
    // … and one on which the device dies again and again is given up.
    check(Event::Offer { counter: 5 }, Action::Fetch(Slot::B));
    check(Event::Fetched, Action::Test(Slot::B));
    check(passed, Action::Shadow(Slot::B));
    for _ in 1..SHADOW_ATTEMPTS {
        check(Event::Boot, Action::Test(Slot::B));
        check(passed, Action::Shadow(Slot::B));
    }
    check(Event::Boot, Action::Revert(Slot::A, Reason::Restart));
    check(Event::Offer { counter: 6 }, Action::Fetch(Slot::B));
    check(Event::Fetched, Action::Test(Slot::B));
    check(passed, Action::Shadow(Slot::B));
    check(Event::Failed(Reason::Shadow), Action::Revert(Slot::A, Reason::Shadow));
    check(Event::Offer { counter: 6 }, Action::Refuse);
    check(Event::Offer { counter: 7 }, Action::Fetch(Slot::B));
    check(Event::Agreed, Action::Revert(Slot::A, Reason::Unexpected));
}

#[test]
fn states_of_before_are_read() {
    let text = r#"{"confirmed":"a","confirmed_counter":3,"phase":{"testing":{"counter":4,"attempts":1}},"highest":3}"#;
    let state: State = serde_json::from_str(text).unwrap();
    assert_eq!(state.phase, Phase::Testing { counter: 4, attempts: 1, shadows: 0 });
    let shadow = State { phase: Phase::Shadow { counter: 4, attempts: 2 }, ..state };
    let text = serde_json::to_string(&shadow).unwrap();
    assert!(text.contains(r#""phase":{"shadow":{"counter":4,"attempts":2}}"#), "{text}");
    assert_eq!(serde_json::from_str::<State>(&text).unwrap(), shadow);
}
