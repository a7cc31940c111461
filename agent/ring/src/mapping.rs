//! The file in memory.

use crate::error::RingError;
use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicU64;

/// A mapped file, seen as shared words.
pub(crate) struct Mapping {
    raw: MmapRaw,
}

impl Mapping {
    /// Maps the first `bytes` of a file that is at least that long.
    pub(crate) fn new(file: &File, bytes: u64, path: &Path) -> Result<Self, RingError> {
        let length = usize::try_from(bytes).expect("a ring is far smaller than the address space");
        let raw = MmapOptions::new()
            .len(length)
            .map_raw(file)
            .map_err(|source| RingError::Io { path: path.to_owned(), source })?;
        Ok(Self { raw })
    }

    /// Its words.
    #[inline]
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, readable and writable, lives as long as `self`, and its pages are only
        // ever accessed as atomics, by this process and by others. `AtomicU64` has the size and alignment of `u64` and
        // any bits are a value of it.
        unsafe { std::slice::from_raw_parts(self.raw.as_mut_ptr().cast::<AtomicU64>(), self.raw.len() / 8) }
    }
}
