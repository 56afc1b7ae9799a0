//! Bulk past the page cache.
//!
//! What a backup is sent by the megabyte (copies of segments that a recovery, a cleaner or the loss of a backup makes) is not
//! read again soon, and pages for it are dear: where memory is fresh to a virtual machine the copy into the page cache was
//! measured at 0.2 to 0.5 GB/s and one to three seconds of processor time a gigabyte, the way past it at 0.8 to 1.5 GB/s and
//! 0.12 seconds. Replicas that are not in the page cache are read past it for the same reason.
//!
//! I1. Blocks of a file are written either here or through the page cache, whole: the kernel keeps both ways coherent by
//!     blocks, and a block is written by one thread at a time.
//! I2. Nothing depends on it. Where the file system knows no such way, where it fails, and for a while where it is slow (the
//!     writer waits for the disk, and others for the writer), bytes go through the page cache.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::buffers::{BLOCK_BYTES, Buffer};

/// Why the lock here is never poisoned.
const NO_PANIC: &str = "nothing that could panic happens under this lock";

/// Shorter writes go through the page cache: appends of heads, which wait for nothing but memory.
const WRITE_BYTES_MIN: usize = 256 << 10;

/// What is copied and written at a time.
const STEP_BYTES: usize = 1 << 20;

/// By so many steps together it is judged whether the disk keeps the backup's thread from other masters' appends for too long;
/// a single one may take long because others have the processor. It is where they take longer: 67 MB/s.
const STEPS_JUDGED: u32 = 16;
const STEPS_MAX: Duration = Duration::from_millis(250);

/// After such steps so many bytes go through the page cache, then it is tried again.
const AVOIDED_BYTES: usize = 256 << 20;

/// A store's file, opened for this. Threads: any.
#[derive(Debug)]
pub struct Direct {
    file: File,
    writer: Mutex<Writer>,
}

#[derive(Debug)]
struct Writer {
    /// Bytes come from wherever the network left them, and must begin at a block's border.
    staging: Buffer,
    /// Steps since it was last judged, and what they took.
    steps: u32,
    took: Duration,
    /// So many bytes are still to be written the other way.
    avoid_bytes: usize,
}

impl Writer {
    /// A step took so long.
    fn judge(&mut self, took: Duration) {
        self.steps += 1;
        self.took += took;
        if self.steps == STEPS_JUDGED {
            if self.took > STEPS_MAX {
                self.avoid_bytes = AVOIDED_BYTES;
            }
            (self.steps, self.took) = (0, Duration::ZERO);
        }
    }
}

impl Direct {
    /// `None` where there is no such way.
    pub fn open(path: &Path) -> Option<Direct> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::DIRECT.bits() as i32)
            .open(path)
            .ok()?;
        let writer = Mutex::new(Writer {
            staging: Buffer::default(),
            steps: 0,
            took: Duration::ZERO,
            avoid_bytes: 0,
        });
        Some(Direct { file, writer })
    }

    /// Writes the blocks that lie within `bytes`, which belong at `at`, or as many of them as can be. Returns which of the
    /// bytes are written; the others are to be written the other way.
    pub fn write(&self, bytes: &[u8], at: u64) -> std::ops::Range<usize> {
        if bytes.len() < WRITE_BYTES_MIN {
            return 0..0;
        }
        let from = (at.next_multiple_of(BLOCK_BYTES as u64) - at) as usize;
        let to = (bytes.len() - from) / BLOCK_BYTES * BLOCK_BYTES + from;
        let mut writer = self.writer.lock().expect(NO_PANIC);
        if writer.avoid_bytes > 0 {
            writer.avoid_bytes = writer.avoid_bytes.saturating_sub(bytes.len());
            return 0..0;
        }
        if writer.staging.is_empty() {
            writer.staging = Buffer::of(0, STEP_BYTES);
        }
        let mut written = from;
        while written < to {
            let step = STEP_BYTES.min(to - written);
            let began = Instant::now();
            let staged = &mut writer.staging[..step];
            staged.copy_from_slice(&bytes[written..written + step]);
            if self.file.write_all_at(staged, at + written as u64).is_err() {
                writer.avoid_bytes = AVOIDED_BYTES;
                break;
            }
            written += step;
            writer.judge(began.elapsed());
        }
        from..written
    }

    /// Fills `buffer[from..length]` with what stands in the file, of which `at` is where the buffer begins. The buffer is one of
    /// `Buffers`. False if it is to be read the other way.
    pub fn read(&self, buffer: &mut [u8], from: usize, length: usize, at: u64) -> bool {
        let begin = from / BLOCK_BYTES * BLOCK_BYTES;
        let end = length.next_multiple_of(BLOCK_BYTES);
        assert!(
            buffer.as_ptr().align_offset(BLOCK_BYTES) == 0,
            "of `Buffers`"
        );
        if !at.is_multiple_of(BLOCK_BYTES as u64) {
            return false;
        }
        let room = buffer.get_mut(begin..end);
        room.is_some_and(|room| self.file.read_exact_at(room, at + begin as u64).is_ok())
    }
}
