//! The libzmq functions, options and error numbers that the `zmq` crate calls, declared from libzmq's public manual.
//!
//! Why our own: the published `zmq-sys` builds libzmq without CURVE, so that every key operation answers
//! "Operation not supported" (rust-zmq issue 357). This crate takes its place by `[patch.crates-io]`, has the same
//! names and types, and builds libzmq 4.3 over libsodium (see `build.rs`). Only `adaptis-link` may reach it, through
//! the `zmq` crate.
//!
//! 1. Constants are `u32` and error numbers `i32`: the `zmq` crate matches on them.
//! 2. [`zmq_msg_t`] is 64 opaque bytes at pointer alignment, as the stable ABI promises.
//!
//! Left out on purpose: draft sockets, multicast, timers, atomics, threads: `zmq` does not call them.

#![allow(non_camel_case_types)]

mod constants;
pub mod errno;

use std::ffi::{c_char, c_int, c_long, c_short, c_void};

pub use constants::*;
// Referenced so that the linker keeps libsodium, which the static libzmq needs.
extern crate libsodium_sys as _;

/// A file descriptor, as in `zmq_pollitem_t`.
pub type RawFd = c_int;

/// One frame, opaque; initialised, used and closed only by the `zmq_msg_*` functions.
#[repr(C)]
#[derive(Debug)]
pub struct zmq_msg_t {
    opaque: [usize; 64 / size_of::<usize>()],
}

impl Default for zmq_msg_t {
    fn default() -> Self {
        Self { opaque: [0; 64 / size_of::<usize>()] }
    }
}

const _: () = assert!(size_of::<zmq_msg_t>() == 64);

/// One thing to wait for: a socket, or a descriptor where `socket` is null.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct zmq_pollitem_t {
    /// The socket, or null.
    pub socket: *mut c_void,
    /// The descriptor, read only where `socket` is null.
    pub fd: RawFd,
    /// What to wait for: `ZMQ_POLLIN`, `ZMQ_POLLOUT`, `ZMQ_POLLERR`.
    pub events: c_short,
    /// What has happened, filled in by [`zmq_poll`].
    pub revents: c_short,
}

/// Frees the bytes that a message was made over; called from any thread.
pub type zmq_free_fn = unsafe extern "C" fn(data: *mut c_void, hint: *mut c_void);

// Every function below is described by the manual page of its name (api.zeromq.org).
#[expect(missing_docs, reason = "the manual page of the same name")]
unsafe extern "C" {
    pub fn zmq_version(major: *mut c_int, minor: *mut c_int, patch: *mut c_int);
    pub fn zmq_errno() -> c_int;
    pub fn zmq_strerror(number: c_int) -> *const c_char;
    pub fn zmq_has(capability: *const c_char) -> c_int;

    pub fn zmq_ctx_new() -> *mut c_void;
    pub fn zmq_ctx_term(context: *mut c_void) -> c_int;
    pub fn zmq_ctx_set(context: *mut c_void, option: c_int, value: c_int) -> c_int;
    pub fn zmq_ctx_get(context: *mut c_void, option: c_int) -> c_int;

    pub fn zmq_socket(context: *mut c_void, kind: c_int) -> *mut c_void;
    pub fn zmq_close(socket: *mut c_void) -> c_int;
    pub fn zmq_setsockopt(socket: *mut c_void, option: c_int, value: *const c_void, bytes: usize) -> c_int;
    pub fn zmq_getsockopt(socket: *mut c_void, option: c_int, value: *mut c_void, bytes: *mut usize) -> c_int;
    pub fn zmq_bind(socket: *mut c_void, address: *const c_char) -> c_int;
    pub fn zmq_unbind(socket: *mut c_void, address: *const c_char) -> c_int;
    pub fn zmq_connect(socket: *mut c_void, address: *const c_char) -> c_int;
    pub fn zmq_disconnect(socket: *mut c_void, address: *const c_char) -> c_int;
    pub fn zmq_socket_monitor(socket: *mut c_void, address: *const c_char, events: c_int) -> c_int;
    pub fn zmq_recv(socket: *mut c_void, buffer: *mut c_void, bytes: usize, flags: c_int) -> c_int;

    pub fn zmq_msg_init(message: *mut zmq_msg_t) -> c_int;
    pub fn zmq_msg_init_size(message: *mut zmq_msg_t, bytes: usize) -> c_int;
    pub fn zmq_msg_init_data(
        message: *mut zmq_msg_t,
        data: *mut c_void,
        bytes: usize,
        free: Option<zmq_free_fn>,
        hint: *mut c_void,
    ) -> c_int;
    pub fn zmq_msg_send(message: *mut zmq_msg_t, socket: *mut c_void, flags: c_int) -> c_int;
    pub fn zmq_msg_recv(message: *mut zmq_msg_t, socket: *mut c_void, flags: c_int) -> c_int;
    pub fn zmq_msg_close(message: *mut zmq_msg_t) -> c_int;
    pub fn zmq_msg_data(message: *mut zmq_msg_t) -> *mut c_void;
    pub fn zmq_msg_size(message: *const zmq_msg_t) -> usize;
    pub fn zmq_msg_more(message: *const zmq_msg_t) -> c_int;
    pub fn zmq_msg_gets(message: *const zmq_msg_t, property: *const c_char) -> *const c_char;

    pub fn zmq_poll(items: *mut zmq_pollitem_t, len: c_int, timeout_ms: c_long) -> c_int;
    pub fn zmq_proxy(frontend: *mut c_void, backend: *mut c_void, capture: *mut c_void) -> c_int;
    pub fn zmq_proxy_steerable(
        frontend: *mut c_void,
        backend: *mut c_void,
        capture: *mut c_void,
        control: *mut c_void,
    ) -> c_int;

    pub fn zmq_curve_keypair(public: *mut c_char, secret: *mut c_char) -> c_int;
    pub fn zmq_z85_encode(text: *mut c_char, data: *const u8, bytes: usize) -> *mut c_char;
    pub fn zmq_z85_decode(data: *mut u8, text: *const c_char) -> *mut u8;
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    #[test]
    fn the_library_has_curve_and_ipc() {
        for capability in [c"curve", c"ipc"] {
            // SAFETY: a NUL-terminated text that outlives the call.
            assert_eq!(unsafe { zmq_has(capability.as_ptr()) }, 1, "{capability:?}");
        }
    }

    #[test]
    fn a_key_pair_can_be_made() {
        let (mut public, mut secret) = ([0_u8; 41], [0_u8; 41]);
        // SAFETY: both buffers hold the 40 characters and the NUL that the manual asks for.
        let answer = unsafe { zmq_curve_keypair(public.as_mut_ptr().cast(), secret.as_mut_ptr().cast()) };
        assert_eq!(answer, 0);
        assert_eq!(CStr::from_bytes_until_nul(&public).map(CStr::count_bytes), Ok(40));
    }

    #[test]
    fn error_numbers_are_those_of_the_library() {
        // SAFETY: the answer points to static text.
        let text = unsafe { CStr::from_ptr(zmq_strerror(errno::ETERM)) };
        assert_eq!(text, c"Context was terminated");
    }
}
