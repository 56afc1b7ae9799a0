//! CPU time of processes on this machine, user and system, as `/proc` tells it.

use std::collections::BTreeMap;

/// CPU time that some processes had spent at one moment.
#[derive(Debug, Clone)]
pub struct ProcessesCpu {
    ticks: BTreeMap<u32, u64>,
}

impl ProcessesCpu {
    /// `None` if there are none, or one of them is not on this machine.
    pub fn of(pids: &[u32]) -> Option<ProcessesCpu> {
        if pids.is_empty() {
            return None;
        }
        let ticks = pids
            .iter()
            .map(|&pid| Some((pid, ticks(pid)?)))
            .collect::<Option<_>>()?;
        Some(ProcessesCpu { ticks })
    }

    /// Microseconds spent since by those of the processes that still live.
    pub fn spent_us(&self, pids: &[u32]) -> Option<f64> {
        let now = ProcessesCpu::of(pids)?;
        let spent: u64 = now
            .ticks
            .iter()
            .map(|(pid, ticks)| ticks.saturating_sub(self.ticks.get(pid).copied().unwrap_or(0)))
            .sum();
        Some(spent as f64 * 1e6 / rustix::param::clock_ticks_per_second() as f64)
    }
}

/// utime + stime: fields 14 and 15 of `/proc/PID/stat`, counted behind the name, which may hold spaces.
fn ticks(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = text.rsplit_once(')')?.1;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_shows_and_strangers_do_not() {
        let me = [std::process::id()];
        let before = ProcessesCpu::of(&me).expect("this process is on this machine");
        let began = std::time::Instant::now();
        let mut sum = 0u64;
        while began.elapsed().as_millis() < 100 {
            sum = sum.wrapping_mul(31).wrapping_add(7);
        }
        assert!(std::hint::black_box(sum) != 1);
        assert!(before.spent_us(&me).expect("still here") > 0.0);
        assert!(ProcessesCpu::of(&[]).is_none());
        assert!(ProcessesCpu::of(&[u32::MAX]).is_none());
    }
}
