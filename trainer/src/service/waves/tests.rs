use super::*;
use proptest::prelude::*;

const COUNTER: u64 = 4;
const MINUTE: u64 = 60_000;

fn config() -> RolloutConfig {
    RolloutConfig { waves: vec![10.0, 50.0, 100.0], settle_seconds: 60, deadline_minutes: 30, ..RolloutConfig::default() }
}

fn waves(wave: usize) -> Waves {
    Waves { wave, ..Waves::begin(&config(), 0) }
}

fn fleet(size: usize) -> Vec<Standing> {
    (0..size).map(|i| Standing { device: format!("cam-{i}"), online: true, ..Standing::default() }).collect()
}

/// The devices of the first wave.
fn first(fleet: &mut [Standing]) -> Vec<&mut Standing> {
    fleet.iter_mut().filter(|device| turn(&device.device, COUNTER) < 100).collect()
}

fn at(minutes: u64, fleet: &[Standing]) -> Decision {
    judge(&waves(0), tally(fleet, COUNTER, Some(7), 100), minutes * MINUTE, &config())
}

#[test]
fn a_wave_goes_on_when_nearly_all_of_it_have_confirmed() {
    let mut fleet = fleet(200);
    assert_eq!(at(10, &fleet), Decision::Wait);
    // Whoever is not in the wave has no vote, whatever it says.
    for device in fleet.iter_mut().filter(|device| turn(&device.device, COUNTER) >= 100) {
        (device.confirmed, device.refused) = (COUNTER, Some(COUNTER));
    }
    assert_eq!(at(10, &fleet), Decision::Wait);
    let members = first(&mut fleet).len();
    assert!(members > 10, "{members}");
    first(&mut fleet).iter_mut().for_each(|device| device.confirmed = COUNTER);
    assert_eq!(at(0, &fleet), Decision::Wait, "not before it has settled");
    assert!(matches!(at(2, &fleet), Decision::Advance(_)));
    let last = judge(&waves(2), tally(&fleet, COUNTER, Some(7), 1000), 2 * MINUTE, &config());
    assert!(matches!(last, Decision::Halt(_)), "in the last wave the others vote, too: {last:?}");
    fleet.iter_mut().for_each(|device| device.refused = None);
    let last = judge(&waves(2), tally(&fleet, COUNTER, Some(7), 1000), 2 * MINUTE, &config());
    assert!(matches!(last, Decision::Complete(_)), "{last:?}");
}

#[test]
fn refusals_beyond_the_limit_halt_it_at_once() {
    let mut fleet = fleet(200);
    let mut members = first(&mut fleet);
    let allowed = (config().max_refused * members.len() as f64) as usize;
    assert!(allowed > 0);
    members.iter_mut().for_each(|device| device.confirmed = COUNTER);
    members[..allowed].iter_mut().for_each(|device| device.refused = Some(COUNTER));
    assert!(matches!(at(2, &fleet), Decision::Advance(_)));
    first(&mut fleet)[allowed].refused = Some(COUNTER);
    let Decision::Halt(reason) = at(0, &fleet) else { panic!() };
    assert!(reason.contains("refused"), "{reason}");
}

#[test]
fn one_refusal_halts_a_wave_of_one_or_two_alone() {
    let of = |online, confirmed, refused| {
        judge(&waves(0), Tally { devices: online, online, confirmed, refused, trying: 0 }, 2 * MINUTE, &config())
    };
    assert!(matches!(of(1, 0, 1), Decision::Halt(_)));
    assert!(matches!(of(2, 1, 1), Decision::Halt(_)));
    assert!(matches!(of(3, 2, 1), Decision::Advance(_)), "the others have proved it");
    assert_eq!(of(5, 3, 1), Decision::Wait, "one is not through");
    assert!(matches!(of(5, 3, 2), Decision::Halt(_)));
    let none = RolloutConfig { max_refused: 0.0, ..config() };
    let one = Tally { devices: 5, online: 5, confirmed: 4, refused: 1, trying: 0 };
    assert!(matches!(judge(&waves(0), one, 2 * MINUTE, &none), Decision::Halt(_)), "none may refuse it");
}

#[test]
fn refusals_that_a_person_knew_of_do_not_halt_it_again() {
    let tally = Tally { devices: 10, online: 10, confirmed: 0, refused: 4, trying: 0 };
    assert!(matches!(judge(&waves(0), tally, 0, &config()), Decision::Halt(_)));
    let resumed = Waves { pardoned: 4, ..waves(0) };
    assert_eq!(judge(&resumed, tally, 0, &config()), Decision::Wait);
    assert!(matches!(judge(&resumed, Tally { refused: 6, ..tally }, 0, &config()), Decision::Halt(_)), "two more than were known");
}

#[test]
fn who_is_gone_or_hangs_cannot_block_it_and_who_lies_has_one_vote() {
    let mut fleet = fleet(400);
    let mut members = first(&mut fleet);
    let third = members.len() / 3;
    members[third..].iter_mut().for_each(|device| device.confirmed = COUNTER);
    members[..third].iter_mut().for_each(|device| device.online = false);
    assert!(matches!(at(2, &fleet), Decision::Advance(_)), "a third is gone");
    first(&mut fleet)[..third].iter_mut().for_each(|device| (device.online, device.trial) = (true, Some(COUNTER)));
    assert_eq!(at(2, &fleet), Decision::Wait, "a third hangs");
    let Decision::Advance(reason) = at(31, &fleet) else { panic!() };
    assert!(reason.contains("not waited for"), "{reason}");
    first(&mut fleet).iter_mut().skip(1).for_each(|device| (device.confirmed, device.trial) = (0, Some(COUNTER)));
    first(&mut fleet)[0].confirmed = COUNTER;
    assert_eq!(at(29, &fleet), Decision::Wait, "one that says it confirmed at once proves nothing");
    assert!(matches!(at(31, &fleet), Decision::Halt(_)));
    // Labels under the release's number by another model are no confirmation.
    first(&mut fleet).iter_mut().for_each(|device| (device.confirmed, device.labelled) = (COUNTER, Some((COUNTER, 8))));
    assert!(matches!(at(2, &fleet), Decision::Halt(_)));
    first(&mut fleet).iter_mut().for_each(|device| device.labelled = Some((COUNTER - 1, 8)));
    assert!(matches!(at(2, &fleet), Decision::Advance(_)), "labels that the earlier model made");
}

#[test]
fn a_wave_without_devices_is_passed_and_an_absent_one_is_waited_for() {
    assert!(matches!(at(0, &[]), Decision::Advance(_)));
    assert_eq!(judge(&waves(2), Tally::default(), 99 * MINUTE, &config()), Decision::Wait, "nobody has it");
    let mut fleet = fleet(100);
    fleet.iter_mut().for_each(|device| device.online = false);
    assert_eq!(at(29, &fleet), Decision::Wait);
    assert!(matches!(at(30, &fleet), Decision::Advance(_)), "nobody is waited for for ever");
    let last = judge(&waves(2), tally(&fleet, COUNTER, None, 1000), 500 * MINUTE, &config());
    assert_eq!(last, Decision::Wait, "nobody has proved it");
    let over = Waves { halted: Some("by hand".to_owned()), ..waves(0) };
    assert_eq!(judge(&over, Tally { devices: 9, online: 9, confirmed: 9, ..Tally::default() }, 500 * MINUTE, &config()), Decision::Wait);
}

proptest! {
    /// Whatever devices say, nothing goes on without a confirmation by more than half of those who are there and did not refuse.
    #[test]
    fn nothing_goes_on_unproved(online in 1_u64..50, votes in 0_u64..50, refusals in 0_u64..50, minutes in 0_u64..100) {
        let (confirmed, refused) = (votes.min(online), refusals.min(online - votes.min(online)));
        let tally = Tally { devices: online, online, confirmed, refused, trying: 0 };
        if let Decision::Advance(_) | Decision::Complete(_) = judge(&waves(0), tally, minutes * MINUTE, &config()) {
            prop_assert!(2 * confirmed > online - refused, "{tally:?}");
            let alone = if online > 2 { 1.0 } else { 0.0 };
            prop_assert!(refused as f64 <= (config().max_refused * online as f64).max(alone));
            prop_assert!(minutes >= 1);
        }
    }

    /// A share only grows, and every device is in the last one.
    #[test]
    fn who_has_it_keeps_it(device in "[a-z0-9-]{1,12}", counter in 0_u64..1 << 48) {
        let mut had = false;
        for share in waves(0).shares {
            let has = turn(&device, counter) < share;
            prop_assert!(has || !had);
            had = has;
        }
        prop_assert!(had);
    }
}

#[test]
fn a_wave_waits_as_much_longer_as_devices_compare() {
    let mut fleet = fleet(200);
    let config = RolloutConfig { shadow_minutes: 120, ..config() };
    let waves = Waves::begin(&config, 0);
    assert_eq!(waves.shadow_minutes, 120);
    let at = |minutes: u64, fleet: &[Standing]| judge(&waves, tally(fleet, COUNTER, Some(7), 100), minutes * MINUTE, &config);
    assert_eq!(at(149, &fleet), Decision::Wait);
    let Decision::Halt(reason) = at(150, &fleet) else { panic!() };
    assert!(reason.contains("within 150 minutes"), "{reason}");
    first(&mut fleet).iter_mut().for_each(|device| device.confirmed = COUNTER);
    assert!(matches!(at(130, &fleet), Decision::Advance(_)));
    // To all at once it is compared, too; but not what a person sends at once.
    let single = RolloutConfig { waves: vec![100.0], shadow_minutes: 5, ..RolloutConfig::default() };
    assert_eq!((Waves::begin(&single, 0).shadow_minutes, Waves::begin(&single, 0).complete), (5, true));
    assert_eq!(Waves::at_once(0).shadow_minutes, 0);
    let before: Waves = serde_json::from_str(r#"{"shares":[100,1000],"wave":0,"since_ms":7}"#).unwrap();
    assert_eq!(before.shadow_minutes, 0);
}
