//! A connection with its place among those that are open at once, which ends when the other side does not take what is sent to it. That
//! a request comes in time is hyper's to see to.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;

/// See the module.
pub(super) struct Connection {
    stream: TcpStream,
    _place: Option<OwnedSemaphorePermit>,
    patience: Duration,
    /// Runs while nothing can be written.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, place: Option<OwnedSemaphorePermit>, patience: Duration) -> Self {
        Self { stream, _place: place, patience, stalled: None }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
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
    use std::sync::Arc;
    use tokio::io::AsyncWriteExt;
    use tokio::sync::Semaphore;

    #[tokio::test]
    async fn who_does_not_take_what_he_asked_for_loses_his_place() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_asker, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let room = Arc::new(Semaphore::new(1));
        let place = Arc::clone(&room).try_acquire_owned().unwrap();
        let mut connection = Connection::new(accepted.unwrap().0, Some(place), Duration::from_millis(100));
        connection.write_all(b"a little is taken by the system").await.unwrap();
        // More than its buffers hold. Without an end of patience this waits for ever.
        let ended = tokio::time::timeout(Duration::from_secs(60), connection.write_all(&vec![0; 256 << 20])).await;
        assert_eq!(ended.expect("an end").unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(room.available_permits(), 0);
        drop(connection);
        assert_eq!(room.available_permits(), 1);
    }
}
