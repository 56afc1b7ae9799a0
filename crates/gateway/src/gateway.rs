//! The gateway as a node: connections and calls on one side, the client core on the other.
//!
//! ```text
//! Received --> Connection --parse--> execute --submit--> Core --Requests--> shards
//! Bytes <----- replies in order <--- arrive <--outcome-- Core <--Responses-- shards
//! ```
//!
//! A command on one key of a shard that lives on the same thread takes a shorter way (`Executor::here`): it is
//! executed at once and its reply is written where it will be sent from, to be withheld there.
//!
//! G1. Every request that was read is answered once, in order, or its connection is closed with an
//!     event that says why.
//! G2. Every `Call` is answered once.
//! G3. Bounded: connections, bytes received and not executed, replies waiting, bytes waiting to
//!     leave (all per connection), and commands pending in all, and as many bytes of replies withheld in all.
//!     `GatewayConfig` names the bounds. A command for the shard of this thread that finds too much withheld goes
//!     the ordinary way.
//!
//! A step reads at most `REQUESTS_PER_TURN` requests of one connection; the rest waits its turn.

mod clients;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_cluster::{
    Arrival, Call, ConnectionId, Heard, Input, Level, Node, Now, Output, Outputs, ShardBeside,
};
use holdfast_format::{ClientId, Namespace, Position, ServerId};
use holdfast_wire::redis::{self, RespError, RespRequest};
use holdfast_wire::resp::{Args, RespLimits};
use holdfast_wire::{Failure, Figures, Message, Outcome};

use crate::config::{ConfigError, GatewayConfig};
use crate::connection::Connection;
use crate::executor::{Executor, Waiter};
use crate::gate::{Gate, TURNED_AWAY};

/// Requests read of one connection before others have their turn: about a millisecond of work.
const REQUESTS_PER_TURN: usize = 1_024;

/// Requests read together, so that a shard beside can look for all their keys at once: nearly all the waiting for
/// memory is hidden with so many, and one that pauses its connection has few read in vain.
const REQUESTS_TOGETHER: usize = 32;

/// What a call weighs among bytes received, when their waits are judged.
const CALL_BYTES: usize = 256;

/// Rounds of outcomes and what they lead to in one `flush`; the rest waits its turn.
const ROUNDS_PER_FLUSH: usize = 8;

/// The shard lent for a step, passed down.
type Beside<'a, 'b> = &'a mut Option<&'b mut dyn ShardBeside>;

/// A gateway: see the module.
#[derive(Debug)]
pub struct Gateway {
    connections: BTreeMap<ConnectionId, Connection>,
    executor: Executor,
    /// Connections that may have requests to read.
    resume: BTreeSet<ConnectionId>,
    /// Connections that may have bytes to send, or be ready to close.
    dirty: BTreeSet<ConnectionId>,
    /// Connections with replies that it must make audible, by what the first of them needs.
    withheld: BTreeSet<(Position, ConnectionId)>,
    /// Connections whose replies wait for further ones, by when they leave (Q6 of `connection`).
    gathering: BTreeSet<(u64, ConnectionId)>,
    /// What took its place among what is withheld in the last flush may be heard in the next.
    audible_soon: bool,
    /// Nothing withheld is given up before this.
    give_up_us: u64,
    done: Vec<(u64, Outcome)>,
    /// Empty between turns; kept for its memory.
    args: Args,
    next_number: u64,
    stopping: bool,
    stopped: bool,
}

impl Gateway {
    /// A gateway that knows nothing of its cluster yet. `seed` decides its client id, which must be
    /// new with every incarnation.
    pub fn new(config: GatewayConfig, seed: u64) -> Result<Gateway, ConfigError> {
        config.validate()?;
        Ok(Gateway {
            connections: BTreeMap::new(),
            executor: Executor::new(config, seed),
            resume: BTreeSet::new(),
            dirty: BTreeSet::new(),
            withheld: BTreeSet::new(),
            gathering: BTreeSet::new(),
            audible_soon: false,
            give_up_us: u64::MAX,
            done: Vec::new(),
            args: Args::default(),
            next_number: 1,
            stopping: false,
            stopped: false,
        })
    }

    /// Under which id it writes.
    pub fn client(&self) -> ClientId {
        self.executor.core.client()
    }

    /// How far apart reads of one connection should be.
    pub fn round_us(&self) -> u64 {
        self.executor.admission.round_us()
    }

    /// Memory that requests and replies take, about.
    pub fn memory_bytes(&self) -> u64 {
        let of = |connection: &Connection| {
            connection.parser.buffered_bytes() + connection.output_bytes()
        };
        let connections: usize = self.connections.values().map(of).sum();
        let calls = self.executor.calls.bytes();
        connections as u64 + calls + self.executor.core.figures().pending_bytes
    }

    fn message(&mut self, now: Now, from: ServerId, message: Message, out: &mut Outputs) {
        let executor = &mut self.executor;
        match executor.membership.handle(now, from, &message, out) {
            Heard::ViewChanged => executor.core.view_changed(now, executor.membership.view()),
            // A gateway owns nothing that could be fenced: the membership enlists again by itself.
            Heard::Taken | Heard::Expelled => {}
            Heard::NotMine => {
                if let Message::Responses(responses) = message {
                    executor.core.handle(now, from, responses);
                }
            }
        }
    }

    fn connected(&mut self, now: Now, id: ConnectionId, client_address: String, out: &mut Outputs) {
        self.executor.counters.connections_total += 1;
        let full = self.connections.len() >= self.executor.config.connections_max
            || self.is_full(Namespace(0));
        if full || self.stopping {
            self.executor.counters.connections_rejected += 1;
            let text = Bytes::from_static(b"-ERR max number of clients reached\r\n");
            out.push(Output::Bytes {
                connection: id,
                bytes: text,
            });
            out.push(Output::Close { connection: id });
            return;
        }
        let limits = RespLimits::for_values(self.executor.config.value_bytes_max);
        let authenticated = self.executor.config.password.is_none();
        let connection = Connection::new(
            self.next_number,
            client_address,
            limits,
            authenticated,
            now.mono_us,
        );
        self.next_number += 1;
        self.connections.insert(id, connection);
    }

    fn received(
        &mut self,
        now: Now,
        id: ConnectionId,
        (bytes, arrival): (Bytes, Arrival),
        shard: Beside<'_, '_>,
        out: &mut Outputs,
    ) {
        // Closed by us, and the driver does not know yet.
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        self.executor.counters.input_bytes += bytes.len() as u64;
        connection.heard_us = now.mono_us;
        if connection.closing || self.stopping {
            return;
        }
        self.executor.note_wait(now, arrival, bytes.len());
        connection.feed(bytes, arrival);
        self.serve(now, id, shard, out);
        let limit = self.executor.config.input_bytes_max;
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        if connection.parser.buffered_bytes() > limit {
            let text = format!("more than {limit} bytes of requests wait to be executed");
            self.close(id, &text, out);
        }
    }

    /// Reads and executes requests of one connection, as many as may be.
    fn serve(&mut self, now: Now, id: ConnectionId, shard: Beside<'_, '_>, out: &mut Outputs) {
        self.resume.remove(&id);
        self.dirty.insert(id);
        let mut args = std::mem::take(&mut self.args);
        let mut shard = shard.as_deref_mut().filter(|shard| shard.admits(now));
        let mut left = REQUESTS_PER_TURN;
        while let Some(request) = self.serve_own(now, id, &mut shard, &mut args, &mut left, out) {
            match request {
                RespRequest::ClientList { filter } => self.client_list(now, id, &filter),
                RespRequest::Select { namespace } => self.select(id, namespace),
                RespRequest::ClientKill { filter, counted } => {
                    self.client_kill(now, id, &filter, counted, out);
                }
                _ => unreachable!("it concerns the connection alone"),
            }
        }
        args.clear();
        self.args = args;
        if left == 0 {
            self.resume.insert(id);
        }
    }

    /// The same up to a request that concerns other connections too: that one is given back.
    fn serve_own(
        &mut self,
        now: Now,
        id: ConnectionId,
        shard: &mut Option<&mut (dyn ShardBeside + '_)>,
        args: &mut Args,
        left: &mut usize,
        out: &mut Outputs,
    ) -> Option<RespRequest> {
        let connection = self.connections.get_mut(&id)?;
        let open = self.executor.admission.is_open();
        let wait_us_max = self.executor.admission.wait_us_max();
        let since_us = now.mono_us.saturating_sub(wait_us_max);
        // What comes after a request in time is in time too.
        let mut in_time = wait_us_max == u64::MAX;
        while *left > 0 {
            if connection.output_bytes() > self.executor.config.output_bytes_max {
                self.close_over_output_bound(id, out);
                return None;
            }
            if !connection.reads(self.executor.config.replies_max) || self.stopping {
                return None;
            }
            if !connection.parser.turn(args) {
                // Those behind the first one in time are read together.
                let together = match in_time {
                    true => REQUESTS_TOGETHER,
                    false => {
                        if connection.authenticated {
                            let late = connection.skip_late(since_us, REQUESTS_PER_TURN);
                            self.executor.turn_away(connection, late);
                        }
                        1
                    }
                };
                match connection.parser.read(args, together) {
                    Ok(0) => return None,
                    Ok(1) => {}
                    Ok(_) => {
                        if let Some(shard) = shard {
                            shard.expect(connection.namespace, &mut args.coming());
                        }
                    }
                    Err(error) => {
                        self.executor.refuse(connection, &error);
                        connection.closing = true;
                        return None;
                    }
                }
                connection.parser.turn(args);
            }
            *left -= 1;
            if speaks_http(args.get(0)) {
                let why = "it speaks HTTP; a web page may be trying to send commands";
                self.close(id, why, out);
                return None;
            }
            self.executor.counters.commands_total += 1;
            let mut parsed = redis::parse(args, connection.namespace);
            in_time = in_time || !connection.was_late(since_us, args.bytes_taken());
            let shed = match &mut parsed {
                Ok(request) if !open && connection.authenticated => {
                    match self.executor.gate(now, !in_time, request) {
                        Gate::Open { shed } => shed,
                        Gate::Closed => {
                            self.executor.refuse(connection, &TURNED_AWAY);
                            continue;
                        }
                    }
                }
                _ => false,
            };
            match parsed {
                Err(error) => self.executor.refuse(connection, &error),
                Ok(request) if !connection.authenticated && !request.allowed_before_auth() => {
                    self.executor.refuse(connection, &RespError::AuthRequired);
                }
                Ok(RespRequest::One { command, shape })
                    if shard.as_deref_mut().is_some_and(|shard| {
                        self.executor
                            .here(now, connection, shard, (&command, shape, shed))
                    }) => {}
                Ok(request @ (RespRequest::ClientList { .. } | RespRequest::ClientKill { .. })) => {
                    return Some(request);
                }
                Ok(request @ RespRequest::Select { .. })
                    if self.executor.config.namespace_connections_max.is_some() =>
                {
                    return Some(request);
                }
                Ok(request) => {
                    self.executor.sheds = shed;
                    self.executor.execute(now, id, connection, request);
                    self.executor.sheds = false;
                }
            }
        }
        None
    }

    fn close_over_output_bound(&mut self, id: ConnectionId, out: &mut Outputs) {
        let limit = self.executor.config.output_bytes_max;
        let text = format!("more than {limit} bytes of replies wait to be sent");
        self.close(id, &text, out);
    }

    /// Closes a connection that went over a bound. What it asked for may still be executed.
    fn close(&mut self, id: ConnectionId, why: &str, out: &mut Outputs) {
        let Some(connection) = self.remove(id) else {
            return;
        };
        self.executor.counters.connections_closed += 1;
        out.event(
            Level::Warn,
            format!(
                "closed the connection of {}: {why}",
                connection.client_address
            ),
        );
        out.push(Output::Close { connection: id });
    }

    fn remove(&mut self, id: ConnectionId) -> Option<Connection> {
        let connection = self.connections.remove(&id)?;
        self.executor.withheld_bytes -= connection.withheld_counted;
        Some(connection)
    }

    /// Hands an outcome to whoever waits for it.
    fn arrive(&mut self, now: Now, token: u64, outcome: Outcome, out: &mut Outputs) {
        match self.executor.waiters.take(token) {
            Waiter::Call { token, key, shed } => {
                self.executor.calls.arrived(key);
                let outcome = self.executor.unless_shed(shed, outcome);
                out.push(Output::Answer { token, outcome });
            }
            Waiter::Reply {
                connection: id,
                reply,
                part,
                shed,
            } => {
                let outcome = self.executor.unless_shed(shed, outcome);
                // Without its connection an outcome is of interest to nobody.
                let Some(connection) = self.connections.get_mut(&id) else {
                    return;
                };
                self.executor
                    .outcome(now, id, connection, reply, part, outcome);
                connection.pump(self.executor.face());
                self.dirty.insert(id);
                if connection.output_bytes() > self.executor.config.output_bytes_max {
                    self.close_over_output_bound(id, out);
                } else if connection.parser.buffered_bytes() > 0 {
                    self.resume.insert(id);
                }
            }
        }
    }

    /// Hands out the outcomes that have come. False if there were none.
    fn take_outcomes(&mut self, now: Now, out: &mut Outputs) -> bool {
        let any = self.executor.core.has_done();
        if any {
            let mut done = std::mem::take(&mut self.done);
            self.executor.core.take_done(&mut done);
            for (token, outcome) in done.drain(..) {
                self.arrive(now, token, outcome, out);
            }
            self.done = done;
        }
        any
    }

    fn call(
        &mut self,
        now: Now,
        token: u64,
        (mut call, posted_us): (Call, u64),
        shard: Beside<'_, '_>,
        out: &mut Outputs,
    ) {
        self.executor.counters.calls_total += 1;
        let arrival = Arrival::at(posted_us);
        self.executor.note_wait(now, arrival, CALL_BYTES);
        let shed = self.executor.gate_call(now, posted_us, &mut call);
        let refusal = match self.executor.too_large(&call.command) {
            Some(failure) => Some(failure),
            None if self.stopping => Some(Failure::Unreachable),
            None if shed.is_none() => Some(Failure::Busy),
            None => None,
        };
        if let Some(failure) = refusal {
            out.push(Output::Answer {
                token,
                outcome: Outcome::Failed(failure),
            });
            return;
        }
        let shed = shed == Some(true);
        let executed = match shard.as_deref_mut().filter(|shard| shard.admits(now)) {
            Some(shard) => self.executor.call_here(now, shard, token, (&call, shed)),
            None => false,
        };
        if !executed {
            self.executor.call(now, token, call, shed);
        }
    }

    /// Notes which shard is there. What another one was to make audible never will be (`ShardBeside`, B3).
    fn lend(&mut self, shard: &Option<&mut dyn ShardBeside>) {
        let id = shard.as_ref().map(|shard| shard.id());
        if id == self.executor.beside {
            return;
        }
        self.executor.beside = id;
        self.executor.calls.lose_shard();
        let withheld = std::mem::take(&mut self.withheld);
        self.dirty.extend(withheld.into_iter().map(|(_, id)| id));
        for connection in self.connections.values_mut() {
            let replies = connection.give_up_queued();
            self.executor.counters.give_up(replies);
        }
        // Among them are those that were served since the last flush: they are not in `withheld` yet.
        for id in &self.dirty {
            if let Some(connection) = self.connections.get_mut(id) {
                let replies = connection.give_up(u64::MAX);
                self.executor.counters.give_up(replies);
            }
        }
    }

    /// Sends what may be heard, and closes what is done.
    fn send(&mut self, now: Now, audible: Option<Position>, out: &mut Outputs) {
        if let Some(audible) = audible {
            self.executor.calls.release(audible, out);
        }
        let given_up = self.executor.calls.give_up(now.mono_us, out);
        self.executor.counters.give_up(given_up);
        // Those that an acknowledgement or a renewed lease may have released.
        while let Some(&(needs, id)) = self.withheld.first()
            && audible.is_some_and(|audible| needs <= audible)
        {
            self.withheld.pop_first();
            self.dirty.insert(id);
        }
        if self.give_up_us <= now.mono_us {
            self.give_up_us = u64::MAX;
            for (_, id) in std::mem::take(&mut self.withheld) {
                if let Some(connection) = self.connections.get_mut(&id) {
                    let replies = connection.give_up(now.mono_us);
                    self.executor.counters.give_up(replies);
                }
                self.dirty.insert(id);
            }
        }
        while let Some(&(until_us, id)) = self.gathering.first()
            && until_us <= now.mono_us
        {
            self.gathering.pop_first();
            self.dirty.insert(id);
        }
        for id in std::mem::take(&mut self.dirty) {
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            if let Some(until_us) = connection.gathers_until_us {
                self.gathering.remove(&(until_us, id));
            }
            if let Some(until_us) = connection.gathers(now.mono_us) {
                self.gathering.insert((until_us, id));
                continue;
            }
            if let Some(bytes) = connection.take_output(audible) {
                self.executor.counters.output_bytes += bytes.len() as u64;
                out.push(Output::Bytes {
                    connection: id,
                    bytes,
                });
            }
            self.executor.count_withheld(connection);
            match connection.first_withheld() {
                Some((needs, until_us)) => {
                    self.withheld.insert((needs, id));
                    self.give_up_us = self.give_up_us.min(until_us);
                }
                None if connection.closing && connection.waiting() == 0 => {
                    self.remove(id);
                    out.push(Output::Close { connection: id });
                }
                None => {}
            }
        }
    }

    /// Ends what has nothing left to do.
    fn finish_shutdown(&mut self, out: &mut Outputs) {
        let waiting = self.executor.core.figures().pending > 0
            || !self.withheld.is_empty()
            || !self.executor.calls.is_empty();
        if !self.stopping || self.stopped || waiting {
            return;
        }
        self.stopped = true;
        for (id, mut connection) in std::mem::take(&mut self.connections) {
            if let Some(bytes) = connection.take_output(None) {
                out.push(Output::Bytes {
                    connection: id,
                    bytes,
                });
            }
            out.push(Output::Close { connection: id });
        }
        out.push(Output::Stopped {
            reason: "told to shut down".into(),
        });
    }
}

/// True for what begins a line of an HTTP request and is no command. A browser can be made to post any text to
/// any port of its own machine; without this the lines of the text would be executed, as Redis found too.
fn speaks_http(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"POST") || name.eq_ignore_ascii_case(b"Host:")
}

impl Node for Gateway {
    fn step(&mut self, now: Now, input: Input, out: &mut Outputs) {
        self.step_beside(now, input, None, out);
    }

    fn flush(&mut self, now: Now, out: &mut Outputs) {
        self.flush_beside(now, None, out);
    }

    fn step_beside(
        &mut self,
        now: Now,
        input: Input,
        mut shard: Option<&mut dyn ShardBeside>,
        out: &mut Outputs,
    ) {
        if self.stopped {
            return;
        }
        self.lend(&shard);
        self.executor.started_us.get_or_insert(now.mono_us);
        self.executor.connections = self.connections.len();
        match input {
            Input::Tick => self.executor.membership.tick(now, out),
            Input::Message { from, message } => self.message(now, from, message, out),
            Input::PeerLost { peer, ended } => {
                self.executor.membership.peer_lost(now, peer, ended, out);
                self.executor.core.peer_lost(now, peer);
            }
            Input::Connected {
                connection,
                client_address,
            } => {
                self.connected(now, connection, client_address, out);
            }
            Input::Received {
                connection,
                bytes,
                arrival,
            } => {
                self.received(now, connection, (bytes, arrival), &mut shard, out);
            }
            Input::Disconnected { connection } => {
                self.remove(connection);
            }
            Input::Call {
                token,
                call,
                posted_us,
            } => self.call(now, token, (call, posted_us), &mut shard, out),
            Input::Shutdown => self.stopping = true,
            // Effects of other roles.
            Input::Disk(_) | Input::RecordsWritten { .. } | Input::Order { .. } => {}
        }
    }

    fn flush_beside(
        &mut self,
        now: Now,
        mut shard: Option<&mut dyn ShardBeside>,
        out: &mut Outputs,
    ) {
        if self.stopped {
            return;
        }
        self.lend(&shard);
        self.executor.judge(now);
        // B2: what is executed below is newer than `now`, by which it could be heard after the lease has run out. The
        // next flush lets it be heard; it comes soon, because the shard was used.
        let audible = shard.as_ref().and_then(|shard| shard.audible(now));
        // Outcomes first: replies that waited behind them can be heard with the others.
        self.take_outcomes(now, out);
        self.send(now, audible, out);
        // Outcomes can lead to further commands and let connections read on: another round.
        for _ in 0..ROUNDS_PER_FLUSH {
            for id in std::mem::take(&mut self.resume) {
                self.serve(now, id, &mut shard, out);
            }
            let cluster_time = self.executor.membership.cluster_time(now);
            self.executor.core.flush(now, cluster_time, out);
            if !self.take_outcomes(now, out) {
                break;
            }
        }
        self.send(now, None, out);
        self.audible_soon = (self.withheld.first())
            .is_some_and(|&(needs, _)| audible.is_some_and(|audible| needs <= audible));
        self.executor
            .rate
            .note(now.mono_us, self.executor.counters.commands_total);
        self.finish_shutdown(out);
    }

    fn wakeup(&self) -> Option<u64> {
        if self.stopped {
            return None;
        }
        if !self.resume.is_empty() || self.executor.core.has_done() || self.audible_soon {
            return Some(0);
        }
        let core = self.executor.core.wakeup();
        let membership = self.executor.membership.wakeup();
        let give_up = (!self.withheld.is_empty()).then_some(self.give_up_us);
        let calls = self.executor.calls.wakeup();
        let gathered = self.gathering.first().map(|&(until_us, _)| until_us);
        core.into_iter()
            .chain(membership)
            .chain(give_up)
            .chain(calls)
            .chain(gathered)
            .min()
    }

    fn metrics(&self) -> Vec<(&'static str, f64)> {
        let (counters, core) = (&self.executor.counters, self.executor.core.figures());
        let replies: usize = self.connections.values().map(Connection::waiting).sum();
        [
            (
                "holdfast_gateway_connections",
                self.connections.len() as u64,
            ),
            (
                "holdfast_gateway_connections_total",
                counters.connections_total,
            ),
            (
                "holdfast_gateway_connections_rejected_total",
                counters.connections_rejected,
            ),
            (
                "holdfast_gateway_connections_closed_total",
                counters.connections_closed,
            ),
            ("holdfast_gateway_commands_total", counters.commands_total),
            ("holdfast_gateway_calls_total", counters.calls_total),
            ("holdfast_gateway_errors_total", counters.errors_total),
            ("holdfast_gateway_hits_total", counters.hits),
            ("holdfast_gateway_misses_total", counters.misses),
            (
                "holdfast_gateway_received_bytes_total",
                counters.input_bytes,
            ),
            ("holdfast_gateway_sent_bytes_total", counters.output_bytes),
            ("holdfast_gateway_replies_waiting", replies as u64),
            ("holdfast_gateway_pending", core.pending),
            ("holdfast_gateway_pending_bytes", core.pending_bytes),
            ("holdfast_gateway_busy_total", core.refused_busy),
            (
                "holdfast_gateway_overloaded",
                u64::from(self.executor.admission.is_overloaded()),
            ),
            (
                "holdfast_gateway_longest_wait_us",
                self.executor.admission.longest_wait_us(),
            ),
            ("holdfast_gateway_refused_late_total", counters.refused_late),
            (
                "holdfast_gateway_refused_creations_total",
                counters.refused_creations,
            ),
            ("holdfast_gateway_not_repeated_total", core.not_repeated),
            ("holdfast_gateway_window_cuts_total", core.window_cuts),
            ("holdfast_gateway_retries_total", core.repeated),
            ("holdfast_gateway_streams_restarted_total", core.restarts),
            (
                "holdfast_gateway_given_up_total",
                core.given_up + counters.withheld_given_up,
            ),
            ("holdfast_gateway_beside_total", counters.beside),
        ]
        .map(|(name, value)| (name, value as f64))
        .to_vec()
    }

    fn ready(&self) -> bool {
        self.executor.core.routes().complete() && self.executor.membership.is_enlisted()
    }

    fn figures(&self) -> Figures {
        Figures {
            operations: self.executor.counters.commands_total,
            ..Figures::default()
        }
    }
}
