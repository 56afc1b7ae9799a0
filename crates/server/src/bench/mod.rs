//! `holdfast bench`: load, gRPC, connections, recovery and failover, measured from outside as a client sees them.

pub mod clients;
pub mod connections;
pub mod cpu;
pub mod failover;
pub mod grpc;
pub mod keys;
pub mod load;
pub mod local;
pub mod overload;
pub mod recovery;
pub mod replies;
pub mod timeline;
pub mod watch;
