//! Shared by the benches: shapes, timing, one JSON object a line.
