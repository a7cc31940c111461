use super::*;
use crate::compiled::{Compiler, Room};
use crate::station::Errand;
use adaptis_plan::{Action, Instruction, Plan, Stage, plan};
use adaptis_proto::message::{Job, JobLayer, Member, RankEvent, RankOrder, Refusal};
use adaptis_proto::{Incarnation, RunId};
use std::sync::mpsc::{SyncSender, sync_channel};

const GENERATION: Generation = Generation(3);

struct Wide;

impl Room for Wide {
    fn grant(&self, _: Option<&Plan>, _: &Plan) -> Result<(), Refusal> {
        Ok(())
    }
}

fn job() -> Job {
    let layer = |name: &str| JobLayer {
        name: name.into(),
        signature: "mlp/x".into(),
        parameter_bytes: 0,
        state_bytes: 0,
        output_bytes: 0,
        moved_bytes: 0,
    };
    Job {
        run: RunId("run".into()),
        devices: vec!["rank0".into(), "rank1".into()],
        layers: ["a", "b", "c"].map(layer).into(),
        microbatches: 1,
        iterations: 0,
        start_plan: None,
    }
}

/// Layers before `cut` on the first device, the others on the second.
fn text(epoch: u64, cut: u32) -> String {
    let stage = |layers, device| Stage { layers, device, recompute: vec![], note: None };
    let program = |stage| [Action::Forward, Action::Backward].map(|action| Instruction::new(stage, action, 0)).into();
    let plan = Plan {
        format: plan::FORMAT.into(),
        note: None,
        epoch: Epoch(epoch),
        parent: Epoch(epoch - 1),
        layers: 3,
        devices: job().devices,
        stages: vec![stage([0, cut], 0), stage([cut, 3], 1)],
        programs: vec![program(0), program(1)],
        predicted: None,
        why: None,
    };
    plan.write()
}

/// A rank without a control thread: the test gives it the orders.
struct Rank {
    station: Arc<Station>,
    attendance: Attendance,
    news: SyncSender<News>,
    events: Receiver<RankEvent>,
}

impl Rank {
    fn new(device: u32) -> Rank {
        let compiler = Compiler::new(&job(), DeviceIndex(device), Box::new(Wide));
        let (station, events) = Station::new(&format!("rank{device}"), Incarnation(u64::from(device)), compiler);
        let (news, told) = sync_channel(8);
        let attendance = Attendance::new(Arc::clone(&station), told, 3);
        Rank { station, attendance, news, events }
    }

    fn order(&self, order: RankOrder) -> Vec<Errand> {
        let errands = self.station.order(order);
        for errand in &errands {
            if let Errand::Begin(begin, compiled) = errand {
                self.news.send(News::Begin(begin.clone(), Arc::clone(compiled))).unwrap();
            }
        }
        errands
    }
}

fn start() -> RankOrder {
    let member = |device: u64| Member {
        device: format!("rank{device}"),
        kind: "cpu".into(),
        incarnation: Incarnation(device),
        endpoint: String::new(),
    };
    let plan = text(1, 1);
    let digest = Plan::digest(&plan);
    let members = vec![member(0), member(1)];
    RankOrder::Start { term: Term(1), generation: GENERATION, epoch: Epoch(1), plan, digest, members }
}

fn prepare(epoch: u64) -> RankOrder {
    let plan = text(epoch, 2);
    let digest = Plan::digest(&plan);
    RankOrder::Prepare { term: Term(1), generation: GENERATION, parent: Epoch(1), epoch: Epoch(epoch), plan, digest }
}

/// One boundary: everybody's word, as numbers, to everybody.
fn boundary(ranks: &mut [Rank; 2], step: u64) -> [Heard; 2] {
    let words = ranks.each_mut().map(|rank| rank.attendance.word(Some(2.5)).encode());
    let words = words.map(|numbers| Word::decode(&numbers).expect("a word"));
    ranks.each_mut().map(|rank| rank.attendance.hear(&words, Step(step)))
}

fn pair() -> [Rank; 2] {
    [Rank::new(0), Rank::new(1)]
}

fn begun() -> [Rank; 2] {
    let mut ranks = pair();
    ranks.iter().for_each(|rank| drop(rank.order(start())));
    assert!(boundary(&mut ranks, 7).iter().all(|heard| matches!(heard, Heard::Begin(_))));
    ranks
}

#[test]
fn all_take_part_from_the_first_boundary_at_which_all_were_called() {
    let mut ranks = pair();
    assert_eq!(boundary(&mut ranks, 0), [Heard::Nothing, Heard::Nothing]);
    ranks[0].order(start());
    assert_eq!(boundary(&mut ranks, 1), [Heard::Nothing, Heard::Nothing], "the other one trains on by itself");
    ranks[1].order(start());
    assert!(boundary(&mut ranks, 2).iter().all(|heard| matches!(heard, Heard::Begin(_))));
    assert_eq!(boundary(&mut ranks, 3), [Heard::Nothing, Heard::Nothing]);
    let places = ranks.each_ref().map(|rank| rank.attendance.place().expect("it takes part").step);
    assert_eq!(places, [Step(3), Step(3)], "by the trainer's own count");
}

#[test]
fn a_plan_that_all_are_armed_with_takes_effect_for_all_at_once() {
    let mut ranks = begun();
    ranks[0].order(prepare(2));
    assert_eq!(boundary(&mut ranks, 8), [Heard::Nothing, Heard::Nothing]);
    ranks[1].order(prepare(2));
    let heard = boundary(&mut ranks, 9);
    assert!(heard.iter().all(|heard| matches!(heard, Heard::Switch(next) if next.plan.epoch == Epoch(2))));
    // A step that failed on the way is begun again: nobody votes before the layers have moved.
    assert_eq!(boundary(&mut ranks, 9), [Heard::Nothing, Heard::Nothing]);
    for rank in &mut ranks {
        rank.attendance.settled();
        let told: Vec<RankEvent> = rank.events.try_iter().collect();
        let active = told.iter().any(|event| {
            matches!(event, RankEvent::Active { place, .. } if place.epoch == Epoch(2) && place.step == Step(9))
        });
        assert!(active, "{told:?}");
    }
    assert_eq!(boundary(&mut ranks, 10), [Heard::Nothing, Heard::Nothing], "votes go by the new plan's owners");
}

#[test]
fn where_one_left_the_others_leave_and_nobody_stops() {
    let mut ranks = begun();
    assert!(ranks[1].attendance.leave(Failure::Environment("the ring is gone".into())));
    let heard = boundary(&mut ranks, 8);
    assert_eq!(heard[0], Heard::Left(Failure::VoteUnequal { dissenters: vec![DeviceIndex(1)] }));
    assert_eq!(heard[1], Heard::Nothing);
    for step in 9..12 {
        assert_eq!(boundary(&mut ranks, step), [Heard::Nothing, Heard::Nothing]);
    }
    for rank in &ranks {
        assert!(rank.events.try_iter().any(|event| matches!(event, RankEvent::Failed { .. })));
    }
}

#[test]
fn a_loss_that_is_not_finite_is_the_jobs_affair() {
    let mut ranks = begun();
    let words = ranks.each_mut().map(|rank| rank.attendance.word(Some(f32::NAN)));
    let heard = ranks.each_mut().map(|rank| rank.attendance.hear(&words, Step(8)));
    assert_eq!(heard, [Heard::Nothing, Heard::Nothing]);
}

#[test]
fn the_end_is_told_by_those_who_take_part() {
    let mut ranks = begun();
    assert!(ranks[0].attendance.finish(vec![(LayerIndex(0), Digest([1; 32]))]));
    assert!(ranks[0].events.try_iter().any(|event| matches!(event, RankEvent::Finished { .. })));
    assert!(!pair()[0].attendance.finish(Vec::new()), "who was never called has nothing to tell");
    let mut ranks = pair();
    ranks[0].order(start());
    boundary(&mut ranks, 0);
    assert!(ranks[0].attendance.finish(Vec::new()), "who was called alone is counted on");
    let mut ranks = begun();
    ranks.iter().for_each(|rank| drop(rank.order(prepare(2))));
    boundary(&mut ranks, 8);
    assert!(ranks[0].attendance.finish(Vec::new()));
    assert!(
        ranks[0].events.try_iter().any(|event| matches!(event, RankEvent::Failed { .. })),
        "its layers are on the way"
    );
}

#[test]
fn a_word_is_read_as_it_was_told() {
    let place = Place { step: Step(1 << 39), epoch: Epoch(7), generation: Generation(2) };
    let armed = Some((Epoch(8), Digest(std::array::from_fn(|at| at as u8))));
    let word = Word {
        standing: Standing::Present,
        place,
        called: Digest([255; 32]),
        term: Term(u64::MAX),
        armed,
        loss: Some(-0.5),
    };
    for word in [word, Word { armed: None, loss: None, ..word }, Word::default()] {
        assert_eq!(Word::decode(&word.encode()), Some(word));
    }
    assert_eq!(Word::decode(&[9; Word::NUMBERS]), None);
    assert_eq!(Word::decode(&[0; 3]), None);
}
