//! The way in of gRPC and HTTP: connections accepted, opened under TLS if there is any, and counted.
//!
//! D1. At most `connections_max` are open; one more is closed at once.
//! D2. At most `HANDSHAKES_MAX` strangers are in their TLS handshake at a time; more wait in the kernel's
//!     queue. A handshake costs a thousand times what a request does, so strangers could otherwise take
//!     the whole thread from those who are connected.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::error::{Context as _, Outcome};
use crate::stream::Stream;
use crate::tls::{Face, Tls};

/// Strangers in their handshake at a time.
pub const HANDSHAKES_MAX: usize = 32;

/// How long to wait when the system refuses to give a connection (most likely no file descriptor is
/// left): those who leave give some back.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// At most one warning of a kind in so long: strangers must not fill the log.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Opened connections, as tonic and axum take them.
#[derive(Debug)]
pub struct Door {
    opened: mpsc::Receiver<Guest>,
    address: SocketAddr,
}

/// An open connection and its place among `connections_max`.
#[derive(Debug)]
pub struct Guest {
    stream: Stream,
    from: SocketAddr,
    _place: OwnedSemaphorePermit,
}

impl Door {
    /// Accepts from `listener` until dropped; call on a runtime.
    pub fn open(
        listener: std::net::TcpListener,
        tls: Option<Arc<Tls>>,
        face: Face,
        connections_max: usize,
    ) -> Outcome<Door> {
        let what = || format!("cannot use the {} port", face.name());
        let listener = TcpListener::from_std(listener).context(what)?;
        let address = listener.local_addr().context(what)?;
        let (sender, opened) = mpsc::channel(HANDSHAKES_MAX);
        tokio::spawn(accept(listener, tls, face, connections_max, sender));
        Ok(Door { opened, address })
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    face: Face,
    connections_max: usize,
    opened: mpsc::Sender<Guest>,
) {
    let places = Arc::new(Semaphore::new(connections_max));
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut full = Seldom::default();
    let refused = Arc::new(Mutex::new(Seldom::default()));
    loop {
        let shaking = handshakes.clone().acquire_owned().await;
        let shaking = shaking.expect("the semaphore is never closed");
        let (stream, from) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("cannot accept a {} connection: {error}", face.name());
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = opened.closed() => return,
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            full.warn(|| {
                format!(
                    "{} connections of {} are open: the one from {from} was closed",
                    connections_max,
                    face.name()
                )
            });
            continue;
        };
        let (tls, opened, refused) = (tls.clone(), opened.clone(), refused.clone());
        tokio::spawn(async move {
            match Stream::accept(stream, tls.as_deref(), face).await {
                Ok(stream) => {
                    drop(shaking);
                    let guest = Guest {
                        stream,
                        from,
                        _place: place,
                    };
                    // Nobody takes it once the face has ended.
                    let _ = opened.send(guest).await;
                }
                Err(why) => refused
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .warn(|| format!("refused the connection of {from}: {why}")),
            }
        });
    }
}

/// A warning that strangers can cause, told now and then with the number of times it was not.
#[derive(Debug, Default)]
pub struct Seldom {
    told: Option<Instant>,
    untold: u64,
}

impl Seldom {
    pub fn warn(&mut self, text: impl FnOnce() -> String) {
        if self.told.is_some_and(|told| told.elapsed() < WARN_EVERY) {
            self.untold += 1;
            return;
        }
        match std::mem::take(&mut self.untold) {
            0 => tracing::warn!("{}", text()),
            more => tracing::warn!("{} (and {more} more since the last such line)", text()),
        }
        self.told = Some(Instant::now());
    }
}

impl tokio_stream::Stream for Door {
    type Item = io::Result<Guest>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Guest>>> {
        self.get_mut()
            .opened
            .poll_recv(cx)
            .map(|guest| guest.map(Ok))
    }
}

impl axum::serve::Listener for Door {
    type Io = Guest;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guest, SocketAddr) {
        match self.opened.recv().await {
            Some(guest) => {
                let from = guest.from;
                (guest, from)
            }
            // Only at the end of the runtime does the task that accepts end before us.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl Connected for Guest {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}
