//! Whole rounds on a world that learns in microseconds: a good one is released, a poisoned one refused, and a service that is killed
//! between any two steps ends where an undisturbed one does.

use super::*;
use crate::service::config::DriftMode;
use crate::service::events::EventReader;
use crate::service::hand::{Person, Verdict};
use crate::service::rollout::Rollout;
use crate::service::store::verdicts::{Said, Word};
use crate::service::testing::{Home, MeanPose, STUDENT_PROBABILITY, STUDENT_SCORE, World, first_x, on_both};
use omnilabel_keypoints::wire::{BlockRequest, LabelMsg, Message, ModelMsg, ReleaseMsg, StatusMsg};
use serde_json::json;
use std::sync::atomic::Ordering;
use std::time::Instant;

async fn rounds(world: &World, arm: MeanPose) -> Rounds {
    let store = Store::open(&world.config, false).await.unwrap();
    let events = Arc::new(EventLog::open(&world.config.state_dir).unwrap());
    Rounds::new(world.config.clone(), store, events, Arc::new(arm), Arc::new(AtomicBool::new(false))).await.unwrap()
}

async fn to_the_end(rounds: &Rounds) {
    for _ in 0..20 {
        if rounds.step().await.unwrap() == Stepped::Idle {
            return;
        }
    }
    panic!("the round does not end");
}

fn events(world: &World) -> Vec<Event> {
    EventReader::new(&world.config.state_dir).poll().unwrap().into_iter().map(|s| s.event).collect()
}

on_both! { a_good_round_is_released_and_its_blocks_rebuild_the_bundle }

async fn a_good_round_is_released_and_its_blocks_rebuild_the_bundle(home: Home) {
    let world = home.world();
    let rounds = rounds(&world, MeanPose::default()).await;
    rounds.store.commit(&world.labels("cam-1", 1..=9, 0.0, 0), 1).await.unwrap();
    assert_eq!(rounds.step().await.unwrap(), Stepped::Idle, "nine labels are too few");
    rounds.store.commit(&world.labels("cam-2", 1..=9, 0.0, 0), 1).await.unwrap();
    // Of another database, which had a round of this number.
    let stale = world.config.state_dir.join("rounds/1");
    for name in ["bundle/manifest.json", "checkpoint/weights", "arm.json", "progress.jsonl"] {
        std::fs::create_dir_all(stale.join(name).parent().unwrap()).unwrap();
        std::fs::write(stale.join(name), "of another training").unwrap();
    }
    to_the_end(&rounds).await;
    assert!(!stale.join("checkpoint").exists() && !stale.join("arm.json").exists(), "they would have been gone on with");

    let state = rounds.store.rounds().await.unwrap().remove(0);
    assert!(state.ended && state.decision.as_ref().unwrap().released(), "{state:?}");
    assert_eq!(state.released, Some(1));
    let (difference, reason) = (state.difference.unwrap(), state.decision.as_ref().unwrap().reason());
    let [low, high] = difference.spread.interval;
    assert!(low > 0.0 && (low - 1e-9..=high + 1e-9).contains(&difference.ap), "{difference:?}");
    assert!(reason.contains(&format!(": {:+.4} (95 %: {low:+.4} to {high:+.4}), needed", difference.ap)), "{reason}");
    let (before, after) = (state.running_judged.unwrap().ap, state.candidate_judged.unwrap().ap);
    assert!(after > before + 0.1, "{before} -> {after}");

    let folder = world.config.state_dir.join("rounds/1");
    let generated = Dataset::load(&folder.join("generated")).unwrap();
    assert_eq!((generated.images.len(), generated.annotations.len()), (18, 18));
    // Positions travel in 1/16 px.
    assert!((generated.annotations[0].keypoints[0] - first_x(1)).abs() <= 1.0 / 16.0);

    // It goes out with thresholds of its own; what was judged is not touched.
    let bundle = Bundle::open(&folder.join("bundle")).unwrap();
    let shipped = bundle.manifest().thresholds;
    assert_eq!((shipped.instance, shipped.keypoint, shipped.floor), (STUDENT_SCORE, STUDENT_PROBABILITY, 0.05));
    assert_ne!(Some(shipped), state.thresholds);
    assert_eq!(bundle.manifest().ap, Some(after));

    // A device that knows only the public key and the messages rebuilds the bundle byte for byte.
    let release = rounds.store.latest_release().await.unwrap().unwrap();
    let mut rollout = Rollout::new(&release, None).unwrap();
    let message = ReleaseMsg::decode(&rollout.message().unwrap()).unwrap();
    let key = sign::read_public(&world.dir.path().join(sign::PUBLIC)).unwrap();
    let manifest = sign::verify(&key, &message).unwrap();
    manifest.check("home", "stable", 0).unwrap();
    let mut blocks = std::collections::HashMap::new();
    for wanted in manifest.blocks.chunks(64) {
        let request = BlockRequest { version: 1, counter: 1, blocks: wanted.iter().cloned().collect() };
        assert_eq!(rollout.request(&request, Instant::now()), 0);
        while let Some(block) = rollout.next(Instant::now()) {
            let (name, bytes) = block.unwrap();
            assert!(blocks.insert(name, bytes).is_none(), "each block is sent once");
        }
        assert_eq!(rollout.request(&request, Instant::now()), 0);
        assert!(!rollout.has_queued(), "what was just sent is not sent again");
    }
    for (index, file) in manifest.files.iter().enumerate() {
        let bytes: Vec<u8> = manifest.blocks_of(index).iter().flat_map(|b| blocks[b.as_str()].clone()).collect();
        assert_eq!(bytes, std::fs::read(folder.join("bundle").join(file.path.as_str())).unwrap(), "{}", file.path);
    }
    // A file that changed on disk is not served.
    std::fs::write(folder.join("bundle/weights.safetensors"), vec![8; 10_000]).unwrap();
    let index = manifest.files.iter().position(|f| f.path == "weights.safetensors").unwrap();
    let request = BlockRequest { version: 1, counter: 1, blocks: manifest.blocks_of(index).iter().take(1).cloned().collect() };
    rollout.request(&request, Instant::now() + crate::service::rollout::REPEAT_AFTER);
    let refused = rollout.next(Instant::now()).unwrap().unwrap_err().to_string();
    assert!(refused.contains("weights.safetensors"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_begins_by_hand_or_when_a_label_has_waited_long() {
    let mut world = World::new();
    world.config.round.max_age_hours = Some(2);
    let rounds = rounds(&world, MeanPose::default()).await;
    rounds.store.want_round().await.unwrap();
    assert_eq!(rounds.step().await.unwrap(), Stepped::Idle, "there is no label at all");
    rounds.store.commit(&world.labels("cam-1", 1..=3, 0.0, 0), now_ms()).await.unwrap();
    assert_eq!(rounds.step().await.unwrap(), Stepped::Done);
    to_the_end(&rounds).await;
    // Asked for once, made once; the next one is the configuration's again.
    assert!(!rounds.store.round_is_wanted().await.unwrap());
    let state = rounds.store.rounds().await.unwrap().remove(0);
    assert!(state.ended && state.decision.unwrap().reason().contains("1000 resamples"));

    let world = World::new();
    let mut rounds = self::rounds(&world, MeanPose::default()).await;
    let three_hours_ago = now_ms() - 3 * 3_600_000;
    rounds.store.commit(&world.labels("cam-1", 1..=3, 0.0, 0), three_hours_ago).await.unwrap();
    assert_eq!(rounds.step().await.unwrap(), Stepped::Idle, "three are too few, however old");
    rounds.config.round.max_age_hours = Some(4);
    assert_eq!(rounds.step().await.unwrap(), Stepped::Idle);
    rounds.config.round.max_age_hours = Some(2);
    assert_eq!(rounds.step().await.unwrap(), Stepped::Done);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_round_begins_while_a_release_goes_out() {
    let mut world = World::new();
    world.config.round.max_rounds = 5;
    world.config.rollout.waves = vec![50.0, 100.0];
    let rounds = rounds(&world, MeanPose::default()).await;
    rounds.store.commit(&world.labels("cam-1", 1..=12, 0.0, 0), 1).await.unwrap();
    to_the_end(&rounds).await;
    let release = rounds.store.latest_release().await.unwrap().unwrap();
    assert_eq!((release.waves().unwrap().share(), release.waves().unwrap().is_over()), (500, false));
    rounds.store.commit(&world.labels("cam-2", 1..=12, 0.0, 0), 2).await.unwrap();
    assert_eq!(rounds.step().await.unwrap(), Stepped::Idle);
    // Halted: the model before it still runs, and its labels count.
    crate::service::steer::steer(&rounds.store, &rounds.events, crate::service::steer::Order::Halt, "anna").await.unwrap();
    assert_eq!(rounds.step().await.unwrap(), Stepped::Done);
    assert_eq!(rounds.store.rounds().await.unwrap()[1].teacher, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_round_is_refused_and_the_next_good_one_released() {
    let mut world = World::new();
    world.config.round.max_rounds = 2;
    let rounds = rounds(&world, MeanPose::default()).await;
    rounds.store.commit(&world.labels("cam-1", 1..=12, 0.3, 0), 1).await.unwrap();
    to_the_end(&rounds).await;
    let state = rounds.store.rounds().await.unwrap().remove(0);
    assert!(state.ended && state.released.is_none() && !state.decision.unwrap().released());
    assert!(rounds.store.latest_release().await.unwrap().is_none());
    assert!(events(&world).iter().any(|e| matches!(e, Event::Refused { reason, .. } if reason.contains("candidate AP"))));

    rounds.store.commit(&world.labels("cam-2", 1..=12, 0.0, 0), 1).await.unwrap();
    to_the_end(&rounds).await;
    let state = rounds.store.rounds().await.unwrap().remove(1);
    assert_eq!(state.released, Some(1), "the poisoned labels are set aside: {state:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_student_whose_labels_of_the_fleet_drift_is_refused_with_the_figures() {
    let mut world = World::new();
    (world.config.gate.drift, world.config.round.max_rounds) = (DriftMode::Refuse, 2);
    world.config.gate.drift_frames = 20;
    let rounds = rounds(&world, MeanPose { drifts: true, ..MeanPose::default() }).await;
    rounds.store.commit(&world.labels("cam-1", 1..=12, 0.0, 0), 1).await.unwrap();
    for _ in 0..6 {
        assert_eq!(rounds.step().await.unwrap(), Stepped::Done);
    }
    // These come while the student is trained.
    rounds.store.commit(&world.labels("cam-2", 1..=30, 0.0, 0), 1).await.unwrap();
    to_the_end(&rounds).await;
    let state = rounds.store.rounds().await.unwrap().remove(0);
    let (reason, relabelled) = (state.decision.unwrap().reason().to_owned(), state.relabelled.unwrap());
    assert!(state.candidate_judged.unwrap().ap > state.running_judged.unwrap().ap, "by AP alone it would be released");
    assert_eq!(state.released, None);
    assert!(reason.contains("labels of 20 pictures of the fleet (10 of them after the snapshot, 0 without anybody)"), "{reason}");
    assert!(reason.contains("size 1.00 (") && reason.ends_with(": size may change by 0.25 at most"), "{reason}");
    assert_eq!((relabelled.frames, relabelled.unseen, relabelled.newest, relabelled.seed), (20, 10, 42, 1));
    let drawn = Dataset::load(&world.config.state_dir.join("rounds/1/drift")).unwrap();
    assert_eq!(drawn.images.len(), 20);
    assert!(drawn.images.iter().all(|image| drawn.image_path(image).exists()));
    let told = events(&world).into_iter().any(|event| matches!(event, Event::Relabelled { round: 1, frames: 20, unseen: 10, .. }));
    assert!(told, "{:?}", events(&world));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drift_is_told_in_the_release_or_not_looked_at() {
    for (mode, expected) in [(DriftMode::Warn, true), (DriftMode::Off, false)] {
        let mut world = World::new();
        world.config.gate.drift = mode;
        let rounds = rounds(&world, MeanPose { drifts: true, ..MeanPose::default() }).await;
        rounds.store.commit(&world.labels("cam-1", 1..=12, 0.0, 0), 1).await.unwrap();
        to_the_end(&rounds).await;
        let state = rounds.store.rounds().await.unwrap().remove(0);
        assert_eq!((state.released, state.relabelled.is_some()), (Some(1), expected));
        let reason = state.decision.unwrap().reason().to_owned();
        assert_eq!(reason.contains("size changed by more than 0.25, which `gate.drift` lets pass"), expected, "{reason}");
        assert_eq!(world.config.state_dir.join("rounds/1/drift").exists(), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_says_how_long_devices_compare_it_first() {
    for (minutes, seconds) in [(0, 0), (30, 1800)] {
        let mut world = World::new();
        world.config.rollout.shadow_minutes = minutes;
        let rounds = rounds(&world, MeanPose::default()).await;
        rounds.store.commit(&world.labels("cam-1", 1..=12, 0.0, 0), 1).await.unwrap();
        to_the_end(&rounds).await;
        let release = rounds.store.latest_release().await.unwrap().unwrap();
        let message = ReleaseMsg::decode(&Rollout::new(&release, None).unwrap().message().unwrap()).unwrap();
        assert_eq!(message.shadow_secs, seconds);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_between_any_two_steps_changes_nothing() {
    let undisturbed = World::new();
    let whole = rounds(&undisturbed, MeanPose::default()).await;
    whole.store.commit(&undisturbed.labels("cam-1", 1..=12, 0.0, 0), 1).await.unwrap();
    to_the_end(&whole).await;

    let world = World::new();
    let first = rounds(&world, MeanPose::default()).await;
    first.store.commit(&world.labels("cam-1", 1..=12, 0.0, 0), 1).await.unwrap();
    drop(first);
    let mut steps = 0;
    loop {
        // Every step is done by a service of its own; what a killed one half wrote lies around.
        let one = rounds(&world, MeanPose::default()).await;
        let folder = world.config.state_dir.join("rounds/1");
        if let Some(state) = one.store.rounds().await.unwrap().last() {
            std::fs::create_dir_all(folder.join("bundle.part")).unwrap();
            std::fs::write(folder.join("bundle.part/torn"), "x").unwrap();
            if state.dataset_sha256.is_none() {
                std::fs::create_dir_all(folder.join("generated/images")).unwrap();
                std::fs::write(folder.join("generated/images/torn.jpg"), "x").unwrap();
            }
        }
        if one.step().await.unwrap() == Stepped::Idle {
            break;
        }
        steps += 1;
        assert!(steps < 20);
    }
    assert_eq!(steps, 9, "begin and eight steps");
    let (a, b) = (whole.store.rounds().await.unwrap(), rounds(&world, MeanPose::default()).await.store.rounds().await.unwrap());
    assert_eq!(a.len(), 1);
    assert_eq!(a[0].dataset_sha256, b[0].dataset_sha256);
    assert_eq!((&a[0].thresholds, &a[0].decision, a[0].released), (&b[0].thresholds, &b[0].decision, b[0].released));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_keeps_what_it_began_with() {
    let mut world = World::new();
    world.config.gate.margin = 0.25;
    world.config.round.train.seed = 7;
    let first = rounds(&world, MeanPose::default()).await;
    first.store.commit(&world.labels("cam-1", 1..=12, 0.0, 0), 1).await.unwrap();
    assert_eq!(first.step().await.unwrap(), Stepped::Done);
    let begun = first.store.rounds().await.unwrap().remove(0).begun.unwrap();
    let hash = |folder: &Path| crate::service::dataset::folder_sha256(folder).unwrap();
    let (manual, heldout) = (world.config.data.manual.clone(), world.config.data.heldout.clone());
    assert_eq!((begun.seed, &begun.manual_sha256, &begun.heldout_sha256), (world.config.model.seed, &hash(&manual), &hash(&heldout)));
    assert_ne!(begun.manual_sha256, begun.heldout_sha256);
    let settings = &begun.settings;
    assert_eq!((&settings["gate"]["margin"], &settings["round"]["train"]["seed"]), (&json!(0.25), &json!(7)));
    assert_eq!((&settings["calibration"]["mode"], &settings["calibration"]["precision"]), (&json!("fleet"), &json!(0.9)));
    drop(first);

    // It goes on after a restart with another file and another manual picture.
    world.config.gate.margin = 0.5;
    world.config.model.seed = 9;
    std::fs::write(manual.join("images/1.jpg"), std::fs::read(manual.join("images/2.jpg")).unwrap()).unwrap();
    let second = rounds(&world, MeanPose::default()).await;
    to_the_end(&second).await;
    let state = second.store.rounds().await.unwrap().remove(0);
    assert!(state.ended && state.begun.as_ref() == Some(&begun), "{state:?}");
    assert_eq!(state.decided_with.unwrap()["gate"]["margin"], 0.5, "what the gate went by is told, too");
    assert_ne!(hash(&manual), begun.manual_sha256);
    assert_eq!(Some(hash(&world.config.state_dir.join("rounds/1/generated"))), state.dataset_sha256, "one hash for all data sets");
    // What cannot be read is a hash, too, and another one.
    let whole = hash(&heldout);
    std::fs::remove_file(heldout.join("images/8.jpg")).unwrap();
    assert_ne!(hash(&heldout), whole);

    let undisturbed = World::new();
    let rounds = rounds(&undisturbed, MeanPose::default()).await;
    rounds.store.commit(&undisturbed.labels("cam-1", 1..=12, 0.0, 0), 1).await.unwrap();
    to_the_end(&rounds).await;
    assert_eq!(rounds.store.rounds().await.unwrap()[0].decided_with, None, "nobody changed anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_training_goes_on_and_a_failing_one_is_tried_until_it_succeeds() {
    let world = World::new();
    let first = rounds(&world, MeanPose::default()).await;
    first.store.commit(&world.labels("cam-1", 1..=12, 0.0, 0), 1).await.unwrap();
    first.stopping.store(true, Ordering::Relaxed);
    loop {
        match first.step().await.unwrap() {
            Stepped::Done => {}
            Stepped::Stopped => break,
            Stepped::Idle => panic!("nothing was trained"),
        }
    }
    assert!(!first.store.rounds().await.unwrap()[0].trained);
    let failing = MeanPose::default();
    failing.failures.store(5, Ordering::Relaxed);
    let second = rounds(&world, failing).await;
    for failures in 1..=5 {
        let error = format!("{:#}", second.step().await.unwrap_err());
        assert!(error.contains("round 1") && error.contains("no space left"), "{error}");
        let state = second.store.rounds().await.unwrap().remove(0);
        assert!(!state.ended && state.decision.is_none() && state.failures == failures, "{state:?}");
        assert!(state.failed.unwrap().contains("no space left"));
    }
    // Whoever removes what it was doing makes it begin again.
    std::fs::remove_dir_all(world.config.state_dir.join("rounds/1")).unwrap();
    to_the_end(&second).await;
    let all = second.store.rounds().await.unwrap();
    assert_eq!((all.len(), all[0].released, &all[0].failed), (1, Some(1), &None), "the only round that is allowed: {all:?}");
    assert!(!events(&world).iter().any(|e| matches!(e, Event::Refused { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_whose_snapshot_is_gone_takes_another_without_failing_first() {
    let world = World::new();
    let rounds = rounds(&world, MeanPose::default()).await;
    rounds.store.commit(&world.labels("cam-1", 1..=12, 0.0, 0), 1).await.unwrap();
    let exported = async || rounds.store.rounds().await.unwrap().pop().is_some_and(|state| state.dataset_sha256.is_some());
    while !exported().await {
        assert_eq!(rounds.step().await.unwrap(), Stepped::Done);
    }
    let before = rounds.store.rounds().await.unwrap().remove(0);
    // As after a restore: no backup has the snapshot, nor a checkpoint, but what the training was, and how far it had come.
    let folder = world.config.state_dir.join("rounds/1");
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::create_dir(&folder).unwrap();
    ["arm.json", "progress.jsonl"].iter().for_each(|name| std::fs::write(folder.join(name), "of the training before").unwrap());
    rounds.store.commit(&world.labels("cam-2", 1..=12, 0.0, 0), 1).await.unwrap();
    to_the_end(&rounds).await;
    let all = rounds.store.rounds().await.unwrap();
    assert_eq!((all.len(), all[0].released, all[0].failures), (1, Some(1), 0), "{all:?}");
    assert!(all[0].up_to > before.up_to && all[0].dataset_sha256 != before.dataset_sha256, "it took in what had come since");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    assert!(["arm.json", "progress.jsonl"].iter().all(|name| !read(name).contains("before")), "they would have been gone on with");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_that_teach_nothing_wait_for_others() {
    let world = World::new();
    let rounds = rounds(&world, MeanPose::default()).await;
    let empty = |sequence| {
        let (device, mut record) = world.labels("cam-1", sequence..=sequence, 0.0, 0).remove(0);
        let crate::service::store::intake::Record::Label(row) = &mut record else { panic!() };
        let mut label = LabelMsg::decode(&row.payload).unwrap();
        label.instances.clear();
        row.payload = crate::service::testing::encode(&label);
        [(device, record), world.labels("cam-1", sequence..=sequence, 0.0, 0).remove(1)]
    };
    rounds.store.commit(&(1..=12).flat_map(empty).collect::<Vec<_>>(), 1).await.unwrap();
    let error = loop {
        match rounds.step().await {
            Ok(stepped) => assert_eq!(stepped, Stepped::Done),
            Err(error) => break format!("{error:#}"),
        }
    };
    assert!(error.contains("nothing to learn from"), "{error}");
    rounds.store.commit(&world.labels("cam-2", 1..=12, 0.0, 0), 1).await.unwrap();
    to_the_end(&rounds).await;
    let all = rounds.store.rounds().await.unwrap();
    assert_eq!((all.len(), all[0].released), (1, Some(1)), "{all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_student_that_diverges_is_refused_at_once() {
    let world = World::new();
    let rounds = rounds(&world, MeanPose { failures: 1.into(), diverges: true, ..MeanPose::default() }).await;
    rounds.store.commit(&world.labels("cam-1", 1..=12, 0.0, 0), 1).await.unwrap();
    to_the_end(&rounds).await;
    let state = rounds.store.rounds().await.unwrap().remove(0);
    assert!(state.ended && state.released.is_none() && state.decision.unwrap().reason().contains("learning rate"));
    assert!(events(&world).iter().any(|e| matches!(e, Event::Refused { reason, .. } if reason.contains("NaN"))));
}

#[test]
fn pauses_double_up_to_five_minutes() {
    let pauses: Vec<u64> = (0..12).map(|n| retry_pause(n).as_secs()).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
    assert_eq!(retry_pause(u32::MAX), RETRY_MAX);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_is_an_event_and_the_service_goes_on() {
    let world = World::new();
    let rounds = rounds(&world, MeanPose { failures: 2.into(), ..MeanPose::default() }).await;
    rounds.store.commit(&world.labels("cam-1", 1..=12, 0.0, 0), 1).await.unwrap();
    let (stop, stopping) = watch::channel(false);
    let running = tokio::spawn(rounds.run(stopping));
    while !events(&world).iter().any(|e| matches!(e, Event::Released { .. })) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.send_replace(true);
    running.await.unwrap();
    let pauses: Vec<String> =
        events(&world).into_iter().filter_map(|e| if let Event::Error { message, .. } = e { Some(message) } else { None }).collect();
    assert_eq!(pauses.len(), 2);
    for (message, pause) in pauses.iter().zip(["in 1 s", "in 2 s"]) {
        assert!(message.contains("round 1") && message.contains("no space left") && message.ends_with(pause), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_running_teachers_labels_count() {
    let mut world = World::new();
    world.config.round.max_rounds = 2;
    let rounds = rounds(&world, MeanPose::default()).await;
    rounds.store.commit(&world.labels("cam-1", 1..=12, 0.0, 0), 1).await.unwrap();
    to_the_end(&rounds).await;
    rounds.store.commit(&world.labels("cam-1", 13..=30, 0.0, 0), 1).await.unwrap();
    assert_eq!(rounds.step().await.unwrap(), Stepped::Idle, "labels of the teacher before");
    rounds.store.commit(&world.labels("cam-1", 31..=45, 0.0, 1), 1).await.unwrap();
    to_the_end(&rounds).await;
    let state = rounds.store.rounds().await.unwrap().remove(1);
    assert_eq!((state.teacher, state.released), (1, Some(2)));
    // Equal models pass within the margin; the second is no worse than the first.
    assert!(state.running.ends_with("rounds/1/bundle"));
    let report = ModelMsg { version: 1, confirmed: 1, refused: Some(2), ..ModelMsg::default() };
    let status = StatusMsg { version: 1, online: true, epoch: 77, ..StatusMsg::default() };
    let records = [
        ("cam-1".to_owned(), crate::service::store::intake::Record::Model(Box::new(report))),
        ("cam-1".to_owned(), crate::service::store::intake::Record::Status(status)),
    ];
    rounds.store.commit(&records, 1).await.unwrap();
    assert_eq!(rounds.store.running_release().await.unwrap().unwrap().counter(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_skeleton_keeps_the_service_from_starting() {
    let world = World::new();
    let mut config = world.config.clone();
    let other = world.dir.path().join("other");
    let mut dataset = Dataset::load(&config.data.heldout).unwrap();
    dataset.skeleton = omnilabel_keypoints::skeleton::Skeleton::new(&["left_a", "right_a", "left_b", "right_b"], &[], None, None).unwrap();
    std::fs::create_dir_all(&other).unwrap();
    dataset.write(&other).unwrap();
    config.data.heldout = other;
    let store = Store::open(&config.state_dir, false).await.unwrap();
    let events = Arc::new(EventLog::open(&config.state_dir).unwrap());
    let result = Rounds::new(config, store, events, Arc::new(MeanPose::default()), Arc::new(AtomicBool::new(false))).await;
    let error = format!("{:#}", result.err().unwrap());
    assert!(error.contains("data.heldout") && error.contains("left_a"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_out_pictures_without_labels_keep_the_service_from_starting() {
    let world = World::new();
    let mut dataset = Dataset::load(&world.config.data.heldout).unwrap();
    dataset.annotations.iter_mut().for_each(|a| (a.num_keypoints, a.keypoints) = (0, Vec::new()));
    dataset.write(&world.config.data.heldout).unwrap();
    let store = Store::open(&world.config.state_dir, false).await.unwrap();
    let events = Arc::new(EventLog::open(&world.config.state_dir).unwrap());
    let result = Rounds::new(world.config.clone(), store, events, Arc::new(MeanPose::default()), Arc::new(AtomicBool::new(false))).await;
    let error = format!("{:#}", result.err().unwrap());
    assert!(error.contains("data.heldout") && error.contains("no labelled keypoints"), "{error}");
    assert!(error.contains(&world.config.data.heldout.display().to_string()), "{error}");
}

/// Says something of a label, over the version that is there.
async fn say(store: &Store, label: i64, verdict: Option<Verdict>, people: Option<Vec<Person>>) {
    let seen = store.label(label).await.unwrap().unwrap().version();
    let word = Word { verdict, people, role: "operator", peer: String::new() };
    assert_eq!(store.say(label, seen, &word, 1).await.unwrap(), Said::Holds(seen + 1));
}

/// Whose first keypoint is hidden in the middle of the box.
fn person() -> Person {
    Person { rect: [10.0, 8.0, 60.0, 88.0], keypoints: vec![(35.0, 16.0, 1), (45.0, 16.0, 2), (20.0, 80.0, 2), (0.0, 0.0, 0)] }
}

/// Fourteen labels, of which one is accepted, one corrected, one rejected; and one on which nobody is.
async fn judged_world(world: &World) -> Rounds {
    let rounds = rounds(world, MeanPose::default()).await;
    rounds.store.commit(&world.labels("cam-1", 1..=14, 0.0, 0), 1).await.unwrap();
    say(&rounds.store, 1, Some(Verdict::Accepted), Some(vec![person()])).await;
    say(&rounds.store, 2, Some(Verdict::Corrected), Some(vec![person(), person()])).await;
    say(&rounds.store, 3, Some(Verdict::Rejected), None).await;
    say(&rounds.store, 4, Some(Verdict::Corrected), Some(Vec::new())).await;
    rounds
}

fn sequences(folder: &Path) -> Vec<u64> {
    let names = Dataset::load(folder).unwrap().images.into_iter().map(|image| image.file_name);
    let mut found: Vec<u64> = names.map(|name| name.trim_end_matches(".jpg").rsplit('_').next().unwrap().parse().unwrap()).collect();
    found.sort_unstable();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_people_say_is_trained_on_as_manual_from_the_next_round_on() {
    let mut world = World::new();
    world.config.round.max_rounds = 2;
    let rounds = judged_world(&world).await;
    assert_eq!(rounds.step().await.unwrap(), Stepped::Done, "ten that nobody judged are enough");
    // The round has begun: what is said now is for the next.
    say(&rounds.store, 2, Some(Verdict::Rejected), None).await;
    say(&rounds.store, 3, None, None).await;
    say(&rounds.store, 5, Some(Verdict::Accepted), Some(vec![person()])).await;
    to_the_end(&rounds).await;

    let folder = world.config.state_dir.join("rounds/1");
    assert_eq!(sequences(&folder.join("generated")), (5..=14).collect::<Vec<_>>());
    assert_eq!(sequences(&folder.join("hand")), [1, 2, 4]);
    let hand = Dataset::load(&folder.join("hand")).unwrap();
    assert_eq!((hand.annotations.len(), hand.annotations[0].num_keypoints), (3, 3));
    assert_eq!(hand.annotations[0].bbox, [10.0, 8.0, 50.0, 80.0]);
    assert_eq!(hand.annotations[0].keypoints, [34.5, 15.5, 1.0, 44.5, 15.5, 2.0, 19.5, 79.5, 2.0, 0.0, 0.0, 0.0]);
    let state = rounds.store.rounds().await.unwrap().remove(0);
    let told = events(&world).into_iter().find_map(|event| match event {
        Event::Exported { images, by_hand, by_hand_sha256, sha256, .. } => Some((images, by_hand, by_hand_sha256, Some(sha256))),
        _ => None,
    });
    assert!(state.hand_sha256.is_some() && state.ended);
    assert_eq!(told, Some((10, 3, state.hand_sha256, state.dataset_sha256)));
    // Six manual people have the first keypoint at 0.3 of the box, three by hand at 0.5; of ten images six are manual.
    let pose: Vec<(f64, f64)> = serde_json::from_slice(&std::fs::read(folder.join("bundle/pose.json")).unwrap()).unwrap();
    let expected = 0.6 * (6.0 * 0.3 + 3.0 * 0.5) / 9.0 + 0.4 * 0.3;
    assert!((pose[0].0 - expected).abs() < 0.005, "{pose:?}, expected {expected}");

    let model = rounds.store.running_release().await.unwrap().map_or(0, |release| release.counter());
    rounds.store.commit(&world.labels("cam-2", 1..=12, 0.0, model), 2).await.unwrap();
    to_the_end(&rounds).await;
    assert_eq!(sequences(&world.config.state_dir.join("rounds/2/hand")), [1, 4, 5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_a_kill_nor_a_verdict_changes_what_a_round_was_made_from() {
    let undisturbed = World::new();
    let whole = judged_world(&undisturbed).await;
    to_the_end(&whole).await;

    let world = World::new();
    let first = judged_world(&world).await;
    assert_eq!(first.step().await.unwrap(), Stepped::Done);
    drop(first);
    for label in 5.. {
        let one = rounds(&world, MeanPose::default()).await;
        say(&one.store, label.min(14), Some(Verdict::Rejected), None).await;
        say(&one.store, 1, Some(Verdict::Corrected), Some(vec![person(); label as usize])).await;
        if one.step().await.unwrap() == Stepped::Idle {
            break;
        }
        assert!(label < 20);
    }
    let (a, b) =
        (whole.store.rounds().await.unwrap().remove(0), rounds(&world, MeanPose::default()).await.store.rounds().await.unwrap().remove(0));
    assert_eq!((&a.dataset_sha256, &a.hand_sha256, a.verdicts), (&b.dataset_sha256, &b.hand_sha256, b.verdicts));
    assert_eq!((a.decision, a.candidate_judged), (b.decision, b.candidate_judged));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_is_on_judged_pictures_a_round_does_without_them() {
    let world = World::new();
    let rounds = rounds(&world, MeanPose::default()).await;
    rounds.store.commit(&world.labels("cam-1", 1..=12, 0.0, 0), 1).await.unwrap();
    say(&rounds.store, 1, Some(Verdict::Corrected), Some(Vec::new())).await;
    to_the_end(&rounds).await;
    let state = rounds.store.rounds().await.unwrap().remove(0);
    assert_eq!((state.hand_sha256, state.released), (None, Some(1)));
    assert_eq!(sequences(&world.config.state_dir.join("rounds/1/generated")), (2..=12).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_round_leaves_a_label_out_whose_picture_is_lost() {
    let home = Home::sqlite().with_folder();
    let world = home.world();
    let rounds = rounds(&world, MeanPose::default()).await;
    rounds.store.commit(&world.labels("cam-1", 1..=12, 0.0, 0), 1).await.unwrap();
    let folder = home.dir().join("pictures/pictures");
    let first = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let lost = std::fs::read_dir(&first).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_file(&lost).unwrap();
    to_the_end(&rounds).await;
    let exported = events(&world).into_iter().find_map(|event| match event {
        Event::Exported { images, skipped, .. } => Some((images, skipped)),
        _ => None,
    });
    assert_eq!(exported, Some((11, 1)));
    assert!(rounds.store.rounds().await.unwrap()[0].released.is_some());
}
