//! The two inner loops of the search by themselves: for benches and for counting instructions, not for use.

use crate::costs::Costs;
use crate::listing::Listing;
use crate::program::Programs;
use crate::recipe::Genes;
use crate::replay::Replay;
use crate::shape::{Shape, Tables, programs_of};
use adaptis_plan::{Plan, Problem};

/// A plan, ready to be replayed and listed anew as often as one likes.
#[derive(Debug)]
pub struct InnerLoops {
    tables: Tables,
    programs: Programs,
    replay: Replay,
    listing: Listing,
}

impl InnerLoops {
    /// For a plan that is valid for the problem.
    pub fn new(problem: &Problem, plan: &Plan) -> Self {
        let tables = Tables::new(&Costs::new(problem), &Shape::of(plan));
        Self { tables, programs: programs_of(plan), replay: Replay::default(), listing: Listing::default() }
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
}
