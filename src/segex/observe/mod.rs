//! Observers other than the device: what they see, how they answer, and the file that holds all observers' reports.

mod form;
mod language_model;

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::score::Graded;
use super::{Criterion, Report, StructureReport};
use crate::image::{Contours, LabelMap, Rgb, Tile, Volume, sheet};
use crate::terms::{Side, Structure};

pub use form::{FormError, form_text, read_form};
pub use language_model::{LanguageModel, ObserverError};

/// Version of the report file.
pub const FILE_VERSION: u32 = 1;
/// Largest report file or form that is read, bytes.
const MAX_BYTES: u64 = 16 << 20;
/// Most slices in a picture; of more, evenly spread ones are shown.
const MAX_TILES: usize = 24;
/// Longest remark that is kept, characters.
pub(super) const MAX_REMARK: usize = 500;

/// A structure that an observer is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    /// The structure.
    pub structure: Structure,
    /// Its side, where known.
    pub side: Option<Side>,
    /// Its label in the label map.
    pub label: u8,
    /// Volume of its mask, cubic millimetres.
    pub volume_mm3: f64,
    /// Slices of the volume.
    pub slices: usize,
}

impl Shown {
    /// `VL-right`.
    pub fn token(&self) -> String {
        match self.side {
            Some(side) => format!("{}-{}", self.structure.key, side.word()),
            None => self.structure.key.clone(),
        }
    }
}

/// What an observer says of one structure.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Opinion {
    /// C1 to C8, 1 to 5; none where not graded.
    pub grades: [Option<u8>; 8],
    /// Slices (from 0) that pulled each grade down.
    pub slices: [Vec<usize>; 8],
    /// A sentence.
    pub remark: String,
}

impl Opinion {
    /// As a structure's report: the same score, caps and verdict as the device's.
    pub fn report(&self, shown: &Shown, how: &str) -> StructureReport {
        let grades = Criterion::ALL
            .iter()
            .enumerate()
            .map(|(k, &criterion)| super::Grade {
                criterion,
                grade: self.grades[k],
                value: self.grades[k].map_or(0.0, f64::from),
                measure: how.into(),
                slices: self.slices[k].clone(),
            })
            .collect();
        let what =
            Graded { structure: &shown.structure, side: shown.side, label: shown.label, volume_mm3: shown.volume_mm3 };
        let remark = self.remark.trim();
        what.report(grades, None, if remark.is_empty() { vec![] } else { vec![remark.to_string()] })
    }
}

/// What an observer sees of one structure: pixels and the mask's outline on the slices that have it and the one beyond either
/// end, each with its number (from 1). Nothing else: no name, no header, no side marker.
pub fn picture(volume: &Volume, labels: &LabelMap, label: u8) -> Rgb {
    let n = labels.geometry.plane();
    let has: Vec<bool> = labels.data.chunks(n.max(1)).map(|p| p.contains(&label)).collect();
    let (Some(first), Some(last)) = (has.iter().position(|h| *h), has.iter().rposition(|h| *h)) else {
        return Rgb::black(8, 8);
    };
    let from = first.saturating_sub(1);
    let count = (last + 2).min(has.len()) - from;
    let shown = count.min(MAX_TILES);
    let tiles: Vec<Tile> = (0..shown)
        .map(|i| from + if shown > 1 { i * (count - 1) / (shown - 1) } else { 0 })
        .map(|slice| Tile {
            picture: Contours { volume, truth: labels, found: labels, label, slice }.picture(),
            caption: vec![format!("slice {}", slice + 1)],
        })
        .collect();
    sheet(&tiles, 6.min(shown), &[])
}

/// All observers' reports of one result, as a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportFile {
    /// [`FILE_VERSION`].
    pub segex: u32,
    /// What tells cases apart; no patient data.
    pub case: String,
    /// One report for each observer.
    pub reports: Vec<Report>,
    /// What went wrong with an observer that was asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// Why a report file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ReportFileError {
    /// The file could not be read.
    #[error("report {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The content is not a report file.
    #[error("report {}: {problem}; give a file that `scanside segex` or `scanside segex read-form` wrote", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl ReportFile {
    /// Reads a report file.
    ///
    /// # Errors
    /// [`ReportFileError`].
    pub fn load(path: &Path) -> Result<Self, ReportFileError> {
        let bytes = read_bounded(path).map_err(|source| ReportFileError::Io { path: path.into(), source })?;
        let format = |problem: String| ReportFileError::Format { path: path.into(), problem };
        let file: ReportFile = serde_json::from_slice(&bytes).map_err(|e| format(e.to_string()))?;
        if file.segex != FILE_VERSION {
            return Err(format(format!("is of version {}, this program reads {FILE_VERSION}", file.segex)));
        }
        let wrong = |g: &super::Grade| g.grade.is_some_and(|g| !(1..=5).contains(&g));
        if file.reports.iter().flat_map(|r| &r.structures).flat_map(|s| &s.grades).any(wrong) {
            return Err(format("holds a grade outside 1 to 5".into()));
        }
        Ok(file)
    }
}

fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(std::io::Error::other(format!("larger than {} MiB", MAX_BYTES >> 20)));
    }
    Ok(bytes)
}

/// Text from outside: printable, on one line, at most `most` characters.
pub(super) fn tame(text: &str, most: usize) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(most).collect();
    text.trim().to_string()
}
