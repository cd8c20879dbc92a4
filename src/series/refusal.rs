//! A stated reason for not segmenting a series.

use serde::Serialize;

/// Why a series is not segmented: a stable code for machines, a sentence and a remedy for people. Names no patient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{sentence}. {remedy}.")]
pub struct Refusal {
    /// `SERIES_GAP`, `MIXED_CONTRAST`, `BODY_PART`, ...
    pub code: &'static str,
    /// What is wrong, without the full stop.
    pub sentence: String,
    /// What can be done, without the full stop.
    pub remedy: String,
}

impl Refusal {
    /// A refusal from its three parts.
    pub fn new(code: &'static str, sentence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Refusal { code, sentence: sentence.into(), remedy: remedy.into() }
    }
}
