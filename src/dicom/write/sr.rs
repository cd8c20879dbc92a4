//! The SegEx report for programs: Comprehensive 3D SR, TID 1500 with one TID 1411 group per segment.

use dicom_core::VR;
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;

use super::build::{Head, Set, clip, code_item, common, decimal};
use super::input::{ResultInput, SegmentReport, SegmentSpec, SourceSeries};
use super::seg;
use super::uid;
use crate::terms::{Code, thigh};

/// Comprehensive 3D SR Storage.
const COMPREHENSIVE_3D_SR: &str = "1.2.840.10008.5.1.4.1.1.88.34";

/// A content item: relationship, value type, concept.
fn item(relation: &str, kind: &str, concept: &Code) -> Set {
    Set::new()
        .text(tags::RELATIONSHIP_TYPE, VR::CS, relation)
        .text(tags::VALUE_TYPE, VR::CS, kind)
        .code(tags::CONCEPT_NAME_CODE_SEQUENCE, concept)
}

pub(super) fn text_item(relation: &str, concept: &Code, text: &str) -> Set {
    // UT has no length limit; the bound keeps a report readable.
    let text: String = text.chars().map(|c| if c.is_ascii() { c } else { '?' }).take(4000).collect();
    item(relation, "TEXT", concept).text(tags::TEXT_VALUE, VR::UT, &text)
}

fn code_value(relation: &str, concept: &Code, value: &Code) -> Set {
    item(relation, "CODE", concept).code(tags::CONCEPT_CODE_SEQUENCE, value)
}

fn uid_item(relation: &str, concept: &Code, value: &str) -> Set {
    item(relation, "UIDREF", concept).text(tags::UID, VR::UI, value)
}

fn number(concept: &Code, value: f64, unit: &Code, children: Vec<Set>) -> Set {
    let measured = Set::new().seq(tags::MEASUREMENT_UNITS_CODE_SEQUENCE, vec![code_item(unit)]).text(
        tags::NUMERIC_VALUE,
        VR::DS,
        &decimal(value),
    );
    let set = item("CONTAINS", "NUM", concept).seq(tags::MEASURED_VALUE_SEQUENCE, vec![measured]);
    if children.is_empty() { set } else { set.seq(tags::CONTENT_SEQUENCE, children) }
}

pub(super) fn container(relation: Option<&str>, concept: &Code, children: Vec<Set>) -> Set {
    let set = match relation {
        Some(r) => Set::new().text(tags::RELATIONSHIP_TYPE, VR::CS, r),
        None => Set::new(),
    };
    set.text(tags::VALUE_TYPE, VR::CS, "CONTAINER")
        .code(tags::CONCEPT_NAME_CODE_SEQUENCE, concept)
        .text(tags::CONTINUITY_OF_CONTENT, VR::CS, "SEPARATE")
        .seq(tags::CONTENT_SEQUENCE, children)
}

/// TID 1204 and TID 1001 for a device: what every SR of this program starts with.
pub(super) fn context(observer: &str, station: &str, software: &str) -> Vec<Set> {
    vec![
        code_value(
            "HAS CONCEPT MOD",
            &Code::dcm("121049", "Language of Content Item and Descendants"),
            &Code::new("en-US", "RFC5646", "English (United States)"),
        ),
        code_value("HAS OBS CONTEXT", &Code::dcm("121005", "Observer Type"), &Code::dcm("121007", "Device")),
        uid_item("HAS OBS CONTEXT", &Code::dcm("121012", "Device Observer UID"), &uid::derive("device", &[station])),
        text_item("HAS OBS CONTEXT", &Code::dcm("121013", "Device Observer Name"), &format!("{station} ({observer})")),
        text_item("HAS OBS CONTEXT", &Code::dcm("121014", "Device Observer Manufacturer"), "Scanside"),
        text_item(
            "HAS OBS CONTEXT",
            &Code::dcm("121015", "Device Observer Model Name"),
            &format!("Scanside {software}"),
        ),
    ]
}

/// The attributes of the SR document modules besides the content tree.
pub(super) fn document(set: Set, evidence: Vec<Set>, template: Option<&str>) -> Set {
    let set = set
        .text(tags::COMPLETION_FLAG, VR::CS, "COMPLETE")
        .text(tags::VERIFICATION_FLAG, VR::CS, "UNVERIFIED")
        .seq(tags::REFERENCED_PERFORMED_PROCEDURE_STEP_SEQUENCE, vec![])
        .seq(tags::PERFORMED_PROCEDURE_CODE_SEQUENCE, vec![]);
    let set =
        if evidence.is_empty() { set } else { set.seq(tags::CURRENT_REQUESTED_PROCEDURE_EVIDENCE_SEQUENCE, evidence) };
    match template {
        Some(id) => set.seq(
            tags::CONTENT_TEMPLATE_SEQUENCE,
            vec![Set::new().text(tags::MAPPING_RESOURCE, VR::CS, "DCMR").text(tags::TEMPLATE_IDENTIFIER, VR::CS, id)],
        ),
        None => set,
    }
}

/// Evidence: the source images, and the segmentation where there is one.
pub(super) fn evidence(source: &SourceSeries, segmentation: Option<(&str, &str)>) -> Vec<Set> {
    let reference = |class: &str, instance: &str| {
        Set::new().text(tags::REFERENCED_SOP_CLASS_UID, VR::UI, class).text(
            tags::REFERENCED_SOP_INSTANCE_UID,
            VR::UI,
            instance,
        )
    };
    let mut seen = std::collections::BTreeSet::new();
    let images: Vec<Set> = source
        .slices
        .iter()
        .flatten()
        .filter(|s| seen.insert(s.sop_instance_uid.clone()))
        .map(|s| reference(&s.sop_class_uid, &s.sop_instance_uid))
        .collect();
    let mut series = Vec::new();
    if !images.is_empty() {
        series.push(Set::new().seq(tags::REFERENCED_SOP_SEQUENCE, images).text(
            tags::SERIES_INSTANCE_UID,
            VR::UI,
            &source.series_uid,
        ));
    }
    if let Some((series_uid, sop)) = segmentation {
        series.push(Set::new().seq(tags::REFERENCED_SOP_SEQUENCE, vec![reference(seg::SEGMENTATION, sop)]).text(
            tags::SERIES_INSTANCE_UID,
            VR::UI,
            series_uid,
        ));
    }
    if series.is_empty() {
        return vec![];
    }
    vec![Set::new().seq(tags::REFERENCED_SERIES_SEQUENCE, series).text(
        tags::STUDY_INSTANCE_UID,
        VR::UI,
        &source.study_uid,
    )]
}

/// A segmentation that others made; its segment numbers are those of the report's segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegReference {
    /// Its Series Instance UID.
    pub series_uid: String,
    /// Its SOP Instance UID.
    pub sop_instance_uid: String,
}

/// The SegEx report for programs on a result of our own: SOP Instance UID and object.
pub fn comprehensive_sr(input: &ResultInput<'_>) -> (String, InMemDicomObject) {
    comprehensive_sr_of(input, None)
}

/// The same on a segmentation from elsewhere, where one is given.
pub fn comprehensive_sr_of(input: &ResultInput<'_>, foreign: Option<&SegReference>) -> (String, InMemDicomObject) {
    let sop = uid::derive("sr", &[&input.source.series_uid, &input.key]);
    let review = if input.needs_review { " - needs review" } else { "" };
    let head = Head {
        sop_class: COMPREHENSIVE_3D_SR,
        sop_instance: &sop,
        modality: "SR",
        series_uid: &uid::derive("sr-series", &[&input.source.series_uid, &input.key]),
        series_number: input.series_number + 1,
        description: &format!("Scanside SegEx report{review}"),
        created_ms: input.created_ms,
    };
    let listed = seg::listed(input);
    let segmentation = match foreign {
        Some(seg) => Some(seg.sop_instance_uid.clone()),
        None => (!listed.is_empty()).then(|| seg::sop_instance_uid(input)),
    };
    let groups: Vec<Set> = input
        .segments
        .iter()
        .zip(input.reports)
        .map(|(s, r)| {
            let number = match foreign {
                Some(_) => (s.number > 0).then_some(usize::from(s.number)),
                None => listed.iter().position(|l| *l == s).map(|i| i + 1),
            };
            group(input, s, r, segmentation.as_deref().zip(number))
        })
        .collect();
    let mut children = context(&input.observer, &input.identity.station, &input.identity.software);
    children.push(code_value(
        "HAS CONCEPT MOD",
        &Code::dcm("121058", "Procedure reported"),
        &Code::sct("113091000", "Magnetic resonance imaging"),
    ));
    // TID 1500 demands measurements or evaluations; both are always there.
    children.push(container(Some("CONTAINS"), &Code::dcm("126010", "Imaging Measurements"), groups));
    let seg_series = foreign.map_or_else(
        || uid::derive("seg-series", &[&input.source.series_uid, &input.key]),
        |seg| seg.series_uid.clone(),
    );
    let set = document(
        common(input.source, input.identity, &head),
        evidence(input.source, segmentation.as_deref().map(|s| (seg_series.as_str(), s))),
        Some("1500"),
    );
    let set = if input.needs_review {
        set.text(tags::COMPLETION_FLAG_DESCRIPTION, VR::LO, "Needs review by a qualified reader")
    } else {
        set
    };
    let root = container(None, &Code::dcm("126000", "Imaging Measurement Report"), children);
    let mut object = set.0;
    for element in root.0 {
        object.put(element);
    }
    (sop, object)
}

/// TID 1411 of one segment; `reference` is the segmentation and the segment's number in it.
fn group(input: &ResultInput<'_>, s: &SegmentSpec, r: &SegmentReport, reference: Option<(&str, usize)>) -> Set {
    let one = Code::new("1", "UCUM", "no units");
    let mut children = vec![
        text_item("HAS OBS CONTEXT", &Code::dcm("112039", "Tracking Identifier"), &s.tracking_id()),
        uid_item("HAS OBS CONTEXT", &Code::dcm("112040", "Tracking Unique Identifier"), &seg::tracking_uid(input, s)),
        code_value("CONTAINS", &Code::dcm("121071", "Finding"), &s.structure.code),
    ];
    if let Some((sop, n)) = reference {
        let reference = Set::new()
            .text(tags::REFERENCED_SOP_CLASS_UID, VR::UI, seg::SEGMENTATION)
            .text(tags::REFERENCED_SOP_INSTANCE_UID, VR::UI, sop)
            .us(tags::REFERENCED_SEGMENT_NUMBER, &[n as u16]);
        children.push(
            item("CONTAINS", "IMAGE", &Code::dcm("121191", "Referenced Segment"))
                .seq(tags::REFERENCED_SOP_SEQUENCE, vec![reference]),
        );
        children.push(uid_item(
            "CONTAINS",
            &Code::dcm("121232", "Source series for segmentation"),
            &input.source.series_uid,
        ));
    }
    let mut site = code_value("HAS CONCEPT MOD", &Code::sct("363698007", "Finding Site"), &thigh());
    if let Some(side) = s.side {
        let laterality = code_value("HAS CONCEPT MOD", &Code::sct("272741003", "Laterality"), &side.code());
        site = site.seq(tags::CONTENT_SEQUENCE, vec![laterality]);
    }
    children.push(site);
    let algorithm = vec![
        text_item("HAS CONCEPT MOD", &Code::dcm("111001", "Algorithm Name"), "Scanside"),
        text_item("HAS CONCEPT MOD", &Code::dcm("111003", "Algorithm Version"), &input.identity.software),
        text_item("HAS CONCEPT MOD", &Code::dcm("111002", "Algorithm Parameters"), &input.identity.line()),
    ];
    children.push(number(
        &Code::sct("118565006", "Volume"),
        r.volume_mm3,
        &Code::new("mm3", "UCUM", "cubic millimeter"),
        algorithm,
    ));
    children.push(number(&Code::dcm("111029", "Image Quality Rating"), (r.score * 10.0).round() / 10.0, &one, vec![]));
    for g in &r.grades {
        let concept =
            Code::new(&format!("SEGEX_{}", g.id), "99SCANSIDE", &clip(&format!("SegEx {}: {}", g.id, g.name), 64));
        if let Some(grade) = g.grade {
            let how = text_item("HAS PROPERTIES", &Code::dcm("121106", "Comment"), &g.measure);
            children.push(number(&concept, f64::from(grade), &one, vec![how]));
        }
    }
    children.push(code_value(
        "CONTAINS",
        &Code::dcm("111050", "Quality Assessment"),
        &Code::new(
            &format!("SEGEX_{}", r.verdict),
            "99SCANSIDE",
            &clip(&format!("{}: {}", r.verdict, r.verdict_words), 64),
        ),
    ));
    for remark in &r.remarks {
        children.push(text_item("CONTAINS", &Code::dcm("121106", "Comment"), remark));
    }
    container(Some("CONTAINS"), &Code::dcm("125007", "Measurement Group"), children)
}
