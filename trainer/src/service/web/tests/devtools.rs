//! A browser that a test drives as a person would: chromium's DevTools protocol over two pipes, JSON messages that end with a zero byte.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a page may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// See the module. It ends with its value.
pub(super) struct Browser {
    child: Child,
    to: File,
    from: BufReader<File>,
    session: Option<String>,
    last: u64,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// `None`, with a message, where chromium is not installed.
    pub(super) fn open(width: u32, height: u32) -> Option<Self> {
        match Command::new("chromium").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                println!("skipped: chromium is not installed");
                return None;
            }
            version => assert!(version.unwrap().success()),
        }
        let profile = tempfile::tempdir().unwrap();
        let [to, from] = ["to", "from"].map(|name| profile.path().join(name));
        assert!(Command::new("mkfifo").arg(&to).arg(&from).status().unwrap().success());
        // Descriptors 3 and 4 are where chromium looks for the pipes.
        let child = Command::new("sh")
            .args(["-c", "exec chromium \"$@\" 3<\"$TO\" 4>\"$FROM\"", "sh"])
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"])
            .arg(format!("--user-data-dir={}", profile.path().join("profile").display()))
            .env("TO", &to)
            .env("FROM", &from)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let to = OpenOptions::new().write(true).open(&to).unwrap();
        let from = BufReader::new(File::open(&from).unwrap());
        let mut browser = Self { child, to, from, session: None, last: 0, _profile: profile };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let session = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = Some(session["sessionId"].as_str().unwrap().to_owned());
        browser.resize(width, height);
        Some(browser)
    }

    /// What a command answers.
    fn call(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let mut bytes = Vec::new();
            self.from.read_until(0, &mut bytes).unwrap();
            assert_eq!(bytes.pop(), Some(0), "chromium ended");
            let mut answer: Value = serde_json::from_slice(&bytes).unwrap();
            if answer["id"] == self.last {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].take();
            }
        }
    }

    pub(super) fn resize(&mut self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    pub(super) fn dark(&mut self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        self.call("Emulation.setEmulatedMedia", json!({ "features": [{ "name": "prefers-color-scheme", "value": value }] }));
    }

    pub(super) fn go(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url }));
    }

    /// The value of an expression of the page's, a promise's too.
    pub(super) fn value(&mut self, expression: &str) -> Value {
        let asked = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let mut answer = self.call("Runtime.evaluate", asked);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].take()
    }

    /// Waits until an expression is true.
    pub(super) fn until(&mut self, expression: &str) {
        let began = Instant::now();
        // While a page is loaded, its names are not there yet.
        let asked = format!("(() => {{ try {{ return Boolean({expression}); }} catch {{ return false; }} }})()");
        while self.value(&asked) != true {
            assert!(began.elapsed() < PATIENCE, "not seen in {PATIENCE:?}: {expression}\n{}", self.value("document.body.innerText"));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The middle of what a selector finds, in pixels of the window.
    pub(super) fn middle(&mut self, selector: &str) -> (f64, f64) {
        let rect = format!("document.querySelector({selector:?}).getBoundingClientRect()");
        let rect = self.value(&format!("(({{ x, y, width, height }}) => [x + width / 2, y + height / 2])({rect})"));
        (rect[0].as_f64().unwrap(), rect[1].as_f64().unwrap())
    }

    fn mouse(&mut self, kind: &str, (x, y): (f64, f64), buttons: u8) {
        let button = if kind == "mouseMoved" { "none" } else { "left" };
        self.call(
            "Input.dispatchMouseEvent",
            json!({ "type": kind, "x": x, "y": y, "button": button, "buttons": buttons, "clickCount": 1 }),
        );
    }

    pub(super) fn click(&mut self, at: (f64, f64)) {
        self.mouse("mouseMoved", at, 0);
        self.mouse("mousePressed", at, 1);
        self.mouse("mouseReleased", at, 0);
    }

    /// From one place to another in ten movements.
    pub(super) fn drag(&mut self, from: (f64, f64), to: (f64, f64)) {
        self.mouse("mouseMoved", from, 0);
        self.mouse("mousePressed", from, 1);
        (1..=10).for_each(|part| self.mouse("mouseMoved", between(from, to, part), 1));
        self.mouse("mouseReleased", to, 0);
    }

    /// The same with a finger.
    pub(super) fn drag_by_touch(&mut self, from: (f64, f64), to: (f64, f64)) {
        let mut touch = |kind: &str, points: &[(f64, f64)]| {
            let points: Vec<Value> = points.iter().map(|(x, y)| json!({ "x": x, "y": y })).collect();
            self.call("Input.dispatchTouchEvent", json!({ "type": kind, "touchPoints": points }));
        };
        touch("touchStart", &[from]);
        (1..=10).for_each(|part| touch("touchMove", &[between(from, to, part)]));
        touch("touchEnd", &[]);
    }

    /// Turns the wheel towards the screen.
    pub(super) fn wheel(&mut self, (x, y): (f64, f64)) {
        self.call("Input.dispatchMouseEvent", json!({ "type": "mouseWheel", "x": x, "y": y, "deltaX": 0, "deltaY": -300 }));
    }

    /// A key by its name, such as `s` or `ArrowRight`.
    pub(super) fn key(&mut self, key: &str) {
        let code = match key {
            "Escape" => 27,
            "ArrowLeft" => 37,
            "ArrowRight" => 39,
            "Delete" => 46,
            letter => letter.to_ascii_uppercase().as_bytes()[0].into(),
        };
        for kind in ["rawKeyDown", "keyUp"] {
            self.call("Input.dispatchKeyEvent", json!({ "type": kind, "key": key, "windowsVirtualKeyCode": code }));
        }
    }

    /// What is to be seen, as a PNG; kept in the folder that `OMNILABEL_SHOTS` names, where it names one.
    pub(super) fn shot(&mut self, name: &str) -> Vec<u8> {
        let answer = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        let png = BASE64.decode(answer["data"].as_str().unwrap()).unwrap();
        if let Some(folder) = std::env::var_os("OMNILABEL_SHOTS") {
            std::fs::write(std::path::Path::new(&folder).join(format!("{name}.png")), &png).unwrap();
        }
        png
    }
}

fn between(from: (f64, f64), to: (f64, f64), tenths: u8) -> (f64, f64) {
    let part = f64::from(tenths) / 10.0;
    (from.0 + part * (to.0 - from.0), from.1 + part * (to.1 - from.1))
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its helpers end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
