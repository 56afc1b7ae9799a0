//! One log, driven as a shard drives it, with backups that have everything at once.
//!
//! So what is measured is the engine alone: appending, the index, the cleaner and its pacing, and the bytes that
//! would have gone to backups. Nothing here decides when to clean: `Log::clean` is offered a slice after every few
//! appends and does what it finds due, as between two requests of a shard.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use holdfast_format::{ClusterMs, Expiry, KeyHash, LogId, Namespace, SegmentId};
use holdfast_log::{AppendError, Config, Log, MemoryUse, SegmentKind};
use rustix::time::{ClockId, clock_gettime};

use crate::keys::Key;

pub const NAMESPACE: Namespace = Namespace(0);
/// Keys whose buckets and entries are asked for together, as a shard does with a pipeline.
pub const BATCH: usize = 32;

/// The cleaner is offered a slice whenever so much has been appended, and after every append while it says that
/// more is due: it is the log that paces cleaning.
const OFFER_BYTES: u64 = 4 << 10;
/// What one slice may read and copy.
pub const SLICE_BYTES: u64 = 128 << 10;
/// Slices before a refused put is given up.
const PATIENCE_SLICES: u32 = 100_000;

#[derive(Debug)]
pub struct Engine {
    log: Log,
    began: Instant,
    now: ClusterMs,
    /// What backups have of each segment, and whether it is closed there.
    replicas: BTreeMap<SegmentId, (u32, bool)>,
    change: u64,
    appended_since_offer: u64,
    /// Time is what `advance_to` says, not what the clock of the machine says.
    simulated: bool,
    /// The last slice ended before what was due was done.
    more_is_due: bool,
    /// Also look how much CPU time each slice takes.
    pub time_slices_on_cpu: bool,
    pub totals: Totals,
}

/// Sums since the start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Bytes of keys and values put, and of their headers.
    pub appended_bytes: u64,
    /// Bytes of former heads, as backups got them: appends, openings, digests.
    pub shipped_head_bytes: u64,
    /// Bytes of the cleaner's survivors, as backups got them.
    pub shipped_survivor_bytes: u64,
    pub slices: u64,
    pub slice_time: Duration,
    pub longest_slice: Duration,
    /// The longest by the thread's CPU time; only with `time_slices_on_cpu`.
    pub longest_slice_cpu: Duration,
    /// Puts that found no memory until the cleaner had been called more.
    pub refused: u64,
    pub peak_used_bytes: u64,
    /// Of segments alone.
    pub peak_segment_bytes: u64,
}

/// The configuration of a shard with so much memory: 8 MiB segments, 64 KiB seglets.
pub fn config(memory_bytes: u64) -> Config {
    Config {
        memory_bytes,
        outside_bytes: 0,
        segment_bytes: 8 << 20,
        seglet_bytes: 64 << 10,
        key_bytes_max: 65_535,
        value_bytes_max: 1 << 20,
        expiry_slack_ms: 1_000,
        replica_expansion_percent: 200,
        cleaner: holdfast_log::CleanerOptions::default(),
    }
}

/// CPU time of this thread: what others did on the machine meanwhile is not in it.
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

impl Engine {
    /// With all of its memory mapped, as a shard's is some time after its start.
    pub fn new(config: Config) -> Engine {
        let mut log = Log::new(LogId(1), config).expect("a good configuration");
        while log.touch_ahead(64 << 20) {}
        let mut engine = Engine {
            log,
            began: Instant::now(),
            now: ClusterMs(1_000_000),
            replicas: BTreeMap::new(),
            change: u64::MAX,
            appended_since_offer: 0,
            simulated: false,
            more_is_due: false,
            time_slices_on_cpu: false,
            totals: Totals::default(),
        };
        engine.settle();
        engine
    }

    /// Time stands still but for `advance_to`.
    pub fn simulated(config: Config) -> Engine {
        let mut engine = Engine::new(config);
        engine.simulated = true;
        engine
    }

    pub fn now(&self) -> ClusterMs {
        self.now
    }

    /// Time goes on; what it makes due waits for the next append or `tick`.
    pub fn advance_to(&mut self, now: ClusterMs) {
        assert!(self.simulated && now >= self.now, "time is simulated");
        self.now = now;
    }

    /// The sweep and the cleaner, as a shard has them go on every 20 ms.
    pub fn tick(&mut self, sweep_buckets: u32) {
        self.log.sweep(self.now, sweep_buckets);
        self.offer_slice();
    }

    pub fn log(&self) -> &Log {
        &self.log
    }

    pub fn memory(&self) -> MemoryUse {
        self.log.memory()
    }

    /// What the cleaner has copied since the start, to survivors or in memory.
    pub fn copied_bytes(&self) -> u64 {
        let memory = self.log.memory();
        memory.cleaned_bytes + memory.compacted_bytes
    }

    /// Asks for what puts of these keys will read, as a shard does for what came in together.
    pub fn prefetch(&self, keys: &[Key]) {
        let mut hashes = [KeyHash(0); BATCH];
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = KeyHash::of(NAMESPACE, key);
        }
        self.log.prefetch_batch(&hashes[..keys.len().min(BATCH)]);
    }

    /// Stores a value and offers the cleaner its slice. A put that is refused for want of memory is tried
    /// again after more slices; the error says that no number of them helps.
    pub fn put(&mut self, key: &[u8], value: &[u8], expiry: Expiry) -> Result<(), AppendError> {
        let mut result = self.put_once(key, value, expiry);
        if result.is_err() {
            self.totals.refused += 1;
            result = self.put_patiently(key, value, expiry);
        }
        result
    }

    /// Stores a value as a shard would: refused is refused.
    pub fn put_once(
        &mut self,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
    ) -> Result<(), AppendError> {
        self.log
            .put(NAMESPACE, key, value, expiry, None, self.now)?;
        self.appended(key.len() + value.len() + holdfast_format::HEADER_BYTES);
        Ok(())
    }

    /// True if there was such a session.
    pub fn touch(&mut self, key: &[u8], deadline: ClusterMs) -> Result<bool, AppendError> {
        let mut slices = 0;
        loop {
            match self
                .log
                .touch(NAMESPACE, key, Some(deadline), None, self.now)
            {
                Ok(touched) => {
                    self.appended(key.len() + holdfast_format::LONG_HEADER_BYTES);
                    return Ok(touched);
                }
                Err(error) if slices == PATIENCE_SLICES => return Err(error),
                Err(_) => {
                    slices += 1;
                    self.offer_slice();
                }
            }
        }
    }

    /// True if there was such a session.
    pub fn delete(&mut self, key: &[u8]) -> Result<bool, AppendError> {
        let mut slices = 0;
        loop {
            match self.log.delete(NAMESPACE, key, None, self.now) {
                Ok(deleted) => {
                    self.appended(key.len() + holdfast_format::HEADER_BYTES);
                    return Ok(deleted.is_some());
                }
                Err(error) if slices == PATIENCE_SLICES => return Err(error),
                Err(_) => {
                    slices += 1;
                    self.offer_slice();
                }
            }
        }
    }

    fn put_patiently(
        &mut self,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
    ) -> Result<(), AppendError> {
        let mut error = AppendError::OutOfMemory;
        let mut idle = 0;
        for _ in 0..PATIENCE_SLICES {
            // The cleaner may need one more look after what it did has become durable.
            idle = if self.offer_slice() { 0 } else { idle + 1 };
            match self.put_once(key, value, expiry) {
                Ok(()) => return Ok(()),
                Err(it) => error = it,
            }
            if idle > 8 {
                break;
            }
        }
        Err(error)
    }

    fn appended(&mut self, bytes: usize) {
        self.totals.appended_bytes += bytes as u64;
        self.appended_since_offer += bytes as u64;
        if self.more_is_due || self.appended_since_offer >= OFFER_BYTES {
            // A large value makes as much work as many small ones.
            let offers = (self.appended_since_offer / OFFER_BYTES).max(1);
            let _ = (0..offers).all(|_| self.offer_slice());
        }
    }

    /// One slice of cleaning, if the log finds any due. True: it says that more is due now.
    pub fn offer_slice(&mut self) -> bool {
        self.appended_since_offer = 0;
        self.settle();
        let cpu = self.time_slices_on_cpu.then(thread_cpu);
        let before = Instant::now();
        self.more_is_due = self.log.clean(self.now, SLICE_BYTES);
        let took = before.elapsed();
        if let Some(cpu) = cpu {
            let took = thread_cpu() - cpu;
            self.totals.longest_slice_cpu = self.totals.longest_slice_cpu.max(took);
        }
        self.totals.slices += 1;
        self.totals.slice_time += took;
        self.totals.longest_slice = self.totals.longest_slice.max(took);
        self.settle();
        self.more_is_due
    }

    /// Tells the log that backups have everything, until it has nothing new to say.
    fn settle(&mut self) {
        loop {
            if self.log.change() == self.change {
                // Only the head can have grown.
                let head = self.log.end().segment;
                self.acknowledge(head);
                if self.log.change() == self.change {
                    return;
                }
            }
            self.change = self.log.change();
            if !self.simulated {
                let elapsed_ms = self.began.elapsed().as_millis() as u64;
                self.now = self.now.max(ClusterMs(1_000_000 + elapsed_ms));
            }
            let segments: Vec<SegmentId> = self.log.goals().map(|goal| goal.id).collect();
            for segment in segments {
                self.acknowledge(segment);
            }
            for segment in self.log.take_freed() {
                self.replicas.remove(&segment);
            }
            let memory = self.log.memory();
            let totals = &mut self.totals;
            totals.peak_used_bytes = totals.peak_used_bytes.max(memory.used_bytes);
            totals.peak_segment_bytes = totals.peak_segment_bytes.max(memory.segment_bytes);
        }
    }

    /// Backups get what they lack of a segment. What is closed there never changes again.
    fn acknowledge(&mut self, segment: SegmentId) {
        let Some(goal) = self.log.goal(segment) else {
            return;
        };
        let replica = self.replicas.entry(segment).or_insert((0, false));
        let (length, closed) = *replica;
        if closed || (length, closed) == (goal.length, goal.closed) {
            return;
        }
        *replica = (goal.length, goal.closed);
        let bytes = u64::from(goal.length.saturating_sub(length));
        match goal.kind {
            SegmentKind::Head { .. } => self.totals.shipped_head_bytes += bytes,
            SegmentKind::Side => self.totals.shipped_survivor_bytes += bytes,
        }
        self.log.set_durable(segment, goal.length, goal.closed);
    }
}
