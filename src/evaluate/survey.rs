//! Volumes without labels: what a model makes of them, as far as that can be told without truth. For other scanners,
//! sequences and body parts, before anybody has labelled there.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::image::plot::{Axis, Plot, Series};
use crate::image::{LabelMap, Legend, Rgb, montage};
use crate::pipeline::{CropRule, PipelineError, SegmentOptions, Segmentation, Segmenter};
use crate::segex::Verdict;
use crate::terms::{Side, Task};
use crate::train::Case;

/// How a structure's cross-section runs along the limb.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Course {
    /// Cross-section on each slice, mm2.
    pub areas_mm2: Vec<f64>,
    /// Volume, ml.
    pub volume_ml: f64,
    /// Median over neighbouring slices that have it of `|a - b| / max(a, b)`; none where it is on fewer than two.
    pub jump: Option<f64>,
    /// Empty slices between slices that have it.
    pub gaps: usize,
}

impl Course {
    /// Measures one label.
    pub fn of(labels: &LabelMap, label: u8) -> Self {
        let g = &labels.geometry;
        let counts: Vec<usize> = labels
            .data
            .chunks(g.plane().max(1))
            .map(|plane| plane.iter().filter(|l| label > 0 && **l == label).count())
            .collect();
        let mut jumps: Vec<f64> = counts
            .windows(2)
            .filter(|w| w[0] > 0 && w[1] > 0)
            .map(|w| w[0].abs_diff(w[1]) as f64 / w[0].max(w[1]) as f64)
            .collect();
        jumps.sort_by(f64::total_cmp);
        let (first, last) = (counts.iter().position(|n| *n > 0), counts.iter().rposition(|n| *n > 0));
        let gaps = match (first, last) {
            (Some(a), Some(b)) => counts[a..=b].iter().filter(|n| **n == 0).count(),
            _ => 0,
        };
        Course {
            volume_ml: counts.iter().sum::<usize>() as f64 * g.voxel_mm3() / 1000.0,
            areas_mm2: counts.into_iter().map(|n| n as f64 * g.spacing[0] * g.spacing[1]).collect(),
            jump: jumps.get(jumps.len() / 2).copied(),
            gaps,
        }
    }
}

/// One structure of one leg.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SurveyedStructure {
    /// Key of the structure.
    pub key: String,
    /// Its side, where known.
    pub side: Option<Side>,
    /// SegEx score without truth.
    pub score: f64,
    /// SegEx verdict without truth.
    pub verdict: Verdict,
    /// Along the limb.
    pub course: Course,
    /// The same of the labels, where there are any.
    pub labelled: Option<Course>,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Surveyed {
    /// Its name in the manifest.
    pub name: String,
    /// Columns, rows, slices.
    pub dims: [usize; 3],
    /// Spacing, mm.
    pub spacing: [f64; 3],
    /// Why it was refused; nothing else is told then.
    pub refusal: Option<String>,
    /// SegEx score over all structures.
    pub score: f64,
    /// SegEx verdict over all structures.
    pub verdict: Option<Verdict>,
    /// What a reader would see beside the result.
    pub remarks: Vec<String>,
    /// The structures, right leg first.
    pub structures: Vec<SurveyedStructure>,
}

impl Surveyed {
    /// Segments a case as serving does; also the picture of the result.
    ///
    /// # Errors
    /// The pipeline's, other than refusals.
    pub fn new(case: &Case, task: &Task, segmenter: &Segmenter) -> Result<(Self, Option<Rgb>), PipelineError> {
        let g = &case.volume.geometry;
        let mut out = Surveyed {
            name: case.name.clone(),
            dims: g.dims,
            spacing: g.spacing,
            refusal: None,
            score: 0.0,
            verdict: None,
            remarks: Vec::new(),
            structures: Vec::new(),
        };
        let s = match segmenter.segment(&case.volume, case.hint, &SegmentOptions::default(), &|_| {}) {
            Ok(s) => s,
            Err(e @ (PipelineError::Legs(_) | PipelineError::NotThisTask { .. })) => {
                out.refusal = Some(e.to_string());
                return Ok((out, None));
            }
            Err(e) => return Err(e),
        };
        (out.score, out.verdict, out.remarks) = (s.report.score, Some(s.report.verdict), s.remarks.clone());
        let truths = truths(case);
        for r in &s.report.structures {
            let k = task.structures.iter().position(|t| t.key == r.structure.key);
            let truth = truths.iter().find(|(side, _)| *side == r.side).map(|(_, t)| t);
            let known = k.filter(|k| case.known[*k]).zip(truth);
            out.structures.push(SurveyedStructure {
                key: r.structure.key.clone(),
                side: r.side,
                score: r.score,
                verdict: r.verdict,
                course: Course::of(&s.labels, r.label),
                labelled: known.map(|(k, truth)| Course::of(truth, k as u8 + 1)),
            });
        }
        let picture = picture(case, &s);
        Ok((out, Some(picture)))
    }

    /// Structures that were found, and all.
    fn found(&self) -> (usize, usize) {
        (self.structures.iter().filter(|s| s.course.volume_ml > 0.0).count(), self.structures.len())
    }

    /// Median over structures of the jump between neighbouring slices; of the labels with `labelled`.
    fn jump(&self, labelled: bool) -> Option<f64> {
        median(self.structures.iter().filter_map(|s| if labelled { s.labelled.as_ref()?.jump } else { s.course.jump }))
    }

    /// Median over structures of `|R - L| / mean(R, L)`, the volumes of both legs.
    fn asymmetry(&self) -> Option<f64> {
        let volume = |key: &str, side| {
            self.structures.iter().find(|s| s.key == key && s.side == Some(side)).map(|s| s.course.volume_ml)
        };
        median(self.structures.iter().filter(|s| s.side == Some(Side::Right)).filter_map(|s| {
            let (r, l) = (volume(&s.key, Side::Right)?, volume(&s.key, Side::Left)?);
            (r + l > 0.0).then(|| 2.0 * (r - l).abs() / (r + l))
        }))
    }

    /// Cross-sections along the limb, a line for each structure.
    pub fn plot(&self) -> Plot {
        let line = |s: &SurveyedStructure| {
            let name = format!("{} {}", s.key, s.side.map_or("", Side::word));
            let points = s.course.areas_mm2.iter().enumerate().map(|(z, a)| [z as f64 + 1.0, a / 100.0]).collect();
            Series::line(name.trim(), points)
        };
        Plot {
            title: format!("{}: cross-sections", self.name),
            x: Axis { label: "slice".into(), ..Axis::default() },
            y: Axis { label: "cm2".into(), ..Axis::default() },
            series: self.structures.iter().map(line).collect(),
            size: [860, 420],
        }
    }
}

/// The labels of each labelled leg by itself; none where nothing is labelled or the labelled leg is not found.
fn truths(case: &Case) -> Vec<(Option<Side>, LabelMap)> {
    if !case.known.contains(&true) {
        return Vec::new();
    }
    // The crop's rule and size do not matter to where a leg lies.
    let Ok(views) = case.views(CropRule::default(), 256) else { return Vec::new() };
    let labelled = (0..views.len()).filter(|l| case.labelled(&views, *l));
    labelled.map(|l| (views[l].leg.side, case.truth_of(&views, l))).collect()
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.filter(|v| v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

fn picture(case: &Case, s: &Segmentation) -> Rgb {
    let legend: Vec<Legend> = s
        .segments
        .iter()
        .map(|i| Legend {
            label: i.label,
            name: format!("{} {}", i.structure.key, i.side.map_or("", Side::word)),
            rgb: i.structure.rgb,
        })
        .collect();
    montage(&case.volume, &s.labels, &legend, &[format!("SegEx {:.0}, {:?}", s.report.score, s.report.verdict)])
}

/// The survey as Markdown.
pub fn survey_markdown(title: &str, facts: &[(String, String)], all: &[Surveyed]) -> String {
    let mut out = format!("# {title}\n\n");
    for (k, v) in facts {
        let _ = writeln!(out, "- {k}: {v}");
    }
    out.push_str(
        "\n| volume | grid | found | SegEx (median structure) | area jump (labels) | inner gaps | right-left difference |\n\
         |---|---|---:|---|---:|---:|---:|\n",
    );
    let percent = |v: Option<f64>| v.map_or("–".into(), |v| format!("{:.0} %", 100.0 * v));
    for s in all {
        let grid = format!(
            "{} x {} x {}, {:.2} x {:.2} x {:.1} mm",
            s.dims[0], s.dims[1], s.dims[2], s.spacing[0], s.spacing[1], s.spacing[2]
        );
        let Some(verdict) = s.verdict else {
            let _ = writeln!(
                out,
                "| {} | {grid} | refused: {} | | | | |",
                s.name,
                s.refusal.as_deref().unwrap_or_default()
            );
            continue;
        };
        let (found, of) = s.found();
        let middle = median(s.structures.iter().map(|s| s.score)).unwrap_or(0.0);
        let labels = s.jump(true).map_or(String::new(), |v| format!(" ({:.0} %)", 100.0 * v));
        let gaps: usize = s.structures.iter().map(|s| s.course.gaps).sum();
        let _ = writeln!(
            out,
            "| {} | {grid} | {found} of {of} | {verdict:?}, {:.0} ({middle:.0}) | {}{labels} | {gaps} | {} |",
            s.name,
            s.score,
            percent(s.jump(false)),
            percent(s.asymmetry())
        );
    }
    out.push_str("\n## Structures\n\nVolume in ml, SegEx verdict and score without truth.\n");
    for s in all.iter().filter(|s| s.refusal.is_none()) {
        let _ = write!(out, "\n**{}**: ", s.name);
        let one = |x: &SurveyedStructure| {
            let name = format!("{} {}", x.key, x.side.map_or("", Side::word));
            format!("{} {:.0} ml {:?} {:.0}", name.trim(), x.course.volume_ml, x.verdict, x.score)
        };
        out.push_str(&s.structures.iter().map(one).collect::<Vec<_>>().join("; "));
        out.push('\n');
        for r in &s.remarks {
            let _ = writeln!(out, "- {r}");
        }
    }
    out.push_str(
        "\nArea jump: median over structures of the median relative change of the cross-section between neighbouring slices, in \
         brackets that of the labels where there are any; it grows with the slice distance. Right-left difference: median over \
         structures of the difference of both legs' volumes over their mean. None of these is accuracy: a smooth, symmetrical \
         mask can be the wrong muscle.\n",
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Geometry;

    #[test]
    fn a_course_has_jumps_and_gaps() {
        let g = Geometry::axial([20, 10, 6], [2.0, 1.0, 5.0]);
        let mut labels = LabelMap::empty(g.clone());
        // 0, 100, 50, none, 50, 40 pixels.
        for (z, n) in [(1, 100), (2, 50), (4, 50), (5, 40)] {
            labels.data[z * g.plane()..z * g.plane() + n].fill(3);
        }
        let c = Course::of(&labels, 3);
        assert_eq!(c.areas_mm2, [0.0, 200.0, 100.0, 0.0, 100.0, 80.0]);
        assert!((c.volume_ml - 2.4).abs() < 1e-9);
        assert_eq!((c.gaps, c.jump), (1, Some(0.5)));
        assert_eq!(Course::of(&labels, 1), Course { areas_mm2: vec![0.0; 6], ..Course::default() });
        assert_eq!(Course::of(&labels, 0).volume_ml, 0.0);
    }
}
