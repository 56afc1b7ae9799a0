//! Fuzzers of what strangers reach first: the RESP parser, and the gateway's state machine over bytes.
//!
//! ```text
//! cargo test -p holdfast-gateway --test fuzz                                   a fixed number of cases
//! cargo test -p holdfast-gateway --test fuzz -- --target resp --seconds 600    as many as fit
//! cargo test -p holdfast-gateway --test fuzz -- --target gateway --case 77     one again
//! ```
//!
//! A case is its number: `--case` replays what a failure names. Every case begins with requests that session
//! clients were recorded to send (`support/traffic.rs`) and damages them.
//!
//! F1. Bytes mean the same wherever they are cut.
//! F2. Well-formed requests come out as they went in.
//! F3. Every request has one reply, and replies are replies, whatever shards answer or do not.
//! F4. Memory: at most a fixed multiple of the bytes that came, counted by the allocator; nothing is left
//!     when the connection has gone.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "it takes as long as it is told to, and fails by panicking"
)]
#![allow(unsafe_code)] // an allocator that counts

#[path = "support/replies.rs"]
mod replies;
#[path = "../../client/tests/support/shard.rs"]
#[allow(dead_code, reason = "each test file uses its part of the shard")]
mod shard;
#[path = "support/traffic.rs"]
mod traffic;
#[path = "support/world.rs"]
#[allow(dead_code, reason = "each test file uses its part of the world")]
mod world;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use holdfast_cluster::{ConnectionId, Input, Node};
use holdfast_format::Namespace;
use holdfast_gateway::Mode;
use holdfast_wire::redis;
use holdfast_wire::resp::{Args, Protocol, ReplyWriter, RespLimits, RespParser, RespProtocolError};
use holdfast_wire::{Failure, Message, Outcome, Response, Responses};
use traffic::{Dice, Words};
use world::{A, B, World};

/// Counts the bytes that are allocated and not yet freed, and the most there ever were.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is the system allocator's own, with the arguments that the caller vouches for.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: see above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: see above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that were live while `run` ran, beyond those before it.
fn peak_of<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = run();
    (result, PEAK.load(Ordering::Relaxed).saturating_sub(before))
}

// ---- the parser ----

struct Parsed {
    requests: Vec<Words>,
    error: Option<RespProtocolError>,
}

/// Everything that comes out when `input` arrives cut at `cuts`.
fn parse(input: &[u8], cuts: &[usize], limits: RespLimits, authenticated: bool) -> Parsed {
    let mut parsed = Parsed {
        requests: Vec::new(),
        error: None,
    };
    drive(input, cuts, limits, authenticated, |args| {
        let words = (0..args.len()).map(|index| args.get(index).to_vec());
        parsed.requests.push(words.collect());
    })
    .unwrap_or_else(|error| parsed.error = Some(error));
    parsed
}

fn drive(
    input: &[u8],
    cuts: &[usize],
    limits: RespLimits,
    authenticated: bool,
    mut take: impl FnMut(&Args),
) -> Result<(), RespProtocolError> {
    let mut parser = RespParser::new(limits);
    parser.set_authenticated(authenticated);
    let mut args = Args::default();
    let mut from = 0;
    for to in cuts.iter().copied().chain([input.len()]) {
        parser.feed(Bytes::copy_from_slice(&input[from..to]));
        from = to;
        while parser.next(&mut args)? {
            take(&args);
        }
        let held = parser.allocated_bytes();
        let buffered = parser.buffered_bytes();
        assert!(buffered <= limits.command_bytes_max as usize + (64 << 10));
        assert!(
            held <= 6 * buffered + (256 << 10),
            "{held} for {buffered} (F4)"
        );
    }
    Ok(())
}

fn fuzz_resp(dice: &mut Dice) {
    let mut requests = traffic::requests(dice);
    let mut input = traffic::encode(dice, &requests);
    let damaged = !dice.once_in(6);
    if damaged {
        traffic::damage(dice, &mut input);
    }
    let limits = match dice.below(3) {
        0 => RespLimits::for_values(1 << 20),
        1 => RespLimits::for_values(64 << 10),
        _ => RespLimits {
            bulk_bytes_max: 1_000,
            command_bytes_max: 5_000,
            arguments_max: 100,
        },
    };
    let authenticated = !dice.once_in(4);
    let whole = parse(&input, &[], limits, authenticated);
    let check = |cuts: &[usize]| {
        let pieces = parse(&input, cuts, limits, authenticated);
        assert_eq!(pieces.error, whole.error, "cut at {cuts:?} (F1)");
        assert!(pieces.requests == whole.requests, "cut at {cuts:?} (F1)");
    };
    check(&traffic::cuts(dice, input.len()));
    // At every byte boundary, once each, while that is quick.
    if input.len() < 600 && dice.once_in(4) {
        (0..input.len()).for_each(|cut| check(&[cut]));
    }
    if !damaged && whole.error.is_none() {
        requests.retain(|words| !words.is_empty());
        assert!(whole.requests == requests, "{:?} (F2)", whole.requests);
    }

    let cuts = traffic::cuts(dice, input.len());
    let (_, peak) = peak_of(|| drive(&input, &cuts, limits, authenticated, |_| {}));
    assert!(peak <= 10 * input.len() + (256 << 10), "{peak} bytes (F4)");

    // Whatever came out is understood or refused, and a refusal is one line.
    let mut scripts = redis::Scripts::new();
    for words in &whole.requests {
        let parts: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        let refusal = match redis::parse(&Args::of(&parts), Namespace(0)) {
            Ok(redis::RespRequest::Eval(call)) => scripts.resolve(call).err(),
            Ok(_) => None,
            Err(error) => Some(error),
        };
        let Some(error) = refusal else { continue };
        let mut out = BytesMut::new();
        ReplyWriter::new(&mut out, Protocol::Resp2).refuse(&error);
        assert_eq!(replies::ends(&out), Ok(vec![out.len()]), "{error}");
        assert!(out.len() < 2_000, "a refusal repeats too much: {error}");
    }
}

// ---- the gateway ----

/// Replies of these tell of buffers, numbers and time, which differ with the pieces.
const TELLING: [&str; 4] = ["info", "client", "time", "hello"];

fn is_any(request: &Words, names: &[&str]) -> bool {
    names
        .iter()
        .any(|name| request[0].eq_ignore_ascii_case(name.as_bytes()))
}

/// How many replies a connection gets that sends `input` and is not cut off: everything up to QUIT,
/// and one for what is no request.
fn replies_due(parsed: &Parsed) -> usize {
    let quit = |words: &Words| is_any(words, &["quit"]);
    match parsed.requests.iter().position(quit) {
        Some(at) => at + 1,
        None => parsed.requests.len() + usize::from(parsed.error.is_some()),
    }
}

fn some_input(dice: &mut Dice) -> Vec<u8> {
    let requests = traffic::requests(dice);
    let mut input = traffic::encode(dice, &requests);
    if dice.once_in(3) {
        traffic::damage(dice, &mut input);
    }
    input
}

fn mode_of(dice: &mut Dice) -> Mode {
    match dice.once_in(3) {
        true => Mode::Cluster { shard: A },
        false => Mode::Flat,
    }
}

/// As `GatewayConfig::for_testing` has them.
fn gateway_limits() -> RespLimits {
    RespLimits::for_values(64 << 10)
}

/// F1, F3: the same bytes at once and in pieces get the same replies.
fn fuzz_pieces(dice: &mut Dice) {
    let input = some_input(dice);
    let parsed = parse(&input, &[], gateway_limits(), true);
    let mode = mode_of(dice);
    let run = |cuts: &[usize]| {
        let mut world = World::new(mode);
        world.connect(1);
        let mut from = 0;
        for to in cuts.iter().copied().chain([input.len()]) {
            if !world.closed.contains(&1) {
                world.send(1, &input[from..to]);
            }
            from = to;
        }
        world.run(50);
        let received = world.received.remove(&1).unwrap_or_default();
        (received, world.closed.contains(&1), world.events)
    };
    let (whole, closed, events) = run(&[]);
    let ends = replies::ends(&whole).unwrap_or_else(|why| panic!("{why} (F3)"));
    // Cut off for a reason that the log tells, or by its own CLIENT KILL.
    let cut_off = events
        .iter()
        .any(|text| text.starts_with("closed the connection"))
        || parsed
            .requests
            .iter()
            .any(|words| is_any(words, &["client"]))
            && closed;
    if !cut_off {
        assert_eq!(ends.len(), replies_due(&parsed), "{parsed:?} (F3)");
    }
    let (pieces, closed_too, _) = run(&traffic::cuts(dice, input.len()));
    if !parsed.requests.iter().any(|words| is_any(words, &TELLING)) && !cut_off {
        assert_eq!(closed, closed_too, "(F1)");
        assert_eq!(
            String::from_utf8_lossy(&whole),
            String::from_utf8_lossy(&pieces),
            "(F1)"
        );
    }
}

impl std::fmt::Debug for Parsed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for words in &self.requests {
            let text: Vec<_> = (words.iter())
                .map(|word| String::from_utf8_lossy(&word[..word.len().min(60)]))
                .collect();
            writeln!(f, "{text:?}")?;
        }
        write!(f, "{:?}", self.error)
    }
}

/// F3, F4: several connections, and shards that answer late, twice, nonsense or not at all.
fn fuzz_chaos(dice: &mut Dice) {
    let before = LIVE.load(Ordering::Relaxed);
    let mode = mode_of(dice);
    let password = dice.once_in(4).then(|| "secret".to_string());
    let connections = 1 + dice.below(10) as u64;
    let steps = 1 + dice.below(60);
    let ((), peak) = {
        let mut sent = vec![Vec::new(); connections as usize + 1];
        let mut world = World::with(mode, |config| config.password.clone_from(&password));
        let world = &mut world;
        let sent = &mut sent;
        let (bytes, peak) = peak_of(|| {
            (1..=connections).for_each(|connection| world.connect(connection));
            let mut gone = Vec::new();
            let mut pending: Vec<(u64, Vec<u8>)> = Vec::new();
            for _ in 0..steps {
                disturb(dice, world, connections, &mut pending, &mut gone, sent);
                check_bounds(world, connections);
            }
            // What is half sent stays so; everything else is answered in the end. A request whose keys are
            // asked for one after another may take as long as a retry for each.
            world.deal(&[(0, 8_191, A, true), (8_192, 16_383, B, true)]);
            (0..4).for_each(|_| world.run(2_500));
            let metrics = world.gateway.metrics();
            for name in ["holdfast_gateway_pending", "holdfast_gateway_pending_bytes"] {
                let value = metrics.iter().find(|(known, _)| *known == name).unwrap().1;
                assert_eq!(value, 0.0, "{name} in the end (F3)");
            }
            for connection in 1..=connections {
                let received = world.received.get(&connection);
                let received = received.map_or(&[][..], Vec::as_slice);
                let ends = replies::ends(received).unwrap_or_else(|why| panic!("{why} (F3)"));
                let whole = !gone.contains(&connection) && !world.closed.contains(&connection);
                if whole && password.is_none() {
                    let input = &sent[connection as usize];
                    let parsed = parse(input, &[], gateway_limits(), true);
                    assert_eq!(ends.len(), replies_due(&parsed), "{parsed:?} (F3)");
                }
            }
            sent.iter().map(Vec::len).sum::<usize>()
        });
        assert!(
            peak <= 24 * bytes + (4 << 20),
            "{peak} for {bytes} sent (F4)"
        );
        ((), peak)
    };
    let left = LIVE.load(Ordering::Relaxed).saturating_sub(before);
    assert!(left < 64 << 10, "{left} bytes are left of {peak} (F4)");
}

fn disturb(
    dice: &mut Dice,
    world: &mut World,
    connections: u64,
    pending: &mut Vec<(u64, Vec<u8>)>,
    gone: &mut Vec<u64>,
    sent: &mut [Vec<u8>],
) {
    let connection = 1 + dice.roll() % connections;
    let silent = |world: &World, gone: &[u64], connection| {
        gone.contains(&connection) || world.closed.contains(&connection)
    };
    match dice.below(14) {
        0..=4 if !silent(world, gone, connection) => {
            let held = pending.iter().position(|(of, _)| *of == connection);
            let mut input = match held {
                Some(at) => pending.swap_remove(at).1,
                None => some_input(dice),
            };
            // The rest comes later, or never.
            if dice.once_in(2) {
                let rest = input.split_off(dice.below(input.len() + 1));
                pending.push((connection, rest));
            }
            sent[connection as usize].extend_from_slice(&input);
            world.send(connection, &input);
        }
        5 | 6 => {
            world.deliver_request();
        }
        7 | 8 => {
            world.deliver_response();
        }
        9 => world.run(dice.roll() % 20),
        10 => {
            let peer = dice.pick(&[&A, &B]);
            world.step(Input::PeerLost {
                peer: *peer,
                ended: dice.once_in(2),
            });
        }
        11 => match dice.below(3) {
            0 => world.responses.clear(),
            1 => world.requests.clear(),
            _ => {
                let twice = world.responses.front().cloned();
                world.responses.extend(twice);
            }
        },
        12 => nonsense(dice, world),
        13 if dice.once_in(3) => {
            if !silent(world, gone, connection) {
                gone.push(connection);
                let connection = ConnectionId(connection);
                world.step(Input::Disconnected { connection });
            }
        }
        _ => match dice.below(3) {
            0 => world.deal(&[(0, 8_191, A, true), (8_192, 16_383, B, true)]),
            1 => world.deal(&[(0, 16_383, B, true)]),
            _ => world.deal(&[(0, 8_191, A, false), (8_192, 16_383, B, true)]),
        },
    }
}

fn check_bounds(world: &World, connections: u64) {
    let metrics = world.gateway.metrics();
    let metric = |name: &str| metrics.iter().find(|(known, _)| *known == name).unwrap().1;
    assert!(metric("holdfast_gateway_pending") <= 256.0);
    assert!(metric("holdfast_gateway_pending_bytes") <= (1 << 20) as f64);
    assert!(metric("holdfast_gateway_connections") <= 8.0);
    assert!(metric("holdfast_gateway_replies_waiting") <= connections as f64 * 17.0);
}

/// An answer of any kind to anything that may have been asked.
fn nonsense(dice: &mut Dice, world: &mut World) {
    let outcome = match dice.below(8) {
        0 => Outcome::Flushed,
        1 => Outcome::Counted {
            sessions: dice.roll(),
            with_deadline: 9,
        },
        2 => Outcome::Scanned {
            keys: Vec::new(),
            next: None,
        },
        3 => Outcome::Failed(Failure::Invalid("no\r\n+sense".into())),
        4 => Outcome::Failed(Failure::NotOwner),
        5 => Outcome::Usage(Default::default()),
        6 => Outcome::Done {
            meta: Default::default(),
            old: Some(Bytes::from_static(b"old\r\n")),
        },
        _ => Outcome::Value {
            value: Bytes::from_static(b"v"),
            meta: Default::default(),
        },
    };
    let asked = world.requests.front();
    let first = asked.and_then(|(_, requests)| requests.items.first());
    let token = first.map_or_else(|| dice.roll() % 8, |item| item.token);
    let responses = Responses {
        client: world.gateway.client(),
        stream: asked.map_or_else(|| dice.roll() % 4, |(_, requests)| requests.stream),
        items: vec![Response { token, outcome }],
    };
    let from = asked.map_or(A, |(to, _)| *to);
    let message = Message::Responses(responses);
    world.step(Input::Message { from, message });
}

// ---- the loop ----

#[derive(Clone, Copy)]
struct Target {
    name: &'static str,
    run: fn(&mut Dice),
    /// When no time is given: a few seconds.
    cases: u64,
}

fn fuzz_gateway(dice: &mut Dice) {
    match dice.once_in(2) {
        true => fuzz_pieces(dice),
        false => fuzz_chaos(dice),
    }
}

const TARGETS: [Target; 2] = [
    Target {
        name: "resp",
        run: fuzz_resp,
        cases: 4_000,
    },
    Target {
        name: "gateway",
        run: fuzz_gateway,
        cases: 1_500,
    },
];

/// What is being run, for whoever reads of a panic.
static CASE: AtomicU64 = AtomicU64::new(0);

fn main() {
    let mut targets = TARGETS.to_vec();
    let (mut seconds, mut seed, mut case) = (None, 1u64, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let mut value = || {
            let value = arguments.next().and_then(|text| text.parse::<u64>().ok());
            value.unwrap_or_else(|| panic!("{flag} takes a number"))
        };
        match flag.as_str() {
            "--seconds" => seconds = Some(value()),
            "--seed" => seed = value(),
            "--case" => case = Some(value()),
            "--target" => {
                let name = arguments.next().unwrap_or_default();
                targets.retain(|target| target.name == name);
                assert!(!targets.is_empty(), "--target is resp or gateway");
            }
            // What `cargo test` passes to every test program does not concern this one.
            _ => {}
        }
    }
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        let case = CASE.load(Ordering::Relaxed);
        eprintln!("again: cargo test -p holdfast-gateway --test fuzz -- --target … --case {case}");
    }));
    for target in targets {
        if let Some(case) = case {
            CASE.store(case, Ordering::Relaxed);
            (target.run)(&mut Dice::new(case));
            println!("{}: case {case} passed", target.name);
            continue;
        }
        // Far apart, so that runs of different seeds share no case.
        let first = Dice::new(seed).roll();
        let began = Instant::now();
        let mut done = 0;
        let mut peak = 0;
        let enough = |done: u64| match seconds {
            Some(seconds) => began.elapsed() >= Duration::from_secs(seconds),
            None => done >= target.cases,
        };
        while !enough(done) {
            let case = first.wrapping_add(done);
            CASE.store(case, Ordering::Relaxed);
            let ((), used) = peak_of(|| (target.run)(&mut Dice::new(case)));
            peak = peak.max(used);
            done += 1;
        }
        println!(
            "{}: {done} cases of seed {seed} passed in {:.0} s, no case used more than {} KiB",
            target.name,
            began.elapsed().as_secs_f64(),
            peak >> 10
        );
    }
}
