//! The door of the pages: who may come in, how many at once, and how long one may stand in it without a word.
//!
//! Connections are descriptors, and those of the link come out of the same purse. So only [`CONNECTIONS_MAX`] are open at a
//! time, more wait outside (in the system's queue), and one that says nothing for [`IDLE_MAX`], or takes longer than
//! [`REQUEST_MAX`] to say what it wants, is shown out.

use crate::CoordinatorError;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// Connections at a time.
const CONNECTIONS_MAX: usize = 64;
/// Longest wait for the next byte of a request, or for room for the next one of an answer.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// Longest time from the first wait for a request to the whole of it; there is one a connection.
const REQUEST_MAX: Duration = Duration::from_secs(10);
/// Pause after the system refused a connection: it is short of descriptors, say.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// An address that is taken, and not served yet.
pub(crate) struct Door {
    address: String,
    listener: std::net::TcpListener,
}

impl Door {
    /// Takes `address`, `HOST:PORT`.
    ///
    /// # Errors
    /// Another process has it, or the system does not give it.
    pub(crate) fn open(address: &str) -> Result<Door, CoordinatorError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => CoordinatorError::AddressInUse { address: address.to_owned() },
            _ => CoordinatorError::Pages { address: address.to_owned(), source },
        };
        let listener = std::net::TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Door { address: address.to_owned(), listener })
    }

    /// As given.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Opens it, within a runtime.
    pub(super) fn listen(self) -> io::Result<Entrance> {
        let listener = TcpListener::from_std(self.listener)?;
        Ok(Entrance { listener, room: Arc::new(Semaphore::new(CONNECTIONS_MAX)) })
    }
}

/// Lets in as many as there is room for.
pub(super) struct Entrance {
    listener: TcpListener,
    room: Arc<Semaphore>,
}

impl axum::serve::Listener for Entrance {
    type Io = Guest;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guest, SocketAddr) {
        let place = Arc::clone(&self.room).acquire_owned().await.expect("the semaphore is never closed");
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    return (Guest::new(stream, place), address);
                }
                Err(error) => {
                    tracing::debug!(%error, "a connection to the pages was not accepted");
                    sleep(REFUSED_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when nothing comes or goes for too long.
pub(super) struct Guest {
    stream: TcpStream,
    patience: Pin<Box<Sleep>>,
    /// When the request that is awaited must be there; none while it is answered.
    request_until: Option<Instant>,
    _place: OwnedSemaphorePermit,
}

impl Guest {
    fn new(stream: TcpStream, place: OwnedSemaphorePermit) -> Guest {
        Guest { stream, patience: Box::pin(sleep(IDLE_MAX)), request_until: None, _place: place }
    }

    /// What the stream says; an error once it has said nothing for too long.
    fn heard<T>(&mut self, context: &mut Context<'_>, said: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if said.is_ready() {
            let idle_until = Instant::now() + IDLE_MAX;
            self.patience.as_mut().reset(self.request_until.map_or(idle_until, |until| until.min(idle_until)));
            return said;
        }
        ready!(self.patience.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Guest {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let guest = self.get_mut();
        let now = Instant::now();
        if *guest.request_until.get_or_insert(now + REQUEST_MAX) <= now {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let said = Pin::new(&mut guest.stream).poll_read(context, buffer);
        guest.heard(context, said)
    }
}

impl AsyncWrite for Guest {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let guest = self.get_mut();
        // There is an answer, so the request was whole.
        guest.request_until = None;
        let said = Pin::new(&mut guest.stream).poll_write(context, bytes);
        guest.heard(context, said)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::serve::Listener;

    /// The next byte that a guest says.
    async fn next(guest: &mut Guest) -> io::Result<u8> {
        let mut byte = [0];
        let mut stream = Pin::new(guest);
        std::future::poll_fn(|context| stream.as_mut().poll_read(context, &mut ReadBuf::new(&mut byte))).await?;
        Ok(byte[0])
    }

    #[test]
    fn a_request_that_never_gets_whole_is_shown_out_however_often_it_says_something() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut entrance = Door::open("127.0.0.1:0").expect("a free port").listen().expect("it opens");
            let address = entrance.local_addr().expect("an address");
            let visitor = TcpStream::connect(address).await.expect("there is room");
            let mut guest = entrance.accept().await.0;
            visitor.writable().await.expect("there is room");
            assert_eq!(visitor.try_write(b"GET").expect("it says something"), 3);
            assert_eq!(next(&mut guest).await.expect("in time"), b'G');
            let until = guest.request_until.expect("a request is awaited");
            assert_eq!(next(&mut guest).await.expect("in time"), b'E');
            assert_eq!(guest.request_until, Some(until), "another byte gives no more time");
            guest.request_until = Some(Instant::now());
            let error = next(&mut guest).await.expect_err("its time is over, though there is a byte");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            // Had it been answered, the next one would have had time of its own.
            let answer = std::future::poll_fn(|context| Pin::new(&mut guest).poll_write(context, b"answer"));
            answer.await.expect("there is room");
            assert_eq!(next(&mut guest).await.expect("in time"), b'T');
        });
    }

    #[test]
    fn who_says_nothing_makes_room_for_the_next() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let door = Door::open("127.0.0.1:0").expect("a free port");
            let mut entrance = door.listen().expect("it opens");
            let address = entrance.local_addr().expect("an address");
            let mut idle = Vec::new();
            let mut guests = Vec::new();
            for _ in 0..CONNECTIONS_MAX {
                idle.push(TcpStream::connect(address).await.expect("there is room"));
                guests.push(entrance.accept().await.0);
            }
            let _next = TcpStream::connect(address).await.expect("the system's queue has room");
            let waited = tokio::time::timeout(Duration::from_millis(50), entrance.accept()).await;
            assert!(waited.is_err(), "no more than so many are let in");
            let mut silent = guests.pop().expect("a guest");
            silent.patience = Box::pin(sleep(Duration::from_millis(50)));
            let error = next(&mut silent).await.expect_err("nobody spoke");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            drop(silent);
            let waited = tokio::time::timeout(Duration::from_secs(20), entrance.accept()).await;
            assert!(waited.is_ok(), "whose place is free for the next");
        });
    }
}
