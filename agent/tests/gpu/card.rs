//! A card with a context, a stream and some memory, as a training process has them.

use adaptis_ring::now_ns;
use adaptis_timer::Stream;
use cudarc::driver::{result, sys};

const BUFFER_BYTES: usize = 64 << 20;
/// Of each call whose cost is measured.
const CALLS: u32 = 2_000;

/// The first GPU.
pub struct Card {
    device: sys::CUdevice,
    stream: sys::CUstream,
    memory: sys::CUdeviceptr,
}

impl Card {
    /// Makes its primary context current.
    pub fn open() -> Result<Self, String> {
        // SAFETY: only tries to open the library.
        if !unsafe { sys::is_culib_present() } {
            return Err("there is no CUDA driver".into());
        }
        let text = |error: result::DriverError| format!("{error}");
        result::init().map_err(text)?;
        let device = result::device::get(0).map_err(text)?;
        // SAFETY: the device was just handed out; context, stream and memory live as long as the process.
        unsafe {
            let context = result::primary_ctx::retain(device).map_err(text)?;
            result::ctx::set_current(context).map_err(text)?;
            let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(text)?;
            let memory = result::malloc_sync(BUFFER_BYTES).map_err(text)?;
            Ok(Self { device, stream, memory })
        }
    }

    pub fn name(&self) -> String {
        result::device::get_name(self.device).unwrap()
    }

    /// As the management library writes it.
    pub fn uuid(&self) -> String {
        let bytes = result::device::get_uuid(self.device).unwrap().bytes.map(|byte| byte as u8);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }

    pub fn stream(&self) -> Stream {
        // SAFETY: it lives as long as the process.
        unsafe { Stream::from_raw(self.stream as usize) }
    }

    /// Puts a copy into the stream, within the card's memory.
    pub fn copy(&self, bytes: usize) {
        let half = BUFFER_BYTES / 2;
        assert!(bytes <= half);
        // SAFETY: both halves lie within the memory.
        unsafe { result::memcpy_dtod_async(self.memory + half as u64, self.memory, bytes, self.stream) }.unwrap();
    }

    pub fn synchronise(&self) {
        // SAFETY: the stream exists.
        unsafe { result::stream::synchronize(self.stream) }.unwrap();
    }

    /// Mean time of the calls that the timer makes, on an idle stream.
    pub fn call_costs(&self) -> Vec<(&'static str, f64)> {
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).unwrap();
        let (start, end) = (event(), event());
        let mean = |call: &dyn Fn()| {
            let from_ns = now_ns();
            (0..CALLS).for_each(|_| call());
            (now_ns() - from_ns) as f64 / f64::from(CALLS)
        };
        // SAFETY: events and stream exist, and the events have happened when they are asked.
        let costs = unsafe {
            let clock = mean(&|| {
                std::hint::black_box(now_ns());
            });
            let record = mean(&|| result::event::record(start, self.stream).unwrap());
            result::event::record(end, self.stream).unwrap();
            self.synchronise();
            let query = mean(&|| result::event::query(end).unwrap());
            let elapsed = mean(&|| {
                std::hint::black_box(result::event::elapsed(start, end).unwrap());
            });
            let capturing = mean(&|| {
                let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
                sys::cuStreamIsCapturing(self.stream, &mut status).result().unwrap();
            });
            [
                ("the host's clock", clock),
                ("cuEventRecord", record),
                ("cuEventQuery", query),
                ("cuEventElapsedTime", elapsed),
                ("cuStreamIsCapturing", capturing),
            ]
        };
        // SAFETY: made above, and used no more.
        [start, end].into_iter().for_each(|event| unsafe { result::event::destroy(event) }.unwrap());
        costs.to_vec()
    }
}
