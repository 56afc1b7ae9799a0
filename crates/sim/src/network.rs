//! The network between machines: what happens to each message, decided when it is sent.
//!
//! A link is one direction between two places. It keeps its order as a TCP stream does, unless the
//! seed reorders; it breaks as one does, dropping what is under way.

use std::collections::BTreeMap;

use crate::chance::Chance;
use crate::faults::{Fault, FaultCounts};

/// One machine: its processes share its clock, its power and its network card.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct MachineId(pub u32);

/// A place where a process runs; processes come and go there. An index into the world's places.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PlaceId(pub usize);

/// How often single messages suffer, per million.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    pub lost: u32,
    pub broken: u32,
    pub doubled: u32,
    pub reordered: u32,
}

/// Where a message comes from and goes to.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub from: PlaceId,
    pub to: PlaceId,
    pub from_machine: MachineId,
    pub to_machine: MachineId,
}

/// What will happen to a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It arrives, unless the link's generation has changed by then.
    Arrives {
        at_us: u64,
        again_at_us: Option<u64>,
        generation: u64,
    },
    /// It vanishes and nobody is told.
    Lost,
    /// The stream breaks then, and this message with it.
    Breaks { at_us: u64 },
}

#[derive(Clone, Copy, Debug)]
struct Block {
    until_us: u64,
    /// Messages wait for the end of the partition instead of being dropped.
    holds: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    generation: u64,
    last_arrival_us: u64,
    /// A break is already on its way.
    breaks_at_us: u64,
}

/// Delays, losses and partitions.
#[derive(Debug)]
pub struct Network {
    pub rates: Rates,
    chance: Chance,
    blocked: BTreeMap<(MachineId, MachineId), Block>,
    /// Delay factor and until when.
    slow: BTreeMap<(MachineId, MachineId), (u32, u64)>,
    links: BTreeMap<(PlaceId, PlaceId), Link>,
}

impl Network {
    /// A network without faults.
    pub fn new(seed: u64) -> Network {
        Network {
            rates: Rates::default(),
            chance: Chance::new(seed, 0x6E65),
            blocked: BTreeMap::new(),
            slow: BTreeMap::new(),
            links: BTreeMap::new(),
        }
    }

    /// Decides about a message of so many bytes.
    pub fn send(
        &mut self,
        now_us: u64,
        route: Route,
        bytes: usize,
        counts: &mut FaultCounts,
    ) -> Fate {
        let delay_us = self.delay_us(now_us, route, bytes);
        let chance = &mut self.chance;
        let link = self.links.entry((route.from, route.to)).or_default();
        let key = (route.from_machine, route.to_machine);
        let mut earliest_us = now_us;
        if let Some(block) = self
            .blocked
            .get(&key)
            .filter(|block| block.until_us > now_us)
        {
            if block.holds {
                earliest_us = block.until_us;
            } else {
                if link.breaks_at_us > now_us {
                    return Fate::Lost;
                }
                let at_us = block
                    .until_us
                    .min(now_us + chance.between(300_000, 3_000_000));
                link.breaks_at_us = at_us;
                return Fate::Breaks { at_us };
            }
        }
        if chance.per_million(self.rates.lost) {
            counts.count(Fault::MessageLost);
            return Fate::Lost;
        }
        if chance.per_million(self.rates.broken) {
            counts.count(Fault::StreamBroken);
            return Fate::Breaks {
                at_us: now_us + delay_us,
            };
        }
        let mut at_us = earliest_us + delay_us;
        if chance.per_million(self.rates.reordered) {
            counts.count(Fault::MessageReordered);
            at_us += chance.exponential(5_000);
        } else {
            at_us = at_us.max(link.last_arrival_us);
            link.last_arrival_us = at_us;
        }
        let mut again_at_us = None;
        if chance.per_million(self.rates.doubled) {
            counts.count(Fault::MessageDoubled);
            // Mostly soon after, now and then so late that everybody has moved on.
            let mean_us = if chance.percent(10) { 1_000_000 } else { 2_000 };
            again_at_us = Some(at_us + chance.exponential(mean_us));
        }
        Fate::Arrives {
            at_us,
            again_at_us,
            generation: link.generation,
        }
    }

    /// The delay of something that is not a member's message: a reset, a refusal.
    pub fn delay_us(&mut self, now_us: u64, route: Route, bytes: usize) -> u64 {
        let transfer_us = bytes as u64 / 1_000;
        if route.from_machine == route.to_machine {
            return 15 + self.chance.below(40) + transfer_us;
        }
        let delay_us = 60 + self.chance.exponential(120) + transfer_us;
        match self.slow.get(&(route.from_machine, route.to_machine)) {
            Some(&(factor, until_us)) if until_us > now_us => delay_us * u64::from(factor),
            _ => delay_us,
        }
    }

    /// True if nothing can get from one machine to the other now.
    pub fn is_blocked(&self, now_us: u64, from: MachineId, to: MachineId) -> bool {
        self.blocked
            .get(&(from, to))
            .is_some_and(|block| block.until_us > now_us)
    }

    /// True if a message sent on the link's `generation` can still arrive.
    pub fn is_current(&self, from: PlaceId, to: PlaceId, generation: u64) -> bool {
        self.links
            .get(&(from, to))
            .is_some_and(|link| link.generation == generation)
    }

    /// Breaks both directions between two places: whatever is under way is gone.
    pub fn break_stream(&mut self, a: PlaceId, b: PlaceId) {
        for key in [(a, b), (b, a)] {
            if let Some(link) = self.links.get_mut(&key) {
                link.generation += 1;
                link.last_arrival_us = 0;
                link.breaks_at_us = 0;
            }
        }
    }

    /// Places that have exchanged anything with `place`.
    pub fn neighbours(&self, place: PlaceId) -> Vec<PlaceId> {
        let mut found: Vec<PlaceId> = self
            .links
            .keys()
            .filter_map(|&(a, b)| match (a == place, b == place) {
                (true, _) => Some(b),
                (_, true) => Some(a),
                _ => None,
            })
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Blocks one direction until then.
    pub fn block(&mut self, from: MachineId, to: MachineId, until_us: u64, holds: bool) {
        self.blocked.insert((from, to), Block { until_us, holds });
    }

    /// Multiplies one direction's delays until then.
    pub fn slow_down(&mut self, from: MachineId, to: MachineId, factor: u32, until_us: u64) {
        self.slow.insert((from, to), (factor, until_us));
    }

    /// No more faults. What waits for the end of a partition still arrives when it would have.
    pub fn heal(&mut self) {
        self.rates = Rates::default();
        self.blocked.clear();
        self.slow.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(from: usize, to: usize) -> Route {
        Route {
            from: PlaceId(from),
            to: PlaceId(to),
            from_machine: MachineId(from as u32),
            to_machine: MachineId(to as u32),
        }
    }

    #[test]
    fn a_healthy_link_keeps_its_order() {
        let mut network = Network::new(3);
        let mut counts = FaultCounts::default();
        let mut last_us = 0;
        for now_us in (0..10_000).step_by(10) {
            let Fate::Arrives {
                at_us,
                again_at_us: None,
                ..
            } = network.send(now_us, route(0, 1), 100, &mut counts)
            else {
                panic!("a healthy link delivers once");
            };
            assert!(at_us >= last_us && at_us > now_us);
            last_us = at_us;
        }
    }

    #[test]
    fn a_block_is_one_way_and_ends() {
        let mut network = Network::new(3);
        let mut counts = FaultCounts::default();
        network.block(MachineId(0), MachineId(1), 1_000_000, false);
        assert!(matches!(
            network.send(10, route(0, 1), 9, &mut counts),
            Fate::Breaks { .. }
        ));
        assert_eq!(network.send(20, route(0, 1), 9, &mut counts), Fate::Lost);
        assert!(matches!(
            network.send(20, route(1, 0), 9, &mut counts),
            Fate::Arrives { .. }
        ));
        assert!(matches!(
            network.send(1_000_000, route(0, 1), 9, &mut counts),
            Fate::Arrives { .. }
        ));
    }
}
