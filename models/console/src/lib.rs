//! What the programs say: results on standard output, errors in one line and the log on standard error.

use std::ffi::OsStr;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

mod recent;
pub use recent::{Line, recent};

/// An error with its causes in one line, each of them once.
///
/// Many error types, ours and others', already write their cause into their own message (`path: No such file or directory`), and give it
/// as their source, too: anyhow's `{:#}` would say it twice.
///
/// ```
/// use anyhow::Context;
/// let error = std::fs::read("/nowhere").context("the key").unwrap_err();
/// assert_eq!(omnilabel_console::line(&error), "the key: No such file or directory (os error 2)");
/// ```
pub fn line(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |line, cause| match line.as_str() {
        "" => cause,
        told if told.contains(&cause) => line,
        told => format!("{told}: {cause}"),
    })
}

/// As `println!`, but for a reader that has gone, such as `head`: then the program ends, quietly, with the status of one that a closed pipe
/// ended. Where the output cannot be written, such as to a full disk, the program says so in a line and fails.
#[macro_export]
macro_rules! say {
    ($($arguments:tt)*) => {
        $crate::say_line(format_args!($($arguments)*))
    };
}

/// See [`say!`].
pub fn say_line(line: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let written = writeln!(std::io::stdout().lock(), "{line}");
    if let Err(error) = written {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            // 128 and SIGPIPE, as a shell reports it.
            std::process::exit(141);
        }
        eprintln!("error: standard output: {error}");
        std::process::exit(1);
    }
}

/// Sends the log to standard error; `RUST_LOG` chooses, else `default` does. Colours are for terminals, and for those who want them: none with
/// `NO_COLOR` (<https://no-color.org>). A process that runs several roles has set its log up already: that one stays.
pub fn log(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let coloured = coloured(std::io::stderr().is_terminal(), std::env::var_os("NO_COLOR").as_deref());
    let written = tracing_subscriber::fmt::layer().with_ansi(coloured).with_writer(std::io::stderr);
    let _ = tracing_subscriber::registry().with(filter).with(written).with(recent::Recent).try_init();
}

/// The time of the clock, UTC, as the log writes it.
pub fn now() -> String {
    use tracing_subscriber::fmt::format::Writer;
    use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

/// Whether letters have colours; an empty `NO_COLOR` counts as none.
fn coloured(terminal: bool, no_color: Option<&OsStr>) -> bool {
    terminal && no_color.is_none_or(OsStr::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    /// An error of the kind that says its cause itself.
    #[derive(Debug)]
    struct Told(std::io::Error);

    impl std::fmt::Display for Told {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "a.json: {}", self.0)
        }
    }

    impl std::error::Error for Told {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn every_cause_is_said_once() {
        let told = || anyhow::Error::new(Told(std::io::Error::other("no such file")));
        assert_eq!(line(&told()), "a.json: no such file");
        assert_eq!(line(&told().context("--eval")), "--eval: a.json: no such file");
        assert_eq!(line(&anyhow!("inner").context("middle").context("outer")), "outer: middle: inner");
    }

    #[test]
    fn the_time_is_a_date_for_people() {
        let (before, now) = (std::time::SystemTime::now(), now());
        let secs = before.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert!(now.ends_with('Z') && now.as_bytes()[4] == b'-' && now.as_bytes()[10] == b'T', "{now}");
        // The seconds of a minute are those since 1970, as UTC has it on computers; one more where the clock went on meanwhile.
        let seconds: u64 = now[17..19].parse().unwrap();
        assert!([secs % 60, (secs + 1) % 60].contains(&seconds), "{now}, {secs}");
    }

    #[test]
    fn colours_are_for_terminals_without_no_color() {
        assert!(coloured(true, None) && coloured(true, Some(OsStr::new(""))));
        assert!(!coloured(true, Some(OsStr::new("1"))) && !coloured(false, None));
    }
}
