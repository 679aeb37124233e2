//! What a file says, and what is wrong with one.

use super::*;

const GOOD: &str = r#"
    device = "cam-1"
    state_dir = "state"
    [broker]
    host = "localhost"
    site = "yard"
    [camera]
    type = "folder"
    path = "frames"
    loop = true
    [teacher]
    scales = [96, 128]
"#;

fn load(text: &str) -> Result<EdgeConfig, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("edge.toml");
    std::fs::write(&path, text).unwrap();
    let result = EdgeConfig::load(&path).map_err(|error| error.to_string());
    result.map(|mut config| {
        // So that results of two calls compare.
        config.state_dir = config.state_dir.strip_prefix(folder.path()).unwrap().to_owned();
        config
    })
}

#[test]
fn defaults_fill_what_is_not_given() {
    let config = load(GOOD).unwrap();
    assert_eq!((config.channel.as_str(), config.broker.port, config.publish.frames), ("stable", 1883, FramePolicy::Kept));
    assert_eq!(config.state_dir, Path::new("state"));
    assert!(matches!(config.camera, Some(CameraConfig::Folder { repeat: true, stop_at_end: false, .. })));
    let several = load(&GOOD.replace("[camera]", "[cameras.gate]")).unwrap();
    assert_eq!(several.cameras().iter().map(|(name, camera)| (*name, camera.kind())).collect::<Vec<_>>(), [("gate", "folder")]);
    let text = toml::to_string(&several).unwrap();
    assert!(text.contains("[cameras.gate]") && !text.contains("[camera]"), "{text}");
}

#[test]
fn a_detector_lies_beside_the_file() {
    let config = load(&GOOD.replace("[teacher]", "[teacher]\ndetector = \"finder\"")).unwrap();
    let detector = config.teacher.detector.clone().unwrap();
    assert!(detector.is_absolute() && detector.ends_with("finder"), "{}", detector.display());
    let text = toml::to_string(&config).unwrap();
    assert!(text.contains("detector = "), "{text}");
    assert!(!toml::to_string(&load(GOOD).unwrap()).unwrap().contains("detector"));
}

#[test]
fn every_refusal_names_the_key_and_what_was_expected() {
    let with = |from: &str, to: &str| load(&GOOD.replace(from, to)).unwrap_err();
    for (error, names) in [
        (load("device = \"a\"").unwrap_err(), ["state_dir", "missing"]),
        (with("[teacher]", "[teacher]\nscalse = [1]"), ["`teacher.scalse`", "scales"]),
        (with("loop = true", "lop = true"), ["lop", "loop"]),
        (with("site = \"yard\"", "site = \"yard\"\nusername = \"x\""), ["`broker.username`", "host"]),
        (with("device = \"cam-1\"", "device = \"cam-1\"\nname = \"x\""), ["`name`", "device"]),
        (with("\"cam-1\"", "\"cam/1\""), ["`device`", "A-Z"]),
        (with("\"cam-1\"", "\"release\""), ["`device`", "topic"]),
        (with("loop = true", "fps = 1e-300"), ["`camera.fps`", "0.001"]),
        (with("[96, 128]", "[96, 8]"), ["`teacher.scales`", "16 to 4096"]),
        (with("[96, 128]", "\"96\""), ["teacher.scales", "sequence"]),
        (with("[teacher]", "[teacher]\ndevice = \"gpu\""), ["teacher.device", "auto"]),
        (with("loop = true", "fps = 0"), ["`camera.fps`", "0.001 to 1000"]),
        (with("\"localhost\"", "\"10.0.0.7\""), ["[broker]", "allow_plain"]),
        (with("type = \"folder\"", "type = \"webcam\""), ["webcam", "mjpeg"]),
        (with("[camera]", "[cameras.a]\ntype = \"rtsp\"\nurl = \"http://x\"\n[camera]"), ["`camera`", "`cameras`"]),
        (with("[camera]", "[cameras.\"a/b\"]"), ["cameras.a/b", "A-Z"]),
        (with("[teacher]", "[policy]\nhours = [\"6-22\"]\n[teacher]"), ["policy.hours", "HH:MM-HH:MM"]),
        (with("[teacher]", "[web]\nlisten = \"0.0.0.0:80\"\n[teacher]"), ["`web.token_file`", "0.0.0.0:80"]),
        (with("[teacher]", "[policy]\nnovelty = 2.0\n[teacher]"), ["`policy.novelty`", "0 to 1"]),
        (with("[teacher]", "[publish]\nhome_assistant = true\n[teacher]"), ["`publish.home_assistant`", "json"]),
        (with("[teacher]", "[publish]\nuncertain_below = 7\n[teacher]"), ["`publish.uncertain_below`", "0 to 1"]),
        (with("device", "device device"), ["TOML", "device"]),
    ] {
        assert!(error.contains("edge.toml") && names.iter().all(|name| error.contains(name)), "{error} does not say {names:?}");
    }
    let head = &GOOD[..GOOD.find("[camera]").unwrap()];
    for (camera, names) in [
        ("type = \"rtsp\"", ["url", "missing"]),
        ("type = \"rtsp\"\nurl = \"http://x\"", ["`cameras.gate.url`", "rtsp://"]),
        ("type = \"rtsp\"\nurl = \"rtsp://x/a b\"", ["`cameras.gate.url`", "rtsp://"]),
        ("type = \"rtsp\"\nurl = \"rtsp://x\"\nstall_secs = 0", ["`cameras.gate.stall_secs`", "0.1"]),
        ("type = \"gstreamer\"\npipeline = \" \"", ["`cameras.gate.pipeline`", "empty"]),
        ("type = \"gstreamer\"\npipeline = 'filesrc location=\"x'", ["`cameras.gate.pipeline`", "quotation"]),
        ("type = \"video\"\npath = 'a\"b'", ["`cameras.gate.path`", "quotation"]),
        ("type = \"video\"\npath = \"a\"\nfps = 2.5", ["`cameras.gate.fps`", "whole"]),
        ("type = \"v4l2\"\ndevice = \"/dev/video0\"\nwidth = 3", ["cameras.gate.width", "device"]),
    ] {
        let error = load(&format!("{head}[cameras.gate]\n{camera}\n")).unwrap_err();
        assert!(names.iter().all(|name| error.contains(name)), "{error} does not say {names:?}");
    }
}
