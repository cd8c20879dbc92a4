//! The results as other people's programs see them: dciodvfy, highdicom, dcmqi.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use dicom_core::{Tag, VR};
use scanside::dicom::write::{
    GradeLine, Identity, RefusalText, ResultInput, SegmentReport, SegmentSpec, SourceAttribute, SourceSeries,
    SourceSlice, comprehensive_sr, refusal_text, result_text, secondary_capture, segmentation, write_atomically,
};
use scanside::image::phantom::{Phantom, PhantomOptions};
use scanside::image::{LabelMap, Legend, montage};
use scanside::pipeline::write_dicom_series;
use scanside::terms::{Side, Task, structure};

struct Case {
    _dir: tempfile::TempDir,
    files: Vec<(String, PathBuf)>,
    sources: Vec<PathBuf>,
    labels: LabelMap,
}

/// Results of a phantom whose truth stands for the segmentation: three structures on the right, one of them empty.
fn case() -> Case {
    let dir = tempfile::tempdir().unwrap();
    let options = PhantomOptions { seed: 4, ..PhantomOptions::default() };
    let phantom = Phantom::new(&options);
    let task =
        Task { name: "test".into(), structures: ["VL", "SM", "VM"].iter().filter_map(|k| structure(k)).collect() };
    let mut labels = phantom.truth(&task, Side::Right);
    // The second structure has no voxel, so that numbers must be counted anew.
    for v in &mut labels.data {
        if *v == 2 {
            *v = 0;
        }
    }
    let source_dir = dir.path().join("source");
    std::fs::create_dir(&source_dir).unwrap();
    let series = write_dicom_series(&source_dir, &phantom, &options).unwrap();
    let mut sources = series.files.clone();
    sources.sort();
    let header = |path: &Path| dicom_object::open_file(path).unwrap();
    let text = |o: &dicom_object::DefaultDicomObject, tag: Tag| {
        o.element(tag).unwrap().to_str().unwrap().trim_end_matches(['\0', ' ']).to_string()
    };
    let z = |path: &Path| header(path).element(Tag(0x0020, 0x0032)).unwrap().to_multi_float64().unwrap()[2];
    sources.sort_by(|a, b| z(a).total_cmp(&z(b)));
    let first = header(&sources[0]);
    let source = SourceSeries {
        attributes: vec![
            SourceAttribute { tag: Tag(0x0008, 0x0005), vr: VR::CS, bytes: b"ISO_IR 100".to_vec() },
            // Latin-1 bytes, which must come back as they are.
            SourceAttribute { tag: Tag(0x0010, 0x0010), vr: VR::PN, bytes: b"M\xfcller^J\xfcrg".to_vec() },
            SourceAttribute { tag: Tag(0x0010, 0x0020), vr: VR::LO, bytes: b"4711".to_vec() },
        ],
        study_uid: text(&first, Tag(0x0020, 0x000d)),
        series_uid: text(&first, Tag(0x0020, 0x000e)),
        frame_of_reference_uid: text(&first, Tag(0x0020, 0x0052)),
        geometry: labels.geometry.clone(),
        slices: sources
            .iter()
            .map(|p| {
                let o = header(p);
                Some(SourceSlice {
                    sop_class_uid: text(&o, Tag(0x0008, 0x0016)),
                    sop_instance_uid: text(&o, Tag(0x0008, 0x0018)),
                    frame_number: None,
                })
            })
            .collect(),
    };
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
    let objects = [
        ("seg", segmentation(&input).unwrap()),
        ("sr", comprehensive_sr(&input)),
        ("text", result_text(&input)),
        ("refusal", refusal_text(&source, &identity, &refusal, "k2", 1_700_000_000_000, 9000)),
        ("sc", secondary_capture(&input, &picture)),
    ];
    assert_eq!(segmentation(&input).unwrap().0, objects[0].1.0, "the same input must make the same UID");
    let files = objects
        .iter()
        .map(|(name, (_, object))| {
            let path = dir.path().join(format!("{name}.dcm"));
            write_atomically(object, &path).unwrap();
            (name.to_string(), path)
        })
        .collect();
    // What a reader must see: numbers counted anew over the segments that have voxels.
    let mut seen = labels.clone();
    for v in &mut seen.data {
        *v = [0, 1, 0, 2][usize::from(*v)];
    }
    Case { _dir: dir, files, sources, labels: seen }
}

#[test]
fn dciodvfy_finds_no_error() {
    let Some(dciodvfy) = common::peer("dciodvfy") else { return };
    for (name, path) in case().files {
        let out = Command::new(&dciodvfy).arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).to_string() + &String::from_utf8_lossy(&out.stdout);
        let errors: Vec<&str> = said.lines().filter(|l| l.starts_with("Error")).collect();
        assert!(errors.is_empty(), "{name}:\n{}", errors.join("\n"));
        assert!(!said.trim().is_empty(), "{name}: dciodvfy said nothing at all");
    }
}

#[test]
fn highdicom_reads_the_same_labels_and_the_linked_report() {
    let Some(python) = common::python_with("highdicom") else { return };
    let case = case();
    let file = |n: &str| case.files.iter().find(|(name, _)| name == n).unwrap().1.clone();
    let raw = file("seg").with_extension("raw");
    std::fs::write(&raw, &case.labels.data).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/results_check.py");
    let [columns, rows, slices] = case.labels.geometry.dims;
    // The third segment of the task is empty and has a group without reference; the check compares written segments.
    let out = Command::new(python)
        .arg(script)
        .args([file("seg"), file("sr"), raw])
        .args([columns, rows, slices].map(|n| n.to_string()))
        .args(&case.sources)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
}

#[test]
fn dcmqi_reads_the_segments_back() {
    let Some(python) = common::python_with("dcmqi") else { return };
    let tool = python.parent().unwrap().join("segimage2itkimage");
    assert!(tool.exists(), "dcmqi is installed without {}", tool.display());
    let case = case();
    let out_dir = tempfile::tempdir().unwrap();
    let seg = &case.files[0].1;
    let out = Command::new(tool)
        .args(["--inputDICOM".as_ref(), seg.as_os_str()])
        .args(["--outputDirectory".as_ref(), out_dir.path().as_os_str()])
        .args(["-t", "nrrd"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).to_string() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    let meta = std::fs::read_to_string(out_dir.path().join("meta.json")).unwrap();
    for word in ["Vastus lateralis", "Vastus medialis", "Right"] {
        assert!(meta.contains(word), "{word} is missing from {meta}");
    }
    let volumes = std::fs::read_dir(out_dir.path())
        .unwrap()
        .filter(|f| f.as_ref().unwrap().path().extension().is_some_and(|e| e == "nrrd"));
    assert_eq!(volumes.count(), 2, "one volume per written segment");
}

#[test]
fn a_name_in_another_character_set_survives_byte_for_byte() {
    let bytes = std::fs::read(&case().files[0].1).unwrap();
    let name = b"M\xfcller^J\xfcrg";
    assert!(bytes.windows(name.len()).any(|w| w == name));
}
