//! Every role's options: flags, `HOLDFAST_*` environment and a TOML file, one struct each.
//!
//! A flag wins over the environment, the environment over the file, the file over the default.
//! Fields of the file are the long flags with `_` for `-`; an unknown one is an error that names it.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Deserializer};

use crate::error::{Context, Fatal, Outcome};
use crate::namespace::NamespaceSpec;
use crate::resp::ClientLimits;
use crate::tls::{ClientCertificates, TlsFiles};

/// A number of bytes, as people write it: `512MiB`, `64KiB`, `1GB`, `1048576`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<ByteSize, String> {
        let text = text.trim();
        let digits = text
            .find(|c: char| !c.is_ascii_digit() && c != '_')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number
            .replace('_', "")
            .parse()
            .map_err(|_| format!("`{text}` is no size; write it as 512MiB or 1073741824"))?;
        let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "t" | "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => {
                return Err(format!(
                    "`{unit}` is no unit of size; KiB, MiB, GiB, TiB, KB, MB, GB and TB are"
                ));
            }
        };
        number
            .checked_mul(factor)
            .map(ByteSize)
            .ok_or(format!("`{text}` is too large"))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ByteSize(bytes) = *self;
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if bytes >= 1 << shift && bytes % (1 << shift) == 0 {
                return write!(f, "{}{unit}", bytes >> shift);
            }
        }
        write!(f, "{bytes}")
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(bytes) => Ok(ByteSize(bytes)),
            Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ack {
    /// In the shared memory of all its backups: survives the end of every process.
    Memory,
    /// Synced to disk by all its backups: survives the loss of power everywhere.
    Disk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Human,
    Json,
}

/// Declares a role's options, with those that every role has.
macro_rules! options {
    ($(#[$doc:meta])* $name:ident { $($(#[$attr:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Args, Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$attr])* pub $field: Option<$type>,)*

            /// Certificate of this process, PEM; with it every port speaks TLS and nothing else.
            #[arg(long, env = "HOLDFAST_TLS_CERT", value_name = "PATH", help_heading = "TLS")]
            pub tls_cert: Option<PathBuf>,
            /// The certificate's key, PEM.
            #[arg(long, env = "HOLDFAST_TLS_KEY", value_name = "PATH", help_heading = "TLS")]
            pub tls_key: Option<PathBuf>,
            /// The authority that vouches for members (always) and for clients (see --tls-clients), PEM.
            #[arg(long, env = "HOLDFAST_TLS_CA", value_name = "PATH", help_heading = "TLS")]
            pub tls_ca: Option<PathBuf>,
            /// Whether Redis and gRPC clients must show a certificate of that authority [default: none].
            #[arg(long, env = "HOLDFAST_TLS_CLIENTS", value_enum, help_heading = "TLS")]
            pub tls_clients: Option<ClientCertificates>,

            /// How the log on stderr looks [default: human].
            #[arg(long, env = "HOLDFAST_LOG", value_enum, help_heading = "General")]
            pub log: Option<LogFormat>,
            /// What is logged: error, warn, info, debug, trace, or a filter such as `info,holdfast_server=debug`
            /// [default: info].
            #[arg(long, env = "HOLDFAST_LOG_LEVEL", value_name = "LEVEL", help_heading = "General")]
            pub log_level: Option<String>,
            /// Once ready, write the addresses and processes to this file, as one JSON object.
            #[arg(long, env = "HOLDFAST_READY_FILE", value_name = "PATH", help_heading = "General")]
            pub ready_file: Option<PathBuf>,
            /// Read options from this TOML file: the long flags, with `_` for `-`.
            #[arg(long, env = "HOLDFAST_CONFIG", value_name = "PATH", help_heading = "General")]
            #[serde(skip)]
            pub config: Option<PathBuf>,
        }

        impl $name {
            /// Fills what flags and environment left open from the file they name.
            pub fn with_file(self) -> Outcome<$name> {
                let Some(path) = self.config.clone() else { return Ok(self) };
                let file: $name = read_toml(&path)?;
                Ok($name {
                    $($field: self.$field.or(file.$field),)*
                    tls_cert: self.tls_cert.or(file.tls_cert),
                    tls_key: self.tls_key.or(file.tls_key),
                    tls_ca: self.tls_ca.or(file.tls_ca),
                    tls_clients: self.tls_clients.or(file.tls_clients),
                    log: self.log.or(file.log),
                    log_level: self.log_level.or(file.log_level),
                    ready_file: self.ready_file.or(file.ready_file),
                    config: self.config,
                })
            }

            /// The TLS that was asked for, if any.
            pub fn tls_files(&self) -> Outcome<Option<TlsFiles>> {
                TlsFiles::from_options(
                    self.tls_cert.as_deref(),
                    self.tls_key.as_deref(),
                    self.tls_ca.as_deref(),
                    self.tls_clients,
                )
            }
        }
    };
}

options! {
    /// Options of `holdfast dev`.
    DevOptions {
        /// Masters: processes that keep sessions in memory [default: 1].
        #[arg(long, env = "HOLDFAST_MASTERS", value_name = "N")]
        masters: u32,
        /// Backups: keepers of the replicas on disk [default: 3].
        #[arg(long, env = "HOLDFAST_BACKUPS", value_name = "N")]
        backups: u32,
        /// Replicas of every session, each on another backup [default: 3, or the number of backups].
        #[arg(long, env = "HOLDFAST_REPLICAS", value_name = "R")]
        replicas: u8,
        /// So many replicas acknowledge a write; with fewer than all, one slow backup delays nobody, and so many failures fewer
        /// are survived. Fixed when the cluster is made [default: all].
        #[arg(long, env = "HOLDFAST_ACK_QUORUM", value_name = "Q")]
        ack_quorum: u8,
        /// Shards (threads) of each master [default: 1].
        #[arg(long, env = "HOLDFAST_SHARDS", value_name = "N")]
        shards: u32,
        /// Memory of each master for sessions, a hard bound [default: 512MiB].
        #[arg(long, env = "HOLDFAST_MEMORY", value_name = "SIZE")]
        memory: ByteSize,
        /// Map all of that memory soon after start, so that no request pays for fresh pages. `false`: the process
        /// grows as memory comes into use [default: true].
        #[arg(long, env = "HOLDFAST_TOUCH_MEMORY", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        touch_memory: bool,
        /// Where everything is kept; start again with it and every session is back
        /// [default: ./holdfast-data].
        #[arg(long, env = "HOLDFAST_DIR", value_name = "PATH")]
        dir: PathBuf,
        /// When a write is acknowledged [default: memory].
        #[arg(long, env = "HOLDFAST_ACK", value_enum)]
        ack: Ack,
        /// Run each role as a process of its own, so that one can be killed; a dead one is restarted.
        #[arg(long, env = "HOLDFAST_PROCESSES", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        processes: bool,
        /// Size of log segments, a power of two [default: 8MiB].
        #[arg(long, env = "HOLDFAST_SEGMENT_BYTES", value_name = "SIZE")]
        segment_bytes: ByteSize,
        /// Bound of each backup's store on disk [default: room for the masters' memory and more].
        #[arg(long, env = "HOLDFAST_DISK", value_name = "SIZE")]
        disk: ByteSize,
        /// Every replica on disk is read back and verified once in so many hours; 0: never [default: 24].
        #[arg(long, env = "HOLDFAST_SCRUB_HOURS", value_name = "HOURS")]
        scrub_hours: f64,

        /// Redis protocol, every key at one address [default: 127.0.0.1:6380].
        #[arg(long, env = "HOLDFAST_RESP", value_name = "ADDR", help_heading = "Addresses (port 0: any free one)")]
        resp: SocketAddr,
        /// Redis Cluster protocol: first of one port per shard [default: 127.0.0.1:6381].
        #[arg(long, env = "HOLDFAST_RESP_CLUSTER", value_name = "ADDR", help_heading = "Addresses (port 0: any free one)")]
        resp_cluster: SocketAddr,
        /// gRPC [default: 127.0.0.1:7380].
        #[arg(long, env = "HOLDFAST_GRPC", value_name = "ADDR", help_heading = "Addresses (port 0: any free one)")]
        grpc: SocketAddr,
        /// Health, readiness and metrics [default: 127.0.0.1:8380].
        #[arg(long, env = "HOLDFAST_HTTP", value_name = "ADDR", help_heading = "Addresses (port 0: any free one)")]
        http: SocketAddr,
        /// Member port of the coordinator, for members started beside [default: 127.0.0.1:0].
        #[arg(long, env = "HOLDFAST_LISTEN", value_name = "ADDR", help_heading = "Addresses (port 0: any free one)")]
        listen: SocketAddr,

        /// File with the secret that members share [default: generated in the directory].
        #[arg(long, env = "HOLDFAST_CLUSTER_SECRET_FILE", value_name = "PATH", help_heading = "Security")]
        cluster_secret_file: PathBuf,
        /// File with the password that clients must give (AUTH; gRPC: `authorization: Bearer …`).
        #[arg(long, env = "HOLDFAST_PASSWORD_FILE", value_name = "PATH", help_heading = "Security")]
        password_file: PathBuf,

        /// Speak TLS on every port, with certificates made in the directory unless --tls-cert names some.
        #[arg(long, env = "HOLDFAST_TLS", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", help_heading = "TLS")]
        tls: bool,

        /// How long a gateway tries again before it says that an outcome is unknown [default: 2000].
        #[arg(long, env = "HOLDFAST_RETRY_MS", value_name = "MS", help_heading = "Limits and times")]
        retry_ms: u32,
        /// Limits of a namespace, such as `3:sessions=1000,bytes=1GiB,value-bytes=64KiB,evict=oldest-idle`; may be
        /// given several times. In the file: `[[namespace]]` tables. They replace those set at run time.
        #[arg(long, env = "HOLDFAST_NAMESPACE", value_name = "N:LIMITS", value_delimiter = ';', help_heading = "Limits and times")]
        namespace: Vec<NamespaceSpec>,
        /// Largest value [default: 1MiB].
        #[arg(long, env = "HOLDFAST_VALUE_BYTES_MAX", value_name = "SIZE", help_heading = "Limits and times")]
        value_bytes_max: ByteSize,
        /// Most RESP connections per port [default: 10000].
        #[arg(long, env = "HOLDFAST_CLIENTS_MAX", value_name = "N", help_heading = "Limits and times")]
        clients_max: usize,
        /// Most Redis connections of a port that have selected the same namespace [default: no limit of its own].
        #[arg(long, env = "HOLDFAST_NAMESPACE_CLIENTS_MAX", value_name = "N", help_heading = "Limits and times")]
        namespace_clients_max: usize,
        /// Bytes of replies that may wait for one client; beyond it, it is cut off [default: 256MiB].
        #[arg(long, env = "HOLDFAST_CLIENT_OUTPUT_HARD", value_name = "SIZE", help_heading = "Limits and times")]
        client_output_hard: ByteSize,
        /// Bytes of replies that may wait for one client for longer than --client-output-soft-seconds
        /// [default: 1MiB].
        #[arg(long, env = "HOLDFAST_CLIENT_OUTPUT_SOFT", value_name = "SIZE", help_heading = "Limits and times")]
        client_output_soft: ByteSize,
        /// See --client-output-soft [default: 60].
        #[arg(long, env = "HOLDFAST_CLIENT_OUTPUT_SOFT_SECONDS", value_name = "N", help_heading = "Limits and times")]
        client_output_soft_seconds: u32,
        /// Close Redis connections that are silent for so long; 0: never [default: 0].
        #[arg(long, env = "HOLDFAST_CLIENT_IDLE_SECONDS", value_name = "N", help_heading = "Limits and times")]
        client_idle_seconds: u32,
        /// Under overload requests that have waited for longer are answered -BUSY at once, and sessions are created
        /// only as far as there is room; 0: never [default: 100].
        #[arg(long, env = "HOLDFAST_QUEUE_WAIT_MS", value_name = "MS", help_heading = "Limits and times")]
        queue_wait_ms: u32,
        /// How long a shard may answer without hearing from its backups [default: 500].
        #[arg(long, env = "HOLDFAST_LEASE_MS", value_name = "MS", help_heading = "Limits and times")]
        lease_ms: u32,
        /// Silence after which a suspect is declared dead [default: 300].
        #[arg(long, env = "HOLDFAST_CONFIRM_MS", value_name = "MS", help_heading = "Limits and times")]
        confirm_ms: u32,
        /// Missing heartbeats after which anyone is declared dead [default: 1000].
        #[arg(long, env = "HOLDFAST_DEAD_MS", value_name = "MS", help_heading = "Limits and times")]
        dead_ms: u32,
    }
}

options! {
    /// Options of `holdfast coordinator`.
    CoordinatorOptions {
        /// Member port [default: 127.0.0.1:7390].
        #[arg(long, env = "HOLDFAST_LISTEN", value_name = "ADDR")]
        listen: SocketAddr,
        /// Where the records are kept [default: ./holdfast-coordinator].
        #[arg(long, env = "HOLDFAST_DIR", value_name = "PATH")]
        dir: PathBuf,
        /// Replicas of every session, each on another backup [default: 3].
        #[arg(long, env = "HOLDFAST_REPLICAS", value_name = "R")]
        replicas: u8,
        /// So many replicas acknowledge a write; with fewer than all, one slow backup delays nobody, and so many failures fewer
        /// are survived. Fixed when the cluster is made [default: all].
        #[arg(long, env = "HOLDFAST_ACK_QUORUM", value_name = "Q")]
        ack_quorum: u8,
        /// How many shards (over all masters) to wait for before slots are dealt out, at the very first start
        /// [default: 1].
        #[arg(long, env = "HOLDFAST_INITIAL_SHARDS", value_name = "N")]
        initial_shards: u32,
        /// When a write is acknowledged [default: memory].
        #[arg(long, env = "HOLDFAST_ACK", value_enum)]
        ack: Ack,
        /// Nobody of this cluster can be alive (power is back after an outage): recover at once.
        #[arg(long, env = "HOLDFAST_COLD_START", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        cold_start: bool,
        /// Limits of a namespace, such as `3:sessions=1000,bytes=1GiB,value-bytes=64KiB,evict=oldest-idle`; may be
        /// given several times. In the file: `[[namespace]]` tables. They replace those set at run time.
        #[arg(long, env = "HOLDFAST_NAMESPACE", value_name = "N:LIMITS", value_delimiter = ';', help_heading = "Limits")]
        namespace: Vec<NamespaceSpec>,
        /// Administration by gRPC (`holdfast ctl`) [default: 127.0.0.1:7391].
        #[arg(long, env = "HOLDFAST_GRPC", value_name = "ADDR")]
        grpc: SocketAddr,
        /// Health, readiness and metrics [default: none].
        #[arg(long, env = "HOLDFAST_HTTP", value_name = "ADDR")]
        http: SocketAddr,
        /// File with the secret that members share.
        #[arg(long, env = "HOLDFAST_CLUSTER_SECRET_FILE", value_name = "PATH", help_heading = "Security")]
        cluster_secret_file: PathBuf,
        /// File with the password that administrators must give.
        #[arg(long, env = "HOLDFAST_PASSWORD_FILE", value_name = "PATH", help_heading = "Security")]
        password_file: PathBuf,
        /// How long a shard may answer without hearing from its backups [default: 500].
        #[arg(long, env = "HOLDFAST_LEASE_MS", value_name = "MS", help_heading = "Times")]
        lease_ms: u32,
        /// How often members say that they are alive [default: 100].
        #[arg(long, env = "HOLDFAST_HEARTBEAT_MS", value_name = "MS", help_heading = "Times")]
        heartbeat_ms: u32,
        /// How often members probe each other [default: 100].
        #[arg(long, env = "HOLDFAST_PROBE_MS", value_name = "MS", help_heading = "Times")]
        probe_ms: u32,
        /// Silence after which a suspect is declared dead [default: 300].
        #[arg(long, env = "HOLDFAST_CONFIRM_MS", value_name = "MS", help_heading = "Times")]
        confirm_ms: u32,
        /// Missing heartbeats after which anyone is declared dead [default: 1000].
        #[arg(long, env = "HOLDFAST_DEAD_MS", value_name = "MS", help_heading = "Times")]
        dead_ms: u32,
    }
}

options! {
    /// Options of `holdfast master`.
    MasterOptions {
        /// The coordinator's member port [default: 127.0.0.1:7390].
        #[arg(long, env = "HOLDFAST_COORDINATOR", value_name = "HOST:PORT")]
        coordinator: String,
        /// Member port; shards after the first take free ports [default: 127.0.0.1:0].
        #[arg(long, env = "HOLDFAST_LISTEN", value_name = "ADDR")]
        listen: SocketAddr,
        /// Host name or address under which others reach this process [default: the address listened on].
        #[arg(long, env = "HOLDFAST_ADVERTISE", value_name = "HOST")]
        advertise: String,
        /// Shards, each a thread with its own log [default: one per core].
        #[arg(long, env = "HOLDFAST_SHARDS", value_name = "N")]
        shards: u32,
        /// Memory for sessions, over all shards; a hard bound [default: 512MiB].
        #[arg(long, env = "HOLDFAST_MEMORY", value_name = "SIZE")]
        memory: ByteSize,
        /// Map all of that memory soon after start, so that no request pays for fresh pages. `false`: the process
        /// grows as memory comes into use [default: true].
        #[arg(long, env = "HOLDFAST_TOUCH_MEMORY", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
        touch_memory: bool,
        /// Size of log segments, the same in the whole cluster [default: 8MiB].
        #[arg(long, env = "HOLDFAST_SEGMENT_BYTES", value_name = "SIZE")]
        segment_bytes: ByteSize,
        /// Largest value [default: 1MiB].
        #[arg(long, env = "HOLDFAST_VALUE_BYTES_MAX", value_name = "SIZE")]
        value_bytes_max: ByteSize,
        /// Redis Cluster protocol: first of one port per shard [default: 127.0.0.1:6381].
        #[arg(long, env = "HOLDFAST_RESP_CLUSTER", value_name = "ADDR", help_heading = "Faces")]
        resp_cluster: SocketAddr,
        /// Embed a gateway with its flat Redis port here [default: none].
        #[arg(long, env = "HOLDFAST_RESP", value_name = "ADDR", help_heading = "Faces")]
        resp: SocketAddr,
        /// gRPC of the embedded gateway [default: none].
        #[arg(long, env = "HOLDFAST_GRPC", value_name = "ADDR", help_heading = "Faces")]
        grpc: SocketAddr,
        /// Health, readiness and metrics [default: none].
        #[arg(long, env = "HOLDFAST_HTTP", value_name = "ADDR", help_heading = "Faces")]
        http: SocketAddr,
        /// The coordinator's gRPC address, for `holdfast ctl` through the embedded gateway
        /// [default: the coordinator's host, port 7391].
        #[arg(long, env = "HOLDFAST_ADMIN", value_name = "HOST:PORT", help_heading = "Faces")]
        admin: String,
        /// How long the embedded gateway tries again [default: 2000].
        #[arg(long, env = "HOLDFAST_RETRY_MS", value_name = "MS", help_heading = "Faces")]
        retry_ms: u32,
        /// Most RESP connections per port [default: 10000].
        #[arg(long, env = "HOLDFAST_CLIENTS_MAX", value_name = "N", help_heading = "Faces")]
        clients_max: usize,
        /// Most Redis connections of a port that have selected the same namespace [default: no limit of its own].
        #[arg(long, env = "HOLDFAST_NAMESPACE_CLIENTS_MAX", value_name = "N", help_heading = "Faces")]
        namespace_clients_max: usize,
        /// Bytes of replies that may wait for one client; beyond it, it is cut off [default: 256MiB].
        #[arg(long, env = "HOLDFAST_CLIENT_OUTPUT_HARD", value_name = "SIZE", help_heading = "Faces")]
        client_output_hard: ByteSize,
        /// Bytes of replies that may wait for one client for longer than --client-output-soft-seconds
        /// [default: 1MiB].
        #[arg(long, env = "HOLDFAST_CLIENT_OUTPUT_SOFT", value_name = "SIZE", help_heading = "Faces")]
        client_output_soft: ByteSize,
        /// See --client-output-soft [default: 60].
        #[arg(long, env = "HOLDFAST_CLIENT_OUTPUT_SOFT_SECONDS", value_name = "N", help_heading = "Faces")]
        client_output_soft_seconds: u32,
        /// Close Redis connections that are silent for so long; 0: never [default: 0].
        #[arg(long, env = "HOLDFAST_CLIENT_IDLE_SECONDS", value_name = "N", help_heading = "Faces")]
        client_idle_seconds: u32,
        /// Under overload requests that have waited for longer are answered -BUSY at once, and sessions are created
        /// only as far as there is room; 0: never [default: 100].
        #[arg(long, env = "HOLDFAST_QUEUE_WAIT_MS", value_name = "MS", help_heading = "Faces")]
        queue_wait_ms: u32,
        /// Label of the failure domain, such as a machine or rack: replicas go to other ones.
        #[arg(long, env = "HOLDFAST_MACHINE", value_name = "LABEL")]
        machine: String,
        /// Name for people [default: master].
        #[arg(long, env = "HOLDFAST_NAME", value_name = "NAME")]
        name: String,
        /// File with the secret that members share.
        #[arg(long, env = "HOLDFAST_CLUSTER_SECRET_FILE", value_name = "PATH", help_heading = "Security")]
        cluster_secret_file: PathBuf,
        /// File with the password that clients must give.
        #[arg(long, env = "HOLDFAST_PASSWORD_FILE", value_name = "PATH", help_heading = "Security")]
        password_file: PathBuf,
    }
}

options! {
    /// Options of `holdfast backup`.
    BackupOptions {
        /// The coordinator's member port [default: 127.0.0.1:7390].
        #[arg(long, env = "HOLDFAST_COORDINATOR", value_name = "HOST:PORT")]
        coordinator: String,
        /// Member port [default: 127.0.0.1:0].
        #[arg(long, env = "HOLDFAST_LISTEN", value_name = "ADDR")]
        listen: SocketAddr,
        /// Host name or address under which others reach this process [default: the address listened on].
        #[arg(long, env = "HOLDFAST_ADVERTISE", value_name = "HOST")]
        advertise: String,
        /// Where the store is kept; it belongs to one backup [default: ./holdfast-backup].
        #[arg(long, env = "HOLDFAST_DIR", value_name = "PATH")]
        dir: PathBuf,
        /// Bound of the store on disk. Give replicas x the masters' memory, twice over [default: 4GiB].
        #[arg(long, env = "HOLDFAST_DISK", value_name = "SIZE")]
        disk: ByteSize,
        /// Every replica on disk is read back and verified once in so many hours; 0: never [default: 24].
        #[arg(long, env = "HOLDFAST_SCRUB_HOURS", value_name = "HOURS")]
        scrub_hours: f64,
        /// Memory for segments that several recovery masters ask for, besides 64MiB for reading them [default: 32MiB].
        #[arg(long, env = "HOLDFAST_MEMORY", value_name = "SIZE")]
        memory: ByteSize,
        /// Size of log segments, the same in the whole cluster [default: 8MiB].
        #[arg(long, env = "HOLDFAST_SEGMENT_BYTES", value_name = "SIZE")]
        segment_bytes: ByteSize,
        /// Health, readiness and metrics [default: none].
        #[arg(long, env = "HOLDFAST_HTTP", value_name = "ADDR")]
        http: SocketAddr,
        /// Label of the failure domain, such as a machine or rack.
        #[arg(long, env = "HOLDFAST_MACHINE", value_name = "LABEL")]
        machine: String,
        /// Name for people [default: backup].
        #[arg(long, env = "HOLDFAST_NAME", value_name = "NAME")]
        name: String,
        /// File with the secret that members share.
        #[arg(long, env = "HOLDFAST_CLUSTER_SECRET_FILE", value_name = "PATH", help_heading = "Security")]
        cluster_secret_file: PathBuf,
    }
}

options! {
    /// Options of `holdfast gateway`.
    GatewayOptions {
        /// The coordinator's member port [default: 127.0.0.1:7390].
        #[arg(long, env = "HOLDFAST_COORDINATOR", value_name = "HOST:PORT")]
        coordinator: String,
        /// Redis protocol, every key at one address [default: 127.0.0.1:6380].
        #[arg(long, env = "HOLDFAST_RESP", value_name = "ADDR", help_heading = "Faces")]
        resp: SocketAddr,
        /// gRPC [default: 127.0.0.1:7380].
        #[arg(long, env = "HOLDFAST_GRPC", value_name = "ADDR", help_heading = "Faces")]
        grpc: SocketAddr,
        /// Health, readiness and metrics [default: 127.0.0.1:8380].
        #[arg(long, env = "HOLDFAST_HTTP", value_name = "ADDR", help_heading = "Faces")]
        http: SocketAddr,
        /// The coordinator's gRPC address, for `holdfast ctl` through this gateway
        /// [default: the coordinator's host, port 7391].
        #[arg(long, env = "HOLDFAST_ADMIN", value_name = "HOST:PORT", help_heading = "Faces")]
        admin: String,
        /// How long to try again before saying that an outcome is unknown [default: 2000].
        #[arg(long, env = "HOLDFAST_RETRY_MS", value_name = "MS")]
        retry_ms: u32,
        /// Largest value [default: 1MiB].
        #[arg(long, env = "HOLDFAST_VALUE_BYTES_MAX", value_name = "SIZE")]
        value_bytes_max: ByteSize,
        /// Most RESP connections [default: 10000].
        #[arg(long, env = "HOLDFAST_CLIENTS_MAX", value_name = "N")]
        clients_max: usize,
        /// Most Redis connections of a port that have selected the same namespace [default: no limit of its own].
        #[arg(long, env = "HOLDFAST_NAMESPACE_CLIENTS_MAX", value_name = "N", help_heading = "Clients")]
        namespace_clients_max: usize,
        /// Bytes of replies that may wait for one client; beyond it, it is cut off [default: 256MiB].
        #[arg(long, env = "HOLDFAST_CLIENT_OUTPUT_HARD", value_name = "SIZE", help_heading = "Clients")]
        client_output_hard: ByteSize,
        /// Bytes of replies that may wait for one client for longer than --client-output-soft-seconds
        /// [default: 1MiB].
        #[arg(long, env = "HOLDFAST_CLIENT_OUTPUT_SOFT", value_name = "SIZE", help_heading = "Clients")]
        client_output_soft: ByteSize,
        /// See --client-output-soft [default: 60].
        #[arg(long, env = "HOLDFAST_CLIENT_OUTPUT_SOFT_SECONDS", value_name = "N", help_heading = "Clients")]
        client_output_soft_seconds: u32,
        /// Close Redis connections that are silent for so long; 0: never [default: 0].
        #[arg(long, env = "HOLDFAST_CLIENT_IDLE_SECONDS", value_name = "N", help_heading = "Clients")]
        client_idle_seconds: u32,
        /// Under overload requests that have waited for longer are answered -BUSY at once, and sessions are created
        /// only as far as there is room; 0: never [default: 100].
        #[arg(long, env = "HOLDFAST_QUEUE_WAIT_MS", value_name = "MS", help_heading = "Clients")]
        queue_wait_ms: u32,
        /// Name for people [default: gateway].
        #[arg(long, env = "HOLDFAST_NAME", value_name = "NAME")]
        name: String,
        /// File with the secret that members share.
        #[arg(long, env = "HOLDFAST_CLUSTER_SECRET_FILE", value_name = "PATH", help_heading = "Security")]
        cluster_secret_file: PathBuf,
        /// File with the password that clients must give.
        #[arg(long, env = "HOLDFAST_PASSWORD_FILE", value_name = "PATH", help_heading = "Security")]
        password_file: PathBuf,
    }
}

impl DevOptions {
    /// As `tls_files`, but with `--tls` the certificates can be made.
    pub fn tls_files_of_dev(&self) -> Outcome<Option<TlsFiles>> {
        match (self.tls, &self.tls_cert, &self.tls_key, &self.tls_ca) {
            (Some(true), None, None, None) => Ok(None),
            _ => self.tls_files(),
        }
    }
}

/// The limits of clients from the options of a role that has any.
macro_rules! client_limits {
    ($($name:ident)*) => { $(
        impl $name {
            pub fn client_limits(&self) -> Outcome<ClientLimits> {
                let usual = ClientLimits::default();
                let bytes = |size: Option<ByteSize>, usual: usize| {
                    size.map_or(usual, |size| usize::try_from(size.0).unwrap_or(usize::MAX))
                };
                let limits = ClientLimits {
                    clients_max: self.clients_max.unwrap_or(usual.clients_max),
                    namespace_clients_max: self.namespace_clients_max,
                    output_hard_bytes: bytes(self.client_output_hard, usual.output_hard_bytes),
                    output_soft_bytes: bytes(self.client_output_soft, usual.output_soft_bytes),
                    output_soft_s: self.client_output_soft_seconds.unwrap_or(usual.output_soft_s),
                    idle_s: self.client_idle_seconds.unwrap_or(usual.idle_s),
                    queue_wait_ms: self.queue_wait_ms.unwrap_or(usual.queue_wait_ms),
                };
                if limits.output_hard_bytes < limits.output_soft_bytes {
                    return Err(Fatal::new(
                        "--client-output-hard is less than --client-output-soft: nobody would reach the soft one",
                    ));
                }
                Ok(limits)
            }

            /// As the flags of another process that is to have the same limits.
            pub fn client_flags(&self) -> Vec<String> {
                let flags = [
                    ("--clients-max", self.clients_max.map(|n| n.to_string())),
                    ("--namespace-clients-max", self.namespace_clients_max.map(|n| n.to_string())),
                    ("--client-output-hard", self.client_output_hard.map(|n| n.to_string())),
                    ("--client-output-soft", self.client_output_soft.map(|n| n.to_string())),
                    ("--client-output-soft-seconds", self.client_output_soft_seconds.map(|n| n.to_string())),
                    ("--client-idle-seconds", self.client_idle_seconds.map(|n| n.to_string())),
                    ("--queue-wait-ms", self.queue_wait_ms.map(|n| n.to_string())),
                ];
                flags
                    .into_iter()
                    .filter_map(|(flag, value)| Some([flag.to_string(), value?]))
                    .flatten()
                    .collect()
            }
        }
    )* };
}

client_limits! { DevOptions MasterOptions GatewayOptions }

fn read_toml<T: for<'de> Deserialize<'de>>(path: &Path) -> Outcome<T> {
    let text = std::fs::read_to_string(path)
        .context(|| format!("cannot read the configuration {}", path.display()))?;
    toml::from_str(&text)
        .map_err(|error| Fatal::new(format!("{}: {}", path.display(), error.to_string().trim())))
}

/// Reads a file that holds one secret: its text without surrounding white space.
pub fn read_secret(path: &Path, what: &str) -> Outcome<String> {
    let text = std::fs::read_to_string(path)
        .context(|| format!("cannot read the {what} in {}", path.display()))?;
    let text = text.trim();
    if text.is_empty() {
        return Err(Fatal::new(format!(
            "{} holds no {what}: it is empty",
            path.display()
        )));
    }
    Ok(text.to_string())
}

/// Refuses to listen where strangers could come from unless they must prove who they are.
pub fn check_exposure(
    listeners: &[(&str, Option<SocketAddr>)],
    has_secret: bool,
    has_password: bool,
) -> Outcome<()> {
    for (flag, address) in listeners {
        let Some(address) = address else { continue };
        if address.ip().is_loopback() || (has_secret && has_password) {
            continue;
        }
        let missing = match (has_secret, has_password) {
            (false, false) => "--cluster-secret-file and --password-file are missing",
            (false, true) => "--cluster-secret-file is missing",
            _ => "--password-file is missing",
        };
        return Err(Fatal::new(format!(
            "--{flag} {address} can be reached from other machines, and {missing}: anyone there could \
             read and change every session. Give both files, or listen on 127.0.0.1"
        )));
    }
    Ok(())
}

/// Warns of listeners that other machines reach without TLS.
pub fn warn_of_clear_text(listeners: &[(&str, Option<SocketAddr>)], has_tls: bool) {
    for (flag, address) in listeners {
        if let Some(address) = address
            && !has_tls
            && !address.ip().is_loopback()
        {
            tracing::warn!(
                "--{flag} {address} can be reached from other machines and speaks no TLS: passwords and \
                 sessions travel in the clear (see --tls-cert)"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("512MiB", 512 << 20),
            ("512 mib", 512 << 20),
            ("64k", 64 << 10),
            ("1GB", 1_000_000_000),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "MiB", "12 parsecs", "-1", "99999999999TiB", "1.5GiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        assert_eq!(ByteSize(512 << 20).to_string(), "512MiB");
        assert_eq!(ByteSize(1000).to_string(), "1000");
    }

    #[test]
    fn flags_win_over_the_file_and_unknown_fields_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dev.toml");
        std::fs::write(&path, "masters = 3\nmemory = \"64MiB\"\nack = \"disk\"\n").unwrap();
        let flags = DevOptions {
            masters: Some(2),
            config: Some(path.clone()),
            ..DevOptions::default()
        };
        let options = flags.with_file().unwrap();
        assert_eq!(options.masters, Some(2));
        assert_eq!(options.memory, Some(ByteSize(64 << 20)));
        assert_eq!(options.ack, Some(Ack::Disk));

        std::fs::write(&path, "memroy = \"64MiB\"\n").unwrap();
        let flags = DevOptions {
            config: Some(path),
            ..DevOptions::default()
        };
        let error = flags.with_file().unwrap_err().to_string();
        assert!(
            error.contains("memroy") && error.contains("dev.toml"),
            "{error}"
        );
    }

    #[test]
    fn only_credentials_open_other_than_loopback_addresses() {
        let open = [("resp", Some("0.0.0.0:6380".parse().unwrap()))];
        let local = [
            ("resp", Some("127.0.0.1:6380".parse().unwrap())),
            ("http", None),
        ];
        assert!(check_exposure(&local, false, false).is_ok());
        assert!(check_exposure(&open, true, true).is_ok());
        for (secret, password, names) in [
            (false, false, "--cluster-secret-file and --password-file"),
            (true, false, "--password-file"),
            (false, true, "--cluster-secret-file"),
        ] {
            let error = check_exposure(&open, secret, password)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(names) && error.contains("0.0.0.0:6380"),
                "{error}"
            );
        }
    }
}
