//! A backup on a bench: one node, its disk, and a clock, driven as the server drives it.

#![allow(dead_code, reason = "each test file uses its own part of the bench")]
#![allow(clippy::unwrap_used, reason = "a bench is for tests only")]

use bytes::Bytes;
use holdfast_backup::{Backup, BackupConfig};
use holdfast_cluster::{
    DiskDone, DiskError, DiskOp, Event, FRAME_HEADER_BYTES, FrameId, Input, Node, Now, Output,
    Outputs,
};
use holdfast_format::{
    ClusterMs, Entry, Epoch, Expiry, HeaderKind, LogId, Namespace, Object, SegmentHeader,
    SegmentId, ServerId, Slot, SlotRange, Version, crc32c,
};
use holdfast_wire::{
    Append, Appended, Certificate, ClusterConfig, Enlisted, Fetch, FetchPart, Inventory, Member,
    Message, Role, View,
};

pub const SHARD: ServerId = ServerId(0x51);
pub const LOG: LogId = LogId(0x51);
pub const RECOVERER: ServerId = ServerId(0x52);
pub const LEASE_MS: u32 = 1_000;
pub const SEGMENT_BYTES: u32 = 64 << 10;
const SECTOR_BYTES: usize = 512;

pub fn member(id: ServerId, role: Role) -> Member {
    Member {
        id,
        role,
        address: format!("host:{}", id.0),
        machine: String::new(),
        pid: 1,
        resp_cluster: String::new(),
        name: format!("{role:?}-{id}"),
        store: 7,
    }
}

pub fn config(frames: u32) -> BackupConfig {
    BackupConfig {
        frames,
        frames_reserved: 1,
        scrub_period_ms: 1_000,
        ..BackupConfig::for_testing(member(ServerId(0xb0), Role::Backup))
    }
}

/// The disk of a backup: survives crashes, loses unsynced sectors with the power.
#[derive(Clone, Debug)]
pub struct Disk {
    frames: Vec<Vec<u8>>,
    /// Per frame: unsynced writes with what they replaced, oldest first.
    undo: Vec<Vec<(usize, Vec<u8>)>>,
    durable_writes: Vec<usize>,
}

impl Disk {
    pub fn new(frames: u32) -> Disk {
        let frame = vec![0; (FRAME_HEADER_BYTES + SEGMENT_BYTES) as usize];
        Disk {
            frames: vec![frame; frames as usize],
            undo: vec![Vec::new(); frames as usize],
            durable_writes: vec![0; frames as usize],
        }
    }

    fn write(&mut self, frame: FrameId, offset: u32, bytes: &[u8]) {
        let (frame, at) = (frame.0 as usize, offset as usize);
        let place = &mut self.frames[frame][at..at + bytes.len()];
        self.undo[frame].push((at, place.to_vec()));
        place.copy_from_slice(bytes);
    }

    fn mark(&self, frame: FrameId) -> usize {
        self.durable_writes[frame.0 as usize] + self.undo[frame.0 as usize].len()
    }

    fn synced(&mut self, frame: FrameId, mark: usize) {
        let frame = frame.0 as usize;
        let covered = mark.saturating_sub(self.durable_writes[frame]);
        self.undo[frame].drain(..covered);
        self.durable_writes[frame] += covered;
    }

    /// Every sector with unsynced writes goes back to some moment since it was synced.
    pub fn power_failure(&mut self, dice: &mut impl FnMut(usize) -> usize) {
        for (frame, undo) in self.frames.iter_mut().zip(&mut self.undo) {
            let writes = undo.len();
            let mut cuts = std::collections::BTreeMap::new();
            for (index, (at, old)) in std::mem::take(undo).into_iter().enumerate().rev() {
                for (offset, byte) in old.into_iter().enumerate() {
                    let sector = (at + offset) / SECTOR_BYTES;
                    let cut = *cuts.entry(sector).or_insert_with(|| dice(writes + 1));
                    if index >= cut {
                        frame[at + offset] = byte;
                    }
                }
            }
        }
    }

    pub fn flip(&mut self, frame: FrameId, offset: u32) {
        self.frames[frame.0 as usize][offset as usize] ^= 0x40;
    }

    pub fn headers(&self) -> Vec<(FrameId, Bytes)> {
        let header =
            |frame: &Vec<u8>| Bytes::copy_from_slice(&frame[..FRAME_HEADER_BYTES as usize]);
        (0..)
            .map(FrameId)
            .zip(self.frames.iter().map(header))
            .collect()
    }

    /// The frame in which `bytes` stand just behind the header.
    pub fn find(&self, bytes: &[u8]) -> Option<FrameId> {
        let at = FRAME_HEADER_BYTES as usize;
        let position = self
            .frames
            .iter()
            .position(|f| f[at..].starts_with(bytes))?;
        Some(FrameId(position as u32))
    }
}

#[derive(Clone, Debug)]
pub enum Pending {
    Sync {
        token: u64,
        frame: FrameId,
        mark: usize,
    },
    Read {
        token: u64,
        bytes: Bytes,
    },
}

pub struct Rig {
    pub backup: Backup,
    pub disk: Disk,
    pub pending: Vec<Pending>,
    /// What was sent, but to the coordinator about membership.
    pub sent: Vec<(ServerId, Message)>,
    pub events: Vec<Event>,
    pub stopped: bool,
    pub now_us: u64,
    /// Outputs still to be applied before a crash, and bytes of the write that it tears.
    pub crash_after: Option<(usize, usize)>,
    pub crashed: bool,
    config: BackupConfig,
    ack_disk: bool,
    incarnation: u64,
}

impl Rig {
    pub fn new(frames: u32, ack_disk: bool) -> Rig {
        Rig::with(config(frames), ack_disk)
    }

    pub fn with(config: BackupConfig, ack_disk: bool) -> Rig {
        let disk = Disk::new(config.frames);
        let backup = Backup::new(config.clone(), disk.headers(), 1).unwrap();
        let mut rig = Rig {
            backup,
            disk,
            pending: Vec::new(),
            sent: Vec::new(),
            events: Vec::new(),
            stopped: false,
            now_us: 1_000_000,
            crash_after: None,
            crashed: false,
            config,
            ack_disk,
            incarnation: 1,
        };
        rig.enlist();
        // The lease that an earlier incarnation could have granted is over.
        rig.pass_ms(u64::from(LEASE_MS));
        rig.sent.clear();
        rig
    }

    fn enlist(&mut self) {
        self.step(Input::Tick);
        let members = [
            member(self.config.member.id, Role::Backup),
            member(SHARD, Role::Shard),
            member(RECOVERER, Role::Shard),
        ];
        let enlisted = Enlisted {
            id: self.config.member.id,
            config: ClusterConfig {
                cluster: 1,
                replicas: 3,
                ack_quorum: 3,
                lease_ms: LEASE_MS,
                heartbeat_ms: 100,
                probe_ms: 100,
                ack_disk: self.ack_disk,
            },
            view: View {
                version: 1,
                members: members.to_vec(),
                ..View::default()
            },
        };
        self.deliver(ServerId::COORDINATOR, Message::Enlisted(enlisted));
    }

    /// The process dies and a new incarnation starts on the same disk.
    pub fn restart(&mut self) {
        self.pending.clear();
        self.crash_after = None;
        self.crashed = false;
        self.stopped = false;
        self.incarnation += 1;
        self.config.member.id = ServerId(0xb0 + self.incarnation);
        self.backup =
            Backup::new(self.config.clone(), self.disk.headers(), self.incarnation).unwrap();
        self.enlist();
    }

    pub fn step(&mut self, input: Input) {
        if self.crashed {
            return;
        }
        let mut out = Outputs::default();
        let now = Now {
            mono_us: self.now_us,
            unix_ms: 0,
        };
        self.backup.step(now, input, &mut out);
        self.backup.flush(now, &mut out);
        for output in out.list {
            let torn = match &mut self.crash_after {
                Some((0, torn)) => Some(*torn),
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            };
            if let Some(torn) = torn {
                if let Output::Disk(DiskOp::Write {
                    frame,
                    offset,
                    bytes,
                }) = output
                {
                    self.disk
                        .write(frame, offset, &bytes[..torn.min(bytes.len())]);
                }
                self.crashed = true;
                return;
            }
            self.apply(output);
        }
    }

    fn apply(&mut self, output: Output) {
        match output {
            Output::Disk(DiskOp::Write {
                frame,
                offset,
                bytes,
            }) => {
                self.disk.write(frame, offset, &bytes);
            }
            Output::Disk(DiskOp::Sync { token, frame }) => {
                let mark = self.disk.mark(frame);
                self.pending.push(Pending::Sync { token, frame, mark });
            }
            Output::Disk(DiskOp::Read {
                token,
                frame,
                offset,
                length,
                from_medium: _,
            }) => {
                let at = offset as usize;
                let bytes = &self.disk.frames[frame.0 as usize][at..at + length as usize];
                self.pending.push(Pending::Read {
                    token,
                    bytes: Bytes::copy_from_slice(bytes),
                });
            }
            Output::Send {
                message:
                    Message::Enlist(_)
                    | Message::Heartbeat(_)
                    | Message::Ping { .. }
                    | Message::Suspect { .. },
                ..
            } => {}
            Output::Send { to, message } => self.sent.push((to, message)),
            Output::Event(event) => self.events.push(event),
            Output::Stopped { .. } => self.stopped = true,
            _ => {}
        }
    }

    pub fn deliver(&mut self, from: ServerId, message: Message) {
        self.step(Input::Message { from, message });
    }

    /// Completes the disk operation at `index` of those pending.
    pub fn complete(&mut self, index: usize) {
        let done = match self.pending.remove(index) {
            Pending::Sync { token, frame, mark } => {
                self.disk.synced(frame, mark);
                DiskDone::Synced {
                    token,
                    result: Ok(()),
                }
            }
            Pending::Read { token, bytes } => DiskDone::Read {
                token,
                result: Ok(bytes),
            },
        };
        self.step(Input::Disk(done));
    }

    pub fn fail(&mut self, index: usize) {
        let result = DiskError("input/output error".into());
        let done = match self.pending.remove(index) {
            Pending::Sync { token, .. } => DiskDone::Synced {
                token,
                result: Err(result),
            },
            Pending::Read { token, .. } => DiskDone::Read {
                token,
                result: Err(result),
            },
        };
        self.step(Input::Disk(done));
    }

    /// Lets the disk finish and the node do what it wants to do at once.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if self.crashed || self.stopped {
                return;
            }
            if !self.pending.is_empty() {
                self.complete(0);
            } else if self.backup.wakeup().is_some_and(|due| due <= self.now_us) {
                self.step(Input::Tick);
            } else {
                return;
            }
        }
        panic!("the backup never comes to rest");
    }

    /// Time passes, with every wake-up that was asked for.
    pub fn pass_ms(&mut self, ms: u64) {
        let until = self.now_us + ms * 1_000;
        self.settle();
        while let Some(due) = self.backup.wakeup().filter(|due| *due <= until) {
            if self.crashed || self.stopped {
                break;
            }
            self.now_us = self.now_us.max(due);
            self.step(Input::Tick);
            self.settle();
        }
        self.now_us = until;
    }

    /// What has been sent since the last call.
    pub fn take_sent(&mut self) -> Vec<(ServerId, Message)> {
        std::mem::take(&mut self.sent)
    }

    /// Delivers an append; what was answered at once.
    pub fn append(&mut self, append: Append) -> Vec<Message> {
        self.sent.clear();
        self.deliver(append.log.shard(), Message::Append(append));
        self.take_sent()
            .into_iter()
            .map(|(_, message)| message)
            .collect()
    }

    /// As `append`, for one that must be acknowledged once the disk has done its part.
    pub fn acked(&mut self, append: Append) -> Appended {
        self.sent.clear();
        let told = format!("{append:?}");
        self.deliver(append.log.shard(), Message::Append(append));
        self.settle();
        match self.take_sent().pop() {
            Some((SHARD, Message::Appended(appended))) => appended,
            other => panic!("{told}: {other:?}"),
        }
    }

    pub fn fence(&mut self, epoch: u64) -> Inventory {
        self.sent.clear();
        let fence = Message::Fence {
            log: LOG,
            epoch: Epoch(epoch),
        };
        self.deliver(ServerId::COORDINATOR, fence);
        self.settle();
        let late = self
            .sent
            .iter()
            .find(|(_, message)| matches!(message, Message::Appended(_)));
        assert!(late.is_none(), "acknowledged after the fence: {late:?}");
        let inventories: Vec<Inventory> = (self.take_sent().into_iter())
            .filter_map(|(to, message)| match message {
                Message::Inventory(inventory) if to == ServerId::COORDINATOR => Some(inventory),
                _ => None,
            })
            .collect();
        assert_eq!(inventories.len(), 1, "one question, one answer");
        inventories.into_iter().next().unwrap()
    }

    /// The entries in `ranges` of the replica, or of its beginning, that is certified so; `None` if the
    /// fetch failed.
    pub fn fetch(
        &mut self,
        segment: u64,
        certificate: Certificate,
        ranges: &[SlotRange],
    ) -> Option<Vec<u8>> {
        self.sent.clear();
        let fetch = Fetch {
            log: LOG,
            segment: SegmentId(segment),
            attempt: 1,
            certificate,
            ranges: ranges.to_vec(),
        };
        self.deliver(RECOVERER, Message::Fetch(fetch));
        self.settle();
        let mut entries = Vec::new();
        let mut next = 0;
        for (to, message) in self.take_sent() {
            match message {
                Message::FetchFailed { .. } => return None,
                Message::FetchPart(FetchPart {
                    part,
                    last,
                    entries: bytes,
                    ..
                }) => {
                    assert_eq!((to, part), (RECOVERER, next));
                    next += 1;
                    entries.extend_from_slice(&bytes);
                    if last {
                        return Some(entries);
                    }
                }
                _ => {}
            }
        }
        panic!("neither parts nor a failure");
    }

    pub fn metric(&self, name: &str) -> f64 {
        let metrics = self.backup.metrics();
        metrics
            .iter()
            .find(|(other, _)| *other == name)
            .expect("a metric of that name")
            .1
    }
}

/// A segment's bytes, and where its atomic appends end (the first: the opening).
#[derive(Clone, Debug)]
pub struct Segment {
    pub id: u64,
    pub bytes: Bytes,
    pub ends: Vec<u32>,
}

impl Segment {
    /// A head whose digest names segments `1..=id`, with `objects` sessions in it.
    pub fn head(id: u64, objects: usize) -> Segment {
        let mut bytes = Vec::new();
        Entry::SegmentHeader(SegmentHeader {
            log: LOG,
            segment: SegmentId(id),
            version_ceiling: Version(1_000 * id),
            kind: HeaderKind::Head,
        })
        .append_to(&mut bytes);
        let ids: Vec<SegmentId> = (1..=id).map(SegmentId).collect();
        let at = bytes.len();
        bytes.resize(at + holdfast_format::Digest::encoded_len(ids.len()), 0);
        holdfast_format::Digest::encode(&ids, &mut bytes[at..]);
        let mut ends = vec![bytes.len() as u32];
        for number in 0..objects {
            let key = format!("session:{id}:{number}");
            let value = vec![number as u8; 20 + (number * 37) % 300];
            Entry::Object(Object {
                namespace: Namespace(0),
                key: key.as_bytes(),
                value: &value,
                version: Version(number as u64 + 1),
                expiry: Expiry::default(),
                shadowing: false,
            })
            .append_to(&mut bytes);
            ends.push(bytes.len() as u32);
        }
        Segment {
            id,
            bytes: Bytes::from(bytes),
            ends,
        }
    }

    /// The same segment after its master has compacted it: every third object is left.
    pub fn compacted(&self) -> Segment {
        let opening = self.ends[0] as usize;
        let mut bytes = self.bytes[..opening].to_vec();
        let mut ends = vec![self.ends[0]];
        for pair in self.ends.windows(2).step_by(3) {
            bytes.extend_from_slice(&self.bytes[pair[0] as usize..pair[1] as usize]);
            ends.push(bytes.len() as u32);
        }
        Segment {
            id: self.id,
            bytes: Bytes::from(bytes),
            ends,
        }
    }

    pub fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    pub fn certificate(&self, length: u32) -> Certificate {
        Certificate {
            length,
            checksum: crc32c(&self.bytes[..length as usize]),
        }
    }

    /// An append of `[from, to)` with a certificate, at epoch 1.
    pub fn append(&self, from: u32, to: u32) -> Append {
        Append {
            log: LOG,
            epoch: Epoch(1),
            segment: SegmentId(self.id),
            offset: from,
            bytes: self.bytes.slice(from as usize..to as usize),
            certificate: Some(self.certificate(to)),
            open: from == 0,
            close: false,
            sent_us: 77,
            lease_ms: LEASE_MS,
            expiry_ceiling: ClusterMs(1_000),
        }
    }

    /// All of it, closed.
    pub fn whole(&self) -> Append {
        Append {
            close: true,
            ..self.append(0, self.len())
        }
    }

    /// What a fetch of `ranges` up to `length` must bring.
    pub fn entries(&self, length: u32, ranges: &[SlotRange]) -> Vec<u8> {
        let mut found = Vec::new();
        for located in holdfast_format::Entries::new(&self.bytes[..length as usize]) {
            let located = located.unwrap();
            if located.entry.concerns(ranges) {
                found.extend_from_slice(
                    &self.bytes[located.offset..located.offset + located.length],
                );
            }
        }
        found
    }
}

pub const LOWER_HALF: SlotRange = SlotRange {
    first: Slot(0),
    last: Slot(8191),
};
