//! The device's package: the same bytes twice, what is in it and what it needs, that its program and its scripts do what they say. Its unit
//! is in `units.rs`.

use omnilabel_tests::peers::{has, program, root};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const NAME: &str = "omnilabel-edge";

fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn succeed(command: &mut Command) -> String {
    let out = output(command);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?} ended with {}\n{said}", out.status);
    String::from_utf8(out.stdout).expect("UTF-8")
}

fn build(out: &Path) -> PathBuf {
    let mut command = Command::new(root().join("deploy/debian/build"));
    let said = succeed(command.arg("--fast").arg("--binary").arg(program(NAME)).arg("--out").arg(out));
    PathBuf::from(said.trim_end())
}

fn field(package: &Path, name: &str) -> String {
    succeed(Command::new("dpkg-deb").arg("--field").arg(package).arg(name)).trim_end().to_owned()
}

#[test]
fn the_package_is_the_same_twice_and_works() {
    if !has("dpkg-deb") || !has("readelf") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let package = build(&folder.path().join("one"));
    let again = build(&folder.path().join("two"));
    assert_eq!(package.file_name(), again.file_name());
    assert!(fs::read(&package).expect("readable") == fs::read(&again).expect("readable"), "two builds differ");

    check_fields(&package);
    check_contents(&package);
    let tree = folder.path().join("tree");
    succeed(Command::new("dpkg-deb").arg("--raw-extract").arg(&package).arg(&tree));
    succeed(Command::new("md5sum").args(["--check", "--quiet", "DEBIAN/md5sums"]).current_dir(&tree));
    let unpacked = tree.join("usr/bin").join(NAME);
    let version = field(&package, "Version").replace('~', "-");
    assert_eq!(succeed(Command::new(&unpacked).arg("--version")), format!("{NAME} {version}\n"));
    succeed(Command::new(&unpacked).arg("check-config").arg("--config").arg(tree.join("etc/omnilabel/edge.toml.example")));
    check_dependencies(&unpacked, &field(&package, "Depends"), folder.path());
    check_documents(&tree, &unpacked);
}

fn check_fields(package: &Path) {
    assert_eq!(field(package, "Package"), NAME);
    assert_eq!(field(package, "Architecture"), succeed(Command::new("dpkg").arg("--print-architecture")).trim_end());
    for name in ["Version", "Maintainer", "Installed-Size", "Depends", "Recommends", "Section", "Priority", "Description"] {
        assert!(!field(package, name).is_empty(), "no {name}");
    }
    let recommends = field(package, "Recommends");
    for needed in ["tools", "plugins-base", "plugins-good", "plugins-bad"] {
        assert!(recommends.contains(&format!("gstreamer1.0-{needed}")), "{recommends}");
    }
    let file = package.file_name().expect("a name").to_string_lossy().into_owned();
    assert_eq!(file, format!("{NAME}_{}_{}.deb", field(package, "Version"), field(package, "Architecture")));
}

/// Every file with its mode, all of root's; and nothing else.
fn check_contents(package: &Path) {
    let listed = succeed(Command::new("dpkg-deb").arg("--contents").arg(package));
    let mut files = BTreeSet::new();
    for line in listed.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (mode, owner, path) = (words[0], words[1], words[words.len() - 1]);
        assert_eq!(owner, "root/root", "{line}");
        if mode.starts_with('d') {
            assert_eq!(mode, "drwxr-xr-x", "{line}");
        } else {
            files.insert(format!("{mode} {}", path.trim_start_matches('.')));
        }
    }
    let expected = [
        "-rw-r--r-- /etc/omnilabel/edge.toml.example",
        "-rw-r--r-- /usr/lib/systemd/system/omnilabel-edge.service",
        "-rw-r--r-- /usr/lib/sysusers.d/omnilabel-edge.conf",
        "-rw-r--r-- /usr/lib/tmpfiles.d/omnilabel-edge.conf",
        "-rw-r--r-- /usr/share/doc/omnilabel-edge/DEVICE.md.gz",
        "-rw-r--r-- /usr/share/doc/omnilabel-edge/EDGE.md.gz",
        "-rw-r--r-- /usr/share/doc/omnilabel-edge/SITE.md.gz",
        "-rw-r--r-- /usr/share/doc/omnilabel-edge/changelog.gz",
        "-rw-r--r-- /usr/share/doc/omnilabel-edge/copyright",
        "-rw-r--r-- /usr/share/doc/omnilabel-edge/third-party.gz",
        "-rw-r--r-- /usr/share/lintian/overrides/omnilabel-edge",
        "-rw-r--r-- /usr/share/man/man1/omnilabel-edge.1.gz",
        "-rwxr-xr-x /usr/bin/omnilabel-edge",
    ];
    assert_eq!(files, expected.map(str::to_owned).into());
}

/// The package of every library that the linker finds is named, in a version that is not older than what Debian's own tool asks for.
fn check_dependencies(program: &Path, depends: &str, folder: &Path) {
    let named = |package: &str| {
        let words = depends.split(", ").find(|entry| entry.split(' ').next() == Some(package));
        words.unwrap_or_else(|| panic!("Depends does not name {package}: {depends}")).to_owned()
    };
    for line in succeed(Command::new("ldd").arg(program)).lines() {
        // `libm.so.6 => /lib/…/libm.so.6 (0x…)`; the kernel's own and the linker's line have no arrow.
        let Some(path) = line.split_once("=> ").and_then(|(_, rest)| rest.split(' ').next()) else { continue };
        let out = output(Command::new("dpkg").arg("--search").arg(path));
        let out = if out.status.success() { out } else { output(Command::new("dpkg").arg("--search").arg(format!("/usr{path}"))) };
        let owner = String::from_utf8_lossy(&out.stdout);
        let owner = owner.split(':').next().filter(|owner| !owner.is_empty());
        named(owner.unwrap_or_else(|| panic!("no package has {path}")));
    }
    if has("dpkg-shlibdeps") {
        fs::create_dir(folder.join("debian")).expect("a folder");
        fs::write(folder.join("debian/control"), "Source: x\n\nPackage: x\nArchitecture: any\n").expect("writable");
        let asked = succeed(Command::new("dpkg-shlibdeps").arg("-O").arg(program).current_dir(folder));
        for entry in asked.trim_end().trim_start_matches("shlibs:Depends=").split(", ") {
            let version = |entry: &str| entry.split_once("(>= ").map_or("0", |(_, rest)| rest.trim_end_matches(')')).to_owned();
            let ours = named(entry.split(' ').next().unwrap_or_default());
            succeed(Command::new("dpkg").args(["--compare-versions", &version(&ours), "ge", &version(entry)]));
        }
    }
}

/// The man page has every command, the licences every library.
fn check_documents(tree: &Path, program: &Path) {
    let read = |path: &str| succeed(Command::new("gzip").arg("-dc").arg(tree.join("usr/share").join(path)));
    let page = read("man/man1/omnilabel-edge.1.gz");
    let help = succeed(Command::new(program).arg("--help"));
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let mut count = 0;
    for command in commands.filter_map(|line| line.split_whitespace().next()).filter(|command| *command != "help") {
        assert!(page.contains(&format!(".SS \"{NAME} {command}\"")), "the man page has no {command}");
        count += 1;
    }
    assert!(count > 2, "{help}");
    let third_party = read("doc/omnilabel-edge/third-party.gz");
    for library in ["rumqttc", "tract-onnx", "serde", "tokio"] {
        assert!(third_party.lines().any(|line| line.starts_with(&format!("{library}-"))), "no licence of {library}");
    }
    assert!(third_party.contains("Permission is hereby granted") && third_party.contains("Apache License"));
}

#[test]
fn a_program_for_another_machine_is_refused() {
    if !has("dpkg-deb") || !has("readelf") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let other = if cfg!(target_arch = "x86_64") { "arm64" } else { "amd64" };
    let mut command = Command::new(root().join("deploy/debian/build"));
    let out = output(command.arg("--binary").arg(program(NAME)).arg("--out").arg(folder.path()).args(["--arch", other]));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains(&format!("is no program for {other}")), "{said}");
    assert_eq!(fs::read_dir(folder.path()).expect("readable").count(), 0);
}

/// Runs a maintainer script on a folder instead of the machine; what it would call is only noted.
fn script(name: &str, argument: &str, folder: &Path) -> String {
    let (tools, calls) = (folder.join("tools"), folder.join("calls"));
    fs::create_dir_all(&tools).expect("a folder");
    for tool in ["systemctl", "deb-systemd-helper", "deb-systemd-invoke", "systemd-sysusers", "systemd-tmpfiles"] {
        let path = tools.join(tool);
        fs::write(&path, format!("#!/bin/sh\necho {tool} \"$@\" >>'{}'\n", calls.display())).expect("writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
    }
    fs::write(&calls, "").expect("writable");
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").expect("a PATH"));
    let mut command = Command::new("sh");
    command.arg(root().join("deploy/debian").join(name)).args([argument, ""]);
    succeed(command.env("PATH", path).env("DPKG_ROOT", folder.join("root")));
    fs::read_to_string(&calls).expect("readable")
}

#[test]
fn the_scripts_keep_the_state_until_it_is_purged() {
    let folder = tempfile::tempdir().expect("a folder");
    let in_root = |path: &str| folder.path().join("root").join(path);
    for path in ["var/lib/omnilabel-edge/outbox", "var/cache/omnilabel-edge", "etc/omnilabel"] {
        fs::create_dir_all(in_root(path)).expect("a folder");
    }
    let (label, key) = (in_root("var/lib/omnilabel-edge/outbox/1.seg"), in_root("etc/omnilabel/client.key"));
    fs::write(&label, "a label").expect("writable");
    fs::write(&key, "a key").expect("writable");

    let calls = script("postinst", "configure", folder.path());
    assert!(calls.contains("systemd-sysusers --root=") && calls.contains("systemd-tmpfiles --root="), "{calls}");
    assert!(calls.contains("deb-systemd-helper enable omnilabel-edge.service"), "{calls}");
    // A service is started on the machine, never from a folder.
    assert!(!calls.contains("systemctl") && !calls.contains("deb-systemd-invoke"), "{calls}");
    for (name, argument) in [("prerm", "upgrade"), ("postrm", "upgrade"), ("prerm", "remove"), ("postrm", "remove")] {
        assert_eq!(script(name, argument, folder.path()), "", "{name} {argument}");
        assert!(label.exists(), "{name} {argument} took the labels");
    }
    script("postrm", "purge", folder.path());
    assert!(!in_root("var/lib/omnilabel-edge").exists() && !in_root("var/cache/omnilabel-edge").exists());
    assert!(key.exists(), "a purge took what was provisioned by hand");
}
