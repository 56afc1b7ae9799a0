//! What a gateway tells about itself: INFO, HELLO, CLIENT LIST, CONFIG GET.
//!
//! The fields are those that clients and exporters parse. Memory, expiry, eviction and the key space are those
//! of all shards together, as they told a second ago at most.

use std::fmt::Write as _;

use holdfast_wire::redis::{InfoSections, glob_matches};
use holdfast_wire::resp::ReplyWriter;

use crate::connection::Connection;
use holdfast_wire::Usage;

/// Claimed so that clients use what 7.2 brought (CLIENT SETINFO) and try nothing of Redis 8.
pub(crate) const REDIS_VERSION: &str = "7.4.0";

/// Everything INFO tells.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    /// `standalone` or `cluster`.
    pub(crate) redis_mode: &'static str,
    pub(crate) run_id: String,
    pub(crate) pid: u32,
    pub(crate) port: u16,
    pub(crate) uptime_s: u64,
    pub(crate) connected_clients: usize,
    pub(crate) clients_max: usize,
    /// Commands that wait for their shard.
    pub(crate) waiting: u64,
    /// No view yet, or tablets that are being recovered.
    pub(crate) loading: bool,
    /// How long a recovery usually lasts, for clients that wait it out.
    pub(crate) loading_eta_s: u64,
    pub(crate) usage: &'a Usage,
    pub(crate) used_peak_bytes: u64,
    /// Some namespace evicts.
    pub(crate) evicts: bool,
    pub(crate) replicas: u8,
    pub(crate) connections_total: u64,
    pub(crate) connections_rejected: u64,
    pub(crate) commands_total: u64,
    pub(crate) commands_per_s: u64,
    pub(crate) errors_total: u64,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) input_bytes: u64,
    pub(crate) output_bytes: u64,
}

/// The text of INFO.
pub(crate) fn info_text(facts: &Facts<'_>, sections: &InfoSections) -> String {
    let mut text = String::new();
    let cluster_enabled = u8::from(facts.redis_mode == "cluster");
    let mut section = |name: &str, fields: &[(&str, String)]| {
        if !sections.wants(&name.to_ascii_lowercase()) {
            return;
        }
        if !text.is_empty() {
            text.push_str("\r\n");
        }
        let _ = write!(text, "# {name}\r\n");
        for (field, value) in fields {
            let _ = write!(text, "{field}:{value}\r\n");
        }
    };
    let number = |value: u64| value.to_string();
    section(
        "Server",
        &[
            ("redis_version", REDIS_VERSION.into()),
            ("holdfast_version", env!("CARGO_PKG_VERSION").into()),
            ("redis_mode", facts.redis_mode.into()),
            (
                "os",
                format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            ),
            ("arch_bits", number(u64::from(usize::BITS))),
            ("process_id", number(u64::from(facts.pid))),
            ("run_id", facts.run_id.clone()),
            ("tcp_port", number(u64::from(facts.port))),
            ("uptime_in_seconds", number(facts.uptime_s)),
            ("uptime_in_days", number(facts.uptime_s / 86_400)),
        ],
    );
    section(
        "Clients",
        &[
            ("connected_clients", number(facts.connected_clients as u64)),
            ("blocked_clients", number(facts.waiting)),
            ("maxclients", number(facts.clients_max as u64)),
        ],
    );
    section(
        "Memory",
        &[
            ("used_memory", number(facts.usage.used_bytes)),
            // A shard's memory stays with its process once it was used.
            ("used_memory_rss", number(facts.usage.used_bytes)),
            ("used_memory_peak", number(facts.used_peak_bytes)),
            ("used_memory_dataset", number(facts.usage.live_bytes)),
            ("maxmemory", number(facts.usage.limit_bytes)),
            ("maxmemory_policy", policy(facts.evicts).into()),
            ("mem_fragmentation_ratio", "1.00".into()),
        ],
    );
    let mut persistence = vec![("loading", number(u64::from(facts.loading)))];
    if facts.loading {
        persistence.push(("loading_eta_seconds", number(facts.loading_eta_s)));
    }
    persistence.push(("aof_enabled", number(1)));
    persistence.push(("rdb_bgsave_in_progress", number(0)));
    persistence.push(("rdb_last_save_time", number(0)));
    section("Persistence", &persistence);
    section(
        "Stats",
        &[
            (
                "total_connections_received",
                number(facts.connections_total),
            ),
            ("total_commands_processed", number(facts.commands_total)),
            ("instantaneous_ops_per_sec", number(facts.commands_per_s)),
            ("total_net_input_bytes", number(facts.input_bytes)),
            ("total_net_output_bytes", number(facts.output_bytes)),
            ("rejected_connections", number(facts.connections_rejected)),
            ("expired_keys", number(facts.usage.expired)),
            ("evicted_keys", number(facts.usage.evicted)),
            ("keyspace_hits", number(facts.hits)),
            ("keyspace_misses", number(facts.misses)),
            ("total_error_replies", number(facts.errors_total)),
        ],
    );
    section(
        "Replication",
        &[
            ("role", "master".into()),
            ("connected_slaves", number(0)),
            ("holdfast_replicas", number(u64::from(facts.replicas))),
            ("master_replid", facts.run_id.clone()),
            ("master_repl_offset", number(0)),
        ],
    );
    section("CPU", &[]);
    section("Errorstats", &[]);
    section(
        "Cluster",
        &[("cluster_enabled", number(u64::from(cluster_enabled)))],
    );
    let databases: Vec<(String, String)> = (facts.usage.namespaces.iter())
        .filter(|used| used.sessions > 0)
        .map(|used| {
            let (sessions, with_deadline) = (used.sessions, used.with_deadline);
            let line = format!("keys={sessions},expires={with_deadline},avg_ttl=0");
            (format!("db{}", used.namespace.0), line)
        })
        .collect();
    let databases: Vec<(&str, String)> = databases
        .iter()
        .map(|(name, line)| (name.as_str(), line.clone()))
        .collect();
    section("Keyspace", &databases);
    text
}

/// In Redis's words: what happens to sessions when memory, or a namespace, is full.
fn policy(evicts: bool) -> &'static str {
    if evicts { "allkeys-lru" } else { "noeviction" }
}

/// The reply to HELLO.
pub(crate) fn write_hello(connection: &mut Connection, redis_mode: &str) {
    let (protocol, number) = (connection.protocol.number(), connection.number);
    connection.write(|reply| {
        reply.map(7);
        for (field, value) in [("server", "redis"), ("version", REDIS_VERSION)] {
            reply.bulk(field.as_bytes());
            reply.bulk(value.as_bytes());
        }
        reply.bulk(b"proto");
        reply.integer(protocol);
        reply.bulk(b"id");
        reply.integer(number as i64);
        for (field, value) in [("mode", redis_mode), ("role", "master")] {
            reply.bulk(field.as_bytes());
            reply.bulk(value.as_bytes());
        }
        reply.bulk(b"modules");
        reply.array(0);
    });
}

/// One connection's line of CLIENT LIST.
pub(crate) fn client_line(connection: &Connection, now_us: u64) -> String {
    let seconds_since = |us: u64| now_us.saturating_sub(us) / 1_000_000;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!(
        "id={} addr={} laddr= fd=-1 name={} age={} idle={} flags=N db={} sub=0 psub=0 ssub=0 multi=-1 \
         qbuf={} qbuf-free=0 omem={} events=r cmd=NULL user=default redir=-1 resp={} lib-name={} \
         lib-ver={}\n",
        connection.number,
        connection.client_address,
        text(&connection.name),
        seconds_since(connection.since_us),
        seconds_since(connection.heard_us),
        connection.namespace.0,
        connection.parser.buffered_bytes(),
        connection.output_bytes(),
        connection.protocol.number(),
        text(&connection.library_name),
        text(&connection.library_version),
    )
}

/// What CONFIG GET tells that is not always the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) value_bytes_max: u32,
    pub(crate) clients_max: usize,
    /// As the shards last told; 0 before they have.
    pub(crate) memory_bytes_max: u64,
    pub(crate) evicts: bool,
}

/// CONFIG GET: the settings that clients ask for, of those that match a pattern.
pub(crate) fn write_config(
    patterns: &[bytes::Bytes],
    settings: &Settings,
    reply: &mut ReplyWriter<'_>,
) {
    let value_bytes_max = settings.value_bytes_max.to_string();
    let clients_max = settings.clients_max.to_string();
    let memory_bytes_max = settings.memory_bytes_max.to_string();
    let policy = policy(settings.evicts);
    let settings: [(&str, &str); 13] = [
        ("appendfsync", "always"),
        ("appendonly", "yes"),
        ("databases", "16"),
        ("maxclients", &clients_max),
        ("maxmemory", &memory_bytes_max),
        ("maxmemory-policy", policy),
        ("notify-keyspace-events", ""),
        ("proto-max-bulk-len", &value_bytes_max),
        ("replica-read-only", "yes"),
        ("save", ""),
        ("slave-read-only", "yes"),
        ("slowlog-log-slower-than", "-1"),
        ("timeout", "0"),
    ];
    let patterns: Vec<Vec<u8>> = patterns.iter().map(|p| p.to_ascii_lowercase()).collect();
    let found: Vec<_> = settings
        .iter()
        .filter(|(name, _)| patterns.iter().any(|p| glob_matches(p, name.as_bytes())))
        .collect();
    reply.map(found.len());
    for (name, value) in found {
        reply.bulk(name.as_bytes());
        reply.bulk(value.as_bytes());
    }
}
