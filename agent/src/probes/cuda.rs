//! The GPU as the CUDA driver names it.
//!
//! Asks only what needs no context: one would hold hundreds of megabytes of the memory that the training job plans
//! with. Free memory therefore comes from NVML. The one exception is the calibration before training, whose context ends
//! with it.

use super::inventory::Library;
use crate::calibration::CalibrationError;
use cudarc::driver::{result, sys};

/// A GPU's own description.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Card {
    /// The driver's name for it.
    pub name: String,
    /// `GPU-` and the UUID in hexadecimal.
    pub uuid: String,
    /// Total memory.
    pub memory_bytes: u64,
}

/// The functions that a context takes besides.
const CONTEXT_FUNCTIONS: [&str; 4] =
    ["cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease_v2", "cuCtxSetCurrent"];
/// `CU_COMPUTEMODE_DEFAULT`: several processes may have contexts.
const SHARED_MODE: i32 = 0;

/// The functions that are called: the bindings panic on one that is missing.
const FUNCTIONS: [&str; 7] = [
    "cuInit",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceTotalMem_v2",
    "cuDeviceGetUuid",
    "cuDeviceGetName",
    "cuGetErrorString",
];

fn has(function: &str) -> bool {
    // SAFETY: the library was found, and the function is looked for and not called.
    unsafe { sys::culib().get::<unsafe extern "C" fn()>(function.as_bytes()).is_ok() }
}

/// What the driver answers, and how many GPUs it shows to this process.
pub(crate) fn answers() -> (Library, u32) {
    // SAFETY: only tries to open the library; the names it looks for are the driver's.
    if !unsafe { sys::is_culib_present() } {
        return (Library::Absent, 0);
    }
    if let Some(function) = FUNCTIONS.iter().chain(["cuDriverGetVersion"].iter()).find(|function| !has(function)) {
        return (Library::Refuses(format!("it lacks {function}")), 0);
    }
    if let Err(error) = result::init() {
        let is_idle = matches!(error.0, sys::CUresult::CUDA_ERROR_NO_DEVICE | sys::CUresult::CUDA_ERROR_STUB_LIBRARY);
        return (if is_idle { Library::Idle } else { Library::Refuses(error.to_string()) }, 0);
    }
    let mut version = 0;
    // SAFETY: the function was found, and writes one number.
    match unsafe { sys::cuDriverGetVersion(&mut version) }.result() {
        Ok(()) => {
            let count = result::device::get_count().unwrap_or_default();
            (Library::Answers(format!("{}.{}", version / 1000, version % 1000 / 10)), count.max(0) as u32)
        }
        Err(error) => (Library::Refuses(error.to_string()), 0),
    }
}

/// The GPU of a UUID, or of CUDA's ordinal. None without the driver or such a GPU.
pub(crate) fn find(uuid_or_ordinal: &str) -> Option<Card> {
    find_device(uuid_or_ordinal).map(|(_, card)| card)
}

fn find_device(uuid_or_ordinal: &str) -> Option<(i32, Card)> {
    // SAFETY: only tries to open the library; the names it looks for are the driver's.
    if !unsafe { sys::is_culib_present() } {
        tracing::info!("no CUDA driver on this host");
        return None;
    }
    if let Some(function) = FUNCTIONS.iter().find(|function| !has(function)) {
        tracing::info!(function, "the CUDA driver lacks a function; not asked for the GPU");
        return None;
    }
    result::init().inspect_err(|error| tracing::info!(%error, "the CUDA driver finds no GPU")).ok()?;
    let count = result::device::get_count().ok()?;
    let ordinal = uuid_or_ordinal.parse::<i32>().ok();
    (0..count).filter(|at| ordinal.is_none_or(|ordinal| ordinal == *at)).find_map(|at| {
        let card = describe(at)?;
        (ordinal.is_some() || card.uuid == uuid_or_ordinal).then_some((at, card))
    })
}

/// A GPU's context, current on the thread that opened it until it is dropped there.
pub(crate) struct Context {
    device: sys::CUdevice,
}

impl Context {
    /// On the GPU of a UUID, or of CUDA's ordinal.
    pub(crate) fn open(uuid_or_ordinal: &str) -> Result<Self, CalibrationError> {
        let (ordinal, _) = find_device(uuid_or_ordinal).ok_or(CalibrationError::NoCard)?;
        if !CONTEXT_FUNCTIONS.iter().all(|function| has(function)) {
            return Err(CalibrationError::NoCard);
        }
        let device = result::device::get(ordinal).map_err(CalibrationError::Context)?;
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_MODE;
        // SAFETY: the device was just handed out by the driver.
        let mode = unsafe { result::device::get_attribute(device, attribute) }.map_err(CalibrationError::Context)?;
        if mode != SHARED_MODE {
            return Err(CalibrationError::Exclusive(mode));
        }
        // SAFETY: as above; released when this is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(CalibrationError::Context)?;
        let opened = Self { device };
        // SAFETY: the context was just retained.
        unsafe { result::ctx::set_current(context) }.map_err(CalibrationError::Context)?;
        Ok(opened)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: no context is always a valid one to have current, and the other was retained when this was made. A failure
        // leaves nothing to be done.
        unsafe {
            let _ = result::ctx::set_current(std::ptr::null_mut());
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

fn describe(ordinal: i32) -> Option<Card> {
    let device = result::device::get(ordinal).ok()?;
    // SAFETY: `device` was just handed out by the driver.
    let memory_bytes = unsafe { result::device::total_mem(device) }.ok()? as u64;
    let uuid = uuid_text(result::device::get_uuid(device).ok()?.bytes.map(|byte| byte as u8));
    Some(Card { name: result::device::get_name(device).ok()?, uuid, memory_bytes })
}

/// As NVML writes it: `GPU-8-4-4-4-12`.
fn uuid_text(bytes: [u8; 16]) -> String {
    let mut text = String::from("GPU");
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 0 | 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_as_nvml_does() {
        let bytes = std::array::from_fn(|at| 0xf0 | at as u8);
        assert_eq!(uuid_text(bytes), "GPU-f0f1f2f3-f4f5-f6f7-f8f9-fafbfcfdfeff");
    }

    #[test]
    fn an_unknown_card_is_none_with_and_without_a_driver() {
        assert_eq!(find("GPU-00000000-0000-0000-0000-000000000000"), None);
    }
}
