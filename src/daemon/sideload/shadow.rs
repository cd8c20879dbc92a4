//! A candidate on a series that the active adapter has segmented: what it makes of it, and how far the two agree. Nothing is kept
//! but figures.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::candidate::seconds_of;
use crate::daemon::busy::Patience;
use crate::daemon::{Model, Shared, worker};
use crate::dicom::write::SegmentSpec;
use crate::labels::LabelImage;
use crate::pipeline::{PipelineError, Segmentation};
use crate::series::SeriesVolume;
use crate::store::bundles::{self, Case, Stage, StructureDice};
use crate::store::{StoreError, queue};
use crate::terms::Side;

/// A series in shadow gives way for so long at most.
const PATIENCE: Duration = Duration::from_secs(600);
/// Codes of cases that say nothing of the candidate.
const NOT_COMPARABLE: &str = "not-comparable";

/// Runs a candidate on the series of a job that is done; none where the service stops meanwhile.
///
/// # Errors
/// The database's; whatever else goes wrong is in the case.
pub(super) fn run(shared: &Shared, model: &Model, job_id: i64) -> Result<Option<Case>, StoreError> {
    let here = shared.here();
    let summary = here.store.with_conn(|c| queue::get_job(c, job_id))?.map(|j| j.summary).unwrap_or_default();
    let summary: Value = serde_json::from_str(&summary).unwrap_or_default();
    let mut case = Case {
        stage: Stage::Shadow,
        job_id,
        at_ms: here.clock.now_ms(),
        counts: true,
        problem: String::new(),
        candidate: bundles::Side::default(),
        active: bundles::Side {
            score: summary["score"].as_f64(),
            verdict: summary["verdict"].as_str().unwrap_or_default().to_string(),
            seconds: seconds_of(&summary),
        },
        dice: Vec::new(),
    };
    let volume = match worker::volume_again(shared, job_id)? {
        Ok(volume) => volume,
        Err(why) => {
            log::warn!("job {job_id} cannot be compared in shadow: {why}");
            case.counts = false;
            case.problem = NOT_COMPARABLE.into();
            return Ok(Some(case));
        }
    };
    let Some((outcome, seconds)) = segment(shared, model, &volume) else { return Ok(None) };
    case.candidate.seconds = seconds;
    match outcome {
        Err(code) => case.problem = code.into(),
        Ok(found) => {
            case.candidate.score = Some(found.report.score);
            case.candidate.verdict = format!("{:?}", found.report.verdict);
            case.active.score = comparable_score(&summary, found.report.calibrated);
            let active = here.store.dir().join(format!("results/{job_id}/seg.dcm"));
            match compare(&found, &volume, &active) {
                Ok(dice) => case.dice = dice,
                Err(why) => {
                    log::warn!("job {job_id} cannot be compared in shadow: {why}");
                    case.counts = false;
                    case.problem = NOT_COMPARABLE.into();
                }
            }
        }
    }
    Ok(Some(case))
}

/// The active adapter's score from its job's summary; none where the grades of one of the two are calibrated and the other's are not,
/// as their scores are of two scales. A summary of an earlier release does not say, and is compared as it was then.
fn comparable_score(summary: &Value, calibrated: bool) -> Option<f64> {
    let other_scale = summary["calibrated"].as_bool().is_some_and(|active| active != calibrated);
    summary["score"].as_f64().filter(|_| !other_scale)
}

/// A segmentation or the code of its problem, and the seconds it took where it was not interrupted.
type Shadowed = (Result<Segmentation, &'static str>, Option<f64>);

/// Segments while no series is in work; none where the service stops meanwhile.
fn segment(shared: &Shared, model: &Model, volume: &SeriesVolume) -> Option<Shadowed> {
    let started = Instant::now();
    let patience = Patience::new(PATIENCE);
    let options = shared.segmenting(model);
    let alive = || shared.pulse.beat("candidate");
    let progress = |_: crate::pipeline::Progress| {
        alive();
        shared.busy.give_way(shared, &patience, &alive);
    };
    let hint = volume.header.laterality;
    let done = catch_unwind(AssertUnwindSafe(|| model.segmenter.segment(&volume.volume, hint, &options, &progress)));
    let seconds = (!patience.was_tried()).then(|| started.elapsed().as_secs_f64());
    let outcome = match done {
        Ok(Ok(s)) => Ok(s),
        Ok(Err(PipelineError::Stopped)) => return None,
        Ok(Err(e @ (PipelineError::Engine(_) | PipelineError::Model(_)))) => {
            log::error!("the candidate failed in shadow: {e}");
            Err("engine")
        }
        Ok(Err(e)) => {
            log::warn!("the candidate refused a series in shadow: {e}");
            Err("not-recognised")
        }
        Err(_) => Err("panic"),
    };
    Some((outcome, seconds))
}

/// Dice of every structure that either of the two found. Segments are told by the names that results give them.
fn compare(found: &Segmentation, volume: &SeriesVolume, active: &Path) -> Result<Vec<StructureDice>, String> {
    let grid = &volume.volume.geometry;
    // No structure found: no segmentation was written.
    let image = active.is_file().then(|| LabelImage::load(active)).transpose().map_err(|e| e.to_string())?;
    let masks =
        image.as_ref().map(|i| i.masks(grid, None, active)).transpose().map_err(|e| e.to_string())?.unwrap_or_default();
    let segments = image.map(|i| i.segments).unwrap_or_default();
    let mut rest: Vec<bool> = vec![true; segments.len()];
    let mut out = Vec::new();
    for s in &found.segments {
        let label = SegmentSpec { number: s.label, structure: s.structure.clone(), side: s.side }.label();
        let of = segments.iter().position(|n| n.name == label);
        if let Some(i) = of {
            rest[i] = false;
        }
        let (mut both, mut sum) = (0usize, 0usize);
        for (v, l) in found.labels.data.iter().enumerate() {
            let (a, b) = (*l == s.label, of.is_some_and(|i| masks[i][v]));
            both += usize::from(a && b);
            sum += usize::from(a) + usize::from(b);
        }
        let side = s.side.map_or("", Side::word).to_string();
        out.push(StructureDice {
            structure: s.structure.key.clone(),
            side,
            dice: 2.0 * both as f64 / sum.max(1) as f64,
        });
    }
    for (n, _) in segments.iter().zip(&rest).filter(|(_, rest)| **rest) {
        let named = n.structure();
        let structure = named.map_or(n.name.clone(), |n| n.key.to_string());
        let side = named.and_then(|n| n.side).map_or("", Side::word).to_string();
        out.push(StructureDice { structure, side, dice: 0.0 });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_of_two_scales_are_no_pair() {
        let of = |calibrated: Value| serde_json::json!({"score": 71.5, "calibrated": calibrated});
        assert_eq!(comparable_score(&of(true.into()), true), Some(71.5));
        assert_eq!(comparable_score(&of(false.into()), false), Some(71.5));
        assert_eq!(comparable_score(&of(false.into()), true), None);
        assert_eq!(comparable_score(&of(true.into()), false), None);
        // An earlier release did not say.
        let old = serde_json::json!({"score": 71.5});
        assert_eq!([true, false].map(|c| comparable_score(&old, c)), [Some(71.5); 2]);
        assert_eq!(comparable_score(&Value::Null, true), None);
    }
}
