//! RESP connections as a state machine over bytes: reply order, forwarding
