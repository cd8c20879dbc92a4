//! The phantom's DICOM files against peers: dciodvfy and dcentvfy find no error, pydicom reads the same geometry.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::process::Command;

use scanside::image::phantom::{Phantom, PhantomLegs, PhantomOptions};
use scanside::pipeline::write_dicom_series;
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
