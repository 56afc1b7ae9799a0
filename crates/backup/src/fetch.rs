//! Serving recovery masters: the entries of a replica that lie in the slots they take over.
//!
//! Fetches wait in one queue. The first few are worked on: read (or found in the cache), verified,
//! and cut into parts, one part per step, so that neither a step nor the memory in use grows with
//! what is asked for.

use bytes::Bytes;
use holdfast_cluster::{FrameId, Level, Outputs};
use holdfast_format::{ServerId, crc32c};
use holdfast_wire::{Fetch, FetchPart, Message};

use crate::backup::Backup;
use crate::contents::Contents;

/// One fetch, waiting or being served.
#[derive(Debug)]
pub(crate) struct FetchJob {
    to: ServerId,
    fetch: Fetch,
    frame: FrameId,
    /// A read of the frame was asked for, on this one's or another's behalf.
    asked: bool,
    /// The verified replica up to the sealed length.
    bytes: Option<Bytes>,
    /// Of these bytes, if they are not in the cache as they are.
    contents: Contents,
    /// Bytes examined so far.
    at: usize,
    part: u32,
}

impl Backup {
    pub(crate) fn take_fetch(&mut self, from: ServerId, fetch: Fetch, out: &mut Outputs) {
        let is_same = |job: &FetchJob| {
            let key = |fetch: &Fetch| (fetch.log, fetch.segment, fetch.attempt, fetch.certificate);
            job.to == from && key(&job.fetch) == key(&fetch)
        };
        if self.fetches.iter().any(is_same) {
            return;
        }
        self.counts.fetches += 1;
        let of_requester = self.fetches.iter().filter(|job| job.to == from).count();
        let full = self.fetches.len() >= self.config.fetches_queued_max as usize
            || of_requester >= self.config.fetches_per_requester_max as usize;
        let Some(frame) = self.source(&fetch).filter(|_| !full) else {
            return self.fail_fetch(from, &fetch, out);
        };
        self.fetches.push_back(FetchJob {
            to: from,
            fetch,
            frame,
            asked: false,
            bytes: None,
            contents: Contents::default(),
            at: 0,
            part: 0,
        });
    }

    /// The replica to serve it from: the one that has this certificate, or else a longer one that is open
    /// or was, for the log may end within it. Whether it has the bytes is seen when they are read.
    fn source(&self, fetch: &Fetch) -> Option<FrameId> {
        let copies = self.frames.of_segment(fetch.log, fetch.segment).iter();
        copies
            .filter_map(|&id| {
                let replica = self.frames.replica(id)?;
                let certificate = replica.certificate.filter(|_| !replica.rotten)?;
                let exact = certificate == fetch.certificate;
                let longer = certificate.length > fetch.certificate.length;
                (exact || longer).then_some((exact, replica.closed, id))
            })
            .max()
            .map(|(_, _, id)| id)
    }

    /// What was asked for of the verified bytes of a replica, if they have it: replicas of one segment
    /// may differ, so the length alone proves nothing.
    fn asked_for(&self, fetch: &Fetch, frame: FrameId, bytes: &Bytes) -> Option<Bytes> {
        let asked = fetch.certificate;
        let held = self.frames.replica(frame)?.certificate?;
        if bytes.len() < asked.length as usize {
            // Part of it had not reached the disk: another holder has all.
            return None;
        }
        let bytes = bytes.slice(..asked.length as usize);
        (held == asked || crc32c(&bytes) == asked.checksum).then_some(bytes)
    }

    /// How many fetches, from the first, are worked on: those of the first few replicas. Several recovery masters
    /// ask for the same one, which is read once for all of them.
    fn active(&self) -> usize {
        let replicas_max = self.config.reads_in_flight_max as usize;
        if self.fetches.len() <= replicas_max {
            return self.fetches.len();
        }
        let mut frames: Vec<FrameId> = Vec::with_capacity(replicas_max);
        for (index, job) in self.fetches.iter().enumerate() {
            if frames.contains(&job.frame) {
                continue;
            }
            if frames.len() == replicas_max {
                return index;
            }
            frames.push(job.frame);
        }
        self.fetches.len()
    }

    /// Gets bytes for the first few fetches.
    pub(crate) fn pump_fetches(&mut self) {
        for index in 0..self.active() {
            let job = &self.fetches[index];
            if job.bytes.is_some() || job.asked {
                continue;
            }
            let (frame, length) = (job.frame, job.fetch.certificate.length);
            let replica = self
                .frames
                .replica(frame)
                .expect("fetches go with their replica");
            let cached = self.cache.get(frame, replica.birth, length);
            let job = &self.fetches[index];
            let found = cached.and_then(|bytes| self.asked_for(&job.fetch, frame, &bytes));
            let job = &mut self.fetches[index];
            match found {
                Some(bytes) => {
                    self.counts.cache_hits += 1;
                    job.bytes = Some(bytes);
                }
                // If what is cached is not it, the read will say so.
                None => {
                    job.asked = true;
                    self.reads.want(frame);
                }
            }
        }
    }

    /// The replica in `id` has been read and verified.
    pub(crate) fn fetch_read(&mut self, id: FrameId, bytes: &Bytes, out: &mut Outputs) {
        let mut failed = Vec::new();
        let mut fetches = std::mem::take(&mut self.fetches);
        fetches.retain_mut(|job| {
            if job.frame != id || !job.asked || job.bytes.is_some() {
                return true;
            }
            job.bytes = self.asked_for(&job.fetch, id, bytes);
            if job.bytes.is_none() {
                failed.push((job.to, job.fetch.clone()));
            }
            job.bytes.is_some()
        });
        self.fetches = fetches;
        for (to, fetch) in failed {
            self.fail_fetch(to, &fetch, out);
        }
    }

    pub(crate) fn is_fetched(&self, id: FrameId) -> bool {
        self.fetches.iter().any(|job| job.frame == id)
    }

    pub(crate) fn has_fetch_work(&self) -> bool {
        let mut active = self.fetches.iter().take(self.active());
        active.any(|job| job.bytes.is_some())
    }

    /// Sends the next part of one fetch: of the one that had the fewest.
    pub(crate) fn serve_fetch(&mut self, out: &mut Outputs) {
        let next = (self.fetches.iter())
            .take(self.active())
            .enumerate()
            .filter(|(_, job)| job.bytes.is_some())
            .min_by_key(|(_, job)| job.part)
            .map(|(index, _)| index);
        let Some(index) = next else {
            return;
        };
        let job = &mut self.fetches[index];
        let bytes = job.bytes.as_ref().expect("chosen for having them");
        let part_bytes = self.config.fetch_part_bytes as usize;
        let contents = (self.cache.contents(job.frame, bytes)).unwrap_or(&mut job.contents);
        let cut = contents.cut(bytes, job.at, &job.fetch.ranges, part_bytes);
        let (entries, next) = match cut {
            Ok(cut) => cut,
            Err(bad) => {
                let job = self.fetches.remove(index).expect("indexed above");
                let (log, segment) = (job.fetch.log, job.fetch.segment);
                out.event(
                    Level::Error,
                    format!("segment {segment} of log {log} is as its master certified it, and makes no sense: {bad}"),
                );
                return self.fail_fetch(job.to, &job.fetch, out);
            }
        };
        job.at = next;
        let last = next == bytes.len();
        if last || !entries.is_empty() {
            self.counts.fetched_bytes += entries.len() as u64;
            let part = FetchPart {
                log: job.fetch.log,
                segment: job.fetch.segment,
                attempt: job.fetch.attempt,
                certificate: job.fetch.certificate,
                part: job.part,
                last,
                entries,
            };
            job.part += 1;
            out.send(job.to, Message::FetchPart(part));
        }
        if last {
            self.fetches.remove(index);
        }
    }

    /// The replica in `id` is about to go: who still waits for its bytes must ask elsewhere. Those whose
    /// bytes have been read and verified are served.
    pub(crate) fn fail_fetches(&mut self, id: FrameId, out: &mut Outputs) {
        let mut failed = Vec::new();
        self.fetches.retain(|job| {
            let waits = job.frame == id && job.bytes.is_none();
            if waits {
                failed.push((job.to, job.fetch.clone()));
            }
            !waits
        });
        for (to, fetch) in failed {
            self.fail_fetch(to, &fetch, out);
        }
    }

    pub(crate) fn forget_requester(&mut self, peer: ServerId) {
        self.fetches.retain(|job| job.to != peer);
    }

    fn fail_fetch(&mut self, to: ServerId, fetch: &Fetch, out: &mut Outputs) {
        self.counts.fetches_failed += 1;
        let (log, segment, attempt) = (fetch.log, fetch.segment, fetch.attempt);
        let certificate = fetch.certificate;
        out.send(
            to,
            Message::FetchFailed {
                log,
                segment,
                attempt,
                certificate,
            },
        );
    }
}
