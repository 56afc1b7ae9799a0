//! One member's part in the cluster: enlists, heartbeats, probes, and keeps the newest view.
//!
//! ```text
//! Enlisting --Enlisted--> Enlisted --known:false, or a view without us--> Expelled
//! ```
//!
//! M1. The view only ever gets newer.
//! M2. `Expelled` is final for shards and backups: the id must not be used again. A gateway, which
//!     owns nothing that could be fenced, enlists again under the same id instead.
//! M3. `Address` for a peer is put out before any message to it can be sent by the role, and
//!     `Forget` once it has left the view.
//!
//! Every role but the coordinator's holds one and hands it each message first. Retries are bounded
//! by time, not number: a member that cannot reach the coordinator goes on trying, at most one
//! small message per period.

use holdfast_format::{ClusterMs, LogId, ServerId};
use holdfast_wire::{
    ClusterConfig, Enlist, Figures, Heartbeat, HeartbeatReply, Member, Message, Role, View,
};

use crate::clock::ClusterClock;
use crate::prober::{Probe, Prober};
use crate::view::{ViewChange, ViewExt};
use crate::{Dice, Now, Output, Outputs};

/// The first repetition of `Enlist` comes after this; then the pause doubles up to the maximum.
const ENLIST_RETRY_MIN_MS: u64 = 50;

/// Well below the coordinator's `dead_ms`, because a repeated `Enlist` is what shows it that a
/// member whose `Enlisted` got lost is alive.
const ENLIST_RETRY_MAX_MS: u64 = 400;

/// What a message meant to the membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Not about membership: the role handles it.
    NotMine,
    /// Dealt with.
    Taken,
    /// A newer view is in force: see `view` and `change`.
    ViewChanged,
    /// Declared dead: the role stops (`Output::Stopped`) and answers nobody any more.
    Expelled,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Enlisting { due_us: u64, retry_ms: u64 },
    Enlisted { heartbeat_due_us: u64 },
    Expelled,
}

/// One member's knowledge of the cluster.
#[derive(Debug)]
pub struct Membership {
    member: Member,
    logs: Vec<LogId>,
    dice: Dice,
    stage: Stage,
    config: Option<ClusterConfig>,
    view: View,
    change: ViewChange,
    clock: ClusterClock,
    prober: Prober,
    figures: Figures,
}

impl Membership {
    /// Not yet enlisted; the first `tick` asks to be.
    pub fn new(member: Member, seed: u64) -> Membership {
        assert!(
            member.role != Role::Coordinator && member.id != ServerId::COORDINATOR,
            "the coordinator is nobody's member"
        );
        Membership {
            dice: Dice::new(seed),
            member,
            logs: Vec::new(),
            stage: Stage::Enlisting {
                due_us: 0,
                retry_ms: ENLIST_RETRY_MIN_MS,
            },
            config: None,
            view: View::default(),
            change: ViewChange::default(),
            clock: ClusterClock::new(),
            prober: Prober::new(),
            figures: Figures::default(),
        }
    }

    /// Backups, before the first `tick`: every log of which the store holds replicas.
    pub fn set_logs(&mut self, logs: Vec<LogId>) {
        self.logs = logs;
    }

    /// What the next heartbeat reports. The clock's error bound is filled in here.
    pub fn set_figures(&mut self, figures: Figures) {
        self.figures = figures;
    }

    pub fn id(&self) -> ServerId {
        self.member.id
    }

    pub fn member(&self) -> &Member {
        &self.member
    }

    /// The newest view heard of; empty (version 0) before the first.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Who came and went with the newest view, compared with the one before.
    pub fn change(&self) -> &ViewChange {
        &self.change
    }

    /// `None` until enlisted.
    pub fn config(&self) -> Option<&ClusterConfig> {
        self.config.as_ref()
    }

    pub fn is_enlisted(&self) -> bool {
        matches!(self.stage, Stage::Enlisted { .. })
    }

    /// Cluster time, never going back (`clock`); `None` until the first estimate, when nothing
    /// that depends on expiry may be answered.
    pub fn cluster_time(&self, now: Now) -> Option<ClusterMs> {
        self.clock
            .now_us(now.mono_us)
            .map(|us| ClusterMs(us / 1_000))
    }

    /// How far `cluster_time` may be from the coordinator's clock, in microseconds.
    pub fn cluster_time_error_us(&self, now: Now) -> Option<u64> {
        self.clock.error_us(now.mono_us)
    }

    /// When `tick` wants to be called next, in `Now::mono_us`.
    pub fn wakeup(&self) -> Option<u64> {
        match self.stage {
            Stage::Enlisting { due_us, .. } => Some(due_us),
            Stage::Enlisted { heartbeat_due_us } => {
                Some(heartbeat_due_us.min(self.prober.due_us()))
            }
            Stage::Expelled => None,
        }
    }

    /// Sends what is due: `Enlist`, or a heartbeat and a ping.
    pub fn tick(&mut self, now: Now, out: &mut Outputs) {
        match self.stage {
            Stage::Enlisting { due_us, retry_ms } if now.mono_us >= due_us => {
                let enlist = Enlist {
                    member: self.member.clone(),
                    logs: self.logs.clone(),
                };
                out.send(ServerId::COORDINATOR, Message::Enlist(enlist));
                // Jitter, so that members started together do not knock together.
                let pause_ms = retry_ms / 2 + self.dice.below(retry_ms / 2 + 1);
                self.stage = Stage::Enlisting {
                    due_us: now.mono_us + pause_ms * 1_000,
                    retry_ms: (retry_ms * 2).min(ENLIST_RETRY_MAX_MS),
                };
            }
            Stage::Enlisted { heartbeat_due_us } => {
                if now.mono_us >= heartbeat_due_us {
                    self.send_heartbeat(now, out);
                }
                if now.mono_us >= self.prober.due_us() {
                    self.probe(now, out);
                }
            }
            Stage::Enlisting { .. } | Stage::Expelled => {}
        }
    }

    /// Takes a message if it is about membership.
    pub fn handle(
        &mut self,
        now: Now,
        from: ServerId,
        message: &Message,
        out: &mut Outputs,
    ) -> Heard {
        match message {
            Message::Ping { nonce } => {
                out.send(from, Message::Pong { nonce: *nonce });
                Heard::Taken
            }
            Message::Pong { .. } => {
                self.prober.pong(from);
                Heard::Taken
            }
            Message::Enlisted(enlisted) => {
                if from != ServerId::COORDINATOR || enlisted.id != self.member.id {
                    return Heard::Taken;
                }
                if let Stage::Enlisting { .. } = self.stage {
                    self.config = Some(enlisted.config);
                    self.stage = Stage::Enlisted {
                        heartbeat_due_us: now.mono_us,
                    };
                    self.send_heartbeat(now, out);
                }
                self.take_view(&enlisted.view, now, out)
            }
            Message::View(view) if from == ServerId::COORDINATOR => self.take_view(view, now, out),
            Message::View(_) => Heard::Taken,
            Message::HeartbeatReply(reply) => {
                if from != ServerId::COORDINATOR {
                    return Heard::Taken;
                }
                self.take_reply(reply, now)
            }
            _ => Heard::NotMine,
        }
    }

    /// Reports a broken stream. The coordinator's own needs no report: the next heartbeat dials
    /// it again.
    pub fn peer_lost(&mut self, now: Now, peer: ServerId, ended: bool, out: &mut Outputs) {
        let _ = now;
        if self.is_enlisted() && peer != ServerId::COORDINATOR && self.view.is_up(peer) {
            out.send(
                ServerId::COORDINATOR,
                Message::Suspect {
                    server: peer,
                    ended,
                },
            );
        }
    }

    fn send_heartbeat(&mut self, now: Now, out: &mut Outputs) {
        let config = self
            .config
            .expect("heartbeats begin with `Enlisted`, which brings it");
        let clock_error_us = self.clock.error_us(now.mono_us).unwrap_or(0);
        let heartbeat = Heartbeat {
            from: self.member.id,
            sent_us: now.mono_us,
            view_version: self.view.version,
            figures: Figures {
                clock_error_us,
                ..self.figures
            },
        };
        out.send(ServerId::COORDINATOR, Message::Heartbeat(heartbeat));
        self.stage = Stage::Enlisted {
            heartbeat_due_us: now.mono_us + period_us(config.heartbeat_ms),
        };
    }

    fn probe(&mut self, now: Now, out: &mut Outputs) {
        let config = self
            .config
            .expect("probing begins with `Enlisted`, which brings it");
        let peers: Vec<ServerId> = (self.view.members.iter())
            .filter(|member| member.id != self.member.id && !member.address.is_empty())
            .map(|member| member.id)
            .collect();
        let period_us = period_us(config.probe_ms);
        match self
            .prober
            .tick(now.mono_us, period_us, &peers, &mut self.dice)
        {
            Some(Probe::Ping { peer, nonce }) => out.send(peer, Message::Ping { nonce }),
            Some(Probe::Suspect { peer }) => out.send(
                ServerId::COORDINATOR,
                Message::Suspect {
                    server: peer,
                    ended: false,
                },
            ),
            None => {}
        }
    }

    fn take_reply(&mut self, reply: &HeartbeatReply, now: Now) -> Heard {
        if !reply.known {
            return self.unknown_to_coordinator(now);
        }
        if self.is_enlisted() {
            self.clock
                .heard(now.mono_us, reply.sent_us, reply.cluster_us);
        }
        Heard::Taken
    }

    fn take_view(&mut self, newer: &View, now: Now, out: &mut Outputs) -> Heard {
        // M1. Old ones arrive late or twice.
        if newer.version <= self.view.version || matches!(self.stage, Stage::Expelled) {
            return Heard::Taken;
        }
        let was_in = self.view.is_up(self.member.id);
        if was_in && !newer.is_up(self.member.id) && self.is_enlisted() {
            return self.unknown_to_coordinator(now);
        }
        let mut newer = newer.clone();
        newer.tablets.sort_unstable_by_key(|tablet| tablet.range);
        self.change = ViewChange::between(&self.view, &newer);
        self.view = newer;
        // M3.
        for member in &self.change.left {
            out.push(Output::Forget { peer: member.id });
        }
        for member in &self.change.joined {
            if member.id != self.member.id && !member.address.is_empty() {
                out.push(Output::Address {
                    peer: member.id,
                    address: member.address.clone(),
                });
            }
        }
        Heard::ViewChanged
    }

    /// M2. A member that is still enlisting hears this only if it was declared dead before it
    /// heard `Enlisted`; its id is burnt all the same.
    fn unknown_to_coordinator(&mut self, now: Now) -> Heard {
        if self.member.role == Role::Gateway {
            if self.is_enlisted() {
                self.stage = Stage::Enlisting {
                    due_us: now.mono_us,
                    retry_ms: ENLIST_RETRY_MIN_MS,
                };
            }
            return Heard::Taken;
        }
        self.stage = Stage::Expelled;
        Heard::Expelled
    }
}

fn period_us(ms: u32) -> u64 {
    u64::from(ms.max(1)) * 1_000
}
