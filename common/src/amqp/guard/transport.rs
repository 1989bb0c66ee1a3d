//! The guard as a stream, and how the client library is made to read through it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::Stream;
use futures_util::io::{AsyncRead, AsyncWrite};
use lapin::tcp::{AMQPUriTcpExt, AsyncTcpStream, OwnedTLSConfig};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::frames::Frames;

/// Bytes read from the socket at a time.
const READ: usize = 32 << 10;

type Inner = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;

/// A connection's stream, TLS included, whose reading side is guarded.
pub(in crate::amqp) struct Guarded {
    inner: Inner,
    frames: Frames,
    scratch: Box<[u8]>,
    /// Guarded bytes, of which those before `taken` have been read.
    ready: Vec<u8>,
    taken: usize,
    /// Ends a connection whose handshake takes too long; the library never would.
    given_up: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Guarded {
    fn new(inner: Inner, given_up: CancellationToken) -> Self {
        Self {
            inner,
            frames: Frames::default(),
            scratch: vec![0; READ].into(),
            ready: Vec::new(),
            taken: 0,
            given_up: Some(Box::pin(given_up.cancelled_owned())),
        }
    }

    fn watch_handshake(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.frames.is_open() {
            self.given_up = None;
        }
        let is_given_up =
            self.given_up.as_mut().is_some_and(|given_up| given_up.as_mut().poll(context).is_ready());
        if is_given_up {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long"));
        }
        Ok(())
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        while this.taken == this.ready.len() {
            this.ready.clear();
            this.taken = 0;
            this.watch_handshake(context)?;
            let read = ready!(Pin::new(&mut this.inner).poll_read(context, &mut this.scratch))?;
            if read == 0 {
                return Poll::Ready(Ok(0));
            }
            this.frames.push(&this.scratch[..read], &mut this.ready);
        }
        let ready = &this.ready[this.taken..];
        let count = ready.len().min(buffer.len());
        buffer[..count].copy_from_slice(&ready[..count]);
        this.taken += count;
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }
    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context)
    }
}

/// Tokio, but for the type of its streams.
#[derive(Clone, Debug)]
pub(in crate::amqp) struct Kit(Tokio);

impl Reactor for Kit {
    type TcpStream = Guarded;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: io::Read + io::Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async move {
            let inner = AsyncTcpStream::Plain(connecting.await?);
            Ok(Guarded::new(inner, CancellationToken::new()))
        }
    }
}

/// Connects within `timeout`, guarded.
///
/// # Errors
/// The library's; `None` when the time is over, and then nothing of the attempt is left.
pub(in crate::amqp) async fn connect(
    uri: AMQPUri,
    properties: ConnectionProperties,
    tls: OwnedTLSConfig,
    timeout: Duration,
) -> Result<Connection, Option<lapin::Error>> {
    let tokio = Tokio::current();
    let runtime = Runtime::new(RuntimeParts::new(tokio.clone(), Kit(tokio.clone())));
    let given_up = CancellationToken::new();
    let token = given_up.clone();
    let dial = async move |uri: AMQPUri, _| {
        // The library dials again when a handshake fails.
        if token.is_cancelled() {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        let plain = Runtime::new(tokio.clone());
        let inner = tokio::select! {
            connected = AMQPUriTcpExt::connect_with_config_async(&uri, tls.as_ref(), &plain) => connected,
            () = token.cancelled() => Err(io::Error::from(io::ErrorKind::TimedOut)),
        };
        let inner = inner.map_err(lapin::Error::from)?;
        Ok(AsyncTcpStream::Plain(Guarded::new(inner, token.clone())))
    };
    // Also where this future is dropped.
    let giving_up = given_up.drop_guard();
    let connecting = Connection::connector(uri, runtime, dial, properties);
    let connected = tokio::time::timeout(timeout, connecting).await.map_err(|_| None)?.map_err(Some)?;
    giving_up.disarm();
    Ok(connected)
}
