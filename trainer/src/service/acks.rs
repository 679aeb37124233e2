//! Which outboxes wait to be told what is stored. Everything that comes for an outbox that waits already goes into the same answer, so that
//! a busy centre sends few acknowledgements and a quiet one sends them at once. Nothing is lost with a place in this queue: a device that
//! is not answered repeats its message.

use crate::service::store::intake::Touched;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Sequences of one outbox that an answer names at the most; the lowest are forgotten first, as they are the likeliest to lie below the
/// watermark by then.
const MAX_SEQUENCES: usize = 4096;

/// The queue, in the order in which outboxes began to wait.
#[derive(Debug)]
struct Due {
    order: VecDeque<(String, u64)>,
    sequences: HashMap<(String, u64), BTreeSet<u64>>,
    limit: usize,
}

impl Due {
    fn add(&mut self, touched: Touched) {
        let key = (touched.device, touched.epoch);
        if let Some(known) = self.sequences.get_mut(&key) {
            known.extend(touched.sequences);
            while known.len() > MAX_SEQUENCES {
                known.pop_first();
            }
        } else if self.order.len() < self.limit {
            self.order.push_back(key.clone());
            self.sequences.insert(key, touched.sequences);
        }
    }

    fn take(&mut self) -> Option<Touched> {
        let key = self.order.pop_front()?;
        let sequences = self.sequences.remove(&key).unwrap_or_default();
        Some(Touched { device: key.0, epoch: key.1, sequences })
    }
}

/// The queue between the collector, which never waits, and the sender. Cloning shares it.
#[derive(Clone, Debug)]
pub(crate) struct AckQueue {
    due: Arc<Mutex<Due>>,
    more: Arc<Notify>,
}

impl AckQueue {
    /// Of at most `limit` outboxes; more are not answered until they send again.
    pub(crate) fn new(limit: usize) -> Self {
        let due = Due { order: VecDeque::new(), sequences: HashMap::new(), limit };
        Self { due: Arc::new(Mutex::new(due)), more: Arc::default() }
    }

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

    fn touched(device: &str, sequences: impl IntoIterator<Item = u64>) -> Touched {
        Touched { device: device.to_owned(), epoch: 1, sequences: sequences.into_iter().collect() }
    }

    #[test]
    fn an_outbox_that_waits_gets_one_answer_in_its_turn() {
        let queue = AckQueue::new(2);
        queue.add([touched("a", [1, 2]), touched("b", [7]), touched("a", [3])]);
        queue.add([touched("c", [1])]);
        assert_eq!(queue.take(), Some(touched("a", [1, 2, 3])));
        queue.add([touched("a", [4])]);
        assert_eq!(queue.take(), Some(touched("b", [7])));
        assert_eq!(queue.take(), Some(touched("a", [4])));
        assert!(queue.is_empty() && queue.take().is_none(), "a third outbox had no place");
    }

    #[test]
    fn the_highest_sequences_stay() {
        let queue = AckQueue::new(1);
        queue.add([touched("a", 1..=10)]);
        queue.add([touched("a", 11..=MAX_SEQUENCES as u64 + 4)]);
        let sequences = queue.take().unwrap().sequences;
        assert_eq!((sequences.len(), sequences.first()), (MAX_SEQUENCES, Some(&5)));
    }
}
