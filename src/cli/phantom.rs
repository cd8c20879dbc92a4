//! `scanside phantom`: a synthetic thigh series with known truth.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use crate::image::phantom::{Phantom, PhantomOptions};
use crate::image::{Legend, montage};
use crate::labels::{NamedLabel, write_seg_nrrd};
use crate::pipeline::write_dicom_series;
use crate::terms::{STRUCTURE_KEYS, structure};

#[derive(Args, Debug)]
pub(super) struct PhantomArgs {
    /// Folder to write: series/ with the DICOM files, truth.png, truth.seg.nrrd (3D Slicer's format, to train on)
    #[arg(long, short)]
    out: PathBuf,
    /// The subject: the same seed is the same series
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(super) fn run(args: &PhantomArgs) -> anyhow::Result<ExitCode> {
    let options = PhantomOptions { seed: args.seed, ..PhantomOptions::default() };
    let phantom = Phantom::new(&options);
    let series = write_dicom_series(&args.out.join("series"), &phantom, &options)?;
    let legend: Vec<Legend> = STRUCTURE_KEYS
        .iter()
        .enumerate()
        .filter_map(|(i, k)| structure(k).map(|s| Legend { label: i as u8 + 1, rgb: s.rgb, name: s.name }))
        .collect();
    let caption = [format!("Synthetic phantom, seed {}: image and truth", args.seed)];
    let picture = args.out.join("truth.png");
    montage(&phantom.volume, &phantom.structures, &legend, &caption).write_png(&picture)?;
    println!("{} DICOM files in {}", series.files.len(), args.out.join("series").display());
    let segments: Vec<NamedLabel> = STRUCTURE_KEYS
        .iter()
        .enumerate()
        .filter_map(|(i, k)| Some(NamedLabel { label: i as u8 + 1, structure: structure(k)?, side: None }))
        .filter(|s| phantom.structures.count(s.label) > 0)
        .collect();
    let labels = args.out.join("truth.seg.nrrd");
    write_seg_nrrd(&phantom.structures, &segments, &labels).with_context(|| labels.display().to_string())?;
    println!("truth: {} and {}", labels.display(), picture.display());
    Ok(ExitCode::SUCCESS)
}
