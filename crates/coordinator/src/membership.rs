//! Who is up, who is suspected, and who is dead for good.
//!
//! ```text
//! (unknown) --enlist--> up --suspect--> suspected --silent for confirm_ms--> dead
//!                        ^                  |          (or its process ended)
//!                        +--any message-----+
//!                        up --silent for dead_ms--> dead
//! ```
//!
//! D1. A dead id never comes back: it is remembered (`gone`, or its log's recovery) and refused.
//! D2. Nobody is accused of the coordinator's own pause (`forgive`).
//!
//! Gateways are members without records: they own nothing that a death would have to fence.

use std::collections::BTreeMap;

use holdfast_format::{LogId, ServerId};
use holdfast_wire::{AppendWait, Figures, Member, NamespaceUse, Role, SlotLoad};

use crate::journal::Journal;
use crate::records::GONE_MAX;

/// A suspect is pinged so many times within `confirm_ms`: two of three pings may get lost.
const PINGS_PER_SUSPICION: u64 = 3;

/// `LogGone` is said again after 1, 2, 4, 8 and 16 s, because nobody acknowledges it. A backup that
/// misses all of them is told when it next enlists.
const GONE_REPEATS: u32 = 6;
const GONE_REPEAT_FIRST_US: u64 = 1_000_000;

/// After a restart the newest so many gone logs are announced again.
const GONE_ANNOUNCED_AT_START: usize = 64;

#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub member: Member,
    pub figures: Figures,
    pub namespaces: Vec<NamespaceUse>,
    pub loads: Vec<SlotLoad>,
    /// Shards: what appends to backups took lately.
    pub append_waits: Vec<AppendWait>,
    /// When it enlisted, or when this coordinator started.
    pub since_us: u64,
    pub heard_us: u64,
    /// False for a recorded one that has said nothing since this coordinator started.
    pub heard: bool,
    /// The view it last said it had.
    pub view_version: u64,
    suspicion: Option<Suspicion>,
}

#[derive(Clone, Copy, Debug)]
struct Suspicion {
    since_us: u64,
    ping_due_us: u64,
}

impl Server {
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspicion.is_some()
    }
    pub(crate) fn bytes_free(&self) -> u64 {
        self.figures
            .bytes_limit
            .saturating_sub(self.figures.bytes_used)
    }
}

/// Every member that is up.
#[derive(Debug, Default)]
pub(crate) struct Servers {
    list: BTreeMap<ServerId, Server>,
}

impl Servers {
    pub(crate) fn add(&mut self, member: Member, now_us: u64, heard: bool) {
        let server = Server {
            figures: Figures::default(),
            namespaces: Vec::new(),
            loads: Vec::new(),
            append_waits: Vec::new(),
            since_us: now_us,
            heard_us: now_us,
            heard,
            view_version: 0,
            suspicion: None,
            member,
        };
        let before = self.list.insert(server.member.id, server);
        assert!(before.is_none(), "a member is added once");
    }

    pub(crate) fn remove(&mut self, id: ServerId) -> Option<Server> {
        self.list.remove(&id)
    }

    pub(crate) fn get(&self, id: ServerId) -> Option<&Server> {
        self.list.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: ServerId) -> Option<&mut Server> {
        self.list.get_mut(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Server> {
        self.list.values()
    }

    pub(crate) fn with_role(&self, role: Role) -> impl Iterator<Item = &Server> {
        self.list
            .values()
            .filter(move |server| server.member.role == role)
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Any message from a member shows that it is alive.
    pub(crate) fn heard(&mut self, id: ServerId, now_us: u64) {
        if let Some(server) = self.list.get_mut(&id) {
            server.heard_us = now_us;
            server.heard = true;
            server.suspicion = None;
        }
    }

    /// Begins to verify a suspicion, unless that is under way.
    pub(crate) fn suspect(&mut self, id: ServerId, now_us: u64) {
        if let Some(server) = self.list.get_mut(&id) {
            let fresh = Suspicion {
                since_us: now_us,
                ping_due_us: now_us,
            };
            server.suspicion.get_or_insert(fresh);
        }
    }

    /// Suspects to be pinged now.
    pub(crate) fn pings_due(&mut self, now_us: u64, confirm_us: u64) -> Vec<ServerId> {
        let mut due = Vec::new();
        for (id, server) in &mut self.list {
            if let Some(suspicion) = &mut server.suspicion
                && now_us >= suspicion.ping_due_us
            {
                suspicion.ping_due_us = now_us + confirm_us / PINGS_PER_SUSPICION;
                due.push(*id);
            }
        }
        due
    }

    /// Those that have been silent for too long.
    pub(crate) fn silent(&self, now_us: u64, confirm_us: u64, dead_us: u64) -> Vec<ServerId> {
        let silent = |server: &&Server| {
            let unconfirmed = server
                .suspicion
                .is_some_and(|s| now_us - s.since_us >= confirm_us);
            unconfirmed || now_us - server.heard_us >= dead_us
        };
        self.list
            .values()
            .filter(silent)
            .map(|server| server.member.id)
            .collect()
    }

    /// D2. The coordinator was paused for `gap_us`: what it was told then may still be waiting.
    pub(crate) fn forgive(&mut self, gap_us: u64) {
        for server in self.list.values_mut() {
            server.heard_us += gap_us;
            if let Some(suspicion) = &mut server.suspicion {
                suspicion.since_us += gap_us;
            }
        }
    }

    /// True if someone is being verified.
    pub(crate) fn any_suspect(&self) -> bool {
        self.list.values().any(Server::is_suspect)
    }
}

/// The dead: their ids, and the telling of backups that a dead log's frames may go.
///
/// Rule of forgetting: the newest `GONE_MAX` deaths are remembered, in records too. A store that
/// comes back with a log older than that keeps its frames, and the coordinator says so: deleting
/// what is merely unknown would make a lost record store lose every session.
#[derive(Debug, Default)]
pub(crate) struct Gone {
    ordinals: BTreeMap<ServerId, u64>,
    by_ordinal: BTreeMap<u64, ServerId>,
    /// What each backup still has to be told; at most every remembered log for every backup.
    announcements: BTreeMap<(LogId, ServerId), Announcement>,
}

#[derive(Clone, Copy, Debug)]
struct Announcement {
    due_us: u64,
    repeats_left: u32,
    pause_us: u64,
}

impl Gone {
    /// As recorded.
    pub(crate) fn new(ordinals: BTreeMap<ServerId, u64>) -> Gone {
        let by_ordinal = ordinals
            .iter()
            .map(|(id, ordinal)| (*ordinal, *id))
            .collect();
        Gone {
            ordinals,
            by_ordinal,
            announcements: BTreeMap::new(),
        }
    }

    /// The newest dead, whose announcement a restart may have cut short.
    pub(crate) fn newest(&self) -> Vec<ServerId> {
        let newest = self.by_ordinal.values().rev();
        newest.take(GONE_ANNOUNCED_AT_START).copied().collect()
    }

    pub(crate) fn contains(&self, id: ServerId) -> bool {
        self.ordinals.contains_key(&id)
    }

    /// Remembers a dead backup, or a dead shard whose log nobody needs any more.
    pub(crate) fn add(&mut self, id: ServerId, journal: &mut Journal) {
        if self.contains(id) {
            return;
        }
        let ordinal = self
            .by_ordinal
            .last_key_value()
            .map_or(1, |(last, _)| last + 1);
        self.ordinals.insert(id, ordinal);
        self.by_ordinal.insert(ordinal, id);
        journal.put_gone(id, ordinal);
        while self.by_ordinal.len() > GONE_MAX {
            let (_, oldest) = self.by_ordinal.pop_first().expect("there are many");
            self.ordinals.remove(&oldest);
            self.announcements
                .retain(|(log, _), _| log.shard() != oldest);
            journal.remove_gone(oldest);
        }
    }

    /// Begins to tell `backup` that `log` is gone.
    pub(crate) fn announce(&mut self, log: LogId, backup: ServerId, now_us: u64) {
        let announcement = Announcement {
            due_us: now_us,
            repeats_left: GONE_REPEATS,
            pause_us: GONE_REPEAT_FIRST_US,
        };
        self.announcements.insert((log, backup), announcement);
    }

    /// A backup that is dead needs to be told nothing.
    pub(crate) fn lost(&mut self, backup: ServerId) {
        self.announcements.retain(|(_, to), _| *to != backup);
    }

    /// What to announce now, and to whom.
    pub(crate) fn announcements_due(&mut self, now_us: u64) -> Vec<(LogId, ServerId)> {
        let mut due = Vec::new();
        self.announcements.retain(|key, a| {
            if now_us >= a.due_us {
                due.push(*key);
                a.repeats_left -= 1;
                a.due_us = now_us + a.pause_us;
                a.pause_us *= 2;
            }
            a.repeats_left > 0
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIRM: u64 = 300;
    const DEAD: u64 = 1_000;

    fn backup(id: u64) -> Member {
        Member {
            id: ServerId(id),
            role: Role::Backup,
            address: String::new(),
            machine: String::new(),
            pid: 0,
            resp_cluster: String::new(),
            name: String::new(),
            store: id,
        }
    }

    fn two() -> Servers {
        let mut servers = Servers::default();
        servers.add(backup(1), 0, true);
        servers.add(backup(2), 0, true);
        servers
    }

    #[test]
    fn a_suspect_is_verified_before_it_is_believed() {
        let mut servers = two();
        servers.suspect(ServerId(1), 100);
        servers.suspect(ServerId(1), 250); // told again: the first one counts
        assert_eq!(servers.pings_due(100, CONFIRM), [ServerId(1)]);
        assert!(servers.pings_due(150, CONFIRM).is_empty());
        assert_eq!(servers.pings_due(200, CONFIRM), [ServerId(1)]);
        assert!(servers.silent(399, CONFIRM, DEAD).is_empty());
        assert_eq!(servers.silent(400, CONFIRM, DEAD), [ServerId(1)]);
        servers.heard(ServerId(1), 399);
        assert!(
            servers.silent(401, CONFIRM, DEAD).is_empty(),
            "a false alarm"
        );
    }

    #[test]
    fn silence_alone_is_death_after_dead_ms() {
        let mut servers = two();
        servers.heard(ServerId(2), 10);
        assert!(servers.silent(999, CONFIRM, DEAD).is_empty());
        assert_eq!(servers.silent(1_000, CONFIRM, DEAD), [ServerId(1)]);
    }

    /// D2.
    #[test]
    fn own_pause_accuses_nobody() {
        let mut servers = two();
        servers.suspect(ServerId(1), 100);
        servers.forgive(5_000);
        assert!(servers.silent(5_200, CONFIRM, DEAD).is_empty());
        assert_eq!(servers.silent(5_400, CONFIRM, DEAD), [ServerId(1)]);
    }

    #[test]
    fn only_the_newest_dead_are_remembered() {
        let mut journal = Journal::default();
        let mut gone = Gone::default();
        for id in 1..=GONE_MAX as u64 + 10 {
            gone.add(ServerId(id), &mut journal);
            gone.add(ServerId(id), &mut journal);
        }
        assert!(!gone.contains(ServerId(10)));
        assert!(gone.contains(ServerId(11)));
        assert!(gone.contains(ServerId(GONE_MAX as u64 + 10)));
    }

    #[test]
    fn a_gone_log_is_announced_again_and_then_left_alone() {
        let mut gone = Gone::default();
        gone.announce(LogId(4), ServerId(9), 0);
        let mut told = Vec::new();
        for second in 0..100 {
            if !gone.announcements_due(second * 1_000_000).is_empty() {
                told.push(second);
            }
        }
        assert_eq!(told, [0, 1, 3, 7, 15, 31]);
    }
}
