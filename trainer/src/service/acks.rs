//! Which outboxes wait to be told what is stored. Everything that comes for an outbox that waits already goes into the same answer, so that
//! a busy centre sends few acknowledgements and a quiet one sends them at once. Devices are answered in turn, each for one outbox at a time:
//! one that invents outboxes takes no other's turn. Nothing is lost with a place in this queue: a device that is not answered repeats its
//! message.

use crate::service::store::intake::Touched;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Sequences of one outbox that an answer names at the most; the lowest are forgotten first, as they are the likeliest to lie below the
/// watermark by then.
const MAX_SEQUENCES: usize = 4096;
/// Outboxes of one device that wait: the one in use, and the one before it.
const MAX_OUTBOXES: usize = 2;

/// The queue: as many devices as the collector takes, in the order in which they began to wait.
#[derive(Debug, Default)]
struct Due {
    order: VecDeque<String>,
    /// By device and outbox epoch.
    sequences: HashMap<String, BTreeMap<u64, BTreeSet<u64>>>,
}

impl Due {
    fn add(&mut self, touched: Touched) {
        let outboxes = self.sequences.entry(touched.device.clone()).or_default();
        if outboxes.is_empty() {
            self.order.push_back(touched.device);
        }
        if outboxes.len() >= MAX_OUTBOXES && !outboxes.contains_key(&touched.epoch) {
            return;
        }
        let known = outboxes.entry(touched.epoch).or_default();
        known.extend(touched.sequences);
        while known.len() > MAX_SEQUENCES {
            known.pop_first();
        }
    }

    fn take(&mut self) -> Option<Touched> {
        let device = self.order.pop_front()?;
        let outboxes = self.sequences.get_mut(&device)?;
        let (epoch, sequences) = outboxes.pop_first()?;
        if outboxes.is_empty() {
            self.sequences.remove(&device);
        } else {
            self.order.push_back(device.clone());
        }
        Some(Touched { device, epoch, sequences })
    }
}

/// The queue between the collector, which never waits, and the sender. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub(crate) struct AckQueue {
    due: Arc<Mutex<Due>>,
    more: Arc<Notify>,
}

impl AckQueue {
    pub(crate) fn add(&self, touched: impl IntoIterator<Item = Touched>) {
        let mut due = self.lock();
        touched.into_iter().for_each(|one| due.add(one));
        drop(due);
        self.more.notify_one();
    }

    pub(crate) fn take(&self) -> Option<Touched> {
        self.lock().take()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().order.is_empty()
    }

    /// Returns when something was added since the last call.
    pub(crate) async fn added(&self) {
        self.more.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Due> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touched(device: &str, epoch: u64, sequences: impl IntoIterator<Item = u64>) -> Touched {
        Touched { device: device.to_owned(), epoch, sequences: sequences.into_iter().collect() }
    }

    #[test]
    fn an_outbox_that_waits_gets_one_answer_in_its_turn() {
        let queue = AckQueue::default();
        queue.add([touched("a", 1, [1, 2]), touched("b", 1, [7]), touched("a", 1, [3])]);
        assert_eq!(queue.take(), Some(touched("a", 1, [1, 2, 3])));
        queue.add([touched("a", 1, [4])]);
        assert_eq!(queue.take(), Some(touched("b", 1, [7])));
        assert_eq!(queue.take(), Some(touched("a", 1, [4])));
        assert!(queue.is_empty() && queue.take().is_none());
        // Nothing touched is an answer, too: what a device is told after a connect.
        queue.add([touched("a", 1, [])]);
        assert_eq!(queue.take(), Some(touched("a", 1, [])));
    }

    #[test]
    fn a_device_that_invents_outboxes_takes_nobodys_turn() {
        let queue = AckQueue::default();
        queue.add((1..=10_000).map(|epoch| touched("liar", epoch, [1])));
        queue.add([touched("honest", 1, [5])]);
        let answers: Vec<Touched> = std::iter::from_fn(|| queue.take()).collect();
        assert_eq!(answers, [touched("liar", 1, [1]), touched("honest", 1, [5]), touched("liar", 2, [1])]);
    }

    #[test]
    fn the_highest_sequences_stay() {
        let queue = AckQueue::default();
        queue.add([touched("a", 1, 1..=10)]);
        queue.add([touched("a", 1, 11..=MAX_SEQUENCES as u64 + 4)]);
        let sequences = queue.take().unwrap().sequences;
        assert_eq!((sequences.len(), sequences.first()), (MAX_SEQUENCES, Some(&5)));
    }
}
