//! Certificates that `holdfast dev --tls` makes for itself: an authority, a certificate for its members
//! and faces, and one for clients to try `--tls-clients required` with.
//!
//! The authority's key is thrown away, so nothing else can ever be made in its name. Delete the directory
//! to have all of it made anew.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};

use crate::error::{Context, Outcome};

/// Long enough for any experiment.
const VALID: Duration = Duration::from_secs(825 * 24 * 3600);
/// For clocks that are behind ours.
const EARLIER: Duration = Duration::from_secs(24 * 3600);

/// What was made, or found from an earlier start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client_cert: PathBuf,
    pub client_key: PathBuf,
}

/// The certificates in `dir`, made first if there are none. They are for `localhost` and `addresses`.
pub fn make(dir: &Path, addresses: &BTreeSet<IpAddr>) -> Outcome<Made> {
    let made = Made {
        ca: dir.join("ca.pem"),
        cert: dir.join("cert.pem"),
        key: dir.join("key.pem"),
        client_cert: dir.join("client.pem"),
        client_key: dir.join("client-key.pem"),
    };
    if made.ca.exists() {
        return Ok(made);
    }
    let failed = || format!("cannot make certificates in {}", dir.display());
    fs::create_dir_all(dir).context(failed)?;

    let mut params = params("Holdfast dev authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = KeyPair::generate()
        .and_then(|key| CertifiedIssuer::self_signed(params, key))
        .context(failed)?;

    let mut names: Vec<SanType> = addresses
        .iter()
        .filter(|address| !address.is_unspecified())
        .map(|address| SanType::IpAddress(*address))
        .collect();
    names.push(SanType::DnsName(
        "localhost".try_into().expect("localhost is ASCII"),
    ));
    let both = [
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    for (name, names, usages, cert, key) in [
        ("Holdfast dev", names, &both[..], &made.cert, &made.key),
        (
            "Holdfast dev client",
            vec![],
            &both[1..],
            &made.client_cert,
            &made.client_key,
        ),
    ] {
        let mut params = self::params(name);
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        let pair = KeyPair::generate().context(failed)?;
        let signed = params.signed_by(&pair, &authority).context(failed)?;
        write(cert, &signed.pem(), 0o644)?;
        write(key, &pair.serialize_pem(), 0o600)?;
    }
    // Last: its presence says that all are there.
    write(&made.ca, &authority.pem(), 0o644)?;
    Ok(made)
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    params.not_before = date_time_ymd(1970, 1, 1) + now.saturating_sub(EARLIER);
    params.not_after = date_time_ymd(1970, 1, 1) + now + VALID;
    params
}

fn write(path: &Path, pem: &str, mode: u32) -> Outcome<()> {
    let what = || format!("cannot write {}", path.display());
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .context(what)?;
    file.write_all(pem.as_bytes()).context(what)
}
