//! A double of cuBLASLt: matrix products with its rules enforced.
