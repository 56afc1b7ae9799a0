//! One TCP connection, plain or under TLS: how it opens, and the two shapes in which it is used.
//!
//! gRPC and HTTP use it as a tokio stream. RESP connections and member streams take it apart into a
//! `Socket`, which their host thread reads and writes without a task in between.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::socket::Socket;
use crate::tls::{Face, Tls};

/// How long a stranger may take for the TLS handshake: many round trips, and no longer than a client
/// that has given up.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);

/// First byte of every TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

#[derive(Debug)]
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Why a connection did not open.
#[derive(Debug, thiserror::Error)]
pub enum Unopened {
    #[error("it speaks no TLS, and this {} port takes nothing else", .0.name())]
    NoTls(Face),
    #[error("TLS: {0}")]
    Handshake(io::Error),
    #[error("the TLS handshake took too long")]
    TooSlow,
}

impl Stream {
    /// Opens an accepted connection.
    pub async fn accept(
        mut stream: TcpStream,
        tls: Option<&Tls>,
        face: Face,
    ) -> Result<Stream, Unopened> {
        // Replies are whole when they are written; waiting for more only delays them.
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls else {
            return Ok(Stream::Plain(stream));
        };
        let shake = async {
            let mut first = [0];
            let peeked = stream.peek(&mut first).await;
            if peeked.map_err(Unopened::Handshake)? == 1 && first[0] != TLS_HANDSHAKE {
                let _ = stream.write_all(told_plainly(face)).await;
                return Err(Unopened::NoTls(face));
            }
            let stream = tls.acceptor(face).accept(stream).await;
            let stream = stream.map_err(Unopened::Handshake)?;
            Ok(Stream::Tls(Box::new(TlsStream::Server(stream))))
        };
        tokio::time::timeout(HANDSHAKE_PATIENCE, shake)
            .await
            .unwrap_or(Err(Unopened::TooSlow))
    }

    /// Dials a member.
    pub async fn dial_member(address: &str, tls: Option<&Tls>) -> io::Result<Stream> {
        let stream = TcpStream::connect(address).await?;
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls else {
            return Ok(Stream::Plain(stream));
        };
        // Nobody looks at the name (S2 of `tls`).
        let peer = stream.peer_addr()?.ip().into();
        let stream = tls.member_dialer().connect(peer, stream).await?;
        Ok(Stream::Tls(Box::new(TlsStream::Client(stream))))
    }

    /// What only the two ends of this very TLS session can know; `None` without TLS.
    pub fn binding(&self) -> Option<[u8; 32]> {
        let Stream::Tls(stream) = self else {
            return None;
        };
        const LABEL: &[u8] = b"EXPERIMENTAL-holdfast-member";
        let exported = match &**stream {
            TlsStream::Client(stream) => stream
                .get_ref()
                .1
                .export_keying_material([0; 32], LABEL, None),
            TlsStream::Server(stream) => stream
                .get_ref()
                .1
                .export_keying_material([0; 32], LABEL, None),
        };
        Some(exported.expect("the handshake is over and 32 bytes are few"))
    }

    /// The connection for a `Pipe`.
    pub fn into_socket(self) -> Socket {
        match self {
            Stream::Plain(stream) => Socket::plain(stream),
            Stream::Tls(stream) => match *stream {
                TlsStream::Client(stream) => {
                    let (stream, session) = stream.into_inner();
                    Socket::sealed(stream, session.into())
                }
                TlsStream::Server(stream) => {
                    let (stream, session) = stream.into_inner();
                    Socket::sealed(stream, session.into())
                }
            },
        }
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => stream.get_ref().0,
        }
    }

    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.tcp().peer_addr()
    }
}

/// What a client that speaks no TLS is told in its own protocol, as far as it has one.
fn told_plainly(face: Face) -> &'static [u8] {
    match face {
        Face::Resp => {
            b"-ERR this port speaks TLS only; connect with TLS (redis-cli --tls, rediss://)\r\n"
        }
        Face::Http | Face::Grpc => {
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 26\r\nConnection: close\r\n\r\nthis port speaks TLS only\n"
        }
        Face::Member => b"",
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl Connected for Stream {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.tcp().connect_info()
    }
}
