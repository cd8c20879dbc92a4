//! `scanside segment`: a folder of DICOM to segmentation, reports and picture, without network or daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use super::ConfigArgs;
use crate::daemon::{Model, ResultFiles, result_key, write_results};
use crate::model::weights;
use crate::pipeline::{Progress, SegmentOptions};
use crate::series::{AssembleOptions, Rules, assemble_for, load, scan_dir};

#[derive(Args, Debug)]
pub(super) struct SegmentArgs {
    /// Folder with the DICOM files of one MR series
    dir: PathBuf,
    /// Where to write seg.dcm, sr.dcm, text.dcm, sc.dcm, montage.png
    #[arg(long, short, default_value = "scanside-out")]
    out: PathBuf,
    /// The adapter; default: the configuration's, else the phantom adapter (for trying out only)
    #[arg(long)]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: &SegmentArgs) -> anyhow::Result<ExitCode> {
    let config = args.config.load()?.config;
    let adapter = args.adapter.clone().unwrap_or_else(|| config.model.adapter.clone());
    let base = if config.model.weights.as_os_str().is_empty() {
        weights::load_or_fetch(&mut |line| eprintln!("{line}"))?
    } else {
        weights::load(&config.model.weights)?
    };
    let model = Model::with_engine(&base, &adapter, &config)?;
    println!("{}", model.describe());
    let mut scan = scan_dir(&args.dir)?;
    if let Some(broken) = scan.broken.pop() {
        bail!("{broken}");
    }
    let Some((_, headers)) = scan.series.pop_first() else { bail!("no DICOM image in {}", args.dir.display()) };
    if !scan.series.is_empty() {
        bail!("{} series are in {}; name a folder that holds one", scan.series.len() + 1, args.dir.display());
    }
    let rules = Rules::new(&config.series.include_words, &config.series.exclude_words);
    let options = AssembleOptions { allow_gaps: config.series.allow_gaps, ..AssembleOptions::default() };
    let series = load(&assemble_for(&headers, &rules, &options)?)?;
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template("{msg:8} {wide_bar} {pos}/{len}")?);
    let progress = |p: Progress| {
        bar.set_message(p.step);
        bar.set_length(p.total as u64);
        bar.set_position(p.done as u64);
    };
    let options = SegmentOptions { threads: model.threads, ..SegmentOptions::default() };
    let s = model.segmenter.segment(&series.volume, series.header.laterality, &options, &progress)?;
    bar.finish_and_clear();
    let mut hashes = Vec::new();
    for slice in &series.slices {
        hashes.push(hex::encode(Sha256::digest(std::fs::read(&slice.path)?)));
    }
    let identity = model.identity(&config.station.ae_title);
    let files = ResultFiles {
        dir: &args.out,
        identity: &identity,
        created_ms: crate::clock::Clock::System.now_ms(),
        key: result_key(&hashes, &identity, "segment"),
        bar: config.results.bar,
        hold_below_bar: false,
        pilot: false,
        series_number: config.results.series_number,
    };
    let outputs = write_results(&series, &s, &files, &args.out)?;
    print!("{}", super::report_table(&s.report));
    for remark in series.remarks.iter().chain(&s.remarks) {
        println!("note: {remark}");
    }
    for t in &s.times {
        println!("{:<8} {:6.2} s", t.step, t.seconds);
    }
    for o in outputs {
        println!("{:<5} {}", o.kind, args.out.join(&o.path).display());
    }
    println!("{:<5} {}", "png", args.out.join("montage.png").display());
    Ok(ExitCode::SUCCESS)
}
