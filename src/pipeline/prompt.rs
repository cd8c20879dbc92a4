//! From a class activation map to a box prompt.

use rand::Rng;
use rand_distr::{Distribution, Normal};
use serde::{Deserialize, Serialize};

use super::crop::bilinear;
use crate::image::Plane;
use crate::image::morphology::{Connectivity, components};

/// How a map becomes a box.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PromptRule {
    /// Threshold on the min-max normalised map.
    pub threshold: f32,
    /// Added on every side, as a fraction of the input's edge.
    pub margin: f32,
    /// The map is enlarged this many times (bilinear) before the threshold: a cell of the map is 16 input pixels wide.
    pub enlarge: usize,
    /// Components with at least this share of the largest one's evidence belong to the box too.
    pub share: f32,
}

impl Default for PromptRule {
    fn default() -> Self {
        PromptRule { threshold: 0.4, margin: 0.01, enlarge: 4, share: 0.5 }
    }
}

/// How the decoder is asked for a slice's structures; part of an adapter, since training has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prompting {
    /// Ask with the box of the classifier's activation map; without it with the whole crop alone.
    pub cam: bool,
    /// Ask a second time with the whole crop as the box, by the structure's name alone, and average: a second opinion where
    /// the activation map points astray.
    pub whole: bool,
    /// Ask again from the boxes of the first masks and their neighbours along the limb, and average.
    pub refine: bool,
    /// Ask only for structures that the classifier sees. Without it every structure is asked for, and an absent one's mask
    /// has to come out empty.
    pub gate: bool,
    /// Test-time augmentation: so many more crops, 0 to 4, that lie a little otherwise, their masks averaged with the first's.
    /// Each costs another run of the encoder. Where nothing is said, none: what was written before this existed used none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub crops: u8,
}

fn is_zero(n: &u8) -> bool {
    *n == 0
}

impl Default for Prompting {
    fn default() -> Self {
        Prompting { cam: true, whole: true, refine: true, gate: false, crops: 2 }
    }
}

/// A box prompt in the unit square of the input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoxPrompt {
    /// x0, y0, x1, y1 from 0 to 1.
    pub corners: [f32; 4],
    /// Whether the map was flat and the box is the whole input.
    pub fallback: bool,
}

/// The box round the strongest evidence of a class activation map `[h, w]`; the whole input where the map is flat or
/// not finite.
pub fn cam_box(cam: &Plane<f32>, rule: &PromptRule) -> BoxPrompt {
    const WHOLE: BoxPrompt = BoxPrompt { corners: [0.0, 0.0, 1.0, 1.0], fallback: true };
    let (low, high) = cam.data.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), &v| (a.min(v), b.max(v)));
    let range = high - low;
    if !range.is_finite() || range <= 1e-6 * high.abs().max(1e-6) || cam.data.iter().any(|v| !v.is_finite()) {
        return WHOLE;
    }
    let n = rule.enlarge.clamp(1, 16);
    let (w, h) = (cam.width * n, cam.height * n);
    let inner = |i: usize, count: usize| ((i as f64 + 0.5) / n as f64 - 0.5).clamp(0.0, count as f64 - 1.0);
    let map: Vec<f32> = (0..w * h)
        .map(|i| (bilinear(cam, inner(i % w, cam.width), inner(i / w, cam.height), 0.0) - low) / range)
        .collect();
    let mask: Vec<bool> = map.iter().map(|&v| v > rule.threshold).collect();
    let found = components(&mask, [w, h, 1], Connectivity::Corners);
    let mut evidence = vec![0f32; found.sizes.len()];
    for (&l, v) in found.labels.iter().zip(&map) {
        if l > 0 {
            evidence[l as usize - 1] += v;
        }
    }
    let most = evidence.iter().copied().fold(0.0, f32::max);
    let mut b = [w, h, 0, 0];
    for (i, &l) in found.labels.iter().enumerate() {
        if l > 0 && evidence[l as usize - 1] >= rule.share.clamp(0.0, 1.0) * most {
            let (x, y) = (i % w, i / w);
            b = [b[0].min(x), b[1].min(y), b[2].max(x + 1), b[3].max(y + 1)];
        }
    }
    if b[2] <= b[0] || b[3] <= b[1] {
        return WHOLE;
    }
    let corners = [
        b[0] as f32 / w as f32 - rule.margin,
        b[1] as f32 / h as f32 - rule.margin,
        b[2] as f32 / w as f32 + rule.margin,
        b[3] as f32 / h as f32 + rule.margin,
    ];
    BoxPrompt { corners: corners.map(|v| v.clamp(0.0, 1.0)), fallback: false }
}

/// A box whose edges each move by a normal amount of standard deviation `amount` times the box's extent, kept inside
/// the unit square and at least 1/64 wide.
pub fn jitter(corners: [f32; 4], amount: f32, rng: &mut impl Rng) -> [f32; 4] {
    let Ok(normal) = Normal::new(0.0f32, amount.max(0.0)) else { return corners };
    let extent = [corners[2] - corners[0], corners[3] - corners[1]];
    let mut out = [0.0; 4];
    for (i, v) in out.iter_mut().enumerate() {
        *v = (corners[i] + normal.sample(rng) * extent[i % 2]).clamp(0.0, 1.0);
    }
    for a in 0..2 {
        if out[a + 2] - out[a] < 1.0 / 64.0 {
            let middle = ((out[a] + out[a + 2]) / 2.0).clamp(1.0 / 128.0, 1.0 - 1.0 / 128.0);
            (out[a], out[a + 2]) = (middle - 1.0 / 128.0, middle + 1.0 / 128.0);
        }
    }
    out
}

/// The true box of a label in a label plane of the crop, in the unit square; `None` where the label is absent.
pub fn true_box(labels: &Plane<u8>, label: u8) -> Option<[f32; 4]> {
    let mut b = [usize::MAX, usize::MAX, 0, 0];
    for (i, _) in labels.data.iter().enumerate().filter(|(_, l)| **l == label) {
        let (x, y) = (i % labels.width, i / labels.width);
        b = [b[0].min(x), b[1].min(y), b[2].max(x + 1), b[3].max(y + 1)];
    }
    (b[2] > 0).then(|| {
        let (w, h) = (labels.width as f32, labels.height as f32);
        [b[0] as f32 / w, b[1] as f32 / h, b[2] as f32 / w, b[3] as f32 / h]
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn the_box_holds_the_peak_and_not_the_weak_one() {
        let mut cam = Plane::filled(16, 16, 0.1f32);
        for y in 4..8 {
            for x in 9..13 {
                cam.data[y * 16 + x] = 2.0;
            }
        }
        cam.data[13 * 16 + 2] = 1.2;
        let b = cam_box(&cam, &PromptRule::default());
        assert!(!b.fallback);
        for (got, expected) in b.corners.iter().zip([9.0 / 16.0, 4.0 / 16.0, 13.0 / 16.0, 8.0 / 16.0]) {
            assert!((got - expected).abs() < 0.04, "{:?}", b.corners);
        }
    }

    #[test]
    fn a_flat_or_broken_map_falls_back_to_the_whole_input() {
        for value in [0.0, 3.0, f32::NAN, f32::INFINITY] {
            let b = cam_box(&Plane::filled(8, 8, value), &PromptRule::default());
            assert!(b.fallback && b.corners == [0.0, 0.0, 1.0, 1.0]);
        }
    }

    #[test]
    fn true_box_is_tight() {
        let mut labels = Plane::filled(8, 4, 0u8);
        labels.data[8 + 2] = 3;
        labels.data[2 * 8 + 5] = 3;
        assert_eq!(true_box(&labels, 3), Some([0.25, 0.25, 0.75, 0.75]));
        assert_eq!(true_box(&labels, 1), None);
    }

    proptest! {
        #[test]
        fn boxes_are_ordered_and_inside(
            data in proptest::collection::vec(-1.0f32..1.0, 64), seed in any::<u64>(), amount in 0.0f32..0.5,
        ) {
            let b = cam_box(&Plane { width: 8, height: 8, data }, &PromptRule::default()).corners;
            let j = jitter(b, amount, &mut ChaCha8Rng::seed_from_u64(seed));
            for c in [b, j] {
                prop_assert!(c[0] < c[2] && c[1] < c[3] && c.iter().all(|v| (0.0..=1.0).contains(v)), "{:?}", c);
            }
        }
    }
}
