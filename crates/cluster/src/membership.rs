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
    AppendWait, ClusterConfig, Enlist, Figures, Heartbeat, HeartbeatReply, Member, Message,
    NamespaceUse, Role, SlotLoad, View,
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
    namespaces: Vec<NamespaceUse>,
    loads: Vec<SlotLoad>,
    append_waits: Vec<AppendWait>,
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
            namespaces: Vec::new(),
            loads: Vec::new(),
            append_waits: Vec::new(),
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

    /// Shards: what the next heartbeat reports of the log.
    pub fn set_loads(&mut self, loads: Vec<SlotLoad>) {
        self.loads = loads;
    }

    /// Shards: what the next heartbeat reports of backups.
    pub fn set_append_waits(&mut self, append_waits: Vec<AppendWait>) {
        self.append_waits = append_waits;
    }

    /// Shards: what the next heartbeat reports of namespaces.
    pub fn set_namespaces(&mut self, namespaces: Vec<NamespaceUse>) {
        self.namespaces = namespaces;
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
            figures: Box::new(Figures {
                clock_error_us,
                ..self.figures
            }),
            namespaces: self.namespaces.clone(),
            loads: self.loads.clone(),
            append_waits: self.append_waits.clone(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_wire::Enlisted;

    fn member(id: u64, role: Role) -> Member {
        Member {
            id: ServerId(id),
            role,
            address: if role == Role::Gateway {
                String::new()
            } else {
                format!("10.0.0.{id}:7")
            },
            machine: String::new(),
            pid: 1,
            resp_cluster: String::new(),
            name: format!("member-{id}"),
            store: 0,
        }
    }

    fn config() -> ClusterConfig {
        ClusterConfig {
            cluster: 1,
            replicas: 3,
            ack_quorum: 3,
            lease_ms: 400,
            heartbeat_ms: 200,
            probe_ms: 100,
            ack_disk: false,
        }
    }

    fn at(ms: u64) -> Now {
        Now {
            mono_us: ms * 1_000,
            unix_ms: 0,
        }
    }

    fn view(version: u64, members: &[u64]) -> View {
        View {
            version,
            members: members.iter().map(|id| member(*id, Role::Backup)).collect(),
            ..View::default()
        }
    }

    /// Hands over one message of the coordinator.
    fn told(m: &mut Membership, ms: u64, message: Message) -> (Heard, Vec<Output>) {
        let mut out = Outputs::default();
        let heard = m.handle(at(ms), ServerId::COORDINATOR, &message, &mut out);
        (heard, out.list)
    }

    fn enlisted(id: u64, view: View) -> Message {
        Message::Enlisted(Enlisted {
            id: ServerId(id),
            config: config(),
            view,
        })
    }

    fn reply(sent_ms: u64, known: bool) -> Message {
        Message::HeartbeatReply(HeartbeatReply {
            sent_us: sent_ms * 1_000,
            cluster_us: 5_000_000_000,
            view_version: 1,
            known,
        })
    }

    fn sent(outputs: &[Output]) -> Vec<&Message> {
        (outputs.iter())
            .filter_map(|output| match output {
                Output::Send { message, .. } => Some(message),
                _ => None,
            })
            .collect()
    }

    fn joined(role: Role) -> Membership {
        let mut m = Membership::new(member(1, role), 7);
        let (heard, _) = told(&mut m, 0, enlisted(1, view(5, &[1, 2, 3])));
        assert_eq!(heard, Heard::ViewChanged);
        m
    }

    #[test]
    fn enlist_is_repeated_with_growing_pauses() {
        let mut m = Membership::new(member(1, Role::Backup), 42);
        m.set_logs(vec![LogId(9)]);
        let mut pauses = Vec::new();
        let mut now = 0;
        for _ in 0..10 {
            let mut out = Outputs::default();
            m.tick(
                Now {
                    mono_us: now,
                    unix_ms: 0,
                },
                &mut out,
            );
            let messages = sent(&out.list);
            assert!(
                matches!(messages[..], [Message::Enlist(e)] if e.logs == [LogId(9)]),
                "{messages:?}"
            );
            let due = m.wakeup().unwrap();
            pauses.push(due - now);
            now = due;
        }
        assert!(pauses[0] <= ENLIST_RETRY_MIN_MS * 1_000);
        assert!(pauses[9] >= ENLIST_RETRY_MAX_MS * 500 && pauses[9] <= ENLIST_RETRY_MAX_MS * 1_000);
    }

    #[test]
    fn heartbeats_follow_enlisting_and_start_the_clock() {
        let mut m = Membership::new(member(1, Role::Shard), 7);
        m.set_figures(Figures {
            sessions: 12,
            ..Figures::default()
        });
        let (_, out) = told(&mut m, 10, enlisted(1, view(5, &[1, 2])));
        assert!(matches!(sent(&out)[..], [Message::Heartbeat(h)]
            if h.figures.sessions == 12 && h.from == ServerId(1) && h.sent_us == 10_000));
        assert_eq!(m.cluster_time(at(11)), None);
        assert_eq!(told(&mut m, 12, reply(10, true)).0, Heard::Taken);
        assert_eq!(m.cluster_time(at(12)), Some(ClusterMs(5_000_001)));
        assert_eq!(m.cluster_time_error_us(at(12)), Some(1_000));

        let mut beats = 0;
        let mut pings = 0;
        while m.wakeup().unwrap() <= 1_010_000 {
            let now = Now {
                mono_us: m.wakeup().unwrap(),
                unix_ms: 0,
            };
            let mut out = Outputs::default();
            m.tick(now, &mut out);
            for message in sent(&out.list) {
                match message {
                    Message::Heartbeat(h) => {
                        assert_eq!(h.view_version, 5);
                        beats += 1;
                    }
                    Message::Ping { .. } => pings += 1,
                    Message::Suspect { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(beats, 5);
        assert!(pings >= 7, "{pings}");
    }

    #[test]
    fn a_repeated_enlisted_changes_nothing() {
        let mut m = joined(Role::Shard);
        let (heard, out) = told(&mut m, 1, enlisted(1, view(5, &[1, 2, 3])));
        assert_eq!((heard, out.len()), (Heard::Taken, 0));
        // One meant for another member, or said by another, is none of ours.
        assert_eq!(told(&mut m, 1, enlisted(2, view(9, &[2]))).0, Heard::Taken);
        let mut out = Outputs::default();
        let heard = m.handle(at(1), ServerId(2), &Message::View(view(9, &[2])), &mut out);
        assert_eq!((heard, m.view().version), (Heard::Taken, 5));
    }

    #[test]
    fn the_newest_view_wins_and_moves_addresses() {
        let mut m = joined(Role::Shard);
        let (heard, out) = told(&mut m, 1, Message::View(view(7, &[1, 3, 4])));
        assert_eq!(heard, Heard::ViewChanged);
        let moves: Vec<String> = out.iter().map(|o| format!("{o:?}")).collect();
        assert_eq!(moves.len(), 2, "{moves:?}");
        assert!(matches!(&out[0], Output::Forget { peer: ServerId(2) }));
        assert!(
            matches!(&out[1], Output::Address { peer: ServerId(4), address } if address == "10.0.0.4:7")
        );
        assert_eq!(m.change().left[0].id, ServerId(2));
        assert_eq!(m.change().joined[0].id, ServerId(4));

        let (heard, out) = told(&mut m, 2, Message::View(view(6, &[1, 2])));
        assert_eq!((heard, out.len(), m.view().version), (Heard::Taken, 0, 7));
    }

    #[test]
    fn unknown_to_the_coordinator_means_expelled() {
        let mut m = joined(Role::Shard);
        assert_eq!(told(&mut m, 1, reply(0, false)).0, Heard::Expelled);
        assert_eq!(m.wakeup(), None);
        // Nothing brings it back.
        assert_eq!(told(&mut m, 2, enlisted(1, view(9, &[1]))).0, Heard::Taken);
        assert!(!m.is_enlisted());
    }

    #[test]
    fn a_view_that_omits_us_means_expelled() {
        let mut m = joined(Role::Backup);
        assert_eq!(
            told(&mut m, 1, Message::View(view(6, &[2, 3]))).0,
            Heard::Expelled
        );
    }

    /// Gateways are not recorded, so a restarted coordinator does not know them.
    #[test]
    fn a_gateway_enlists_again() {
        let mut m = joined(Role::Gateway);
        assert_eq!(told(&mut m, 1, reply(0, false)).0, Heard::Taken);
        let mut out = Outputs::default();
        m.tick(at(1), &mut out);
        assert!(matches!(sent(&out.list)[..], [Message::Enlist(_)]));
        assert_eq!(
            told(&mut m, 2, enlisted(1, view(8, &[1]))).0,
            Heard::ViewChanged
        );
        assert_eq!(
            told(&mut m, 3, Message::View(view(9, &[2]))).0,
            Heard::Taken
        );
        assert!(!m.is_enlisted());
    }

    #[test]
    fn a_broken_stream_is_reported_at_once() {
        let mut m = joined(Role::Shard);
        let mut out = Outputs::default();
        m.peer_lost(at(1), ServerId(2), true, &mut out);
        assert!(matches!(
            sent(&out.list)[..],
            [Message::Suspect {
                server: ServerId(2),
                ended: true
            }]
        ));
        let mut out = Outputs::default();
        m.peer_lost(at(1), ServerId(99), false, &mut out); // already declared dead
        m.peer_lost(at(1), ServerId::COORDINATOR, false, &mut out);
        assert!(out.list.is_empty());
    }

    #[test]
    fn a_silent_peer_becomes_a_suspect() {
        let mut m = joined(Role::Shard);
        let mut suspects = 0;
        for ms in 0..1_000 {
            let mut out = Outputs::default();
            m.tick(at(ms), &mut out);
            for output in out.list {
                match output {
                    Output::Send {
                        to,
                        message: Message::Ping { nonce },
                    } if to == ServerId(2) => {
                        let mut out = Outputs::default();
                        m.handle(at(ms), to, &Message::Pong { nonce }, &mut out);
                    }
                    Output::Send {
                        message: Message::Suspect { server, ended },
                        ..
                    } => {
                        assert_eq!((server, ended), (ServerId(3), false));
                        suspects += 1;
                    }
                    _ => {}
                }
            }
        }
        assert!(suspects >= 1);
    }

    #[test]
    fn pings_are_answered_even_before_enlisting() {
        let mut m = Membership::new(member(1, Role::Shard), 7);
        let mut out = Outputs::default();
        assert_eq!(
            m.handle(at(0), ServerId(4), &Message::Ping { nonce: 8 }, &mut out),
            Heard::Taken
        );
        assert!(matches!(
            out.list[..],
            [Output::Send {
                to: ServerId(4),
                message: Message::Pong { nonce: 8 }
            }]
        ));
    }
}
