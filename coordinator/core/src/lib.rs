//! Estimate, drift, admission and the commit round, without any input or output.
