//! As many connections at once as a page needs, so that those who hold them open take no file descriptors from the outbox. Each ends when
//! the other side does not take what is sent to it. That a request comes in time is hyper's to see to.

use axum::serve::Listener;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

/// Connections at once; further ones wait to be accepted. A browser opens six.
pub(super) const CONNECTIONS: usize = 32;

/// A listener that accepts while there is room.
pub(super) struct Limited {
    listener: TcpListener,
    room: Arc<Semaphore>,
    patience: Duration,
}

impl Limited {
    /// What is sent may wait for `patience` to be taken.
    pub(super) fn new(listener: TcpListener, patience: Duration) -> Self {
        Self { listener, room: Arc::new(Semaphore::new(CONNECTIONS)), patience }
    }

    pub(super) async fn accept(&mut self) -> (Counted, SocketAddr) {
        // Nobody closes the semaphore; without a permit the connection would only not be counted.
        let permit = Arc::clone(&self.room).acquire_owned().await.ok();
        // Waits and tries again when the system has no descriptor.
        let (stream, address) = Listener::accept(&mut self.listener).await;
        (Counted { stream, _permit: permit, patience: self.patience, stalled: None }, address)
    }
}

/// A connection with its place.
pub(super) struct Counted {
    stream: TcpStream,
    _permit: Option<OwnedSemaphorePermit>,
    patience: Duration,
    /// Runs while nothing can be written.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Poll::Ready(written) = Pin::new(&mut this.stream).poll_write(context, bytes) {
            this.stalled = None;
            return Poll::Ready(written);
        }
        let patience = this.patience;
        let stalled = this.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        stalled.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    /// Generous: the machine may be busy.
    const DEADLINE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn connections_beyond_the_room_wait_for_a_place() {
        let inner = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = inner.local_addr().unwrap();
        let mut listener = Limited::new(inner, DEADLINE);
        let mut clients = Vec::new();
        let mut accepted = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(TcpStream::connect(address).await.unwrap());
            accepted.push(listener.accept().await);
        }
        clients.push(TcpStream::connect(address).await.unwrap());
        assert!(tokio::time::timeout(Duration::from_millis(100), listener.accept()).await.is_err(), "there is no place");
        accepted.pop();
        tokio::time::timeout(DEADLINE, listener.accept()).await.expect("a place is free again");
    }

    #[tokio::test]
    async fn who_does_not_take_what_he_asked_for_loses_his_place() {
        let inner = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = inner.local_addr().unwrap();
        let mut listener = Limited::new(inner, Duration::from_millis(100));
        let _asker = TcpStream::connect(address).await.unwrap();
        let (mut connection, _) = listener.accept().await;
        connection.write_all(b"a little is taken by the system").await.unwrap();
        // More than its buffers hold.
        let ended = tokio::time::timeout(DEADLINE, connection.write_all(&vec![0; 256 << 20])).await;
        assert_eq!(ended.expect("an end").unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(listener.room.available_permits(), CONNECTIONS - 1);
        drop(connection);
        assert_eq!(listener.room.available_permits(), CONNECTIONS);
    }
}
