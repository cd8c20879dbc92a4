//! The results as other people's programs see them: dciodvfy, dcentvfy, dsrdump, highdicom, dcmqi.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dicom_core::{Tag, VR};
use scanside::dicom::read::read_header;
use scanside::dicom::write::{
    GradeLine, Identity, RefusalText, ResultInput, SegmentReport, SegmentSpec, SourceAttribute, SourceSeries,
    SourceSlice, comprehensive_sr, refusal_text, result_text, secondary_capture, segmentation, write_atomically,
};
use scanside::image::phantom::{Phantom, PhantomOptions};
use scanside::image::{LabelMap, Legend, montage};
use scanside::pipeline::write_dicom_series;
use scanside::terms::{Side, Task, structure};
use scanside::train::labels::LabelImage;

/// Enhanced MR Image Storage.
const ENHANCED_MR: &str = "1.2.840.10008.5.1.4.1.1.4.1";

/// Results of a phantom whose truth stands for the segmentation.
struct Case {
    dir: tempfile::TempDir,
    /// Name (`seg`, `sr`, `text`, `refusal`, `sc`) and file of each object.
    files: Vec<(String, PathBuf)>,
    /// The series that the results are of, as files.
    series: Vec<PathBuf>,
    source: SourceSeries,
    /// What a reader must see: numbers counted anew over segments with voxels, nothing on slices without source.
    seen: LabelMap,
}

impl Case {
    fn file(&self, name: &str) -> &Path {
        &self.files.iter().find(|(n, _)| n == name).unwrap().1
    }
    /// Expected labels of the slices that have a source.
    fn present(&self) -> Vec<u8> {
        let n = self.seen.geometry.plane();
        let slices = self.source.slices.iter().enumerate().filter(|(_, s)| s.is_some());
        slices.flat_map(|(z, _)| self.seen.data[z * n..(z + 1) * n].to_vec()).collect()
    }
}

/// Three structures on the right, the second without a voxel.
fn case() -> Case {
    case_with(|_, labels| labels.data.iter_mut().filter(|v| **v == 2).for_each(|v| *v = 0))
}

/// As if the series had been one Enhanced MR object.
fn enhanced() -> Case {
    case_with(|source, _| {
        for (z, slice) in source.slices.iter_mut().enumerate() {
            *slice = Some(SourceSlice {
                sop_class_uid: ENHANCED_MR.into(),
                sop_instance_uid: "2.25.4711".into(),
                frame_number: Some(z as u32 + 1),
            });
        }
    })
}

/// Slice 4 never came, but carries labels.
fn gap() -> Case {
    case_with(|source, _| source.slices[3] = None)
}

fn case_with(change: impl FnOnce(&mut SourceSeries, &mut LabelMap)) -> Case {
    let dir = tempfile::tempdir().unwrap();
    let options = PhantomOptions { seed: 4, ..PhantomOptions::default() };
    let phantom = Phantom::new(&options);
    let task =
        Task { name: "test".into(), structures: ["VL", "SM", "VM"].iter().filter_map(|k| structure(k)).collect() };
    let mut labels = phantom.truth(&task, Side::Right);
    let series = write_dicom_series(&dir.path().join("source"), &phantom, &options).unwrap().files;
    let headers: Vec<_> = series.iter().map(|f| read_header(f).unwrap()).collect();
    let first = &headers[0];
    let mut source = SourceSeries {
        attributes: first
            .verbatim
            .iter()
            .map(|e| SourceAttribute { tag: e.tag, vr: e.vr, bytes: e.bytes.clone() })
            .collect(),
        study_uid: first.study_uid.clone(),
        series_uid: first.series_uid.clone(),
        frame_of_reference_uid: first.frame_of_reference_uid.clone().unwrap(),
        geometry: labels.geometry.clone(),
        slices: headers
            .iter()
            .map(|h| {
                Some(SourceSlice {
                    sop_class_uid: h.sop_class_uid.clone(),
                    sop_instance_uid: h.sop_instance_uid.clone(),
                    frame_number: None,
                })
            })
            .collect(),
    };
    change(&mut source, &mut labels);
    let segments: Vec<SegmentSpec> = task
        .structures
        .iter()
        .enumerate()
        .map(|(i, s)| SegmentSpec { number: i as u8 + 1, structure: s.clone(), side: Some(Side::Right) })
        .collect();
    let grade = |i: usize| GradeLine {
        id: format!("C{i}"),
        name: "Boundary".into(),
        grade: (i != 4).then_some(3),
        measure: "0.81 of the contour on an edge".into(),
        slices: vec![0, 3],
    };
    let reports: Vec<SegmentReport> = segments
        .iter()
        .map(|s| SegmentReport {
            number: s.number,
            volume_mm3: labels.count(s.number) as f64 * labels.geometry.voxel_mm3(),
            score: 81.25,
            verdict: "B".into(),
            verdict_words: "minor edits".into(),
            grades: (1..=8).map(grade).collect(),
            remarks: vec!["a remark".into()],
        })
        .collect();
    let identity = Identity {
        software: "0.1.0".into(),
        engine: "cpu rten 0.27.0 fp32".into(),
        adapter: "test 1".into(),
        adapter_sha256: "ab".repeat(32),
        bundle: String::new(),
        base_sha256: "cd".repeat(32),
        station: "BOX1".into(),
    };
    let input = ResultInput {
        source: &source,
        labels: &labels,
        segments: &segments,
        reports: &reports,
        score: 81.25,
        verdict: "B: minor edits".into(),
        observer: "device".into(),
        calibrated: false,
        needs_review: true,
        remarks: &["one slice is missing".to_string()],
        identity: &identity,
        created_ms: 1_700_000_000_000,
        key: "k".into(),
        series_number: 9000,
    };
    let legend: Vec<Legend> =
        segments.iter().map(|s| Legend { label: s.number, rgb: s.structure.rgb, name: s.label() }).collect();
    let picture = montage(&phantom.volume, &labels, &legend, &["research use only".into()]);
    let refusal =
        RefusalText { code: "SERIES_GAP".into(), sentence: "1 slice is missing".into(), remedy: "send it".into() };
    let mut objects = vec![
        ("sr", comprehensive_sr(&input)),
        ("text", result_text(&input)),
        ("refusal", refusal_text(&source, &identity, &refusal, "k2", 1_700_000_000_000, 9000)),
        ("sc", secondary_capture(&input, &picture)),
    ];
    objects.extend(segmentation(&input).map(|seg| ("seg", seg)));
    let files = objects
        .iter()
        .map(|(name, (_, object))| {
            let path = dir.path().join(format!("{name}.dcm"));
            write_atomically(object, &path).unwrap();
            (name.to_string(), path)
        })
        .collect();
    let mut seen = labels.clone();
    let n = labels.geometry.plane();
    for (z, slice) in source.slices.iter().enumerate() {
        if slice.is_none() {
            seen.data[z * n..(z + 1) * n].fill(0);
        }
    }
    let mut next = 0;
    let anew: Vec<u8> = (0..=3)
        .map(|v| {
            let listed = v > 0 && seen.count(v) > 0;
            next += u8::from(listed);
            if listed { next } else { 0 }
        })
        .collect();
    for v in &mut seen.data {
        *v = anew[usize::from(*v)];
    }
    Case { dir, files, series, source, seen }
}

/// Both streams of a program, together.
fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).to_string() + &String::from_utf8_lossy(&out.stderr)
}

fn lines_with<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
    text.lines().filter(|l| l.starts_with(start)).collect()
}

#[test]
fn dciodvfy_finds_no_error() {
    let Some(dciodvfy) = common::peer("dciodvfy") else { return };
    let empty = case_with(|_, labels| labels.data.fill(0));
    assert!(empty.files.iter().all(|(name, _)| name != "seg"), "a segmentation without frames is not written");
    for (kind, case) in [("classic", case()), ("enhanced", enhanced()), ("gap", gap()), ("empty", empty)] {
        for (name, path) in &case.files {
            let out = said(&Command::new(&dciodvfy).arg(path).output().unwrap());
            let errors = lines_with(&out, "Error");
            assert!(errors.is_empty(), "{kind} {name}:\n{}", errors.join("\n"));
            assert!(!out.trim().is_empty(), "{kind} {name}: dciodvfy said nothing at all");
            // It may wonder about our own coding scheme, and about the picture's empty Laterality: it shows both legs, and
            // this validator calls an absent one an error.
            let expected = |l: &str| l.contains("99SCANSIDE") || (name == "sc" && l.contains("<Laterality>"));
            let odd: Vec<&str> = lines_with(&out, "Warning").into_iter().filter(|l| !expected(l)).collect();
            assert!(odd.is_empty(), "{kind} {name}:\n{}", odd.join("\n"));
        }
    }
}

#[test]
fn dcentvfy_finds_one_patient_and_study() {
    let Some(dcentvfy) = common::peer("dcentvfy") else { return };
    let case = case();
    let files = case.series.iter().chain(case.files.iter().map(|(_, path)| path));
    let out = Command::new(&dcentvfy).args(files).output().unwrap();
    let words = said(&out);
    assert!(out.status.success(), "{words}");
    // It files Accession Number under the series in some objects and under the study in others, and says so each time.
    let odd: Vec<&str> = words.lines().filter(|l| !l.trim().is_empty() && !l.contains("<AccessionNumber>")).collect();
    assert!(odd.is_empty(), "{}", odd.join("\n"));
    // That it would see a difference: one object under another patient's name.
    let other = case_with(|source, _| {
        let name = source.attributes.iter_mut().find(|a| a.tag == Tag(0x0010, 0x0010)).unwrap();
        name.bytes = b"SOMEONE^ELSE".to_vec();
    });
    let out = Command::new(&dcentvfy).args(&case.series).arg(other.file("text")).output().unwrap();
    assert!(said(&out).contains("<PatientName>"), "{}", said(&out));
}

#[test]
fn dsrdump_prints_what_the_reports_say() {
    let Some(dsrdump) = common::peer("dsrdump") else { return };
    let case = case();
    for (name, words) in [
        ("sr", ["Image Quality Rating", "SegEx C1: Boundary", "B: minor edits", "Finding Site"]),
        ("text", ["NEEDS REVIEW", "score 81 of 100", "one slice is missing", "Vastus medialis, right"]),
        ("refusal", ["Not segmented: 1 slice is missing", "Remedy: send it", "SERIES_GAP", "Research use only"]),
    ] {
        // +Pl: long values in full.
        let out = Command::new(&dsrdump).arg("+Pl").arg(case.file(name)).output().unwrap();
        let text = said(&out);
        assert!(out.status.success(), "{name}: {text}");
        let complaints: Vec<&str> = text.lines().filter(|l| l.starts_with("W:") || l.starts_with("E:")).collect();
        assert!(complaints.is_empty(), "{name}: {}", complaints.join("\n"));
        for word in words {
            assert!(text.contains(word), "{name}: no {word:?} in\n{text}");
        }
    }
}

#[test]
fn highdicom_reads_the_same_labels_and_the_linked_report() {
    let Some(python) = common::python_with("highdicom") else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/results_check.py");
    for (kind, case) in [("classic", case()), ("enhanced", enhanced()), ("gap", gap())] {
        let raw = case.dir.path().join("expected.raw");
        std::fs::write(&raw, case.present()).unwrap();
        let uids: Vec<String> = if kind == "enhanced" {
            vec!["frames:2.25.4711".into()]
        } else {
            case.source.slices.iter().flatten().map(|s| s.sop_instance_uid.clone()).collect()
        };
        let [columns, rows, _] = case.seen.geometry.dims;
        let slices = case.source.slices.iter().flatten().count();
        let out = Command::new(&python)
            .arg(&script)
            .args([case.file("seg"), case.file("sr"), &raw])
            .args([columns, rows, slices].map(|n| n.to_string()))
            .args(uids)
            .output()
            .unwrap();
        assert!(out.status.success(), "{kind}: {}", said(&out));
    }
}

#[test]
fn dcmqi_reads_the_segments_back_onto_the_same_grid() {
    let Some(python) = common::python_with("dcmqi") else { return };
    let tool = python.parent().unwrap().join("segimage2itkimage");
    assert!(tool.exists(), "dcmqi is installed without {}", tool.display());
    for (kind, case) in [("classic", case()), ("enhanced", enhanced())] {
        let out_dir = tempfile::tempdir().unwrap();
        let out = Command::new(&tool)
            .args(["--inputDICOM".as_ref(), case.file("seg").as_os_str()])
            .args(["--outputDirectory".as_ref(), out_dir.path().as_os_str()])
            .args(["-t", "nrrd"])
            .output()
            .unwrap();
        assert!(out.status.success(), "{kind}: {}", said(&out));
        let meta = std::fs::read_to_string(out_dir.path().join("meta.json")).unwrap();
        for word in ["Vastus lateralis", "Vastus medialis", "Right"] {
            assert!(meta.contains(word), "{kind}: {word} is missing from {meta}");
        }
        let mut found = LabelMap::empty(case.seen.geometry.clone());
        let mut volumes = 0;
        for entry in std::fs::read_dir(out_dir.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|e| e != "nrrd") {
                continue;
            }
            volumes += 1;
            let number: u8 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
            // Placed by the file's own geometry, which dcmqi took from ours.
            let image = LabelImage::load(&path).unwrap();
            assert!(image.geometry.is_some(), "{kind}: {} has no geometry", path.display());
            let map: BTreeMap<String, u8> = image.segments.iter().map(|s| (s.id.to_string(), number)).collect();
            let one = image.onto(&case.seen.geometry, &map, None, &path).unwrap();
            for (f, v) in found.data.iter_mut().zip(one.data) {
                assert!(*f == 0 || v == 0, "{kind}: segments overlap");
                *f += v;
            }
        }
        assert_eq!(
            volumes,
            case.seen.data.iter().max().copied().unwrap_or(0),
            "{kind}: one volume per written segment"
        );
        let wrong = found.data.iter().zip(&case.seen.data).filter(|(f, s)| f != s).count();
        assert_eq!(wrong, 0, "{kind}: voxels differ");
    }
}

#[test]
fn the_same_input_makes_the_same_bytes() {
    let (one, two) = (case(), case());
    for ((name, a), (_, b)) in one.files.iter().zip(&two.files) {
        assert!(std::fs::read(a).unwrap() == std::fs::read(b).unwrap(), "{name} differs");
    }
}

#[test]
fn names_in_other_character_sets_survive_byte_for_byte() {
    let latin: &[u8] = b"M\xfcller^J\xfcrg";
    // Yamada^Tarou with its ideographs: escape sequences of ISO 2022, as in PS3.5, H.3.
    let kanji: &[u8] = b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B";
    for (set, name) in [("ISO_IR 100", latin), ("\\ISO 2022 IR 87", kanji)] {
        let case = case_with(|source, _| {
            source.attributes.retain(|a| ![Tag(0x0008, 0x0005), Tag(0x0010, 0x0010)].contains(&a.tag));
            source.attributes.extend([
                SourceAttribute { tag: Tag(0x0008, 0x0005), vr: VR::CS, bytes: set.as_bytes().to_vec() },
                SourceAttribute { tag: Tag(0x0010, 0x0010), vr: VR::PN, bytes: name.to_vec() },
            ]);
        });
        for (kind, path) in &case.files {
            let bytes = std::fs::read(path).unwrap();
            for wanted in [set.as_bytes(), name] {
                assert!(bytes.windows(wanted.len()).any(|w| w == wanted), "{kind}: {wanted:?} is gone");
            }
        }
    }
}
