//! The board and the alerts of `deploy/grafana` against what a real centre and a real device export, against Prometheus' own checker, and
//! against Grafana's schema.

use omnilabel_keypoints::wire::Encoding;
use omnilabel_scenes::Look;
use omnilabel_tests::fleet::{Camera, Site, Student};
use omnilabel_tests::peers::{command, free_port, has, http_get, python, root, until};
use omnilabel_tests::promql::{Selector, selectors};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Labels that the collection itself adds (`targets/` in `deploy/grafana/prometheus.yml`), to what the centre and to what a device exports.
const OF_CENTRES: [&str; 2] = ["job", "site"];
const OF_DEVICES: [&str; 3] = ["device", "job", "site"];

fn grafana(file: &str) -> PathBuf {
    root().join("deploy/grafana").join(file)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn board() -> Value {
    serde_json::from_str(&read(&grafana("omnilabel.json"))).expect("JSON")
}

/// Every expression of the board with its panel: queries, annotations, and what the variables list.
fn expressions(value: &Value, title: &str, found: &mut Vec<(String, String)>) {
    let title = value["title"].as_str().or(value["name"].as_str()).unwrap_or(title);
    if let Some(expression) = value["expr"].as_str() {
        found.push((title.to_owned(), expression.to_owned()));
    }
    let listed = value["query"].as_str().and_then(|query| query.strip_prefix("label_values(")?.strip_suffix(')')?.rsplit_once(','));
    if let Some((expression, _)) = listed {
        found.push((title.to_owned(), expression.to_owned()));
    }
    let inside: Vec<&Value> = match value {
        Value::Array(list) => list.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => Vec::new(),
    };
    inside.into_iter().for_each(|value| expressions(value, title, found));
}

fn of_board() -> Vec<(String, String)> {
    let mut found = Vec::new();
    expressions(&board(), "", &mut found);
    found
}

fn of_alerts() -> Vec<(String, String)> {
    let text = read(&grafana("alerts.yml"));
    let after = |key: &str| text.lines().filter_map(|line| Some(line.split_once(key)?.1.trim().to_owned())).collect::<Vec<_>>();
    let (names, expressions) = (after("- alert:"), after(" expr:"));
    assert_eq!(names.len(), expressions.len(), "an alert has one line with its expression");
    names.into_iter().zip(expressions).collect()
}

/// What `/metrics` exports: each metric with the labels of its samples, none where it has no sample yet.
fn exported(text: &str) -> BTreeMap<String, Option<BTreeSet<String>>> {
    let mut found: BTreeMap<String, Option<BTreeSet<String>>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            found.entry(family.split(' ').next().unwrap_or_default().to_owned()).or_default();
        } else if !line.starts_with('#') {
            for Selector { metric, labels } in selectors(line.rsplit_once(' ').map_or(line, |(sample, _)| sample)) {
                found.entry(metric).or_default().get_or_insert_default().extend(labels);
            }
        }
    }
    found
}

/// What an expression reads that is not exported, in words.
fn problems(asked: &[(String, String)], centre: &str, device: &str) -> Vec<String> {
    let with = |text: &str, added: &[&str]| {
        let added: BTreeSet<String> = added.iter().map(|label| (*label).to_owned()).collect();
        let of = exported(text).into_iter();
        of.map(move |(metric, labels)| (metric, labels.map(|labels| labels.union(&added).cloned().collect::<BTreeSet<String>>())))
            .collect::<Vec<_>>()
    };
    let mut known: BTreeMap<String, Option<BTreeSet<String>>> = with(centre, &OF_CENTRES).into_iter().collect();
    known.extend(with(device, &OF_DEVICES));
    known.insert("up".to_owned(), Some(OF_DEVICES.map(str::to_owned).into()));
    let mut found = Vec::new();
    for (title, expression) in asked {
        for Selector { metric, labels } in selectors(expression) {
            match known.get(&metric) {
                None => found.push(format!("{title}: nobody exports {metric}")),
                Some(Some(has)) if !labels.is_subset(has) => {
                    found.push(format!("{title}: {metric} has the labels {has:?}, not all of {labels:?}"));
                }
                Some(_) => {}
            }
        }
    }
    found
}

#[test]
fn what_nobody_exports_is_noticed() {
    let centre = "# HELP a A.\n# TYPE a gauge\na{device=\"cam-1\"} 1\n# TYPE b gauge\n";
    let ask = |expression: &str| problems(&[("panel".to_owned(), expression.to_owned())], centre, "c_bucket{le=\"1\"} 2\n");
    for good in ["a{site=~\"$site\",device=~\"$device\"} + b", "rate(c_bucket{device=\"x\",le=\"1\"}[5m])", "up{job=\"omnilabel-centre\"}"]
    {
        assert_eq!(ask(good), Vec::<String>::new(), "{good}");
    }
    assert_eq!(ask("sum(d) by (site)"), ["panel: nobody exports d"]);
    assert_eq!(ask("a{reason=\"x\"}").len(), 1);
}

#[test]
fn every_metric_of_the_board_and_the_alerts_is_exported() {
    let Some(site) = Site::new() else { return };
    let footage = site.render("footage", &Look::studio(), 12, 6);
    let (centre_port, device_port) = (free_port(), free_port());
    let page = |file: &Path, table: &str| std::fs::write(file, read(file) + "\n" + table).expect("writable");
    page(
        &site.provision("cam-1", Camera::Folder(&footage.join("images"), 2.0, false), Encoding::Cbor),
        &format!("[web]\nlisten = \"127.0.0.1:{device_port}\"\n"),
    );
    site.configure_centre(100_000, 0, Student::Careful);
    page(&site.path("trainer.toml"), &format!("[web]\nbind = \"127.0.0.1:{centre_port}\"\n"));
    let (_centre, _device) = (site.centre(), site.device("cam-1"));
    let metrics = |port| http_get(port, "/metrics", None).filter(|(status, _)| *status == 200).map(|(_, text)| text);
    let centre = until("a label in the centre's /metrics", || {
        metrics(centre_port).filter(|text| text.contains("omnilabel_centre_labels_stored_total{device=\"cam-1\"}"))
    });
    let device = until("a frame in the device's /metrics", || {
        metrics(device_port).filter(|text| text.contains("omnilabel_frame_seconds_bucket") && text.contains("frame_age_seconds{"))
    });

    let (board, alerts) = (of_board(), of_alerts());
    assert!(board.len() > 40 && alerts.len() > 10, "{} and {} expressions", board.len(), alerts.len());
    assert_eq!(problems(&board, &centre, &device), Vec::<String>::new());
    assert_eq!(problems(&alerts, &centre, &device), Vec::<String>::new());
    // And each of the centre's is told what it is.
    for metric in exported(&centre).keys() {
        assert!(centre.contains(&format!("# HELP {metric} ")) && centre.contains(&format!("# TYPE {metric} ")), "{metric}");
    }
}

#[test]
fn prometheus_takes_what_it_is_given() {
    if !has("promtool") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let at = |file: &str| folder.path().join(file);
    let copy = |file: &str, text: String| std::fs::write(at(file), text).expect("writable");
    // The tokens lie elsewhere in a container.
    for (file, secret) in [("prometheus_token", "t"), ("device_token", "t")] {
        copy(file, secret.to_owned());
    }
    copy("prometheus.yml", read(&grafana("prometheus.yml")).replace("/run/secrets", &folder.path().display().to_string()));
    copy("alerts.yml", read(&grafana("alerts.yml")));
    copy("alerts.test.yml", read(&grafana("alerts.test.yml")));
    std::fs::create_dir(at("targets")).expect("a folder");
    for target in ["centre-yard.yml", "device-cam-1.yml"] {
        copy(&format!("targets/{target}"), "[{ targets: [\"localhost:1\"], labels: { site: yard, device: cam-1 } }]\n".to_owned());
    }
    let promtool = |args: &[&str]| command(Command::new("promtool").args(args).current_dir(folder.path()));
    let said = promtool(&["check", "config", "prometheus.yml"]);
    assert!(!said.contains("WARNING"), "{said}");
    promtool(&["test", "rules", "alerts.test.yml"]);

    // Each alert has a test.
    let tests = read(&grafana("alerts.test.yml"));
    let untested: Vec<String> =
        of_alerts().into_iter().map(|(name, _)| name).filter(|name| !tests.contains(&format!("\"{name}\""))).collect();
    assert_eq!(untested, Vec::<String>::new());

    // What Grafana puts in for its variables.
    let filled = |expression: String| {
        let variables = [("$__rate_interval", "1m"), ("$__range", "6h"), ("$site", ".*"), ("$device", ".*")];
        variables.into_iter().fold(expression, |text, (name, value)| text.replace(name, value))
    };
    let rules: Vec<Value> = of_board()
        .into_iter()
        .enumerate()
        .map(|(index, (_, expression))| json!({ "record": format!("board:{index}"), "expr": filled(expression) }))
        .collect();
    assert!(rules.iter().all(|rule| !rule["expr"].as_str().unwrap_or("$").contains('$')), "a variable that this test does not know");
    copy("board.yml", json!({ "groups": [{ "name": "board", "rules": rules }] }).to_string());
    promtool(&["check", "rules", "board.yml"]);
}

/// A rectangle of the board's grid: x, y, width, height.
fn place(panel: &Value) -> [u64; 4] {
    ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap_or_else(|| panic!("no gridPos.{key} in {panel}")))
}

#[test]
fn the_board_is_one_that_can_be_looked_at() {
    let board = board();
    let panels = board["panels"].as_array().expect("panels");
    let titles =
        |kind: &str| panels.iter().filter(|panel| panel["type"] == kind).filter_map(|panel| panel["title"].as_str()).collect::<Vec<_>>();
    let rows = ["Fleet", "Broker and collector", "Rounds and gate", "Roll-out", "Pictures and disk", "Devices, by their own /metrics"];
    assert_eq!(titles("row"), rows);
    let variables: Vec<&str> =
        board["templating"]["list"].as_array().expect("variables").iter().filter_map(|v| v["name"].as_str()).collect();
    assert_eq!(variables, ["datasource", "site", "device"]);
    let ids: BTreeSet<u64> = panels.iter().filter_map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "ids are given once");
    for (index, panel) in panels.iter().enumerate() {
        let [x, y, width, height] = place(panel);
        assert!(x + width <= 24, "{panel} is wider than the board");
        let apart = |other: &Value| {
            let [other_x, other_y, other_width, other_height] = place(other);
            x + width <= other_x || other_x + other_width <= x || y + height <= other_y || other_y + other_height <= y
        };
        assert!(panels[..index].iter().all(apart), "{} lies on another panel", panel["title"]);
        if panel["type"] == "row" {
            continue;
        }
        let mut told = String::new();
        for target in panel["targets"].as_array().into_iter().flatten() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
            let expression = target["expr"].as_str().unwrap_or_default();
            assert!(expression.contains("site=~\"$site\""), "{}: not of the chosen sites: {expression}", panel["title"]);
            writeln!(told, "{expression}").expect("text grows");
        }
        assert!(!told.is_empty() && panel["title"].is_string(), "{panel}");
    }
}

#[test]
fn grafana_knows_everything_in_the_board() {
    let Some(python) = python() else { return };
    let said = command(Command::new(python).arg(root().join("tests/python/check_board.py")).arg(grafana("omnilabel.json")));
    assert_eq!(said.trim(), format!("{} panels", board()["panels"].as_array().map_or(0, Vec::len)));
}
