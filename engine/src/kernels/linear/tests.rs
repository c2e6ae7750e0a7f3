//! Against a float64 oracle, and bit against bit.
