//! Finds the legs in an axial volume: one or two, which side each is, and where.

use crate::image::morphology::{Connectivity, components, fill_holes, open};
use crate::image::{Geometry, Volume};
use crate::terms::Side;

/// Smallest cross-section taken for a thigh, square millimetres.
const SMALLEST_MM2: f64 = 2_500.0;
/// Widest single leg, millimetres: beyond it the region is a trunk or two legs that could not be told apart.
const WIDEST_MM: f64 = 290.0;
/// A second leg with less of the first one's cross-section than this is only partly in the field of view.
const PARTIAL: f64 = 0.3;
/// A single leg nearer than this to the patient's midline has no side of its own.
const MIDLINE_MM: f64 = 30.0;

/// Why no leg can be segmented in a volume; each message says what was seen.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LegError {
    /// The slices are not axial with columns running left to right.
    #[error(
        "the slices are not axial (normal {normal:?}, columns along {columns:?}): only axial thigh series are segmented"
    )]
    NotAxial {
        /// Unit normal in patient coordinates.
        normal: [f64; 3],
        /// Direction of growing column index.
        columns: [f64; 3],
    },
    /// The image holds no signal.
    #[error("the image is empty or constant: nothing to segment")]
    Empty,
    /// No region of a thigh's size.
    #[error(
        "no region of a thigh's size was found on {missing} of {slices} slices (largest cross-section {largest_mm2:.0} mm2, at least {SMALLEST_MM2:.0} mm2 is needed)"
    )]
    None {
        /// Slices without a region.
        missing: usize,
        /// Slices of the volume.
        slices: usize,
        /// Largest cross-section found, square millimetres.
        largest_mm2: f64,
    },
    /// One region too wide for a leg that has no valley to split it by.
    #[error(
        "the region found is {width_mm:.0} mm wide and has no gap between two legs: not a thigh (trunk or pelvis?)"
    )]
    TooWide {
        /// Its width, millimetres.
        width_mm: f64,
    },
}

/// One leg in a volume.
#[derive(Clone, Debug, PartialEq)]
pub struct Leg {
    /// The side, where it can be told.
    pub side: Option<Side>,
    /// Columns and rows that the leg spans over all slices: first column, first row, one past the last of each.
    pub bounds: [usize; 4],
    /// The leg with its fat, holes filled, on the volume's grid.
    pub mask: Vec<bool>,
}

/// The legs of a volume, the patient's right one first.
#[derive(Clone, Debug, PartialEq)]
pub struct Legs {
    /// One or two legs.
    pub legs: Vec<Leg>,
    /// Sentences a reader should see.
    pub remarks: Vec<String>,
}

/// Finds the legs of an axial volume. With two legs, the sides come from patient x alone; a single leg takes `hint`
/// (the header's laterality), else the sign of its patient x where it lies clear of the midline, else no side.
///
/// # Errors
/// [`LegError`] where the volume is not axial, empty, or shows no thigh-sized region.
pub fn find_legs(volume: &Volume, hint: Option<Side>) -> Result<Legs, LegError> {
    let g = &volume.geometry;
    let (normal, columns, rows) = (g.axes[2], g.axes[0], g.axes[1]);
    if normal[2].abs() < 0.8 || columns[0].abs() < 0.8 || rows[1].abs() < 0.8 {
        return Err(LegError::NotAxial { normal, columns });
    }
    let level = level(&volume.data).ok_or(LegError::Empty)?;
    let mut slices: Vec<Vec<Region>> = Vec::with_capacity(g.dims[2]);
    let mut largest = 0.0f64;
    for z in 0..g.dims[2] {
        let found = regions(&volume.plane(z).data, g, level);
        largest = found.iter().map(|r| r.area).fold(largest, f64::max);
        slices.push(found);
    }
    let missing = slices.iter().filter(|r| r.first().is_none_or(|r| r.area < SMALLEST_MM2)).count();
    // A few end slices may show less; most must show a leg.
    if slices.is_empty() || 2 * missing > slices.len() {
        return Err(LegError::None { missing, slices: slices.len(), largest_mm2: largest });
    }
    assemble(g, slices, hint)
}

/// One region of a slice.
struct Region {
    pixels: Vec<usize>,
    area: f64,
    x: f64,
    bounds: [usize; 4],
}

fn region(pixels: Vec<usize>, g: &Geometry) -> Region {
    let w = g.dims[0];
    let mut bounds = [usize::MAX, usize::MAX, 0, 0];
    let mut sum = 0.0;
    for &i in &pixels {
        let (x, y) = (i % w, i / w);
        sum += x as f64;
        bounds = [bounds[0].min(x), bounds[1].min(y), bounds[2].max(x + 1), bounds[3].max(y + 1)];
    }
    Region {
        area: pixels.len() as f64 * g.spacing[0] * g.spacing[1],
        x: sum / pixels.len().max(1) as f64,
        bounds,
        pixels,
    }
}

/// Body against air: Otsu's threshold on the square root of the intensity, which evens out fat and muscle.
fn level(data: &[f32]) -> Option<f32> {
    let top = percentile(data, 0.998)?;
    if top.is_nan() || top <= 0.0 {
        return None;
    }
    const BINS: usize = 256;
    let mut histogram = [0f64; BINS];
    for &v in data {
        let r = (v.max(0.0) / top).sqrt().min(1.0);
        histogram[((r * (BINS - 1) as f32) as usize).min(BINS - 1)] += 1.0;
    }
    let n: f64 = histogram.iter().sum();
    let total: f64 = histogram.iter().enumerate().map(|(i, h)| i as f64 * h).sum();
    let (mut below, mut sum, mut best) = (0.0, 0.0, (0.0, 0));
    for (i, h) in histogram.iter().enumerate() {
        below += h;
        sum += i as f64 * h;
        if below == 0.0 || below == n {
            continue;
        }
        let between = below * (n - below) * (sum / below - (total - sum) / (n - below)).powi(2);
        if between > best.0 {
            best = (between, i);
        }
    }
    if best.0 == 0.0 {
        return None;
    }
    let r = (best.1 as f32 + 1.0) / (BINS - 1) as f32;
    Some(r * r * top)
}

/// The value at a fraction of the sorted finite values; `None` where there is none.
pub(crate) fn percentile(data: &[f32], fraction: f64) -> Option<f32> {
    let mut v: Vec<f32> = data.iter().copied().filter(|v| v.is_finite()).collect();
    if v.is_empty() {
        return None;
    }
    let k = ((v.len() - 1) as f64 * fraction.clamp(0.0, 1.0)).round() as usize;
    Some(*v.select_nth_unstable_by(k, f32::total_cmp).1)
}

/// Regions of a slice, the largest first: above the level after a small mean filter, freed of ghost lines by an
/// opening, holes filled.
fn regions(plane: &[f32], g: &Geometry, level: f32) -> Vec<Region> {
    let [w, h, _] = g.dims;
    let dims = [w, h, 1];
    let mut mask: Vec<bool> = (0..w * h)
        .map(|i| {
            let (x, y) = (i % w, i / w);
            let (mut sum, mut n) = (0.0, 0.0);
            for b in y.saturating_sub(1)..=(y + 1).min(h - 1) {
                for a in x.saturating_sub(1)..=(x + 1).min(w - 1) {
                    sum += plane[b * w + a];
                    n += 1.0;
                }
            }
            sum > level * n
        })
        .collect();
    fill_holes(&mut mask, dims);
    let mask = open(&mask, dims, g.spacing, 4.0);
    let c = components(&mask, dims, Connectivity::Faces);
    let mut pixels = vec![Vec::new(); c.sizes.len()];
    for (i, &l) in c.labels.iter().enumerate() {
        if l > 0 {
            pixels[l as usize - 1].push(i);
        }
    }
    let least = SMALLEST_MM2 * 0.2;
    let mut found: Vec<Region> = pixels.into_iter().map(|p| region(p, g)).filter(|r| r.area >= least).collect();
    found.sort_by(|a, b| b.area.total_cmp(&a.area));
    found.truncate(4);
    found
}

/// The column of the valley between two legs that touch: the least thickness in the middle half of the region, where
/// both sides are clearly thicker.
fn valley(r: &Region, w: usize) -> Option<usize> {
    let (x0, x1) = (r.bounds[0], r.bounds[2]);
    let mut thickness = vec![0usize; x1 - x0];
    for &i in &r.pixels {
        thickness[i % w - x0] += 1;
    }
    let n = thickness.len();
    let (a, b) = (n / 4, n - n / 4);
    let at = (a..b).min_by_key(|&i| (thickness[i], i.abs_diff(n / 2)))?;
    let left = thickness[..at].iter().copied().max()?;
    let right = thickness[at..].iter().copied().max()?;
    (thickness[at] as f64 <= 0.8 * left.min(right) as f64).then_some(x0 + at)
}

fn assemble(g: &Geometry, slices: Vec<Vec<Region>>, hint: Option<Side>) -> Result<Legs, LegError> {
    let w = g.dims[0];
    // Where each slice would be cut between two legs: a gap between its two largest regions, or a valley in one that
    // is too wide for its height.
    let mut cuts: Vec<Option<f64>> = vec![None; slices.len()];
    let mut whole = 0usize;
    for (r, slot) in slices.iter().zip(&mut cuts) {
        match r.as_slice() {
            [a, b, ..] if b.area > 0.15 * a.area => {
                let (l, r) = if a.x < b.x { (a, b) } else { (b, a) };
                // Side by side, not one above the other.
                if r.bounds[0] as f64 + 0.3 * (r.bounds[2] - r.bounds[0]) as f64 >= l.bounds[2] as f64 {
                    *slot = Some((l.bounds[2] + r.bounds[0]) as f64 / 2.0);
                } else {
                    whole += 1;
                }
            }
            [a, ..] => {
                let wide = (a.bounds[2] - a.bounds[0]) as f64 * g.spacing[0];
                let high = (a.bounds[3] - a.bounds[1]) as f64 * g.spacing[1];
                match valley(a, w) {
                    Some(cut) if wide > 1.3 * high => *slot = Some(cut as f64),
                    _ => whole += 1,
                }
            }
            [] => {}
        }
    }
    let mut known: Vec<f64> = cuts.iter().copied().flatten().collect();
    if known.len() > whole {
        known.sort_by(f64::total_cmp);
        return Ok(two(g, &slices, &cuts, known[known.len() / 2], hint));
    }
    let pixels: Vec<(usize, &Region)> = slices.iter().enumerate().filter_map(|(z, r)| Some((z, r.first()?))).collect();
    let leg = gather(g, pixels.iter().flat_map(|(z, r)| r.pixels.iter().map(move |&i| (*z, i))));
    let width_mm = (leg.bounds[2] - leg.bounds[0]) as f64 * g.spacing[0];
    if width_mm > WIDEST_MM {
        return Err(LegError::TooWide { width_mm });
    }
    let mut legs = Legs { legs: vec![leg], remarks: Vec::new() };
    let x = patient_x(g, &legs.legs[0]);
    legs.legs[0].side = single_side(x, hint, &mut legs.remarks);
    Ok(legs)
}

fn single_side(x: f64, hint: Option<Side>, remarks: &mut Vec<String>) -> Option<Side> {
    let position = (x.abs() > MIDLINE_MM).then_some(if x < 0.0 { Side::Right } else { Side::Left });
    match (hint, position) {
        (Some(h), Some(p)) if h != p => {
            remarks.push(format!(
                "the header says the {} leg, its position ({x:.0} mm) says {}: the header is followed",
                h.word(),
                p.word()
            ));
            Some(h)
        }
        (Some(h), _) => Some(h),
        (None, Some(p)) => {
            remarks.push(format!("one leg only; its side ({}) is told by its position ({x:.0} mm)", p.word()));
            Some(p)
        }
        (None, None) => {
            remarks.push("one leg only, near the midline, and no laterality in the header: its side is unknown".into());
            None
        }
    }
}

fn two(g: &Geometry, slices: &[Vec<Region>], cuts: &[Option<f64>], median: f64, hint: Option<Side>) -> Legs {
    let w = g.dims[0];
    let mut halves: [Vec<(usize, usize)>; 2] = [Vec::new(), Vec::new()];
    for (z, regions) in slices.iter().enumerate() {
        let cut = cuts[z].unwrap_or(median);
        for r in regions.iter().take(2) {
            let low = r.pixels.iter().filter(|&&i| ((i % w) as f64) < cut).count() as f64 / r.pixels.len() as f64;
            // A region that reaches far over the cut holds parts of both legs.
            let shared = (0.15..=0.85).contains(&low);
            for &i in &r.pixels {
                let on_low = if shared { ((i % w) as f64) < cut } else { low > 0.5 };
                halves[usize::from(!on_low)].push((z, i));
            }
        }
    }
    let [low, high] = halves;
    let (a, b) = (gather(g, low.into_iter()), gather(g, high.into_iter()));
    let (xa, xb) = (patient_x(g, &a), patient_x(g, &b));
    let (mut right, mut left) = if xa < xb { (a, b) } else { (b, a) };
    right.side = Some(Side::Right);
    left.side = Some(Side::Left);
    let (nr, nl) = (count(&right), count(&left));
    let mut legs = Legs { legs: Vec::new(), remarks: Vec::new() };
    for (leg, own, other) in [(right, nr, nl), (left, nl, nr)] {
        if (own as f64) < PARTIAL * other as f64 {
            let side = leg.side.map_or("other", Side::word);
            legs.remarks.push(format!("the {side} leg is only partly in the field of view and was left out"));
        } else {
            legs.legs.push(leg);
        }
    }
    if let (Some(h), [only]) = (hint, legs.legs.as_slice())
        && only.side != Some(h)
    {
        legs.remarks.push(format!("the header says {}, the geometry shows the other leg", h.word()));
    }
    legs
}

fn count(leg: &Leg) -> usize {
    leg.mask.iter().filter(|&&m| m).count()
}

fn gather(g: &Geometry, pixels: impl Iterator<Item = (usize, usize)>) -> Leg {
    let mut mask = vec![false; g.voxels()];
    let mut bounds = [usize::MAX, usize::MAX, 0, 0];
    for (z, i) in pixels {
        mask[z * g.plane() + i] = true;
        let (x, y) = (i % g.dims[0], i / g.dims[0]);
        bounds = [bounds[0].min(x), bounds[1].min(y), bounds[2].max(x + 1), bounds[3].max(y + 1)];
    }
    if bounds[2] == 0 {
        bounds = [0; 4];
    }
    Leg { side: None, bounds, mask }
}

fn patient_x(g: &Geometry, leg: &Leg) -> f64 {
    let [x0, y0, x1, y1] = leg.bounds.map(|v| v as f64);
    let z = (g.dims[2] as f64 - 1.0) / 2.0;
    g.to_patient([(x0 + x1 - 1.0) / 2.0, (y0 + y1 - 1.0) / 2.0, z])[0]
}
