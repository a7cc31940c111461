//! What runs beside the command: the coordinator, and an agent for each ring that a rank makes.

use crate::launch::free_port;
use crate::launch::rings::Rings;
use crate::launch::service::{Service, Workshop};
use adaptis_executor::launcher::{Process, end_all};
use adaptis_link::{Client, Limits, Security};
use adaptis_proto::message::{Answer, Ask, FromCoordinator, State, Status, ToCoordinator};
use adaptis_proto::wire;
use adaptis_ring::Reader;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a part gets to end in order.
const GRACE: Duration = Duration::from_secs(8);
/// What it gets where somebody is in a hurry.
const GRACE_HURRIED: Duration = Duration::from_secs(2);
/// After the command's end, what the coordinator gets to record the end of the run.
const RECORDING: Duration = Duration::from_secs(10);
/// The same where the command failed: what its ranks could say of that they have said.
const RECORDING_FAILED: Duration = Duration::from_secs(2);
/// So often may the coordinator end after the command's end before it is no longer waited for.
const ENDS_AFTER_MAX: u32 = 2;
/// What it gets to write the report.
const REPORTING: Duration = Duration::from_secs(10);
/// What it gets to say where things stand.
const ANSWER: Duration = Duration::from_secs(3);
/// How often the coordinator is asked where things stand.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How often a wait looks again.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What the parts are started with.
pub struct Setup {
    /// The run folder.
    pub dir: PathBuf,
    /// A coordinator that others started.
    pub coordinator: Option<String>,
    /// Where ours is to be reached.
    pub listen: Option<String>,
    /// Where its pages are to be.
    pub http: Option<String>,
    /// Folder of keys.
    pub keys: Option<PathBuf>,
    /// Of our own link to it.
    pub security: Security,
    /// Its other arguments.
    pub options: Vec<String>,
}

/// The running parts.
pub struct Beside {
    dir: PathBuf,
    program: PathBuf,
    keys: Option<PathBuf>,
    address: String,
    /// None where the pages are nobody's or another machine's.
    page: Option<String>,
    /// Of our own coordinator.
    own: Option<Own>,
    rings: Rings,
    agents: BTreeMap<String, Service>,
}

/// Our own coordinator.
struct Own {
    service: Service,
    client: Client,
    asked: Instant,
    status: Status,
    has_answered: bool,
    told: Option<String>,
}

impl Beside {
    /// Starts a coordinator, if there is none yet.
    pub fn start(setup: Setup) -> Result<Beside> {
        let program = std::env::current_exe().context("where this program stands")?;
        let rings = Rings::make(&setup.dir.join("rings"))?;
        let Setup { dir, coordinator, listen, http, keys, security, options } = setup;
        if let Some(address) = coordinator {
            let (page, own, agents) = (None, None, BTreeMap::new());
            return Ok(Beside { dir, program, keys, address, page, own, rings, agents });
        }
        let address = match listen {
            Some(address) => address,
            None => format!("tcp://127.0.0.1:{}", free_port()?),
        };
        let http = match http {
            // The coordinator would choose one, and not tell.
            Some(http) if http.ends_with(":0") => format!("{}{}", &http[..http.len() - 1], free_port()?),
            Some(http) => http,
            None => format!("127.0.0.1:{}", free_port()?),
        };
        let mut arguments = vec!["coordinator".to_owned(), "--dir".into(), text(&dir)];
        arguments.extend(["--listen".into(), address.clone(), "--http".into(), http.clone()]);
        arguments.extend(options);
        arguments.extend(keys_argument(keys.as_deref()));
        let service = Service::start(&Workshop { program: &program, dir: &dir }, "coordinator", arguments)?;
        let identity = format!("run/{}", std::process::id());
        let client = Client::connect(&address, &identity, &security, Limits::default())?;
        let (asked, status) = (Instant::now(), Status::default());
        let own = Own { service, client, asked, status, has_answered: false, told: None };
        let page = (http != "none").then(|| format!("http://{http}/"));
        Ok(Beside { dir, program, keys, address, page, own: Some(own), rings, agents: BTreeMap::new() })
    }

    /// Where ranks reach the coordinator.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where ranks make their rings.
    pub fn rings(&self) -> &Path {
        self.rings.path()
    }

    /// Where people look, for the first line.
    pub fn page(&self) -> String {
        self.page.as_ref().map_or(String::new(), |page| format!("page: {page}   "))
    }

    /// Looks after everything once; what there is to say. Nothing that goes wrong here is more than a notice.
    pub fn look(&mut self) -> Vec<String> {
        let mut notices = self.start_agents();
        let workshop = Workshop { program: &self.program, dir: &self.dir };
        let services = self.own.iter_mut().map(|own| &mut own.service).chain(self.agents.values_mut());
        for service in services {
            match service.tend(&workshop, true) {
                Ok(notice) => notices.extend(notice),
                Err(error) => notices.push(format!("{error:#}")),
            }
        }
        if let Some(own) = &mut self.own {
            notices.extend(own.listen());
        }
        notices
    }

    /// An agent for each ring that none has.
    fn start_agents(&mut self) -> Vec<String> {
        let names = std::fs::read_dir(self.rings.path()).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let new: Vec<String> = names.filter(|name| !name.starts_with('.') && !self.agents.contains_key(name)).collect();
        let mut notices = Vec::new();
        for device in new {
            let ring = self.rings.path().join(&device);
            if Reader::open(&ring).is_err() {
                continue;
            }
            let mut arguments = vec!["agent".to_owned(), "--no-calibration".into(), "--device".into(), device.clone()];
            arguments.extend(["--ring".into(), text(&ring), "--coordinator".into(), self.address.clone()]);
            arguments.extend(["--spool".into(), text(&self.dir.join("spool").join(&device))]);
            arguments.extend(keys_argument(self.keys.as_deref()));
            let workshop = Workshop { program: &self.program, dir: &self.dir };
            match Service::start(&workshop, &format!("agent {device}"), arguments) {
                Ok(service) => drop(self.agents.insert(device, service)),
                Err(error) => notices.push(format!("{error:#}")),
            }
        }
        notices
    }

    /// The command is over: the run is recorded, the report written, and all parts end. What there is to say, and whether
    /// there is a report.
    ///
    /// Somebody who is in a hurry gets neither the record's end nor a report.
    pub fn end(mut self, has_failed: bool, is_hurried: &mut dyn FnMut() -> bool) -> (Vec<String>, bool) {
        let mut notices = Vec::new();
        if let Some(own) = &mut self.own {
            own.refresh();
        }
        let begun = Instant::now();
        let recording = if has_failed { RECORDING_FAILED } else { RECORDING };
        let mut hurried = false;
        let ends_before = self.own.as_ref().map_or(0, |own| own.service.early_ends());
        let does_not_stay_up = |own: &Own| own.service.early_ends() >= ends_before.saturating_add(ENDS_AFTER_MAX);
        while self.own.as_ref().is_some_and(|own| own.is_recording() && !does_not_stay_up(own))
            && begun.elapsed() < recording
            && !hurried
        {
            hurried = is_hurried();
            if let Some(own) = &mut self.own {
                own.service.hasten();
            }
            notices.extend(self.look());
            std::thread::sleep(LOOK_EVERY);
        }
        let there: Vec<String> = self.agents.keys().cloned().collect();
        let mut agents: Vec<Process> =
            std::mem::take(&mut self.agents).into_values().map(|agent| agent.process).collect();
        hurried |= is_hurried();
        if !hurried && let Some(own) = self.own.as_ref().filter(|own| does_not_stay_up(own)) {
            hurried = true;
            let name = own.service.process.name.replace(' ', "-");
            let log = self.dir.join("logs").join(format!("{name}.log"));
            notices
                .push(format!("the coordinator does not stay up, and is not waited for: {} tells why", log.display()));
        }
        let grace = if hurried { GRACE_HURRIED } else { GRACE };
        end_all(&mut agents, grace);
        let mut is_reported = false;
        if let Some(mut own) = self.own.take() {
            match own.status.state {
                State::Waiting => notices.push(own.why_nothing(&there, &self.dir)),
                _ if hurried => {}
                _ => is_reported = own.report(is_hurried),
            }
            end_all(std::slice::from_mut(&mut own.service.process), grace);
        }
        let spool = self.dir.join("spool");
        for device in std::fs::read_dir(&spool).into_iter().flatten().flatten() {
            // Empty after an orderly end; what is left in one is kept.
            let _ = std::fs::remove_file(device.path().join("lock"));
            let _ = std::fs::remove_dir(device.path());
        }
        let _ = std::fs::remove_dir(spool);
        (notices, is_reported)
    }
}

impl Own {
    /// Why there is no summary of a run that, as far as is known, did not begin.
    fn why_nothing(&self, there: &[String], dir: &Path) -> String {
        let log = dir.join("logs").join("coordinator.log");
        if !self.has_answered {
            return format!(
                "the coordinator never answered, so there is no summary; {} tells what it did, and what agents could not \
                 send it, if anything, is kept beside it in spool",
                log.display()
            );
        }
        match there {
            [] => "no rank of the command spoke to the coordinator, so nothing was measured. Ranks do so by \
                   `adaptis.Schedule` or `adaptis.observe` of the Python package, and, where it is installed, by the stages \
                   of torch.distributed.pipelining or the steps of an optimizer of torch by themselves; a job of a few steps \
                   ends too early"
                .to_owned(),
            some => format!(
                "nothing was measured: there were ranks of ours ({}), but the run did not begin. Either not all of them came \
                 to the coordinator, or the job ended before it was followed, as one of a few steps does; {} tells",
                some.join(", "),
                log.display()
            ),
        }
    }

    /// Takes its answers and asks again; its last decision, where it is new.
    fn listen(&mut self) -> Option<String> {
        while let Ok(Some(bytes)) = self.client.try_receive() {
            if let Ok(FromCoordinator::Answer(Answer::Status(status))) = wire::decode(&bytes) {
                (self.status, self.has_answered) = (*status, true);
            }
        }
        if self.asked.elapsed() >= ASK_EVERY {
            self.asked = Instant::now();
            // A full queue means that it is away: it is asked again in a second.
            let _ = self.client.send(wire::encode(&ToCoordinator::Ask(Ask::Status)));
        }
        let decision = self.status.last_decision.clone()?;
        let step = self.status.last_decision_step.map_or(0, |step| step.0);
        let text = format!("iteration {step}: {decision}");
        if self.told.as_ref() == Some(&text) {
            return None;
        }
        self.told = Some(text.clone());
        Some(text)
    }

    /// Waits a little for where things stand now.
    fn refresh(&mut self) {
        let _ = self.client.send(wire::encode(&ToCoordinator::Ask(Ask::Status)));
        let begun = Instant::now();
        while begun.elapsed() < ANSWER {
            if let Ok(Some(bytes)) = self.client.receive(LOOK_EVERY)
                && let Ok(FromCoordinator::Answer(Answer::Status(status))) = wire::decode(&bytes)
            {
                (self.status, self.has_answered) = (*status, true);
                return;
            }
        }
    }

    /// Samples or last words are still on their way.
    fn is_recording(&self) -> bool {
        matches!(self.status.state, State::Training | State::Searching | State::Preparing)
    }

    /// Has the report written; whether it was.
    fn report(&mut self, is_hurried: &mut dyn FnMut() -> bool) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < REPORTING && !is_hurried() {
            let _ = self.client.send(wire::encode(&ToCoordinator::Ask(Ask::Report)));
            while let Ok(Some(bytes)) = self.client.receive(ASK_EVERY) {
                if let Ok(FromCoordinator::Answer(Answer::Report { .. })) = wire::decode(&bytes) {
                    return true;
                }
            }
        }
        false
    }
}

fn keys_argument(keys: Option<&Path>) -> Vec<String> {
    keys.map_or_else(Vec::new, |keys| vec!["--keys".to_owned(), text(keys)])
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
