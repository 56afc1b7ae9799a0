//! How a stream between members opens: each side proves that it knows the cluster's secret.
//!
//! ```text
//! dialer                                      acceptor
//!   Hello { from, to, nonce }        ──▶
//!                                    ◀──      Challenge { from, nonce, proof }
//!   Proof                            ──▶
//!                   then frames in both directions
//! ```
//!
//! A proof is HMAC-SHA256, keyed with the secret, over a label that names the side, both ids and
//! both nonces. H1. Neither side's proof can stand in for the other's: the labels differ. H2. Neither
//! can be replayed: the verifier's own fresh nonce is in it. H3. Ids are proven, so a restarted member
//! that got its predecessor's port cannot be mistaken for it. What follows the handshake is not
//! encrypted or authenticated byte by byte; that is TLS's work where the network is not trusted.
//!
//! Nonces come from the driver, which alone may ask the machine for chance. Everything has a fixed
//! length, so nothing is buffered on a stranger's word.

use hmac::{Hmac, KeyInit, Mac};
use holdfast_format::ServerId;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Version of the member protocol; members of different versions refuse each other.
pub const PROTOCOL_VERSION: u16 = 1;
pub const NONCE_BYTES: usize = 32;
pub const PROOF_BYTES: usize = 32;
/// `HFST`, version u16, two zero bytes, from u64, to u64, nonce.
pub const HELLO_BYTES: usize = 24 + NONCE_BYTES;
/// `HFST`, version u16, two zero bytes, from u64, nonce, proof.
pub const CHALLENGE_BYTES: usize = 16 + NONCE_BYTES + PROOF_BYTES;

const MAGIC: [u8; 4] = *b"HFST";

/// A number used once, from the machine's source of chance.
pub type Nonce = [u8; NONCE_BYTES];

/// What all members of a cluster know and nobody else does. Empty where nothing but loopback
/// addresses are used.
#[derive(Clone, Default)]
pub struct ClusterSecret(Vec<u8>);

impl ClusterSecret {
    pub fn new(bytes: impl Into<Vec<u8>>) -> ClusterSecret {
        ClusterSecret(bytes.into())
    }

    /// A secret that only those know who know this one and `binding`, such as what the two ends of one
    /// TLS session have in common.
    pub fn bound_to(&self, binding: &[u8]) -> ClusterSecret {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(b"holdfast member, bound to a channel");
        mac.update(binding);
        ClusterSecret(mac.finalize().into_bytes().to_vec())
    }
}

impl std::fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterSecret(…)")
    }
}

/// Why a stream is not opened. In every case: close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error("the peer does not speak the member protocol")]
    NotAMember,
    #[error("the peer speaks version {found} of the member protocol, not {PROTOCOL_VERSION}")]
    Version { found: u16 },
    #[error("the peer does not know the cluster's secret")]
    WrongSecret,
    /// The member that was dialled lives here no more; another one does.
    #[error("expected {expected}, found {found}")]
    WrongMember { expected: ServerId, found: ServerId },
}

/// What a dialer says first. Nothing in it is proven yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    pub from: ServerId,
    /// Whom it means to reach.
    pub to: ServerId,
    pub nonce: Nonce,
}

impl Hello {
    /// The hello as bytes.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        put_preamble(&mut bytes);
        bytes[8..16].copy_from_slice(&self.from.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.to.0.to_le_bytes());
        bytes[24..].copy_from_slice(&self.nonce);
        bytes
    }

    /// Reads a hello; an acceptor with several members on one port chooses by `to`.
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Hello, HandshakeError> {
        check_preamble(bytes)?;
        Ok(Hello {
            from: ServerId(u64_at(bytes, 8)),
            to: ServerId(u64_at(bytes, 16)),
            nonce: nonce_at(bytes, 24),
        })
    }
}

/// The dialling side, waiting for its challenge.
#[derive(Debug)]
pub struct Dialer {
    secret: ClusterSecret,
    hello: Hello,
}

impl Dialer {
    /// Begins: send the bytes, then read `CHALLENGE_BYTES`.
    pub fn start(secret: &ClusterSecret, hello: Hello) -> (Dialer, [u8; HELLO_BYTES]) {
        (
            Dialer {
                secret: secret.clone(),
                hello,
            },
            hello.encode(),
        )
    }

    /// Checks the challenge; send the proof, then frames.
    pub fn finish(
        self,
        challenge: &[u8; CHALLENGE_BYTES],
    ) -> Result<[u8; PROOF_BYTES], HandshakeError> {
        check_preamble(challenge)?;
        let acceptor = ServerId(u64_at(challenge, 8));
        let nonce = nonce_at(challenge, 16);
        let theirs = proof(&self.secret, Side::Acceptor, &self.hello, acceptor, &nonce);
        theirs
            .verify_slice(&challenge[16 + NONCE_BYTES..])
            .map_err(|_| HandshakeError::WrongSecret)?;
        if acceptor != self.hello.to {
            return Err(HandshakeError::WrongMember {
                expected: self.hello.to,
                found: acceptor,
            });
        }
        let ours = proof(&self.secret, Side::Dialer, &self.hello, acceptor, &nonce);
        Ok(ours.finalize().into_bytes().into())
    }
}

/// The accepting side, waiting for the dialer's proof.
#[derive(Debug)]
pub struct Acceptor {
    secret: ClusterSecret,
    hello: Hello,
    me: ServerId,
    nonce: Nonce,
}

impl Acceptor {
    /// Answers a hello: send the bytes, then read `PROOF_BYTES`. A hello meant for another member
    /// is answered too, so that the dialer learns who lives here now.
    pub fn start(
        secret: &ClusterSecret,
        me: ServerId,
        nonce: Nonce,
        hello: Hello,
    ) -> (Acceptor, [u8; CHALLENGE_BYTES]) {
        let ours = proof(secret, Side::Acceptor, &hello, me, &nonce);
        let mut bytes = [0; CHALLENGE_BYTES];
        put_preamble(&mut bytes);
        bytes[8..16].copy_from_slice(&me.0.to_le_bytes());
        bytes[16..16 + NONCE_BYTES].copy_from_slice(&nonce);
        bytes[16 + NONCE_BYTES..].copy_from_slice(&ours.finalize().into_bytes());
        (
            Acceptor {
                secret: secret.clone(),
                hello,
                me,
                nonce,
            },
            bytes,
        )
    }

    /// Checks the proof: who dialled.
    pub fn finish(self, theirs: &[u8; PROOF_BYTES]) -> Result<ServerId, HandshakeError> {
        proof(
            &self.secret,
            Side::Dialer,
            &self.hello,
            self.me,
            &self.nonce,
        )
        .verify_slice(theirs)
        .map_err(|_| HandshakeError::WrongSecret)?;
        if self.hello.to != self.me {
            return Err(HandshakeError::WrongMember {
                expected: self.hello.to,
                found: self.me,
            });
        }
        Ok(self.hello.from)
    }
}

/// Compares two secrets in a time that tells nothing of where, or in what length, they differ.
pub fn secrets_equal(one: &[u8], other: &[u8]) -> bool {
    Sha256::digest(one).ct_eq(&Sha256::digest(other)).into()
}

#[derive(Clone, Copy)]
enum Side {
    Dialer,
    Acceptor,
}

fn proof(
    secret: &ClusterSecret,
    side: Side,
    hello: &Hello,
    acceptor: ServerId,
    acceptor_nonce: &Nonce,
) -> Hmac<Sha256> {
    let label: &[u8] = match side {
        Side::Dialer => b"holdfast member dialer  ",
        Side::Acceptor => b"holdfast member acceptor",
    };
    let mut mac = Hmac::<Sha256>::new_from_slice(&secret.0).expect("HMAC takes keys of any length");
    mac.update(label);
    mac.update(&PROTOCOL_VERSION.to_le_bytes());
    mac.update(&hello.from.0.to_le_bytes());
    mac.update(&acceptor.0.to_le_bytes());
    mac.update(&hello.nonce);
    mac.update(acceptor_nonce);
    mac
}

fn put_preamble(bytes: &mut [u8]) {
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..6].copy_from_slice(&PROTOCOL_VERSION.to_le_bytes());
}

fn check_preamble(bytes: &[u8]) -> Result<(), HandshakeError> {
    if bytes[..4] != MAGIC {
        return Err(HandshakeError::NotAMember);
    }
    let found = u16::from_le_bytes([bytes[4], bytes[5]]);
    if found != PROTOCOL_VERSION {
        return Err(HandshakeError::Version { found });
    }
    if bytes[6..8] != [0, 0] {
        return Err(HandshakeError::NotAMember);
    }
    Ok(())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let chunk = bytes[at..]
        .first_chunk()
        .expect("handshake messages have a fixed length");
    u64::from_le_bytes(*chunk)
}

fn nonce_at(bytes: &[u8], at: usize) -> Nonce {
    *bytes[at..]
        .first_chunk()
        .expect("handshake messages have a fixed length")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIALER: ServerId = ServerId(7);
    const ACCEPTOR: ServerId = ServerId(9);

    fn hello(to: ServerId) -> Hello {
        Hello {
            from: DIALER,
            to,
            nonce: [1; NONCE_BYTES],
        }
    }

    /// Runs a handshake; what each side ends with.
    fn shake(
        dialer_secret: &str,
        acceptor_secret: &str,
        to: ServerId,
    ) -> (Result<(), HandshakeError>, Result<ServerId, HandshakeError>) {
        let dialer_secret = ClusterSecret::new(dialer_secret);
        let acceptor_secret = ClusterSecret::new(acceptor_secret);
        let (dialer, bytes) = Dialer::start(&dialer_secret, hello(to));
        let heard = Hello::decode(&bytes).expect("it was just encoded");
        assert_eq!(heard, hello(to));
        let (acceptor, challenge) =
            Acceptor::start(&acceptor_secret, ACCEPTOR, [2; NONCE_BYTES], heard);
        match dialer.finish(&challenge) {
            Ok(proof) => (Ok(()), acceptor.finish(&proof)),
            // A stranger that goes on regardless has no proof to show.
            Err(error) => (Err(error), acceptor.finish(&[0; PROOF_BYTES])),
        }
    }

    #[test]
    fn members_that_share_a_secret_know_each_other() {
        assert_eq!(shake("secret", "secret", ACCEPTOR), (Ok(()), Ok(DIALER)));
        assert_eq!(shake("", "", ACCEPTOR), (Ok(()), Ok(DIALER)));
    }

    #[test]
    fn a_stranger_is_refused_by_both_sides() {
        let wrong = HandshakeError::WrongSecret;
        assert_eq!(shake("secret", "other", ACCEPTOR), (Err(wrong), Err(wrong)));
    }

    #[test]
    fn a_dialer_learns_who_lives_there_now() {
        let old = ServerId(8);
        let (dialer, _) = shake("secret", "secret", old);
        let wrong = HandshakeError::WrongMember {
            expected: old,
            found: ACCEPTOR,
        };
        assert_eq!(dialer, Err(wrong));
    }

    /// H1: reflecting the acceptor's own proof proves nothing.
    #[test]
    fn a_reflected_proof_is_refused() {
        let secret = ClusterSecret::new("secret");
        let (acceptor, challenge) =
            Acceptor::start(&secret, ACCEPTOR, [2; NONCE_BYTES], hello(ACCEPTOR));
        let reflected = challenge[16 + NONCE_BYTES..]
            .try_into()
            .expect("a proof ends it");
        assert_eq!(acceptor.finish(reflected), Err(HandshakeError::WrongSecret));
    }

    /// H2: a proof overheard once is worth nothing under another nonce.
    #[test]
    fn a_replayed_proof_is_refused() {
        let secret = ClusterSecret::new("secret");
        let (dialer, _) = Dialer::start(&secret, hello(ACCEPTOR));
        let (_, challenge) = Acceptor::start(&secret, ACCEPTOR, [2; NONCE_BYTES], hello(ACCEPTOR));
        let proof = dialer.finish(&challenge).expect("they share the secret");
        let (again, _) = Acceptor::start(&secret, ACCEPTOR, [3; NONCE_BYTES], hello(ACCEPTOR));
        assert_eq!(again.finish(&proof), Err(HandshakeError::WrongSecret));
    }

    #[test]
    fn other_protocols_and_versions_are_told_apart() {
        let mut bytes = hello(ACCEPTOR).encode();
        bytes[4] = 2;
        assert_eq!(
            Hello::decode(&bytes),
            Err(HandshakeError::Version { found: 2 })
        );
        let mut http = [b' '; HELLO_BYTES];
        http[..14].copy_from_slice(b"GET / HTTP/1.1");
        assert_eq!(Hello::decode(&http), Err(HandshakeError::NotAMember));
    }

    #[test]
    fn secrets_are_equal_or_not() {
        assert!(secrets_equal(b"hunter2", b"hunter2"));
        assert!(!secrets_equal(b"hunter2", b"hunter"));
        assert!(!format!("{:?}", ClusterSecret::new("hunter2")).contains("hunter2"));
    }
}
