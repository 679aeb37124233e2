//! Power is lost at every change that an update makes to the state folder.

use super::*;
use crate::durable::power;

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
