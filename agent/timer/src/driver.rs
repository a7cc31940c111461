//! The driver's functions that timing needs.

use crate::error::TimerError;
use std::ffi::{c_int, c_void};

/// A stream of the training process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(pub(crate) usize);

impl Stream {
    /// A stream as PyTorch's `torch.cuda.Stream.cuda_stream` names it; 0 is the legacy default stream.
    ///
    /// # Safety
    /// It is a stream of the context in which the timer was started, and it exists for as long as it is named.
    pub unsafe fn from_raw(pointer: usize) -> Self {
        Self(pointer)
    }
}

pub(crate) const SUCCESS: u32 = 0;
pub(crate) const NOT_READY: u32 = 600;
pub(crate) const CAPTURED_EVENT: u32 = 907;
/// `CU_STREAM_NON_BLOCKING`: work in it does not wait for the legacy default stream.
const NON_BLOCKING: u32 = 1;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`: questions do not end a capture.
const RELAXED: u32 = 2;

macro_rules! functions {
    ($(#[$doc:meta])* $name:ident of $library:literal in $($module:ident)::+;
     $($field:ident = $symbol:literal($($argument:ty),*);)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name {
            $(pub $field: unsafe extern "C" fn($($argument),*) -> u32,)*
        }

        impl $name {
            /// # Errors
            /// There is no such library, or it lacks a function.
            pub fn load() -> Result<Self, TimerError> {
                // SAFETY: only tries to open the library by its names.
                if !unsafe { $($module)::+::is_culib_present() } {
                    return Err(TimerError::NoLibrary { library: $library });
                }
                // SAFETY: it was just found, and stays loaded for ever.
                let library = unsafe { $($module)::+::culib() };
                Ok(Self {
                    $($field: {
                        let name = concat!($symbol, "\0").as_bytes();
                        // SAFETY: the type is the library's declaration of this function.
                        let found = unsafe { library.get::<unsafe extern "C" fn($($argument),*) -> u32>(name) };
                        *found.map_err(|_| TimerError::MissingFunction { library: $library, function: $symbol })?
                    },)*
                })
            }
        }
    };
}

functions! {
    /// What the driver offers, checked to be there.
    Driver of "CUDA driver" in cudarc::driver::sys;
    context_current = "cuCtxGetCurrent"(*mut usize);
    context_push = "cuCtxPushCurrent_v2"(usize);
    context_pop = "cuCtxPopCurrent_v2"(*mut usize);
    stream_create = "cuStreamCreate"(*mut usize, u32);
    stream_destroy = "cuStreamDestroy_v2"(usize);
    stream_is_capturing = "cuStreamIsCapturing"(usize, *mut u32);
    exchange_capture_mode = "cuThreadExchangeStreamCaptureMode"(*mut u32);
    event_create = "cuEventCreate"(*mut usize, u32);
    event_destroy = "cuEventDestroy_v2"(usize);
    event_record = "cuEventRecord"(usize, usize);
    event_query = "cuEventQuery"(usize);
    event_elapsed = "cuEventElapsedTime"(*mut f32, usize, usize);
    memory_allocate = "cuMemAlloc_v2"(*mut u64, usize);
    memory_free = "cuMemFree_v2"(u64);
    memory_upload = "cuMemcpyHtoDAsync_v2"(u64, *const c_void, usize, usize);
    memory_copy = "cuMemcpyDtoDAsync_v2"(u64, u64, usize, usize);
}

functions! {
    /// What cuBLAS offers, checked to be there.
    Blas of "cuBLAS library" in cudarc::cublas::sys;
    create = "cublasCreate_v2"(*mut usize);
    destroy = "cublasDestroy_v2"(usize);
    set_stream = "cublasSetStream_v2"(usize, usize);
    product = "cublasGemmEx"(
        usize, c_int, c_int, c_int, c_int, c_int, *const f32, u64, c_int, c_int, u64, c_int, c_int, *const f32, u64,
        c_int, c_int, c_int, c_int
    );
}

// Handles are opaque pointers, held as numbers so that a timer may move to another thread of the process; the device's
// memory is addressed by 64 bits.
const _: () = assert!(size_of::<usize>() == size_of::<*mut c_void>() && size_of::<u64>() == size_of::<usize>());

/// The result of a call by its name.
pub(crate) fn checked(function: &'static str, code: u32) -> Result<(), TimerError> {
    if code == SUCCESS { Ok(()) } else { Err(TimerError::Call { function, code }) }
}

impl Driver {
    /// # Errors
    /// No context is current on this thread.
    pub fn require_context(&self) -> Result<usize, TimerError> {
        self.current_context().filter(|context| *context != 0).ok_or(TimerError::NoContext)
    }

    #[inline]
    fn current_context(&self) -> Option<usize> {
        let mut context = 0;
        // SAFETY: `context` is valid and writable for the duration of the call.
        (unsafe { (self.context_current)(&mut context) } == SUCCESS).then_some(context)
    }

    /// Acts in a context; the thread's own is in its place again afterwards. Where that can't be done, the calls within fail
    /// and say why.
    #[inline]
    pub fn within<R>(&self, context: usize, act: impl FnOnce() -> R) -> R {
        if self.current_context() == Some(context) {
            return act();
        }
        // SAFETY: the context is that of the training process's device, which it keeps for as long as it trains.
        let is_pushed = unsafe { (self.context_push)(context) } == SUCCESS;
        let answer = act();
        if is_pushed {
            let mut popped = 0;
            // SAFETY: `popped` is valid and writable for the duration of the call; it is what was pushed above.
            let _ = unsafe { (self.context_pop)(&mut popped) };
        }
        answer
    }

    pub fn new_event(&self) -> Result<usize, TimerError> {
        let mut event = 0;
        // SAFETY: `event` is valid and writable for the duration of the call; no flags: it takes times.
        checked("cuEventCreate", unsafe { (self.event_create)(&mut event, 0) })?;
        Ok(event)
    }

    /// A pending event may be destroyed: the driver lets go of it when it has happened.
    pub fn destroy_event(&self, event: usize) {
        // SAFETY: made by `new_event`, and forgotten by the caller. A failure leaves nothing to be done.
        let _ = unsafe { (self.event_destroy)(event) };
    }

    pub fn new_stream(&self) -> Result<usize, TimerError> {
        let mut stream = 0;
        // SAFETY: `stream` is valid and writable for the duration of the call.
        checked("cuStreamCreate", unsafe { (self.stream_create)(&mut stream, NON_BLOCKING) })?;
        Ok(stream)
    }

    pub fn destroy_stream(&self, stream: usize) {
        // SAFETY: made by `new_stream`, and forgotten by the caller. A failure leaves nothing to be done.
        let _ = unsafe { (self.stream_destroy)(stream) };
    }

    /// The driver's answer, as a number.
    #[inline]
    pub fn record(&self, event: usize, stream: usize) -> u32 {
        // SAFETY: the event is ours, the stream exists by the contract of `Stream`.
        unsafe { (self.event_record)(event, stream) }
    }

    /// The driver's answer, as a number.
    #[inline]
    pub fn query(&self, event: usize) -> u32 {
        // SAFETY: the event is ours.
        unsafe { (self.event_query)(event) }
    }

    /// Nanoseconds of the device's clock between two events that have happened, or the driver's answer.
    #[inline]
    pub fn elapsed_ns(&self, from: usize, to: usize) -> Result<f64, u32> {
        let mut ms = 0.0;
        // SAFETY: both events are ours, and `ms` is writable for the duration of the call.
        match unsafe { (self.event_elapsed)(&mut ms, from, to) } {
            SUCCESS => Ok(f64::from(ms) * 1e6),
            code => Err(code),
        }
    }

    /// Work put into the stream now would become part of a graph, or the stream cannot be asked because another one is
    /// being captured.
    #[inline]
    pub fn is_capturing(&self, stream: usize) -> bool {
        let mut status = 0;
        // SAFETY: the stream exists by the contract of `Stream`, and `status` is writable for the duration of the call.
        let code = unsafe { (self.stream_is_capturing)(stream, &mut status) };
        code != SUCCESS || status != 0
    }

    /// Runs what asks questions so that they end nobody's capture.
    pub fn relaxed<R>(&self, ask: impl FnOnce() -> R) -> R {
        let mut mode = RELAXED;
        // SAFETY: `mode` is valid and writable for the duration of the call, and becomes the mode before.
        let code = unsafe { (self.exchange_capture_mode)(&mut mode) };
        let answer = ask();
        if code == SUCCESS {
            // SAFETY: as above.
            let _ = unsafe { (self.exchange_capture_mode)(&mut mode) };
        }
        answer
    }
}
