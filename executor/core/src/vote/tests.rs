use super::*;
use adaptis_proto::sample::Place;
use adaptis_proto::{LayerIndex, Step, Term};
use proptest::prelude::*;

const RULES: Rules = Rules { layers: 4, max_norm: 1.0, boundary_ns: 10 };
const DIGEST: Digest = Digest([7; 32]);

fn vote(layers: &[u32]) -> Vote {
    Vote {
        place: Place { step: Step(5), epoch: Epoch(2), generation: Generation(1) },
        term: Term(1),
        armed: None,
        rotated: true,
        drain: None,
        failure: None,
        squares: layers.iter().map(|&layer| (LayerIndex(layer), 0.01)).collect(),
        loss: layers.contains(&3).then_some(2.5),
        ready_ns: 100 + u64::from(layers[0]),
        apply_ns: 20 - u64::from(layers[0]),
    }
}

/// Device 1 holds the last layer, device 2 nothing but a layer in between.
fn votes() -> Vec<Vote> {
    vec![vote(&[0, 1]), vote(&[3]), vote(&[2])]
}

fn applied(votes: &[Vote]) -> Apply {
    match judge(votes, &RULES) {
        Verdict::Apply(apply) => apply,
        stop => panic!("{stop:?}"),
    }
}

#[test]
fn equal_votes_apply_at_the_last_ones_readiness_and_the_slowest_ones_optimizer() {
    let apply = applied(&votes());
    assert_eq!(apply.loss, Some(2.5));
    assert_eq!((apply.norm, apply.scale), (0.2, 1.0));
    assert_eq!((apply.apply_at_ns, apply.start_ns), (103 + 10, 103 + 10 + 20));
    assert_eq!(apply.next, Next::Stay);
}

#[test]
fn instants_out_of_this_world_do_not_overflow() {
    let mut votes = votes();
    (votes[1].ready_ns, votes[2].apply_ns) = (u64::MAX, u64::MAX);
    let apply = applied(&votes);
    assert_eq!((apply.apply_at_ns, apply.start_ns), (u64::MAX, u64::MAX));
}

#[test]
fn a_large_norm_is_clipped() {
    let mut votes = votes();
    votes[2].squares[0].1 = 16.0 - 0.03;
    let apply = applied(&votes);
    assert_eq!((apply.norm, apply.scale), (4.0, 0.25));
}

#[test]
fn whatever_differs_stops_and_is_named() {
    let device = |at| DeviceIndex(at);
    let unequal =
        |dissenters: &[u32]| Failure::VoteUnequal { dissenters: dissenters.iter().copied().map(device).collect() };
    type Change = fn(&mut Vec<Vote>);
    let cases: [(&str, Change, Failure); 11] = [
        ("step", |v| v[1].place.step = Step(6), unequal(&[1])),
        ("epoch", |v| v[0].place.epoch = Epoch(3), unequal(&[0])),
        ("generation", |v| v[2].place.generation = Generation(2), unequal(&[2])),
        ("a rank is missing", |v| drop(v.pop()), unequal(&[0, 1])),
        (
            "two camps",
            |v| {
                v.pop();
                v[1].place.step = Step(6);
            },
            unequal(&[1]),
        ),
        ("layer twice", |v| v[1].squares.push((LayerIndex(2), 0.0)), unequal(&[1, 2])),
        ("layer unknown", |v| v[1].squares.push((LayerIndex(4), 0.0)), unequal(&[1])),
        ("layer missing", |v| v[1].squares.clear(), unequal(&[0, 1, 2])),
        ("infinite", |v| v[1].squares[0].1 = f64::INFINITY, Failure::NotFinite),
        ("loss", |v| v[1].loss = Some(f32::NAN), Failure::NotFinite),
        ("failure", |v| v[2].failure = Some(Failure::NotFinite), Failure::PeerFailed { peer: device(2) }),
    ];
    for (name, change, failure) in cases {
        let mut votes = votes();
        change(&mut votes);
        assert_eq!(judge(&votes, &RULES), Verdict::Stop(failure), "{name}");
    }
}

#[test]
fn a_switch_needs_all_armed_alike_and_rotated() {
    let armed = || {
        let mut votes = votes();
        votes.iter_mut().for_each(|vote| vote.armed = Some((Epoch(3), DIGEST)));
        votes
    };
    let switch = Next::Switch { epoch: Epoch(3), digest: DIGEST };
    assert_eq!(applied(&armed()).next, switch);
    type Change = fn(&mut Vec<Vote>);
    let cases: [(&str, Change, Next); 5] = [
        ("one is not armed", |v| v[1].armed = None, Next::Stay),
        ("the first is not armed", |v| v[0].armed = None, Next::Stay),
        ("another digest", |v| v[1].armed = Some((Epoch(3), Digest([8; 32]))), Next::Stay),
        ("one has not rotated", |v| v[2].rotated = false, Next::Stay),
        ("drain comes first", |v| v[1].drain = Some(Generation(2)), Next::Drain(Generation(2))),
    ];
    for (name, change, next) in cases {
        let mut votes = armed();
        change(&mut votes);
        assert_eq!(applied(&votes).next, next, "{name}");
    }
}

proptest! {
    /// The norm has the same bits wherever the layers are.
    #[test]
    fn the_norm_does_not_depend_on_the_placement(
        squares in proptest::collection::vec(1e-12_f64..1e12, 1..40),
        placement in proptest::collection::vec(0_usize..5, 40),
    ) {
        let rules = Rules { layers: squares.len(), ..RULES };
        let norm = |device_of: &dyn Fn(usize) -> usize| {
            let mut votes = vec![Vote { squares: vec![], ..vote(&[0]) }; 5];
            for (layer, square) in squares.iter().enumerate() {
                votes[device_of(layer)].squares.push((layer.into(), *square));
            }
            match judge(&votes, &rules) {
                Verdict::Apply(apply) => apply.norm.to_bits(),
                stop => panic!("{stop:?}"),
            }
        };
        prop_assert_eq!(norm(&|_| 0), norm(&|layer| placement[layer]));
    }
}
