//! INT, TERM and HUP as a flag that long work looks at.

use anyhow::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What has been asked for by signal.
#[derive(Clone)]
pub struct Stop {
    flag: Arc<AtomicBool>,
    signal: Arc<AtomicUsize>,
}

impl Stop {
    /// Listens from now on. A second INT ends the process at once.
    pub fn listen() -> Result<Stop> {
        let flag = Arc::default();
        // Before the flag is registered, so that the first INT finds it unset.
        signal_hook::flag::register_conditional_default(SIGINT, Arc::clone(&flag))?;
        Stop::on(flag)
    }

    /// Listens, for a service: any number of signals ask for the same orderly end.
    pub fn listen_as_service() -> Result<Stop> {
        Stop::on(Arc::default())
    }

    fn on(flag: Arc<AtomicBool>) -> Result<Stop> {
        let stop = Stop { flag, signal: Arc::default() };
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register_usize(signal, stop.signal.clone(), signal as usize)?;
            signal_hook::flag::register(signal, stop.flag.clone())?;
        }
        Ok(stop)
    }

    /// The flag, for the parts that look at it themselves.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.flag.clone()
    }

    /// The signal that asked for the end, if one did.
    pub fn asked(&self) -> Option<u8> {
        match self.flag.load(Ordering::Relaxed) {
            true => Some(self.signal.load(Ordering::Relaxed) as u8),
            false => None,
        }
    }
}
