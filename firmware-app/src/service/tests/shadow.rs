//! A release runs beside the confirmed model before it may label anything.

use super::*;
use omnilabel_keypoints::trial::SHADOW_ATTEMPTS;

/// A device whose model sees somebody, with ten frames or, where they repeat, footage without end.
fn seeing(broker: &Broker, repeats: bool) -> Device {
    let mut device = Device::provisioned(broker, 10, 100.0, false);
    device.config.publish.frames = FramePolicy::None;
    std::fs::remove_dir_all(&device.config.state_dir).unwrap();
    let first = bundle(&device.folder.path().join("seeing"), "sees", 1, 500);
    Slots::install(&device.config.state_dir, first.root(), Some(&device.folder.path().join("public"))).unwrap();
    let Some(CameraConfig::Folder { repeat, .. }) = &mut device.config.camera else { panic!("a folder") };
    *repeat = repeats;
    device
}

/// The release of a model with this name, and the message that asks for a comparison of so many seconds.
fn compared(device: &Device, name: &str, counter: u64, shadow_secs: u32) -> (ReleaseMsg, Vec<Vec<u8>>) {
    let root = device.folder.path().join(format!("centre-{counter}"));
    let (manifest, blocks) = release(&bundle(&root, name, counter as u8, 9000), counter);
    (ReleaseMsg { shadow_secs, ..sign(&manifest, &key()) }, blocks)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, target) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_disagrees_is_refused_before_it_labels_anything() {
    let Some(broker) = Broker::start() else { return };
    let device = seeing(&broker, true);
    let mut centre = Centre::open(&broker).await;
    let (stop, run) = device.start();
    centre.until("labels with somebody", |c| c.labels.values().any(|label| label.instances.iter().any(|person| person.kept))).await;
    for (name, counter, why) in [
        ("blind", 5, "shadow: it finds another number of people: "),
        ("sees-elsewhere", 6, "shadow: it finds other people: "),
        ("panics", 7, "the model panicked"),
    ] {
        let (message, blocks) = compared(&device, name, counter, 2);
        centre.keep(&blocks);
        let begin = Instant::now();
        centre.publish_release(&message).await;
        let refused = |c: &Centre| c.model.as_ref().is_some_and(|m| m.refused == Some(counter) && m.trial.is_none());
        centre.until(&format!("release {counter} ({name}) is refused"), refused).await;
        let reason = centre.model.as_ref().unwrap().reason.clone();
        assert!(reason.contains(why) && reason.starts_with("shadow: "), "{reason}");
        assert!(name == "panics" || begin.elapsed() >= Duration::from_secs(2), "{:?}", begin.elapsed());
        assert!(centre.labels.values().all(|label| label.model == 0), "it was never live");
        assert!(!device.config.state_dir.join("b").exists(), "what was refused is not kept");
    }
    let (message, blocks) = compared(&device, "sees-too", 8, 2);
    centre.keep(&blocks);
    let (begin, labels) = (Instant::now(), centre.labels.len());
    centre.publish_release(&message).await;
    centre.until("release 8 is tried", |c| c.model.as_ref().is_some_and(|m| m.trial == Some(8))).await;
    centre.until("release 8 is confirmed", |c| c.model.as_ref().is_some_and(|m| m.confirmed == 8)).await;
    assert!(begin.elapsed() >= Duration::from_secs(2), "{:?}", begin.elapsed());
    centre.until("labels of release 8", |c| c.labels.values().any(|label| label.model == 8)).await;
    let beside = centre.labels.values().filter(|label| label.model == 0).count() - labels;
    assert!(beside >= 20, "{beside} labels in the two seconds of comparison");
    stop.send_replace(true);
    assert_eq!(run.await.unwrap().unwrap().model, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_loses_power_in_the_comparison_begins_it_anew() {
    let Some(broker) = Broker::start() else { return };
    let mut device = seeing(&broker, false);
    let mut centre = Centre::open(&broker).await;
    let (stop, run) = device.start();
    // Nothing is sent any more that the device would number anew.
    centre.until("the labels", |c| c.labels.len() == 10).await;
    let (message, blocks) = compared(&device, "sees-too", 3, 3600);
    centre.keep(&blocks);
    centre.publish_release(&message).await;
    let (state, lost) = (device.config.state_dir.clone(), device.folder.path().join("lost"));
    centre.until("the comparison", |_| std::fs::read_to_string(state.join("state.json")).unwrap().contains("\"shadow\"")).await;
    // What is on the disk when the power goes.
    copy(&state, &lost);
    stop.send_replace(true);
    assert_eq!(run.await.unwrap().unwrap().model, 0);
    // A clean stop costs nothing, either.
    let text = std::fs::read_to_string(state.join("state.json")).unwrap();
    assert!(text.contains("testing") && text.contains("\"attempts\": 0"), "{text}");

    let short = ReleaseMsg { shadow_secs: 1, ..message };
    std::fs::write(lost.join("offer.release"), crate::publish::encode(&short, Encoding::Cbor).unwrap()).unwrap();
    centre.publish_release(&short).await;
    device.config.state_dir = lost;
    let (slots, _) = Slots::look(&device.config.state_dir, &trust(&device.config.state_dir)).unwrap();
    assert_eq!(slots.state().phase, Phase::Shadow { counter: 3, attempts: 1 });
    assert_eq!(slots.state().running(), Slot::A);
    let (stop, run) = device.start();
    centre.until("release 3 is confirmed", |c| c.model.as_ref().is_some_and(|m| m.confirmed == 3)).await;
    stop.send_replace(true);
    run.await.unwrap().unwrap();

    // A device that died in it again and again gives up.
    let (mut slots, _) = Slots::open(&device.config.state_dir, &trust(&device.config.state_dir)).unwrap();
    slots.begin_trial(Slot::A).unwrap();
    slots.set(State { phase: Phase::Shadow { counter: 4, attempts: SHADOW_ATTEMPTS }, ..slots.state() }).unwrap();
    let (stop, run) = device.start();
    centre.until("release 4 is refused", |c| c.model.as_ref().is_some_and(|m| m.refused == Some(4))).await;
    assert!(centre.model.as_ref().is_some_and(|m| m.reason.starts_with("restart")), "{:?}", centre.model);
    stop.send_replace(true);
    assert_eq!(run.await.unwrap().unwrap().model, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_frames_come_nothing_is_compared_and_the_probation_decides() {
    let Some(broker) = Broker::start() else { return };
    let device = seeing(&broker, false);
    let mut centre = Centre::open(&broker).await;
    let (stop, run) = device.start();
    centre.until("the labels", |c| c.labels.len() == 10).await;
    let (message, blocks) = compared(&device, "blind", 3, 1);
    centre.keep(&blocks);
    let begin = Instant::now();
    centre.publish_release(&message).await;
    centre.until("release 3 is confirmed", |c| c.model.as_ref().is_some_and(|m| m.confirmed == 3)).await;
    assert!(begin.elapsed() >= Duration::from_secs(2), "it waits twice as long for frames: {:?}", begin.elapsed());
    let (message, blocks) = compared(&device, "panics", 4, 1);
    centre.keep(&blocks);
    centre.publish_release(&message).await;
    centre.until("release 4 is refused", |c| c.model.as_ref().is_some_and(|m| m.refused == Some(4))).await;
    let reason = centre.model.as_ref().unwrap().reason.clone();
    assert!(reason.starts_with("health: "), "{reason}");
    stop.send_replace(true);
    assert_eq!(run.await.unwrap().unwrap().model, 3);
}
