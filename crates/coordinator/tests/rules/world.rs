//! A coordinator among hand-made members: they heartbeat, answer pings and, where a test lets them,
//! play backups and recovery masters just well enough to be believed.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_cluster::{Input, Node, Now, Output, Outputs};
use holdfast_coordinator::{Coordinator, CoordinatorConfig, Status};
use holdfast_format::{ClusterMs, Epoch, LogId, SegmentId, ServerId, SlotRange, Version};
use holdfast_wire::{
    AppendWait, Certificate, Enlist, Figures, Heartbeat, HeartbeatReply, Inventory, Member,
    Message, Recover, ReplayTimings, ReplicaState, Role, SlotLoad, View,
};

pub fn id(n: u64) -> ServerId {
    ServerId(n)
}

pub fn member(n: u64, role: Role) -> Member {
    let gateway = role == Role::Gateway;
    Member {
        id: id(n),
        role,
        address: if gateway {
            String::new()
        } else {
            format!("10.0.0.{n}:7")
        },
        machine: String::new(),
        pid: n as u32,
        resp_cluster: String::new(),
        name: format!("{role:?}-{n}"),
        store: if gateway { 0 } else { 1000 + n },
    }
}

/// An open replica whose digest names `digest`.
pub fn open(segment: u64, epoch: u64, length: u32, digest: &[u64]) -> ReplicaState {
    ReplicaState {
        segment: SegmentId(segment),
        epoch: Epoch(epoch),
        closed: false,
        certificate: Certificate {
            length,
            checksum: length,
        },
        version_ceiling: Version(segment * 100),
        digest: Some(digest.iter().copied().map(SegmentId).collect()),
    }
}

pub fn closed(segment: u64, length: u32) -> ReplicaState {
    ReplicaState {
        closed: true,
        ..open(segment, 0, length, &[])
    }
}

pub struct World {
    pub config: CoordinatorConfig,
    pub coordinator: Coordinator,
    pub store: BTreeMap<String, Bytes>,
    pub now: Now,
    /// Records are written at once; otherwise they wait for `write`.
    pub store_works: bool,
    /// Writes that still succeed before the store stops for good.
    pub writes_left: Option<usize>,
    pub writes: usize,
    waiting: Vec<(u64, Vec<holdfast_cluster::RecordWrite>)>,
    /// Everything sent since `take_sent`, but answers to heartbeats and pings.
    pub sent: Vec<(ServerId, Message)>,
    pub replies: Vec<(ServerId, HeartbeatReply)>,
    pub pinged: Vec<ServerId>,
    pub events: Vec<String>,
    pub obeyed: Vec<u64>,
    pub refused: Vec<(u64, String)>,
    pub dialled: BTreeMap<ServerId, String>,
    /// Members that heartbeat and answer pings.
    pub alive: BTreeMap<ServerId, Figures>,
    /// What shards tell of their slots.
    pub loads: BTreeMap<ServerId, Vec<SlotLoad>>,
    pub append_waits: BTreeMap<ServerId, Vec<AppendWait>>,
    /// What each backup holds, by log.
    pub held: BTreeMap<(ServerId, LogId), Vec<ReplicaState>>,
    /// Backups that answer fences, shards that recover.
    pub plays: BTreeSet<ServerId>,
    /// Every message to the coordinator is delivered twice.
    pub double: bool,
    heartbeat_due_us: u64,
    view_versions: BTreeMap<ServerId, u64>,
}

impl World {
    pub fn new(change: impl Fn(&mut CoordinatorConfig)) -> World {
        let mut config = CoordinatorConfig::for_testing();
        change(&mut config);
        let now = Now {
            mono_us: 1_000_000,
            unix_ms: 1_700_000_000_000,
        };
        let coordinator =
            Coordinator::new(config.clone(), Vec::new(), now, 1).expect("an empty store");
        let mut world = World {
            config,
            coordinator,
            store: BTreeMap::new(),
            now,
            store_works: true,
            writes_left: None,
            writes: 0,
            waiting: Vec::new(),
            sent: Vec::new(),
            replies: Vec::new(),
            pinged: Vec::new(),
            events: Vec::new(),
            obeyed: Vec::new(),
            refused: Vec::new(),
            dialled: BTreeMap::new(),
            alive: BTreeMap::new(),
            loads: BTreeMap::new(),
            append_waits: BTreeMap::new(),
            held: BTreeMap::new(),
            plays: BTreeSet::new(),
            double: false,
            heartbeat_due_us: 0,
            view_versions: BTreeMap::new(),
        };
        world.step(Input::Tick);
        world
    }

    /// A cluster of these shards and three backups (11, 12, 13), all slots dealt out.
    pub fn with_shards(shards: &[u64]) -> World {
        let n = shards.len() as u32;
        let mut world = World::new(|c| c.initial_shards = n);
        for backup in [11, 12, 13] {
            world.enlist(backup, Role::Backup);
        }
        for shard in shards {
            world.enlist(*shard, Role::Shard);
        }
        world.run_ms(400);
        assert!(!world.view().tablets.is_empty());
        world.sent.clear();
        world
    }

    /// The coordinator dies and another starts on the same records.
    pub fn restart(&mut self) {
        self.waiting.clear();
        self.writes_left = None;
        self.store_works = true;
        let records = self
            .store
            .iter()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        self.coordinator =
            Coordinator::new(self.config.clone(), records, self.now, 2).expect("own records");
        self.sent.clear();
        self.dialled.clear();
        self.step(Input::Tick);
    }

    pub fn step(&mut self, input: Input) {
        let mut out = Outputs::default();
        self.coordinator.step(self.now, input, &mut out);
        for output in out.list {
            self.output(output);
        }
        if self.store_works {
            self.write();
        }
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Records { token, writes } => self.waiting.push((token, writes)),
            Output::Send {
                to,
                message: Message::HeartbeatReply(reply),
            } => {
                self.replies.push((to, reply));
            }
            Output::Send {
                to,
                message: Message::Pong { .. },
            } => self.pinged.push(to),
            Output::Send {
                to,
                message: Message::Ping { nonce },
            } => {
                self.pinged.push(to);
                if self.alive.contains_key(&to) {
                    self.tell(to.0, Message::Pong { nonce });
                }
            }
            Output::Send { to, message } => {
                match &message {
                    Message::View(view) => self.has_view(to, view),
                    Message::Enlisted(enlisted) => self.has_view(to, &enlisted.view),
                    _ => {}
                }
                self.sent.push((to, message));
            }
            Output::Address { peer, address } => {
                self.dialled.insert(peer, address);
            }
            Output::Forget { peer } => {
                self.dialled.remove(&peer);
            }
            Output::Event(event) => self.events.push(event.text),
            Output::Obeyed { token } => self.obeyed.push(token),
            Output::Refused { token, why } => self.refused.push((token, why)),
            Output::Stopped { .. } => {}
            other => panic!("not a coordinator's output: {other:?}"),
        }
    }

    fn has_view(&mut self, to: ServerId, view: &View) {
        let known = self.view_versions.entry(to).or_insert(0);
        *known = view.version.max(*known);
    }

    /// The store finishes what it was given.
    pub fn write(&mut self) {
        while !self.waiting.is_empty() {
            if let Some(left) = &mut self.writes_left {
                if *left == 0 {
                    return;
                }
                *left -= 1;
            }
            let (token, writes) = self.waiting.remove(0);
            self.writes += 1;
            for write in writes {
                match write.value {
                    Some(value) => self.store.insert(write.key, value),
                    None => self.store.remove(&write.key),
                };
            }
            self.step(Input::RecordsWritten { token });
        }
    }

    pub fn tell(&mut self, from: u64, message: Message) {
        for _ in 0..1 + usize::from(self.double) {
            self.step(Input::Message {
                from: id(from),
                message: message.clone(),
            });
        }
    }

    pub fn enlist(&mut self, n: u64, role: Role) {
        self.enlist_as(member(n, role), Vec::new());
    }

    pub fn enlist_as(&mut self, member: Member, logs: Vec<LogId>) {
        self.alive.insert(
            member.id,
            Figures {
                bytes_limit: 1 << 30,
                ..Figures::default()
            },
        );
        self.plays.insert(member.id);
        self.tell(member.id.0, Message::Enlist(Enlist { member, logs }));
    }

    pub fn heartbeat(&mut self, n: u64) {
        let heartbeat = Heartbeat {
            from: id(n),
            sent_us: self.now.mono_us,
            view_version: self.view_versions.get(&id(n)).copied().unwrap_or(0),
            figures: Box::new(self.alive.get(&id(n)).copied().unwrap_or_default()),
            namespaces: Vec::new(),
            loads: self.loads.get(&id(n)).cloned().unwrap_or_default(),
            append_waits: self.append_waits.get(&id(n)).cloned().unwrap_or_default(),
        };
        self.tell(n, Message::Heartbeat(heartbeat));
    }

    /// Time passes; the living heartbeat, and those that play do what they were asked.
    pub fn run_ms(&mut self, ms: u64) {
        let end_us = self.now.mono_us + ms * 1_000;
        while self.now.mono_us < end_us {
            self.now.mono_us += 5_000;
            self.now.unix_ms += 5;
            if self.now.mono_us >= self.heartbeat_due_us {
                self.heartbeat_due_us = self.now.mono_us + 100_000;
                for alive in self.alive.keys().copied().collect::<Vec<_>>() {
                    self.heartbeat(alive.0);
                }
            }
            if self
                .coordinator
                .wakeup()
                .is_some_and(|due| due <= self.now.mono_us)
            {
                self.step(Input::Tick);
            }
            self.play();
        }
    }

    /// Backups answer fences and shards recover, once per message.
    fn play(&mut self) {
        let asked: Vec<(ServerId, Message)> = (self.sent.iter())
            .filter(|(to, m)| {
                let duty = matches!(m, Message::Fence { .. } | Message::Recover(_));
                duty && self.plays.contains(to) && self.alive.contains_key(to)
            })
            .cloned()
            .collect();
        self.sent.retain(|(to, m)| {
            let duty = matches!(m, Message::Fence { .. } | Message::Recover(_));
            !(duty && self.plays.contains(to))
        });
        for (to, message) in asked {
            match message {
                Message::Fence { log, epoch } => self.answer_fence(to.0, log, epoch),
                Message::Recover(recover) => self.report_recovered(to.0, &recover),
                _ => unreachable!(),
            }
        }
    }

    pub fn answer_fence(&mut self, backup: u64, log: LogId, epoch: Epoch) {
        let replicas = self
            .held
            .get(&(id(backup), log))
            .cloned()
            .unwrap_or_default();
        let inventory = Inventory {
            log,
            epoch,
            replicas,
            lease_remaining_ms: 200,
            expiry_ceiling: ClusterMs(backup),
        };
        self.tell(backup, Message::Inventory(inventory));
    }

    pub fn report_recovered(&mut self, master: u64, recover: &Recover) {
        let done = Message::Recovered {
            log: recover.log,
            attempt: recover.attempt,
            entries: 10,
            bytes: 1_000,
            timings: ReplayTimings::default(),
        };
        self.tell(master, done);
    }

    /// The same replicas on these backups.
    pub fn hold(&mut self, log: u64, backups: &[u64], replicas: &[ReplicaState]) {
        for backup in backups {
            self.held
                .insert((id(*backup), LogId(log)), replicas.to_vec());
        }
    }

    /// kill -9, and an observer saw the process end.
    pub fn kill(&mut self, n: u64) {
        self.alive.remove(&id(n));
        self.step(Input::PeerLost {
            peer: id(n),
            ended: true,
        });
    }

    /// The newest view sent to anybody.
    pub fn view(&self) -> View {
        (self.sent.iter())
            .filter_map(|(_, message)| match message {
                Message::View(view) => Some(view),
                Message::Enlisted(enlisted) => Some(&enlisted.view),
                _ => None,
            })
            .max_by_key(|view| view.version)
            .cloned()
            .unwrap_or_else(|| {
                let status = self.status();
                View {
                    version: status.view_version,
                    members: status.members.iter().map(|m| m.member.clone()).collect(),
                    tablets: status.tablets,
                    recovering: status.recoveries.iter().map(|r| r.log).collect(),
                    namespaces: status.namespaces,
                    slow: (status.members.iter().filter(|m| m.slow))
                        .map(|m| m.member.id)
                        .collect(),
                }
            })
    }

    pub fn status(&self) -> Status {
        self.coordinator.status(self.now)
    }

    /// Owners in slot order, with the number of slots of each tablet.
    pub fn owners(&self) -> Vec<(u64, u32)> {
        let tablets = self.status().tablets;
        tablets
            .iter()
            .map(|t| (t.owner.0, t.range.slots()))
            .collect()
    }

    pub fn is_up(&self, n: u64) -> bool {
        self.status().members.iter().any(|m| m.member.id == id(n))
    }

    /// Messages of one kind, with their receivers; they are taken out.
    pub fn take<T>(&mut self, want: impl Fn(&Message) -> Option<T>) -> Vec<(u64, T)> {
        let mut found = Vec::new();
        self.sent.retain(|(to, message)| match want(message) {
            Some(it) => {
                found.push((to.0, it));
                false
            }
            None => true,
        });
        found
    }

    pub fn take_recovers(&mut self) -> Vec<(u64, Recover)> {
        self.take(|message| match message {
            Message::Recover(recover) => Some(recover.clone()),
            _ => None,
        })
    }

    pub fn take_fences(&mut self) -> Vec<(u64, (LogId, Epoch))> {
        self.take(|message| match message {
            Message::Fence { log, epoch } => Some((*log, *epoch)),
            _ => None,
        })
    }

    pub fn take_gone(&mut self) -> Vec<(u64, LogId)> {
        self.take(|message| match message {
            Message::LogGone { log } => Some(*log),
            _ => None,
        })
    }

    pub fn slots(recover: &Recover) -> u32 {
        recover.ranges.iter().map(SlotRange::slots).sum()
    }
}
