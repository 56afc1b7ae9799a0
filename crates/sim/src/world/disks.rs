//! What backups do to their disks, and how long it takes.

use holdfast_cluster::DiskOp;

use super::{Event, World};
use crate::faults::Fault;
use crate::network::PlaceId;

impl World {
    pub(super) fn disk(&mut self, place: PlaceId, op: DiskOp, in_us: u64) {
        let incarnation = self.places[place.0].incarnation;
        let manners = self.places[place.0].disk;
        match op {
            DiskOp::Write {
                frame,
                offset,
                bytes,
            } => {
                self.store(place).write(frame, offset, &bytes);
            }
            DiskOp::Sync { token, frame } => {
                let mark = self.store(place).sync_begin(frame);
                let fails = self.chance.per_million(manners.sync_errors_ppm);
                if fails {
                    self.counts.count(Fault::SyncError);
                }
                let delay_us = (300 + self.chance.exponential(700)) * manners.slow_factor;
                let event = Event::Sync {
                    place,
                    incarnation,
                    token,
                    frame,
                    mark,
                    fails,
                };
                self.schedule(in_us + delay_us, event);
            }
            DiskOp::Read {
                token,
                frame,
                offset,
                length,
                from_medium: _,
            } => {
                let fails = self.chance.per_million(manners.read_errors_ppm);
                if fails {
                    self.counts.count(Fault::ReadError);
                }
                let transfer_us = u64::from(length) / 500;
                let delay_us =
                    (80 + self.chance.exponential(100) + transfer_us) * manners.slow_factor;
                let span = (offset, length);
                let event = Event::Read {
                    place,
                    incarnation,
                    token,
                    frame,
                    span,
                    fails,
                };
                self.schedule(in_us + delay_us, event);
            }
        }
    }
}
