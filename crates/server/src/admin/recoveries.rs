//! `holdfast ctl recoveries`: what happens to the logs of dead shards, and `ctl recovery abandon`: giving one up.

use std::fmt::Write;
use std::io::IsTerminal;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use holdfast_format::{LogId, SegmentId};
use holdfast_wire::grpc::{
    ClusterStatus, RecoveryHold, RecoveryPart, RecoveryStage, RecoveryStatus, StoreAway,
};
use serde::Serialize;

use super::{ask, block_on, connect, name_of, rounded, told};
use crate::cli::ClientArgs;
use crate::error::{Context, Fatal, Outcome};

/// How often `--watch` looks: a recovery takes about a second.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// A bar has so many places.
const BAR_WIDTH: u64 = 30;

#[derive(Subcommand, Debug)]
pub enum RecoveryCommand {
    /// Give up a held log: its sessions are lost, and its slots are served again.
    Abandon(AbandonArgs),
}

/// Without --confirm nothing is given up, and what would be is told.
#[derive(Args, Debug)]
pub struct AbandonArgs {
    /// The log, as `ctl recoveries` shows it.
    log: LogName,
    /// The name of the shard that wrote it: that you mean this one.
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
}

/// `l7f3a`, or without the letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LogName(LogId);

impl FromStr for LogName {
    type Err = String;

    fn from_str(text: &str) -> Result<LogName, String> {
        let number = text.strip_prefix('l').unwrap_or(text);
        match u64::from_str_radix(number, 16) {
            Ok(number) => Ok(LogName(LogId(number))),
            Err(_) => Err("not a log's id; `holdfast ctl recoveries` shows them".to_string()),
        }
    }
}

/// Runs `holdfast ctl recoveries`.
pub fn run(client: &ClientArgs, json: bool, watch: bool) -> Outcome<()> {
    if !watch {
        let status = ask(client)?;
        match json {
            true => println!("{}", json_of(&status, true)),
            false => print!("{}", text_of(&status, false)),
        }
        return Ok(());
    }
    let clear = !json && std::io::stdout().is_terminal();
    loop {
        // A coordinator that is away comes back: what it does then is just what one watches for.
        let text = match ask(client) {
            Ok(status) if json => json_of(&status, false) + "\n",
            Ok(status) => text_of(&status, true),
            Err(error) if json => {
                eprintln!("holdfast: {error}");
                String::new()
            }
            Err(error) => format!("no answer: {error}\n"),
        };
        if clear {
            print!("\x1b[H\x1b[2J");
        }
        print!("{text}");
        // Whoever reads has had enough.
        if std::io::Write::flush(&mut std::io::stdout()).is_err() {
            return Ok(());
        }
        std::thread::sleep(WATCH_EVERY);
    }
}

/// Runs `holdfast ctl recovery`.
pub fn decide(client: &ClientArgs, command: RecoveryCommand) -> Outcome<()> {
    let RecoveryCommand::Abandon(AbandonArgs {
        log: LogName(log),
        confirm,
    }) = command;
    block_on(async {
        let mut admin = connect(client).await?;
        let status = told(client, &mut admin).await?;
        let recovery = held(&status, log)?;
        let Some(name) = confirm else {
            print!("{}", loss_of(recovery));
            return Err(Fatal::new(format!(
                "nothing is given up without --confirm {}",
                recovery.name
            )));
        };
        let done = admin.abandon_recovery(log, &name).await;
        done.context(|| client.grpc.clone())?;
        println!(
            "log {log} ({name}) is given up: its {} slots begin anew",
            recovery.slots_left
        );
        Ok(())
    })
}

/// The recovery of `log`, if that is held.
fn held(status: &ClusterStatus, log: LogId) -> Outcome<&RecoveryStatus> {
    let under_way = || status.recoveries.iter().filter(|it| !it.finished);
    match under_way().find(|it| it.log == log) {
        Some(recovery) if recovery.hold.is_some() => Ok(recovery),
        Some(recovery) => Err(Fatal::new(format!(
            "log {log} ({}) is not held: {}",
            recovery.name, recovery.state
        ))),
        None => Err(Fatal::new(format!("log {log} is not being recovered"))),
    }
}

/// What giving a log up means, before it is done.
fn loss_of(recovery: &RecoveryStatus) -> String {
    let mut text = text_of_one(recovery, false, |id| id.to_string());
    let RecoveryStatus {
        log,
        name,
        slots_left,
        ..
    } = recovery;
    let share = f64::from(*slots_left) / f64::from(holdfast_format::SLOTS) * 100.0;
    let _ = write!(
        text,
        "\nGiving it up loses for good every session of the {slots_left} slots ({share:.1} % of all) that nobody has taken \
         over from it,\nalso those that could still be read: what is missing may say that they were changed or removed. The \
         slots are served\nagain at once, and are empty. Backups that come back later delete what they hold of the log.\n\
         Do it only if the backups that are away will not come back, and {name} and they cannot reach clients any more.\n\n  \
         holdfast ctl recovery abandon {log} --confirm {name}\n\n"
    );
    text
}

fn text_of(status: &ClusterStatus, bars: bool) -> String {
    let mut text = String::new();
    if status.recoveries.is_empty() {
        text.push_str("no recovery, and none since the coordinator began\n");
    }
    for recovery in status.recoveries.iter().filter(|it| !it.finished) {
        text += &text_of_one(recovery, bars, |id| name_of(status, id));
    }
    for recovery in status.recoveries.iter().rev().filter(|it| it.finished) {
        let given_up = match recovery.abandoned {
            true => ", given up",
            false => "",
        };
        let _ = writeln!(
            text,
            "log {} ({}): done in {}, {} entries, {}{given_up}",
            recovery.log,
            recovery.name,
            seconds(recovery.running_ms),
            recovery.entries,
            rounded(recovery.bytes),
        );
    }
    text
}

fn text_of_one(
    recovery: &RecoveryStatus,
    bars: bool,
    name_of: impl Fn(holdfast_format::ServerId) -> String,
) -> String {
    let RecoveryStatus { log, name, .. } = recovery;
    let mut text = format!(
        "log {log} ({name}): {} for {}, {} slots not served",
        stage_name(recovery.stage),
        seconds(recovery.running_ms),
        recovery.slots_left
    );
    if recovery.abandoned {
        text.push_str(", given up by an operator");
    }
    text.push('\n');
    if let Some(hold) = &recovery.hold {
        let _ = writeln!(text, "  {}", hold.why);
        if !hold.stores_away.is_empty() {
            let away: Vec<String> = hold.stores_away.iter().map(store_name).collect();
            let _ = writeln!(text, "  away: {}", away.join(", "));
        }
    }
    for part in &recovery.parts {
        let _ = write!(text, "  {}", name_of(part.master));
        let _ = writeln!(text, ": {}", text_of_part(part, bars));
    }
    text
}

fn text_of_part(part: &RecoveryPart, bars: bool) -> String {
    let what = format!(
        "{} slots, {} entries, {}",
        part.slots,
        part.entries,
        rounded(part.bytes)
    );
    let running = seconds(part.running_ms);
    if !part.failure.is_empty() {
        return format!("failed after {running}: {}", part.failure);
    }
    if let Some(at_ms) = part.taken_over_ms {
        let at = seconds(at_ms);
        return match part.bytes_left {
            0 => format!("{what}, served after {at}"),
            left => format!(
                "{what}, served after {at}, {} not replicated yet",
                rounded(left)
            ),
        };
    }
    let progress = Progress::of(part);
    let mut text = match bars {
        true => format!("{} ", progress.bar()),
        false => String::new(),
    };
    let _ = write!(text, "{what}, attempt {}, {running}", part.attempt);
    if part.total_bytes > 0 {
        let (done, total) = (rounded(part.done_bytes), rounded(part.total_bytes));
        let _ = write!(text, ", {done} of {total} read");
    }
    if let Some(rate) = progress.mb_per_second {
        let _ = write!(text, " at {rate:.0} MB/s");
    }
    if let Some(left_ms) = progress.left_ms {
        let _ = write!(text, ", {} left", seconds(left_ms));
    }
    text
}

/// How far a recovery master is, and when it will be through if it goes on as until now.
struct Progress {
    percent: u64,
    mb_per_second: Option<f64>,
    left_ms: Option<u64>,
}

impl Progress {
    fn of(part: &RecoveryPart) -> Progress {
        let (done, total) = (part.done_bytes.min(part.total_bytes), part.total_bytes);
        let percent = (done * 100).checked_div(total).unwrap_or(0);
        let moving = done > 0 && part.running_ms > 0;
        let left_ms = u128::from(total - done) * u128::from(part.running_ms);
        Progress {
            percent,
            mb_per_second: moving.then(|| done as f64 / 1e3 / part.running_ms as f64),
            left_ms: moving.then(|| u64::try_from(left_ms / u128::from(done)).unwrap_or(u64::MAX)),
        }
    }

    fn bar(&self) -> String {
        let full = (self.percent * BAR_WIDTH / 100) as usize;
        let empty = BAR_WIDTH as usize - full;
        format!(
            "[{}{}] {:3} %",
            "#".repeat(full),
            ".".repeat(empty),
            self.percent
        )
    }
}

fn stage_name(stage: RecoveryStage) -> &'static str {
    match stage {
        RecoveryStage::Fencing => "fencing",
        RecoveryStage::Held => "held",
        RecoveryStage::Planning => "planned",
        RecoveryStage::Replaying => "replaying",
        RecoveryStage::Leaning => "leaning",
        RecoveryStage::Done => "done",
    }
}

fn store_name(away: &StoreAway) -> String {
    match away.name.is_empty() {
        true => format!("store {:016x}", away.store),
        false => format!("{} (store {:016x})", away.name, away.store),
    }
}

/// `12 ms`, `3.4 s`, `5 min`.
fn seconds(ms: u64) -> String {
    match ms {
        ms if ms < 1_000 => format!("{ms} ms"),
        ms if ms < 120_000 => format!("{:.1} s", ms as f64 / 1e3),
        ms => format!("{} min", ms / 60_000),
    }
}

#[derive(Serialize)]
struct RecoveryJson {
    log: String,
    name: String,
    stage: &'static str,
    state: String,
    finished: bool,
    abandoned: bool,
    detected_ms: u64,
    running_ms: u64,
    attempt: u64,
    slots_left: u32,
    hold: Option<HoldJson>,
    parts: Vec<PartJson>,
}

#[derive(Serialize)]
struct HoldJson {
    why: String,
    of_log: Option<String>,
    segments: Vec<String>,
    segments_missing: u64,
    stores_away: Vec<AwayJson>,
}

#[derive(Serialize)]
struct AwayJson {
    store: String,
    name: Option<String>,
}

#[derive(Serialize)]
struct PartJson {
    master: String,
    master_name: String,
    attempt: u64,
    slots: u32,
    entries: u64,
    bytes: u64,
    done_bytes: u64,
    total_bytes: u64,
    began_ms: u64,
    running_ms: u64,
    mb_per_second: Option<f64>,
    left_ms: Option<u64>,
    taken_over_ms: Option<u64>,
    bytes_left: u64,
    failure: Option<String>,
}

fn json_of(status: &ClusterStatus, pretty: bool) -> String {
    let one = |recovery: &RecoveryStatus| RecoveryJson {
        log: recovery.log.to_string(),
        name: recovery.name.clone(),
        stage: stage_name(recovery.stage),
        state: recovery.state.clone(),
        finished: recovery.finished,
        abandoned: recovery.abandoned,
        detected_ms: recovery.detected.0,
        running_ms: recovery.running_ms,
        attempt: recovery.attempt,
        slots_left: recovery.slots_left,
        hold: recovery.hold.as_ref().map(hold_json),
        parts: (recovery.parts.iter().map(|part| part_json(status, part))).collect(),
    };
    let all: Vec<RecoveryJson> = status.recoveries.iter().map(one).collect();
    let text = match pretty {
        true => serde_json::to_string_pretty(&all),
        false => serde_json::to_string(&all),
    };
    text.expect("strings and numbers are JSON")
}

fn hold_json(hold: &RecoveryHold) -> HoldJson {
    let away = |away: &StoreAway| AwayJson {
        store: format!("{:016x}", away.store),
        name: (!away.name.is_empty()).then(|| away.name.clone()),
    };
    HoldJson {
        why: hold.why.clone(),
        of_log: hold.of_log.map(|log| log.to_string()),
        segments: hold.segments.iter().map(SegmentId::to_string).collect(),
        segments_missing: hold.segments_missing,
        stores_away: hold.stores_away.iter().map(away).collect(),
    }
}

fn part_json(status: &ClusterStatus, part: &RecoveryPart) -> PartJson {
    let running = part.taken_over_ms.is_none() && part.failure.is_empty();
    let progress = Progress::of(part);
    PartJson {
        master: part.master.to_string(),
        master_name: name_of(status, part.master),
        attempt: part.attempt,
        slots: part.slots,
        entries: part.entries,
        bytes: part.bytes,
        done_bytes: part.done_bytes,
        total_bytes: part.total_bytes,
        began_ms: part.began_ms,
        running_ms: part.running_ms,
        mb_per_second: progress.mb_per_second,
        left_ms: progress.left_ms.filter(|_| running),
        taken_over_ms: part.taken_over_ms,
        bytes_left: part.bytes_left,
        failure: (!part.failure.is_empty()).then(|| part.failure.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::sample;
    use holdfast_format::{ClusterMs, ServerId};

    fn recovery(log: u64, stage: RecoveryStage) -> RecoveryStatus {
        RecoveryStatus {
            log: LogId(log),
            name: format!("master-{log}.0"),
            stage,
            hold: None,
            abandoned: false,
            slots_left: 4096,
            parts: Vec::new(),
            attempt: 1,
            state: "being recovered".to_string(),
            entries: 1_000,
            bytes: 5 << 20,
            running_ms: 1_500,
            detected: ClusterMs(1_700_000_000_000),
            finished: stage == RecoveryStage::Done,
            phases: Vec::new(),
        }
    }

    fn several() -> ClusterStatus {
        let mut held = recovery(0xcd, RecoveryStage::Held);
        held.hold = Some(RecoveryHold {
            why: "2 segments have no complete replica on a backup that is up: g3 g7".to_string(),
            of_log: None,
            segments: vec![SegmentId(3), SegmentId(7)],
            segments_missing: 2,
            stores_away: vec![
                StoreAway {
                    store: 0x1f,
                    name: "backup-1".to_string(),
                },
                StoreAway {
                    store: 0x2f,
                    name: String::new(),
                },
            ],
        });
        let part = |attempt, done_bytes| RecoveryPart {
            attempt,
            master: ServerId(0xab),
            slots: 900,
            entries: 70,
            bytes: 2 << 20,
            done_bytes,
            total_bytes: 100_000_000,
            began_ms: 20,
            running_ms: 100,
            ..RecoveryPart::default()
        };
        let mut replaying = recovery(0xef, RecoveryStage::Replaying);
        replaying.parts = vec![part(1, 25_000_000), part(2, 0), part(3, 5), part(4, 5)];
        replaying.parts[2].failure = "out of memory".to_string();
        replaying.parts[3].taken_over_ms = Some(150);
        replaying.parts[3].bytes_left = 3 << 20;
        let mut done = recovery(0x11, RecoveryStage::Done);
        done.abandoned = true;
        ClusterStatus {
            recoveries: vec![held, replaying, done],
            ..sample()
        }
    }

    #[test]
    fn people_see_what_every_recovery_waits_for_and_how_far_it_is() {
        let text = text_of(&several(), true);
        for part in [
            "log lcd (master-205.0): held for 1.5 s, 4096 slots not served",
            "  2 segments have no complete replica on a backup that is up: g3 g7",
            "  away: backup-1 (store 000000000000001f), store 000000000000002f",
            "[#######.......................]  25 % 900 slots, 70 entries, 2.0 MiB, attempt 1, 100 ms, 24 MiB of 95 MiB \
             read at 250 MB/s, 300 ms left",
            "[..............................]   0 %",
            "master-1.0: failed after 100 ms: out of memory",
            "2.0 MiB, served after 150 ms, 3.0 MiB not replicated yet",
            "log l11 (master-17.0): done in 1.5 s, 1000 entries, 5.0 MiB, given up",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(!text_of(&several(), false).contains('#'));
        assert!(text_of(&sample(), false).starts_with("no recovery"));
    }

    #[test]
    fn scripts_see_the_same() {
        let json: serde_json::Value = serde_json::from_str(&json_of(&several(), true)).unwrap();
        assert_eq!(json[0]["stage"], "held");
        assert_eq!(json[0]["hold"]["segments"][1], "g7");
        assert_eq!(json[0]["hold"]["stores_away"][0]["name"], "backup-1");
        assert_eq!(json[1]["parts"][0]["left_ms"], 300);
        assert_eq!(json[1]["parts"][0]["master_name"], "master-1.0");
        assert_eq!(json[1]["parts"][1]["left_ms"], serde_json::Value::Null);
        assert_eq!(json_of(&several(), false).lines().count(), 1);
    }

    #[test]
    fn a_log_is_given_up_only_if_it_is_held() {
        let status = several();
        let text = loss_of(held(&status, LogId(0xcd)).unwrap());
        assert!(
            text.contains("abandon lcd --confirm master-205.0"),
            "{text}"
        );
        assert!(text.contains("4096 slots (25.0 % of all)"), "{text}");
        for (log, why) in [
            (0xef, "log lef (master-239.0) is not held: being recovered"),
            (0x11, "log l11 is not being recovered"),
        ] {
            assert_eq!(held(&status, LogId(log)).unwrap_err().to_string(), why);
        }
        for text in ["l7f3a", "7f3a"] {
            assert_eq!(text.parse(), Ok(LogName(LogId(0x7f3a))));
        }
        assert!("master-1.0".parse::<LogName>().is_err());
    }
}
