//! Power is lost at every change that an update makes to the state folder.

use super::*;
use crate::durable::power;
use crate::update::faults;
use nix::errno::Errno;
use omnilabel_keypoints::trial::{SHADOW_ATTEMPTS, TEST_ATTEMPTS};
use std::sync::atomic::AtomicUsize;

const COUNTER: u64 = 3;

/// How an update with a power cut ended.
#[derive(Debug, PartialEq)]
enum End {
    Confirmed,
    /// Because the device died in the probation.
    Restart,
}

/// Takes a release with the power cut at a step, and goes on when it is back. How it ended, and the steps before the cut.
async fn update(cut_at: usize) -> Option<(End, usize)> {
    let broker = Broker::start()?;
    let device = Device::provisioned(&broker, 300, 100.0, false);
    let state = device.config.state_dir.clone();
    let mut centre = Centre::open(&broker).await;
    let (good, blocks) = release(&bundle(&device.folder.path().join("centre"), "second", 2, 3000), COUNTER);
    power::supply(&state, cut_at);
    let confirmed = |c: &Centre| c.model.as_ref().is_some_and(|m| m.confirmed == COUNTER);
    let (stop, mut run) = device.start();
    centre.keep(&blocks);
    // With the release comes a set of release keys.
    let signer = ed25519_dalek::SigningKey::from_bytes(&[21; 32]);
    centre.publish_release(&with_keys(sign(&good, &signer), &key(), &key_set("yard", 1, &[&signer], Some(COUNTER)))).await;
    let cut_or_done = |c: &Centre| power::is_cut(&state) || confirmed(c);
    tokio::select! {
        // A device that cannot write at its start may end by itself.
        ended = &mut run => assert!(power::is_cut(&state), "{ended:?}"),
        () = centre.until("the cut", cut_or_done) => {
            stop.send_replace(true);
            let _ = run.await;
        }
    }
    let steps = power::restore(&state);
    // A broker of another update that is being started has the lock's descriptor from its fork to its exec.
    let start = Instant::now();
    while crate::slots::lock(&state).is_err() {
        assert!(start.elapsed() < DEADLINE, "the device's lock is still held");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    centre.model = None;
    let (stop, mut run) = device.start();
    let refused = |c: &Centre| c.model.as_ref().is_some_and(|m| m.refused == Some(COUNTER) && m.trial.is_none());
    let what = format!("the update goes on after a cut at step {cut_at}");
    tokio::select! {
        ended = &mut run => panic!("{what}: {ended:?}"),
        () = centre.until(&what, |c| confirmed(c) || refused(c)) => {}
    }
    let before = centre.labels.len();
    centre.until("labels go on", |c| c.labels.len() > before).await;
    stop.send_replace(true);
    run.await.unwrap().unwrap();

    let model = centre.model.unwrap();
    let (slots, running) = Slots::look(&state, &trust(&state)).unwrap();
    let State { phase, highest, set, .. } = slots.state();
    assert_eq!((phase, highest, set, slots.recovered()), (Phase::Idle, COUNTER, 1, None), "cut at step {cut_at}");
    assert!(!state.join("blocks").exists(), "cut at step {cut_at}");
    if model.confirmed == COUNTER {
        assert_eq!((running.manifest().name.as_str(), slots.state().confirmed_counter), ("second", COUNTER), "cut at step {cut_at}");
        return Some((End::Confirmed, steps));
    }
    assert!(model.reason.starts_with("restart"), "cut at step {cut_at}: {}", model.reason);
    assert_eq!((running.manifest().name.as_str(), slots.state().confirmed_counter), ("first", 0), "cut at step {cut_at}");
    assert!(!slots.path(Slot::B).exists(), "what was refused is not kept");
    Some((End::Restart, steps))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn power_lost_at_every_step_of_an_update_leaves_one_model_or_the_other() {
    let Some((end, steps)) = update(usize::MAX).await else { return };
    assert!(end == End::Confirmed && steps > 60, "{end:?} after {steps} steps");
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..6 {
        workers.spawn(async move {
            let mut ends = Vec::new();
            for cut_at in (worker..steps).step_by(6) {
                ends.push((cut_at, update(cut_at).await.unwrap().0));
            }
            ends
        });
    }
    let ends: BTreeMap<usize, End> = workers.join_all().await.into_iter().flatten().collect();
    let restarts: Vec<usize> = ends.iter().filter(|(_, end)| **end == End::Restart).map(|(cut_at, _)| *cut_at).collect();
    println!(
        "power lost at {} steps: {} confirmed afterwards, {} given up: {restarts:?}",
        ends.len(),
        ends.len() - restarts.len(),
        restarts.len()
    );
    // Only what is between the probation's begin and its end costs the release.
    assert!(ends.len() == steps && restarts.len() * 4 < steps, "{restarts:?}");
}

/// A device takes one release after another, and at a step of each the disk fails, then works again: at every `of`-th one from `first` on.
/// How often it failed.
async fn takes_all(first: usize, of: usize) -> Option<usize> {
    let broker = Broker::start()?;
    let mut device = Device::provisioned(&broker, 10, 30.0, false);
    device.config.publish.frames = FramePolicy::None;
    let Some(CameraConfig::Folder { repeat, .. }) = &mut device.config.camera else { panic!("a folder") };
    *repeat = true;
    let state = device.config.state_dir.clone();
    let mut centre = Centre::open(&broker).await;
    let (stop, run) = device.start();
    centre.until("a label", |c| !c.labels.is_empty()).await;
    let mut counter = 0;
    for cut_at in (first..).step_by(of) {
        counter += 1;
        let root = device.folder.path().join(format!("centre-{counter}"));
        // Few blocks: those that cannot be written are asked for again after five seconds.
        let (good, blocks) = release_in_blocks(&bundle(&root, "good", counter as u8, 3000), counter, 1 << 16);
        centre.keep(&blocks);
        let confirmed = |c: &Centre| c.model.as_ref().is_some_and(|m| m.confirmed == counter);
        power::supply(&state, cut_at);
        centre.publish_release(&sign(&good, &key())).await;
        centre.until("the disk fails or the update ends", |c| power::is_cut(&state) || confirmed(c)).await;
        let failed = power::is_cut(&state);
        power::restore(&state);
        // A release that could not be kept is taken when it comes again, as it does with every connection.
        centre.publish_release(&sign(&good, &key())).await;
        centre.until(&format!("release {counter} is confirmed, the disk failed at step {cut_at}"), confirmed).await;
        if !failed {
            break;
        }
    }
    stop.send_replace(true);
    assert_eq!(run.await.unwrap().unwrap().model, counter);
    Some(counter as usize - 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn a_disk_that_fails_at_any_step_of_an_update_costs_no_release() {
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..4 {
        workers.spawn(takes_all(worker, 4));
    }
    let Some(failed) = workers.join_all().await.into_iter().sum::<Option<usize>>() else { return };
    assert!(failed > 60, "{failed} steps");
}

/// A device that was stopped in the probation of release 3: its next start tries the golden frames again.
async fn stopped_in_a_probation(device: &mut Device, centre: &mut Centre) {
    device.config.update.probation_frames = u32::MAX;
    let state = device.config.state_dir.join("state.json");
    let (stop, run) = device.start();
    let (good, blocks) = release(&bundle(&device.folder.path().join("centre-3"), "second", 2, 9000), 3);
    centre.offer(&good, &blocks, &key()).await;
    centre.until("the probation", |_| std::fs::read_to_string(&state).unwrap().contains("probation")).await;
    stop.send_replace(true);
    run.await.unwrap().unwrap();
    device.config.update.probation_frames = 5;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_goes_on_without_another_start_where_the_disk_failed_at_the_first() {
    let Some(broker) = Broker::start() else { return };
    let mut device = Device::provisioned(&broker, 10, 200.0, false);
    let state = device.config.state_dir.clone();
    let mut centre = Centre::open(&broker).await;
    stopped_in_a_probation(&mut device, &mut centre).await;
    for (phase, refused) in [
        // It is assembled and tried again.
        (Phase::Shadow { counter: 3, attempts: 1 }, None),
        // The start counts, however late: what the device died of does not run again.
        (Phase::Testing { counter: 4, attempts: TEST_ATTEMPTS, shadows: 0 }, Some(4)),
        (Phase::Shadow { counter: 5, attempts: SHADOW_ATTEMPTS }, Some(5)),
        (Phase::Probation { counter: 6, frames_left: 2 }, Some(6)),
    ] {
        let (mut slots, _) = Slots::open(&state, &trust(&state)).unwrap();
        slots.begin_trial(slots.state().confirmed.other()).unwrap();
        slots.set(State { phase, ..slots.state() }).unwrap();
        let before = std::fs::read_to_string(state.join("state.json")).unwrap();
        power::supply(&state, 0);
        centre.model = None;
        let (stop, run) = device.start();
        centre.until("a start on a full disk", |c| power::is_cut(&state) && c.model.is_some()).await;
        let start = Instant::now();
        while power::steps(&state) < 2 {
            assert!(start.elapsed() < DEADLINE, "{phase:?}: it is not tried again");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(std::fs::read_to_string(state.join("state.json")).unwrap(), before);
        power::restore(&state);
        let ended = |m: &ModelMsg| m.confirmed == 3 && m.refused == refused && m.trial.is_none();
        centre.until(&format!("{phase:?} goes on"), |c| c.model.as_ref().is_some_and(ended)).await;
        let reason = centre.model.as_ref().unwrap().reason.clone();
        assert!(refused.is_none() || reason.starts_with("restart: "), "{phase:?}: {reason}");
        stop.send_replace(true);
        run.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_are_lost_after_a_restart_are_fetched_again() {
    let Some(broker) = Broker::start() else { return };
    let mut device = Device::provisioned(&broker, 10, 200.0, false);
    let mut centre = Centre::open(&broker).await;
    stopped_in_a_probation(&mut device, &mut centre).await;
    let mut blocks = std::fs::read_dir(device.config.state_dir.join("blocks")).unwrap().map(|entry| entry.unwrap().path());
    faults::set(&blocks.next().unwrap(), Errno::EIO);
    std::fs::remove_file(blocks.next().unwrap()).unwrap();
    let (stop, run) = device.start();
    centre.until("release 3 is confirmed", |c| c.model.as_ref().is_some_and(|m| m.confirmed == 3)).await;
    stop.send_replace(true);
    assert_eq!(run.await.unwrap().unwrap().model, 3);
}

/// [`Hand`], where the system lets it read the bundle of this name.
struct Reads<F>(F);

impl<F: Fn(&str) -> std::io::Result<()> + Send + Sync> Loader for Reads<F> {
    fn load(&self, bundle: &Bundle, counter: u64) -> anyhow::Result<Model> {
        (self.0)(bundle.manifest().name.as_str())?;
        Hand.load(bundle, counter)
    }
    fn golden(&self, bundle: &Bundle, model: &Model) -> anyhow::Result<()> {
        Hand.golden(bundle, model)
    }
}

/// A device with footage without end that loads models as `reads` lets it.
fn start_with(
    device: &mut Device,
    reads: impl Fn(&str) -> std::io::Result<()> + Send + Sync + 'static,
) -> (watch::Sender<bool>, tokio::task::JoinHandle<anyhow::Result<Summary>>) {
    device.config.publish.frames = FramePolicy::None;
    let Some(CameraConfig::Folder { repeat, .. }) = &mut device.config.camera else { panic!("a folder") };
    *repeat = true;
    let (stop, stopped) = watch::channel(false);
    (stop, tokio::spawn(run_with(device.config.clone(), Arc::new(Reads(reads)), stopped)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_be_read_for_now_and_a_block_that_is_lost_meanwhile_cost_no_release() {
    let Some(broker) = Broker::start() else { return };
    let mut device = Device::provisioned(&broker, 10, 30.0, false);
    let (blocks_dir, tries) = (device.config.state_dir.join("blocks"), Arc::new(AtomicUsize::new(0)));
    let counts = Arc::clone(&tries);
    let reads = move |name: &str| -> std::io::Result<()> {
        match (name, counts.fetch_add(usize::from(name == "second"), Ordering::SeqCst)) {
            ("second", 0) => {
                let lost = std::fs::read_dir(&blocks_dir).unwrap().next().unwrap().unwrap().path();
                faults::set(&lost, Errno::EIO);
                Err(Errno::EMFILE.into())
            }
            ("second", 1) => Err(Errno::ENOMEM.into()),
            _ => Ok(()),
        }
    };
    let (stop, run) = start_with(&mut device, reads);
    let mut centre = Centre::open(&broker).await;
    let (good, blocks) = release(&bundle(&device.folder.path().join("centre"), "second", 2, 9000), 3);
    centre.offer(&good, &blocks, &key()).await;
    centre.until("release 3 is confirmed", |c| c.model.as_ref().is_some_and(|m| m.confirmed == 3)).await;
    assert_eq!(tries.load(Ordering::SeqCst), 3);
    stop.send_replace(true);
    assert_eq!(run.await.unwrap().unwrap().model, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_tried_gives_way_to_a_newer_release_at_once_and_to_no_older_one() {
    let Some(broker) = Broker::start() else { return };
    let mut device = Device::provisioned(&broker, 10, 30.0, false);
    let tries = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&tries);
    let reads = move |name: &str| -> std::io::Result<()> {
        if name != "second" {
            return Ok(());
        }
        counts.fetch_add(1, Ordering::SeqCst);
        Err(Errno::EMFILE.into())
    };
    let (stop, run) = start_with(&mut device, reads);
    let mut centre = Centre::open(&broker).await;
    let make = |name: &str, counter: u64| {
        let root = device.folder.path().join(format!("centre-{counter}"));
        release(&bundle(&root, name, counter as u8, 9000), counter)
    };
    let (good, blocks) = make("second", 5);
    centre.offer(&good, &blocks, &key()).await;
    centre.until("two tries", |_| tries.load(Ordering::SeqCst) >= 2).await;
    let (older, blocks) = make("older", 4);
    centre.offer(&older, &blocks, &key()).await;
    // The pauses are 0.2 s, 0.4 s and so on; the next one is 6.4 s.
    centre.until("six tries", |_| tries.load(Ordering::SeqCst) >= 6).await;
    assert!(centre.model.as_ref().is_some_and(|m| m.trial == Some(5) && m.refused.is_none()), "{:?}", centre.model);
    let (newer, blocks) = make("newer", 6);
    centre.offer(&newer, &blocks, &key()).await;
    centre.until("release 5 gives way", |c| c.model.as_ref().is_some_and(|m| m.trial != Some(5))).await;
    centre.until("release 6 is confirmed", |c| c.model.as_ref().is_some_and(|m| m.confirmed == 6)).await;
    // The pause was not waited out: it would have ended with another try.
    assert_eq!(tries.load(Ordering::SeqCst), 6);
    stop.send_replace(true);
    assert_eq!(run.await.unwrap().unwrap().model, 6);
}
