//! Frames of one contrast on one grid, sorted along the normal.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::dicom::read::{FrameHeader, InstanceHeader};

/// A frame of an instance.
#[derive(Clone, Debug)]
pub struct FrameRef {
    /// The instance.
    pub header: Arc<InstanceHeader>,
    /// Index into its frames.
    pub index: usize,
}

impl FrameRef {
    /// The frame's header.
    pub fn frame(&self) -> &FrameHeader {
        &self.header.frames[self.index]
    }
}

/// A frame with a usable place.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub source: FrameRef,
    pub position: [f64; 3],
    pub columns: [f64; 3],
    pub rows: [f64; 3],
    pub spacing: [f64; 2],
}

/// Frames that belong together: one grid, one contrast.
#[derive(Clone, Debug)]
pub struct Stack {
    /// Unit vectors of growing column index, growing row index, and their cross product.
    pub axes: [[f64; 3]; 3],
    /// Between rows, between columns; millimetres.
    pub pixel_spacing: [f64; 2],
    /// The frames, by growing distance along the normal, with that distance in millimetres.
    pub frames: Vec<(f64, FrameRef)>,
    /// The first pixel's place of each frame, in the same order; millimetres.
    pub positions: Vec<[f64; 3]>,
    /// What sets this contrast apart, in words; empty where there is only one.
    pub contrast: String,
}

impl Stack {
    /// Columns.
    pub fn columns(&self) -> usize {
        self.frames.first().map_or(0, |(_, f)| usize::from(f.header.columns))
    }
    /// Rows.
    pub fn rows(&self) -> usize {
        self.frames.first().map_or(0, |(_, f)| usize::from(f.header.rows))
    }
}

pub(super) fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

pub(super) fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

fn unit(v: [f64; 3]) -> Option<[f64; 3]> {
    let n = dot(v, v).sqrt();
    ((n - 1.0).abs() < 0.02).then(|| v.map(|x| x / n))
}

impl Placed {
    /// The frame's place, or `None` where position, orientation or spacing is missing or impossible.
    pub fn of(source: &FrameRef) -> Option<Placed> {
        let f = source.frame();
        let o = f.orientation?;
        let columns = unit([o[0], o[1], o[2]])?;
        let rows = unit([o[3], o[4], o[5]])?;
        if dot(columns, rows).abs() > 0.01 {
            return None;
        }
        let spacing = f.pixel_spacing.filter(|s| s.iter().all(|v| (1e-3..1e3).contains(v)))?;
        let position = f.position.filter(|p| p.iter().all(|v| v.abs() < 1e5))?;
        Some(Placed { source: source.clone(), position, columns, rows, spacing })
    }

    pub fn normal(&self) -> [f64; 3] {
        cross(self.columns, self.rows)
    }

    /// Whether two frames lie on parallel grids of one matrix and pixel size in one frame of reference.
    fn same_grid(&self, other: &Placed) -> bool {
        let (a, b) = (&self.source.header, &other.source.header);
        (a.rows, a.columns) == (b.rows, b.columns)
            && a.frame_of_reference_uid == b.frame_of_reference_uid
            && dot(self.columns, other.columns) > ALIGNED
            && dot(self.rows, other.rows) > ALIGNED
            && self.spacing.iter().zip(&other.spacing).all(|(s, t)| (s - t).abs() <= 1e-3 * s)
    }

    /// Whether the grids also lie above one another: no shift in the plane.
    fn above(&self, other: &Placed) -> bool {
        let n = self.normal();
        let d = [0, 1, 2].map(|i| self.position[i] - other.position[i]);
        let along = dot(d, n);
        let across = [0, 1, 2].map(|i| d[i] - along * n[i]);
        // Orientation cosines have six digits: over a long stack the shift they hide grows with the distance.
        dot(across, across).sqrt() <= 0.25 * self.spacing[0].min(self.spacing[1]) + 2e-3 * along.abs()
    }
}

/// Cosine of the angle (half a degree) under which axes count as parallel.
const ALIGNED: f64 = 0.99996;

/// Whether two frames' axes are parallel enough to be one orientation.
pub(super) fn same_orientation(a: &Placed, b: &Placed) -> bool {
    dot(a.columns, b.columns) > ALIGNED && dot(a.rows, b.rows) > ALIGNED
}

/// Splits frames into grids; each grid's frames in the order given.
pub(super) fn grids(frames: Vec<Placed>) -> Vec<Vec<Placed>> {
    let mut grids: Vec<Vec<Placed>> = Vec::new();
    for f in frames {
        match grids.iter_mut().find(|g| g.first().is_some_and(|h| h.same_grid(&f) && h.above(&f))) {
            Some(g) => g.push(f),
            None => grids.push(vec![f]),
        }
    }
    grids
}

/// What always tells contrasts apart, whether or not frames share a position.
fn always(p: &Placed) -> Vec<(&'static str, String)> {
    let f = p.source.frame();
    let round = |v: Option<f64>| v.map_or(String::new(), |v| format!("{:.1}", v));
    // The first two values say original or derived, primary or secondary.
    let kind: Vec<&str> = f.image_type.iter().skip(2).map(String::as_str).filter(|t| !PROCESSING.contains(t)).collect();
    vec![
        ("image type", kind.join("\\")),
        ("echo time", round(f.echo_time)),
        ("inversion time", round(f.inversion_time)),
        ("b-value", f.b_value.map_or(String::new(), |b| format!("{b:.0}"))),
        ("scanning sequence", p.source.header.scanning_sequence.clone()),
        ("stack", f.stack_id.clone().unwrap_or_default()),
    ]
}

/// Image Type values that say how an image was processed, not what it shows.
const PROCESSING: [&str; 9] = ["ND", "NORM", "DIS2D", "DIS3D", "DIS", "FM", "FIL", "SH", "NONE"];

/// What may tell frames at the same position apart; each is used only if it separates them, for many scanners let
/// these vary from slice to slice within one contrast.
fn sometimes(p: &Placed, which: usize) -> String {
    let f = p.source.frame();
    let h = &p.source.header;
    let round = |v: Option<f64>| v.map_or(String::new(), |v| format!("{:.1}", v));
    match which {
        0 => f.temporal_position.map_or(String::new(), |v| format!("{v:05}")),
        1 => f.acquisition_number.map_or(String::new(), |v| format!("{v:05}")),
        2 => round(f.repetition_time),
        3 => round(f.flip_angle),
        4 => h.sequence_name.clone(),
        _ => round(f.trigger_time),
    }
}

const SOMETIMES: [&str; 6] =
    ["temporal position", "acquisition number", "repetition time", "flip angle", "sequence name", "trigger time"];

/// Splits the frames of one grid into contrasts, with the words that set each apart.
pub(super) fn contrasts(frames: Vec<Placed>) -> Vec<(String, Vec<Placed>)> {
    let mut first: BTreeMap<Vec<(&str, String)>, Vec<Placed>> = BTreeMap::new();
    for f in frames {
        first.entry(always(&f)).or_default().push(f);
    }
    let several = first.len() > 1;
    let keys: Vec<Vec<(&str, String)>> = first.keys().cloned().collect();
    let mut out = Vec::new();
    for (key, list) in first {
        // Only what differs is worth words.
        let words: Vec<String> = key
            .iter()
            .enumerate()
            .filter(|(i, kv)| several && keys.iter().any(|k| k[*i].1 != kv.1))
            .map(|(_, (k, v))| format!("{k} {}", if v.is_empty() { "none" } else { v }))
            .collect();
        for (more, list) in split(list, 0) {
            let mut words = words.clone();
            words.extend(more);
            out.push((words.join(", "), list));
        }
    }
    out
}

/// Splits frames that share positions by the attributes of [`sometimes`], from `from` on.
fn split(list: Vec<Placed>, from: usize) -> Vec<(Option<String>, Vec<Placed>)> {
    if !repeats(&list) {
        return vec![(None, list)];
    }
    for (which, name) in SOMETIMES.iter().enumerate().skip(from) {
        let mut parts: BTreeMap<String, Vec<Placed>> = BTreeMap::new();
        for f in &list {
            parts.entry(sometimes(f, which)).or_default().push(f.clone());
        }
        if parts.len() < 2 {
            continue;
        }
        // It must take the repeated positions apart.
        let fewer = parts.values().map(|p| repeated(p)).sum::<usize>() < repeated(&list);
        if fewer {
            return parts
                .into_iter()
                .flat_map(|(value, part)| {
                    split(part, which + 1).into_iter().map(move |(more, list)| {
                        let own = format!("{name} {value}");
                        (Some(more.map_or(own.clone(), |m| format!("{own}, {m}"))), list)
                    })
                })
                .collect();
        }
    }
    vec![(None, list)]
}

fn repeats(list: &[Placed]) -> bool {
    repeated(list) > 0
}

/// Frames that lie where another one lies already.
fn repeated(list: &[Placed]) -> usize {
    let Some(first) = list.first() else { return 0 };
    let n = first.normal();
    let mut at: Vec<f64> = list.iter().map(|p| dot(p.position, n)).collect();
    at.sort_by(f64::total_cmp);
    at.windows(2).filter(|w| w[1] - w[0] < SAME_PLACE_MM).count()
}

/// Closer than this along the normal, two slices are at one place; millimetres.
pub(super) const SAME_PLACE_MM: f64 = 0.01;

/// Sorts a contrast's frames along the normal.
pub(super) fn sorted(contrast: String, mut list: Vec<Placed>) -> Option<Stack> {
    let first = list.first()?;
    let (columns, rows, normal) = (first.columns, first.rows, first.normal());
    let spacing = first.spacing;
    // Equal positions (an error later) are told apart by UID, so that the order never depends on arrival.
    list.sort_by(|a, b| {
        dot(a.position, normal)
            .total_cmp(&dot(b.position, normal))
            .then_with(|| a.source.header.sop_instance_uid.cmp(&b.source.header.sop_instance_uid))
            .then_with(|| a.source.index.cmp(&b.source.index))
    });
    Some(Stack {
        axes: [columns, rows, normal],
        pixel_spacing: spacing,
        positions: list.iter().map(|p| p.position).collect(),
        frames: list.into_iter().map(|p| (dot(p.position, normal), p.source)).collect(),
        contrast,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::dicom::read::CLASSIC_MR;

    /// A plausible axial thigh slice at a height, without a file.
    pub fn slice(number: usize, z: f64) -> InstanceHeader {
        let frame = FrameHeader {
            number: 1,
            position: Some([-200.0, -100.0, z]),
            orientation: Some([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
            pixel_spacing: Some([0.8, 0.8]),
            slice_thickness: Some(5.0),
            slope: 1.0,
            image_type: ["ORIGINAL", "PRIMARY", "M", "ND"].map(String::from).to_vec(),
            echo_time: Some(10.0),
            ..FrameHeader::default()
        };
        InstanceHeader {
            path: format!("/nowhere/{number}").into(),
            sop_class_uid: CLASSIC_MR.into(),
            sop_instance_uid: format!("2.25.{number}"),
            study_uid: "2.25.1".into(),
            series_uid: "2.25.2".into(),
            frame_of_reference_uid: Some("2.25.3".into()),
            transfer_syntax_uid: "1.2.840.10008.1.2.1".into(),
            modality: "MR".into(),
            manufacturer: String::new(),
            image_type: frame.image_type.clone(),
            study_description: String::new(),
            series_description: "AX_T1_THIGH".into(),
            protocol_name: String::new(),
            body_part: String::new(),
            laterality: None,
            sequence_name: String::new(),
            scanning_sequence: "SE".into(),
            series_number: None,
            instance_number: Some(number as i64),
            rows: 256,
            columns: 512,
            samples_per_pixel: 1,
            bits_allocated: 16,
            bits_stored: 12,
            high_bit: 11,
            signed: false,
            photometric: "MONOCHROME2".into(),
            number_of_frames: 1,
            images_in_acquisition: None,
            number_of_temporal_positions: None,
            concatenation_total: None,
            burned_in: false,
            has_pixels: true,
            frames: vec![frame],
            verbatim: Vec::new(),
        }
    }
}
