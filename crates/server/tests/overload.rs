//! A real server that is asked for far more than it can do: what it refuses it has not executed, and nobody's reply is
//! missing, misplaced or made up.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // real processes, sockets and clocks

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use support::{Dev, PATIENCE, http};

/// What is written at a time, and how many of these may be under way.
const REQUESTS: u64 = 500;
const UNDER_WAY: usize = 40;

fn request(words: &[&str]) -> String {
    let mut out = format!("*{}\r\n", words.len());
    for word in words {
        out += &format!("${}\r\n{word}\r\n", word.len());
    }
    out
}

fn reply(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    if let Some(bytes) = line
        .strip_prefix('$')
        .and_then(|n| n.trim_end().parse().ok())
    {
        let mut value = vec![0; bytes];
        reader.read_exact(&mut value).unwrap();
        reader.read_line(&mut line).unwrap();
        return String::from_utf8(value).unwrap();
    }
    line.trim_end().to_string()
}

/// The sum of a metric over everything that reports it.
fn metric(dev: &Dev, name: &str) -> f64 {
    let (_, text) = http(dev.address("http"), "/metrics");
    let samples = text
        .lines()
        .filter(|line| line.starts_with(&format!("{name}{{")));
    samples
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

/// Asks for one session of its own without pause until `over`, and checks every reply against what was accepted before.
/// Says how many were refused, and tells `refused`.
fn flood(address: &str, session: &str, over: &AtomicBool, refused: &AtomicU64) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut replies = BufReader::new(stream.try_clone().unwrap());
    stream
        .write_all(request(&["SET", session, "0"]).as_bytes())
        .unwrap();
    assert_eq!(reply(&mut replies), "+OK");
    let (began, mut value) = (1, "0".to_string());
    let (told, asked) = sync_channel(UNDER_WAY);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut first = began;
            while !over.load(Ordering::Relaxed) {
                let mut out = String::new();
                for number in first..first + REQUESTS {
                    out += &match number % 10 {
                        0 => request(&["PING"]),
                        1 | 5 => request(&["SET", session, &number.to_string()]),
                        _ => request(&["GET", session]),
                    };
                }
                told.send(first).unwrap();
                stream.write_all(out.as_bytes()).unwrap();
                first += REQUESTS;
            }
        });
        for first in asked {
            for number in first..first + REQUESTS {
                let reply = reply(&mut replies);
                let busy = reply.starts_with("-BUSY ");
                match number % 10 {
                    0 => assert_eq!(reply, "+PONG", "the management path is open"),
                    _ if busy => {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                    1 | 5 => {
                        assert_eq!(reply, "+OK");
                        value = number.to_string();
                    }
                    _ => assert_eq!(reply, value, "of request {number}"),
                }
            }
        }
    });
}

/// Floods until somebody was refused, if `--queue-wait-ms` allows for it. How long that takes decides nothing.
#[test]
fn what_is_refused_under_overload_was_not_executed() {
    let dir = tempfile::tempdir().unwrap();
    let mut arguments = vec!["--replicas", "0", "--backups", "0", "--shards", "1"];
    arguments.extend(["--queue-wait-ms", "1"]);
    let mut dev = Dev::start(dir.path(), &arguments);
    let (over, refused) = (AtomicBool::new(false), AtomicU64::new(0));
    let address = dev.address("resp").to_string();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let (address, over, refused) = (&address, &over, &refused);
            let session = format!("session:{number}");
            scope.spawn(move || flood(address, &session, over, refused));
        }
        let began = Instant::now();
        while refused.load(Ordering::Relaxed) == 0 && began.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
            // HTTP does not wait behind clients.
            assert!(http(dev.address("http"), "/readyz").0.contains("200"));
        }
        over.store(true, Ordering::Relaxed);
    });
    let refused = refused.load(Ordering::Relaxed);
    assert!(
        refused > 0,
        "flooded for {PATIENCE:?}, and nobody was refused"
    );
    assert_eq!(
        metric(&dev, "holdfast_gateway_refused_late_total"),
        refused as f64
    );
    assert_eq!(
        metric(&dev, "holdfast_gateway_refused_creations_total"),
        0.0
    );
    // And everything is admitted again soon.
    let (http_address, resp) = (dev.address("http").to_string(), address);
    dev.eventually("end of overload", || {
        let (_, text) = http(&http_address, "/metrics");
        let lines = text.lines();
        let mut gauges = lines.filter(|line| line.starts_with("holdfast_gateway_overloaded{"));
        gauges.all(|line| line.ends_with(" 0")).then_some(())
    });
    assert_eq!(support::redis(&resp, &["GET", "session:none"]), "$-1\r\n");
}
