//! Where a run stands, as a page for people. It loads nothing, runs no script, and asks for itself again.

use super::course;
use crate::snapshot::Snapshot;
use adaptis_planner::export::{milliseconds, ranges_text};
use adaptis_proto::message::{PeakMemory, State, Status};
use std::fmt::Write;

/// Seconds between two looks.
const REFRESH_SECONDS: u64 = 2;

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8884;--soft:#888;--bar:#3a7}\
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.3rem;margin:0}h1 small{font-weight:normal;color:var(--soft)}\
.figures{display:flex;flex-wrap:wrap;gap:.6rem 2.5rem;margin:1.2rem 0}\
.figures div span{display:block;color:var(--soft);font-size:.85rem}\
.figures b{font-size:1.25rem;font-weight:600;font-variant-numeric:tabular-nums}\
progress{width:100%;height:.5rem;margin-bottom:1rem;accent-color:var(--bar)}\
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
th,td{text-align:left;padding:.35rem .8rem .35rem 0;border-bottom:1px solid var(--line);white-space:nowrap}\
th{color:var(--soft);font-weight:normal;font-size:.85rem}td.n,th.n{text-align:right}td.many{white-space:normal;min-width:9rem}\
svg.course{width:100%;height:auto;margin-bottom:1rem;font-size:11px}svg.course text{fill:var(--soft)}\
svg.course .line{fill:none;stroke:var(--bar);stroke-width:1.6;stroke-linejoin:round}\
svg.course .axis{stroke:var(--line)}svg.course .plan{stroke:#c80;stroke-dasharray:3 3}\
svg.course .predicted{stroke:var(--soft);stroke-dasharray:6 4}svg.course .bound{stroke:var(--soft);stroke-dasharray:1 4}\
.bad{border-left:4px solid #c33;padding:.3rem .8rem}p{margin:1rem 0}footer{color:var(--soft);font-size:.85rem}";

/// The page. `is_stale`: the coordinator's loop does not turn.
pub(super) fn write(snapshot: &Snapshot, is_stale: bool) -> String {
    let (status, memory) = (&snapshot.status, &snapshot.memory);
    let mut out = String::with_capacity(4 << 10);
    let run = match status.run.0.as_str() {
        "" => "no run yet".to_owned(),
        run => escaped(run),
    };
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta http-equiv=\"refresh\" content=\"{REFRESH_SECONDS}\">\
         <title>{run}: {state}</title><style>{STYLE}</style></head><body>\n\
         <h1>{run} <small>{state}</small></h1>\n",
        state = in_words(status.state)
    );
    if is_stale {
        out.push_str("<p class=\"bad\">The coordinator's loop does not turn; what stands here is old.</p>\n");
    }
    if let Some(failure) = &status.failure {
        let _ = writeln!(out, "<p class=\"bad\">The run failed: {}</p>", escaped(failure));
    }
    figures(&mut out, status);
    course::draw(&mut out, &snapshot.iterations, status);
    devices(&mut out, status, memory);
    match (&status.last_decision, status.last_decision_step) {
        (Some(text), step) => {
            let at = step.map_or(String::new(), |step| format!(", iteration {step}"));
            let _ = writeln!(out, "<p>Last decision{at}: {}</p>", escaped(text));
        }
        (None, _) => out.push_str("<p>No decision yet.</p>\n"),
    }
    let switches = match status.switches {
        1 => "1 switch".to_owned(),
        count => format!("{count} switches"),
    };
    let _ = writeln!(
        out,
        "<footer>{switches} of plan so far. For programs: <a href=\"/status.json\">status</a> (JSON), \
         <a href=\"/metrics\">metrics</a> (Prometheus). This page renews itself every {REFRESH_SECONDS} s.</footer>\n\
         </body></html>"
    );
    out
}

fn in_words(state: State) -> &'static str {
    match state {
        State::Waiting => "waiting for ranks",
        State::Training => "training",
        State::Searching => "training, searching a plan",
        State::Preparing => "training, preparing a plan",
        State::Finished => "finished",
        State::Failed => "failed",
    }
}

fn figures(out: &mut String, status: &Status) {
    let done = status.iterations_done();
    let iterations = match status.iterations {
        0 => done.to_string(),
        all => format!("{done} of {all}"),
    };
    let time = |ns: Option<u64>| ns.map_or("-".to_owned(), milliseconds);
    let figures = [
        ("iterations", iterations),
        ("loss", status.loss.map_or("-".to_owned(), |loss| format!("{loss:.3}"))),
        ("the last one took", time(status.duration_ns)),
        ("predicted", time(status.predicted_ns)),
        ("no plan takes less than", time(status.lower_bound_ns)),
        ("plan", status.place.epoch.to_string()),
    ];
    out.push_str("<div class=\"figures\">");
    for (name, value) in figures {
        let _ = write!(out, "<div><span>{name}</span><b>{value}</b></div>");
    }
    out.push_str("</div>\n");
    if status.iterations > 0 {
        let _ = writeln!(out, "<progress max=\"{}\" value=\"{done}\"></progress>", status.iterations);
    }
}

fn devices(out: &mut String, status: &Status, memory: &[PeakMemory]) {
    if status.devices.is_empty() {
        out.push_str("<p>No rank is there yet.</p>\n");
        return;
    }
    out.push_str(
        "<div class=\"wide\"><table><tr><th>device</th><th>kind</th><th>layers</th><th class=\"n\">idle</th>\
         <th class=\"n\">times its kind's</th><th class=\"n\">peak of memory</th></tr>\n",
    );
    for device in &status.devices {
        let peak = memory.iter().find(|peak| peak.epoch == status.place.epoch && peak.device == device.name);
        let gibibytes = |bytes: u64| bytes as f64 / (1_u64 << 30) as f64;
        let predicted = peak.and_then(|peak| peak.predicted_bytes).map(gibibytes);
        let predicted = predicted.map_or(String::new(), |of| format!(", predicted {of:.1}"));
        let beyond = if peak.is_some_and(PeakMemory::is_close) { ", most of what was left" } else { "" };
        let peak = device.peak_bytes.map_or("-".to_owned(), |peak| format!("{:.1}", gibibytes(peak)));
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"many\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{peak} of {:.1} GiB{predicted}{beyond}</td></tr>",
            escaped(&device.name),
            escaped(&device.kind),
            layers(&device.stages),
            device.bubble.map_or("-".to_owned(), |share| format!("{:.0}%", share * 100.0)),
            device.slowdown.map_or("-".to_owned(), |factor| format!("{factor:.2}")),
            gibibytes(device.memory_bytes),
        );
    }
    out.push_str("</table></div>\n");
}

fn layers(stages: &[(u32, u32)]) -> String {
    match stages {
        [] => "none".to_owned(),
        stages => ranges_text(stages.iter().copied()),
    }
}

/// Text that stands in a page as it is.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use adaptis_proto::message::DeviceStatus;
    use adaptis_proto::{Epoch, RunId, Step};

    fn snapshot(status: Status, memory: Vec<PeakMemory>) -> Snapshot {
        let (figures, health, iterations, taken) = (Vec::new(), Vec::new(), Vec::new(), std::time::Instant::now());
        Snapshot { status, figures, memory, health, iterations, taken }
    }

    #[test]
    fn what_others_name_cannot_break_out_of_the_page() {
        let name = "<script>alert(\"1\")</script>&'";
        let mut status = Status { run: RunId(name.into()), failure: Some(name.into()), ..Status::default() };
        status.last_decision = Some(name.into());
        status.devices = vec![DeviceStatus { name: name.into(), kind: name.into(), ..DeviceStatus::default() }];
        let page = write(&snapshot(status, Vec::new()), true);
        assert!(!page.contains("<script"), "{page}");
        let whole = page.matches("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;&#39;").count();
        assert_eq!(whole, 6, "title, heading, failure, decision, name and kind: {page}");
    }

    #[test]
    fn a_page_holds_what_a_person_wants_to_know() {
        let device = DeviceStatus {
            name: "gpu1".into(),
            kind: "h100-80g".into(),
            stages: vec![(0, 5), (9, 10)],
            bubble: Some(0.127),
            slowdown: Some(1.8),
            peak_bytes: Some(3 << 30),
            memory_bytes: 80 << 30,
        };
        let mut status = Status { iterations: 120, loss: Some(4.1), devices: vec![device], ..Status::default() };
        (status.place.step, status.place.epoch, status.state) = (Step(41), Epoch(2), State::Searching);
        (status.duration_ns, status.predicted_ns) = (Some(882_000_000), Some(883_000_000));
        let peak =
            PeakMemory { epoch: Epoch(2), device: "gpu1".into(), measured_bytes: 3 << 30, ..PeakMemory::default() };
        let peak =
            |epoch, gib: u64| PeakMemory { epoch: Epoch(epoch), predicted_bytes: Some(gib << 30), ..peak.clone() };
        let page = write(&snapshot(status, vec![peak(1, 9), peak(2, 2)]), false);
        for text in [
            "42 of 120",
            "value=\"42\"",
            "4.100",
            "882.0 ms",
            "883.0 ms",
            "gpu1",
            "0-4, 9",
            "13%",
            "1.80",
            "3.0 of 80.0 GiB, predicted 2.0",
        ] {
            assert!(page.contains(text), "`{text}` is not in {page}");
        }
        assert!(page.contains("searching") && page.contains("http-equiv=\"refresh\""), "{page}");
    }
}
