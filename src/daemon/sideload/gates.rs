//! What a candidate must reach in shadow and on probation. Nothing here reads or writes: cases in, a judgement out.

use crate::config::Sideload;
use crate::daemon::gate::verdict;
use crate::store::bundles::{Case, Stage, Why};

/// What the cases so far say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Too few yet.
    GoOn,
    /// The stage is passed.
    Passed(Why),
    /// The candidate must not go on.
    Failed(Why),
}

/// No slowdown is seen in fewer cases: one slow series has many reasons.
const LEAST_TIMED: usize = 3;

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.retain(|v| v.is_finite());
    values.sort_by(f64::total_cmp);
    let n = values.len();
    (n > 0).then(|| (values[(n - 1) / 2] + values[n / 2]) / 2.0)
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn of(cases: &[Case], stage: Stage) -> Vec<&Case> {
    cases.iter().filter(|c| c.stage == stage && c.counts).collect()
}

/// Median seconds of the active adapter on the cases that it shared with the candidate.
pub fn usual_seconds(cases: &[Case]) -> Option<f64> {
    median(of(cases, Stage::Shadow).iter().filter_map(|c| c.active.seconds).collect())
}

/// Judges the shadow stage.
pub fn shadow(s: &Sideload, cases: &[Case]) -> Judgement {
    let cases = of(cases, Stage::Shadow);
    let fail = |sentence: String| Judgement::Failed(Why::fault("shadow-failed", sentence, KEEP));
    if let Some(c) = cases.iter().find(|c| !c.problem.is_empty()) {
        return fail(format!(
            "in shadow the candidate made no result of a series that the active adapter segmented ({})",
            c.problem
        ));
    }
    if cases.len() < s.shadow_series as usize {
        return Judgement::GoOn;
    }
    let dice = median(cases.iter().filter_map(|c| c.mean_dice()).collect());
    if let Some(d) = dice.filter(|d| *d < s.shadow_least_dice) {
        return fail(format!(
            "in shadow its masks agree with the active adapter's by a Dice of {d:.3}; {:.3} is asked for",
            s.shadow_least_dice
        ));
    }
    let pairs: Vec<(f64, f64)> = cases.iter().filter_map(|c| Some((c.candidate.score?, c.active.score?))).collect();
    let (own, active): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
    let scores = mean(&own).zip(mean(&active));
    if let Some((own, active)) = scores.filter(|(own, active)| active - own > s.shadow_lost_score) {
        return fail(format!(
            "in shadow its mean SegEx score is {own:.0}, the active adapter's {active:.0}; {:.0} less are allowed",
            s.shadow_lost_score
        ));
    }
    // Recorded without the active adapter's score alone where the two were of different scales.
    let two_scales = cases.iter().any(|c| c.active.score.is_none() && !c.active.verdict.is_empty());
    let apart = "; scores were not compared, as one adapter's grades are calibrated and the other's are not";
    let timed: Vec<f64> =
        cases.iter().filter_map(|c| Some(c.candidate.seconds? / c.active.seconds.filter(|s| *s > 0.0)?)).collect();
    let (count, ratio) = (timed.len(), median(timed));
    if let Some(r) = ratio.filter(|r| too_slow(s, *r, count)) {
        return fail(format!(
            "in shadow it takes {r:.2} times the active adapter's time; {:.2} are allowed",
            s.most_slowdown
        ));
    }
    Judgement::Passed(Why::said(format!(
        "shadow passed over {} series{}{}{}{}",
        cases.len(),
        dice.map_or(String::new(), |d| format!(", Dice to the active adapter {d:.3}")),
        scores.map_or(String::new(), |(o, a)| format!(", SegEx score {o:.0} against {a:.0}")),
        ratio.map_or(String::new(), |r| format!(", {r:.2} times its time")),
        if scores.is_none() && two_scales { apart } else { "" },
    )))
}

const KEEP: &str = "the adapter before it serves on; `scanside adapters export` carries the cases to the training host";

fn too_slow(s: &Sideload, ratio: f64, cases: usize) -> bool {
    s.most_slowdown > 0.0 && cases >= LEAST_TIMED && ratio > s.most_slowdown
}

/// Judges the probation; `usual` is the active adapter's median time, seconds, where it is known.
pub fn probation(s: &Sideload, cases: &[Case], usual: Option<f64>) -> Judgement {
    let cases = of(cases, Stage::Probation);
    let fail = |sentence: String| Judgement::Failed(Why::fault("probation-failed", sentence, KEEP));
    if let Some(c) = cases.iter().find(|c| !c.problem.is_empty()) {
        return fail(format!("on probation it made no result of a series ({})", c.problem));
    }
    let wanted = s.probation_series as usize;
    let bad = cases.iter().filter(|c| verdict(&c.candidate.verdict) > s.probation_least_verdict).count();
    let allowed = ((1.0 - s.probation_share) * wanted as f64 + 1e-9).floor() as usize;
    let least = s.probation_least_verdict;
    if bad > allowed {
        return fail(format!(
            "on probation SegEx put {bad} of {} series below {least:?}; {allowed} of {wanted} are allowed",
            cases.len()
        ));
    }
    if cases.len() < wanted {
        return Judgement::GoOn;
    }
    let seconds = median(cases.iter().filter_map(|c| c.candidate.seconds).collect());
    let ratio = seconds.zip(usual.filter(|u| *u > 0.0)).map(|(s, u)| s / u);
    if let Some(r) = ratio.filter(|r| too_slow(s, *r, cases.len())) {
        return fail(format!("on probation it takes {r:.2} times the usual time; {:.2} are allowed", s.most_slowdown));
    }
    Judgement::Passed(Why::said(format!(
        "probation passed: {} of {} series at {least:?} or better{}",
        cases.len() - bad,
        cases.len(),
        ratio.map_or(String::new(), |r| format!(", {r:.2} times the usual time"))
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::bundles::{self, Arrival, Side, StructureDice};
    use crate::store::{queue, review};
    use rusqlite::Connection;

    fn case(stage: Stage, verdict: &str, score: f64, seconds: f64, dice: f64) -> Case {
        Case {
            stage,
            job_id: 1,
            at_ms: 1,
            counts: true,
            problem: String::new(),
            candidate: Side { score: Some(score), verdict: verdict.into(), seconds: Some(seconds) },
            active: Side { score: Some(80.0), verdict: "B".into(), seconds: Some(10.0) },
            dice: vec![StructureDice { structure: "VL".into(), side: String::new(), dice }],
        }
    }

    fn settings() -> Sideload {
        Sideload { shadow_series: 3, probation_series: 5, probation_share: 0.8, ..Sideload::default() }
    }

    fn code(j: Judgement) -> String {
        match j {
            Judgement::GoOn => "go on".into(),
            Judgement::Passed(w) => format!("passed: {}", w.sentence),
            Judgement::Failed(w) => w.sentence,
        }
    }

    #[test]
    fn shadow_asks_for_agreement_score_time_and_a_result() {
        let of = |verdict, score, seconds, dice| vec![case(Stage::Shadow, verdict, score, seconds, dice); 3];
        let judge = |cases: &[Case]| code(shadow(&settings(), cases));
        assert_eq!(judge(&of("B", 80.0, 10.0, 0.9)[..2]), "go on");
        assert!(judge(&of("B", 80.0, 10.0, 0.9)).starts_with("passed: shadow passed over 3 series, Dice"));
        assert!(judge(&of("B", 80.0, 10.0, 0.7)).contains("Dice of 0.700"));
        assert!(judge(&of("B", 60.0, 10.0, 0.9)).contains("mean SegEx score is 60"));
        assert!(judge(&of("B", 80.0, 20.0, 0.9)).contains("2.00 times"));
        // Scores of two scales were left out when they were recorded: nothing is lost by them, and the sentence says so.
        let mut apart = of("B", 10.0, 10.0, 0.9);
        apart.iter_mut().for_each(|c| c.active.score = None);
        let said = judge(&apart);
        assert!(
            said.starts_with("passed: shadow passed over 3 series, Dice to the active adapter 0.900, 1.00"),
            "{said}"
        );
        assert!(
            said.ends_with(
                "; scores were not compared, as one adapter's grades are calibrated and the other's are not"
            )
        );
        assert!(judge(&of("B", 80.0, 10.0, 0.9)).ends_with("SegEx score 80 against 80, 1.00 times its time"));
        // What was interrupted was not timed, and two times are too few.
        let mut slow = of("B", 80.0, 20.0, 0.9);
        slow[0].candidate.seconds = None;
        assert!(judge(&slow).starts_with("passed"));
        let mut cases = of("B", 80.0, 10.0, 0.9);
        cases[0].problem = "engine".into();
        assert!(judge(&cases[..1]).contains("made no result"), "one is enough");
        cases[0].counts = false;
        assert_eq!(judge(&cases), "go on", "what does not count is no case");
        // Cases of the other stage are none of this one.
        assert_eq!(judge(&vec![case(Stage::Probation, "B", 80.0, 10.0, 0.9); 9]), "go on");
    }

    #[test]
    fn probation_fails_as_soon_as_it_cannot_pass() {
        let good = case(Stage::Probation, "C", 70.0, 10.0, 1.0);
        let bad = case(Stage::Probation, "D", 20.0, 10.0, 1.0);
        let judge = |cases: &[Case]| code(probation(&settings(), cases, Some(10.0)));
        assert_eq!(judge(&[good.clone(), bad.clone()]), "go on");
        assert!(judge(&[bad.clone(), bad.clone()]).contains("2 of 2 series below C; 1 of 5 are allowed"));
        let mut five = vec![good.clone(); 4];
        five.push(bad);
        assert!(judge(&five).starts_with("passed: probation passed: 4 of 5"));
        let slow = vec![case(Stage::Probation, "B", 80.0, 16.0, 1.0); 5];
        assert!(judge(&slow).contains("1.60 times"));
        assert!(code(probation(&settings(), &slow, None)).starts_with("passed"), "nothing to compare with");
        let mut failed = good;
        failed.problem = "engine".into();
        assert!(judge(&[failed]).contains("made no result"));
    }

    /// The next generation of a series ends and becomes a case.
    fn serve(c: &mut Connection, bundle: i64, series: &str, instances: &[i64], problem: &str) -> i64 {
        let job = queue::open_job(c, series, instances, "quiet", 1, 1).unwrap().unwrap();
        let ending = queue::Ending { state: queue::JobState::Done, code: "", sentence: "", summary: "{}" };
        let made = Case { job_id: job.id, problem: problem.into(), ..case(Stage::Probation, "B", 80.0, 10.0, 1.0) };
        queue::finish_job(c, job.id, &ending, &[], &[], 2, |tx| bundles::record_case(tx, bundle, &made)).unwrap();
        job.id
    }

    #[test]
    fn a_series_whose_slices_came_late_is_one_case() {
        let mut c = Connection::open_in_memory().unwrap();
        for m in [queue::MIGRATION, review::MIGRATION, bundles::MIGRATION] {
            c.execute_batch(m).unwrap();
        }
        let Arrival::New(b) = bundles::receive(&mut c, "s", "bundles/s.bundle", 1, "a.bundle", 1).unwrap() else {
            panic!("known")
        };
        let two = Sideload { probation_series: 2, ..settings() };
        let judge = |c: &Connection| code(probation(&two, &bundles::cases(c, b.id, 10).unwrap(), None));
        serve(&mut c, b.id, "1.2", &[1], "");
        serve(&mut c, b.id, "1.2", &[1, 2], "");
        assert_eq!(bundles::cases(&c, b.id, 10).unwrap().iter().map(|k| k.counts).collect::<Vec<_>>(), [false, true]);
        assert_eq!(judge(&c), "go on", "two generations of one series");
        let other = serve(&mut c, b.id, "1.3", &[3], "");
        assert!(judge(&c).starts_with("passed: probation passed: 2 of 2"));
        // Nor is a case lost with the row of its job.
        c.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
        c.execute("DELETE FROM job WHERE id = ?1", [other]).unwrap();
        assert!(judge(&c).starts_with("passed: probation passed: 2 of 2"));
        // What the candidate made no result of stays so, whatever came after.
        serve(&mut c, b.id, "1.4", &[4], "engine");
        serve(&mut c, b.id, "1.4", &[4, 5], "");
        assert!(judge(&c).contains("made no result of a series (engine)"));
    }
}
