//! TLS of one process: its certificate, the authority it trusts, and the configurations made of them.
//!
//! ```text
//!   files --load--> Keys { acceptor per face, dialers }  <--current()-- every new connection
//!     ^-- SIGHUP, or their bytes changed --reload--'
//! ```
//!
//! S1. A reload that fails changes nothing: what was in use stays in use, and the log says why.
//! S2. Members verify each other's certificates, always, and by the authority alone. Which member it is
//!     is proven by the cluster secret, whose proof is bound to the TLS session (`Stream::binding`), so
//!     that nobody with a certificate of the same authority can stand between two members.
//! S3. Clients show certificates as `ClientCertificates` says; balancers and scrapers on the HTTP face
//!     are never asked for one: it tells nothing of any session, and probes cannot be given one.
//!
//! Cryptography is ring: it builds with the Rust toolchain and a C compiler alone, where aws-lc may want
//! CMake. It signs with ECDSA P-256 in about 20 µs and with RSA-2048 in about 700: prefer the former.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use holdfast_wire::grpc::ClientTls;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::Ticketer;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ProducesTickets, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig,
    SignatureScheme,
};
use serde::Deserialize;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::error::{Context, Fatal, Outcome};

/// How often the files are looked at: certificates are renewed weeks before they end.
pub const RELOAD_EVERY: Duration = Duration::from_secs(10);

/// Whether clients (not members) must show a certificate of the authority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// They are not asked.
    #[default]
    None,
    /// One that is shown must be good.
    Optional,
    Required,
}

impl ClientCertificates {
    /// As the option is written.
    pub fn name(self) -> &'static str {
        match self {
            ClientCertificates::None => "none",
            ClientCertificates::Optional => "optional",
            ClientCertificates::Required => "required",
        }
    }
}

/// Where the keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// This process's certificate, and those between it and the authority, as PEM.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// The authority (or several) that vouches for members and clients.
    pub ca: PathBuf,
    pub clients: ClientCertificates,
}

impl TlsFiles {
    /// What the options ask for: nothing, or all of it.
    pub fn from_options(
        cert: Option<&Path>,
        key: Option<&Path>,
        ca: Option<&Path>,
        clients: Option<ClientCertificates>,
    ) -> Outcome<Option<TlsFiles>> {
        let missing = |flag: &str, what: &str| {
            Err(Fatal::new(format!(
                "--{flag} is missing: TLS needs {what}; give --tls-cert, --tls-key and --tls-ca, or none of them"
            )))
        };
        match (cert, key, ca) {
            (None, None, None) if clients.is_none() => Ok(None),
            (None, ..) => missing("tls-cert", "a certificate"),
            (_, None, _) => missing("tls-key", "the certificate's key"),
            (_, _, None) => missing("tls-ca", "the authority by which members verify each other"),
            (Some(cert), Some(key), Some(ca)) => Ok(Some(TlsFiles {
                cert: cert.to_path_buf(),
                key: key.to_path_buf(),
                ca: ca.to_path_buf(),
                clients: clients.unwrap_or_default(),
            })),
        }
    }
}

/// A listener's kind: each has its own protocol names and its own rule about client certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Face {
    Resp,
    Grpc,
    Http,
    Member,
}

impl Face {
    pub fn name(self) -> &'static str {
        match self {
            Face::Resp => "Redis protocol",
            Face::Grpc => "gRPC",
            Face::Http => "HTTP",
            Face::Member => "member",
        }
    }
}

/// What one version of the files gives.
struct Keys {
    /// The files' bytes, to notice a change.
    bytes: [Vec<u8>; 3],
    resp: Arc<ServerConfig>,
    grpc: Arc<ServerConfig>,
    http: Arc<ServerConfig>,
    member: Arc<ServerConfig>,
    dial_member: Arc<ClientConfig>,
}

/// TLS of this process.
pub struct Tls {
    files: TlsFiles,
    tickets: Arc<dyn ProducesTickets>,
    keys: RwLock<Arc<Keys>>,
    reloads: AtomicU64,
    failed_reloads: AtomicU64,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files, or says which of them cannot be used and why.
    pub fn load(files: TlsFiles) -> Outcome<Arc<Tls>> {
        let tickets = Ticketer::new().context(|| "cannot make keys for TLS tickets".to_string())?;
        let keys = Keys::of(&files, read_files(&files)?, &tickets)?;
        Ok(Arc::new(Tls {
            files,
            tickets,
            keys: RwLock::new(Arc::new(keys)),
            reloads: AtomicU64::new(0),
            failed_reloads: AtomicU64::new(0),
        }))
    }

    pub fn load_some(files: Option<TlsFiles>) -> Outcome<Option<Arc<Tls>>> {
        files.map(Tls::load).transpose()
    }

    /// Takes the files as they are now; true if they had changed. On an error nothing changes (S1).
    pub fn reload(&self) -> Outcome<bool> {
        let made = read_files(&self.files).and_then(|bytes| {
            if bytes == self.current().bytes {
                return Ok(None);
            }
            Keys::of(&self.files, bytes, &self.tickets).map(Some)
        });
        match made {
            Ok(None) => Ok(false),
            Ok(Some(keys)) => {
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
                self.reloads.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            Err(fatal) => {
                self.failed_reloads.fetch_add(1, Ordering::Relaxed);
                Err(fatal)
            }
        }
    }

    /// For a connection that was just accepted.
    pub fn acceptor(&self, face: Face) -> TlsAcceptor {
        let keys = self.current();
        TlsAcceptor::from(match face {
            Face::Resp => keys.resp.clone(),
            Face::Grpc => keys.grpc.clone(),
            Face::Http => keys.http.clone(),
            Face::Member => keys.member.clone(),
        })
    }

    /// For a connection to another member (S2).
    pub fn member_dialer(&self) -> TlsConnector {
        TlsConnector::from(self.current().dial_member.clone())
    }

    /// Certificate, key and authority as PEM, for a client of another process of this cluster.
    pub fn as_client(&self) -> ClientKeys {
        let [cert, key, ca] = self.current().bytes.clone();
        ClientKeys {
            ca,
            identity: Some((cert, key)),
        }
    }

    /// Changes taken, and changes that could not be used.
    pub fn reloads(&self) -> (u64, u64) {
        (
            self.reloads.load(Ordering::Relaxed),
            self.failed_reloads.load(Ordering::Relaxed),
        )
    }

    fn current(&self) -> Arc<Keys> {
        self.keys
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// What a client needs, as PEM.
#[derive(Clone)]
pub struct ClientKeys {
    pub ca: Vec<u8>,
    /// Its certificate and key, if it has any.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for ClientKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientKeys").finish_non_exhaustive()
    }
}

/// Where a system keeps the authorities that it trusts.
const SYSTEM_AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

impl ClientKeys {
    /// Reads the files; without `ca` the system's authorities are trusted.
    pub fn read(ca: Option<&Path>, cert: Option<&Path>, key: Option<&Path>) -> Outcome<ClientKeys> {
        let ca = match ca {
            Some(path) => path,
            None => SYSTEM_AUTHORITIES
                .iter()
                .map(Path::new)
                .find(|path| path.exists())
                .ok_or(Fatal::new(
                    "this system keeps no list of authorities; name one with --ca",
                ))?,
        };
        let ca = read(ca, "authority")?;
        let identity = match (cert, key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((read(cert, "certificate")?, read(key, "key")?)),
            _ => return Err(Fatal::new("--cert and --key belong together")),
        };
        let keys = ClientKeys { ca, identity };
        keys.connector()?;
        Ok(keys)
    }

    pub fn for_grpc(&self) -> ClientTls<'_> {
        ClientTls {
            ca_pem: &self.ca,
            identity_pem: (self.identity.as_ref()).map(|(cert, key)| (&cert[..], &key[..])),
        }
    }

    /// Verifies the server's name as well as its authority.
    pub fn connector(&self) -> Outcome<TlsConnector> {
        let roots = authorities("--ca", &self.ca)?;
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let config = match &self.identity {
            Some((cert, key)) => {
                let (chain, key) = (chain("--cert", cert)?, private_key("--key", key)?);
                builder
                    .with_client_auth_cert(chain, key)
                    .context(|| "--cert and --key".to_string())?
            }
            None => builder.with_no_client_auth(),
        };
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// The name by which a server at `host:port` must be certified.
pub fn server_name(address: &str) -> Outcome<ServerName<'static>> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(host.to_string())
        .map_err(|_| Fatal::new(format!("`{host}` is no name that a certificate can have")))
}

impl Keys {
    fn of(
        files: &TlsFiles,
        bytes: [Vec<u8>; 3],
        tickets: &Arc<dyn ProducesTickets>,
    ) -> Outcome<Keys> {
        let [cert, key, ca] = &bytes;
        let what = |path: &Path| path.display().to_string();
        let chain = chain(&what(&files.cert), cert)?;
        let key = private_key(&what(&files.key), key)?;
        let roots = Arc::new(authorities(&what(&files.ca), ca)?);

        let server = |face: Face, clients: ClientCertificates| -> Outcome<Arc<ServerConfig>> {
            let versions: &[_] = match face {
                Face::Member => &[&rustls::version::TLS13],
                _ => rustls::ALL_VERSIONS,
            };
            let builder = ServerConfig::builder_with_protocol_versions(versions);
            let verifier = WebPkiClientVerifier::builder(roots.clone());
            let verifier = match clients {
                ClientCertificates::None => None,
                ClientCertificates::Optional => Some(verifier.allow_unauthenticated().build()),
                ClientCertificates::Required => Some(verifier.build()),
            };
            let builder = match verifier {
                None => builder.with_no_client_auth(),
                Some(verifier) => {
                    builder.with_client_cert_verifier(verifier.context(|| what(&files.ca))?)
                }
            };
            let mut config = builder
                .with_single_cert(chain.clone(), key.clone_key())
                .map_err(|error| does_not_fit(files, &error))?;
            config.ticketer = tickets.clone();
            config.alpn_protocols = match face {
                Face::Grpc => vec![b"h2".to_vec()],
                Face::Http => vec![b"http/1.1".to_vec()],
                Face::Resp | Face::Member => vec![],
            };
            Ok(Arc::new(config))
        };
        let verifier = WebPkiServerVerifier::builder(roots.clone())
            .build()
            .context(|| what(&files.ca))?;
        let mut dial_member =
            ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(ByAuthority(verifier)))
                .with_client_auth_cert(chain.clone(), key.clone_key())
                .map_err(|error| does_not_fit(files, &error))?;
        // Sessions are kept by name, and members have none.
        dial_member.resumption = rustls::client::Resumption::disabled();
        Ok(Keys {
            resp: server(Face::Resp, files.clients)?,
            grpc: server(Face::Grpc, files.clients)?,
            http: server(Face::Http, ClientCertificates::None)?,
            member: server(Face::Member, ClientCertificates::Required)?,
            dial_member: Arc::new(dial_member),
            bytes,
        })
    }
}

/// Verifies a member's certificate but not its name: members are dialled by addresses that change, and
/// prove who they are by the cluster secret (S2).
#[derive(Debug)]
struct ByAuthority(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for ByAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.0
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // The name is what is checked last: everything else was in order.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

fn read_files(files: &TlsFiles) -> Outcome<[Vec<u8>; 3]> {
    Ok([
        read(&files.cert, "certificate")?,
        read(&files.key, "key")?,
        read(&files.ca, "authority")?,
    ])
}

fn read(path: &Path, what: &str) -> Outcome<Vec<u8>> {
    std::fs::read(path).context(|| format!("cannot read the TLS {what} {}", path.display()))
}

fn chain(what: &str, pem: &[u8]) -> Outcome<Vec<CertificateDer<'static>>> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(Fatal::new(format!(
            "{what} holds no certificate: expected PEM, -----BEGIN CERTIFICATE-----"
        ))),
        Err(error) => Err(Fatal::new(format!("{what}: {error}"))),
    }
}

fn private_key(what: &str, pem: &[u8]) -> Outcome<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| {
        Fatal::new(format!(
            "{what} holds no private key: expected PEM, -----BEGIN PRIVATE KEY----- ({error})"
        ))
    })
}

fn authorities(what: &str, pem: &[u8]) -> Outcome<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(what, pem)? {
        roots
            .add(certificate)
            .context(|| format!("{what} holds a certificate that cannot be trusted"))?;
    }
    Ok(roots)
}

fn does_not_fit(files: &TlsFiles, error: &rustls::Error) -> Fatal {
    let (cert, key) = (files.cert.display(), files.key.display());
    match error {
        rustls::Error::InconsistentKeys(_) => Fatal::new(format!(
            "the key {key} does not belong to the certificate {cert}"
        )),
        error => Fatal::new(format!("{cert} with {key}: {error}")),
    }
}
