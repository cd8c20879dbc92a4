//! An evaluation as one HTML file: facts, tables, distributions, overlays. Nothing is loaded from elsewhere.

use std::fmt::Write;

use super::metrics::Agreement;
use super::run::Prompt;
use super::table::{CaseRow, Spread, Table};
use crate::image::Rgb;
use crate::image::plot::{Axis, Mark, Plot, Series, escape};

/// Lowest results that are listed.
const LOWEST: usize = 12;

const STYLE: &str = "body{font:14px/1.45 Helvetica,Arial,sans-serif;color:#222;max-width:1100px;margin:24px auto;padding:0 16px}\
table{border-collapse:collapse;margin:12px 0}th,td{padding:3px 10px;border-bottom:1px solid #ddd;text-align:right}\
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}th{border-bottom:2px solid #888}\
img,svg{max-width:100%;height:auto}.note{color:#555}dt{font-weight:bold}dd{margin:0 0 4px 16px;overflow-wrap:anywhere}";

/// The page. The overlays carry patients' images: a page with them is kept where the images may be kept.
///
/// # Errors
/// The picture could not be encoded.
pub fn html(title: &str, table: &Table, overlays: Option<&Rgb>) -> std::io::Result<String> {
    let title = escape(title);
    let mut s = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style></head>\n\
         <body><h1>{title}</h1>\n<dl>"
    );
    for (k, v) in &table.facts {
        let _ = writeln!(s, "<dt>{}</dt><dd>{}</dd>", escape(k), escape(v));
    }
    s.push_str("</dl>\n");
    means(&mut s, table);
    figures(&mut s, table);
    presence(&mut s, table);
    distribution(&mut s, table, "Dice", |a| a.dice, Some([0.0, 1.0]));
    distribution(&mut s, table, "HD95, mm", |a| a.hd95_mm, None);
    lowest(&mut s, table);
    if let Some(picture) = overlays {
        let _ = write!(
            s,
            "<h2>Overlays</h2>\n<p class=\"note\">Worst, median and best leg of each structure, automatic, each on its test \
             slice with the most wrong pixels. Green: truth. Pink: result. Yellow: both.</p>\n\
             <img alt=\"truth and result as outlines\" src=\"data:image/png;base64,{}\">\n",
            base64(&picture.png()?)
        );
    }
    s.push_str("</body></html>\n");
    Ok(s)
}

fn means(s: &mut String, table: &Table) {
    s.push_str("<p>");
    for prompt in Prompt::ALL {
        if let Some(mean) = table.mean_dice(prompt) {
            let _ = write!(s, "Mean Dice over structures, {}: <b>{mean:.3}</b><br>", prompt.words());
        }
    }
    s.push_str("</p>\n");
}

fn figures(s: &mut String, table: &Table) {
    s.push_str(
        "<h2>Figures</h2>\n<table><tr><th>structure</th><th>prompt</th><th>legs</th><th>Dice</th><th>sd</th><th>least</th>\
         <th>IoU</th><th>HD95 mm</th><th>ASSD mm</th><th>NSD</th><th>missing</th><th>rightly absent</th></tr>\n",
    );
    let cell = |v: Option<f64>, digits: usize| v.map_or("–".to_string(), |v| format!("{v:.digits$}"));
    let mean = |v: &Option<Spread>, digits: usize| cell(v.map(|v| v.mean), digits);
    for r in &table.rows {
        let _ = writeln!(
            s,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td><b>{}</b></td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&r.structure),
            r.prompt.words(),
            r.legs,
            mean(&r.dice, 3),
            cell(r.dice.filter(|d| d.n > 1).map(|d| d.sd), 3),
            cell(r.dice.map(|d| d.min), 3),
            mean(&r.iou, 3),
            mean(&r.hd95_mm, 1),
            mean(&r.assd_mm, 2),
            mean(&r.nsd, 3),
            r.missing,
            r.absent
        );
    }
    let _ = writeln!(
        s,
        "</table>\n<p class=\"note\">Means over legs, whole volumes, slices without the structure included. HD95: the larger of \
         both directed 95th percentiles. NSD at {}. Missing: only one of truth and mask has \
         the structure (Dice 0, no distance). The automatic result is the result; the true box is an upper bound.</p>",
        escape(table.tolerance())
    );
}

fn presence(s: &mut String, table: &Table) {
    s.push_str(
        "<h2>Presence and SegEx</h2>\n<table><tr><th>structure</th><th>prompt</th><th>sensitivity</th><th>specificity</th>\
         <th>slices</th><th>A</th><th>B</th><th>C</th><th>D</th><th>A or B</th></tr>\n",
    );
    let cell = |v: Option<f64>| v.map_or("–".to_string(), |v| format!("{v:.3}"));
    for r in table.rows.iter().filter(|r| matches!(r.prompt, Prompt::Automatic | Prompt::PromptFree)) {
        let verdicts: String = match r.usable() {
            Some(_) => r.verdicts.iter().map(|n| format!("<td>{n}</td>")).collect(),
            None => "<td>–</td>".repeat(4),
        };
        let _ = writeln!(
            s,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>{verdicts}<td>{}</td></tr>",
            escape(&r.structure),
            r.prompt.words(),
            cell(r.presence.sensitivity()),
            cell(r.presence.specificity()),
            r.presence.slices(),
            cell(r.usable())
        );
    }
    s.push_str(
        "</table>\n<p class=\"note\">Of the slices with a structure, the share in which it was found; of those without, the \
         share left empty. SegEx grades the automatic result without the truth; A: use as is, B: minor edits, C: major edits, \
         D: redo. A structure that is there and was not found has no verdict and is not usable; –: found on no leg, or not \
         graded.</p>\n",
    );
}

fn distribution(
    s: &mut String,
    table: &Table,
    name: &str,
    figure: fn(&Agreement) -> Option<f64>,
    most: Option<[f64; 2]>,
) {
    let mut keys: Vec<String> = Vec::new();
    for r in &table.rows {
        if !keys.contains(&r.structure) {
            keys.push(r.structure.clone());
        }
    }
    let groups = |prompt: Prompt| -> Vec<Vec<f64>> {
        let rows = |key: &String| {
            let of = table.cases.iter().filter(|c| c.prompt == prompt && &c.structure == key);
            of.filter_map(|c| figure(&c.agreement)).collect()
        };
        keys.iter().map(rows).collect()
    };
    let series: Vec<Series> = Prompt::ALL
        .into_iter()
        .map(|p| Series { name: p.words().into(), mark: Mark::Boxes(groups(p)) })
        .filter(|s| matches!(&s.mark, Mark::Boxes(g) if g.iter().any(|v| !v.is_empty())))
        .collect();
    if series.is_empty() {
        return;
    }
    let plot = Plot {
        title: format!("{name}, each leg a dot"),
        x: Axis { label: "structure".into(), categories: keys, ..Axis::default() },
        y: Axis { label: name.into(), range: most, ..Axis::default() },
        series,
        size: [1040, 420],
    };
    let _ = write!(s, "<h2>{}</h2>\n{}", escape(name), plot.svg());
}

fn lowest(s: &mut String, table: &Table) {
    let mut rows: Vec<(f64, &CaseRow)> = table
        .cases
        .iter()
        .filter(|c| c.prompt == Prompt::Automatic)
        .filter_map(|c| Some((c.agreement.dice?, c)))
        .collect();
    if rows.is_empty() {
        return;
    }
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    s.push_str(
        "<h2>Lowest automatic results</h2>\n<table><tr><th>structure</th><th>case</th><th>Dice</th><th>HD95 mm</th>\
         <th>voxels found</th><th>voxels true</th><th>SegEx</th></tr>\n",
    );
    for (dice, c) in rows.into_iter().take(LOWEST) {
        let side = c.side.map_or("", crate::terms::Side::word);
        let name = c.name.as_deref().map(|n| format!(", {}", escape(n))).unwrap_or_default();
        let _ = writeln!(
            s,
            "<tr><td>{}</td><td>{} {side}{name}</td><td>{dice:.3}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&c.structure),
            c.case,
            c.agreement.hd95_mm.map_or("–".into(), |v| format!("{v:.1}")),
            c.agreement.found,
            c.agreement.truth,
            c.verdict.map_or("–".into(), |v| format!("{v:?}"))
        );
    }
    s.push_str("</table>\n");
}

/// Base64 with padding (RFC 4648, 4).
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let v = group.iter().fold(0u32, |v, b| v << 8 | u32::from(*b)) << (8 * (3 - group.len()));
        for i in 0..4 {
            let letter = char::from(LETTERS[(v >> (18 - 6 * i) & 63) as usize]);
            out.push(if i <= group.len() { letter } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::{Outcome, metrics::Presence};
    use crate::segex::Verdict;

    #[test]
    fn base64_is_the_standards() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
    }

    #[test]
    fn the_page_stands_alone_and_names_nobody() {
        let agreement = |dice: f64| Agreement {
            found: 10,
            truth: 12,
            dice: Some(dice),
            iou: Some(dice),
            hd95_mm: Some(2.0),
            assd_mm: Some(1.0),
            nsd: Some(dice),
        };
        let outcome = |case: usize, dice: f64| Outcome {
            case,
            side: None,
            structure: "VL<".into(),
            prompt: Prompt::Automatic,
            agreement: agreement(dice),
            presence: Presence { both: 3, ..Presence::default() },
            segex: Some((80.0, Verdict::B)),
        };
        let outcomes = [outcome(0, 0.9), outcome(1, 0.4)];
        let mut table = Table::new(&outcomes, &["VL<".into()], vec![("seed".into(), "a & b".into())]);
        let page = html("T", &table, Some(&Rgb::black(2, 2))).unwrap();
        assert!(page.contains("VL&lt;") && !page.contains("VL<<") && page.contains("a &amp; b"));
        assert!(page.contains("data:image/png;base64,iVBORw0KGgo"), "{page}");
        assert_eq!(page.matches("<svg ").count(), 2);
        for outside in ["<script", "src=\"http", "href=", "@import"] {
            assert!(!page.contains(outside), "{outside}");
        }
        // The lowest first, by its number; by its name only where asked for.
        assert!(page.contains("<td>2 </td><td>0.400</td>") && !page.contains("Meier"));
        table.name_cases(&["Huber", "Meier"]);
        assert!(html("T", &table, None).unwrap().contains("<td>2 , Meier</td>"));
        let shared = html("T", &table.aggregates(), None).unwrap();
        assert!(!shared.contains("<svg ") && !shared.contains("Lowest"));
    }
}
