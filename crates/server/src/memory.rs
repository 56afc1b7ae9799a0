//! What a process holds beside the logs of its shards: told to the shards, whose bound covers it.
//!
//! Every host thread adds up the buffers of its connections and gateways now and then, and the shards of
//! the process share the sum evenly. Outside the bound stays what a process of this program costs before
//! the first byte of a client: code, stacks, runtime, allocator (`docs/operating.md`, "Memory").

use std::fs;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use holdfast_master::ProcessMemory;

/// Shared by the host threads of a process. Every field is a figure by itself: nothing is ordered by them, so
/// that `Relaxed` will do everywhere.
#[derive(Debug, Default)]
pub struct Held {
    buffers_bytes: AtomicU64,
    huge_bytes: AtomicU64,
    shards: AtomicU32,
}

impl Held {
    /// One more shard shares what there is.
    pub fn add_shard(&self) {
        self.shards.fetch_add(1, Ordering::Relaxed);
    }

    /// A thread's buffers were `before` bytes and are `now`.
    pub fn set_buffers(&self, before: u64, now: u64) {
        // Wraps around in between if need be; the sum of all threads never does.
        self.buffers_bytes
            .fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Looks up how much of the process is in huge pages: the kernel walks its page tables for it, which may
    /// take milliseconds, so no host thread does this.
    pub fn look(&self) {
        let text = fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
        self.huge_bytes.store(huge_bytes(&text), Ordering::Relaxed);
    }

    /// A shard's part.
    pub fn of_shard(&self) -> ProcessMemory {
        let shards = u64::from(self.shards.load(Ordering::Relaxed).max(1));
        ProcessMemory {
            buffers_bytes: self.buffers_bytes.load(Ordering::Relaxed) / shards,
            huge_bytes: self.huge_bytes.load(Ordering::Relaxed),
        }
    }
}

/// Transparent and reserved huge pages, as `smaps_rollup` tells them in kB.
fn huge_bytes(text: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| {
            [
                "AnonHugePages",
                "ShmemPmdMapped",
                "Private_Hugetlb",
                "Shared_Hugetlb",
            ]
            .contains(name)
        })
        .filter_map(|(_, value)| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map(|kib| kib << 10)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_share_what_all_threads_hold() {
        let held = Held::default();
        held.add_shard();
        held.add_shard();
        held.set_buffers(0, 1_000);
        held.set_buffers(0, 500);
        held.set_buffers(1_000, 100);
        assert_eq!(held.of_shard().buffers_bytes, 300);
    }

    #[test]
    fn huge_pages_of_every_kind_are_added_up() {
        let text = "00400000-7fff rollup\nRss: 9000 kB\nAnonHugePages:    4096 kB\n\
                    Private_Hugetlb:       2048 kB\nLocked: 0 kB\n";
        assert_eq!(huge_bytes(text), 6 << 20);
        assert_eq!(huge_bytes(""), 0);
    }
}
