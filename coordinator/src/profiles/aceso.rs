//! Profiles in the format of Aceso (EuroSys'24): `MODEL_mbs<microbatch>_tp<N>_algo<N>.csv`, a row per operator.
//!
//! ```text
//! op_name,forward-compute,backward-compute,input_size,output_size,weights,activations,fwd_reserved,bwd_reserved
//! encoder-embedding,173.631,1486.725,0.008,8.000,208.000,12.000,0.000,220.000
//! ```
//!
//! Sizes are in MiB. The file says neither the unit of its times nor the card. An operator's signature is
//! `<operator>/<model>/b<microbatch>`, with `/tp<N>` where it is split. What is reserved while it runs is its workspace.
//!
//! Left out on purpose: the tables of bandwidths beside them (`p2p_*.csv`), which do not say between what.

use super::account::{Memory, Sizes};

/// The first line of a file.
const HEAD: [&str; 9] = [
    "op_name",
    "forward-compute",
    "backward-compute",
    "input_size",
    "output_size",
    "weights",
    "activations",
    "fwd_reserved",
    "bwd_reserved",
];
/// More of anything than a card has, in MiB.
const MEBIBYTES_MAX: f64 = 1e7;

/// Why a file is not Aceso's.
#[derive(Debug, thiserror::Error)]
pub enum AcesoError {
    /// Its name does not say what was measured.
    #[error("the name does not say what was measured: name it MODEL_mbs1_tp1_algo0.csv")]
    Name,
    /// A table of bandwidths.
    #[error(
        "a table of bandwidths that does not say between what: give them as [links] of a file of --devices when planning"
    )]
    Bandwidths,
    /// Another head.
    #[error("line 1: expected {}", HEAD.join(","))]
    Head,
    /// Another number of fields.
    #[error("line {line}: {found} fields, expected {}", HEAD.len())]
    Fields {
        /// Which line, from 1.
        line: usize,
        /// How many.
        found: usize,
    },
    /// Not a number that makes sense.
    #[error("line {line}, {column}: {found:?} is not a number from 0 to {MEBIBYTES_MAX}")]
    Number {
        /// Which line, from 1.
        line: usize,
        /// Which column.
        column: &'static str,
        /// What stands there.
        found: String,
    },
    /// An operator without a name.
    #[error("line {line}: op_name is empty")]
    Unnamed {
        /// Which line, from 1.
        line: usize,
    },
    /// Nothing in it.
    #[error("no operator in it")]
    Empty,
}

/// An operator; times in the file's unit, none where not measured.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Operator {
    pub signature: String,
    pub forward: Option<f64>,
    pub backward: Option<f64>,
    pub memory: Memory,
    pub sizes: Sizes,
}

/// Whether a text begins as a file of this format does.
pub(super) fn is_one(text: &str) -> bool {
    text.lines().next().is_some_and(|line| fields(line).eq(HEAD))
}

fn fields(line: &str) -> impl Iterator<Item = &str> {
    line.trim_end_matches('\r').split(',').map(str::trim)
}

/// Model, microbatch size, way of splitting, by the name of a file.
fn named(name: &str) -> Option<(String, u64, u64)> {
    let stem = name.rsplit(['/', '\\']).next()?.strip_suffix(".csv")?;
    let (model, rest) = stem.rsplit_once("_mbs")?;
    let mut parts = rest.split('_');
    let number = |text: &str| text.parse::<u64>().ok().filter(|&number| number > 0);
    let microbatch = number(parts.next()?)?;
    let split = number(parts.next()?.strip_prefix("tp")?)?;
    (!model.is_empty()).then(|| (super::sailor::model_of(model), microbatch, split))
}

/// Reads a file by its name and text.
///
/// # Errors
/// The name does not say what was measured, or the text is not of the format: the first such line.
pub(super) fn read(name: &str, text: &str) -> Result<Vec<Operator>, AcesoError> {
    let mut lines = text.lines().enumerate();
    let head = lines.next().map_or("", |(_, line)| line);
    if !fields(head).eq(HEAD) {
        let is_table = fields(head).count() > 1 && fields(head).all(|field| field.parse::<u64>().is_ok());
        return Err(if is_table { AcesoError::Bandwidths } else { AcesoError::Head });
    }
    let (model, microbatch, split) = named(name).ok_or(AcesoError::Name)?;
    let tail = if split == 1 { String::new() } else { format!("/tp{split}") };
    let mut operators = Vec::new();
    for (at, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let line_number = at + 1;
        let found: Vec<&str> = fields(line).collect();
        let [name, numbers @ ..] = found.as_slice() else { continue };
        if found.len() != HEAD.len() {
            return Err(AcesoError::Fields { line: line_number, found: found.len() });
        }
        if name.is_empty() {
            return Err(AcesoError::Unnamed { line: line_number });
        }
        let mut values = [0.0; 8];
        for ((value, text), column) in values.iter_mut().zip(numbers).zip(&HEAD[1..]) {
            let parsed = text.parse::<f64>().ok().filter(|number| (0.0..=MEBIBYTES_MAX).contains(number));
            let wrong = || AcesoError::Number { line: line_number, column, found: (*text).to_owned() };
            *value = parsed.ok_or_else(wrong)?;
        }
        let [forward, backward, _, output, weights, activations, forward_reserved, backward_reserved] = values;
        let bytes = |mebibytes: f64| (mebibytes * f64::from(1 << 20)).round() as u64;
        let measured = |time: f64| (time > 0.0).then_some(time);
        operators.push(Operator {
            signature: format!("{name}/{model}/b{microbatch}{tail}"),
            forward: measured(forward),
            backward: measured(backward),
            memory: Memory {
                activation_bytes: bytes(activations),
                weight_gradient_bytes: None,
                workspace_bytes: bytes(forward_reserved.max(backward_reserved)),
            },
            sizes: Sizes {
                parameter_bytes: Some(bytes(weights)),
                output_bytes: Some(bytes(output)),
                ..Sizes::default()
            },
        });
    }
    if operators.is_empty() { Err(AcesoError::Empty) } else { Ok(operators) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "gpt_1_3B_mbs1_tp1_algo0.csv";

    fn text(rows: &str) -> String {
        HEAD.join(",") + "\n" + rows
    }

    #[test]
    fn an_operator_is_a_layer() {
        let text = text("enc-MLP-GEMM-1,866.761,1476.009,16.000,40.016,32.000,32.000,0.000,128.000\n");
        let [operator] = read(NAME, &text).unwrap().try_into().unwrap();
        assert_eq!(operator.signature, "enc-MLP-GEMM-1/gpt-1-3b/b1");
        assert_eq!((operator.forward, operator.backward), (Some(866.761), Some(1476.009)));
        assert_eq!((operator.memory.activation_bytes, operator.memory.workspace_bytes), (32 << 20, 128 << 20));
        assert_eq!(operator.sizes.parameter_bytes, Some(32 << 20));
        let split = read("t5_3B_mbs4_tp2_algo1.csv", &text).unwrap();
        assert_eq!(split[0].signature, "enc-MLP-GEMM-1/t5-3b/b4/tp2");
    }

    #[test]
    fn damage_is_refused_with_its_place() {
        let row = "a,1,2,3,4,5,6,7,8\n";
        for (name, text, said) in [
            (NAME, String::new(), "line 1: expected op_name,"),
            (NAME, "1,2,4\n3.8,4.4,4.5\n".into(), "bandwidths"),
            (NAME, text(""), "no operator"),
            ("profile.csv", text(row), "name it MODEL_mbs1_tp1_algo0.csv"),
            (NAME, text(&format!("{row}b,1,2\n")), "line 3: 3 fields, expected 9"),
            (NAME, text("a,1,x,3,4,5,6,7,8\n"), "line 2, backward-compute: \"x\""),
            (NAME, text("a,-1,2,3,4,5,6,7,8\n"), "line 2, forward-compute: \"-1\""),
            (NAME, text("a,1,2,3,4,5,nan,7,8\n"), "line 2, activations: \"nan\""),
            (NAME, text(",1,2,3,4,5,6,7,8\n"), "line 2: op_name is empty"),
        ] {
            let error = read(name, &text).expect_err(&text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
