//! Pings one random peer after another, to find those that have fallen silent without breaking a
//! stream (a stopped process, a dead machine, a one-way network).
//!
//! A peer that leaves a ping unanswered is pinged again in the next period, in place of another
//! random one, so three misses take three periods however many members there are. A suspicion is
//! said once; if it gets lost, chance finds the peer again.

use holdfast_format::ServerId;

use crate::Dice;

/// So many unanswered pings in a row make a suspect. One lost message must not, and two may share
/// one burst of loss.
const MISSES_MAX: u32 = 3;

/// What to do at one probing tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Send `Ping` with this nonce.
    Ping { peer: ServerId, nonce: u64 },
    /// It has left `MISSES_MAX` pings in a row unanswered: tell the coordinator.
    Suspect { peer: ServerId },
}

#[derive(Clone, Copy, Debug)]
struct Outstanding {
    peer: ServerId,
    misses: u32,
}

/// Decides whom to ping and whom to suspect.
#[derive(Clone, Debug, Default)]
pub struct Prober {
    due_us: u64,
    outstanding: Option<Outstanding>,
}

impl Prober {
    pub fn new() -> Prober {
        Prober::default()
    }

    /// When `tick` wants to be called next.
    pub fn due_us(&self) -> u64 {
        self.due_us
    }

    /// Called when due (earlier calls do nothing). `peers` are those that can be pinged.
    pub fn tick(
        &mut self,
        now_us: u64,
        period_us: u64,
        peers: &[ServerId],
        dice: &mut Dice,
    ) -> Option<Probe> {
        if now_us < self.due_us {
            return None;
        }
        // Late by more than a period: this process was itself paused, and answers may be waiting
        // behind this tick. A miss counted now would accuse the peer of our own silence.
        let paused = now_us - self.due_us > period_us;
        self.due_us = now_us + period_us;

        let pending = self.outstanding.take().filter(|o| peers.contains(&o.peer));
        let (peer, misses) = match pending {
            Some(o) if paused => (o.peer, 0),
            Some(o) if o.misses + 1 == MISSES_MAX => return Some(Probe::Suspect { peer: o.peer }),
            Some(o) => (o.peer, o.misses + 1),
            None if peers.is_empty() => return None,
            None => (peers[dice.below(peers.len() as u64) as usize], 0),
        };
        let nonce = dice.roll();
        self.outstanding = Some(Outstanding { peer, misses });
        Some(Probe::Ping { peer, nonce })
    }

    /// An answer, to the newest ping or an older one: it proves the same.
    pub fn pong(&mut self, from: ServerId) {
        if self.outstanding.is_some_and(|o| o.peer == from) {
            self.outstanding = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: u64 = 100;

    #[test]
    fn three_misses_in_a_row_make_a_suspect() {
        let mut prober = Prober::new();
        let mut dice = Dice::new(3);
        let peers = [ServerId(1), ServerId(2), ServerId(3)];
        let Some(Probe::Ping { peer, nonce }) = prober.tick(0, PERIOD, &peers, &mut dice) else {
            panic!("nobody pinged")
        };
        let mut nonces = vec![nonce];
        for now in [100, 200] {
            let Some(Probe::Ping { peer: again, nonce }) =
                prober.tick(now, PERIOD, &peers, &mut dice)
            else {
                panic!("gave up early")
            };
            assert_eq!(again, peer, "a silent peer is asked again");
            assert!(!nonces.contains(&nonce));
            nonces.push(nonce);
        }
        assert_eq!(
            prober.tick(300, PERIOD, &peers, &mut dice),
            Some(Probe::Suspect { peer })
        );
        assert!(matches!(
            prober.tick(400, PERIOD, &peers, &mut dice),
            Some(Probe::Ping { .. })
        ));
    }

    #[test]
    fn an_answer_clears_the_misses() {
        let mut prober = Prober::new();
        let mut dice = Dice::new(5);
        let peers = [ServerId(1)];
        for round in 0..20 {
            let now = round * 200;
            assert!(matches!(
                prober.tick(now, PERIOD, &peers, &mut dice),
                Some(Probe::Ping { .. })
            ));
            assert!(matches!(
                prober.tick(now + 100, PERIOD, &peers, &mut dice),
                Some(Probe::Ping { .. })
            ));
            prober.pong(ServerId(1));
        }
    }

    #[test]
    fn every_peer_is_asked_sooner_or_later() {
        let mut prober = Prober::new();
        let mut dice = Dice::new(9);
        let peers: Vec<ServerId> = (1..=10).map(ServerId).collect();
        let mut asked = std::collections::BTreeSet::new();
        for round in 0..200 {
            if let Some(Probe::Ping { peer, .. }) =
                prober.tick(round * PERIOD, PERIOD, &peers, &mut dice)
            {
                asked.insert(peer);
                prober.pong(peer);
            }
        }
        assert_eq!(asked.len(), peers.len());
    }

    /// After its own pause a member must not accuse others of the silence.
    #[test]
    fn own_pause_is_not_held_against_a_peer() {
        let mut prober = Prober::new();
        let mut dice = Dice::new(1);
        let peers = [ServerId(1)];
        prober.tick(0, PERIOD, &peers, &mut dice);
        prober.tick(100, PERIOD, &peers, &mut dice);
        prober.tick(200, PERIOD, &peers, &mut dice);
        assert!(matches!(
            prober.tick(9_000, PERIOD, &peers, &mut dice),
            Some(Probe::Ping { .. })
        ));
    }

    #[test]
    fn a_peer_that_left_the_view_is_dropped() {
        let mut prober = Prober::new();
        let mut dice = Dice::new(1);
        prober.tick(0, PERIOD, &[ServerId(1)], &mut dice);
        assert_eq!(prober.tick(100, PERIOD, &[], &mut dice), None);
        let next = prober.tick(200, PERIOD, &[ServerId(2)], &mut dice);
        assert!(matches!(
            next,
            Some(Probe::Ping {
                peer: ServerId(2),
                ..
            })
        ));
    }
}
