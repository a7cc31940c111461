//! Child processes that end with their parent.
//!
//! Each is in a process group of its own, so that Ctrl-C at the terminal reaches the launcher alone, which then ends its
//! children in order. Should the launcher itself be killed, the kernel sends every child the signal that it was started
//! with ([`OnOrphaned`], by `PR_SET_PDEATHSIG`). That signal is bound to the thread that started the child: start
//! children from a thread that lives as long as the launcher does.

use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A child and what it is called in messages.
#[derive(Debug)]
pub struct Process {
    /// `rank gpu1`.
    pub name: String,
    child: Child,
    ended: Option<ExitStatus>,
}

/// What becomes of a child whose launcher was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOrphaned {
    /// KILL: for one that holds nothing durable. It ends even while it is stopped.
    Kill,
    /// TERM: for one that has files to close. While it is stopped, the signal waits until it goes on.
    Terminate,
}

impl OnOrphaned {
    fn signal(self) -> libc::c_int {
        match self {
            OnOrphaned::Kill => libc::SIGKILL,
            OnOrphaned::Terminate => libc::SIGTERM,
        }
    }
}

/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(10);

impl Process {
    /// Starts `program` with its output appended to a log; `orphaned` ends it should this process die first.
    ///
    /// # Errors
    /// The log cannot be opened, or the program cannot be started.
    pub fn start(
        name: String,
        program: &Path,
        arguments: &[String],
        log: &Path,
        orphaned: OnOrphaned,
    ) -> io::Result<Process> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let (parent, signal) = (std::process::id(), orphaned.signal());
        // SAFETY: between fork and exec only async-signal-safe calls are made: prctl, getppid and _exit.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, signal) != 0 {
                    return Err(io::Error::last_os_error());
                }
                // The parent may have died before the call took effect.
                if libc::getppid() as u32 != parent {
                    libc::_exit(1);
                }
                Ok(())
            });
        }
        Ok(Process { name, child: command.spawn()?, ended: None })
    }

    /// Its exit, if it ended.
    pub fn poll(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Sends a signal, if it still runs.
    pub fn signal(&mut self, signal: i32) {
        if self.poll().is_none() {
            // SAFETY: the child was not waited for, so its number still names it.
            unsafe { libc::kill(self.child.id() as i32, signal) };
        }
    }

    /// Waits until it ends or the time is over.
    pub fn wait(&mut self, most: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + most;
        loop {
            match self.poll() {
                Some(status) => return Some(status),
                None if Instant::now() >= end => return None,
                None => std::thread::sleep(POLL),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.poll().is_none() {
            // A stopped process takes no signal but these.
            self.signal(libc::SIGKILL);
            self.signal(libc::SIGCONT);
            let _ = self.child.wait();
        }
    }
}

/// Ends processes: TERM to all, and KILL to those that are still there after `grace`.
pub fn end_all(processes: &mut [Process], grace: Duration) {
    for process in processes.iter_mut() {
        process.signal(libc::SIGCONT);
        process.signal(libc::SIGTERM);
    }
    let end = Instant::now() + grace;
    for process in processes.iter_mut() {
        if process.wait(end.saturating_duration_since(Instant::now())).is_none() {
            process.signal(libc::SIGKILL);
            process.wait(grace);
        }
    }
}

/// An exit in words.
pub fn exit_text(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown end".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orphan_ends_as_it_was_started_to() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = folder.path().join("log");
        // The signal is bound to the thread that started the child.
        let orphan = |orphaned, while_it_lives: i32| {
            let (log, arguments) = (log.clone(), ["60".to_owned()]);
            let thread = std::thread::spawn(move || {
                let started = Process::start("sleeper".into(), Path::new("/bin/sleep"), &arguments, &log, orphaned);
                let mut process = started.expect("it starts");
                process.signal(while_it_lives);
                process
            });
            let mut process = thread.join().expect("the thread ends well");
            process.wait(Duration::from_secs(20)).and_then(|status| status.signal())
        };
        assert_eq!(orphan(OnOrphaned::Kill, libc::SIGSTOP), Some(libc::SIGKILL), "even while it is stopped");
        assert_eq!(orphan(OnOrphaned::Terminate, libc::SIGCONT), Some(libc::SIGTERM));
    }

    #[test]
    fn a_child_ends_with_its_owner() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = folder.path().join("log");
        let arguments = ["-c".to_owned(), "echo here; exec sleep 60".to_owned()];
        let mut process =
            Process::start("sleeper".into(), Path::new("/bin/sh"), &arguments, &log, OnOrphaned::Terminate)
                .expect("a shell starts");
        let said = || std::fs::read_to_string(&log).expect("the log is there");
        let patience = Instant::now() + Duration::from_secs(30);
        while said().is_empty() && Instant::now() < patience {
            std::thread::sleep(POLL);
        }
        assert_eq!(process.poll(), None);
        let id = process.child.id() as i32;
        end_all(std::slice::from_mut(&mut process), Duration::from_secs(5));
        assert_eq!(process.poll().and_then(|status| status.signal()), Some(libc::SIGTERM));
        drop(process);
        // SAFETY: signal 0 only asks whether the process is there.
        assert_ne!(unsafe { libc::kill(id, 0) }, 0);
        assert_eq!(said(), "here\n");
    }
}
