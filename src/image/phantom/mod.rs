//! A plausible axial T1-weighted MR phantom of one or two thighs with known truth, made from a seed.
//!
//! Muscles are chains of soft balls in an anatomical arrangement that changes along the limb; a voxel belongs to the
//! nearest chain, so neighbours share a border and never overlap. Size, place, shape, contrast, fat, bias field, blur
//! and noise vary with the seed. It shows what a thigh looks like, not what any person's does.

mod anatomy;
mod limb;
mod noise;
mod subject;

use self::subject::Subject;
use super::{LabelMap, Volume};
use crate::terms::{STRUCTURE_KEYS, Side, Task};

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
