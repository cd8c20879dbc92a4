//! When a series is complete: there is no end-of-series signal, so evidence is weighed, on an injected clock.
//!
//! In order: an expected count that is reached; enhanced multi-frame objects, which are whole in themselves; an even
//! stack without gaps whose only association was released; silence; a hard maximum. A slice that comes later reopens
//! the series as a new generation.

use std::collections::HashSet;

use super::assemble::{AssembleOptions, assemble};
use crate::dicom::read::InstanceHeader;

/// Times of the decision, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Complete after this silence whatever the evidence.
    pub quiet_ms: i64,
    /// Closed this long after the first instance whatever happens.
    pub max_wait_ms: i64,
    /// After evidence, this much silence is still waited for, so that the next association of the same series, if one
    /// follows at once, is not cut off.
    pub settle_ms: i64,
}

impl Default for Timing {
    fn default() -> Self {
        Timing { quiet_ms: 30_000, max_wait_ms: 900_000, settle_ms: 1_500 }
    }
}

impl Timing {
    /// The times of the configuration, with the calling AE's own quiet time where it has one.
    pub fn of(series: &crate::config::Series, own_quiet_seconds: Option<u64>) -> Self {
        let ms = |s: u64| i64::try_from(s.saturating_mul(1000)).unwrap_or(i64::MAX / 4);
        Timing {
            quiet_ms: ms(own_quiet_seconds.unwrap_or(series.quiet_seconds)),
            max_wait_ms: ms(series.max_wait_seconds),
            ..Timing::default()
        }
    }
}

/// How the instances came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrivals {
    /// First instance of this generation, Unix milliseconds.
    pub first_ms: i64,
    /// Last instance, Unix milliseconds.
    pub last_ms: i64,
    /// Associations that brought instances of the series.
    pub associations: usize,
    /// Those of them still open.
    pub open: usize,
}

/// Why a series counts as complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The count a header gives is reached.
    ExpectedCount,
    /// All objects are enhanced multi-frame, each concatenation whole.
    Enhanced,
    /// Its only association was released and the slices are even and without gaps.
    EvenAndReleased,
    /// Nothing came for the quiet time.
    Quiet,
    /// The hard maximum.
    Maximum,
}

impl Reason {
    /// The reason in words.
    pub fn word(self) -> &'static str {
        match self {
            Reason::ExpectedCount => "expected number of images received",
            Reason::Enhanced => "enhanced multi-frame object received whole",
            Reason::EvenAndReleased => "even slices without gaps, association released",
            Reason::Quiet => "no further image within the quiet time",
            Reason::Maximum => "longest waiting time reached",
        }
    }
}

/// What to do with a series now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Take it as complete.
    Complete(Reason),
    /// Ask again at this time (Unix milliseconds), or when something arrives or an association ends.
    Wait {
        /// When to ask again.
        until_ms: i64,
    },
}

/// Decides from the headers so far. Pure: the same evidence at the same time gives the same answer.
pub fn decide(headers: &[InstanceHeader], arrivals: &Arrivals, timing: &Timing, now_ms: i64) -> Decision {
    let quiet_at = arrivals.last_ms.saturating_add(timing.quiet_ms);
    let maximum_at = arrivals.first_ms.saturating_add(timing.max_wait_ms);
    if now_ms >= maximum_at {
        return Decision::Complete(Reason::Maximum);
    }
    if headers.is_empty() {
        return Decision::Wait { until_ms: quiet_at.min(maximum_at).max(now_ms + 1) };
    }
    // Cheap evidence first; the geometry is looked at only when a pause has come.
    let settled_at = arrivals.last_ms.saturating_add(timing.settle_ms.min(timing.quiet_ms));
    let mut until = quiet_at.min(maximum_at);
    match expected(headers) {
        Some(n) if distinct(headers) >= n => return Decision::Complete(Reason::ExpectedCount),
        // Fewer than the header promises: only the timers can end this.
        Some(_) => {}
        None => {
            let enhanced = enhanced_whole(headers);
            let released = arrivals.associations == 1 && arrivals.open == 0;
            if enhanced || released {
                if now_ms < settled_at {
                    until = until.min(settled_at);
                } else if enhanced {
                    return Decision::Complete(Reason::Enhanced);
                } else if even(headers) {
                    return Decision::Complete(Reason::EvenAndReleased);
                }
            }
        }
    }
    if now_ms >= quiet_at {
        return Decision::Complete(Reason::Quiet);
    }
    Decision::Wait { until_ms: until.max(now_ms + 1) }
}

/// The number of instances the headers promise, where they agree: Images in Acquisition of a classic series with one
/// acquisition.
fn expected(headers: &[InstanceHeader]) -> Option<usize> {
    let first = headers.first()?;
    let n = first.images_in_acquisition? as usize;
    let acquisition = |h: &InstanceHeader| h.frames.first().and_then(|f| f.acquisition_number);
    let agree = headers.iter().all(|h| {
        h.images_in_acquisition == first.images_in_acquisition
            && h.number_of_frames == 1
            && acquisition(h) == acquisition(first)
    });
    // One image per acquisition says nothing about the series.
    (agree && n > 1).then_some(n)
}

/// Whether all objects are enhanced, and as many as their concatenation says.
fn enhanced_whole(headers: &[InstanceHeader]) -> bool {
    headers.iter().all(|h| h.is_enhanced() && h.concatenation_total.is_none_or(|n| distinct(headers) >= n as usize))
}

/// The number of instances; copies of one count once.
fn distinct(headers: &[InstanceHeader]) -> usize {
    headers.iter().map(|h| h.sop_instance_uid.as_str()).collect::<HashSet<_>>().len()
}

/// Whether the slices make an even stack of several slices without gaps.
fn even(headers: &[InstanceHeader]) -> bool {
    headers.len() >= 3 && assemble(headers, &AssembleOptions::default()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::stack::tests::slice;
    use super::*;

    const T: Timing = Timing { quiet_ms: 30_000, max_wait_ms: 900_000, settle_ms: 1_500 };

    fn at(last_ms: i64, associations: usize, open: usize) -> Arrivals {
        Arrivals { first_ms: 0, last_ms, associations, open }
    }

    fn series(n: usize) -> Vec<InstanceHeader> {
        (0..n).map(|i| slice(i, 5.0 * i as f64)).collect()
    }

    #[test]
    fn an_even_stack_is_complete_soon_after_its_only_association() {
        let s = series(15);
        assert_eq!(decide(&s, &at(1000, 1, 1), &T, 5000), Decision::Wait { until_ms: 31_000 });
        assert_eq!(decide(&s, &at(1000, 1, 0), &T, 1100), Decision::Wait { until_ms: 2500 });
        assert_eq!(decide(&s, &at(1000, 1, 0), &T, 2500), Decision::Complete(Reason::EvenAndReleased));
        // One association per image: only silence tells.
        assert_eq!(decide(&s, &at(1000, 15, 0), &T, 2500), Decision::Wait { until_ms: 31_000 });
        assert_eq!(decide(&s, &at(1000, 15, 0), &T, 31_000), Decision::Complete(Reason::Quiet));
    }

    #[test]
    fn a_gap_waits_for_silence() {
        let mut s = series(15);
        s.remove(7);
        assert_eq!(decide(&s, &at(1000, 1, 0), &T, 3000), Decision::Wait { until_ms: 31_000 });
        assert_eq!(decide(&s, &at(1000, 1, 0), &T, 31_000), Decision::Complete(Reason::Quiet));
    }

    #[test]
    fn an_expected_count_ends_the_wait_and_holds_it_open() {
        let mut s = series(15);
        for h in &mut s {
            h.images_in_acquisition = Some(15);
        }
        assert_eq!(decide(&s[..14], &at(1000, 1, 0), &T, 3000), Decision::Wait { until_ms: 31_000 });
        assert_eq!(decide(&s, &at(1000, 3, 2), &T, 1000), Decision::Complete(Reason::ExpectedCount));
        // Eight slices that came twice are not fifteen.
        let twice: Vec<_> = s[..8].iter().chain(&s[..8]).cloned().collect();
        assert_eq!(decide(&twice, &at(1000, 1, 0), &T, 3000), Decision::Wait { until_ms: 31_000 });
    }

    #[test]
    fn the_maximum_ends_whatever_drips() {
        let s = series(2);
        assert_eq!(decide(&s, &at(899_999, 9, 1), &T, 900_000), Decision::Complete(Reason::Maximum));
    }

    #[test]
    fn an_enhanced_object_is_complete_when_it_has_settled() {
        let mut s = series(1);
        s[0].sop_class_uid = crate::dicom::read::ENHANCED_MR.into();
        assert_eq!(decide(&s, &at(1000, 1, 1), &T, 2500), Decision::Complete(Reason::Enhanced));
        s[0].concatenation_total = Some(2);
        assert_eq!(decide(&s, &at(1000, 1, 1), &T, 2500), Decision::Wait { until_ms: 31_000 });
    }
}
