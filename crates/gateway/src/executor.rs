//! Executes the requests of all connections: what a gateway can answer itself at once, the rest by
//! asking the shards through the client core, in as many steps as the request takes.
//!
//! `execute` begins a reply, `outcome` (`outcomes.rs`) brings it on. A request that needs one command after another
//! (`Progress::{ReadThen, Many, Keys}`) pauses its connection, so that no later command overtakes it.

mod beside;
mod counters;
mod facts;
mod greeting;
mod outcomes;
mod waiters;

use bytes::Bytes;
use holdfast_client::{Core, OrderKey, Scope, Submit};
use holdfast_cluster::{Admission, Call, ConnectionId, Dice, Membership, Now};
use holdfast_format::{ClientId, KeyHash, Namespace, ServerId, Slot};
use holdfast_wire::redis::{self, ClientAttribute, Many, ReplyShape, RespRequest, Scripts};
use holdfast_wire::{Command, Failure, Op, Outcome, Usage};

use self::counters::{Counters, Rate};
use self::waiters::Waiters;
use crate::calls::Calls;
use crate::cluster::{self, SlotsReply};
use crate::config::{GatewayConfig, Mode};
use crate::connection::{Connection, Face, ManyProgress, Progress, Reply, write_outcome};
use crate::info::{self, Settings};

pub(crate) use self::waiters::Waiter;

/// Keys of one request that are on their way at a time.
const MANY_WINDOW: usize = 128;
/// Keys that KEYS asks for at a time.
const KEYS_PER_SCAN: u32 = 1_000;
/// The longest that a call may ask to be retried; completion records are not kept for longer.
const CALL_WITHIN_MS_MAX: u32 = 60_000;

/// See the module.
#[derive(Debug)]
pub(crate) struct Executor {
    pub(crate) config: GatewayConfig,
    pub(crate) membership: Membership,
    pub(crate) core: Core,
    pub(crate) admission: Admission,
    /// Creations of the request that is being executed are refused (`gate.rs`).
    pub(crate) sheds: bool,
    pub(crate) scripts: Scripts,
    pub(crate) waiters: Waiters,
    pub(crate) slots_reply: SlotsReply,
    /// What the shards last told, when, and the most memory they ever told.
    pub(crate) usage: Usage,
    pub(crate) usage_at_us: Option<u64>,
    pub(crate) used_peak_bytes: u64,
    /// Open ones.
    pub(crate) connections: usize,
    pub(crate) started_us: Option<u64>,
    pub(crate) counters: Counters,
    pub(crate) rate: Rate,
    /// The shard on this thread.
    pub(crate) beside: Option<ServerId>,
    /// Bytes that wait for it, of all connections.
    pub(crate) withheld_bytes: u64,
    pub(crate) calls: Calls,
}

impl Executor {
    pub(crate) fn new(config: GatewayConfig, seed: u64) -> Executor {
        let mut dice = Dice::new(seed ^ config.member.id.0.rotate_left(32));
        let client = ClientId(dice.roll());
        let core_config = holdfast_client::Config {
            pending_max: config.pending_max,
            pending_bytes_max: config.pending_bytes_max,
            ..holdfast_client::Config::new()
        };
        Executor {
            membership: Membership::new(config.member.clone(), dice.roll()),
            core: Core::new(client, core_config, dice.roll()),
            admission: Admission::new(
                u64::from(config.queue_wait_ms) * 1_000,
                config.overload_bytes_min,
            ),
            sheds: false,
            config,
            scripts: Scripts::new(),
            waiters: Waiters::default(),
            slots_reply: SlotsReply::default(),
            usage: Usage::default(),
            usage_at_us: None,
            used_peak_bytes: 0,
            started_us: None,
            connections: 0,
            counters: Counters::default(),
            rate: Rate::default(),
            beside: None,
            withheld_bytes: 0,
            calls: Calls::default(),
        }
    }

    pub(crate) fn face(&self) -> Face {
        match self.config.mode {
            Mode::Flat => Face::Flat,
            Mode::Cluster { .. } => Face::Cluster,
        }
    }

    fn redis_mode(&self) -> &'static str {
        match self.config.mode {
            Mode::Flat => "standalone",
            Mode::Cluster { .. } => "cluster",
        }
    }

    /// Which node this port is: the shard on a cluster port, the gateway itself on the flat one.
    fn node(&self) -> ServerId {
        match self.config.mode {
            Mode::Flat => self.config.member.id,
            Mode::Cluster { shard } => shard,
        }
    }

    /// The part of the key space that SCAN and its like concern here.
    fn scope(&self) -> Scope {
        match self.config.mode {
            Mode::Flat => Scope::All,
            Mode::Cluster { shard } => Scope::Shard(shard),
        }
    }

    pub(crate) fn refuse(&mut self, connection: &mut Connection, error: &impl std::fmt::Display) {
        self.counters.errors_total += 1;
        connection.write(|reply| reply.refuse(error));
    }

    fn fail(&mut self, connection: &mut Connection, failure: &Failure) {
        self.counters.errors_total += 1;
        let face = self.face();
        let outcome = Outcome::Failed(failure.clone());
        connection.write(|reply| write_outcome(face, ReplyShape::Ok, &outcome, reply));
    }

    /// For how long to try a call.
    pub(crate) fn call_within_ms(&self, call: &Call) -> u32 {
        let within_ms = call.within_ms.unwrap_or(self.config.retry_ms);
        within_ms.min(CALL_WITHIN_MS_MAX)
    }

    /// Submits a call's command, which keeps nobody's order.
    pub(crate) fn call(&mut self, now: Now, token: u64, call: Call, shed: bool) {
        let within_ms = self.call_within_ms(&call);
        let key = self.calls.sent(&call.command);
        let how = Submit {
            token: self.waiters.put(Waiter::Call { token, key, shed }),
            once: call.once,
            order: None,
            within_ms,
            scope: Scope::All,
        };
        self.core.submit(now, call.command, how);
    }

    /// Submits (a part of) what a reply needs, in the order of its connection.
    fn ask(&mut self, now: Now, id: ConnectionId, reply: u64, part: u32, command: Command) {
        let order = Some(OrderKey(id.0));
        self.ask_in_order(now, order, (id, reply, part), command);
    }

    fn ask_in_order(
        &mut self,
        now: Now,
        order: Option<OrderKey>,
        (connection, reply, part): (ConnectionId, u64, u32),
        command: Command,
    ) {
        let shed = self.sheds;
        let waiter = Waiter::Reply {
            connection,
            reply,
            part,
            shed,
        };
        let how = Submit {
            token: self.waiters.put(waiter),
            once: None,
            order,
            within_ms: self.config.retry_ms,
            scope: self.scope(),
        };
        self.core.submit(now, command, how);
    }

    /// Refused here, because the core's bounds are for commands of the ordinary size.
    pub(crate) fn too_large(&self, command: &Command) -> Option<Failure> {
        let limit = u64::from(self.config.key_bytes_max);
        let bytes = command.key.len() as u64;
        if bytes > limit {
            return Some(Failure::KeyTooLarge { bytes, limit });
        }
        let limit = u64::from(self.config.value_bytes_max);
        let bytes = command.op.value().len() as u64;
        (bytes > limit).then_some(Failure::ValueTooLarge { bytes, limit })
    }

    /// On a cluster port: where to send a client that asks for a key of another shard. A slot that
    /// nobody serves is waited for here, and a shard without a port of its own is asked from here.
    fn moved(&self, key: &[u8]) -> Option<String> {
        let Mode::Cluster { shard } = self.config.mode else {
            return None;
        };
        let slot = Slot::of(key);
        let (owner, port) = cluster::owner_port(self.membership.view(), slot)?;
        (owner != shard).then(|| format!("MOVED {} {port}", slot.0))
    }

    pub(crate) fn execute(
        &mut self,
        now: Now,
        id: ConnectionId,
        connection: &mut Connection,
        request: RespRequest,
    ) {
        match request {
            RespRequest::One { command, shape } => {
                if let Some(reply) = self.begin(connection, &command, Progress::Waiting { shape }) {
                    self.ask(now, id, reply, 0, command);
                }
            }
            RespRequest::ReadThen { read, then } => {
                if let Some(reply) = self.begin(connection, &read, Progress::ReadThen { then }) {
                    connection.paused_by = Some(reply);
                    self.ask(now, id, reply, 0, read);
                }
            }
            RespRequest::Many(many) => self.many(now, id, connection, many),
            RespRequest::Eval(call) => match self.scripts.resolve(call) {
                Ok(request) => self.execute(now, id, connection, request),
                Err(error) => self.refuse(connection, &error),
            },
            RespRequest::Scan(scan) => {
                let op = Op::Scan {
                    from: scan.from,
                    limit: scan.limit,
                };
                let reply = connection.begin(Progress::Scan { scan });
                self.ask(now, id, reply, 0, key_space(connection.namespace, op));
            }
            RespRequest::Keys { pattern } => {
                let namespace = connection.namespace;
                let progress = Progress::Keys {
                    pattern,
                    namespace,
                    found: Vec::new(),
                    found_bytes: 0,
                };
                let reply = connection.begin(progress);
                connection.paused_by = Some(reply);
                let op = Op::Scan {
                    from: KeyHash(0),
                    limit: KEYS_PER_SCAN,
                };
                self.ask(now, id, reply, 0, key_space(namespace, op));
            }
            RespRequest::DbSize => {
                let reply = connection.begin(Progress::DbSize);
                self.ask(
                    now,
                    id,
                    reply,
                    0,
                    key_space(connection.namespace, Op::Count),
                );
            }
            RespRequest::FlushDb => {
                self.flush_namespaces(now, id, connection, connection.namespace.0, 1)
            }
            RespRequest::FlushAll => {
                self.flush_namespaces(now, id, connection, 0, u32::from(redis::NAMESPACES));
            }
            RespRequest::ScriptLoad { text } => match self.scripts.load(&text) {
                Ok(sha1) => connection.write(|reply| reply.bulk(sha1.as_bytes())),
                Err(error) => self.refuse(connection, &error),
            },
            RespRequest::ScriptExists { sha1s } => {
                let scripts = &self.scripts;
                connection.write(|reply| {
                    reply.array(sha1s.len());
                    for sha1 in &sha1s {
                        reply.integer(i64::from(scripts.knows(sha1)));
                    }
                });
            }
            RespRequest::ScriptFlush => {
                self.scripts.clear();
                connection.write(|reply| reply.ok());
            }
            RespRequest::Hello(hello) => self.hello(connection, hello),
            RespRequest::Auth { user, password } => self.auth(connection, user, &password),
            RespRequest::Ping { message } => connection.write(|reply| match &message {
                Some(message) => reply.bulk(message),
                None => reply.simple("PONG"),
            }),
            RespRequest::Echo { message } => connection.write(|reply| reply.bulk(&message)),
            RespRequest::Quit => {
                connection.write(|reply| reply.ok());
                connection.closing = true;
            }
            RespRequest::Reset => {
                connection.reset(self.config.password.is_none());
                connection.write(|reply| reply.simple("RESET"));
            }
            RespRequest::Select { namespace } => {
                connection.namespace = namespace;
                connection.write(|reply| reply.ok());
            }
            RespRequest::ClientId => {
                let number = connection.number as i64;
                connection.write(|reply| reply.integer(number));
            }
            RespRequest::ClientGetName => {
                let name = connection.name.clone();
                connection.write(|reply| match name.is_empty() {
                    true => reply.null(),
                    false => reply.bulk(&name),
                });
            }
            RespRequest::ClientSetName { name } => {
                connection.name = own(&name);
                connection.write(|reply| reply.ok());
            }
            RespRequest::ClientSetInfo { attribute, value } => {
                match attribute {
                    ClientAttribute::LibName => connection.library_name = own(&value),
                    ClientAttribute::LibVersion => connection.library_version = own(&value),
                }
                connection.write(|reply| reply.ok());
            }
            RespRequest::ClientInfo => {
                let line = info::client_line(connection, now.mono_us);
                connection.write(|reply| reply.verbatim(&line));
            }
            RespRequest::ClientList { .. } | RespRequest::ClientKill { .. } => {
                unreachable!("`serve` answers it: these concern all connections")
            }
            RespRequest::Command(query) => connection.write(|reply| query.write(reply)),
            RespRequest::Info(sections) => self.info(now, id, connection, sections),
            RespRequest::Cluster(request) => self.cluster(connection, &request),
            RespRequest::ConfigGet { patterns } => {
                let settings = Settings {
                    value_bytes_max: self.config.value_bytes_max,
                    clients_max: self.config.connections_max,
                    memory_bytes_max: self.usage.limit_bytes,
                    evicts: self.evicts(),
                };
                connection.write(|reply| info::write_config(&patterns, &settings, reply));
            }
            RespRequest::Time => match self.membership.cluster_time(now) {
                Some(time) => connection.write(|reply| {
                    reply.array(2);
                    reply.bulk((time.0 / 1_000).to_string().as_bytes());
                    reply.bulk((time.0 % 1_000 * 1_000).to_string().as_bytes());
                }),
                None => self.refuse(connection, &"LOADING Holdfast does not know the time yet"),
            },
            RespRequest::Wait => {
                // So many have what was answered; the others may.
                let config = self.membership.config();
                let replicas = config.map_or(0, |config| config.ack_quorum);
                connection.write(|reply| reply.integer(i64::from(replicas)));
            }
            RespRequest::Asking => connection.write(|reply| reply.ok()),
            RespRequest::Fixed(fixed) => connection.write(|reply| fixed.write(reply)),
        }
    }

    /// Begins the reply to a command on one key, unless the key must not be asked for here.
    fn begin(
        &mut self,
        connection: &mut Connection,
        command: &Command,
        progress: Progress,
    ) -> Option<u64> {
        if let Some(failure) = self.too_large(command) {
            self.fail(connection, &failure);
            return None;
        }
        if let Some(moved) = self.moved(&command.key) {
            self.refuse(connection, &moved);
            return None;
        }
        Some(match progress {
            Progress::Waiting { .. } => connection.begin_on_way(progress, self.way(&command.key)),
            // It leads to another command.
            _ => connection.begin(progress),
        })
    }

    /// Cluster clients send a request on many keys to the owner of the first; the others are fetched
    /// from here, so that no client must know that they live elsewhere.
    fn many(&mut self, now: Now, id: ConnectionId, connection: &mut Connection, many: Many) {
        let limit = self.config.key_bytes_max as usize;
        if let Some(key) = many.keys.iter().find(|key| key.len() > limit) {
            let failure = Failure::KeyTooLarge {
                bytes: key.len() as u64,
                limit: limit as u64,
            };
            return self.fail(connection, &failure);
        }
        if let Some(moved) = many.keys.first().and_then(|key| self.moved(key)) {
            return self.refuse(connection, &moved);
        }
        let reply = connection.begin(Progress::Many(ManyProgress::new(many)));
        self.submit_many(now, id, connection, reply);
    }

    /// Submits the next keys of a request on many.
    fn submit_many(&mut self, now: Now, id: ConnectionId, connection: &mut Connection, reply: u64) {
        let Some(Reply {
            progress: Progress::Many(many),
            ..
        }) = connection.reply(reply)
        else {
            return;
        };
        while !many.all_submitted() && many.submitted - many.answered < MANY_WINDOW {
            let part = many.submitted;
            many.outcomes.push(None);
            many.submitted += 1;
            self.ask(now, id, reply, part as u32, many.many.command(part));
        }
        connection.paused_by = (!many.all_submitted()).then_some(reply);
    }

    fn flush_namespaces(
        &mut self,
        now: Now,
        id: ConnectionId,
        connection: &mut Connection,
        first: u8,
        missing: u32,
    ) {
        if !self.config.allow_flush {
            let text = "ERR FLUSHDB and FLUSHALL are not allowed here; set gateway.allow_flush to allow them";
            return self.refuse(connection, &text);
        }
        let reply = connection.begin(Progress::Flush {
            missing,
            failure: None,
        });
        for part in 0..missing {
            let namespace = Namespace(first + part as u8);
            self.ask(now, id, reply, part, key_space(namespace, Op::Flush));
        }
    }
}

fn key_space(namespace: Namespace, op: Op) -> Command {
    Command {
        namespace,
        key: Bytes::new(),
        op,
    }
}

/// A copy of what will outlive its request, so that it does not keep the receive buffer alive.
fn own(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}
