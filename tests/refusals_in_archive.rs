//! What must not be segmented: each such series ends as a code in `scanside status` and as a text report in the archive,
//! never as a mask.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/serve.rs"]
mod serve;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dicom_core::value::PrimitiveValue;
use dicom_core::{DataElement, Tag, VR};
use dicom_object::{DefaultDicomObject, InMemDicomObject, open_file};
use scanside::dicom::net::archive::{Folder, Taken, open_to_all};
use scanside::dicom::net::scp::Scp;
use scanside::dicom::net::scu::{ScuOptions, Sent, Target, send};
use scanside::image::phantom::{Phantom, PhantomOptions};
use scanside::pipeline::write_dicom_series;

const BASIC_TEXT_SR: &str = "1.2.840.10008.5.1.4.1.1.88.11";
const SEG: &str = "1.2.840.10008.5.1.4.1.1.66.4";

/// The files of a phantom whose identifiers no other seed has.
fn phantom(dir: &Path, seed: u64) -> Vec<PathBuf> {
    let options = PhantomOptions { seed, ..PhantomOptions::default() };
    write_dicom_series(&dir.join(format!("phantom{seed}")), &Phantom::new(&options), &options).unwrap().files
}

fn edit(path: &Path, tag: Tag, vr: VR, value: &str) {
    let mut object = open_file(path).unwrap();
    let values: Vec<String> = value.split('\\').map(String::from).collect();
    object.put(DataElement::new(tag, vr, PrimitiveValue::Strs(values.into())));
    object.write_to_file(path).unwrap();
}

fn text(object: &DefaultDicomObject, name: &str) -> String {
    object.element_by_name(name).unwrap().to_str().unwrap().trim_end_matches(['\0', ' ']).to_string()
}

/// Every text value of a report, one a line.
fn report_text(object: &InMemDicomObject) -> String {
    let mut out = String::new();
    for item in object.element_by_name("ContentSequence").ok().and_then(|e| e.items()).unwrap_or_default() {
        if let Ok(value) = item.element_by_name("TextValue") {
            out.push_str(&value.to_str().unwrap());
            out.push('\n');
        }
        out.push_str(&report_text(item));
    }
    out
}

struct Site {
    served: serve::Served,
    folder: Arc<Folder>,
    _archive: Scp,
    _runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
}

impl Site {
    fn start() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let folder = Arc::new(Folder::new(&dir.path().join("archive")).unwrap());
        let options = open_to_all("PACS");
        let archive =
            runtime.block_on(Scp::bind(SocketAddr::from(([127, 0, 0, 1], 0)), options, folder.clone())).unwrap();
        let served = serve::Served::start(dir.path(), "PACS", &archive.local_addr().to_string());
        Site { served, folder, _archive: archive, _runtime: runtime, dir }
    }

    fn send(&self, files: &[PathBuf]) {
        let target = Target {
            ae_title: "SCANSIDE".into(),
            address: format!("127.0.0.1:{}", self.served.port),
            calling_ae: "MR1".into(),
        };
        for outcome in send(files, &target, &ScuOptions::default()) {
            assert!(matches!(outcome.sent, Sent::Stored(0)), "{outcome:?}");
        }
    }

    /// The objects in the archive of the study that a file belongs to.
    fn of_study(&self, study: &str) -> Vec<Taken> {
        self.folder.taken().into_iter().filter(|t| t.parents.study == study).collect()
    }

    /// Sends the files and asserts that all that comes of them is a refusal with one of the codes.
    fn refused(&self, what: &str, files: &[PathBuf], codes: &[&str]) {
        self.send(files);
        let first = open_file(&files[0]).unwrap();
        let (study, series) = (text(&first, "StudyInstanceUID"), text(&first, "SeriesInstanceUID"));
        let job = self.served.wait_for(&series);
        assert_eq!(job["state"], "refused", "{what}: {job:#}");
        let code = job["code"].as_str().unwrap();
        let sentence = job["sentence"].as_str().unwrap();
        println!("{what}: {code}: {sentence}");
        assert!(codes.contains(&code), "{what}: {code}, expected one of {codes:?}");
        let reports: Vec<Taken> = self.of_study(&study).into_iter().filter(|t| report_of(&t.path, &series)).collect();
        assert_eq!(reports.len(), 1, "{what}: {reports:?}");
        assert_eq!(reports[0].sop_class, BASIC_TEXT_SR);
        let report = open_file(&reports[0].path).unwrap();
        let words = report_text(&report);
        assert!(words.contains(&format!("Code {code}.")), "{what}: {words}");
        let (reason, _remedy) = sentence.split_once("; ").unwrap();
        assert!(words.contains(reason.trim_end_matches('.')), "{what}: {words:?} lacks {reason:?}");
        // The patient is the source's, numbers included.
        for name in ["PatientID", "PatientName", "PatientSize", "PatientWeight"] {
            if first.element_by_name(name).is_ok() {
                assert_eq!(text(&report, name), text(&first, name), "{what}");
            }
        }
        if let Some(dciodvfy) = common::peer("dciodvfy") {
            let out = std::process::Command::new(dciodvfy).arg(&reports[0].path).output().unwrap();
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(!said.lines().any(|l| l.starts_with("Error")) && !said.trim().is_empty(), "{what}: {said}");
        }
    }
}

/// Whether a report's evidence is of the series.
fn report_of(path: &Path, series: &str) -> bool {
    let Ok(object) = open_file(path) else { return false };
    let mut pending: Vec<&InMemDicomObject> = vec![&object];
    while let Some(item) = pending.pop() {
        for element in item {
            if element.header().tag == Tag(0x0020, 0x000e)
                && !std::ptr::eq(item, &*object)
                && element.to_str().is_ok_and(|v| v.trim_end_matches(['\0', ' ']) == series)
            {
                return true;
            }
            pending.extend(element.items().unwrap_or_default());
        }
    }
    false
}

#[test]
fn what_must_not_be_segmented_is_refused_in_status_and_archive_and_the_next_thigh_is_segmented() {
    let site = Site::start();
    let dir = site.dir.path();

    let localizer = phantom(dir, 101);
    for file in &localizer {
        edit(file, Tag(0x0008, 0x0008), VR::CS, "ORIGINAL\\PRIMARY\\LOCALIZER");
    }
    site.refused("localizer", &localizer, &["LOCALIZER"]);

    let mut gap = phantom(dir, 102);
    gap.remove(7);
    site.refused("one slice left out", &gap, &["SERIES_GAP"]);

    let mixed = phantom(dir, 103);
    for file in mixed.iter().skip(1).step_by(2) {
        edit(file, Tag(0x0018, 0x0081), VR::DS, "80");
    }
    site.refused("two contrasts", &mixed, &["MIXED_CONTRAST", "MIXED_SERIES"]);

    let knee = phantom(dir, 104);
    for file in &knee {
        edit(file, Tag(0x0018, 0x0015), VR::CS, "KNEE");
        edit(file, Tag(0x0008, 0x103e), VR::LO, "AX T1 KNEE");
        edit(file, Tag(0x0018, 0x1030), VR::LO, "KNEE");
        edit(file, Tag(0x0010, 0x1020), VR::DS, "1.75");
        edit(file, Tag(0x0010, 0x1030), VR::DS, "73.5");
    }
    site.refused("another body part", &knee, &["BODY_PART"]);

    // Headers of a thigh, pictures of nothing: empty, and noise over the whole field of view.
    for (what, seed, mask) in [("empty pictures", 106u64, 0u64), ("pictures of noise", 107, 0x3ff)] {
        let files = phantom(dir, seed);
        let mut state = seed;
        for file in &files {
            let mut object = open_file(file).unwrap();
            let count = object.element_by_name("PixelData").unwrap().to_bytes().unwrap().len() / 2;
            let pixels: Vec<u16> = (0..count)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 33 & mask) as u16
                })
                .collect();
            object.put(DataElement::new(Tag(0x7fe0, 0x0010), VR::OW, PrimitiveValue::U16(pixels.into())));
            object.write_to_file(file).unwrap();
        }
        site.refused(what, &files, &["NOT_RECOGNISED"]);
    }

    if let Some(calf) = common::data("calf_dicom_xa60_myoqmri") {
        for (what, prefix) in [("calf, Dixon", "dixon"), ("calf, echoes", "mese")] {
            let mut files: Vec<PathBuf> = std::fs::read_dir(&calf)
                .unwrap()
                .map(|e| e.unwrap().path())
                .filter(|p| p.file_name().unwrap().to_string_lossy().starts_with(prefix))
                .collect();
            files.sort();
            site.refused(what, &files, &["BODY_PART"]);
        }
    }

    // After all that: a thigh is still segmented, and it alone has a mask.
    let good = phantom(dir, 105);
    site.send(&good);
    let first = open_file(&good[0]).unwrap();
    let job = site.served.wait_for(&text(&first, "SeriesInstanceUID"));
    assert_eq!(job["state"], "done", "{job:#}");
    let masks: Vec<String> =
        site.folder.taken().into_iter().filter(|t| t.sop_class == SEG).map(|t| t.parents.study).collect();
    assert_eq!(masks, [text(&first, "StudyInstanceUID")]);
}

#[test]
fn a_slice_that_comes_again_with_other_bytes_is_counted_and_the_first_is_used() {
    let site = Site::start();
    let options = PhantomOptions {
        seed: 108,
        dims: [256, 128, 8],
        spacing: [1.953_125, 1.953_125, 10.0],
        ..PhantomOptions::default()
    };
    let made = write_dicom_series(&site.dir.path().join("again"), &Phantom::new(&options), &options).unwrap();
    let copy = |slice: usize, comment: &str| {
        let path = site.dir.path().join(format!("{comment}-{slice}.dcm"));
        std::fs::copy(&made.files[slice], &path).unwrap();
        edit(&path, Tag(0x0020, 0x4000), VR::LT, comment);
        path
    };
    let files: Vec<PathBuf> = made.files.iter().cloned().chain([copy(1, "again")]).collect();
    site.send(&files);
    let job = site.served.wait_for(&made.series_uid);
    assert_eq!(job["state"], "done", "{job:#}");
    assert!(job["summary"].as_str().unwrap().contains("1 object(s) came again"), "{job:#}");
    let seg = site.of_study(&made.study_uid).into_iter().find(|t| t.sop_class == SEG).unwrap();
    let object = open_file(&seg.path).unwrap();
    let series = object.element_by_name("ReferencedSeriesSequence").unwrap().items().unwrap();
    let sources = series[0].element_by_name("ReferencedInstanceSequence").unwrap().items().unwrap().len();
    assert_eq!((series.len(), sources), (1, 8));

    // The whole series once more changes nothing that is used: the result stands, and nothing waits.
    let all: Vec<PathBuf> = (0..8).map(|slice| copy(slice, "later")).collect();
    site.send(&all);
    let start = std::time::Instant::now();
    loop {
        let status = site.served.status();
        if status["open"].as_array().unwrap().is_empty() {
            break;
        }
        assert!(start.elapsed() < std::time::Duration::from_secs(300), "no end: {status:#}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let status = site.served.status();
    let jobs = status["jobs"].as_array().unwrap();
    assert_eq!(
        (jobs.len(), &jobs[0]["state"], &jobs[0]["superseded"]),
        (1, &job["state"], &false.into()),
        "{status:#}"
    );
}
