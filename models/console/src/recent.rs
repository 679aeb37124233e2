//! The last lines of the log, for a page that shows them.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// How many lines are kept …
const LINES: usize = 200;
/// … and how much of each, bytes.
const BYTES: usize = 1000;

static RECENT: Mutex<VecDeque<Line>> = Mutex::new(VecDeque::new());

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Unix milliseconds.
    pub ms: u64,
    /// `ERROR`, `WARN` or `INFO`.
    pub level: &'static str,
    /// The message and its fields.
    pub text: String,
}

/// The last lines with a level of at least `INFO`, oldest first.
pub fn recent() -> Vec<Line> {
    RECENT.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

/// Keeps lines.
pub(crate) struct Recent;

impl<S: Subscriber> Layer<S> for Recent {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        if level > Level::INFO {
            return;
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        let Text(mut text) = text;
        let end = (0..=BYTES).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
        let ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let mut lines = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= LINES {
            lines.pop_front();
        }
        lines.push_back(Line { ms, level: level.as_str(), text });
    }
}

/// The message first, then ` name=value` of each field.
struct Text(String);

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a String does not fail.
        let _ = if field.name() == "message" {
            let rest = std::mem::take(&mut self.0);
            write!(self.0, "{value:?}{rest}")
        } else {
            write!(self.0, " {}={value:?}", field.name())
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    #[test]
    fn the_last_lines_are_kept_with_their_fields() {
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Recent), || {
            for count in 0..LINES {
                tracing::info!(count, "a line");
            }
            tracing::debug!("nobody reads this");
            tracing::warn!(reason = "no such file", code = 7, "a frame could not be read");
            tracing::error!("{}", "ö".repeat(BYTES));
        });
        let lines = recent();
        assert_eq!((lines.len(), lines[0].text.as_str()), (LINES, "a line count=2"));
        let [warning, long] = &lines[LINES - 2..] else { unreachable!() };
        assert_eq!((warning.level, warning.text.as_str()), ("WARN", "a frame could not be read reason=no such file code=7"));
        assert_eq!(long.text.len(), BYTES);
        assert!(warning.ms > 1_700_000_000_000);
    }
}
