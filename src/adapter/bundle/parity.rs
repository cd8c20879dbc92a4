//! Parity images: small phantoms with the masks that the CPU engine gave when the bundle was made, which a box must reproduce.

use std::collections::HashMap;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::adapter::{Reason, Refused};
use crate::engine::EngineIdentity;
use crate::image::phantom::{Phantom, PhantomLegs, PhantomOptions};
use crate::image::{Geometry, LabelMap, Volume};
use crate::pipeline::{PipelineError, SegmentInfo, SegmentOptions, Segmentation, Segmenter};
use crate::terms::Task;

/// Dice of every structure that a box must reach: engines round differently, and a mask of a thousand pixels then differs in a few
/// along its edge.
pub const LEAST_DICE: f64 = 0.98;
/// A segment with fewer voxels says nothing: a few of them along its edge are no error of an engine.
pub const LEAST_VOXELS: usize = 64;
/// Columns, rows and slices of the phantoms: both thighs on few slices, as fine as a scanner's, because the finer the grid the
/// smaller the share of voxels that lie on an edge.
const DIMS: [usize; 3] = [512, 256, 3];
const SPACING: [f64; 3] = [0.976_562_5, 0.976_562_5, 20.0];
/// Most voxels of a case that is read.
const MAX_VOXELS: usize = 1 << 20;
/// Key of our JSON in the file's metadata.
const META_KEY: &str = "scanside-parity";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Meta {
    geometry: Geometry,
    segments: Vec<SegmentInfo>,
    engine: EngineIdentity,
    seed: u64,
    least_dice: f64,
    every_structure: bool,
}

/// One phantom and what must come out of it.
#[derive(Clone, Debug)]
pub struct ParityCase {
    /// The image; whole numbers from 0 to 4095.
    pub volume: Volume,
    /// The masks of the engine that made it.
    pub expected: LabelMap,
    /// What the labels mean.
    pub segments: Vec<SegmentInfo>,
    /// The engine that made the masks.
    pub engine: EngineIdentity,
    /// Seed of the phantom.
    pub seed: u64,
    /// Dice that every segment must reach.
    pub least_dice: f64,
    /// The classifier is not asked: an adapter that learnt on patients need not see its structures in a phantom.
    pub every_structure: bool,
}

/// How well one segment came out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ParityFigure {
    /// Structure and side.
    pub segment: String,
    /// Voxels expected.
    pub expected: usize,
    /// Voxels found.
    pub found: usize,
    /// Dice of the two.
    pub dice: f64,
}

impl ParityCase {
    /// How the case is segmented; the jitter comes from a fixed seed.
    pub fn options(&self, threads: usize) -> SegmentOptions {
        options(threads, self.every_structure)
    }

    /// Whether a segment is large enough to say something.
    fn tells(&self, segment: &SegmentInfo) -> bool {
        self.expected.count(segment.label) >= LEAST_VOXELS
    }

    /// Holds a result of [`ParityCase::volume`] against the expected masks: one figure a segment, also for segments that were not
    /// expected. Those with fewer than [`LEAST_VOXELS`] voxels on either side are left out; one at least is not.
    pub fn compare(&self, found: &Segmentation) -> Vec<ParityFigure> {
        let key = |s: &SegmentInfo| (s.structure.key.clone(), s.side);
        let mut all: Vec<&SegmentInfo> = self.segments.iter().collect();
        all.extend(found.segments.iter().filter(|f| !self.segments.iter().any(|s| key(s) == key(f))));
        let label = |of: &[SegmentInfo], s: &SegmentInfo| of.iter().find(|o| key(o) == key(s)).map(|o| o.label);
        let figures = all.into_iter().map(|s| {
            let (e, f) = (label(&self.segments, s), label(&found.segments, s));
            let (mut expected, mut hit, mut both) = (0, 0, 0);
            for (&a, &b) in self.expected.data.iter().zip(&found.labels.data) {
                let (a, b) = (Some(a) == e, Some(b) == f);
                expected += usize::from(a);
                hit += usize::from(b);
                both += usize::from(a && b);
            }
            let side = s.side.map(|s| format!(", {}", s.word())).unwrap_or_default();
            ParityFigure {
                segment: format!("{}{side}", s.structure.key),
                expected,
                found: hit,
                dice: 2.0 * both as f64 / (expected + hit).max(1) as f64,
            }
        });
        figures.filter(|f| f.expected.max(f.found) >= LEAST_VOXELS).collect()
    }

    /// Segments the phantom with the engine that is to serve, and holds the result against the expected masks.
    ///
    /// # Errors
    /// [`Reason::ParityFailed`], naming the worst segment.
    pub fn check(&self, segmenter: &Segmenter, threads: usize) -> Result<Vec<ParityFigure>, Refused> {
        let failed = |what: String| {
            Refused::new(
                Reason::ParityFailed,
                format!("parity image {} does not come out as expected: {what}", self.seed),
                "the engine of this box computes something else: run `scanside doctor`, rebuild its engine, keep the present adapter",
            )
        };
        let found = segmenter
            .segment(&self.volume, None, &self.options(threads), &|_| {})
            .map_err(|e| failed(e.to_string()))?;
        let figures = self.compare(&found);
        let worst = figures.iter().min_by(|a, b| a.dice.total_cmp(&b.dice));
        match worst.filter(|w| w.dice < self.least_dice) {
            Some(w) => Err(failed(format!("{} has Dice {:.3}, {} is asked for", w.segment, w.dice, self.least_dice))),
            None => Ok(figures),
        }
    }

    /// The file's bytes: a safetensors file with `image` (u16, slices x rows x columns) and `labels` (u8).
    ///
    /// # Errors
    /// A sentence, for a case that was not made by [`make_parity`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let [nx, ny, nz] = self.volume.geometry.dims;
        let meta = Meta {
            geometry: self.volume.geometry.clone(),
            segments: self.segments.clone(),
            engine: self.engine.clone(),
            seed: self.seed,
            least_dice: self.least_dice,
            every_structure: self.every_structure,
        };
        let json = serde_json::to_string(&meta).map_err(|e| e.to_string())?;
        let image: Vec<u8> = self.volume.data.iter().flat_map(|v| (*v as u16).to_le_bytes()).collect();
        let shape = vec![nz, ny, nx];
        let views = [
            ("image", TensorView::new(Dtype::U16, shape.clone(), &image).map_err(|e| e.to_string())?),
            ("labels", TensorView::new(Dtype::U8, shape, &self.expected.data).map_err(|e| e.to_string())?),
        ];
        let metadata: HashMap<String, String> = [(META_KEY.to_string(), json)].into();
        safetensors::serialize(views, Some(metadata)).map_err(|e| e.to_string())
    }

    /// Reads the file.
    ///
    /// # Errors
    /// A sentence about what is malformed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
        let json = header.metadata().as_ref().and_then(|m| m.get(META_KEY)).ok_or("it has no metadata")?;
        let meta: Meta = serde_json::from_str(json).map_err(|e| e.to_string())?;
        let [nx, ny, nz] = meta.geometry.dims;
        let voxels = nx.checked_mul(ny).and_then(|n| n.checked_mul(nz)).filter(|n| (1..=MAX_VOXELS).contains(n));
        let voxels = voxels.ok_or("its grid is larger than any parity image's")?;
        let g = &meta.geometry;
        let numbers = g.spacing.iter().chain(&g.origin).chain(g.axes.iter().flatten());
        if numbers.clone().any(|v| !v.is_finite()) || g.spacing.iter().any(|s| *s <= 0.0) {
            return Err("its grid is malformed".into());
        }
        if !(0.5..=1.0).contains(&meta.least_dice) || meta.segments.is_empty() || meta.segments.len() > 255 {
            return Err("it asks for nothing, or for what cannot be".into());
        }
        let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
        let tensor = |name: &str, dtype| {
            let t = file.tensor(name).map_err(|e| e.to_string())?;
            match t.dtype() == dtype && t.shape() == [nz, ny, nx] {
                true => Ok(t.data().to_vec()),
                false => Err(format!("its tensor {name} has another type or shape than its grid")),
            }
        };
        let (image, labels) = (tensor("image", Dtype::U16)?, tensor("labels", Dtype::U8)?);
        if file.len() != 2 || labels.len() != voxels {
            return Err("it holds other tensors than image and labels".into());
        }
        let named = |l: u8| l == 0 || meta.segments.iter().any(|s| s.label == l);
        if labels.iter().any(|l| !named(*l)) || labels.iter().all(|l| *l == 0) {
            return Err("its labels are empty or name no segment".into());
        }
        let data = image.chunks_exact(2).map(|b| f32::from(u16::from_le_bytes([b[0], b[1]]))).collect();
        let case = ParityCase {
            volume: Volume { geometry: meta.geometry.clone(), data },
            expected: LabelMap { geometry: meta.geometry, data: labels },
            segments: meta.segments,
            engine: meta.engine,
            seed: meta.seed,
            least_dice: meta.least_dice,
            every_structure: meta.every_structure,
        };
        match case.segments.iter().any(|s| case.tells(s)) {
            true => Ok(case),
            false => Err(format!("no segment of it has {LEAST_VOXELS} voxels: it would prove nothing")),
        }
    }
}

/// Keys of the task's structures that no image shows well enough to say something.
pub fn untold<'a>(cases: &[ParityCase], task: &'a Task) -> Vec<&'a str> {
    let tells = |key: &str| cases.iter().any(|c| c.segments.iter().any(|s| s.structure.key == key && c.tells(s)));
    task.structures.iter().map(|s| s.key.as_str()).filter(|key| !tells(key)).collect()
}

fn options(threads: usize, every_structure: bool) -> SegmentOptions {
    SegmentOptions { threads: threads.max(1), every_structure, ..SegmentOptions::default() }
}

/// Makes parity images: phantoms of these seeds and what the segmenter makes of them. Where the classifier does not see every
/// structure in them, as with adapters that learnt on patients, it is not asked, if that shows more. See [`untold`] for structures
/// that stay too small.
///
/// # Errors
/// [`Reason::Parity`] where fewer than half of the structures tell something even so.
pub fn make_parity(segmenter: &Segmenter, seeds: &[u64], threads: usize) -> Result<Vec<ParityCase>, Refused> {
    let refuse = |what: String| {
        Refused::new(Reason::Parity, format!("no parity images: {what}"), "try other seeds with --parity-seeds")
    };
    let task = &segmenter.model().task;
    let mut best: Vec<ParityCase> = Vec::new();
    let mut why = String::new();
    for every_structure in [false, true] {
        let mut cases = Vec::new();
        for &seed in seeds {
            match case_of(segmenter, seed, every_structure, threads) {
                Ok(case) => cases.extend(case.segments.iter().any(|s| case.tells(s)).then_some(case)),
                Err(e @ (PipelineError::NotThisTask { .. } | PipelineError::Legs(_))) => why = format!(" ({e})"),
                Err(e) => return Err(refuse(e.to_string())),
            }
        }
        if untold(&cases, task).len() < untold(&best, task).len() {
            best = cases;
        }
        if untold(&best, task).is_empty() {
            break;
        }
    }
    let missing = untold(&best, task);
    if best.is_empty() || 2 * missing.len() > task.structures.len() {
        return Err(refuse(format!("in phantoms {seeds:?} too little is found of {}{why}", missing.join(", "))));
    }
    Ok(best)
}

fn case_of(
    segmenter: &Segmenter,
    seed: u64,
    every_structure: bool,
    threads: usize,
) -> Result<ParityCase, PipelineError> {
    let phantom = Phantom::new(&PhantomOptions { seed, legs: PhantomLegs::Both, dims: DIMS, spacing: SPACING });
    let s = segmenter.segment(&phantom.volume, None, &options(threads, every_structure), &|_| {})?;
    Ok(ParityCase {
        volume: phantom.volume,
        expected: s.labels,
        segments: s.segments,
        engine: s.engine,
        seed,
        least_dice: LEAST_DICE,
        every_structure,
    })
}
