//! Members as they come, are heard of, and die: what each of these changes, in the state and in the records (D1 and D2 of
//! `membership`).

use std::collections::BTreeSet;

use holdfast_cluster::{Level, Now, Outputs, ViewExt};
use holdfast_format::{Epoch, LogId, SLOT_PARTS, ServerId};
use holdfast_wire::{Enlist, Heartbeat, HeartbeatReply, Member, Message, Role};

use crate::records::{LiveLog, LogRecord};
use crate::recovery::Recovery;
use crate::{Coordinator, planning};

/// A name, address or label longer than this is refused.
const TEXT_BYTES_MAX: usize = 256;

/// Backups that are away and remembered by name.
const STORE_NAMES_MAX: usize = 4096;

impl Coordinator {
    pub(crate) fn enlist(&mut self, now: Now, enlist: Enlist, out: &mut Outputs) {
        let Enlist { member, logs } = enlist;
        let id = member.id;
        if self.gone.contains(id) || self.recoveries.contains_key(&LogId::of(id)) {
            // D1: a message from the past, or a member that has not heard of its death.
            out.send(id, self.heartbeat_reply(0, 0, false));
            return;
        }
        if self.servers.get(id).is_none() {
            if let Err(why) = self.admissible(&member) {
                out.event(
                    Level::Warn,
                    format!("{id} ({}) may not enlist: {why}", member.name),
                );
                return;
            }
            self.replace_incarnation(now, &member, out);
            out.event(
                Level::Info,
                format!(
                    "{:?} {} ({id}) enlists at {}",
                    member.role, member.name, member.address
                ),
            );
            self.admit(now, member);
        }
        self.owed_enlisted.insert(id);
        let mut unknown = 0;
        for log in logs {
            if self.gone.contains(log.shard()) {
                self.gone.announce(log, id, now.mono_us);
            } else if !self.live.contains_key(&log) && !self.recoveries.contains_key(&log) {
                unknown += 1;
            }
        }
        if unknown > 0 {
            // Perhaps another cluster's store, perhaps lost records: deleting would be final.
            out.event(
                Level::Warn,
                format!("{id} holds replicas of {unknown} logs that no record mentions; they stay"),
            );
        }
    }

    fn admissible(&self, member: &Member) -> Result<(), &'static str> {
        let texts = [
            &member.address,
            &member.machine,
            &member.resp_cluster,
            &member.name,
        ];
        let dialled = matches!(member.role, Role::Shard | Role::Backup);
        if member.id == ServerId::COORDINATOR || member.role == Role::Coordinator {
            return Err("it claims to be the coordinator");
        }
        if texts.iter().any(|text| text.len() > TEXT_BYTES_MAX) {
            return Err("its name, address or label is too long");
        }
        if dialled && member.address.is_empty() {
            return Err("it has no address");
        }
        if self.servers.len() >= self.config.members_max as usize {
            return Err("the cluster has as many members as it may");
        }
        Ok(())
    }

    /// A store, or a shard's place in a process, has one incarnation at a time: a new one proves
    /// that the old one is dead.
    fn replace_incarnation(&mut self, now: Now, member: &Member, out: &mut Outputs) {
        if member.store == 0 {
            return;
        }
        let older: Vec<ServerId> = (self.servers.with_role(member.role))
            .filter(|server| server.member.store == member.store)
            .map(|server| server.member.id)
            .collect();
        for id in older {
            self.declare_dead(now, id, "a new incarnation has enlisted", out);
        }
    }

    fn admit(&mut self, now: Now, member: Member) {
        match member.role {
            Role::Shard => {
                let stores: BTreeSet<u64> = self
                    .servers
                    .with_role(Role::Backup)
                    .map(|b| b.member.store)
                    .collect();
                let record = LiveLog {
                    minimum_epoch: Epoch(0),
                    stores: stores.into_iter().collect(),
                };
                let log = LogId::of(member.id);
                self.journal.put_log(log, &LogRecord::Live(record.clone()));
                self.live.insert(log, record);
                self.journal.put_server(&member);
            }
            Role::Backup => {
                for (log, record) in &mut self.live {
                    if let Err(at) = record.stores.binary_search(&member.store) {
                        record.stores.insert(at, member.store);
                        self.journal.put_log(*log, &LogRecord::Live(record.clone()));
                    }
                }
                self.journal.put_server(&member);
            }
            Role::Gateway => {}
            Role::Coordinator => unreachable!("not admissible"),
        }
        self.dial.push(member.id);
        self.servers.add(member, now.mono_us, true);
        self.view_stale = true;
    }

    pub(crate) fn heartbeat(&mut self, now: Now, heartbeat: Heartbeat, out: &mut Outputs) {
        let known = match self.servers.get_mut(heartbeat.from) {
            Some(server) => {
                server.figures = *heartbeat.figures;
                server.namespaces = heartbeat.namespaces;
                if matches!(heartbeat.loads.len(), 0 | SLOT_PARTS) {
                    server.loads = heartbeat.loads;
                }
                server.append_waits = heartbeat.append_waits;
                server.view_version = server.view_version.max(heartbeat.view_version);
                true
            }
            None => false,
        };
        let durable = self.journal.ceiling_durable();
        let Some(cluster_us) = self.clock.to_hand_out_us(now, durable) else {
            return;
        };
        out.send(
            heartbeat.from,
            self.heartbeat_reply(heartbeat.sent_us, cluster_us, known),
        );
        // The view sent out last is durable, whatever is being written now. One that the member
        // is not in yet is not for it: it will come with `Enlisted`.
        let newer = heartbeat.view_version < self.view.version;
        if known && newer && self.view.is_up(heartbeat.from) {
            out.send(heartbeat.from, Message::View(self.view.clone()));
        }
    }

    fn heartbeat_reply(&self, sent_us: u64, cluster_us: u64, known: bool) -> Message {
        let view_version = self.view.version;
        Message::HeartbeatReply(HeartbeatReply {
            sent_us,
            cluster_us,
            view_version,
            known,
        })
    }

    pub(crate) fn take_suspicion(
        &mut self,
        now: Now,
        server: ServerId,
        ended: bool,
        out: &mut Outputs,
    ) {
        if ended {
            self.declare_dead(now, server, "its process has ended", out);
        } else {
            self.servers.suspect(server, now.mono_us);
        }
    }

    /// Records a death and what follows from it at once: a shard's log is fenced from now on, and
    /// what the member was taking over is free again. Unknown ids are nobody's death.
    pub(crate) fn declare_dead(&mut self, now: Now, id: ServerId, why: &str, out: &mut Outputs) {
        let Some(server) = self.servers.remove(id) else {
            return;
        };
        let silent_us = now.mono_us.saturating_sub(server.heard_us);
        let (member, loads) = (server.member, server.loads);
        self.view_stale = true;
        self.owed_enlisted.remove(&id);
        self.gone.lost(id);
        self.dial.retain(|peer| *peer != id);
        self.hang_up.push(id);
        if member.role == Role::Gateway {
            out.event(
                Level::Info,
                format!("gateway {} ({id}) is gone: {why}", member.name),
            );
            return;
        }
        self.declared_dead += 1;
        out.event(
            Level::Warn,
            format!(
                "{:?} {} ({id}) is dead: {why}, silent for {} ms",
                member.role,
                member.name,
                silent_us / 1_000
            ),
        );
        self.journal.remove_server(id);
        for recovery in self.recoveries.values_mut() {
            recovery.lost(id, now.mono_us, &mut self.journal);
        }
        if member.role == Role::Backup {
            if self.store_names.len() >= STORE_NAMES_MAX {
                self.store_names.pop_first();
            }
            self.store_names.insert(member.store, member.name);
            self.gone.add(id, &mut self.journal);
            return;
        }
        let log = LogId::of(id);
        self.owed_epochs.remove(&log);
        let live = self
            .live
            .remove(&log)
            .expect("every shard that is up has a live log");
        let detected = self.clock.now_ms(now);
        let loads = planning::dense(&loads, &self.tablets.ranges_of(log));
        let times = (detected, now.mono_us, silent_us);
        let recovery = Recovery::begin(log, member.name, live, loads, times);
        recovery.save(&mut self.journal);
        self.recoveries.insert(log, recovery);
    }

    /// Silence, confirmed suspicion, and pings to those under suspicion.
    pub(crate) fn detect(&mut self, now: Now, out: &mut Outputs) {
        let confirm_us = u64::from(self.config.confirm_ms) * 1_000;
        let dead_us = u64::from(self.config.dead_ms) * 1_000;
        for id in self.servers.silent(now.mono_us, confirm_us, dead_us) {
            self.declare_dead(now, id, "it does not answer", out);
        }
        if self.hang_up.is_empty() && self.dial.is_empty() {
            for id in self.servers.pings_due(now.mono_us, confirm_us) {
                let nonce = self.dice.roll();
                out.send(id, Message::Ping { nonce });
            }
        }
    }
}
