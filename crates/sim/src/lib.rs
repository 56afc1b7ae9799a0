//! A deterministic world for whole clusters: the real coordinator, shards, backups and gateways on
//! one thread, with a seeded network, disks, clocks and crashes, simulated applications, and
//! checkers that know the promises and not the code.
//!
//! Top floor. Nothing depends on it, and it never reads a clock, opens a socket or draws a random
//! number that does not come from the seed: a failing seed is a bug report that can be run again.

mod applications;
mod chance;
mod chaos;
mod check;
mod clock;
mod closings;
mod cluster_time;
mod content;
mod faults;
mod history;
mod network;
mod records;
mod reply;
mod roles;
mod run;
pub mod scaling;
mod second_opinion;
mod setup;
mod store;
mod summary;
mod trace;
mod world;

pub use applications::{Applications, Habits};
pub use chance::Chance;
pub use chaos::Chaos;
pub use check::{Yardstick, check};
pub use clock::MachineClock;
pub use closings::closing;
pub use cluster_time::ClusterTime;
pub use faults::{Fault, FaultCounts, FaultSet};
pub use history::{
    Asked, Deadline, Expiry, History, KeyClass, KeyId, Keys, NEVER, Operation, Saw, ValueId,
    Values, Version, When,
};
pub use network::{Fate, MachineId, Network, PlaceId, Rates, Route};
pub use records::Records;
pub use reply::{Reply, ReplyReader, command};
pub use run::{Plan, Report, run, run_plan};
pub use second_opinion::SecondOpinion;
pub use setup::{PlacePlan, Setup};
pub use store::{Store, SyncMark};
pub use summary::Summary;
pub use trace::TraceHash;
pub use world::{Blow, DiskManners, Filter, Happening, REPLICAS_OF_COMPACTED, Tells, World};
