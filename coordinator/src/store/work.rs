//! What a run's store tells others: raw samples of some iterations, on one clock.

use super::samples::records;
use super::{StoreError, number, open_to_read, sql};
use adaptis_coordinator_core::Recovered;
use adaptis_proto::Incarnation;
use adaptis_proto::sample::Sample;
use std::ops::RangeInclusive;
use std::path::Path;

/// Samples of the iterations `steps`, with the device that recorded each, in the order in which they were stored. Their
/// instants are on the coordinator's clock, within the error of the exchange; an offset within its own error counts as
/// none, as between processes of one machine. The run may still be going on.
///
/// # Errors
/// There is no store in `dir`, or it fails.
pub fn work_of(dir: &Path, steps: RangeInclusive<u64>) -> Result<Vec<(String, Sample)>, StoreError> {
    let (connection, _) = open_to_read(dir)?;
    let mut statement = connection.prepare(
        "SELECT device, offset_ns, error_ns, body FROM records WHERE last_step >= ? AND first_step <= ? ORDER BY id",
    )?;
    let mut rows = statement.query([sql(*steps.start()), sql(*steps.end())])?;
    let mut work = Vec::new();
    while let Some(row) = rows.next()? {
        let (device, offset_ns): (String, Option<i64>) = (row.get(0)?, row.get(1)?);
        let error_ns = row.get::<_, Option<i64>>(2)?.map_or(0, number);
        let offset_ns = offset_ns.filter(|offset_ns| offset_ns.unsigned_abs() > error_ns).unwrap_or(0);
        let samples = records(&row.get::<_, Vec<u8>>(3)?)?;
        let samples = samples.into_iter().filter_map(|record| Sample::try_from(record).ok());
        let wanted = samples.filter(|sample| steps.contains(&step_of(sample)));
        work.extend(wanted.map(|sample| (device.clone(), moved(sample, offset_ns))));
    }
    Ok(work)
}

/// What the ledger of a run's folder holds. The run may still be going on.
///
/// # Errors
/// There is no store in `dir`, or it fails.
pub fn ledger_of(dir: &Path) -> Result<Recovered, StoreError> {
    super::ledger::read(&open_to_read(dir)?.0)
}

/// Calls `each` with every sample of a run's folder in the order in which they were stored, and with the device and the
/// process that it came from. Their instants are on the clocks of those.
///
/// # Errors
/// There is no store in `dir`, or it fails.
pub fn each_sample(dir: &Path, mut each: impl FnMut(&str, Incarnation, &Sample)) -> Result<(), StoreError> {
    let (connection, _) = open_to_read(dir)?;
    let mut statement = connection.prepare("SELECT device, ring, body FROM records ORDER BY id")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (device, ring): (String, i64) = (row.get(0)?, row.get(1)?);
        let samples = records(&row.get::<_, Vec<u8>>(2)?)?.into_iter();
        for sample in samples.filter_map(|record| Sample::try_from(record).ok()) {
            each(&device, Incarnation(number(ring)), &sample);
        }
    }
    Ok(())
}

fn step_of(sample: &Sample) -> u64 {
    match sample {
        Sample::Work { place, .. }
        | Sample::Transfer { place, .. }
        | Sample::LayerMemory { place, .. }
        | Sample::DeviceMemory { place, .. }
        | Sample::Iteration { place, .. }
        | Sample::Switch { place, .. }
        | Sample::Load { place, .. }
        | Sample::Between { place, .. } => place.step.0,
    }
}

fn moved(mut sample: Sample, offset_ns: i64) -> Sample {
    match &mut sample {
        Sample::Work { start_ns, .. } | Sample::Transfer { start_ns, .. } | Sample::Iteration { start_ns, .. } => {
            *start_ns = start_ns.saturating_add_signed(offset_ns);
        }
        Sample::LayerMemory { .. }
        | Sample::DeviceMemory { .. }
        | Sample::Switch { .. }
        | Sample::Load { .. }
        | Sample::Between { .. } => {}
    }
    sample
}
