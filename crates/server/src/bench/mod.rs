//! `holdfast bench`: load and recovery, measured from outside as a client sees them.

pub mod cpu;
pub mod keys;
pub mod load;
pub mod recovery;
pub mod replies;
