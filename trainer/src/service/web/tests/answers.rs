//! What is answered, and what is expected where a request is wrong.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fleet_is_told_as_the_store_knows_it() {
    let page = Page::open(true, false).await;
    let fleet = page.read("/api/v1/fleet").await;
    let [one, two] = fleet["devices"].as_array().unwrap().as_slice() else { panic!("{fleet}") };
    assert_eq!((&one["device"], &one["online"], &one["seen_ms"]), (&json!("cam-1"), &json!(true), &json!(page.now)));
    let numbers = ["committed", "stored", "pending", "evicted", "duplicates", "missing", "frames"].map(|key| one[key].as_u64().unwrap());
    assert_eq!(numbers, [6, 5, 1, 0, 0, 1, 5]);
    assert_eq!((&one["confirmed"], &one["trial"], &one["refused"]), (&json!(1), &Value::Null, &json!(2)));
    assert_eq!(one["reason"], REASON, "words of a device are text");
    assert_eq!((&two["device"], &two["online"], &two["confirmed"]), (&json!("cam-2"), &json!(false), &json!(0)));

    let drift = &one["drift"];
    assert_eq!(
        (&drift["model"], &drift["reference"], &drift["newest"], &two["drift"]),
        (&json!(1), &json!(900), &json!(300), &Value::Null)
    );
    let size = &drift["statistics"][1];
    assert_eq!((&size["statistic"], &size["distance"], &size["after"]), (&json!("size"), &json!(0.413), &json!(0.31)));
    assert_eq!((&size["drifted"], &drift["statistics"][0]["drifted"]), (&json!(true), &json!(false)));

    let releases = page.read("/api/v1/releases").await;
    let names: Vec<_> = releases["releases"].as_array().unwrap().iter().map(|r| (r["counter"].as_u64(), r["round"].as_u64())).collect();
    assert_eq!(names, [(Some(2), None), (Some(1), Some(1))]);
    let said = |counter, confirmed, refused| json!({ "counter": counter, "confirmed": confirmed, "trial": 0, "refused": refused });
    let newest = &releases["releases"][0];
    assert_eq!((&newest["share_percent"], &newest["waves"], &newest["complete"]), (&json!(25.0), &json!(2), &json!(false)));
    assert_eq!(releases["releases"][1]["complete"], true);
    assert_eq!(releases["models"], json!([said(0, 1, 0), said(1, 1, 0), said(2, 0, 1)]));

    let rounds = page.read("/api/v1/rounds").await;
    let [first, second] = rounds["rounds"].as_array().unwrap().as_slice() else { panic!("{rounds}") };
    assert_eq!((&first["candidate_ap"], &first["decision"], &first["released"]), (&json!(0.6), &json!("release"), &json!(1)));
    assert_eq!(
        (&second["running_ap"], &second["decision"], &second["reason"]),
        (&json!(0.5), &json!("refuse"), &json!("candidate AP 0.4"))
    );

    let skeleton = page.read("/api/v1/skeleton").await;
    assert_eq!(skeleton["names"][0], "left_hand");
    assert_eq!((&skeleton["sides"], &skeleton["edges"]), (&json!(["left", "right", "left", "right"]), &json!([[0, 2], [1, 3]])));

    let events = page.read("/api/v1/events").await;
    assert_eq!((&events["events"][0]["event"], &events["events"][1]["reason"]), (&json!("labels"), &json!(REASON)));
    let next = events["next"].as_u64().unwrap();
    assert_eq!(page.read(&format!("/api/v1/events?after={next}")).await, json!({ "events": [], "next": next }));
    page.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_are_found_by_device_score_and_agreement() {
    let page = Page::open(true, false).await;
    let ids = async |query: &str| {
        let found = page.read(&format!("/api/v1/labels{query}")).await;
        let ids: Vec<u64> = found["labels"].as_array().unwrap().iter().map(|label| label["id"].as_u64().unwrap()).collect();
        (ids, found["next"].as_u64())
    };
    assert_eq!(ids("").await, (vec![8, 7, 6, 5, 4, 3, 2, 1], None));
    assert_eq!(ids("?limit=3").await, (vec![8, 7, 6], Some(6)));
    assert_eq!(ids("?limit=3&before=6").await, (vec![5, 4, 3], Some(3)));
    assert_eq!(ids("?device=cam-2").await, (vec![8, 7, 6], None));
    assert_eq!(ids("?device=cam-1&limit=2&before=5").await, (vec![4, 3], Some(3)));
    assert_eq!(ids("?device=cam-9").await, (vec![], None));
    // Everybody scores 0.9, and the views agree.
    assert_eq!(ids("?min_score=0.85&min_agreement=0.9&limit=2").await, (vec![8, 7], Some(7)));
    assert_eq!(ids("?min_score=0.95").await, (vec![], None));
    assert_eq!(ids("?max_score=0.85").await, (vec![], None));
    assert_eq!(ids("?min_score=0.85&max_score=0.95&max_agreement=1&limit=1").await, (vec![8], Some(8)));
    assert_eq!(ids("?order=doubt&limit=2").await, (vec![8, 7], Some(7)));
    assert_eq!(ids("?order=doubt&limit=9&before=7&max_score=0.95").await, (vec![6, 5, 4, 3, 2, 1], None));

    let label = page.read("/api/v1/labels?limit=1").await["labels"][0].clone();
    assert_eq!((&label["device"], &label["model"], &label["frame"]), (&json!("cam-2"), &json!(1), &json!(true)));
    assert_eq!((&label["width"], &label["received_ms"]), (&json!(96), &json!(2000)));
    let person = &label["instances"][0];
    assert_eq!((&person["score"], &person["agreement"], &person["kept"]), (&json!(0.9), &json!(1.0), &json!(true)));
    assert_eq!((person["box"][1].as_f64(), person["keypoints"].as_array().unwrap().len()), (Some(8.0), skeleton().len()));
    assert_eq!(person["keypoints"][0].as_array().unwrap().len(), 4);

    let picture = page.get("/api/v1/labels/8/frame.jpg", &bearer(VIEWER)).await;
    assert_eq!(
        (picture.status, picture.header("content-type"), picture.header("x-content-type-options")),
        (200, Some("image/jpeg"), Some("nosniff"))
    );
    assert!(picture.body.starts_with(&[0xff, 0xd8]));
    assert_eq!(page.get("/api/v1/labels/9/frame.jpg", &bearer(VIEWER)).await.status, 404);

    for (path, expected) in [
        ("labels?min_score=2", "`min_score` is \"2\", expected 0 to 1"),
        ("labels?max_agreement=-1", "`max_agreement`"),
        ("labels?verdict=maybe", "`verdict` is \"maybe\", expected any, none, accepted, corrected or rejected"),
        ("labels?order=oldest", "`order` is \"oldest\", expected newest or doubt"),
        ("labels?limit=101", "expected 1 to 100"),
        ("labels?limit=0", "expected 1 to 100"),
        ("labels?before=x", "`before`"),
        ("labels?device=a%2Fb", "`device`"),
        ("labels?device=cam-1%27%20OR%201=1", "`device`"),
        (
            "labels?devise=cam-1",
            "expected one of device, min_score, max_score, min_agreement, max_agreement, verdict, order, before, limit",
        ),
        ("labels?limit=1&limit=2", "each parameter once"),
        ("labels/x/frame.jpg", "`id` is \"x\", expected a number"),
        ("events?after=-1", "`after`"),
        ("fleet?device=cam-1", "expected no parameters"),
    ] {
        let refused = page.get(&format!("/api/v1/{path}"), &bearer(VIEWER)).await;
        assert_eq!(refused.status, 400, "{path}");
        assert!(refused.error().contains(expected), "{path}: {}", refused.error());
    }
    page.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_numbers_are_for_supervisors() {
    let page = Page::open(true, false).await;
    assert_eq!((page.get("/healthz", "").await.status, page.get("/healthz", "").await.text()), (200, "ok\n".to_owned()));
    page.health.disconnected("connection refused by 10.0.0.9");
    let (told, known) = (page.get("/healthz", "").await, page.get("/healthz", &bearer(VIEWER)).await);
    assert_eq!((told.status, told.text()), (503, "1 things are wrong\n".to_owned()), "who has no token learns no address");
    assert_eq!((known.status, known.text()), (503, "broker: connection refused by 10.0.0.9\n".to_owned()));
    let metrics = page.get("/metrics", &bearer(VIEWER)).await;
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = metrics.text();
    for line in [
        "omnilabel_centre_labels_stored_total{device=\"cam-1\"} 5",
        "omnilabel_centre_labels_missing{device=\"cam-1\"} 1",
        "omnilabel_centre_device_online{device=\"cam-2\"} 0",
        "omnilabel_centre_drift{device=\"cam-1\",statistic=\"size\"} 0.413",
        "omnilabel_centre_drifted{device=\"cam-1\",statistic=\"people\"} 0",
        "omnilabel_centre_drifted{device=\"cam-1\",statistic=\"size\"} 1",
        "# TYPE omnilabel_centre_drift gauge",
        "omnilabel_centre_devices 2",
        "omnilabel_centre_devices_online 1",
        "omnilabel_centre_labels_committed_total{device=\"cam-1\"} 6",
        "omnilabel_centre_labels_lost{device=\"cam-1\"} 0",
        "omnilabel_centre_device_seen_timestamp_seconds{device=\"cam-2\"} 2",
        "omnilabel_centre_device_release{device=\"cam-1\"} 1",
        "omnilabel_centre_messages_rejected_total{reason=\"topic\"} 3",
        "omnilabel_centre_messages_rejected_total{reason=\"wire\"} 0",
        "omnilabel_centre_commits_total 1",
        "omnilabel_centre_commit_seconds_total 1.5",
        "omnilabel_centre_frames_refused_total 2",
        "omnilabel_centre_acks_total 1",
        "omnilabel_centre_rounds 2",
        "omnilabel_centre_rounds_decided{decision=\"refuse\"} 1",
        "omnilabel_centre_round_ap{model=\"candidate\"} 0.4",
        "omnilabel_centre_rollout_wave 1",
        "omnilabel_centre_rollout_waves 2",
        "omnilabel_centre_rollout_share 0.25",
        "omnilabel_centre_rollout_halted 0",
        "omnilabel_centre_release_newest 2",
        "omnilabel_centre_release_confirmed{release=\"1\"} 1",
        "omnilabel_centre_broker_connected 0",
        "# TYPE omnilabel_centre_labels_stored_total counter",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
    }
    let refused = |line: &&str| line.starts_with("omnilabel_centre_rollout_devices{") && line.ends_with("state=\"refused\"} 1");
    assert_eq!(text.lines().filter(refused).count(), 1, "cam-1 refused release 2, in one of its waves: {text}");
    let disk = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok()).unwrap();
    assert!(disk("omnilabel_centre_disk_size_bytes ") >= disk("omnilabel_centre_disk_free_bytes "), "{text}");
    page.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_that_is_gone_is_said() {
    let page = Page::open(false, false).await;
    let database = format!("sqlite://{}", page.world.config.state_dir.join("centre.sqlite").display());
    let pool = sqlx::SqlitePool::connect(&database).await.unwrap();
    for statement in ["ALTER TABLE meta RENAME TO lost_meta", "ALTER TABLE labels RENAME TO lost_labels"] {
        sqlx::query(statement).execute(&pool).await.unwrap();
    }
    let ill = page.get("/healthz", "").await;
    assert_eq!((ill.status, ill.text().contains("store: ")), (503, true), "{}", ill.text());
    let failed = page.get("/api/v1/labels", "").await;
    assert_eq!((failed.status, failed.error().contains("sqlite")), (500, false), "the log has the particulars: {}", failed.error());
    page.close().await;
}
