//! The explanation of `adaptis plan --explain`, in words.

use crate::failure;
use crate::signals::Stop;
use crate::simulate::size;
use adaptis_plan::{Plan, Problem};
use adaptis_planner::explain::{Answer, Ask, Explanation, Options, Split, Wish, explain};
use adaptis_planner::export::milliseconds;
use adaptis_planner::search::Control;
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// A question gets this part of the evaluations that the plan got, but at least so many.
const EVALUATIONS_PART: u64 = 10;
const EVALUATIONS_MIN: u64 = 100;
/// A question about a plan that was not searched for.
const EVALUATIONS_UNSEARCHED: u64 = 2_000;
/// Waits that the text names; the rest are in --json.
const WAITS_SHOWN: usize = 6;

/// An explanation and what it was made with.
pub struct Explained {
    pub explanation: Explanation,
    pub evaluations_each: u64,
}

/// How a plan was found, and how long its explanation may take.
pub struct Search<'a> {
    pub seed: u64,
    /// 0 for a named schedule.
    pub evaluations: u64,
    /// No limit where the result must depend on evaluations alone.
    pub time_max: Option<Duration>,
    pub stop: &'a Stop,
}

/// Explains a plan.
pub fn explained(problem: &Problem, plan: &Plan, search: &Search) -> Result<Explained> {
    let evaluations_each = match search.evaluations {
        0 => EVALUATIONS_UNSEARCHED,
        found => (found / EVALUATIONS_PART).max(EVALUATIONS_MIN),
    };
    let bar = ProgressBar::new_spinner()
        .with_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}").expect("the template is well formed"));
    let started = Instant::now();
    let mut shown = started;
    let mut tick = |ask: &Ask| {
        if shown.elapsed() >= Duration::from_millis(100) {
            shown = Instant::now();
            bar.tick();
            bar.set_message(format!("what more would buy: {} of {} questions", ask.answered, ask.questions));
        }
        let is_late = search.time_max.is_some_and(|time_max| started.elapsed() >= time_max);
        if is_late || search.stop.asked().is_some() { Control::Stop } else { Control::Go }
    };
    let options = Options { seed: search.seed, evaluations: evaluations_each };
    let explanation = explain(problem, plan, &options, &mut tick).map_err(failure::negative)?;
    bar.finish_and_clear();
    Ok(Explained { explanation, evaluations_each })
}

/// As people read it.
pub fn text(explained: &Explained) -> String {
    let mut out = String::new();
    where_time_goes(&mut out, &explained.explanation);
    waits(&mut out, &explained.explanation);
    memory(&mut out, &explained.explanation);
    bound(&mut out, &explained.explanation);
    wishes(&mut out, explained);
    out
}

/// A column of the table: its name, and what it takes of a device's iteration.
type Column = (&'static str, fn(&Split) -> u64);

const COLUMNS: [Column; 8] = [
    ("work", |split| split.work_ns),
    ("sharing", |split| split.sharing_ns),
    ("(recompute)", |split| split.recompute_ns),
    ("warm-up", |split| split.warm_up_ns),
    ("waiting", |split| split.waiting_ns),
    ("drain", |split| split.drain_ns),
    ("optimizer", |split| split.optimizer_ns),
    ("boundary", |split| split.boundary_ns),
];

fn where_time_goes(out: &mut String, explanation: &Explanation) {
    let devices = &explanation.devices;
    let columns: Vec<&Column> = COLUMNS.iter().filter(|(_, of)| devices.iter().any(|split| of(split) > 0)).collect();
    let _ = writeln!(out, "Where the time goes, in shares of {}", milliseconds(explanation.iteration_ns));
    let _ = write!(out, "{:<12} {:<12}", "device", "kind");
    for (name, _) in &columns {
        let _ = write!(out, " {name:>11}");
    }
    out.push('\n');
    for split in devices {
        let _ = write!(out, "{:<12} {:<12}", split.device, split.kind);
        if split.work_ns == 0 {
            out.push_str("        idle\n");
            continue;
        }
        for (_, of) in &columns {
            let _ = write!(out, " {:>10.1}%", percent(of(split), explanation.iteration_ns));
        }
        out.push('\n');
    }
    let working = || devices.iter().filter(|split| split.work_ns > 0);
    let is_any_idle = working().count() < devices.len();
    let _ = write!(out, "{:<25}", if is_any_idle { "all that work" } else { "all" });
    for (_, of) in &columns {
        let shares = working().map(|split| percent(of(split), explanation.iteration_ns));
        let _ = write!(out, " {:>10.1}%", shares.sum::<f64>() / working().count().max(1) as f64);
    }
    out.push('\n');
}

fn waits(out: &mut String, explanation: &Explanation) {
    if explanation.waits.is_empty() {
        return;
    }
    out.push_str("\nWho waits for whom\n");
    for wait in explanation.waits.iter().take(WAITS_SHOWN) {
        let share = percent(wait.total_ns(), explanation.iteration_ns);
        let _ = write!(out, "{:<12} {:>10} {share:>5.1}%  ", wait.device, milliseconds(wait.total_ns()));
        let _ = match (wait.for_device_ns, wait.for_link_ns) {
            (_, 0) => writeln!(out, "for {} to compute", wait.from),
            (0, _) => writeln!(out, "for the link from {}", wait.from),
            (device, link) => writeln!(
                out,
                "for {}: {} to compute, {} for the link",
                wait.from,
                milliseconds(device),
                milliseconds(link)
            ),
        };
    }
    match explanation.waits.len().saturating_sub(WAITS_SHOWN) {
        0 => {}
        more => {
            let _ = writeln!(out, "and {more} shorter ones");
        }
    }
}

fn memory(out: &mut String, explanation: &Explanation) {
    let _ = writeln!(out, "\nMemory\n{:<12} {:>23} {:>12}  pressure", "device", "peak", "always held");
    for memory in &explanation.memory {
        let peak = format!("{} of {}", size(memory.peak_bytes), size(memory.limit_bytes));
        let _ = write!(out, "{:<12} {peak:>23} {:>12}  ", memory.device, size(memory.always_bytes));
        let again_ns =
            explanation.devices.iter().find(|split| split.device == memory.device).map(|split| split.recompute_ns);
        let _ = match (memory.peak_bytes > memory.limit_bytes, again_ns.unwrap_or(0), memory.is_binding) {
            (true, ..) => writeln!(out, "does not fit: {} bytes too many", memory.peak_bytes - memory.limit_bytes),
            (_, 0, true) if memory.is_empty => writeln!(out, "no room for any layer"),
            (_, 0, true) => writeln!(out, "no room for one more microbatch in flight"),
            (_, 0, false) => writeln!(out, "none"),
            (_, again_ns, false) => {
                writeln!(out, "none; recomputes for {} without need", milliseconds(again_ns))
            }
            (_, again_ns, true) => writeln!(
                out,
                "recomputes for {} and saves {}",
                milliseconds(again_ns),
                size(memory.recompute_saves_bytes)
            ),
        };
    }
    if let Some(ns) = explanation.without_recompute_ns {
        let _ = writeln!(out, "With memory enough to recompute nothing, the same order takes {}.", milliseconds(ns));
    }
}

fn bound(out: &mut String, explanation: &Explanation) {
    let (iteration_ns, bound_ns) = (explanation.iteration_ns, explanation.lower_bound_ns);
    let _ = match iteration_ns.saturating_sub(bound_ns) {
        0 => writeln!(out, "\nNo plan takes less: this one is proved optimal."),
        gap => writeln!(
            out,
            "\nNo plan takes less than {}, so a better one gains {:.1}% at most.",
            milliseconds(bound_ns),
            percent(gap, iteration_ns)
        ),
    };
}

fn wishes(out: &mut String, explained: &Explained) {
    let explanation = &explained.explanation;
    out.push_str("\nWhat more would buy, at least\n");
    let Some(again_ns) = explanation.again_ns else {
        out.push_str("not asked: no time was left\n");
        return;
    };
    if !explanation.wishes.is_empty() {
        let _ = writeln!(out, "{:>8} {:>12}  with", "gain", "iteration");
    }
    for answer in &explanation.wishes {
        let gain = match answer.gain_ns {
            0 => "nothing".to_owned(),
            gain_ns if percent(gain_ns, again_ns) < 0.1 => "< 0.1%".to_owned(),
            gain_ns => format!("{:.1}%", percent(gain_ns, again_ns)),
        };
        let _ = writeln!(out, "{gain:>8} {:>12}  {}", milliseconds(answer.iteration_ns), wish(answer));
    }
    if explanation.unasked > 0 {
        let _ = writeln!(out, "{} more not asked: no time was left", explanation.unasked);
    }
    if again_ns == explanation.lower_bound_ns && again_ns == explanation.iteration_ns {
        return;
    }
    let _ = writeln!(
        out,
        "Each planned again with {} evaluations; so planned again without any, an iteration takes {}.",
        explained.evaluations_each,
        milliseconds(again_ns)
    );
}

fn wish(answer: &Answer) -> String {
    match &answer.wish {
        Wish::Device { kind } => format!("one more {kind}"),
        Wish::Memory { devices, bytes } => match &devices[..] {
            [device] => format!("{} more on {device}", size(*bytes)),
            devices => format!("{} more on each of {}", size(*bytes), devices.join(" ")),
        },
        Wish::Bandwidth { links } => match &links[..] {
            [[a, b]] => format!("twice the bandwidth between {a} and {b}"),
            links => format!("twice the bandwidth on all {} links in use", links.len()),
        },
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 * 100.0 }
}
