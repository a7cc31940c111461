//! Who the ranks are: from the first Hello to a full roster, and who has fallen silent since.
//!
//! 1. The first rank to say Hello declares the job; whoever declares another one is turned away. Before the first
//!    generation the job is let go once all who declared it have been silent for as long as a heartbeat may take.
//! 2. A device has one process. Another may take its place only before the first generation, and only once the first
//!    one has been silent for as long as a heartbeat may take.
//! 3. A member of a generation is known by its incarnation; where it is reached follows from its latest message.
//!
//! Left out on purpose: joining and replacing after the first generation.

use crate::ledger::GenerationRecord;
use adaptis_proto::message::{DeviceCard, Job, Member, Rejection};
use adaptis_proto::sample::Place;
use adaptis_proto::{DeviceIndex, Incarnation, Term};

/// Where a rank is reached: the shell's name for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer(pub u64);

/// Most devices that a job may have.
pub const DEVICES_MAX: usize = 4_096;
/// Most layers that a model may have.
pub const LAYERS_MAX: usize = 65_536;

/// A rank that has been heard of.
#[derive(Clone, Debug, PartialEq)]
pub struct Rank {
    /// Which process.
    pub incarnation: Incarnation,
    /// Its device.
    pub card: DeviceCard,
    /// Where its peers reach it.
    pub endpoint: String,
    /// Where we reach it; none after a restart of ours, until it speaks.
    pub peer: Option<Peer>,
    /// When it was last heard of.
    pub heard_ns: u64,
    /// Where its training stands, if it said so under the present reign.
    pub place: Option<Place>,
    /// It has seen our term.
    pub is_introduced: bool,
}

/// The ranks of a job.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    job: Option<Job>,
    ranks: Vec<Option<Rank>>,
    is_formed: bool,
}

/// A Hello, as it came.
#[derive(Clone, Debug)]
pub struct Hello {
    /// Which process.
    pub incarnation: Incarnation,
    /// Its device.
    pub card: DeviceCard,
    /// What it trains.
    pub job: Job,
    /// Where its peers reach it.
    pub endpoint: String,
    /// Where its training stands.
    pub place: Option<Place>,
    /// Highest term it has seen.
    pub seen: Term,
}

impl Roster {
    /// The roster of a generation that stands in the ledger; its members count as heard of `now`.
    pub fn of(record: &GenerationRecord, now_ns: u64) -> Self {
        let rank = |(member, card): (&Member, &DeviceCard)| {
            Some(Rank {
                incarnation: member.incarnation,
                card: card.clone(),
                endpoint: member.endpoint.clone(),
                peer: None,
                heard_ns: now_ns,
                place: None,
                is_introduced: false,
            })
        };
        let ranks = record.members.iter().zip(&record.cards).map(rank).collect();
        Self { job: Some(record.job.clone()), ranks, is_formed: true }
    }

    /// The job, once declared.
    pub fn job(&self) -> Option<&Job> {
        self.job.as_ref()
    }

    /// How many devices the job has; 0 before it is declared.
    pub fn len(&self) -> usize {
        self.ranks.len()
    }

    /// No job was declared yet.
    pub fn is_empty(&self) -> bool {
        self.ranks.is_empty()
    }

    /// A rank, if it was heard of.
    pub fn rank(&self, device: DeviceIndex) -> Option<&Rank> {
        self.ranks.get(device.index())?.as_ref()
    }

    /// A rank, if it was heard of.
    pub fn rank_mut(&mut self, device: DeviceIndex) -> Option<&mut Rank> {
        self.ranks.get_mut(device.index())?.as_mut()
    }

    /// All ranks that were heard of.
    pub fn ranks(&self) -> impl Iterator<Item = (DeviceIndex, &Rank)> {
        self.ranks.iter().enumerate().filter_map(|(index, rank)| Some((index.into(), rank.as_ref()?)))
    }

    /// Everyone is there.
    pub fn is_full(&self) -> bool {
        !self.ranks.is_empty() && self.ranks.iter().all(Option::is_some)
    }

    /// Device of a process.
    pub fn device_of(&self, incarnation: Incarnation) -> Option<DeviceIndex> {
        self.ranks().find(|(_, rank)| rank.incarnation == incarnation).map(|(device, _)| device)
    }

    /// Takes note of a Hello.
    ///
    /// # Errors
    /// Why the rank can't take part.
    pub fn hello(&mut self, now_ns: u64, silence_ns: u64, peer: Peer, hello: Hello) -> Result<DeviceIndex, Rejection> {
        if self.is_deserted(now_ns, silence_ns) && self.job.as_ref() != Some(&hello.job) {
            *self = Roster::default();
        }
        let index = self.seat(now_ns, silence_ns, &hello)?;
        let Hello { incarnation, card, job, endpoint, place, .. } = hello;
        if self.job.is_none() {
            self.ranks = vec![None; job.devices.len()];
            self.job = Some(job);
        }
        self.ranks[index] =
            Some(Rank { incarnation, card, endpoint, peer: Some(peer), heard_ns: now_ns, place, is_introduced: true });
        Ok(index.into())
    }

    /// Nobody is there any more of a job that has not begun.
    fn is_deserted(&self, now_ns: u64, silence_ns: u64) -> bool {
        !self.is_formed && self.ranks().all(|(_, rank)| now_ns.saturating_sub(rank.heard_ns) >= silence_ns)
    }

    fn seat(&self, now_ns: u64, silence_ns: u64, hello: &Hello) -> Result<usize, Rejection> {
        match &self.job {
            None => check_job(&hello.job)?,
            Some(job) if job.run != hello.job.run => return Err(Rejection::OtherJob { running: job.run.clone() }),
            Some(job) if *job != hello.job => return Err(Rejection::JobsDiffer),
            Some(_) => {}
        }
        let name = &hello.card.name;
        let index = hello.job.devices.iter().position(|device| device == name);
        let index = index.ok_or_else(|| Rejection::UnknownDevice(name.clone()))?;
        match self.ranks.get(index).and_then(Option::as_ref) {
            Some(rank) if rank.incarnation == hello.incarnation => Ok(index),
            Some(rank) if self.is_formed || now_ns.saturating_sub(rank.heard_ns) < silence_ns => {
                Err(Rejection::DeviceTaken(name.clone()))
            }
            _ => Ok(index),
        }
    }

    /// Closes the roster: from now on its processes are members of a generation.
    ///
    /// # Panics
    /// If it is not full.
    pub fn form(&mut self) -> (Vec<Member>, Vec<DeviceCard>) {
        assert!(self.is_full(), "a generation is formed when every device has a rank");
        self.is_formed = true;
        self.ranks()
            .map(|(_, rank)| {
                let member = Member {
                    device: rank.card.name.clone(),
                    kind: rank.card.kind.clone(),
                    incarnation: rank.incarnation,
                    endpoint: rank.endpoint.clone(),
                };
                (member, rank.card.clone())
            })
            .unzip()
    }

    /// The rank that has been silent for longest, if for longer than `silence_ns`, and for how long.
    pub fn silent(&self, now_ns: u64, silence_ns: u64) -> Option<(DeviceIndex, u64)> {
        self.ranks()
            .map(|(device, rank)| (device, now_ns.saturating_sub(rank.heard_ns)))
            .filter(|&(_, waited_ns)| waited_ns >= silence_ns)
            .max_by_key(|&(_, waited_ns)| waited_ns)
    }

    /// Everyone counts as heard of now.
    pub fn hear_all(&mut self, now_ns: u64) {
        self.ranks.iter_mut().flatten().for_each(|rank| rank.heard_ns = now_ns);
    }

    /// A stretch of time counts as nobody's silence.
    pub fn forgive(&mut self, gap_ns: u64) {
        self.ranks.iter_mut().flatten().for_each(|rank| rank.heard_ns = rank.heard_ns.saturating_add(gap_ns));
    }

    /// When [`Roster::silent`] can next name someone.
    pub fn silence_deadline(&self, silence_ns: u64) -> Option<u64> {
        self.ranks().map(|(_, rank)| rank.heard_ns.saturating_add(silence_ns)).min()
    }
}

/// What a job must be so that any plan for it can exist.
fn check_job(job: &Job) -> Result<(), Rejection> {
    let mut names: Vec<_> = job.devices.iter().collect();
    names.sort();
    names.dedup();
    let findings: Vec<String> = [
        (job.devices.is_empty(), "the job has no devices".to_owned()),
        (names.len() < job.devices.len(), "two devices of the job have one name".to_owned()),
        (job.devices.len() > DEVICES_MAX, format!("the job has more than {DEVICES_MAX} devices")),
        (job.layers.is_empty(), "the model has no layers".to_owned()),
        (job.layers.len() > LAYERS_MAX, format!("the model has more than {LAYERS_MAX} layers")),
        (job.microbatches == 0, "an iteration has no microbatches".to_owned()),
    ]
    .into_iter()
    .filter_map(|(is_wrong, text)| is_wrong.then_some(text))
    .collect();
    if findings.is_empty() { Ok(()) } else { Err(Rejection::StartPlan(findings)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use adaptis_proto::RunId;
    use adaptis_proto::message::JobLayer;

    const SILENCE_NS: u64 = 10_000;

    fn job(run: &str, devices: &[&str]) -> Job {
        let layer = |name: &str| JobLayer {
            name: name.into(),
            signature: "mlp/8/f32/b1xs8".into(),
            parameter_bytes: 1,
            state_bytes: 4,
            output_bytes: 1,
            moved_bytes: 3,
        };
        Job {
            run: RunId(run.into()),
            devices: devices.iter().map(|&name| name.into()).collect(),
            layers: vec![layer("a"), layer("b")],
            microbatches: 4,
            iterations: 10,
            start_plan: None,
        }
    }

    fn hello(job: &Job, device: &str, incarnation: u64) -> Hello {
        let card = DeviceCard { name: device.into(), kind: "cpu".into(), memory_bytes: 100, reserved_bytes: 0 };
        Hello {
            incarnation: Incarnation(incarnation),
            card,
            job: job.clone(),
            endpoint: format!("tcp://{device}"),
            place: None,
            seen: Term(0),
        }
    }

    #[test]
    fn ranks_come_in_any_order_and_more_than_once() {
        let mut roster = Roster::default();
        let job = job("run", &["a", "b"]);
        for (device, incarnation, index) in [("b", 2, 1), ("b", 2, 1), ("a", 1, 0), ("b", 2, 1)] {
            let seat = roster.hello(0, SILENCE_NS, Peer(incarnation), hello(&job, device, incarnation));
            assert_eq!(seat, Ok(DeviceIndex(index)));
        }
        assert!(roster.is_full());
        let (members, cards) = roster.form();
        assert_eq!(members.iter().map(|member| member.incarnation.0).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(cards[1].name, "b");
    }

    #[test]
    fn who_does_not_fit_is_told_why() {
        let ours = job("run", &["a", "b"]);
        let mut roster = Roster::default();
        roster.hello(0, SILENCE_NS, Peer(1), hello(&ours, "a", 1)).expect("the first one is welcome");
        let differs = Job { microbatches: 5, ..ours.clone() };
        let table = [
            (hello(&job("other", &["a"]), "a", 3), Rejection::OtherJob { running: RunId("run".into()) }),
            (hello(&differs, "b", 3), Rejection::JobsDiffer),
            (hello(&ours, "c", 3), Rejection::UnknownDevice("c".into())),
            (hello(&ours, "a", 3), Rejection::DeviceTaken("a".into())),
        ];
        for (hello, expected) in table {
            assert_eq!(roster.hello(1, SILENCE_NS, Peer(3), hello), Err(expected));
        }
        let seat = roster.hello(SILENCE_NS, SILENCE_NS, Peer(3), hello(&ours, "a", 3));
        assert_eq!(seat, Ok(DeviceIndex(0)), "a silent process may be replaced before the first generation");
    }

    #[test]
    fn a_job_whose_ranks_are_all_silent_is_let_go_until_it_begins() {
        let (first, second) = (job("first", &["a", "b"]), job("second", &["a"]));
        let mut roster = Roster::default();
        roster.hello(0, SILENCE_NS, Peer(1), hello(&first, "a", 1)).expect("welcome");
        roster.hello(500, SILENCE_NS, Peer(2), hello(&first, "b", 2)).expect("welcome");
        let other = Err(Rejection::OtherJob { running: RunId("first".into()) });
        assert_eq!(roster.hello(SILENCE_NS + 499, SILENCE_NS, Peer(3), hello(&second, "a", 3)), other);
        let seat = roster.hello(SILENCE_NS + 500, SILENCE_NS, Peer(3), hello(&second, "a", 3));
        assert_eq!(seat, Ok(DeviceIndex(0)));
        assert_eq!((roster.job(), roster.len()), (Some(&second), 1));
        roster.form();
        let other = Err(Rejection::OtherJob { running: RunId("second".into()) });
        assert_eq!(roster.hello(100 * SILENCE_NS, SILENCE_NS, Peer(1), hello(&first, "a", 1)), other);
    }

    #[test]
    fn a_member_is_not_replaced() {
        let ours = job("run", &["a"]);
        let mut roster = Roster::default();
        roster.hello(0, SILENCE_NS, Peer(1), hello(&ours, "a", 1)).expect("welcome");
        roster.form();
        let seat = roster.hello(10 * SILENCE_NS, SILENCE_NS, Peer(2), hello(&ours, "a", 2));
        assert_eq!(seat, Err(Rejection::DeviceTaken("a".into())));
    }

    #[test]
    fn impossible_jobs_are_turned_away_with_every_reason() {
        let nothing = Job { devices: vec![], layers: vec![], microbatches: 0, ..job("run", &[]) };
        let mut roster = Roster::default();
        let Err(Rejection::StartPlan(findings)) = roster.hello(0, SILENCE_NS, Peer(1), hello(&nothing, "a", 1)) else {
            panic!("a job of nothing was accepted");
        };
        assert_eq!(findings.len(), 3, "{findings:?}");
        assert!(roster.job().is_none(), "and the next one may declare another");
    }

    #[test]
    fn silence_is_measured_from_the_last_word() {
        let ours = job("run", &["a", "b"]);
        let mut roster = Roster::default();
        roster.hello(0, SILENCE_NS, Peer(1), hello(&ours, "a", 1)).expect("welcome");
        roster.hello(4_000, SILENCE_NS, Peer(2), hello(&ours, "b", 2)).expect("welcome");
        assert_eq!(roster.silence_deadline(SILENCE_NS), Some(10_000));
        assert_eq!(roster.silent(9_999, SILENCE_NS), None);
        assert_eq!(roster.silent(10_000, SILENCE_NS), Some((DeviceIndex(0), 10_000)));
    }
}
