//! The measurements without ground truth as a list of numbers, for calibration.

use serde::{Deserialize, Serialize};

/// One measurement; what it is and where it is taken says [`super::measure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// C1: gradient along the contour over the leg's edge strength.
    Edge,
    /// C1: the same over the strongest edge within four pixels.
    RelativeEdge,
    /// C1: width of the soft band, mm.
    SoftBand,
    /// C2: pixels that an augmented pass adds, over the mask.
    Added,
    /// C3: pixels that not every pass keeps, over the mask.
    Dropped,
    /// C3: share of outlying intensities.
    Outliers,
    /// C3: share that another segment claims.
    Overlap,
    /// C4: Mahalanobis distance from the labelled slices' shapes.
    Anatomy,
    /// C5: share outside the largest piece plus share of holes.
    Topology,
    /// C6: loss of overlap between neighbouring slices.
    NeighbourLoss,
    /// C6: largest jump of area.
    AreaJump,
    /// C6: largest shift of the centroid, mm.
    Shift,
    /// C6: missing inner slices.
    Missing,
    /// C7: agreement of the passes.
    Agreement,
    /// C7: the decoder's own estimate of its IoU.
    Iou,
    /// C7: one less the mean entropy.
    Certainty,
    /// C2: share of the shell outside that looks like the structure and that no label claims.
    Unclaimed,
    /// C3: share of the rim inside that does not look like the structure.
    Foreign,
    /// C5: share of the mask that smoothing changes.
    Rough,
    /// C1: step of intensity across the contour, in robust deviations of the structure.
    Step,
    /// C1: the relative edge on the slice where it is least.
    WorstEdge,
    /// C4: distance from the labelled slices' shapes on the slice where it is largest.
    WorstAnatomy,
    /// C6: loss of overlap between the two neighbours where it is largest.
    WorstLoss,
    /// Dice with a second result of the same images.
    SecondDice,
    /// Surface Dice at 2 mm with it.
    SecondSurface,
    /// The same on the slice where it is least.
    WorstSecond,
}

/// Number of measurements.
pub const FEATURE_COUNT: usize = 26;

/// Measurements of one mask, in the order of [`Feature::ALL`]; none where it could not be taken.
pub type Features = [Option<f64>; FEATURE_COUNT];

impl Feature {
    /// All of them.
    pub const ALL: [Feature; FEATURE_COUNT] = [
        Feature::Edge,
        Feature::RelativeEdge,
        Feature::SoftBand,
        Feature::Added,
        Feature::Dropped,
        Feature::Outliers,
        Feature::Overlap,
        Feature::Anatomy,
        Feature::Topology,
        Feature::NeighbourLoss,
        Feature::AreaJump,
        Feature::Shift,
        Feature::Missing,
        Feature::Agreement,
        Feature::Iou,
        Feature::Certainty,
        Feature::Unclaimed,
        Feature::Foreign,
        Feature::Rough,
        Feature::Step,
        Feature::WorstEdge,
        Feature::WorstAnatomy,
        Feature::WorstLoss,
        Feature::SecondDice,
        Feature::SecondSurface,
        Feature::WorstSecond,
    ];

    /// The value of this measurement as a calibration takes it: shares by their root and lengths by their logarithm, so that
    /// one gross mask does not outweigh all others.
    pub fn of(self, features: &Features) -> Option<f64> {
        let v = features[self as usize].filter(|v| v.is_finite())?;
        Some(match self {
            Feature::Edge | Feature::RelativeEdge | Feature::WorstEdge => v.clamp(0.0, 1.0),
            Feature::Agreement | Feature::Iou | Feature::Certainty => v.clamp(0.0, 1.0),
            Feature::SecondDice | Feature::SecondSurface | Feature::WorstSecond => v.clamp(0.0, 1.0),
            Feature::NeighbourLoss | Feature::WorstLoss | Feature::AreaJump => v.clamp(0.0, 1.0),
            Feature::Added | Feature::Dropped | Feature::Outliers | Feature::Overlap => v.clamp(0.0, 1.0).sqrt(),
            Feature::Topology | Feature::Unclaimed | Feature::Foreign | Feature::Rough => v.clamp(0.0, 1.0).sqrt(),
            Feature::SoftBand | Feature::Shift | Feature::Missing => v.clamp(0.0, 100.0).ln_1p(),
            Feature::Anatomy | Feature::WorstAnatomy | Feature::Step => v.clamp(0.0, 100.0).ln_1p(),
        })
    }
}
