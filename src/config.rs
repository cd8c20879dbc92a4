//! Typed settings: one TOML file, unknown keys refused, every value with its origin.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

mod engine;
mod quality;
mod sideload;

pub use engine::{Engine, EngineKind, Precision};
pub use quality::{Drift, Gate, GateMode, Observer, PilotTo, Promote, Segex, Verdict};
pub use sideload::Sideload;

/// Largest configuration file that is read, bytes.
const MAX_FILE: u64 = 1 << 20;

/// Why the configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {cause}; name an existing file with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        cause: std::io::Error,
    },
    /// The text is not what the settings allow.
    #[error("configuration {path} is refused: {cause}")]
    Parse {
        /// The file.
        path: String,
        /// Key, line and expectation, in the parser's words.
        cause: String,
    },
    /// A value is out of bounds.
    #[error("configuration {path}: {key} {problem}")]
    Value {
        /// The file.
        path: String,
        /// Dotted key.
        key: String,
        /// What is wrong and what is expected.
        problem: String,
    },
}

/// All settings. Every field has a default, so that an empty file is valid (and accepts no sender).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// This box on the network.
    pub station: Station,
    /// Where state lives.
    pub storage: Storage,
    /// Limits of receiving.
    pub receive: Receive,
    /// Who may send. Empty: nobody.
    pub modality: Vec<Modality>,
    /// Where results go.
    pub archive: Vec<Archive>,
    /// When a series is complete and which series are segmented.
    pub series: Series,
    /// What segments.
    pub model: Model,
    /// What computes.
    pub engine: Engine,
    /// What is done with results.
    pub results: Results,
    /// When results go to every archive.
    pub gate: Gate,
    /// Alerts when served cases no longer look like the calibration set.
    pub drift: Drift,
    /// Quality grades.
    pub segex: Segex,
    /// How adapter bundles are tried.
    pub sideload: Sideload,
}

/// This box on the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Station {
    /// Our AE title, 1 to 16 characters.
    pub ae_title: String,
    /// Address and port of the storage SCP.
    pub listen: SocketAddr,
    /// The site's name, which bundles can be restricted to; empty: only bundles for every site are taken.
    pub site: String,
}

impl Default for Station {
    fn default() -> Self {
        Station { ae_title: "SCANSIDE".into(), listen: SocketAddr::from(([127, 0, 0, 1], 11112)), site: String::new() }
    }
}

/// Where state lives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// Spool, queue and results.
    pub state_dir: PathBuf,
    /// Below this much free space objects are answered 0xA700; MiB.
    pub min_free_mb: u64,
    /// Originals are kept at least this long after their results were delivered; hours.
    pub retention_hours: u64,
}

impl Default for Storage {
    fn default() -> Self {
        Storage { state_dir: "/var/lib/scanside".into(), min_free_mb: 1024, retention_hours: 72 }
    }
}

/// Limits of receiving.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Receive {
    /// Associations at once; one more is rejected (local limit exceeded).
    pub max_associations: usize,
    /// Largest PDU we accept and offer, KiB.
    pub max_pdu_kb: u32,
    /// An association silent for this long is aborted; seconds.
    pub idle_seconds: u64,
    /// Largest object, MiB.
    pub max_object_mb: u64,
}

impl Default for Receive {
    fn default() -> Self {
        Receive { max_associations: 16, max_pdu_kb: 256, idle_seconds: 60, max_object_mb: 1024 }
    }
}

/// A sender that is let in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Modality {
    /// Its calling AE title.
    pub ae_title: String,
    /// If given, it may call from this address only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// If given, overrides `series.quiet_seconds` for this sender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiet_seconds: Option<u64>,
}

/// An archive that gets the results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// Its AE title.
    pub ae_title: String,
    /// Host name or address, and port: `10.0.0.5:104`.
    pub address: String,
    /// The researcher's own: may get results while the site is in its pilot.
    #[serde(default)]
    pub researcher: bool,
}

/// When a series is complete and which series are segmented.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Series {
    /// A series without other evidence is complete after this silence; seconds.
    pub quiet_seconds: u64,
    /// A series is closed after this long whatever happens; seconds.
    pub max_wait_seconds: u64,
    /// Segment a series with missing slices, and say so, instead of refusing it.
    pub allow_gaps: bool,
    /// Words in body part, protocol or description that mark a series as fit; empty: the built-in list.
    pub include_words: Vec<String>,
    /// Words that mark a series as unfit; empty: the built-in list.
    pub exclude_words: Vec<String>,
}

impl Default for Series {
    fn default() -> Self {
        Series {
            quiet_seconds: 30,
            max_wait_seconds: 900,
            allow_gaps: false,
            include_words: vec![],
            exclude_words: vec![],
        }
    }
}

/// What segments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// Converted base weights; empty: the cache that `scanside weights fetch` fills.
    pub weights: PathBuf,
    /// The adapter file; empty: the phantom adapter that comes with the program (for trying out only).
    pub adapter: PathBuf,
    /// Threads for segmentation; 0: all cores.
    pub threads: usize,
}

/// What is done with results below the site's bar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BelowBar {
    /// Sent, marked "needs review" in series descriptions and reports.
    #[default]
    Mark,
    /// Kept on the box; only the text report, which says so, is sent.
    Hold,
}

/// What is done with results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Results {
    /// SegEx score, 0 to 100, below which a result needs review.
    pub bar: f64,
    /// What happens below the bar.
    pub below_bar: BelowBar,
    /// First Series Number of the results; the four objects take this and the next three.
    pub series_number: u32,
}

impl Default for Results {
    fn default() -> Self {
        Results { bar: 70.0, below_bar: BelowBar::Mark, series_number: 9000 }
    }
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// The named file.
    File(String),
    /// `--set` on the command line.
    CommandLine,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(name) => f.write_str(name),
            Origin::CommandLine => f.write_str("--set"),
        }
    }
}

/// A configuration with the origin of each of its keys.
#[derive(Clone, Debug)]
pub struct Effective {
    /// The settings.
    pub config: Config,
    origins: BTreeMap<String, Origin>,
}

impl Effective {
    /// The built-in settings with overrides `key=value` (dotted keys, TOML values).
    ///
    /// # Errors
    /// [`ConfigError`] as [`Effective::load`].
    pub fn load(file: Option<&Path>, overrides: &[String]) -> Result<Effective, ConfigError> {
        let (text, name) = match file {
            Some(path) => (read_bounded(path)?, path.display().to_string()),
            None => (String::new(), "built-in defaults".to_string()),
        };
        Effective::parse(&text, &name, overrides)
    }

    /// Parses a configuration's text; `name` stands in messages.
    ///
    /// # Errors
    /// An unknown key, a wrong type, a value out of bounds.
    pub fn parse(text: &str, name: &str, overrides: &[String]) -> Result<Effective, ConfigError> {
        let parse_error = |cause: String| ConfigError::Parse { path: name.to_string(), cause };
        // Parsed as the typed settings first: its messages carry the line of an unknown key.
        toml::from_str::<Config>(text).map_err(|e| parse_error(e.to_string()))?;
        let mut table: toml::Table = toml::from_str(text).map_err(|e| parse_error(e.to_string()))?;
        let mut origins = BTreeMap::new();
        for key in leaves(&table) {
            origins.insert(key, Origin::File(name.to_string()));
        }
        for item in overrides {
            let (key, value) = item.split_once('=').ok_or_else(|| {
                parse_error(format!("--set {item}: expected KEY=VALUE, e.g. series.quiet_seconds=10"))
            })?;
            set(&mut table, key.trim(), value.trim()).map_err(|e| parse_error(format!("--set {item}: {e}")))?;
            origins.insert(key.trim().to_string(), Origin::CommandLine);
        }
        let config: Config =
            toml::Value::Table(table).try_into().map_err(|e: toml::de::Error| parse_error(e.to_string()))?;
        config.check(name)?;
        Ok(Effective { config, origins })
    }

    /// One line per key: value and origin.
    pub fn describe(&self) -> String {
        let Ok(table) = toml::Table::try_from(&self.config) else { return String::new() };
        let mut out = String::new();
        for key in leaves(&table) {
            let value = lookup(&table, &key).map(|v| v.to_string()).unwrap_or_default();
            let origin = self
                .origins
                .iter()
                .find(|(k, _)| **k == key || key.starts_with(&format!("{k}.")))
                .map_or(Origin::Default, |(_, o)| o.clone());
            out.push_str(&format!("{key} = {value}    # {origin}\n"));
        }
        out
    }
}

impl Config {
    fn check(&self, path: &str) -> Result<(), ConfigError> {
        let refuse = |key: &str, problem: String| {
            Err(ConfigError::Value { path: path.to_string(), key: key.to_string(), problem })
        };
        let ae = |key: &str, title: &str| match ae_title_problem(title) {
            Some(problem) => refuse(key, problem),
            None => Ok(()),
        };
        ae("station.ae_title", &self.station.ae_title)?;
        for (i, m) in self.modality.iter().enumerate() {
            ae(&format!("modality[{i}].ae_title"), &m.ae_title)?;
        }
        for (i, a) in self.archive.iter().enumerate() {
            ae(&format!("archive[{i}].ae_title"), &a.ae_title)?;
            let port = a.address.rsplit_once(':').and_then(|(host, p)| (!host.is_empty()).then(|| p.parse::<u16>()));
            if !matches!(port, Some(Ok(p)) if p > 0) {
                return refuse(&format!("archive[{i}].address"), format!("is {:?}; expected HOST:PORT", a.address));
            }
            if self.archive[..i].iter().any(|b| b.ae_title == a.ae_title && b.address == a.address) {
                return refuse(&format!("archive[{i}]"), "repeats an archive that is already listed".into());
            }
        }
        let range = |key: &str, value: u64, low: u64, high: u64| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                refuse(key, format!("is {value}; expected {low} to {high}"))
            }
        };
        // A pebibyte, and far from where a number of bytes would wrap.
        range("storage.min_free_mb", self.storage.min_free_mb, 0, 1 << 30)?;
        range("receive.max_associations", self.receive.max_associations as u64, 1, 256)?;
        range("receive.max_pdu_kb", u64::from(self.receive.max_pdu_kb), 128, 4096)?;
        range("receive.idle_seconds", self.receive.idle_seconds, 1, 3600)?;
        range("receive.max_object_mb", self.receive.max_object_mb, 1, 4096)?;
        range("series.quiet_seconds", self.series.quiet_seconds, 1, 3600)?;
        for (i, own) in self.modality.iter().enumerate().filter_map(|(i, m)| Some((i, m.quiet_seconds?))) {
            range(&format!("modality[{i}].quiet_seconds"), own, 1, 3600)?;
        }
        range("series.max_wait_seconds", self.series.max_wait_seconds, 1, 86_400)?;
        range("results.series_number", u64::from(self.results.series_number), 1, 100_000)?;
        range("engine.max_rank", self.engine.max_rank as u64, 0, 256)?;
        range("segex.observer.timeout_seconds", self.segex.observer.timeout_seconds, 1, 3600)?;
        if self.series.max_wait_seconds < self.series.quiet_seconds {
            return refuse("series.max_wait_seconds", "is shorter than series.quiet_seconds".into());
        }
        range("gate.accept_cases", self.gate.accept_cases as u64, 1, 10_000)?;
        if self.gate.least_dice > 0.0 {
            range("gate.dice_cases", self.gate.dice_cases as u64, 1, self.gate.accept_cases as u64)?;
        }
        for (key, value, most) in [
            ("gate.accept_share", self.gate.accept_share, 1.0),
            ("gate.least_score", self.gate.least_score, 100.0),
            ("gate.least_dice", self.gate.least_dice, 1.0),
            ("drift.z", self.drift.z, 100.0),
            ("sideload.shadow_least_dice", self.sideload.shadow_least_dice, 1.0),
            ("sideload.shadow_lost_score", self.sideload.shadow_lost_score, 100.0),
            ("sideload.probation_share", self.sideload.probation_share, 1.0),
            ("sideload.most_slowdown", self.sideload.most_slowdown, 100.0),
        ] {
            if !(0.0..=most).contains(&value) {
                return refuse(key, format!("is {value}; expected 0 to {most}"));
            }
        }
        let researcher = self.archive.iter().any(|a| a.researcher);
        if self.gate.mode == GateMode::Pilot && self.gate.pilot_to == PilotTo::Researcher && !researcher {
            return refuse("gate.pilot_to", "is \"researcher\" and no [[archive]] has researcher = true".into());
        }
        range("sideload.shadow_series", u64::from(self.sideload.shadow_series), 0, 1_000)?;
        range("sideload.probation_series", u64::from(self.sideload.probation_series), 0, 1_000)?;
        range("sideload.keep", self.sideload.keep as u64, 1, 15)?;
        range("drift.window", self.drift.window as u64, 1, 1_000)?;
        range("drift.least_cases", self.drift.least_cases as u64, 1, self.drift.window as u64)?;
        if !(0.0..=100.0).contains(&self.results.bar) {
            return refuse("results.bar", format!("is {}; expected 0 to 100", self.results.bar));
        }
        Ok(())
    }
}

/// What is wrong with an AE title, if anything (DICOM PS3.5, VR AE: 1 to 16 characters, no backslash or control).
pub fn ae_title_problem(title: &str) -> Option<String> {
    let ok = !title.trim().is_empty()
        && title.len() <= 16
        && title.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'\\')
        && title.trim() == title;
    (!ok).then(|| format!("is {title:?}; expected 1 to 16 ASCII characters without backslash or outer spaces"))
}

fn read_bounded(path: &Path) -> Result<String, ConfigError> {
    let error = |cause| ConfigError::Read { path: path.to_path_buf(), cause };
    let size = std::fs::metadata(path).map_err(error)?.len();
    if size > MAX_FILE {
        return Err(error(std::io::Error::other(format!("it is {size} bytes, more than {MAX_FILE}"))));
    }
    std::fs::read_to_string(path).map_err(error)
}

/// Dotted keys of every value that is not a table; elements of arrays of tables as `name[i].key`.
fn leaves(table: &toml::Table) -> Vec<String> {
    fn walk(prefix: &str, value: &toml::Value, out: &mut Vec<String>) {
        match value {
            toml::Value::Table(t) => {
                for (k, v) in t {
                    let key = if prefix.is_empty() { k.clone() } else { format!("{prefix}.{k}") };
                    walk(&key, v, out);
                }
            }
            toml::Value::Array(a) if a.iter().any(toml::Value::is_table) => {
                for (i, v) in a.iter().enumerate() {
                    walk(&format!("{prefix}[{i}]"), v, out);
                }
            }
            _ => out.push(prefix.to_string()),
        }
    }
    let mut out = Vec::new();
    walk("", &toml::Value::Table(table.clone()), &mut out);
    out
}

fn lookup<'a>(table: &'a toml::Table, key: &str) -> Option<&'a toml::Value> {
    let mut parts = key.split('.');
    let step = |t: &'a toml::Table, part: &str| -> Option<&'a toml::Value> {
        match part.split_once('[') {
            None => t.get(part),
            Some((name, rest)) => t.get(name)?.as_array()?.get(rest.trim_end_matches(']').parse::<usize>().ok()?),
        }
    };
    let mut value = step(table, parts.next()?)?;
    for part in parts {
        value = step(value.as_table()?, part)?;
    }
    Some(value)
}

fn set(table: &mut toml::Table, key: &str, value: &str) -> Result<(), String> {
    // A bare word is taken as a string, so that --set station.ae_title=BOX works without quotes.
    let value = toml::from_str::<toml::Table>(&format!("v = {value}"))
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| toml::Value::String(value.to_string()));
    let mut table = table;
    let mut parts: Vec<&str> = key.split('.').collect();
    let last = parts.pop().filter(|l| !l.is_empty()).ok_or("empty key")?;
    for part in parts {
        table = table
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| format!("{part} is not a table"))?;
    }
    table.insert(last.to_string(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let e = Effective::parse("[station]\nae_tilte = \"X\"\n", "box.toml", &[]).unwrap_err().to_string();
        assert!(e.contains("ae_tilte") && e.contains("box.toml") && e.contains("line 2"), "{e}");
    }

    #[test]
    fn values_out_of_bounds_are_refused_with_the_expectation() {
        for (text, want) in [
            ("[receive]\nmax_pdu_kb = 1\n", "receive.max_pdu_kb is 1; expected 128 to 4096"),
            ("[station]\nae_title = \"A MUCH TOO LONG TITLE\"\n", "expected 1 to 16"),
            ("[[archive]]\nae_title = \"PACS\"\naddress = \"nowhere\"\n", "archive[0].address"),
            (
                "[[modality]]\nae_title = \"MR1\"\n[[modality]]\nae_title = \"MR2\"\nquiet_seconds = 0\n",
                "modality[1].quiet_seconds is 0; expected 1 to 3600",
            ),
            (
                "[storage]\nmin_free_mb = 17592186044416\n",
                "storage.min_free_mb is 17592186044416; expected 0 to 1073741824",
            ),
            ("[series]\nquiet_seconds = 60\nmax_wait_seconds = 5\n", "series.max_wait_seconds is shorter"),
            ("[gate]\nmode = \"pilot\"\npilot_to = \"researcher\"\n", "no [[archive]] has researcher = true"),
            ("[gate]\naccept_cases = 3\nleast_dice = 0.9\n", "gate.dice_cases is 5; expected 1 to 3"),
            ("[drift]\nwindow = 5\n", "drift.least_cases is 8; expected 1 to 5"),
        ] {
            let e = Effective::parse(text, "f", &[]).unwrap_err().to_string();
            assert!(e.contains(want), "{e}");
        }
    }

    #[test]
    fn every_value_shows_its_origin() {
        let text = "[station]\nae_title = \"BOX1\"\n[[modality]]\nae_title = \"MR1\"\n";
        let e = Effective::parse(text, "box.toml", &["series.quiet_seconds=7".into()]).unwrap();
        assert_eq!(e.config.series.quiet_seconds, 7);
        let d = e.describe();
        assert!(d.contains("station.ae_title = \"BOX1\"    # box.toml"), "{d}");
        assert!(d.contains("modality[0].ae_title = \"MR1\"    # box.toml"), "{d}");
        assert!(d.contains("series.quiet_seconds = 7    # --set"), "{d}");
        assert!(d.contains("receive.max_associations = 16    # default"), "{d}");
    }

    #[test]
    fn defaults_accept_nobody() {
        let e = Effective::load(None, &[]).unwrap();
        assert!(e.config.modality.is_empty() && e.config.archive.is_empty());
    }
}
