//! From mask logits to one label map: restored to the source grid, composed without overlap, cleaned up in 3-D.

use super::crop::Crop;
use crate::image::Plane;
use crate::image::morphology::{Connectivity, components, fill_holes};

/// What composing one slice of one leg gives, over the crop's window of the source grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Composed {
    /// Structure of each pixel, from 1; 0 is background.
    pub labels: Vec<u8>,
    /// Binary entropy of the winner's probability (or of the best loser where background wins), 0 to 1.
    pub entropy: Vec<f32>,
}

/// Restores mask logits to the crop's window and gives each pixel to the structure with the highest logit above 0.
/// `present[k]` false leaves structure `k` out. Pixels where `allowed` (over the source grid) is false stay background.
pub fn compose(crop: &Crop, masks: &[Plane<f32>], present: &[bool], allowed: impl Fn(usize) -> bool) -> Composed {
    const OUTSIDE: f32 = -20.0;
    let [x0, y0, x1, y1] = crop.window();
    let (w, h) = (x1 - x0, y1 - y0);
    let mut best = vec![(OUTSIDE, 0u8); w * h];
    for (k, mask) in masks.iter().enumerate().filter(|(k, _)| present.get(*k).copied().unwrap_or(false)) {
        let restored = crop.restore(mask, OUTSIDE);
        for y in 0..h {
            for x in 0..w {
                let v = restored.at(x0 + x, y0 + y);
                let b = &mut best[y * w + x];
                if v > b.0 {
                    *b = (v, k as u8 + 1);
                }
            }
        }
    }
    let mut out = Composed { labels: vec![0; w * h], entropy: vec![0.0; w * h] };
    for (i, (logit, label)) in best.into_iter().enumerate() {
        if !allowed((y0 + i / w) * crop.source[0] + x0 + i % w) {
            continue;
        }
        let p = 1.0 / (1.0 + (-logit).exp());
        out.entropy[i] = entropy(p);
        if logit > 0.0 {
            out.labels[i] = label;
        }
    }
    out
}

/// Binary entropy in bits.
fn entropy(p: f32) -> f32 {
    if p <= 1e-6 || p >= 1.0 - 1e-6 {
        return 0.0;
    }
    -(p * p.log2() + (1.0 - p) * (1.0 - p).log2())
}

/// Clean-up of a label map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CleanUp {
    /// Components smaller than this share of a structure's largest are removed, in 3-D.
    pub keep_share: f64,
    /// Pieces smaller than this on a slice are removed, square millimetres.
    pub speck_mm2: f64,
    /// Background holes up to this size are filled, square millimetres: larger ones are anatomy (the femur in a ring of
    /// vastus intermedius).
    pub hole_mm2: f64,
}

impl Default for CleanUp {
    fn default() -> Self {
        CleanUp { keep_share: 0.25, speck_mm2: 12.0, hole_mm2: 40.0 }
    }
}

/// Cleans each of the labels `1..=count`: specks on a slice go, then components well below the largest in 3-D, then
/// small background holes are filled. Adds nothing outside a structure's own holes, never takes from another structure.
pub fn clean_up(labels: &mut [u8], dims: [usize; 3], spacing: [f64; 3], count: u8, rule: &CleanUp) {
    let plane = dims[0] * dims[1];
    let flat = [dims[0], dims[1], 1];
    let pixel = spacing[0] * spacing[1];
    if plane == 0 {
        return;
    }
    for label in 1..=count {
        let mut mask: Vec<bool> = labels.iter().map(|&l| l == label).collect();
        if !mask.contains(&true) {
            continue;
        }
        let before = mask.clone();
        for slice in mask.chunks_mut(plane) {
            if !slice.contains(&true) {
                continue;
            }
            let found = components(slice, flat, Connectivity::Faces);
            for (m, &l) in slice.iter_mut().zip(&found.labels) {
                *m = l > 0 && found.sizes[l as usize - 1] as f64 * pixel >= rule.speck_mm2;
            }
        }
        let found = components(&mask, dims, Connectivity::Faces);
        let most = found.sizes.iter().copied().max().unwrap_or(0) as f64;
        for (m, &l) in mask.iter_mut().zip(&found.labels) {
            *m = l > 0 && found.sizes[l as usize - 1] as f64 >= rule.keep_share * most;
        }
        for ((l, m), b) in labels.iter_mut().zip(&mask).zip(&before) {
            if *b && !*m {
                *l = 0;
            }
        }
        for z in 0..dims[2] {
            let range = z * plane..(z + 1) * plane;
            if !mask[range.clone()].contains(&true) {
                continue;
            }
            let mut closed = mask[range.clone()].to_vec();
            if fill_holes(&mut closed, flat) == 0 {
                continue;
            }
            let holes: Vec<bool> = closed.iter().zip(&mask[range.clone()]).map(|(c, m)| *c && !*m).collect();
            let found = components(&holes, flat, Connectivity::Faces);
            for (i, &l) in found.labels.iter().enumerate() {
                let j = range.start + i;
                if l > 0 && labels[j] == 0 && found.sizes[l as usize - 1] as f64 * pixel <= rule.hole_mm2 {
                    labels[j] = label;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::Geometry;
    use crate::pipeline::{CropRule, Leg};
    use crate::terms::Side;

    fn crop(side: Side) -> Crop {
        let leg = Leg { side: Some(side), bounds: [8, 6, 40, 38], mask: Vec::new() };
        Crop::new(&Geometry::axial([48, 44, 1], [1.0, 1.0, 5.0]), &leg, CropRule::Leg { margin_mm: 2.0 }, 64)
    }

    proptest! {
        #[test]
        fn every_pixel_has_at_most_one_structure_and_it_is_the_best(
            values in proptest::collection::vec(-3.0f32..3.0, 3 * 16 * 16), left in any::<bool>(),
        ) {
            let crop = crop(if left { Side::Left } else { Side::Right });
            let masks: Vec<Plane<f32>> =
                values.chunks(256).map(|c| Plane { width: 16, height: 16, data: c.to_vec() }).collect();
            let all = compose(&crop, &masks, &[true, true, true], |_| true);
            let [x0, y0, x1, _] = crop.window();
            let restored: Vec<_> = masks.iter().map(|m| crop.restore(m, -20.0)).collect();
            for (i, &l) in all.labels.iter().enumerate() {
                let (x, y) = (x0 + i % (x1 - x0), y0 + i / (x1 - x0));
                let v: Vec<f32> = restored.iter().map(|r| r.at(x, y)).collect();
                let best = v.iter().copied().fold(f32::MIN, f32::max);
                if l == 0 { prop_assert!(best <= 0.0) } else { prop_assert!(v[l as usize - 1] == best && best > 0.0) }
                prop_assert!((0.0..=1.0).contains(&all.entropy[i]));
            }
            let without = compose(&crop, &masks, &[true, false, true], |_| true);
            prop_assert!(!without.labels.contains(&2));
            prop_assert!(compose(&crop, &masks, &[true; 3], |_| false).labels.iter().all(|&l| l == 0));
        }

        #[test]
        fn clean_up_adds_only_holes(values in proptest::collection::vec(0u8..4, 8 * 8 * 3)) {
            let (dims, spacing) = ([8, 8, 3], [1.0, 1.0, 5.0]);
            let rule = CleanUp { keep_share: 0.3, speck_mm2: 3.0, hole_mm2: 6.0 };
            let mut labels = values.clone();
            clean_up(&mut labels, dims, spacing, 3, &rule);
            for (i, (a, b)) in values.iter().zip(&labels).enumerate() {
                // A structure is never taken by another unless clean-up removed it first; outermost pixels gain nothing.
                let (x, y) = (i % 8, i / 8 % 8);
                if a != b && *b != 0 {
                    prop_assert!(x > 0 && y > 0 && x < 7 && y < 7);
                }
            }
            for z in 0..3 {
                for l in 1..4u8 {
                    let was: Vec<bool> = values[z * 64..(z + 1) * 64].iter().map(|&v| v == l).collect();
                    let mut filled = was.clone();
                    fill_holes(&mut filled, [8, 8, 1]);
                    for i in 0..64 {
                        prop_assert!(labels[z * 64 + i] != l || filled[i]);
                    }
                }
            }
        }
    }

    #[test]
    fn a_far_piece_and_a_speck_go_a_hole_is_filled_a_ring_stays() {
        let dims = [40, 40, 2];
        let mut labels = vec![0u8; 3200];
        for z in 0..2 {
            for y in 4..24 {
                for x in 4..24 {
                    labels[z * 1600 + y * 40 + x] = 1;
                }
            }
            labels[z * 1600 + 10 * 40 + 10] = 0; // a hole
            for y in 14..22 {
                for x in 14..22 {
                    labels[z * 1600 + y * 40 + x] = 0; // the femur
                }
            }
        }
        for i in 0..30 {
            labels[(30 + i / 6) * 40 + 30 + i % 6] = 1; // a far piece
        }
        labels[1600 + 38 * 40 + 2] = 1; // a speck
        clean_up(&mut labels, dims, [1.0, 1.0, 5.0], 1, &CleanUp::default());
        assert_eq!(labels[10 * 40 + 10], 1);
        assert_eq!(labels[18 * 40 + 18], 0);
        assert_eq!(labels[31 * 40 + 31], 0);
        assert_eq!(labels[1600 + 38 * 40 + 2], 0);
        assert_eq!(labels.iter().filter(|&&l| l == 1).count(), 2 * (400 - 64));
    }
}
