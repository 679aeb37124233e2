//! Tells outboxes what is stored of them. Every collector answers for what it has committed itself. An answer is retained, and one of a
//! slower collector may take the place of a newer one: a device takes of each what it says is stored and never takes that back, so it is
//! told less for a moment and not something wrong; and it repeats what it was not told of, which is answered anew.

use crate::service::acks::AckQueue;
use crate::service::store::Store;
use crate::service::store::intake::Touched;
use crate::service::web::Health;
use omnilabel_keypoints::wire::topic::{self, Kind};
use omnilabel_keypoints::wire::{AckMsg, Encoding, Message};
use omnilabel_link::{Link, LinkConfig};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Acknowledgements a second: each is a retained message through the broker and costs as much as a label. Outboxes that wait meanwhile are
/// told of everything that came in the one answer that they get.
const ACKS_PER_SECOND: f64 = 1000.0;
/// What was not used of it for so long may be used at once.
const ACK_BURST: Duration = Duration::from_millis(50);
/// How long the database is left alone when it did not answer.
const RETRY: Duration = Duration::from_secs(1);

/// The way from the queue to the broker.
pub(super) struct Answers {
    broker: LinkConfig,
    store: Store,
    link: Link,
    queue: AckQueue,
    health: Arc<Health>,
    /// When the next one may go out.
    due: Instant,
}

impl Answers {
    pub(super) fn new(broker: &LinkConfig, store: &Store, link: &Link, queue: &AckQueue, health: Arc<Health>) -> Self {
        Self { broker: broker.clone(), store: store.clone(), link: link.clone(), queue: queue.clone(), health, due: Instant::now() }
    }

    /// Every device is to be told what is stored of its latest outbox.
    pub(super) async fn all(&self) -> anyhow::Result<()> {
        self.queue.add(self.store.outboxes().await?);
        Ok(())
    }

    /// Waits until somebody waits for an answer and may have one.
    pub(super) async fn due(&self) {
        while self.queue.is_empty() {
            self.queue.added().await;
        }
        tokio::time::sleep_until(self.due).await;
    }

    /// Tells the outbox that has waited longest what is stored of it, and says when the next one may be told.
    pub(super) async fn next(&mut self) -> anyhow::Result<()> {
        self.due = self.due.max(Instant::now() - ACK_BURST);
        let Some(touched) = self.queue.take() else { return Ok(()) };
        let acks = match self.store.acks(&touched).await {
            Ok(acks) => acks,
            Err(error) => {
                // The database is busy or full: as patient as a commit.
                self.due = Instant::now() + RETRY;
                self.queue.add([touched]);
                return Err(error.into());
            }
        };
        self.publish(&touched, acks).await
    }

    async fn publish(&mut self, to: &Touched, acks: Vec<AckMsg>) -> anyhow::Result<()> {
        let topic = topic::device(&self.broker.prefix, &self.broker.site, &to.device, Kind::Ack);
        for ack in acks {
            self.due += Duration::from_secs_f64(1.0 / ACKS_PER_SECOND);
            let mut buffer = vec![0; AckMsg::MAX_BYTES];
            let length = ack.encode(Encoding::Cbor, &mut buffer)?;
            buffer.truncate(length);
            self.link.publish(topic.as_str(), buffer, true).await?;
            self.health.acknowledged();
        }
        Ok(())
    }
}
