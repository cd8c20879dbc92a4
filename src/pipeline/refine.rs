//! From a first round of masks to the boxes of a second one, helped by the slices beside.

use super::prompt::true_box;
use crate::image::Plane;
use crate::image::morphology::{Connectivity, components};

/// A piece of a mask has at least this many cells of the mask grid, or says nothing of place.
const LEAST: usize = 6;

/// For each item one box per structure: the median of the boxes of its masks on this slice and the two beside it, on the same
/// leg. A structure that a slice lost takes its neighbours' box; none where no neighbour has it either.
pub(super) fn refined_boxes(items: &[(usize, usize)], masks: &[&[Plane<f32>]], k: usize) -> Vec<Vec<Option<[f32; 4]>>> {
    let own: Vec<Vec<Option<[f32; 4]>>> = masks.iter().map(|m| mask_boxes(m, k)).collect();
    items
        .iter()
        .map(|&(l, z)| {
            let near: Vec<usize> =
                items.iter().enumerate().filter(|(_, (m, y))| *m == l && y.abs_diff(z) <= 1).map(|(j, _)| j).collect();
            (0..k)
                .map(|s| {
                    let found: Vec<[f32; 4]> = near.iter().filter_map(|&j| own[j].get(s).copied().flatten()).collect();
                    (!found.is_empty()).then(|| {
                        std::array::from_fn(|e| {
                            let mut v: Vec<f32> = found.iter().map(|b| b[e]).collect();
                            v.sort_by(f32::total_cmp);
                            (v[(v.len() - 1) / 2] + v[v.len() / 2]) / 2.0
                        })
                    })
                })
                .collect()
        })
        .collect()
}

/// The box of each structure's largest piece, where structures compete for the cells of the mask grid.
fn mask_boxes(masks: &[Plane<f32>], k: usize) -> Vec<Option<[f32; 4]>> {
    let Some(first) = masks.first() else { return vec![None; k] };
    let (w, h) = (first.width, first.height);
    let winner: Vec<u8> = (0..w * h)
        .map(|i| {
            let mut best = (0.0f32, 0u8);
            for (s, m) in masks.iter().enumerate() {
                if m.data[i] > best.0 {
                    best = (m.data[i], s as u8 + 1);
                }
            }
            best.1
        })
        .collect();
    (0..k)
        .map(|s| {
            let mask: Vec<bool> = winner.iter().map(|&v| usize::from(v) == s + 1).collect();
            let found = components(&mask, [w, h, 1], Connectivity::Faces);
            let (largest, size) = found.sizes.iter().enumerate().max_by_key(|(_, n)| **n)?;
            if *size < LEAST {
                return None;
            }
            let labels = Plane {
                width: w,
                height: h,
                data: found.labels.iter().map(|&l| u8::from(l as usize == largest + 1)).collect(),
            };
            true_box(&labels, 1)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two structures on a 16 x 16 grid, each a square with its first cell at the given place, or absent.
    fn masks(at: [Option<usize>; 2]) -> Vec<Plane<f32>> {
        at.iter()
            .map(|at| {
                let mut m = Plane::filled(16, 16, -5.0);
                if let Some(at) = at {
                    (0..16).for_each(|i| m.data[(at + i / 4) * 16 + at + i % 4] = 3.0);
                }
                m
            })
            .collect()
    }

    #[test]
    fn a_lost_structure_takes_the_neighbours_box_and_a_jump_is_outvoted() {
        let slices = [masks([Some(2), None]), masks([None, None]), masks([Some(2), None]), masks([Some(10), None])];
        let all: Vec<&[Plane<f32>]> = slices.iter().map(Vec::as_slice).collect();
        let boxes = refined_boxes(&[(0, 0), (0, 1), (0, 2), (0, 3)], &all, 2);
        let square = [2.0 / 16.0, 2.0 / 16.0, 6.0 / 16.0, 6.0 / 16.0];
        assert_eq!(boxes[1][0], Some(square));
        assert_eq!(boxes[0][0], Some(square));
        assert_eq!(boxes[1][1], None, "nobody has the second structure");
        // Of two that disagree the middle; the other leg has no say.
        assert_eq!(boxes[3][0].unwrap()[0], 6.0 / 16.0);
        let apart = refined_boxes(&[(0, 0), (1, 1), (0, 2), (1, 3)], &all, 2);
        assert_eq!(apart[1][0], None);
    }

    #[test]
    fn the_stronger_structure_owns_a_cell_and_specks_are_nobodys() {
        let mut m = masks([Some(2), Some(4)]);
        m[1].data.iter_mut().filter(|v| **v > 0.0).for_each(|v| *v = 9.0);
        let b = mask_boxes(&m, 2);
        assert_eq!(b[1], Some([4.0 / 16.0, 4.0 / 16.0, 8.0 / 16.0, 8.0 / 16.0]));
        let mut speck = masks([None, None]);
        speck[0].data[5] = 4.0;
        assert_eq!(mask_boxes(&speck, 2), [None, None]);
        assert_eq!(mask_boxes(&[], 2), [None, None]);
    }
}
