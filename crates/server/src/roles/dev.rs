//! `dev`: what a whole cluster in one process is made of.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use holdfast_wire::handshake::ClusterSecret;

use super::{
    Credentials, GRPC_PORT, HTTP_PORT, MEMORY_DEFAULT, REPLICA_EXPANSION_PERCENT,
    RESP_CLUSTER_PORT, RESP_PORT, loopback, quorum_of, scrub_ms, segment_bytes, value_bytes_max,
};
use crate::certificates::{self, Made};
use crate::clock;
use crate::error::{Context, Fatal, Outcome};
use crate::options::{ByteSize, DevOptions, read_secret};
use crate::ready::ReadyFile;
use crate::tls::{ClientCertificates, TlsFiles};

/// The options of `dev` with every default filled in.
#[derive(Clone, Debug)]
pub struct Dev {
    pub masters: u32,
    pub backups: u32,
    pub replicas: u8,
    pub ack_quorum: Option<u8>,
    pub shards: u32,
    /// Of each master.
    pub memory: u64,
    pub touch_memory: bool,
    pub dir: PathBuf,
    pub segment_bytes: u32,
    pub value_bytes_max: u32,
    /// Of each backup's store.
    pub frames: u32,
    pub scrub_ms: u64,
    pub resp: SocketAddr,
    pub resp_cluster: SocketAddr,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    pub listen: SocketAddr,
    pub password: Option<String>,
    pub tls: Option<TlsFiles>,
    /// What clients of this `dev` may be given to try: its authority and its client certificate.
    pub made: Option<Made>,
    secret_file: Option<PathBuf>,
}

impl Dev {
    pub fn resolve(options: &DevOptions) -> Outcome<Dev> {
        let credentials = Credentials::read(
            options.cluster_secret_file.as_deref(),
            options.password_file.as_deref(),
        )?;
        let segment_bytes = segment_bytes(options.segment_bytes)?;
        let dev = Dev {
            masters: options.masters.unwrap_or(1),
            backups: options.backups.unwrap_or(3),
            replicas: options
                .replicas
                .unwrap_or(3.min(u8::try_from(options.backups.unwrap_or(3)).unwrap_or(3))),
            ack_quorum: options.ack_quorum,
            shards: options.shards.unwrap_or(1),
            memory: options.memory.unwrap_or(MEMORY_DEFAULT).0,
            touch_memory: options.touch_memory.unwrap_or(true),
            dir: options.dir.clone().unwrap_or("./holdfast-data".into()),
            segment_bytes,
            value_bytes_max: value_bytes_max(options.value_bytes_max, segment_bytes)?,
            frames: 0,
            scrub_ms: scrub_ms(options.scrub_hours)?,
            resp: options.resp.unwrap_or(loopback(RESP_PORT)),
            resp_cluster: options.resp_cluster.unwrap_or(loopback(RESP_CLUSTER_PORT)),
            grpc: options.grpc.unwrap_or(loopback(GRPC_PORT)),
            http: options.http.unwrap_or(loopback(HTTP_PORT)),
            listen: options.listen.unwrap_or(loopback(0)),
            password: credentials.password.clone(),
            tls: options.tls_files_of_dev()?,
            made: None,
            secret_file: options.cluster_secret_file.clone(),
        };
        credentials.check(
            &[
                ("resp", Some(dev.resp)),
                ("resp-cluster", Some(dev.resp_cluster)),
                ("grpc", Some(dev.grpc)),
                ("http", Some(dev.http)),
                ("listen", Some(dev.listen)),
            ],
            options.tls == Some(true) || dev.tls.is_some(),
        )?;
        if dev.masters == 0 || dev.shards == 0 {
            return Err(Fatal::new("--masters and --shards must be at least 1"));
        }
        if u32::from(dev.replicas) > dev.backups {
            return Err(Fatal::new(format!(
                "--replicas {} need as many backups, and --backups is {}: every replica lives on another backup",
                dev.replicas, dev.backups
            )));
        }
        quorum_of(dev.replicas, dev.ack_quorum)?;
        let frames = match options.disk {
            Some(disk) => disk.0 / u64::from(dev.segment_bytes),
            None => dev.frames_needed(),
        };
        let frames = u32::try_from(frames).map_err(|_| Fatal::new("--disk is too large"))?;
        Ok(Dev { frames, ..dev })
    }

    /// Room for every replica twice (a recovery writes what the dead log still holds), shared evenly,
    /// and half as much again because placement is random. Sparse: only what is used takes disk.
    fn frames_needed(&self) -> u64 {
        let segments = (u64::from(self.masters) * self.memory).div_ceil(self.segment_bytes.into());
        let segments = segments * u64::from(REPLICA_EXPANSION_PERCENT) / 100;
        let replicas = segments * u64::from(self.replicas) * 2;
        replicas.div_ceil(u64::from(self.backups).max(1)) * 3 / 2 + 32
    }

    /// Makes certificates in the directory if TLS was asked for without any.
    pub fn make_certificates(&mut self, options: &DevOptions) -> Outcome<()> {
        if options.tls != Some(true) || self.tls.is_some() {
            return Ok(());
        }
        let loopbacks = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let faces = [
            self.resp,
            self.resp_cluster,
            self.grpc,
            self.http,
            self.listen,
        ];
        let addresses = faces.iter().map(SocketAddr::ip).chain(loopbacks).collect();
        let made = certificates::make(&self.dir.join("tls"), &addresses)?;
        self.tls = Some(TlsFiles {
            cert: made.cert.clone(),
            key: made.key.clone(),
            ca: made.ca.clone(),
            clients: options.tls_clients.unwrap_or_default(),
        });
        self.made = Some(made);
        Ok(())
    }

    /// The members' secret: the user's, or one made for the directory.
    pub fn secret_path(&self) -> Outcome<PathBuf> {
        if let Some(path) = &self.secret_file {
            return Ok(path.clone());
        }
        let path = self.dir.join("cluster-secret");
        if !path.exists() {
            use std::io::Write;
            use std::os::unix::fs::OpenOptionsExt;
            let what = || format!("cannot write {}", path.display());
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .context(what)?;
            let secret: String = (0..4)
                .map(|_| format!("{:016x}", clock::random()))
                .collect();
            writeln!(file, "{secret}").context(what)?;
        }
        Ok(path)
    }

    pub(super) fn secret(&self) -> Outcome<ClusterSecret> {
        let path = self.secret_path()?;
        Ok(ClusterSecret::new(read_secret(&path, "cluster secret")?))
    }
}

/// What `dev` prints once ready.
pub fn greeting(addresses: &ReadyFile, dev: &Dev) -> String {
    let resp = addresses.resp.as_deref().unwrap_or_default();
    let port = resp.rsplit_once(':').map_or("", |(_, port)| port);
    let password = if dev.password.is_some() {
        " -a <password>"
    } else {
        ""
    };
    // What its clients need to be told, as flags of redis-cli and of our own.
    let (mut redis_tls, mut our_tls, mut scheme) = (String::new(), String::new(), "http");
    if let Some(tls) = &dev.tls {
        let ca = tls.ca.display();
        (redis_tls, our_tls) = (format!(" --tls --cacert {ca}"), format!(" --ca {ca}"));
        scheme = "https";
        if let (ClientCertificates::Required, Some(made)) = (tls.clients, &dev.made) {
            let (cert, key) = (made.client_cert.display(), made.client_key.display());
            redis_tls.push_str(&format!(" --cert {cert} --key {key}"));
            our_tls.push_str(&format!(" --cert {cert} --key {key}"));
        }
    }
    let plural =
        |count: u32, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    format!(
        "\nHoldfast is ready: {}, {}, {} of every session, {} of memory each; kept in {}\n\n  \
         Redis protocol     {resp}\n  \
         Redis Cluster      {}\n  \
         gRPC holdfast.v1   {}\n  \
         HTTP               {scheme}://{}/readyz  /healthz  /metrics\n\n  \
         try:  redis-cli -p {port}{password}{redis_tls} set sess:1 hello ex 60\n        \
         holdfast ctl --grpc {}{our_tls} status\n",
        plural(dev.masters, "master"),
        plural(dev.backups, "backup"),
        plural(dev.replicas.into(), "replica"),
        ByteSize(dev.memory),
        dev.dir.display(),
        addresses.resp_cluster.join(" "),
        addresses.grpc.as_deref().unwrap_or_default(),
        addresses.http.as_deref().unwrap_or_default(),
        addresses.grpc.as_deref().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(options: DevOptions) -> Outcome<Dev> {
        Dev::resolve(&options)
    }

    #[test]
    fn defaults_are_those_that_are_documented() {
        let dev = resolve(DevOptions::default()).unwrap();
        assert_eq!(
            (dev.masters, dev.backups, dev.replicas, dev.shards),
            (1, 3, 3, 1)
        );
        assert_eq!(dev.memory, 512 << 20);
        assert_eq!(dev.resp.to_string(), "127.0.0.1:6380");
        assert_eq!(dev.resp_cluster.to_string(), "127.0.0.1:6381");
        assert_eq!(dev.grpc.to_string(), "127.0.0.1:7380");
        assert_eq!(dev.http.to_string(), "127.0.0.1:8380");
        // 64 segments, twice as many when compacted, 3 replicas over 3 backups: twice that, and half as much again.
        assert_eq!(dev.frames, 64 * 2 * 2 * 3 / 2 + 32);
    }

    #[test]
    fn impossible_wishes_are_refused_with_a_reason() {
        let refused = |options: DevOptions| resolve(options).unwrap_err().to_string();
        let few = DevOptions {
            replicas: Some(3),
            backups: Some(2),
            ..DevOptions::default()
        };
        assert!(refused(few).contains("--backups is 2"));
        for (quorum, says) in [(0, "not between 1"), (4, "--replicas 3")] {
            let wrong = DevOptions {
                ack_quorum: Some(quorum),
                ..DevOptions::default()
            };
            assert!(refused(wrong).contains(says));
        }
        let none = DevOptions {
            masters: Some(0),
            ..DevOptions::default()
        };
        assert!(refused(none).contains("--masters"));
        let odd = DevOptions {
            segment_bytes: Some(ByteSize(100_000)),
            ..DevOptions::default()
        };
        assert!(refused(odd).contains("power of two"));
        let open = DevOptions {
            http: Some("0.0.0.0:8380".parse().unwrap()),
            ..DevOptions::default()
        };
        assert!(refused(open).contains("--http 0.0.0.0:8380"));
    }
}
