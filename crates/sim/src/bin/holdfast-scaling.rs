//! `holdfast-scaling`: how long a recovery would take on larger clusters, by the model of `holdfast_sim::scaling`.

use clap::Parser;
use holdfast_sim::scaling::{Rates, Shape, recover};

/// Recovers one machine of clusters of many sizes in a model driven by measured rates, and tells the time and what
/// is waited for.
#[derive(Debug, Parser)]
#[command(
    name = "holdfast-scaling",
    after_help = "Example:
  holdfast-scaling --machines 10,100 --gb 64 --masters 16,128 --replay-s-per-gb 0.5"
)]
struct Arguments {
    /// Machines, each with one backup.
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000", value_parser = clap::value_parser!(u16).range(4..))]
    machines: Vec<u16>,
    /// GB of sessions in the dead machine's memory.
    #[arg(long, value_delimiter = ',', default_value = "1,64,256")]
    gb: Vec<f64>,
    /// Recovery masters of each log; 0: all shards that are left.
    #[arg(long, value_delimiter = ',', default_value = "16,128,0")]
    masters: Vec<usize>,
    /// Shards of each machine.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    shards: u16,
    /// Reading from disk, of one machine.
    #[arg(long, default_value_t = 3.1)]
    disk_gb_s: f64,
    /// Each way, of one machine.
    #[arg(long, default_value_t = 25.0)]
    network_gbit_s: f64,
    /// Of a backup's thread: reading and verifying.
    #[arg(long, default_value_t = 0.6)]
    verify_s_per_gb: f64,
    /// Of a backup's thread: cutting and sending.
    #[arg(long, default_value_t = 0.8)]
    send_s_per_gb: f64,
    /// Of a recovery master's thread.
    #[arg(long, default_value_t = 1.3)]
    replay_s_per_gb: f64,
    /// On each side, for each segment that a recovery master asks for.
    #[arg(long, default_value_t = 20.0)]
    fetch_us: f64,
    /// Places replicas and recovery masters.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() {
    let arguments = Arguments::parse();
    let gb = 1e9;
    let rates = Rates {
        disk: arguments.disk_gb_s * gb,
        network: arguments.network_gbit_s / 8.0 * gb,
        verify: arguments.verify_s_per_gb / gb,
        send: arguments.send_s_per_gb / gb,
        replay: arguments.replay_s_per_gb / gb,
        fetch: arguments.fetch_us / 1e6,
        ..Rates::default()
    };
    println!(
        "| machines | GB | recovery masters of each log | seconds | waited for most | busy there | on average |"
    );
    println!("|---|---|---|---|---|---|---|");
    let shards = usize::from(arguments.shards);
    for machines in arguments.machines.iter().copied().map(usize::from) {
        for &size in &arguments.gb {
            for &masters in &arguments.masters {
                let left = (machines - 1) * shards;
                if masters > left {
                    continue;
                }
                let shape = Shape {
                    machines,
                    shards,
                    bytes: size * gb,
                    segment_bytes: f64::from(8 << 20),
                    masters: if masters == 0 { left } else { masters },
                };
                let outcome = recover(&shape, &rates, arguments.seed);
                println!(
                    "| {machines} | {size} | {} | {:.2} | {:?} | {:.0} % | {:.0} % |",
                    shape.masters,
                    outcome.seconds,
                    outcome.bottleneck,
                    outcome.busy * 100.0,
                    outcome.busy_mean * 100.0
                );
            }
        }
    }
}
