//! From headers, in any order, to a regular grid of slices or a stated refusal.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::matching::{Fit, Rules, fits};
use super::refusal::Refusal;
use super::stack::{self, FrameRef, Placed, SAME_PLACE_MM, Stack, same_orientation};
use crate::dicom::read::InstanceHeader;
use crate::image::Geometry;

/// How a series is assembled.
#[derive(Clone, Copy, Debug)]
pub struct AssembleOptions {
    /// Take the longest run of slices without a gap, and say so, instead of refusing.
    pub allow_gaps: bool,
    /// Fewest slices of a volume.
    pub min_slices: usize,
    /// Largest deviation of a slice from its even place, as a fraction of the slice distance.
    pub tolerance: f64,
}

impl Default for AssembleOptions {
    fn default() -> Self {
        AssembleOptions { allow_gaps: false, min_slices: 3, tolerance: 0.05 }
    }
}

/// A volume's slices in order and its grid; nothing decoded yet.
#[derive(Clone, Debug)]
pub struct SeriesPlan {
    /// The grid. Slices grow along the normal, the cross product of column and row direction.
    pub geometry: Geometry,
    /// The slices, in volume order.
    pub slices: Vec<FrameRef>,
    /// What sets the contrast apart where the series has several; else empty.
    pub contrast: String,
    /// Sentences a reader should see (partial coverage, duplicates, uncertain body part).
    pub remarks: Vec<String>,
    /// Whether slices are missing (only with [`AssembleOptions::allow_gaps`]).
    pub partial: bool,
}

/// Splits a series into stacks: one grid and one contrast each, sorted. Repeats of the same instance are dropped and
/// counted in the second value.
///
/// # Errors
/// `NO_IMAGES`, `MIXED_SERIES`, `NO_GEOMETRY`, `LOCALIZER` (three or more orientations).
pub fn stacks(headers: &[InstanceHeader]) -> Result<(Vec<Stack>, usize), Refusal> {
    let series: BTreeSet<&str> = headers.iter().map(|h| h.series_uid.as_str()).collect();
    if series.len() > 1 {
        return Err(Refusal::new(
            "MIXED_SERIES",
            format!("{} series are mixed", series.len()),
            "Give one series at a time",
        ));
    }
    let mut seen = BTreeSet::new();
    let mut repeats = 0;
    let mut placed = Vec::new();
    let mut unplaced = 0;
    for header in headers {
        if !seen.insert(header.sop_instance_uid.as_str()) {
            repeats += 1;
            continue;
        }
        let header = Arc::new(header.clone());
        for index in 0..header.frames.len() {
            match Placed::of(&FrameRef { header: header.clone(), index }) {
                Some(p) => placed.push(p),
                None => unplaced += 1,
            }
        }
    }
    if placed.is_empty() && unplaced == 0 {
        return Err(Refusal::new("NO_IMAGES", "The series holds no image", "Send the images of the series"));
    }
    if unplaced > 0 {
        return Err(Refusal::new(
            "NO_GEOMETRY",
            format!(
                "{unplaced} of {} images have no usable position, orientation or pixel spacing in patient coordinates",
                unplaced + placed.len()
            ),
            "Send the original images from the scanner, not screen captures or mosaics",
        ));
    }
    let mut orientations: Vec<&Placed> = Vec::new();
    for p in &placed {
        if !orientations.iter().any(|o| same_orientation(o, p)) {
            orientations.push(p);
        }
    }
    if orientations.len() >= 3 {
        return Err(Refusal::new(
            "LOCALIZER",
            format!("The series has slices of {} orientations, as a localizer has", orientations.len()),
            "Send an axial series of parallel slices",
        ));
    }
    // Sorted by UID, so that nothing below depends on the order of arrival.
    placed.sort_by(|a, b| {
        a.source
            .header
            .sop_instance_uid
            .cmp(&b.source.header.sop_instance_uid)
            .then(a.source.index.cmp(&b.source.index))
    });
    let mut out = Vec::new();
    for grid in stack::grids(placed) {
        for (contrast, list) in stack::contrasts(grid) {
            out.extend(stack::sorted(contrast, list));
        }
    }
    Ok((out, repeats))
}

/// Assembles a series that must be one stack.
///
/// # Errors
/// Those of [`stacks`], and `MIXED_CONTRAST`, `SEVERAL_STACKS`, `TOO_FEW_SLICES`, `DUPLICATE_POSITION`, `SERIES_GAP`,
/// `UNEVEN_SPACING`.
pub fn assemble(headers: &[InstanceHeader], options: &AssembleOptions) -> Result<SeriesPlan, Refusal> {
    let (list, repeats) = stacks(headers)?;
    one(list, repeats, headers.len(), options)
}

/// Assembles the one stack of a series that fits the task.
///
/// # Errors
/// Those of [`assemble`] and of [`fits`].
pub fn assemble_for(
    headers: &[InstanceHeader],
    rules: &Rules,
    options: &AssembleOptions,
) -> Result<SeriesPlan, Refusal> {
    // What the headers say comes first: a localizer or another body part is refused as that, not for its geometry.
    let mut refusal = None;
    for h in headers {
        match super::matching::header_fits(rules, h) {
            Ok(_) => {}
            Err(r) => refusal = refusal.or(Some(r)),
        }
    }
    if let Some(r) = refusal {
        return Err(r);
    }
    let (list, repeats) = stacks(headers)?;
    let total = list.len();
    let mut fitting = Vec::new();
    let mut remarks = Vec::new();
    let mut refusal = None;
    for s in list {
        match fits(rules, &s) {
            Ok(Fit::Fits) => fitting.push(s),
            Ok(Fit::Uncertain(remark)) => {
                remarks.push(remark);
                fitting.push(s);
            }
            Err(r) => refusal = refusal.or(Some(r)),
        }
    }
    if fitting.is_empty() {
        return Err(refusal.unwrap_or_else(|| {
            Refusal::new("NO_IMAGES", "The series holds no image", "Send the images of the series")
        }));
    }
    let left_out = total - fitting.len();
    let mut plan = one(fitting, repeats, headers.len(), options)?;
    remarks.sort();
    remarks.dedup();
    plan.remarks.extend(remarks);
    if left_out > 0 {
        plan.remarks.push(format!("{left_out} other stack(s) of the series do not fit the task and were left out"));
    }
    Ok(plan)
}

fn one(
    mut list: Vec<Stack>,
    repeats: usize,
    instances: usize,
    options: &AssembleOptions,
) -> Result<SeriesPlan, Refusal> {
    let fewest = options.min_slices.max(1);
    if list.len() > 1 {
        return Err(several(&list));
    }
    let Some(stack) = list.pop() else {
        return Err(Refusal::new("NO_IMAGES", "The series holds no image", "Send the images of the series"));
    };
    if stack.frames.len() < fewest {
        return Err(Refusal::new(
            "TOO_FEW_SLICES",
            format!("The series has {} slice(s), at least {fewest} are needed", stack.frames.len()),
            "Send the whole series; a scanner that gives every slice a series of its own must be set to one series",
        ));
    }
    let mut plan = even(stack, options)?;
    if repeats > 0 {
        plan.remarks.push(format!("{repeats} of {instances} objects came more than once and were taken once"));
    }
    Ok(plan)
}

fn several(list: &[Stack]) -> Refusal {
    let contrasts: Vec<String> = list
        .iter()
        .filter(|s| !s.contrast.is_empty())
        .take(6)
        .map(|s| format!("{} slices with {}", s.frames.len(), s.contrast))
        .collect();
    if contrasts.len() > 1 {
        let more = if list.len() > contrasts.len() { ", ..." } else { "" };
        return Refusal::new(
            "MIXED_CONTRAST",
            format!("The series mixes several contrasts: {}{more}", contrasts.join("; ")),
            "Send each contrast as a series of its own",
        );
    }
    let sizes: Vec<String> = list.iter().take(6).map(|s| s.frames.len().to_string()).collect();
    Refusal::new(
        "SEVERAL_STACKS",
        format!("The series holds {} separate stacks of slices ({} slices)", list.len(), sizes.join(" + ")),
        "Send each stack (each leg) as a series of its own",
    )
}

/// Holds the slices against an even grid.
fn even(stack: Stack, options: &AssembleOptions) -> Result<SeriesPlan, Refusal> {
    let z: Vec<f64> = stack.frames.iter().map(|(d, _)| *d).collect();
    let steps: Vec<f64> = z.windows(2).map(|w| w[1] - w[0]).collect();
    let same: Vec<f64> = z.windows(2).filter(|w| w[1] - w[0] < SAME_PLACE_MM).map(|w| w[0]).collect();
    if let Some(at) = same.first() {
        return Err(Refusal::new(
            "DUPLICATE_POSITION",
            format!(
                "{} slice(s) lie where another slice lies (first at {at:.1} mm) and no header tells them apart",
                same.len()
            ),
            "Send the series again without the repeated images",
        ));
    }
    let (distance, by_header) = nominal(&stack, &steps);
    let mut gaps = Vec::new();
    let mut off = 0;
    for (i, s) in steps.iter().enumerate() {
        let n = (s / distance).round().max(1.0);
        // Whole steps may be missing; anything between is uneven.
        if (s / distance - n).abs() > options.tolerance * n.sqrt() {
            off += 1;
        } else if n > 1.0 {
            gaps.push((i, n as usize - 1));
        }
    }
    if off > 0 {
        let (low, high) = steps.iter().fold((f64::MAX, 0.0f64), |(l, h), &s| (l.min(s), h.max(s)));
        return Err(Refusal::new(
            "UNEVEN_SPACING",
            format!(
                "The slices are not evenly spaced: {off} of {} distances differ from {distance:.2} mm ({low:.2} to {high:.2} mm)",
                steps.len()
            ),
            "Send a series of evenly spaced slices",
        ));
    }
    let mut remarks = Vec::new();
    let mut range = 0..z.len();
    if !gaps.is_empty() {
        let missing: usize = gaps.iter().map(|(_, n)| n).sum();
        let place = if by_header && gaps.len() == steps.len() {
            format!("the slices are {:.2} mm apart where the header says {distance:.2} mm", steps[0])
        } else {
            let at: Vec<String> = gaps.iter().take(5).map(|(i, _)| format!("{:.1} mm", z[*i] + distance)).collect();
            format!("gap of {missing} slice(s) at {}", at.join(", "))
        };
        if !options.allow_gaps {
            return Err(Refusal::new(
                "SERIES_GAP",
                format!("The series is incomplete: {place}"),
                "Send the missing slices, or set series.allow_gaps to segment the part without a gap",
            ));
        }
        // The longest run between gaps; the first of equals.
        let mut start = 0;
        let mut best = 0..0;
        for end in gaps.iter().map(|(i, _)| i + 1).chain([z.len()]) {
            if end - start > best.len() {
                best = start..end;
            }
            start = end;
        }
        if best.len() < options.min_slices.max(1) {
            return Err(Refusal::new(
                "SERIES_GAP",
                format!(
                    "The series is incomplete: {place}; the longest part without a gap has {} slice(s)",
                    best.len()
                ),
                "Send the missing slices",
            ));
        }
        remarks.push(format!(
            "the series is incomplete ({place}); only {} of {} slices, from {:.1} to {:.1} mm, were used",
            best.len(),
            z.len(),
            z[best.start],
            z[best.end - 1]
        ));
        range = best;
    }
    let n = range.len();
    let spacing = if n > 1 { (z[range.end - 1] - z[range.start]) / (n - 1) as f64 } else { distance };
    let geometry = Geometry {
        dims: [stack.columns(), stack.rows(), n],
        // Pixel Spacing is between rows, then between columns.
        spacing: [stack.pixel_spacing[1], stack.pixel_spacing[0], spacing],
        origin: stack.positions[range.start],
        axes: stack.axes,
    };
    let partial = n < z.len();
    let slices = stack.frames.into_iter().map(|(_, f)| f).skip(range.start).take(n).collect();
    Ok(SeriesPlan { geometry, slices, contrast: stack.contrast, remarks, partial })
}

/// The distance between slices: the median step, unless the header's Spacing Between Slices says that every step skips
/// slices. The second value says whether the header decided.
fn nominal(stack: &Stack, steps: &[f64]) -> (f64, bool) {
    let frame = stack.frames.first().map(|(_, f)| f.frame().clone()).unwrap_or_default();
    let said = frame.spacing_between_slices.map(f64::abs).filter(|s| *s > 0.05);
    if steps.is_empty() {
        return (said.or(frame.slice_thickness).filter(|s| *s > 0.0).unwrap_or(1.0), said.is_some());
    }
    let mut sorted = steps.to_vec();
    sorted.sort_by(f64::total_cmp);
    // The lower median: of few steps, the smaller is the likelier distance.
    let median = sorted[(sorted.len() - 1) / 2];
    if let Some(said) = said {
        // Some vendors write the gap, not the distance: that is smaller than the slice is thick.
        let is_distance = frame.slice_thickness.is_none_or(|t| said >= 0.9 * t);
        let ratio = median / said;
        if is_distance && ratio > 1.5 && (ratio - ratio.round()).abs() < 0.02 * ratio {
            return (said, true);
        }
    }
    (median, false)
}
