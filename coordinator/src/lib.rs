//! Ingest, store, control plane and pages of the coordinator.
