//! What the builders need to know, in DICOM's words and without the rooms above.

use dicom_core::{Tag, VR};

use crate::image::{Geometry, LabelMap};
use crate::terms::{Side, Structure};

/// An attribute of the source, copied byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceAttribute {
    /// Its tag.
    pub tag: Tag,
    /// Its value representation.
    pub vr: VR,
    /// Its value, encoded as the source's Specific Character Set says.
    pub bytes: Vec<u8>,
}

/// A slice's source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSlice {
    /// SOP Class UID.
    pub sop_class_uid: String,
    /// SOP Instance UID.
    pub sop_instance_uid: String,
    /// Frame, from 1, of a multi-frame instance.
    pub frame_number: Option<u32>,
}

/// The series that was segmented.
#[derive(Clone, Debug)]
pub struct SourceSeries {
    /// Character set, patient and study attributes as they came.
    pub attributes: Vec<SourceAttribute>,
    /// Study Instance UID.
    pub study_uid: String,
    /// Series Instance UID.
    pub series_uid: String,
    /// Frame of Reference UID; empty where the source has none.
    pub frame_of_reference_uid: String,
    /// Its grid.
    pub geometry: Geometry,
    /// One per slice of the grid; none where the slice is missing.
    pub slices: Vec<Option<SourceSlice>>,
}

/// A segment to write.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentSpec {
    /// Its value in the label map; 0 for a structure that was expected and not found.
    pub number: u8,
    /// The structure.
    pub structure: Structure,
    /// The side, where known.
    pub side: Option<Side>,
}

impl SegmentSpec {
    /// `Vastus lateralis, right`.
    pub fn label(&self) -> String {
        match self.side {
            Some(side) => format!("{}, {}", self.structure.name, side.word()),
            None => self.structure.name.clone(),
        }
    }
    /// `VL-R`: the tracking identifier.
    pub fn tracking_id(&self) -> String {
        match self.side {
            Some(side) => format!("{}-{}", self.structure.key, side.letter()),
            None => self.structure.key.clone(),
        }
    }
}

/// Who made the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Version of this program.
    pub software: String,
    /// Engine, its version and precision.
    pub engine: String,
    /// Adapter name and version.
    pub adapter: String,
    /// sha256 of the adapter, hex.
    pub adapter_sha256: String,
    /// The signed bundle that the adapter came in: name, version, identity, whose signatures; empty where it came in none.
    pub bundle: String,
    /// sha256 of the base weights, hex.
    pub base_sha256: String,
    /// AE title of this box.
    pub station: String,
}

impl Identity {
    /// One line for algorithm parameters and reports.
    pub fn line(&self) -> String {
        let short = |s: &str| s.get(..12).unwrap_or(s).to_string();
        let bundle = if self.bundle.is_empty() { String::new() } else { format!("; bundle {}", self.bundle) };
        format!(
            "engine {}; adapter {} ({}); base {}{bundle}",
            self.engine,
            self.adapter,
            short(&self.adapter_sha256),
            short(&self.base_sha256)
        )
    }
}

/// One criterion's grade, in words.
#[derive(Clone, Debug, PartialEq)]
pub struct GradeLine {
    /// `C1` .. `C8`.
    pub id: String,
    /// Its name.
    pub name: String,
    /// 1 to 5; none where it could not be measured.
    pub grade: Option<u8>,
    /// What was measured, in words with unit.
    pub measure: String,
    /// Slices that pulled it down, 0-based.
    pub slices: Vec<usize>,
}

/// SegEx of one segment.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentReport {
    /// Segment number.
    pub number: u8,
    /// Cubic millimetres.
    pub volume_mm3: f64,
    /// 0 to 100.
    pub score: f64,
    /// `A` .. `D`.
    pub verdict: String,
    /// The verdict in words.
    pub verdict_words: String,
    /// C1 to C8.
    pub grades: Vec<GradeLine>,
    /// Sentences for a reader.
    pub remarks: Vec<String>,
}

/// Everything a result is made of.
#[derive(Clone, Debug)]
pub struct ResultInput<'a> {
    /// The source.
    pub source: &'a SourceSeries,
    /// Labels on the source's grid.
    pub labels: &'a LabelMap,
    /// The segments.
    pub segments: &'a [SegmentSpec],
    /// SegEx, one per segment, in the same order.
    pub reports: &'a [SegmentReport],
    /// Score of the whole result, 0 to 100.
    pub score: f64,
    /// Verdict of the whole result with its words, e.g. `B: minor edits`.
    pub verdict: String,
    /// Who graded.
    pub observer: String,
    /// Whether grades are calibrated.
    pub calibrated: bool,
    /// Whether the site's bar asks for review.
    pub needs_review: bool,
    /// Sentences about the whole result.
    pub remarks: &'a [String],
    /// Who made it.
    pub identity: &'a Identity,
    /// Content time, Unix milliseconds (UTC): fixed when the job was made.
    pub created_ms: i64,
    /// What makes this result different from any other: hashes of input, model and configuration.
    pub key: String,
    /// Series Number of the segmentation; the other objects take the next ones.
    pub series_number: u32,
}

/// Why a series was refused, as its text report says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusalText {
    /// Stable code.
    pub code: String,
    /// The sentence.
    pub sentence: String,
    /// The remedy.
    pub remedy: String,
}
