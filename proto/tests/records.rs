//! A record is the exact inverse of its sample, within the ranges that the layout states.

use adaptis_proto::sample::{Mark, Phase, Place, Record, Sample, UnknownRecord};
use adaptis_proto::{DeviceIndex, Epoch, Generation, LayerIndex, Microbatch, Step};
use proptest::prelude::*;

const BITS_24: u64 = 1 << 24;
const BITS_40: u64 = 1 << 40;

fn places() -> impl Strategy<Value = Place> {
    (0..BITS_40, 0..BITS_40, 0..BITS_24).prop_map(|(step, epoch, generation)| Place {
        step: Step(step),
        epoch: Epoch(epoch),
        generation: Generation(generation),
    })
}

fn microbatches() -> impl Strategy<Value = Microbatch> {
    (0..1_u32 << 24).prop_map(Microbatch)
}

fn marks() -> impl Strategy<Value = Mark> {
    prop_oneof![Just(Mark::Warm), Just(Mark::Cold), Just(Mark::Calibration), Just(Mark::Hasty)]
}

fn phases() -> impl Strategy<Value = Phase> {
    (0..Phase::ALL.len()).prop_map(|index| Phase::ALL[index])
}

fn samples() -> impl Strategy<Value = Sample> {
    let three = any::<(u64, u64, u64)>;
    prop_oneof![
        (places(), any::<u32>(), microbatches(), phases(), marks(), any::<(u64, u64)>()).prop_map(
            |(place, layer, microbatch, phase, mark, (start_ns, duration_ns))| {
                Sample::Work { place, layer: LayerIndex(layer), microbatch, phase, mark, start_ns, duration_ns }
            }
        ),
        (places(), any::<u32>(), microbatches(), marks(), three()).prop_map(
            |(place, from, microbatch, mark, (bytes, start_ns, duration_ns))| {
                Sample::Transfer { place, from: DeviceIndex(from), microbatch, mark, bytes, start_ns, duration_ns }
            }
        ),
        (places(), any::<u32>(), three()).prop_map(
            |(place, layer, (activation_bytes, weight_gradient_bytes, workspace_bytes))| Sample::LayerMemory {
                place,
                layer: LayerIndex(layer),
                activation_bytes,
                weight_gradient_bytes,
                workspace_bytes,
            }
        ),
        (places(), three()).prop_map(|(place, (peak_bytes, reserved_bytes, late_ns))| Sample::DeviceMemory {
            place,
            peak_bytes,
            reserved_bytes,
            late_ns
        }),
        (places(), any::<(u64, u64, u32)>()).prop_map(|(place, (start_ns, duration_ns, loss_bits))| {
            Sample::Iteration { place, start_ns, duration_ns, loss_bits }
        }),
        (places(), any::<(u32, u64, u64, u32)>()).prop_map(
            |(place, (layers_moved, bytes_received, pause_ns, from))| {
                Sample::Switch { place, layers_moved, bytes_received, pause_ns, from }
            }
        ),
        (places(), marks(), any::<(u32, u64, u64)>()).prop_map(|(place, mark, (instructions, own_ns, transfers))| {
            Sample::Between { place, mark, instructions, own_ns, transfers }
        }),
        (places(), microbatches(), three()).prop_map(|(place, microbatch, (tokens, squares, busiest))| Sample::Load {
            place,
            microbatch,
            tokens,
            squares,
            busiest
        }),
    ]
}

proptest! {
    #[test]
    fn a_sample_comes_back_from_its_record(sample in samples()) {
        prop_assert_eq!(Sample::try_from(Record::from(sample)), Ok(sample));
    }

    /// Whatever a torn or foreign ring holds: an error value, or a sample whose record reads the same again.
    #[test]
    fn no_record_harms_the_reader(words in any::<[u64; Record::WORDS]>(), kind in 0..10_u64) {
        let mut record = Record(words);
        for word in [words[0], words[0] & !(0xff << 56) | kind << 56, kind << 56 | words[0] & 0x3_0000_0000] {
            record.0[0] = word;
            if let Ok(sample) = Sample::try_from(record) {
                prop_assert_eq!(Sample::try_from(Record::from(sample)), Ok(sample));
            }
        }
    }

    /// Numbers beyond the layout's bits lose their upper part and touch no neighbour.
    #[test]
    fn larger_numbers_are_cut(step in any::<u64>(), epoch in any::<u64>(), generation in any::<u64>(), microbatch in any::<u32>()) {
        let place = Place { step: Step(step), epoch: Epoch(epoch), generation: Generation(generation) };
        let sample = |place, microbatch| Sample::Work {
            place,
            layer: LayerIndex(u32::MAX),
            microbatch: Microbatch(microbatch),
            phase: Phase::Recompute,
            mark: Mark::Cold,
            start_ns: u64::MAX,
            duration_ns: 0,
        };
        let cut = Place {
            step: Step(step % BITS_40),
            epoch: Epoch(epoch % BITS_40),
            generation: Generation(generation % BITS_24),
        };
        let expected = sample(cut, microbatch % (1 << 24));
        prop_assert_eq!(Sample::try_from(Record::from(sample(place, microbatch))), Ok(expected));
    }
}

#[test]
fn the_layout_is_that_of_the_module() {
    let place = Place { step: Step(0x11), epoch: Epoch(0x22), generation: Generation(0x33) };
    let work = Sample::Work {
        place,
        layer: LayerIndex(0x44),
        microbatch: Microbatch(0x55),
        phase: Phase::WeightGradient,
        mark: Mark::Calibration,
        start_ns: 0x66,
        duration_ns: 0x77,
    };
    let words = [0x0102_0002_0000_0044, 0x0000_0000_1100_0055, 0x0000_0000_2200_0033, 0x66, 0x77, 0];
    assert_eq!(Record::from(work), Record(words));
    let switch = Sample::Switch { place, layers_moved: 1, bytes_received: 2, pause_ns: 3, from: 4 };
    let words = [0x0600_0000_0000_0001, 0x0000_0000_1100_0000, 0x0000_0000_2200_0033, 2, 3, 4];
    assert_eq!(Record::from(switch), Record(words));
    let load = Sample::Load { place, microbatch: Microbatch(0x55), tokens: 2, squares: 3, busiest: 4 };
    let words = [0x0700_0000_0000_0000, 0x0000_0000_1100_0055, 0x0000_0000_2200_0033, 2, 3, 4];
    assert_eq!(Record::from(load), Record(words));
    let between = Sample::Between { place, mark: Mark::Cold, instructions: 2, own_ns: 3, transfers: 4 };
    let words = [0x0800_0001_0000_0002, 0x0000_0000_1100_0000, 0x0000_0000_2200_0033, 3, 4, 0];
    assert_eq!(Record::from(between), Record(words));
}

#[test]
fn what_no_version_writes_is_named() {
    for (head, expected) in [
        (0, UnknownRecord::Kind(0)),
        (9 << 56, UnknownRecord::Kind(9)),
        (1 << 56 | 5 << 48, UnknownRecord::Phase(5)),
        (1 << 56 | 4 << 32, UnknownRecord::Mark(4)),
    ] {
        assert_eq!(Sample::try_from(Record([head, 0, 0, 0, 0, 0])), Err(expected));
    }
}
