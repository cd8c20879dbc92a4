//! The measurements behind the criteria, for one structure's mask over a volume.

use crate::image::morphology::{Connectivity, components, contour, distance, fill_holes};
use crate::image::{Geometry, LabelMap, Volume};

/// A measurement over the volume and on each slice where it exists.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measure {
    /// Over the volume; none where it cannot be taken.
    pub value: Option<f64>,
    /// Slice and its value.
    pub slices: Vec<(usize, f64)>,
}

/// A structure's mask cut to its bounding box plus a border of 2 pixels, with the values around it.
pub struct Region {
    /// Columns, rows, slices of the box.
    pub dims: [usize; 3],
    /// First column, row, slice of the box in the volume.
    pub start: [usize; 3],
    /// Voxel spacing, millimetres.
    pub spacing: [f64; 3],
    /// The mask in the box.
    pub mask: Vec<bool>,
}

impl Region {
    /// Cuts out a label; `None` where it does not occur.
    pub fn of(labels: &LabelMap, label: u8) -> Option<Self> {
        let mut r = Region::round(&labels.geometry, 2, |i| labels.data[i] == label)?;
        r.mask = r.cut(&labels.data, labels.geometry.dims).map(|&l| l == label).collect();
        Some(r)
    }

    /// The box of all voxels that `wanted` accepts, with a border of `border` pixels and an empty mask; `None` without any.
    pub fn round(geometry: &Geometry, border: usize, wanted: impl Fn(usize) -> bool) -> Option<Self> {
        let [nx, ny, _] = geometry.dims;
        let mut lo = [usize::MAX; 3];
        let mut hi = [0usize; 3];
        for i in (0..geometry.voxels()).filter(|&i| wanted(i)) {
            let p = [i % nx, i / nx % ny, i / (nx * ny)];
            for a in 0..3 {
                lo[a] = lo[a].min(p[a]);
                hi[a] = hi[a].max(p[a] + 1);
            }
        }
        if hi[0] == 0 {
            return None;
        }
        for (a, n) in [(0, nx), (1, ny)] {
            lo[a] = lo[a].saturating_sub(border);
            hi[a] = (hi[a] + border).min(n);
        }
        let dims = [hi[0] - lo[0], hi[1] - lo[1], hi[2] - lo[2]];
        Some(Region { dims, start: lo, spacing: geometry.spacing, mask: Vec::new() })
    }

    /// The same box with another mask.
    pub fn with(&self, mask: Vec<bool>) -> Self {
        Region { dims: self.dims, start: self.start, spacing: self.spacing, mask }
    }

    /// The box's part of an array on the volume's grid.
    pub fn cut<'a, T>(&self, data: &'a [T], dims: [usize; 3]) -> impl Iterator<Item = &'a T> {
        let ([x0, y0, z0], [w, h, d]) = (self.start, self.dims);
        (z0..z0 + d).flat_map(move |z| {
            (y0..y0 + h).flat_map(move |y| {
                let row = (z * dims[1] + y) * dims[0] + x0;
                data[row..row + w].iter()
            })
        })
    }

    /// Pixels of a slice of the box.
    pub fn plane(&self) -> usize {
        self.dims[0] * self.dims[1]
    }

    /// Voxels of the mask on each slice of the box.
    pub fn areas(&self) -> Vec<usize> {
        self.mask.chunks(self.plane()).map(|p| p.iter().filter(|&&m| m).count()).collect()
    }

    /// Centre of the mask on a slice of the box, mm from the box's first pixel; the origin for an empty slice.
    pub fn centroid(&self, z: usize) -> [f64; 2] {
        let (mut n, mut x, mut y) = (0.0, 0.0, 0.0);
        let plane = self.plane();
        for i in (0..plane).filter(|&i| self.mask[z * plane + i]) {
            n += 1.0;
            x += (i % self.dims[0]) as f64 * self.spacing[0];
            y += (i / self.dims[0]) as f64 * self.spacing[1];
        }
        [x / f64::max(n, 1.0), y / f64::max(n, 1.0)]
    }

    /// Voxels of the mask.
    pub fn total(&self) -> f64 {
        self.mask.iter().filter(|&&m| m).count() as f64
    }
}

/// Gradient magnitude in the slice by central differences, per millimetre, over the box.
fn gradient(values: &[f32], r: &Region) -> Vec<f32> {
    let [w, h, _] = r.dims;
    let [sx, sy, _] = r.spacing.map(|s| s as f32);
    let mut out = vec![0.0; values.len()];
    for (i, g) in out.iter_mut().enumerate() {
        let (x, y) = (i % w, i / w % h);
        let row = i - x;
        let plane = i - y * w - x;
        let (a, b) = (x.saturating_sub(1), (x + 1).min(w - 1));
        let (c, d) = (y.saturating_sub(1), (y + 1).min(h - 1));
        let dx = (values[row + b] - values[row + a]) / ((b - a).max(1) as f32 * sx);
        let dy = (values[plane + d * w + x] - values[plane + c * w + x]) / ((d - c).max(1) as f32 * sy);
        *g = dx.hypot(dy);
    }
    out
}

/// C1: how the contour lies on the image's edges.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edges {
    /// Mean over the contour of the largest gradient within one pixel, over the leg's edge strength (at most 1).
    pub strength: Measure,
    /// The same largest gradient over the largest within four pixels: 1 where no stronger edge is near.
    pub relative: Measure,
}

/// C1 over the contour, pixel by pixel; `edge` is the leg's [`edge_strength`].
pub fn boundary(r: &Region, volume: &Volume, edge: f32) -> Edges {
    let values: Vec<f32> = r.cut(&volume.data, volume.geometry.dims).copied().collect();
    let g = gradient(&values, r);
    let rim = contour(&r.mask, r.dims);
    let [w, h, _] = r.dims;
    let largest = |i: usize, reach: usize| {
        let (x, y, plane) = (i % w, i / w % h, i / r.plane() * r.plane());
        let mut best = 0f32;
        for b in y.saturating_sub(reach)..=(y + reach).min(h - 1) {
            for a in x.saturating_sub(reach)..=(x + reach).min(w - 1) {
                best = best.max(g[plane + b * w + a]);
            }
        }
        best
    };
    let mut out = Edges::default();
    let mut all = [0.0; 3];
    for z in 0..r.dims[2] {
        let mut own = [0.0; 3];
        for i in (z * r.plane()..(z + 1) * r.plane()).filter(|&i| rim[i]) {
            let near = largest(i, 1);
            own[0] += 1.0;
            own[1] += f64::from((near / edge.max(f32::MIN_POSITIVE)).min(1.0));
            own[2] += f64::from(near / largest(i, 4).max(f32::MIN_POSITIVE));
        }
        if own[0] > 0.0 {
            out.strength.slices.push((r.start[2] + z, own[1] / own[0]));
            out.relative.slices.push((r.start[2] + z, own[2] / own[0]));
            (0..3).for_each(|k| all[k] += own[k]);
        }
    }
    if all[0] > 0.0 {
        out.strength.value = Some(all[1] / all[0]);
        out.relative.value = Some(all[2] / all[0]);
    }
    out
}

/// Reach of the soft band on either side of the contour, pixels.
const BAND: f64 = 4.0;

/// C1: width of the soft band, mm: area round the contour where the label's entropy is above one half, over the contour's
/// length.
pub fn soft_band(r: &Region, entropy: &[f32], dims: [usize; 3]) -> Measure {
    if entropy.is_empty() {
        return Measure::default();
    }
    let pixel = r.spacing[0].max(r.spacing[1]);
    let near = distance(&contour(&r.mask, r.dims), r.dims, [r.spacing[0], r.spacing[1], 1e4]);
    let rim = contour(&r.mask, r.dims);
    let soft: Vec<bool> =
        r.cut(entropy, dims).zip(&near).map(|(e, d)| *e > 0.5 && f64::from(*d) <= BAND * pixel).collect();
    let (mut area, mut length, mut slices) = (0.0, 0.0, Vec::new());
    for z in 0..r.dims[2] {
        let count = |m: &[bool]| m[z * r.plane()..(z + 1) * r.plane()].iter().filter(|v| **v).count() as f64;
        let (a, l) = (count(&soft) * r.spacing[0] * r.spacing[1], count(&rim) * pixel);
        if l > 0.0 {
            slices.push((r.start[2] + z, a / l));
            area += a;
            length += l;
        }
    }
    Measure { value: (length > 0.0).then(|| area / length), slices }
}

/// Part of C3: share of the mask's voxels that another segment claims too; `claimed` counts them by slice of the volume.
pub fn overlap(r: &Region, claimed: &[usize]) -> Measure {
    if claimed.is_empty() {
        return Measure::default();
    }
    let areas = r.areas();
    let at = |z: usize| claimed.get(r.start[2] + z).copied().unwrap_or(0) as f64;
    let slices: Vec<(usize, f64)> =
        (0..areas.len()).filter(|&z| areas[z] > 0).map(|z| (r.start[2] + z, at(z) / areas[z] as f64)).collect();
    let all: f64 = (0..areas.len()).map(at).sum();
    Measure { value: Some(all / r.total().max(1.0)), slices }
}

/// The leg's edge strength: the 95th percentile of the in-slice gradient inside it.
pub fn edge_strength(volume: &Volume, leg: &[bool]) -> f32 {
    let g = &volume.geometry;
    let r = Region { dims: g.dims, start: [0; 3], spacing: g.spacing, mask: Vec::new() };
    let all = gradient(&volume.data, &r);
    let mut inside: Vec<f32> = all.into_iter().zip(leg).filter(|(v, m)| **m && v.is_finite()).map(|(v, _)| v).collect();
    if inside.is_empty() {
        return 0.0;
    }
    let k = (inside.len() - 1) * 95 / 100;
    *inside.select_nth_unstable_by(k, f32::total_cmp).1
}

/// What the augmented passes say about a mask: what any of them adds (C2) and what not all of them keep (C3), both over
/// the mask; and the Dice of intersection and union (C7).
pub fn agreement(labels: &LabelMap, passes: &[LabelMap], label: u8) -> [Measure; 3] {
    let mut out: [Measure; 3] = Default::default();
    if passes.is_empty() {
        return out;
    }
    let plane = labels.geometry.plane();
    let mut sums = [0.0f64; 4];
    for z in 0..labels.geometry.dims[2] {
        let (mut mask, mut added, mut dropped, mut both, mut either) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for i in z * plane..(z + 1) * plane {
            let own = labels.data[i] == label;
            let any = passes.iter().any(|p| p.data[i] == label);
            if !own && !any {
                continue;
            }
            let all = passes.iter().all(|p| p.data[i] == label);
            mask += f64::from(u8::from(own));
            added += f64::from(u8::from(any && !own));
            dropped += f64::from(u8::from(own && !all));
            both += f64::from(u8::from(all));
            either += f64::from(u8::from(any));
        }
        for (s, v) in sums.iter_mut().zip([mask, added, dropped, both + either]) {
            *s += v;
        }
        if mask > 0.0 {
            out[0].slices.push((z, added / mask));
            out[1].slices.push((z, dropped / mask));
        }
        if both + either > 0.0 {
            out[2].slices.push((z, 2.0 * both / (both + either)));
        }
        out[2].value = Some(out[2].value.unwrap_or(0.0) + 2.0 * both);
    }
    if sums[0] > 0.0 {
        out[0].value = Some(sums[1] / sums[0]);
        out[1].value = Some(sums[2] / sums[0]);
    }
    out[2].value = out[2].value.filter(|_| sums[3] > 0.0).map(|v| v / sums[3]);
    out
}

/// Part of C3: share of the mask whose intensity lies more than 4 robust deviations from the structure's median.
pub fn outliers(r: &Region, volume: &Volume) -> Measure {
    let values: Vec<f32> = r.cut(&volume.data, volume.geometry.dims).copied().collect();
    let mut inside: Vec<f32> = values.iter().zip(&r.mask).filter(|(_, m)| **m).map(|(v, _)| *v).collect();
    if inside.len() < 8 {
        return Measure::default();
    }
    let k = inside.len() / 2;
    let median = *inside.select_nth_unstable_by(k, f32::total_cmp).1;
    let mut deviation: Vec<f32> = inside.iter().map(|v| (v - median).abs()).collect();
    let mad = *deviation.select_nth_unstable_by(k, f32::total_cmp).1;
    let limit = (4.0 * 1.4826 * mad).max(1e-6);
    let mut slices = Vec::new();
    let mut far = 0.0;
    for z in 0..r.dims[2] {
        let range = z * r.plane()..(z + 1) * r.plane();
        let (mut n, mut out) = (0.0, 0.0);
        for i in range.filter(|&i| r.mask[i]) {
            n += 1.0;
            out += f64::from(u8::from((values[i] - median).abs() > limit));
        }
        if n > 0.0 {
            slices.push((r.start[2] + z, out / n));
            far += out;
        }
    }
    Measure { value: Some(far / r.total().max(1.0)), slices }
}

/// C5: what is not one piece without holes: `(1 - largest component's share) + hole share`, over the volume; on each
/// slice likewise with the slice's own components.
pub fn topology(r: &Region) -> Measure {
    let whole = components(&r.mask, r.dims, Connectivity::Faces);
    let total = r.total().max(1.0);
    let share = whole.sizes.iter().copied().max().unwrap_or(0) as f64 / total;
    let mut filled = r.mask.clone();
    let holes = fill_holes(&mut filled, r.dims) as f64 / total;
    let mut slices = Vec::new();
    for z in 0..r.dims[2] {
        let plane = r.mask[z * r.plane()..(z + 1) * r.plane()].to_vec();
        let n = plane.iter().filter(|&&m| m).count();
        if n == 0 {
            continue;
        }
        let dims = [r.dims[0], r.dims[1], 1];
        let largest = components(&plane, dims, Connectivity::Faces).sizes.into_iter().max().unwrap_or(0);
        let mut closed = plane;
        let hole = fill_holes(&mut closed, dims);
        slices.push((r.start[2] + z, (n - largest) as f64 / n as f64 + hole as f64 / n as f64));
    }
    Measure { value: Some(1.0 - share + holes), slices }
}

/// What C6 sees between neighbouring slices.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Between {
    /// Mean loss of overlap between neighbours, `1 - Dice`, scaled to slices 5 mm apart where they are farther.
    pub loss: Measure,
    /// Largest change of area between neighbours over the larger of the two, scaled likewise.
    pub jump: f64,
    /// Largest centroid shift between neighbours, millimetres for slices 5 mm apart.
    pub shift_mm: f64,
    /// Inner slices without the structure.
    pub missing: Vec<usize>,
}

/// C6.
pub fn between(r: &Region) -> Between {
    let scale = (5.0 / r.spacing[2]).clamp(0.2, 1.0);
    let areas = r.areas();
    let plane = r.plane();
    let centroid = |z: usize| r.centroid(z);
    let mut out = Between {
        missing: (0..areas.len()).filter(|&z| areas[z] == 0).map(|z| r.start[2] + z).collect(),
        ..Between::default()
    };
    let mut worst = vec![0f64; areas.len()];
    let (mut sum, mut pairs) = (0.0, 0.0);
    for z in 1..areas.len() {
        let (a, b) = (areas[z - 1] as f64, areas[z] as f64);
        if a + b == 0.0 {
            continue;
        }
        let both = (0..plane).filter(|&i| r.mask[(z - 1) * plane + i] && r.mask[z * plane + i]).count() as f64;
        let loss = (1.0 - 2.0 * both / (a + b)) * scale;
        sum += loss;
        pairs += 1.0;
        worst[z - 1] = worst[z - 1].max(loss);
        worst[z] = worst[z].max(loss);
        if a > 0.0 && b > 0.0 {
            out.jump = out.jump.max((a - b).abs() / a.max(b) * scale);
            let (p, q) = (centroid(z - 1), centroid(z));
            out.shift_mm = out.shift_mm.max((p[0] - q[0]).hypot(p[1] - q[1]) * scale);
        }
    }
    out.loss = Measure {
        value: (pairs > 0.0).then(|| sum / pairs),
        slices: worst
            .into_iter()
            .enumerate()
            .filter(|(z, _)| areas[*z] > 0)
            .map(|(z, v)| (r.start[2] + z, v))
            .collect(),
    };
    out
}
