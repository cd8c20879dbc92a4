//! `scanside send`: sends DICOM files to a station, as a scanner would.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use crate::dicom::net::scu::{ScuOptions, Sent, Target, echo, send};

#[derive(Args, Debug)]
pub(super) struct SendArgs {
    /// AE title of the receiver
    #[arg(long, default_value = "SCANSIDE")]
    to: String,
    /// Our AE title
    #[arg(long, default_value = "SCANSIDE_SEND")]
    from: String,
    /// HOST:PORT of the receiver
    address: String,
    /// Files and folders; none: a C-ECHO only
    paths: Vec<PathBuf>,
}

pub(super) fn run(args: &SendArgs) -> anyhow::Result<ExitCode> {
    let target = Target { ae_title: args.to.clone(), address: args.address.clone(), calling_ae: args.from.clone() };
    if args.paths.is_empty() {
        echo(&target, &ScuOptions::default())?;
        println!("{} at {} answers", args.to, args.address);
        return Ok(ExitCode::SUCCESS);
    }
    let mut files = Vec::new();
    for p in &args.paths {
        collect(p, &mut files).with_context(|| format!("cannot read {}", p.display()))?;
    }
    files.sort();
    if files.is_empty() {
        bail!("no files in what was named");
    }
    let mut bad = 0;
    for o in send(&files, &target, &ScuOptions::default()) {
        match o.sent {
            Sent::Stored(0) => {}
            Sent::Stored(status) => println!("{}: stored with warning {status:04X}", o.path.display()),
            Sent::Transient(why) | Sent::Permanent(why) => {
                bad += 1;
                eprintln!("{}: {why}", o.path.display());
            }
        }
    }
    println!("{} of {} stored at {}", files.len() - bad, files.len(), args.address);
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn collect(path: &Path, out: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if path.is_dir() {
        for entry in std::fs::read_dir(path)? {
            collect(&entry?.path(), out)?;
        }
    } else {
        std::fs::metadata(path)?;
        out.push(path.to_path_buf());
    }
    Ok(())
}
