//! What series assembly, task matching and result writing need of an instance, without its pixels.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use dicom_core::{Tag, VR};
use dicom_dictionary_std::tags;

use super::enhanced;
use super::error::{ReadCause, ReadError};
use super::parse::{self, Limits, Outcome, PIXEL_DATA, Parsed, Value};
use super::values::Item;
use crate::terms::Side;

/// Enhanced MR Image Storage.
pub const ENHANCED_MR: &str = "1.2.840.10008.5.1.4.1.1.4.1";
/// MR Image Storage.
pub const CLASSIC_MR: &str = "1.2.840.10008.5.1.4.1.1.4";

/// An element of the data set, to be copied into results as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawElement {
    /// Its tag.
    pub tag: Tag,
    /// Its value representation (from the dictionary where the source is implicit).
    pub vr: VR,
    /// Its value, byte for byte; text is encoded as the instance's Specific Character Set says. Binary numbers are
    /// little endian.
    pub bytes: Vec<u8>,
}

/// One frame's place, contrast and scaling. A classic image is one frame.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FrameHeader {
    /// From 1.
    pub number: u32,
    /// Image Position (Patient), millimetres, LPS.
    pub position: Option<[f64; 3]>,
    /// Image Orientation (Patient): direction of growing column index, then of growing row index.
    pub orientation: Option<[f64; 6]>,
    /// Pixel Spacing: between rows, between columns; millimetres.
    pub pixel_spacing: Option<[f64; 2]>,
    /// Slice Thickness, millimetres.
    pub slice_thickness: Option<f64>,
    /// Spacing Between Slices, millimetres.
    pub spacing_between_slices: Option<f64>,
    /// Rescale Slope; 1 where absent.
    pub slope: f64,
    /// Rescale Intercept; 0 where absent.
    pub intercept: f64,
    /// Image Type (Frame Type of an enhanced image).
    pub image_type: Vec<String>,
    /// Echo Time (Effective Echo Time), milliseconds.
    pub echo_time: Option<f64>,
    /// Repetition Time, milliseconds.
    pub repetition_time: Option<f64>,
    /// Inversion Time, milliseconds.
    pub inversion_time: Option<f64>,
    /// Flip Angle, degrees.
    pub flip_angle: Option<f64>,
    /// Diffusion b-value, s/mm2.
    pub b_value: Option<f64>,
    /// Temporal Position Identifier or Index.
    pub temporal_position: Option<u32>,
    /// Trigger Time or Nominal Cardiac Trigger Delay, milliseconds.
    pub trigger_time: Option<f64>,
    /// Acquisition Number.
    pub acquisition_number: Option<i64>,
    /// Stack ID.
    pub stack_id: Option<String>,
    /// Position in the stack, from 1.
    pub in_stack_position: Option<u32>,
    /// Dimension Index Values.
    pub dimension_index: Vec<u32>,
}

/// An instance without its pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct InstanceHeader {
    /// The file it was read from.
    pub path: PathBuf,
    /// SOP Class UID.
    pub sop_class_uid: String,
    /// SOP Instance UID.
    pub sop_instance_uid: String,
    /// Study Instance UID.
    pub study_uid: String,
    /// Series Instance UID.
    pub series_uid: String,
    /// Frame of Reference UID.
    pub frame_of_reference_uid: Option<String>,
    /// Transfer Syntax UID.
    pub transfer_syntax_uid: String,
    /// Modality.
    pub modality: String,
    /// Manufacturer.
    pub manufacturer: String,
    /// Image Type.
    pub image_type: Vec<String>,
    /// Study Description.
    pub study_description: String,
    /// Series Description.
    pub series_description: String,
    /// Protocol Name.
    pub protocol_name: String,
    /// Body Part Examined.
    pub body_part: String,
    /// Laterality (or Image Laterality, or of the enhanced frames), where one side is named.
    pub laterality: Option<Side>,
    /// Sequence Name (Pulse Sequence Name).
    pub sequence_name: String,
    /// Scanning Sequence.
    pub scanning_sequence: String,
    /// Series Number.
    pub series_number: Option<i64>,
    /// Instance Number.
    pub instance_number: Option<i64>,
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
    /// Samples per Pixel.
    pub samples_per_pixel: u16,
    /// Bits Allocated.
    pub bits_allocated: u16,
    /// Bits Stored.
    pub bits_stored: u16,
    /// High Bit.
    pub high_bit: u16,
    /// Pixel Representation is two's complement.
    pub signed: bool,
    /// Photometric Interpretation.
    pub photometric: String,
    /// Number of Frames; 1 where absent.
    pub number_of_frames: u32,
    /// Images in Acquisition (0020,1002).
    pub images_in_acquisition: Option<u32>,
    /// Number of Temporal Positions (0020,0105).
    pub number_of_temporal_positions: Option<u32>,
    /// In-concatenation Total Number (0020,9163).
    pub concatenation_total: Option<u32>,
    /// Burned In Annotation is YES.
    pub burned_in: bool,
    /// Whether pixel data is there and, as far as its length tells, whole.
    pub has_pixels: bool,
    /// The frames, in the order of the object. One for a classic image.
    pub frames: Vec<FrameHeader>,
    /// Specific Character Set, patient, study, frame of reference and equipment attributes as they came, by tag; none over
    /// 65,534 bytes.
    pub verbatim: Vec<RawElement>,
}

impl InstanceHeader {
    /// Whether this is an enhanced multi-frame MR object.
    pub fn is_enhanced(&self) -> bool {
        self.sop_class_uid == ENHANCED_MR
    }
    /// A verbatim element's bytes.
    pub fn verbatim(&self, tag: Tag) -> Option<&RawElement> {
        self.verbatim.iter().find(|e| e.tag == tag)
    }
}

/// Reads an instance's header with the default limits. The pixel data is not read.
///
/// # Errors
/// [`ReadError`], which names the file, the cause and the remedy.
pub fn read_header(path: &Path) -> Result<InstanceHeader, ReadError> {
    read_header_with(path, &Limits::default())
}

/// [`read_header`] with given limits.
///
/// # Errors
/// [`ReadError`].
pub fn read_header_with(path: &Path, limits: &Limits) -> Result<InstanceHeader, ReadError> {
    let read = || {
        let (parsed, size) = open(path, false, limits)?;
        header(path, &parsed, size)
    };
    read().map_err(|cause| ReadError::new(path, cause))
}

/// Opens and parses a file; the size is the file's. Without `pixels`, only as much is read as comes before the pixels.
pub(super) fn open(path: &Path, pixels: bool, limits: &Limits) -> Result<(Box<Parsed>, u64), ReadCause> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(ReadCause::NotDicom);
    }
    let size = meta.len();
    if size > limits.max_bytes {
        return Err(ReadCause::TooLarge { bytes: size, limit: limits.max_bytes });
    }
    let mut want = if pixels { size } else { size.min(128 << 10) };
    let mut bytes = Vec::new();
    loop {
        let have = bytes.len() as u64;
        (&file).take(want - have).read_to_end(&mut bytes)?;
        // A file cut while it is read is whole where it ends.
        let whole = bytes.len() as u64 >= size || (bytes.len() as u64) < want;
        match parse::parse(bytes, whole, pixels, limits)? {
            Outcome::Done(parsed) => return Ok((parsed, size)),
            Outcome::More(b) if !whole => {
                bytes = b;
                want = (want * 4).min(size);
            }
            Outcome::More(_) => {
                return Err(ReadCause::Encoding { at: size as usize, what: "the file ends inside an element".into() });
            }
        }
    }
}

pub(super) fn header(path: &Path, parsed: &Parsed, size: u64) -> Result<InstanceHeader, ReadCause> {
    let root = Item::root(parsed);
    let uid = |tag, text: &'static str, name| root.some_text(tag).ok_or(ReadCause::Missing { tag: text, name });
    let number_of_frames = root.count(tags::NUMBER_OF_FRAMES).unwrap_or(1).max(1);
    let bits_allocated = root.u16(tags::BITS_ALLOCATED).unwrap_or(0);
    let bits_stored = root.u16(tags::BITS_STORED).filter(|&b| b > 0).unwrap_or(bits_allocated);
    let mut header = InstanceHeader {
        path: path.to_path_buf(),
        sop_class_uid: uid(tags::SOP_CLASS_UID, "(0008,0016)", "SOP Class UID")?,
        sop_instance_uid: uid(tags::SOP_INSTANCE_UID, "(0008,0018)", "SOP Instance UID")?,
        study_uid: root.text(tags::STUDY_INSTANCE_UID),
        series_uid: root.text(tags::SERIES_INSTANCE_UID),
        frame_of_reference_uid: root.some_text(tags::FRAME_OF_REFERENCE_UID),
        transfer_syntax_uid: parsed.transfer_syntax.clone(),
        modality: root.text(tags::MODALITY),
        manufacturer: root.text(tags::MANUFACTURER),
        image_type: root.texts(tags::IMAGE_TYPE, "Image Type (0008,0008)")?,
        study_description: root.text(tags::STUDY_DESCRIPTION),
        series_description: root.text(tags::SERIES_DESCRIPTION),
        protocol_name: root.text(tags::PROTOCOL_NAME),
        body_part: root.text(tags::BODY_PART_EXAMINED),
        laterality: side(&root.text(tags::LATERALITY)).or_else(|| side(&root.text(tags::IMAGE_LATERALITY))),
        sequence_name: root.some_text(tags::SEQUENCE_NAME).unwrap_or_else(|| root.text(tags::PULSE_SEQUENCE_NAME)),
        scanning_sequence: root.text(tags::SCANNING_SEQUENCE),
        series_number: root.number(tags::SERIES_NUMBER).map(|v| v as i64),
        instance_number: root.number(tags::INSTANCE_NUMBER).map(|v| v as i64),
        rows: root.u16(tags::ROWS).unwrap_or(0),
        columns: root.u16(tags::COLUMNS).unwrap_or(0),
        samples_per_pixel: root.u16(tags::SAMPLES_PER_PIXEL).unwrap_or(1),
        bits_allocated,
        bits_stored,
        high_bit: root.u16(tags::HIGH_BIT).unwrap_or(bits_stored.saturating_sub(1)),
        signed: root.u16(tags::PIXEL_REPRESENTATION) == Some(1),
        photometric: root.text(tags::PHOTOMETRIC_INTERPRETATION),
        number_of_frames,
        images_in_acquisition: root.count(tags::IMAGES_IN_ACQUISITION).filter(|&n| n > 0),
        number_of_temporal_positions: root.count(tags::NUMBER_OF_TEMPORAL_POSITIONS).filter(|&n| n > 0),
        concatenation_total: root.count(tags::IN_CONCATENATION_TOTAL_NUMBER).filter(|&n| n > 0),
        burned_in: root.text(tags::BURNED_IN_ANNOTATION) == "YES",
        has_pixels: match root.find(PIXEL_DATA).map(|e| &e.value) {
            Some(Value::Bytes(r)) => !r.is_empty(),
            Some(Value::Fragments(_)) => true,
            Some(Value::Beyond { start, claimed }) => *start as u64 + claimed <= size,
            _ => false,
        },
        frames: Vec::new(),
        verbatim: verbatim(parsed),
    };
    header.frames = if root.find(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE).is_some() {
        enhanced::frames(root, &mut header)?
    } else {
        // A multi-frame object without functional groups has one place for all frames: only frame 1 can be placed.
        vec![classic(root, &header)]
    };
    Ok(header)
}

fn classic(root: Item<'_>, header: &InstanceHeader) -> FrameHeader {
    FrameHeader {
        number: 1,
        position: root.triple(tags::IMAGE_POSITION_PATIENT),
        orientation: root.numbers(tags::IMAGE_ORIENTATION_PATIENT).try_into().ok(),
        pixel_spacing: root.numbers(tags::PIXEL_SPACING).try_into().ok(),
        slice_thickness: root.number(tags::SLICE_THICKNESS),
        spacing_between_slices: root.number(tags::SPACING_BETWEEN_SLICES),
        slope: root.number(tags::RESCALE_SLOPE).unwrap_or(1.0),
        intercept: root.number(tags::RESCALE_INTERCEPT).unwrap_or(0.0),
        image_type: header.image_type.clone(),
        echo_time: root.number(tags::ECHO_TIME),
        repetition_time: root.number(tags::REPETITION_TIME),
        inversion_time: root.number(tags::INVERSION_TIME),
        flip_angle: root.number(tags::FLIP_ANGLE),
        b_value: b_value(root),
        temporal_position: root.count(tags::TEMPORAL_POSITION_IDENTIFIER),
        trigger_time: root.number(tags::TRIGGER_TIME),
        acquisition_number: root.number(tags::ACQUISITION_NUMBER).map(|v| v as i64),
        stack_id: root.some_text(tags::STACK_ID),
        in_stack_position: root.count(tags::IN_STACK_POSITION_NUMBER),
        dimension_index: Vec::new(),
    }
}

/// The b-value: the standard attribute, or where vendors kept it before there was one.
fn b_value(root: Item<'_>) -> Option<f64> {
    if let Some(b) = root.number(tags::DIFFUSION_B_VALUE) {
        return Some(b);
    }
    let creator = |group: u16| root.text(Tag(group, 0x0010));
    if creator(0x0019).starts_with("SIEMENS MR HEADER") {
        return root.number(Tag(0x0019, 0x100C));
    }
    if creator(0x0043).starts_with("GEMS_PARM_01") {
        // The first of four numbers; GE adds 10^9 as a flag.
        return root.number(Tag(0x0043, 0x1039)).map(|b| b % 1e5);
    }
    if creator(0x2001).starts_with("Philips Imaging DD 001") {
        return root.number(Tag(0x2001, 0x1003));
    }
    None
}

pub(super) fn side(text: &str) -> Option<Side> {
    match text {
        "R" => Some(Side::Right),
        "L" => Some(Side::Left),
        _ => None,
    }
}

/// Attributes that belong to the patient, the study, the frame of reference and the equipment rather than to the image.
fn keeps(tag: Tag) -> bool {
    match tag.0 {
        0x0010 | 0x0012 => true,
        0x0008 => matches!(
            tag.1,
            0x0005
                | 0x0020
                | 0x0030
                | 0x0050
                | 0x0051
                | 0x0070
                | 0x0080
                | 0x0081
                | 0x0090
                | 0x0201
                | 0x1010
                | 0x1030
                | 0x1040
                | 0x1090
        ),
        0x0018 => matches!(tag.1, 0x0015 | 0x1000 | 0x1020 | 0x5100),
        0x0020 => matches!(tag.1, 0x000D | 0x0010 | 0x0052 | 0x1040),
        _ => false,
    }
}

/// Largest value that results copy, bytes: what a text element of explicit VR can hold.
const LONGEST_VERBATIM: usize = 65_534;

fn verbatim(parsed: &Parsed) -> Vec<RawElement> {
    let root = Item::root(parsed);
    let mut list = Vec::new();
    for e in root.elements() {
        let Value::Bytes(range) = &e.value else { continue };
        // Group lengths would be wrong in any other object.
        if !keeps(e.tag) || e.tag.1 == 0 || e.vr == VR::UN {
            continue;
        }
        let Some(bytes) = parsed.bytes.get(range.clone()).filter(|b| b.len() <= LONGEST_VERBATIM) else { continue };
        let mut bytes = bytes.to_vec();
        if parsed.encoding.big {
            let width = match e.vr {
                VR::US | VR::SS | VR::OW | VR::AT => 2,
                VR::UL | VR::SL | VR::FL | VR::OF | VR::OL => 4,
                VR::FD | VR::OD | VR::UV | VR::SV => 8,
                _ => 1,
            };
            for c in bytes.chunks_exact_mut(width) {
                c.reverse();
            }
        }
        list.push(RawElement { tag: e.tag, vr: e.vr, bytes });
    }
    list.sort_by_key(|e| e.tag);
    list.dedup_by_key(|e| e.tag);
    list
}
