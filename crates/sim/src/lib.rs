//! A deterministic world for whole clusters: seeded network, disk, clocks, workload, checkers
