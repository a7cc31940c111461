//! The inner loops of the search by themselves: for benches and for counting instructions, not for use.

use crate::costs::Costs;
use crate::listing::Listing;
use crate::program::Programs;
use crate::recipe::Genes;
use crate::replay::Replay;
use crate::rules::Rules;
use crate::search::order;
use crate::shape::{Shape, Tables, programs_of};
use adaptis_plan::{Plan, Problem};

/// A plan, ready to be replayed, listed anew and changed as often as one likes.
#[derive(Debug)]
pub struct InnerLoops {
    costs: Costs,
    rules: Rules,
    shape: Shape,
    tables: Tables,
    programs: Programs,
    replay: Replay,
    listing: Listing,
}

impl InnerLoops {
    /// For a plan that is valid for the problem.
    ///
    /// # Panics
    /// If the problem's constraints contradict one another.
    pub fn new(problem: &Problem, plan: &Plan) -> Self {
        let (costs, shape) = (Costs::new(problem), Shape::of(plan));
        Self {
            rules: Rules::new(problem).expect("a valid plan keeps the constraints"),
            tables: Tables::new(&costs, &shape),
            costs,
            shape,
            programs: programs_of(plan),
            replay: Replay::default(),
            listing: Listing::default(),
        }
    }

    /// Operations of the plan.
    pub fn operations(&self) -> usize {
        self.programs.iter().map(Vec::len).sum()
    }

    /// Replays the plan's order: the end of its last operation; `None` if its programs wait for one another.
    pub fn replay(&mut self) -> Option<u64> {
        self.replay.run(&self.tables, &self.programs)
    }

    /// Lists new programs for the plan's stages: the end of the last operation; `None` where no order fits.
    pub fn list(&mut self) -> Option<u64> {
        self.listing.run(&self.tables, &Genes::STANDARD[0].recipe(&self.tables), u64::MAX)
    }

    /// Operations that were listed last.
    pub fn listed(&self) -> usize {
        self.listing.programs.iter().map(Vec::len).sum()
    }

    /// Anneals the plan's order for so many steps: how many moves were timed; `None` where the plan can't run.
    pub fn change(&self, steps: usize) -> Option<u64> {
        order::moves(&self.costs, &self.rules, &self.shape, &self.programs, steps)
    }
}
