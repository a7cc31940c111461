//! A part that is started again whenever it ends: the coordinator, an agent.
//!
//! 1. While ranks train, no end of a service ends anything: training does not need it. One that does not stay up is
//!    started again more and more rarely; one that was up for a while begins with a fresh count.
//! 2. Before training has begun and after it, one that does not stay up ends the demo: nothing would ever begin, or be
//!    recorded. Ends while ranks trained do not count against it, and what they put off is not waited for.

use crate::failure;
use adaptis_executor::launcher::{OnOrphaned, Process, exit_text};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Early ends, one after the other, before a demo that has not begun gives up.
const EARLY_ENDS_MAX: u32 = 5;
/// Who was up for longer than this ends no longer early.
const SETTLED: Duration = Duration::from_secs(10);
/// The first early end is followed by a start at once, the second by one after this long, each further one after twice
/// as long as the one before.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Of a log, at most so many bytes are looked at for its last words.
const LAST_WORDS_BYTES_MAX: u64 = 4096;

/// How often a part ended early, one time after the other.
#[derive(Debug, Default)]
struct Record {
    early_ends: u32,
    /// Ranks trained at the last end.
    has_trained: bool,
}

impl Record {
    /// It ended after having been up for so long: the pause before its next start; none if it is given up.
    fn ended(&mut self, up: Duration, is_training: bool) -> Option<Duration> {
        let begins_anew = up > SETTLED || self.has_trained != is_training;
        self.early_ends = if begins_anew { 1 } else { self.early_ends.saturating_add(1) };
        self.has_trained = is_training;
        let doublings = self.early_ends.checked_sub(2);
        let pause = doublings.map_or(Duration::ZERO, |times| PAUSE.saturating_mul(1 << times.min(16)).min(PAUSE_MAX));
        (is_training || self.early_ends <= EARLY_ENDS_MAX).then_some(pause)
    }
}

/// Where parts come from and where they write.
pub(crate) struct Workshop<'a> {
    /// This program.
    pub(crate) program: &'a Path,
    /// The run folder.
    pub(crate) dir: &'a Path,
}

impl Workshop<'_> {
    /// Starts a part. A rank holds nothing that lasts, so it just goes should this process be killed; the others end in
    /// order.
    pub(crate) fn start(&self, name: &str, arguments: &[String]) -> Result<Process> {
        let orphaned = match arguments.first().is_some_and(|part| part == "rank") {
            true => OnOrphaned::Kill,
            false => OnOrphaned::Terminate,
        };
        Process::start(name.to_owned(), self.program, arguments, &self.log(name), orphaned)
            .with_context(|| format!("the {name} could not be started"))
    }

    /// Where a part writes what it says.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{}.log", name.replace(' ', "-")))
    }
}

/// A part that is started again when it ends.
pub(crate) struct Service {
    pub(crate) process: Process,
    arguments: Vec<String>,
    record: Record,
    /// When it was last started, or should have been.
    started: Instant,
    /// It has ended and is started again then.
    again: Option<Instant>,
    /// The next end is one that a fault ordered.
    killed: bool,
}

impl Service {
    pub(crate) fn start(workshop: &Workshop<'_>, name: &str, arguments: Vec<String>) -> Result<Service> {
        let process = workshop.start(name, &arguments)?;
        let (record, started) = (Record::default(), Instant::now());
        Ok(Service { process, arguments, record, started, again: None, killed: false })
    }

    /// When it was last started, or should have been.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// How often it ended early, one time after the other.
    pub(crate) fn early_ends(&self) -> u32 {
        self.record.early_ends
    }

    /// What is to be started again after a pause is so at once.
    pub(crate) fn hasten(&mut self) {
        self.again = self.again.map(|_| Instant::now());
    }

    /// Ends it on purpose.
    pub(crate) fn kill(&mut self) {
        self.killed = true;
        self.process.signal(libc::SIGKILL);
    }

    /// Starts it again if it has ended; answers what there is to say of an end that nobody ordered.
    ///
    /// # Errors
    /// Nobody trains, and it does not stay up or was started wrongly.
    pub(crate) fn tend(&mut self, workshop: &Workshop<'_>, is_training: bool) -> Result<Option<String>> {
        let Some(status) = self.process.poll() else { return Ok(None) };
        let name = self.process.name.clone();
        let is_over = self.record.has_trained && !is_training;
        let is_due = self.again.is_some_and(|at| is_over || Instant::now() >= at);
        if std::mem::take(&mut self.killed) || is_due {
            self.started = Instant::now();
            return match workshop.start(&name, &self.arguments) {
                Ok(process) => {
                    (self.process, self.again) = (process, None);
                    Ok(None)
                }
                Err(error) => self.postpone(is_training).map_or(Err(error), |_| Ok(None)),
            };
        }
        if self.again.is_some() {
            return Ok(None);
        }
        let log = workshop.log(&name);
        let (end, words) = (exit_text(status), last_line(&log));
        // Wrong arguments are as wrong the next time.
        let is_hopeless = status.code() == Some(i32::from(failure::USAGE)) && !is_training;
        match self.postpone(is_training).filter(|_| !is_hopeless) {
            Some(pause) => {
                let when = match pause.is_zero() {
                    true => String::new(),
                    false => {
                        let training = if is_training { "; training does not wait for it" } else { "" };
                        format!(" in {} s, since it does not stay up{training}", pause.as_secs_f64())
                    }
                };
                Ok(Some(format!("the {name} ended ({end}) and is started again{when}. Its last words: {words}")))
            }
            None => Err(failure::environment(format!(
                "the {name} does not stay up ({end}). Its last words: {words} (log: {})",
                log.display()
            ))),
        }
    }

    fn postpone(&mut self, is_training: bool) -> Option<Duration> {
        let pause = self.record.ended(self.started.elapsed(), is_training)?;
        self.again = Some(Instant::now() + pause);
        Some(pause)
    }
}

/// The last line of a log that says anything.
pub(crate) fn last_line(log: &Path) -> String {
    let text = tail(log).unwrap_or_default();
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("(it said nothing)").to_owned()
}

fn tail(log: &Path) -> std::io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(log)?;
    let from = file.metadata()?.len().saturating_sub(LAST_WORDS_BYTES_MAX);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Duration = Duration::from_millis(10);

    /// The folder and the workshop of a shell's parts, for a test to work in.
    fn in_a_workshop(test: impl FnOnce(&Workshop<'_>)) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("logs")).expect("a folder");
        test(&Workshop { program: Path::new("/bin/sh"), dir: folder.path() });
    }

    fn part(workshop: &Workshop<'_>, script: &str) -> Service {
        Service::start(workshop, "part", vec!["-c".to_owned(), script.to_owned()]).expect("it starts")
    }

    #[test]
    fn while_ranks_train_nothing_is_given_up() {
        let mut record = Record::default();
        let pauses: Vec<f64> =
            (0..10).map(|_| record.ended(AT_ONCE, true).expect("it is started again").as_secs_f64()).collect();
        assert_eq!(pauses, [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]);
        assert_eq!(record.ended(2 * SETTLED, true), Some(Duration::ZERO), "who was up for a while begins anew");
        assert_eq!(record.ended(AT_ONCE, true), Some(PAUSE));
        record.early_ends = u32::MAX;
        assert_eq!(record.ended(AT_ONCE, true), Some(PAUSE_MAX));
    }

    #[test]
    fn before_training_begins_it_must_stay_up() {
        let mut record = Record::default();
        let starts = (0..100).take_while(|_| record.ended(AT_ONCE, false).is_some()).count();
        assert_eq!(starts, EARLY_ENDS_MAX as usize);
    }

    #[test]
    fn what_ended_during_training_is_not_held_against_it_afterwards() {
        let mut record = Record::default();
        (0..10).for_each(|_| assert!(record.ended(AT_ONCE, true).is_some()));
        assert_eq!(record.ended(AT_ONCE, false), Some(Duration::ZERO));
        let starts = (0..100).take_while(|_| record.ended(AT_ONCE, false).is_some()).count();
        assert_eq!(starts, EARLY_ENDS_MAX as usize - 1);
    }

    #[test]
    fn what_training_put_off_is_due_when_it_is_over() {
        in_a_workshop(|workshop| {
            let mut service = part(workshop, "exec sleep 60");
            service.record.early_ends = u32::MAX - 1;
            service.record.has_trained = true;
            service.process.signal(libc::SIGKILL);
            service.process.wait(Duration::from_secs(30));
            let said = service.tend(workshop, true).expect("training goes on").expect("it ended");
            assert!(said.contains("in 30 s"), "{said}");
            assert!(service.process.poll().is_some());
            assert_eq!(service.tend(workshop, false).expect("it starts"), None);
            assert!(service.process.poll().is_none(), "it runs again");
            service.process.signal(libc::SIGKILL);
        });
    }

    #[test]
    fn a_part_is_started_again_after_its_pause_and_said_once() {
        in_a_workshop(|workshop| {
            let mut service = part(workshop, "echo broken; exit 2");
            let mut said = Vec::new();
            let patience = Instant::now() + Duration::from_secs(30);
            while said.len() < 3 && Instant::now() < patience {
                said.extend(service.tend(workshop, true).expect("training goes on"));
                std::thread::sleep(AT_ONCE);
            }
            assert_eq!(said[0], "the part ended (exit code 2) and is started again. Its last words: broken");
            assert!(said[1].contains("in 0.5 s, since it does not stay up"), "{}", said[1]);
            assert!(said[2].contains("in 1 s"), "{}", said[2]);
            let mut service = part(workshop, "echo broken; exit 2");
            service.process.wait(Duration::from_secs(30));
            let error = service.tend(workshop, false).expect_err("wrong usage, before training").to_string();
            assert!(error.contains("does not stay up (exit code 2)"), "{error}");
        });
    }
}
