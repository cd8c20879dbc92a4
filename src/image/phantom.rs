//! A plausible axial T1-weighted MR phantom of one or two thighs with known truth, made from a seed.
//!
//! Muscles are chains of soft balls in an anatomical arrangement that changes along the limb; a voxel belongs to the
//! nearest chain, so neighbours share a border and never overlap. Size, place, shape, contrast, fat, bias field, blur
//! and noise vary with the seed. It shows what a thigh looks like, not what any person's does.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use rayon::prelude::*;

use super::{Geometry, LabelMap, Volume};
use crate::terms::{STRUCTURE_KEYS, Side, Task};

/// One soft ball: offset from the femur's axis to medial and to the back, and radius; millimetres.
type Ball = [f64; 3];

/// A muscle as a chain of balls at three stations: distal, middle and proximal thigh.
struct Chain {
    key: &'static str,
    balls: &'static [[Ball; 3]],
}

/// A right leg: x to medial, y to the back, measured from mid-femur in pictures of grown-up thighs.
const CHAINS: [Chain; 10] = [
    Chain {
        key: "VL",
        balls: &[
            [[-20.0, -32.0, 6.0], [-18.0, -38.0, 9.0], [-14.0, -40.0, 11.0]],
            [[-38.0, -20.0, 10.0], [-39.0, -23.0, 13.0], [-39.0, -25.0, 14.0]],
            [[-46.0, 0.0, 12.0], [-51.0, -3.0, 15.0], [-53.0, -5.0, 16.0]],
            [[-43.0, 19.0, 9.0], [-51.0, 17.0, 13.0], [-53.0, 15.0, 14.0]],
            [[-33.0, 32.0, 4.0], [-41.0, 33.0, 10.0], [-43.0, 31.0, 11.0]],
        ],
    },
    Chain {
        key: "VI",
        balls: &[
            [[-22.0, 16.0, 6.0], [-24.0, 16.0, 8.0], [-24.0, 16.0, 8.0]],
            [[-28.0, -2.0, 9.0], [-28.0, -3.0, 11.0], [-28.0, -3.0, 11.0]],
            [[-18.0, -21.0, 9.0], [-18.0, -20.0, 11.0], [-18.0, -20.0, 11.0]],
            [[2.0, -27.0, 9.0], [2.0, -27.0, 11.0], [3.0, -27.0, 12.0]],
            [[16.0, -20.0, 6.0], [18.0, -19.0, 10.0], [20.0, -20.0, 11.0]],
            [[20.0, -8.0, 3.0], [23.0, -3.0, 7.0], [24.0, -4.0, 9.0]],
        ],
    },
    Chain {
        key: "VM",
        balls: &[
            [[47.0, -6.0, 26.0], [47.0, -3.0, 19.0], [42.0, -4.0, 10.0]],
            [[30.0, -26.0, 15.0], [35.0, -21.0, 11.0], [35.0, -16.0, 6.0]],
            [[33.0, 12.0, 11.0], [32.0, 10.0, 9.0], [30.0, 9.0, 5.0]],
        ],
    },
    Chain {
        key: "RF",
        balls: &[
            [[4.0, -45.0, 5.0], [8.0, -45.0, 9.0], [10.0, -48.0, 11.0]],
            [[12.0, -44.0, 5.0], [22.0, -42.0, 9.0], [29.0, -44.0, 12.0]],
        ],
    },
    Chain {
        key: "SAR",
        balls: &[
            [[77.0, 22.0, 8.0], [75.0, -3.0, 8.0], [63.0, -20.0, 9.0]],
            [[74.0, 33.0, 8.0], [80.0, 9.0, 8.0], [71.0, -5.0, 9.0]],
        ],
    },
    Chain {
        key: "GRA",
        balls: &[
            [[83.0, 48.0, 8.0], [89.0, 32.0, 7.0], [91.0, 22.0, 7.0]],
            [[82.0, 54.0, 7.0], [90.0, 42.0, 7.0], [92.0, 38.0, 8.0]],
        ],
    },
    Chain {
        key: "ADD",
        balls: &[
            [[22.0, 34.0, 2.0], [27.0, 31.0, 9.0], [24.0, 30.0, 12.0]],
            [[38.0, 39.0, 5.0], [46.0, 36.0, 13.0], [46.0, 36.0, 18.0]],
            [[52.0, 43.0, 3.0], [66.0, 39.0, 10.0], [70.0, 34.0, 15.0]],
        ],
    },
    Chain {
        key: "BF",
        balls: &[
            [[-17.0, 40.0, 11.0], [-14.0, 39.0, 9.0], [-20.0, 40.0, 5.0]],
            [[-13.0, 57.0, 11.0], [-16.0, 57.0, 11.0], [-18.0, 57.0, 9.0]],
            [[-7.0, 73.0, 10.0], [-12.0, 74.0, 11.0], [-14.0, 74.0, 11.0]],
        ],
    },
    Chain { key: "ST", balls: &[[[17.0, 82.0, 8.0], [14.0, 80.0, 11.0], [18.0, 79.0, 13.0]]] },
    Chain {
        key: "SM",
        balls: &[
            [[38.0, 72.0, 13.0], [40.0, 73.0, 11.0], [46.0, 76.0, 7.0]],
            [[57.0, 69.0, 14.0], [58.0, 72.0, 11.0], [62.0, 73.0, 7.0]],
        ],
    },
];
/// Outer radius of the femur at the three stations, millimetres.
const FEMUR: [f64; 3] = [15.5, 13.5, 13.5];
/// Softness of the union of one muscle's balls, millimetres.
const SOFT: f64 = 3.5;
/// How far a muscle reaches beyond its balls, inside the compartment, before fat begins; millimetres.
const REACH: f64 = 7.5;
/// Middle of the muscle compartment in a leg's own frame.
const MIDDLE: [f64; 2] = [14.0, 22.0];
/// Directions in which the compartment's outline is kept.
const DIRECTIONS: usize = 96;
/// Length of thigh between the first and the last station, millimetres.
const STATIONS_MM: f64 = 220.0;

/// Which legs a phantom has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhantomLegs {
    /// Both, side by side.
    Both,
    /// One.
    One(Side),
}

/// What phantom to make.
#[derive(Clone, Debug, PartialEq)]
pub struct PhantomOptions {
    /// Decides everything that varies between subjects.
    pub seed: u64,
    /// Both legs or one.
    pub legs: PhantomLegs,
    /// Columns, rows, slices.
    pub dims: [usize; 3],
    /// Column, row and slice spacing, millimetres.
    pub spacing: [f64; 3],
}

impl Default for PhantomOptions {
    /// The geometry of the Osteoarthritis Initiative's thigh series: 512 x 256 pixels of 0.977 mm, 15 slices of 5 mm.
    fn default() -> Self {
        PhantomOptions {
            seed: 0,
            legs: PhantomLegs::Both,
            dims: [512, 256, 15],
            spacing: [0.976_562_5, 0.976_562_5, 5.0],
        }
    }
}

/// A phantom: the image and its truth.
#[derive(Clone, Debug)]
pub struct Phantom {
    /// The image, as whole numbers from 0 to 4095.
    pub volume: Volume,
    /// The truth: 1 + the structure's place in [`STRUCTURE_KEYS`], on either leg; merged groups (`VAS`) do not occur.
    pub structures: LabelMap,
    /// The leg of each voxel inside the skin: 1 right, 2 left.
    pub legs: LabelMap,
    /// The seed it was made from.
    pub seed: u64,
}

impl Phantom {
    /// Makes a phantom: the same options, the same phantom.
    pub fn new(options: &PhantomOptions) -> Self {
        Subject::draw(options).render(options)
    }

    /// The truth of a task on one side: structure `k` of the task is `k + 1`. A merged group takes its parts; keys that
    /// the phantom does not know stay empty.
    pub fn truth(&self, task: &Task, side: Side) -> LabelMap {
        let mut of = [0u8; STRUCTURE_KEYS.len() + 1];
        // Groups first, so that a part that the task names by itself wins.
        for group in [true, false] {
            for (k, s) in task.structures.iter().enumerate() {
                let parts: &[&str] = if s.key == "VAS" { &["VL", "VM", "VI"] } else { &[s.key.as_str()] };
                if (s.key == "VAS") != group {
                    continue;
                }
                for part in parts {
                    if let Some(i) = STRUCTURE_KEYS.iter().position(|key| key == part) {
                        of[i + 1] = (k + 1) as u8;
                    }
                }
            }
        }
        let leg = if side == Side::Right { 1 } else { 2 };
        let data = self
            .structures
            .data
            .iter()
            .zip(&self.legs.data)
            .map(|(&s, &l)| if l == leg { of[s as usize] } else { 0 })
            .collect();
        LabelMap { geometry: self.structures.geometry.clone(), data }
    }
}

/// A smooth random displacement: sines of the position.
#[derive(Clone)]
struct Wave {
    amplitude: f64,
    k: [f64; 3],
    phase: f64,
}

impl Wave {
    fn draw(rng: &mut ChaCha8Rng, amplitude: f64, wavelength: [f64; 2]) -> Self {
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

fn waves(list: &[Wave], p: [f64; 3]) -> f64 {
    list.iter().map(|w| w.at(p)).sum()
}

/// One leg of a subject.
struct Limb {
    side: Side,
    /// Patient x and y of the femur at the volume's middle, and how far they move per millimetre of z.
    axis: [f64; 4],
    rotation: f64,
    scale: f64,
    /// Chain, balls at the three stations (own radii and places).
    balls: Vec<(usize, [Ball; 3])>,
    femur: f64,
    warp: [Vec<Wave>; 2],
    fat: f64,
    fat_waves: Vec<Wave>,
    fat_back: f64,
    /// Station (0 distal, 1 proximal) at z = 0 of the volume.
    station: f64,
    /// Brightness of each muscle relative to the mean.
    tone: Vec<f64>,
    fascia: f64,
}

/// Everything that a seed decides.
struct Subject {
    limbs: Vec<Limb>,
    muscle: f64,
    fat: f64,
    infiltration: f64,
    bias: Vec<Wave>,
    shade: [f64; 2],
    blur: f64,
    noise: f64,
    texture: u64,
    gain: f64,
}

/// What a point is made of.
#[derive(Clone, Copy, PartialEq)]
enum Tissue {
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

impl Subject {
    fn draw(options: &PhantomOptions) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        let rng = &mut rng;
        let spread = |rng: &mut ChaCha8Rng, sd: f64| normal(rng, sd).clamp(-2.0 * sd, 2.0 * sd);
        let scale = rng.random_range(0.78..1.04);
        let fat = rng.random_range(5.0..20.0) * scale;
        let station = rng.random_range(0.18..0.46);
        let chains: Vec<(usize, f64, [f64; 2])> =
            (0..CHAINS.len()).map(|c| (c, 1.0 + spread(rng, 0.09), [spread(rng, 2.0), spread(rng, 2.0)])).collect();
        let femur = 1.0 + spread(rng, 0.08);
        let back = rng.random_range(0.0..0.8);
        let sides: &[Side] = match options.legs {
            PhantomLegs::Both => &[Side::Right, Side::Left],
            PhantomLegs::One(Side::Right) => &[Side::Right],
            PhantomLegs::One(Side::Left) => &[Side::Left],
        };
        let gap = rng.random_range(-2.0..16.0);
        let rise = rng.random_range(-8.0..8.0);
        let limbs = sides
            .iter()
            .map(|&side| {
                let own = scale * (1.0 + spread(rng, 0.02));
                let sign = if side == Side::Right { -1.0 } else { 1.0 };
                Limb {
                    side,
                    axis: [
                        sign * (104.0 * own + fat + gap / 2.0 + rng.random_range(0.0..6.0)),
                        -20.0 * own + rise + spread(rng, 4.0),
                        sign * rng.random_range(-0.02..0.1),
                        rng.random_range(-0.06..0.06),
                    ],
                    rotation: spread(rng, 0.12),
                    scale: own,
                    balls: chains
                        .iter()
                        .flat_map(|&(c, size, shift)| CHAINS[c].balls.iter().map(move |b| (c, size, shift, b)))
                        .map(|(c, size, shift, b)| {
                            let (dx, dy) = (spread(rng, 1.2) + shift[0], spread(rng, 1.2) + shift[1]);
                            let r = size * (1.0 + spread(rng, 0.05));
                            (c, b.map(|b| [b[0] + dx, b[1] + dy, b[2] * r]))
                        })
                        .collect(),
                    femur,
                    warp: [0, 1].map(|_| (0..3).map(|_| Wave::draw(rng, 2.2, [45.0, 110.0])).collect()),
                    fat: fat * (1.0 + spread(rng, 0.06)),
                    fat_waves: (0..2).map(|_| Wave::draw(rng, 0.15, [90.0, 180.0])).collect(),
                    fat_back: back,
                    station,
                    tone: (0..CHAINS.len()).map(|_| 1.0 + spread(rng, 0.05)).collect(),
                    fascia: rng.random_range(0.5..1.1),
                }
            })
            .collect();
        Subject {
            limbs,
            muscle: rng.random_range(0.23..0.33),
            fat: rng.random_range(0.92..1.05),
            infiltration: rng.random_range(0.01..0.06),
            bias: (0..3).map(|_| Wave::draw(rng, 0.14, [240.0, 600.0])).collect(),
            shade: [rng.random_range(0.0..0.45), rng.random_range(25.0..45.0)],
            blur: rng.random_range(0.35..0.75),
            noise: rng.random_range(0.010..0.024),
            texture: rng.random(),
            gain: rng.random_range(1500.0..2300.0),
        }
    }

    fn render(&self, options: &PhantomOptions) -> Phantom {
        let mut geometry = Geometry::axial(options.dims, options.spacing);
        let middle = |a: usize| (options.dims[a] as f64 - 1.0) / 2.0 * options.spacing[a];
        // A single leg stands in the middle of a field of view of its own.
        let x = match (options.legs, self.limbs.as_slice()) {
            (PhantomLegs::One(_), [limb]) => {
                limb.axis[0] - 20.0 * limb.scale * if limb.side == Side::Right { -1.0 } else { 1.0 }
            }
            _ => 0.0,
        };
        geometry.origin = [x - middle(0), -middle(1), -middle(2)];
        let plane = geometry.plane();
        let slices: Vec<(Vec<f32>, Vec<u8>, Vec<u8>)> =
            (0..options.dims[2]).into_par_iter().map(|z| self.slice(&geometry, z, options.seed)).collect();
        let mut volume = Volume { data: Vec::with_capacity(geometry.voxels()), geometry: geometry.clone() };
        let (mut structures, mut legs) = (LabelMap::empty(geometry.clone()), LabelMap::empty(geometry));
        for (z, (image, s, l)) in slices.into_iter().enumerate() {
            volume.data.extend(image);
            structures.data[z * plane..(z + 1) * plane].copy_from_slice(&s);
            legs.data[z * plane..(z + 1) * plane].copy_from_slice(&l);
        }
        Phantom { volume, structures, legs, seed: options.seed }
    }

    fn slice(&self, g: &Geometry, z: usize, seed: u64) -> (Vec<f32>, Vec<u8>, Vec<u8>) {
        let [w, h, _] = g.dims;
        let (mut structures, mut legs) = (vec![0u8; w * h], vec![0u8; w * h]);
        let mut signal = vec![0f64; w * h];
        let sections: Vec<Section> = self.limbs.iter().map(|l| l.section(centre_z(g, z))).collect();
        // Sub-samples spread over the pixel and the slice's thickness: partial volume.
        let spread = [(0.0, 0.0, 0.0), (-0.3, 0.15, -0.3), (0.15, 0.3, 0.3), (0.3, -0.15, -0.15), (-0.15, -0.3, 0.15)];
        for y in 0..h {
            for x in 0..w {
                let centre = g.to_patient([x as f64, y as f64, z as f64]);
                let Some(n) = self.nearest(centre) else { continue };
                let limb = &self.limbs[n];
                let i = y * w + x;
                let mut sum = 0.0;
                for (k, (dx, dy, dz)) in spread.iter().enumerate() {
                    let p = g.to_patient([x as f64 + dx, y as f64 + dy, z as f64 + dz]);
                    let tissue = limb.tissue(&sections[n], p);
                    if k == 0 {
                        structures[i] = label(tissue);
                        legs[i] = if tissue == Tissue::Air {
                            0
                        } else if limb.side == Side::Right {
                            1
                        } else {
                            2
                        };
                    }
                    sum += self.brightness(tissue, limb, p);
                }
                signal[i] = sum / spread.len() as f64 * self.shading(limb, centre);
            }
        }
        let signal = blur(&signal, w, h, self.blur);
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ (0x9e37_79b9_7f4a_7c15u64.wrapping_mul(z as u64 + 1)));
        // Pulsating vessels leave ghosts along the phase-encoding direction (rows).
        let ghosts: Vec<f64> =
            self.limbs.iter().map(|l| g.to_index(l.to_patient([54.0, 17.0], centre_z(g, z)))[0]).collect();
        let sd: Vec<f64> = (0..w)
            .map(|x| {
                self.noise * (1.0 + ghosts.iter().map(|c| 1.5 * (-(x as f64 - c).powi(2) / 18.0).exp()).sum::<f64>())
            })
            .collect();
        let image = (0..w * h)
            .map(|i| {
                let sd = sd[i % w];
                let (re, im) = (signal[i] + normal(&mut rng, sd), normal(&mut rng, sd));
                (re.hypot(im) * self.gain).round().clamp(0.0, 4095.0) as f32
            })
            .collect();
        (image, structures, legs)
    }

    /// The limb whose axis is nearest: legs that touch share the plane between them.
    fn nearest(&self, p: [f64; 3]) -> Option<usize> {
        (0..self.limbs.len()).min_by(|&a, &b| {
            let d = |n: usize| {
                let l = &self.limbs[n];
                let c = l.to_patient([30.0, 20.0], p[2]);
                (p[0] - c[0]).hypot(p[1] - c[1])
            };
            d(a).total_cmp(&d(b))
        })
    }

    fn brightness(&self, tissue: Tissue, limb: &Limb, p: [f64; 3]) -> f64 {
        let fine = noise(self.texture, [p[0] / 2.2, p[1] / 2.2, p[2] / 15.0]);
        match tissue {
            Tissue::Air => 0.0,
            Tissue::Skin => 0.30,
            Tissue::Fat => {
                // Septa: thin dark lines through the fat.
                let septum = noise(self.texture ^ 1, [p[0] / 14.0, p[1] / 14.0, p[2] / 30.0]).abs();
                self.fat * (1.0 + 0.05 * fine) * if septum < 0.02 { 0.72 } else { 1.0 }
            }
            Tissue::Fascia => 0.62 * self.fat,
            Tissue::Muscle(c) => {
                let streak = noise(self.texture ^ (c as u64 + 2), [p[0] / 9.0, p[1] / 9.0, p[2] / 40.0]).abs();
                let patch = noise(self.texture ^ 99, [p[0] / 25.0, p[1] / 25.0, p[2] / 60.0]) * 0.5 + 0.5;
                let infiltrated = if streak < self.infiltration * 2.5 * patch * patch { 0.5 } else { 0.0 };
                let own = self.muscle * limb.tone[c] * (1.0 + 0.10 * fine);
                own + (self.fat - own) * infiltrated
            }
            Tissue::Cortex => 0.04,
            Tissue::Marrow => 0.97 * self.fat,
            Tissue::Artery => 0.12,
            Tissue::Vein => 0.5,
        }
    }

    /// The coil's slow shading, and the dark patch in front that high fields show.
    fn shading(&self, limb: &Limb, p: [f64; 3]) -> f64 {
        let c = limb.to_patient([35.0, -25.0], p[2]);
        let d = (p[0] - c[0]).hypot(p[1] - c[1]);
        waves(&self.bias, p).exp() * (1.0 - self.shade[0] * (-(d / self.shade[1]).powi(2)).exp())
    }
}

fn centre_z(g: &Geometry, z: usize) -> f64 {
    g.to_patient([0.0, 0.0, z as f64])[2]
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
    fn section(&self, z: f64) -> Section {
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
        Section { balls, compartment: smooth(&compartment, 2), hull: smooth(&hull, 6) }
    }

    fn to_patient(&self, own: [f64; 2], z: f64) -> [f64; 3] {
        let s = self.size(z);
        let (sin, cos) = self.rotation.sin_cos();
        let mirror = if self.side == Side::Right { 1.0 } else { -1.0 };
        let (x, y) = (s * (cos * own[0] - sin * own[1]), s * (sin * own[0] + cos * own[1]));
        [self.axis[0] + self.axis[2] * z + mirror * x, self.axis[1] + self.axis[3] * z + y, z]
    }

    fn to_own(&self, p: [f64; 3]) -> [f64; 2] {
        let s = self.size(p[2]);
        let (sin, cos) = self.rotation.sin_cos();
        let mirror = if self.side == Side::Right { 1.0 } else { -1.0 };
        let x = mirror * (p[0] - self.axis[0] - self.axis[2] * p[2]) / s;
        let y = (p[1] - self.axis[1] - self.axis[3] * p[2]) / s;
        [cos * x + sin * y, -sin * x + cos * y]
    }

    fn tissue(&self, section: &Section, p: [f64; 3]) -> Tissue {
        let own = self.to_own(p);
        // Clear of every muscle and of the thickest fat.
        if (own[0] - 15.0).hypot(own[1] - 20.0) > 105.0 + 1.8 * self.fat / self.scale {
            return Tissue::Air;
        }
        let near = own[0].hypot(own[1]);
        let femur = self.femur * stations(FEMUR, self.t(p[2]));
        if near < femur {
            return if near < 0.6 * femur { Tissue::Marrow } else { Tissue::Cortex };
        }
        // The warp fades out towards the femur, which stays round.
        let fade = ((near - femur) / 15.0).clamp(0.0, 1.0);
        let q = [0, 1].map(|a| own[a] + fade * waves(&self.warp[a], [own[0], own[1], p[2]]));
        let away = |[x, y, r]: Ball| ((q[0] - x) * (q[0] - x) + (q[1] - y) * (q[1] - y)).sqrt() - r;
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
            let d = (q[0] - x).hypot(q[1] - y);
            if d < r {
                return vessel;
            }
            if d < r + 2.0 {
                return Tissue::Fat;
            }
        }
        let from_middle = (q[0] - MIDDLE[0]).hypot(q[1] - MIDDLE[1]);
        let angle = (q[1] - MIDDLE[1]).atan2(q[0] - MIDDLE[0]);
        if best.0 < if from_middle < around(&section.compartment, angle) { REACH } else { 0.5 } {
            return if second - best.0 < self.fascia { Tissue::Fascia } else { Tissue::Muscle(best.1) };
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
struct Section {
    balls: Vec<(usize, Ball)>,
    compartment: [f64; DIRECTIONS],
    hull: [f64; DIRECTIONS],
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

fn label(tissue: Tissue) -> u8 {
    let key = match tissue {
        Tissue::Muscle(c) => CHAINS[c].key,
        Tissue::Cortex | Tissue::Marrow => "FEM",
        _ => return 0,
    };
    STRUCTURE_KEYS.iter().position(|k| *k == key).map_or(0, |i| i as u8 + 1)
}

/// Between the three stations, at 0, 0.5 and 1.
fn stations(v: [f64; 3], t: f64) -> f64 {
    if t < 0.5 { v[0] + (v[1] - v[0]) * 2.0 * t } else { v[1] + (v[2] - v[1]) * (2.0 * t - 1.0) }
}

fn normal(rng: &mut ChaCha8Rng, sd: f64) -> f64 {
    Normal::new(0.0, sd).map_or(0.0, |n| n.sample(rng))
}

/// Smooth value noise from -1 to 1 with unit cells.
fn noise(seed: u64, p: [f64; 3]) -> f64 {
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
fn blur(plane: &[f64], w: usize, h: usize, sigma: f64) -> Vec<f64> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terms::structure;

    fn small(seed: u64) -> PhantomOptions {
        PhantomOptions { seed, dims: [256, 128, 5], spacing: [1.953_125, 1.953_125, 15.0], ..Default::default() }
    }

    fn task(keys: &[&str]) -> Task {
        Task { name: "t".into(), structures: keys.iter().filter_map(|k| structure(k)).collect() }
    }

    #[test]
    fn the_seed_decides_everything() {
        let (a, b, c) = (Phantom::new(&small(7)), Phantom::new(&small(7)), Phantom::new(&small(8)));
        assert_eq!(a.volume.data, b.volume.data);
        assert_eq!(a.structures, b.structures);
        assert_ne!(a.structures, c.structures);
        assert!(a.volume.data.iter().all(|v| v.fract() == 0.0 && (0.0..=4095.0).contains(v)));
    }

    #[test]
    fn every_structure_is_on_every_slice_and_on_its_own_side() {
        for seed in 0..12 {
            let p = Phantom::new(&small(seed));
            let g = &p.volume.geometry;
            for z in 0..g.dims[2] {
                for leg in [1u8, 2] {
                    let mut x = [(0.0, 0.0); 13];
                    for i in 0..g.plane() {
                        let j = z * g.plane() + i;
                        if p.legs.data[j] == leg {
                            let l = &mut x[p.structures.data[j] as usize];
                            *l = (l.0 + 1.0, l.1 + g.to_patient([(i % g.dims[0]) as f64, 0.0, 0.0])[0]);
                        }
                    }
                    let at = |key: &str| {
                        let (n, sum) = x[1 + STRUCTURE_KEYS.iter().position(|k| *k == key).unwrap()];
                        assert!(
                            n * g.spacing[0] * g.spacing[1] > 40.0,
                            "seed {seed} slice {z} leg {leg} {key}: {n} pixels"
                        );
                        sum / n
                    };
                    // The right leg lies at smaller x; lateral is away from the midline.
                    let outwards = if leg == 1 { -1.0 } else { 1.0 };
                    for key in ["RF", "VI", "ADD", "ST", "SAR"] {
                        assert!(at(key) * outwards > 0.0);
                    }
                    for (lateral, medial) in [("VL", "FEM"), ("VL", "VM"), ("BF", "SM"), ("FEM", "VM"), ("VM", "GRA")] {
                        assert!((at(lateral) - at(medial)) * outwards > 0.0, "{lateral} is lateral of {medial}");
                    }
                }
            }
        }
    }

    #[test]
    fn vastus_medialis_fades_and_rectus_femoris_grows_towards_the_hip() {
        let mut grown = 0;
        for seed in 0..10 {
            let p = Phantom::new(&small(seed));
            let truth = p.truth(&task(&["VM", "RF"]), Side::Right);
            let share = |z: usize| {
                let plane = truth.plane(z);
                let n = |l| plane.data.iter().filter(|&&v| v == l).count() as f64;
                n(2) / n(1)
            };
            grown += usize::from(share(4) > share(0));
        }
        assert_eq!(grown, 10);
    }

    #[test]
    fn a_group_takes_its_parts_and_a_named_part_wins() {
        let p = Phantom::new(&small(1));
        let parts = p.truth(&task(&["VL", "VM", "VI"]), Side::Left);
        let group = p.truth(&task(&["VAS"]), Side::Left);
        let both = p.truth(&task(&["VAS", "VL"]), Side::Left);
        for i in 0..parts.data.len() {
            assert_eq!(parts.data[i] > 0, group.data[i] == 1);
            assert_eq!(both.data[i] == 2, parts.data[i] == 1);
        }
    }

    #[test]
    fn fat_is_brighter_than_muscle_than_cortex_than_air() {
        for seed in 0..6 {
            let p = Phantom::new(&small(seed));
            let mean = |inside: &dyn Fn(usize) -> bool| {
                let v: Vec<f32> = (0..p.volume.data.len()).filter(|&i| inside(i)).map(|i| p.volume.data[i]).collect();
                v.iter().sum::<f32>() / v.len() as f32
            };
            let muscle = mean(&|i| p.structures.data[i] > 0 && p.structures.data[i] != 6);
            let fat = mean(&|i| p.legs.data[i] > 0 && p.structures.data[i] == 0);
            let air = mean(&|i| p.legs.data[i] == 0);
            assert!(fat > 2.0 * muscle && muscle > 4.0 * air, "seed {seed}: {fat} {muscle} {air}");
        }
    }
}
