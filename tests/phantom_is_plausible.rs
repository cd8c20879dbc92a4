//! The phantom's anatomy against real thighs: each muscle's share of the muscle area lies in the range that label maps of
//! real thighs show at mid-thigh, and the leg finder and crops work on it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::Read;
use std::path::Path;

use scanside::image::phantom::{Phantom, PhantomLegs, PhantomOptions};
use scanside::pipeline::{CropRule, leg_views};
use scanside::terms::{STRUCTURE_KEYS, Side};

/// Structures of the real label maps (labels 1 to 11), as ours.
const REAL: [&str; 11] = ["SAR", "RF", "VL", "VI", "VM", "ADD", "GRA", "BF", "ST", "SM", "BF"];
const MUSCLES: [&str; 10] = ["VL", "VM", "VI", "RF", "GRA", "SAR", "ADD", "BF", "ST", "SM"];

/// Shares of the muscles over the middle third of a label map's labelled slices.
fn real_shares(path: &Path) -> [f64; 10] {
    let mut bytes = Vec::new();
    flate2::read::MultiGzDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    let i16_at = |o: usize| i16::from_le_bytes([bytes[o], bytes[o + 1]]);
    let f32_at = |o: usize| f32::from_le_bytes([bytes[o], bytes[o + 1], bytes[o + 2], bytes[o + 3]]);
    let (w, h, n) = (i16_at(42) as usize, i16_at(44) as usize, i16_at(46) as usize);
    let width = match i16_at(70) {
        2 => 1,
        512 | 4 => 2,
        other => panic!("{}: data type {other}", path.display()),
    };
    let start = f32_at(108) as usize;
    let label = |i: usize| bytes[start + i * width] as usize;
    let plane = w * h;
    let used: Vec<usize> = (0..n).filter(|z| (0..plane).any(|i| label(z * plane + i) > 0)).collect();
    let mut area = [0f64; 10];
    for &z in &used[used.len() / 3..used.len() - used.len() / 3] {
        for i in 0..plane {
            let l = label(z * plane + i);
            if l > 0 {
                area[MUSCLES.iter().position(|m| *m == REAL[l - 1]).unwrap()] += 1.0;
            }
        }
    }
    let total: f64 = area.iter().sum();
    area.map(|a| a / total)
}

#[test]
fn area_shares_lie_in_the_range_of_real_thighs() {
    let Some(dir) = common::data("thigh_labelmaps_hirri") else { return };
    let mut range = [(f64::INFINITY, 0f64); 10];
    let mut maps = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "gz") {
            maps += 1;
            for (r, s) in range.iter_mut().zip(real_shares(&path)) {
                *r = (r.0.min(s), r.1.max(s));
            }
        }
    }
    assert!(maps > 10, "{maps} label maps");
    let mut outside = Vec::new();
    let seeds = 8;
    for seed in 0..seeds {
        let p = Phantom::new(&PhantomOptions {
            seed,
            dims: [256, 128, 5],
            spacing: [1.953_125, 1.953_125, 15.0],
            ..Default::default()
        });
        let area =
            MUSCLES.map(|m| p.structures.count(STRUCTURE_KEYS.iter().position(|k| *k == m).unwrap() as u8 + 1) as f64);
        let total: f64 = area.iter().sum();
        for k in 0..10 {
            let share = area[k] / total;
            eprintln!("seed {seed} {}: {share:.3} in {:.3}..{:.3}", MUSCLES[k], range[k].0, range[k].1);
            if share < range[k].0 || share > range[k].1 {
                outside.push(format!(
                    "seed {seed} {}: {share:.3} not in {:.3}..{:.3}",
                    MUSCLES[k], range[k].0, range[k].1
                ));
            }
        }
    }
    assert!(outside.is_empty(), "{}", outside.join("\n"));
}

#[test]
fn the_leg_finder_finds_the_phantoms_legs() {
    for (seed, legs) in [
        (0, PhantomLegs::Both),
        (1, PhantomLegs::Both),
        (2, PhantomLegs::Both),
        (5, PhantomLegs::One(Side::Left)),
        (6, PhantomLegs::One(Side::Right)),
    ] {
        let dims = if legs == PhantomLegs::Both { [256, 128, 5] } else { [128, 128, 5] };
        let p = Phantom::new(&PhantomOptions { seed, legs, dims, spacing: [1.953_125, 1.953_125, 15.0] });
        let (views, _) = leg_views(&p.volume, CropRule::default(), 128, None).unwrap();
        let expected: Vec<Option<Side>> = match legs {
            PhantomLegs::Both => vec![Some(Side::Right), Some(Side::Left)],
            PhantomLegs::One(s) => vec![Some(s)],
        };
        assert_eq!(views.iter().map(|v| v.leg.side).collect::<Vec<_>>(), expected, "seed {seed}");
        for view in &views {
            let id = if view.leg.side == Some(Side::Right) { 1 } else { 2 };
            let (w, plane) = (p.volume.geometry.dims[0], p.volume.geometry.plane());
            let (mut all, mut lost) = (0, 0);
            for (i, _) in p.structures.data.iter().enumerate().filter(|(i, s)| **s > 0 && p.legs.data[*i] == id) {
                let [u, v] = view.crop.to_square((i % plane % w) as f64, (i % plane / w) as f64);
                all += 1;
                lost += usize::from(!(0.0..=1.0).contains(&u) || !(0.0..=1.0).contains(&v));
            }
            assert!(all > 1000 && lost == 0, "seed {seed}: {lost} of {all} labelled voxels outside the crop");
        }
    }
}
