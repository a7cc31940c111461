//! Error numbers as `zmq_errno` answers them: the system's own, and those that libzmq adds.
//!
//! Numbers with `_ALT` are what libzmq answers where the system lacks the name; they never turn up on Linux.

#![expect(missing_docs, reason = "each is explained by errno(3) or by the manual page of the function that answers it")]

pub use libc::{
    EACCES, EADDRINUSE, EADDRNOTAVAIL, EAGAIN, EBUSY, ECONNREFUSED, EFAULT, EHOSTUNREACH, EINPROGRESS, EINTR, EINVAL,
    EMFILE, EMSGSIZE, ENAMETOOLONG, ENETDOWN, ENOBUFS, ENODEV, ENOENT, ENOMEM, ENOTCONN, ENOTSOCK, ENOTSUP, EPROTO,
    EPROTONOSUPPORT,
};

/// Where libzmq's own numbers start, far above any system's.
const BASE: i32 = 156_384_712;

pub const ENOTSUP_ALT: i32 = BASE + 1;
pub const EPROTONOSUPPORT_ALT: i32 = BASE + 2;
pub const ENOBUFS_ALT: i32 = BASE + 3;
pub const ENETDOWN_ALT: i32 = BASE + 4;
pub const EADDRINUSE_ALT: i32 = BASE + 5;
pub const EADDRNOTAVAIL_ALT: i32 = BASE + 6;
pub const ECONNREFUSED_ALT: i32 = BASE + 7;
pub const EINPROGRESS_ALT: i32 = BASE + 8;
pub const ENOTSOCK_ALT: i32 = BASE + 9;
pub const EMSGSIZE_ALT: i32 = BASE + 10;

pub const EFSM: i32 = BASE + 51;
pub const ENOCOMPATPROTO: i32 = BASE + 52;
pub const ETERM: i32 = BASE + 53;
pub const EMTHREAD: i32 = BASE + 54;
