//! How well a mask agrees with the truth: overlap and surface distances in millimetres, with pinned conventions (docs/metrics.md).
//!
//! - **Whole volume**: overlap counts voxels over all evaluated slices, those without the structure included.
//! - **Surface**: voxels of the mask with at least one of 6 face neighbours outside it; beyond the grid is outside.
//!   Distances run between voxel centres, in millimetres, in three dimensions.
//! - **Presence**: a slice has a structure if at least one voxel of it does.
//! - **HD95**: the larger of the two directed 95th percentiles (linear interpolation between order statistics).
//! - **ASSD**: the mean over the surface voxels of both masks.
//! - **NSD** at tolerance t: surface voxels of both masks within t of the other surface, over all surface voxels.
//! - **Empty masks**: both empty: no figure (the structure is not counted, and said to be rightly absent). One empty:
//!   Dice, IoU and NSD are 0, distances have no figure and are counted as missing.
//! - **Some slices only** ([`Slices`]): overlap and surface voxels are taken from the slices that count; the surface that they are
//!   measured against is that of all slices whose truth is known, so that a slice at the edge of the selection is not at a
//!   disadvantage. Where the truth is not known, neither mask is looked at, and none ends there: a slice that is labelled alone
//!   has its outline for a surface.

use serde::{Deserialize, Serialize};

pub use crate::image::surface::surface;
use crate::image::surface::{hd95, surface_distances, telling};

/// Agreement of two masks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Voxels of the segmentation.
    pub found: usize,
    /// Voxels of the truth.
    pub truth: usize,
    /// Dice coefficient; none where both are empty.
    pub dice: Option<f64>,
    /// Intersection over union; none where both are empty.
    pub iou: Option<f64>,
    /// 95th percentile of the Hausdorff distance, mm; none where either is empty.
    pub hd95_mm: Option<f64>,
    /// Average symmetric surface distance, mm; none where either is empty.
    pub assd_mm: Option<f64>,
    /// Normalised surface Dice at the tolerance; none where both are empty.
    pub nsd: Option<f64>,
}

/// The slices of a volume that is not looked at whole.
#[derive(Clone, Copy, Debug)]
pub struct Slices<'a> {
    /// Those that count.
    pub counted: &'a [usize],
    /// Those whose truth is known, the counted ones among them.
    pub known: &'a [usize],
}

/// Compares a segmentation with the truth, both masks on the same grid of `dims` and `spacing` (mm).
///
/// `tolerance_mm` is NSD's; without `slices` all count.
pub fn agreement(
    found: &[bool],
    truth: &[bool],
    dims: [usize; 3],
    spacing: [f64; 3],
    tolerance_mm: f64,
    slices: Option<Slices>,
) -> Agreement {
    let plane = dims[0] * dims[1];
    let among = |of: fn(Slices) -> &[usize]| -> Vec<bool> {
        (0..dims[2]).map(|z| slices.is_none_or(|s| of(s).contains(&z))).collect()
    };
    let (counts, known) = (among(|s| s.counted), among(|s| s.known));
    let (mut a, mut b, mut both) = (0usize, 0usize, 0usize);
    for (i, (&f, &t)) in found.iter().zip(truth).enumerate() {
        if counts[i / plane.max(1)] {
            a += usize::from(f);
            b += usize::from(t);
            both += usize::from(f && t);
        }
    }
    let mut out = Agreement { found: a, truth: b, dice: None, iou: None, hd95_mm: None, assd_mm: None, nsd: None };
    if a + b == 0 {
        return out;
    }
    out.dice = Some(2.0 * both as f64 / (a + b) as f64);
    out.iou = Some(both as f64 / (a + b - both) as f64);
    if a == 0 || b == 0 {
        out.nsd = Some(0.0);
        return out;
    }
    let (mut there, mut back) = surface_distances(found, truth, dims, spacing, telling(dims[2], |z| known[z]));
    there.retain(|(z, _)| counts[*z]);
    back.retain(|(z, _)| counts[*z]);
    let within = there.iter().chain(&back).filter(|d| d.1 <= tolerance_mm + 1e-6).count();
    let total = (there.len() + back.len()) as f64;
    out.nsd = Some(within as f64 / total);
    out.assd_mm = Some(there.iter().chain(&back).map(|d| d.1).sum::<f64>() / total);
    out.hd95_mm = hd95(&there, &back);
    out
}

/// Slices in which a structure was found and in which it is, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Slices in which both have it.
    pub both: usize,
    /// Slices in which only the segmentation has it.
    pub found_only: usize,
    /// Slices in which only the truth has it.
    pub truth_only: usize,
    /// Slices in which neither has it.
    pub neither: usize,
}

impl Presence {
    /// Counts slices of `plane` voxels; `slices`, where given, are those that count.
    pub fn of(found: &[bool], truth: &[bool], plane: usize, slices: Option<&[usize]>) -> Self {
        let mut out = Presence::default();
        for (z, (f, t)) in found.chunks(plane.max(1)).zip(truth.chunks(plane.max(1))).enumerate() {
            if slices.is_none_or(|s| s.contains(&z)) {
                let counter = match (f.contains(&true), t.contains(&true)) {
                    (true, true) => &mut out.both,
                    (true, false) => &mut out.found_only,
                    (false, true) => &mut out.truth_only,
                    (false, false) => &mut out.neither,
                };
                *counter += 1;
            }
        }
        out
    }

    /// The counts of several added up.
    pub fn total(all: impl Iterator<Item = Presence>) -> Self {
        all.fold(Presence::default(), |a, b| Presence {
            both: a.both + b.both,
            found_only: a.found_only + b.found_only,
            truth_only: a.truth_only + b.truth_only,
            neither: a.neither + b.neither,
        })
    }

    /// Slices that count.
    pub fn slices(&self) -> usize {
        self.both + self.found_only + self.truth_only + self.neither
    }

    /// Of the slices that have the structure, the share in which it was found; none where no slice has it.
    pub fn sensitivity(&self) -> Option<f64> {
        share(self.both, self.truth_only)
    }

    /// Of the slices without the structure, the share in which none was found; none where every slice has it.
    pub fn specificity(&self) -> Option<f64> {
        share(self.neither, self.found_only)
    }
}

fn share(right: usize, wrong: usize) -> Option<f64> {
    (right + wrong > 0).then(|| right as f64 / (right + wrong) as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::surface::quantile;

    fn percentile(values: &mut [f64], fraction: f64) -> f64 {
        values.sort_by(f64::total_cmp);
        quantile(values, fraction).unwrap_or(0.0)
    }

    const DIMS: [usize; 3] = [9, 8, 5];
    const SPACING: [f64; 3] = [0.8, 1.1, 5.0];

    fn block(low: [usize; 3], high: [usize; 3]) -> Vec<bool> {
        (0..DIMS.iter().product())
            .map(|i: usize| {
                let at = [i % DIMS[0], i / DIMS[0] % DIMS[1], i / (DIMS[0] * DIMS[1])];
                (0..3).all(|k| at[k] >= low[k] && at[k] < high[k])
            })
            .collect()
    }

    #[test]
    fn a_shifted_block_has_the_figures_worked_out_by_hand() {
        // 4 x 4 x 1 moved by one column of 0.8 mm: 12 of 16 voxels shared.
        let (a, b) = (block([1, 1, 2], [5, 5, 3]), block([2, 1, 2], [6, 5, 3]));
        let m = agreement(&a, &b, DIMS, SPACING, 0.5, None);
        assert!((m.dice.unwrap() - 0.75).abs() < 1e-12);
        assert!((m.iou.unwrap() - 12.0 / 20.0).abs() < 1e-12);
        // One slice thick, so every voxel is surface: 4 of 16 on each side lie 0.8 mm off.
        assert!((m.assd_mm.unwrap() - 0.2).abs() < 1e-6);
        assert!((m.hd95_mm.unwrap() - 0.8).abs() < 1e-6);
        assert!((m.nsd.unwrap() - 0.75).abs() < 1e-12);
        assert_eq!(agreement(&a, &b, DIMS, SPACING, 0.8, None).nsd, Some(1.0));
    }

    #[test]
    fn empty_masks_follow_the_convention() {
        let (a, none) = (block([1, 1, 1], [4, 4, 3]), block([0; 3], [0; 3]));
        let m = agreement(&none, &none, DIMS, SPACING, 1.0, None);
        assert_eq!((m.dice, m.iou, m.nsd, m.hd95_mm, m.assd_mm), (None, None, None, None, None));
        let m = agreement(&none, &a, DIMS, SPACING, 1.0, None);
        assert_eq!((m.dice, m.iou, m.nsd, m.hd95_mm, m.assd_mm), (Some(0.0), Some(0.0), Some(0.0), None, None));
    }

    #[test]
    fn slices_left_out_do_not_count() {
        let a = block([1, 1, 0], [5, 5, 5]);
        let mut b = a.clone();
        b[..DIMS[0] * DIMS[1]].fill(false);
        assert!(agreement(&a, &b, DIMS, SPACING, 1.0, None).dice.unwrap() < 1.0);
        let m = agreement(&a, &b, DIMS, SPACING, 1.0, Some(Slices { counted: &[2, 3, 4], known: &[0, 1, 2, 3, 4] }));
        assert_eq!((m.dice, m.hd95_mm), (Some(1.0), Some(0.0)));
    }

    #[test]
    fn a_slice_that_is_labelled_alone_is_measured_by_its_outline() {
        // The same cylinder, once labelled on every slice and once on three that lie apart.
        let (whole, sparse) = (block([1, 1, 0], [8, 7, 5]), {
            let mut b = block([1, 1, 0], [8, 7, 5]);
            let plane = DIMS[0] * DIMS[1];
            [1, 3].iter().for_each(|z| b[z * plane..(z + 1) * plane].fill(false));
            b
        });
        let only = [0, 2, 4];
        let m = agreement(&whole, &sparse, DIMS, SPACING, 0.5, Some(Slices { counted: &only, known: &only }));
        assert_eq!((m.dice, m.hd95_mm, m.assd_mm, m.nsd), (Some(1.0), Some(0.0), Some(0.0), Some(1.0)));
        // One column too many: where both are solid every shared voxel would be a surface and agree.
        let wider = block([1, 1, 0], [8, 7, 5])
            .iter()
            .zip(block([0, 1, 0], [1, 7, 5]))
            .map(|(a, b)| *a || b)
            .collect::<Vec<_>>();
        let in_plane = |z: usize| {
            let plane = DIMS[0] * DIMS[1];
            let of = |m: &[bool]| m[z * plane..(z + 1) * plane].to_vec();
            agreement(&of(&wider), &of(&whole), [DIMS[0], DIMS[1], 1], SPACING, 0.5, None)
        };
        let m = agreement(&wider, &whole, DIMS, SPACING, 0.5, Some(Slices { counted: &[2], known: &[2] }));
        assert_eq!((m.nsd, m.assd_mm, m.hd95_mm), (in_plane(2).nsd, in_plane(2).assd_mm, in_plane(2).hd95_mm));
        // 8 x 6 has 24 voxels of outline, 7 x 6 has 22. 0.8 mm off: the added column of 6, and of the column beside it all but the ends.
        assert!((m.nsd.unwrap() - 36.0 / 46.0).abs() < 1e-12 && (m.assd_mm.unwrap() - 10.0 * 0.8 / 46.0).abs() < 1e-6);
    }

    #[test]
    fn presence_counts_slices_not_voxels() {
        let (a, b) = (block([1, 1, 0], [5, 5, 3]), block([6, 6, 1], [7, 7, 4]));
        let p = Presence::of(&a, &b, DIMS[0] * DIMS[1], None);
        assert_eq!(p, Presence { both: 2, found_only: 1, truth_only: 1, neither: 1 });
        assert_eq!((p.sensitivity(), p.specificity(), p.slices()), (Some(2.0 / 3.0), Some(0.5), 5));
        let p = Presence::of(&a, &b, DIMS[0] * DIMS[1], Some(&[1, 2]));
        assert_eq!((p.sensitivity(), p.specificity()), (Some(1.0), None));
    }

    fn brute(a: &[bool], b: &[bool]) -> (f64, f64) {
        let points = |m: &[bool]| -> Vec<[f64; 3]> {
            let s = surface(m, DIMS);
            (0..s.len())
                .filter(|&i| s[i])
                .map(|i| {
                    [
                        (i % DIMS[0]) as f64 * SPACING[0],
                        (i / DIMS[0] % DIMS[1]) as f64 * SPACING[1],
                        (i / (DIMS[0] * DIMS[1])) as f64 * SPACING[2],
                    ]
                })
                .collect()
        };
        let (p, q) = (points(a), points(b));
        let near = |p: &[[f64; 3]], q: &[[f64; 3]]| -> Vec<f64> {
            p.iter()
                .map(|u| {
                    q.iter()
                        .map(|v| (0..3).map(|k| (u[k] - v[k]).powi(2)).sum::<f64>().sqrt())
                        .fold(f64::INFINITY, f64::min)
                })
                .collect()
        };
        let (mut there, mut back) = (near(&p, &q), near(&q, &p));
        let assd = there.iter().chain(&back).sum::<f64>() / (there.len() + back.len()) as f64;
        (assd, percentile(&mut there, 0.95).max(percentile(&mut back, 0.95)))
    }

    proptest! {
        #[test]
        fn figures_agree_with_exhaustive_search_and_are_symmetric(
            a in proptest::collection::vec(proptest::bool::weighted(0.3), 9 * 8 * 5),
            b in proptest::collection::vec(proptest::bool::weighted(0.3), 9 * 8 * 5),
        ) {
            let m = agreement(&a, &b, DIMS, SPACING, 1.0, None);
            let n = agreement(&b, &a, DIMS, SPACING, 1.0, None);
            let (assd, hd) = brute(&a, &b);
            prop_assert!((m.assd_mm.unwrap() - assd).abs() < 1e-4);
            prop_assert!((m.hd95_mm.unwrap() - hd).abs() < 1e-4);
            prop_assert!((m.assd_mm.unwrap() - n.assd_mm.unwrap()).abs() < 1e-9);
            prop_assert_eq!((m.dice, m.iou, m.nsd, m.hd95_mm), (n.dice, n.iou, n.nsd, n.hd95_mm));
            let (d, i) = (m.dice.unwrap(), m.iou.unwrap());
            prop_assert!((d - 2.0 * i / (1.0 + i)).abs() < 1e-12);
            prop_assert!((0.0..=1.0).contains(&m.nsd.unwrap()));
        }

        #[test]
        fn a_mask_agrees_with_itself(a in proptest::collection::vec(any::<bool>(), 9 * 8 * 5)) {
            let m = agreement(&a, &a, DIMS, SPACING, 0.0, None);
            if m.truth > 0 {
                prop_assert_eq!((m.dice, m.iou, m.nsd, m.hd95_mm, m.assd_mm), (Some(1.0), Some(1.0), Some(1.0), Some(0.0), Some(0.0)));
            }
        }
    }
}
