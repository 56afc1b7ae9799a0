//! Benchmarks of the hot path live in `benches/`; `cargo bench -p holdfast-benches` runs them.
