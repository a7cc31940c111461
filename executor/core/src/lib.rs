//! The one interpreter, the gate, the vote and the migration that run any plan over any backend.
