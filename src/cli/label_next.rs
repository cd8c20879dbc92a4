//! `scanside label-next`: which slices to annotate next, and the files to annotate them in.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::evaluate::base_weights;
use crate::adapter::Adapter;
use crate::daemon::{Model, source_of};
use crate::dicom::read::InstanceHeader;
use crate::dicom::write::{Identity, ResultInput, SegmentSpec, annotation, write_atomically};
use crate::image::{LabelMap, Legend, Rgb};
use crate::labels::{NamedLabel, write_seg_nrrd};
use crate::pipeline::{Progress, SegmentOptions, Segmentation, find_legs};
use crate::segex::Report;
use crate::series::{SeriesVolume, load_dir, scan_dir};
use crate::terms::{STRUCTURE_KEYS, Side, Structure, structure};
use crate::train::{Candidates, Entry, Manifest, Pick, propose};

/// A slice with less of its leg than this share of the series' median does not show a thigh.
const LEAST_LEG: f64 = 0.3;
/// What a poor SegEx grade adds to a slice's doubt, for each grade below 4.
const POOR_GRADE: f64 = 0.02;

#[derive(Args, Debug)]
pub(super) struct LabelNextArgs {
    /// Folders of one series each, or folders of such folders
    #[arg(long, num_args = 1.., required = true)]
    images: Vec<PathBuf>,
    /// Folder to write: site.toml, and for each series its label files and pictures; must be empty or new
    #[arg(long, short)]
    out: PathBuf,
    /// How many slices
    #[arg(long, default_value_t = 5)]
    count: usize,
    /// Structures to annotate, e.g. VL,VM; default: the adapter's, else the manifest's
    #[arg(long, value_delimiter = ',')]
    structures: Vec<String>,
    /// Propose where this adapter is unsure
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Fill the label files with the adapter's prediction, to be corrected
    #[arg(long, requires = "adapter")]
    prefill: bool,
    /// Annotate this leg alone (right or left)
    #[arg(long, value_parser = side_of)]
    side: Option<Side>,
    /// Manifest of what is annotated already: its slices are not proposed again
    #[arg(long)]
    manifest: Option<PathBuf>,
    /// Decides between equal slices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Base weights (safetensors); default: the cache, fetched once where empty
    #[arg(long)]
    weights: Option<PathBuf>,
}

fn side_of(word: &str) -> Result<Side, String> {
    match word {
        "right" => Ok(Side::Right),
        "left" => Ok(Side::Left),
        other => Err(format!("no side {other:?}: right or left")),
    }
}

/// A series to choose from.
struct Source {
    name: String,
    folder: PathBuf,
    candidates: Candidates,
    /// Whether the manifest given lists it.
    known: bool,
}

pub(super) fn run(args: &LabelNextArgs) -> anyhow::Result<ExitCode> {
    ensure!(args.count > 0, "--count 0 proposes nothing");
    let done = args.manifest.as_deref().map(Manifest::load).transpose()?;
    let model = match &args.adapter {
        Some(path) => Some(Model::with_base(&base_weights(args.weights.as_deref())?, path, 0)?),
        None => None,
    };
    let structures = structures_of(args, done.as_ref())?;
    prepare(&args.out)?;
    let folders = folders(&args.images)?;
    let names = names(&folders);
    let bar = ProgressBar::new(folders.len() as u64)
        .with_style(ProgressStyle::with_template("looking at {msg} {bar:30} {pos}/{len} {eta}")?);
    let mut sources = Vec::new();
    for (folder, name) in folders.into_iter().zip(names) {
        let listed = entries(done.as_ref(), &folder);
        if listed.iter().any(|e| e.usage.tested()) {
            bar.suspend(|| println!("{name} is tested by the manifest given: nothing of it is proposed or looked at"));
            bar.inc(1);
            continue;
        }
        bar.set_message(name.clone());
        let series = load_dir(&folder)?;
        let segmented = match &model {
            Some(m) => Some(segment(m, &series).with_context(|| format!("series {name}"))?),
            None => None,
        };
        let candidates = candidates(&series, segmented.as_ref(), taken(&listed));
        sources.push(Source { name, folder, candidates, known: !listed.is_empty() });
        bar.inc(1);
    }
    bar.finish_and_clear();
    let all: Vec<Candidates> = sources.iter().map(|s| s.candidates.clone()).collect();
    let picks = propose(&all, args.count, args.seed);
    ensure!(!picks.is_empty(), "no slice is left to propose: every slice that shows a leg is annotated");

    let mut manifest = head(&structures);
    println!("{:<5}{:<24}{:>6}  {:<10}{:>7}  picture", "rank", "volume", "slice", "part", "doubt");
    for (i, source) in sources.iter().enumerate() {
        let mut own: Vec<usize> = picks.iter().filter(|p| p.series == i).map(|p| p.slice).collect();
        if own.is_empty() {
            // What the manifest given lists is listed once.
            if !source.known {
                unlabelled(&mut manifest, source);
            }
            continue;
        }
        own.sort_unstable();
        // Loaded again rather than kept: a folder may hold hundreds.
        let series = load_dir(&source.folder)?;
        let labels = match &model {
            Some(m) if args.prefill => prefilled(&segment(m, &series)?, &structures, &own, args.side),
            _ => LabelMap::empty(series.volume.geometry.clone()),
        };
        let folder = args.out.join(&source.name);
        export(&folder, &series, &labels, &structures, &own)?;
        entry(&mut manifest, source, &own, args.side);
    }
    for (rank, p) in picks.iter().enumerate() {
        let Pick { series, slice, stratum, doubt } = p;
        let name = &sources[*series].name;
        let doubt = doubt.map_or("-".into(), |d| format!("{d:.3}"));
        println!("{:<5}{name:<24}{slice:>6}  {:<10}{doubt:>7}  {name}/slice-{slice}.png", rank + 1, stratum.word());
    }
    let path = args.out.join("site.toml");
    std::fs::write(&path, manifest).with_context(|| path.display().to_string())?;
    println!("wrote {}: annotate, then scanside labels check --manifest {0}", path.display());
    Ok(ExitCode::SUCCESS)
}

fn structures_of(args: &LabelNextArgs, done: Option<&Manifest>) -> anyhow::Result<Vec<Structure>> {
    let adapter = args.adapter.as_deref().map(Adapter::load).transpose()?;
    let keys = |a: &Adapter| a.meta.task.structures.iter().map(|s| s.key.clone()).collect::<Vec<_>>();
    let lists = [
        args.structures.clone(),
        adapter.as_ref().map(keys).unwrap_or_default(),
        done.map(|m| m.structures.clone()).unwrap_or_default(),
    ];
    let Some(list) = lists.into_iter().find(|l| !l.is_empty()) else {
        bail!(
            "no structure is named: give --structures, e.g. --structures VL,VM (this release knows {})",
            STRUCTURE_KEYS.join(", ")
        );
    };
    let mut out: Vec<Structure> = Vec::new();
    for key in &list {
        let Some(s) = structure(key) else {
            bail!("no structure {key:?}: this release knows {}", STRUCTURE_KEYS.join(", "));
        };
        if !out.contains(&s) {
            out.push(s);
        }
    }
    Ok(out)
}

/// Annotations may lie there: nothing is ever overwritten.
fn prepare(out: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot make the folder {}", out.display()))?;
    let mut there = std::fs::read_dir(out).with_context(|| out.display().to_string())?;
    ensure!(
        there.next().is_none(),
        "the folder {} is not empty: name a new one, so that no annotation is overwritten",
        out.display()
    );
    Ok(())
}

/// The folders that hold a series each, in order.
fn folders(given: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut found: BTreeMap<PathBuf, String> = BTreeMap::new();
    for dir in given {
        let scan = scan_dir(dir)?;
        if let Some(broken) = scan.broken.into_iter().next() {
            bail!("{broken}");
        }
        ensure!(
            !scan.series.is_empty(),
            "{}: no DICOM image; name a folder of one series, or of such folders",
            dir.display()
        );
        for (uid, headers) in &scan.series {
            let folder = common_folder(headers).unwrap_or_else(|| dir.clone());
            let folder = folder.canonicalize().with_context(|| folder.display().to_string())?;
            if let Some(other) = found.insert(folder.clone(), uid.clone()) {
                ensure!(&other == uid, "{} holds several series; give each a folder of its own", folder.display());
            }
        }
    }
    let all: Vec<PathBuf> = found.into_keys().collect();
    // A series above another's folder would be loaded with it.
    for (i, a) in all.iter().enumerate() {
        if let Some(b) = all.iter().enumerate().find(|(j, b)| *j != i && b.starts_with(a)) {
            bail!(
                "{} holds a series and the folder {} with another; give each a folder of its own",
                a.display(),
                b.1.display()
            );
        }
    }
    Ok(all)
}

fn common_folder(headers: &[InstanceHeader]) -> Option<PathBuf> {
    let mut common = headers.first()?.path.parent()?.to_path_buf();
    for h in headers {
        while !h.path.starts_with(&common) {
            common = common.parent()?.to_path_buf();
        }
    }
    Some(common)
}

/// A short name for each folder: its own, with its parent's where that is not enough.
fn names(folders: &[PathBuf]) -> Vec<String> {
    let part = |p: &Path| p.file_name().map_or_else(|| "series".into(), |n| n.to_string_lossy().into_owned());
    let short: Vec<String> = folders.iter().map(|f| part(f)).collect();
    let long = |i: usize| folders[i].parent().map_or_else(|| short[i].clone(), |p| format!("{}-{}", part(p), short[i]));
    let twice = |s: &str| short.iter().filter(|o| *o == s).count() > 1;
    let mut out: Vec<String> = Vec::new();
    for (i, s) in short.iter().enumerate() {
        let mut name = if twice(s) { long(i) } else { s.clone() };
        while out.contains(&name) {
            name.push('_');
        }
        out.push(name);
    }
    out
}

/// The entries of a manifest that name a folder.
fn entries<'a>(done: Option<&'a Manifest>, folder: &Path) -> Vec<&'a Entry> {
    let same = |p: &Path| p.canonicalize().is_ok_and(|p| p == folder);
    done.into_iter().flat_map(|m| &m.volume).filter(|e| e.images.as_deref().is_some_and(same)).collect()
}

/// Slices that they label.
fn taken(entries: &[&Entry]) -> Vec<usize> {
    let labelled = entries.iter().filter(|e| e.labels.is_some());
    labelled.flat_map(|e| e.slices.clone().unwrap_or_else(|| (0..10_000).collect())).collect()
}

fn segment(model: &Model, series: &SeriesVolume) -> anyhow::Result<Segmentation> {
    let options = SegmentOptions { threads: model.threads, ..SegmentOptions::default() };
    Ok(model.segmenter.segment(&series.volume, series.header.laterality, &options, &|_: Progress| {})?)
}

fn candidates(series: &SeriesVolume, segmented: Option<&Segmentation>, taken: Vec<usize>) -> Candidates {
    let g = &series.volume.geometry;
    let (n, slices) = (g.plane(), g.dims[2]);
    let last = (slices.max(2) - 1) as f64;
    // Slices grow along the third axis; towards the head is proximal.
    let up = g.axes[2][2] >= 0.0;
    let positions = (0..slices).map(|z| if up { z as f64 / last } else { 1.0 - z as f64 / last }).collect();
    let usable = match find_legs(&series.volume, series.header.laterality) {
        Ok(found) => {
            let area: Vec<f64> = (0..slices)
                .map(|z| {
                    found.legs.iter().map(|l| l.mask[z * n..(z + 1) * n].iter().filter(|m| **m).count()).sum::<usize>()
                        as f64
                })
                .collect();
            let mut sorted = area.clone();
            sorted.sort_by(f64::total_cmp);
            let median = sorted[slices / 2];
            area.iter().map(|a| *a > 0.0 && *a >= LEAST_LEG * median).collect()
        }
        Err(_) => vec![false; slices],
    };
    let doubt = segmented.map(|s| doubts(s, slices)).unwrap_or_default();
    Candidates { positions, usable, taken: taken.into_iter().filter(|z| *z < slices).collect(), doubt }
}

/// Doubt of each slice: the mean doubt of the voxels that are labelled or in doubt, and more for every poor SegEx grade that
/// names the slice.
fn doubts(s: &Segmentation, slices: usize) -> Vec<f64> {
    let n = s.labels.geometry.plane();
    (0..slices)
        .map(|z| {
            let range = z * n..(z + 1) * n;
            let told = s.labels.data[range.clone()].iter().zip(&s.doubt[range]).filter(|(l, d)| **l > 0 || **d > 0.1);
            let (count, sum) = told.fold((0usize, 0.0), |(c, t), (_, d)| (c + 1, t + f64::from(*d)));
            // A slice on which nothing at all was found is as doubtful as can be.
            let mean = if count == 0 { 1.0 } else { sum / count as f64 };
            mean + POOR_GRADE * f64::from(poor(&s.report, z))
        })
        .collect()
}

/// Grades below 4 that the slice pulled down, each with its distance from 4.
fn poor(report: &Report, z: usize) -> u8 {
    let grades = report.structures.iter().flat_map(|r| &r.grades).filter(|g| g.slices.contains(&z));
    grades.filter_map(|g| g.grade).map(|g| 4u8.saturating_sub(g)).fold(0, u8::saturating_add)
}

/// The prediction on the proposed slices alone: what stands elsewhere was not looked at.
fn prefilled(s: &Segmentation, structures: &[Structure], slices: &[usize], side: Option<Side>) -> LabelMap {
    let mut out = LabelMap::empty(s.labels.geometry.clone());
    let mut of = [0u8; 256];
    for info in s.segments.iter().filter(|i| side.is_none() || i.side.is_none() || i.side == side) {
        if let Some(k) = structures.iter().position(|x| x.key == info.structure.key) {
            of[info.label as usize] = k as u8 + 1;
        }
    }
    let n = out.geometry.plane();
    for &z in slices {
        for i in z * n..(z + 1) * n {
            out.data[i] = of[s.labels.data[i] as usize];
        }
    }
    out
}

/// Label files in both formats, and a picture of each proposed slice.
fn export(
    folder: &Path,
    series: &SeriesVolume,
    labels: &LabelMap,
    structures: &[Structure],
    slices: &[usize],
) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let named: Vec<NamedLabel> = structures
        .iter()
        .enumerate()
        .map(|(k, s)| NamedLabel { label: k as u8 + 1, structure: s.clone(), side: None })
        .collect();
    let path = folder.join("labels.seg.nrrd");
    write_seg_nrrd(labels, &named, &path).with_context(|| path.display().to_string())?;
    let source = source_of(series);
    let segments: Vec<SegmentSpec> =
        named.iter().map(|n| SegmentSpec { number: n.label, structure: n.structure.clone(), side: None }).collect();
    let identity = Identity {
        software: env!("CARGO_PKG_VERSION").into(),
        engine: "none".into(),
        adapter: "none".into(),
        adapter_sha256: String::new(),
        bundle: String::new(),
        base_sha256: String::new(),
        station: "SCANSIDE".into(),
    };
    let input = ResultInput {
        source: &source,
        labels,
        segments: &segments,
        reports: &[],
        score: 0.0,
        verdict: String::new(),
        observer: String::new(),
        calibrated: false,
        needs_review: false,
        remarks: &[],
        identity: &identity,
        created_ms: crate::clock::Clock::System.now_ms(),
        key: format!("annotation {slices:?} {structures:?}"),
        series_number: 9100,
    };
    if let Some((_, object)) = annotation(&input, slices) {
        write_atomically(&object, &folder.join("labels.dcm"))?;
    }
    let legend: Vec<Legend> =
        named.iter().map(|n| Legend { label: n.label, rgb: n.structure.rgb, name: n.structure.name.clone() }).collect();
    for &z in slices {
        let path = folder.join(format!("slice-{z}.png"));
        picture(series, labels, &legend, z).write_png(&path).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// One slice with its number as the manifest, 3D Slicer and the viewer count it.
fn picture(series: &SeriesVolume, labels: &LabelMap, legend: &[Legend], z: usize) -> Rgb {
    let g = &series.volume.geometry;
    let mut one = g.clone();
    one.origin = g.to_patient([0.0, 0.0, z as f64]);
    one.dims[2] = 1;
    let volume = crate::image::Volume { data: series.volume.plane(z).data, geometry: one.clone() };
    let labels = LabelMap { data: labels.plane(z).data, geometry: one };
    let file = series.slices[z].path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let middle = g.to_patient([g.dims[0] as f64 / 2.0, g.dims[1] as f64 / 2.0, z as f64]);
    let end = if middle[2] >= 0.0 { "S" } else { "I" };
    let caption = [
        format!("slice {z} in site.toml (0 to {}, from the first slice along the normal)", g.dims[2] - 1),
        format!("3D Slicer: {end} {:.2} mm; file {file}, frame {}", middle[2].abs(), series.slices[z].frame),
    ];
    let mut out = crate::image::montage(&volume, &labels, legend, &caption);
    // The montage counts its own tiles; here the number that the manifest lists stands instead.
    let number = z.to_string();
    for y in 0..14.min(out.height) {
        let row = y * out.width * 3;
        out.data[row..row + (number.len().max(1) * 8 + 8).min(out.width) * 3].fill(0);
    }
    out.text(3, 3, &number, [255, 255, 255]);
    out
}

fn head(structures: &[Structure]) -> String {
    let keys: Vec<String> = structures.iter().map(|s| format!("{:?}", s.key)).collect();
    format!(
        "# Slices to annotate. Label every structure on each listed slice, on every leg unless `side` names one.\n\
         # 3D Slicer: fill labels.seg.nrrd and save it in place. OHIF: fill labels.dcm, export it, and name the export in `labels`.\n\
         note = \"\"\nstructures = [{}]\n",
        keys.join(", ")
    )
}

fn text(s: &str) -> String {
    toml::Value::String(s.to_string()).to_string()
}

/// A series to be looked at without labels.
fn unlabelled(out: &mut String, source: &Source) {
    let images = text(&source.folder.display().to_string());
    let _ = write!(out, "\n[[volume]]\nname = {}\nimages = {images}\nuse = \"unlabelled\"\n", text(&source.name));
}

fn entry(out: &mut String, source: &Source, slices: &[usize], side: Option<Side>) {
    let _ = write!(
        out,
        "\n[[volume]]\nname = {}\nimages = {}\nlabels = {}\nslices = {slices:?}\n",
        text(&source.name),
        text(&source.folder.display().to_string()),
        text(&format!("{}/labels.seg.nrrd", source.name)),
    );
    let _ = match side {
        Some(s) => writeln!(out, "side = \"{}\"", s.word()),
        None => writeln!(out, "# side = \"right\"   # when one leg alone is labelled"),
    };
}
