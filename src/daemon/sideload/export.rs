//! The training host's answer: what this box learnt of its bundles, as a file without patient data that goes back by stick.
//!
//! No UID, no name, no note of a person, no time finer than a day. Cases are in order and have no number.

use std::io::Read;
use std::path::{Path, PathBuf};

use chrono::DateTime;
use serde::{Deserialize, Serialize};

use super::candidate::MAX_CASES;
use crate::store::bundles::{self, Case, Side, Stage, StructureDice};
use crate::store::review::{self, TruthDice};
use crate::store::{Store, StoreError};

/// Format of the file; another number is refused.
const FORMAT: u32 = 1;
/// Largest file that is read, bytes.
pub const MAX_FEEDBACK: u64 = 16 << 20;
/// Most bundles, and most reviews of one adapter.
const MOST: usize = 1000;

/// Why an answer was refused.
#[derive(Debug, thiserror::Error)]
pub enum FeedbackError {
    /// It cannot be read.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        cause: std::io::Error,
    },
    /// It is no answer.
    #[error("{}: no answer of a box: {problem}; write one with `scanside adapters export`", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// What a box says of its bundles.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feedback {
    /// Format of the file.
    pub format: u32,
    /// Version of the program on the box.
    pub scanside: String,
    /// The adapters, oldest first.
    pub adapters: Vec<AdapterFeedback>,
}

/// What a box says of one bundle, or of the adapter that its configuration names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterFeedback {
    /// Name of the release; empty for the configuration's adapter.
    pub name: String,
    /// Its version; 0 for the configuration's adapter.
    pub version: u32,
    /// sha256 of what was signed, hex.
    pub identity: String,
    /// sha256 of the adapter, hex.
    pub adapter_sha256: String,
    /// Where it stands; empty for the configuration's adapter.
    pub state: String,
    /// Stable code of a refusal or a roll-back.
    pub code: String,
    /// Its steps by day.
    pub steps: Vec<DayStep>,
    /// Cases in shadow, in order.
    pub shadow: Vec<CaseFeedback>,
    /// Cases on probation, in order.
    pub probation: Vec<CaseFeedback>,
    /// What reviewers decided on its results, in order.
    pub reviews: Vec<ReviewFeedback>,
}

/// A step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DayStep {
    /// Day, UTC: `2026-05-01`.
    pub day: String,
    /// State.
    pub state: String,
}

/// A case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseFeedback {
    /// Day, UTC.
    pub day: String,
    /// Why there is no result; empty where there is one.
    pub problem: String,
    /// What the candidate made of it.
    pub candidate: Side,
    /// What the active adapter made of it; in shadow.
    pub active: Side,
    /// Agreement of the two; in shadow.
    pub dice: Vec<StructureDice>,
}

/// A reviewer's decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReviewFeedback {
    /// Day of the decision, UTC; of the result while there is none.
    pub day: String,
    /// `accepted`, `rejected` or `open`.
    pub decision: String,
    /// SegEx verdict of the result.
    pub verdict: String,
    /// SegEx score of the result.
    pub score: f64,
    /// Dice against the reviewer's correction, by structure.
    pub dice: Vec<TruthDice>,
}

fn day(ms: i64) -> String {
    DateTime::from_timestamp_millis(ms).map_or_else(String::new, |t| t.format("%Y-%m-%d").to_string())
}

fn cases(all: &[Case], stage: Stage) -> Vec<CaseFeedback> {
    all.iter()
        .filter(|c| c.stage == stage && c.counts)
        .map(|c| CaseFeedback {
            day: day(c.at_ms),
            problem: c.problem.clone(),
            candidate: c.candidate.clone(),
            active: c.active.clone(),
            dice: c.dice.clone(),
        })
        .collect()
}

/// Collects the answer.
///
/// # Errors
/// The database's.
pub fn export(store: &Store) -> Result<Feedback, StoreError> {
    store.with_conn(|c| {
        let reviews = |adapter: &str| -> rusqlite::Result<Vec<ReviewFeedback>> {
            let mut out = Vec::new();
            for r in review::of_adapter(c, adapter, MOST)? {
                out.push(ReviewFeedback {
                    day: day(r.decided_ms.unwrap_or(r.created_ms)),
                    decision: r.state,
                    verdict: r.verdict,
                    score: r.score,
                    dice: review::truths(c, r.job_id)?,
                });
            }
            Ok(out)
        };
        let mut adapters: Vec<AdapterFeedback> = Vec::new();
        for s in bundles::servings(c, MOST)?.into_iter().rev().filter(|s| s.bundle_id.is_none()) {
            if adapters.iter().all(|a| a.adapter_sha256 != s.adapter_sha256) {
                let reviews = reviews(&s.adapter_sha256)?;
                adapters.push(AdapterFeedback {
                    name: String::new(),
                    version: 0,
                    identity: String::new(),
                    adapter_sha256: s.adapter_sha256,
                    state: String::new(),
                    code: String::new(),
                    steps: Vec::new(),
                    shadow: Vec::new(),
                    probation: Vec::new(),
                    reviews,
                });
            }
        }
        // What was never verified has a name that nobody vouches for.
        for b in bundles::list(c, MOST)?.into_iter().rev().filter(|b| !b.identity.is_empty()) {
            let all = bundles::cases(c, b.id, MAX_CASES)?;
            adapters.push(AdapterFeedback {
                steps: bundles::steps(c, b.id)?
                    .into_iter()
                    .map(|s| DayStep { day: day(s.at_ms), state: s.state })
                    .collect(),
                shadow: cases(&all, Stage::Shadow),
                probation: cases(&all, Stage::Probation),
                reviews: reviews(&b.adapter_sha256)?,
                state: b.state.word().to_string(),
                name: b.name,
                version: b.version,
                identity: b.identity,
                adapter_sha256: b.adapter_sha256,
                code: b.code,
            });
        }
        Ok(Feedback { format: FORMAT, scanside: env!("CARGO_PKG_VERSION").into(), adapters })
    })
}

impl Feedback {
    /// Reads an answer.
    ///
    /// # Errors
    /// [`FeedbackError`]: missing, too large, of another format.
    pub fn load(path: &Path) -> Result<Feedback, FeedbackError> {
        let io = |cause| FeedbackError::Io { path: path.into(), cause };
        let format = |problem: String| FeedbackError::Format { path: path.into(), problem };
        let mut bytes = Vec::new();
        std::fs::File::open(path).map_err(io)?.take(MAX_FEEDBACK + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > MAX_FEEDBACK {
            return Err(format(format!("larger than {} MiB", MAX_FEEDBACK >> 20)));
        }
        let read: Feedback = serde_json::from_slice(&bytes).map_err(|e| format(e.to_string()))?;
        match read.format {
            FORMAT => Ok(read),
            other => Err(format(format!("it is of format {other}, this program reads {FORMAT}"))),
        }
    }

    /// A section of a report, Markdown; `adapter` (sha256, hex) picks one adapter.
    pub fn markdown(&self, adapter: Option<&str>) -> String {
        let mut out = String::from("## From the box\n\n");
        let chosen: Vec<&AdapterFeedback> =
            self.adapters.iter().filter(|a| adapter.is_none_or(|sha| sha == a.adapter_sha256)).collect();
        if chosen.is_empty() {
            out.push_str("The box says nothing of this adapter.\n");
            return out;
        }
        out.push_str("| adapter | state | shadow: series | Dice to active | score | active's | probation: series | A to D | no result | accepted | rejected | open | Dice to corrections |\n");
        out.push_str("|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
        let show = |v: Option<f64>, digits: usize| v.map_or("-".to_string(), |v| format!("{v:.digits$}"));
        for a in chosen {
            let name = if a.name.is_empty() {
                format!("the configuration's ({:.12})", a.adapter_sha256)
            } else {
                format!("{} {}", a.name, a.version)
            };
            let state = match (a.state.as_str(), a.code.as_str()) {
                ("", _) => "-".to_string(),
                (state, "") => state.to_string(),
                (state, code) => format!("{state} [{code}]"),
            };
            let dice = mean(a.shadow.iter().flat_map(|c| c.dice.iter().map(|d| d.dice)));
            let verdicts = ["A", "B", "C", "D"]
                .map(|v| a.probation.iter().filter(|c| c.candidate.verdict == v).count().to_string());
            let failed = a.shadow.iter().chain(&a.probation).filter(|c| !c.problem.is_empty()).count();
            let decided = |word: &str| a.reviews.iter().filter(|r| r.decision == word).count();
            out.push_str(&format!(
                "| {name} | {state} | {} | {} | {} | {} | {} | {} | {failed} | {} | {} | {} | {} |\n",
                a.shadow.len(),
                show(dice, 3),
                show(mean(a.shadow.iter().filter_map(|c| c.candidate.score)), 0),
                show(mean(a.shadow.iter().filter_map(|c| c.active.score)), 0),
                a.probation.len(),
                verdicts.join(" "),
                decided("accepted"),
                decided("rejected"),
                decided("open"),
                show(mean(a.reviews.iter().flat_map(|r| r.dice.iter().map(|d| d.dice))), 3),
            ));
        }
        out
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0usize), |(s, n), v| (s + v, n + 1));
    (n > 0).then(|| sum / n as f64)
}
