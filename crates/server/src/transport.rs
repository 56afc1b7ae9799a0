//! The member port of one host thread: framed TCP streams to members of other processes.
//!
//! T1. Of each pair (node here, peer) at most one connection is used, both ways; it is dialled on the
//!     first send. If both ends dial at once, the dial of the lower id wins: its holder keeps the
//!     other's connection waiting until its own dial has succeeded or failed, and the holder of
//!     the higher id drops its own dial when the other's arrives.
//! T2. A connection is used only after its acceptor has said `WELCOME`, so the two ends never
//!     disagree about which one it is. A dial that arrives while one is up means that the peer has
//!     given the old one up.
//! T3. A connection that breaks takes everything undelivered with it and yields `PeerLost` (Q1).
//! T4. What waits for one peer is bounded by `WAITING_BYTES_MAX`; beyond it the connection is broken.
//!
//! Threads: one `Transport` per host thread, used by that thread only.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use holdfast_cluster::Input;
use holdfast_format::ServerId;
use holdfast_wire::Message;
use holdfast_wire::codec::{FrameDecoder, encode_frame, encode_frame_head};
use holdfast_wire::handshake::ClusterSecret;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;

use crate::clock;
use crate::handshake::{self, Refused};
use crate::local::Local;
use crate::pipe::Pipe;
use crate::stream::Stream;
use crate::tls::{Face, Tls};

/// What may wait for one peer, encoded. A fetch of a whole segment and a few appends fit many
/// times; a peer that is this far behind is better treated as lost.
const WAITING_BYTES_MAX: usize = 128 << 20;

/// A dial that takes longer has failed: the peer is on the same network, so this is many round trips.
const DIAL_PATIENCE: Duration = Duration::from_millis(1_000);

/// How long a stranger may take to prove that it is a member.
const ACCEPT_PATIENCE: Duration = Duration::from_secs(3);

/// Strangers that may be proving it at once; more wait in the kernel's queue.
const HANDSHAKES_MAX: usize = 64;

const BACKOFF_FIRST: Duration = Duration::from_millis(10);
/// Short, because a restarted coordinator should be found within a heartbeat or two.
const BACKOFF_MAX: Duration = Duration::from_millis(250);

pub struct Transport {
    secret: ClusterSecret,
    tls: Option<Arc<Tls>>,
    local: Rc<Local>,
    state: RefCell<State>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").finish_non_exhaustive()
    }
}

type Pair = (ServerId, ServerId);

#[derive(Default)]
struct State {
    hosted: BTreeSet<ServerId>,
    addresses: BTreeMap<Pair, String>,
    links: BTreeMap<Pair, Link>,
    failures: BTreeMap<Pair, u32>,
    /// Pairs with something to write since the last flush.
    dirty: BTreeSet<Pair>,
}

enum Link {
    Dialling {
        waiting: BytesMut,
        task: AbortHandle,
        resolved: Rc<Notify>,
    },
    Up {
        pipe: Rc<Pipe>,
        batch: BytesMut,
    },
}

/// Why a dial failed.
enum DialError {
    Refused(Refused),
    Io(io::Error),
    TimedOut,
}

impl Transport {
    pub fn new(secret: ClusterSecret, tls: Option<Arc<Tls>>, local: Rc<Local>) -> Rc<Transport> {
        Rc::new(Transport {
            secret,
            tls,
            local,
            state: RefCell::default(),
        })
    }

    /// Serves `listener` until the thread ends; call on a `LocalSet`.
    pub fn listen(self: &Rc<Self>, listener: TcpListener) {
        let transport = self.clone();
        tokio::task::spawn_local(async move {
            let strangers = Arc::new(Semaphore::new(HANDSHAKES_MAX));
            loop {
                let permit = strangers.clone().acquire_owned().await;
                let permit = permit.expect("the semaphore is never closed");
                match listener.accept().await {
                    Ok((stream, from)) => {
                        let transport = transport.clone();
                        tokio::task::spawn_local(async move {
                            transport.accept(stream, from).await;
                            drop(permit);
                        });
                    }
                    Err(error) => {
                        tracing::warn!("cannot accept a member's connection: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
    }

    /// `node` lives on this thread from now on.
    pub fn host(&self, node: ServerId) {
        self.state.borrow_mut().hosted.insert(node);
    }

    /// `node` has stopped: its connections are closed.
    pub fn evict(&self, node: ServerId) {
        let mut state = self.state.borrow_mut();
        state.hosted.remove(&node);
        state.addresses.retain(|pair, _| pair.0 != node);
        state.failures.retain(|pair, _| pair.0 != node);
        let pairs: Vec<Pair> = state
            .links
            .keys()
            .filter(|pair| pair.0 == node)
            .copied()
            .collect();
        for pair in pairs {
            state.drop_link(pair);
        }
    }

    pub fn set_address(&self, node: ServerId, peer: ServerId, address: String) {
        self.state
            .borrow_mut()
            .addresses
            .insert((node, peer), address);
    }

    pub fn forget(&self, node: ServerId, peer: ServerId) {
        let mut state = self.state.borrow_mut();
        state.addresses.remove(&(node, peer));
        state.failures.remove(&(node, peer));
        state.drop_link((node, peer));
    }

    /// Queues a message; `flush` writes it. Dials if there is no connection.
    pub fn send(self: &Rc<Self>, node: ServerId, peer: ServerId, message: &Message) {
        let pair = (node, peer);
        let mut state = self.state.borrow_mut();
        let State { links, dirty, .. } = &mut *state;
        let waiting_bytes = match links.get_mut(&pair) {
            Some(Link::Up { pipe, batch }) => {
                dirty.insert(pair);
                match encode_frame_head(message, batch) {
                    // Replicated bytes go from the segment to the socket without a copy.
                    Ok(Some(tail)) => {
                        pipe.push(batch.split().freeze());
                        pipe.push_shared(tail);
                    }
                    Ok(None) => {}
                    Err(error) => tracing::error!("a message to {peer} cannot be sent: {error}"),
                }
                batch.len() + pipe.queued_bytes()
            }
            Some(Link::Dialling { waiting, .. }) => {
                encode_waiting(message, waiting);
                waiting.len()
            }
            None => {
                let Some(address) = state.addresses.get(&pair).cloned() else {
                    // Nobody knows where it lives: as good as a connection that cannot be made.
                    drop(state);
                    self.local.lose(node, peer, false);
                    return;
                };
                let mut waiting = BytesMut::new();
                encode_waiting(message, &mut waiting);
                let failures = state.failures.get(&pair).copied().unwrap_or(0);
                let task = tokio::task::spawn_local(self.clone().dial(pair, address, failures));
                let link = Link::Dialling {
                    waiting,
                    task: task.abort_handle(),
                    resolved: Rc::new(Notify::new()),
                };
                state.links.insert(pair, link);
                0
            }
        };
        if waiting_bytes > WAITING_BYTES_MAX {
            state.drop_link(pair);
            drop(state);
            tracing::warn!("{peer} does not take what {node} sends: connection dropped");
            self.local.lose(node, peer, false);
        }
    }

    /// Memory of what waits to be sent. Replicated bytes are accounted for by the shard they come from.
    pub fn memory_bytes(&self) -> u64 {
        let state = self.state.borrow();
        let waiting = |link: &Link| match link {
            Link::Dialling { waiting, .. } => waiting.capacity(),
            Link::Up { pipe, batch } => batch.capacity() + pipe.own_bytes(),
        };
        state.links.values().map(waiting).sum::<usize>() as u64
    }

    /// Writes what `send` queued, one write per connection.
    pub fn flush(&self) {
        let mut state = self.state.borrow_mut();
        let State { links, dirty, .. } = &mut *state;
        for pair in std::mem::take(dirty) {
            if let Some(Link::Up { pipe, batch }) = links.get_mut(&pair) {
                pipe.push(batch.split().freeze());
                pipe.flush();
            }
        }
    }

    async fn dial(self: Rc<Self>, pair: Pair, address: String, failures: u32) {
        if failures > 0 {
            let backoff = BACKOFF_FIRST * 2u32.saturating_pow((failures - 1).min(10));
            // Those who lost the same peer must not all come back at the same moment.
            let backoff = backoff.min(BACKOFF_MAX);
            let jitter = f64::from(clock::random() as u32) / f64::from(u32::MAX);
            tokio::time::sleep(backoff.mul_f64(0.5 + 0.5 * jitter)).await;
        }
        let attempt = async {
            let mut stream = Stream::dial_member(&address, self.tls.as_deref())
                .await
                .map_err(DialError::Io)?;
            handshake::dial(&mut stream, &self.secret, pair.0, pair.1)
                .await
                .map_err(DialError::Refused)?;
            Ok(stream)
        };
        let result = tokio::time::timeout(DIAL_PATIENCE, attempt)
            .await
            .unwrap_or(Err(DialError::TimedOut));
        match result {
            Ok(stream) => self.come_up(pair, stream),
            Err(error) => {
                let loopback = address
                    .parse()
                    .is_ok_and(|at: SocketAddr| at.ip().is_loopback());
                // On this machine a refusal by the kernel, or by another member that has the
                // address now, is proof that the process has ended.
                let ended = loopback
                    && match &error {
                        DialError::Io(error) => error.kind() == io::ErrorKind::ConnectionRefused,
                        DialError::Refused(refused) => refused.is_another_member(),
                        DialError::TimedOut => false,
                    };
                match &error {
                    DialError::Refused(refused) if refused.needs_a_person() => {
                        // The first of a row and then now and then: it repeats until fixed.
                        if failures.is_multiple_of(64) {
                            tracing::error!("{} at {address} refused us: {refused}", pair.1);
                        }
                    }
                    DialError::Refused(refused) => {
                        tracing::debug!("dialling {} at {address}: {refused}", pair.1);
                    }
                    DialError::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                        // Certificates do not mend themselves either.
                        if failures.is_multiple_of(64) {
                            tracing::error!("{} at {address}: TLS: {error}", pair.1);
                        }
                    }
                    DialError::Io(error) => {
                        tracing::debug!("dialling {} at {address}: {error}", pair.1);
                    }
                    DialError::TimedOut => {
                        tracing::debug!("dialling {} at {address}: timed out", pair.1);
                    }
                }
                let mut state = self.state.borrow_mut();
                *state.failures.entry(pair).or_insert(0) += 1;
                state.drop_link(pair);
                drop(state);
                self.local.lose(pair.0, pair.1, ended);
            }
        }
    }

    async fn accept(self: &Rc<Self>, stream: TcpStream, from: SocketAddr) {
        let mut stream = match Stream::accept(stream, self.tls.as_deref(), Face::Member).await {
            Ok(stream) => stream,
            Err(why) => {
                tracing::warn!("refused a member's connection from {from}: {why}");
                return;
            }
        };
        let hosted = self.state.borrow().hosted.clone();
        let shake = handshake::accept(&mut stream, &self.secret, &hosted);
        let pair = match tokio::time::timeout(ACCEPT_PATIENCE, shake).await {
            Ok(Ok(pair)) => pair,
            Ok(Err(refused)) => {
                if refused.needs_a_person() {
                    tracing::error!("refused a member's connection from {from}: {refused}");
                } else {
                    tracing::debug!("refused a member's connection from {from}: {refused}");
                }
                return;
            }
            Err(_) => {
                tracing::debug!("a connection from {from} did not prove itself in time");
                return;
            }
        };
        // T1: our own dial goes first if our id is the lower one.
        let (node, peer) = pair;
        loop {
            let resolved = match self.state.borrow().links.get(&pair) {
                Some(Link::Dialling { resolved, .. }) if node < peer => resolved.clone(),
                _ => break,
            };
            resolved.notified().await;
            if matches!(self.state.borrow().links.get(&pair), Some(Link::Up { .. })) {
                return;
            }
        }
        if !self.state.borrow().hosted.contains(&node) {
            return;
        }
        if handshake::welcome(&mut stream).await.is_ok() {
            self.come_up(pair, stream);
        }
    }

    /// Uses `stream` for `pair` from now on.
    fn come_up(self: &Rc<Self>, pair: Pair, stream: Stream) {
        let pipe = Pipe::start(stream.into_socket());
        let mut state = self.state.borrow_mut();
        state.failures.remove(&pair);
        let mut batch = BytesMut::new();
        match state.links.remove(&pair) {
            Some(Link::Dialling {
                waiting,
                task,
                resolved,
            }) => {
                // If an accepted connection overtook our dial, the dial is not needed any more. (If
                // this is the dial itself, it has nothing left to do.)
                task.abort();
                resolved.notify_waiters();
                batch = waiting;
            }
            Some(Link::Up { pipe: old, .. }) => {
                // T2: the peer has given the old one up, and with it what we had sent.
                old.close_now();
                self.local.lose(pair.0, pair.1, false);
            }
            None => {}
        }
        if !batch.is_empty() {
            state.dirty.insert(pair);
        }
        state.links.insert(
            pair,
            Link::Up {
                pipe: pipe.clone(),
                batch,
            },
        );
        drop(state);
        self.flush();
        tokio::task::spawn_local(self.clone().read(pair, pipe));
    }

    async fn read(self: Rc<Self>, pair: Pair, pipe: Rc<Pipe>) {
        let mut buffer = BytesMut::new();
        let mut decoder = FrameDecoder::new();
        'stream: while let Ok(1..) = pipe.read(&mut buffer).await {
            loop {
                match decoder.decode(&mut buffer) {
                    Ok(Some(message)) => {
                        self.local.push(
                            pair.0,
                            Input::Message {
                                from: pair.1,
                                message,
                            },
                        );
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::error!("{} sent what is no message: {error}", pair.1);
                        break 'stream;
                    }
                }
            }
            // Lets the host loop work off what was read before more is read: this bounds the queue.
            tokio::task::yield_now().await;
        }
        pipe.close_now();
        let mut state = self.state.borrow_mut();
        let current = matches!(
            state.links.get(&pair), Some(Link::Up { pipe: up, .. }) if Rc::ptr_eq(up, &pipe)
        );
        if current {
            state.links.remove(&pair);
            drop(state);
            self.local.lose(pair.0, pair.1, false);
        }
    }
}

fn encode_waiting(message: &Message, waiting: &mut BytesMut) {
    if let Err(error) = encode_frame(message, waiting) {
        tracing::error!("a message cannot be sent: {error}");
    }
}

impl State {
    fn drop_link(&mut self, pair: Pair) {
        match self.links.remove(&pair) {
            Some(Link::Up { pipe, .. }) => pipe.close_now(),
            Some(Link::Dialling { task, resolved, .. }) => {
                task.abort();
                resolved.notify_waiters();
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::LocalSet;

    const A: ServerId = ServerId(10);
    const B: ServerId = ServerId(20);

    /// One member on one "thread" of a test.
    struct End {
        id: ServerId,
        local: Rc<Local>,
        transport: Rc<Transport>,
        address: String,
    }

    async fn end(id: ServerId, secret: &str) -> End {
        let local = Local::new();
        let transport = Transport::new(ClusterSecret::new(secret), None, local.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        transport.listen(listener);
        transport.host(id);
        End {
            id,
            local,
            transport,
            address,
        }
    }

    impl End {
        fn knows(&self, other: &End) {
            self.transport
                .set_address(self.id, other.id, other.address.clone());
        }

        fn ping(&self, to: ServerId, nonce: u64) {
            if !self.local.is_lost(self.id, to) {
                self.transport.send(self.id, to, &Message::Ping { nonce });
                self.transport.flush();
            }
        }

        /// The next input, as a host loop would take it.
        async fn next(&self) -> Input {
            let waiting = async {
                loop {
                    if let Some((node, input)) = self.local.pop() {
                        assert_eq!(node, self.id);
                        return input;
                    }
                    self.local.pushed().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(5), waiting)
                .await
                .expect("an input")
        }

        async fn next_nonce(&self, from: ServerId) -> u64 {
            match self.next().await {
                Input::Message {
                    from: sender,
                    message: Message::Ping { nonce },
                } => {
                    assert_eq!(sender, from);
                    nonce
                }
                other => panic!("expected a ping, got {other:?}"),
            }
        }
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn one_connection_carries_both_directions_in_order() {
        run(async {
            let (a, b) = (end(A, "x").await, end(B, "x").await);
            // B has no address for A, as shards have none for gateways.
            a.knows(&b);
            for nonce in 0..100 {
                a.ping(B, nonce);
            }
            for nonce in 0..100 {
                assert_eq!(b.next_nonce(A).await, nonce);
            }
            b.ping(A, 7);
            assert_eq!(a.next_nonce(B).await, 7);
        });
    }

    /// T1: both ends dial at once, and still nobody is told that a connection broke.
    #[test]
    fn dialling_at_once_loses_nothing() {
        run(async {
            for _ in 0..50 {
                let (a, b) = (end(A, "x").await, end(B, "x").await);
                a.knows(&b);
                b.knows(&a);
                a.ping(B, 1);
                b.ping(A, 2);
                assert_eq!(b.next_nonce(A).await, 1);
                assert_eq!(a.next_nonce(B).await, 2);
                a.ping(B, 3);
                b.ping(A, 4);
                assert_eq!(b.next_nonce(A).await, 3);
                assert_eq!(a.next_nonce(B).await, 4);
            }
        });
    }

    /// T3 and Q1: what was under way is gone, and later sends arrive only after `PeerLost`.
    #[test]
    fn a_broken_connection_is_reported_before_anything_later_arrives() {
        run(async {
            let (a, b) = (end(A, "x").await, end(B, "x").await);
            a.knows(&b);
            a.ping(B, 1);
            assert_eq!(b.next_nonce(A).await, 1);
            b.transport.forget(B, A);
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                if a.local.is_lost(A, B) {
                    break;
                }
            }
            // Sent before the node was told: must not arrive.
            a.ping(B, 2);
            assert!(matches!(
                a.next().await,
                Input::PeerLost {
                    peer: B,
                    ended: false
                }
            ));
            a.ping(B, 3);
            assert_eq!(b.next_nonce(A).await, 3);
        });
    }

    #[test]
    fn a_refused_loopback_dial_proves_that_the_process_ended() {
        run(async {
            let a = end(A, "x").await;
            let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = nobody.local_addr().unwrap().to_string();
            drop(nobody);
            a.transport.set_address(A, B, address);
            a.ping(B, 1);
            assert!(matches!(
                a.next().await,
                Input::PeerLost {
                    peer: B,
                    ended: true
                }
            ));
        });
    }

    #[test]
    fn a_new_member_on_the_old_address_proves_that_the_old_one_ended() {
        run(async {
            let (a, c) = (end(A, "x").await, end(ServerId(30), "x").await);
            a.transport.set_address(A, B, c.address.clone());
            a.ping(B, 1);
            assert!(matches!(
                a.next().await,
                Input::PeerLost {
                    peer: B,
                    ended: true
                }
            ));
            assert!(c.local.is_empty());
        });
    }

    #[test]
    fn another_secret_is_refused_on_both_ends() {
        run(async {
            let (a, b) = (end(A, "x").await, end(B, "y").await);
            a.knows(&b);
            a.ping(B, 1);
            assert!(matches!(
                a.next().await,
                Input::PeerLost {
                    peer: B,
                    ended: false
                }
            ));
            assert!(b.local.is_empty());
        });
    }

    #[test]
    fn a_peer_without_an_address_is_lost_at_once() {
        run(async {
            let a = end(A, "x").await;
            a.ping(B, 1);
            assert!(matches!(
                a.next().await,
                Input::PeerLost {
                    peer: B,
                    ended: false
                }
            ));
        });
    }
}
