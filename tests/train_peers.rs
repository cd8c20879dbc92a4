//! Peers say the same: a DICOM SEG that highdicom wrote, and surface distances that SciPy computes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::Path;
use std::process::Command;

use scanside::evaluate::metrics::agreement;
use scanside::image::Geometry;
use scanside::train::labels::LabelImage;

#[test]
fn a_segmentation_by_highdicom_is_read_voxel_for_voxel() {
    let Some(python) = common::python_with("highdicom") else { return };
    let folder = tempfile::tempdir().unwrap();
    let script = r#"
import sys, numpy as np, highdicom as hd, pydicom
from pydicom.uid import generate_uid, ExplicitVRLittleEndian
from pydicom.sr.codedict import codes
out = sys.argv[1]
imgs = []
study, series, frame = generate_uid(), generate_uid(), generate_uid()
for z in range(5):
    d = pydicom.Dataset()
    d.file_meta = pydicom.dataset.FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.SOPClassUID = '1.2.840.10008.5.1.4.1.1.4'; d.SOPInstanceUID = generate_uid()
    d.StudyInstanceUID = study; d.SeriesInstanceUID = series; d.FrameOfReferenceUID = frame
    d.PatientID = 'X'; d.PatientName = 'X'; d.PatientBirthDate = ''; d.PatientSex = ''; d.AccessionNumber = ''
    d.StudyID = ''; d.StudyDate = ''; d.StudyTime = ''; d.ReferringPhysicianName = ''; d.SeriesNumber = 1
    d.InstanceNumber = z + 1; d.Modality = 'MR'; d.Manufacturer = 'X'; d.Laterality = ''
    d.Rows, d.Columns = 7, 9
    d.PixelSpacing = [1.5, 1.25]; d.SliceThickness = 4.0; d.SpacingBetweenSlices = 4.0
    d.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]; d.ImagePositionPatient = [-20.0, 10.0, -30.0 + 4.0 * z]
    d.BitsAllocated = 16; d.BitsStored = 12; d.HighBit = 11; d.PixelRepresentation = 0; d.SamplesPerPixel = 1
    d.PhotometricInterpretation = 'MONOCHROME2'; d.PixelData = np.zeros((7, 9), np.uint16).tobytes()
    imgs.append(d)
rng = np.random.default_rng(4)
lab = rng.integers(0, 3, (5, 7, 9)).astype(np.uint8)
lab[2] = 0   # an empty slice has no frame
alg = hd.AlgorithmIdentificationSequence(name='x', version='1', family=codes.DCM.ArtificialIntelligence)
seg = lambda n, l: hd.seg.SegmentDescription(segment_number=n, segment_label=l,
    segmented_property_category=codes.SCT.Tissue, segmented_property_type=codes.SCT.Muscle,
    algorithm_type='AUTOMATIC', algorithm_identification=alg)
s = hd.seg.Segmentation(source_images=imgs, pixel_array=lab, segmentation_type='BINARY',
    segment_descriptions=[seg(1, 'one'), seg(2, 'two')], series_instance_uid=generate_uid(), series_number=2,
    sop_instance_uid=generate_uid(), instance_number=1, manufacturer='x', manufacturer_model_name='x',
    software_versions='1', device_serial_number='1', omit_empty_frames=True)
s.save_as(out + '/seg.dcm')
open(out + '/labels', 'wb').write(lab.tobytes())
"#;
    let ran = Command::new(python).args(["-c", script]).arg(folder.path()).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let path = folder.path().join("seg.dcm");
    let image = LabelImage::load(&path).unwrap();
    assert_eq!(image.segments.iter().map(|s| (s.id, s.name.as_str())).collect::<Vec<_>>(), [(1, "one"), (2, "two")]);
    let mut g = Geometry::axial([9, 7, 5], [1.25, 1.5, 4.0]);
    g.origin = [-20.0, 10.0, -30.0];
    let map = [("one".to_string(), 1u8), ("2".to_string(), 2)].into();
    let labels = image.onto(&g, &map, None, &path).unwrap();
    assert_eq!(labels.data, std::fs::read(folder.path().join("labels")).unwrap());
}

#[test]
fn surface_distances_equal_scipys() {
    let Some(python) = common::python_with("scipy") else { return };
    let script = r#"
import numpy as np, json
from scipy.ndimage import distance_transform_edt as edt, binary_erosion, gaussian_filter, generate_binary_structure
rng = np.random.default_rng(7); sp = (5.0, 0.9, 0.8); out = []
for i in range(4):
    m = [gaussian_filter(rng.normal(size=(6, 24, 30)), (0.7, 2.5, 2.5)) for _ in range(2)]
    m[1] = m[0] * 0.7 + m[1] * 0.5
    a, b = (x > 0.08 for x in m)
    s = lambda x: x & ~binary_erosion(x, generate_binary_structure(3, 1), border_value=0)
    sa, sb = s(a), s(b)
    d = edt(~sb, sampling=sp)[sa]; e = edt(~sa, sampling=sp)[sb]
    n = len(d) + len(e)
    out.append(dict(a=a.ravel().astype(int).tolist(), b=b.ravel().astype(int).tolist(),
        dice=2 * (a & b).sum() / (a.sum() + b.sum()), hd=max(np.percentile(d, 95), np.percentile(e, 95)),
        assd=(d.sum() + e.sum()) / n, nsd=((d <= 1).sum() + (e <= 1).sum()) / n))
print(json.dumps(out))
"#;
    let ran = Command::new(python).args(["-c", script]).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let cases: Vec<serde_json::Value> = serde_json::from_slice(&ran.stdout).unwrap();
    for c in &cases {
        let mask = |k: &str| -> Vec<bool> { c[k].as_array().unwrap().iter().map(|v| v == 1).collect() };
        let m = agreement(&mask("a"), &mask("b"), [30, 24, 6], [0.8, 0.9, 5.0], 1.0, None);
        for (ours, theirs) in [(m.dice, "dice"), (m.hd95_mm, "hd"), (m.assd_mm, "assd"), (m.nsd, "nsd")] {
            let (ours, theirs) = (ours.unwrap(), c[theirs].as_f64().unwrap());
            assert!((ours - theirs).abs() < 1e-4, "{ours} against {theirs}");
        }
    }
    assert_eq!(cases.len(), 4);
    let _ = Path::new("");
}
