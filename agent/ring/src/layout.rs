//! Where things lie in the file, in 64-bit words.
//!
//! What the writer writes, what the reader writes and the slots are 128 bytes apart: two cache lines, since the
//! prefetcher of common processors fetches lines in pairs.

use adaptis_proto::sample::Record;
use std::sync::atomic::{AtomicU64, Ordering};

/// Version of the layout.
pub const VERSION: u64 = 1;
/// Records of a ring unless told otherwise: 768 KiB, since /dev/shm may be as small as 64 MB for all ranks of a host.
pub const CAPACITY_RECORDS_DEFAULT: usize = 1 << 14;
/// Most records of a ring: 48 MiB.
pub const CAPACITY_RECORDS_MAX: usize = 1 << 20;
/// Longest device name, in bytes.
pub const DEVICE_BYTES_MAX: usize = 128;

/// "ADAPRING", little-endian.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"ADAPRING");

pub(crate) const AT_MAGIC: usize = 0;
pub(crate) const AT_VERSION: usize = 1;
pub(crate) const AT_CAPACITY: usize = 2;
pub(crate) const AT_INCARNATION: usize = 3;
pub(crate) const AT_DEVICE_BYTES: usize = 4;
pub(crate) const AT_DEVICE: usize = 5;
/// Written by the recorder.
pub(crate) const AT_HEAD: usize = 32;
pub(crate) const AT_DROPPED: usize = 33;
pub(crate) const AT_STEP: usize = 34;
pub(crate) const AT_CLOSED: usize = 35;
/// Written by the reader.
pub(crate) const AT_TAIL: usize = 48;
pub(crate) const AT_SLOTS: usize = 64;

const _: () = assert!(AT_DEVICE + DEVICE_BYTES_MAX / 8 <= AT_HEAD);
const _: () = assert!(ring_bytes(CAPACITY_RECORDS_DEFAULT) <= 1 << 20);
const _: () = assert!(CAPACITY_RECORDS_DEFAULT.is_power_of_two() && CAPACITY_RECORDS_MAX.is_power_of_two());

/// Size of the file of a ring with room for some records.
pub const fn ring_bytes(capacity_records: usize) -> u64 {
    (AT_SLOTS * 8 + capacity_records * Record::BYTES) as u64
}

/// A word that two parties share. A trait, so that the model checker can put its own in place.
pub(crate) trait Word {
    fn get(&self, order: Ordering) -> u64;
    fn set(&self, value: u64, order: Ordering);
}

impl Word for AtomicU64 {
    #[inline]
    fn get(&self, order: Ordering) -> u64 {
        self.load(order)
    }

    #[inline]
    fn set(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }
}
