//! The problems of a planner bench: those that are built in, or a folder's.

use crate::{failure, files};
use adaptis_plan::Problem;
use anyhow::Result;
use std::path::Path;

/// A problem and what to call it.
pub struct Named {
    pub name: String,
    pub problem: Problem,
}

/// Names and texts of files under `tests/data`; its README says where each comes from.
macro_rules! built_in {
    ($($path:literal),+ $(,)?) => {
        [$(($path, include_str!(concat!("../../tests/data/", $path, ".json")))),+]
    };
}

const BUILT_IN: [(&str, &str); 14] = built_in![
    "uniform_p4_m8",
    "problems/gpt_1.5b_p8_m64",
    "problems/gpt_6.2b_p8_m24",
    "problems/gpt_14.6b_p16_m64",
    "problems/gpt_28.3b_p32_m96",
    "problems/gpt_1.3b_v100_p8_m48",
    "problems/t5_3b_v100_p8_m16",
    "problems/t5_11b_v100_p16_m32",
    "problems/deepseek_h100_p8_m32",
    "problems/nemotron_h100_a100_p8_m32",
    "llama3_8b_gh200_a100_p8_m32",
    "problems/llama3_8b_a100_v100_p4_m16",
    "problems/opt_30b_a100_v100_p8_m24",
    "problems/gptneo_2.7b_mixed_p6_m96",
];

/// The built-in set: textbook, published tables, measured models; even ones first.
pub fn built_in() -> Result<Vec<Named>> {
    let read = |(path, text): (&str, &str)| {
        let name = path.rsplit('/').next().unwrap_or(path).to_owned();
        let problem = Problem::read(text).map_err(|error| failure::usage(format!("{name}: {error}")))?;
        Ok(Named { name, problem })
    };
    BUILT_IN.into_iter().map(read).collect()
}

/// Every `*.json` of a folder, by name.
pub fn of_folder(folder: &Path) -> Result<Vec<Named>> {
    let fail = |error: std::io::Error| failure::usage(format!("--problems {}: {error}", folder.display()));
    let entries = std::fs::read_dir(folder).map_err(fail)?.collect::<Result<Vec<_>, _>>().map_err(fail)?;
    let mut paths: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    if paths.is_empty() {
        let problem = format!("--problems {}: no file there ends in .json; each is a problem", folder.display());
        return Err(failure::usage(problem));
    }
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Named { name, problem: files::problem(path)? })
    };
    paths.iter().map(read).collect()
}

impl Named {
    /// Devices or layers differ in what they take.
    pub fn is_unequal(&self) -> bool {
        let (devices, problem) = (&self.problem.devices, &self.problem);
        let speed = |device: usize| (&devices[device].kind, devices[device].slowdown.to_bits());
        let times = |layer: usize| {
            let cost = &problem.costs_of(0)[layer];
            (cost.forward_ns, cost.input_gradient_ns, cost.weight_gradient_ns)
        };
        (1..devices.len()).any(|device| speed(device) != speed(0))
            || (1..problem.layers.len()).any(|layer| times(layer) != times(0))
    }
}
