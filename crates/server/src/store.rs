//! A backup's store on disk: one directory, one process at a time.
//!
//! ```text
//! dir/lock       held by the process that has the store open
//! dir/identity   text: format version, the store's id, segment size, checksum
//! dir/frames     frame 0 | frame 1 | …    each FRAME_HEADER_BYTES and then room for one segment
//! ```
//!
//! D1. What `write` has returned from survives the death of every process: it is in the kernel's
//!     page cache, shared with the file.
//! D2. What was written before `sync` began survives power failure once it has returned `Ok`.
//! D3. After the first failed sync every sync fails, and so does every one that overlapped it. The
//!     kernel reports a lost page once, to whoever syncs any part of the file, so no frame's success
//!     would mean anything.
//! D4. A frame's place on disk is allocated before its first byte is written, so that a full disk is
//!     met at a step's border and not in the middle of a replica.
//!
//! The file is written with `pwrite` and not through the mapping: an append costs a system call
//! more, but filling fresh pages costs fewer faults, a full disk is an error and no SIGBUS, and there is no
//! `unsafe`. The mapping is there for `msync`, which syncs the range of one frame where `fdatasync` would
//! wait for the dirty pages of all.
//!
//! A write into pages that the kernel does not have yet costs several times one into pages that it has, mostly where memory
//! is fresh to a virtual machine, too. Frames are used from the first on, so a store has the kernel read, ahead of the
//! writers, as many bytes that were never written as it has had written: there is no disk in that, and the pages may be taken away again.
//!
//! Copies of whole segments come by the megabyte, and pass the page cache by (`direct`).
//!
//! Threads: any. `write` to a frame comes from one thread at a time.

mod direct;

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut, Read, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;
use holdfast_cluster::{DiskError, FRAME_HEADER_BYTES, FrameId};
use holdfast_format::crc32c;
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{Advice, FallocateFlags, FlockOperation};
use rustix::io::{Errno, ReadWriteFlags};

use crate::buffers::Buffers;
use direct::Direct;

const FORMAT_VERSION: u32 = 1;

/// Memory kept for reading replicas: those being read, and those that several recovery masters ask for.
const BUFFERS_KEPT_BYTES: u64 = 64 << 20;

/// Disk is allocated in steps of this: large enough that steps are rare, small enough that a store
/// which holds little takes little.
const STEP_BYTES: u64 = 64 << 20;

/// What is read for one key, as a rule. For more the buffers are made that are used again.
const SMALL_READ_BYTES: u32 = 128 << 10;

/// So much at most is read ahead of the writers, and so much at a time.
const AHEAD_BYTES_MAX: u64 = 256 << 20;
const AHEAD_STEP_BYTES: u64 = 1 << 20;

/// Why a lock here is never poisoned.
const LOCKED_BRIEFLY: &str = "nothing that could panic happens under this lock";

/// An open store.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    identity: u64,
    frames: u32,
    frame_bytes: u64,
    file: File,
    /// Where the file system has it.
    direct: Option<Direct>,
    map: MmapRaw,
    /// For reading.
    buffers: Arc<Buffers>,
    /// Bytes of the file for which disk has been allocated by this process.
    allocated: Mutex<u64>,
    /// Bytes written through the page cache.
    buffered: AtomicU64,
    ahead: Mutex<Ahead>,
    /// Locked for moments only, never while the disk is waited for.
    syncs: Mutex<Syncs>,
    /// Told whenever a sync has ended.
    sync_ended: Condvar,
    /// Unlocks the directory when dropped, last.
    _lock: File,
}

/// What the kernel was asked to have in memory for writers.
#[derive(Debug, Default)]
struct Ahead {
    /// Up to here it had pages at some time.
    to: u64,
    /// So many bytes were read for that, in all.
    made: u64,
}

/// Syncs under way, by number, and whether one has failed (D3).
#[derive(Debug, Default)]
struct Syncs {
    next: u64,
    under_way: BTreeSet<u64>,
    failed: bool,
}

/// Why a store could not be opened: for the person who starts the backup.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path} is in use by another process; stop it, or give this one its own directory", path = .0.display())]
    Locked(PathBuf),
    #[error("{path} was written by format version {found}, this program knows {FORMAT_VERSION}; use the program that wrote it, or another directory", path = .path.display())]
    Version { path: PathBuf, found: u32 },
    #[error("{path} is damaged ({why}); if other backups have what it held, move the directory away and start with an empty one", path = .path.display())]
    Identity { path: PathBuf, why: &'static str },
    #[error("{path} was made for segments of {found} bytes and {asked} are configured; use the same size, or another directory", path = .path.display())]
    SegmentBytes {
        path: PathBuf,
        found: u32,
        asked: u32,
    },
    #[error("{path} may grow by {needed} bytes more and its disk has {free} free; make room, or lower --disk", path = .path.display())]
    DiskFull {
        path: PathBuf,
        needed: u64,
        free: u64,
    },
    #[error("cannot {what} {path}: {error}", path = .path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        error: io::Error,
    },
}

impl Store {
    /// Opens the store in `dir`, and makes it if there is none. It gets `frames` frames, or as many as an
    /// older, larger one has in use.
    pub fn open(dir: &Path, frames: u32, segment_bytes: u32) -> Result<Store, StoreError> {
        std::fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        let lock = lock(dir)?;
        let path = dir.join("frames");
        let identity = match Identity::load(dir)? {
            Some(identity) => identity,
            None if path.exists() => {
                return Err(StoreError::Identity {
                    path: dir.join("identity"),
                    why: "there are frames and no identity",
                });
            }
            None => Identity::create(dir, segment_bytes)?,
        };
        if identity.segment_bytes != segment_bytes {
            return Err(StoreError::SegmentBytes {
                path: dir.to_path_buf(),
                found: identity.segment_bytes,
                asked: segment_bytes,
            });
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io_error("open", &path))?;
        let frame_bytes = u64::from(FRAME_HEADER_BYTES) + u64::from(segment_bytes);
        let frames =
            frames.max(frames_in_use(&file, frame_bytes).map_err(io_error("read", &path))?);
        let length = u64::from(frames) * frame_bytes;
        check_room(&file, &path, length)?;
        file.set_len(length).map_err(io_error("resize", &path))?;
        let map = MmapOptions::new()
            .map_raw(&file)
            .map_err(io_error("map", &path))?;
        let path_of_frames = path.clone();
        Ok(Store {
            path,
            identity: identity.id,
            frames,
            frame_bytes,
            direct: Direct::open(&path_of_frames),
            file,
            map,
            buffers: Buffers::new(
                frame_bytes as usize,
                (BUFFERS_KEPT_BYTES / frame_bytes).max(1) as usize,
            ),
            allocated: Mutex::new(0),
            buffered: AtomicU64::new(0),
            ahead: Mutex::default(),
            syncs: Mutex::default(),
            sync_ended: Condvar::new(),
            _lock: lock,
        })
    }

    /// Has memory ready for a recovery, which will read much at once.
    pub fn prepare_to_read(&self) {
        self.buffers.prepare();
    }

    /// Has the kernel make some pages that are written next; false if there are enough for now. Takes up to a few
    /// milliseconds, and may be given up at any time.
    pub fn prepare_to_write(&self) -> io::Result<bool> {
        let written = *self.allocated.lock().expect(LOCKED_BRIEFLY);
        let length = u64::from(self.frames) * self.frame_bytes;
        let wanted = (written + written.min(AHEAD_BYTES_MAX)).min(length);
        let mut ahead = self.ahead.lock().expect(LOCKED_BRIEFLY);
        let from = written.max(ahead.to);
        // As many as have come into use, and no more: what passes the page cache by needs none.
        let buffered = self.buffered.load(Ordering::Relaxed);
        if from >= wanted || ahead.made >= buffered.next_multiple_of(STEP_BYTES) {
            return Ok(false);
        }
        let step = AHEAD_STEP_BYTES.min(wanted - from);
        let mut nothing = vec![0; step as usize];
        self.file.read_exact_at(&mut nothing, from)?;
        ahead.to = from + step;
        ahead.made += step;
        Ok(true)
    }

    /// The store's own id, which outlives every incarnation of its backup.
    pub fn identity(&self) -> u64 {
        self.identity
    }

    /// How many frames there are.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// The header block of every frame: all zero if it was never written.
    pub fn headers(&self) -> Result<Vec<(FrameId, Bytes)>, StoreError> {
        (0..self.frames)
            .map(|frame| {
                let mut header = vec![0; FRAME_HEADER_BYTES as usize];
                let at = u64::from(frame) * self.frame_bytes;
                self.file
                    .read_exact_at(&mut header, at)
                    .map_err(io_error("read", &self.path))?;
                Ok((FrameId(frame), Bytes::from(header)))
            })
            .collect()
    }

    /// D1. Copies `bytes` into the frame.
    ///
    /// # Panics
    /// If the machine cannot take them. The backup has been promised that they are there (its
    /// acknowledgement is the next thing to leave), so a process that cannot keep the promise must end.
    pub fn write(&self, frame: FrameId, offset: u32, bytes: &[u8]) {
        let at = self.place(frame, offset, bytes.len());
        let written =
            (self.allocate(at + bytes.len() as u64)).and_then(|()| self.write_at(bytes, at));
        if let Err(error) = written {
            let path = self.path.display();
            panic!(
                "cannot write to {path}: {error}; make room or repair the disk, then start again"
            );
        }
    }

    /// D2, D3. Waits for the disk: for a thread that may block.
    pub fn sync(&self, frame: FrameId) -> Result<(), DiskError> {
        let at = self.place(frame, 0, 0);
        let number = {
            let mut syncs = self.syncs.lock().expect(LOCKED_BRIEFLY);
            let number = syncs.next;
            syncs.next += 1;
            syncs.under_way.insert(number);
            number
        };
        let flushed = self.map.flush_range(at as usize, self.frame_bytes as usize);
        let mut syncs = self.syncs.lock().expect(LOCKED_BRIEFLY);
        syncs.under_way.remove(&number);
        syncs.failed |= flushed.is_err();
        self.sync_ended.notify_all();
        // One that overlapped this one may have been told of the page that this one lost.
        let began_later = syncs.next;
        while syncs
            .under_way
            .first()
            .is_some_and(|&other| other < began_later)
        {
            syncs = self.sync_ended.wait(syncs).expect(LOCKED_BRIEFLY);
        }
        match flushed {
            Err(error) => Err(DiskError(format!(
                "cannot sync {}: {error}",
                self.path.display()
            ))),
            Ok(()) if syncs.failed => Err(DiskError(
                "another sync of the store failed; nothing is certain since".into(),
            )),
            Ok(()) => Ok(()),
        }
    }

    /// A few bytes of a frame, as they were last written, if the kernel has them in memory: takes microseconds. `None`: it
    /// has not, or they are more than a few.
    pub fn read_at_once(&self, frame: FrameId, offset: u32, length: u32) -> Option<Bytes> {
        let at = self.place(frame, offset, length as usize);
        if length > SMALL_READ_BYTES {
            return None;
        }
        let mut buffer = vec![0; length as usize];
        let mut room = [IoSliceMut::new(&mut buffer)];
        let read = rustix::io::preadv2(&self.file, &mut room, at, ReadWriteFlags::NOWAIT);
        (read == Ok(length as usize)).then(|| buffer.into())
    }

    /// Reads bytes of a frame, as they were last written. Waits for the disk.
    pub fn read(&self, frame: FrameId, offset: u32, length: u32) -> Result<Bytes, DiskError> {
        let at = self.place(frame, offset, length as usize);
        let failed = |error: &dyn std::fmt::Display| {
            DiskError(format!("cannot read {}: {error}", self.path.display()))
        };
        if length <= SMALL_READ_BYTES {
            let mut buffer = vec![0; length as usize];
            let read = self.file.read_exact_at(&mut buffer, at);
            return read.map(|()| buffer.into()).map_err(|error| failed(&error));
        }
        let mut buffer = self.buffers.take();
        let length = length as usize;
        // What memory has, then the rest from the disk, past it.
        let mut cached = [IoSliceMut::new(&mut buffer[..length])];
        let cached = rustix::io::preadv2(&self.file, &mut cached, at, ReadWriteFlags::NOWAIT);
        let mut filled = cached.unwrap_or(0);
        let direct = self.direct.as_ref().filter(|_| filled < length);
        if direct.is_some_and(|direct| direct.read(&mut buffer, filled, length, at)) {
            filled = length;
        }
        while filled < length {
            let room = &mut buffer[filled..length];
            match rustix::io::pread(&self.file, room, at + filled as u64) {
                Ok(0) => return Err(failed(&"the file ends")),
                Ok(more) => filled += more,
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        Ok(self.buffers.lend(buffer, filled))
    }

    /// The same, but from the disk: a read that memory answers says nothing about it. Where the page cache cannot be passed by,
    /// the kernel is asked to forget what it has of them; bytes that are not written back yet stay then.
    pub fn read_from_medium(
        &self,
        frame: FrameId,
        offset: u32,
        length: u32,
    ) -> Result<Bytes, DiskError> {
        let at = self.place(frame, offset, length as usize);
        if let Some(direct) = &self.direct {
            let mut buffer = self.buffers.take();
            if direct.read(&mut buffer, 0, length as usize, at) {
                return Ok(self.buffers.lend(buffer, length as usize));
            }
        }
        let span = NonZeroU64::new(u64::from(length));
        // Advice: where it is not taken, the read is what it would have been.
        let _ = rustix::fs::fadvise(&self.file, at, span, Advice::DontNeed);
        self.read(frame, offset, length)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let direct = self.direct.as_ref();
        let written = direct.map_or(0..0, |direct| direct.write(bytes, at));
        let (before, after) = (&bytes[..written.start], &bytes[written.end..]);
        let buffered = (before.len() + after.len()) as u64;
        self.buffered.fetch_add(buffered, Ordering::Relaxed);
        self.file.write_all_at(before, at)?;
        self.file.write_all_at(after, at + written.end as u64)
    }

    /// Where in the file. The backup was told how many frames there are and how long they are.
    fn place(&self, frame: FrameId, offset: u32, length: usize) -> u64 {
        assert!(frame.0 < self.frames, "{frame:?} of {} frames", self.frames);
        assert!(
            u64::from(offset) + length as u64 <= self.frame_bytes,
            "{length} bytes at {offset} reach past the end of {frame:?}"
        );
        u64::from(frame.0) * self.frame_bytes + u64::from(offset)
    }

    /// D4.
    fn allocate(&self, to: u64) -> io::Result<()> {
        let mut allocated = self.allocated.lock().expect(LOCKED_BRIEFLY);
        if to <= *allocated {
            return Ok(());
        }
        let length = u64::from(self.frames) * self.frame_bytes;
        let end = to.next_multiple_of(STEP_BYTES).min(length);
        match rustix::fs::fallocate(
            &self.file,
            FallocateFlags::empty(),
            *allocated,
            end - *allocated,
        ) {
            // A file system without preallocation: `write` finds out whether there is room.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
        *allocated = end;
        Ok(())
    }
}

/// What makes a directory a store.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    id: u64,
    segment_bytes: u32,
}

impl Identity {
    fn load(dir: &Path) -> Result<Option<Identity>, StoreError> {
        let path = dir.join("identity");
        let mut text = Vec::new();
        match File::open(&path) {
            // A real one has about 80 bytes.
            Ok(file) => file
                .take(4096)
                .read_to_end(&mut text)
                .map_err(io_error("read", &path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("open", &path)(error)),
        };
        Identity::parse(&text, &path).map(Some)
    }

    fn create(dir: &Path, segment_bytes: u32) -> Result<Identity, StoreError> {
        let identity = Identity {
            id: crate::clock::random(),
            segment_bytes,
        };
        let (path, fresh) = (dir.join("identity"), dir.join("identity.new"));
        let write = || {
            let mut file = File::create(&fresh)?;
            file.write_all(identity.text().as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&fresh, &path)?;
            File::open(dir)?.sync_all()
        };
        write().map_err(io_error("write", &path))?;
        Ok(identity)
    }

    fn text(&self) -> String {
        let text = format!(
            "holdfast-store {FORMAT_VERSION}\nidentity {:016x}\nsegment_bytes {}\n",
            self.id, self.segment_bytes
        );
        let crc = crc32c(text.as_bytes());
        format!("{text}crc32c {crc:08x}\n")
    }

    /// The version is looked at first: another one may have other lines after it.
    fn parse(text: &[u8], path: &Path) -> Result<Identity, StoreError> {
        let damaged = |why| StoreError::Identity {
            path: path.to_path_buf(),
            why,
        };
        let text = std::str::from_utf8(text).map_err(|_| damaged("it is not text"))?;
        let mut lines = text.lines();
        let mut field =
            |name: &str| -> Option<&str> { lines.next()?.strip_prefix(name)?.strip_prefix(' ') };
        let version = field("holdfast-store").and_then(|version| version.parse().ok());
        match version {
            None => return Err(damaged("it does not begin as a store's identity")),
            Some(FORMAT_VERSION) => {}
            Some(found) => {
                return Err(StoreError::Version {
                    path: path.to_path_buf(),
                    found,
                });
            }
        }
        let id = field("identity").and_then(|id| u64::from_str_radix(id, 16).ok());
        let segment_bytes = field("segment_bytes").and_then(|bytes| bytes.parse().ok());
        let (Some(id), Some(segment_bytes)) = (id, segment_bytes) else {
            return Err(damaged("a line is missing"));
        };
        let identity = Identity { id, segment_bytes };
        if identity.text() != text {
            return Err(damaged("its checksum does not match"));
        }
        Ok(identity)
    }
}

/// One process at a time. The kernel lets go of it when the process ends, however it ends.
fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io_error("open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(StoreError::Locked(dir.to_path_buf())),
        Err(error) => Err(io_error("lock", &path)(error.into())),
    }
}

/// One past the last frame whose header was ever written.
fn frames_in_use(file: &File, frame_bytes: u64) -> io::Result<u32> {
    let there = u32::try_from(file.metadata()?.len() / frame_bytes).unwrap_or(u32::MAX);
    let mut header = vec![0; FRAME_HEADER_BYTES as usize];
    for frame in (0..there).rev() {
        file.read_exact_at(&mut header, u64::from(frame) * frame_bytes)?;
        if header.iter().any(|&byte| byte != 0) {
            return Ok(frame + 1);
        }
    }
    Ok(0)
}

/// Refuses to start what could not grow to its bound: better now than in the middle of the night.
fn check_room(file: &File, path: &Path, length: u64) -> Result<(), StoreError> {
    use std::os::unix::fs::MetadataExt;
    let has = file.metadata().map_err(io_error("look at", path))?.blocks() * 512;
    let disk =
        rustix::fs::fstatvfs(file).map_err(|error| io_error("look at", path)(error.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let needed = length.saturating_sub(has);
    if needed > free {
        return Err(StoreError::DiskFull {
            path: path.to_path_buf(),
            needed,
            free,
        });
    }
    Ok(())
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreError + 'a {
    move |error| StoreError::Io {
        what,
        path: path.to_path_buf(),
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const SEGMENT: u32 = 64 << 10;

    fn dir() -> TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn what_was_written_is_there_after_reopening() {
        let dir = dir();
        let store = Store::open(dir.path(), 4, SEGMENT).unwrap();
        let identity = store.identity();
        store.write(FrameId(2), 0, b"header");
        store.write(FrameId(2), FRAME_HEADER_BYTES + SEGMENT - 3, b"end");
        store.sync(FrameId(2)).unwrap();
        store.write(FrameId(3), 5, b"not synced");
        drop(store);

        let store = Store::open(dir.path(), 4, SEGMENT).unwrap();
        assert_eq!(store.identity(), identity);
        let headers = store.headers().unwrap();
        assert_eq!(headers.len(), 4);
        assert!(headers[0].1.iter().all(|&byte| byte == 0));
        assert_eq!(&headers[2].1[..6], b"header");
        let end = store
            .read(FrameId(2), FRAME_HEADER_BYTES + SEGMENT - 3, 3)
            .unwrap();
        assert_eq!(&end[..], b"end");
        assert_eq!(&store.read(FrameId(3), 5, 10).unwrap()[..], b"not synced");
    }

    #[test]
    fn as_much_is_read_ahead_as_was_written_and_nothing_is_changed_by_it() {
        let dir = dir();
        let store = Store::open(dir.path(), 2_100, SEGMENT).unwrap();
        let length = 2_100 * (u64::from(FRAME_HEADER_BYTES) + u64::from(SEGMENT));
        assert!(length > 2 * STEP_BYTES);
        let run = || {
            while store.prepare_to_write().unwrap() {}
            store.ahead.lock().unwrap().to
        };
        assert_eq!(run(), 0, "nothing was written, nothing is read");
        store.write(FrameId(3), 7, b"written");
        assert_eq!(run(), 2 * STEP_BYTES);
        store.write(FrameId(2_099), 7, b"the end");
        assert_eq!(run(), 2 * STEP_BYTES, "there is nothing after the end");
        assert_eq!(&store.read(FrameId(3), 7, 7).unwrap()[..], b"written");
        assert_eq!(&store.read(FrameId(2_099), 7, 7).unwrap()[..], b"the end");
        assert!(
            store
                .read(FrameId(1_500), 0, 64)
                .unwrap()
                .iter()
                .all(|byte| *byte == 0)
        );
    }

    /// What was just written is in memory; a few bytes of it need no thread, and many are read as they ever were.
    #[test]
    fn reads_of_all_lengths_tell_the_same() {
        let dir = dir();
        let segment_bytes = 4 * SMALL_READ_BYTES;
        let store = Store::open(dir.path(), 2, segment_bytes).unwrap();
        let bytes: Vec<u8> = (0..segment_bytes).map(|at| (at % 251) as u8).collect();
        store.write(FrameId(1), FRAME_HEADER_BYTES, &bytes);
        for (from, length) in [(0, 1), (777, SMALL_READ_BYTES), (5, SMALL_READ_BYTES + 1)] {
            let at = FRAME_HEADER_BYTES + from;
            let wanted = &bytes[from as usize..(from + length) as usize];
            assert_eq!(store.read(FrameId(1), at, length).unwrap(), wanted);
            let at_once = store.read_at_once(FrameId(1), at, length);
            assert!(at_once.is_none_or(|it| it == wanted && length <= SMALL_READ_BYTES));
        }
    }

    /// Through the page cache or past it, in pieces of all lengths: what was written last is read.
    #[test]
    fn whatever_way_bytes_take_they_are_the_same() {
        let dir = dir();
        let segment_bytes = 3 << 20;
        let store = Store::open(dir.path(), 2, segment_bytes).unwrap();
        let frame_bytes = FRAME_HEADER_BYTES + segment_bytes;
        let mut wanted = vec![0; frame_bytes as usize];
        let mut state = 1_u32;
        let mut below = |end: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((u64::from(state) * u64::from(end)) >> 32) as u32
        };
        let mut past = 0;
        for round in 0..80 {
            let length_max = [5_000, 300_000, frame_bytes][below(3) as usize];
            let length = 1 + below(length_max);
            let at = match below(2) {
                0 => below(frame_bytes - length + 1),
                _ => below(frame_bytes - length + 1) / 4096 * 4096,
            };
            let (from, to) = (at as usize, (at + length) as usize);
            wanted[from..to].fill(round);
            let before = store.buffered.load(Ordering::Relaxed);
            store.write(FrameId(1), at, &wanted[from..to]);
            past += u64::from(length) - (store.buffered.load(Ordering::Relaxed) - before);
            if below(4) == 0 {
                store.sync(FrameId(1)).unwrap();
            }
            let length = 1 + below(frame_bytes);
            let at = below((frame_bytes - length) / 4096 + 1) * 4096;
            let (from, to) = (at as usize, (at + length) as usize);
            let read = match below(3) {
                0 => store.read_from_medium(FrameId(1), at, length),
                _ => store.read(FrameId(1), at, length),
            };
            assert!(
                read.unwrap() == wanted[from..to],
                "{length} at {at} in round {round}"
            );
        }
        assert_eq!(past > 0, store.direct.is_some());
    }

    #[test]
    fn syncs_of_many_threads_all_end() {
        let dir = dir();
        let store = Store::open(dir.path(), 8, SEGMENT).unwrap();
        std::thread::scope(|scope| {
            for frame in 0..8 {
                let store = &store;
                scope.spawn(move || {
                    for round in 0..20u8 {
                        store.write(FrameId(frame), FRAME_HEADER_BYTES, &[round; 512]);
                        store.sync(FrameId(frame)).unwrap();
                    }
                });
            }
        });
    }

    #[test]
    fn only_one_process_has_it() {
        let dir = dir();
        let store = Store::open(dir.path(), 4, SEGMENT).unwrap();
        let refused = Store::open(dir.path(), 4, SEGMENT).unwrap_err();
        assert!(matches!(refused, StoreError::Locked(_)), "{refused}");
        assert!(refused.to_string().contains("in use by another process"));
        drop(store);
        Store::open(dir.path(), 4, SEGMENT).unwrap();
    }

    #[test]
    fn identities_differ_and_damage_to_one_is_refused() {
        let (one, two) = (dir(), dir());
        let first = Store::open(one.path(), 4, SEGMENT).unwrap().identity();
        assert_ne!(
            first,
            Store::open(two.path(), 4, SEGMENT).unwrap().identity()
        );

        let path = one.path().join("identity");
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            let refused = Store::open(one.path(), 4, SEGMENT).unwrap_err();
            assert!(
                matches!(
                    refused,
                    StoreError::Identity { .. } | StoreError::Version { .. }
                ),
                "byte {at}: {refused}"
            );
        }
        std::fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(Store::open(one.path(), 4, SEGMENT).is_err());
        std::fs::write(&path, &good).unwrap();
        assert_eq!(
            Store::open(one.path(), 4, SEGMENT).unwrap().identity(),
            first
        );
        std::fs::remove_file(&path).unwrap();
        let refused = Store::open(one.path(), 4, SEGMENT).unwrap_err();
        assert!(matches!(refused, StoreError::Identity { .. }), "{refused}");
    }

    #[test]
    fn another_version_or_segment_size_is_refused() {
        let dir = dir();
        drop(Store::open(dir.path(), 4, SEGMENT).unwrap());
        let refused = Store::open(dir.path(), 4, 2 * SEGMENT).unwrap_err();
        assert!(
            matches!(refused, StoreError::SegmentBytes { found: SEGMENT, .. }),
            "{refused}"
        );
        std::fs::write(
            dir.path().join("identity"),
            "holdfast-store 2\nsomething new\n",
        )
        .unwrap();
        let refused = Store::open(dir.path(), 4, SEGMENT).unwrap_err();
        assert!(
            matches!(refused, StoreError::Version { found: 2, .. }),
            "{refused}"
        );
    }

    #[test]
    fn it_grows_and_never_shrinks_below_what_is_used() {
        let dir = dir();
        let store = Store::open(dir.path(), 8, SEGMENT).unwrap();
        store.write(FrameId(5), 0, b"used");
        drop(store);
        let store = Store::open(dir.path(), 4, SEGMENT).unwrap();
        assert_eq!(store.frames(), 6);
        assert_eq!(&store.headers().unwrap()[5].1[..4], b"used");
        drop(store);
        let store = Store::open(dir.path(), 16, SEGMENT).unwrap();
        assert_eq!(store.frames(), 16);
        store.write(FrameId(15), 0, b"new");
        assert_eq!(&store.read(FrameId(15), 0, 3).unwrap()[..], b"new");
    }

    #[test]
    fn a_bound_that_the_disk_cannot_hold_is_refused_at_once() {
        let dir = dir();
        let refused = Store::open(dir.path(), 4_000_000_000, SEGMENT).unwrap_err();
        assert!(matches!(refused, StoreError::DiskFull { .. }), "{refused}");
    }

    #[test]
    #[should_panic(expected = "reach past the end")]
    fn nothing_is_written_past_a_frame() {
        let dir = dir();
        let store = Store::open(dir.path(), 4, SEGMENT).unwrap();
        store.write(FrameId(0), FRAME_HEADER_BYTES + SEGMENT - 1, b"ab");
    }
}
