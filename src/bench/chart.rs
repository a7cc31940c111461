//! The rows of a planner bench as a picture: one line per problem, times as ratios to the best baseline that fits.

use super::measure::Row;
use super::table::means;
use std::fmt::Write;

const WIDTH: f64 = 1080.0;
const LEFT: f64 = 250.0;
const RIGHT: f64 = 170.0;
const TOP: f64 = 96.0;
const LINE: f64 = 30.0;
/// What is slower stands at the edge, with its ratio.
const HIGHEST: f64 = 1.6;
const LOWEST: f64 = 0.5;

const SEARCH: &str = "#1f8a70";
const EVEN: &str = "#c0392b";
const BASELINE: &str = "#3b7dd8";
const BOUND: &str = "#555555";

fn x(ratio: f64) -> f64 {
    LEFT + (ratio.clamp(LOWEST, HIGHEST) - LOWEST) / (HIGHEST - LOWEST) * (WIDTH - LEFT - RIGHT)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Draws the rows that have a plan and a baseline.
pub fn draw(rows: &[Row], heading: &str) -> String {
    let shown: Vec<&Row> = rows.iter().filter(|row| row.ratio().is_some()).collect();
    let bottom = TOP + shown.len() as f64 * LINE;
    let height = bottom + 40.0 + 20.0 * means(rows).len() as f64;
    let mut out = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" font-family="Helvetica, Arial, sans-serif">
<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>
<text x="16" y="28" font-size="18" font-weight="bold" fill="#222">{}</text>
"##,
        escape(heading)
    );
    legend(&mut out);
    axis(&mut out, bottom);
    for (index, row) in shown.iter().enumerate() {
        line(&mut out, row, TOP + (index as f64 + 0.5) * LINE);
    }
    for (index, (what, mean)) in means(rows).into_iter().enumerate() {
        let _ = writeln!(
            out,
            r##"<text x="16" y="{}" font-size="13" fill="#222">geometric mean, {what}: <tspan font-weight="bold">{mean:.3}</tspan></text>"##,
            bottom + 34.0 + 20.0 * index as f64
        );
    }
    out.push_str("</svg>\n");
    out
}

fn legend(out: &mut String) {
    let tick = |colour: &str| format!(r##"<line y1="-8" y2="8" stroke="{colour}" stroke-width="2"/>"##);
    let marks = [
        (22, format!(r##"<circle r="6" fill="{SEARCH}"/>"##), "search"),
        (112, tick(BASELINE), "best named schedule that fits: 1"),
        (342, format!(r##"<circle r="5" fill="#ffffff" stroke="{EVEN}" stroke-width="2"/>"##), "even 1F1B"),
        (452, tick(BOUND), "no plan takes less"),
    ];
    for (x, mark, text) in marks {
        let _ = writeln!(
            out,
            r##"<g transform="translate({x} 52)">{mark}<text x="12" y="4" font-size="12" fill="#333">{text}</text></g>"##
        );
    }
}

fn axis(out: &mut String, bottom: f64) {
    for tenths in 5..=16 {
        let ratio = f64::from(tenths) / 10.0;
        let (colour, width) = if tenths == 10 { (BASELINE, 2) } else { ("#e4e4e4", 1) };
        let _ = writeln!(
            out,
            r##"<line x1="{0:.1}" y1="{TOP}" x2="{0:.1}" y2="{bottom}" stroke="{colour}" stroke-width="{width}"/><text x="{0:.1}" y="{1}" font-size="10" fill="#888" text-anchor="middle">{ratio:.1}</text>"##,
            x(ratio),
            TOP - 6.0
        );
    }
}

fn line(out: &mut String, row: &Row, y: f64) {
    let (Some((name, best_ns)), Some(run)) = (row.best_baseline(), row.median()) else { return };
    let ratio = |ns: u64| ns as f64 / best_ns.max(1) as f64;
    let (search, bound) = (ratio(run.iteration_ns), ratio(row.lower_bound_ns));
    let _ = write!(
        out,
        r##"<text x="{0}" y="{1}" font-size="12" fill="#222" text-anchor="end">{2}</text><line x1="{3:.1}" y1="{y}" x2="{4:.1}" y2="{y}" stroke="{SEARCH}" stroke-width="5" stroke-opacity="0.35"/>"##,
        LEFT - 12.0,
        y + 4.0,
        escape(&row.problem),
        x(search),
        x(1.0),
    );
    if let Some(even_ns) = row.even_ns() {
        let even = ratio(even_ns);
        let _ = write!(
            out,
            r##"<circle cx="{:.1}" cy="{y}" r="5" fill="#ffffff" stroke="{EVEN}" stroke-width="2"><title>even 1F1B {even:.3}</title></circle>"##,
            x(even)
        );
        if even > HIGHEST {
            let _ = write!(
                out,
                r##"<text x="{:.1}" y="{}" font-size="11" fill="{EVEN}" text-anchor="end">{even:.2}</text>"##,
                x(even) - 9.0,
                y + 4.0
            );
        }
    }
    let _ = writeln!(
        out,
        r##"<line x1="{0:.1}" y1="{1}" x2="{0:.1}" y2="{2}" stroke="{BOUND}" stroke-width="2"><title>bound {bound:.3}</title></line><circle cx="{3:.1}" cy="{y}" r="6" fill="{SEARCH}"><title>search {search:.3}, seed {4}</title></circle><text x="{5}" y="{6}" font-size="12" fill="#222">{search:.3} of {7}</text>"##,
        x(bound),
        y - 8.0,
        y + 8.0,
        x(search),
        run.seed,
        WIDTH - RIGHT + 14.0,
        y + 4.0,
        escape(name),
    );
}
