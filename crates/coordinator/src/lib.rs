//! Membership, tablet map, recoveries and metadata records as a state machine
