//! How long iterations took, as a picture: the newest ones, with the changes of plan among them, beside what is predicted of
//! the plan in force and what no plan takes less than, as things are now.

use adaptis_coordinator_core::ledger::IterationRecord;
use adaptis_planner::export::milliseconds;
use adaptis_proto::message::Status;
use std::fmt::Write;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 190.0;
const LEFT: f64 = 8.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = 20.0;
/// Fewer iterations than this are no course.
const ITERATIONS_MIN: usize = 3;
/// One in so many may stand out of the picture: a checkpoint would flatten all others.
const OUTLIERS: usize = 20;
const HEADROOM: f64 = 1.15;
/// Lines of text closer than this would cover one another.
const LINE: f64 = 12.0;

/// Draws the iterations, oldest first; nothing where there are too few.
pub(super) fn draw(out: &mut String, iterations: &[IterationRecord], status: &Status) {
    let (Some(first), Some(last)) = (iterations.first(), iterations.last()) else { return };
    if iterations.len() < ITERATIONS_MIN || last.index <= first.index {
        return;
    }
    let highest_ns = highest(iterations).max(status.predicted_ns.unwrap_or(0)).max(1) as f64 * HEADROOM;
    let span = (last.index.0 - first.index.0) as f64;
    let x = |step: u64| LEFT + (step - first.index.0) as f64 / span * (WIDTH - LEFT - RIGHT);
    let y = |ns: u64| TOP + (1.0 - (ns as f64 / highest_ns).min(1.0)) * (HEIGHT - TOP - BOTTOM);
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "<svg class=\"course\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\"><title>time of each iteration</title>\
         <line class=\"axis\" x1=\"{LEFT}\" y1=\"{0}\" x2=\"{1}\" y2=\"{0}\"/>\
         <text x=\"{LEFT}\" y=\"{2}\">iteration {3}</text><text x=\"{1}\" y=\"{2}\" text-anchor=\"end\">{4}</text>",
        y(0),
        WIDTH - RIGHT,
        HEIGHT - 4.0,
        first.index,
        last.index,
    );
    let mut before = first;
    for now in iterations {
        if now.epoch != before.epoch {
            let at = x(now.index.0);
            let _ = write!(
                out,
                "<line class=\"plan\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{:.1}\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">plan {}</text>",
                y(0),
                TOP - 6.0,
                now.epoch
            );
        }
        before = now;
    }
    out.push_str("<polyline class=\"line\" points=\"");
    for iteration in iterations {
        let _ = write!(out, "{:.1},{:.1} ", x(iteration.index.0), y(iteration.duration_ns));
    }
    out.push_str("\"/>");
    let from = iterations.iter().find(|iteration| iteration.epoch == last.epoch).unwrap_or(last);
    let levels = [
        ("line", "took", Some(last.duration_ns), None),
        ("predicted", "predicted", status.predicted_ns, Some(x(from.index.0))),
        ("bound", "at the least", status.lower_bound_ns, Some(x(from.index.0))),
    ];
    let mut texts: Vec<(f64, String)> = Vec::new();
    for (class, what, ns, from) in levels {
        let Some(ns) = ns else { continue };
        let at = y(ns);
        if let Some(from) = from {
            let _ = write!(
                out,
                "<line class=\"{class}\" x1=\"{from:.1}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\"/>",
                WIDTH - RIGHT
            );
        }
        texts.push((at + 4.0, format!("{} {what}", milliseconds(ns))));
    }
    // Each below the one before it, as far as that is needed.
    texts.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut least = 0.0_f64;
    for (at, text) in texts {
        let at = at.max(least);
        least = at + LINE;
        let _ = write!(out, "<text x=\"{:.1}\" y=\"{at:.1}\">{text}</text>", WIDTH - RIGHT + 6.0);
    }
    out.push_str("</svg>\n");
}

/// The longest, but for the few that stand out.
fn highest(iterations: &[IterationRecord]) -> u64 {
    let mut all: Vec<u64> = iterations.iter().map(|iteration| iteration.duration_ns).collect();
    all.sort_unstable();
    all[all.len() - 1 - all.len() / OUTLIERS]
}

#[cfg(test)]
mod tests {
    use super::*;
    use adaptis_proto::{Epoch, Generation, Step};

    fn iterations(count: u64) -> Vec<IterationRecord> {
        let of = |index: u64| IterationRecord {
            index: Step(10 + index),
            epoch: Epoch(1 + index / 20),
            generation: Generation(1),
            // One stands out far, as where a checkpoint is written.
            duration_ns: if index == 5 { 90_000_000_000 } else { 100_000_000 - index / 20 * 30_000_000 },
            loss_bits: 0,
        };
        (0..count).map(of).collect()
    }

    fn drawn(count: u64) -> String {
        let mut out = String::new();
        let status = Status { predicted_ns: Some(69_000_000), lower_bound_ns: Some(68_000_000), ..Status::default() };
        draw(&mut out, &iterations(count), &status);
        out
    }

    #[test]
    fn a_course_shows_iterations_and_changes_of_plan() {
        let svg = drawn(40);
        for text in ["iteration 10", ">49<", "plan 2", "70.0 ms took", "69.0 ms predicted", "68.0 ms at the least"] {
            assert!(svg.contains(text), "`{text}` is not in {svg}");
        }
        assert!(!svg.contains("plan 1<"), "what was there from the beginning is no change: {svg}");
        let points = svg.split("points=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a line");
        let heights: Vec<f64> = points
            .split_whitespace()
            .map(|point| point.split(',').nth(1).and_then(|y| y.parse().ok()).expect("a point has a height"))
            .collect();
        assert_eq!(heights.len(), 40);
        assert_eq!(heights[5], TOP, "what stands out is at the edge");
        assert!(heights[0] < heights[39] && heights[0] > TOP, "less time is lower");
    }

    #[test]
    fn a_few_iterations_are_no_course() {
        assert_eq!([0, 1, 2].map(drawn), [String::new(), String::new(), String::new()]);
    }

    #[test]
    fn what_is_written_beside_the_line_covers_nothing() {
        let svg = drawn(40);
        let mut at: Vec<f64> = svg
            .split(&format!("<text x=\"{:.1}\" y=\"", WIDTH - RIGHT + 6.0))
            .skip(1)
            .map(|rest| rest.split('"').next().and_then(|y| y.parse().ok()).expect("a text has a height"))
            .collect();
        at.sort_by(f64::total_cmp);
        assert_eq!(at.len(), 3);
        assert!(at.windows(2).all(|pair| pair[1] - pair[0] >= LINE - 0.2), "{at:?}");
    }
}
