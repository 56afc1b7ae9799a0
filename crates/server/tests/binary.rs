//! The binary as a user meets it: started, asked, killed, started again, and told nonsense.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // real processes, sockets and clocks

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Dev, PATIENCE, holdfast, http, is_running, redis, refused};
use tempfile::TempDir;

#[test]
fn sessions_and_their_time_to_live_survive_kill_9() {
    let dir = TempDir::new().unwrap();
    let dev = Dev::start(dir.path(), &[]);
    assert_eq!(
        dev.redis(&["SET", "sess:1", "hello", "EX", "1000"]),
        "+OK\r\n"
    );
    assert_eq!(dev.redis(&["SET", "sess:2", "for ever"]), "+OK\r\n");
    dev.kill_9();

    let dev = Dev::start(dir.path(), &[]);
    assert_eq!(dev.redis(&["GET", "sess:1"]), "$5\r\nhello\r\n");
    assert_eq!(dev.redis(&["GET", "sess:2"]), "$8\r\nfor ever\r\n");
    assert_eq!(dev.redis(&["TTL", "sess:2"]), ":-1\r\n");
    let reply = dev.redis(&["TTL", "sess:1"]);
    let left: i64 = reply.trim_start_matches(':').trim().parse().unwrap();
    assert!((900..=1000).contains(&left), "{reply}");
    // Once more: what was recovered is as durable as what was written.
    dev.kill_9();
    let dev = Dev::start(dir.path(), &[]);
    assert_eq!(dev.redis(&["GET", "sess:1"]), "$5\r\nhello\r\n");
}

#[test]
fn every_face_of_dev_answers_and_sigterm_ends_it() {
    let dir = TempDir::new().unwrap();
    let mut dev = Dev::start(dir.path(), &[]);

    // Redis Cluster port: the only shard owns everything.
    let port = dev.ready["resp_cluster"][0].as_str().unwrap().to_string();
    assert_eq!(redis(&port, &["SET", "by:cluster", "1"]), "+OK\r\n");
    assert_eq!(dev.redis(&["GET", "by:cluster"]), "$1\r\n1\r\n");

    // gRPC, by the command line.
    let put = dev.cli(&["session", "put", "user:7", "hello", "--idle", "30m"]);
    assert!(put.starts_with("version "), "{put}");
    assert_eq!(dev.cli(&["session", "get", "user:7"]), "hello");
    assert_eq!(dev.redis(&["GET", "user:7"]), "$5\r\nhello\r\n");
    assert!(dev.cli(&["session", "touch", "user:7"]).contains("idle"));
    assert_eq!(dev.cli(&["session", "ls", "--match", "user:*"]), "user:7\n");
    assert_eq!(
        dev.cli(&["session", "rm", "user:7", "user:8"]),
        "1 removed\n"
    );
    let grpc = dev.address("grpc").to_string();
    let gone = refused(&["session", "get", "user:7", "--grpc", &grpc]);
    assert!(gone.contains("no such session"), "{gone}");

    let status: Value = serde_json::from_str(&dev.cli(&["ctl", "status", "--json"])).unwrap();
    assert_eq!(status["ready"], true, "{status}");
    let members = status["members"].as_array().unwrap();
    for name in [
        "coordinator",
        "master-1.0",
        "backup-1",
        "backup-2",
        "backup-3",
        "gateway-1",
    ] {
        assert!(
            members.iter().any(|member| member["name"] == name),
            "{name}: {status}"
        );
    }
    assert!(dev.cli(&["ctl", "status"]).contains("ready: everything"));

    // HTTP.
    let address = dev.address("http").to_string();
    assert!(http(&address, "/healthz").0.contains("200"));
    let (head, body) = http(&address, "/readyz");
    assert!(
        head.contains("200") && body.contains("\"ready\":true"),
        "{head} {body}"
    );
    let (_, metrics) = http(&address, "/metrics");
    for part in [
        "# TYPE holdfast_ready gauge",
        "holdfast_ready{role=\"master\",node=\"master-1.0\"} 1",
        "holdfast_process_cpu_seconds_total{process=\"dev\"} ",
        "holdfast_process_resident_bytes{process=\"dev\"} ",
    ] {
        assert!(metrics.contains(part), "{part} is missing in\n{metrics}");
    }

    let processes = dev.ready["processes"].as_array().unwrap();
    assert!(
        processes.iter().any(|process| process["role"] == "master"),
        "{}",
        dev.ready
    );
    assert!(
        processes
            .iter()
            .all(|process| process["pid"] == dev.child.id()),
        "{}",
        dev.ready
    );

    let (code, took) = dev.terminate();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn a_client_too_many_is_told_so() {
    let dir = TempDir::new().unwrap();
    let dev = Dev::start(dir.path(), &["--clients-max", "2"]);
    let address = dev.address("resp").to_string();
    let ping = |stream: &mut TcpStream| {
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let _ = stream.write_all(b"PING\r\n");
        let mut reply = [0; 64];
        let bytes = stream.read(&mut reply).unwrap();
        String::from_utf8(reply[..bytes].to_vec()).unwrap()
    };
    let mut one = TcpStream::connect(&address).unwrap();
    assert_eq!(ping(&mut one), "+PONG\r\n");
    let mut two = TcpStream::connect(&address).unwrap();
    assert_eq!(ping(&mut two), "+PONG\r\n");
    let mut three = TcpStream::connect(&address).unwrap();
    let mut reply = String::new();
    three.read_to_string(&mut reply).unwrap();
    assert_eq!(reply, "-ERR max number of clients reached\r\n");
    assert_eq!(ping(&mut one), "+PONG\r\n");
}

#[test]
fn a_second_process_on_the_same_directory_is_refused() {
    let dir = TempDir::new().unwrap();
    let dev = Dev::start(dir.path(), &[]);
    let data = dir.path().join("data");
    let error = refused(&[
        "dev",
        "--dir",
        data.to_str().unwrap(),
        "--resp",
        "127.0.0.1:0",
    ]);
    assert!(
        error.contains("in use by another holdfast process"),
        "{error}"
    );
    assert_eq!(dev.redis(&["PING"]), "+PONG\r\n");
}

#[test]
fn a_port_in_use_is_named_with_its_flag() {
    let dir = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for more in [&[][..], &["--processes"][..]] {
        let mut arguments = vec![
            "dev",
            "--dir",
            dir.path().to_str().unwrap(),
            "--resp",
            &address,
        ];
        arguments.extend(["--resp-cluster", "127.0.0.1:0"]);
        arguments.extend(["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        arguments.extend(more);
        let error = refused(&arguments);
        assert!(
            error.contains(&address) && error.contains("--resp"),
            "{error}"
        );
    }
}

#[test]
fn a_configuration_with_an_unknown_field_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("holdfast.toml");
    std::fs::write(&path, "memory = \"1GiB\"\nmemroy = \"2GiB\"\n").unwrap();
    for role in ["dev", "coordinator", "master", "backup", "gateway"] {
        let error = refused(&[role, "--config", path.to_str().unwrap()]);
        assert!(error.contains("holdfast.toml"), "{role}: {error}");
        assert!(error.contains("unknown field"), "{role}: {error}");
    }
}

#[test]
fn an_open_address_without_credentials_is_refused() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().to_str().unwrap();
    let error = refused(&["dev", "--dir", data, "--resp", "0.0.0.0:0"]);
    assert!(
        error.contains("--cluster-secret-file") && error.contains("--password-file"),
        "{error}"
    );
    let error = refused(&["coordinator", "--dir", data, "--listen", "0.0.0.0:0"]);
    assert!(error.contains("0.0.0.0"), "{error}");
}

#[test]
fn a_member_with_another_secret_is_refused_with_a_clear_line() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    std::fs::write(path("one"), "the one secret\n").unwrap();
    std::fs::write(path("other"), "the other secret\n").unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = free.local_addr().unwrap().to_string();
    drop(free);
    let mut coordinator = holdfast(&["coordinator", "--dir", &path("c"), "--listen", &listen])
        .args([
            "--cluster-secret-file",
            &path("one"),
            "--grpc",
            "127.0.0.1:0",
        ])
        .stderr(std::fs::File::create(path("coordinator.log")).unwrap())
        .spawn()
        .unwrap();
    let mut backup = holdfast(&["backup", "--dir", &path("b"), "--coordinator", &listen])
        .args(["--cluster-secret-file", &path("other"), "--disk", "64MiB"])
        .stderr(std::fs::File::create(path("backup.log")).unwrap())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let refusal = "does not know the cluster's secret";
    loop {
        let log = std::fs::read_to_string(path("backup.log")).unwrap();
        if log.contains(refusal) {
            break;
        }
        if began.elapsed() > PATIENCE {
            let _ = (backup.kill(), coordinator.kill());
            panic!("nothing about the secret in\n{log}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for child in [&mut backup, &mut coordinator] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn children_come_back_and_end_with_their_parent() {
    let dir = TempDir::new().unwrap();
    let mut dev = Dev::start(dir.path(), &["--processes"]);
    let pids = |ready: &Value, role: &str| -> Vec<u64> {
        let processes = ready["processes"].as_array().unwrap().iter();
        processes
            .filter(|process| role.is_empty() || process["role"] == role)
            .map(|process| process["pid"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(dev.redis(&["SET", "sess:1", "hello"]), "+OK\r\n");
    assert_eq!(pids(&dev.ready, "").len(), 6, "{}", dev.ready);

    // A lone master comes back under a new id and recovers its own log.
    let master = pids(&dev.ready, "master")[0];
    Command::new("kill")
        .args(["-9", &master.to_string()])
        .status()
        .unwrap();
    let ready_file = dir.path().join("ready.json");
    let again = dev.eventually("ready file with another master", || {
        let text = std::fs::read_to_string(&ready_file).ok()?;
        let ready: Value = serde_json::from_str(&text).ok()?;
        (pids(&ready, "master")[0] != master).then_some(ready)
    });
    assert_eq!(dev.redis(&["GET", "sess:1"]), "$5\r\nhello\r\n");

    let all = pids(&again, "");
    dev.kill_9();
    let began = Instant::now();
    while all.iter().any(|pid| is_running(*pid)) {
        assert!(began.elapsed() < PATIENCE, "children outlive their parent");
        std::thread::sleep(Duration::from_millis(5));
    }
    // And everything at once was a power failure of the processes: a cold start brings it back.
    let mut dev = Dev::start(dir.path(), &["--processes"]);
    assert_eq!(dev.redis(&["GET", "sess:1"]), "$5\r\nhello\r\n");
    let all = pids(&dev.ready, "");
    assert_eq!(dev.terminate().0, Some(0));
    assert!(
        !all.iter().any(|pid| is_running(*pid)),
        "children outlive a clean end"
    );
}
