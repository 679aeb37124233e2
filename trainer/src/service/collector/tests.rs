use super::*;
use crate::service::testing::{World, encode, messages};
use omnilabel_keypoints::wire::{AckMsg, WireInstance};
use proptest::prelude::*;

const LABELS: &str = "omnilabel/v1/home/cam-1/labels";

fn check(topic: &str, payload: Vec<u8>, expect: &str) {
    let error = World::new().intake().take(topic, payload).expect_err(expect).0.to_string();
    assert!(error.contains(expect), "{error} does not say {expect}");
}

#[test]
fn what_cannot_be_used_is_refused_with_its_reason() {
    let label = messages(1, 0.0, 0).remove(0).1;
    check("omnilabel/v1/other/cam-1/labels", label.clone(), "not a topic");
    check("omnilabel/v1/home/c*m/labels", label.clone(), "not a topic");
    check("omnilabel/v1/home/cam-1/ack", encode(&AckMsg { version: 1, ..AckMsg::default() }), "not a topic");
    check(LABELS, vec![0; LabelMsg::MAX_BYTES + 1], "at most");
    check(LABELS, label[..label.len() - 1].to_vec(), "not a valid message");
    check(LABELS, encode(&LabelMsg { version: 9, sequence: 1, ..LabelMsg::default() }), "version");
    check(LABELS, encode(&LabelMsg { version: 1, sequence: 0, ..LabelMsg::default() }), "sequence");
    check(LABELS, encode(&LabelMsg { version: 1, sequence: u64::MAX, ..LabelMsg::default() }), "sequence");
    let status = StatusMsg { version: 1, committed: u64::MAX, ..StatusMsg::default() };
    check("omnilabel/v1/home/cam-1/status", encode(&status), "committed");
    for frame in [vec![], vec![0], vec![0, 9, 1], vec![255, 255, 1]] {
        check("omnilabel/v1/home/cam-1/frames", frame, "not a valid message");
    }
}

#[test]
fn a_label_of_another_skeleton_is_kept_but_marked() {
    let mut label = LabelMsg { version: 1, sequence: 3, width: 8, height: 8, ..LabelMsg::default() };
    label.instances.push(WireInstance::default()).unwrap();
    let (_, Taken::Store(Record::Label(row))) = World::new().intake().take(LABELS, encode(&label)).unwrap() else { panic!() };
    assert!(row.refused.as_ref().unwrap().contains("0 keypoints, the manual set's has 4"), "{row:?}");
}

#[test]
fn a_label_that_nobody_could_have_seen_is_kept_but_marked() {
    let refused = |change: &dyn Fn(&mut LabelMsg)| {
        let mut label = LabelMsg::decode(&messages(1, 0.0, 0).remove(0).1).unwrap();
        change(&mut label);
        let (_, Taken::Store(Record::Label(row))) = World::new().intake().take(LABELS, encode(&label)).unwrap() else { panic!() };
        assert_eq!(row.payload, encode(&label), "kept as it came");
        row.refused.unwrap_or_default()
    };
    assert_eq!(refused(&|_| {}), "");
    for captured_ms in [0, 42, 1_767_225_600_000, LAST_MS] {
        assert_eq!(refused(&|label| label.captured_ms = captured_ms), "", "without a clock, before it was set, and with one");
    }
    // In quarantine it would never be acknowledged, and the device would send it for ever.
    assert!(refused(&|label| label.captured_ms = LAST_MS + 1).contains("after the year 9999"));
    assert!(refused(&|label| label.captured_ms = u64::MAX).contains("after the year 9999"));
    assert!(refused(&|label| label.width = 0).contains("0 × "));
    assert!(refused(&|label| label.height = 1_000_000).contains("1000000 pixels"));
    assert!(refused(&|label| label.instances[0].rect.swap(0, 2)).contains("instance 0"));
    assert!(refused(&|label| label.instances[0].rect[3] = i32::MAX).contains("begins or ends far outside"));
    assert!(refused(&|label| label.instances[0].keypoints[1].0 = i32::MIN).contains("keypoint 1 of instance 0"));
}

#[test]
fn a_list_of_devices_keeps_out_all_others() {
    let mut world = World::new();
    world.config.collector.devices = vec!["cam-2".to_owned()];
    let label = || messages(1, 0.0, 0).remove(0).1;
    let (rejected, payload) = world.intake().take(LABELS, label()).unwrap_err();
    assert_eq!((rejected, payload), (Rejected::Unknown, label()));
    assert!(world.intake().take("omnilabel/v1/home/cam-2/labels", label()).is_ok());
}

#[test]
fn a_frame_that_is_no_picture_settles_its_label_without_being_kept() {
    let mut frame = messages(1, 0.0, 0).remove(1).1;
    let header = 2 + usize::from(u16::from_be_bytes([frame[0], frame[1]]));
    frame.truncate(header + 20);
    let taken = World::new().intake().take("omnilabel/v1/home/cam-1/frames", frame).unwrap();
    let (_, Taken::Store(Record::Frame { refused: Some(why), .. })) = taken else { panic!("{taken:?}") };
    assert!(why.contains("JPEG"), "{why}");
}

#[test]
fn a_header_alone_settles_the_label_of_an_evicted_frame() {
    let mut frame = messages(1, 0.0, 0).remove(1).1;
    frame.truncate(2 + usize::from(u16::from_be_bytes([frame[0], frame[1]])));
    let taken = World::new().intake().take("omnilabel/v1/home/cam-1/frames", frame).unwrap();
    let (_, Taken::Store(Record::Frame { refused: Some(why), .. })) = taken else { panic!("{taken:?}") };
    assert!(why.contains("evicted"), "{why}");
}

#[test]
fn a_frame_as_large_as_a_packet_is_taken() {
    let frame = messages(1, 0.0, 0).remove(1).1;
    let check = |world: &World, bytes: usize| {
        let mut frame = frame.clone();
        frame.resize(bytes, 0);
        let taken = world.intake().take("omnilabel/v1/home/cam-1/frames", frame).unwrap();
        let (_, Taken::Store(Record::Frame { refused, .. })) = taken else { panic!("{taken:?}") };
        refused
    };
    let mut world = World::new();
    assert_eq!(check(&world, omnilabel_link::MAX_PACKET), None);
    world.config.collector.max_frame_bytes = 1 << 20;
    assert!(check(&world, 2 << 20).unwrap().contains("at most 1048576"));
}

#[test]
fn the_number_of_devices_is_bounded() {
    let mut world = World::new();
    world.config.collector.max_devices = 2;
    let mut intake = world.intake();
    let label = messages(1, 0.0, 0).remove(0).1;
    for device in ["a", "b", "a"] {
        intake.take(&format!("omnilabel/v1/home/{device}/labels"), label.clone()).unwrap();
    }
    assert_eq!(intake.take("omnilabel/v1/home/c/labels", label).unwrap_err().0, Rejected::Devices(2));
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(kind in 0_usize..7, flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8), noise in proptest::collection::vec(any::<u8>(), 0..200)) {
        let kinds = ["labels", "frames", "status", "model", "histogram", "blocks/get", "ack"];
        let topic = format!("omnilabel/v1/home/cam-1/{}", kinds[kind]);
        let limits = CollectorConfig::default();
        let mut intake = Intake::new("omnilabel/v1", "home", 4, limits, []);
        let _ = intake.take(&topic, noise);
        let mut message = messages(1, 0.0, 0).remove(kind % 2).1;
        for (at, byte) in flips {
            let index = at.index(message.len());
            message[index] = byte;
        }
        let _ = intake.take(&topic, message);
    }
}
