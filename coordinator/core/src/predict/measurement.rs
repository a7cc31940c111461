//! A measurement: what a layer phase cost on a kind of device.

use adaptis_proto::sample::Phase;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What was done to the layer. As [`Phase`], with the backward of sources that do not split it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MeasuredPhase {
    /// F.
    Forward,
    /// B: input and weight gradient together, where the source does not tell them apart.
    Backward,
    /// I.
    InputGradient,
    /// W.
    WeightGradient,
    /// F again, for activations that were dropped.
    Recompute,
    /// Gradient reduction and optimizer step: the update of the weights.
    Optimizer,
}

impl MeasuredPhase {
    /// All.
    pub const ALL: [MeasuredPhase; 6] = [
        MeasuredPhase::Forward,
        MeasuredPhase::Backward,
        MeasuredPhase::InputGradient,
        MeasuredPhase::WeightGradient,
        MeasuredPhase::Recompute,
        MeasuredPhase::Optimizer,
    ];

    /// The word for it in files.
    pub fn word(self) -> &'static str {
        match self {
            MeasuredPhase::Forward => "forward",
            MeasuredPhase::Backward => "backward",
            MeasuredPhase::InputGradient => "input_gradient",
            MeasuredPhase::WeightGradient => "weight_gradient",
            MeasuredPhase::Recompute => "recompute",
            MeasuredPhase::Optimizer => "optimizer",
        }
    }
}

impl fmt::Display for MeasuredPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// No phase is called so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown phase {word:?}: one of forward, backward, input_gradient, weight_gradient, recompute, optimizer")]
pub struct UnknownPhase {
    /// As given.
    pub word: String,
}

impl FromStr for MeasuredPhase {
    type Err = UnknownPhase;

    /// From the word, the letter (F, B, I, W) or what other tools call it, in any case.
    fn from_str(text: &str) -> Result<Self, UnknownPhase> {
        Ok(match text.trim().to_ascii_lowercase().replace(['-', ' '], "_").as_str() {
            "forward" | "f" | "fwd" | "fw" => MeasuredPhase::Forward,
            "backward" | "b" | "bwd" | "bw" => MeasuredPhase::Backward,
            "input_gradient" | "i" | "dgrad" | "backward_input" => MeasuredPhase::InputGradient,
            "weight_gradient" | "w" | "wgrad" | "backward_weight" => MeasuredPhase::WeightGradient,
            "recompute" | "r" => MeasuredPhase::Recompute,
            "optimizer" | "update" | "u" | "upd" | "o" => MeasuredPhase::Optimizer,
            _ => return Err(UnknownPhase { word: text.to_owned() }),
        })
    }
}

impl From<Phase> for MeasuredPhase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Forward => MeasuredPhase::Forward,
            Phase::InputGradient => MeasuredPhase::InputGradient,
            Phase::WeightGradient => MeasuredPhase::WeightGradient,
            Phase::Recompute => MeasuredPhase::Recompute,
            Phase::Optimizer => MeasuredPhase::Optimizer,
        }
    }
}

/// What is measured: the key of a profile.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell {
    /// Kind of the device, `a100-40g`.
    pub kind: String,
    /// Class of the layer, `attention/4096h32/bf16/b1xs4096/tp2`.
    pub signature: String,
    /// What was done to it.
    pub phase: MeasuredPhase,
}

/// A cell with what it cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// What was measured.
    pub cell: Cell,
    /// Typical time: the sample, or the median of several; positive and finite.
    pub seconds: f64,
    /// Samples behind it; at least 1.
    pub count: u64,
}

/// One measurement for each cell: the median of all its own, each weighed by its samples.
pub fn condense(measurements: &[Measurement]) -> Vec<Measurement> {
    let mut cells: BTreeMap<&Cell, Vec<(f64, u64)>> = BTreeMap::new();
    for measurement in measurements {
        cells.entry(&measurement.cell).or_default().push((measurement.seconds, measurement.count));
    }
    let condensed = cells.into_iter().map(|(cell, mut found)| {
        found.sort_by(|a, b| a.0.total_cmp(&b.0));
        let count = found.iter().fold(0_u64, |sum, (_, count)| sum.saturating_add(*count));
        Measurement { cell: cell.clone(), seconds: median(&found, count), count }
    });
    condensed.collect()
}

/// The weighted median of sorted values: the middle one, or the mean of the two in the middle.
fn median(sorted: &[(f64, u64)], count: u64) -> f64 {
    let at = |rank: u64| {
        let mut passed = 0_u64;
        let reached = sorted.iter().find(|(_, weight)| {
            passed = passed.saturating_add(*weight);
            passed > rank
        });
        reached.or(sorted.last()).map_or(f64::NAN, |(value, _)| *value)
    };
    let middle = count / 2;
    if count % 2 == 1 { at(middle) } else { f64::midpoint(at(middle.saturating_sub(1)), at(middle)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(kind: &str, seconds: f64, count: u64) -> Measurement {
        let cell = Cell { kind: kind.into(), signature: "block/x/b1".into(), phase: MeasuredPhase::Forward };
        Measurement { cell, seconds, count }
    }

    #[test]
    fn a_phase_has_a_word_a_letter_and_other_names() {
        for phase in MeasuredPhase::ALL {
            assert_eq!(phase.word().parse(), Ok(phase));
        }
        for (text, phase) in [
            ("F", MeasuredPhase::Forward),
            ("B", MeasuredPhase::Backward),
            ("Backward", MeasuredPhase::Backward),
            ("weight gradient", MeasuredPhase::WeightGradient),
            ("update", MeasuredPhase::Optimizer),
        ] {
            assert_eq!(text.parse(), Ok(phase), "{text}");
        }
        let refused = "sideways".parse::<MeasuredPhase>().expect_err("no such phase");
        assert!(refused.to_string().contains("\"sideways\""), "{refused}");
    }

    #[test]
    fn several_measurements_of_a_cell_become_their_weighted_median() {
        let of = |values: &[(f64, u64)]| {
            let all: Vec<_> = values.iter().map(|&(seconds, count)| measured("a", seconds, count)).collect();
            condense(&all)
        };
        for (values, seconds, count) in [
            (&[(3.0, 1)][..], 3.0, 1),
            (&[(3.0, 1), (1.0, 1), (9.0, 1)], 3.0, 3),
            (&[(1.0, 1), (2.0, 1)], 1.5, 2),
            (&[(1.0, 31), (9.0, 1)], 1.0, 32),
            (&[(1.0, 2), (9.0, 2)], 5.0, 4),
        ] {
            assert_eq!(of(values), [measured("a", seconds, count)], "{values:?}");
        }
        assert_eq!(condense(&[measured("b", 1.0, 1), measured("a", 2.0, 1)]).len(), 2, "cells stay apart");
    }
}
