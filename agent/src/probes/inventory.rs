//! Which drivers this host has, and which GPUs they name: asked once, for people. Makes no context.

use super::cuda;
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use std::sync::mpsc::channel;
use std::time::Duration;

/// What became of a library of the driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Library {
    /// No such file for the loader.
    #[default]
    Absent,
    /// It is there, and the driver it talks to is not loaded, or finds no device.
    Idle,
    /// It is there and refuses, with these words.
    Refuses(String),
    /// It answers, with this version.
    Answers(String),
}

/// A GPU as the management library names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gpu {
    /// The driver's name for it.
    pub name: String,
    /// `GPU-` and the UUID in hexadecimal.
    pub uuid: String,
    /// Total memory.
    pub memory_bytes: u64,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// `libnvidia-ml`, with the version of the driver.
    pub nvml: Library,
    /// `libcuda`, with the version of CUDA that the driver has.
    pub cuda: Library,
    /// By NVML's index; those that are lost say nothing and are none.
    pub gpus: Vec<Gpu>,
    /// GPUs that NVML counts, lost ones too.
    pub nvml_count: u32,
    /// GPUs that CUDA shows to this process.
    pub cuda_count: u32,
}

/// Asks the drivers, on a thread of their own; none if they do not answer in time.
pub fn inventory(patience: Duration) -> Option<Inventory> {
    let (answer, answered) = channel();
    // One that does not come back is left behind: a driver that hangs can't be called off.
    let ask = move || answer.send(ask());
    std::thread::Builder::new().name("drivers".into()).spawn(ask).ok()?;
    answered.recv_timeout(patience).ok()
}

fn ask() -> Inventory {
    let mut found = Inventory::default();
    (found.cuda, found.cuda_count) = cuda::answers();
    let nvml = match Nvml::init() {
        Ok(nvml) => nvml,
        Err(error) => {
            found.nvml = refusal(&error);
            return found;
        }
    };
    found.nvml = match nvml.sys_driver_version() {
        Ok(version) => Library::Answers(version),
        Err(error) => refusal(&error),
    };
    found.nvml_count = nvml.device_count().unwrap_or_default();
    found.gpus = (0..found.nvml_count).filter_map(|index| gpu(&nvml, index).ok()).collect();
    found
}

fn refusal(error: &NvmlError) -> Library {
    match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => Library::Absent,
        NvmlError::DriverNotLoaded => Library::Idle,
        other => Library::Refuses(other.to_string()),
    }
}

fn gpu(nvml: &Nvml, index: u32) -> Result<Gpu, NvmlError> {
    let device = nvml.device_by_index(index)?;
    Ok(Gpu { name: device.name()?, uuid: device.uuid()?, memory_bytes: device.memory_info()?.total })
}
