//! What a collection of earlier jobs tells a job that begins.

#![allow(clippy::unwrap_used, reason = "a test fails if it can't go on")]

use adaptis_coordinator::next_job::Overhead;
use adaptis_coordinator::profiles::account::{
    Account, Collection, Distribution, KindMemory, Memory, Source, TransferKey, WorkKey,
};
use adaptis_coordinator::profiles::earlier::{Wanted, earlier};
use adaptis_coordinator::profiles::sketch::Sketch;
use adaptis_coordinator_core::estimate::earlier::Earlier;
use adaptis_proto::rates::Rates;
use adaptis_proto::sample::Phase;

const PHASES: [Phase; 3] = [Phase::Forward, Phase::InputGradient, Phase::WeightGradient];
const BLOCK: &str = "attention/4096h32/bf16/b1xs4096";
const HEAD: &str = "head/256000x4096/bf16/b1xs4096";

fn distribution(ns: u64, seen: u64) -> Distribution {
    let mut sketch = Sketch::new();
    (0..40).for_each(|at| sketch.record(ns / 1_000 * (980 + at)));
    Distribution::new(&sketch, seen, seen)
}

/// A job that ran layers on a kind: each phase of a signature takes so long.
fn job(id: &str, kind: &str, software: &str, seen: u64, times: &[(&str, u64)]) -> Account {
    let source = Source { id: id.into(), how: "run".into(), samples: 40, last_seen: seen, ..Source::default() };
    let mut account = Account { source, ..Account::default() };
    for &(signature, ns) in times {
        for phase in PHASES {
            let key = WorkKey { signature: signature.into(), kind: kind.into(), phase, software: software.into() };
            account.works.insert(key, distribution(ns, seen));
        }
        let memory = Memory { activation_bytes: 64, weight_gradient_bytes: Some(32), workspace_bytes: 1 };
        account.memories.insert((signature.into(), kind.into()), memory);
    }
    account.kinds.insert(kind.into(), KindMemory { memory_bytes: 1 << 30, reserved_bytes: 7 });
    account.overheads.insert(kind.into(), Overhead { instruction_ns: Some(seen), transfer_ns: None });
    account
}

fn told(accounts: &[Account], kinds: &[&str], wanted: Wanted) -> Earlier {
    let mut collection = Collection::default();
    accounts.iter().for_each(|account| collection.take(account.clone()));
    let signatures = [BLOCK, HEAD].map(str::to_owned).into();
    let kinds = kinds.iter().map(|kind| (*kind).to_owned()).collect();
    earlier(&collection, &Wanted { kinds, signatures, ..wanted }).unwrap()
}

/// Nanoseconds and standard deviation of a forward, measured.
fn measured(earlier: &Earlier, kind: &str, signature: &str) -> Option<(f64, f64)> {
    earlier.kinds.get(kind)?.measured.get(signature)?[0].map(|time| (time.ln_ns.exp(), time.ln_sd))
}

fn predicted(earlier: &Earlier, kind: &str, signature: &str) -> Option<(f64, f64)> {
    earlier.kinds.get(kind)?.predicted.get(signature)?[0].map(|time| (time.ln_ns.exp(), time.ln_sd))
}

fn near(found: Option<(f64, f64)>, ns: f64) -> bool {
    found.is_some_and(|(found, _)| (found / ns - 1.0).abs() < 0.02)
}

#[test]
fn measured_on_the_kind_else_predicted_from_others() {
    let accounts = [
        job("one", "h100-80g", "", 5, &[(BLOCK, 2_000_000), (HEAD, 8_000_000)]),
        job("two", "a100-40g", "", 5, &[(BLOCK, 4_000_000)]),
    ];
    let told = told(&accounts, &["h100-80g", "a100-40g"], Wanted::default());
    assert!(near(measured(&told, "h100-80g", HEAD), 8e6) && near(measured(&told, "a100-40g", BLOCK), 4e6), "{told:?}");
    let one_job = measured(&told, "h100-80g", HEAD).unwrap().1;
    assert!((0.04..0.07).contains(&one_job), "many samples of one job are one job: {one_job}");
    assert_eq!(measured(&told, "a100-40g", HEAD), None);
    let (ns, sd) = predicted(&told, "a100-40g", HEAD).unwrap();
    assert!((10e6..22e6).contains(&ns) && (ns / 16e6).ln().abs() < 1.645 * sd, "{ns} {sd}");
    assert_eq!(predicted(&told, "h100-80g", HEAD), None, "it was measured");
    let of = &told.kinds["a100-40g"];
    assert_eq!(
        (of.reserved_bytes, of.memories[HEAD].activation_bytes),
        (Some(7), 64),
        "what a layer holds, of any kind"
    );
    assert_eq!(of.predicted.values().filter(|of| of[3].is_some()).count(), 0, "nobody measured an optimizer");
    assert_eq!(of.overhead, Some(Overhead { instruction_ns: Some(5), transfer_ns: None }));
}

#[test]
fn a_kind_that_was_only_calibrated_is_told_by_its_rates() {
    let mut one = job("one", "h100-80g", "", 5, &[(BLOCK, 2_000_000), (HEAD, 8_000_000)]);
    let mut told_with = |rates: &[(&str, u64)]| {
        let of = |operations: u64| Rates { operations_per_s: Some(operations), bytes_per_s: None };
        one.rates = rates.iter().map(|&(kind, operations)| (kind.to_owned(), of(operations))).collect();
        told(&[one.clone()], &["l40s-48g"], Wanted::default())
    };
    assert_eq!(predicted(&told_with(&[]), "l40s-48g", BLOCK), None);
    let (ns, sd) = predicted(&told_with(&[("h100-80g", 800), ("l40s-48g", 200)]), "l40s-48g", BLOCK).unwrap();
    assert!((ns / 8e6 - 1.0).abs() < 0.02 && (0.7..1.0).contains(&sd), "{ns} {sd}");
    // Or what the job's own agents calibrated on a kind that is new.
    let of = |operations: u64| Rates { operations_per_s: Some(operations), bytes_per_s: None };
    one.rates = [("h100-80g".to_owned(), of(800))].into();
    let wanted = Wanted { rates: [("l40s-48g".to_owned(), of(200))].into(), ..Wanted::default() };
    let (own, _) = predicted(&told(&[one], &["l40s-48g"], wanted), "l40s-48g", BLOCK).unwrap();
    assert!((own / ns - 1.0).abs() < 1e-9, "{own} {ns}");
}

#[test]
fn the_job_itself_and_devices_of_another_clock_do_not_count() {
    let real = job("real", "h100-80g", "", 5, &[(BLOCK, 2_000_000)]);
    let emulated = job("demo", "h100-80g", "emulated 0011aabb", 9, &[(BLOCK, 600_000)]);
    let accounts = [real, emulated];
    let of = |own: &str, emulated: Option<&str>| {
        let wanted = Wanted { own: own.into(), emulated: emulated.map(str::to_owned), ..Wanted::default() };
        told(&accounts, &["h100-80g"], wanted)
    };
    assert!(near(measured(&of("", None), "h100-80g", BLOCK), 2e6));
    assert!(near(measured(&of("", Some("emulated 0011aabb")), "h100-80g", BLOCK), 6e5));
    assert_eq!(of("", Some("emulated ffffffff")), Earlier::default());
    assert_eq!(of("real", None), Earlier::default());
}

#[test]
fn the_newest_software_counts_and_jobs_that_differ_widen() {
    let times = |ns: u64| [(BLOCK, ns), (HEAD, 4 * ns)];
    let old = job("old", "h100-80g", "driver 1", 5, &times(3_000_000));
    let new = job("new", "h100-80g", "driver 2", 9, &times(2_000_000));
    let alone = told(&[old.clone(), new.clone()], &["h100-80g"], Wanted::default());
    assert!(near(measured(&alone, "h100-80g", BLOCK), 2e6), "{alone:?}");
    let slower = job("slower", "h100-80g", "driver 2", 8, &times(2_600_000));
    let two = told(&[old, new, slower], &["h100-80g"], Wanted::default());
    let level_sd = |told: &Earlier| told.kinds["h100-80g"].level_sd;
    assert!(level_sd(&two) > 1.1 * level_sd(&alone), "{} {}", level_sd(&two), level_sd(&alone));
    let between = measured(&two, "h100-80g", BLOCK).unwrap().0;
    assert!((2.1e6..2.5e6).contains(&between), "{between}");
}

#[test]
fn links_between_kinds_are_known_in_both_directions() {
    let mut one = job("one", "h100-80g", "", 5, &[(BLOCK, 2_000_000)]);
    for bytes in [1_u64 << 20, 16 << 20] {
        let key = TransferKey { sender: "h100-80g".into(), receiver: "a100-40g".into(), bytes };
        one.transfers.insert(key, distribution(10_000 + bytes / 20, 5));
    }
    let told = told(&[one], &["h100-80g", "a100-40g"], Wanted::default());
    assert_eq!(told.links.len(), 2, "{:?}", told.links);
    for link in told.links.values() {
        assert!((link.link.bytes_per_second / 20e9 - 1.0).abs() < 0.05 && link.ln_sd > 0.2, "{link:?}");
    }
}
