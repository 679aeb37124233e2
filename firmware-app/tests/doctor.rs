//! `doctor` on boxes with something wrong: each is found and named, and what is well is said to be.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_omnilabel-edge");

struct Device {
    folder: tempfile::TempDir,
    port: u16,
}

impl Device {
    /// Provisioned with the shipped model; its camera is a folder of one picture, its broker's port is closed.
    fn new() -> Self {
        let (folder, zoo) = (tempfile::tempdir().unwrap(), zoo());
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("public"), "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a").unwrap();
        let install = [
            ["model", "install", "--bundle"].map(PathBuf::from).to_vec(),
            vec![zoo.clone(), "--data-dir".into(), at("state"), "--root-key".into(), at("public")],
        ];
        assert!(Command::new(PROGRAM).args(install.concat()).output().unwrap().status.success());
        std::fs::create_dir(at("frames")).unwrap();
        std::fs::copy(zoo.join("golden/frame-1.png"), at("frames/1.png")).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let device = Self { folder, port };
        device.configure("");
        device
    }

    fn configure(&self, more: &str) {
        let text = format!(
            "device = \"cam-1\"\nstate_dir = \"state\"\n[broker]\nhost = \"127.0.0.1\"\nport = {}\nsite = \"yard\"\n[cameras.a]\ntype = \
             \"folder\"\npath = \"frames\"\n{more}",
            self.port
        );
        std::fs::write(self.folder.path().join("edge.toml"), text).unwrap();
    }

    fn doctor(&self, arguments: &[&str]) -> Output {
        Command::new(PROGRAM).arg("doctor").arg("--config").arg(self.folder.path().join("edge.toml")).args(arguments).output().unwrap()
    }

    /// Verdict, what was said and advice of each thing.
    fn findings(&self) -> BTreeMap<String, (String, String, bool)> {
        let out = self.doctor(&["--json"]);
        let list: Vec<serde_json::Value> = serde_json::from_slice(&out.stdout).unwrap();
        let text = |finding: &serde_json::Value, key: &str| finding[key].as_str().unwrap().to_owned();
        let bad = list.iter().any(|finding| finding["verdict"] == "bad");
        assert_eq!(out.status.success(), !bad, "{}", String::from_utf8_lossy(&out.stdout));
        list.iter().map(|f| (text(f, "what"), (text(f, "verdict"), text(f, "said"), f.get("advice").is_some()))).collect()
    }
}

fn zoo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/zoo/nano-scenes")
}

#[test]
fn what_is_wrong_with_a_box_is_found_and_named() {
    let device = Device::new();
    let check = |what: &str, verdict: &str, expect: &str| {
        let findings = device.findings();
        let (found, said, advised) = findings.get(what).unwrap_or_else(|| panic!("nothing about {what}: {findings:?}"));
        assert!(found == verdict && said.contains(expect), "{what} is {found}: {said:?}, expected {verdict} and {expect:?}");
        assert_eq!(*advised, verdict != "good", "{what}");
    };
    check("model", "good", "golden frames");
    check("speed", "good", "by 2 views");
    check("camera a", "good", "a frame of");
    check("clock", "good", "");
    check("state folder", "good", "does not run");
    check("broker", "bad", &device.port.to_string());
    let said = String::from_utf8(device.doctor(&[]).stdout).unwrap();
    assert!(said.contains("BAD   broker") && said.contains("-> "), "{said}");

    device.configure("[cameras.b]\ntype = \"folder\"\npath = \"nowhere\"\n");
    check("camera b", "bad", "nowhere");
    check("camera a", "good", "a frame of");
    device.configure("[cameras.b]\ntype = \"v4l2\"\ndevice = \"/dev/video99\"\n");
    // Without GStreamer that is what is missing.
    check("camera b", "bad", "");
    device.configure("[web]\ntoken_file = \"token\"\n");
    check("token", "bad", "token");
    std::fs::write(device.folder.path().join("token"), "0123456789abcdef").unwrap();
    let mode = |mode| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(device.folder.path().join("token"), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o644);
    check("token", "warning", "read by others");
    mode(0o600);
    check("token", "good", "owner's alone");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    device.configure(&format!("[web]\nlisten = \"{}\"\n", taken.local_addr().unwrap()));
    check("page", "bad", "web.listen");
    drop(taken);
    check("page", "good", "free");
    device.configure("");
    std::fs::write(device.folder.path().join("state/outbox"), "").unwrap();
    check("outbox", "bad", "expected a folder");
    std::fs::remove_file(device.folder.path().join("state/outbox")).unwrap();

    let weights = device.folder.path().join("state/a/weights.safetensors");
    let slot = if weights.exists() { weights } else { device.folder.path().join("state/b/weights.safetensors") };
    let mut bytes = std::fs::read(&slot).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&slot, bytes).unwrap();
    check("model", "bad", "weights.safetensors");

    device.configure("[teacher]\nscalse = [96]\n");
    check("configuration", "bad", "teacher.scalse");
    std::fs::remove_dir_all(device.folder.path().join("state")).unwrap();
    device.configure("");
    check("state folder", "bad", "not there");
    std::fs::write(device.folder.path().join("state"), "").unwrap();
    check("state folder", "bad", "is a file");
    std::fs::remove_file(device.folder.path().join("state")).unwrap();
    check("root key", "bad", "root.pub");
}
