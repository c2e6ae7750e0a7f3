//! The driver: devices, contexts, streams, events, modules, graphs, and the C entry points.
