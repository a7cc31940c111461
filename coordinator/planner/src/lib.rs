//! Simulates and searches for plans: partition, placement, schedule and recomputation.
