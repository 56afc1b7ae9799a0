//! The order of each client's commands, over a network that may lose, double or reorder messages.
//!
//! S1. Of one stream, indexes are admitted in order, without gaps, each once. Those of one slot are executed in that order
//!     (K1 of `shard::parked`).
//! S2. A newer stream ends an older one for good.
//! S3. After a command was put off (the client will ask again), nothing later of that stream is
//!     executed: a later command of the same connection must not overtake the repeated one.
//! S4. A client is forgotten only when it has been silent for `FORGET_AFTER_US`, by when every write it
//!     may have sent is past its lease and refused; so nothing old can be taken for something new.
//! S5. An acknowledgement ends completion records only where it is remembered until the leases of
//!     what it covers have run out. Clients that name themselves (`Once::client`) speak through
//!     several gateways, and what one of those still has under way may come after the
//!     acknowledgement that came through another; it is refused, never executed again.
//!     Only writes whose own lease is acceptable are heard, so the places for it free themselves.

use std::collections::BTreeMap;

use holdfast_format::{ClientId, ClusterMs};

/// The longest that a client's `lease_until` may lie ahead. Completion records live that long at
/// most, and a forgotten client's last messages have run out.
pub(crate) const CLIENT_LEASE_MAX_MS: u64 = 10 * 60 * 1_000;

/// A little more than any accepted write's lease.
const FORGET_AFTER_US: u64 = (CLIENT_LEASE_MAX_MS + 60_000) * 1_000;

/// One client as this shard knows it.
#[derive(Clone, Copy, Debug)]
struct Client {
    stream: u64,
    next: u64,
    /// S3.
    put_off: bool,
    /// It has the outcomes of all its writes below this.
    acknowledged: u64,
    heard_us: u64,
}

/// What a client that speaks through others has acknowledged (S5).
#[derive(Clone, Copy, Debug)]
struct Floor {
    acknowledged: u64,
    /// The latest lease of any of its writes.
    lease_until: ClusterMs,
}

/// What to do with a message of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Execute all but the first `skip` items.
    Execute { skip: usize },
    /// Nothing of it is to be executed or answered.
    Ignore,
    /// Something before it is missing: the client must start a newer stream.
    Gap,
    /// No room for another client.
    Full,
}

#[derive(Debug)]
pub(crate) struct Streams {
    clients: BTreeMap<ClientId, Client>,
    floors: BTreeMap<ClientId, Floor>,
    /// Bounds each of the two.
    clients_max: usize,
}

impl Streams {
    pub fn new(clients_max: usize) -> Streams {
        Streams {
            clients: BTreeMap::new(),
            floors: BTreeMap::new(),
            clients_max,
        }
    }

    /// Judges `count` commands of a stream, the first of which has index `first`.
    pub fn admit(
        &mut self,
        now_us: u64,
        client: ClientId,
        stream: u64,
        first: u64,
        count: usize,
    ) -> Admission {
        if !self.clients.contains_key(&client) && !self.make_room(now_us) {
            return Admission::Full;
        }
        let state = self.clients.entry(client).or_insert(Client {
            stream,
            next: 0,
            put_off: false,
            acknowledged: 0,
            heard_us: now_us,
        });
        if stream < state.stream {
            return Admission::Ignore;
        }
        state.heard_us = now_us;
        if stream > state.stream {
            // S2.
            *state = Client {
                stream,
                next: 0,
                put_off: false,
                ..*state
            };
        }
        if first > state.next {
            return Admission::Gap;
        }
        let skip = state.next - first;
        if skip >= count as u64 {
            return Admission::Ignore;
        }
        state.next = first.saturating_add(count as u64);
        Admission::Execute {
            skip: skip as usize,
        }
    }

    /// A command of the client's stream is answered with "ask again" (S3).
    pub fn put_off(&mut self, client: ClientId, stream: u64) {
        if let Some(state) = self.current(client, stream) {
            state.put_off = true;
        }
    }

    /// True if nothing more of this stream may be executed: S3, or a newer one has begun.
    pub fn is_put_off(&mut self, client: ClientId, stream: u64) -> bool {
        self.current(client, stream)
            .is_none_or(|state| state.put_off)
    }

    /// Notes that the client has all outcomes below `sequence`; says below which it has them.
    pub fn acknowledge(&mut self, client: ClientId, sequence: u64) -> u64 {
        match self.clients.get_mut(&client) {
            Some(state) => {
                state.acknowledged = state.acknowledged.max(sequence);
                state.acknowledged
            }
            None => sequence,
        }
    }

    /// The same for a client that speaks through others, of which a write with this lease has come.
    /// Where there is no room to remember an acknowledgement, it counts for nothing (S5).
    pub fn acknowledge_through_others(
        &mut self,
        client: ClientId,
        sequence: u64,
        lease_until: ClusterMs,
        now: ClusterMs,
    ) -> u64 {
        if !self.floors.contains_key(&client) && self.floors.len() >= self.clients_max {
            self.floors.retain(|_, floor| floor.lease_until >= now);
            if self.floors.len() >= self.clients_max {
                return 0;
            }
        }
        let floor = self.floors.entry(client).or_insert(Floor {
            acknowledged: 0,
            lease_until,
        });
        floor.acknowledged = floor.acknowledged.max(sequence);
        floor.lease_until = floor.lease_until.max(lease_until);
        floor.acknowledged
    }

    /// Memory that the tables take, about: nodes of such maps are at least half full.
    pub fn memory_bytes(&self) -> u64 {
        let client = 2 * size_of::<(ClientId, Client)>();
        let floor = 2 * size_of::<(ClientId, Floor)>();
        (self.clients.len() * client + self.floors.len() * floor) as u64
    }

    /// Clients remembered.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    fn current(&mut self, client: ClientId, stream: u64) -> Option<&mut Client> {
        self.clients
            .get_mut(&client)
            .filter(|state| state.stream == stream)
    }

    /// True if there is room for one more, after forgetting all that may be forgotten (S4). The walk
    /// over all clients happens only when full.
    fn make_room(&mut self, now_us: u64) -> bool {
        if self.clients.len() >= self.clients_max {
            self.clients
                .retain(|_, state| now_us < state.heard_us + FORGET_AFTER_US);
        }
        self.clients.len() < self.clients_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const C: ClientId = ClientId(5);

    #[test]
    fn indexes_are_executed_once_and_in_order() {
        let mut streams = Streams::new(4);
        assert_eq!(streams.admit(0, C, 1, 0, 3), Admission::Execute { skip: 0 });
        assert_eq!(
            streams.admit(0, C, 1, 0, 3),
            Admission::Ignore,
            "a duplicate"
        );
        assert_eq!(streams.admit(0, C, 1, 2, 3), Admission::Execute { skip: 1 });
        assert_eq!(streams.admit(0, C, 1, 6, 1), Admission::Gap);
        assert_eq!(streams.admit(0, C, 1, 5, 1), Admission::Execute { skip: 0 });
    }

    #[test]
    fn a_newer_stream_ends_the_older_one() {
        let mut streams = Streams::new(4);
        assert_eq!(streams.admit(0, C, 1, 0, 3), Admission::Execute { skip: 0 });
        assert_eq!(
            streams.admit(0, C, 2, 1, 1),
            Admission::Gap,
            "its own start is missing"
        );
        assert_eq!(streams.admit(0, C, 2, 0, 1), Admission::Execute { skip: 0 });
        assert_eq!(streams.admit(0, C, 1, 3, 1), Admission::Ignore);
        assert!(streams.is_put_off(C, 1), "what is over executes nothing");
    }

    #[test]
    fn nothing_overtakes_a_command_that_was_put_off() {
        let mut streams = Streams::new(4);
        streams.admit(0, C, 1, 0, 1);
        streams.put_off(C, 1);
        assert!(streams.is_put_off(C, 1));
        streams.admit(0, C, 2, 0, 1);
        assert!(!streams.is_put_off(C, 2));
        streams.put_off(C, 1);
        assert!(
            !streams.is_put_off(C, 2),
            "an older stream's trouble is not the newer one's"
        );
    }

    #[test]
    fn an_acknowledgement_counts_only_while_it_is_remembered() {
        let mut streams = Streams::new(1);
        let mut acknowledge = |client, sequence, until, now| {
            let (until, now) = (ClusterMs(until), ClusterMs(now));
            streams.acknowledge_through_others(ClientId(client), sequence, until, now)
        };
        assert_eq!(acknowledge(1, 5, 100, 0), 5);
        assert_eq!(
            acknowledge(1, 3, 90, 0),
            5,
            "an older one does not lower it"
        );
        assert_eq!(
            acknowledge(2, 7, 200, 100),
            0,
            "no room while a lease lasts"
        );
        assert_eq!(acknowledge(2, 7, 200, 101), 7);
    }

    #[test]
    fn clients_are_bounded_and_only_long_silent_ones_forgotten() {
        let mut streams = Streams::new(2);
        streams.admit(0, ClientId(1), 1, 0, 1);
        streams.admit(FORGET_AFTER_US / 2, ClientId(2), 1, 0, 1);
        assert_eq!(
            streams.admit(FORGET_AFTER_US - 1, ClientId(3), 1, 0, 1),
            Admission::Full
        );
        assert_eq!(
            streams.admit(FORGET_AFTER_US, ClientId(3), 1, 0, 1),
            Admission::Execute { skip: 0 }
        );
        assert_eq!(streams.len(), 2);
        assert_eq!(
            streams.admit(FORGET_AFTER_US, ClientId(1), 1, 1, 1),
            Admission::Full
        );
    }
}
