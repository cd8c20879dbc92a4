//! Surfaces of masks and the distances between them.
//!
//! Surface: voxels of the mask with at least one of 6 face neighbours outside it; beyond the grid is outside, and a volume of one
//! slice has 4 neighbours a voxel. Distances run between voxel centres, in millimetres, in three dimensions.

use super::morphology::distance;

/// Voxels of a mask with a face neighbour outside it.
pub fn surface(mask: &[bool], dims: [usize; 3]) -> Vec<bool> {
    surface_where(mask, dims, |_| true)
}

/// The same where a neighbour above or below is one only if `told` says so of its slice, which may be -1 or `dims[2]`.
fn surface_where(mask: &[bool], dims: [usize; 3], told: impl Fn(isize) -> bool) -> Vec<bool> {
    let [nx, ny, nz] = dims;
    let plane = nx * ny;
    (0..mask.len())
        .map(|i| {
            if !mask[i] {
                return false;
            }
            let (x, y, z) = (i % nx, i / nx % ny, i / plane);
            let below = (z > 0 && mask[i - plane]) || !told(z as isize - 1);
            let above = (z + 1 < nz && mask[i + plane]) || !told(z as isize + 1);
            let beside = x > 0 && x + 1 < nx && y > 0 && y + 1 < ny;
            let inside = below && above && beside && mask[i - 1] && mask[i + 1] && mask[i - nx] && mask[i + nx];
            !inside
        })
        .collect()
}

/// Which slices tell where a mask ends: those of `known`, and beyond the grid those of a volume that has more than one slice.
pub fn telling(slices: usize, known: impl Fn(usize) -> bool) -> impl Fn(isize) -> bool {
    move |z| usize::try_from(z).ok().filter(|z| *z < slices).map_or(slices > 1, &known)
}

/// Slice of a surface voxel and its distance to another surface, mm.
pub type SurfaceDistance = (usize, f64);

/// Distances of each surface voxel of `a` to the surface of `b`, and back; empty lists where either mask is.
///
/// `told` says of a slice, beyond the grid too, whether the masks are known there ([`telling`]). What they show on other slices is not
/// looked at, and such a slice bounds nothing: a mask that ends where nothing is known has no surface there.
pub fn surface_distances(
    a: &[bool],
    b: &[bool],
    dims: [usize; 3],
    spacing: [f64; 3],
    told: impl Fn(isize) -> bool,
) -> (Vec<SurfaceDistance>, Vec<SurfaceDistance>) {
    let slice = dims[0] * dims[1];
    let known: Vec<bool> = (0..dims[2]).map(|z| told(z as isize)).collect();
    let of_known = |mask: &[bool]| mask.iter().enumerate().map(|(i, m)| *m && known[i / slice]).collect::<Vec<_>>();
    let (a, b) = (of_known(a), of_known(b));
    if !a.contains(&true) || !b.contains(&true) {
        return (Vec::new(), Vec::new());
    }
    // Both masks lie in one small box; distances outside it are never asked for.
    let window = Window::of(&a, &b, dims);
    let (a, b) = (window.cut(&a, dims), window.cut(&b, dims));
    let inner = window.dims();
    let told = |z: isize| told(z + window.low[2] as isize);
    let (sa, sb) = (surface_where(&a, inner, told), surface_where(&b, inner, told));
    let (da, db) = (distance(&sa, inner, spacing), distance(&sb, inner, spacing));
    let plane = inner[0] * inner[1];
    let pick = |s: &[bool], d: &[f32]| -> Vec<SurfaceDistance> {
        (0..s.len()).filter(|&i| s[i]).map(|i| (window.low[2] + i / plane, f64::from(d[i]))).collect()
    };
    (pick(&sa, &db), pick(&sb, &da))
}

/// The larger of the two directed 95th percentiles, mm; none where either list is empty.
pub fn hd95(there: &[SurfaceDistance], back: &[SurfaceDistance]) -> Option<f64> {
    let directed = |all: &[SurfaceDistance]| {
        let mut d: Vec<f64> = all.iter().map(|v| v.1).collect();
        d.sort_by(f64::total_cmp);
        quantile(&d, 0.95)
    };
    Some(directed(there)?.max(directed(back)?))
}

/// Linear interpolation between the order statistics of sorted values, as NumPy's default; none of none.
pub fn quantile(sorted: &[f64], fraction: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = fraction.clamp(0.0, 1.0) * last as f64;
    let low = at.floor() as usize;
    let high = (low + 1).min(last);
    Some(sorted[low] + (sorted[high] - sorted[low]) * (at - low as f64))
}

/// The smallest box round two masks.
struct Window {
    low: [usize; 3],
    high: [usize; 3],
}

impl Window {
    fn of(a: &[bool], b: &[bool], dims: [usize; 3]) -> Self {
        let mut w = Window { low: dims, high: [0; 3] };
        for i in (0..a.len()).filter(|&i| a[i] || b[i]) {
            let at = [i % dims[0], i / dims[0] % dims[1], i / (dims[0] * dims[1])];
            for k in 0..3 {
                w.low[k] = w.low[k].min(at[k]);
                w.high[k] = w.high[k].max(at[k] + 1);
            }
        }
        w
    }
    fn dims(&self) -> [usize; 3] {
        [0, 1, 2].map(|k| self.high[k] - self.low[k])
    }
    fn cut(&self, mask: &[bool], dims: [usize; 3]) -> Vec<bool> {
        let mut out = Vec::with_capacity(self.dims().iter().product());
        for z in self.low[2]..self.high[2] {
            for y in self.low[1]..self.high[1] {
                let row = (z * dims[1] + y) * dims[0];
                out.extend_from_slice(&mask[row + self.low[0]..row + self.high[0]]);
            }
        }
        out
    }
}
