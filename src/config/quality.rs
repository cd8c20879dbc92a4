//! Settings of what results are worth: the site's gate, grades, drift.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Whether a site's results go out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GateMode {
    /// Results are for review until the bar is met.
    Pilot,
    /// Results go to every archive.
    #[default]
    Production,
}

/// Where results go in the pilot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PilotTo {
    /// Nowhere: they wait on this box.
    #[default]
    Hold,
    /// To archives with `researcher = true`.
    Researcher,
}

/// What happens when the bar is met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Promote {
    /// Status says so; a person sets `gate.mode`.
    #[default]
    Manual,
    /// Results go to production from then on, for this adapter.
    Automatic,
}

/// The site's gate between pilot and production.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gate {
    /// Pilot or production.
    pub mode: GateMode,
    /// Where results go in the pilot.
    pub pilot_to: PilotTo,
    /// The newest so many cases on which a person decided are judged.
    pub accept_cases: usize,
    /// Share of them that must pass: accepted, and at or above the two bars below.
    pub accept_share: f64,
    /// Least SegEx verdict of a case that passes.
    pub least_verdict: Verdict,
    /// Least SegEx score of a case that passes.
    pub least_score: f64,
    /// Least mean Dice against corrected segmentations; 0 asks for none.
    pub least_dice: f64,
    /// So many of the cases must have been corrected, where a Dice is asked for.
    pub dice_cases: usize,
    /// What happens when the bar is met.
    pub promote: Promote,
}

/// A SegEx verdict as the settings name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Verdict {
    /// Use as is.
    A,
    /// Minor edits.
    #[default]
    B,
    /// Major edits.
    C,
    /// Redo.
    D,
}

impl Default for Gate {
    fn default() -> Self {
        Gate {
            mode: GateMode::Production,
            pilot_to: PilotTo::Hold,
            accept_cases: 20,
            accept_share: 0.9,
            least_verdict: Verdict::B,
            least_score: 70.0,
            least_dice: 0.0,
            dice_cases: 5,
            promote: Promote::Manual,
        }
    }
}

/// Quality grades.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Segex {
    /// A language model as an observer beside the device.
    pub observer: Observer,
}

/// A language model that `scanside segex --language-model` asks; off while `url` or `model` is empty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Observer {
    /// Base of an OpenAI-compatible chat interface on the site's own network: `http://10.0.0.7:8000/v1`.
    pub url: String,
    /// Name of the model there; it must take pictures.
    pub model: String,
    /// It is given up after this long, for each structure; seconds.
    pub timeout_seconds: u64,
    /// File with the server's key; empty: none is sent.
    pub key_file: PathBuf,
    /// Send pictures to addresses outside private networks.
    pub allow_public: bool,
}

impl Default for Observer {
    fn default() -> Self {
        Observer {
            url: String::new(),
            model: String::new(),
            timeout_seconds: 120,
            key_file: PathBuf::new(),
            allow_public: false,
        }
    }
}

/// Alerts on drift.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Drift {
    /// Whether served cases are held against the calibration set.
    pub enabled: bool,
    /// Newest cases whose median counts.
    pub window: usize,
    /// No alert over fewer cases.
    pub least_cases: usize,
    /// Standard errors from the calibration set at which an alert begins.
    pub z: f64,
}

impl Default for Drift {
    fn default() -> Self {
        Drift { enabled: true, window: 20, least_cases: 8, z: 3.0 }
    }
}
