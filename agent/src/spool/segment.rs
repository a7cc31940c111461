//! One file of the spool: frames of `[length: u32][crc32: u32][batch]`, little-endian, the batch as on the wire.

use adaptis_proto::message::Batch;
use adaptis_proto::wire;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const HEAD_BYTES: usize = 8;
/// Longest frame that is believed: far above any batch, far below what a damaged length would make us allocate.
const PAYLOAD_BYTES_MAX: u32 = 16 << 20;
const SUFFIX: &str = "segment";

/// Bytes of a frame with some payload.
pub(super) fn frame_bytes(payload: &[u8]) -> u64 {
    (HEAD_BYTES + payload.len()) as u64
}

/// A frame's place in its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    offset: u64,
    payload_bytes: u32,
}

/// One file.
pub(super) struct Segment {
    pub(super) number: u64,
    /// Length of the file, torn tail included.
    pub(super) bytes: u64,
    /// Batches in it that are still wanted.
    pub(super) live: u64,
    file: File,
    path: PathBuf,
}

impl Segment {
    pub(super) fn number_of(path: &Path) -> Option<u64> {
        let is_ours = path.extension().is_some_and(|suffix| suffix == SUFFIX);
        u64::from_str_radix(path.file_stem()?.to_str()?, 16).ok().filter(|_| is_ours)
    }

    fn path(folder: &Path, number: u64) -> PathBuf {
        folder.join(format!("{number:016x}.{SUFFIX}"))
    }

    pub(super) fn create(folder: &Path, number: u64) -> io::Result<Self> {
        let path = Self::path(folder, number);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        Ok(Self { number, bytes: 0, live: 0, file, path })
    }

    pub(super) fn open(folder: &Path, number: u64) -> io::Result<Self> {
        let path = Self::path(folder, number);
        let file = File::open(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { number, bytes, live: 0, file, path })
    }

    /// All whole frames from the start, and whether there was nothing else.
    pub(super) fn frames(&self) -> (Vec<(Frame, Batch)>, bool) {
        let (mut frames, mut offset) = (Vec::new(), 0);
        while offset < self.bytes {
            let found = self.frame_at(offset).and_then(|frame| Ok((frame, self.read(frame)?)));
            match found {
                Ok((frame, batch)) => {
                    offset += HEAD_BYTES as u64 + u64::from(frame.payload_bytes);
                    frames.push((frame, batch));
                }
                Err(_) => return (frames, false),
            }
        }
        (frames, true)
    }

    fn frame_at(&self, offset: u64) -> io::Result<Frame> {
        let mut length = [0; 4];
        self.file.read_exact_at(&mut length, offset)?;
        let payload_bytes = u32::from_le_bytes(length);
        if payload_bytes > PAYLOAD_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Frame { offset, payload_bytes })
    }

    pub(super) fn read(&self, frame: Frame) -> io::Result<Batch> {
        let mut bytes = vec![0; HEAD_BYTES + frame.payload_bytes as usize];
        self.file.read_exact_at(&mut bytes, frame.offset)?;
        let (head, payload) = bytes.split_at(HEAD_BYTES);
        if head != head_of(payload) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its checksum is wrong"));
        }
        wire::decode(payload).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Appends a frame. After an error the file may end with half a frame, if even cutting it off failed.
    pub(super) fn append(&mut self, payload: &[u8]) -> io::Result<Frame> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + payload.len());
        bytes.extend_from_slice(&head_of(payload));
        bytes.extend_from_slice(payload);
        if let Err(error) = self.file.write_all_at(&bytes, self.bytes) {
            let _ = self.file.set_len(self.bytes);
            return Err(error);
        }
        let payload_bytes = u32::try_from(payload.len()).expect("a batch is far below 4 GiB");
        let frame = Frame { offset: self.bytes, payload_bytes };
        self.bytes += bytes.len() as u64;
        Ok(frame)
    }

    pub(super) fn remove(self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a segment cannot be removed");
        }
    }
}

fn head_of(payload: &[u8]) -> [u8; HEAD_BYTES] {
    let length = u32::try_from(payload.len()).expect("a batch is far below 4 GiB");
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4..].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
    head
}
