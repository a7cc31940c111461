//! One instruction of a program, in PyTorch's own notation: `3F0`, `3I0`, `3W0`, `3B0`.

use adaptis_proto::{Microbatch, StageIndex};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// What is done to a stage for a microbatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// F.
    Forward,
    /// I, the gradient of the stage's input.
    InputGradient,
    /// W, the gradient of the stage's weights.
    WeightGradient,
    /// B, I and W in one.
    Backward,
}

impl Action {
    /// PyTorch's letter.
    pub fn letter(self) -> char {
        match self {
            Action::Forward => 'F',
            Action::InputGradient => 'I',
            Action::WeightGradient => 'W',
            Action::Backward => 'B',
        }
    }
}

/// An action on a stage for a microbatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instruction {
    /// On which stage.
    pub stage: StageIndex,
    /// What.
    pub action: Action,
    /// For which microbatch.
    pub microbatch: Microbatch,
}

impl Instruction {
    /// `stage`, `action`, `microbatch`, as in the text form.
    pub fn new(stage: usize, action: Action, microbatch: usize) -> Self {
        Self { stage: stage.into(), action, microbatch: microbatch.into() }
    }
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.stage, self.action.letter(), self.microbatch)
    }
}

/// A text that is no instruction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an instruction: write stage, one of F I W B, microbatch, as in `3F0`")]
pub struct NotAnInstruction(pub String);

impl FromStr for Instruction {
    type Err = NotAnInstruction;

    fn from_str(text: &str) -> Result<Self, NotAnInstruction> {
        let wrong = || NotAnInstruction(text.chars().take(32).collect());
        let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let action = match text.as_bytes()[at] {
            b'F' => Action::Forward,
            b'I' => Action::InputGradient,
            b'W' => Action::WeightGradient,
            b'B' => Action::Backward,
            _ => return Err(wrong()),
        };
        // One way to write a number, or two texts would be one instruction.
        let is_number = |digits: &str| {
            digits.bytes().all(|b| b.is_ascii_digit()) && (digits.len() == 1 || !digits.starts_with('0'))
        };
        let number = |digits: &str| match is_number(digits) {
            true => digits.parse::<u32>().map_err(|_| wrong()),
            false => Err(wrong()),
        };
        Ok(Self { stage: StageIndex(number(&text[..at])?), action, microbatch: Microbatch(number(&text[at + 1..])?) })
    }
}

impl Serialize for Instruction {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Instruction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_is_written_in_one_way() {
        for text in ["0F0", "10I4", "3W20", "0B1048575"] {
            assert_eq!(text.parse::<Instruction>().map(|read| read.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "F", "0F", "F0", "00F0", "0F00", "01F1", "+1F0", "0F0 ", "0X0", "0F4294967296"] {
            assert_eq!(text.parse::<Instruction>(), Err(NotAnInstruction(text.to_owned())));
        }
    }
}
