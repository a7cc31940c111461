//! Answers like the NVIDIA Management Library, from a script that is read again at every call.
//!
//! Lines of the script, `C` being a card's index:
//!
//! - `nvml.count N`: how many cards there are.
//! - `nvml.C.KEY VALUE`: what a card answers; what is not named is not supported.
//! - `nvml.C.lost 1`: it fell off the bus.
//! - `nvml.FUNCTION.error CODE`: the function answers it.
//! - `nvml.FUNCTION.delay_us N`: the function takes as long; `hang` as value: until the line is gone.
//! - `nvml.C.field.ID VALUE` and `nvml.C.field.ID.bits 32|64`: a field value, of all links.
//!
//! How often each function was called stands in a file beside the script, `script.calls`, when the line `nvml.log 1` is
//! there.

#![allow(non_snake_case, reason = "the names are the library's")]
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "every pointer is the caller's, under the library's own contract"
)]

use adaptis_standin::{Script, script_path};
use std::ffi::{CStr, c_char, c_int, c_longlong, c_uint, c_ulonglong, c_void};
use std::time::Duration;

const SUCCESS: u32 = 0;
const INVALID_ARGUMENT: u32 = 2;
const NOT_SUPPORTED: u32 = 3;
const NOT_FOUND: u32 = 6;
const INSUFFICIENT_SIZE: u32 = 7;
const LOST: u32 = 15;

/// A card's handle is its index, shifted away from null.
const HANDLE: usize = 0x100;

/// What every call goes through: counting, delay, faults.
fn enter(function: &str) -> Result<Script, u32> {
    let mut script = Script::read();
    if script.text("nvml.log").is_some() {
        log(function);
    }
    let delay = format!("nvml.{function}.delay_us");
    while script.text(&delay) == Some("hang") {
        std::thread::sleep(Duration::from_millis(5));
        script = Script::read();
    }
    if let Some(us) = script.number(&delay) {
        std::thread::sleep(Duration::from_micros(us));
    }
    match script.number(&format!("nvml.{function}.error")) {
        Some(code) => Err(code),
        None => Ok(script),
    }
}

fn log(function: &str) {
    use std::io::Write;
    let Some(path) = script_path() else { return };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path.with_extension("calls"));
    file.and_then(|mut file| file.write_all(format!("{function}\n").as_bytes())).expect("calls can be logged");
}

/// The same for a card.
fn card(function: &str, device: *mut c_void) -> Result<(Script, String), u32> {
    let script = enter(function)?;
    let index = (device as usize).checked_sub(HANDLE).ok_or(INVALID_ARGUMENT)?;
    let prefix = format!("nvml.{index}.");
    if script.text(&format!("{prefix}lost")).is_some() {
        return Err(LOST);
    }
    Ok((script, prefix))
}

fn answer<T: TryFrom<i128>>(function: &str, device: *mut c_void, key: &str, at: *mut T) -> u32 {
    let value = card(function, device)
        .and_then(|(script, prefix)| script.number(&format!("{prefix}{key}")).ok_or(NOT_SUPPORTED));
    done(value.map(|value| unsafe { at.write(value) }))
}

fn done(result: Result<(), u32>) -> u32 {
    result.err().unwrap_or(SUCCESS)
}

fn write_text(text: &str, at: *mut c_char, length: c_uint) -> Result<(), u32> {
    if text.len() >= length as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    for (place, byte) in text.bytes().chain([0]).enumerate() {
        unsafe { at.add(place).write(byte as c_char) };
    }
    Ok(())
}

// ---- the library ----------------------------------------------------------------------------------------------------

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> u32 {
    done(enter("nvmlInit_v2").map(drop))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> u32 {
    done(enter("nvmlShutdown").map(drop))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(_error: u32) -> *const c_char {
    c"an error of the stand-in".as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn nvmlSystemGetDriverVersion(text: *mut c_char, length: c_uint) -> u32 {
    let version = enter("nvmlSystemGetDriverVersion")
        .map(|script| script.text("nvml.driver_version").unwrap_or("550.54.15").to_owned());
    done(version.and_then(|version| write_text(&version, text, length)))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> u32 {
    done(enter("nvmlDeviceGetCount_v2").map(|script| unsafe { count.write(script.number("nvml.count").unwrap_or(1)) }))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut *mut c_void) -> u32 {
    let handle = enter("nvmlDeviceGetHandleByIndex_v2").and_then(|script| {
        let lost = script.text(&format!("nvml.{index}.lost")).is_some();
        let is_one = index < script.number("nvml.count").unwrap_or(1);
        if !is_one {
            Err(INVALID_ARGUMENT)
        } else if lost {
            Err(LOST)
        } else {
            Ok(HANDLE + index as usize)
        }
    });
    done(handle.map(|handle| unsafe { device.write(handle as *mut c_void) }))
}

/// Of the form `GPU-00000000-0000-0000-0000-0000000000NN`, NN being the index.
fn uuid(index: usize) -> String {
    format!("GPU-00000000-0000-0000-0000-{index:012x}")
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByUUID(text: *const c_char, device: *mut *mut c_void) -> u32 {
    let wanted = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    let index = enter("nvmlDeviceGetHandleByUUID").and_then(|script| {
        let count: usize = script.number("nvml.count").unwrap_or(1);
        (0..count).find(|index| uuid(*index) == wanted).ok_or(NOT_FOUND)
    });
    done(index.map(|index| unsafe { device.write((HANDLE + index) as *mut c_void) }))
}

// ---- a card ---------------------------------------------------------------------------------------------------------

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetIndex(device: *mut c_void, index: *mut c_uint) -> u32 {
    let known = card("nvmlDeviceGetIndex", device);
    done(known.map(|_| unsafe { index.write((device as usize - HANDLE) as c_uint) }))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetUUID(device: *mut c_void, text: *mut c_char, length: c_uint) -> u32 {
    let known = card("nvmlDeviceGetUUID", device);
    done(known.and_then(|_| write_text(&uuid(device as usize - HANDLE), text, length)))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetName(device: *mut c_void, text: *mut c_char, length: c_uint) -> u32 {
    done(card("nvmlDeviceGetName", device).and_then(|(script, prefix)| {
        write_text(script.text(&format!("{prefix}name")).ok_or(NOT_SUPPORTED)?, text, length)
    }))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetClockInfo(device: *mut c_void, clock: c_int, mhz: *mut c_uint) -> u32 {
    let key = ["graphics_clock_mhz", "sm_clock_mhz", "memory_clock_mhz", "video_clock_mhz"];
    let Some(key) = usize::try_from(clock).ok().and_then(|at| key.get(at)) else { return INVALID_ARGUMENT };
    answer("nvmlDeviceGetClockInfo", device, key, mhz)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPowerUsage(device: *mut c_void, milliwatts: *mut c_uint) -> u32 {
    answer("nvmlDeviceGetPowerUsage", device, "power_mw", milliwatts)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetEnforcedPowerLimit(device: *mut c_void, milliwatts: *mut c_uint) -> u32 {
    answer("nvmlDeviceGetEnforcedPowerLimit", device, "power_limit_mw", milliwatts)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetTotalEnergyConsumption(device: *mut c_void, millijoules: *mut c_ulonglong) -> u32 {
    answer("nvmlDeviceGetTotalEnergyConsumption", device, "energy_mj", millijoules)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetTemperature(device: *mut c_void, _sensor: c_int, celsius: *mut c_uint) -> u32 {
    answer("nvmlDeviceGetTemperature", device, "temperature_c", celsius)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetUtilizationRates(device: *mut c_void, rates: *mut [c_uint; 2]) -> u32 {
    let both = card("nvmlDeviceGetUtilizationRates", device).and_then(|(script, prefix)| {
        let rate = |key: &str| script.number(&format!("{prefix}{key}")).ok_or(NOT_SUPPORTED);
        Ok([rate("gpu_utilisation")?, rate("memory_utilisation")?])
    });
    done(both.map(|both| unsafe { rates.write(both) }))
}

/// `nvmlMemory_t`.
#[repr(C)]
struct Memory {
    total: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

/// `nvmlMemory_v2_t`.
#[repr(C)]
struct MemoryV2 {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

fn memory(function: &str, device: *mut c_void) -> Result<Memory, u32> {
    let (script, prefix) = card(function, device)?;
    let bytes = |key: &str| script.number(&format!("{prefix}{key}")).ok_or(NOT_SUPPORTED);
    let (total, used): (c_ulonglong, c_ulonglong) = (bytes("memory_total")?, bytes("memory_used")?);
    Ok(Memory { total, used, free: total - used })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMemoryInfo(device: *mut c_void, at: *mut Memory) -> u32 {
    done(memory("nvmlDeviceGetMemoryInfo", device).map(|memory| unsafe { at.write(memory) }))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: *mut c_void, at: *mut MemoryV2) -> u32 {
    let version = unsafe { (*at).version };
    if version as usize != size_of::<MemoryV2>() | 2 << 24 {
        return 25;
    }
    let found = memory("nvmlDeviceGetMemoryInfo_v2", device);
    done(found.map(|Memory { total, free, used }| unsafe {
        at.write(MemoryV2 { version, total, reserved: 0, free, used });
    }))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(device: *mut c_void, bits: *mut c_ulonglong) -> u32 {
    answer("nvmlDeviceGetCurrentClocksThrottleReasons", device, "throttle_bits", bits)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: *mut c_void,
    kind: c_int,
    _counter: c_int,
    count: *mut c_ulonglong,
) -> u32 {
    let key = if kind == 0 { "ecc_corrected" } else { "ecc_uncorrected" };
    answer("nvmlDeviceGetTotalEccErrors", device, key, count)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPcieThroughput(device: *mut c_void, counter: c_int, kib_per_s: *mut c_uint) -> u32 {
    let key = if counter == 0 { "pcie_tx_kb_per_s" } else { "pcie_rx_kb_per_s" };
    answer("nvmlDeviceGetPcieThroughput", device, key, kib_per_s)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetPcieReplayCounter(device: *mut c_void, count: *mut c_uint) -> u32 {
    answer("nvmlDeviceGetPcieReplayCounter", device, "pcie_replays", count)
}

/// `nvmlFieldValue_t`.
#[repr(C)]
struct FieldValue {
    field: c_uint,
    scope: c_uint,
    timestamp_us: c_longlong,
    latency_us: c_longlong,
    value_type: c_uint,
    result: c_uint,
    value: c_ulonglong,
}

/// Throughput of links: its scope names a link, or all.
const OF_LINKS: [c_uint; 2] = [138, 139];
const ALL_LINKS: c_uint = c_uint::MAX;

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetFieldValues(device: *mut c_void, count: c_int, values: *mut FieldValue) -> u32 {
    done(card("nvmlDeviceGetFieldValues", device).map(|(script, prefix)| {
        for at in 0..count.max(0) as usize {
            let value = unsafe { &mut *values.add(at) };
            let key = format!("{prefix}field.{}", value.field);
            let is_wrong_scope = OF_LINKS.contains(&value.field) && value.scope != ALL_LINKS;
            value.value_type = if script.number(&format!("{key}.bits")) == Some(32) { 1 } else { 3 };
            match script.number(&key).filter(|_| !is_wrong_scope) {
                Some(number) => (value.value, value.result) = (number, SUCCESS),
                None => value.result = NOT_SUPPORTED,
            }
        }
    }))
}
