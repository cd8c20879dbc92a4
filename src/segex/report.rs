//! What SegEx says: grades per criterion and structure, a score and a verdict.

use serde::{Deserialize, Serialize};

use crate::terms::{Side, Structure};

/// The eight criteria.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Criterion {
    /// C1: the contour sits on the image's edge.
    Boundary,
    /// C2: nothing of the structure is missing.
    Completeness,
    /// C3: nothing foreign is included.
    OverSegmentation,
    /// C4: size, place and shape are plausible.
    Anatomy,
    /// C5: one piece without holes.
    Topology,
    /// C6: neighbouring slices agree.
    BetweenSlices,
    /// C7: the result does not change under augmentation and prompt jitter.
    Stability,
    /// C8: how much a reader would have to correct.
    EditBurden,
}

impl Criterion {
    /// All criteria, C1 to C8.
    pub const ALL: [Criterion; 8] = [
        Criterion::Boundary,
        Criterion::Completeness,
        Criterion::OverSegmentation,
        Criterion::Anatomy,
        Criterion::Topology,
        Criterion::BetweenSlices,
        Criterion::Stability,
        Criterion::EditBurden,
    ];
    /// `C1` .. `C8`.
    pub fn id(self) -> &'static str {
        ["C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8"][self as usize]
    }
    /// A short name.
    pub fn name(self) -> &'static str {
        [
            "Boundary",
            "Completeness",
            "Over-segmentation",
            "Anatomy",
            "Topology",
            "Between slices",
            "Stability",
            "Edit burden",
        ][self as usize]
    }
    /// Weight in the score.
    pub fn weight(self) -> f64 {
        match self {
            Criterion::Boundary | Criterion::EditBurden => 2.0,
            Criterion::Stability => 0.5,
            _ => 1.0,
        }
    }
}

/// One criterion's grade for one structure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grade {
    /// Which criterion.
    pub criterion: Criterion,
    /// 1 (worst) to 5 (best); none where it could not be measured.
    pub grade: Option<u8>,
    /// The measurement behind the grade.
    pub value: f64,
    /// What `value` is, in words with its unit.
    pub measure: String,
    /// Slices (0-based, in the volume) that pulled the grade down, worst first.
    pub slices: Vec<usize>,
}

/// What a reader should do with the mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Verdict {
    /// Use as is.
    A,
    /// Minor edits.
    B,
    /// Major edits.
    C,
    /// Redo.
    D,
}

impl Verdict {
    /// All verdicts, best first.
    pub const ALL: [Verdict; 4] = [Verdict::A, Verdict::B, Verdict::C, Verdict::D];

    /// The verdict of a score, before caps: A from 85, B from 70, C from 45.
    pub fn of(score: f64) -> Self {
        match score {
            s if s >= 85.0 => Verdict::A,
            s if s >= 70.0 => Verdict::B,
            s if s >= 45.0 => Verdict::C,
            _ => Verdict::D,
        }
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Verdict::A => "use as is",
            Verdict::B => "minor edits",
            Verdict::C => "major edits",
            Verdict::D => "redo",
        }
    }
}

/// SegEx of one structure on one side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StructureReport {
    /// The structure.
    pub structure: Structure,
    /// Its side, where known.
    pub side: Option<Side>,
    /// Label in the label map (1-based), equal to the DICOM segment number.
    pub label: u8,
    /// Volume, cubic millimetres.
    pub volume_mm3: f64,
    /// C1 to C8.
    pub grades: Vec<Grade>,
    /// 0 to 100.
    pub score: f64,
    /// The verdict.
    pub verdict: Verdict,
    /// Sentences that a reader should see (empty mask, cap applied, ...).
    pub remarks: Vec<String>,
}

impl StructureReport {
    /// The grade of one criterion, where it was measured.
    pub fn grade(&self, criterion: Criterion) -> Option<u8> {
        self.grades.iter().find(|g| g.criterion == criterion)?.grade
    }
}

/// SegEx of a whole result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Who graded: `device`, the name of a language model, or that of a person.
    pub observer: String,
    /// Whether grades were calibrated against labelled slices.
    pub calibrated: bool,
    /// Whether ground truth was used.
    pub with_ground_truth: bool,
    /// One per segment.
    pub structures: Vec<StructureReport>,
    /// Mean score over structures.
    pub score: f64,
    /// The worst structure's verdict.
    pub verdict: Verdict,
}

impl Report {
    /// The report of an observer: mean score and worst verdict over its structures.
    pub fn new(observer: String, calibrated: bool, with_ground_truth: bool, structures: Vec<StructureReport>) -> Self {
        let n = structures.len().max(1) as f64;
        Report {
            observer,
            calibrated,
            with_ground_truth,
            score: structures.iter().map(|s| s.score).sum::<f64>() / n,
            verdict: structures.iter().map(|s| s.verdict).max().unwrap_or(Verdict::D),
            structures,
        }
    }
}
