//! The non-blocking socket under a `Pipe`: plain TCP, or TLS records made and opened in place.
//!
//! The TLS session is driven by whoever reads or writes, on the host thread itself: tokio's own TLS stream
//! would want one task to own it, and a switch to that task for every reply.
//!
//! K1. `try_write` takes bytes only after every earlier record has left, so that what waits is bounded by
//!     one call's records; `try_flush` tells when the last of them has left.
//! K2. `try_read_buf` hands over all that it has opened: nothing readable stays behind in the session.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;

use bytes::BytesMut;
use rustls::Connection;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Records opened by one read before others have their turn.
const READ_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub enum Socket {
    Plain(TcpStream),
    Sealed(Box<Sealed>),
}

/// A TCP stream and the TLS session on it, after its handshake.
#[derive(Debug)]
pub struct Sealed {
    stream: TcpStream,
    session: RefCell<Connection>,
    /// Records may have come with the last of the handshake.
    opened_early: Cell<bool>,
}

impl Socket {
    pub fn plain(stream: TcpStream) -> Socket {
        Socket::Plain(stream)
    }

    /// `session` has finished its handshake on `stream`.
    pub fn sealed(stream: TcpStream, session: Connection) -> Socket {
        assert!(!session.is_handshaking(), "TLS is used before it is agreed");
        Socket::Sealed(Box::new(Sealed {
            stream,
            session: RefCell::new(session),
            opened_early: Cell::new(true),
        }))
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Socket::Plain(stream) => stream,
            Socket::Sealed(sealed) => &sealed.stream,
        }
    }

    /// Waits until a read may find something.
    pub async fn readable(&self) -> io::Result<()> {
        match self {
            Socket::Sealed(sealed) if sealed.opened_early.get() => Ok(()),
            _ => self.tcp().readable().await,
        }
    }

    /// Waits until a write may find room.
    pub async fn writable(&self) -> io::Result<()> {
        self.tcp().writable().await
    }

    /// Reads what is there. `Ok(0)` is the end.
    pub fn try_read_buf(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Socket::Plain(stream) => {
                let room = buffer.capacity() - buffer.len();
                let count = stream.try_read_buf(buffer)?;
                if (1..room).contains(&count) {
                    // The kernel had no more. Saying so here saves the system call that would find it out;
                    // whatever comes later sets the readiness anew.
                    let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                    let _ = stream.try_io(Interest::READABLE, nothing);
                }
                Ok(count)
            }
            Socket::Sealed(sealed) => sealed.try_read_buf(buffer),
        }
    }

    /// Bytes that the kernel holds for the next reads; 0 where it cannot tell. Under TLS they include the records'.
    pub fn unread_bytes(&self) -> usize {
        let unread = rustix::io::ioctl_fionread(self.tcp()).unwrap_or(0);
        usize::try_from(unread).unwrap_or(usize::MAX)
    }

    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Plain(stream) => stream.try_write(bytes),
            Socket::Sealed(sealed) => sealed.try_write(&[IoSlice::new(bytes)]),
        }
    }

    pub fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Socket::Plain(stream) => stream.try_write_vectored(slices),
            Socket::Sealed(sealed) => sealed.try_write(slices),
        }
    }

    /// `Ok` when the kernel has everything that was written (K1).
    pub fn try_flush(&self) -> io::Result<()> {
        match self {
            Socket::Plain(_) => Ok(()),
            Socket::Sealed(sealed) => sealed.send(&mut sealed.session.borrow_mut()),
        }
    }

    /// Ends both directions.
    pub fn shutdown(&self) {
        if let Socket::Sealed(sealed) = self {
            let mut session = sealed.session.borrow_mut();
            session.send_close_notify();
            let _ = sealed.send(&mut session);
        }
        let _ = SockRef::from(self.tcp()).shutdown(Shutdown::Both);
    }
}

impl Sealed {
    fn try_read_buf(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        let mut session = self.session.borrow_mut();
        let before = buffer.len();
        let mut early = self.opened_early.replace(false);
        loop {
            if !early {
                match session.read_tls(&mut Raw(&self.stream)) {
                    // Cut off without a farewell. Requests and frames know their own length, so what came
                    // whole is as good as ever.
                    Ok(0) => return Ok(buffer.len() - before),
                    Ok(_) => {}
                    Err(error) if buffer.len() > before => {
                        // An error that lasts is met again by the next read.
                        let _ = error;
                        return Ok(buffer.len() - before);
                    }
                    Err(error) => return Err(error),
                }
            }
            early = false;
            let state = match session.process_new_packets() {
                Ok(state) => state,
                Err(error) => {
                    // The peer is told why, if it still listens.
                    let _ = self.send(&mut session);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            };
            let opened = state.plaintext_bytes_to_read();
            if opened > 0 {
                let at = buffer.len();
                buffer.resize(at + opened, 0);
                session.reader().read_exact(&mut buffer[at..])?;
            }
            if state.peer_has_closed() || buffer.len() - before >= READ_BYTES {
                return Ok(buffer.len() - before);
            }
        }
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut session = self.session.borrow_mut();
        self.send(&mut session)?;
        let taken = session.writer().write_vectored(slices)?;
        match self.send(&mut session) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    /// Gives the kernel the records that wait.
    fn send(&self, session: &mut Connection) -> io::Result<()> {
        while session.wants_write() {
            if session.write_tls(&mut Raw(&self.stream))? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

/// The socket as rustls reads and writes it.
struct Raw<'a>(&'a TcpStream);

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
