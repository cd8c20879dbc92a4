//! The result file of one run.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plan::{Kind, RunKey};
use crate::evaluate::Table;
use crate::train::TrainSettings;

/// Why a result file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("result {}: {problem}; remove it to run it again", path.display())]
pub struct RecordError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub problem: String,
}

/// What a run leaves: settings, cost, and figures of numbered cases. No name of a subject.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Which run.
    #[serde(flatten)]
    pub key: RunKey,
    /// What was trained.
    pub kind: Kind,
    /// What trained and evaluated it: `cpu`, or a GPU.
    #[serde(default = "cpu")]
    pub device: String,
    /// Seed of the training.
    pub seed: u64,
    /// Commit of the program, as it was told.
    pub commit: String,
    /// The settings in full.
    pub settings: TrainSettings,
    /// sha256 of the settings.
    pub settings_sha256: String,
    /// Wall seconds of training, pseudo-labels included, on `threads` threads.
    pub train_seconds: f64,
    /// Threads of the matrix products.
    pub threads: usize,
    /// Peak resident memory of the process, MiB.
    pub peak_mib: f64,
    /// Trained values.
    pub parameters: usize,
    /// The same as a share of the base's values.
    pub share: f64,
    /// Pseudo-labelled slices used.
    pub pseudo: usize,
    /// The figures.
    pub table: Table,
}

/// Results from before there was a choice.
fn cpu() -> String {
    "cpu".into()
}

impl Record {
    /// Reads one.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn load(path: &Path) -> Result<Self, RecordError> {
        let fail = |problem: String| RecordError { path: path.into(), problem };
        let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
        serde_json::from_str(&text).map_err(|e| fail(e.to_string()))
    }

    /// Writes it beside its place and renames it there.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn save(&self, path: &Path) -> Result<(), RecordError> {
        let fail = |problem: String| RecordError { path: path.into(), problem };
        let text = serde_json::to_string(self).map_err(|e| fail(e.to_string()))?;
        let part = path.with_added_extension("part");
        std::fs::write(&part, text + "\n").map_err(|e| fail(e.to_string()))?;
        std::fs::rename(&part, path).map_err(|e| fail(e.to_string()))
    }
}

/// All result files of a folder, by name.
///
/// # Errors
/// [`RecordError`] of the first that cannot be read.
pub fn records(folder: &Path) -> Result<Vec<Record>, RecordError> {
    let fail = |e: std::io::Error| RecordError { path: folder.into(), problem: e.to_string() };
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|e| e == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    paths.iter().map(|p| Record::load(p)).collect()
}
