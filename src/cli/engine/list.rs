//! `scanside engine list`: the plans and what each is for.

use std::process::ExitCode;

use clap::Args;

use super::super::ConfigArgs;
use crate::pipeline::serving::plans_of;

#[derive(Args, Debug)]
pub(super) struct ListArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?.config;
    let plans = plans_of(&config.engine, &config.storage.state_dir);
    let all = plans.list()?;
    if args.json {
        let good: Vec<_> = all.iter().flatten().collect();
        println!("{}", serde_json::to_string_pretty(&good)?);
    } else if all.is_empty() {
        println!("no plan is in {}; `scanside engine build` makes them", plans.folder().display());
    } else {
        println!("{:<11}{:<6}{:>5}{:>10}  {:<8}library and GPU", "part", "in", "rank", "KiB", "origin");
        for r in all.iter().flatten() {
            let k = &r.key;
            println!(
                "{:<11}{:<6}{:>5}{:>10}  {:<8}{} on {} (compute capability {})",
                k.graph,
                k.precision,
                k.rank,
                r.bytes >> 10,
                r.origin,
                k.library,
                k.gpu,
                k.capability
            );
        }
    }
    for e in all.iter().filter_map(|r| r.as_ref().err()) {
        eprintln!("{e}");
    }
    Ok(if all.iter().all(Result::is_ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
