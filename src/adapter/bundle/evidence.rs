//! What was measured of an adapter before its release: figures over volumes, never of one.

use serde::{Deserialize, Serialize};

/// Most facts or rows.
const MOST: usize = 512;

/// Mean and spread over legs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvidenceFigure {
    /// Mean.
    pub mean: f64,
    /// Standard deviation.
    pub sd: f64,
    /// Worst value: the least Dice, the largest distance where known, else none.
    pub min: f64,
    /// Legs behind it.
    pub n: usize,
}

/// One structure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvidenceRow {
    /// Structure key.
    pub structure: String,
    /// Legs that have it.
    pub legs: usize,
    /// Legs in which only the truth or only the mask has it.
    pub missing: usize,
    /// Dice.
    pub dice: Option<EvidenceFigure>,
    /// HD95, mm.
    pub hd95_mm: Option<EvidenceFigure>,
    /// SegEx's verdicts A, B, C, D.
    pub verdicts: [usize; 4],
}

/// The automatic results of `scanside evaluate`, aggregated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// sha256 of the evaluation's JSON, hex.
    pub source_sha256: String,
    /// Facts in order, as the evaluation states them.
    pub facts: Vec<(String, String)>,
    /// The structures.
    pub rows: Vec<EvidenceRow>,
}

impl Evidence {
    /// Mean Dice over structures; none without a figure.
    pub fn mean_dice(&self) -> Option<f64> {
        let all: Vec<f64> = self.rows.iter().filter_map(|r| r.dice.map(|d| d.mean)).collect();
        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
    }

    /// The file's bytes.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }

    /// Reads the file.
    ///
    /// # Errors
    /// A sentence about what is malformed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let read: Evidence = serde_json::from_slice(bytes).map_err(|e| format!("evidence: {e}"))?;
        let word = |w: &str| w.chars().count() <= 500 && !w.chars().any(char::is_control);
        let facts = read.facts.iter().all(|(k, v)| word(k) && word(v)) && read.rows.iter().all(|r| word(&r.structure));
        if read.facts.len() > MOST || read.rows.len() > MOST || !facts {
            return Err("evidence: more or longer facts than any evaluation has".into());
        }
        Ok(read)
    }
}
