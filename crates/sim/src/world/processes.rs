//! Processes as they start and end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use holdfast_cluster::{ConnectionId, Input, Node};
use holdfast_format::ServerId;
use holdfast_wire::Role;

use super::{Appetite, COMPACTED, Event, Happening, Running, Tells, World};
use crate::network::PlaceId;
use crate::roles;

impl World {
    pub(super) fn start(&mut self, place: PlaceId) {
        let machine = self.places[place.0].machine;
        self.machines[machine.0 as usize].off = false;
        let role = self.places[place.0].role;
        let id = match role {
            Role::Coordinator => ServerId::COORDINATOR,
            _ => ServerId(self.ids.roll() | 1),
        };
        let now = self.machines[machine.0 as usize].clock.read(self.now_us);
        let seed = self.ids.roll();
        let here = &mut self.places[place.0];
        here.incarnation += 1;
        let member = self
            .setup
            .member(id, role, &here.name, machine, here.incarnation);
        let node = match role {
            Role::Coordinator => {
                let cold_start = std::mem::take(&mut self.setup.cold_start);
                roles::coordinator(&self.setup, self.records.all(), now, seed, cold_start)
            }
            Role::Shard => roles::shard(&self.setup, member, seed),
            Role::Backup => {
                let headers = here.store.as_ref().expect("backups have a store").headers();
                roles::backup(&self.setup, member, headers, seed)
            }
            Role::Gateway => roles::gateway(&self.setup, member, seed),
        };
        let here = &mut self.places[place.0];
        here.last_id = Some(id);
        here.running = Some(Running {
            id,
            node,
            inbox: VecDeque::new(),
            flush_due: false,
            turn_at_us: None,
            busy_until_us: self.now_us,
            paused_until_us: 0,
            tick_at_us: u64::MAX,
            spins: 0,
            appetite: Appetite::Fed,
            held: VecDeque::new(),
            blow: None,
            reachable: BTreeSet::new(),
        });
        self.whereabouts.insert(id, place);
        self.trace.word(id.0);
        let name = self.name(place).to_owned();
        self.tell(Tells::Events, || format!("{name} starts as {id}"));
        self.give(place, Input::Tick);
    }

    /// Ends the process of one place. `closes`: its kernel lives and closes the streams.
    pub(super) fn kill(&mut self, place: PlaceId, closes: bool) {
        let Some(running) = self.places[place.0].running.take() else {
            return;
        };
        let incarnation = self.places[place.0].incarnation;
        tally(&mut self.tallies, running.node.as_ref());
        // Whatever was on its way to the old process must not reach the next one.
        self.places[place.0].incarnation += 1;
        self.trace.word(0xDEAD);
        self.trace.word(running.id.0);
        let name = self.name(place).to_owned();
        self.tell(Tells::Events, || format!("{name} ({}) is gone", running.id));
        if self.places[place.0].role == Role::Coordinator {
            self.records.crash(&mut self.chance);
        }
        for there in self.network.neighbours(place) {
            if !closes || !self.is_up(there) {
                continue;
            }
            let route = self.route(place, there);
            let blocked =
                self.network
                    .is_blocked(self.now_us, route.from_machine, route.to_machine);
            let delay_us = match blocked {
                true => self.chance.between(500_000, 2_000_000),
                false => self.network.delay_us(self.now_us, route, 60),
            };
            let ended = route.from_machine == route.to_machine
                && self.places[place.0].role != Role::Coordinator;
            self.input(
                there,
                delay_us,
                Input::PeerLost {
                    peer: running.id,
                    ended,
                },
            );
        }
        let lost: Vec<u64> = self
            .calls
            .iter()
            .filter(|&(_, &at)| at == place)
            .map(|(&token, _)| token)
            .collect();
        for token in lost {
            self.calls.remove(&token);
            let delay_us = 100 + self.chance.below(500);
            self.schedule(delay_us, Event::Happens(Happening::CallLost { token }));
        }
        let closed: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|(_, known)| known.gateway == place && known.incarnation == incarnation)
            .map(|(&connection, _)| connection)
            .collect();
        for connection in closed {
            self.answer_client(connection, 50, Happening::Closed { connection });
            if let Some(known) = self.connections.get_mut(&connection) {
                known.open = false;
            }
        }
    }
}

/// What a shard has copied in compacting so far.
pub(super) fn compacted_bytes(node: &dyn Node) -> u64 {
    let metrics = node.metrics().into_iter();
    let mut compacted = metrics.filter(|(name, _)| *name == COMPACTED);
    compacted.next().map_or(0, |(_, bytes)| bytes as u64)
}

pub(super) fn tally(tallies: &mut BTreeMap<&'static str, u64>, node: &dyn Node) {
    for (name, value) in node.metrics() {
        if name.ends_with("_total") {
            *tallies.entry(name).or_default() += value as u64;
        }
    }
}
