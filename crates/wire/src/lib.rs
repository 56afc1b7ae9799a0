//! Every protocol Holdfast speaks: domain messages and their framed bytes, RESP, gRPC.
//!
//! Floor 1. No sockets: this crate turns bytes into domain types and back, and refuses bytes that
//! make no sense. Generated protobuf types never leave it (feature `grpc`).

pub mod codec;
pub mod command;
#[cfg(feature = "grpc")]
pub mod grpc;
pub mod handshake;
pub mod message;
pub mod namespaces;
pub mod redis;
pub mod resp;

pub use command::*;
pub use message::*;
pub use namespaces::*;
