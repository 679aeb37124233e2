//! What people say of labels, by the API.

use super::*;
use omnilabel_keypoints::wire::{LabelMsg, Message};

const JSON: &str = "Content-Type: application/json\r\n";

impl Page {
    async fn say(&self, label: u64, body: &Value) -> Answer {
        let headers = format!("{JSON}{}", bearer(OPERATOR));
        self.ask("PUT", &format!("/api/v1/labels/{label}/verdict"), &headers, &body.to_string()).await
    }

    async fn ids(&self, query: &str) -> Vec<u64> {
        let found = self.read(&format!("/api/v1/labels{query}")).await;
        found["labels"].as_array().unwrap().iter().map(|label| label["id"].as_u64().unwrap()).collect()
    }
}

fn person(x: f64) -> Value {
    json!({ "box": [10.0, 8.5, 60.0, 88.0], "keypoints": [[x, 16.25, 1], [45.0, 16.0, 2], [20.0, 80.0, 2], [0.0, 0.0, 0]] })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_is_accepted_corrected_rejected_and_left_undecided() {
    let page = Page::open(true, true).await;
    let fresh = page.read("/api/v1/labels/8/verdict").await;
    assert_eq!((&fresh["version"], &fresh["verdict"], &fresh["width"]), (&json!(0), &Value::Null, &json!(96)));
    let shown = page.read("/api/v1/labels?limit=1").await["labels"][0].clone();
    let proposed = &fresh["proposed"][0];
    assert_eq!(proposed["box"], shown["instances"][0]["box"], "what is accepted is what is seen");
    assert_eq!(proposed["keypoints"][3], json!([shown["instances"][0]["keypoints"][3][0], shown["instances"][0]["keypoints"][3][1], 2]));
    assert_eq!((fresh["proposed"].as_array().unwrap().len(), &fresh["others"]), (1, &json!([])));

    let said = page.say(8, &json!({ "version": 0, "verdict": "accepted" })).await;
    assert_eq!((said.status, said.json()["version"].as_u64()), (200, Some(1)), "{}", said.text());
    let accepted = page.read("/api/v1/labels/8/verdict").await;
    assert_eq!((&accepted["verdict"]["verdict"], &accepted["verdict"]["role"]), (&json!("accepted"), &json!("operator")));
    assert_eq!(accepted["verdict"]["instances"], fresh["proposed"]);
    assert_eq!(page.say(7, &json!({ "version": 0, "verdict": "rejected" })).await.status, 200);
    let said = page.say(6, &json!({ "version": 0, "verdict": "corrected", "instances": [person(35.5), person(12.3)] })).await;
    assert_eq!((said.status, &said.json()["verdict"]["instances"]), (200, &json!([person(35.5), person(12.3)])));

    for (query, ids) in [
        ("?verdict=accepted", vec![8]),
        ("?verdict=rejected", vec![7]),
        ("?verdict=corrected&device=cam-2", vec![6]),
        ("?verdict=corrected&device=cam-1", vec![]),
        ("?verdict=none", vec![5, 4, 3, 2, 1]),
        ("?verdict=none&order=doubt&limit=2", vec![5, 4]),
        ("?verdict=none&order=doubt&limit=2&before=4", vec![3, 2]),
        ("?verdict=any&limit=3", vec![8, 7, 6]),
    ] {
        assert_eq!(page.ids(query).await, ids, "{query}");
    }
    let listed = page.read("/api/v1/labels?limit=3").await["labels"].clone();
    assert_eq!((&listed[1]["verdict"]["verdict"], &listed[1]["verdict"]["instances"]), (&json!("rejected"), &Value::Null));
    assert_eq!((&listed[2]["version"], &listed[2]["verdict"]["instances"][1]), (&json!(1), &person(12.3)));

    // Who has not seen the newest word does not overwrite it.
    for version in [0, 2] {
        let late = page.say(6, &json!({ "version": version, "verdict": "rejected" })).await;
        assert_eq!(late.status, 409);
        assert!(late.error().contains("version 1 was said of label 6"), "{}", late.error());
    }
    assert_eq!(page.say(6, &json!({ "version": 1, "verdict": "rejected" })).await.status, 200);
    let gone = page.ask("DELETE", "/api/v1/labels/6/verdict?version=2", &bearer(OPERATOR), "").await;
    assert_eq!((gone.status, gone.json()), (200, json!({ "id": 6, "version": 3, "verdict": null })));
    assert_eq!(page.ids("?verdict=none&limit=1").await, [6]);
    let again = page.ask("DELETE", "/api/v1/labels/6/verdict?version=3", &bearer(OPERATOR), "").await;
    assert_eq!((again.status, again.error().contains("has no verdict")), (409, true));
    assert_eq!(page.say(6, &json!({ "version": 0, "verdict": "accepted" })).await.status, 409, "a version is used once");

    let audit = page.audit();
    let lines: Vec<(&str, &str)> =
        audit.iter().map(|line| (line["request"].as_str().unwrap(), line["outcome"].as_str().unwrap())).collect();
    let accepted = "PUT /api/v1/labels/8/verdict: accepted, seen version 0, label of cam-2";
    assert_eq!(lines[..2], [(accepted, "asked"), (accepted, "done")]);
    let late = lines.iter().find(|(_, outcome)| outcome.starts_with("not done: ")).unwrap();
    assert_eq!(late.0, "PUT /api/v1/labels/6/verdict: rejected, seen version 0, label of cam-2");
    assert!(lines.contains(&("DELETE /api/v1/labels/6/verdict: undecided, seen version 2, label of cam-2", "done")), "{lines:?}");
    page.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_operators_judge_and_with_a_session_only_with_its_csrf_token() {
    let page = Page::open(true, true).await;
    let path = "/api/v1/labels/8/verdict";
    let body = json!({ "version": 0, "verdict": "rejected" }).to_string();
    assert_eq!(page.get(path, "").await.status, 401);
    assert_eq!(page.get(path, &bearer(VIEWER)).await.status, 200);
    let entered = page.login(OPERATOR).await;
    let csrf = entered.json()["csrf"].as_str().unwrap().to_owned();
    for (headers, status) in [(String::new(), 401), (bearer(VIEWER), 403), (entered.cookie(), 403)] {
        assert_eq!(page.ask("PUT", path, &format!("{JSON}{headers}"), &body).await.status, status, "{headers}");
        assert_eq!(page.ask("DELETE", &format!("{path}?version=0"), &headers, "").await.status, status, "{headers}");
    }
    assert_eq!(page.read(path).await["version"], 0);
    let headers = format!("{JSON}{}X-CSRF-Token: {csrf}\r\n", entered.cookie());
    assert_eq!(page.ask("PUT", path, &headers, &body).await.status, 200);
    page.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_verdict_is_said() {
    let page = Page::open(true, true).await;
    let one = |change: &dyn Fn(&mut Value)| {
        let mut person = person(35.5);
        change(&mut person);
        json!({ "version": 0, "verdict": "corrected", "instances": [person] })
    };
    for (body, expected) in [
        (json!({ "version": 0, "verdict": "corrected" }), "corrected comes without `instances`; expected {\"version\""),
        (json!({ "version": 0, "verdict": "accepted", "instances": [] }), "accepted comes with `instances`"),
        (json!({ "version": 0, "verdict": "maybe" }), "unknown variant `maybe`"),
        (json!({ "verdict": "accepted" }), "missing field `version`"),
        (json!({ "version": -1, "verdict": "accepted" }), "the body cannot be read"),
        (json!({ "version": 0, "verdict": "accepted", "more": 1 }), "unknown field `more`"),
        (json!({ "version": 0, "verdict": "corrected", "instances": vec![person(1.0); 21] }), "21 instances, expected at most 20"),
        (one(&|p| p["keypoints"] = json!([[1, 1, 2]])), "instance 0 has 1 keypoints, expected 4"),
        (one(&|p| p["keypoints"][1] = json!([96.5, 1, 2])), "keypoint 1 of instance 0 is at (96.5, 1), expected within 96 × 96"),
        (one(&|p| p["keypoints"][1] = json!([6.5, 1, 3])), "v = 3, expected 2 visible"),
        (one(&|p| p["keypoints"][1] = json!([6.5, 1])), "the body cannot be read"),
        (one(&|p| p["keypoints"][1] = json!([1e300, 1, 2])), "expected within 96 × 96"),
        (one(&|p| p["box"] = json!([10, 10, 10.5, 40])), "instance 0 has the box"),
        (one(&|p| p["box"] = json!([10, 10, 40, 97])), "at least a pixel apart within 96 × 96"),
        (one(&|p| p["score"] = json!(1)), "unknown field `score`"),
    ] {
        let refused = page.say(8, &body).await;
        assert_eq!(refused.status, 400, "{body}: {}", refused.text());
        assert!(refused.error().contains(expected), "{body}: {}", refused.error());
    }
    let path = "/api/v1/labels/8/verdict";
    let large = " ".repeat(65_503) + &json!({ "version": 0, "verdict": "accepted" }).to_string();
    assert_eq!(large.len(), 65_537, "one byte too many");
    for (headers, body, status, expected) in [
        (JSON, large.as_str(), 413, "at most 65536 bytes"),
        (JSON, "", 400, "the body cannot be read"),
        (JSON, "[1e999]", 400, "the body cannot be read"),
        ("Content-Type: text/plain\r\n", "{}", 415, "application/json"),
    ] {
        let refused = page.ask("PUT", path, &format!("{headers}{}", bearer(OPERATOR)), body).await;
        assert_eq!((refused.status, refused.error().contains(expected)), (status, true), "{}", refused.text());
    }
    for (query, expected) in [("", "`version`"), ("?version=x", "`version` is \"x\""), ("?v=1", "expected one of version")] {
        let refused = page.ask("DELETE", &format!("{path}{query}"), &bearer(OPERATOR), "").await;
        assert_eq!((refused.status, refused.error().contains(expected)), (400, true), "{}", refused.text());
    }
    assert_eq!(page.read(path).await["version"], 0, "nothing of this was written");

    // Labels that nobody can judge: without a picture, refused, not there.
    let store = Store::attach(&page.world.config.state_dir).await.unwrap();
    store.commit(&page.world.labels("cam-2", 9..=9, 0.0, 0)[..1], 1).await.unwrap();
    let mut refused = page.world.labels("cam-2", 10..=10, 0.0, 0);
    let Record::Label(row) = &mut refused[0].1 else { panic!() };
    row.refused = Some("another skeleton".to_owned());
    store.commit(&refused, 1).await.unwrap();
    for (label, status, expected) in [(9, 409, "has no picture here"), (10, 409, "another skeleton"), (77, 404, "label 77 is not here")] {
        let told = page.say(label, &json!({ "version": 0, "verdict": "accepted" })).await;
        assert_eq!((told.status, told.error().contains(expected)), (status, true), "{}", told.text());
        assert_eq!(page.get(&format!("/api/v1/labels/{label}/verdict"), &bearer(VIEWER)).await.status, status);
    }
    assert_eq!(page.ids("?order=doubt&limit=1").await, [8], "nor are they asked about");
    store.close().await;
    page.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proposal_leaves_out_whom_and_what_the_device_was_not_sure_of() {
    let page = Page::open(true, true).await;
    let store = Store::attach(&page.world.config.state_dir).await.unwrap();
    let mut records = page.world.labels("cam-2", 9..=9, 0.0, 0);
    let Record::Label(row) = &mut records[0].1 else { panic!() };
    let mut message = LabelMsg::decode(&row.payload).unwrap();
    let mut other = message.instances[0].clone();
    other.kept = false;
    message.instances.push(other).unwrap();
    // The provisioned model's τ_k is 0.2: 51 of 255.
    (message.instances[0].keypoints[0].2, message.instances[0].keypoints[1].2) = (50, 51);
    (message.instances[0].keypoints[2].0, message.instances[0].keypoints[3].1) = (-16, 96 * 16 + 1);
    row.payload = crate::service::testing::encode(&message);
    store.commit(&records, 1).await.unwrap();
    let told = page.read("/api/v1/labels/9/verdict").await;
    let labelled = |people: &Value| people[0]["keypoints"].as_array().unwrap().iter().map(|k| k[2].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!((labelled(&told["proposed"]), labelled(&told["others"])), (vec![0, 2, 0, 0], vec![2, 2, 2, 2]));
    assert_eq!(told["proposed"][0]["keypoints"][0], json!([0.0, 0.0, 0]));
    store.close().await;
    page.close().await;
}
