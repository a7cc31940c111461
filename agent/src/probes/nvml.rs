//! The GPU as its driver's management library sees it. Makes no context and so costs the GPU nothing.

use super::Readings;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use std::cell::Cell;

/// A GPU, found by UUID or index.
pub(crate) struct Gpu {
    nvml: Nvml,
    index: u32,
    is_lost: Cell<bool>,
}

impl Gpu {
    /// None without the library, the driver or such a GPU; which of them is logged.
    pub(crate) fn open(uuid_or_index: &str) -> Option<Self> {
        Self::try_open(uuid_or_index)
            .inspect_err(|error| tracing::info!(gpu = uuid_or_index, %error, "no readings by NVML"))
            .ok()
    }

    fn try_open(uuid_or_index: &str) -> Result<Self, NvmlError> {
        let nvml = Nvml::init()?;
        let index = match uuid_or_index.parse() {
            Ok(index) => nvml.device_by_index(index)?.index()?,
            Err(_) => nvml.device_by_uuid(uuid_or_index)?.index()?,
        };
        Ok(Self { nvml, index, is_lost: Cell::new(false) })
    }

    /// `GPU-...`, if the card says.
    pub(crate) fn uuid(&self) -> Option<String> {
        self.nvml.device_by_index(self.index).ok()?.uuid().ok()
    }

    /// What the card answers. Throttle reasons are NVML's bits (clocks event reasons), 0 when nothing holds it back.
    pub(crate) fn readings(&self) -> Readings {
        let device = match self.nvml.device_by_index(self.index) {
            Ok(device) => device,
            Err(error) => {
                if !self.is_lost.replace(true) {
                    tracing::warn!(index = self.index, %error, "the GPU does not answer any more");
                }
                return Readings::new();
            }
        };
        self.is_lost.set(false);
        read(&device).into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

fn read(device: &Device<'_>) -> Vec<(&'static str, Option<f64>)> {
    let mhz = |clock| device.clock_info(clock).ok().map(f64::from);
    let watts = |milliwatts: u32| f64::from(milliwatts) / 1_000.0;
    let utilisation = device.utilization_rates().ok();
    let memory = device.memory_info().ok();
    vec![
        ("sm_clock_mhz", mhz(Clock::SM)),
        ("memory_clock_mhz", mhz(Clock::Memory)),
        ("power_w", device.power_usage().ok().map(watts)),
        ("power_limit_w", device.enforced_power_limit().ok().map(watts)),
        ("temperature_c", device.temperature(TemperatureSensor::Gpu).ok().map(f64::from)),
        ("gpu_utilisation_percent", utilisation.as_ref().map(|rates| f64::from(rates.gpu))),
        ("memory_utilisation_percent", utilisation.as_ref().map(|rates| f64::from(rates.memory))),
        ("memory_used_bytes", memory.as_ref().map(|memory| memory.used as f64)),
        ("memory_free_bytes", memory.as_ref().map(|memory| memory.free as f64)),
        ("memory_total_bytes", memory.as_ref().map(|memory| memory.total as f64)),
        ("throttle_reasons_bits", device.current_throttle_reasons().ok().map(|reasons| reasons.bits() as f64)),
    ]
}
