//! The io_uring engine.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

use crate::op::{Request, Resources};
use crate::reactor::{Slots, raw_fd};

/// Submission queue entries of one ring; more operations than that are submitted in several goes.
const RING_ENTRIES: u32 = 256;
/// `user_data` of the poll that watches the wake descriptor.
const WAKE: u64 = u64::MAX;
/// `user_data` of cancellations, whose answers nobody needs.
const CANCEL: u64 = u64::MAX - 1;

/// How sends are made.
const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;

pub(crate) struct Ring {
    ring: IoUring,
    wake_fd: Arc<OwnedFd>,
    wake_armed: bool,
}

impl Ring {
    pub(crate) fn new(wake_fd: Arc<OwnedFd>) -> io::Result<Self> {
        let tuned = IoUring::builder()
            .setup_clamp()
            .setup_cqsize(RING_ENTRIES * 4)
            .setup_single_issuer()
            .setup_coop_taskrun()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(RING_ENTRIES);
        // Kernels before 6.1 do not know these flags: a plain ring does the same, more slowly.
        let ring = match tuned {
            Ok(ring) => ring,
            Err(_) => IoUring::builder().setup_clamp().build(RING_ENTRIES)?,
        };
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel's io_uring is too old (5.11 or newer is needed)",
            ));
        }
        Ok(Self {
            ring,
            wake_fd,
            wake_armed: false,
        })
    }

    pub(crate) fn start(&mut self, index: usize, slots: &mut Slots) {
        let Some(slot) = slots.get_mut(index) else {
            return;
        };
        let fd = Fd(raw_fd(slot));
        let entry = match (slot.request, &mut slot.resources) {
            (Request::ReadAt { offset }, Resources::Buf(buf)) => {
                opcode::Read::new(fd, buf.as_mut_ptr(), clamp_len(buf.len()))
                    .offset(offset)
                    .build()
            }
            (Request::WriteAt { offset }, Resources::Bytes(bytes)) => {
                opcode::Write::new(fd, bytes.as_ptr(), clamp_len(bytes.len()))
                    .offset(offset)
                    .build()
            }
            (Request::Sync { data_only }, _) => {
                let flags = if data_only {
                    io_uring::types::FsyncFlags::DATASYNC
                } else {
                    io_uring::types::FsyncFlags::empty()
                };
                opcode::Fsync::new(fd).flags(flags).build()
            }
            (Request::Fallocate { mode, offset, len }, _) => opcode::Fallocate::new(fd, len)
                .offset(offset)
                .mode(mode)
                .build(),
            // With WAITALL the kernel goes on by itself as the peer makes room or sends more: one
            // completion for all of it.
            (Request::Recv { whole }, Resources::Buf(buf)) => {
                let flags = if whole { libc::MSG_WAITALL } else { 0 };
                opcode::Recv::new(fd, buf.as_mut_ptr(), clamp_len(buf.len()))
                    .flags(flags)
                    .build()
            }
            (Request::Send, Resources::Bytes(bytes)) => {
                opcode::Send::new(fd, bytes.as_ptr(), clamp_len(bytes.len()))
                    .flags(SEND_FLAGS)
                    .build()
            }
            (Request::Send, Resources::Batch(batch)) => opcode::SendMsg::new(fd, batch.message())
                .flags(SEND_FLAGS as u32)
                .build(),
            (Request::PollIn, _) => opcode::PollAdd::new(fd, libc::POLLIN as u32).build(),
            _ => {
                slots.complete(index, -libc::EINVAL);
                return;
            }
        };
        self.push(&entry.user_data(index as u64));
    }

    pub(crate) fn cancel(&mut self, index: usize) {
        self.push(
            &opcode::AsyncCancel::new(index as u64)
                .build()
                .user_data(CANCEL),
        );
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: everything the entry points to is owned by its slot, which lives until the
            // completion has been reaped.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            // The queue is full: hand it over. With NODROP the kernel takes entries even when the
            // completion queue has overflowed; EBUSY and EAGAIN go away by trying again.
            let _ = self.ring.submit();
        }
    }

    fn arm_wake(&mut self) {
        if self.wake_armed {
            return;
        }
        self.wake_armed = true;
        let entry = opcode::PollAdd::new(Fd(self.wake_fd.as_raw_fd()), libc::POLLIN as u32).build();
        self.push(&entry.user_data(WAKE));
    }

    /// Hands over what was started, so that [`Ring::has_news`] may come to say yes.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        self.arm_wake();
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        tolerated(self.ring.submit())
    }

    /// Whether a turn would find something, as far as can be seen without a system call.
    pub(crate) fn has_news(&mut self) -> bool {
        // With deferred work there is a completion only once the kernel is entered for it.
        self.ring.submission().taskrun() || !self.ring.completion().is_empty()
    }

    /// One turn of the loop; says whether the wake descriptor rang.
    pub(crate) fn turn(
        &mut self,
        slots: &mut Slots,
        wait: bool,
        timeout: Option<Duration>,
    ) -> io::Result<bool> {
        self.arm_wake();
        let submitted = if wait {
            match timeout {
                Some(timeout) => {
                    let timespec = Timespec::from(timeout);
                    let args = SubmitArgs::new().timespec(&timespec);
                    self.ring.submitter().submit_with_args(1, &args)
                }
                None => self.ring.submit_and_wait(1),
            }
        } else {
            self.ring.submit()
        };
        tolerated(submitted)?;
        let mut woken = false;
        for cqe in self.ring.completion() {
            match cqe.user_data() {
                WAKE => {
                    self.wake_armed = false;
                    woken = true;
                }
                CANCEL => {}
                index => slots.complete(index as usize, cqe.result()),
            }
        }
        Ok(woken)
    }
}

/// Lets pass what the next turn puts right: timed out, interrupted, momentarily short of memory.
fn tolerated(submitted: io::Result<usize>) -> io::Result<()> {
    match submitted {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        },
    }
}

/// One system call moves at most this much (the kernel's MAX_RW_COUNT is a little under 2 GiB).
fn clamp_len(len: usize) -> u32 {
    u32::try_from(len.min(1 << 30)).unwrap_or(1 << 30)
}
