//! Wakes the I/O thread out of its poll: an eventfd, written only when the thread may not know yet.
//!
//! 1. Whoever queues something raises the signal afterwards; whoever clears it looks at the queue afterwards. So no
//!    queued item is ever waited past, and a burst costs one system call.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
};

#[derive(Debug)]
pub(crate) struct Signal {
    descriptor: File,
    raised: AtomicBool,
    stop: AtomicBool,
}

impl Signal {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers; its answer is checked below.
        let raw = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor just made, which nothing else owns.
        let descriptor = unsafe { OwnedFd::from_raw_fd(raw) };
        Ok(Self { descriptor: descriptor.into(), raised: AtomicBool::new(false), stop: AtomicBool::new(false) })
    }

    pub(crate) fn raise(&self) {
        if !self.raised.swap(true, Ordering::AcqRel) {
            // Fails only if the count is at its maximum, and then the descriptor is readable already.
            let _ = (&self.descriptor).write(&1_u64.to_ne_bytes());
        }
    }

    pub(crate) fn clear(&self) {
        // Would block if nothing was written, which is as good as empty.
        let _ = (&self.descriptor).read(&mut [0; 8]);
        self.raised.swap(false, Ordering::AcqRel);
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.raise();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(crate) fn descriptor(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}
