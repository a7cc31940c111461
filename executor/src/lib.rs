//! Worker, transports and CPU backends that execute plans.
