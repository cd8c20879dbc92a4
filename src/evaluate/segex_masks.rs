//! Masks with known faults for SegEx: a model's results and the labels themselves, each also damaged, graded with and measured
//! without the truth.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::run::{EvaluateError, renumbering};
use crate::image::{Geometry, LabelMap, Volume};
use crate::pipeline::{CropRule, PipelineError, SegmentOptions, Segmentation, Segmenter};
use crate::segex::{
    Candidate, CompareInput, ComparedStructure, Corruption, Criterion, Damage, Evidence, LEVELS, LegFrame, Measured,
    ShapeStatistics, StructureEvidence, StructureReport, compare, edge_strengths, measured, moved_entropy,
};
use crate::terms::Task;
use crate::train::{Case, shapes_of};

/// Pixels kept round a leg's box.
const MARGIN: usize = 24;

/// How a mask came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Made {
    /// Whether it starts from the model's result, which passes and entropy stand behind; else from the labels, which are graded
    /// as a mask from elsewhere.
    pub result: bool,
    /// What was done to it, and how grossly (0 to 2).
    pub damage: Option<(Damage, usize)>,
}

/// A mask of one structure whose truth is known.
#[derive(Clone, Debug)]
pub struct StudyMask {
    /// Whose it is: the place of the case in the list.
    pub subject: usize,
    /// How it came about.
    pub made: Made,
    /// Whether the truth is the model's own result on a whole volume, for want of labels there.
    pub supposed: bool,
    /// What is measured without the truth.
    pub measured: Measured,
    /// Grades against the truth.
    pub truth: StructureReport,
}

impl StudyMask {
    /// As a calibration takes it; none for an empty mask, which is to be redone whatever else.
    pub fn candidate(&self) -> Option<Candidate> {
        (!self.measured.is_empty()).then(|| Candidate {
            subject: self.subject,
            features: self.measured.features(),
            grades: Criterion::ALL.map(|c| self.truth.grade(c)),
            score: self.truth.score,
            verdict: self.truth.verdict,
        })
    }
}

/// What makes the masks.
pub struct MaskMaker<'a> {
    /// The structures.
    pub task: &'a Task,
    /// The adapter's crop.
    pub crop: CropRule,
    /// Input size of the network.
    pub size: usize,
    /// The serving pipeline.
    pub segmenter: &'a Segmenter,
    /// Shapes of the labelled slices.
    pub shapes: &'a [ShapeStatistics],
    /// Decides the damages.
    pub seed: u64,
}

/// The masks of some cases, and the number of labelled masks that they were made of.
#[derive(Clone, Debug, Default)]
pub struct Masks {
    /// All of them.
    pub masks: Vec<StudyMask>,
    /// Structures of volumes, or of slices that stand alone.
    pub labelled: usize,
}

/// One leg over a run of labelled slices, cut out of its volume.
struct Stage {
    subject: usize,
    volume: Volume,
    truth: LabelMap,
    found: LabelMap,
    evidence: Evidence,
    /// Indices of the structures that the labels tell about.
    known: Vec<usize>,
    /// Whether the truth is the model's own result.
    supposed: bool,
}

/// Which masks are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Study {
    /// Of the training slices, to calibrate. The shapes that a mask is held against are those of the other subjects' slices,
    /// because its own would flatter it. Labelled slices that stand alone show nothing between slices, so the model's results on
    /// the whole volumes are taken for true beside them, and damaged as masks from elsewhere.
    Calibration,
    /// Of the test slices, to validate.
    Validation,
}

impl MaskMaker<'_> {
    /// Masks of the labelled slices of each case; slices that stand alone are volumes of their own. `progress` hears how many
    /// cases of how many are done.
    ///
    /// # Errors
    /// [`EvaluateError`]; a volume that the pipeline refuses has empty results.
    pub fn masks(
        &self,
        cases: &[Case],
        study: Study,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Masks, EvaluateError> {
        let slices = |c: &Case| if study == Study::Calibration { c.train.clone() } else { c.test.clone() };
        let mut out = Masks::default();
        for (i, case) in cases.iter().enumerate() {
            progress(i, cases.len());
            if slices(case).is_empty() {
                continue;
            }
            let left_out = match study {
                Study::Calibration => self.shapes_without(cases, i)?,
                Study::Validation => None,
            };
            let shapes = left_out.as_deref().unwrap_or(self.shapes);
            let subject = cases.iter().position(|c| c.series == case.series).unwrap_or(i);
            let stages = self.stages(subject, case, &slices(case), study == Study::Calibration)?;
            let work: Vec<(usize, usize)> =
                stages.iter().enumerate().flat_map(|(s, stage)| stage.known.iter().map(move |&k| (s, k))).collect();
            let made: Vec<Vec<StudyMask>> =
                work.par_iter().map(|&(s, k)| self.of_structure(&stages[s], k, shapes)).collect();
            let shown =
                |(s, k): &&(usize, usize)| stages[*s].truth.data.contains(&(*k as u8 + 1)) && !stages[*s].supposed;
            out.labelled += work.iter().filter(shown).count();
            out.masks.extend(made.into_iter().flatten());
        }
        progress(cases.len(), cases.len());
        Ok(out)
    }

    /// Shapes over the labelled slices of all cases but those of one's series; none where there is no other.
    fn shapes_without(&self, cases: &[Case], i: usize) -> Result<Option<Vec<ShapeStatistics>>, EvaluateError> {
        let others: Vec<&Case> = cases.iter().filter(|c| c.series != cases[i].series).collect();
        let shapes = shapes_of(&others, self.task, self.crop, self.size)?;
        Ok((!shapes.is_empty()).then_some(shapes))
    }

    fn stages(
        &self,
        subject: usize,
        case: &Case,
        slices: &[usize],
        supposed: bool,
    ) -> Result<Vec<Stage>, EvaluateError> {
        let options = SegmentOptions { keep_evidence: true, ..SegmentOptions::default() };
        let views = case.views(self.crop, self.size)?;
        let found = match self.segmenter.segment(&case.volume, case.hint, &options, &|_| {}) {
            Ok(s) => Some(s),
            Err(PipelineError::NotThisTask { .. }) => None,
            Err(source) => return Err(EvaluateError::Pipeline { volume: case.name.clone(), source }),
        };
        let g = &case.volume.geometry;
        let mut stages = Vec::new();
        for l in (0..views.len()).filter(|&l| case.labelled(&views, l)) {
            let truth = case.truth_of(&views, l);
            let [x0, y0, x1, y1] = views[l].leg.bounds;
            let whole = (supposed && g.dims[2] > 1).then_some((0..g.dims[2], true));
            for (run, supposed) in runs(slices).into_iter().map(|r| (r, false)).chain(whole) {
                let place = Cut {
                    low: [x0.saturating_sub(MARGIN), y0.saturating_sub(MARGIN), run.start],
                    high: [(x1 + MARGIN).min(g.dims[0]), (y1 + MARGIN).min(g.dims[1]), run.end],
                };
                let frame = views[l].frame(g);
                let b = frame.bounds;
                let frame = LegFrame {
                    bounds: [b[0] - place.low[0], b[1] - place.low[1], b[2] - place.low[0], b[3] - place.low[1]],
                    ..frame
                };
                let leg = (place.cut(g, &views[l].leg.mask), frame);
                let (labels, evidence) = self.found(found.as_ref(), views[l].leg.side, g, &place, leg);
                let labelled = || LabelMap { geometry: place.geometry(g), data: place.cut(g, &truth.data) };
                stages.push(Stage {
                    subject,
                    volume: Volume { geometry: place.geometry(g), data: place.cut(g, &case.volume.data) },
                    truth: if supposed { labels.clone() } else { labelled() },
                    found: labels,
                    evidence,
                    known: (0..self.task.structures.len()).filter(|&k| case.known[k]).collect(),
                    supposed,
                });
            }
        }
        Ok(stages)
    }

    /// The result of one leg with the task's numbers, and what stands behind it, both cut out.
    fn found(
        &self,
        found: Option<&Segmentation>,
        side: Option<crate::terms::Side>,
        g: &Geometry,
        place: &Cut,
        leg: (Vec<bool>, LegFrame),
    ) -> (LabelMap, Evidence) {
        let own = found.map(|f| renumbering(self.task, f, side));
        let cut = |map: &LabelMap| LabelMap {
            geometry: place.geometry(g),
            data: match &own {
                Some(own) => place.cut(g, &map.data).into_iter().map(|v| own[usize::from(v)]).collect(),
                None => vec![0; place.geometry(g).voxels()],
            },
        };
        let labels = found.map_or_else(|| LabelMap::empty(place.geometry(g)), |f| cut(&f.labels));
        let kept = found.and_then(|f| f.evidence.as_ref());
        let z = place.low[2]..place.high[2];
        let structures = self
            .task
            .structures
            .iter()
            .enumerate()
            .map(|(k, s)| {
                let from = kept.and_then(|e| e.structures.iter().find(|o| o.structure.key == s.key && o.side == side));
                StructureEvidence {
                    structure: s.clone(),
                    side,
                    label: k as u8 + 1,
                    leg: 0,
                    presence: from.and_then(|f| f.presence.get(z.clone())).unwrap_or_default().to_vec(),
                    iou: from.and_then(|f| f.iou.get(z.clone())).unwrap_or_default().to_vec(),
                }
            })
            .collect();
        let evidence = Evidence {
            passes: kept.map_or(Vec::new(), |e| e.passes.iter().map(cut).collect()),
            entropy: kept.map_or(Vec::new(), |e| place.cut(g, &e.entropy)),
            legs: vec![leg],
            structures,
        };
        (labels, evidence)
    }

    /// The result, the labels, and each of them with every damage at a severity that is drawn.
    fn of_structure(&self, stage: &Stage, k: usize, shapes: &[ShapeStatistics]) -> Vec<StudyMask> {
        let label = k as u8 + 1;
        let key = &self.task.structures[k].key;
        let seed =
            self.seed ^ (stage.subject as u64) << 32 ^ (stage.volume.geometry.origin[2].to_bits() >> 16) ^ k as u64;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let bare = Evidence {
            legs: stage.evidence.legs.clone(),
            structures: stage
                .evidence
                .structures
                .iter()
                .map(|s| StructureEvidence { presence: vec![], iou: vec![], ..s.clone() })
                .collect(),
            ..Evidence::default()
        };
        let mut out = Vec::new();
        // A result says nothing about itself.
        let sources: &[bool] = if stage.supposed { &[false] } else { &[true, false] };
        for &result in sources {
            let (from, evidence) = if result { (&stage.found, &stage.evidence) } else { (&stage.truth, &bare) };
            let undamaged = Made { result, damage: None };
            out.extend(self.mask(stage, k, undamaged, from, (evidence, shapes)));
            for kind in Damage::ALL {
                let level = rng.random_range(0..LEVELS);
                let Some(damage) = Corruption::draw(kind, level, from, label, &mut rng) else { continue };
                let labels = damage.apply(from, label);
                // As if the model had erred so with confidence: passes err alike, doubt follows the contour.
                let moved = Evidence {
                    passes: evidence.passes.iter().map(|p| damage.apply(p, label)).collect(),
                    entropy: moved_entropy(&evidence.entropy, from, &labels, label),
                    legs: evidence.legs.clone(),
                    structures: evidence.structures.clone(),
                };
                out.extend(self.mask(
                    stage,
                    k,
                    Made { result, damage: Some((kind, level)) },
                    &labels,
                    (&moved, shapes),
                ));
            }
        }
        debug_assert!(out.iter().all(|m| m.truth.structure.key == *key));
        out
    }

    /// One mask measured and graded; none where neither mask nor truth has the structure.
    fn mask(
        &self,
        stage: &Stage,
        k: usize,
        made: Made,
        labels: &LabelMap,
        (evidence, shapes): (&Evidence, &[ShapeStatistics]),
    ) -> Option<StudyMask> {
        let label = k as u8 + 1;
        let compared = ComparedStructure { structure: &self.task.structures[k], side: None, label, truth: label };
        let report =
            compare(&CompareInput { labels, truth: &stage.truth, entropy: &evidence.entropy, structures: &[compared] });
        let truth = report.structures.into_iter().next()?;
        let mut input = evidence.input(&stage.volume, labels, shapes, None);
        // A mask from elsewhere may be laid beside the model's own result.
        input.second = (!made.result && !stage.supposed).then_some(&stage.found);
        let structure = input.structures.iter().find(|s| s.label == label)?;
        let measured = measured(&input, structure, &edge_strengths(&input));
        Some(StudyMask { subject: stage.subject, made, supposed: stage.supposed, measured, truth })
    }
}

/// Runs of neighbouring slices.
fn runs(slices: &[usize]) -> Vec<std::ops::Range<usize>> {
    let mut sorted = slices.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut out: Vec<std::ops::Range<usize>> = Vec::new();
    for z in sorted {
        match out.last_mut() {
            Some(r) if r.end == z => r.end += 1,
            _ => out.push(z..z + 1),
        }
    }
    out
}

/// A box of voxels.
struct Cut {
    low: [usize; 3],
    high: [usize; 3],
}

impl Cut {
    fn geometry(&self, g: &Geometry) -> Geometry {
        Geometry {
            dims: [0, 1, 2].map(|k| self.high[k] - self.low[k]),
            origin: g.to_patient(self.low.map(|v| v as f64)),
            ..g.clone()
        }
    }
    fn cut<T: Copy>(&self, g: &Geometry, data: &[T]) -> Vec<T> {
        let mut out = Vec::with_capacity(self.geometry(g).voxels());
        for z in self.low[2]..self.high[2] {
            for y in self.low[1]..self.high[1] {
                let row = (z * g.dims[1] + y) * g.dims[0];
                out.extend_from_slice(&data[row + self.low[0]..row + self.high[0]]);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_that_stand_alone_are_volumes_of_their_own() {
        assert_eq!(runs(&[4, 1, 2, 9, 2]), [1..3, 4..5, 9..10]);
        let g = Geometry::axial([4, 3, 3], [1.0, 2.0, 5.0]);
        let cut = Cut { low: [1, 0, 1], high: [3, 2, 2] };
        let data: Vec<usize> = (0..36).collect();
        assert_eq!(cut.cut(&g, &data), [13, 14, 17, 18]);
        assert_eq!(cut.geometry(&g).origin, g.to_patient([1.0, 0.0, 1.0]));
    }
}
