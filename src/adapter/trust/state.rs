//! What a box remembers of trust, and that it never goes back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::envelope::Signed;
use super::root::Root;
use crate::adapter::{Reason, Refused};

/// Format of the record.
pub(super) const FORMAT: u32 = 1;
/// Committed bundles of one name that are remembered: those that going back can reach.
const KEPT: usize = 16;
/// Names of bundles that a box remembers at most.
const MAX_LINES: usize = 256;
/// The clock may be this far before the latest time seen: what time servers correct in one step.
pub(crate) const CLOCK_TOLERANCE_MS: i64 = 5 * 60 * 1000;

/// A bundle that was committed here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Committed {
    /// Identity of the bundle: sha256 of what was signed, hex.
    pub id: String,
    /// Its version.
    pub version: u32,
}

/// What was committed of one name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Newest last.
    pub committed: Vec<Committed>,
    /// The highest version that was ever committed.
    pub version: u32,
}

/// The record of trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustState {
    /// Format of the record.
    pub format: u32,
    /// Latest time that was seen with confidence; milliseconds since the Unix epoch.
    pub latest_ms: i64,
    /// By the name of the bundle.
    pub lines: BTreeMap<String, Line>,
    /// The root.
    pub root: Signed<Root>,
    /// Grows with every change.
    pub serial: u64,
}

impl TrustState {
    /// A first record.
    pub fn new(root: Signed<Root>, now_ms: i64) -> Self {
        TrustState { format: FORMAT, latest_ms: now_ms, lines: BTreeMap::new(), root, serial: 0 }
    }

    /// Takes a time that can be relied on; an earlier one changes nothing.
    pub fn see(&mut self, now_ms: i64) {
        self.latest_ms = self.latest_ms.max(now_ms);
    }

    /// Whether the clock is where it can be.
    ///
    /// # Errors
    /// [`Reason::ClockSetBack`].
    pub fn check_clock(&self, now_ms: i64) -> Result<(), Refused> {
        if now_ms.saturating_add(CLOCK_TOLERANCE_MS) >= self.latest_ms {
            return Ok(());
        }
        Err(Refused::new(
            Reason::ClockSetBack,
            format!("this box's clock says {}, but it has already seen {}", time(now_ms), time(self.latest_ms)),
            "set the clock; if it was the earlier time that was wrong, `scanside keys trust --set-clock`",
        ))
    }

    /// The highest committed version of a name.
    pub fn version(&self, name: &str) -> Option<u32> {
        self.lines.get(name).map(|l| l.version)
    }

    /// Whether exactly this bundle was committed here.
    pub fn committed(&self, name: &str, id: &str) -> bool {
        self.lines.get(name).is_some_and(|l| l.committed.iter().any(|c| c.id == id))
    }

    /// Records that a bundle was committed. Older versions stay known, so that going back is possible; the highest stays.
    pub fn commit(&mut self, name: &str, version: u32, id: &str) {
        let line = self.lines.entry(name.to_string()).or_default();
        line.version = line.version.max(version);
        line.committed.retain(|c| c.id != id);
        line.committed.push(Committed { id: id.to_string(), version });
        let surplus = line.committed.len().saturating_sub(KEPT);
        line.committed.drain(..surplus);
    }

    /// What is wrong with a record that was read.
    pub(super) fn problem(&self) -> Option<String> {
        if self.format != FORMAT {
            return Some(format!("it is of format {}, this program reads {FORMAT}", self.format));
        }
        if self.lines.len() > MAX_LINES || self.lines.values().any(|l| l.committed.len() > KEPT) {
            return Some("it lists more bundles than it may".into());
        }
        let root = &self.root.signed;
        root.check().err().or_else(|| {
            let signed = self.root.signed_by("the trusted root", root, &root.roles.root);
            signed.err().map(|e| e.sentence)
        })
    }

    /// What of `next` would undo this.
    pub(super) fn backwards(&self, next: &TrustState, clock: bool) -> Option<String> {
        if next.root.signed.version < self.root.signed.version {
            return Some("the root would go back".into());
        }
        if !clock && next.latest_ms < self.latest_ms {
            return Some("the latest time seen would go back".into());
        }
        let lower = |(name, l): (&String, &Line)| next.version(name).is_none_or(|v| v < l.version);
        self.lines.iter().any(lower).then(|| "a committed version would go back".into())
    }
}

/// A time for people.
pub(crate) fn time(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms)
        .map_or_else(|| format!("{ms} ms"), |t| t.format("%Y-%m-%d %H:%M:%S UTC").to_string())
}
