//! `holdfast-sim`: runs seeds of the simulation and says what they showed.

use std::cell::RefCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use holdfast_sim::{Plan, Report, Summary, Tells, run_plan};

/// Runs a whole Holdfast cluster on one thread, with faults drawn from a seed, and checks what its
/// clients were told against the promises.
#[derive(Debug, Parser)]
#[command(name = "holdfast-sim")]
struct Arguments {
    /// Seeds to run, first to one past the last.
    #[arg(long, default_value = "0..100", value_parser = parse_range)]
    seeds: Range<u64>,
    /// Run this seed only, and say what it showed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Seeds run side by side, each on a thread of its own.
    #[arg(long, default_value_t = 2)]
    jobs: u32,
    /// With --seed: print what the nodes report and which faults strike.
    #[arg(long, requires = "seed")]
    events: bool,
    /// With --seed: print every input and output of every node.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Check every shard's log from end to end after every step. Some 4 times slower.
    #[arg(long)]
    verify: bool,
    /// Stop after so many seeds that broke a promise about data (being stuck does not count).
    #[arg(long)]
    failures_max: Option<u64>,
}

/// One seed in so many is run a second time, to see that it repeats itself.
const REPEAT_EVERY: u64 = 100;

thread_local! {
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    std::panic::set_hook(Box::new(|panic| {
        LAST_PANIC.with(|last| *last.borrow_mut() = panic.to_string());
    }));
    let mut summary = Summary::default();
    if let Some(seed) = arguments.seed {
        let tells = match (arguments.trace, arguments.events) {
            (true, _) => Tells::Everything,
            (_, true) => Tells::Events,
            _ => Tells::Nothing,
        };
        match attempt(seed, tells, arguments.verify) {
            Ok(report) => {
                println!("seed {seed}: trace {}", report.trace);
                summary.add(report);
            }
            Err(message) => summary.add_panic(seed, message),
        }
    } else {
        run_all(&arguments, &mut summary);
    }
    println!("{summary}");
    if summary.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run_all(arguments: &Arguments, summary: &mut Summary) {
    let next = AtomicU64::new(arguments.seeds.start);
    let done: Mutex<Vec<(u64, Result<Report, String>)>> = Mutex::new(Vec::new());
    let failures = AtomicU64::new(0);
    // Threads run different seeds; each seed runs on one. They share the counter and the results.
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    // Relaxed: the counter orders nothing but itself.
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let failed = failures.load(Ordering::Relaxed);
                    let enough = arguments.failures_max.is_some_and(|max| failed >= max);
                    if seed >= arguments.seeds.end || enough {
                        return;
                    }
                    let result = attempt(seed, Tells::Nothing, arguments.verify);
                    if result.as_ref().is_ok_and(Report::broke_data) {
                        failures.fetch_add(1, Ordering::Relaxed);
                    }
                    done.lock().expect("no holder panics").push((seed, result));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no holder panics");
    done.sort_by_key(|&(seed, _)| seed);
    for (seed, result) in done {
        match result {
            Ok(report) => {
                if seed % REPEAT_EVERY == 0 {
                    let again = attempt(seed, Tells::Nothing, arguments.verify);
                    let same = again.is_ok_and(|again| again.trace == report.trace);
                    summary.add_repeat(seed, same);
                }
                summary.add(report);
            }
            Err(message) => summary.add_panic(seed, message),
        }
    }
}

fn attempt(seed: u64, tells: Tells, verify: bool) -> Result<Report, String> {
    let mut plan = Plan::draw(seed);
    plan.setup.verify = verify;
    catch_unwind(AssertUnwindSafe(|| run_plan(plan, tells)))
        .map_err(|_| LAST_PANIC.with(|last| last.borrow().clone()))
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let (first, end) = text
        .split_once("..")
        .ok_or("expected FIRST..END, such as 0..1000")?;
    let number = |part: &str| {
        part.parse::<u64>()
            .map_err(|error| format!("{part:?}: {error}"))
    };
    let range = number(first)?..number(end)?;
    if range.is_empty() {
        Err("no seeds in that range".to_owned())
    } else {
        Ok(range)
    }
}
