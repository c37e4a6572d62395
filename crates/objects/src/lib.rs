//! The object tree.
