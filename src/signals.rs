//! INT, TERM and HUP as a flag that long work looks at.
//!
//! Who starts this process may have INT or HUP ignored, as `nohup` does and shells for what runs in the background: those
//! stay ignored.

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

/// A file that would become larger than the user's limit (`ulimit -f`) is an error that is told, and does not end the
/// process. Commands that it starts find the signal as it was.
pub fn outlive_limits() {
    // Without it the process ends by the signal, as it would have.
    let _ = signal_hook::flag::register(libc::SIGXFSZ, Arc::default());
}

impl Stop {
    /// Listens from now on. A second INT ends the process at once.
    pub fn listen() -> Result<Stop> {
        let flag = Arc::default();
        // Before the flag is registered, so that the first INT finds it unset.
        if !is_ignored(SIGINT) {
            signal_hook::flag::register_conditional_default(SIGINT, Arc::clone(&flag))?;
        }
        Stop::on(flag)
    }

    /// Listens, for a service: any number of signals ask for the same orderly end.
    pub fn listen_as_service() -> Result<Stop> {
        Stop::on(Arc::default())
    }

    /// Nobody asks.
    #[cfg(test)]
    pub fn never() -> Stop {
        Stop { flag: Arc::default(), signal: Arc::default() }
    }

    fn on(flag: Arc<AtomicBool>) -> Result<Stop> {
        let stop = Stop { flag, signal: Arc::default() };
        let others = [SIGINT, SIGHUP].into_iter().filter(|&signal| !is_ignored(signal));
        for signal in others.chain([SIGTERM]) {
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

/// Whether a signal was ignored when this process was started. One that we listen to is not.
pub fn is_ignored(signal: i32) -> bool {
    // SAFETY: a null new action changes nothing, and the old one is written into a value that is ours.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut old) == 0 && old.sa_sigaction == libc::SIG_IGN
    }
}
