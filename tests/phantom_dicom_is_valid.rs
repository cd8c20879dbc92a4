//! The phantom's DICOM files against peers: dciodvfy and dcentvfy find no error, pydicom reads the same geometry.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::process::Command;

use dicom_core::value::PrimitiveValue;
use dicom_core::{DataElement, Tag, VR};
use dicom_object::open_file;
use scanside::image::phantom::{Phantom, PhantomLegs, PhantomOptions};
use scanside::pipeline::write_dicom_series;
use scanside::series::load_dir;
use scanside::terms::Side;

#[test]
fn validators_find_no_error() {
    let (Some(dciodvfy), Some(dcentvfy)) = (common::peer("dciodvfy"), common::peer("dcentvfy")) else { return };
    for (legs, dims) in [(PhantomLegs::Both, [128, 64, 4]), (PhantomLegs::One(Side::Left), [64, 64, 4])] {
        let options = PhantomOptions { seed: 11, legs, dims, spacing: [3.906_25, 3.906_25, 15.0] };
        let dir = tempfile::tempdir().unwrap();
        let series = write_dicom_series(dir.path(), &Phantom::new(&options), &options).unwrap();
        for file in &series.files {
            let out = Command::new(&dciodvfy).arg(file).output().unwrap();
            let text = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
            assert!(text.contains("MRImage"), "not taken for an MR image:\n{text}");
            assert!(!text.contains("Error"), "{text}");
        }
        let out = Command::new(&dcentvfy).args(&series.files).output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
        assert!(!text.contains("Error"), "{text}");
    }
}

#[test]
fn pydicom_reads_the_same_image() {
    let Some(python) = common::python_with("pydicom") else { return };
    let options =
        PhantomOptions { seed: 2, dims: [128, 64, 3], spacing: [3.906_25, 3.906_25, 15.0], ..Default::default() };
    let dir = tempfile::tempdir().unwrap();
    let phantom = Phantom::new(&options);
    let series = write_dicom_series(dir.path(), &phantom, &options).unwrap();
    let script = "import pydicom,sys\nd=pydicom.dcmread(sys.argv[1])\nprint(int(d.pixel_array.astype('i8').sum()), d.BodyPartExamined, d.ImageOrientationPatient)";
    let out = Command::new(python).args(["-c", script]).arg(&series.files[1]).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let sum: f64 = phantom.volume.plane(1).data.iter().map(|v| f64::from(*v)).sum();
    assert!(text.starts_with(&format!("{sum} THIGH")), "{text} {}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn an_image_whose_low_values_are_bright_loads_as_the_same_volume() {
    let options =
        PhantomOptions { seed: 2, dims: [128, 64, 3], spacing: [3.906_25, 3.906_25, 15.0], ..Default::default() };
    let dir = tempfile::tempdir().unwrap();
    let series = write_dicom_series(dir.path(), &Phantom::new(&options), &options).unwrap();
    let load = |signed: u16, photometric: &str, invert: bool| {
        for file in &series.files {
            let mut object = open_file(file).unwrap();
            let bytes = object.element_by_name("PixelData").unwrap().to_bytes().unwrap().to_vec();
            // Twelve bits are stored.
            let flip = if invert { 0x0fff } else { 0 };
            let pixels: Vec<u16> = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]) ^ flip).collect();
            object.put(DataElement::new(Tag(0x7fe0, 0x0010), VR::OW, PrimitiveValue::U16(pixels.into())));
            object.put(DataElement::new(Tag(0x0028, 0x0103), VR::US, PrimitiveValue::from(signed)));
            object.put(DataElement::new(Tag(0x0028, 0x0004), VR::CS, PrimitiveValue::from(photometric)));
            object.write_to_file(file).unwrap();
        }
        load_dir(dir.path()).unwrap().volume
    };
    for signed in [0, 1] {
        let plain = load(signed, "MONOCHROME2", false);
        let inverted = load(signed, "MONOCHROME1", true);
        assert!(plain.data == inverted.data, "signed {signed}");
        let (low, high) = plain.data.iter().fold((f32::MAX, f32::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
        assert!(high > low + 100.0, "the picture is not flat: {low} to {high}");
        // Back, for the next round.
        load(signed, "MONOCHROME2", true);
    }
}
