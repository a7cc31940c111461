//! A campaign of random problems: a valid plan or a right refusal, whatever the problem.
//!
//! A hundred problems here; any number by
//! `cargo run -p adaptis-planner --example campaign -- 1000`.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod generate;
mod literal;
mod oracle;
mod verdict;

use generate::Dice;
use verdict::End;

const PROBLEMS: u64 = 100;
const EVALUATIONS: u64 = 3_000;

#[test]
fn a_hundred_random_problems_are_planned_or_rightly_refused() {
    let mut planned = 0;
    for number in 0..PROBLEMS {
        let problem = generate::problem(number);
        let (end, wrong) = verdict::judge(&problem, EVALUATIONS, &mut Dice::new(number));
        assert!(wrong.is_empty(), "problem {number}: {wrong:?}\n{}", problem.write());
        planned += u64::from(end == End::Planned);
    }
    // Neither answer is the rule.
    assert!((PROBLEMS / 5..PROBLEMS).contains(&planned), "{planned} of {PROBLEMS} planned");
}
