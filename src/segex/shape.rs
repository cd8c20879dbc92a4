//! Shape of one structure on one slice, and what shapes the labelled slices had.

use serde::{Deserialize, Serialize};

use crate::image::morphology::hull_area;

/// Number of shape features.
pub const FEATURES: usize = 5;

/// Shape of a mask on a slice, relative to its leg: `[square root of area over the leg's area, x, y, eccentricity, solidity]`.
/// x and y are the centroid in the leg's box, 0 to 1, seen as a right leg.
pub type Shape = [f64; FEATURES];

/// The leg that shapes are measured against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LegFrame {
    /// First column, first row, one past the last of each.
    pub bounds: [usize; 4],
    /// Whether columns and rows run against those of a right leg in the radiological image.
    pub flip: [bool; 2],
    /// Pixel spacing along columns and rows, millimetres.
    pub spacing: [f64; 2],
}

/// The shape of a plane's mask (`width` columns, whose first pixel is column and row `start` of the image); `None` for an
/// empty mask.
pub fn shape(mask: &[bool], width: usize, start: [usize; 2], leg: &LegFrame) -> Option<Shape> {
    let (mut n, mut sx, mut sy, mut sxx, mut syy, mut sxy) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
    for (i, _) in mask.iter().enumerate().filter(|(_, m)| **m) {
        let x = (i % width + start[0]) as f64 * leg.spacing[0];
        let y = (i / width + start[1]) as f64 * leg.spacing[1];
        n += 1.0;
        sx += x;
        sy += y;
        sxx += x * x;
        syy += y * y;
        sxy += x * y;
    }
    if n == 0.0 {
        return None;
    }
    let (mx, my) = (sx / n, sy / n);
    let pixel = leg.spacing[0] * leg.spacing[1];
    let (vxx, vyy, vxy) = (sxx / n - mx * mx + pixel / 12.0, syy / n - my * my + pixel / 12.0, sxy / n - mx * my);
    let (half, root) = ((vxx + vyy) / 2.0, (((vxx - vyy) / 2.0).powi(2) + vxy * vxy).sqrt());
    let eccentricity = (1.0 - ((half - root) / (half + root)).max(0.0)).max(0.0).sqrt();
    let [x0, y0, x1, y1] = leg.bounds.map(|v| v as f64);
    let (wide, high) = ((x1 - x0).max(1.0) * leg.spacing[0], (y1 - y0).max(1.0) * leg.spacing[1]);
    let place = |v: f64, lo: f64, extent: f64, flip: bool| {
        let t = (v - lo) / extent;
        if flip { 1.0 - t } else { t }
    };
    let hull = hull_area(mask, width);
    Some([
        (n * pixel / (wide * high)).sqrt(),
        place(mx, x0 * leg.spacing[0], wide, leg.flip[0]),
        place(my, y0 * leg.spacing[1], high, leg.flip[1]),
        eccentricity,
        if hull > 0.0 { n / hull } else { 1.0 },
    ])
}

/// Mean and spread of a structure's shape over the labelled slices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShapeStatistics {
    /// Key of the structure.
    pub key: String,
    /// Labelled slices behind the numbers.
    pub count: usize,
    /// Mean shape.
    pub mean: Shape,
    /// Inverse of the (shrunken) covariance.
    pub precision: [[f64; FEATURES]; FEATURES],
}

/// Spread that is assumed before any slice is seen: standard deviations of the features over real thighs, rounded up.
const PRIOR_SD: Shape = [0.05, 0.06, 0.06, 0.12, 0.10];
/// How many labelled slices the prior spread weighs as much as.
const PRIOR_WEIGHT: f64 = 6.0;

impl ShapeStatistics {
    /// Statistics of a structure from its labelled slices; `None` without any. With few slices the covariance is drawn
    /// towards a broad diagonal prior, so five slices give a usable, wide gate.
    pub fn fit(key: &str, shapes: &[Shape]) -> Option<Self> {
        if shapes.is_empty() {
            return None;
        }
        let n = shapes.len() as f64;
        let mean: Shape = std::array::from_fn(|k| shapes.iter().map(|s| s[k]).sum::<f64>() / n);
        let mut cov = [[0.0; FEATURES]; FEATURES];
        for a in 0..FEATURES {
            for b in 0..FEATURES {
                let sum: f64 = shapes.iter().map(|s| (s[a] - mean[a]) * (s[b] - mean[b])).sum();
                let prior = if a == b { PRIOR_SD[a] * PRIOR_SD[a] } else { 0.0 };
                cov[a][b] = (sum + PRIOR_WEIGHT * prior) / (n + PRIOR_WEIGHT);
            }
        }
        Some(ShapeStatistics { key: key.into(), count: shapes.len(), mean, precision: invert(cov)? })
    }

    /// Mahalanobis distance per feature: `sqrt(d^2 / 5)`; about 1 for a typical shape.
    pub fn distance(&self, shape: &Shape) -> f64 {
        let d: Shape = std::array::from_fn(|k| shape[k] - self.mean[k]);
        let mut sum = 0.0;
        for a in 0..FEATURES {
            for b in 0..FEATURES {
                sum += d[a] * self.precision[a][b] * d[b];
            }
        }
        (sum.max(0.0) / FEATURES as f64).sqrt()
    }
}

/// Gauss-Jordan with pivoting; `None` for a singular matrix.
fn invert(mut m: [[f64; FEATURES]; FEATURES]) -> Option<[[f64; FEATURES]; FEATURES]> {
    let mut inverse = [[0.0; FEATURES]; FEATURES];
    for (i, row) in inverse.iter_mut().enumerate() {
        row[i] = 1.0;
    }
    for c in 0..FEATURES {
        let pivot = (c..FEATURES).max_by(|&a, &b| m[a][c].abs().total_cmp(&m[b][c].abs()))?;
        if m[pivot][c].abs() < 1e-15 {
            return None;
        }
        m.swap(c, pivot);
        inverse.swap(c, pivot);
        let d = m[c][c];
        for k in 0..FEATURES {
            m[c][k] /= d;
            inverse[c][k] /= d;
        }
        for r in (0..FEATURES).filter(|&r| r != c) {
            let f = m[r][c];
            for k in 0..FEATURES {
                m[r][k] -= f * m[c][k];
                inverse[r][k] -= f * inverse[c][k];
            }
        }
    }
    Some(inverse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disc(cx: f64, cy: f64, rx: f64, ry: f64) -> Vec<bool> {
        (0..100 * 80).map(|i| (((i % 100) as f64 - cx) / rx).hypot(((i / 100) as f64 - cy) / ry) < 1.0).collect()
    }
    const FRAME: LegFrame = LegFrame { bounds: [0, 0, 100, 80], flip: [false, false], spacing: [1.0, 1.0] };

    #[test]
    fn features_of_a_disc_and_of_an_ellipse() {
        let s = shape(&disc(50.0, 40.0, 20.0, 20.0), 100, [0, 0], &FRAME).unwrap();
        assert!((s[0] - (std::f64::consts::PI * 400.0 / 8000.0).sqrt()).abs() < 0.005);
        assert!((s[1] - 0.5).abs() < 0.01 && (s[2] - 0.5).abs() < 0.01);
        assert!(s[3] < 0.1 && s[4] > 0.93);
        let e = shape(&disc(30.0, 40.0, 24.0, 12.0), 100, [0, 0], &FRAME).unwrap();
        assert!((e[3] - 0.75f64.sqrt()).abs() < 0.02, "{}", e[3]);
        let mirrored =
            shape(&disc(70.0, 40.0, 24.0, 12.0), 100, [0, 0], &LegFrame { flip: [true, false], ..FRAME }).unwrap();
        assert!(e.iter().zip(&mirrored).all(|(a, b)| (a - b).abs() < 0.011));
        assert_eq!(shape(&[false; 8000], 100, [0, 0], &FRAME), None);
    }

    #[test]
    fn a_shape_like_the_others_is_near_and_a_displaced_one_far() {
        let shapes: Vec<Shape> = (0..5)
            .filter_map(|i| shape(&disc(48.0 + i as f64, 40.0, 18.0 + i as f64 * 0.5, 17.0), 100, [0, 0], &FRAME))
            .collect();
        let statistics = ShapeStatistics::fit("VL", &shapes).unwrap();
        let far = shape(&disc(80.0, 20.0, 8.0, 17.0), 100, [0, 0], &FRAME).unwrap();
        assert!(statistics.distance(&shapes[2]) < 0.5);
        assert!(statistics.distance(&far) > 3.0, "{}", statistics.distance(&far));
        assert_eq!(ShapeStatistics::fit("VL", &[]), None);
    }

    #[test]
    fn inverse_times_matrix_is_identity() {
        let m: [[f64; FEATURES]; FEATURES] = std::array::from_fn(|i| {
            std::array::from_fn(|j| if i == j { 2.0 + i as f64 } else { 0.3 * (i + j) as f64 / 8.0 })
        });
        let inv = invert(m).unwrap();
        for (i, row) in m.iter().enumerate() {
            for j in 0..FEATURES {
                let v: f64 = row.iter().zip(&inv).map(|(a, r)| a * r[j]).sum();
                assert!((v - f64::from(u8::from(i == j))).abs() < 1e-9);
            }
        }
    }
}
