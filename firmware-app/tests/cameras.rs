//! Cameras behind GStreamer, against real streams: an RTSP server on loopback, test sources, video files. Skipped without GStreamer.
#![allow(clippy::unwrap_used)]

use omnilabel_edge::camera::{Camera, CameraEvent, Shot, gstreamer, open};
use omnilabel_edge::config::{CameraConfig, Transport};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A camera of a test, whose `progress` file lies in `folder`.
fn camera(config: &CameraConfig, folder: &Path) -> Box<dyn Camera> {
    open(config, &folder.join("progress")).unwrap()
}

fn installed() -> bool {
    gstreamer::installed().inspect_err(|error| eprintln!("skipped: {error}")).is_ok()
}

fn shot(event: CameraEvent) -> Shot {
    match event {
        CameraEvent::Shot(shot) => *shot,
        event => panic!("expected a frame, found {event:?}"),
    }
}

fn lost(event: CameraEvent) -> String {
    match event {
        CameraEvent::Lost { reason, .. } => reason,
        event => panic!("expected that the camera is away, found {event:?}"),
    }
}

fn pipeline(text: &str, fps: f64, stall_secs: f64) -> CameraConfig {
    CameraConfig::Gstreamer { pipeline: text.to_owned(), fps, stall_secs }
}

/// The RTSP server of `tests/python`, and its two ports.
struct Server {
    child: Child,
    ports: [u16; 2],
}

impl Server {
    fn start() -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/python/rtsp_server.py");
        // Both at once, so that they differ.
        let sockets = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = [0, 1].map(|index: usize| sockets[index].local_addr().unwrap().port());
        drop(sockets);
        let mut command = Command::new("/usr/bin/python3");
        command.arg(script).args(ports.map(|port| port.to_string())).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().ok()?;
        let mut said = String::new();
        BufReader::new(child.stdout.take()?).read_line(&mut said).unwrap();
        let server = Self { child, ports };
        if said.starts_with("listening") {
            Some(server)
        } else {
            eprintln!("skipped: the RTSP server needs Debian's python3-gi and gir1.2-gst-rtsp-server-1.0");
            None
        }
    }

    fn camera(&self, port: usize, path: &str, stall_secs: f64) -> CameraConfig {
        let (user, port) = path.split_once('@').map_or(("", self.ports[port]), |_| ("u:p@", self.ports[port]));
        let path = path.trim_start_matches('@');
        CameraConfig::Rtsp {
            url: format!("rtsp://{user}127.0.0.1:{port}/{path}"),
            fps: 10.0,
            stall_secs,
            transport: Transport::Tcp,
            latency_ms: 50,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the brightest pixels' middle lies.
fn ball(shot: &Shot) -> (f32, f32) {
    let width = shot.frame.size.width as usize;
    let bright = shot.frame.rgb.chunks_exact(3).enumerate().filter(|(_, pixel)| pixel[1] > 150).map(|(at, _)| (at % width, at / width));
    let (mut x, mut y, mut count) = (0, 0, 0);
    bright.for_each(|(column, row)| (x, y, count) = (x + column, y + row, count + 1));
    (x as f32 / count.max(1) as f32, y as f32 / count.max(1) as f32)
}

#[test]
fn an_rtsp_camera_streams_and_its_password_is_not_told() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = installed().then(Server::start).flatten() else { return };
    let mut open = camera(&server.camera(0, "ball", 30.0), folder.path());
    assert!(open.is_live());
    let shots: Vec<Shot> = (0..8).map(|_| shot(open.next())).collect();
    assert!(shots.iter().all(|shot| (shot.frame.size.width, shot.frame.size.height) == (64, 48) && shot.jpeg.is_none()));
    assert!(shots.windows(2).all(|pair| pair[0].id < pair[1].id));
    let (first, last) = (ball(&shots[0]), ball(&shots[7]));
    assert!((first.0 - last.0).hypot(first.1 - last.1) > 1.0, "the ball moves: {first:?} {last:?}");

    let said = lost(camera(&server.camera(1, "ball", 30.0), folder.path()).next());
    assert!(said.contains("401") || said.to_lowercase().contains("authorized"), "{said}");
    let known = shot(camera(&server.camera(1, "@ball", 30.0), folder.path()).next());
    assert!(known.name.contains("127.0.0.1") && !known.name.contains("u:p"), "{}", known.name);
    let said = lost(camera(&server.camera(0, "@nothing?password=p7", 30.0), folder.path()).next());
    assert!(said.contains("Not") && !said.contains("u:p") && !said.contains("p7"), "{said}");
}

#[test]
fn a_stream_that_stalls_and_stays_connected_is_opened_anew() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = installed().then(Server::start).flatten() else { return };
    let mut stalls = camera(&server.camera(0, "stalls", 3.0), folder.path());
    for round in 0..2 {
        let mut frames = 0;
        let reason = loop {
            match stalls.next() {
                CameraEvent::Shot(_) => frames += 1,
                event => break lost(event),
            }
        };
        assert!((1..=20).contains(&frames), "round {round}: {frames} frames");
        assert!(reason.contains("no frame for 3s"), "{reason}");
    }
}

/// The process that runs a pipeline with this text.
fn process(text: &str) -> Option<u32> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").contains(text)
    })
}

#[test]
fn a_pipeline_that_dies_is_started_anew_and_what_is_wrong_with_one_is_told() {
    if !installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // The size finds its process.
    let text = "videotestsrc is-live=true ! video/x-raw,width=86,height=42,framerate=30/1";
    let mut test = camera(&pipeline(text, 5.0, 30.0), folder.path());
    let shots: Vec<Shot> = (0..5).map(|_| shot(test.next())).collect();
    assert_eq!((shots[0].frame.size.width, shots[0].frame.size.height), (86, 42));
    let gaps: Vec<u64> = shots.windows(2).map(|pair| pair[1].captured_ms - pair[0].captured_ms).collect();
    assert!(gaps.iter().sum::<u64>() >= 4 * 200 - 100, "5 frames per second at most: {gaps:?}");
    let pid = process("width=86,height=42").expect("the pipeline runs");
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
    // Frames that it had written come first.
    let reason = (0..10).find_map(|_| match test.next() {
        CameraEvent::Shot(_) => None,
        event => Some(lost(event)),
    });
    assert!(reason.is_some_and(|reason| reason.contains("signal: 9")));
    assert_eq!(shot(test.next()).frame.size.width, 86);
    drop(test);
    assert_eq!(process("width=86,height=42"), None, "no pipeline stays behind");

    for (text, expect) in [
        ("nosuchsrc", "no element \"nosuchsrc\""),
        ("videotestsrc is-live=true ! video/x-raw,format=NONE", "NONE"),
        ("v4l2src device=/dev/video99 ! decodebin", "/dev/video99"),
        ("audiotestsrc ! audio/x-raw", "link"),
        ("filesrc location=\"/no such file\" ! decodebin", "No such file"),
    ] {
        let said = lost(camera(&pipeline(text, 5.0, 30.0), folder.path()).next());
        assert!(said.contains(expect), "{said:?} does not say {expect:?}");
    }
    let v4l2 = CameraConfig::V4l2 { device: "/dev/video99".into(), fps: 5.0, stall_secs: 30.0 };
    assert!(lost(camera(&v4l2, folder.path()).next()).contains("No such file"));
}

/// A video of 30 frames of 4:3 at 10 per second, motion JPEG in AVI.
fn video(folder: &Path, width: u32) -> PathBuf {
    let path = folder.join("a video.avi");
    let sink = format!("location=\"{}\"", path.display());
    let size = format!("width={width},height={}", width * 3 / 4);
    let source = format!("videotestsrc num-buffers=30 pattern=ball ! video/x-raw,{size},framerate=10/1 ! jpegenc ! avimux ! filesink");
    let status = Command::new("gst-launch-1.0").arg("--quiet").args(source.split(' ')).arg(sink).status().unwrap();
    assert!(status.success());
    path
}

#[test]
fn a_video_whose_pipeline_is_killed_goes_on_where_it_was() {
    if !installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // Larger than what lies in pipes and buffers, so that it is killed in the middle.
    let path = video(folder.path(), 640);
    let mut camera = camera(&CameraConfig::Video { path: path.clone(), fps: 10.0, stop_at_end: true }, folder.path());
    let mut seen: Vec<u64> = (0..3).map(|_| shot(camera.next()).id).collect();
    let pid = process(path.to_str().unwrap()).expect("the pipeline runs");
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
    let mut losses = 0;
    loop {
        match camera.next() {
            CameraEvent::End => break,
            CameraEvent::Lost { .. } => losses += 1,
            event => seen.push(shot(event).id),
        }
    }
    assert_eq!((losses, seen), (1, (1..=30).collect()));
}

#[test]
fn a_video_is_played_frame_by_frame_goes_on_where_it_was_and_ends() {
    if !installed() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = video(folder.path(), 64);
    let config = |fps: f64| CameraConfig::Video { path: path.clone(), fps, stop_at_end: true };
    let play = |fps: f64| {
        let mut camera = camera(&config(fps), folder.path());
        let shots: Vec<Shot> = std::iter::from_fn(|| match camera.next() {
            CameraEvent::End => None,
            event => Some(shot(event)),
        })
        .collect();
        (camera, shots)
    };
    let (played, all) = play(10.0);
    assert!(!played.is_live());
    assert_eq!(
        all.iter().map(|shot| (shot.id, shot.position.unwrap())).collect::<Vec<_>>(),
        (1..=30).map(|n| (n as u64, n)).collect::<Vec<_>>()
    );
    let (_, some) = play(5.0);
    assert!((15..=16).contains(&some.len()), "{} of 30 frames at half the rate", some.len());
    let (_, few) = play(0.5);
    assert!((1..=3).contains(&few.len()), "{} of 3 s at one in two seconds", few.len());

    let mut progress = played.progress().unwrap();
    progress.without_label(12);
    progress.settle(1);
    let (_, rest) = play(10.0);
    assert_eq!(rest.first().map(|shot| shot.id), Some(13));
    assert_eq!(rest.last().map(|shot| &shot.frame), all.last().map(|shot| &shot.frame), "the same frames as without a stop");
    let (_, slower) = play(5.0);
    assert_eq!(slower.first().map(|shot| shot.id), Some(1), "frame 12 of another rate is another frame");

    // Another file begins at its first frame; one that is torn ends with what is readable and says so.
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let (_, torn) = play(10.0);
    assert!((5..30).contains(&torn.len()), "{} frames of half a file", torn.len());
    std::fs::write(&path, "no video").unwrap();
    let mut broken = camera(&config(10.0), folder.path());
    let CameraEvent::Bad { reason, .. } = broken.next() else { panic!("a file without a video was played") };
    assert!(reason.contains("a video.avi"), "{reason}");
    assert_eq!(broken.next(), CameraEvent::End);
    std::fs::remove_file(&path).unwrap();
    let error = open(&config(10.0), &folder.path().join("progress")).err().expect("no file, no camera").to_string();
    assert!(error.contains("a video.avi"), "{error}");
}
