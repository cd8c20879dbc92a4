//! Test-time augmentation: the leg once more through crops that lie a little otherwise, their masks averaged with the first.

use super::crop::Crop;
use crate::image::Plane;

/// Another place of the crop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Move {
    /// Along the crop's own columns and rows, shares of its edge.
    shift: [f64; 2],
    /// Edge over the first crop's.
    zoom: f64,
}

/// Shifts and zooms within what training has seen.
pub(super) const MOVES: [Move; 4] = [
    Move { shift: [0.03, 0.02], zoom: 0.93 },
    Move { shift: [-0.03, -0.02], zoom: 1.08 },
    Move { shift: [-0.02, 0.03], zoom: 1.03 },
    Move { shift: [0.02, -0.03], zoom: 0.97 },
];

impl Move {
    /// The moved crop.
    pub fn crop(&self, crop: &Crop) -> Crop {
        crop.moved(self.shift[0], self.shift[1], self.zoom)
    }

    /// A coordinate of the first crop's unit square in the moved one's.
    fn there(&self, axis: usize, v: f64) -> f64 {
        (v - 0.5 - self.shift[axis]) / self.zoom + 0.5
    }

    /// A box of the first crop on the moved one, cut to it.
    pub fn corners(&self, b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| self.there(i % 2, f64::from(b[i])).clamp(0.0, 1.0) as f32)
    }

    /// Adds a mask of the moved crop to `sum` where it reaches, and counts it in `weight`; both lie on the first crop's grid.
    pub fn add(&self, mask: &Plane<f32>, sum: &mut Plane<f32>, weight: &mut [f32]) {
        let (w, h) = (sum.width, sum.height);
        for y in 0..h {
            let v = self.there(1, (y as f64 + 0.5) / h as f64) * mask.height as f64 - 0.5;
            for x in 0..w {
                let u = self.there(0, (x as f64 + 0.5) / w as f64) * mask.width as f64 - 0.5;
                if let Some(value) = bilinear(mask, u, v) {
                    sum.data[y * w + x] += value;
                    weight[y * w + x] += 1.0;
                }
            }
        }
    }
}

/// The value between pixel centres; none outside them by more than half a pixel.
fn bilinear(p: &Plane<f32>, x: f64, y: f64) -> Option<f32> {
    let inside = |v: f64, n: usize| v >= -0.5 && v <= n as f64 - 0.5;
    if !inside(x, p.width) || !inside(y, p.height) {
        return None;
    }
    let split = |v: f64, n: usize| {
        let v = v.clamp(0.0, (n - 1) as f64);
        let i = (v as usize).min(n.saturating_sub(2));
        (i, (i + 1).min(n - 1), (v - i as f64) as f32)
    };
    let ((x0, x1, fx), (y0, y1, fy)) = (split(x, p.width), split(y, p.height));
    let row = |y: usize| p.at(x0, y) * (1.0 - fx) + p.at(x1, y) * fx;
    Some(row(y0) * (1.0 - fy) + row(y1) * fy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_mask_comes_back_to_its_place() {
        // A ramp over the first crop, as each moved crop would show it.
        let n = 32;
        let ramp = |u: f64, v: f64| (3.0 * u - 2.0 * v) as f32;
        for m in MOVES {
            let mut moved = Plane::filled(n, n, 0.0f32);
            for (i, value) in moved.data.iter_mut().enumerate() {
                let at = |i: usize, axis: usize| ((i as f64 + 0.5) / n as f64 - 0.5) * m.zoom + m.shift[axis] + 0.5;
                *value = ramp(at(i % n, 0), at(i / n, 1));
            }
            let (mut sum, mut weight) = (Plane::filled(n, n, 0.0f32), vec![0.0; n * n]);
            m.add(&moved, &mut sum, &mut weight);
            let mut reached = 0;
            for i in (0..n * n).filter(|i| weight[*i] > 0.0) {
                let (u, v) = (((i % n) as f64 + 0.5) / n as f64, ((i / n) as f64 + 0.5) / n as f64);
                // Half a pixel at the rim is held, not continued.
                assert!((sum.data[i] - ramp(u, v)).abs() < 0.06, "{m:?} {i}: {} {}", sum.data[i], ramp(u, v));
                reached += 1;
            }
            assert!(reached > n * n * 8 / 10, "{m:?}: {reached}");
            let b = m.corners([0.4, 0.4, 0.6, 0.7]);
            assert!(
                (f64::from(b[2] - b[0]) * m.zoom - 0.2).abs() < 1e-6
                    && (f64::from(b[3] - b[1]) * m.zoom - 0.3).abs() < 1e-6
            );
            assert_eq!(m.corners([-9.0, -9.0, 9.0, 9.0]), [0.0, 0.0, 1.0, 1.0]);
        }
    }
}
