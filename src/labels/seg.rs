//! DICOM Segmentation objects (binary, fractional, label map), as Slicer, OHIF, highdicom and this program write them.

use std::io::Cursor;

use dicom_dictionary_std::tags;
use dicom_object::{DefaultDicomObject, InMemDicomObject, from_reader};

use super::names::side_of;
use super::{LabelImage, Segment, geometry_of, voxels};
use crate::dicom::read::check;
use crate::image::Geometry;
use crate::terms::Code;

const SEGMENTATION: &str = "1.2.840.10008.5.1.4.1.1.66.4";
const LABEL_MAP: &str = "1.2.840.10008.5.1.4.1.1.66.7";
/// Most frames of an object.
const MAX_FRAMES: usize = 65_536;
/// Positions nearer than this along the normal are one slice, millimetres.
const SAME_SLICE: f64 = 0.01;

/// What a pixel is.
#[derive(Clone, Copy, PartialEq)]
enum Pixels {
    /// One bit: in the frame's segment or not.
    Bits,
    /// One byte: in the frame's segment where at least this.
    Share(u8),
    /// The number of the segment, so many bytes wide.
    Labels(usize),
}

pub(super) fn read(bytes: &[u8]) -> Result<LabelImage, String> {
    // The library's parser recurses and inflates without a bound.
    check(bytes.to_vec()).map_err(|e| format!("no readable DICOM file: {e}"))?;
    let object = from_reader(Cursor::new(bytes)).map_err(|e| format!("no readable DICOM file: {e}"))?;
    let class = text(&object, tags::SOP_CLASS_UID).unwrap_or_default();
    if class != SEGMENTATION && class != LABEL_MAP {
        return Err(format!("a DICOM object of class {class:?}, not a Segmentation"));
    }
    let number = |tag| object.get(tag).and_then(|e| e.to_int::<usize>().ok());
    let (Some(rows), Some(columns)) = (number(tags::ROWS), number(tags::COLUMNS)) else {
        return Err("lacks Rows or Columns".into());
    };
    let mut remarks = Vec::new();
    let allocated = number(tags::BITS_ALLOCATED).unwrap_or(1);
    let pixels = match (text(&object, tags::SEGMENTATION_TYPE).unwrap_or_default().as_str(), allocated) {
        ("BINARY", 1) => Pixels::Bits,
        ("FRACTIONAL", 8) => {
            let most = number(tags::MAXIMUM_FRACTIONAL_VALUE).unwrap_or(255).clamp(1, 255);
            remarks.push(format!(
                "a FRACTIONAL segmentation: what is at least half of the maximum ({most}) was taken; export it as BINARY to decide yourself"
            ));
            Pixels::Share(most.div_ceil(2) as u8)
        }
        ("LABELMAP", 8) => Pixels::Labels(1),
        ("LABELMAP", 16) => Pixels::Labels(2),
        (kind, bits) => {
            return Err(format!(
                "a Segmentation of type {kind:?} with {bits} bits a pixel; BINARY, FRACTIONAL and LABELMAP are read"
            ));
        }
    };
    let frames = frames(&object, matches!(pixels, Pixels::Labels(_)))?;
    let plane = rows.checked_mul(columns).filter(|n| (1..=1 << 24).contains(n)).ok_or("an impossible frame size")?;
    let data = object
        .element(tags::PIXEL_DATA)
        .ok()
        .and_then(|e| e.to_bytes().ok())
        .ok_or("has compressed pixel data; export it uncompressed (Explicit VR Little Endian)")?;
    let needed = match pixels {
        Pixels::Bits => (plane as u64 * frames.len() as u64).div_ceil(8),
        Pixels::Share(_) => plane as u64 * frames.len() as u64,
        Pixels::Labels(width) => (plane * width) as u64 * frames.len() as u64,
    };
    if (data.len() as u64) < needed {
        return Err(format!("holds {} bytes for {} frames of {plane} pixels: cut short?", data.len(), frames.len()));
    }
    let (geometry, levels, slice_of) = grid(&frames, columns, rows)?;
    let count = voxels(geometry.dims)?;
    let segments = segments(&object, pixels)?;
    let layers = if matches!(pixels, Pixels::Labels(_)) { 1 } else { segments.len() };
    if segments.is_empty() || count.saturating_mul(layers) > super::MAX_VOXELS {
        return Err(format!("{} segments of {:?} voxels are not possible", segments.len(), geometry.dims));
    }
    let mut layers = vec![vec![0u16; count]; layers];
    for (f, frame) in frames.iter().enumerate() {
        let layer = match frame.segment {
            None => 0,
            Some(n) => segments
                .iter()
                .position(|s| s.id == n)
                .ok_or_else(|| format!("frame {} belongs to segment {n}, which is not listed", f + 1))?,
        };
        let target = &mut layers[layer][slice_of[f] * plane..(slice_of[f] + 1) * plane];
        for (i, v) in target.iter_mut().enumerate() {
            let at = f * plane + i;
            *v |= match pixels {
                Pixels::Bits => u16::from(data[at / 8] >> (at % 8) & 1),
                Pixels::Share(half) => u16::from(data[at] >= half),
                Pixels::Labels(1) => u16::from(data[at]),
                Pixels::Labels(_) => u16::from_le_bytes([data[2 * at], data[2 * at + 1]]),
            };
        }
    }
    Ok(LabelImage { dims: geometry.dims, geometry: Some(geometry), segments, levels, remarks, layers })
}

fn segments(object: &DefaultDicomObject, pixels: Pixels) -> Result<Vec<Segment>, String> {
    let string = |item: &InMemDicomObject, tag| {
        item.get(tag).and_then(|e| e.to_str().ok()).map(|s| s.trim_end_matches(['\0', ' ']).trim().to_string())
    };
    let code = |item: &InMemDicomObject, sequence| {
        let c = first(item, sequence)?;
        let part = |tag| string(c, tag);
        let value = part(tags::CODE_VALUE).or_else(|| part(tags::LONG_CODE_VALUE))?;
        Some(Code::new(&value, &part(tags::CODING_SCHEME_DESIGNATOR)?, &part(tags::CODE_MEANING).unwrap_or_default()))
    };
    let mut segments = Vec::new();
    for item in object.get(tags::SEGMENT_SEQUENCE).and_then(|e| e.items()).unwrap_or_default() {
        let id =
            item.get(tags::SEGMENT_NUMBER).and_then(|e| e.to_int::<u32>().ok()).ok_or("a segment lacks its number")?;
        let (layer, value) = match pixels {
            // Number 0 of a label map is its background.
            Pixels::Labels(_) if id == 0 => continue,
            Pixels::Labels(_) => (0, u16::try_from(id).map_err(|_| format!("segment number {id} is not possible"))?),
            _ => (segments.len(), 1),
        };
        let modifier = first(item, tags::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE)
            .and_then(|t| code(t, tags::SEGMENTED_PROPERTY_TYPE_MODIFIER_CODE_SEQUENCE));
        segments.push(Segment {
            id,
            name: string(item, tags::SEGMENT_LABEL).unwrap_or_default(),
            code: code(item, tags::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE),
            side: modifier.and_then(|m| side_of(&m)),
            layer,
            value,
        });
    }
    Ok(segments)
}

/// Where a frame lies and what it shows.
struct Frame {
    /// None in a label map, whose pixels say it.
    segment: Option<u32>,
    position: [f64; 3],
    orientation: [f64; 6],
    spacing: [f64; 2],
    step: Option<f64>,
}

fn frames(object: &DefaultDicomObject, label_map: bool) -> Result<Vec<Frame>, String> {
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
                .or_else(|| first(shared?, tags::SEGMENT_IDENTIFICATION_SEQUENCE))
                .and_then(|g| g.get(tags::REFERENCED_SEGMENT_NUMBER)?.to_int::<u32>().ok());
            if segment.is_none() && !label_map {
                return Err(lacks("segment number"));
            }
            let segment = segment.filter(|_| !label_map);
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

/// The grid that the frames lie on, the place of each slice along its normal, and the slice of each frame.
fn grid(frames: &[Frame], columns: usize, rows: usize) -> Result<(Geometry, Vec<f64>, Vec<usize>), String> {
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
    // As for the slices of a series: orientation cosines have six digits, and over a long stack the shift they hide grows.
    let near = 0.25 * spacing[0].min(spacing[1]);
    for f in frames {
        let d = [0, 1, 2].map(|k| f.position[k] - frames[0].position[k]);
        let rise: f64 = (0..3).map(|k| d[k] * n[k]).sum();
        let across = (0..3).map(|k| (d[k] - rise * n[k]).powi(2)).sum::<f64>().sqrt();
        if across > near + 2e-3 * rise.abs() {
            return Err("its frames do not lie above one another; export the labels on the image's grid".into());
        }
    }
    let mut levels = along.clone();
    levels.sort_by(f64::total_cmp);
    levels.dedup_by(|a, b| (*a - *b).abs() < SAME_SLICE);
    let low = levels[0];
    levels.iter_mut().for_each(|l| *l -= low);
    // Slices without any segment may have no frame, so the least distance can be several steps: what the object says of
    // its spacing goes first.
    let least = levels.windows(2).map(|w| w[1] - w[0]).fold(f64::INFINITY, f64::min);
    let step =
        frames[0].step.filter(|s| *s <= least + SAME_SLICE).unwrap_or(if least.is_finite() { least } else { 1.0 });
    let slice_of =
        along.iter().map(|v| levels.iter().position(|l| (v - low - l).abs() < SAME_SLICE).unwrap_or(0)).collect();
    let first = along.iter().position(|&v| (v - low).abs() < SAME_SLICE).unwrap_or(0);
    let columns_mm = [x.map(|v| v * spacing[1]), y.map(|v| v * spacing[0]), n.map(|v| v * step)];
    let geometry = geometry_of([columns, rows, levels.len()], columns_mm, frames[first].position)?;
    Ok((geometry, levels, slice_of))
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
