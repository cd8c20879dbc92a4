//! The decoded slices of all legs, put together on the source grid.

use super::crop::LegView;
use crate::image::{LabelMap, Plane, Volume};

/// One slice of one leg after the decoder: label planes over the crop's window.
pub(super) struct Decoded {
    /// Mean mask logits of each structure, `[4h, 4w]`.
    pub masks: Vec<Plane<f32>>,
    /// Labels of the mean.
    pub labels: Vec<u8>,
    /// Entropy of each pixel's label.
    pub entropy: Vec<f32>,
    /// Labels of each pass.
    pub passes: Vec<Vec<u8>>,
    /// The decoder's estimate of each structure's IoU.
    pub iou: Vec<f32>,
    /// Structures whose activation map was flat.
    pub fallbacks: usize,
}

/// Label maps and entropy on the source grid.
pub(super) struct Maps {
    /// Leg by leg, structure by structure, from 1.
    pub labels: LabelMap,
    /// The same of each pass.
    pub passes: Vec<LabelMap>,
    /// Entropy of each voxel's label.
    pub entropy: Vec<f32>,
}

impl Maps {
    pub fn assemble(
        volume: &Volume,
        views: &[LegView],
        items: &[(usize, usize)],
        decoded: &[Decoded],
        k: usize,
        extra: usize,
    ) -> Self {
        let g = &volume.geometry;
        let passes = if extra > 0 { extra + 1 } else { 0 };
        let mut maps = Maps {
            labels: LabelMap::empty(g.clone()),
            passes: vec![LabelMap::empty(g.clone()); passes],
            entropy: vec![0.0; g.voxels()],
        };
        for (&(l, z), d) in items.iter().zip(decoded) {
            let [x0, y0, x1, _] = views[l].crop.window();
            let w = (x1 - x0).max(1);
            let at = |i: usize| z * g.plane() + (y0 + i / w) * g.dims[0] + x0 + i % w;
            let own = |label: u8| if label > 0 { (l * k) as u8 + label } else { 0 };
            // Between the legs, outside both masks, the first leg to claim a voxel keeps it.
            let put = |map: &mut LabelMap, plane: &[u8]| {
                for (i, &label) in plane.iter().enumerate().filter(|(_, l)| **l > 0) {
                    let v = &mut map.data[at(i)];
                    if *v == 0 {
                        *v = own(label);
                    }
                }
            };
            put(&mut maps.labels, &d.labels);
            for (map, plane) in maps.passes.iter_mut().zip(&d.passes) {
                put(map, plane);
            }
            for (i, e) in d.entropy.iter().enumerate() {
                let v = &mut maps.entropy[at(i)];
                *v = v.max(*e);
            }
        }
        maps
    }

    /// Doubt of each voxel, given the labels before clean-up; see [`super::Segmentation::doubt`].
    pub fn doubt(&self, before: &[u8]) -> Vec<f32> {
        let n = self.passes.len().max(1) as f32;
        let mut out = self.entropy.clone();
        for (i, d) in out.iter_mut().enumerate() {
            let label = self.labels.data[i];
            if label != before[i] {
                *d = 1.0;
                continue;
            }
            let other = self.passes.iter().filter(|p| p.data[i] != label).count() as f32;
            *d = d.max(other / n);
        }
        out
    }
}
