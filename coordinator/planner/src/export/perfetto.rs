//! A timeline as Chrome trace events, which ui.perfetto.dev and chrome://tracing open.
//!
//! A process per panel, a thread per device. Format: "Trace Event Format", complete events (`"ph": "X"`), microseconds.

use super::Panel;
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
}

fn named<'a>(what: &str, pid: usize, tid: usize, name: &'a str) -> Event<'a> {
    Event { name: what.to_owned(), ph: "M", pid, tid, ts: None, dur: None, cat: None, args: Arguments::Name { name } }
}

/// Writes panels as a trace.
pub fn write(panels: &[Panel]) -> String {
    let mut events = Vec::new();
    for (pid, panel) in panels.iter().enumerate() {
        events.push(named("process_name", pid, 0, &panel.title));
        for (tid, lane) in panel.lanes.iter().enumerate() {
            events.push(named("thread_name", pid, tid, &lane.label));
            events.extend(lane.bars.iter().map(|bar| Event {
                name: format!("{}{}{}", bar.stage, bar.kind.letter(), bar.microbatch),
                ph: "X",
                pid,
                tid,
                ts: Some(bar.start_ns as f64 / 1e3),
                dur: Some(bar.end_ns.saturating_sub(bar.start_ns) as f64 / 1e3),
                cat: Some(bar.kind.name()),
                args: Arguments::Work { stage: bar.stage, microbatch: bar.microbatch },
            }));
        }
    }
    serde_json::to_string(&Trace { display_time_unit: "ms", trace_events: events })
        .expect("strings and finite numbers serialise")
}
