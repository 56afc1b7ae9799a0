//! `holdfast bench`: load, gRPC, connections and recovery, measured from outside as a client sees them.

pub mod connections;
pub mod cpu;
pub mod grpc;
pub mod keys;
pub mod load;
pub mod recovery;
pub mod replies;
pub mod timeline;
pub mod watch;
