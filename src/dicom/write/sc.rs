//! The picture: a Secondary Capture of the overlay montage.

use dicom_core::VR;
use dicom_dictionary_std::tags;
use dicom_object::InMemDicomObject;

use super::build::{Head, common};
use super::input::ResultInput;
use super::uid;
use crate::image::Rgb;

/// Secondary Capture Image Storage.
const SECONDARY_CAPTURE: &str = "1.2.840.10008.5.1.4.1.1.7";

/// A picture as an object: SOP Instance UID and object. The picture must carry no patient data.
pub fn secondary_capture(input: &ResultInput<'_>, picture: &Rgb) -> (String, InMemDicomObject) {
    let sop = uid::derive("sc", &[&input.source.series_uid, &input.key]);
    let review = if input.needs_review { " - needs review" } else { "" };
    let head = Head {
        sop_class: SECONDARY_CAPTURE,
        sop_instance: &sop,
        modality: "OT",
        series_uid: &uid::derive("sc-series", &[&input.source.series_uid, &input.key]),
        series_number: input.series_number + 3,
        description: &format!("Scanside overlay{review}"),
        created_ms: input.created_ms,
    };
    let mut pixels = picture.data.clone();
    if pixels.len() % 2 == 1 {
        pixels.push(0);
    }
    let set = common(input.source, input.identity, &head)
        .text(tags::CONVERSION_TYPE, VR::CS, "WSD")
        .texts(tags::IMAGE_TYPE, VR::CS, &["DERIVED", "SECONDARY"])
        .empty(tags::LATERALITY, VR::CS)
        .empty(tags::PATIENT_ORIENTATION, VR::CS)
        .us(tags::SAMPLES_PER_PIXEL, &[3])
        .us(tags::PLANAR_CONFIGURATION, &[0])
        .text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "RGB")
        .us(tags::ROWS, &[picture.height as u16])
        .us(tags::COLUMNS, &[picture.width as u16])
        .us(tags::BITS_ALLOCATED, &[8])
        .us(tags::BITS_STORED, &[8])
        .us(tags::HIGH_BIT, &[7])
        .us(tags::PIXEL_REPRESENTATION, &[0])
        .text(tags::BURNED_IN_ANNOTATION, VR::CS, "NO")
        .text(tags::LOSSY_IMAGE_COMPRESSION, VR::CS, "00")
        .bytes(tags::PIXEL_DATA, VR::OW, pixels);
    (sop, set.0)
}
