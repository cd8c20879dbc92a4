//! Elements, codes and the modules that all results share.

use chrono::{TimeZone, Utc};
use dicom_core::value::{DataSetSequence, PrimitiveValue};
use dicom_core::{DataElement, Length, Tag, VR};
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;

use super::input::{Identity, SourceAttribute, SourceSeries};
use crate::terms::Code;

/// Patient and study attributes that must be present even where the source lacks them (type 2).
const TYPE_2: [(Tag, VR); 9] = [
    (tags::PATIENT_NAME, VR::PN),
    (tags::PATIENT_ID, VR::LO),
    (tags::PATIENT_BIRTH_DATE, VR::DA),
    (tags::PATIENT_SEX, VR::CS),
    (tags::STUDY_DATE, VR::DA),
    (tags::STUDY_TIME, VR::TM),
    (tags::ACCESSION_NUMBER, VR::SH),
    (tags::REFERRING_PHYSICIAN_NAME, VR::PN),
    (tags::STUDY_ID, VR::SH),
];

/// Patient and study attributes that are copied where the source has them.
const COPIED: [Tag; 9] = [
    tags::SPECIFIC_CHARACTER_SET,
    tags::STUDY_DESCRIPTION,
    tags::PATIENT_AGE,
    tags::PATIENT_SIZE,
    tags::PATIENT_WEIGHT,
    tags::ISSUER_OF_PATIENT_ID,
    tags::PATIENT_IDENTITY_REMOVED,
    tags::DEIDENTIFICATION_METHOD,
    tags::TIMEZONE_OFFSET_FROM_UTC,
];

/// Largest value of a text element of explicit VR, bytes. A source of implicit VR can hold more.
const LONGEST_COPY: usize = 65_534;

/// A data set under construction.
pub(super) struct Set(pub InMemDicomObject);

impl Set {
    pub fn new() -> Self {
        Set(InMemDicomObject::new_empty())
    }
    pub fn text(mut self, tag: Tag, vr: VR, value: &str) -> Self {
        self.0.put(DataElement::new(tag, vr, PrimitiveValue::from(value)));
        self
    }
    pub fn texts(mut self, tag: Tag, vr: VR, values: &[&str]) -> Self {
        let values = PrimitiveValue::Strs(values.iter().map(|s| s.to_string()).collect());
        self.0.put(DataElement::new(tag, vr, values));
        self
    }
    pub fn empty(mut self, tag: Tag, vr: VR) -> Self {
        self.0.put(DataElement::new(tag, vr, PrimitiveValue::Empty));
        self
    }
    pub fn us(mut self, tag: Tag, values: &[u16]) -> Self {
        self.0.put(DataElement::new(tag, VR::US, PrimitiveValue::U16(values.into())));
        self
    }
    pub fn ul(mut self, tag: Tag, values: &[u32]) -> Self {
        self.0.put(DataElement::new(tag, VR::UL, PrimitiveValue::U32(values.into())));
        self
    }
    pub fn ds(self, tag: Tag, values: &[f64]) -> Self {
        let values: Vec<String> = values.iter().map(|v| decimal(*v)).collect();
        self.texts(tag, VR::DS, &values.iter().map(String::as_str).collect::<Vec<_>>())
    }
    pub fn at(mut self, tag: Tag, value: Tag) -> Self {
        self.0.put(DataElement::new(tag, VR::AT, PrimitiveValue::Tags([value].as_slice().into())));
        self
    }
    pub fn bytes(mut self, tag: Tag, vr: VR, value: Vec<u8>) -> Self {
        self.0.put(DataElement::new(tag, vr, PrimitiveValue::U8(value.into())));
        self
    }
    pub fn seq(mut self, tag: Tag, items: Vec<Set>) -> Self {
        let items: Vec<InMemDicomObject> = items.into_iter().map(|s| s.0).collect();
        self.0.put(DataElement::new(tag, VR::SQ, DataSetSequence::new(items, Length::UNDEFINED)));
        self
    }
    pub fn code(self, tag: Tag, code: &Code) -> Self {
        self.seq(tag, vec![code_item(code)])
    }
}

/// The item of a code sequence.
pub(super) fn code_item(code: &Code) -> Set {
    let set = Set::new().text(tags::CODE_VALUE, VR::SH, &code.value).text(
        tags::CODING_SCHEME_DESIGNATOR,
        VR::SH,
        &code.scheme,
    );
    // A private scheme needs a version to be told from another site's.
    let set = if code.scheme.starts_with("99") { set.text(tags::CODING_SCHEME_VERSION, VR::SH, "1") } else { set };
    set.text(tags::CODE_MEANING, VR::LO, &code.meaning)
}

/// A decimal string of at most 16 characters (VR DS), as exact as fits.
pub(super) fn decimal(v: f64) -> String {
    if !v.is_finite() {
        return "0".into();
    }
    let plain = format!("{v}");
    if plain.len() <= 16 {
        return plain;
    }
    for digits in (0..=14).rev() {
        let s = format!("{v:.digits$}");
        if s.len() <= 16 && s.parse::<f64>().is_ok_and(|p| (p - v).abs() <= 1e-9 * v.abs().max(1e-3)) {
            let s = s.trim_end_matches('0').trim_end_matches('.').to_string();
            return if s == "-0" || s.is_empty() { "0".into() } else { s };
        }
    }
    format!("{v:.8e}")
}

/// DICOM date and time of Unix milliseconds, `offset` seconds east of UTC.
fn date_time(ms: i64, offset: i64) -> (String, String) {
    let t = Utc.timestamp_millis_opt(ms.saturating_add(offset * 1000)).single().unwrap_or_default();
    (t.format("%Y%m%d").to_string(), t.format("%H%M%S").to_string())
}

/// Seconds east of UTC that the source's Timezone Offset From UTC (`+0100`) says; 0 where it says nothing. The attribute is
/// copied and holds for every date and time of the object, so ours must be local to it too.
fn utc_offset(source: &SourceSeries) -> i64 {
    let Some(a) = source.attributes.iter().find(|a| a.tag == tags::TIMEZONE_OFFSET_FROM_UTC) else { return 0 };
    let text = String::from_utf8_lossy(&a.bytes);
    let text = text.trim_matches(['\0', ' ']);
    let (sign, digits) = match text.split_at_checked(1) {
        Some(("+", d)) => (1, d),
        Some(("-", d)) => (-1, d),
        _ => return 0,
    };
    if digits.len() != 4 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return 0;
    }
    let number: i64 = digits.parse().unwrap_or(0);
    sign * (number / 100 * 3600 + number % 100 * 60)
}

/// What differs between the results in the modules they share.
pub(super) struct Head<'a> {
    pub sop_class: &'a str,
    pub sop_instance: &'a str,
    pub modality: &'a str,
    pub series_uid: &'a str,
    pub series_number: u32,
    pub description: &'a str,
    pub created_ms: i64,
}

/// Whether an attribute is copied as text, which the writer encodes, and not as bytes: the character set, because the writer
/// must see it to encode by it, and numbers, of which it would spell out each byte as a number.
fn as_text(a: &SourceAttribute) -> bool {
    a.tag == tags::SPECIFIC_CHARACTER_SET || matches!(a.vr, VR::DS | VR::IS)
}

/// Whether the writer can encode a copy. One malformed attribute of the source must not cost the whole result.
fn can_be_copied(a: &SourceAttribute) -> bool {
    a.bytes.len() <= LONGEST_COPY && (a.bytes.is_ascii() || !as_text(a))
}

fn copy(set: Set, a: &SourceAttribute) -> Set {
    if !as_text(a) {
        return set.bytes(a.tag, a.vr, even(&a.bytes));
    }
    let text = String::from_utf8_lossy(&a.bytes);
    let text = text.trim_end_matches(['\0', ' ']);
    if a.tag == tags::SPECIFIC_CHARACTER_SET {
        set.texts(a.tag, VR::CS, &text.split('\\').collect::<Vec<_>>())
    } else {
        set.text(a.tag, a.vr, text)
    }
}

/// Patient, study, series, equipment and SOP common modules.
pub(super) fn common(source: &SourceSeries, identity: &Identity, head: &Head<'_>) -> Set {
    let mut set = Set::new();
    let find = |tag: Tag| source.attributes.iter().find(|a| a.tag == tag).filter(|a| can_be_copied(a));
    for (tag, vr) in TYPE_2 {
        set = match find(tag) {
            Some(a) => copy(set, a),
            None => set.empty(tag, vr),
        };
    }
    for tag in COPIED {
        if let Some(a) = find(tag) {
            set = copy(set, a);
        }
    }
    let (date, time) = date_time(head.created_ms, utc_offset(source));
    // Says whose the private codes are.
    let scheme = Set::new()
        .text(tags::CODING_SCHEME_DESIGNATOR, VR::SH, "99SCANSIDE")
        .text(tags::CODING_SCHEME_VERSION, VR::SH, "1")
        .text(tags::CODING_SCHEME_NAME, VR::ST, "Scanside SegEx criteria and merged muscle groups")
        .text(tags::CODING_SCHEME_RESPONSIBLE_ORGANIZATION, VR::ST, "Scanside");
    set.seq(tags::CODING_SCHEME_IDENTIFICATION_SEQUENCE, vec![scheme])
        .text(tags::SOP_CLASS_UID, VR::UI, head.sop_class)
        .text(tags::SOP_INSTANCE_UID, VR::UI, head.sop_instance)
        .text(tags::STUDY_INSTANCE_UID, VR::UI, &source.study_uid)
        .text(tags::SERIES_INSTANCE_UID, VR::UI, head.series_uid)
        .text(tags::MODALITY, VR::CS, head.modality)
        .text(tags::SERIES_NUMBER, VR::IS, &head.series_number.to_string())
        .text(tags::SERIES_DESCRIPTION, VR::LO, &clip(head.description, 64))
        .text(tags::SERIES_DATE, VR::DA, &date)
        .text(tags::SERIES_TIME, VR::TM, &time)
        .text(tags::CONTENT_DATE, VR::DA, &date)
        .text(tags::CONTENT_TIME, VR::TM, &time)
        .text(tags::INSTANCE_CREATION_DATE, VR::DA, &date)
        .text(tags::INSTANCE_CREATION_TIME, VR::TM, &time)
        .text(tags::INSTANCE_NUMBER, VR::IS, "1")
        .text(tags::MANUFACTURER, VR::LO, "Scanside")
        .text(tags::MANUFACTURER_MODEL_NAME, VR::LO, "Scanside")
        .text(tags::DEVICE_SERIAL_NUMBER, VR::LO, &clip(&identity.station, 64))
        .text(tags::STATION_NAME, VR::SH, &clip(&identity.station, 16))
        .text(tags::SOFTWARE_VERSIONS, VR::LO, &clip(&identity.software, 64))
}

/// A value padded to even length with a space.
fn even(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    if out.len() % 2 == 1 {
        out.push(b' ');
    }
    out
}

/// At most `n` bytes of ASCII.
pub(super) fn clip(text: &str, n: usize) -> String {
    text.chars().map(|c| if c.is_ascii() && !c.is_ascii_control() && c != '\\' { c } else { '?' }).take(n).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dicom::write::{RefusalText, refusal_text, write_atomically};
    use crate::image::Geometry;
    use proptest::prelude::*;

    fn source(attributes: Vec<SourceAttribute>) -> SourceSeries {
        SourceSeries {
            attributes,
            study_uid: "1.2".into(),
            series_uid: "1.3".into(),
            frame_of_reference_uid: "1.4".into(),
            geometry: Geometry::axial([1, 1, 1], [1.0; 3]),
            slices: vec![],
        }
    }

    #[test]
    fn a_malformed_attribute_of_the_source_costs_itself_and_not_the_report() {
        let identity = Identity {
            software: "1".into(),
            engine: "cpu".into(),
            adapter: "a".into(),
            adapter_sha256: "0".repeat(64),
            bundle: String::new(),
            base_sha256: "0".repeat(64),
            station: "BOX".into(),
        };
        let text =
            RefusalText { code: "GAVE_UP".into(), sentence: "It failed".into(), remedy: "See the journal".into() };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text.dcm");
        let written = |tag, vr, bytes: &[u8]| {
            let source = source(vec![SourceAttribute { tag, vr, bytes: bytes.to_vec() }]);
            let (_, object) = refusal_text(&source, &identity, &text, "key", 1_700_000_000_000, 9000);
            write_atomically(&object, &path).unwrap();
            dicom_object::open_file(&path).unwrap().get(tag).map(|e| e.to_bytes().unwrap().into_owned())
        };
        assert_eq!(written(tags::PATIENT_WEIGHT, VR::DS, b"75\xA0"), None);
        assert_eq!(written(tags::PATIENT_WEIGHT, VR::DS, b"75.5").as_deref(), Some(&b"75.5"[..]));
        assert_eq!(written(tags::SPECIFIC_CHARACTER_SET, VR::CS, b"ISO_IR\xA0100"), None);
        assert_eq!(written(tags::STUDY_DESCRIPTION, VR::LO, &[b'x'; 70_000]), None);
        // Those that must be there stay, empty.
        assert_eq!(written(tags::PATIENT_NAME, VR::PN, &[b'x'; 70_000]).as_deref(), Some(&[][..]));
    }

    #[test]
    fn times_are_local_to_the_offset_that_is_copied() {
        let source = |offset: Option<&[u8]>| {
            let one =
                offset.map(|o| SourceAttribute { tag: tags::TIMEZONE_OFFSET_FROM_UTC, vr: VR::SH, bytes: o.to_vec() });
            source(one.into_iter().collect())
        };
        // 2023-11-14 22:13:20 UTC.
        let at = |offset| date_time(1_700_000_000_000, utc_offset(&source(offset)));
        let words = |d: &str, t: &str| (d.to_string(), t.to_string());
        assert_eq!(at(None), words("20231114", "221320"));
        assert_eq!(at(Some(b"+0200 ")), words("20231115", "001320"));
        assert_eq!(at(Some(b"-0330 ")), words("20231114", "184320"));
        assert_eq!(at(Some(b"+9z ")), words("20231114", "221320"));
    }

    proptest! {
        #[test]
        fn decimals_fit_and_stay_true(v in -1e6f64..1e6) {
            let s = decimal(v);
            prop_assert!(s.len() <= 16, "{s}");
            let back: f64 = s.parse().unwrap();
            prop_assert!((back - v).abs() <= 1e-8 * v.abs().max(1e-3), "{v} {s}");
        }
    }
}
