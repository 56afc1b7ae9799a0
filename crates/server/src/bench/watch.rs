//! What each process of a local cluster spends while something happens to it: its threads' processor time, read
//! from `/proc` every few milliseconds.
//!
//! W1. A process is watched from when it is first seen until it is gone; one that was started again is another.
//! W2. What a thread spent is counted when it is seen, so one that begins and ends between two looks is missed,
//!     and the last few milliseconds of one that ends are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A look costs about 20 microseconds for each thread of the cluster.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Threads whose work is not their role's: they map memory ahead of its use.
const MAPPING: &str = "touch-";

/// One look at a process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Look {
    /// When, in milliseconds since what is being measured began; before that, less than 0.
    pub at_ms: f64,
    /// Processor time spent until then by the process's own work.
    pub work_s: f64,
    /// And by mapping memory ahead.
    pub mapping_s: f64,
}

/// A process and what it was seen to spend.
#[derive(Debug, Clone, Default)]
pub struct Process {
    /// Such as `backup-2`.
    pub name: String,
    pub looks: Vec<Look>,
}

impl Process {
    /// `backups` for `backup-2`: processes of one kind are added up.
    pub fn kind(&self) -> &str {
        let end = self.name.rfind('-').unwrap_or(self.name.len());
        &self.name[..end]
    }

    /// What it spent between two moments: work and mapping, in seconds. Before it is first seen it spent nothing,
    /// unless it was there from the start: then what it spent before counts for nobody.
    pub fn spent(&self, from_ms: f64, to_ms: f64) -> (f64, f64) {
        let at = |ms: f64| {
            let seen = self.looks.partition_point(|look| look.at_ms <= ms);
            let newborn = Look {
                at_ms: 0.0,
                work_s: 0.0,
                mapping_s: 0.0,
            };
            let first = self.looks.first().filter(|look| look.at_ms < 0.0);
            let before = seen.checked_sub(1).map(|seen| self.looks[seen]);
            before.or(first.copied()).unwrap_or(newborn)
        };
        let (from, to) = (at(from_ms), at(to_ms));
        let work_s = to.work_s - from.work_s;
        (work_s.max(0.0), (to.mapping_s - from.mapping_s).max(0.0))
    }
}

/// A watch under way, on a thread of its own.
#[derive(Debug)]
pub struct Watch {
    enough: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<u32, Process>>,
    zero: Instant,
}

impl Watch {
    /// Watches the children of process `parent` from now on.
    pub fn begin(parent: u32) -> std::io::Result<Watch> {
        let enough = Arc::new(AtomicBool::new(false));
        let told = enough.clone();
        let zero = Instant::now();
        let watch = move || {
            let mut processes = BTreeMap::new();
            // Pairs with the store in `end`: nothing else is shared, so no order is needed.
            while !told.load(Ordering::Relaxed) {
                look(parent, zero, &mut processes);
                std::thread::sleep(LOOK_EVERY);
            }
            look(parent, zero, &mut processes);
            processes
        };
        let thread = std::thread::Builder::new().name("watch".to_owned());
        let thread = thread.spawn(watch)?;
        Ok(Watch {
            enough,
            thread,
            zero,
        })
    }

    /// Ends the watch: every process that was seen, by name, with times that count from `began`.
    pub fn end(self, began: Instant) -> Vec<Process> {
        self.enough.store(true, Ordering::Relaxed);
        let seen = self.thread.join().expect("looking does not panic");
        let mut seen: Vec<Process> = seen.into_values().collect();
        let shift_ms = began.duration_since(self.zero).as_secs_f64() * 1e3;
        for look in seen.iter_mut().flat_map(|process| &mut process.looks) {
            look.at_ms -= shift_ms;
        }
        seen.sort_by(|a, b| a.name.cmp(&b.name));
        seen
    }
}

fn look(parent: u32, zero: Instant, processes: &mut BTreeMap<u32, Process>) {
    for pid in children(parent) {
        let Some((work_s, mapping_s)) = spent(pid) else {
            continue; // It has just ended.
        };
        let process = processes.entry(pid).or_default();
        if process.name.is_empty() {
            process.name = name(pid).unwrap_or_default();
        }
        let before = process.looks.last();
        let look = Look {
            at_ms: zero.elapsed().as_secs_f64() * 1e3,
            // Of a thread that has ended nothing is left to be read.
            work_s: before.map_or(work_s, |before| before.work_s.max(work_s)),
            mapping_s: before.map_or(mapping_s, |before| before.mapping_s.max(mapping_s)),
        };
        process.looks.push(look);
    }
}

/// True while a child of `parent` is mapping memory ahead of its use.
pub fn is_mapping(parent: u32) -> bool {
    children(parent).into_iter().any(maps)
}

/// True while a process is mapping memory ahead of its use.
pub fn maps(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
        .any(|comm| comm.starts_with(MAPPING))
}

/// The children of a process, whichever of its threads started them.
fn children(parent: u32) -> Vec<u32> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{parent}/task")) else {
        return Vec::new();
    };
    let of_task = tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let mut pids: Vec<u32> = of_task
        .flat_map(|list| {
            let pids: Vec<u32> = list.split_whitespace().flat_map(str::parse).collect();
            pids
        })
        .collect();
    pids.sort_unstable();
    pids
}

/// Seconds that the threads of a process have been running: for its work, and for mapping memory.
fn spent(pid: u32) -> Option<(f64, f64)> {
    let (mut work_s, mut mapping_s) = (0.0, 0.0);
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))
        .ok()?
        .flatten()
    {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let running_ns = read("schedstat");
        let running_ns = running_ns.split_whitespace().next();
        let seconds = running_ns.and_then(|ns| ns.parse().ok()).unwrap_or(0.0) / 1e9;
        match read("comm").starts_with(MAPPING) {
            true => mapping_s += seconds,
            false => work_s += seconds,
        }
    }
    Some((work_s, mapping_s))
}

/// The name that a process was given, or else its role.
fn name(pid: u32) -> Option<String> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<&str> = (line.split(|byte| *byte == 0))
        .filter_map(|word| std::str::from_utf8(word).ok())
        .collect();
    let named = words.iter().position(|word| *word == "--name");
    let named = named.and_then(|at| words.get(at + 1));
    named.or(words.get(1)).map(|name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(name: &str, looks: &[(f64, f64)]) -> Process {
        let look = |&(at_ms, work_s): &(f64, f64)| Look {
            at_ms,
            work_s,
            mapping_s: work_s / 2.0,
        };
        Process {
            name: name.to_owned(),
            looks: looks.iter().map(look).collect(),
        }
    }

    #[test]
    fn what_is_spent_lies_between_two_looks() {
        let old = process("backup-2", &[(-5.0, 7.0), (25.0, 7.5), (45.0, 9.0)]);
        assert_eq!(old.kind(), "backup");
        assert_eq!(old.spent(0.0, 30.0), (0.5, 0.25), "not what came before");
        assert_eq!(old.spent(30.0, 1e9), (1.5, 0.75));
        assert_eq!(old.spent(50.0, 60.0), (0.0, 0.0));
        let young = process("coordinator", &[(500.0, 0.25), (520.0, 1.0)]);
        assert_eq!(young.kind(), "coordinator");
        assert_eq!(young.spent(0.0, 510.0), (0.25, 0.125), "all of its life");
    }

    #[test]
    fn a_child_is_seen_and_named() {
        let mut child = std::process::Command::new("sleep")
            .arg("30")
            .spawn()
            .expect("every system has it");
        let watch = Watch::begin(std::process::id()).unwrap();
        std::thread::sleep(2 * LOOK_EVERY);
        let seen = watch.end(Instant::now());
        child.kill().unwrap();
        child.wait().unwrap();
        let child = seen.iter().find(|process| process.name == "30");
        assert!(!child.expect("its first argument names it").looks.is_empty());
    }
}
