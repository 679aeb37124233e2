//! Which label is sent next: in order, a window at a time, again when the collector does not answer. Time comes from outside.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The most labels that are sent and not acknowledged: a broker queues no more than this for the collector (mosquitto's default is
/// 1000 messages for all devices together).
pub const SEND_WINDOW: usize = 64;
/// A label is sent again when it was not acknowledged for this long, then for twice as long, up to [`RESEND_LAST`].
pub const RESEND_FIRST: Duration = Duration::from_secs(15);
/// See [`RESEND_FIRST`].
pub const RESEND_LAST: Duration = Duration::from_secs(120);
/// A label below one that the collector has (a gap) is sent again after this: its frame may still be on its way.
pub const RESEND_GAP: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug)]
struct Sent {
    due: Instant,
    at: Instant,
    wait: Duration,
}

/// What is on its way.
#[derive(Clone, Debug, Default)]
pub struct Sender {
    sent: BTreeMap<u64, Sent>,
    cursor: u64,
    /// When the collector spoke last.
    heard: Option<Instant>,
    /// Since when something is sent and the collector says nothing.
    unanswered: Option<Instant>,
}

impl Sender {
    /// The connection is new, or the collector is: everything pending is sent again.
    pub fn restart(&mut self) {
        self.sent.clear();
        self.cursor = 0;
        self.unanswered = None;
    }

    /// The next sequence to send now, marked as sent; `next_pending(after)` is [`super::Outbox::next_pending`].
    pub fn next(&mut self, now: Instant, next_pending: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let sequence = self.due(now, next_pending)?;
        self.unanswered.get_or_insert(now);
        Some(sequence)
    }

    fn due(&mut self, now: Instant, next_pending: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        if let Some((&sequence, sent)) = self.sent.iter_mut().find(|(_, sent)| sent.due <= now) {
            // A wait that ran out was too short; one that a gap cut off says nothing about it.
            if now >= sent.at + sent.wait {
                sent.wait = (sent.wait * 2).min(RESEND_LAST);
            }
            *sent = Sent { due: now + sent.wait, at: now, wait: sent.wait };
            return Some(sequence);
        }
        if self.sent.len() >= SEND_WINDOW {
            return None;
        }
        let sequence = next_pending(self.cursor)?;
        self.cursor = sequence;
        self.sent.insert(sequence, Sent { due: now + RESEND_FIRST, at: now, wait: RESEND_FIRST });
        Some(sequence)
    }

    /// The collector said something. When it said nothing for long, it was away, and what was sent meanwhile may have found nobody: that
    /// is sent again as a gap is. A collector that speaks all the time and is only slow gets nothing twice for it.
    pub fn heard(&mut self, now: Instant) {
        let silent = self.heard.is_none_or(|heard| now.duration_since(heard) >= RESEND_FIRST);
        self.heard = Some(now);
        self.unanswered = None;
        if silent {
            self.sent.values_mut().for_each(|sent| sent.due = sent.due.min(sent.at + RESEND_GAP));
        }
    }

    /// For how long the collector has said nothing to what was sent on this connection.
    pub fn unanswered(&self, now: Instant) -> Option<Duration> {
        self.unanswered.map(|since| now.duration_since(since))
    }

    /// Forgets what is not pending any more; what lies below `highest_stored` and is still pending is a gap.
    pub fn acknowledged(&mut self, highest_stored: u64, is_pending: impl Fn(u64) -> bool) {
        self.sent.retain(|&sequence, sent| {
            if sequence < highest_stored {
                sent.due = sent.due.min(sent.at + RESEND_GAP);
            }
            is_pending(sequence)
        });
    }
}
