//! Messages as bytes: golden ones, so that a change of the wire is seen, and refusals.

use adaptis_proto::message::{
    AgentEvent, AgentOrder, Ask, Batch, ClockOffset, FromCoordinator, PeerBody, PeerHeader, RankOrder, TensorKind,
    TensorTag, ToCoordinator,
};
use adaptis_proto::sample::Record;
use adaptis_proto::wire::{OLDEST, VERSION, WireError, decode, decode_with, encode, encode_with};
use adaptis_proto::{DeviceIndex, Epoch, Generation, Incarnation, Microbatch, StageIndex, Step, Term};
use proptest::prelude::*;

fn batch() -> ToCoordinator {
    ToCoordinator::Agent(AgentEvent::Batch(Batch {
        device: "gpu0".into(),
        ring: Incarnation(7),
        first: 300,
        records: vec![Record([1, 2, 3, 4, 5, 6])],
        dropped: 0,
        clock: Some(ClockOffset { offset_ns: -3, error_ns: 200 }),
    }))
}

#[test]
fn golden_bytes() {
    let abort = FromCoordinator::Rank(RankOrder::Abort { term: Term(3), epoch: Epoch(300) });
    // Magic, version, rank, third order, term, epoch as a varint.
    assert_eq!(encode(&abort), [0xad, 1, 0, 2, 3, 0xac, 0x02]);
    assert_eq!(encode(&ToCoordinator::Ask(Ask::Status)), [0xad, 1, 2, 0]);
    assert_eq!(encode(&ToCoordinator::Ask(Ask::Figures)), [0xad, 1, 2, 3]);
    let expected = [
        &[0xad, 1, 1, 0, 4][..],
        b"gpu0",
        &[7, 0xac, 0x02],
        &[1, 1, 2, 3, 4, 5, 6],
        // Dropped none; a clock, whose offset is a zigzag varint.
        &[0, 1, 5, 0xc8, 0x01],
    ]
    .concat();
    assert_eq!(encode(&batch()), expected);
    let stored = FromCoordinator::Agent(AgentOrder::Stored { ring: Incarnation(1), next: 9 });
    assert_eq!(encode(&stored), [0xad, 1, 1, 0, 1, 9]);
    let stopping =
        PeerHeader { generation: Generation(1), epoch: Epoch(2), from: DeviceIndex(3), body: PeerBody::Stopping };
    assert_eq!(encode_with(&stopping, &[9, 9])[..5], [0xad, 1, 1, 2, 3]);
    let tag = TensorTag { kind: TensorKind::Gradient, stage: StageIndex(4), microbatch: Microbatch(5) };
    assert_eq!(encode(&tag), [0xad, 1, 1, 4, 5]);
}

#[test]
fn a_message_comes_back() {
    assert_eq!(decode::<ToCoordinator>(&encode(&batch())).expect("it was encoded"), batch());
}

#[test]
fn what_is_no_message_is_told_apart() {
    let good = encode(&batch());
    for foreign in [&[][..], &[0xad], &[0xae, 1, 0], b"GET / HTTP/1.1"] {
        let error = decode::<ToCoordinator>(foreign).expect_err("it is foreign");
        assert!(matches!(error, WireError::Foreign { length } if length == foreign.len()), "{error}");
    }
    for version in [OLDEST - 1, VERSION + 1, u8::MAX] {
        let mut other = good.clone();
        other[1] = version;
        let error = decode::<ToCoordinator>(&other).expect_err("it is of another version");
        assert!(matches!(error, WireError::Version { found } if found == version), "{error}");
    }
    // A kind that a later build may add.
    let error = decode::<ToCoordinator>(&[0xad, VERSION, 99, 0]).expect_err("the kind is unknown");
    assert!(matches!(error, WireError::Malformed(_)), "{error}");
    for length in 2..good.len() {
        let error = decode::<ToCoordinator>(&good[..length]).expect_err("it is cut");
        assert!(matches!(error, WireError::Malformed(_)), "{length}: {error}");
    }
}

proptest! {
    #[test]
    fn a_payload_follows_its_header_untouched(
        generation in any::<u64>(), epoch in any::<u64>(), from in any::<u32>(), step in any::<u64>(),
        payload in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let header = PeerHeader {
            generation: Generation(generation),
            epoch: Epoch(epoch),
            from: DeviceIndex(from),
            body: PeerBody::Settled { step: Step(step), ready_ns: 1 },
        };
        let bytes = encode_with(&header, &payload);
        let (read, rest) = decode_with::<PeerHeader>(&bytes).expect("it was encoded");
        prop_assert_eq!(read, header);
        prop_assert_eq!(rest, &payload[..]);
    }

    #[test]
    fn no_bytes_harm_the_reader(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), ours in any::<bool>()) {
        if ours && bytes.len() > 2 {
            bytes[..2].copy_from_slice(&[0xad, VERSION]);
        }
        let _ = (decode::<ToCoordinator>(&bytes), decode::<FromCoordinator>(&bytes));
        if let Ok((_, rest)) = decode_with::<PeerHeader>(&bytes) {
            prop_assert!(rest.len() < bytes.len());
        }
    }
}
