//! The probes on stand-in drivers, each test in a process of its own.

use super::nvml::{Poller, open};
use super::questions::Question;
use super::*;
use adaptis_standin::{Library, Script, Stage};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

const UUID: &str = "GPU-00000000-0000-0000-0000-000000000000";
const EVERY: Duration = Duration::from_millis(20);

/// A card that answers everything. Counters are what `seconds` make of them.
fn script(seconds: f64) -> String {
    let counters = [
        ("energy_mj", 500_000.0),
        ("ecc_corrected", 4.0),
        ("pcie_replays", 3.0),
        ("field.197", 2e9),
        ("field.198", 1e9),
        ("field.138", 1e6),
        ("field.139", 2e6),
    ];
    let plain = "nvml.log 1
nvml.0.sm_clock_mhz 1980\nnvml.0.memory_clock_mhz 2619\nnvml.0.power_mw 350500\nnvml.0.power_limit_mw 700000
nvml.0.temperature_c 61\nnvml.0.gpu_utilisation 98\nnvml.0.memory_utilisation 40\nnvml.0.memory_total 1000\nnvml.0.memory_used 300
nvml.0.throttle_bits 68\nnvml.0.ecc_uncorrected 0\nnvml.0.pcie_tx_kb_per_s 7\nnvml.0.pcie_rx_kb_per_s 8\n";
    let moving = counters.map(|(name, rate)| format!("nvml.0.{name} {}\n", (rate * seconds) as u64));
    plain.to_owned() + &moving.concat()
}

fn alone(test: &str, script: &str) -> Option<PathBuf> {
    let stage = Stage::with(&[Library::Cuda, Library::Nvml]).script(script);
    stage.alone(&format!("probes::tests::{test}"))
}

fn named(readings: &Readings) -> BTreeMap<&str, f64> {
    readings.iter().map(|(name, value)| (name.as_str(), *value)).collect()
}

/// How often a function was called since the last time.
fn calls(script: &Path, function: &str) -> usize {
    let log = std::fs::read_to_string(script.with_extension("calls")).unwrap_or_default();
    log.lines().filter(|line| *line == function).count()
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Rewrites counters so that they move by what a second makes of them, and looks before and after.
fn two_looks(script_path: &Path, change: impl Fn(String) -> String) -> (Readings, f64) {
    let nvml = open().unwrap();
    let mut poller = Poller::new(&nvml, None, Duration::from_secs(3600)).unwrap();
    Script::write(script_path, &script(1.0)).unwrap();
    let from = Instant::now();
    poller.look();
    std::thread::sleep(Duration::from_millis(50));
    Script::write(script_path, &change(script(1.1))).unwrap();
    let readings = poller.look().remove(0).readings;
    // As if a tenth of a second had passed: rates are as much higher as less did.
    (readings, 0.1 / from.elapsed().as_secs_f64())
}

#[test]
fn a_card_answers_everything() {
    let Some(path) = alone("a_card_answers_everything", &script(1.0)) else { return };
    let (readings, speed) = two_looks(&path, |script| script);
    let readings = named(&readings);
    let still = [
        ("sm_clock_mhz", 1980.0),
        ("memory_clock_mhz", 2619.0),
        ("power_w", 350.5),
        ("power_limit_w", 700.0),
        ("temperature_c", 61.0),
        ("gpu_utilisation_percent", 98.0),
        ("memory_utilisation_percent", 40.0),
        ("memory_used_bytes", 300.0),
        ("memory_free_bytes", 700.0),
        ("memory_total_bytes", 1000.0),
        ("throttle_reasons_bits", 68.0),
        ("throttled_by_power_cap", 1.0),
        ("throttled_by_hardware_heat", 1.0),
        ("throttled_by_idle", 0.0),
        ("ecc_uncorrected_errors", 0.0),
        ("ecc_uncorrected_errors_per_s", 0.0),
    ];
    for (name, value) in still {
        assert_eq!(readings.get(name), Some(&value), "{name}");
    }
    let moving = [
        ("power_mean_w", 500.0),
        ("pcie_sent_bytes_per_s", 2e9),
        ("pcie_received_bytes_per_s", 1e9),
        ("nvlink_sent_bytes_per_s", 1024e6),
        ("nvlink_received_bytes_per_s", 2048e6),
    ];
    for (name, rate) in moving {
        // Calls are timed one by one within the looks.
        let found = readings[name] / (rate * speed);
        assert!((0.9..1.5).contains(&found), "{name}: {found}");
    }
    assert!(readings.contains_key("pcie_replays_per_s"));
}

#[test]
fn counters_that_wrap_or_start_anew_give_no_wrong_rate() {
    let Some(path) = alone("counters_that_wrap_or_start_anew_give_no_wrong_rate", &script(1.0)) else { return };
    let change = |script: String| {
        script
            // Gone round: 64 bits of KiB, one below zero before.
            .replace("field.138 1100000", "field.138 100000")
            // Reset by the driver.
            .replace("energy_mj 550000", "energy_mj 5")
            // Narrow: at these speeds it may have gone round any number of times.
            + "nvml.0.field.197.bits 32\n"
    };
    let nvml = open().unwrap();
    let mut poller = Poller::new(&nvml, None, Duration::from_secs(3600)).unwrap();
    let wrapping = script(1.0).replace("field.138 1000000", &format!("field.138 {}", u64::MAX - 99_999));
    Script::write(&path, &(wrapping + "nvml.0.field.197.bits 32\n")).unwrap();
    poller.look();
    std::thread::sleep(Duration::from_millis(50));
    Script::write(&path, &change(script(1.1))).unwrap();
    let readings = poller.look().remove(0).readings;
    let readings = named(&readings);
    let per_s = readings["nvlink_sent_bytes_per_s"];
    assert!((1e9..4.1e9).contains(&per_s), "200,000 KiB in 50 ms and a little: {per_s}");
    assert_eq!(readings.get("power_mean_w"), None);
    assert_eq!(readings["pcie_sent_bytes_per_s"], 7_000.0, "the driver's own sample, and no wrong rate");
    assert!(readings.contains_key("pcie_received_bytes_per_s"));
}

#[test]
fn what_a_card_does_not_know_is_left_out_and_not_asked_again() {
    let script = "nvml.log 1\nnvml.0.sm_clock_mhz 1410\nnvml.0.temperature_c 40\nnvml.0.pcie_tx_kb_per_s 7\nnvml.0.pcie_rx_kb_per_s 8\n";
    let Some(path) = alone("what_a_card_does_not_know_is_left_out_and_not_asked_again", script) else { return };
    let nvml = open().unwrap();
    let mut poller = Poller::new(&nvml, Some(UUID), Duration::from_secs(3600)).unwrap();
    for _ in 0..3 {
        let cards = poller.look();
        let names: Vec<&str> = cards[0].readings.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["pcie_received_bytes_per_s", "pcie_sent_bytes_per_s", "sm_clock_mhz", "temperature_c"]);
        assert_eq!(cards[0].readings[1].1, 7_000.0);
    }
    assert_eq!(calls(&path, "nvmlDeviceGetPowerUsage"), 1);
    assert_eq!(calls(&path, "nvmlDeviceGetTemperature"), 3);
    assert_eq!(poller.costs().errors, 0, "a card that does not know is no error");
}

#[test]
fn an_older_driver_is_asked_in_its_own_way() {
    let stage = Stage::with(&[Library::Cuda, Library::Nvml])
        .lacking(Library::Nvml, "nvmlDeviceGetMemoryInfo_v2")
        .lacking(Library::Nvml, "nvmlDeviceGetFieldValues")
        .lacking(Library::Cuda, "cuDeviceGetUuid")
        .script(&script(1.0));
    let Some(_) = stage.alone("probes::tests::an_older_driver_is_asked_in_its_own_way") else { return };
    let nvml = open().unwrap();
    let mut poller = Poller::new(&nvml, None, Duration::from_secs(3600)).unwrap();
    let cards = poller.look();
    let readings = named(&cards[0].readings);
    assert_eq!(readings["memory_free_bytes"], 700.0);
    assert_eq!(readings["pcie_sent_bytes_per_s"], 7_000.0, "without counters the driver's own sample counts");
    assert!(!readings.contains_key("nvlink_sent_bytes_per_s"));
    assert_eq!(cuda::find("0"), None, "and nobody panics");
}

#[test]
fn the_card_is_found_by_number_and_by_uuid() {
    let Some(_) = alone("the_card_is_found_by_number_and_by_uuid", "nvml.count 2\ncuda.devices 2") else { return };
    let nvml = open().unwrap();
    let second = UUID.replace("000000000000", "000000000001");
    assert_eq!(nvml::uuid(&nvml, "1"), Some(second.clone()));
    assert_eq!(nvml::uuid(&nvml, &second), Some(second.clone()));
    assert_eq!((nvml::uuid(&nvml, "2"), nvml::uuid(&nvml, "GPU-x")), (None, None));
    let card = cuda::find(&second).unwrap();
    assert_eq!((card.name.as_str(), card.uuid), ("NVIDIA Stand-in 80GB", second));
    assert_eq!(card.memory_bytes, 80 << 30);
}

#[test]
fn a_lost_gpu_says_nothing_and_comes_back() {
    let Some(path) = alone("a_lost_gpu_says_nothing_and_comes_back", &script(1.0)) else { return };
    let nvml = open().unwrap();
    let mut poller = Poller::new(&nvml, None, Duration::from_secs(3600)).unwrap();
    assert!(poller.look()[0].readings.len() > 15);
    Script::write(&path, &(script(1.0) + "nvml.0.lost 1\n")).unwrap();
    assert_eq!(poller.look()[0].readings, []);
    let before = calls(&path, "nvmlDeviceGetTemperature");
    (0..10).for_each(|_| drop(poller.look()));
    assert_eq!(calls(&path, "nvmlDeviceGetTemperature"), before, "who is lost is left alone");
    Script::write(&path, &script(1.0)).unwrap();
    let back = (0..20).map(|_| poller.look().remove(0).readings.len()).max().unwrap();
    assert!(back > 15, "{back}");
}

#[test]
fn dear_calls_are_rare_and_the_budget_holds() {
    let slow = "nvml.nvmlDeviceGetPowerUsage.delay_us 4000\nnvml.nvmlDeviceGetUtilizationRates.delay_us 9000\n";
    let Some(path) = alone("dear_calls_are_rare_and_the_budget_holds", &(script(1.0) + slow)) else { return };
    let nvml = open().unwrap();
    // Looks of two seconds as far as the budget is concerned, which is 2 ms; the test takes them one after the other.
    let mut poller = Poller::new(&nvml, None, Duration::from_secs(2)).unwrap();
    (0..2).for_each(|_| drop(poller.look()));
    let count =
        || ["Temperature", "PowerUsage", "UtilizationRates"].map(|of| calls(&path, &format!("nvmlDeviceGet{of}")));
    let before = count();
    let looks = 200;
    (0..looks).for_each(|_| drop(poller.look()));
    let [cheap, power, utilisation] = std::array::from_fn(|at| count()[at] - before[at]);
    // By what each takes at least, since a busy machine adds to any of them.
    let spent_ms = 4 * power + 9 * utilisation;
    assert!(spent_ms <= looks * 2 + 4 + 9, "{spent_ms} ms in {looks} looks");
    assert!(poller.core_share() <= 0.001 + 1e-9);
    // However busy the machine is: what takes nothing is asked much more often than what takes milliseconds.
    assert!(power >= 2 && utilisation >= 1 && cheap >= 3 * power, "{cheap} {power} {utilisation}");
    assert!(poller.every_looks(0, Question::Utilisation) > poller.every_looks(0, Question::Temperature));
    assert!(poller.costs().call_ns_max >= 9_000_000);
}

#[test]
fn a_driver_that_hangs_keeps_nobody_waiting() {
    let Some(path) = alone("a_driver_that_hangs_keeps_nobody_waiting", &script(1.0)) else { return };
    let mut probes = Probes::start_looking(Some("0".into()), EVERY).unwrap();
    wait_for("readings", || named(&probes.readings()).contains_key("sm_clock_mhz"));
    Script::write(&path, &(script(1.0) + "nvml.nvmlDeviceGetClockInfo.delay_us hang\n")).unwrap();
    wait_for("silence", || !named(&probes.readings()).contains_key("sm_clock_mhz"));
    let from = Instant::now();
    assert!(named(&probes.readings()).contains_key("agent_cpu_share"), "the host goes on");
    assert!(from.elapsed() < Duration::from_millis(200));
    assert!(probes.counters().contains(&("driver_hangs".into(), 1)));
    Script::write(&path, &script(1.0)).unwrap();
    wait_for("the driver", || named(&probes.readings()).contains_key("sm_clock_mhz"));
    assert!(probes.counters().iter().any(|(name, count)| name == "nvml_calls" && *count > 10));
}

#[test]
fn agents_of_a_node_share_one_poller_and_its_end_hands_it_on() {
    let two = script(1.0) + &script(1.0).replace("nvml.0.", "nvml.1.").replace("1980", "990") + "nvml.count 2\n";
    let Some(path) = alone("agents_of_a_node_share_one_poller_and_its_end_hands_it_on", &two) else { return };
    let start = |gpu: &str| Probes::start_looking(Some(gpu.into()), EVERY).unwrap();
    let clock = |probes: &mut Probes| named(&probes.readings()).get("sm_clock_mhz").copied();
    let mut first = start("0");
    wait_for("the first", || clock(&mut first) == Some(1980.0));
    let mut second = start("1");
    let mut third = start("0");
    wait_for("the others", || clock(&mut second) == Some(990.0) && clock(&mut third) == Some(1980.0));
    let asks = |probes: &Probes| probes.counters().iter().any(|(name, _)| name == "nvml_calls");
    assert!(asks(&first) && !asks(&second) && !asks(&third), "one asks for all");
    drop(first);
    wait_for("a successor", || asks(&second) != asks(&third));
    Script::write(&path, &two.replace("990", "880")).unwrap();
    wait_for("both go on", || clock(&mut second) == Some(880.0) && clock(&mut third) == Some(1980.0));
    // Who sees a card that the poller does not reads it for itself.
    let nvml = open().unwrap();
    let node = Node::open();
    assert!(node.is_some());
    let mut stranger = Watch::new(&nvml, "GPU-elsewhere".into(), node, EVERY);
    assert_eq!(stranger.look(), []);
}

#[test]
fn the_inventory_names_drivers_and_cards() {
    let card = |at: usize, name: &str| {
        format!("nvml.{at}.name {name}\nnvml.{at}.memory_total 85520809984\nnvml.{at}.memory_used 0\n")
    };
    let script = format!("nvml.count 3\nnvml.2.lost 1\n{}{}", card(0, "NVIDIA H100 80GB HBM3"), card(1, "NVIDIA L4"));
    let Some(_) = alone("the_inventory_names_drivers_and_cards", &script) else { return };
    let found = inventory::inventory(Duration::from_secs(10)).unwrap();
    assert_eq!(found.nvml, inventory::Library::Answers("550.54.15".into()));
    assert_eq!(found.cuda, inventory::Library::Answers("12.4".into()));
    let names: Vec<&str> = found.gpus.iter().map(|gpu| gpu.name.as_str()).collect();
    assert_eq!((names, found.nvml_count), (vec!["NVIDIA H100 80GB HBM3", "NVIDIA L4"], 3));
    assert_eq!((found.gpus[0].uuid.as_str(), found.gpus[0].memory_bytes), (UUID, 85_520_809_984));
}

#[test]
fn a_driver_that_hangs_gives_no_inventory() {
    let Some(_) = alone("a_driver_that_hangs_gives_no_inventory", "nvml.nvmlInit_v2.delay_us hang") else { return };
    assert_eq!(inventory::inventory(Duration::from_millis(100)), None);
}
