//! Segments a volume: legs, crops, encoding, presence, prompts, decoding, composing, clean-up, grading.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::compose::{CleanUp, clean_up, compose};
use super::crop::{CropRule, LegView, leg_views, to_input};
use super::legs::LegError;
use super::maps::{Decoded, Maps};
use super::networks::{ClassifierOutput, DecoderOutput, Networks};
use super::prompt::{PromptRule, Prompting, cam_box, jitter};
use super::refine::refined_boxes;
use super::tta::MOVES;
use super::work::{Stopwatch, parallel};
use super::{SegmentInfo, Segmentation};
use crate::engine::{EngineError, Tensor};
use crate::image::{LabelMap, Plane, Volume};
use crate::segex::{Evidence, LegInput, SegexCalibration, SegexInput, ShapeStatistics, StructureInput, assess};
use crate::terms::{Side, Task};

/// Why a volume was not segmented; each message can be shown to a person.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// No leg, or not axial.
    #[error(transparent)]
    Legs(#[from] LegError),
    /// The classifier saw too little of the task.
    #[error(
        "this does not look like the body part of task {task}: its structures were seen on {seen} of {slices} slices only"
    )]
    NotThisTask {
        /// The task's name.
        task: String,
        /// Slices with at least one structure, on the better leg.
        seen: usize,
        /// Slices of the volume.
        slices: usize,
    },
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The model cannot serve this task or volume.
    #[error("the model cannot be used: {0}")]
    Model(String),
    /// [`SegmentOptions::stop`] was raised.
    #[error("the work was stopped")]
    Stopped,
}

/// What runs: the adapter's task and rules.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// The structures, in the order of the network's outputs.
    pub task: Task,
    /// How legs are cropped.
    pub crop: CropRule,
    /// Adapter name and version, as written into results.
    pub adapter: String,
    /// The adapter's sha256, hex.
    pub adapter_sha256: String,
    /// Shapes of the labelled slices; may be empty.
    pub shapes: Vec<ShapeStatistics>,
    /// Probability at which each structure counts as present, in the task's order; where one is missing,
    /// [`SegmentOptions::presence`] holds.
    pub presence: Vec<f32>,
    /// How the decoder is asked.
    pub prompting: Prompting,
    /// From SegEx's measurements to grades; none where the adapter was not calibrated.
    pub segex: Option<SegexCalibration>,
}

/// How to segment.
#[derive(Clone, Debug)]
pub struct SegmentOptions {
    /// A structure is present where its smoothed probability is at least this, unless the model has its own threshold.
    pub presence: f32,
    /// Augmented passes of the decoder (jittered boxes) besides the first.
    pub passes: usize,
    /// Standard deviation of the box jitter, as a fraction of the box.
    pub jitter: f32,

    /// Segment this leg alone; none means every leg.
    pub side: Option<Side>,
    /// Slices worked on at once.
    pub threads: usize,
    /// From activation map to box.
    pub prompt: PromptRule,
    /// Clean-up in 3-D.
    pub clean_up: CleanUp,
    /// A leg is refused when fewer than this share of its slices show any structure.
    pub least_seen: f64,
    /// Decides the jitter.
    pub seed: u64,
    /// Keep what SegEx looked at, so that other masks can be graded by it.
    pub keep_evidence: bool,
    /// Take every structure as present on every slice, whatever the classifier says: for comparing engines, never for patients.
    pub every_structure: bool,
    /// Raised by another thread, it ends the work before the next slice.
    pub stop: Arc<AtomicBool>,
}

impl Default for SegmentOptions {
    fn default() -> Self {
        SegmentOptions {
            presence: 0.5,
            passes: 2,
            jitter: 0.04,
            side: None,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            prompt: PromptRule::default(),
            clean_up: CleanUp::default(),
            least_seen: 0.2,
            seed: 0,
            keep_evidence: false,
            every_structure: false,
            stop: Arc::default(),
        }
    }
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// `legs`, `encode`, `decode`, `clean`, `assess`.
    pub step: &'static str,
    /// Done of `total` in this step.
    pub done: usize,
    /// Items of this step.
    pub total: usize,
}

/// Segments volumes with one model.
pub struct Segmenter {
    networks: Box<dyn Networks>,
    model: ModelInfo,
}

/// One slice of one leg after the encoder and the classifier.
struct Seen {
    embedding: Tensor,
    classified: ClassifierOutput,
}

/// What a former round left for a slice.
#[derive(Clone, Copy)]
struct Former<'a> {
    /// Mask logits of each structure.
    masks: &'a [Plane<f32>],
    /// The box to ask with, where there is one.
    boxes: &'a [Option<[f32; 4]>],
}

/// Tells whether a pixel of a slice may be given to leg `l`: a voxel of the other leg never may.
fn allowed<'a>(volume: &Volume, views: &'a [LegView], l: usize, z: usize) -> impl Fn(usize) -> bool + 'a {
    let plane = volume.geometry.plane();
    move |i| views.iter().enumerate().all(|(o, v)| o == l || !v.leg.mask[z * plane + i])
}

impl Segmenter {
    /// A segmenter from a network and what it was trained for.
    ///
    /// # Errors
    /// [`PipelineError::Model`] where the task does not fit the network or label maps (127 structures at most).
    pub fn new(networks: Box<dyn Networks>, model: ModelInfo) -> Result<Self, PipelineError> {
        let k = model.task.structures.len();
        if k == 0 || k > 127 || k != networks.structures() {
            return Err(PipelineError::Model(format!(
                "task {} has {k} structures, the network has {} (1 to 127 are possible)",
                model.task.name,
                networks.structures()
            )));
        }
        Ok(Segmenter { networks, model })
    }

    /// The model.
    pub fn model(&self) -> &ModelInfo {
        &self.model
    }

    /// Segments and grades a volume. `hint` is the header's laterality, used for a single leg; `progress` may be called
    /// from several threads.
    ///
    /// # Errors
    /// [`PipelineError`]: no leg, not the task's body part, the engine failed, or it was stopped.
    pub fn segment(
        &self,
        volume: &Volume,
        hint: Option<Side>,
        options: &SegmentOptions,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Segmentation, PipelineError> {
        let mut clock = Stopwatch::new();
        progress(Progress { step: "legs", done: 0, total: 1 });
        let (views, mut remarks) = leg_views(volume, self.model.crop, self.networks.input_size(), hint)?;
        clock.lap("legs");
        let nz = volume.geometry.dims[2];
        let items: Vec<(usize, usize)> = (0..views.len()).flat_map(|l| (0..nz).map(move |z| (l, z))).collect();

        let seen = parallel(
            &items,
            options,
            |done| progress(Progress { step: "encode", done, total: items.len() }),
            |&(l, z)| {
                if !wanted(&views[l], options) {
                    return Ok(None);
                }
                let embedding = self.networks.encode(&views[l].input(volume, z))?;
                let classified = self.networks.classify(&embedding)?;
                self.check(&classified)?;
                Ok(Some(Seen { embedding, classified }))
            },
        )?;
        clock.lap("encode");

        let presence = self.presence(&seen, views.len(), nz);
        let used = self.legs_with_task(&views, &presence, nz, options, &mut remarks)?;
        let items: Vec<(usize, usize)> = items.into_iter().filter(|(l, _)| used[*l]).collect();
        let count = self.model.task.structures.len();
        let gate = self.model.prompting.gate;
        let present: Vec<Vec<bool>> = items
            .iter()
            .map(|&(l, z)| {
                (0..count)
                    .map(|k| options.every_structure || !gate || presence[l][k][z] >= self.threshold(k, options))
                    .collect()
            })
            .collect();
        let work: Vec<usize> = (0..items.len()).collect();
        let mut decoded = parallel(
            &work,
            options,
            |done| progress(Progress { step: "decode", done, total: items.len() }),
            |&i| {
                let (l, z) = items[i];
                self.decode(volume, &views, (l, z), seen[l * nz + z].as_ref(), &present[i], None, options)
            },
        )?;
        if self.model.prompting.refine {
            let masks: Vec<&[Plane<f32>]> = decoded.iter().map(|d| d.masks.as_slice()).collect();
            let boxes = refined_boxes(&items, &masks, count);
            decoded = parallel(
                &work,
                options,
                |done| progress(Progress { step: "refine", done, total: items.len() }),
                |&i| {
                    let (l, z) = items[i];
                    let again = Some(Former { masks: &decoded[i].masks, boxes: &boxes[i] });
                    self.decode(volume, &views, (l, z), seen[l * nz + z].as_ref(), &present[i], again, options)
                },
            )?;
        }
        drop(seen);
        clock.lap("decode");
        if self.model.prompting.crops > 0 {
            let masks: Vec<&[Plane<f32>]> = decoded.iter().map(|d| d.masks.as_slice()).collect();
            let boxes = refined_boxes(&items, &masks, count);
            let seen_otherwise = parallel(
                &work,
                options,
                |done| progress(Progress { step: "crops", done, total: items.len() }),
                |&i| {
                    let (l, z) = items[i];
                    let masks = self.other_crops(volume, &views, (l, z), &decoded[i].masks, &boxes[i])?;
                    let composed = compose(&views[l].crop, &masks, &present[i], allowed(volume, &views, l, z));
                    Ok((masks, composed))
                },
            )?;
            for (d, (masks, composed)) in decoded.iter_mut().zip(seen_otherwise) {
                (d.masks, d.labels, d.entropy) = (masks, composed.labels, composed.entropy);
            }
            clock.lap("crops");
        }

        progress(Progress { step: "clean", done: 0, total: 1 });
        let mut maps =
            Maps::assemble(volume, &views, &items, &decoded, self.model.task.structures.len(), options.passes);
        let fallbacks: usize = decoded.iter().map(|d| d.fallbacks).sum();
        if fallbacks > 0 {
            remarks.push(format!("{fallbacks} prompts had no evidence in the activation map and took the whole crop"));
        }
        let k = self.model.task.structures.len();
        let before = maps.labels.data.clone();
        clean_up(
            &mut maps.labels.data,
            volume.geometry.dims,
            volume.geometry.spacing,
            (views.len() * k) as u8,
            &options.clean_up,
        );
        let doubt = maps.doubt(&before);
        clock.lap("clean");

        progress(Progress { step: "assess", done: 0, total: 1 });
        let iou = estimates(&items, &decoded, views.len(), k, nz);
        let (segments, report, evidence) = self.grade(volume, &views, &used, &mut maps, &presence, &iou, options);
        clock.lap("assess");
        remarks.extend(uncovered(&maps.labels));
        Ok(Segmentation {
            labels: maps.labels,
            doubt,
            segments,
            report,
            evidence,
            engine: self.networks.identity(),
            adapter: self.model.adapter.clone(),
            adapter_sha256: self.model.adapter_sha256.clone(),
            remarks,
            times: clock.times,
        })
    }

    fn threshold(&self, k: usize, options: &SegmentOptions) -> f32 {
        self.model.presence.get(k).copied().unwrap_or(options.presence)
    }

    fn check(&self, c: &ClassifierOutput) -> Result<(), PipelineError> {
        let k = self.model.task.structures.len();
        if c.logits.len() != k || c.cams.len() != k {
            return Err(PipelineError::Model(format!(
                "the classifier gave {} logits and {} maps for {k} structures",
                c.logits.len(),
                c.cams.len()
            )));
        }
        Ok(())
    }

    /// Probability of presence by leg, structure and slice, smoothed over neighbouring slices (1, 2, 1).
    fn presence(&self, seen: &[Option<Seen>], legs: usize, nz: usize) -> Vec<Vec<Vec<f32>>> {
        (0..legs)
            .map(|l| {
                (0..self.model.task.structures.len())
                    .map(|k| {
                        let p = |z: usize| seen[l * nz + z].as_ref().map_or(0.0, |s| sigmoid(s.classified.logits[k]));
                        (0..nz)
                            .map(|z| 0.25 * p(z.saturating_sub(1)) + 0.5 * p(z) + 0.25 * p((z + 1).min(nz - 1)))
                            .collect()
                    })
                    .collect()
            })
            .collect()
    }

    /// Which legs show the task; a refusal where none does.
    fn legs_with_task(
        &self,
        views: &[LegView],
        presence: &[Vec<Vec<f32>>],
        nz: usize,
        options: &SegmentOptions,
        remarks: &mut Vec<String>,
    ) -> Result<Vec<bool>, PipelineError> {
        let seen: Vec<usize> = presence
            .iter()
            .map(|leg| (0..nz).filter(|&z| leg.iter().any(|k| k[z] >= options.presence)).count())
            .collect();
        let enough = |n: usize| options.every_structure || (n > 0 && n as f64 >= options.least_seen * nz as f64);
        let used: Vec<bool> = seen.iter().map(|&n| enough(n)).collect();
        if !used.contains(&true) {
            return Err(PipelineError::NotThisTask {
                task: self.model.task.name.clone(),
                seen: seen.into_iter().max().unwrap_or(0),
                slices: nz,
            });
        }
        for ((view, used), n) in views.iter().zip(&used).zip(&seen) {
            let side = view.leg.side.map_or("only", Side::word);
            if !used && wanted(view, options) {
                remarks.push(format!("the {side} leg was left out: structures were seen on {n} of {nz} slices only"));
            }
        }
        Ok(used)
    }

    /// Decodes one slice of one leg: from the activation maps, or `again` from the masks and boxes of a former round, whose
    /// logits are averaged with the new ones.
    #[allow(clippy::too_many_arguments)]
    fn decode(
        &self,
        volume: &Volume,
        views: &[LegView],
        (l, z): (usize, usize),
        seen: Option<&Seen>,
        present: &[bool],
        again: Option<Former>,
        options: &SegmentOptions,
    ) -> Result<Decoded, PipelineError> {
        const WHOLE: [f32; 4] = [0.0, 0.0, 1.0, 1.0];
        let view = &views[l];
        let k = present.len();
        let Some(seen) = seen else { return Err(PipelineError::Model("a leg that was not encoded".into())) };
        let cams: Vec<_> = seen.classified.cams.iter().map(|c| cam_box(c, &options.prompt)).collect();
        let fallbacks = cams.iter().zip(present).filter(|(b, p)| b.fallback && **p).count();
        let allowed = allowed(volume, views, l, z);
        if !present.contains(&true) {
            let [x0, y0, x1, y1] = view.crop.window();
            let n = (x1 - x0) * (y1 - y0);
            return Ok(Decoded {
                masks: Vec::new(),
                labels: vec![0; n],
                entropy: vec![0.0; n],
                passes: vec![vec![0; n]; if options.passes > 0 { options.passes + 1 } else { 0 }],
                iou: vec![0.0; k],
                fallbacks,
            });
        }
        let asked = self.model.prompting;
        let start: Vec<[f32; 4]> = cams.iter().map(|b| if asked.cam { b.corners } else { WHOLE }).collect();
        let first: Vec<[f32; 4]> = match again {
            None => start,
            Some(former) => former.boxes.iter().zip(&start).map(|(b, s)| b.unwrap_or(*s)).collect(),
        };
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed ^ ((l as u64) << 32 | z as u64));
        let mut sum: Option<DecoderOutput> = None;
        let mut passes = Vec::with_capacity(options.passes + 1);
        // Before a second round, jittered boxes would only cost time.
        let whole = again.is_none() && asked.whole && asked.cam;
        let last = again.is_some() || !asked.refine;
        let jittered = if last { options.passes } else { 0 };
        let count = jittered.max(usize::from(whole));
        for pass in 0..=count {
            let corners: Vec<[f32; 4]> = match pass {
                0 => first.clone(),
                1 if whole => vec![WHOLE; k],
                _ => first.iter().map(|b| jitter(*b, options.jitter, &mut rng)).collect(),
            };
            let out = self.networks.decode(&seen.embedding, &corners)?;
            if out.masks.len() != k || out.iou.len() != k {
                return Err(PipelineError::Model(format!(
                    "the decoder gave {} masks for {k} structures",
                    out.masks.len()
                )));
            }
            if last && options.passes > 0 {
                passes.push(compose(&view.crop, &out.masks, present, &allowed).labels);
            }
            match &mut sum {
                None => sum = Some(out),
                Some(s) => add(s, &out),
            }
        }
        let Some(mut mean) = sum else { return Err(PipelineError::Model("no pass was run".into())) };
        let n = (count + 1) as f32;
        mean.masks.iter_mut().for_each(|m| m.data.iter_mut().for_each(|v| *v /= n));
        if let Some(former) = again {
            for (m, f) in mean.masks.iter_mut().zip(former.masks) {
                m.data.iter_mut().zip(&f.data).for_each(|(a, b)| *a = (*a + b) / 2.0);
            }
        }
        let composed = compose(&view.crop, &mean.masks, present, allowed);
        Ok(Decoded {
            masks: mean.masks,
            labels: composed.labels,
            entropy: composed.entropy,
            passes,
            iou: mean.iou.iter().map(|v| v / n).collect(),
            fallbacks,
        })
    }

    /// Mean mask logits of a slice over its crop and [`MOVES`], as many as the model asks for, each with the boxes of what was
    /// found so far.
    fn other_crops(
        &self,
        volume: &Volume,
        views: &[LegView],
        (l, z): (usize, usize),
        masks: &[Plane<f32>],
        boxes: &[Option<[f32; 4]>],
    ) -> Result<Vec<Plane<f32>>, PipelineError> {
        let mut sums = masks.to_vec();
        if masks.is_empty() {
            return Ok(sums);
        }
        let mut weights: Vec<Vec<f32>> = masks.iter().map(|m| vec![1.0; m.data.len()]).collect();
        for step in MOVES.iter().take(usize::from(self.model.prompting.crops)) {
            let crop = step.crop(&views[l].crop);
            let embedding = self.networks.encode(&to_input(&views[l].grey_through(&crop, volume, z)))?;
            let corners: Vec<[f32; 4]> =
                boxes.iter().map(|b| b.map_or([0.0, 0.0, 1.0, 1.0], |b| step.corners(b))).collect();
            let out = self.networks.decode(&embedding, &corners)?;
            for ((mask, sum), weight) in out.masks.iter().zip(&mut sums).zip(&mut weights) {
                step.add(mask, sum, weight);
            }
        }
        for (sum, weight) in sums.iter_mut().zip(weights) {
            sum.data.iter_mut().zip(weight).for_each(|(s, w)| *s /= w);
        }
        Ok(sums)
    }

    /// Numbers the segments that are not empty from 1, right leg first, and grades all that are expected.
    #[allow(clippy::too_many_arguments)]
    fn grade(
        &self,
        volume: &Volume,
        views: &[LegView],
        used: &[bool],
        maps: &mut Maps,
        presence: &[Vec<Vec<f32>>],
        iou: &[Vec<Vec<f32>>],
        options: &SegmentOptions,
    ) -> (Vec<SegmentInfo>, crate::segex::Report, Option<Evidence>) {
        let k = self.model.task.structures.len();
        let mut counts = vec![0usize; views.len() * k + 1];
        for &l in &maps.labels.data {
            counts[l as usize] += 1;
        }
        let mut renumber = vec![0u8; counts.len()];
        let mut segments = Vec::new();
        let mut structures = Vec::new();
        for (l, view) in views.iter().enumerate().filter(|(l, _)| used[*l]) {
            for (s, structure) in self.model.task.structures.iter().enumerate() {
                let old = l * k + s + 1;
                let expected = presence[l][s].iter().any(|p| *p >= self.threshold(s, options));
                if counts[old] > 0 {
                    renumber[old] = segments.len() as u8 + 1;
                    segments.push(SegmentInfo {
                        label: renumber[old],
                        structure: structure.clone(),
                        side: view.leg.side,
                    });
                } else if !expected {
                    continue;
                }
                structures.push(StructureInput {
                    structure,
                    side: view.leg.side,
                    label: renumber[old],
                    leg: l,
                    presence: &presence[l][s],
                    iou: &iou[l][s],
                    overlap: &[],
                });
            }
        }
        for map in std::iter::once(&mut maps.labels).chain(&mut maps.passes) {
            map.data.iter_mut().for_each(|v| *v = renumber[*v as usize]);
        }
        let input = SegexInput {
            volume,
            labels: &maps.labels,
            passes: &maps.passes,
            entropy: &maps.entropy,
            second: None,
            legs: views.iter().map(|v| LegInput { mask: &v.leg.mask, frame: v.frame(&volume.geometry) }).collect(),
            structures,
            shapes: &self.model.shapes,
            calibration: self.model.segex.as_ref(),
        };
        (segments, assess(&input), options.keep_evidence.then(|| Evidence::of(&input)))
    }
}

/// Whether a leg was asked for.
fn wanted(view: &LegView, options: &SegmentOptions) -> bool {
    options.side.is_none() || view.leg.side.is_none() || view.leg.side == options.side
}

fn add(sum: &mut DecoderOutput, other: &DecoderOutput) {
    for (s, o) in sum.masks.iter_mut().zip(&other.masks) {
        s.data.iter_mut().zip(&o.data).for_each(|(a, b)| *a += b);
    }
    sum.iou.iter_mut().zip(&other.iou).for_each(|(a, b)| *a += b);
}

/// The decoder's IoU estimates by leg, structure and slice.
fn estimates(items: &[(usize, usize)], decoded: &[Decoded], legs: usize, k: usize, nz: usize) -> Vec<Vec<Vec<f32>>> {
    let mut out = vec![vec![vec![0.0; nz]; k]; legs];
    for (&(l, z), d) in items.iter().zip(decoded) {
        for (s, v) in d.iou.iter().enumerate() {
            out[l][s][z] = *v;
        }
    }
    out
}

/// Sentences about empty slices at the ends of the label map.
fn uncovered(labels: &LabelMap) -> Vec<String> {
    let g = &labels.geometry;
    let covered: Vec<bool> = labels.data.chunks(g.plane().max(1)).map(|p| p.iter().any(|&l| l > 0)).collect();
    let (Some(first), Some(last)) = (covered.iter().position(|&c| c), covered.iter().rposition(|&c| c)) else {
        return vec!["no structure was found on any slice".into()];
    };
    // Slices grow along the third axis; towards the head is proximal.
    let (low, high) = if g.axes[2][2] >= 0.0 { ("distal", "proximal") } else { ("proximal", "distal") };
    [(low, first), (high, covered.len() - 1 - last)]
        .into_iter()
        .filter(|(_, n)| *n > 0)
        .map(|(end, n)| format!("no structure was found on the last {n} slices at the {end} end"))
        .collect()
}

fn sigmoid(v: f32) -> f32 {
    1.0 / (1.0 + (-v).exp())
}
