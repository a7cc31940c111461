//! The rows of a planner bench as text.

use super::measure::Row;
use std::fmt::Write;

/// Over the best baseline by so much, a search is called worse.
pub const WORSE: f64 = 1.001;

/// Geometric mean of the ratios to the best baseline; none without a ratio.
pub fn geometric_mean<'a>(rows: impl Iterator<Item = &'a Row>) -> Option<f64> {
    let logs: Vec<f64> = rows.filter_map(Row::ratio).map(f64::ln).collect();
    (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp())
}

fn milliseconds(ns: u64) -> String {
    format!("{:.1}", ns as f64 / 1e6)
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// One line per problem and the means.
pub fn write(rows: &[Row], heading: &str) -> String {
    let mut out = format!("{heading}; times in ms\n\n");
    let wide = rows.iter().map(|row| row.problem.len()).max().unwrap_or(0).max("problem".len());
    let _ = writeln!(
        out,
        "{:<wide$}  {:>3} {:>4} {:>6}  {:>10}  {:>18}  {:>10}  {:>6}  {:>10}  {:>6}  {:>6}  {:>5}",
        "problem",
        "p",
        "m",
        "layers",
        "even 1F1B",
        "best baseline",
        "search",
        "ratio",
        "bound",
        "gap",
        "spread",
        "CPU s"
    );
    for row in rows {
        let best = row.best_baseline().map(|(name, ns)| format!("{name} {}", milliseconds(ns)));
        let run = row.median();
        let _ = writeln!(
            out,
            "{:<wide$}  {:>3} {:>4} {:>6}  {:>10}  {:>18}  {:>10}  {:>6}  {:>10}  {:>6}  {:>6}  {:>5}{}",
            row.problem,
            row.devices,
            row.microbatches,
            row.layers,
            or_dash(row.even_ns().map(milliseconds)),
            or_dash(best),
            or_dash(run.map(|run| milliseconds(run.iteration_ns))),
            or_dash(row.ratio().map(|ratio| format!("{ratio:.3}"))),
            milliseconds(row.lower_bound_ns),
            or_dash(row.gap().map(|gap| format!("{:.1}%", gap * 100.0))),
            or_dash(row.spread().map(|spread| format!("{:.1}%", spread * 100.0))),
            or_dash(run.map(|run| format!("{:.2}", run.cpu_ns as f64 / 1e9))),
            if row.ratio().is_some_and(|ratio| ratio > WORSE) { "  WORSE than a baseline" } else { "" },
        );
        if let Some(refusal) = &row.refusal {
            let _ = writeln!(out, "{:wide$}  no plan: {refusal}", "");
        }
        for wrong in &row.wrong {
            let _ = writeln!(out, "{:wide$}  WRONG: {wrong}", "");
        }
    }
    out.push('\n');
    for (what, mean) in means(rows) {
        let _ = writeln!(out, "geometric mean of the ratio, {what}: {mean:.3}");
    }
    let wrong: usize = rows.iter().map(|row| row.wrong.len()).sum();
    let plans: usize = rows
        .iter()
        .map(|row| row.baselines.iter().filter(|of| of.iteration_ns.is_some()).count() + row.runs.len())
        .sum();
    let _ = writeln!(out, "{plans} plans checked by the audit, its clock and its memory walk: {wrong} findings");
    out
}

/// Over which problems, and the mean there.
pub fn means(rows: &[Row]) -> Vec<(&'static str, f64)> {
    let all = geometric_mean(rows.iter());
    let unequal = geometric_mean(rows.iter().filter(|row| row.is_unequal));
    let equal = geometric_mean(rows.iter().filter(|row| !row.is_unequal));
    [("all", all), ("unequal layers or devices", unequal), ("equal ones", equal)]
        .into_iter()
        .filter_map(|(what, mean)| Some((what, mean?)))
        .collect()
}
