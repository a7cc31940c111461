//! Batching, sketches, accounting and clock offset of an agent, without any input or output.
