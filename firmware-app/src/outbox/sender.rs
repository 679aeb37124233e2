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
    /// The one of them that was given last.
    retried: Option<u64>,
    /// When the collector spoke last; when nothing was under way since then, when it was next sent something.
    heard: Option<Instant>,
    /// The longest time between two words of the collector while something was under way; each one makes it an eighth shorter.
    gap: Option<Duration>,
    /// Labels that were sent again, less the words of the collector that may speak of such copies.
    copies: usize,
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
        let is_idle = self.sent.is_empty();
        let sequence = self.due(now, next_pending)?;
        if is_idle {
            // It had nothing to say until now.
            self.heard = Some(now);
        }
        self.unanswered.get_or_insert(now);
        Some(sequence)
    }

    fn due(&mut self, now: Instant, next_pending: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        self.retried = None;
        if let Some((&sequence, sent)) = self.sent.iter_mut().find(|(_, sent)| sent.due <= now) {
            // A wait that ran out was too short; one that was cut off says nothing about it.
            let wait = if sent.is_hastened() { sent.wait } else { (sent.wait * 2).min(RESEND_LAST) };
            *sent = Sent::new(now, wait, self.cursor);
            self.copies += 1;
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
            self.retried = Some(sequence);
            sequence
        };
        self.sent.insert(sequence, Sent::new(now, RESEND_FIRST, self.cursor));
        Some(sequence)
    }

    /// What [`Sender::next`] gave is not pending any more: its place is free.
    pub fn forget(&mut self, sequence: u64) {
        self.sent.remove(&sequence);
        if self.sent.is_empty() {
            self.unanswered = None;
        }
    }

    /// What [`Sender::next`] gave cannot be read now: its place is free, and it is tried again after [`RESEND_LAST`], when nothing else
    /// waits. When it was tried again in vain, the others wait as long: a failing disk takes its time for each.
    pub fn put_off(&mut self, now: Instant, sequence: u64) {
        self.forget(sequence);
        let again = now + RESEND_LAST;
        if self.retried == Some(sequence) {
            self.put_off.iter_mut().for_each(|(due, _)| *due = again);
        }
        self.put_off.push_back((again, sequence));
    }

    /// How many labels could not be read and are to be tried again.
    pub fn unread(&self) -> usize {
        self.put_off.len()
    }

    /// The collector said something. When it said nothing for [`RESEND_FIRST`], and for twice as long as is usual, it was away, and what
    /// was sent meanwhile may have found nobody: that is sent again as a gap is. A collector that speaks all the time was not away, nor
    /// was one behind a slow link that speaks as seldom as ever, and what is under way keeps its time.
    pub fn heard(&mut self, now: Instant) {
        if let Some(heard) = self.heard
            && !self.sent.is_empty()
        {
            let (gap, usual) = (now.duration_since(heard), self.gap.unwrap_or(RESEND_FIRST));
            if gap >= RESEND_FIRST.max(usual * 2) {
                self.sent.values_mut().for_each(Sent::hasten);
            }
            self.gap = Some(gap.max(usual * 7 / 8));
        }
        self.heard = Some(now);
        self.unanswered = None;
    }

    /// For how long the collector has said nothing to what was sent on this connection.
    pub fn unanswered(&self, now: Instant) -> Option<Duration> {
        self.unanswered.map(|since| now.duration_since(since))
    }

    /// Forgets what is not pending any more. What was sent before `highest_stored` and is still pending is a gap. What was sent after it
    /// waits anew when this freed a place, as TCP's timer does (RFC 6298, 5.3): it may lie in a queue that a slow link is emptying. So it
    /// does when this may speak of a copy: copies lie in that queue, too.
    pub fn acknowledged(&mut self, now: Instant, highest_stored: u64, is_pending: impl Fn(u64) -> bool) {
        let before = self.sent.len();
        self.sent.retain(|&sequence, _| is_pending(sequence));
        self.put_off.retain(|&(_, sequence)| is_pending(sequence));
        let is_copy = self.sent.len() == before && self.copies > 0;
        self.copies -= usize::from(is_copy);
        let is_progress = is_copy || self.sent.len() < before;
        for sent in self.sent.values_mut() {
            if sent.highest < highest_stored {
                sent.hasten();
            } else if is_progress && !sent.is_hastened() {
                sent.due = sent.due.max(now + sent.wait);
            }
        }
    }
}
