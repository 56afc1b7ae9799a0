//! Connections of real processes: how many, how idle, how slow, and what each may cost.
#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // real processes, sockets and clocks

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use support::{Dev, PATIENCE, http, redis, run};

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
}

fn ping(stream: &mut TcpStream) -> bool {
    let mut reply = [0; 7];
    stream.write_all(b"PING\r\n").is_ok()
        && stream.read_exact(&mut reply).is_ok()
        && &reply == b"+PONG\r\n"
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

/// The bound, on a fifth of its connections; `bench connections` measures all of them.
#[test]
fn two_thousand_idle_connections_cost_little_and_are_all_served() {
    for (value_bytes, tls) in [("200", false), ("65536", false), ("200", true)] {
        let dir = tempfile::tempdir().unwrap();
        let dev = Dev::start(dir.path(), if tls { &["--tls"] } else { &[] });
        let ca = dir.path().join("data/tls/ca.pem");
        let mut arguments = vec!["bench", "connections", "--address", dev.address("resp")];
        arguments.extend([
            "--connections",
            "2000",
            "--json",
            "--value-bytes",
            value_bytes,
        ]);
        if tls {
            arguments.extend(["--ca", ca.to_str().unwrap()]);
        }
        let output = run(&arguments);
        assert!(output.status.success(), "{output:?}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["answered_after_silence"], 2_000);
        // A TLS session has keys, a transcript and two small buffers of its own.
        let bound = if tls { 48.0 } else { 12.0 } * 1024.0;
        let each = report["bytes_per_connection"].as_f64().unwrap();
        println!("{value_bytes} bytes, TLS {tls}: {each:.0} bytes per connection");
        assert!(each <= bound, "{each} bytes per connection: {report}");
    }
}

#[test]
fn one_client_too_many_is_told_so_and_leaves_the_others_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(dir.path(), &["--clients-max", "50"]);
    let resp = dev.address("resp").to_string();
    let mut inside: Vec<TcpStream> = (0..50).map(|_| connect(&resp)).collect();
    assert!(inside.iter_mut().all(ping));
    // A storm of strangers.
    for _ in 0..200 {
        let mut told = String::new();
        connect(&resp).read_to_string(&mut told).unwrap();
        assert_eq!(told, "-ERR max number of clients reached\r\n");
    }
    assert!(inside.iter_mut().all(ping));
    assert_eq!(metric(&dev, "holdfast_clients_refused_total"), 200.0);
    assert_eq!(metric(&dev, "holdfast_clients"), 50.0);
    inside.pop();
    dev.eventually("room for another", || {
        ping(&mut connect(&resp)).then_some(())
    });
}

#[test]
fn a_client_that_does_not_take_its_replies_is_cut_off() {
    for flags in [
        ["--client-output-hard", "4MiB"].as_slice(),
        &["--client-output-soft-seconds", "1"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut dev = Dev::start(dir.path(), flags);
        let resp = dev.address("resp").to_string();
        let value = "v".repeat(100_000);
        assert_eq!(support::redis(&resp, &["SET", "big", &value]), "+OK\r\n");
        let mut slow = connect(&resp);
        slow.write_all("GET big\r\n".repeat(300).as_bytes())
            .unwrap();
        let mut quick = connect(&resp);
        dev.eventually("a line in the log", || {
            assert!(ping(&mut quick), "others must not notice");
            let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
            log.contains("does not take its replies").then_some(())
        });
        assert_eq!(metric(&dev, "holdfast_clients_cut_total"), 1.0);
        // It gets what had left already, and then the end.
        let mut rest = Vec::new();
        let _ = slow.read_to_end(&mut rest);
        assert!(rest.len() < 300 * value.len(), "everything arrived");
    }
}

#[test]
fn silent_connections_are_closed_if_that_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &["--client-idle-seconds", "1"]);
    let mut silent = connect(dev.address("resp"));
    let mut chatty = connect(dev.address("resp"));
    silent
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let began = Instant::now();
    loop {
        assert!(ping(&mut chatty), "closed although it spoke");
        match silent.read(&mut [0]) {
            Ok(0) => break,
            Ok(_) => panic!("it was told something"),
            Err(_) => assert!(began.elapsed() < PATIENCE, "it is never closed"),
        }
    }
    assert!(ping(&mut chatty));
    assert_eq!(metric(&dev, "holdfast_clients_idle_closed_total"), 1.0);
}

#[test]
fn limits_that_contradict_each_other_are_refused() {
    let text = support::refused(&[
        "gateway",
        "--client-output-hard",
        "1MiB",
        "--client-output-soft",
        "2MiB",
    ]);
    assert!(text.contains("--client-output-hard is less"), "{text}");
}

/// Ends the storm, however its test ends.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Strangers come without pause until an established client has had a hundred answers; with an accept loop that
/// never yields it would have none.
#[test]
fn an_accept_storm_does_not_starve_the_established() {
    for flags in [
        ["--clients-max", "100"].as_slice(),
        &["--clients-max", "100", "--tls"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let dev = Dev::start(dir.path(), flags);
        let resp = dev.address("resp").to_string();
        // On the TLS port they never shake hands: those hold the places for handshakes, the rest waits outside. The
        // established speaks over the other way in, which has the same thread.
        let established = match flags.contains(&"--tls") {
            true => None,
            false => Some(connect(&resp)),
        };
        let enough = AtomicBool::new(false);
        let strangers = AtomicU32::new(0);
        std::thread::scope(|scope| {
            let _end = End(&enough);
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut held = std::collections::VecDeque::new();
                    while !enough.load(Ordering::Relaxed) {
                        held.push_back(TcpStream::connect(&resp));
                        strangers.fetch_add(1, Ordering::Relaxed);
                        if held.len() > 64 {
                            held.pop_front();
                        }
                    }
                });
            }
            let ca = dir.path().join("data/tls/ca.pem");
            let served = match established {
                Some(mut established) => (0..100).all(|_| ping(&mut established)),
                None => (0..3).all(|_| {
                    let output = run(&[
                        "session",
                        "put",
                        "k",
                        "v",
                        "--grpc",
                        dev.address("grpc"),
                        "--ca",
                        ca.to_str().unwrap(),
                    ]);
                    output.status.success()
                }),
            };
            assert!(served, "it was starved by {strangers:?} strangers");
        });
        assert!(strangers.into_inner() > 0);
    }
}

/// From the list to the cut: the one that is killed hears nothing more, the others notice nothing.
#[test]
fn operators_see_connections_and_end_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(dir.path(), &[]);
    let resp = dev.address("resp").to_string();
    let mut victim = connect(&resp);
    victim.write_all(b"CLIENT SETNAME victim\r\n").unwrap();
    victim.read_exact(&mut [0; 5]).unwrap();
    let mut bystander = connect(&resp);
    assert!(ping(&mut bystander));
    let list = dev.redis(&["CLIENT", "LIST"]);
    let line = list.lines().find(|line| line.contains("name=victim"));
    let line = line.unwrap_or_else(|| panic!("not in {list}"));
    let field = |name: &str| {
        let value = line.split(' ').find_map(|field| field.strip_prefix(name));
        value.unwrap().to_string()
    };
    let address = victim.local_addr().unwrap().to_string();
    assert_eq!(field("addr="), address);
    assert_eq!(dev.redis(&["CLIENT", "KILL", "ADDR", &address]), ":1\r\n");
    let mut rest = Vec::new();
    victim.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    assert!(ping(&mut bystander));
    dev.eventually("one client less", || {
        let list = redis(&resp, &["CLIENT", "LIST"]);
        (!list.contains("name=victim")).then_some(())
    });
    assert_eq!(dev.redis(&["CLIENT", "KILL", "ADDR", &address]), ":0\r\n");
}
