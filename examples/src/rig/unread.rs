//! Connections whose peer reads nothing: hyper has a time for heads that do not come, and none for answers that nobody takes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// A stream that breaks when nothing of what is to be written has gone for a time.
///
/// A peer that acknowledges and does not read keeps a connection for as long as it likes otherwise, with all that its answer holds.
#[derive(Debug)]
pub(super) struct Unread<S> {
    stream: S,
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

/// How much of what is written waits in a socket for a peer that has no room for it.
#[cfg(target_os = "linux")]
const UNSENT_MAX: u32 = 64 * 1024;

/// Lets it be seen soon that a peer has taken something: a write that waits goes on when half of this is sent. Without it that is
/// when a third of all that the socket has room for has gone, megabytes, which a peer may need longer for than it is waited for.
#[cfg(target_os = "linux")]
pub(super) fn shown_soon(stream: &TcpStream) {
    // Without it slow peers are cut off; the others are served all the same.
    let _unsupported = socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_MAX);
}

/// Elsewhere it is seen when the system says so.
#[cfg(not(target_os = "linux"))]
pub(super) const fn shown_soon(_stream: &TcpStream) {}

impl<S> Unread<S> {
    /// So long, and no longer.
    pub(super) const fn for_at_most(patience: Duration, stream: S) -> Self {
        Self { stream, patience, waiting: None }
    }

    fn waited<T>(&mut self, cx: &mut Context<'_>, gone: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if gone.is_ready() {
            self.waiting = None;
            return gone;
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(patience)));
        waiting.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Unread<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Unread<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let gone = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.waited(cx, gone)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let gone = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.waited(cx, gone)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(2);

    #[tokio::test]
    async fn whoever_reads_slowly_is_waited_for_and_whoever_reads_nothing_is_not() {
        let (ours, mut theirs) = duplex(4);
        let mut stream = Unread::for_at_most(PATIENCE, ours);
        let reading = async {
            let mut read = [0; 4];
            for _ in 0..6 {
                sleep(PATIENCE / 4).await;
                let something = timeout(PATIENCE, theirs.read_exact(&mut read)).await;
                something.expect("it goes on").expect("there is something");
            }
        };
        let (written, ()) = tokio::join!(stream.write_all(&[7; 28]), reading);
        written.expect("each of the waits was short");
        let unread = timeout(PATIENCE * 5, stream.write_all(&[7; 4])).await.expect("not for ever");
        assert_eq!(unread.expect_err("nobody reads").kind(), io::ErrorKind::TimedOut);
    }
}
