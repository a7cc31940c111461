//! The sending side of an outgoing queue: refuses what is too long or too much, counts, wakes the I/O thread.

use std::{sync::Arc, time::Duration};

use crossbeam::channel::{SendTimeoutError, Sender, TrySendError};

use crate::{
    Error,
    counters::{Tally, count, uncount},
    signal::Signal,
};

pub(crate) struct Outbox<T> {
    pub queue: Sender<T>,
    pub signal: Arc<Signal>,
    pub tally: Arc<Tally>,
    pub message_bytes_max: usize,
}

// By hand, since the derive would ask that T be Clone.
impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            signal: Arc::clone(&self.signal),
            tally: Arc::clone(&self.tally),
            message_bytes_max: self.message_bytes_max,
        }
    }
}

impl<T> Outbox<T> {
    /// Takes the item at once or not at all.
    pub(crate) fn push(&self, bytes: usize, item: T) -> Result<(), Error> {
        self.take(bytes, || {
            self.queue.try_send(item).map_err(|error| match error {
                TrySendError::Full(_) => Error::Full,
                TrySendError::Disconnected(_) => Error::Closed,
            })
        })
    }

    /// Waits for room, but no longer than `timeout`.
    pub(crate) fn push_within(&self, bytes: usize, item: T, timeout: Duration) -> Result<(), Error> {
        self.take(bytes, || {
            self.queue.send_timeout(item, timeout).map_err(|error| match error {
                SendTimeoutError::Timeout(_) => Error::Full,
                SendTimeoutError::Disconnected(_) => Error::Closed,
            })
        })
    }

    fn take(&self, bytes: usize, put: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let bytes_max = self.message_bytes_max;
        if bytes > bytes_max {
            return Err(Error::TooLong { bytes, bytes_max });
        }
        count(&self.tally.accepted);
        let put = put();
        match &put {
            Ok(()) => self.signal.raise(),
            Err(error) => {
                uncount(&self.tally.accepted);
                if matches!(error, Error::Full) {
                    count(&self.tally.dropped_full);
                }
            }
        }
        put
    }
}
