//! The NBD protocol's messages and handshake as pure state machines.
