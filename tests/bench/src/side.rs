//! A side: a process that does the same work as the others and says how long it took. Requests are lines of JSON on its standard input,
//! answers lines on its standard output; `tests/bench/python/protocol.py` is the other implementation.

use anyhow::{Context, Result, bail};
use omnilabel_rcnn::device::Arithmetic;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// What a side is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// Get ready for a task.
    Prepare(Box<Task>),
    /// Do it once and say what it gave.
    Check,
    /// Do it so many times and say how many seconds one took.
    Run {
        /// How many times.
        repeat: u32,
    },
    /// Bytes resident before the task and at the most.
    Memory,
}

/// The kind of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One optimiser step.
    Train,
    /// The people in a frame with their keypoints.
    Detect,
    /// COCO's ten keypoint numbers of a results file.
    Score,
    /// Labels to bytes.
    Encode,
    /// Bytes to labels.
    Decode,
    /// Labels through a broker until they are durable and acknowledged.
    Ingest,
}

/// Where the networks of all sides run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// On the processor.
    #[default]
    Cpu,
    /// On the first NVIDIA GPU.
    Cuda,
}

/// What all sides of a case do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// What it is.
    pub kind: Kind,
    /// Its files, see [`crate::fixture`].
    pub folder: PathBuf,
    /// Threads of every side.
    pub threads: usize,
    /// Where its network runs.
    #[serde(default)]
    pub device: Device,
    /// What its products are computed in, in training.
    #[serde(default)]
    pub precision: Arithmetic,
    /// Short side of the view that finds the boxes.
    #[serde(default)]
    pub base: u32,
    /// Short sides of the views.
    #[serde(default)]
    pub scales: Vec<u32>,
    /// Whether each view is mirrored, too.
    #[serde(default)]
    pub flip: bool,
    /// Boxes in frame pixels with scores, `[x1, y1, x2, y2, score]`, where they are given instead of found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boxes: Option<Vec<[f32; 5]>>,
    /// Devices that send labels.
    #[serde(default)]
    pub devices: usize,
    /// Labels of one repetition.
    #[serde(default)]
    pub labels: usize,
    /// Whether they are stored in a PostgreSQL instead of SQLite.
    #[serde(default)]
    pub postgres: bool,
}

/// As whom this program takes part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// As the product.
    #[default]
    Ours,
    /// `serde_json` on the same types, for the wire.
    SerdeJson,
    /// The sender of labels to a collector of paho-mqtt and sqlite3, or psycopg.
    Paho,
}

/// Bytes resident.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// With the side's libraries loaded, before the task.
    pub idle: u64,
    /// At the most.
    pub peak: u64,
}

/// Work that a side has prepared.
pub trait Work {
    /// Does it once and says what it gave.
    ///
    /// # Errors
    /// The work failed.
    fn check(&mut self) -> Result<Value>;

    /// Does it once.
    ///
    /// # Errors
    /// The work failed.
    fn run(&mut self) -> Result<()>;

    /// The process whose memory counts.
    fn process(&self) -> u32 {
        std::process::id()
    }

    /// Seconds that one of `repeat` repetitions takes.
    ///
    /// # Errors
    /// The work failed.
    fn measure(&mut self, repeat: u32) -> Result<f64> {
        let start = Instant::now();
        for _ in 0..repeat {
            self.run()?;
        }
        Ok(start.elapsed().as_secs_f64() / f64::from(repeat.max(1)))
    }
}

/// Serves requests on standard input until it ends.
///
/// # Errors
/// A line that is no request. A failure of the work is an answer.
pub fn serve(prepare: impl Fn(&Task) -> Result<Box<dyn Work>>) -> Result<()> {
    let idle = resident(std::process::id(), "VmRSS")?;
    let mut work: Option<Box<dyn Work>> = None;
    for line in std::io::stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line?).context("a request")?;
        let answer = (|| {
            let ready = || anyhow::anyhow!("expected `prepare` before any other request");
            Ok(match request {
                Request::Prepare(task) => {
                    work = Some(prepare(&task)?);
                    serde_json::json!({})
                }
                Request::Check => {
                    let work = work.as_mut().ok_or_else(ready)?;
                    let answer = work.check()?;
                    // What the comparison took is not what the work takes.
                    let path = format!("/proc/{}/clear_refs", work.process());
                    std::fs::write(&path, "5").with_context(|| path)?;
                    answer
                }
                Request::Run { repeat } => serde_json::json!({"seconds": work.as_mut().ok_or_else(ready)?.measure(repeat)?}),
                Request::Memory => {
                    let process = work.as_ref().map_or_else(std::process::id, |work| work.process());
                    serde_json::to_value(Memory { idle, peak: resident(process, "VmHWM")? })?
                }
            })
        })();
        let answer = answer.unwrap_or_else(|error: anyhow::Error| serde_json::json!({"error": omnilabel_console::line(&error)}));
        omnilabel_console::say!("{answer}");
    }
    Ok(())
}

/// A field of a process's status, bytes.
pub(crate) fn resident(process: u32, field: &str) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = status.lines().find(|line| line.starts_with(field)).with_context(|| format!("{path} has no {field}"))?;
    let kilobytes = line.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
    Ok(kilobytes.with_context(|| format!("{path}: expected kilobytes, found `{line}`"))? * 1024)
}

/// How a side is started.
#[derive(Clone, Debug)]
pub struct Program {
    /// For people, and in the report.
    pub name: &'static str,
    /// The file and its arguments.
    pub command: Vec<PathBuf>,
}

/// How long a side may take to end.
const ENDING: Duration = Duration::from_secs(5);

/// A running side.
pub struct Side {
    /// Its name.
    pub name: &'static str,
    child: Child,
    /// Taken when it shall end.
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Side {
    /// Starts it with as many threads as the others.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(program: &Program, threads: usize) -> Result<Self> {
        let (file, arguments) = program.command.split_first().context("an empty command")?;
        let mut command = Command::new(file);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        for name in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"] {
            command.env(name, threads.to_string());
        }
        // On a GPU f32 products stay f32, on every side.
        command.env("NVIDIA_TF32_OVERRIDE", "0");
        // CUDA's libraries for this program alone: PyTorch brings its own.
        if let (true, Some(libraries)) =
            (std::env::current_exe().is_ok_and(|own| own == *file), std::env::var_os("OMNILABEL_CUDA_LIBRARIES"))
        {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        let mut child = command.spawn().with_context(|| format!("{}: {}", program.name, file.display()))?;
        let (stdin, stdout) = child.stdin.take().zip(child.stdout.take()).context("a side without pipes")?;
        Ok(Self { name: program.name, child, stdin: Some(stdin), stdout: BufReader::new(stdout) })
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// The side ended, answered something else, or says that it failed.
    pub fn ask(&mut self, request: &impl Serialize) -> Result<Value> {
        let name = self.name;
        let line = serde_json::to_string(request)?;
        let stdin = self.stdin.as_mut().with_context(|| format!("{name} was told to end"))?;
        writeln!(stdin, "{line}").and_then(|()| stdin.flush()).with_context(|| format!("{name} takes no request"))?;
        let mut answer = String::new();
        self.stdout.read_line(&mut answer).with_context(|| format!("{name} gives no answer"))?;
        if answer.is_empty() {
            bail!("{name} ended with {} at the request {line}", self.child.wait()?);
        }
        let answer: Value = serde_json::from_str(&answer).with_context(|| format!("{name}: expected a line of JSON, found `{answer}`"))?;
        match answer.get("error") {
            Some(error) => bail!("{name}: {}", error.as_str().unwrap_or_default().trim_end()),
            None => Ok(answer),
        }
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Seconds of one of `repeat` repetitions.
    ///
    /// # Errors
    /// See [`Side::ask`].
    pub fn seconds(&mut self, repeat: u32) -> Result<f64> {
        let answer = self.ask(&Request::Run { repeat })?;
        let seconds = answer.get("seconds").and_then(Value::as_f64).filter(|seconds| *seconds > 0.0);
        // The thread pools of some sides go on spinning for a moment, which would be charged to the next one.
        std::thread::sleep(Duration::from_millis(20));
        seconds.with_context(|| format!("{}: expected positive `seconds`, found {answer}", self.name))
    }

    /// What it held resident.
    ///
    /// # Errors
    /// See [`Side::ask`].
    pub fn memory(&mut self) -> Result<Memory> {
        let answer = self.ask(&Request::Memory)?;
        serde_json::from_value(answer).with_context(|| format!("{}: expected `idle` and `peak`", self.name))
    }
}

impl Drop for Side {
    /// The end of its input ends it, and what it has started itself, such as a broker; one that hangs is killed.
    fn drop(&mut self) {
        self.stdin = None;
        let start = Instant::now();
        while start.elapsed() < ENDING && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        // One that has ended already is no error here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
