//! The live view: bars on a terminal, a line now and then elsewhere. Everything goes to standard error.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Without a terminal, a bar prints a line at most this often.
const QUIET: Duration = Duration::from_secs(10);

/// All bars.
pub(super) struct Show {
    bars: MultiProgress,
    live: bool,
    by_name: RefCell<BTreeMap<&'static str, Bar>>,
}

struct Bar {
    bar: ProgressBar,
    printed: Option<Instant>,
    line: String,
    length: u64,
    reached: bool,
}

impl Show {
    pub(super) fn new() -> Self {
        let live = std::io::stderr().is_terminal();
        let target = if live { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { bars: MultiProgress::with_draw_target(target), live, by_name: RefCell::default() }
    }

    /// A line above the bars.
    pub(super) fn say(&self, text: &str) {
        if !self.live {
            eprintln!("{text}");
        } else if let Err(error) = self.bars.println(text) {
            tracing::warn!("{text} ({error})");
        }
    }

    /// Sets the bar `name` (made when it is new) to `position` of `length`.
    pub(super) fn set(&self, name: &'static str, position: u64, length: u64, message: &str) {
        let mut all = self.by_name.borrow_mut();
        let bar = all.entry(name).or_insert_with(|| {
            let style = ProgressStyle::with_template("{prefix:>14} {bar:28.cyan/black} {pos:>5}/{len:<5} {msg:.dim} {eta:>4}");
            let bar = self.bars.add(ProgressBar::new(length).with_prefix(name));
            Bar {
                bar: style.map_or_else(|_| bar.clone(), |style| bar.clone().with_style(style)),
                printed: None,
                line: String::new(),
                length: 0,
                reached: false,
            }
        });
        bar.bar.set_length(length);
        bar.bar.set_position(position.min(length));
        bar.bar.set_message(message.to_owned());
        let line = format!("{name:>14} {position:>5}/{length:<5} {message}");
        // A goal that is reached is news; one that moves along is not.
        let reached = position == length && bar.length == length;
        let due = bar.printed.is_none_or(|at| at.elapsed() >= QUIET || reached && !bar.reached);
        (bar.length, bar.reached) = (length, reached);
        if !self.live && due && line != bar.line {
            eprintln!("{}", line.trim_end());
            bar.printed = Some(Instant::now());
            bar.line = line;
        }
    }

    /// Takes the bars away.
    pub(super) fn clear(&self) {
        for bar in std::mem::take(&mut *self.by_name.borrow_mut()).into_values() {
            bar.bar.finish_and_clear();
        }
    }
}
