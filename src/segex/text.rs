//! Reports for people, as Markdown.

use std::fmt::Write;

use super::{Criterion, Report};

/// A report as Markdown: a table of grades, then what pulled them down.
pub fn markdown(report: &Report) -> String {
    let how = match (report.with_ground_truth, report.calibrated) {
        (true, _) => "against ground truth",
        (false, true) => "without ground truth, calibrated",
        (false, false) => "without ground truth, not calibrated",
    };
    let mut out = format!(
        "## {}, {how}\n\nVerdict {:?} ({}), score {:.0} of 100.\n\n| structure | volume ml |",
        report.observer,
        report.verdict,
        report.verdict.words(),
        report.score
    );
    for c in Criterion::ALL {
        let _ = write!(out, " {} {} |", c.id(), c.name());
    }
    out.push_str(" score | verdict |\n|---|---:|");
    out.push_str(&"---:|".repeat(9));
    out.push_str("---|\n");
    for s in &report.structures {
        let _ = write!(out, "| {} | {:.0} |", name(s), s.volume_mm3 / 1000.0);
        for c in Criterion::ALL {
            let _ = match s.grade(c) {
                Some(g) => write!(out, " {g} |"),
                None => write!(out, " – |"),
            };
        }
        let _ = writeln!(out, " {:.0} | {:?} {} |", s.score, s.verdict, s.verdict.words());
    }
    for s in &report.structures {
        let mut lines: Vec<String> = s
            .grades
            .iter()
            .filter(|g| g.grade.is_none_or(|g| g <= 3))
            .map(|g| {
                let slices: Vec<String> = g.slices.iter().map(|z| (z + 1).to_string()).collect();
                let at = if slices.is_empty() { String::new() } else { format!("; slices {}", slices.join(", ")) };
                match g.grade {
                    Some(grade) => format!("{} {grade}: {:.3} {}{at}", g.criterion.id(), g.value, g.measure),
                    None => format!("{} not measured: {}", g.criterion.id(), g.measure),
                }
            })
            .collect();
        lines.extend(s.remarks.iter().cloned());
        if !lines.is_empty() {
            let _ = writeln!(out, "\n{}", name(s));
            lines.iter().for_each(|l| out.push_str(&format!("- {l}\n")));
        }
    }
    out.push_str("\nSlices are counted from 1. Grades: 5 best, 1 worst.\n");
    out
}

fn name(s: &super::StructureReport) -> String {
    match s.side {
        Some(side) => format!("{}, {}", s.structure.name, side.word()),
        None => s.structure.name.clone(),
    }
}
