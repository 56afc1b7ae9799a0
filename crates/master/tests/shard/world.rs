//! A shard, a coordinator that says yes, and backups that keep what they are sent and check the rules.
//!
//! Time stands still unless a test moves it. What a muted backup is sent never arrives.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use holdfast_cluster::{Dice, Input, Node, Now, Output, Outputs};
use holdfast_format::{
    ClientId, ClusterMs, Entries, Epoch, HeaderKind, KeyHash, LogId, Namespace, Opening, Outlining,
    SegmentId, ServerId, SlotRange, crc32c,
};
use holdfast_master::{Shard, ShardConfig};
use holdfast_wire::*;

/// Cluster time when `mono_us` is 0.
pub const BASE_MS: u64 = 1_000_000_000;
pub const LEASE_MS: u32 = 400;
pub const CLIENT: ClientId = ClientId(77);
pub const GATEWAY: ServerId = ServerId(900);
pub const N: Namespace = Namespace(0);

/// A message under way.
#[derive(Clone, Debug)]
enum Late {
    ToBackup(ServerId, Message),
    ToShard(ServerId, Message),
}

#[derive(Clone, Debug, Default)]
pub struct Stored {
    pub bytes: Vec<u8>,
    /// Length of the append that opened it.
    pub opened_with: usize,
    pub epoch: Epoch,
    pub certificate: Option<Certificate>,
    pub closed: bool,
}

#[derive(Clone, Debug, Default)]
pub struct FakeBackup {
    pub replicas: BTreeMap<(LogId, SegmentId), Stored>,
    /// Begun beside a closed replica of the segment, which stays until this one is closed, too.
    pub anew: BTreeMap<(LogId, SegmentId), Stored>,
    pub ceilings: BTreeMap<LogId, ClusterMs>,
    pub lease_asked_ms: u32,
    /// Refuses every append so.
    pub refuse: Option<Refusal>,
}

pub struct World {
    pub shard: Shard,
    pub log: LogId,
    pub now_us: u64,
    pub view: View,
    pub config: ClusterConfig,
    pub backups: BTreeMap<ServerId, FakeBackup>,
    /// Neither hear nor say anything.
    pub mute: BTreeSet<ServerId>,
    /// The coordinator answers `RaiseEpoch`.
    pub records_epochs: bool,
    pub recorded_epoch: Epoch,
    pub to_coordinator: Vec<Message>,
    pub answers: BTreeMap<u64, Outcome>,
    pub freed: BTreeSet<SegmentId>,
    /// Closed on R backups once.
    sealed: BTreeSet<SegmentId>,
    /// Certified on R backups once.
    opened: BTreeSet<SegmentId>,
    /// Messages between shard and backups are lost, doubled and late.
    pub chaos: Option<Dice>,
    /// Appends of copies of closed segments are lost.
    pub stalls_copies: bool,
    /// Appends of side segments from this one on are lost.
    pub stalls_sides: Option<SegmentId>,
    /// Those that were, in the order in which they were sent.
    pub stalled: Vec<(ServerId, Append)>,
    late: Vec<(u64, Late)>,
    pub stopped: Option<String>,
    /// Backups take their time with these segments.
    pub withheld: BTreeSet<SegmentId>,
    /// These they were asked for all the same, in this order, each once.
    pub asked: Vec<SegmentId>,
    /// Backups know no outlines.
    pub without_outlines: bool,
    /// How backups answer questions about one key.
    pub lookups: LookupsAre,
    /// Fetch parts are damaged on their way from these.
    pub corrupts: BTreeSet<ServerId>,
    pub stream: u64,
    pub index: u64,
    token: u64,
    pub sequence: u64,
}

pub fn member(id: u64, role: Role) -> Member {
    Member {
        id: ServerId(id),
        role,
        address: format!("10.0.0.{id}:7"),
        machine: String::new(),
        pid: 1,
        resp_cluster: String::new(),
        name: format!("member-{id}"),
        store: id,
    }
}

pub fn tablet(range: SlotRange, owner: LogId) -> Tablet {
    Tablet {
        range,
        owner,
        epoch: Epoch(1),
        available: true,
    }
}

pub fn command(key: &str, op: Op) -> Command {
    Command {
        namespace: N,
        key: Bytes::copy_from_slice(key.as_bytes()),
        op,
    }
}

/// What backups do with a `LookUp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupsAre {
    Right,
    /// They send entries of other keys besides.
    Others,
    Refused,
    Silent,
}

pub fn put(key: &str, value: &str) -> Command {
    put_with(key, value, Condition::Always, ExpiryChange::Clear)
}

pub fn put_with(key: &str, value: &str, condition: Condition, expiry: ExpiryChange) -> Command {
    let value = Bytes::copy_from_slice(value.as_bytes());
    command(
        key,
        Op::Put {
            value,
            condition,
            expiry,
            return_old: false,
        },
    )
}

pub fn get(key: &str) -> Command {
    command(key, Op::Get)
}

pub fn delete(key: &str) -> Command {
    command(
        key,
        Op::Delete {
            condition: Condition::Always,
            return_old: false,
        },
    )
}

pub fn touch(key: &str, expiry: ExpiryChange) -> Command {
    touch_if(key, TouchCondition::Always, expiry)
}

pub fn touch_if(key: &str, condition: TouchCondition, expiry: ExpiryChange) -> Command {
    command(
        key,
        Op::Touch {
            condition,
            expiry,
            return_value: false,
        },
    )
}

/// The value of an answer, or what else it is.
pub fn value_of(outcome: &Outcome) -> Result<String, Outcome> {
    match outcome {
        Outcome::Value { value, .. } => Ok(String::from_utf8(value.to_vec()).unwrap()),
        other => Err(other.clone()),
    }
}

pub fn meta_of(outcome: &Outcome) -> Meta {
    match outcome {
        Outcome::Value { meta, .. } | Outcome::Done { meta, .. } => *meta,
        other => panic!("no meta in {other:?}"),
    }
}

impl World {
    /// A shard with `backups` backups and R replicas, serving everything.
    pub fn new(backups: u64, replicas: u8) -> World {
        World::with_id(1, backups, replicas, SlotRange::ALL)
    }

    pub fn with_id(id: u64, backups: u64, replicas: u8, owned: SlotRange) -> World {
        let mut world = World::idle(id, backups, replicas);
        world.view.tablets = vec![tablet(owned, world.log)];
        world.run(0);
        world.run(300);
        world
    }

    /// As `new`, and so many replicas acknowledge.
    pub fn with_quorum(backups: u64, replicas: u8, ack_quorum: u8) -> World {
        World::with_quorum_and_id(1, backups, replicas, ack_quorum)
    }

    /// The same, of a shard that draws other backups.
    pub fn with_quorum_and_id(id: u64, backups: u64, replicas: u8, ack_quorum: u8) -> World {
        let mut world = World::idle(id, backups, replicas);
        world.config.ack_quorum = ack_quorum;
        world.view.tablets = vec![tablet(SlotRange::ALL, world.log)];
        world.run(0);
        world.run(300);
        world
    }

    /// The same before it has heard anything.
    pub fn idle(id: u64, backups: u64, replicas: u8) -> World {
        World::configured(id, backups, replicas, |_| {})
    }

    pub fn configured(
        id: u64,
        backups: u64,
        replicas: u8,
        configure: impl FnOnce(&mut ShardConfig),
    ) -> World {
        let own = member(id, Role::Shard);
        let mut config = ShardConfig::for_testing(own.clone());
        config.unreplicated_bytes_max = 128 << 10;
        config.queued_requests_max = 200;
        config.queued_bytes_max = 512 << 10;
        configure(&mut config);
        let mut members = vec![own, member(GATEWAY.0, Role::Gateway)];
        members.extend((0..backups).map(|i| member(100 + i, Role::Backup)));
        World {
            shard: Shard::new(config, 42 + id).unwrap(),
            log: LogId(id),
            now_us: 0,
            view: View {
                version: 1,
                members,
                ..View::default()
            },
            config: ClusterConfig {
                cluster: 1,
                replicas,
                ack_quorum: replicas,
                lease_ms: LEASE_MS,
                heartbeat_ms: 100,
                probe_ms: 100_000,
                ack_disk: false,
            },
            backups: (0..backups)
                .map(|i| (ServerId(100 + i), FakeBackup::default()))
                .collect(),
            mute: BTreeSet::new(),
            records_epochs: true,
            recorded_epoch: Epoch(0),
            to_coordinator: Vec::new(),
            answers: BTreeMap::new(),
            freed: BTreeSet::new(),
            sealed: BTreeSet::new(),
            opened: BTreeSet::new(),
            chaos: None,
            stalls_copies: false,
            stalls_sides: None,
            stalled: Vec::new(),
            late: Vec::new(),
            stopped: None,
            withheld: BTreeSet::new(),
            asked: Vec::new(),
            without_outlines: false,
            lookups: LookupsAre::Refused,
            corrupts: BTreeSet::new(),
            stream: 1,
            index: 0,
            token: 0,
            sequence: 0,
        }
    }

    pub fn now(&self) -> Now {
        Now {
            mono_us: self.now_us,
            unix_ms: 0,
        }
    }

    pub fn time(&self) -> ClusterMs {
        ClusterMs(BASE_MS + self.now_us / 1_000)
    }

    /// Moves time on by `ms`, in steps small enough for every timer; 0 lets what is due happen.
    pub fn run(&mut self, ms: u64) {
        let end_us = self.now_us + ms * 1_000;
        loop {
            self.catch_up();
            let due = self.shard.wakeup().is_some_and(|at| at <= self.now_us);
            if due {
                self.give(Input::Tick);
            }
            if self.now_us >= end_us {
                return;
            }
            self.now_us = (self.now_us + 5_000).min(end_us);
        }
    }

    /// One input, and everything that follows from it at this moment.
    pub fn give(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        for _ in 0..10_000 {
            let mut out = Outputs::default();
            while let Some(input) = inputs.pop_front() {
                self.shard.step(self.now(), input, &mut out);
            }
            self.shard.flush(self.now(), &mut out);
            for output in out.list {
                self.put_out(output, &mut inputs);
            }
            if inputs.is_empty() {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    pub fn hear(&mut self, from: ServerId, message: Message) {
        self.give(Input::Message { from, message });
    }

    /// Publishes the view as it now is.
    pub fn publish(&mut self) {
        self.view.version += 1;
        self.hear(ServerId::COORDINATOR, Message::View(self.view.clone()));
    }

    pub fn declare_dead(&mut self, backup: ServerId) {
        self.view.members.retain(|member| member.id != backup);
        self.backups.remove(&backup);
        self.publish();
    }

    fn put_out(&mut self, output: Output, inputs: &mut VecDeque<Input>) {
        match output {
            Output::Send { to, message } if to == ServerId::COORDINATOR => {
                for message in self.coordinate(message) {
                    inputs.push_back(Input::Message { from: to, message });
                }
            }
            Output::Send { to, message } => {
                if let Message::Responses(responses) = message {
                    assert_eq!(to, GATEWAY);
                    for item in responses.items {
                        self.answers.insert(item.token, item.outcome);
                    }
                } else {
                    self.carry(Late::ToBackup(to, message), inputs);
                }
            }
            Output::Stopped { reason } => self.stopped = Some(reason),
            Output::Event(_) | Output::Address { .. } | Output::Forget { .. } => {}
            other => panic!("a shard has no business with {other:?}"),
        }
    }

    /// Carries a message over the network, which may be a bad one.
    fn carry(&mut self, message: Late, inputs: &mut VecDeque<Input>) {
        let fate = self.chaos.as_mut().map_or(99, |dice| dice.below(100));
        let delay_us = self
            .chaos
            .as_mut()
            .map_or(0, |dice| 1_000 + dice.below(200_000));
        match fate {
            0..8 => {}
            8..25 => self.late.push((self.now_us + delay_us, message)),
            25..30 => {
                self.late.push((self.now_us + delay_us, message.clone()));
                self.arrive(message, inputs);
            }
            _ => self.arrive(message, inputs),
        }
    }

    fn arrive(&mut self, message: Late, inputs: &mut VecDeque<Input>) {
        match message {
            Late::ToBackup(to, Message::Append(append))
                if self.stalls_copies && self.sealed.contains(&append.segment) =>
            {
                self.stalled.push((to, append));
            }
            Late::ToBackup(to, Message::Append(append))
                if self.stalls_sides.is_some_and(|from| append.segment >= from)
                    && !self.is_head(&append) =>
            {
                self.stalled.push((to, append));
            }
            Late::ToBackup(to, message) => {
                if !self.mute.contains(&to) && self.backups.contains_key(&to) {
                    for message in self.store(to, message) {
                        self.carry(Late::ToShard(to, message), inputs);
                    }
                }
            }
            Late::ToShard(from, message) => inputs.push_back(Input::Message { from, message }),
        }
    }

    /// True for appends to a head: its opening carries a digest, which its backups hold by then.
    fn is_head(&self, append: &Append) -> bool {
        let digest = |bytes: &[u8]| Opening::parse(bytes).is_ok_and(|it| it.digest.is_some());
        let stored = |backup: &FakeBackup| {
            let stored = backup.replicas.get(&(append.log, append.segment));
            stored.is_some_and(|stored| digest(&stored.bytes))
        };
        append.open && digest(&append.bytes) || self.backups.values().any(stored)
    }

    /// Delivers what was late.
    fn catch_up(&mut self) {
        let now_us = self.now_us;
        let mut inputs = VecDeque::new();
        for (at_us, message) in std::mem::take(&mut self.late) {
            if at_us > now_us {
                self.late.push((at_us, message));
            } else {
                self.arrive(message, &mut inputs);
            }
        }
        for input in inputs {
            self.give(input);
        }
    }

    fn coordinate(&mut self, message: Message) -> Vec<Message> {
        match message {
            Message::Enlist(enlist) => vec![Message::Enlisted(Enlisted {
                id: enlist.member.id,
                config: self.config,
                view: self.view.clone(),
            })],
            Message::Heartbeat(heartbeat) => vec![Message::HeartbeatReply(HeartbeatReply {
                sent_us: heartbeat.sent_us,
                cluster_us: BASE_MS * 1_000 + self.now_us,
                view_version: self.view.version,
                known: true,
            })],
            Message::RaiseEpoch { log, epoch } => {
                self.check_epoch_everywhere(epoch);
                self.to_coordinator.push(Message::RaiseEpoch { log, epoch });
                if !self.records_epochs {
                    return Vec::new();
                }
                self.recorded_epoch = epoch;
                vec![Message::EpochRecorded { log, epoch }]
            }
            other => {
                self.to_coordinator.push(other);
                Vec::new()
            }
        }
    }

    fn store(&mut self, to: ServerId, message: Message) -> Vec<Message> {
        match message {
            Message::Append(append) => self.append(to, append).into_iter().collect(),
            Message::Free { log, segments } => {
                let backup = self.backups.get_mut(&to).unwrap();
                for segment in segments {
                    backup.replicas.remove(&(log, segment));
                    backup.anew.remove(&(log, segment));
                    self.freed.insert(segment);
                }
                Vec::new()
            }
            Message::Fetch(fetch) if self.withheld.contains(&fetch.segment) => {
                if !self.asked.contains(&fetch.segment) {
                    self.asked.push(fetch.segment);
                }
                Vec::new()
            }
            Message::Fetch(fetch) => self.fetch(to, &fetch),
            Message::AskOutlines {
                log,
                attempt,
                segments,
            } => self.outlines(to, log, attempt, &segments),
            Message::LookUp {
                log,
                segment,
                attempt,
                certificate,
                key,
            } => match self.lookups {
                LookupsAre::Silent => Vec::new(),
                _ => vec![Message::LookedUp {
                    log,
                    segment,
                    attempt,
                    key,
                    entries: self.look_up(to, (log, segment), certificate, key),
                }],
            },
            Message::Ping { nonce } => vec![Message::Pong { nonce }],
            other => panic!("a backup has no business with {other:?}"),
        }
    }

    /// R1, by the book.
    fn append(&mut self, to: ServerId, append: Append) -> Option<Message> {
        let (log, segment) = (append.log, append.segment);
        self.check_r2(&append);
        let chaos = self.chaos.is_some();
        let backup = self
            .backups
            .get_mut(&to)
            .expect("appends go to backups of the view");
        if let Some(why) = backup.refuse {
            if let Refusal::Full | Refusal::Broken = why {
                backup.replicas.remove(&(log, segment));
            }
            return Some(Message::AppendRefused(AppendRefused { log, segment, why }));
        }
        let ceiling = backup.ceilings.entry(log).or_default();
        assert!(
            chaos || append.expiry_ceiling >= *ceiling,
            "a ceiling was taken back"
        );
        *ceiling = append.expiry_ceiling.max(*ceiling);
        backup.lease_asked_ms = append.lease_ms;
        let acknowledge = |stored: &Stored| {
            Some(Message::Appended(Appended {
                log,
                epoch: stored.epoch,
                segment,
                length: stored.bytes.len() as u32,
                closed: stored.closed,
                sent_us: append.sent_us,
                lease_ms: append.lease_ms,
            }))
        };
        let id = (log, segment);
        let reopen = |length: usize| {
            let length = length as u32;
            let why = Refusal::Reopen { length };
            Some(Message::AppendRefused(AppendRefused { log, segment, why }))
        };
        let end = append.offset as usize + append.bytes.len();
        let whole = backup.replicas.get(&id).filter(|stored| stored.closed);
        if let Some(stored) = whole {
            if append.epoch < stored.epoch {
                assert!(chaos, "an epoch was taken back");
                return None;
            }
            if append.close && append.certificate == stored.certificate {
                assert!(chaos, "nobody asked for this again");
                return acknowledge(stored);
            }
            if !append.open && !backup.anew.contains_key(&id) {
                assert!(chaos, "appended to what is closed");
                let held = stored.bytes.len();
                let older = end < held || end == held && append.certificate.is_none();
                return if older {
                    acknowledge(stored)
                } else {
                    reopen(0)
                };
            }
        }
        let beside = whole.is_some();
        let replicas = match beside {
            true => &mut backup.anew,
            false => &mut backup.replicas,
        };
        if let Some(stored) = replicas.get_mut(&id) {
            if append.epoch < stored.epoch {
                assert!(chaos, "an epoch was taken back");
                return None;
            }
            let held = stored.bytes.len();
            let same = stored.bytes.get(append.offset as usize..end) == Some(&append.bytes[..]);
            let duplicate = match append.open {
                true => stored.opened_with == append.bytes.len() && same,
                false => end < held,
            };
            if duplicate {
                assert!(chaos, "nobody asked for this again");
                // Only what was copied without certificate can be of other bytes.
                assert!(same || stored.certificate.is_none(), "bytes changed");
                let shorter = append.certificate.is_some() && stored.certificate.is_none();
                return if shorter {
                    reopen(held)
                } else {
                    acknowledge(stored)
                };
            }
        }
        if append.open {
            assert_eq!(append.offset, 0);
            if self.freed.contains(&segment) {
                return None;
            }
            let stored = Stored {
                opened_with: append.bytes.len(),
                ..Stored::default()
            };
            replicas.insert(id, stored);
        }
        let length = replicas.get(&id).map_or(0, |stored| stored.bytes.len());
        let Some(stored) = (replicas.get_mut(&id))
            .filter(|stored| (append.offset as usize..=end).contains(&stored.bytes.len()))
        else {
            return reopen(length);
        };
        assert!(
            stored.certificate.is_none() || append.certificate.is_some(),
            "a replica that counts grew without certificate"
        );
        let fresh = stored.bytes.len() - append.offset as usize;
        assert!(chaos || fresh == 0, "R1");
        stored.bytes.extend_from_slice(&append.bytes[fresh..]);
        stored.epoch = append.epoch;
        if let Some(certificate) = append.certificate {
            let checksum = crc32c(&stored.bytes);
            let length = stored.bytes.len() as u32;
            if certificate != (Certificate { length, checksum }) {
                // Late pieces of older bytes have spoilt the copy.
                assert!(chaos && stored.certificate.is_none(), "a wrong certificate");
                replicas.remove(&id);
                return reopen(0);
            }
            stored.certificate = Some(certificate);
        }
        assert!(!append.close || stored.certificate.is_some());
        stored.closed = append.close;
        let message = acknowledge(stored);
        if beside && stored.closed {
            let stored = backup.anew.remove(&id).expect("it was just closed");
            backup.replicas.insert(id, stored);
        }
        let copies = self.copies(segment);
        let (certified, closed) = (
            copies.len(),
            copies.iter().filter(|stored| stored.closed).count(),
        );
        if certified >= usize::from(self.config.replicas) {
            self.opened.insert(segment);
        }
        if closed >= usize::from(self.config.ack_quorum) {
            self.sealed.insert(segment);
        }
        message
    }

    /// R2: of a head only the opening is sent before its predecessor is closed on R backups, and that is
    /// closed only when the opening is on R.
    fn check_r2(&self, append: &Append) {
        let heads = self.heads(append.log);
        let opening = if append.open && append.offset == 0 {
            match Opening::parse(&append.bytes).unwrap() {
                opening if opening.header.kind == HeaderKind::Side => return,
                opening => opening.length,
            }
        } else {
            match heads.get(&append.segment) {
                Some(opening) => *opening,
                None => return,
            }
        };
        let end = append.offset as usize + append.bytes.len();
        let predecessor = heads.keys().rfind(|id| **id < append.segment);
        if end > opening
            && let Some(predecessor) = predecessor.filter(|id| !self.freed.contains(id))
        {
            assert!(
                self.sealed.contains(predecessor),
                "R2: {predecessor} is not closed"
            );
        }
        if append.close && !self.sealed.contains(&append.segment) {
            let successor = heads.keys().find(|id| **id > append.segment).expect("R2");
            // (A close may come late, when a backup of the successor has died since it was sent.)
            assert!(
                self.opened.contains(successor),
                "R2: {successor} is not opened"
            );
        }
    }

    /// R4: when the coordinator is told, some head has R open replicas and all at that epoch.
    fn check_epoch_everywhere(&self, epoch: Epoch) {
        let open: BTreeSet<SegmentId> = (self.heads(self.log).keys().copied())
            .filter(|id| !self.sealed.contains(id))
            .filter(|id| self.copies(*id).iter().any(|stored| !stored.closed))
            .collect();
        assert!(!open.is_empty());
        for id in open {
            // One that was given up alive is still there, and will never count again.
            let told = |stored: &&&Stored| stored.closed || stored.epoch == epoch;
            assert!(
                self.copies(id).iter().filter(told).count() >= usize::from(self.config.replicas),
                "R4: {id} has too few at {epoch}"
            );
        }
    }

    /// Heads of the log and the length of their openings.
    pub fn heads(&self, log: LogId) -> BTreeMap<SegmentId, usize> {
        (self.backups.values())
            .flat_map(|backup| &backup.replicas)
            .filter(|((of, _), _)| *of == log)
            .filter_map(|((_, id), stored)| {
                let opening = Opening::parse(&stored.bytes).ok()?;
                (opening.header.kind != HeaderKind::Side).then_some((*id, opening.length))
            })
            .collect()
    }

    /// What the digest of this head names.
    pub fn digest(&self, head: SegmentId) -> Vec<SegmentId> {
        let stored = self.copies(head)[0];
        Opening::parse(&stored.bytes).unwrap().digest.unwrap()
    }

    pub fn copies(&self, segment: SegmentId) -> Vec<&Stored> {
        (self.backups.values())
            .filter_map(|backup| backup.replicas.get(&(self.log, segment)))
            .filter(|stored| stored.certificate.is_some())
            .collect()
    }

    /// The expiry ceiling that a backup was told by this world's shard.
    pub fn ceiling(&self, backup: ServerId) -> ClusterMs {
        self.backups[&backup]
            .ceilings
            .get(&self.log)
            .copied()
            .unwrap_or_default()
    }

    /// Backups that hold a counting replica of the newest head.
    pub fn head_backups(&self) -> Vec<ServerId> {
        let (head, _) = self
            .heads(self.log)
            .into_iter()
            .next_back()
            .expect("a log has a head");
        (self.backups.iter())
            .filter(|(_, backup)| backup.replicas.contains_key(&(self.log, head)))
            .map(|(id, _)| *id)
            .collect()
    }

    fn outlines(
        &self,
        from: ServerId,
        log: LogId,
        attempt: u64,
        segments: &[SegmentId],
    ) -> Vec<Message> {
        let outline = |segment: SegmentId| {
            let held = self.backups[&from].replicas.get(&(log, segment));
            let closed = held.filter(|it| it.closed && !self.without_outlines)?;
            let mut outlining = Outlining::default();
            outlining.add(&closed.bytes);
            let (outline, _) = outlining.finish()?;
            Some(outline.encode().into())
        };
        (segments.iter())
            .map(|&segment| Message::Outline {
                log,
                segment,
                attempt,
                outline: outline(segment),
            })
            .collect()
    }

    fn look_up(
        &self,
        from: ServerId,
        of: (LogId, SegmentId),
        certificate: Certificate,
        key: KeyHash,
    ) -> Option<Bytes> {
        let held = self.backups[&from].replicas.get(&of)?;
        assert!(held.closed && held.certificate == Some(certificate));
        let of_key = Entries::new(&held.bytes)
            .map(|located| located.unwrap())
            .filter(|located| located.entry.key_hash() == Some(key));
        let raw = of_key.map(|it| &held.bytes[it.offset..it.offset + it.length]);
        match self.lookups {
            LookupsAre::Right => Some(raw.collect::<Vec<_>>().concat().into()),
            LookupsAre::Others => {
                let keyed = Entries::new(&held.bytes)
                    .map(|located| located.unwrap())
                    .filter(|located| located.entry.key_hash().is_some());
                let raw = keyed.map(|it| &held.bytes[it.offset..it.offset + it.length]);
                Some(raw.collect::<Vec<_>>().concat().into())
            }
            LookupsAre::Refused | LookupsAre::Silent => None,
        }
    }

    fn fetch(&mut self, from: ServerId, fetch: &Fetch) -> Vec<Message> {
        let Fetch {
            log,
            segment,
            attempt,
            certificate,
            ..
        } = *fetch;
        let held = self.backups[&from].replicas.get(&(log, segment));
        let asked = held.and_then(|stored| stored.bytes.get(..certificate.length as usize));
        let Some(bytes) = asked.filter(|bytes| crc32c(bytes) == certificate.checksum) else {
            return vec![Message::FetchFailed {
                log,
                segment,
                attempt,
                certificate,
            }];
        };
        let mut parts = vec![Vec::new()];
        for located in Entries::new(bytes) {
            let located = located.unwrap();
            if located.entry.concerns(&fetch.ranges) {
                let entry = &bytes[located.offset..located.offset + located.length];
                if parts[parts.len() - 1].len() > 1_000 {
                    parts.push(Vec::new());
                }
                parts.last_mut().unwrap().extend_from_slice(entry);
            }
        }
        if let (true, Some(byte)) = (self.corrupts.contains(&from), parts[0].get_mut(0)) {
            *byte ^= 1;
        }
        let last = parts.len() - 1;
        (parts.into_iter().enumerate())
            .map(|(part, entries)| {
                Message::FetchPart(FetchPart {
                    log,
                    segment,
                    attempt,
                    certificate,
                    part: part as u32,
                    last: part == last,
                    entries: entries.into(),
                })
            })
            .collect()
    }

    // ---- the client ----

    /// A fresh identity for a write of `client`.
    pub fn once(&mut self) -> Once {
        self.sequence += 1;
        Once {
            client: CLIENT,
            sequence: self.sequence,
            acknowledged: 0,
            lease_until: self.time().plus_ms(60_000),
        }
    }

    pub fn request(&mut self, once: Option<Once>, command: Command) -> Request {
        self.token += 1;
        Request {
            token: self.token,
            once,
            command,
        }
    }

    /// Sends a command as the next of the stream; gives its token.
    pub fn send(&mut self, command: Command) -> u64 {
        let once = command.op.is_write().then(|| self.once());
        self.send_as(once, command)
    }

    pub fn send_as(&mut self, once: Option<Once>, command: Command) -> u64 {
        let request = self.request(once, command);
        let token = request.token;
        let first = self.index;
        self.index += 1;
        self.send_at(self.stream, first, vec![request]);
        token
    }

    pub fn send_at(&mut self, stream: u64, first: u64, items: Vec<Request>) {
        let requests = Requests {
            client: CLIENT,
            stream,
            first,
            items,
        };
        self.hear(GATEWAY, Message::Requests(requests));
    }

    /// As a client does after a refusal.
    pub fn new_stream(&mut self) {
        self.stream += 1;
        self.index = 0;
    }

    /// Sends a command whose answer must come at once.
    pub fn ask(&mut self, command: Command) -> Outcome {
        let token = self.send(command);
        self.answers.remove(&token).expect("no answer")
    }

    pub fn ask_as(&mut self, once: Once, command: Command) -> Outcome {
        let token = self.send_as(Some(once), command);
        self.answers.remove(&token).expect("no answer")
    }

    pub fn answer(&self, token: u64) -> Option<&Outcome> {
        self.answers.get(&token)
    }

    pub fn value(&mut self, key: &str) -> Option<String> {
        match self.ask(get(key)) {
            Outcome::Absent { .. } => None,
            outcome => Some(value_of(&outcome).unwrap()),
        }
    }

    pub fn metric(&self, name: &str) -> f64 {
        let metrics = self.shard.metrics();
        metrics
            .iter()
            .find(|(n, _)| *n == name)
            .expect("a metric of that name")
            .1
    }
}
