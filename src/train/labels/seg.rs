//! DICOM Segmentation objects with binary frames, as Slicer, ITK-SNAP users, highdicom and this program write them.

use std::io::Cursor;

use dicom_dictionary_std::tags;
use dicom_object::{DefaultDicomObject, InMemDicomObject, from_reader};

use super::{LabelImage, Segment, geometry_of, voxels};
use crate::image::Geometry;

const SEGMENTATION: &str = "1.2.840.10008.5.1.4.1.1.66.4";
/// Most frames of an object.
const MAX_FRAMES: usize = 65_536;
/// Positions nearer than this along the normal are one slice, millimetres.
const SAME_SLICE: f64 = 0.01;

pub(super) fn read(bytes: &[u8]) -> Result<LabelImage, String> {
    let object = from_reader(Cursor::new(bytes)).map_err(|e| format!("no readable DICOM file: {e}"))?;
    let class = text(&object, tags::SOP_CLASS_UID).unwrap_or_default();
    if class != SEGMENTATION {
        return Err(format!("a DICOM object of class {class:?}, not a Segmentation"));
    }
    let kind = text(&object, tags::SEGMENTATION_TYPE).unwrap_or_default();
    if kind != "BINARY" {
        return Err(format!("a Segmentation of type {kind:?}; only BINARY is read"));
    }
    let number = |tag| object.get(tag).and_then(|e| e.to_int::<usize>().ok());
    let (Some(rows), Some(columns)) = (number(tags::ROWS), number(tags::COLUMNS)) else {
        return Err("lacks Rows or Columns".into());
    };
    let frames = frames(&object)?;
    let plane = rows.checked_mul(columns).filter(|n| (1..=1 << 24).contains(n)).ok_or("an impossible frame size")?;
    let bits = object
        .element(tags::PIXEL_DATA)
        .ok()
        .and_then(|e| e.to_bytes().ok())
        .ok_or("has no native pixel data; decompress it first")?;
    if (bits.len() as u64) * 8 < plane as u64 * frames.len() as u64 {
        return Err(format!("holds {} bytes for {} frames of {plane} bits: cut short?", bits.len(), frames.len()));
    }
    let (geometry, slice_of) = grid(&frames, columns, rows)?;
    let count = voxels(geometry.dims)?;

    let mut segments = Vec::new();
    for item in object.get(tags::SEGMENT_SEQUENCE).and_then(|e| e.items()).unwrap_or_default() {
        let id =
            item.get(tags::SEGMENT_NUMBER).and_then(|e| e.to_int::<u32>().ok()).ok_or("a segment lacks its number")?;
        let name = item.get(tags::SEGMENT_LABEL).and_then(|e| e.to_str().ok()).map(|s| s.trim().to_string());
        segments.push(Segment { id, name: name.unwrap_or_default(), layer: segments.len(), value: 1 });
    }
    if segments.is_empty() || count.saturating_mul(segments.len()) > super::MAX_VOXELS {
        return Err(format!("{} segments of {:?} voxels are not possible", segments.len(), geometry.dims));
    }
    let mut layers = vec![vec![0u16; count]; segments.len()];
    for (f, frame) in frames.iter().enumerate() {
        let layer = segments
            .iter()
            .position(|s| s.id == frame.segment)
            .ok_or_else(|| format!("frame {} belongs to segment {}, which is not listed", f + 1, frame.segment))?;
        let target = &mut layers[layer][slice_of[f] * plane..(slice_of[f] + 1) * plane];
        for (i, v) in target.iter_mut().enumerate() {
            let bit = f * plane + i;
            *v |= u16::from(bits[bit / 8] >> (bit % 8) & 1);
        }
    }
    Ok(LabelImage { dims: geometry.dims, geometry: Some(geometry), segments, layers })
}

/// Where a frame lies and what it shows.
struct Frame {
    segment: u32,
    position: [f64; 3],
    orientation: [f64; 6],
    spacing: [f64; 2],
    step: Option<f64>,
}

fn frames(object: &DefaultDicomObject) -> Result<Vec<Frame>, String> {
    let shared = first(object, tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE);
    let own = object.get(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE).and_then(|e| e.items()).unwrap_or_default();
    if own.is_empty() || own.len() > MAX_FRAMES {
        return Err(format!("{} frames are not possible", own.len()));
    }
    let read = |frame: &InMemDicomObject, sequence, tag| -> Option<Vec<f64>> {
        let group = first(frame, sequence).or_else(|| first(shared?, sequence))?;
        group.get(tag)?.to_multi_float64().ok()
    };
    own.iter()
        .enumerate()
        .map(|(i, f)| {
            let lacks = |what: &str| format!("frame {} lacks its {what}", i + 1);
            let segment = first(f, tags::SEGMENT_IDENTIFICATION_SEQUENCE)
                .and_then(|g| g.get(tags::REFERENCED_SEGMENT_NUMBER)?.to_int::<u32>().ok())
                .ok_or_else(|| lacks("segment number"))?;
            let position = read(f, tags::PLANE_POSITION_SEQUENCE, tags::IMAGE_POSITION_PATIENT);
            let orientation = read(f, tags::PLANE_ORIENTATION_SEQUENCE, tags::IMAGE_ORIENTATION_PATIENT);
            let spacing = read(f, tags::PIXEL_MEASURES_SEQUENCE, tags::PIXEL_SPACING);
            let between = read(f, tags::PIXEL_MEASURES_SEQUENCE, tags::SPACING_BETWEEN_SLICES)
                .or_else(|| read(f, tags::PIXEL_MEASURES_SEQUENCE, tags::SLICE_THICKNESS));
            Ok(Frame {
                segment,
                position: exact(position).ok_or_else(|| lacks("position"))?,
                orientation: exact(orientation).ok_or_else(|| lacks("orientation"))?,
                spacing: exact(spacing).ok_or_else(|| lacks("pixel spacing"))?,
                step: between.and_then(|b| b.first().copied()).filter(|b| *b > 0.0),
            })
        })
        .collect()
}

/// The regular grid that the frames lie on, and the slice of each frame.
fn grid(frames: &[Frame], columns: usize, rows: usize) -> Result<(Geometry, Vec<usize>), String> {
    let o = frames[0].orientation;
    let spacing = frames[0].spacing;
    if frames.iter().any(|f| (0..6).any(|k| (f.orientation[k] - o[k]).abs() > 1e-4) || f.spacing != spacing) {
        return Err("its frames differ in orientation or spacing".into());
    }
    let (x, y) = ([o[0], o[1], o[2]], [o[3], o[4], o[5]]);
    let n = [x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0]];
    let along: Vec<f64> = frames.iter().map(|f| (0..3).map(|k| n[k] * f.position[k]).sum()).collect();
    if along.iter().any(|v| !v.is_finite()) {
        return Err("a frame's position is not finite".into());
    }
    let mut levels = along.clone();
    levels.sort_by(f64::total_cmp);
    levels.dedup_by(|a, b| (*a - *b).abs() < SAME_SLICE);
    // Slices without any segment may have no frame, so the step is the smallest distance, not the mean.
    let step = levels.windows(2).map(|w| w[1] - w[0]).fold(f64::INFINITY, f64::min);
    let step = if step.is_finite() { step } else { frames[0].step.unwrap_or(1.0) };
    let low = levels[0];
    let index = |v: f64| (v - low) / step;
    if levels.iter().any(|&v| (index(v) - index(v).round()).abs() > 0.1) {
        return Err("its slices are not evenly spaced".into());
    }
    let last = index(levels[levels.len() - 1]).round();
    if last > MAX_FRAMES as f64 {
        return Err("its slices span an impossible distance".into());
    }
    let first = along.iter().position(|&v| (v - low).abs() < SAME_SLICE).unwrap_or(0);
    let columns_mm = [x.map(|v| v * spacing[1]), y.map(|v| v * spacing[0]), n.map(|v| v * step)];
    let geometry = geometry_of([columns, rows, last as usize + 1], columns_mm, frames[first].position)?;
    Ok((geometry, along.iter().map(|&v| index(v).round() as usize).collect()))
}

fn first(object: &InMemDicomObject, sequence: dicom_core::Tag) -> Option<&InMemDicomObject> {
    object.get(sequence)?.items()?.first()
}

fn exact<const N: usize>(values: Option<Vec<f64>>) -> Option<[f64; N]> {
    values?.try_into().ok()
}

fn text(object: &DefaultDicomObject, tag: dicom_core::Tag) -> Option<String> {
    Some(object.get(tag)?.to_str().ok()?.trim_end_matches(['\0', ' ']).to_string())
}
