//! A labelled slice as the network sees it, and its random variations.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use crate::image::Plane;

/// Label of pixels of which nothing is known: they weigh nothing in any loss.
pub const IGNORE: u8 = 255;

/// One labelled slice through its leg crop.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Intensities 0..255, `[S, S]`.
    pub grey: Plane<f32>,
    /// Structure index + 1 of the task, 0 elsewhere, [`IGNORE`] where nothing is known, `[S, S]`.
    pub labels: Plane<u8>,
}

/// Strength of the random variations; standard deviations unless said otherwise. 0 switches one off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augmentation {
    /// Rotation, radians.
    pub rotate: f32,
    /// Logarithm of the scale.
    pub scale: f32,
    /// Shift, share of the crop's edge.
    pub shift: f32,
    /// Largest elastic displacement of a coarse grid, share of the crop's edge.
    pub elastic: f32,
    /// Logarithm of the exponent of the intensities.
    pub gamma: f32,
    /// Logarithm of a smooth multiplicative field.
    pub bias: f32,
    /// Largest noise, share of the full range.
    pub noise: f32,
    /// Probability of a low-resolution copy.
    pub blur: f32,
}

impl Default for Augmentation {
    fn default() -> Self {
        Augmentation {
            rotate: 0.35,
            scale: 0.20,
            shift: 0.06,
            elastic: 0.09,
            gamma: 0.5,
            bias: 0.4,
            noise: 0.08,
            blur: 0.3,
        }
    }
}

/// Knots of the elastic grid along an edge.
const ELASTIC: usize = 7;
/// Knots of the bias field along an edge.
const FIELD: usize = 4;

fn normal(rng: &mut ChaCha8Rng) -> f32 {
    StandardNormal.sample(rng)
}

/// A random variation of a slice. Image and labels move together; the same state of `rng` gives the same variation.
pub fn augment(sample: &Sample, a: &Augmentation, rng: &mut ChaCha8Rng) -> Sample {
    let size = sample.grey.width;
    let edge = size as f32;
    let angle = normal(rng) * a.rotate;
    let zoom = (normal(rng) * a.scale).exp();
    let shift = [normal(rng) * a.shift * edge, normal(rng) * a.shift * edge];
    let strength = rng.random::<f32>() * a.elastic * edge;
    let mut knots =
        || -> Vec<f32> { (0..ELASTIC * ELASTIC).map(|_| normal(rng).clamp(-2.0, 2.0) * strength).collect() };
    let (dx, dy) = (knots(), knots());
    let gamma = (normal(rng) * a.gamma).exp();
    let field: Vec<f32> = (0..FIELD * FIELD).map(|_| normal(rng) * a.bias).collect();
    let noise = rng.random::<f32>() * a.noise * 255.0;
    let blur = rng.random::<f32>() < a.blur;

    let source = if blur { low_resolution(&sample.grey) } else { sample.grey.clone() };
    let mut grey = Plane::filled(size, size, 0.0f32);
    let mut labels = Plane::filled(size, size, 0u8);
    let (sin, cos) = angle.sin_cos();
    let half = (edge - 1.0) / 2.0;
    for y in 0..size {
        for x in 0..size {
            let (u, v) = (x as f32 / (edge - 1.0), y as f32 / (edge - 1.0));
            let (cx, cy) = ((x as f32 - half) * zoom, (y as f32 - half) * zoom);
            let sx = cos * cx - sin * cy + half + shift[0] + knot(&dx, ELASTIC, u, v);
            let sy = sin * cx + cos * cy + half + shift[1] + knot(&dy, ELASTIC, u, v);
            let i = y * size + x;
            let value = bilinear(&source, sx, sy) / 255.0;
            let value = value.max(1e-4).powf(gamma) * knot(&field, FIELD, u, v).exp();
            grey.data[i] = value * 255.0;
            labels.data[i] = nearest(&sample.labels, sx, sy);
        }
    }
    for v in &mut grey.data {
        *v = (*v + normal(rng) * noise).clamp(0.0, 300.0);
    }
    Sample { grey, labels }
}

/// A smooth field from `n x n` knots at `u`, `v` in 0..1 (smoothstep between knots).
fn knot(values: &[f32], n: usize, u: f32, v: f32) -> f32 {
    let at = |t: f32| {
        let p = t * (n - 1) as f32;
        let i = (p as usize).min(n - 2);
        let f = p - i as f32;
        (i, f * f * (3.0 - 2.0 * f))
    };
    let ((i, fx), (j, fy)) = (at(u), at(v));
    let g = |i: usize, j: usize| values[j * n + i];
    let top = g(i, j) * (1.0 - fx) + g(i + 1, j) * fx;
    let bottom = g(i, j + 1) * (1.0 - fx) + g(i + 1, j + 1) * fx;
    top * (1.0 - fy) + bottom * fy
}

fn bilinear(p: &Plane<f32>, x: f32, y: f32) -> f32 {
    if x < -0.5 || y < -0.5 || x > p.width as f32 - 0.5 || y > p.height as f32 - 0.5 {
        return 0.0;
    }
    let x = x.clamp(0.0, (p.width - 1) as f32);
    let y = y.clamp(0.0, (p.height - 1) as f32);
    let (i, j) = (x as usize, y as usize);
    let (i1, j1) = ((i + 1).min(p.width - 1), (j + 1).min(p.height - 1));
    let (fx, fy) = (x - i as f32, y - j as f32);
    let top = p.at(i, j) * (1.0 - fx) + p.at(i1, j) * fx;
    let bottom = p.at(i, j1) * (1.0 - fx) + p.at(i1, j1) * fx;
    top * (1.0 - fy) + bottom * fy
}

fn nearest(p: &Plane<u8>, x: f32, y: f32) -> u8 {
    let (i, j) = (x.round(), y.round());
    if i < 0.0 || j < 0.0 || i >= p.width as f32 || j >= p.height as f32 { 0 } else { p.at(i as usize, j as usize) }
}

/// Every 2 x 2 block as its mean: half the resolution on the same grid.
fn low_resolution(p: &Plane<f32>) -> Plane<f32> {
    let mut out = p.clone();
    for y in (0..p.height - 1).step_by(2) {
        for x in (0..p.width - 1).step_by(2) {
            let mean = (p.at(x, y) + p.at(x + 1, y) + p.at(x, y + 1) + p.at(x + 1, y + 1)) / 4.0;
            for (i, j) in [(x, y), (x + 1, y), (x, y + 1), (x + 1, y + 1)] {
                out.data[j * p.width + i] = mean;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn square() -> Sample {
        let mut grey = Plane::filled(64, 64, 20.0);
        let mut labels = Plane::filled(64, 64, 0);
        for y in 20..44 {
            for x in 20..44 {
                grey.data[y * 64 + x] = 200.0;
                labels.data[y * 64 + x] = 1;
            }
        }
        Sample { grey, labels }
    }

    #[test]
    fn image_and_labels_move_together() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let a = Augmentation { gamma: 0.0, bias: 0.0, noise: 0.0, blur: 0.0, ..Augmentation::default() };
        for _ in 0..20 {
            let s = augment(&square(), &a, &mut rng);
            let agree = s.grey.data.iter().zip(&s.labels.data).filter(|(g, l)| (**g > 110.0) == (**l == 1)).count();
            assert!(agree >= 64 * 64 - 60, "{agree}");
            assert!(s.labels.data.contains(&1));
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_variation_and_another_does_not() {
        let make = |seed| augment(&square(), &Augmentation::default(), &mut ChaCha8Rng::seed_from_u64(seed));
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
    }

    #[test]
    fn no_strength_changes_nothing() {
        let zero = Augmentation {
            rotate: 0.0,
            scale: 0.0,
            shift: 0.0,
            elastic: 0.0,
            gamma: 0.0,
            bias: 0.0,
            noise: 0.0,
            blur: 0.0,
        };
        let s = augment(&square(), &zero, &mut ChaCha8Rng::seed_from_u64(1));
        assert_eq!(s.labels, square().labels);
        assert!(s.grey.data.iter().zip(&square().grey.data).all(|(a, b)| (a - b).abs() < 1e-2));
    }
}
