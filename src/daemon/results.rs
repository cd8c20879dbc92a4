//! From a segmentation to the files of a result.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::dicom::read::InstanceHeader;
use crate::dicom::write::{
    GradeLine, Identity, RefusalText, ResultInput, SegmentReport, SegmentSpec, SourceAttribute, SourceSeries,
    SourceSlice, WriteError, comprehensive_sr, refusal_text, result_text, secondary_capture, segmentation,
    write_atomically,
};
use crate::image::{Geometry, Legend, montage};
use crate::pipeline::Segmentation;
use crate::segex::{Report, Verdict};
use crate::series::{Refusal, SeriesVolume};
use crate::store::queue::Output;

/// What a result is written with.
#[derive(Clone, Debug)]
pub struct ResultFiles<'a> {
    /// Folder for the files; made if it is not there.
    pub dir: &'a Path,
    /// Who made it.
    pub identity: &'a Identity,
    /// Content time, Unix milliseconds.
    pub created_ms: i64,
    /// Hash of everything that decides the result; see [`result_key`].
    pub key: String,
    /// Score below which a result needs review.
    pub bar: f64,
    /// Whether a result below the bar stays on the box.
    pub hold_below_bar: bool,
    /// Whether the site is in its pilot: every result says so and needs review.
    pub pilot: bool,
    /// First Series Number.
    pub series_number: u32,
}

/// Hash over what decides a result: the inputs' hashes in any order, the model and the settings.
pub fn result_key(input_hashes: &[String], identity: &Identity, settings: &str) -> String {
    let mut sorted: Vec<&str> = input_hashes.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let mut hash = Sha256::new();
    for part in sorted.into_iter().chain([
        identity.software.as_str(),
        &identity.engine,
        &identity.adapter_sha256,
        &identity.base_sha256,
        settings,
    ]) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    // The same adapter in another bundle says so in the result, which then must not have the same UID.
    hash.update(identity.bundle.as_bytes());
    hex::encode(hash.finalize())
}

/// Whether a report is below the bar.
pub fn needs_review(report: &Report, bar: f64) -> bool {
    report.score < bar || report.verdict >= Verdict::C
}

/// Why a result needs review, in words; empty where it does not.
pub fn reasons(report: &Report, files: &ResultFiles<'_>) -> Vec<String> {
    let mut out = Vec::new();
    if files.pilot {
        out.push("Pilot: this site has not accepted the model yet; for review, not for clinical use".to_string());
    }
    if needs_review(report, files.bar) {
        out.push(format!(
            "Needs review: score {:.0}, verdict {:?}; this site's bar is a score of {:.0} and at least B",
            report.score, report.verdict, files.bar
        ));
    }
    out
}

fn attributes(header: &InstanceHeader) -> Vec<SourceAttribute> {
    header.verbatim.iter().map(|e| SourceAttribute { tag: e.tag, vr: e.vr, bytes: e.bytes.clone() }).collect()
}

/// What the builders need of a loaded series.
pub fn source_of(series: &SeriesVolume) -> SourceSeries {
    SourceSeries {
        attributes: attributes(&series.header),
        study_uid: series.header.study_uid.clone(),
        series_uid: series.header.series_uid.clone(),
        frame_of_reference_uid: series.header.frame_of_reference_uid.clone().unwrap_or_default(),
        geometry: series.volume.geometry.clone(),
        slices: series
            .slices
            .iter()
            .map(|s| {
                Some(SourceSlice {
                    sop_class_uid: s.sop_class_uid.clone(),
                    sop_instance_uid: s.sop_instance_uid.clone(),
                    frame_number: s.multi_frame.then_some(s.frame),
                })
            })
            .collect(),
    }
}

/// A SegEx report as the builders take it.
pub fn grades(report: &Report) -> Vec<SegmentReport> {
    report
        .structures
        .iter()
        .map(|r| SegmentReport {
            number: r.label,
            volume_mm3: r.volume_mm3,
            score: r.score,
            verdict: format!("{:?}", r.verdict),
            verdict_words: r.verdict.words().into(),
            grades: r
                .grades
                .iter()
                .map(|g| GradeLine {
                    id: g.criterion.id().into(),
                    name: g.criterion.name().into(),
                    grade: g.grade,
                    measure: format!("{:.3} {}", g.value, g.measure),
                    slices: g.slices.clone(),
                })
                .collect(),
            remarks: r.remarks.clone(),
        })
        .collect()
}

/// Writes segmentation, reports and picture into the folder, and gives what goes into the outbox. Paths of the outputs
/// are relative to `root`.
///
/// # Errors
/// [`WriteError`].
pub fn write_results(
    series: &SeriesVolume,
    s: &Segmentation,
    files: &ResultFiles<'_>,
    root: &Path,
) -> Result<Vec<Output>, WriteError> {
    make(files.dir)?;
    let source = source_of(series);
    // From the report, which also names what was expected and not found (label 0).
    let segments: Vec<SegmentSpec> = s
        .report
        .structures
        .iter()
        .map(|r| SegmentSpec { number: r.label, structure: r.structure.clone(), side: r.side })
        .collect();
    let mut remarks = reasons(&s.report, files);
    remarks.extend(series.remarks.iter().chain(&s.remarks).cloned());
    let review = files.pilot || needs_review(&s.report, files.bar);
    let reports = grades(&s.report);
    let input = ResultInput {
        source: &source,
        labels: &s.labels,
        segments: &segments,
        reports: &reports,
        score: s.report.score,
        verdict: format!("{:?}: {}", s.report.verdict, s.report.verdict.words()),
        observer: s.report.observer.clone(),
        calibrated: s.report.calibrated,
        needs_review: review,
        remarks: &remarks,
        identity: files.identity,
        created_ms: files.created_ms,
        key: files.key.clone(),
        series_number: files.series_number,
    };
    let legend: Vec<Legend> = segments
        .iter()
        .filter(|s| s.number > 0)
        .map(|s| Legend { label: s.number, rgb: s.structure.rgb, name: s.label() })
        .collect();
    let caption = [
        format!(
            "SegEx {:?} ({}), score {:.0} of 100, {}{}",
            s.report.verdict,
            s.report.verdict.words(),
            s.report.score,
            if s.report.calibrated { "calibrated" } else { "not calibrated" },
            if review { " - NEEDS REVIEW" } else { "" }
        ),
        format!("Scanside {}; {}", files.identity.software, files.identity.line()),
        "Research use only. Not for diagnosis without review by a qualified reader.".to_string(),
    ];
    let picture = montage(&series.volume, &s.labels, &legend, &caption);
    let png = files.dir.join("montage.png");
    picture.write_png(&png).map_err(|cause| WriteError::Io { path: png, cause })?;

    let held = needs_review(&s.report, files.bar) && files.hold_below_bar;
    let mut out = Vec::new();
    let mut objects = vec![("sr", comprehensive_sr(&input)), ("sc", secondary_capture(&input, &picture))];
    if let Some(seg) = segmentation(&input) {
        objects.insert(0, ("seg", seg));
    }
    // The text report goes even when the rest is held: it says that a result waits for review.
    objects.push(("text", result_text(&input)));
    for (kind, (uid, object)) in objects {
        let path = files.dir.join(format!("{kind}.dcm"));
        write_atomically(&object, &path)?;
        out.push(Output {
            kind: kind.into(),
            sop_instance_uid: uid,
            path: relative(&path, root),
            held: held && kind != "text",
        });
    }
    Ok(out)
}

/// Writes the text report of a refusal.
///
/// # Errors
/// [`WriteError`].
pub fn write_refusal(
    header: &InstanceHeader,
    refusal: &Refusal,
    files: &ResultFiles<'_>,
    root: &Path,
) -> Result<Vec<Output>, WriteError> {
    make(files.dir)?;
    let source = SourceSeries {
        attributes: attributes(header),
        study_uid: header.study_uid.clone(),
        series_uid: header.series_uid.clone(),
        frame_of_reference_uid: header.frame_of_reference_uid.clone().unwrap_or_default(),
        geometry: Geometry::axial([0, 0, 0], [1.0; 3]),
        slices: vec![Some(SourceSlice {
            sop_class_uid: header.sop_class_uid.clone(),
            sop_instance_uid: header.sop_instance_uid.clone(),
            frame_number: None,
        })],
    };
    let text = RefusalText {
        code: refusal.code.to_string(),
        sentence: refusal.sentence.trim_end_matches('.').to_string(),
        remedy: refusal.remedy.trim_end_matches('.').to_string(),
    };
    let (uid, object) = refusal_text(&source, files.identity, &text, &files.key, files.created_ms, files.series_number);
    let path = files.dir.join("text.dcm");
    write_atomically(&object, &path)?;
    Ok(vec![Output { kind: "text".into(), sop_instance_uid: uid, path: relative(&path, root), held: false }])
}

fn make(dir: &Path) -> Result<(), WriteError> {
    std::fs::create_dir_all(dir).map_err(|cause| WriteError::Io { path: dir.to_path_buf(), cause })
}

fn relative(path: &Path, root: &Path) -> String {
    path.strip_prefix(root).map_or_else(|_| PathBuf::from(path), Path::to_path_buf).display().to_string()
}
