//! `scanside bundle make`: an adapter and all that a box holds against it, as one file.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::Args;
use sha2::{Digest, Sha256};

use crate::adapter::Adapter;
use crate::adapter::bundle::{Draft, Evidence, EvidenceFigure, EvidenceRow, FEATURES, Requires, make_parity, untold};
use crate::adapter::trust::{Stamp, write_durably};
use crate::cli::evaluate::base_weights;
use crate::cli::keys::read_roots;
use crate::clock::Clock;
use crate::evaluate::{Prompt, Table};
use crate::pipeline::{EngineNetworks, Segmenter};

/// Largest evaluation that is read, bytes.
const MAX_EVALUATION: u64 = 64 << 20;

#[derive(Args, Debug)]
pub(super) struct MakeArgs {
    /// The adapter
    #[arg(long, short)]
    adapter: PathBuf,
    /// What `scanside evaluate --out` wrote of this adapter as JSON; only figures over all volumes are taken
    #[arg(long, short)]
    evidence: PathBuf,
    /// Folder with every root from the first (`1.root.json`, ...), as `scanside keys root` writes it
    #[arg(long)]
    roots: PathBuf,
    /// Version of this release; must grow with each release of the name
    #[arg(long)]
    version: u32,
    /// Until when boxes install it, e.g. 2027-06-30
    #[arg(long, value_parser = Stamp::parse)]
    expires: Stamp,
    /// When it is made; default: SOURCE_DATE_EPOCH, else today. Part of the input: the same inputs give the same bytes
    #[arg(long, value_parser = Stamp::parse)]
    issued: Option<Stamp>,
    /// Line of releases in which versions are compared; default: the adapter's name
    #[arg(long)]
    name: Option<String>,
    /// A site that may take it; repeat for more; default: every site
    #[arg(long = "site", value_name = "SITE")]
    sites: Vec<String>,
    /// What changed, for those who decide
    #[arg(long, default_value = "")]
    note: String,
    /// Least version of scanside on the box; default: this one
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    needs_scanside: String,
    /// Memory of the box, MiB
    #[arg(long, default_value_t = 2048)]
    needs_memory: u32,
    /// Feature of the box's engine; repeat for more
    #[arg(long = "needs-feature", value_name = "FEATURE", default_values_t = FEATURES.map(String::from))]
    needs_features: Vec<String>,
    /// Phantoms to make parity images of
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    parity_seeds: Vec<u64>,
    /// Base weights (safetensors); default: the cache, fetched once where empty
    #[arg(long)]
    weights: Option<PathBuf>,
    /// File to write
    #[arg(long, short)]
    out: PathBuf,
}

pub(super) fn run(args: &MakeArgs) -> anyhow::Result<ExitCode> {
    let adapter = Adapter::load(&args.adapter)?;
    let roots = read_roots(&args.roots)?;
    let evidence = evidence(args, &adapter)?;
    let issued = match args.issued {
        Some(stamp) => stamp,
        None => today()?,
    };
    let base = base_weights(args.weights.as_deref())?;
    adapter.check(base.sha256())?;
    let segmenter = Segmenter::new(Box::new(EngineNetworks::cpu(&base, &adapter, 1)?), adapter.model_info()?)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let parity = make_parity(&segmenter, &args.parity_seeds, threads)?;
    let missing = untold(&parity, &adapter.meta.task).join(", ");
    if !missing.is_empty() {
        println!("note: the parity images show too little of {missing} to test it; --parity-seeds chooses others");
    }
    let draft = Draft {
        name: args.name.clone().unwrap_or_else(|| adapter.meta.name.clone()),
        adapter,
        evidence,
        parity,
        roots,
        version: args.version,
        issued,
        expires: args.expires,
        requires: Requires {
            features: args.needs_features.iter().cloned().collect(),
            memory_mb: args.needs_memory,
            scanside: args.needs_scanside.clone(),
        },
        sites: if args.sites.is_empty() { vec!["*".into()] } else { args.sites.clone() },
        note: args.note.clone(),
    };
    let bytes = draft.to_bytes()?;
    write_durably(&args.out, &bytes).with_context(|| format!("cannot write {}", args.out.display()))?;
    println!("{}: {} bytes, sha256 {}", args.out.display(), bytes.len(), hex::encode(Sha256::digest(&bytes)));
    println!("next: look at it with `scanside bundle inspect`, then each holder signs it with `scanside bundle sign`");
    Ok(ExitCode::SUCCESS)
}

/// The first second of today, or what reproducible builds set.
fn today() -> anyhow::Result<Stamp> {
    let now = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.parse().context("SOURCE_DATE_EPOCH is no number of seconds")?,
        Err(_) => Clock::System.now_ms() / 1000 / 86_400 * 86_400,
    };
    Stamp::from_unix(now).context("the clock is out of range; give --issued")
}

/// The automatic results of an evaluation of this very adapter.
fn evidence(args: &MakeArgs, adapter: &Adapter) -> anyhow::Result<Evidence> {
    let name = args.evidence.display();
    let mut bytes = Vec::new();
    let file = std::fs::File::open(&args.evidence).with_context(|| format!("cannot read {name}"))?;
    std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_EVALUATION), &mut bytes)
        .with_context(|| format!("cannot read {name}"))?;
    let table: Table = serde_json::from_slice(&bytes)
        .with_context(|| format!("{name} is not what `scanside evaluate --out` writes as JSON"))?;
    let sha256 = adapter.sha256()?;
    ensure!(
        table.facts.iter().any(|(k, v)| k == "adapter" && v.ends_with(&format!("sha256 {sha256}"))),
        "{name} is the evaluation of another adapter than {} (sha256 {sha256:.12}): evaluate this one",
        args.adapter.display()
    );
    let figure = |s: crate::evaluate::Spread| EvidenceFigure { mean: s.mean, sd: s.sd, min: s.min, n: s.n };
    let rows: Vec<EvidenceRow> = table
        .rows
        .iter()
        .filter(|r| r.prompt == Prompt::Automatic)
        .map(|r| EvidenceRow {
            structure: r.structure.clone(),
            legs: r.legs,
            missing: r.missing,
            dice: r.dice.map(figure),
            hd95_mm: r.hd95_mm.map(figure),
            verdicts: r.verdicts,
        })
        .collect();
    for s in &adapter.meta.task.structures {
        if !rows.iter().any(|r| r.structure == s.key && r.dice.is_some()) {
            bail!("{name} has no automatic result of {}: nothing untested goes into a bundle", s.key);
        }
    }
    Ok(Evidence { source_sha256: hex::encode(Sha256::digest(&bytes)), facts: table.facts, rows })
}
