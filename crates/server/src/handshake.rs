//! Opens streams between members: the wire's mutual proof carried over a socket, and one byte more.
//!
//! After the proof the acceptor says `WELCOME` when it has decided to use the stream; until then
//! the dialer sends nothing (T2 of `transport`).

use std::collections::BTreeSet;
use std::io;

use holdfast_format::ServerId;
use holdfast_wire::handshake::{
    Acceptor, CHALLENGE_BYTES, ClusterSecret, Dialer, HELLO_BYTES, HandshakeError, Hello, Nonce,
    PROOF_BYTES,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::stream::Stream;

const WELCOME: u8 = b'W';

/// Why a stream did not open.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("the stream broke: {0}")]
    Io(#[from] io::Error),
    #[error("no member lives here at the moment")]
    Nobody,
    #[error("the peer did not welcome us; it may know another secret")]
    NotWelcome,
}

impl Refused {
    /// True if trying again cannot help until somebody changes a configuration.
    pub fn needs_a_person(&self) -> bool {
        matches!(
            self,
            Refused::Handshake(HandshakeError::Version { .. } | HandshakeError::WrongSecret)
        )
    }

    /// True if whoever answered proved to be another member than the one dialled.
    pub fn is_another_member(&self) -> bool {
        matches!(self, Refused::Handshake(HandshakeError::WrongMember { .. }))
    }
}

/// Proves to `to` that we are `from`, and waits until it welcomes us.
pub async fn dial(
    stream: &mut Stream,
    secret: &ClusterSecret,
    from: ServerId,
    to: ServerId,
) -> Result<(), Refused> {
    let (dialer, hello) = Dialer::start(
        &bound(secret, stream),
        Hello {
            from,
            to,
            nonce: nonce(),
        },
    );
    stream.write_all(&hello).await?;
    stream.flush().await?;
    let mut challenge = [0; CHALLENGE_BYTES];
    stream.read_exact(&mut challenge).await?;
    stream.write_all(&dialer.finish(&challenge)?).await?;
    stream.flush().await?;
    match stream.read_u8().await {
        Ok(WELCOME) => Ok(()),
        Ok(_) => Err(HandshakeError::NotAMember.into()),
        Err(_) => Err(Refused::NotWelcome),
    }
}

/// Checks who dials; returns (member here, peer). `welcome` comes later.
pub async fn accept(
    stream: &mut Stream,
    secret: &ClusterSecret,
    hosted: &BTreeSet<ServerId>,
) -> Result<(ServerId, ServerId), Refused> {
    let mut hello = [0; HELLO_BYTES];
    stream.read_exact(&mut hello).await?;
    let hello = Hello::decode(&hello)?;
    // Someone else's name is answered with one of ours: the dialer learns who lives here now.
    let me = match hosted.get(&hello.to).or(hosted.first()) {
        Some(me) => *me,
        None => return Err(Refused::Nobody),
    };
    let (acceptor, challenge) = Acceptor::start(&bound(secret, stream), me, nonce(), hello);
    stream.write_all(&challenge).await?;
    stream.flush().await?;
    let mut proof = [0; PROOF_BYTES];
    stream.read_exact(&mut proof).await?;
    Ok((me, acceptor.finish(&proof)?))
}

/// Tells the dialer that its stream is the one to use.
pub async fn welcome(stream: &mut Stream) -> io::Result<()> {
    stream.write_u8(WELCOME).await?;
    stream.flush().await
}

/// The secret as it is proven on this stream: under TLS, for this very session and no other, so that what
/// one end proves cannot be carried over to another session by somebody in between.
fn bound(secret: &ClusterSecret, stream: &Stream) -> ClusterSecret {
    match stream.binding() {
        Some(binding) => secret.bound_to(&binding),
        None => secret.clone(),
    }
}

fn nonce() -> Nonce {
    let mut nonce = Nonce::default();
    getrandom::fill(&mut nonce).expect("the kernel always has random bytes once it has booted");
    nonce
}
