//! From what backups hold of a dead log to the list of segments to read, or the reason to wait.
//!
//! Plain functions over plain data: the rules of "Fence, seal, recover" (design notes) that decide
//! whether anything acknowledged could be missing. R1 and R2 below are replication's.
//!
//! S1. The head is open, of at least the recorded minimum epoch, and carries a digest; of these
//!     the highest whose digest is complete. One that holds nothing past its opening may be passed
//!     over for the one before: a shard may die with N+1 opened somewhere and N closed nowhere, and
//!     by R2 nothing in N+1 was then acknowledged. One that holds more may not: N was closed
//!     on all R then, whatever replica of it still looks open.
//!     For the same reason a segment that is closed anywhere is no head.
//! S2. The seal is the longest certificate among the head's replicas. Where all R acknowledge, any one that
//!     counts holds all that was acknowledged (R3), so one is enough. Where Q do, R - Q + 1 of them must be
//!     found: any so many include one of any Q (R8, and ADR 14). With fewer: wait. A head with nothing
//!     past its opening may be passed over with fewer, too, because what S1 says of it is then proved by
//!     the one before, of which as many must be found open.
//!     A replica that its backup found bad gives no head and no bytes. It tells all the same that
//!     the log was written, so a log of bad replicas alone is held and never taken for empty.
//! S3. Everything that the head's digest names has a closed replica. Otherwise: wait, and say what
//!     is missing. Closed replicas of one segment need not be equal: one that was made after the
//!     segment was compacted lacks what something durable had replaced by then. So each is listed with
//!     its own certificate, and any one is enough. Whatever was durable when it was made is in this
//!     log still, because the seal holds all that was acknowledged (S2).
//!     The head's replicas are equal as far as they reach: a segment is compacted only once the head
//!     after it is settled, and that cannot be where the log ends in this one.
//! S4. A seal once used is used again. It may be chosen anew only while nobody is taking a range
//!     over: then nobody has answered anything from the old seal about the ranges that are left,
//!     and nobody will, and both seals hold all that was acknowledged. (What was taken over by the
//!     old seal is read from this log no more.) Without this a log would wait for ever for lost
//!     backups that alone held a never acknowledged tail.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_format::{
    ClusterMs, Digest, Epoch, LogId, SEGMENT_HEADER_BYTES, SegmentId, ServerId, Version,
};
use holdfast_wire::{Certificate, Holder, Inventory, RecoverSegment, ReplicaState};

use crate::records::Seal;

/// Missing segments that a hold knows by name; more are counted. So many are 32 GB.
const MISSING_NAMED_MAX: usize = 4096;

/// And so many are named in a sentence.
const MISSING_SAID_MAX: usize = 64;

/// Why a recovery cannot go on yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// No backup that is up holds an open replica that could be the log's head.
    NoHead,
    /// Of the log's last head so few replicas are on backups that are up that others may hold more.
    TooFew {
        head: SegmentId,
        found: usize,
        needed: usize,
    },
    /// No backup that is up holds the head as far as it was sealed.
    SealNotReached(Seal),
    /// The shard leant on another dead log, of which something is missing.
    Lent { log: LogId, hold: Box<Hold> },
    /// These segments have no complete replica on any backup that is up. The first
    /// 4096 are named.
    Missing {
        segments: Vec<SegmentId>,
        count: usize,
    },
}

impl Hold {
    /// Segments without a complete replica in reach: of which log, unless of the held one itself, and how many.
    pub fn missing(&self) -> (Option<LogId>, &[SegmentId], usize) {
        match self {
            Hold::NoHead => (None, &[], 0),
            Hold::TooFew { head, .. } => (None, std::slice::from_ref(head), 1),
            Hold::SealNotReached(seal) => (None, std::slice::from_ref(&seal.head), 1),
            Hold::Missing { segments, count } => (None, segments, *count),
            Hold::Lent { log, hold } => {
                let (_, segments, count) = hold.missing();
                (Some(*log), segments, count)
            }
        }
    }

    /// The log's own end is in reach, and with it a ceiling of its versions.
    pub(crate) fn knows_the_head(&self) -> bool {
        matches!(self, Hold::Missing { .. } | Hold::Lent { .. })
    }
}

impl std::fmt::Display for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Hold::NoHead => write!(f, "no backup that is up holds the head of the log"),
            Hold::TooFew {
                head,
                found,
                needed,
            } => write!(
                f,
                "{found} of the {needed} replicas of segment {head} that are needed to know the end of the log are on \
                 backups that are up"
            ),
            Hold::SealNotReached(seal) => write!(
                f,
                "no backup that is up holds segment {} as far as its sealed length {}",
                seal.head, seal.length
            ),
            Hold::Lent { log, hold } => write!(f, "of log {log}, which it leant on, {hold}"),
            Hold::Missing { segments, count } => {
                write!(
                    f,
                    "{count} segments have no complete replica on a backup that is up:"
                )?;
                let said = segments.iter().take(MISSING_SAID_MAX);
                said.clone()
                    .try_for_each(|segment| write!(f, " {segment}"))?;
                if *count > said.len() {
                    write!(f, " …")
                } else {
                    Ok(())
                }
            }
        }
    }
}

/// All that a recovery master must be told to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    pub seal: Seal,
    pub segments: Vec<RecoverSegment>,
    pub version_ceiling: Version,
    pub expiry_floor: ClusterMs,
    /// The head holds nothing past its opening: the one before may have been closed on few replicas only (R2).
    pub bare: bool,
}

impl Reading {
    /// The segments that may be leant on: those of which as many replicas were closed as there are to be
    /// before anything followed (R2). Of the head, and perhaps of the one before, there may be fewer.
    pub(crate) fn lendable(&self, replicas: u8) -> Vec<SegmentId> {
        let on_enough = |segment: &&RecoverSegment| {
            let backups: BTreeSet<ServerId> = segment.holders.iter().map(|it| it.backup).collect();
            !self.bare || backups.len() >= usize::from(replicas)
        };
        (self.segments.iter())
            .filter(|segment| segment.segment != self.seal.head)
            .filter(on_enough)
            .map(|segment| segment.segment)
            .collect()
    }

    /// What there is to read when nobody holds the sealed head: it, and from nobody.
    pub(crate) fn out_of_reach(seal: Seal) -> Reading {
        let head = RecoverSegment {
            segment: seal.head,
            holders: Vec::new(),
        };
        Reading {
            seal,
            segments: vec![head],
            version_ceiling: Version::default(),
            expiry_floor: ClusterMs::default(),
            bare: true,
        }
    }

    /// At most: whoever reads a compacted replica has less to read.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments
            .iter()
            .map(|segment| u64::from(segment.length()))
            .sum()
    }
}

/// What is known of one segment, over all backups.
#[derive(Debug, Default)]
struct Known<'a> {
    replicas: Vec<(ServerId, &'a ReplicaState)>,
    /// A replica of which nothing can be read was closed.
    closed_bad: bool,
}

impl<'a> Known<'a> {
    fn is_closed(&self) -> bool {
        self.closed_bad || self.replicas.iter().any(|(_, replica)| replica.closed)
    }

    /// Every replica of which something is to be read, with what that is (S3).
    fn holders(&self, reads: impl Fn(&ReplicaState) -> Option<Certificate>) -> Vec<Holder> {
        let mut holders: Vec<Holder> = (self.replicas.iter())
            .filter_map(|(backup, replica)| {
                let certificate = reads(replica)?;
                Some(Holder {
                    backup: *backup,
                    certificate,
                })
            })
            .collect();
        holders.sort_by_key(|it| (it.backup, it.certificate.length, it.certificate.checksum));
        holders.dedup();
        holders
    }

    fn digest(&self) -> Option<&'a [SegmentId]> {
        self.replicas
            .iter()
            .find_map(|(_, replica)| replica.digest.as_deref())
    }
}

/// What makes a replica count, and how many of the head's must be found to tell where the log ends (S2).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counting {
    pub minimum: Epoch,
    pub needed: usize,
}

/// What must be read to recover the log, given all that backups hold. `seal` is the recorded one;
/// `may_reseal` is S4's condition.
pub(crate) fn assess(
    counting: Counting,
    seal: Option<Seal>,
    may_reseal: bool,
    inventories: &BTreeMap<ServerId, Inventory>,
) -> Result<Reading, Hold> {
    let mut known: BTreeMap<SegmentId, Known<'_>> = BTreeMap::new();
    for (backup, inventory) in inventories {
        for replica in &inventory.replicas {
            let segment = known.entry(replica.segment).or_default();
            match replica.is_bad() {
                true => segment.closed_bad |= replica.closed,
                false => segment.replicas.push((*backup, replica)),
            }
        }
    }
    let sealed = match seal {
        Some(seal) => match sealed(seal, &known) {
            Err(_) if may_reseal => choose(counting, &known),
            found => found,
        },
        None => choose(counting, &known),
    };
    let (seal, segments) = sealed?;
    let digest = known.get(&seal.head).and_then(Known::digest);
    let opening = SEGMENT_HEADER_BYTES + Digest::encoded_len(digest.map_or(0, <[SegmentId]>::len));
    Ok(Reading {
        seal,
        segments,
        version_ceiling: version_ceiling(inventories),
        expiry_floor: expiry_floor(inventories),
        bare: seal.length as usize <= opening,
    })
}

/// Where to read segments that are leant on: any closed replica of each, by its own certificate (S3). Without the
/// head, whatever became of it: its entries are in the log that leans.
pub(crate) fn lent(
    lendable: &[SegmentId],
    inventories: &BTreeMap<ServerId, Inventory>,
) -> (Vec<RecoverSegment>, Option<Hold>) {
    let mut known: BTreeMap<SegmentId, Known<'_>> = BTreeMap::new();
    for (backup, inventory) in inventories {
        for replica in inventory.replicas.iter().filter(|it| !it.is_bad()) {
            let segment = known.entry(replica.segment).or_default();
            segment.replicas.push((*backup, replica));
        }
    }
    let nothing = Known::default();
    let holders = |segment: SegmentId| {
        let replicas = known.get(&segment).unwrap_or(&nothing);
        replicas.holders(|it| it.closed.then_some(it.certificate))
    };
    let segments: Vec<RecoverSegment> = (lendable.iter())
        .map(|&segment| RecoverSegment {
            segment,
            holders: holders(segment),
        })
        .collect();
    let missing = segments.iter().filter(|it| it.holders.is_empty());
    let mut missing: Vec<SegmentId> = missing.map(|it| it.segment).collect();
    let count = missing.len();
    missing.truncate(MISSING_NAMED_MAX);
    let hold = (count > 0).then_some(Hold::Missing {
        segments: missing,
        count,
    });
    (segments, hold)
}

pub(crate) fn version_ceiling(inventories: &BTreeMap<ServerId, Inventory>) -> Version {
    let listed = inventories.values().flat_map(|it| &it.replicas);
    let ceilings = listed.map(|replica| replica.version_ceiling);
    ceilings.max().unwrap_or_default()
}

pub(crate) fn expiry_floor(inventories: &BTreeMap<ServerId, Inventory>) -> ClusterMs {
    let ceilings = inventories.values().map(|it| it.expiry_ceiling);
    ceilings.max().unwrap_or_default()
}

type Sealed = Result<(Seal, Vec<RecoverSegment>), Hold>;

/// S1 and S2.
fn choose(counting: Counting, known: &BTreeMap<SegmentId, Known<'_>>) -> Sealed {
    let Counting { minimum, needed } = counting;
    let mut first_hold = None;
    for (segment, replicas) in known.iter().rev() {
        let counts = |r: &ReplicaState| !r.closed && r.epoch >= minimum;
        let mut open = replicas.replicas.iter().filter(|(_, r)| counts(r));
        if replicas.is_closed() || !open.any(|(_, r)| r.digest.is_some()) {
            continue;
        }
        let counted = || replicas.replicas.iter().filter(|(_, r)| counts(r));
        let backups: BTreeSet<ServerId> = counted().map(|(backup, _)| *backup).collect();
        let longest = counted()
            .map(|(_, r)| r.certificate)
            .max_by_key(|certificate| (certificate.length, certificate.checksum))
            .expect("the replica that counts is one");
        let seal = Seal {
            head: *segment,
            length: longest.length,
            checksum: longest.checksum,
        };
        let found = match backups.len() {
            found if found < needed => Err(Hold::TooFew {
                head: *segment,
                found,
                needed,
            }),
            _ => sealed(seal, known),
        };
        let hold = match found {
            Ok(found) => return Ok(found),
            Err(hold) => first_hold.get_or_insert(hold),
        };
        let digest = replicas.digest().map_or(0, <[SegmentId]>::len);
        if seal.length as usize > SEGMENT_HEADER_BYTES + Digest::encoded_len(digest) {
            return Err(hold.clone());
        }
    }
    Err(first_hold.unwrap_or(Hold::NoHead))
}

/// S3, for a given seal.
fn sealed(seal: Seal, known: &BTreeMap<SegmentId, Known<'_>>) -> Sealed {
    let nothing = Known::default();
    let head = known.get(&seal.head).unwrap_or(&nothing);
    let whole = Certificate {
        length: seal.length,
        checksum: seal.checksum,
    };
    // A longer replica has the same bytes up to the seal: a log has one writer, which changes nothing that
    // it appended to a head. (Its backup looks before it serves them.)
    let reaches = |r: &ReplicaState| {
        let longer = r.certificate.length > seal.length;
        (longer || r.certificate == whole).then_some(whole)
    };
    let holders = head.holders(reaches);
    let Some(digest) = head.digest().filter(|_| !holders.is_empty()) else {
        return Err(Hold::SealNotReached(seal));
    };
    let named: BTreeSet<SegmentId> = digest.iter().copied().filter(|s| *s != seal.head).collect();
    let mut segments = Vec::with_capacity(named.len() + 1);
    let mut missing = Vec::new();
    for segment in named {
        let replicas = known.get(&segment).unwrap_or(&nothing);
        let holders = replicas.holders(|r| r.closed.then_some(r.certificate));
        match holders.is_empty() {
            false => segments.push(RecoverSegment { segment, holders }),
            true => missing.push(segment),
        }
    }
    if !missing.is_empty() {
        let count = missing.len();
        missing.truncate(MISSING_NAMED_MAX);
        return Err(Hold::Missing {
            segments: missing,
            count,
        });
    }
    segments.push(RecoverSegment {
        segment: seal.head,
        holders,
    });
    Ok((seal, segments))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_format::LogId;

    /// A replica in few words: segment, epoch, length, and the digest if it is open.
    fn open(segment: u64, epoch: u64, length: u32, digest: &[u64]) -> ReplicaState {
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

    /// Length of a head that was opened with a digest of so many segments, and no more.
    fn opening(digest: usize) -> u32 {
        (SEGMENT_HEADER_BYTES + Digest::encoded_len(digest)) as u32
    }

    fn closed(segment: u64, length: u32) -> ReplicaState {
        ReplicaState {
            closed: true,
            digest: Some(vec![]),
            ..open(segment, 1, length, &[])
        }
    }

    fn held(backups: &[(u64, Vec<ReplicaState>)]) -> BTreeMap<ServerId, Inventory> {
        let inventory = |(id, replicas): &(u64, Vec<ReplicaState>)| {
            let inventory = Inventory {
                log: LogId(1),
                epoch: Epoch(1 << 32),
                replicas: replicas.clone(),
                lease_remaining_ms: 0,
                expiry_ceiling: ClusterMs(*id),
            };
            (ServerId(*id), inventory)
        };
        backups.iter().map(inventory).collect()
    }

    fn seal(head: u64, length: u32) -> Seal {
        Seal {
            head: SegmentId(head),
            length,
            checksum: length,
        }
    }

    /// One replica tells the end.
    fn all_acknowledge(minimum: u64) -> Counting {
        Counting {
            minimum: Epoch(minimum),
            needed: 1,
        }
    }

    fn fresh(minimum: u64, backups: &[(u64, Vec<ReplicaState>)]) -> Result<Reading, Hold> {
        assess(all_acknowledge(minimum), None, true, &held(backups))
    }

    fn read(reading: &Reading) -> Vec<(u64, u32, Vec<u64>)> {
        (reading.segments.iter())
            .map(|s| {
                (
                    s.segment.0,
                    s.length(),
                    s.holders.iter().map(|h| h.backup.0).collect(),
                )
            })
            .collect()
    }

    #[test]
    fn the_longest_certificate_of_the_highest_open_segment_is_the_seal() {
        let reading = fresh(
            0,
            &[
                (10, vec![closed(1, 900), open(2, 1, 300, &[1, 2])]),
                (11, vec![closed(1, 900), open(2, 1, 340, &[1, 2])]),
                (12, vec![closed(1, 900)]),
            ],
        )
        .unwrap();
        assert_eq!(reading.seal, seal(2, 340));
        assert_eq!(
            read(&reading),
            [(1, 900, vec![10, 11, 12]), (2, 340, vec![11])]
        );
        assert_eq!(reading.version_ceiling, Version(200));
        assert_eq!(reading.expiry_floor, ClusterMs(12));
        assert_eq!(reading.bytes(), 1240);
    }

    /// R4: a backup that was away while its replica was replaced must not decide the head.
    #[test]
    fn a_stale_open_replica_is_never_the_head() {
        let stale = (10, vec![open(7, 1, 500, &[7])]);
        assert_eq!(fresh(2, std::slice::from_ref(&stale)), Err(Hold::NoHead));
        // It may be longer and later than the true one, and still does not count.
        let reading = fresh(2, &[stale, (11, vec![open(6, 2, 40, &[6])])]).unwrap();
        assert_eq!(reading.seal, seal(6, 40));
        // Nor does its certificate, where the segment is the right one.
        let reading = fresh(
            2,
            &[
                (10, vec![open(6, 1, 900, &[6])]),
                (11, vec![open(6, 2, 40, &[6])]),
            ],
        )
        .unwrap();
        assert_eq!(reading.seal, seal(6, 40));
    }

    #[test]
    fn a_closed_segment_alone_is_no_head() {
        assert_eq!(
            fresh(0, &[(10, vec![closed(1, 900), closed(2, 900)])]),
            Err(Hold::NoHead)
        );
        assert_eq!(fresh(0, &[]), Err(Hold::NoHead));
    }

    /// G7: bad replicas decide nothing but that a segment was closed, and stand for nothing.
    #[test]
    fn a_bad_replica_is_neither_head_nor_segment() {
        let bad = |segment, closed| ReplicaState::bad(SegmentId(segment), Epoch(9), closed);
        assert_eq!(fresh(0, &[(10, vec![bad(1, false)])]), Err(Hold::NoHead));
        // Another backup's good replica is all it takes.
        let good = (11, vec![closed(1, 900), open(2, 1, 300, &[1, 2])]);
        let reading = fresh(0, &[(10, vec![bad(1, true), bad(2, false)]), good.clone()]);
        assert_eq!(
            read(&reading.unwrap()),
            [(1, 900, vec![11]), (2, 300, vec![11])]
        );
        // A segment of which only bad replicas are left is missing.
        let missing = Hold::Missing {
            segments: vec![SegmentId(1)],
            count: 1,
        };
        let bad_and_head = vec![bad(1, true), open(2, 1, 300, &[1, 2])];
        assert_eq!(fresh(0, &[(10, bad_and_head)]), Err(missing));
        // Closed somewhere, readable or not: what looks open is not the head.
        assert_eq!(
            fresh(0, &[(10, vec![bad(2, true)]), good]),
            Err(Hold::NoHead)
        );
    }

    /// A copy of an old segment that is about to be closed must not hide the lost head.
    #[test]
    fn an_open_copy_of_a_closed_segment_is_no_head() {
        let copy = (11, vec![open(1, 1, 900, &[1])]);
        assert_eq!(
            fresh(0, &[(10, vec![closed(1, 900)]), copy.clone()]),
            Err(Hold::NoHead)
        );
        let reading = fresh(
            0,
            &[(10, vec![closed(1, 900), open(2, 1, 60, &[1, 2])]), copy],
        )
        .unwrap();
        assert_eq!(reading.seal, seal(2, 60));
    }

    #[test]
    fn a_segment_without_a_complete_replica_holds_the_recovery() {
        let backups = [(10, vec![closed(1, 900), open(4, 1, 300, &[1, 2, 3, 4])])];
        assert_eq!(
            fresh(0, &backups),
            Err(Hold::Missing {
                segments: vec![SegmentId(2), SegmentId(3)],
                count: 2
            })
        );
        let [first] = backups;
        let second = (11, vec![closed(2, 800), closed(3, 700)]);
        assert_eq!(read(&fresh(0, &[first, second]).unwrap()).len(), 4);
    }

    /// S1: N+1 was opened somewhere, N closed nowhere: N is the head, and nothing is lost.
    #[test]
    fn a_head_whose_successor_was_only_opened_is_still_the_head() {
        let first = (10, vec![closed(1, 900), open(2, 1, 850, &[1, 2])]);
        let opened = (11, vec![open(3, 1, opening(3), &[1, 2, 3])]);
        let reading = fresh(0, &[first.clone(), opened]).unwrap();
        assert_eq!(reading.seal, seal(2, 850));

        // With one byte more, N was closed on all R, and what looks open is not its end.
        let written = (11, vec![open(3, 1, opening(3) + 1, &[1, 2, 3])]);
        let missing = Hold::Missing {
            segments: vec![SegmentId(2)],
            count: 1,
        };
        assert_eq!(fresh(0, &[first.clone(), written]), Err(missing));

        // Once N is closed anywhere, the later one is taken and N read to its end.
        let both = (11, vec![closed(2, 860), open(3, 1, opening(3), &[1, 2, 3])]);
        let reading = fresh(0, &[first, both]).unwrap();
        assert_eq!(
            read(&reading),
            [
                (1, 900, vec![10]),
                (2, 860, vec![11]),
                (3, opening(3), vec![11])
            ]
        );
    }

    /// S3: replicas made before and after a compaction are each read by their own certificate.
    #[test]
    fn replicas_of_one_segment_may_differ() {
        let head = open(2, 1, 300, &[1, 2]);
        let backups = [
            (10, vec![closed(1, 900), head.clone()]),
            (
                11,
                vec![
                    closed(1, 500),
                    ReplicaState::bad(SegmentId(1), Epoch(1), true),
                ],
            ),
            // Made again, and the old one not freed yet when the fence came.
            (12, vec![closed(1, 900), closed(1, 200), closed(1, 200)]),
        ];
        let reading = fresh(0, &backups).unwrap();
        let found: Vec<(u64, u32)> = (reading.segments[0].holders.iter())
            .map(|holder| (holder.backup.0, holder.certificate.length))
            .collect();
        assert_eq!(found, [(10, 900), (11, 500), (12, 200), (12, 900)]);
        assert_eq!(reading.bytes(), 1_200, "of the longest");
        // The shortest alone is as good.
        let alone = [(11, vec![closed(1, 200)]), (12, vec![head])];
        assert_eq!(
            read(&fresh(0, &alone).unwrap()),
            [(1, 200, vec![11]), (2, 300, vec![12])]
        );
    }

    /// S3: of the head everybody reads what was sealed, however much more there is.
    #[test]
    fn every_holder_of_the_head_is_read_up_to_the_seal() {
        let backups = held(&[
            (10, vec![open(2, 1, 300, &[2])]),
            (11, vec![open(2, 1, 340, &[2])]),
        ]);
        let reading = assess(all_acknowledge(0), Some(seal(2, 300)), false, &backups).unwrap();
        let whole = Certificate {
            length: 300,
            checksum: 300,
        };
        let head = &reading.segments[0].holders;
        assert!(head.iter().all(|holder| holder.certificate == whole));
        assert_eq!(head.len(), 2);
    }

    #[test]
    fn segments_left_out_by_the_digest_are_not_read() {
        let reading = fresh(
            0,
            &[(
                10,
                vec![closed(1, 900), closed(2, 900), open(5, 1, 60, &[2, 5])],
            )],
        )
        .unwrap();
        assert_eq!(read(&reading), [(2, 900, vec![10]), (5, 60, vec![10])]);
    }

    #[test]
    fn a_recorded_seal_is_used_again() {
        // A longer replica has come back, and a later segment: neither moves the seal.
        let backups = held(&[
            (10, vec![open(2, 1, 300, &[2])]),
            (
                11,
                vec![
                    open(2, 1, 340, &[2]),
                    open(3, 1, 60, &[2, 3]),
                    closed(2, 340),
                ],
            ),
        ]);
        let reading = assess(all_acknowledge(0), Some(seal(2, 300)), false, &backups).unwrap();
        assert_eq!(reading.seal, seal(2, 300));
        assert_eq!(read(&reading), [(2, 300, vec![10, 11])]);
    }

    /// S4.
    #[test]
    fn a_seal_that_nobody_reaches_holds_unless_nobody_has_seen_it() {
        let backups = held(&[(10, vec![open(2, 1, 300, &[2])])]);
        let recorded = seal(2, 340);
        assert_eq!(
            assess(all_acknowledge(0), Some(recorded), false, &backups),
            Err(Hold::SealNotReached(recorded))
        );
        assert_eq!(
            assess(all_acknowledge(0), Some(recorded), true, &backups)
                .unwrap()
                .seal,
            seal(2, 300)
        );
        // Same length and other bytes: not the sealed replica.
        let other = Seal {
            checksum: 1,
            ..seal(2, 300)
        };
        assert!(assess(all_acknowledge(0), Some(other), false, &backups).is_err());
    }

    /// Two of three acknowledge: two replicas of the head tell its end.
    fn of_two(backups: &[(u64, Vec<ReplicaState>)]) -> Result<Reading, Hold> {
        let counting = Counting {
            minimum: Epoch(0),
            needed: 2,
        };
        assess(counting, None, true, &held(backups))
    }

    fn too_few(head: u64) -> Hold {
        Hold::TooFew {
            head: SegmentId(head),
            found: 1,
            needed: 2,
        }
    }

    /// S2: the longest of as many as have one in common with any that acknowledged.
    #[test]
    fn a_head_is_sealed_by_as_many_as_leave_out_no_quorum() {
        let short = (10, vec![closed(1, 900), open(2, 1, 300, &[1, 2])]);
        let long = (11, vec![open(2, 1, 340, &[1, 2])]);
        let alone = of_two(std::slice::from_ref(&short));
        assert_eq!(alone, Err(too_few(2)));
        assert_eq!(of_two(&[short.clone(), long]).unwrap().seal, seal(2, 340));
        // Two copies on one backup are one; what is stale or bad does not count.
        let twice = (
            10,
            [short.1.clone(), vec![open(2, 2, 320, &[1, 2])]].concat(),
        );
        assert_eq!(of_two(&[twice]), Err(too_few(2)));
        let bad = ReplicaState::bad(SegmentId(2), Epoch(1), false);
        assert_eq!(of_two(&[short, (11, vec![bad])]), Err(too_few(2)));
    }

    /// S1: what proves that nothing in N+1 was acknowledged is N, open on as many as seal.
    #[test]
    fn a_bare_head_on_few_backups_is_passed_over_if_the_one_before_is_open_on_enough() {
        let n = |length| vec![closed(1, 900), open(2, 1, length, &[1, 2])];
        let bare = open(3, 1, opening(3), &[1, 2, 3]);
        let opened = (12, vec![bare.clone()]);
        let both = [(10, n(850)), (11, n(870)), opened.clone()];
        assert_eq!(of_two(&both).unwrap().seal, seal(2, 870));
        // One of them alone may be a straggler.
        assert_eq!(of_two(&[(10, n(850)), opened.clone()]), Err(too_few(3)));
        // Closed somewhere: N+1 was opened everywhere, and may hold what was acknowledged.
        let closed_n = (13, vec![closed(2, 870)]);
        let three = [(10, n(850)), (11, n(870)), opened.clone(), closed_n.clone()];
        assert_eq!(of_two(&three), Err(too_few(3)));
        let found = [(10, n(850)), opened, (14, vec![bare]), closed_n];
        assert_eq!(of_two(&found).unwrap().seal, seal(3, opening(3)));
        // With more than its opening it is not passed over at all.
        let written = (12, vec![open(3, 1, opening(3) + 1, &[1, 2, 3])]);
        assert_eq!(
            of_two(&[(10, n(850)), (11, n(870)), written]),
            Err(too_few(3))
        );
    }

    #[test]
    fn a_long_list_of_missing_segments_is_cut() {
        let all: Vec<u64> = (1..=5000).collect();
        let Err(hold) = fresh(0, &[(10, vec![open(5000, 1, 300, &all)])]) else {
            panic!()
        };
        let Hold::Missing { segments, count } = &hold else {
            panic!("{hold:?}")
        };
        assert_eq!((segments.len(), *count), (MISSING_NAMED_MAX, 4999));
        let said = hold.to_string();
        assert!(said.ends_with('…') && said.len() < 500, "{said}");
    }
}
