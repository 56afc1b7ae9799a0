//! The appends themselves: what each replica needs next, what is sent again, and when.

use bytes::{Bytes, BytesMut};
use holdfast_cluster::{Now, Outputs};
use holdfast_format::{SegmentId, crc32c_extend};
use holdfast_log::{Log, SegmentKind};
use holdfast_wire::{Append, Certificate, Message};

use super::{RESEND_MAX_US, RESEND_MIN_US, Raise, Replicas, Surroundings};
use crate::replica::{InFlight, Wanted, next_step};

impl Replicas {
    /// Sends each replica of a segment what it needs next, or again what it did not acknowledge.
    pub(super) fn send(
        &mut self,
        now: Now,
        id: SegmentId,
        around: &Surroundings<'_>,
        log: &Log,
        out: &mut Outputs,
    ) {
        // Out of the map while the others are looked at.
        let mut segment = self.segments.remove(&id).expect("busy segments are known");
        let wanted = self.wanted_of(&segment);
        let is_open_head = !segment.sealed && segment.goal.kind != SegmentKind::Side;
        let replicas_wanted = self.wanted.expect("set before anything is shipped");
        segment.establish(replicas_wanted);
        let sealed = segment.sealed;
        if segment.on_all(replicas_wanted, |held| {
            held.certified && (held.closed || !sealed)
        }) {
            segment.short = false;
        }
        // What is being copied is the same everywhere (R7), and most replicas are at the same point: copy and
        // checksum once.
        let mut made: Vec<(u32, u32, Bytes, u32)> = Vec::new();
        for replica in &mut segment.replicas {
            if now.mono_us < replica.pause_until_us {
                continue;
            }
            let in_flight = match replica.in_flight {
                Some(in_flight) if now.mono_us < in_flight.resend_at_us => continue,
                Some(in_flight) => {
                    self.counts.resends += 1;
                    Some(in_flight)
                }
                None => None,
            };
            let piece = match in_flight {
                Some(in_flight) => in_flight.piece,
                None => {
                    let renew_at_us = replica.lease_sent_us + self.renew_after_us();
                    let tell = is_open_head
                        && (replica.held.epoch < self.epoch || renew_at_us <= now.mono_us);
                    match next_step(&Wanted { tell, ..wanted }, &replica.held, self.piece_bytes) {
                        Some(piece) => piece,
                        None => continue,
                    }
                }
            };
            let stamp_us = now.mono_us.max(self.last_stamp_us + 1);
            self.last_stamp_us = stamp_us;
            let known = made
                .iter()
                .find(|made| (made.0, made.1) == (piece.from, piece.to));
            let (bytes, checksum) = match known {
                Some((_, _, bytes, checksum)) => (bytes.clone(), *checksum),
                None => {
                    let bytes = gathered(log, id, piece.from, piece.to);
                    let checksum = crc32c_extend(replica.held.checksum, &bytes);
                    made.push((piece.from, piece.to, bytes.clone(), checksum));
                    (bytes, checksum)
                }
            };
            replica.may_count_open |= piece.certify && !piece.close;
            replica.in_flight = Some(match in_flight {
                Some(in_flight) => InFlight {
                    last_stamp_us: stamp_us,
                    last_ceiling: around.ceiling,
                    resend_at_us: now.mono_us + in_flight.resend_after_us,
                    resend_after_us: (2 * in_flight.resend_after_us).min(RESEND_MAX_US),
                    ..in_flight
                },
                None => InFlight {
                    piece,
                    checksum,
                    first_stamp_us: stamp_us,
                    last_stamp_us: stamp_us,
                    first_ceiling: around.ceiling,
                    last_ceiling: around.ceiling,
                    resend_at_us: now.mono_us + RESEND_MIN_US,
                    resend_after_us: 2 * RESEND_MIN_US,
                },
            });
            self.counts.appends += 1;
            self.counts.append_bytes += bytes.len() as u64;
            let append = Append {
                log: self.log,
                epoch: self.epoch,
                segment: id,
                offset: piece.from,
                bytes,
                certificate: piece.certify.then_some(Certificate {
                    length: piece.to,
                    checksum,
                }),
                open: piece.open,
                close: piece.close,
                sent_us: stamp_us,
                // Only the backups of open heads can be asked for the end of the log; a lease from
                // any other would only make a takeover wait.
                lease_ms: if is_open_head { self.lease_ms } else { 0 },
                expiry_ceiling: around.ceiling,
            };
            out.send(replica.backup, Message::Append(append));
        }
        self.segments.insert(id, segment);
    }

    pub(super) fn renew_after_us(&self) -> u64 {
        u64::from(self.lease_ms) * 1_000 / 4
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        let heads = self.open_heads.iter().map(|id| &self.segments[id]);
        let renewals = heads
            .flat_map(|segment| &segment.replicas)
            .filter_map(|replica| {
                let due_us = replica.lease_sent_us + self.renew_after_us();
                let idle =
                    replica.in_flight.is_none() && replica.held.certified && !replica.held.closed;
                idle.then_some(due_us.max(replica.pause_until_us))
            });
        let resends = (self.busy.iter())
            .flat_map(|id| &self.segments[id].replicas)
            .filter_map(|replica| {
                let in_flight = replica.in_flight?;
                Some(in_flight.resend_at_us.max(replica.pause_until_us))
            });
        let frees = self.frees.wakeup();
        let avoided = self.avoided.values().copied();
        let recording = match self.raise {
            Raise::Recording { due_us } => Some(due_us),
            Raise::Settled | Raise::Telling => None,
        };
        renewals
            .chain(resends)
            .chain(frees)
            .chain(avoided)
            .chain(recording)
            .min()
    }
}

/// A segment's bytes in one buffer that outlives the borrow of the log.
fn gathered(log: &Log, segment: SegmentId, from: u32, to: u32) -> Bytes {
    let mut bytes = BytesMut::with_capacity((to - from) as usize);
    (log.bytes(segment, from, to)).for_each(|piece| bytes.extend_from_slice(piece));
    assert_eq!(
        bytes.len(),
        (to - from) as usize,
        "the pieces are the whole"
    );
    bytes.freeze()
}
