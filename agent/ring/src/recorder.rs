//! The writer's side.

use crate::error::RingError;
use crate::layout::{
    AT_CAPACITY, AT_CLOSED, AT_DEVICE, AT_DEVICE_BYTES, AT_INCARNATION, AT_MAGIC, AT_STEP, AT_VERSION,
    CAPACITY_RECORDS_MAX, DEVICE_BYTES_MAX, MAGIC, VERSION, ring_bytes,
};
use crate::mapping::Mapping;
use crate::protocol::Producer;
use crate::seat::{self, Seat};
use adaptis_proto::sample::{Record, Sample};
use adaptis_proto::{Incarnation, Step};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Relaxed, Release};

/// The writer of a ring: one per training process and device. Closes the ring when dropped.
pub struct Recorder {
    mapping: Mapping,
    producer: Producer,
    /// Bears the lock that says that the writer lives.
    _file: File,
}

impl Recorder {
    /// Whether [`Recorder::create`] would do now. Leaves nothing behind.
    ///
    /// # Errors
    /// As for `create`.
    pub fn check(
        path: &Path,
        device: &str,
        incarnation: Incarnation,
        capacity_records: usize,
    ) -> Result<(), RingError> {
        prepare(path, device, incarnation, capacity_records).map(drop)
    }

    /// Makes a ring and puts it at `path`, where it replaces one of a process that is gone. Nobody ever sees it half made.
    ///
    /// `capacity_records` is a power of two; [`crate::CAPACITY_RECORDS_DEFAULT`] fits in 1 MiB.
    ///
    /// # Errors
    /// A capacity or device name out of range, another file or a living writer's ring at `path`, no room in the file
    /// system, or what the operating system refuses.
    pub fn create(
        path: &Path,
        device: &str,
        incarnation: Incarnation,
        capacity_records: usize,
    ) -> Result<Recorder, RingError> {
        let (mut seat, mut unfinished, mapping) = prepare(path, device, incarnation, capacity_records)?;
        write_header(&mapping, device, incarnation, capacity_records);
        while !seat.fill(&unfinished.path, path)? {
            seat = Seat::take(path)?;
        }
        unfinished.placed = true;
        let file = unfinished.file.try_clone().map_err(|source| RingError::Io { path: path.to_owned(), source })?;
        Ok(Recorder { mapping, producer: Producer::new(capacity_records), _file: file })
    }

    /// Records a sample. Never blocks, makes no system call, allocates nothing; if the ring is full the sample is
    /// dropped and counted, and nothing is overwritten.
    #[inline]
    pub fn record(&mut self, sample: Sample) {
        self.producer.push(self.mapping.words(), Record::from(sample));
    }

    /// Publishes the iteration that training is in, for those who watch progress.
    #[inline]
    pub fn set_step(&self, step: Step) {
        self.mapping.words()[AT_STEP].store(step.0, Relaxed);
    }

    /// Samples dropped so far because the ring was full.
    pub fn dropped(&self) -> u64 {
        self.producer.dropped()
    }

    /// Samples recorded so far: the number of the next one.
    pub fn recorded(&self) -> u64 {
        self.producer.head()
    }

    /// Says that nothing more will come.
    pub fn close(&self) {
        self.mapping.words()[AT_CLOSED].store(1, Release);
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.close();
    }
}

/// All that a ring needs before it is put in its place, which is held.
fn prepare(
    path: &Path,
    device: &str,
    incarnation: Incarnation,
    capacity_records: usize,
) -> Result<(Seat, Unfinished, Mapping), RingError> {
    if !capacity_records.is_power_of_two() || capacity_records > CAPACITY_RECORDS_MAX {
        return Err(RingError::Capacity { requested: capacity_records });
    }
    if device.len() > DEVICE_BYTES_MAX {
        return Err(RingError::DeviceName { length: device.len() });
    }
    let seat = Seat::take(path)?;
    let unfinished = Unfinished::create(path, incarnation)?;
    let mapping = unfinished.reserve(path, ring_bytes(capacity_records))?;
    Ok((seat, unfinished, mapping))
}

fn write_header(mapping: &Mapping, device: &str, incarnation: Incarnation, capacity_records: usize) {
    let words = mapping.words();
    words[AT_MAGIC].store(MAGIC, Relaxed);
    words[AT_VERSION].store(VERSION, Relaxed);
    words[AT_CAPACITY].store(capacity_records as u64, Relaxed);
    words[AT_INCARNATION].store(incarnation.0, Relaxed);
    words[AT_DEVICE_BYTES].store(device.len() as u64, Relaxed);
    for (word, bytes) in words[AT_DEVICE..].iter().zip(device.as_bytes().chunks(8)) {
        let mut padded = [0; 8];
        padded[..bytes.len()].copy_from_slice(bytes);
        word.store(u64::from_le_bytes(padded), Relaxed);
    }
}

/// A file under a temporary name, removed unless it is put in place.
struct Unfinished {
    file: File,
    path: PathBuf,
    placed: bool,
}

impl Unfinished {
    fn create(path: &Path, incarnation: Incarnation) -> Result<Self, RingError> {
        let name = path.file_name().ok_or_else(|| RingError::Io {
            path: path.to_owned(),
            source: io::Error::new(io::ErrorKind::InvalidInput, "the path of a ring ends with a file name"),
        })?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{:x}.{:x}", std::process::id(), incarnation.0));
        let ring = path;
        let path = ring.with_file_name(hidden);
        // What a killed process of the same name left behind is nobody's.
        let _ = std::fs::remove_file(&path);
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(|source| {
                match source.kind() {
                    io::ErrorKind::NotFound => RingError::Folder { path: ring.to_owned() },
                    _ => RingError::Io { path: ring.to_owned(), source },
                }
            })?;
        let unfinished = Self { file, path, placed: false };
        seat::lock(&unfinished.file, &unfinished.path)?;
        Ok(unfinished)
    }

    /// Reserves real pages: a sparse file on a full /dev/shm would kill the training process at some later store.
    /// `ring` is what the place is called in errors.
    fn reserve(&self, ring: &Path, bytes: u64) -> Result<Mapping, RingError> {
        let length = libc::off_t::try_from(bytes).expect("a ring's size fits in a file offset");
        // SAFETY: the descriptor is open for writing for the duration of the call.
        match unsafe { libc::posix_fallocate(self.file.as_raw_fd(), 0, length) } {
            0 => Mapping::new(&self.file, bytes, &self.path),
            libc::ENOSPC => Err(RingError::NoSpace { path: ring.to_owned(), needed_bytes: bytes }),
            code => Err(RingError::Io { path: ring.to_owned(), source: io::Error::from_raw_os_error(code) }),
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.placed {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
