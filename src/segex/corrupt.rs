//! Damages masks in the ways that models and readers do, so that grades can be held against known errors.

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::measure::Region;
use crate::image::LabelMap;
use crate::image::morphology::{contour, dilate, erode};

/// A kind of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Damage {
    /// The contour lies inside the true one.
    Erode,
    /// The contour lies outside the true one.
    Dilate,
    /// The mask is displaced in its slices.
    Shift,
    /// A round bulge over the contour on some neighbouring slices.
    Leak,
    /// A round hole on some neighbouring slices.
    Hole,
    /// Inner slices without the structure.
    DroppedSlice,
    /// On some neighbouring slices the mask is that of a structure beside it.
    SwappedNeighbour,
    /// An unsteady contour.
    Wobble,
}

impl Damage {
    /// All kinds.
    pub const ALL: [Damage; 8] = [
        Damage::Erode,
        Damage::Dilate,
        Damage::Shift,
        Damage::Leak,
        Damage::Hole,
        Damage::DroppedSlice,
        Damage::SwappedNeighbour,
        Damage::Wobble,
    ];
}

/// Severities: slight (a reader may let it pass), moderate, gross.
pub const LEVELS: usize = 3;

/// A damage with its place and size: the same can be done to several masks.
#[derive(Clone, Debug, PartialEq)]
pub enum Corruption {
    /// Millimetres, in each slice.
    Erode(f64),
    /// Millimetres, in each slice.
    Dilate(f64),
    /// Pixels along columns and rows.
    Shift([i64; 2]),
    /// Centre (pixels), radius (mm), slices.
    Leak([f64; 2], f64, std::ops::Range<usize>),
    /// Centre (pixels), radius (mm), slices.
    Hole([f64; 2], f64, std::ops::Range<usize>),
    /// Slices.
    DroppedSlice(Vec<usize>),
    /// The other structure's label, slices.
    SwappedNeighbour(u8, std::ops::Range<usize>),
    /// Amplitude (mm) and the phases of the waves.
    Wobble(f64, [f64; 6]),
}

/// Pixels beyond the mask that a damage may reach.
const BORDER: usize = 24;

impl Corruption {
    /// Draws a damage of a kind and a severity (0 to 2) for one label; none where it cannot be done to this mask.
    pub fn draw(kind: Damage, level: usize, labels: &LabelMap, label: u8, rng: &mut impl Rng) -> Option<Self> {
        let level = level.min(LEVELS - 1);
        let region = Region::of(labels, label)?;
        let g = &labels.geometry;
        let depth = region.dims[2];
        let run = |rng: &mut dyn rand::RngCore| {
            let n = [1, depth.div_ceil(4), depth.div_ceil(2)][level].clamp(1, depth);
            let z = region.start[2] + rng.random_range(0..=depth - n);
            z..z + n
        };
        let round = |rng: &mut dyn rand::RngCore, rim: bool| {
            let slices = run(rng);
            let z = (slices.start + slices.end - 1) / 2 - region.start[2];
            let plane = &region.mask[z * region.plane()..(z + 1) * region.plane()];
            let dims = [region.dims[0], region.dims[1], 1];
            let from = if rim { contour(plane, dims) } else { plane.to_vec() };
            let at: Vec<usize> = (0..from.len()).filter(|&i| from[i]).collect();
            let i = *at.get(rng.random_range(0..at.len().max(1)))?;
            let centre = [i % dims[0] + region.start[0], i / dims[0] + region.start[1]].map(|v| v as f64);
            Some((centre, slices))
        };
        // Less than a pixel would change nothing.
        let pixel = g.spacing[0].max(g.spacing[1]);
        let depth_mm = [0.8f64, 1.6, 3.5][level].max(1.01 * pixel * (1.0 + 0.5 * level as f64));
        Some(match kind {
            Damage::Erode => Corruption::Erode(depth_mm),
            Damage::Dilate => Corruption::Dilate(depth_mm),
            Damage::Shift => {
                let (mm, angle) = ([1.0f64, 3.0, 8.0][level].max(pixel), rng.random::<f64>() * std::f64::consts::TAU);
                Corruption::Shift([
                    (mm * angle.cos() / g.spacing[0]).round() as i64,
                    (mm * angle.sin() / g.spacing[1]).round() as i64,
                ])
            }
            Damage::Leak => {
                let (centre, slices) = round(rng, true)?;
                Corruption::Leak(centre, [5.0, 9.0, 15.0][level], slices)
            }
            Damage::Hole => {
                let (centre, slices) = round(rng, false)?;
                Corruption::Hole(centre, [3.0, 5.0, 8.0][level], slices)
            }
            Damage::DroppedSlice => {
                if depth < 3 {
                    return None;
                }
                let mut all: Vec<usize> = (1..depth - 1).map(|z| region.start[2] + z).collect();
                let n = [1, 2, 4][level].min(all.len());
                Corruption::DroppedSlice((0..n).map(|_| all.swap_remove(rng.random_range(0..all.len()))).collect())
            }
            Damage::SwappedNeighbour => Corruption::SwappedNeighbour(neighbour(labels, label, &region)?, run(rng)),
            Damage::Wobble => {
                let phases = std::array::from_fn(|_| rng.random::<f64>() * std::f64::consts::TAU);
                Corruption::Wobble([0.7, 1.6, 3.0][level], phases)
            }
        })
    }

    /// The label map with one label damaged: what it gains it takes from others, what it loses becomes background.
    pub fn apply(&self, labels: &LabelMap, label: u8) -> LabelMap {
        let g = &labels.geometry;
        let mut out = labels.clone();
        let other = if let Corruption::SwappedNeighbour(n, _) = self { *n } else { label };
        let wanted = |i: usize| labels.data[i] == label || labels.data[i] == other;
        let Some(r) = Region::round(g, BORDER, wanted) else { return out };
        let mask: Vec<bool> = r.cut(&labels.data, g.dims).map(|l| *l == label).collect();
        let neighbour: Vec<bool> = r.cut(&labels.data, g.dims).map(|l| *l == other).collect();
        let new = self.damaged(&r, &mask, &neighbour);
        let ([x0, y0, z0], [w, h, _]) = (r.start, r.dims);
        for (i, (&was, is)) in mask.iter().zip(new).enumerate().filter(|(_, (a, b))| **a != *b) {
            let at = ((z0 + i / (w * h)) * g.dims[1] + y0 + i / w % h) * g.dims[0] + x0 + i % w;
            out.data[at] = if is { label } else { 0 };
            debug_assert!(was != is);
        }
        out
    }

    fn damaged(&self, r: &Region, mask: &[bool], neighbour: &[bool]) -> Vec<bool> {
        let flat = [r.spacing[0], r.spacing[1], 1e4];
        let (w, h) = (r.dims[0], r.dims[1]);
        let slice = |i: usize| r.start[2] + i / (w * h);
        let within = |i: usize, c: &[f64; 2], mm: f64| {
            let (x, y) = ((i % w + r.start[0]) as f64 - c[0], (i / w % h + r.start[1]) as f64 - c[1]);
            (x * r.spacing[0]).hypot(y * r.spacing[1]) <= mm
        };
        let displaced = |i: usize, dx: i64, dy: i64| {
            let (x, y) = ((i % w) as i64 - dx, (i / w % h) as i64 - dy);
            let inside = x >= 0 && y >= 0 && x < w as i64 && y < h as i64;
            inside && mask[i / (w * h) * w * h + y as usize * w + x as usize]
        };
        match self {
            Corruption::Erode(mm) => erode(mask, r.dims, flat, *mm),
            Corruption::Dilate(mm) => dilate(mask, r.dims, flat, *mm),
            Corruption::Shift([dx, dy]) => (0..mask.len()).map(|i| displaced(i, *dx, *dy)).collect(),
            Corruption::Leak(c, mm, z) => {
                (0..mask.len()).map(|i| mask[i] || (z.contains(&slice(i)) && within(i, c, *mm))).collect()
            }
            Corruption::Hole(c, mm, z) => {
                (0..mask.len()).map(|i| mask[i] && !(z.contains(&slice(i)) && within(i, c, *mm))).collect()
            }
            Corruption::DroppedSlice(z) => (0..mask.len()).map(|i| mask[i] && !z.contains(&slice(i))).collect(),
            Corruption::SwappedNeighbour(_, z) => {
                (0..mask.len()).map(|i| if z.contains(&slice(i)) { neighbour[i] } else { mask[i] }).collect()
            }
            Corruption::Wobble(mm, p) => {
                let wave = |i: usize, k: usize| {
                    let x = (i % w) as f64 * r.spacing[0];
                    let y = (i / w % h) as f64 * r.spacing[1];
                    let z = (i / (w * h)) as f64;
                    // Wavelengths of 14 and 23 mm: finer than a muscle, coarser than a pixel.
                    ((x / 14.0 + z * 0.37) * std::f64::consts::TAU + p[k]).sin()
                        + ((y / 14.0 + z * 0.61) * std::f64::consts::TAU + p[k + 1]).sin()
                        + (((x + y) / 23.0 + z * 0.23) * std::f64::consts::TAU + p[k + 2]).sin()
                };
                let step = |i: usize, k: usize| (mm * wave(i, k) / 1.22 / r.spacing[usize::from(k > 0)]).round() as i64;
                (0..mask.len()).map(|i| displaced(i, step(i, 0), step(i, 3))).collect()
            }
        }
    }
}

/// The label that most of the voxels beside a label's contour have.
fn neighbour(labels: &LabelMap, label: u8, region: &Region) -> Option<u8> {
    let g = &labels.geometry;
    let flat = [g.spacing[0], g.spacing[1], 1e4];
    let near = dilate(&region.mask, region.dims, flat, 2.5 * g.spacing[0].max(g.spacing[1]));
    let mut counts = [0usize; 256];
    for (l, n) in region.cut(&labels.data, g.dims).zip(near) {
        if n && *l != 0 && *l != label {
            counts[usize::from(*l)] += 1;
        }
    }
    let (best, n) = counts.iter().enumerate().max_by_key(|(i, n)| (**n, std::cmp::Reverse(*i)))?;
    (*n > 0).then_some(best as u8)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::image::Geometry;

    /// Two discs that touch, labels 1 and 2, on 8 slices.
    fn two() -> LabelMap {
        let g = Geometry::axial([100, 60, 8], [1.0, 1.0, 5.0]);
        let mut m = LabelMap::empty(g.clone());
        for i in 0..g.voxels() {
            let (x, y) = ((i % 100) as f64, (i / 100 % 60) as f64);
            m.data[i] = match () {
                () if (x - 35.0).hypot(y - 30.0) <= 14.0 => 1,
                () if (x - 64.0).hypot(y - 30.0) <= 14.0 => 2,
                () => 0,
            };
        }
        m
    }

    #[test]
    fn every_damage_changes_its_label_and_repeats_by_seed() {
        let truth = two();
        for kind in Damage::ALL {
            let mut last = 0;
            for level in 0..LEVELS {
                let draw = || {
                    let mut rng = ChaCha8Rng::seed_from_u64(5);
                    Corruption::draw(kind, level, &truth, 1, &mut rng).unwrap()
                };
                let made = draw().apply(&truth, 1);
                assert_eq!(made, draw().apply(&truth, 1));
                let changed = made.data.iter().zip(&truth.data).filter(|(a, b)| a != b).count();
                assert!(changed > last, "{kind:?} {level}: {changed} after {last}");
                last = changed;
                // Whatever was gained was gained by label 1.
                let foreign = made.data.iter().zip(&truth.data).any(|(a, b)| a != b && *a != 1 && *a != 0);
                assert!(!foreign, "{kind:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_damaged_is_left_out() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let g = Geometry::axial([40, 40, 1], [1.0, 1.0, 5.0]);
        let mut one = LabelMap::empty(g);
        assert_eq!(Corruption::draw(Damage::Erode, 0, &one, 1, &mut rng), None, "no mask");
        (0..100).for_each(|i| one.data[(15 + i / 10) * 40 + 15 + i % 10] = 1);
        assert_eq!(Corruption::draw(Damage::DroppedSlice, 0, &one, 1, &mut rng), None, "one slice");
        assert_eq!(Corruption::draw(Damage::SwappedNeighbour, 0, &one, 1, &mut rng), None, "no neighbour");
    }
}
