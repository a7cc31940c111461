//! Which questions to ask a driver at each look, when some take microseconds and others tens of milliseconds.
//!
//! Households share one well that gives so much water a day. Who needs little drinks every day; what those leave is
//! shared evenly among the thirsty, each of whom comes as seldom as its share demands. So nobody who needs little ever
//! waits for somebody who needs much, and the well is never overdrawn.
//!
//! 1. A question's cost is measured each time it is asked, and is the median of the last three times: one slow answer, of
//!    a busy host or a driver that wakes up, changes nothing.
//! 2. Over any long time the costs of what is asked stay within the budget, at the costs measured.
//! 3. Every question is asked at the first two looks, when little is known of it, and again and again unless it is retired.
//! 4. Dear questions come one at a time where they can: who waited longest, first.
//!
//! Left out on purpose: the questions themselves, and their answers.

/// One question.
#[derive(Clone, Copy, Debug, Default)]
struct Question {
    /// What asking took the last times, the latest first.
    took_ns: [Option<f64>; 3],
    /// Looks between two askings.
    every_looks: u64,
    /// At this look it is due.
    due: u64,
    is_retired: bool,
}

impl Question {
    /// What asking takes; none before it was asked. Of two times the shorter, since the first is often a slow one.
    fn cost_ns(&self) -> Option<f64> {
        match self.took_ns {
            [Some(a), Some(b), Some(c)] => Some(a.max(b).min(a.min(b).max(c))),
            [Some(a), Some(b), None] => Some(a.min(b)),
            [latest, ..] => latest,
        }
    }

    /// It was asked twice at least.
    fn is_known(&self) -> bool {
        self.took_ns[1].is_some()
    }

    /// It is not asked at every look.
    fn is_seldom(&self) -> bool {
        self.is_known() && self.every_looks > 1
    }
}

/// Whom to ask when.
#[derive(Clone, Debug)]
pub struct Rota {
    questions: Vec<Question>,
    budget_ns: f64,
    look: u64,
}

impl Rota {
    /// Of so many questions, with a budget of time for each look.
    ///
    /// # Panics
    /// If there is no budget.
    pub fn new(questions: usize, budget_ns_per_look: f64) -> Self {
        assert!(budget_ns_per_look > 0.0, "a look without a budget sees nothing");
        Self {
            questions: vec![Question { every_looks: 1, ..Question::default() }; questions],
            budget_ns: budget_ns_per_look,
            look: 0,
        }
    }

    /// The questions of this look, cheapest first. Of those that are asked seldom only the one that waited longest, and
    /// as many more as the look's budget holds.
    pub fn next_look(&mut self) -> Vec<usize> {
        self.look += 1;
        let mut due: Vec<usize> = (0..self.questions.len())
            .filter(|at| !self.questions[*at].is_retired && self.questions[*at].due <= self.look)
            .collect();
        due.sort_by(|a, b| self.urgency(*a).total_cmp(&self.urgency(*b)));
        let mut left_ns = self.budget_ns;
        let mut has_seldom = false;
        due.retain(|at| {
            let question = &self.questions[*at];
            let (cost_ns, is_seldom) = (question.cost_ns().unwrap_or(0.0), question.is_seldom());
            let is_in = !is_seldom || !has_seldom || cost_ns <= left_ns;
            left_ns -= if is_in { cost_ns } else { 0.0 };
            has_seldom |= is_seldom && is_in;
            is_in
        });
        due
    }

    /// Frequent ones first, by cost; then the seldom ones, by how long they have been due.
    fn urgency(&self, at: usize) -> f64 {
        let question = &self.questions[at];
        if question.is_seldom() {
            -((self.look - question.due) as f64)
        } else {
            question.cost_ns().unwrap_or(0.0) - 1e18
        }
    }

    /// A question was asked in this look, and it took so long.
    pub fn took(&mut self, at: usize, ns: u64) {
        let [latest, before, _] = self.questions[at].took_ns;
        self.questions[at].took_ns = [Some(ns as f64), latest, before];
        self.share_out();
        let question = &mut self.questions[at];
        question.due = self.look + if question.is_known() { question.every_looks } else { 1 };
    }

    /// Nobody need ask this again.
    pub fn retire(&mut self, at: usize) {
        self.questions[at].is_retired = true;
        self.share_out();
    }

    /// Looks between two askings of a question; none once it is retired.
    pub fn every_looks(&self, at: usize) -> Option<u64> {
        let question = self.questions.get(at)?;
        (!question.is_retired).then_some(question.every_looks)
    }

    /// Share of the budget that the questions take in the long run, at the costs measured.
    pub fn use_share(&self) -> f64 {
        let asked = self.questions.iter().filter(|question| !question.is_retired);
        asked.map(|question| question.cost_ns().unwrap_or(0.0) / question.every_looks as f64).sum::<f64>()
            / self.budget_ns
    }

    /// Fills shares from the cheapest on; what a cheap one leaves is for the others.
    fn share_out(&mut self) {
        let known = |at: &usize| !self.questions[*at].is_retired && self.questions[*at].cost_ns().is_some();
        let mut order: Vec<usize> = (0..self.questions.len()).filter(known).collect();
        let cost = |questions: &[Question], at: usize| questions[at].cost_ns().expect("only known ones are shared out");
        order.sort_by(|a, b| cost(&self.questions, *a).total_cmp(&cost(&self.questions, *b)));
        let (mut left_ns, mut waiting) = (self.budget_ns, order.len() as f64);
        for at in order {
            let cost_ns = cost(&self.questions, at);
            let every_looks = (cost_ns * waiting / left_ns).ceil().max(1.0);
            self.questions[at].every_looks = every_looks as u64;
            left_ns -= cost_ns / every_looks;
            waiting -= 1.0;
            // Rounding must not leave less than nothing.
            left_ns = left_ns.max(self.budget_ns * 1e-9);
        }
    }
}
