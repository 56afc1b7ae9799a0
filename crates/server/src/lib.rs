//! The `holdfast` binary: composition, configuration, CLI, sockets, threads, disk, metrics.
//!
//! Floor 5. Takes no protocol decisions: it gives nodes their inputs and applies their outputs.
//! Start at `host.rs` for how a node is driven, at `roles.rs` for what a process is made of.

// Here, and only here, the machine is asked for time, chance, threads and sockets: this crate is the
// driver that the lints below send everybody else to.
#![allow(clippy::disallowed_methods)]

pub mod admin;
pub mod bench;
mod buffers;
pub mod calls;
pub mod certificates;
pub mod children;
pub mod cli;
pub mod clock;
pub mod disk;
pub mod door;
pub mod error;
pub mod grpc;
pub mod handshake;
pub mod host;
pub mod http;
pub mod inbox;
pub mod local;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod namespace;
pub mod options;
pub mod pipe;
pub mod process;
pub mod ready;
pub mod records;
pub mod resp;
pub mod role;
pub mod roles;
pub mod seat;
pub mod session;
pub mod socket;
pub mod store;
pub mod stream;
pub mod tls;
pub mod told;
mod touching;
pub mod transport;
