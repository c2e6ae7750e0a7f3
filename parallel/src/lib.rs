//! Ranks as threads that serve typed commands, and what they say to each other. Knows no model.
