//! One replica as its backup knows it, and what an append would make of it.
//!
//! P1. Once a replica has a certificate, it covers all of its bytes.
//! P2. `crc` is that of all its bytes; unknown only if the bytes came in an earlier incarnation. Such
//!     a replica is never appended to.
//! P3. A closed replica never changes.
//! P4. A segment's replicas may differ: once it is closed its master may compact it, and what it copies from
//!     then on is shorter. A certificate tells what is what; an append that was made of other bytes
//!     than the replica at hand is refused when it is certified, and closes nothing. Whichever was closed
//!     under a certificate of its own is a whole replica.

use holdfast_format::{
    ClusterMs, Epoch, HeaderKind, LogId, Opening, SegmentId, ServerId, Version, crc32c,
    crc32c_extend,
};
use holdfast_wire::{Append, Certificate};

use crate::outlines::Outlined;

/// A replica in a frame.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    pub log: LogId,
    pub segment: SegmentId,
    /// Names this replica among all that its frame ever held in this incarnation.
    pub birth: u64,
    /// Of the last append that was accepted.
    pub epoch: Epoch,
    pub length: u32,
    pub crc: Option<u32>,
    /// Length and checksum of the append that opened it: by these a late duplicate is known.
    pub opening: Certificate,
    /// Of the latest append that was accepted: its master's stamp, which rises with every append that it sends.
    pub sent_us: u64,
    /// What its first bytes say, if they came in this incarnation and in one piece. A fence is answered from
    /// it without reading anything.
    pub told: Option<Told>,
    pub outline: Outlined,
    /// `None` while it is copied in pieces: it does not count.
    pub certificate: Option<Certificate>,
    pub closed: bool,
    pub ceiling: ClusterMs,
    /// Its bytes came, or were read and verified, in this incarnation.
    pub checked: bool,
    /// Its bytes were read and are not what is certified. It serves nothing, is never appended to, and
    /// stays listed as bad (B4). Its header goes on saying what was certified, so that the next
    /// incarnation, if it is asked, finds out again.
    pub rotten: bool,
    /// Found at start, and not claimed by its master since.
    pub restored: bool,
    /// What the older header slot certifies, should the newer one's bytes turn out not to have
    /// reached the disk (H2 of the header).
    pub fallback: Option<Certificate>,
    /// The acknowledgement owed once what is held has been synced.
    pub owed: Option<Grant>,
    /// When the last append came, for telling the abandoned.
    pub active_us: u64,
}

/// What `Inventory` says of a replica's contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub version_ceiling: Version,
    /// Of a head that is open. What is closed is no head (S1 of the coordinator's inventory), and the digests of
    /// all closed heads would fill the memory.
    pub digest: Option<Vec<SegmentId>>,
}

impl Told {
    /// What the append that opens a replica says, unless part of the opening is still to come.
    pub fn by(bytes: &[u8], log: LogId, segment: SegmentId) -> Option<Told> {
        let opening = Opening::parse(bytes).ok()?;
        let header = opening.header;
        let whole = header.kind == HeaderKind::Side || opening.digest.is_some();
        let right = (header.log, header.segment) == (log, segment);
        (whole && right).then_some(Told {
            version_ceiling: header.version_ceiling,
            digest: opening.digest,
        })
    }
}

/// To whom an acknowledgement goes, and the lease it grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub to: ServerId,
    pub epoch: Epoch,
    pub sent_us: u64,
    pub lease_ms: u32,
}

/// What a frame's header promises of a certified replica. An acknowledgement that waits for the disk
/// waits until this is synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Promise {
    pub certificate: Certificate,
    pub closed: bool,
    pub epoch: Epoch,
    pub fence: Epoch,
    pub ceiling: ClusterMs,
}

/// What an append does to a replica that it fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fit {
    /// Bytes of the append that are held already.
    pub skip: usize,
    pub crc: u32,
    /// The new certificate, if it brings one for all bytes.
    pub certificate: Option<Certificate>,
    pub close: bool,
}

/// Why an append does not go onto a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misfit {
    /// It begins past the end, changes what is closed, or lacks a certificate that it needs.
    Elsewhere,
    /// Its certificate and the bytes disagree: this replica and the master's segment differ.
    Differs,
}

impl Replica {
    pub fn promise(&self, fence: Epoch) -> Option<Promise> {
        Some(Promise {
            certificate: self.certificate?,
            closed: self.closed,
            epoch: self.epoch,
            fence,
            ceiling: self.ceiling,
        })
    }

    /// Where `append`, which does not open, would go (R1).
    pub fn fit(&self, append: &Append) -> Result<Fit, Misfit> {
        let crc = self.crc.ok_or(Misfit::Elsewhere)?;
        let end = append.offset as u64 + append.bytes.len() as u64;
        let length = u64::from(self.length);
        if u64::from(append.offset) > length {
            return Err(Misfit::Elsewhere);
        }
        if end < length {
            if append.certificate.is_some() && self.certificate.is_none() {
                // Its sender would take the acknowledgement for that of a replica that counts.
                return Err(Misfit::Elsewhere);
            }
            if append.close && !self.closed {
                // It would end before what is here: bytes of a compacted segment (P4).
                return Err(Misfit::Elsewhere);
            }
            // A duplicate of something older. Its certificate cannot be judged any more and adds nothing.
            return Ok(Fit {
                skip: append.bytes.len(),
                crc,
                certificate: None,
                close: false,
            });
        }
        let skip = (self.length - append.offset) as usize;
        let fresh = &append.bytes[skip..];
        if self.closed && !fresh.is_empty() {
            return Err(Misfit::Elsewhere);
        }
        let crc = crc32c_extend(crc, fresh);
        let certificate = match append.certificate {
            Some(certificate) if u64::from(certificate.length) != end => {
                return Err(Misfit::Elsewhere);
            }
            Some(certificate) if certificate.checksum != crc => return Err(Misfit::Differs),
            Some(certificate) => Some(certificate),
            // P1, and an overlap can be trusted only if a certificate vouches for it.
            None if !fresh.is_empty() && (self.certificate.is_some() || skip > 0) => {
                return Err(Misfit::Elsewhere);
            }
            None => self.certificate,
        };
        if append.close && certificate.is_none() {
            return Err(Misfit::Elsewhere);
        }
        Ok(Fit {
            skip,
            crc,
            certificate,
            close: append.close && !self.closed,
        })
    }

    /// True if `append`, which opens, is the one that opened this replica, come again: then what was
    /// appended since must not be dropped. One that was sent after what was appended since is none: its master has given
    /// this replica up, and begins another.
    pub fn was_opened_by(&self, append: &Append) -> bool {
        // A certificate for less than is here cannot be taken over, and must not be acknowledged as if.
        let certifies = append.certificate.is_none()
            || self.certificate.is_some()
            || self.length as usize == append.bytes.len();
        let is_late = append.sent_us <= self.sent_us;
        let is_all = self.length as usize == append.bytes.len();
        !self.closed
            && self.crc.is_some()
            && (is_late || is_all)
            && certifies
            && self.opening.length as usize == append.bytes.len()
            && self.opening.checksum == crc32c(&append.bytes)
    }

    /// True if `append` asks for just what this closed replica is.
    pub fn is_claimed_by(&self, append: &Append) -> bool {
        self.closed && !self.rotten && append.close && append.certificate == self.certificate
    }

    /// What it is, if that is known without reading it: its bytes came in this incarnation, and each was checked
    /// against a certificate when it came.
    pub fn known(&self) -> Option<(Certificate, &Told)> {
        let told = self.told.as_ref().filter(|_| self.checked)?;
        Some((self.certificate?, told))
    }

    /// True if nothing is lost when `other`, of the same segment, goes and `self` stays.
    pub fn supersedes(&self, other: &Replica) -> bool {
        let Some(certificate) = self.certificate else {
            return false;
        };
        let Some(theirs) = other.certificate else {
            return self.checked;
        };
        let as_good = match (self.closed, other.closed) {
            (true, true) => true,
            (false, true) => false,
            (true, false) => self.epoch >= other.epoch,
            (false, false) => self.epoch >= other.epoch && certificate.length >= theirs.length,
        };
        self.checked && as_good
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn replica(bytes: &[u8], certified: bool, closed: bool) -> Replica {
        let certificate = Certificate {
            length: bytes.len() as u32,
            checksum: crc32c(bytes),
        };
        Replica {
            log: LogId(1),
            segment: SegmentId(1),
            birth: 1,
            epoch: Epoch(2),
            length: bytes.len() as u32,
            crc: Some(crc32c(bytes)),
            opening: certificate,
            sent_us: 0,
            told: None,
            outline: Outlined::Unknown,
            certificate: certified.then_some(certificate),
            closed,
            ceiling: ClusterMs(0),
            checked: true,
            rotten: false,
            restored: false,
            fallback: None,
            owed: None,
            active_us: 0,
        }
    }

    /// An append of `all[offset..]` with a certificate over `all`.
    fn append(all: &'static [u8], offset: usize, certified: bool, close: bool) -> Append {
        Append {
            log: LogId(1),
            epoch: Epoch(2),
            segment: SegmentId(1),
            offset: offset as u32,
            bytes: Bytes::from_static(&all[offset..]),
            certificate: certified.then(|| Certificate {
                length: all.len() as u32,
                checksum: crc32c(all),
            }),
            open: false,
            close,
            sent_us: 0,
            lease_ms: 0,
            expiry_ceiling: ClusterMs(0),
        }
    }

    /// R1: accepted only at the replica's length, after the certificate was checked.
    #[test]
    fn appends_fit_at_the_length_and_nowhere_else() {
        let open = replica(b"abc", true, false);
        assert_eq!(
            open.fit(&append(b"abcdef", 3, true, false)).unwrap().skip,
            0
        );
        // An overlap that the certificate vouches for.
        assert_eq!(
            open.fit(&append(b"abcdef", 1, true, false)).unwrap().skip,
            2
        );
        assert_eq!(
            open.fit(&append(b"abcdef", 4, true, false)),
            Err(Misfit::Elsewhere)
        );
        assert_eq!(
            open.fit(&append(b"abXdef", 3, true, false)),
            Err(Misfit::Differs)
        );
        // P1: a certified replica takes nothing uncertified.
        assert_eq!(
            open.fit(&append(b"abcdef", 3, false, false)),
            Err(Misfit::Elsewhere)
        );
        let pending = replica(b"abc", false, false);
        assert!(pending.fit(&append(b"abcdef", 3, false, false)).is_ok());
        assert_eq!(
            pending.fit(&append(b"abcdef", 2, false, false)),
            Err(Misfit::Elsewhere)
        );
        assert_eq!(
            pending.fit(&append(b"abc", 3, false, true)),
            Err(Misfit::Elsewhere)
        );
    }

    #[test]
    fn duplicates_fit_and_change_nothing() {
        let closed = replica(b"abcdef", true, true);
        let fit = closed.fit(&append(b"abc", 1, true, false)).unwrap();
        assert_eq!((fit.certificate, fit.close), (None, false));
        let fit = closed.fit(&append(b"abcdef", 3, true, true)).unwrap();
        assert_eq!((fit.skip, fit.close), (3, false));
        // P3.
        assert_eq!(
            closed.fit(&append(b"abcdefg", 6, true, true)),
            Err(Misfit::Elsewhere)
        );
    }

    /// P4: the close of a compacted segment is no duplicate of something older in an open replica.
    #[test]
    fn a_shorter_close_does_not_fit_a_longer_open_replica() {
        let open = replica(b"abcdef", true, false);
        assert_eq!(
            open.fit(&append(b"abd", 2, true, true)),
            Err(Misfit::Elsewhere)
        );
        let closed = replica(b"abcdef", true, true);
        let fit = closed.fit(&append(b"abd", 2, true, true)).unwrap();
        assert_eq!((fit.skip, fit.certificate, fit.close), (1, None, false));
    }

    #[test]
    fn nothing_unverified_or_shorter_takes_a_place() {
        let long = replica(b"abcdef", true, false);
        let short = replica(b"abc", true, false);
        let closed = replica(b"abcdef", true, true);
        assert!(long.supersedes(&short) && !short.supersedes(&long));
        assert!(closed.supersedes(&long) && !long.supersedes(&closed));
        let unread = Replica {
            checked: false,
            ..closed.clone()
        };
        assert!(!unread.supersedes(&short));
        let newer = Replica {
            epoch: Epoch(3),
            ..short.clone()
        };
        assert!(!closed.supersedes(&newer) && !long.supersedes(&newer));
    }
}
