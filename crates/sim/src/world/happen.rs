//! What happens in the world: each event in its turn, and what processes put out.

use std::cmp::Reverse;
use std::collections::VecDeque;

use holdfast_cluster::{
    Arrival, ConnectionId, DiskDone, DiskError, Input, Level, Node, Now, Output, Outputs,
    ShardBeside,
};
use holdfast_wire::Role;

use super::processes::compacted_bytes;
use super::{
    Appetite, BATCH_INPUTS, Blow, Event, Happening, Running, SPINS_MAX, STARVED, Scheduled, Tells,
    World,
};
use crate::content;
use crate::network::PlaceId;

impl World {
    pub(super) fn schedule(&mut self, in_us: u64, event: Event) {
        self.sequence += 1;
        let at_us = self.now_us + in_us;
        self.queue.push(Reverse(Scheduled {
            at_us,
            sequence: self.sequence,
            event,
        }));
    }

    pub(super) fn input(&mut self, place: PlaceId, in_us: u64, input: Input) {
        let incarnation = self.places[place.0].incarnation;
        self.schedule(
            in_us,
            Event::Input {
                place,
                incarnation,
                input: Box::new(input),
            },
        );
    }

    /// The process of `place` if it is still the one meant.
    pub(super) fn running(&mut self, place: PlaceId, incarnation: u64) -> Option<&mut Running> {
        let place = &mut self.places[place.0];
        if place.incarnation != incarnation {
            return None;
        }
        place.running.as_mut()
    }

    pub(super) fn happen(&mut self, event: Event) {
        match event {
            Event::Turn { place, incarnation } => self.turn(place, incarnation),
            Event::Tick { place, incarnation } => {
                let now_us = self.now_us;
                if let Some(running) = self.running(place, incarnation)
                    && running.tick_at_us == now_us
                {
                    running.tick_at_us = u64::MAX;
                    self.give(place, Input::Tick);
                }
            }
            Event::Deliver {
                route,
                from,
                incarnation,
                generation,
                message,
            } => {
                let current = self.network.is_current(route.from, route.to, generation);
                let place = route.to;
                if let Some(running) = self.running(place, incarnation)
                    && current
                {
                    running.reachable.insert(from);
                    self.give(
                        place,
                        Input::Message {
                            from,
                            message: *message,
                        },
                    );
                }
            }
            Event::Break { a, b } => self.stream_breaks(a, b),
            Event::Input {
                place,
                incarnation,
                input,
            } => {
                if self.running(place, incarnation).is_some() {
                    self.give(place, *input);
                }
            }
            Event::Refused {
                place,
                incarnation,
                peer,
                ended,
            } => {
                self.refusals.remove(&(place, peer));
                if self.running(place, incarnation).is_some() {
                    self.give(place, Input::PeerLost { peer, ended });
                }
            }
            Event::Sync {
                place,
                incarnation,
                token,
                frame,
                mark,
                fails,
            } => {
                if self.running(place, incarnation).is_some() {
                    let store = self.store(place);
                    let done = if fails {
                        store.sync_fails(frame);
                        false
                    } else {
                        store.sync_end(frame, mark)
                    };
                    let result = done
                        .then_some(())
                        .ok_or(DiskError("sync failed".to_owned()));
                    self.give(place, Input::Disk(DiskDone::Synced { token, result }));
                }
            }
            Event::Read {
                place,
                incarnation,
                token,
                frame,
                span: (offset, length),
                fails,
            } => {
                if self.running(place, incarnation).is_some() {
                    let result = match fails {
                        true => Err(DiskError("read failed".to_owned())),
                        false => Ok(self.store(place).read(frame, offset, length)),
                    };
                    self.give(place, Input::Disk(DiskDone::Read { token, result }));
                }
            }
            Event::Records { place, incarnation } => {
                if self.running(place, incarnation).is_some()
                    && let Some(token) = self.records.complete_next()
                {
                    self.give(place, Input::RecordsWritten { token });
                }
            }
            Event::Start { place, incarnation } => {
                if self.places[place.0].incarnation == incarnation && !self.is_up(place) {
                    self.start(place);
                }
            }
            Event::Blow { place, incarnation } => {
                if let Some(running) = self.running(place, incarnation)
                    && let Some((_, blow)) = running.blow.take()
                {
                    self.blow_falls(place, blow);
                }
            }
            Event::Happens(happening) => self.happens(happening),
        }
    }

    fn happens(&mut self, happening: Happening) {
        let told = match &happening {
            Happening::Answer { token, outcome } => {
                self.trace.word(*token);
                content::fold_outcome(&mut self.trace, outcome);
                self.calls.remove(token).is_some()
            }
            Happening::CallLost { .. } | Happening::Alarm { .. } => true,
            Happening::Bytes { connection, bytes } => {
                self.trace.bytes(bytes);
                self.connections.contains_key(connection)
            }
            Happening::Closed { connection } => self.connections.remove(connection).is_some(),
        };
        if told {
            self.happenings.push_back(happening);
        }
    }

    /// Puts an input into a process's inbox.
    pub(super) fn give(&mut self, place: PlaceId, mut input: Input) {
        self.trace.word(self.now_us);
        self.trace.word(place.0 as u64);
        content::fold_input(&mut self.trace, &input);
        if let Input::Message { message, .. } = &input {
            self.closings.watch(message);
        }
        if self.tells >= Tells::Everything {
            let (name, mut text) = (self.name(place), format!("{input:?}"));
            cut(&mut text, 400);
            self.tell(Tells::Everything, || format!("{name} <- {text}"));
        }
        // What waits in the inbox of a process that is busy or paused has come all the same.
        let machine = self.places[place.0].machine.0 as usize;
        let mono_us = self.machines[machine].clock.read(self.now_us).mono_us;
        match &mut input {
            Input::Received { arrival, .. } => *arrival = Arrival::at(mono_us),
            Input::Call { posted_us, .. } => *posted_us = mono_us,
            _ => {}
        }
        let running = self.places[place.0]
            .running
            .as_mut()
            .expect("given to a running process");
        running.inbox.push_back(input);
        self.turn_soon(place);
    }

    pub(super) fn turn_soon(&mut self, place: PlaceId) {
        let now_us = self.now_us;
        let incarnation = self.places[place.0].incarnation;
        let shard_busy_until_us = self.shard_busy_until_us(place);
        let Some(running) = self.places[place.0].running.as_mut() else {
            return;
        };
        let at_us = now_us
            .max(running.busy_until_us)
            .max(shard_busy_until_us)
            .max(running.paused_until_us);
        if running.turn_at_us.is_none_or(|turn_us| turn_us > at_us) {
            running.turn_at_us = Some(at_us);
            self.schedule(at_us - now_us, Event::Turn { place, incarnation });
        }
    }

    /// A process runs: it steps through its inbox, or releases what its steps have made ready.
    fn turn(&mut self, place: PlaceId, incarnation: u64) {
        let now_us = self.now_us;
        let stretch = self.places[place.0].stretch;
        let shard_busy_until_us = self.shard_busy_until_us(place);
        let Some(running) = self.running(place, incarnation) else {
            return;
        };
        if running.turn_at_us != Some(now_us) {
            return; // A turn that was put earlier has made this one superfluous.
        }
        running.turn_at_us = None;
        let busy_until_us = running.busy_until_us.max(shard_busy_until_us);
        if running.paused_until_us > now_us || busy_until_us > now_us {
            return self.turn_soon(place);
        }
        if !running.held.is_empty() {
            let held = std::mem::take(&mut running.held);
            if !self.apply(place, held, 0) {
                return;
            }
        } else if running.flush_due {
            running.flush_due = false;
            let cost_us = 2 * stretch;
            self.step_node(place, cost_us, |node, now, shard, out| {
                node.flush_beside(now, shard, out);
            });
            self.flush_gateways_beside(place);
        } else {
            running.flush_due = true;
            let mut cost_us = 0;
            for _ in 0..BATCH_INPUTS {
                let Some(running) = self.running(place, incarnation) else {
                    return;
                };
                if !running.held.is_empty() {
                    break; // A pause came between two outputs; what follows comes after it.
                }
                let Some(input) = running.inbox.pop_front() else {
                    break;
                };
                match input {
                    Input::Tick => running.spins += 1,
                    _ => running.spins = 0,
                }
                cost_us += content::cost_us(&input) * stretch;
                self.step_node(place, cost_us, |node, now, shard, out| {
                    node.step_beside(now, input, shard, out);
                });
            }
        }
        let now_us = self.now_us;
        let clock = self.machines[self.places[place.0].machine.0 as usize].clock;
        let Some(running) = self.running(place, incarnation) else {
            return;
        };
        if running.flush_due || !running.inbox.is_empty() || !running.held.is_empty() {
            self.turn_soon(place);
            return;
        }
        // Idle: sleep until the node wants to be woken.
        let Some(wakeup_us) = running.node.wakeup() else {
            return;
        };
        let mut at_us = clock
            .world_us(wakeup_us)
            .max(now_us + 1)
            .max(running.busy_until_us);
        if running.spins > 100 {
            at_us = at_us.max(now_us + 100);
        }
        let spins = running.spins;
        if at_us > now_us + 1_000 {
            running.spins = 0;
        }
        if at_us != running.tick_at_us {
            running.tick_at_us = at_us;
            self.schedule(at_us - now_us, Event::Tick { place, incarnation });
        }
        if spins == SPINS_MAX {
            let name = self.name(place).to_owned();
            self.violations
                .push(format!("{name} asks to be woken at once, for ever"));
        }
    }

    fn step_node(
        &mut self,
        place: PlaceId,
        cost_us: u64,
        step: impl FnOnce(&mut dyn Node, Now, Option<&mut dyn ShardBeside>, &mut Outputs),
    ) {
        let machine = self.places[place.0].machine;
        // The clock is read when the work begins; its effects leave when it has ended.
        let busy_since_us = self.places[place.0]
            .running
            .as_ref()
            .map_or(0, |r| r.busy_until_us);
        let now = self.machines[machine.0 as usize]
            .clock
            .read(self.now_us.max(busy_since_us));
        let mut out = std::mem::take(&mut self.scratch);
        let running = self.places[place.0]
            .running
            .as_mut()
            .expect("a running process steps");
        running.busy_until_us = self.now_us + cost_us;
        match self.shard_beside(place) {
            Some(beside) => {
                let [here, there] = self
                    .places
                    .get_disjoint_mut([place.0, beside.0])
                    .expect("a shard is beside others, not itself");
                let running = here.running.as_mut().expect("looked up above");
                let shard = there.running.as_mut().expect("only a running one is lent");
                step(running.node.as_mut(), now, shard.node.as_shard(), &mut out);
                if shard.node.as_shard().is_some_and(ShardBeside::take_used) {
                    // One thread does the work of both.
                    shard.busy_until_us = shard.busy_until_us.max(self.now_us + cost_us);
                    shard.flush_due = true;
                    self.turn_soon(beside);
                }
            }
            None => {
                let running = self.places[place.0].running.as_mut();
                let node = running.expect("looked up above").node.as_mut();
                step(node, now, None, &mut out);
            }
        }
        self.notice_compaction(place);
        let outputs: VecDeque<Output> = out.list.drain(..).collect();
        self.scratch = out;
        self.apply(place, outputs, cost_us);
    }

    /// A shard that has just compacted starves from now on, if it was to.
    fn notice_compaction(&mut self, place: PlaceId) {
        let running = self.places[place.0]
            .running
            .as_mut()
            .expect("it has just made a step");
        if let Appetite::UntilCompaction { compacted, alarm } = running.appetite
            && compacted_bytes(running.node.as_ref()) > compacted
        {
            running.appetite = Appetite::Starved;
            self.tell(Tells::Events, || {
                format!("{place:?} has compacted and starves")
            });
            *self.tallies.entry(STARVED).or_default() += 1;
            self.alarm(0, alarm);
        }
    }

    /// The shard that a gateway is lent (W5).
    pub fn shard_beside(&self, place: PlaceId) -> Option<PlaceId> {
        let here = &self.places[place.0];
        if here.role != Role::Gateway {
            return None;
        }
        let at = self.places.iter().position(|there| {
            there.process == here.process
                && there.role == Role::Shard
                && there
                    .running
                    .as_ref()
                    .is_some_and(|shard| shard.held.is_empty())
        })?;
        Some(PlaceId(at))
    }

    /// Until when a gateway's thread is busy for the shard that it is lent.
    fn shard_busy_until_us(&self, place: PlaceId) -> u64 {
        self.shard_beside(place)
            .and_then(|shard| self.places[shard.0].running.as_ref())
            .map_or(0, |shard| shard.busy_until_us)
    }

    /// A shard has flushed: those it is lent to may have something to say.
    fn flush_gateways_beside(&mut self, place: PlaceId) {
        if self.places[place.0].role != Role::Shard {
            return;
        }
        for gateway in self.all_places() {
            let there = &mut self.places[gateway.0];
            if there.role == Role::Gateway && there.process == self.places[place.0].process {
                if let Some(running) = &mut self.places[gateway.0].running {
                    running.flush_due = true;
                }
                self.turn_soon(gateway);
            }
        }
    }

    /// Applies outputs one at a time (W2). False if the process is gone afterwards.
    fn apply(&mut self, place: PlaceId, mut outputs: VecDeque<Output>, in_us: u64) -> bool {
        let incarnation = self.places[place.0].incarnation;
        while let Some(output) = outputs.pop_front() {
            let now_us = self.now_us;
            let Some(running) = self.running(place, incarnation) else {
                return false;
            };
            if running.paused_until_us > now_us {
                outputs.push_front(output);
                running.held.extend(outputs);
                return true;
            }
            if let Some((after, blow)) = running.blow {
                if after > 0 {
                    running.blow = Some((after - 1, blow));
                } else {
                    running.blow = None;
                    outputs.push_front(output);
                    self.blow_falls(place, blow);
                    continue;
                }
            }
            self.apply_one(place, output, in_us);
        }
        self.running(place, incarnation).is_some()
    }

    fn blow_falls(&mut self, place: PlaceId, blow: Blow) {
        match blow {
            Blow::Crash => self.crash(place),
            Blow::Pause { for_us } => self.pause(place, for_us),
            Blow::PowerLoss => self.power_loss(self.machine(place)),
        }
    }

    fn apply_one(&mut self, place: PlaceId, output: Output, in_us: u64) {
        let incarnation = self.places[place.0].incarnation;
        if self.tells >= Tells::Everything && !matches!(output, Output::Event(_)) {
            let (name, mut text) = (self.name(place), format!("{output:?}"));
            cut(&mut text, 400);
            self.tell(Tells::Everything, || format!("{name} -> {text}"));
        }
        match output {
            Output::Send { to, message } => self.send(place, to, message, in_us),
            Output::Address { peer, .. } => {
                if let Some(running) = self.running(place, incarnation) {
                    running.reachable.insert(peer);
                }
            }
            Output::Forget { peer } => {
                if let Some(running) = self.running(place, incarnation) {
                    running.reachable.remove(&peer);
                }
                if let Some(&there) = self.whereabouts.get(&peer)
                    && self.id(there) == Some(peer)
                {
                    self.network.break_stream(place, there);
                }
            }
            Output::Disk(op) => self.disk(place, op, in_us),
            Output::Records { token, writes } => {
                self.records.ask(token, writes);
                let delay_us = in_us + 100 + self.chance.exponential(self.records_delay_us);
                let at_us = (self.now_us + delay_us).max(self.records_last_us + 1);
                self.records_last_us = at_us;
                self.schedule(at_us - self.now_us, Event::Records { place, incarnation });
            }
            Output::Bytes { connection, bytes } => {
                self.answer_client(connection, in_us, Happening::Bytes { connection, bytes });
            }
            Output::Close { connection } => {
                self.answer_client(connection, in_us, Happening::Closed { connection });
                if let Some(known) = self.connections.get_mut(&connection) {
                    known.open = false;
                }
            }
            Output::Answer { token, outcome } => {
                let delay_us = in_us + 30 + self.chance.below(100);
                self.schedule(
                    delay_us,
                    Event::Happens(Happening::Answer { token, outcome }),
                );
            }
            // Nobody orders anything here.
            Output::Obeyed { .. } | Output::Refused { .. } => {}
            Output::Event(event) => {
                if event.level > Level::Debug || self.tells >= Tells::Everything {
                    let name = self.name(place);
                    self.tell(Tells::Events, || {
                        format!("{name} {:?}: {}", event.level, event.text)
                    });
                }
            }
            Output::Stopped { reason } => {
                let name = self.name(place).to_owned();
                self.tell(Tells::Events, || format!("{name} stops: {reason}"));
                self.kill(place, true);
                let in_us = 20_000 + self.chance.below(200_000);
                self.start_in(place, in_us);
            }
        }
    }

    pub(super) fn answer_client(
        &mut self,
        connection: ConnectionId,
        in_us: u64,
        happening: Happening,
    ) {
        let delay_us = in_us + 20 + self.chance.exponential(60);
        let now_us = self.now_us;
        if let Some(known) = self
            .connections
            .get_mut(&connection)
            .filter(|known| known.open)
        {
            known.to_client_us = known.to_client_us.max(now_us + delay_us);
            let at_us = known.to_client_us;
            self.schedule(at_us - now_us, Event::Happens(happening));
        }
    }
}

fn cut(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let end = (0..=bytes_max)
            .rev()
            .find(|&at| text.is_char_boundary(at))
            .unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
}
