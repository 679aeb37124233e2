//! The page, to who may see it.

use super::*;

/// Status and body of what the page's server answers.
async fn get(port: u16, path: &str, headers: &str) -> (u16, Vec<u8>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let host = if headers.contains("Host:") { "" } else { "Host: localhost\r\n" };
    socket.write_all(format!("GET {path} HTTP/1.1\r\n{host}Connection: close\r\n{headers}\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    assert!(head.to_lowercase().contains("content-security-policy: default-src 'none'"), "{head}");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), answer[end + 4..].to_vec())
}

/// What a page holds after some seconds in a real browser.
fn browsed(url: &str) -> Option<String> {
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new("chromium");
    command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000", "--dump-dom", url]);
    let out = match command.arg(format!("--user-data-dir={}", profile.path().display())).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        out => out.unwrap(),
    };
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let dom = String::from_utf8_lossy(&out.stdout).into_owned();
    // The program's own words are no proof that it said them.
    let (before, rest) = dom.split_once("<script>").expect("the page");
    Some(before.to_owned() + rest.split_once("</script>").expect("its end").1)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_what_the_device_does_to_who_may_know() {
    let Some(broker) = Broker::start() else { return };
    let mut device = Device::provisioned(&broker, 0, 50.0, false);
    frames(&device.folder.path().join("frames"), 40);
    device.config.camera =
        Some(CameraConfig::Folder { path: device.folder.path().join("frames"), fps: 50.0, repeat: true, stop_at_end: false });
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let listen = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    device.config.web = Some(WebConfig { listen, ..WebConfig::default() });
    let (stop, run) = device.start();
    let start = Instant::now();
    let value = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    let state = loop {
        assert!(start.elapsed() < DEADLINE, "no label is shown");
        // The page may not be there yet.
        if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            let (status, body) = get(port, "/api/state", "").await;
            if status == 200 && value(&body)["outbox"]["committed"].as_u64() > Some(5) {
                break value(&body);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(
        (&state["device"], &state["cameras"][0]["name"], &state["cameras"][0]["state"]),
        (&"cam-1".into(), &"camera".into(), &"live".into())
    );
    assert_eq!((state["cameras"][0]["width"].as_u64(), state["model"]["phase"].as_str()), (Some(48), Some("idle")));
    assert_eq!(state["skeleton"]["names"].as_array().unwrap().len(), state["thresholds"]["keypoint"].as_array().unwrap().len());
    let label = loop {
        assert!(start.elapsed() < DEADLINE, "no frame is shown");
        match get(port, "/api/cameras/camera/label", "").await {
            (200, body) => break value(&body),
            (status, _) => assert_eq!(status, 404),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!((label["width"].as_u64(), label["height"].as_u64()), (Some(48), Some(32)));
    let (status, jpeg) = get(port, "/api/cameras/camera/frame", "").await;
    assert_eq!((status, Frame::decode("shown", &jpeg).unwrap().size), (200, Size { width: 48, height: 32 }));
    assert_eq!(get(port, "/api/cameras/camera/frame?id=99999", "").await.0, 404);
    assert_eq!(get(port, "/api/cameras/other/label", "").await.0, 404);
    assert_eq!(get(port, "/api/cameras/camera/frame?id=x", "").await.0, 400);
    assert_eq!(get(port, "/healthz", "").await, (200, b"ok\n".to_vec()));
    assert_eq!(get(port, "/", "Host: evil.example\r\n").await.0, 403, "a name that leads here is not this machine's");
    assert!(String::from_utf8(get(port, "/", "").await.1).unwrap().contains("<script>"));
    let url = format!("http://127.0.0.1:{port}/");
    match tokio::task::spawn_blocking(move || browsed(&url)).await.unwrap() {
        None => eprintln!("skipped: chromium is not installed"),
        Some(page) => {
            let expected = ["cam-1", "Labelling", "connected to broker"];
            assert!(expected.iter().all(|text| page.contains(text)), "the page shows {page}");
        }
    }
    let metrics = String::from_utf8(get(port, "/metrics", "").await.1).unwrap();
    for line in
        ["omnilabel_frames_skipped_total{reason=\"quota\"} 0", "omnilabel_camera_up{camera=\"camera\"} 1", "omnilabel_broker_connected 1"]
    {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    let seconds = metrics.lines().find_map(|line| line.strip_prefix("omnilabel_frame_seconds_count ")).unwrap();
    assert!(seconds.parse::<u64>().unwrap() > 5);
    stop.send_replace(true);
    run.await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err(), "the page ends with the device");

    let token = device.folder.path().join("token");
    std::fs::write(&token, "too short\n").unwrap();
    let guarded = WebConfig { listen, token_file: Some(token.clone()), pictures: false };
    device.config.web = Some(guarded);
    let said = format!("{:#}", device.start().1.await.unwrap().unwrap_err());
    assert!(said.contains("web.token_file") && said.contains("16"), "{said}");
    std::fs::write(&token, "0123456789abcdef0123\n").unwrap();
    // A folder that is not there: the page says that the camera is away.
    let cameras = ["a", "b"].map(|name| {
        let path = device.folder.path().join(if name == "a" { "frames" } else { "nowhere" });
        (name.to_owned(), CameraConfig::Folder { path, fps: 50.0, repeat: true, stop_at_end: false })
    });
    (device.config.camera, device.config.cameras) = (None, cameras.into());
    let (stop, run) = device.start();
    let known = "Authorization: Bearer 0123456789abcdef0123\r\n";
    let start = Instant::now();
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() || get(port, "/api/state", known).await.0 != 200 {
        assert!(start.elapsed() < DEADLINE, "no state is shown");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for path in ["/api/state", "/metrics", "/api/cameras/a/label", "/api/cameras/a/frame"] {
        assert_eq!(get(port, path, "").await.0, 401, "{path}");
        assert_eq!(get(port, path, "Authorization: Bearer 0123456789abcdef0124\r\n").await.0, 401, "{path}");
    }
    assert_eq!(get(port, "/", "Host: cam-1.example\r\n").await.0, 200, "the page asks for the token itself");
    assert_eq!(get(port, "/api/cameras/a/frame", known).await.0, 404, "no pictures are shown");
    let ill = loop {
        assert!(start.elapsed() < DEADLINE, "nobody misses camera b");
        match get(port, "/healthz", "").await {
            (503, body) => break String::from_utf8(body).unwrap(),
            (status, _) => assert_eq!(status, 200),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(!ill.contains("nowhere"), "who has no token learns no path: {ill}");
    let state = value(&get(port, "/api/state", known).await.1);
    let b = &state["cameras"][1];
    assert!(b["state"] == "away" && b["reason"].as_str().unwrap().contains("nowhere"), "{b}");
    stop.send_replace(true);
    run.await.unwrap().unwrap();
}
