//! What a simulated device keeps until it is acknowledged, and which label it sends next. The rules are the real device's (`docs/WIRE.md`,
//! "ack"; its window and its waits), written a second time: bench may not import the device. Labels are made of their key alone, so that an
//! entry is a few bytes. Pure: milliseconds come from outside.

use omnilabel_keypoints::wire::AckMsg;
use std::collections::BTreeMap;

/// The most labels that are sent and not acknowledged.
pub(crate) const WINDOW: usize = 64;
/// A label is sent again when it was not acknowledged for so long, ms; then for twice as long.
const AGAIN_FIRST: u64 = 15_000;
/// The longest of these waits, ms.
const AGAIN_LAST: u64 = 120_000;
/// A label below one that the collector has is sent again after this, ms: its frame may still be on its way.
const AGAIN_GAP: u64 = 3_000;

/// What has to be known of a label to make the same bytes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// When it was committed.
    pub(crate) committed_ms: u64,
    /// Counter of the release that made it.
    pub(crate) model: u64,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    due: u64,
    at: u64,
    wait: u64,
}

/// One outbox epoch of one device.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    epoch: u64,
    committed: u64,
    collector: u64,
    pending: BTreeMap<u64, Entry>,
    sent: BTreeMap<u64, Sent>,
    cursor: u64,
    highest_sent: u64,
    heard: Option<u64>,
    again: u64,
}

impl Outbox {
    /// An empty one.
    pub(crate) fn new(epoch: u64) -> Self {
        Self {
            epoch,
            committed: 0,
            collector: 0,
            pending: BTreeMap::new(),
            sent: BTreeMap::new(),
            cursor: 0,
            highest_sent: 0,
            heard: None,
            again: 0,
        }
    }

    /// Its epoch.
    pub(crate) const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Labels committed over the life of the epoch.
    pub(crate) const fn committed(&self) -> u64 {
        self.committed
    }

    /// Labels that are not acknowledged.
    pub(crate) fn pending(&self) -> u64 {
        self.pending.len() as u64
    }

    /// How many labels were sent once more.
    pub(crate) const fn again(&self) -> u64 {
        self.again
    }

    /// Commits a label; its sequence.
    pub(crate) fn commit(&mut self, entry: Entry) -> u64 {
        self.committed += 1;
        self.pending.insert(self.committed, entry);
        self.committed
    }

    /// What is known of a label that waits.
    pub(crate) fn entry(&self, sequence: u64) -> Option<Entry> {
        self.pending.get(&sequence).copied()
    }

    /// The connection is new, or the collector is: everything that waits is sent again.
    pub(crate) fn restart(&mut self) {
        self.sent.clear();
        self.cursor = 0;
    }

    /// The next sequence to send now, marked as sent.
    pub(crate) fn next(&mut self, now: u64) -> Option<u64> {
        if let Some((&sequence, sent)) = self.sent.iter_mut().find(|(_, sent)| sent.due <= now) {
            let ran_out = now >= sent.at + sent.wait;
            let wait = if ran_out { (sent.wait * 2).min(AGAIN_LAST) } else { sent.wait };
            *sent = Sent { due: now + wait, at: now, wait };
            self.again += 1;
            return Some(sequence);
        }
        if self.sent.len() >= WINDOW {
            return None;
        }
        let sequence = self.pending.range(self.cursor.saturating_add(1)..).next().map(|(&sequence, _)| sequence)?;
        self.cursor = sequence;
        self.sent.insert(sequence, Sent { due: now + AGAIN_FIRST, at: now, wait: AGAIN_FIRST });
        if sequence <= self.highest_sent {
            self.again += 1;
        }
        self.highest_sent = self.highest_sent.max(sequence);
        Some(sequence)
    }

    /// Clears what an acknowledgement of this epoch names, and nothing else.
    pub(crate) fn acknowledged(&mut self, ack: &AckMsg, now: u64, mut cleared: impl FnMut(Entry)) {
        if ack.epoch != self.epoch {
            return;
        }
        if ack.collector != self.collector {
            if self.collector != 0 {
                self.restart();
            }
            self.collector = ack.collector;
        }
        // A collector that was silent for long was away, and what was sent meanwhile may have found nobody.
        if self.heard.is_none_or(|heard| now.saturating_sub(heard) >= AGAIN_FIRST) {
            self.sent.values_mut().for_each(|sent| sent.due = sent.due.min(sent.at + AGAIN_GAP));
        }
        self.heard = Some(now);
        while let Some(first) = self.pending.first_entry() {
            if *first.key() > ack.watermark {
                break;
            }
            cleared(first.remove());
        }
        // A range that ends before it begins names nothing.
        for &(from, to) in ack.stored.iter().filter(|(from, to)| from <= to) {
            let named: Vec<u64> = self.pending.range(from..=to).map(|(&sequence, _)| sequence).collect();
            named.iter().filter_map(|sequence| self.pending.remove(sequence)).for_each(&mut cleared);
        }
        let highest = ack.stored.iter().map(|&(_, to)| to).fold(ack.watermark, u64::max);
        let pending = &self.pending;
        self.sent.retain(|sequence, sent| {
            if *sequence < highest {
                sent.due = sent.due.min(sent.at + AGAIN_GAP);
            }
            pending.contains_key(sequence)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::generated::Random;
    use std::collections::BTreeSet;

    const EPOCH: u64 = 7;

    fn ack(watermark: u64, stored: &[(u64, u64)]) -> AckMsg {
        AckMsg { version: 1, collector: 3, epoch: EPOCH, watermark, stored: stored.iter().copied().collect() }
    }

    fn filled(labels: u64) -> Outbox {
        let mut outbox = Outbox::new(EPOCH);
        for committed_ms in 0..labels {
            outbox.commit(Entry { committed_ms, model: 0 });
        }
        outbox
    }

    fn send_all(outbox: &mut Outbox, now: u64) -> Vec<u64> {
        std::iter::from_fn(|| outbox.next(now)).collect()
    }

    fn clear(outbox: &mut Outbox, ack: &AckMsg, now: u64) -> u64 {
        let mut count = 0;
        outbox.acknowledged(ack, now, |_| count += 1);
        count
    }

    #[test]
    fn only_what_is_named_leaves() {
        let mut outbox = filled(10);
        assert_eq!(clear(&mut outbox, &AckMsg { epoch: EPOCH + 1, ..ack(10, &[]) }, 0), 0, "another epoch's");
        assert_eq!(clear(&mut outbox, &ack(3, &[(5, 6), (9, 8)]), 0), 5);
        assert_eq!(outbox.pending.keys().copied().collect::<Vec<_>>(), [4, 7, 8, 9, 10]);
        assert_eq!(clear(&mut outbox, &ack(1, &[]), 0), 0, "an older one brings nothing back");
        assert_eq!(clear(&mut outbox, &ack(u64::MAX, &[(0, u64::MAX)]), 0), 5);
        assert_eq!((outbox.pending(), outbox.committed()), (0, 10));
    }

    #[test]
    fn a_window_is_sent_and_again_after_silence() {
        let mut outbox = filled(WINDOW as u64 + 5);
        assert_eq!(send_all(&mut outbox, 0).len(), WINDOW);
        assert!(send_all(&mut outbox, AGAIN_FIRST - 1).is_empty());
        assert_eq!(send_all(&mut outbox, AGAIN_FIRST).len(), WINDOW);
        assert!(send_all(&mut outbox, 3 * AGAIN_FIRST - 1).is_empty(), "then after twice as long");
        assert_eq!(outbox.again(), WINDOW as u64);
        outbox.restart();
        assert_eq!(send_all(&mut outbox, 3 * AGAIN_FIRST - 1), (1..=WINDOW as u64).collect::<Vec<_>>());
    }

    #[test]
    fn a_gap_is_sent_soon_and_a_new_collector_gets_everything() {
        let mut outbox = filled(4);
        assert_eq!(clear(&mut outbox, &ack(0, &[]), 0), 0);
        assert_eq!(send_all(&mut outbox, 0), [1, 2, 3, 4]);
        assert_eq!(clear(&mut outbox, &ack(0, &[(2, 3)]), 10), 2);
        assert!(send_all(&mut outbox, AGAIN_GAP - 1).is_empty());
        assert_eq!(send_all(&mut outbox, AGAIN_GAP), [1], "4 lies above all that is stored");
        clear(&mut outbox, &AckMsg { collector: 4, ..ack(0, &[]) }, AGAIN_GAP);
        assert_eq!(send_all(&mut outbox, AGAIN_GAP), [1, 4]);
    }

    /// A collector behind a network that drops, repeats and reorders, with acknowledgements that get lost: nothing leaves that it does not
    /// have, and once the network is well everything leaves.
    #[test]
    fn whatever_the_network_does_nothing_is_lost() {
        for seed in 0..40 {
            let mut random = Random(seed);
            let (mut outbox, mut stored, mut now) = (Outbox::new(EPOCH), BTreeSet::new(), 0);
            let mut network: Vec<u64> = Vec::new();
            for step in 0..1000 {
                let well = step >= 400;
                now += if well { 20_000 } else { random.below(4_000) };
                match random.below(if well { 4 } else { 8 }) {
                    0 | 1 => network.extend(send_all(&mut outbox, now)),
                    2 => {
                        while !network.is_empty() {
                            stored.insert(network.swap_remove(random.below(network.len() as u64) as usize));
                        }
                    }
                    3 => {
                        let mark = (1..).take_while(|sequence| stored.contains(sequence)).last().unwrap_or(0);
                        let above: Vec<(u64, u64)> = stored.range(mark + 1..).take(16).map(|&sequence| (sequence, sequence)).collect();
                        outbox.acknowledged(&ack(mark, &above), now, |_| {});
                    }
                    4 => {
                        for _ in 0..random.below(30) {
                            outbox.commit(Entry { committed_ms: now, model: 0 });
                        }
                    }
                    5 => network.truncate(network.len() / 2),
                    6 => network.extend(network.clone()),
                    _ => outbox.restart(),
                }
                assert!(outbox.sent.len() <= WINDOW);
                let kept = |sequence: &u64| stored.contains(sequence) || outbox.pending.contains_key(sequence);
                assert!((1..=outbox.committed()).all(|sequence| kept(&sequence)), "seed {seed}, step {step}");
            }
            assert_eq!(outbox.pending(), 0, "seed {seed}: {} of {} wait for ever", outbox.pending(), outbox.committed());
        }
    }
}
