//! What differs between two bundles, in the terms of the people who decide about them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use serde::Serialize;

use super::evidence::{Evidence, EvidenceFigure};
use super::verify::Unverified;
use crate::adapter::{Adapter, Refused};

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// What differs.
    pub what: String,
    /// In the first bundle; empty where it has none.
    pub before: String,
    /// In the second, likewise.
    pub after: String,
}

/// Differences from one bundle to another; empty where both hold the same but for signatures.
///
/// # Errors
/// As [`Unverified::contents`], for either.
pub fn differences(before: &Unverified, after: &Unverified) -> Result<Vec<Change>, Refused> {
    let mut out = Changes(Vec::new());
    let (a, b) = (&before.manifest.signed, &after.manifest.signed);
    out.of("name", &a.scanside.name, &b.scanside.name);
    out.of("version", a.version, b.version);
    out.of("issued", a.scanside.issued, b.scanside.issued);
    out.of("expires", a.expires, b.expires);
    out.of("sites", list(&a.scanside.sites), list(&b.scanside.sites));
    let (ra, rb) = (&a.scanside.requires, &b.scanside.requires);
    out.of("needs scanside", &ra.scanside, &rb.scanside);
    out.of("needs memory (MiB)", ra.memory_mb, rb.memory_mb);
    out.of("needs engine features", list(&ra.features), list(&rb.features));
    out.of("base weights", &a.scanside.base_sha256, &b.scanside.base_sha256);
    out.of("network version", a.scanside.network_version, b.scanside.network_version);
    out.of("adapter", &a.scanside.adapter, &b.scanside.adapter);
    out.of("note", &a.scanside.note, &b.scanside.note);
    let newest = |u: &Unverified| u.roots.newest().map_or(0, |r| r.signed.version);
    out.of("newest root inside", newest(before), newest(after));
    let (adapter_a, evidence_a, parity_a) = before.contents()?;
    let (adapter_b, evidence_b, parity_b) = after.contents()?;
    out.adapters(&adapter_a, &adapter_b);
    out.evidence(&evidence_a, &evidence_b);
    let seeds = |p: &[super::ParityCase]| p.iter().map(|c| c.seed.to_string()).collect::<Vec<_>>().join(", ");
    out.of("parity images", seeds(&parity_a), seeds(&parity_b));
    let labels = |p: &[super::ParityCase]| p.iter().map(|c| c.expected.data.clone()).collect::<Vec<_>>();
    if seeds(&parity_a) == seeds(&parity_b) && labels(&parity_a) != labels(&parity_b) {
        out.push("expected parity masks", "", "differ");
    }
    Ok(out.0)
}

struct Changes(Vec<Change>);

impl Changes {
    fn push(&mut self, what: impl Into<String>, before: impl Into<String>, after: impl Into<String>) {
        self.0.push(Change { what: what.into(), before: before.into(), after: after.into() });
    }

    fn of<T: PartialEq + ToString>(&mut self, what: &str, before: T, after: T) {
        if before != after {
            self.push(what, before.to_string(), after.to_string());
        }
    }

    fn debug<T: PartialEq + Debug>(&mut self, what: &str, before: &T, after: &T) {
        if before != after {
            self.push(what, format!("{before:?}"), format!("{after:?}"));
        }
    }

    fn adapters(&mut self, a: &Adapter, b: &Adapter) {
        let (m, n) = (&a.meta, &b.meta);
        self.of("task", &m.task.name, &n.task.name);
        let structures = |x: &Adapter| -> BTreeMap<String, String> {
            let line = |s: &crate::terms::Structure| {
                let [r, g, b] = s.rgb;
                format!("{}, code {} {}, colour #{r:02x}{g:02x}{b:02x}", s.name, s.code.scheme, s.code.value)
            };
            x.meta.task.structures.iter().map(|s| (s.key.clone(), line(s))).collect()
        };
        let (sa, sb) = (structures(a), structures(b));
        for key in sa.keys().chain(sb.keys()).collect::<BTreeSet<_>>() {
            let of = |s: &BTreeMap<String, String>| s.get(key).cloned().unwrap_or_default();
            self.of(&format!("structure {key}"), of(&sa), of(&sb));
        }
        let order = |x: &Adapter| x.meta.task.structures.iter().map(|s| s.key.clone()).collect::<Vec<_>>().join(" ");
        self.of("order of structures", order(a), order(b));
        self.of("input size (px)", m.input_size, n.input_size);
        self.debug("crop", &m.crop, &n.crop);
        self.debug("prompting", &m.prompting, &n.prompting);
        let presence = |x: &Adapter| x.meta.presence.iter().map(|p| p.threshold).collect::<Vec<_>>();
        self.debug("presence thresholds", &presence(a), &presence(b));
        let ranks = |x: &Adapter| (x.meta.lora.encoder_rank, x.meta.lora.decoder_rank);
        self.debug("LoRA ranks (encoder, decoder)", &ranks(a), &ranks(b));
        let data = |x: &Adapter| {
            let p = &x.meta.provenance;
            format!("{}, seed {}", p.words(), p.seed)
        };
        self.of("trained on", data(a), data(b));
        self.of("data", &m.provenance.note, &n.provenance.note);
        let calibration = |x: &Adapter| {
            let words = |c: &crate::segex::SegexCalibration| {
                let error = c.score_error.map_or("unknown".into(), |e| format!("{e:.1}"));
                format!("{} masks of {} subjects, error of the score {error}", c.masks, c.subjects)
            };
            x.meta.segex.as_ref().map_or("none".into(), words)
        };
        self.of("SegEx calibration", calibration(a), calibration(b));
        if calibration(a) == calibration(b) && m.segex != n.segex {
            self.push("SegEx calibration", "", "fitted anew");
        }
        let names: BTreeSet<&String> = a.tensors.keys().chain(b.tensors.keys()).collect();
        let changed = names.iter().filter(|n| a.tensors.get(**n) != b.tensors.get(**n)).count();
        if changed > 0 {
            self.push("tensors", names.len().to_string(), format!("{changed} differ"));
        }
    }

    fn evidence(&mut self, a: &Evidence, b: &Evidence) {
        let mean = |e: &Evidence| e.mean_dice().map_or("none".into(), |d| format!("{d:.3}"));
        self.of("mean Dice over structures", mean(a), mean(b));
        let dice = |e: &Evidence, key: &str| {
            let words = |d: EvidenceFigure| format!("{:.3} ± {:.3} (least {:.3}, {} legs)", d.mean, d.sd, d.min, d.n);
            e.rows.iter().find(|r| r.structure == key).and_then(|r| r.dice).map_or(String::new(), words)
        };
        let keys: BTreeSet<&String> = a.rows.iter().chain(&b.rows).map(|r| &r.structure).collect();
        for key in keys {
            self.of(&format!("Dice of {key}"), dice(a, key), dice(b, key));
        }
    }
}

fn list(words: &BTreeSet<String>) -> String {
    words.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}
