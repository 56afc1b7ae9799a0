//! What bad input gets while a cluster serves: its own clear error, and nothing else is disturbed.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // real processes, sockets and clocks

mod support;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use support::{Dev, holdfast, http, redis, refused};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// A RESP connection that sends many commands before it reads their replies.
struct Pipe {
    stream: BufReader<TcpStream>,
}

impl Pipe {
    fn open(dev: &Dev) -> Pipe {
        let stream = TcpStream::connect(dev.address("resp")).unwrap();
        let patience = Some(Duration::from_secs(20));
        stream.set_read_timeout(patience).unwrap();
        Pipe {
            stream: BufReader::new(stream),
        }
    }

    /// First lines of the replies.
    fn all(&mut self, commands: &[Vec<&str>]) -> Vec<String> {
        let mut request = String::new();
        for words in commands {
            request.push_str(&format!("*{}\r\n", words.len()));
            for word in words {
                request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
            }
        }
        self.stream.get_mut().write_all(request.as_bytes()).unwrap();
        commands.iter().map(|_| self.reply()).collect()
    }

    fn one(&mut self, words: &[&str]) -> String {
        self.all(&[words.to_vec()]).remove(0)
    }

    fn reply(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        if let Some(length) = line.trim_end().strip_prefix('$')
            && length != "-1"
        {
            let mut value = vec![0; length.parse::<usize>().unwrap() + 2];
            self.stream.read_exact(&mut value).unwrap();
        }
        line.trim_end().to_string()
    }
}

/// Sends raw bytes and reads until the server closes.
fn raw(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let patience = Some(Duration::from_secs(10));
    stream.set_read_timeout(patience).unwrap();
    stream.write_all(bytes).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

const OOM: &str = "-OOM command not allowed when used memory > 'maxmemory'.";

/// Writes values of 16 KB until hardly any fits; the numbers of those that were acknowledged.
fn fill(pipe: &mut Pipe) -> Vec<usize> {
    let value = "v".repeat(16_000);
    let mut stored = Vec::new();
    for batch in 0..100 {
        let keys: Vec<String> = (batch * 100..(batch + 1) * 100)
            .map(|number| format!("full:{number}"))
            .collect();
        let puts: Vec<Vec<&str>> = keys.iter().map(|key| vec!["SET", key, &value]).collect();
        let replies = pipe.all(&puts);
        let before = stored.len();
        for (at, reply) in replies.iter().enumerate() {
            match reply.as_str() {
                "+OK" => stored.push(batch * 100 + at),
                other => assert_eq!(other, OOM),
            }
        }
        if stored.len() == before {
            return stored;
        }
    }
    panic!("64 MiB took {} values of 16 kB", stored.len());
}

#[test]
fn a_full_memory_refuses_writes_only_and_has_room_again_after_deletes() {
    let dir = TempDir::new().unwrap();
    let mut dev = Dev::start(dir.path(), &[]);
    let http_address = dev.address("http").to_string();
    dev.eventually("memory touched in the background", || {
        let (_, metrics) = http(&http_address, "/metrics");
        let resident = metrics
            .lines()
            .find(|line| line.starts_with("holdfast_process_resident_bytes"))?;
        let bytes: f64 = resident.split(' ').next_back()?.parse().ok()?;
        (bytes > f64::from(60 << 20)).then_some(())
    });

    let mut pipe = Pipe::open(&dev);
    let stored = fill(&mut pipe);
    assert!(stored.len() > 2_000, "full with {} values", stored.len());
    let key = |at: usize| format!("full:{}", stored[at]);
    assert_eq!(pipe.one(&["GET", &key(0)]), "$16000");
    assert_eq!(pipe.one(&["EXPIRE", &key(1), "1000"]), ":1");
    assert_eq!(pipe.one(&["PERSIST", &key(1)]), ":1");
    assert_eq!(pipe.one(&["DEL", &key(2)]), ":1");
    assert_eq!(pipe.one(&["EXISTS", &key(2)]), ":0");
    assert_eq!(pipe.one(&["PING"]), "+PONG");
    let grpc = dev.address("grpc").to_string();
    let large = "w".repeat(100_000);
    let refusal = refused(&["session", "put", "other", &large, "--grpc", &grpc]);
    assert!(refusal.contains("ResourceExhausted"), "{refusal}");
    assert_eq!(dev.cli(&["session", "get", &key(3)]).len(), 16_000);

    // What was taken is kept through a crash, although it fills the memory of the successor too.
    drop(pipe);
    dev.kill_9();
    let mut dev = Dev::start(dir.path(), &[]);
    let mut pipe = Pipe::open(&dev);
    let keys: Vec<String> = (0..stored.len()).map(key).collect();
    let asked: Vec<Vec<&str>> = keys.iter().map(|key| vec!["STRLEN", key]).collect();
    for (at, reply) in pipe.all(&asked).iter().enumerate() {
        let expected = if at == 2 { ":0" } else { ":16000" };
        assert_eq!(reply, expected, "{}", keys[at]);
    }

    let gone: Vec<Vec<&str>> = keys[stored.len() / 2..]
        .iter()
        .map(|key| vec!["DEL", key])
        .collect();
    assert!(pipe.all(&gone).iter().all(|reply| reply == ":1"));
    dev.eventually("room after deletes", || {
        (pipe.one(&["SET", "again", &large]) == "+OK").then_some(())
    });
    assert_eq!(pipe.one(&["GET", &keys[0]]), "$16000");
}

#[test]
fn nonsense_over_resp_gets_its_own_error_and_disturbs_nobody() {
    let dir = TempDir::new().unwrap();
    let dev = Dev::start(dir.path(), &[]);
    let mut bystander = Pipe::open(&dev);
    assert_eq!(bystander.one(&["SET", "sess:1", "hello"]), "+OK");
    let (mut ports, cluster) = (vec![dev.address("resp").to_string()], &dev.ready);
    ports.push(cluster["resp_cluster"][0].as_str().unwrap().to_string());

    let (long_value, long_key) = ("v".repeat((128 << 10) + 1), "k".repeat(65_536));
    for port in &ports {
        let info = redis(port, &["INFO", "server"]);
        let number = port.rsplit(':').next().unwrap();
        assert!(info.contains(&format!("tcp_port:{number}\r\n")), "{info}");
        for (words, expected) in [
            (vec!["FROB", "x"], "-ERR unknown command 'FROB'"),
            (vec!["GET"], "-ERR wrong number of arguments for 'get'"),
            (
                vec!["SET", "sess:1", "x", "EX", "soon"],
                "-ERR value is not an integer",
            ),
            (vec!["SET", "sess:1", "x", "NX", "XX"], "-ERR syntax error"),
            (
                vec!["SET", "sess:1", &long_value],
                "-ERR value of 131073 bytes is over the limit of 131072",
            ),
            (
                vec!["SET", &long_key, "x"],
                "-ERR key of 65536 bytes is over the limit of 65535",
            ),
        ] {
            let reply = redis(port, &words);
            assert!(reply.starts_with(expected), "{expected}: {reply}");
        }
        for (bytes, expected) in [
            (&b"*1\r\n$-5\r\n"[..], "invalid bulk length"),
            (b"*one\r\n", "invalid multibulk length"),
            (b"*2\r\n$3\r\nGET\r\n:1\r\n", "expected '$', got ':'"),
            (b"*1\r\n$999999999999\r\n", "invalid bulk length"),
            (b"GET \"half\r\n", "unbalanced quotes"),
        ] {
            let reply = raw(port, bytes);
            let error = format!("-ERR Protocol error: {expected}");
            assert!(reply.starts_with(&error), "{error}: {reply}");
        }
        // What a web page could make a browser send: nothing of it is executed.
        let mut browser = TcpStream::connect(port).unwrap();
        let post = b"POST / HTTP/1.1\r\nHost: x\r\n\r\nSET sess:1 stolen\r\n";
        browser.write_all(post).unwrap();
        let mut reply = Vec::new();
        // The end may come as a reset, because it did not read everything.
        let _ = browser.read_to_end(&mut reply);
        assert_eq!(reply, b"");
    }
    assert_eq!(bystander.one(&["STRLEN", "sess:1"]), ":5");
}

#[test]
fn nonsense_over_grpc_gets_its_own_status_and_health_says_serving() {
    let dir = TempDir::new().unwrap();
    let mut dev = Dev::start(dir.path(), &[]);
    let grpc = dev.address("grpc").to_string();
    let put = |bytes: usize| {
        let path = dir.path().join("value");
        std::fs::write(&path, vec![b'v'; bytes]).unwrap();
        let output = holdfast(&["session", "put", "k", "-", "--grpc", &grpc])
            .stdin(Stdio::from(File::open(&path).unwrap()))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    };
    let told = put((128 << 10) + 1);
    assert!(
        told.contains("k: value of 131073 bytes is over the limit of 131072"),
        "{told}"
    );
    assert!(told.contains("InvalidArgument"), "{told}");
    let told = put(8 << 20);
    assert!(told.contains("OutOfRange"), "{told}");
    let told = put(128 << 10);
    assert!(told.starts_with("version "), "{told}");
    let told = refused(&["session", "put", "", "v", "--grpc", &grpc]);
    assert!(told.contains("key must not be empty"), "{told}");

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let check = |service: &str| {
        let service = service.to_string();
        runtime.block_on(async {
            let endpoint = Channel::from_shared(format!("http://{grpc}")).unwrap();
            let mut health = HealthClient::new(endpoint.connect().await.unwrap());
            match health.check(HealthCheckRequest { service }).await {
                Ok(reply) => format!("{:?}", reply.into_inner().status()),
                Err(status) => format!("{:?}", status.code()),
            }
        })
    };
    for service in ["", "holdfast.v1.Sessions", "holdfast.v1.Admin"] {
        dev.eventually(service, || (check(service) == "Serving").then_some(()));
    }
    assert_eq!(check("no.such.Service"), "NotFound");
}
