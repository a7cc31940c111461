//! The processes of a demo: started, watched, disturbed on request, ended in order.

use super::silence::{Silence, Verdict};
use crate::failure;
use crate::launch::free_port;
use crate::launch::rings::Rings;
use crate::launch::service::{Service, Workshop, last_line};
use adaptis_executor::launcher::{Fault, Process, What, end_all, exit_text};
use adaptis_link::{Client, Limits, Security};
use adaptis_proto::message::{Answer, Ask, FromCoordinator, Status, ToCoordinator};
use adaptis_proto::wire;
use adaptis_ring::Reader;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a part gets to end in order.
const GRACE: Duration = Duration::from_secs(8);
/// What the coordinator gets to say why a rank failed, before it is told without its word.
const REASON_TIMEOUT: Duration = Duration::from_secs(5);
/// What the coordinator gets to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// What a session is started with.
pub struct Setup {
    /// The run folder.
    pub dir: PathBuf,
    /// Folder of the rings, in memory.
    pub rings: Rings,
    /// Names of the devices.
    pub devices: Vec<String>,
    /// How many iterations are trained.
    pub iterations: u64,
    /// Arguments for the coordinator beside where it listens.
    pub coordinator: Vec<String>,
    /// Faults that are the launcher's to make.
    pub faults: Vec<Fault>,
}

/// The running parts.
pub struct Session {
    setup: Setup,
    program: PathBuf,
    coordinator: Service,
    agents: Vec<Service>,
    ranks: Vec<Process>,
    rings: Vec<Option<Reader>>,
    client: Client,
    asked: Option<Instant>,
    resume: Vec<(Instant, usize)>,
    notices: Vec<String>,
    /// What the coordinator said last.
    pub status: Status,
    /// When it said so.
    heard: Instant,
    /// Since when a rank is lost.
    lost_since: Option<Instant>,
    silence: Silence,
    /// Page of the coordinator.
    pub page: String,
}

/// What a look at the session found.
pub enum Look {
    /// It goes on.
    Running,
    /// All iterations are done and recorded.
    Finished,
}

/// A rank that left before the end.
struct Lost {
    /// Its name, and how it ended.
    how: String,
    log: PathBuf,
    /// It did not end because training failed, which it would have told the coordinator: killed, told to stop, say.
    is_untold: bool,
}

impl Session {
    /// Starts all parts.
    pub fn start(setup: Setup) -> Result<Session> {
        let program = std::env::current_exe().context("where this program stands")?;
        let address = format!("tcp://127.0.0.1:{}", free_port()?);
        let http = format!("127.0.0.1:{}", free_port()?);
        let mut arguments = vec!["coordinator".to_owned(), "--dir".into(), text(&setup.dir)];
        arguments.extend(["--listen".into(), address.clone(), "--http".into(), http.clone()]);
        arguments.extend(setup.coordinator.iter().cloned());
        let workshop = Workshop { program: &program, dir: &setup.dir };
        let coordinator = Service::start(&workshop, "coordinator", arguments)?;
        let identity = format!("demo/{}", std::process::id());
        let client = Client::connect(&address, &identity, &Security::Open, Limits::default())?;
        let mut agents = Vec::new();
        let mut ranks = Vec::new();
        for device in &setup.devices {
            let ring = text(&setup.rings.path().join(device));
            // What this host can do says nothing of the card that it emulates.
            let mut arguments = vec!["agent".to_owned(), "--no-calibration".into(), "--device".into(), device.clone()];
            arguments.extend(["--ring".into(), ring.clone(), "--coordinator".into(), address.clone()]);
            arguments.extend(["--spool".into(), text(&setup.dir.join("spool").join(device))]);
            agents.push(Service::start(&workshop, &format!("agent {device}"), arguments)?);
            let mut arguments = vec!["rank".to_owned(), "--device".into(), device.clone()];
            arguments.extend(["--ring".into(), ring, "--coordinator".into(), address.clone()]);
            arguments.extend(["--emulation".into(), text(&setup.dir.join("emulation.json"))]);
            ranks.push(workshop.start(&format!("rank {device}"), &arguments)?);
        }
        Ok(Session {
            rings: setup.devices.iter().map(|_| None).collect(),
            setup,
            program,
            coordinator,
            agents,
            ranks,
            client,
            asked: None,
            resume: Vec::new(),
            notices: Vec::new(),
            status: Status::default(),
            heard: Instant::now(),
            lost_since: None,
            silence: Silence::begin(Instant::now()),
            page: format!("http://{http}"),
        })
    }

    /// The iteration that the ranks are in, by their own word.
    pub fn step(&mut self) -> u64 {
        for (reader, device) in self.rings.iter_mut().zip(&self.setup.devices) {
            if reader.is_none() {
                *reader = Reader::open(&self.setup.rings.path().join(device)).ok();
            }
        }
        self.rings.iter().flatten().map(|reader| reader.step().0).max().unwrap_or(0)
    }

    /// What has happened to the parts since the last look, for people.
    pub fn notices(&mut self) -> impl Iterator<Item = String> {
        self.notices.drain(..)
    }

    /// Whether the coordinator has not been heard for a while.
    pub fn coordinator_away(&self) -> bool {
        self.heard.elapsed() > Duration::from_secs(2)
    }

    /// Looks after everything once.
    ///
    /// # Errors
    /// A rank ended, or a part would not stay up: the demo is over, and why.
    pub fn look(&mut self, step: u64) -> Result<Look> {
        self.listen()?;
        self.disturb(step)?;
        self.restart()?;
        if self.status.state == adaptis_proto::message::State::Finished {
            return Ok(Look::Finished);
        }
        let lost = self.lost_rank();
        let now = Instant::now();
        self.lost_since = lost.as_ref().and(self.lost_since.or(Some(now)));
        // The coordinator hears of a failure from all ranks, and knows whose it is.
        if let Some(reason) = self.status.failure.as_ref().filter(|_| !lost.as_ref().is_some_and(|lost| lost.is_untold))
        {
            let logs = self.setup.dir.join("logs");
            return Err(failure::negative(format!("the run failed: {reason} (logs: {})", logs.display())));
        }
        match lost {
            Some(lost) if lost.is_untold || self.lost_since.is_some_and(|since| since + REASON_TIMEOUT <= now) => {
                Err(failure::negative(format!(
                    "{} in iteration {step}, and the demo with it: going on without a lost rank is not part of this \
                     version. Its last words: {} (log: {})",
                    lost.how,
                    last_line(&lost.log),
                    lost.log.display()
                )))
            }
            _ => Ok(Look::Running),
        }
    }

    /// Which rank left before the end. Of several the one that was ended from outside: the others fail for the want of
    /// it.
    fn lost_rank(&mut self) -> Option<Lost> {
        let iterations = self.setup.iterations;
        let is_early = |ring: &Option<Reader>| ring.as_ref().map_or(0, |ring| ring.step().0) + 1 < iterations;
        let (ranks, rings) = (&mut self.ranks, &self.rings);
        let ended = ranks.iter_mut().zip(rings).filter_map(|(rank, ring)| {
            let status = rank.poll()?;
            // One that is dismissed, or told to stop, ends well: the former in the last iteration.
            (!status.success() || is_early(ring)).then_some((&rank.name, status))
        });
        let (name, status) = ended.min_by_key(|(_, status)| status.code() == Some(failure::NEGATIVE.into()))?;
        let log = Workshop { program: &self.program, dir: &self.setup.dir }.log(name);
        let how = match status.success() {
            true => format!("{name} left, told to stop,"),
            false => format!("{name} ended with {}", exit_text(status)),
        };
        Some(Lost { how, log, is_untold: status.code() != Some(failure::NEGATIVE.into()) })
    }

    fn listen(&mut self) -> Result<()> {
        while let Some(bytes) = self.client.try_receive()? {
            match wire::decode(&bytes) {
                Ok(FromCoordinator::Answer(Answer::Status(status))) => {
                    self.status = *status;
                    self.heard = Instant::now();
                    self.asked = None;
                }
                Ok(FromCoordinator::Answer(Answer::Failed { reason })) => {
                    self.notices.push(format!("the coordinator cannot say where things stand: {reason}"));
                }
                _ => {}
            }
        }
        if self.asked.is_none_or(|asked| asked.elapsed() > Duration::from_secs(1)) {
            self.asked = Some(Instant::now());
            // A full queue means that the coordinator is away: it is asked again in a second.
            let _ = self.client.send(wire::encode(&ToCoordinator::Ask(Ask::Status)));
        }
        Ok(())
    }

    fn disturb(&mut self, step: u64) -> Result<()> {
        let now = Instant::now();
        for (_, rank) in self.resume.extract_if(.., |(until, _)| *until <= now) {
            self.ranks[rank].signal(libc::SIGCONT);
        }
        for fault in self.setup.faults.extract_if(.., |fault| fault.iteration <= step).collect::<Vec<_>>() {
            let at = |name: &String| {
                let index = self.setup.devices.iter().position(|device| device == name);
                index.context("faults were checked against the devices")
            };
            match &fault.what {
                What::KillCoordinator => self.coordinator.kill(),
                What::KillAgent { device } => self.agents[at(device)?].kill(),
                What::KillRank { device } => self.ranks[at(device)?].signal(libc::SIGKILL),
                What::Pause { device, duration } => {
                    let rank = at(device)?;
                    self.ranks[rank].signal(libc::SIGSTOP);
                    self.resume.push((now + *duration, rank));
                }
                // The emulated devices make these themselves.
                What::Throttle { .. } | What::SlowLink { .. } => {}
            }
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        // A rank makes its ring when it is told to begin.
        let last = self.setup.iterations.saturating_sub(1);
        let is_training = |ring: &Option<Reader>| ring.as_ref().is_some_and(|ring| ring.step().0 < last);
        let is_training = self.rings.iter().any(is_training);
        self.judge_silence(is_training)?;
        let workshop = Workshop { program: &self.program, dir: &self.setup.dir };
        let services = std::iter::once(&mut self.coordinator).chain(&mut self.agents);
        for service in services {
            self.notices.extend(service.tend(&workshop, is_training)?);
        }
        Ok(())
    }

    fn judge_silence(&mut self, is_training: bool) -> Result<()> {
        let heard = self.heard.max(self.coordinator.started());
        let silent =
            |patience: Duration| format!("the coordinator runs but has not answered for {} s", patience.as_secs());
        if self.coordinator.process.poll().is_some() {
            return Ok(());
        }
        match self.silence.look(Instant::now(), heard, is_training) {
            None => {}
            Some(Verdict::Restart(patience)) => {
                self.notices.push(format!("{}: it is ended and started again", silent(patience)));
                self.coordinator.kill();
            }
            Some(Verdict::GiveUp(patience)) => {
                let log = Workshop { program: &self.program, dir: &self.setup.dir }.log("coordinator");
                let silent = silent(patience);
                return Err(failure::environment(format!("{silent}, again and again (log: {})", log.display())));
            }
        }
        Ok(())
    }

    /// Has the report written.
    pub fn report(&mut self) -> Result<()> {
        let asked = Instant::now();
        while asked.elapsed() < ANSWER_TIMEOUT {
            self.restart()?;
            let _ = self.client.send(wire::encode(&ToCoordinator::Ask(Ask::Report)));
            let wait = Instant::now() + Duration::from_secs(2);
            while let Some(bytes) = self.client.receive(wait.saturating_duration_since(Instant::now()))? {
                match wire::decode(&bytes) {
                    Ok(FromCoordinator::Answer(Answer::Report { .. })) => return Ok(()),
                    Ok(FromCoordinator::Answer(Answer::Failed { reason })) => {
                        return Err(failure::environment(format!("the report could not be written: {reason}")));
                    }
                    _ => {}
                }
            }
        }
        Err(failure::environment(format!("the coordinator wrote no report within {} s", ANSWER_TIMEOUT.as_secs())))
    }

    /// Ends all parts, ranks first, and takes away what they shared in memory.
    pub fn end(mut self) {
        end_all(&mut self.ranks, GRACE);
        let mut services: Vec<Process> = self.agents.drain(..).map(|service| service.process).collect();
        end_all(&mut services, GRACE);
        end_all(std::slice::from_mut(&mut self.coordinator.process), GRACE);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Spools are empty after an orderly end; what is left in one is kept.
        let spool = self.setup.dir.join("spool");
        for device in &self.setup.devices {
            let _ = std::fs::remove_file(spool.join(device).join("lock"));
            let _ = std::fs::remove_dir(spool.join(device));
        }
        let _ = std::fs::remove_dir(spool);
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
