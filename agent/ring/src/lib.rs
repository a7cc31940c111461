//! The recorder and its shared-memory ring, linked into the training process.
