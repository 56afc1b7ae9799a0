//! The coordinator's memory that outlives it: what each record means, and its bytes.
//!
//! | key | value | there while |
//! |---|---|---|
//! | `cluster/identity` | cluster id, replicas, and how many of them acknowledge, unless all do | always |
//! | `cluster/start` | how many coordinators have begun, and the clock ceiling | always |
//! | `server/<id>` | a shard or backup that is up | it has not been declared dead |
//! | `log/<id>` | a live log's minimum epoch and stores, or a dead one's recovery | it is not gone |
//! | `tablet/<first slot>` | a slot range, its owner and epoch | slots have been dealt out |
//! | `namespace/<n>` | the limits of a namespace | an operator wants them |
//! | `gone/<id>` | the ordinal of a death | it is among the newest `GONE_MAX` |
//!
//! A value is: format version (1 byte), fields in little-endian order, CRC32C of all before it.
//! Ids in keys are 16 hexadecimal digits, slots 5 decimal ones and namespaces 3, so that keys sort as they should
//! and a person can read them.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_format::{
    ClusterMs, Epoch, LogId, Namespace, SLOT_PARTS, SLOTS, SegmentId, ServerId, Slot, SlotRange,
    Version, crc32c,
};
use holdfast_wire::{Eviction, Member, NamespaceLimits, Role, SlotLoad};

/// The only format of values so far.
const VALUE_VERSION: u8 = 1;

/// Dead ids remembered. A message of a dead member that is delayed past so many later deaths, or a
/// store that was away for so long, is no longer recognised: the store keeps its frames and the
/// coordinator says so.
pub(crate) const GONE_MAX: usize = 4096;

/// A record that cannot be used. The coordinator does not start: guessing would lose sessions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record `{key}` {why}")]
pub struct RecordError {
    pub key: String,
    pub why: RecordFault,
}

/// What is wrong with a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    #[error("has a key that this version does not know; was it written by a newer one?")]
    UnknownKey,
    #[error("has format version {0}, which this version does not know")]
    UnknownVersion(u8),
    #[error("is damaged: its checksum does not match")]
    Checksum,
    #[error("is damaged: it ends early or has bytes left over")]
    Length,
    #[error("makes no sense: {0}")]
    Nonsense(&'static str),
}

/// What the cluster was made with and cannot change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub cluster: u64,
    pub replicas: u8,
    pub ack_quorum: u8,
}

/// Written at each start, and whenever the clock nears its ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Start {
    /// Coordinators begun so far; the high half of view versions.
    pub generation: u32,
    /// No cluster time above this has been handed out.
    pub clock_ceiling: ClusterMs,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LogRecord {
    Live(LiveLog),
    Recovering(DeadLog),
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct LiveLog {
    /// Open replicas below this never count as a head (R4).
    pub minimum_epoch: Epoch,
    /// Every store that was up at some time of this log's life, sorted: a replica can be nowhere
    /// else. 0 stands for a backup that did not name its store.
    pub stores: Vec<u64>,
}

/// A dead shard's log on its way to being gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeadLog {
    /// The shard's name, for reports.
    pub name: String,
    pub detected: ClusterMs,
    pub fence: Epoch,
    pub minimum_epoch: Epoch,
    pub stores: Vec<u64>,
    pub seal: Option<Seal>,
    /// The highest attempt so far.
    pub attempts: u64,
    pub partitions: Vec<Partition>,
    /// Segments that recovery masters may lean on; chosen with the seal's first plan, and kept while anyone
    /// takes a part over by it or leans.
    pub lendable: Vec<SegmentId>,
    /// Who leans on this log. It stays until nobody does.
    pub leans: Vec<Lean>,
    /// An operator gave up what is still to be taken over: new owners begin without it, with versions above this.
    pub abandoned: Option<Version>,
    /// What the log had in its slots when its shard last told, as `planning::dense` makes it; or nothing.
    pub loads: Vec<SlotLoad>,
}

/// Ranges that were taken over before all of them was replicated: until it is, they are to be recovered from
/// the `lendable` segments of the dead log too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lean {
    /// The recovery master. It owns the ranges, dead or alive.
    pub master: ServerId,
    /// The recovery by which it got them: of this log, or of one that leant on this log itself.
    pub by: LogId,
    pub attempt: u64,
    pub ranges: Vec<SlotRange>,
}

/// The agreed end of a dead log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    pub head: SegmentId,
    pub length: u32,
    /// CRC32C of the head's bytes up to `length`.
    pub checksum: u32,
}

/// Ranges of a dead log that one shard is taking over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    pub attempt: u64,
    pub master: ServerId,
    pub ranges: Vec<SlotRange>,
}

/// Who owns a slot range. Whether it is available follows from the owner's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ownership {
    pub range: SlotRange,
    pub owner: LogId,
    pub epoch: Epoch,
}

/// Everything a coordinator finds when it starts, checked to be consistent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorded {
    pub identity: Option<Identity>,
    pub start: Start,
    pub servers: BTreeMap<ServerId, Member>,
    pub logs: BTreeMap<LogId, LogRecord>,
    pub tablets: Vec<Ownership>,
    pub namespaces: BTreeMap<Namespace, NamespaceLimits>,
    pub gone: BTreeMap<ServerId, u64>,
}

impl Recorded {
    pub(crate) fn load(records: Vec<(String, Bytes)>) -> Result<Recorded, RecordError> {
        let mut found = Recorded::default();
        for (key, value) in records {
            found
                .take(&key, &value)
                .map_err(|why| RecordError { key, why })?;
        }
        found.check()?;
        Ok(found)
    }

    fn take(&mut self, key: &str, value: &[u8]) -> Result<(), RecordFault> {
        let (kind, name) = key.split_once('/').ok_or(RecordFault::UnknownKey)?;
        let mut fields = Fields::open(value)?;
        match (kind, name) {
            ("cluster", "identity") => {
                let (cluster, replicas) = (fields.u64()?, fields.u8()?);
                let ack_quorum = match fields.is_empty() {
                    true => replicas,
                    false => fields.u8()?,
                };
                if ack_quorum > replicas {
                    let why = "more replicas acknowledge than there are";
                    return Err(RecordFault::Nonsense(why));
                }
                self.identity = Some(Identity {
                    cluster,
                    replicas,
                    ack_quorum,
                });
            }
            ("cluster", "start") => {
                self.start = Start {
                    generation: fields.u32()?,
                    clock_ceiling: ClusterMs(fields.u64()?),
                };
            }
            ("server", id) => {
                let id = ServerId(parse_id(id)?);
                self.servers.insert(id, fields.member(id)?);
            }
            ("log", id) => {
                self.logs.insert(LogId(parse_id(id)?), fields.log()?);
            }
            ("tablet", first) => {
                let first: u16 = first.parse().map_err(|_| RecordFault::UnknownKey)?;
                let last = fields.u16()?;
                self.tablets.push(Ownership {
                    range: range(first, last)?,
                    owner: LogId(fields.u64()?),
                    epoch: Epoch(fields.u64()?),
                });
            }
            ("namespace", number) => {
                let number: u8 = number.parse().map_err(|_| RecordFault::UnknownKey)?;
                self.namespaces.insert(Namespace(number), fields.limits()?);
            }
            ("gone", id) => {
                self.gone.insert(ServerId(parse_id(id)?), fields.u64()?);
            }
            _ => return Err(RecordFault::UnknownKey),
        }
        fields.end()
    }

    /// What no single record can show.
    fn check(&mut self) -> Result<(), RecordError> {
        let nonsense = |key: String, why| RecordError {
            key,
            why: RecordFault::Nonsense(why),
        };
        if self.identity.is_none() && !(self.servers.is_empty() && self.tablets.is_empty()) {
            return Err(nonsense(
                IDENTITY_KEY.into(),
                "it is missing and others are there",
            ));
        }
        self.tablets.sort_unstable_by_key(|tablet| tablet.range);
        let mut next = 0;
        for tablet in &self.tablets {
            if tablet.range.first.0 != next {
                return Err(nonsense(
                    tablet_key(tablet.range),
                    "tablets overlap or leave a gap",
                ));
            }
            next = tablet.range.last.0 + 1;
            if !self.logs.contains_key(&tablet.owner) {
                return Err(nonsense(
                    tablet_key(tablet.range),
                    "its owner has no log record",
                ));
            }
        }
        if next != 0 && next != SLOTS {
            return Err(nonsense(format!("tablet/{next:05}"), "it is missing"));
        }
        for (log, record) in &self.logs {
            let shard = self.servers.get(&log.shard());
            let alive = shard.is_some_and(|member| member.role == Role::Shard);
            match record {
                LogRecord::Live(_) if !alive => {
                    return Err(nonsense(
                        log_key(*log),
                        "a live log's shard has no server record",
                    ));
                }
                LogRecord::Recovering(_) if alive => {
                    return Err(nonsense(
                        log_key(*log),
                        "a dead log's shard has a server record",
                    ));
                }
                LogRecord::Recovering(dead) => {
                    let owned = |range: &SlotRange| {
                        let inside = |t: &Ownership| {
                            t.range.contains(range.first) && t.range.contains(range.last)
                        };
                        self.tablets.iter().any(|t| t.owner == *log && inside(t))
                    };
                    if !dead.partitions.iter().all(|p| p.ranges.iter().all(owned)) {
                        let why = "it plans for slots that the log does not own";
                        return Err(nonsense(log_key(*log), why));
                    }
                    let leans = |lean: &Lean| {
                        let owner = LogId::of(lean.master);
                        let owned = |range: &SlotRange| {
                            let mut tablets = self.tablets.iter().filter(|t| t.owner == owner);
                            tablets.any(|t| {
                                t.range.contains(range.first) && t.range.contains(range.last)
                            })
                        };
                        lean.ranges.iter().all(owned)
                    };
                    if !dead.leans.iter().all(leans) {
                        let why = "a shard leans on it for slots that it does not own";
                        return Err(nonsense(log_key(*log), why));
                    }
                }
                _ => {}
            }
        }
        for (id, member) in &self.servers {
            if member.role == Role::Shard && !self.logs.contains_key(&LogId::of(*id)) {
                return Err(nonsense(server_key(*id), "the shard has no log record"));
            }
        }
        Ok(())
    }
}

pub(crate) const IDENTITY_KEY: &str = "cluster/identity";
pub(crate) const START_KEY: &str = "cluster/start";

pub(crate) fn server_key(id: ServerId) -> String {
    format!("server/{:016x}", id.0)
}
pub(crate) fn log_key(log: LogId) -> String {
    format!("log/{:016x}", log.0)
}
pub(crate) fn tablet_key(range: SlotRange) -> String {
    format!("tablet/{:05}", range.first.0)
}
pub(crate) fn namespace_key(namespace: Namespace) -> String {
    format!("namespace/{:03}", namespace.0)
}
pub(crate) fn gone_key(id: ServerId) -> String {
    format!("gone/{:016x}", id.0)
}

fn parse_id(text: &str) -> Result<u64, RecordFault> {
    match u64::from_str_radix(text, 16) {
        Ok(id) if text.len() == 16 => Ok(id),
        _ => Err(RecordFault::UnknownKey),
    }
}

fn range(first: u16, last: u16) -> Result<SlotRange, RecordFault> {
    if first > last || last >= SLOTS {
        return Err(RecordFault::Nonsense("not a slot range"));
    }
    Ok(SlotRange {
        first: Slot(first),
        last: Slot(last),
    })
}

/// A value being written.
pub(crate) struct Value(Vec<u8>);

impl Value {
    pub(crate) fn new() -> Value {
        Value(vec![VALUE_VERSION])
    }
    pub(crate) fn u8(&mut self, v: u8) {
        self.0.push(v);
    }
    pub(crate) fn u16(&mut self, v: u16) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    pub(crate) fn u32(&mut self, v: u32) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    pub(crate) fn u64(&mut self, v: u64) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }
    pub(crate) fn count(&mut self, n: usize) {
        self.u32(u32::try_from(n).expect("records hold thousands of things, not billions"));
    }
    pub(crate) fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }
    pub(crate) fn stores(&mut self, stores: &[u64]) {
        self.count(stores.len());
        stores.iter().for_each(|store| self.u64(*store));
    }
    fn ranges(&mut self, ranges: &[SlotRange]) {
        self.count(ranges.len());
        for range in ranges {
            self.u16(range.first.0);
            self.u16(range.last.0);
        }
    }
    pub(crate) fn member(&mut self, member: &Member) {
        self.u8(match member.role {
            Role::Shard => 1,
            Role::Backup => 2,
            Role::Coordinator | Role::Gateway => {
                unreachable!("only shards and backups are recorded")
            }
        });
        self.text(&member.address);
        self.text(&member.machine);
        self.u32(member.pid);
        self.text(&member.resp_cluster);
        self.text(&member.name);
        self.u64(member.store);
    }
    /// Of a limit, or anything that may be absent.
    fn limit(&mut self, limit: Option<u64>) {
        self.u8(u8::from(limit.is_some()));
        if let Some(limit) = limit {
            self.u64(limit);
        }
    }
    pub(crate) fn limits(&mut self, limits: &NamespaceLimits) {
        self.limit(limits.sessions);
        self.limit(limits.bytes);
        self.limit(limits.value_bytes.map(u64::from));
        self.u8(match limits.evict {
            Eviction::Never => 0,
            Eviction::OldestIdle => 1,
        });
    }
    pub(crate) fn log(&mut self, record: &LogRecord) {
        match record {
            LogRecord::Live(log) => {
                self.u8(1);
                self.u64(log.minimum_epoch.0);
                self.stores(&log.stores);
            }
            LogRecord::Recovering(log) => {
                self.u8(5);
                self.text(&log.name);
                self.u64(log.detected.0);
                self.u64(log.fence.0);
                self.u64(log.minimum_epoch.0);
                self.stores(&log.stores);
                self.u8(u8::from(log.seal.is_some()));
                if let Some(seal) = log.seal {
                    self.u64(seal.head.0);
                    self.u32(seal.length);
                    self.u32(seal.checksum);
                }
                self.u64(log.attempts);
                self.count(log.partitions.len());
                for partition in &log.partitions {
                    self.u64(partition.attempt);
                    self.u64(partition.master.0);
                    self.ranges(&partition.ranges);
                }
                self.count(log.lendable.len());
                log.lendable.iter().for_each(|segment| self.u64(segment.0));
                self.count(log.leans.len());
                for lean in &log.leans {
                    self.u64(lean.master.0);
                    self.u64(lean.by.0);
                    self.u64(lean.attempt);
                    self.ranges(&lean.ranges);
                }
                self.limit(log.abandoned.map(|version| version.0));
                self.count(log.loads.len());
                for load in &log.loads {
                    self.u32(load.entries);
                    self.u32(load.kib);
                }
            }
        }
    }
    pub(crate) fn seal(mut self) -> Bytes {
        let checksum = crc32c(&self.0);
        self.0.extend_from_slice(&checksum.to_le_bytes());
        Bytes::from(self.0)
    }
}

/// A value being read.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn open(value: &'a [u8]) -> Result<Fields<'a>, RecordFault> {
        let (body, checksum) = value.split_last_chunk::<4>().ok_or(RecordFault::Length)?;
        if crc32c(body) != u32::from_le_bytes(*checksum) {
            return Err(RecordFault::Checksum);
        }
        let mut fields = Fields(body);
        match fields.u8()? {
            VALUE_VERSION => Ok(fields),
            other => Err(RecordFault::UnknownVersion(other)),
        }
    }
    fn take<const N: usize>(&mut self) -> Result<[u8; N], RecordFault> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(RecordFault::Length)?;
        self.0 = rest;
        Ok(*taken)
    }
    fn u8(&mut self) -> Result<u8, RecordFault> {
        Ok(u8::from_le_bytes(self.take()?))
    }
    fn u16(&mut self) -> Result<u16, RecordFault> {
        Ok(u16::from_le_bytes(self.take()?))
    }
    fn u32(&mut self) -> Result<u32, RecordFault> {
        Ok(u32::from_le_bytes(self.take()?))
    }
    fn u64(&mut self) -> Result<u64, RecordFault> {
        Ok(u64::from_le_bytes(self.take()?))
    }
    fn flag(&mut self) -> Result<bool, RecordFault> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(RecordFault::Nonsense("a flag is neither 0 nor 1")),
        }
    }
    /// How many things of at least `bytes_each` bytes follow.
    fn count(&mut self, bytes_each: usize) -> Result<usize, RecordFault> {
        let n = self.u32()? as usize;
        if n > self.0.len() / bytes_each {
            return Err(RecordFault::Length);
        }
        Ok(n)
    }
    fn text(&mut self) -> Result<String, RecordFault> {
        let n = self.count(1)?;
        let (text, rest) = self.0.split_at(n);
        self.0 = rest;
        String::from_utf8(text.to_vec()).map_err(|_| RecordFault::Nonsense("text is not UTF-8"))
    }
    fn stores(&mut self) -> Result<Vec<u64>, RecordFault> {
        (0..self.count(8)?).map(|_| self.u64()).collect()
    }
    fn member(&mut self, id: ServerId) -> Result<Member, RecordFault> {
        let role = match self.u8()? {
            1 => Role::Shard,
            2 => Role::Backup,
            _ => return Err(RecordFault::Nonsense("neither a shard nor a backup")),
        };
        Ok(Member {
            id,
            role,
            address: self.text()?,
            machine: self.text()?,
            pid: self.u32()?,
            resp_cluster: self.text()?,
            name: self.text()?,
            store: self.u64()?,
        })
    }
    fn limit(&mut self) -> Result<Option<u64>, RecordFault> {
        match self.flag()? {
            true => self.u64().map(Some),
            false => Ok(None),
        }
    }
    fn limits(&mut self) -> Result<NamespaceLimits, RecordFault> {
        let (sessions, bytes) = (self.limit()?, self.limit()?);
        let value_bytes = self.limit()?.map(u32::try_from).transpose();
        Ok(NamespaceLimits {
            sessions,
            bytes,
            value_bytes: value_bytes.map_err(|_| RecordFault::Nonsense("no value is so large"))?,
            evict: match self.u8()? {
                0 => Eviction::Never,
                1 => Eviction::OldestIdle,
                _ => return Err(RecordFault::Nonsense("no way to evict that is known here")),
            },
        })
    }
    fn log(&mut self) -> Result<LogRecord, RecordFault> {
        match self.u8()? {
            1 => Ok(LogRecord::Live(LiveLog {
                minimum_epoch: Epoch(self.u64()?),
                stores: self.stores()?,
            })),
            // 2 knew nothing of leaning, 3 nothing of giving up, 4 nothing of loads.
            kind @ 2..=5 => Ok(LogRecord::Recovering(DeadLog {
                name: self.text()?,
                detected: ClusterMs(self.u64()?),
                fence: Epoch(self.u64()?),
                minimum_epoch: Epoch(self.u64()?),
                stores: self.stores()?,
                seal: match self.flag()? {
                    true => Some(Seal {
                        head: SegmentId(self.u64()?),
                        length: self.u32()?,
                        checksum: self.u32()?,
                    }),
                    false => None,
                },
                attempts: self.u64()?,
                partitions: self.partitions()?,
                lendable: match kind {
                    2 => Vec::new(),
                    _ => (self.stores()?.into_iter()).map(SegmentId).collect(),
                },
                leans: match kind {
                    2 => Vec::new(),
                    _ => self.leans()?,
                },
                abandoned: match kind {
                    2 | 3 => None,
                    _ => self.limit()?.map(Version),
                },
                loads: match kind {
                    2..=4 => Vec::new(),
                    _ => self.loads()?,
                },
            })),
            _ => Err(RecordFault::Nonsense("neither a live log nor a dead one")),
        }
    }
    fn partitions(&mut self) -> Result<Vec<Partition>, RecordFault> {
        let one = |fields: &mut Self| {
            Ok(Partition {
                attempt: fields.u64()?,
                master: ServerId(fields.u64()?),
                ranges: fields.ranges()?,
            })
        };
        (0..self.count(20)?).map(|_| one(self)).collect()
    }
    fn loads(&mut self) -> Result<Vec<SlotLoad>, RecordFault> {
        let one = |fields: &mut Self| {
            Ok(SlotLoad {
                entries: fields.u32()?,
                kib: fields.u32()?,
            })
        };
        let loads: Vec<SlotLoad> = (0..self.count(8)?)
            .map(|_| one(self))
            .collect::<Result<_, _>>()?;
        match loads.len() {
            0 | SLOT_PARTS => Ok(loads),
            _ => Err(RecordFault::Nonsense("loads of another number of parts")),
        }
    }
    fn leans(&mut self) -> Result<Vec<Lean>, RecordFault> {
        let one = |fields: &mut Self| {
            Ok(Lean {
                master: ServerId(fields.u64()?),
                by: LogId(fields.u64()?),
                attempt: fields.u64()?,
                ranges: fields.ranges()?,
            })
        };
        (0..self.count(28)?).map(|_| one(self)).collect()
    }
    fn ranges(&mut self) -> Result<Vec<SlotRange>, RecordFault> {
        (0..self.count(4)?)
            .map(|_| range(self.u16()?, self.u16()?))
            .collect()
    }
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    fn end(self) -> Result<(), RecordFault> {
        if self.is_empty() {
            Ok(())
        } else {
            Err(RecordFault::Length)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Journal;
    use holdfast_cluster::{Output, Outputs};

    fn shard(id: u64) -> Member {
        Member {
            id: ServerId(id),
            role: Role::Shard,
            address: "127.0.0.1:7400".into(),
            machine: "rack-1".into(),
            pid: 77,
            resp_cluster: "127.0.0.1:6381".into(),
            name: "master-1.0".into(),
            store: 9,
        }
    }

    fn dead() -> DeadLog {
        DeadLog {
            name: "master-2.0".into(),
            detected: ClusterMs(1_700_000_000_123),
            fence: Epoch(1 << 32),
            minimum_epoch: Epoch(3),
            stores: vec![4, 5, 6],
            seal: Some(Seal {
                head: SegmentId(12),
                length: 4096,
                checksum: 0xABCD,
            }),
            attempts: 2,
            partitions: vec![Partition {
                attempt: 2,
                master: ServerId(1),
                ranges: vec![range(9005, 9009).unwrap(), range(9100, 9100).unwrap()],
            }],
            lendable: vec![SegmentId(3), SegmentId(11)],
            leans: vec![Lean {
                master: ServerId(1),
                by: LogId(2),
                attempt: 1,
                ranges: vec![range(17, 40).unwrap()],
            }],
            abandoned: Some(Version(5 << 40)),
            loads: (0..SLOT_PARTS as u32)
                .map(|part| SlotLoad {
                    entries: part,
                    kib: 100 - part,
                })
                .collect(),
        }
    }

    /// What a store would hold after these writes.
    fn written(journal: &mut Journal) -> Vec<(String, Bytes)> {
        let mut out = Outputs::default();
        journal.commit(&mut out);
        let Some(Output::Records { token, writes }) = out.list.pop() else {
            panic!("nothing written")
        };
        journal.written(token);
        writes
            .into_iter()
            .filter_map(|w| w.value.map(|value| (w.key, value)))
            .collect()
    }

    fn limits() -> NamespaceLimits {
        NamespaceLimits {
            sessions: Some(1_000),
            bytes: None,
            value_bytes: Some(7),
            evict: Eviction::OldestIdle,
        }
    }

    fn everything() -> Vec<(String, Bytes)> {
        let mut journal = Journal::default();
        journal.put_identity(Identity {
            cluster: 42,
            replicas: 3,
            ack_quorum: 3,
        });
        journal.put_start(Start {
            generation: 5,
            clock_ceiling: ClusterMs(99),
        });
        journal.put_server(&shard(1));
        let live = LiveLog {
            minimum_epoch: Epoch(2),
            stores: vec![4, 5],
        };
        journal.put_log(LogId(1), &LogRecord::Live(live));
        journal.put_log(LogId(2), &LogRecord::Recovering(dead()));
        for (first, last, owner) in [(0, 8191, 1), (8192, 16383, 2)] {
            journal.put_tablet(&Ownership {
                range: range(first, last).unwrap(),
                owner: LogId(owner),
                epoch: Epoch(1),
            });
        }
        journal.put_namespace(Namespace(3), &limits());
        journal.put_gone(ServerId(7), 31);
        written(&mut journal)
    }

    #[test]
    fn records_come_back_as_they_were_written() {
        let found = Recorded::load(everything()).unwrap();
        assert_eq!(
            found.identity,
            Some(Identity {
                cluster: 42,
                replicas: 3,
                ack_quorum: 3,
            })
        );
        assert_eq!(
            found.start,
            Start {
                generation: 5,
                clock_ceiling: ClusterMs(99)
            }
        );
        assert_eq!(found.servers[&ServerId(1)], shard(1));
        assert_eq!(found.logs[&LogId(2)], LogRecord::Recovering(dead()));
        assert_eq!(found.tablets.len(), 2);
        assert_eq!(found.gone[&ServerId(7)], 31);
        assert_eq!(found.namespaces[&Namespace(3)], limits());
        let keys: Vec<String> = everything().into_iter().map(|(key, _)| key).collect();
        assert!(
            keys.contains(&"server/0000000000000001".to_string()),
            "{keys:?}"
        );
        assert!(keys.contains(&"tablet/08192".to_string()), "{keys:?}");
    }

    /// Every single damaged byte of every value is noticed, and none panics.
    #[test]
    fn damaged_records_are_refused() {
        let records = everything();
        for at in 0..records.len() {
            for byte in 0..records[at].1.len() {
                let mut damaged = records.clone();
                let mut value = damaged[at].1.to_vec();
                value[byte] ^= 0x20;
                damaged[at].1 = Bytes::from(value);
                let error = Recorded::load(damaged).unwrap_err();
                assert_eq!(
                    (error.key, error.why),
                    (records[at].0.clone(), RecordFault::Checksum)
                );
            }
            let mut short = records.clone();
            short[at].1.truncate(3);
            assert_eq!(Recorded::load(short).unwrap_err().why, RecordFault::Length);
        }
    }

    /// Bytes with a right checksum and wrong contents give errors, never panics.
    #[test]
    fn nonsense_is_refused_without_panic() {
        let mut dice = holdfast_cluster::Dice::new(11);
        for (key, value) in everything() {
            for _ in 0..500 {
                let mut body = value[..value.len() - 4].to_vec();
                let at = dice.below(body.len() as u64) as usize;
                body[at] = dice.roll() as u8;
                body.truncate(1 + dice.below(body.len() as u64) as usize);
                let _ = Recorded::load(vec![(key.clone(), Value(body).seal())]);
            }
        }
        let with_version = |version| vec![("cluster/start".into(), Value(vec![version]).seal())];
        assert_eq!(
            Recorded::load(with_version(9)).unwrap_err().why,
            RecordFault::UnknownVersion(9)
        );
        assert_eq!(
            Recorded::load(with_version(1)).unwrap_err().why,
            RecordFault::Length
        );
        let strange = vec![("site/1".to_string(), Value::new().seal())];
        assert_eq!(
            Recorded::load(strange).unwrap_err().why,
            RecordFault::UnknownKey
        );
    }

    #[test]
    fn records_that_contradict_each_other_are_refused() {
        for missing in [
            "cluster/identity",
            "server/0000000000000001",
            "log/0000000000000001",
            "log/0000000000000002",
            "tablet/00000",
            "tablet/08192",
        ] {
            let records = everything()
                .into_iter()
                .filter(|(key, _)| key != missing)
                .collect();
            let error = Recorded::load(records).unwrap_err();
            assert!(
                matches!(error.why, RecordFault::Nonsense(_)),
                "{missing}: {error}"
            );
        }
    }
}
