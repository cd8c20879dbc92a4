//! A subject drawn from a seed, and its image.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::anatomy::CHAINS;
use super::limb::{Limb, Section, Tissue, label, length};
use super::noise::{Wave, blur, noise, normal, waves};
use super::{Phantom, PhantomLegs, PhantomOptions};
use crate::image::{Geometry, LabelMap, Volume};
use crate::terms::Side;

/// Everything that a seed decides.
pub(super) struct Subject {
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

impl Subject {
    pub(super) fn draw(options: &PhantomOptions) -> Self {
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

    pub(super) fn render(&self, options: &PhantomOptions) -> Phantom {
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
        // Axial slices: one height for all of a slice's pixels.
        let height = centre_z(g, z);
        let sections: Vec<Section> = self.limbs.iter().map(|l| l.section(height)).collect();
        // Sub-samples spread over the pixel and the slice's thickness: partial volume.
        let spread = [(0.0, 0.0, 0.0), (-0.3, 0.15, -0.3), (0.15, 0.3, 0.3), (0.3, -0.15, -0.15), (-0.15, -0.3, 0.15)];
        let middles: Vec<[f64; 3]> = self.limbs.iter().map(|l| l.to_patient([30.0, 20.0], height)).collect();
        let patches: Vec<[f64; 3]> = self.limbs.iter().map(|l| l.to_patient([35.0, -25.0], height)).collect();
        for y in 0..h {
            for x in 0..w {
                let centre = g.to_patient([x as f64, y as f64, z as f64]);
                let Some(n) = nearest(&middles, centre) else { continue };
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
                signal[i] = sum / spread.len() as f64 * self.shading(patches[n], centre);
            }
        }
        let signal = blur(&signal, w, h, self.blur);
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ (0x9e37_79b9_7f4a_7c15u64.wrapping_mul(z as u64 + 1)));
        // Pulsating vessels leave ghosts along the phase-encoding direction (rows).
        let ghosts: Vec<f64> = self.limbs.iter().map(|l| g.to_index(l.to_patient([54.0, 17.0], height))[0]).collect();
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

    fn brightness(&self, tissue: Tissue, limb: &Limb, p: [f64; 3]) -> f64 {
        let fine = || noise(self.texture, [p[0] / 2.2, p[1] / 2.2, p[2] / 15.0]);
        match tissue {
            Tissue::Air => 0.0,
            Tissue::Skin => 0.30,
            Tissue::Fat => {
                // Septa: thin dark lines through the fat.
                let septum = noise(self.texture ^ 1, [p[0] / 14.0, p[1] / 14.0, p[2] / 30.0]).abs();
                self.fat * (1.0 + 0.05 * fine()) * if septum < 0.02 { 0.72 } else { 1.0 }
            }
            Tissue::Fascia => 0.62 * self.fat,
            Tissue::Muscle(c) => {
                let streak = noise(self.texture ^ (c as u64 + 2), [p[0] / 9.0, p[1] / 9.0, p[2] / 40.0]).abs();
                let patch = noise(self.texture ^ 99, [p[0] / 25.0, p[1] / 25.0, p[2] / 60.0]) * 0.5 + 0.5;
                let infiltrated = if streak < self.infiltration * 2.5 * patch * patch { 0.5 } else { 0.0 };
                let own = self.muscle * limb.tone[c] * (1.0 + 0.10 * fine());
                own + (self.fat - own) * infiltrated
            }
            Tissue::Cortex => 0.04,
            Tissue::Marrow => 0.97 * self.fat,
            Tissue::Artery => 0.12,
            Tissue::Vein => 0.5,
        }
    }

    /// The coil's slow shading, and the dark patch (its middle) in front that high fields show.
    fn shading(&self, patch: [f64; 3], p: [f64; 3]) -> f64 {
        let d = length(p[0] - patch[0], p[1] - patch[1]);
        waves(&self.bias, p).exp() * (1.0 - self.shade[0] * (-(d / self.shade[1]).powi(2)).exp())
    }
}

/// The limb whose middle is nearest: legs that touch share the plane between them.
fn nearest(middles: &[[f64; 3]], p: [f64; 3]) -> Option<usize> {
    let d = |n: usize| length(p[0] - middles[n][0], p[1] - middles[n][1]);
    (0..middles.len()).min_by(|&a, &b| d(a).total_cmp(&d(b)))
}

fn centre_z(g: &Geometry, z: usize) -> f64 {
    g.to_patient([0.0, 0.0, z as f64])[2]
}
