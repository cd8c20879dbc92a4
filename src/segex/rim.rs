//! What lies just inside and just outside of a mask's contour, and how smooth the contour is.

use super::measure::{Measure, Region};
use crate::image::morphology::{contour, dilate, distance, erode};
use crate::image::{LabelMap, Volume};

/// Depth of the shell outside the contour, mm.
const SHELL_MM: f64 = 3.0;
/// Depth of the rim inside the contour, mm.
const RIM_MM: f64 = 2.0;
/// Intensities up to this many robust deviations from the core's median are the structure's own.
const ALIKE: f32 = 2.5;
/// Intensities beyond this many are foreign, as for the outliers of C3.
const FOREIGN: f32 = 4.0;
/// Fewer voxels than this have no intensity of their own.
const LEAST_CORE: usize = 8;
/// Structures finer than this are roughness, mm.
const ROUGH_MM: f64 = 3.0;

/// Both sides of a contour.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rim {
    /// C2: share of the shell outside that looks like the structure, lies in the leg, and no label claims.
    pub unclaimed: Measure,
    /// C3: share of the rim inside whose intensity is foreign to the core.
    pub foreign: Measure,
    /// C5: share of the mask that smoothing by 3 mm would take away or add.
    pub rough: Measure,
    /// C1: mean step across the contour, shell against rim, in robust deviations of the core.
    pub step: Measure,
}

/// Looks at both sides of one label's contour; `leg` is the leg's mask on the volume's grid.
pub fn rim(labels: &LabelMap, label: u8, volume: &Volume, leg: &[bool]) -> Rim {
    let g = &labels.geometry;
    let pixel = g.spacing[0].max(g.spacing[1]);
    let border = (SHELL_MM / g.spacing[0].min(g.spacing[1])).ceil().min(64.0) as usize + 2;
    let mut out = Rim::default();
    let Some(mut r) = Region::round(g, border, |i| labels.data[i] == label) else { return out };
    r.mask = r.cut(&labels.data, g.dims).map(|l| *l == label).collect();
    let values: Vec<f32> = r.cut(&volume.data, g.dims).copied().collect();
    let claimed: Vec<bool> = r.cut(&labels.data, g.dims).map(|l| *l != 0).collect();
    let in_leg: Vec<bool> =
        if leg.len() == labels.data.len() { r.cut(leg, g.dims).copied().collect() } else { vec![true; values.len()] };
    let flat = [g.spacing[0], g.spacing[1], 1e4];
    let outside = distance(&r.mask, r.dims, flat);
    let inside = distance(&r.mask.iter().map(|m| !m).collect::<Vec<_>>(), r.dims, flat);
    // At least one pixel deep, however coarse.
    let shell_mm = SHELL_MM.max(1.01 * pixel) as f32;
    let rim_mm = RIM_MM.max(1.01 * pixel) as f32;
    let Some((median, deviation)) = core(&values, &r.mask, &inside, rim_mm) else { return out };
    let off = |i: usize| (values[i] - median).abs() / deviation;
    let smooth = smoothed(&r, flat);
    let mut sums = [[0.0f64; 2]; 4];
    for z in 0..r.dims[2] {
        let own = z * r.plane()..(z + 1) * r.plane();
        if !r.mask[own.clone()].contains(&true) {
            continue;
        }
        let mut at = [[0.0f64; 2]; 4];
        let mut count = |k: usize, yes: bool| {
            at[k][0] += f64::from(u8::from(yes));
            at[k][1] += 1.0;
        };
        let (mut rim_sum, mut shell_sum) = ([0.0f64; 2], [0.0f64; 2]);
        let mut changed = 0.0;
        for i in own {
            changed += f64::from(u8::from(smooth[i] != r.mask[i]));
            if r.mask[i] {
                count(2, false);
                if inside[i] <= rim_mm {
                    count(1, off(i) > FOREIGN);
                    rim_sum = [rim_sum[0] + f64::from(values[i]), rim_sum[1] + 1.0];
                }
            } else if outside[i] <= shell_mm {
                count(0, in_leg[i] && !claimed[i] && off(i) <= ALIKE);
                shell_sum = [shell_sum[0] + f64::from(values[i]), shell_sum[1] + 1.0];
            }
        }
        at[2][0] = changed;
        if rim_sum[1] > 0.0 && shell_sum[1] > 0.0 {
            let step = (rim_sum[0] / rim_sum[1] - shell_sum[0] / shell_sum[1]).abs() / f64::from(deviation);
            at[3] = [step * rim_sum[1], rim_sum[1]];
        }
        let measures = [&mut out.unclaimed, &mut out.foreign, &mut out.rough, &mut out.step];
        for ((m, own), all) in measures.into_iter().zip(at).zip(&mut sums) {
            if own[1] > 0.0 {
                m.slices.push((r.start[2] + z, own[0] / own[1]));
                *all = [all[0] + own[0], all[1] + own[1]];
            }
        }
    }
    let share = |s: [f64; 2]| (s[1] > 0.0).then(|| s[0] / s[1]);
    out.unclaimed.value = share(sums[0]);
    out.foreign.value = share(sums[1]);
    out.rough.value = share(sums[2]);
    out.step.value = share(sums[3]);
    out
}

/// Median and robust deviation of the mask away from its rim; of the whole mask where nothing lies deeper.
fn core(values: &[f32], mask: &[bool], inside: &[f32], rim_mm: f32) -> Option<(f32, f32)> {
    let of = |deep: bool| -> Vec<f32> {
        (0..mask.len()).filter(|&i| mask[i] && (!deep || inside[i] > rim_mm)).map(|i| values[i]).collect()
    };
    let mut own = of(true);
    if own.len() < LEAST_CORE {
        own = of(false);
    }
    if own.len() < LEAST_CORE {
        return None;
    }
    let k = own.len() / 2;
    let median = *own.select_nth_unstable_by(k, f32::total_cmp).1;
    own.iter_mut().for_each(|v| *v = (*v - median).abs());
    let mad = *own.select_nth_unstable_by(k, f32::total_cmp).1;
    Some((median, (1.4826 * mad).max(1e-6)))
}

/// The mask opened and then closed in each slice.
fn smoothed(r: &Region, flat: [f64; 3]) -> Vec<bool> {
    let mm = ROUGH_MM.max(1.01 * flat[0].max(flat[1]));
    let opened = dilate(&erode(&r.mask, r.dims, flat, mm), r.dims, flat, mm);
    erode(&dilate(&opened, r.dims, flat, mm), r.dims, flat, mm)
}

/// How a mask lies to a second one of the same structure: their Dice, and the surface Dice at two millimetres.
pub fn likeness(labels: &LabelMap, other: &LabelMap, label: u8) -> [Measure; 2] {
    const NEAR_MM: f64 = 2.0;
    let mut out: [Measure; 2] = Default::default();
    let g = &labels.geometry;
    let Some(r) = Region::round(g, 2, |i| labels.data[i] == label || other.data[i] == label) else { return out };
    let cut = |map: &LabelMap| -> Vec<bool> { r.cut(&map.data, g.dims).map(|l| *l == label).collect() };
    let (a, b) = (cut(labels), cut(other));
    let flat = [g.spacing[0], g.spacing[1], 1e4];
    let (rim_a, rim_b) = (contour(&a, r.dims), contour(&b, r.dims));
    let (to_a, to_b) = (distance(&rim_a, r.dims, flat), distance(&rim_b, r.dims, flat));
    let near = NEAR_MM.max(1.01 * g.spacing[0].max(g.spacing[1])) as f32;
    let mut sums = [[0.0f64; 2]; 2];
    for z in 0..r.dims[2] {
        let mut at = [[0.0f64; 2]; 2];
        for i in z * r.plane()..(z + 1) * r.plane() {
            at[0][0] += f64::from(2 * u8::from(a[i] && b[i]));
            at[0][1] += f64::from(u8::from(a[i]) + u8::from(b[i]));
            at[1][0] += f64::from(u8::from(rim_a[i] && to_b[i] <= near) + u8::from(rim_b[i] && to_a[i] <= near));
            at[1][1] += f64::from(u8::from(rim_a[i]) + u8::from(rim_b[i]));
        }
        for ((m, own), all) in out.iter_mut().zip(at).zip(&mut sums) {
            if own[1] > 0.0 {
                m.slices.push((r.start[2] + z, own[0] / own[1]));
                *all = [all[0] + own[0], all[1] + own[1]];
            }
        }
    }
    for (m, s) in out.iter_mut().zip(sums) {
        m.value = (s[1] > 0.0).then(|| s[0] / s[1]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Geometry;

    /// A bright disc of 20 mm on dark ground, one slice; its mask is a disc of another radius.
    fn scene(radius: f64) -> (Volume, LabelMap, Vec<bool>) {
        let geometry = Geometry::axial([80, 80, 2], [1.0, 1.0, 5.0]);
        let far = |i: usize| ((i % 80) as f64 - 40.0).hypot((i / 80 % 80) as f64 - 40.0);
        let texture = |i: usize| ((i * 7919) % 13) as f32;
        let n = geometry.voxels();
        let data = (0..n).map(|i| if far(i) <= 20.0 { 300.0 + texture(i) } else { 20.0 + texture(i) }).collect();
        let mask = (0..n).map(|i| u8::from(far(i) <= radius)).collect();
        (Volume { geometry: geometry.clone(), data }, LabelMap { geometry, data: mask }, vec![true; n])
    }

    fn values(radius: f64) -> [f64; 4] {
        let (volume, labels, leg) = scene(radius);
        let r = rim(&labels, 1, &volume, &leg);
        [r.unclaimed, r.foreign, r.rough, r.step].map(|m| m.value.unwrap())
    }

    #[test]
    fn too_small_shows_outside_and_too_large_inside() {
        let (right, small, large) = (values(20.0), values(16.0), values(23.0));
        assert!(right[0] < 0.01 && right[1] < 0.01 && right[2] < 0.05, "{right:?}");
        assert!(small[0] > 0.9 && small[1] < 0.01, "{small:?}");
        assert!(large[0] < 0.01 && large[1] > 0.9, "{large:?}");
        assert!(right[3] > 4.0 * small[3] && right[3] > 4.0 * large[3], "{right:?} {small:?} {large:?}");
    }

    #[test]
    fn what_a_neighbour_claims_is_not_missing_and_the_leg_ends_it() {
        let (volume, mut labels, leg) = scene(16.0);
        let none = |_: usize| false;
        let nowhere: Vec<bool> = (0..leg.len()).map(none).collect();
        assert_eq!(rim(&labels, 1, &volume, &nowhere).unclaimed.value, Some(0.0));
        for l in labels.data.iter_mut().filter(|l| **l == 0) {
            *l = 2;
        }
        assert_eq!(rim(&labels, 1, &volume, &leg).unclaimed.value, Some(0.0));
        assert_eq!(rim(&labels, 3, &volume, &leg), Rim::default());
    }

    #[test]
    fn a_jagged_contour_is_rough() {
        let (volume, mut labels, leg) = scene(20.0);
        let smooth = rim(&labels, 1, &volume, &leg).rough.value.unwrap();
        for (i, l) in labels.data.iter_mut().enumerate() {
            let (x, y) = ((i % 80) as f64 - 40.0, (i / 80 % 80) as f64 - 40.0);
            let radius = 18.0 + 3.0 * (y.atan2(x) * 16.0).sin();
            *l = u8::from(x.hypot(y) <= radius);
        }
        let jagged = rim(&labels, 1, &volume, &leg).rough.value.unwrap();
        assert!(jagged > 0.1 && jagged > 4.0 * smooth, "{jagged} {smooth}");
    }

    #[test]
    fn two_results_are_alike_where_they_lie_alike() {
        let (_, a, _) = scene(20.0);
        let (_, b, _) = scene(16.0);
        assert_eq!(likeness(&a, &a, 1).map(|m| m.value), [Some(1.0), Some(1.0)]);
        let [dice, near] = likeness(&a, &b, 1).map(|m| m.value.unwrap());
        assert!((dice - 2.0 * 256.0 / (400.0 + 256.0)).abs() < 0.01, "{dice}");
        assert_eq!(near, 0.0, "4 mm apart all round");
        assert_eq!(likeness(&a, &a, 7).map(|m| m.value), [None, None]);
    }
}
