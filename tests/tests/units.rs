//! What systemd is given: the units of the device and of the centre, and the centre's daily backup.

use omnilabel_tests::compose::database;
use omnilabel_tests::fleet::{Site, Student};
use omnilabel_tests::peers::{Process, command, has, program, root, until};
use omnilabel_tests::postgres::Postgres;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Services: name, what they start, and what `systemd-analyze security` may say of them at most, in tenths.
const SERVICES: [(&str, &str, u32); 4] = [
    ("omnilabel-edge.service", "/usr/bin/omnilabel-edge", 25),
    ("omnilabel-trainer.service", "/usr/bin/omnilabel-trainer", 20),
    ("omnilabel-collector.service", "/usr/bin/omnilabel-trainer", 15),
    ("omnilabel-trainer-backup.service", "/usr/lib/omnilabel-trainer/backup", 15),
];
const TIMER: &str = "omnilabel-trainer-backup.timer";
/// Keys that systemd has since 254; an older one says that it ignores them.
const SINCE_254: [&str; 2] = ["RestartSteps", "RestartMaxDelaySec"];

fn given(name: &str) -> PathBuf {
    root().join("deploy/systemd").join(name)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// What `systemd-analyze verify` says of a unit in a folder that is about it.
fn complaints(folder: &Path, name: &str) -> Vec<String> {
    let out = output(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(folder.join(name)));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let about_it = |line: &&str| line.contains(name) && !SINCE_254.iter().any(|key| line.contains(key));
    let mut found: Vec<String> = said.lines().filter(about_it).map(str::to_owned).collect();
    if !out.status.success() && found.is_empty() {
        found.push(said);
    }
    found
}

/// Puts a unit into a folder. What it starts need not be installed here.
fn put(folder: &Path, name: &str, text: &str) {
    let installed = SERVICES.iter().fold(text.to_owned(), |text, (_, started, _)| text.replace(&format!("={started} "), "=/bin/true "));
    fs::write(folder.join(name), installed).expect("writable");
}

#[test]
fn systemd_takes_the_units_and_finds_little_exposed() {
    if !has("systemd-analyze") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    for (name, started, _) in SERVICES {
        let text = read(&given(name));
        assert!(text.contains(&format!("\nExecStart={started} ")), "{name}");
        put(folder, name, &text);
        assert_eq!(complaints(folder, name), Vec::<String>::new());
    }
    put(folder, TIMER, &read(&given(TIMER)));
    assert_eq!(complaints(folder, TIMER), Vec::<String>::new());

    for (name, _, limit) in SERVICES {
        fs::copy(given(name), folder.join(name)).expect("a copy");
        let exposure = |limit: u32| {
            let limit = format!("--threshold={limit}");
            output(Command::new("systemd-analyze").args(["security", "--offline=true", "--no-pager", &limit]).arg(folder.join(name)))
        };
        let out = exposure(limit);
        let (said, error) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        if error.contains("unrecognized option") {
            println!("skipped: a systemd-analyze without --offline");
            return;
        }
        assert!(out.status.success(), "{said}\n{error}");
        assert!(!exposure(0).status.success(), "the limit is not looked at");
    }
}

#[test]
fn what_systemd_would_not_take_is_noticed() {
    if !has("systemd-analyze") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    for (name, good, bad) in [
        ("omnilabel-trainer.service", "Nice=5", "Nice=five"),
        ("omnilabel-trainer-backup.service", "Type=oneshot", "Type=oneshoot"),
        ("omnilabel-collector.service", "PrivateDevices=yes", "PrivateDevices=perhaps"),
        (TIMER, "OnCalendar=*-*-* 03:00:00", "OnCalendar=*-*-* 25:00:00"),
    ] {
        let text = read(&given(name));
        assert!(text.contains(good), "{name}");
        put(folder, name, &text.replace(good, bad));
        assert_ne!(complaints(folder, name), Vec::<String>::new(), "{name}");
    }
}

/// The paths that units, users and folders name are the same.
#[test]
fn the_centres_units_fit_together() {
    let (service, backup) = (read(&given("omnilabel-trainer.service")), read(&given("omnilabel-trainer-backup.service")));
    for line in ["User=omnilabel-trainer", "StateDirectory=omnilabel-trainer", "ConditionPathExists=/etc/omnilabel/trainer.toml"] {
        assert!([&service, &backup].iter().all(|text| text.lines().any(|found| found == line)), "{line}");
    }
    let collector = read(&given("omnilabel-collector.service"));
    for line in ["User=omnilabel-trainer", "StateDirectory=omnilabel-trainer", "ConditionPathExists=/etc/omnilabel/collector.toml"] {
        assert!(collector.lines().any(|found| found == line), "{line}");
    }
    assert!(collector.contains("collect --config /etc/omnilabel/collector.toml\n"));
    assert!(read(&given("omnilabel-trainer.sysusers")).contains("\nu omnilabel-trainer "));
    let folder = "/var/backups/omnilabel-trainer";
    assert!(read(&given("omnilabel-trainer.tmpfiles")).contains(&format!("\nd {folder} 0700 omnilabel-trainer ")));
    assert!(backup.contains(&format!("ReadWritePaths={folder}\n")) && backup.contains(&format!("trainer.toml {folder}\n")));
}

/// The daily backup by hand, with a program of this workspace or another one.
fn back_up(program: &Path, config: &Path, folder: &Path, keep: &str) -> Output {
    let mut script = Command::new(given("backup"));
    script.arg(config).arg(folder).env("OMNILABEL_BACKUPS", keep).env("OMNILABEL_TRAINER", program);
    output(&mut script)
}

/// Folders and files in a folder, by name.
fn listed(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("readable").flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_backup_is_made_and_of_the_old_ones_so_many_are_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let (backups, trainer) = (folder.path().join("backups"), folder.path().join("trainer"));
    // Whole ones of either database, one without what a whole one has, one that was interrupted, and what is somebody's.
    for (name, file) in
        [("2024-01-01T03-00-00Z", "backup.json"), ("2024-01-02T03-00-00Z", "labels.dump"), ("2024-01-03T03-00-00Z", "backup.json")]
    {
        fs::create_dir_all(backups.join(name)).expect("a folder");
        fs::write(backups.join(name).join(file), "{}").expect("writable");
    }
    for name in ["2023-01-01T03-00-00Z", "2024-01-04T03-00-00Z.part", "my 2024-01-01T03-00-00Z"] {
        fs::create_dir_all(backups.join(name)).expect("a folder");
    }
    // In place of the program one that makes what it makes, or fails.
    let pretend = |body: &str| {
        fs::write(&trainer, format!("#!/bin/bash\n{body}\n")).expect("writable");
        fs::set_permissions(&trainer, fs::Permissions::from_mode(0o755)).expect("ours");
    };
    pretend("exit 3");
    let failed = back_up(&trainer, Path::new("trainer.toml"), &backups, "2");
    assert_eq!(failed.status.code(), Some(3));
    let kept = ["2024-01-01T03-00-00Z", "2024-01-02T03-00-00Z", "2024-01-03T03-00-00Z"];
    assert!(kept.iter().all(|name| backups.join(name).exists()), "without a new one no old one goes");

    let backup = "[ \"$1 $2 $4\" = 'backup --config --out' ] && mkdir \"$5\" && echo '{}' >\"$5/backup.json\"";
    pretend(&format!("if [ \"$1\" = check-config ]; then echo '{{}}'; else {backup}; fi"));
    let made = back_up(&trainer, Path::new("trainer.toml"), &backups, "2");
    assert!(made.status.success(), "{made:?}");
    let names = listed(&backups);
    let new = names.iter().find(|name| name.starts_with("20") && name.as_str() > "2024-02");
    let new = new.unwrap_or_else(|| panic!("{names:?}")).clone();
    assert_eq!(names, [".lock", "2023-01-01T03-00-00Z", "2024-01-03T03-00-00Z", new.as_str(), "my 2024-01-01T03-00-00Z"]);

    for (keep, at, expected) in [("0", &backups, "expected 1 to 9999"), ("all", &backups, "expected"), ("2", &trainer, "is no folder")] {
        let refused = back_up(&trainer, Path::new("trainer.toml"), at, keep);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(2) && said.contains(expected), "{keep}: {said}");
    }
}

#[test]
fn the_backup_of_a_centre_that_runs_can_be_restored() {
    let Some(site) = Site::new() else { return };
    site.configure_centre(1000, 0, Student::Careful);
    let _centre = site.centre();
    until("a store", || site.path("centre/collector.marker").exists().then_some(()));
    let backups = site.path("backups");
    fs::create_dir(&backups).expect("a folder");
    let (trainer, config) = (program("omnilabel-trainer"), site.path("trainer.toml"));
    let made = back_up(&trainer, &config, &backups, "7");
    assert!(made.status.success(), "{made:?}");
    let [_, name] = &listed(&backups)[..] else { panic!("{:?}", listed(&backups)) };
    let text = read(&config);
    let elsewhere = site.path("elsewhere.toml");
    fs::write(&elsewhere, text.replace("state_dir = \"centre\"", "state_dir = \"restored\"")).expect("writable");
    let mut restore = Command::new(trainer);
    restore.arg("restore").arg("--config").arg(elsewhere).arg("--from").arg(backups.join(name));
    assert!(command(&mut restore).contains("0 labels"));
    assert!(site.path("restored/centre.sqlite").exists());
}

#[test]
fn the_nightly_backup_of_a_centre_on_postgres_is_whole_and_its_centre_starts_again() {
    let Some(postgres) = Postgres::start() else { return };
    let Some(site) = Site::new() else { return };
    // The password has what a file for libpq writes otherwise.
    let password = r"correct:horse\staple";
    let url = database(&postgres, password);
    site.configure_centre(1000, 0, Student::Careful);
    fs::write(site.path("password"), format!("{password}\n")).expect("writable");
    fs::set_permissions(site.path("password"), fs::Permissions::from_mode(0o600)).expect("ours");
    let config = site.path("trainer.toml");
    let text = read(&config) + &format!("[store]\nurl = {url:?}\npassword_file = \"password\"\n");
    fs::write(&config, &text).expect("writable");
    let centre = site.centre();
    let there = |file: &str| site.path("centre").join(file).exists();
    let log = || read(&site.path("centre/events.jsonl"));
    until("a store", || (there("shared.marker") && there("events.jsonl") && log().contains("\"event\":\"started\"")).then_some(()));
    // Of the state folder what cannot be made again: nothing that is being written, and of a round under way what it was trained with.
    for file in [
        "releases/one/manifest.json",
        "rounds/1/arm.json",
        "rounds/1/progress.jsonl",
        "rounds/1/bundle/manifest.json",
        "rounds/1/bundle.part/weights",
        "rounds/1/generated/1.jpg",
        "rounds/2/arm.json",
        "rounds/2/checkpoint/weights",
    ] {
        let path = site.path("centre").join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, "x").expect("writable");
    }
    let backups = site.path("backups");
    fs::create_dir(&backups).expect("a folder");
    let trainer = program("omnilabel-trainer");
    // A key that others can read is told, and is no reason to have no backup.
    let key = |mode| fs::set_permissions(site.path("keys/release.key"), fs::Permissions::from_mode(mode)).expect("ours");
    key(0o644);
    let made = back_up(&trainer, &config, &backups, "7");
    key(0o600);
    assert!(made.status.success() && String::from_utf8_lossy(&made.stderr).contains("others can read this private key"), "{made:?}");
    let [_, name] = &listed(&backups)[..] else { panic!("{:?}", listed(&backups)) };
    let made = backups.join(name);
    assert_eq!(listed(&made), ["labels.dump", "state"]);
    assert_eq!(listed(&made.join("state")), ["events.jsonl", "releases", "rounds"]);
    assert_eq!(listed(&made.join("state/rounds")), ["1", "2"]);
    assert_eq!(listed(&made.join("state/rounds/2")), ["arm.json"]);
    assert_eq!(listed(&made.join("state/rounds/1")), ["arm.json", "bundle", "progress.jsonl"]);
    assert_eq!(read(&made.join("state/releases/one/manifest.json")), "x");

    postgres.psql("postgres", "CREATE DATABASE elsewhere OWNER omnilabel");
    let mut restore = Command::new("pg_restore");
    restore.args(["--single-transaction", "--dbname", &postgres.url("elsewhere")]).arg(made.join("labels.dump"));
    command(&mut restore);
    let tables = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2";
    for sql in [tables, "SELECT version FROM _sqlx_migrations ORDER BY 1", "SELECT value FROM meta WHERE key = 'collector'"] {
        let (there, here) = (postgres.psql("elsewhere", sql), postgres.psql("omnilabel", sql));
        assert!(!here.is_empty() && there == here, "{sql}: {there}");
    }
    let elsewhere = site.path("elsewhere.toml");
    let text = text.replace("/omnilabel?", "/elsewhere?").replace("state_dir = \"centre\"", "state_dir = \"back\"");
    fs::write(&elsewhere, text).expect("writable");
    command(Command::new("cp").arg("--recursive").arg(made.join("state")).arg(site.path("back")));
    let started = || read(&site.path("back/events.jsonl")).matches("\"event\":\"started\"").count();
    assert_eq!(started(), 1, "its log came along");
    // One client id is one centre.
    drop(centre);
    let args = ["run".as_ref(), "--config".as_ref(), elsewhere.as_os_str(), "--new-collector-epoch".as_ref()];
    let again = Process::start("omnilabel-trainer", args, &site.log("again"));
    until("the restored centre starts", || (started() == 2).then_some(()));
    drop(again);
    command(Command::new(&trainer).args(["dataset", "verify", "--config"]).arg(&elsewhere));

    // Without its password there is none, and no half of one is taken for whole.
    fs::write(site.path("password"), "another").expect("writable");
    let refused = back_up(&trainer, &config, &backups, "1");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("password"), "{said}");
    assert!(made.join("labels.dump").exists() && !said.contains(password), "{said}");
}
