//! Three tasks around the client's event loop. The *polling* task polls, and leaves the socket unread only where the backlog is full; the
//! *forwarding* task subscribes after each connect and hands messages to the owner; the *acknowledging* task tells the broker which ones the
//! owner has. That is a task of its own, because acknowledgements wait for the polling task in a short queue of the client's: who makes room
//! in the backlog must never wait for it.

use crate::{Backoff, Incoming};
use rumqttc::{AsyncClient, ClientError, ConnectionError, Event, EventLoop, ManualAck, Packet, Publish, QoS, SubscribeFilter};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, mpsc, watch};

/// What is subscribed after each connect.
pub(crate) type Subscriptions = Arc<Mutex<Vec<String>>>;

/// How long a clean close waits for the broker.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection that lived this long was a success: back-off starts over.
const STABLE: Duration = Duration::from_secs(5);
/// Brokers do not keep to the receive maximum: rumqttd 0.20 ignores it and mosquitto 2.0.11 loses count of it when the client
/// publishes too. What they send beyond it waits here, up to so many bytes, so that the polling task need not wait for the owner (who may be
/// waiting in a publish): room for the windows of some thousand devices that all send after an outage.
const BACKLOG_BYTES: usize = 64 * 1024 * 1024;
/// With that many waiting, the socket is left unread for so long, which holds the broker back whatever it counts. An owner who takes nothing for
/// longer may be waiting in a publish, and a broker that hears nothing for 1.5 times the keep-alive closes the connection by itself: so it
/// is dropped, which loses nothing that outbox and collector do not repeat, and is made again at once.
const ROOM_TIMEOUT: Duration = Duration::from_secs(10);
/// It is counted in steps of so long: a process that was stopped for a minute has waited for one.
const ROOM_STEP: Duration = Duration::from_millis(100);
/// What a message costs beside its payload and topic, bytes.
const MESSAGE_BYTES: usize = 256;
/// So many messages have as many bytes whatever is in them: the queue itself never decides.
const BACKLOG_MESSAGES: usize = BACKLOG_BYTES / MESSAGE_BYTES;
/// Messages that an owner may ask the broker for ahead, at most.
pub(crate) const MAX_AHEAD: usize = 4096;

/// From the polling to the forwarding task.
enum Item {
    Connected { connection: u64 },
    Disconnected { reason: String, retry_in: Duration },
    Refused { reason: String },
    Message { publish: Publish, connection: u64 },
}

pub(crate) fn add(subscriptions: &Subscriptions, filter: &str) -> bool {
    let mut list = subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
    let new = !list.iter().any(|known| known == filter);
    if new {
        list.push(filter.to_owned());
    }
    new
}

pub(crate) fn remove(subscriptions: &Subscriptions, filter: &str) -> bool {
    let mut list = subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
    let before = list.len();
    list.retain(|known| known != filter);
    list.len() < before
}

pub(crate) fn start(
    client: AsyncClient,
    eventloop: EventLoop,
    subscriptions: Vec<String>,
    ahead: usize,
) -> (Subscriptions, mpsc::Receiver<Incoming>, watch::Sender<bool>, watch::Receiver<bool>) {
    let subscriptions: Subscriptions = Arc::new(Mutex::new(subscriptions));
    let (items, inner) = mpsc::channel(BACKLOG_MESSAGES);
    let (outgoing, receiver) = mpsc::channel(ahead);
    let (close, closing) = watch::channel(false);
    let (done, closed) = watch::channel(false);
    let (connection, current) = watch::channel(0);
    let backlog = Arc::new(Semaphore::new(BACKLOG_BYTES));
    let polled = Arc::new(Notify::new());
    let poller = Poller {
        eventloop,
        client: client.clone(),
        items,
        backlog: Arc::clone(&backlog),
        connection,
        backoff: Backoff::default(),
        connected: None,
        refused: false,
        polled: Arc::clone(&polled),
    };
    let ended = Arc::clone(&polled);
    tokio::spawn(async move {
        poller.run(closing).await;
        ended.notify_one();
        done.send_replace(true);
    });
    // Where it is full, the receiver waits; that is a queue of this many that the owner has and the polling task has not looked at.
    let (acks, taken) = mpsc::channel(BACKLOG_MESSAGES);
    tokio::spawn(acknowledge(client.clone(), taken, current.clone(), polled));
    tokio::spawn(forward(client, Arc::clone(&subscriptions), inner, outgoing, acks, current, backlog));
    (subscriptions, receiver, close, closed)
}

/// What a message takes of [`BACKLOG_BYTES`]; a packet is far smaller than 4 GiB.
fn cost(publish: &Publish) -> u32 {
    (publish.payload.len() + publish.topic.len() + MESSAGE_BYTES) as u32
}

/// Waits until the link is to be closed: true when asked to, false when every handle was dropped (the broker then sends the last will).
async fn asked(closing: &mut watch::Receiver<bool>) -> bool {
    closing.wait_for(|&closing| closing).await.is_ok()
}

struct Poller {
    eventloop: EventLoop,
    client: AsyncClient,
    items: mpsc::Sender<Item>,
    /// Of [`BACKLOG_BYTES`], what the messages in `items` leave.
    backlog: Arc<Semaphore>,
    /// Counts connects and disconnects: the number tells connections apart.
    connection: watch::Sender<u64>,
    backoff: Backoff,
    /// Since when.
    connected: Option<Instant>,
    /// Whether the owner knows that this connection is refused something.
    refused: bool,
    /// Told after each poll: there may be room for acknowledgements.
    polled: Arc<Notify>,
}

impl Poller {
    async fn run(mut self, mut closing: watch::Receiver<bool>) {
        loop {
            self.polled.notify_one();
            let event = tokio::select! {
                biased;
                asked = asked(&mut closing) => {
                    if asked && self.connected.is_some() {
                        self.disconnect().await;
                    }
                    return;
                }
                event = self.eventloop.poll() => event,
            };
            match event {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    self.connected = Some(Instant::now());
                    self.refused = false;
                    let connection = self.next_connection();
                    self.put(Item::Connected { connection }).await;
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    let put = tokio::select! {
                        // What is unread is lost with the connection, and comes again.
                        _ = asked(&mut closing) => continue,
                        put = self.message(publish) => put,
                    };
                    if let Err(reason) = put {
                        // The broker is well: waiting longer and longer would leave what it holds for us to pile up.
                        self.backoff.reset();
                        if !self.retry(reason, &mut closing).await {
                            return;
                        }
                    }
                }
                Ok(Event::Incoming(Packet::SubAck(ack))) => {
                    let refused = ack.return_codes.iter().filter(|code| !matches!(code, rumqttc::SubscribeReasonCode::Success(_))).count();
                    if refused > 0 {
                        self.refuse(format!("{refused} of the subscriptions ({:?})", ack.return_codes)).await;
                    }
                }
                Ok(Event::Incoming(Packet::PubAck(ack))) if (ack.reason as u8) >= 0x80 => {
                    self.refuse(format!("a message ({:?})", ack.reason)).await;
                }
                Ok(_) => {}
                Err(ConnectionError::RequestsDone) => return,
                Err(error) => {
                    if !self.retry(error.to_string(), &mut closing).await {
                        return;
                    }
                }
            }
        }
    }

    async fn refuse(&mut self, what: String) {
        if !std::mem::replace(&mut self.refused, true) {
            let reason = format!(
                "the broker refuses {what}: check that the certificate is the one for this name and that the access control is loaded, then restart this program"
            );
            tracing::error!(reason);
            self.put(Item::Refused { reason }).await;
        }
    }

    fn next_connection(&mut self) -> u64 {
        self.connection.send_modify(|number| *number += 1);
        *self.connection.borrow()
    }

    /// Puts a message into the backlog, waiting for room, or says why it does not fit.
    async fn message(&self, publish: Publish) -> Result<(), String> {
        let connection = *self.connection.borrow();
        let mut waited = Duration::ZERO;
        loop {
            match tokio::time::timeout(ROOM_STEP, self.backlog.acquire_many(cost(&publish))).await {
                Ok(Ok(room)) => break room.forget(),
                _ if waited >= ROOM_TIMEOUT => {
                    return Err(format!("{BACKLOG_BYTES} bytes have waited for the receiver for {ROOM_TIMEOUT:?}"));
                }
                _ => waited += ROOM_STEP,
            }
        }
        self.items
            .try_send(Item::Message { publish, connection })
            .map_err(|_| format!("more than {BACKLOG_MESSAGES} messages wait for the receiver"))
    }

    /// Tells the owner and waits before the next attempt; false when the link is to be closed.
    async fn retry(&mut self, reason: String, closing: &mut watch::Receiver<bool>) -> bool {
        // Acknowledgements of the old connection: none is put in from here on, and those that are queued are dropped. On the next one the
        // client takes them for a fault and ends it.
        self.next_connection();
        self.eventloop.clean();
        if self.connected.take().is_some_and(|since| since.elapsed() >= STABLE) {
            self.backoff.reset();
        }
        let retry_in = self.backoff.next_delay();
        self.put(Item::Disconnected { reason, retry_in }).await;
        tokio::select! {
            _ = asked(closing) => false,
            () = tokio::time::sleep(retry_in) => true,
        }
    }

    async fn put(&mut self, item: Item) {
        // The forwarding task lives as long as this one; when it is gone the runtime is shutting down.
        let _ = self.items.send(item).await;
    }

    /// Sends what is queued and DISCONNECT, then polls until the client says that it is done. The client lets DISCONNECT pass everything
    /// that it has not looked at yet, so that has to be gone first.
    async fn disconnect(&mut self) {
        let drained = tokio::time::timeout(CLOSE_TIMEOUT, async {
            while self.queued() > 0 {
                self.eventloop.poll().await?;
            }
            Ok::<_, ConnectionError>(())
        });
        match drained.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return tracing::warn!(%error, "no clean disconnect"),
            Err(_) => tracing::warn!("{} messages were not sent within {CLOSE_TIMEOUT:?}", self.queued()),
        }
        if let Err(error) = self.client.try_disconnect_with_timeout(CLOSE_TIMEOUT) {
            tracing::warn!(%error, "no clean disconnect");
            return;
        }
        let answered = tokio::time::timeout(CLOSE_TIMEOUT, async {
            loop {
                if let Err(error) = self.eventloop.poll().await {
                    return error;
                }
            }
        });
        match answered.await {
            Ok(ConnectionError::RequestsDone) => {}
            Ok(error) => tracing::warn!(%error, "no clean disconnect"),
            Err(_) => tracing::warn!("no clean disconnect within {CLOSE_TIMEOUT:?}"),
        }
    }

    /// Publishes and acknowledgements that the client has not written yet.
    fn queued(&self) -> usize {
        let queues = self.eventloop.diagnostics().queues;
        queues.pending_len + queues.requests_rx_len
    }
}

async fn forward(
    client: AsyncClient,
    subscriptions: Subscriptions,
    mut items: mpsc::Receiver<Item>,
    outgoing: mpsc::Sender<Incoming>,
    acks: mpsc::Sender<(ManualAck, u64)>,
    mut current: watch::Receiver<u64>,
    backlog: Arc<Semaphore>,
) {
    while let Some(item) = items.recv().await {
        let (incoming, ack) = match item {
            Item::Connected { connection } => {
                let list = subscriptions.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if !list.is_empty() {
                    let filters = list.into_iter().map(|filter| SubscribeFilter::new(filter, QoS::AtLeastOnce));
                    subscribe(&client, filters, connection, &mut current).await;
                }
                (Incoming::Connected, None)
            }
            Item::Disconnected { reason, retry_in } => (Incoming::Disconnected { reason, retry_in }, None),
            Item::Refused { reason } => (Incoming::Refused { reason }, None),
            Item::Message { publish, connection } => {
                backlog.add_permits(cost(&publish) as usize);
                let message = Incoming::Message {
                    topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                    payload: publish.payload.to_vec(),
                    retained: publish.retain,
                };
                (message, client.prepare_ack(&publish).map(|ack| (ack, connection)))
            }
        };
        // An owner that dropped its receiver only publishes: messages are taken from the broker all the same.
        let _ = outgoing.send(incoming).await;
        if let Some(ack) = ack
            && acks.send(ack).await.is_err()
        {
            return;
        }
    }
}

/// Acknowledges to the broker what the owner has taken.
async fn acknowledge(client: AsyncClient, mut taken: mpsc::Receiver<(ManualAck, u64)>, current: watch::Receiver<u64>, polled: Arc<Notify>) {
    while let Some((ack, of)) = taken.recv().await {
        loop {
            // An acknowledgement on another connection than the message's would name somebody else's packet. The number does not change
            // while it is borrowed, so what is put in here is in the queue before that is emptied.
            let put = {
                let number = current.borrow();
                (*number == of).then(|| client.try_manual_ack(ack.clone()))
            };
            match put {
                None | Some(Ok(())) => break,
                Some(Err(ClientError::RequestChannelFull(_))) => polled.notified().await,
                Some(Err(_)) => return,
            }
        }
    }
}

/// Subscribes and waits for the broker's answer, or for the end of the connection.
async fn subscribe(
    client: &AsyncClient,
    filters: impl Iterator<Item = SubscribeFilter>,
    connection: u64,
    current: &mut watch::Receiver<u64>,
) {
    match client.subscribe_many_tracked(filters).await {
        Ok(notice) => tokio::select! {
            answer = notice.wait_async() => {
                if let Err(error) = answer {
                    tracing::warn!(%error, "no answer to the subscriptions");
                }
            }
            _ = current.wait_for(|&number| number != connection) => {}
        },
        Err(error) => tracing::error!(%error, "cannot subscribe"),
    }
}
