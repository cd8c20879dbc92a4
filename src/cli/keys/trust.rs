//! `scanside keys trust`: a box's first root, newer roots, and what it remembers.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{bail, ensure};
use clap::Args;

use crate::adapter::Reason;
use crate::adapter::trust::{Chain, RoleName, Root, Signed, TrustState, TrustStore, fingerprint, time};
use crate::cli::ConfigArgs;
use crate::clock::Clock;

/// Digits of a fingerprint that must be told. A forged root has room for words, so that a match of fewer could be searched for.
const LEAST_DIGITS: usize = 32;

#[derive(Args, Debug)]
pub(super) struct TrustArgs {
    /// Roots; none: show what this box trusts
    roots: Vec<PathBuf>,
    /// For the first root: its fingerprint (at least 32 digits, in groups or not), as the training host told it by another way than the file
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<String>,
    /// Take the present time for true although a later one was seen; for a person who has just set the clock
    #[arg(long, conflicts_with = "roots")]
    set_clock: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: &TrustArgs) -> anyhow::Result<ExitCode> {
    let store = TrustStore::new(&args.config.load()?.config.storage.state_dir);
    let now = Clock::System.now_ms();
    if args.set_clock {
        let before = store.load()?.latest_ms;
        store.set_clock(now)?;
        println!("latest time seen: {} instead of {}", time(now), time(before));
        return Ok(ExitCode::SUCCESS);
    }
    let state = if args.roots.is_empty() {
        store.load()?
    } else {
        let roots = args.roots.iter().map(|p| super::read_root(p)).collect::<anyhow::Result<Vec<_>>>()?;
        take(&store, Chain::new(roots)?, args.fingerprint.as_deref(), now)?
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&state)?);
    } else {
        show(&state);
    }
    Ok(ExitCode::SUCCESS)
}

fn take(store: &TrustStore, chain: Chain, told: Option<&str>, now: i64) -> anyhow::Result<TrustState> {
    match store.load() {
        Ok(state) => {
            ensure!(told.is_none(), "this box trusts a root already; newer ones need no --fingerprint");
            let Some(newer) = chain.from_trusted(&state.root)? else { return Ok(state) };
            Ok(store.update(|s| {
                if newer.signed.version > s.root.signed.version {
                    s.root = newer;
                }
            })?)
        }
        Err(e) if e.reason == Reason::NoRoot => {
            let Some(first) = chain.roots().first() else { bail!("no root was named") };
            let found = fingerprint(first);
            let shown = grouped(&found);
            let told = told.map(|t| t.to_ascii_lowercase().replace([' ', ':'], ""));
            match told {
                Some(t) if t.len() < LEAST_DIGITS => bail!(
                    "--fingerprint needs at least {LEAST_DIGITS} digits, these are {}; type more of what the training host told you by \
                     another way than the file",
                    t.len()
                ),
                Some(t) if found.starts_with(&t) => {}
                Some(t) => bail!(
                    "the fingerprint of root {} is {shown}, not {}: it is another file than the one you were told of",
                    first.signed.version,
                    grouped(&t)
                ),
                None => bail!(
                    "the fingerprint of root {} is {shown}; compare it with what the training host tells you by another way, then \
                     repeat with --fingerprint",
                    first.signed.version
                ),
            }
            let newest = chain.newest().unwrap_or(first);
            Ok(store.init(newest.clone(), now)?)
        }
        Err(e) => Err(e.into()),
    }
}

fn show(state: &TrustState) {
    print_root(&state.root);
    println!("latest time seen: {}", time(state.latest_ms));
    for (name, line) in &state.lines {
        println!("{name}: version {} is the highest that was committed", line.version);
    }
}

/// A fingerprint in groups of four digits, as people read and type it.
fn grouped(hex: &str) -> String {
    let mut out = String::with_capacity(hex.len() + hex.len() / 4);
    for (i, digit) in hex.chars().enumerate() {
        if i > 0 && i % 4 == 0 {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// A root for people.
pub(super) fn print_root(signed: &Signed<Root>) {
    let root = &signed.signed;
    println!("root {}, expires {}, fingerprint {}", root.version, root.expires, grouped(&fingerprint(signed)));
    for (what, role) in [("root", RoleName::Root), ("release", RoleName::Release)] {
        let role = root.role(role);
        println!("  {what}: {} of {} must sign", role.threshold, role.keyids.len());
        for id in &role.keyids {
            println!("    {}", root.name_of(id));
        }
    }
    for (id, r) in &root.scanside.revoked {
        println!("  withdrawn in root {}: {}: {}", r.root, root.name_of(id), r.why);
    }
}
