//! The host: executor, io_uring, files, sockets, descriptors, timers.
