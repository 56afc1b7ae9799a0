//! Messages on their way from one process to another: what is lost, doubled, refused, or breaks with its stream.

use holdfast_cluster::Input;
use holdfast_format::ServerId;
use holdfast_wire::{Message, Role};

use super::{Appetite, CAUGHT, Event, Tells, World};
use crate::content;
use crate::network::{Fate, PlaceId, Route};

/// One message in so many crosses the network as bytes.
const CODED_EVERY: u64 = 8;

impl World {
    pub(super) fn send(&mut self, place: PlaceId, to: ServerId, message: Message, in_us: u64) {
        let from = self.id(place).expect("only a running process sends");
        if let Message::HeartbeatReply(reply) = &message {
            self.cluster_time.observe(self.now_us, reply.cluster_us);
        }
        if let Message::View(view) = &message
            && view.version > self.view.version
        {
            self.view = view.clone();
        }
        if matches!(message, Message::Replayed { .. }) {
            self.catch(place);
        }
        let running = self.places[place.0].running.as_ref().expect("it runs");
        let appetite = running.appetite;
        let reachable = &running.reachable;
        if to != ServerId::COORDINATOR && !reachable.contains(&to) {
            // A driver has nowhere to send it. Whoever was forgotten may still be answered late.
            if !self.whereabouts.contains_key(&to) {
                let name = self.name(place).to_owned();
                self.violations
                    .push(format!("{name} sends to {to}, which it cannot know"));
            }
            return;
        }
        let Some(&there) = self.whereabouts.get(&to) else {
            return self.refuse(place, to, in_us);
        };
        if self.id(there) != Some(to) {
            return self.refuse(place, to, in_us);
        }
        // Only what goes to open heads asks for a lease.
        if let Message::Append(append) = &message
            && match appetite {
                Appetite::Starved => append.lease_ms > 0,
                Appetite::Caught => append.lease_ms == 0,
                Appetite::Fed | Appetite::UntilCompaction { .. } => false,
            }
        {
            return;
        }
        if let Some(filter) = &mut self.filter
            && filter(place, there, &message)
        {
            return;
        }
        let route = self.route(place, there);
        // Every message would double the time a seed takes; what can go wrong does so soon enough.
        let message = match self.sequence.is_multiple_of(CODED_EVERY) {
            true => content::through_the_codec(message),
            false => message,
        };
        let bytes = content::message_bytes(&message);
        let sent_us = self.now_us + in_us;
        let incarnation = self.places[there.0].incarnation;
        match self.network.send(sent_us, route, bytes, &mut self.counts) {
            Fate::Lost => {}
            Fate::Breaks { at_us } => {
                self.schedule(at_us - self.now_us, Event::Break { a: place, b: there });
            }
            Fate::Arrives {
                at_us,
                again_at_us,
                generation,
            } => {
                if let Some(again_us) = again_at_us {
                    let message = Box::new(message.clone());
                    let event = Event::Deliver {
                        route,
                        from,
                        incarnation,
                        generation,
                        message,
                    };
                    self.schedule(again_us - self.now_us, event);
                }
                let message = Box::new(message);
                let event = Event::Deliver {
                    route,
                    from,
                    incarnation,
                    generation,
                    message,
                };
                self.schedule(at_us - self.now_us, event);
            }
        }
    }

    pub(super) fn route(&self, from: PlaceId, to: PlaceId) -> Route {
        Route {
            from,
            to,
            from_machine: self.machine(from),
            to_machine: self.machine(to),
        }
    }

    /// `peer` runs nowhere: after a refusal or a timeout the sender is told.
    fn refuse(&mut self, place: PlaceId, peer: ServerId, in_us: u64) {
        if !self.refusals.insert((place, peer)) {
            return;
        }
        let incarnation = self.places[place.0].incarnation;
        let there = match self.whereabouts.get(&peer) {
            Some(&there) => Some(there),
            None if peer == ServerId::COORDINATOR => {
                self.places_of(Role::Coordinator).first().copied()
            }
            None => None,
        };
        let (mut delay_us, mut ended) = (1_000, false);
        if let Some(there) = there {
            let (here_machine, there_machine) = (self.machine(place), self.machine(there));
            let silent = self.machines[there_machine.0 as usize].off
                || self
                    .network
                    .is_blocked(self.now_us, here_machine, there_machine);
            ended = here_machine == there_machine && !silent && peer != ServerId::COORDINATOR;
            delay_us = match silent {
                true => self.chance.between(1_000_000, 3_000_000),
                false => {
                    self.network
                        .delay_us(self.now_us, self.route(place, there), 60)
                        + 300
                }
            };
        }
        self.schedule(
            in_us + delay_us,
            Event::Refused {
                place,
                incarnation,
                peer,
                ended,
            },
        );
    }

    pub(super) fn stream_breaks(&mut self, a: PlaceId, b: PlaceId) {
        self.network.break_stream(a, b);
        for (here, there) in [(a, b), (b, a)] {
            if let (Some(_), Some(peer)) = (self.id(here), self.id(there)) {
                let delay_us = self.chance.below(2_000);
                self.input(here, delay_us, Input::PeerLost { peer, ended: false });
            }
        }
    }

    /// A shard begins to lean. If one is to be caught, nothing but its head gets to backups from now on.
    fn catch(&mut self, place: PlaceId) {
        let running = self.places[place.0].running.as_mut().expect("it sends");
        let fed = running.appetite == Appetite::Fed;
        if let Some(alarms) = self.catch_leaning.take_if(|_| fed) {
            running.appetite = Appetite::Caught;
            self.tell(Tells::Events, || format!("{place:?} leans and is caught"));
            *self.tallies.entry(CAUGHT).or_default() += 1;
            self.alarm(0, alarms + place.0 as u64);
        }
    }
}
