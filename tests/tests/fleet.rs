//! The whole way round as processes over real sockets, against mosquitto, with peers killed at any moment; and a subscriber that knows the
//! documentation alone.

use omnilabel::mjpeg::{MjpegServer, Pace};
use omnilabel_bundle::{Bundle, seal};
use omnilabel_keypoints::wire::Encoding;
use omnilabel_scenes::Look;
use omnilabel_tests::fleet::{Camera, SITE, Site, Student};
use omnilabel_tests::peers::{Process, SmallDisk, python, root, run, succeed, teacher, until};
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
    // A slow device is not through its folder yet.
    until("every frame of the folder", || site.counts().iter().any(|c| c.device == "studio" && c.stored >= 90).then_some(()));
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
    // Frames in flight when the device was killed were played again, none was left out: as many different ones as the folder has.
    if let Some(python) = python() {
        let query = "SELECT count(DISTINCT frame) FROM labels WHERE device = 'studio'";
        let script = format!("import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute({query:?}).fetchone()[0])");
        let out = Command::new(python).args(["-c", &script]).arg(site.path("centre/centre.sqlite")).output().expect("Python");
        assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "90", "{out:?}");
    }
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

/// The shipped model with every weight 1 % larger and all its hashes right: its golden frames are those of another model.
fn drifted(root: &Path) -> Bundle {
    let shipped = Bundle::open(&teacher()).expect("the shipped model");
    for name in shipped.manifest().files.keys() {
        let file = root.join(name);
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        std::fs::copy(shipped.path(name), file).expect("a copy");
    }
    let weights = root.join("weights.safetensors");
    let mut bytes = std::fs::read(&weights).expect("weights");
    // The length of a JSON header, the header, f32 after f32.
    let header = u64::from_le_bytes(*bytes.first_chunk().expect("a length"));
    let numbers = &mut bytes[8 + usize::try_from(header).expect("a short header")..];
    for number in numbers.as_chunks_mut().0 {
        *number = (1.01 * f32::from_le_bytes(*number)).to_le_bytes();
    }
    std::fs::write(weights, bytes).expect("weights");
    seal(root, shipped.manifest().clone()).expect("a bundle")
}

/// The arguments that sign a bundle by hand.
fn release_of<'a>(config: &'a Path, bundle: &'a Path) -> [&'a std::ffi::OsStr; 5] {
    ["release".as_ref(), "--config".as_ref(), config.as_os_str(), "--bundle".as_ref(), bundle.as_os_str()]
}

/// A stream of rendered scenes, a device that looks at it, a centre that trains nothing.
fn one_camera(site: &Site, seed: u64) -> MjpegServer {
    let footage = site.render("footage", &Look::studio(), seed, 12);
    let stream = MjpegServer::start(&footage.join("images"), Pace::new(4.0)).expect("a stream");
    site.provision("cam", Camera::Mjpeg(&stream.url()), Encoding::Cbor);
    site.configure_centre(100_000, 0, Student::Careful);
    stream
}

/// Lets everything end and returns the device's summary: no label was lost, evicted or stored twice.
fn ended(site: &Site, stream: MjpegServer, device: Process, centre: Process) -> Value {
    drop(stream);
    site.until_drained();
    for process in [&device, &centre] {
        process.signal("TERM");
    }
    let end = summary(device);
    assert!(centre.wait().0.success());
    let [count] = &site.counts()[..] else { panic!("one device: {:?}", site.counts()) };
    let committed = number(&end, "committed");
    assert_eq!((number(&end, "evicted"), number(&end, "dropped"), count.conflicts), (0, 0, 0), "{end}");
    assert_eq!((count.stored, count.settled), (committed, committed), "{count:?}");
    end
}

#[test]
fn a_release_that_gives_other_labels_than_its_golden_frames_is_refused_while_labels_go_on_and_the_next_one_runs() {
    let Some(site) = Site::new() else { return };
    let stream = one_camera(&site, 9);
    let (centre, device) = (site.centre(), site.device("cam"));
    site.until_more(3);

    let (config, bad) = (site.path("trainer.toml"), drifted(&site.path("drifted")));
    // The command tries the golden frames as a device does; a centre that let them pass is a worse one.
    let refused = run("omnilabel-trainer", release_of(&config, bad.root()));
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && told.contains("a device would refuse it: golden/frame-"), "{told}");
    let counter = site.sign(bad.root());
    let (confirmed, reason) = site.until_refused("cam", counter);
    assert!(confirmed == 0 && reason.starts_with("golden frames: golden/frame-"), "{confirmed}: {reason}");
    assert!(!device.said().contains("the new model runs on probation"), "{}", device.said());
    site.until_more(3);

    succeed("omnilabel-trainer", release_of(&config, &teacher()));
    until("the next release runs", || (site.counts()[0].confirmed == counter + 1).then_some(()));
    site.until_more(3);
    let end = ended(&site, stream, device, centre);
    assert_eq!(number(&end, "model"), counter + 1, "{end}");
}

#[test]
fn a_device_that_is_killed_in_a_probation_comes_back_with_the_old_model_and_says_why() {
    let Some(site) = Site::new() else { return };
    let stream = one_camera(&site, 10);
    // Longer than this test.
    let config = site.path("cam/edge.toml");
    let text = std::fs::read_to_string(&config).expect("edge.toml");
    let (short, long) = ("probation_frames = 4\n", "probation_frames = 100000\n");
    assert!(text.contains(short), "{text}");
    std::fs::write(&config, text.replace(short, long)).expect("edge.toml");
    let (centre, mut device) = (site.centre(), site.device("cam"));
    site.until_more(3);

    succeed("omnilabel-trainer", release_of(&site.path("trainer.toml"), &teacher()));
    until("a probation", || device.said().contains("the new model runs on probation").then_some(()));
    // Frames of the release on trial are labelled, too.
    site.until_more(3);
    device.kill();
    device = site.device("cam");
    let (confirmed, reason) = site.until_refused("cam", 1);
    assert!(confirmed == 0 && reason.starts_with("restart: "), "{confirmed}: {reason}");
    site.until_more(3);
    let slots = ["a", "b"].map(|slot| site.path("cam/state").join(slot).exists());
    assert!(slots[0] != slots[1], "what was refused is not kept: {slots:?}");
    let end = ended(&site, stream, device, centre);
    assert_eq!(number(&end, "model"), 0, "{end}");
}

/// The labels of `omnilabel-edge label` on the same pictures, by image id.
fn offline(images: &Path, out: &Path) -> Vec<Value> {
    let manifest = Bundle::open(&teacher()).expect("the shipped model");
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
