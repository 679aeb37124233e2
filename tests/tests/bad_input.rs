//! What goes wrong is said with its name and what was expected; the rest goes on and nothing is lost. Each case runs the product's programs.

use omnilabel_keypoints::wire::topic::{self, Kind};
use omnilabel_keypoints::wire::{Encoding, Message, ModelMsg, ReleaseMsg};
use omnilabel_link::{Incoming, Link, LinkConfig};
use omnilabel_scenes::{DEFAULT_SIZE, Look, write_coco};
use omnilabel_tests::fleet::{Camera, SITE, Site, Student};
use omnilabel_tests::peers::{deadline, run, succeed, teacher, until};
use omnilabel_trainer::service::Event;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Runs a program that must fail with status 1 or 2 and name every one of `words`, without a panic.
fn fails<A: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = A>, words: &[&str]) {
    let output = run(name, args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(1 | 2)), "{name} ended with {}: {said}", output.status);
    assert!(!said.contains("panicked") && words.iter().all(|word| said.contains(word)), "{name} does not say {words:?}: {said}");
}

fn words<'a>(line: &'a str, paths: &'a [&'a Path]) -> Vec<&'a OsStr> {
    let mut paths = paths.iter();
    let word = |w: &'a str| if w == "@" { paths.next().expect("a path for every @").as_os_str() } else { OsStr::new(w) };
    line.split(' ').map(word).collect()
}

/// A COCO folder of four scenes.
fn scenes(dir: &Path) -> PathBuf {
    let folder = dir.join("scenes");
    write_coco(&folder, &[Look::studio()], 11, 4, DEFAULT_SIZE).expect("scenes");
    folder
}

/// Cuts a JPEG short.
fn corrupt(folder: &Path) -> String {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder.join("images")).expect("images").map(|e| e.expect("an entry").path()).collect();
    files.sort();
    let bytes = std::fs::read(&files[1]).expect("a picture");
    std::fs::write(&files[1], &bytes[..bytes.len() / 3]).expect("a picture");
    files[1].file_name().expect("a name").to_string_lossy().into_owned()
}

#[test]
fn a_corrupt_picture_is_named_and_the_others_are_labelled_and_trained_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let (folder, out) = (scenes(dir.path()), dir.path().join("results.json"));
    let name = corrupt(&folder);
    let text = succeed("omnilabel-edge", words("label --model @ --images @ --out @ --json", &[&teacher(), &folder, &out]));
    let summary: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((summary["images"].as_u64(), summary["labelled"].as_u64()), (Some(4), Some(3)), "{summary}");
    assert!(summary["bad"][0].as_str().is_some_and(|reason| reason.contains(&name)), "{summary}");

    let trained = run("omnilabel-trainer", words("train --data @ --out @ --steps 1 --batch 2", &[&folder, &dir.path().join("run")]));
    let said = String::from_utf8_lossy(&trained.stderr).into_owned() + &String::from_utf8_lossy(&trained.stdout);
    assert!(trained.status.success() && said.contains(&name), "{said}");
    let text = succeed("omnilabel-trainer", words("evaluate --model @ --data @ --json", &[&teacher(), &folder]));
    let evaluation: serde_json::Value = serde_json::from_str(text.trim()).expect("JSON");
    assert_eq!(evaluation["unreadable"].as_array().map(Vec::len), Some(1), "{evaluation}");
}

#[test]
fn a_missing_file_is_named_once_with_what_the_system_says_once_and_without_colours() {
    let dir = tempfile::tempdir().expect("a folder");
    let (folder, gone, out) = (scenes(dir.path()), dir.path().join("not-there"), dir.path().join("out"));
    let cases = [
        ("omnilabel-edge", "label --model @ --images @ --out @", vec![&gone, &folder, &out]),
        ("omnilabel-edge", "check-config --config @", vec![&gone]),
        ("omnilabel-edge", "model install --bundle @ --data-dir @", vec![&gone, &out]),
        ("omnilabel-trainer", "train --data @ --out @", vec![&gone, &out]),
        ("omnilabel-trainer", "evaluate --model @ --data @", vec![&gone, &folder]),
        ("omnilabel-trainer", "score --gt @ --results @", vec![&gone, &gone]),
        ("omnilabel-trainer", "run --config @", vec![&gone]),
    ];
    for (program, line, paths) in cases {
        let paths: Vec<&Path> = paths.into_iter().map(PathBuf::as_path).collect();
        let output = run(program, words(line, &paths));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{program} {line}: {said}");
        assert!(said.starts_with("error: ") && said.lines().count() == 1 && said.contains("not-there"), "{program} {line}: {said}");
        assert_eq!(said.matches("os error 2").count(), 1, "{program} {line}: {said}");
    }

    // The log of a picture that cannot be read goes to a pipe here.
    corrupt(&folder);
    let output = run("omnilabel-edge", words("label --model @ --images @ --out @", &[&teacher(), &folder, &out]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("WARN") && !said.contains('\u{1b}'), "{said:?}");
}

#[test]
fn a_bad_box_is_named_by_file_index_and_image_and_the_others_are_labelled() {
    let dir = tempfile::tempdir().expect("a folder");
    let (folder, out, drawn) = (scenes(dir.path()), dir.path().join("results.json"), dir.path().join("drawn"));
    let boxes = dir.path().join("boxes.json");
    let good = r#"{"image_id":1,"bbox":[10,10,60,90],"score":0.25},{"image_id":2,"bbox":[20,10,60,90]}"#;
    let bad = r#"{"image_id":3,"bbox":[1,1,-5,9]},{"image_id":99,"bbox":[1,1,5,9]}"#;
    let line = "label --model @ --images @ --out @ --boxes @ --draw @ --json";
    std::fs::write(&boxes, format!("[{bad},{good}]")).expect("boxes");
    let paths: [&Path; 5] = [&teacher(), &folder, &out, &boxes, &drawn];
    let summary: serde_json::Value = serde_json::from_str(&succeed("omnilabel-edge", words(line, &paths))).expect("JSON");
    assert_eq!((summary["labelled"].as_u64(), summary["instances"].as_u64()), (Some(4), Some(2)), "{summary}");
    let reasons: Vec<&str> = summary["bad_boxes"].as_array().expect("reasons").iter().filter_map(|r| r.as_str()).collect();
    for (reason, start) in reasons.iter().zip(["box 0 of image 3: bbox", "box 1 of image 99: there is no such image"]) {
        assert!(reason.starts_with(&format!("{}: {start}", boxes.display())), "{reason}");
    }
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    // A given box is drawn whatever its score is.
    let page = std::fs::read_to_string(drawn.join("index.html")).expect("the page");
    assert!(page.contains(">person 0.25,") && page.contains(">person 1.00,"), "{page}");

    std::fs::write(&boxes, format!("[{bad}]")).expect("boxes");
    std::fs::remove_file(&out).expect("results");
    fails("omnilabel-edge", words(line, &paths), &["boxes.json: none of the 2 boxes", "box 0 of image 3"]);
    assert!(!out.exists());
}

#[test]
fn an_empty_folder_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let (empty, out) = (dir.path().join("nothing-here"), dir.path().join("out"));
    std::fs::create_dir(&empty).expect("a folder");
    fails("omnilabel-edge", words("label --model @ --images @ --out @", &[&teacher(), &empty, &out]), &["nothing-here", ".jpg"]);
    fails("omnilabel-trainer", words("train --data @ --out @ --steps 1", &[&empty, &out]), &["nothing-here", "annotations.json"]);
    fails("omnilabel-trainer", words("evaluate --model @ --data @", &[&teacher(), &empty]), &["nothing-here", "annotations.json"]);
    fails("omnilabel-trainer", words("distill --data @ --out @", &[&empty, &out]), &["nothing-here"]);
    fails("omnilabel", words("demo --dir @ --data @", &[&out, &empty]), &["nothing-here", "train/"]);
}

#[test]
fn another_skeleton_is_refused_by_its_keypoints() {
    let dir = tempfile::tempdir().expect("a folder");
    let (folder, out) = (scenes(dir.path()), dir.path().join("out"));
    let path = folder.join("annotations.json");
    let text = std::fs::read_to_string(&path).expect("annotations");
    std::fs::write(&path, text.replace("\"left_wrist\"", "\"left_paw\"")).expect("annotations");
    fails("omnilabel-trainer", words("evaluate --model @ --data @", &[&teacher(), &folder]), &["left_paw", "left_wrist"]);
    let results = dir.path().join("results.json");
    std::fs::write(&results, r#"[{"image_id":1,"category_id":1,"score":0.5,"keypoints":[1,1,2,3,3,2]}]"#).expect("results");
    fails("omnilabel-trainer", words("score --gt @ --results @", &[&path, &results]), &["results.json", "17", "2"]);
    assert!(!out.exists());
}

#[test]
fn one_flipped_byte_of_a_bundle_is_named_wherever_it_is() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = scenes(dir.path());
    let source = omnilabel_bundle::Bundle::open(&teacher()).expect("the shipped model");
    for file in source.manifest().files.keys() {
        let bundle = dir.path().join("bundle");
        for name in source.manifest().files.keys().map(String::as_str).chain(["manifest.json"]) {
            let to = bundle.join(name);
            std::fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
            std::fs::copy(source.path(name), to).expect("a copy");
        }
        let path = bundle.join(file);
        let mut bytes = std::fs::read(&path).expect("a file");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).expect("a file");
        let (out, state) = (dir.path().join("out.json"), dir.path().join("state"));
        fails("omnilabel-edge", words("label --model @ --images @ --out @", &[&bundle, &folder, &out]), &[file, "sha256"]);
        fails("omnilabel-edge", words("model install --bundle @ --data-dir @", &[&bundle, &state]), &[file, "sha256"]);
        assert!(!out.exists() && !state.join("state.json").exists());
    }
    let bundle = dir.path().join("bundle");
    fails("omnilabel-trainer", words("evaluate --model @ --data @", &[&bundle, &folder]), &["sha256"]);
}

#[test]
fn an_unknown_configuration_key_is_named_with_those_that_exist() {
    let dir = tempfile::tempdir().expect("a folder");
    let edge = dir.path().join("edge.toml");
    let text =
        "device = \"a\"\nstate_dir = \"s\"\n[broker]\nhost = \"localhost\"\nsite = \"y\"\n[camera]\ntype = \"folder\"\npath = \"p\"\n";
    std::fs::write(&edge, format!("{text}[teacher]\nscale = [128]\n")).expect("a file");
    for command in ["check-config --config @", "run --config @"] {
        fails("omnilabel-edge", words(command, &[&edge]), &["edge.toml", "`teacher.scale`", "scales"]);
    }
    let trainer = dir.path().join("trainer.toml");
    let text = "state_dir = \"s\"\n[broker]\nhost = \"localhost\"\nsite = \"y\"\n[data]\nmanual = \"m\"\nheldout = \"h\"\nheld = 1\n";
    std::fs::write(&trainer, format!("{text}[model]\nrunning = \"r\"\n[release]\nkey = \"k\"\n")).expect("a file");
    for command in ["check-config --config @", "run --config @"] {
        fails("omnilabel-trainer", words(command, &[&trainer]), &["trainer.toml", "held", "heldout"]);
    }
    let options = dir.path().join("train.toml");
    std::fs::write(&options, "[options]\nstep = 3\n").expect("a file");
    let (folder, out) = (scenes(dir.path()), dir.path().join("out"));
    fails("omnilabel-trainer", words("train --data @ --out @ --config @", &[&folder, &out, &options]), &["train.toml", "step"]);
}

#[test]
fn a_broker_that_is_down_loses_nothing_and_an_unsigned_release_is_refused() {
    let Some(mut site) = Site::new() else { return };
    let footage = site.render("footage", &Look::studio(), 9, 8);
    let name = corrupt(&footage);
    site.broker.kill();
    site.provision("cam", Camera::Folder(&footage.join("images"), 50.0, false), Encoding::Cbor);
    site.configure_centre(1000, 0, Student::Careful);
    let (device, centre) = (site.device("cam"), site.centre());
    let port = site.broker.port.to_string();
    until("both say that there is no broker", || {
        let said = device.said();
        let known = said.contains("no broker; labels wait in the outbox") && said.contains("the camera's last frame is labelled");
        let told = site.events().iter().any(|event| match event {
            Event::Broker { connected: false, reason } => reason.contains("refused") || reason.contains(&port),
            _ => false,
        });
        (known && told).then_some(())
    });
    assert!(device.said().contains(&name), "the corrupt picture is named: {}", device.said());
    assert_eq!(site.settled(), 0);
    site.broker.start_again();
    until("every label", || (site.settled() == 7).then_some(()));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let refused = runtime.block_on(offer_unsigned(site.broker.port));
    assert_eq!((refused.confirmed, refused.trial), (0, None));
    assert!(refused.reason.contains("signature"), "{:?}", refused.reason.as_str());
    device.signal("TERM");
    let (status, out) = device.wait();
    let summary: serde_json::Value = serde_json::from_str(out.trim()).expect("JSON");
    assert!(status.success());
    let figures = ["frames", "bad_frames", "committed", "pending", "model"].map(|key| summary[key].as_u64());
    assert_eq!(figures, [7, 1, 7, 0, 0].map(Some), "{summary}");
    drop(centre);
}

/// Offers a release whose signature is by nobody, and returns what the device says about it.
async fn offer_unsigned(port: u16) -> ModelMsg {
    let config = LinkConfig {
        host: "127.0.0.1".to_owned(),
        port,
        tls: None,
        allow_plain: false,
        prefix: "omnilabel/v1".to_owned(),
        site: SITE.to_owned(),
    };
    let model = topic::device(&config.prefix, SITE, "cam", Kind::Model).as_str().to_owned();
    let (link, mut incoming) = Link::open(&config, "intruder", None, vec![model]).expect("a link");
    let manifest =
        br#"{"format":1,"site":"yard","channel":"stable","counter":9,"name":"evil","block_bytes":262144,"files":[],"blocks":[]}"#;
    let release = ReleaseMsg {
        version: 1,
        manifest: manifest.iter().copied().collect(),
        signature: [7; 64].into_iter().collect(),
        ..ReleaseMsg::default()
    };
    let mut buffer = vec![0; ReleaseMsg::MAX_BYTES];
    let length = release.encode(Encoding::Cbor, &mut buffer).expect("a message");
    buffer.truncate(length);
    let target = topic::release(&config.prefix, SITE, "stable").as_str().to_owned();
    link.publish(&target, buffer, true).await.expect("published");
    let heard = async {
        loop {
            let message = incoming.recv().await.expect("the link stays");
            let Incoming::Message { payload, .. } = message else { continue };
            let said = ModelMsg::decode(&payload).expect("a message");
            if !said.reason.is_empty() {
                return said;
            }
        }
    };
    let said = tokio::time::timeout(deadline(), heard).await.expect("the device says why");
    link.close().await;
    said
}
