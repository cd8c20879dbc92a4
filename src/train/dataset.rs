//! The data set: volumes with their truth on the image's grid, and the labelled slices as training samples.

use std::collections::BTreeMap;
use std::path::Path;

use super::manifest::{DatasetError, Entry, Manifest, Use};
use super::sample::Sample;
use crate::image::phantom::{Phantom, PhantomOptions};
use crate::image::{LabelMap, Volume};
use crate::labels::{LabelError, LabelImage};
use crate::pipeline::{CropRule, LegView, leg_views};
use crate::segex::{ShapeStatistics, shape};
use crate::series::load_dir;
use crate::terms::{Side, Task};

/// A volume with its truth.
#[derive(Clone, Debug)]
pub struct Case {
    /// Name in the manifest.
    pub name: String,
    /// [`Entry::series`].
    pub series: String,
    /// The images.
    pub volume: Volume,
    /// The header's laterality, for a single leg.
    pub hint: Option<Side>,
    /// Truth on the image's grid: structure `k` of the task is `k + 1`, on either leg.
    pub truth: LabelMap,
    /// Which structures of the task the labels tell about; of the others nothing is known, not even absence.
    pub known: Vec<bool>,
    /// The leg that is labelled; none where all are.
    pub side: Option<Side>,
    /// Slices to train on.
    pub train: Vec<usize>,
    /// Slices to evaluate.
    pub test: Vec<usize>,
    /// Slices that training may look at without their labels.
    pub unlabelled: Vec<usize>,
}

impl Case {
    /// Loads one entry of a manifest.
    ///
    /// # Errors
    /// [`DatasetError`]: images or labels unreadable, grids that differ, slices beyond the volume.
    pub fn load(entry: &Entry, task: &Task) -> Result<Self, DatasetError> {
        let wrong = |problem: String| DatasetError::Volume { volume: entry.name.clone(), problem };
        let (volume, hint, truth, known) = match (&entry.images, &entry.labels, entry.phantom) {
            (Some(images), Some(labels), _) => {
                let (volume, hint) = images_of(images).map_err(|problem| DatasetError::Images {
                    volume: entry.name.clone(),
                    path: images.clone(),
                    problem,
                })?;
                let (truth, known) = labels_of(entry, labels, task, &volume)?;
                (volume, hint, truth, known)
            }
            (_, _, Some(seed)) => {
                let phantom = Phantom::new(&PhantomOptions { seed, ..PhantomOptions::default() });
                let mut truth = phantom.truth(task, Side::Right);
                for (t, l) in truth.data.iter_mut().zip(phantom.truth(task, Side::Left).data) {
                    *t = (*t).max(l);
                }
                (phantom.volume, None, truth, vec![true; task.structures.len()])
            }
            (Some(images), None, _) => {
                let (volume, hint) = images_of(images).map_err(|problem| DatasetError::Images {
                    volume: entry.name.clone(),
                    path: images.clone(),
                    problem,
                })?;
                let truth = LabelMap::empty(volume.geometry.clone());
                (volume, hint, truth, vec![false; task.structures.len()])
            }
            _ => return Err(wrong("has neither images and labels nor a phantom's seed".into())),
        };
        let count = volume.geometry.dims[2];
        let mut listed = entry.slices.clone().unwrap_or_else(|| (0..count).collect());
        listed.sort_unstable();
        listed.dedup();
        if let Some(z) = listed.iter().find(|z| **z >= count) {
            return Err(wrong(format!("slice {z} is listed, the volume has 0 to {}", count.saturating_sub(1))));
        }
        let rest: Vec<usize> = (0..count).filter(|z| !listed.contains(z)).collect();
        let (train, test, unlabelled) = match entry.usage {
            Use::Train => (listed, Vec::new(), rest),
            Use::Test => (Vec::new(), listed, Vec::new()),
            // What is tested is not looked at while training, not even without labels.
            Use::Both => (listed, rest, Vec::new()),
            Use::Unlabelled => (Vec::new(), Vec::new(), listed),
        };
        if let Some(k) = known.iter().position(|k| !k).filter(|_| !train.is_empty()) {
            return Err(wrong(format!(
                "is trained on, but its `map` names no segment for {}: label it, or leave it out of the structures",
                task.structures[k].key
            )));
        }
        let (name, series) = (entry.name.clone(), entry.series());
        Ok(Case { name, series, volume, hint, truth, known, side: entry.side, train, test, unlabelled })
    }

    /// All legs of the volume, right first; which of them are labelled says [`Case::labelled`].
    ///
    /// # Errors
    /// [`DatasetError::Legs`] where no leg is found, [`DatasetError::Volume`] where the labelled one is not there.
    pub fn views(&self, rule: CropRule, size: usize) -> Result<Vec<LegView>, DatasetError> {
        let (views, _) = leg_views(&self.volume, rule, size, self.hint)
            .map_err(|source| DatasetError::Legs { volume: self.name.clone(), source })?;
        if (0..views.len()).any(|l| self.labelled(&views, l)) {
            return Ok(views);
        }
        let side = self.side.map_or("labelled", Side::word);
        Err(DatasetError::Volume {
            volume: self.name.clone(),
            problem: format!("the {side} leg was not found in the images"),
        })
    }

    /// Whether leg `l` of `views` is labelled. A single leg of unknown side is taken for the labelled one.
    pub fn labelled(&self, views: &[LegView], l: usize) -> bool {
        self.side.is_none() || views[l].leg.side == self.side || (views.len() == 1 && views[l].leg.side.is_none())
    }

    /// The truth of leg `l` alone: labels inside another leg are background, as they are in serving.
    pub fn truth_of(&self, views: &[LegView], l: usize) -> LabelMap {
        let mut truth = self.truth.clone();
        for (_, other) in views.iter().enumerate().filter(|(o, _)| *o != l) {
            truth.data.iter_mut().zip(&other.leg.mask).filter(|(_, m)| **m).for_each(|(t, _)| *t = 0);
        }
        truth
    }
}

/// What training takes from a data set.
#[derive(Clone, Debug)]
pub struct TrainingSet {
    /// The labelled slices, each leg by itself.
    pub samples: Vec<Sample>,
    /// Volumes that have any.
    pub volumes: usize,
    /// Shape of each structure over the labelled slices, for SegEx.
    pub shapes: Vec<ShapeStatistics>,
}

/// Loads every volume of a manifest that `wanted` accepts.
///
/// # Errors
/// [`DatasetError`] of the first volume that cannot be used.
pub fn load_cases(
    manifest: &Manifest,
    task: &Task,
    wanted: impl Fn(&Entry) -> bool,
) -> Result<Vec<Case>, DatasetError> {
    let series = manifest.series();
    let entries = manifest.volume.iter().enumerate().filter(|(_, e)| wanted(e));
    entries.map(|(i, _)| load_entry(manifest, i, &series, task)).collect()
}

fn load_entry(manifest: &Manifest, i: usize, series: &[String], task: &Task) -> Result<Case, DatasetError> {
    let mut case = Case::load(&manifest.volume[i], task)?;
    case.unlabelled = manifest.unseen(i, series, &case.unlabelled);
    Ok(case)
}

/// A volume without labels. A site has hundreds, of which the pseudo-labels' draw takes a few: it is loaded when it is drawn.
#[derive(Clone, Debug)]
pub struct Later {
    /// The cases that stand before it in the manifest.
    pub after: usize,
    /// Its entry.
    pub entry: Entry,
    /// Slices that training may look at.
    pub slices: Vec<usize>,
}

/// What an adaptation learns from.
#[derive(Clone, Copy, Debug)]
pub struct Data<'a> {
    /// Volumes in memory, those with labels among them.
    pub cases: &'a [Case],
    /// Volumes without labels.
    pub later: &'a [Later],
}

impl Data<'_> {
    /// Slices that training may look at without labels.
    pub fn unlabelled(&self) -> usize {
        let later = self.later.iter().map(|l| l.slices.len());
        self.cases.iter().map(|c| c.unlabelled.len()).chain(later).sum()
    }
}

impl<'a> From<&'a Vec<Case>> for Data<'a> {
    fn from(cases: &'a Vec<Case>) -> Self {
        Data { cases, later: &[] }
    }
}

/// The volumes of a manifest that training uses: those with labels, and those without, each of which is read once here, so that one that
/// cannot be used is named before hours of training.
///
/// # Errors
/// [`DatasetError`] of the first volume that cannot be used.
pub fn load_training(manifest: &Manifest, task: &Task) -> Result<(Vec<Case>, Vec<Later>), DatasetError> {
    let (mut cases, mut later) = (Vec::new(), Vec::new());
    let series = manifest.series();
    for (i, entry) in manifest.volume.iter().enumerate().filter(|(_, e)| e.usage != Use::Test) {
        let case = load_entry(manifest, i, &series, task)?;
        if entry.usage == Use::Unlabelled {
            later.push(Later { after: cases.len(), entry: entry.clone(), slices: case.unlabelled });
        } else {
            cases.push(case);
        }
    }
    Ok((cases, later))
}

/// The labelled slices of the cases, through the crop that serving uses, `size` pixels along an edge.
///
/// # Errors
/// [`DatasetError::Empty`] where there is none; otherwise as [`Case::views`].
pub fn training_set(cases: &[Case], task: &Task, rule: CropRule, size: usize) -> Result<TrainingSet, DatasetError> {
    let all: Vec<&Case> = cases.iter().collect();
    let mut set = TrainingSet { samples: Vec::new(), volumes: 0, shapes: shapes_of(&all, task, rule, size)? };
    for case in cases.iter().filter(|c| !c.train.is_empty()) {
        set.volumes += 1;
        let views = case.views(rule, size)?;
        for (l, view) in views.iter().enumerate().filter(|(l, _)| case.labelled(&views, *l)) {
            let truth = case.truth_of(&views, l);
            for &z in &case.train {
                let plane = truth.plane(z);
                set.samples.push(Sample { grey: view.grey(&case.volume, z), labels: view.crop.sample_labels(&plane) });
            }
        }
    }
    if set.samples.is_empty() { Err(DatasetError::Empty) } else { Ok(set) }
}

/// Shape of each structure over the labelled slices of some cases, for SegEx.
///
/// # Errors
/// As [`Case::views`].
pub fn shapes_of(
    cases: &[&Case],
    task: &Task,
    rule: CropRule,
    size: usize,
) -> Result<Vec<ShapeStatistics>, DatasetError> {
    let mut shapes = vec![Vec::new(); task.structures.len()];
    for case in cases.iter().filter(|c| !c.train.is_empty()) {
        let views = case.views(rule, size)?;
        for (l, view) in views.iter().enumerate().filter(|(l, _)| case.labelled(&views, *l)) {
            let truth = case.truth_of(&views, l);
            let frame = view.frame(&case.volume.geometry);
            for &z in &case.train {
                let plane = truth.plane(z);
                for (k, all) in shapes.iter_mut().enumerate() {
                    let mask: Vec<bool> = plane.data.iter().map(|&v| usize::from(v) == k + 1).collect();
                    all.extend(shape(&mask, plane.width, [0, 0], &frame));
                }
            }
        }
    }
    let fits = task.structures.iter().zip(&shapes).filter_map(|(s, all)| ShapeStatistics::fit(&s.key, all));
    Ok(fits.collect())
}

fn images_of(folder: &Path) -> Result<(Volume, Option<Side>), String> {
    let series = load_dir(folder).map_err(|e| e.to_string())?;
    let hint = series.header.laterality;
    Ok((series.volume, hint))
}

fn labels_of(entry: &Entry, path: &Path, task: &Task, volume: &Volume) -> Result<(LabelMap, Vec<bool>), DatasetError> {
    let labels = |source| DatasetError::Labels { volume: entry.name.clone(), source };
    let image = LabelImage::load(path).map_err(labels)?;
    let meant = resolve(entry, &image, task, path).map_err(labels)?;
    let map: BTreeMap<String, u8> =
        meant.assigned.iter().map(|a| (image.segments[a.segment].id.to_string(), a.structure as u8 + 1)).collect();
    let truth = image.onto(&volume.geometry, &map, entry.offset, path).map_err(labels)?;
    Ok((truth, meant.known))
}

/// A segment of a label file and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// Index into the file's segments.
    pub segment: usize,
    /// Index into the task's structures.
    pub structure: usize,
    /// The side that the segment's name or code says.
    pub side: Option<Side>,
}

/// What the segments of a label file are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meaning {
    /// Segments of the task's structures.
    pub assigned: Vec<Assigned>,
    /// Which structures of the task have a segment.
    pub known: Vec<bool>,
    /// Segments that neither the map nor their name explains.
    pub unknown: Vec<usize>,
}

/// Tells what the segments of a label file are: what the entry's `map` says goes first, then the segment's name and code.
///
/// # Errors
/// [`LabelError::Segment`] where the map names what a file with named segments lacks.
pub fn resolve(entry: &Entry, image: &LabelImage, task: &Task, path: &Path) -> Result<Meaning, LabelError> {
    let place = |key: &str| task.structures.iter().position(|s| s.key == key);
    let named = image.segments.iter().any(|s| !s.name.is_empty());
    let mut out = Meaning { known: vec![false; task.structures.len()], ..Meaning::default() };
    let mut told = vec![false; image.segments.len()];
    for (segment, key) in &entry.map {
        // What the task does not ask for is background to it.
        let structure = place(key);
        if let Some(k) = structure {
            out.known[k] = true;
        }
        let found = image.segment(segment).and_then(|s| image.segments.iter().position(|o| o == s));
        match (found, structure) {
            (Some(i), k) => {
                told[i] = true;
                let side = image.segments[i].structure().and_then(|n| n.side);
                out.assigned.extend(k.map(|structure| Assigned { segment: i, structure, side }));
            }
            // A value that no voxel has is a structure that this volume does not show.
            (None, _) if !named && segment.trim().parse::<u16>().is_ok() => {}
            (None, None) => {}
            (None, Some(_)) => {
                let found: Vec<String> = image.segments.iter().map(|s| format!("{} {}", s.id, s.name)).collect();
                return Err(LabelError::Segment {
                    path: path.into(),
                    wanted: segment.clone(),
                    found: found.join(", "),
                });
            }
        }
    }
    for (i, s) in image.segments.iter().enumerate().filter(|(i, _)| !told[*i]) {
        match s.structure() {
            None => out.unknown.push(i),
            Some(n) => {
                if let Some(structure) = place(n.key) {
                    out.known[structure] = true;
                    out.assigned.push(Assigned { segment: i, structure, side: n.side });
                }
            }
        }
    }
    out.assigned.sort_by_key(|a| a.segment);
    Ok(out)
}
