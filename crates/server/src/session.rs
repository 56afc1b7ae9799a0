//! `holdfast session`: sessions by hand, over gRPC.

use std::io::{IsTerminal, Read, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use clap::{Args, Subcommand};
use holdfast_format::{KeyHash, Namespace, Version};
use holdfast_wire::grpc::{SessionCall, SessionsClient};
use holdfast_wire::redis::glob_matches;
use holdfast_wire::{
    AbsoluteDeadline, Command, Condition, ExpiryChange, Meta, Op, Outcome, TouchCondition,
};

use crate::admin::block_on;
use crate::cli::ClientArgs;
use crate::error::{Context, Fatal, Outcome as Run};
use crate::tls::ClientKeys;

/// Keys asked for at a time by `ls`.
const KEYS_PER_PAGE: u32 = 1_000;

#[derive(Args, Debug)]
pub struct SessionArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Namespace, as SELECT names it in the Redis protocol.
    #[arg(long, short, default_value_t = 0, global = true)]
    namespace: u8,
    #[command(subcommand)]
    command: SessionCommand,
}

#[derive(Subcommand, Debug)]
enum SessionCommand {
    /// Store a session; prints its version.
    Put {
        key: String,
        /// Its bytes; `-` reads them from stdin.
        value: String,
        /// Expires so long after the last write or touch: 30m, 12h, 90s, 1500ms.
        #[arg(long, value_parser = duration)]
        idle: Option<Duration>,
        /// Expires after this time whatever happens.
        #[arg(long, value_parser = duration)]
        ttl: Option<Duration>,
        /// Only if there is no such session.
        #[arg(long, conflicts_with_all = ["if_present", "if_version"])]
        if_absent: bool,
        /// Only if there is such a session.
        #[arg(long, conflicts_with = "if_version")]
        if_present: bool,
        /// Only if it has this version.
        #[arg(long, value_name = "VERSION")]
        if_version: Option<u64>,
    },
    /// Print a session's bytes; with --times what is known about it.
    Get {
        key: String,
        /// Version and times instead of the bytes.
        #[arg(long)]
        times: bool,
    },
    /// Renew a session by its idle time, or by a new one.
    Touch {
        key: String,
        /// From now on it expires so long after the last write or touch.
        #[arg(long, value_parser = duration)]
        idle: Option<Duration>,
        /// Expires after this time whatever happens.
        #[arg(long, value_parser = duration)]
        ttl: Option<Duration>,
    },
    /// Remove sessions; prints how many there were.
    Rm {
        #[arg(required = true)]
        keys: Vec<String>,
    },
    /// List the keys of all sessions, in no particular order.
    Ls {
        /// Only keys that match, as in the Redis protocol: `user:*`, `cart:?`, `[ab]*`.
        #[arg(long = "match", value_name = "PATTERN")]
        pattern: Option<String>,
        /// Stop after so many.
        #[arg(long)]
        limit: Option<u64>,
    },
}

/// Runs one `holdfast session …` command.
pub fn run(args: SessionArgs) -> Run<()> {
    block_on(async move {
        let password = args.client.password()?;
        let keys = args.client.tls.keys()?;
        let tls = keys.as_ref().map(ClientKeys::for_grpc);
        let client = SessionsClient::connect(&args.client.grpc, password.as_deref(), tls)
            .await
            .context(|| "no gateway".to_string())?;
        let mut session = Session {
            client,
            namespace: Namespace(args.namespace),
        };
        session.run(args.command).await
    })
}

struct Session {
    client: SessionsClient,
    namespace: Namespace,
}

impl Session {
    async fn run(&mut self, command: SessionCommand) -> Run<()> {
        match command {
            SessionCommand::Put {
                key,
                value,
                idle,
                ttl,
                if_absent,
                if_present,
                if_version,
            } => {
                let value = match value.as_str() {
                    "-" => {
                        let mut bytes = Vec::new();
                        std::io::stdin()
                            .read_to_end(&mut bytes)
                            .context(|| "cannot read stdin".to_string())?;
                        Bytes::from(bytes)
                    }
                    _ => Bytes::from(value),
                };
                let condition = match (if_absent, if_present, if_version) {
                    (true, _, _) => Condition::Absent,
                    (_, true, _) => Condition::Present,
                    (_, _, Some(version)) => Condition::Version(Version(version)),
                    _ => Condition::Always,
                };
                let expiry = match (idle, ttl) {
                    (None, None) => ExpiryChange::Clear,
                    _ => session_expiry(idle, ttl)?,
                };
                let op = Op::Put {
                    value,
                    condition,
                    expiry,
                    return_old: false,
                };
                match self.call(&key, op).await? {
                    Outcome::Done { meta, .. } => println!("version {}", meta.version.0),
                    other => return Err(unwelcome(&key, other)),
                }
            }
            SessionCommand::Get { key, times } => {
                let op = if times { Op::Stat } else { Op::Get };
                match self.call(&key, op).await? {
                    Outcome::Value { meta, .. } if times => print!("{}", described(&meta)),
                    Outcome::Value { value, .. } => {
                        let mut stdout = std::io::stdout();
                        let result = stdout.write_all(&value).and_then(|()| {
                            if stdout.is_terminal() {
                                stdout.write_all(b"\n")
                            } else {
                                Ok(())
                            }
                        });
                        result.context(|| "cannot write to stdout".to_string())?;
                    }
                    other => return Err(unwelcome(&key, other)),
                }
            }
            SessionCommand::Touch { key, idle, ttl } => {
                let expiry = match (idle, ttl) {
                    (None, None) => ExpiryChange::Slide,
                    _ => session_expiry(idle, ttl)?,
                };
                let op = Op::Touch {
                    condition: TouchCondition::Always,
                    expiry,
                    return_value: false,
                };
                match self.call(&key, op).await? {
                    Outcome::Done { meta, .. } => print!("{}", described(&meta)),
                    other => return Err(unwelcome(&key, other)),
                }
            }
            SessionCommand::Rm { keys } => {
                let mut removed = 0;
                for key in keys {
                    let op = Op::Delete {
                        condition: Condition::Always,
                        return_old: false,
                    };
                    match self.call(&key, op).await? {
                        Outcome::Done { .. } => removed += 1,
                        Outcome::Absent { .. } => {}
                        other => return Err(unwelcome(&key, other)),
                    }
                }
                println!("{removed} removed");
            }
            SessionCommand::Ls { pattern, limit } => {
                self.list(pattern.as_deref(), limit.unwrap_or(u64::MAX))
                    .await?;
            }
        }
        Ok(())
    }

    async fn list(&mut self, pattern: Option<&str>, limit: u64) -> Run<()> {
        let mut stdout = std::io::stdout().lock();
        let mut from = KeyHash(0);
        let mut listed = 0;
        loop {
            let op = Op::Scan {
                from,
                limit: KEYS_PER_PAGE,
            };
            let (keys, next) = match self.call("", op).await? {
                Outcome::Scanned { keys, next } => (keys, next),
                other => return Err(unwelcome("ls", other)),
            };
            for (_, key) in keys {
                if pattern.is_some_and(|pattern| !glob_matches(pattern.as_bytes(), &key)) {
                    continue;
                }
                if listed == limit {
                    return Ok(());
                }
                listed += 1;
                if writeln!(stdout, "{}", key.escape_ascii()).is_err() {
                    // Whoever read our list has seen enough.
                    return Ok(());
                }
            }
            match next {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
    }

    async fn call(&mut self, key: &str, op: Op) -> Run<Outcome> {
        let command = Command {
            namespace: self.namespace,
            key: Bytes::copy_from_slice(key.as_bytes()),
            op,
        };
        self.client
            .call(SessionCall {
                command,
                once: None,
                within_ms: None,
            })
            .await
            .context(|| named(key))
    }
}

/// A key as errors name it: its beginning if it is long.
fn named(key: &str) -> String {
    const CHARACTERS_MAX: usize = 60;
    match key.char_indices().nth(CHARACTERS_MAX) {
        Some((end, _)) => format!("{}… ({} bytes)", &key[..end], key.len()),
        None => key.to_string(),
    }
}

fn unwelcome(key: &str, outcome: Outcome) -> Fatal {
    let key = named(key);
    Fatal::new(match outcome {
        Outcome::Absent { .. } => format!("{key}: no such session"),
        Outcome::Refused { current: None, .. } => format!("{key}: no such session"),
        Outcome::Refused {
            current: Some(meta),
            ..
        } => {
            format!("{key}: refused, its version is {}", meta.version.0)
        }
        Outcome::Failed(failure) => format!("{key}: {failure}"),
        _ => format!("{key}: the server answered what was not asked"),
    })
}

fn session_expiry(idle: Option<Duration>, ttl: Option<Duration>) -> Run<ExpiryChange> {
    let idle_ms = idle
        .map(|idle| {
            u32::try_from(idle.as_millis())
                .map_err(|_| Fatal::new("--idle is at most 49 days; use --ttl for longer"))
        })
        .transpose()?;
    let absolute = ttl.map(|ttl| AbsoluteDeadline::InMs(ttl.as_millis() as u64));
    Ok(ExpiryChange::Session { idle_ms, absolute })
}

fn described(meta: &Meta) -> String {
    let mut text = format!("version    {}\n", meta.version.0);
    let mut line = |name: &str, value: String| {
        text.push_str(&format!("{name:<10} {value}\n"));
    };
    match meta.remaining_ms {
        Some(ms) => line("expires in", shown(ms)),
        None => line("expires", "never".to_string()),
    }
    if let Some(idle_ms) = meta.idle_ms {
        line("idle", shown(idle_ms.into()));
    }
    if let Some(absolute) = meta.absolute {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        line(
            "at most",
            shown(absolute.0.saturating_sub(now.as_millis() as u64)),
        );
    }
    text
}

fn shown(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{ms} ms"),
        10_000..600_000 => format!("{} s", ms / 1_000),
        600_000..36_000_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

/// `90s`, `30m`, `12h`, `7d`, `1500ms`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("`{text}` is no time; write it as 30m or 90s"))?;
    let ms = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => {
            return Err(format!(
                "`{unit}` is no unit of time; ms, s, m, h and d are"
            ));
        }
    };
    number
        .checked_mul(ms)
        .map(Duration::from_millis)
        .ok_or(format!("`{text}` is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, ms) in [
            ("1500ms", 1_500),
            ("90", 90_000),
            ("90s", 90_000),
            ("30m", 1_800_000),
            ("12h", 43_200_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "m", "3 weeks", "-1s", "99999999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
