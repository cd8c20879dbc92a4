//! The report over all results: tables with intervals, paired tests, the curve of quality over labelled slices.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::plan::{Arm, Plan};
use super::record::Record;
use crate::evaluate::statistics::{Crossed, bootstrap_crossed_mean_ci, holm, paired_differences, wilcoxon_signed_rank};
use crate::evaluate::{CaseRow, Prompt};
use crate::image::plot::{Axis, Plot, Series};
use crate::train::TrainSettings;

const LEVEL: f64 = 0.95;
const ROUNDS: usize = 4000;
const SEED: u64 = 7;

/// Mean over structures of one figure, by subject and draw.
type BySubject = BTreeMap<(usize, usize), f64>;

/// Writes PATH.md, PATH-slices.svg and PATH-time.svg; returns what was written.
///
/// # Errors
/// A file that cannot be written.
pub fn report(plan: &Plan, records: &[Record], out: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut text = String::from("# Few labelled slices: the method, its parts and its opponents\n\n");
    text.push_str(&protocol(plan, records));
    text.push_str(&main_table(plan, records));
    text.push_str(&comparisons(plan, records));
    text.push_str(&structures(plan, records));
    text.push_str(&bounds(plan, records));
    text.push_str(&costs(plan, records));
    let markdown = out.with_added_extension("md");
    std::fs::write(&markdown, text)?;
    let mut written = vec![markdown];
    for (end, svg) in [("-slices.svg", curve(plan, records)), ("-time.svg", time_curve(plan, records))] {
        let mut name = out.file_name().unwrap_or_default().to_os_string();
        name.push(end);
        let picture = out.with_file_name(name);
        std::fs::write(&picture, svg)?;
        written.push(picture);
    }
    Ok(written)
}

/// Records of an arm at a number of slices.
fn of<'a>(records: &'a [Record], arm: &str, slices: usize) -> Vec<&'a Record> {
    records.iter().filter(|r| r.key.arm == arm && r.key.slices == slices).collect()
}

/// The prompt that an arm is judged by.
fn main_prompt(record: &Record) -> Prompt {
    let has = |p: Prompt| record.table.cases.iter().any(|c| c.prompt == p);
    if has(Prompt::Automatic) { Prompt::Automatic } else { Prompt::ZeroShotTrueBox }
}

fn by_subject(records: &[&Record], prompt: Option<Prompt>, figure: impl Fn(&CaseRow) -> Option<f64>) -> BySubject {
    let mut sums: BTreeMap<(usize, usize), (f64, f64)> = BTreeMap::new();
    for r in records {
        let prompt = prompt.unwrap_or_else(|| main_prompt(r));
        for c in r.table.cases.iter().filter(|c| c.prompt == prompt) {
            if let Some(v) = figure(c) {
                let s = sums.entry((c.case, r.key.draw)).or_default();
                *s = (s.0 + v, s.1 + 1.0);
            }
        }
    }
    sums.into_iter().map(|(k, (s, n))| (k, s / n)).collect()
}

fn mean(values: &BySubject) -> f64 {
    values.values().sum::<f64>() / values.len().max(1) as f64
}

fn interval(values: &BySubject) -> (f64, f64) {
    let crossed: Vec<Crossed> =
        values.iter().map(|(&(subject, draw), &value)| Crossed { subject, draw, value }).collect();
    bootstrap_crossed_mean_ci(&crossed, LEVEL, ROUNDS, SEED)
}

fn counts(arm: &Arm) -> Vec<(usize, usize)> {
    let mut all: Vec<(usize, usize)> = arm.runs.iter().filter_map(|(n, d)| Some((n.parse().ok()?, *d))).collect();
    all.sort_unstable();
    all
}

fn protocol(plan: &Plan, records: &[Record]) -> String {
    let commits: BTreeSet<&str> = records.iter().map(|r| r.commit.as_str()).collect();
    let subjects: BTreeSet<usize> = records.iter().flat_map(|r| r.table.cases.iter().map(|c| c.case)).collect();
    format!(
        "Split by subject: {} subjects to test on, none of whose images is seen in training; labelled and unlabelled slices come \
         from the others. A draw is a set of labelled slices, spread over subjects and along the limb, the same for every arm. \
         Figures are fully automatic (the classifier's activation maps prompt) over whole volumes, slices without a structure \
         included, mean over structures; intervals are 95 %, by a bootstrap over subjects and draws (Owen's pigeonhole). HD95 and \
         ASSD leave out structures that only one of truth and result has; those are counted as missing, with Dice 0. Seed {}, \
         commits {}. Metric conventions: docs/metrics.md.\n\n",
        subjects.len(),
        plan.seed,
        commits.into_iter().collect::<Vec<_>>().join(", ")
    )
}

fn main_table(plan: &Plan, records: &[Record]) -> String {
    let mut out = String::from(
        "## All arms\n\n| arm | slices | draws (planned) | Dice [95 % CI] | least subject | HD95 mm | ASSD mm | NSD | missing |\n\
         |---|---:|---:|---|---:|---:|---:|---:|---:|\n",
    );
    for arm in &plan.arm {
        for (n, planned) in counts(arm) {
            let rs = of(records, &arm.name, n);
            if rs.is_empty() {
                let _ = writeln!(out, "| {} | {n} | 0 ({planned}) | not run yet | | | | | |", arm.name);
                continue;
            }
            let dice = by_subject(&rs, None, |c| c.agreement.dice);
            let (low, high) = interval(&dice);
            let m = |f: fn(&CaseRow) -> Option<f64>| mean(&by_subject(&rs, None, f));
            let missing: usize = rs
                .iter()
                .flat_map(|r| r.table.cases.iter().filter(|c| c.prompt == main_prompt(r)))
                .filter(|c| c.agreement.dice.is_some() && c.agreement.hd95_mm.is_none())
                .count();
            let _ = writeln!(
                out,
                "| {} | {n} | {} ({planned}) | **{:.3}** [{low:.3}, {high:.3}] | {:.3} | {:.1} | {:.2} | {:.3} | {missing} |",
                arm.name,
                rs.len(),
                mean(&dice),
                dice.values().copied().fold(f64::INFINITY, f64::min),
                m(|c| c.agreement.hd95_mm),
                m(|c| c.agreement.assd_mm),
                m(|c| c.agreement.nsd),
            );
        }
    }
    out.push_str("\nWhat the arms are:\n");
    for arm in &plan.arm {
        let _ = writeln!(out, "- `{}`: {}", arm.name, arm.about);
    }
    out.push('\n');
    out
}

/// What an arm is compared with: what its settings or tensors come from, else the first arm.
fn reference<'a>(plan: &'a Plan, arm: &'a Arm) -> Option<&'a str> {
    let first = plan.arm.first()?.name.as_str();
    let own = arm.tensors_of.as_deref().or(arm.like.as_deref().filter(|_| arm.stage > 0)).unwrap_or(first);
    (arm.name != own).then_some(own)
}

fn comparisons(plan: &Plan, records: &[Record]) -> String {
    struct Row {
        arm: String,
        with: String,
        slices: usize,
        draws: usize,
        difference: f64,
        interval: (f64, f64),
        p: f64,
        n: usize,
    }
    let mut rows = Vec::new();
    for arm in &plan.arm {
        let Some(with) = reference(plan, arm) else { continue };
        for (slices, _) in counts(arm) {
            let a = by_subject(&of(records, &arm.name, slices), None, |c| c.agreement.dice);
            let b = by_subject(&of(records, with, slices), None, |c| c.agreement.dice);
            let differences = paired_differences(&a, &b);
            let mut subjects: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
            for (&(subject, _), v) in &differences {
                subjects.entry(subject).or_default().push(*v);
            }
            if subjects.is_empty() {
                continue;
            }
            // One value per subject: draws of the same subject are no independent observations.
            let per: Vec<f64> = subjects.into_values().map(|v| v.iter().sum::<f64>() / v.len() as f64).collect();
            let w = wilcoxon_signed_rank(&per);
            rows.push(Row {
                arm: arm.name.clone(),
                with: with.into(),
                slices,
                draws: differences.keys().map(|k| k.1).collect::<BTreeSet<_>>().len(),
                difference: per.iter().sum::<f64>() / per.len() as f64,
                interval: interval(&differences),
                p: w.p,
                n: per.len(),
            });
        }
    }
    let corrected = holm(&rows.iter().map(|r| r.p).collect::<Vec<_>>());
    let mut out = String::from(
        "## Differences\n\nDice of the arm minus Dice of what it is compared with, on the same draws and subjects. Intervals \
         say what new subjects and new draws would give; with one draw, what new subjects would. p: Wilcoxon's signed-rank test over \
         subjects (mean over draws), for these draws alone, corrected after Holm over all rows. A negative sign means that what the \
         arm changes was worth having.\n\n| arm | compared with | slices | draws | difference [95 % CI] | p (Holm) | subjects |\n\
         |---|---|---:|---:|---|---:|---:|\n",
    );
    for (r, p) in rows.iter().zip(corrected) {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {:+.3} [{:+.3}, {:+.3}] | {} | {} |",
            r.arm,
            r.with,
            r.slices,
            r.draws,
            r.difference,
            r.interval.0,
            r.interval.1,
            if p < 0.001 { "< 0.001".into() } else { format!("{p:.3}") },
            r.n
        );
    }
    out.push('\n');
    out
}

fn structures(plan: &Plan, records: &[Record]) -> String {
    let mut out =
        String::from("## By structure\n\nMean Dice over subjects and draws; in brackets HD95, mm.\n\n| arm | slices |");
    for k in &plan.structures {
        let _ = write!(out, " {k} |");
    }
    let _ = write!(out, "\n|---|---:|{}\n", "---|".repeat(plan.structures.len()));
    for arm in plan.arm.iter().filter(|a| a.stage == 0) {
        for (n, _) in counts(arm) {
            let rs = of(records, &arm.name, n);
            if rs.is_empty() {
                continue;
            }
            let _ = write!(out, "| {} | {n} |", arm.name);
            for k in &plan.structures {
                let of_structure = |f: fn(&CaseRow) -> Option<f64>| {
                    mean(&by_subject(&rs, None, |c| f(c).filter(|_| &c.structure == k)))
                };
                let _ = write!(
                    out,
                    " {:.3} ({:.1}) |",
                    of_structure(|c| c.agreement.dice),
                    of_structure(|c| c.agreement.hd95_mm)
                );
            }
            out.push('\n');
        }
    }
    out.push('\n');
    out
}

fn bounds(plan: &Plan, records: &[Record]) -> String {
    let mut out = String::from(
        "## Prompts\n\nThe same adapters asked otherwise, on the draws where that was evaluated. The true box knows the answer's place \
         and presence: an upper bound.\n\n| arm | slices | automatic | prompt-free, one round | true box |\n|---|---:|---:|---:|---:|\n",
    );
    for arm in plan.arm.iter().filter(|a| a.bounds > 0) {
        for (n, _) in counts(arm) {
            let rs: Vec<&Record> = of(records, &arm.name, n).into_iter().filter(|r| r.key.draw < arm.bounds).collect();
            if rs.is_empty() {
                continue;
            }
            let dice = |p: Prompt| mean(&by_subject(&rs, Some(p), |c| c.agreement.dice));
            let _ = writeln!(
                out,
                "| {} | {n} | {:.3} | {:.3} | {:.3} |",
                arm.name,
                dice(Prompt::Automatic),
                dice(Prompt::PromptFree),
                dice(Prompt::TrueBox)
            );
        }
    }
    out.push('\n');
    out
}

fn costs(plan: &Plan, records: &[Record]) -> String {
    let mut out = String::from(
        "## Cost\n\nWall time of training; peak memory of the process, evaluation included. On the CPU each run had the threads named, two \
         runs side by side on two cores; on the GPU many runs shared it, so that its minutes say what was paid and not what one run takes.\n\n\
         | arm | slices | device | runs | minutes | threads | peak MiB | trained values | share of the base | pseudo-labelled slices |\n\
         |---|---:|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for arm in plan.arm.iter().filter(|a| a.tensors_of.is_none()) {
        for (n, _) in counts(arm) {
            let all = of(records, &arm.name, n);
            let devices: BTreeSet<&str> = all.iter().map(|r| r.device.as_str()).collect();
            for device in devices {
                let rs: Vec<&Record> = all.iter().copied().filter(|r| r.device == device).collect();
                let Some(last) = rs.last() else { continue };
                let m = |f: &dyn Fn(&Record) -> f64| rs.iter().map(|r| f(r)).sum::<f64>() / rs.len() as f64;
                let _ = writeln!(
                    out,
                    "| {} | {n} | {device} | {} | {:.1} | {} | {:.0} | {} | {:.1} % | {:.0} |",
                    arm.name,
                    rs.len(),
                    m(&|r| r.train_seconds / 60.0),
                    last.threads,
                    rs.iter().map(|r| r.peak_mib).fold(0.0, f64::max),
                    last.parameters,
                    100.0 * last.share,
                    m(&|r| r.pseudo as f64)
                );
            }
        }
    }
    out
}

/// Quality over labelled slices, one line for each arm that has more than one number of slices.
fn curve(plan: &Plan, records: &[Record]) -> String {
    let mut series = Vec::new();
    for arm in plan.arm.iter().filter(|a| a.runs.len() > 1) {
        let (mut points, mut band) = (Vec::new(), Vec::new());
        for (n, _) in counts(arm) {
            let rs = of(records, &arm.name, n);
            if !rs.is_empty() {
                let dice = by_subject(&rs, None, |c| c.agreement.dice);
                let (low, high) = interval(&dice);
                points.push([n as f64, mean(&dice)]);
                band.push([low, high]);
            }
        }
        series.push(Series::banded(&arm.name, points, band));
    }
    Plot {
        title: "Dice on unseen subjects, nine structures, automatic".into(),
        x: Axis { label: "labelled slices".into(), log: true, ..Axis::default() },
        y: Axis { label: "mean Dice, 95 % interval".into(), ..Axis::default() },
        series,
        ..Plot::default()
    }
    .svg()
}

/// Quality over the time of training on the fewest slices, a point for each arm of the curve; draws that all of those arms have. Runs
/// share their cores with others, so their steps are counted and not their minutes. A point is the steps, as % of the first arm's, and the
/// mean Dice; beside it is its interval.
fn over_time(plan: &Plan, records: &[Record]) -> Vec<([f64; 2], [f64; 2])> {
    let runs: Vec<Vec<&Record>> = plan
        .arm
        .iter()
        .filter(|a| a.time)
        .filter_map(|a| Some(of(records, &a.name, counts(a).first()?.0)))
        .filter(|rs| !rs.is_empty())
        .collect();
    let drawn = |rs: &[&Record], d: usize| rs.iter().any(|r| r.key.draw == d);
    let made = |s: &TrainSettings| (s.coarse_steps + s.steps + s.pseudo_steps) as f64;
    let all = plan.arm.first().and_then(|a| plan.settings(a).ok()).map_or(1.0, |s| made(&s));
    let mut points: Vec<([f64; 2], [f64; 2])> = Vec::new();
    for arm in &runs {
        let common: Vec<&Record> =
            arm.iter().copied().filter(|r| runs.iter().all(|other| drawn(other, r.key.draw))).collect();
        let Some(first) = common.first() else { continue };
        let dice = by_subject(&common, None, |c| c.agreement.dice);
        let share = 100.0 * made(&first.settings) / all;
        points.push(([share, mean(&dice)], interval(&dice).into()));
    }
    points.sort_by(|a, b| a.0[0].total_cmp(&b.0[0]));
    points
}

fn time_curve(plan: &Plan, records: &[Record]) -> String {
    let (line, band) = over_time(plan, records).into_iter().unzip();
    let minutes =
        plan.minutes.map(|m| format!(": {m} minutes on two quiet cores, pseudo-labels and all")).unwrap_or_default();
    let label = format!("training steps, % of all (100 %{minutes})");
    Plot {
        title: "Dice on unseen subjects over training time, five slices".into(),
        x: Axis { label, log: true, ..Axis::default() },
        y: Axis { label: "mean Dice, 95 % interval".into(), ..Axis::default() },
        series: vec![Series::banded("all steps scaled alike", line, band)],
        ..Plot::default()
    }
    .svg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::records;

    /// The committed runs of two arms and draws, with every Dice of the second arm moved by the draw.
    #[test]
    fn a_difference_that_depends_on_the_draw_has_an_interval_that_says_so() {
        let evidence = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/evidence");
        let plan = Plan::load(&evidence.join("experiments.toml")).unwrap();
        let all = records(&evidence.join("runs")).unwrap();
        let of = |draw: usize| {
            let run = |r: &&Record| r.key.arm == "full" && r.key.slices == 5 && r.key.draw == draw;
            all.iter().find(run).unwrap().clone()
        };
        let mut runs = vec![of(0), of(1)];
        for (draw, by) in [(0, 0.05), (1, -0.05)] {
            let mut moved = of(draw);
            moved.key.arm = "core".into();
            moved.table.cases.iter_mut().for_each(|c| c.agreement.dice = c.agreement.dice.map(|d| d + by));
            runs.push(moved);
        }
        let text = comparisons(&plan, &runs);
        let row = text.lines().find(|l| l.starts_with("| core | full | 5 | 2 |")).unwrap();
        assert!(row.contains("+0.000 [-0.050, +0.050]") || row.contains("-0.000 [-0.050, +0.050]"), "{row}");
    }
    #[test]
    fn time_is_counted_in_steps_and_on_draws_that_all_points_have() {
        let evidence = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/evidence");
        let mut plan = Plan::load(&evidence.join("experiments.toml")).unwrap();
        let all = records(&evidence.join("runs")).unwrap();
        let of = |draw: usize| {
            let run = |r: &&Record| r.key.arm == "full" && r.key.slices == 5 && r.key.draw == draw;
            all.iter().find(run).unwrap().clone()
        };
        let mut half = of(1);
        half.key.arm = "time-half".into();
        half.settings.scale_steps(850);
        half.table.cases.iter_mut().for_each(|c| c.agreement.dice = c.agreement.dice.map(|d| d - 0.1));
        let runs = [of(0), of(1), half];
        let points = over_time(&plan, &runs);
        let [([t, low], band), ([all_of_it, high], _)] = points[..] else { panic!("{points:?}") };
        assert_eq!((t, all_of_it), (50.0, 100.0));
        assert!((high - low - 0.1).abs() < 1e-9 && band[0] < low && low < band[1], "{points:?}");
        let one = over_time(&plan, &runs[1..2]);
        assert_eq!(one[0].0, [100.0, high], "draw 0 has no half and is left out");
        plan.minutes = Some(12.5);
        assert!(time_curve(&plan, &runs).contains("% of all (100 %: 12.5 minutes on two"));
    }
}
