//! A timeline as SVG: one panel per iteration, one row per device, all panels on one time scale.
//!
//! Colours name the work and stand explained at the top; every bar that is wide enough also says its letter and its
//! microbatch, and its stage where the device has several: the later the stage, the darker its foot. Every bar tells all
//! in its tooltip; those too narrow to be seen are drawn as one for each pixel, so that a picture's size does not grow
//! with the microbatches. Idle time is the hatched ground of a row, and its share stands at the row's end, so that nobody
//! has to measure it by eye.

use super::{Bar, Kind, Lane, Panel, milliseconds};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

const WIDTH: f64 = 1500.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 96.0;
const ROW: f64 = 34.0;
const GAP: f64 = 7.0;
const HEAD: f64 = 54.0;
const TOP: f64 = 64.0;
/// Narrower bars carry no text.
const LETTER_WIDTH: f64 = 11.0;
const NUMBER_WIDTH: f64 = 22.0;
/// Narrower bars are drawn together.
const OWN_WIDTH: f64 = 0.5;
/// The foot of a bar, which tells stages apart.
const FOOT: f64 = 4.0;
/// What the latest stage's foot is darkened by.
const DARKEST: f64 = 0.55;
/// Characters of a device's name and of the note under it.
const LABEL_MAX: usize = 22;
const NOTE_MAX: usize = 32;
/// Room of a tick's label.
const TICK_WIDTH: f64 = 40.0;

fn colour(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Forward => ("#3b7dd8", "#ffffff"),
        Kind::InputGradient => ("#2a9d5c", "#ffffff"),
        Kind::WeightGradient => ("#b7dd79", "#203010"),
        Kind::Backward => ("#1f8a70", "#ffffff"),
        Kind::Recompute => ("#9db8e8", "#102040"),
        Kind::Optimizer => ("#8d6bb8", "#ffffff"),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Draws panels under one another.
pub fn draw(heading: &str, panels: &[Panel]) -> String {
    let longest_ns = panels.iter().map(|panel| panel.duration_ns).max().unwrap_or(1).max(1);
    let per_ns = (WIDTH - LEFT - RIGHT) / longest_ns as f64;
    let height = TOP + panels.iter().map(panel_height).sum::<f64>() + 12.0;
    let mut out = String::new();
    let _ = write!(
        out,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" font-family="Helvetica, Arial, sans-serif">
<defs><pattern id="idle" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="7" height="7" fill="#f4f1ea"/><line x1="0" y1="0" x2="0" y2="7" stroke="#ddd5c3" stroke-width="2"/></pattern></defs>
<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>
<text x="16" y="28" font-size="18" font-weight="bold" fill="#222">{}</text>
"##,
        escape(heading)
    );
    legend(&mut out, panels);
    let mut y = TOP;
    for panel in panels {
        draw_panel(&mut out, panel, y, per_ns);
        y += panel_height(panel);
    }
    out.push_str("</svg>\n");
    out
}

fn panel_height(panel: &Panel) -> f64 {
    HEAD + panel.lanes.len() as f64 * (ROW + GAP) + 10.0
}

fn legend(out: &mut String, panels: &[Panel]) {
    let kinds =
        [Kind::Forward, Kind::InputGradient, Kind::WeightGradient, Kind::Backward, Kind::Recompute, Kind::Optimizer];
    let used = |kind: Kind| panels.iter().flat_map(|p| &p.lanes).flat_map(|l| &l.bars).any(|bar| bar.kind == kind);
    let mut x = 16.0;
    for kind in kinds.into_iter().filter(|kind| used(*kind)) {
        let (fill, ink) = colour(kind);
        let _ = write!(
            out,
            r##"<rect x="{x}" y="40" width="18" height="16" rx="2" fill="{fill}"/><text x="{}" y="52" font-size="11" fill="{ink}" text-anchor="middle">{}</text><text x="{}" y="52" font-size="12" fill="#333">{}</text>"##,
            x + 9.0,
            kind.letter(),
            x + 24.0,
            kind.name()
        );
        x += 36.0 + 7.0 * kind.name().len() as f64;
    }
    let _ = writeln!(
        out,
        r##"<rect x="{x}" y="40" width="18" height="16" rx="2" fill="url(#idle)" stroke="#ddd5c3"/><text x="{}" y="52" font-size="12" fill="#333">idle; numbers are microbatches{}; the red line: all is done</text>"##,
        x + 24.0,
        if panels.iter().flat_map(|panel| &panel.lanes).any(|lane| stages(lane).len() > 1) {
            ", s1 a stage"
        } else {
            ""
        }
    );
}

fn draw_panel(out: &mut String, panel: &Panel, top: f64, per_ns: f64) {
    let width = panel.duration_ns as f64 * per_ns;
    let _ = writeln!(
        out,
        r##"<text x="16" y="{}" font-size="15" font-weight="bold" fill="#222">{} <tspan font-weight="normal" fill="#555">{}</tspan></text>"##,
        top + 24.0,
        escape(&panel.title),
        escape(&panel.caption)
    );
    let _ = writeln!(
        out,
        r##"<text x="{}" y="{}" font-size="11" fill="#555">idle</text>"##,
        LEFT + width + 8.0,
        top + HEAD - 8.0
    );
    let bottom = top + HEAD + panel.lanes.len() as f64 * (ROW + GAP);
    scale(out, panel.duration_ns, top + HEAD - 6.0, bottom, per_ns);
    for (index, lane) in panel.lanes.iter().enumerate() {
        draw_lane(out, lane, panel.duration_ns, top + HEAD + index as f64 * (ROW + GAP), per_ns);
    }
    let _ = writeln!(
        out,
        r##"<line x1="{0}" y1="{1}" x2="{0}" y2="{bottom}" stroke="#c0392b" stroke-width="1.5"/>"##,
        LEFT + width,
        top + HEAD - 6.0
    );
}

/// Ticks at a round step, so that lengths can be read off.
fn scale(out: &mut String, duration_ns: u64, top: f64, bottom: f64, per_ns: f64) {
    let rough_ns = (duration_ns / 12).max(1);
    let magnitude_ns = 10_u64.pow(rough_ns.ilog10());
    let step_ns = [1, 2, 5].map(|digit| digit * magnitude_ns).into_iter().find(|step_ns| *step_ns >= rough_ns);
    let step_ns = step_ns.unwrap_or(magnitude_ns.saturating_mul(10));
    let mut at_ns = 0;
    // A label at the very end would run into the one of the idle column.
    while (duration_ns - at_ns) as f64 * per_ns > TICK_WIDTH {
        let x = LEFT + at_ns as f64 * per_ns;
        let _ = writeln!(
            out,
            r##"<line x1="{x:.1}" y1="{top}" x2="{x:.1}" y2="{bottom}" stroke="#e4e4e4"/><text x="{x:.1}" y="{}" font-size="10" fill="#888" text-anchor="middle">{}</text>"##,
            top - 3.0,
            milliseconds(at_ns)
        );
        at_ns = (at_ns + step_ns).min(duration_ns);
    }
}

fn draw_lane(out: &mut String, lane: &Lane, duration_ns: u64, y: f64, per_ns: f64) {
    let idle = 1.0 - (lane.busy_ns() as f64 / duration_ns.max(1) as f64).min(1.0);
    let _ = writeln!(
        out,
        r##"<text x="{0}" y="{1}" font-size="13" fill="#222" text-anchor="end">{2}</text><text x="{0}" y="{3}" font-size="10" fill="#777" text-anchor="end">{4}</text><rect x="{LEFT}" y="{y}" width="{5:.2}" height="{ROW}" fill="url(#idle)"/><text x="{6:.1}" y="{7}" font-size="13" fill="#222">{8:.0}%</text>"##,
        LEFT - 10.0,
        y + 15.0,
        escape(&shortened(&lane.label, LABEL_MAX)),
        y + 28.0,
        escape(&shortened(&lane.note, NOTE_MAX)),
        duration_ns as f64 * per_ns,
        LEFT + duration_ns as f64 * per_ns + 8.0,
        y + 21.0,
        idle * 100.0,
    );
    let stages = stages(lane);
    let is_narrow = |bar: &Bar| (bar.end_ns.saturating_sub(bar.start_ns) as f64) * per_ns < OWN_WIDTH;
    let pixel = |bar: &Bar| (bar.start_ns as f64 * per_ns) as u64;
    let together = |a: &Bar, b: &Bar| is_narrow(a) && is_narrow(b) && pixel(a) == pixel(b);
    for bars in lane.bars.chunk_by(together) {
        match bars {
            [bar] => draw_bar(out, bar, &stages, y, per_ns),
            bars => draw_together(out, bars, y, per_ns),
        }
    }
}

/// Bars of one pixel: in the colour of what takes most of their time, the fainter the less of it they take.
fn draw_together(out: &mut String, bars: &[Bar], y: f64, per_ns: f64) {
    let (Some(first), Some(last)) = (bars.first(), bars.last()) else { return };
    let mut busy: BTreeMap<&str, (u64, Kind)> = BTreeMap::new();
    for bar in bars {
        busy.entry(bar.kind.letter()).or_insert((0, bar.kind)).0 += bar.end_ns.saturating_sub(bar.start_ns);
    }
    let Some((_, kind)) = busy.values().copied().max_by_key(|(ns, _)| *ns) else { return };
    let (from_ns, lasts_ns) = (first.start_ns, last.end_ns.saturating_sub(first.start_ns));
    let share = busy.values().map(|(ns, _)| *ns).sum::<u64>() as f64 / lasts_ns.max(1) as f64;
    let parts: Vec<String> = busy.iter().map(|(letter, (ns, _))| format!("{letter} {}", milliseconds(*ns))).collect();
    let _ = writeln!(
        out,
        r##"<rect x="{:.2}" y="{y}" width="{:.2}" height="{ROW}" fill="{}" fill-opacity="{share:.2}"><title>{} works from {} to {}: {}</title></rect>"##,
        LEFT + from_ns as f64 * per_ns,
        (lasts_ns as f64 * per_ns).max(0.3),
        colour(kind).0,
        bars.len(),
        milliseconds(from_ns),
        milliseconds(last.end_ns),
        parts.join(", "),
    );
}

/// The stages that a device works on, ascending.
fn stages(lane: &Lane) -> Vec<usize> {
    let works = lane.bars.iter().filter(|bar| bar.kind != Kind::Optimizer);
    works.map(|bar| bar.stage).collect::<BTreeSet<usize>>().into_iter().collect()
}

fn shortened(text: &str, most: usize) -> String {
    match text.chars().count() > most {
        false => text.to_owned(),
        true => text.chars().take(most - 3).chain("...".chars()).collect(),
    }
}

fn draw_bar(out: &mut String, bar: &Bar, stages: &[usize], y: f64, per_ns: f64) {
    let x = LEFT + bar.start_ns as f64 * per_ns;
    let width = bar.end_ns.saturating_sub(bar.start_ns) as f64 * per_ns;
    let (fill, ink) = colour(bar.kind);
    let _ = write!(
        out,
        r##"<rect x="{x:.2}" y="{y}" width="{:.2}" height="{ROW}" fill="{fill}" stroke="#ffffff" stroke-width="{}"><title>{} of stage {}, microbatch {}: {} to {} ({})</title></rect>"##,
        width.max(0.3),
        if width > 3.0 { 0.7 } else { 0.0 },
        bar.kind.name(),
        bar.stage,
        bar.microbatch,
        milliseconds(bar.start_ns),
        milliseconds(bar.end_ns),
        milliseconds(bar.end_ns.saturating_sub(bar.start_ns)),
    );
    // Of several stages.
    let place = stages.binary_search(&bar.stage).ok().filter(|_| stages.len() > 1 && bar.kind != Kind::Optimizer);
    if let Some(place) = place.filter(|&place| place > 0) {
        let _ = write!(
            out,
            r##"<rect x="{x:.2}" y="{}" width="{:.2}" height="{FOOT}" fill="#000" fill-opacity="{:.2}" pointer-events="none"/>"##,
            y + ROW - FOOT,
            width.max(0.3),
            DARKEST * place as f64 / (stages.len() - 1) as f64,
        );
    }
    if place.is_some() && width >= NUMBER_WIDTH {
        let _ = write!(
            out,
            r#"<text x="{:.1}" y="{}" font-size="8" fill="{ink}" text-anchor="middle" pointer-events="none">s{}</text>"#,
            x + width / 2.0,
            y + 29.0,
            bar.stage
        );
    }
    if width >= LETTER_WIDTH {
        let text = match width >= NUMBER_WIDTH {
            _ if bar.kind == Kind::Optimizer => bar.kind.letter().to_owned(),
            true => format!("{}{}", bar.kind.letter(), bar.microbatch),
            false => bar.microbatch.to_string(),
        };
        let _ = write!(
            out,
            r#"<text x="{:.1}" y="{}" font-size="10" fill="{ink}" text-anchor="middle" pointer-events="none">{text}</text>"#,
            x + width / 2.0,
            y + if place.is_some() { 17.0 } else { 21.0 }
        );
    }
    out.push('\n');
}
