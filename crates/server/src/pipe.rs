//! The way out of one socket: bytes queued by the host thread, written at once where the kernel
//! takes them, else by a task that waits for room.
//!
//! Writing from the host loop itself saves a task switch per reply; the task exists for the rare
//! peer that reads slowly. All of it belongs to one thread.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::Notify;

use crate::socket::Socket;

/// How much one read asks for when a peer has much to say.
const READ_BYTES: usize = 64 << 10;

/// A read with less room than this is not worth its system call. One that brings less has taken all there was.
pub const READ_BYTES_MIN: usize = READ_BYTES / 8;

#[derive(Debug)]
pub struct Pipe {
    stream: Socket,
    out: RefCell<VecDeque<Queued>>,
    queued_bytes: Cell<usize>,
    /// The kernel's buffer is full and the writer task waits for room.
    blocked: Cell<bool>,
    closing: Cell<bool>,
    closed: Cell<bool>,
    work: Notify,
    drained: Notify,
}

#[derive(Debug)]
struct Queued {
    bytes: Bytes,
    /// Accounted for by whoever shares them.
    shared: bool,
}

impl Pipe {
    /// Takes over `stream` and starts its writer task; call on a `LocalSet`.
    pub fn start(stream: Socket) -> Rc<Pipe> {
        let pipe = Rc::new(Pipe {
            stream,
            out: RefCell::default(),
            queued_bytes: Cell::new(0),
            blocked: Cell::new(false),
            closing: Cell::new(false),
            closed: Cell::new(false),
            work: Notify::new(),
            drained: Notify::new(),
        });
        tokio::task::spawn_local(pipe.clone().write_when_blocked());
        pipe
    }

    /// Queues bytes; `flush` sends them.
    pub fn push(&self, bytes: Bytes) {
        self.queue(bytes, false);
    }

    /// Queues bytes that somebody else accounts for, and that other pipes may have queued too.
    pub fn push_shared(&self, bytes: Bytes) {
        self.queue(bytes, true);
    }

    fn queue(&self, bytes: Bytes, shared: bool) {
        if bytes.is_empty() || self.closed.get() {
            return;
        }
        self.queued_bytes.set(self.queued_bytes.get() + bytes.len());
        self.out.borrow_mut().push_back(Queued { bytes, shared });
    }

    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes.get()
    }

    /// Queued bytes but for shared ones.
    pub fn own_bytes(&self) -> usize {
        let out = self.out.borrow();
        let own = out.iter().filter(|queued| !queued.shared);
        own.map(|queued| queued.bytes.len()).sum()
    }

    /// Writes what the kernel takes now and leaves the rest to the writer task.
    pub fn flush(&self) {
        if self.blocked.get() || self.closed.get() {
            return;
        }
        match self.write_some() {
            Ok(true) => self.finish_if_closing(),
            Ok(false) => {
                self.blocked.set(true);
                self.work.notify_one();
            }
            Err(_) => self.close_now(),
        }
    }

    /// Closes once everything queued has been written.
    pub fn close(&self) {
        self.closing.set(true);
        self.flush();
    }

    /// Closes and drops what is queued. The reader sees the end of its stream.
    pub fn close_now(&self) {
        if !self.closed.replace(true) {
            self.out.borrow_mut().clear();
            self.queued_bytes.set(0);
            self.stream.shutdown();
            self.work.notify_one();
            self.drained.notify_one();
        }
    }

    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Waits until at most `bytes` are queued: a reader calls it before it asks for more work from a
    /// peer that does not take its answers.
    pub async fn until_queued_at_most(&self, bytes: usize) {
        while self.queued_bytes.get() > bytes && !self.closed.get() {
            self.drained.notified().await;
        }
    }

    /// Waits until a read may find something.
    pub async fn readable(&self) -> io::Result<()> {
        self.stream.readable().await
    }

    /// Reads what is there into `buffer`, which any number of pipes may share. `Ok(0)` is the end.
    pub fn try_read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        if self.closed.get() {
            return Ok(0);
        }
        if buffer.capacity() - buffer.len() < READ_BYTES_MIN {
            buffer.reserve(READ_BYTES);
        }
        self.stream.try_read_buf(buffer)
    }

    /// Bytes that have come and were not read.
    pub fn unread_bytes(&self) -> usize {
        self.stream.unread_bytes()
    }

    /// Reads what is there, waiting for at least one byte. `Ok(0)` is the end.
    pub async fn read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        loop {
            if self.closed.get() {
                return Ok(0);
            }
            self.stream.readable().await?;
            match self.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                result => return result,
            }
        }
    }

    /// True when everything queued is written.
    fn write_some(&self) -> io::Result<bool> {
        let mut out = self.out.borrow_mut();
        while !out.is_empty() {
            let written = if out.len() == 1 {
                self.stream.try_write(&out[0].bytes)
            } else {
                let slices: Vec<IoSlice<'_>> = out
                    .iter()
                    .take(64)
                    .map(|queued| IoSlice::new(&queued.bytes))
                    .collect();
                self.stream.try_write_vectored(&slices)
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(mut count) => {
                    self.queued_bytes.set(self.queued_bytes.get() - count);
                    while count > 0 {
                        let first = out.front_mut().expect("only queued bytes can be written");
                        let first = &mut first.bytes;
                        if first.len() > count {
                            first.advance(count);
                            break;
                        }
                        count -= first.len();
                        out.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.drained.notify_one();
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.drained.notify_one();
        // Records of TLS may still wait when all bytes have gone into them.
        match self.stream.try_flush() {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn finish_if_closing(&self) {
        if self.closing.get() && self.queued_bytes.get() == 0 {
            self.close_now();
        }
    }

    async fn write_when_blocked(self: Rc<Self>) {
        loop {
            self.work.notified().await;
            while self.blocked.get() && !self.closed.get() {
                let ready = self.stream.writable().await;
                match ready.and_then(|()| self.write_some()) {
                    Ok(true) => {
                        self.blocked.set(false);
                        self.finish_if_closing();
                    }
                    Ok(false) => {}
                    Err(_) => self.close_now(),
                }
            }
            if self.closed.get() {
                return;
            }
        }
    }
}
