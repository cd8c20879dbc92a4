//! Reports for people: Basic Text SR of a result, or of a refusal.

use dicom_object::InMemDicomObject;

use super::build::{Head, common};
use super::input::{Identity, RefusalText, ResultInput, SourceSeries};
use super::sr::{container, context, document, evidence, text_item};
use super::uid;
use crate::terms::Code;

/// Basic Text SR Storage.
const BASIC_TEXT_SR: &str = "1.2.840.10008.5.1.4.1.1.88.11";
/// Stands in every report.
const CAUTION: &str = "Research use only. Not for diagnosis without review by a qualified reader.";

/// The report of a result for people: SOP Instance UID and object.
pub fn result_text(input: &ResultInput<'_>) -> (String, InMemDicomObject) {
    let mut text = Vec::new();
    let mut summary = format!("SegEx verdict {}, score {:.0} of 100.", input.verdict, input.score);
    if input.needs_review {
        summary.push_str(" NEEDS REVIEW.");
    }
    text.push((Code::dcm("121077", "Conclusion"), summary));
    for (s, r) in input.segments.iter().zip(input.reports) {
        let grades: Vec<String> = r
            .grades
            .iter()
            .map(|g| match g.grade {
                Some(grade) => {
                    let at = if grade <= 3 && !g.slices.is_empty() {
                        let list: Vec<String> = g.slices.iter().take(5).map(|z| (z + 1).to_string()).collect();
                        format!(" (slices {})", list.join(", "))
                    } else {
                        String::new()
                    };
                    format!("{} {}: {grade}{at}", g.id, g.name)
                }
                None => format!("{} {}: not measured", g.id, g.name),
            })
            .collect();
        let mut line = format!(
            "{}: verdict {} ({}), score {:.0}, volume {:.1} ml. Grades 1 to 5: {}.",
            s.label(),
            r.verdict,
            r.verdict_words,
            r.score,
            r.volume_mm3 / 1000.0,
            grades.join("; ")
        );
        for remark in &r.remarks {
            line.push_str(&format!(" {remark}."));
        }
        text.push((Code::dcm("121071", "Finding"), line));
    }
    if input.segments.is_empty() {
        text.push((Code::dcm("121071", "Finding"), "No structure was found.".into()));
    }
    for remark in input.remarks {
        text.push((Code::dcm("121106", "Comment"), remark.clone()));
    }
    let calibration = if input.calibrated { "calibrated" } else { "not calibrated" };
    text.push((
        Code::dcm("121106", "Comment"),
        format!(
            "Graded by {} without ground truth; grades are {calibration}. {}.",
            input.observer,
            input.identity.line()
        ),
    ));
    text.push((Code::dcm("121106", "Comment"), CAUTION.into()));
    let review = if input.needs_review { " - needs review" } else { "" };
    build(
        input.source,
        input.identity,
        &input.observer,
        &input.key,
        input.created_ms,
        input.series_number + 2,
        &format!("Scanside report{review}"),
        text,
    )
}

/// The report of a refusal: why a series has no segmentation, where its reader looks for one.
pub fn refusal_text(
    source: &SourceSeries,
    identity: &Identity,
    refusal: &RefusalText,
    key: &str,
    created_ms: i64,
    series_number: u32,
) -> (String, InMemDicomObject) {
    let text = vec![
        (Code::dcm("121077", "Conclusion"), format!("Not segmented: {}.", refusal.sentence)),
        (Code::dcm("121106", "Comment"), format!("Remedy: {}. Code {}.", refusal.remedy, refusal.code)),
        (Code::dcm("121106", "Comment"), CAUTION.into()),
    ];
    build(source, identity, "device", key, created_ms, series_number + 2, "Scanside: not segmented", text)
}

#[allow(clippy::too_many_arguments)]
fn build(
    source: &SourceSeries,
    identity: &Identity,
    observer: &str,
    key: &str,
    created_ms: i64,
    series_number: u32,
    description: &str,
    text: Vec<(Code, String)>,
) -> (String, InMemDicomObject) {
    let sop = uid::derive("text", &[&source.series_uid, key]);
    let head = Head {
        sop_class: BASIC_TEXT_SR,
        sop_instance: &sop,
        modality: "SR",
        series_uid: &uid::derive("text-series", &[&source.series_uid, key]),
        series_number,
        description,
        created_ms,
    };
    let mut children = context(observer, &identity.station, &identity.software);
    children.extend(text.iter().map(|(code, line)| text_item("CONTAINS", code, line)));
    // Basic Text SR allows no template of measurements; its title is our own.
    let root = container(None, &Code::new("SEGEX", "99SCANSIDE", "Segmentation quality report"), children);
    let mut object = document(common(source, identity, &head), evidence(source, None), None).0;
    for element in root.0 {
        object.put(element);
    }
    (sop, object)
}
