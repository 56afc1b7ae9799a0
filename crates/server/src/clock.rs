//! The only place that asks the machine for time and chance.

use std::time::{Duration, SystemTime};

use holdfast_cluster::Now;
use holdfast_format::ServerId;
use rustix::time::{ClockId, clock_gettime};

/// The machine's time for a `Node`. The boot-time clock goes on while the machine sleeps, so a
/// lease cannot outlive a suspended laptop.
pub fn now() -> Now {
    let unix = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    Now {
        mono_us: mono_us(),
        unix_ms: unix.as_millis() as u64,
    }
}

/// `Now::mono_us` alone.
pub fn mono_us() -> u64 {
    let boot = clock_gettime(ClockId::Boottime);
    boot.tv_sec as u64 * 1_000_000 + boot.tv_nsec as u64 / 1_000
}

/// A random number from the kernel.
pub fn random() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the kernel always has random bytes once it has booted");
    u64::from_le_bytes(bytes)
}

/// An id for a new incarnation. 0 belongs to the coordinator.
pub fn server_id() -> ServerId {
    loop {
        let id = ServerId(random());
        if id != ServerId::COORDINATOR {
            return id;
        }
    }
}
