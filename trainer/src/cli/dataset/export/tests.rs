use super::*;
use crate::formats::recognise::recognise;
use crate::formats::{ImportOptions, import};
use crate::service::hand::{Person, Verdict};
use crate::service::store::verdicts::Word;
use crate::service::testing::World;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::RowAccessor;
use serde_json::Value;

fn args(world: &World, out: &str, format: To) -> Args {
    Args {
        config: Some(world.dir.path().join("trainer.toml")),
        data: None,
        out: world.dir.path().join(out),
        format,
        device: None,
        model: None,
        manual: false,
        score: None,
        keypoint: None,
        coordinates: None,
        without_pictures: false,
    }
}

#[test]
fn generated_labels_say_the_same_in_every_format_and_where_they_come_from() {
    let world = World::new();
    let text = "state_dir = \"state\"\n[broker]\nhost = \"127.0.0.1\"\nsite = \"home\"\n[data]\nmanual = \"manual\"\nheldout = \"heldout\"\n\
                [model]\nrunning = \"running\"\n[release]\nkey = \"release.key\"\n";
    std::fs::write(world.dir.path().join("trainer.toml"), text).unwrap();
    let bare = world.labels("cam-2", 109..=109, 0.0, 0);
    runtime().unwrap().block_on(async {
        let store = Store::open(&world.config.state_dir, false).await.unwrap();
        store.commit(&world.labels("cam-1", 101..=104, 0.0, 0), 1_000).await.unwrap();
        store.commit(&bare[..1], 2_000).await.unwrap();
        store.close().await;
    });
    run(&args(&world, "coco", To::Coco)).unwrap();
    let ours = Dataset::load(&world.dir.path().join("coco")).unwrap();
    assert_eq!((ours.images.len(), ours.annotations.len()), (4, 4));
    let lines = std::fs::read_to_string(world.dir.path().join("coco/provenance.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (line, image) in lines.iter().zip(&ours.images) {
        assert_eq!(line["file_name"], image.file_name.as_str());
        let picture = std::fs::read(ours.image_path(image)).unwrap();
        assert_eq!(line["sha256"], hex(&Sha256::digest(picture)).as_str());
        assert!((line["people"][0]["score"].as_f64().unwrap() - 0.9).abs() < 1e-4, "{line}");
        assert_eq!((&line["people"][0]["agreement"], &line["received_ms"], &line["device"]), (&1.0.into(), &1_000.into(), &"cam-1".into()));
    }
    for (format, name) in
        [(To::Fiftyone, "fiftyone"), (To::Cvat, "cvat"), (To::LabelStudio, "label-studio"), (To::Ultralytics, "ultralytics")]
    {
        run(&args(&world, name, format)).unwrap();
        let out = world.dir.path().join(name);
        assert!(!out.join("annotations.json").exists() && out.join("provenance.jsonl").exists(), "{name}");
        let (found, file) = recognise(&out, None).unwrap();
        assert_eq!(Some(found), format.format(), "{name}");
        let back = import(found, &file, &ImportOptions::default(), &world.dir.path().join(format!("{name}-back"))).unwrap();
        let far = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        for (a, b) in ours.annotations.iter().zip(&back.dataset.annotations) {
            assert!(far(&a.bbox, &b.bbox) < 1e-3 && far(&a.keypoints, &b.keypoints) < 1e-3, "{name}: {a:?} {b:?}");
        }
        assert_eq!(back.dataset.annotations.len(), 4, "{name}");
    }
    let error = run(&Args { device: Some("cam-9".to_owned()), ..args(&world, "none", To::Coco) }).unwrap_err().to_string();
    assert!(error.contains("no label with a picture"), "{error}");
    assert!(!world.dir.path().join("none").exists());

    // With their pictures those that have one; without them all.
    for (without_pictures, expected) in [(false, 4), (true, 5)] {
        let name = format!("table-{without_pictures}");
        run(&Args { without_pictures, ..args(&world, &name, To::Parquet) }).unwrap();
        let file = std::fs::File::open(world.dir.path().join(&name).join("labels.parquet")).unwrap();
        let rows: Vec<_> = SerializedFileReader::new(file).unwrap().get_row_iter(None).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows.len(), expected);
        assert_eq!(world.dir.path().join(&name).join("images").exists(), !without_pictures);
        // The same hash as beside the pictures; none of a picture that has not come.
        assert_eq!(rows[0].get_string(1).unwrap(), lines[0]["sha256"].as_str().unwrap());
        assert_eq!(rows[4..].iter().map(|row| row.get_string(1).is_ok()).collect::<Vec<_>>(), vec![false; expected - 4]);
        assert_eq!((rows[0].get_string(4).unwrap().as_str(), rows[0].get_ulong(6).unwrap()), ("cam-1", 101));
    }
    let manual = Args { config: None, data: Some(world.config.data.manual.clone()), ..args(&world, "manual-table", To::Parquet) };
    run(&manual).unwrap();
    let file = std::fs::File::open(world.dir.path().join("manual-table/labels.parquet")).unwrap();
    assert_eq!(SerializedFileReader::new(file).unwrap().metadata().file_metadata().num_rows(), 6);
    assert!(world.dir.path().join("manual-table/images/6.jpg").exists());
}

/// Exports as COCO, and reads what is said of each image.
fn provenance(args: &Args) -> anyhow::Result<Vec<Value>> {
    run(args)?;
    let images = Dataset::load(&args.out)?.images.len();
    let text = std::fs::read_to_string(args.out.join("provenance.jsonl"))?;
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(images, lines.len());
    Ok(lines)
}

#[test]
fn an_export_has_what_people_said_or_what_nobody_judged() {
    let world = World::new();
    let person = Person { rect: [1.0, 2.0, 30.0, 40.0], keypoints: vec![(3.5, 4.5, 1); 4] };
    runtime().unwrap().block_on(async {
        let store = Store::open(&world.config.state_dir, false).await.unwrap();
        store.commit(&world.labels("cam-1", 1..=4, 0.0, 0), 1).await.unwrap();
        for (label, verdict, people) in [
            (1, Verdict::Accepted, Some(vec![person.clone()])),
            (2, Verdict::Corrected, Some(vec![person.clone(), person])),
            (3, Verdict::Rejected, None),
        ] {
            let word = Word { verdict: Some(verdict), people, role: "operator", peer: String::new() };
            store.say(label, 0, &word, 7).await.unwrap();
        }
        store.close().await;
    });
    let by_hand = |name: &str, format| Args { manual: true, ..args(&world, name, format) };
    let lines = provenance(&by_hand("hand", To::Coco)).unwrap();
    let told = |line: &Value| (line["sequence"].as_u64(), line["verdict"].as_str().map(str::to_owned), line["judged_ms"].as_u64());
    let expected = [(Some(1), Some("accepted".to_owned()), Some(7)), (Some(2), Some("corrected".to_owned()), Some(7))];
    assert_eq!(lines.iter().map(told).collect::<Vec<_>>(), expected);
    assert!(lines[0]["tau"].is_null() && lines[0]["people"].is_null(), "no threshold is put to what a person says");
    let hand = Dataset::load(&world.dir.path().join("hand")).unwrap();
    assert_eq!((hand.annotations.len(), &hand.annotations[0].keypoints[..3]), (3, &[3.0, 4.0, 1.0][..]));

    run(&by_hand("hand-cvat", To::Cvat)).unwrap();
    let (format, file) = recognise(&world.dir.path().join("hand-cvat"), None).unwrap();
    let back = import(format, &file, &ImportOptions::default(), &world.dir.path().join("hand-back")).unwrap();
    assert_eq!((back.dataset.images.len(), back.dataset.annotations.len()), (2, 3));
    run(&by_hand("hand-table", To::Parquet)).unwrap();
    let file = std::fs::File::open(world.dir.path().join("hand-table/labels.parquet")).unwrap();
    let rows: Vec<_> = SerializedFileReader::new(file).unwrap().get_row_iter(None).unwrap().map(Result::unwrap).collect();
    assert_eq!(rows.iter().map(|row| row.get_ulong(6).unwrap()).collect::<Vec<_>>(), [1, 2, 2]);
    assert!(rows.iter().all(|row| row.get_float(15).is_err() && row.get_float(17).is_err()), "neither τ nor a score");

    let generated = provenance(&args(&world, "generated", To::Coco)).unwrap();
    assert_eq!(generated.iter().map(told).collect::<Vec<_>>(), [(Some(4), None, None)]);
    assert!(generated[0]["tau"].as_f64().is_some());
    let none = Args { device: Some("cam-9".to_owned()), ..by_hand("none", To::Coco) };
    let error = run(&none).unwrap_err().to_string();
    assert!(error.contains("accepted or corrected") && error.contains("dataset stats"), "{error}");
}
