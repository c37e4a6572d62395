//! The engine for kernels that refuse io_uring: worker threads for files, poll(2) for sockets.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crate::executor::Shared;
use crate::op::{Request, Resources};
use crate::reactor::{Slots, raw_fd};

/// A socket operation that waits for readiness.
struct Waiting {
    index: usize,
    events: i16,
}

pub(crate) struct Threads {
    shared: Arc<Shared>,
    waiting: Vec<Waiting>,
}

impl Threads {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            waiting: Vec::new(),
        }
    }

    pub(crate) fn start(&mut self, index: usize, slots: &mut Slots) {
        let Some(slot) = slots.get_mut(index) else {
            return;
        };
        match slot.request {
            Request::Recv { .. } | Request::PollIn => {
                self.waiting.push(Waiting {
                    index,
                    events: libc::POLLIN,
                });
            }
            Request::Send => self.waiting.push(Waiting {
                index,
                events: libc::POLLOUT,
            }),
            request => {
                let fd = Arc::clone(&slot.fd);
                let resources = std::mem::replace(&mut slot.resources, Resources::None);
                let shared = Arc::clone(&self.shared);
                self.shared.pool.run(Box::new(move || {
                    let mut resources = resources;
                    let result = file_call(&fd, request, &mut resources);
                    shared.post_completion(index, result, resources);
                }));
            }
        }
    }

    /// Forgets a waiting operation; says whether it was waiting.
    pub(crate) fn cancel(&mut self, index: usize) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.index != index);
        self.waiting.len() != before
    }

    /// One turn of the loop; says whether the wake descriptor rang.
    pub(crate) fn turn(
        &mut self,
        slots: &mut Slots,
        wait: bool,
        timeout: Option<Duration>,
    ) -> io::Result<bool> {
        let wake = libc::pollfd {
            fd: self.shared.wake_fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let mut polled = vec![wake];
        for waiting in &self.waiting {
            let fd = slots.get_mut(waiting.index).map_or(-1, |slot| raw_fd(slot));
            polled.push(libc::pollfd {
                fd,
                events: waiting.events,
                revents: 0,
            });
        }
        let timeout_ms = match (wait, timeout) {
            (false, _) => 0,
            (true, None) => -1,
            (true, Some(left)) => {
                i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX)
            }
        };
        // SAFETY: the pointer and the length describe `polled`.
        let ready = unsafe {
            libc::poll(
                polled.as_mut_ptr(),
                polled.len() as libc::nfds_t,
                timeout_ms,
            )
        };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted {
                Ok(false)
            } else {
                Err(error)
            };
        }
        let mut seen = polled.iter();
        let woken = seen.next().is_some_and(|wake| wake.revents != 0);
        let revents: Vec<i16> = seen.map(|entry| entry.revents).collect();
        let mut ready = revents.into_iter();
        self.waiting.retain(|waiting| {
            if ready.next().unwrap_or(0) == 0 {
                return true;
            }
            let Some(slot) = slots.get_mut(waiting.index) else {
                return false;
            };
            let fd = Arc::clone(&slot.fd);
            let result = socket_call(&fd, slot.request, &mut slot.resources);
            if result == -libc::EAGAIN {
                return true;
            }
            slots.complete(waiting.index, result);
            false
        });
        Ok(woken)
    }
}

fn outcome(result: libc::ssize_t) -> i32 {
    if result >= 0 {
        i32::try_from(result).unwrap_or(i32::MAX)
    } else {
        -io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO)
    }
}

fn file_call(fd: &OwnedFd, request: Request, resources: &mut Resources) -> i32 {
    let raw = fd.as_raw_fd();
    match (request, resources) {
        (Request::ReadAt { offset }, Resources::Buf(buf)) => {
            // SAFETY: the pointer and length describe the buffer, which outlives the call.
            outcome(unsafe {
                libc::pread64(
                    raw,
                    buf.as_mut_ptr().cast(),
                    call_len(buf.len()),
                    offset as i64,
                )
            })
        }
        (Request::WriteAt { offset }, Resources::Bytes(bytes)) => {
            // SAFETY: as above.
            outcome(unsafe {
                libc::pwrite64(
                    raw,
                    bytes.as_ptr().cast(),
                    call_len(bytes.len()),
                    offset as i64,
                )
            })
        }
        (Request::Sync { data_only }, _) => {
            // SAFETY: the call touches no memory of ours.
            let result = unsafe {
                if data_only {
                    libc::fdatasync(raw)
                } else {
                    libc::fsync(raw)
                }
            };
            outcome(result as libc::ssize_t)
        }
        (Request::Fallocate { mode, offset, len }, _) => {
            // SAFETY: the call touches no memory of ours.
            let result = unsafe { libc::fallocate64(raw, mode, offset as i64, len as i64) };
            outcome(result as libc::ssize_t)
        }
        _ => -libc::EINVAL,
    }
}

/// Does a socket operation as far as it goes without waiting; `-EAGAIN` if that is nowhere.
pub(crate) fn socket_call(fd: &OwnedFd, request: Request, resources: &mut Resources) -> i32 {
    let raw = fd.as_raw_fd();
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    match (request, resources) {
        (Request::Recv { .. }, Resources::Buf(buf)) => {
            // SAFETY: the pointer and length describe the buffer.
            outcome(unsafe { libc::recv(raw, buf.as_mut_ptr().cast(), call_len(buf.len()), flags) })
        }
        (Request::Send, Resources::Bytes(bytes)) => {
            // SAFETY: as above.
            outcome(unsafe { libc::send(raw, bytes.as_ptr().cast(), call_len(bytes.len()), flags) })
        }
        (Request::Send, Resources::Batch(batch)) => {
            // SAFETY: the header points into the batch, which outlives the call.
            outcome(unsafe { libc::sendmsg(raw, batch.message(), flags) })
        }
        (Request::PollIn, _) => libc::POLLIN.into(),
        _ => -libc::EINVAL,
    }
}

fn call_len(len: usize) -> usize {
    len.min(1 << 30)
}
