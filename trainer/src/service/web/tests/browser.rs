//! The page in a real browser.

use super::devtools::Browser;
use super::*;
use crate::service::steer::Steering;
use omnilabel_bundle::{Bundle, GoldenFrame, seal};
use std::process::Command;
use tokio::runtime::Handle;

/// What the page holds after some seconds; `None`, with a message, where chromium is not installed.
fn browsed(url: &str, width: u32) -> Option<String> {
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new("chromium");
    command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000", "--dump-dom"]);
    command.arg(format!("--window-size={width},900")).arg(format!("--user-data-dir={}", profile.path().display())).arg(url);
    let out = match command.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: chromium is not installed");
            return None;
        }
        out => out.unwrap(),
    };
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let dom = String::from_utf8_lossy(&out.stdout).into_owned();
    // The program's own words are no proof that it said them.
    let (before, rest) = dom.split_once("<script>").expect("the page");
    Some(before.to_owned() + rest.split_once("</script>").expect("its end").1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_the_fleet_and_takes_words_of_devices_as_text() {
    let page = Page::open(false, false).await;
    for (tab, width, expected) in [
        (
            "fleet",
            1400,
            vec!["cam-1", "cam-2", "1 of 2", "Up to date", "&lt;img src=x onerror=alert(1)&gt;", "labels have changed: size 0.62 → 0.31"],
        ),
        ("fleet", 390, vec!["cam-1", "data-name=\"Stored\""]),
        ("releases", 1400, vec!["of round 1", "by-hand", "wave 1 of 2, 25 % of the fleet", "refused: 1", "first model: 1"]),
        ("rounds", 1400, vec!["class=\"line candidate\"", "release 1", "refused", "candidate AP 0.4"]),
        ("labels", 390, vec!["api/v1/labels/8/frame.jpg", "viewBox=\"0 0 96 96\"", "class=\"limb\"", "left_hand 0.90", "cam-2"]),
        ("log", 1400, vec!["device model", "&lt;script&gt;alert(2)&lt;/script&gt;"]),
    ] {
        let url = format!("http://{}/#{tab}", page.address);
        let Some(shown) = tokio::task::spawn_blocking(move || browsed(&url, width)).await.unwrap() else { break };
        for text in expected {
            assert!(shown.contains(text), "{text} is not in {tab}: {shown}");
        }
        assert!(!shown.contains("<img src=\"x\"") && !shown.contains("onerror=\"") && !shown.contains("page failed"), "{shown}");
    }
    page.close().await;

    let page = Page::open(true, true).await;
    let url = format!("http://{}/", page.address);
    if let Some(shown) = tokio::task::spawn_blocking(move || browsed(&url, 1400)).await.unwrap() {
        assert!(shown.contains("A token is needed") && !shown.contains("cam-1"), "{shown}");
    }
    page.close().await;
}

/// The people that the centre has of a label, and the version of the word on it.
fn told(browser: &mut Browser, label: u64) -> Value {
    browser.value(&format!("fetch('api/v1/labels/{label}/verdict').then((answer) => answer.json())"))
}

fn is_shown(label: u64) -> String {
    format!("review.label.id === {label} && !review.busy && document.querySelectorAll('#sheet-marks .joint').length > 0")
}

const DOT: &str = "#sheet-marks [data-person='0'][data-keypoint='1']";

/// Reviews labels as a person would, with real movements of a mouse and a finger.
fn review(mut browser: Browser, url: &str) {
    let browser = &mut browser;
    browser.go(url);
    browser.until("!document.getElementById('login').hidden");
    browser.value(&format!("document.getElementById('token').value = '{OPERATOR}'; document.getElementById('login').requestSubmit()"));
    browser.until("document.querySelectorAll('#gallery figure').length === 8 && !document.getElementById('review-start').hidden");
    let start = browser.middle("#review-start");
    browser.click(start);
    browser.until(&is_shown(8));

    // A keypoint is dragged; with a click on it, it is hidden; undone is the last change alone.
    let before = told(browser, 8)["proposed"][0].clone();
    let zoom = browser.value("review.zoom").as_f64().unwrap();
    assert!(zoom > 4.0, "96 pixels fill the sheet: {zoom}");
    let from = browser.middle(DOT);
    browser.drag(from, (from.0 + 60.0, from.1 + 45.0));
    let dragged = browser.middle(DOT);
    assert!((dragged.0 - from.0 - 60.0).abs() < 0.5 && (dragged.1 - from.1 - 45.0).abs() < 0.5, "{from:?} -> {dragged:?}");
    browser.click(dragged);
    browser.key("v");
    assert_eq!(browser.value("review.people[0].keypoints[1]"), json!([0, 0, 0]), "visible, hidden, not there");
    browser.key("u");
    let png = browser.shot("review");
    let shot = image::load_from_memory(&png).unwrap();
    assert_eq!((shot.width(), shot.height()), (1400, 900));
    browser.dark(true);
    browser.shot("review-dark");
    browser.dark(false);
    // Accepting it as the device made it would lose what was changed.
    browser.key("a");
    browser.until("document.getElementById('review-note').textContent.startsWith('You changed it')");
    browser.key("s");
    browser.until(&is_shown(7));
    let saved = told(browser, 8);
    assert_eq!(
        (&saved["version"], &saved["verdict"]["verdict"], &saved["verdict"]["role"]),
        (&json!(1), &json!("corrected"), &json!("operator"))
    );
    let after = &saved["verdict"]["instances"][0];
    let at = |person: &Value, axis: usize| person["keypoints"][1][axis].as_f64().unwrap();
    for (axis, pixels) in [(0, 60.0), (1, 45.0)] {
        assert!((at(after, axis) - at(&before, axis) - pixels / zoom).abs() < 0.1, "{before} -> {after}");
    }
    assert_eq!((&after["keypoints"][1][2], &after["keypoints"][0], &after["box"]), (&json!(1), &before["keypoints"][0], &before["box"]));
    browser.until("document.querySelector('#gallery figure').textContent.includes('corrected')");

    // Verdicts by keys, and the way through the labels.
    browser.key("a");
    browser.until(&is_shown(6));
    browser.key("r");
    browser.until(&is_shown(5));
    browser.key("ArrowLeft");
    browser.until(&is_shown(6));
    browser.key("ArrowRight");
    browser.until(&is_shown(5));
    for (label, verdict) in [(7, "accepted"), (6, "rejected")] {
        assert_eq!(told(browser, label)["verdict"]["verdict"], verdict);
    }
    assert_eq!(told(browser, 7)["verdict"]["instances"], told(browser, 7)["proposed"]);

    // A second person, one keypoint after another, of which the last is not there; closer by the wheel first.
    let middle = browser.middle("#sheet-frame");
    browser.wheel(middle);
    browser.until(&format!("review.zoom > {}", zoom * 1.5));
    browser.key("0");
    browser.key("n");
    for (dx, dy, name) in [(-100.0, -50.0, "left hand"), (100.0, -50.0, "right hand"), (-100.0, 150.0, "left foot")] {
        browser.until(&format!("document.getElementById('review-note').textContent.includes('{name}')"));
        browser.click((middle.0 + dx, middle.1 + dy));
    }
    browser.shot("review-placing");
    browser.key("n");
    browser.until("review.placing === null && document.querySelectorAll('#review-people .person').length === 2");
    let corner = browser.middle("#sheet-marks .corner");
    browser.drag(corner, (corner.0 - 20.0, corner.1 - 20.0));
    browser.shot("review-person");
    browser.key("s");
    browser.until(&is_shown(4));
    let saved = told(browser, 5)["verdict"]["instances"][1].clone();
    let (x1, y1) = (48.0 - 100.0 / zoom, 48.0 - 50.0 / zoom);
    let near = |found: &Value, expected: f64| assert!((found.as_f64().unwrap() - expected).abs() < 0.3, "{saved}: {expected}");
    near(&saved["keypoints"][0][0], x1);
    near(&saved["keypoints"][0][1], y1);
    let room = 2.0 + 0.1 * (200.0 / zoom);
    near(&saved["box"][0], x1 - room - 20.0 / zoom);
    near(&saved["box"][3], 48.0 + 150.0 / zoom + room);
    assert_eq!(saved["keypoints"].as_array().unwrap().iter().map(|k| k[2].as_u64().unwrap()).collect::<Vec<_>>(), [2, 2, 2, 0]);

    // With a finger, on a small screen.
    browser.resize(390, 800);
    browser.until("review.zoom < 4.2");
    let zoom = browser.value("review.zoom").as_f64().unwrap();
    let before = told(browser, 4)["proposed"][0].clone();
    let from = browser.middle(DOT);
    browser.drag_by_touch(from, (from.0 - 30.0, from.1 + 20.0));
    let shown = browser.value("review.people[0].keypoints[1]");
    assert!((shown[0].as_f64().unwrap() - at(&before, 0) + 30.0 / zoom).abs() < 0.3, "{before} -> {shown}");
    browser.shot("review-small");
    browser.key("s");
    browser.until(&is_shown(3));

    // Somebody else is faster: what he said is told, and holds until it is said again.
    browser.resize(1400, 900);
    let other = "fetch('api/v1/labels/3/verdict', { method: 'PUT', body: JSON.stringify({ version: 0, verdict: 'rejected' }), \
                 headers: { 'Content-Type': 'application/json', 'X-CSRF-Token': session.csrf } }).then((answer) => answer.status)";
    assert_eq!(browser.value(other), 200);
    browser.key("a");
    browser.until("document.getElementById('review-note').textContent.includes('Somebody else judged it meanwhile: rejected')");
    assert_eq!(told(browser, 3)["verdict"]["verdict"], "rejected");
    browser.key("a");
    browser.until(&is_shown(2));
    assert_eq!((&told(browser, 3)["verdict"]["verdict"], &told(browser, 3)["version"]), (&json!("accepted"), &json!(2)));

    // Placing ends first, then the review.
    browser.key("n");
    browser.until("review.placing !== null");
    browser.key("Escape");
    browser.until("review.placing === null && document.getElementById('review').open");
    browser.key("Escape");
    browser.until("!document.getElementById('review').open");
    browser.shot("gallery");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_puts_labels_right_by_mouse_finger_and_keyboard() {
    let page = Page::open(true, true).await;
    let url = format!("http://{}/#labels", page.address);
    let reviewed = move || {
        if let Some(browser) = Browser::open(1400, 900) {
            review(browser, &url);
        }
    };
    tokio::task::spawn_blocking(reviewed).await.unwrap();
    page.close().await;
}

/// A page that steers its centre's releases in earnest: release 2 goes out by waves, and release 1 has a bundle to go back to.
async fn in_earnest() -> (Page, Store) {
    let mut world = World::new();
    let folder = world.dir.path().to_owned();
    let web = &mut world.config.web;
    web.bind = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    web.connections = PLACES;
    web.viewer_token_file = token_file(&folder, "viewer.token", VIEWER);
    web.operator_token_file = token_file(&folder, "operator.token", OPERATOR);
    let now = crate::service::events::now_ms();
    let store = populate(&world, now).await;
    let bundle = world.config.model.running.clone();
    let mut manifest = Bundle::open(&bundle).unwrap().manifest().clone();
    std::fs::create_dir(bundle.join("golden")).unwrap();
    let golden = |end: &str| format!("golden/one.{end}");
    for end in ["png", "json"] {
        std::fs::write(bundle.join(golden(end)), []).unwrap();
    }
    manifest.golden.push(GoldenFrame { image: golden("png"), detections: golden("json") });
    seal(&bundle, manifest).unwrap();
    let change = sqlx::query("UPDATE releases SET bundle = $1 WHERE counter = 1").bind(bundle.to_str().unwrap());
    change.execute(store.pool()).await.unwrap();

    let events = Arc::new(EventLog::open(&world.config.state_dir).unwrap());
    let control = Arc::new(Steering { config: world.config.clone(), store: store.clone(), events });
    let server = crate::service::web::open(&world.config).await.unwrap().unwrap();
    let (address, health) = (server.address(), Arc::new(Health::default()));
    let (stop, stopping) = watch::channel(false);
    let (writer, health_of) = (store.clone(), Arc::clone(&health));
    let centre = Centre { store: store.clone(), writer, skeleton: skeleton(), keypoint_threshold: 0.2, health: health_of, control };
    let served = tokio::spawn(server.serve(centre, stopping));
    (Page { world, now, address, health, wishes: Arc::default(), stop, served }, store)
}

/// Clicks a button of the newest release.
fn press(browser: &mut Browser, words: &str) {
    let buttons = "[...document.querySelectorAll('#releases tr:first-child .acts button')]";
    browser.until(&format!("{buttons}.some((button) => button.textContent === '{words}')"));
    browser.value(&format!("{buttons}.find((button) => button.textContent === '{words}').id = 'pressed'; 0"));
    let middle = browser.middle("#pressed");
    browser.click(middle);
}

/// Halts a release that goes out by waves, and so on, as an operator would, and looks at the page and into the store after each.
fn order(mut browser: Browser, url: &str, store: &Store, handle: &Handle) {
    let browser = &mut browser;
    let newest = || {
        let release = handle.block_on(store.latest_release()).unwrap().unwrap();
        (release.counter(), release.waves().unwrap())
    };
    browser.go(url);
    browser.until("!document.getElementById('login').hidden");
    browser.value(&format!("document.getElementById('token').value = '{OPERATOR}'; document.getElementById('login').requestSubmit()"));
    browser.until("document.querySelectorAll('#releases .acts button').length === 3");
    browser.until("document.querySelector('#releases tr:first-child').textContent.includes('wave 1 of 2, 25 % of the fleet')");
    // The browser's own dialog would hold up the page, and who drives it: the answer is given in its place.
    browser.value("window.testAnswer = false; window.testAsked = []; 0");
    browser.value("window.confirm = (question) => { testAsked.push(question); return testAnswer; }; 0");
    press(browser, "Halt");
    browser.until("testAsked.length === 1");
    let (counter, before) = newest();
    assert_eq!((counter, before.halted, before.wave), (2, None, 0), "who says no changes nothing");
    assert_eq!(browser.value("document.getElementById('told').hidden"), true);
    browser.value("testAnswer = true");

    let by = Some("by an operator");
    for (words, action, question, shown, halted, wave) in [
        ("Halt", "halt", "Offer release 2 to no further device?", "halted: by an operator", by, 0),
        ("Resume", "resume", "Offer release 2 to the devices again?", "wave 1 of 2, 25 % of the fleet", None, 0),
        ("Promote", "promote", "Offer release 2 to the next wave without proof of this one?", "wave 2 of 2, 100 % of the fleet", None, 1),
    ] {
        press(browser, words);
        browser.until(&format!("document.getElementById('told').textContent === 'Done: POST /api/v1/releases/2/{action}'"));
        browser.until(&format!("document.querySelector('#releases tr:first-child').textContent.includes('{shown}')"));
        assert_eq!(browser.value("testAsked.at(-1)"), question);
        let (counter, waves) = newest();
        assert_eq!((counter, waves.halted.as_deref(), waves.wave, waves.complete), (2, halted, wave, false), "{words}");
        browser.shot(&format!("release-{action}"));
    }

    press(browser, "Recall");
    browser.until("document.getElementById('told').textContent === 'Done: POST /api/v1/releases/2/recall'");
    browser.until("document.querySelector('#releases tr:first-child').textContent.includes('recall of 2: round-1')");
    browser.until("document.querySelector('#releases tr:nth-child(2)').textContent.includes('halted: recalled by an operator')");
    assert!(browser.value("testAsked.at(-1)").as_str().unwrap().starts_with("Recall release 2?"));
    let (counter, waves) = newest();
    assert_eq!((counter, waves.halted, waves.complete), (3, None, true), "for all at once");
    let notes = handle.block_on(store.releases(2)).unwrap();
    assert_eq!((notes[0].name.as_str(), notes[1].counter), ("recall of 2: round-1", 2));
    assert_eq!(notes[1].waves().halted.as_deref(), Some("recalled by an operator"));
    let buttons = "[...document.querySelectorAll('#releases .acts button')].map((button) => button.textContent)";
    assert_eq!(browser.value(buttons), json!(["Halt", "Recall"]), "of the newest alone, which is out");
    browser.shot("release-recall");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_halts_resumes_promotes_and_recalls_a_release() {
    let (page, store) = in_earnest().await;
    let url = format!("http://{}/#releases", page.address);
    let handle = Handle::current();
    let ordered = move || {
        let Some(browser) = Browser::open(1400, 900) else { return false };
        order(browser, &url, &store, &handle);
        true
    };
    if tokio::task::spawn_blocking(ordered).await.unwrap() {
        let audit = page.audit();
        let done = audit.iter().filter(|line| line["outcome"] == "done" && line["role"] == "operator");
        let done: Vec<&str> = done.filter_map(|line| line["request"].as_str()?.strip_prefix("POST /api/v1/releases/")).collect();
        assert_eq!(done, ["2/halt", "2/resume", "2/promote", "2/recall"]);
    }
    page.close().await;
}
