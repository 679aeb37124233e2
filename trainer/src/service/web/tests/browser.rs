//! The page in a real browser.

use super::*;
use std::process::Command;

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
