//! Tests of the drivers as nodes of a graph: the table that all drivers pass, and the graph.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod conformance;
mod graph;
