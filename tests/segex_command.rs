//! `scanside segex` as a site runs it on a segmentation from elsewhere: grades, truth, structured report, form, agreement.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use scanside::adapter::{Adapter, Reference, Spread};
use scanside::daemon::source_of;
use scanside::dicom::write::{Identity, ResultInput, SegmentSpec, segmentation, write_atomically};
use scanside::image::LabelMap;
use scanside::image::morphology::erode;
use scanside::image::phantom::{Phantom, PhantomOptions};
use scanside::labels::{NamedLabel, write_seg_nrrd};
use scanside::model::weights::load_or_fetch;
use scanside::pipeline::write_dicom_series;
use scanside::segex::observe::ReportFile;
use scanside::segex::{Criterion, Report, Verdict};
use scanside::series::load_dir;
use scanside::terms::{Side, Task, structure};
use scanside::train::{Manifest, load_cases, reference};

const KEYS: [&str; 3] = ["VL", "VM", "RF"];

fn scanside(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_scanside")).args(args).output().unwrap()
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

/// A phantom's series, its truth as seg.nrrd, and a DICOM SEG in which VM is 4 mm too small all round.
struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = PhantomOptions { seed: 6, ..PhantomOptions::default() };
        let phantom = Phantom::new(&options);
        write_dicom_series(&dir.path().join("series"), &phantom, &options).unwrap();
        let task = Task { name: "t".into(), structures: KEYS.iter().filter_map(|k| structure(k)).collect() };
        let truth = phantom.truth(&task, Side::Right);
        let named: Vec<NamedLabel> = (1..=3)
            .map(|label| NamedLabel {
                label,
                structure: task.structures[usize::from(label) - 1].clone(),
                side: Some(Side::Right),
            })
            .collect();
        write_seg_nrrd(&truth, &named, &dir.path().join("truth.seg.nrrd")).unwrap();
        let mut found = truth.clone();
        let g = truth.geometry.clone();
        let vm: Vec<bool> = truth.data.iter().map(|l| *l == 2).collect();
        let small = erode(&vm, g.dims, [g.spacing[0], g.spacing[1], 1000.0], 4.0);
        for (l, keep) in found.data.iter_mut().zip(small) {
            if *l == 2 && !keep {
                *l = 0;
            }
        }
        let site = Site { dir };
        site.write_seg(&found);
        site
    }

    fn write_seg(&self, labels: &LabelMap) {
        let series = load_dir(&self.path("series")).unwrap();
        let source = source_of(&series);
        let segments: Vec<SegmentSpec> = KEYS
            .iter()
            .enumerate()
            .map(|(i, k)| SegmentSpec {
                number: i as u8 + 1,
                structure: structure(k).unwrap(),
                side: Some(Side::Right),
            })
            .collect();
        let identity = Identity {
            software: "9.9".into(),
            engine: "theirs".into(),
            adapter: "theirs".into(),
            adapter_sha256: String::new(),
            bundle: String::new(),
            base_sha256: String::new(),
            station: "THEIRS".into(),
        };
        let input = ResultInput {
            source: &source,
            labels,
            segments: &segments,
            reports: &[],
            score: 0.0,
            verdict: String::new(),
            observer: String::new(),
            calibrated: false,
            needs_review: false,
            remarks: &[],
            identity: &identity,
            created_ms: 0,
            key: "theirs".into(),
            series_number: 1,
        };
        write_atomically(&segmentation(&input).unwrap().1, &self.path("seg.dcm")).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn grade(&self, more: &[&str]) -> Output {
        let (series, seg, out) = (self.text("series"), self.text("seg.dcm"), self.text("graded"));
        let mut args =
            vec!["segex", "--series", &series, "--seg", &seg, "--out", &out, "--set", "series.quiet_seconds=30"];
        args.extend(more);
        scanside(&args)
    }
}

fn load(path: &Path) -> ReportFile {
    ReportFile::load(path).unwrap()
}

fn of<'a>(r: &'a Report, key: &str) -> &'a scanside::segex::StructureReport {
    r.structures.iter().find(|s| s.structure.key == key).unwrap()
}

#[test]
fn a_segmentation_from_elsewhere_is_graded_with_and_without_truth() {
    let site = Site::new();
    let out = site.grade(&["--truth", &site.text("truth.seg.nrrd")]);
    assert!(out.status.success(), "{}", said(&out));
    let file = load(&site.path("graded.json"));
    let [device, truth] = file.reports.as_slice() else { panic!("{:?}", file.reports.len()) };
    assert!(!device.with_ground_truth && truth.with_ground_truth && !device.calibrated);
    // What a mask from elsewhere does not bring is said, not guessed.
    for c in [Criterion::Completeness, Criterion::Stability, Criterion::Anatomy] {
        assert!(device.structures.iter().all(|s| s.grade(c).is_none()), "{c:?}");
    }
    let c2 = &of(device, "VL").grades[1];
    assert!(c2.measure.contains("passes") && c2.measure.contains("calibrated adapter"), "{}", c2.measure);
    assert!(of(device, "VL").grade(Criterion::Topology).is_some());
    assert_eq!((of(truth, "VL").verdict, of(truth, "RF").verdict), (Verdict::A, Verdict::A));
    assert!(of(truth, "VM").verdict >= Verdict::C && of(truth, "VM").grade(Criterion::Boundary) == Some(1));
    assert!(of(device, "VM").grade(Criterion::Boundary) < of(device, "VL").grade(Criterion::Boundary));
    let text = std::fs::read_to_string(site.path("graded.md")).unwrap();
    assert!(text.contains("against ground truth") && text.contains("Vastus medialis, right"), "{text}");
    // The reports name the case by a hash, and no patient.
    let header = load_dir(&site.path("series")).unwrap().header;
    assert!(!text.contains(&header.series_uid) && file.case.len() == 12);
}

#[test]
fn the_structured_report_is_valid_and_points_at_their_segmentation() {
    let site = Site::new();
    assert!(site.grade(&[]).status.success());
    let seg = dicom_object::open_file(site.path("seg.dcm")).unwrap();
    let uid = seg.element_by_name("SOPInstanceUID").unwrap().to_str().unwrap().into_owned();
    let bytes = std::fs::read(site.path("graded.dcm")).unwrap();
    let found = bytes.windows(uid.trim_end_matches('\0').len()).any(|w| w == uid.trim_end_matches('\0').as_bytes());
    assert!(found, "the report does not name the segmentation that it grades");
    let Some(dciodvfy) = common::peer("dciodvfy") else { return };
    let out = said(&Command::new(dciodvfy).arg(site.path("graded.dcm")).output().unwrap());
    assert!(!out.trim().is_empty() && !out.contains("Error"), "{out}");
}

#[test]
fn a_form_goes_to_a_person_and_comes_back_and_observers_are_compared() {
    let site = Site::new();
    assert!(site.grade(&["--case", "one"]).status.success());
    let (series, seg, folder) = (site.text("series"), site.text("seg.dcm"), site.text("form"));
    let make = || scanside(&["segex", "form", "--series", &series, "--seg", &seg, "--case", "one", "--out", &folder]);
    let out = make();
    assert!(out.status.success(), "{}", said(&out));
    for k in KEYS {
        let png = std::fs::read(site.path(&format!("form/{k}-right.png"))).unwrap();
        assert!(png.starts_with(b"\x89PNG") && png.len() > 2000);
    }
    assert!(said(&make()).contains("is not overwritten"));
    let form = site.path("form/form.toml");
    let text = std::fs::read_to_string(&form).unwrap();
    let blank = scanside(&["segex", "read-form", &form.display().to_string()]);
    assert!(!blank.status.success() && said(&blank).contains("write your name"), "{}", said(&blank));
    let filled =
        text.replace("observer = \"\"", "observer = \"AB\"").replace("C1 = 0", "C1 = 4").replace("C5 = 0", "C5 = 5");
    std::fs::write(&form, filled).unwrap();
    let person = site.text("person.json");
    let out = scanside(&["segex", "read-form", &form.display().to_string(), "--out", &person]);
    assert!(out.status.success(), "{}", said(&out));
    assert_eq!(load(Path::new(&person)).reports[0].observer, "person AB");

    let out = scanside(&["segex", "agree", &site.text("graded.json"), &person, "--out", &site.text("agree")]);
    assert!(out.status.success(), "{}", said(&out));
    let table = std::fs::read_to_string(site.path("agree.md")).unwrap();
    assert!(table.contains("| device – person AB | C1 | 3 |") && table.contains("ICC(2,1)"), "{table}");
    let alone = scanside(&["segex", "agree", &person]);
    assert!(!alone.status.success() && said(&alone).contains("two observers"));
}

#[test]
fn mistakes_are_told_with_a_remedy() {
    let site = Site::new();
    for (args, why) in [
        (vec!["segex"], "--series"),
        (vec!["segex", "--series", "/nowhere", "--seg", "/nowhere.dcm"], "/nowhere"),
        (vec!["segex", "agree", "/nowhere.json"], "/nowhere.json"),
        (vec!["segex", "read-form", "/nowhere.toml"], "/nowhere.toml"),
    ] {
        let out = scanside(&args);
        assert!(!out.status.success() && said(&out).contains(why), "{args:?}: {}", said(&out));
    }
    let out = site.grade(&["--map", "1=XX"]);
    assert!(!out.status.success() && said(&out).contains("no structure"), "{}", said(&out));
    // Not asked for by the configuration: an error that is told; the device's grades are there.
    let out = site.grade(&["--language-model"]);
    assert!(!out.status.success() && said(&out).contains("segex.observer.url"), "{}", said(&out));
    assert_eq!(load(&site.path("graded.json")).reports.len(), 1);
}

#[test]
fn a_calibrated_adapter_grades_with_a_result_of_its_own_beside_and_says_so() {
    let site = Site::new();
    let mut manifest = String::from("structures = [\"VL\", \"VM\", \"VI\", \"RF\"]\n");
    for seed in 3000..3002 {
        manifest += &format!("\n[[volume]]\nname = \"phantom {seed}\"\nphantom = {seed}\nslices = [4, 5, 6, 7, 8]\n");
    }
    std::fs::write(site.path("site.toml"), manifest).unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("adapters/thigh-phantom.safetensors");
    // As a site's own adapter it knows how its calibration set looked, with scores of grades that were not calibrated.
    let mut before = Adapter::load(&shipped).unwrap();
    let figure = Spread::of(&[7.0, 8.0]);
    let invented = |key: &str| Reference { key: key.into(), area: figure, intensity: figure, score: figure };
    before.meta.reference = before.meta.task.structures.iter().map(|s| invented(&s.key)).collect();
    before.save(&site.path("site.safetensors")).unwrap();
    let (shipped, calibrated) = (site.text("site.safetensors"), site.text("calibrated.safetensors"));
    let manifest = site.text("site.toml");
    let out = scanside(&["segex", "calibrate", "-a", &shipped, "-m", &manifest, "-o", &calibrated]);
    assert!(out.status.success(), "{}", said(&out));
    let text = said(&out);
    assert!(text.contains("16 labelled masks of 2 subjects") && text.contains("AUROC for usable as is"), "{text}");

    // Drift's reference has the scores of the calibrated grades; nothing else of the adapter changed.
    let after = Adapter::load(Path::new(&calibrated)).unwrap();
    let cases = load_cases(&Manifest::load(Path::new(&manifest)).unwrap(), &after.meta.task, |_| true).unwrap();
    let measured = reference(&after, &load_or_fetch(&mut |_| {}).unwrap(), &cases).unwrap();
    assert_eq!(after.meta.reference.len(), 4);
    for (r, m) in after.meta.reference.iter().zip(&measured) {
        assert!(m.score.is_some() && m.score != figure, "{m:?}");
        assert_eq!(*r, Reference { score: m.score, ..invented(&m.key) });
    }
    before.meta.segex = after.meta.segex.clone();
    before.meta.reference = after.meta.reference.clone();
    assert_eq!((&after.meta, &after.tensors), (&before.meta, &before.tensors));

    let graded = |more: &[&str]| {
        let out = site.grade(&[&["--adapter", &calibrated], more].concat());
        assert!(out.status.success(), "{}", said(&out));
        (load(&site.path("graded.json")).reports.remove(0), said(&out))
    };
    let (beside, text) = graded(&[]);
    assert!(beside.calibrated && text.contains("graded beside the result of thigh-phantom 1 (cpu"), "{text}");
    let (alone, text) = graded(&["--alone"]);
    assert!(alone.calibrated && !text.contains("beside"), "{text}");
    for report in [&beside, &alone] {
        let (right, eroded) = (of(report, "VL"), of(report, "VM"));
        assert!(right.score > eroded.score + 15.0 && eroded.verdict >= Verdict::C, "{right:?} {eroded:?}");
        assert!(right.grade(Criterion::Completeness) > eroded.grade(Criterion::Completeness), "{eroded:?}");
        assert_eq!(right.grade(Criterion::Stability), None);
    }
    assert_ne!(of(&beside, "VL").score, of(&alone, "VL").score);
    // Laid beside itself a result says nothing.
    let own = site.text("own");
    let out = scanside(&["segment", &site.text("series"), "--adapter", &calibrated, "--out", &own]);
    assert!(out.status.success(), "{}", said(&out));
    let (series, seg) = (site.text("series"), format!("{own}/seg.dcm"));
    let out = scanside(&["segex", "--series", &series, "--seg", &seg, "--adapter", &calibrated]);
    assert!(said(&out).contains("this adapter's own result, so it is graded alone"), "{}", said(&out));
}
