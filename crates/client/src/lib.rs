//! Routing by the tablet map, exactly-once retries: one core for the Rust client and the gateway
