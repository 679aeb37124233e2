//! Which label is sent next: in order, a window at a time, again when the collector does not answer. Time comes from outside.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// The most labels that are sent and not acknowledged: a broker queues no more than this for the collector (mosquitto's default is
/// 1000 messages for all devices together).
pub const SEND_WINDOW: usize = 64;
/// A label is sent again when neither it nor one before it was acknowledged for this long, then for twice as long, up to
/// [`RESEND_LAST`].
pub const RESEND_FIRST: Duration = Duration::from_secs(15);
/// See [`RESEND_FIRST`]. A label that cannot be read is tried again after this.
pub const RESEND_LAST: Duration = Duration::from_secs(120);
/// A label that was sent before one that the collector has (a gap) is sent again after this: its frame may still be on its way.
pub const RESEND_GAP: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug)]
struct Sent {
    due: Instant,
    at: Instant,
    wait: Duration,
    /// The highest sequence that was sent by then. When the collector has a higher one, this one should have arrived.
    highest: u64,
}

impl Sent {
    fn new(now: Instant, wait: Duration, highest: u64) -> Self {
        Self { due: now + wait, at: now, wait, highest }
    }

    /// Cuts its wait off.
    fn hasten(&mut self) {
        self.due = self.due.min(self.at + RESEND_GAP);
    }

    fn is_hastened(&self) -> bool {
        self.due < self.at + self.wait
    }
}

/// What is on its way.
#[derive(Clone, Debug, Default)]
pub struct Sender {
    sent: BTreeMap<u64, Sent>,
    cursor: u64,
    /// Labels that could not be read, and when they are tried again; the first due first.
    put_off: VecDeque<(Instant, u64)>,
    /// When the collector spoke last; before its first word on this connection, when it was first sent something.
    heard: Option<Instant>,
    /// Since when something is sent and the collector says nothing.
    unanswered: Option<Instant>,
}

impl Sender {
    /// The connection is new, or the collector is: everything pending is sent again.
    pub fn restart(&mut self) {
        *self = Self::default();
    }

    /// The next sequence to send now, marked as sent; `next_pending(after)` is [`super::Outbox::next_pending`].
    pub fn next(&mut self, now: Instant, next_pending: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let sequence = self.due(now, next_pending)?;
        self.heard.get_or_insert(now);
        self.unanswered.get_or_insert(now);
        Some(sequence)
    }

    fn due(&mut self, now: Instant, next_pending: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        if let Some((&sequence, sent)) = self.sent.iter_mut().find(|(_, sent)| sent.due <= now) {
            // A wait that ran out was too short; one that was cut off says nothing about it.
            let wait = if sent.is_hastened() { sent.wait } else { (sent.wait * 2).min(RESEND_LAST) };
            *sent = Sent::new(now, wait, self.cursor);
            return Some(sequence);
        }
        if self.sent.len() >= SEND_WINDOW {
            return None;
        }
        let sequence = if let Some(sequence) = next_pending(self.cursor) {
            self.cursor = sequence;
            sequence
        } else {
            let (_, sequence) = *self.put_off.front().filter(|(due, _)| *due <= now)?;
            self.put_off.pop_front();
            sequence
        };
        self.sent.insert(sequence, Sent::new(now, RESEND_FIRST, self.cursor));
        Some(sequence)
    }

    /// What [`Sender::next`] gave is not pending any more: its place is free.
    pub fn forget(&mut self, sequence: u64) {
        self.sent.remove(&sequence);
    }

    /// What [`Sender::next`] gave cannot be read now: its place is free, and it is tried again after [`RESEND_LAST`], when nothing else
    /// waits.
    pub fn put_off(&mut self, now: Instant, sequence: u64) {
        self.sent.remove(&sequence);
        self.put_off.push_back((now + RESEND_LAST, sequence));
        if self.sent.is_empty() {
            self.unanswered = None;
        }
    }

    /// How many labels could not be read and are to be tried again.
    pub fn unread(&self) -> usize {
        self.put_off.len()
    }

    /// The collector said something. When it said nothing for long, it was away, and what was sent meanwhile may have found nobody: that
    /// is sent again as a gap is. A collector that speaks all the time was not away, and what is under way keeps its time.
    pub fn heard(&mut self, now: Instant) {
        let silent = self.heard.is_some_and(|heard| now.duration_since(heard) >= RESEND_FIRST);
        self.heard = Some(now);
        self.unanswered = None;
        if silent {
            self.sent.values_mut().for_each(Sent::hasten);
        }
    }

    /// For how long the collector has said nothing to what was sent on this connection.
    pub fn unanswered(&self, now: Instant) -> Option<Duration> {
        self.unanswered.map(|since| now.duration_since(since))
    }

    /// Forgets what is not pending any more. What was sent before `highest_stored` and is still pending is a gap. What was sent after it
    /// waits anew when this freed a place, as TCP's timer does (RFC 6298, 5.3): it may lie in a queue that a slow link is emptying.
    pub fn acknowledged(&mut self, now: Instant, highest_stored: u64, is_pending: impl Fn(u64) -> bool) {
        let before = self.sent.len();
        self.sent.retain(|&sequence, _| is_pending(sequence));
        self.put_off.retain(|&(_, sequence)| is_pending(sequence));
        let is_progress = self.sent.len() < before;
        for sent in self.sent.values_mut() {
            if sent.highest < highest_stored {
                sent.hasten();
            } else if is_progress && !sent.is_hastened() {
                sent.due = sent.due.max(now + sent.wait);
            }
        }
    }
}
