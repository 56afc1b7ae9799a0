//! The holdfast binary: composition, config, CLI, sockets, threads, disk, metrics
