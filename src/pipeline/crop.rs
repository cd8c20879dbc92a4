//! The square of one leg that the network sees, and the way there and back.
//!
//! A crop is constant over the volume, measured in millimetres (anisotropic pixels are made square), and shows every
//! leg as a right leg in the radiological axial image: columns to the patient's left, rows to the back. A left leg is
//! mirrored on the way in and mirrored back on the way out; an image stored the other way round is turned.

use serde::{Deserialize, Serialize};

use super::legs::{Leg, LegError, find_legs, percentile};
use crate::engine::Tensor;
use crate::image::{Geometry, Plane, Volume};
use crate::segex::LegFrame;
use crate::terms::Side;

/// Channel means of the images that SAM was trained on, 0 to 255.
pub const SAM_MEAN: [f32; 3] = [123.675, 116.28, 103.53];
/// Channel standard deviations of the images that SAM was trained on, 0 to 255.
pub const SAM_STD: [f32; 3] = [58.395, 57.12, 57.375];

/// How large the square is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "extent", deny_unknown_fields)]
pub enum CropRule {
    /// The leg's longer extent over the volume plus a margin on every side: the leg fills the input whatever its size.
    Leg {
        /// Margin, millimetres.
        margin_mm: f64,
    },
    /// A fixed field of view round the leg's middle.
    Fixed {
        /// Side of the square, millimetres.
        mm: f64,
    },
}

impl Default for CropRule {
    fn default() -> Self {
        CropRule::Leg { margin_mm: 6.0 }
    }
}

/// A square of the source grid, resampled to `size` x `size`.
#[derive(Clone, Debug, PartialEq)]
pub struct Crop {
    /// The side of the leg, where known.
    pub side: Option<Side>,
    /// Pixels along an edge of the crop.
    pub size: usize,
    /// Columns and rows of the source grid.
    pub source: [usize; 2],
    /// Middle of the square in source pixels (the centre of pixel 0 is 0).
    pub centre: [f64; 2],
    /// Edge of the square in source pixels along columns and rows.
    pub extent: [f64; 2],
    /// Whether columns and rows run against the source's.
    pub flip: [bool; 2],
    /// Edge of the square, millimetres.
    pub mm: f64,
}

impl Crop {
    /// The crop of a leg, `size` pixels along an edge.
    pub fn new(geometry: &Geometry, leg: &Leg, rule: CropRule, size: usize) -> Self {
        let [x0, y0, x1, y1] = leg.bounds.map(|v| v as f64);
        let [sx, sy, _] = geometry.spacing;
        let mm = match rule {
            CropRule::Leg { margin_mm } => ((x1 - x0) * sx).max((y1 - y0) * sy) + 2.0 * margin_mm,
            CropRule::Fixed { mm } => mm,
        }
        .max(1.0);
        let mirrored = leg.side == Some(Side::Left);
        Crop {
            side: leg.side,
            size: size.max(1),
            source: [geometry.dims[0], geometry.dims[1]],
            centre: [(x0 + x1 - 1.0) / 2.0, (y0 + y1 - 1.0) / 2.0],
            extent: [mm / sx, mm / sy],
            flip: [mirrored != (geometry.axes[0][0] < 0.0), geometry.axes[1][1] < 0.0],
            mm,
        }
    }

    /// The same crop at another resolution.
    pub fn resized(&self, size: usize) -> Self {
        Crop { size: size.max(1), ..self.clone() }
    }

    /// The crop moved by fractions of its edge (in the crop's own directions) and enlarged by `zoom` (1 keeps it).
    pub fn moved(&self, dx: f64, dy: f64, zoom: f64) -> Self {
        let sign = self.flip.map(|f| if f { -1.0 } else { 1.0 });
        Crop {
            centre: [self.centre[0] + sign[0] * dx * self.extent[0], self.centre[1] + sign[1] * dy * self.extent[1]],
            extent: self.extent.map(|e| e * zoom),
            mm: self.mm * zoom,
            ..self.clone()
        }
    }

    /// Edge of a crop pixel, millimetres.
    pub fn pixel_mm(&self) -> f64 {
        self.mm / self.size as f64
    }

    /// Source pixel coordinates of a point of the square, `u` and `v` from 0 to 1.
    pub fn to_source(&self, u: f64, v: f64) -> [f64; 2] {
        let p = [u, v];
        [0, 1].map(|a| {
            let t = if self.flip[a] { 1.0 - p[a] } else { p[a] };
            self.centre[a] + (t - 0.5) * self.extent[a]
        })
    }

    /// Coordinates in the square (0 to 1 inside) of a point in source pixels.
    pub fn to_square(&self, x: f64, y: f64) -> [f64; 2] {
        let p = [x, y];
        [0, 1].map(|a| {
            let t = (p[a] - self.centre[a]) / self.extent[a] + 0.5;
            if self.flip[a] { 1.0 - t } else { t }
        })
    }

    /// A source slice through the crop: bilinear where the crop is finer, area means where it is coarser; 0 outside.
    pub fn sample(&self, plane: &Plane<f32>) -> Plane<f32> {
        let n = self.oversampling();
        self.each(|u, v, step| {
            let mut sum = 0.0;
            for b in 0..n {
                for a in 0..n {
                    let o = |k: usize| ((k as f64 + 0.5) / n as f64 - 0.5) * step;
                    let [x, y] = self.to_source(u + o(a), v + o(b));
                    sum += bilinear(plane, x, y, 0.0);
                }
            }
            sum / (n * n) as f32
        })
    }

    /// Labels of a source slice through the crop: the nearest, or the commonest where the crop is coarser (the smaller
    /// label of equals); 0 outside.
    pub fn sample_labels(&self, plane: &Plane<u8>) -> Plane<u8> {
        let n = self.oversampling();
        self.each(|u, v, step| {
            let mut votes: Vec<(u8, usize)> = Vec::with_capacity(4);
            for b in 0..n {
                for a in 0..n {
                    let o = |k: usize| ((k as f64 + 0.5) / n as f64 - 0.5) * step;
                    let [x, y] = self.to_source(u + o(a), v + o(b));
                    let l = nearest(plane, x, y, 0);
                    match votes.iter_mut().find(|(v, _)| *v == l) {
                        Some((_, c)) => *c += 1,
                        None => votes.push((l, 1)),
                    }
                }
            }
            votes.into_iter().min_by_key(|&(l, c)| (std::cmp::Reverse(c), l)).map_or(0, |(l, _)| l)
        })
    }

    /// A plane over the square, of any resolution, back on the source grid: bilinear; `outside` beyond the square.
    pub fn restore(&self, square: &Plane<f32>, outside: f32) -> Plane<f32> {
        let mut out = Plane::filled(self.source[0], self.source[1], outside);
        let [x0, y0, x1, y1] = self.window();
        for y in y0..y1 {
            for x in x0..x1 {
                let [u, v] = self.to_square(x as f64, y as f64);
                if (0.0..=1.0).contains(&u) && (0.0..=1.0).contains(&v) {
                    // Half a pixel inside the square's edge the outermost value holds.
                    let p = (u * square.width as f64 - 0.5).clamp(0.0, square.width as f64 - 1.0);
                    let q = (v * square.height as f64 - 0.5).clamp(0.0, square.height as f64 - 1.0);
                    out.data[y * self.source[0] + x] = bilinear(square, p, q, outside);
                }
            }
        }
        out
    }

    /// Labels over the square, of any resolution, back on the source grid: the nearest; 0 beyond the square.
    pub fn restore_labels(&self, square: &Plane<u8>) -> Plane<u8> {
        let mut out = Plane::filled(self.source[0], self.source[1], 0);
        let [x0, y0, x1, y1] = self.window();
        for y in y0..y1 {
            for x in x0..x1 {
                let [u, v] = self.to_square(x as f64, y as f64);
                out.data[y * self.source[0] + x] =
                    nearest(square, u * square.width as f64 - 0.5, v * square.height as f64 - 0.5, 0);
            }
        }
        out
    }

    /// Source columns and rows that the square may reach: first column, first row, one past the last of each.
    pub fn window(&self) -> [usize; 4] {
        let lo = |a: usize| ((self.centre[a] - self.extent[a] / 2.0).floor().max(0.0) as usize).min(self.source[a]);
        let hi = |a: usize| {
            ((self.centre[a] + self.extent[a] / 2.0).ceil().max(-1.0) + 1.0).min(self.source[a] as f64) as usize
        };
        [lo(0), lo(1), hi(0).max(lo(0)), hi(1).max(lo(1))]
    }

    /// How many samples along each direction a crop pixel is the mean of.
    fn oversampling(&self) -> usize {
        let step = self.extent[0].max(self.extent[1]) / self.size as f64;
        (step.ceil() as usize).clamp(1, 8)
    }

    fn each<T: Copy>(&self, mut f: impl FnMut(f64, f64, f64) -> T) -> Plane<T> {
        let step = 1.0 / self.size as f64;
        let data = (0..self.size * self.size)
            .map(|i| f(((i % self.size) as f64 + 0.5) * step, ((i / self.size) as f64 + 0.5) * step, step))
            .collect();
        Plane { width: self.size, height: self.size, data }
    }
}

/// Bilinear interpolation; a neighbour outside the plane counts as `outside`.
pub(crate) fn bilinear(plane: &Plane<f32>, x: f64, y: f64, outside: f32) -> f32 {
    let (fx, fy) = (x.floor(), y.floor());
    let (wx, wy) = ((x - fx) as f32, (y - fy) as f32);
    let at = |i: f64, j: f64| {
        if i >= 0.0 && j >= 0.0 && i < plane.width as f64 && j < plane.height as f64 {
            plane.data[j as usize * plane.width + i as usize]
        } else {
            outside
        }
    };
    let top = if wx == 0.0 { at(fx, fy) } else { at(fx, fy) * (1.0 - wx) + at(fx + 1.0, fy) * wx };
    if wy == 0.0 {
        return top;
    }
    let low = if wx == 0.0 { at(fx, fy + 1.0) } else { at(fx, fy + 1.0) * (1.0 - wx) + at(fx + 1.0, fy + 1.0) * wx };
    top * (1.0 - wy) + low * wy
}

fn nearest(plane: &Plane<u8>, x: f64, y: f64, outside: u8) -> u8 {
    let (i, j) = ((x + 0.5).floor(), (y + 0.5).floor());
    if i >= 0.0 && j >= 0.0 && i < plane.width as f64 && j < plane.height as f64 {
        plane.data[j as usize * plane.width + i as usize]
    } else {
        outside
    }
}

/// A linear window of intensities, mapped to 0..255.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Window {
    /// Maps to 0.
    pub low: f32,
    /// Maps to 255.
    pub high: f32,
}

impl Window {
    /// The window from the 0.5th to the 99.5th percentile of a leg over the whole volume: robust against ghosts and
    /// vessels, equal for every slice.
    pub fn of(volume: &Volume, leg: &Leg) -> Self {
        let inside: Vec<f32> =
            volume.data.iter().zip(&leg.mask).filter(|(v, m)| **m && v.is_finite()).map(|(v, _)| *v).collect();
        let low = percentile(&inside, 0.005).unwrap_or(0.0);
        let high = percentile(&inside, 0.995).unwrap_or(1.0);
        Window { low, high: if high > low { high } else { low + 1.0 } }
    }

    /// A value in 0..255.
    pub fn apply(&self, v: f32) -> f32 {
        let t = (v - self.low) / (self.high - self.low);
        if t.is_finite() { t.clamp(0.0, 1.0) * 255.0 } else { 0.0 }
    }
}

/// A crop whose values are 0..255 as the network's input `[1, 3, S, S]`: grey in three channels, SAM's normalisation.
pub fn to_input(grey: &Plane<f32>) -> Tensor {
    let n = grey.data.len();
    let mut data = Vec::with_capacity(3 * n);
    for c in 0..3 {
        data.extend(grey.data.iter().map(|v| (v - SAM_MEAN[c]) / SAM_STD[c]));
    }
    Tensor::new(&[1, 3, grey.height, grey.width], data)
}

/// A leg with its crop and window: all that turning slices into inputs needs. Training and serving share it.
#[derive(Clone, Debug)]
pub struct LegView {
    /// The leg.
    pub leg: Leg,
    /// Its square.
    pub crop: Crop,
    /// Its intensities.
    pub window: Window,
}

impl LegView {
    /// The leg's box and orientation, against which SegEx measures shapes.
    pub fn frame(&self, geometry: &Geometry) -> LegFrame {
        LegFrame { bounds: self.leg.bounds, flip: self.crop.flip, spacing: [geometry.spacing[0], geometry.spacing[1]] }
    }

    /// Slice `z` through the crop, 0..255, `[S, S]`.
    pub fn grey(&self, volume: &Volume, z: usize) -> Plane<f32> {
        self.grey_through(&self.crop, volume, z)
    }

    /// The same through another crop of this leg.
    pub(super) fn grey_through(&self, crop: &Crop, volume: &Volume, z: usize) -> Plane<f32> {
        let mut plane = crop.sample(&volume.plane(z));
        for v in &mut plane.data {
            *v = self.window.apply(*v);
        }
        plane
    }

    /// Slice `z` as the network's input `[1, 3, S, S]`.
    pub fn input(&self, volume: &Volume, z: usize) -> Tensor {
        to_input(&self.grey(volume, z))
    }
}

/// Finds the legs of a volume and lays a crop over each, the patient's right leg first; with sentences a reader should
/// see. `hint` is the header's laterality, used for a single leg only.
///
/// # Errors
/// [`LegError`] as [`find_legs`].
pub fn leg_views(
    volume: &Volume,
    rule: CropRule,
    size: usize,
    hint: Option<Side>,
) -> Result<(Vec<LegView>, Vec<String>), LegError> {
    let found = find_legs(volume, hint)?;
    let views = found
        .legs
        .into_iter()
        .map(|leg| LegView {
            crop: Crop::new(&volume.geometry, &leg, rule, size),
            window: Window::of(volume, &leg),
            leg,
        })
        .collect();
    Ok((views, found.remarks))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Two ellipses, each with a bright dot on its patient-left side and a dimmer one at the back.
    fn two_legs(flip_x: bool, spacing: [f64; 3]) -> Volume {
        let dims = [(400.0 / spacing[0]) as usize, (220.0 / spacing[1]) as usize, 3];
        let mut g = Geometry::axial(dims, spacing);
        if flip_x {
            g.axes[0] = [-1.0, 0.0, 0.0];
            g.axes[2] = [0.0, 0.0, -1.0];
            g.origin[0] = 200.0;
        } else {
            g.origin[0] = -200.0;
        }
        let mut data = vec![3.0; g.voxels()];
        for (i, v) in data.iter_mut().enumerate() {
            let (x, y, z) = (i % dims[0], i / dims[0] % dims[1], i / (dims[0] * dims[1]));
            let p = g.to_patient([x as f64, y as f64, z as f64]);
            for c in [-100.0, 95.0] {
                let (dx, dy) = (p[0] - c, p[1] - 110.0);
                if (dx / 80.0).hypot(dy / 70.0) < 1.0 {
                    *v = 400.0;
                    if (dx - 50.0).hypot(dy) < 8.0 {
                        *v = 900.0;
                    }
                    if dx.hypot(dy - 50.0) < 8.0 {
                        *v = 700.0;
                    }
                }
            }
        }
        Volume { geometry: g, data }
    }

    #[test]
    fn both_legs_look_like_a_right_leg() {
        for (flip, spacing) in [(false, [1.0, 1.0, 5.0]), (true, [1.0, 1.0, 5.0]), (false, [0.8, 1.6, 5.0])] {
            let v = two_legs(flip, spacing);
            let (views, remarks) = leg_views(&v, CropRule::default(), 128, None).unwrap();
            assert_eq!(views.iter().map(|l| l.leg.side).collect::<Vec<_>>(), [Some(Side::Right), Some(Side::Left)]);
            assert!(remarks.is_empty());
            for view in &views {
                assert!((view.crop.mm - 172.0).abs() < 6.0, "{}", view.crop.mm);
                let grey = view.crop.sample(&v.plane(1));
                let at = |dx: f64, dy: f64| {
                    grey.at((64.0 + dx / view.crop.pixel_mm()) as usize, (64.0 + dy / view.crop.pixel_mm()) as usize)
                };
                // The dot on the patient's left is medial in a right leg (right half) and lateral in a left leg, whose
                // mirrored crop therefore shows it in the left half. The other dot is at the back in both.
                let medial = if view.leg.side == Some(Side::Right) { 50.0 } else { -50.0 };
                assert!(at(medial, 0.0) > 800.0 && at(-medial, 0.0) < 500.0);
                assert!(at(0.0, 50.0) > 600.0 && at(0.0, -50.0) < 500.0);
            }
        }
    }

    #[test]
    fn a_single_leg_takes_the_header_then_its_place() {
        let mut v = two_legs(false, [1.0, 1.0, 5.0]);
        for (i, value) in v.data.iter_mut().enumerate() {
            if i % 400 > 198 {
                *value = 3.0;
            }
        }
        let side = |hint| find_legs(&v, hint).map(|l| (l.legs.len(), l.legs[0].side, l.remarks.len()));
        assert_eq!(side(None), Ok((1, Some(Side::Right), 1)));
        assert_eq!(side(Some(Side::Right)), Ok((1, Some(Side::Right), 0)));
        assert_eq!(side(Some(Side::Left)), Ok((1, Some(Side::Left), 1)));
        v.geometry.origin[0] = -100.0;
        assert_eq!(find_legs(&v, None).map(|l| l.legs[0].side), Ok(None));
    }

    #[test]
    fn what_is_no_leg_is_refused() {
        let g = Geometry::axial([128, 128, 4], [1.0, 1.0, 5.0]);
        let empty = Volume { data: vec![0.0; g.voxels()], geometry: g.clone() };
        assert_eq!(find_legs(&empty, None), Err(LegError::Empty));
        let mut dot = empty.clone();
        for z in 0..4 {
            for i in 0..20 {
                dot.data[z * 16384 + 60 * 128 + 50 + i] = 100.0;
                dot.data[z * 16384 + 61 * 128 + 50 + i] = 100.0;
            }
        }
        assert!(matches!(find_legs(&dot, None), Err(LegError::None { missing: 4, .. })));
        let mut sagittal = two_legs(false, [1.0, 1.0, 5.0]);
        sagittal.geometry.axes = [[0.0, 1.0, 0.0], [0.0, 0.0, -1.0], [-1.0, 0.0, 0.0]];
        assert!(matches!(find_legs(&sagittal, None), Err(LegError::NotAxial { .. })));
        let trunk = Geometry::axial([400, 250, 3], [1.0, 1.0, 5.0]);
        let data = (0..trunk.voxels())
            .map(|i| {
                let (x, y) = ((i % 400) as f64 - 200.0, (i / 400 % 250) as f64 - 125.0);
                if (x / 180.0).hypot(y / 110.0) < 1.0 { 500.0 } else { 2.0 }
            })
            .collect();
        assert!(matches!(find_legs(&Volume { geometry: trunk, data }, None), Err(LegError::TooWide { .. })));
    }

    proptest! {
        #[test]
        fn labels_survive_the_round_trip(
            side in prop_oneof![Just(None), Just(Some(Side::Right)), Just(Some(Side::Left))],
            flip in any::<(bool, bool)>(),
            sx in 0.6f64..1.4, sy in 0.6f64..1.4,
            cx in 20usize..40, cy in 20usize..40, r in 8usize..16,
        ) {
            let mut g = Geometry::axial([64, 64, 1], [sx, sy, 5.0]);
            if flip.0 { g.axes[0][0] = -1.0; }
            if flip.1 { g.axes[1][1] = -1.0; }
            let leg = Leg { side, bounds: [cx - r, cy - r, cx + r, cy + r], mask: Vec::new() };
            let crop = Crop::new(&g, &leg, CropRule::Leg { margin_mm: 3.0 }, 96);
            let mut labels = Plane::filled(64, 64, 0u8);
            for y in cy - r..cy + r {
                for x in cx - r..cx + r {
                    labels.data[y * 64 + x] = 1 + ((x / 4 + y / 4) % 3) as u8;
                }
            }
            // The crop is finer than the source, so nearest there and back is the identity inside it.
            prop_assert_eq!(&crop.restore_labels(&crop.sample_labels(&labels)), &labels);
            // Points too.
            let [u, v] = crop.to_square(cx as f64, cy as f64);
            let [x, y] = crop.to_source(u, v);
            prop_assert!((x - cx as f64).abs() < 1e-9 && (y - cy as f64).abs() < 1e-9);
        }

        #[test]
        fn a_smooth_image_survives_the_round_trip(a in -2.0f32..2.0, b in -2.0f32..2.0, left in any::<bool>()) {
            let g = Geometry::axial([48, 40, 1], [1.0, 1.2, 5.0]);
            let leg = Leg { side: Some(if left { Side::Left } else { Side::Right }), bounds: [10, 10, 34, 30], mask: Vec::new() };
            let crop = Crop::new(&g, &leg, CropRule::Leg { margin_mm: 2.0 }, 64);
            let image = Plane { width: 48, height: 40, data: (0..48 * 40).map(|i| a * (i % 48) as f32 + b * (i / 48) as f32).collect() };
            let back = crop.restore(&crop.sample(&image), f32::NAN);
            for y in 12..28 {
                for x in 12..32 {
                    prop_assert!((back.at(x, y) - image.at(x, y)).abs() < 0.01);
                }
            }
            prop_assert!(back.at(0, 0).is_nan());
        }
    }
}
