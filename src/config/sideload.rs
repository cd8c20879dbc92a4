//! Settings of adapter bundles: how long a new one is tried, and what it must reach.

use serde::{Deserialize, Serialize};

use super::Verdict;

/// How bundles are tried before they are committed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sideload {
    /// Series on which a candidate runs beside the active adapter, nothing of it leaving the box; 0 leaves the stage out.
    pub shadow_series: u32,
    /// Least mean Dice between candidate and active adapter, as the median over those series.
    pub shadow_least_dice: f64,
    /// The candidate's mean SegEx score may be this much below the active adapter's.
    pub shadow_lost_score: f64,
    /// Series that a candidate serves before it is committed; 0 leaves the stage out.
    pub probation_series: u32,
    /// Least SegEx verdict of a series that counts as good on probation.
    pub probation_least_verdict: Verdict,
    /// Share of the series that must be good.
    pub probation_share: f64,
    /// The candidate's median time may be this many times the active adapter's; 0 asks for nothing.
    pub most_slowdown: f64,
    /// Bundles kept for going back, those that changed last. The one that serves and the one before it count, and are kept in any case.
    pub keep: usize,
}

impl Default for Sideload {
    fn default() -> Self {
        Sideload {
            shadow_series: 5,
            shadow_least_dice: 0.8,
            shadow_lost_score: 10.0,
            probation_series: 10,
            probation_least_verdict: Verdict::C,
            probation_share: 0.8,
            most_slowdown: 1.5,
            keep: 3,
        }
    }
}
