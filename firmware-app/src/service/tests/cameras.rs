//! Several cameras, and which of their frames are labelled.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn several_cameras_are_labelled_and_one_that_is_not_there_stops_no_other() {
    let Some(broker) = Broker::start() else { return };
    let mut device = Device::provisioned(&broker, 0, 1.0, true);
    let at = |name: &str| device.folder.path().join(name);
    let camera = |name: &str| CameraConfig::Folder { path: at(name), fps: 500.0, repeat: false, stop_at_end: true };
    frames(&at("gate"), 30);
    frames(&at("yard"), 7);
    std::fs::write(at("yard/0003.jpg"), b"\xff\xd8 torn").unwrap();
    let cameras = ["gate", "late", "yard"].map(|name| (name.to_owned(), camera(name)));
    (device.config.camera, device.config.cameras) = (None, cameras.into());
    let mut centre = Centre::open(&broker).await;
    let (_stop, run) = device.start();
    let of =
        |c: &Centre, camera: &str| c.labels.values().filter(|label| label.camera == camera).map(|label| label.frame).collect::<Vec<_>>();
    centre.until("the labels of two cameras", |c| of(c, "gate").len() == 30 && of(c, "yard").len() == 6).await;
    assert!(!run.is_finished(), "the third camera's frames may still come");
    frames(&at("late"), 3);
    centre.until("the labels of the third", |c| of(c, "late").len() == 3).await;
    let summary = centre.beside(run).await.unwrap();
    assert_eq!((summary.frames, summary.bad_frames, summary.committed, summary.pending), (39, 1, 39, 0));
    assert_eq!(of(&centre, "yard"), [1, 2, 4, 5, 6, 7]);
    assert!(centre.labels.values().all(|label| label.views == 2 && label.changes == 0));
    // Each camera goes on where it was: there is nothing left to do.
    let again = centre.beside(device.start().1).await.unwrap();
    assert_eq!((again.frames, again.committed), (0, 39));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_passes_over_frames_and_a_restart_knows_the_quotas() {
    let Some(broker) = Broker::start() else { return };
    let mut device = Device::provisioned(&broker, 0, 500.0, true);
    let folder = device.folder.path().join("frames");
    frames(&folder, 20);
    // The second half repeats the frame before it.
    for index in (2..=20).step_by(2) {
        std::fs::copy(folder.join(format!("{:04}.jpg", index - 1)), folder.join(format!("{index:04}.jpg"))).unwrap();
    }
    device.config.policy = PolicyConfig { novelty: 0.1, labels_per_day: 6, ..PolicyConfig::default() };
    device.config.publish = PublishConfig { frames: FramePolicy::All, frames_per_day: 2, only_people: true, ..PublishConfig::default() };
    let mut centre = Centre::open(&broker).await;
    let summary = centre.beside(device.start().1).await.unwrap();
    assert_eq!((summary.frames, summary.committed), (6, 6));
    assert_eq!(centre.labels.values().map(|label| label.frame).collect::<Vec<_>>(), [1, 3, 5, 7, 9, 11]);
    let changed = centre.labels.values().map(|label| (label.jpeg, label.changes)).collect::<Vec<_>>();
    let only_people = omnilabel_keypoints::wire::ONLY_PEOPLE;
    assert_eq!(changed, [(true, only_people), (true, only_people), (false, 0), (false, 0), (false, 0), (false, 0)]);
    // Another folder, on the same day.
    frames(&device.folder.path().join("more"), 4);
    device.config.camera =
        Some(CameraConfig::Folder { path: device.folder.path().join("more"), fps: 500.0, repeat: false, stop_at_end: true });
    let more = centre.beside(device.start().1).await.unwrap();
    assert_eq!(more.frames, 0, "the day's labels are made");
    device.config.policy.labels_per_day = 7;
    std::fs::remove_file(device.config.state_dir.join("camera.progress")).unwrap();
    let more = centre.beside(device.start().1).await.unwrap();
    assert_eq!((more.frames, more.committed), (1, 7));
}
