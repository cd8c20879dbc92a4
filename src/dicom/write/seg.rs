//! BINARY Segmentation Storage (PS3.3, A.51): one frame per segment and slice that carries any of it.

use dicom_core::VR;
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;

use super::build::{Head, Set, clip, code_item, common};
use super::input::{ResultInput, SegmentSpec, SourceSlice};
use super::uid;
use crate::image::LabelMap;
use crate::terms::{Code, body_structure, thigh};

/// Segmentation Storage.
pub(super) const SEGMENTATION: &str = "1.2.840.10008.5.1.4.1.1.66.4";

/// SOP Instance UID of the segmentation that a result has.
pub(super) fn sop_instance_uid(input: &ResultInput<'_>) -> String {
    uid::derive("seg", &[&input.source.series_uid, &input.key])
}

/// Tracking UID of a segment: shared by the segmentation and the report.
pub(super) fn tracking_uid(input: &ResultInput<'_>, segment: &SegmentSpec) -> String {
    uid::derive("tracking", &[&input.source.series_uid, &input.key, &segment.tracking_id()])
}

/// One segment on one slice.
struct Plane<'a> {
    segment: &'a SegmentSpec,
    slice: usize,
    source: &'a SourceSlice,
}

/// Slices that show a segment and have a source: a missing slice has none, and its labels must not be shown on another's.
fn shown<'a>(input: &ResultInput<'a>, segment: &SegmentSpec) -> impl Iterator<Item = (usize, &'a SourceSlice)> {
    let (labels, number) = (input.labels, segment.number);
    let slices = input.source.slices.iter().take(input.source.geometry.dims[2]).enumerate();
    slices.filter_map(|(z, s)| Some((z, s.as_ref()?))).filter(move |(z, _)| has(labels, number, *z))
}

/// The segments that the segmentation object lists: those with voxels. Segment `i` has Segment Number `i + 1`, as the
/// standard demands numbers counted from 1 without gaps.
pub(super) fn listed<'a>(input: &ResultInput<'a>) -> Vec<&'a SegmentSpec> {
    input.segments.iter().filter(|s| shown(input, s).next().is_some()).collect()
}

/// The segmentation: SOP Instance UID and object; or `None` where no segment has a voxel, as a segmentation without
/// frames is one that readers refuse: the reports say so instead. Segments without voxels are left out and the others
/// numbered anew from 1. Weasis refuses objects of more than 400 frames (segments times slices).
pub fn segmentation(input: &ResultInput<'_>) -> Option<(String, InMemDicomObject)> {
    let listed = listed(input);
    let planes: Vec<Plane<'_>> = listed
        .iter()
        .flat_map(|&segment| shown(input, segment).map(move |(slice, source)| Plane { segment, slice, source }))
        .collect();
    if planes.is_empty() {
        return None;
    }
    let review = if input.needs_review { " - needs review" } else { "" };
    let made = Made {
        algorithm: "AUTOMATIC",
        series: &format!("Scanside segmentation{review}"),
        content: &format!("Automatic segmentation{review}"),
        creator: "Scanside^Device",
    };
    Some(object(input, &listed, &planes, &made))
}

/// A segmentation for a person to draw in: every segment has a frame on each of `slices`, empty where the label map is, so
/// that viewers list the segments. None where no slice has a source.
pub fn annotation(input: &ResultInput<'_>, slices: &[usize]) -> Option<(String, InMemDicomObject)> {
    let listed: Vec<&SegmentSpec> = input.segments.iter().collect();
    let sourced: Vec<(usize, &SourceSlice)> =
        slices.iter().filter_map(|&z| Some((z, input.source.slices.get(z)?.as_ref()?))).collect();
    let planes: Vec<Plane<'_>> = listed
        .iter()
        .flat_map(|&segment| sourced.iter().map(move |&(slice, source)| Plane { segment, slice, source }))
        .collect();
    if planes.is_empty() {
        return None;
    }
    let filled = planes.iter().any(|p| has(input.labels, p.segment.number, p.slice));
    let made = Made {
        algorithm: if filled { "SEMIAUTOMATIC" } else { "MANUAL" },
        series: "Scanside annotation",
        content: if filled { "Prediction to correct" } else { "To be drawn" },
        creator: "Scanside^Annotation",
    };
    Some(object(input, &listed, &planes, &made))
}

/// How a segmentation came to be, in DICOM's words.
struct Made<'a> {
    algorithm: &'a str,
    series: &'a str,
    content: &'a str,
    creator: &'a str,
}

fn object(
    input: &ResultInput<'_>,
    listed: &[&SegmentSpec],
    planes: &[Plane<'_>],
    made: &Made<'_>,
) -> (String, InMemDicomObject) {
    let [columns, rows, _] = input.source.geometry.dims;
    let sop = sop_instance_uid(input);
    let head = Head {
        sop_class: SEGMENTATION,
        sop_instance: &sop,
        modality: "SEG",
        series_uid: &uid::derive("seg-series", &[&input.source.series_uid, &input.key]),
        series_number: input.series_number,
        description: made.series,
        created_ms: input.created_ms,
    };
    let organization = uid::derive("dimensions", &[&input.source.series_uid, &input.key]);
    let frames: Vec<Set> = planes.iter().map(|p| frame(input, p, listed)).collect();
    let set = common(input.source, input.identity, &head);
    let set = if input.source.frame_of_reference_uid.is_empty() {
        // Mandatory for a segmentation; made up, it relates to nothing else, which is what a source without one means.
        set.text(tags::FRAME_OF_REFERENCE_UID, VR::UI, &uid::derive("frame-of-reference", &[&input.source.series_uid]))
    } else {
        set.text(tags::FRAME_OF_REFERENCE_UID, VR::UI, &input.source.frame_of_reference_uid)
    };
    let set = set
        .empty(tags::POSITION_REFERENCE_INDICATOR, VR::LO)
        .texts(tags::IMAGE_TYPE, VR::CS, &["DERIVED", "PRIMARY"])
        .us(tags::SAMPLES_PER_PIXEL, &[1])
        .text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2")
        .us(tags::ROWS, &[rows as u16])
        .us(tags::COLUMNS, &[columns as u16])
        .us(tags::BITS_ALLOCATED, &[1])
        .us(tags::BITS_STORED, &[1])
        .us(tags::HIGH_BIT, &[0])
        .us(tags::PIXEL_REPRESENTATION, &[0])
        .text(tags::LOSSY_IMAGE_COMPRESSION, VR::CS, "00")
        .text(tags::SEGMENTATION_TYPE, VR::CS, "BINARY")
        .text(tags::CONTENT_LABEL, VR::CS, "SCANSIDE")
        .text(tags::CONTENT_DESCRIPTION, VR::LO, &clip(made.content, 64))
        .text(tags::CONTENT_CREATOR_NAME, VR::PN, made.creator)
        .text(tags::NUMBER_OF_FRAMES, VR::IS, &planes.len().to_string())
        .seq(
            tags::SEGMENT_SEQUENCE,
            listed.iter().enumerate().map(|(i, s)| segment_item(input, s, i + 1, made)).collect(),
        )
        .seq(
            tags::DIMENSION_ORGANIZATION_SEQUENCE,
            vec![Set::new().text(tags::DIMENSION_ORGANIZATION_UID, VR::UI, &organization)],
        )
        .seq(
            tags::DIMENSION_INDEX_SEQUENCE,
            vec![
                Set::new()
                    .text(tags::DIMENSION_ORGANIZATION_UID, VR::UI, &organization)
                    .at(tags::DIMENSION_INDEX_POINTER, tags::REFERENCED_SEGMENT_NUMBER)
                    .at(tags::FUNCTIONAL_GROUP_POINTER, tags::SEGMENT_IDENTIFICATION_SEQUENCE)
                    .text(tags::DIMENSION_DESCRIPTION_LABEL, VR::LO, "Segment"),
                Set::new()
                    .text(tags::DIMENSION_ORGANIZATION_UID, VR::UI, &organization)
                    .at(tags::DIMENSION_INDEX_POINTER, tags::IMAGE_POSITION_PATIENT)
                    .at(tags::FUNCTIONAL_GROUP_POINTER, tags::PLANE_POSITION_SEQUENCE)
                    .text(tags::DIMENSION_DESCRIPTION_LABEL, VR::LO, "Position"),
            ],
        )
        .seq(tags::SHARED_FUNCTIONAL_GROUPS_SEQUENCE, vec![shared(input)])
        .seq(tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE, frames)
        .seq(tags::REFERENCED_SERIES_SEQUENCE, vec![referenced_series(input)])
        .bytes(tags::PIXEL_DATA, VR::OB, pack(input.labels, planes));
    (sop, set.0)
}

/// Whether a slice shows a segment. Number 0 is background: a structure that was expected and not found.
fn has(labels: &LabelMap, number: u8, z: usize) -> bool {
    let n = labels.geometry.plane();
    number > 0 && labels.data[z * n..(z + 1) * n].contains(&number)
}

/// Frames one after the other, least significant bit first, no padding between frames, even length.
fn pack(labels: &LabelMap, planes: &[Plane<'_>]) -> Vec<u8> {
    let n = labels.geometry.plane();
    let mut bytes = vec![0u8; (planes.len() * n).div_ceil(8)];
    for (f, p) in planes.iter().enumerate() {
        for (i, &v) in labels.data[p.slice * n..(p.slice + 1) * n].iter().enumerate() {
            if v == p.segment.number {
                let bit = f * n + i;
                bytes[bit / 8] |= 1 << (bit % 8);
            }
        }
    }
    if bytes.len() % 2 == 1 {
        bytes.push(0);
    }
    bytes
}

fn segment_item(input: &ResultInput<'_>, s: &SegmentSpec, number: usize, made: &Made<'_>) -> Set {
    let mut kind = code_item(&s.structure.code);
    if let Some(side) = s.side {
        kind = kind.code(tags::SEGMENTED_PROPERTY_TYPE_MODIFIER_CODE_SEQUENCE, &side.code());
    }
    let mut region = code_item(&thigh());
    if let Some(side) = s.side {
        region = region.code(tags::ANATOMIC_REGION_MODIFIER_SEQUENCE, &side.code());
    }
    let set = Set::new()
        .us(tags::SEGMENT_NUMBER, &[number as u16])
        .text(tags::SEGMENT_LABEL, VR::LO, &clip(&s.label(), 64))
        .seq(tags::SEGMENTED_PROPERTY_CATEGORY_CODE_SEQUENCE, vec![code_item(&body_structure())])
        .seq(tags::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE, vec![kind])
        .seq(tags::ANATOMIC_REGION_SEQUENCE, vec![region])
        .text(tags::SEGMENT_ALGORITHM_TYPE, VR::CS, made.algorithm)
        .text(tags::TRACKING_ID, VR::UT, &s.tracking_id())
        .text(tags::TRACKING_UID, VR::UI, &tracking_uid(input, s))
        .us(tags::RECOMMENDED_DISPLAY_CIE_LAB_VALUE, &cielab(s.structure.rgb));
    // What a person draws has no algorithm.
    if made.algorithm == "MANUAL" {
        return set;
    }
    set.text(tags::SEGMENT_ALGORITHM_NAME, VR::LO, "Scanside").seq(
        tags::SEGMENTATION_ALGORITHM_IDENTIFICATION_SEQUENCE,
        vec![
            Set::new()
                .code(tags::ALGORITHM_FAMILY_CODE_SEQUENCE, &Code::dcm("123110", "Artificial Intelligence"))
                .text(tags::ALGORITHM_VERSION, VR::LO, &clip(&input.identity.software, 64))
                .text(tags::ALGORITHM_PARAMETERS, VR::LT, &clip(&input.identity.line(), 1024))
                .text(tags::ALGORITHM_NAME, VR::LO, "Scanside"),
        ],
    )
}

fn shared(input: &ResultInput<'_>) -> Set {
    let g = &input.source.geometry;
    let orientation: Vec<f64> = g.axes[0].iter().chain(&g.axes[1]).copied().collect();
    Set::new()
        .seq(tags::PLANE_ORIENTATION_SEQUENCE, vec![Set::new().ds(tags::IMAGE_ORIENTATION_PATIENT, &orientation)])
        .seq(
            tags::PIXEL_MEASURES_SEQUENCE,
            vec![
                Set::new()
                    .ds(tags::SLICE_THICKNESS, &[g.spacing[2]])
                    .ds(tags::SPACING_BETWEEN_SLICES, &[g.spacing[2]])
                    .ds(tags::PIXEL_SPACING, &[g.spacing[1], g.spacing[0]]),
            ],
        )
}

fn frame(input: &ResultInput<'_>, p: &Plane<'_>, listed: &[&SegmentSpec]) -> Set {
    let number = listed.iter().position(|s| *s == p.segment).unwrap_or(0) + 1;
    let position = input.source.geometry.to_patient([0.0, 0.0, p.slice as f64]);
    let mut source = Set::new()
        .text(tags::REFERENCED_SOP_CLASS_UID, VR::UI, &p.source.sop_class_uid)
        .text(tags::REFERENCED_SOP_INSTANCE_UID, VR::UI, &p.source.sop_instance_uid)
        .code(
            tags::PURPOSE_OF_REFERENCE_CODE_SEQUENCE,
            &Code::dcm("121322", "Source image for image processing operation"),
        );
    if let Some(n) = p.source.frame_number {
        source = source.text(tags::REFERENCED_FRAME_NUMBER, VR::IS, &n.to_string());
    }
    Set::new()
        .seq(
            tags::DERIVATION_IMAGE_SEQUENCE,
            vec![
                Set::new()
                    .seq(tags::SOURCE_IMAGE_SEQUENCE, vec![source])
                    .code(tags::DERIVATION_CODE_SEQUENCE, &Code::dcm("113076", "Segmentation")),
            ],
        )
        .seq(
            tags::FRAME_CONTENT_SEQUENCE,
            vec![Set::new().ul(tags::DIMENSION_INDEX_VALUES, &[number as u32, p.slice as u32 + 1])],
        )
        .seq(tags::PLANE_POSITION_SEQUENCE, vec![Set::new().ds(tags::IMAGE_POSITION_PATIENT, &position)])
        .seq(
            tags::SEGMENT_IDENTIFICATION_SEQUENCE,
            vec![Set::new().us(tags::REFERENCED_SEGMENT_NUMBER, &[number as u16])],
        )
}

fn referenced_series(input: &ResultInput<'_>) -> Set {
    let mut seen = std::collections::BTreeSet::new();
    let instances = input
        .source
        .slices
        .iter()
        .flatten()
        .filter(|s| seen.insert(s.sop_instance_uid.clone()))
        .map(|s| {
            Set::new().text(tags::REFERENCED_SOP_CLASS_UID, VR::UI, &s.sop_class_uid).text(
                tags::REFERENCED_SOP_INSTANCE_UID,
                VR::UI,
                &s.sop_instance_uid,
            )
        })
        .collect();
    Set::new().seq(tags::REFERENCED_INSTANCE_SEQUENCE, instances).text(
        tags::SERIES_INSTANCE_UID,
        VR::UI,
        &input.source.series_uid,
    )
}

/// DICOM's scaling (PS3.3, C.10.7.1.1) of CIELab with the D50 white point.
fn cielab(rgb: [u8; 3]) -> [u16; 3] {
    let linear = rgb.map(|c| {
        let c = f64::from(c) / 255.0;
        if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
    });
    // sRGB to XYZ, adapted to D50 (Bradford), and the D50 white.
    const M: [[f64; 3]; 3] =
        [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]];
    const WHITE: [f64; 3] = [0.96422, 1.0, 0.82521];
    let f = |t: f64| if t > 216.0 / 24389.0 { t.cbrt() } else { (24389.0 / 27.0 * t + 16.0) / 116.0 };
    let [x, y, z] = [0, 1, 2].map(|i| f((0..3).map(|j| M[i][j] * linear[j]).sum::<f64>() / WHITE[i]));
    let (l, a, b) = (116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z));
    let scale = |v: f64, low: f64, span: f64| ((v - low) * 65535.0 / span).round().clamp(0.0, 65535.0) as u16;
    [scale(l, 0.0, 100.0), scale(a, -128.0, 255.0), scale(b, -128.0, 255.0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Geometry;
    use crate::terms::structure;
    use proptest::prelude::*;

    #[test]
    fn white_and_black_scale_to_the_ends() {
        assert_eq!(cielab([0, 0, 0])[0], 0);
        let white = cielab([255, 255, 255]);
        assert!(white[0] > 65_500 && (i32::from(white[1]) - 32_896).abs() < 40, "{white:?}");
    }

    #[test]
    fn red_has_its_published_lab_value() {
        // sRGB red under D50: L 54.29, a 80.81, b 69.89.
        let [l, a, b] = cielab([255, 0, 0]).map(f64::from);
        let near = |v: f64, low: f64, span: f64, lab: f64| (v / 65535.0 * span + low - lab).abs() < 0.05;
        assert!(near(l, 0.0, 100.0, 54.29) && near(a, -128.0, 255.0, 80.81) && near(b, -128.0, 255.0, 69.89));
    }

    proptest! {
        #[test]
        fn unpacked_frames_are_the_labels(
            columns in 1usize..9, rows in 1usize..9, slices in 1usize..5,
            values in prop::collection::vec(0u8..4, 8 * 8 * 4),
        ) {
            let geometry = Geometry::axial([columns, rows, slices], [1.0; 3]);
            let n = geometry.plane();
            let labels = LabelMap { data: values[..geometry.voxels()].to_vec(), geometry };
            let segments: Vec<SegmentSpec> = (1..4)
                .filter_map(|number| Some(SegmentSpec { number, structure: structure("VL")?, side: None }))
                .collect();
            let source = SourceSlice {
                sop_class_uid: "1.2".into(), sop_instance_uid: "1.3".into(), frame_number: None,
            };
            let planes: Vec<Plane<'_>> = segments
                .iter()
                .flat_map(|segment| (0..slices).map(move |slice| (segment, slice)))
                .map(|(segment, slice)| Plane { segment, slice, source: &source })
                .collect();
            let bytes = pack(&labels, &planes);
            prop_assert_eq!(bytes.len(), (planes.len() * n).div_ceil(16) * 2);
            let bit = |i: usize| bytes[i / 8] >> (i % 8) & 1 == 1;
            let mut unpacked = vec![0u8; labels.data.len()];
            for (f, p) in planes.iter().enumerate() {
                for i in (0..n).filter(|i| bit(f * n + i)) {
                    unpacked[p.slice * n + i] = p.segment.number;
                }
            }
            prop_assert_eq!(unpacked, labels.data);
            prop_assert!((planes.len() * n..bytes.len() * 8).all(|i| !bit(i)), "padding is not zero");
        }
    }
}
