//! Stores of profiles on a real disk: merging, exchanging, older and damaged files.

#![allow(clippy::unwrap_used, reason = "a test fails if it can't go on")]

use adaptis_coordinator::next_job::Overhead;
use adaptis_coordinator::profiles::LibraryError;
use adaptis_coordinator::profiles::account::{
    Account, Collection, Distribution, KindMemory, Memory, Sizes, Source, TransferKey, WorkKey,
};
use adaptis_coordinator::profiles::exchange::{self, ExchangeError};
use adaptis_coordinator::profiles::import::{Format, Given, import};
use adaptis_coordinator::profiles::library::{self, FILE, Library, Merged, of_run};
use adaptis_coordinator::profiles::sketch::Sketch;
use adaptis_coordinator::{RECORDS_BYTES_MAX, STORE_FILE, Store};
use adaptis_proto::rates::Rates;
use adaptis_proto::sample::{Phase, Place, Record, Sample};
use adaptis_proto::{Epoch, Generation, LayerIndex, Step};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2Serializer};
use proptest::prelude::*;
use std::path::Path;

fn key(signature: &str, kind: &str, phase: Phase) -> WorkKey {
    WorkKey { signature: signature.into(), kind: kind.into(), phase, software: String::new() }
}

/// A source that measured one work so many times.
fn account(id: &str, samples: u64) -> Account {
    let mut sketch = Sketch::new();
    (0..samples).for_each(|at| sketch.record(1_000_000 + 1_000 * at));
    let source = Source { id: id.into(), name: id.into(), how: "run".into(), samples, ..Source::default() };
    let works = [(key("mlp/8", "h100-80g", Phase::Forward), Distribution::new(&sketch, 5, 9))].into();
    Account { source, works, ..Account::default() }
}

/// Samples of the one work, over all sources.
fn samples(path: &Path) -> u64 {
    library::read(path).unwrap().works().unwrap().values().map(|of| of.count).sum()
}

fn merge(dir: &Path, accounts: &[Account]) -> Vec<Merged> {
    Library::open(dir).unwrap().merge(accounts, 77).unwrap()
}

#[test]
fn a_source_counts_once_whatever_way_it_came() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    assert_eq!(merge(&one, &[account("a", 10), account("b", 20)]), [Merged::New, Merged::New]);
    assert!(matches!(merge(&one, &[account("a", 10)])[..], [Merged::Known { .. }]));
    assert_eq!(merge(&two, &[account("b", 20), account("c", 5)]), [Merged::New, Merged::New]);
    // Both know `b`.
    let all = library::read(&two).unwrap().into_accounts();
    assert!(matches!(merge(&one, &all)[..], [Merged::Known { .. }, Merged::New]));
    assert_eq!(samples(&one), 35);
    assert_eq!(merge(&one, &[account("c", 12)]), [Merged::Grown { from: 5 }], "the run went on");
    let again = merge(&one, &all);
    assert!(matches!(again[..], [Merged::Known { .. }, Merged::Known { .. }]), "an older state of it changes nothing");
    assert_eq!(samples(&one), 42);
}

/// A file whose bytes were read as this, so many seconds after 1970.
fn reading(bytes: &str, how: &str, at: u64) -> Account {
    let given = Given { kind: Some(how.into()), split_backward: Some(0.5), ..Given::default() };
    let collection = import("M.A100-40.json", bytes, Format::Sailor, &given, at).unwrap();
    collection.into_accounts().remove(0)
}

#[test]
fn of_one_file_the_reading_counts_that_was_asked_for_last() {
    let dir = tempfile::tempdir().unwrap();
    let file = r#"{"1": {"1": {"0": [0.1, 0.2], "1": [0.1, 0.2], "2": [0.1, 0.2]}}}"#;
    let (first, second) = (reading(file, "v100-16g", 100), reading(file, "v100-32g", 100));
    assert_eq!(first.source.origin(), second.source.origin());
    let read_now = [first.source.origin().to_owned()].into();
    let mut library = Library::open(dir.path()).unwrap();
    let mut import =
        |account: &Account| library.import(std::slice::from_ref(account), &read_now, 100).unwrap().remove(0);
    let kinds = || -> Vec<String> {
        let mut kinds: Vec<String> =
            library::read(dir.path()).unwrap().works().unwrap().into_keys().map(|key| key.kind).collect();
        kinds.dedup();
        kinds
    };
    assert_eq!(import(&first), Merged::New);
    // In the same second, and then with a clock that was set back.
    assert!(matches!(import(&second), Merged::Replaced { former } if former.how.contains("kind v100-16g")));
    assert_eq!(kinds(), ["v100-32g"]);
    assert!(matches!(import(&second), Merged::Known { .. }));
    assert!(matches!(import(&reading(file, "v100-16g", 50)), Merged::Replaced { .. }));
    assert_eq!(kinds(), ["v100-16g"]);
    // What another store has of it is older.
    assert!(matches!(merge(dir.path(), std::slice::from_ref(&second))[..], [Merged::Outdated { .. }]));
    assert_eq!(kinds(), ["v100-16g"]);

    let id = library::read(dir.path()).unwrap().accounts().next().unwrap().source.id.clone();
    merge(dir.path(), &[account("a", 10)]);
    assert!(Library::open(dir.path()).unwrap().remove(&["none"]).unwrap().is_empty());
    let went = Library::open(dir.path()).unwrap().remove(&[&id]).unwrap();
    assert_eq!((went.len(), went[0].works.len()), (1, first.works.len()));
    assert_eq!(samples(dir.path()), 10, "of the run");
    let connection = rusqlite::Connection::open(dir.path().join(FILE)).unwrap();
    for table in ["sources", "works", "transfers", "memories", "sizes", "kinds"] {
        let of = if table == "sources" { "id" } else { "source" };
        let left: i64 = connection
            .query_row(&format!("SELECT count(*) FROM {table} WHERE {of} = ?"), [&id], |row| row.get(0))
            .unwrap();
        assert_eq!(left, 0, "{table}");
    }
}

#[test]
fn merges_at_once_all_count() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            scope.spawn(move || {
                for round in 0..5 {
                    merge(store, &[account(&format!("{worker}-{round}"), 3)]);
                }
            });
        }
    });
    assert_eq!(samples(store), 4 * 5 * 3);
}

#[test]
fn a_merge_that_ended_in_the_middle_left_nothing() {
    let dir = tempfile::tempdir().unwrap();
    merge(dir.path(), &[account("a", 10)]);
    // What a killed process leaves: rows that were written and not committed.
    let connection = rusqlite::Connection::open(dir.path().join(FILE)).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE; DELETE FROM works; DELETE FROM sources;").unwrap();
    drop(connection);
    assert_eq!(samples(dir.path()), 10);
}

#[test]
fn what_is_no_whole_store_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let refused = |said: &str| {
        let error = library::read(dir.path()).unwrap_err();
        let text = error.to_string();
        assert!(error.is_of_file() && text.contains(said) && text.contains(&path.display().to_string()), "{text}");
        assert!(Library::open(dir.path()).is_err() || said == "damaged", "{said}");
    };
    let error = library::read(dir.path()).unwrap_err();
    assert!(matches!(error, LibraryError::NotThere { .. }), "{error}");
    std::fs::write(&path, "a file of somebody else, long enough to be looked at. ".repeat(100)).unwrap();
    refused("is not a store of profiles");
    std::fs::remove_file(&path).unwrap();
    merge(dir.path(), &(0..200).map(|at| account(&at.to_string(), 3)).collect::<Vec<_>>());
    let whole = std::fs::read(&path).unwrap();
    let change = |statement: &str| {
        rusqlite::Connection::open(&path).unwrap().execute_batch(statement).unwrap();
    };
    change("PRAGMA user_version = 9");
    refused("of version 9");
    change("PRAGMA user_version = 1; UPDATE works SET phase = 77");
    refused("damaged");
    change("UPDATE works SET phase = 0; UPDATE works SET sketch = x'00' WHERE source = '7'");
    let unread = library::read(dir.path()).unwrap().works().unwrap_err();
    assert!(unread.to_string().contains("mlp/8 on h100-80g"), "{unread}");
    // A page in the middle overwritten.
    let mut broken = whole.clone();
    broken[8_192..12_288].fill(0xa5);
    std::fs::write(&path, broken).unwrap();
    refused("damaged");
    std::fs::write(&path, whole).unwrap();
    assert_eq!(samples(dir.path()), 600);
}

#[test]
fn a_wrong_bit_leaves_nothing_out_without_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    merge(dir.path(), &(0..200).map(|at| account(&at.to_string(), 3)).collect::<Vec<_>>());
    let whole = std::fs::read(&path).unwrap();
    let held = || library::read(dir.path()).map(|read| read.accounts().map(|of| of.works.len()).collect::<Vec<_>>());
    let expected = held().unwrap();
    let mut told = 0;
    for at in (0..whole.len()).step_by(1_009) {
        let mut broken = whole.clone();
        broken[at] ^= 1 << (at % 8);
        std::fs::write(&path, broken).unwrap();
        match held() {
            Ok(found) => assert_eq!(found, expected, "byte {at}"),
            Err(_) => told += 1,
        }
    }
    assert!(told > 0);
}

/// The store of the version before, as it was written then.
fn version_3(dir: &Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(dir.join(STORE_FILE)).unwrap();
    drop(Store::open(&dir.join("pattern"), RECORDS_BYTES_MAX).unwrap());
    let pattern = rusqlite::Connection::open(dir.join("pattern").join(STORE_FILE)).unwrap();
    let mut statement = pattern.prepare("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").unwrap();
    let tables: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
    let later = ["sources", "works", "transfers", "memories", "sizes", "kinds"].map(|name| format!("TABLE {name} "));
    for table in tables.iter().filter(|table| !later.iter().any(|later| table.contains(later))) {
        connection.execute_batch(table).unwrap();
    }
    connection
        .execute_batch(
            "INSERT INTO head VALUES (1, 0, 0, 0);
            CREATE TABLE profiles (signature TEXT, kind TEXT, phase INTEGER, histogram BLOB, PRIMARY KEY (signature, kind, phase));
            PRAGMA application_id = 1094996052; PRAGMA user_version = 3;",
        )
        .unwrap();
    connection
}

#[test]
fn a_store_of_the_version_before_keeps_all_it_told() {
    let dir = tempfile::tempdir().unwrap();
    let connection = version_3(dir.path());
    let job = r#"{"run":"old","devices":["gpu0"],"layers":[{"name":"mlp","signature":"mlp/8","parameter_bytes":1,
        "state_bytes":2,"output_bytes":3,"moved_bytes":4}],"microbatches":4,"iterations":9,"start_plan":null}"#;
    let card = r#"{"name":"gpu0","kind":"h100-80g","memory_bytes":100,"reserved_bytes":7}"#;
    let body = format!(r#"{{"generation":1,"epoch":1,"members":[],"cards":[{card}],"job":{job},"term":1}}"#);
    connection.execute("INSERT INTO generations VALUES (1, ?)", [body]).unwrap();
    let mut old = Histogram::<u64>::new_with_bounds(1_000, 60_000_000_000, 2).unwrap();
    (0..50).for_each(|at| old.saturating_record(2_000_000 + at * 1_000));
    let mut bytes = Vec::new();
    V2Serializer::new().serialize(&old, &mut bytes).unwrap();
    connection.execute("INSERT INTO profiles VALUES ('mlp/8', 'h100-80g', 2, ?)", [bytes]).unwrap();
    let place = Place { step: Step(3), epoch: Epoch(1), generation: Generation(1) };
    let (activation_bytes, weight_gradient_bytes, workspace_bytes) = (50, 20, 5);
    let layer = LayerIndex(0);
    let memory = Sample::LayerMemory { place, layer, activation_bytes, weight_gradient_bytes, workspace_bytes };
    let device = Sample::DeviceMemory { place, peak_bytes: 90, reserved_bytes: 11, late_ns: 0 };
    let records: Vec<u8> =
        [memory, device].into_iter().flat_map(|sample| Record::from(sample).0).flat_map(u64::to_le_bytes).collect();
    let statement = "INSERT INTO records (device, ring, first_step, last_step, body) VALUES ('gpu0', 1, 3, 3, ?)";
    connection.execute(statement, [records]).unwrap();
    drop(connection);

    let version = || {
        let connection = rusqlite::Connection::open(dir.path().join(STORE_FILE)).unwrap();
        connection.pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0)).unwrap()
    };
    let read = of_run(dir.path()).unwrap();
    assert_eq!(version(), 3, "who only reads leaves it as it is");
    let works = &read.works[&key("mlp/8", "h100-80g", Phase::WeightGradient)];
    assert_eq!(works.count, 50);
    assert!((works.sketch().unwrap().median_ns() as f64 / 2_025_000.0 - 1.0).abs() < 0.006);
    let held = Memory { activation_bytes, weight_gradient_bytes: Some(weight_gradient_bytes), workspace_bytes };
    assert_eq!(read.memories[&("mlp/8".into(), "h100-80g".into())], held);
    assert_eq!(read.kinds["h100-80g"], KindMemory { memory_bytes: 100, reserved_bytes: 11 });
    assert_eq!(read.sizes["mlp/8"].moved_bytes, Some(4));
    assert_eq!((read.source.name.as_str(), read.source.samples), ("old", 50));

    drop(Store::open(dir.path(), RECORDS_BYTES_MAX).unwrap());
    assert_eq!(version(), 4);
    let upgraded = of_run(dir.path()).unwrap();
    assert_eq!(upgraded.source.id, read.source.id, "it is still the same run");
    assert_eq!((upgraded.works, upgraded.memories, upgraded.kinds), (read.works, read.memories, read.kinds));
}

#[test]
fn a_text_without_sources_is_a_source() {
    let text = r#"{ "format": "adaptis.profiles/1", "profiles": [
        { "kind": "a100-40g", "signature": "mlp/8", "phase": "F", "seconds": 0.002, "count": 40, "low": 0.001, "high": 0.003 },
        { "kind": "a100-40g", "signature": "mlp/8", "phase": "backward", "seconds": 0.004 },
        { "kind": "a100-40g", "signature": "embedding/9", "phase": "B", "seconds": 0.004 } ] }"#;
    assert!(
        matches!(exchange::read("x", text, None, 5), Err(ExchangeError::Unsplit { path }) if path == "profiles[1]")
    );
    let collection = exchange::read("x.json", text, Some(0.25), 5).unwrap();
    let rows = exchange::rows(&collection).unwrap();
    let rows: Vec<_> = rows
        .iter()
        .map(|row| (row.key.signature.as_str(), row.key.phase, row.count, (row.seconds * 1e5).round() / 1e5))
        .collect();
    let expected = [
        ("embedding/9", Phase::WeightGradient, 1, 0.004),
        ("mlp/8", Phase::Forward, 40, 0.002),
        ("mlp/8", Phase::InputGradient, 1, 0.001),
        ("mlp/8", Phase::WeightGradient, 1, 0.003),
    ];
    assert_eq!(rows, expected);
    let source = &collection.accounts().next().unwrap().source;
    assert_eq!((source.name.as_str(), source.how.as_str()), ("x.json", "import adaptis, backward split 0.25:0.75"));
}

#[test]
fn what_is_wrong_in_a_text_is_named_with_its_place() {
    let row = |fields: &str| {
        format!(
            r#"{{"format": "adaptis.profiles/1", "profiles": [{{"kind": "k", "signature": "s", "phase": "F", {fields}}}]}}"#
        )
    };
    for (text, said) in [
        ("{}".to_owned(), "format is missing"),
        (r#"{"format": "adaptis.profiles/9", "profiles": []}"#.into(), "adaptis.profiles/9"),
        (row(r#""seconds": 0"#), "profiles[0].seconds: a time is positive"),
        (row(r#""seconds": 9999"#), "at most an hour"),
        (row(r#""seconds": 1, "count": 0"#), "profiles[0].count: 0 samples"),
        (row(r#""seconds": 1, "low": 2"#), "lies between `low` and `high`"),
        (row(r#""seconds": 1, "count": 3, "sketch": [[5, 1]]"#), "profiles[0].sketch: its bins do not add up"),
        (row(r#""seconds": 1, "source": "x""#), "profiles[0].source: no such id"),
        (row(r#""second": 1"#), "profiles[0]"),
    ] {
        let error = exchange::read("x", &text, None, 0).expect_err(&text).to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
}

fn any_account(id: String) -> impl Strategy<Value = Account> {
    let times = prop::collection::vec(1_u64..1 << 40, 1..20);
    let works =
        prop::collection::btree_map(("[a-c]{1,2}", "[xy]", 0_usize..5, "(|driver, \"9\")"), times.clone(), 0..6);
    let transfers = prop::collection::btree_map(("[xy]", "[xy]", 1_u64..99), times, 0..4);
    let size = || prop::option::of(0_u64..1 << 50);
    let memories = prop::collection::btree_map(("[a-c]", "[xy]"), (0_u64..1 << 50, any::<bool>(), 0_u64..9), 0..4);
    let sizes = prop::collection::btree_map("[a-c]", (size(), size(), size(), size()), 0..4);
    let kinds = prop::collection::btree_map("[xy]", (0_u64..1 << 50, 0_u64..9), 0..3);
    let rate = || prop::option::of(1_u64..1 << 60);
    let rates = (rate(), rate()).prop_map(|(operations_per_s, bytes_per_s)| Rates { operations_per_s, bytes_per_s });
    let rates = prop::collection::btree_map("[xy]", rates, 0..3);
    let overhead = (prop::option::of(0_u64..1 << 30), prop::option::of(0_u64..1 << 30));
    let overhead = overhead.prop_map(|(instruction_ns, transfer_ns)| Overhead { instruction_ns, transfer_ns });
    let overheads = prop::collection::btree_map("[xy]", overhead, 0..3);
    (works, transfers, memories, sizes, kinds, rates, overheads, 0_u64..100).prop_map(
        move |(works, transfers, memories, sizes, kinds, rates, overheads, age)| {
            let distribution = |times: Vec<u64>| {
                let mut sketch = Sketch::new();
                times.iter().for_each(|&ns| sketch.record(ns));
                Distribution::new(&sketch, age, age + 1)
            };
            let works = works.into_iter().map(|((signature, kind, phase, software), times)| {
                (WorkKey { signature, kind, phase: Phase::ALL[phase], software }, distribution(times))
            });
            let transfers = transfers.into_iter().map(|((sender, receiver, bytes), times)| {
                (TransferKey { sender, receiver, bytes }, distribution(times))
            });
            let memory = |(key, (activation_bytes, is_known, workspace_bytes)): (_, (u64, bool, u64))| {
                let weight_gradient_bytes = is_known.then_some(activation_bytes / 2);
                (key, Memory { activation_bytes, weight_gradient_bytes, workspace_bytes })
            };
            let size = |(signature, (parameter_bytes, state_bytes, output_bytes, moved_bytes))| {
                (signature, Sizes { parameter_bytes, state_bytes, output_bytes, moved_bytes })
            };
            let (works, transfers): (std::collections::BTreeMap<_, _>, std::collections::BTreeMap<_, _>) =
                (works.collect(), transfers.collect());
            let samples = works.values().chain(transfers.values()).map(|of: &Distribution| of.count).sum();
            let (name, how) = (format!("run {id}"), "run".to_owned());
            let source = Source { id: id.clone(), name, how, samples, first_seen: age, last_seen: age + 1, merged: 3 };
            Account {
                source,
                works,
                transfers,
                memories: memories.into_iter().map(memory).collect(),
                sizes: sizes.into_iter().map(size).collect(),
                kinds: kinds
                    .into_iter()
                    .map(|(kind, (memory_bytes, reserved_bytes))| (kind, KindMemory { memory_bytes, reserved_bytes }))
                    .collect(),
                rates,
                overheads,
            }
        },
    )
}

/// A state of a run, or a reading of a file: of three origins each, so that they meet.
fn any_state() -> impl Strategy<Value = Account> {
    (0_u8..3, any::<bool>(), 0_u8..3, 1_u64..6, 1_u64..4).prop_map(|(origin, is_file, reading, samples, last_seen)| {
        let mut account = account(&origin.to_string(), samples);
        account.source.last_seen = last_seen;
        if is_file {
            account.source.id = match reading {
                // Of a build that told readings apart by nothing.
                0 => format!("{origin:032x}"),
                _ => format!("{origin:032x}-{reading:08x}"),
            };
            account.source.how = format!("import sailor, kind {}", ["k", "l", "k"][usize::from(reading)]);
        }
        account
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// read(write(x)) = x, as text and in a store.
    #[test]
    fn what_was_written_is_read_again(one in any_account("1".into()), two in any_account("2".into())) {
        let mut collection = Collection::default();
        collection.take(one.clone());
        collection.take(two.clone());
        let text = exchange::write(&collection).unwrap();
        let read = exchange::read("x", &text, None, 0).unwrap();
        prop_assert_eq!(exchange::write(&read).unwrap(), text);
        prop_assert_eq!(read.works().unwrap(), collection.works().unwrap());
        prop_assert_eq!(read.rates(), collection.rates());
        prop_assert_eq!(read.overheads(), collection.overheads());
        prop_assert_eq!(read.accounts().map(|of| &of.source).collect::<Vec<_>>(), [&one.source, &two.source]);

        let dir = tempfile::tempdir().unwrap();
        Library::open(dir.path()).unwrap().merge(&[two, one], 3).unwrap();
        prop_assert_eq!(library::read(dir.path()).unwrap(), collection);
    }

    /// In what order states of runs and readings of files are merged, how often, and by what way, does not matter.
    #[test]
    fn merging_commutes_and_is_idempotent(
        all in prop::collection::vec(any_state(), 1..8).prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        cut in 0_usize..8,
        again in 0_usize..8,
    ) {
        let (all, shuffled) = all;
        let in_order = |accounts: &[Account]| {
            let mut collection = Collection::default();
            accounts.iter().cloned().for_each(|account| collection.take(account));
            collection
        };
        let whole = in_order(&all);
        prop_assert_eq!(&in_order(&shuffled), &whole);
        let (one, two) = shuffled.split_at(cut.min(shuffled.len()));
        let mut joined = in_order(two);
        joined.take_all(in_order(one));
        joined.take(shuffled[again % shuffled.len()].clone());
        joined.take_all(in_order(two));
        prop_assert_eq!(&joined, &whole);

        // On disk, with another instant of each merge.
        let dir = tempfile::tempdir().unwrap();
        let mut library = Library::open(dir.path()).unwrap();
        library.merge(&shuffled, 1).unwrap();
        library.merge(&all, 2).unwrap();
        let told = |collection: &Collection| {
            let account = |account: &Account| {
                let mut account = account.clone();
                account.source.merged = 0;
                account
            };
            collection.accounts().map(account).collect::<Vec<_>>()
        };
        let found = library::read(dir.path()).unwrap();
        prop_assert_eq!(told(&found), told(&whole));
        let again = library.merge(&found.clone().into_accounts(), 3).unwrap();
        prop_assert!(again.iter().all(|merged| matches!(merged, Merged::Known { .. })), "{:?}", again);
        prop_assert_eq!(library::read(dir.path()).unwrap(), found);
    }
}
