//! What systemd is told: that the device started, how it is, that it is alive. Without systemd nobody is told anything.

use crate::service::board::Board;
use sd_notify::NotifyState;
use std::sync::Arc;
use std::time::Duration;

/// How often the status is told.
const STATUS_EVERY: Duration = Duration::from_secs(5);
/// A start may take this much longer each time it is told.
const PATIENCE: Duration = Duration::from_secs(30);

fn tell_all(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd is not told");
    }
}

/// A start is given this many times more time, and no more: what hangs for ever is started anew.
const PATIENT_TIMES: u32 = 20;

/// While the device starts: it is not ready, and not dead.
pub(super) async fn starting() {
    for _ in 0..PATIENT_TIMES {
        tell_all(&[NotifyState::ExtendTimeoutUsec((2 * PATIENCE).as_micros() as u32)]);
        tokio::time::sleep(PATIENCE).await;
    }
}

/// Tells that the device is ready, how it is, and, while nothing hangs, that it is alive. Runs until it is aborted.
pub(super) async fn tell(board: Arc<Board>) {
    tell_all(&[NotifyState::Ready]);
    let period = sd_notify::watchdog_enabled().map_or(STATUS_EVERY, |watchdog| (watchdog / 3).min(STATUS_EVERY));
    let mut told = String::new();
    loop {
        match board.hangs() {
            Some(what) => tracing::error!(what, "the watchdog is not fed: the device is restarted"),
            None => tell_all(&[NotifyState::Watchdog]),
        }
        board.upkeep();
        let status = status(&board);
        if status != told {
            tell_all(&[NotifyState::Status(&status)]);
            told = status;
        }
        tokio::time::sleep(period).await;
    }
}

/// The end is near and intended.
pub(super) fn stopping() {
    tell_all(&[NotifyState::Stopping]);
}

fn status(board: &Board) -> String {
    let Some(state) = board.state() else { return "starting".to_owned() };
    let ills = board.ills();
    if !ills.is_empty() {
        return ills.join("; ");
    }
    let broker = if state.broker.well { "connected" } else { "no broker, labels wait" };
    format!("{:.1} frames/s, {} labels pending, {broker}", board.rate(), state.status.pending)
}
