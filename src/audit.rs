//! `adaptis audit`: is this plan valid for this problem?

use crate::{failure, files};
use adaptis_plan::audit;
use anyhow::Result;
use std::path::PathBuf;

/// Checks a plan against a problem, rule by rule.
///
/// Exit code 0: valid. 1: invalid, every broken rule named. 2: a file is not of its format.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  adaptis audit problem.json plan.json")]
pub struct Arguments {
    /// The problem, adaptis.problem/1
    problem: PathBuf,
    /// The plan, adaptis.plan/1
    plan: PathBuf,
    /// Print {"valid": .., "findings": [{"rule": .., "text": ..}]}
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: Arguments) -> Result<()> {
    let problem = files::problem(&arguments.problem)?;
    let plan = files::plan(&arguments.plan)?;
    let findings = audit(&problem, &plan);
    if arguments.json {
        let rows: Vec<_> = findings
            .iter()
            .map(|finding| serde_json::json!({ "rule": finding.rule(), "text": finding.to_string() }))
            .collect();
        let answer = serde_json::json!({ "valid": findings.is_empty(), "findings": rows });
        files::print(&format!("{answer:#}\n"))?;
    } else if findings.is_empty() {
        files::print("valid\n")?;
    } else {
        let rows: Vec<String> = findings.iter().map(|finding| format!("{}: {finding}\n", finding.rule())).collect();
        files::print(&rows.concat())?;
    }
    match findings.len() {
        0 => Ok(()),
        1 => Err(failure::negative("the plan is not valid: 1 finding")),
        count => Err(failure::negative(format!("the plan is not valid: {count} findings"))),
    }
}
