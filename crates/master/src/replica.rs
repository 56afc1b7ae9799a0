//! One replica of one segment, as its master sees it, and what it needs next.
//!
//! What is wanted and what was acknowledged decide the next message; there is no other state, so a new
//! replica, a repeated message and a replica begun again are all the same case.

use holdfast_cluster::Now;
use holdfast_format::{ClusterMs, Epoch, ServerId};

/// What one replica is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Bytes that may be sent by now.
    pub length: u32,
    /// It is to be closed at `length`, and may be.
    pub close: bool,
    /// It must not count before it is closed: survivors, replayed segments, and heads that were
    /// closed on all replicas once (an open copy of one would look like the end of the log).
    pub only_closed: bool,
    /// It must hear from us even if there is nothing to write: a new epoch, or its lease runs out.
    pub tell: bool,
}

/// What its backup has acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Held {
    pub opened: bool,
    pub length: u32,
    /// CRC32C of `[0, length)`.
    pub checksum: u32,
    /// It counts: its certificate says `length`.
    pub certified: bool,
    pub closed: bool,
    pub epoch: Epoch,
}

/// One append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub from: u32,
    pub to: u32,
    pub open: bool,
    pub close: bool,
    pub certify: bool,
}

/// The next append that a replica needs, if any.
///
/// A replica without certificate is copied in pieces of `piece_bytes`.
pub(crate) fn next_step(wanted: &Wanted, held: &Held, piece_bytes: u32) -> Option<Piece> {
    // A closed one may be longer: the segment has been compacted since.
    if held.closed || wanted.length == 0 {
        return None;
    }
    assert!(
        held.length <= wanted.length,
        "a backup acknowledged bytes never sent"
    );
    let (from, open) = (held.length, !held.opened);
    if held.certified {
        // A certificate must not fall inside an atomic append, so all that accumulated goes at once.
        let due = from < wanted.length || wanted.close || wanted.tell;
        let piece = Piece {
            from,
            to: wanted.length,
            open,
            close: wanted.close,
            certify: true,
        };
        return due.then_some(piece);
    }
    let to = wanted.length.min(from + piece_bytes);
    let certify = to == wanted.length && (wanted.close || !wanted.only_closed);
    let due = open || from < to || certify;
    due.then_some(Piece {
        from,
        to,
        open,
        close: certify && wanted.close,
        certify,
    })
}

/// An append that was sent and not acknowledged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight {
    pub piece: Piece,
    /// CRC32C of `[0, piece.to)`.
    pub checksum: u32,
    /// `sent_us` of the first and the last time it was sent. No two appends of a log carry the same, so
    /// an acknowledgement says to which it belongs.
    pub first_stamp_us: u64,
    pub last_stamp_us: u64,
    /// The ceilings that it carried then.
    pub first_ceiling: ClusterMs,
    pub last_ceiling: ClusterMs,
    pub resend_at_us: u64,
    pub resend_after_us: u64,
}

/// One replica.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    pub backup: ServerId,
    pub held: Held,
    pub in_flight: Option<InFlight>,
    /// A certificate of it was sent while it was to stay open: its backup may believe it the head.
    pub may_count_open: bool,
    /// By our clock, less the drift allowance.
    pub lease_until_us: u64,
    pub lease_sent_us: u64,
    /// The expiry ceiling that its backup remembers.
    pub ceiling: ClusterMs,
    /// Nothing is sent before this (it refused us as fenced).
    pub pause_until_us: u64,
}

impl Replica {
    /// Nothing is known to be on `backup` yet.
    pub fn new(backup: ServerId) -> Replica {
        Replica {
            backup,
            held: Held::default(),
            in_flight: None,
            may_count_open: false,
            lease_until_us: 0,
            lease_sent_us: 0,
            ceiling: ClusterMs::default(),
            pause_until_us: 0,
        }
    }

    /// How long its append under way has been so.
    pub fn waits_us(&self, now: Now) -> Option<u64> {
        let in_flight = self.in_flight?;
        Some(now.mono_us.saturating_sub(in_flight.first_stamp_us))
    }

    /// Other bytes are to be copied from now on: nothing that was sent or acknowledged is of any use. False
    /// if there was nothing yet.
    pub fn begin_again(&mut self) -> bool {
        let begun = self.held.opened || self.in_flight.is_some();
        self.held = Held::default();
        self.in_flight = None;
        begun
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE_BYTES: u32 = 1 << 20;

    fn check(wanted: (u32, bool, bool), held: (u32, bool), step: Option<(u32, u32, &str)>) {
        let (length, close, only_closed) = wanted;
        let wanted = Wanted {
            length,
            close,
            only_closed,
            tell: false,
        };
        let held = Held {
            opened: held.0 > 0,
            length: held.0,
            certified: held.1,
            ..Held::default()
        };
        let flags = |piece: &Piece| {
            [(piece.open, 'o'), (piece.certify, 'c'), (piece.close, 'x')]
                .iter()
                .filter(|(set, _)| *set)
                .map(|(_, letter)| *letter)
                .collect::<String>()
        };
        let piece = next_step(&wanted, &held, PIECE_BYTES);
        let given = piece.map(|piece| (piece.from, piece.to, flags(&piece)));
        assert_eq!(
            given,
            step.map(|(from, to, flags)| (from, to, flags.to_owned()))
        );
    }

    #[test]
    fn a_head_is_opened_extended_and_closed_under_certificates() {
        check((100, false, false), (0, false), Some((0, 100, "oc")));
        check((100, false, false), (100, true), None);
        check((900, false, false), (100, true), Some((100, 900, "c")));
        check((900, true, false), (100, true), Some((100, 900, "cx")));
        check((900, true, false), (900, true), Some((900, 900, "cx")));
    }

    #[test]
    fn a_copy_counts_only_when_it_is_whole() {
        let whole = 2 * PIECE_BYTES + 5;
        check(
            (whole, false, false),
            (0, false),
            Some((0, PIECE_BYTES, "o")),
        );
        check(
            (whole, false, false),
            (PIECE_BYTES, false),
            Some((PIECE_BYTES, 2 * PIECE_BYTES, "")),
        );
        check(
            (whole, false, false),
            (2 * PIECE_BYTES, false),
            Some((2 * PIECE_BYTES, whole, "c")),
        );
    }

    #[test]
    fn a_closed_replica_needs_nothing_however_short_its_segment_has_become() {
        let wanted = Wanted {
            length: 100,
            close: true,
            only_closed: true,
            tell: true,
        };
        let held = Held {
            opened: true,
            length: 900,
            certified: true,
            closed: true,
            ..Held::default()
        };
        assert_eq!(next_step(&wanted, &held, PIECE_BYTES), None);
    }

    #[test]
    fn survivors_and_closed_heads_never_count_while_open() {
        check((100, false, true), (0, false), Some((0, 100, "o")));
        check((100, false, true), (100, false), None);
        check((100, true, true), (100, false), Some((100, 100, "cx")));
        check((100, true, true), (0, false), Some((0, 100, "ocx")));
    }
}
