//! Typed, bounded, authenticated message links over ZeroMQ.
