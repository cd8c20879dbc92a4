//! What the calibration set looked like, so that served cases can be held against it: area, intensity and SegEx score of each
//! structure.

use serde::{Deserialize, Serialize};

use crate::image::{LabelMap, Volume};

/// Quantile of a volume's values that intensities are relative to.
const BRIGHT: f64 = 0.995;
/// Every so many voxels are looked at for it.
const STRIDE: usize = 7;

/// Mean and spread of one quantity over the calibration set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// Values behind it.
    pub count: usize,
    /// Mean.
    pub mean: f64,
    /// Standard deviation; 0 of a single value.
    pub sd: f64,
}

impl Spread {
    /// Mean and standard deviation; `None` without a finite value.
    pub fn of(values: &[f64]) -> Option<Spread> {
        let values: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let sum: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        Some(Spread { count: n, mean, sd: (sum / (n.max(2) - 1) as f64).sqrt() })
    }
}

/// One structure of the calibration set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// Key of the structure.
    pub key: String,
    /// Natural logarithm of the cross-section in mm2, over labelled slices.
    pub area: Option<Spread>,
    /// Median intensity over the volume's 99.5th percentile, over labelled slices.
    pub intensity: Option<Spread>,
    /// SegEx score without ground truth, over the training volumes' legs: optimistic, as they were trained on.
    pub score: Option<Spread>,
}

/// The value that intensities of a volume are relative to.
pub fn brightness(volume: &Volume) -> f64 {
    let mut values: Vec<f32> = volume.data.iter().copied().filter(|v| v.is_finite()).step_by(STRIDE).collect();
    values.sort_by(f32::total_cmp);
    let at = ((values.len().max(1) - 1) as f64 * BRIGHT) as usize;
    f64::from(values.get(at).copied().unwrap_or(1.0)).max(1e-6)
}

/// `[ln area in mm2, relative intensity]` of a label on a slice; `None` where it has no voxel. `bright` is [`brightness`].
pub fn measure_slice(volume: &Volume, labels: &LabelMap, label: u8, z: usize, bright: f64) -> Option<[f64; 2]> {
    let g = &volume.geometry;
    let range = z * g.plane()..(z + 1) * g.plane();
    let mut values: Vec<f32> = volume.data[range.clone()]
        .iter()
        .zip(&labels.data[range])
        .filter(|(v, l)| **l == label && v.is_finite())
        .map(|(v, _)| *v)
        .collect();
    if values.is_empty() {
        return None;
    }
    let area = values.len() as f64 * g.spacing[0] * g.spacing[1];
    let middle = values.len() / 2;
    let (_, median, _) = values.select_nth_unstable_by(middle, f32::total_cmp);
    Some([area.ln(), f64::from(*median) / bright])
}

/// Mean of [`measure_slice`] over the slices that show the label; `None` where none does.
pub fn measure(volume: &Volume, labels: &LabelMap, label: u8, bright: f64) -> Option<[f64; 2]> {
    let all: Vec<[f64; 2]> =
        (0..volume.geometry.dims[2]).filter_map(|z| measure_slice(volume, labels, label, z, bright)).collect();
    let n = all.len() as f64;
    (n > 0.0).then(|| [0, 1].map(|k| all.iter().map(|v| v[k]).sum::<f64>() / n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Geometry;

    #[test]
    fn area_and_intensity_of_a_block() {
        let g = Geometry::axial([40, 50, 3], [0.5, 2.0, 5.0]);
        let mut volume = Volume { data: vec![1000.0; g.voxels()], geometry: g.clone() };
        let mut labels = LabelMap::empty(g.clone());
        for i in 0..100 {
            labels.data[g.plane() + i] = 2;
            volume.data[g.plane() + i] = 250.0;
        }
        let bright = brightness(&volume);
        let [area, grey] = measure(&volume, &labels, 2, bright).unwrap();
        assert!((area - 100f64.ln()).abs() < 1e-9 && (grey - 0.25).abs() < 1e-6);
        assert_eq!(measure(&volume, &labels, 1, bright), None);
        // A scanner's gain changes nothing.
        volume.data.iter_mut().for_each(|v| *v *= 3.0);
        let again = measure(&volume, &labels, 2, brightness(&volume)).unwrap();
        assert!((again[1] - 0.25).abs() < 1e-6);
        let s = Spread::of(&[1.0, 2.0, 3.0, f64::NAN]).unwrap();
        assert_eq!((s.count, s.mean, s.sd), (3, 2.0, 1.0));
        assert_eq!((Spread::of(&[]), Spread::of(&[4.0]).unwrap().sd), (None, 0.0));
    }
}
