//! A server of our own, which misbehaves on demand, and QEMU's storage daemon.

mod fake_server;
mod storage_daemon;
