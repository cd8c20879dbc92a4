//! What a model left beside its masks, kept so that other masks of the same volume can be graded by it.

use super::assess::{LegInput, SegexInput, StructureInput};
use super::calibration::SegexCalibration;
use super::measure::Region;
use super::shape::{LegFrame, ShapeStatistics};
use crate::image::morphology::distance;
use crate::image::{LabelMap, Volume};
use crate::terms::{Side, Structure};

/// A structure that was expected or found.
#[derive(Clone, Debug)]
pub struct StructureEvidence {
    /// The structure.
    pub structure: Structure,
    /// Its side, where known.
    pub side: Option<Side>,
    /// Its label; 0 where nothing was found.
    pub label: u8,
    /// Its leg, an index into [`Evidence::legs`].
    pub leg: usize,
    /// The classifier's probability of presence on each slice.
    pub presence: Vec<f32>,
    /// The decoder's own estimate of its IoU on each slice.
    pub iou: Vec<f32>,
}

/// Passes, entropy, legs and estimates behind a result.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Results of the augmented passes.
    pub passes: Vec<LabelMap>,
    /// Binary entropy of the chosen label, per voxel.
    pub entropy: Vec<f32>,
    /// Mask and frame of each leg.
    pub legs: Vec<(Vec<bool>, LegFrame)>,
    /// The structures.
    pub structures: Vec<StructureEvidence>,
}

impl Evidence {
    /// A copy of what an assessment looked at.
    pub fn of(input: &SegexInput) -> Self {
        Evidence {
            passes: input.passes.to_vec(),
            entropy: input.entropy.to_vec(),
            legs: input.legs.iter().map(|l| (l.mask.to_vec(), l.frame)).collect(),
            structures: input
                .structures
                .iter()
                .map(|s| StructureEvidence {
                    structure: s.structure.clone(),
                    side: s.side,
                    label: s.label,
                    leg: s.leg,
                    presence: s.presence.to_vec(),
                    iou: s.iou.to_vec(),
                })
                .collect(),
        }
    }

    /// The assessment of a label map by this evidence.
    pub fn input<'a>(
        &'a self,
        volume: &'a Volume,
        labels: &'a LabelMap,
        shapes: &'a [ShapeStatistics],
        calibration: Option<&'a SegexCalibration>,
    ) -> SegexInput<'a> {
        SegexInput {
            volume,
            labels,
            passes: &self.passes,
            entropy: &self.entropy,
            second: None,
            legs: self.legs.iter().map(|(mask, frame)| LegInput { mask, frame: *frame }).collect(),
            structures: self
                .structures
                .iter()
                .map(|s| StructureInput {
                    structure: &s.structure,
                    side: s.side,
                    label: s.label,
                    leg: s.leg,
                    presence: &s.presence,
                    iou: &s.iou,
                    overlap: &[],
                })
                .collect(),
            shapes,
            calibration,
        }
    }
}

/// Reach of an entropy profile on either side of a contour, pixels.
const REACH: i32 = 6;

/// The entropy that a model would have left had it drawn `to` as it drew `from` (one label of each): the mean profile across
/// the contour of `from`, laid across that of `to`. Away from both contours it stays as it was.
pub fn moved_entropy(entropy: &[f32], from: &LabelMap, to: &LabelMap, label: u8) -> Vec<f32> {
    let g = &from.geometry;
    let mut out = entropy.to_vec();
    let border = REACH as usize + 2;
    let Some(r) = Region::round(g, border, |i| from.data[i] == label || to.data[i] == label) else { return out };
    if entropy.is_empty() {
        return out;
    }
    let pixel = g.spacing[0].max(g.spacing[1]);
    // Signed distance in the slice, in pixels: negative inside.
    let signed = |map: &LabelMap| -> Vec<i32> {
        let inside: Vec<bool> = r.cut(&map.data, g.dims).map(|l| *l == label).collect();
        let outside: Vec<bool> = inside.iter().map(|i| !i).collect();
        let flat = [g.spacing[0], g.spacing[1], 1e4];
        let (out, inn) = (distance(&inside, r.dims, flat), distance(&outside, r.dims, flat));
        let clamp = |v: f32| (f64::from(v) / pixel).round().min(f64::from(REACH) + 1.0) as i32;
        out.into_iter().zip(inn).map(|(o, i)| if o > 0.0 { clamp(o) } else { -clamp(i) }).collect()
    };
    let (a, b) = (signed(from), signed(to));
    let mut profile = vec![(0.0f64, 0.0f64); (2 * REACH + 3) as usize];
    let place = |d: i32| (d + REACH + 1) as usize;
    for (e, d) in r.cut(entropy, g.dims).zip(&a) {
        let p = &mut profile[place(*d)];
        *p = (p.0 + f64::from(*e), p.1 + 1.0);
    }
    let ([x0, y0, z0], [w, h, _]) = (r.start, r.dims);
    for (i, (da, db)) in a.iter().zip(&b).enumerate().filter(|(_, (a, b))| a.abs() <= REACH || b.abs() <= REACH) {
        if da == db {
            continue;
        }
        let (sum, n) = profile[place(*db)];
        let at = ((z0 + i / (w * h)) * g.dims[1] + y0 + i / w % h) * g.dims[0] + x0 + i % w;
        if n > 0.0 {
            out[at] = (sum / n) as f32;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Geometry;

    #[test]
    fn doubt_follows_the_contour() {
        let g = Geometry::axial([60, 60, 1], [1.0, 1.0, 5.0]);
        let disc = |r: f64| {
            let mut m = LabelMap::empty(g.clone());
            (0..3600).for_each(|i| {
                m.data[i] = u8::from(((i % 60) as f64 - 30.0).hypot((i / 60) as f64 - 30.0) <= r);
            });
            m
        };
        let (from, to) = (disc(18.0), disc(12.0));
        // Doubt in a ring of a few pixels about the contour at 18.
        let ring = |r: f64| -> Vec<f32> {
            (0..3600)
                .map(|i| {
                    let d = ((i % 60) as f64 - 30.0).hypot((i / 60) as f64 - 30.0) - r;
                    (1.0 - d.abs() / 4.0).max(0.0) as f32
                })
                .collect()
        };
        let moved = moved_entropy(&ring(18.5), &from, &to, 1);
        let want = ring(12.5);
        let error: f32 = moved.iter().zip(&want).map(|(a, b)| (a - b).abs()).sum::<f32>() / want.iter().sum::<f32>();
        assert!(error < 0.15, "{error}");
        assert_eq!(moved_entropy(&ring(18.5), &from, &from, 1), ring(18.5));
    }
}
