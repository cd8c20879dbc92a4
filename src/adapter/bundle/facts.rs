//! What a bundle asks for and what a box is.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::model::network::NETWORK_VERSION;

/// Features of engines that this release has on every box.
pub const FEATURES: [&str; 1] = ["cpu-fp32"];

/// What a box must have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requires {
    /// Features of the engine, e.g. `cpu-fp32`.
    pub features: BTreeSet<String>,
    /// Memory of the machine, MiB.
    pub memory_mb: u32,
    /// Least version of this program.
    pub scanside: String,
}

impl Requires {
    /// The program's least version.
    pub fn version(&self) -> Option<[u32; 3]> {
        version_of(&self.scanside)
    }
}

/// Three numbers; what follows a `-` or `+` does not count.
fn version_of(text: &str) -> Option<[u32; 3]> {
    let mut parts = text.split(['-', '+']).next()?.split('.').map(|p| p.parse().ok());
    let v = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(v)
}

/// What a box is, as far as a bundle asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoxFacts {
    /// Version of this program.
    pub scanside: String,
    /// Memory of the machine, MiB.
    pub memory_mb: u64,
    /// Features of its engines.
    pub features: BTreeSet<String>,
    /// sha256 of the base weights' source, hex.
    pub base_sha256: String,
    /// Version of the network's definition.
    pub network_version: u32,
    /// The site's name (`station.site`); empty where none was given.
    pub site: String,
}

impl BoxFacts {
    /// This machine with a base and a site; features of further engines can be added.
    pub fn here(base_sha256: &str, site: &str) -> Self {
        BoxFacts {
            scanside: env!("CARGO_PKG_VERSION").into(),
            memory_mb: memory_mb(),
            features: FEATURES.map(String::from).into(),
            base_sha256: base_sha256.to_string(),
            network_version: NETWORK_VERSION,
            site: site.to_string(),
        }
    }

    /// What of a requirement this box lacks, in words; empty where it lacks nothing.
    pub fn lacks(&self, r: &Requires) -> Vec<String> {
        let mut out = Vec::new();
        if version_of(&self.scanside) < r.version() {
            out.push(format!("scanside {} (here: {})", r.scanside, self.scanside));
        }
        if self.memory_mb < u64::from(r.memory_mb) {
            out.push(format!("{} MiB of memory (here: {})", r.memory_mb, self.memory_mb));
        }
        out.extend(r.features.difference(&self.features).map(|f| format!("engine feature {f}")));
        out
    }
}

/// Memory of the machine, MiB; 0 where the system does not say.
fn memory_mb() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kb = text.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kb.unwrap_or(0u64) >> 10
}

/// What a bundle is verified for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be staged: everything is held against it.
    Install,
    /// To go on: one that was installed here and is on trial, at a restart above all. Its signatures count and its version must not be
    /// older than what was committed; the clock, its expiry and the root's do not stop it, as a box does not fall silent at midnight.
    GoOn,
    /// To serve again: one that was committed here before, at start and when going back. Its version may be older, its expiry past
    /// and its keys withdrawn meanwhile (then it says so): going back must work.
    Serve,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(version_of("0.10.0") > version_of("0.9.12"));
        assert_eq!(version_of("1.2.3-rc1"), Some([1, 2, 3]));
        assert_eq!((version_of("1.2"), version_of("1.2.3.4"), version_of("a.b.c")), (None, None, None));
        let mut facts = BoxFacts::here("", "");
        let r = Requires { features: FEATURES.map(String::from).into(), memory_mb: 1, scanside: "0.0.1".into() };
        assert!(facts.lacks(&r).is_empty());
        facts.features.clear();
        facts.memory_mb = 0;
        facts.scanside = "0.0.0".into();
        assert_eq!(facts.lacks(&r).len(), 3);
    }
}
