//! `scanside engine verify`: the parity gate, in numbers.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::SubjectArgs;
use crate::config::EngineKind;
use crate::pipeline::parity::{LEAST_IOU, Parity};
use crate::pipeline::serving::serving;
use crate::terms::Task;

#[derive(Args, Debug)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    subject: SubjectArgs,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let mut subject = args.subject.load()?;
    // What is asked is whether TensorRT may serve, whatever the configuration says of the CPU.
    subject.config.engine.kind = EngineKind::Tensorrt;
    subject.config.engine.cpu_fallback = true;
    let chosen =
        serving(&subject.config.engine, &subject.config.storage.state_dir, &subject.base, &subject.adapter, true)?;
    let report = chosen.report;
    let passed = report.refusal.is_none();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&json!({"passed": passed, "report": report}))?);
    } else {
        if let Some(p) = &report.parity {
            print!("{}", table(p, &subject.adapter.meta.task));
        }
        match &report.refusal {
            None => println!("passed: TensorRT may serve"),
            Some(r) => println!("refused: {r}"),
        }
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A parity by structure.
fn table(p: &Parity, task: &Task) -> String {
    let of = |e: &crate::engine::EngineIdentity| format!("{} {} {}", e.kind, e.version, e.precision);
    let mut out = format!("{}\nagainst {}\n", of(&p.engine), of(&p.reference));
    for (s, structure) in p.structures.iter().zip(&task.structures) {
        let mark = if s.iou < LEAST_IOU { "  below" } else { "" };
        out.push_str(&format!("  {:<28} mask IoU {:.4} over {} pixels{mark}\n", structure.name, s.iou, s.pixels));
    }
    out.push_str(&format!("{}\n", p.describe()));
    out
}
