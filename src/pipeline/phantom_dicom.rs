//! Writes a phantom as a series of classic MR Image Storage files, as an axial T1 thigh series from a scanner.
//!
//! The data are synthetic and say so: patient name `PHANTOM^THIGH`, a series description, and UIDs under `2.25` that
//! follow from seed and geometry, so the same phantom is always the same series.

use std::path::{Path, PathBuf};

use dicom_core::value::DataSetSequence;
use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use sha2::{Digest, Sha256};

use crate::dicom::write::uid::from_sha256;
use crate::image::phantom::{Phantom, PhantomLegs, PhantomOptions};
use crate::terms::Side;

/// Why a phantom series could not be written.
#[derive(Debug, thiserror::Error)]
pub enum PhantomWriteError {
    /// The folder could not be made.
    #[error("cannot make the folder {path}: {cause}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's words.
        cause: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write the phantom slice {path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// The library's words.
        cause: String,
    },
}

/// A phantom series on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhantomSeries {
    /// Study Instance UID.
    pub study_uid: String,
    /// Series Instance UID.
    pub series_uid: String,
    /// The files, in slice order.
    pub files: Vec<PathBuf>,
}

/// A UID from a name.
fn uid(name: &str) -> String {
    from_sha256(Sha256::digest(name.as_bytes()).into())
}

/// Writes the phantom as one Explicit VR Little Endian file per slice into `dir` (made if missing), named `001.dcm`
/// onwards in slice order. Date and time are fixed: the same phantom gives the same bytes.
///
/// # Errors
/// [`PhantomWriteError`] naming the folder or file that could not be written.
pub fn write_dicom_series(
    dir: &Path,
    phantom: &Phantom,
    options: &PhantomOptions,
) -> Result<PhantomSeries, PhantomWriteError> {
    std::fs::create_dir_all(dir).map_err(|cause| PhantomWriteError::Folder { path: dir.into(), cause })?;
    let identity = format!("scanside phantom 1 {} {:?} {:?}", phantom.seed, options.legs, phantom.volume.geometry);
    let series = PhantomSeries {
        study_uid: uid(&format!("{identity} study")),
        series_uid: uid(&format!("{identity} series")),
        files: (1..=phantom.volume.geometry.dims[2]).map(|n| dir.join(format!("{n:03}.dcm"))).collect(),
    };
    for (z, path) in series.files.iter().enumerate() {
        let sop = uid(&format!("{identity} slice {z}"));
        let meta = FileMetaTableBuilder::new()
            .media_storage_sop_class_uid(uids::MR_IMAGE_STORAGE)
            .media_storage_sop_instance_uid(sop.as_str())
            .transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN);
        slice(phantom, options, &series, &identity, &sop, z)
            .with_meta(meta)
            .map_err(|e| e.to_string())
            .and_then(|o| o.write_to_file(path).map_err(|e| e.to_string()))
            .map_err(|cause| PhantomWriteError::File { path: path.clone(), cause })?;
    }
    Ok(series)
}

fn slice(
    phantom: &Phantom,
    options: &PhantomOptions,
    series: &PhantomSeries,
    identity: &str,
    sop: &str,
    z: usize,
) -> InMemDicomObject {
    let g = &phantom.volume.geometry;
    let mut o = InMemDicomObject::new_empty();
    let mut text = |tag: Tag, vr: VR, v: &str| {
        o.put(DataElement::new(tag, vr, PrimitiveValue::from(v)));
    };
    let (date, time) = ("20250101", "120000");
    text(tags::SPECIFIC_CHARACTER_SET, VR::CS, "ISO_IR 100");
    text(tags::IMAGE_TYPE, VR::CS, "ORIGINAL\\PRIMARY\\OTHER");
    text(tags::SOP_CLASS_UID, VR::UI, uids::MR_IMAGE_STORAGE);
    text(tags::SOP_INSTANCE_UID, VR::UI, sop);
    for tag in [tags::STUDY_DATE, tags::SERIES_DATE, tags::ACQUISITION_DATE, tags::CONTENT_DATE] {
        text(tag, VR::DA, date);
    }
    for tag in [tags::STUDY_TIME, tags::SERIES_TIME, tags::ACQUISITION_TIME, tags::CONTENT_TIME] {
        text(tag, VR::TM, time);
    }
    text(tags::ACCESSION_NUMBER, VR::SH, "");
    text(tags::MODALITY, VR::CS, "MR");
    text(tags::MANUFACTURER, VR::LO, "Scanside");
    text(tags::REFERRING_PHYSICIAN_NAME, VR::PN, "");
    text(tags::STATION_NAME, VR::SH, "PHANTOM");
    text(tags::STUDY_DESCRIPTION, VR::LO, "MR thigh (synthetic phantom)");
    text(tags::SERIES_DESCRIPTION, VR::LO, "AX T1 THIGH PHANTOM");
    text(tags::MANUFACTURER_MODEL_NAME, VR::LO, "Thigh phantom");
    text(tags::PATIENT_NAME, VR::PN, "PHANTOM^THIGH");
    text(tags::PATIENT_ID, VR::LO, &format!("PHANTOM-{}", phantom.seed));
    text(tags::PATIENT_BIRTH_DATE, VR::DA, "");
    text(tags::PATIENT_SEX, VR::CS, "O");
    text(tags::BODY_PART_EXAMINED, VR::CS, "THIGH");
    text(tags::SCANNING_SEQUENCE, VR::CS, "SE");
    text(tags::SEQUENCE_VARIANT, VR::CS, "NONE");
    text(tags::SCAN_OPTIONS, VR::CS, "");
    text(tags::MR_ACQUISITION_TYPE, VR::CS, "2D");
    text(tags::SLICE_THICKNESS, VR::DS, &ds(g.spacing[2]));
    text(tags::REPETITION_TIME, VR::DS, "600");
    text(tags::ECHO_TIME, VR::DS, "10");
    text(tags::MAGNETIC_FIELD_STRENGTH, VR::DS, "3");
    text(tags::SPACING_BETWEEN_SLICES, VR::DS, &ds(g.spacing[2]));
    text(tags::ECHO_TRAIN_LENGTH, VR::IS, "1");
    text(tags::DEVICE_SERIAL_NUMBER, VR::LO, "0");
    text(tags::SOFTWARE_VERSIONS, VR::LO, env!("CARGO_PKG_VERSION"));
    text(tags::PROTOCOL_NAME, VR::LO, "Thigh phantom T1");
    text(tags::FLIP_ANGLE, VR::DS, "90");
    text(tags::PATIENT_POSITION, VR::CS, "HFS");
    text(tags::STUDY_INSTANCE_UID, VR::UI, &series.study_uid);
    text(tags::SERIES_INSTANCE_UID, VR::UI, &series.series_uid);
    text(tags::STUDY_ID, VR::SH, "1");
    text(tags::SERIES_NUMBER, VR::IS, "1");
    text(tags::ACQUISITION_NUMBER, VR::IS, "1");
    text(tags::INSTANCE_NUMBER, VR::IS, &(z + 1).to_string());
    let position = g.to_patient([0.0, 0.0, z as f64]);
    text(tags::IMAGE_POSITION_PATIENT, VR::DS, &position.map(ds).join("\\"));
    let orientation = [g.axes[0], g.axes[1]].concat().into_iter().map(ds).collect::<Vec<_>>();
    text(tags::IMAGE_ORIENTATION_PATIENT, VR::DS, &orientation.join("\\"));
    text(tags::FRAME_OF_REFERENCE_UID, VR::UI, &uid(&format!("{identity} frame")));
    match options.legs {
        PhantomLegs::One(Side::Right) => text(tags::LATERALITY, VR::CS, "R"),
        PhantomLegs::One(Side::Left) => text(tags::LATERALITY, VR::CS, "L"),
        PhantomLegs::Both => text(tags::IMAGE_LATERALITY, VR::CS, "B"),
    }
    text(tags::POSITION_REFERENCE_INDICATOR, VR::LO, "");
    text(tags::SLICE_LOCATION, VR::DS, &ds(position[2]));
    text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2");
    text(tags::PIXEL_SPACING, VR::DS, &format!("{}\\{}", ds(g.spacing[1]), ds(g.spacing[0])));
    text(tags::WINDOW_CENTER, VR::DS, "1000");
    text(tags::WINDOW_WIDTH, VR::DS, "2200");
    text(tags::LOSSY_IMAGE_COMPRESSION, VR::CS, "00");
    for (tag, value) in [
        (tags::SAMPLES_PER_PIXEL, 1),
        (tags::ROWS, g.dims[1]),
        (tags::COLUMNS, g.dims[0]),
        (tags::BITS_ALLOCATED, 16),
        (tags::BITS_STORED, 12),
        (tags::HIGH_BIT, 11),
        (tags::PIXEL_REPRESENTATION, 0),
    ] {
        o.put(DataElement::new(tag, VR::US, PrimitiveValue::from(u16::try_from(value).unwrap_or(u16::MAX))));
    }
    let mut region = InMemDicomObject::new_empty();
    for (tag, vr, v) in [
        (tags::CODE_VALUE, VR::SH, "68367000"),
        (tags::CODING_SCHEME_DESIGNATOR, VR::SH, "SCT"),
        (tags::CODE_MEANING, VR::LO, "Thigh"),
    ] {
        region.put(DataElement::new(tag, vr, PrimitiveValue::from(v)));
    }
    o.put(DataElement::new(tags::ANATOMIC_REGION_SEQUENCE, VR::SQ, DataSetSequence::from(vec![region])));
    let pixels: Vec<u16> = phantom.volume.plane(z).data.iter().map(|&v| v.clamp(0.0, 4095.0) as u16).collect();
    o.put(DataElement::new(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(pixels.into())));
    o
}

/// A decimal string of at most 16 characters.
fn ds(v: f64) -> String {
    let mut s = format!("{v}");
    let mut digits = 12;
    while s.len() > 16 && digits > 0 {
        s = format!("{v:.digits$}");
        digits -= 1;
    }
    if s == "-0" { "0".into() } else { s }
}

#[cfg(test)]
mod tests {
    use dicom_object::open_file;

    use super::*;

    #[test]
    fn slices_read_back_with_their_pixels_and_places() {
        let options =
            PhantomOptions { seed: 3, dims: [64, 32, 3], spacing: [7.812_5, 7.812_5, 20.0], ..Default::default() };
        let phantom = Phantom::new(&options);
        let dir = tempfile::tempdir().unwrap();
        let series = write_dicom_series(&dir.path().join("a"), &phantom, &options).unwrap();
        assert_eq!(series.files.len(), 3);
        for (z, path) in series.files.iter().enumerate() {
            let o = open_file(path).unwrap();
            let position = o.element(tags::IMAGE_POSITION_PATIENT).unwrap().to_multi_float64().unwrap();
            let expected = phantom.volume.geometry.to_patient([0.0, 0.0, z as f64]);
            assert!(position.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6));
            let bytes = o.element(tags::PIXEL_DATA).unwrap().to_bytes().unwrap();
            let back: Vec<f32> = bytes.chunks_exact(2).map(|b| f32::from(u16::from_le_bytes([b[0], b[1]]))).collect();
            assert_eq!(back, phantom.volume.plane(z).data);
        }
        // The same phantom is the same series, byte for byte; another seed is another.
        let again = write_dicom_series(&dir.path().join("b"), &phantom, &options).unwrap();
        assert_eq!(std::fs::read(&series.files[1]).unwrap(), std::fs::read(&again.files[1]).unwrap());
        let other = PhantomOptions { seed: 4, ..options };
        let third = write_dicom_series(&dir.path().join("c"), &Phantom::new(&other), &other).unwrap();
        assert_ne!(series.series_uid, third.series_uid);
    }

    #[test]
    fn decimal_strings_fit() {
        for v in [-249.511_718_75, 1.0 / 3.0, -1_234.567_890_123_456, 0.0, -0.0, 1e-9] {
            let s = ds(v);
            assert!(s.len() <= 16 && (s.parse::<f64>().unwrap() - v).abs() < 1e-6, "{s}");
        }
    }
}
