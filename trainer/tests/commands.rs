//! The commands as processes, on folders that leave out what COCO lets them leave out.
#![allow(clippy::unwrap_used)]

mod common;

use omnilabel_coco::{Dataset, read_results};
use omnilabel_trainer::service::config::ServiceConfig;
use omnilabel_trainer::service::store::Store;
use omnilabel_trainer::service::store::intake::Record;
use omnilabel_trainer::service::store::quarantine::{MAX_PAYLOAD, Quarantined};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn trainer(folder: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_omnilabel-trainer")).current_dir(folder).args(line.split(' ')).output().unwrap()
}

fn succeed(folder: &Path, line: &str) -> String {
    let output = trainer(folder, line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn fail(folder: &Path, line: &str) -> String {
    let output = trainer(folder, line);
    assert!(!output.status.success(), "{line}");
    String::from_utf8(output.stderr).unwrap()
}

/// Rewrites `annotations.json`.
fn change(folder: &Path, change: impl Fn(&mut Value)) {
    let path: PathBuf = folder.join("annotations.json");
    let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut file);
    std::fs::write(&path, file.to_string()).unwrap();
}

fn annotations(file: &mut Value) -> impl Iterator<Item = &mut serde_json::Map<String, Value>> {
    file["annotations"].as_array_mut().unwrap().iter_mut().filter_map(Value::as_object_mut)
}

const TRAIN: &str = "train --data data --steps 1 --batch 2 --short-side 64 --golden 0 --json";

#[test]
fn a_folder_of_another_category_without_counts_is_trained_on_compared_and_scored() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    common::folder(&data, 1, 4);
    change(&data, |file| {
        file["categories"][0]["id"] = 7.into();
        annotations(file).for_each(|a| drop((a.remove("num_keypoints"), a.insert("category_id".to_owned(), 7.into()))));
    });
    assert_eq!(Dataset::load(&data).unwrap().category_id(), 7);
    let trained: Value = serde_json::from_str(&succeed(dir.path(), &format!("{TRAIN} --out arm --eval data"))).unwrap();
    assert!(trained["evaluation"]["single"]["AP"].as_f64() >= Some(0.0), "{trained}");
    let error = fail(dir.path(), &format!("{TRAIN} --out none").replace("--steps 1", "--steps 0"));
    assert!(error.contains("option `steps` is 0, expected 1 or more") && !dir.path().join("none").exists(), "{error}");

    let line = "evaluate --model arm/bundle --data data --flip --average probabilities --box-voting --compare --results-out results.json";
    let told: Value = serde_json::from_str(&succeed(dir.path(), &format!("{line} --json"))).unwrap();
    let views = &told["ensemble"]["views"];
    assert_eq!((&views["average"], &views["box_voting"]), (&"probabilities".into(), &true.into()), "{told}");
    let compared = told["compared"].as_array().unwrap();
    let named: Vec<(&str, bool)> =
        compared.iter().map(|c| (c["views"]["average"].as_str().unwrap(), c["views"]["box_voting"].as_bool().unwrap())).collect();
    assert_eq!(named, [("logits", false), ("logits", true), ("probabilities", false), ("probabilities", true)]);
    assert_eq!(compared[3], told["ensemble"]);
    let results = read_results(&dir.path().join("results.json")).unwrap();
    assert!(!results.is_empty() && results.iter().all(|r| r.category_id == 7));
    let scored: Value =
        serde_json::from_str(&succeed(dir.path(), "score --gt data/annotations.json --results results.json --json")).unwrap();
    assert_eq!(scored, told["ensemble"]["scores"]);

    let table = succeed(dir.path(), "evaluate --model arm/bundle --data data --compare");
    for column in ["single", "logits", "logits+vote", "prob", "prob+vote"] {
        assert!(table.split_whitespace().any(|word| word == column), "{table}");
    }

    // A bundle that a device could not prove is not signed.
    std::fs::write(
        dir.path().join("trainer.toml"),
        "state_dir = \"state\"\n[broker]\nhost = \"127.0.0.1\"\nsite = \"home\"\n[data]\nmanual = \"data\"\nheldout = \"heldout\"\n\
         [model]\nrunning = \"arm/bundle\"\n[release]\nkey = \"keys/release.key\"\n",
    )
    .unwrap();
    succeed(dir.path(), "keygen --out keys");
    let error = fail(dir.path(), "release --config trainer.toml --bundle arm/bundle");
    assert!(error.contains("arm/bundle") && error.contains("no golden frames"), "{error}");
}

#[test]
fn labels_go_to_another_tool_and_come_back_to_be_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let data = common::folder(&dir.path().join("data"), 1, 3);
    for format in ["fiftyone", "cvat", "label-studio", "ultralytics"] {
        succeed(dir.path(), &format!("dataset export --data data --format {format} --out {format}"));
        let told = succeed(dir.path(), &format!("dataset import --from {format} --out {format}-back --json"));
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(
            (&told["format"], &told["images"], &told["people"], &told["labelled_keypoints"]),
            (&format.into(), &3.into(), &3.into(), &9.into())
        );
        assert_eq!(told["notes"], serde_json::json!([]), "{told}");
        let back = Dataset::load(&dir.path().join(format!("{format}-back"))).unwrap();
        for (a, b) in data.annotations.iter().zip(&back.annotations) {
            assert!(a.keypoints.iter().zip(&b.keypoints).all(|(a, b)| (a - b).abs() < 1e-3), "{format}: {a:?} {b:?}");
        }
    }
    succeed(dir.path(), &TRAIN.replace("--data data", "--data cvat-back --out arm"));
    let error = fail(dir.path(), "dataset import --from cvat --out cvat-back");
    assert!(error.contains("cvat-back") && error.contains("is there already"), "{error}");
    let error = fail(dir.path(), "dataset import --from cvat --out again --skeleton coco17");
    assert!(error.contains("annotations.xml") && error.contains("\"head\"") && error.contains("--skeleton"), "{error}");
    let error = fail(dir.path(), "dataset export --data data --format coco --without-pictures --out again");
    assert!(error.contains("--without-pictures is for parquet"), "{error}");
    assert!(!dir.path().join("again").exists());
}

#[test]
fn a_configuration_is_printed_with_its_defaults_and_means_the_same_again() {
    let dir = tempfile::tempdir().unwrap();
    let text = "state_dir = \"state\"\n[broker]\nhost = \"127.0.0.1\"\nsite = \"home\"\n[data]\nmanual = \"a\"\nheldout = \"b\"\n\
                [model]\nrunning = \"c\"\n[release]\nkey = \"d\"\n[round.train]\nlr = 0.25\n";
    std::fs::write(dir.path().join("trainer.toml"), text).unwrap();
    let printed = succeed(dir.path(), "check-config --config trainer.toml");
    let json: Value = serde_json::from_str(&succeed(dir.path(), "check-config --config trainer.toml --json")).unwrap();
    assert_eq!((&json["round"]["train"]["lr"], &json["round"]["min_labels"]), (&0.25.into(), &500.into()), "{json}");
    for key in ["client_id = ", "max_devices = 1000", "min_labels = 500", "lr = 0.25", "mode = \"fleet\"", "block_bytes = 262144"] {
        assert!(printed.contains(key), "{key} is not in\n{printed}");
    }
    // What was printed is a configuration, and the same one.
    std::fs::write(dir.path().join("printed.toml"), &printed).unwrap();
    assert_eq!(succeed(dir.path(), "check-config --config printed.toml"), printed);
    assert_eq!(serde_json::from_str::<Value>(&succeed(dir.path(), "check-config --config printed.toml --json")).unwrap(), json);

    std::fs::write(dir.path().join("trainer.toml"), format!("{text}steps = 0\n")).unwrap();
    let error = fail(dir.path(), "check-config --config trainer.toml");
    assert!(error.contains("trainer.toml") && error.contains("round.train.steps"), "{error}");

    std::fs::write(dir.path().join("trainer.toml"), text).unwrap();
    std::fs::write(dir.path().join("d"), "no key").unwrap();
    let error = fail(dir.path(), "check-config --config trainer.toml");
    assert!(error.contains("`release.key`"), "{error}");
    std::fs::remove_file(dir.path().join("d")).unwrap();
    std::fs::write(dir.path().join("token"), "x".repeat(32)).unwrap();
    let open = || std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(dir.path().join("token"), open()).unwrap();
    std::fs::write(dir.path().join("web.toml"), format!("{text}[web]\nbind = \"127.0.0.1:8090\"\noperator_token_file = \"token\"\n"))
        .unwrap();
    let error = fail(dir.path(), "check-config --config web.toml");
    assert!(error.contains("`web.operator_token_file`") && error.contains("expected 0600"), "{error}");

    // That of a further collector.
    let text = "client_id = \"collector-2\"\nstate_dir = \"state\"\n[store]\nurl = \"postgres://centre@db/omnilabel\"\n[broker]\n\
                host = \"127.0.0.1\"\nsite = \"home\"\n[collector]\nshare = \"centre\"\n";
    std::fs::write(dir.path().join("collector.toml"), text).unwrap();
    let printed = succeed(dir.path(), "check-config --collector --config collector.toml");
    assert!(printed.contains("max_devices = 1000") && printed.contains("share = \"centre\""), "{printed}");
    std::fs::write(dir.path().join("printed.toml"), &printed).unwrap();
    assert_eq!(succeed(dir.path(), "check-config --collector --config printed.toml"), printed);
    let error = fail(dir.path(), "check-config --config collector.toml");
    assert!(error.contains("collector.toml") && error.contains("expected --collector"), "{error}");
    // And the manual's.
    let manual = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/CENTRE.md")).unwrap();
    let (_, example) = manual.split_once("```toml\n# collector.toml").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    std::fs::write(dir.path().join("manual.toml"), format!("# {example}")).unwrap();
    let printed = succeed(dir.path(), "check-config --collector --config manual.toml");
    assert!(printed.contains("certificate = ") && printed.contains("client_id = \"collector-2\""), "{printed}");
    std::fs::write(dir.path().join("unsafe.toml"), text.replace("/omnilabel\"", "/omnilabel?sslmode=verify\"")).unwrap();
    let error = fail(dir.path(), "check-config --collector --config unsafe.toml");
    assert!(error.contains("`store.url`") && error.contains("unknown value \"verify\""), "{error}");
    std::fs::write(dir.path().join("password"), "x").unwrap();
    std::fs::set_permissions(dir.path().join("password"), open()).unwrap();
    std::fs::write(dir.path().join("open.toml"), text.replace("/omnilabel\"", "/omnilabel\"\npassword_file = \"password\"")).unwrap();
    let error = fail(dir.path(), "check-config --collector --config open.toml");
    assert!(error.contains("password") && error.contains("expected 0600"), "{error}");
    std::fs::write(dir.path().join("far.toml"), text.replace("127.0.0.1", "broker.example")).unwrap();
    let error = fail(dir.path(), "check-config --collector --config far.toml");
    assert!(error.contains("far.toml") && error.contains("allow_plain"), "{error}");
    std::fs::write(dir.path().join("collector.toml"), text.replace("share = \"centre\"\n", "")).unwrap();
    let error = fail(dir.path(), "check-config --collector --config collector.toml");
    assert!(error.contains("collector.toml") && error.contains("`collector.share` is missing"), "{error}");
}

#[test]
fn what_could_not_be_used_is_listed_and_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    let text = "state_dir = \"state\"\n[broker]\nhost = \"127.0.0.1\"\nsite = \"home\"\n[data]\nmanual = \"a\"\nheldout = \"b\"\n\
                [model]\nrunning = \"c\"\n[release]\nkey = \"d\"\n";
    std::fs::write(dir.path().join("trainer.toml"), text).unwrap();
    let error = fail(dir.path(), "quarantine list --config trainer.toml");
    assert!(error.contains("no centre has run here yet"), "{error}");

    let large = vec![b'x'; MAX_PAYLOAD + 5];
    let bad = [
        ("omnilabel/v1/home/cam-1/labels", vec![0, 255, 10, 7], "not a valid message"),
        ("omnilabel/v1/home/cam-2/frames", large.clone(), "99999 bytes, at most 5 expected"),
        ("omnilabel/v1/home/cam-1/blocks/get", Vec::new(), "sequence is 0, expected 1 to 2^62 - 1"),
        ("omnilabel/v1/home/\x1b[2Jx/labels", b"?".to_vec(), "not a topic of a device"),
    ];
    let record = |(topic, payload, reason): (&str, Vec<u8>, &str)| {
        (String::new(), Record::Quarantined(Box::new(Quarantined::new(topic, payload, reason.to_owned()))))
    };
    let records: Vec<_> = bad.into_iter().map(record).collect();
    let config = ServiceConfig::load(&dir.path().join("trainer.toml")).unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let store = Store::open(&config, false).await.unwrap();
        store.commit(&records, 1_767_225_601_000).await.unwrap();
        store.close().await;
    });

    let listed = |flags: &str| -> Vec<(i64, Value, Value)> {
        let line = format!("quarantine list --config trainer.toml --json{flags}");
        let told: Value = serde_json::from_str(&succeed(dir.path(), &line)).unwrap();
        let row = |row: &Value| (row["id"].as_i64().unwrap(), row["device"].clone(), row["kind"].clone());
        told.as_array().unwrap().iter().map(row).collect()
    };
    let of = |id: i64, device: &str, kind: &str| (id, Value::from(device), Value::from(kind));
    let (first, second, third) = (of(1, "cam-1", "labels"), of(2, "cam-2", "frames"), of(3, "cam-1", "blocks/get"));
    assert_eq!(listed(""), [(4, Value::Null, Value::Null), third.clone(), second.clone(), first.clone()], "the newest first");
    assert_eq!(listed(" --limit 2").len(), 2);
    assert_eq!(listed(" --device cam-1"), [third.clone(), first.clone()]);
    assert_eq!(listed(" --device cam-1 --limit 1"), [third]);
    assert_eq!(listed(" --reason bytes"), [second]);
    assert_eq!(listed(" --device cam-1 --reason valid"), [first]);
    assert!(listed(" --device cam-3").is_empty());
    let table = succeed(dir.path(), "quarantine list --config trainer.toml");
    for words in ["2026-01-01 00:00:01  cam-2 ", " frames        32773  99999 bytes, at most 5", "not a topic of a device: \"omnilabel"] {
        assert!(table.contains(words), "{words} is not in\n{table}");
    }
    assert!(!table.contains('\x1b'), "nobody's topic commands a terminal: {table:?}");
    assert!(fail(dir.path(), "quarantine list --config trainer.toml --limit 0").contains("--limit"));

    let shown = trainer(dir.path(), "quarantine show --config trainer.toml 1 --out -");
    assert_eq!((shown.status.success(), shown.stdout), (true, vec![0, 255, 10, 7]));
    assert!(String::from_utf8(shown.stderr).unwrap().contains("4 of 4 bytes of message 1: not a valid message"));
    let told = succeed(dir.path(), "quarantine show --config trainer.toml 2 --out two.bin");
    assert!(told.contains("two.bin: 32768 of 32773 bytes of message 2"), "{told}");
    assert_eq!(std::fs::read(dir.path().join("two.bin")).unwrap(), large[..MAX_PAYLOAD]);
    let error = fail(dir.path(), "quarantine show --config trainer.toml 1 --out two.bin");
    assert!(error.contains("two.bin"), "what is there is not overwritten: {error}");
    assert_eq!(std::fs::read(dir.path().join("two.bin")).unwrap().len(), MAX_PAYLOAD);
    let error = fail(dir.path(), "quarantine show --config trainer.toml 9 --out nine.bin");
    assert!(error.contains("no message 9 is in quarantine") && !dir.path().join("nine.bin").exists(), "{error}");
}

#[test]
fn resuming_with_another_option_is_refused_by_its_name_and_both_values() {
    let dir = tempfile::tempdir().unwrap();
    common::folder(&dir.path().join("data"), 1, 2);
    succeed(dir.path(), &format!("{TRAIN} --out arm --lr 0.001"));
    let error = fail(dir.path(), &format!("{TRAIN} --out arm --lr 0.002 --resume"));
    assert!(error.contains("arm: ") && error.contains("options.lr: 0.002, the folder has 0.001;"), "{error}");
    let error = fail(dir.path(), &format!("{TRAIN} --out arm --lr 0.001 --init seed:2 --resume"));
    assert!(error.contains("init.seed: 2, the folder has 1"), "{error}");
    succeed(dir.path(), &format!("{TRAIN} --out arm --lr 0.001 --resume"));
}

#[test]
fn distill_names_the_pictures_that_it_cannot_read_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    common::folder(&dir.path().join("data"), 1, 4);
    common::folder(&dir.path().join("val"), 100, 2);
    common::folder(&dir.path().join("footage"), 10, 5);
    let footage = dir.path().join("footage/images");
    // One whose header cannot be read, and one that is cut off behind it.
    std::fs::write(footage.join("11.jpg"), "no picture").unwrap();
    let whole = std::fs::read(footage.join("12.jpg")).unwrap();
    std::fs::write(footage.join("12.jpg"), &whole[..whole.len() - 20]).unwrap();
    std::fs::write(dir.path().join("data/images/2.jpg"), "no picture either").unwrap();
    let flags = "--val val --teacher-steps 1 --student-steps 1 --batch 2 --short-side 64 --json";
    let none = format!("distill --labelled data --unlabelled footage {flags} --out none").replace("--student-steps 1", "--student-steps 0");
    let error = fail(dir.path(), &none);
    assert!(error.contains("option `steps` is 0, expected 1 or more") && !dir.path().join("none").exists(), "{error}");
    for (flag, expected) in [
        ("--ignore-from 1.5", "--ignore-from is 1.5, expected a number from 0 to 1"),
        ("--images 1", "--images"),
        ("--labelled-fraction 0.1", "--labelled-fraction"),
    ] {
        let error = fail(dir.path(), &format!("distill --labelled data --unlabelled footage {flags} --out none {flag}"));
        assert!(error.contains(expected) && !dir.path().join("none").exists(), "{error}");
    }
    let error = fail(dir.path(), &format!("distill --data data --labelled-fraction 0.01 {flags} --out none"));
    assert!(error.contains("--labelled-fraction 0.01 of 4 images leaves 0 with labels"), "{error}");
    let check = |line: &str, count: u64| {
        let output = trainer(dir.path(), line);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{line}: {said}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let left_out: Vec<&str> = report["left_out"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!((left_out.len() as u64, report["labels"]["unreadable"].as_u64()), (count + 1, Some(count)), "{report}");
        for name in ["data/images/2.jpg", "footage/images/11.jpg", "footage/images/12.jpg"] {
            assert_eq!(left_out.iter().filter(|line| line.contains(name)).count(), 1, "{name} in {left_out:?}");
            assert_eq!(said.lines().filter(|line| line.starts_with("left out: ") && line.contains(name)).count(), 1, "{name} in {said}");
        }
    };
    // Without annotations.json the footage is a plain folder, whose headers are read first.
    check(&format!("distill --labelled data --unlabelled footage/images {flags} --out plain"), 2);
    check(&format!("distill --labelled data --unlabelled footage {flags} --out coco"), 2);
    // Run again, what is known is still named.
    check(&format!("distill --labelled data --unlabelled footage {flags} --out coco"), 2);
    let table = succeed(dir.path(), &format!("distill --labelled data --unlabelled footage {flags} --out coco").replace(" --json", ""));
    assert!(table.contains("3 pictures that could not be read, 2 of them unlabelled"), "{table}");
}

#[test]
fn held_out_pictures_without_labels_are_refused_before_anything_is_trained() {
    let dir = tempfile::tempdir().unwrap();
    common::folder(&dir.path().join("data"), 1, 2);
    common::folder(&dir.path().join("bare"), 10, 2);
    change(&dir.path().join("bare"), |file| {
        annotations(file).for_each(|a| drop((a.insert("keypoints".to_owned(), vec![0; 9].into()), a.remove("num_keypoints"))));
    });
    for line in [&format!("{TRAIN} --out arm --eval bare"), "distill --data data --labelled-fraction 0.5 --val bare --out arm"] {
        let error = fail(dir.path(), line);
        assert!(error.contains("bare") && error.contains("no labelled keypoints"), "{error}");
        assert!(!dir.path().join("arm").exists(), "{line}");
    }
}

/// Without the feature; with it and without a driver `tests/run --cuda` looks for the driver's name.
#[test]
#[cfg(not(feature = "cuda"))]
fn a_device_that_is_not_there_is_named_before_anything_is_read() {
    let dir = tempfile::tempdir().unwrap();
    for command in ["train --data nowhere --out arm", "distill --data nowhere --labelled-fraction 0.3 --val nowhere --out arm"] {
        let said = |flags: &str| fail(dir.path(), &format!("{command} {flags}"));
        assert!(said("--device cuda").contains("feature `cuda`"), "{}", said("--device cuda"));
        assert!(said("--precision bf16").contains("bf16 is for a GPU"), "{}", said("--precision bf16"));
        let auto = said("--device auto");
        assert!(auto.contains("trained on the processor") && auto.contains("nowhere"), "{auto}");
    }
    assert!(!dir.path().join("arm").exists());
}
