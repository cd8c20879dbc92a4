//! The site's gate: in the pilot results wait for a person or go to the researcher alone, until the site's bar is met.

use rusqlite::Connection;
use serde::Serialize;

use crate::config::{self, Archive, GateMode, PilotTo, Promote, Verdict};
use crate::store::queue::Route;
use crate::store::review;

/// Where the site stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Results are for review.
    Pilot,
    /// Results go to every archive.
    Production,
}

/// Where the gate stands for one adapter.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gate {
    /// What holds now.
    pub stage: Stage,
    /// What the configuration says.
    pub configured: GateMode,
    /// Cases that the bar asks for.
    pub wanted: usize,
    /// Newest cases on which a person decided, at most `wanted`.
    pub decided: usize,
    /// Of these, accepted and at or above the least score and verdict.
    pub passed: usize,
    /// Of these, compared with a person's correction.
    pub with_truth: usize,
    /// Mean Dice of those.
    pub dice: Option<f64>,
    /// Whether the bar is met.
    pub met: bool,
    /// When the adapter was promoted by itself, Unix milliseconds.
    pub promoted_ms: Option<i64>,
    /// Results that wait for a person.
    pub open: i64,
    /// All that in words, with the next step.
    pub sentence: String,
}

impl Gate {
    /// Reads where the gate stands for an adapter.
    ///
    /// # Errors
    /// The database's.
    pub fn read(conn: &Connection, settings: &config::Gate, adapter: &str) -> rusqlite::Result<Gate> {
        let cases = review::decided(conn, adapter, settings.accept_cases)?;
        let passes = |r: &review::Review| {
            r.state == "accepted" && r.score >= settings.least_score && verdict(&r.verdict) <= settings.least_verdict
        };
        let passed = cases.iter().filter(|r| passes(r)).count();
        let dice: Vec<f64> = cases.iter().filter_map(|r| r.dice).collect();
        let mean = (!dice.is_empty()).then(|| dice.iter().sum::<f64>() / dice.len() as f64);
        let share = passed as f64 / settings.accept_cases as f64;
        let cases_met = cases.len() >= settings.accept_cases && share >= settings.accept_share;
        let dice_met = settings.least_dice <= 0.0
            || (dice.len() >= settings.dice_cases && mean.is_some_and(|m| m >= settings.least_dice));
        let promotion = review::promotion(conn, adapter)?;
        let stage =
            if settings.mode == GateMode::Production || promotion.is_some() { Stage::Production } else { Stage::Pilot };
        let mut gate = Gate {
            stage,
            configured: settings.mode,
            wanted: settings.accept_cases,
            decided: cases.len(),
            passed,
            with_truth: dice.len(),
            dice: mean,
            met: cases_met && dice_met,
            promoted_ms: promotion.map(|(ms, _)| ms),
            open: review::open_count(conn)?,
            sentence: String::new(),
        };
        gate.sentence = gate.words(settings);
        Ok(gate)
    }

    fn words(&self, s: &config::Gate) -> String {
        let counted = format!("{} of {} cases decided, {} passed", self.decided, self.wanted, self.passed);
        let dice = match (s.least_dice > 0.0, self.dice) {
            (false, None) => String::new(),
            (asked, mean) => {
                let mean = mean.map_or("none yet".to_string(), |m| format!("{m:.3}"));
                let bar = if asked {
                    format!(" of {:.3} asked for over {} cases", s.least_dice, s.dice_cases)
                } else {
                    String::new()
                };
                format!(", Dice {mean} over {} corrected{bar}", self.with_truth)
            }
        };
        let open = if self.open > 0 {
            format!("; {} wait for review (scanside review list)", self.open)
        } else {
            String::new()
        };
        let (stage, next) = match (self.stage, self.configured) {
            (Stage::Production, GateMode::Production) => {
                return format!("production{open}");
            }
            (Stage::Production, GateMode::Pilot) => {
                ("production, promoted from the pilot as the bar was met".to_string(), String::new())
            }
            (Stage::Pilot, _) => {
                let to = match s.pilot_to {
                    PilotTo::Hold => "results stay on this box",
                    PilotTo::Researcher => "results go to the researcher's archive alone",
                };
                let next = if self.met { "; BAR MET: set gate.mode = \"production\"" } else { "; bar not met yet" };
                (format!("pilot, {to}"), next.to_string())
            }
        };
        format!("{stage}; {counted}{dice}{next}{open}")
    }
}

/// A verdict from its letter; anything else counts as the worst.
pub(super) fn verdict(word: &str) -> Verdict {
    match word {
        "A" => Verdict::A,
        "B" => Verdict::B,
        "C" => Verdict::C,
        _ => Verdict::D,
    }
}

/// Reads the gate and, where the configuration says so, promotes the adapter once its bar is met.
///
/// # Errors
/// The database's.
pub fn settle(conn: &Connection, settings: &config::Gate, adapter: &str, now_ms: i64) -> rusqlite::Result<Gate> {
    let gate = Gate::read(conn, settings, adapter)?;
    if gate.stage == Stage::Production || !gate.met || settings.promote == Promote::Manual {
        return Ok(gate);
    }
    if review::promote(conn, adapter, &gate.sentence, now_ms)? {
        log::warn!(
            "the site's bar is met ({} of {} cases): results go to production from now on",
            gate.passed,
            gate.wanted
        );
    }
    Gate::read(conn, settings, adapter)
}

/// Where the objects of a result go.
pub fn routes(archives: &[Archive], stage: Stage, settings: &config::Gate) -> Vec<Route> {
    let hold = |a: &Archive| stage == Stage::Pilot && !(a.researcher && settings.pilot_to == PilotTo::Researcher);
    archives.iter().map(|a| Route { archive: super::archive_key(a), hold: hold(a) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::outbox;
    use crate::store::queue::{self, Ending, JobState, Output};
    use crate::store::review::{Decision, TruthDice, Waiting};

    fn db() -> Connection {
        let c = Connection::open_in_memory().unwrap();
        c.execute_batch(queue::MIGRATION).unwrap();
        c.execute_batch(review::MIGRATION).unwrap();
        c
    }

    fn settings() -> config::Gate {
        config::Gate { mode: GateMode::Pilot, accept_cases: 4, accept_share: 0.75, ..config::Gate::default() }
    }

    /// Serves a case that waits for review, and decides on it.
    fn case(c: &mut Connection, n: i64, score: f64, accepted: bool) -> i64 {
        let job = queue::open_job(c, &format!("1.{n}"), &[n], "quiet", n, n).unwrap().unwrap();
        let waiting = Waiting { adapter: "a".into(), pilot: true, reason: "pilot".into(), verdict: "B".into(), score };
        let ending = Ending { state: JobState::Done, code: "", sentence: "", summary: "{}" };
        let out = Output { kind: "seg".into(), sop_instance_uid: format!("2.{n}"), path: "x".into(), held: false };
        let routes =
            [Route { archive: "PACS@h:1".into(), hold: true }, Route { archive: "LAB@h:2".into(), hold: false }];
        queue::finish_job(c, job.id, &ending, &[out], &routes, n, |tx| review::wait(tx, job.id, &waiting, n)).unwrap();
        let d = Decision { accepted, by: "MM", note: "", release: false };
        review::decide(c, job.id, &d, 100 + n).unwrap();
        job.id
    }

    #[test]
    fn the_bar_is_met_over_the_newest_cases_and_promotion_is_explicit() {
        let mut c = db();
        let s = settings();
        assert!(!Gate::read(&c, &s, "a").unwrap().met);
        for (n, (score, ok)) in [(90.0, false), (60.0, true), (88.0, true), (91.0, true)].into_iter().enumerate() {
            case(&mut c, n as i64, score, ok);
        }
        let g = Gate::read(&c, &s, "a").unwrap();
        assert_eq!((g.decided, g.passed, g.met, g.stage), (4, 2, false, Stage::Pilot));
        // The first, rejected, falls out of the window.
        case(&mut c, 5, 80.0, true);
        let g = settle(&c, &s, "a", 1).unwrap();
        assert_eq!((g.decided, g.passed, g.met, g.stage), (4, 3, true, Stage::Pilot));
        assert!(g.sentence.contains("BAR MET: set gate.mode"), "{}", g.sentence);
        assert_eq!(Gate::read(&c, &s, "another").unwrap().decided, 0);
        let automatic = config::Gate { promote: Promote::Automatic, ..settings() };
        let g = settle(&c, &automatic, "a", 2).unwrap();
        assert_eq!((g.stage, g.promoted_ms), (Stage::Production, Some(2)));
        // A later rejection does not throw the site back; another adapter begins its own pilot.
        case(&mut c, 6, 10.0, false);
        case(&mut c, 7, 10.0, false);
        assert_eq!(settle(&c, &automatic, "a", 3).unwrap().stage, Stage::Production);
        assert_eq!(settle(&c, &automatic, "b", 3).unwrap().stage, Stage::Pilot);
    }

    #[test]
    fn a_dice_bar_asks_for_corrections() {
        let mut c = db();
        let s = config::Gate { accept_cases: 2, least_dice: 0.9, dice_cases: 2, ..settings() };
        let jobs = [case(&mut c, 1, 90.0, true), case(&mut c, 2, 90.0, true)];
        assert!(!Gate::read(&c, &s, "a").unwrap().met);
        let add = |c: &mut Connection, job: i64, dice: f64| {
            let d = [("VL", dice), ("VM", dice + 0.02)].map(|(k, dice)| TruthDice {
                structure: k.into(),
                side: "right".into(),
                dice,
            });
            review::add_truth(c, job, &d, "MM", 1).unwrap();
        };
        add(&mut c, jobs[0], 0.94);
        assert!(!Gate::read(&c, &s, "a").unwrap().met, "one case is not two");
        add(&mut c, jobs[1], 0.80);
        assert!(!Gate::read(&c, &s, "a").unwrap().met);
        add(&mut c, jobs[1], 0.90);
        let g = Gate::read(&c, &s, "a").unwrap();
        assert!(g.met && (g.dice.unwrap() - 0.93).abs() < 1e-9 && g.with_truth == 2, "{g:?}");
    }

    #[test]
    fn what_is_held_is_released_or_stays_and_a_decision_can_be_changed() {
        let mut c = db();
        let state = |c: &Connection, job: i64| -> Vec<(String, String)> {
            outbox::deliveries(c, job).unwrap().into_iter().map(|d| (d.archive, d.state)).collect()
        };
        let pair = |archive: &str, state: &str| (archive.to_string(), state.to_string());
        let (held, queued) = (
            [pair("PACS@h:1", "held"), pair("LAB@h:2", "pending")],
            ["PACS@h:1", "LAB@h:2"].map(|a| pair(a, "pending")),
        );
        let accept = |release| Decision { accepted: true, by: "MM", note: "", release };
        let rejected = case(&mut c, 1, 90.0, false);
        assert_eq!(state(&c, rejected), held);
        assert_eq!(review::decide(&mut c, rejected, &accept(true), 200).unwrap(), 1);
        assert_eq!(state(&c, rejected), queued);
        let accepted = case(&mut c, 2, 90.0, true);
        assert_eq!(state(&c, accepted), held, "in the pilot, not released");
        assert_eq!(review::decide(&mut c, accepted, &accept(true), 200).unwrap(), 1);
        assert_eq!(state(&c, accepted), queued);
        let job = queue::open_job(&mut c, "1.9", &[9], "quiet", 9, 9).unwrap().unwrap();
        let ending = Ending { state: JobState::Done, code: "", sentence: "", summary: "{}" };
        let out = Output { kind: "seg".into(), sop_instance_uid: "2.9".into(), path: "x".into(), held: true };
        let routes = [Route { archive: "PACS@h:1".into(), hold: false }];
        let waiting =
            Waiting { adapter: "a".into(), pilot: false, reason: "bar".into(), verdict: "C".into(), score: 50.0 };
        queue::finish_job(&mut c, job.id, &ending, &[out], &routes, 9, |tx| review::wait(tx, job.id, &waiting, 9))
            .unwrap();
        assert_eq!(state(&c, job.id)[0].1, "held");
        assert_eq!(review::list(&c, true, 9).unwrap().len(), 1);
        let d = Decision { accepted: true, by: "MM", note: "fine", release: true };
        assert_eq!(review::decide(&mut c, job.id, &d, 20).unwrap(), 1);
        assert_eq!(state(&c, job.id)[0].1, "pending");
        let r = review::get(&c, job.id).unwrap().unwrap();
        assert_eq!((r.state.as_str(), r.decided_by.as_str(), r.note.as_str()), ("accepted", "MM", "fine"));
        // Superseded results wait for nobody.
        queue::open_job(&mut c, "1.9", &[9, 10], "late", 10, 10).unwrap();
        assert!(review::get(&c, job.id).unwrap().is_none());
    }

    #[test]
    fn routes_by_stage() {
        let archive = |ae: &str, researcher| Archive { ae_title: ae.into(), address: "h:1".into(), researcher };
        let all = [archive("PACS", false), archive("LAB", true)];
        let held = |stage, s: &config::Gate| routes(&all, stage, s).iter().map(|r| r.hold).collect::<Vec<_>>();
        let hold = settings();
        let lab = config::Gate { pilot_to: PilotTo::Researcher, ..settings() };
        assert_eq!(held(Stage::Pilot, &hold), [true, true]);
        assert_eq!(held(Stage::Pilot, &lab), [true, false]);
        assert_eq!(held(Stage::Production, &hold), [false, false]);
    }
}
