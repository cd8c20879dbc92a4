//! `scanside bundle inspect`: what a person needs to know before trusting a bundle.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::adapter::bundle::{Change, EvidenceFigure, Unverified, differences, untold};
use crate::adapter::trust::{RoleName, Root, Signed, TrustStore};
use crate::cli::ConfigArgs;
use crate::clock::Clock;

#[derive(Args, Debug)]
pub(super) struct InspectArgs {
    /// The bundle
    file: PathBuf,
    /// Judge the signatures by this root; default: what this box trusts, else the bundle's own newest root, which proves nothing
    #[arg(long, value_name = "ROOT.json")]
    root: Option<PathBuf>,
    /// Show what changed against this bundle
    #[arg(long, value_name = "BUNDLE")]
    against: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Whose root the signatures are judged by.
fn trusted(args: &InspectArgs, bundle: &Unverified) -> anyhow::Result<Option<(Signed<Root>, String)>> {
    if let Some(path) = &args.root {
        let root = crate::cli::keys::read_root(path)?;
        return Ok(Some((root, format!("the root {}", path.display()))));
    }
    if let Ok(config) = args.config.load()
        && let Ok(state) = TrustStore::new(&config.config.storage.state_dir).load()
    {
        let here = format!("root {} that this box trusts", state.root.signed.version);
        return Ok(Some(match bundle.roots.from_trusted(&state.root)? {
            Some(newer) => {
                let by = format!("root {}, which follows {here}", newer.signed.version);
                (newer, by)
            }
            None => (state.root, here),
        }));
    }
    let own = |r: &Signed<Root>| (r.clone(), format!("the bundle's OWN root {}: compare its keys", r.signed.version));
    Ok(bundle.roots.newest().map(own))
}

pub(super) fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let bundle = super::open_unverified(&args.file)?;
    let root = trusted(args, &bundle)?;
    let changes = match &args.against {
        Some(other) => Some(differences(&super::open_unverified(other)?, &bundle)?),
        None => None,
    };
    let (adapter, evidence, parity) = bundle.contents()?;
    let m = &bundle.manifest.signed;
    if args.json {
        let signatures: Vec<_> = bundle.manifest.signatures.iter().map(|s| &s.keyid).collect();
        let judged = root.as_ref().map(|(r, by)| match judge(&bundle, &r.signed) {
            Ok(names) => json!({ "by": by, "enough": true, "signed_by": names }),
            Err(e) => json!({ "by": by, "enough": false, "reason": e.reason, "sentence": e.sentence }),
        });
        let parity: Vec<_> = parity
            .iter()
            .map(|p| {
                json!({ "seed": p.seed, "least_dice": p.least_dice,
            "every_structure": p.every_structure, "engine": p.engine })
            })
            .collect();
        let value = json!({ "id": m.id(), "manifest": m, "signatures": signatures, "judged": judged,
            "adapter": adapter.meta, "evidence": evidence, "parity": parity, "changes": changes });
        println!("{value:#}");
        return Ok(ExitCode::SUCCESS);
    }
    let a = &m.scanside;
    let mut out = String::new();
    let mut line = |what: &str, value: String| {
        let _ = writeln!(out, "{what:<12} {value}");
    };
    line("bundle", format!("{} {} (id {:.12})", a.name, m.version, m.id()));
    line("adapter", format!("{}, {} tensors, {} values", a.adapter, adapter.tensors.len(), adapter.parameters()));
    let now = Clock::System.now_ms();
    let late = if now >= m.expires.ms() { "  EXPIRED" } else { "" };
    line("issued", a.issued.to_string());
    line("expires", format!("{}{late}", m.expires));
    line("sites", if a.sites.contains("*") { "all".into() } else { words(a.sites.iter()) });
    let r = &a.requires;
    line("needs", format!("scanside {}, {} MiB, {}", r.scanside, r.memory_mb, words(r.features.iter())));
    line("base", format!("{:.12}, network version {}", a.base_sha256, a.network_version));
    let structures = adapter.meta.task.structures.iter().map(|s| &s.key);
    line("task", format!("{}: {}", adapter.meta.task.name, words(structures)));
    line("input", format!("{} px, {:?}", adapter.meta.input_size, adapter.meta.crop));
    let p = &adapter.meta.provenance;
    line("trained", format!("{}; {}", p.words(), p.note));
    line(
        "calibration",
        match &adapter.meta.segex {
            Some(c) => {
                let caution = c.caution().map(|c| format!("; {c}")).unwrap_or_default();
                format!("SegEx on {} masks of {} subjects{caution}", c.masks, c.subjects)
            }
            None => "none: SegEx's grades are by default cuts".into(),
        },
    );
    for case in &parity {
        let how = if case.every_structure { ", classifier not asked" } else { "" };
        line(
            "parity",
            format!("phantom {}, {} segments, Dice {}{how}", case.seed, case.segments.len(), case.least_dice),
        );
    }
    let missing = untold(&parity, &adapter.meta.task).join(", ");
    if !missing.is_empty() {
        line("", format!("too little of {missing} in them to test it"));
    }
    line("changed", if a.note.is_empty() { "(the maker left no note)".into() } else { a.note.clone() });
    line("roots", bundle.roots.roots().iter().map(|r| r.signed.version.to_string()).collect::<Vec<_>>().join(", "));
    print!("{out}");
    println!("\nevidence (sha256 of the evaluation {:.12})", evidence.source_sha256);
    for (k, v) in &evidence.facts {
        println!("  {k}: {v}");
    }
    for row in &evidence.rows {
        let figure = |f: Option<EvidenceFigure>| f.map_or("-".into(), |f| format!("{:.3} ± {:.3}", f.mean, f.sd));
        let least = row.dice.map_or("-".into(), |d| format!("{:.3}", d.min));
        let [a, b, c, d] = row.verdicts;
        println!(
            "  {:<6} Dice {:<15} least {least:<6} HD95 {:<18} legs {}, missing {}, verdicts A{a} B{b} C{c} D{d}",
            row.structure,
            figure(row.dice),
            figure(row.hd95_mm),
            row.legs,
            row.missing
        );
    }
    match &root {
        Some((root, by)) => println!("\nsignatures, judged by {by}\n{}", standing(&bundle, &root.signed)),
        None => println!("\nsignatures: {}, and no root to judge them by", bundle.manifest.signatures.len()),
    }
    if let Some(changes) = changes {
        println!("\nchanges");
        print_changes(&changes);
    }
    Ok(ExitCode::SUCCESS)
}

fn judge(bundle: &Unverified, root: &Root) -> Result<Vec<String>, crate::adapter::Refused> {
    let keys = bundle.manifest.signed_by("the bundle", root, root.role(RoleName::Release))?;
    Ok(keys.iter().map(|k| root.name_of(k)).collect())
}

/// Who signed, and whether that is enough for a root.
pub(super) fn standing(bundle: &Unverified, root: &Root) -> String {
    let mut out = String::new();
    let role = root.role(RoleName::Release);
    for s in &bundle.manifest.signatures {
        let what = match root.scanside.revoked.get(&s.keyid) {
            Some(r) => format!("WITHDRAWN in root {}: {}", r.root, r.why),
            None if role.keyids.contains(&s.keyid) => "release key".into(),
            None => "not a release key of this root".into(),
        };
        let _ = writeln!(out, "  {}: {what}", root.name_of(&s.keyid));
    }
    let of = format!("{} of {}", role.threshold, role.keyids.len());
    match judge(bundle, root) {
        Ok(names) => write!(out, "  enough: {} valid, {of} keys must sign (root {})", names.len(), root.version),
        Err(e) => write!(out, "  NOT enough ({of} keys must sign, root {}): {}", root.version, e.sentence),
    }
    .unwrap_or_default();
    out
}

pub(super) fn print_changes(changes: &[Change]) {
    if changes.is_empty() {
        println!("  nothing but signatures differs");
    }
    for c in changes {
        println!("  {:<26} {} -> {}", c.what, or_none(&c.before), or_none(&c.after));
    }
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "(none)" } else { text }
}

fn words<'a>(words: impl Iterator<Item = &'a String>) -> String {
    words.map(String::as_str).collect::<Vec<_>>().join(", ")
}
