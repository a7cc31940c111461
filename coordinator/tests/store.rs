//! The store on a real disk: reigns, conflicts, batches in any order, damage.

use adaptis_coordinator::{Profiles, RECORDS_BYTES_MAX, STORE_FILE, Store, StoreError, work_of};
use adaptis_coordinator_core::ledger::{Contradiction, GenerationRecord, PhaseRecord, PlanRecord};
use adaptis_coordinator_core::{Durable, Head};
use adaptis_plan::{Plan, Stage};
use adaptis_proto::message::{Batch, ClockOffset, Job, Mode, PeakMemory};
use adaptis_proto::sample::{Mark, Phase, Place, Record, Sample};
use adaptis_proto::{Epoch, Generation, Incarnation, LayerIndex, Microbatch, RunId, Step, Term};
use proptest::prelude::*;
use std::path::Path;

fn open(dir: &Path) -> Store {
    Store::open(dir, RECORDS_BYTES_MAX).expect("the folder is fine")
}

fn plan(epoch: u64) -> PlanRecord {
    let stage = Stage { layers: [0, 1], device: 0, recompute: vec![], note: None };
    let plan = Plan {
        format: adaptis_plan::plan::FORMAT.into(),
        note: None,
        epoch: Epoch(epoch),
        parent: Epoch(0),
        layers: 1,
        devices: vec!["gpu0".into()],
        stages: vec![stage],
        programs: vec![vec![]],
        predicted: None,
        why: None,
    };
    let text = plan.write();
    let digest = Plan::digest(&text);
    PlanRecord { epoch: Epoch(epoch), parent: Epoch(0), generation: Generation(1), text, digest, term: Term(1) }
}

fn generation(number: u64) -> GenerationRecord {
    let job = Job {
        run: RunId("test".into()),
        devices: Vec::new(),
        layers: Vec::new(),
        microbatches: 1,
        iterations: 1,
        start_plan: None,
    };
    let (members, cards, generation) = (Vec::new(), Vec::new(), Generation(number));
    GenerationRecord { generation, epoch: Epoch(1), members, cards, job, term: Term(1) }
}

fn work(step: u64, duration_ns: u64) -> Record {
    let place = Place { step: Step(step), epoch: Epoch(1), generation: Generation(1) };
    let (layer, microbatch, phase, mark) = (LayerIndex(0), Microbatch(0), Phase::Forward, Mark::Warm);
    Sample::Work { place, layer, microbatch, phase, mark, start_ns: 1_000, duration_ns }.into()
}

fn batch(first: u64, records: Vec<Record>) -> Batch {
    Batch { device: "gpu0".into(), ring: Incarnation(u64::MAX - 1), first, records, dropped: 0, clock: None }
}

#[test]
fn terms_grow_and_the_ledger_outlives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    assert_eq!(store.reign().unwrap().head.term, Term(1));
    let was = Head { term: Term(1), generation: Generation(0), epoch: Epoch(0) };
    let now = Head { generation: Generation(1), epoch: Epoch(1), ..was };
    let phase = PhaseRecord { from: Step(0), epoch: Epoch(1), predicted_ns: None, change: None };
    let entries = [Durable::Generation(generation(1)), Durable::Plan(plan(1)), Durable::Phase(phase)];
    store.commit(Term(1), &[&entries[..], &[Durable::Head { was, now }]].concat()).unwrap();
    store.commit(Term(1), &[Durable::Aborted(Epoch(2)), Durable::Aborted(Epoch(2))]).unwrap();
    drop(store);
    let recovered = open(dir.path()).reign().unwrap();
    assert_eq!(recovered.head, Head { term: Term(2), ..now });
    assert_eq!((recovered.plans.len(), recovered.aborted, recovered.phases), (1, vec![Epoch(2)], vec![phase]));

    // What is gone of it is missed, and nobody reigns over the rest.
    let gone =
        |table: &str| rusqlite::Connection::open(dir.path().join(STORE_FILE)).unwrap().execute(table, []).unwrap();
    gone("DELETE FROM generations");
    let missed = open(dir.path()).reign();
    let expected = Contradiction::HeadGeneration { head: Generation(1), newest: Generation(0) };
    assert!(matches!(&missed, Err(StoreError::Contradictory(found)) if *found == expected), "{missed:?}");
    gone("DELETE FROM plans");
    let missed = open(dir.path()).reign();
    assert!(matches!(missed, Err(StoreError::Contradictory(Contradiction::HeadPlan(Epoch(1))))), "{missed:?}");
}

#[test]
fn of_memory_the_latest_word_counts_and_a_store_without_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.reign().unwrap();
    assert_eq!(store.recovered().unwrap().peaks, []);
    let peak = |epoch, measured_bytes| PeakMemory { epoch: Epoch(epoch), measured_bytes, ..PeakMemory::default() };
    store.commit(Term(1), &[Durable::Peak(peak(2, 7)), Durable::Peak(peak(1, 5))]).unwrap();
    store.commit(Term(1), &[Durable::Peak(peak(2, 9))]).unwrap();
    drop(store);
    assert_eq!(open(dir.path()).reign().unwrap().peaks, [peak(1, 5), peak(2, 9)]);
}

#[test]
fn of_the_mode_that_a_job_asks_for_the_latest_word_counts() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    assert_eq!(store.reign().unwrap().asked, None);
    for asked in [Some(Mode::Adapt), None, Some(Mode::Advise)] {
        store.commit(Term(1), &[Durable::Asked(asked)]).unwrap();
        assert_eq!(store.recovered().unwrap().asked, asked);
    }
    drop(store);
    assert_eq!(open(dir.path()).reign().unwrap().asked, Some(Mode::Advise));
}

#[test]
fn a_deposed_coordinator_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.reign().unwrap();
    store.reign().unwrap();
    let refused = store.commit(Term(1), &[Durable::Plan(plan(1))]);
    assert!(matches!(refused, Err(StoreError::Deposed { ours: Term(1), found }) if found.term == Term(2)));
    assert!(store.recovered().unwrap().plans.is_empty());
}

#[test]
fn the_head_changes_by_compare_and_swap() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let head = store.reign().unwrap().head;
    let stale = Head { epoch: Epoch(7), ..head };
    let refused = store.commit(Term(1), &[Durable::Aborted(Epoch(3)), Durable::Head { was: stale, now: head }]);
    assert!(matches!(refused, Err(StoreError::Deposed { .. })));
    assert!(store.recovered().unwrap().aborted.is_empty(), "all or none");
}

#[test]
fn a_number_is_used_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.reign().unwrap();
    store.commit(Term(1), &[Durable::Plan(plan(1))]).unwrap();
    let again = store.commit(Term(1), &[Durable::Plan(plan(1))]);
    assert!(matches!(again, Err(StoreError::Conflict { .. })), "{again:?}");
    let phase = |predicted_ns| PhaseRecord { from: Step(0), epoch: Epoch(1), predicted_ns, change: None };
    store.commit(Term(1), &[Durable::Phase(phase(None)), Durable::Phase(phase(Some(5)))]).unwrap();
    let rewritten = store.commit(Term(1), &[Durable::Phase(phase(Some(6)))]);
    assert!(matches!(rewritten, Err(StoreError::Conflict { .. })), "a prediction is never replaced");
}

#[test]
fn one_process_has_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert!(matches!(Store::open(dir.path(), RECORDS_BYTES_MAX), Err(StoreError::InUse { .. })));
    drop(store);
    open(dir.path());
}

#[test]
fn what_is_no_store_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(STORE_FILE);
    std::fs::write(&path, "a file of somebody else, long enough to be looked at. ".repeat(100)).unwrap();
    assert!(matches!(Store::open(dir.path(), RECORDS_BYTES_MAX), Err(StoreError::Foreign { .. })));
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("a file of somebody else"));
}

#[test]
fn another_version_is_refused_by_its_number() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let connection = rusqlite::Connection::open(dir.path().join(STORE_FILE)).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let refused = Store::open(dir.path(), RECORDS_BYTES_MAX);
    assert!(matches!(refused, Err(StoreError::Version { found: 99, .. })));
}

#[test]
fn a_damaged_plan_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.reign().unwrap();
    store.commit(Term(1), &[Durable::Plan(plan(4))]).unwrap();
    drop(store);
    let connection = rusqlite::Connection::open(dir.path().join(STORE_FILE)).unwrap();
    connection.execute("UPDATE plans SET text = replace(text, 'gpu0', 'gpu1')", []).unwrap();
    drop(connection);
    let error = open(dir.path()).reign().unwrap_err();
    assert_eq!(
        error.to_string(),
        "the store is damaged: plan 4 can't be read; take a copy of the folder that is whole, or another folder"
    );
}

#[test]
fn a_table_that_is_gone_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let connection = rusqlite::Connection::open(dir.path().join(STORE_FILE)).unwrap();
    connection.execute("DROP TABLE records", []).unwrap();
    drop(connection);
    let error = work_of(dir.path(), 0..=9).unwrap_err();
    assert!(error.is_of_the_file() && error.to_string().contains("no such table: records"), "{error}");
}

#[test]
fn doubled_early_and_lost_batches() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let records = |from: u64, to: u64| (from..to).map(|number| work(number, number + 1)).collect::<Vec<_>>();
    let stored = store
        .store(
            &[
                batch(0, records(0, 4)),
                batch(2, records(2, 6)),
                batch(9, records(9, 12)),
                batch(0, records(0, 4)),
                batch(9, vec![]),
                batch(9, records(9, 12)),
                Batch { dropped: 5, ..batch(12, vec![]) },
            ],
            |_| true,
        )
        .unwrap();
    let row = |at: usize| {
        let of = &stored[at];
        (of.next, of.records.len(), of.duplicates, of.beyond_gap, of.lost, of.dropped)
    };
    assert_eq!(row(0), (4, 4, 0, 0, 0, 0));
    assert_eq!(row(1), (6, 2, 2, 0, 0, 0));
    assert_eq!(row(2), (6, 0, 0, 3, 0, 0), "what lies beyond a gap comes again");
    assert_eq!(row(3), (6, 0, 4, 0, 0, 0));
    assert_eq!(row(4), (9, 0, 0, 0, 3, 0), "the agent says that nothing below comes");
    assert_eq!(row(5), (12, 3, 0, 0, 0, 0));
    assert_eq!(row(6), (12, 0, 0, 0, 0, 5));
    drop(store);
    let mut kept = Vec::new();
    open(dir.path()).replay(|device, _, records| kept.push((device, records.len()))).unwrap();
    assert_eq!(kept, [("gpu0".to_owned(), 4), ("gpu0".to_owned(), 2), ("gpu0".to_owned(), 3)]);
}

#[test]
fn numbers_that_no_ring_reaches_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let hostile = [
        batch(u64::MAX, vec![work(0, 1), work(1, 1)]),
        batch(u64::MAX, vec![]),
        batch(1 << 63, vec![]),
        Batch { dropped: u64::MAX, ..batch(0, vec![work(0, 1)]) },
        batch(0, vec![work(0, 1)]),
    ];
    let stored = store.store(&hostile, |_| true).unwrap();
    let rows: Vec<_> = stored.iter().map(|of| (of.next, of.records.len(), of.refused)).collect();
    assert_eq!(rows, [(0, 0, 2), (0, 0, 1), (0, 0, 1), (0, 0, 1), (1, 1, 0)]);
}

#[test]
fn others_records_are_kept_and_make_no_iterations() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let place = Place { step: Step(3), epoch: Epoch(1), generation: Generation(1) };
    let end: Record = Sample::Iteration { place, start_ns: 0, duration_ns: 5, loss_bits: 0 }.into();
    let stored = store.store(&[batch(0, vec![end])], |_| false).unwrap();
    assert_eq!((stored[0].next, stored[0].records.len()), (1, 1));
    assert!(store.iterations().unwrap().is_empty());
    let mut rings = Vec::new();
    store.replay(|_, ring, _| rings.push(ring)).unwrap();
    assert_eq!(rings, [Incarnation(u64::MAX - 1)]);
}

#[test]
fn the_oldest_records_go_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), 10 * Record::BYTES as u64).unwrap();
    for first in 0..5 {
        store.store(&[batch(4 * first, (0..4).map(|at| work(4 * first + at, 1)).collect())], |_| true).unwrap();
    }
    assert_eq!(store.trim().unwrap(), 12);
    let work = work_of(dir.path(), 0..=100).unwrap();
    assert_eq!(work.len(), 8);
    assert!(matches!(work[0].1, Sample::Work { place, .. } if place.step == Step(12)));
}

#[test]
fn an_iteration_is_as_long_as_its_longest_device_saw() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let place = Place { step: Step(3), epoch: Epoch(1), generation: Generation(1) };
    let end = |duration_ns| Sample::Iteration { place, start_ns: 0, duration_ns, loss_bits: 0x4083_3333 };
    for (ring, duration_ns) in [(1, 10), (2, 12), (3, 11)] {
        let batch = Batch { ring: Incarnation(ring), ..batch(0, vec![end(duration_ns).into()]) };
        store.store(&[batch], |_| true).unwrap();
    }
    let iterations = store.iterations().unwrap();
    assert_eq!(iterations.len(), 1);
    assert_eq!((iterations[0].duration_ns, iterations[0].loss_bits), (12, 0x4083_3333));
}

#[test]
fn instants_are_on_the_coordinators_clock() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    for (ring, offset_ns, error_ns) in [(1, 500, 10), (2, 5, 10), (3, -2_000, 10)] {
        let clock = Some(ClockOffset { offset_ns, error_ns });
        let batch = Batch { ring: Incarnation(ring), clock, ..batch(0, vec![work(ring, 1)]) };
        store.store(&[batch], |_| true).unwrap();
    }
    let starts: Vec<u64> = work_of(dir.path(), 1..=3)
        .unwrap()
        .into_iter()
        .map(|(_, sample)| match sample {
            Sample::Work { start_ns, .. } => start_ns,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(starts, [1_500, 1_000, 0], "an offset within its own error counts as none");
}

#[test]
fn profiles_of_two_reigns_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut ids = Vec::new();
    for reign in 0..2 {
        let mut store = open(dir.path());
        let mut profiles = Profiles::default();
        for work in 1..=100 {
            let ns = (100 * reign + work) * 10_000;
            profiles.record("mlp/8/f32/b1xs8", "h100-80g", Phase::Forward, "", ns);
        }
        profiles.record_transfer("h100-80g", "a100-40g", 1_000, 5_000);
        store.merge(&mut profiles, 1_000 + reign).unwrap();
        store.merge(&mut profiles, 1_000 + reign).unwrap();
        ids.push(store.profiles().unwrap().source.id);
    }
    let account = open(dir.path()).profiles().unwrap();
    assert_eq!(ids[0], ids[1], "a run keeps its name");
    assert_eq!((account.source.samples, account.source.first_seen, account.source.last_seen), (202, 1_000, 1_001));
    let works: Vec<_> = account.works.iter().collect();
    let [(key, works)] = works.as_slice() else { panic!("{works:?}") };
    assert_eq!((key.signature.as_str(), key.kind.as_str(), key.phase), ("mlp/8/f32/b1xs8", "h100-80g", Phase::Forward));
    assert_eq!((works.count, works.first_seen, works.last_seen), (200, 1_000, 1_001));
    let median_ns = works.sketch().unwrap().median_ns() as f64;
    assert!((median_ns / 1e6 - 1.0).abs() < 0.001, "{median_ns}");
    assert_eq!(account.transfers.values().map(|of| of.count).collect::<Vec<_>>(), [2]);
    let other = tempfile::tempdir().unwrap();
    assert_ne!(open(other.path()).profiles().unwrap().source.id, ids[0]);
}

#[test]
fn a_folder_without_a_store_has_no_work() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(work_of(dir.path(), 0..=1), Err(StoreError::Environment { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever an agent sends again, every record is stored once, and in order.
    #[test]
    fn every_record_is_stored_once(sends in prop::collection::vec((0u64..40, 1u64..12), 1..20)) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let mut next = 0;
        for (first, count) in sends {
            let records = (first..first + count).map(|number| work(number, number)).collect();
            let stored = store.store(&[batch(first, records)], |_| true).unwrap().remove(0);
            prop_assert_eq!(stored.records.len() as u64 + stored.duplicates + stored.beyond_gap, count);
            prop_assert!(stored.next >= next);
            next = stored.next;
        }
        let mut durations = Vec::new();
        store.replay(|_, _, records| durations.extend(records.iter().map(|record| record.0[4]))).unwrap();
        prop_assert_eq!(durations, (0..next).collect::<Vec<u64>>());
    }
}
