//! Replicas, frames, flush and recovery splitting as a state machine over disk effects
