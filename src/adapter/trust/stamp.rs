//! A time in signed metadata: UTC, whole seconds, one way to write it.

use std::fmt;

use chrono::{DateTime, NaiveDate, NaiveDateTime};
use serde::{Deserialize, Serialize};

const FORM: &str = "%Y-%m-%dT%H:%M:%SZ";
/// 9999-12-31T23:59:59Z: the last that has four digits of years.
const LAST: i64 = 253_402_300_799;

/// Seconds since the Unix epoch; written `2027-01-31T00:00:00Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Stamp(i64);

impl Stamp {
    /// From seconds since the Unix epoch; none before 1970 and after 9999.
    pub fn from_unix(seconds: i64) -> Option<Self> {
        (0..=LAST).contains(&seconds).then_some(Stamp(seconds))
    }

    /// Milliseconds since the Unix epoch.
    pub fn ms(self) -> i64 {
        self.0 * 1000
    }

    /// From what a person types: `2027-01-31` (its first second) or the whole form.
    ///
    /// # Errors
    /// A sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let day = || NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0);
        let time = NaiveDateTime::parse_from_str(text, FORM).ok().or_else(day);
        time.and_then(|t| Stamp::from_unix(t.and_utc().timestamp()))
            .ok_or_else(|| format!("{text:?} is no date: 2027-01-31, or 2027-01-31T12:00:00Z"))
    }
}

impl TryFrom<String> for Stamp {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let stamp = Stamp::parse(&text)?;
        if stamp.to_string() == text { Ok(stamp) } else { Err(format!("{text:?} must be written {stamp}")) }
    }
}

impl From<Stamp> for String {
    fn from(stamp: Stamp) -> String {
        stamp.to_string()
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", DateTime::from_timestamp(self.0, 0).unwrap_or_default().format(FORM))
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
