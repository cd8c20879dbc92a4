//! Surfaces of masks and the distances between them.
//!
//! Surface: voxels of the mask with at least one of 6 face neighbours outside it; beyond the grid is outside. Distances run
//! between voxel centres, in millimetres, in three dimensions.

use super::morphology::distance;

/// Voxels of a mask with a face neighbour outside it.
pub fn surface(mask: &[bool], dims: [usize; 3]) -> Vec<bool> {
    let [nx, ny, nz] = dims;
    (0..mask.len())
        .map(|i| {
            if !mask[i] {
                return false;
            }
            let (x, y, z) = (i % nx, i / nx % ny, i / (nx * ny));
            let inside = x > 0
                && x + 1 < nx
                && y > 0
                && y + 1 < ny
                && z > 0
                && z + 1 < nz
                && mask[i - 1]
                && mask[i + 1]
                && mask[i - nx]
                && mask[i + nx]
                && mask[i - nx * ny]
                && mask[i + nx * ny];
            !inside
        })
        .collect()
}

/// Slice of a surface voxel and its distance to another surface, mm.
pub type SurfaceDistance = (usize, f64);

/// Distances of each surface voxel of `a` to the surface of `b`, and back; empty lists where either mask is.
pub fn surface_distances(
    a: &[bool],
    b: &[bool],
    dims: [usize; 3],
    spacing: [f64; 3],
) -> (Vec<SurfaceDistance>, Vec<SurfaceDistance>) {
    if !a.contains(&true) || !b.contains(&true) {
        return (Vec::new(), Vec::new());
    }
    // Both masks lie in one small box; distances outside it are never asked for.
    let window = Window::of(a, b, dims);
    let (a, b) = (window.cut(a, dims), window.cut(b, dims));
    let inner = window.dims();
    let (sa, sb) = (surface(&a, inner), surface(&b, inner));
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
