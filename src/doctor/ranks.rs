//! The variables from which a training process knows its rank: torchrun's, else Slurm's.

use super::Finding;
use super::Verdict::{Fine, Fix, Note};
use std::net::ToSocketAddrs;

const ABOUT: &str = "rank";
/// Without one of them `init_process_group` fails.
const TORCHRUN: [&str; 4] = ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"];
const SLURM: [&str; 3] = ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"];

type Variable<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Ranks of this machine, as far as it is told.
pub(super) fn here(variable: Variable<'_>) -> usize {
    let count = |name| variable(name).and_then(|value| value.parse().ok());
    count("LOCAL_WORLD_SIZE").or_else(|| count("SLURM_NTASKS_PER_NODE")).unwrap_or(0)
}

pub(super) fn look(variable: Variable<'_>) -> Finding {
    let is_set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
    let of_torchrun = [&TORCHRUN[..], &["LOCAL_RANK"]].concat();
    let set: Vec<&str> = of_torchrun.into_iter().filter(|name| is_set(name)).collect();
    // In a job of Slurm, and in a step of it or not, some of its variables are there: the first one tells a rank.
    let is_slurm = is_set(SLURM[0]);
    let (verdict, text) = match (set.is_empty(), is_slurm) {
        (true, false) => {
            (Fine, "none here: torchrun and srun set RANK and its like for the processes they start".to_owned())
        }
        (true, true) => numbers(variable, SLURM),
        (false, _) => match torchrun(variable, &set, is_set) {
            (Fine, text) if is_slurm => (Fine, format!("{text}; torchrun's count before Slurm's")),
            found => found,
        },
    };
    Finding::new(ABOUT, verdict, text)
}

fn torchrun(variable: Variable<'_>, set: &[&str], is_set: impl Fn(&str) -> bool) -> (super::Verdict, String) {
    let missing: Vec<&str> = TORCHRUN.into_iter().filter(|name| !is_set(name)).collect();
    // A port or an address alone is what people put into their profile.
    if !set.iter().any(|name| name.contains("RANK") || *name == "WORLD_SIZE") {
        return (Note, format!("{} is set, and no RANK: left over, or meant for later?", set.join(", ")));
    }
    if !missing.is_empty() {
        // Numbers that can't be are worse.
        if let wrong @ (Fix, _) = numbers(variable, ["RANK", "WORLD_SIZE", "LOCAL_RANK"]) {
            return wrong;
        }
        let is = |names: &[&str]| if names.len() == 1 { "is" } else { "are" };
        let text = format!("{} {} set and {} {} not", set.join(", "), is(set), missing.join(", "), is(&missing));
        return (Fix, format!("{text}: start by torchrun, which sets all of them, or unset them"));
    }
    match numbers(variable, ["RANK", "WORLD_SIZE", "LOCAL_RANK"]) {
        (Fine, text) => meeting(variable).map_or((Fine, text), |why| (Fix, why)),
        found => found,
    }
}

/// What is wrong with where ranks meet.
fn meeting(variable: Variable<'_>) -> Option<String> {
    let port = variable("MASTER_PORT").unwrap_or_default();
    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Some(format!("MASTER_PORT={port} is no port: a number from 1 to 65535, the same on all ranks"));
    }
    let address = variable("MASTER_ADDR").unwrap_or_default();
    match (address.as_str(), 0).to_socket_addrs() {
        Ok(_) => None,
        Err(error) => Some(format!("MASTER_ADDR={address}: {error}: name the host of rank 0 as this one knows it")),
    }
}

/// Whether rank, number of ranks, and rank on this machine fit together.
fn numbers(variable: Variable<'_>, [rank, world, local]: [&str; 3]) -> (super::Verdict, String) {
    let mut found = [None; 3];
    for (at, name) in [rank, world, local].into_iter().enumerate() {
        let Some(text) = variable(name).filter(|text| !text.is_empty()) else { continue };
        match text.parse::<u64>() {
            Ok(number) => found[at] = Some(number),
            Err(_) => return (Fix, format!("{name}={text} is not a number: unset it, or start by torchrun or srun")),
        }
    }
    match found {
        [Some(number), Some(of), _] if number >= of => (
            Fix,
            format!("{rank}={number} is not below {world}={of}: ranks count from 0; let torchrun or srun set them"),
        ),
        [Some(number), _, Some(here)] if here > number => (
            Fix,
            format!("{local}={here} is above {rank}={number}: they are not of one launch; unset them, or start anew"),
        ),
        [Some(number), Some(of), _] => (Fine, format!("{rank}={number} of {world}={of}")),
        // In the batch script itself it may be so.
        _ => (Note, format!("{rank} is set and {world} is not: ranks are started by srun, which sets both")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_belong_together() {
        let (address, port) = ("MASTER_ADDR=127.0.0.1", "MASTER_PORT=1");
        for (set, verdict, word) in [
            (vec![], Fine, "none here"),
            (vec!["RANK=3", "WORLD_SIZE=8", "LOCAL_RANK=3", address, port], Fine, "RANK=3 of WORLD_SIZE=8"),
            (vec!["RANK=3", "WORLD_SIZE=8", address, port, "SLURM_PROCID=1"], Fine, "before Slurm's"),
            (vec!["SLURM_PROCID=1", "SLURM_NTASKS=2", "SLURM_LOCALID=0"], Fine, "SLURM_PROCID=1 of SLURM_NTASKS=2"),
            (vec!["MASTER_PORT=1"], Note, "MASTER_PORT is set"),
            (vec!["RANK=0"], Fix, "WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not"),
            (vec!["RANK=x"], Fix, "RANK=x is not a number"),
            (vec!["LOCAL_RANK=0", "WORLD_SIZE=2"], Fix, "WORLD_SIZE, LOCAL_RANK are set and RANK"),
            (vec!["RANK=8", "WORLD_SIZE=8", address, port], Fix, "not below"),
            (vec!["RANK=one", "WORLD_SIZE=8", address, port], Fix, "RANK=one"),
            (vec!["RANK=-1", "WORLD_SIZE=8", address, port], Fix, "RANK=-1"),
            (vec!["RANK=1", "WORLD_SIZE=8", "LOCAL_RANK=2", address, port], Fix, "LOCAL_RANK=2"),
            (vec!["RANK=0", "WORLD_SIZE=8", address, "MASTER_PORT=99999"], Fix, "MASTER_PORT=99999 is no port"),
            (vec!["RANK=0", "WORLD_SIZE=8", "MASTER_ADDR=a b", port], Fix, "MASTER_ADDR=a b"),
            (vec!["SLURM_PROCID=0"], Note, "SLURM_NTASKS is not"),
            (vec!["SLURM_PROCID=2", "SLURM_NTASKS=2"], Fix, "not below"),
        ] {
            let variable = |name: &str| {
                let pairs = set.iter().filter_map(|pair| pair.split_once('='));
                pairs.into_iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_owned())
            };
            let found = look(&variable);
            assert_eq!(found.verdict, verdict, "{set:?}: {found:?}");
            assert!(found.text.contains(word), "{set:?}: {found:?}");
        }
    }
}
