//! Executes the requests of all connections: what a gateway can answer itself at once, the rest by
//! asking the shards through the client core, in as many steps as the request takes.
//!
//! `execute` begins a reply, `outcome` brings it on. A request that needs one command after another
//! (`Progress::{ReadThen, Many, Keys}`) pauses its connection, so that no later command overtakes it.

use bytes::Bytes;
use holdfast_client::{Core, OrderKey, Scope, Submit};
use holdfast_cluster::{
    Admission, Answer, Call, ConnectionId, Dice, Executed, Membership, Now, ShardBeside,
};
use holdfast_format::{ClientId, KeyHash, Namespace, ServerId, Slot};
use holdfast_wire::redis::{
    self, ClientAttribute, Cluster, Hello, InfoSections, Many, Next, ReplyShape, RespError,
    RespRequest, Scan, Scripts, glob_matches,
};
use holdfast_wire::resp::ReplyWriter;
use holdfast_wire::{Command, Eviction, Failure, NamespacePolicy, Op, Outcome, Usage};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::calls::Calls;
use crate::cluster::{self, SlotsReply, node_id};
use crate::config::{GatewayConfig, Mode};
use crate::connection::{
    Connection, Face, ManyProgress, Progress, Reply, UnderWay, outcome_bytes, write_outcome,
};
use crate::info::{self, Facts, Settings};

/// Keys of one request that are on their way at a time.
const MANY_WINDOW: usize = 128;
/// Keys that KEYS asks for at a time.
const KEYS_PER_SCAN: u32 = 1_000;
/// INFO may tell figures of the shards this old; each refresh asks every one.
const USAGE_AGE_MAX_US: u64 = 1_000_000;
/// What INFO tells while tablets are recovered: the goal for a recovery.
const LOADING_ETA_S: u64 = 1;
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

/// Who gets an outcome.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Waiter {
    Reply {
        connection: ConnectionId,
        reply: u64,
        part: u32,
        /// It was to touch only a session that exists (`gate.rs`).
        shed: bool,
    },
    Call {
        token: u64,
        key: KeyHash,
        shed: bool,
    },
}

/// Waiters by token. The core answers every token once, so a token may be used again after that.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    pub(crate) list: Vec<Option<Waiter>>,
    pub(crate) free: Vec<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections_total: u64,
    pub(crate) connections_rejected: u64,
    pub(crate) connections_closed: u64,
    pub(crate) commands_total: u64,
    pub(crate) calls_total: u64,
    /// Refused because they had waited for too long, or would have created a session under overload.
    pub(crate) refused_late: u64,
    pub(crate) refused_creations: u64,
    /// Commands that the shard on this thread has executed.
    pub(crate) beside: u64,
    /// Their replies that were given up.
    pub(crate) withheld_given_up: u64,
    pub(crate) errors_total: u64,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) input_bytes: u64,
    pub(crate) output_bytes: u64,
}

impl Counters {
    pub(crate) fn give_up(&mut self, replies: u32) {
        self.errors_total += u64::from(replies);
        self.withheld_given_up += u64::from(replies);
    }

    pub(crate) fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Failed(_) => self.errors_total += 1,
            Outcome::Value { .. } => self.hits += 1,
            Outcome::Absent { .. } => self.misses += 1,
            _ => {}
        }
    }
}

/// Commands in the last full second.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    pub(crate) since_us: u64,
    pub(crate) commands_before: u64,
    pub(crate) per_s: u64,
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

    /// Where a command on one key goes as a message (Q5 of `connection`).
    fn way(&self, key: &[u8]) -> UnderWay {
        let (routes, beside) = (self.core.routes(), self.beside);
        let elsewhere = beside.is_some()
            && (routes.owner(Slot::of(key))).is_some_and(|shard| Some(shard) != beside);
        match elsewhere {
            true => UnderWay::Elsewhere {
                view_version: routes.view_version(),
            },
            false => UnderWay::Anywhere,
        }
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

    /// Has the shard on this thread execute a command and writes its reply, if it may be so; false if the
    /// command has to go the ordinary way.
    pub(crate) fn here(
        &mut self,
        now: Now,
        connection: &mut Connection,
        shard: &mut dyn ShardBeside,
        (command, shape, shed): (&Command, ReplyShape, bool),
    ) -> bool {
        if self.too_large(command).is_some() {
            return false;
        }
        // An earlier command that is under way as a message may come to the same shard later than this (Q5).
        let direct = connection.is_direct();
        if !direct {
            let routes = self.core.routes();
            let passes = connection.may_pass(routes.view_version())
                && routes.owner(Slot::of(&command.key)) == Some(shard.id());
            if !passes {
                return false;
            }
        }
        if self.withheld_bytes >= self.config.pending_bytes_max {
            return false;
        }
        let Some(Executed { needs, answer }) = shard.execute(now, command) else {
            return false;
        };
        let face = self.face();
        let until_us = now.mono_us + u64::from(self.config.retry_ms) * 1_000;
        self.counters.beside += 1;
        let outcome;
        let write: &dyn Fn(&mut ReplyWriter<'_>) = match answer {
            Answer::Value { value, .. } if shape == ReplyShape::Value => {
                self.counters.hits += 1;
                &move |reply| reply.bulk(value)
            }
            answer => {
                outcome = match answer {
                    Answer::Value { value, meta } => Outcome::Value {
                        value: Bytes::copy_from_slice(value),
                        meta,
                    },
                    Answer::Outcome(outcome) => self.unless_shed(shed, outcome),
                };
                self.counters.count(&outcome);
                &|reply| write_outcome(face, shape, &outcome, reply)
            }
        };
        match direct {
            true => connection.withhold(needs, until_us, write),
            false => connection.withhold_in_turn(needs, until_us, write),
        }
        self.count_withheld(connection);
        true
    }

    /// Brings the sum of what is withheld up to date with one connection.
    pub(crate) fn count_withheld(&mut self, connection: &mut Connection) {
        let bytes = connection.withheld_bytes();
        self.withheld_bytes = self.withheld_bytes - connection.withheld_counted + bytes;
        connection.withheld_counted = bytes;
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

    /// Brings a reply on by one outcome.
    pub(crate) fn outcome(
        &mut self,
        now: Now,
        id: ConnectionId,
        connection: &mut Connection,
        number: u64,
        part: u32,
        outcome: Outcome,
    ) {
        let face = self.face();
        let bytes = outcome_bytes(&outcome);
        self.counters.count(&outcome);
        let Some(reply) = connection.reply(number) else {
            unreachable!("a reply waits for its outcomes");
        };
        let protocol = reply.protocol;
        match &mut reply.progress {
            Progress::Waiting { shape } => {
                reply.progress = Progress::Outcome {
                    shape: *shape,
                    outcome,
                };
                connection.hold(bytes);
            }
            Progress::Many(many) => {
                many.answered += 1;
                if let Outcome::Failed(failure) = &outcome {
                    many.failure.get_or_insert(failure.clone());
                }
                many.outcomes[part as usize] = Some(outcome);
                connection.hold(bytes);
                if connection.paused_by == Some(number) {
                    self.submit_many(now, id, connection, number);
                }
            }
            Progress::ReadThen { then } => {
                match then.clone().next(&outcome) {
                    Next::Integer(value) => connection.settle(number, |reply| reply.integer(value)),
                    Next::Failed(failure) => {
                        let outcome = Outcome::Failed(failure);
                        connection.settle(number, |reply| {
                            write_outcome(face, ReplyShape::Flag, &outcome, reply);
                        });
                    }
                    Next::Ask { command, shape } => {
                        reply.progress = Progress::Waiting { shape };
                        self.ask(now, id, number, 0, command);
                    }
                }
                connection.paused_by = None;
            }
            Progress::Scan { scan } => {
                let scan = scan.clone();
                connection.settle(number, |reply| match &outcome {
                    Outcome::Scanned { keys, next } => {
                        let told: Vec<&Bytes> = keys
                            .iter()
                            .map(|(_, key)| key)
                            .filter(|key| scan.matches(key))
                            .collect();
                        reply.array(2);
                        reply.bulk(Scan::cursor(*next).to_string().as_bytes());
                        reply.array(told.len());
                        for key in told {
                            reply.bulk(key);
                        }
                    }
                    outcome => write_outcome(face, ReplyShape::Ok, outcome, reply),
                });
            }
            Progress::Keys {
                pattern,
                namespace,
                found,
                found_bytes,
            } => {
                let Outcome::Scanned { keys, next } = outcome else {
                    connection.paused_by = None;
                    connection.settle(number, |reply| {
                        write_outcome(face, ReplyShape::Ok, &outcome, reply);
                    });
                    return;
                };
                for (_, key) in keys {
                    if glob_matches(pattern, &key) {
                        *found_bytes += key.len() + 16;
                        found.push(key);
                    }
                }
                let limit = self.config.output_bytes_max / 2;
                match next {
                    _ if *found_bytes > limit => {
                        self.counters.errors_total += 1;
                        connection.paused_by = None;
                        connection.settle(number, |reply| {
                            reply.error(&format!(
                                "ERR KEYS found more than {limit} bytes of keys; use SCAN"
                            ));
                        });
                    }
                    Some(next) => {
                        let op = Op::Scan {
                            from: next,
                            limit: KEYS_PER_SCAN,
                        };
                        let command = key_space(*namespace, op);
                        self.ask(now, id, number, 0, command);
                    }
                    None => {
                        let found = std::mem::take(found);
                        connection.paused_by = None;
                        connection.settle(number, |reply| {
                            reply.array(found.len());
                            for key in &found {
                                reply.bulk(key);
                            }
                        });
                    }
                }
            }
            Progress::DbSize => connection.settle(number, |reply| match &outcome {
                Outcome::Counted { sessions, .. } => {
                    reply.integer(i64::try_from(*sessions).unwrap_or(i64::MAX));
                }
                outcome => write_outcome(face, ReplyShape::Ok, outcome, reply),
            }),
            Progress::Flush { missing, failure } => {
                *missing -= 1;
                if let Outcome::Failed(why) = outcome {
                    failure.get_or_insert(why);
                }
                if *missing == 0 {
                    let failure = failure.take();
                    connection.settle(number, |reply| match failure {
                        Some(failure) => {
                            let outcome = Outcome::Failed(failure);
                            write_outcome(face, ReplyShape::Ok, &outcome, reply);
                        }
                        None => reply.ok(),
                    });
                }
            }
            Progress::Info { sections } => {
                let sections = sections.clone();
                if let Outcome::Usage(usage) = outcome {
                    self.note_usage(now, usage);
                }
                let text = info::info_text(&self.facts(now), &sections);
                connection.settle(number, |reply| reply.verbatim(&text));
            }
            Progress::Ready(_) | Progress::Withheld { .. } | Progress::Outcome { .. } => {
                unreachable!("a complete reply waits for nothing, in {protocol:?} or otherwise")
            }
        }
    }

    fn hello(&mut self, connection: &mut Connection, hello: Hello) {
        if let Some((user, password)) = &hello.auth
            && !self.accepts(Some(user), password)
        {
            return self.refuse(connection, &RespError::WrongPassword);
        }
        if hello.auth.is_some() {
            connection.set_authenticated(true);
        }
        if !connection.authenticated {
            return self.refuse(connection, &RespError::HelloAuthRequired);
        }
        if let Some(protocol) = hello.protocol {
            connection.protocol = protocol;
        }
        if let Some(name) = hello.name {
            connection.name = own(&name);
        }
        info::write_hello(connection, self.redis_mode());
    }

    fn auth(&mut self, connection: &mut Connection, user: Option<Bytes>, password: &[u8]) {
        if self.config.password.is_none() && user.is_none() {
            return self.refuse(connection, &RespError::NoPasswordConfigured);
        }
        if self.accepts(user.as_deref(), password) {
            connection.set_authenticated(true);
            connection.write(|reply| reply.ok());
        } else {
            self.refuse(connection, &RespError::WrongPassword);
        }
    }

    /// True for the default user with the right password; any password is right if none is set.
    /// Digests are compared, and in constant time, so that neither length nor a common beginning
    /// can be timed.
    fn accepts(&self, user: Option<&[u8]>, password: &[u8]) -> bool {
        let known_user = user.is_none_or(|user| user == b"default");
        let right = self.config.password.as_ref().is_none_or(|expected| {
            Sha256::digest(expected.as_bytes())
                .ct_eq(&Sha256::digest(password))
                .into()
        });
        known_user && right
    }

    fn info(
        &mut self,
        now: Now,
        id: ConnectionId,
        connection: &mut Connection,
        sections: InfoSections,
    ) {
        let fresh = self
            .usage_at_us
            .is_some_and(|at| now.mono_us < at + USAGE_AGE_MAX_US);
        // Never waits for a recovery: clients ask INFO to learn that there is one.
        let told = ["memory", "stats", "keyspace"];
        let asks = told.iter().any(|section| sections.wants(section));
        if fresh || self.loading() || !asks {
            let text = info::info_text(&self.facts(now), &sections);
            return connection.write(|reply| reply.verbatim(&text));
        }
        let reply = connection.begin(Progress::Info { sections });
        // In no order: it must not wait for what the connection has asked before.
        let command = key_space(Namespace(0), Op::Usage);
        self.ask_in_order(now, None, (id, reply, 0), command);
    }

    fn note_usage(&mut self, now: Now, usage: Usage) {
        self.used_peak_bytes = self.used_peak_bytes.max(usage.used_bytes);
        self.usage = usage;
        self.usage_at_us = Some(now.mono_us);
    }

    fn loading(&self) -> bool {
        match self.config.mode {
            Mode::Flat => !self.core.routes().complete(),
            Mode::Cluster { shard } => {
                let routes = self.core.routes();
                !routes.is_shard(shard) || routes.owners().is_empty()
            }
        }
    }

    /// True if some namespace evicts at its limit or the cluster's.
    fn evicts(&self) -> bool {
        let policies = &self.membership.view().namespaces;
        let evicts = |policy: &NamespacePolicy| policy.limits.evict != Eviction::Never;
        policies.iter().any(evicts)
    }

    fn facts(&self, now: Now) -> Facts<'_> {
        let (core, counters) = (self.core.figures(), &self.counters);
        let port = match self.config.mode {
            Mode::Cluster { .. } if self.config.resp_port == 0 => {
                cluster::host_and_port(&self.config.member.resp_cluster).1
            }
            _ => self.config.resp_port,
        };
        Facts {
            redis_mode: self.redis_mode(),
            run_id: node_id(self.node()),
            pid: self.config.member.pid,
            port,
            uptime_s: now
                .mono_us
                .saturating_sub(self.started_us.unwrap_or(now.mono_us))
                / 1_000_000,
            connected_clients: self.connections,
            clients_max: self.config.connections_max,
            waiting: core.pending,
            loading: self.loading(),
            loading_eta_s: LOADING_ETA_S,
            usage: &self.usage,
            used_peak_bytes: self.used_peak_bytes,
            evicts: self.evicts(),
            replicas: self.membership.config().map_or(0, |config| config.replicas),
            connections_total: counters.connections_total,
            connections_rejected: counters.connections_rejected,
            commands_total: counters.commands_total,
            commands_per_s: self.rate.per_s,
            errors_total: counters.errors_total,
            hits: counters.hits,
            misses: counters.misses,
            input_bytes: counters.input_bytes,
            output_bytes: counters.output_bytes,
        }
    }

    fn cluster(&mut self, connection: &mut Connection, request: &Cluster) {
        if let Cluster::KeySlot { key } = request {
            let slot = Slot::of(key);
            return connection.write(|reply| reply.integer(i64::from(slot.0)));
        }
        let Mode::Cluster { shard } = self.config.mode else {
            return self.refuse(connection, &cluster::DISABLED);
        };
        let view = self.membership.view();
        match request {
            Cluster::Slots => {
                let bytes = self.slots_reply.get(view, connection.protocol);
                connection.write_bytes(&bytes);
            }
            Cluster::Shards => connection.write(|reply| cluster::write_shards(view, reply)),
            Cluster::Nodes => {
                let text = cluster::nodes_text(view, shard);
                connection.write(|reply| reply.verbatim(&text));
            }
            Cluster::Info => {
                let text = cluster::info_text(view);
                connection.write(|reply| reply.verbatim(&text));
            }
            Cluster::MyId => {
                let id = node_id(shard);
                connection.write(|reply| reply.bulk(id.as_bytes()));
            }
            Cluster::KeySlot { .. } => unreachable!("answered above"),
        }
    }
}

impl Waiters {
    pub(crate) fn put(&mut self, waiter: Waiter) -> u64 {
        match self.free.pop() {
            Some(token) => {
                self.list[token as usize] = Some(waiter);
                token
            }
            None => {
                self.list.push(Some(waiter));
                self.list.len() as u64 - 1
            }
        }
    }

    pub(crate) fn take(&mut self, token: u64) -> Waiter {
        let waiter = self.list[token as usize]
            .take()
            .expect("the core answers a token once");
        self.free.push(token);
        waiter
    }
}

impl Rate {
    pub(crate) fn note(&mut self, now_us: u64, commands_total: u64) {
        let passed_us = now_us.saturating_sub(self.since_us);
        if passed_us >= 1_000_000 {
            self.per_s = (commands_total - self.commands_before) * 1_000_000 / passed_us;
            self.since_us = now_us;
            self.commands_before = commands_total;
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
