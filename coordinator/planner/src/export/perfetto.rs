//! A timeline as Chrome trace events, which ui.perfetto.dev and chrome://tracing open.
//!
//! A process per panel, a thread per device. Format: "Trace Event Format", complete events (`"ph": "X"`), microseconds.

use super::{Bar, Kind, Panel};
use serde::Serialize;

/// The document.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Trace<'a> {
    display_time_unit: &'static str,
    trace_events: Vec<Event<'a>>,
}

#[derive(Serialize)]
struct Event<'a> {
    name: String,
    ph: &'static str,
    pid: usize,
    tid: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    ts: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cat: Option<&'static str>,
    args: Arguments<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Arguments<'a> {
    Name { name: &'a str },
    Work { stage: usize, microbatch: usize },
    Step { stage: usize },
}

fn named<'a>(what: &str, pid: usize, tid: usize, name: &'a str) -> Event<'a> {
    Event { name: what.to_owned(), ph: "M", pid, tid, ts: None, dur: None, cat: None, args: Arguments::Name { name } }
}

/// The optimizer's step is all microbatches' at once.
fn name(bar: &Bar) -> String {
    match bar.kind {
        Kind::Optimizer => format!("{} {}", bar.stage, bar.kind.name()),
        _ => format!("{}{}{}", bar.stage, bar.kind.letter(), bar.microbatch),
    }
}

fn arguments(bar: &Bar) -> Arguments<'static> {
    match bar.kind {
        Kind::Optimizer => Arguments::Step { stage: bar.stage },
        _ => Arguments::Work { stage: bar.stage, microbatch: bar.microbatch },
    }
}

/// Writes panels as a trace.
pub fn write(panels: &[Panel]) -> String {
    let mut events = Vec::new();
    for (pid, panel) in panels.iter().enumerate() {
        events.push(named("process_name", pid, 0, &panel.title));
        for (tid, lane) in panel.lanes.iter().enumerate() {
            events.push(named("thread_name", pid, tid, &lane.label));
            events.extend(lane.bars.iter().map(|bar| Event {
                name: name(bar),
                ph: "X",
                pid,
                tid,
                ts: Some(bar.start_ns as f64 / 1e3),
                dur: Some(bar.end_ns.saturating_sub(bar.start_ns) as f64 / 1e3),
                cat: Some(bar.kind.name()),
                args: arguments(bar),
            }));
        }
    }
    serde_json::to_string(&Trace { display_time_unit: "ms", trace_events: events })
        .expect("strings and finite numbers serialise")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::Lane;

    #[test]
    fn an_optimizer_step_has_no_microbatch() {
        let bar = |kind, start_ns| Bar { kind, stage: 4, microbatch: 0, start_ns, end_ns: start_ns + 1_000 };
        let bars = vec![bar(Kind::Forward, 0), bar(Kind::Optimizer, 2_000)];
        let lanes = vec![Lane { label: "gpu0".into(), note: String::new(), bars }];
        let panel = Panel { title: "p".into(), caption: String::new(), duration_ns: 3_000, lanes };
        let trace: serde_json::Value = serde_json::from_str(&write(&[panel])).expect("it is JSON");
        assert_eq!(trace["traceEvents"][2]["name"], "4F0");
        assert_eq!(trace["traceEvents"][3]["name"], "4 optimizer");
        assert_eq!(trace["traceEvents"][3]["args"], serde_json::json!({ "stage": 4 }));
    }
}
