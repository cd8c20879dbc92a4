//! Smooth variation: displacing waves, value noise, blur, normal deviates.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

/// A smooth random displacement: sines of the position.
#[derive(Clone)]
pub(super) struct Wave {
    amplitude: f64,
    k: [f64; 3],
    phase: f64,
}

impl Wave {
    pub(super) fn draw(rng: &mut ChaCha8Rng, amplitude: f64, wavelength: [f64; 2]) -> Self {
        let angle = rng.random_range(0.0..std::f64::consts::TAU);
        let k = std::f64::consts::TAU / rng.random_range(wavelength[0]..wavelength[1]);
        Wave {
            amplitude: amplitude * rng.random_range(0.5..1.0),
            k: [k * angle.cos(), k * angle.sin(), std::f64::consts::TAU / rng.random_range(140.0..320.0)],
            phase: rng.random_range(0.0..std::f64::consts::TAU),
        }
    }
    fn at(&self, p: [f64; 3]) -> f64 {
        self.amplitude * (self.k[0] * p[0] + self.k[1] * p[1] + self.k[2] * p[2] + self.phase).sin()
    }
}

pub(super) fn waves(list: &[Wave], p: [f64; 3]) -> f64 {
    list.iter().map(|w| w.at(p)).sum()
}

pub(super) fn normal(rng: &mut ChaCha8Rng, sd: f64) -> f64 {
    Normal::new(0.0, sd).map_or(0.0, |n| n.sample(rng))
}

/// Smooth value noise from -1 to 1 with unit cells.
pub(super) fn noise(seed: u64, p: [f64; 3]) -> f64 {
    let f = p.map(f64::floor);
    let u = [0, 1, 2].map(|k| {
        let t = p[k] - f[k];
        t * t * (3.0 - 2.0 * t)
    });
    let mut sum = 0.0;
    for corner in 0..8u32 {
        let o = [0, 1, 2].map(|k| f64::from(corner >> k & 1));
        let weight: f64 = (0..3).map(|k| if o[k] > 0.0 { u[k] } else { 1.0 - u[k] }).product();
        let mut h = seed;
        for k in 0..3 {
            h = (h ^ (f[k] + o[k]) as i64 as u64).wrapping_mul(0xff51_afd7_ed55_8ccd);
            h ^= h >> 32;
        }
        sum += weight * ((h >> 11) as f64 / (1u64 << 52) as f64 - 1.0);
    }
    sum
}

/// Gaussian blur, `sigma` in pixels.
pub(super) fn blur(plane: &[f64], w: usize, h: usize, sigma: f64) -> Vec<f64> {
    let radius = (3.0 * sigma).ceil() as i64;
    let mut kernel: Vec<f64> = (-radius..=radius).map(|i| (-(i * i) as f64 / (2.0 * sigma * sigma)).exp()).collect();
    let total: f64 = kernel.iter().sum();
    kernel.iter_mut().for_each(|k| *k /= total);
    let pass = |from: &[f64], dx: i64, dy: i64| {
        (0..w * h)
            .map(|i| {
                let (x, y) = ((i % w) as i64, (i / w) as i64);
                kernel
                    .iter()
                    .enumerate()
                    .map(|(k, weight)| {
                        let o = k as i64 - radius;
                        let a = (x + o * dx).clamp(0, w as i64 - 1) as usize;
                        let b = (y + o * dy).clamp(0, h as i64 - 1) as usize;
                        weight * from[b * w + a]
                    })
                    .sum()
            })
            .collect::<Vec<f64>>()
    };
    pass(&pass(plane, 1, 0), 0, 1)
}
