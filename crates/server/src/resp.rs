//! RESP connections of one gateway: bytes in, bytes out, nothing understood.
//!
//! C1. A connection belongs to the gateway that was serving when it was accepted; when that one is
//!     abandoned its connections are closed.
//! C2. A client that does not take its replies is not read from (above `READ_PAUSE_BYTES` queued), and is
//!     cut when what waits for it goes over `ClientLimits::output_hard_bytes`, or stays over
//!     `output_soft_bytes` for `output_soft_s`, as with Redis's client-output-buffer-limit.
//! C3. At most `clients_max` connections are open; one more is told so and closed.
//! C4. An accept storm does not starve the established: after `ACCEPTS_IN_A_ROW` the thread goes on with
//!     what they sent, and at most `HANDSHAKES_MAX` strangers are in their TLS handshake; the rest waits
//!     in the kernel's queue.
//! C5. An idle connection holds no buffer: all of a thread are read into one block, whose pieces belong to
//!     the requests in them.
//!
//! C6. Under overload a connection is read in rounds (`Admission::round_us`): not again before one has passed since its last read,
//!     so that many requests share the cost of a read and of the write that answers them.
//!
//! Threads: the host thread's own.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use holdfast_cluster::{Arrival, ConnectionId, Input};
use holdfast_format::ServerId;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::clock;
use crate::door::{ACCEPT_PAUSE, HANDSHAKES_MAX, Seldom};
use crate::error::{Context, Outcome};
use crate::local::{Local, Turn};
use crate::pipe::{Pipe, READ_BYTES_MIN};
use crate::stream::Stream;
use crate::tls::{Face, Tls};

/// Replies that may wait before a client is not read from any more.
const READ_PAUSE_BYTES: usize = 1 << 20;

/// How often limits that take seconds are looked at.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Connections accepted in a row before others get their turn: at about 20 µs each, a third of a
/// millisecond.
const ACCEPTS_IN_A_ROW: u32 = 16;

/// What an idle connection takes: its tasks, its socket's registration and the gateway's side of it
/// (measured as resident bytes over 5,000 of them).
const CONNECTION_BYTES: usize = 4 << 10;

/// What the clients of one port may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// Connections at a time.
    pub clients_max: usize,
    /// Of these with the same namespace selected.
    pub namespace_clients_max: Option<usize>,
    /// Bytes of replies that may wait for one client at all: commands read before the pause can still produce
    /// large values.
    pub output_hard_bytes: usize,
    /// And for longer than `output_soft_s`.
    pub output_soft_bytes: usize,
    pub output_soft_s: u32,
    /// Silence after which a connection is closed; 0: never.
    pub idle_s: u32,
    /// `holdfast_gateway::GatewayConfig::queue_wait_ms`.
    pub queue_wait_ms: u32,
}

impl Default for ClientLimits {
    fn default() -> ClientLimits {
        ClientLimits {
            clients_max: 10_000,
            namespace_clients_max: None,
            output_hard_bytes: 256 << 20,
            output_soft_bytes: READ_PAUSE_BYTES,
            output_soft_s: 60,
            idle_s: 0,
            queue_wait_ms: 100,
        }
    }
}

const TOO_MANY: &[u8] = b"-ERR max number of clients reached\r\n";

#[derive(Debug)]
pub struct Resp {
    local: Rc<Local>,
    tls: Option<Arc<Tls>>,
    limits: ClientLimits,
    port: u16,
    gateway: Cell<Option<ServerId>>,
    connections: RefCell<BTreeMap<u64, Rc<Client>>>,
    /// What all of them are read into (C5).
    incoming: RefCell<BytesMut>,
    /// Sweeps so far: the clock that idleness is told by.
    now_s: Cell<u32>,
    /// How far apart reads of one connection are (C6).
    round_us: Cell<u64>,
    /// Connections with bytes queued since the last flush.
    dirty: RefCell<Vec<u64>>,
    next_connection: Cell<u64>,
    refusals: RefCell<Seldom>,
    cuts: RefCell<Seldom>,
    unopened: RefCell<Seldom>,
    counts: Counts,
}

#[derive(Debug)]
struct Client {
    pipe: Rc<Pipe>,
    address: String,
    /// In `Resp::now_s`.
    heard_s: Cell<u32>,
    over_soft_since_s: Cell<Option<u32>>,
}

/// Since the start.
#[derive(Debug, Default)]
struct Counts {
    refused: Cell<u64>,
    unopened: Cell<u64>,
    cut: Cell<u64>,
    idle: Cell<u64>,
}

fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

/// What one reader knows of when bytes come.
#[derive(Debug)]
struct Seen {
    /// Everything that came before was read.
    up_to_us: u64,
    /// It has waited for something else than its socket since then.
    waited: bool,
}

impl Seen {
    /// The socket was found empty.
    fn nothing(&mut self, turn: Turn) {
        self.up_to_us = turn.began_us;
        self.waited = false;
    }

    /// So many bytes were read, and so many are left: when did those come?
    fn some(&mut self, turn: Turn, bytes: usize, unread: usize) -> Arrival {
        let from_us = match unread > 0 || self.waited {
            true => self.up_to_us,
            false => self.up_to_us.max(turn.before_us),
        };
        let span = Arrival {
            from_us,
            to_us: turn.began_us.max(from_us),
        };
        let to_us = span.of(unread, bytes + unread);
        self.up_to_us = to_us;
        self.waited = false;
        Arrival { from_us, to_us }
    }
}

impl Resp {
    /// Listens on `listener`, if any; call on a `LocalSet`.
    pub fn start(
        listener: Option<std::net::TcpListener>,
        tls: Option<Arc<Tls>>,
        limits: ClientLimits,
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
            limits,
            port,
            gateway: Cell::new(None),
            connections: RefCell::default(),
            round_us: Cell::new(0),
            dirty: RefCell::default(),
            next_connection: Cell::new(1),
            incoming: RefCell::default(),
            now_s: Cell::new(0),
            refusals: RefCell::default(),
            cuts: RefCell::default(),
            unopened: RefCell::default(),
            counts: Counts::default(),
        });
        if let Some(listener) = listener {
            let listener = TcpListener::from_std(listener).context(what)?;
            tokio::task::spawn_local(resp.clone().accept(listener));
            tokio::task::spawn_local(resp.clone().sweep());
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
        for client in self.connections.borrow().values() {
            client.pipe.close();
        }
    }

    /// Queues bytes; `flush` writes them.
    pub fn send(&self, connection: ConnectionId, bytes: Bytes) {
        let connections = self.connections.borrow();
        let Some(client) = connections.get(&connection.0) else {
            return;
        };
        client.pipe.push(bytes);
        if client.pipe.queued_bytes() > self.limits.output_hard_bytes {
            self.cut(client, "over --client-output-hard");
        }
        let mut dirty = self.dirty.borrow_mut();
        if dirty.last() != Some(&connection.0) {
            dirty.push(connection.0);
        }
    }

    /// Memory of its connections: what waits to be written, and each one's own.
    pub fn memory_bytes(&self) -> u64 {
        let connections = self.connections.borrow();
        let queued: usize = connections
            .values()
            .map(|client| client.pipe.queued_bytes())
            .sum();
        (queued + connections.len() * CONNECTION_BYTES) as u64
    }

    /// Closes after everything queued has been written.
    pub fn close(&self, connection: ConnectionId) {
        if let Some(client) = self.connections.borrow().get(&connection.0) {
            client.pipe.close();
        }
    }

    pub fn flush(&self) {
        let connections = self.connections.borrow();
        for connection in self.dirty.borrow_mut().drain(..) {
            if let Some(client) = connections.get(&connection) {
                client.pipe.flush();
            }
        }
    }

    /// Reads of one connection are so far apart from now on (C6); 0: as there is something to read.
    pub fn set_round_us(&self, round_us: u64) {
        self.round_us.set(round_us);
    }

    /// For `/metrics`.
    pub fn metrics(&self) -> [(&'static str, f64); 6] {
        let connections = self.connections.borrow();
        let waiting: usize = connections
            .values()
            .map(|client| client.pipe.queued_bytes())
            .sum();
        [
            ("holdfast_clients", connections.len() as f64),
            ("holdfast_clients_output_bytes", waiting as f64),
            (
                "holdfast_clients_refused_total",
                self.counts.refused.get() as f64,
            ),
            (
                "holdfast_clients_unopened_total",
                self.counts.unopened.get() as f64,
            ),
            ("holdfast_clients_cut_total", self.counts.cut.get() as f64),
            (
                "holdfast_clients_idle_closed_total",
                self.counts.idle.get() as f64,
            ),
        ]
    }

    /// Closes the connection of a client that does not take its replies (C2).
    fn cut(&self, client: &Client, why: &str) {
        if client.pipe.is_closed() {
            return;
        }
        let waiting = client.pipe.queued_bytes();
        self.cuts.borrow_mut().warn(|| {
            format!(
                "cut off the client at {}: it does not take its replies, {waiting} bytes wait, {why}",
                client.address
            )
        });
        client.pipe.close_now();
        count(&self.counts.cut);
    }

    /// Looks after limits that take seconds.
    async fn sweep(self: Rc<Self>) {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            let now_s = self.now_s.get() + 1;
            self.now_s.set(now_s);
            for client in self.connections.borrow().values() {
                if client.pipe.queued_bytes() <= self.limits.output_soft_bytes {
                    client.over_soft_since_s.set(None);
                } else if let Some(since_s) = client.over_soft_since_s.get() {
                    if now_s - since_s >= self.limits.output_soft_s {
                        self.cut(client, "over --client-output-soft for too long");
                    }
                } else {
                    client.over_soft_since_s.set(Some(now_s));
                }
                // The first second of silence may have been a short one.
                let silent_s = now_s.saturating_sub(client.heard_s.get());
                if self.limits.idle_s > 0 && silent_s > self.limits.idle_s {
                    client.pipe.close();
                    count(&self.counts.idle);
                    // Counted once, even if it takes its last replies slowly.
                    client.heard_s.set(u32::MAX);
                }
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
                                count(&resp.counts.unopened);
                                resp.unopened
                                    .borrow_mut()
                                    .warn(|| format!("refused the connection of {from}: {why}"));
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
        if self.connections.borrow().len() >= self.limits.clients_max {
            count(&self.counts.refused);
            self.refusals.borrow_mut().warn(|| {
                format!(
                    "{} clients are connected: the one from {client_address} was refused",
                    self.limits.clients_max
                )
            });
            pipe.push(Bytes::from_static(TOO_MANY));
            pipe.close();
            return;
        }
        let connection = self.next_connection.get();
        self.next_connection.set(connection + 1);
        let client = Rc::new(Client {
            pipe,
            address: client_address.clone(),
            heard_s: Cell::new(self.now_s.get()),
            over_soft_since_s: Cell::new(None),
        });
        self.connections
            .borrow_mut()
            .insert(connection, client.clone());
        let id = ConnectionId(connection);
        self.local.push(
            gateway,
            Input::Connected {
                connection: id,
                client_address,
            },
        );
        tokio::task::spawn_local(self.clone().read(gateway, id, client));
    }

    async fn read(self: Rc<Self>, gateway: ServerId, connection: ConnectionId, client: Rc<Client>) {
        let pipe = &client.pipe;
        let mut seen = Seen {
            up_to_us: clock::mono_us(),
            waited: false,
        };
        loop {
            if pipe.queued_bytes() > READ_PAUSE_BYTES {
                pipe.until_queued_at_most(READ_PAUSE_BYTES).await;
                seen.waited = true;
            }
            let read = pipe.try_read(&mut self.incoming.borrow_mut());
            match read {
                Ok(1..) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    seen.nothing(self.local.turn());
                    match pipe.readable().await {
                        Ok(()) => continue,
                        Err(_) => break,
                    }
                }
                Ok(0) | Err(_) => break,
            }
            let bytes = self.incoming.borrow_mut().split().freeze();
            client.heard_s.set(self.now_s.get());
            // A shorter read has emptied the socket.
            let may_have_more = bytes.len() >= READ_BYTES_MIN;
            let unread = match may_have_more {
                true => pipe.unread_bytes(),
                false => 0,
            };
            let arrival = seen.some(self.local.turn(), bytes.len(), unread);
            self.local.push(
                gateway,
                Input::Received {
                    connection,
                    bytes,
                    arrival,
                },
            );
            if may_have_more || self.local.is_behind() {
                // Lets the gateway work this off before more is read (Q2 of `Local`). After a shorter read the socket has
                // to become readable first, which takes a turn as well.
                self.local.served(self.local.last_queued()).await;
                seen.waited = true;
            }
            let round_us = self.round_us.get();
            if round_us > 0 {
                let passed_us = clock::mono_us().saturating_sub(arrival.to_us);
                let left_us = round_us.saturating_sub(passed_us);
                tokio::time::sleep(Duration::from_micros(left_us)).await;
                seen.waited = true;
            }
        }
        pipe.close_now();
        self.connections.borrow_mut().remove(&connection.0);
        self.local.push(gateway, Input::Disconnected { connection });
    }
}
