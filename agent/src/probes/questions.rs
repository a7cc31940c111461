//! What a card is asked, and how its answers are named.

use adaptis_agent_core::Meter;
use nvml_wrapper::Device;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, PcieUtilCounter, TemperatureSensor};
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings as sys;
use nvml_wrapper_sys::bindings::field_id;

/// One call, or a few that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    SmClock,
    MemoryClock,
    Power,
    PowerLimit,
    Energy,
    Temperature,
    Utilisation,
    Memory,
    ThrottleReasons,
    CorrectedErrors,
    UncorrectedErrors,
    PcieCounters,
    /// Measured by the driver over 20 ms a direction, which the call takes: only where counters give no rate.
    PcieSampled,
    PcieReplays,
    NvlinkCounters,
}

impl Question {
    pub const ALL: [Question; 15] = [
        Question::SmClock,
        Question::MemoryClock,
        Question::Power,
        Question::PowerLimit,
        Question::Energy,
        Question::Temperature,
        Question::Utilisation,
        Question::Memory,
        Question::ThrottleReasons,
        Question::CorrectedErrors,
        Question::UncorrectedErrors,
        Question::PcieCounters,
        Question::PcieSampled,
        Question::PcieReplays,
        Question::NvlinkCounters,
    ];

    /// For logs and the table of costs.
    pub fn name(self) -> &'static str {
        match self {
            Question::SmClock => "sm_clock",
            Question::MemoryClock => "memory_clock",
            Question::Power => "power",
            Question::PowerLimit => "power_limit",
            Question::Energy => "energy",
            Question::Temperature => "temperature",
            Question::Utilisation => "utilisation",
            Question::Memory => "memory",
            Question::ThrottleReasons => "throttle_reasons",
            Question::CorrectedErrors => "ecc_corrected",
            Question::UncorrectedErrors => "ecc_uncorrected",
            Question::PcieCounters => "pcie_counters",
            Question::PcieSampled => "pcie_sampled",
            Question::PcieReplays => "pcie_replays",
            Question::NvlinkCounters => "nvlink_counters",
        }
    }
}

/// Readings by name, unit last.
pub(crate) type Answer = Vec<(&'static str, f64)>;

// Most that can be counted in a second: a counter that went further was reset. PCIe 6.0 of 16 lanes carries 128 GB/s a
// direction, NVLink 5 carries 900 GB/s; double that for what is to come. No board draws 100 kW, and a link that repeats a
// million packets a second is dead.
const PCIE_BYTES_PER_S_MAX: f64 = 256e9;
const NVLINK_KIB_PER_S_MAX: f64 = 1.8e12 / 1024.0;
const MILLIWATTS_MAX: f64 = 1e8;
const EVENTS_PER_S_MAX: f64 = 1e6;

/// Names of throttle reasons: 1 while it holds the clocks down, else 0.
const REASONS: [(&str, ThrottleReasons); 9] = [
    ("throttled_by_idle", ThrottleReasons::GPU_IDLE),
    ("throttled_by_application_clocks", ThrottleReasons::APPLICATIONS_CLOCKS_SETTING),
    ("throttled_by_power_cap", ThrottleReasons::SW_POWER_CAP),
    ("throttled_by_hardware", ThrottleReasons::HW_SLOWDOWN),
    ("throttled_by_sync_boost", ThrottleReasons::SYNC_BOOST),
    ("throttled_by_software_heat", ThrottleReasons::SW_THERMAL_SLOWDOWN),
    ("throttled_by_hardware_heat", ThrottleReasons::HW_THERMAL_SLOWDOWN),
    ("throttled_by_power_brake", ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN),
    ("throttled_by_display_clocks", ThrottleReasons::DISPLAY_CLOCK_SETTING),
];

/// The counters of a card, as they were last seen.
#[derive(Clone, Debug)]
pub(crate) struct Meters {
    energy: Meter,
    corrected: Meter,
    uncorrected: Meter,
    replays: Meter,
    pcie: [Meter; 2],
    nvlink: [Meter; 2],
}

impl Default for Meters {
    fn default() -> Self {
        Self {
            energy: Meter::new(MILLIWATTS_MAX),
            corrected: Meter::new(EVENTS_PER_S_MAX),
            uncorrected: Meter::new(EVENTS_PER_S_MAX),
            replays: Meter::new(EVENTS_PER_S_MAX),
            pcie: [Meter::new(PCIE_BYTES_PER_S_MAX); 2],
            nvlink: [Meter::new(NVLINK_KIB_PER_S_MAX); 2],
        }
    }
}

/// Asks a card, at a time.
pub(crate) fn ask(
    question: Question,
    device: &Device<'_>,
    meters: &mut Meters,
    at_ns: u64,
) -> Result<Answer, NvmlError> {
    let one = |name, value: f64| Ok(vec![(name, value)]);
    match question {
        Question::SmClock => one("sm_clock_mhz", device.clock_info(Clock::SM)?.into()),
        Question::MemoryClock => one("memory_clock_mhz", device.clock_info(Clock::Memory)?.into()),
        Question::Power => one("power_w", f64::from(device.power_usage()?) / 1e3),
        Question::PowerLimit => one("power_limit_w", f64::from(device.enforced_power_limit()?) / 1e3),
        Question::Energy => {
            let milliwatts = meters.energy.rate(at_ns, device.total_energy_consumption()?, 64);
            Ok(milliwatts.map(|milliwatts| ("power_mean_w", milliwatts / 1e3)).into_iter().collect())
        }
        Question::Temperature => one("temperature_c", device.temperature(TemperatureSensor::Gpu)?.into()),
        Question::Utilisation => {
            let rates = device.utilization_rates()?;
            let (gpu, memory) = (rates.gpu.into(), rates.memory.into());
            Ok(vec![("gpu_utilisation_percent", gpu), ("memory_utilisation_percent", memory)])
        }
        Question::Memory => memory(device),
        Question::ThrottleReasons => {
            let reasons = device.current_throttle_reasons()?;
            let holds = |reason| f64::from(u8::from(reasons.contains(reason)));
            let mut answer = vec![("throttle_reasons_bits", reasons.bits() as f64)];
            answer.extend(REASONS.map(|(name, reason)| (name, holds(reason))));
            Ok(answer)
        }
        Question::CorrectedErrors => {
            let count = device.total_ecc_errors(MemoryError::Corrected, EccCounter::Volatile)?;
            let rate = meters.corrected.rate(at_ns, count, 64);
            Ok(counted(("ecc_corrected_errors", count), ("ecc_corrected_errors_per_s", rate)))
        }
        Question::UncorrectedErrors => {
            let count = device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile)?;
            let rate = meters.uncorrected.rate(at_ns, count, 64);
            Ok(counted(("ecc_uncorrected_errors", count), ("ecc_uncorrected_errors_per_s", rate)))
        }
        Question::PcieReplays => {
            let rate = meters.replays.rate(at_ns, device.pcie_replay_counter()?.into(), 32);
            Ok(rate.map(|rate| ("pcie_replays_per_s", rate)).into_iter().collect())
        }
        Question::PcieSampled => {
            // The driver's kilobytes are of 1,000 bytes here.
            let bytes = |counter| device.pcie_throughput(counter).map(|kb_per_s| f64::from(kb_per_s) * 1e3);
            let (sent, received) = (bytes(PcieUtilCounter::Send)?, bytes(PcieUtilCounter::Receive)?);
            Ok(vec![("pcie_sent_bytes_per_s", sent), ("pcie_received_bytes_per_s", received)])
        }
        Question::PcieCounters => {
            let fields = [field_id::NVML_FI_DEV_PCIE_COUNT_TX_BYTES, field_id::NVML_FI_DEV_PCIE_COUNT_RX_BYTES];
            let names = ["pcie_sent_bytes_per_s", "pcie_received_bytes_per_s"];
            rates(device, fields, 0, &mut meters.pcie, names, at_ns, 1.0)
        }
        Question::NvlinkCounters => {
            let fields =
                [field_id::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, field_id::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX];
            let names = ["nvlink_sent_bytes_per_s", "nvlink_received_bytes_per_s"];
            rates(device, fields, ALL_LINKS, &mut meters.nvlink, names, at_ns, 1024.0)
        }
    }
}

fn counted(count: (&'static str, u64), rate: (&'static str, Option<f64>)) -> Answer {
    let rate = rate.1.map(|value| (rate.0, value));
    [Some((count.0, count.1 as f64)), rate].into_iter().flatten().collect()
}

/// By the newer call, which leaves out what the driver keeps for itself; older drivers have only the older one.
fn memory(device: &Device<'_>) -> Result<Answer, NvmlError> {
    let (used, free, total) = match device.memory_info() {
        Ok(memory) => (memory.used, memory.free, memory.total),
        Err(NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound | NvmlError::UnexpectedVariant(_)) => {
            let call = nvml_sym(device.nvml().lib().nvmlDeviceGetMemoryInfo.as_ref())?;
            let mut memory = sys::nvmlMemory_t { total: 0, free: 0, used: 0 };
            // SAFETY: the handle is the card's, and `memory` is writable for the duration of the call.
            nvml_try(unsafe { call(device.handle(), &mut memory) })?;
            (memory.used, memory.free, memory.total)
        }
        Err(error) => return Err(error),
    };
    Ok(vec![
        ("memory_used_bytes", used as f64),
        ("memory_free_bytes", free as f64),
        ("memory_total_bytes", total as f64),
    ])
}

/// The scope that means the sum over all links.
const ALL_LINKS: u32 = u32::MAX;

/// Rates of two counters among the field values. By the library's own call: the wrapper's always asks for scope 0.
fn rates(
    device: &Device<'_>,
    fields: [u32; 2],
    scope: u32,
    meters: &mut [Meter; 2],
    names: [&'static str; 2],
    at_ns: u64,
    unit_bytes: f64,
) -> Result<Answer, NvmlError> {
    let call = nvml_sym(device.nvml().lib().nvmlDeviceGetFieldValues.as_ref())?;
    let mut values = fields.map(|field| sys::nvmlFieldValue_t {
        fieldId: field,
        scopeId: scope,
        timestamp: 0,
        latencyUsec: 0,
        valueType: 0,
        nvmlReturn: 0,
        value: sys::nvmlValue_t { ullVal: 0 },
    });
    // SAFETY: the handle is the card's, and the call writes to as many values as it is told of.
    nvml_try(unsafe { call(device.handle(), values.len() as i32, values.as_mut_ptr()) })?;
    let mut answer = Answer::new();
    for ((value, meter), name) in values.iter().zip(meters).zip(names) {
        nvml_try(value.nvmlReturn)?;
        let (count, bits) = count(value).ok_or(NvmlError::UnexpectedVariant(value.valueType))?;
        answer.extend(meter.rate(at_ns, count, bits).map(|rate| (name, rate * unit_bytes)));
    }
    Ok(answer)
}

/// A whole number, and how wide its counter is.
fn count(value: &sys::nvmlFieldValue_t) -> Option<(u64, u32)> {
    // SAFETY: every part of the union is plain bytes, all of which were initialised; the type says which was written.
    unsafe {
        match value.valueType {
            sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT => Some((value.value.uiVal.into(), 32)),
            sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG => Some((value.value.ulVal, 64)),
            sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG => Some((value.value.ullVal, 64)),
            sys::nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_LONG_LONG => Some((value.value.sllVal.cast_unsigned(), 64)),
            _ => None,
        }
    }
}
