//! The whole way round as processes over real sockets, against mosquitto, with peers killed at any moment; and a subscriber that knows the
//! documentation alone.

use omnilabel::mjpeg::{MjpegServer, Pace};
use omnilabel_keypoints::wire::Encoding;
use omnilabel_scenes::Look;
use omnilabel_tests::fleet::{Camera, SITE, Site, Student};
use omnilabel_tests::peers::{Process, SmallDisk, python, root, succeed, teacher, until};
use omnilabel_trainer::service::Event;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// What a device printed when it ended.
fn summary(device: Process) -> Value {
    let said = device.said();
    let (status, out) = device.wait();
    assert!(status.success(), "{status}: {said}");
    serde_json::from_str(out.trim()).unwrap_or_else(|error| panic!("{error}: {out:?}"))
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("no number `{key}` in {value}"))
}

#[test]
fn broker_device_and_centre_are_killed_and_no_label_is_lost_or_stored_twice_and_the_release_runs() {
    let Some(mut site) = Site::new() else { return };
    let studio = site.render("studio-footage", &Look::studio(), 4, 90);
    let street = site.render("street-footage", &Look::street(), 5, 20);
    let stream = MjpegServer::start(&street.join("images"), Pace::new(4.0)).expect("a stream");
    site.provision("studio", Camera::Folder(&studio.join("images"), 6.0, false), Encoding::Cbor);
    site.provision("street", Camera::Mjpeg(&stream.url()), Encoding::Json);
    site.configure_centre(110, 1, Student::Careful);
    let mut centre = site.centre();
    let (mut folder, live) = (site.device("studio"), site.device("street"));
    site.until_more(15);

    site.broker.kill();
    until("both devices notice", || [&folder, &live].iter().all(|d| d.said().contains("no broker; labels wait")).then_some(()));
    assert!(site.broker.start_again());
    site.until_more(15);

    folder.kill();
    folder = site.device("studio");
    site.until_more(15);

    centre.kill();
    centre = site.centre();
    until("a training step", || site.events().iter().any(|e| matches!(e, Event::Train { .. })).then_some(()));
    centre.kill();
    centre = site.centre();

    until("the release runs on both devices", || {
        let counts = site.counts();
        (counts.len() == 2 && counts.iter().all(|count| count.confirmed == 1)).then_some(())
    });
    // The swap stopped nothing: both models' labels are there, and the new one's keep coming.
    site.until_more(3);
    drop(stream);
    site.until_drained();
    for device in [&folder, &live] {
        device.signal("TERM");
    }
    let made = [summary(folder), summary(live)];
    centre.signal("TERM");
    assert!(centre.wait().0.success());

    let counts = site.counts();
    for (device, name) in made.iter().zip(["studio", "street"]) {
        let count = counts.iter().find(|count| count.device == name).unwrap_or_else(|| panic!("no account of {name}"));
        assert_eq!(number(device, "model"), 1, "{device}");
        assert_eq!((number(device, "evicted"), number(device, "dropped")), (0, 0), "{device}");
        // Every committed label once, with its frame; a second copy would be another row or a conflict.
        let committed = number(device, "committed");
        assert_eq!((count.stored, count.settled, count.frames, count.conflicts), (committed, committed, committed, 0), "{count:?}");
    }
    // Frames in flight when the device was killed were played again, none was left out.
    let studio = counts.iter().find(|count| count.device == "studio").expect("an account");
    assert!(studio.stored >= 90, "{studio:?}");
    let restarts = site.events().iter().filter(|e| matches!(e, Event::Started { .. })).count();
    assert_eq!(restarts, 3);
    assert!(site.events().iter().any(|e| matches!(e, Event::Released { counter: 1, .. })));
}

#[test]
fn a_full_disk_makes_the_camera_wait_and_no_frame_goes_without_its_label() {
    let Some(site) = Site::new() else { return };
    let footage = site.render("footage", &Look::studio(), 8, 24);
    site.provision("cam", Camera::Folder(&footage.join("images"), 50.0, true), Encoding::Cbor);
    site.configure_centre(1000, 0, Student::Careful);
    let Some(disk) = SmallDisk::mount(&site.path("cam/state/outbox"), "64k") else { return };
    let device = site.device("cam");
    until("the camera waits", || device.said().contains("a label waits for room in the outbox").then_some(()));
    disk.resize("16m");
    let _centre = site.centre();
    let end = summary(device);
    assert_eq!(["frames", "committed", "pending", "dropped"].map(|key| number(&end, key)), [24, 24, 0, 0], "{end}");
    assert_eq!(site.settled(), 24);
}

#[test]
fn a_student_that_training_ruined_is_refused_and_no_device_hears_of_it() {
    let Some(site) = Site::new() else { return };
    let footage = site.render("footage", &Look::studio(), 6, 20);
    site.provision("cam", Camera::Folder(&footage.join("images"), 20.0, false), Encoding::Cbor);
    site.configure_centre(20, 1, Student::Ruined);
    let (centre, device) = (site.centre(), site.device("cam"));
    let reason = until("the gate's word", || {
        site.events().into_iter().find_map(|event| match event {
            Event::Refused { reason, .. } => Some(reason),
            Event::Released { .. } => panic!("a ruined student was released"),
            _ => None,
        })
    });
    assert!(reason.contains("candidate AP") && reason.contains("needed"), "{reason}");
    assert!(!site.events().iter().any(|e| matches!(e, Event::Released { .. } | Event::Error { .. })), "{:?}", site.events());
    for process in [&device, &centre] {
        process.signal("TERM");
    }
    let end = summary(device);
    assert_eq!((number(&end, "model"), number(&end, "committed")), (0, 20), "{end}");
    assert!(centre.wait().0.success());
}

/// The labels of `omnilabel-edge label` on the same pictures, by image id.
fn offline(images: &Path, out: &Path) -> Vec<Value> {
    let manifest = omnilabel_bundle::Bundle::open(&teacher()).expect("the shipped model");
    let floor = manifest.manifest().thresholds.floor.to_string();
    let (model, scales) = (teacher(), "112,128,144");
    let args: [&std::ffi::OsStr; 12] = [
        "label".as_ref(),
        "--model".as_ref(),
        model.as_os_str(),
        "--images".as_ref(),
        images.as_os_str(),
        "--out".as_ref(),
        out.as_os_str(),
        "--flip".as_ref(),
        "--scales".as_ref(),
        scales.as_ref(),
        "--min-score".as_ref(),
        floor.as_ref(),
    ];
    succeed("omnilabel-edge", args);
    serde_json::from_str(&std::fs::read_to_string(out).expect("results")).expect("a list of results")
}

/// Half a step of the wire's quantisation, px, and what is lost on the way through COCO's decimals.
const WIRE_PX: f64 = 0.5 / 16.0 + 1e-3;

#[test]
fn a_subscriber_written_from_the_documentation_reads_every_label() {
    let (Some(python), Some(site)) = (python(), Site::new()) else { return };
    let pictures = ["one", "two"].map(|name| (name, site.render(&format!("{name}-footage"), &Look::studio(), 7, 12)));
    for ((name, pictures), encoding) in pictures.iter().zip([Encoding::Cbor, Encoding::Json]) {
        site.provision(name, Camera::Folder(&pictures.join("images"), 20.0, true), encoding);
    }
    site.configure_centre(1000, 0, Student::Careful);
    let script = root().join("tests/python/subscriber.py");
    let mut command = Command::new(python);
    command.arg(script).args([site.broker.port.to_string(), SITE.to_owned()]).arg(root().join("docs"));
    let mut subscriber = Process::spawn("subscriber", &mut command, &site.log("subscriber"));
    assert_eq!(subscriber.line(), "ready");
    let _centre = site.centre();
    let devices = ["one", "two"].map(|name| site.device(name));
    for device in devices {
        let end = summary(device);
        assert_eq!((number(&end, "committed"), number(&end, "pending")), (12, 0), "{end}");
    }
    subscriber.tell("24");
    let (status, out) = subscriber.wait();
    assert!(status.success(), "{}", std::fs::read_to_string(site.log("subscriber")).unwrap_or_default());
    let found: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out:?}"));
    assert_eq!(found["problems"], Value::Array(Vec::new()));
    for kind in ["labels", "frames", "status", "model", "ack", "histogram"] {
        assert!(found["kinds"][kind].as_u64().is_some_and(|n| n > 0), "no message on {kind}: {}", found["kinds"]);
    }
    assert!(found["encodings"]["one"]["cbor"].as_u64() >= Some(12) && found["encodings"]["two"]["json"].as_u64() >= Some(12));

    let mut people = 0;
    for (name, pictures) in &pictures {
        let labels = found["labels"][*name].as_array().expect("labels of the device");
        let mut sequences: Vec<u64> = labels.iter().map(|l| number(l, "sequence")).collect();
        sequences.sort_unstable();
        assert_eq!(sequences, (1..=12).collect::<Vec<_>>(), "every label of {name} once");
        assert_eq!(found["frames"][*name].as_object().map(|frames| frames.len()), Some(12));
        let expected = offline(&pictures.join("images"), &site.path("results.json"));
        for label in labels {
            let of_frame: Vec<&Value> = expected.iter().filter(|r| number(r, "image_id") == number(label, "frame")).collect();
            let read = label["people"].as_array().expect("people");
            assert_eq!(read.len(), of_frame.len(), "people of frame {}", label["frame"]);
            for (person, result) in read.iter().zip(of_frame) {
                let coco = result["keypoints"].as_array().expect("keypoints");
                let keypoints = person["keypoints"].as_array().expect("keypoints");
                assert_eq!(keypoints.len() * 3, coco.len());
                people += 1;
                for (keypoint, triple) in keypoints.iter().zip(coco.chunks(3)) {
                    for axis in 0..2 {
                        // COCO's pixel indices are half a pixel below continuous coordinates.
                        let (wire, file) = (keypoint[axis].as_f64(), triple[axis].as_f64().map(|v| v + 0.5));
                        let apart = wire.zip(file).map(|(a, b)| (a - b).abs());
                        assert!(apart.is_some_and(|d| d <= WIRE_PX), "{wire:?} and {file:?} in frame {}", label["frame"]);
                    }
                }
            }
        }
    }
    assert!(people >= 20, "only {people} people to compare");
}
