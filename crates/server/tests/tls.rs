//! TLS on every port of real processes: who is let in, who is told why not, and new certificates.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)] // real processes, sockets and clocks

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use support::{Dev, refused, run};

type TlsClient = StreamOwned<ClientConnection, TcpStream>;

/// The files of a `dev --tls` in `dir`.
fn made(dir: &Path, name: &str) -> PathBuf {
    dir.join("data/tls").join(name)
}

/// A TLS connection to `address`, with the client certificate in `identity` (certificate, key) if any.
fn connect(address: &str, ca: &Path, identity: Option<(&Path, &Path)>) -> TlsClient {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(ca).unwrap())
        .unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots);
    let config = match identity {
        None => config.with_no_client_auth(),
        Some((cert, key)) => config
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(cert).unwrap()],
                PrivateKeyDer::from_pem_file(key).unwrap(),
            )
            .unwrap(),
    };
    let stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(
        ClientConnection::new(Arc::new(config), name).unwrap(),
        stream,
    )
}

/// Everything until the server closes; a missing farewell is no error here.
fn rest(mut stream: impl Read) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => Err(error),
        _ => Ok(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

fn inline(mut stream: TlsClient, commands: &str) -> std::io::Result<String> {
    stream.write_all(format!("{commands}QUIT\r\n").as_bytes())?;
    rest(stream)
}

fn plain(address: &str, bytes: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream.write_all(bytes.as_bytes()).unwrap();
    let mut reply = Vec::new();
    // Closed with our bytes unread, which may reset the connection after what it was told.
    let mut piece = [0; 1024];
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        reply.extend_from_slice(&piece[..count]);
    }
    String::from_utf8(reply).unwrap()
}

#[test]
fn every_face_speaks_tls_and_says_so_to_those_who_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &["--tls"]);
    let ca = made(dir.path(), "ca.pem");

    let resp = dev.address("resp");
    let reply = inline(connect(resp, &ca, None), "SET k v EX 60\r\nGET k\r\n").unwrap();
    assert_eq!(reply, "+OK\r\n$1\r\nv\r\n+OK\r\n");
    let cluster = dev.ready["resp_cluster"][0].as_str().unwrap();
    assert_eq!(
        inline(connect(cluster, &ca, None), "PING\r\n").unwrap(),
        "+PONG\r\n+OK\r\n"
    );
    let mut http = connect(dev.address("http"), &ca, None);
    http.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let answer = rest(http).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let ca_flag = ca.to_str().unwrap();
    assert_eq!(dev.cli(&["session", "get", "k", "--ca", ca_flag]), "v");
    assert!(
        dev.cli(&["ctl", "status", "--ca", ca_flag])
            .contains("master-1.0")
    );
    let load = run(&[
        "bench",
        "load",
        "--address",
        resp,
        "--ca",
        ca_flag,
        "--seconds",
        "0.2",
        "--sessions",
        "500",
        "--pipeline",
        "16",
    ]);
    assert!(load.status.success(), "{load:?}");

    let told = plain(resp, "PING\r\n");
    assert!(told.starts_with("-ERR this port speaks TLS only"), "{told}");
    let told = plain(dev.address("http"), "GET /readyz HTTP/1.1\r\n\r\n");
    assert!(told.contains("this port speaks TLS only"), "{told}");
    // Without --ca our own client speaks no TLS, and an authority that did not sign is not trusted.
    let grpc = dev.address("grpc");
    let plainly = run(&["session", "get", "k", "--grpc", grpc]);
    assert_eq!(plainly.status.code(), Some(1), "{plainly:?}");
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let stranger = Dev::start(&other, &["--tls"]);
    let wrong = made(&other, "ca.pem");
    let text = refused(&[
        "session",
        "get",
        "k",
        "--grpc",
        grpc,
        "--ca",
        wrong.to_str().unwrap(),
    ]);
    assert!(text.contains("certificate"), "{text}");
    drop(stranger);
}

/// Replies larger than every buffer on the way arrive whole, to a client that reads late as well.
#[test]
fn large_values_pass_in_both_directions() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &["--tls"]);
    let mut stream = connect(dev.address("resp"), &made(dir.path(), "ca.pem"), None);
    let value: String = (0..100_000)
        .map(|at| char::from(b'a' + (at % 23) as u8))
        .collect();
    let mut request = format!(
        "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\n{value}\r\n",
        value.len()
    );
    for _ in 0..200 {
        request.push_str("*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
    }
    request.push_str("*1\r\n$4\r\nQUIT\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    stream.flush().unwrap();
    // 20 MB wait in the server meanwhile.
    std::thread::sleep(Duration::from_millis(300));
    let replies = rest(stream).unwrap();
    let one = format!("${}\r\n{value}\r\n", value.len());
    assert_eq!(replies.len(), 5 + 200 * one.len() + 5);
    assert_eq!(replies.matches(&one).count(), 200);
}

#[test]
fn processes_of_a_cluster_talk_over_mutual_tls() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(
        dir.path(),
        &[
            "--tls",
            "--processes",
            "--masters",
            "2",
            "--tls-clients",
            "required",
        ],
    );
    let ca = made(dir.path(), "ca.pem");
    let (cert, key) = (
        made(dir.path(), "client.pem"),
        made(dir.path(), "client-key.pem"),
    );
    let resp = dev.address("resp");
    let client = connect(resp, &ca, Some((&cert, &key)));
    assert_eq!(
        inline(client, "SET k v EX 60\r\nGET k\r\n").unwrap(),
        "+OK\r\n$1\r\nv\r\n+OK\r\n"
    );
    // TLS 1.3 tells a client that its certificate is missing only after it has begun to speak.
    assert!(
        inline(connect(resp, &ca, None), "GET k\r\n").is_err(),
        "let in without a certificate"
    );
    // `ctl` goes through the gateway to the coordinator, over TLS both times.
    let status = dev.cli(&[
        "ctl",
        "status",
        "--ca",
        ca.to_str().unwrap(),
        "--cert",
        cert.to_str().unwrap(),
        "--key",
        key.to_str().unwrap(),
    ]);
    assert!(status.contains("master-2"), "{status}");
}

#[test]
fn new_certificates_are_taken_on_a_signal_and_bad_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(dir.path(), &["--tls"]);
    let (ca, cert, key) = (
        made(dir.path(), "ca.pem"),
        made(dir.path(), "cert.pem"),
        made(dir.path(), "key.pem"),
    );
    let resp = dev.address("resp").to_string();
    let shown = |ca: &Path| {
        let mut client = connect(&resp, ca, None);
        client.write_all(b"PING\r\n").ok()?;
        client.read_exact(&mut [0; 7]).ok()?;
        Some(client.conn.peer_certificates()?[0].to_vec())
    };
    let first = shown(&ca).unwrap();
    let mut established = connect(&resp, &ca, None);
    established.write_all(b"PING\r\n").unwrap();
    established.read_exact(&mut [0; 7]).unwrap();

    let pid = dev.child.id().to_string();
    let hangup = || {
        std::process::Command::new("kill")
            .args(["-HUP", &pid])
            .status()
            .unwrap();
    };
    // A key that belongs to another certificate.
    let old_key = std::fs::read(&key).unwrap();
    std::fs::write(
        &key,
        std::fs::read(made(dir.path(), "client-key.pem")).unwrap(),
    )
    .unwrap();
    hangup();
    let log = dev.log.clone();
    dev.eventually("error in the log", || {
        let text = std::fs::read_to_string(&log).ok()?;
        text.contains("does not belong to the certificate")
            .then_some(())
    });
    assert_eq!(
        shown(&ca).unwrap(),
        first,
        "the old certificate stays in use"
    );

    // Another authority and certificate altogether, made as `dev` makes them.
    let other = dir.path().join("other");
    let made_anew =
        holdfast_server::certificates::make(&other, &["127.0.0.1".parse().unwrap()].into())
            .unwrap();
    std::fs::write(&key, &old_key).unwrap();
    for (from, to) in [
        (&made_anew.ca, &ca),
        (&made_anew.cert, &cert),
        (&made_anew.key, &key),
    ] {
        std::fs::copy(from, to).unwrap();
    }
    hangup();
    dev.eventually("the new certificate", || {
        shown(&made_anew.ca).filter(|certificate| *certificate != first)
    });
    // Those who are connected notice nothing.
    established.write_all(b"PING\r\n").unwrap();
    let mut pong = [0; 7];
    established.read_exact(&mut pong).unwrap();
    assert_eq!(&pong, b"+PONG\r\n");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let ours = holdfast_server::certificates::make(dir.path(), &[].into()).unwrap();
    let path = |path: &Path| path.to_str().unwrap().to_string();
    let (cert, key, ca) = (path(&ours.cert), path(&ours.key), path(&ours.ca));
    let empty = path(&dir.path().join("empty.pem"));
    std::fs::write(&empty, "").unwrap();
    let gone = path(&dir.path().join("gone.pem"));
    let other_key = path(&ours.client_key);
    for (flags, says) in [
        (vec!["--tls-cert", &cert], "--tls-key is missing"),
        (
            vec!["--tls-cert", &cert, "--tls-key", &key],
            "--tls-ca is missing",
        ),
        (vec!["--tls-clients", "required"], "--tls-cert is missing"),
        (
            vec!["--tls-cert", &gone, "--tls-key", &key, "--tls-ca", &ca],
            "gone.pem",
        ),
        (
            vec!["--tls-cert", &empty, "--tls-key", &key, "--tls-ca", &ca],
            "empty.pem holds no certificate",
        ),
        (
            vec!["--tls-cert", &cert, "--tls-key", &empty, "--tls-ca", &ca],
            "empty.pem holds no private key",
        ),
        (
            vec![
                "--tls-cert",
                &cert,
                "--tls-key",
                &other_key,
                "--tls-ca",
                &ca,
            ],
            "does not belong to the certificate",
        ),
    ] {
        let mut arguments = vec!["gateway"];
        arguments.extend(flags);
        let text = refused(&arguments);
        assert!(text.contains(says), "{says} is missing in: {text}");
    }
}
