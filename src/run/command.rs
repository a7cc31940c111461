//! The wrapped command: started in our place at the terminal, reached by our signals.

use crate::failure;
use crate::signals::is_ignored;
use anyhow::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::raw::WithRawSiginfo;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child as Process, Command, ExitStatus};

/// What goes on to the command.
const FORWARDED: [i32; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];

/// The command as it runs.
pub struct Child {
    process: Process,
    signals: SignalsInfo<WithRawSiginfo>,
}

impl Child {
    /// Starts it with some variables on top of ours. It shares our terminal and our process group.
    ///
    /// # Errors
    /// There is no such program, or it can't be started.
    pub fn start(command: &[OsString], variables: &[(&str, OsString)]) -> Result<Child> {
        // Before it starts: a signal in between is not lost.
        // What is ignored here, as `nohup` has it, stays so for the command.
        let heeded = FORWARDED.into_iter().filter(|&signal| !is_ignored(signal));
        let signals = SignalsInfo::<WithRawSiginfo>::new(heeded)?;
        let (program, arguments) = command.split_first().ok_or_else(|| failure::usage("there is no command to run"))?;
        let mut started = Command::new(program);
        started.args(arguments).envs(variables.iter().map(|(name, value)| (name, value)));
        let process = started.spawn().map_err(|error| {
            let text = format!("{}: {error}", program.to_string_lossy());
            match error.kind() {
                std::io::ErrorKind::NotFound => failure::usage(text),
                _ => failure::environment(text),
            }
        })?;
        Ok(Child { process, signals })
    }

    /// Passes signals on; how it ended, if it did.
    pub fn look(&mut self) -> Option<ExitStatus> {
        let ended = self.process.try_wait().ok().flatten();
        for info in self.signals.pending() {
            // What a terminal sends reaches the whole process group, the command too.
            let is_of_terminal = info.si_code == libc::SI_KERNEL;
            if ended.is_none() && !is_of_terminal {
                // SAFETY: the child was not waited for successfully, so its number still names it.
                unsafe { libc::kill(self.process.id() as i32, info.si_signo) };
            }
        }
        ended
    }
}

impl Child {
    /// Whether a signal has come since the command ended: somebody is in a hurry.
    pub fn is_hurried(&mut self) -> bool {
        self.signals.pending().next().is_some()
    }
}

/// The exit code that a command's end comes to.
pub fn code(status: ExitStatus) -> u8 {
    let signal = || status.signal().map(|signal| 128 + signal);
    status.code().or_else(signal).and_then(|code| u8::try_from(code).ok()).unwrap_or(failure::NEGATIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_by_a_signal_is_told_as_shells_do() {
        assert_eq!(code(ExitStatus::from_raw(0)), 0);
        assert_eq!(code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(code(ExitStatus::from_raw(15)), 143);
    }
}
