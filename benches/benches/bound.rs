//! A cluster that is full: writes against the memory bound, then deletes, then writes again. `docs/benchmarks.md`.

#![allow(
    clippy::disallowed_methods,
    reason = "clocks are what is measured with here"
)]

use std::time::{Duration, Instant};

use clap::Parser;
use holdfast_benches::chart::{Chart, Kind as ChartKind, Series};
use holdfast_benches::client::{Client, Outcome, Reply, stamp};
use holdfast_benches::keys::{self, Random};
use holdfast_benches::report;
use holdfast_benches::servers::{Kind, Server, Setup};
use serde::Serialize;
use serde_json::json;

#[derive(Parser, Debug)]
struct Arguments {
    /// Holdfast's memory bound.
    #[arg(long, default_value_t = 1 << 30)]
    memory_bytes: u64,
    #[arg(long, default_value_t = 1024)]
    value_bytes: usize,
    /// Replicas, each on a backup process of its own.
    #[arg(long, default_value_t = 0)]
    replicas: u8,
    /// How long it is written to while it is full.
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Default, Serialize)]
struct Row {
    sessions_when_full: u64,
    fill: Outcome,
    /// New sessions and new values of old ones, while it was full. Refusals are what is asked for.
    against_the_bound: Outcome,
    /// Reads, touches and deletes in between: none may be refused.
    others_against_the_bound: Outcome,
    longest_exchange_ms: f64,
    deletes: Outcome,
    /// After half of all has been deleted.
    after_deletes: Outcome,
    checked: u64,
    /// Acknowledged and not there, or there with another value, or deleted and still there.
    wrong: u64,
    peak_resident_bytes: u64,
    peak_to_bound: f64,
    seconds: f64,
    /// Over time, in seconds: resident memory ÷ bound, and what the log uses ÷ bound.
    resident: Vec<(f64, f64)>,
    used: Vec<(f64, f64)>,
}

/// Memory is looked at so often.
const SAMPLE: Duration = Duration::from_millis(250);

/// Refusals in a row until it counts as full.
const FULL_AFTER: u64 = 2_000;
const PIPELINE: usize = 128;
const TTL_SECONDS: u32 = 86_400;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let setup = Setup {
        memory_bytes: arguments.memory_bytes,
        touch_memory: true,
        replicas: arguments.replicas,
    };
    let server = Server::start(Kind::Holdfast, &setup)?.ok_or("Holdfast is here")?;
    let mut writer = Writer {
        client: server.client()?,
        value: vec![b'v'; arguments.value_bytes.max(8)],
        stamps: Vec::new(),
        random: Random::new(3),
        last: 0,
        longest: Duration::ZERO,
        server: &server,
        began: Instant::now(),
        sampled: Instant::now(),
        resident: Vec::new(),
        used: Vec::new(),
    };
    let began = writer.began;
    let mut row = Row::default();

    eprintln!("filling");
    let mut refused_in_a_row = 0;
    while refused_in_a_row < FULL_AFTER {
        let first = writer.stamps.len() as u64;
        let commands = (first..first + PIPELINE as u64).map(Command::Set).collect();
        for refused in writer.exchange(commands, &mut row.fill)? {
            refused_in_a_row = if refused { refused_in_a_row + 1 } else { 0 };
        }
    }
    row.sessions_when_full = row.fill.written;

    eprintln!("{} sessions; writing against the bound", row.fill.written);
    writer.longest = Duration::ZERO;
    let end = Instant::now() + Duration::from_secs_f64(arguments.seconds);
    while Instant::now() < end {
        let known = writer.stamps.len() as u64;
        let mut random = writer.random.clone();
        let mut any = || random.roll() % known;
        let sets = (0..PIPELINE / 2).map(|_| Command::Set(any())).collect();
        writer.exchange(sets, &mut row.against_the_bound)?;
        let new = (known..known + PIPELINE as u64 / 4).map(Command::Set);
        writer.exchange(new.collect(), &mut row.against_the_bound)?;
        let mut others: Vec<Command> = (0..16).map(|_| Command::Get(any())).collect();
        others.extend((0..16).map(|_| Command::Touch(any())));
        others.push(Command::Delete(any()));
        writer.exchange(others, &mut row.others_against_the_bound)?;
        writer.random = random;
    }
    row.longest_exchange_ms = writer.longest.as_secs_f64() * 1e3;

    eprintln!("deleting half");
    let half: Vec<u64> = (0..writer.stamps.len() as u64).step_by(2).collect();
    for chunk in half.chunks(PIPELINE) {
        let deletes = chunk.iter().map(|&number| Command::Delete(number));
        writer.exchange(deletes.collect(), &mut row.deletes)?;
    }

    eprintln!("writing again");
    for chunk in half[..half.len() / 2].chunks(PIPELINE) {
        let sets = chunk
            .iter()
            .flat_map(|&it| [Command::Set(it), Command::Set(it + 1)]);
        let known = writer.stamps.len() as u64;
        let sets = sets.filter(|it| matches!(it, Command::Set(number) if *number < known));
        writer.exchange(sets.collect(), &mut row.after_deletes)?;
    }

    eprintln!("checking");
    let mut all = Outcome::default();
    for first in (0..writer.stamps.len() as u64).step_by(PIPELINE) {
        let last = (first + PIPELINE as u64).min(writer.stamps.len() as u64);
        row.wrong += writer.check(first..last, &mut all)?;
    }
    row.checked = writer.stamps.len() as u64;
    row.seconds = began.elapsed().as_secs_f64();
    row.peak_resident_bytes = server.usage().peak_resident_bytes;
    let bound = arguments.memory_bytes as f64;
    row.peak_to_bound = row.peak_resident_bytes as f64 / bound;
    let shares = |points: &[(f64, f64)]| points.iter().map(|it| (it.0, it.1 / bound)).collect();
    row.resident = shares(&writer.resident);
    row.used = shares(&writer.used);

    print(&row);
    let settings = json!({
        "memory_bytes": arguments.memory_bytes,
        "value_bytes": arguments.value_bytes,
        "replicas": arguments.replicas,
        "seconds": arguments.seconds,
    });
    report::write("bound", settings, &[&row], &[chart(&row)]);
    if row.wrong + row.others_against_the_bound.refused + row.deletes.refused > 0 {
        return Err("sessions were lost, or what must always work was refused".into());
    }
    Ok(())
}

#[derive(Debug, Clone, Copy)]
enum Command {
    Set(u64),
    Get(u64),
    Touch(u64),
    Delete(u64),
}

/// One connection, and what the server has acknowledged to it.
struct Writer<'a> {
    client: Client,
    value: Vec<u8>,
    /// By session: the stamp of the value last acknowledged; 0: none, or deleted.
    stamps: Vec<u64>,
    random: Random,
    last: u64,
    longest: Duration,
    server: &'a Server,
    began: Instant,
    sampled: Instant,
    resident: Vec<(f64, f64)>,
    used: Vec<(f64, f64)>,
}

impl Writer<'_> {
    /// Sends the commands and notes what was acknowledged. Says of each whether it was refused.
    fn exchange(
        &mut self,
        commands: Vec<Command>,
        outcome: &mut Outcome,
    ) -> std::io::Result<Vec<bool>> {
        let first = self.last;
        for command in &commands {
            self.last += 1;
            match *command {
                Command::Set(number) => {
                    stamp(&mut self.value, self.last);
                    let key = keys::session(number);
                    self.client.set(&key, &self.value, Some(TTL_SECONDS));
                }
                Command::Get(number) => self.client.get(&keys::session(number)),
                Command::Touch(number) => self.client.expire(
                    &keys::session(number),
                    TTL_SECONDS + (self.last % 1000) as u32,
                ),
                Command::Delete(number) => self.client.delete(&keys::session(number)),
            }
        }
        let began = Instant::now();
        let mut refused = Vec::with_capacity(commands.len());
        let stamps = &mut self.stamps;
        self.client.exchange(|i, reply| {
            refused.push(matches!(reply, Reply::Refused(_)));
            match (commands[i], &reply) {
                (Command::Set(number), Reply::Done) => {
                    let at = number as usize;
                    if at >= stamps.len() {
                        stamps.resize(at + 1, 0);
                    }
                    stamps[at] = first + i as u64 + 1;
                }
                (Command::Delete(number), Reply::Done | Reply::Missing) => {
                    stamps[number as usize] = 0;
                }
                _ => {}
            }
            outcome.count(reply);
        })?;
        self.longest = self.longest.max(began.elapsed());
        if self.sampled.elapsed() >= SAMPLE {
            self.sampled = Instant::now();
            let at = self.began.elapsed().as_secs_f64();
            let resident = self.server.usage().resident_bytes;
            self.resident.push((at, resident as f64));
            let used = self.server.metric("holdfast_shard_memory_used_bytes");
            self.used.extend(used.map(|used| (at, used)));
        }
        Ok(refused)
    }

    /// How many of the sessions are not as they were acknowledged.
    fn check(
        &mut self,
        numbers: std::ops::Range<u64>,
        outcome: &mut Outcome,
    ) -> std::io::Result<u64> {
        for number in numbers.clone() {
            self.client.get(&keys::session(number));
        }
        let mut wrong = 0;
        let (stamps, value) = (&self.stamps, &mut self.value);
        self.client.exchange(|i, reply| {
            let expected = stamps[(numbers.start as usize) + i];
            stamp(value, expected);
            let right = match &reply {
                Reply::Value(found) => expected > 0 && found == value,
                Reply::Missing => expected == 0,
                _ => false,
            };
            wrong += u64::from(!right);
            outcome.count(reply);
        })?;
        Ok(wrong)
    }
}

fn print(row: &Row) {
    println!();
    let count = |name: &str, it: &Outcome| {
        let words = it.first_refusal.clone().unwrap_or_default();
        vec![
            name.to_string(),
            it.written.to_string(),
            it.refused.to_string(),
            words,
        ]
    };
    let table = [
        count("fill", &row.fill),
        count("writes against the bound", &row.against_the_bound),
        count(
            "reads, touches, deletes meanwhile",
            &row.others_against_the_bound,
        ),
        count("deletes of half", &row.deletes),
        count("writes after that", &row.after_deletes),
    ];
    report::print_table(&["", "done", "refused", "first refusal"], &table);
    println!(
        "{} sessions checked, {} wrong; longest exchange while full {:.1} ms; resident at most {:.0} MB, {:.3} of the bound",
        row.checked,
        row.wrong,
        row.longest_exchange_ms,
        row.peak_resident_bytes as f64 / 1e6,
        row.peak_to_bound
    );
}

fn chart(row: &Row) -> Chart {
    let series = |name: &str, points: &[(f64, f64)]| Series {
        name: name.to_string(),
        points: points.to_vec(),
    };
    Chart {
        title: "Filled, written to while full, half deleted, written again".to_string(),
        x_label: "seconds".to_string(),
        y_label: "of the memory bound".to_string(),
        kind: ChartKind::Lines,
        logarithmic: false,
        series: vec![
            series("resident memory", &row.resident),
            series("used, as the log counts", &row.used),
        ],
    }
}
