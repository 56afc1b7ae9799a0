//! The command line: what `holdfast --help` teaches, and which module does it.

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::error::{Context, Outcome};
use crate::options::{
    BackupOptions, CoordinatorOptions, DevOptions, GatewayOptions, LogFormat, MasterOptions,
};
use crate::tls::ClientKeys;
use crate::{admin, bench, children, logging, roles, session};

/// A session store for the web: in memory, replicated, and still there after a crash.
#[derive(Parser, Debug)]
#[command(
    name = "holdfast",
    version,
    propagate_version = true,
    max_term_width = 110,
    after_help = "Begin with:\n  \
        holdfast dev                                  a whole cluster in this process\n  \
        redis-cli -p 6380 set sess:1 hello ex 60      any Redis client works\n  \
        holdfast ctl status                           who is who, who owns what\n\n\
        A cluster of machines:\n  \
        holdfast coordinator --listen 10.0.0.1:7390 …   then `backup`s, `master`s and a `gateway`,\n  \
        each with --coordinator 10.0.0.1:7390 --cluster-secret-file … (see their --help)"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run a whole cluster here: coordinator, masters, backups and a gateway.
    #[command(after_help = "Examples:\n  \
        holdfast dev                                     sessions in ./holdfast-data, Redis protocol on 6380\n  \
        holdfast dev --memory 2GiB --dir /var/lib/holdfast\n  \
        holdfast dev --processes --masters 3 --backups 4   then kill -9 any of them\n  \
        holdfast dev --resp 127.0.0.1:0 --resp-cluster 127.0.0.1:0 --grpc 127.0.0.1:0 --http 127.0.0.1:0 \\\n    \
            --ready-file ready.json                      for scripts: free ports, told in a file")]
    Dev(DevOptions),
    /// Run the coordinator: membership, tablet map, recoveries.
    #[command(after_help = "Examples:\n  \
        holdfast coordinator --dir /var/lib/holdfast/coordinator --initial-shards 6\n  \
        holdfast coordinator --listen 10.0.0.1:7390 --cluster-secret-file /etc/holdfast/secret \\\n    \
            --password-file /etc/holdfast/password\n\n\
        After an outage of the whole cluster, --cold-start recovers at once instead of waiting for the dead.")]
    Coordinator(CoordinatorOptions),
    /// Run a master: shards that keep sessions in memory and serve them.
    #[command(after_help = "Examples:\n  \
        holdfast master --memory 8GiB --shards 4\n  \
        holdfast master --coordinator 10.0.0.1:7390 --listen 10.0.0.2:0 --resp-cluster 10.0.0.2:6381 \\\n    \
            --machine rack-1 --cluster-secret-file /etc/holdfast/secret --password-file /etc/holdfast/password")]
    Master(MasterOptions),
    /// Run a backup: keeps replicas on disk and serves them to recoveries.
    #[command(after_help = "Examples:\n  \
        holdfast backup --dir /var/lib/holdfast/backup --disk 32GiB\n  \
        holdfast backup --config /etc/holdfast/backup.toml")]
    Backup(BackupOptions),
    /// Run a gateway: one address for every key, beside an application or behind a load balancer.
    #[command(after_help = "Examples:\n  \
        holdfast gateway --coordinator 10.0.0.1:7390 --cluster-secret-file /etc/holdfast/secret")]
    Gateway(GatewayOptions),
    /// Look at a running cluster, set limits, decide about recoveries that cannot go on.
    Ctl(CtlArgs),
    /// Read and write sessions over gRPC.
    #[command(after_help = "Examples:\n  \
        holdfast session put user:7 'hello' --idle 30m\n  \
        holdfast session get user:7\n  \
        holdfast session touch user:7\n  \
        holdfast session ls --match 'user:*'\n  \
        holdfast session rm user:7")]
    Session(session::SessionArgs),
    /// Measure throughput, latency and the time to recover.
    #[command(subcommand)]
    Bench(BenchCommand),
}

#[derive(Subcommand, Debug)]
enum BenchCommand {
    /// Load a server that speaks the Redis protocol and tell throughput, latency and its CPU time.
    Load(bench::load::LoadArgs),
    /// Call and stream over gRPC and tell throughput, latency and CPU time, beside what tonic itself costs.
    Grpc(bench::grpc::GrpcArgs),
    /// Serve the echoes that `bench grpc --floor` measures.
    #[command(hide = true)]
    GrpcEcho(bench::grpc::EchoArgs),
    /// Open idle connections by the thousand and tell what each takes of the server's memory.
    Connections(bench::connections::ConnectionsArgs),
    /// Kill a master of a cluster of its own and tell how soon its sessions are back.
    Recovery(bench::recovery::RecoveryArgs),
    /// Kill who serves while clients write, many times, and tell how long they wait and what is lost, beside Redis Sentinel.
    Failover(bench::failover::FailoverArgs),
}

#[derive(Args, Debug)]
struct CtlArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(subcommand)]
    command: CtlCommand,
}

#[derive(Subcommand, Debug)]
enum CtlCommand {
    /// Members, tablets, recoveries and replication.
    #[command(
        after_help = "Examples:\n  holdfast ctl status\n  holdfast ctl status --json | jq .members"
    )]
    Status {
        /// One JSON object instead of tables.
        #[arg(long)]
        json: bool,
    },
    /// Every recovery: what it does or waits for, how far it is, who takes over.
    #[command(after_help = "Examples:\n  \
            holdfast ctl recoveries\n  \
            holdfast ctl recoveries --watch                 with bars, twice a second, until interrupted\n  \
            holdfast ctl recoveries --json | jq '.[] | select(.stage == \"held\") | .hold'")]
    Recoveries {
        /// One JSON array instead of text (with --watch: one a line).
        #[arg(long)]
        json: bool,
        /// Again and again, with bars.
        #[arg(long)]
        watch: bool,
    },
    /// Decide about one recovery.
    #[command(
        subcommand,
        after_help = "Examples:\n  \
            holdfast ctl recovery abandon l7f3a                        what would be lost\n  \
            holdfast ctl recovery abandon l7f3a --confirm master-2.0   lose it"
    )]
    Recovery(admin::recoveries::RecoveryCommand),
    /// Where the memory of each shard is.
    #[command(
        after_help = "Examples:\n  holdfast ctl memory\n  holdfast ctl memory --json | jq .total"
    )]
    Memory {
        /// One JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Limits of namespaces, and what they use.
    #[command(
        subcommand,
        after_help = "Examples:\n  \
            holdfast ctl namespace set 3 --sessions 1000000 --bytes 2GiB --value-bytes 64KiB\n  \
            holdfast ctl namespace set 3 --evict oldest-idle\n  \
            holdfast ctl namespace list\n  \
            holdfast ctl namespace unset 3"
    )]
    Namespace(admin::namespaces::NamespaceCommand),
}

/// How a command reaches the cluster.
#[derive(Args, Debug, Clone)]
pub struct ClientArgs {
    /// gRPC address of a gateway (or, for `ctl`, of the coordinator).
    #[arg(
        long,
        env = "HOLDFAST_GRPC",
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:7380",
        global = true
    )]
    pub grpc: String,
    /// File with the clients' password.
    #[arg(
        long,
        env = "HOLDFAST_PASSWORD_FILE",
        value_name = "PATH",
        global = true
    )]
    pub password_file: Option<std::path::PathBuf>,
    #[command(flatten)]
    pub tls: ClientTlsArgs,
}

/// How a command speaks TLS.
#[derive(Args, Debug, Clone)]
pub struct ClientTlsArgs {
    /// Speak TLS; the server must be certified by an authority that this system trusts, or by --ca.
    #[arg(
        id = "client_tls",
        long = "tls",
        env = "HOLDFAST_CLIENT_TLS",
        global = true,
        help_heading = "TLS"
    )]
    pub tls: bool,
    /// The authority that certifies the server, PEM (of `dev --tls`: tls/ca.pem in its directory).
    #[arg(
        id = "client_ca",
        long = "ca",
        env = "HOLDFAST_CLIENT_CA",
        value_name = "PATH",
        global = true,
        help_heading = "TLS"
    )]
    pub ca: Option<std::path::PathBuf>,
    /// Our own certificate, where the server asks for one.
    #[arg(
        id = "client_cert",
        long = "cert",
        env = "HOLDFAST_CLIENT_CERT",
        value_name = "PATH",
        global = true,
        help_heading = "TLS"
    )]
    pub cert: Option<std::path::PathBuf>,
    /// The certificate's key.
    #[arg(
        id = "client_key",
        long = "key",
        env = "HOLDFAST_CLIENT_KEY",
        value_name = "PATH",
        global = true,
        help_heading = "TLS"
    )]
    pub key: Option<std::path::PathBuf>,
}

impl ClientTlsArgs {
    /// What they name; `None`: no TLS.
    pub fn keys(&self) -> Outcome<Option<ClientKeys>> {
        if !self.tls && self.ca.is_none() && self.cert.is_none() && self.key.is_none() {
            return Ok(None);
        }
        ClientKeys::read(
            self.ca.as_deref(),
            self.cert.as_deref(),
            self.key.as_deref(),
        )
        .map(Some)
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            eprintln!("holdfast: {fatal}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Outcome<()> {
    match command {
        Command::Dev(options) => {
            let options = options.with_file()?;
            start_logging(options.log, options.log_level.as_deref())?;
            if options.processes == Some(true) {
                children::run(options)
            } else {
                roles::dev(options)
            }
        }
        Command::Coordinator(options) => {
            let options = options.with_file()?;
            start_logging(options.log, options.log_level.as_deref())?;
            roles::coordinator(options)
        }
        Command::Master(options) => {
            let options = options.with_file()?;
            start_logging(options.log, options.log_level.as_deref())?;
            roles::master(options)
        }
        Command::Backup(options) => {
            let options = options.with_file()?;
            start_logging(options.log, options.log_level.as_deref())?;
            roles::backup(options)
        }
        Command::Gateway(options) => {
            let options = options.with_file()?;
            start_logging(options.log, options.log_level.as_deref())?;
            roles::gateway(options)
        }
        Command::Ctl(CtlArgs { client, command }) => match command {
            CtlCommand::Status { json } => admin::status(&client, json),
            CtlCommand::Recoveries { json, watch } => admin::recoveries::run(&client, json, watch),
            CtlCommand::Recovery(command) => admin::recoveries::decide(&client, command),
            CtlCommand::Memory { json } => admin::memory(&client, json),
            CtlCommand::Namespace(command) => admin::namespaces::run(&client, command),
        },
        Command::Session(args) => session::run(args),
        Command::Bench(BenchCommand::Load(args)) => admin::block_on(async {
            bench::load::run(args)
                .await
                .context(|| "bench load".to_string())
        }),
        Command::Bench(BenchCommand::Grpc(args)) => admin::block_on(async {
            bench::grpc::run(args)
                .await
                .context(|| "bench grpc".to_string())
        }),
        Command::Bench(BenchCommand::GrpcEcho(args)) => admin::block_on(async {
            bench::grpc::echo(args)
                .await
                .context(|| "bench grpc-echo".to_string())
        }),
        Command::Bench(BenchCommand::Connections(args)) => admin::block_on(async {
            bench::connections::run(args)
                .await
                .context(|| "bench connections".to_string())
        }),
        Command::Bench(BenchCommand::Recovery(args)) => admin::block_on(async {
            bench::recovery::run(args)
                .await
                .context(|| "bench recovery".to_string())
        }),
        Command::Bench(BenchCommand::Failover(args)) => admin::block_on(async {
            bench::failover::run(args)
                .await
                .context(|| "bench failover".to_string())
        }),
    }
}

fn start_logging(format: Option<LogFormat>, level: Option<&str>) -> Outcome<()> {
    children::end_with_parent()?;
    logging::start(format.unwrap_or(LogFormat::Human), level.unwrap_or("info"))?;
    logging::abort_on_panic();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
