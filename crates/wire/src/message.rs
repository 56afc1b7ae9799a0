//! What members say to each other: one-way messages between state machines.
//!
//! Nothing here is a call. A sender that needs an answer says it again until it has one, so a
//! message may be lost, doubled, delayed or overtaken without harm; each variant says what makes
//! it safe. `docs/protocol.md` gives the bytes.

use bytes::Bytes;
use holdfast_format::{
    ClientId, ClusterMs, Epoch, KeyHash, LogId, SegmentId, ServerId, SlotRange, Version,
};

use crate::command::{Command, Once, Outcome};
use crate::namespaces::{NamespacePolicy, NamespaceUse};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    // ---- membership (coordinator <-> everyone) ----
    /// Repeated until `Enlisted` comes. Idempotent by `member.id`.
    Enlist(Enlist),
    Enlisted(Enlisted),
    /// The whole view; a receiver keeps the newest by `version`.
    View(View),
    /// Every member, every heartbeat period: keeps it known, carries its clock's question and its
    /// figures. Answered by `HeartbeatReply`.
    Heartbeat(Heartbeat),
    HeartbeatReply(HeartbeatReply),
    /// Are you there? Between any two members. Answered by `Pong` with the same nonce.
    Ping {
        nonce: u64,
    },
    Pong {
        nonce: u64,
    },
    /// To the coordinator: a stream to `server` broke, or it did not answer probes. The coordinator
    /// verifies before it believes.
    Suspect {
        server: ServerId,
        ended: bool,
    },

    // ---- replication (shard <-> backup) ----
    Append(Append),
    Appended(Appended),
    AppendRefused(AppendRefused),
    /// The log needs these replicas no more. Idempotent; unknown ones are ignored.
    Free {
        log: LogId,
        segments: Vec<SegmentId>,
    },
    /// Shard to coordinator: every replica of the log's open segments now carries `epoch`; replicas
    /// open at an older one must never count as a head. Repeated until recorded.
    RaiseEpoch {
        log: LogId,
        epoch: Epoch,
    },
    EpochRecorded {
        log: LogId,
        epoch: Epoch,
    },

    // ---- recovery ----
    /// Coordinator to every backup: from now on refuse appends of `log` below `epoch`, and tell what
    /// you hold. Repeated until answered.
    Fence {
        log: LogId,
        epoch: Epoch,
    },
    Inventory(Inventory),
    /// Coordinator to a recovery master: take over `ranges` of `log`. Repeated until `Recovered` or
    /// `RecoveryFailed`; idempotent by (log, attempt).
    Recover(Recover),
    /// Recovery master to coordinator: entries replayed so far, for reports.
    RecoveryProgress {
        log: LogId,
        attempt: u64,
        entries: u64,
        bytes: u64,
        /// Of the replicas that it reads: those of which all has been replayed, and all of them.
        done_bytes: u64,
        total_bytes: u64,
    },
    /// What `Recover::first` names is replayed, replicated and in a durable digest, and of the rest either all has been
    /// replayed, or it is known which keys it is about: the recovery master can own the ranges while the rest leans
    /// on the dead log's replicas. Repeated until `Recovered` takes its place.
    Replayed {
        log: LogId,
        attempt: u64,
        entries: u64,
        bytes: u64,
        /// Of what is or will be replayed, not on all replicas yet.
        bytes_left: u64,
        timings: ReplayTimings,
    },
    /// The ranges are in the recovery master's own log, replicated and in a durable digest. Repeated
    /// until `RecoveryRecorded` comes or, if nothing leant on the dead log, the view shows the new owner.
    Recovered {
        log: LogId,
        attempt: u64,
        entries: u64,
        bytes: u64,
        timings: ReplayTimings,
    },
    /// Coordinator to a recovery master: it is on record that what it recovered depends on `log` no more.
    RecoveryRecorded {
        log: LogId,
        attempt: u64,
    },
    RecoveryFailed {
        log: LogId,
        attempt: u64,
        reason: RecoveryFailure,
    },
    /// Recovery master to backup: the entries of one replica that lie in `ranges`.
    Fetch(Fetch),
    FetchPart(FetchPart),
    /// What was asked for cannot be had here. Echoes the `Fetch`.
    FetchFailed {
        log: LogId,
        segment: SegmentId,
        attempt: u64,
        certificate: Certificate,
    },
    /// Recovery master to backup: the outlines of closed replicas (`holdfast_format::Outline`). Answered by an `Outline` for
    /// each segment; repeated, to whoever else holds it, until one has come or nobody has one.
    AskOutlines {
        log: LogId,
        attempt: u64,
        segments: Vec<SegmentId>,
    },
    /// What the segment may say something about; encoded. `None`: it is not known here. Echoes the `AskOutlines`.
    Outline {
        log: LogId,
        segment: SegmentId,
        attempt: u64,
        outline: Option<Bytes>,
    },
    /// Recovery master to backup: the entries of one key in the closed replica that has this certificate.
    LookUp {
        log: LogId,
        segment: SegmentId,
        attempt: u64,
        certificate: Certificate,
        key: KeyHash,
    },
    /// The entries, one after another; there may be none. `None`: not to be had here in this way. Echoes the `LookUp`.
    LookedUp {
        log: LogId,
        segment: SegmentId,
        attempt: u64,
        key: KeyHash,
        entries: Option<Bytes>,
    },
    /// Coordinator to backups: nobody will recover from this log again; its frames may go.
    LogGone {
        log: LogId,
    },

    // ---- data (client core <-> shard) ----
    Requests(Requests),
    Responses(Responses),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Coordinator,
    /// One shard of a master process.
    Shard,
    Backup,
    Gateway,
}

/// A member as the view describes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    pub id: ServerId,
    pub role: Role,
    /// Where its member port listens, `host:port`. Empty for gateways, which only dial.
    pub address: String,
    /// Members with the same label share a failure domain; empty: unknown, never shared.
    pub machine: String,
    /// The process, for reports.
    pub pid: u32,
    /// A shard's Redis Cluster port, `host:port`; empty otherwise.
    pub resp_cluster: String,
    /// Name for people, such as `master-1.0` or `backup-2`.
    pub name: String,
    /// Backups: the identity of the store (it outlives the incarnation). 0 otherwise.
    pub store: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Enlist {
    pub member: Member,
    /// Backups: every log of which the store holds replicas; the coordinator answers with `LogGone`
    /// for those that nobody needs.
    pub logs: Vec<LogId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Enlisted {
    pub id: ServerId,
    pub config: ClusterConfig,
    pub view: View,
}

/// What must be the same everywhere, so the coordinator says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClusterConfig {
    pub cluster: u64,
    /// Replicas of every segment; 0 is allowed and loses data when a master dies.
    pub replicas: u8,
    /// So many of them acknowledge what is appended to a head; at most `replicas`, and 0 only with none.
    pub ack_quorum: u8,
    /// How long a backup's grant lets a shard answer.
    pub lease_ms: u32,
    pub heartbeat_ms: u32,
    pub probe_ms: u32,
    /// Acknowledge when replicas are synced to disk instead of in the backups' shared mappings.
    pub ack_disk: bool,
}

impl ClusterConfig {
    /// So many replicas of a head tell where its log ends: any so many have one in common with any `ack_quorum`.
    pub fn sealing_quorum(&self) -> usize {
        assert!(self.ack_quorum <= self.replicas, "a part of all replicas");
        usize::from(self.replicas - self.ack_quorum) + 1
    }
}

/// Who is alive and who owns what. Complete: a newer view replaces an older one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct View {
    pub version: u64,
    /// Members that are up. One that is missing here and was here before has been declared dead;
    /// ids are never used again.
    pub members: Vec<Member>,
    pub tablets: Vec<Tablet>,
    /// Logs of dead shards that are being recovered, or wait for replicas.
    pub recovering: Vec<LogId>,
    /// Namespaces with limits, by number; each shard holds its share, by its part of the slots.
    pub namespaces: Vec<NamespacePolicy>,
    /// Backups that are much slower than the others: new replicas go elsewhere, if they can.
    pub slow: Vec<ServerId>,
}

/// A contiguous slot range and the log that owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tablet {
    pub range: SlotRange,
    pub owner: LogId,
    /// Raised whenever the owner changes.
    pub epoch: Epoch,
    /// False while the owner is dead and its ranges are being recovered.
    pub available: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Heartbeat {
    pub from: ServerId,
    /// The sender's own clock, echoed in the reply.
    pub sent_us: u64,
    pub view_version: u64,
    /// In a box, or they would make every message as large.
    pub figures: Box<Figures>,
    /// Shards: what there is of each namespace that has anything, by number.
    pub namespaces: Vec<NamespaceUse>,
    /// Shards: what the log has in each of the `SLOT_PARTS`, or nothing if that is not known yet.
    pub loads: Vec<SlotLoad>,
    /// Shards: how quickly backups acknowledged appends to its heads lately.
    pub append_waits: Vec<AppendWait>,
}

/// How long appends to one backup took in about a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AppendWait {
    pub backup: ServerId,
    pub appends: u32,
    /// What the one took that was under way at a moment taken at random, on average.
    pub wait_us: u32,
}

/// What a log has in some slots: live entries, and kibibytes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct SlotLoad {
    pub entries: u32,
    pub kib: u32,
}

/// A member's figures for status, placement and planning. Unused ones are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Figures {
    pub sessions: u64,
    pub bytes_used: u64,
    pub bytes_limit: u64,
    pub segments: u64,
    /// Segments of which fewer than R replicas exist.
    pub under_replicated: u64,
    pub operations: u64,
    /// Backups: bytes of frames in use and in all.
    pub disk_used: u64,
    pub disk_limit: u64,
    /// Cluster-time error bound, microseconds.
    pub clock_error_us: u64,
    /// Shards: of live entries; of garbage that the cleaner can give back; kept for the cleaner, deletes and
    /// touches; of the index; charged for completion records; held outside the log.
    pub bytes_live: u64,
    pub bytes_reclaimable: u64,
    pub bytes_reserved: u64,
    pub bytes_index: u64,
    pub bytes_records: u64,
    pub bytes_external: u64,
    /// Of the whole process, in huge pages.
    pub bytes_huge: u64,
    /// Sessions since start.
    pub expired: u64,
    pub evicted: u64,
    /// Backups: thousandths of the store that the present pass of the scrub has been over; passes ended, and bad
    /// replicas found by it, since start.
    pub scrub_permille: u64,
    pub scrub_passes: u64,
    pub scrub_bad: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeartbeatReply {
    pub sent_us: u64,
    /// Cluster time in microseconds since the Unix epoch, when the coordinator answered.
    pub cluster_us: u64,
    pub view_version: u64,
    /// False: the coordinator does not know this id (declared dead, or never enlisted). It must not
    /// serve any more and comes back, if at all, under a new id.
    pub known: bool,
}

/// What the master vouches for in one replica: bytes past `length` never count (design §1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Certificate {
    pub length: u32,
    /// CRC32C of bytes `[0, length)` of the replica.
    pub checksum: u32,
}

/// Bytes of a segment for one replica, and a request for a lease.
///
/// With no bytes and nothing to change it only renews the lease. Safe to repeat: a backup that
/// already holds the bytes acknowledges again.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Append {
    pub log: LogId,
    pub epoch: Epoch,
    pub segment: SegmentId,
    /// Where `bytes` begins. 0 with `open` begins the replica (again, dropping what was there).
    pub offset: u32,
    pub bytes: Bytes,
    /// The certificate after these bytes. `None` while an older segment is being copied in pieces:
    /// the replica does not count until its first certificate.
    pub certificate: Option<Certificate>,
    pub open: bool,
    pub close: bool,
    /// Sender's clock, echoed, from which its lease runs.
    pub sent_us: u64,
    pub lease_ms: u32,
    /// The shard answers nothing by an expiry clock later than this; a new owner's starts no earlier.
    pub expiry_ceiling: ClusterMs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Appended {
    pub log: LogId,
    pub epoch: Epoch,
    pub segment: SegmentId,
    /// The replica's bytes that are held as the acknowledgement mode demands.
    pub length: u32,
    pub closed: bool,
    /// Echo of the append's `sent_us`: the lease is granted from then.
    pub sent_us: u64,
    pub lease_ms: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AppendRefused {
    pub log: LogId,
    pub segment: SegmentId,
    pub why: Refusal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The log is fenced at this epoch: the sender may be dead and not know it. Ask the coordinator.
    Fenced { epoch: Epoch },
    /// The replica is missing, or is `length` bytes long and the append does not fit: reopen it.
    Reopen { length: u32 },
    /// No frame or no memory: choose another backup.
    Full,
    /// The frame's disk failed: choose another backup.
    Broken,
}

/// What one backup holds of a fenced log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Inventory {
    pub log: LogId,
    pub epoch: Epoch,
    pub replicas: Vec<ReplicaState>,
    /// What is left of the longest lease this backup may have granted to the log, by its own clock.
    pub lease_remaining_ms: u32,
    /// The latest `expiry_ceiling` it was told.
    pub expiry_ceiling: ClusterMs,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReplicaState {
    pub segment: SegmentId,
    /// Epoch of the last append it accepted (not of the fence).
    pub epoch: Epoch,
    pub closed: bool,
    /// Certified and verified when this was sent. A replica without a certificate is not listed. One
    /// that is known to be bad (rotten, or on a disk that failed) is listed with length 0 and no digest:
    /// nothing of it can be read, but the log was written.
    pub certificate: Certificate,
    /// The version ceiling in its segment header.
    pub version_ceiling: Version,
    /// The log digest at its start, if it has one: every segment of the log when it was opened.
    pub digest: Option<Vec<SegmentId>>,
}

impl ReplicaState {
    /// Of a replica that counted, and of which nothing can be read any more.
    pub fn bad(segment: SegmentId, epoch: Epoch, closed: bool) -> ReplicaState {
        ReplicaState {
            segment,
            epoch,
            closed,
            certificate: Certificate::default(),
            version_ceiling: Version::default(),
            digest: None,
        }
    }

    /// True for what `bad` makes: every segment begins with a header, so a good replica is never empty.
    pub fn is_bad(&self) -> bool {
        self.certificate.length == 0
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Recover {
    pub log: LogId,
    /// Rises with every attempt at this log's recovery.
    pub attempt: u64,
    pub ranges: Vec<SlotRange>,
    pub segments: Vec<RecoverSegment>,
    pub version_ceiling: Version,
    pub expiry_floor: ClusterMs,
    /// The old owner may still answer reads for so long after this message was sent.
    pub lease_remaining_ms: u32,
    /// If given, the ranges may be taken over once all is replayed and the entries of these segments are
    /// durable in the recovery master's log. Otherwise everything must be.
    pub first: Option<Vec<SegmentId>>,
    /// Other dead logs, which the shard of this one leant on when it died.
    pub leant_on: Vec<LeantOn>,
}

/// A dead log that holds a part of what another dead log's shard owned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeantOn {
    pub log: LogId,
    /// The part, within the ranges of the `Recover`.
    pub ranges: Vec<SlotRange>,
    pub segments: Vec<RecoverSegment>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RecoverSegment {
    pub segment: SegmentId,
    /// Any one of them is enough.
    pub holders: Vec<Holder>,
}

impl RecoverSegment {
    /// Bytes of the longest of its replicas: what has to be read at most. 0 if there are none.
    pub fn length(&self) -> u32 {
        let lengths = self.holders.iter().map(|holder| holder.certificate.length);
        lengths.max().unwrap_or(0)
    }
}

/// A replica from which a segment can be recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    pub backup: ServerId,
    /// What is to be read of it. Of a closed replica its own certificate: replicas of one segment need
    /// not be byte-equal, one may have been made after compaction. Of the head the seal, beyond which
    /// the replica may go on.
    pub certificate: Certificate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecoveryFailure {
    OutOfMemory,
    /// No holder could serve this segment.
    SegmentMissing(SegmentId),
}

/// Milliseconds since the recovery master received `Recover`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct ReplayTimings {
    pub first_byte_ms: u32,
    pub replayed_ms: u32,
    pub replicated_ms: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fetch {
    pub log: LogId,
    pub segment: SegmentId,
    /// The recovery master's own number of its attempt, which tells several fetches of one segment apart.
    pub attempt: u64,
    /// Which replica, and how much of it: the bytes `[0, length)` that have this checksum.
    pub certificate: Certificate,
    pub ranges: Vec<SlotRange>,
}

/// Whole entries, as they stand in the replica, whose slot lies in the ranges of the `Fetch`.
/// `part` counts from 0; a receiver that misses one fetches the segment again. Everything up to the
/// certificate echoes the `Fetch`: parts of two replicas do not make one segment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FetchPart {
    pub log: LogId,
    pub segment: SegmentId,
    pub attempt: u64,
    pub certificate: Certificate,
    pub part: u32,
    pub last: bool,
    pub entries: Bytes,
}

/// Commands of one client for one shard.
///
/// A `stream` is one attempt to talk to the shard in order: `first` is the index in it of
/// `items[0]`, and a shard executes indexes without gaps, those of one slot in order, so commands of one client keep their
/// order even over a network that loses or reorders. After silence or a broken connection the
/// client starts a higher stream and sends everything unanswered again, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requests {
    pub client: ClientId,
    pub stream: u64,
    pub first: u64,
    pub items: Vec<Request>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// The client's own number for the request, echoed in the response.
    pub token: u64,
    /// Present on writes; a write without it is refused.
    pub once: Option<Once>,
    pub command: Command,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Responses {
    pub client: ClientId,
    pub stream: u64,
    pub items: Vec<Response>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Response {
    pub token: u64,
    pub outcome: Outcome,
}
