//! `scanside bundle sign`: one signature more.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::show::standing;
use crate::adapter::trust::write_durably;
use crate::cli::keys::SignerArgs;

#[derive(Args, Debug)]
pub(super) struct SignArgs {
    /// The bundle
    file: PathBuf,
    #[command(flatten)]
    signer: SignerArgs,
    /// Write here instead of replacing the file
    #[arg(long, short)]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &SignArgs) -> anyhow::Result<ExitCode> {
    let bundle = super::open_unverified(&args.file)?;
    let signer = args.signer.signer()?;
    let (bytes, key) = bundle.sign(signer.as_ref())?;
    let out = args.out.as_ref().unwrap_or(&args.file);
    write_durably(out, &bytes).with_context(|| format!("cannot write {}", out.display()))?;
    let m = &bundle.manifest.signed;
    println!("{} {} (id {:.12}) signed with key {}", m.scanside.name, m.version, m.id(), key.short());
    let signed = super::open_unverified(out)?;
    if let Some(root) = signed.roots.newest() {
        println!("{}", standing(&signed, &root.signed));
    }
    Ok(ExitCode::SUCCESS)
}
