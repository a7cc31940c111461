//! The driver's functions, as its header declares them.

#![allow(non_snake_case, reason = "the names are the driver's")]
#![allow(clippy::undocumented_unsafe_blocks, reason = "every pointer is the caller's, under the driver's own contract")]

use crate::machine::{
    CAPTURE_UNSUPPORTED, CAPTURED_EVENT, Event, INVALID_CONTEXT, INVALID_DEVICE, INVALID_HANDLE, INVALID_VALUE,
    Machine, NO_DEVICE, NOT_READY, OUT_OF_MEMORY, SUCCESS, machine,
};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_MODE`.
const COMPUTE_MODE: c_uint = 20;
/// The only context.
const CONTEXT: usize = 0xc0;
const NAME: &[u8] = b"NVIDIA Stand-in 80GB\0";

fn put<T>(at: *mut T, value: T) -> u32 {
    if at.is_null() {
        return INVALID_VALUE;
    }
    unsafe { at.write(value) };
    SUCCESS
}

/// Does what a call does, unless every call fails now.
fn call(act: impl FnOnce(&mut Machine) -> u32) -> u32 {
    let mut machine = machine();
    match machine.get("error") {
        0 => act(&mut machine),
        error => error as u32,
    }
}

/// The same for a call that needs a context.
fn within(act: impl FnOnce(&mut Machine) -> u32) -> u32 {
    call(|machine| if machine.get("no_context") == 0 { act(machine) } else { INVALID_CONTEXT })
}

// ---- the test's side ------------------------------------------------------------------------------------------------

#[unsafe(no_mangle)]
unsafe extern "C" fn standinSet(knob: *const c_char, value: i64) {
    let knob = unsafe { CStr::from_ptr(knob) }.to_str().expect("a knob is ASCII");
    machine().set(knob, value);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn standinGet(knob: *const c_char) -> i64 {
    let knob = unsafe { CStr::from_ptr(knob) }.to_str().expect("a knob is ASCII");
    let machine = machine();
    if knob == "events" { machine.events.len() as i64 } else { machine.get(knob) }
}

#[unsafe(no_mangle)]
extern "C" fn standinWork(stream: *mut c_void, work_ns: u64) {
    machine().enqueue(stream as usize, work_ns);
}

/// A matrix product of so many operations.
#[unsafe(no_mangle)]
extern "C" fn standinProduct(stream: *mut c_void, operations: f64) {
    let mut machine = machine();
    let ns = operations / machine.get("flops") as f64 * 1e9;
    machine.enqueue(stream as usize, ns as u64);
}

// ---- device and context ---------------------------------------------------------------------------------------------

#[unsafe(no_mangle)]
extern "C" fn cuInit(_flags: c_uint) -> u32 {
    call(|machine| if machine.get("devices") > 0 { SUCCESS } else { NO_DEVICE })
}

#[unsafe(no_mangle)]
extern "C" fn cuDriverGetVersion(version: *mut c_int) -> u32 {
    put(version, 12_040)
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetCount(count: *mut c_int) -> u32 {
    call(|machine| put(count, machine.get("devices") as c_int))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> u32 {
    let is_one = |machine: &mut Machine| i64::from(ordinal) < machine.get("devices") && ordinal >= 0;
    call(|machine| if is_one(machine) { put(device, ordinal) } else { INVALID_DEVICE })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, _device: c_int) -> u32 {
    call(|_| {
        for (at, byte) in NAME.iter().enumerate().take(length.max(0) as usize) {
            unsafe { name.add(at).write(*byte as c_char) };
        }
        SUCCESS
    })
}

/// `GPU-0000...-NN`, with the ordinal at the end: the same as the management library's stand-in says.
#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid(uuid: *mut [u8; 16], device: c_int) -> u32 {
    let mut bytes = [0; 16];
    bytes[15] = device as u8;
    call(|_| put(uuid, bytes))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) -> u32 {
    call(|machine| put(bytes, machine.get("memory_bytes") as usize))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, _device: c_int) -> u32 {
    call(|machine| put(value, if attribute == COMPUTE_MODE { machine.get("compute_mode") as c_int } else { 1 }))
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, _device: c_int) -> u32 {
    call(|machine| {
        machine.add("contexts", 1);
        put(context, CONTEXT as *mut c_void)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> u32 {
    call(|machine| {
        machine.add("contexts", -1);
        SUCCESS
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetCurrent(context: *mut *mut c_void) -> u32 {
    call(|machine| put(context, if machine.get("no_context") == 0 { CONTEXT } else { 0 } as *mut c_void))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: *mut c_void) -> u32 {
    call(|machine| {
        machine.set("no_context", i64::from(context.is_null()));
        SUCCESS
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxPushCurrent_v2(context: *mut c_void) -> u32 {
    call(|machine| {
        if context as usize != CONTEXT {
            return INVALID_CONTEXT;
        }
        machine.add("pushed", 1);
        let before = machine.get("no_context");
        machine.pushed.push(before);
        machine.set("no_context", 0);
        SUCCESS
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxPopCurrent_v2(context: *mut *mut c_void) -> u32 {
    call(|machine| match machine.pushed.pop() {
        None => INVALID_CONTEXT,
        Some(before) => {
            machine.set("no_context", before);
            put(context, CONTEXT as *mut c_void)
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetDevice(device: *mut c_int) -> u32 {
    within(|_| put(device, 0))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> u32 {
    synchronise(|machine| machine.tails_ns.values().copied().max())
}

fn synchronise(until: impl FnOnce(&mut Machine) -> Option<u64>) -> u32 {
    within(|machine| {
        machine.add("synchronised", 1);
        let until = until(machine).unwrap_or(0);
        while machine.now_ns() < until {
            std::hint::spin_loop();
        }
        SUCCESS
    })
}

// ---- streams --------------------------------------------------------------------------------------------------------

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreate(stream: *mut *mut c_void, _flags: c_uint) -> u32 {
    within(|machine| {
        let handle = machine.handle();
        machine.tails_ns.insert(handle, 0);
        put(stream, handle as *mut c_void)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: *mut c_void) -> u32 {
    within(|machine| machine.tails_ns.remove(&(stream as usize)).map_or(INVALID_HANDLE, |_| SUCCESS))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: *mut c_void, event: *mut c_void, _flags: c_uint) -> u32 {
    within(|machine| {
        let Some(event) = machine.events.get(&(event as usize)).copied() else { return INVALID_HANDLE };
        let tail = machine.tails_ns.entry(stream as usize).or_default();
        *tail = (*tail).max(event.at_ns.unwrap_or(0));
        SUCCESS
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: *mut c_void) -> u32 {
    synchronise(|machine| machine.tails_ns.get(&(stream as usize)).copied())
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamIsCapturing(stream: *mut c_void, status: *mut c_uint) -> u32 {
    within(|machine| {
        // The legacy stream cannot be asked while another one captures.
        if stream.is_null() && machine.get("capturing") != 0 {
            return 906;
        }
        put(status, machine.get("capturing") as c_uint)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuThreadExchangeStreamCaptureMode(mode: *mut c_uint) -> u32 {
    call(|machine| {
        let before = if machine.relaxed { 2 } else { 0 };
        machine.relaxed = unsafe { mode.read() } == 2;
        put(mode, before)
    })
}

// ---- events ---------------------------------------------------------------------------------------------------------

#[unsafe(no_mangle)]
extern "C" fn cuEventCreate(event: *mut *mut c_void, _flags: c_uint) -> u32 {
    within(|machine| match machine.get("create_error") {
        0 => {
            let handle = machine.handle();
            machine.events.insert(handle, Event::default());
            put(event, handle as *mut c_void)
        }
        error => error as u32,
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: *mut c_void) -> u32 {
    within(|machine| machine.events.remove(&(event as usize)).map_or(INVALID_HANDLE, |_| SUCCESS))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: *mut c_void, stream: *mut c_void) -> u32 {
    within(|machine| {
        let (event, stream) = (event as usize, stream as usize);
        let Some(before) = machine.events.get(&event).copied() else { return INVALID_HANDLE };
        if !machine.knows(stream) {
            return INVALID_HANDLE;
        }
        machine.add("recorded", 1);
        machine.add("rerecorded", i64::from(!machine.is_ready(&before)));
        let (cost_ns, is_captured) = (machine.get("event_ns") as u64, machine.get("capturing") != 0);
        machine.add("captured", i64::from(is_captured));
        let until = machine.now_ns() + machine.get("record_host_ns") as u64;
        while machine.now_ns() < until {
            std::hint::spin_loop();
        }
        let at = machine.enqueue(stream, cost_ns);
        let at_ns = Some(if machine.get("never_ready") == 0 { at } else { u64::MAX });
        machine.events.insert(event, Event { at_ns, is_captured });
        SUCCESS
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: *mut c_void) -> u32 {
    within(|machine| {
        // In the global mode, a question in the middle of a capture ends the capture.
        if machine.get("capturing") != 0 && !machine.relaxed {
            machine.add("captured", 1);
            return CAPTURE_UNSUPPORTED;
        }
        match machine.events.get(&(event as usize)) {
            None => INVALID_HANDLE,
            Some(event) if event.is_captured => CAPTURED_EVENT,
            Some(event) if machine.is_ready(event) => SUCCESS,
            Some(_) => NOT_READY,
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: *mut c_void) -> u32 {
    synchronise(|machine| machine.events.get(&(event as usize)).and_then(|event| event.at_ns))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime(ms: *mut f32, start: *mut c_void, end: *mut c_void) -> u32 {
    within(|machine| {
        let event = |of: *mut c_void| machine.events.get(&(of as usize));
        let (Some(start), Some(end)) = (event(start), event(end)) else { return INVALID_HANDLE };
        let (Some(from), Some(to)) = (start.at_ns, end.at_ns) else { return INVALID_HANDLE };
        if !machine.is_ready(start) || !machine.is_ready(end) {
            return NOT_READY;
        }
        put(ms, ((machine.device_ns(to) - machine.device_ns(from)) / 1e6) as f32)
    })
}

// ---- memory ---------------------------------------------------------------------------------------------------------

#[unsafe(no_mangle)]
extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32 {
    within(|machine| {
        let bytes = machine.get("memory_bytes") as usize;
        let used: u64 = machine.allocated.values().sum();
        put(free, bytes - used as usize).max(put(total, bytes))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAlloc_v2(pointer: *mut u64, bytes: usize) -> u32 {
    within(|machine| {
        let used: u64 = machine.allocated.values().sum();
        if bytes == 0 || used + bytes as u64 > machine.get("memory_bytes") as u64 {
            return if bytes == 0 { INVALID_VALUE } else { OUT_OF_MEMORY };
        }
        let handle = machine.handle() as u64;
        machine.allocated.insert(handle, bytes as u64);
        put(pointer, handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(pointer: u64) -> u32 {
    within(|machine| machine.allocated.remove(&pointer).map_or(INVALID_VALUE, |_| SUCCESS))
}

fn copy(stream: *mut c_void, bytes: usize) -> u32 {
    within(|machine| {
        let ns = bytes as f64 / machine.get("copy_bytes_per_s") as f64 * 1e9;
        machine.enqueue(stream as usize, ns as u64);
        SUCCESS
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(_to: u64, _from: u64, bytes: usize, stream: *mut c_void) -> u32 {
    copy(stream, bytes)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(_to: u64, _from: *const c_void, bytes: usize, stream: *mut c_void) -> u32 {
    copy(stream, bytes)
}

// ---- errors ---------------------------------------------------------------------------------------------------------

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(error: u32, text: *mut *const c_char) -> u32 {
    put(text, error_text(error))
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorString(error: u32, text: *mut *const c_char) -> u32 {
    put(text, error_text(error))
}

fn error_text(error: u32) -> *const c_char {
    let text: &CStr = match error {
        SUCCESS => c"no error",
        NOT_READY => c"device not ready",
        719 => c"unspecified launch failure",
        _ => c"an error of the stand-in",
    };
    text.as_ptr()
}
