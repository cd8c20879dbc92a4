//! One leg: what it is made of at each point.

use super::anatomy::{Ball, CHAINS, FEMUR, REACH, SOFT, stations};
use super::noise::{Wave, waves};
use crate::terms::{STRUCTURE_KEYS, Side};

/// Middle of the muscle compartment in a leg's own frame.
const MIDDLE: [f64; 2] = [14.0, 22.0];
/// Directions in which the compartment's outline is kept.
const DIRECTIONS: usize = 96;
/// Length of thigh between the first and the last station, millimetres.
const STATIONS_MM: f64 = 220.0;

/// One leg of a subject.
pub(super) struct Limb {
    pub(super) side: Side,
    /// Patient x and y of the femur at the volume's middle, and how far they move per millimetre of z.
    pub(super) axis: [f64; 4],
    pub(super) rotation: f64,
    pub(super) scale: f64,
    /// Chain, balls at the three stations (own radii and places).
    pub(super) balls: Vec<(usize, [Ball; 3])>,
    pub(super) femur: f64,
    pub(super) warp: [Vec<Wave>; 2],
    pub(super) fat: f64,
    pub(super) fat_waves: Vec<Wave>,
    pub(super) fat_back: f64,
    /// Station (0 distal, 1 proximal) at z = 0 of the volume.
    pub(super) station: f64,
    /// Brightness of each muscle relative to the mean.
    pub(super) tone: Vec<f64>,
    pub(super) fascia: f64,
}

/// What a point is made of.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Tissue {
    Air,
    Skin,
    Fat,
    Fascia,
    Muscle(usize),
    Cortex,
    Marrow,
    Artery,
    Vein,
}

impl Limb {
    fn t(&self, z: f64) -> f64 {
        (self.station + 0.16 + z / STATIONS_MM).clamp(0.0, 1.0)
    }

    /// Tapering towards the knee.
    fn size(&self, z: f64) -> f64 {
        self.scale * (0.94 + 0.12 * self.t(z))
    }

    /// The leg at a height, in its own frame (millimetres of an unscaled right leg).
    pub(super) fn section(&self, z: f64) -> Section {
        let t = self.t(z);
        let balls: Vec<(usize, Ball)> = self
            .balls
            .iter()
            .map(|(c, b)| (*c, [0, 1, 2].map(|k| stations([b[0][k], b[1][k], b[2][k]], t))))
            // A ball that has shrunk away does not count.
            .filter(|(_, b)| b[2] > 1.0)
            .collect();
        let direction = |i: usize| (i as f64 / DIRECTIONS as f64 * std::f64::consts::TAU).sin_cos();
        // Support of the balls' convex hull, and how far the balls themselves reach along a ray.
        let (mut support, mut reach) = ([0f64; DIRECTIONS], [0f64; DIRECTIONS]);
        for i in 0..DIRECTIONS {
            let (sin, cos) = direction(i);
            for (_, [x, y, r]) in &balls {
                let (x, y) = (x - MIDDLE[0], y - MIDDLE[1]);
                let (along, across) = (x * cos + y * sin, y * cos - x * sin);
                support[i] = support[i].max(along + r);
                if across.abs() < *r {
                    reach[i] = reach[i].max(along + (r * r - across * across).sqrt());
                }
            }
        }
        let mut hull = [f64::INFINITY; DIRECTIONS];
        for (i, radius) in hull.iter_mut().enumerate() {
            for (j, h) in support.iter().enumerate() {
                let cos = direction((i + DIRECTIONS - j) % DIRECTIONS).1;
                if cos > 0.05 {
                    *radius = radius.min(h / cos);
                }
            }
        }
        let compartment: [f64; DIRECTIONS] = std::array::from_fn(|i| 0.3 * reach[i] + 0.7 * hull[i]);
        Section { balls, compartment: smooth(&compartment, 2), hull: smooth(&hull, 6), turn: self.rotation.sin_cos() }
    }

    pub(super) fn to_patient(&self, own: [f64; 2], z: f64) -> [f64; 3] {
        let s = self.size(z);
        let (sin, cos) = self.rotation.sin_cos();
        let mirror = if self.side == Side::Right { 1.0 } else { -1.0 };
        let (x, y) = (s * (cos * own[0] - sin * own[1]), s * (sin * own[0] + cos * own[1]));
        [self.axis[0] + self.axis[2] * z + mirror * x, self.axis[1] + self.axis[3] * z + y, z]
    }

    fn to_own(&self, section: &Section, p: [f64; 3]) -> [f64; 2] {
        let s = self.size(p[2]);
        let (sin, cos) = section.turn;
        let mirror = if self.side == Side::Right { 1.0 } else { -1.0 };
        let x = mirror * (p[0] - self.axis[0] - self.axis[2] * p[2]) / s;
        let y = (p[1] - self.axis[1] - self.axis[3] * p[2]) / s;
        [cos * x + sin * y, -sin * x + cos * y]
    }

    pub(super) fn tissue(&self, section: &Section, p: [f64; 3]) -> Tissue {
        let own = self.to_own(section, p);
        // Clear of every muscle and of the thickest fat.
        if length(own[0] - 15.0, own[1] - 20.0) > 105.0 + 1.8 * self.fat / self.scale {
            return Tissue::Air;
        }
        let near = length(own[0], own[1]);
        let femur = self.femur * stations(FEMUR, self.t(p[2]));
        if near < femur {
            return if near < 0.6 * femur { Tissue::Marrow } else { Tissue::Cortex };
        }
        // The warp fades out towards the femur, which stays round.
        let fade = ((near - femur) / 15.0).clamp(0.0, 1.0);
        let q = [0, 1].map(|a| own[a] + fade * waves(&self.warp[a], [own[0], own[1], p[2]]));
        let away = |[x, y, r]: Ball| length(q[0] - x, q[1] - y) - r;
        let nearest = section.balls.iter().map(|(_, b)| away(*b)).fold(f64::INFINITY, f64::min);
        let mut chain = [0f64; CHAINS.len()];
        for &(c, ball) in &section.balls {
            let d = away(ball);
            // Farther balls weigh nothing here.
            if d < nearest + 6.0 * SOFT {
                chain[c] += ((nearest - d) / SOFT).exp();
            }
        }
        let (mut best, mut second) = ((f64::INFINITY, 0), f64::INFINITY);
        for (c, &sum) in chain.iter().enumerate() {
            let d = if sum > 0.0 { nearest - SOFT * sum.ln() } else { f64::INFINITY };
            if d < best.0 {
                second = best.0;
                best = (d, c);
            } else if d < second {
                second = d;
            }
        }
        // The neurovascular bundle between vastus medialis, sartorius and the adductors.
        for (x, y, r, vessel) in [(53.0, 16.0, 3.4, Tissue::Artery), (58.0, 21.0, 3.8, Tissue::Vein)] {
            let d = length(q[0] - x, q[1] - y);
            if d < r {
                return vessel;
            }
            if d < r + 2.0 {
                return Tissue::Fat;
            }
        }
        let muscle = if second - best.0 < self.fascia { Tissue::Fascia } else { Tissue::Muscle(best.1) };
        // Outside the compartment a muscle ends nearer to its balls.
        if best.0 < 0.5 {
            return muscle;
        }
        let from_middle = length(q[0] - MIDDLE[0], q[1] - MIDDLE[1]);
        let angle = (q[1] - MIDDLE[1]).atan2(q[0] - MIDDLE[0]);
        if best.0 < REACH && from_middle < around(&section.compartment, angle) {
            return muscle;
        }
        // Thicker behind and to the side than in front; millimetres of the unscaled leg.
        let back = ((own[1] - own[0]) / 90.0).clamp(-0.5, 1.0);
        let fat = self.fat / self.scale * (1.0 + self.fat_back * back + waves(&self.fat_waves, [own[0], own[1], p[2]]));
        // The skin never cuts a muscle.
        match (from_middle - around(&section.hull, angle) - fat.max(2.5)).min(best.0 - 3.5) {
            d if d < -1.6 => Tissue::Fat,
            d if d < 0.0 => Tissue::Skin,
            _ => Tissue::Air,
        }
    }
}

/// One leg at one height: its balls, and round the middle the radius of the muscle compartment and of its hull.
pub(super) struct Section {
    balls: Vec<(usize, Ball)>,
    compartment: [f64; DIRECTIONS],
    hull: [f64; DIRECTIONS],
    /// Sine and cosine of the leg's rotation.
    turn: (f64, f64),
}

/// Plain: `hypot` guards against overflow that millimetres never reach, which took an eighth of a phantom's time.
pub(super) fn length(x: f64, y: f64) -> f64 {
    (x * x + y * y).sqrt()
}

/// A periodic table smoothed over `n` neighbours on both sides.
fn smooth(table: &[f64; DIRECTIONS], n: usize) -> [f64; DIRECTIONS] {
    let mut out = [0f64; DIRECTIONS];
    for (i, v) in out.iter_mut().enumerate() {
        let around = (0..=2 * n).map(|k| table[(i + DIRECTIONS + k - n) % DIRECTIONS]);
        *v = around.sum::<f64>() / (2 * n + 1) as f64;
    }
    out
}

/// A periodic table at an angle in radians.
fn around(table: &[f64; DIRECTIONS], angle: f64) -> f64 {
    let t = (angle / std::f64::consts::TAU).rem_euclid(1.0) * DIRECTIONS as f64;
    let (i, w) = (t.floor() as usize, t - t.floor());
    table[i % DIRECTIONS] * (1.0 - w) + table[(i + 1) % DIRECTIONS] * w
}

pub(super) fn label(tissue: Tissue) -> u8 {
    let key = match tissue {
        Tissue::Muscle(c) => CHAINS[c].key,
        Tissue::Cortex | Tissue::Marrow => "FEM",
        _ => return 0,
    };
    STRUCTURE_KEYS.iter().position(|k| *k == key).map_or(0, |i| i as u8 + 1)
}
