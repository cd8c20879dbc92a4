//! Label files of other programs: NRRD, Slicer's seg.nrrd, NIfTI and DICOM SEG, brought onto the image's grid.
//!
//! Every reader is bounded: sizes are checked before memory is taken, and a contradiction is an error with its cause.

mod names;
mod nifti;
mod nrrd;
mod seg;
mod write;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::image::{Geometry, LabelMap};
use crate::terms::{Code, Side};

pub use names::{Named, part_of, recognise};
pub use write::{NamedLabel, write_seg_nrrd};

/// Most bytes of a label file, packed or unpacked.
const MAX_BYTES: u64 = 1 << 30;
/// Most voxels of one label layer.
const MAX_VOXELS: usize = 1 << 28;
/// Most segments of a volume whose values are its labels: no task has a tenth of them, and every image has more grey values.
const MAX_SEGMENTS: usize = 1024;
/// Most voxels of all segments' masks together; one takes a byte.
const MAX_MASKS: usize = 1 << 31;
/// Distance between a label's voxel and the image's that still counts as the same grid, in voxels.
const TOLERANCE: f64 = 0.25;

/// Why labels could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    /// The file could not be read.
    #[error("labels {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file's content is not understood.
    #[error("labels {}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The labels do not lie on the image's grid.
    #[error("labels {}: {problem}", path.display())]
    Grid {
        /// The file.
        path: PathBuf,
        /// What differs, and the remedy.
        problem: String,
    },
    /// The mapping names a segment that the file lacks.
    #[error("labels {}: no segment {wanted:?}; the file has {found}", path.display())]
    Segment {
        /// The file.
        path: PathBuf,
        /// What the mapping names.
        wanted: String,
        /// What the file has.
        found: String,
    },
}

/// One segment of a label file.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Label value, or segment number.
    pub id: u32,
    /// Name, where the file gives one.
    pub name: String,
    /// Coded property type, where the file gives one.
    pub code: Option<Code>,
    /// Coded side, where the file gives one.
    pub side: Option<Side>,
    /// Layer that it lies in.
    layer: usize,
    /// Its value in that layer.
    value: u16,
}

/// A label file on its own grid.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelImage {
    /// Columns, rows, slices.
    pub dims: [usize; 3],
    /// Its place in the patient; absent where the file gives none.
    pub geometry: Option<Geometry>,
    /// The segments, by id.
    pub segments: Vec<Segment>,
    /// Place of each slice along the normal, millimetres from the first; empty where the slices are evenly spaced. Slices
    /// that nobody painted have no frame in a DICOM SEG, so its frames need not be.
    levels: Vec<f64>,
    /// Sentences about how the file was read.
    pub remarks: Vec<String>,
    /// Values, one vector per layer; index `(z * rows + y) * columns + x`.
    layers: Vec<Vec<u16>>,
}

impl LabelImage {
    /// Reads a label file; its kind is told by its first bytes, not by its name.
    ///
    /// # Errors
    /// [`LabelError::Io`], [`LabelError::Format`].
    pub fn load(path: &Path) -> Result<Self, LabelError> {
        let io = |source| LabelError::Io { path: path.into(), source };
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(io)?;
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
        let format = |problem: String| LabelError::Format { path: path.into(), problem };
        if bytes.len() as u64 > MAX_BYTES {
            return Err(format(format!("larger than {} MiB", MAX_BYTES >> 20)));
        }
        if bytes.starts_with(b"NRRD") {
            return nrrd::read(&bytes).map_err(format);
        }
        if bytes.get(128..132) == Some(b"DICM") {
            return seg::read(&bytes).map_err(format);
        }
        if bytes.starts_with(&[0x1f, 0x8b]) {
            bytes = inflate(&bytes, MAX_BYTES).map_err(format)?;
        }
        nifti::read(&bytes).map_err(format)
    }

    /// Labels of one layer: every value but 0 is a segment.
    fn of_values(dims: [usize; 3], geometry: Option<Geometry>, values: Vec<u16>) -> Result<Self, String> {
        let mut seen = vec![false; 1 << 16];
        for &v in &values {
            seen[v as usize] = true;
        }
        let segments: Vec<Segment> = (1..1usize << 16)
            .filter(|&v| seen[v])
            .map(|v| Segment { id: v as u32, name: String::new(), code: None, side: None, layer: 0, value: v as u16 })
            .collect();
        if segments.len() > MAX_SEGMENTS {
            return Err(format!("{} different values: is this an image? Name the file of its labels", segments.len()));
        }
        Ok(LabelImage { dims, geometry, segments, levels: Vec::new(), remarks: Vec::new(), layers: vec![values] })
    }

    /// Finds a segment by number or by name (case does not matter).
    pub fn segment(&self, key: &str) -> Option<&Segment> {
        let id = key.trim().parse::<u32>().ok();
        let by_id = self.segments.iter().find(|s| Some(s.id) == id);
        by_id.or_else(|| self.segments.iter().find(|s| !s.name.is_empty() && s.name.eq_ignore_ascii_case(key.trim())))
    }

    /// The labels on the image's grid: `map` gives, for segments of the file (number or name), the label to write;
    /// several may share a label (merged), and where segments overlap the smaller label stays.
    ///
    /// Without `offset` the file's own geometry places it; a file without geometry must have the image's size. With
    /// `offset` (column, row, slice of the image where the labels' first voxel lies) the file's geometry is not used.
    ///
    /// # Errors
    /// [`LabelError::Grid`] where the grids differ in direction, spacing or by a fraction of a voxel;
    /// [`LabelError::Segment`] where `map` names what a file with named segments lacks.
    pub fn onto(
        &self,
        image: &Geometry,
        map: &BTreeMap<String, u8>,
        offset: Option<[i64; 3]>,
        path: &Path,
    ) -> Result<LabelMap, LabelError> {
        let place = self.place(image, offset).map_err(|problem| LabelError::Grid { path: path.into(), problem })?;
        let mut lookup: Vec<Vec<u8>> = self.layers.iter().map(|_| vec![0u8; 1 << 16]).collect();
        for (key, &label) in map {
            match self.segment(key) {
                Some(s) => lookup[s.layer][s.value as usize] = label,
                // A value that no voxel has is a structure that this volume does not show.
                None if key.trim().parse::<u16>().is_ok() && self.segments.iter().all(|s| s.name.is_empty()) => {}
                None => {
                    let found: Vec<String> = self.segments.iter().map(|s| format!("{} {}", s.id, s.name)).collect();
                    return Err(LabelError::Segment {
                        path: path.into(),
                        wanted: key.clone(),
                        found: found.join(", "),
                    });
                }
            }
        }
        let mut out = LabelMap::empty(image.clone());
        let [nx, ny, nz] = image.dims;
        for z in 0..nz {
            for y in 0..ny {
                for x in 0..nx {
                    let Some(i) = place.index([x, y, z], self.dims) else { continue };
                    let labels = self.layers.iter().zip(&lookup).map(|(v, l)| l[v[i] as usize]);
                    out.data[(z * ny + y) * nx + x] = labels.filter(|&l| l > 0).min().unwrap_or(0);
                }
            }
        }
        Ok(out)
    }

    /// Every segment by itself on the image's grid, in the order of [`LabelImage::segments`]; placed as by
    /// [`LabelImage::onto`].
    ///
    /// # Errors
    /// [`LabelError::Grid`]; [`LabelError::Format`] where so many segments of so large an image do not fit into memory.
    pub fn masks(&self, image: &Geometry, offset: Option<[i64; 3]>, path: &Path) -> Result<Vec<Vec<bool>>, LabelError> {
        let place = self.place(image, offset).map_err(|problem| LabelError::Grid { path: path.into(), problem })?;
        if self.segments.len().saturating_mul(image.voxels()) > MAX_MASKS {
            let problem = format!(
                "{} segments of {} voxels each are more than is held at once; keep only the segments that are asked for",
                self.segments.len(),
                image.voxels()
            );
            return Err(LabelError::Format { path: path.into(), problem });
        }
        let [nx, ny, _] = image.dims;
        let mut masks = vec![vec![false; image.voxels()]; self.segments.len()];
        for out in 0..image.voxels() {
            let Some(i) = place.index([out % nx, out / nx % ny, out / (nx * ny)], self.dims) else { continue };
            for (mask, s) in masks.iter_mut().zip(&self.segments) {
                mask[out] = self.layers[s.layer][i] == s.value;
            }
        }
        Ok(masks)
    }

    /// A grid that holds these labels and reaches along the slices as far as `other`'s: two segmentations of one series,
    /// each with frames only where it has voxels, are compared on it. None without a geometry.
    pub fn common_grid(&self, other: &LabelImage) -> Option<Geometry> {
        let mut grid = self.geometry.clone()?;
        let theirs = other.geometry.as_ref()?;
        let step = grid.spacing[2].min(theirs.spacing[2]);
        grid.spacing[2] = step;
        let along = |g: &Geometry, levels: &[f64], n: usize| -> (f64, f64) {
            let first = grid.to_index(g.origin)[2];
            let reach = levels.last().copied().unwrap_or((n.max(1) - 1) as f64 * g.spacing[2]) / step;
            let sign: f64 = (0..3).map(|k| g.axes[2][k] * grid.axes[2][k]).sum();
            (first.min(first + sign * reach), first.max(first + sign * reach))
        };
        let (a, b) =
            (along(self.geometry.as_ref()?, &self.levels, self.dims[2]), along(theirs, &other.levels, other.dims[2]));
        let (low, high) = (a.0.min(b.0).round(), a.1.max(b.1).round());
        let count = high - low + 1.0;
        let plane = grid.plane().max(1);
        if !(count >= 1.0 && count <= (MAX_VOXELS / plane) as f64) {
            return None;
        }
        grid.origin = grid.to_patient([0.0, 0.0, low]);
        grid.dims[2] = count as usize;
        Some(grid)
    }

    /// How image voxels map to the label's voxels.
    fn place(&self, image: &Geometry, offset: Option<[i64; 3]>) -> Result<Place, String> {
        let straight = |start| Place { axis: [0, 1, 2], sign: [1; 3], start, slices: None };
        if let Some(o) = offset {
            return Ok(straight(o.map(|v| -v)));
        }
        let Some(own) = &self.geometry else {
            if self.dims == image.dims {
                return Ok(straight([0; 3]));
            }
            return Err(format!(
                "the file does not say where it lies and its size {:?} is not the image's {:?}; give `offset` in the manifest",
                self.dims, image.dims
            ));
        };
        let mut own = own.clone();
        let slices = if self.levels.is_empty() { None } else { Some(self.slices(image, &mut own)?) };
        // Index of the label's grid for the image's first voxel and for one step along each of its axes.
        let first = own.to_index(image.to_patient([0.0; 3]));
        let mut place = Place { slices, ..straight([0; 3]) };
        for a in 0..3 {
            let mut one = [0.0; 3];
            one[a] = 1.0;
            let there = own.to_index(image.to_patient(one));
            let step = [0, 1, 2].map(|k| there[k] - first[k]);
            let along = (0..3).max_by(|&p, &q| step[p].abs().total_cmp(&step[q].abs())).unwrap_or(a);
            // The deviation that the whole image accumulates counts, not that of one voxel.
            let length = image.dims[a].max(2) as f64 - 1.0;
            let off = (0..3).map(|k| step[k] - if k == along { step[k].signum() } else { 0.0 });
            if off.into_iter().any(|d| (d * length).abs() > 2.0 * TOLERANCE) {
                return Err(format!(
                    "the grid differs from the image's: one image voxel along axis {a} is {step:.3?} label voxels \
                     (label spacing {:?} mm, image {:?} mm); export the labels on the image's grid, or give `offset`",
                    own.spacing, image.spacing
                ));
            }
            place.axis[a] = along;
            place.sign[a] = if step[along] < 0.0 { -1 } else { 1 };
        }
        for k in (0..3).filter(|k| *k < 2 || place.slices.is_none()) {
            let near = first[k].round();
            if (first[k] - near).abs() > TOLERANCE || !near.is_finite() || near.abs() > 1e9 {
                return Err(format!(
                    "the grid lies {:.2} voxels beside the image's along axis {k}; export the labels on the image's grid, \
                     or give `offset`",
                    first[k] - near
                ));
            }
            place.start[k] = near as i64;
        }
        let mut seen = place.axis;
        seen.sort_unstable();
        if seen != [0, 1, 2] {
            return Err("the grid is oblique to the image's; export the labels on the image's grid".into());
        }
        if !self.overlaps(image, &place) {
            return Err("the labels lie wholly outside the image; do they belong to this series?".into());
        }
        Ok(place)
    }

    /// For labels whose slices have places of their own: the image's axis along the normal, and the label slice of each
    /// image slice. `own` gets the image's slice spacing, so that the other two axes can be compared.
    fn slices(&self, image: &Geometry, own: &mut Geometry) -> Result<(usize, Vec<Option<usize>>), String> {
        let cosine = |a: usize| (0..3).map(|k| image.axes[a][k] * own.axes[2][k]).sum::<f64>().abs();
        let axis = (0..3).max_by(|&a, &b| cosine(a).total_cmp(&cosine(b))).unwrap_or(2);
        let step = image.spacing[axis];
        own.spacing[2] = step;
        let places: Vec<f64> = (0..image.dims[axis])
            .map(|z| {
                let mut index = [0.0; 3];
                index[axis] = z as f64;
                own.to_index(image.to_patient(index))[2] * step
            })
            .collect();
        let mut table = vec![None; places.len()];
        let (low, high) = places.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), p| (l.min(*p), h.max(*p)));
        for (i, level) in self.levels.iter().enumerate() {
            match places.iter().position(|p| (p - level).abs() <= TOLERANCE * step) {
                Some(z) => table[z] = Some(i),
                None if *level > low && *level < high => {
                    let near = places.iter().map(|p| (p - level).abs()).fold(f64::INFINITY, f64::min);
                    return Err(format!(
                        "a frame lies {near:.2} mm beside the nearest slice of the image; export the labels on the image's grid"
                    ));
                }
                None => {}
            }
        }
        Ok((axis, table))
    }

    fn overlaps(&self, image: &Geometry, place: &Place) -> bool {
        (0..3).all(|a| match &place.slices {
            Some((axis, table)) if *axis == a => table.iter().any(Option::is_some),
            _ => {
                let k = place.axis[a];
                let (p, q) = (place.start[k], place.start[k] + place.sign[a] * (image.dims[a] as i64 - 1));
                p.min(q) < self.dims[k] as i64 && p.max(q) >= 0
            }
        })
    }
}

/// An axis-aligned map from image voxels to label voxels.
struct Place {
    axis: [usize; 3],
    sign: [i64; 3],
    start: [i64; 3],
    /// Where the slices have places of their own: the image's axis along them, and the label slice of each image slice.
    slices: Option<(usize, Vec<Option<usize>>)>,
}

impl Place {
    fn index(&self, image: [usize; 3], dims: [usize; 3]) -> Option<usize> {
        let mut at = self.start;
        for a in 0..3 {
            at[self.axis[a]] += self.sign[a] * image[a] as i64;
        }
        if let Some((axis, table)) = &self.slices {
            at[2] = table[image[*axis]]? as i64;
        }
        let inside = (0..3).all(|k| at[k] >= 0 && at[k] < dims[k] as i64);
        inside.then(|| (at[2] as usize * dims[1] + at[1] as usize) * dims[0] + at[0] as usize)
    }
}

/// A grid from columns of an affine in LPS millimetres: `columns[a]` is the step of index `a`.
fn geometry_of(dims: [usize; 3], columns: [[f64; 3]; 3], origin: [f64; 3]) -> Result<Geometry, String> {
    let mut spacing = [0.0; 3];
    let mut axes = [[0.0; 3]; 3];
    for a in 0..3 {
        spacing[a] = columns[a].iter().map(|v| v * v).sum::<f64>().sqrt();
        if !(spacing[a].is_finite() && spacing[a] > 1e-6 && spacing[a] < 1e6) {
            return Err(format!("the voxel step {:?} is not a length", columns[a]));
        }
        axes[a] = columns[a].map(|v| v / spacing[a]);
    }
    if origin.iter().any(|v| !v.is_finite()) {
        return Err("the origin is not finite".into());
    }
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        if (0..3).map(|k| axes[a][k] * axes[b][k]).sum::<f64>().abs() > 1e-3 {
            return Err("the grid is sheared; export the labels on the image's grid".into());
        }
    }
    Ok(Geometry { dims, spacing, origin, axes })
}

/// Number of voxels, refused beyond the bound.
fn voxels(dims: [usize; 3]) -> Result<usize, String> {
    dims.iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|&n| n > 0 && n <= MAX_VOXELS)
        .ok_or_else(|| format!("a size of {dims:?} is not possible"))
}

/// Unpacks gzip up to a bound.
fn inflate(bytes: &[u8], limit: u64) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes)
        .take(limit + 1)
        .read_to_end(&mut out)
        .map_err(|e| format!("broken gzip stream: {e}"))?;
    if out.len() as u64 > limit {
        return Err(format!("unpacks to more than {limit} bytes"));
    }
    Ok(out)
}

/// Numbers of a file as label values: whole, from 0 to 65535.
fn label_value(v: f64) -> Result<u16, String> {
    let near = v.round();
    if (v - near).abs() > 1e-3 || !(0.0..=65535.0).contains(&near) {
        return Err(format!("the value {v} is no label (whole, 0 to 65535): is this an image?"));
    }
    Ok(near as u16)
}

/// Decodes little- or big-endian numbers of one kind into label values.
fn decode(kind: Kind, big: bool, bytes: &[u8], rescale: impl Fn(f64) -> f64) -> Result<Vec<u16>, String> {
    let width = kind.width();
    let mut word = [0u8; 8];
    bytes
        .chunks_exact(width)
        .map(|c| {
            word[..width].copy_from_slice(c);
            if big {
                word[..width].reverse();
            }
            let w = word;
            let v = match kind {
                Kind::U8 => f64::from(w[0]),
                Kind::I8 => f64::from(w[0] as i8),
                Kind::U16 => f64::from(u16::from_le_bytes([w[0], w[1]])),
                Kind::I16 => f64::from(i16::from_le_bytes([w[0], w[1]])),
                Kind::U32 => f64::from(u32::from_le_bytes([w[0], w[1], w[2], w[3]])),
                Kind::I32 => f64::from(i32::from_le_bytes([w[0], w[1], w[2], w[3]])),
                Kind::U64 => u64::from_le_bytes(w) as f64,
                Kind::I64 => i64::from_le_bytes(w) as f64,
                Kind::F32 => f64::from(f32::from_le_bytes([w[0], w[1], w[2], w[3]])),
                Kind::F64 => f64::from_le_bytes(w),
            };
            label_value(rescale(v))
        })
        .collect()
}

/// How a number is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
}

impl Kind {
    fn width(self) -> usize {
        match self {
            Kind::U8 | Kind::I8 => 1,
            Kind::U16 | Kind::I16 => 2,
            Kind::U32 | Kind::I32 | Kind::F32 => 4,
            Kind::U64 | Kind::I64 | Kind::F64 => 8,
        }
    }
}

#[cfg(test)]
mod tests;
