//! On the virtual node.
