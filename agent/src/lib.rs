//! Per-device agent: drains the ring, probes the device, streams to the coordinator.
