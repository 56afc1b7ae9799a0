//! Tests of the whole: real processes, real kills. See `tests/`.
