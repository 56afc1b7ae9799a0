//! RESP connections of one gateway: bytes in, bytes out, nothing understood.
//!
//! C1. A connection belongs to the gateway that was serving when it was accepted; when that one is
//!     abandoned its connections are closed.
//! C2. A client that does not take its replies is not read from (above `READ_PAUSE_BYTES` queued), and
//!     is closed above `QUEUED_BYTES_MAX`.
//! C3. At most `clients_max` connections are open; one more is told so and closed.
//! C4. An accept storm does not starve the established: after `ACCEPTS_IN_A_ROW` the thread goes on with
//!     what they sent, and at most `HANDSHAKES_MAX` strangers are in their TLS handshake; the rest waits
//!     in the kernel's queue.
//!
//! Threads: the host thread's own.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use holdfast_cluster::{ConnectionId, Input};
use holdfast_format::ServerId;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::door::{ACCEPT_PAUSE, HANDSHAKES_MAX, Seldom};
use crate::error::{Context, Outcome};
use crate::local::Local;
use crate::pipe::Pipe;
use crate::stream::Stream;
use crate::tls::{Face, Tls};

/// Replies that may wait before a client is not read from any more.
const READ_PAUSE_BYTES: usize = 1 << 20;

/// Replies that may wait at all: commands read before the pause can still produce large values.
const QUEUED_BYTES_MAX: usize = 256 << 20;

/// Connections accepted in a row before others get their turn: at about 20 µs each, a third of a
/// millisecond.
const ACCEPTS_IN_A_ROW: u32 = 16;

/// What an idle connection takes: its tasks, its socket's registration and the gateway's side of it
/// (measured as resident bytes over 5,000 of them).
const CONNECTION_BYTES: usize = 4 << 10;

const TOO_MANY: &[u8] = b"-ERR max number of clients reached\r\n";

#[derive(Debug)]
pub struct Resp {
    local: Rc<Local>,
    tls: Option<Arc<Tls>>,
    clients_max: usize,
    port: u16,
    gateway: Cell<Option<ServerId>>,
    connections: RefCell<BTreeMap<u64, Rc<Pipe>>>,
    /// Connections with bytes queued since the last flush.
    dirty: RefCell<Vec<u64>>,
    next_connection: Cell<u64>,
    refusals: RefCell<Seldom>,
}

impl Resp {
    /// Listens on `listener`, if any; call on a `LocalSet`.
    pub fn start(
        listener: Option<std::net::TcpListener>,
        tls: Option<Arc<Tls>>,
        clients_max: usize,
        local: Rc<Local>,
    ) -> Outcome<Rc<Resp>> {
        let what = || "cannot use the RESP port".to_string();
        let port = match &listener {
            Some(listener) => listener.local_addr().context(what)?.port(),
            None => 0,
        };
        let resp = Rc::new(Resp {
            local,
            tls,
            clients_max,
            port,
            gateway: Cell::new(None),
            connections: RefCell::default(),
            dirty: RefCell::default(),
            next_connection: Cell::new(1),
            refusals: RefCell::default(),
        });
        if let Some(listener) = listener {
            let listener = TcpListener::from_std(listener).context(what)?;
            tokio::task::spawn_local(resp.clone().accept(listener));
        }
        Ok(resp)
    }

    /// Where it listens; 0: nowhere.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// New connections belong to `gateway` from now on.
    pub fn serve(&self, gateway: ServerId) {
        self.gateway.set(Some(gateway));
    }

    /// The gateway is gone: closes its connections (C1).
    pub fn abandon(&self) {
        self.gateway.set(None);
        for pipe in self.connections.borrow().values() {
            pipe.close();
        }
    }

    /// Queues bytes; `flush` writes them.
    pub fn send(&self, connection: ConnectionId, bytes: Bytes) {
        let connections = self.connections.borrow();
        let Some(pipe) = connections.get(&connection.0) else {
            return;
        };
        pipe.push(bytes);
        if pipe.queued_bytes() > QUEUED_BYTES_MAX {
            tracing::warn!("a client does not take its replies: connection closed");
            pipe.close_now();
        }
        let mut dirty = self.dirty.borrow_mut();
        if dirty.last() != Some(&connection.0) {
            dirty.push(connection.0);
        }
    }

    /// Memory of its connections: what waits to be written, and each one's own.
    pub fn memory_bytes(&self) -> u64 {
        let connections = self.connections.borrow();
        let queued: usize = connections.values().map(|pipe| pipe.queued_bytes()).sum();
        (queued + connections.len() * CONNECTION_BYTES) as u64
    }

    /// Closes after everything queued has been written.
    pub fn close(&self, connection: ConnectionId) {
        if let Some(pipe) = self.connections.borrow().get(&connection.0) {
            pipe.close();
        }
    }

    pub fn flush(&self) {
        let connections = self.connections.borrow();
        for connection in self.dirty.borrow_mut().drain(..) {
            if let Some(pipe) = connections.get(&connection) {
                pipe.flush();
            }
        }
    }

    async fn accept(self: Rc<Self>, listener: TcpListener) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let mut in_a_row = 0;
        loop {
            match listener.accept().await {
                Ok((stream, from)) if self.tls.is_none() => {
                    let opened = Stream::accept(stream, None, Face::Resp).await;
                    let stream = opened.expect("nothing to agree on without TLS");
                    self.welcome(stream, from.to_string());
                }
                Ok((stream, from)) => {
                    let shaking = handshakes.clone().acquire_owned().await;
                    let shaking = shaking.expect("the semaphore is never closed");
                    let resp = self.clone();
                    tokio::task::spawn_local(async move {
                        match Stream::accept(stream, resp.tls.as_deref(), Face::Resp).await {
                            Ok(stream) => {
                                resp.welcome(stream, from.to_string());
                            }
                            Err(why) => {
                                tracing::info!("refused the connection of {from}: {why}");
                            }
                        }
                        drop(shaking);
                    });
                }
                Err(error) => {
                    // Most likely out of file descriptors; clients that leave free some.
                    tracing::warn!("cannot accept a client's connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
            in_a_row += 1;
            if in_a_row == ACCEPTS_IN_A_ROW {
                in_a_row = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    fn welcome(self: &Rc<Self>, stream: Stream, client_address: String) {
        let Some(gateway) = self.gateway.get() else {
            return;
        };
        let pipe = Pipe::start(stream.into_socket());
        if self.connections.borrow().len() >= self.clients_max {
            self.refusals.borrow_mut().warn(|| {
                format!(
                    "{} clients are connected: the one from {client_address} was refused",
                    self.clients_max
                )
            });
            pipe.push(Bytes::from_static(TOO_MANY));
            pipe.close();
            return;
        }
        let connection = self.next_connection.get();
        self.next_connection.set(connection + 1);
        self.connections
            .borrow_mut()
            .insert(connection, pipe.clone());
        let id = ConnectionId(connection);
        self.local.push(
            gateway,
            Input::Connected {
                connection: id,
                client_address,
            },
        );
        tokio::task::spawn_local(self.clone().read(gateway, id, pipe));
    }

    async fn read(self: Rc<Self>, gateway: ServerId, connection: ConnectionId, pipe: Rc<Pipe>) {
        let mut buffer = BytesMut::new();
        while let Ok(1..) = pipe.read(&mut buffer).await {
            let bytes = buffer.split().freeze();
            self.local
                .push(gateway, Input::Received { connection, bytes });
            // Lets the gateway work this off before more is read: this bounds the queue.
            tokio::task::yield_now().await;
            if pipe.queued_bytes() > READ_PAUSE_BYTES {
                pipe.until_queued_at_most(READ_PAUSE_BYTES).await;
            }
        }
        pipe.close_now();
        self.connections.borrow_mut().remove(&connection.0);
        self.local.push(gateway, Input::Disconnected { connection });
    }
}
