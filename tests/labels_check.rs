//! Annotations as people make them wrong: each mistake is found, named with its slice and structure, and keeps training out.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use scanside::image::LabelMap;
use scanside::image::phantom::{Phantom, PhantomOptions};
use scanside::labels::{LabelImage, NamedLabel, write_seg_nrrd};
use scanside::pipeline::write_dicom_series;
use scanside::terms::{Side, Structure, Task, structure};
use scanside::train::{Finding, Manifest, Severity, check};

const KEYS: [&str; 3] = ["VL", "VM", "RF"];

struct Site {
    dir: tempfile::TempDir,
    /// Both legs: structure `k` is `k + 1`.
    truth: LabelMap,
    legs: LabelMap,
}

fn task() -> Task {
    Task { name: "t".into(), structures: KEYS.iter().map(|k| structure(k).unwrap()).collect() }
}

fn site() -> Site {
    let dir = tempfile::tempdir().unwrap();
    let options =
        PhantomOptions { seed: 41, dims: [256, 128, 6], spacing: [1.953_125, 1.953_125, 12.5], ..Default::default() };
    let phantom = Phantom::new(&options);
    write_dicom_series(&dir.path().join("series"), &phantom, &options).unwrap();
    let mut truth = phantom.truth(&task(), Side::Right);
    for (t, l) in truth.data.iter_mut().zip(phantom.truth(&task(), Side::Left).data) {
        *t = (*t).max(l);
    }
    Site { dir, truth, legs: phantom.legs }
}

fn named(names: &[(u8, Structure, Option<Side>)]) -> Vec<NamedLabel> {
    names.iter().map(|(label, s, side)| NamedLabel { label: *label, structure: s.clone(), side: *side }).collect()
}

impl Site {
    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Labels changed by `change` (slice, column, row, label), as a seg.nrrd with the task's names.
    fn labels(&self, change: impl Fn(usize, usize, usize, u8) -> u8) -> PathBuf {
        let mut labels = self.truth.clone();
        let [nx, ny, _] = labels.geometry.dims;
        for (i, v) in labels.data.iter_mut().enumerate() {
            *v = change(i / (nx * ny), i % nx, i / nx % ny, *v);
        }
        let names: Vec<_> = task().structures.into_iter().enumerate().map(|(k, s)| (k as u8 + 1, s, None)).collect();
        let path = self.at("labels.seg.nrrd");
        write_seg_nrrd(&labels, &named(&names), &path).unwrap();
        path
    }

    fn check_with(&self, more: &str) -> Vec<Finding> {
        let text = format!(
            "structures = [\"VL\", \"VM\", \"RF\"]\n[[volume]]\nname = \"p\"\nimages = \"series\"\nlabels = \"labels.seg.nrrd\"\n{more}\n"
        );
        std::fs::write(self.at("site.toml"), text).unwrap();
        check(&Manifest::load(&self.at("site.toml")).unwrap(), &task())
    }

    /// The only error is on this slice and structure and has these words.
    fn error(&self, more: &str, slice: Option<usize>, structure: &str, words: &str) {
        let found = self.check_with(more);
        let said: Vec<String> = found.iter().map(ToString::to_string).collect();
        let errors: Vec<&Finding> = found.iter().filter(|f| f.severity == Severity::Error).collect();
        assert!(!errors.is_empty(), "{words}: nothing was found: {said:?}");
        assert!(
            errors.iter().any(|e| e.slice == slice && e.structure == structure && e.to_string().contains(words)),
            "{words}: {said:?}"
        );
        assert!(errors.iter().all(|e| !e.remedy.is_empty()));
    }

    fn warning(&self, more: &str, slice: Option<usize>, structure: &str, words: &str) {
        let found = self.check_with(more);
        assert!(
            found.len() == 1
                && found[0].severity == Severity::Warning
                && found[0].slice == slice
                && found[0].structure == structure
                && found[0].to_string().contains(words),
            "{words}: {found:?}"
        );
    }
}

#[test]
fn a_good_annotation_passes_without_a_word_and_each_mistake_is_named() {
    let s = site();
    let right = |x: usize, y: usize, z: usize| s.legs.data[(z * 128 + y) * 256 + x] == 1;
    s.labels(|z, _, _, v| if [1, 4].contains(&z) { v } else { 0 });
    assert_eq!(s.check_with("slices = [1, 4]"), []);
    s.error("slices = [1, 3, 4]", Some(3), "", "listed and has no label");
    s.error("slices = [1, 9]", None, "", "slice 9 is listed, the volume has 0 to 5");
    s.error("slices = [1, 4]\nmap = { \"Vastus medius\" = \"VM\" }", None, "", "no segment \"Vastus medius\"");
    s.warning("slices = [1]", None, "", "1 slices that are not listed carry labels");

    // One leg alone is labelled.
    s.labels(|z, x, y, v| if z == 1 && right(x, y, z) { v } else { 0 });
    s.error("slices = [1]", Some(1), "", "the left leg has no label");
    assert_eq!(s.check_with("slices = [1]\nside = \"right\""), []);
    s.error("slices = [1]\nside = \"left\"", None, "", "the labels lie on the patient's right leg");

    // Names swapped.
    s.labels(|_, _, _, v| [0, 2, 1, 3][v as usize]);
    s.error("", Some(2), "VL and VM", "swapped");
    let truth = s.truth.data.clone();
    // In the air.
    s.labels(|z, _, y, v| if z == 0 && y < 30 { 1 } else { v });
    assert!(s.check_with("").iter().any(|f| f.severity == Severity::Error), "labels in the air");

    // Small things.
    let one = |z: usize, x: usize, y: usize, v: u8| if z == 2 && right(x, y, z) { v } else { 0 };
    let (cx, cy) = {
        let i =
            (0..256 * 128).filter(|i| truth[2 * 256 * 128 + i] == 3 && right(i % 256, i / 256, 2)).collect::<Vec<_>>();
        (i.iter().map(|i| i % 256).sum::<usize>() / i.len(), i.iter().map(|i| i / 256).sum::<usize>() / i.len())
    };
    s.labels(|z, x, y, v| if (x, y) == (cx, cy) { 0 } else { one(z, x, y, v) });
    s.warning("slices = [2]\nside = \"right\"", Some(2), "RF right", "a hole of 1 pixels");
}

#[test]
fn sides_in_names_are_held_against_the_image() {
    let s = site();
    // VL of the right leg is segment 1, of the left leg segment 4.
    let n = 256 * 128;
    let mut labels = s.truth.clone();
    for (v, leg) in labels.data.iter_mut().zip(&s.legs.data) {
        if *v == 1 && *leg == 2 {
            *v = 4;
        }
    }
    labels.data[n..].fill(0);
    let of = |k: &str| structure(k).unwrap();
    let write = |first: Side, second: Side| {
        let names = [(1, of("VL"), Some(first)), (4, of("VL"), Some(second)), (2, of("VM"), None), (3, of("RF"), None)];
        write_seg_nrrd(&labels, &named(&names), &s.at("labels.seg.nrrd")).unwrap();
    };
    write(Side::Right, Side::Left);
    assert_eq!(s.check_with("slices = [0]"), []);
    write(Side::Left, Side::Right);
    s.error("slices = [0]", None, "VL", "says left and lies on the patient's right leg");
}

#[test]
fn overlaps_of_layers_and_names_nobody_knows() {
    let s = site();
    // Slicer's layered file: VL in layer 0, all of RF and VM in layer 1, and a VL that is too big in layer 0.
    let write = |big: bool, third: &str| {
        let g = &s.truth.geometry;
        let mut header = format!(
            "NRRD0004\ntype: unsigned char\ndimension: 4\nspace: left-posterior-superior\nsizes: 2 {} {} {}\n\
             space directions: none ({},0,0) (0,{},0) (0,0,{})\nkinds: list domain domain domain\nencoding: raw\n\
             space origin: ({},{},{})\n",
            g.dims[0],
            g.dims[1],
            g.dims[2],
            g.spacing[0],
            g.spacing[1],
            g.spacing[2],
            g.origin[0],
            g.origin[1],
            g.origin[2]
        );
        for (i, (name, layer, value)) in [("vastus lateralis", 0, 1), ("VM", 1, 2), (third, 1, 3)].iter().enumerate() {
            header += &format!(
                "Segment{i}_ID:=S{i}\nSegment{i}_Name:={name}\nSegment{i}_Layer:={layer}\nSegment{i}_LabelValue:={value}\n"
            );
        }
        let mut bytes = header.into_bytes();
        bytes.push(b'\n');
        for v in &s.truth.data {
            bytes.push(u8::from(*v == 1 || (big && *v == 3)));
            bytes.push(if *v > 1 { *v } else { 0 });
        }
        std::fs::File::create(s.at("labels.seg.nrrd")).unwrap().write_all(&bytes).unwrap();
    };
    write(false, "rectus femoris");
    assert_eq!(s.check_with(""), []);
    write(true, "rectus femoris");
    s.error("", Some(0), "VL and RF", "pixels carry both labels");
    write(false, "my favourite muscle");
    s.error("", None, "RF", "no segment for it");
    let found = s.check_with("map = { \"my favourite muscle\" = \"RF\" }");
    assert_eq!(found, []);
}

#[test]
fn training_refuses_and_the_command_says_so() {
    let s = site();
    s.labels(|z, _, _, v| if z == 1 { v } else { 0 });
    s.check_with("slices = [1, 2]");
    let run = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_scanside")).args(args).current_dir(s.dir.path()).output().unwrap()
    };
    let out = run(&["labels", "check", "--manifest", "site.toml"]);
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.code(), Some(1));
    assert!(said.contains("error: p, slice 2: the slice is listed and has no label; label it"), "{said}");
    assert!(said.contains("1 volumes checked for VL, VM, RF: 1 errors, 0 warnings"), "{said}");
    let out = run(&["train", "--manifest", "site.toml", "--out", "a.safetensors"]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("nothing was trained") && said.contains("slice 2"), "{said}");
    assert!(!s.at("a.safetensors").exists());
    s.check_with("slices = [1]");
    let out = run(&["labels", "check", "--manifest", "site.toml"]);
    assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).contains("ready to train"));
}

/// Painters leave most slices empty, and writers leave empty frames out: the frames' own places count.
#[test]
fn a_sparse_or_fractional_or_label_map_segmentation_lands_on_its_slices() {
    let Some(python) = common::python_with("highdicom") else { return };
    let s = site();
    let script = r#"
import sys, numpy as np, highdicom as hd, pydicom, glob
from pydicom.uid import generate_uid
from pydicom.sr.codedict import codes
imgs = [pydicom.dcmread(f) for f in sorted(glob.glob(sys.argv[1] + '/series/*.dcm'))]
lab = np.frombuffer(open(sys.argv[1] + '/truth', 'rb').read(), np.uint8).reshape(6, 128, 256).copy()
lab[[0, 2, 3]] = 0
for d in imgs:
    if 'SpacingBetweenSlices' in d: del d.SpacingBetweenSlices
    del d.SliceThickness
    d.SliceThickness = 3.0   # thinner than the distance: nothing but the positions tell it
seg = lambda n, l: hd.seg.SegmentDescription(segment_number=n, segment_label=l, segmented_property_category=codes.SCT.Tissue,
    segmented_property_type=codes.SCT.Muscle, algorithm_type='MANUAL')
def make(name, kind, pixels):
    s = hd.seg.Segmentation(source_images=imgs, pixel_array=pixels, segmentation_type=kind,
        segment_descriptions=[seg(1, 'Vastus lateralis'), seg(2, 'VM'), seg(3, 'rectus femoris')],
        series_instance_uid=generate_uid(), series_number=2, sop_instance_uid=generate_uid(), instance_number=1,
        manufacturer='x', manufacturer_model_name='x', software_versions='1', device_serial_number='1', omit_empty_frames=True,
        max_fractional_value=200)
    s.save_as(sys.argv[1] + '/' + name)
make('binary.dcm', 'BINARY', lab)
soft = np.stack([(lab == k) * 0.7 + (lab != k) * 0.3 * (lab > 0) for k in (1, 2, 3)], -1)
make('fractional.dcm', 'FRACTIONAL', soft)
make('labelmap.dcm', 'LABELMAP', lab)
"#;
    std::fs::write(s.at("truth"), &s.truth.data).unwrap();
    let ran = Command::new(python).args(["-c", script]).arg(s.dir.path()).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let n = 256 * 128;
    let mut want = s.truth.data.clone();
    [0, 2, 3].iter().for_each(|z| want[z * n..(z + 1) * n].fill(0));
    for name in ["binary.dcm", "fractional.dcm", "labelmap.dcm"] {
        let path = s.at(name);
        let image = LabelImage::load(&path).unwrap();
        let map = [("1".to_string(), 1u8), ("2".into(), 2), ("3".into(), 3)].into();
        let labels = image.onto(&s.truth.geometry, &map, None, &path).unwrap();
        assert!(labels.data == want, "{name} lands elsewhere");
        assert_eq!(image.remarks.len(), usize::from(name == "fractional.dcm"), "{:?}", image.remarks);
        std::fs::copy(&path, s.at("labels.seg.nrrd")).unwrap();
        let found = s.check_with("slices = [1, 4, 5]");
        assert!(found.iter().all(|f| f.to_string().contains("FRACTIONAL")), "{name}: {found:?}");
    }
    // A frame between two slices belongs to another series.
    let mut shifted = s.truth.geometry.clone();
    shifted.origin[2] += 5.0;
    let path = s.at("binary.dcm");
    let map = [("1".to_string(), 1u8)].into();
    let said = LabelImage::load(&path).unwrap().onto(&shifted, &map, None, &path).unwrap_err().to_string();
    assert!(said.contains("beside the nearest slice"), "{said}");
}

#[test]
fn the_format_is_told_by_content_and_slicers_own_reader_agrees() {
    let Some(python) = common::python_with("nrrd") else { return };
    let s = site();
    let path = s.labels(|_, _, _, v| v);
    let script = "import nrrd, sys\nd, h = nrrd.read(sys.argv[1])\nopen(sys.argv[2], 'wb').write(d.tobytes(order='F'))\n\
                  print(h['Segment1_Name'], h['Segment1_LabelValue'], h['space origin'][2])";
    let out = Command::new(python).args(["-c", script]).arg(&path).arg(s.at("raw")).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(std::fs::read(s.at("raw")).unwrap(), s.truth.data);
    assert!(String::from_utf8_lossy(&out.stdout).starts_with("Vastus medialis 2 -31.25"), "{:?}", out.stdout);
    let other: &Path = &s.at("labels.nii");
    std::fs::copy(&path, other).unwrap();
    assert_eq!(LabelImage::load(other).unwrap().segments.len(), 3);
}

/// Drawn by people on real thighs, nothing is an error; with two names exchanged every subject has one.
#[test]
fn real_annotations_pass_and_exchanged_names_do_not() {
    let Some(folder) = common::data("thigh_oai_ufats") else { return };
    let mut archives: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    archives.sort();
    let map = |bf: &str, sm: &str| {
        format!(
            "map = {{ \"1\" = \"RF\", \"2\" = \"VAS\", \"3\" = \"FEM\", \"4\" = \"GRA\", \"5\" = \"SAR\", \"6\" = \"ADD\", \
             \"7\" = \"{bf}\", \"8\" = \"ST\", \"9\" = \"{sm}\" }}"
        )
    };
    let keys = ["RF", "VAS", "FEM", "GRA", "SAR", "ADD", "BF", "ST", "SM"];
    let task = Task { name: "t".into(), structures: keys.iter().map(|k| structure(k).unwrap()).collect() };
    for archive in archives.iter().filter(|a| a.extension().is_some_and(|e| e == "xz")).step_by(9) {
        let dir = tempfile::tempdir().unwrap();
        assert!(Command::new("tar").arg("-xJf").arg(archive).arg("-C").arg(dir.path()).status().unwrap().success());
        let id = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().file_name().into_string().unwrap();
        let errors = |map: &str| {
            let text = format!(
                "[[volume]]\nname = \"s\"\nimages = \"{id}\"\nlabels = \"{id}/NRRD/{id}-label.nrrd\"\nside = \"right\"\n{map}\n"
            );
            std::fs::write(dir.path().join("m.toml"), text).unwrap();
            let found = check(&Manifest::load(&dir.path().join("m.toml")).unwrap(), &task);
            found.into_iter().filter(|f| f.severity == Severity::Error).collect::<Vec<_>>()
        };
        assert_eq!(errors(&map("BF", "SM")), []);
        let exchanged = errors(&map("SM", "BF"));
        assert!(exchanged.iter().any(|f| f.structure == "BF and SM"), "not seen: {exchanged:?}");
    }
}
