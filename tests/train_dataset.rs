//! Real label files land on the right voxels of the right images.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use scanside::pipeline::CropRule;
use scanside::terms::{Side, Task, structure};
use scanside::train::labels::LabelImage;
use scanside::train::{Case, Entry, Use, training_set};

fn unpacked(subject: &str) -> Option<(tempfile::TempDir, PathBuf)> {
    let archive = common::data(&format!("thigh_oai_ufats/{subject}.tar.xz"))?;
    let folder = tempfile::tempdir().unwrap();
    let done = Command::new("tar").arg("-xJf").arg(&archive).arg("-C").arg(folder.path()).status().unwrap();
    assert!(done.success(), "tar cannot unpack {}", archive.display());
    let images = folder.path().join(subject);
    Some((folder, images))
}

fn entry(images: &Path, labels: &Path, map: &[(&str, &str)]) -> Entry {
    Entry {
        name: "subject".into(),
        images: Some(images.into()),
        labels: Some(labels.into()),
        phantom: None,
        map: map.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
        offset: None,
        slices: None,
        side: Some(Side::Right),
        usage: Use::Train,
    }
}

fn task(keys: &[&str]) -> Task {
    Task { name: "t".into(), structures: keys.iter().map(|k| structure(k).unwrap()).collect() }
}

/// The femur's marrow is bright and its label round; labels on the wrong slice, mirrored or shifted would lose both.
#[test]
fn nrrd_labels_lie_on_the_anatomy_whatever_the_order_of_the_files() {
    for subject in ["9001695", "9014883"] {
        let Some((_folder, images)) = unpacked(subject) else { return };
        let labels = images.join(format!("NRRD/{subject}-label.nrrd"));
        let e = entry(&images, &labels, &[("3", "FEM"), ("1", "RF"), ("2", "VAS")]);
        let task = task(&["RF", "VAS", "FEM"]);
        let case = Case::load(&e, &task).unwrap();
        assert_eq!(case.volume.geometry.dims, [512, 256, 15]);
        // Nothing is lost between file and grid.
        let raw = LabelImage::load(&labels).unwrap();
        assert_eq!(raw.dims, [512, 256, 15]);
        let mean = |label: u8| {
            let v: Vec<f32> =
                case.volume.data.iter().zip(&case.truth.data).filter(|(_, l)| **l == label).map(|(v, _)| *v).collect();
            assert!(v.len() > 2000, "label {label} of {subject} has {} voxels", v.len());
            v.iter().sum::<f32>() / v.len() as f32
        };
        // T1: marrow is fat, muscle is dark.
        assert!(mean(3) > 1.5 * mean(1), "{subject}: femur {} against rectus femoris {}", mean(3), mean(1));
        let set = training_set(&[case], &task, CropRule::default(), 128).unwrap();
        assert_eq!((set.samples.len(), set.volumes, set.shapes.len()), (15, 1, 3));
        assert!(set.samples.iter().all(|s| s.labels.data.contains(&2)));
    }
}

/// The cropped seg.nrrd is placed by its own geometry exactly where its ReferenceImageExtentOffset says.
#[test]
fn a_cropped_seg_nrrd_is_placed_by_its_geometry() {
    let Some(labels) = common::data("thigh_vlvm_oai_9014209/123456.seg.nrrd") else { return };
    let Some((_folder, images)) = unpacked("9014209") else { return };
    let mut e = entry(&images, &labels, &[("Vastus Lateralis", "VL"), ("4", "VM")]);
    let task = task(&["VL", "VM"]);
    let placed = Case::load(&e, &task).unwrap();
    assert!(placed.truth.count(1) > 5000 && placed.truth.count(2) > 5000);
    e.offset = Some([124, 71, 0]);
    let told = Case::load(&e, &task).unwrap();
    assert_eq!(placed.truth, told.truth);
}

#[test]
fn nifti_label_maps_of_real_thighs_are_read() {
    let Some(folder) = common::data("thigh_labelmaps_hirri") else { return };
    for name in ["Training_T1_THIGH_003_0002.nii.gz", "MyoSegmenTUM_Fat_HV002_2_0000.nii.gz"] {
        let image = LabelImage::load(&folder.join(name)).unwrap();
        assert!(image.segments.len() >= 8 && image.segments.iter().all(|s| s.id <= 11), "{:?}", image.segments);
        let g = image.geometry.clone().unwrap();
        let map: BTreeMap<String, u8> = [("2".to_string(), 1u8)].into();
        let own = image.onto(&g, &map, None, Path::new(name)).unwrap();
        assert!(own.count(1) > 500);
        // Against NiBabel-free arithmetic: the same file without its geometry, on the same grid.
        let mut bare = image.clone();
        bare.geometry = None;
        assert_eq!(bare.onto(&g, &map, None, Path::new(name)).unwrap(), own);
    }
}
