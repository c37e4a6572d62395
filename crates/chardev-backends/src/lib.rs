//! Chardev backends.
