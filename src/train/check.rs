//! Checks annotations before they are trained on: grid, names, sides, listed slices, overlaps, holes and islands.
//!
//! An error is what would teach the model something wrong; a warning is what a person should look at once.

use std::path::Path;

use super::dataset::{Meaning, resolve};
use super::manifest::{Entry, Manifest, Use};
use crate::image::morphology::{Connectivity, components, fill_holes};
use crate::image::{Geometry, Volume};
use crate::labels::{LabelImage, part_of};
use crate::pipeline::{Leg, find_legs};
use crate::series::load_dir;
use crate::terms::{Side, Task};

/// Share of the smaller of two structures on a slice, above which their overlap is an error.
const OVERLAP: f64 = 0.05;
/// Share of a structure that may lie outside every leg or on another leg.
const ASTRAY: f64 = 0.5;
/// Share of all labels on the leg that `side` does not name, from which `side` is taken to be wrong.
const OTHER_LEG: f64 = 0.9;
/// A structure may lie this far on the wrong side of another before the two count as swapped, millimetres.
const SWAPPED_MM: f64 = 3.0;
/// An island is smaller than this and than a tenth of the structure's largest piece on the slice, square millimetres.
const ISLAND_MM2: f64 = 40.0;
/// The first lies lateral to the second on every slice of a thigh.
const LATERAL: [(&str, &str); 8] = [
    ("VL", "VM"),
    ("VL", "FEM"),
    ("VL", "GRA"),
    ("VL", "ADD"),
    ("VL", "SM"),
    ("FEM", "GRA"),
    ("BF", "GRA"),
    ("BF", "SM"),
];
/// The first lies in front of the second on every slice of a thigh.
const ANTERIOR: [(&str, &str); 8] =
    [("RF", "FEM"), ("RF", "BF"), ("RF", "ST"), ("RF", "SM"), ("VI", "BF"), ("VI", "ST"), ("FEM", "ST"), ("VAS", "ST")];

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Would teach something wrong: training refuses.
    Error,
    /// To be looked at once.
    Warning,
}

/// Something found in an annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Name of the volume in the manifest.
    pub volume: String,
    /// The slice, counted as in the manifest.
    pub slice: Option<usize>,
    /// Key of the structure, with its side where one is meant; empty where it is about the whole.
    pub structure: String,
    /// What was found.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = if self.severity == Severity::Error { "error" } else { "warning" };
        write!(f, "{word}: {}", self.volume)?;
        if let Some(z) = self.slice {
            write!(f, ", slice {z}")?;
        }
        if !self.structure.is_empty() {
            write!(f, ", {}", self.structure)?;
        }
        write!(f, ": {}; {}", self.problem, self.remedy)
    }
}

/// Checks every volume of a manifest that has labels; errors first, then in the manifest's order. Empty where all is well.
pub fn check(manifest: &Manifest, task: &Task) -> Vec<Finding> {
    let mut findings: Vec<Finding> = manifest.volume.iter().flat_map(|e| check_entry(e, task)).collect();
    findings.sort_by_key(|f| f.severity);
    findings
}

/// Findings of one volume under construction.
struct Notes<'a> {
    volume: &'a str,
    all: Vec<Finding>,
}

impl Notes<'_> {
    fn add(&mut self, severity: Severity, slice: Option<usize>, structure: &str, problem: String, remedy: &str) {
        self.all.push(Finding {
            severity,
            volume: self.volume.to_string(),
            slice,
            structure: structure.to_string(),
            problem,
            remedy: remedy.to_string(),
        });
    }
}

fn check_entry(entry: &Entry, task: &Task) -> Vec<Finding> {
    let mut notes = Notes { volume: &entry.name, all: Vec::new() };
    let (Some(images), Some(path)) = (&entry.images, &entry.labels) else { return Vec::new() };
    // Its labels, where it has any, are not used.
    if entry.usage == Use::Unlabelled {
        return Vec::new();
    }
    if let Err((problem, remedy)) = look(entry, images, path, task, &mut notes) {
        notes.add(Severity::Error, None, "", problem, remedy);
    }
    notes.all
}

/// The whole check of one volume; `Err` is what makes any further look pointless.
fn look(
    entry: &Entry,
    images: &Path,
    path: &Path,
    task: &Task,
    notes: &mut Notes<'_>,
) -> Result<(), (String, &'static str)> {
    let series =
        load_dir(images).map_err(|e| (format!("images {}: {e}", images.display()), "name a folder of one series"))?;
    let volume = &series.volume;
    let image = LabelImage::load(path)
        .map_err(|e| (e.to_string(), "save it again as seg.nrrd, NRRD, NIfTI or an uncompressed DICOM SEG"))?;
    for remark in &image.remarks {
        notes.add(Severity::Warning, None, "", remark.clone(), "check the outlines");
    }
    let meant = resolve(entry, &image, task, path).map_err(|e| (e.to_string(), "correct `map`"))?;
    let masks = image
        .masks(&volume.geometry, entry.offset, path)
        .map_err(|e| (e.to_string(), "segment on the series itself, not on a resampled copy"))?;
    names(entry, &image, &meant, &masks, task, notes)?;
    let dims = volume.geometry.dims;
    let slices = dims[2];
    let mut listed: Vec<usize> = entry.slices.clone().unwrap_or_else(|| (0..slices).collect());
    listed.sort_unstable();
    listed.dedup();
    if let Some(z) = listed.iter().find(|z| **z >= slices) {
        return Err((
            format!("slice {z} is listed, the volume has 0 to {}", slices.saturating_sub(1)),
            "correct `slices`",
        ));
    }
    let legs = find_legs(volume, series.header.laterality)
        .map_err(|e| (e.to_string(), "only axial thigh series are trained on"))?
        .legs;
    let labels = Labels { image: &image, meant: &meant, masks: &masks, task };
    astray(&labels, volume, &legs, notes)?;
    sides(entry, &labels, &legs, notes);
    let labelled: Vec<&Leg> = legs
        .iter()
        .filter(|l| entry.side.is_none() || l.side == entry.side || (legs.len() == 1 && l.side.is_none()))
        .collect();
    if labelled.is_empty() {
        let side = entry.side.map_or("", Side::word);
        return Err((format!("the {side} leg was not found in the images"), "correct `side`"));
    }
    let structures: Vec<Vec<bool>> = (0..task.structures.len()).map(|k| labels.merged(k)).collect();
    for &z in &listed {
        overlaps(&labels, &volume.geometry, z, notes);
        let n = volume.geometry.plane();
        if !structures.iter().any(|m| m[z * n..(z + 1) * n].contains(&true)) {
            let remedy = "label it, or take it out of `slices`";
            notes.add(Severity::Error, Some(z), "", "the slice is listed and has no label".into(), remedy);
            continue;
        }
        for leg in &labelled {
            slice(&structures, task, &meant, &volume.geometry, leg, z, legs.len() > 1, notes);
        }
    }
    never_labelled(&structures, task, &meant, &volume.geometry, &labelled, &listed, notes);
    if entry.usage == Use::Train {
        let n = volume.geometry.plane();
        let more = (0..slices)
            .filter(|z| !listed.contains(z))
            .filter(|z| structures.iter().any(|m| m[z * n..(z + 1) * n].contains(&true)))
            .count();
        if more > 0 {
            notes.add(
                Severity::Warning,
                None,
                "",
                format!("{more} slices that are not listed carry labels, which are not trained on"),
                "add them to `slices` if they are complete",
            );
        }
    }
    Ok(())
}

/// The labels of a volume on its grid.
struct Labels<'a> {
    image: &'a LabelImage,
    meant: &'a Meaning,
    masks: &'a [Vec<bool>],
    task: &'a Task,
}

impl Labels<'_> {
    /// All segments of structure `k` together.
    fn merged(&self, k: usize) -> Vec<bool> {
        let n = self.masks.first().map_or(0, Vec::len);
        let mut out = vec![false; n];
        for a in self.meant.assigned.iter().filter(|a| a.structure == k) {
            out.iter_mut().zip(&self.masks[a.segment]).for_each(|(o, m)| *o |= m);
        }
        out
    }
}

fn names(
    entry: &Entry,
    image: &LabelImage,
    meant: &Meaning,
    masks: &[Vec<bool>],
    task: &Task,
    notes: &mut Notes<'_>,
) -> Result<(), (String, &'static str)> {
    let list = || {
        let all: Vec<String> = image.segments.iter().map(|s| format!("{} {:?}", s.id, s.name)).collect();
        all.join(", ")
    };
    if meant.assigned.is_empty() && !meant.unknown.is_empty() {
        return Err((
            format!("no segment is one of the structures; the file has {}", list()),
            "name the segments after the structures, or give `map`, e.g. map = { \"1\" = \"VL\" }",
        ));
    }
    for &i in &meant.unknown {
        let s = &image.segments[i];
        let voxels = masks[i].iter().filter(|m| **m).count();
        if voxels == 0 {
            continue;
        }
        let name = if s.name.is_empty() { format!("number {}", s.id) } else { format!("{:?}", s.name) };
        match part_of(&s.name).filter(|g| task.structures.iter().any(|t| t.key == *g)) {
            Some(group) => notes.add(
                Severity::Error,
                None,
                group,
                format!("segment {name} is one part of {group} and counts as background as it is"),
                "name every part in `map`, e.g. map = { \"Adductor magnus\" = \"ADD\", \"Adductor longus\" = \"ADD\" }",
            ),
            None => notes.add(
                Severity::Warning,
                None,
                "",
                format!("segment {name} ({voxels} voxels) is no known structure and counts as background"),
                "rename it, or name it in `map`",
            ),
        }
    }
    if entry.usage != Use::Test {
        for (s, _) in task.structures.iter().zip(&meant.known).filter(|(_, known)| !**known) {
            notes.add(
                Severity::Error,
                None,
                &s.key,
                format!("the file has no segment for it; it has {}", list()),
                "label it, or leave it out of `structures`",
            );
        }
    }
    Ok(())
}

/// Labels in the air belong to another series or another grid.
fn astray(
    labels: &Labels<'_>,
    volume: &Volume,
    legs: &[Leg],
    notes: &mut Notes<'_>,
) -> Result<(), (String, &'static str)> {
    let inside = |i: usize| legs.iter().any(|l| l.mask[i]);
    let (mut all, mut out) = (0usize, 0usize);
    for (k, s) in labels.task.structures.iter().enumerate() {
        let merged = labels.merged(k);
        let n = merged.iter().filter(|m| **m).count();
        let away = (0..volume.geometry.voxels()).filter(|&i| merged[i] && !inside(i)).count();
        all += n;
        out += away;
        if n > 0 && away as f64 > ASTRAY * n as f64 {
            notes.add(
                Severity::Error,
                None,
                &s.key,
                format!("{:.0} % of it lies outside the legs", 100.0 * away as f64 / n as f64),
                "check that the labels belong to this series and were not flipped",
            );
        }
    }
    if all > 0 && out == all {
        return Err(("every label lies outside the legs".into(), "check that the labels belong to this series"));
    }
    Ok(())
}

/// Segments that name a side must lie on it; with `side` in the manifest the labels must lie on that leg.
fn sides(entry: &Entry, labels: &Labels<'_>, legs: &[Leg], notes: &mut Notes<'_>) {
    let on = |mask: &[bool], side: Side| {
        let legs = legs.iter().filter(|l| l.side == Some(side));
        legs.map(|l| mask.iter().zip(&l.mask).filter(|(m, l)| **m && **l).count()).sum::<usize>()
    };
    for a in &labels.meant.assigned {
        let Some(side) = a.side else { continue };
        let other = if side == Side::Right { Side::Left } else { Side::Right };
        let (here, there) = (on(&labels.masks[a.segment], side), on(&labels.masks[a.segment], other));
        if there as f64 > ASTRAY * (here + there) as f64 {
            notes.add(
                Severity::Error,
                None,
                &labels.task.structures[a.structure].key,
                format!(
                    "segment {:?} says {} and lies on the patient's {} leg",
                    labels.image.segments[a.segment].name,
                    side.word(),
                    other.word()
                ),
                "the sides are swapped: rename the segments (in the radiological view the patient's right is on the left)",
            );
        }
    }
    let Some(side) = entry.side else { return };
    let other = if side == Side::Right { Side::Left } else { Side::Right };
    let (mut here, mut there) = (0, 0);
    for a in &labels.meant.assigned {
        here += on(&labels.masks[a.segment], side);
        there += on(&labels.masks[a.segment], other);
    }
    if there as f64 > OTHER_LEG * (here + there) as f64 {
        notes.add(
            Severity::Error,
            None,
            "",
            format!("`side` is {:?} and the labels lie on the patient's {} leg", side.word(), other.word()),
            "correct `side` (in the radiological view the patient's right is on the left)",
        );
    } else if there > 0 {
        notes.add(
            Severity::Warning,
            None,
            "",
            format!("{there} labelled voxels of the {} leg are not used, as `side` is {:?}", other.word(), side.word()),
            "leave `side` out if both legs are labelled",
        );
    }
}

fn overlaps(labels: &Labels<'_>, g: &Geometry, z: usize, notes: &mut Notes<'_>) {
    let range = z * g.plane()..(z + 1) * g.plane();
    let assigned = &labels.meant.assigned;
    for (i, a) in assigned.iter().enumerate() {
        for b in assigned[i + 1..].iter().filter(|b| b.structure != a.structure) {
            let (p, q) = (&labels.masks[a.segment][range.clone()], &labels.masks[b.segment][range.clone()]);
            let both = p.iter().zip(q).filter(|(p, q)| **p && **q).count();
            if both == 0 {
                continue;
            }
            let smaller = p.iter().filter(|v| **v).count().min(q.iter().filter(|v| **v).count());
            let much = both as f64 > OVERLAP * smaller as f64;
            let (first, second) = (&labels.task.structures[a.structure].key, &labels.task.structures[b.structure].key);
            notes.add(
                if much { Severity::Error } else { Severity::Warning },
                Some(z),
                &format!("{first} and {second}"),
                format!("{both} pixels carry both labels"),
                "give each pixel to one (in 3D Slicer: Masking, Overwrite other segments); of a few, the structure that \
                 stands first in `structures` keeps them",
            );
        }
    }
}

/// One labelled leg on one listed slice.
#[allow(clippy::too_many_arguments)]
fn slice(
    structures: &[Vec<bool>],
    task: &Task,
    meant: &Meaning,
    g: &Geometry,
    leg: &Leg,
    z: usize,
    several: bool,
    notes: &mut Notes<'_>,
) {
    let n = g.plane();
    let body = &leg.mask[z * n..(z + 1) * n];
    let word = leg.side.map_or("", Side::word);
    let planes: Vec<Vec<bool>> =
        structures.iter().map(|m| m[z * n..(z + 1) * n].iter().zip(body).map(|(m, b)| *m && *b).collect()).collect();
    if !planes.iter().any(|p| p.contains(&true)) {
        // A leg that is hardly on the slice has nothing to label.
        if body.iter().filter(|b| **b).count() as f64 * g.spacing[0] * g.spacing[1] < 1_000.0 {
            return;
        }
        let problem = format!("the slice is listed and the {word} leg has no label on it");
        let remedy = "label the leg, or set `side` to the leg that is labelled, or take the slice out of `slices`";
        notes.add(Severity::Error, Some(z), "", problem, remedy);
        return;
    }
    for (k, s) in task.structures.iter().enumerate().filter(|(k, _)| meant.known[*k]) {
        let name = if several { format!("{} {word}", s.key) } else { s.key.clone() };
        let other: Vec<bool> = (0..n).map(|i| planes.iter().any(|p| p[i])).collect();
        pieces(&planes[k], &other, g, z, &name, notes);
    }
    let centre = |key: &str| {
        let k = task.structures.iter().position(|s| s.key == key)?;
        centroid(&planes[k], g, z)
    };
    let mut swapped = |pairs: &[(&str, &str)], towards: &str, along: &dyn Fn([f64; 3]) -> f64| {
        for (a, b) in pairs {
            let (Some(p), Some(q)) = (centre(a), centre(b)) else { continue };
            let lead = along(p) - along(q);
            if lead < -SWAPPED_MM {
                notes.add(
                    Severity::Error,
                    Some(z),
                    &format!("{a} and {b}"),
                    format!(
                        "the middle of {a} lies {:.0} mm {towards} of {b}'s: the two are swapped, or one is misplaced",
                        -lead
                    ),
                    "rename the segments, or draw them again; if sides are swapped the labels may be flipped",
                );
            }
        }
    };
    if let Some(side) = leg.side {
        // Patient x grows to the patient's left.
        let sign = if side == Side::Right { -1.0 } else { 1.0 };
        swapped(&LATERAL, "medial", &|p| sign * p[0]);
    }
    swapped(&ANTERIOR, "behind that", &|p| -p[1]);
}

/// Holes and islands of one structure on one slice. What another structure fills is no hole.
fn pieces(plane: &[bool], any: &[bool], g: &Geometry, z: usize, name: &str, notes: &mut Notes<'_>) {
    let dims = [g.dims[0], g.dims[1], 1];
    let pixel = g.spacing[0] * g.spacing[1];
    let mut filled = plane.to_vec();
    fill_holes(&mut filled, dims);
    let holes = filled.iter().zip(any).filter(|(f, a)| **f && !**a).count();
    if holes > 0 {
        let text = format!("a hole of {holes} pixels ({:.0} mm2 in all)", holes as f64 * pixel);
        notes.add(Severity::Warning, Some(z), name, text, "fill it, unless another tissue is meant");
    }
    let found = components(plane, dims, Connectivity::Corners);
    let largest = found.sizes.iter().copied().max().unwrap_or(0);
    let islands: Vec<usize> =
        found.sizes.iter().copied().filter(|n| *n as f64 * pixel < ISLAND_MM2 && n * 10 < largest).collect();
    if !islands.is_empty() {
        let pixels: usize = islands.iter().sum();
        let text = format!("{} tiny island(s), {pixels} pixels in all", islands.len());
        notes.add(Severity::Warning, Some(z), name, text, "erase them (in 3D Slicer: Islands, Keep largest island)");
    }
}

/// Structures that have a segment and no voxel on a labelled leg, or miss on some of its listed slices.
fn never_labelled(
    structures: &[Vec<bool>],
    task: &Task,
    meant: &Meaning,
    g: &Geometry,
    legs: &[&Leg],
    listed: &[usize],
    notes: &mut Notes<'_>,
) {
    let n = g.plane();
    for leg in legs {
        let on = |k: usize, z: usize| (z * n..(z + 1) * n).any(|i| structures[k][i] && leg.mask[i]);
        // Slices that are empty altogether are told of elsewhere.
        let painted: Vec<usize> = listed.iter().copied().filter(|&z| (0..structures.len()).any(|k| on(k, z))).collect();
        for (k, s) in task.structures.iter().enumerate().filter(|(k, _)| meant.known[*k]) {
            let missing: Vec<String> = painted.iter().filter(|&&z| !on(k, z)).map(ToString::to_string).collect();
            if missing.is_empty() {
                continue;
            }
            let word = leg.side.map_or("", Side::word);
            let name = if legs.len() > 1 { format!("{} {word}", s.key) } else { s.key.clone() };
            let text = if missing.len() == painted.len() {
                "it is labelled on none of the listed slices".to_string()
            } else {
                format!("it is not labelled on slice {} of those listed", missing.join(", "))
            };
            notes.add(Severity::Warning, None, &name, text, "label it there, unless the slice does not show it");
        }
    }
}

fn centroid(plane: &[bool], g: &Geometry, z: usize) -> Option<[f64; 3]> {
    let (mut n, mut x, mut y) = (0.0, 0.0, 0.0);
    for (i, _) in plane.iter().enumerate().filter(|(_, m)| **m) {
        n += 1.0;
        x += (i % g.dims[0]) as f64;
        y += (i / g.dims[0]) as f64;
    }
    (n > 0.0).then(|| g.to_patient([x / n, y / n, z as f64]))
}
