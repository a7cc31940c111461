//! Whom to ask when: the budget holds, and everybody has a turn.

use adaptis_agent_core::Rota;
use proptest::prelude::*;

const BUDGET_NS: f64 = 2_000_000.0;

/// Looks, with costs that are the same each time: how often each was asked, and what all of it took.
fn looks(rota: &mut Rota, costs_ns: &[u64], count: u64) -> (Vec<u64>, Vec<u64>) {
    let (mut asked, mut totals_ns) = (vec![0; costs_ns.len()], Vec::new());
    for _ in 0..count {
        let mut total_ns = 0;
        for at in rota.next_look() {
            rota.took(at, costs_ns[at]);
            asked[at] += 1;
            total_ns += costs_ns[at];
        }
        totals_ns.push(total_ns);
    }
    (asked, totals_ns)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_budget_holds_and_everybody_has_a_turn(costs_ns in prop::collection::vec(0..50_000_000_u64, 1..40)) {
        let mut rota = Rota::new(costs_ns.len(), BUDGET_NS);
        let (first, _) = looks(&mut rota, &costs_ns, 2);
        prop_assert!(first.iter().all(|asked| *asked == 2), "little is known before the second look");
        prop_assert!(rota.use_share() <= 1.0 + 1e-6, "{rota:?}");
        let longest = (0..costs_ns.len()).filter_map(|at| rota.every_looks(at)).max().unwrap_or(1);
        let count = 8 * longest;
        let (asked, totals_ns) = looks(&mut rota, &costs_ns, count);
        // At the ends of the period one more of each may fall into it.
        let fringe_ns: u64 = costs_ns.iter().sum();
        let total_ns: u64 = totals_ns.iter().sum();
        prop_assert!(total_ns as f64 <= BUDGET_NS * count as f64 + fringe_ns as f64, "{total_ns} in {count} looks");
        for (at, asked) in asked.iter().enumerate() {
            let every = rota.every_looks(at).unwrap();
            prop_assert!(*asked >= count / every / 2, "{at} was asked {asked} times of {count} / {every}");
        }
    }

    #[test]
    fn what_is_dear_comes_one_at_a_time(dear_ns in 3_000_000..40_000_000_u64, dear in 2..12_usize) {
        let costs_ns: Vec<u64> = [vec![10_000; 8], vec![dear_ns; dear]].concat();
        let mut rota = Rota::new(costs_ns.len(), BUDGET_NS);
        looks(&mut rota, &costs_ns, 2);
        let (asked, totals_ns) = looks(&mut rota, &costs_ns, 2_000);
        let most_ns = totals_ns.iter().max().copied().unwrap_or(0);
        prop_assert!(most_ns <= dear_ns + 8 * 10_000, "{most_ns}");
        prop_assert!(asked[..8].iter().all(|asked| *asked == 2_000), "the cheap ones come each time: {asked:?}");
    }
}

#[test]
fn a_call_that_became_dear_is_asked_less_and_one_slow_answer_changes_nothing() {
    let mut rota = Rota::new(2, BUDGET_NS);
    looks(&mut rota, &[50_000, 50_000], 3);
    assert_eq!((rota.every_looks(0), rota.every_looks(1)), (Some(1), Some(1)));
    looks(&mut rota, &[50_000, 40_000_000], 1);
    assert_eq!(rota.every_looks(1), Some(1), "once is no news");
    looks(&mut rota, &[50_000, 50_000], 2);
    looks(&mut rota, &[50_000, 40_000_000], 2);
    assert!(rota.every_looks(1) >= Some(20), "{rota:?}");
    looks(&mut rota, &[50_000, 50_000], 2_000);
    assert_eq!(rota.every_looks(1), Some(1));
}

#[test]
fn who_is_retired_leaves_its_share() {
    let mut rota = Rota::new(2, BUDGET_NS);
    let costs_ns = [20_000_000, 20_000_000];
    looks(&mut rota, &costs_ns, 2);
    let both = rota.every_looks(0).unwrap();
    rota.retire(1);
    looks(&mut rota, &costs_ns, 100);
    assert_eq!(rota.every_looks(1), None);
    assert!(rota.every_looks(0).unwrap() <= both / 2 + 1);
    assert!(!rota.next_look().contains(&1));
}
